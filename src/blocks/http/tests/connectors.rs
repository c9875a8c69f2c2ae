//! Requests through a connector: whose they are, where they may lead, and what nobody gets to see.

use super::*;
use crate::net::egress::{Allow, Target};
use crate::net::proxy::Proxy;

const TOKEN: &str = "t0p-s3cret";

fn connector(server: &Server, path: &str) -> ConnectorSettings {
    ConnectorSettings {
        tenants: Some(vec!["acme".to_owned()]),
        url: Some(Target::parse(&server.url(path)).expect("a URL")),
        allow: vec![Allow::parse("127.0.0.0/8").expect("a network")],
        auth: Auth::None,
        idempotency_key: false,
        provider: None,
        tls: Default::default(),
        direct: false,
    }
}

fn with(one: ConnectorSettings) -> Reach {
    let mut settings = PolicySettings::default();
    settings.connectors.insert("crm".to_owned(), one);
    reach(Policy::new(settings, false).expect("nothing to read"))
}

fn secret(folder: &std::path::Path) -> SecretRef {
    let path = folder.join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).expect("written");
    SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference")
}

#[test]
fn a_path_is_put_behind_the_connectors_url_and_never_leaves_it() {
    on_a_shard(|blobs, _| async move {
        let server = Server::always(Act::answer("200 OK", "", "x"));
        let reach = with(connector(&server, "/api/v1/"));
        for (inputs, heard) in [
            (json!({ "path": "/contacts?x=1", "query": { "y": 2 } }), "GET /api/v1/contacts?x=1&y=2 HTTP/1.1"),
            (json!({ "path": "?x=1" }), "GET /api/v1?x=1 HTTP/1.1"),
            (json!({}), "GET /api/v1 HTTP/1.1"),
            (json!({ "url": server.url("/api/v1/whole") }), "GET /api/v1/whole HTTP/1.1"),
        ] {
            let mut inputs = inputs;
            inputs["connector"] = json!("crm");
            ask(&reach, &blobs, inputs).await.expect("answered");
            let said = server.heard().pop().expect("heard");
            assert!(said.starts_with(heard), "{said}");
        }
        let before = server.heard().len();
        for inputs in [
            json!({ "path": "/../admin" }),
            json!({ "path": "/%2e%2e/admin" }),
            json!({ "path": "/.%2E/v2" }),
            json!({ "url": server.url("/api/v10/x") }),
            json!({ "url": server.url("/other") }),
            json!({ "url": "http://127.0.0.1:1/api/v1/x" }),
            json!({ "url": "http://h.example/api/v1/" }),
        ] {
            let mut inputs = inputs;
            inputs["connector"] = json!("crm");
            let fault = ask(&reach, &blobs, inputs.clone()).await.expect_err("outside");
            assert_eq!(fault.code, Code::PermissionDenied, "{inputs}");
            assert_eq!(details(&fault)["rule"], "connectors.crm.url leads elsewhere", "{inputs}");
        }
        let inputs = json!({ "connector": "crm", "path": "/" }).to_string();
        let fault = run_with(&reach, &blobs, "other", "http.request", &inputs, 1).await.expect_err("not listed");
        assert_eq!(details(&fault)["rule"], "no [connectors.crm] lists the tenant");
        assert_eq!(server.heard().len(), before, "nothing was sent");
    });
}

#[test]
fn a_connector_says_who_a_request_comes_from_and_nothing_that_comes_back_says_it() {
    on_a_shard(|blobs, root| async move {
        let echo = format!("{{\"you\":\"Bearer {TOKEN}\",\"basic\":\"dTp0MHAtczNjcmV0\"}}");
        let headers = format!("content-type: application/json\r\nx-echo: {TOKEN}\r\n");
        let secret = secret(&root);
        for (auth, header) in [
            (Auth::Bearer(secret.clone()), format!("authorization: Bearer {TOKEN}")),
            (Auth::Basic { user: "u".to_owned(), password: secret.clone() }, "authorization: Basic dTp0MHAtczNjcmV0".to_owned()),
            (Auth::Header { name: "x-api-key".to_owned(), value: secret.clone() }, format!("x-api-key: {TOKEN}")),
        ] {
            for status in ["200 OK", "418 Teapot"] {
                let server = Server::always(Act::answer(status, &headers, &echo));
                let reach = with(ConnectorSettings { auth: auth.clone(), ..connector(&server, "/") });
                let told = match ask(&reach, &blobs, json!({ "connector": "crm" })).await {
                    Ok(outputs) => outputs.to_string(),
                    Err(fault) => format!("{fault:?} {}", details(&fault)),
                };
                assert!(server.heard()[0].contains(&header), "{:?}", server.heard());
                assert!(told.contains("[REDACTED]") && !told.contains(TOKEN), "{told}");
                assert!(!matches!(auth, Auth::Basic { .. }) || !told.contains("dTp0MHAtczNjcmV0"), "{told}");
            }
        }
        // A secret that is not there: nothing is sent, and it may be there later.
        let server = Server::always(Act::answer("200 OK", "", ""));
        let gone = SecretRef::parse("secret://file/nowhere/at/all").expect("a reference");
        let reach = with(ConnectorSettings { auth: Auth::Bearer(gone), ..connector(&server, "/") });
        let fault = ask(&reach, &blobs, json!({ "connector": "crm", "text": "x" })).await.expect_err("no secret");
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None));
        assert_eq!(server.connections(), 0);
    });
}

