//! The processes that are measured, and what the kernel knows of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// How long a process may take to be ready.
const READY: Duration = Duration::from_secs(20);
const KIB_IN_MIB: f64 = 1024.0;

/// A process that runs, and the file that has what it said; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it says goes into `log`.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: PathBuf,
    ) -> Result<Self, String> {
        let said = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(|error| error.to_string())?)
            .stderr(said)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self { child, log })
    }

    /// Waits until it says a line that begins so; the rest of that line.
    pub(crate) async fn says(&mut self, beginning: &str) -> Result<String, String> {
        let until = Instant::now() + READY;
        loop {
            let said = fs::read_to_string(&self.log).map_err(|error| error.to_string())?;
            let rest = said
                .split_inclusive('\n')
                .find_map(|line| line.strip_suffix('\n')?.strip_prefix(beginning).map(str::to_owned));
            if let Some(rest) = rest {
                return Ok(rest);
            }
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > until {
                return Err(format!("it never said {beginning:?} (its end: {ended:?}); it said:\n{said}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that it said.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Resident memory in MiB.
    pub(crate) fn resident(&self) -> Result<f64, String> {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, or since [`forget_peak`](Self::forget_peak), in MiB.
    pub(crate) fn peak(&self) -> Result<f64, String> {
        self.status("VmHWM:")
    }

    /// Lets the peak begin anew (proc(5), `clear_refs`).
    pub(crate) fn forget_peak(&self) -> Result<(), String> {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").map_err(|error| error.to_string())
    }

    fn status(&self, field: &str) -> Result<f64, String> {
        let file = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        kib.map(|kib| kib / KIB_IN_MIB).ok_or_else(|| format!("no {field} in {file}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
