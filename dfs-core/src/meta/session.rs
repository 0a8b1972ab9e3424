//! Exactly once: which command is new, which was answered before, and what is kept to know it.

use super::transaction::{Answer, Transaction};
use super::{Client, Key, MetaStore, Record, read};
use crate::command::{Command, Outcome};
use crate::ids::{ClientId, OpId};
use crate::namespace::{NAME_BYTES_MAX, NamespaceError};
use crate::results::Results;

/// Most recorded results of one client that it does not have; more are refused with `Busy`, none is ever evicted (DECISIONS 4). Only the
/// client's oldest operation, with its parts, is taken beyond: were it refused too, its mark could never rise.
pub const OUTSTANDING_MAX: u32 = 1024;
/// Most parts of one operation.
pub const PARTS_MAX: u32 = 2;

/// What to record the outcome under. `None`: nothing is recorded.
pub(super) type Admitted = Option<(OpId, Client)>;

/// What becomes of a command.
pub(super) enum Admission {
    Apply(Admitted),
    Answered(Box<Outcome>),
}

impl Admission {
    fn refused(error: NamespaceError) -> Self {
        Self::Answered(Box::new(Outcome::Refused(error)))
    }
}

/// Whether the command is to be applied.
///
/// Results that the client says it has are dropped first, so that a client at the limit can go on.
pub(super) fn admit(store: &mut dyn MetaStore, command: &Command) -> Admission {
    let Some(id) = command.id else { return Admission::Apply(None) };
    if command.change.is_of_sessions() {
        return Admission::Apply(None);
    }
    let Some(mut client) = read::client(store, id.client) else {
        return Admission::refused(NamespaceError::NoSession);
    };
    if client.fenced {
        return Admission::refused(NamespaceError::NoSession);
    }
    if let Some(outcome) = read::reply(store, id) {
        return Admission::Answered(Box::new(outcome));
    }
    if client.results.has(id.op) {
        return Admission::refused(NamespaceError::OutcomeUnknown);
    }
    // Who asks for a result does not have it, whatever it says.
    drop_replies(store, id.client, &mut client, &command.results.silent_about(id.op));
    let is_oldest = id.op <= command.results.low_water();
    if OUTSTANDING_MAX <= client.reply_count && !is_oldest {
        store.put(Key::Client(id.client), Record::Client(client));
        return Admission::refused(NamespaceError::Busy);
    }
    Admission::Apply(Some((id, client)))
}

/// Records the outcome of an admitted command.
pub(super) fn record(store: &mut dyn MetaStore, admitted: Admitted, outcome: &Outcome) {
    let Some((id, mut client)) = admitted else { return };
    client.reply_count += 1;
    store.put(Key::Client(id.client), Record::Client(client));
    store.put(Key::Reply(id.client, id.op, id.part), Record::Reply(outcome.clone()));
}

fn drop_replies(store: &mut dyn MetaStore, id: ClientId, client: &mut Client, said: &Results) {
    let results = client.results.joined(said);
    if results == client.results {
        return;
    }
    // Below what was said before nothing is kept but what was awaited then.
    let awaited = client.results.awaited().iter().filter(|op| results.has(**op));
    let pieces = awaited.map(|op| (*op, op + 1)).chain([(client.results.below(), results.below())]);
    for (first, below) in pieces.filter(|(first, below)| first < below) {
        // All of them: their number is limited when they are made.
        let found = store.range(&Key::Reply(id, first, 0), &Key::Reply(id, below, 0), usize::MAX);
        for (key, _) in found {
            if matches!(key, Key::Reply(_, op, _) if results.has(op)) {
                store.delete(&key);
                client.reply_count = client.reply_count.saturating_sub(1);
            }
        }
    }
    client.results = results;
}

/// Registers a client; known already: nothing happens.
pub(super) fn begin_client(transaction: &mut Transaction<'_>, id: ClientId, name: &str) -> Answer {
    if NAME_BYTES_MAX < name.len() {
        return Err(NamespaceError::NameTooLong);
    }
    match read::client(transaction.store, id) {
        Some(client) if client.fenced => return Err(NamespaceError::NoSession),
        Some(_) => {}
        None => {
            let client = Client {
                name: name.to_owned(),
                began: transaction.now,
                results: Results::default(),
                reply_count: 0,
                fenced: false,
            };
            transaction.store.put(Key::Client(id), Record::Client(client));
        }
    }
    Ok(Outcome::Done)
}

/// Refuses a client from now on. Unknown: nothing happens.
pub(super) fn fence_client(transaction: &mut Transaction<'_>, id: ClientId) -> Answer {
    if let Some(client) = read::client(transaction.store, id) {
        let client = Client { fenced: true, ..client };
        transaction.store.put(Key::Client(id), Record::Client(client));
    }
    Ok(Outcome::Done)
}

/// Ends a client: registration, results and locks go. Unknown already: nothing happens.
pub(super) fn end_client(transaction: &mut Transaction<'_>, id: ClientId) -> Answer {
    if read::client(transaction.store, id).is_none() {
        return Ok(Outcome::Done);
    }
    transaction.store.delete(&Key::Client(id));
    let below = Key::Reply(id, u64::MAX, u32::MAX);
    for (key, _) in transaction.store.range(&Key::Reply(id, 0, 0), &below, usize::MAX) {
        transaction.store.delete(&key);
    }
    transaction.store.delete(&below);
    Ok(if transaction.end_locks_of(id) { Outcome::LockChanged } else { Outcome::Done })
}
