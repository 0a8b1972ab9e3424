//! Which reported replicas nobody needs: of members that were replaced while they were away, of learners of attempts
//! that came to nothing, and of chunks that are gone.
//!
//! Whoever is in the last activated configuration, or is being prepared, is never named, and nobody is while the chunk
//! could still use the replica: fewer members than wanted, or one that is not up with the present version. An order to
//! delete names the first version that is not meant, so that one that arrives late does not reach a replica that was
//! made a learner meanwhile.

use crate::chunk::{Chunk, Garbage, Member};
use crate::ids::{ChunkId, ChunkVersion};

/// What is in the map under the chunk's id.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    Chunk(&'a Chunk),
    Garbage(&'a Garbage),
    /// Nothing; ids below this one were given out.
    Nothing {
        next_chunk: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surplus {
    /// To be deleted unless it promised this version or a higher one.
    Stale { below: ChunkVersion },
    /// The map knows nothing of the chunk any more.
    Orphan,
}

/// Whether `holder`'s replica of `chunk` can go.
#[must_use]
pub fn surplus(
    chunk: ChunkId,
    holder: &Member,
    known: Known<'_>,
    members_wanted: usize,
    is_current: impl Fn(&Member, ChunkVersion) -> bool,
) -> Option<Surplus> {
    match known {
        Known::Chunk(record) => {
            let active = &record.active;
            let needed = active.members.contains(holder)
                || record.preparing.is_some()
                || active.members.len() < members_wanted
                || !active.members.iter().all(|member| is_current(member, active.version));
            (!needed).then_some(Surplus::Stale { below: record.next_version })
        }
        // Members are told with the garbage itself.
        Known::Garbage(garbage) => (!garbage.members.contains(holder))
            .then_some(Surplus::Stale { below: ChunkVersion(u64::MAX) }),
        // An id that was never given out is another file system's past, or the future of a map that was lost.
        Known::Nothing { next_chunk } => (chunk.0 < next_chunk).then_some(Surplus::Orphan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Preparing;
    use crate::chunk::samples::{chunk, member};
    use crate::ids::{DiskId, ServerId};

    const CHUNK: ChunkId = ChunkId(7);

    fn whole() -> Chunk {
        Chunk { next_version: ChunkVersion(6), ..chunk(4, &[1, 2, 3]) }
    }

    fn of(record: &Chunk, holder: u32, wanted: usize, behind: Option<u32>) -> Option<Surplus> {
        surplus(CHUNK, &member(holder), Known::Chunk(record), wanted, |m, version| {
            version == record.active.version && Some(m.server.0) != behind
        })
    }

    #[test]
    fn only_who_is_not_needed_is_named() {
        let whole = whole();
        assert_eq!(of(&whole, 4, 3, None), Some(Surplus::Stale { below: ChunkVersion(6) }));
        for holder in 1..=3 {
            assert_eq!(of(&whole, holder, 3, None), None, "a member");
        }
        assert_eq!(of(&whole, 4, 4, None), None, "it may become the fourth");
        assert_eq!(of(&whole, 4, 3, Some(2)), None, "the second may be lost");
        let members = vec![member(1), member(2)];
        let preparing =
            Preparing { version: ChunkVersion(5), members, learner: None, after_wait: false };
        let prepared = Chunk { preparing: Some(preparing), ..whole };
        assert_eq!(of(&prepared, 4, 3, None), None, "a change is under way");
    }

    #[test]
    fn the_same_server_with_another_disk_is_another_holder() {
        let other = Member { server: ServerId(1), disk: DiskId(99) };
        let found = surplus(CHUNK, &other, Known::Chunk(&whole()), 3, |_, _| true);
        assert_eq!(found, Some(Surplus::Stale { below: ChunkVersion(6) }));
    }

    #[test]
    fn of_a_chunk_that_is_gone_members_go_with_the_garbage_and_others_so() {
        let garbage = Garbage { members: vec![member(1)], version: ChunkVersion(4) };
        let of = |holder| surplus(CHUNK, &member(holder), Known::Garbage(&garbage), 3, |_, _| true);
        assert_eq!(of(1), None);
        assert_eq!(of(2), Some(Surplus::Stale { below: ChunkVersion(u64::MAX) }));
        let unknown =
            |next_chunk| surplus(CHUNK, &member(1), Known::Nothing { next_chunk }, 3, |_, _| true);
        assert_eq!((unknown(8), unknown(7)), (Some(Surplus::Orphan), None));
    }
}
