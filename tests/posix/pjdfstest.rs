//! pjdfstest: what POSIX and Linux say about names, modes, owners, times and errors.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::{Cluster, no_fuse, skipped};

/// What it skips here and on ext4, by the end of the name: remounting is not ours to do.
const SKIPPED: [&str; 2] = ["::erofs_named", "::erofs_new_file"];
/// What it skips on any FUSE file system: glibc does not know its LINK_MAX.
const SKIPPED_ON_FUSE: &str = "link::link_count_max";
/// Cases of this version.
const CASES: u32 = 398;

/// Two users every Debian has.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}

[settings]
naptime = 0.01
allow_remount = false
expected_failures = []

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[derive(Debug, PartialEq, Eq)]
struct Summary {
    failed: u32,
    skipped: u32,
    passed: u32,
}

/// Of "Summary: 0 failed, 14 skipped, 384 passed, 0 expected failures, 398 total".
fn summary(output: &str) -> Option<Summary> {
    let line = output.lines().rev().find_map(|line| line.split_once("Summary: "))?.1;
    let count = |what: &str| {
        let (before, _) = line.split_once(what)?;
        before.trim().rsplit(' ').next()?.parse().ok()
    };
    Some(Summary {
        failed: count("failed,")?,
        skipped: count("skipped,")?,
        passed: count("passed,")?,
    })
}

#[test]
fn the_summary_is_read() {
    let line = "\nSummary: 1 failed, 14 skipped, 383 passed, 0 expected failures, 398 total\n";
    assert_eq!(summary(line), Some(Summary { failed: 1, skipped: 14, passed: 383 }));
}

#[test]
fn pjdfstest_finds_no_difference_to_a_local_file_system() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("pjdfstest changes users, which takes root");
    }
    let program = match super::tools::program("pjdfstest", "0.2.2") {
        Ok(program) => program,
        Err(reason) => return skipped(&reason),
    };
    let cluster = Cluster::start();
    let config = cluster.scratch().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).unwrap();
    // Its users must reach the mount.
    for dir in [cluster.scratch(), &cluster.dir(), &cluster.mount()] {
        open_to_all(dir);
    }
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).arg("-p").arg(cluster.mount()).arg("-s").arg("/dev/shm");
    command.env("NO_COLOR", "1");
    let output = tests::run(&mut command, Duration::from_secs(600));
    let said = String::from_utf8_lossy(&output.stdout);
    let summary = summary(&said)
        .unwrap_or_else(|| panic!("no summary: {said}{}", String::from_utf8_lossy(&output.stderr)));
    println!("pjdfstest: {summary:?}");
    let failures: Vec<&str> = said.lines().filter(|line| line.contains("FAILED")).collect();
    assert_eq!(failures, [""; 0], "{said}");
    assert_eq!(summary.failed, 0, "{said}");
    let unexpected: Vec<&str> = skipped_cases(&said).filter(|name| !may_skip(name)).collect();
    assert_eq!(unexpected, [""; 0], "{said}");
    let listed = u32::try_from(skipped_cases(&said).count()).unwrap();
    assert_eq!(summary.skipped, listed, "{said}");
    assert_eq!(summary.passed + summary.skipped, CASES, "{said}");
}

/// Names from lines such as "link::erofs_named      skipped".
fn skipped_cases(output: &str) -> impl Iterator<Item = &str> {
    let names = output.lines().filter_map(|line| line.strip_suffix(" skipped"));
    names.map(str::trim).filter(|name| name.contains("::"))
}

fn may_skip(name: &str) -> bool {
    name == SKIPPED_ON_FUSE || SKIPPED.iter().any(|end| name.ends_with(end))
}

#[test]
fn only_what_ext4_or_fuse_cannot_do_may_be_skipped() {
    let output = "link::exdev_target        skipped\n\tNo secondary file-system has been configured.\n\
                  chown::lchown::erofs_named       skipped\nlink::link_count_max     skipped\nopen::umask   ok\n";
    let refused: Vec<&str> = skipped_cases(output).filter(|name| !may_skip(name)).collect();
    assert_eq!((skipped_cases(output).count(), refused), (3, vec!["link::exdev_target"]));
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}
