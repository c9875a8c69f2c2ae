//! Writing JSON by hand: a [`Pen`] over one buffer. Compact, no tree, no formatting machinery on the hot path.

/// A buffer of JSON text being written. The caller sees to the commas.
#[derive(Debug)]
pub(super) struct Pen {
    out: Vec<u8>,
}

impl Pen {
    /// A pen with room for `bytes`.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Pen { out: Vec::with_capacity(bytes) }
    }

    /// What was written.
    pub(super) fn done(self) -> Vec<u8> {
        self.out
    }

    /// What was written so far.
    pub(super) fn written(&self) -> &[u8] {
        &self.out
    }

    /// Starts again, in the same buffer.
    pub(super) fn clear(&mut self) {
        self.out.clear();
    }

    /// JSON text as it is.
    pub(super) fn raw(&mut self, text: &str) -> &mut Self {
        self.out.extend_from_slice(text.as_bytes());
        self
    }

    /// JSON text as it is, from a place that has checked it.
    pub(super) fn raw_bytes(&mut self, text: &[u8]) -> &mut Self {
        self.out.extend_from_slice(text);
        self
    }

    /// A quoted string.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        // Without an early end, so that it becomes vector code.
        let odd = text.bytes().fold(false, |odd, byte| odd | (byte < 0x20) | (byte == b'"') | (byte == b'\\'));
        if odd {
            serde_json::to_writer(&mut self.out, text).expect("a vector takes everything");
            return self;
        }
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
        self
    }

    /// Lower-case hexadecimal.
    pub(super) fn hex(&mut self, bytes: &[u8]) -> &mut Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in bytes {
            self.out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        self
    }

    /// A whole number.
    pub(super) fn int(&mut self, mut value: u64) -> &mut Self {
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[at..]);
        self
    }

    /// A moment in Unix milliseconds as a quoted RFC 3339 time in UTC with six digits.
    pub(super) fn time(&mut self, unix_ms: u64) -> &mut Self {
        let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
        let (year, month, day) = civil(days);
        self.out.push(b'"');
        self.padded(year, 4).raw("-").padded(month, 2).raw("-").padded(day, 2).raw("T");
        self.padded(ms / 3_600_000, 2).raw(":").padded(ms / 60_000 % 60, 2).raw(":").padded(ms / 1_000 % 60, 2);
        self.raw(".").padded(ms % 1_000, 3).raw("000Z\"")
    }

    fn padded(&mut self, value: u64, width: u32) -> &mut Self {
        for place in (1..width).rev() {
            if value < 10_u64.pow(place) {
                self.out.push(b'0');
            }
        }
        self.int(value)
    }
}

/// Year, month and day of a day counted from 1970-01-01: Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Pen)) -> String {
        let mut pen = Pen::with_capacity(0);
        write(&mut pen);
        String::from_utf8(pen.done()).expect("UTF-8")
    }

    #[test]
    fn strings_are_escaped_as_serde_json_escapes_them() {
        for text in ["", "plain", "quo\"te", "back\\slash", "new\nline", "\u{1}\u{7f}", "é😀\u{2028}"] {
            assert_eq!(written(|pen| _ = pen.text(text)), serde_json::to_string(text).expect("a string"));
        }
    }

    #[test]
    fn numbers_are_written_in_full() {
        for value in [0, 7, 10, 99, 1_000_000, u64::MAX] {
            assert_eq!(written(|pen| _ = pen.int(value)), value.to_string());
        }
        assert_eq!(written(|pen| _ = pen.hex(&[0x00, 0x7f, 0xa0, 0xff])), "007fa0ff");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000000Z"),
            (1_767_225_600_007, "2026-01-01T00:00:00.007000Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(written(|pen| _ = pen.time(ms)), format!("\"{want}\""));
        }
    }
}
