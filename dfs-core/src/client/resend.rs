//! Operations of one client on one chunk: kept until they are stable, sent in order, sent again in order.
//!
//! Counters are consecutive while anything is kept. A server takes a counter that follows the last one, or one that
//! equals the client's low-water mark: so a queue that was empty may start anywhere above what was used before.

use std::collections::VecDeque;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Unsent,
    Sent,
    /// Every member has it in its kernel; it may be lost if all reboot.
    Acknowledged,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry<B> {
    counter: u64,
    bytes: u64,
    stage: Stage,
    body: B,
}

/// The queue; `B` is what is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResendQueue<B> {
    entries: VecDeque<Entry<B>>,
    next: u64,
}

impl<B> ResendQueue<B> {
    #[must_use]
    pub fn new(first_counter: u64) -> Self {
        Self { entries: VecDeque::new(), next: first_counter }
    }

    /// Adds an operation behind all others.
    pub fn push(&mut self, body: B, bytes: u64) -> u64 {
        let counter = self.next;
        self.next += 1;
        self.entries.push_back(Entry { counter, bytes, stage: Stage::Unsent, body });
        counter
    }

    fn find(&mut self, counter: u64) -> Option<&mut Entry<B>> {
        let place = self.entries.binary_search_by_key(&counter, |entry| entry.counter).ok()?;
        self.entries.get_mut(place)
    }

    /// The next operation to put on the wire, if fewer than `ops` with fewer than `bytes` are in flight.
    pub fn send_next(&mut self, ops: usize, bytes: u64) -> Option<(u64, &B)> {
        let (count, sum) = self.in_flight();
        if ops <= count || (0 < count && bytes <= sum) {
            return None;
        }
        // Stages never mix out of order except for acknowledgements that overtook each other.
        let entry = self.entries.iter_mut().find(|entry| entry.stage == Stage::Unsent)?;
        entry.stage = Stage::Sent;
        Some((entry.counter, &entry.body))
    }

    /// Whether anything was sent and not answered.
    #[must_use]
    pub fn is_any_in_flight(&self) -> bool {
        self.entries.iter().any(|entry| entry.stage == Stage::Sent)
    }

    fn in_flight(&self) -> (usize, u64) {
        let sent = self.entries.iter().filter(|entry| entry.stage == Stage::Sent);
        sent.fold((0, 0), |(count, sum), entry| (count + 1, sum + entry.bytes))
    }

