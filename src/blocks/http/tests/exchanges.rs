//! What is sent, and what an answer becomes.

use std::io::Write;

use super::*;

#[test]
fn a_request_says_what_its_inputs_say_and_its_answer_becomes_outputs() {
    on_a_shard(|blobs, _| async move {
        let server =
            Server::always(Act::answer("200 OK", "content-type: application/json\r\nx-two: a\r\nx-two: b\r\n", r#"{"n": 1.50}"#));
        let inputs = json!({
            "url": server.url("/a%20b?x=1#fragment"), "query": { "q": "ä&b", "n": 1.50, "l": [true, "c"], "none": null },
            "headers": { "X-Own": "seen", "X-Many": ["1", "2"] }, "expect": "2xx",
        });
        let outputs = ask(&open(), &blobs, inputs).await.expect("answered");
        assert_eq!(outputs["status"], 200);
        assert_eq!((&outputs["ok"], &outputs["version"], &outputs["redirects"]), (&json!(true), &json!("1.1"), &json!(0)));
        assert_eq!(outputs["url"], server.url("/a%20b"));
        assert_eq!(outputs["headers"]["x-two"], json!(["a", "b"]));
        assert_eq!((&outputs["json"], &outputs["size"]), (&json!({ "n": 1.50 }), &json!(11)));
        assert!(outputs["timing_ms"]["first_byte"].as_f64().is_some_and(|ms| ms > 0.0), "{outputs}");
        let heard = &server.heard()[0];
        assert!(heard.starts_with("GET /a%20b?x=1&l=true&l=c&n=1.5&q=%C3%A4%26b HTTP/1.1\r\n"), "{heard}");
        for line in [
            format!("host: {}", server.address),
            "x-own: seen".to_owned(),
            "x-many: 1".to_owned(),
            "x-many: 2".to_owned(),
            "accept-encoding: gzip, br, zstd".to_owned(),
            concat!("user-agent: endstation/", env!("CARGO_PKG_VERSION")).to_owned(),
        ] {
            assert!(heard.contains(&format!("\r\n{line}\r\n")), "no {line:?} in {heard}");
        }
        assert!(!heard.contains("content-length") && !heard.contains("fragment"), "{heard}");
    });
}

#[test]
fn every_kind_of_body_is_sent_with_its_length_and_media_type() {
    on_a_shard(|blobs, _| async move {
        super::super::super::tests::run(&blobs, "fs.put", json!({ "path": "up", "content": "from a blob" })).await.expect("put");
        let server = Server::always(Act::answer("200 OK", "", ""));
        let reach = open();
        for (inputs, body, media_type) in [
            (json!({ "json": { "b": 1, "a": [null] } }), r#"{"a":[null],"b":1}"#, "application/json"),
            (json!({ "form": { "a": "1 2", "b": ["x", "y"] } }), "a=1+2&b=x&b=y", "application/x-www-form-urlencoded"),
            (json!({ "text": "hällo" }), "hällo", "text/plain; charset=utf-8"),
            (json!({ "bytes": "AAEC" }), "\u{0}\u{1}\u{2}", "application/octet-stream"),
            (json!({ "blob": "up" }), "from a blob", "application/octet-stream"),
            (json!({ "body": "as it is" }), "as it is", "text/plain; charset=utf-8"),
            (json!({ "body": { "as": "JSON" } }), r#"{"as":"JSON"}"#, "application/json"),
            (json!({ "text": "<a/>", "headers": { "Content-Type": "text/xml" } }), "<a/>", "text/xml"),
        ] {
            let mut inputs = inputs;
            inputs["url"] = json!(server.url("/"));
            ask(&reach, &blobs, inputs.clone()).await.expect("answered");
            let heard = server.heard().pop().expect("heard");
            assert!(heard.starts_with("POST / HTTP/1.1\r\n"), "{inputs}: {heard}");
            assert!(heard.ends_with(&format!("\r\n\r\n{body}")), "{inputs}: {heard}");
            assert!(heard.contains(&format!("content-type: {media_type}\r\n")), "{inputs}: {heard}");
            assert!(heard.contains(&format!("content-length: {}\r\n", body.len())), "{inputs}: {heard}");
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] {
            ask(&reach, &blobs, json!({ "url": server.url("/"), "method": method })).await.expect("answered");
            let heard = server.heard().pop().expect("heard");
            let sized = heard.contains("content-length: 0\r\n");
            assert!(heard.starts_with(method) && sized == matches!(method, "POST" | "PUT" | "PATCH"), "{heard}");
        }
        assert_eq!(server.connections(), 1, "one connection serves them all");
    });
}

#[test]
fn an_answer_is_json_text_or_bytes_by_what_it_is_or_as_the_step_says() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        for (headers, body, response, wanted) in [
            ("content-type: application/json\r\n", &b"[1]"[..], "auto", json!({ "json": [1] })),
            ("content-type: application/problem+json; charset=utf-8\r\n", b"{}", "auto", json!({ "json": {} })),
            ("content-type: application/json\r\n", b"not it", "auto", json!({ "text": "not it" })),
            ("", b"[1]", "auto", json!({ "text": "[1]" })),
            ("", b"\xff\x00", "auto", json!({ "bytes": "/wA=" })),
            ("", b"", "auto", json!({ "text": "" })),
            ("", b"[1]", "json", json!({ "json": [1] })),
            ("", b"[1]", "text", json!({ "text": "[1]" })),
            ("", b"[1]", "bytes", json!({ "bytes": "WzFd" })),
            ("", b"[1]", "none", json!({})),
        ] {
            let server = Server::always(Act::answer("200 OK", headers, body));
            let outputs = ask(&reach, &blobs, json!({ "url": server.url("/"), "response": response })).await.expect("answered");
            let shown: serde_json::Map<String, Value> = ["json", "text", "bytes", "blob"]
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), outputs.get(name)?.clone())))
                .collect();
            assert_eq!(Value::Object(shown), wanted, "{headers}{body:?} as {response}");
        }
        for (body, response) in [(&b"{"[..], "json"), (b"\xff", "text")] {
            let server = Server::always(Act::answer("200 OK", "", body));
            let fault = ask(&reach, &blobs, json!({ "url": server.url("/"), "response": response })).await.expect_err(response);
            assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (Code::ExecutionFailed, Some("/response")));
        }
    });
}

