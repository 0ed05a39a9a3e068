//! `quickstart` does what the README says it does.

mod programs;

use std::process::Command;

use programs::Program;

const QUICKSTART: &str = env!("CARGO_BIN_EXE_quickstart");

#[test]
fn k1_it_ends_with_the_toner_level_read_through_the_relay_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let program = Program::start_with(Command::new(QUICKSTART).arg("--once").env("TMPDIR", temporary.path()));
    let (status, said) = program.end();
    assert!(status.success(), "{said:?}");
    assert!(
        said.last().unwrap().contains("83 % of its black toner left, read through the relay"),
        "{said:?}"
    );
    for (printer, transport) in [("printer-1", "WebSocket"), ("printer-2", "BOSH")] {
        let online =
            |line: &String| line.contains(printer) && line.ends_with(&format!("online over {transport}"));
        assert!(said.iter().any(online), "{said:?}");
    }
    assert!(said.iter().any(|line| line.contains("\"copy room, 2nd floor\"")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("(Relay-Outcome: offline)")), "{said:?}");
    let words =
        ["printer-1 took the job", "completed, 69 bytes", "what came out of printer-1 is what was sent"];
    let told: Vec<_> = said.iter().filter(|line| line.starts_with("print ")).collect();
    let places = words.map(|words| told.iter().position(|line| line.contains(words)));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "A4: {said:?}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "it left something behind");
}

#[test]
fn k1_it_stays_up_and_the_commands_that_it_prints_work() {
    let temporary = tempfile::tempdir().unwrap();
    let mut program = Program::start_with(Command::new(QUICKSTART).env("TMPDIR", temporary.path()));
    let read = program.line("curl -i").trim().to_owned();
    let offline = program.line("curl -i").trim().to_owned();
    let set = program.line("curl -X PUT").trim().to_owned();
    let print = program.line("curl -X POST").trim().to_owned();
    program.line("83 % of its black toner left");
    let shell = |command: &str| {
        let output = Command::new("sh").args(["-c", &format!("{command} -sS")]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let answer = shell(&read);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n83"), "{answer}");
    let answer = shell(&offline);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("relay-outcome: offline"), "{answer}");
    assert_eq!(shell(&set), "Hello");
    let answer = shell(&print);
    let last: serde_json::Value = serde_json::from_str(answer.lines().last().unwrap()).expect(&answer);
    assert_eq!((&last["state"], &last["bytes"]), (&"completed".into(), &5.into()), "{answer}");
    program.signal("-TERM");
    let (status, said) = program.end();
    assert!(status.success(), "{said:?}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "it left something behind");
}
