//! The inputs of an `http.request` as a [`Request`]: every field checked, nothing of it yet resolved or sent.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use shards::outcome::Fault;
use url::form_urlencoded::Serializer;

use crate::net::client::{Patience, is_ours};
use crate::net::egress::{Guard, Target};
use crate::policy::narrow::Guardrails;
use crate::policy::{Refused, Route};

use super::super::inputs::{Inputs, forbidden, missing, text_of};
use super::super::path;
use super::Words;

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
const URL_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
const HEADERS_BYTES_MAX: usize = 32 << 10;
const REDIRECTS: RangeInclusive<u64> = 0..=10;
const REDIRECTS_DEFAULT: u64 = 5;
const WAIT_MS: RangeInclusive<u64> = 1..=3_600_000;
const CONNECT_MS: u64 = 10_000;
const FIRST_BYTE_MS: u64 = 30_000;
const STALL_MS: u64 = 30_000;
/// The largest answer that a result carries, in bytes: as text it stays below what the journal takes.
const INLINE_BYTES_MAX: u64 = 8 << 20;
const INLINE_BYTES: u64 = 1 << 20;
const _: () = assert!(INLINE_BYTES_MAX * 6 + (1 << 20) <= shards::limits::MESSAGE_BYTES_MAX as u64);
/// The largest answer that a blob takes, in bytes.
const BLOB_BYTES_MAX: u64 = 16 << 30;
const BLOB_BYTES: u64 = 1 << 30;
const BODIES: [&str; 7] = ["json", "form", "text", "bytes", "blob", "body", "content"];

/// What a step asks for.
pub(super) struct Request<'a> {
    /// By its name.
    pub(super) connector: Option<Words<'a>>,
    pub(super) method: Method,
    place: Place<'a>,
    query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) content: Content<'a>,
    /// Into what the answer is made.
    pub(super) form: Form<'a>,
    pub(super) expect: Expect,
    pub(super) redirects_max: u32,
    pub(super) patience: Patience,
    /// One try, from its beginning to the end of the answer.
    pub(super) attempt_ms: Option<u64>,
    pub(super) bytes_max: u64,
}

enum Place<'a> {
    /// A whole URL.
    Url(Words<'a>),
    /// Behind the connector's own URL.
    Path(Words<'a>),
}

/// The body of the request.
pub(super) enum Content<'a> {
    None,
    /// With its media type where the headers name none.
    Bytes(Bytes, &'static str),
    /// A blob of the tenant's, in the store of this name or the worker's own.
    Blob {
        path: Words<'a>,
        connector: Option<Words<'a>>,
    },
}

/// What an answer becomes.
#[derive(Clone)]
pub(super) enum Form<'a> {
    Inline(Inline),
    Blob {
        path: Words<'a>,
        overwrite: bool,
        /// The store of this name, or the worker's own.
        connector: Option<Words<'a>>,
    },
    /// As progress, in pieces; the result says how much there was.
    Stream,
}

/// How a result carries a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inline {
    /// By its media type, and by what it is.
    Auto,
    Json,
    Text,
    Bytes,
    /// Not at all.
    None,
}

impl Form<'_> {
    /// The form of a body that a result carries.
    pub(super) fn inline(&self) -> &Inline {
        match self {
            Form::Inline(inline) => inline,
            Form::Blob { .. } | Form::Stream => &Inline::None,
        }
    }
}

/// Which statuses are what was asked for.
pub(super) struct Expect {
    exact: Vec<u16>,
    /// By the first digit.
    classes: [bool; 6],
}

impl Expect {
    /// The first of them.
    pub(super) fn usual(&self) -> u16 {
        let class = self.classes.iter().position(|class| *class).map(|class| class as u16 * 100);
        self.exact.first().copied().or(class).unwrap_or(200)
    }

    pub(super) fn includes(&self, status: StatusCode) -> bool {
        let number = status.as_u16();
        self.exact.contains(&number) || self.classes.get(usize::from(number / 100)).is_some_and(|class| *class)
    }
}

