//! Fuzz target of the note in a restored directory.

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn restored_note() {
    let notes = [(0, false), (12, true), (u64::MAX, false)];
    let text = |(epoch, skip_ids)| Note { epoch: Epoch(epoch), skip_ids }.text().into_bytes();
    let valid = notes.map(text).to_vec();
    Target::new("restored_note", valid).sealed_by(seal).run(|bytes| {
        let Some(note) = std::str::from_utf8(bytes).ok().and_then(Note::parse) else {
            return false;
        };
        assert_eq!(Note::parse(&note.text()), Some(note));
        true
    });
}
