//! Two edits of one version become one, or are told apart.

use std::collections::BTreeSet;

use super::{Book, InvalidBook};

/// The most entries that a [`Conflict`] names.
pub const MAX_NAMED: usize = 100;

/// What came of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Merged {
    /// The book with what both sides wanted.
    pub book: Book,
    /// Whether it is another than the edit was: then whoever edited has to get it, too.
    pub differs: bool,
}

/// Why two edits cannot both be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// The same entries were changed on both sides, and differently.
    #[error("changed on both sides: {}", named(entries, *count))]
    Entries {
        /// As kind and name, the first [`MAX_NAMED`].
        entries: Vec<(Box<str>, Box<str>)>,
        /// How many there are.
        count: usize,
    },
    /// Both together are beyond a bound.
    #[error("with what others have changed: {0}")]
    Bounds(#[source] InvalidBook),
}

fn named(entries: &[(Box<str>, Box<str>)], count: usize) -> String {
    let mut words: Vec<String> =
        entries.iter().take(3).map(|(kind, name)| format!("{kind}/{name}")).collect();
    if count > words.len() {
        words.push(format!("{} more", count - words.len()));
    }
    words.join(", ")
}

/// Puts `edit`, made from `base`, onto `current`, which others have made from `base` meanwhile.
///
/// Entries are looked at one by one. One that only one side added, changed or removed is as that side has it; one that
/// both sides made the same is that; one that they made different is a conflict, and then nothing is taken.
///
/// # Errors
/// [`Conflict`] says which entries, or which bound.
pub fn merge(base: &Book, current: &Book, edit: &Book) -> Result<Merged, Conflict> {
    let mut kinds = current.kinds.clone();
    let (mut conflicts, mut count) = (Vec::new(), 0);
    let changed: BTreeSet<(&str, &str)> =
        changes(base, edit).chain(changes(edit, base)).map(|(kind, name, _)| (kind, name)).collect();
    for (kind, name) in changed {
        let (was, is, wanted) = (base.get(kind, name), current.get(kind, name), edit.get(kind, name));
        if is != was && is != wanted {
            count += 1;
            if conflicts.len() < MAX_NAMED {
                conflicts.push((kind.into(), name.into()));
            }
            continue;
        }
        match wanted {
            Some(value) => {
                kinds.entry(kind.into()).or_default().insert(name.into(), value.into());
            }
            None => {
                if let Some(entries) = kinds.get_mut(kind) {
                    entries.remove(name);
                }
            }
        }
    }
    if count > 0 {
        return Err(Conflict::Entries { entries: conflicts, count });
    }
    kinds.retain(|_, entries| !entries.is_empty());
    let book = Book::of(kinds);
    book.check_size().map_err(Conflict::Bounds)?;
    let differs = book != *edit;
    Ok(Merged { book, differs })
}

/// The entries of `to` that `from` lacks or has otherwise.
fn changes<'a>(from: &'a Book, to: &'a Book) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    to.entries().filter(|(kind, name, value)| from.get(kind, name) != Some(value))
}
