//! A blocked Bloom filter: a look touches one cache line. Keys are salted hashes already, so their bytes are used as they are:
//! the first eight choose the block, in the order of the keys, the others one bit in each of its eight words.

use crate::ids::Key;
use crate::limits::FILTER_BITS_PER_KEY;

const WORDS: usize = 8;
/// Bytes of a block: a cache line.
pub(super) const BLOCK_BYTES: usize = WORDS * 8;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Block([u64; WORDS]);

/// Says of a key that it is not there, or that it may be. Shared, never changes once it is built.
#[derive(Debug)]
pub struct Filter {
    blocks: Vec<Block>,
}

impl Filter {
    /// Nothing in it yet, with room for `most` keys.
    pub fn for_keys(most: u64) -> Filter {
        Filter::with_blocks((most * FILTER_BITS_PER_KEY).div_ceil(BLOCK_BYTES as u64 * 8).max(1))
    }

    pub(super) fn with_blocks(blocks: u64) -> Filter {
        Filter { blocks: vec![Block([0; WORDS]); blocks as usize] }
    }

    /// Puts a key in.
    pub fn add(&mut self, key: &Key) {
        let (at, bits) = self.place(key);
        let Block(words) = &mut self.blocks[at];
        for (nth, word) in words.iter_mut().enumerate() {
            *word |= 1 << (bits >> (nth * 6) & 63);
        }
    }

    /// Whether a key may be in it.
    #[inline]
    pub fn may_hold(&self, key: &Key) -> bool {
        let (at, bits) = self.place(key);
        let Block(words) = &self.blocks[at];
        words.iter().enumerate().all(|(nth, word)| word >> (bits >> (nth * 6) & 63) & 1 == 1)
    }

    #[inline]
    fn place(&self, key: &Key) -> (usize, u64) {
        let number = u128::from_be_bytes(key.0);
        let start = number >> 64;
        (((start * self.blocks.len() as u128) >> 64) as usize, number as u64)
    }

    /// What it takes in memory and in a file, in bytes.
    pub fn bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK_BYTES) as u64
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        self.blocks.iter().flat_map(|block| block.0)
    }

    pub(super) fn set_word(&mut self, at: usize, word: u64) {
        self.blocks[at / WORDS].0[at % WORDS] = word;
    }
}
