//! Blocks that panic on purpose: `FAILPOINTS=block-panics=return(acme)` has every block of tenant acme's steps panic when it is
//! first polled, `return(acme@3)` at its third poll; several tenants with commas between them. Only with the feature
//! `failpoints`.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;

use crate::block::Local;
use crate::ids::Text;
use crate::outcome::Fault;

/// A block's own code is polled for the `poll`th time, from 1.
pub(super) fn polled(tenant: &str, poll: u32) {
    fail::fail_point!("block-panics", |named| {
        let named = named.unwrap_or_default();
        let mut each = named.split(',').map(|one| one.split_once('@').unwrap_or((one, "1")));
        assert!(!each.any(|(name, at)| name == tenant && at.parse() == Ok(poll)), "on purpose, at poll {poll}");
    });
}

/// A block's own code, in which it may panic.
pub(super) fn planted<'a>(tenant: Text, mut code: Local<'a, Result<Bytes, Fault>>) -> Local<'a, Result<Bytes, Fault>> {
    let mut polls = 0;
    Box::pin(poll_fn(move |cx| {
        polls += 1;
        polled(&tenant, polls);
        Pin::new(&mut code).poll(cx)
    }))
}
