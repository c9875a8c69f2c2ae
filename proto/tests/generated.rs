//! The committed code under `src/generated/` is exactly what the `.proto` sources give, and the messages behave as promised.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost::Message;
use proto::v1;

/// Set this to 1 to rewrite the committed code instead of comparing with it.
const REWRITE: &str = "ENDSTATION_PROTO_REWRITE";

#[test]
fn generated_code_is_what_the_sources_give() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let fresh = tempfile::tempdir()?;
    generate(root, fresh.path())?;

    if std::env::var(REWRITE).is_ok_and(|value| value == "1") {
        for name in names(&committed)? {
            fs::remove_file(committed.join(name))?;
        }
        for name in names(fresh.path())? {
            fs::copy(fresh.path().join(&name), committed.join(&name))?;
        }
        return Ok(());
    }
    let cure = format!("run `{REWRITE}=1 cargo test -p proto --test generated` and commit what it writes");
    ensure!(names(fresh.path())? == names(&committed)?, "src/generated holds other files than the sources give: {cure}");
    for name in names(&committed)? {
        let same = fs::read(committed.join(&name))? == fs::read(fresh.path().join(&name))?;
        ensure!(same, "src/generated/{name} is not what the sources give: {cure}");
    }
    Ok(())
}

#[test]
fn an_absent_field_is_told_from_a_zero() -> Result<()> {
    let zero = v1::StepRequest { r#type: "echo".into(), priority: Some(0), ..Default::default() };
    let back = v1::StepRequest::decode(zero.encode_to_vec().as_slice())?;
    assert_eq!(back.priority, Some(0));
    assert_eq!(back.timeout_ms, None);
    assert_eq!(back.effect_ceiling(), v1::EffectClass::Unspecified);
    Ok(())
}

#[test]
fn enum_names_in_json_are_those_of_the_contract() {
    assert_eq!(v1::step_result::Status::Canceled.as_str_name(), "CANCELED");
    assert_eq!(v1::step_result::Status::Ok.as_str_name(), "OK");
    assert_eq!(v1::resources::Class::Gpu.as_str_name(), "GPU");
    assert_eq!(v1::step_error::Effect::Applied.as_str_name(), "APPLIED");
}

#[test]
fn the_descriptors_describe_the_service_and_all_that_it_names() -> Result<()> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)?;
    let here: BTreeSet<&str> = set.file.iter().map(|file| file.name()).collect();
    for file in &set.file {
        ensure!(file.source_code_info.is_none(), "{} carries its comments", file.name());
        for import in &file.dependency {
            ensure!(here.contains(import.as_str()), "{} imports {import}, which is not there", file.name());
        }
    }
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods: Vec<&str> = services.flat_map(|service| &service.method).map(|method| method.name()).collect();
    assert_eq!(methods, ["Submit", "SubmitStream", "Cancel", "Signal", "Watch"]);
    Ok(())
}

/// Compiles every source, in order of name, into `out`: messages and service as Rust, and their description for reflection.
fn generate(root: &Path, out: &Path) -> Result<()> {
    let folder = root.join("beamline/worker/v1");
    let sources: Vec<PathBuf> = names(&folder)?.iter().map(|name| folder.join(name)).collect();
    let mut descriptors = protox::compile(&sources, [root]).context("the sources do not compile")?;
    tonic_prost_build::configure().build_transport(false).out_dir(out).compile_fds(descriptors.clone())?;
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    fs::write(out.join("beamline.worker.v1.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
