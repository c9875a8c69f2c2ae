//! What servers do with HTTP/2: frames in the wrong place, of the wrong size and without end, windows that stay shut, and
//! connections that are given up.

use super::frames::*;
use super::*;

pub(super) fn rows(tls: &Tls) -> Vec<Row> {
    let config = tls.good_h2();
    let rows = [answers(), wrong_frames(), heads(), floods(), windows(), ends()].into_iter().flatten();
    rows.map(|row| {
        let inputs = match row.inputs {
            Value::Object(mut inputs) => {
                inputs.insert("connector".to_owned(), json!("ca"));
                Value::Object(inputs)
            }
            other => other,
        };
        Row { inputs, ..row }.over(Over::Tls(config.clone()))
    })
    .collect()
}

/// A server that answers the first request with this, and each connection after that as it should.
fn serves(name: &str, script: Vec<Act>) -> Row {
    let begin = [Act::Say(settings(&[])), Act::Frame(HEADERS)];
    let mut row = row(Kind::H2, name, [&begin[..], &script].concat());
    row.scripts[1] = [&begin[..], &[Act::Say(answer("/again")), Act::Last]].concat();
    row
}

/// The same, from the first byte on.
fn begins(name: &str, script: Vec<Act>) -> Row {
    let mut row = serves(name, Vec::new());
    row.scripts[0] = script;
    row
}

/// Says this after the request; one that comes on the same connection after that is served as it should be.
fn says(name: &str, frames: Vec<u8>) -> Row {
    serves(name, vec![Act::Say(frames), Act::Frame(HEADERS), Act::Say(answer_on(3, "/again")), Act::Last])
}

fn hello() -> Value {
    json!({ "status": 200, "version": "2", "text": "hello" })
}

/// The head was there before it broke.
fn broken_after(row: Row, words: &'static str) -> Row {
    row.fault(Code::NetworkError, words).post(Effected::Applied)
}

fn answers() -> Vec<Row> {
    let shown = |name: &str, block: &[u8]| [head(0, &[STATUS_200, block].concat()), data(END_STREAM, name)].concat();
    vec![
        // Kept open, so that its next request goes there too, on a stream that it does not answer.
        serves("an ordinary exchange", vec![Act::Say(answer("hello")), Act::Wait(20), Act::Say(goaway(1, NO_ERROR)), Act::Last])
            .done(hello())
            .pause(60),
        says(
            "a body in many pieces",
            [head(0, STATUS_200), data(0, "he"), data(0, ""), data(0, "ll"), data(END_STREAM, "o")].concat(),
        )
        .done(hello()),
        says(
            "padding",
            [
                head(0, STATUS_200),
                frame(DATA, PADDED, 1, &[&[200][..], b"he", &[0; 200]].concat()),
                frame(DATA, PADDED | END_STREAM, 1, b"\0llo"),
            ]
            .concat(),
        )
        .done(hello()),
        says("trailers", [head(0, STATUS_200), data(0, "hello"), head(END_STREAM, &field("x-late", "y"))].concat())
            .done(json!({ "text": "hello", "headers": { "x-late": null } })),
        says("early hints", [head(0, &field(":status", "103")), answer("hello")].concat()).done(hello()),
        says("a header in the other encoding", shown("hello", &field("x", "\u{e4}"))).done(hello()),
        says("a frame that nobody knows", [frame(0xbe, 0xff, 0, b"what"), answer("hello")].concat()).done(hello()),
        says("a priority", [frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]), answer("hello")].concat()).done(hello()),
        begins("no settings before the answer", vec![Act::Frame(HEADERS), Act::Say(answer("hello")), Act::Last])
            .done(hello())
            .broken("")
            .once(),
        says("an empty body with a length", head(END_STREAM, &[STATUS_200, &field("content-length", "0")].concat()))
            .done(json!({ "status": 200, "size": 0 })),
        says(
            "the length of what does not come, to HEAD",
            head(END_STREAM, &[STATUS_200, &field("content-length", "99")].concat()),
        )
        .with(json!({ "method": "HEAD" }))
        .done(json!({ "status": 200, "size": 0 })),
        says("a body to HEAD", answer("hello"))
            .with(json!({ "method": "HEAD" }))
            .done(json!({ "status": 200, "size": 0 }))
            .fault(Code::NetworkError, ""),
    ]
}

