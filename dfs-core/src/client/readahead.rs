//! When a reader is sequential, and how far ahead of it to fetch.

/// Window of a reader just found sequential, and the widest.
const WINDOW_BYTES_FIRST: u64 = 1 << 20;
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Requests of one sequential reader may arrive out of order: the kernel keeps several in flight.
const REORDER_BYTES: u64 = 1 << 20;
/// Readers of one file that are told apart.
const STREAMS_MAX: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stream {
    /// One past the highest byte asked for.
    next: u64,
    hits: u32,
    window: u64,
    used_at: u64,
}

/// Readers of one file by where they read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SequentialDetector {
    streams: Vec<Stream>,
    turn: u64,
}

impl SequentialDetector {
    /// Told of a read; answers up to where to fetch ahead, `None` if the reader jumps about.
    pub fn on_read(&mut self, offset: u64, len: u64) -> Option<u64> {
        self.turn += 1;
        let turn = self.turn;
        let end = offset.saturating_add(len);
        let near = self.streams.iter_mut().find(|stream| {
            let behind = stream.next.saturating_sub(REORDER_BYTES);
            let reorder = if 1 < stream.hits { REORDER_BYTES } else { 0 };
            behind <= offset && offset <= stream.next + reorder
        });
        if let Some(stream) = near {
            stream.used_at = turn;
            if stream.next < end {
                stream.hits += 1;
                stream.next = end;
                if 1 < stream.hits {
                    stream.window = (stream.window * 2).clamp(WINDOW_BYTES_FIRST, WINDOW_BYTES_MAX);
                }
            }
            return (0 < stream.window).then(|| stream.next.saturating_add(stream.window));
        }
        if self.streams.len() == STREAMS_MAX
            && let Some(oldest) =
                (0..self.streams.len()).min_by_key(|place| self.streams[*place].used_at)
        {
            self.streams.swap_remove(oldest);
        }
        // A read from the start announces a reader of the whole file.
        let window = if offset == 0 { WINDOW_BYTES_FIRST } else { 0 };
        self.streams.push(Stream {
            next: end,
            hits: u32::from(offset == 0),
            window,
            used_at: turn,
        });
        (0 < window).then(|| end.saturating_add(window))
    }

    pub fn clear(&mut self) {
        self.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_reader_from_the_start_gets_a_window_that_doubles_to_eight_mebibytes() {
        let mut detector = SequentialDetector::default();
        let step = 128 << 10;
        let ahead: Vec<u64> =
            (0..6u64).map(|n| detector.on_read(n * step, step).unwrap() - (n + 1) * step).collect();
        assert_eq!(ahead, [MIB, 2 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]);
    }

    #[test]
    fn jumping_about_fetches_nothing() {
        let mut detector = SequentialDetector::default();
        for n in 1..100u64 {
            let offset = (n * 7_919 % 101) * 16 * MIB;
            assert_eq!(detector.on_read(offset + 4096, 4096), None, "read {n}");
        }
    }

    #[test]
    fn two_readers_and_reordered_requests_stay_sequential() {
        let mut detector = SequentialDetector::default();
        let far = 1 << 30;
        for n in 0..4u64 {
            detector.on_read(n * 4096, 4096);
            detector.on_read(far + n * 4096, 4096);
        }
        assert!(detector.on_read(far + 5 * 4096, 4096).is_some());
        assert!(detector.on_read(far + 4 * 4096, 4096).is_some());
        assert!(detector.on_read(4 * 4096, 4096).is_some());
    }
}
