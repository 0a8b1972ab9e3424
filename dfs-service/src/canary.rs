//! Deliberate bugs, so that the simulation can show that it would find them; `docs/proof.md` lists them.
//!
//! Only a program built with the feature `canaries` has them, each behind its name and off unless chosen. In every other
//! program [`sings`] is a constant, and the compiler leaves nothing of the places that ask.

/// Whether this process is to have the bug `name`: the environment variable `DFS_CANARY` says so.
#[cfg(feature = "canaries")]
#[must_use]
pub fn sings(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("DFS_CANARY").ok()).as_deref() == Some(name)
}

/// Never: this program was built without deliberate bugs.
#[cfg(not(feature = "canaries"))]
#[must_use]
pub const fn sings(_name: &str) -> bool {
    false
}
