//! Good and bad inputs, block by block: only what a check lets through is ever accepted.

use super::super::media;
use super::*;

const INVALID: Code = Code::InvalidInput;
const MISSING: Code = Code::MissingRequiredField;

/// Inputs and what their block's check says of them. What its schema says is the same, or there is a reason.
pub(in crate::blocks) struct Case {
    pub(in crate::blocks) name: &'static str,
    pub(in crate::blocks) inputs: String,
    /// Which code, and where; none: they are good.
    pub(in crate::blocks) refused: Option<(Code, String)>,
    /// Why the schema sees it otherwise.
    pub(in crate::blocks) apart: Option<&'static str>,
}

impl Case {
    /// The schema does not see it.
    pub(in crate::blocks) fn apart(self, reason: &'static str) -> Self {
        Case { apart: Some(reason), ..self }
    }
}

const BYTES: &str = "a schema counts characters, the rule bytes";

pub(in crate::blocks) fn good(name: &'static str, inputs: impl ToString) -> Case {
    Case { name, inputs: inputs.to_string(), refused: None, apart: None }
}

pub(in crate::blocks) fn bad(name: &'static str, inputs: impl ToString, code: Code, at: &str) -> Case {
    Case { refused: Some((code, at.to_owned())), ..good(name, inputs) }
}

#[track_caller]
fn judge(case: &Case) {
    let Case { name, inputs, refused, .. } = case;
    let (_, entry) = find(name, true).expect(name);
    match (check(entry, name, inputs), refused) {
        (Ok(_), None) => {}
        (Err(fault), Some((code, at))) => {
            assert_presentable(&fault);
            assert_eq!((fault.code, pointer(&fault).as_str()), (*code, at.as_str()), "{name} {inputs}");
        }
        (said, _) => panic!("{name} {inputs}: {said:?}"),
    }
}

#[test]
fn good_inputs_pass() {
    goods().iter().for_each(judge);
}

#[test]
fn bad_inputs_are_refused_with_pointer_and_rule() {
    bads().iter().for_each(judge);
}

#[test]
fn paths_that_could_leave_the_folder_or_are_ours_are_refused() {
    paths().iter().for_each(judge);
}

#[test]
fn images_are_asked_for_in_one_way() {
    media::tests::cases().iter().for_each(judge);
}

#[test]
fn signatures_are_asked_for_in_one_way() {
    signatures().iter().for_each(judge);
}

/// Every case that needs no policy.
pub(in crate::blocks) fn cases() -> Vec<Case> {
    goods().into_iter().chain(bads()).chain(paths()).chain(signatures()).chain(media::tests::cases()).collect()
}

