//! `dfs grep`: the servers look, and the client learns where.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use tests::Cluster;

use crate::pages::{address, get, value};
use crate::{need_fuse, pattern, write_synced};

/// What a plain look at the bytes finds: `PATH:OFFSET` lines.
fn lines(path: &str, content: &[u8], word: &[u8], whole: bool) -> String {
    let is_word = |at: Option<&u8>| at.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let windows = content.windows(word.len()).enumerate().filter(|(_, bytes)| *bytes == word);
    let hits = windows.map(|(at, _)| at).filter(|at| {
        let before = at.checked_sub(1).and_then(|at| content.get(at));
        !whole || !is_word(before) && !is_word(content.get(at + word.len()))
    });
    hits.map(|at| format!("{path}:{at}\n")).collect()
}

/// Of all chunkservers together.
fn metric(cluster: &Cluster, name: &str) -> f64 {
    let of = |server| value(&get(&address(cluster, server), "/metrics").1, name);
    ["cs-1", "cs-2", "cs-3"].map(of).into_iter().sum()
}

/// Neither the word nor a part of it is there before it is put in.
fn lower_case(len: usize, seed: u64) -> Vec<u8> {
    pattern(len, seed).into_iter().map(|byte| b'a' + byte % 16).collect()
}

fn put_in(content: &mut [u8], at: usize, word: &[u8]) {
    content[at..at + word.len()].copy_from_slice(word);
}

#[test]
fn a_large_file_is_looked_through_where_it_is() {
    need_fuse!();
    const CHUNK: usize = 64 << 20;
    const WORD: &[u8] = b"NEEDLE";
    let cluster = Cluster::start();
    let mut content = lower_case(CHUNK + (9 << 20), 1);
    let len = content.len();
    // At both ends, and across the edges of pieces and of the chunk.
    for at in [0, (4 << 20) - 1, (8 << 20) - 5, CHUNK - 3, CHUNK + (4 << 20), len - 6] {
        put_in(&mut content, at, WORD);
    }
    write_synced(&cluster.mount().join("big"), &content);
    let names = ["searched_bytes", "read_bytes", "local_read_bytes", "reply_bytes"];
    let figures = || names.map(|name| metric(&cluster, &format!("dfs_chunkserver_{name}_total")));
    let before = figures();
    let found = cluster.dfs(["grep", "NEEDLE", "/big"]);
    let after = figures();
    assert_eq!(found, lines("/big", &content, WORD, false));
    assert_eq!(found.lines().count(), 6);
    let [searched, read, local, replies] = [0, 1, 2, 3].map(|i| after[i] - before[i]);
    assert!(len as f64 <= searched, "{searched} bytes were looked through");
    assert_eq!((read, local), (0.0, 0.0), "bytes of the file were read by a client");
    // Everything that chunkservers answered to anybody meanwhile.
    assert!(replies < 64.0 * 1024.0, "{replies} bytes for a file of {len}");

    // More hits than one answer holds; two letters of sixteen, one behind the other.
    let (word, expected) = (&content[100..101], lines("/big", &content, &content[100..101], false));
    let word = std::str::from_utf8(word).unwrap();
    assert!(4_000_000 < expected.lines().count());
    assert!(cluster.dfs(["grep", word, "/big"]) == expected, "hits differ");
    let count = cluster.dfs(["grep", "-c", word, "/big"]);
    assert_eq!(count, format!("/big:{}\n", expected.lines().count()));
}

