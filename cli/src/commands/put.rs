//! `dfs put`: the bytes are on every replica's disk when it returns, and the old ones are there until then.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use dfs_core::namespace::FileKind;
use serde::Serialize;

use crate::args::{ClusterArgs, Format, PutArgs};
use crate::failure::fail;
use crate::files::Files;
use crate::output::{self, Table};
use crate::progress::Progress;
use crate::remote_path::RemotePath;

/// How much is read at once.
const PIECE: usize = 1 << 20;

#[derive(Debug, Serialize)]
pub(crate) struct Copied {
    pub from: String,
    #[serde(rename = "fromHex", skip_serializing_if = "Option::is_none")]
    pub from_hex: Option<String>,
    pub to: String,
    #[serde(rename = "toHex", skip_serializing_if = "Option::is_none")]
    pub to_hex: Option<String>,
    pub bytes: u64,
}

impl Table for Copied {
    fn table(&self) -> String {
        format!("{} -> {}: {} bytes\n", self.from, self.to, self.bytes)
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &PutArgs) -> anyhow::Result<()> {
    let asked = RemotePath::parse(&args.path)?;
    let stdin = args.src == Path::new("-");
    // The local side first: a wrong name should not leave an empty file behind.
    let (mut source, total): (Box<dyn Read>, Option<u64>) = if stdin {
        (Box::new(io::stdin().lock()), None)
    } else {
        let file = File::open(&args.src).with_context(|| format!("read {}", args.src.display()))?;
        let meta = file.metadata().with_context(|| format!("read {}", args.src.display()))?;
        if meta.is_dir() {
            return fail(
                format!("put {}: is a directory", args.src.display()),
                "copy trees through a mount (`dfs mount`), or send a tar through `dfs put -`",
            );
        }
        (Box::new(file), meta.is_file().then_some(meta.len()))
    };
    let files = Files::open(cluster)?;
    let path = match files.find(&asked)? {
        Some(attr) if attr.kind == FileKind::Directory => match args.src.file_name() {
            Some(name) if !stdin => asked.join(name.as_bytes()),
            Some(_) | None => {
                return fail(format!("put - {}: is a directory", asked.shown()), "name the file");
            }
        },
        None if asked.wants_directory => {
            return fail(
                format!("put {}: no such directory {}/", args.src.display(), asked.shown()),
                "make it with `dfs mkdir`, or leave the last slash out",
            );
        }
        Some(_) | None => asked,
    };
    let mut progress = Progress::new(total);
    let mut writer = files.replace(&path)?;
    let mut piece = vec![0; PIECE];
    let input = if stdin { "standard input" } else { "the local file" };
    loop {
        progress.waits_for(input);
        let read = match source.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", args.src.display()));
            }
        };
        progress.waits_for("the servers");
        writer.write(piece.get(..read).unwrap_or_default())?;
        progress.add(read as u64);
    }
    writer.finish()?;
    let copied = Copied {
        from: args.src.display().to_string(),
        from_hex: output::hex_unless_utf8(args.src.as_os_str().as_bytes()),
        to: path.json(),
        to_hex: path.json_hex(),
        bytes: progress.finish(),
    };
    if args.output.format == Format::Json { output::print(Format::Json, &copied) } else { Ok(()) }
}
