//! `dfs records`.

use std::ffi::OsString;
use std::io::{BufWriter, StdoutLock, Write};

use clap::Args;
use dfs_client::file::records::FileRecord;
use serde::Serialize;

use crate::args::{ClusterArgs, Format, OutputArgs};
use crate::files::Files;
use crate::output;
use crate::remote_path::RemotePath;

#[derive(Args, Debug)]
#[command(
    after_help = "Prints where each record of a file is, in order: in which of its chunks, from which byte of the
file on, and how many bytes it has. What is between two records is padding. PATH is in a directory
made with `dfs mkdir --layout recordlog`; each `dfs append`, and each write to a file opened with
O_APPEND on the mount, made one record. Records are listed up to the size that the file has when
this begins.

JSON: a list of {\"index\": CHUNK, \"offset\": BYTE, \"length\": BYTES}.

Examples:
  dfs records /log/app
  dfs records -o json /log/app | jq length          how many there are
  dfs cat /log/app | tail -c +8193 | head -c 1500    the record at OFFSET 8192 with LENGTH 1500"
)]
pub(crate) struct RecordsArgs {
    /// A file of a record log
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Serialize)]
struct Line {
    index: u64,
    offset: u64,
    length: u64,
}

/// Lines as they come: there may be more than fit in memory.
struct Printer<'a> {
    out: BufWriter<StdoutLock<'a>>,
    format: Format,
    /// Of the columns.
    widths: [usize; 2],
    lines: u64,
    /// The first write that failed; nothing is written after it.
    result: anyhow::Result<()>,
}

impl Printer<'_> {
    fn put(&mut self, text: &str) {
        if self.result.is_ok() {
            self.result = output::written(self.out.write_all(text.as_bytes()));
        }
    }

    fn row(&mut self, cells: [&str; 3]) {
        let [first, second] = self.widths;
        self.put(&format!("{:>first$}  {:>second$}  {:>6}\n", cells[0], cells[1], cells[2]));
    }

    fn record(&mut self, FileRecord { index, offset, len }: FileRecord) {
        match self.format {
            Format::Table => {
                if self.lines == 0 {
                    self.row(["INDEX", "OFFSET", "LENGTH"]);
                }
                self.row([&index.to_string(), &offset.to_string(), &len.to_string()]);
            }
            Format::Json => match serde_json::to_string(&Line { index, offset, length: len }) {
                Ok(line) => {
                    self.put(if self.lines == 0 { "[\n  " } else { ",\n  " });
                    self.put(&line);
                }
                Err(error) => self.result = Err(error.into()),
            },
        }
        self.lines += 1;
    }

    fn end(mut self) -> anyhow::Result<()> {
        if self.format == Format::Json {
            self.put(if self.lines == 0 { "[]\n" } else { "\n]\n" });
        }
        self.result?;
        output::written(self.out.flush())
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &RecordsArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let files = Files::open(cluster)?;
    let attr = files.attr(&path)?;
    let last_index = attr.size / attr.layout.chunk_size.max(1);
    let digits = |number: u64, heading: &str| number.to_string().len().max(heading.len());
    let mut printer = Printer {
        out: BufWriter::with_capacity(64 << 10, std::io::stdout().lock()),
        format: args.output.format,
        widths: [digits(last_index, "INDEX"), digits(attr.size, "OFFSET")],
        lines: 0,
        result: Ok(()),
    };
    let listed = files.records(&attr, &path, &mut |record| printer.record(record));
    if printer.lines == 0 {
        // Neither an empty table nor an empty list beside the reason why there is none.
        listed?;
        return printer.end();
    }
    printer.end()?;
    listed
}
