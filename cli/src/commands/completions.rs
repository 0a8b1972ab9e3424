//! `dfs completions SHELL`.

use crate::args::{CompletionsArgs, definitions};
use crate::output;

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definitions(), "dfs", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}