    /// Answered: every member has it. False if it is not waited for.
    pub fn acknowledge(&mut self, counter: u64) -> bool {
        match self.find(counter) {
            Some(entry) if entry.stage == Stage::Sent => {
                entry.stage = Stage::Acknowledged;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes one operation out: it is stable by itself, or will never be sent again and was the last one.
    pub fn remove(&mut self, counter: u64) -> Option<(B, u64)> {
        let place = self.entries.binary_search_by_key(&counter, |entry| entry.counter).ok()?;
        self.entries.remove(place).map(|entry| (entry.body, entry.bytes))
    }

    /// Puts another body in the place of one that was refused: the counters behind it must still follow on. Answers
    /// the old one with its bytes.
    pub fn replace(&mut self, counter: u64, body: B) -> Option<(B, u64)> {
        let entry = self.find(counter)?;
        entry.stage = Stage::Unsent;
        Some((std::mem::replace(&mut entry.body, body), std::mem::take(&mut entry.bytes)))
    }

    /// Takes out everything from `counter` on, in order; its numbers are not used again. What is added afterwards does
    /// not follow on: a server takes it when everything before it is stable.
    pub fn split_off(&mut self, counter: u64) -> Vec<(u64, B, u64)> {
        let place = self.entries.partition_point(|entry| entry.counter < counter);
        self.entries.drain(place..).map(|entry| (entry.counter, entry.body, entry.bytes)).collect()
    }

    /// What is to be sent and is `wanted`: the first of it.
    pub fn first_unsent(&self, wanted: impl Fn(&B) -> bool) -> Option<u64> {
        let is_it = |entry: &&Entry<B>| entry.stage == Stage::Unsent && wanted(&entry.body);
        self.entries.iter().find(is_it).map(|entry| entry.counter)
    }

    #[must_use]
    pub fn body(&self, counter: u64) -> Option<&B> {
        let place = self.entries.binary_search_by_key(&counter, |entry| entry.counter).ok()?;
        self.entries.get(place).map(|entry| &entry.body)
    }

    /// Everything that is kept, in order, by counter.
    pub fn bodies_mut(&mut self) -> impl Iterator<Item = (u64, &mut B)> {
        self.entries.iter_mut().map(|entry| (entry.counter, &mut entry.body))
    }

    /// Everything kept goes out again, in order: the configuration changed, unstable bytes may be lost.
    pub fn resend_all(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.stage = Stage::Unsent);
    }

    /// What has no answer goes out again, in order: the configuration is the same.
    pub fn resend_unanswered(&mut self) {
        let sent = self.entries.iter_mut().filter(|entry| entry.stage == Stage::Sent);
        sent.for_each(|entry| entry.stage = Stage::Unsent);
    }

    /// Below this the client has all results and keeps nothing.
    #[must_use]
    pub fn low_water(&self) -> u64 {
        self.entries.front().map_or(self.next, |entry| entry.counter)
    }

    /// Up to here (inclusive) everything is acknowledged; a sync that begins now makes that much stable.
    #[must_use]
    pub fn acknowledged_to(&self) -> Option<u64> {
        let prefix = self.entries.iter().take_while(|entry| entry.stage == Stage::Acknowledged);
        prefix.last().map(|entry| entry.counter)
    }

    /// Up to here (inclusive) everything was sent, if nothing waits to be; a sync sent behind it makes that much stable.
    #[must_use]
    pub fn sent_to(&self) -> Option<u64> {
        if self.has_unsent() { None } else { self.entries.back().map(|entry| entry.counter) }
    }

    /// Forgets what is stable: the acknowledged prefix up to `counter`. Answers the bytes freed.
    pub fn stable(&mut self, counter: u64) -> u64 {
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            if counter < entry.counter || entry.stage != Stage::Acknowledged {
                break;
            }
            bytes += entry.bytes;
            self.entries.pop_front();
        }
        bytes
    }

    /// Gives up: takes everything out.
    pub fn drain(&mut self) -> Vec<(u64, B, u64)> {
        self.entries.drain(..).map(|entry| (entry.counter, entry.body, entry.bytes)).collect()
    }

    /// Takes out what was never acknowledged; the rest is forgotten with its bytes counted. For a chunk that is gone:
    /// what was acknowledged there went with it, by an operation ordered after it.
    pub fn drain_unacknowledged(&mut self) -> (Vec<(u64, B, u64)>, u64) {
        let mut freed = 0;
        let mut kept = Vec::new();
        for entry in self.entries.drain(..) {
            if entry.stage == Stage::Acknowledged {
                freed += entry.bytes;
            } else {
                kept.push((entry.counter, entry.body, entry.bytes));
            }
        }
        (kept, freed)
    }

    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.entries.iter().any(|entry| entry.stage == Stage::Unsent)
    }

    #[must_use]
    pub fn unacknowledged_count(&self) -> usize {
        self.entries.iter().filter(|entry| entry.stage != Stage::Acknowledged).count()
    }

    /// Whether an operation numbered below `counter` waits for its answer.
    #[must_use]
    pub fn has_unacknowledged_below(&self, counter: u64) -> bool {
        self.entries
            .iter()
            .take_while(|entry| entry.counter < counter)
            .any(|entry| entry.stage != Stage::Acknowledged)
    }

