//! The audit item of one decision: [`AuditItem`] v1, carried inside the journal frame that holds the decision itself.
//!
//! Items ride in the journals, so a crash loses none. They hold what a chain over all shards' items needs; none is built yet.

use sha2::{Digest, Sha256};

use crate::ids::Text;
use crate::outcome::Outcome;

/// What an auditor needs to know of one decision. The key, tenant, fingerprint and block stand in the frame around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditItem {
    /// What was decided.
    pub kind: AuditKind,
    /// Unix ms.
    pub wall_ms: u64,
    /// Counts this tenant's items on this shard, from 1, contiguous.
    pub tenant_seq: u64,
    /// SHA-256 of the outcome, see [`outcome_digest`].
    pub outcome_digest: [u8; 32],
    /// Who decided: the worker's own machinery, or a person.
    pub actor: Text,
    /// The configuration in force.
    pub config_epoch: u32,
}

/// Kinds of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AuditKind {
    /// A step came to its outcome.
    Outcome = 1,
    /// An assignment was answered without running (refusal, conflict).
    Answer = 2,
    /// A message was put aside.
    Quarantine = 3,
}

impl AuditKind {
    /// The kind with this journal code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => AuditKind::Outcome,
            2 => AuditKind::Answer,
            3 => AuditKind::Quarantine,
            _ => return None,
        })
    }
}

/// SHA-256 over the frozen fields of an outcome, length-prefixed, in the order of [`Outcome`].
pub fn outcome_digest(outcome: &Outcome) -> [u8; 32] {
    let mut fixed = [0u8; 64];
    fixed[0] = outcome.status as u8;
    fixed[1] = outcome.effect as u8;
    fixed[2..6].copy_from_slice(&outcome.tries.to_le_bytes());
    fixed[6..14].copy_from_slice(&outcome.received_ms.to_le_bytes());
    fixed[14..22].copy_from_slice(&outcome.started_ms.to_le_bytes());
    fixed[22..30].copy_from_slice(&outcome.ended_ms.to_le_bytes());
    fixed[30..38].copy_from_slice(&outcome.ran_us.to_le_bytes());
    fixed[38..42].copy_from_slice(&outcome.queue_depth.to_le_bytes());
    fixed[42..46].copy_from_slice(&outcome.boot.to_le_bytes());
    fixed[46] = u8::from(outcome.spilled);
    let mut hash = Sha256::new();
    hash.update(&fixed[..47]);
    hash.update((outcome.outputs.len() as u64).to_le_bytes());
    hash.update(&outcome.outputs);
    if let Some(fault) = &outcome.fault {
        hash.update([fault.code as u8, fault.effect as u8]);
        hash.update((fault.message.len() as u64).to_le_bytes());
        hash.update(fault.message.as_bytes());
        hash.update((fault.details.len() as u64).to_le_bytes());
        hash.update(&fault.details);
    }
    hash.finalize().into()
}