#[test]
fn an_answer_goes_into_a_blob_whole_or_not_at_all() {
    on_a_shard(|blobs, root| async move {
        let reach = open();
        let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let server = Server::always(Act::answer("200 OK", "", &body));
        let inputs = json!({ "url": server.url("/"), "response_blob": "down/a.bin" });
        let outputs = ask(&reach, &blobs, inputs.clone()).await.expect("saved");
        let sha256 = outputs["blob"]["sha256"].clone();
        assert_eq!(outputs["blob"], json!({ "path": "down/a.bin", "size": 3_000_000, "sha256": sha256, "created": true }));
        let hash = super::super::super::tests::run(&blobs, "crypto.hash", json!({ "path": "down/a.bin" })).await.expect("there");
        assert_eq!(hash["digest"], sha256);
        // Run again after a crash: the same content is there and that is well.
        let again = ask(&reach, &blobs, inputs.clone()).await.expect("agrees");
        assert_eq!(again["blob"]["created"], false);
        let other = Server::always(Act::answer("200 OK", "", "other"));
        let fault =
            ask(&reach, &blobs, json!({ "url": other.url("/"), "response_blob": "down/a.bin" })).await.expect_err("taken");
        assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (Code::ExecutionFailed, Some("/path")));
        let over = json!({ "url": other.url("/"), "response_blob": "down/a.bin", "overwrite": true });
        assert_eq!(ask(&reach, &blobs, over).await.expect("replaced")["blob"]["size"], 5);
        // Cut in the middle: nothing is left of it.
        let cut = Server::start(vec![vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")]]);
        let fault = ask(&reach, &blobs, json!({ "url": cut.url("/"), "response_blob": "down/b.bin" })).await.expect_err("cut");
        assert_eq!((fault.code, fault.effect), (Code::NetworkError, Effected::None));
        let files = super::super::super::tests::files(&root);
        assert_eq!(files.len(), 1, "{files:?}");
    });
}

#[test]
fn encoded_bodies_come_out_as_they_went_in() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let text = "a line that repeats itself\n".repeat(9_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text.as_bytes()).expect("memory");
        let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(text.as_bytes()).expect("memory");
        let mut br = Vec::new();
        brotli::CompressorWriter::new(&mut br, 4096, 5, 20).write_all(text.as_bytes()).expect("memory");
        let encoded = [
            ("gzip", gzip.finish().expect("memory")),
            ("deflate", deflate.finish().expect("memory")),
            ("br", br),
            ("zstd", zstd::encode_all(text.as_bytes(), 3).expect("memory")),
        ];
        for (name, body) in &encoded {
            let server = Server::always(Act::answer("200 OK", &format!("content-encoding: {name}\r\n"), body));
            let outputs = ask(&reach, &blobs, json!({ "url": server.url("/") })).await.expect(name);
            assert_eq!(outputs["text"], text, "{name}");
            let saved = ask(&reach, &blobs, json!({ "url": server.url("/"), "response_blob": name })).await.expect(name);
            assert_eq!(saved["blob"]["size"], text.len(), "{name}");
            // The limit is that of what comes out.
            let fault = ask(&reach, &blobs, json!({ "url": server.url("/"), "bytes_max": 20_000 })).await.expect_err(name);
            assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (Code::ExecutionFailed, Some("/bytes_max")), "{name}");
            // Cut short, and damaged.
            for bad in [&body[..body.len() / 2], &[&body[..body.len() / 2], b"\xff\x55\xaa"].concat()] {
                let server = Server::always(Act::answer("200 OK", &format!("content-encoding: {name}\r\n"), bad));
                let fault = ask(&reach, &blobs, json!({ "url": server.url("/") })).await.expect_err(name);
                assert_eq!(fault.code, Code::ExecutionFailed, "{name}");
            }
        }
    });
}

