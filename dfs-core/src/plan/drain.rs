//! Whether a server can be emptied: enough others must be left for every chunk's copies, with room for what it holds.

use std::fmt;

use crate::ids::ServerId;

/// A server that is not the one to be emptied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Other {
    pub server: ServerId,
    /// Above what copies leave to writers.
    pub room_bytes: u64,
    /// Why it takes no copies, if so: dead, draining, …
    pub closed: Option<String>,
}

/// Why it cannot be emptied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    TooFew { wanted: usize, left: Vec<ServerId>, closed: Vec<(ServerId, String)> },
    NoRoom { needed_bytes: u64, room_bytes: u64, left: Vec<ServerId> },
}

/// Weighs emptying a server that holds `needed_bytes` while each chunk is to have `wanted` copies.
///
/// # Errors
/// The arithmetic of why not.
pub fn check_drain(wanted: usize, needed_bytes: u64, others: &[Other]) -> Result<(), Refusal> {
    let open = || others.iter().filter(|other| other.closed.is_none());
    let left: Vec<ServerId> = open().map(|other| other.server).collect();
    if left.len() < wanted {
        let closed = others.iter().filter_map(|other| Some((other.server, other.closed.clone()?)));
        return Err(Refusal::TooFew { wanted, left, closed: closed.collect() });
    }
    let room_bytes = open().map(|other| other.room_bytes).fold(0, u64::saturating_add);
    if room_bytes < needed_bytes {
        return Err(Refusal::NoRoom { needed_bytes, room_bytes, left });
    }
    Ok(())
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ids: &[ServerId]| {
            let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        match self {
            Self::TooFew { wanted, left, closed } => {
                write!(
                    f,
                    "each chunk has {wanted} copies on as many servers, and {} would be left ({})",
                    left.len(),
                    list(left)
                )?;
                closed.iter().try_for_each(|(server, why)| write!(f, "; {server} is {why}"))
            }
            Self::NoRoom { needed_bytes, room_bytes, left } => write!(
                f,
                "it holds {needed_bytes} bytes, and the servers left ({}) have room for {room_bytes} above their reserve",
                list(left)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(n: u32, room_bytes: u64, closed: &str) -> Other {
        let closed = (!closed.is_empty()).then(|| closed.to_owned());
        Other { server: ServerId(n), room_bytes, closed }
    }

    #[track_caller]
    fn check_refused(wanted: usize, needed_bytes: u64, others: &[Other], expected: &str) {
        let refusal = check_drain(wanted, needed_bytes, others).unwrap_err();
        assert_eq!(refusal.to_string(), expected);
    }

    #[test]
    fn a_server_goes_only_if_the_others_can_hold_what_it_has() {
        let three = [other(1, 50, ""), other(2, 30, ""), other(4, 20, "")];
        assert_eq!(check_drain(3, 100, &three), Ok(()));
        check_refused(
            3,
            101,
            &three,
            "it holds 101 bytes, and the servers left (cs-1, cs-2, cs-4) have room for 100 above their reserve",
        );
        let mut fewer = three.clone();
        fewer[1] = other(2, 30, "draining");
        check_refused(
            3,
            0,
            &fewer,
            "each chunk has 3 copies on as many servers, and 2 would be left (cs-1, cs-4); cs-2 is draining",
        );
        assert_eq!(check_drain(2, 70, &fewer), Ok(()));
        assert!(check_drain(2, 71, &fewer).is_err(), "what is closed gives no room");
        check_refused(
            1,
            0,
            &[],
            "each chunk has 1 copies on as many servers, and 0 would be left (none)",
        );
    }
}
