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
    append(Begun { ino: INO, index: 3, counter: 9, done: 0 });
    die();

    let (kept, mut ops) = attach(words, 2);
    let (waits, waited) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kept.wait_for_appends();
            waits.send(()).unwrap();
        });
        assert!(waited.recv_timeout(Duration::from_millis(30)).is_err(), "it did not wait");
        assert_eq!(kept.forget_left(), [number]);
        waited.recv().unwrap();
    });
    ops.end(number);
    assert!(ops.results().has(number));
    assert!(attach(words, 3).0.forget_left().is_empty());
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
    append(Begun { ino: INO, index: 3, counter: 9, done: 0 });
    appended();
    die();
    let (kept, _) = attach(words, 2);
    kept.wait_for_appends();
    kept.begin(100);
    assert!(is_appended() && begun_append().is_none());
    kept.end();
    kept.begin(101);
    assert!(!is_appended());
    kept.end();
}

#[test]
fn memory_of_another_layout_is_refused() {
    let words = memory();
    words[0].store(LAYOUT + 1, Ordering::Release);
    let refused = Kept::attach(words, CLIENT, 1).unwrap_err();
    assert!(refused.contains("layout 2"), "{refused}");
}
