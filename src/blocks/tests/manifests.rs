//! Manifests: schemas that are schemas, examples that run, and the same verdict from a schema as from its block's own check.

use std::collections::BTreeMap;

use jsonschema::Validator;

use super::super::{ai, http, sql};
use super::*;
use crate::policy::PolicySettings;
use crate::policy::keys::{KeySettings, Material, Seed};
use crate::secrets::SecretRef;

/// The secret of the key that examples name: the first of RFC 8032.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

pub(in crate::blocks) fn validator(schema: &str) -> Validator {
    jsonschema::draft202012::new(&value(schema)).expect("a schema")
}

/// Outputs are as the block's manifest says, in every test that runs one.
pub(in crate::blocks) fn assert_described(entry: &Entry, outputs: &Value) {
    thread_local! {
        static SCHEMAS: RefCell<BTreeMap<&'static str, Rc<Validator>>> = const { RefCell::new(BTreeMap::new()) };
    }
    let name = entry.info.name;
    let schema = SCHEMAS.with_borrow_mut(|schemas| {
        schemas.entry(name).or_insert_with(|| Rc::new(validator(entry.manifest().outputs.get()))).clone()
    });
    if let Err(error) = schema.validate(outputs) {
        panic!("{name} gave what its manifest does not describe: {error}");
    }
}

#[test]
fn every_manifest_says_what_it_must_and_its_schemas_are_schemas() {
    for entry in TABLE {
        let (name, manifest) = (entry.info.name, entry.manifest());
        assert_eq!(entry.dev, name.starts_with("test."), "{name}");
        assert_eq!(entry.unread.device_form, manifest.device, "{name}");
        assert_eq!(entry.unread.lane == shards::step::Lane::Cpu, manifest.lane == super::super::manifest::Lane::Cpu, "{name}");
        assert!(entry.telling.iter().all(|telling| entry.info.aliases.contains(telling)), "{name}");
        let summary = manifest.summary.strip_suffix('.').expect(name);
        assert!(!summary.is_empty() && !summary.contains(". ") && summary.len() <= 110, "{name}: {summary}");
        let version: Vec<u64> = entry.info.version.split('.').map(|part| part.parse().expect("a number")).collect();
        assert_eq!(version.len(), 3, "{name}");
        for scope in &manifest.scopes {
            assert!(crate::policy::Scope::NAMES.iter().any(|(known, _)| known == scope), "{name}: {scope}");
        }
        for schema in [manifest.inputs, manifest.outputs] {
            let schema = value(schema.get());
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
            assert!(jsonschema::draft202012::meta::is_valid(&schema), "{name}");
            for (property, rule) in schema["properties"].as_object().into_iter().flatten() {
                assert!(rule["description"].as_str().is_some_and(|said| said.ends_with('.')), "{name}: {property}");
            }
        }
        assert!(!manifest.examples.is_empty(), "{name}");
    }
}

#[test]
fn a_schema_and_the_check_of_its_block_give_the_same_verdict() {
    let schemas: BTreeMap<&str, Validator> =
        TABLE.iter().map(|entry| (entry.info.name, validator(entry.manifest().inputs.get()))).collect();
    let mut apart = 0;
    for case in checks::cases()
        .into_iter()
        .chain(http::tests::checks::cases())
        .chain(ai::tests::checks::cases())
        .chain(sql::tests::cases())
    {
        let schema = &schemas[find(case.name, true).expect(case.name).1.info.name];
        let text = if case.inputs.is_empty() { "null" } else { &case.inputs };
        // What is no JSON is refused with the message that holds it.
        let taken = serde_json::from_str(text).is_ok_and(|inputs: Value| schema.is_valid(&inputs));
        let same = taken == case.refused.is_none();
        assert_eq!(same, case.apart.is_none(), "{} {}: the schema says {taken}", case.name, case.inputs);
        apart += usize::from(!same);
    }
    assert!(apart < 40, "{apart} cases that schemas do not see");
}

#[test]
fn the_codes_that_the_failing_block_takes_are_those_worth_another_try() {
    let schema = value(find("test.fail", true).expect("there").1.manifest().inputs.get());
    let named: Vec<&str> =
        schema["properties"]["code"]["enum"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let codes: Vec<&str> = Code::ALL.iter().filter(|code| code.retryable()).map(|code| code.as_str()).collect();
    assert_eq!(named, codes);
}

#[test]
fn examples_are_what_their_schemas_describe_and_come_out_as_they_say() {
    on_a_shard(|blobs, root| async move {
        let path = root.join("seed");
        std::fs::write(&path, SEED).expect("written");
        let secret = SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference");
        let mut settings = PolicySettings::default();
        let material = Material::Ed25519(Seed { secret, public: None });
        settings.keys.insert("release".to_owned(), KeySettings { tenants: None, material });
        let reach = reach(Policy::new(settings, true).expect("nothing to read"));
        let mut ran = 0;
        for entry in TABLE {
            let (name, manifest) = (entry.info.name, entry.manifest());
            let inputs = validator(manifest.inputs.get());
            for example in &manifest.examples {
                let text = example.inputs.get();
                assert!(inputs.is_valid(&value(text)), "{name}: {text}");
                assert!(check(entry, name, text).is_ok(), "{name}: {text}");
                assert!(example.says.chars().next().is_some_and(char::is_uppercase), "{name}: {}", example.says);
                // What has no outputs to compare needs more than a test of one block has.
                let Some(expected) = example.outputs else {
                    assert!(example.needs.is_some(), "{name}: {text}");
                    continue;
                };
                let (told, expected) = (run_with(&reach, &blobs, "acme", name, text, 2).await, value(expected.get()));
                assert_eq!(told.as_ref(), Ok(&expected), "{name}: {text}");
                ran += 1;
            }
        }
        assert!(ran >= 12, "{ran} examples ran");
    });
}
