//! What must hold in every state, by the numbers of DESIGN §11, and what must be reached so that a clean
//! run means something.

use stateright::Property;

use crate::protocol::ChunkModel;
use crate::scenarios::Bounds;
use crate::state::{OPS, SERVERS, State, TORN, flag};

pub(crate) const I6: &str = "I6 versions rise and promises never fall";
pub(crate) const I7: &str =
    "I7 a configuration comes from the last activated one, nothing is acknowledged before Activate";
pub(crate) const I8: &str = "I8 a stable operation is on disk on every active member";
pub(crate) const I9: &str = "I9 equal version and sequence mean equal bytes";
pub(crate) const I10: &str = "I10 no operation is in a log twice";
pub(crate) const I11: &str =
    "I11 an operation follows those that were stable before its submission";
pub(crate) const I12: &str = "I12 nothing read or acknowledged is undone";
pub(crate) const IN_MEMORY: &str = "an acknowledged operation is in memory on every active member that did not lose it in a reboot";
pub(crate) const KEPT: &str = "an operation whose arena slot is free is never gone from the chunk";
pub(crate) const I21: &str = "I21 a member that serves has no torn operation";

/// Properties, of which those with `sometimes` must be reached within `bounds`.
pub(crate) fn all(bounds: &Bounds) -> Vec<Property<ChunkModel>> {
    let mut properties = vec![
        Property::always(I6, |_, state: &State| {
            state.flags & flag::PROMISE_FELL == 0
                && state.active <= state.attempt
                && state.servers.iter().all(|server| server.version <= server.promise)
        }),
        Property::always(I7, |_, state: &State| {
            state.flags & (flag::FOREIGN_MEMBERS | flag::EARLY_ACK) == 0
        }),
        Property::always(I8, |_, state: &State| stable_on_every_active_member(state)),
        Property::always(I9, |_, state: &State| equal_positions_are_equal(state)),
        Property::always(I10, |_, state: &State| no_operation_twice(state)),
        Property::always(I11, |_, state: &State| order_is_kept(state)),
        Property::always(I12, |model: &ChunkModel, state: &State| {
            state.flags & flag::UNDONE == 0 && reads_show_all_observed(model, state)
        }),
        Property::always(IN_MEMORY, |_, state: &State| acknowledged_in_memory(state)),
        Property::always(KEPT, |_, state: &State| {
            let log = state.config(state.active).sent;
            (1..=state.submitted).all(|op| state.freed >> op & 1 == 0 || log.contains(op))
        }),
        Property::always(I21, |_, state: &State| {
            state.servers.iter().all(|server| server.not_current || !server.log.contains(TORN))
        }),
        Property::sometimes("every operation is stable", |model: &ChunkModel, state: &State| {
            all_freed(model, state)
        }),
    ];
    if bounds.versions > 1 {
        properties.push(Property::sometimes(
            "the last version leads to the end",
            |model: &ChunkModel, state: &State| {
                state.active == model.bounds.versions && all_freed(model, state)
            },
        ));
    }
    if bounds.versions > 2 {
        properties.push(Property::sometimes(
            "an attempt is abandoned for a higher version",
            |model: &ChunkModel, state: &State| {
                state.active + 1 < state.attempt && all_freed(model, state)
            },
        ));
    }
    if bounds.reboots > 0 {
        properties.push(Property::sometimes(
            "a rebooted member waits for adoption",
            |_, state: &State| {
                state.servers.iter().any(|server| server.not_current) && state.observed.len() > 0
            },
        ));
    }
    if bounds.disk_losses > 0 {
        properties.push(Property::sometimes(
            "a server that lost its disk is a member again",
            |model: &ChunkModel, state: &State| {
                state.disk_losses_left < model.bounds.disk_losses
                    && all_freed(model, state)
                    && state.config(state.active).members == model.bounds.members
                    && active_members(state)
                        .all(|server| state.servers[server].version == state.active)
            },
        ));
    }
    if bounds.forces > 0 {
        properties
            .push(Property::sometimes("the chunk goes on after the wait", |_, state: &State| {
                state.forced > 0
            }));
    }
    properties
}

fn all_freed(model: &ChunkModel, state: &State) -> bool {
    state.freed.count_ones() == u32::from(model.bounds.ops)
}

fn active_members(state: &State) -> impl Iterator<Item = usize> {
    let members = state.config(state.active).members;
    (0..SERVERS).filter(move |&server| members >> server & 1 == 1)
}

fn stable_on_every_active_member(state: &State) -> bool {
    active_members(state).all(|server| {
        let replica = &state.servers[server];
        let on_disk = replica.log.prefix(replica.synced);
        // A lower version is an emptied disk, which holds nothing and never counts.
        replica.version < state.active
            || (1..=state.submitted).all(|op| state.freed >> op & 1 == 0 || on_disk.contains(op))
    })
}

fn equal_positions_are_equal(state: &State) -> bool {
    let servers = &state.servers;
    (0..SERVERS).all(|a| {
        (0..a).all(|b| {
            let shorter = servers[a].log.len().min(servers[b].log.len());
            servers[a].version != servers[b].version
                || servers[a].log.prefix(shorter) == servers[b].log.prefix(shorter)
        })
    })
}

fn no_operation_twice(state: &State) -> bool {
    state.servers.iter().all(|server| {
        let log = server.log;
        (0..log.len()).all(|index| {
            log.get(index).is_none_or(|op| op == TORN || log.position(op) == Some(index))
        })
    })
}

fn order_is_kept(state: &State) -> bool {
    active_members(state).all(|server| {
        let log = state.servers[server].log;
        (1..=OPS).zip(1u8..).all(|(number, op)| {
            let before = state.after[number - 1];
            log.position(op).is_none_or(|index| {
                (1..=state.submitted).all(|earlier| {
                    before >> earlier & 1 == 0 || log.position(earlier).is_some_and(|at| at < index)
                })
            })
        })
    })
}

fn reads_show_all_observed(model: &ChunkModel, state: &State) -> bool {
    active_members(state).all(|server| {
        let replica = &state.servers[server];
        replica.version != state.active
            || !model.serves_reads(state, server)
            || replica.log.starts_with(state.observed)
    })
}

fn acknowledged_in_memory(state: &State) -> bool {
    active_members(state).all(|server| {
        let replica = &state.servers[server];
        // A higher version may hold a shorter log if the loss is excused there; a lower one is an emptied disk.
        replica.version != state.active || {
            let kept = state.observed.len().min(replica.lost_from);
            replica.log.starts_with(state.observed.prefix(kept))
        }
    })
}
