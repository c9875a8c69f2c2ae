//! Arithmetic on subjects: which pattern covers which, how consumers are split and named. Pure.

/// Whether `pattern` (`*` one token, `>` the rest) takes every subject that `other`, itself a subject or pattern, takes.
pub fn covers(pattern: &str, other: &str) -> bool {
    let mut theirs = other.split('.');
    let mut ours = pattern.split('.');
    loop {
        match (ours.next(), theirs.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(_), Some(">")) => return false,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether some subject is taken by both patterns.
pub fn collide(a: &str, b: &str) -> bool {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        match (left.next(), right.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

/// The pattern of the subjects that both patterns take, if there are any: of two patterns it is always one.
fn meet(a: &str, b: &str) -> Option<String> {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    let mut tokens = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (Some(">"), Some(token)) => tokens.extend([token].into_iter().chain(right.by_ref())),
            (Some(token), Some(">")) => tokens.extend([token].into_iter().chain(left.by_ref())),
            (Some("*"), Some(token)) | (Some(token), Some("*")) => tokens.push(token),
            (Some(one), Some(other)) if one == other => tokens.push(one),
            (None, None) => return Some(tokens.join(".")),
            _ => return None,
        }
    }
}

/// The filters that our consumers need on a stream with these subjects to get what is `wanted` and nothing else.
/// `[None]`: everything the stream has is wanted. Empty: the stream has nothing for us. Sorted, so that names stay.
pub fn filters(stream: &[String], wanted: &[String]) -> Vec<Option<String>> {
    if !stream.is_empty() && stream.iter().all(|subject| wanted.iter().any(|pattern| covers(pattern, subject))) {
        return vec![None];
    }
    let mut filters: Vec<String> = Vec::new();
    for pattern in wanted {
        for subject in stream {
            filters.extend(meet(pattern, subject));
        }
    }
    widest(filters).into_iter().map(Some).collect()
}

/// Without those that another one covers: no message comes twice. Sorted.
pub fn widest(mut patterns: Vec<String>) -> Vec<String> {
    patterns.sort();
    patterns.dedup();
    let all = patterns.clone();
    patterns.retain(|pattern| !all.iter().any(|other| other != pattern && covers(other, pattern)));
    patterns
}

/// The durable's name for the `index`th of `count` filters: 2.9 servers take one filter a consumer.
pub(crate) fn durable(base: &str, index: usize, count: usize) -> String {
    if count <= 1 { base.to_owned() } else { format!("{base}-{}", index + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_takes_whole() {
        for (pattern, other) in [("a.b", "a.b"), ("a.*", "a.b"), ("a.>", "a.b.c"), ("a.>", "a.*"), ("a.>", "a.>"), (">", "a")] {
            assert!(covers(pattern, other), "{pattern} {other}");
        }
        for (pattern, other) in [("a.b", "a.*"), ("a.*", "a.>"), ("a.*", "a.b.c"), ("a.>", "a"), ("a.b.c", "a.b"), ("*", ">")] {
            assert!(!covers(pattern, other), "{pattern} {other}");
        }
    }

    #[test]
    fn patterns_collide_where_one_subject_fits_both() {
        assert!(collide("caf.*.assign", "caf.exec.>"));
        assert!(collide("a.*", "*.b"));
        assert!(!collide("a.*.c", "a.b.d"));
        assert!(!collide("a.b", "a.b.c"));
    }

    fn check(stream: &[&str], wanted: &[&str], expected: &[Option<&str>]) {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = filters(&own(stream), &own(wanted));
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, expected, "{stream:?} {wanted:?}");
    }

    #[test]
    fn a_stream_that_has_only_ours_needs_no_filter() {
        check(&["caf.assign"], &["caf.assign"], &[None]);
        check(&["a", "b"], &["b", "a"], &[None]);
        check(&["caf.a", "caf.b"], &["caf.>"], &[None]);
    }

    #[test]
    fn a_stream_that_has_more_is_filtered_once_per_subject() {
        check(&["caf.>"], &["caf.assign"], &[Some("caf.assign")]);
        check(&["caf.>"], &["caf.z", "caf.a"], &[Some("caf.a"), Some("caf.z")]);
        check(&["caf.a", "other"], &["caf.*"], &[Some("caf.a")]);
        check(&["caf.>"], &["caf.a", "caf.*"], &[Some("caf.*")]);
        check(&["x"], &["caf.a"], &[]);
    }

    #[test]
    fn of_patterns_that_only_meet_the_common_part_is_filtered() {
        check(&["*.b"], &["a.*"], &[Some("a.b")]);
        check(&["*.b.>"], &["a.>"], &[Some("a.b.>")]);
        check(&["a.*.c", "a.b"], &["*.b.*"], &[Some("a.b.c")]);
        check(&["*.*"], &["a.b.>", "a.>"], &[Some("a.*")]);
    }

    #[test]
    fn a_subject_inside_another_is_not_taken_twice() {
        let list = ["b", "a.*", "a.x", "b"].map(str::to_owned).to_vec();
        assert_eq!(widest(list), ["a.*", "b"]);
    }

    #[test]
    fn one_filter_keeps_the_durables_own_name() {
        assert_eq!(durable("endstation", 0, 1), "endstation");
        assert_eq!(durable("endstation", 1, 2), "endstation-2");
    }
}
