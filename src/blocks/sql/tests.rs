//! Statements as steps send them.
