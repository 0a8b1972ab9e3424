//! Panics of libraries that may panic at what a disk gives them.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic in it, on this thread, is an error with its message. What `f` changed is then not to be trusted.
///
/// # Errors
/// The panic's message.
pub fn contained<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(before);
    result.map_err(|panic| message(&*panic))
}

/// Whether a panic of this thread would be an error of [`contained`]: then it is no reason to end the process.
#[must_use]
pub fn is_contained() -> bool {
    CONTAINED.get()
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(contained(|| 5), Ok(5));
        let count = 3;
        assert_eq!(contained(|| panic!("page {count}")), Err::<(), _>("page 3".to_owned()));
        assert!(contained(is_contained).unwrap());
        assert!(!is_contained());
    }
}
