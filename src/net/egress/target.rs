//! A target: one http or https URL, parsed once, in the only form in which it is judged and sent.
//!
//! Parsers are kind and disagree in what they forgive, so the text is checked as it is spelled before one sees it. What the
//! parser of the URL standard then makes of the host is all that is used of it: the host that is judged is the host that is
//! dialled.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use url::{Position, Url};

use super::{Denial, name};

/// Longest URL in bytes, as given and as sent.
const URL_BYTES_MAX: usize = 8192;
/// Most characters of a refused text that a denial shows.
const SHOWN_CHARS_MAX: usize = 80;

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name: ASCII, lower case, IDNA-encoded, at most 253 characters, without a dot at its end, and nothing that a resolver
    /// takes for an address. Resolve it as an absolute name.
    Name(String),
    /// An address, however it was spelled; an IPv4-mapped one is IPv4.
    Ip(IpAddr),
}

/// A URL that may be judged. Has no userinfo and no fragment. Shown, it is its origin: path and query may be secrets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Agrees with the other fields, which are parsed from it.
    url: Url,
    scheme: Scheme,
    host: Host,
    port: u16,
}

impl Target {
    /// Parses an absolute http or https URL. A fragment is dropped; everything else is kept as it goes on the wire.
    ///
    /// # Errors
    /// - `spelling`: control characters, whitespace or a backslash anywhere, invisible characters in the host, no `//` after
    ///   the scheme;
    /// - `length`: over 8192 bytes, as given or as sent;
    /// - `scheme`: none, or neither http nor https;
    /// - `userinfo`: an `@` before the path, even with nothing in front of it;
    /// - `host`: none, or one that is neither a name nor an address; `name/…`: a name of a wrong form;
    /// - `port`: none of 1 to 65535.
    pub fn parse(url: &str) -> Result<Self, Denial> {
        let parsed = check_spelling(url).and_then(|()| Url::parse(url).map_err(rule_of)).and_then(Self::of);
        parsed.map_err(|rule| Denial { rule, subject: shown(url) })
    }

    /// The target of a redirect from here: `location` is a URL, or relative to this one. What passes still has to pass the
    /// guard.
    ///
    /// # Errors
    /// Those of [`Target::parse`], and `downgrade` from https to http.
    pub fn join(&self, location: &str) -> Result<Self, Denial> {
        let parsed = check_spelling(location).and_then(|()| self.url.join(location).map_err(rule_of)).and_then(Self::of);
        let next = parsed.map_err(|rule| Denial { rule, subject: shown(location) })?;
        if (self.scheme, next.scheme) == (Scheme::Https, Scheme::Http) {
            return Err(Denial { rule: "downgrade", subject: format!("{self} to {next}") });
        }
        Ok(next)
    }

