//! Bytes and types: the `<body/>` wrapper, stanzas, conditions.

pub mod body;
mod condition;
pub mod stanza;

pub use self::condition::TerminalCondition;
