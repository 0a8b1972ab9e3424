//! `dfs bench`: the same work in a directory and in a baseline directory, interleaved, as a table of ratios.
//!
//! Each round runs every row once in both directories, the order alternating, so that what else the machine does
//! hits both. Medians of the rounds are printed with their range. It never judges: speed is shown, not asserted.

mod memory;
mod names;
mod work;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use work::{Place, ROWS, Row, Unit};

use crate::args::values::whole;
use crate::failure::fail_usage;

/// What to measure, and how often.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs bench ~/dfs/mnt                          figures of the mount alone
  dfs bench ~/dfs/mnt --baseline /var/tmp      with ratios to a local directory, in the same run
  dfs bench ~/dfs/mnt --baseline /var/tmp --only create_4k,stat_cold --rounds 5 -o json
  dfs bench ~/dfs/mnt --dir ~/dfs --only mkdir --names 1000000
                                               the master's memory with a million files
  dfs bench ~/dfs/mnt --dir ~/dfs              also prints the memory of the cluster's processes

Rows marked 'cold' drop the kernel's caches and need root; otherwise they are left out, with a line that says so.")]
pub(crate) struct BenchArgs {
    /// Directory to measure, on any file system
    pub path: PathBuf,
    /// Directory that every row is compared with
    #[arg(long, value_name = "DIR")]
    pub baseline: Option<PathBuf>,
    /// Interleaved rounds; medians need three
    #[arg(long, default_value_t = 3, value_parser = whole::<u32>(1..=99))]
    pub rounds: u32,
    /// Rows to run, by name, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    pub only: Vec<String>,
    /// Size of the large file in MiB
    #[arg(long, default_value_t = 256, value_parser = whole::<u64>(8..=65536))]
    pub file_mib: u64,
    /// Number of small files and of tree files
    #[arg(long, default_value_t = 3000, value_parser = whole::<u64>(10..=1_000_000))]
    pub files: u64,
    /// Also make so many empty files, and show what each costs the master
    #[arg(long, value_name = "FILES", value_parser = whole::<u64>(1..=100_000_000))]
    pub names: Option<u64>,
    /// Print JSON instead of a table
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    pub output: String,
}

/// One row's figures over the rounds.
#[derive(Debug)]
struct Measured {
    row: &'static Row,
    here: Vec<f64>,
    baseline: Vec<f64>,
}

