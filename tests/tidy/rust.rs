//! `deploy/need-rust`: whatever cargo a machine has, the scripts go on with one that is new enough, or say what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn program(path: &Path, script: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs `need_rust` where `cargo` is what `found` says and rustup installs what `installs` says.
fn need_rust(found: Option<&str>, installs: Option<&str>) -> Output {
    let temp = tempfile::tempdir().unwrap();
    let cargo = |says: &str| format!("echo 'cargo {says} (0123456 2026-01-01)'");
    if let Some(version) = found {
        program(&temp.path().join("bin/cargo"), &cargo(version));
    }
    let installed = temp.path().join("home/.cargo/bin/cargo");
    program(&installed.with_file_name("other"), "");
    let curl = match installs {
        Some(version) => format!(
            "echo \"printf '%s\\n' '#!/bin/sh' \\\"{}\\\" > {1}; chmod +x {1}\"",
            cargo(version),
            installed.display()
        ),
        None => "exit 6".to_owned(),
    };
    program(&temp.path().join("bin/curl"), &curl);
    Command::new("bash")
        .args(["-c", ". deploy/need-rust; need_rust && cargo --version"])
        .current_dir(tests::repository())
        .env("PATH", format!("{}:/usr/bin:/bin", temp.path().join("bin").display()))
        .env("HOME", temp.path().join("home"))
        .env_remove("CARGO_HOME")
        .output()
        .unwrap()
}

#[track_caller]
fn check(found: Option<&str>, installs: Option<&str>, code: i32, words: &[&str]) {
    let output = need_rust(found, installs);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "'{word}' in {said}");
    }
    assert_eq!(said.contains("installing Rust"), found != Some("1.200.0"), "{said}");
}

#[test]
fn a_cargo_that_is_missing_or_too_old_is_replaced_by_rustup() {
    check(Some("1.200.0"), None, 0, &["cargo 1.200.0"]);
    check(
        Some("1.63.0"),
        Some("1.200.1"),
        0,
        &["1.63.0 is older", "sh.rustup.rs", "cargo 1.200.1"],
    );
    check(Some("1.63.0"), None, 1, &["1.63.0 is older", "run: curl", "sh.rustup.rs"]);
    // Rustup did what it could, and it is not enough.
    check(Some("1.63.0"), Some("1.9.0"), 1, &["run: curl"]);
}
