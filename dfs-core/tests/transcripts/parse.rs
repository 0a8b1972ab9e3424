//! The scripts' language. `[client.op[/low_water]] verb arguments key=value flag`; a path or `#number` names an
//! inode, `{x*300}` repeats, `_` stands for a space in data, members are server numbers.

use dfs_core::chunk::{Configuration, Member};
use dfs_core::command::{Change, Command, LockKind, NewKind, RenameMode, SetTime, XattrMode};
use dfs_core::ids::{
    ChunkId, ChunkVersion, ClientId, DiskId, Epoch, FsId, InodeNo, OpId, ServerId,
};
use dfs_core::meta::marks::{Mark, Shown};
use dfs_core::meta::{self, MemStore};
use dfs_core::namespace::{Layout, acl};
use dfs_core::results::Results;
use dfs_core::time::WallTime;

pub(crate) enum Line {
    Command(Command),
    Question(Question),
}

pub(crate) enum Question {
    Stat(InodeNo),
    List(InodeNo),
    Xattrs(InodeNo),
    Locks(InodeNo),
    Chunks(InodeNo),
    Read(InodeNo),
    Lookup(InodeNo, Vec<u8>),
    Totals,
    Lost,
}

/// The words of one line.
struct Words<'a> {
    words: Vec<&'a str>,
    store: &'a MemStore,
}

type Parsed<T> = Result<T, String>;

pub(crate) fn parse(line: &str, store: &MemStore) -> Parsed<Line> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let (mut id, mut results) = (None, Results::default());
    if words[0].starts_with(|c: char| c.is_ascii_digit()) {
        let (who, mark) = words[0].split_once('/').unwrap_or((words[0], "0"));
        let (client, op) = who.split_once('.').ok_or("client.op")?;
        let (op, part) = op.split_once('.').unwrap_or((op, "0"));
        id = Some(OpId {
            client: ClientId(number(client)?.into()),
            op: number(op)?,
            part: small(part)?,
        });
        results = Results::all_below(number(mark)?);
        words.remove(0);
    }
    let verb = *words.first().ok_or("no verb")?;
    words.remove(0);
    let words = Words { words, store };
    if let Some(question) = words.question(verb)? {
        return Ok(Line::Question(question));
    }
    let at = words.key("at").map_or(Ok(0), number)?;
    let change = words.change(verb)?;
    Ok(Line::Command(Command { at: WallTime(i64::try_from(at).unwrap()), id, results, change }))
}

fn number(text: &str) -> Parsed<u64> {
    let (digits, shift) = match text.strip_suffix('K') {
        Some(digits) => (digits, 10),
        None => text.strip_suffix('M').map_or((text, 0), |digits| (digits, 20)),
    };
    digits.parse::<u64>().map(|n| n << shift).map_err(|_| format!("'{text}' is not a number"))
}

fn small(text: &str) -> Parsed<u32> {
    number(text).and_then(|n| u32::try_from(n).map_err(|_| format!("{n} is too large")))
}

fn octal(text: &str) -> Parsed<u32> {
    u32::from_str_radix(text, 8).map_err(|_| format!("'{text}' is not octal"))
}

/// `{x*300}` is 300 times x.
fn bytes(text: &str) -> Parsed<Vec<u8>> {
    let text = text.replace('_', " ");
    let Some(body) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return Ok(text.into_bytes());
    };
    let (unit, count) = body.split_once('*').ok_or("{x*count}")?;
    Ok(unit.repeat(usize::try_from(number(count)?).unwrap()).into_bytes())
}

fn member(text: &str) -> Parsed<Member> {
    let server = small(text)?;
    Ok(Member { server: ServerId(server), disk: DiskId(u128::from(server)) })
}

fn members(text: &str) -> Parsed<Vec<Member>> {
    text.split(',').filter(|text| *text != "-").map(member).collect()
}

