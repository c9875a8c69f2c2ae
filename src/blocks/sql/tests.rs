//! Statements as steps send them: what is refused before acceptance, and what an embedded database does with the rest. A server is
//! asked in [`server_side`].

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use shards::block::BlockCx;
use shards::ids::{Key, Text};
use shards::outcome::{Code, Fault};
use shards::step::{EffectClass, Needs};

use super::super::local::LocalBlobs;
use super::super::tests::checks::{Case, bad, good};
use super::super::tests::{on_a_shard, reach};
use super::super::{Ask, Reach, build_all, find};
use crate::policy::narrow::{NOTHING, Narrow};
use crate::policy::{Policy, PolicySettings};

mod embedded;
mod hostile;
pub(crate) mod server;
mod server_side;
mod values;

const INVALID: Code = Code::InvalidInput;
const DATA: &str = "what a list of parameters holds is the block's own to judge";
const SQL: &str = "a schema does not read SQL";

/// Inputs that need no policy, for the schema and the check to agree on.
pub(in crate::blocks) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for inputs in [
        r#"{"sql":"SELECT 1"}"#,
        r#"{"sql":"select $1","params":[null],"connector":null,"mode":null,"rows":null,"to":null,"url":null}"#,
        r#"{"sql":"TABLE t","connector":"crm-2_A","isolation":"serializable","rows":"lists","rows_max":1,"bytes_max":8388608}"#,
        r#"{"sql":"INSERT INTO t VALUES ($1)","mode":"write","params":[{"type":"int4[]","value":[1,null]}],"timeout_ms":5}"#,
        r#"{"sql":"SELECT 1","to":"a/b.csv","rows":"csv","overwrite":true,"bytes_max":17179869184,"rows_max":9007199254740992}"#,
        r#"{"sql":"SELECT 1","mode":"write","other":1}"#,
    ] {
        cases.push(good("sql.query", inputs));
        cases.push(good("sql", inputs));
    }
    for (inputs, at) in [
        (r#"{"sql":1}"#, "/sql"),
        (r#"{"sql":"SELECT 1","connector":"postgres://u:hunter2@h/d"}"#, "/connector"),
        (r#"{"sql":"SELECT 1","connector":""}"#, "/connector"),
        (r#"{"sql":"SELECT 1","connector":"a b"}"#, "/connector"),
        (r#"{"sql":"SELECT 1","url":"postgres://u:hunter2@h/d"}"#, "/url"),
        (r#"{"sql":"SELECT 1","connection_string":"host=h password=hunter2"}"#, "/connection_string"),
        (r#"{"sql":"SELECT 1","dsn":"hunter2"}"#, "/dsn"),
        (r#"{"sql":"SELECT 1","password":"hunter2"}"#, "/password"),
        (r#"{"sql":"SELECT 1","host":"h"}"#, "/host"),
        (r#"{"sql":"SELECT 1","mode":"admin"}"#, "/mode"),
        (r#"{"sql":"SELECT 1","mode":true}"#, "/mode"),
        (r#"{"sql":"SELECT 1","isolation":"none"}"#, "/isolation"),
        (r#"{"sql":"SELECT 1","rows":"csv"}"#, "/rows"),
        (r#"{"sql":"SELECT 1","to":"a","rows":"objects"}"#, "/rows"),
        (r#"{"sql":"SELECT 1","rows_max":0}"#, "/rows_max"),
        (r#"{"sql":"SELECT 1","rows_max":1000001}"#, "/rows_max"),
        (r#"{"sql":"SELECT 1","bytes_max":8388609}"#, "/bytes_max"),
        (r#"{"sql":"SELECT 1","to":"a","bytes_max":17179869185}"#, "/bytes_max"),
        (r#"{"sql":"SELECT 1","timeout_ms":0}"#, "/timeout_ms"),
        (r#"{"sql":"SELECT 1","to":"../a"}"#, "/to"),
        (r#"{"sql":"SELECT 1","to":"a","mode":"write"}"#, "/to"),
        (r#"{"sql":"SELECT 1","overwrite":true}"#, "/overwrite"),
        (r#"{"sql":"SELECT 1","to_connector":"archive"}"#, "/to_connector"),
        (r#"{"sql":"SELECT 1","params":{"a":1}}"#, "/params"),
        (r#"{"sql":"a\u0000"}"#, "/sql"),
        ("[]", ""),
    ] {
        cases.push(bad("sql.query", inputs, INVALID, at));
    }
    for (inputs, at) in [("", "/sql"), ("null", "/sql"), ("{}", "/sql"), (r#"{"sql":null}"#, "/sql")] {
        cases.push(bad("sql.query", inputs, Code::MissingRequiredField, at));
    }
    for (inputs, at) in [
        (r#"{"sql":""}"#, "/sql"),
        (r#"{"sql":"COPY t TO PROGRAM 'id'","mode":"write"}"#, "/sql"),
        (r#"{"sql":"SET ROLE postgres","mode":"write"}"#, "/sql"),
        (r#"{"sql":"COMMIT","mode":"write"}"#, "/sql"),
        (r#"{"sql":"BEGIN","mode":"write"}"#, "/sql"),
        (r#"{"sql":"ATTACH '/etc/passwd' AS x","mode":"write"}"#, "/sql"),
        (r#"{"sql":"PRAGMA journal_mode = DELETE","mode":"write"}"#, "/sql"),
        (r#"{"sql":"VACUUM INTO '/tmp/x'","mode":"write"}"#, "/sql"),
        (r#"{"sql":"PREPARE x AS SELECT 1","mode":"write"}"#, "/sql"),
        (r#"{"sql":"LISTEN x","mode":"write"}"#, "/sql"),
        (r#"{"sql":"DELETE FROM t"}"#, "/mode"),
        (r#"{"sql":"/* read */ DROP TABLE t"}"#, "/mode"),
        (r#"{"sql":"DELETE FROM public.\"ENDSTATION_dedup\"","mode":"write"}"#, "/sql"),
    ] {
        cases.push(bad("sql.query", inputs, INVALID, at).apart(SQL));
    }
    for (inputs, at) in [
        (r#"{"sql":"SELECT $1","params":["a\u0000"]}"#, "/params/0"),
        (r#"{"sql":"SELECT $1","params":[1,{"type":"int4","value":"x"}]}"#, "/params/1/value"),
        (r#"{"sql":"SELECT $1","params":[{"type":"nothing","value":1}]}"#, "/params/0/type"),
    ] {
        cases.push(bad("sql.query", inputs, INVALID, at).apart(DATA));
    }
    cases
}

/// Where the worker runs for development, with its embedded databases in this folder.
pub(super) fn at_home(root: &std::path::Path) -> Reach {
    with(PolicySettings::default(), root)
}

/// The same under these settings.
pub(super) fn with(settings: PolicySettings, root: &std::path::Path) -> Reach {
    let mut reach = reach(Policy::new(settings, true).expect("no file in it"));
    let clock = shards::runtime::rt::Clock::start();
    let offload = crate::offload::Offload::new(Vec::new());
    reach.sql = Rc::new(super::Databases::new(root.join("sql"), Default::default(), offload, clock, (0, 1)));
    reach
}

/// A step of this block, with its own key.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) tenant: &'static str,
    pub(super) key: u8,
    pub(super) left_ms: u64,
    pub(super) narrow: Narrow,
}

impl Default for Step {
    fn default() -> Self {
        Step { tenant: "acme", key: 0, left_ms: 60_000, narrow: NOTHING.clone() }
    }
}

impl Step {
    pub(super) fn keyed(key: u8) -> Step {
        Step { key, ..Step::default() }
    }

    /// Checked as at the edge and executed as on a shard.
    pub(super) async fn run(&self, reach: &Reach, blobs: &Rc<LocalBlobs>, inputs: Value) -> Result<Value, Fault> {
        let (id, entry) = find("sql.query", true).expect("a block");
        let text = inputs.to_string();
        let ask = Ask {
            policy: &reach.policy,
            tenant: self.tenant,
            name: "sql.query",
            inputs: text.as_bytes(),
            provider: "",
            narrow: &self.narrow,
        };
        if let Some(denied) = entry.check(&ask)?.denied {
            return Err(denied);
        }
        let cx = BlockCx {
            tenant: Text::from_static(self.tenant),
            key: Key([self.key; 16]),
            try_number: 1,
            left_ms: self.left_ms,
            needs: Needs::default(),
            inputs: text.into(),
            blobs: blobs.clone(),
            guardrails: Default::default(),
            cache: None,
            trace_id: Some(Text::from_static("4bf92f3577b34da6a3ce929d0e0e4736")),
            observers: None,
        };
        let outputs = build_all(reach)[usize::from(id.0)].execute(cx).await?;
        let outputs = serde_json::from_slice(&outputs).expect("outputs are JSON");
        super::super::tests::manifests::assert_described(entry, &outputs);
        Ok(outputs)
    }
}

pub(super) fn write(sql: &str, params: Value) -> Value {
    json!({ "mode": "write", "sql": sql, "params": params })
}

pub(super) fn read(sql: &str, params: Value) -> Value {
    json!({ "sql": sql, "params": params })
}

/// A fault's details.
pub(super) fn details(fault: &Fault) -> Value {
    serde_json::from_slice(&fault.details).expect("details are JSON")
}

#[test]
fn inputs_are_judged_before_acceptance() {
    for case in cases() {
        let (_, entry) = find(case.name, true).expect(case.name);
        let said = super::super::tests::check(entry, case.name, &case.inputs);
        match (said, &case.refused) {
            (Ok(_), None) => {}
            (Err(fault), Some((code, at))) => {
                super::super::tests::assert_presentable(&fault);
                let told = String::from_utf8_lossy(&fault.details).into_owned();
                assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (*code, Some(at.as_str())), "{}", case.inputs);
                assert!(!told.contains("hunter2"), "{told}");
            }
            (said, _) => panic!("{}: {said:?}", case.inputs),
        }
    }
}

#[test]
fn the_effect_class_follows_what_the_step_says_and_what_its_connector_has() {
    on_a_shard(|_, root| async move {
        let mut settings = PolicySettings::default();
        let mut plain = crate::policy::databases::DatabaseSettings {
            tenants: None,
            kind: crate::policy::databases::DatabaseKind::Sqlite { bytes_max: 1 << 20 },
            dedup: false,
            read_only: false,
            statement_ms: 1_000,
            lock_ms: 1_000,
        };
        settings.databases.insert("plain".to_owned(), plain.clone());
        settings
            .databases
            .insert("archive".to_owned(), crate::policy::databases::DatabaseSettings { read_only: true, ..plain.clone() });
        plain.tenants = Some(vec!["other".to_owned()]);
        settings.databases.insert("others".to_owned(), plain);
        let reach = with(settings, &root);
        let look = |policy: &Policy, inputs: Value| {
            let text = inputs.to_string();
            let (_, entry) = find("sql", false).expect("a block");
            let ask = Ask { policy, tenant: "acme", name: "sql", inputs: text.as_bytes(), provider: "", narrow: &NOTHING };
            entry.check(&ask).expect("good inputs")
        };
        let class = |inputs: Value| look(&reach.policy, inputs).effect;
        assert_eq!(class(read("SELECT 1", json!([]))), EffectClass::Pure);
        assert_eq!(class(write("DELETE FROM t", json!([]))), EffectClass::Transactional);
        assert_eq!(class(json!({"connector": "plain", "mode": "write", "sql": "DELETE FROM t"})), EffectClass::Unsafe);
        assert_eq!(class(json!({"sql": "SELECT 1", "to": "a"})), EffectClass::Conditional);
        assert_eq!(class(json!({"sql": "SELECT 1", "to": "a", "overwrite": true})), EffectClass::Idempotent);
        assert!(look(&reach.policy, json!({"connector": "others", "sql": "SELECT 1"})).denied.is_some());
        assert!(look(&reach.policy, json!({"connector": "nothing", "sql": "SELECT 1"})).denied.is_some());
        assert!(look(&reach.policy, json!({"connector": "archive", "sql": "SELECT 1"})).denied.is_none());
        let denied = look(&reach.policy, json!({"connector": "archive", "mode": "write", "sql": "SELECT 1"})).denied;
        assert_eq!(details(&denied.expect("nobody writes there"))["rule"], "connectors.archive.read_only is true");
        let shut = Arc::new(Policy::shut());
        let denied = look(&shut, json!({"sql": "SELECT 1"})).denied.expect("serve needs a connector");
        assert_eq!(denied.code, Code::PermissionDenied);
    });
}
