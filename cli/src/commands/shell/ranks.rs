//! The commands of requirement set 0: what a line means, and how its answer is written. What is done is what `dfs put`,
//! `dfs locate`, `dfs get`, `dfs grep`, `dfs failover` and `dfs recover` do.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_client::file::search::Hits;
use dfs_core::ids::ServerId;
use dfs_core::namespace::{Attr, Layout};
use dfs_proto::control::WishRequest;
use dfs_proto::search::Needle;
use dfs_service::shutdown::Shutdown;

use super::LINE_BYTES_MAX;
use crate::args::ClusterArgs;
use crate::cluster::Target;
use crate::failure::fail;
use crate::files::Files;
use crate::output::printable;
use crate::remote_path::RemotePath;
use crate::{admin, cluster, servers};

const CHUNK_BYTES: u64 = 32;
/// 65,536 chunks: each is a file on three servers, and a record in the log.
const UPLOAD_BYTES_MAX: u64 = CHUNK_BYTES << 16;
/// All files are in it, and of such chunks because they are.
const DIRECTORY: &[u8] = b"files";
/// While a server that was killed is found out.
const SERVER_WAIT: Duration = Duration::from_secs(10);
/// The detector takes 3 s, a first heartbeat one.
const NOTICED_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Upload { name: Vec<u8>, path: PathBuf },
    ListFile { name: Vec<u8> },
    Retrieve { name: Vec<u8> },
    Search { name: Vec<u8>, word: Vec<u8> },
    Failover { rank: u32 },
    Recover { rank: u32 },
    Exit,
}

pub(crate) enum Answer {
    Text(Vec<u8>),
    Exit,
}

const USAGE: &str = "expected upload NAME PATH, list_file NAME, retrieve NAME, search NAME WORD, failover RANK, recover RANK or exit";

impl Command {
    /// `None`: an empty line, which is no command. The path of `upload` is the rest of the line, blanks inside included.
    pub(crate) fn parse(line: &[u8]) -> anyhow::Result<Option<Self>> {
        if LINE_BYTES_MAX < line.len() as u64 {
            return fail(format!("a line of more than {LINE_BYTES_MAX} bytes"), USAGE);
        }
        let (verb, rest) = word(line);
        let (first, rest) = word(rest);
        let (second, more) = word(rest);
        let path = rest.trim_ascii();
        let name = || first.to_vec();
        Ok(Some(match (verb, first.is_empty(), second.is_empty(), more.trim_ascii().is_empty()) {
            (b"", ..) => return Ok(None),
            (b"upload", false, false, _) => {
                Self::Upload { name: name(), path: OsString::from_vec(path.to_vec()).into() }
            }
            (b"list_file", false, true, _) => Self::ListFile { name: name() },
            (b"retrieve", false, true, _) => Self::Retrieve { name: name() },
            (b"search", false, false, true) => Self::Search { name: name(), word: second.to_vec() },
            (b"failover", false, true, _) => Self::Failover { rank: rank(first)? },
            (b"recover", false, true, _) => Self::Recover { rank: rank(first)? },
            (b"exit", true, ..) => Self::Exit,
            _ => {
                let shown = printable(&String::from_utf8_lossy(line.trim_ascii()));
                return fail(format!("'{shown}': no command"), USAGE);
            }
        }))
    }
}

/// The first word of a line, and what is behind it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    line.split_at(end)
}

fn rank(word: &[u8]) -> anyhow::Result<u32> {
    let number =
        std::str::from_utf8(word).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()) {
        Some(rank) => Ok(rank),
        None => {
            let shown = printable(&String::from_utf8_lossy(word));
            fail(format!("rank '{shown}': no number"), "give one from 1 on")
        }
    }
}

/// A started cluster, and how it is talked to.
#[derive(Debug)]
pub(crate) struct Ranks {
    files: Files,
    target: Target,
    servers: u32,
}

impl Ranks {
    pub(crate) fn connect(root: &Path, master: &str, servers: u32) -> anyhow::Result<Self> {
        let args = ClusterArgs {
            dir: Some(root.to_owned()),
            master: Some(master.to_owned()),
            key_file: None,
            server_wait: Some(SERVER_WAIT),
            known_key: None,
        };
        let files = Files::open(&args)?;
        let layout = |_: Layout| Layout::striped(CHUNK_BYTES);
        files.mkdir(&RemotePath::parse(OsStr::from_bytes(DIRECTORY))?, Some(&layout))?;
        Ok(Self { files, target: cluster::target(&args)?, servers })
    }

