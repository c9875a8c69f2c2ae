//! Providers that refuse, stall, fail in the middle, stop short and lie: each says what it is, and nothing short is a success.

use std::time::{Duration, Instant};

use super::*;

async fn fault_of(
    kind: Kind,
    script: Vec<Act>,
    root: &std::path::Path,
    blobs: &Rc<LocalBlobs>,
    inputs: Value,
) -> (Fault, Vec<Value>) {
    let server = Server::start(vec![script]);
    let reach = with(kind, &server, root);
    let mut inputs = inputs;
    inputs["model"] = json!("m");
    inputs["prompt"] = json!("p");
    let (fault, told) = ask(&reach, blobs, inputs).await;
    let fault = fault.expect_err("no answer");
    assert_presentable(&fault);
    assert!(!format!("{fault:?}{told:?}").contains(KEY));
    (fault, told)
}

#[test]
fn a_refusal_says_its_code_whether_to_try_again_and_when() {
    on_a_shard(|blobs, root| async move {
        let openai = |kind: &str, code: Value| json!({ "error": { "message": "no.", "type": kind, "code": code } }).to_string();
        let anthropic = |kind: &str| json!({ "type": "error", "error": { "type": kind, "message": "no." } }).to_string();
        for (kind, status, headers, body, code, wait_ms, named) in [
            (
                Kind::OpenAi,
                401,
                "",
                openai("invalid_request_error", json!("invalid_api_key")),
                Code::HttpError,
                None,
                "invalid_api_key",
            ),
            (
                Kind::OpenAi,
                404,
                "",
                openai("invalid_request_error", json!("model_not_found")),
                Code::HttpError,
                None,
                "model_not_found",
            ),
            (
                Kind::OpenAi,
                429,
                "retry-after-ms: 1200\r\n",
                openai("requests", json!("rate_limit_exceeded")),
                Code::ResourceUnavailable,
                Some(1_200),
                "rate_limit_exceeded",
            ),
            (
                Kind::OpenAi,
                429,
                "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6s\r\n",
                openai("tokens", json!(null)),
                Code::ResourceUnavailable,
                Some(6_000),
                "tokens",
            ),
            // An account that is empty is empty the next time, too.
            (
                Kind::OpenAi,
                429,
                "retry-after: 1\r\n",
                openai("insufficient_quota", json!("insufficient_quota")),
                Code::HttpError,
                None,
                "insufficient_quota",
            ),
            (Kind::OpenAi, 500, "", openai("server_error", json!(null)), Code::Http5xx, None, "server_error"),
            (Kind::OpenAi, 503, "retry-after: 2\r\n", "busy".to_owned(), Code::ProviderUnavailable, Some(2_000), "busy"),
            (Kind::Anthropic, 529, "", anthropic("overloaded_error"), Code::ProviderUnavailable, None, "overloaded_error"),
            (
                Kind::Anthropic,
                429,
                "retry-after: 3\r\n",
                anthropic("rate_limit_error"),
                Code::ResourceUnavailable,
                Some(3_000),
                "rate_limit_error",
            ),
            (Kind::Anthropic, 400, "", anthropic("invalid_request_error"), Code::HttpError, None, "invalid_request_error"),
            (Kind::Ollama, 404, "", json!({ "error": "model \"m\" not found" }).to_string(), Code::HttpError, None, "not found"),
            // A key goes to one place only.
            (Kind::OpenAi, 307, "location: http://127.0.0.1:1/\r\n", String::new(), Code::HttpError, None, "307"),
        ] {
            for stream in [false, true] {
                let answer = Act::answer(&format!("{status} No"), headers, &body);
                let (fault, told) =
                    fault_of(kind, vec![Act::Hear, answer, Act::Last], &root, &blobs, json!({ "stream": stream })).await;
                assert_eq!((fault.code, fault.retry_after_ms), (code, wait_ms), "{status} {body}");
                let details = details(&fault);
                assert_eq!((&details["status"], &details["connector"]), (&json!(status), &json!("llm")), "{details}");
                assert!(details.to_string().contains(named) && told.is_empty(), "{details}");
            }
        }
    });
}

#[test]
fn a_stream_that_stops_before_its_mark_is_no_answer() {
    on_a_shard(|blobs, root| async move {
        for kind in KINDS {
            let events = stream_of(kind, &["half of ", "it"]);
            let most = events[..events.len() - 1].concat();
            // Ended in order by HTTP's rules, cut, and reset.
            for (last, what) in [(Some(Act::say("0\r\n\r\n")), "ended"), (None, "cut"), (Some(Act::Reset), "reset")] {
                let script = [Act::Hear, head(kind), chunk(&most), Act::Wait(20)].into_iter().chain(last).collect();
                let (fault, told) = fault_of(kind, script, &root, &blobs, json!({ "stream": true })).await;
                assert_eq!(fault.code, Code::NetworkError, "{kind:?} {what}: {fault:?}");
                assert!(told.iter().all(|event| event["message"] != "end"), "{kind:?} {what}: {told:?}");
            }
        }
    });
}

