//! What servers do with a body: lengths and chunks that lie, what comes at the wrong moment, and connections that are cut.

use super::*;

pub(super) fn rows() -> Vec<Row> {
    [lengths(), chunks(), transfers(), orders(), cuts(), bodies()].into_iter().flatten().collect()
}

fn hello() -> Value {
    json!({ "status": 200, "text": "hello" })
}

fn lengths() -> Vec<Row> {
    let length = |name: &str, lines: &str| says(Kind::Length, name, format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nhello"));
    vec![
        length("the same twice", "content-length: 5\r\ncontent-length: 5").done(hello()),
        length("the same twice in one line", "content-length: 5, 5").done(hello()).broken(""),
        length("two that differ", "content-length: 5\r\ncontent-length: 6").broken("invalid content-length"),
        length("two that differ in one line", "content-length: 5, 6").broken("invalid content-length"),
        length("a negative one", "content-length: -1").broken("invalid content-length"),
        length("a plus", "content-length: +5").broken("invalid content-length"),
        length("a unit", "content-length: 5 bytes").broken("invalid content-length"),
        length("in hexadecimal", "content-length: 0x5").broken("invalid content-length"),
        length("a fraction", "content-length: 5.0").broken("invalid content-length"),
        length("none in it", "content-length:").broken("invalid content-length"),
        length("more digits than fit", "content-length: 99999999999999999999999999").broken("invalid content-length"),
        length("all that fits", &format!("content-length: {}", u64::MAX)).broken(""),
        length("almost all that fits", &format!("content-length: {}", u64::MAX - 2))
            .fault(Code::NetworkError, "before message completed")
            .fault(Code::NetworkError, "end of file before message length reached")
            .post(Effected::Applied),
        says(
            Kind::Length,
            "a length beside chunks",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .done(hello())
        .broken(""),
        says(
            Kind::Length,
            "chunks beside a length",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 30\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .done(hello())
        .broken(""),
        length("none at all", "x: y").done(hello()),
    ]
}

/// An answer in chunks.
fn chunked(name: &str, body: &str) -> Row {
    says(Kind::Chunk, name, format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"))
}

/// Whose head has come when it goes wrong: a POST was done.
fn broken_after(row: Row, words: &'static str) -> Row {
    row.fault(Code::NetworkError, words).post(Effected::Applied)
}

fn chunks() -> Vec<Row> {
    let bad = |name: &str, body: &str| broken_after(chunked(name, body), "");
    let endless = |name: &str, text: &str, again: Vec<u8>| {
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{text}");
        row(Kind::Chunk, name, vec![Act::Hear, Act::say(head), Act::Repeat(again, 1_000_000)])
    };
    let end = "\r\n0\r\n\r\n";
    vec![
        bad("a size that is none", &format!("zz\r\nhello{end}")),
        bad("a negative size", &format!("-5\r\nhello{end}")),
        bad("a size with its base", &format!("0x5\r\nhello{end}")),
        bad("a size with a plus", &format!("+5\r\nhello{end}")),
        bad("a blank before the size", &format!(" 5\r\nhello{end}")),
        bad("no size", &format!("\r\nhello{end}")),
        bad("a size larger than the body", "ffffffffffffffff\r\nhello"),
        bad("a size of more digits than fit", &format!("fffffffffffffffff\r\nhello{end}")),
        bad("a size that ends with LF alone", &format!("5\nhello{end}")),
        bad("no line's end after a chunk", "5\r\nhello0\r\n\r\n"),
        bad("a chunk longer than its size", &format!("4\r\nhello{end}")),
        bad("a chunk shorter than its size", &format!("6\r\nhello{end}")),
        bad("no last chunk", "5\r\nhello\r\n"),
        bad("a last chunk without its end", "5\r\nhello\r\n0\r\n"),
        bad("a cut in a size", "5\r\nhello\r\n1"),
        broken_after(
            row(
                Kind::Chunk,
                "no last chunk, and no end",
                vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"), Act::Last],
            )
            .with(brief()),
            r#""phase":"stall""#,
        ),
        chunked("extensions", &format!("5;a=b;c=\"d\"\r\nhello{end}")).done(hello()),
        chunked("a size with many zeros", &format!("{}5\r\nhello{end}", "0".repeat(200))).done(hello()),
        chunked("a size in capitals", "A\r\n0123456789\r\n0\r\n\r\n").done(json!({ "text": "0123456789" })),
        chunked("trailers", "5\r\nhello\r\n0\r\nx-late: y\r\n\r\n")
            .done(json!({ "text": "hello", "headers": { "x-late": null } })),
        chunked("trailers that lie about the body", "5\r\nhello\r\n0\r\ncontent-length: 9\r\nset-cookie: a=b\r\n\r\n")
            .done(json!({ "text": "hello", "headers": { "content-length": null, "set-cookie": null } })),
        bad("trailers that are none", "5\r\nhello\r\n0\r\nno colon\r\n\r\n"),
        broken_after(endless("an extension without end", "5;", vec![b'a'; 8_192]), ""),
        broken_after(endless("trailers without end", "5\r\nhello\r\n0\r\n", b"x: y\r\n".repeat(1_000)), ""),
        broken_after(endless("a size of zeros without end", "", vec![b'0'; 65_536]).with(brief()), "").alone(),
        endless("the smallest chunks without end", "", b"1\r\na\r\n".repeat(4_096))
            .with(json!({ "bytes_max": 100_000 }))
            .fault(Code::ExecutionFailed, "/bytes_max")
            .post(Effected::Applied)
            .alone(),
        row(
            Kind::Chunk,
            "in HTTP/1.0",
            vec![Act::Hear, Act::say(format!("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello{end}"))],
        )
        .broken(""),
    ]
}

/// Codings that nobody asked for: what comes is not the content, and no step may take it for that.
fn transfers() -> Vec<Row> {
    let coded = |coding: &str| {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        says(Kind::Chunk, format!("the coding {coding:?}"), text)
    };
    let unknown = |coding: &str| coded(coding).fault(Code::ExecutionFailed, "encoding").post(Effected::Applied);
    vec![
        coded("Chunked").done(hello()),
        coded(" chunked ").done(hello()),
        unknown("chunked, gzip"),
        unknown("gzip, chunked"),
        unknown("gzip"),
        unknown("xchunked"),
        unknown("chunked, chunked"),
        unknown("chunked;q=1"),
        unknown("\"chunked\""),
    ]
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";

fn orders() -> Vec<Row> {
    let order = |name: &str, script: Vec<Act>| row(Kind::Order, name, script);
    let large = json!({ "text": "x".repeat(8 << 20), "first_byte_ms": 500 });
    let early = |name: &str, script: Vec<Act>| order(name, script).with(large.clone());
    let (hear, last) = (Act::Hear, Act::Last);
    vec![
        // Before the request is written it is not sent; after that it is the answer. Both are true.
        order("an answer before any request", vec![Act::say(POISON), Act::Wait(50)])
            .done(json!({ "text": "poison" }))
            .broken("")
            .post(Effected::None)
            .pause(120),
        order("an answer behind the answer", vec![hear.clone(), Act::say([HELLO, POISON].concat()), last.clone()]).done(hello()),
        order(
            "an answer behind the answer, later",
            vec![hear.clone(), Act::say(HELLO), Act::Wait(30), Act::say(POISON), last.clone()],
        )
        .done(hello())
        .pause(100),
        order("noise behind the answer", vec![hear.clone(), Act::say(HELLO), Act::say([0; 100_000]), last.clone()]).done(hello()),
        order("a blank line behind the answer", vec![hear.clone(), Act::say([HELLO, "\r\n"].concat()), last.clone()])
            .done(hello()),
        order(
            "an answer behind the last chunk",
            vec![
                hear.clone(),
                Act::say(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{POISON}")),
                last.clone(),
            ],
        )
        .done(hello()),
        order(
            "an answer as the body of one to HEAD",
            vec![
                hear.clone(),
                Act::say(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{POISON}", POISON.len())),
                last.clone(),
            ],
        )
        .with(json!({ "method": "HEAD" }))
        .done(json!({ "status": 200, "size": 0 })),
        order(
            "an answer as the body of a 204",
            vec![
                hear.clone(),
                Act::say(format!("HTTP/1.1 204 No Content\r\ncontent-length: {}\r\n\r\n{POISON}", POISON.len())),
                last.clone(),
            ],
        )
        .done(json!({ "status": 204, "size": 0 })),
        order(
            "an answer as the body of a 304",
            vec![
                hear.clone(),
                Act::say(format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {}\r\n\r\n{POISON}", POISON.len())),
                last.clone(),
            ],
        )
        .with(json!({ "expect": 304 }))
        .done(json!({ "status": 304, "size": 0 })),
        order("an answer behind an early one", vec![Act::HearHead, Act::say([HELLO, POISON].concat()), last.clone()])
            .with(json!({ "text": "x" }))
            .done(hello()),
        early(
            "a refusal before the body is read",
            vec![
                Act::HearHead,
                Act::say("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nno!"),
                Act::Wait(300),
            ],
        )
        .fault(Code::HttpError, r#""status":413"#)
        .post(Effected::None),
        early(
            "a refusal before the body is read, and a reset",
            vec![Act::HearHead, Act::say("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!"), Act::Reset],
        )
        .fault(Code::HttpError, r#""status":413"#)
        .fault(Code::NetworkError, "")
        .post(Effected::None)
        .post(Effected::Unknown),
        // What is still being sent is no connection to send the next request on.
        early("an answer before the body is read, and no more reading", vec![Act::HearHead, Act::say(HELLO), Act::Wait(3_000)])
            .done(hello())
            .pause(20),
        early("nothing of the body is read", vec![Act::HearHead, Act::Wait(700)])
            .fault(Code::NetworkError, "first_byte")
            .post(Effected::Unknown),
        early("a reset while the body is sent", vec![Act::HearHead, Act::Reset])
            .fault(Code::NetworkError, "")
            .post(Effected::Unknown),
        early("a half-close while the body is sent", vec![Act::HearHead, Act::Half, Act::Wait(300)])
            .fault(Code::NetworkError, "")
            .post(Effected::Unknown),
    ]
}

fn cuts() -> Vec<Row> {
    let cut = |name: &str, script: Vec<Act>| row(Kind::Cut, name, script);
    let (hear, last) = (Act::Hear, Act::Last);
    let half = Act::say("HTTP/1.1 200 OK\r\ncontent-le");
    let body = Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello");
    vec![
        // Whether anything was sent by then is a matter of microseconds.
        cut("a close at once", vec![]).broken("").post(Effected::None),
        cut("a reset at once", vec![Act::Reset]).broken("").fault(Code::ConnectionError, "").post(Effected::None),
        cut("a close before the head", vec![hear.clone()]).broken(""),
        cut("a reset before the head", vec![hear.clone(), Act::Reset]).broken(""),
        cut("a close in the request", vec![Act::HearHead]).broken(""),
        cut("a close in the head", vec![hear.clone(), half.clone()]).broken(""),
        cut("a reset in the head", vec![hear.clone(), half, Act::Reset]).broken(""),
        cut("a half-close before the head", vec![hear.clone(), Act::Half, last.clone()]).broken(""),
        cut("a half-close at once", vec![Act::Half, last.clone()]).broken("").post(Effected::None),
        broken_after(cut("a close in the body", vec![hear.clone(), body.clone()]), ""),
        broken_after(cut("a reset in the body", vec![hear.clone(), body.clone(), Act::Wait(20), Act::Reset]), ""),
        broken_after(cut("a half-close in the body", vec![hear.clone(), body, Act::Half, last.clone()]), ""),
        cut("a half-close after the answer", vec![hear.clone(), Act::say(HELLO), Act::Half, last.clone()]).done(hello()),
        cut("a reset after the answer", vec![hear.clone(), Act::say(HELLO), Act::Wait(20), Act::Reset]).done(hello()).pause(60),
        cut("a close as the end of the body", vec![hear.clone(), Act::say("HTTP/1.1 200 OK\r\n\r\nhello")]).done(hello()),
        broken_after(
            cut(
                "a reset for the end of the body",
                vec![hear, Act::say("HTTP/1.1 200 OK\r\n\r\nhello"), Act::Wait(20), Act::Reset],
            ),
            "",
        ),
    ]
}

fn bodies() -> Vec<Row> {
    let body = |name: &str, script: Vec<Act>| row(Kind::Body, name, [vec![Act::Hear], script].concat());
    let too_large = |row: Row| row.fault(Code::ExecutionFailed, "/bytes_max").post(Effected::Applied);
    let endless = |head: &str| vec![Act::say(head), Act::Repeat(vec![b'a'; 65_536], 1_000_000)];
    let drip = |status: &str| {
        vec![Act::say(format!("HTTP/1.1 {status}\r\ncontent-length: 9000\r\n\r\n")), Act::Drip(vec![b'a'; 200], 20)]
    };
    vec![
        body("longer than it says", vec![Act::say([HELLO, " and more"].concat())]).done(hello()),
        body("something where there is nothing", vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nhello")])
            .done(json!({ "text": "", "size": 0 })),
        too_large(body("without end, by its length", endless("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"))),
        too_large(body("without end, up to the close", endless("HTTP/1.1 200 OK\r\n\r\n"))),
        too_large(body("without end, where only its size is wanted", endless("HTTP/1.1 200 OK\r\n\r\n")))
            .with(json!({ "response": "none" })),
        too_large(body("a byte more than is taken", vec![Act::say(HELLO)])).with(json!({ "bytes_max": 4 })),
        body("no more than is taken", vec![Act::say(HELLO)]).with(json!({ "bytes_max": 5 })).done(hello()),
        broken_after(
            body("stops", vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"), Act::Last]).with(brief()),
            r#""phase":"stall""#,
        ),
        body("drips for longer than a try", drip("200 OK"))
            .with(json!({ "stall_ms": 200, "attempt_ms": 300 }))
            .fault(Code::NetworkError, r#""phase":"attempt""#)
            .post(Effected::Unknown)
            .post(Effected::Applied),
        body(
            "none of what it says, to HEAD",
            vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"), Act::Hear, Act::Echo],
        )
        .with(json!({ "method": "HEAD" }))
        .done(json!({ "status": 200, "size": 0 })),
        body(
            "chunks that never come, to HEAD",
            vec![Act::say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), Act::Hear, Act::Echo],
        )
        .with(json!({ "method": "HEAD" }))
        .done(json!({ "status": 200, "size": 0 })),
        body("one with a 205", vec![Act::say("HTTP/1.1 205 Reset Content\r\ncontent-length: 5\r\n\r\nhello")])
            .done(json!({ "status": 205 })),
        body("an error's without end", endless("HTTP/1.1 404 Not Found\r\n\r\n"))
            .fault(Code::HttpError, r#""status":404"#)
            .post(Effected::None),
        body("an error's that is cut", vec![Act::say("HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nhello")])
            .fault(Code::HttpError, r#""body":"hello""#)
            .post(Effected::None),
        body("an error's that stops", vec![Act::say("HTTP/1.1 500 Oh\r\ncontent-length: 9\r\n\r\nhello"), Act::Last])
            .with(brief())
            .fault(Code::Http5xx, r#""body":"hello""#)
            .post(Effected::Unknown),
        // What went wrong is told in any case, and not after the slowest excerpt that one can send.
        body("an error's that drips", drip("404 Not Found"))
            .with(json!({ "stall_ms": 200 }))
            .fault(Code::HttpError, r#""status":404"#)
            .post(Effected::None),
        body("an error's that drips for longer than a try", drip("404 Not Found"))
            .with(json!({ "stall_ms": 200, "attempt_ms": 500 }))
            .fault(Code::HttpError, r#""status":404"#)
            .post(Effected::None),
    ]
}
