use super::*;
use crate::native::reply::Writer;

const NODE: InodeNo = InodeNo(77);

/// A request as the kernel makes it.
fn request(opcode: u32, build: impl Fn(&mut Writer)) -> Vec<u8> {
    let mut body = Writer::default();
    build(&mut body);
    let mut out = Writer::default();
    let len = u32::try_from(abi::IN_HEADER_BYTES + body.0.len()).unwrap();
    out.u32(len).u32(opcode).u64(9 | abi::UNIQUE_RESENT).u64(NODE.0);
    out.u32(1000).u32(100).u32(4242).zeros(4);
    out.0.extend_from_slice(&body.0);
    out.0
}

/// Requests, and what becomes of those that are calls.
pub(super) fn requests() -> Vec<(Vec<u8>, Option<Operation>)> {
    let text = |out: &mut Writer, text: &[u8]| {
        out.0.extend_from_slice(text);
        out.0.push(0);
    };
    let open = OpenId::new(3, true);
    let append = (libc::O_APPEND | libc::O_WRONLY).cast_unsigned();
    let lock = |out: &mut Writer| {
        out.u64(open.to_bits()).u64(5).u64(10).u64(19).u32(1).u32(4242).u32(0).u32(0);
    };
    let set_lock = |wait| Operation::SetLock {
        ino: NODE,
        open,
        owner: 5,
        start: 10,
        end: 19,
        kind: Some(LockKind::Exclusive),
        pid: 4242,
        wait,
    };
    vec![
        (
            request(opcode::LOOKUP, |out| text(out, b"name")),
            Some(Operation::Lookup { parent: NODE, name: b"name".to_vec() }),
        ),
        (
            request(opcode::GETATTR, |out| {
                out.zeros(16);
            }),
            Some(Operation::GetAttr { ino: NODE }),
        ),
        (
            request(opcode::TMPFILE, |out| {
                out.u32(libc::O_RDWR.cast_unsigned()).u32(0o100_600).u32(0o022).u32(0);
                text(out, b"/");
            }),
            Some(Operation::CreateUnnamed {
                parent: NODE,
                mode: 0o100_600,
                umask: 0o022,
                flags: OpenFlags(libc::O_RDWR),
            }),
        ),
        (
            request(opcode::SETATTR, |out| {
                let valid =
                    fattr::MODE | fattr::GID | fattr::SIZE | fattr::MTIME | fattr::ATIME_NOW;
                out.u32(valid | fattr::ATIME).u32(0).u64(1).u64(4096).u64(0);
                out.u64(1).u64(u64::MAX).u64(3).u32(4).u32(500).u32(6);
                out.u32(0o100_644).u32(0).u32(8).u32(9).u32(0);
            }),
            Some(Operation::SetAttr {
                ino: NODE,
                set: SetAttr {
                    mode: Some(0o644),
                    uid: None,
                    gid: Some(9),
                    size: Some(4096),
                    atime: SetTime::Now,
                    // One second before 1970, and 500 ns.
                    mtime: SetTime::To(WallTime(-1_000_000_000 + 500)),
                },
            }),
        ),
        (
            request(opcode::SYMLINK, |out| {
                text(out, b"link");
                text(out, b"to/this");
            }),
            Some(Operation::Symlink {
                parent: NODE,
                name: b"link".to_vec(),
                target: b"to/this".to_vec(),
            }),
        ),
        (
            request(opcode::MKNOD, |out| {
                out.u32(0o100_600).u32(7).u32(0o22).u32(0);
                text(out, b"n");
            }),
            Some(Operation::Mknod {
                parent: NODE,
                name: b"n".to_vec(),
                mode: 0o100_600,
                umask: 0o22,
                rdev: 7,
            }),
        ),
        (
            request(opcode::RENAME2, |out| {
                out.u64(78).u32(1).u32(0);
                text(out, b"a");
                text(out, b"b");
            }),
            Some(Operation::Rename {
                from_parent: NODE,
                from: b"a".to_vec(),
                to_parent: InodeNo(78),
                to: b"b".to_vec(),
                flags: 1,
            }),
        ),
        (
            request(opcode::CREATE, |out| {
                out.u32(append).u32(0o600).u32(0o22).u32(0);
                text(out, b"new");
            }),
            Some(Operation::Create {
                parent: NODE,
                name: b"new".to_vec(),
                mode: 0o600,
                umask: 0o22,
                flags: OpenFlags(libc::O_APPEND | libc::O_WRONLY),
            }),
        ),
        (
            request(opcode::READ, |out| {
                out.u64(open.to_bits()).u64(8192).u32(4096).u32(0).u64(0);
                out.u32(libc::O_DIRECT.cast_unsigned()).u32(0);
            }),
            Some(Operation::Read { ino: NODE, open, offset: 8192, len: 4096, direct: true }),
        ),
        (
            request(opcode::WRITE, |out| {
                out.u64(open.to_bits()).u64(5).u32(3).u32(abi::WRITE_CACHE).u64(0);
                out.u32(append).u32(0);
                out.0.extend_from_slice(b"abc");
            }),
            Some(Operation::Write {
                ino: NODE,
                offset: 5,
                flags: OpenFlags(libc::O_APPEND | libc::O_WRONLY),
                from_page_cache: true,
                kill_priv: false,
            }),
        ),
        (
            request(opcode::RELEASE, |out| {
                let unlock = abi::RELEASE_FLOCK_UNLOCK;
                out.u64(open.to_bits()).u32(append).u32(unlock).u64(99);
            }),
            Some(Operation::Release {
                ino: NODE,
                open,
                flags: OpenFlags(libc::O_APPEND | libc::O_WRONLY),
                flock_owner: Some(99),
            }),
        ),
        (
            request(opcode::SETXATTR, |out| {
                out.u32(2).u32(1);
                text(out, b"user.a");
                out.0.extend_from_slice(b"vw");
            }),
            Some(Operation::SetXattr { ino: NODE, name: b"user.a".to_vec(), flags: 1 }),
        ),
        (
            request(opcode::READDIRPLUS, |out| {
                out.u64(0).u64(44).u32(4096).u32(0).u64(0).u32(0).u32(0);
            }),
            Some(Operation::ReadDir { ino: NODE, cookie: 44, plus: true }),
        ),
        (request(opcode::SETLKW, lock), Some(set_lock(true))),
        (request(opcode::SETLK, lock), Some(set_lock(false))),
        (
            request(opcode::COPY_FILE_RANGE, |out| {
                out.u64(1).u64(10).u64(78).u64(2).u64(20).u64(30).u64(0);
            }),
            Some(Operation::CopyRange {
                from: NODE,
                from_offset: 10,
                to: InodeNo(78),
                to_offset: 20,
                len: 30,
                flags: 0,
            }),
        ),
        (
            request(opcode::LSEEK, |out| {
                out.u64(1).u64(100).u32(3).u32(0);
            }),
            Some(Operation::Seek { ino: NODE, offset: 100, whence: 3 }),
        ),
        (
            request(opcode::INIT, |out| {
                out.u32(7).u32(45).u32(9).u32(1 << 30).u32(1).zeros(44);
            }),
            None,
        ),
        (
            request(opcode::INTERRUPT, |out| {
                out.u64(8);
            }),
            None,
        ),
        (
            request(opcode::FORGET, |out| {
                out.u64(1);
            }),
            None,
        ),
        (request(4096, |_| ()), None),
    ]
}

