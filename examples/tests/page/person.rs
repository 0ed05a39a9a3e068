//! A person at the page: Chromium, driven by `driver.mjs`.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

/// Longer than the driver waits for anything, so that it is the driver who says what was missing.
const BOUND: Duration = Duration::from_secs(90);
/// More keystrokes than the page has stops.
const STOPS: usize = 60;

/// What has the focus.
#[derive(Debug)]
pub(crate) struct Focus {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

pub(crate) struct Person {
    child: Child,
    told: Option<ChildStdin>,
    lines: Receiver<String>,
    page: String,
}

impl Person {
    /// Somebody with a browser of their own, and nothing in it.
    pub(crate) fn new(relay: SocketAddr) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
        assert!(
            folder.join("node_modules/playwright-core").exists(),
            "the driver's packages are missing: run ./test page, or npm ci in {}",
            folder.display()
        );
        let mut child = Command::new("node")
            .current_dir(folder)
            .arg("driver.mjs")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let told = child.stdin.take();
        Self { child, told, lines, page: format!("http://{relay}/") }
    }

    fn call(&mut self, deed: &Value) -> Value {
        writeln!(self.told.as_mut().unwrap(), "{deed}").expect("the driver runs");
        let line = self.lines.recv_timeout(BOUND).unwrap_or_else(|error| panic!("{deed}: {error}"));
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(answer["failed"].is_null(), "{}", answer["failed"].as_str().unwrap_or_default());
        answer["done"].clone()
    }

    /// Opens the page in a new window.
    pub(crate) fn open(&mut self, width: u32, scheme: &str) {
        let url = self.page.clone();
        self.call(&json!({"deed": "open", "url": url, "width": width, "height": 800, "scheme": scheme}));
    }

    pub(crate) fn reload(&mut self) {
        self.call(&json!({"deed": "reload"}));
    }

    /// Looks at the same page on another screen.
    pub(crate) fn look(&mut self, width: u32, scheme: &str) {
        self.call(&json!({"deed": "look", "width": width, "height": 800, "scheme": scheme}));
    }

    pub(crate) fn press(&mut self, key: &str) {
        self.call(&json!({"deed": "press", "key": key}));
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.call(&json!({"deed": "type", "text": text}));
    }

    /// Chooses a file in the dialogue that the focused control opens.
    pub(crate) fn chooses(&mut self, file: &Path) {
        self.call(&json!({"deed": "choose", "path": file}));
    }

    pub(crate) fn focus(&mut self) -> Option<Focus> {
        let focus = self.call(&json!({"deed": "focused"}));
        let text = |key: &str| focus[key].as_str().unwrap_or_default().to_owned();
        if focus.is_null() {
            return None;
        }
        let focus_seen = focus["seen"] == true || focus["tag"] == "h1" || focus["tag"] == "h2";
        assert!(focus_seen, "nobody sees that this has the focus: {focus}");
        Some(Focus { id: text("id"), kind: text("type"), name: text("name") })
    }

    /// Goes on with the tabulator until `wanted` has the focus; all stops on the way.
    pub(crate) fn tabs_to(&mut self, wanted: impl Fn(&Focus) -> bool) -> Vec<Focus> {
        let mut stops = Vec::new();
        for _ in 0..STOPS {
            self.press("Tab");
            if let Some(focus) = self.focus() {
                let there = wanted(&focus);
                stops.push(focus);
                if there {
                    return stops;
                }
            }
        }
        panic!("it cannot be reached: {stops:#?}");
    }

    pub(crate) fn clicks(&mut self, selector: &str, text: &str) {
        self.call(&json!({"deed": "click", "selector": selector, "text": text}));
    }

    pub(crate) fn puts_file(&mut self, selector: &str, file: &Path) {
        self.call(&json!({"deed": "file", "selector": selector, "path": file}));
    }

    /// Waits until `selector` is seen with `text` in it; all of its text.
    pub(crate) fn sees(&mut self, selector: &str, text: &str) -> String {
        self.call(&json!({"deed": "see", "selector": selector, "text": text})).as_str().unwrap().to_owned()
    }

    /// What is seen of `selector` now.
    pub(crate) fn texts(&mut self, selector: &str) -> Vec<String> {
        let texts = self.call(&json!({"deed": "texts", "selector": selector}));
        texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        self.call(&json!({"deed": "evaluate", "expression": expression}))
    }

    /// Waits until `expression` is true in the page.
    pub(crate) fn waits_until(&mut self, expression: &str) {
        let end = Instant::now() + BOUND;
        while self.evaluate(expression) != true {
            assert!(Instant::now() < end, "never: {expression}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What axe-core has against the page as it is now, which is to be nothing.
    #[track_caller]
    pub(crate) fn finds_it_accessible(&mut self) {
        let violations = self.call(&json!({"deed": "violations"}));
        assert_eq!(violations, json!([]), "{violations:#}");
    }

    /// Keeps a picture, and sees that nothing sticks out at the side.
    pub(crate) fn keeps_picture(&mut self, name: &str) {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../page-screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        self.call(&json!({"deed": "shot", "path": folder.join(format!("{name}.png"))}));
        let sideways = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert_eq!(self.evaluate(sideways), true, "{name} scrolls sideways");
    }

    /// What scripts, policies and dialogues said, but for answers that are errors.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        let told = self.call(&json!({"deed": "told"}));
        let told = told.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned());
        told.filter(|line| !line.contains("Failed to load resource")).collect()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // The browser goes with its driver, and the driver when there is nothing more to do.
        drop(self.told.take());
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
