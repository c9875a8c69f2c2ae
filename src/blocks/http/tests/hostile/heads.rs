//! What servers do before the body: heads that are slow, endless or none, status lines, header fields, and what comes before an
//! answer.

use super::*;

pub(super) fn rows() -> Vec<Row> {
    [heads(), statuses(), fields(), interim()].into_iter().flatten().collect()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn ok() -> Value {
    json!({ "status": 200, "text": "ok" })
}

fn heads() -> Vec<Row> {
    let head = |name: &str, text: &str| says(Kind::Head, name, text);
    let slow = |name: &str, script: &[Act]| {
        row(Kind::Head, name, [&[Act::Hear], script].concat()).with(brief()).broken(r#""phase":"first_byte""#)
    };
    vec![
        slow("silence", &[Act::Last]),
        slow("half a head and then nothing", &[Act::say("HTTP/1.1 200 OK\r\ncontent-le"), Act::Last]),
        slow("a head that drips", &[Act::Drip(OK.as_bytes().repeat(8), 20)]),
        slow("a line that drips blanks", &[Act::say("HTTP/1.1 200 OK\r\nx: "), Act::Drip(vec![b' '; 300], 10)]),
        row(
            Kind::Head,
            "headers without end",
            vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\n"), Act::Repeat(b"x-a: b\r\n".repeat(64), 100_000)],
        )
        .broken("message head is too large"),
        row(
            Kind::Head,
            "a header without end",
            vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\nx: "), Act::Repeat(vec![b'a'; 8_192], 100_000)],
        )
        .broken("message head is too large"),
        row(
            Kind::Head,
            "a reason without end",
            vec![Act::Hear, Act::say("HTTP/1.1 200 "), Act::Repeat(vec![b'a'; 8_192], 100_000)],
        )
        .broken("message head is too large"),
        row(Kind::Head, "blank lines without end", vec![Act::Hear, Act::Repeat(b"\r\n".repeat(4_096), 100_000)])
            .broken("message head is too large"),
        head("blank lines before the head", &format!("\r\n\r\n{OK}")).done(ok()),
        says(Kind::Head, "noise", (0..=255_u8).rev().collect::<Vec<u8>>()).broken("invalid HTTP"),
        says(Kind::Head, "zeros", [0; 4_096]).broken("invalid HTTP"),
        head("an answer of HTTP/0.9", "<html>hello</html>").broken("invalid HTTP"),
        head("HTTP/1.2", &OK.replace("1.1", "1.2")).broken("invalid HTTP version"),
        head("HTTP/2.0 in words", &OK.replace("1.1", "2.0")).broken("invalid HTTP version"),
        head("HTTP/3", &OK.replace("1.1", "3")).broken("invalid HTTP version"),
        head("HTTP/11.1", &OK.replace("1.1", "11.1")).broken("invalid HTTP version"),
        head("http in small letters", &OK.replace("HTTP", "http")).broken("invalid HTTP version"),
        head("another protocol's name", &OK.replace("HTTP", "ICAP")).broken("invalid HTTP"),
        head("a server of SSH", "SSH-2.0-OpenSSH_9.6\r\n").broken("invalid HTTP"),
        head("a server of SMTP", "220 mail.example ESMTP\r\n").broken("invalid HTTP"),
        head("a request for an answer", "GET / HTTP/1.1\r\nhost: x\r\n\r\n").broken("invalid HTTP"),
        head("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").broken("invalid HTTP"),
        says(Kind::Head, "a frame of HTTP/2", frames::settings(&[])).broken("invalid HTTP"),
        says(Kind::Head, "an alert of TLS", secure::ALERT).broken("invalid HTTP"),
        head("HTTP/1.0 up to the close", "HTTP/1.0 200 OK\r\n\r\nold").done(json!({ "version": "1.0", "text": "old" })),
    ]
}

fn statuses() -> Vec<Row> {
    let status = |name: &str, line: &str| says(Kind::Status, name, format!("{line}\r\ncontent-length: 2\r\n\r\nok"));
    vec![
        status("no reason", "HTTP/1.1 200").done(ok()),
        status("an empty reason", "HTTP/1.1 200 ").done(ok()),
        status("two digits", "HTTP/1.1 99 OK").broken("invalid HTTP status"),
        status("four digits", "HTTP/1.1 1000 OK").broken("invalid HTTP status"),
        status("a negative one", "HTTP/1.1 -20 OK").broken("invalid HTTP status"),
        status("letters", "HTTP/1.1 2OO OK").broken("invalid HTTP status"),
        status("a plus", "HTTP/1.1 +20 OK").broken("invalid HTTP status"),
        status("zero", "HTTP/1.1 000 OK").broken("invalid HTTP status"),
        status("under a hundred", "HTTP/1.1 099 OK").broken("invalid HTTP status"),
        status("none", "HTTP/1.1 OK").broken("invalid HTTP"),
        status("two blanks", "HTTP/1.1  200 OK").broken("invalid HTTP"),
        // RFC 9110, section 15: one that is out of range counts as a server's error.
        status("out of range", "HTTP/1.1 999 Request denied").fault(Code::Http5xx, r#""status":999"#).post(Effected::Unknown),
        says(Kind::Status, "a reason in no encoding", b"HTTP/1.1 200 \xe4\xff\r\ncontent-length: 2\r\n\r\nok").done(ok()),
        says(Kind::Status, "a reason with a zero", b"HTTP/1.1 200 a\0b\r\ncontent-length: 2\r\n\r\nok").broken("invalid HTTP"),
        status("a reason of half a head", &format!("HTTP/1.1 200 {}", "a".repeat(32_000))).done(ok()),
    ]
}

fn fields() -> Vec<Row> {
    let bytes = |name: &str, lines: &[u8]| {
        let head = [b"HTTP/1.1 200 OK\r\n", lines, b"\r\ncontent-length: 2\r\n\r\nok"].concat();
        says(Kind::Field, name, head)
    };
    let field = |name: &str, lines: &str| bytes(name, lines.as_bytes());
    let many = |count: usize| (0..count).map(|at| format!("x-{at}: y")).collect::<Vec<_>>().join("\r\n");
    let one = |name: &str, value: Value| json!({ "status": 200, "text": "ok", "headers": { name: value } });
    vec![
        says(Kind::Field, "lines that end with LF alone", OK.replace('\r', "")).done(ok()),
        says(Kind::Field, "lines that end with CR alone", OK.replace('\n', "")).broken("invalid HTTP"),
        field("a CR in a value", "x: a\rb").broken("invalid HTTP"),
        field("a folded line", "x: a\r\n b").broken("invalid HTTP header"),
        field("a line that begins with a blank", " x: a").broken("invalid HTTP header"),
        field("a blank before the colon", "x : a").broken("invalid HTTP header"),
        field("a blank in a name", "x y: a").broken("invalid HTTP header"),
        field("no colon", "just words").broken("invalid HTTP header"),
        field("no name", ": a").broken("invalid HTTP header"),
        field("no value", "x:").done(one("x", json!(""))),
        bytes("a zero in a value", b"x: a\0b").broken("invalid HTTP header"),
        bytes("a zero in a name", b"x\0y: a").broken("invalid HTTP header"),
        bytes("a bell in a value", b"x: a\x07b").broken("invalid HTTP header"),
        bytes("a delete in a value", b"x: a\x7fb").broken("invalid HTTP header"),
        bytes("a value in no encoding", b"x: a\xff\xfeb").done(one("x", json!("a\u{fffd}\u{fffd}b"))),
        bytes("a value in UTF-8", "x: ä€".as_bytes()).done(one("x", json!("ä€"))),
        bytes("a name in UTF-8", "ä: x".as_bytes()).broken("invalid HTTP header"),
        field("a name that JSON has to escape", "x\"y: a").broken("invalid HTTP header"),
        field("one header a hundred times", &["x: y"; 100].join("\r\n")).done(one("x", json!(vec!["y"; 100]))),
        field("as many headers as are allowed", &many(127)).done(ok()),
        field("one more than are allowed", &many(128)).broken("too large"),
        field("ten thousand headers", &many(10_000)).broken("too large"),
        field("a value of most of a head", &format!("x: {}", "a".repeat(60_000))).done(ok()),
        field("a value of more than a head", &format!("x: {}", "a".repeat(70_000))).broken("message head is too large"),
        field("a connection that both closes and lives", "connection: close\r\nconnection: keep-alive").done(ok()),
        field("a connection that is kept for ever", "keep-alive: timeout=99999999999, max=-1").done(ok()),
        field("headers that are ours", "host: elsewhere\r\nproxy-connection: x\r\nupgrade: h2c\r\ntrailer: content-length")
            .done(ok()),
    ]
}

fn interim() -> Vec<Row> {
    let before = |name: &str, text: &str| says(Kind::Interim, name, format!("{text}{OK}"));
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
    vec![
        before("100 that nobody waits for", "HTTP/1.1 100 Continue\r\n\r\n").done(ok()),
        before("early hints", early).done(ok()),
        before("one of an unknown number", "HTTP/1.1 199 What\r\n\r\n").done(ok()),
        before("a thousand of them", &early.repeat(1_000)).done(ok()),
        row(Kind::Interim, "no end of them", vec![Act::Hear, Act::Repeat(early.repeat(1_000).into_bytes(), 1_000_000)])
            .with(brief())
            .broken("first_byte")
            .alone(),
        row(Kind::Interim, "no end of the shortest", vec![Act::Hear, Act::Repeat(b"HTTP/1.1 100\n\n".repeat(4_096), 1_000_000)])
            .with(brief())
            .broken("first_byte")
            .alone(),
        row(Kind::Interim, "a drip of them", vec![Act::Hear, Act::Drip(early.repeat(100).into_bytes(), 1)])
            .with(brief())
            .broken("first_byte"),
        row(Kind::Interim, "only one", vec![Act::Hear, Act::say(early), Act::Last]).with(brief()).broken("first_byte"),
        says(Kind::Interim, "only one, and the end", early).broken("before message completed"),
        before("one with a length and a body", "HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello").broken("invalid HTTP"),
        row(
            Kind::Interim,
            "another protocol that nobody asked for",
            vec![
                Act::Hear,
                Act::say("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
                Act::Last,
            ],
        )
        .fault(Code::HttpError, r#""status":101"#)
        .post(Effected::Unknown),
        row(
            Kind::Interim,
            "another protocol, and an answer in it",
            vec![
                Act::Hear,
                Act::say(format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{OK}")),
                Act::Last,
            ],
        )
        .fault(Code::HttpError, r#""status":101"#)
        .post(Effected::Unknown),
    ]
}
