use super::*;
use crate::chunk::samples;

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp(millis * 1_000_000)
}

pub(super) fn beat(server: u32, free: u64) -> Heartbeat {
    Heartbeat {
        server: ServerId(server),
        disk: DiskId(u128::from(server)),
        incarnation: 1,
        address: format!("127.0.0.1:{server}"),
        full_inventory: true,
        inventory_more: false,
        replicas: vec![],
        damaged: vec![],
        gone: vec![],
        inventory_digest: None,
        chunk_count: 0,
        used_bytes: 1000 - free,
        free_bytes: free,
        total_bytes: 1000,
        device: 0,
        place: Place::default(),
    }
}

#[test]
fn a_disk_that_several_servers_fill_is_counted_once() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    for (server, device, free) in [(1, 7, 500), (2, 7, 498), (3, 9, 300), (4, 0, 100), (5, 0, 50)] {
        cluster.on_heartbeat(at(0), Heartbeat { device, ..beat(server, free) });
    }
    assert_eq!(cluster.capacity(at(0)), (4000, 498 + 300 + 100 + 50));
    cluster.on_heartbeat(at(60_000), Heartbeat { device: 7, ..beat(1, 500) });
    assert_eq!(cluster.capacity(at(60_000)), (1000, 500), "the others are dead");
}

#[test]
fn rebooted_members_are_left_alone_once_the_others_were_waited_for() {
    let mut cluster = Cluster::new(LivenessProfile::DRILL);
    let chunk = samples::chunk(4, &[1, 2, 3]);
    let replica = |not_current| Replica {
        version: chunk.active.version,
        seq: 1,
        len: 1,
        not_current,
        digest: 0,
    };
    let left = |cluster: &Cluster, millis| {
        cluster.only_rebooted_are_left(at(millis), at(0), 3_000, ChunkId(8), &chunk)
    };
    for millis in [1_000, 2_000, 3_000, 4_000] {
        for server in 1..=3 {
            // The third comes with another disk than the one the chunk was on.
            let disk = samples::member(if server == 3 { 9 } else { server }).disk;
            let full_inventory = millis == 1_000;
            let beat = Heartbeat { disk, full_inventory, ..beat(server, 500) };
            cluster.on_heartbeat(at(millis), beat);
        }
        for server in 1..=2 {
            cluster.on_replica(&samples::member(server), ChunkId(8), replica(true));
        }
        assert!(millis != 2_000 || !left(&cluster, millis), "the third may still come");
    }
    assert!(left(&cluster, 4_001));
    cluster.on_replica(&samples::member(2), ChunkId(8), replica(false));
    assert!(!left(&cluster, 4_001), "one serves");
}

#[test]
fn silence_makes_suspect_then_dead_and_a_heartbeat_alive() {
    let mut cluster = Cluster::new(LivenessProfile::DRILL);
    cluster.on_heartbeat(at(0), beat(1, 500));
    let states: Vec<_> =
        [1_400, 1_500, 3_000, 3_001].map(|ms| cluster.liveness(at(ms), ServerId(1))).into();
    assert_eq!(states, [Liveness::Alive, Liveness::Suspect, Liveness::Suspect, Liveness::Dead]);
    assert!(cluster.on_heartbeat(at(9_000), beat(1, 500)).returned);
    assert_eq!(cluster.liveness(at(9_001), ServerId(1)), Liveness::Alive);
}

#[test]
fn a_closed_connection_is_suspect_at_once_but_an_old_one_is_not_believed() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    cluster.on_heartbeat(at(0), Heartbeat { incarnation: 7, ..beat(1, 500) });
    cluster.on_disconnect(at(0), ServerId(1), 6);
    assert_eq!(cluster.liveness(at(1), ServerId(1)), Liveness::Alive);
    cluster.on_disconnect(at(0), ServerId(1), 7);
    assert_eq!(cluster.liveness(at(1), ServerId(1)), Liveness::Suspect);
}

#[test]
fn a_new_disk_forgets_what_the_old_one_held() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    let replica =
        Replica { version: ChunkVersion(3), seq: 1, len: 1, not_current: false, digest: 0 };
    cluster.on_heartbeat(
        at(0),
        Heartbeat { incarnation: 7, replicas: vec![(ChunkId(1), replica)], ..beat(1, 500) },
    );
    let heard = cluster
        .on_heartbeat(at(1), Heartbeat { disk: DiskId(99), full_inventory: false, ..beat(1, 500) });
    assert!(heard.want_full_inventory);
    assert!(cluster.row(ServerId(1)).unwrap().replicas.is_empty());
    assert!(!cluster.is_up(at(2), &Member { server: ServerId(1), disk: DiskId(1) }));
}

#[test]
fn what_was_written_after_the_last_word_of_all_its_members_is_not_called_lost() {
    let mut cluster = Cluster::new(LivenessProfile::DRILL);
    let record = samples::chunk(1, &[1, 2, 3]);
    let seen = Chunk { stored: true, ..record.clone() };
    (1..=3).for_each(|server| _ = cluster.on_heartbeat(at(0), beat(server, 500)));
    let may_return = |cluster: &Cluster, record: &Chunk| {
        cluster.copies(at(60_000), ChunkId(8), record, false).may_return
    };
    // They died before they told; one that was seen is gone from all that is known of them.
    assert!(may_return(&cluster, &record) && !may_return(&cluster, &seen));
    // Who is here and does not tell of it has not got it.
    (1..=3).for_each(|server| _ = cluster.on_heartbeat(at(60_000), beat(server, 500)));
    assert!(!may_return(&cluster, &record));
}

