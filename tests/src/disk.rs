//! A disk of a size of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{PATIENCE, run};

/// A small file system for a server's directory; taken off with the test.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// # Errors
    /// Why it cannot be mounted.
    ///
    /// # Panics
    /// If the directory cannot be made.
    pub fn mount(at: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).expect("directory of a small disk");
        let output = run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(at),
            PATIENCE,
        );
        if output.status.success() {
            Ok(Self(at.to_owned()))
        } else {
            Err(format!(
                "a small tmpfs cannot be mounted: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ))
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _tried = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
