#![doc = include_str!("ARCHITECTURE.md")]

pub mod blocks;
pub mod cli;
pub mod config;
pub mod dlq;
pub mod edge;
pub mod ops;
pub mod settings;
pub mod worker;
