//! `graphql`: a name of `http.request` under which the inputs say a GraphQL operation (`query`, `variables`, `operation_name`) instead
//! of a method and a body. It becomes a POST with that as JSON; all other inputs are those of any request.

use shards::outcome::Fault;

use super::super::inputs::{Inputs, forbidden};
use super::super::outputs::json;

/// The name.
pub(in crate::blocks) const NAME: &str = "graphql";

/// What the operation becomes is not said besides it.
const MADE_HERE: [&str; 8] = ["method", "json", "form", "text", "bytes", "blob", "body", "content"];

/// The inputs as `http.request` has them.
pub(super) fn spelled_out(inputs: &[u8]) -> Result<String, Fault> {
    let inputs = Inputs::read(inputs)?;
    let query = inputs.text_needed("query")?;
    if query.trim().is_empty() {
        return Err(forbidden("query", "a GraphQL document"));
    }
    inputs.object("variables")?;
    let variables = inputs.json("variables");
    inputs.at_most_one(&["operation_name", "operationName"])?;
    let operation = match inputs.text("operation_name")? {
        Some(name) => Some(name),
        None => inputs.text("operationName")?,
    };
    if let Some(name) = MADE_HERE.iter().find(|name| inputs.json(name).is_some()) {
        return Err(forbidden(name, "left out: the operation makes it"));
    }
    let mut body = format!("{{\"query\":{}", quoted(&query));
    if let Some(variables) = variables {
        body.push_str(",\"variables\":");
        body.push_str(variables);
    }
    if let Some(operation) = operation {
        body.push_str(",\"operationName\":");
        body.push_str(&quoted(&operation));
    }
    body.push('}');
    let mut out = format!("{{\"method\":\"POST\",\"json\":{body}");
    for (name, value) in inputs.members() {
        if !matches!(&*name, "query" | "variables" | "operation_name" | "operationName") {
            out.push(',');
            out.push_str(&quoted(&name));
            out.push(':');
            out.push_str(value);
        }
    }
    out.push('}');
    Ok(out)
}

fn quoted(text: &str) -> String {
    String::from_utf8_lossy(&json(&text)).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::tests::pointer;
    use super::*;

    fn made(inputs: &Value) -> Result<Value, String> {
        let text = spelled_out(inputs.to_string().as_bytes()).map_err(|fault| pointer(&fault))?;
        Ok(serde_json::from_str(&text).expect("JSON"))
    }

    #[test]
    fn an_operation_is_a_request_with_it_as_json() {
        let all = json!({
            "connector": "crm", "path": "/graphql", "query": "query A($id: ID!) { a(id: $id) { \"n\" } }",
            "variables": { "id": 1.50 }, "operation_name": "A", "headers": { "x-a": "b" }, "bytes_max": 9,
        });
        let request = json!({
            "method": "POST", "connector": "crm", "path": "/graphql", "headers": { "x-a": "b" }, "bytes_max": 9,
            "json": { "query": "query A($id: ID!) { a(id: $id) { \"n\" } }", "variables": { "id": 1.50 }, "operationName": "A" },
        });
        assert_eq!(made(&all), Ok(request));
        assert_eq!(made(&json!({ "query": "{a}" })), Ok(json!({ "method": "POST", "json": { "query": "{a}" } })));
        let other = json!({ "query": "{a}", "operationName": "A", "variables": null });
        assert_eq!(made(&other), Ok(json!({ "method": "POST", "json": { "query": "{a}", "operationName": "A" } })));
    }

    #[test]
    fn what_is_no_operation_is_named() {
        for (inputs, field) in [
            (json!({}), "/query"),
            (json!({ "query": " " }), "/query"),
            (json!({ "query": {} }), "/query"),
            (json!({ "query": "{a}", "variables": [1] }), "/variables"),
            (json!({ "query": "{a}", "operation_name": 1 }), "/operation_name"),
            (json!({ "query": "{a}", "operation_name": "A", "operationName": "A" }), "/operationName"),
            (json!({ "query": "{a}", "method": "GET" }), "/method"),
            (json!({ "query": "{a}", "json": {} }), "/json"),
        ] {
            assert_eq!(made(&inputs), Err(field.to_owned()), "{inputs}");
        }
    }
}