    #[must_use]
    pub fn acknowledged_bytes(&self) -> u64 {
        let done = self.entries.iter().filter(|entry| entry.stage == Stage::Acknowledged);
        done.map(|entry| entry.bytes).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the next operation will be numbered.
    #[must_use]
    pub fn next_counter(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(queue: &mut ResendQueue<char>) -> String {
        let mut out = String::new();
        while let Some((_, body)) = queue.send_next(64, 1 << 20) {
            out.push(*body);
        }
        out
    }

    fn queue() -> ResendQueue<char> {
        let mut queue = ResendQueue::new(10);
        "abcd".chars().for_each(|body| {
            queue.push(body, 100);
        });
        queue
    }

    #[test]
    fn a_sync_sent_behind_operations_frees_those_that_were_acknowledged_by_then() {
        let mut queue = queue();
        assert_eq!((queue.sent_to(), queue.acknowledged_to()), (None, None));
        assert_eq!(sent(&mut queue), "abcd");
        assert_eq!((queue.sent_to(), queue.acknowledged_to()), (Some(13), None));
        assert!(queue.acknowledge(10) && queue.acknowledge(11));
        queue.push('e', 100);
        assert_eq!((queue.sent_to(), queue.acknowledged_to()), (None, Some(11)));
        assert_eq!(queue.stable(13), 200);
        assert_eq!(queue.low_water(), 12);
    }

    #[test]
    fn a_new_configuration_gets_everything_unstable_in_the_first_order() {
        let mut queue = queue();
        assert_eq!(sent(&mut queue), "abcd");
        assert!(queue.acknowledge(10) && queue.acknowledge(11));
        assert_eq!(queue.stable(10), 100);
        assert_eq!(queue.low_water(), 11);
        queue.resend_all();
        assert_eq!(sent(&mut queue), "bcd");
        assert_eq!(queue.low_water(), 11);
    }

    #[test]
    fn the_same_configuration_gets_only_what_has_no_answer() {
        let mut queue = queue();
        assert_eq!(sent(&mut queue), "abcd");
        assert!(queue.acknowledge(11) && !queue.acknowledge(11) && !queue.acknowledge(99));
        queue.resend_unanswered();
        assert_eq!(sent(&mut queue), "acd");
    }

    #[test]
    fn only_an_acknowledged_prefix_becomes_stable() {
        let mut queue = queue();
        assert_eq!(sent(&mut queue), "abcd");
        assert!(queue.acknowledge(10) && queue.acknowledge(12));
        assert_eq!(queue.acknowledged_to(), Some(10));
        assert_eq!(queue.stable(13), 100);
        assert_eq!(queue.low_water(), 11);
        assert_eq!((queue.acknowledged_bytes(), queue.unacknowledged_count()), (100, 2));
    }

    #[test]
    fn a_refused_operation_leaves_no_gap() {
        let mut queue = queue();
        assert_eq!(sent(&mut queue), "abcd");
        assert_eq!(queue.replace(11, '-'), Some(('b', 100)));
        queue.resend_unanswered();
        assert_eq!(sent(&mut queue), "a-cd");
    }

    #[test]
    fn what_is_taken_off_the_end_leaves_its_numbers_unused() {
        let mut queue = queue();
        assert_eq!(sent(&mut queue), "abcd");
        assert!(queue.acknowledge(10));
        assert_eq!(queue.split_off(12), [(12, 'c', 100), (13, 'd', 100)]);
        assert_eq!(queue.push('e', 100), 14);
        assert_eq!(queue.first_unsent(|_| true), Some(14));
        queue.resend_unanswered();
        assert_eq!(queue.first_unsent(|_| true), Some(11));
        assert_eq!(queue.first_unsent(|body| *body == 'e'), Some(14));
        assert_eq!(sent(&mut queue), "be");
        assert_eq!(queue.split_off(99), []);
    }

    #[test]
    fn the_window_bounds_operations_and_bytes_but_never_stops_a_single_one() {
        let mut queue = queue();
        assert!(queue.send_next(1, 1).is_some());
        assert!(queue.send_next(1, 1 << 20).is_none());
        assert!(queue.send_next(64, 100).is_none());
        assert!(queue.send_next(64, 101).is_some());
    }
}
