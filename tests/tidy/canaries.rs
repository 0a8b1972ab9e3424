//! The deliberate bugs: those of `docs/proof.md` are those in the code, and no program that anybody uses has one.

use std::collections::BTreeSet;

use tests::canary::{canaries, has_canaries};

use crate::{check_none, texts};

/// Least number of them (PROTOCOL 7.2).
const CANARIES_MIN: usize = 15;

/// Names that the product asks `canary::sings` for.
fn asked_for(text: &str) -> BTreeSet<String> {
    let asked = text.split("canary::sings(\"").skip(1);
    asked.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

#[test]
fn the_table_of_canaries_names_those_in_the_code() {
    let listed: Vec<String> = canaries().into_iter().map(|canary| canary.name).collect();
    let names: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(names.len(), listed.len(), "one is listed twice: {listed:?}");
    assert!(CANARIES_MIN <= names.len(), "{} canaries, not {CANARIES_MIN}", names.len());
    let product = texts(&["rs"]).into_iter().filter(|(path, _)| !path.starts_with("tests"));
    let coded: BTreeSet<String> = product.flat_map(|(_, text)| asked_for(&text)).collect();
    let unlisted = coded.difference(&names).map(|name| format!("{name}: not in docs/proof.md"));
    let uncoded = names.difference(&coded).map(|name| format!("{name}: not in the code"));
    check_none(&unlisted.chain(uncoded).collect::<Vec<_>>());
}

#[test]
fn what_asks_for_a_canary_is_seen() {
    let text = "if canary::sings(\"a-b\") || !canary::sings(\"c\") {} // canary::sings(name)";
    assert_eq!(asked_for(text), BTreeSet::from(["a-b".to_owned(), "c".to_owned()]));
}

#[test]
fn the_program_under_test_has_no_canaries() {
    assert!(!has_canaries(tests::dfs_program()), "built with the feature `canaries`");
}
