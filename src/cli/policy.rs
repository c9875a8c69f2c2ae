//! `endstation policy explain`: whether a tenant's step may reach a URL, a connector (a service, store or database) or a key, by
//! which rule, and at which addresses. It looks names up and connects to nothing.

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::net::egress::{Guard, Host, Target};
use crate::offload::{NoAddress, Offload};
use crate::policy::keys::{KeyError, Material, only_verifies};
use crate::policy::{Policy, Refused, Route};
use crate::settings::Settings;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_USAGE};

const EXAMPLES: &str = "\
Examples:
  endstation policy explain --tenant acme --url https://api.example.com/v1
  endstation policy explain --tenant acme --connector crm --url https://crm.internal/api/x
  endstation policy explain --tenant acme --connector orders
  endstation policy explain --tenant acme --key release

Exit codes: 0 allowed, 1 denied, 2 usage, 3 configuration";

/// `endstation policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Whether a tenant may reach a URL, and which rule decides it
    #[command(after_help = EXAMPLES)]
    Explain(ExplainArgs),
}

/// `endstation policy explain`
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Whose step it would be
    #[arg(long, value_name = "ID")]
    pub tenant: String,
    /// Where it would go
    #[arg(long, value_name = "URL", required_unless_present_any = ["key", "connector"])]
    pub url: Option<String>,
    /// Through which connector; without --url where that itself leads
    #[arg(long, value_name = "NAME")]
    pub connector: Option<String>,
    /// With which key it would sign or verify
    #[arg(long, value_name = "NAME", conflicts_with_all = ["url", "connector"])]
    pub key: Option<String>,
    /// As `run` and `dev` decide it
    #[arg(long)]
    pub dev: bool,
}

