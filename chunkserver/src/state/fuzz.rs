//! Fuzz targets of this server's own text files.

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn server_state_file() {
    let reign = Reign { epoch: Epoch(3), nonce: u64::MAX, log_index: 5000 };
    let marks = OwnMarks { drawn: 9, taken: Mark { number: 8, nonce: u64::MAX }, older: true };
    let none = OwnMarks::default();
    let first_form = seal("dfs-server-state 1 4 3 7 5000");
    let valid = [text_of(1, Reign::default(), none), text_of(2, reign, marks), first_form];
    let valid = valid.map(String::into_bytes).to_vec();
    Target::new("server_state", valid).sealed_by(seal).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Some((incarnation, reign, marks)) = parse(text) else { return false };
        let again = text_of(incarnation, reign, marks);
        assert_eq!(parse(&again), Some((incarnation, reign, marks)));
        true
    });
}

#[test]
fn ended_clients_file() {
    let line = |id: u128| format!("{}\n", ClientId(id));
    let valid = vec![line(5).into_bytes(), [line(1), line(u128::MAX)].concat().into_bytes()];
    // A line cut short by a crash was never acted upon: what is whole counts.
    Target::new("ended_clients", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Some((ended, whole)) = parse_ended(text) else { return false };
        assert!(ended.len() <= whole);
        let again: String = ended.iter().map(|client| format!("{client}\n")).collect();
        assert_eq!(parse_ended(&again).unwrap().0, ended);
        true
    });
}
