//! How a statement begins: enough of it to tell what is never sent. What it does, the database itself decides: a statement that
//! reads runs where nothing can be written.
//!
//! A transaction is the worker's: what would end it, change the session, or copy to files and programs is refused here.

/// What begins a statement that a step may send.
const READS: &[&str] = &["EXPLAIN", "SELECT", "SHOW", "TABLE", "VALUES", "WITH"];
/// What only a step that writes may send.
const WRITES: &[&str] = &[
    "ALTER", "ANALYZE", "CALL", "COMMENT", "CREATE", "DELETE", "DO", "DROP", "GRANT", "INSERT", "MERGE", "REFRESH", "REINDEX",
    "REPLACE", "REVOKE", "TRUNCATE", "UPDATE",
];

/// What a statement is by its beginning. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// It may read.
    Read,
    /// It writes.
    Write,
    /// It is never sent.
    Neither,
}

/// What stands first in `sql` behind blanks, comments and opening brackets.
pub(super) fn of(sql: &str) -> Lead {
    let word = first_word(sql).to_ascii_uppercase();
    let among = |list: &[&str]| list.contains(&word.as_str());
    match () {
        () if among(READS) => Lead::Read,
        () if among(WRITES) => Lead::Write,
        () => Lead::Neither,
    }
}

/// The first word, empty where there is none.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '(');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.find('\n').map_or("", |end| &comment[end..]);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = behind(comment);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            // A word that goes on with anything else is another word.
            let whole = rest[end..].chars().next().is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '_' | '$')));
            return if whole { &rest[..end] } else { "" };
        }
    }
}

/// What stands behind a comment that has begun; PostgreSQL nests them, and one that nests where SQLite would not only ends later.
fn behind(comment: &str) -> &str {
    let (mut depth, mut at, bytes) = (1, 0, comment.as_bytes());
    while at + 1 < bytes.len() {
        match (bytes[at], bytes[at + 1]) {
            (b'*', b'/') => (depth, at) = (depth - 1, at + 2),
            (b'/', b'*') => (depth, at) = (depth + 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return &comment[at..];
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_what_its_first_word_says_whatever_stands_before_it() {
        for (sql, lead) in [
            ("select 1", Lead::Read),
            ("  \n\t(SELECT 1) UNION (SELECT 2)", Lead::Read),
            ("-- insert\nwith x as (select 1) select * from x", Lead::Read),
            ("/* a /* nested */ delete */ values (1)", Lead::Read),
            ("INSERT INTO t VALUES (1)", Lead::Write),
            ("/**/update t set a = 1", Lead::Write),
            ("do $$ begin end $$", Lead::Write),
            ("call p()", Lead::Write),
            ("", Lead::Neither),
            ("-- only a comment", Lead::Neither),
            ("/* never ends", Lead::Neither),
            ("COPY t TO PROGRAM 'id'", Lead::Neither),
            ("SET ROLE postgres", Lead::Neither),
            ("RESET ALL", Lead::Neither),
            ("commit", Lead::Neither),
            ("/* x */ rollback", Lead::Neither),
            ("prepare transaction 'x'", Lead::Neither),
            ("attach database 'x' as y", Lead::Neither),
            ("pragma writable_schema = 1", Lead::Neither),
            ("selecté", Lead::Neither),
            ("select_all", Lead::Neither),
            ("; select 1", Lead::Neither),
            ("\u{a0}select 1", Lead::Neither),
        ] {
            assert_eq!(of(sql), lead, "{sql:?}");
        }
    }
}
