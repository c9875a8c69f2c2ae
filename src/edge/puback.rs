//! Reads what a stream answers to a publish.

use serde::Deserialize;

/// What became of a published parcel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PubAck {
    /// Stored; or it was there already under the same message id.
    Stored {
        /// It was there already.
        duplicate: bool,
    },
    /// A create-only subject holds another message: ours came second.
    Fenced,
    /// Not stored, for the stated reason.
    Refused(String),
}

/// "wrong last sequence": a create-only publish came second.
const WRONG_LAST_SEQUENCE: [u32; 2] = [10_071, 10_164];

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    /// Of an answer to something else than a message: it was done.
    #[serde(default)]
    success: bool,
    #[serde(default, borrow)]
    error: Option<Refusal<'a>>,
}

#[derive(Deserialize)]
struct Refusal<'a> {
    #[serde(default)]
    err_code: u32,
    #[serde(default, borrow)]
    description: std::borrow::Cow<'a, str>,
}

/// Reads the body of an answer.
pub(crate) fn parse(body: &[u8]) -> PubAck {
    match serde_json::from_slice::<Answer<'_>>(body) {
        Ok(Answer { error: Some(refusal), .. }) if WRONG_LAST_SEQUENCE.contains(&refusal.err_code) => PubAck::Fenced,
        Ok(Answer { error: Some(refusal), .. }) => PubAck::Refused(format!("{} ({})", refusal.description, refusal.err_code)),
        Ok(Answer { seq: 1.., duplicate, .. }) => PubAck::Stored { duplicate },
        Ok(Answer { success: true, .. }) => PubAck::Stored { duplicate: false },
        Ok(_) => PubAck::Refused("an answer without a sequence".into()),
        Err(error) => PubAck::Refused(format!("an answer that is no PubAck: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_means_stored_and_so_does_the_word_that_it_was_done() {
        let purged = br#"{"type":"io.nats.jetstream.api.v1.stream_purge_response","success":true,"purged":1}"#;
        assert_eq!(parse(purged), PubAck::Stored { duplicate: false });
        assert_eq!(parse(br#"{"stream":"CAF_RESULT","seq":7}"#), PubAck::Stored { duplicate: false });
        assert_eq!(parse(br#"{"stream":"R","domain":"d","seq":7,"duplicate":true}"#), PubAck::Stored { duplicate: true });
    }

    #[test]
    fn an_error_is_never_stored() {
        let full = br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"R","seq":0}"#;
        assert_eq!(parse(full), PubAck::Refused("maximum messages exceeded (10077)".into()));
        let second = br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"},"stream":"R","seq":0}"#;
        assert_eq!(parse(second), PubAck::Fenced);
        assert!(matches!(parse(b""), PubAck::Refused(_)));
        assert!(matches!(parse(br#"{"stream":"R"}"#), PubAck::Refused(_)));
    }
}
