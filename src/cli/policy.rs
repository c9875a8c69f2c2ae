//! `endstation policy explain`: whether a tenant's step may reach a URL, by which rule, and at which addresses. It looks the name
//! up and connects to nothing.

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::net::egress::{Host, Target};
use crate::offload::{NoAddress, Offload};
use crate::policy::{Policy, Refused};
use crate::settings::Settings;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_USAGE};

const EXAMPLES: &str = "\
Examples:
  endstation policy explain --tenant acme --url https://api.example.com/v1
  endstation policy explain --tenant acme --connector crm --url https://crm.internal/api/x

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
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Through which connector, if through one
    #[arg(long, value_name = "NAME")]
    pub connector: Option<String>,
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
    let target = match Target::parse(&args.url) {
        Ok(target) => target,
        Err(denial) => {
            writeln!(io::stderr(), "error: --url: {denial}")?;
            return Ok(EXIT_USAGE);
        }
    };
    let mut findings = Findings { rows: Vec::new() };
    look(&policy, &target, args, &mut findings);
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
        let line = json!({ "allowed": allowed, "url": target.to_string(), "findings": rows.collect::<Vec<Value>>() });
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
    let verdict = route.guard.check_target(target).map_err(|denial| denial.rule.to_owned());
    if !findings.add("host", target.to_string(), verdict) {
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
        let verdict = route.guard.check_addresses(target, &[address]).map_err(|denial| denial.rule.to_owned());
        findings.add("address", address.to_string(), verdict);
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
        let settings = Settings::of(Some(("e.toml", file)), std::iter::empty(), &[]).expect("a configuration");
        let args =
            ExplainArgs { tenant: "acme".to_owned(), url: url.to_owned(), connector: connector.map(str::to_owned), dev: false };
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
}