fn wrong_frames() -> Vec<Row> {
    let bad = |name: &str, frames: Vec<u8>| says(name, frames).broken("");
    let after = |name: &str, frames: Vec<u8>| broken_after(says(name, [head(0, STATUS_200), frames].concat()), "");
    vec![
        begins(
            "HTTP/1.1 where HTTP/2 was agreed",
            vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"), Act::Last],
        )
        .broken("")
        .post(Effected::None),
        begins("noise", vec![Act::say([0xff; 3_000]), Act::Last]).broken("").post(Effected::None),
        begins("our own preface", vec![Act::say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Act::Last]).broken("").post(Effected::None),
        begins("settings of a frame's size of nought", vec![Act::Say(settings(&[(5, 0)])), Act::Last])
            .broken("")
            .post(Effected::None),
        begins("settings of a window too large", vec![Act::Say(settings(&[(4, u32::MAX)])), Act::Last])
            .broken("")
            .post(Effected::None),
        begins("settings of half a pair", vec![Act::Say(frame(SETTINGS, 0, 0, &[0, 4, 0])), Act::Last])
            .broken("")
            .post(Effected::None),
        begins("settings of a stream", vec![Act::Say(frame(SETTINGS, 0, 1, &[])), Act::Last]).broken("").post(Effected::None),
        begins(
            "an ack of what we never said",
            vec![Act::Say([settings(&[]), frame(SETTINGS, ACK, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()), Act::Last],
        )
        .with(brief())
        .broken("")
        .post(Effected::None),
        bad("a frame longer than any", frame_that_says(0xff_ffff, DATA, 0, 1, &[0; 40_000])),
        bad("a head longer than a frame", frame_that_says(40_000, HEADERS, END_HEADERS, 1, &[0; 40_000])),
        bad("a body before its head", data(END_STREAM, "hello")),
        bad("a body of no stream", frame(DATA, 0, 0, b"hello")),
        bad("a head of no stream", frame(HEADERS, END_HEADERS, 0, STATUS_200)),
        bad("a head of a stream that nobody began", frame(HEADERS, END_HEADERS, 7, STATUS_200)),
        bad("a head of a stream of its own", frame(HEADERS, END_HEADERS, 2, STATUS_200)),
        bad("a push", frame(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], STATUS_200].concat())),
        bad("a ping of half its size", frame(PING, 0, 0, b"half")),
        bad("a window of no more", window(0, 0)),
        bad("a window beyond all", [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat()),
        bad("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, STATUS_200)),
        bad("something in the middle of a head", [frame(HEADERS, 0, 1, STATUS_200), frame(PING, 0, 0, b"12345678")].concat()),
        bad("a reset of a stream that nobody began", reset(9, PROTOCOL_ERROR)),
        bad("a priority of itself", [frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9]), answer("hello")].concat()).done(hello()),
        after("more padding than there is", frame(DATA, PADDED, 1, &[200, b'h'])),
        after("a second head", head(0, STATUS_200)),
        // Nobody is told of trailers, so nobody is misled.
        after("trailers that are a head", [data(0, "hello"), head(END_STREAM, STATUS_200)].concat()).done(hello()),
        after("a body behind its end", [data(END_STREAM, "hello"), data(END_STREAM, "more")].concat()).done(hello()),
    ]
}

