//! Rules: each turns what was written into a value, or says in one sentence what it must be.
//!
//! Text is accepted for every kind of value, because variables and flags have nothing else.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use gpu::Devices;
use toml::Value;

use super::units::{bytes_text, digits, duration_text, parse_cores, parse_duration, parse_size};

/// The value, or the rule it breaks.
pub(crate) type Rule<T> = Result<T, String>;

/// Longest name of a worker or durable consumer, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Any text, possibly empty.
pub(crate) fn text(value: &Value) -> Rule<String> {
    text_of(value).map(str::to_owned).ok_or_else(|| "must be a text".to_owned())
}

/// A path; empty for none.
pub(crate) fn path(value: &Value) -> Rule<Option<PathBuf>> {
    let text = text_of(value).ok_or("must be a path")?;
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// A name that is one part of a NATS subject.
pub(crate) fn name(value: &Value) -> Rule<String> {
    let fits = |text: &&str| (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(name_byte);
    let rule = || format!("must be 1 to {NAME_BYTES_MAX} characters out of A-Z, a-z, 0-9, _ and -");
    text_of(value).filter(fits).map(str::to_owned).ok_or_else(rule)
}

/// True or false.
pub(crate) fn flag(value: &Value) -> Rule<bool> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A whole number in a range.
pub(crate) fn number(range: RangeInclusive<u32>) -> impl Fn(&Value) -> Rule<u32> {
    move |value| {
        let number = match value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            Value::String(text) => digits(text),
            _ => None,
        };
        let rule = || format!("must be a whole number from {} to {}", range.start(), range.end());
        number.filter(|number| range.contains(number)).ok_or_else(rule)
    }
}

/// A duration in a range, in milliseconds.
pub(crate) fn duration(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Rule<u64> {
    move |value| {
        let rule = || {
            let (from, to) = (duration_text(*range.start()), duration_text(*range.end()));
            format!("must be a duration with a unit, such as \"500ms\", \"10s\" or \"2h\", from {from} to {to}")
        };
        text_of(value).and_then(parse_duration).filter(|ms| range.contains(ms)).ok_or_else(rule)
    }
}

/// A byte size in a range.
pub(crate) fn size(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Rule<u64> {
    move |value| {
        let rule = || {
            let (from, to) = (bytes_text(*range.start()), bytes_text(*range.end()));
            format!("must be a byte size with a unit, such as \"256KiB\" or \"20GiB\", from {from} to {to}")
        };
        text_of(value).and_then(parse_size).filter(|bytes| range.contains(bytes)).ok_or_else(rule)
    }
}

/// Core numbers; empty for none named.
pub(crate) fn core_list(value: &Value) -> Rule<Option<Vec<usize>>> {
    let text = text_of(value);
    if text == Some("") {
        return Ok(None);
    }
    let rule = "must be a list of cores, none of them twice, such as \"2-15\" or \"0,3\"";
    text.and_then(parse_cores).map(Some).ok_or_else(|| rule.to_owned())
}

/// An address to listen on.
pub(crate) fn socket(value: &Value) -> Rule<SocketAddr> {
    let rule = || "must be an address and a port, such as \"127.0.0.1:9091\" or \"[::1]:9091\"".to_owned();
    text_of(value).and_then(|text| text.parse().ok()).ok_or_else(rule)
}

/// Addresses with ports; empty for none.
pub(crate) fn sockets(value: &Value) -> Rule<Vec<SocketAddr>> {
    let rule = || "must be addresses with ports, such as \"10.0.0.2:53\" or [\"10.0.0.2:53\", \"[fd00::2]:53\"]".to_owned();
    words(value).and_then(|list| list.iter().map(|text| text.parse().ok()).collect::<Option<_>>()).ok_or_else(rule)
}

/// What computes the gpu lane's steps; empty for nothing.
pub(crate) fn devices(value: &Value) -> Rule<Option<Devices>> {
    let rule = || "must be all, host, or a list of CUDA devices, none of them twice, such as \"0\" or \"0-3\"".to_owned();
    match text_of(value) {
        Some("") => Ok(None),
        Some("all") => Ok(Some(Devices::Cuda(Vec::new()))),
        Some("host") => Ok(Some(Devices::Host)),
        Some(text) => parse_cores(text).map(|list| Some(Devices::Cuda(list))).ok_or_else(rule),
        None => Err(rule()),
    }
}

/// A list of texts, or one text with commas; an empty text is an empty list.
pub(crate) fn words(value: &Value) -> Option<Vec<String>> {
    if text_of(value) == Some("") { Some(Vec::new()) } else { list(value) }
}

/// One of a few words.
pub(crate) fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Rule<T> {
    move |value| {
        let found = text_of(value).and_then(|text| words.iter().find(|(word, _)| *word == text));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("must be one of {}", words.join(", "))
        })
    }
}

/// NATS servers, with what their URLs say of who we are taken out of them.
pub(crate) struct Servers {
    /// Comma-separated URLs without user, password and token.
    pub(crate) url: String,
    /// User and password, or a token alone.
    pub(crate) login: Option<(String, Option<String>)>,
}

/// One or more NATS servers.
pub(crate) fn servers(value: &Value) -> Rule<Servers> {
    let rule = "must be NATS servers with commas between them, such as \"nats://127.0.0.1:4222\" (nats:// or tls://)";
    let list = list(value).filter(|list| !list.is_empty()).ok_or(rule)?;
    let (mut urls, mut login) = (Vec::new(), None);
    for server in &list {
        let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
        let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        let host = host.trim_end_matches('/');
        if !matches!(scheme, "nats" | "tls") || !host_and_port(host) {
            return Err(rule.to_owned());
        }
        urls.push(format!("{scheme}://{host}"));
        if let Some(user) = user {
            let (user, password) = user.split_once(':').map_or((user, None), |(user, password)| (user, Some(password)));
            let undo = |text: &str| percent_decoded(text).ok_or("percent signs in user, password or token must be %25");
            let this = (undo(user)?, password.map(undo).transpose()?);
            if login.as_ref().is_some_and(|login| *login != this) {
                return Err("must not name different users or tokens for different servers".to_owned());
            }
            login = Some(this);
        }
    }
    Ok(Servers { url: urls.join(","), login })
}

/// The text, if it is one.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    value.as_str()
}

/// A list of texts, or one text with commas; blanks around each are dropped.
pub(super) fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(text.split(',').map(|part| part.trim().to_owned()).collect()),
        Value::Array(parts) => parts.iter().map(|part| part.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// The characters a name may have.
pub(super) fn name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn host_and_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            return rest.is_empty() || rest.strip_prefix(':').and_then(digits::<u16>).is_some();
        }
        Some(_) => return false,
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let host_fits = !host.is_empty() && host.bytes().all(|b| name_byte(b) || b == b'.');
    host_fits && port.is_none_or(|port| digits::<u16>(port).is_some())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        bytes.push(u8::from_str_radix(coded.get(..2)?, 16).ok()?);
        rest = &coded[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}
