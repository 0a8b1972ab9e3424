//! Answers of people's questions about the data: where a file's chunks are and why, and what would happen if servers
//! died.

use std::collections::BTreeSet;
use std::sync::Arc;

use dfs_core::chunk::Chunk;
use dfs_core::cluster::{Liveness, LivenessProfile};
use dfs_core::exposure::{Lens, Totals, takes_new_chunks};
use dfs_core::ids::{BadServerId, ChunkId, InodeNo, ServerId};
use dfs_core::meta::{self, Key, MetaStore as _, Record};
use dfs_core::plan::rebuild::hold_of;
use dfs_core::whatif::{Times, doing, held, times};
use dfs_proto::control::{
    ChunkTotals, ExplainReply, ExplainRequest, ExplainedChunk, ExplainedMember, IfDied,
    ProfileTimes, WhatIfReply, WhatIfRequest,
};
use tonic::Status;

use crate::state::{Master, lock, now};

/// Chunks explained in one answer.
const EXPLAINED_MAX: usize = 500;
const KILLED_MAX: usize = 1000;

pub(crate) fn wire_totals(totals: Totals) -> ChunkTotals {
    let Totals { total, safe, degraded, endangered, unavailable, lost } = totals;
    ChunkTotals { total, safe, degraded, endangered, unavailable, lost }
}

fn registered(master: &Master) -> BTreeSet<ServerId> {
    meta::servers(&master.reader()).into_iter().map(|(server, _)| server).collect()
}

fn list(servers: &BTreeSet<ServerId>) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Predicts; changes nothing.
pub(crate) fn what_if(
    master: &Arc<Master>,
    request: &WhatIfRequest,
) -> Result<WhatIfReply, Status> {
    if request.kill.len() > KILLED_MAX {
        return Err(Status::invalid_argument(format!("more than {KILLED_MAX} servers named")));
    }
    let killed: Result<BTreeSet<ServerId>, BadServerId> =
        request.kill.iter().map(|name| name.parse()).collect();
    let killed = killed.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let known = registered(master);
    if let Some(unknown) = killed.iter().find(|server| !known.contains(server)) {
        return Err(Status::not_found(format!(
            "{unknown} is no server of this cluster; its servers are {}",
            if known.is_empty() { "none".to_owned() } else { list(&known) }
        )));
    }
    if master.is_warming() {
        return Err(Status::unavailable(
            "the master warms up: servers may not have told yet what they hold; ask again in a few seconds",
        ));
    }
    let before = master.survey(&BTreeSet::new());
    let after = master.survey(&killed);
    let min_replicas = master.min_replicas as usize;
    let (new_files, hold) = {
        let cluster = lock(&master.cluster);
        let (now, replication) = (now(), master.replication as usize);
        let lens = Lens { now, replication, without: &killed };
        (takes_new_chunks(&cluster, &lens, min_replicas), hold_of(&cluster, now, &killed))
    };
    let profile = master.config.profile;
    let named = [
        ("standard", LivenessProfile::STANDARD),
        ("drill", LivenessProfile::DRILL),
        ("router", LivenessProfile::ROUTER),
    ];
    let own = named.iter().all(|(_, known)| *known != profile).then_some(("custom", profile));
    let profiles = named.into_iter().chain(own).map(|(name, of)| {
        let Times { hang_noticed_ms, dead_ms, copies_begin_ms } = times(of);
        ProfileTimes {
            name: name.to_owned(),
            current: of == profile,
            hang_noticed_ms,
            dead_ms,
            copies_begin_ms,
        }
    });
    Ok(WhatIfReply {
        before: Some(wire_totals(before.totals)),
        after: Some(wire_totals(after.totals)),
        chunks_not_writable: after.unwritable,
        new_chunks: new_files,
        bytes_to_copy: after.backlog_bytes,
        copy_rate: lock(&master.surveyed).exposure.last_copy_rate(),
        profiles: profiles.collect(),
        hold: hold.map(|hold| hold.to_string()).unwrap_or_default(),
    })
}

pub(crate) fn explain(master: &Arc<Master>, request: &ExplainRequest) -> ExplainReply {
    let ino = InodeNo(request.inode);
    let found = master.reader().range(
        &Key::FileChunk(ino, request.first),
        &Key::FileChunk(InodeNo(ino.0 + 1), 0),
        EXPLAINED_MAX,
    );
    let next = match (found.len() < EXPLAINED_MAX, found.last()) {
        (false, Some((Key::FileChunk(_, index), _))) => Some(index + 1),
        _ => None,
    };
    let chunks = found.into_iter().filter_map(|(key, record)| match (key, record) {
        (Key::FileChunk(..), Record::FileChunk(chunk)) => {
            Some(explain_chunk(master, chunk, &master.chunk(chunk)?))
        }
        _ => None,
    });
    ExplainReply {
        chunks: chunks.collect(),
        next,
        replication: master.replication,
        min_replicas: master.min_replicas,
        warming: master.is_warming(),
    }
}

fn explain_chunk(master: &Master, chunk: ChunkId, record: &Chunk) -> ExplainedChunk {
    let (replication, min_replicas) = (master.replication as usize, master.min_replicas as usize);
    let unreported = master.was_written_lately(chunk);
    let exposed_since = lock(&master.surveyed).exposure.exposed_since(chunk);
    let (cluster, now) = (lock(&master.cluster), now());
    let nobody = BTreeSet::new();
    let looked =
        Lens { now, replication, without: &nobody }.look(&cluster, chunk, record, unreported);
    let members = record.active.members.iter().map(|member| {
        let row = cluster.row(member.server);
        let state = match cluster.liveness(now, member.server) {
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
        };
        ExplainedMember {
            server: member.server.to_string(),
            state: state.to_owned(),
            last_heartbeat_ms_ago: row.map_or(-1, |row| {
                i64::try_from(now.nanos_since(row.heard_at) / 1_000_000).unwrap_or(i64::MAX)
            }),
            replica: if lock(&master.refusals).is_refused(member) {
                "older-copy".to_owned()
            } else {
                held(&cluster, chunk, record, member, unreported).name().to_owned()
            },
            zone: row.map(|row| row.place.zone.clone()).unwrap_or_default(),
            host: row.map(|row| row.place.host.clone()).unwrap_or_default(),
        }
    });
    let if_died = record.active.members.iter().map(|member| {
        let without = BTreeSet::from([member.server]);
        let lens = Lens { now, replication, without: &without };
        let looked = lens.look(&cluster, chunk, record, unreported);
        IfDied {
            server: member.server.to_string(),
            safety: looked.safety.name().to_owned(),
            writable: min_replicas <= looked.copies.writable,
        }
    });
    ExplainedChunk {
        index: record.index,
        id: chunk.0,
        version: record.active.version.0,
        bytes: looked.len,
        safety: looked.safety.name().to_owned(),
        writable: min_replicas <= looked.copies.writable,
        exposed_ms: exposed_since
            .filter(|_| looked.copies.good < replication)
            .map(|since| now.nanos_since(since) / 1_000_000),
        primary: record.active.primary.to_string(),
        members: members.collect(),
        doing: doing(&cluster, now, record, looked.copies, replication, exposed_since).to_string(),
        if_died: if_died.collect(),
    }
}
