//! Fuzz target of the mark that a copy is complete.

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn complete_mark() {
    let marks = [(0, 0), (7, -1), (u64::MAX, i64::MAX)];
    let text = |(index, at_ns)| text_of(Complete { index, at_ns }).into_bytes();
    let valid = marks.map(text).to_vec();
    Target::new("copy_complete", valid).sealed_by(seal).run(|bytes| {
        let Some(complete) = std::str::from_utf8(bytes).ok().and_then(parse) else { return false };
        assert_eq!(parse(&text_of(complete)), Some(complete));
        true
    });
}
