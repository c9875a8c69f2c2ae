//! Whole exchanges that go well: what is sent, what observers hear, what the result says and costs.

use super::*;

fn texts(told: &[Value]) -> String {
    told.iter().filter_map(|event| event["text"].as_str()).collect()
}

#[test]
fn a_whole_answer_becomes_outputs_with_usage_and_cost() {
    on_a_shard(|blobs, root| async move {
        let usage = json!({ "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 99 });
        let openai = json!({
            "id": "c-1", "model": "m-1", "choices": [{ "message": { "content": "Hi \"you\"" }, "finish_reason": "length" }],
            "usage": usage,
        });
        let anthropic = json!({
            "id": "c-1", "model": "m-1", "content": [{ "type": "text", "text": "Hi " }, { "type": "text", "text": "\"you\"" }],
            "stop_reason": "max_tokens", "usage": { "input_tokens": 10, "output_tokens": 4 },
        });
        let ollama = json!({
            "model": "m-1", "message": { "content": "Hi \"you\"" }, "done": true, "done_reason": "length", "prompt_eval_count": 10,
            "eval_count": 4,
        });
        for (kind, path, key, answer) in [
            (Kind::OpenAi, "/v1/chat/completions", format!("authorization: Bearer {KEY}"), openai),
            (Kind::Anthropic, "/v1/messages", format!("x-api-key: {KEY}"), anthropic),
            (Kind::Ollama, "/v1/api/chat", format!("authorization: Bearer {KEY}"), ollama),
        ] {
            let server = Server::always(Act::answer("200 OK", "content-type: application/json\r\n", answer.to_string()));
            let reach = with(kind, &server, &root);
            let (outputs, told) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "Hello" })).await;
            let mut outputs = outputs.expect("answered");
            assert!(told.is_empty(), "{told:?}");
            let timing = outputs["timing_ms"].take();
            assert!(timing["total"].as_f64() >= timing["first_byte"].as_f64(), "{timing}");
            let mut wanted = json!({
                "provider": kind.as_str(), "connector": "llm", "operation": "chat", "model": "m-1", "text": "Hi \"you\"",
                "finish_reason": "length", "usage": { "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14 },
                "cost": 0.000022, "currency": "USD", "timing_ms": null,
            });
            if kind != Kind::Ollama {
                wanted["id"] = json!("c-1");
            }
            assert_eq!(outputs, wanted, "{kind:?}");
            let heard = server.heard().pop().expect("heard");
            assert!(heard.starts_with(&format!("POST {path} HTTP/1.1\r\n")) && heard.contains(&key), "{heard}");
            assert_eq!(heard.contains("\r\nanthropic-version: 2023-06-01\r\n"), kind == Kind::Anthropic, "{heard}");
        }
    });
}

#[test]
fn a_streamed_answer_is_told_as_it_comes_and_its_end_is_marked() {
    on_a_shard(|blobs, root| async move {
        for kind in KINDS {
            let server = Server::start(vec![streams(kind, &["Once ", "upon ", "a t\u{ef}me"])]);
            let reach = with(kind, &server, &root);
            let (outputs, told) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "A story", "stream": true })).await;
            let outputs = outputs.expect("answered");
            assert_eq!(outputs["text"], "Once upon a t\u{ef}me", "{kind:?}");
            assert_eq!((&outputs["finish_reason"], &outputs["model"]), (&json!("stop"), &json!("m-1")), "{kind:?}");
            assert_eq!(outputs["usage"], json!({ "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14 }), "{kind:?}");
            assert_eq!(outputs["cost"], json!(0.000022), "{kind:?}");
            let (end, pieces) = told.split_last().expect("told");
            assert!(pieces.len() >= 2 && outputs["streamed"] == pieces.len(), "{kind:?}: {told:?}");
            assert_eq!(texts(pieces), "Once upon a t\u{ef}me", "{kind:?}");
            assert_eq!(
                *end,
                json!({ "fraction": 1.0, "message": "end", "data": { "pieces": pieces.len(), "size": "Once upon a t\u{ef}me".len() } })
            );
            assert!(server.heard()[0].contains("\"stream\":true"), "{kind:?}");
        }
    });
}

