//! Fuzz target of the list of reigns.

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn reigns_file() {
    let reign = |epoch, nonce, began_after| Reign { epoch: Epoch(epoch), nonce, began_after };
    let lists = [
        vec![],
        vec![reign(1, 7, 0)],
        vec![reign(3, u64::MAX, 100), reign(1004, 0, 90), reign(u64::MAX, 1, u64::MAX)],
    ];
    let valid = lists.map(|list| Reigns(list).text().into_bytes()).to_vec();
    Target::new("reigns", valid).sealed_by(seal).run(|bytes| {
        let Some(reigns) = std::str::from_utf8(bytes).ok().and_then(Reigns::parse) else {
            return false;
        };
        assert_eq!(Reigns::parse(&reigns.text()).as_ref(), Some(&reigns));
        true
    });
}
