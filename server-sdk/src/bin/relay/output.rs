//! What is printed.

use std::{
    io::{self, IsTerminal, Write},
    time::SystemTime,
};

use serde_json::{Value, json};
use server_sdk::{
    Device,
    client::{Answer, KeyInfo},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Words of others as they may stand on a terminal (T43): no control characters, so no colours and no cursor, and none
/// that turn the direction of writing.
pub(crate) fn plain(words: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    words.chars().take(2048).map(|c| if odd(c) { '\u{fffd}' } else { c }).collect()
}

/// Writes to the standard output. Who reads no further, as `head` does, has what they wanted.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    print_on(bytes).map(drop)
}

/// The same; whether somebody reads on.
pub(crate) fn print_on(bytes: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn line(text: &str) -> io::Result<()> {
    print(format!("{text}\n").as_bytes())
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// The device's answer: its bytes as they are, but for a terminal, which gets nothing that would steer it.
pub(crate) fn answer(answer: &Answer, json: bool) -> io::Result<()> {
    let text = answer.text().ok();
    if json {
        let (name, body) = match text {
            Some(text) => ("body", text.to_owned()),
            None => ("body_base64", data_encoding::BASE64.encode(&answer.bytes)),
        };
        return line(&json!({"id": answer.id, "content_type": answer.content_type, name: body}).to_string());
    }
    match text {
        Some(text) if io::stdout().is_terminal() => {
            let shown: String = text.split_inclusive(['\n', '\t']).map(readable).collect();
            line(shown.trim_end_matches('\n'))
        }
        // A line of its own, as other programs end theirs.
        Some(text) if !text.is_empty() && !text.ends_with('\n') => line(text),
        _ => print(&answer.bytes),
    }
}

/// One line or word, with the `\n` or `\t` that may end it.
fn readable(part: &str) -> String {
    let words = part.trim_end_matches(['\n', '\t']);
    let odd = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    words.chars().map(odd).chain(part[words.len()..].chars()).collect()
}

pub(crate) fn device_json(device: &Device) -> Value {
    let presence = &device.presence;
    json!({
        "id": device.id,
        "name": device.name,
        "model": device.model,
        "mac": device.mac,
        "location": device.location,
        "state": presence.state.as_str(),
        "epoch": presence.epoch,
        "last_heard": presence.last_heard.map(rfc3339),
        "detects_loss_within": presence.detects_loss_within.map(|time| time.as_secs_f64()),
        "transport": presence.transport,
        "capabilities": device.capabilities,
        "formats": device.formats,
        "apps": device.apps,
        "accounts": device.accounts,
        "site": device.site,
    })
}

pub(crate) fn key_json(key: &KeyInfo) -> Value {
    json!({
        "id": key.id,
        "scopes": key.scopes,
        "created": key.created.map(rfc3339),
        "expires": key.expires.map(rfc3339),
    })
}

/// Columns as wide as what stands in them.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut row = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    row(&mut head.iter().copied());
    for cells in &rows {
        row(&mut cells.iter().map(String::as_str));
    }
    print(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t43_a_terminal_gets_nothing_that_steers_it() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c");
        assert_eq!(readable("a\u{1b}b\n"), "a\u{fffd}b\n");
        assert!(plain(&"x".repeat(1 << 20)).len() <= 2048);
    }
}
