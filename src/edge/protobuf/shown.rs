//! What came as protobuf, as JSON for people and programs that read one.

use prost_types::Value;
use prost_types::value::Kind;
use proto::v1;
use serde_json::{Value as Json, json};

use super::number;

/// A StepResult: what it says of the step and how it ended.
pub(crate) fn result_json(result: &v1::StepResult) -> Json {
    let mut said = json!({
        "status": result.status().as_str_name(),
        "latency_ms": result.latency_ms,
        "retries_used": result.retries_used,
        "assignment_id": result.assignment_id,
        "type": result.r#type,
    });
    if let Some(outputs) = &result.outputs {
        said["outputs"] = of(&Kind::StructValue(outputs.clone()));
    }
    if let Some(there) = &result.outputs_ref {
        said["outputs_ref"] = json!({ "uri": there.uri, "size_bytes": there.size_bytes });
    }
    if let Some(error) = &result.error {
        said["error"] = error_json(error);
    }
    said
}

/// A StepError.
pub(crate) fn error_json(error: &v1::StepError) -> Json {
    let details = error.details.as_ref().map(|details| of(&Kind::StructValue(details.clone())));
    json!({ "code": error.code, "message": error.message, "effect": error.effect().as_str_name(), "details": details })
}

fn of(kind: &Kind) -> Json {
    let value = |value: &Value| value.kind.as_ref().map_or(Json::Null, of);
    match kind {
        Kind::NullValue(_) => Json::Null,
        Kind::BoolValue(value) => (*value).into(),
        Kind::NumberValue(value) => serde_json::from_str(&number(*value)).unwrap_or_default(),
        Kind::StringValue(value) => value.as_str().into(),
        Kind::ListValue(list) => list.values.iter().map(value).collect(),
        Kind::StructValue(members) => {
            Json::Object(members.fields.iter().map(|(name, member)| (name.clone(), value(member))).collect())
        }
    }
}