    /// # Errors
    /// What was asked for is refused, or failed, and nothing has changed but what the error says.
    pub(crate) fn answer(&self, line: &[u8], shutdown: &Shutdown) -> anyhow::Result<Answer> {
        Ok(Answer::Text(match Command::parse(line)? {
            None => Vec::new(),
            Some(Command::Exit) => return Ok(Answer::Exit),
            Some(Command::Upload { name, path }) => self.upload(&name, &path, shutdown)?,
            Some(Command::ListFile { name }) => self.list(&name, Listed::Live)?,
            Some(Command::Retrieve { name }) => self.retrieve(&name, shutdown)?,
            Some(Command::Search { name, word }) => self.search(&name, &word)?,
            Some(Command::Failover { rank }) => self.drill(rank, Drill::Failover, shutdown)?,
            Some(Command::Recover { rank }) => self.drill(rank, Drill::Recover, shutdown)?,
        }))
    }

    fn upload(&self, name: &[u8], from: &Path, stop: &Shutdown) -> anyhow::Result<Vec<u8>> {
        let path = path_of(name)?;
        let content = local_file(from)?;
        self.files.put_in_order(&path, &content, stop)?;
        let mut text = b"1\n".to_vec();
        text.extend(self.list(name, Listed::All)?);
        Ok(text)
    }

    /// A line for each chunk: its number in the file, how many servers, which.
    fn list(&self, name: &[u8], listed: Listed) -> anyhow::Result<Vec<u8>> {
        let attr = self.files.regular_file("list_file", &path_of(name)?)?;
        let mut text = String::new();
        for chunk in admin::locate(&self.target, attr.ino.0, false)?.chunks {
            let servers = match listed {
                Listed::All => &chunk.servers,
                Listed::Live => &chunk.live,
            };
            let ranks: Result<Vec<u32>, _> =
                servers.iter().map(|server| server.parse::<ServerId>().map(|id| id.0)).collect();
            let mut ranks = ranks.context("the master named a server that is none")?;
            ranks.sort_unstable();
            text.push_str(&format!("{} {}", chunk.index, ranks.len()));
            ranks.iter().for_each(|rank| text.push_str(&format!(" {rank}")));
            text.push('\n');
        }
        Ok(text.into_bytes())
    }

    /// A file of which each chunk has a server that is up: others are not waited for.
    fn readable(&self, path: &RemotePath) -> anyhow::Result<Attr> {
        let attr = self.files.attr(path)?;
        let chunks = admin::locate(&self.target, attr.ino.0, false)?.chunks;
        match chunks.iter().find(|chunk| chunk.live.is_empty()) {
            None => Ok(attr),
            Some(chunk) => fail(
                format!("{}: chunk {}: no server that is up has it", path.shown(), chunk.index),
                "`recover` one of its servers",
            ),
        }
    }

