//! The units of deploy/systemd, as far as they can be tried without systemd: their commands with their settings make a
//! cluster, a mount does with the rights it is left, and SIGTERM is a clean end.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tests::{force_unmount, is_mounted, signal, wait_until};

use crate::{need_fuse, pattern, write_synced};

/// Value of a key that stands once in a unit, with its continued lines.
#[track_caller]
fn value(unit: &str, key: &str) -> String {
    let text = unit.replace("\\\n", " ");
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{key} in {unit}")).to_owned()
}

/// `NAME=VALUE` lines of an example of settings.
fn settings(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(tests::repository().join("deploy/systemd").join(file)).unwrap()
}

/// One that nobody listens at now.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

struct Machine {
    dir: tempfile::TempDir,
    settings: BTreeMap<String, String>,
    started: Vec<(String, Child)>,
}

impl Machine {
    /// As systemd puts a command together, with this machine's directories.
    fn command(&self, unit: &str, instance: &str, path: &Path) -> Vec<String> {
        let dir = self.dir.path().to_str().unwrap();
        let mut words = Vec::new();
        for word in value(&read(unit), "ExecStart").split_whitespace() {
            // $NAME alone is split into words, and is none if it is empty; ${NAME} is one.
            if let Some(name) = word.strip_prefix('$').filter(|name| !name.starts_with('{')) {
                words.extend(self.settings[name].split_whitespace().map(str::to_owned));
                continue;
            }
            let mut word = word.to_owned();
            if let (Some(start), Some(end)) = (word.find("${"), word.find('}')) {
                let name = word[start + 2..end].to_owned();
                word.replace_range(start..=end, &self.settings[&name]);
            }
            let word = word
                .replace("/usr/local/bin/dfs", tests::dfs_program().to_str().unwrap())
                .replace("/var/lib/distributedfs", &format!("{dir}/state"))
                .replace("/etc/distributedfs", dir)
                .replace("%i", instance)
                .replace("%H", "here")
                .replace("%f", path.to_str().unwrap());
            assert!(!word.contains(['%', '$']), "{word}");
            words.push(word);
        }
        words
    }

    fn start(&mut self, name: &str, command: &mut Command) {
        let log = std::fs::File::create(self.dir.path().join(format!("{name}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.started.push((name.to_owned(), command.spawn().unwrap()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        force_unmount(&self.dir.path().join("mnt"));
        for (_, child) in &mut self.started {
            let _ended = child.kill();
            let _waited = child.wait();
        }
    }
}

#[test]
fn the_units_of_systemd_make_a_cluster_that_sigterm_ends() {
    need_fuse!();
    let dir = tempfile::Builder::new().prefix("t-").tempdir().unwrap();
    let mut settings = settings(&[read("dfs.env"), read("cs-1.env")].join("\n"));
    for name in ["DFS_MASTER", "DFS_MASTER_METRICS", "DFS_MOUNT_METRICS"] {
        assert!(settings.contains_key(name), "{name} in dfs.env");
        settings.insert(name.to_owned(), free_address());
    }
    let mut machine = Machine { dir, settings, started: Vec::new() };
    let key = machine.dir.path().join("cluster.key");
    std::fs::write(&key, "5a".repeat(32)).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let mnt = machine.dir.path().join("mnt");
    for dir in ["mnt", "state/master", "state/cs-1", "state/cs-2", "state/cs-3"] {
        std::fs::create_dir_all(machine.dir.path().join(dir)).unwrap();
    }

    let words = machine.command("dfs-master.service", "", &mnt);
    machine.start("master", Command::new(&words[0]).args(&words[1..]));
    for id in ["cs-1", "cs-2", "cs-3"] {
        for name in ["DFS_LISTEN", "DFS_METRICS"] {
            assert!(machine.settings.contains_key(name), "{name} in cs-1.env");
            machine.settings.insert(name.to_owned(), free_address());
        }
        let words = machine.command("dfs-chunkserver@.service", id, &mnt);
        machine.start(id, Command::new(&words[0]).args(&words[1..]));
    }
    // What the unit leaves it of root's rights, and no more.
    let unit = read("dfs-mount@.service");
    assert_eq!(value(&unit, "NoNewPrivileges"), "yes");
    let left = value(&unit, "CapabilityBoundingSet").to_lowercase().replace("cap_", "+");
    let words = machine.command("dfs-mount@.service", "", &mnt);
    if rustix::process::geteuid().is_root() {
        let mut bounded = Command::new("setpriv");
        bounded.args(["--no-new-privs", "--inh-caps=-all", "--bounding-set"]);
        bounded.arg(format!("-all,{}", left.replace(' ', ","))).args(&words);
        machine.start("mount", &mut bounded);
    } else {
        machine.start("mount", Command::new(&words[0]).args(&words[1..]));
    }
    wait_until("the mount", || is_mounted(&mnt));
    let bytes = pattern(3 << 20, 7);
    write_synced(&mnt.join("file"), &bytes);
    assert_eq!(std::fs::read(mnt.join("file")).unwrap(), bytes);

    // In the order in which systemd would: what was started last is stopped first.
    let mut ended = Vec::new();
    for (name, child) in machine.started.iter_mut().rev() {
        signal(child.id(), Signal::TERM);
        ended.push((name.clone(), child.wait().unwrap().code()));
        if name == "mount" {
            assert!(!is_mounted(&mnt), "SIGTERM unmounts");
        }
    }
    assert!(ended.iter().all(|(_, code)| *code == Some(0)), "{ended:?}");
}

/// What is wrong in the arguments stays wrong: no endless restarts.
#[test]
fn a_wrong_setting_ends_with_the_code_that_prevents_restarts() {
    for unit in ["dfs-master.service", "dfs-chunkserver@.service", "dfs-mount@.service"] {
        let code: i32 = value(&read(unit), "RestartPreventExitStatus").parse().unwrap();
        let verb = unit.trim_start_matches("dfs-").split(['.', '@']).next().unwrap();
        let output = tests::run(
            Command::new(tests::dfs_program()).args([verb, "--metrics", "nowhere"]),
            tests::PATIENCE,
        );
        assert_eq!(output.status.code(), Some(code), "{unit}");
        assert_eq!(value(&read(unit), "Restart"), "on-failure");
    }
}
