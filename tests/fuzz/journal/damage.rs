//! Damage to a sound journal: what disks and crashes do to bytes, and what recovery must make of it.
//!
//! A torn tail is cut: damage from the start of the last batch on is never refused. Anything else that is missing must be
//! reported, unless nothing that is left proves that it was ever durable. What is read is always what was written.

use shards::ids::Lsn;
use shards::journal::segment::SEGMENT_HEAD_BYTES;

use super::recovery::{Recovered, Refused};
use super::sound::{Place, Sound};

/// Bytes of one act: kind, file, place (u16), length, value.
const ACT_BYTES: usize = 6;
const ACTS_MAX: usize = 12;
const SECTOR: usize = 512;

/// Acts in order.
pub struct Damage {
    acts: Vec<[u8; ACT_BYTES]>,
}

impl Damage {
    pub fn read(script: &[u8]) -> Self {
        Damage { acts: script.chunks_exact(ACT_BYTES).take(ACTS_MAX).map(|act| act.try_into().expect("six bytes")).collect() }
    }

    pub fn done_to(&self, sound: &Sound) -> Vec<Vec<u8>> {
        let mut files = sound.files().to_vec();
        for act in &self.acts {
            let file = usize::from(act[1]) % files.len();
            let whole = files[file].len();
            let place = usize::from(u16::from_le_bytes([act[2], act[3]]));
            // Three in four acts go where the batches are.
            let from = if act[1] < 192 { SEGMENT_HEAD_BYTES } else { 0 };
            let at = if whole > from { from + place % (whole - from) } else { 0 };
            let end = (at + 1 + usize::from(act[4])).min(whole);
            let bytes = &mut files[file];
            match act[0] % 8 {
                _ if whole == 0 => {}
                0 | 1 => bytes[at] ^= 1 << (act[5] % 8),
                2 => bytes[at] = act[5],
                3 => bytes[at..end].fill(0),
                4 => bytes[at / SECTOR * SECTOR..(at / SECTOR * SECTOR + SECTOR).min(whole)].fill(0),
                5 => bytes.truncate(at),
                6 => copy(&mut files, file, at, act),
                // Old bytes behind the end, as a reused block has them.
                _ => {
                    let old = &sound.files()[usize::from(act[5]) % 3];
                    bytes.extend_from_slice(&old[at.min(old.len())..]);
                }
            }
        }
        files
    }

    /// Whether bytes came to stand where others had stood, which may look like anything.
    fn moved(&self) -> bool {
        self.acts.iter().any(|act| act[0] % 8 >= 6)
    }

    /// What recovery may make of it.
    pub fn judge(&self, sound: &Sound, files: &[Vec<u8>], found: &Result<Recovered, Refused>) {
        let intact =
            |place: &Place| files[place.file].get(place.bytes.clone()) == sound.files()[place.file].get(place.bytes.clone());
        let headed = |file: usize| files[file].get(..SEGMENT_HEAD_BYTES) == sound.files()[file].get(..SEGMENT_HEAD_BYTES);
        let (last, before) = sound.batches().split_last().expect("there are batches");
        let recovered = match found {
            Ok(recovered) => recovered,
            Err(refused) => {
                let tail_alone = before.iter().all(intact) && (0..files.len()).all(headed);
                // Beyond the other files' ends too there is nothing.
                let others = (0..last.file).all(|file| files[file].len() == sound.files()[file].len());
                assert!(!(tail_alone && others) || self.moved(), "a torn tail is refused: {refused:?}");
                return;
            }
        };
        // What was read is what was written.
        let from = recovered.first_lsn.0 as usize - 1;
        for (index, (file, at, length)) in recovered.frames.iter().enumerate() {
            let read = &files[*file as usize][*at as usize..(*at + *length) as usize];
            assert_eq!(Some(read), sound.frames().get(from + index).map(Vec::as_slice), "frame {} is another", from + index + 1);
        }
        let blank = |file: usize| files[file].iter().skip(SEGMENT_HEAD_BYTES).all(|byte| *byte == 0);
        assert!(from == 0 || (!headed(0) && blank(0)) || recovered.frames.is_empty(), "the front is gone");
        // What is missing at the end was never proved durable.
        let missing = |place: &Place| place.first_lsn >= recovered.next_lsn;
        let Some(lost) = sound.batches().iter().find(|place| missing(place)) else { return };
        let proof = sound.batches().iter().find(|later| {
            later.file == lost.file && later.bytes.start > lost.bytes.start && intact(later) && later.durable >= lost.first_lsn
        });
        assert!(proof.is_none(), "{lost:?} is gone, and {proof:?} says that it was durable");
        let next = (lost.file + 1..files.len()).find(|file| headed(*file));
        assert!(next.is_none() || recovered.next_lsn == Lsn(1), "{lost:?} is gone, and segment {next:?} follows it");
    }
}

/// A piece of one file over a piece of another, or of itself.
fn copy(files: &mut [Vec<u8>], file: usize, at: usize, act: &[u8; ACT_BYTES]) {
    let source = &files[usize::from(act[5]) % files.len()];
    let from = (usize::from(act[5]) * 64).min(source.len());
    let piece = source[from..(from + 8 * (1 + usize::from(act[4]))).min(source.len())].to_vec();
    let bytes = &mut files[file];
    let at = at / 8 * 8;
    let end = (at + piece.len()).min(bytes.len());
    bytes[at..end].copy_from_slice(&piece[..end - at]);
}

/// One act of each kind, and none.
pub fn samples() -> impl Iterator<Item = Vec<u8>> {
    let acts = (0..8_u8).flat_map(|kind| [[kind, 0, 16, 1, 40, 3], [kind, 2, 200, 2, 90, 1], [kind, 193, 9, 0, 8, 5]]);
    acts.map(|act| act.to_vec()).chain([Vec::new()])
}
