//! What `sql.query` would do: which statement, where, and by which rule. Nobody is connected to and no file is opened, so the
//! database has said nothing of it: whether the statement holds there is seen when the step runs.

use serde_json::{Value, json};
use shards::outcome::Fault;

use crate::policy::databases::DatabaseKind;

use super::super::Ask;
use super::super::sandbox::{Planned, places};
use super::wish::Wish;

pub(in crate::blocks) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let wish = Wish::read(ask.inputs)?;
    let database = ask.policy.database_for(ask.tenant, wish.connector.as_deref(), wish.writes);
    let database = database.map_err(|refused| refused.fault())?;
    let settings = &database.settings;
    let (at, secret) = match &settings.kind {
        DatabaseKind::Sqlite { bytes_max } => (json!({ "kind": "sqlite", "bytes_max": bytes_max }), None),
        DatabaseKind::Postgres(server) => {
            let allow: Vec<String> = server.allow.iter().map(ToString::to_string).collect();
            let at = json!({
                "kind": "postgres", "host": server.target.authority(), "port": server.target.port(), "database": server.database,
                "user": server.user, "password": server.password.as_ref().map(ToString::to_string), "tls": server.tls,
                "certificates": places::tls(&server.files), "allow": allow, "pooler": server.pooler,
            });
            (at, server.password.clone())
        }
    };
    let mut planned = Planned::of(json!({
        "query": {
            "sql": wish.sql, "params": wish.params.len(), "mode": if wish.writes { "write" } else { "read" },
            "isolation": wish.isolation.as_sql(), "timeout_ms": wish.timeout_ms.min(settings.statement_ms),
        },
        "connector": { "name": database.name, "at": at, "dedup": settings.dedup, "read_only": settings.read_only },
    }));
    planned.rules.push(places::listed("connectors", &database.name, settings.tenants.as_ref()));
    planned.secrets.extend(secret);
    if let Some(blob) = &wish.blob {
        let precondition = if blob.overwrite { "none: what stands there is replaced" } else { "no other content stands there" };
        planned.does.insert("rows_into".to_owned(), json!({ "path": blob.path, "precondition": precondition }));
        planned = planned.at("rows_to", places::store(ask, blob.connector.as_deref(), "to_connector")?);
    }
    planned.notes.push("no database was asked: whether the statement holds there is seen when the step runs");
    let mut outputs = json!({ "row_count": 0, "columns": [] });
    if wish.blob.is_none() {
        outputs["rows"] = Value::Array(Vec::new());
    }
    if wish.writes {
        outputs["affected"] = 0.into();
    }
    Ok(planned.with_outputs(outputs))
}
