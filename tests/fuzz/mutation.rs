//! Bending a sample: bytes, pieces, numbers, tokens and halves of other samples, a few at a time.
//!
//! Every mutation works in place on one buffer that is kept from input to input: at several hundred thousand inputs a second
//! an allocation each would be most of the work.

use crate::dice::Dice;

/// What a target's inputs are made of beyond plain bytes.
#[derive(Clone, Copy)]
pub struct Grammar {
    /// Whole pieces that mean something to the target.
    pub pieces: &'static [&'static [u8]],
    /// Bytes between which a token stands; empty where there are none.
    pub joints: &'static [u8],
    /// No input is longer, but by one piece.
    pub bytes_max: usize,
}

/// Numbers at which widths, signs and counts turn over.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    27,
    28,
    40,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    4_095,
    4_096,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    (1 << 53) - 1,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Bends `out`, which holds a copy of a sample, once to six times; `other` is another sample.
pub fn bend(dice: &mut Dice, grammar: &Grammar, out: &mut Vec<u8>, other: &[u8]) {
    // One change most often: what two changes show, one of them usually shows too.
    let times = 1 + dice.below(6).min(dice.below(6)).min(dice.below(6));
    for _ in 0..times {
        once(dice, grammar, out, other);
        out.truncate(grammar.bytes_max);
    }
}

fn once(dice: &mut Dice, grammar: &Grammar, out: &mut Vec<u8>, other: &[u8]) {
    let at = dice.below(out.len() + 1);
    // Half of all changes keep to tokens, so that what is bent can still be read.
    let kind = if dice.once_in(2) { 14 + dice.below(6) } else { dice.below(18) };
    match kind {
        0 | 1 => {
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = dice.next() as u8;
            }
        }
        3 => out.insert(at, dice.next() as u8),
        4 => {
            let end = (at + 1 + dice.below(4)).min(out.len());
            drop(out.drain(at..end));
        }
        5 => {
            let end = at + dice.below(out.len() - at + 1);
            drop(out.drain(at..end));
        }
        6 => out.truncate(at),
        7 => splice(dice, out, at, other),
        8 => repeat(dice, grammar, out, at),
        9 => number(dice, out, at),
        10 => decimal(dice, out, at),
        11 | 12 => insert(out, at, dice.pick(grammar.pieces)),
        13 => {
            let piece = dice.pick(grammar.pieces);
            let end = (at + piece.len()).min(out.len());
            drop(out.splice(at..end, piece.iter().copied()));
        }
        14 | 15 => swap(dice, grammar, out),
        16 => graft(dice, grammar, out, other),
        18 => decimal(dice, out, at),
        19 => {
            let (from, _) = token(grammar, out, at);
            insert(out, from, dice.pick(grammar.pieces));
        }
        _ => {
            let (from, to) = token(grammar, out, at);
            let piece = dice.pick(grammar.pieces);
            drop(out.splice(from..to, piece.iter().copied()));
        }
    }
}

fn insert(out: &mut Vec<u8>, at: usize, piece: &[u8]) {
    drop(out.splice(at..at, piece.iter().copied()));
}

/// The start of this one, the end of another.
fn splice(dice: &mut Dice, out: &mut Vec<u8>, at: usize, other: &[u8]) {
    out.truncate(at);
    // Half the time at the same distance from the end, so that what the halves agree on stays in its place.
    let from = if dice.once_in(2) { at.min(other.len()) } else { dice.below(other.len() + 1) };
    out.extend_from_slice(&other[from..]);
}

/// A piece of itself again, now and then very often.
fn repeat(dice: &mut Dice, grammar: &Grammar, out: &mut Vec<u8>, at: usize) {
    let length = dice.below((out.len() - at).min(64) + 1);
    let many = if dice.once_in(16) { grammar.bytes_max / length.max(1) } else { 4 };
    let times = 1 + dice.below(many);
    let chunk = out[at..at + length].repeat(times.min(grammar.bytes_max / length.max(1)));
    insert(out, at, &chunk);
}

/// A binary number of any width, at an edge or near to what it was.
fn number(dice: &mut Dice, out: &mut [u8], at: usize) {
    let width = 1 << dice.below(4);
    let Some(place) = out.get_mut(at..at + width) else { return };
    let mut value = 0;
    for byte in place.iter().rev() {
        value = value << 8 | u64::from(*byte);
    }
    value = match dice.below(3) {
        0 => EDGES[dice.below(EDGES.len())],
        1 => value.wrapping_add(1 + dice.below(16) as u64),
        _ => value.wrapping_sub(1 + dice.below(16) as u64),
    };
    place.copy_from_slice(&value.to_le_bytes()[..width]);
}

/// The number in digits that stands at or behind `at`, put at an edge.
fn decimal(dice: &mut Dice, out: &mut Vec<u8>, at: usize) {
    let Some(from) = out[at..].iter().position(u8::is_ascii_digit).map(|skip| at + skip) else { return };
    let to = out[from..].iter().position(|byte| !byte.is_ascii_digit()).map_or(out.len(), |length| from + length);
    let mut digits = [0; 20];
    let mut value = EDGES[dice.below(EDGES.len())];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    drop(out.splice(from..to, digits[start..].iter().copied()));
}

/// The token around `at`: what stands between two joints.
fn token(grammar: &Grammar, bytes: &[u8], at: usize) -> (usize, usize) {
    let joint = |byte: &u8| grammar.joints.contains(byte);
    let from = bytes[..at].iter().rposition(joint).map_or(0, |before| before + 1);
    let to = bytes[at..].iter().position(joint).map_or(bytes.len(), |length| at + length);
    (from, to)
}

/// Two tokens change places.
fn swap(dice: &mut Dice, grammar: &Grammar, out: &mut [u8]) {
    let one = token(grammar, out, dice.below(out.len() + 1));
    let two = token(grammar, out, dice.below(out.len() + 1));
    let ((a, b), (c, d)) = if one <= two { (one, two) } else { (two, one) };
    if c < b || d == a {
        return;
    }
    let (first, second) = (b - a, d - c);
    out[a..d].rotate_left(first);
    out[a..d - first].rotate_right(second);
}

/// A token of another sample in the place of one of this.
fn graft(dice: &mut Dice, grammar: &Grammar, out: &mut Vec<u8>, other: &[u8]) {
    let (from, to) = token(grammar, out, dice.below(out.len() + 1));
    let (first, last) = token(grammar, other, dice.below(other.len() + 1));
    drop(out.splice(from..to, other[first..last].iter().copied()));
}
