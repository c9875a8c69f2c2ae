//! Every bound of the way out, with its unit.

/// Answers of one name that are tried, of those that the resolver gave.
pub const ADDRESSES_MAX: usize = 8;
/// The next address is tried beside the first when that has not connected after so long (RFC 8305 names 250 ms).
pub const STAGGER_MS: u64 = 250;
/// Names that one shard remembers.
pub const NAMES_MAX: usize = 4_096;
/// The longest that an answer of the resolver is remembered here; the resolver keeps its own times beside that.
pub const NAME_MS_MAX: u64 = 30_000;
/// How long it is remembered that there is no such name.
pub const NO_NAME_MS: u64 = 1_000;
/// A name that is not resolved after so long does not exist for us.
pub const RESOLVE_MS_MAX: u64 = 10_000;
/// Connections of one shard that wait for their next request.
pub const IDLE_MAX: usize = 512;
/// Those of one tenant to one place.
pub const IDLE_PER_PLACE_MAX: usize = 32;
/// How long a connection waits for its next request; most servers wait longer, so that they seldom close first.
pub const IDLE_MS_MAX: u64 = 30_000;
/// Read or buffered of one connection, in bytes.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;
/// The head of an answer, in bytes (HTTP/1.1 and HTTP/2).
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Headers of an answer.
pub const HEADERS_MAX: usize = 128;
/// What an HTTP/2 peer may send unasked on one stream and on all of a connection, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// See [`STREAM_WINDOW_BYTES`].
pub const LINK_WINDOW_BYTES: u32 = 1 << 20;
/// Read from a blob at once for the body of a request, in bytes.
pub const BLOB_CHUNK_BYTES: usize = 64 << 10;
/// How many times its own size an encoded body may become; what is under [`RATIO_FREE_BYTES`] may always.
pub const RATIO_MAX: u64 = 200;
/// See [`RATIO_MAX`].
pub const RATIO_FREE_BYTES: u64 = 1 << 20;
/// How much larger than its limit an encoded body may be, in bytes, beside an eighth of it.
pub const ENCODED_SPARE_BYTES: u64 = 64 << 10;
/// A body that is larger than this once decoded goes on being decoded by compute threads, in bytes.
pub const DECODE_HERE_BYTES: u64 = 64 << 10;
/// Fed to a decoder between two chances for others to run, in bytes.
pub const DECODE_STRIDE_BYTES: usize = 4 << 10;
/// The largest window that a zstd frame may ask for, as a power of two.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

const _: () = assert!(IDLE_PER_PLACE_MAX <= IDLE_MAX);
const _: () = assert!(STREAM_WINDOW_BYTES <= LINK_WINDOW_BYTES);
const _: () = assert!(BUFFER_BYTES_MAX >= 8 << 10, "hyper asks for that much at least");
// What one streaming request keeps: buffers both ways, windows, the decoder's window.
const _: () = assert!(2 * BUFFER_BYTES_MAX + STREAM_WINDOW_BYTES as usize + BLOB_CHUNK_BYTES <= 2 << 20);