    fn retrieve(&self, name: &[u8], stop: &Shutdown) -> anyhow::Result<Vec<u8>> {
        let path = path_of(name)?;
        let attr = self.readable(&path)?;
        let mut content = Vec::new();
        self.files.read_all(&attr, &path, &mut |bytes| {
            if stop.is_asked() {
                return fail(format!("retrieve {}: stopped", path.shown()), "nothing was printed");
            }
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        if content.last() != Some(&b'\n') {
            content.push(b'\n');
        }
        Ok(content)
    }

    fn search(&self, name: &[u8], word: &[u8]) -> anyhow::Result<Vec<u8>> {
        let path = path_of(name)?;
        let needle = Needle::new(word, true)?;
        let attr = self.readable(&path)?;
        let mut offsets: Vec<String> = Vec::new();
        let mut found = |offset: u64| offsets.push(offset.to_string());
        let count = self.files.search(&attr, &path, &needle, Hits::Offsets(&mut found))?;
        let lines = if count == 0 { String::new() } else { format!("{}\n", offsets.join(" ")) };
        Ok(format!("{count}\n{lines}").into_bytes())
    }

    /// Returns when the detector has found what was wished.
    fn drill(&self, rank: u32, drill: Drill, shutdown: &Shutdown) -> anyhow::Result<Vec<u8>> {
        if !(1..=self.servers).contains(&rank) {
            let ranks = format!("chunkservers have ranks 1 to {}", self.servers);
            return fail(format!("rank {rank}: no chunkserver"), ranks);
        }
        let server = ServerId(rank).to_string();
        let request = WishRequest {
            server: server.clone(),
            overlay: "suspended".to_owned(),
            end: drill == Drill::Recover,
            for_ms: None,
            force: true,
            by: servers::myself(),
        };
        servers::wish(&self.target, request)?;
        let wanted = match drill {
            Drill::Failover => "dead",
            Drill::Recover => "alive",
        };
        let until = Instant::now() + NOTICED_MAX;
        loop {
            let state = servers::drill(&self.target, server.clone())?.state;
            if state == wanted {
                return Ok(b"1\n".to_vec());
            }
            if until <= Instant::now() || shutdown.is_asked() {
                let waited = NOTICED_MAX.as_secs();
                return fail(
                    format!("rank {rank}: still {state}, not {wanted}, after {waited} s"),
                    "did its process end? the wish stays",
                );
            }
            std::thread::sleep(POLL);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    All,
    Live,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Drill {
    Failover,
    Recover,
}

fn path_of(name: &[u8]) -> anyhow::Result<RemotePath> {
    let path = RemotePath::parse(OsStr::from_bytes(&[DIRECTORY, b"/", name].concat()))?;
    if path.names.len() != 2 || name.contains(&b'/') {
        let shown = printable(&String::from_utf8_lossy(name));
        return fail(format!("'{shown}': no name of a file"), "give one without '/'");
    }
    Ok(path)
}

fn local_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("read {}", path.display());
    // A FIFO would be waited for when it is opened.
    let meta = std::fs::metadata(path).with_context(named)?;
    if !meta.is_file() {
        return fail(format!("{}: no regular file", path.display()), "name one");
    }
    let mut content = Vec::new();
    let file = std::fs::File::open(path).with_context(named)?;
    file.take(UPLOAD_BYTES_MAX + 1).read_to_end(&mut content).with_context(named)?;
    if UPLOAD_BYTES_MAX < content.len() as u64 {
        return fail(
            format!("{}: more than {UPLOAD_BYTES_MAX} bytes, 65,536 chunks", path.display()),
            "use `dfs put` on a cluster of `dfs up`",
        );
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Command> {
        Command::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn lines_are_commands() {
        let name = b"a.txt".to_vec();
        let path = PathBuf::from("/my files/a b.txt");
        let upload = Command::Upload { name: name.clone(), path };
        assert_eq!(parse("upload a.txt /my files/a b.txt \r\n"), Some(upload));
        assert_eq!(parse("  list_file\ta.txt\n"), Some(Command::ListFile { name: name.clone() }));
        let word = b"abcd".to_vec();
        assert_eq!(parse("search a.txt abcd"), Some(Command::Search { name, word }));
        assert_eq!(parse("failover 3\n"), Some(Command::Failover { rank: 3 }));
        assert_eq!(parse("exit\n"), Some(Command::Exit));
        assert_eq!((parse(""), parse(" \n")), (None, None));
    }

    #[test]
    fn lines_that_are_none_are_named() {
        let long = "x".repeat(20_000);
        for (line, named) in [
            ("uplod a b", "'uplod a b'"),
            ("upload a", "'upload a'"),
            ("retrieve", "'retrieve'"),
            ("retrieve a b", "'retrieve a b'"),
            ("search a b c", "'search a b c'"),
            ("failover", "'failover'"),
            ("failover x", "'x'"),
            ("failover -1", "'-1'"),
            ("recover 99999999999", "'99999999999'"),
            ("exit now", "'exit now'"),
            ("EXIT", "'EXIT'"),
            ("\u{1b}[2J", "\\x1b"),
            (&long, "16384 bytes"),
        ] {
            let error = format!("{:#}", Command::parse(line.as_bytes()).unwrap_err());
            assert!(error.contains(named) && error.len() < 20_200, "{error}");
        }
    }
}
