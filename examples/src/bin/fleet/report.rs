//! What was measured, beside what it may cost.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

use crate::Transport;

/// One run of one server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// CPU for a device to come online, µs.
    pub(crate) connect: f64,
    /// Resident KiB per device that is online and was never called.
    pub(crate) idle: f64,
    /// The same after each device has answered some requests in its session.
    pub(crate) used: f64,
    pub(crate) in_session: Calls,
    /// What was measured with a second connection for each device, where it may have one.
    pub(crate) second: Option<Second>,
}

/// With a second connection for each device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Second {
    /// Resident KiB per device with both its connections.
    pub(crate) both: f64,
    /// Calls answered over the second.
    pub(crate) by_http: Calls,
}

impl Run {
    fn second(&self) -> Second {
        self.second.unwrap_or_default()
    }
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

/// A row of a table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: &'static str,
    relay: f64,
    bare: f64,
    budget: Budget,
}

/// What the relay's value, or its ratio to the bare one, may be.
#[derive(Debug, Clone, Copy)]
enum Budget {
    None,
    Value(f64),
    Ratio(f64),
}

type Measure = (&'static str, &'static str, fn(&Run) -> f64, Budget);

const BOSH: &[Measure] = &[
    ("resident per device, request held", "KiB", |run| run.idle, Budget::Value(14.0)),
    ("resident per device, after requests", "KiB", |run| run.used, Budget::None),
    ("resident per device, both connections", "KiB", |run| run.second().both, Budget::Value(25.0)),
    ("CPU per request, answer in the session", "µs", |run| run.in_session.cpu, Budget::Ratio(1.5)),
    ("CPU per request, answer by HTTP", "µs", |run| run.second().by_http.cpu, Budget::Ratio(1.5)),
    ("CPU per connect, log-in included", "µs", |run| run.connect, Budget::None),
    ("median latency, answer in the session", "ms", |run| run.in_session.median, Budget::None),
    ("p99 latency, answer in the session", "ms", |run| run.in_session.p99, Budget::None),
    ("calls per second, answer in the session", "1/s", |run| run.in_session.rate, Budget::None),
    ("median latency, answer by HTTP", "ms", |run| run.second().by_http.median, Budget::None),
    ("p99 latency, answer by HTTP", "ms", |run| run.second().by_http.p99, Budget::None),
    ("calls per second, answer by HTTP", "1/s", |run| run.second().by_http.rate, Budget::None),
];

const WS: &[Measure] = &[
    ("resident per device, idle", "KiB", |run| run.idle, Budget::Value(12.0)),
    ("resident per device, after requests", "KiB", |run| run.used, Budget::None),
    ("CPU per request", "µs", |run| run.in_session.cpu, Budget::Ratio(1.8)),
    ("CPU per connect, log-in included", "µs", |run| run.connect, Budget::None),
    ("median latency", "ms", |run| run.in_session.median, Budget::None),
    ("p99 latency", "ms", |run| run.in_session.p99, Budget::None),
    ("calls per second", "1/s", |run| run.in_session.rate, Budget::None),
];

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
            Budget::None => true,
            Budget::Value(most) => self.relay <= most * slack.memory,
            Budget::Ratio(most) => self.relay / self.bare <= most * slack.cpu,
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
    pub(crate) runs: usize,
}

/// Medians of all runs over one transport.
#[derive(Debug)]
struct Table {
    transport: Transport,
    rows: Vec<Row>,
}

impl Table {
    fn holds(&self) -> bool {
        self.rows.iter().all(Row::holds)
    }

