//! The deliberate bugs of `docs/proof.md`, read from there: the table that people read is the one that is run.

use std::path::Path;

use crate::repository;

/// One row of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Canary {
    /// As the program is told it.
    pub name: String,
    /// What finds it, such as `I8`: any of them.
    pub invariants: Vec<String>,
    /// The first seed in which it is found.
    pub seed: u64,
    /// How long trouble lasts there, in simulated minutes.
    pub minutes: u64,
}

/// All of them, in the order of the table.
///
/// # Panics
/// If the table is not there or a row of it cannot be read.
#[must_use]
pub fn canaries() -> Vec<Canary> {
    let path = repository().join("docs/proof.md");
    let text = std::fs::read_to_string(&path);
    canaries_of(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Rows are those of the table whose first column is called `canary`.
fn canaries_of(text: &str) -> Vec<Canary> {
    let rows = text.lines().skip_while(|line| !line.starts_with("| canary |")).skip(2);
    let rows: Vec<Canary> = rows.take_while(|line| line.starts_with('|')).map(row_of).collect();
    assert!(!rows.is_empty(), "docs/proof.md has no table of canaries");
    rows
}

fn row_of(line: &str) -> Canary {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [name, _broken, invariant, seed, minutes, _when] = cells[..] else {
        panic!("docs/proof.md: not a row of six: {line}");
    };
    let number =
        |text: &str| text.parse().unwrap_or_else(|_| panic!("docs/proof.md: no number '{text}'"));
    let (seed, minutes) = (number(seed), number(minutes));
    let invariants = invariant.split(", ").map(str::to_owned).collect();
    Canary { name: name.trim_matches('`').to_owned(), invariants, seed, minutes }
}

/// Whether `program` was built with the deliberate bugs.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn has_canaries(program: &Path) -> bool {
    let bytes = std::fs::read(program);
    let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // What the switch asks for; not a bug's own name, which the compiler may keep in pieces.
    let switch = b"DFS_CANARY";
    bytes.windows(switch.len()).any(|window| window == switch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_the_table_of_canaries_only() {
        let text = "| a | b |\n|---|---|\n| x | y |\n\n| canary | broken | by | seed | minutes | after |\n|---|---|---|---|---|---|\n\
                    | `no-sync` | it lies | I8, I10 | 12 | 10 | 3 min |\n\nText.\n| `other` | | I1 | 1 | 1 | |\n";
        let row = Canary {
            name: "no-sync".to_owned(),
            invariants: vec!["I8".to_owned(), "I10".to_owned()],
            seed: 12,
            minutes: 10,
        };
        assert_eq!(canaries_of(text), [row]);
    }
}
