//! Fuzz target of what holder and client say.

use super::Message;
use super::tests::messages;
use crate::fuzz_engine::Target;

#[test]
fn holder_message() {
    let valid = messages().iter().map(Message::encode).collect();
    Target::new("holder_message", valid).prefixes_may_be_valid().run(|bytes| {
        let Some(message) = Message::decode(bytes) else { return false };
        assert_eq!(message.encode(), bytes);
        true
    });
}
