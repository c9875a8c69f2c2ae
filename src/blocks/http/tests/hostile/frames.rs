//! Frames of HTTP/2, byte for byte, as RFC 9113 and RFC 7541 have them; and wrong ones.

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

/// Errors, by their number.
pub(super) const NO_ERROR: u32 = 0;
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

/// `:status: 200` by its place in the static table.
pub(super) const STATUS_200: &[u8] = &[0x88];

/// A frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame_that_says(payload.len() as u32, kind, flags, stream, payload)
}

/// A frame that says that it is so long.
pub(super) fn frame_that_says(size: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, size @ ..] = size.to_be_bytes();
    [&size[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS of these.
pub(super) fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// The head of an answer on stream 1, with these lines of it encoded already.
pub(super) fn head(flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, block)
}

/// Part of the body of the answer on stream 1.
pub(super) fn data(flags: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, flags, 1, body.as_ref())
}

/// RST_STREAM.
pub(super) fn reset(stream: u32, error: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &error.to_be_bytes())
}

/// GOAWAY, with the last stream that was looked at.
pub(super) fn goaway(last: u32, error: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), error.to_be_bytes()].concat())
}

/// WINDOW_UPDATE.
pub(super) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// A header by HPACK: a literal that no table keeps.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// The same, but kept in the dynamic table, whose newest entry it then is.
pub(super) fn kept_field(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

/// The newest entry of the dynamic table.
pub(super) const NEWEST: u8 = 0x80 | 62;

/// A string by HPACK, without Huffman's code.
fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 4);
    let mut rest = text.len();
    if rest < 127 {
        out.push(rest as u8);
    } else {
        out.push(127);
        rest -= 127;
        while rest >= 128 {
            out.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text.as_bytes());
    out
}

/// A whole answer on stream 1.
pub(super) fn answer(body: &str) -> Vec<u8> {
    answer_on(1, body)
}

/// A whole answer on this stream.
pub(super) fn answer_on(stream: u32, body: &str) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, STATUS_200), frame(DATA, END_STREAM, stream, body.as_bytes())].concat()
}

/// The same as a block that is cut into HEADERS and CONTINUATION frames of at most so many bytes.
pub(super) fn long_head(block: &[u8], most: usize) -> Vec<u8> {
    let mut pieces = block.chunks(most).peekable();
    let mut out = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(kind, flags, 1, piece));
        kind = CONTINUATION;
    }
    out
}
