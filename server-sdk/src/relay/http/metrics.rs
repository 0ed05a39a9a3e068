//! What is counted, and its Prometheus text form. Every metric stands here, beside what it means; IDs are never
//! labels.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use relay_core::outcome::{Disposition, Outcome};

/// Upper bounds of the call durations' buckets, in milliseconds.
const BUCKETS: [u64; 12] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];

const OUTCOMES: [Outcome; 7] = [
    Outcome::Unknown,
    Outcome::Offline,
    Outcome::Refused,
    Outcome::Queued,
    Outcome::Sent,
    Outcome::Received,
    Outcome::Answered,
];

const DISPOSITIONS: [Disposition; 5] = [
    Disposition::Accepted,
    Disposition::AlreadyAnswered,
    Disposition::TooLate,
    Disposition::Unknown,
    Disposition::Forbidden,
];

/// Counters of the HTTP side.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// `http_connections_accepted_total`
    pub(super) accepted: AtomicU64,
    /// `http_connections_refused_total{reason="strangers"}`
    pub(super) refused: AtomicU64,
    /// `http_accept_errors_total`
    pub(super) accept_errors: AtomicU64,
    /// `http_answers_total{class}`: 1xx to 5xx
    answers: [AtomicU64; 5],
    /// `http_bosh_posts_total`
    pub(super) bosh_posts: AtomicU64,
    /// `http_watchers`: streams of events that are open
    pub(super) watchers: AtomicU64,
    /// `http_watchers_behind_total`
    pub(super) watchers_behind: AtomicU64,
    /// `relay_requests_total{outcome}`
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// `relay_requests_total{outcome="cancelled"}`
    cancelled: AtomicU64,
    /// `relay_responses_total{disposition}`
    dispositions: [AtomicU64; DISPOSITIONS.len()],
    /// `relay_request_duration_seconds`: buckets, and one for what is longer
    durations: [AtomicU64; BUCKETS.len() + 1],
    duration_sum_us: AtomicU64,
}

