//! `dfs cat`.

use std::io;

use crate::args::{CatArgs, ClusterArgs};
use crate::failure::for_all;
use crate::files::Files;
use crate::output;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &CatArgs) -> anyhow::Result<()> {
    let files = Files::open(cluster)?;
    let mut out = io::stdout().lock();
    let all = for_all(&args.paths, |path| {
        let path = RemotePath::parse(path)?;
        let attr = files.logged_attr(&path)?;
        files.read_all(&attr, &path, &mut |bytes| {
            output::written(io::Write::write_all(&mut out, bytes))
        })
    });
    output::written(io::Write::flush(&mut out))?;
    all
}