    fn of(mut url: Url) -> Result<Self, &'static str> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err("scheme"),
        };
        // Refused by its spelling already, should this parser and that check ever disagree about where an authority ends.
        if !url.username().is_empty() || url.password().is_some() {
            return Err("userinfo");
        }
        let host = match url.host() {
            None => return Err("host"),
            Some(url::Host::Domain(domain)) => Host::Name(name::normal(domain)?.to_owned()),
            Some(url::Host::Ipv4(ip)) => Host::Ip(ip.into()),
            Some(url::Host::Ipv6(ip)) => Host::Ip(IpAddr::V6(ip).to_canonical()),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or("port")?;
        match &host {
            Host::Name(name) => url.set_host(Some(name)).map_err(rule_of)?,
            Host::Ip(ip) => url.set_ip_host(*ip).map_err(|()| "host")?,
        }
        url.set_fragment(None);
        if url.as_str().len() > URL_BYTES_MAX {
            return Err("length");
        }
        Ok(Self { url, scheme, host, port })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host: what is judged, resolved, and named to TLS.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, the scheme's own if the URL has none. Never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host, and port unless it is the scheme's own: the `Host` header.
    pub fn authority(&self) -> &str {
        &self.url[Position::BeforeHost..Position::AfterPort]
    }

    /// The path as it goes on the wire: begins with `/`, percent-encoded, without `.` and `..`.
    pub fn path(&self) -> &str {
        self.url.path()
    }

    /// The query as it goes on the wire, without its `?`.
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// Path and query together: the target in the request line.
    pub fn path_and_query(&self) -> &str {
        &self.url[Position::BeforePath..Position::AfterQuery]
    }

    /// The whole URL. Not for logs.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// Whether scheme, host and port agree (RFC 6454): where they do not, a redirect must lose its credentials.
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.scheme, self.port, &self.host) == (other.scheme, other.port, &other.host)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.url.scheme(), self.authority())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// Checks a URL or a reference as it is spelled, for what parsers forgive, each in its own way.
fn check_spelling(text: &str) -> Result<(), &'static str> {
    if text.len() > URL_BYTES_MAX {
        return Err("length");
    }
    if text.chars().any(|char| char == '\\' || char.is_control() || char.is_whitespace()) {
        return Err("spelling");
    }
    let rest = match scheme_of(text) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            // `http:host`, `http:/host` and `http:path` mean different things to different parsers.
            rest.strip_prefix("//").ok_or("spelling")?
        }
        Some(_) => return Err("scheme"),
        // A relative reference; only `//` makes it name a host.
        None => match text.strip_prefix("//") {
            Some(rest) => rest,
            None => return Ok(()),
        },
    };
    match authority_of(rest) {
        "" => Err("host"),
        authority if authority.contains('@') => Err("userinfo"),
        // IDNA would drop them without a word. In a path they are text like any other: Persian needs them.
        authority if authority.contains(is_unseen) => Err("spelling"),
        _ => Ok(()),
    }
}

/// Splits off a scheme by RFC 3986, section 3.1: what precedes the first colon, if it can be one.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let begins = scheme.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let goes_on = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    (begins && goes_on).then_some((scheme, rest))
}

/// The authority at the beginning of what follows `//`.
fn authority_of(rest: &str) -> &str {
    rest.find(['/', '?', '#', '\\']).map_or(rest, |end| &rest[..end])
}

/// Whether a reader does not see `char`: control characters, whitespace, the annotation marks, and what Unicode ignores by
/// default (Default_Ignorable_Code_Point).
pub(super) fn is_unseen(char: char) -> bool {
    char.is_control()
        || char.is_whitespace()
        || matches!(
            char,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The rule by which the URL parser gave up.
fn rule_of(error: url::ParseError) -> &'static str {
    match error {
        url::ParseError::RelativeUrlWithoutBase => "scheme",
        url::ParseError::InvalidPort => "port",
        url::ParseError::InvalidIpv4Address => "name/numeric",
        url::ParseError::Overflow => "length",
        _ => "host",
    }
}

/// What a denial says of a text that became no target: its scheme and authority, in ASCII. Nothing of a text with an `@` in
/// it, for what stands before that may be a password, whatever a parser takes it for.
fn shown(text: &str) -> String {
    let text = text.trim_start_matches(is_unseen);
    if text.contains(['@', '\u{ff20}', '\u{fe6b}']) || text.contains("%40") {
        return "a URL with an @".to_owned();
    }
    let (scheme, rest) = scheme_of(text).unwrap_or(("", text));
    let mut subject = String::new();
    if !scheme.is_empty() {
        subject.extend(scheme.chars().take(SHOWN_CHARS_MAX));
        subject.push(':');
    }
    if let Some(rest) = rest.strip_prefix("//") {
        subject.push_str("//");
        for char in authority_of(rest).chars().take(SHOWN_CHARS_MAX) {
            // Writing to a string cannot fail.
            let _ = write!(subject, "{}", char.escape_default());
        }
    }
    if subject.is_empty() { "a text without scheme and host".to_owned() } else { subject }
}
