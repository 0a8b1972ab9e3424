//! Every operation, and a client that is killed at a chosen point of it: read, sent, carried out, answered.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use tests::{Cluster, no_fuse, skipped, wait_until};

use crate::Held;

const POINTS: [&str; 4] = ["read", "sent", "effect", "replied"];

/// What a program does in a directory of its own, of which `operation` is a part.
struct Step {
    operation: &'static str,
    /// Begun with by the client that is killed, and known to the next one.
    is_kept: bool,
    prepare: fn(&Path) -> io::Result<()>,
    act: fn(&Path) -> io::Result<()>,
}

const fn asks(operation: &'static str, act: fn(&Path) -> io::Result<()>) -> Step {
    Step { operation, is_kept: false, prepare: file, act }
}

const fn changes(operation: &'static str, act: fn(&Path) -> io::Result<()>) -> Step {
    Step { operation, is_kept: true, prepare: file, act }
}

fn steps() -> Vec<Step> {
    vec![
        asks("lookup", |dir| is("size", fs::metadata(dir.join("file"))?.len(), 7)),
        asks("getattr", |dir| is("size", open(dir)?.metadata()?.len(), 7)),
        asks("readlink", |dir| is("target", fs::read_link(dir.join("link"))?, "to".into())),
        asks("read", |dir| is("content", fs::read(dir.join("file"))?, b"content".to_vec())),
        asks("readdir", |dir| is("names", fs::read_dir(dir)?.count(), 2)),
        asks("statfs", |dir| is("name", rustix::fs::statvfs(dir)?.f_namemax, 255)),
        asks("getxattr", |dir| is("no value", get_xattr(dir), Err(Errno::NODATA))),
        asks("listxattr", |dir| {
            let found = rustix::fs::listxattr(dir.join("file"), &mut [0_u8; 64][..])?;
            is("no names", found, 0)
        }),
        asks("lseek", |dir| is("data", rustix::fs::seek(open(dir)?, SeekFrom::Data(3))?, 3)),
        asks("getlk", |dir| {
            let l_type = i16::try_from(libc::F_WRLCK).unwrap();
            let mut lock = libc::flock { l_type, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
            posix_lock(&open(dir)?, libc::F_GETLK, &mut lock)?;
            is("free", i32::from(lock.l_type), libc::F_UNLCK)
        }),
        changes("setattr", |dir| {
            open(dir)?.set_permissions(fs::Permissions::from_mode(0o604))?;
            is("mode", fs::metadata(dir.join("file"))?.mode() & 0o777, 0o604)
        }),
        changes("setattr", |dir| {
            open(dir)?.set_len(3)?;
            is("cut", fs::read(dir.join("file"))?, b"con".to_vec())
        }),
        changes("mknod", |dir| {
            let path = dir.join("new");
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            is("links", fs::metadata(path)?.nlink(), 1)
        }),
        changes("mkdir", |dir| {
            fs::create_dir(dir.join("new"))?;
            is("links", fs::metadata(dir)?.nlink(), 3)
        }),
        changes("symlink", |dir| {
            symlink("there", dir.join("new"))?;
            is("target", fs::read_link(dir.join("new"))?, "there".into())
        }),
        changes("link", |dir| {
            fs::hard_link(dir.join("file"), dir.join("new"))?;
            is("links", fs::metadata(dir.join("file"))?.nlink(), 2)
        }),
        changes("unlink", |dir| {
            fs::remove_file(dir.join("file"))?;
            is("left", fs::read_dir(dir)?.count(), 1)
        }),
        Step {
            prepare: |dir| fs::create_dir(dir.join("dir")),
            ..changes("rmdir", |dir| {
                fs::remove_dir(dir.join("dir"))?;
                is("links", fs::metadata(dir)?.nlink(), 2)
            })
        },
        changes("rename", |dir| {
            fs::rename(dir.join("file"), dir.join("new"))?;
            is("content", fs::read(dir.join("new"))?, b"content".to_vec())
        }),
        // Done twice it is as if it had not been.
        changes("rename", |dir| {
            let (one, other) = (dir.join("file"), dir.join("link"));
            rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)?;
            is("content", fs::read(other)?, b"content".to_vec())
        }),
        changes("create", |dir| {
            File::create_new(dir.join("new"))?.write_all(b"1")?;
            is("content", fs::read(dir.join("new"))?, b"1".to_vec())
        }),
        changes("open", |dir| {
            drop(open(dir)?);
            is("content", fs::read(dir.join("file"))?, b"content".to_vec())
        }),
        changes("open", |dir| {
            File::options().write(true).truncate(true).open(dir.join("file"))?.write_all(b"2")?;
            is("content", fs::read(dir.join("file"))?, b"2".to_vec())
        }),
        changes("write", |dir| {
            open(dir)?.write_all_at(b"12", 1)?;
            is("content", fs::read(dir.join("file"))?, b"c12tent".to_vec())
        }),
        changes("write", |dir| {
            let bytes: Vec<u8> = b"0123456".repeat(40_000);
            open(dir)?.write_all_at(&bytes, 7)?;
            let found = fs::read(dir.join("file"))?;
            is("bytes", found.len(), bytes.len() + 7)?;
            is("content", found.get(7..), Some(&bytes[..]))
        }),
        changes("write", |dir| {
            File::options().append(true).open(dir.join("file"))?.write_all(b"more")?;
            is("content", fs::read(dir.join("file"))?, b"contentmore".to_vec())
        }),
        Step {
            prepare: |dir| fs::write(dir.join("file"), vec![b'a'; 100_000]),
            ..changes("write", |dir| {
                File::options().append(true).open(dir.join("file"))?.write_all(b"more")?;
                is("bytes", fs::metadata(dir.join("file"))?.len(), 100_004)
            })
        },
        changes("flush", |dir| {
            open(dir)?.write_all_at(b"3", 0)?;
            is("content", fs::read(dir.join("file"))?, b"3ontent".to_vec())
        }),
        changes("release", |dir| {
            let file = open(dir)?;
            fs::remove_file(dir.join("file"))?;
            file.write_all_at(b"4", 0)?;
            let mut bytes = String::new();
            (&file).read_to_string(&mut bytes)?;
            is("content", &*bytes, "4ontent")
        }),
        changes("fsync", |dir| {
            let file = open(dir)?;
            file.write_all_at(b"5", 0)?;
            file.sync_all()?;
            is("content", fs::read(dir.join("file"))?, b"5ontent".to_vec())
        }),
        changes("setxattr", |dir| {
            let file = dir.join("file");
            rustix::fs::setxattr(&file, "user.new", b"6", XattrFlags::CREATE)?;
            is("bytes", rustix::fs::getxattr(&file, "user.new", &mut [0_u8; 8][..])?, 1)
        }),
        Step {
            prepare: |dir| {
                file(dir)?;
                Ok(rustix::fs::setxattr(dir.join("file"), "user.one", b"", XattrFlags::CREATE)?)
            },
            ..changes("removexattr", |dir| {
                rustix::fs::removexattr(dir.join("file"), "user.one")?;
                is("gone", get_xattr(dir), Err(Errno::NODATA))
            })
        },
        changes("setlk", |dir| {
            let (one, other) = (open(dir)?, open(dir)?);
            one.lock()?;
            is("held", other.try_lock().is_err(), true)?;
            one.unlock()?;
            is("free", other.try_lock().is_ok(), true)
        }),
        changes("fallocate", |dir| {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open(dir)?, how, 1, 2)?;
            is("content", fs::read(dir.join("file"))?, b"c\0\0tent".to_vec())
        }),
        changes("fallocate", |dir| {
            rustix::fs::fallocate(open(dir)?, FallocateFlags::empty(), 0, 10_000)?;
            is("bytes", fs::metadata(dir.join("file"))?.len(), 10_000)
        }),
        changes("copy_file_range", |dir| {
            let (from, to) = (open(dir)?, File::create_new(dir.join("new"))?);
            is("copied", rustix::fs::copy_file_range(&from, None, &to, None, 7)?, 7)?;
            is("content", fs::read(dir.join("new"))?, b"content".to_vec())
        }),
    ]
}

