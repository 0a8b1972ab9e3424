//! A master's directory made again from the copies of its log and snapshots that chunkservers hold (DECISIONS 6).
//!
//! Order: every server asked → the files of the one that reaches furthest fetched into `DIR.restoring` → opened as a master
//! would, which checks all of it → what must be different from now on noted beside it → renamed to `DIR`.
//!
//! What was logged after the copy is gone: names, sizes and configurations of the last moment. So the next reign is above
//! any that a server has seen, uses no id that may have been given out, and takes the highest version of a chunk that its
//! members hold.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use dfs_core::ids::Epoch;
use dfs_core::meta;
use dfs_proto::control::metadata_copies_client::MetadataCopiesClient;
use dfs_proto::control::{CopyFile, CopyListReply, CopyListRequest, CopyReadRequest};
use dfs_service::conn::{self, ClusterKey, Door};
use dfs_service::sealed::{replace_durably, seal, unseal};
use tonic::transport::Channel;

use crate::config::Config;
use crate::group::GroupError;
use crate::journal;
use crate::metrics::Metrics;

const DIAL_MAX: Duration = Duration::from_secs(10);
/// A server reads all of its copy to answer.
const LIST_MAX: Duration = Duration::from_secs(300);
const READ_MAX: Duration = Duration::from_secs(30);
const PIECE: u32 = 1 << 20;

/// Notes of a restored directory, in [`NOTE`].
const NOTE: &str = "restored";

/// What a directory that was made again, or whose loss was accepted, must not forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    /// Of reigns up to here this log may lack the end: the highest that any server asked had seen, or all before the one
    /// that began with the loss accepted.
    pub(crate) epoch: Epoch,
    /// Ids may have been given out that the log knows nothing of, and were not skipped yet.
    pub(crate) skip_ids: bool,
}

impl Note {
    /// That of `dir`, if it was restored.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(NOTE);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
            Ok(text) => {
                let note = Self::parse(&text);
                note.map(Some).with_context(|| format!("{} is damaged", path.display()))
            }
        }
    }

    pub(crate) fn write(self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(NOTE);
        replace_durably(&path, &self.text()).with_context(|| format!("write {}", path.display()))
    }

    fn text(self) -> String {
        let body = format!("dfs-restored 1 {} {}", self.epoch.0, u8::from(self.skip_ids));
        seal(&body)
    }

    fn parse(text: &str) -> Option<Self> {
        let body = unseal(text)?;
        let (epoch, skip) = body.strip_prefix("dfs-restored 1 ")?.split_once(' ')?;
        let skip_ids = match skip {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        Some(Self { epoch: Epoch(epoch.parse().ok()?), skip_ids })
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Whose copy it is.
    pub server: String,
    /// The last log entry it has.
    pub index: u64,
    /// When the copy was complete up to there, nanoseconds since 1970 on the master's clock.
    pub at_ns: i64,
    /// The furthest that a server has heard of the log in the last reign it obeyed.
    pub heard_of: u64,
    pub inodes: u64,
    pub chunks: u64,
}

struct Candidate {
    address: String,
    client: MetadataCopiesClient<Channel>,
    list: CopyListReply,
    index: u64,
}

/// Makes `dir`, which must not exist or be empty, from what the servers at `addresses` hold. `say` is told what happens.
///
/// # Errors
/// Nobody holds a usable copy, or `dir` cannot be written; then there is no `dir`.
pub fn restore(
    dir: &Path,
    addresses: &[String],
    key: &ClusterKey,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Restored> {
    check_empty(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let _in_runtime = runtime.enter();
    let (mut candidates, mut epoch, mut heard_of) = (Vec::new(), 0, 0);
    for address in addresses {
        match asked(&runtime, address, key) {
            Ok((client, list)) => {
                (epoch, heard_of) = (list.epoch.max(epoch), list.log_index.max(heard_of));
                match list.index {
                    Some(index) if !list.files.is_empty() => {
                        say(&format!(
                            "{address}: {} holds a copy up to log entry {index}",
                            list.server
                        ));
                        candidates.push(Candidate {
                            address: address.clone(),
                            client,
                            list,
                            index,
                        });
                    }
                    Some(_) | None => say(&format!("{address}: {} holds no copy", list.server)),
                }
            }
            Err(error) => say(&format!("{address}: {error:#}")),
        }
    }
    if let Some(other) = candidates.iter().find(|it| it.list.fs != candidates[0].list.fs) {
        anyhow::bail!(
            "{} and {} are of different file systems: name the servers of one",
            candidates[0].address,
            other.address
        );
    }
    candidates.sort_by_key(|it| std::cmp::Reverse((it.index, it.list.at_ns)));
    let note = Note { epoch: Epoch(epoch), skip_ids: true };
    for candidate in candidates {
        match from_one(&runtime, dir, &candidate, note, say) {
            Ok(restored) => return Ok(Restored { heard_of, ..restored }),
            Err(error) => say(&format!("{}: its copy is of no use: {error:#}", candidate.address)),
        }
    }
    anyhow::bail!(
        "no server named holds a usable copy of the metadata: name all chunkservers, two of them have one"
    )
}

fn check_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look into {}", dir.display())),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => anyhow::bail!(
                "{} is not empty: move what is left of the old master aside first, it may have more than the copies",
                dir.display()
            ),
        },
    }
}

