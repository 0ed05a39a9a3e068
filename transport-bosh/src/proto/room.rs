//! Room for a machine's outputs that goes from one machine to the next: each has some at work, and none at rest.

use std::{collections::VecDeque, mem};

/// The most that is handed on: what one burst needed is not kept for good.
const KEPT: usize = 32;

/// Gives `outputs` the room of `spare`, unless it has some.
pub(crate) fn lend<T>(outputs: &mut VecDeque<T>, spare: &mut VecDeque<T>) {
    if outputs.capacity() == 0 {
        mem::swap(outputs, spare);
    }
}

/// Takes the room of `outputs`, if nothing is in it: `spare` keeps it if it has none.
pub(crate) fn give_back<T>(outputs: &mut VecDeque<T>, spare: &mut VecDeque<T>) {
    if !outputs.is_empty() {
        return;
    }
    let room = mem::take(outputs);
    if spare.capacity() == 0 && room.capacity() <= KEPT {
        *spare = room;
    }
}