/// What was found, in the order in which a step meets it.
struct Findings {
    rows: Vec<(&'static str, String, Result<(), String>)>,
}

impl Findings {
    fn add(&mut self, what: &'static str, of: impl Into<String>, verdict: Result<(), String>) -> bool {
        let allowed = verdict.is_ok();
        self.rows.push((what, of.into(), verdict));
        allowed
    }
}

/// Says it. Gives the exit code.
///
/// # Errors
/// Where `out` cannot be written.
pub fn explain(settings: &Settings, args: &ExplainArgs, table: bool, out: &mut impl Write) -> io::Result<u8> {
    let policy = match Policy::new(settings.policy.clone(), args.dev) {
        Ok(policy) => policy,
        Err(error) => {
            writeln!(io::stderr(), "error: {error}")?;
            return Ok(EXIT_CONFIG);
        }
    };
    let target = match args.url.as_deref().map(Target::parse).transpose() {
        Ok(target) => target,
        Err(denial) => {
            writeln!(io::stderr(), "error: --url: {denial}")?;
            return Ok(EXIT_USAGE);
        }
    };
    let mut findings = Findings { rows: Vec::new() };
    let signed = policy.demands_signature(&args.tenant);
    let of = if signed { "messages must be signed" } else { "messages need no signature" };
    findings.add("messages", of, Ok(()));
    match (&target, &args.connector) {
        (Some(target), _) => look(&policy, target, args, &mut findings),
        (None, Some(name)) => look_at_connector(&policy, name, args, &mut findings),
        (None, None) => {}
    }
    if let Some(name) = &args.key {
        look_at_key(&policy, name, args, &mut findings);
    }
    let allowed = findings.rows.iter().all(|(_, _, verdict)| verdict.is_ok());
    if table {
        for (what, of, verdict) in &findings.rows {
            let verdict = verdict.as_ref().map_or_else(|rule| format!("denied   {rule}"), |()| "allowed".to_owned());
            writeln!(out, "{what:<10} {of:<40} {verdict}")?;
        }
        writeln!(out, "{}", if allowed { "allowed" } else { "denied" })?;
    } else {
        let rows =
            findings.rows.iter().map(|(what, of, verdict)| json!({ "what": what, "of": of, "rule": verdict.as_ref().err() }));
        let line = json!({
            "allowed": allowed,
            "url": target.map(|target| target.to_string()),
            "connector": args.connector,
            "key": args.key,
            "findings": rows.collect::<Vec<Value>>(),
        });
        writeln!(out, "{line}")?;
    }
    Ok(if allowed { EXIT_OK } else { EXIT_FAILED })
}

/// [`explain`] to standard output, as a table where a person reads it.
///
/// # Errors
/// Where it cannot be written.
pub fn run(settings: &Settings, args: &ExplainArgs) -> io::Result<u8> {
    explain(settings, args, io::stdout().is_terminal(), &mut io::stdout().lock())
}

fn look(policy: &Policy, target: &Target, args: &ExplainArgs, findings: &mut Findings) {
    let route = match policy.route(&args.tenant, args.connector.as_deref()) {
        Ok(route) => route,
        Err(Refused { rule, .. }) => {
            findings.add("tenant", &args.tenant, Err(rule));
            return;
        }
    };
    findings.add("tenant", &args.tenant, Ok(()));
    if let Some((_, connector)) = route.connector {
        let beneath = connector.holds(target);
        let rule = || format!("connectors.{}.url leads elsewhere", connector.name);
        if !findings.add("connector", &connector.name, beneath.then_some(()).ok_or_else(rule)) {
            return;
        }
    }
    look_at_place(policy, route.guard, target, target.to_string(), findings);
}

/// Whether this may be reached, and at which addresses.
fn look_at_place(policy: &Policy, guard: &Guard, target: &Target, of: String, findings: &mut Findings) {
    let verdict = guard.check_target(target).map_err(|denial| denial.rule.to_owned());
    if !findings.add("host", of, verdict) {
        return;
    }
    let Host::Name(name) = target.host() else { return };
    let addresses = match resolve(policy, name) {
        Ok(addresses) => addresses,
        Err(why) => {
            findings.add("name", name, Err(why));
            return;
        }
    };
    for address in addresses {
        let verdict = guard.check_addresses(target, &[address]).map_err(|denial| denial.rule.to_owned());
        findings.add("address", address.to_string(), verdict);
    }
}

/// What a connector is, whether the tenant may use it, and where it leads.
fn look_at_connector(policy: &Policy, name: &str, args: &ExplainArgs, findings: &mut Findings) {
    if policy.databases().iter().any(|one| one.name == name) {
        return look_at_database(policy, name, args, findings);
    }
    if policy.stores().iter().any(|one| one.name == name) {
        let store = match policy.store(&args.tenant, name, "connector") {
            Ok(store) => store,
            Err(Refused { rule, .. }) => {
                findings.add("store", name, Err(rule));
                return;
            }
        };
        findings.add("store", name, Ok(()));
        if let Some(endpoint) = store.settings.kind.endpoint() {
            look_at_place(policy, &store.guard, endpoint, endpoint.to_string(), findings);
        }
        return;
    }
    let connector = match policy.route(&args.tenant, Some(name)) {
        Ok(Route { connector: Some((_, connector)), .. }) => connector,
        Ok(_) => return,
        Err(Refused { rule, .. }) => {
            findings.add("connector", name, Err(rule));
            return;
        }
    };
    match &connector.settings.url {
        Some(url) => look(policy, url, args, findings),
        None => {
            findings.add("connector", format!("{name}, which has no url of its own: give --url"), Ok(()));
        }
    }
}

/// What a step may do in a database, and where that is. What is written there is looked at by the database itself.
fn look_at_database(policy: &Policy, name: &str, args: &ExplainArgs, findings: &mut Findings) {
    let database = match policy.database(&args.tenant, Some(name)) {
        Ok(database) => database,
        Err(Refused { rule, .. }) => {
            findings.add("database", name, Err(rule));
            return;
        }
    };
    let kind = if database.server().is_some() { "postgres" } else { "sqlite" };
    findings.add("database", format!("{name} ({kind})"), Ok(()));
    let writes = match policy.database_for(&args.tenant, Some(name), true) {
        Err(Refused { rule, .. }) => format!("read; {rule}"),
        Ok(_) if database.settings.dedup => "read, and write: done once".to_owned(),
        Ok(_) => format!("read, and write: never twice, as connectors.{name}.dedup is false"),
    };
    findings.add("mode", writes, Ok(()));
    if let Some(server) = database.server() {
        let place = server.target.to_string();
        // Written as a URL only for the guard's sake.
        let place = place.trim_start_matches("https://").to_owned();
        look_at_place(policy, &database.guard, &server.target, place, findings);
    }
}

/// Who may use a key, what it is, and whether it can be used now. No secret is shown.
fn look_at_key(policy: &Policy, name: &str, args: &ExplainArgs, findings: &mut Findings) {
    let key = match policy.key(&args.tenant, name) {
        Ok(key) => key,
        Err(Refused { rule, .. }) => {
            findings.add("key", name, Err(rule));
            return;
        }
    };
    findings.add("key", format!("{name} ({})", key.algorithm().as_str()), Ok(()));
    let (verifies, signs) = match &key.material {
        Material::Ed25519(seed) => (seed.public().map(drop), Ok(seed.signing_key().map(drop))),
        Material::Ed25519Public(_) => (Ok(()), Err(only_verifies(name).rule)),
        Material::HmacSha256(shared) => (shared.keyed().map(drop), Ok(shared.keyed().map(drop))),
    };
    let told = |error: KeyError| error.to_string();
    findings.add("use", "crypto.verify", verifies.map_err(told));
    match signs {
        Ok(signs) => _ = findings.add("use", "crypto.sign", signs.map_err(told)),
        // It is meant for nothing else.
        Err(rule) => findings.rows.push(("use", format!("only crypto.verify: {rule}"), Ok(()))),
    }
}

fn resolve(policy: &Policy, name: &str) -> Result<Vec<IpAddr>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let resolved = runtime.block_on(Offload::new(policy.dns().to_vec()).resolve(name.to_owned()));
    resolved.map(|addresses| addresses.list).map_err(|why| match why {
        NoAddress::NoSuchName => "there is no such name".to_owned(),
        NoAddress::Unknown(why) => format!("the resolver: {why}"),
        NoAddress::Full => "too many lookups are under way".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(file: &str, url: &str, connector: Option<&str>) -> (u8, String) {
        told(file, Some(url), connector, None)
    }

    fn told(file: &str, url: Option<&str>, connector: Option<&str>, key: Option<&str>) -> (u8, String) {
        let settings = Settings::of(Some(("e.toml", file)), std::iter::empty(), &[]).expect("a configuration");
        let [url, connector, key] = [url, connector, key].map(|word| word.map(str::to_owned));
        let args = ExplainArgs { tenant: "acme".to_owned(), url, connector, key, dev: false };
        let mut out = Vec::new();
        let code = explain(&settings, &args, true, &mut out).expect("memory");
        (code, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn the_rule_that_decides_is_named() {
        let open = "[tenants.acme]\nscopes = \"http\"\n";
        let crm = "[connectors.crm]\ntenants = \"acme\"\nurl = \"http://10.1.2.3/api\"\nallow = \"10.1.2.0/24\"\n";
        for (file, url, connector, code, words) in [
            ("", "https://1.1.1.1/", None, 1, "tenants.default.scopes has no \"http\""),
            (open, "https://1.1.1.1/", None, 0, "allowed"),
            (open, "http://0x7f.1/", None, 1, "loopback"),
            (open, "http://[::ffff:169.254.169.254]/", None, 1, "metadata"),
            (open, "http://printer/", None, 1, "name/single-label"),
            (open, "http://10.1.2.3/api/x", Some("crm"), 1, "no [connectors.crm] lists the tenant"),
            (crm, "http://10.1.2.3/api/x", Some("crm"), 0, "allowed"),
            (crm, "http://10.1.2.3/other", Some("crm"), 1, "connectors.crm.url leads elsewhere"),
        ] {
            let (ended, text) = said(file, url, connector);
            assert!(ended == code && text.contains(words), "{url}: {ended}\n{text}");
        }
    }

    #[test]
    fn a_connector_says_what_it_is_and_where_it_leads() {
        let database =
            "[connectors.orders]\ntenants = \"acme\"\nkind = \"postgres\"\nhost = \"10.1.2.3\"\ndatabase = \"o\"\nuser = \"u\"\n";
        let open = format!("{database}allow = \"10.1.2.0/24\"\ndedup = true\n");
        let read_only = format!("{open}read_only = true\n");
        let others = database.replace("acme", "other");
        let files = "[connectors.orders]\ntenants = \"acme\"\nkind = \"sqlite\"\n";
        let web = "[connectors.orders]\ntenants = \"acme\"\nurl = \"http://127.0.0.1/api\"\n";
        let no_url = "[connectors.orders]\ntenants = \"acme\"\n";
        let store = "[connectors.orders]\ntenants = \"acme\"\nstore = \"memory\"\n";
        for (file, code, words) in [
            (database, 1, "private"),
            (&open, 0, "read, and write: done once"),
            (&open, 0, " 10.1.2.3:5432 "),
            (&read_only, 0, "read; connectors.orders.read_only is true"),
            (&others, 1, "no [connectors.orders] with a database lists the tenant"),
            (files, 0, "sqlite"),
            (web, 1, "loopback"),
            (no_url, 0, "give --url"),
            (store, 0, "store"),
            ("", 1, "no [connectors.orders] lists the tenant"),
        ] {
            let (ended, text) = told(file, None, Some("orders"), None);
            assert!(ended == code && text.contains(words), "{file}{ended}\n{text}");
        }
    }

    #[test]
    fn a_key_is_explained_without_what_it_is_made_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("seed");
        std::fs::write(&path, "07".repeat(32)).expect("written");
        let with = |rest: &str| format!("[keys.k]\ntenants = \"acme\"\nalgorithm = \"ed25519\"\n{rest}\n");
        let public = with("public = \"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\"");
        for (file, code, words) in [
            (String::new(), 1, "no [keys.k] lists the tenant"),
            (with(&format!("secret = \"secret://file{}\"", path.display())), 0, "crypto.sign"),
            (with("secret = \"secret://file/nowhere/at/all\""), 1, "secret://file/nowhere/at/all"),
            (public, 0, "keys.k.secret is not set: the key only verifies"),
        ] {
            let (ended, text) = told(&file, None, None, Some("k"));
            assert!(ended == code && text.contains(words), "{ended}\n{text}");
            assert!(!text.contains("0707"), "{text}");
        }
    }
}
