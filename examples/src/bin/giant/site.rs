//! A relay with a folder, and how devices and services come to it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::json;
use server_sdk::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::process::Process;

/// The programs that are measured.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) relay: PathBuf,
    pub(crate) printer: PathBuf,
}

/// A relay of its own; gone with its folder when dropped.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) relay: Process,
    pub(crate) address: SocketAddr,
    /// A service that may call every device.
    pub(crate) service: Client,
    administrator: Client,
    folder: Folder,
}

impl Site {
    pub(crate) async fn new(programs: &Programs, name: &str) -> Result<Self, String> {
        let folder = Folder::new(name)?;
        let data = folder.0.join("data");
        let data = data.to_str().ok_or("the folder for temporary files has no name in UTF-8")?;
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", data];
        let mut relay = Process::start(&programs.relay, &arguments, &[], folder.0.join("relay.log"))?;
        let url = relay.says("The relay listens on ").await?;
        let address = url.trim_start_matches("http://").parse().map_err(|error| format!("{url}: {error}"))?;
        let file = folder.0.join("data/administrator.key");
        let key = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let administrator = Client::new(&url, key.trim()).map_err(words)?;
        let key = administrator.administration().new_key(&[]).await.map_err(words)?;
        let service = Client::new(&url, key.key.expose()).map_err(words)?;
        Ok(Self { relay, address, service, administrator, folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// A PIN for a device.
    pub(crate) async fn pin(&self, device: &str) -> Result<String, String> {
        let issued = self.administrator.administration().issue_pin(device, &[]).await.map_err(words)?;
        Ok(issued.pin.expose().to_owned())
    }

    /// Enrols a device; its token.
    pub(crate) async fn enrol(&self, device: &str) -> Result<String, String> {
        let body = json!({"device_id": device, "pin": self.pin(device).await?}).to_string();
        let enrolled = ask(self.address, "POST /v1/enroll", "", &body).await?;
        let body = enrolled.rsplit("\r\n\r\n").next().unwrap_or_default();
        let json: serde_json::Value =
            serde_json::from_str(body).map_err(|error| format!("{error}: {enrolled}"))?;
        json["token"].as_str().map(str::to_owned).ok_or(enrolled)
    }

    /// Registers a device with the print app.
    pub(crate) async fn register(&self, device: &str, token: &str) -> Result<(), String> {
        let line = format!("PUT /v1/devices/{device}");
        let apps = json!({"apps": [{"name": "print", "path": "/print", "protocol": "print"}]}).to_string();
        ask(self.address, &line, &format!("Authorization: Bearer {token}\r\n"), &apps).await.map(drop)
    }
}

/// One call of a device, on a connection of its own.
async fn ask(to: SocketAddr, line: &str, fields: &str, body: &str) -> Result<String, String> {
    let call = async {
        let mut stream = TcpStream::connect(to).await?;
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {to}\r\n{fields}Content-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = call.await.map_err(|error| format!("{line}: {error}"))?;
    if answer.starts_with("HTTP/1.1 2") { Ok(answer) } else { Err(format!("{line}: {answer}")) }
}

pub(crate) fn words(error: server_sdk::Error) -> String {
    format!("{error:?}")
}

/// Gone with all that is in it when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("relay-giant-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
