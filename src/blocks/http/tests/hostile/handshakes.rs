//! What servers do with TLS: certificates that do not hold, handshakes that come to nothing, and ends that are none.

use rcgen::date_time_ymd;

use super::*;

pub(super) fn rows(tls: &Tls) -> Vec<Row> {
    [certificates(tls), handshakes(tls), ends(tls), mutual(tls)].into_iter().flatten().collect()
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// Through the connector that trusts the tests' authority.
fn ca() -> Value {
    json!({ "connector": "ca" })
}

fn hello() -> Value {
    json!({ "status": 200, "text": "hello" })
}

fn certificates(tls: &Tls) -> Vec<Row> {
    let refused = |name: &str, config: Arc<ServerConfig>| {
        says(Kind::Tls, name, HELLO)
            .over(Over::Tls(config))
            .with(ca())
            .once()
            .fault(Code::ExecutionFailed, "certificate")
            .post(Effected::None)
    };
    let mut rows = vec![
        refused("signed by itself", tls.self_signed()),
        refused("signed by somebody else", tls.strange()),
        refused("expired", tls.odd(|params| params.not_after = date_time_ymd(2020, 1, 1))),
        refused("not yet valid", tls.odd(|params| params.not_before = date_time_ymd(2400, 1, 1))),
        refused(
            "never valid",
            tls.odd(|params| {
                params.not_before = date_time_ymd(2400, 1, 1);
                params.not_after = date_time_ymd(2020, 1, 1);
            }),
        ),
        refused("another address", tls.odd(|params| *params = secure::named("127.0.0.2"))),
        refused("a name for the address", tls.odd(|params| *params = secure::named("localhost"))),
        refused("any name at all", tls.odd(|params| *params = secure::named("*"))),
        refused("no name", tls.odd(|params| params.subject_alt_names.clear())),
        refused("one of a client", tls.odd(secure::for_clients)),
        refused("a chain that leads nowhere", tls.long(6)).done(hello()),
        refused("a chain longer than any", tls.long(400))
            .fault(Code::ConnectionError, "TLS")
            .fault(Code::ConnectionError, "connect"),
    ];
    // Whom the system does not trust is not trusted without a connector either.
    rows.push(
        says(Kind::Tls, "the tests' authority, and no connector", HELLO)
            .over(Over::Tls(tls.good()))
            .once()
            .fault(Code::ExecutionFailed, "certificate")
            .post(Effected::None),
    );
    rows
}

fn handshakes(tls: &Tls) -> Vec<Row> {
    let none = |name: &str, script: Vec<Act>| {
        row(Kind::Tls, name, script)
            .over(Over::Bare)
            .with(json!({ "connector": "ca", "connect_ms": 200 }))
            .once()
            .fault(Code::ConnectionError, "")
            .post(Effected::None)
    };
    // What a server says first has a hello of ours before it.
    let heard = |bytes: &[u8]| vec![Act::say(bytes), Act::Wait(30)];
    let http = says(Kind::Tls, "TLS on the port of HTTP", HELLO).over(Over::Hidden(tls.good()));
    vec![
        none("HTTP on the port of TLS", heard(HELLO.as_bytes())),
        none("an alert at once", heard(&secure::ALERT)),
        none("no version in common", heard(&secure::ALERT_VERSION)),
        none("noise", heard(&(0..=255).rev().cycle().take(4_000).collect::<Vec<u8>>())),
        none("zeros", heard(&[0; 4_000])),
        none("a record longer than any", heard(&[0x16, 3, 3, 0xff, 0xff, 2, 0, 0, 0])),
        none("a hello that is none", heard(&[0x16, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff])),
        none("data before any handshake", heard(&[0x17, 3, 3, 0, 5, b'h', b'e', b'l', b'l', b'o'])),
        none("our own hello", heard(&[0x16, 3, 1, 0, 4, 1, 0, 0, 0])),
        none("warnings without end", vec![Act::Repeat([0x15, 3, 3, 0, 2, 1, 90].repeat(1_000), 100_000)]),
        none("a handshake that never begins", vec![Act::Last]).fault(Code::ConnectionError, r#""phase":"connect""#),
        none("a handshake that drips", vec![Act::Drip([0x16, 3, 3, 0x3f, 0xff].into_iter().chain([0; 400]).collect(), 10)]),
        none("a close at once", vec![]),
        none("a close in a record", vec![Act::say([0x16, 3, 3, 1]), Act::Wait(30)]),
        none("a reset at once", vec![Act::Reset]),
        row(Kind::Tls, "a handshake that does not begin within a try", vec![Act::Last])
            .over(Over::Bare)
            .with(json!({ "connector": "ca", "attempt_ms": 200 }))
            .once()
            .fault(Code::NetworkError, r#""phase":"attempt""#)
            .post(Effected::None),
        http.once().broken(""),
        // Nothing of a request can have come to a server that did not let us in.
        row(Kind::Tls, "a close after the handshake", vec![])
            .over(Over::Tls(tls.good()))
            .with(ca())
            .broken("")
            .post(Effected::None),
        row(Kind::Tls, "a reset after the handshake", vec![Act::Reset])
            .over(Over::Tls(tls.good()))
            .with(ca())
            .broken("")
            .post(Effected::None),
        row(Kind::Tls, "noise beneath the TLS", vec![Act::Hear, Act::Beneath(vec![0xaa; 500])])
            .over(Over::Tls(tls.good()))
            .with(ca())
            .broken(""),
        row(Kind::Tls, "plain HTTP beneath the TLS", vec![Act::Hear, Act::Beneath(HELLO.as_bytes().to_vec())])
            .over(Over::Tls(tls.good()))
            .with(ca())
            .broken(""),
        row(Kind::Tls, "records in the clear beneath the TLS", vec![Act::Hear, Act::Beneath(clear(HELLO))])
            .over(Over::Tls(tls.good()))
            .with(ca())
            .broken(""),
        says(Kind::Tls, "tickets by the dozen", HELLO)
            .over(Over::Tls(tls.with(&[], |config| config.send_tls13_tickets = 24)))
            .with(ca())
            .done(hello()),
        // More of them at once than rustls takes.
        says(Kind::Tls, "tickets by the thousand", HELLO)
            .over(Over::Tls(tls.with(&[], |config| config.send_tls13_tickets = 1_000)))
            .with(ca())
            .once()
            .done(hello())
            .broken("")
            .post(Effected::None),
        says(Kind::Tls, "no protocol chosen", HELLO).over(Over::Tls(tls.good())).with(ca()).done(json!({ "version": "1.1" })),
        says(Kind::Tls, "HTTP/1.1 chosen", HELLO)
            .over(Over::Tls(tls.with(&[b"http/1.1"], |_| {})))
            .with(ca())
            .done(json!({ "version": "1.1" })),
        says(Kind::Tls, "a protocol chosen that we do not speak", HELLO)
            .over(Over::Tls(tls.with(&[b"spdy/3"], |_| {})))
            .with(ca())
            .once()
            .fault(Code::ConnectionError, "TLS")
            .post(Effected::None),
    ]
}

/// Text as a record of TLS that nobody encrypted.
fn clear(text: &str) -> Vec<u8> {
    [&[0x17, 3, 3, 0, text.len() as u8], text.as_bytes()].concat()
}

fn ends(tls: &Tls) -> Vec<Row> {
    let end = |name: &str, script: Vec<Act>| {
        row(Kind::Tls, name, [vec![Act::Hear], script].concat()).over(Over::Tls(tls.good())).with(ca())
    };
    let until = Act::say("HTTP/1.1 200 OK\r\n\r\nhello");
    let lost = |row: Row| row.fault(Code::NetworkError, "").post(Effected::Applied);
    vec![
        end("a body up to a close in order", vec![until.clone(), Act::Half, Act::Last]).done(hello()),
        // Anybody on the way can close a connection; only the server can say that it is done.
        lost(end("a body up to a close that nobody signed", vec![until])),
        end("a whole body and a close that nobody signed", vec![Act::say(HELLO)]).done(hello()),
        lost(end(
            "half a body and a close in order",
            vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"), Act::Half, Act::Last],
        )),
        lost(end(
            "noise for the rest of a body",
            vec![Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"), Act::Wait(30), Act::Beneath(vec![0xaa; 500])],
        ))
        // The noise may be there before the head was seen.
        .post(Effected::Unknown),
        end("an answer behind the answer", vec![Act::say([HELLO, HELLO].concat()), Act::Last]).done(hello()),
        end("a way down to HTTP", vec![Act::answer("302 Found", "location: http://127.0.0.1/\r\n", "")])
            .fault(Code::PermissionDenied, "downgrade")
            .post(Effected::Unknown),
    ]
}

fn mutual(tls: &Tls) -> Vec<Row> {
    let mutual = |name: &str, older: bool, connector: &str| {
        says(Kind::Tls, name, HELLO).over(Over::Tls(tls.mutual(older))).with(json!({ "connector": connector }))
    };
    vec![
        mutual("it asks who we are, and we say it", false, "mutual").done(hello()),
        mutual("it asks who we are, and we say it as one used to", true, "mutual").done(hello()),
        // By the newer version we hear of it only after the request went out.
        mutual("it asks who we are, and we do not say it", false, "ca")
            .once()
            .fault(Code::NetworkError, "")
            .fault(Code::ConnectionError, "")
            .post(Effected::Unknown)
            .post(Effected::None),
        mutual("it asks who we are, and we do not say it, as one used to", true, "ca")
            .once()
            .fault(Code::ConnectionError, "TLS")
            .post(Effected::None),
    ]
}
