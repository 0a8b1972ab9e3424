//! Which bytes of a record log's chunk are records: what the bytes themselves cannot tell, for a record may end in NUL,
//! as padding does.
//!
//! One token per record, in the order of the chunk: its length as a LEB128 number, so that most take one or two bytes.
//! A record that does not begin where the one before it ended has a 0 and the distance, as another number, before its
//! length.

use crate::chunk_file::CHUNK_BYTES_MAX;
use crate::codec::{DecodeError, Reader, Wire};

/// Most bytes of a list. With it a full slot still fits its room ([`crate::chunk_file::SLOT_BYTES`]); a chunk whose list
/// is full is sealed, as one that has no room.
pub const RECORD_LIST_BYTES_MAX: usize = 384 << 10;
/// Of a distance and a length, with the 0 between them: both are below 2^35.
const TOKEN_BYTES_MAX: usize = 1 + 5 + 5;

/// Where one record is in its chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordPlace {
    pub offset: u64,
    pub len: u64,
}

/// The records of one chunk, by offset.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordList {
    bytes: Vec<u8>,
    /// Where the last record ends.
    end: u64,
    /// CRC32C of `bytes`.
    crc: u32,
}

/// The records of a list, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    end: u64,
}

impl RecordList {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// It takes no more records.
    #[must_use]
    pub fn is_full(&self) -> bool {
        RECORD_LIST_BYTES_MAX < self.bytes.len() + TOKEN_BYTES_MAX
    }

    /// Where the last record ends; 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Of the byte form; 0 if there is none.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.crc
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn iter(&self) -> Records<'_> {
        Records { rest: &self.bytes, end: 0 }
    }

    /// Adds a record behind all others. Nothing, and false: it is empty, begins before the last one's end or ends beyond
    /// the largest chunk, or the list is full.
    pub fn push(&mut self, RecordPlace { offset, len }: RecordPlace) -> bool {
        let Some(distance) = offset.checked_sub(self.end) else { return false };
        let end = offset.checked_add(len).filter(|end| *end <= CHUNK_BYTES_MAX);
        let Some(end) = end.filter(|_| len != 0 && !self.is_full()) else { return false };
        let at = self.bytes.len();
        if distance != 0 {
            self.bytes.push(0);
            put_number(distance, &mut self.bytes);
        }
        put_number(len, &mut self.bytes);
        self.end = end;
        self.crc = crc32c::crc32c_append(self.crc, &self.bytes[at..]);
        true
    }

    /// Drops the records that end beyond `len`.
    pub fn cut(&mut self, len: u64) {
        if self.end <= len {
            return;
        }
        let mut kept = self.iter();
        loop {
            let before = kept.clone();
            if kept.next().is_none_or(|record| len < record.offset + record.len) {
                let bytes = self.bytes.len() - before.rest.len();
                self.end = before.end;
                self.bytes.truncate(bytes);
                self.crc = crc32c::crc32c(&self.bytes);
                return;
            }
        }
    }

    /// Whether a chunk of `chunk_size` bytes, of which it has `len`, has nothing but these records and padding to its end.
    /// If not, some came before lists were kept.
    #[must_use]
    pub fn covers(&self, len: u64, chunk_size: u64) -> bool {
        let padded = len == chunk_size && !self.is_empty();
        let mut end = 0;
        let no_gap = self.iter().all(|record| {
            let follows = record.offset == end;
            end = record.offset + record.len;
            follows
        });
        no_gap && (self.end == len || padded)
    }

    /// The list whose byte form is all of `bytes`.
    ///
    /// # Errors
    /// `Range`: it is too long, or no record list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if RECORD_LIST_BYTES_MAX < bytes.len() {
            return Err(DecodeError::Range("length of a record list"));
        }
        let mut records = Records { rest: bytes, end: 0 };
        while !records.rest.is_empty() {
            records.try_next()?;
        }
        Ok(Self { bytes: bytes.to_vec(), end: records.end, crc: crc32c::crc32c(bytes) })
    }
}

impl Records<'_> {
    fn try_next(&mut self) -> Result<RecordPlace, DecodeError> {
        let mut len = take_number(&mut self.rest)?;
        let mut offset = self.end;
        if len == 0 {
            let distance = take_number(&mut self.rest)?;
            len = take_number(&mut self.rest)?;
            if distance == 0 || len == 0 {
                return Err(DecodeError::Range("record"));
            }
            offset += distance;
        }
        self.end = offset + len;
        if CHUNK_BYTES_MAX < self.end {
            return Err(DecodeError::Range("end of a record"));
        }
        Ok(RecordPlace { offset, len })
    }
}

