//! PostgreSQL's binary values as JSON. Pure.
//!
//! Whole numbers are numbers, numeric is a text, and so is what has no form in JSON: bytes in base64, moments as in RFC 3339,
//! ranges and addresses as PostgreSQL writes them. A type that is not known here is an error that says how to ask for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio_postgres::types::{FromSql, Kind, Type};

use super::sheet::{push_float, push_json, push_quoted};

use calendar::{date, interval, offset, time, timestamp};

mod calendar;

/// A value as it came; none for no value. Borrows from its row.
pub(super) struct Raw<'a>(pub(super) Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// How values of one type are read. Lives on its core.
#[derive(Clone, Debug)]
pub(super) enum Reader {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Char,
    Bytes,
    Uuid,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Json,
    Jsonb,
    Inet,
    Macaddr,
    Bits,
    Lsn,
    Void,
    Array(Box<Reader>),
    Range(Box<Reader>),
    Multirange(Box<Reader>),
    Composite(Vec<(String, Reader)>),
    Record,
    /// There is no form for it here.
    Unknown,
}

/// Why a value could not be read.
const BROKEN: &str = "the server sent what is no value of its type";
const UNKNOWN: &str = "its type has no form in JSON here: select it as a text, such as column::text";
const NOT_TEXT: &str = "it is no text in UTF-8";
const NOT_JSON: &str = "it is JSON that not every reader can read: too deep";

type Done = Result<(), &'static str>;

impl Reader {
    /// For values of this type.
    pub(super) fn of(ty: &Type) -> Reader {
        match *ty {
            Type::BOOL => Reader::Bool,
            Type::INT2 => Reader::Int2,
            Type::INT4 => Reader::Int4,
            Type::INT8 => Reader::Int8,
            Type::OID | Type::XID | Type::CID | Type::REGCLASS | Type::REGTYPE | Type::REGPROC | Type::REGPROCEDURE => {
                Reader::Oid
            }
            Type::FLOAT4 => Reader::Float4,
            Type::FLOAT8 => Reader::Float8,
            Type::NUMERIC => Reader::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::XML | Type::REFCURSOR => Reader::Text,
            Type::CHAR => Reader::Char,
            Type::BYTEA => Reader::Bytes,
            Type::UUID => Reader::Uuid,
            Type::DATE => Reader::Date,
            Type::TIME => Reader::Time,
            Type::TIMETZ => Reader::TimeTz,
            Type::TIMESTAMP => Reader::Timestamp,
            Type::TIMESTAMPTZ => Reader::TimestampTz,
            Type::INTERVAL => Reader::Interval,
            Type::JSON => Reader::Json,
            Type::JSONB => Reader::Jsonb,
            Type::INET | Type::CIDR => Reader::Inet,
            Type::MACADDR | Type::MACADDR8 => Reader::Macaddr,
            Type::BIT | Type::VARBIT => Reader::Bits,
            Type::PG_LSN => Reader::Lsn,
            Type::VOID => Reader::Void,
            Type::RECORD => Reader::Record,
            _ => match ty.kind() {
                Kind::Array(inner) => Reader::Array(Box::new(Reader::of(inner))),
                Kind::Range(inner) => Reader::Range(Box::new(Reader::of(inner))),
                Kind::Multirange(inner) => Reader::Multirange(Box::new(Reader::of(inner))),
                Kind::Domain(inner) => Reader::of(inner),
                Kind::Enum(_) => Reader::Text,
                Kind::Composite(fields) => {
                    let field = |field: &tokio_postgres::types::Field| (field.name().to_owned(), Reader::of(field.type_()));
                    Reader::Composite(fields.iter().map(field).collect())
                }
                _ if ty.name() == "citext" => Reader::Text,
                _ => Reader::Unknown,
            },
        }
    }