impl<'a> Request<'a> {
    /// Reads and checks the inputs.
    pub(super) fn read(json: &'a [u8]) -> Result<Request<'a>, Fault> {
        let inputs = Inputs::read(json)?;
        let connector = inputs.text("connector")?;
        let place = place(&inputs, connector.is_some())?;
        let content = content(&inputs)?;
        let method = method(&inputs, &content)?;
        let form = form(&inputs, &method)?;
        let (most, usual) = match form {
            Form::Blob { .. } | Form::Stream => (BLOB_BYTES_MAX, BLOB_BYTES),
            Form::Inline(_) => (INLINE_BYTES_MAX, INLINE_BYTES),
        };
        let wait = |name: &str, usual| inputs.integer(name, WAIT_MS, usual);
        let attempt_ms = match inputs.json("attempt_ms") {
            Some(_) => Some(wait("attempt_ms", 0)?),
            None => None,
        };
        Ok(Request {
            connector,
            method,
            place,
            query: query(&inputs)?,
            headers: headers(&inputs)?,
            content,
            form,
            expect: expect(&inputs)?,
            redirects_max: inputs.integer("redirects", REDIRECTS, REDIRECTS_DEFAULT)? as u32,
            patience: Patience {
                connect_ms: wait("connect_ms", CONNECT_MS)?,
                first_byte_ms: wait("first_byte_ms", FIRST_BYTE_MS)?,
                stall_ms: wait("stall_ms", STALL_MS)?,
            },
            attempt_ms,
            bytes_max: inputs.integer("bytes_max", 0..=most, usual)?,
        })
    }

    /// Keeps to a step's guardrails.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the rule: it would send more than it may.
    pub(super) fn keep_to(&mut self, guardrails: &Guardrails) -> Result<(), Fault> {
        self.bytes_max = guardrails.bytes_max(self.bytes_max);
        self.redirects_max = guardrails.redirects_max(self.redirects_max);
        match &self.content {
            Content::Bytes(bytes, _) => guardrails.fits(bytes.len() as u64, "body"),
            Content::None | Content::Blob { .. } => Ok(()),
        }
    }

    /// Where it goes by this route, which `guard` guards.
    ///
    /// # Errors
    /// INVALID_INPUT where it is no URL, PERMISSION_DENIED where the route does not lead there.
    pub(super) fn target(&self, route: &Route<'_>, guard: &Guard) -> Result<Target, Fault> {
        let base = route.connector.and_then(|(_, connector)| connector.settings.url.as_ref());
        let (pointer, mut text) = match (&self.place, base) {
            (Place::Url(url), _) => ("url", url.to_string()),
            (Place::Path(path), Some(base)) => ("path", format!("{}{path}", base.as_str().trim_end_matches('/'))),
            (Place::Path(_), None) => return Err(missing("url", "required: the connector names none")),
        };
        if let Some(at) = text.find('#') {
            text.truncate(at);
        }
        if !self.query.is_empty() {
            text.push(if text.contains('?') { '&' } else { '?' });
            let start = text.len();
            text = Serializer::for_suffix(text, start).extend_pairs(&self.query).finish();
        }
        if text.len() > URL_BYTES_MAX {
            return Err(forbidden(pointer, "with its query at most 8192 bytes"));
        }
        let target =
            Target::parse(&text).map_err(|denial| forbidden(pointer, &format!("an http or https URL: {}", denial.rule)))?;
        let denied = |refused: Refused| refused.fault();
        if let Some((_, connector)) = route.connector.filter(|(_, connector)| !connector.holds(&target)) {
            let rule = format!("connectors.{}.url leads elsewhere", connector.name);
            return Err(denied(Refused { rule, pointer: Some(format!("/{pointer}")) }));
        }
        let pointer = format!("/{pointer}");
        guard.check_target(&target).map_err(|denial| denied(Refused::of(&denial, &pointer)))?;
        Ok(target)
    }
}

fn place<'a>(inputs: &Inputs<'a>, connector: bool) -> Result<Place<'a>, Fault> {
    match inputs.at_most_one(&["url", "path"])? {
        Some("url") => Ok(Place::Url(inputs.text_needed("url")?)),
        Some(_) if !connector => Err(forbidden("path", "only with a connector; a whole URL is named by url")),
        Some(_) => {
            let path = inputs.text_needed("path")?;
            if path.is_empty() || path.starts_with(['/', '?']) {
                return Ok(Place::Path(path));
            }
            Err(forbidden("path", "beginning with a slash"))
        }
        None if connector => Ok(Place::Path(Cow::Borrowed(""))),
        None => Err(missing("url", "required")),
    }
}

