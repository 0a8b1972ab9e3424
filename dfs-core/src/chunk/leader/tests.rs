use super::*;

const ME: ServerId = ServerId(1);
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

fn leader() -> Leader<u32> {
    Leader::new(ME, &[ME, ServerId(2), ServerId(3)], 8192, 0, false)
}

fn write(leader: &mut Leader<u32>, counter: u64, waiter: u32) -> u64 {
    let step = Step::Write { offset: 10 * counter, len: 10 };
    leader.begin(Timestamp(0), step, ClientId(9), counter, Promised::Mutated, Some(waiter)).unwrap()
}

fn append(leader: &mut Leader<u32>, counter: u64, len: u64, waiter: u32) -> u64 {
    let wish = Wish::Append { len, record: true, at_least: 0 };
    let Plan::Apply { step, append: Some((offset, appended)) } = leader.plan(wish, false) else {
        panic!("{:?}", leader.plan(wish, false))
    };
    let promised = Promised::Appended { offset, appended, carried: 0, sealed: false };
    leader.begin(Timestamp(0), step, ClientId(9), counter, promised, Some(waiter)).unwrap()
}

fn replies(effects: Vec<Effect<u32>>) -> Vec<(u32, Answer)> {
    let mut found = Vec::new();
    for effect in effects {
        if let Effect::Reply(waiter, answer) = effect {
            found.push((waiter, answer));
        }
    }
    found
}

fn syncs(effects: &[Effect<u32>]) -> Vec<u64> {
    let mut found = Vec::new();
    for effect in effects {
        if let Effect::Sync { up_to } = effect {
            found.push(*up_to);
        }
    }
    found
}

#[test]
fn a_write_is_acknowledged_by_the_last_member_in_any_order() {
    let mut leader = leader();
    write(&mut leader, 1, 100);
    write(&mut leader, 2, 200);
    let t = Timestamp(0);
    assert!(replies(leader.on_applied(t, ServerId(3), 2)).is_empty());
    assert!(replies(leader.on_applied(t, ServerId(2), 1)).is_empty());
    assert_eq!(replies(leader.on_applied(t, ME, 2)), [(100, Answer::Mutated { seq: 1, len: 20 })]);
    assert_eq!(leader.uncommitted_over(0, 20), None);
    assert_eq!(leader.uncommitted_over(0, 21), Some(2));
    assert_eq!(
        replies(leader.on_applied(t, ServerId(2), 2)),
        [(200, Answer::Mutated { seq: 2, len: 30 })]
    );
    assert_eq!((leader.committed(), leader.committed_len(), leader.stable()), (2, 30, 0));
}

#[test]
fn an_append_is_answered_only_when_it_is_on_every_disk() {
    let mut leader = leader();
    let t = Timestamp(0);
    append(&mut leader, 1, 100, 7);
    assert!(syncs(&leader.on_applied(t, ServerId(2), 1)).is_empty());
    // Applied here: everybody may sync.
    assert_eq!(syncs(&leader.on_applied(t, ME, 1)), [1]);
    assert!(leader.on_synced(t, ME, 1).is_empty());
    assert!(replies(leader.on_synced(t, ServerId(2), 1)).is_empty());
    assert!(replies(leader.on_applied(t, ServerId(3), 1)).is_empty());
    assert_eq!(
        replies(leader.on_synced(t, ServerId(3), 1)),
        [(7, Answer::Appended { seq: 1, offset: 0, appended: 100, carried: 0, sealed: false })]
    );
}

#[test]
fn syncs_that_come_while_one_runs_share_the_next() {
    let mut leader = leader();
    let t = Timestamp(0);
    for (counter, waiter) in [(1, 1), (2, 2), (3, 3)] {
        write(&mut leader, counter, 0);
        for server in [ME, ServerId(2), ServerId(3)] {
            leader.on_applied(t, server, counter);
        }
        assert_eq!(syncs(&leader.on_sync(t, waiter)).len(), usize::from(counter == 1));
    }
    let mut effects = Vec::new();
    for server in [ME, ServerId(2), ServerId(3)] {
        effects.extend(leader.on_synced(t, server, 1));
    }
    assert_eq!(syncs(&effects), [3]);
    assert_eq!(replies(effects), [(1, Answer::Synced { seq: 1, len: 40 })]);
    effects = Vec::new();
    for server in [ME, ServerId(2), ServerId(3)] {
        effects.extend(leader.on_synced(t, server, 3));
    }
    let synced = Answer::Synced { seq: 3, len: 40 };
    assert_eq!(replies(effects), [(2, synced.clone()), (3, synced.clone())]);
    // Nothing to do: answered at once.
    assert_eq!(replies(leader.on_sync(t, 9)), [(9, synced)]);
}