    /// Writes a value as JSON.
    pub(super) fn write(&self, raw: Option<&[u8]>, out: &mut Vec<u8>) -> Done {
        let Some(raw) = raw else {
            out.extend_from_slice(b"null");
            return Ok(());
        };
        let mut from = Bytes(raw);
        match self {
            Reader::Bool => out.extend_from_slice(if from.u8()? == 0 { b"false" } else { b"true" }),
            Reader::Int2 => push(out, i64::from(i16::from_be_bytes(from.take()?))),
            Reader::Int4 => push(out, i64::from(from.i32()?)),
            Reader::Int8 => push(out, from.i64()?),
            Reader::Oid => push(out, i64::from(u32::from_be_bytes(from.take()?))),
            Reader::Float4 => match f32::from_be_bytes(from.take()?) {
                float if float.is_finite() => serde_json::to_writer(out, &float).map_err(|_| BROKEN)?,
                float => push_float(out, f64::from(float)),
            },
            Reader::Float8 => push_float(out, f64::from_be_bytes(from.take()?)),
            Reader::Numeric => push_quoted(out, &numeric(&mut from)?),
            Reader::Text => push_quoted(out, std::str::from_utf8(raw).map_err(|_| NOT_TEXT)?),
            Reader::Char => push_quoted(out, &char::from(from.u8()?).to_string()),
            Reader::Bytes => {
                out.push(b'"');
                let start = out.len();
                out.resize(start + raw.len().div_ceil(3) * 4, 0);
                BASE64.encode_slice(raw, &mut out[start..]).map_err(|_| BROKEN)?;
                out.push(b'"');
            }
            Reader::Uuid => {
                let hex = shards::ids::hex(&from.take::<16>()?);
                let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                push_quoted(out, &parts.join("-"));
            }
            Reader::Date => push_quoted(out, &date(from.i32()?)),
            Reader::Time => push_quoted(out, &time(from.i64()?)),
            Reader::TimeTz => {
                let clock = time(from.i64()?);
                push_quoted(out, &format!("{clock}{}", offset(from.i32()?)));
            }
            Reader::Timestamp => push_quoted(out, &timestamp(from.i64()?, "")),
            Reader::TimestampTz => push_quoted(out, &timestamp(from.i64()?, "Z")),
            Reader::Interval => {
                let (micros, days, months) = (from.i64()?, from.i32()?, from.i32()?);
                push_quoted(out, &interval(micros, days, months));
            }
            Reader::Json => push_json(out, raw).then_some(()).ok_or(NOT_JSON)?,
            Reader::Jsonb => push_json(out, raw.get(1..).ok_or(BROKEN)?).then_some(()).ok_or(NOT_JSON)?,
            Reader::Inet => push_quoted(out, &inet(&mut from)?),
            Reader::Macaddr => {
                let pairs: Vec<String> = raw.iter().map(|byte| format!("{byte:02x}")).collect();
                push_quoted(out, &pairs.join(":"));
            }
            Reader::Bits => {
                let count = from.i32()? as usize;
                let bit = |at: usize| from.0.get(at / 8).map(|byte| if byte >> (7 - at % 8) & 1 == 1 { '1' } else { '0' });
                push_quoted(out, &(0..count).map(bit).collect::<Option<String>>().ok_or(BROKEN)?);
            }
            Reader::Lsn => {
                let lsn = from.i64()? as u64;
                push_quoted(out, &format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff));
            }
            Reader::Void => out.extend_from_slice(b"null"),
            Reader::Array(inner) => array(inner, &mut from, out)?,
            Reader::Range(inner) => push_quoted(out, &range(inner, &mut from)?),
            Reader::Multirange(inner) => {
                let mut parts = Vec::new();
                for _ in 0..from.i32()? {
                    let part = from.counted()?.ok_or(BROKEN)?;
                    parts.push(range(inner, &mut Bytes(part))?);
                }
                push_quoted(out, &format!("{{{}}}", parts.join(",")));
            }
            Reader::Composite(fields) => {
                let count = from.i32()? as usize;
                if count != fields.len() {
                    return Err(BROKEN);
                }
                out.push(b'{');
                for (at, (name, reader)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    push_quoted(out, name);
                    out.push(b':');
                    from.i32()?;
                    reader.write(from.counted()?, out)?;
                }
                out.push(b'}');
            }
            Reader::Record => {
                let count = from.i32()?;
                out.push(b'{');
                for at in 1..=count {
                    out.extend_from_slice(format!("{}\"f{at}\":", if at == 1 { "" } else { "," }).as_bytes());
                    let ty = Type::from_oid(u32::from_be_bytes(from.take()?)).ok_or(UNKNOWN)?;
                    Reader::of(&ty).write(from.counted()?, out)?;
                }
                out.push(b'}');
            }
            Reader::Unknown => return Err(UNKNOWN),
        }
        Ok(())
    }
}

/// A cursor over a value's bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BROKEN)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn i16(&mut self) -> Result<i16, &'static str> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, &'static str> {
        self.take().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, &'static str> {
        self.take().map(i64::from_be_bytes)
    }

    /// A value behind its length; −1 is no value.
    fn counted(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        let length = self.i32()?;
        if length < 0 {
            return Ok(None);
        }
        let (head, rest) = self.0.split_at_checked(length as usize).ok_or(BROKEN)?;
        self.0 = rest;
        Ok(Some(head))
    }
}

fn push(out: &mut Vec<u8>, whole: i64) {
    out.extend_from_slice(whole.to_string().as_bytes());
}

fn array(inner: &Reader, from: &mut Bytes<'_>, out: &mut Vec<u8>) -> Done {
    let depth = from.i32()?;
    from.take::<8>()?;
    if depth == 0 {
        out.extend_from_slice(b"[]");
        return Ok(());
    }
    if !(1..=6).contains(&depth) {
        return Err(BROKEN);
    }
    let mut sizes = Vec::new();
    for _ in 0..depth {
        sizes.push(from.i32()?);
        from.i32()?;
    }
    level(inner, &sizes, from, out)
}

