//! Virtual printers as processes, each with a folder for what it prints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::programs::Program;

const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");

/// A virtual printer that is online.
pub(crate) struct Printer {
    program: Program,
    out: PathBuf,
}

impl Printer {
    /// Starts one. `speed` is in bytes a second; none is as fast as it can.
    pub(crate) fn start(relay: &str, id: &str, pin: &str, out: &Path, speed: Option<u32>) -> Self {
        let folder = out.to_str().unwrap();
        let mut arguments = vec!["--relay", relay, "--id", id, "--pin", pin, "--out", folder];
        let speed = speed.map(|speed| speed.to_string());
        arguments.extend(speed.iter().flat_map(|speed| ["--speed", speed]));
        let mut program = Program::start(PRINTER, &arguments);
        program.line("online");
        Self { program, out: out.to_owned() }
    }

    /// Paper is stuck in it.
    pub(crate) fn jam(&mut self) {
        self.program.press("jam");
        self.program.line("paper jam");
    }

    /// Somebody took the paper out.
    pub(crate) fn clear(&mut self) {
        self.program.press("clear");
        self.program.line("ready");
    }

    /// Bytes of the job that it is at.
    pub(crate) fn at_work(&self) -> u64 {
        self.files("part").iter().map(|path| path.metadata().map_or(0, |about| about.len())).sum()
    }

    /// What it printed, job by job.
    pub(crate) fn printed(&self) -> Vec<Vec<u8>> {
        self.files("pdf").iter().map(|path| fs::read(path).unwrap()).collect()
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.out).into_iter().flatten().flatten().map(|entry| entry.path());
        files.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    }

    /// Says goodbye and goes.
    pub(crate) fn leave(self) {
        self.program.signal("-TERM");
        assert!(self.program.end().0.success());
    }

    /// Is gone without a word.
    pub(crate) fn vanish(self) {
        self.program.kill();
    }
}