#[test]
fn who_comes_when_it_has_failed_is_not_kept_waiting() {
    let mut leader = leader();
    write(&mut leader, 1, 1);
    assert_eq!(leader.check(10, false), Verdict::Go);
    // Between the check and the number, on another thread.
    let failure = MemberFailure { server: ServerId(2), reason: "gone".to_owned() };
    assert_eq!(replies(leader.on_failed(failure.clone())).len(), 1);
    let step = Step::Write { offset: 20, len: 10 };
    let late = leader.begin(Timestamp(0), step, ClientId(9), 2, Promised::Mutated, Some(2));
    assert_eq!(late, Err(Refused { failure: failure.clone(), waiter: Some(2) }));
    assert_eq!(leader.join(ClientId(9), 1, 3), Joined::Failed(failure, 3));
    assert_eq!(leader.last(), 1);
}

#[test]
fn after_a_failure_nothing_is_acknowledged() {
    let mut leader = leader();
    let t = Timestamp(0);
    write(&mut leader, 1, 1);
    append(&mut leader, 2, 10, 2);
    leader.on_applied(t, ME, 2);
    let failure = MemberFailure { server: ServerId(3), reason: "gone".to_owned() };
    let answers = replies(leader.on_failed(failure.clone()));
    let failed = Answer::Failed(failure.clone());
    assert_eq!(answers, [(1, failed.clone()), (2, failed.clone())]);
    assert!(leader.on_failed(failure.clone()).is_empty(), "reported once");
    for server in [ServerId(2), ServerId(3)] {
        assert!(leader.on_applied(t, server, 2).is_empty());
        assert!(leader.on_synced(t, server, 2).is_empty());
    }
    assert_eq!(leader.check(1, false), Verdict::Failed(failure));
    assert_eq!(replies(leader.on_sync(t, 3)), [(3, failed)]);
    // What was never acknowledged is not served.
    assert_eq!(leader.uncommitted_over(10, 11), Some(1));
}

#[test]
fn a_repeated_operation_in_flight_is_answered_together_with_the_first() {
    let mut leader = leader();
    let t = Timestamp(0);
    write(&mut leader, 1, 1);
    assert_eq!(leader.join(ClientId(9), 1, 2), Joined::Waits);
    assert_eq!(leader.join(ClientId(9), 2, 3), Joined::NotInFlight(3));
    assert_eq!(leader.join(ClientId(8), 1, 3), Joined::NotInFlight(3));
    for server in [ServerId(2), ServerId(3)] {
        leader.on_applied(t, server, 1);
    }
    let answer = Answer::Mutated { seq: 1, len: 20 };
    assert_eq!(replies(leader.on_applied(t, ME, 1)), [(1, answer.clone()), (2, answer)]);
}

#[test]
fn the_window_bounds_operations_and_bytes() {
    let mut leader = Leader::<u32>::new(ME, &[ME, ServerId(2)], 256 << 20, 0, false);
    for counter in 0..WINDOW_OPS as u64 {
        assert_eq!(leader.check(1, false), Verdict::Go);
        write(&mut leader, counter, 0);
    }
    assert_eq!(leader.check(1, false), Verdict::Later);
    let mut leader = Leader::<u32>::new(ME, &[ME, ServerId(2)], 256 << 20, 0, false);
    assert_eq!(leader.check(WINDOW_BYTES * 2, false), Verdict::Go, "one is always taken");
    let step = Step::Write { offset: 0, len: WINDOW_BYTES };
    leader.begin(Timestamp(0), step, ClientId(9), 1, Promised::Mutated, None).unwrap();
    assert_eq!(leader.check(1, false), Verdict::Later);
    for server in [ME, ServerId(2)] {
        leader.on_applied(Timestamp(0), server, 1);
    }
    assert_eq!(leader.check(1, false), Verdict::Go);
    assert_eq!(leader.check(1, true), Verdict::Later);
}

#[track_caller]
fn check_plan(len: u64, wish: Wish, expected: Plan) {
    let leader = Leader::<u32>::new(ME, &[ME], 8192, len, false);
    assert_eq!(leader.plan(wish, false), expected);
}

#[test]
fn appends_go_to_the_end_split_or_seal() {
    let plain = |len, at_least| Wish::Append { len, record: false, at_least };
    let record = |len| Wish::Append { len, record: true, at_least: 0 };
    let cut = |offset, len, asked| Plan::Apply {
        step: Step::Write { offset, len },
        append: Some((offset, asked)),
    };
    let at = |offset, len| cut(offset, len, len);
    check_plan(100, plain(50, 0), at(100, 50));
    check_plan(100, plain(50, 4096), at(4096, 50));
    check_plan(8000, plain(500, 0), cut(8000, 192, 500));
    check_plan(8192, plain(1, 0), Plan::Full);
    check_plan(100, plain(50, 8193), Plan::Invalid("append beyond the end of the chunk"));
    check_plan(6144, record(2048), at(6144, 2048));
    check_plan(6145, record(2048), Plan::PadAndSeal { pad_to: 8192 });
    check_plan(0, record(2049), Plan::Invalid("record longer than recordMax"));
    let full = Leader::<u32>::new(ME, &[ME], 8192, 100, false);
    assert_eq!(full.plan(record(1), true), Plan::PadAndSeal { pad_to: 8192 });
    assert_eq!(full.plan(plain(1, 0), true), at(100, 1), "no list is kept of these");
    let mut sealed = Leader::<u32>::new(ME, &[ME], 8192, 10, false);
    sealed.begin(Timestamp(0), Step::Seal, ClientId(9), 1, Promised::Full, None).unwrap();
    assert_eq!(sealed.plan(record(1), false), Plan::Full);
    assert_eq!(sealed.plan(record(1), true), Plan::Full);
    assert_eq!(sealed.plan(plain(1, 0), false), Plan::Full);
}