#[test]
fn a_bomb_is_stopped_while_it_is_decoded() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let zeros = vec![0; 64 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).expect("memory");
        let mut br = Vec::new();
        brotli::CompressorWriter::new(&mut br, 4096, 5, 22).write_all(&zeros).expect("memory");
        let bombs =
            [("gzip", gzip.finish().expect("memory")), ("br", br), ("zstd", zstd::encode_all(&zeros[..], 3).expect("memory"))];
        for (name, body) in bombs {
            let server = Server::always(Act::answer("200 OK", &format!("content-encoding: {name}\r\n"), &body));
            let inputs = json!({ "url": server.url("/"), "response_blob": format!("bomb-{name}") });
            let fault = ask(&reach, &blobs, inputs).await.expect_err(name);
            assert!(
                details(&fault)["cause"].as_str().is_some_and(|cause| cause.contains("grows more than")),
                "{name}: {fault:?}"
            );
        }
    });
}

#[test]
fn a_status_that_is_not_expected_is_a_fault_with_the_beginning_of_what_was_said() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        for (status, method, code, effect) in [
            ("400 Bad Request", "GET", Code::HttpError, Effected::None),
            ("404 Not Found", "POST", Code::HttpError, Effected::None),
            ("409 Conflict", "POST", Code::HttpError, Effected::Unknown),
            ("429 Too Many Requests", "POST", Code::ResourceUnavailable, Effected::None),
            ("408 Request Timeout", "PUT", Code::ResourceUnavailable, Effected::Unknown),
            ("500 Internal Server Error", "GET", Code::Http5xx, Effected::None),
            ("503 Service Unavailable", "POST", Code::Http5xx, Effected::Unknown),
            ("304 Not Modified", "GET", Code::HttpError, Effected::None),
        ] {
            let body = if status.starts_with("304") { String::new() } else { format!("why {}", "x".repeat(5_000)) };
            let server = Server::always(Act::answer(status, "retry-after: 7\r\n", &body));
            let fault =
                ask(&reach, &blobs, json!({ "url": server.url("/p?secret=1"), "method": method })).await.expect_err(status);
            assert_eq!((fault.code, fault.effect), (code, effect), "{status} to {method}");
            let told = details(&fault);
            assert_eq!(told["status"], status[..3].parse::<u16>().expect("digits"));
            assert_eq!(told["url"], server.url("/p"), "no query in it");
            if !body.is_empty() {
                let excerpt = told["body"].as_str().expect("an excerpt");
                assert!(excerpt.starts_with("why x") && excerpt.len() <= 2_048, "{status}");
            }
            assert_eq!(fault.retry_after_ms, code.retryable().then_some(7_000), "{status}");
            // What is expected is an answer like any other.
            let expect = json!([status[..3].parse::<u16>().expect("digits"), "2xx"]);
            let outputs = ask(&reach, &blobs, json!({ "url": server.url("/"), "method": method, "expect": expect })).await;
            assert_eq!(outputs.expect("expected")["ok"], false);
        }
    });
}

