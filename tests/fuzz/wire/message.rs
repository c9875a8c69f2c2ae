//! Messages as inputs: origin, subject, headers and body in one row of bytes, and good ones of every shape.
//!
//! `<origin><subject> RS name US value RS name US value … GS <body>`, with ASCII's own separators, so that a header may have
//! any byte in it. Without a GS everything is the body of an assignment.

use bytes::Bytes;
use endstation::edge::wire::line_subject;
use shards::ids::Text;
use shards::step::{Delivery, Headers, Origin, StreamToken};

use crate::mutation::Grammar;

const HEADER: u8 = 0x1e;
const VALUE: u8 = 0x1f;
const BODY: u8 = 0x1d;

/// What inputs are made of beyond plain bytes.
#[rustfmt::skip]
const PIECES: &[&[u8]] = &[
    b"{", b"}", b"[", b"]", b",", b":", b"\"", b"\\", b"null", b"true", b"false", b"0", b"-1", b"-0", b"1e9", b"1e999",
    b"1e-999", b"2.0", b"01", b"1.", b".5", b"9007199254740993", b"18446744073709551616", b"\"\"", b"{}", b"[]", b"\\ud800",
    b"\\udc00", b"\\ud83d\\ude00", b"\\u0000", b"\\u000a", b"\\/", b"\\x", b"\"\\u0074ype\":", b"{\"a\":1}", b"[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xff", b"\xed\xa0\x80", b"\0", b" ", b"\n",
    b"\r\n", b"\t", b"\"tenant_id\":\"other\",", b"\"tenant_id\":null,", b"\"tenantId\":\"acme\",", b"\"attempt\":3,",
    b"\"attempt\":\"7\",", b"\"run_id\":\"r\",", b"\"flow_id\":null,", b"\"flow_id\":\"f\",", b"\"step_id\":\"s\",",
    b"\"job\":", b"\"type\":\"echo\",", b"\"type\":\"fs_blob_put\",", b"\"type\":\"crypto.hash\",", b"\"type\":\"sleep\",",
    b"\"payload\":null,", b"\"payload_ref\":1,", b"\"payload_ref\":null,", b"\"data\":{", b"\"kind\":\"exec_assign\",",
    b"\"version\":\"1\",", b"\"version\":\"v1\",", b"\"options\":{\"retry\":7},", b"\"deadline_ms\":86400000,",
    b"\"max_attempts\":100,", b"\"backoff_ms\":86400000,", b"\"not_after\":\"2026-01-01T00:00:00Z\",", b"\"not_after\":1,",
    b"\"effect_ceiling\":\"PURE\",", b"\"resources\":{\"class\":\"GPU\"},", b"\"sandbox\":true,", b"\"path\":\"../x\",",
    b"\"assignment_id\":\"a-1\",", b"\"request_id\":\"\",", b"\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\",",
    b"\x1etenant_id\x1facme", b"\x1etenant_id\x1fother", b"\x1etrace_id\x1ft\rx", b"\x1eNats-Msg-Id\x1fa\r\nb: c",
    b"\x1eNats-Msg-Id\x1fid-1", b"\x1etraceparent\x1f00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"\x1eX-Trace-Id\x1ftrace", b"\x1eendstation-attempt\x1f9", b"\x1eendstation-assignment-id\x1fline-1", b"\x1d", b"\x1e",
    b"\x1f", b"beamline.worker.steps.v1.", b"beamline.worker.steps.v1.acme", b"01ARZ3NDEKTSV4RRFFQ69G5FAV",
    b"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60",
];

pub const GRAMMAR: Grammar = Grammar { pieces: PIECES, joints: b"{}[],:\x1d\x1e\x1f", bytes_max: 2 << 10 };

