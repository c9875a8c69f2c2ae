//! What takes more than one connection, or more than one moment, to tell: a close at every byte, five hundred slow servers at
//! once, what was said while nobody listened, and a real server of HTTP/2.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

#[test]
fn a_server_may_go_at_any_byte_of_its_answer() {
    on_a_shard(|blobs, root| async move {
        let field = Field::new(blobs, &root);
        let answer = "HTTP/1.1 200 OK\r\nx-one: two\r\ncontent-length: 5\r\n\r\nhello";
        let head = answer.find("hello").expect("there");
        let mut rows = Vec::new();
        for at in 0..=answer.len() {
            for reset in [false, true] {
                let how = if reset { "reset" } else { "close" };
                let mut script = vec![Act::Hear, Act::say(&answer[..at])];
                if reset {
                    // What was said before a reset arrives before it only if it has time to.
                    script.extend([Act::Wait(40), Act::Reset]);
                }
                let row = row(Kind::Cut, format!("a {how} at byte {at} of {}", answer.len()), script);
                rows.push(match at {
                    _ if at == answer.len() => row.done(json!({ "text": "hello" })).pause(80),
                    _ if at >= head => row.fault(Code::NetworkError, "").post(Effected::Applied),
                    _ => row.broken(""),
                });
            }
        }
        field.play(rows).await;
        field.end().await;
    });
}