#[test]
fn redirects_are_followed_as_their_status_says_and_no_further_than_the_step_allows() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let home = Server::always(Act::answer("200 OK", "", "there"));
        for (status, method, arrives) in [
            ("301 Moved", "GET", "GET"),
            ("301 Moved", "POST", "GET"),
            ("302 Found", "POST", "GET"),
            ("302 Found", "PUT", "PUT"),
            ("303 See Other", "POST", "GET"),
            ("303 See Other", "PUT", "GET"),
            ("307 Temporary", "POST", "POST"),
            ("308 Permanent", "DELETE", "DELETE"),
        ] {
            let away = Server::always(Act::answer(status, &format!("location: {}\r\n", home.url("/new?x")), "gone"));
            let mut inputs = json!({ "url": away.url("/"), "method": method, "headers": {
                "Authorization": "Bearer own", "Cookie": "a=b", "X-Plain": "kept",
            } });
            if matches!(method, "POST" | "PUT") {
                inputs["text"] = json!("carried");
            }
            let outputs = ask(&reach, &blobs, inputs).await.expect(status);
            assert_eq!((&outputs["text"], &outputs["redirects"]), (&json!("there"), &json!(1)), "{status}");
            let heard = home.heard().pop().expect("heard");
            assert!(heard.starts_with(&format!("{arrives} /new?x HTTP/1.1")), "{status} {method}: {heard}");
            let carries = matches!(arrives, "POST" | "PUT");
            assert_eq!(heard.ends_with("carried"), carries, "{status} {method}: {heard}");
            assert_eq!(heard.contains("content-type"), carries, "{heard}");
            assert!(heard.contains("x-plain: kept") && !heard.contains("authorization") && !heard.contains("cookie"), "{heard}");
        }
        // To the same origin everything goes along; and a redirect that leads to itself ends.
        let circle = Server::always(Act::answer("302 Found", "location: ?again\r\n", ""));
        let inputs = json!({ "url": circle.url("/p"), "redirects": 3, "headers": { "Authorization": "own" } });
        let fault = ask(&reach, &blobs, inputs).await.expect_err("for ever");
        assert_eq!((fault.code, &details(&fault)["redirects"]), (Code::HttpError, &json!(3)));
        assert_eq!(circle.heard().len(), 4);
        assert!(circle.heard()[3].starts_with("GET /p?again") && circle.heard()[3].contains("authorization: own"));
        // None at all: the redirect is the answer.
        let outputs = ask(&reach, &blobs, json!({ "url": circle.url("/"), "redirects": 0, "expect": 302 })).await.expect("shown");
        assert_eq!(outputs["headers"]["location"], "?again");
    });
}

