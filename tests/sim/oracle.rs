//! Knows what was tried and acknowledged, and finds what contradicts it.

use std::collections::{BTreeMap, BTreeSet};

/// Stamps: what was acknowledged when a look began, and what the client had seen by then.
type Looked = (Option<u64>, Option<u64>);

/// What clients said, as it is known outside of the cluster.
#[derive(Default, Debug)]
pub(crate) struct Oracle {
    /// By file and block: stamps that were tried, and the last that was acknowledged.
    tried: BTreeMap<(u64, u64), BTreeSet<u64>>,
    acked: BTreeMap<(u64, u64), u64>,
    /// By client, file and block.
    looks: BTreeMap<(usize, u64, u64), Looked>,
    /// The newest that each client saw of what another wrote.
    seen: BTreeMap<(usize, u64, u64), u64>,
    appends_tried: BTreeSet<(u64, u64)>,
    appends: BTreeMap<(u64, u64), u64>,
    found: BTreeMap<(u64, u64), u64>,
    /// Offset and length of each record of the record log, as its bytes tell, and as its servers list them.
    places: BTreeSet<(u64, u64)>,
    listed: BTreeSet<(u64, u64)>,
    names: BTreeMap<u64, Names>,
    pub(crate) acknowledged: u64,
    pub(crate) errors: u64,
    pub(crate) checked: bool,
    /// Only who checks the whole looks now.
    pub(crate) is_end: bool,
}

#[derive(Default, Debug)]
struct Names {
    there: BTreeSet<u64>,
    /// One that nobody was told the end of.
    doubt: Option<Operation>,
}

#[derive(Clone, Debug)]
struct Operation {
    verb: String,
    one: u64,
    other: u64,
}

impl Operation {
    fn apply(&self, there: &mut BTreeSet<u64>) {
        match self.verb.as_str() {
            "make" => {
                there.insert(self.one);
            }
            "move" => {
                if there.remove(&self.one) {
                    there.insert(self.other);
                }
            }
            _ => {
                there.remove(&self.one);
            }
        }
    }
}

impl Oracle {
    /// A line of a client's output; what is wrong with it.
    pub(crate) fn hear(&mut self, client: usize, line: &str) -> Option<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number =
            |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok()).unwrap_or(u64::MAX);
        let place = (number(1), number(2));
        match words[0] {
            "try" => {
                self.tried.entry(place).or_default().insert(number(3));
            }
            "ack" => {
                self.acknowledged += 1;
                let last = self.acked.entry(place).or_default();
                *last = number(3).max(*last);
            }
            "look" => {
                let look = (client, place.0, place.1);
                self.looks.insert(look, (self.acked.get(&place).copied(), self.seen(look)));
            }
            "saw" => {
                let look = (client, place.0, place.1);
                let (floor, before) = self.looks.remove(&look).unwrap_or_default();
                let seen = words.get(3).and_then(|word| word.parse::<u64>().ok());
                if seen < floor {
                    return Some(format!(
                        "I8 block {} of file {} was acknowledged as {floor:?} before it was read as {seen:?}",
                        place.1, place.0
                    ));
                }
                if seen < before {
                    return Some(format!(
                        "I12 block {} of file {} was read as {before:?} before it was read as {seen:?}",
                        place.1, place.0
                    ));
                }
                // What it wrote itself may be nowhere else yet.
                if let Some(seen) = seen
                    && number(4) != place.0
                {
                    let newest = self.seen.entry(look).or_default();
                    *newest = seen.max(*newest);
                }
                if let Some(seen) = seen
                    && !self.tried.get(&place).is_some_and(|tried| tried.contains(&seen))
                {
                    return Some(format!(
                        "I21 block {} of file {} is {seen}, which nobody wrote",
                        place.1, place.0
                    ));
                }
            }
            "wrong" => return Some(format!("I21 {line}")),
            "try-append" => {
                self.appends_tried.insert(place);
            }
            "ack-append" => {
                self.acknowledged += 1;
                self.appends.insert(place, number(3));
            }
            "record" => {
                if !self.appends_tried.contains(&place) {
                    return Some(format!("I10 record {place:?} was never appended"));
                }
                if let Some(before) = self.found.insert(place, number(3)) {
                    return Some(format!(
                        "I10 record {place:?} is there twice, at {before} and at {}",
                        number(3)
                    ));
                }
            }
            "place" => {
                self.places.insert(place);
            }
            "listed" => {
                let is_first = self.listed.insert(place);
                if !is_first {
                    return Some(format!("I10 the record at {} is listed twice", place.0));
                }
            }
            "try-name" | "ack-name" | "no-name" => {
                return self.hear_name(&words, place.0, (number(3), number(4)));
            }
            "names" => return self.check_names(place.0, &words[2..]),
            "checked" => {
                self.checked = true;
                return self.check_appends();
            }
            "error" => self.errors += 1,
            _ => {}
        }
        None
    }

    /// What `client` must still find. One that begins at the end has no memory of its own: it is told all.
    fn seen(&self, (client, file, block): (usize, u64, u64)) -> Option<u64> {
        if self.is_end {
            let by_all = self.seen.iter().filter(|((_, f, b), _)| (*f, *b) == (file, block));
            return by_all.map(|(_, seen)| *seen).max();
        }
        self.seen.get(&(client, file, block)).copied()
    }

    /// More than one server lost what it had not on its disk: what nobody was told to be there may be gone.
    pub(crate) fn may_forget(&mut self) {
        self.seen.clear();
        for (_, seen) in self.looks.values_mut() {
            *seen = None;
        }
    }

    fn hear_name(
        &mut self,
        words: &[&str],
        client: u64,
        (one, other): (u64, u64),
    ) -> Option<String> {
        let operation =
            Operation { verb: words.get(2).copied().unwrap_or_default().to_owned(), one, other };
        let names = self.names.entry(client).or_default();
        match words[0] {
            "try-name" => names.doubt = Some(operation),
            "ack-name" => {
                self.acknowledged += 1;
                names.doubt = None;
                operation.apply(&mut names.there);
            }
            _ => {
                names.doubt = None;
                if names.there.contains(&one) {
                    return Some(format!("I3 name {one} of client {client} is gone"));
                }
            }
        }
        None
    }

    fn check_names(&self, client: u64, found: &[&str]) -> Option<String> {
        let found: BTreeSet<u64> = found.iter().filter_map(|word| word.parse().ok()).collect();
        let names = self.names.get(&client)?;
        let mut also = names.there.clone();
        if let Some(operation) = &names.doubt {
            operation.apply(&mut also);
        }
        (found != names.there && found != also)
            .then(|| format!("I3 client {client} finds names {found:?}, after {names:?}"))
    }

    fn check_appends(&self) -> Option<String> {
        for (record, offset) in &self.appends {
            match self.found.get(record) {
                None => {
                    return Some(format!(
                        "I10 record {record:?}, acknowledged at {offset}, is gone"
                    ));
                }
                Some(found) if found != offset => {
                    return Some(format!(
                        "I10 record {record:?}, acknowledged at {offset}, is at {found}"
                    ));
                }
                Some(_) => {}
            }
        }
        let wrong = self.places.symmetric_difference(&self.listed).next();
        wrong.map(|(offset, len)| {
            let there = self.places.contains(&(*offset, *len));
            let is_not = if there { "not listed" } else { "listed, and not there" };
            format!("I10 the record of {len} bytes at {offset} is {is_not}")
        })
    }
}
