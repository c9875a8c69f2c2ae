//! Good and bad inputs, block by block: only what a check lets through is ever accepted.

use super::*;

const INVALID: Code = Code::InvalidInput;
const MISSING: Code = Code::MissingRequiredField;

#[track_caller]
fn good(name: &str, inputs: &str) {
    let (_, entry) = find(name, true).expect(name);
    if let Err(fault) = check(entry, name, inputs) {
        panic!("{name} refused {inputs}: {fault:?}");
    }
}

#[track_caller]
fn bad(name: &str, inputs: &str, code: Code, at: &str) {
    let (_, entry) = find(name, true).expect(name);
    let fault = check(entry, name, inputs).expect_err(inputs);
    assert_presentable(&fault);
    assert_eq!((fault.code, pointer(&fault).as_str()), (code, at), "{name} {inputs}");
}

#[test]
fn good_inputs_pass() {
    for inputs in ["", "null", "{}", "[1,2]", r#""text""#, r#"{"a":{"b":[null]}}"#] {
        good("echo", inputs);
    }
    for inputs in ["", "null", " {} ", r#"{"ms":0}"#, r#"{"ms":100.0}"#, r#"{"ms":1e3}"#, r#"{"ms":null,"other":1}"#] {
        good("sleep", inputs);
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
        good("crypto.hash", inputs);
    }
    for inputs in [
        r#"{"path":"a","content":""}"#,
        r#"{"path":"a/b/c","bytes":""}"#,
        r#"{"path":"ünï/文.txt","content":"x","overwrite":true}"#,
        r#"{"path":"..a/...","content":"x","bytes":null,"overwrite":null}"#,
        r#"{"path":"a b:c*?","content":"x"}"#,
        r#"{"\u0070ath":"a","content":"\u0000"}"#,
    ] {
        good("fs.blob_put", inputs);
    }
    good("fs.blob_get", &json!({ "path": format!("{}/b", "x".repeat(255)) }).to_string());
    good("test.fail", r#"{"times":3,"code":"HTTP_5XX","message":"No luck."}"#);
    good("test.abort", r#"{"after_ms":60000}"#);
    good("test.eat", r#"{"mib":1}"#);
    good("test.panic", "{}");
}

#[test]
fn bad_inputs_are_refused_with_pointer_and_rule() {
    for inputs in ["[]", "1", r#""x""#, "{", r#"{"ms":}"#, "\u{feff}{}"] {
        bad("sleep", inputs, INVALID, "");
    }
    for value in ["-1", "86400001", "1.5", r#""100""#, "true", "[]", "{}", "1e300", "-0.5", "18446744073709551616"] {
        bad("sleep", &format!(r#"{{"ms":{value}}}"#), INVALID, "/ms");
    }

    bad("crypto.hash", "{}", MISSING, "/text");
    bad("crypto.hash", "null", MISSING, "/text");
    bad("crypto.hash", r#"{"text":null,"path":null}"#, MISSING, "/text");
    bad("crypto.hash", r#"{"text":"a","bytes":""}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"text":"a","path":"a"}"#, INVALID, "/path");
    bad("crypto.hash", r#"{"bytes":"","path":"a"}"#, INVALID, "/path");
    bad("crypto.hash", r#"{"text":1}"#, INVALID, "/text");
    bad("crypto.hash", r#"{"text":"\ud800"}"#, INVALID, "/text");
    bad("crypto.hash", r#"{"bytes":"!!!!"}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"bytes":"A"}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"bytes":"_-8="}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"bytes":"AA\nAA"}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"bytes":[0,1]}"#, INVALID, "/bytes");
    bad("crypto.hash", r#"{"path":"../x"}"#, INVALID, "/path");
    bad("crypto.hash", r#"{"text":"a","algorithm":"md5"}"#, INVALID, "/algorithm");
    bad("crypto.hash", r#"{"text":"a","algorithm":"SHA256"}"#, INVALID, "/algorithm");
    bad("crypto.hash", r#"{"text":"a","algorithm":256}"#, INVALID, "/algorithm");

    bad("fs.blob_put", "{}", MISSING, "/path");
    bad("fs.blob_put", r#"{"path":null,"content":"x"}"#, MISSING, "/path");
    bad("fs.blob_put", r#"{"path":"a"}"#, MISSING, "/content");
    bad("fs.blob_put", r#"{"path":"a","content":null}"#, MISSING, "/content");
    bad("fs.blob_put", r#"{"path":"a","content":"x","bytes":"eA=="}"#, INVALID, "/bytes");
    bad("fs.blob_put", r#"{"path":"a","content":{"x":1}}"#, INVALID, "/content");
    bad("fs.blob_put", r#"{"path":"a","bytes":"e A=="}"#, INVALID, "/bytes");
    bad("fs.blob_put", r#"{"path":"a","content":"x","overwrite":"yes"}"#, INVALID, "/overwrite");
    bad("fs.blob_put", r#"{"path":"a","content":"x","overwrite":1}"#, INVALID, "/overwrite");
    bad("fs.blob_put", r#"{"path":["a"],"content":"x"}"#, INVALID, "/path");
    bad("fs.blob_get", "{}", MISSING, "/path");
    bad("fs_blob_get", r#"{"path":1}"#, INVALID, "/path");

    bad("test.abort", r#"{"after_ms":60001}"#, INVALID, "/after_ms");
    bad("test.eat", r#"{"mib":0}"#, INVALID, "/mib");
    bad("test.panic", "[]", INVALID, "");
    bad("test.fail", r#"{"times":101}"#, INVALID, "/times");
    bad("test.fail", r#"{"code":"INVALID_INPUT"}"#, INVALID, "/code");
    bad("test.fail", r#"{"code":"NOPE"}"#, INVALID, "/code");
    bad("test.fail", &json!({ "message": "x".repeat(257) }).to_string(), INVALID, "/message");
}

#[test]
fn paths_that_could_leave_the_folder_or_are_ours_are_refused() {
    let long = "x".repeat(256);
    let longer = vec!["x".repeat(200); 6].join("/");
    let deep = vec!["d"; 33].join("/");
    for path in [
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
    ] {
        let inputs = json!({ "path": path, "content": "x" }).to_string();
        for name in ["fs.blob_put", "fs_blob_put", "fs.put", "fs.blob_get"] {
            bad(name, &inputs, INVALID, "/path");
        }
        bad("crypto.hash", &json!({ "path": path }).to_string(), INVALID, "/path");
    }
}
