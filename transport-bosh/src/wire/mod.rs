//! Bytes and types.
