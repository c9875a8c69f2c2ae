#![doc = include_str!("ARCHITECTURE.md")]

pub mod blocks;
pub mod cli;
pub mod compute;
pub mod config;
pub mod dlq;
pub mod edge;
pub mod net;
pub mod offload;
pub mod ops;
pub mod policy;
pub mod secrets;
pub mod settings;
pub mod worker;