#[test]
fn nothing_reaches_beyond_the_chunk() {
    let invalid = Plan::Invalid("write beyond the end of the chunk");
    check_plan(0, Wish::Write { offset: 8192, len: 1 }, invalid.clone());
    check_plan(0, Wish::Write { offset: u64::MAX, len: 2 }, invalid);
    let zero = |offset, len| Plan::Apply { step: Step::Zero { offset, len }, append: None };
    check_plan(100, Wish::Zero { offset: 50, len: u64::MAX }, zero(50, 50));
    check_plan(100, Wish::Zero { offset: 200, len: 10 }, zero(100, 0));
}

#[test]
fn members_are_told_before_a_sync_is_answered() {
    let mut leader = leader();
    let t = Timestamp(0);
    write(&mut leader, 1, 0);
    for server in [ME, ServerId(2), ServerId(3)] {
        leader.on_applied(t, server, 1);
    }
    leader.on_sync(t, 7);
    leader.on_synced(t, ME, 1);
    leader.on_synced(t, ServerId(2), 1);
    let last = leader.on_synced(t, ServerId(3), 1);
    assert!(
        matches!(last[..2], [Effect::Announce { committed: 1 }, Effect::Reply(7, _)]),
        "{last:?}"
    );
    let again = leader.on_sync(t, 8);
    assert!(matches!(again[..], [Effect::Reply(8, _)]), "once: {again:?}");
}

#[test]
fn unstable_operations_are_synced_when_idle_and_clean_is_said_once() {
    let mut leader = leader();
    write(&mut leader, 1, 1);
    for server in [ME, ServerId(2), ServerId(3)] {
        leader.on_applied(Timestamp(0), server, 1);
    }
    let soon = leader.on_tick(Timestamp(SECOND / 2), MINUTE, MINUTE);
    assert!(matches!(soon[..], [Effect::Announce { committed: 1 }]));
    assert!(leader.on_tick(Timestamp(SECOND / 2), MINUTE, MINUTE).is_empty());
    assert_eq!(syncs(&leader.on_tick(Timestamp(SECOND), MINUTE, MINUTE)), [1]);
    assert!(leader.on_tick(Timestamp(SECOND), MINUTE, MINUTE).is_empty(), "one sync at a time");
    for server in [ME, ServerId(2), ServerId(3)] {
        leader.on_synced(Timestamp(SECOND), server, 1);
    }
    let tick = leader.on_tick(Timestamp(2 * SECOND), MINUTE, MINUTE);
    assert!(matches!(tick[..], [Effect::AllStable { seq: 1 }]));
    assert!(leader.is_quiet());
    assert!(leader.on_tick(Timestamp(3 * SECOND), MINUTE, MINUTE).is_empty());
}

#[test]
fn a_busy_chunk_is_synced_after_five_seconds() {
    let mut leader = leader();
    for n in 0..60 {
        let now = Timestamp(n * SECOND / 10);
        let step = Step::Write { offset: 0, len: 1 };
        let seq = leader.begin(now, step, ClientId(9), n, Promised::Mutated, Some(0)).unwrap();
        for server in [ME, ServerId(2), ServerId(3)] {
            leader.on_applied(now, server, seq);
        }
        let synced = !syncs(&leader.on_tick(now, MINUTE, MINUTE)).is_empty();
        assert_eq!(synced, n == 50, "after {n} tenths of a second");
    }
}

#[test]
fn the_member_that_is_behind_is_the_one_that_failed() {
    let mut leader = leader();
    write(&mut leader, 1, 1);
    leader.on_applied(Timestamp(0), ServerId(3), 1);
    leader.on_applied(Timestamp(0), ME, 1);
    leader.on_tick(Timestamp(2 * SECOND), 3 * SECOND, MINUTE);
    assert_eq!(leader.failed(), None);
    let effects = leader.on_tick(Timestamp(3 * SECOND), 3 * SECOND, MINUTE);
    assert!(matches!(&effects[0], Effect::Report(f) if f.server == ServerId(2)));
    assert_eq!(leader.failed().map(|f| f.server), Some(ServerId(2)));
}
