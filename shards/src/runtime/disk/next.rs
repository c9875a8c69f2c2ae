//! What a version after this one may write, on purpose: `FAILPOINTS=next-format=return` writes segments of the next format that
//! this version may still read, `next-format=return(refused)` some that it may not. Both are read by who writes them.

use crate::journal::segment::{FORMAT, HeadError, SegmentHead};

/// The format that is written, and the oldest that may read it.
fn formats() -> (u16, u16) {
    fail::fail_point!("next-format", |how| match how.as_deref() {
        Some("refused") => (FORMAT + 1, FORMAT + 1),
        _ => (FORMAT + 1, FORMAT),
    });
    (FORMAT, FORMAT)
}

/// A header as it is written now.
pub(super) fn encode(head: &SegmentHead) -> Vec<u8> {
    let (format, oldest_reader) = formats();
    head.encode_as(format, oldest_reader)
}

/// Reads a header as this version does.
pub(super) fn decode(bytes: &[u8]) -> Result<SegmentHead, HeadError> {
    SegmentHead::decode_as(formats().0, bytes)
}
