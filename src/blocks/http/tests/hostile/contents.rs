//! What servers say of their answer: how it is encoded, what it is, where else it is, when to come again, and what to remember.

use std::io::Write;

use super::*;

pub(super) fn rows(field: &Field) -> Vec<Row> {
    [encodings(), bombs(), media(), redirects(&field.honest), waits(), cookies()].into_iter().flatten().collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(bytes).expect("memory");
    gzip.finish().expect("memory")
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    brotli::CompressorWriter::new(&mut out, 4_096, 9, 22).write_all(bytes).expect("memory");
    out
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory")
}

/// An answer that says it is encoded so.
fn encoded(name: &str, headers: &str, body: &[u8]) -> Row {
    let headers = format!("{headers}\r\n");
    row(Kind::Encoding, name, vec![Act::Hear, Act::answer("200 OK", &headers, body)])
}

/// The encoding does not hold: a POST was done all the same.
fn unreadable(row: Row) -> Row {
    row.fault(Code::ExecutionFailed, "").post(Effected::Applied)
}

fn encodings() -> Vec<Row> {
    let hello = || json!({ "text": "hello" });
    let (gz, br, zs) = (gzip(b"hello"), brotli(b"hello"), zstd(b"hello"));
    let mut wrong_sum = gz.clone();
    let at = wrong_sum.len() - 8;
    wrong_sum[at] ^= 1;
    let bad = |name: &str, headers: &str, body: &[u8]| unreadable(encoded(name, headers, body));
    vec![
        bad("one that nobody knows", "content-encoding: x-rot", b"uryyb"),
        bad("two in one header", "content-encoding: gzip, br", &gz),
        bad("two headers", "content-encoding: gzip\r\ncontent-encoding: gzip", &gzip(&gz)),
        bad("identity and gzip", "content-encoding: identity\r\ncontent-encoding: gzip", &gz),
        bad("gzip twice", "content-encoding: gzip, gzip", &gzip(&gz)),
        bad("compress", "content-encoding: compress", &gz),
        bad("a name in no encoding", "content-encoding: \u{e4}", b"hello"),
        bad("gzip that is text", "content-encoding: gzip", b"hello, I am no gzip at all"),
        bad("gzip that is br", "content-encoding: gzip", &br),
        bad("gzip with a wrong sum", "content-encoding: gzip", &wrong_sum),
        bad("gzip without its sum", "content-encoding: gzip", &gz[..gz.len() - 8]),
        bad("gzip of which only the magic comes", "content-encoding: gzip", &gz[..2]),
        bad("br that is text", "content-encoding: br", b"hello, I am no brotli at all"),
        bad("br that is noise", "content-encoding: br", &[0xff; 1_000]),
        bad("br that is cut", "content-encoding: br", &br[..br.len() - 1]),
        bad("zstd that is gzip", "content-encoding: zstd", &gz),
        bad("zstd that is cut", "content-encoding: zstd", &zs[..zs.len() - 1]),
        bad("deflate that is text", "content-encoding: deflate", b"hello, I am no zlib at all"),
        // Level 27 asks for 128 MiB; with one raw block of one byte.
        bad("zstd with a window of 128 MiB", "content-encoding: zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0x88, 9, 0, 0, b'x']),
        bad("zstd with a window of 2 TiB", "content-encoding: zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 9, 0, 0, b'x']),
        encoded("something behind the end of gzip", "content-encoding: gzip", &[&gz[..], b"hello"].concat())
            .fault(Code::ExecutionFailed, "")
            .done(hello()),
        encoded("capitals", "content-encoding: GZIP", &gz).done(hello()),
        encoded("no name", "content-encoding:", b"hello").done(hello()),
        encoded("identity", "content-encoding: identity", b"hello").done(hello()),
        encoded("gzip of nothing at all", "content-encoding: gzip", b"").done(json!({ "text": "", "size": 0 })),
        row(
            Kind::Encoding,
            "gzip of what is not there, to HEAD",
            vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 99\r\n\r\n"), Act::Last],
        )
        .with(json!({ "method": "HEAD" }))
        .done(json!({ "status": 200, "size": 0 }))
        .once(),
    ]
}

fn bombs() -> Vec<Row> {
    let zeros = vec![0; 32 << 20];
    let (gz, br, zs) = (gzip(&zeros), brotli(&zeros), zstd(&zeros));
    let bomb = |name: &str, encoding: &str, body: &[u8]| {
        unreadable(encoded(name, &format!("content-encoding: {encoding}"), body)).with(json!({ "bytes_max": 8 << 20 }))
    };
    // Only the input grows: nothing that is decoded ever reaches a limit.
    let nothing = |name: &str, encoding: &str, begin: &[u8], again: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\n\r\n");
        let again = again.repeat(65_536 / again.len());
        unreadable(row(
            Kind::Encoding,
            name,
            vec![Act::Hear, Act::Say([head.as_bytes(), begin].concat()), Act::Repeat(again, 1_000_000)],
        ))
        .alone()
    };
    vec![
        bomb("a bomb of gzip", "gzip", &gz),
        bomb("a bomb of br", "br", &br),
        bomb("a bomb of zstd", "zstd", &zs),
        // What is inside stays as it is: one layer is taken off and no more.
        encoded("a bomb in gzip in gzip", "content-encoding: gzip", &gzip(&gz)).done(json!({ "size": gz.len() })),
        row(Kind::Encoding, "a bomb for an error", vec![Act::Hear, Act::answer("500 Oh", "content-encoding: gzip\r\n", &gz)])
            .fault(Code::Http5xx, r#""status":500"#)
            .post(Effected::Unknown),
        // A header, and then stored blocks of no bytes that are never the last.
        nothing("gzip of nothing without end", "gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], &[0, 0, 0, 0xff, 0xff]),
        // The flag for a name, and then a name that has no end.
        nothing("gzip with a name without end", "gzip", &[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0xff], b"name"),
        // Frames that are to be skipped, of no bytes each.
        nothing("zstd of skipped frames without end", "zstd", &[], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]),
        // A window of 16 bits (one bit of nought), and then blocks of metadata of no bytes: 0, 11, 0, 00 and the byte's end.
        nothing("br of metadata without end", "br", &[0x0c], &[0x06]),
    ]
}

fn media() -> Vec<Row> {
    let media =
        |name: &str, headers: &str, body: &[u8]| row(Kind::Media, name, vec![Act::Hear, Act::answer("200 OK", headers, body)]);
    let json_as = |name: &str, body: &str| media(name, "content-type: application/json\r\n", body.as_bytes());
    // What another reader of the outputs would choke on is no JSON to us.
    let no_json = |name: &str, body: &str| json_as(name, body).done(json!({ "json": null, "text": body }));
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let unlike = |row: Row, response: &str| {
        row.with(json!({ "response": response })).fault(Code::ExecutionFailed, "/response").post(Effected::Applied)
    };
    vec![
        json_as("JSON that is HTML", "<html>").done(json!({ "json": null, "text": "<html>" })),
        json_as("JSON that is cut", r#"{"a":"#).done(json!({ "json": null, "text": r#"{"a":"# })),
        json_as("two of JSON", "{}{}").done(json!({ "json": null, "text": "{}{}" })),
        json_as("no JSON at all", "").done(json!({ "json": null, "text": "" })),
        json_as("JSON that is no number", "NaN").done(json!({ "json": null, "text": "NaN" })),
        media("JSON that is not text", "content-type: application/json\r\n", b"\"\xff\"")
            .done(json!({ "json": null, "bytes": "Iv8i" })),
        no_json("JSON too deep for most readers", &deep(400)),
        no_json("JSON too deep for any reader", &deep(400_000)),
        no_json("JSON that is too deep only where it is put", &deep(127)),
        json_as("JSON as deep as is taken", &deep(100)).done(json!({ "text": null })),
        no_json("JSON with half a character", r#""\ud800""#),
        no_json("JSON with a number too large for any", "1e999"),
        unlike(json_as("JSON too deep where JSON is wanted", &deep(400)), "json"),
        unlike(json_as("half a character where JSON is wanted", r#"{"a":"\udc00"}"#), "json"),
        unlike(media("HTML where JSON is wanted", "content-type: text/html\r\n", b"<html>"), "json"),
        unlike(media("an image where text is wanted", "content-type: text/plain\r\n", b"\x89PNG\xff"), "text"),
        media("an image that is text", "content-type: image/png\r\n", b"hello").done(json!({ "text": "hello" })),
        media("text in another encoding", "content-type: text/plain; charset=utf-16\r\n", b"\xff\xfeh\0")
            .done(json!({ "bytes": "//5oAA==" })),
        media("no type that one can read", "content-type: \u{1f4a9};;;=,\r\n", b"hello").done(json!({ "text": "hello" })),
        media("two types", "content-type: text/plain\r\ncontent-type: application/json\r\n", b"[1]")
            .done(json!({ "text": "[1]" })),
        media("text with a zero", "content-type: text/plain\r\n", b"a\0b").done(json!({ "text": "a\0b" })),
    ]
}

/// Every hop takes a connection of its own.
fn hops(name: &str, status: &str, location: &str, hops: usize) -> Row {
    let hop = vec![Act::Hear, Act::answer(status, &format!("location: {location}\r\n"), "")];
    row(Kind::Redirect, name, Vec::new()).scripts(vec![hop; hops])
}

fn redirects(honest: &Server) -> Vec<Row> {
    let denied = |name: &str, location: &str, words: &'static str| {
        hops(name, "302 Found", location, 1).fault(Code::PermissionDenied, words).post(Effected::Unknown)
    };
    let port = honest.address.port();
    let lab = |row: Row| row.with(json!({ "connector": "lab" }));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let other = |status: &str| {
        says(
            Kind::Redirect,
            format!("{status} with a location"),
            format!("HTTP/1.1 {status}\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"),
        )
    };
    vec![
        says(Kind::Redirect, "no location", "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n")
            .fault(Code::HttpError, r#""status":302"#)
            .post(Effected::Unknown),
        hops("an empty location", "302 Found", "", 6).fault(Code::HttpError, r#""redirects":5"#).post(Effected::Unknown),
        hops("to itself", "307 Temporary", "/first", 6).fault(Code::HttpError, r#""redirects":5"#).post(Effected::Unknown),
        hops("to itself, as often as can be asked for", "302 Found", "?again", 11)
            .with(json!({ "redirects": 10 }))
            .fault(Code::HttpError, r#""redirects":10"#)
            .post(Effected::Unknown),
        denied("with a user", "http://user:password@127.0.0.1/", "userinfo"),
        denied("with an empty user", "http://@127.0.0.1/", "userinfo"),
        denied("to ftp", "ftp://127.0.0.1/x", "scheme"),
        denied("to a file", "file:///etc/passwd", "scheme"),
        denied("to a script", "javascript:alert(1)", "scheme"),
        denied("to data", "data:text/plain,hello", "scheme"),
        denied("to gopher", "gopher://127.0.0.1:6379/_FLUSHALL", "scheme"),
        denied("to no host", "http:///x", "host"),
        denied("to a port that is none", "http://127.0.0.1:99999/", "port"),
        denied("with a backslash", "http:\\\\127.0.0.1\\x", "spelling"),
        denied("with a tab", "http://127.0.0.1/\tx", "spelling"),
        denied("without slashes", "http:127.0.0.1/", "spelling"),
        denied("longer than any", &format!("/{}", "a".repeat(9_000)), "length"),
        denied("to a private address", "http://10.0.0.1/", "egress private"),
        denied("to a private address in one number", "http://167772161/", "egress private"),
        denied("to a private address in octal", "http://012.0.0.1/", "egress private"),
        denied("to a private address in another family", "http://[::ffff:10.0.0.1]/", "egress private"),
        denied("to a private address by no scheme", "//10.0.0.1/", "egress private"),
        denied("to where clouds keep their secrets", "http://169.254.169.254/latest/meta-data/", "egress metadata"),
        denied("to a name that only we know", "http://vault/", "egress name/single-label"),
        lab(denied("to a neighbour that is not open", &format!("http://127.0.0.2:{port}/"), "egress loopback")),
        lab(denied("to ourselves by a name", &format!("http://localhost:{port}/"), "egress name/localhost")),
        lab(denied("to ourselves by no address", &format!("http://0.0.0.0:{port}/"), "egress")),
        lab(denied("to ourselves in another family", &format!("http://[::1]:{port}/"), "egress loopback")),
        // A POST that was answered with "see there" was done, whatever is there.
        hops("a 303 to a private address", "303 See Other", "http://10.0.0.1/", 1)
            .fault(Code::PermissionDenied, "egress private")
            .post(Effected::Unknown),
        hops("to where nobody listens", "302 Found", &format!("http://{nobody}/"), 1)
            .fault(Code::ConnectionError, "")
            .post(Effected::Unknown),
        hops("a 303 to where nobody listens", "303 See Other", &format!("http://{nobody}/"), 1)
            .fault(Code::ConnectionError, "")
            .post(Effected::Unknown),
        hops("a 307 to where nobody listens", "307 Temporary", &format!("http://{nobody}/"), 1)
            .fault(Code::ConnectionError, "")
            .post(Effected::Unknown),
        row(Kind::Redirect, "a 303 to what is not there", Vec::new())
            .scripts(vec![
                vec![Act::Hear, Act::answer("303 See Other", "location: /gone\r\n", "")],
                vec![Act::Hear, Act::answer("404 Not Found", "", "")],
            ])
            .fault(Code::HttpError, r#""status":404"#)
            .post(Effected::Unknown),
        hops("with a new line in it", "302 Found", "/a%0d%0aX-Evil:%20y", 1).done(json!({ "text": "/a%0d%0aX-Evil:%20y" })),
        says(Kind::Redirect, "with a CR in it", "HTTP/1.1 302 Found\r\nlocation: /a\rx\r\ncontent-length: 0\r\n\r\n")
            .broken("invalid HTTP"),
        hops("with characters that are none", "302 Found", "/\u{e4}", 1)
            .fault(Code::NetworkError, "not readable")
            .post(Effected::Unknown),
        hops("to itself with a fragment", "302 Found", "/there#part", 1).done(json!({ "text": "/there", "redirects": 1 })),
        hops("two locations", "302 Found", "/one\r\nlocation: /two", 1).done(json!({ "text": "/one" })),
        row(Kind::Redirect, "with a body without end", Vec::new())
            .scripts(vec![vec![
                Act::Hear,
                Act::say("HTTP/1.1 302 Found\r\nlocation: /there\r\n\r\n"),
                Act::Repeat(vec![b'a'; 65_536], 1_000_000),
            ]])
            .done(json!({ "text": "/there", "redirects": 1 })),
        row(Kind::Redirect, "to itself with a cookie", Vec::new())
            .scripts(vec![vec![Act::Hear, Act::answer("302 Found", "location: /first\r\nset-cookie: seen=1\r\n", "")]; 3])
            .with(json!({ "redirects": 2 }))
            .fault(Code::HttpError, r#""redirects":2"#),
        other("300 Multiple Choices").fault(Code::HttpError, "").post(Effected::Unknown),
        other("304 Not Modified").fault(Code::HttpError, "").post(Effected::Unknown),
        other("305 Use Proxy").fault(Code::HttpError, "").post(Effected::Unknown),
        other("201 Created").done(json!({ "status": 201 })),
    ]
}

fn waits() -> Vec<Row> {
    const DAY_MS: u64 = 24 * 3_600_000;
    let later = |value: &str, ms: Option<u64>| {
        let name = format!("{:.40}", value.escape_debug().to_string());
        row(Kind::RetryAfter, name, vec![Act::Hear, Act::answer("503 Busy", &format!("retry-after: {value}\r\n"), "")])
            .fault(Code::Http5xx, r#""status":503"#)
            .post(Effected::Unknown)
            .retry_after(ms)
    };
    vec![
        later("7", Some(7_000)),
        later("0", Some(1)),
        later("-5", None),
        later("7.5", None),
        later("soon", None),
        later("", None),
        later("\u{e4}", None),
        later("9999999999999", Some(DAY_MS)),
        later(&u64::MAX.to_string(), Some(DAY_MS)),
        later(&"9".repeat(4_000), None),
        later("Wed, 21 Oct 2015 07:28:00 GMT", Some(1)),
        later("Fri, 31 Dec 9999 23:59:59 GMT", Some(DAY_MS)),
        later("Wed, 99 Oct 2015 07:28:00 GMT", None),
        later("Thu, 21 Oct 2015 07:28:00 GMT", None),
        later("2015-10-21T07:28:00Z", None),
        later("7\r\nretry-after: 9", Some(7_000)),
    ]
}

fn cookies() -> Vec<Row> {
    let cookie = |name: &str, lines: &str| row(Kind::Cookie, name, vec![Act::Hear, Act::answer("200 OK", lines, "hello")]);
    let shown = || json!({ "text": "hello" });
    vec![
        cookie("one", "set-cookie: session=secret; HttpOnly\r\n").done(shown()),
        cookie("a hundred", &"set-cookie: a=b\r\n".repeat(100)).done(shown()),
        cookie("a thousand", &"set-cookie: a=b\r\n".repeat(1_000)).broken("too large"),
        cookie("one as long as most of a head", &format!("set-cookie: a={}\r\n", "b".repeat(60_000))).done(shown()),
        cookie("for every domain there is", "set-cookie: a=b; domain=.com; path=/; max-age=99999999999\r\n").done(shown()),
    ]
}