/// The message that an input stands for.
pub fn read(input: &[u8]) -> Delivery {
    // Copied once and shared, as a message from a socket is.
    let shared = Bytes::copy_from_slice(input);
    let text = |part: &[u8]| text(shared.slice_ref(part));
    let split = shared.iter().position(|byte| *byte == BODY);
    let (head, body) = split.map_or((&shared[..0], &shared[..]), |at| (&shared[..at], &shared[at + 1..]));
    let mut parts = head.split(|byte| *byte == HEADER);
    let (origin, subject) = match parts.next() {
        Some([origin, subject @ ..]) => (*origin, text(subject)),
        _ => (b'c', Text::new()),
    };
    let mut headers = Headers::new();
    for part in parts {
        let split = part.iter().position(|byte| *byte == VALUE);
        let (name, value) = split.map_or((part, &part[..0]), |at| (&part[..at], &part[at + 1..]));
        headers.push((text(name), text(value)));
    }
    let number = u64::from(origin) << 3 | body.len() as u64 & 7;
    let origin = match origin % 4 {
        // 'l' and 'h'; 'q' and 'u'; 's' and 'w'; the others.
        0 => Origin::Line(number),
        1 => Origin::Call(number),
        3 => {
            let stored_ms = super::NOW.wall_ms - number;
            Origin::Stream(StreamToken {
                consumer: 0,
                sequence: number,
                stored_ms,
                delivered: 1,
                reply: Text::from_static("r"),
                inherited: false,
            })
        }
        _ => Origin::Core,
    };
    let blank = |one: char| one.is_whitespace() || one.is_control();
    let subject = match (&origin, subject.is_empty()) {
        (Origin::Line(_), _) => line_subject(&subject),
        (_, true) => Text::from_static("caf.exec.assign.v1"),
        // No subject has white space in it.
        (_, false) if !subject.contains(blank) => subject,
        (_, false) => Text::from(subject.replace(blank, "_")),
    };
    Delivery { origin, subject, headers, body: shared.slice_ref(body), reply: None }
}

/// Names and subjects are text before they come this far.
fn text(bytes: Bytes) -> Text {
    Text::try_from(bytes.clone()).unwrap_or_else(|_| Text::from(String::from_utf8_lossy(&bytes).into_owned()))
}

const ASSIGNMENT: &str = r#"{"version":"1","assignment_id":"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60","request_id":"req-1","tenant_id":"acme","executor":{"provider_id":"prov","channel":"nats"},"job":{"type":"echo","payload":{"a":1}}}"#;
const PLACED: &str = r#"{"version":"1","assignment_id":"a-2","request_id":"req-2","tenant_id":"acme","executor":{"provider_id":"p"},"job":{"type":"crypto.hash","payload":{"text":"h\u00e9","algorithm":"sha256"},"other":[1,2.5,-3e2,null]},"run_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","flow_id":"01ARZ3NDEKTSV4RRFFQ69G5FAW","step_id":"01ARZ3NDEKTSV4RRFFQ69G5FAX","attempt":2,"options":{"priority":70,"deadline_ms":5000,"retry":{"max_attempts":3,"backoff_ms":100}},"correlation":{"trace_id":"0af7651916cd43dd8448eb211c80319c"},"decision":{"policy":"default"},"metadata":{"flow_id":"m"},"not_after":1800000000000,"effect_ceiling":"conditional","resources":{"class":"CPU"}}"#;
const PUT: &str = r#"{"version":"1","assignment_id":"a-3","request_id":"req-3","tenant_id":"t_1","executor":{"provider_id":"p"},"job":{"type":"fs_blob_put","payload":{"path":"d/f.txt","content":"x\ny"}},"metadata":{"run_id":"r","flow_id":"f","step_id":"s","attempt":"1"}}"#;
const SLEEP: &str = r#"{"version":"1","assignment_id":"a-4","request_id":"r","tenant_id":"acme","executor":{"provider_id":"p"},"job":{"type":"sleep","payload":{"ms":5}},"options":{"priority":"junk","deadline_ms":-1,"retry":[]}}"#;
const ENVELOPE: &str = r#"{"version":"v1","kind":"exec_assign","data":{"assignment_id":"a-5","request_id":"r","tenant_id":"acme","executor":{"provider_id":"p"},"job":{"type":"fs.get","payload":{"path":"f"}}}}"#;
const STEP: &str = r#"{"type":"echo","inputs":{"a":1,"b":[true,null,"\ud83d\ude00"]},"context":{"tenant_id":"acme"}}"#;
const FULL: &str = r#"{"type":"fs.blob_put","version_req":"*","inputs":{"path":"a/b","bytes":"aGk=","overwrite":true},"resources":{"class":"IO","memory_mb":1},"timeout_ms":"5000","retry":{"max_attempts":5,"backoff_ms":10,"backoff_max_ms":1000,"backoff_factor":2,"budget_ms":9000,"jitter":"full"},"guardrails":{},"context":{"tenant_id":"acme","trace_id":"0af7651916cd43dd8448eb211c80319c","run_id":"r","flow_id":"f","step_id":"s","attempt":3,"sandbox":false,"rbac_scopes":["x"]},"priority":9,"not_after":"2027-01-01T00:00:00Z","effect_ceiling":"EFFECT_CLASS_UNSAFE","assignment_id":"n-1","request_id":"q-1"}"#;
const CAMEL: &str = r#"{"type":"sleep","inputs":{"ms":1},"timeoutMs":10,"notAfter":"1800000000000","effectCeiling":5,"context":{"tenantId":"acme","flowId":"f","stepId":"s","attempt":"0"},"assignmentId":"n-2","requestId":""}"#;
const FAIL: &str = r#"{"type":"test.fail","inputs":{"code":"HTTP_5XX","times":2},"context":{"tenant_id":"acme","sandbox":true}}"#;