/// Takes connections and gives each a byte now and then.
fn slow_loris() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a flag");
    std::thread::spawn(move || {
        let mut streams: Vec<TcpStream> = Vec::new();
        loop {
            while let Ok((stream, _)) = listener.accept() {
                // One that cannot be set just blocks this thread for as long as it is full.
                let _ = stream.set_nonblocking(true);
                streams.push(stream);
            }
            streams.retain_mut(|stream| {
                let mut heard = [0; 4_096];
                !matches!(stream.read(&mut heard), Ok(0)) && stream.write_all(b"H").is_ok()
            });
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    address
}

#[test]
fn five_hundred_slow_servers_keep_nobody_else_waiting() {
    on_a_shard(|blobs, root| async move {
        const MANY: usize = 500;
        let field = Field::new(blobs, &root);
        let loris = slow_loris();
        let honest = Server::start(vec![std::iter::repeat_n(honest(), 1_000).flatten().collect()]);
        let time = async |count: usize| {
            let mut took = Vec::new();
            for _ in 0..count {
                let begun = Instant::now();
                field.ask_honest("beside many", &honest.url("/x"), "/x", &Value::Null).await;
                took.push(begun.elapsed().as_micros() as u64);
                rt::sleep(Duration::from_millis(5)).await;
            }
            took.sort_unstable();
            (took[took.len() / 2], took[took.len() - 1])
        };
        let (before, _) = time(60).await;
        let slow = join_all((0..MANY).map(|at| {
            let inputs = json!({ "url": format!("http://{loris}/{at}"), "first_byte_ms": 1_500 });
            field.try_once(inputs, 8_000)
        }));
        let (results, (during, worst)) = futures_util::join!(slow, time(100));
        for result in results {
            match result {
                Ok(Err(fault)) if fault.code == Code::NetworkError => {}
                other => field.complain("a slow one", format_args!("{other:?}")),
            }
        }
        let ratio = during as f64 / before.max(1) as f64;
        println!(
            "an ordinary request: {before} us alone, {during} us beside {MANY} slow ones ({ratio:.1} times), {worst} us at worst"
        );
        assert!(worst < 1_500_000, "{worst} us");
        assert!(during < 250_000, "{during} us");
        field.end().await;
    });
}

/// What came while the shard was at something else is seen before the next request goes out, not after.
#[test]
fn what_was_said_while_nobody_listened_is_no_answer_to_what_is_asked_next() {
    on_a_shard(|blobs, root| async move {
        let field = Field::new(blobs, &root);
        let busy = || std::thread::sleep(Duration::from_millis(60));
        let hello = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
        let later = |acts: &[Act]| {
            let script = [&[Act::Hear, Act::say(hello), Act::Wait(30)], acts].concat();
            Server::start(vec![script, honest()])
        };
        let server = later(&[Act::say(poison), Act::Last]);
        field.ask_honest("poison", &server.url("/"), "hello", &Value::Null).await;
        busy();
        field.ask_honest("poison while the shard was busy", &server.url("/again"), "/again", &Value::Null).await;
        // A POST that found its connection closed was not sent, and goes out on another one.
        let server = later(&[]);
        field.ask_honest("a close", &server.url("/"), "hello", &Value::Null).await;
        busy();
        let result = field.try_once(json!({ "url": server.url("/post"), "text": "x" }), 2_500).await;
        if !matches!(&result, Ok(Ok(outputs)) if outputs["text"] == "/post") {
            field.complain("a close while the shard was busy, and a POST", format_args!("{result:?}"));
        }
        field.end().await;
    });
}

/// A GET whose answer was to go into a blob has done nothing elsewhere either.
#[test]
fn a_get_into_a_blob_that_fails_has_no_effect() {
    on_a_shard(|blobs, root| async move {
        let field = Field::new(blobs, &root);
        for (name, answer) in [
            ("an error", "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"),
            ("a cut", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"),
            ("a refusal", "HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n"),
        ] {
            for overwrite in [false, true] {
                let server = Server::start(vec![vec![Act::Hear, Act::say(answer)]]);
                let inputs = json!({ "url": server.url("/"), "response_blob": "a/b", "overwrite": overwrite });
                match field.try_once(inputs, 2_500).await {
                    Ok(Err(fault)) if fault.effect == Effected::None => {}
                    other => field.complain(name, format_args!("{other:?}")),
                }
            }
        }
        let files = super::super::super::super::tests::files(&root);
        let left: Vec<&String> = files.iter().filter(|file| !file.starts_with("tls/")).collect();
        assert!(left.is_empty(), "{left:?}");
        field.end().await;
    });
}

#[test]
fn a_real_server_of_http_2_is_served_over_one_connection() {
    on_a_shard(|blobs, root| async move {
        let field = Field::new(blobs, &root);
        let address = honest::start(field.tls.good_h2());
        let ask = |path: &str, more: Value| {
            let mut inputs = json!({ "url": format!("https://{address}{path}"), "connector": "ca" });
            let more = more.as_object().cloned().unwrap_or_default();
            inputs.as_object_mut().expect("an object").extend(more);
            field.try_once(inputs, 5_000)
        };
        let wanted = [
            ("/a", json!({}), json!({ "version": "2", "text": "GET /a 0" })),
            ("/b", json!({ "text": "hello" }), json!({ "version": "2", "text": "POST /b 5" })),
            ("/c", json!({ "text": "x".repeat(3_000_000) }), json!({ "text": "POST /c 3000000" })),
            ("/d?700000", json!({}), json!({ "size": 700_008 })),
            ("/e", json!({ "method": "HEAD" }), json!({ "status": 200, "size": 0 })),
            ("/f?5000000", json!({ "response_blob": "f" }), json!({ "size": 5_000_008 })),
        ];
        for (path, more, outputs) in wanted {
            match ask(path, more).await {
                Ok(result) if fits(&Wanted::Done(outputs), &result) => {}
                Ok(result) => field.complain(path, shown(&result)),
                Err(why) => field.complain(path, why),
            }
        }
        // More at once than a peer allows by default, all over the one connection that is kept.
        let begun = Instant::now();
        for result in join_all((0..250).map(|_| ask("/many?20000", json!({})))).await {
            if !matches!(&result, Ok(Ok(outputs)) if outputs["size"] == 20_011) {
                field.complain("one of many", format_args!("{:.300}", format!("{result:?}")));
            }
        }
        println!("250 requests over one connection of HTTP/2 in {} ms", begun.elapsed().as_millis());
        assert_eq!(field.open.client.idle(), 1, "one connection for all");
        field.end().await;
    });
}