fn level(inner: &Reader, sizes: &[i32], from: &mut Bytes<'_>, out: &mut Vec<u8>) -> Done {
    let Some((size, below)) = sizes.split_first() else { return inner.write(from.counted()?, out) };
    out.push(b'[');
    for at in 0..*size {
        if at > 0 {
            out.push(b',');
        }
        level(inner, below, from, out)?;
    }
    out.push(b']');
    Ok(())
}

/// As PostgreSQL writes it, with its bounds in the forms of this module.
fn range(inner: &Reader, from: &mut Bytes<'_>) -> Result<String, &'static str> {
    const EMPTY: u8 = 0x01;
    const LOWER_IN: u8 = 0x02;
    const UPPER_IN: u8 = 0x04;
    const NO_LOWER: u8 = 0x08;
    const NO_UPPER: u8 = 0x10;
    let flags = from.u8()?;
    if flags & EMPTY != 0 {
        return Ok("empty".to_owned());
    }
    let mut bound = |none: u8| -> Result<String, &'static str> {
        if flags & none != 0 {
            return Ok(String::new());
        }
        let mut text = Vec::new();
        inner.write(from.counted()?, &mut text)?;
        let text = String::from_utf8(text).map_err(|_| NOT_TEXT)?;
        let plain = text.trim_matches('"');
        let odd = plain.is_empty() || plain.contains([',', '(', ')', '[', ']', '"', '\\', ' ']);
        Ok(if odd { text } else { plain.to_owned() })
    };
    let (lower, upper) = (bound(NO_LOWER)?, bound(NO_UPPER)?);
    let open = if flags & LOWER_IN != 0 { '[' } else { '(' };
    let close = if flags & UPPER_IN != 0 { ']' } else { ')' };
    Ok(format!("{open}{lower},{upper}{close}"))
}

/// Groups of four decimal digits, the first of them `weight` groups before the point.
fn numeric(from: &mut Bytes<'_>) -> Result<String, &'static str> {
    let (count, weight, sign, scale) = (from.i16()?, from.i16()?, from.i16()? as u16, from.i16()?);
    let negative = match sign {
        0x0000 => false,
        0x4000 => true,
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        _ => return Err(BROKEN),
    };
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(from.i16()?);
    }
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let mut text = String::from(if negative { "-" } else { "" });
    match weight {
        ..0 => text.push('0'),
        _ => {
            for at in 0..=i32::from(weight) {
                let digits = if at == 0 { group(at).to_string() } else { format!("{:04}", group(at)) };
                text.push_str(&digits);
            }
        }
    }
    if scale > 0 {
        let scale = scale as usize;
        let mut fraction = String::with_capacity(scale + 4);
        let mut at = i32::from(weight) + 1;
        // Groups between the point and the first that was sent are zero.
        for _ in 0..(-at).max(0) {
            fraction.push_str("0000");
        }
        at = at.max(0);
        while fraction.len() < scale {
            fraction.push_str(&format!("{:04}", group(at)));
            at += 1;
        }
        text.push('.');
        text.push_str(&fraction[..scale]);
    }
    Ok(text)
}

fn inet(from: &mut Bytes<'_>) -> Result<String, &'static str> {
    let (family, bits, is_net, _) = (from.u8()?, from.u8()?, from.u8()?, from.u8()?);
    let (address, all) = match family {
        2 => (std::net::IpAddr::from(from.take::<4>()?), 32),
        3 => (std::net::IpAddr::from(from.take::<16>()?), 128),
        _ => return Err(BROKEN),
    };
    Ok(if bits == all && is_net == 0 { address.to_string() } else { format!("{address}/{bits}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_server_sends_is_read_or_refused() {
        let readers = [
            Type::INT4,
            Type::NUMERIC,
            Type::INET,
            Type::INT4_ARRAY,
            Type::INT4_RANGE,
            Type::INT4MULTI_RANGE,
            Type::JSONB,
            Type::VARBIT,
            Type::INTERVAL,
            Type::TIMETZ,
            Type::RECORD,
            Type::UUID,
            Type::TEXT,
            Type::CHAR,
            Type::TEXT_ARRAY,
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for ty in readers {
            let reader = Reader::of(&ty);
            for length in 0..40 {
                for _ in 0..50 {
                    let bytes: Vec<u8> = (0..length)
                        .map(|_| {
                            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            // Mostly small numbers, so that counts and lengths lead somewhere.
                            if seed >> 62 == 0 { (seed >> 33) as u8 } else { (seed >> 40) as u8 % 5 }
                        })
                        .collect();
                    let mut out = Vec::new();
                    if reader.write(Some(&bytes), &mut out).is_ok() {
                        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{ty} {bytes:?}: {out:?}");
                    }
                }
            }
        }
    }
}
