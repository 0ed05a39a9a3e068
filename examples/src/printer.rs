//! A printer that prints nothing: the common objects of the Printer MIB, kept in memory.
//!
//! On a real device [`Printer::read`] and [`Printer::write`] would ask the engine's controller; [`Printer::router`]
//! stays as it is.

mod print;

use std::{
    net::IpAddr,
    num::NonZeroU64,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use device_sdk::{HandlerError, ObjectId, Registration, Router, Set};
use tokio::time::Instant;

/// Objects by the names that RFC 1213, 2790 and 3805 give them. A supply's number (1 black, 2 cyan, 3 magenta, 4 yellow)
/// follows the last dot where a constant ends in one.
pub mod mib {
    /// What the machine is.
    pub const SYS_DESCR: &str = "1.3.6.1.2.1.1.1.0";
    /// Hundredths of a second since it was switched on.
    pub const SYS_UP_TIME: &str = "1.3.6.1.2.1.1.3.0";
    /// Who looks after it. Can be set.
    pub const SYS_CONTACT: &str = "1.3.6.1.2.1.1.4.0";
    /// Its name. Can be set.
    pub const SYS_NAME: &str = "1.3.6.1.2.1.1.5.0";
    /// Where it stands. Can be set.
    pub const SYS_LOCATION: &str = "1.3.6.1.2.1.1.6.0";
    /// Its MAC address.
    pub const IF_PHYS_ADDRESS: &str = "1.3.6.1.2.1.2.2.1.6.1";
    /// Its IP address follows the last dot, and is the value.
    pub const IP_AD_ENT_ADDR: &str = "1.3.6.1.2.1.4.20.1.1.";
    /// 2 running, 3 warning, 5 down.
    pub const HR_DEVICE_STATUS: &str = "1.3.6.1.2.1.25.3.2.1.5.1";
    /// 1 other, 3 idle, 4 printing.
    pub const HR_PRINTER_STATUS: &str = "1.3.6.1.2.1.25.3.5.1.1.1";
    /// Bits in hexadecimal: 04 jammed, 20 toner low.
    pub const HR_PRINTER_DETECTED_ERROR_STATE: &str = "1.3.6.1.2.1.25.3.5.1.2.1";
    /// The printer's name. Can be set.
    pub const PRT_GENERAL_PRINTER_NAME: &str = "1.3.6.1.2.1.43.5.1.1.16.1";
    /// Its serial number.
    pub const PRT_GENERAL_SERIAL_NUMBER: &str = "1.3.6.1.2.1.43.5.1.1.17.1";
    /// Sheets that the tray takes.
    pub const PRT_INPUT_MAX_CAPACITY: &str = "1.3.6.1.2.1.43.8.2.1.9.1.1";
    /// Sheets in the tray. Can be set.
    pub const PRT_INPUT_CURRENT_LEVEL: &str = "1.3.6.1.2.1.43.8.2.1.10.1.1";
    /// The paper in the tray. Can be set.
    pub const PRT_INPUT_MEDIA_NAME: &str = "1.3.6.1.2.1.43.8.2.1.12.1.1";
    /// The tray's name.
    pub const PRT_INPUT_NAME: &str = "1.3.6.1.2.1.43.8.2.1.13.1.1";
    /// Pages printed in its life.
    pub const PRT_MARKER_LIFE_COUNT: &str = "1.3.6.1.2.1.43.10.2.1.4.1.1";
    /// What a supply is.
    pub const PRT_MARKER_SUPPLIES_DESCRIPTION: &str = "1.3.6.1.2.1.43.11.1.1.6.1.";
    /// How much of a supply there can be.
    pub const PRT_MARKER_SUPPLIES_MAX_CAPACITY: &str = "1.3.6.1.2.1.43.11.1.1.8.1.";
    /// How much of a supply there is. Can be set.
    pub const PRT_MARKER_SUPPLIES_LEVEL: &str = "1.3.6.1.2.1.43.11.1.1.9.1.";
    /// What the panel shows. Can be set.
    pub const PRT_CONSOLE_DISPLAY_BUFFER_TEXT: &str = "1.3.6.1.2.1.43.16.5.1.2.1.1";
    /// What is wrong.
    pub const PRT_ALERT_DESCRIPTION: &str = "1.3.6.1.2.1.43.18.1.1.8.1.1";

    /// The level of the black toner: what everybody asks first.
    pub const BLACK_TONER: &str = "1.3.6.1.2.1.43.11.1.1.9.1.1";
}

const MODEL: &str = "Virtual Printer 7000";
const TRAY: i64 = 500;
const FULL: i64 = 100;
const LOW: i64 = 10;
/// The longest DisplayString (RFC 1213).
const MAX_TEXT: usize = 255;

/// A virtual printer. Clones are one.
#[derive(Debug, Clone)]
pub struct Printer(Arc<Mutex<Works>>);

#[derive(Debug)]
struct Works {
    serial: String,
    address: IpAddr,
    started: Instant,
    name: String,
    contact: String,
    location: String,
    display: String,
    media: String,
    sheets: i64,
    supplies: [(&'static str, i64); 4],
    pages: u64,
    jammed: bool,
    /// Jobs at work.
    printing: u32,
    /// Bytes a second.
    speed: Option<NonZeroU64>,
    out: Option<PathBuf>,
}

impl Printer {
    /// A printer with this serial number, at this address of its own network.
    pub fn new(serial: &str, address: IpAddr) -> Self {
        Self(Arc::new(Mutex::new(Works {
            serial: serial.to_owned(),
            address,
            started: Instant::now(),
            name: serial.to_owned(),
            contact: String::new(),
            location: "unpacked".to_owned(),
            display: "Ready".to_owned(),
            media: "iso_a4_210x297mm".to_owned(),
            sheets: 320,
            supplies: [("Black Toner", 83), ("Cyan Toner", 61), ("Magenta Toner", 57), ("Yellow Toner", 72)],
            pages: 1_024,
            jammed: false,
            printing: 0,
            speed: None,
            out: None,
        })))
    }

    /// What it prints goes into files in this folder.
    pub fn print_into(&self, folder: PathBuf) {
        self.works().out = Some(folder);
    }

    /// Where what it prints goes, if anywhere.
    pub fn folder(&self) -> Option<PathBuf> {
        self.works().out.clone()
    }

    /// It prints so many bytes a second, and no faster.
    pub fn set_speed(&self, bytes_a_second: Option<NonZeroU64>) {
        self.works().speed = bytes_a_second;
    }

    /// What it does when it is asked.
    pub fn router(&self) -> Router {
        let (reading, writing, printing) = (self.clone(), self.clone(), self.clone());
        Router::new()
            .get("*", move |object: ObjectId| std::future::ready(reading.read(object.as_str())))
            .set("*", move |object: ObjectId, Set(value): Set<String>| {
                std::future::ready(writing.write(object.as_str(), &value))
            })
            .method("TEST-PAGE", move || std::future::ready(printing.print_test_page()))
    }

    /// What it tells the relay about itself.
    pub fn registration(&self) -> Registration {
        let works = self.works();
        Registration::new()
            .name(works.name.clone())
            .model(MODEL)
            .mac(mac(&works.serial))
            .location(works.location.clone())
            .capability("color", true)
            .capability("paper", "a4")
            .capability("memory_mb", 512)
            .format("application/pdf")
            .format("image/pwg-raster")
            .format("text/plain")
            .format("application/octet-stream")
    }

    /// Paper is stuck in it, or no longer is.
    pub fn set_jam(&self, jammed: bool) {
        let mut works = self.works();
        works.jammed = jammed;
        works.display = if jammed { "Paper jam" } else { "Ready" }.to_owned();
    }

    /// The value of an object.
    ///
    /// # Errors
    /// It has no such object.
    pub fn read(&self, object: &str) -> Result<String, HandlerError> {
        self.works().read(object).ok_or_else(HandlerError::unknown_object)
    }

    /// Sets an object; gives back the value now in force.
    ///
    /// # Errors
    /// It has no such object, or not to be set, or not to this.
    pub fn write(&self, object: &str, value: &str) -> Result<String, HandlerError> {
        self.works().write(object, value)?;
        self.read(object)
    }

    fn print_test_page(&self) -> Result<u64, HandlerError> {
        self.ready()?;
        let mut works = self.works();
        if let Some(out) = &works.out {
            std::fs::create_dir_all(out)?;
            std::fs::write(out.join(format!("test-page-{}.txt", works.pages + 1)), "The quick brown fox.\n")?;
        }
        works.sheets -= 1;
        works.pages += 1;
        Ok(works.pages)
    }

    fn works(&self) -> MutexGuard<'_, Works> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Works {
    fn read(&self, object: &str) -> Option<String> {
        let is_low = self.supplies.iter().any(|&(_, level)| level <= LOW);
        Some(match object {
            mib::SYS_DESCR => format!("{MODEL}; a printer that prints nothing"),
            mib::SYS_UP_TIME => (self.started.elapsed().as_millis() / 10).to_string(),
            mib::SYS_CONTACT => self.contact.clone(),
            mib::SYS_NAME | mib::PRT_GENERAL_PRINTER_NAME => self.name.clone(),
            mib::SYS_LOCATION => self.location.clone(),
            mib::IF_PHYS_ADDRESS => mac(&self.serial),
            mib::HR_DEVICE_STATUS => if self.jammed {
                "5"
            } else if is_low {
                "3"
            } else {
                "2"
            }
            .to_owned(),
            mib::HR_PRINTER_STATUS => if self.jammed {
                "1"
            } else if self.printing > 0 {
                "4"
            } else {
                "3"
            }
            .to_owned(),
            mib::HR_PRINTER_DETECTED_ERROR_STATE => {
                format!("{:02x}", u8::from(self.jammed) * 0x04 + u8::from(is_low) * 0x20)
            }
            mib::PRT_GENERAL_SERIAL_NUMBER => self.serial.clone(),
            mib::PRT_INPUT_MAX_CAPACITY => TRAY.to_string(),
            mib::PRT_INPUT_CURRENT_LEVEL => self.sheets.to_string(),
            mib::PRT_INPUT_MEDIA_NAME => self.media.clone(),
            mib::PRT_INPUT_NAME => "Tray 1".to_owned(),
            mib::PRT_MARKER_LIFE_COUNT => self.pages.to_string(),
            mib::PRT_CONSOLE_DISPLAY_BUFFER_TEXT => self.display.clone(),
            mib::PRT_ALERT_DESCRIPTION => if self.jammed { "paper jam" } else { "" }.to_owned(),
            _ if object.strip_prefix(mib::IP_AD_ENT_ADDR) == Some(&self.address.to_string()) => {
                self.address.to_string()
            }
            _ => {
                if let Some(number) = supply(object, mib::PRT_MARKER_SUPPLIES_LEVEL) {
                    self.supplies[number].1.to_string()
                } else if let Some(number) = supply(object, mib::PRT_MARKER_SUPPLIES_DESCRIPTION) {
                    self.supplies[number].0.to_owned()
                } else {
                    supply(object, mib::PRT_MARKER_SUPPLIES_MAX_CAPACITY).map(|_| FULL.to_string())?
                }
            }
        })
    }

    fn write(&mut self, object: &str, value: &str) -> Result<(), HandlerError> {
        let text = |field: &mut String| {
            if value.len() > MAX_TEXT || value.contains(char::is_control) {
                return Err(HandlerError::bad_value("a text has up to 255 bytes and no control characters"));
            }
            *field = value.to_owned();
            Ok(())
        };
        match object {
            mib::SYS_CONTACT => text(&mut self.contact),
            mib::SYS_NAME | mib::PRT_GENERAL_PRINTER_NAME => text(&mut self.name),
            mib::SYS_LOCATION => text(&mut self.location),
            mib::PRT_INPUT_MEDIA_NAME => text(&mut self.media),
            mib::PRT_CONSOLE_DISPLAY_BUFFER_TEXT => text(&mut self.display),
            mib::PRT_INPUT_CURRENT_LEVEL => level(value, TRAY).map(|sheets| self.sheets = sheets),
            _ => match supply(object, mib::PRT_MARKER_SUPPLIES_LEVEL) {
                Some(number) => level(value, FULL).map(|level| self.supplies[number].1 = level),
                None if self.read(object).is_some() => {
                    Err(HandlerError::other("read-only", "the object can be read, not set"))
                }
                None => Err(HandlerError::unknown_object()),
            },
        }
    }
}

fn level(value: &str, max: i64) -> Result<i64, HandlerError> {
    match value.parse() {
        Ok(level) if (0..=max).contains(&level) => Ok(level),
        _ => Err(HandlerError::bad_value(format!("a level is a number from 0 to {max}"))),
    }
}

/// Which supply `object` is about, if it is the one that `prefix` begins.
fn supply(object: &str, prefix: &str) -> Option<usize> {
    match object.strip_prefix(prefix)? {
        "1" => Some(0),
        "2" => Some(1),
        "3" => Some(2),
        "4" => Some(3),
        _ => None,
    }
}

/// A locally administered MAC address that is the same for the same serial number.
fn mac(serial: &str) -> String {
    let hash = serial.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x100_0000_01b3)
    });
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}
