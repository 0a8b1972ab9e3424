//! A client of the simulated cluster: the real client library, on a machine of its own.
//!
//! It says on its standard output what it tries, what was acknowledged and what it saw; whether that is right,
//! [`crate::oracle`] knows.

use std::sync::Arc;
use std::time::Duration;

use dfs_client::ClientError;
use dfs_client::file::FileState;
use dfs_client::session::{Session, SessionConfig};
use dfs_core::command::{Change, NewKind, Outcome, RenameMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, Layout, NamespaceError};
use dfs_service::conn::ClusterKey;
use tests::Random;

pub(crate) const BLOCK: usize = 4096;
/// Blocks of a file that is written in place: more than one chunk of it.
const BLOCKS: u64 = 12;
pub(crate) const CHUNK: u64 = 16 << 10;
const BLOCKS_FILE: Layout = Layout::striped(CHUNK);
const LOG: Layout = Layout::striped(64 << 10);
const RECORD_LOG: Layout = Layout { chunk_size: CHUNK, record_log: true, record_max: 0 };
const MAGIC: u32 = 0x5245_4331;
const HEADER: usize = 16;
const THINK_MS: u64 = 8_000;
const NAMES: u64 = 12;

type Result<T> = std::result::Result<T, ClientError>;

struct Client {
    session: Arc<Session>,
    id: u64,
    random: Random,
    stamp: u64,
    /// The outcome of a change of names is unknown: no more of them, or nobody could say what must be there.
    names_end: bool,
}

/// Arguments: master, key file, number, seed; or `check` instead of a seed, and the numbers of all clients there were; or
/// `peek`, and files and blocks.
pub(crate) fn run(args: &[String]) {
    let [master, key, id, seed, others @ ..] = args else {
        panic!("client MASTER KEY-FILE ID SEED|check|peek")
    };
    let key = ClusterKey::load(key.as_ref()).expect("the key is there");
    let mut config = SessionConfig::new(master.clone(), key, format!("client {id}"));
    config.server_wait = Duration::from_secs(match seed.as_str() {
        "check" => 300,
        "peek" => 3,
        _ => 40,
    });
    let session = loop {
        match Session::connect(config.clone()) {
            Ok(session) => break session,
            Err(error) => println!("no session: {error}"),
        }
    };
    let id = id.parse().expect("a number");
    if seed == "check" {
        let mut client =
            Client { session, id, random: Random::new(1, 1), stamp: 0, names_end: false };
        client.check(others);
        return;
    }
    if seed == "peek" {
        let mut client =
            Client { session, id, random: Random::new(1, 2), stamp: 0, names_end: false };
        client.peek(others);
        return;
    }
    let seed = seed.parse().expect("a number");
    let mut client =
        Client { session, id, random: Random::new(seed, id), stamp: 0, names_end: false };
    client.work();
}

fn content(file: u64, block: u64, stamp: u64) -> Vec<u8> {
    let words = [file, block, stamp].map(u64::to_le_bytes).concat();
    words.iter().copied().cycle().take(BLOCK).collect()
}

/// Stamp of a block's content; `None`: never written. An error is what no write ever made.
fn stamp_of(file: u64, block: u64, bytes: &[u8]) -> std::result::Result<Option<u64>, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let stamp =
        bytes.get(16..24).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
    let right = content(file, block, stamp);
    match bytes.iter().zip(&right).position(|(a, b)| a != b) {
        None if bytes.len() == BLOCK => Ok(Some(stamp)),
        None => Err(format!("only {} bytes", bytes.len())),
        Some(at) => Err(format!(
            "byte {at} is {:#04x}, not {:#04x} as with stamp {stamp}",
            bytes[at], right[at]
        )),
    }
}

fn record(client: u64, stamp: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + len);
    for word in [u64::from(MAGIC), client, stamp, len as u64] {
        // The low half of each: the numbers are small.
        bytes.extend(&word.to_le_bytes()[..4]);
    }
    bytes.extend((0..len).map(|at| (at as u64 * 7 + stamp * 13 + client * 31).to_le_bytes()[0]));
    bytes
}

impl Client {
    fn find(&self, parent: InodeNo, name: &str) -> Result<Attr> {
        self.session.lookup(parent, name.as_bytes())
    }

    fn create(&self, parent: InodeNo, name: &str, kind: NewKind, layout: Layout) -> Result<Attr> {
        let change = Change::Create {
            parent,
            name: name.as_bytes().to_vec(),
            open_existing: kind == NewKind::File,
            kind,
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
            layout: Some(layout),
        };
        let outcome = self.session.change(change)?;
        if let Outcome::Entry { attr, .. } = outcome {
            return Ok(attr);
        }
        Err(ClientError::Protocol { reason: format!("{outcome:?}") })
    }

