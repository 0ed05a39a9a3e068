//! What the programs in `src/bin` share. Each of them is there to be read and copied from; the README says which does
//! what.

pub mod printer;
