//! What was measured, beside what it may cost.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

/// One run of one server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// CPU for a device to come online, µs.
    pub(crate) connect: f64,
    /// Resident KiB per device with a held request.
    pub(crate) held: f64,
    /// The same after each device has answered some requests in its session.
    pub(crate) used: f64,
    /// Resident KiB per device with both its connections.
    pub(crate) both: f64,
    pub(crate) in_session: Calls,
    pub(crate) by_http: Calls,
}

/// One shape of answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    /// CPU per request, µs.
    pub(crate) cpu: f64,
    /// Latencies as the service sees them, ms.
    pub(crate) median: f64,
    pub(crate) p99: f64,
    /// Calls a second.
    pub(crate) rate: f64,
}

/// A row of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: &'static str,
    relay: f64,
    bare: f64,
    /// What the relay's value, or its ratio to the bare one, may be.
    budget: Option<Budget>,
}

#[derive(Debug, Clone, Copy)]
enum Budget {
    Value(f64),
    Ratio(f64),
}

/// How many times its budget a figure may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slack {
    pub(crate) memory: f64,
    pub(crate) cpu: f64,
}

impl Default for Slack {
    fn default() -> Self {
        Self { memory: 1.0, cpu: 1.0 }
    }
}

impl Row {
    fn holds(&self) -> bool {
        self.within(Slack::default())
    }

    fn within(&self, slack: Slack) -> bool {
        match self.budget {
            None => true,
            Some(Budget::Value(most)) => self.relay <= most * slack.memory,
            Some(Budget::Ratio(most)) => self.relay / self.bare <= most * slack.cpu,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) devices: usize,
    pub(crate) requests: usize,
    /// The relay's threads; 0 for its own default.
    pub(crate) workers: u16,
}

/// Medians of all runs.
#[derive(Debug)]
pub(crate) struct Report {
    setting: Setting,
    runs: usize,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(setting: Setting, relay: &[Run], bare: &[Run]) -> Self {
        let row = |name, unit, value: fn(&Run) -> f64, budget| Row {
            name,
            unit,
            relay: median(relay.iter().map(value)),
            bare: median(bare.iter().map(value)),
            budget,
        };
        let rows = vec![
            row("resident per device, request held", "KiB", |run| run.held, Some(Budget::Value(14.0))),
            row("resident per device, after requests", "KiB", |run| run.used, None),
            row("resident per device, both connections", "KiB", |run| run.both, Some(Budget::Value(25.0))),
            row(
                "CPU per request, answer in the session",
                "µs",
                |run| run.in_session.cpu,
                Some(Budget::Ratio(1.5)),
            ),
            row("CPU per request, answer by HTTP", "µs", |run| run.by_http.cpu, Some(Budget::Ratio(1.5))),
            row("CPU per connect, log-in included", "µs", |run| run.connect, None),
            row("median latency, answer in the session", "ms", |run| run.in_session.median, None),
            row("p99 latency, answer in the session", "ms", |run| run.in_session.p99, None),
            row("calls per second, answer in the session", "1/s", |run| run.in_session.rate, None),
            row("median latency, answer by HTTP", "ms", |run| run.by_http.median, None),
            row("p99 latency, answer by HTTP", "ms", |run| run.by_http.p99, None),
            row("calls per second, answer by HTTP", "1/s", |run| run.by_http.rate, None),
        ];
        Self { setting, runs: relay.len(), rows }
    }

    pub(crate) fn holds(&self) -> bool {
        self.rows.iter().all(Row::holds)
    }

    /// Whether everything is within `slack` times its budget.
    pub(crate) fn within(&self, slack: Slack) -> bool {
        self.rows.iter().all(|row| row.within(slack))
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Map<String, Value> = self
            .rows
            .iter()
            .map(|row| {
                let (value, ratio) = match row.budget {
                    Some(Budget::Value(most)) => (Some(most), None),
                    Some(Budget::Ratio(most)) => (None, Some(most)),
                    None => (None, None),
                };
                let row_value = json!({
                    "unit": row.unit, "relay": row.relay, "bare": row.bare, "ratio": row.relay / row.bare,
                    "most": value, "most_ratio": ratio, "holds": row.holds(),
                });
                (row.name.to_owned(), row_value)
            })
            .collect();
        let Setting { devices, requests, workers } = self.setting;
        json!({
            "devices": devices, "requests": requests, "workers": workers, "runs": self.runs, "holds": self.holds(),
            "rows": rows,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { devices, requests, workers } = self.setting;
        writeln!(f, "{devices} devices, {requests} requests a shape, medians of {} runs", self.runs)?;
        match workers {
            0 => writeln!(f, "relay: one thread a core; bare forwarder: one thread\n")?,
            1 => writeln!(f, "one thread each\n")?,
            workers => writeln!(f, "relay: {workers} threads; bare forwarder: one thread\n")?,
        }
        writeln!(f, "{:<42}{:>10}{:>10}{:>8}  budget", "", "relay", "bare", "ratio")?;
        for row in &self.rows {
            let mut budget = String::new();
            match row.budget {
                Some(Budget::Value(most)) => write!(budget, "<= {most} {}", row.unit)?,
                Some(Budget::Ratio(most)) => write!(budget, "ratio <= {most}")?,
                None => {}
            }
            if !row.holds() {
                budget.push_str("  EXCEEDED");
            }
            let name = format!("{}, {}", row.name, row.unit);
            let line = format!(
                "{name:<44}{:>8.1}{:>10.1}{:>8.2}  {budget}",
                row.relay,
                row.bare,
                row.relay / row.bare
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: Setting = Setting { devices: 1, requests: 1, workers: 1 };

    fn run(held: f64, cpu: f64) -> Run {
        let calls = Calls { cpu, ..Calls::default() };
        Run { held, both: held, in_session: calls, by_http: calls, ..Run::default() }
    }

    #[test]
    fn the_median_run_decides() {
        let bare = [run(10.0, 10.0); 3];
        let fine = [run(13.0, 14.0), run(99.0, 99.0), run(1.0, 1.0)];
        assert!(Report::new(SETTING, &fine, &bare).holds());
    }

    #[test]
    fn memory_and_ratio_over_budget_are_told() {
        let bare = [run(10.0, 10.0)];
        let heavy = Report::new(SETTING, &[run(14.1, 10.0)], &bare);
        assert!(!heavy.holds());
        let memory = |memory| Slack { memory, cpu: 1.0 };
        assert!(heavy.within(memory(1.01)) && !heavy.within(memory(1.005)));
        assert_eq!(heavy.to_string().matches("EXCEEDED").count(), 1);
        let slow = Report::new(SETTING, &[run(10.0, 15.1)], &bare);
        let cpu = |cpu| Slack { memory: 1.0, cpu };
        assert!(!slow.holds() && slow.within(cpu(1.01)) && !slow.within(cpu(1.005)));
        assert_eq!(slow.json()["holds"], false);
    }
}