fn heads() -> Vec<Row> {
    let block = |name: &str, block: &[u8]| says(name, [head(0, block), data(END_STREAM, "hello")].concat());
    let bad = |name: &str, fields: &[u8]| block(name, &[STATUS_200, fields].concat()).broken("");
    let long = |fields: Vec<u8>| [long_head(&[STATUS_200, &fields].concat(), 16_000), data(END_STREAM, "hello")].concat();
    let many = |count: usize| (0..count).flat_map(|at| field(&format!("x-{at}"), "y")).collect::<Vec<u8>>();
    let bomb = [STATUS_200, &kept_field("x", &"b".repeat(3_900)), &[NEWEST; 12_000]].concat();
    let lengths = |says: &str, body: &str| {
        [head(0, &[STATUS_200, &field("content-length", says)].concat()), data(END_STREAM, body)].concat()
    };
    vec![
        block("no status", &field("x", "y")).broken(""),
        block("a status of two digits", &field(":status", "99")).broken(""),
        block("a status of letters", &field(":status", "2OO")).broken(""),
        bad("a second status", STATUS_200),
        bad("a name in capitals", &field("X-Own", "y")),
        bad("a new line in a name", &field("x\r\ny", "z")),
        bad("a new line in a value", &field("x", "y\r\nset-cookie: a=b")),
        bad("a zero in a value", &field("x", "y\0z")),
        bad("no name", &field("", "y")),
        bad("a header of the connection's", &field("connection", "close")),
        bad("chunks", &field("transfer-encoding", "chunked")),
        bad("a pseudo-header that nobody knows", &field(":evil", "y")),
        block("a pseudo-header of a request's", &[STATUS_200, &field(":path", "/x")].concat()).broken("").done(hello()),
        block("a pseudo-header behind the others", &[&field("x", "y")[..], STATUS_200].concat()).broken(""),
        bad("a place in no table", &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        bad("a number without end", &[0xff; 200]),
        bad("a text longer than the block", &[0, 5, b'x']),
        bad("Huffman's code for nothing", &[0, 0x82, 0xff, 0xff, 1, b'y']),
        block("a table larger than is allowed", &[&[0x3f, 0xe1, 0xff, 0xff, 0x0f][..], STATUS_200].concat()).broken(""),
        says("a bomb of one header", [long_head(&bomb, 16_000), data(END_STREAM, "hello")].concat()).broken(""),
        says("a head larger than is allowed", long(field("x", &"y".repeat(80_000)))).broken(""),
        says("a thousand headers", long(many(1_000))).broken(""),
        says("two hundred headers", long(many(200))).broken(""),
        says("a hundred headers", long(many(100))).done(hello()),
        broken_after(says("a body shorter than it says", lengths("9", "hello")), ""),
        broken_after(says("a body longer than it says", lengths("3", "hello")), ""),
        says("a length that is none", lengths("-5", "hello")).broken("").post(Effected::Applied).done(hello()),
        says(
            "two lengths",
            [
                head(0, &[STATUS_200, &field("content-length", "5"), &field("content-length", "6")].concat()),
                data(END_STREAM, "hello"),
            ]
            .concat(),
        )
        .broken("")
        .post(Effected::Applied),
        says("another protocol", [head(0, &field(":status", "101")), data(END_STREAM, "hello")].concat())
            .broken("")
            .fault(Code::HttpError, r#""status":101"#),
    ]
}

fn floods() -> Vec<Row> {
    let flood = |name: &str, frame: Vec<u8>| {
        serves(name, vec![Act::Flood(frame.repeat(65_536 / frame.len()), 1_000_000)]).with(brief()).broken("").alone()
    };
    let unread = |name: &str, frame: Vec<u8>| {
        serves(name, vec![Act::Repeat(frame.repeat(65_536 / frame.len()), 1_000_000)]).with(brief()).broken("").alone()
    };
    let continued = [frame(HEADERS, 0, 1, STATUS_200), frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(8_000)))].concat();
    vec![
        flood("settings without end", settings(&[(3, 100)])),
        unread("settings without end, whose acks nobody reads", settings(&[(3, 100)])),
        flood("pings without end", frame(PING, 0, 0, b"12345678")),
        unread("pings without end, whose answers nobody reads", frame(PING, 0, 0, b"12345678")),
        flood("resets without end", reset(1, ENHANCE_YOUR_CALM)),
        flood("windows without end", window(1, 1)).alone(),
        flood("priorities without end", frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 9])),
        flood("unknown frames without end", frame(0xbe, 0, 0, b"")),
        flood("early hints without end", head(0, &field(":status", "103"))),
        flood("pushes without end", frame(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], STATUS_200].concat())),
        serves(
            "a head without end",
            vec![Act::Say(frame(HEADERS, 0, 1, STATUS_200)), Act::Flood(frame(CONTINUATION, 0, 1, &[]).repeat(4_096), 1_000_000)],
        )
        .with(brief())
        .broken("")
        .alone(),
        serves(
            "a head without end, of something",
            vec![Act::Say(continued), Act::Flood(frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(8_000))), 1_000_000)],
        )
        .with(brief())
        .broken("")
        .alone(),
        // A piece of nothing is no sign of life.
        broken_after(
            serves(
                "a body of nothing without end",
                vec![Act::Say(head(0, STATUS_200)), Act::Flood(data(0, "").repeat(4_096), 1_000_000)],
            )
            .with(brief()),
            "",
        )
        .alone(),
        broken_after(
            serves("a body of nothing that drips", vec![Act::Say(head(0, STATUS_200)), Act::Drip(data(0, "").repeat(60), 8)])
                .with(brief()),
            r#""phase":"stall""#,
        )
        .once(),
        serves("a body without end", vec![Act::Say(head(0, STATUS_200)), Act::Flood(data(0, [b'a'; 16_384]), 1_000_000)])
            .with(json!({ "bytes_max": 100_000 }))
            .fault(Code::ExecutionFailed, "/bytes_max")
            .fault(Code::NetworkError, "")
            .post(Effected::Applied)
            .alone(),
    ]
}

