//! `test.effect.<class>`: blocks for tests of the whole worker. Each does one thing at an effect server, over the Unix socket
//! that `at` names, and the server keeps a ledger of what was done: `mark` says for which step.
//!
//! A request and its answer are one line of JSON each. What a class may rely on is the server's: it tells repeats of a key apart
//! (idempotent, and transactional with the answer that it stored), refuses to make again what is there (conditional), or does it
//! however often it is asked (pure, unsafe). Built only with the feature `failpoints`, known only for development.

use std::io;

use bytes::Bytes;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use glommio::net::UnixStream;
use serde::Deserialize;
use serde_json::json;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::hex;
use shards::outcome::{Code, Effected, Fault};
use shards::step::EffectClass;

use super::Checked;
use super::inputs::{Inputs, forbidden};

pub(super) static PURE: BlockInfo = info("test.effect.pure", EffectClass::Pure);
pub(super) static IDEMPOTENT: BlockInfo = info("test.effect.idempotent", EffectClass::Idempotent);
pub(super) static TRANSACTIONAL: BlockInfo = info("test.effect.transactional", EffectClass::Transactional);
pub(super) static CONDITIONAL: BlockInfo = info("test.effect.conditional", EffectClass::Conditional);
pub(super) static UNSAFE: BlockInfo = info("test.effect.unsafe", EffectClass::Unsafe);

/// The longest socket path there is.
const AT_BYTES_MAX: usize = 107;
const ANSWER_BYTES_MAX: usize = 4_096;

const fn info(name: &'static str, effect: EffectClass) -> BlockInfo {
    BlockInfo { name, aliases: &[], version: "1.0.0", effect }
}

/// One class of it.
pub(super) struct Doing(pub(super) &'static BlockInfo);

/// What the server says.
#[derive(Deserialize)]
struct Answer {
    /// Its number in the ledger, or that of what is there.
    entry: u64,
    /// Whose it is.
    mark: u64,
    /// It was there before.
    #[serde(default)]
    before: bool,
}

/// Where and for what.
fn read(inputs: &[u8]) -> Result<(String, u64), Fault> {
    let inputs = Inputs::read(inputs)?;
    let at = inputs.text_needed("at")?;
    if at.is_empty() || at.len() > AT_BYTES_MAX {
        return Err(forbidden("at", "the path of a socket"));
    }
    Ok((at.into_owned(), inputs.integer("mark", 0..=u64::MAX, 0)?))
}

macro_rules! checks {
    ($($check:ident: $class:ident),*) => {$(
        pub(super) fn $check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
            read(inputs).map(|_| Checked::as_sent(EffectClass::$class))
        }
    )*};
}

checks!(
    check_pure: Pure,
    check_idempotent: Idempotent,
    check_transactional: Transactional,
    check_conditional: Conditional,
    check_unsafe: Unsafe
);

impl Block for Doing {
    fn info(&self) -> &'static BlockInfo {
        self.0
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let (at, mark) = read(&cx.inputs)?;
            let Ok(mut stream) = UnixStream::connect(&at).await else {
                return Err(Fault::new(Code::ConnectionError, "The effect server is not there."));
            };
            let request = json!({
                "block": self.0.name, "key": hex(&cx.key.0), "mark": mark, "try": cx.try_number,
                "worker": std::env::var("WORKER_ID").unwrap_or_default(), "life": std::process::id(),
            });
            // From here on it may have happened, whatever we hear of it.
            let unknown = |_| {
                let fault = Fault::new(Code::NetworkError, "The effect server did not answer.");
                fault.with_effect(if self.0.effect == EffectClass::Pure { Effected::None } else { Effected::Unknown })
            };
            let answer = ask(&mut stream, format!("{request}\n")).await.map_err(unknown)?;
            if answer.mark != mark {
                // The precondition failed, and not by what we did.
                return Err(Fault::new(Code::ExecutionFailed, "Something else is there."));
            }
            Ok(json!({ "entry": answer.entry, "before": answer.before }).to_string().into())
        })
    }
}

async fn ask(stream: &mut UnixStream, request: String) -> io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 512]);
    while !answer.ends_with(b"\n") {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes if answer.len() + bytes > ANSWER_BYTES_MAX => return Err(io::ErrorKind::InvalidData.into()),
            bytes => answer.extend_from_slice(&buffer[..bytes]),
        }
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use serde_json::Value;

    use super::super::tests::{on_a_shard, run};
    use super::*;

    /// What a server hears that answers with these lines, one a connection; `None`: it hangs up.
    fn server(at: &std::path::Path, answers: Vec<Option<&'static str>>) -> std::thread::JoinHandle<Vec<Value>> {
        let listener = UnixListener::bind(at).expect("a socket");
        std::thread::spawn(move || {
            let take = |answer: Option<&str>| {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("a request");
                if let Some(answer) = answer {
                    writeln!(stream, "{answer}").expect("an answer");
                }
                serde_json::from_str(&line).expect("JSON")
            };
            answers.into_iter().map(take).collect()
        })
    }

    #[test]
    fn what_was_done_is_told_and_what_may_have_been_done_is_unknown() {
        on_a_shard(|blobs, root| async move {
            let at = root.join("effects");
            let inputs = json!({ "at": at, "mark": 7 });
            let fault = run(&blobs, "test.effect.unsafe", inputs.clone()).await.expect_err("nobody is there");
            assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None));
            let said = r#"{"entry":3,"mark":7,"before":true}"#;
            let heard = server(&at, vec![Some(said), None, None, Some(r#"{"entry":3,"mark":8}"#)]);
            let outputs = run(&blobs, "test.effect.idempotent", inputs.clone()).await.expect("done");
            assert_eq!(outputs, json!({ "entry": 3, "before": true }));
            for (name, effect) in [("test.effect.unsafe", Effected::Unknown), ("test.effect.pure", Effected::None)] {
                let fault = run(&blobs, name, inputs.clone()).await.expect_err("hung up");
                assert_eq!((fault.code, fault.effect), (Code::NetworkError, effect));
            }
            let fault = run(&blobs, "test.effect.conditional", inputs).await.expect_err("another's");
            assert_eq!((fault.code, fault.effect), (Code::ExecutionFailed, Effected::None));
            let heard = heard.join().expect("a server");
            assert_eq!((&heard[0]["block"], &heard[0]["mark"]), (&json!("test.effect.idempotent"), &json!(7)));
            assert_eq!(heard[0]["key"], "0".repeat(32));
        });
    }

    #[test]
    fn a_socket_must_be_named() {
        for inputs in [json!({}), json!({ "at": "" }), json!({ "at": "x".repeat(108) })] {
            check_unsafe("", inputs.to_string().as_bytes()).expect_err("refused");
        }
    }
}
