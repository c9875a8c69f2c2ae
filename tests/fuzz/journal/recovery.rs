//! Recovery on the pure level: what `runtime::disk::open` does with files, done with bytes.

use shards::fold::{Fold, Restored};
use shards::ids::{Key, Lsn, Salt};
use shards::journal::FrameView;
use shards::journal::codec::CodecError;
use shards::journal::scan::Scan;
use shards::journal::segment::{Damage, Expected, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use shards::journal::view::Frames;

pub const WORKER: &str = "w";
pub const SALT: Salt = Salt([7; 32]);

/// A journal that was read.
pub struct Recovered {
    pub first_lsn: Lsn,
    pub next_lsn: Lsn,
    /// Whether a tail was cut.
    pub torn: bool,
    /// Each frame: which file, where in it, how long.
    pub frames: Vec<(u32, u32, u32)>,
    /// A bit for each kind of frame.
    pub kinds: u64,
    pub restored: Restored,
    /// What is kept of each file, in bytes; 0: nothing.
    pub kept: Vec<usize>,
    keys: Vec<Key>,
}

/// Why a journal may not be used.
#[derive(Debug)]
pub enum Refused {
    Head(HeadError),
    #[allow(dead_code, reason = "said in panics")]
    Damaged {
        file: usize,
        offset: u64,
        damage: Damage,
    },
}

/// Reads files in the order of their sequence.
pub fn recover(files: &[Vec<u8>]) -> Result<Recovered, Refused> {
    let heads = heads(files)?;
    let first_lsn = heads.first().map_or(Lsn(1), |(_, head)| head.first_lsn);
    let mut found = Recovered {
        first_lsn,
        next_lsn: first_lsn,
        torn: false,
        frames: Vec::new(),
        kinds: 0,
        restored: Restored::default(),
        kept: vec![0; files.len()],
        keys: Vec::new(),
    };
    let mut fold = Fold::default();
    for (at, (file, head)) in heads.iter().enumerate() {
        let elsewhere = heads.get(at + 1).map_or(Lsn(0), |(_, next)| Lsn(next.first_lsn.0 - 1));
        found.segment(*file, head, &files[*file], elsewhere, &mut fold)?;
    }
    found.restored = fold.finish();
    Ok(found)
}

fn heads(files: &[Vec<u8>]) -> Result<Vec<(usize, SegmentHead)>, Refused> {
    let expected = Expected { worker_id: WORKER, generation: 1, shard: 0, shards: 1, salt: &SALT };
    let mut heads = Vec::new();
    for (file, bytes) in files.iter().enumerate() {
        let head = SegmentHead::decode(bytes);
        let unfinished = bytes.len() < SEGMENT_HEAD_BYTES || bytes.iter().take(8).all(|byte| *byte == 0);
        if unfinished || head == Err(HeadError::Damaged) {
            if bytes.get(SEGMENT_HEAD_BYTES..).unwrap_or_default().iter().all(|byte| *byte == 0) {
                continue;
            }
            return Err(Refused::Damaged { file, offset: 0, damage: Damage::Header });
        }
        heads.push((file, head.and_then(|head| head.check(&expected).map(|()| head)).map_err(Refused::Head)?));
    }
    Ok(heads)
}

impl Recovered {
    fn segment(&mut self, file: usize, head: &SegmentHead, bytes: &[u8], elsewhere: Lsn, fold: &mut Fold) -> Result<(), Refused> {
        let damaged = |offset, damage| Refused::Damaged { file, offset, damage };
        if head.first_lsn != self.next_lsn {
            return Err(damaged(0, Damage::Lsn { expected: self.next_lsn.0, found: head.first_lsn.0 }));
        }
        let mut scan = Scan::new(head, bytes, elsewhere);
        for batch in scan.by_ref() {
            let mut lsn = batch.head.first_lsn;
            for frame in Frames::new(batch.frames) {
                let folded = frame.and_then(FrameView::parse).and_then(|view| fold.frame(lsn, &view).map(|()| view));
                let view = folded.map_err(|error| damaged(batch.offset, error.into()))?;
                self.kinds |= 1 << view.code().min(31);
                let at = view.raw().as_ptr() as usize - bytes.as_ptr() as usize;
                self.frames.push((file as u32, at as u32, view.raw().len() as u32));
                self.keys.push(view.key());
                lsn = lsn.next();
            }
            if lsn != batch.head.end_lsn() {
                return Err(damaged(batch.offset, CodecError::Short.into()));
            }
        }
        let tail = scan.finish().map_err(|fault| damaged(fault.offset, fault.damage))?;
        self.next_lsn = tail.next_lsn;
        self.torn |= tail.torn;
        self.kept[file] = if tail.batches > 0 { tail.offset as usize } else { 0 };
        Ok(())
    }

    /// The files as recovery leaves them: torn tails cut, empty ones gone.
    pub fn left(&self, files: &[Vec<u8>]) -> Vec<Vec<u8>> {
        files.iter().zip(&self.kept).filter(|(_, kept)| **kept > 0).map(|(file, kept)| file[..*kept].to_vec()).collect()
    }

    /// `left` with the segment that the worker opens behind it.
    pub fn gone_on(&self, mut left: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        left.push(head(99, 0x1234_5678_9abc, self.next_lsn).encode());
        left
    }

    /// All that was read and what it means.
    pub fn summary(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let Restored { known, unfinished, tenants, wall_ms, floor, watermark_ms, newest, strikes, owner_epoch, released } =
            &self.restored;
        let mut tenants: Vec<_> = tenants.clone();
        tenants.sort();
        let known: Vec<_> = self.keys.iter().map(|key| (known.get(key), strikes.of(key), released.get(key).copied())).collect();
        let lengths: Vec<u32> = self.frames.iter().map(|(_, _, length)| *length).collect();
        (
            lengths,
            self.next_lsn,
            known,
            unfinished.clone(),
            tenants,
            (*wall_ms, *floor, *watermark_ms, *owner_epoch),
            newest.clone(),
        )
    }
}

/// A segment's header as this worker writes it.
pub fn head(sequence: u64, id: u64, first_lsn: Lsn) -> SegmentHead {
    SegmentHead {
        worker_id: WORKER.to_owned(),
        generation: 1,
        shard: 0,
        shards: 1,
        features: 0,
        id,
        sequence,
        first_lsn,
        salt: SALT,
        created_ms: 1_767_225_600_000,
        boot: 1,
    }
}
