//! Programs from crates.io, built once into `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

const BUILD_MAX: Duration = Duration::from_secs(1800);

/// The program `name` of that version, installed if it is not there; `DFS_TOOLS` names another directory for it.
///
/// # Errors
/// Why it cannot be had.
pub(crate) fn program(name: &str, version: &str) -> Result<PathBuf, String> {
    // Tests run side by side; cargo would only wait for its own lock.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = match std::env::var_os("DFS_TOOLS") {
        Some(root) => PathBuf::from(root),
        None => target_dir().join("tools"),
    };
    let path = root.join("bin").join(name);
    if has_version(&path, version) {
        return Ok(path);
    }
    eprintln!("building {name} {version} into {}, once", root.display());
    let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    install
        .args(["install", "--quiet", "--locked", "--force", "--version", version, "--root"])
        .arg(&root)
        .arg(name)
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(std::env::temp_dir());
    let output = tests::run(&mut install, BUILD_MAX);
    if output.status.success() && path.is_file() {
        return Ok(path);
    }
    Err(format!("cargo install {name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn has_version(path: &Path, version: &str) -> bool {
    // pjdfstest does not tell its version; what `cargo install` noted is as good.
    let noted = path
        .parent()
        .and_then(Path::parent)
        .and_then(|root| std::fs::read_to_string(root.join(".crates.toml")).ok());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    path.is_file()
        && noted
            .zip(name)
            .is_some_and(|(noted, name)| noted.contains(&format!("\"{name} {version} ")))
}

/// Where this test was built: target/PROFILE/deps/NAME-HASH.
fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    test.ancestors().nth(3).expect("cargo's layout").to_owned()
}