#[test]
fn a_connection_serves_again_after_a_stream_and_a_line_kept_open_is_not_waited_for() {
    on_a_shard(|blobs, root| async move {
        let once = [Act::Hear, head(Kind::OpenAi), chunk(&stream_of(Kind::OpenAi, &["a"]).concat()), Act::say("0\r\n\r\n")];
        let twice: Vec<Act> = once.iter().chain(&once).cloned().chain([Act::Last]).collect();
        let server = Server::start(vec![twice]);
        let reach = with(Kind::OpenAi, &server, &root);
        for _ in 0..2 {
            let (outputs, _) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p", "stream": true })).await;
            assert_eq!(outputs.expect("answered")["text"], "a");
        }
        assert_eq!(server.connections(), 1);
        let open = [Act::Hear, head(Kind::OpenAi), chunk(&stream_of(Kind::OpenAi, &["a"]).concat()), Act::Last];
        let server = Server::start(vec![open.to_vec()]);
        let reach = with(Kind::OpenAi, &server, &root);
        let begun = std::time::Instant::now();
        let (outputs, _) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p", "stream": true })).await;
        assert!(outputs.is_ok() && begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    });
}

#[test]
fn one_that_does_not_stream_although_it_was_asked_to_has_answered_all_the_same() {
    on_a_shard(|blobs, root| async move {
        let body = json!({ "choices": [{ "message": { "content": "all of it" }, "finish_reason": "stop" }] }).to_string();
        let server = Server::always(Act::answer("200 OK", "content-type: application/json\r\n", body));
        let reach = with(Kind::OpenAi, &server, &root);
        let (outputs, told) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p", "stream": true })).await;
        let outputs = outputs.expect("answered");
        assert_eq!((&outputs["text"], &outputs["streamed"]), (&json!("all of it"), &json!(1)));
        assert!(outputs.get("usage").is_none() && outputs.get("cost").is_none(), "nobody counted: {outputs}");
        assert_eq!((texts(&told).as_str(), told.len()), ("all of it", 2));
    });
}

#[test]
fn vectors_are_passed_on_as_they_are_written() {
    on_a_shard(|blobs, root| async move {
        let openai = r#"{"data":[{"index":0,"embedding":[0.10,-2e-3]},{"index":1,"embedding":[1,2]}],"model":"e-1","usage":{"prompt_tokens":5,"total_tokens":5}}"#;
        let ollama = r#"{"model":"e-1","embeddings":[[0.10,-2e-3],[1,2]],"prompt_eval_count":5}"#;
        for (kind, body) in [(Kind::OpenAi, openai), (Kind::Ollama, ollama)] {
            let server = Server::always(Act::answer("200 OK", "content-type: application/json\r\n", body));
            let reach = with(kind, &server, &root);
            let (outputs, _) = ask_as(&reach, &blobs, "embedding", json!({ "model": "e", "input": ["a", "b"] })).await;
            let outputs = outputs.expect("answered");
            assert_eq!(outputs["embeddings"], json!([[0.1, -0.002], [1, 2]]), "{kind:?}");
            assert_eq!((&outputs["operation"], &outputs["cost"]), (&json!("embedding"), &json!(0.000005)), "{kind:?}");
            let (fault, _) = ask(&reach, &blobs, json!({ "model": "e", "input": "a" })).await;
            assert_eq!(details(&fault.expect_err("two for one"))["rule"], "the answer is one vector for each text");
        }
    });
}

#[test]
fn the_key_is_told_to_nobody_however_it_comes_back() {
    on_a_shard(|blobs, root| async move {
        for kind in KINDS {
            for cut in 0..=KEY.len() {
                let server = Server::start(vec![streams(kind, &["you are ", &KEY[..cut], &KEY[cut..], "."])]);
                let reach = with(kind, &server, &root);
                let (outputs, told) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p", "stream": true })).await;
                let outputs = outputs.expect("answered");
                assert_eq!(outputs["text"], "you are [REDACTED].", "{kind:?} cut at {cut}");
                assert_eq!(texts(&told), "you are [REDACTED].", "{kind:?} cut at {cut}");
            }
        }
        let call = json!({ "id": KEY, "function": { "name": KEY, "arguments": format!("{{\"k\":\"{KEY}\"}}") } });
        let choice = json!({ "message": { "content": KEY, "tool_calls": [call] }, "finish_reason": KEY });
        let body = json!({ "id": KEY, "model": KEY, "choices": [choice] }).to_string();
        let server = Server::always(Act::answer("200 OK", &format!("x-echo: {KEY}\r\n"), body));
        let reach = with(Kind::OpenAi, &server, &root);
        let (outputs, _) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p" })).await;
        let outputs = outputs.expect("answered");
        assert!(!outputs.to_string().contains(KEY) && outputs["text"] == "[REDACTED]", "{outputs}");
        // In errors, whole, as a type or code, and where the body is cut in the middle of it.
        for body in [
            json!({ "error": { "message": format!("Incorrect key: {KEY}"), "type": KEY, "code": KEY } }).to_string(),
            format!("you are {KEY}"),
            format!("{}{KEY}", "x".repeat((2 << 10) - 5)),
        ] {
            let server = Server::always(Act::answer("401 Unauthorized", &format!("x-echo: {KEY}\r\n"), body));
            let reach = with(Kind::OpenAi, &server, &root);
            let (fault, _) = ask(&reach, &blobs, json!({ "model": "m", "prompt": "p" })).await;
            let fault = fault.expect_err("refused");
            assert_eq!((fault.code, fault.effect), (Code::HttpError, Effected::None));
            assert!(!format!("{fault:?}").contains(KEY) && !details(&fault).to_string().contains(&KEY[..4]), "{fault:?}");
        }
    });
}