#[test]
fn an_error_in_the_middle_of_a_stream_is_the_providers() {
    on_a_shard(|blobs, root| async move {
        let openai = r#"data: {"error":{"message":"no.","type":"server_error","code":null}}"#;
        let limited = r#"data: {"error":{"message":"no.","type":"tokens","code":"rate_limit_exceeded"}}"#;
        let anthropic = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"no.\"}}";
        let refused =
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"no.\"}}";
        for (kind, event, code) in [
            (Kind::OpenAi, openai, Code::ProviderUnavailable),
            (Kind::OpenAi, limited, Code::ResourceUnavailable),
            (Kind::OpenAi, "data: {not JSON", Code::ExecutionFailed),
            (Kind::Anthropic, anthropic, Code::ProviderUnavailable),
            (Kind::Anthropic, refused, Code::HttpError),
            (Kind::Ollama, r#"{"error":"out of memory"}"#, Code::ProviderUnavailable),
            (Kind::Ollama, "<html>", Code::ExecutionFailed),
        ] {
            let begun = stream_of(kind, &["so far"]);
            let begun = begun[..begun.len() - if kind == Kind::Ollama { 1 } else { 3 }].concat();
            let script = vec![Act::Hear, head(kind), chunk(&begun), Act::Wait(5), chunk(&format!("{event}\n\n")), Act::Last];
            let (fault, told) = fault_of(kind, script, &root, &blobs, json!({ "stream": true })).await;
            assert_eq!(fault.code, code, "{kind:?} {event}: {fault:?}");
            assert_eq!(told[0], json!({ "text": "so far" }), "{kind:?} {event}");
        }
    });
}

#[test]
fn one_that_stalls_is_given_up_in_time() {
    on_a_shard(|blobs, root| async move {
        for kind in KINDS {
            let begun = stream_of(kind, &["so far"])[0].clone();
            for (script, inputs, phase) in [
                (vec![Act::Hear, Act::Last], json!({ "first_byte_ms": 60 }), "first_byte"),
                (vec![Act::Hear, head(kind), chunk(&begun), Act::Last], json!({ "stall_ms": 60, "stream": true }), "stall"),
                (vec![Act::Hear, head(kind), chunk(&begun), Act::Last], json!({ "attempt_ms": 60, "stream": true }), "attempt"),
            ] {
                let start = Instant::now();
                let (fault, _) = fault_of(kind, script, &root, &blobs, inputs).await;
                assert_eq!((fault.code, details(&fault)["phase"].as_str()), (Code::NetworkError, Some(phase)), "{fault:?}");
                assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            }
        }
    });
}

#[test]
fn whoever_is_not_there_or_has_no_key_is_told_so() {
    on_a_shard(|blobs, root| async move {
        let nobody = reach(policy([("llm", connector(Kind::OpenAi, "http://127.0.0.1:1/v1", Auth::None))]));
        let (fault, _) = ask(&nobody, &blobs, json!({ "model": "m", "prompt": "p" })).await;
        assert_eq!(fault.expect_err("nobody there").code, Code::ConnectionError);
        let gone = SecretRef::parse(&format!("secret://file{}/gone", root.display())).expect("a reference");
        let server = Server::always(Act::answer("200 OK", "", "{}"));
        let keyless = reach(policy([("llm", connector(Kind::OpenAi, &server.url("/v1"), Auth::Bearer(gone)))]));
        let (fault, _) = ask(&keyless, &blobs, json!({ "model": "m", "prompt": "p" })).await;
        assert_eq!(fault.expect_err("no key").code, Code::ResourceUnavailable);
        assert!(server.heard().is_empty(), "nothing is sent without a key");
    });
}

#[test]
fn an_answer_without_end_is_cut_off() {
    on_a_shard(|blobs, root| async move {
        // A body that comes whole, a text and a line that never end.
        let long =
            vec![Act::Hear, Act::say("HTTP/1.1 200 OK\r\n\r\n{\"x\":\""), Act::Repeat(vec![b'x'; 64 << 10], 400), Act::Last];
        let (fault, _) = fault_of(Kind::OpenAi, long, &root, &blobs, json!({})).await;
        assert_eq!(&*fault.message, "The provider's answer is larger than a result carries.");
        let piece = "y".repeat(60 << 10);
        let delta = json!({ "choices": [{ "delta": { "content": piece } }] });
        let event = format!("data: {delta}\n\n");
        let event = format!("{:x}\r\n{event}\r\n", event.len()).into_bytes();
        let endless = vec![Act::Hear, head(Kind::OpenAi), Act::Repeat(event, 400), Act::Last];
        let (fault, told) = fault_of(Kind::OpenAi, endless, &root, &blobs, json!({ "stream": true })).await;
        assert_eq!(&*fault.message, "The provider's answer is larger than a result carries.");
        assert!(told.len() > 100);
        let line = [b"10000\r\n".as_slice(), &[b'z'; 0x10000], b"\r\n"].concat();
        let endless = vec![Act::Hear, head(Kind::Ollama), Act::Repeat(line, 400), Act::Last];
        let (fault, _) = fault_of(Kind::Ollama, endless, &root, &blobs, json!({ "stream": true })).await;
        assert_eq!(&*fault.message, "The provider's answer is larger than a result carries.");
    });
}

#[test]
fn a_step_that_is_stopped_hangs_up() {
    on_a_shard(|blobs, root| async move {
        let begun = stream_of(Kind::OpenAi, &["so far"])[..2].concat();
        let server = Server::start(vec![vec![Act::Hear, head(Kind::OpenAi), chunk(&begun), Act::Last]]);
        let reach = with(Kind::OpenAi, &server, &root);
        let inputs = json!({ "model": "m", "prompt": "p", "stream": true });
        let mut polls = 1;
        while server.heard().is_empty() {
            assert!(!drop_after(polls, ask(&reach, &blobs, inputs.clone())).await, "it has no end");
            polls += 1;
            glommio::timer::sleep(Duration::from_millis(1)).await;
            assert!(polls < 2_000);
        }
        let start = Instant::now();
        while server.open() > 0 {
            assert!(start.elapsed() < Duration::from_secs(5), "{} connections stay open", server.open());
            glommio::timer::sleep(Duration::from_millis(5)).await;
        }
    });
}
