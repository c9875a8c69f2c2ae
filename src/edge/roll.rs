//! The paper that letters are cut from: [`Roll`] writes each letter in one reused buffer and copies it to the end of a larger
//! one that it shares with its neighbours. So a letter, its message id and its subject cost no allocation of their own, which
//! the edge's core would have to give back to the shard's.
//!
//! A piece of paper lives until the last letter on it is sent, so pieces are small: a letter that the server refuses for
//! hours keeps a few thousand bytes more than its own.

use bytes::{Bytes, BytesMut};
use shards::ids::Text;

use crate::edge::pen::Pen;

/// A piece of paper, in bytes: about twenty letters.
const PIECE_BYTES: usize = 16 << 10;
/// A letter that is longer gets paper of its own, in bytes.
const LETTER_BYTES_MAX: usize = 4 << 10;
/// A pen whose buffer grew beyond this is given back, in bytes.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// See the module. Lives on its core.
#[derive(Debug)]
pub(super) struct Roll {
    pen: Pen,
    paper: BytesMut,
}

impl Default for Roll {
    fn default() -> Self {
        Roll { pen: Pen::with_capacity(0), paper: BytesMut::new() }
    }
}

impl Roll {
    /// What `write` writes.
    pub(super) fn cut(&mut self, write: impl FnOnce(&mut Pen)) -> Bytes {
        self.pen.clear();
        write(&mut self.pen);
        let written = self.pen.written();
        if written.len() > LETTER_BYTES_MAX {
            let letter = Bytes::copy_from_slice(written);
            if written.len() > KEPT_BYTES_MAX {
                self.pen = Pen::with_capacity(0);
            }
            return letter;
        }
        if self.paper.capacity() < written.len() {
            self.paper = BytesMut::with_capacity(PIECE_BYTES);
        }
        self.paper.extend_from_slice(written);
        self.paper.split().freeze()
    }

    /// As [`Roll::cut`], of text that a pen writes as it is: ids and subjects.
    pub(super) fn text(&mut self, write: impl FnOnce(&mut Pen)) -> Text {
        Text::try_from(self.cut(write)).expect("pens write UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_any_length_are_what_was_written_and_stay_so() {
        let mut roll = Roll::default();
        let lengths = [0, 1, 300, LETTER_BYTES_MAX, LETTER_BYTES_MAX + 1, PIECE_BYTES, KEPT_BYTES_MAX + 1];
        let lengths: Vec<usize> = lengths.iter().copied().cycle().take(50).collect();
        let letters: Vec<Bytes> =
            lengths.iter().map(|length| roll.cut(|pen| _ = pen.raw(&"x".repeat(*length)).int(*length as u64))).collect();
        for (length, letter) in lengths.iter().zip(&letters) {
            assert_eq!(&letter[..], format!("{}{length}", "x".repeat(*length)).as_bytes());
        }
    }

    #[test]
    fn neighbours_share_one_piece_of_paper() {
        let mut roll = Roll::default();
        let first = roll.cut(|pen| _ = pen.raw("one"));
        let second = roll.text(|pen| _ = pen.raw("two"));
        assert_eq!(first.as_ptr() as usize + 3, second.as_ptr() as usize);
    }
}
