//! What goes out to each provider, and what is read of what comes back, without any network.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::body::letter;
use super::super::refusal::wait_ms;
use super::super::reply::{Call, Finish, Reply, Usage, Vectors, Wrong};
use super::super::stream::Reader;
use super::super::wish::{Wish, spelled_out};
use super::*;

fn sent(kind: Kind, inputs: &Value) -> (&'static str, Value) {
    let inputs = inputs.to_string();
    let wish = Wish::read(inputs.as_bytes()).expect("good inputs");
    let letter = letter(kind, "m", &wish).expect("a letter");
    (letter.path, serde_json::from_str(&letter.body).expect("JSON"))
}

#[test]
fn a_talk_is_what_each_provider_takes_for_one() {
    let inputs = json!({
        "messages": [{ "role": "system", "content": "Be \"brief\"." }, { "role": "user", "content": "Hi", "name": "ada" }],
        "system": "First.", "temperature": 0.5, "top_p": 1, "max_tokens": 9, "stop": ["\n", "END"], "stream": true,
        "tools": [{ "name": "t" }], "extra": { "top_k": 3 },
    });
    let user = json!({ "role": "user", "content": "Hi", "name": "ada" });
    let system = json!({ "role": "system", "content": "Be \"brief\"." });
    let first = json!({ "role": "system", "content": "First." });
    let openai = json!({
        "model": "m", "messages": [first, system, user], "temperature": 0.5, "top_p": 1, "max_tokens": 9, "stop": ["\n", "END"],
        "tools": [{ "name": "t" }], "top_k": 3, "stream": true, "stream_options": { "include_usage": true },
    });
    assert_eq!(sent(Kind::OpenAi, &inputs), ("/chat/completions", openai));
    let anthropic = json!({
        "model": "m", "max_tokens": 9,
        "system": [{ "type": "text", "text": "First." }, { "type": "text", "text": "Be \"brief\"." }], "messages": [user],
        "temperature": 0.5, "top_p": 1, "stop_sequences": ["\n", "END"], "tools": [{ "name": "t" }], "top_k": 3, "stream": true,
    });
    assert_eq!(sent(Kind::Anthropic, &inputs), ("/messages", anthropic));
    let ollama = json!({
        "model": "m", "messages": [first, system, user], "tools": [{ "name": "t" }], "stream": true,
        "options": { "temperature": 0.5, "top_p": 1, "num_predict": 9, "stop": ["\n", "END"], "top_k": 3 },
    });
    assert_eq!(sent(Kind::Ollama, &inputs), ("/api/chat", ollama));
}

#[test]
fn prompts_and_texts_go_where_each_provider_has_them() {
    let user = json!([{ "role": "user", "content": "p" }]);
    for (kind, inputs, path, wanted) in [
        (Kind::OpenAi, json!({ "prompt": "p" }), "/chat/completions", json!({ "model": "m", "messages": user })),
        (
            Kind::OpenAi,
            json!({ "prompt": "p", "operation": "completion", "system": "s", "seed": 7, "response_format": "json" }),
            "/completions",
            json!({ "model": "m", "prompt": "s\n\np", "seed": 7, "response_format": { "type": "json_object" } }),
        ),
        (
            Kind::OpenAi,
            json!({ "input": "t", "dimensions": 3 }),
            "/embeddings",
            json!({ "model": "m", "input": ["t"], "encoding_format": "float", "dimensions": 3 }),
        ),
        (
            Kind::Anthropic,
            json!({ "prompt": "p", "operation": "completion", "system": "s" }),
            "/messages",
            json!({ "model": "m", "max_tokens": 4096, "system": [{ "type": "text", "text": "s" }], "messages": user }),
        ),
        (
            Kind::Ollama,
            json!({ "prompt": "p", "operation": "completion", "system": "s", "response_format": { "type": "object" } }),
            "/api/generate",
            json!({ "model": "m", "prompt": "p", "system": "s", "format": { "type": "object" }, "options": {}, "stream": false }),
        ),
        (
            Kind::Ollama,
            json!({ "input": ["t", "u"], "extra": { "keep_alive": "1m", "num_ctx": 64 } }),
            "/api/embed",
            json!({ "model": "m", "keep_alive": "1m", "input": ["t", "u"], "options": { "num_ctx": 64 } }),
        ),
    ] {
        assert_eq!(sent(kind, &inputs), (path, wanted), "{kind:?} {inputs}");
    }
}

