use super::*;

const CLIENT: ClientId = ClientId(7);
const INO: InodeNo = InodeNo(5);

/// Memory that the processes of a test follow each other in.
fn memory() -> &'static [AtomicU64] {
    Box::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect())
}

fn attach(words: &'static [AtomicU64], generation: u64) -> (Arc<Kept>, Ops) {
    let kept = Kept::attach(words, CLIENT, generation).unwrap();
    let ops = Ops::new(Some(&kept));
    (kept, ops)
}

/// As a process that dies while it carries something out.
fn die() {
    ACTIVE.set(None);
}

#[test]
fn a_request_asked_again_has_the_numbers_of_the_first_time_and_no_other_has() {
    let words = memory();
    let (kept, mut ops) = attach(words, 1);
    kept.begin(100);
    let first = number_of(b"create", || ops.begin()).unwrap();
    let second = number_of(b"truncate", || ops.begin()).unwrap();
    assert_ne!(first, second);
    die();

    let (kept, mut ops) = attach(words, 2);
    assert!(!ops.results().has(first) && !ops.results().has(second));
    kept.begin(101);
    let other = number_of(b"create", || ops.begin()).unwrap();
    assert!(second < other, "of another request");
    assert_eq!(kept.end(), [other]);
    ops.end(other);
    kept.begin(100);
    assert!(has_unrepeated());
    assert_eq!(number_of(b"create", || ops.begin()), Some(first));
    assert!(!ops.results().has(first), "it is not answered");
    let twice = number_of(b"create", || ops.begin()).unwrap();
    assert!(second < twice, "the first time there was one of it");
    assert_eq!(number_of(b"truncate", || ops.begin()), Some(second));
    assert!(!has_unrepeated());
    for number in kept.end() {
        ops.end(number);
    }
    assert!(ops.results().has(first) && ops.results().has(second) && ops.results().has(twice));
}

#[test]
fn what_the_kernel_does_not_ask_for_again_is_forgotten() {
    let words = memory();
    let (kept, mut ops) = attach(words, 1);
    kept.begin(100);
    let number = number_of(b"create", || ops.begin()).unwrap();
    begin_operation(Begun { ino: INO, index: 3, counter: 9, done: 0 });
    die();

    let (kept, mut ops) = attach(words, 2);
    let (waits, waited) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kept.wait_for_begun(INO);
            waits.send(()).unwrap();
        });
        assert!(waited.recv_timeout(Duration::from_millis(30)).is_err(), "it did not wait");
        assert_eq!(kept.forget_left_but(&[]), [number]);
        waited.recv().unwrap();
    });
    ops.end(number);
    assert!(ops.results().has(number));
    assert!(attach(words, 3).0.forget_left_but(&[]).is_empty());
}

#[test]
fn opens_of_a_request_that_is_asked_again_count_once() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    kept.note_open(INO, 1, 0);
    kept.begin(100);
    kept.note_open(INO, 2, 1);
    opened(INO, true);
    die();
    let (kept, _) = attach(words, 2);
    assert_eq!(kept.opens(), [(INO, 1, 0)]);
    kept.begin(100);
    kept.note_open(INO, 2, 1);
    opened(INO, true);
    kept.end();
    // It was answered.
    assert_eq!(attach(words, 3).0.opens(), [(INO, 2, 1)]);
}

#[test]
fn a_release_takes_back_one_open_however_often_it_is_asked() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    kept.begin(100);
    assert!(release());
    die();
    let (kept, _) = attach(words, 2);
    kept.begin(100);
    assert!(!release());
    kept.end();
    kept.begin(101);
    assert!(release());
    kept.end();
}

#[test]
fn a_record_that_is_stored_keeps_nobody_waiting() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    kept.begin(100);
    begin_operation(Begun { ino: INO, index: 3, counter: 9, done: 0 });
    appended();
    die();
    let (kept, _) = attach(words, 2);
    kept.wait_for_begun(INO);
    kept.begin(100);
    assert!(is_appended() && begun(INO).is_none());
    kept.end();
    kept.begin(101);
    assert!(!is_appended());
    kept.end();
}