impl Metrics {
    pub(super) fn answer(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.answers.get(class) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn call(&self, outcome: Outcome, took: Duration) {
        if let Some(at) = OUTCOMES.iter().position(|&one| one == outcome) {
            self.outcomes[at].fetch_add(1, Relaxed);
        }
        self.took(took);
    }

    /// A call whose caller hung up before there was an outcome.
    pub(super) fn cancelled(&self, took: Duration) {
        self.cancelled.fetch_add(1, Relaxed);
        self.took(took);
    }

    fn took(&self, took: Duration) {
        let ms = took.as_millis();
        let at = BUCKETS.iter().position(|&bound| ms <= u128::from(bound)).unwrap_or(BUCKETS.len());
        self.durations[at].fetch_add(1, Relaxed);
        self.duration_sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn response(&self, disposition: Disposition) {
        if let Some(at) = DISPOSITIONS.iter().position(|&one| one == disposition) {
            self.dispositions[at].fetch_add(1, Relaxed);
        }
    }

    /// All of it as text, with what there is now.
    pub(super) fn text(&self, now: &Gauges) -> String {
        let mut text = Text(String::with_capacity(4096));
        text.gauge("http_connections", "TCP connections now.", now.connections);
        text.gauge(
            "http_connections_unauthenticated",
            "Those on which no credential was shown yet.",
            now.strangers,
        );
        text.gauge("relay_sessions", "Sessions of devices now.", now.sessions);
        text.gauge("relay_requests_in_flight", "Requests that wait for their answer now.", now.in_flight);
        text.gauge("relay_spool_bytes", "Bytes of documents on disk now.", now.spooled);
        text.gauge("relay_ready", "1 while the relay takes new work.", usize::from(now.ready));
        text.counter("http_connections_accepted_total", "TCP connections taken in.", &self.accepted);
        text.counter(
            "http_connections_refused_total",
            "TCP connections turned away or cut to make room.",
            &self.refused,
        );
        text.counter(
            "http_accept_errors_total",
            "Times that no connection could be accepted.",
            &self.accept_errors,
        );
        text.head("http_answers_total", "counter", "HTTP answers by class of status.");
        for (class, counter) in self.answers.iter().enumerate() {
            text.line("http_answers_total", &format!("{{class=\"{}xx\"}}", class + 1), counter.load(Relaxed));
        }
        text.counter("http_bosh_posts_total", "POSTs to /http-bind.", &self.bosh_posts);
        text.gauge("ws_channels_open", "Channels of jobs over WebSocket.", now.ws_channels);
        text.head("ws_ignored_total", "counter", "Elements over WebSocket that were passed over.");
        text.line("ws_ignored_total", "", now.ws_ignored);
        text.head(
            "ws_faults_total",
            "counter",
            "WebSocket sessions ended over a broken rule, by close code.",
        );
        for (code, number) in &now.ws_faults {
            text.line("ws_faults_total", &format!("{{code=\"{code}\"}}"), *number);
        }
        text.head("http_watchers", "gauge", "Streams of events now.");
        text.line("http_watchers", "", self.watchers.load(Relaxed));
        text.counter(
            "http_watchers_behind_total",
            "Streams of events ended since their reader fell behind.",
            &self.watchers_behind,
        );
        text.head("relay_requests_total", "counter", "Request calls by how far they came.");
        for (outcome, counter) in OUTCOMES.iter().zip(&self.outcomes) {
            text.line("relay_requests_total", &format!("{{outcome=\"{outcome}\"}}"), counter.load(Relaxed));
        }
        text.line("relay_requests_total", "{outcome=\"cancelled\"}", self.cancelled.load(Relaxed));
        text.head("relay_responses_total", "counter", "Responses by HTTP, by the verdict on them.");
        for (disposition, counter) in DISPOSITIONS.iter().zip(&self.dispositions) {
            let label = format!("{{disposition=\"{}\"}}", disposition.as_str());
            text.line("relay_responses_total", &label, counter.load(Relaxed));
        }
        text.head("relay_request_duration_seconds", "histogram", "How long request calls took.");
        let mut sum = 0;
        for (at, counter) in self.durations.iter().enumerate() {
            sum += counter.load(Relaxed);
            let bound =
                BUCKETS.get(at).map_or_else(|| "+Inf".to_owned(), |&ms| (ms as f64 / 1000.0).to_string());
            text.line("relay_request_duration_seconds_bucket", &format!("{{le=\"{bound}\"}}"), sum);
        }
        let seconds = self.duration_sum_us.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(text.0, "relay_request_duration_seconds_sum {seconds}");
        text.line("relay_request_duration_seconds_count", "", sum);
        text.0
    }
}

/// What there is now.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) connections: usize,
    pub(super) strangers: usize,
    pub(super) sessions: usize,
    pub(super) ws_channels: usize,
    pub(super) ws_ignored: u64,
    /// By close code.
    pub(super) ws_faults: Vec<(u16, u64)>,
    pub(super) in_flight: usize,
    pub(super) spooled: usize,
    pub(super) ready: bool,
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.head(name, "gauge", help);
        self.line(name, "", value as u64);
    }

    fn counter(&mut self, name: &str, help: &str, counter: &AtomicU64) {
        self.head(name, "counter", help);
        self.line(name, "", counter.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_cumulative_buckets() {
        let metrics = Metrics::default();
        for ms in [1, 5, 6, 40_000] {
            metrics.call(Outcome::Answered, Duration::from_millis(ms));
        }
        let text = metrics.text(&Gauges::default());
        for line in [
            "relay_request_duration_seconds_bucket{le=\"0.005\"} 2",
            "relay_request_duration_seconds_bucket{le=\"0.01\"} 3",
            "relay_request_duration_seconds_bucket{le=\"30\"} 3",
            "relay_request_duration_seconds_bucket{le=\"+Inf\"} 4",
            "relay_request_duration_seconds_count 4",
            "relay_requests_total{outcome=\"answered\"} 4",
            "relay_request_duration_seconds_sum 40.012",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_in_the_manual() {
        let manual = include_str!("../../../../docs/http.md");
        let text = Metrics::default().text(&Gauges::default());
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(
                manual.contains(&format!("`{name}`")) || manual.contains(&format!("`{name}{{")),
                "{name} is not in docs/http.md"
            );
        }
    }
}
