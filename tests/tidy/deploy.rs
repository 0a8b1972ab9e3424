//! What lies in deploy/ is understood by those it is for, as far as they are here.

use std::path::Path;
use std::process::Command;

/// The units, as they would be installed; the program is one that every machine has.
#[test]
fn systemd_understands_the_units() {
    let dir = tempfile::tempdir().unwrap();
    let units = tests::repository().join("deploy/systemd");
    let mut count = 0;
    for file in std::fs::read_dir(units).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "service") {
            continue;
        }
        count += 1;
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("/usr/local/bin/dfs "), "{}", file.display());
        let text = text.replace("/usr/local/bin/dfs ", "/usr/bin/env dfs ");
        std::fs::write(dir.path().join(file.file_name().unwrap()), text).unwrap();
    }
    assert_eq!(count, 3);
    let verify = |dir: &Path| {
        let names =
            ["dfs-master.service", "dfs-chunkserver@cs-1.service", "dfs-mount@mnt-dfs.service"];
        Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .args(names.map(|name| dir.join(name)))
            .env("LC_ALL", "C")
            .output()
    };
    let said = match verify(dir.path()) {
        Ok(output) => {
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }
        Err(_) => {
            return tests::skipped("systemd-analyze is not installed (apt-get install systemd)");
        }
    };
    // Of our units only: the machine's own may have faults, too.
    let ours: Vec<String> =
        said.lines().filter(|line| line.contains("dfs-")).map(str::to_owned).collect();
    crate::check_none(&ours);
}

/// A namespace of its own would hide what it mounts from everybody else (systemd.exec(5), MountFlags=).
#[test]
fn the_unit_of_a_mount_has_no_mount_namespace() {
    let unit = tests::repository().join("deploy/systemd/dfs-mount@.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let makes_one = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "LoadCredential",
        "MountAPIVFS",
        "MountFlags",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateTmp",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
    ];
    let found: Vec<String> = unit
        .lines()
        .filter_map(|line| line.split_once('=').map(|(key, _)| key))
        .filter(|key| makes_one.contains(key))
        .map(|key| format!("dfs-mount@.service: {key}= makes a mount namespace"))
        .collect();
    crate::check_none(&found);
}