#[test]
fn requests_are_the_calls_that_the_kernel_means() {
    for (bytes, expected) in requests() {
        let (header, body) = decode_header(&bytes).unwrap();
        let caller = header.caller();
        assert_eq!((caller.unique, caller.uid, caller.gid, caller.pid), (9, 1000, 100, 4242));
        let found = match decode_body(&header, body).unwrap() {
            Body::Call { operation, payload, .. } => {
                let expected: &[u8] = match operation.name() {
                    "write" => b"abc",
                    "setxattr" => b"vw",
                    _ => b"",
                };
                assert_eq!(*payload, *expected);
                Some(operation)
            }
            Body::Init(init) => {
                let flags = 1 << 30 | 1 << 32;
                assert_eq!(init, Init { major: 7, minor: 45, readahead_max: 9, flags });
                None
            }
            Body::Interrupt { unique } => {
                assert_eq!(unique, 8);
                None
            }
            Body::Forget | Body::Destroy | Body::Unknown => None,
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_length_that_is_not_there_is_refused() {
    let bytes = request(opcode::WRITE, |out| {
        out.u64(1).u64(0).u32(u32::MAX).u32(0).u64(0).u32(0).u32(0);
    });
    let (header, body) = decode_header(&bytes).unwrap();
    assert_eq!(decode_body(&header, body), Err(Malformed));
    assert_eq!(decode_header(&bytes[..bytes.len() - 1]).err(), Some(Malformed));
    let unterminated = request(opcode::LOOKUP, |out| out.0.extend_from_slice(b"abc"));
    let (header, body) = decode_header(&unterminated).unwrap();
    assert_eq!(decode_body(&header, body), Err(Malformed));
}
