//! Fuzz targets of what people type, and of the files a local cluster keeps.
#![allow(clippy::allow_attributes, clippy::print_stdout, reason = "a test that fails says more")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::args::values;
use crate::fuzz_engine::Target;
use crate::local::{ChunkserverEntry, ClusterFile};
use crate::remote_path::RemotePath;

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn cluster_json() {
    let mut file = ClusterFile::new("/mnt/dfs".into());
    file.format = 1;
    file.chunkservers.push(ChunkserverEntry { id: "cs-1".into(), address: "127.0.0.1:1".into() });
    let valid = vec![
        serde_json::to_vec_pretty(&file).unwrap(),
        serde_json::to_vec(&ClusterFile { chunkservers: vec![], ..file }).unwrap(),
    ];
    // An error of serde's carries a backtrace when one is asked for. The newline at the end need not be there.
    Target::new("cluster_json", valid).memory(8 << 20).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let path = Path::new("cluster.json");
        let Ok(file) = ClusterFile::parse(text, path) else { return false };
        let again = serde_json::to_string(&file).unwrap();
        assert_eq!(ClusterFile::parse(&again, path).unwrap(), file);
        true
    });
}

#[test]
fn remote_paths() {
    let valid = texts(&["/", "a/b", "//a/./b/", "/notes.txt"]);
    Target::new("remote_path", valid).memory(8 << 20).prefixes_may_be_valid().run(|bytes| {
        let Ok(path) = RemotePath::parse(OsStr::from_bytes(bytes)) else { return false };
        let clean = |name: &Vec<u8>| {
            !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b".."
        };
        assert!(path.names.iter().all(clean), "{path:?}");
        let joined = [&b"/"[..], &path.names.join(&b'/')].concat();
        assert_eq!(RemotePath::parse(OsStr::from_bytes(&joined)).unwrap().names, path.names);
        true
    });
}

#[test]
fn sizes_and_times() {
    let valid = texts(&["4096", "64MiB", "1gb", "500ms", "30s", "5m", "1h"]);
    Target::new("size_and_time", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let chunk_size = values::parse_chunk_size(text);
        if let Ok(bytes) = chunk_size {
            assert!(bytes.is_power_of_two() && values::parse_size(text) == Ok(bytes));
        }
        if let Ok(bytes) = values::parse_record_max(text) {
            assert!(0 < bytes && values::parse_size(text) == Ok(bytes));
        }
        if let Ok(bytes) = values::parse_capacity(text) {
            assert_eq!(values::parse_size(text), Ok(bytes));
        }
        if let Ok(name) = values::parse_domain(text) {
            assert_eq!(name, text);
        }
        let time = values::parse_time(text);
        if let Ok(wait) = values::parse_server_wait(text) {
            assert_eq!(time, Ok(wait));
        }
        values::parse_size(text).is_ok() || time.is_ok()
    });
}

#[test]
fn users() {
    let valid = texts(&["1000:1000", "65534:0", "4294967294:7"]);
    Target::new("user_and_group", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(values::ClientUser { uid, gid }) = values::parse_user(text) else { return false };
        assert!(uid != 0 && uid != u32::MAX && gid != u32::MAX, "{text}");
        values::parse_user(&format!("{uid}:{gid}")) == Ok(values::ClientUser { uid, gid })
    });
}

#[test]
fn lines_of_a_shell() {
    use crate::commands::shell::ranks::Command;
    let valid =
        ["upload a.txt /x y", "list_file a", "retrieve a", "search a b", "failover 1", "exit"];
    Target::new("shell_line", texts(&valid)).memory(8 << 20).prefixes_may_be_valid().run(|bytes| {
        let Ok(Some(command)) = Command::parse(bytes) else { return false };
        if let Command::Upload { name, path } = &command {
            assert!(!name.is_empty() && !path.as_os_str().is_empty(), "{command:?}");
        }
        true
    });
}
