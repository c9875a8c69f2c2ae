//! NATS subjects as configured: their syntax, and whether two patterns can ever match the same message.

use super::rules::{Rule, list, text_of};

const SUBJECT: &str = "must be a NATS subject: visible characters but commas, parts between dots none of them empty, \
                       not beginning with $ or _INBOX, at most 256 bytes";
/// The longest subject that is taken.
pub(crate) const SUBJECT_BYTES_MAX: usize = 256;

/// One subject without wildcards.
pub(crate) fn subject(value: &toml::Value) -> Rule<String> {
    let text = text_of(value).ok_or(SUBJECT)?;
    if text.split('.').any(|part| part.contains(['*', '>'])) {
        return Err(format!("{SUBJECT}; no wildcards here"));
    }
    if valid(text) { Ok(text.to_owned()) } else { Err(SUBJECT.to_owned()) }
}

/// One or more subjects, wildcards allowed.
pub(crate) fn subjects(value: &toml::Value) -> Rule<Vec<String>> {
    let rule =
        || format!("must be a list of NATS subjects, or one text with commas; each {SUBJECT}; * is a whole part, > the last");
    match list(value) {
        Some(subjects) if !subjects.is_empty() && subjects.iter().all(|s| valid(s)) => Ok(subjects),
        _ => Err(rule()),
    }
}

/// Whether some subject is matched by both patterns.
pub(crate) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

fn valid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    text.len() <= SUBJECT_BYTES_MAX
        && !text.starts_with('$')
        && parts[0] != "_INBOX"
        // A comma stands between subjects wherever a list is one text: the variables, and what `config show` prints.
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b',')
        && parts.iter().enumerate().all(|(index, part)| match *part {
            "" => false,
            "*" => true,
            ">" => index + 1 == parts.len(),
            word => !word.contains(['*', '>']),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_what_the_server_takes() {
        for text in ["a", "a.b", "caf.exec.assign.v1", "a.*.c", "a.>", "*", ">"] {
            assert!(valid(text), "{text}");
        }
        let long = "a".repeat(257);
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", "a.b*", "$JS.x", "_INBOX.x", "ä", "a,b", &long] {
            assert!(!valid(text), "{text}");
        }
    }

    #[test]
    fn patterns_overlap_when_one_message_fits_both() {
        for (one, other, want) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.b", "a.*", true),
            ("*.b", "a.c", false),
            (">", "x", true),
            ("a.*.c", "a.>", true),
        ] {
            assert_eq!(overlap(one, other), want, "{one} {other}");
            assert_eq!(overlap(other, one), want, "{other} {one}");
        }
    }
}
