//! Fuzz target of the lines.

use dfs_core::cluster::LivenessProfile;

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn heartbeat_lines() {
    let valid = [
        r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1}}"#,
        r#"{"src":"n2","dest":"n1","at_ms":5,"body":{"type":"heartbeat","msg_id":2,"chunks":["a",{"handle":"b","version":7}],"disk_usage":30}}"#,
        r#"{"src":"n2","dest":"n1","body":{"type":"heartbeat","full":false,"chunks":[],"gone":["a"],"health":{"ok":true}}}"#,
        r#"{"src":"c0","dest":"n1","body":{"type":"advance","ms":18446744073709551615}}"#,
    ];
    let valid = valid.iter().map(|line| line.as_bytes().to_vec()).collect();
    Target::new("heartbeat_line", valid).run(|bytes| {
        let settings =
            Settings { profile: LivenessProfile::STANDARD, replication: 3, rebuild_delay_ms: 0 };
        let mut conversation = Conversation::new(settings);
        for line in [br#"{"src":"c","dest":"n","body":{"type":"init"}}"#, bytes, bytes] {
            // Every line but an empty one has an answer of one line, which is JSON.
            match conversation.answer(20_000_000_000, line) {
                None => assert!(line.trim_ascii().is_empty()),
                Some(answer) => {
                    assert!(!answer.contains('\n'));
                    serde_json::from_str::<serde_json::Value>(&answer).unwrap();
                }
            }
        }
        parse(bytes).is_ok()
    });
}
