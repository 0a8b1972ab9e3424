//! Turns the functions that tell the time without a system call: they show what is written here, or ask the kernel.

const CLOCK: &str = "__vdso_clock_gettime";
/// Functions of the vDSO, and the numbers of the calls they stand for.
const FUNCTIONS: [(&str, u32); 5] = [
    (CLOCK, 228),
    ("__vdso_gettimeofday", 96),
    ("__vdso_time", 201),
    ("__vdso_clock_getres", 229),
    ("__vdso_getcpu", 309),
];
const SHT_DYNSYM: u32 = 11;

/// clock_gettime: clocks 0 and 5 are those of the wall, 2 and 3 (of processors) and unknown ones are asked for, all others
/// show the time since the machine began. Most calls of an idle program are this one.
#[rustfmt::skip]
const CLOCK_CODE: [u8; 72] = [
    0x83, 0xff, 0x00,                               // 00 cmp edi, 0
    0x74, 0x2c,                                     // 03 je  31
    0x83, 0xff, 0x05,                               // 05 cmp edi, 5
    0x74, 0x27,                                     // 08 je  31
    0x83, 0xff, 0x07,                               // 0a cmp edi, 7
    0x77, 0x2b,                                     // 0d ja  3a
    0x83, 0xff, 0x02,                               // 0f cmp edi, 2
    0x74, 0x26,                                     // 12 je  3a
    0x83, 0xff, 0x03,                               // 14 cmp edi, 3
    0x74, 0x21,                                     // 17 je  3a
    0x48, 0x8d, 0x05, 0x38, 0x00, 0x00, 0x00,       // 19 lea rax, [rip+0x38] (58: since the machine began)
    0x48, 0x8b, 0x10,                               // 20 mov rdx, [rax]
    0x48, 0x89, 0x16,                               // 23 mov [rsi], rdx
    0x48, 0x8b, 0x50, 0x08,                         // 26 mov rdx, [rax+8]
    0x48, 0x89, 0x56, 0x08,                         // 2a mov [rsi+8], rdx
    0x31, 0xc0,                                     // 2e xor eax, eax
    0xc3,                                           // 30 ret
    0x48, 0x8d, 0x05, 0x10, 0x00, 0x00, 0x00,       // 31 lea rax, [rip+0x10] (48: the wall's)
    0xeb, 0xe6,                                     // 38 jmp 20
    0xb8, 0xe4, 0x00, 0x00, 0x00,                   // 3a mov eax, 228
    0x0f, 0x05,                                     // 3f syscall
    0xc3,                                           // 41 ret
    0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00,             // 42 nop
];
/// Behind the code: seconds and nanoseconds of the wall's clock, then of the machine's.
const CLOCK_BYTES: usize = 32;

/// What is to be written into a process.
#[derive(Debug)]
pub(crate) struct Patches {
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
    /// Where its clocks are.
    pub(crate) clocks_at: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(number(bytes, at)?)).ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(number(bytes, at)?))
}

/// For a process whose `/proc/PID/maps` says `maps`; `None`: it has no such functions, or they are too short.
pub(crate) fn patches(maps: &str, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Option<Patches> {
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (from, to) = line.split_whitespace().next()?.split_once('-')?;
    let bound = |text: &str| u64::from_str_radix(text, 16).ok();
    let (from, to) = (bound(from)?, bound(to)?);
    let mut image = vec![0; usize::try_from(to - from).ok()?];
    if !read(from, &mut image) {
        return None;
    }
    let (mut writes, mut clocks_at) = (Vec::new(), None);
    for Symbol { at, len, function, call } in symbols(&image)? {
        let code = if function == CLOCK {
            clocks_at = Some(from + at + CLOCK_CODE.len() as u64);
            [CLOCK_CODE.as_slice(), &[0; CLOCK_BYTES]].concat()
        } else {
            stub(call)
        };
        if len < code.len() {
            return None;
        }
        writes.push((from + at, code));
    }
    Some(Patches { writes, clocks_at: clocks_at? })
}

/// `mov eax, call; syscall; ret`: the arguments are where the kernel wants them already.
fn stub(call: u32) -> Vec<u8> {
    [&[0xb8], call.to_le_bytes().as_slice(), &[0x0f, 0x05, 0xc3]].concat()
}

struct Symbol {
    at: u64,
    len: usize,
    function: &'static str,
    call: u32,
}

fn symbols(image: &[u8]) -> Option<Vec<Symbol>> {
    let (sections, size) =
        (word(image, 0x28)?, usize::from(u16::from_le_bytes(number(image, 0x3a)?)));
    let count = usize::from(u16::from_le_bytes(number(image, 0x3c)?));
    let section = |n: usize| sections + n * size;
    let table = (0..count).map(section).find(|at| half(image, at + 4) == Some(SHT_DYNSYM))?;
    let (from, len) = (word(image, table + 0x18)?, word(image, table + 0x20)?);
    let names = section(usize::try_from(half(image, table + 0x28)?).ok()?);
    let names = word(image, names + 0x18)?;
    let mut found = Vec::new();
    for symbol in (from..from + len).step_by(24) {
        let name = names + usize::try_from(half(image, symbol)?).ok()?;
        let name = image.get(name..)?.split(|byte| *byte == 0).next()?;
        let function = FUNCTIONS.iter().find(|(function, _)| function.as_bytes() == name);
        if let Some((function, call)) = function {
            let (at, len) =
                (u64::from_le_bytes(number(image, symbol + 8)?), word(image, symbol + 16)?);
            found.push(Symbol { at, len, function, call: *call });
        }
    }
    Some(found)
}