#[test]
fn a_secret_that_is_echoed_in_two_pieces_is_told_in_none() {
    on_a_shard(|blobs, root| async move {
        let secret = secret(&root);
        for media_type in ["text/plain", "text/event-stream", "image/png"] {
            for cut in 0..=TOKEN.len() {
                let (first, second) = (format!("data: you are {}", &TOKEN[..cut]), format!("{}\n\n", &TOKEN[cut..]));
                let length = first.len() + second.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\nx-echo: {TOKEN}\r\ncontent-length: {length}\r\n\r\n{first}"
                );
                let server = Server::start(vec![vec![Act::Hear, Act::say(head), Act::Wait(10), Act::say(second)]]);
                let reach = with(ConnectorSettings { auth: Auth::Bearer(secret.clone()), ..connector(&server, "/") });
                let (outputs, heard) =
                    super::exchanges::stream(&reach, &blobs, json!({ "connector": "crm", "response": "stream" })).await;
                let outputs = outputs.expect("told").to_string();
                let piece = |event: &Value| match (event["text"].as_str(), event["data"]["bytes"].as_str()) {
                    (Some(text), _) => text.to_owned(),
                    (_, Some(bytes)) => {
                        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes).expect("base64");
                        String::from_utf8(bytes).expect("text")
                    }
                    _ => event["data"]["data"].as_str().unwrap_or_default().to_owned(),
                };
                let told: String = heard.iter().map(piece).collect();
                assert!(told.contains("you are [REDACTED]"), "{media_type} cut at {cut}: {told}");
                assert!(outputs.contains("[REDACTED]") && !outputs.contains(TOKEN), "{outputs}");
                // What is no beginning of a secret does not wait for the end.
                assert!(
                    media_type != "text/plain" || cut == TOKEN.len() || heard[0]["text"].as_str() == Some("data: you are "),
                    "{heard:?}"
                );
            }
        }
        // An error that is cut in the middle of it.
        let half = format!("HTTP/1.1 418 Teapot\r\ncontent-length: 900\r\n\r\nyou are {}", &TOKEN[..6]);
        let server = Server::start(vec![vec![Act::Hear, Act::say(half), Act::Last]]);
        let reach = with(ConnectorSettings { auth: Auth::Bearer(secret), ..connector(&server, "/") });
        let fault = ask(&reach, &blobs, json!({ "connector": "crm" })).await.expect_err("a teapot");
        assert_eq!(details(&fault)["body"], "you are ");
    });
}

#[test]
fn what_proves_who_we_are_stays_with_its_origin() {
    on_a_shard(|blobs, root| async move {
        let secret = secret(&root);
        let elsewhere = Server::always(Act::answer("200 OK", "", "there"));
        let location = format!("location: {}\r\n", elsewhere.url("/"));
        let server = Server::always(Act::answer("307 Temporary", &location, ""));
        let auth = Auth::Header { name: "x-api-key".to_owned(), value: secret };
        let reach = with(ConnectorSettings { auth, idempotency_key: true, ..connector(&server, "/") });
        ask(&reach, &blobs, json!({ "connector": "crm", "text": "x" })).await.expect("followed");
        let (first, second) = (&server.heard()[0], &elsewhere.heard()[0]);
        assert!(first.contains(TOKEN) && first.contains("idempotency-key: 0000"), "{first}");
        assert!(!second.contains(TOKEN) && !second.contains("idempotency-key") && second.ends_with("x"), "{second}");
    });
}