#[test]
fn what_was_begun_on_a_file_is_repeated_in_order_and_before_anything_new() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    for (request, counter) in [(100, 8), (101, 7)] {
        kept.begin(request);
        begin_operation(Begun { ino: INO, index: 0, counter, done: 0 });
        die();
    }
    let (kept, _) = attach(words, 2);
    assert!(kept.left_place(101) < kept.left_place(100) && kept.left_place(102) == u64::MAX);
    kept.wait_for_begun(InodeNo(6));
    let (done, order) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (fresh, later) = (done.clone(), done.clone());
        let kept = &kept;
        scope.spawn(move || {
            kept.begin(102);
            kept.wait_for_begun(INO);
            fresh.send(102).unwrap();
            kept.end();
        });
        scope.spawn(move || {
            kept.begin(100);
            kept.wait_for_begun_below(INO, begun(INO).unwrap().counter);
            later.send(100).unwrap();
            repeated(false);
            // It goes on under counters of its own process.
            kept.wait_for_begun(INO);
            assert!(begun(INO).is_none());
            kept.end();
        });
        assert!(order.recv_timeout(Duration::from_millis(30)).is_err(), "101 comes first");
        kept.begin(101);
        assert_eq!(begun(INO).unwrap().counter, 7);
        kept.wait_for_begun_below(INO, 7);
        repeated(false);
        kept.end();
        assert_eq!([order.recv().unwrap(), order.recv().unwrap()], [100, 102]);
    });
}

#[test]
fn what_had_no_effect_is_begun_anew_by_whoever_follows() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    kept.begin(100);
    begin_operation(Begun { ino: INO, index: 0, counter: 7, done: 0 });
    die();
    let (kept, _) = attach(words, 2);
    kept.begin(100);
    repeated(true);
    die();
    let (kept, _) = attach(words, 3);
    kept.wait_for_begun(INO);
    kept.begin(100);
    assert!(begun(INO).is_none());
    kept.end();
}

#[test]
fn time_and_cuts_are_those_of_the_first_process() {
    let words = memory();
    let (kept, _) = attach(words, 1);
    kept.begin(100);
    assert_eq!((time(|| WallTime(-5)), cuts(3)), (WallTime(-5), 3));
    die();
    let (kept, _) = attach(words, 2);
    kept.begin(101);
    assert_eq!((time(|| WallTime(9)), cuts(4)), (WallTime(9), 4), "of another request");
    kept.end();
    kept.begin(100);
    assert_eq!((time(|| WallTime(8)), cuts(4)), (WallTime(-5), 3));
    kept.end();
    // A new request where that one was.
    kept.begin(102);
    assert_eq!(cuts(5), 5);
    kept.end();
    assert_eq!(cuts(6), 6, "no request");
}

#[test]
fn operations_that_an_earlier_program_left_in_the_last_places_are_known() {
    let words = memory();
    let (kept, mut ops) = attach(words, 1);
    kept.begin(100);
    let slot = active(|active| active.slot).unwrap();
    number_of(b"create", || ops.begin()).unwrap();
    kept.word(slot, 1).store(12, Ordering::Release);
    kept.word(slot, 28).store(100, Ordering::Release);
    kept.word(slot, 31).store(77, Ordering::Release);
    die();
    let (kept, mut ops) = attach(words, 2);
    assert!(!ops.results().has(77));
    kept.begin(100);
    assert_eq!(cuts(5), 5, "not a number of an operation");
    let numbers = kept.end();
    assert!(numbers.contains(&77));
    numbers.into_iter().for_each(|number| ops.end(number));
}

/// As a client left it that was killed while it made a directory, with two files open, written down as what is not zero:
/// word and value. The first program with this layout made it, and every later one must serve it.
#[test]
fn memory_that_an_earlier_program_left_is_served() {
    let words = memory();
    for line in include_str!("layout-1.txt").lines() {
        let (word, value) = line.split_once(' ').unwrap();
        words[word.parse::<usize>().unwrap()].store(value.parse().unwrap(), Ordering::Release);
    }
    let (kept, mut ops) = attach(words, 2);
    assert!(kept.is_registered());
    assert_eq!(kept.nonce(), 13_316_097_353_842_920_770);
    let mut opens = kept.opens();
    opens.sort();
    assert_eq!(opens, [(InodeNo(2), 2, 2), (InodeNo(3), 2, 1)]);
    assert!(kept.is_left(64) && kept.left_place(64) == u64::MAX);
    assert!(!ops.results().has(10));
    assert_eq!(kept.forget_left_but(&[64]), Vec::<u64>::new());
    kept.begin(64);
    assert!(has_unrepeated() && begun(INO).is_none());
    assert_eq!(number_of(b"another call", || ops.begin()), Some(11));
    assert_eq!(kept.end(), [10, 11]);
}

#[test]
fn memory_of_another_layout_is_refused() {
    let words = memory();
    words[0].store(LAYOUT + 1, Ordering::Release);
    let refused = Kept::attach(words, CLIENT, 1).unwrap_err();
    assert!(refused.contains("layout 2"), "{refused}");
}
