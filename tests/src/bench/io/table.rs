//! What comes out: for each figure both values, and how many times as fast ours is.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::plan::Figure;

/// A figure of one test, with what each round gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The test's name.
    pub name: String,
    /// Which figure of it.
    pub figure: Figure,
    /// Ours and the other's, a pair for each round.
    pub rounds: Vec<(f64, f64)>,
}

/// Where values lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// Between which the middle half lies: what a busy machine does to single rounds is outside.
    pub half: (f64, f64),
    /// The least and the most.
    pub all: (f64, f64),
}

/// How ours compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In more rounds than chance would have it.
    Faster,
    /// Now one, now the other.
    Par,
    /// In more rounds than chance would have it.
    Slower,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Par => "par",
            Self::Slower => "slower",
        }
    }
}

/// What is left to chance: one verdict in twenty between equals.
const CHANCE: f64 = 0.05;

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
    Spread { median, half: (at(last / 4), at(last - last / 4)), all: (at(0), at(last)) }
}

impl Row {
    /// Ours.
    pub fn ours(&self) -> Spread {
        spread(self.rounds.iter().map(|(ours, _)| *ours))
    }

    /// The other's.
    pub fn other(&self) -> Spread {
        spread(self.rounds.iter().map(|(_, other)| *other))
    }

    /// How many times as fast ours was, round by round.
    pub fn speed(&self) -> Spread {
        spread(self.rounds.iter().map(|(ours, other)| self.figure.speed(*ours, *other)))
    }

    /// What the rounds say: a sign test. With fewer than six, chance can do anything.
    pub fn verdict(&self) -> Verdict {
        let speeds = || self.rounds.iter().map(|(ours, other)| self.figure.speed(*ours, *other));
        let (faster, slower) = (speeds().filter(|s| *s > 1.0).count(), speeds().filter(|s| *s < 1.0).count());
        if chance(faster + slower, faster.min(slower)) > CHANCE {
            Verdict::Par
        } else if faster > slower {
            Verdict::Faster
        } else {
            Verdict::Slower
        }
    }
}

/// How likely it is that of `rounds` between equals, one has won `fewer` or less, whichever it is.
fn chance(rounds: usize, fewer: usize) -> f64 {
    // The binomial coefficients, one after the other, each as its part of all outcomes.
    let mut part = 0.5_f64.powi(rounds as i32);
    let mut sum = 0.0;
    for won in 0..=fewer {
        sum += part;
        part *= (rounds - won) as f64 / (won + 1) as f64;
    }
    (2.0 * sum).min(1.0)
}

/// All figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the other one is called.
    pub other: String,
    /// How long each was measured each time, in milliseconds.
    pub ms: u64,
    /// The figures.
    pub rows: Vec<Row>,
    /// What was left out, and what went wrong on the way.
    pub notes: Vec<String>,
}

impl Report {
    /// For machines.
    pub fn to_json(&self) -> Value {
        let of = |spread: Spread| {
            let Spread { median, half, all } = spread;
            json!({"median": median, "middle-half": half, "least-and-most": all})
        };
        let row = |row: &Row| {
            json!({
                "name": row.name,
                "figure": row.figure,
                "unit": row.figure.unit(),
                "ours": of(row.ours()),
                "other": of(row.other()),
                "speed": of(row.speed()),
                "verdict": row.verdict().name(),
                "rounds": row.rounds,
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({"other": self.other, "ms": self.ms, "rows": rows, "notes": self.notes})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rows.iter().map(|row| row.rounds.len()).max().unwrap_or_default();
        writeln!(
            f,
            "medians of {rounds} rounds of {} ms; speed is ours as a multiple of the other's, round by round, with what its \
             middle half lies between\n",
            self.ms
        )?;
        writeln!(f, "{:<46} {:>10} {:>10}  {:<8} {:>6}", "", "ours", self.other, "", "speed")?;
        for row in &self.rows {
            let Spread { median, half: (least, most), .. } = row.speed();
            writeln!(
                f,
                "{:<46} {:>10} {:>10}  {:<8} {median:>6.2} ({least:.2}-{most:.2}) {}",
                row.name,
                figure(row.ours().median),
                figure(row.other().median),
                row.figure.unit(),
                row.verdict().name(),
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

/// A value with three or more digits that mean something.
fn figure(value: f64) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(figure: Figure, rounds: &[(f64, f64)]) -> Row {
        Row { name: "reads".into(), figure, rounds: rounds.into() }
    }

    #[test]
    fn the_speed_is_of_each_round_and_not_of_the_medians() {
        let row = row(Figure::Rate, &[(10.0, 20.0), (300.0, 100.0), (20.0, 20.0)]);
        assert_eq!(row.speed(), Spread { median: 1.0, half: (0.5, 3.0), all: (0.5, 3.0) });
        assert!((row.ours().median - 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_verdict_is_what_chance_would_hardly_have() {
        let verdict = |figure, ratios: &[f64]| {
            row(figure, &ratios.iter().map(|ratio| (10.0 * ratio, 10.0)).collect::<Vec<_>>()).verdict()
        };
        assert_eq!(verdict(Figure::Rate, &[1.1; 6]), Verdict::Faster);
        assert_eq!(verdict(Figure::Median, &[1.1; 6]), Verdict::Slower);
        assert_eq!(verdict(Figure::Rate, &[1.1; 5]), Verdict::Par);
        assert_eq!(verdict(Figure::Rate, &[1.1, 0.9, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1, 1.1]), Verdict::Par);
        // One round in which it stood still changes nothing.
        assert_eq!(verdict(Figure::Rate, &[1.1, 0.01, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1]), Verdict::Faster);
    }

    #[test]
    fn the_chance_of_equals_is_that_of_a_coin() {
        assert!((chance(6, 0) - 2.0 / 64.0).abs() < 1e-12);
        assert!((chance(9, 1) - 20.0 / 512.0).abs() < 1e-12);
        assert!((chance(4, 2) - 1.0).abs() < 1e-12);
        assert!((chance(0, 0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_even_number_of_rounds_has_its_median_between_two() {
        let spread = spread([4.0, 1.0, 2.0, 8.0].into_iter());
        assert_eq!(spread, Spread { median: 3.0, half: (1.0, 8.0), all: (1.0, 8.0) });
    }

    #[test]
    fn the_table_and_the_json_have_each_figure() {
        let report = Report {
            other: "QEMU".into(),
            ms: 1000,
            rows: vec![row(Figure::Median, &[(10.0, 20.0)])],
            notes: vec!["no vhost".into()],
        };
        let text = report.to_string();
        assert!(text.contains("2.00 (2.00-2.00) par") && text.contains("note: no vhost"), "{text}");
        assert_eq!(report.to_json()["rows"][0]["verdict"], "par");
    }
}