#[test]
fn what_a_provider_does_not_have_is_refused_by_name() {
    for (kind, inputs, at) in [
        (Kind::Anthropic, json!({ "input": "t" }), "/input"),
        (Kind::Anthropic, json!({ "prompt": "p", "seed": 1 }), "/seed"),
        (Kind::Anthropic, json!({ "prompt": "p", "response_format": "json" }), "/response_format"),
        (Kind::Ollama, json!({ "prompt": "p", "tool_choice": "auto" }), "/tool_choice"),
    ] {
        let inputs = inputs.to_string();
        let wish = Wish::read(inputs.as_bytes()).expect("good inputs");
        let fault = letter(kind, "m", &wish).expect_err("nothing like it");
        assert_presentable(&fault);
        assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (Code::InvalidInput, Some(at)));
    }
}

#[test]
fn a_steps_name_and_executor_are_written_out_once() {
    for (name, provider, inputs, wanted) in [
        ("ai.generate", "", r#"{"prompt":"p"}"#, None),
        ("text.generate", "router", r#"{"prompt":"p"}"#, Some(r#"{"provider_id":"router","prompt":"p"}"#)),
        ("chat", "", r#"{"prompt":"p"}"#, Some(r#"{"operation":"chat","prompt":"p"}"#)),
        ("completion", "", r#"{"prompt":"p"}"#, Some(r#"{"operation":"completion","prompt":"p"}"#)),
        ("completion", "", r#"{"messages":[]}"#, None),
        ("embedding", "x", r#"{"connector":"c","input":"t"}"#, Some(r#"{"operation":"embedding","connector":"c","input":"t"}"#)),
        ("embedding", "", r#"{"operation":"chat","prompt":"p"}"#, None),
        (
            "chat",
            "x",
            r#"{"operation":null,"provider_id":null,"prompt":"p"}"#,
            Some(r#"{"operation":"chat","provider_id":"x","prompt":"p"}"#),
        ),
        ("chat", "x", "", None),
    ] {
        let told = spelled_out(name, provider, inputs.as_bytes()).expect("an object");
        assert_eq!(told.as_deref(), wanted, "{name} {provider} {inputs}");
    }
}

#[test]
fn a_stream_says_the_same_wherever_it_is_cut() {
    for kind in KINDS {
        let text = stream_of(kind, &["Gr\u{fc}", "\u{df}e, \"", "\u{1d11e}", "\n"]).concat();
        let wanted = Reply {
            text: "Gr\u{fc}\u{df}e, \"\u{1d11e}\n".to_owned(),
            model: Some("m-1".to_owned()),
            id: (kind != Kind::Ollama).then(|| "c-1".to_owned()),
            finish: Some(Finish::Stop),
            calls: Vec::new(),
            usage: Usage { input: Some(10), output: Some(4) },
        };
        for cut in 0..=text.len() {
            let mut reader = Reader::new(kind);
            reader.push(&text.as_bytes()[..cut]).expect("sound");
            assert!(cut == text.len() || !reader.ended || text.as_bytes()[cut..].trim_ascii().is_empty(), "{kind:?} at {cut}");
            reader.push(&text.as_bytes()[cut..]).expect("sound");
            assert!(reader.ended, "{kind:?} cut at {cut}");
            assert_eq!((&reader.reply, &reader.fresh), (&wanted, &wanted.text), "{kind:?} cut at {cut}");
        }
        // Without its mark it has no end, however much of it came.
        let short = stream_of(kind, &["a"]);
        let mut reader = Reader::new(kind);
        reader.push(short[..short.len() - 1].concat().as_bytes()).and_then(|()| reader.finish()).expect("sound");
        assert!(!reader.ended && reader.reply.text == "a", "{kind:?}");
    }
    // A last line needs no end of its own, and half of one says nothing.
    for (line, ended) in [(r#"{"done":true}"#, true), (r#"{"done":tr"#, false)] {
        let mut reader = Reader::new(Kind::Ollama);
        reader.push(line.as_bytes()).and_then(|()| reader.finish()).expect("sound");
        assert_eq!(reader.ended, ended);
    }
}

#[test]
fn calls_of_tools_are_gathered_from_their_pieces() {
    let call = |id: &str| Call { id: id.to_owned(), name: "look".to_owned(), arguments: r#"{"a":1}"#.to_owned() };
    let delta = |calls: Value| format!("data: {}\n\n", json!({ "choices": [{ "delta": { "tool_calls": calls } }] }));
    let openai = [
        delta(json!([{ "index": 0, "id": "t1", "function": { "name": "look", "arguments": "" } }])),
        delta(json!([{ "index": 0, "function": { "arguments": "{\"a\"" } }])),
        delta(
            json!([{ "index": 0, "function": { "arguments": ":1}" } }, { "index": 1, "id": "t2", "function": { "name": "look", "arguments": "{\"a\":1}" } }]),
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    let event = |value: Value| format!("data: {value}\n\n");
    let start = |id: &str| {
        event(
            json!({ "type": "content_block_start", "content_block": { "type": "tool_use", "id": id, "name": "look", "input": {} } }),
        )
    };
    let more = |text: &str| {
        event(json!({ "type": "content_block_delta", "delta": { "type": "input_json_delta", "partial_json": text } }))
    };
    let anthropic =
        [start("t1"), more("{\"a\""), more(":1}"), start("t2"), more("{\"a\":1}"), event(json!({ "type": "message_stop" }))];
    for (kind, text) in [(Kind::OpenAi, openai.concat()), (Kind::Anthropic, anthropic.concat())] {
        let mut reader = Reader::new(kind);
        reader.push(text.as_bytes()).expect("sound");
        assert_eq!((reader.ended, &reader.reply.calls), (true, &vec![call("t1"), call("t2")]), "{kind:?}");
    }
    let look = json!({ "name": "look", "arguments": { "a": 1 } });
    let whole = json!({ "done": true, "message": { "tool_calls": [{ "function": look }] } }).to_string();
    assert_eq!(Reply::whole(Kind::Ollama, whole.as_bytes()).expect("sound").calls, [call("")]);
    let block = json!({ "type": "tool_use", "id": "t1", "name": "look", "input": { "a": 1 } });
    let whole = json!({ "content": [{ "type": "text", "text": "x" }, block], "stop_reason": "tool_use" }).to_string();
    let reply = Reply::whole(Kind::Anthropic, whole.as_bytes()).expect("sound");
    assert_eq!((reply.calls, reply.finish, &*reply.text), (vec![call("t1")], Some(Finish::ToolCalls), "x"));
    // One that skips is none.
    let skips = delta(json!([{ "index": 5, "function": { "arguments": "x" } }]));
    assert!(matches!(Reader::new(Kind::OpenAi).push(skips.as_bytes()), Err(Wrong::Unlike(_))));
}

#[test]
fn figures_that_are_none_were_not_said() {
    for (usage, wanted) in [
        (json!({ "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 900 }), (Some(3), Some(4))),
        (json!({ "prompt_tokens": -3, "completion_tokens": 4 }), (None, Some(4))),
        (json!({ "prompt_tokens": "3", "completion_tokens": 1.5 }), (None, None)),
        (json!({ "prompt_tokens": u64::MAX, "completion_tokens": 4 }), (None, Some(4))),
        (json!([]), (None, None)),
        (json!(null), (None, None)),
    ] {
        let body = json!({ "choices": [{ "message": { "content": "x" }, "finish_reason": "odd" }], "usage": usage }).to_string();
        let reply = Reply::whole(Kind::OpenAi, body.as_bytes()).expect("sound");
        assert_eq!((reply.usage.input, reply.usage.output), wanted, "{usage}");
        assert_eq!(reply.finish, Some(Finish::Other));
    }
}

#[test]
fn what_is_no_answer_is_not_taken_for_one() {
    for (kind, body) in [
        (Kind::OpenAi, "not it"),
        (Kind::OpenAi, "{}"),
        (Kind::OpenAi, r#"{"choices":[]}"#),
        (Kind::OpenAi, "[1]"),
        (Kind::Anthropic, r#"{"content":"x"}"#),
        (Kind::Ollama, r#"{"done":false}"#),
    ] {
        assert!(matches!(Reply::whole(kind, body.as_bytes()), Err(Wrong::Unlike(_))), "{kind:?} {body}");
    }
    for kind in KINDS {
        let said = Reply::whole(kind, br#"{"error":{"type":"overloaded_error","message":"busy"}}"#);
        assert!(matches!(said, Err(Wrong::Said(_))), "{kind:?}");
    }
}

#[test]
fn vectors_come_in_the_order_of_their_texts_or_not_at_all() {
    let read = |kind, body: &'static str, texts| Vectors::read(kind, &Bytes::from_static(body.as_bytes()), texts);
    let body = r#"{"data":[{"index":1,"embedding":[0.5]},{"index":0,"embedding":[ -1e-3, 2]}],"usage":{"prompt_tokens":5}}"#;
    let vectors = read(Kind::OpenAi, body, 2).expect("sound");
    assert_eq!((vectors.list, vectors.reply.usage.input), (vec!["[ -1e-3, 2]".into(), "[0.5]".into()], Some(5)));
    let vectors = read(Kind::Ollama, r#"{"embeddings":[[1,2]],"prompt_eval_count":3}"#, 1).expect("sound");
    assert_eq!((vectors.list, vectors.reply.usage.input), (vec![Bytes::from_static(b"[1,2]")], Some(3)));
    for body in [
        r#"{"data":[{"embedding":[1]}]}"#,
        r#"{"data":[{"embedding":"AAAA"},{"embedding":[1]}]}"#,
        r#"{"data":[{"embedding":[]},{"embedding":[1]}]}"#,
        r#"{"data":[{"embedding":[1,"x"]},{"embedding":[1]}]}"#,
        "{}",
        "[",
    ] {
        assert!(matches!(read(Kind::OpenAi, body, 2), Err(Wrong::Unlike(_))), "{body}");
    }
}

#[test]
fn how_long_to_wait_is_read_from_whatever_says_it() {
    let now_ms = 1_767_225_600_000;
    for (headers, wanted) in [
        (&[("retry-after-ms", "1500"), ("retry-after", "9")][..], Some(1_500)),
        (&[("retry-after", "9")], Some(9_000)),
        (&[("retry-after", "Thu, 01 Jan 2026 00:00:07 GMT")], Some(7_000)),
        (&[("x-ratelimit-reset-requests", "20ms")], Some(20)),
        (&[("x-ratelimit-reset-requests", "1h1m1.5s"), ("x-ratelimit-reset-tokens", "6m0s")], Some(3_661_500)),
        // Of requests there are some left.
        (
            &[
                ("x-ratelimit-remaining-requests", "7"),
                ("x-ratelimit-reset-requests", "1h"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "2s"),
            ],
            Some(2_000),
        ),
        (
            &[("anthropic-ratelimit-requests-remaining", "0"), ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:30Z")],
            Some(30_000),
        ),
        (&[("anthropic-ratelimit-requests-reset", "2020-01-01T00:00:30Z")], Some(1)),
        (&[("retry-after", "soon")], None),
        (&[("retry-after-ms", "-1"), ("x-ratelimit-reset-tokens", "5 parsecs")], None),
        (&[("retry-after-ms", "1e30")], Some(24 * 3_600_000)),
        (&[], None),
    ] {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(wait_ms(&map, now_ms), wanted, "{headers:?}");
    }
}
