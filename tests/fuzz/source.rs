//! Finds the decoders in the source, so that none is without a target.
//!
//! A decoder is told by its name, by the type or name of its first parameter, or by what its file uses. `decoders.txt`
//! names the target of each, or says why it needs none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const NAMES: &[&str] =
    &["decode", "parse", "from_bytes", "from_text", "from_str", "unescape", "read_frame"];
const PARAMETERS: &[&str] = &["bytes:", "input:", "wire:", "table:", "sums: &[u8]"];
const TYPES: &[&str] = &["Reader<", "impl Read", "dyn Read", "&mut Bytes"];
const RETURNS: &[&str] = &["Result", "Option", "Parsed", "Vec", "Set", "impl Iterator"];
/// What a file uses that reads bytes.
const USES: &[&str] = &[
    "from_le_bytes(",
    "from_be_bytes)",
    "from_be_bytes(",
    "from_str_radix(",
    "serde_json::from_",
    "Reader::new(",
];

/// Product code of every crate: path from the root, and text without comments and tests.
fn product() -> Vec<(String, String)> {
    let root = tests::repository();
    let mut files = Vec::new();
    for entry in root.read_dir().unwrap() {
        walk(&entry.unwrap().path().join("src"), &mut files);
    }
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let code = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(|line| format!("{line}\n"))
                .collect();
            (path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), code)
        })
        .filter(|(path, _)| !path.starts_with("tests/") && !path.contains("/bench"))
        .collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in dir.read_dir().into_iter().flatten() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_test = ["tests", "fuzz"].contains(&stem.as_str())
            || stem.ends_with("_tests")
            || stem == "faulty";
        if path.is_dir() && !is_test {
            walk(&path, files);
        } else if path.extension() == Some("rs".as_ref()) && !is_test {
            files.push(path);
        }
    }
}

/// Names of the functions in `code` that decode, `get` of `Wire` apart.
fn decoding_functions(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("fn ") {
        let rest = &code[at + 3..];
        let Some(open) = rest.find('(') else { continue };
        let name = rest[..open].split('<').next().unwrap();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let signature = &rest[open + 1..end_of_signature(rest)];
        let Some((parameters, returned)) = signature.rsplit_once("->") else { continue };
        let first = parameters.trim_start().trim_start_matches("mut ");
        let first = first.split(',').next().unwrap();
        let by_name = NAMES.iter().any(|start| name.starts_with(start));
        let by_type = PARAMETERS.iter().any(|start| first.starts_with(start))
            || TYPES.iter().any(|word| first.contains(word));
        if (by_name || by_type && RETURNS.iter().any(|word| returned.contains(word)))
            && name != "get"
        {
            found.insert(name.to_owned());
        }
    }
    found
}

fn end_of_signature(code: &str) -> usize {
    // An array's length has a semicolon, too.
    let ends = [code.find('{'), code.find(";\n")];
    ends.into_iter().flatten().min().unwrap_or(code.len())
}

/// `PATH NAME` of each decoder; `PATH *` for a file that reads bytes in functions that are not told by their name.
fn decoders() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, code) in product() {
        let functions = decoding_functions(&code);
        if functions.is_empty() && USES.iter().any(|word| code.contains(word)) {
            found.insert(format!("{path} *"));
        }
        found.extend(functions.into_iter().map(|name| format!("{path} {name}")));
    }
    found
}

/// Types with a byte form: every `impl Wire for`, `wire_struct!`, `wire_enum!`, `wire_newtype!`.
pub(crate) fn wire_types() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, code) in product() {
        for (at, word) in code.match_indices("Wire for ") {
            let name = code[at + word.len()..].split(" {").next().unwrap();
            // The macros' own text, integers, pairs: parts of everything else.
            if !name.contains(['$', '(']) {
                found.insert(name.to_owned());
            }
        }
        for word in ["wire_struct!(", "wire_enum!("] {
            for (at, _) in code.match_indices(word) {
                let name = code[at + word.len()..].split(" {").next().unwrap();
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{path}: {name}");
                found.insert(name.to_owned());
            }
        }
        for (at, word) in code.match_indices("wire_newtype!(") {
            let list = code[at + word.len()..].split(");").next().unwrap();
            found.extend(list.lines().filter_map(|line| {
                let name = line.trim().split('(').next()?;
                (!name.is_empty()).then(|| name.to_owned())
            }));
        }
    }
    found
}

