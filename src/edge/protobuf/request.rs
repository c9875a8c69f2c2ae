//! A step as JSON, put into a StepRequest: for those who send protobuf and write JSON. A field that a StepRequest cannot carry
//! is an error, never left out. The reverse, which is what a worker reads, is [`super::request_text`].

use prost_types::{Struct, Timestamp};
use proto::v1;
use serde_json::{Map, Value as Json};

use crate::edge::reading;

/// The StepRequest that `step` is.
///
/// # Errors
/// The pointer of the first field that a StepRequest does not have, or has in another form.
pub fn request(step: &Json) -> Result<v1::StepRequest, String> {
    let mut step = Sheet::open(step, String::new())?;
    let resources = step.sheet(&["resources"])?;
    let retry = step.sheet(&["retry"])?;
    let context = step.sheet(&["context"])?;
    let payload_ref = step.sheet(&["payload_ref", "payloadRef"])?;
    let cache = step.sheet(&["cache"])?;
    let request = v1::StepRequest {
        r#type: step.text(&["type"])?.unwrap_or_default(),
        version_req: step.text(&["version_req", "versionReq"])?,
        inputs: step.structure(&["inputs"])?,
        resources: resources.map(self::resources).transpose()?,
        timeout_ms: step.count(&["timeout_ms", "timeoutMs"])?,
        retry: retry.map(self::retry).transpose()?,
        guardrails: step.structure(&["guardrails"])?,
        context: context.map(self::context).transpose()?,
        priority: step.count(&["priority"])?,
        not_after: step.read(&["not_after", "notAfter"], moment)?,
        effect_ceiling: step.read(&["effect_ceiling", "effectCeiling"], effect_class)?.unwrap_or_default(),
        payload_ref: payload_ref.map(self::payload_ref).transpose()?,
        assignment_id: step.text(&["assignment_id", "assignmentId"])?,
        request_id: step.text(&["request_id", "requestId"])?,
        cache: cache.map(self::cache).transpose()?,
        require_plan: step.text(&["require_plan", "requirePlan"])?,
    };
    step.close()?;
    Ok(request)
}

fn context(mut sheet: Sheet) -> Result<v1::BlockContext, String> {
    let context = v1::BlockContext {
        tenant_id: sheet.text(&["tenant_id", "tenantId"])?.unwrap_or_default(),
        trace_id: sheet.text(&["trace_id", "traceId"])?,
        run_id: sheet.text(&["run_id", "runId"])?,
        flow_id: sheet.text(&["flow_id", "flowId"])?,
        step_id: sheet.text(&["step_id", "stepId"])?,
        attempt: sheet.count(&["attempt"])?,
        sandbox: sheet.read(&["sandbox"], Json::as_bool)?,
        rbac_scopes: sheet.read(&["rbac_scopes", "rbacScopes"], words)?.unwrap_or_default(),
    };
    sheet.close()?;
    Ok(context)
}

fn retry(mut sheet: Sheet) -> Result<v1::Retry, String> {
    let jitter = |value: &Json| named(value, |name| v1::retry::Jitter::from_str_name(name).map(i32::from));
    let retry = v1::Retry {
        max_attempts: sheet.count(&["max_attempts", "maxAttempts"])?,
        backoff_ms: sheet.count(&["backoff_ms", "backoffMs"])?,
        backoff_factor: sheet.read(&["backoff_factor", "backoffFactor"], Json::as_f64)?,
        backoff_max_ms: sheet.count(&["backoff_max_ms", "backoffMaxMs"])?,
        jitter: sheet.read(&["jitter"], jitter)?.unwrap_or_default(),
        budget_ms: sheet.count(&["budget_ms", "budgetMs"])?,
        codes: sheet.read(&["codes"], words)?.unwrap_or_default(),
    };
    sheet.close()?;
    Ok(retry)
}

fn resources(mut sheet: Sheet) -> Result<v1::Resources, String> {
    let class = |value: &Json| named(value, |name| v1::resources::Class::from_str_name(name).map(i32::from));
    let resources = v1::Resources {
        class: sheet.read(&["class"], class)?.unwrap_or_default(),
        memory_mb: sheet.count(&["memory_mb", "memoryMb"])?,
        concurrency: sheet.count(&["concurrency"])?,
    };
    sheet.close()?;
    Ok(resources)
}

