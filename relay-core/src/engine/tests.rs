//! The machine under virtual time, and against a plain model that knows only the rules.

mod model;
mod table;
