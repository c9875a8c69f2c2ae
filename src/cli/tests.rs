//! What users type, and what is made of it.

use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn lines_that_users_type_are_taken_and_nonsense_is_not() {
    for line in [
        "endstation run",
        "endstation run -",
        "endstation run steps.ndjson --data d --fresh",
        "endstation serve --provision --set nats.url=nats://a:1,nats://b:2 --set worker.id=w",
        "endstation --config x.toml serve",
        "endstation dev",
        "endstation demo",
        "endstation send f --nats nats://x --subject s --timeout 5s",
        "endstation config check --config x.toml",
        "endstation config show --origin",
        "endstation step show 00112233445566778899aabbccddeeff",
        "endstation step show --tenant t --flow f --step s --attempt 1 --run r",
        "endstation step show --tenant t --assignment a",
        "endstation journal check",
        "endstation journal stat --data d --set journal.bytes_max=1GiB",
        "endstation journal dump --shard 0 --from 1 --to 9 --kind result --kind retry_at --tenant t --bodies",
        "endstation drain --wait 2m --data d",
        "endstation blocks ls --dev",
        "endstation blocks schema http.request --outputs",
        "endstation blocks example echo",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err().map(|error| error.to_string()));
    }
    for line in [
        "endstation",
        "endstation send",
        "endstation send f --timeout 5",
        "endstation serve --set nats.url",
        "endstation serve --set =x",
        "endstation step show",
        "endstation step show --tenant t --flow f",
        "endstation step show k --tenant t",
        "endstation step show --flow f --step s --attempt 1",
        "endstation journal",
        "endstation journal dump --kind nonsense",
        "endstation drain --wait 5",
        "endstation blocks",
        "endstation blocks schema",
        "endstation step show --tenant t --flow f --step s --attempt 1 --assignment a",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn the_last_set_of_a_key_decides_and_a_command_s_own_flag_stands_above() -> anyhow::Result<()> {
    let cli = parse("endstation serve --set worker.id=a --set worker.id=b")?;
    assert_eq!(cli.global.settings(&[])?.worker_id, "b");
    assert_eq!(cli.global.settings(&[("worker.id", "c", "--id")])?.worker_id, "c");
    Ok(())
}
