//! The names things go by: keys, fingerprints, askers, tickets and positions in the journal.
//!
//! Everything hashed here is salted with the deployment's secret [`Salt`], so that nobody outside can guess a key or a
//! message id. Fields are length-prefixed before hashing: two different identities never give the same bytes.

use std::fmt;

/// Text that shares its bytes with the message it came from. Crosses cores.
pub type Text = bytestring::ByteString;

/// **K**: what a step is one of. A salted 128-bit hash; see [`Identity`]. Crosses cores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

/// **F**: SHA-256 over what the job asks for. Same K with another F is another job under the same name: never run.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Who asks: one (K, assignment id). Message ids derive from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskerId(pub [u8; 16]);

/// The deployment-wide secret that every key and message id is salted with. Shared, never changes.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

/// A place in a shard's job table, good for one try: `{slot, generation}`. A stale one is recognised and dropped. Crosses cores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket {
    /// Index into the job table.
    pub slot: u32,
    /// Which use of that slot.
    pub generation: u32,
}

/// A frame's number in its shard's journal: contiguous, from 1. Means something on its own core only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

/// A block's index in the worker's block table. The same on all cores of one process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId(pub u16);

/// One of [`crate::limits::PARTITIONS`] parts of the tenant space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Partition(pub u16);

/// A moment, as the driver read it: the machine has no clock of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic microseconds since the process started.
    pub mono_us: u64,
    /// Unix time in milliseconds.
    pub wall_ms: u64,
}

/// What identifies a step, before hashing.
#[derive(Clone, Copy, Debug)]
pub enum Identity<'a> {
    /// flow_id, step_id and an explicit attempt were all there.
    Coordinates {
        /// Whose.
        tenant: &'a str,
        /// Which run of the flow, if it was named.
        run: Option<&'a str>,
        /// Which flow.
        flow: &'a str,
        /// Which step of it.
        step: &'a str,
        /// The orchestrator's licence to run: a new one is a new key.
        attempt: u64,
    },
    /// They were not: the assignment id has to do.
    Assignment {
        /// Whose.
        tenant: &'a str,
        /// Which assignment.
        assignment: &'a str,
    },
}

/// The domains that keys are drawn from: a step's own, an answer's (refusals, conflicts), a quarantined message's.
#[repr(u8)]
enum Domain {
    Coordinates = 1,
    Assignment = 2,
    Answer = 3,
    Quarantine = 4,
    Asker = 5,
    Copy = 6,
}

/// Identities of this size are hashed without an allocation: three ids of a usual length, in bytes.
const SMALL_BYTES: usize = 192;

impl Salt {
    /// K of a step.
    pub fn key(&self, identity: Identity<'_>) -> Key {
        Key(match identity {
            Identity::Coordinates { tenant, run, flow, step, attempt } => {
                let attempt = attempt.to_le_bytes();
                let fields = [tenant.as_bytes(), run.unwrap_or_default().as_bytes(), flow.as_bytes(), step.as_bytes(), &attempt];
                self.hash(Domain::Coordinates, &fields)
            }
            Identity::Assignment { tenant, assignment } => {
                self.hash(Domain::Assignment, &[tenant.as_bytes(), assignment.as_bytes()])
            }
        })
    }

    /// The key under which an assignment's refusal or conflict is kept, so that a step's own K is never touched by it.
    pub fn answer_key(&self, tenant: &str, assignment: &str) -> Key {
        Key(self.hash(Domain::Answer, &[tenant.as_bytes(), assignment.as_bytes()]))
    }

    /// The key of a message that could not be read: its own bytes.
    pub fn quarantine_key(&self, subject: &str, headers: &[(Text, Text)], body: &[u8]) -> Key {
        let mut fields = Vec::with_capacity(2 + headers.len() * 2);
        fields.push(subject.as_bytes());
        for (name, value) in headers {
            fields.push(name.as_bytes());
            fields.push(value.as_bytes());
        }
        fields.push(body);
        Key(self.hash(Domain::Quarantine, &fields))
    }

    /// What shows that a copy of a step, these frames, is the deployment's own.
    pub fn copy_tag(&self, frames: &[u8]) -> [u8; 16] {
        self.hash(Domain::Copy, &[frames])
    }

    /// Who asks for `key` under `assignment`.
    pub fn asker(&self, key: Key, assignment: &str) -> AskerId {
        AskerId(self.hash(Domain::Asker, &[&key.0, assignment.as_bytes()]))
    }

    fn hash(&self, domain: Domain, fields: &[&[u8]]) -> [u8; 16] {
        // One flat buffer, on the stack where it fits: for short input this is several times cheaper than an incremental
        // hasher.
        let length: usize = 1 + fields.iter().map(|field| field.len() + 4).sum::<usize>();
        let mut small = [0; SMALL_BYTES];
        let mut large = Vec::new();
        let flat = if length <= SMALL_BYTES {
            &mut small[..length]
        } else {
            large.resize(length, 0);
            &mut large[..]
        };
        flat[0] = domain as u8;
        let mut at = 1;
        for field in fields {
            flat[at..at + 4].copy_from_slice(&(field.len() as u32).to_le_bytes());
            flat[at + 4..at + 4 + field.len()].copy_from_slice(field);
            at += 4 + field.len();
        }
        let digest = blake3::keyed_hash(&self.0, flat);
        let mut out = [0; 16];
        out.copy_from_slice(&digest.as_bytes()[..16]);
        out
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    push_hex(&mut out, bytes);
    out
}

/// Appends the lower-case hexadecimal of `bytes`.
pub fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for piece in bytes.chunks(32) {
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(piece) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        out.push_str(std::str::from_utf8(&digits[..piece.len() * 2]).expect("digits are ASCII"));
    }
}

/// The bytes of an even number of hexadecimal digits, or `None`.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    let mut out = [0; N];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(out)
}

macro_rules! hex_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0))
            }
        }
    )*};
}
hex_display!(Key, Fingerprint, AskerId);

impl Lsn {
    /// The frame after this one.
    pub fn next(self) -> Lsn {
        Lsn(self.0.saturating_add(1))
    }
}