fn method(inputs: &Inputs<'_>, content: &Content<'_>) -> Result<Method, Fault> {
    let Some(name) = inputs.text("method")? else {
        return Ok(if matches!(content, Content::None) { Method::GET } else { Method::POST });
    };
    let name = name.to_ascii_uppercase();
    let method = METHODS.iter().find(|method| method.as_str() == name);
    let method = method.ok_or_else(|| forbidden("method", "GET, HEAD, OPTIONS, POST, PUT, PATCH or DELETE"))?;
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) && !matches!(content, Content::None) {
        return Err(forbidden("method", "one that sends a body, where there is one"));
    }
    Ok(method.clone())
}

fn query(inputs: &Inputs<'_>) -> Result<Vec<(String, String)>, Fault> {
    pairs(inputs, "query")
}

/// The members of an object of texts, numbers and truth values, or lists of these, as names and values.
fn pairs(inputs: &Inputs<'_>, field: &str) -> Result<Vec<(String, String)>, Fault> {
    let rule =
        |name: &str| forbidden(&format!("{field}/{}", pointer_part(name)), "a string, a number, true, false, or a list of these");
    let mut pairs = Vec::new();
    for (name, raw) in inputs.object(field)? {
        let values: Vec<&serde_json::value::RawValue> = match raw.as_bytes().first() {
            Some(b'[') => serde_json::from_str(raw).map_err(|_| rule(&name))?,
            _ => vec![serde_json::from_str(raw).map_err(|_| rule(&name))?],
        };
        for value in values {
            let raw = value.get();
            let text = match raw.as_bytes().first() {
                Some(b'"') => text_of(raw).ok_or_else(|| rule(&name))?.into_owned(),
                Some(b'{' | b'[') => return Err(rule(&name)),
                // Where there is nothing there is nothing to send.
                Some(b'n') => continue,
                _ => raw.to_owned(),
            };
            pairs.push((name.clone().into_owned(), text));
        }
    }
    Ok(pairs)
}

fn headers(inputs: &Inputs<'_>) -> Result<HeaderMap, Fault> {
    let mut headers = HeaderMap::new();
    let mut bytes = 0;
    for (name, value) in pairs(inputs, "headers")? {
        let said = |rule: &str| forbidden(&format!("headers/{}", pointer_part(&name)), rule);
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| said("a name of letters, digits and hyphens"))?;
        if is_ours(&header) {
            return Err(said("not one that the connection itself is run by"));
        }
        let value = HeaderValue::from_str(&value).map_err(|_| said("visible characters and blanks, in ASCII"))?;
        bytes += header.as_str().len() + value.len();
        headers.append(header, value);
        if headers.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
            return Err(forbidden("headers", "at most 64 of them and 32768 bytes"));
        }
    }
    Ok(headers)
}

