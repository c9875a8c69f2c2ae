//! What an `ai.generate` would ask, of whom, and what it would cost at most. The body stands as its size and digest.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shards::ids::hex;
use shards::outcome::Fault;

use super::super::Ask;
use super::super::sandbox::{Planned, places};
use super::body::ANTHROPIC_TOKENS;
use super::wish::{Matter, Operation, Wish};
use super::{Plan, Unplanned};
use crate::policy::providers::{Kind, Served};

pub(in crate::blocks) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let wish = Wish::read(ask.inputs)?;
    let Plan { served, model, letter, target } =
        super::plan(ask.policy, ask.tenant, &wish, &ask.narrow.guardrails).map_err(Unplanned::fault)?;
    let Served { route, connector, provider } = served;
    let mut planned = Planned::of(json!({
        "provider": provider.kind.as_str(), "operation": wish.operation.as_str(), "model": model, "stream": wish.stream,
        "request": {
            "method": "POST", "url": places::shown(&target),
            "body": { "bytes": letter.body.len(), "sha256": hex(&Sha256::digest(&letter.body)) },
        },
    }));
    planned = planned.at("to", places::way(ask, &route, &target));
    let tokens = match (wish.operation, wish.max_tokens, provider.kind) {
        (Operation::Embedding, ..) => Some(0),
        (_, Some(tokens), _) => Some(tokens),
        (_, None, Kind::Anthropic) => Some(ANTHROPIC_TOKENS),
        (_, None, _) => None,
    };
    planned.cost = match (&provider.prices, tokens) {
        // No token is read of less than one byte.
        (Some(prices), Some(tokens)) => Some(json!({
            "at_most": format!("{:.6}", prices.cost(letter.body.len() as u64, tokens)), "currency": provider.currency,
            "tokens_read_at_most": letter.body.len(), "tokens_written_at_most": tokens,
        })),
        (None, _) => None,
        (Some(_), None) => {
            planned.notes.push("the cost has no bound that is known before: max_tokens is not set");
            None
        }
    };
    planned.notes.push(places::NOT_LOOKED_UP);
    let mut outputs = json!({
        "provider": provider.kind.as_str(), "connector": connector.name, "operation": wish.operation.as_str(), "model": model,
        "timing_ms": { "first_byte": 0, "total": 0 },
    });
    match &wish.matter {
        Matter::Texts(texts) => outputs["embeddings"] = Value::Array(vec![json!([]); texts.len()]),
        _ => {
            outputs["text"] = json!("");
            outputs["finish_reason"] = json!("stop");
        }
    }
    Ok(planned.with_outputs(outputs))
}