fn goods() -> Vec<Case> {
    let mut cases = Vec::new();
    for inputs in ["", "null", "{}", "[1,2]", r#""text""#, r#"{"a":{"b":[null]}}"#] {
        cases.push(good("echo", inputs));
    }
    for inputs in ["", "null", " {} ", r#"{"ms":0}"#, r#"{"ms":100.0}"#, r#"{"ms":1e3}"#, r#"{"ms":null,"other":1}"#] {
        cases.push(good("sleep", inputs));
    }
    for inputs in [
        r#"{"text":""}"#,
        r#"{"bytes":"AAE="}"#,
        r#"{"bytes":"AAE"}"#,
        r#"{"path":"a/b.txt"}"#,
        r#"{"algorithm":"sha512","text":"x","bytes":null}"#,
        r#"{"algorithm":null,"text":"é"}"#,
        r#"{"algorithm":"blake3","text":"x","unknown":[]}"#,
    ] {
        cases.push(good("crypto.hash", inputs));
    }
    for inputs in [
        r#"{"path":"a","content":""}"#,
        r#"{"path":"a/b/c","bytes":""}"#,
        r#"{"path":"ünï/文.txt","content":"x","overwrite":true}"#,
        r#"{"path":"..a/...","content":"x","bytes":null,"overwrite":null}"#,
        r#"{"path":"a b:c*?","content":"x"}"#,
        r#"{"\u0070ath":"a","content":"\u0000"}"#,
        r#"{"path":"a","blob":"b/c","blob_connector":null,"content":null}"#,
        r#"{"content":"","address":"sha256"}"#,
        r#"{"path":"a","blob":"b","address":"sha256","overwrite":false}"#,
        r#"{"path":null,"content":"","address":"sha256","connector":null}"#,
        r#"{"path":"a","content":"x","sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852B855"}"#,
    ] {
        cases.push(good("fs.blob_put", inputs));
    }
    for inputs in [
        r#"{"path":"a","offset":0}"#,
        r#"{"path":"a","offset":9007199254740992,"length":8388608}"#,
        r#"{"path":"a","offset":null,"length":0,"sha256":null,"connector":null}"#,
    ] {
        cases.push(good("fs.blob_get", inputs));
    }
    cases.extend([
        good("fs.blob_get", json!({ "path": format!("{}/b", "x".repeat(255)) })),
        good("fs.blob_get", json!({ "path": vec!["d"; 32].join("/") })),
        good("fs.blob_get", json!({ "path": "x".repeat(255) })),
        good("crypto.hash", r#"{"bytes":"AA="}"#),
        good("test.hang", r#"{"ms":1}"#),
        good("test.fail", r#"{"times":3,"code":"HTTP_5XX","message":"No luck."}"#),
        good("test.abort", r#"{"after_ms":60000,"compute_thread":true}"#),
        good("test.eat", r#"{"mib":1}"#),
        good("test.panic", "{}"),
    ]);
    cases
}

fn bads() -> Vec<Case> {
    let mut cases = Vec::new();
    for inputs in ["[]", "1", r#""x""#, "{", r#"{"ms":}"#, "\u{feff}{}"] {
        cases.push(bad("sleep", inputs, INVALID, ""));
    }
    for value in ["-1", "86400001", "1.5", r#""100""#, "true", "[]", "{}", "1e300", "-0.5", "18446744073709551616"] {
        cases.push(bad("sleep", format!(r#"{{"ms":{value}}}"#), INVALID, "/ms"));
    }

    cases.extend([
        bad("crypto.hash", "{}", MISSING, "/text"),
        bad("crypto.hash", "null", MISSING, "/text"),
        bad("crypto.hash", r#"{"text":null,"path":null}"#, MISSING, "/text"),
        bad("crypto.hash", r#"{"text":"a","bytes":""}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"text":"a","path":"a"}"#, INVALID, "/path"),
        bad("crypto.hash", r#"{"bytes":"","path":"a"}"#, INVALID, "/path"),
        bad("crypto.hash", r#"{"text":1}"#, INVALID, "/text"),
        bad("crypto.hash", r#"{"text":"\ud800"}"#, INVALID, "/text"),
        bad("crypto.hash", r#"{"bytes":"!!!!"}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":"A"}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":"_-8="}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":"AA\nAA"}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":[0,1]}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"path":"../x"}"#, INVALID, "/path"),
        bad("crypto.hash", r#"{"text":"a","algorithm":"md5"}"#, INVALID, "/algorithm"),
        bad("crypto.hash", r#"{"text":"a","algorithm":"SHA256"}"#, INVALID, "/algorithm"),
        bad("crypto.hash", r#"{"text":"a","algorithm":256}"#, INVALID, "/algorithm"),
    ]);

    cases.extend([
        bad("fs.blob_put", "{}", MISSING, "/path"),
        bad("fs.blob_put", r#"{"path":null,"content":"x"}"#, MISSING, "/path"),
        bad("fs.blob_put", r#"{"path":"a"}"#, MISSING, "/content"),
        bad("fs.blob_put", r#"{"path":"a","content":null}"#, MISSING, "/content"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","bytes":"eA=="}"#, INVALID, "/bytes"),
        bad("fs.blob_put", r#"{"path":"a","content":{"x":1}}"#, INVALID, "/content"),
        bad("fs.blob_put", r#"{"path":"a","bytes":"e A=="}"#, INVALID, "/bytes"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","overwrite":"yes"}"#, INVALID, "/overwrite"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","overwrite":1}"#, INVALID, "/overwrite"),
        bad("fs.blob_put", r#"{"path":["a"],"content":"x"}"#, INVALID, "/path"),
        bad("fs.blob_get", "{}", MISSING, "/path"),
        bad("fs_blob_get", r#"{"path":1}"#, INVALID, "/path"),
        bad("fs.blob_put", r#"{"content":"x"}"#, MISSING, "/path"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","blob":"b"}"#, INVALID, "/blob"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","blob_connector":"s"}"#, INVALID, "/blob_connector"),
        bad("fs.blob_put", r#"{"path":"a","blob":1}"#, INVALID, "/blob"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","address":"md5"}"#, INVALID, "/address"),
        bad("fs.blob_put", r#"{"content":"x","address":"sha256","overwrite":true}"#, INVALID, "/overwrite"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","sha256":"e3b0"}"#, INVALID, "/sha256"),
        bad("fs.blob_put", json!({ "path": "a", "content": "x", "sha256": "g".repeat(64) }), INVALID, "/sha256"),
        bad("fs.blob_put", r#"{"path":"a","content":"x","connector":1}"#, INVALID, "/connector"),
        bad("fs.blob_get", r#"{"path":"a","offset":-1}"#, INVALID, "/offset"),
        bad("fs.blob_get", r#"{"path":"a","offset":"1"}"#, INVALID, "/offset"),
        bad("fs.blob_get", r#"{"path":"a","length":8388609}"#, INVALID, "/length"),
        bad("fs.blob_get", r#"{"path":"a","length":1.5}"#, INVALID, "/length"),
        bad("fs.blob_get", r#"{"path":"a","sha256":"x"}"#, INVALID, "/sha256"),
        bad("fs.blob_get", r#"{"path":"a","connector":[]}"#, INVALID, "/connector"),
        bad("crypto.hash", r#"{"text":"a","connector":"s"}"#, INVALID, "/connector"),
        bad("crypto.hash", r#"{"path":"a","connector":true}"#, INVALID, "/connector"),
    ]);

    cases.extend([
        bad("fs.blob_get", json!({ "path": "ü".repeat(200) }), INVALID, "/path").apart(BYTES),
        bad("fs.blob_get", json!({ "path": vec!["ü".repeat(100); 6].join("/") }), INVALID, "/path").apart(BYTES),
        bad("test.fail", json!({ "message": "ü".repeat(200) }), INVALID, "/message").apart(BYTES),
        bad("crypto.hash", r#"{"bytes":"AB=="}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":"AAE=="}"#, INVALID, "/bytes"),
        bad("crypto.hash", r#"{"bytes":"AAAA="}"#, INVALID, "/bytes"),
        bad("test.hang", r#"{"ms":60001}"#, INVALID, "/ms"),
        bad("test.abort", r#"{"after_ms":60001}"#, INVALID, "/after_ms"),
        bad("test.abort", r#"{"compute_thread":1}"#, INVALID, "/compute_thread"),
        bad("test.eat", r#"{"mib":0}"#, INVALID, "/mib"),
        bad("test.panic", "[]", INVALID, ""),
        bad("test.fail", r#"{"times":101}"#, INVALID, "/times"),
        bad("test.fail", r#"{"code":"INVALID_INPUT"}"#, INVALID, "/code"),
        bad("test.fail", r#"{"code":"NOPE"}"#, INVALID, "/code"),
        bad("test.fail", json!({ "message": "x".repeat(257) }), INVALID, "/message"),
    ]);
    cases
}

fn paths() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in bad_paths() {
        let inputs = json!({ "path": path, "content": "x" }).to_string();
        for name in ["fs.blob_put", "fs_blob_put", "fs.put", "fs.blob_get"] {
            cases.push(bad(name, &inputs, INVALID, "/path"));
        }
        cases.push(bad("crypto.hash", json!({ "path": path }), INVALID, "/path"));
        cases.push(bad("fs.put", json!({ "path": "a", "blob": path }), INVALID, "/blob"));
        cases.push(bad("fs.put", json!({ "address": "sha256", "path": path, "content": "" }), INVALID, "/path"));
    }
    cases
}

/// Paths that could leave the folder or are ours.
pub(in crate::blocks) fn bad_paths() -> Vec<String> {
    let long = "x".repeat(256);
    let longer = vec!["x".repeat(200); 6].join("/");
    let deep = vec!["d"; 33].join("/");
    let paths = [
        "",
        "/",
        "/etc/passwd",
        "//a",
        "a//b",
        "a/",
        "a/b/",
        ".",
        "..",
        "./a",
        "../a",
        "a/../b",
        "a/..",
        "a/./b",
        "a/.",
        "$tmp",
        "$tmp/x",
        "a/$b",
        "$outputs/x",
        "a\\b",
        "..\\a",
        "a\0b",
        "a\nb",
        "a\u{7f}",
        "\u{1}",
        &long,
        &longer,
        &deep,
    ];
    paths.map(str::to_owned).to_vec()
}

fn signatures() -> Vec<Case> {
    let mut cases = Vec::new();
    for (inputs, refused) in [
        (r#"{"key":"k","text":""}"#, None),
        (r#"{"key":"k","bytes":"AAE","encoding":null}"#, None),
        (r#"{"key":"k","path":"a/b","encoding":"hex","more":1}"#, None),
        (r#"{"key":"","text":"x","encoding":"base64"}"#, None),
        ("[]", Some((INVALID, ""))),
        ("", Some((MISSING, "/key"))),
        (r#"{"text":"x"}"#, Some((MISSING, "/key"))),
        (r#"{"key":null,"text":"x"}"#, Some((MISSING, "/key"))),
        (r#"{"key":7,"text":"x"}"#, Some((INVALID, "/key"))),
        (r#"{"key":"k"}"#, Some((MISSING, "/text"))),
        (r#"{"key":"k","text":null}"#, Some((MISSING, "/text"))),
        (r#"{"key":"k","text":"x","bytes":""}"#, Some((INVALID, "/bytes"))),
        (r#"{"key":"k","text":"x","path":"a"}"#, Some((INVALID, "/path"))),
        (r#"{"key":"k","bytes":"","path":"a"}"#, Some((INVALID, "/path"))),
        (r#"{"key":"k","text":1}"#, Some((INVALID, "/text"))),
        (r#"{"key":"k","bytes":"!"}"#, Some((INVALID, "/bytes"))),
        (r#"{"key":"k","path":"../a"}"#, Some((INVALID, "/path"))),
        (r#"{"key":"k","path":"$outputs/a"}"#, Some((INVALID, "/path"))),
        (r#"{"key":"k","text":"x","encoding":"HEX"}"#, Some((INVALID, "/encoding"))),
        (r#"{"key":"k","text":"x","encoding":1}"#, Some((INVALID, "/encoding"))),
    ] {
        let case = |name, inputs: String| match refused {
            None => good(name, inputs),
            Some((code, at)) => bad(name, inputs, code, at),
        };
        cases.push(case("crypto.sign", inputs.to_owned()));
        if let Some(rest) = inputs.strip_prefix("{") {
            cases.push(case("crypto.verify", format!(r#"{{"signature":"",{rest}"#)));
        }
    }
    for (more, refused) in [
        (r#""signature":"AAE=""#, None),
        (r#""signature":"00Ff","encoding":"hex","require":true"#, None),
        (r#""signature":"","require":null"#, None),
        (r#""require":true"#, Some((MISSING, "/signature"))),
        (r#""signature":null"#, Some((MISSING, "/signature"))),
        (r#""signature":null,"encoding":"hex""#, Some((MISSING, "/signature"))),
        (r#""signature":[0]"#, Some((INVALID, "/signature"))),
        (r#""signature":"%""#, Some((INVALID, "/signature"))),
        (r#""signature":"_-8=""#, Some((INVALID, "/signature"))),
        (r#""signature":"AAE=","encoding":"hex""#, Some((INVALID, "/signature"))),
        (r#""signature":"000","encoding":"hex""#, Some((INVALID, "/signature"))),
        (r#""signature":"0é","encoding":"hex""#, Some((INVALID, "/signature"))),
        (r#""signature":"","require":"yes""#, Some((INVALID, "/require"))),
        (r#""signature":"","require":1"#, Some((INVALID, "/require"))),
    ] {
        let inputs = format!(r#"{{"key":"k","text":"x",{more}}}"#);
        cases.push(match refused {
            None => good("crypto.verify", inputs),
            Some((code, at)) => bad("crypto.verify", inputs, code, at),
        });
    }
    cases
}