    fn directory(&self) -> Result<Attr> {
        let name = format!("d{}", self.id);
        match self.find(InodeNo::ROOT, &name) {
            Err(ClientError::Refused(NamespaceError::NotFound)) => {}
            found => return found,
        }
        match self.create(InodeNo::ROOT, &name, NewKind::Directory, BLOCKS_FILE) {
            Err(ClientError::Refused(NamespaceError::Exists)) => self.find(InodeNo::ROOT, &name),
            made => made,
        }
    }

    fn with_file<T>(
        &self,
        name: &str,
        write: bool,
        layout: Layout,
        with: impl FnOnce(&Arc<FileState>) -> Result<T>,
    ) -> Result<T> {
        let attr = if write {
            self.create(InodeNo::ROOT, name, NewKind::File, layout)?
        } else {
            self.find(InodeNo::ROOT, name)?
        };
        self.session.open(attr.ino, write)?;
        let done = with(&self.session.file(attr.ino));
        self.session.release(attr.ino, write);
        done
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(20 + self.random.below(THINK_MS)));
    }

    fn work(&mut self) {
        let others = self.id;
        loop {
            self.pause();
            let done = match self.random.below(10) {
                0..=3 => self.write(),
                4 | 5 => self.append(),
                6 if self.names_end => Ok(()),
                6 => {
                    let done = self.name();
                    self.names_end = done.is_err();
                    done
                }
                _ => {
                    // Files of others are as good as one's own: what was acknowledged is there for all.
                    let file = if self.random.below(2) == 0 {
                        self.id
                    } else {
                        self.random.below(others + 1)
                    };
                    self.look(file)
                }
            };
            if let Err(error) = done {
                println!("error {error}");
            }
        }
    }

    fn write(&mut self) -> Result<()> {
        self.stamp += 1;
        let (file, stamp) = (self.id, self.stamp);
        let first = self.random.below(BLOCKS);
        let count = 1 + self.random.below(3).min(BLOCKS - first - 1);
        self.with_file(&format!("f{file}"), true, BLOCKS_FILE, |state| {
            for block in first..first + count {
                println!("try {file} {block} {stamp}");
                state.write(block * BLOCK as u64, &content(file, block, stamp))?;
            }
            state.fsync()?;
            for block in first..first + count {
                println!("ack {file} {block} {stamp}");
            }
            Ok(())
        })
    }

    fn append(&mut self) -> Result<()> {
        self.stamp += 1;
        let len = 16 + usize::try_from(self.random.below(1_500)).unwrap_or(0);
        let (id, stamp) = (self.id, self.stamp);
        // One that crosses ends of chunks, and one that is padded.
        let (name, layout) =
            [("log", LOG), ("records", RECORD_LOG)][usize::from(stamp.is_multiple_of(2))];
        self.with_file(name, true, layout, |state| {
            println!("try-append {id} {stamp}");
            let offset = state.append(&record(id, stamp, len))?;
            println!("ack-append {id} {stamp} {offset}");
            Ok(())
        })
    }

    fn name(&mut self) -> Result<()> {
        let dir = self.directory()?.ino;
        let (id, one, other) = (self.id, self.random.below(NAMES), self.random.below(NAMES));
        let name = |n: u64| format!("n{n}").into_bytes();
        let (verb, change) = match self.random.below(3) {
            0 => {
                println!("try-name {id} make {one} {one}");
                let made = self.create(dir, &format!("n{one}"), NewKind::File, BLOCKS_FILE);
                return made.map(|_| println!("ack-name {id} make {one} {one}"));
            }
            1 => (
                "move",
                Change::Rename {
                    from_parent: dir,
                    from: name(one),
                    to_parent: dir,
                    to: name(other),
                    mode: RenameMode::Replace,
                },
            ),
            _ => ("remove", Change::Unlink { parent: dir, name: name(one) }),
        };
        println!("try-name {id} {verb} {one} {other}");
        match self.session.change(change) {
            Ok(_) => println!("ack-name {id} {verb} {one} {other}"),
            Err(ClientError::Refused(NamespaceError::NotFound)) => {
                println!("no-name {id} {verb} {one} {other}")
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads the named blocks again and again.
    fn peek(&mut self, places: &[String]) {
        let numbers: Vec<u64> = places.iter().filter_map(|place| place.parse().ok()).collect();
        for _ in 0..3 {
            for place in numbers.chunks_exact(2) {
                if let Err(error) = self.look_at(place[0], place[1]) {
                    println!("error {error}");
                }
            }
            std::thread::sleep(Duration::from_secs(5));
        }
    }

    fn look(&mut self, file: u64) -> Result<()> {
        let block = self.random.below(BLOCKS);
        self.look_at(file, block)
    }

    fn look_at(&mut self, file: u64, block: u64) -> Result<()> {
        println!("look {file} {block}");
        let seen = self.with_file(&format!("f{file}"), false, BLOCKS_FILE, |state| {
            let mut bytes = vec![0; BLOCK];
            let mut got = 0;
            while got < BLOCK {
                match state.read(block * BLOCK as u64 + got as u64, &mut bytes[got..])? {
                    0 => break,
                    more => got += more,
                }
            }
            Ok(bytes)
        });
        match seen {
            Ok(bytes) => self.say(file, block, &bytes),
            Err(ClientError::Refused(NamespaceError::NotFound)) => println!("saw {file} {block} -"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn say(&self, file: u64, block: u64, bytes: &[u8]) {
        let id = self.id;
        match stamp_of(file, block, bytes) {
            Ok(None) => println!("saw {file} {block} - {id}"),
            Ok(Some(stamp)) => println!("saw {file} {block} {stamp} {id}"),
            Err(wrong) => println!("wrong {file} {block} {wrong}"),
        }
    }

    // --- at the end -------------------------------------------------------------------------------------------------

    fn check(&mut self, clients: &[String]) {
        for file in clients.iter().filter_map(|id| id.parse().ok()) {
            for block in 0..BLOCKS {
                println!("look {file} {block}");
                match self.read_at(&format!("f{file}"), block * BLOCK as u64, BLOCK) {
                    Ok(mut bytes) => {
                        bytes.resize(BLOCK, 0);
                        self.say(file, block, &bytes);
                    }
                    Err(ClientError::Refused(NamespaceError::NotFound)) => {
                        println!("saw {file} {block} -")
                    }
                    Err(error) => println!("wrong {file} {block} {error}"),
                }
            }
            match self.list(file) {
                Ok(names) => {
                    println!("names {file} {}", names.join(" "));
                }
                Err(ClientError::Refused(NamespaceError::NotFound)) => println!("names {file} "),
                Err(error) => println!("wrong names of {file}: {error}"),
            }
        }
        for (name, place) in [("log", "-"), ("records", "place")] {
            match self.read_at(name, 0, 64 << 20) {
                Ok(log) => tell_records(&log, place),
                Err(ClientError::Refused(NamespaceError::NotFound)) => {}
                Err(error) => println!("wrong {name}: {error}"),
            }
        }
        let listed = self.with_file("records", false, RECORD_LOG, |state| {
            state.records(&mut |record| println!("listed {} {}", record.offset, record.len))
        });
        match listed {
            Ok(()) | Err(ClientError::Refused(NamespaceError::NotFound)) => {}
            Err(error) => println!("wrong list of records: {error}"),
        }
        println!("checked");
    }

    fn list(&self, id: u64) -> Result<Vec<String>> {
        let dir = self.find(InodeNo::ROOT, &format!("d{id}"))?.ino;
        let mut names = Vec::new();
        for n in 0..NAMES {
            match self.find(dir, &format!("n{n}")) {
                Ok(_) => names.push(n.to_string()),
                Err(ClientError::Refused(NamespaceError::NotFound)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.with_file(name, false, BLOCKS_FILE, |state| {
            let mut bytes = Vec::new();
            let mut piece = vec![0; 1 << 16];
            while bytes.len() < len {
                let want = piece.len().min(len - bytes.len());
                match state.read(offset + bytes.len() as u64, &mut piece[..want])? {
                    0 => break,
                    got => bytes.extend_from_slice(&piece[..got]),
                }
            }
            Ok(bytes)
        })
    }
}

/// Every record that is there in one piece, and where; said in a second line with `place`.
fn tell_records(log: &[u8], place: &str) {
    let word = |at: usize| {
        log.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes)
    };
    let mut at = 0;
    while at + HEADER <= log.len() {
        let found = (word(at), word(at + 4), word(at + 8), word(at + 12));
        if let (Some(MAGIC), Some(client), Some(stamp), Some(len)) = found {
            let whole = record(client.into(), stamp.into(), len.min(4096).try_into().unwrap_or(0));
            if log.get(at..at + whole.len()) == Some(whole.as_slice()) {
                println!("record {client} {stamp} {at}");
                println!("{place} {at} {}", whole.len());
                at += whole.len();
                continue;
            }
        }
        at += 1;
    }
}
