//! What was measured, beside what it may be.

use std::{fmt, time::Duration};

use serde_json::{Map, Value, json};

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    at_most: Option<f64>,
}

impl Row {
    pub(crate) const fn new(name: String, unit: &'static str) -> Self {
        Self { name, unit, value: f64::NAN, at_most: None }
    }

    pub(crate) const fn value(mut self, value: f64) -> Self {
        self.value = value;
        self
    }

    pub(crate) const fn at_most(mut self, most: f64) -> Self {
        self.at_most = Some(most);
        self
    }

    fn holds(&self) -> bool {
        self.at_most.is_none_or(|most| self.value <= most)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) Vec<Row>);

impl Report {
    /// Whether everything is within its budget.
    pub(crate) fn holds(&self) -> bool {
        self.0.iter().all(Row::holds)
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let value = json!({
                "unit": row.unit, "value": row.value, "at_most": row.at_most, "holds": row.holds(),
            });
            (row.name.clone(), value)
        };
        json!({ "holds": self.holds(), "rows": self.0.iter().map(row).collect::<Map<_, _>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.0 {
            let budget = row.at_most.map(|most| format!("<= {most}")).unwrap_or_default();
            let exceeded = if row.holds() { "" } else { "  EXCEEDED" };
            let decimals = match row.unit {
                "" => 0,
                "×" | "ms" => 2,
                _ => 1,
            };
            let value = format!("{:.decimals$}", row.value);
            let line = format!("{:<58}{value:>9} {:<6} {budget}{exceeded}", row.name, row.unit);
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// How long many of the same took.
#[derive(Debug, Clone)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        Self(times)
    }

    pub(crate) const fn count(&self) -> usize {
        self.0.len()
    }

    /// The time, in ms, that this part of them did not exceed. Of none it is no number, which holds no budget.
    pub(crate) fn at(&self, part: f64) -> f64 {
        let rank = (self.0.len() as f64 * part).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_part_is_the_one_that_so_many_did_not_exceed() {
        let times = Times::new((1..=200).rev().map(Duration::from_millis));
        assert_eq!([times.at(0.5), times.at(0.99), times.at(1.0)], [100.0, 198.0, 200.0]);
        assert!(Times::new([]).at(0.99).is_nan());
    }

    #[test]
    fn a_figure_over_its_budget_or_none_at_all_is_told() {
        let row = |value| Row::new("a".into(), "ms").value(value).at_most(50.0);
        assert!(Report(vec![row(50.0)]).holds());
        for value in [50.1, f64::NAN] {
            let report = Report(vec![row(50.0), row(value)]);
            assert!(!report.holds() && report.json()["holds"] == false);
            assert_eq!(report.to_string().matches("EXCEEDED").count(), 1);
        }
    }
}
