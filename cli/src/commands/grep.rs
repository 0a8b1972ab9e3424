//! `dfs grep`.

use std::ffi::OsString;
use std::io::{BufWriter, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use dfs_client::file::search::Hits;
use dfs_proto::search::Needle;
use serde::Serialize;

use crate::args::{ClusterArgs, Format, OutputArgs};
use crate::failure::{fail_usage, for_all};
use crate::files::Files;
use crate::output;
use crate::remote_path::RemotePath;

#[derive(Args, Debug)]
#[command(
    after_help = "Prints PATH:OFFSET for every byte offset at which WORD stands, also where two of them overlap. WORD is
taken as it is, byte for byte; it is no pattern. Chunkservers look through what they hold, several at once, with
checksums compared, and send offsets only; a file of up to 4 KiB that the master keeps is sent whole. A file is
looked through up to the size it has when its turn comes.

Exit code: 0 all was looked through, also if WORD stands nowhere (then nothing is printed), 1 refused or
failed, 2 wrong usage.

Examples:
  dfs grep ERROR /logs/app.log
  dfs grep -w -c panic /logs/app.log /logs/db.log   how often, as a word of its own
  dfs grep -o json 'disk full' /logs/app.log
  dfs grep -- -v /notes.txt                         a WORD with a minus sign"
)]
pub(crate) struct GrepArgs {
    /// Only where no ASCII letter, digit or `_` is right before WORD or right behind it
    #[arg(short = 'w', long = "word")]
    pub whole: bool,
    /// Print PATH:COUNT for each file instead
    #[arg(short = 'c', long)]
    pub count: bool,
    /// What to look for, from 1 to 4096 bytes
    pub word: OsString,
    /// Files in the file system
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// Lines as they are found: there may be more than fit in memory.
struct Printer<'a> {
    out: BufWriter<StdoutLock<'a>>,
    format: Format,
    lines: u64,
    /// The first write that failed; nothing is written after it.
    result: anyhow::Result<()>,
}

/// A path, as both formats show it.
struct Named {
    shown: String,
    json: String,
    json_hex: Option<String>,
}

impl Printer<'_> {
    fn put(&mut self, text: &[u8]) {
        if self.result.is_ok() {
            self.result = output::written(self.out.write_all(text));
        }
    }

    fn line(&mut self, of: &Named, offset: Option<u64>, count: Option<u64>) {
        match self.format {
            Format::Table => {
                let number = offset.or(count).unwrap_or_default();
                self.put(format!("{}:{number}\n", of.shown).as_bytes());
            }
            Format::Json => {
                let path_hex = of.json_hex.as_deref();
                match serde_json::to_string(&Line { path: &of.json, path_hex, offset, count }) {
                    Ok(line) => {
                        let before = if self.lines == 0 { "[\n  " } else { ",\n  " };
                        self.put(before.as_bytes());
                        self.put(line.as_bytes());
                    }
                    Err(error) => self.result = Err(error.into()),
                }
            }
        }
        self.lines += 1;
    }

    fn end(mut self) -> anyhow::Result<()> {
        if self.format == Format::Json {
            self.put(if self.lines == 0 { b"[]\n" } else { b"\n]\n" });
        }
        self.result?;
        output::written(self.out.flush())
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &GrepArgs) -> anyhow::Result<()> {
    let needle = match Needle::new(args.word.as_bytes(), args.whole) {
        Ok(needle) => needle,
        Err(error) => {
            return fail_usage(format!("grep: WORD: {error}"), "see `dfs grep --help`");
        }
    };
    let files = Files::open(cluster)?;
    let mut printer = Printer {
        out: BufWriter::with_capacity(64 << 10, std::io::stdout().lock()),
        format: args.output.format,
        lines: 0,
        result: Ok(()),
    };
    let all = for_all(&args.paths, |path| {
        let path = RemotePath::parse(path)?;
        let attr = files.logged_attr(&path)?;
        let of = Named { shown: path.shown(), json: path.json(), json_hex: path.json_hex() };
        if args.count {
            let count = files.search(&attr, &path, &needle, Hits::Count)?;
            printer.line(&of, None, Some(count));
        } else {
            let mut found = |offset| printer.line(&of, Some(offset), None);
            files.search(&attr, &path, &needle, Hits::Offsets(&mut found))?;
        }
        std::mem::replace(&mut printer.result, Ok(()))
    });
    printer.end()?;
    all
}
