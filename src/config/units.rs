//! Durations, byte sizes and core lists as people write them, and back.

use std::ops::RangeInclusive;

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
/// Cores are numbered below this.
const CORES_MAX: usize = 4_096;

/// Milliseconds out of "500ms", "10s", "15m", "2h" or "7d".
pub(crate) fn parse_duration(text: &str) -> Option<u64> {
    parse(text, &DURATIONS)
}

/// Bytes out of "64KiB", "20GiB", "1GB" or "512B".
pub(super) fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

/// Milliseconds in the largest unit that loses nothing, up to hours.
pub(crate) fn duration_text(ms: u64) -> String {
    render(ms, &DURATIONS[..4])
}

/// Bytes in the largest binary unit that loses nothing.
pub(crate) fn bytes_text(bytes: u64) -> String {
    render(bytes, &SIZES[..5])
}

/// Core numbers out of "2-15" or "0,3" or "0,4-7"; none twice.
pub(super) fn parse_cores(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: RangeInclusive<usize> = digits(first.trim())?..=digits(last.trim())?;
        if range.is_empty() || *range.end() >= CORES_MAX {
            return None;
        }
        for core in range {
            if cores.contains(&core) {
                return None;
            }
            cores.push(core);
        }
    }
    Some(cores)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    digits::<u64>(number)?.checked_mul(*scale)
}

fn render(value: u64, units: &[(&str, u64)]) -> String {
    let fits = units.iter().rev().find(|(_, scale)| value != 0 && value.is_multiple_of(*scale));
    let (name, scale) = fits.unwrap_or(&units[0]);
    format!("{}{name}", value / scale)
}

/// A number of digits alone: no sign, no blanks.
pub(super) fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, want) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("15 m", Some(900_000)),
            ("2h", Some(7_200_000)),
            ("7d", Some(604_800_000)),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("10 sec", None),
            ("", None),
            ("99999999999999999999s", None),
            ("9999999999999999999h", None),
        ] {
            assert_eq!(parse_duration(text), want, "{text}");
        }
    }

    #[test]
    fn sizes_need_a_unit_and_tell_binary_from_decimal() {
        for (text, want) in [
            ("20GiB", Some(20 << 30)),
            ("64 KiB", Some(65_536)),
            ("1GB", Some(1_000_000_000)),
            ("0B", Some(0)),
            ("1024", None),
            ("1gib", None),
            ("1K", None),
        ] {
            assert_eq!(parse_size(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_rendered_reads_back_the_same() {
        for value in [0, 1, 999, 1_000, 60_000, 90_000, 7_200_000, 86_400_000, 1 << 20, 20 << 30, 1_500] {
            assert_eq!(parse_duration(&duration_text(value)), Some(value));
            assert_eq!(parse_size(&bytes_text(value)), Some(value));
        }
        assert_eq!(duration_text(7_200_000), "2h");
        assert_eq!(bytes_text(20 << 30), "20GiB");
    }

    #[test]
    fn core_lists_are_ranges_and_numbers_and_name_no_core_twice() {
        for (text, want) in [
            ("2-5", Some(vec![2, 3, 4, 5])),
            ("0,3", Some(vec![0, 3])),
            ("0, 4-5", Some(vec![0, 4, 5])),
            ("3", Some(vec![3])),
            ("", None),
            ("5-2", None),
            ("1,1", None),
            ("1-3,2", None),
            ("a", None),
            ("0-99999999", None),
            ("-1", None),
        ] {
            assert_eq!(parse_cores(text), want, "{text}");
        }
    }
}