    fn json(&self) -> Value {
        let rows: Map<String, Value> = self
            .rows
            .iter()
            .map(|row| {
                let (value, ratio) = match row.budget {
                    Budget::None => (None, None),
                    Budget::Value(most) => (Some(most), None),
                    Budget::Ratio(most) => (None, Some(most)),
                };
                let row_value = json!({
                    "unit": row.unit, "relay": row.relay, "bare": row.bare, "ratio": row.relay / row.bare,
                    "most": value, "most_ratio": ratio, "holds": row.holds(),
                });
                (row.name.to_owned(), row_value)
            })
            .collect();
        json!({"holds": self.holds(), "rows": rows})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = match self.transport {
            Transport::Bosh => "over BOSH; bare: long polls on hyper",
            Transport::Ws => "over WebSocket; bare: tokio-tungstenite, and hyper for the service",
        };
        writeln!(f, "{heading}")?;
        writeln!(f, "{:<42}{:>10}{:>10}{:>8}  budget", "", "relay", "bare", "ratio")?;
        for row in &self.rows {
            let mut budget = String::new();
            match row.budget {
                Budget::None => {}
                Budget::Value(most) => write!(budget, "<= {most} {}", row.unit)?,
                Budget::Ratio(most) => write!(budget, "ratio <= {most}")?,
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

/// A table for each transport.
#[derive(Debug)]
pub(crate) struct Report {
    setting: Setting,
    tables: Vec<Table>,
}

impl Report {
    pub(crate) const fn new(setting: Setting) -> Self {
        Self { setting, tables: Vec::new() }
    }

    /// Adds the table of what was measured over `transport`.
    pub(crate) fn add(&mut self, transport: Transport, relay: &[Run], bare: &[Run]) {
        let measures = match transport {
            Transport::Bosh => BOSH,
            Transport::Ws => WS,
        };
        let rows = measures
            .iter()
            .map(|&(name, unit, value, budget)| Row {
                name,
                unit,
                relay: median(relay.iter().map(value)),
                bare: median(bare.iter().map(value)),
                budget,
            })
            .collect();
        self.tables.push(Table { transport, rows });
    }

    pub(crate) fn holds(&self) -> bool {
        self.tables.iter().all(Table::holds)
    }

    /// Whether everything is within `slack` times its budget.
    pub(crate) fn within(&self, slack: Slack) -> bool {
        self.tables.iter().flat_map(|table| &table.rows).all(|row| row.within(slack))
    }

    pub(crate) fn json(&self) -> Value {
        let Setting { devices, requests, workers, runs } = self.setting;
        let transports: Map<String, Value> =
            self.tables.iter().map(|table| (table.transport.to_string(), table.json())).collect();
        json!({
            "devices": devices, "requests": requests, "workers": workers, "runs": runs, "holds": self.holds(),
            "transports": transports,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { devices, requests, workers, runs } = self.setting;
        writeln!(
            f,
            "{devices} devices, {requests} requests for each way of answering, medians of {runs} runs"
        )?;
        match workers {
            0 => writeln!(f, "relay: one thread a core; bare forwarder: one thread")?,
            1 => writeln!(f, "one thread each")?,
            workers => writeln!(f, "relay: {workers} threads; bare forwarder: one thread")?,
        }
        for table in &self.tables {
            write!(f, "\n{table}")?;
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

    const SETTING: Setting = Setting { devices: 1, requests: 1, workers: 1, runs: 1 };

    fn run(idle: f64, cpu: f64) -> Run {
        let calls = Calls { cpu, ..Calls::default() };
        Run { idle, in_session: calls, second: Some(Second { both: idle, by_http: calls }), ..Run::default() }
    }

    fn report(transport: Transport, relay: &[Run], bare: &[Run]) -> Report {
        let mut report = Report::new(SETTING);
        report.add(transport, relay, bare);
        report
    }

    #[test]
    fn the_median_run_decides() {
        let bare = [run(10.0, 10.0); 3];
        let fine = [run(13.0, 14.0), run(99.0, 99.0), run(1.0, 1.0)];
        assert!(report(Transport::Bosh, &fine, &bare).holds());
    }

    #[test]
    fn memory_and_ratio_over_budget_are_told() {
        let bare = [run(10.0, 10.0)];
        let heavy = report(Transport::Bosh, &[run(14.1, 10.0)], &bare);
        assert!(!heavy.holds());
        let memory = |memory| Slack { memory, cpu: 1.0 };
        assert!(heavy.within(memory(1.01)) && !heavy.within(memory(1.005)));
        assert_eq!(heavy.to_string().matches("EXCEEDED").count(), 1);
        let slow = report(Transport::Bosh, &[run(10.0, 15.1)], &bare);
        let cpu = |cpu| Slack { memory: 1.0, cpu };
        assert!(!slow.holds() && slow.within(cpu(1.01)) && !slow.within(cpu(1.005)));
        assert_eq!(slow.json()["holds"], false);
    }

    #[test]
    fn each_transport_has_its_own_budgets_and_one_over_them_is_enough() {
        let bare = [run(10.0, 10.0)];
        let websocket = |idle, cpu| report(Transport::Ws, &[run(idle, cpu)], &bare);
        assert!(websocket(11.9, 17.9).holds());
        assert!(!websocket(12.1, 17.9).holds());
        assert!(!websocket(11.9, 18.1).holds());
        let mut both = report(Transport::Bosh, &[run(12.1, 10.0)], &bare);
        assert!(both.holds());
        both.add(Transport::Ws, &[run(12.1, 10.0)], &bare);
        assert!(!both.holds() && both.within(Slack { memory: 1.01, cpu: 1.0 }));
        let json = both.json();
        assert_eq!(json["transports"]["bosh"]["holds"], true);
        assert_eq!(json["transports"]["ws"]["rows"]["resident per device, idle"]["holds"], false);
    }
}
