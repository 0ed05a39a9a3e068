//! Device tables that administrators bring: CSV with a header line, or one JSON object a line (P5).

use std::collections::HashMap;

use relay_core::{
    ids::{AccountId, DeviceId},
    store::{
        DeviceSettings, MAX_ACCOUNTS, MAX_TEXT, Prepared,
        json::{Limits, parse},
    },
};
use serde_json::Value;

use super::problem::shown;

/// What is wrong in one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineError {
    /// Which line, from 1.
    pub(super) line: u64,
    /// What is wrong with it.
    pub(super) words: String,
}

/// The most errors that are told at once.
pub(super) const MAX_ERRORS: usize = 100;
/// The most devices in one table.
const MAX_DEVICES: usize = 100_000;

/// One line's fields, by name.
type Fields = Vec<(String, String)>;

/// Reads a table in CSV (RFC 4180): a header line with `device_id` and any of `name`, `model`, `mac`, `location` and
/// `accounts` (divided by semicolons).
///
/// # Errors
/// Every line that is wrong, up to [`MAX_ERRORS`] of them.
pub(super) fn csv(bytes: &[u8]) -> Result<Vec<Prepared>, Vec<LineError>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(bytes);
    let mut table = Table::default();
    let mut header: Option<Vec<String>> = None;
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                table.error(line, "is not CSV in UTF-8".to_owned());
                break;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        let Some(header) = &header else {
            match columns(&record) {
                Ok(columns) => header = Some(columns),
                Err(words) => {
                    table.error(line, words);
                    break;
                }
            }
            continue;
        };
        if record.len() != header.len() {
            table.error(line, format!("has {} fields, the header line has {}", record.len(), header.len()));
        } else {
            table.add(line, header.iter().cloned().zip(record.iter().map(str::to_owned)).collect());
        }
        if table.is_over() {
            break;
        }
    }
    table.done()
}

fn columns(record: &csv::StringRecord) -> Result<Vec<String>, String> {
    let columns: Vec<String> = record.iter().map(str::to_ascii_lowercase).collect();
    for (at, column) in columns.iter().enumerate() {
        if !COLUMNS.contains(&&**column) {
            return Err(format!("the header line has {}; columns are {}", shown(column), COLUMNS.join(", ")));
        }
        if columns[..at].contains(column) {
            return Err(format!("the header line has {} twice", shown(column)));
        }
    }
    if !columns.iter().any(|column| column == COLUMNS[0]) {
        return Err(format!("the header line has no {:?}", COLUMNS[0]));
    }
    Ok(columns)
}

const COLUMNS: [&str; 6] = ["device_id", "name", "model", "mac", "location", "accounts"];

/// Reads a table of one JSON object a line, members named like the columns of [`csv`]; `accounts` is an array.
///
/// # Errors
/// Every line that is wrong, up to [`MAX_ERRORS`] of them.
pub(super) fn ndjson(bytes: &[u8]) -> Result<Vec<Prepared>, Vec<LineError>> {
    let mut table = Table::default();
    for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let number = at as u64 + 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match fields(line) {
            Ok(fields) => table.add(number, fields),
            Err(words) => table.error(number, words),
        }
        if table.is_over() {
            break;
        }
    }
    table.done()
}

fn fields(line: &[u8]) -> Result<Fields, String> {
    let value = parse(line, &Limits::default()).map_err(|error| error.to_string())?;
    let Value::Object(members) = value else { return Err("is not a JSON object".to_owned()) };
    let field = |(name, value): (String, Value)| match value {
        Value::Null => Ok((name, String::new())),
        Value::String(text) if name != "accounts" => Ok((name, text)),
        Value::Array(values) if name == "accounts" => {
            let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
            let texts = texts.ok_or_else(|| "accounts is not an array of strings".to_owned())?;
            // A semicolon is in no account's ID; one inside would make two of it.
            match texts.iter().find(|text| text.contains(';')) {
                Some(text) => Err(format!("accounts has {}, which is no account ID", shown(text))),
                None => Ok((name, texts.join(";"))),
            }
        }
        _ if name == "accounts" => Err("accounts is not an array of strings".to_owned()),
        _ => Err(format!("{} is not a string", shown(&name))),
    };
    members.into_iter().map(field).collect()
}

#[derive(Default)]
struct Table {
    devices: Vec<Prepared>,
    lines: HashMap<DeviceId, u64>,
    errors: Vec<LineError>,
}

