//! `dfs man [DIR]`: the manual from the same definitions as the help.

use std::io::ErrorKind;
use std::path::Path;

use crate::args::{ManArgs, definitions};
use crate::failure::fail;
use crate::output;
use anyhow::Context as _;

pub(crate) fn run(args: &ManArgs) -> anyhow::Result<()> {
    let command = definitions();
    match &args.pages {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).context("make the page")?;
            output::text(&String::from_utf8_lossy(&page))
        }
        Some(dir) => write_pages(command, dir),
    }
}

/// Makes `dir` if need be, but no parents: a path that was mistyped should not become a tree.
fn write_pages(command: clap::Command, dir: &Path) -> anyhow::Result<()> {
    let made = match std::fs::create_dir(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => false,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return fail(format!("man {}: not a directory", dir.display()), "name another");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return fail(
                format!("man {}: the directory it would lie in does not exist", dir.display()),
                "make that first, or name a directory that is there",
            );
        }
        Err(error) => return Err(error).with_context(|| format!("make {}", dir.display())),
    };
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("write into {}", dir.display()))?;
    output::line(&format!(
        "wrote dfs.1 and a page per command into {}{}",
        dir.display(),
        if made { ", a new directory" } else { "" }
    ))
}