fn is<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> io::Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!("{what}: {found:?}, not {wanted:?}")))
}

fn file(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("file"), "content")?;
    symlink("to", dir.join("link"))
}

fn open(dir: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(dir.join("file"))
}

fn get_xattr(dir: &Path) -> Result<usize, Errno> {
    rustix::fs::getxattr(dir.join("file"), "user.one", &mut [0_u8; 8][..])
}

#[expect(unsafe_code, reason = "fcntl(2) of locks")]
fn posix_lock(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the structure lives until it returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sum of a figure of the log's lines of takeovers.
fn said(log: &str, figure: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains("took over what was not answered"));
    let figures = lines.filter_map(|line| {
        let after = line.split(&format!("{figure}=")).nth(1)?;
        after.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    });
    figures.sum()
}

fn start() -> Held {
    Held::start_with(Cluster::start(), &["--attr-ttl", "0s", "--entry-ttl", "0s"])
}

#[test]
fn a_client_that_is_killed_at_any_point_of_any_operation_leaves_no_error_and_no_effect_twice() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = start();
    let (mut kills, mut errors) = (0, Vec::new());
    for (number, Step { operation, is_kept, prepare, act }) in steps().into_iter().enumerate() {
        for point in POINTS {
            let what = format!("{operation} {point}");
            let dir = held.at.join(format!("{number}-{point}"));
            fs::create_dir(&dir).unwrap();
            prepare(&dir).unwrap();
            let before = (held.client(), said(&held.log(), "begun"));
            held.exercise(&format!("end {what}"));
            if let Err(error) = act(&dir) {
                errors.push(format!("{what} ({number}): {error}"));
            }
            // A release has nobody who waits for it.
            wait_until(&format!("{what} was reached"), || held.has_reached());
            wait_until("another client took over", || {
                held.client() != before.0 && held.takeovers() == kills + 1
            });
            kills += 1;
            if is_kept && point == "effect" && said(&held.log(), "begun") == before.1 {
                errors.push(format!("{what} ({number}): nothing of it was kept"));
            }
        }
    }
    let (resent, begun) = (said(&held.log(), "resent"), said(&held.log(), "begun"));
    println!("{kills} kills, {resent} requests sent again, {begun} of them begun with before");
    assert_eq!(errors, Vec::<String>::new());
    assert!(0 < resent && 0 < begun);
}

