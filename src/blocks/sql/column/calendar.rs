//! PostgreSQL's days, times and intervals as text. Its calendar goes further than libraries' do, both ways. Pure.

/// Days between 1970-01-01 and PostgreSQL's own first day.
const EPOCH_DAYS: i64 = 10_957;
const DAY_US: i64 = 86_400_000_000;

pub(super) fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (day, era) = day(i64::from(days));
            format!("{day}{era}")
        }
    }
}

/// A day since PostgreSQL's first, in the proleptic Gregorian calendar, and what stands behind one before year 1.
fn day(days: i64) -> (String, &'static str) {
    // Years that begin in March, in eras of 400 of them.
    let days = days + EPOCH_DAYS + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    match year {
        1.. => (format!("{year:04}-{month:02}-{day:02}"), ""),
        _ => (format!("{:04}-{month:02}-{day:02}", 1 - year), " BC"),
    }
}

pub(super) fn time(us: i64) -> String {
    let seconds = us / 1_000_000;
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match us % 1_000_000 {
        0 => clock,
        us => format!("{clock}.{}", format!("{us:06}").trim_end_matches('0')),
    }
}

pub(super) fn timestamp(us: i64, zone: &str) -> String {
    match us {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        us => {
            let (day, era) = day(us.div_euclid(DAY_US));
            format!("{day}T{}{zone}{era}", time(us.rem_euclid(DAY_US)))
        }
    }
}

/// Seconds west of Greenwich.
pub(super) fn offset(west: i32) -> String {
    let (sign, seconds) = if west > 0 { ('-', west) } else { ('+', -west) };
    let text = format!("{sign}{:02}:{:02}", seconds / 3_600, seconds / 60 % 60);
    if seconds % 60 == 0 { text } else { format!("{text}:{:02}", seconds % 60) }
}

/// As ISO 8601 has it.
pub(super) fn interval(micros: i64, days: i32, months: i32) -> String {
    let mut text = String::from("P");
    let mut part = |value: i64, unit: &str| {
        if value != 0 {
            text.push_str(&format!("{value}{unit}"));
        }
    };
    part(i64::from(months / 12), "Y");
    part(i64::from(months % 12), "M");
    part(i64::from(days), "D");
    if micros != 0 {
        let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
        text.push('T');
        let mut part = |value: i64, unit: &str| {
            if value != 0 {
                text.push_str(&format!("{value}{unit}"));
            }
        };
        part(seconds / 3_600, "H");
        part(seconds / 60 % 60, "M");
        if rest == 0 {
            part(seconds % 60, "S");
        } else {
            let sign = if micros < 0 { "-" } else { "" };
            let fraction = format!("{:06}", rest.abs());
            text.push_str(&format!("{sign}{}.{}S", (seconds % 60).abs(), fraction.trim_end_matches('0')));
        }
    }
    if text.len() == 1 { "PT0S".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_moments_are_those_of_the_calendar() {
        for (days, text) in [
            (0, "2000-01-01"),
            (-1, "1999-12-31"),
            (59, "2000-02-29"),
            (9_829, "2026-11-29"),
            (-10_957, "1970-01-01"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (2_921_939, "9999-12-31"),
            (2_921_940, "10000-01-01"),
            (i32::MAX, "infinity"),
            (i32::MIN, "-infinity"),
        ] {
            assert_eq!(date(days), text, "{days}");
        }
        assert_eq!(timestamp(0, "Z"), "2000-01-01T00:00:00Z");
        assert_eq!(timestamp(-1, ""), "1999-12-31T23:59:59.999999");
        assert_eq!(timestamp(i64::MAX, "Z"), "infinity");
        assert_eq!(time(DAY_US), "24:00:00");
        assert_eq!((offset(-3_600), offset(12_600), offset(0)), ("+01:00".into(), "-03:30".into(), "+00:00".into()));
        assert_eq!(interval(0, 0, 0), "PT0S");
        assert_eq!(interval(14_706_000_000, 3, 14), "P1Y2M3DT4H5M6S");
        assert_eq!(interval(-1_500_000, 0, -1), "P-1MT-1.5S");
    }
}