#[test]
fn every_wait_has_its_end() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let silent = Server::start(vec![vec![Act::Hear, Act::Last]]);
        let stalls =
            Server::start(vec![vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"), Act::Last]]);
        let drips = Server::start(vec![vec![
            Act::Hear,
            Act::say("HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n"),
            Act::Drip(vec![b'x'; 900], 20),
        ]]);
        for (server, field, phase) in
            [(&silent, "first_byte_ms", "first_byte"), (&stalls, "stall_ms", "stall"), (&drips, "attempt_ms", "attempt")]
        {
            let begun = std::time::Instant::now();
            let fault =
                ask(&reach, &blobs, json!({ "url": server.url("/"), "method": "POST", field: 100 })).await.expect_err(field);
            assert_eq!((fault.code, &details(&fault)["phase"]), (Code::NetworkError, &json!(phase)));
            let effect = if phase == "stall" { Effected::Applied } else { Effected::Unknown };
            assert_eq!(fault.effect, effect, "{phase}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{phase}");
        }
        // A listener whose queue is full takes no connection, and says nothing.
        let full = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = full.local_addr().expect("bound");
        let _held: Vec<_> = (0..200)
            .map_while(|_| std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(20)).ok())
            .collect();
        if _held.len() < 200 {
            let inputs = json!({ "url": format!("http://{address}/"), "method": "POST", "connect_ms": 100 });
            let fault = ask(&reach, &blobs, inputs).await.expect_err("full");
            assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None));
            assert_eq!(details(&fault)["phase"], "connect");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let fault = ask(&reach, &blobs, json!({ "url": format!("http://{nobody}/"), "text": "x" })).await.expect_err("refused");
        assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None));
    });
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced_and_no_post_is_sent_twice() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let once = [Act::Hear, Act::answer("200 OK", "", "one")];
        // It answers once on each connection, and closes it when the next request has come.
        let server = Server::start(vec![[&once[..], &[Act::Hear]].concat()]);
        let get = |method: &str| json!({ "url": server.url("/"), "method": method });
        for _ in 0..3 {
            assert_eq!(ask(&reach, &blobs, get("GET")).await.expect("again")["text"], "one");
        }
        assert_eq!((server.connections(), server.heard().len()), (3, 5), "each kept connection heard one request more");
        let fault = ask(&reach, &blobs, get("POST")).await.expect_err("it may have been done");
        assert_eq!((fault.code, fault.effect), (Code::NetworkError, Effected::Unknown));
        assert_eq!(server.heard().len(), 6);
        assert!(ask(&reach, &blobs, get("POST")).await.is_ok(), "on a new connection");
    });
}

#[test]
fn tenants_share_no_connection() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let server = Server::always(Act::answer("200 OK", "", "x"));
        for (tenant, connections) in [("a", 1), ("b", 2), ("a", 2), ("b", 2)] {
            let inputs = json!({ "url": server.url("/") }).to_string();
            run_with(&reach, &blobs, tenant, "http.request", &inputs, 1).await.expect("answered");
            assert_eq!(server.connections(), connections);
        }
        assert_eq!(reach.client.idle(), 2);
    });
}

/// What was told while a step ran.
#[derive(Default)]
struct Heard(std::cell::RefCell<Vec<Value>>);

impl shards::block::Observers for Heard {
    fn tell<'a>(&'a self, text: bytes::Bytes) -> shards::block::Local<'a, ()> {
        self.0.borrow_mut().push(serde_json::from_slice(&text).expect("JSON"));
        Box::pin(std::future::ready(()))
    }
}

