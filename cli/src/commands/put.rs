//! `dfs put`: the bytes are on every replica's disk when it returns, and the old ones are there until then.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;
use dfs_core::namespace::FileKind;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
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

/// What comes next of a source.
enum Next {
    Data(usize),
    Hole(u64),
    End,
    /// There was a hole, and nothing behind it.
    EndInHole,
}

enum Source {
    Stream(Box<dyn Read>),
    /// Which may have holes.
    File {
        file: File,
        at: u64,
        /// No hole before here.
        data_end: u64,
        /// What came last was one.
        in_hole: bool,
    },
}

impl Source {
    fn next(&mut self, piece: &mut [u8]) -> io::Result<Next> {
        let (file, at, data_end, in_hole) = match self {
            Self::Stream(stream) => {
                let read = unless_interrupted(|| stream.read(piece))?;
                return Ok(if read == 0 { Next::End } else { Next::Data(read) });
            }
            Self::File { file, at, data_end, in_hole } => (file, at, data_end, in_hole),
        };
        let size = file.metadata()?.len();
        if *data_end <= *at && *at < size {
            let data = match rustix::fs::seek(&*file, SeekFrom::Data(*at)) {
                Ok(data) => data,
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => size,
                // A file system without holes.
                Err(Errno::INVAL) => *at,
                Err(error) => return Err(error.into()),
            };
            *data_end = match rustix::fs::seek(&*file, SeekFrom::Hole(data)) {
                Ok(end) => end,
                Err(Errno::NXIO | Errno::INVAL) => size,
                Err(error) => return Err(error.into()),
            };
            if *at < data {
                let hole = data - *at;
                (*at, *in_hole) = (data, true);
                return Ok(Next::Hole(hole));
            }
        }
        // Behind the end as well: a file of /proc has more than its size says.
        let wanted = match data_end.checked_sub(*at).filter(|left| *left != 0) {
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX).min(piece.len()),
            None => piece.len(),
        };
        let piece = piece.get_mut(..wanted).unwrap_or_default();
        match unless_interrupted(|| file.read_at(piece, *at))? {
            0 if *in_hole => Ok(Next::EndInHole),
            0 => Ok(Next::End),
            read => {
                (*at, *in_hole) = (*at + read as u64, false);
                Ok(Next::Data(read))
            }
        }
    }
}

fn unless_interrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &PutArgs) -> anyhow::Result<()> {
    let asked = RemotePath::parse(&args.path)?;
    let stdin = args.src == Path::new("-");
    // The local side first: a wrong name should not leave an empty file behind.
    let (mut source, total): (Source, Option<u64>) = if stdin {
        (Source::Stream(Box::new(io::stdin().lock())), None)
    } else {
        let file = match File::open(&args.src) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return fail(
                    format!("read {}: no such file on this machine", args.src.display()),
                    "the local file comes first, then its path in the file system; `-` reads standard input",
                );
            }
            opened => opened.with_context(|| format!("read {}", args.src.display()))?,
        };
        let meta = file.metadata().with_context(|| format!("read {}", args.src.display()))?;
        if meta.is_dir() {
            return fail(
                format!("put {}: is a directory", args.src.display()),
                "copy trees through a mount (`dfs mount`), or send a tar through `dfs put -`",
            );
        }
        match meta.is_file() {
            true => (Source::File { file, at: 0, data_end: 0, in_hole: false }, Some(meta.len())),
            false => (Source::Stream(Box::new(file)), None),
        }
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
        let next =
            source.next(&mut piece).with_context(|| format!("read {}", args.src.display()))?;
        progress.waits_for("the servers");
        match next {
            Next::Data(read) => {
                writer.write(piece.get(..read).unwrap_or_default())?;
                progress.add(read as u64);
            }
            Next::Hole(bytes) => {
                writer.skip(bytes);
                progress.add(bytes);
            }
            Next::EndInHole => {
                writer.end_in_hole()?;
                break;
            }
            Next::End => break,
        }
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