/// Type and name of each variant with a byte form: `1 = Read { chunk },` in a `wire_enum!`.
pub(crate) fn wire_variants() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (_, code) in product() {
        for (at, word) in code.match_indices("wire_enum!(") {
            let (name, body) = code[at + word.len()..].split_once(" {").unwrap();
            let tagged = body.split("});").next().unwrap().split(" = ").skip(1);
            found.extend(tagged.map(|rest| {
                let variant = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
                (name.to_owned(), variant.to_owned())
            }));
        }
    }
    found
}

/// From decoder to targets, or to the reason why there is none.
fn listed() -> BTreeMap<String, String> {
    include_str!("decoders.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (decoder, target) = line.split_once(": ").unwrap_or_else(|| panic!("'{line}'"));
            (decoder.to_owned(), target.to_owned())
        })
        .collect()
}

/// Names of all targets, wherever they run.
fn targets() -> BTreeSet<String> {
    let root = tests::repository();
    let mut paths = Vec::new();
    for entry in root.read_dir().unwrap() {
        let src = entry.unwrap().path().join("src");
        all_rust(&src, &mut paths);
    }
    all_rust(&root.join("tests/fuzz"), &mut paths);
    let mut found = BTreeSet::new();
    for path in paths {
        let text = std::fs::read_to_string(path).unwrap();
        for (at, word) in text.match_indices(concat!("Target::", "new(")) {
            let name = text[at + word.len()..].trim_start().strip_prefix('"');
            found.extend(name.and_then(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
    found
}

fn all_rust(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in dir.read_dir().into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_rust(&path, files);
        } else if path.extension() == Some("rs".as_ref()) {
            files.push(path);
        }
    }
}

#[test]
fn every_decoder_has_a_target() {
    let (found, listed, targets) = (decoders(), listed(), targets());
    let mut findings = Vec::new();
    for decoder in found.iter().filter(|decoder| !listed.contains_key(*decoder)) {
        findings.push(format!("{decoder}: no target in tests/fuzz/decoders.txt"));
    }
    for (decoder, target) in &listed {
        if !found.contains(decoder) {
            findings.push(format!("{decoder}: listed, but not in the source"));
        }
        if let Some(reason) = target.strip_prefix("none, ") {
            assert!(10 <= reason.len(), "{decoder}: {reason}");
        } else {
            for name in target.split(", ").filter(|name| !targets.contains(*name)) {
                findings.push(format!("{decoder}: there is no target '{name}'"));
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn a_decoder_is_found() {
    let functions = |code: &str| decoding_functions(code).into_iter().collect::<Vec<_>>();
    assert_eq!(functions("pub fn decode_x(a: &[u8]) -> Result<X, E> {"), ["decode_x"]);
    assert_eq!(functions("fn of(\n    bytes: &[u8],\n    n: u32,\n) -> Option<X> {"), ["of"]);
    assert_eq!(functions("fn take(from: &mut impl Read) -> io::Result<X> {"), ["take"]);
    assert_eq!(functions("fn decode(b: &[u8; N]) -> Result<X, E> {"), ["decode"]);
    assert_eq!(functions("fn encode(x: &X) -> Vec<u8> { }"), [""; 0]);
    assert_eq!(functions("fn put(bytes: &[u8]) { }"), [""; 0]);
}

/// A corpus is for a target, and small enough for everybody's clone.
#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let root = tests::repository().join("tests/fuzz/corpus");
    let mut dirs = BTreeSet::new();
    let mut total = 0;
    for dir in root.read_dir().unwrap() {
        let dir = dir.unwrap();
        dirs.insert(dir.file_name().to_string_lossy().into_owned());
        for file in dir.path().read_dir().unwrap() {
            let file = file.unwrap();
            let bytes = file.metadata().unwrap().len();
            assert!(bytes <= 4096, "{}: {bytes} bytes", file.path().display());
            total += bytes;
        }
    }
    assert_eq!(dirs, targets(), "directories of the corpus and targets");
    assert!(total <= 1 << 20, "{total} bytes");
}