#[test]
fn what_has_taken_up_a_later_version_counts_as_a_copy() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    (1..=3).for_each(|server| _ = cluster.on_heartbeat(at(0), beat(server, 500)));
    let (chunk, record) = (ChunkId(7), samples::chunk(4, &[1, 2, 3]));
    // Version 5 is being prepared, with all three. The second promised it and has not caught up.
    for (server, version, not_current) in [(1, 5, false), (2, 5, true), (3, 3, false)] {
        let version = ChunkVersion(version);
        let replica = Replica { version, seq: 1, len: 1, not_current, digest: 0 };
        cluster.on_replica(&samples::member(server), chunk, replica);
    }
    assert_eq!(cluster.copies(at(1), chunk, &record, false).good, 1);
}

#[test]
fn copies_count_in_the_block_of_which_the_fewest_are_good() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    let chunk = ChunkId(7);
    let replica =
        Replica { version: ChunkVersion(1), seq: 1, len: 1, not_current: false, digest: 0 };
    let record = samples::chunk(1, &[1, 2, 3]);
    let mut tell = |server, blocks: &[u32], whole| {
        let damage = Damage { blocks: blocks.to_vec(), whole };
        let damaged = (damage != Damage::default()).then_some((chunk, damage));
        let beat = Heartbeat {
            full_inventory: false,
            replicas: vec![(chunk, replica)],
            damaged: damaged.into_iter().collect(),
            ..beat(server, 500)
        };
        cluster.on_heartbeat(at(0), beat);
        cluster.copies(at(1), chunk, &record, false).good
    };
    assert_eq!([tell(1, &[], false), tell(2, &[], false), tell(3, &[], false)], [1, 2, 3]);
    assert_eq!(tell(1, &[4], false), 2);
    assert_eq!(tell(2, &[5, 9], false), 2, "each block is good on two of them");
    assert_eq!(tell(3, &[5], false), 1);
    assert_eq!(tell(1, &[5], false), 0);
    assert_eq!(tell(2, &[], true), 0);
    assert_eq!(tell(1, &[], false), 1);
    assert_eq!([tell(2, &[], false), tell(3, &[], false)], [2, 3], "what is mended counts");
}

#[test]
fn an_inventory_in_pages_is_complete_with_its_last_one() {
    let mut cluster = Cluster::new(LivenessProfile::STANDARD);
    let replica =
        Replica { version: ChunkVersion(1), seq: 1, len: 1, not_current: false, digest: 0 };
    let page = |from: u64, count: usize| {
        (from..).map(|n| (ChunkId(n), replica)).take(count).collect::<Vec<_>>()
    };
    let first =
        Heartbeat { inventory_more: true, replicas: page(0, INVENTORY_PAGE), ..beat(1, 500) };
    assert!(!cluster.on_heartbeat(at(0), first).want_full_inventory, "it is on its way");
    assert!(!cluster.row(ServerId(1)).unwrap().inventory_complete);
    let between = Heartbeat { full_inventory: false, inventory_more: true, ..beat(1, 500) };
    cluster.on_heartbeat(at(1), between);
    assert!(!cluster.row(ServerId(1)).unwrap().inventory_complete, "more is to come");
    let last = Heartbeat { full_inventory: false, replicas: page(1 << 20, 5), ..beat(1, 500) };
    cluster.on_heartbeat(at(1), last);
    let row = cluster.row(ServerId(1)).unwrap();
    assert!(row.inventory_complete && row.replicas.len() == INVENTORY_PAGE + 5);
}

#[test]
fn what_a_server_in_maintenance_holds_is_awaited_while_it_is_away() {
    let mut cluster = Cluster::new(LivenessProfile::DRILL);
    let replica =
        Replica { version: ChunkVersion(1), seq: 1, len: 1, not_current: false, digest: 0 };
    cluster
        .on_heartbeat(at(0), Heartbeat { replicas: vec![(ChunkId(1), replica)], ..beat(1, 500) });
    let wished = [(ServerId(1), vec![OverlayKind::Maintenance])];
    cluster.set_overlays(wished.into_iter().collect());
    assert!(!cluster.awaits_maintenance(at(1), ChunkId(1)), "it is here");
    assert!(cluster.awaits_maintenance(at(9_000), ChunkId(1)));
    assert!(!cluster.awaits_maintenance(at(9_000), ChunkId(2)), "it does not hold it");
    cluster.set_overlays(BTreeMap::new());
    assert!(!cluster.awaits_maintenance(at(9_000), ChunkId(1)));
}

#[test]
fn a_profile_must_leave_room_for_three_beats() {
    let tight = LivenessProfile { interval_ms: 1000, dead_after_ms: 2999, rebuild_delay_ms: 0 };
    assert!(tight.check().is_err());
    assert!(LivenessProfile::named("drill").unwrap().check().is_ok());
    assert!(LivenessProfile::named("calm").unwrap_err().to_string().contains("calm"));
}

#[test]
fn a_server_that_is_being_registered_is_not_dead() {
    let mut cluster = Cluster::new(LivenessProfile::DRILL);
    assert_eq!(cluster.liveness(at(9_000), ServerId(1)), Liveness::Dead);
    cluster.introduce(at(9_000), ServerId(1));
    let states = [9_000, 12_000, 12_001].map(|ms| cluster.liveness(at(ms), ServerId(1)));
    assert_eq!(states, [Liveness::Suspect, Liveness::Suspect, Liveness::Dead]);
    cluster.on_heartbeat(at(13_000), beat(1, 500));
    assert_eq!(cluster.liveness(at(13_000), ServerId(1)), Liveness::Alive);
    // Nobody introduces it again.
    cluster.forget(ServerId(1));
    assert_eq!(cluster.liveness(at(13_000), ServerId(1)), Liveness::Dead);
}