fn asked(
    runtime: &tokio::runtime::Runtime,
    address: &str,
    key: &ClusterKey,
) -> anyhow::Result<(MetadataCopiesClient<Channel>, CopyListReply)> {
    // A channel connects when it is used, and says too little when it cannot.
    drop(conn::dial(address, key, Door::Control, DIAL_MAX)?);
    let client = MetadataCopiesClient::new(conn::control_channel(address, key));
    let mut asking = client.clone();
    let list = runtime.block_on(async move {
        tokio::time::timeout(LIST_MAX, asking.list(CopyListRequest {})).await
    });
    let list = list.context("no answer")?.map_err(|status| {
        if status.code() == tonic::Code::Unimplemented {
            anyhow::anyhow!("it is no chunkserver: copies are kept by chunkservers, name those")
        } else {
            anyhow::anyhow!("{}", conn::said(&status))
        }
    })?;
    Ok((client, list.into_inner()))
}

fn from_one(
    runtime: &tokio::runtime::Runtime,
    dir: &Path,
    candidate: &Candidate,
    note: Note,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Restored> {
    let mut name = dir.file_name().context("the directory has no name")?.to_owned();
    name.push(".restoring");
    let making = dir.with_file_name(name);
    if making.exists() {
        fs::remove_dir_all(&making).with_context(|| format!("remove {}", making.display()))?;
    }
    let Candidate { client, list, index, .. } = candidate;
    for file in &list.files {
        say(&format!("fetching {} ({} bytes)", file.name, file.length));
        fetch(runtime, client, file, &making)?;
    }
    journal::complete_copy(&making.join("log"))?;
    let (reached, inodes, chunks) = check(&making)?;
    anyhow::ensure!(
        *index <= reached,
        "it ends at log entry {reached} though it should reach {index}"
    );
    note.write(&making)?;
    if dir.exists() {
        fs::remove_dir(dir).with_context(|| format!("replace {}", dir.display()))?;
    }
    fs::rename(&making, dir).with_context(|| format!("name {}", dir.display()))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    let (server, at_ns) = (list.server.clone(), list.at_ns);
    Ok(Restored { server, index: reached, at_ns, heard_of: 0, inodes, chunks })
}

fn fetch(
    runtime: &tokio::runtime::Runtime,
    client: &MetadataCopiesClient<Channel>,
    file: &CopyFile,
    making: &Path,
) -> anyhow::Result<()> {
    let CopyFile { name, length, crc } = file;
    let path = place(making, name).with_context(|| format!("{name:?} is no file of a master"))?;
    let parent = path.parent().unwrap_or(making);
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let to = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let (mut at, mut sum) = (0, 0);
    while at < *length {
        let request = CopyReadRequest { name: name.clone(), offset: at, length: PIECE };
        let mut client = client.clone();
        let reply = runtime
            .block_on(async move { tokio::time::timeout(READ_MAX, client.read(request)).await });
        let reply = reply.with_context(|| format!("{name}: no answer"))?;
        let data =
            reply.map_err(|it| anyhow::anyhow!("{name}: {}", it.message()))?.into_inner().data;
        anyhow::ensure!(!data.is_empty(), "{name} ends at {at} of {length} bytes");
        sum = crc32c::crc32c_append(sum, &data);
        to.write_all_at(&data, at).with_context(|| format!("write {}", path.display()))?;
        at += data.len() as u64;
    }
    anyhow::ensure!(sum == *crc, "{name} arrived with another checksum than it has there");
    to.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// Where a master has it. Names come from a server: nothing else may be written.
fn place(dir: &Path, name: &str) -> Option<PathBuf> {
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    match name.split_once('.')? {
        (number, "log") if digits(number) => Some(dir.join("log").join(name)),
        (numbers, "snapshot") => {
            let (index, term) = numbers.split_once('-')?;
            (digits(index) && digits(term)).then(|| dir.join("snapshots").join(name))
        }
        _ => None,
    }
}

/// Opens it as a master does: the last entry, and how many inodes and chunks there are.
fn check(dir: &Path) -> anyhow::Result<(u64, u64, u64)> {
    let config = Config::new(dir.to_owned());
    let opened = crate::run::open_state(&config, &Metrics::new());
    // Its advice is what this is.
    let (group, store) = opened.map_err(|error| match error.downcast_ref::<GroupError>() {
        Some(wrong) => anyhow::anyhow!(wrong.without_advice()),
        None => error,
    })?;
    let superblock = meta::superblock(&store.reader());
    let reached = group.applied_index().unwrap_or(0);
    group.shutdown();
    let superblock = superblock.context("there is no file system in it")?;
    Ok((reached, superblock.inode_count, superblock.chunk_count))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_and_damage_to_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(dir.path()).unwrap(), None);
        let note = Note { epoch: Epoch(12), skip_ids: true };
        note.write(dir.path()).unwrap();
        assert_eq!(Note::read(dir.path()).unwrap(), Some(note));
        let text = note.text();
        fs::write(dir.path().join(NOTE), text.replace(" 12 ", " 13 ")).unwrap();
        assert!(Note::read(dir.path()).unwrap_err().to_string().contains("is damaged"));
        for len in 0..text.len() {
            assert_eq!(Note::parse(&text[..len]), None, "{len}");
        }
    }

    #[test]
    fn only_files_of_a_master_have_a_place() {
        let dir = Path::new("/m");
        let log = place(dir, "0000000000000001.log").unwrap();
        assert_eq!(log, Path::new("/m/log/0000000000000001.log"));
        assert_eq!(place(dir, "07-01.snapshot").unwrap(), Path::new("/m/snapshots/07-01.snapshot"));
        for name in [
            "",
            "log",
            ".log",
            "../1.log",
            "1/2.log",
            "1-2.log",
            "x-1.snapshot",
            "1.snapshot",
            "1.redb",
        ] {
            assert_eq!(place(dir, name), None, "{name}");
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        check_empty(dir.path()).unwrap();
        check_empty(&dir.path().join("none")).unwrap();
        fs::write(dir.path().join("x"), b"").unwrap();
        assert!(check_empty(dir.path()).unwrap_err().to_string().contains("is not empty"));
    }
}