#[test]
fn a_post_is_idempotent_where_the_other_side_honours_its_key() {
    let server = Server::always(Act::answer("200 OK", "", ""));
    let (_, entry) = find("http.request", false).expect("there");
    for (idempotency_key, class) in [(true, EffectClass::Idempotent), (false, EffectClass::Unsafe)] {
        let mut settings = PolicySettings::default();
        settings.connectors.insert("crm".to_owned(), ConnectorSettings { idempotency_key, ..connector(&server, "/") });
        let policy = Arc::new(Policy::new(settings, false).expect("nothing to read"));
        let inputs = br#"{"connector":"crm","json":{}}"#;
        let checked = entry
            .check(&Ask { policy: &policy, tenant: "acme", name: "http", inputs, provider: "", narrow: &NOTHING })
            .expect("good");
        assert_eq!((checked.effect, checked.denied), (class, None));
    }
}

/// A proxy that lets through to where it is asked, unless it is told not to; and what it was asked.
fn proxy(refuses: Option<&'static str>) -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = asked.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|bytes| bytes > 0) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let place = head.split(' ').nth(1).unwrap_or_default().to_owned();
            kept.lock().expect("no panic holds it").push(head);
            if let Some(answer) = refuses {
                let _ = stream.write_all(answer.as_bytes());
                continue;
            }
            let Ok(there) = std::net::TcpStream::connect(place) else { continue };
            let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n");
            let (mut here, mut back) = (stream.try_clone().expect("a copy"), there.try_clone().expect("a copy"));
            std::thread::spawn(move || std::io::copy(&mut here, &mut back));
            let mut there = there;
            std::thread::spawn(move || std::io::copy(&mut there, &mut stream));
        }
    });
    (address, asked)
}

fn behind(
    address: std::net::SocketAddr,
    no_proxy: &[&str],
    login: Option<(String, SecretRef)>,
    direct: bool,
    server: &Server,
) -> Reach {
    let target = Target::parse(&format!("http://{address}/")).expect("a URL");
    let no_proxy = no_proxy.iter().map(|entry| Allow::parse(entry).expect("an entry")).collect();
    let mut settings = PolicySettings { proxy: Some(Proxy { target, login }), no_proxy, ..PolicySettings::default() };
    settings.connectors.insert("crm".to_owned(), ConnectorSettings { direct, ..connector(server, "/") });
    reach(Policy::new(settings, true).expect("nothing to read"))
}

#[test]
fn a_proxy_is_asked_for_a_tunnel_to_the_checked_address_and_only_where_it_is_meant() {
    on_a_shard(|blobs, root| async move {
        let server = Server::always(Act::answer("200 OK", "", "there"));
        let (address, asked) = proxy(None);
        let count = || asked.lock().expect("no panic holds it").len();
        let plain = behind(address, &[], None, false, &server);
        for _ in 0..2 {
            let outputs = ask(&plain, &blobs, json!({ "url": server.url("/a") })).await.expect("through the proxy");
            assert_eq!(outputs["text"], "there");
        }
        let first = asked.lock().expect("no panic holds it")[0].clone();
        let place = server.address;
        assert_eq!(first, format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n"));
        assert!(server.heard()[0].starts_with("GET /a HTTP/1.1\r\n"), "as if there were no proxy");
        assert_eq!(count(), 1, "a tunnel is kept like any connection");
        // What it is told that we are, and what goes straight.
        let login = Some(("u".to_owned(), secret(&root)));
        ask(&behind(address, &[], login, false, &server), &blobs, json!({ "url": server.url("/") })).await.expect("let in");
        let said = asked.lock().expect("no panic holds it")[1].clone();
        assert!(said.contains("Proxy-Authorization: Basic dTp0MHAtczNjcmV0\r\n"), "{said}");
        let straight = behind(address, &["127.0.0.0/8"], None, false, &server);
        ask(&straight, &blobs, json!({ "url": server.url("/") })).await.expect("straight");
        let direct = behind(address, &[], None, true, &server);
        ask(&direct, &blobs, json!({ "connector": "crm" })).await.expect("straight");
        assert_eq!(count(), 2);
        // Nothing that the guard forbids is asked for.
        let fault = ask(&plain, &blobs, json!({ "url": "http://10.0.0.1/" })).await.expect_err("private");
        assert_eq!((fault.code, count()), (Code::PermissionDenied, 2));
        for (answer, cause) in [
            ("HTTP/1.1 407 Authenticate\r\n\r\n", "status 407"),
            ("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "more than it was asked"),
            ("SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
            ("", "closed"),
        ] {
            let (address, _) = proxy(Some(answer));
            let reach = behind(address, &[], None, false, &server);
            let fault = ask(&reach, &blobs, json!({ "url": server.url("/"), "text": "x" })).await.expect_err(cause);
            assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None), "{cause}");
            assert!(details(&fault)["cause"].as_str().is_some_and(|said| said.contains(cause)), "{fault:?}");
        }
    });
}
