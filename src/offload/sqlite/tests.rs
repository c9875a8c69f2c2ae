//! Embedded databases as orders meet them.