impl<'a> Words<'a> {
    fn word(&self, at: usize) -> Parsed<&'a str> {
        self.words
            .iter()
            .filter(|word| !word.contains('='))
            .nth(at)
            .copied()
            .ok_or_else(|| format!("argument {at} is missing"))
    }

    fn number(&self, at: usize) -> Parsed<u64> {
        number(self.word(at)?)
    }

    fn key(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn flag(&self, flag: &str) -> bool {
        self.words.contains(&flag)
    }

    fn chunk(&self, at: usize) -> Parsed<ChunkId> {
        number(self.word(at)?.strip_prefix('c').ok_or("c1, c2, …")?).map(ChunkId)
    }

    fn version(&self, at: usize) -> Parsed<ChunkVersion> {
        number(self.word(at)?.strip_prefix('v').ok_or("v1, v2, …")?).map(ChunkVersion)
    }

    fn resolve(&self, path: &str) -> Parsed<InodeNo> {
        if let Some(n) = path.strip_prefix('#') {
            return number(n).map(InodeNo);
        }
        let mut at = InodeNo::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = meta::lookup(self.store, at, &bytes(part)?)
                .map_err(|error| format!("{path}: {error}"))?
                .ino;
        }
        Ok(at)
    }

    fn ino(&self, at: usize) -> Parsed<InodeNo> {
        self.resolve(self.word(at)?)
    }

    /// Directory and last name; the name may be any.
    fn entry(&self, at: usize) -> Parsed<(InodeNo, Vec<u8>)> {
        let (directory, name) = self.word(at)?.rsplit_once('/').ok_or("dir/name")?;
        Ok((self.resolve(directory)?, bytes(name)?))
    }

    fn time(&self, key: &str) -> Parsed<SetTime> {
        Ok(match self.key(key) {
            None => SetTime::Keep,
            Some("now") => SetTime::Now,
            Some(text) => SetTime::To(WallTime(i64::try_from(number(text)?).unwrap())),
        })
    }

    fn mtime(&self) -> Parsed<Option<WallTime>> {
        self.key("mtime")
            .map(|text| number(text).map(|n| WallTime(i64::try_from(n).unwrap())))
            .transpose()
    }

    fn question(&self, verb: &str) -> Parsed<Option<Question>> {
        Ok(Some(match verb {
            "stat" => Question::Stat(self.ino(0)?),
            "ls" => Question::List(self.ino(0)?),
            "xattrs" => Question::Xattrs(self.ino(0)?),
            "locks" => Question::Locks(self.ino(0)?),
            "chunks" => Question::Chunks(self.ino(0)?),
            "cat" => Question::Read(self.ino(0)?),
            "lookup" => {
                let (parent, name) = self.entry(0)?;
                Question::Lookup(parent, name)
            }
            "totals" => Question::Totals,
            "lost" => Question::Lost,
            _ => return Ok(None),
        }))
    }

    fn create(&self, kind: NewKind) -> Parsed<Change> {
        let (parent, name) = self.entry(0)?;
        let chunk_size = self.key("chunk_size").map(number).transpose()?;
        let record_max = self.key("record_max").map_or(Ok(0), number)?;
        Ok(Change::Create {
            parent,
            name,
            kind,
            mode: self.key("mode").map_or(Ok(0o777), octal)?,
            umask: self.key("umask").map_or(Ok(0o022), octal)?,
            uid: self.key("uid").map_or(Ok(0), small)?,
            gid: self.key("gid").map_or(Ok(0), small)?,
            layout: chunk_size.map(|chunk_size| Layout {
                chunk_size,
                record_log: self.flag("recordlog"),
                record_max,
            }),
            open_existing: self.flag("open"),
        })
    }

    fn set_attr(&self, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>) -> Parsed<Change> {
        let (atime, mtime) = (self.time("atime")?, self.time("mtime")?);
        Ok(Change::SetAttr {
            ino: self.ino(0)?,
            mode,
            uid,
            gid,
            atime,
            mtime,
            kill_priv: self.flag("killpriv"),
        })
    }

    fn change(&self, verb: &str) -> Parsed<Change> {
        Ok(match verb {
            "start" => Change::Start {
                epoch: Epoch(self.number(0)?),
                nonce: 1,
                fs: FsId(self.key("fs").map_or(Ok(1), number)?.into()),
                replication: 3,
                min_replicas: 2,
            },
            "client" => Change::BeginClient {
                client: ClientId(self.number(0)?.into()),
                name: "mount".into(),
            },
            "fence-client" => Change::FenceClient { client: ClientId(self.number(0)?.into()) },
            "end-client" => Change::EndClient { client: ClientId(self.number(0)?.into()) },
            "server" => {
                let server = ServerId(small(self.word(0)?)?);
                let disk = self.key("disk").map_or(Ok(u64::from(server.0)), number)?;
                Change::RegisterServer { server, disk: DiskId(disk.into()) }
            }

            "mark" => {
                let server = ServerId(small(self.word(0)?)?);
                let disk = self.key("disk").map_or(Ok(u64::from(server.0)), number)?;
                let mark = |key| {
                    let number = self.key(key).map_or(Ok(0), number)?;
                    Ok::<_, String>(Mark { number, nonce: 0 })
                };
                let (last, next) = (mark("last")?, mark("next")?);
                let shown = Shown { last, next, loss_accepted: self.flag("loss-accepted") };
                Change::MarkDisk { server, disk: DiskId(disk.into()), shown }
            }

            "create" => self.create(NewKind::File)?,
            "mkdir" => self.create(NewKind::Directory)?,
            "symlink" => self.create(NewKind::Symlink(bytes(self.word(1)?)?))?,
            "mkfifo" => self.create(NewKind::Fifo)?,
            "mknod" => self.create(NewKind::CharDevice(small(self.word(1)?)?))?,
            "tmpfile" => Change::CreateUnnamed {
                parent: self.ino(0)?,
                mode: self.key("mode").map_or(Ok(0o666), octal)?,
                umask: self.key("umask").map_or(Ok(0o022), octal)?,
                uid: 1,
                gid: 1,
                layout: None,
            },
            "put" => {
                let (parent, name) = self.entry(1)?;
                Change::PutInPlace { ino: self.ino(0)?, parent, name }
            }
            "link" => {
                let (parent, name) = self.entry(1)?;
                Change::Link { ino: self.ino(0)?, parent, name }
            }
            "unlink" => {
                let (parent, name) = self.entry(0)?;
                Change::Unlink { parent, name }
            }
            "rmdir" => {
                let (parent, name) = self.entry(0)?;
                Change::Rmdir { parent, name }
            }
            "mv" => {
                let ((from_parent, from), (to_parent, to)) = (self.entry(0)?, self.entry(1)?);
                let mode = if self.flag("noreplace") {
                    RenameMode::NoReplace
                } else if self.flag("exchange") {
                    RenameMode::Exchange
                } else {
                    RenameMode::Replace
                };
                Change::Rename { from_parent, from, to_parent, to, mode }
            }
            "reclaim" => Change::Reclaim { ino: self.ino(0)? },

            "chmod" => self.set_attr(Some(octal(self.word(1)?)?), None, None)?,
            "chown" => {
                let (uid, gid) = self.word(1)?.split_once(':').ok_or("uid:gid")?;
                let id =
                    |text: &str| if text.is_empty() { Ok(None) } else { small(text).map(Some) };
                self.set_attr(None, id(uid)?, id(gid)?)?
            }
            "utimes" => self.set_attr(None, None, None)?,
            "setxattr" => self.set_xattr(self.word(1)?.as_bytes(), bytes(self.word(2)?)?)?,
            "setacl" => {
                let name = if self.flag("default") { acl::DEFAULT_NAME } else { acl::ACCESS_NAME };
                self.set_xattr(name, acl_bytes(self.word(1)?)?)?
            }
            "rmxattr" => Change::RemoveXattr { ino: self.ino(0)?, name: self.word(1)?.into() },
            _ => return self.content_change(verb),
        })
    }

    fn set_xattr(&self, name: &[u8], value: Vec<u8>) -> Parsed<Change> {
        let mode = if self.flag("new") {
            XattrMode::Create
        } else if self.flag("replace") {
            XattrMode::Replace
        } else {
            XattrMode::Set
        };
        // Names of attributes keep their underscores, unless they repeat something.
        let name = match std::str::from_utf8(name) {
            Ok(repeated) if repeated.starts_with('{') => bytes(repeated)?,
            _ => name.to_vec(),
        };
        Ok(Change::SetXattr { ino: self.ino(0)?, name, value, mode })
    }

    fn content_change(&self, verb: &str) -> Parsed<Change> {
        let kill_priv = self.flag("killpriv");
        Ok(match verb {
            "write" => Change::InlineWrite {
                ino: self.ino(0)?,
                offset: self.number(1)?,
                data: bytes(self.word(2)?)?,
                append: false,
                mtime: self.mtime()?,
                kill_priv,
            },
            "append" => Change::InlineWrite {
                ino: self.ino(0)?,
                offset: 0,
                data: bytes(self.word(1)?)?,
                append: true,
                mtime: self.mtime()?,
                kill_priv,
            },
            "patch" => Change::InlinePatch {
                ino: self.ino(0)?,
                ranges: vec![
                    (self.number(1)?, bytes(self.word(2)?)?),
                    (self.number(3)?, bytes(self.word(4)?)?),
                ],
                mtime: self.mtime()?,
                kill_priv,
            },
            "zero" => Change::InlineZero {
                ino: self.ino(0)?,
                offset: self.number(1)?,
                len: self.number(2)?,
                keep_size: self.flag("keep"),
            },
            "truncate" => Change::InlineTruncate { ino: self.ino(0)?, size: self.number(1)? },
            "begin-write" => Change::BeginWrite { ino: self.ino(0)? },
            "commit" => Change::CommitSize {
                ino: self.ino(0)?,
                size: self.number(1)?,
                // What the inode has now, unless the script is about an older one.
                cuts_seen: match self.key("cuts") {
                    Some(seen) => number(seen)?,
                    None => meta::attr(self.store, self.ino(0)?).map_or(0, |attr| attr.cuts),
                },
                mtime: self.mtime()?,
                done_writing: self.flag("done"),
                kill_priv,
            },
            "truncate-begin" => Change::TruncateBegin { ino: self.ino(0)?, size: self.number(1)? },
            "truncate-end" => Change::TruncateEnd { ino: self.ino(0)?, size: self.number(1)? },
            "grow" => Change::Grow { ino: self.ino(0)?, size: self.number(1)? },
            "punch" => Change::FreeChunks {
                ino: self.ino(0)?,
                first: self.number(1)?,
                count: self.number(2)?,
            },

            "add-chunk" => Change::AddChunk {
                ino: self.ino(0)?,
                index: self.number(1)?,
                members: members(self.word(2)?)?,
                primary: ServerId(small(self.key("primary").unwrap_or("1"))?),
                attach: !self.flag("spill"),
            },
            "spill" => {
                let ino = self.ino(0)?;
                let seen = self.key("change").map(number).transpose()?;
                let now = meta::attr(self.store, ino).map_or(0, |attr| attr.change);
                Change::Spill { ino, change_seen: seen.unwrap_or(now), chunk: self.chunk(1)? }
            }
            "drop-chunk" => Change::DropChunk { chunk: self.chunk(0)? },
            "seal" => Change::SealChunk { chunk: self.chunk(0)? },
            "skip-ids" => Change::SkipIds,
            "stored" => Change::NoteStored { chunks: vec![self.chunk(0)?] },
            "forget" => Change::ForgetGarbage { chunk: self.chunk(0)? },
            "reconfigure" => Change::Reconfigure {
                chunk: self.chunk(0)?,
                version: self.version(1)?,
                members: members(self.word(2)?)?,
                learner: self.key("learner").map(member).transpose()?,
                after_wait: self.key("after-wait").is_some(),
            },
            "activate" => Change::Activate {
                chunk: self.chunk(0)?,
                configuration: Configuration {
                    version: self.version(1)?,
                    members: members(self.word(2)?)?,
                    primary: ServerId(small(self.key("primary").unwrap_or("1"))?),
                },
                done_by: None,
            },

            "lock" => {
                let (client, owner) = self.word(1)?.split_once(':').ok_or("client:owner")?;
                let (start, end) = self.word(2)?.split_once('-').ok_or("start-end")?;
                let kind = match self.word(3)? {
                    "shared" => Some(LockKind::Shared),
                    "exclusive" => Some(LockKind::Exclusive),
                    "release" => None,
                    other => return Err(format!("'{other}' is no kind of lock")),
                };
                Change::SetLock {
                    ino: self.ino(0)?,
                    client: ClientId(number(client)?.into()),
                    owner: number(owner)?,
                    start: number(start)?,
                    end: if end == "max" { u64::MAX } else { number(end)? },
                    kind,
                    pid: 1,
                }
            }
            other => return Err(format!("'{other}' is no verb")),
        })
    }
}

/// `u::rwx,u:1000:r--,g::r-x,m::rwx,o::r--`, as `setfacl` has it; `none` for no entries.
fn acl_bytes(text: &str) -> Parsed<Vec<u8>> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for entry in text.split(',').filter(|entry| *entry != "none") {
        let [kind, who, perms] = entry.split(':').collect::<Vec<_>>()[..] else {
            return Err("u:who:rwx".into());
        };
        let tag: u16 = match (kind, who) {
            ("u", "") => 0x01,
            ("u", _) => 0x02,
            ("g", "") => 0x04,
            ("g", _) => 0x08,
            ("m", _) => 0x10,
            ("o", _) => 0x20,
            _ => return Err(format!("'{kind}' is nobody")),
        };
        let perm = [('r', 4_u16), ('w', 2), ('x', 1)]
            .iter()
            .filter(|(letter, _)| perms.contains(*letter))
            .fold(0, |sum, (_, bit)| sum | bit);
        let id = if who.is_empty() { u32::MAX } else { small(who)? };
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    Ok(bytes)
}
