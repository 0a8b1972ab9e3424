//! Bytes written and not yet made into operations: extents of one chunk (or of inline content) that merge.

use std::collections::BTreeMap;

/// Extents that neither overlap nor touch; a later write wins over an earlier one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirtyExtents {
    extents: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

fn end_of(start: u64, data: &[u8]) -> u64 {
    start + data.len() as u64
}

/// A writer of large pieces goes on behind them: room for the rest of a mebibyte saves moving them.
fn with_room(data: &[u8]) -> Vec<u8> {
    const ROOM: usize = 1 << 20;
    let room = if data.len() < 32 << 10 { data.len() } else { data.len().max(ROOM) };
    let mut extent = Vec::with_capacity(room);
    extent.extend_from_slice(data);
    extent
}

/// In-memory positions: an extent is a `Vec`, so its length fits.
fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl DirtyExtents {
    /// Puts `data` at `offset`. Answers where the extent that now holds it starts and how long that is.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> (u64, usize) {
        let end = end_of(offset, data);
        // The common case first: the next bytes of a sequential writer.
        let before = self.extents.range_mut(..=offset).next_back();
        let (start, mut merged) = match before {
            Some((&start, extent)) if offset <= end_of(start, extent) => {
                let from = at(offset - start);
                let old = extent.len();
                let overlap = (old - from).min(data.len());
                extent[from..from + overlap].copy_from_slice(&data[..overlap]);
                extent.extend_from_slice(&data[overlap..]);
                self.bytes += (extent.len() - old) as u64;
                let touches_next = self
                    .extents
                    .range(offset + 1..=end)
                    .next()
                    .is_some_and(|(next, _)| start < *next);
                if !touches_next {
                    let len = self.extents.get(&start).map_or(0, Vec::len);
                    return (start, len);
                }
                let extent = self.extents.remove(&start).unwrap_or_default();
                self.bytes -= extent.len() as u64;
                (start, extent)
            }
            _ => (offset, with_room(data)),
        };
        // Swallow what the new bytes reach: its own bytes count only beyond them.
        while let Some((&next, _)) = self.extents.range(start..=end_of(start, &merged)).next() {
            let later = self.extents.remove(&next).unwrap_or_default();
            self.bytes -= later.len() as u64;
            let covered = at(end_of(start, &merged) - next);
            if covered < later.len() {
                merged.extend_from_slice(&later[covered..]);
            }
        }
        let len = merged.len();
        self.bytes += len as u64;
        self.extents.insert(start, merged);
        (start, len)
    }

    /// Takes the extent that starts at `start` out.
    pub fn take(&mut self, start: u64) -> Option<Vec<u8>> {
        let extent = self.extents.remove(&start)?;
        self.bytes -= extent.len() as u64;
        Some(extent)
    }

    /// Takes out the lowest extent.
    pub fn take_first(&mut self) -> Option<(u64, Vec<u8>)> {
        let (start, extent) = self.extents.pop_first()?;
        self.bytes -= extent.len() as u64;
        Some((start, extent))
    }

    /// Lays the dirty bytes over `out`, which holds what is at `offset`.
    pub fn overlay(&self, offset: u64, out: &mut [u8]) {
        let end = end_of(offset, out);
        for (&start, extent) in self.extents.range(..end) {
            let extent_end = end_of(start, extent);
            if extent_end <= offset {
                continue;
            }
            let (from, to) = (start.max(offset), extent_end.min(end));
            out[at(from - offset)..at(to - offset)]
                .copy_from_slice(&extent[at(from - start)..at(to - start)]);
        }
    }

    #[must_use]
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.extents
            .range(..offset.saturating_add(len))
            .next_back()
            .is_some_and(|(&start, extent)| offset < end_of(start, extent))
    }

    /// Forgets everything at and beyond `end`.
    pub fn truncate(&mut self, end: u64) {
        let beyond = self.extents.split_off(&end);
        self.bytes -= beyond.values().map(|extent| extent.len() as u64).sum::<u64>();
        if let Some((&start, extent)) = self.extents.iter_mut().next_back() {
            let old = extent.len();
            extent.truncate(at(end - start));
            self.bytes -= (old - extent.len()) as u64;
        }
    }

    /// One past the highest dirty byte, 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.extents.last_key_value().map_or(0, |(&start, extent)| end_of(start, extent))
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Extents in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.extents.iter().map(|(&start, extent)| (start, extent.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_writes(writes: &[(u64, &[u8])], expected: &[(u64, &[u8])]) {
        let mut dirty = DirtyExtents::default();
        for (offset, data) in writes {
            dirty.write(*offset, data);
        }
        let found: Vec<(u64, &[u8])> = dirty.iter().collect();
        assert_eq!(found, expected);
        assert_eq!(dirty.bytes(), expected.iter().map(|(_, data)| data.len() as u64).sum::<u64>());
    }

    #[test]
    fn touching_writes_are_one_extent() {
        check_writes(&[(0, b"ab"), (2, b"cd"), (4, b"e")], &[(0, b"abcde")]);
        check_writes(&[(2, b"cd"), (0, b"ab")], &[(0, b"abcd")]);
        check_writes(&[(0, b"ab"), (4, b"ef"), (2, b"cd")], &[(0, b"abcdef")]);
        check_writes(&[(0, b"ab"), (3, b"de")], &[(0, b"ab"), (3, b"de")]);
    }

    #[test]
    fn a_later_write_wins() {
        check_writes(&[(0, b"aaaa"), (1, b"bb")], &[(0, b"abba")]);
        check_writes(&[(2, b"aaaa"), (0, b"bbbbbbbb")], &[(0, b"bbbbbbbb")]);
        check_writes(&[(2, b"aaaa"), (0, b"bbb")], &[(0, b"bbbaaa")]);
        check_writes(
            &[(0, b"aa"), (4, b"aa"), (8, b"aa"), (1, b"bbbbbbbb")],
            &[(0, b"abbbbbbbba")],
        );
    }

    #[test]
    fn any_sequence_of_writes_and_cuts_equals_a_plain_buffer() {
        // A fixed linear congruence instead of a random source: the same run every time.
        let mut state = 7u64;
        let mut draw = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _round in 0..200 {
            let mut dirty = DirtyExtents::default();
            let mut model: Vec<Option<u8>> = vec![None; 128];
            for step in 0..40u8 {
                if draw(10) == 0 {
                    let end = draw(128);
                    dirty.truncate(end);
                    model[usize::try_from(end).unwrap()..].fill(None);
                    continue;
                }
                let offset = draw(100);
                let data = vec![step; usize::try_from(draw(27) + 1).unwrap()];
                let (start, len) = dirty.write(offset, &data);
                for (place, byte) in data.iter().enumerate() {
                    model[usize::try_from(offset).unwrap() + place] = Some(*byte);
                }
                assert!(start <= offset && offset + data.len() as u64 <= start + len as u64);
                let mut out = vec![255; 128];
                dirty.overlay(0, &mut out);
                let expected: Vec<u8> = model.iter().map(|byte| byte.unwrap_or(255)).collect();
                assert_eq!(out, expected);
                assert_eq!(dirty.bytes(), model.iter().flatten().count() as u64);
                let runs: Vec<(u64, u64)> =
                    dirty.iter().map(|(start, data)| (start, start + data.len() as u64)).collect();
                assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{runs:?}");
                let probe = draw(120);
                let hit = model[usize::try_from(probe).unwrap()].is_some();
                assert_eq!(dirty.overlaps(probe, 1), hit);
            }
        }
    }
}
