//! Every bound of the edge, in one place, with its unit last.

/// Most deliveries asked of the server and not yet here, over all consumers.
pub(crate) const OUTSTANDING_MAX: u32 = 4_096;
/// Most deliveries one pull request asks for.
pub(crate) const PULL_BATCH_MAX: u32 = 1_000;
/// A pull request ends after this; the server then says how much of it was left.
pub(crate) const PULL_EXPIRES_MS: u64 = 10_000;
/// A pull request that gave neither a message nor a status this long past its end is taken as lost.
pub(crate) const PULL_STALLED_MS: u64 = PULL_EXPIRES_MS + 2_000;
/// After a refusal of a pull request, nothing is asked of that consumer for this long.
pub(crate) const PULL_PAUSE_MS: u64 = 250;
/// A consumer that hands out nothing is looked at this often at most, in milliseconds.
pub(crate) const STILL_LOOK_MS: u64 = 1_000;
/// It stands still if nothing has moved for this much longer than ack_wait, in milliseconds.
pub(crate) const STILL_SLACK_MS: u64 = 1_000;
/// Short pull requests to get it going, in one round.
pub(crate) const NUDGES_MAX: u32 = 10_000;
/// They go out at this distance, in milliseconds: the server takes several that come together for one.
pub(crate) const NUDGE_EVERY_MS: u64 = 1;
/// And end after this, in milliseconds: so 100 of one worker wait at once, where servers let 512 wait by default.
pub(crate) const NUDGE_EXPIRES_MS: u64 = 100;
/// The pause before asking again whether a lost consumer can be had.
pub(crate) const CHECK_PAUSE_MS: u64 = 1_000;
/// Messages taken from one subscription in one turn, and the largest batch a shard's inbox gets.
pub(crate) const BATCH_MAX: usize = 256;
/// Stream deliveries that wait at the edge for one shard's full inbox; more are handed back with a delay.
pub(crate) const BACKLOG_STREAM_MAX: usize = 1_024;
/// Core messages that wait at the edge for one shard's full inbox; more are lost and counted.
pub(crate) const BACKLOG_CORE_MAX: usize = 65_536;
/// Bytes of bodies that wait at the edge for one shard, whatever they came by; never more than the shard itself may hold.
pub(crate) const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Bytes of bodies in one shard's inbox, and never more than a quarter of what the shard may hold; one batch may exceed it.
pub(crate) const INBOX_BYTES_MAX: u64 = 16 << 20;
/// A batch for a shard's inbox is closed at so many bytes of bodies; its last message may exceed it.
pub(crate) const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Hand-backs the connection would not take yet; beyond these the server finds out by itself after ack_wait.
pub(crate) const NAKS_WAITING_MAX: usize = 8_192;
/// Delay of a delivery handed back because the worker drains, in milliseconds.
pub(crate) const DRAIN_NAK_MS: u32 = 1_000;
/// Parcels sent and not yet confirmed at which the outbox stops taking more from the shards.
pub(crate) const WINDOW_MAX: usize = 8_192;
/// Batches the outbox takes in one turn.
pub(crate) const TURN_BATCHES_MAX: usize = 64;
/// A confirmation that has not come after this is taken as lost: the parcel is sent again under its id.
pub(crate) const CONFIRM_WITHIN_MS: u64 = 5_000;
/// First and longest delay before a refused parcel is sent again; doubles in between.
pub(crate) const RESEND_MS: std::ops::RangeInclusive<u64> = 250..=30_000;
/// "No such step here" is said this much later than anything else, in milliseconds: another worker may have it.
pub(crate) const DOUBT_MS: u64 = 200;
/// Replies that wait so; more go out at once.
pub(crate) const DOUBTS_MAX: u32 = 4_096;
/// The longest reply subject that is answered, in bytes.
pub(crate) const REPLY_BYTES_MAX: usize = 256;
/// Subjects whose coverage is remembered one by one.
pub(crate) const DECIDED_MAX: usize = 1_024;
/// While dead letters wait in the worker's own store, it is asked this often whether a stream takes them now, in milliseconds.
pub(crate) const STORE_LOOK_MS: u64 = 5_000;
/// And looked for the answer after this.
pub(crate) const STORE_ANSWER_MS: u64 = 500;
/// How long the end of the process waits for confirmations, in milliseconds.
pub(crate) const FLUSH_WITHIN_MS: u64 = 1_500;
/// Deliveries looked at one by one after a break for no visible reason.
pub(crate) const RESCUE_LOOKS_MAX: usize = 4_096;
/// A lost core message makes the edge unwell for this long, in milliseconds.
pub(crate) const LOSS_SHOWS_MS: u64 = 60_000;
/// One question to the JetStream API, in milliseconds.
pub(crate) const API_WITHIN_MS: u64 = 3_000;
/// A connection that is silent for this long is asked whether it is still there, in milliseconds; the third time it is given up.
pub(crate) const PING_EVERY_MS: u64 = 2_000;
/// A lease that cannot be renewed for this long makes the connection doubtful, in milliseconds.
pub(crate) const DOUBT_AFTER_MS: u64 = 3_000;
/// And a doubtful one is given up if the server does not answer over it within this, in milliseconds.
pub(crate) const ANSWER_WITHIN_MS: u64 = 1_000;
/// One try to connect, the server's greeting included, in milliseconds.
pub(crate) const CONNECT_WITHIN_MS: u64 = 3_000;
/// A complaint that goes on is repeated this often, in milliseconds.
pub(crate) const COMPLAINT_EVERY_MS: u64 = 10_000;
/// Commands that wait between the edge's tasks and the connection.
pub(crate) const CONNECTION_QUEUE: usize = 16_384;
/// max_ack_pending of our consumers: NAKed messages count too, and our own credit bounds deliveries.
pub(crate) const ACK_PENDING_MAX: u64 = 100_000;
/// How long created streams keep a message, in nanoseconds (24 h).
pub(crate) const STREAM_AGE_NS: u64 = 24 * 3600 * 1_000_000_000;
/// Message-id memory of created streams, in nanoseconds (2 min).
pub(crate) const DUPLICATES_NS: u64 = 120 * 1_000_000_000;

