//! The command line: what each command does, apart from how it is spelled.

pub mod config;
pub mod run;
