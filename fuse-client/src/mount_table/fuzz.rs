//! Fuzz target of the kernel's table of mounts.

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn mountinfo_table() {
    let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";
    let escaped = "37 35 0:52 / /a\\040b\\134 rw - fuse.dfs dfs rw\n";
    let valid = vec![line.into(), escaped.into(), [line, escaped].concat().into_bytes()];
    Target::new("mountinfo", valid).prefixes_may_be_valid().run(|bytes| {
        let mounted: Vec<_> = parse(bytes).collect();
        assert!(mounted.len() <= 1 + bytes.iter().filter(|byte| **byte == b'\n').count());
        assert!(unescape(bytes).len() <= bytes.len());
        true
    });
}