/// Runs the benchmark; `run_dir`: where the local cluster's pid files are, for the memory lines.
pub(crate) fn run(args: &BenchArgs, run_dir: Option<&Path>) -> anyhow::Result<()> {
    let rows = chosen(&args.only)?;
    let mut here = Place::make(&args.path, args.file_mib, args.files)?;
    let mut baseline = match &args.baseline {
        Some(path) => Some(Place::make(path, args.file_mib, args.files)?),
        None => None,
    };
    let can_drop = work::can_drop_caches();
    let mut measured: Vec<Measured> =
        rows.iter().map(|row| Measured { row, here: Vec::new(), baseline: Vec::new() }).collect();
    let mut watch = memory::Watch::start(run_dir);
    for round in 0..args.rounds {
        for entry in &mut measured {
            if entry.row.cold && !can_drop {
                continue;
            }
            note(&format!("round {} of {}: {}", round + 1, args.rounds, entry.row.name));
            // Alternating who goes first.
            let baseline_first = round % 2 == 1;
            if baseline_first && let Some(place) = &mut baseline {
                entry.baseline.push(work::run(entry.row, place)?);
            }
            entry.here.push(work::run(entry.row, &mut here)?);
            if !baseline_first && let Some(place) = &mut baseline {
                entry.baseline.push(work::run(entry.row, place)?);
            }
            watch.look();
        }
    }
    note("");
    here.remove()?;
    if let Some(place) = baseline {
        place.remove()?;
    }
    let names = match args.names {
        Some(files) => {
            note(&format!("{files} empty files"));
            let names = names::Names::measure(&args.path, files, run_dir)?;
            watch.look();
            note("");
            Some(names)
        }
        None => None,
    };
    if args.output == "json" {
        return print_json(&measured, names.as_ref(), &watch);
    }
    print_table(args, &measured, can_drop);
    if let Some(names) = names {
        names.print();
    }
    watch.print();
    Ok(())
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Row>> {
    for name in only {
        if !ROWS.iter().any(|row| row.name == name) {
            let rows: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            return fail_usage(
                format!("unknown row '{name}'"),
                format!("rows are {}", rows.join(", ")),
            );
        }
    }
    Ok(ROWS
        .iter()
        .filter(|row| only.is_empty() || only.iter().any(|name| name == row.name))
        .collect())
}

/// Progress on a terminal: one line that is overwritten.
fn note(text: &str) {
    use std::io::{IsTerminal as _, Write as _};
    let mut out = std::io::stderr();
    if out.is_terminal() {
        // Progress that cannot be shown is no reason to stop.
        let _shown = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// How `here` compares: more is better for rates, the ratio of times for durations.
fn ratio(entry: &Measured) -> Option<f64> {
    let (here, baseline) = (median(&entry.here)?, median(&entry.baseline)?);
    (0.0 < baseline).then_some(here / baseline)
}

fn figure(values: &[f64]) -> String {
    let Some(middle) = median(values) else { return "-".to_owned() };
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    let digits =
        |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    format!("{} ({}-{})", digits(middle), digits(low), digits(high))
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print_table(args: &BenchArgs, measured: &[Measured], can_drop: bool) {
    println!("{:<24} {:>9} {:>26} {:>26} {:>8}", "row", "unit", "here", "baseline", "ratio");
    for entry in measured {
        if entry.row.cold && !can_drop {
            println!(
                "{:<24} left out, because dropping the kernel's caches needs root",
                entry.row.name
            );
            continue;
        }
        let unit = match entry.row.unit {
            Unit::MiBPerSecond => "MiB/s",
            Unit::PerSecond => "1/s",
            Unit::Seconds => "s",
        };
        let ratio = ratio(entry).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<24} {unit:>9} {:>26} {:>26} {ratio:>8}",
            entry.row.name,
            figure(&entry.here),
            figure(&entry.baseline)
        );
    }
    println!(
        "medians of {} interleaved rounds (range); ratio = here / baseline: for rates more is better, for seconds less",
        args.rounds
    );
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print_json(
    measured: &[Measured],
    names: Option<&names::Names>,
    watch: &memory::Watch,
) -> anyhow::Result<()> {
    let rows: Vec<serde_json::Value> = measured
        .iter()
        .map(|entry| {
            serde_json::json!({
                "row": entry.row.name,
                "here": entry.here,
                "baseline": entry.baseline,
                "hereMedian": median(&entry.here),
                "baselineMedian": median(&entry.baseline),
                "ratio": ratio(entry),
            })
        })
        .collect();
    let answer = serde_json::json!({
        "rows": rows,
        "names": names.map(names::Names::json),
        "memory": watch.json(),
    });
    let text = serde_json::to_string_pretty(&answer).context("write JSON")?;
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_named_in_the_help_are_there() {
        let help = <BenchArgs as Args>::augment_args(clap::Command::new("bench"));
        let help = help.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lists: Vec<&str> = help
            .split("--only ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        assert!(!lists.is_empty());
        for list in lists {
            let names: Vec<String> = list.split(',').map(str::to_owned).collect();
            assert_eq!(chosen(&names).unwrap().len(), names.len(), "{list}");
        }
        let refused = chosen(&["create".to_owned()]).unwrap_err();
        assert!(refused.downcast_ref::<crate::failure::Failure>().unwrap().is_usage);
    }

    #[test]
    fn medians_are_of_sorted_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn an_unknown_row_is_named() {
        let error = chosen(&["seq_wriet".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("seq_wriet") && error.contains("seq_write_fsync"), "{error}");
    }
}
