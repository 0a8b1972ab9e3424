//! Whether the master's directory of a local cluster is gone while its chunkservers' are there, and what to type then.
//!
//! A master that found no directory would begin a new file system, which the chunkservers refuse, and its directory would
//! be in the way of the one that is to be made again.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;

use dfs_core::ids::ServerId;
use dfs_service::data_dir::{self, Kind};
use dfs_service::page::Page;

use crate::failure::fail;
use crate::local::{ClusterDir, ClusterFile, Role};

/// Where chunkservers of a cluster whose `cluster.json` is gone, too, are told to listen: this and the ports behind it.
const FIRST_PORT: u32 = 7001;

/// Refuses a directory whose chunkservers have a file system and whose master has none. Changes nothing.
pub(super) fn check(dir: &ClusterDir, file: Option<&ClusterFile>) -> anyhow::Result<()> {
    let master = dir.data(Role::Master);
    if !data_dir::is_unused(&master) {
        return Ok(());
    }
    let servers = chunkservers_with_data(dir);
    if servers.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = servers.iter().map(ToString::to_string).collect();
    fail(
        format!(
            "up: {}, the master's directory, is missing or empty, but {} in {} belong to a file system that it described",
            master.display(),
            names.join(", "),
            dir.root().join("data").display(),
        ),
        advice(dir, file, &servers),
    )
}

fn chunkservers_with_data(dir: &ClusterDir) -> Vec<ServerId> {
    let entries = dir.root().join("data").read_dir().into_iter().flatten();
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut servers: Vec<ServerId> = ids
        .filter(|id| data_dir::is_of(&dir.data(Role::Chunkserver(*id)), Kind::Chunkserver))
        .collect();
    servers.sort_unstable();
    servers
}

fn advice(dir: &ClusterDir, file: Option<&ClusterFile>, servers: &[ServerId]) -> String {
    let key = quoted(&dir.key_file());
    // Nobody need listen there: chunkservers give their copies to whoever has the key.
    let master_address = file.map_or("", |file| file.master.as_str());
    let master_address = if master_address.is_empty() { "127.0.0.1:7000" } else { master_address };
    let mut addresses = Vec::new();
    let mut starts = String::new();
    for server in servers {
        let known = file
            .and_then(|file| file.chunkservers.iter().find(|entry| entry.id == server.to_string()));
        let address = match known {
            Some(entry) if !entry.address.is_empty() => entry.address.clone(),
            Some(_) | None => format!("127.0.0.1:{}", FIRST_PORT.saturating_add(server.0 - 1)),
        };
        let comma = if starts.is_empty() { "" } else { ", " };
        let _infallible = write!(
            starts,
            "{comma}`dfs chunkserver --data {} --id {server} --listen {address} --master {master_address} --key-file {key}`",
            quoted(&dir.data(Role::Chunkserver(*server))),
        );
        addresses.push(address);
    }
    format!(
        "put it back; or make it again from the copies that two of them hold: start them by themselves ({starts}), then \
         `dfs master restore --data {} --from {} --key-file {key}`, then stop them, and `dfs up --dir {}`; to begin anew \
         without the data, name another --dir; see {}",
        quoted(&dir.data(Role::Master)),
        addresses.join(","),
        quoted(dir.root()),
        Page::DirectoryLost
    )
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = OsStr::to_string_lossy(path.as_os_str());
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted(Path::new("/tmp/a-b/c.1")), "/tmp/a-b/c.1");
        assert_eq!(quoted(Path::new("/tmp/it's $x")), "'/tmp/it'\\''s $x'");
    }
}
