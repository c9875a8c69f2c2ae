//! Arithmetic on subjects against a slow and obvious oracle: every subject there can be over the tokens at hand.
//!
//! An input is patterns with blanks between them: a stream's, a `/`, and those that are wanted.

use endstation::edge::subjects::{collide, covers, filters, widest};

use crate::mutation::Grammar;
use crate::run::{Depth, Seen, Target};

/// Patterns of more tokens are only compared with themselves.
const TOKENS_MAX: usize = 3;
const PATTERNS_MAX: usize = 3;
/// Two words that patterns may have, and one that none of them has.
const WORDS: [&str; 3] = ["a", "b", "z"];

/// What inputs are made of beyond plain bytes.
#[rustfmt::skip]
const PIECES: &[&[u8]] = &[
    b"a", b"b", b"*", b">", b".", b" ", b"/", b"a.", b".b", b".*", b".>", b"*.", b"a.b", b"*.*", b" a.> ", b" * ", b"..", b"",
];

/// Which of all subjects; there are 3 + 9 + 27 + 81.
type Set = u128;

/// The patterns, with every subject of up to one token more than they have.
pub struct Patterns {
    subjects: Vec<Vec<&'static str>>,
}

impl Default for Patterns {
    fn default() -> Self {
        let mut subjects: Vec<Vec<&str>> = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..=TOKENS_MAX {
            let until = subjects.len();
            for at in from..until {
                let longer = WORDS.map(|word| subjects[at].iter().copied().chain([word]).collect());
                subjects.extend(longer);
            }
            from = until;
        }
        subjects.remove(0);
        Patterns { subjects }
    }
}

impl Target for Patterns {
    fn grammar(&self) -> Grammar {
        Grammar { pieces: PIECES, joints: b". /", bytes_max: 48 }
    }

    fn samples(&self) -> Vec<Vec<u8>> {
        let samples = [
            "a/a",
            "a.b b.a/b.a a.b",
            "a.>/a.* a.b",
            "a.*/>",
            "*.b/a.*",
            "a b/* a.b",
            "a.b.> b/*.b.a b",
            ">/a.> b.>",
            "a.*.b/a.> b",
            "a.b.a.b *.*/a.*.*.b >",
            "*.* a/b.a *",
        ];
        samples.map(|sample| sample.as_bytes().to_vec()).to_vec()
    }

    fn check(&mut self, input: &[u8], _: Depth) -> Seen {
        let text = String::from_utf8_lossy(input);
        let (stream, wanted) = text.split_once('/').unwrap_or((&text, ""));
        let list = |text: &str| text.split(' ').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let (stream, wanted) = (list(stream), list(wanted));
        let pair = stream.first().zip(wanted.first().or(stream.get(1)));
        if let Some((one, other)) = pair {
            assert_eq!(collide(one, other), collide(other, one), "{one} and {other}");
            assert!(covers(one, one) || !valid(one), "{one} does not cover itself");
            covers(other, one);
        }
        let all = || stream.iter().chain(&wanted);
        if all().any(|pattern| !valid(pattern)) || stream.len() > PATTERNS_MAX || wanted.len() > PATTERNS_MAX {
            let kept = (widest(wanted.clone()), filters(&stream, &wanted));
            return Seen { what: "odd", detail: (kept.0.len().min(3) * 4 + kept.1.len().min(3)) as u64 };
        }
        let subjects = &self.subjects;
        if let Some((one, other)) = pair {
            let (ours, theirs) = (taken(one, subjects), taken(other, subjects));
            assert_eq!(covers(one, other), theirs & !ours == 0, "whether {one} covers {other}");
            assert_eq!(covers(other, one), ours & !theirs == 0, "whether {other} covers {one}");
            assert_eq!(collide(one, other), ours & theirs != 0, "whether {one} and {other} collide");
        }
        selected(&stream, &wanted, subjects)
    }
}

/// A pattern that the oracle takes: few tokens, each of them one of its own.
fn valid(pattern: &str) -> bool {
    let tokens: Vec<&str> = pattern.split('.').collect();
    let fits = |(at, token): (usize, &&str)| matches!(*token, "a" | "b" | "*") || (*token == ">" && at + 1 == tokens.len());
    tokens.len() <= TOKENS_MAX && tokens.iter().enumerate().all(fits)
}

/// The subjects that a pattern takes, each looked at by itself.
fn taken(pattern: &str, subjects: &[Vec<&str>]) -> Set {
    let pattern: Vec<&str> = pattern.split('.').collect();
    subjects.iter().enumerate().fold(0, |set, (at, subject)| set | Set::from(takes(&pattern, subject)) << at)
}

fn takes(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([], []) | ([">"], [_, ..]) => true,
        ([first, rest @ ..], [word, words @ ..]) => (*first == "*" || first == word) && takes(rest, words),
        _ => false,
    }
}

/// What consumers are given is what is wanted and nothing else, and nothing twice where no two patterns meet.
fn selected(stream: &[String], wanted: &[String], subjects: &[Vec<&'static str>]) -> Seen {
    let union = |patterns: &[String]| patterns.iter().map(|pattern| taken(pattern, subjects)).fold(0, |a, b| a | b);
    let (had, asked) = (union(stream), union(wanted));
    let kept = widest(wanted.to_vec());
    assert_eq!(union(&kept), asked, "{kept:?} is not {wanted:?}");
    let filters = filters(stream, wanted);
    let one = |filter: &Option<String>| filter.as_ref().map_or(had, |filter| taken(filter, subjects) & had);
    let given = filters.iter().map(one).fold(0, |a, b| a | b);
    assert_eq!(given, had & asked, "{filters:?} of {stream:?} for {wanted:?}");
    let apart =
        |patterns: &[String]| (0..patterns.len()).all(|at| patterns[..at].iter().all(|other| !collide(other, &patterns[at])));
    if apart(stream) && apart(wanted) {
        let twice = (0..filters.len()).find(|at| filters[..*at].iter().any(|other| one(other) & one(&filters[*at]) != 0));
        assert_eq!(twice, None, "{filters:?} gives a message twice");
    }
    let shape = |patterns: &[String]| {
        patterns.iter().flat_map(|pattern| pattern.bytes()).filter(|byte| matches!(byte, b'*' | b'>')).count()
    };
    let what = match filters.as_slice() {
        [] => "nothing",
        [None] => "everything",
        _ => "a part",
    };
    let detail = stream.len() * 1_000 + wanted.len() * 100 + shape(stream).min(3) * 10 + shape(wanted).min(3);
    Seen { what, detail: (detail * 10 + filters.len().min(9)) as u64 }
}
