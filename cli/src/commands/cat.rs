//! `dfs cat`.

use std::io;

use crate::args::{CatArgs, ClusterArgs};
use crate::files::Files;
use crate::output;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &CatArgs) -> anyhow::Result<()> {
    let paths = args
        .paths
        .iter()
        .map(|path| RemotePath::parse(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let files = Files::open(cluster)?;
    let mut out = io::stdout().lock();
    for path in &paths {
        let attr = files.attr(path)?;
        files.read_all(&attr, path, &mut |bytes| {
            output::written(io::Write::write_all(&mut out, bytes))
        })?;
    }
    output::written(io::Write::flush(&mut out))
}