impl Held {
    fn takeovers(&self) -> usize {
        self.log().matches("took over what was not answered").count()
    }

    /// Makes a directory while the client is killed at `point` of that.
    fn mkdir_killed(&self, name: &str, point: &str, without: &str) -> io::Result<()> {
        self.exercise(&format!("end mkdir {point}\nwithout {without}\n"));
        fs::create_dir(self.at.join(name))
    }
}

/// The test above would pass if the numbers of requests that are sent again were of no use: without them it does not.
#[test]
fn without_records_an_effect_happens_twice() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = start();
    let made = held.mkdir_killed("one", "effect", "records");
    assert_eq!(made.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    held.mkdir_killed("two", "effect", "nothing").unwrap();
}

#[test]
fn without_resend_a_request_is_never_answered() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = start();
    std::thread::scope(|scope| {
        let made = scope.spawn(|| held.mkdir_killed("one", "effect", "resend"));
        wait_until("the next client serves", || held.has_reached() && held.takeovers() == 1);
        // Of a name it would wait for the directory.
        rustix::fs::statvfs(&held.at).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert!(!made.is_finished(), "it was answered");
        // The one after that asks for it; what was known of it is forgotten by then.
        held.exercise("");
        held.kill_client();
        let made = made.join().unwrap();
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn without_kept_clones_a_request_is_aborted() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = start();
    held.exercise("without clones");
    held.kill_client();
    wait_until("the next client serves", || held.takeovers() == 1);
    let made = held.mkdir_killed("one", "read", "clones");
    assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
}