impl Iterator for Records<'_> {
    type Item = RecordPlace;

    fn next(&mut self) -> Option<RecordPlace> {
        // What is in a list was checked when it got there.
        if self.rest.is_empty() { None } else { self.try_next().ok() }
    }
}

impl Wire for RecordList {
    fn put(&self, out: &mut Vec<u8>) {
        self.bytes.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode(&Vec::get(input)?)
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(Self::default())
    }
}

/// LEB128: seven bits in each byte, the lowest first, the highest bit set in all but the last.
fn put_number(mut n: u64, out: &mut Vec<u8>) {
    while 0x80 <= n {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// Of at most five bytes, and no more than it takes: each list has one form.
fn take_number(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut n = 0;
    for (place, &byte) in rest.iter().enumerate().take(5) {
        n |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            if byte == 0 && place != 0 {
                return Err(DecodeError::Range("number of a record list"));
            }
            *rest = &rest[place + 1..];
            return Ok(n);
        }
    }
    Err(DecodeError::Range("number of a record list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(records: &[(u64, u64)]) -> RecordList {
        let mut list = RecordList::default();
        for &(offset, len) in records {
            assert!(list.push(RecordPlace { offset, len }), "{offset} {len}");
        }
        list
    }

    fn places(list: &RecordList) -> Vec<(u64, u64)> {
        list.iter().map(|record| (record.offset, record.len)).collect()
    }

    const SOME: [(u64, u64); 6] =
        [(0, 1), (1, 127), (128, 128), (300, 16_384), (16_684, 1 << 22), (1 << 27, 1 << 27)];

    #[test]
    fn records_are_read_as_written_in_a_byte_or_two_each() {
        let list = list(&SOME);
        assert_eq!(places(&list), SOME);
        assert_eq!((list.end(), list.crc()), (1 << 28, crc32c::crc32c(list.as_bytes())));
        assert_eq!(list.as_bytes().len(), 1 + 1 + 2 + (2 + 3) + 4 + (5 + 4));
        assert_eq!(RecordList::from_bytes(&list.to_bytes()), Ok(list));
    }

    #[test]
    fn what_cannot_be_is_not_taken() {
        let mut list = list(&[(0, 10)]);
        let before = list.clone();
        for (offset, len) in [(9, 1), (10, 0), (10, CHUNK_BYTES_MAX), (u64::MAX, 1), (1, u64::MAX)]
        {
            assert!(!list.push(RecordPlace { offset, len }), "{offset} {len}");
        }
        assert_eq!(list, before);
        for bytes in [
            &[0][..],
            &[0, 0, 1],
            &[0, 1],
            &[0, 1, 0],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x80, 0x80, 0x80, 0x80, 1, 1],
        ] {
            assert!(RecordList::decode(bytes).is_err(), "{bytes:?}");
        }
        assert!(RecordList::decode(&[1; RECORD_LIST_BYTES_MAX]).is_ok());
        assert!(RecordList::decode(&[1; RECORD_LIST_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_cut_leaves_what_would_be_there_without_the_records_it_takes() {
        for len in [0, 1, 127, 128, 300, 20_000, 1 << 27, (1 << 28) - 1, 1 << 28] {
            let mut cut = list(&SOME);
            cut.cut(len);
            let kept: Vec<_> = SOME.into_iter().filter(|(at, bytes)| at + bytes <= len).collect();
            assert_eq!(cut, list(&kept), "{len}");
        }
    }

    #[test]
    fn a_full_list_takes_no_more_and_stays_within_its_bound() {
        let mut list = RecordList::default();
        let mut offset = 0;
        while list.push(RecordPlace { offset, len: 1 }) {
            offset += 2;
        }
        assert!(list.is_full() && list.as_bytes().len() <= RECORD_LIST_BYTES_MAX);
        assert_eq!(list.iter().count() as u64, offset / 2);
        assert!(RecordList::decode(list.as_bytes()).is_ok());
    }

    #[test]
    fn a_list_covers_a_chunk_without_gaps_and_with_padding_at_the_end_only() {
        assert!(list(&[]).covers(0, 8192) && list(&[(0, 5), (5, 6)]).covers(11, 8192));
        assert!(list(&[(0, 8000)]).covers(8192, 8192), "the rest is padding");
        assert!(!list(&[(0, 5), (6, 5)]).covers(11, 8192) && !list(&[(1, 5)]).covers(6, 8192));
        assert!(!list(&[(0, 5)]).covers(6, 8192) && !list(&[]).covers(8192, 8192));
    }
}