/// Good messages of the Beamline profile, and as they are told apart from the other.
pub fn assignments() -> Vec<Vec<u8>> {
    let routers = "\x1etenant_id\x1facme\x1eversion\x1f1\x1etrace_id\x1f0af7651916cd43dd8448eb211c80319c\x1etraceparent\x1f\
                   00-3061663736-6237-01\x1espan_id\x1fb7ad6b7169203331\x1eNats-Msg-Id\x1fm-1";
    [
        ("c", "", ASSIGNMENT),
        ("s", "", ASSIGNMENT),
        ("s", routers, PLACED),
        ("c", routers, PLACED),
        ("c", "", PUT),
        ("s", "\x1eX-Trace-Id\x1fx", SLEEP),
        ("s", "", ENVELOPE),
        ("lsteps.jsonl", "\x1eendstation-assignment-id\x1fline-1\x1eendstation-attempt\x1f2", ASSIGNMENT),
        ("l", "", PLACED),
    ]
    .map(|(origin, headers, body)| format!("{origin}{headers}\x1d{body}").into_bytes())
    .to_vec()
}

/// Good messages of the native profile.
pub fn steps() -> Vec<Vec<u8>> {
    let subject = "beamline.worker.steps.v1.acme";
    [
        (format!("c{subject}"), "", STEP),
        (format!("s{subject}"), "\x1etenant_id\x1facme", FULL),
        (format!("s{subject}"), "\x1eendstation-assignment-id\x1fx", CAMEL),
        (format!("c{subject}"), "\x1etraceparent\x1f00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", FAIL),
        (format!("q{subject}"), "\x1etenant_id\x1facme", FULL),
        (format!("q{subject}"), "", CAMEL),
        ("lsteps.jsonl".to_owned(), "\x1eendstation-assignment-id\x1fline-1", STEP),
        ("l".to_owned(), "\x1eendstation-assignment-id\x1fline-2#3\x1eendstation-attempt\x1f2", FULL),
        ("l".to_owned(), "", r#"{"type":"echo"}"#),
    ]
    .map(|(head, headers, body)| format!("{head}{headers}\x1d{body}").into_bytes())
    .to_vec()
}
