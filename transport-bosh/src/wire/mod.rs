//! Bytes and types: the `<body/>` wrapper, stanzas, conditions, namespaces.

pub mod body;
mod condition;
pub mod ns;
pub mod stanza;

pub use self::condition::TerminalCondition;