#[test]
fn an_answer_is_told_piece_by_piece_and_then_its_end() {
    on_a_shard(|blobs, _| async move {
        let reach = open();
        let long = "äb".repeat(40_000);
        let sse = ": hi\n\nevent: add\nid: 1\ndata: one\n\ndata: {\"n\":2}\n\ndata: never ended";
        for (media_type, body, pieces) in [
            ("text/plain", "hello".as_bytes(), vec![json!({ "text": "hello" })]),
            ("application/x-ndjson", b"{}\n[]\n", vec![json!({ "text": "{}\n[]\n" })]),
            ("image/png", b"\x89PNG", vec![json!({ "data": { "bytes": "iVBORw==" } })]),
            ("text/plain", b"cut \xc3", vec![json!({ "text": "cut " }), json!({ "text": "\u{fffd}" })]),
            (
                "text/event-stream; charset=utf-8",
                sse.as_bytes(),
                vec![
                    json!({ "data": { "event": "add", "data": "one", "id": "1" } }),
                    json!({ "data": { "event": "message", "data": "{\"n\":2}", "id": "1" } }),
                ],
            ),
            ("text/plain", b"", vec![]),
        ] {
            let server = Server::always(Act::answer("200 OK", &format!("content-type: {media_type}\r\n"), body));
            let (outputs, heard) = stream(&reach, &blobs, json!({ "url": server.url("/"), "response": "stream" })).await;
            let outputs = outputs.expect("told");
            let end = json!({ "fraction": 1.0, "message": "end", "data": { "pieces": pieces.len(), "size": body.len() } });
            assert_eq!(heard, [&pieces[..], &[end]].concat(), "{media_type}");
            assert_eq!((&outputs["streamed"], &outputs["size"]), (&json!(pieces.len()), &json!(body.len())));
            assert!(outputs.get("text").is_none());
        }
        let server = Server::always(Act::answer("200 OK", "content-type: text/plain\r\n", &long));
        let (_, heard) = stream(&reach, &blobs, json!({ "url": server.url("/"), "response": "stream" })).await;
        let text: String = heard.iter().filter_map(|piece| piece["text"].as_str()).collect();
        assert!(text == long && heard.iter().all(|piece| piece.to_string().len() < 300_000));
        // Nobody hears: nothing is sent.
        let before = server.heard().len();
        let fault = ask(&reach, &blobs, json!({ "url": server.url("/"), "response": "stream" })).await.expect_err("unheard");
        assert_eq!((fault.code, &details(&fault)["pointer"]), (Code::ExecutionFailed, &json!("/response")));
        assert_eq!(server.heard().len(), before);
    });
}

/// Also for the tests of connectors.
pub(super) async fn stream(reach: &Reach, blobs: &Rc<LocalBlobs>, inputs: Value) -> (Result<Value, Fault>, Vec<Value>) {
    let heard = Rc::new(Heard::default());
    let cx = shards::block::BlockCx {
        tenant: shards::ids::Text::from_static("acme"),
        key: shards::ids::Key([0; 16]),
        try_number: 1,
        left_ms: 60_000,
        needs: shards::step::Needs::default(),
        inputs: inputs.to_string().into(),
        blobs: blobs.clone(),
        guardrails: bytes::Bytes::new(),
        cache: None,
        trace_id: None,
        observers: Some(heard.clone()),
    };
    let (id, _) = find("http.request", false).expect("there");
    let outputs = super::super::super::build_all(reach)[usize::from(id.0)].execute(cx).await;
    let told = heard.0.borrow().clone();
    (outputs.map(|outputs| serde_json::from_slice(&outputs).expect("JSON")), told)
}

#[test]
fn a_trace_goes_on_with_a_span_for_each_try() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let of = |trace: &str, try_number| {
        let value = super::super::traceparent(trace, &shards::ids::Key([1; 16]), try_number);
        value.map(|value| value.to_str().expect("visible").to_owned())
    };
    assert_eq!(of(trace, 1).as_deref(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010102-01"));
    assert_ne!(of(trace, 1), of(trace, 2));
    for none in ["", "trace-7", &trace[1..], &trace.to_uppercase(), &"0".repeat(32)] {
        assert_eq!(of(none, 1), None, "{none}");
    }
}