fn content<'a>(inputs: &Inputs<'a>) -> Result<Content<'a>, Fault> {
    if inputs.text("blob_connector")?.is_some() && inputs.json("blob").is_none() {
        return Err(forbidden("blob_connector", "only beside blob"));
    }
    Ok(match inputs.at_most_one(&BODIES)? {
        None => Content::None,
        Some("json") => Content::Bytes(raw(inputs, "json"), "application/json"),
        Some("form") => {
            let form = Serializer::new(String::new()).extend_pairs(pairs(inputs, "form")?).finish();
            Content::Bytes(form.into(), "application/x-www-form-urlencoded")
        }
        Some("text") => Content::Bytes(inputs.text_needed("text")?.into_owned().into(), "text/plain; charset=utf-8"),
        Some("bytes") => Content::Bytes(inputs.bytes("bytes")?.unwrap_or_default().into(), "application/octet-stream"),
        Some("blob") => {
            let blob = inputs.text_needed("blob")?;
            path::check(&blob).map_err(|rule| forbidden("blob", rule))?;
            Content::Blob { path: blob, connector: inputs.text("blob_connector")? }
        }
        // The platform's older workers: a text goes as it is, anything else as JSON.
        Some(name) => match inputs.json(name).and_then(text_of) {
            Some(text) => Content::Bytes(text.into_owned().into(), "text/plain; charset=utf-8"),
            None => Content::Bytes(raw(inputs, name), "application/json"),
        },
    })
}

fn raw(inputs: &Inputs<'_>, name: &str) -> Bytes {
    Bytes::copy_from_slice(inputs.json(name).unwrap_or_default().as_bytes())
}

fn form<'a>(inputs: &Inputs<'a>, method: &Method) -> Result<Form<'a>, Fault> {
    let name = inputs.text("response")?;
    let overwrite = inputs.flag("overwrite")?;
    let path = inputs.text("response_blob")?;
    let connector = inputs.text("response_blob_connector")?;
    if connector.is_some() && path.is_none() {
        return Err(forbidden("response_blob_connector", "only beside response_blob"));
    }
    let inline = match name.as_deref() {
        None if path.is_some() => None,
        Some("blob") => None,
        None | Some("auto") => Some(Inline::Auto),
        Some("json") => Some(Inline::Json),
        Some("text") => Some(Inline::Text),
        Some("bytes") => Some(Inline::Bytes),
        Some("none") => Some(Inline::None),
        Some("stream") => {
            return match (path.is_some(), overwrite.is_some()) {
                (true, _) => Err(forbidden("response_blob", "only where response is blob")),
                (_, true) => Err(forbidden("overwrite", "only where response is blob")),
                _ => Ok(Form::Stream),
            };
        }
        Some(_) => return Err(forbidden("response", "auto, json, text, bytes, blob, stream or none")),
    };
    match (inline, path) {
        (Some(_), Some(_)) => Err(forbidden("response_blob", "only where response is blob")),
        (Some(_), None) if overwrite.is_some() => Err(forbidden("overwrite", "only where response is blob")),
        (Some(inline), None) => Ok(Form::Inline(inline)),
        (None, None) => Err(missing("response_blob", "required where response is blob")),
        (None, Some(_)) if *method == Method::HEAD => Err(forbidden("response_blob", "not with HEAD, which has no body")),
        (None, Some(path)) => {
            path::check(&path).map_err(|rule| forbidden("response_blob", rule))?;
            Ok(Form::Blob { path, overwrite: overwrite.unwrap_or(false), connector })
        }
    }
}

fn expect(inputs: &Inputs<'_>) -> Result<Expect, Fault> {
    let mut expect = Expect { exact: Vec::new(), classes: [false; 6] };
    let Some(raw) = inputs.json("expect") else {
        expect.classes[2] = true;
        return Ok(expect);
    };
    let rule = || forbidden("expect", "a status from 200 to 599, a class such as \"2xx\", or a list of these");
    let value: serde_json::Value = serde_json::from_str(raw).map_err(|_| rule())?;
    let list = match value {
        serde_json::Value::Array(list) if !list.is_empty() => list,
        serde_json::Value::Array(_) => return Err(rule()),
        one => vec![one],
    };
    for one in list {
        let whole = one.as_f64().filter(|number| number.fract() == 0.0 && (200.0..600.0).contains(number));
        match (whole, one.as_str().map(str::as_bytes)) {
            (Some(status), _) => expect.exact.push(status as u16),
            (None, Some([class @ b'2'..=b'5', b'x' | b'X', b'x' | b'X'])) => expect.classes[usize::from(class - b'0')] = true,
            _ => return Err(rule()),
        }
    }
    Ok(expect)
}

/// A name as part of a JSON Pointer.
fn pointer_part(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