fn cache(mut sheet: Sheet) -> Result<v1::CacheWish, String> {
    let wish = v1::CacheWish {
        key: sheet.text(&["key"])?.unwrap_or_default(),
        ttl_ms: sheet.read(&["ttl_ms", "ttlMs", "ttl"], whole)?.unwrap_or_default(),
    };
    sheet.close()?;
    Ok(wish)
}

fn payload_ref(mut sheet: Sheet) -> Result<v1::PayloadRef, String> {
    use base64::Engine;
    let bytes = |value: &Json| base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok();
    let there = v1::PayloadRef {
        uri: sheet.text(&["uri"])?.unwrap_or_default(),
        sha256: sheet.read(&["sha256"], bytes)?,
        size_bytes: sheet.read(&["size_bytes", "sizeBytes"], whole)?,
    };
    sheet.close()?;
    Ok(there)
}

/// An object whose members are taken one by one. Lives where it is read.
struct Sheet {
    path: String,
    members: Map<String, Json>,
}

impl Sheet {
    fn open(value: &Json, path: String) -> Result<Sheet, String> {
        match value {
            Json::Object(members) => Ok(Sheet { path, members: members.clone() }),
            _ => Err(path),
        }
    }

    /// The first of `names` that is there, read; `null` is absent.
    fn read<T>(&mut self, names: &[&str], read: impl FnOnce(&Json) -> Option<T>) -> Result<Option<T>, String> {
        let found = names.iter().find_map(|name| Some((*name, self.members.remove(*name)?)));
        let Some((name, value)) = found.filter(|(_, value)| !value.is_null()) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| format!("{}/{name}", self.path))
    }

    fn text(&mut self, names: &[&str]) -> Result<Option<String>, String> {
        self.read(names, |value| value.as_str().map(str::to_owned))
    }

    fn count(&mut self, names: &[&str]) -> Result<Option<u32>, String> {
        self.read(names, |value| u32::try_from(whole(value)?).ok())
    }

    fn structure(&mut self, names: &[&str]) -> Result<Option<Struct>, String> {
        self.read(names, |value| value.is_object().then(|| super::structure(value.clone())))
    }

    fn sheet(&mut self, names: &[&str]) -> Result<Option<Sheet>, String> {
        let path = format!("{}/{}", self.path, names[0]);
        self.read(names, |value| Sheet::open(value, path).ok())
    }

    /// Nothing may be left.
    fn close(self) -> Result<(), String> {
        match self.members.keys().next() {
            Some(name) => Err(format!("{}/{name}", self.path)),
            None => Ok(()),
        }
    }
}

/// A whole number, or its digits.
fn whole(value: &Json) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn words(value: &Json) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
}

/// An enum by its name or number.
fn named(value: &Json, by_name: impl FnOnce(&str) -> Option<i32>) -> Option<i32> {
    match value.as_str() {
        Some(name) => by_name(name),
        None => value.as_i64().and_then(|number| i32::try_from(number).ok()),
    }
}

fn effect_class(value: &Json) -> Option<i32> {
    named(value, |_| Some(reading::effect_class(&value.to_string())?.map_or(0, |class| class as i32)))
}

fn moment(value: &Json) -> Option<Timestamp> {
    let ms = reading::moment(&value.to_string())?;
    Some(super::moment(ms))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_cannot_be_carried_is_named() {
        for (step, pointer) in [
            (json!([]), ""),
            (json!({"type": 7}), "/type"),
            (json!({"type": "echo", "colour": 1}), "/colour"),
            (json!({"inputs": []}), "/inputs"),
            (json!({"timeoutMs": 1.5}), "/timeoutMs"),
            (json!({"timeout_ms": 5_000_000_000_u64}), "/timeout_ms"),
            (json!({"retry": {"jitter": "SOME"}}), "/retry/jitter"),
            (json!({"context": {"attempt": -1}}), "/context/attempt"),
            (json!({"context": {"rbac_scopes": [1]}}), "/context/rbac_scopes"),
            (json!({"resources": {"klass": "CPU"}}), "/resources/klass"),
            (json!({"not_after": "soon"}), "/not_after"),
        ] {
            assert_eq!(request(&step).err().as_deref(), Some(pointer), "{step}");
        }
    }
}
