//! The journal read back: any bytes as frames, batches and segments, and damage done to a sound journal.
//!
//! What must hold: nothing panics or runs away with memory; what is read is what was written, from the front, and nothing
//! that later bytes prove to have been durable is missing without being reported; a torn tail is cut, never refused; and
//! reading what was left after a cut comes to the same again (I16–I18).
//!
//! | first byte | the rest |
//! |---|---|
//! | `f` | frames back to back, sealed into one sound batch |
//! | `F` | one frame, its length set right |
//! | `s` | segment files as they are, each behind its length |
//! | `S` | segments as a few numbers and batches, every checksum set right |
//! | other | damage, done to [`sound::files`] |

mod damage;
mod exhaustive;
mod forged;
mod frames;
mod recovery;
mod sound;

use bytes::Bytes;
use shards::ids::Lsn;
use shards::journal::segment::Damage;

use crate::memory::peak_of;
use crate::mutation::Grammar;
use crate::run::{Depth, Seen, Target};
use recovery::{Recovered, Refused, recover};

/// What inputs are made of beyond plain bytes.
#[rustfmt::skip]
const PIECES: &[&[u8]] = &[
    b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff", b"\x1c\0\0\0\x0d\0", b"\x1c\0\0\0\x63\x01", b"\x1c\0\0\0\x05\x01", b"\x01\x00",
    b"\x18\x03\x01ab", b"\x18\x80\x80\x80\x80\x80\x01", b"\x14\x01\x03", b"\x16\x08\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x11\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x30\x02\x01\x01", b"\x30\x00", b"\x02\x20", b"\x3f\x00", b"\xf0\x01x",
    b"\x00\x00\x10\x00\x01\xff", b"\x01\x01\x00\x00\x00\x00", b"\x02\x02\x00\x08\x01\x00", b"\x03\x02\x80\x01\x00\x00",
    b"\x04\x01\x10\x00\x40\x00\x02\x00", b"\x05\x00\x00\x00\x40\x00", b"ESBT",
];

/// Reading may hold this many bytes for each that it reads, and these beside them.
const HELD_PER_BYTE_MAX: usize = 48;
const HELD_BYTES_MAX: usize = 64 << 10;

/// The journal's reader, with a sound journal to damage.
#[derive(Default)]
pub struct Journal {
    sound: sound::Sound,
}

impl Target for Journal {
    fn grammar(&self) -> Grammar {
        Grammar { pieces: PIECES, joints: b"\0", bytes_max: 12 << 10 }
    }

    fn samples(&self) -> Vec<Vec<u8>> {
        let mut samples = vec![frames::sample()];
        samples.extend(frames::singles());
        samples.push(forged::sample(&self.sound));
        samples.push(forged::raw(&self.sound.files()[..1]));
        samples.extend(damage::samples());
        samples
    }

    fn check(&mut self, input: &[u8], depth: Depth) -> Seen {
        let whole = depth != Depth::Quick;
        match input {
            [b'f', rest @ ..] => {
                frames::check(rest);
                read(&forged::one_batch(rest), whole)
            }
            [b'F', rest @ ..] => {
                let frame = frames::lengthened(rest);
                frames::check(&frame);
                read(&forged::one_batch(&frame), whole)
            }
            [b's', rest @ ..] => read(&forged::split(rest), whole),
            [b'S', rest @ ..] => read(&forged::repaired(rest), whole),
            rest => {
                let damage = damage::Damage::read(rest);
                let files = damage.done_to(&self.sound);
                let seen = read(&files, whole);
                damage.judge(&self.sound, &files, &recover(&files));
                seen
            }
        }
    }
}

/// Reads files back within its bounds, and what was left once more.
fn read(files: &[Vec<u8>], again: bool) -> Seen {
    let (found, held) = peak_of(|| recover(files));
    let bytes: usize = files.iter().map(Vec::len).sum();
    assert!(held <= HELD_BYTES_MAX + bytes * HELD_PER_BYTE_MAX, "{held} bytes held for {bytes} that were read");
    let found = match found {
        Ok(found) => found,
        Err(refused) => return seen(&refused),
    };
    plausible(&found);
    if again {
        let left = found.left(files);
        // Of a journal without a frame nothing is left but the new segment below, which goes on counting.
        if !left.is_empty() {
            let second = recover(&left).unwrap_or_else(|refused| panic!("what was left is refused: {refused:?}"));
            assert!(!second.torn, "torn again after the cut");
            assert_eq!(second.summary(), found.summary(), "recover(recover(x)) is not recover(x)");
        }
        // As the worker goes on: behind a new segment, whose header says that all before it is durable.
        let more = recover(&found.gone_on(left)).unwrap_or_else(|refused| panic!("behind a new segment: {refused:?}"));
        assert_eq!(more.summary(), found.summary(), "behind a new segment");
    }
    let kinds = found.kinds | u64::from(found.torn) << 32 | (files.len().min(7) as u64) << 33;
    let open =
        found.restored.unfinished.iter().fold(0, |bits, one| bits | 1 << (one.role as u64 * 2 + u64::from(one.interrupted)));
    Seen { what: if found.torn { "cut" } else { "read" }, detail: kinds ^ open << 40 }
}

/// What a shard goes on from lies inside what was read.
fn plausible(found: &Recovered) {
    let restored = &found.restored;
    assert!(restored.known.len() <= found.frames.len(), "more outcomes than frames");
    for one in &restored.unfinished {
        let place = |lsn: Lsn| lsn >= found.first_lsn && lsn < found.next_lsn;
        assert!(place(one.message) && one.message >= restored.floor, "its message is nowhere: {one:?}");
        assert!(one.result.is_none_or(place), "its outcome is nowhere: {one:?}");
    }
    assert!(restored.newest.is_sorted(), "stream time goes back");
}

fn seen(refused: &Refused) -> Seen {
    let fine = |damage: &Damage| format!("{damage:?}").bytes().filter(|byte| !byte.is_ascii_digit()).map(u64::from).sum();
    match refused {
        Refused::Head(error) => Seen { what: "refused head", detail: error.to_string().len() as u64 },
        Refused::Damaged { damage: Damage::Frame(error), .. } => {
            let text = error.to_string();
            Seen { what: "refused frame", detail: text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte)) }
        }
        Refused::Damaged { damage, .. } => Seen { what: "refused damage", detail: fine(damage) },
    }
}

/// A frame's bytes as the decoder wants them.
fn shared(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
