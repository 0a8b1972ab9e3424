//! Commands in, full transcript out: each `tests/scripts/*.txt` holds both. A line that is not indented is a command
//! or a question, the indented lines below it are what it answered. `UPDATE_SCRIPTS=1` writes the answers anew, to be
//! read in review. Invariants are checked after every command.

#![allow(clippy::unwrap_used, reason = "a test")]

mod parse;
mod show;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use dfs_core::check::check;
use dfs_core::command::{Change, Command, Outcome};
use dfs_core::ids::{Epoch, FsId};
use dfs_core::meta::{self, MemStore};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use parse::{Line, parse};

/// Runs the commands of one script; answers the script with its answers.
fn transcript(script: &str) -> String {
    let mut store = MemStore::new();
    let start =
        Change::Start { epoch: Epoch(1), nonce: 1, fs: FsId(1), replication: 3, min_replicas: 2 };
    let begin = Command { at: WallTime(0), id: None, results: Results::default(), change: start };
    assert_eq!(meta::apply(&mut store, &begin), Outcome::Done);
    let mut out = String::new();
    for line in script.lines() {
        if line.starts_with(' ') {
            continue;
        }
        out.push_str(line.trim_end());
        out.push('\n');
        if line.trim().is_empty() || line.starts_with("//") {
            continue;
        }
        let answer = match parse(line, &store) {
            Ok(Line::Command(command)) => {
                let outcome = meta::apply(&mut store, &command);
                let mut answer = show::outcome(&outcome);
                for violation in check(&store) {
                    let _ = write!(answer, "\nVIOLATION {violation}");
                }
                answer
            }
            Ok(Line::Question(question)) => show::answer(&store, &question),
            Err(wrong) => format!("? {wrong}"),
        };
        for line in answer.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

fn check_script(path: &Path, update: bool) -> Result<(), String> {
    let script = std::fs::read_to_string(path).unwrap();
    let found = transcript(&script);
    if update {
        #[expect(clippy::disallowed_methods, reason = "tests have files")]
        std::fs::write(path, &found).unwrap();
        return Ok(());
    }
    let differs = script.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    match differs {
        None if script.lines().count() == found.lines().count() => Ok(()),
        None => Err(format!("{}: answers are missing at the end, or too many", path.display())),
        Some(at) => Err(format!(
            "{}:{}: expected\n{}\nfound\n{}",
            path.display(),
            at + 1,
            script.lines().nth(at).unwrap(),
            found.lines().nth(at).unwrap()
        )),
    }
}

fn scripts() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn scripts_answer_as_written() {
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let scripts = scripts();
    assert!(!scripts.is_empty());
    let wrong: Vec<String> =
        scripts.iter().filter_map(|path| check_script(path, update).err()).collect();
    assert!(wrong.is_empty(), "{}\nUPDATE_SCRIPTS=1 takes the answers found", wrong.join("\n\n"));
}

/// A typing mistake in a script must not hide behind its recorded answer.
#[test]
fn every_line_of_every_script_is_understood() {
    for path in scripts() {
        let script = std::fs::read_to_string(&path).unwrap();
        for (at, line) in script.lines().enumerate() {
            let answer = line.trim_start();
            assert!(!answer.starts_with("? "), "{}:{}: {answer}", path.display(), at + 1);
            assert!(!answer.starts_with("VIOLATION"), "{}:{}: {answer}", path.display(), at + 1);
        }
    }
}
