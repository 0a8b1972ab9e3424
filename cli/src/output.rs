//! Standard output: lines, tables and JSON, the last two from one struct.
//!
//! A closed pipe (`dfs ls / | head -1`) ends a command quietly with the signal's usual exit code.

use std::io::{self, Write};

use anyhow::Context as _;
use serde::Serialize;

use crate::args::Format;

/// A result that has both forms: serde makes the JSON, this the text for people.
pub(crate) trait Table: Serialize {
    fn table(&self) -> String;
}

/// Prints `result` as asked.
pub(crate) fn print(format: Format, result: &impl Table) -> anyhow::Result<()> {
    match format {
        Format::Table => text(&result.table()),
        Format::Json => {
            let mut json = serde_json::to_string_pretty(result)?;
            json.push('\n');
            text(&json)
        }
    }
}

/// One line for people.
pub(crate) fn line(line: &str) -> anyhow::Result<()> {
    text(&format!("{line}\n"))
}

pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of a write to standard output.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        // 128 + SIGPIPE, as shells show it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(141),
        other => other.context("write to standard output"),
    }
}

/// A name as a terminal may print it: control characters, invalid UTF-8 and the backslash that marks them are escaped.
pub(crate) fn escaped(name: &[u8]) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' { out.push_str("\\\\") } else { push_printable(&mut out, c) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Text of others as a terminal may print it, on one line.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|c| push_printable(&mut out, c));
    out
}

fn push_printable(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\t' => out.push_str("\\t"),
        '\r' => out.push_str("\\r"),
        c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        // C1 controls, and what reverses the direction of the text around it.
        c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
            out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
        }
        c => out.push(c),
    }
}

/// A name in hexadecimal digits, if JSON cannot hold it as it is.
pub(crate) fn hex_unless_utf8(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).is_err().then(|| hex(name))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines up columns; the last one is not padded. `right` names columns that hold numbers.
pub(crate) fn columns(rows: &[Vec<String>], right: &[usize]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column != 0 {
                line.push_str("  ");
            }
            if right.contains(&column) {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `1.5 GiB`: three digits are enough for people; JSON has the bytes.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut whole = count;
    let mut rest = 0;
    let mut unit = "B";
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        rest = whole % 1024;
        whole /= 1024;
        unit = next;
    }
    if whole < 100 {
        format!("{whole}.{} {unit}", rest * 10 / 1024)
    } else {
        format!("{whole} {unit}")
    }
}

/// Seconds since 1970 as `2026-11-21 05:30:00`, UTC.
pub(crate) fn utc(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let time = seconds.rem_euclid(86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        time / 3_600,
        time / 60 % 60,
        time % 60
    )
}

/// `3.2 s`.
pub(crate) fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
}

/// `1.0 MiB/s, 3.0 s left`, of what moves bytes `rate` a second.
pub(crate) fn pace(rate: u64, eta_ms: Option<u64>) -> String {
    match eta_ms {
        Some(eta) if 0 < rate => format!("{}/s, {} left", bytes(rate), seconds(eta)),
        Some(_) | None => "nothing copied lately".to_owned(),
    }
}

pub(crate) fn utc_now() -> String {
    utc(dfs_service::clock::wall_nanos().div_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_write_on_the_terminal() {
        assert_eq!(escaped("füß 1".as_bytes()), "füß 1");
        assert_eq!(escaped(b"a\nb\x1b[31m\x7f"), "a\\nb\\x1b[31m\\x7f");
        assert_eq!(escaped(b"\\n"), "\\\\n");
        assert_eq!(escaped(b"\xff\xc3"), "\\xff\\xc3");
        assert_eq!(escaped("\u{9b}\u{202e}".as_bytes()), "\\u{9b}\\u{202e}");
        assert_eq!(printable("a\\\x1b"), "a\\\\x1b");
    }

    #[test]
    fn times_are_civil() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(utc(1_795_239_000), "2026-11-21 05:30:00");
        assert_eq!(utc(-1), "1969-12-31 23:59:59");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10 << 20), "10.0 MiB");
        assert_eq!(bytes(250 << 30), "250 GiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn columns_line_up_and_numbers_end_together() {
        let rows = [vec!["id".into(), "chunks".into()], vec!["cs-10".into(), "7".into()]];
        assert_eq!(columns(&rows, &[1]), "id     chunks\ncs-10       7\n");
    }
}
