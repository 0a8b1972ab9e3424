//! `dfs man [DIR]`: the manual from the same definitions as the help.

use std::path::Path;

use crate::args::{ManArgs, definitions};
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

fn write_pages(command: clap::Command, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("write into {}", dir.display()))?;
    output::line(&format!("wrote dfs.1 and a page per command into {}", dir.display()))
}