fn windows() -> Vec<Row> {
    let large = json!({ "text": "x".repeat(300_000), "first_byte_ms": 200 });
    let shut = |name: &str, script: Vec<Act>| {
        let begin = [Act::Say(settings(&[(4, 0)])), Act::Frame(HEADERS)];
        begins(name, [&begin[..], &script].concat()).with(large.clone())
    };
    vec![
        shut("a window that stays shut", vec![Act::Last]).fault(Code::NetworkError, "first_byte").post(Effected::Unknown),
        shut("a window that opens by bytes", vec![Act::Drip(window(1, 1).repeat(20), 5), Act::Last])
            .fault(Code::NetworkError, "first_byte")
            .post(Effected::Unknown),
        // What it has to say does not need our body.
        shut("an answer before the window opens", vec![Act::Say(answer("hello")), Act::Last]).done(hello()).once(),
        shut(
            "an answer and a reset before the window opens",
            vec![Act::Say([answer("hello"), reset(1, NO_ERROR)].concat()), Act::Last],
        )
        .done(hello())
        .once(),
        shut("a refusal before the window opens", vec![Act::Say(reset(1, REFUSED_STREAM)), Act::Last])
            .fault(Code::NetworkError, "")
            .post(Effected::Unknown)
            .post(Effected::None)
            .once(),
        begins("no stream at all", vec![Act::Say(settings(&[(3, 0)])), Act::Last])
            .with(brief())
            .broken("first_byte")
            .post(Effected::None),
        broken_after(
            serves(
                "more than the window takes",
                vec![Act::Say([head(0, STATUS_200), data(0, [b'a'; 16_384]).repeat(200)].concat()), Act::Last],
            )
            .with(json!({ "stall_ms": 200, "bytes_max": 8_000_000 })),
            "",
        ),
    ]
}

fn ends() -> Vec<Row> {
    vec![
        // Whether the request was out by then is a matter of microseconds.
        begins("a goodbye at once", vec![Act::Say([settings(&[]), goaway(0, NO_ERROR)].concat()), Act::Last])
            .with(brief())
            .broken("")
            .post(Effected::None),
        says("a goodbye to the request", goaway(0, NO_ERROR)).with(brief()).broken("").post(Effected::None),
        says("a goodbye with an error", goaway(0, ENHANCE_YOUR_CALM)).broken("").post(Effected::None),
        says("a goodbye for good", goaway(0, PROTOCOL_ERROR)).broken("").post(Effected::None),
        says(
            "a goodbye after the head, and the body",
            [head(0, STATUS_200), goaway(1, NO_ERROR), data(END_STREAM, "hello")].concat(),
        )
        .done(hello()),
        broken_after(
            says("a goodbye with an error after the head", [head(0, STATUS_200), goaway(1, PROTOCOL_ERROR)].concat()),
            "",
        ),
        says("a reset of the request", reset(1, PROTOCOL_ERROR)).broken(""),
        says("a refusal", reset(1, REFUSED_STREAM)).broken("").post(Effected::None),
        broken_after(says("a reset after the head", [head(0, STATUS_200), reset(1, PROTOCOL_ERROR)].concat()), "").once(),
        // Nothing was wrong, says the server, and yet it is not all there.
        broken_after(
            says("a reset without an error in the body", [head(0, STATUS_200), data(0, "he"), reset(1, NO_ERROR)].concat()),
            "",
        ),
        broken_after(says("a reset without an error for a body", [head(0, STATUS_200), reset(1, NO_ERROR)].concat()), ""),
        broken_after(says("a body that is called off", [head(0, STATUS_200), data(0, "he"), reset(1, CANCEL)].concat()), ""),
        broken_after(
            says(
                "a reset without an error in a body with a length",
                [head(0, &[STATUS_200, &field("content-length", "5")].concat()), data(0, "he"), reset(1, NO_ERROR)].concat(),
            ),
            "",
        ),
        broken_after(
            says("a goodbye that takes a body back", [head(0, STATUS_200), data(0, "he"), goaway(0, NO_ERROR)].concat()),
            "",
        ),
        broken_after(
            serves(
                "a goodbye and a close in the body",
                vec![Act::Say([head(0, STATUS_200), data(0, "he"), goaway(1, NO_ERROR)].concat()), Act::Half, Act::Last],
            ),
            "",
        ),
        says("a reset without an error behind the answer", [answer("hello"), reset(1, NO_ERROR)].concat()).done(hello()),
        begins("a close at once", vec![]).broken("").post(Effected::None),
        begins("a close after the settings", vec![Act::Say(settings(&[]))]).broken("").post(Effected::None),
        serves("a close before the head", vec![]).broken(""),
        serves("a reset before the head", vec![Act::Reset]).broken(""),
        broken_after(serves("a close in the body", vec![Act::Say([head(0, STATUS_200), data(0, "he")].concat())]), ""),
        broken_after(
            says("a body that stops", [head(0, STATUS_200), data(0, "he")].concat()).with(brief()),
            r#""phase":"stall""#,
        )
        .once(),
        says("silence", Vec::new()).with(brief()).broken("first_byte").once(),
        begins("silence from the first byte on", vec![Act::Last]).with(brief()).broken("first_byte").once(),
    ]
}