#[test]
fn words_cross_chunks_of_any_number_and_are_found_once() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.dfs(["mkdir", "--chunk-size", "4KiB", "/small"]);
    let mut content = lower_case(40_000, 2);
    // Longer than two chunks is what no command line takes; longer than one is not.
    let long: Vec<u8> = b"LONG".iter().copied().cycle().take(4096).collect();
    put_in(&mut content, 6_000, &long);
    put_in(&mut content, 30_000, b"  WORD  ");
    for at in [4_094, 8_192 + 4_090, 20_480, 24_576 - 4, 35_000] {
        put_in(&mut content, at, b" WORD ");
    }
    put_in(&mut content, 28_672 - 2, b"xWORD ");
    let path = cluster.mount().join("small/f");
    write_synced(&path, &content);
    for whole in [false, true] {
        for word in ["WORD", std::str::from_utf8(&long).unwrap(), "ORD  ", "WORDx"] {
            let flags: &[&str] = if whole { &["grep", "-w"] } else { &["grep"] };
            let found = cluster.dfs([flags, &["--", word, "/small/f"]].concat());
            assert_eq!(found, lines("/small/f", &content, word.as_bytes(), whole), "{word:.9}");
        }
    }
    assert_eq!(cluster.dfs(["grep", "-w", "-c", "WORD", "/small/f"]), "/small/f:6\n");

    // Holes, and a file that ends in one.
    let sparse = std::fs::File::create(cluster.mount().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"WORD", (70 << 20) + 5).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.sync_all().unwrap();
    assert_eq!(cluster.dfs(["grep", "-w", "WORD", "/sparse"]), "/sparse:73400325\n");

    // What fits in the inode, an empty file, and padding of a record log.
    write_synced(&cluster.mount().join("inline"), b"WORD WORD");
    write_synced(&cluster.mount().join("empty"), b"");
    let both = cluster.dfs(["grep", "-w", "WORD", "/inline", "/empty"]);
    assert_eq!(both, "/inline:0\n/inline:5\n");
    let log = ["mkdir", "--layout", "recordlog", "--chunk-size", "4KiB", "/log"];
    cluster.dfs(log);
    for _ in 0..5 {
        cluster.dfs_fed(["append", "/log/f"], &[&b"WORD"[..], &[b'-'; 1000 - 4]].concat());
    }
    let offsets = [0, 1000, 2000, 3000, 4096];
    let expected: String = offsets.map(|at| format!("/log/f:{at}\n")).concat();
    assert_eq!(cluster.dfs(["grep", "-w", "WORD", "/log/f"]), expected);

    // A server that is gone: another one looks.
    cluster.kill("cs-2");
    assert_eq!(cluster.dfs(["grep", "-w", "-c", "WORD", "/small/f"]), "/small/f:6\n");
}

#[test]
fn what_cannot_be_looked_through_is_named_and_the_rest_is_done() {
    need_fuse!();
    let cluster = Cluster::start();
    let name = OsStr::from_bytes(b"caf\xe9:1");
    write_synced(&cluster.mount().join(name), b"a \xe9\xff b \xe9\xff");
    write_synced(&cluster.mount().join("plain"), b"one two one");
    std::fs::create_dir(cluster.mount().join("dir")).unwrap();

    let grep = |words: &[&OsStr]| {
        let output = cluster.try_dfs([&[OsStr::new("grep")], words].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let plain = |words: &[&str]| {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        grep(&words)
    };
    // Bytes that are no text, in the word and in the path.
    let (code, found, _) = grep(&[OsStr::from_bytes(b"\xe9\xff"), name]);
    assert_eq!((code, found.as_str()), (Some(0), "/caf\\xe9:1:2\n/caf\\xe9:1:7\n"));
    let (_, json, _) = grep(&[OsStr::new("-ojson"), OsStr::from_bytes(b"\xff b"), name]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["offset"], &json[0]["pathHex"]), (&3.into(), &"2f636166e93a31".into()));

    // Nothing found is no failure.
    assert_eq!(plain(&["three", "/plain"]), (Some(0), String::new(), String::new()));
    assert_eq!(plain(&["-c", "three", "/plain"]), (Some(0), "/plain:0\n".into(), String::new()));
    assert_eq!(plain(&["-o", "json", "three", "/plain"]).1, "[]\n");
    let found = cluster.dfs_json(["grep", "one", "/plain"]);
    assert_eq!(found, found_json(&[0, 8]));
    let counted = cluster.dfs_json(["grep", "-c", "one", "/plain"]);
    assert_eq!(counted, serde_json::json!([{"path": "/plain", "count": 2}]));

    // One bad path among good ones.
    let (code, found, said) = plain(&["one", "/dir", "/nope", "/plain"]);
    assert_eq!((code, found.as_str()), (Some(1), "/plain:0\n/plain:8\n"));
    assert!(
        said.contains("grep /dir: is a directory") && said.contains("/nope: no such"),
        "{said}"
    );
    let (code, json, _) = plain(&["-o", "json", "one", "/nope", "/plain"]);
    assert_eq!(
        (code, serde_json::from_str::<serde_json::Value>(&json).unwrap()),
        (Some(1), found_json(&[0, 8]))
    );
    for (words, code, named) in [
        (&["", "/plain"][..], 2, "an empty word"),
        (&[&"x".repeat(4097), "/plain"], 2, "4097 bytes"),
        (&["one"], 2, "PATH"),
        (&["one", "/dir"], 1, "is a directory"),
        (&["one", "/nope"], 1, "/nope"),
    ] {
        let (found_code, found, said) = plain(words);
        assert_eq!((found_code, found.as_str()), (Some(code), ""), "{said}");
        assert!(said.contains(named) && said.lines().count() == 1, "{said}");
    }
}

fn found_json(offsets: &[u64]) -> serde_json::Value {
    let line = |offset: &u64| serde_json::json!({"path": "/plain", "offset": offset});
    offsets.iter().map(line).collect()
}