const _: () = assert!(PULL_BATCH_MAX <= OUTSTANDING_MAX);
const _: () = assert!(BACKLOG_STREAM_MAX <= BACKLOG_CORE_MAX);
const _: () = assert!(PULL_EXPIRES_MS < PULL_STALLED_MS);
const _: () = assert!(LEASE_RENEW_MS + LEASE_TRY_MS <= LEASE_HOLD_MS && LEASE_HOLD_MS + 500 <= LEASE_TAKE_MS);

/// An owner writes its lease again this often, in milliseconds.
pub(crate) const LEASE_RENEW_MS: u64 = 700;
/// One try to do so may take this long, in milliseconds.
pub(crate) const LEASE_TRY_MS: u64 = 1_000;
/// An owner trusts its lease for this long from the moment before it was written, in milliseconds.
pub(crate) const LEASE_HOLD_MS: u64 = 2_000;
/// Another takes a lease that has stood unchanged for this long before its eyes, in milliseconds.
pub(crate) const LEASE_TAKE_MS: u64 = 3_000;
/// Who waits for a lease looks at it this often, in milliseconds.
pub(crate) const LEASE_LOOK_MS: u64 = 200;
/// Confirmations that no delivery takes along are handed on after this, in milliseconds.
pub(crate) const CONFIRM_AFTER_MS: u64 = 1;

/// gRPC connections at once; more wait to be let in.
pub(crate) const CALL_CONNECTIONS_MAX: usize = 256;
/// Calls at once on one connection; the client's library holds further ones back.
pub(crate) const CALL_STREAMS_MAX: u32 = 512;
/// Metadata of one call, in bytes.
pub(crate) const CALL_HEADERS_BYTES_MAX: u32 = 16 << 10;
/// A connection that says nothing at all, or does not end its TLS handshake, is closed after this, in milliseconds.
pub(crate) const CALL_SILENCE_MS: u64 = 10_000;
/// A connection is asked this often whether it is still there, in milliseconds.
pub(crate) const CALL_PING_EVERY_MS: u64 = 20_000;
/// And closed if it does not answer that within this, in milliseconds.
pub(crate) const CALL_PONG_WITHIN_MS: u64 = 10_000;
/// Requests that wait for their answers, over all connections; more are refused.
pub(crate) const CALLS_MAX: usize = 16_384;
/// Bytes of those requests; never more than all shards may hold.
pub(crate) const CALLS_BYTES_MAX: u64 = 256 << 20;
/// Requests between the calls and their shards' ports; further ones wait.
pub(crate) const REQUESTS_WAITING_MAX: usize = 1_024;
/// Steps of one SubmitStream that are under way; it is read no further meanwhile.
pub(crate) const STEPS_IN_FLIGHT_MAX: usize = 256;
/// Updates of one SubmitStream that wait for the connection.
pub(crate) const UPDATES_MAX: usize = 16;
/// Watches at once.
pub(crate) const WATCHES_MAX: usize = 64;
/// Events that wait for one watch's connection; with more it is ended.
pub(crate) const WATCH_EVENTS_MAX: usize = 1_024;
/// Events that wait for a connection to NATS, where gRPC is served; more are dropped and counted.
pub(crate) const STRANDED_EVENTS_MAX: usize = 16_384;
/// Between two looks at whether calls are served, in milliseconds.
pub(crate) const HEALTH_EVERY_MS: u64 = 100;
/// How long the end of the process waits for connections to take in their last answers, in milliseconds.
pub(crate) const CALL_FAREWELL_MS: u64 = 500;
