//! What can be wrong with a configuration. Everything that is wrong is said at once, not one fault a start.

use std::borrow::Cow;

use super::Origin;

/// A configuration that cannot be used, with all its faults; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", list(.faults))]
pub struct ConfigError {
    /// In the order they were found.
    pub faults: Vec<ConfigFault>,
}

/// One fault. Its text names the key, the value (secrets hidden), the rule and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {why}")]
    Unreadable {
        /// As it was named.
        path: String,
        /// The system's reason.
        why: String,
    },
    /// The file is not TOML, or a section is not one.
    #[error("{what} ({origin})")]
    Syntax {
        /// The parser's reason.
        what: String,
        /// Where.
        origin: Origin,
    },
    /// No such key.
    #[error("{key}: no such key ({origin}){}", known_text(.known))]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// Where.
        origin: Origin,
        /// The keys that there are at this place; empty where none comes near.
        known: String,
    },
    /// The key is there and its value breaks a rule.
    #[error("{key} = {value}: {rule} ({origin})")]
    BadValue {
        /// The key, dotted.
        key: Cow<'static, str>,
        /// As written; hidden for secrets.
        value: String,
        /// What it must be.
        rule: String,
        /// Where.
        origin: Origin,
    },
}

fn list(faults: &[ConfigFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn known_text(known: &str) -> String {
    if known.is_empty() { String::new() } else { format!("; known here: {known}") }
}