impl Table {
    fn add(&mut self, line: u64, fields: Fields) {
        match prepared(fields) {
            Ok(device) => match self.lines.insert(device.device.clone(), line) {
                Some(earlier) => self.error(line, format!("{} is in line {earlier}, too", device.device)),
                None => self.devices.push(device),
            },
            Err(words) => self.error(line, words),
        }
        if self.devices.len() > MAX_DEVICES {
            self.error(line, format!("is beyond the {MAX_DEVICES} devices that go in one table"));
        }
    }

    fn error(&mut self, line: u64, words: String) {
        self.errors.push(LineError { line, words });
    }

    fn is_over(&self) -> bool {
        self.errors.len() >= MAX_ERRORS || self.devices.len() > MAX_DEVICES
    }

    fn done(self) -> Result<Vec<Prepared>, Vec<LineError>> {
        if self.errors.is_empty() { Ok(self.devices) } else { Err(self.errors) }
    }
}

fn prepared(fields: Fields) -> Result<Prepared, String> {
    let mut device = None;
    let mut settings = DeviceSettings::default();
    let mut accounts = Vec::new();
    for (name, text) in fields {
        if text.is_empty() && name != "device_id" {
            continue;
        }
        if name != "accounts" && text.chars().count() > MAX_TEXT {
            return Err(format!("{} has more than {MAX_TEXT} characters", shown(&name)));
        }
        match &*name {
            "device_id" => device = Some(DeviceId::new(&text).map_err(|error| error.to_string())?),
            "name" => settings.name = Some(text),
            "model" => settings.model = Some(text),
            "mac" => settings.mac = Some(text),
            "location" => settings.location = Some(text),
            "accounts" => {
                for account in text.split(';').map(str::trim).filter(|account| !account.is_empty()) {
                    accounts.push(AccountId::new(account).map_err(|error| error.to_string())?);
                }
                if accounts.len() > MAX_ACCOUNTS {
                    return Err(format!("has {} accounts, {MAX_ACCOUNTS} are allowed", accounts.len()));
                }
            }
            other => return Err(format!("{} is no field; fields are {}", shown(other), COLUMNS.join(", "))),
        }
    }
    let mut prepared = Prepared::new(device.ok_or("has no device_id")?).with_settings(settings);
    prepared.accounts = accounts;
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(errors: Vec<LineError>) -> Vec<u64> {
        errors.into_iter().map(|error| error.line).collect()
    }

    #[test]
    fn p5_csv_has_a_header_line_quotes_and_line_numbers() {
        let table = csv(
            b"\xef\xbb\xbfdevice_id,Name,accounts\r\np-1,\"Copy \"\"A\"\", 2nd\",acme; beta\r\n\r\nP-2,,\r\n",
        )
        .unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].settings.name.as_deref(), Some("Copy \"A\", 2nd"));
        assert_eq!(table[0].accounts.len(), 2);
        assert_eq!(table[1].settings.name, None);

        let errors = csv(b"device_id,name\nok,1\na b,2\n\"x\ny\",3\nlast,4,5\nOK,6\n").unwrap_err();
        assert_eq!(lines(errors), [3, 4, 6, 7]);
        for bad in ["name\nx\n", "device_id,nam\n", "device_id,device_id\n", "p-1,x\n"] {
            assert_eq!(lines(csv(bad.as_bytes()).unwrap_err()), [1], "{bad}");
        }
        assert_eq!(lines(csv(b"device_id,name\nx,\xff\n").unwrap_err()), [2]);
        assert_eq!(csv(b"").unwrap(), []);
    }

    #[test]
    fn p5_ndjson_has_line_numbers() {
        let table = ndjson(
            b"{\"device_id\":\"p-1\",\"location\":\"hall\",\"accounts\":[\"acme\"],\"mac\":null}\n\n{\"device_id\":\"p-2\"}",
        )
        .unwrap();
        assert_eq!((table.len(), table[0].accounts.len()), (2, 1));
        let bad = b"{\"device_id\":\"p-1\"}\n[]\n{\"name\":\"x\"}\n{\"device_id\":\"p-3\",\"nam\":\"x\"}\n{\"device_id\":\"P-1\"}\n{\"device_id\":\"p-4\",\"accounts\":[\"a;b\"]}\nnope\n{\"device_id\":\"p\",\"device_id\":\"q\"}";
        assert_eq!(lines(ndjson(bad).unwrap_err()), [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn t43_a_hostile_name_is_escaped_and_cut() {
        let line = format!("{{\"device_id\":\"p\",\"a\\n\\u001b[31m{}\":\"x\"}}", "y".repeat(200));
        let errors = ndjson(line.as_bytes()).unwrap_err();
        assert!(errors[0].words.len() < 300 && !errors[0].words.contains(['\n', '\u{1b}']), "{errors:?}");
    }
}
