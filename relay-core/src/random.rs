//! Unguessable text.

use data_encoding::{Encoding, Specification};
use std::sync::LazyLock;

/// Base32 in lower case without padding: safe in URLs, XML, JIDs and file names, and case carries no meaning.
pub(crate) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 distinct symbols are a base")
});

/// Fills `bytes` from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give: nothing secure can go on without it.
pub fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives randomness");
}

/// `N` random bytes as lower-case base32 text.
pub fn base32<const N: usize>() -> String {
    let mut bytes = [0u8; N];
    fill(&mut bytes);
    BASE32.encode(&bytes)
}

/// `digits` random decimal digits, each equally likely: a PIN.
pub fn digits(digits: usize) -> String {
    let mut text = String::with_capacity(digits);
    while text.len() < digits {
        let mut byte = [0u8; 1];
        fill(&mut byte);
        // 250 is the largest multiple of 10 in a byte: rejecting the rest keeps digits unbiased.
        if byte[0] < 250 {
            text.push(char::from(b'0' + byte[0] % 10));
        }
    }
    text
}
