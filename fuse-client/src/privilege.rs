//! What a caller may, where the kernel does not ask for us: a FUSE request names its user and process, not its
//! capabilities.

use crate::seam::Caller;

/// `CAP_SYS_ADMIN`, `capabilities(7)`.
const SYS_ADMIN: u32 = 21;

/// Whether the caller has `CAP_SYS_ADMIN`, in the user namespace that this process lives in.
pub(crate) fn is_admin(caller: Caller) -> bool {
    // Of another pid namespace, or gone already: its user must do.
    if caller.pid == 0 {
        return caller.uid == 0;
    }
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let pid = caller.pid.to_string();
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return caller.uid == 0;
    };
    match namespace(&pid) {
        Some(theirs) => has_capability(&status, SYS_ADMIN) && Some(theirs) == namespace("self"),
        // Not ours to look at: then it is not ours to serve as an administrator, unless its user is.
        None => caller.uid == 0 && has_capability(&status, SYS_ADMIN),
    }
}

/// Reads a `/proc/PID/status`.
fn has_capability(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = |set: &str| format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\n");
        assert!(has_capability(&status("000001ffffffffff"), SYS_ADMIN));
        assert!(has_capability(&status("0000000000200000"), SYS_ADMIN));
        assert!(!has_capability(&status("0000000000000000"), SYS_ADMIN));
        assert!(!has_capability(&status("000001ffffdfffff"), SYS_ADMIN));
        assert!(!has_capability("Name:\tx\n", SYS_ADMIN));
    }
}
