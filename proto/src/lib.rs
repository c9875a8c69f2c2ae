//! The native wire messages: what a step, its outcome, and everything said on the way look like to other programs.
//!
//! The sources are `beamline/worker/v1/*.proto` beside this crate. What lies under `src/generated/` is made from them
//! and committed, so that building needs no protobuf compiler; `tests/generated.rs` fails where the two differ.
//! Field comments in the sources say units and defaults; they are this crate's documentation too.
//!
//! This is wire form only. What the messages mean, and which of their values are valid, is decided in the root crate
//! (`edge/native.rs`, `edge/protobuf.rs`), which reads and writes them as protobuf and as JSON, and serves the gRPC
//! service of `service.proto` (`edge/grpc.rs`).

/// Everything under the protobuf package `beamline`.
pub mod beamline {
    /// Everything under the protobuf package `beamline.worker`.
    pub mod worker {
        /// Version 1 of the messages: fields may be added, never renumbered or given another meaning.
        // `include!` and not `mod`: the formatter would rewrite a module's file.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            include!("generated/beamline.worker.v1.rs");
        }
    }
}

pub use beamline::worker::v1;

/// The messages and the service as protobuf describes them, with everything that they import: what reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/beamline.worker.v1.bin");
