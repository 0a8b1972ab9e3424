//! Every deliberate bug of `docs/proof.md`: it must be found, by an invariant that is named there, at the seed that is
//! named there or soon after it; and those seeds must be clean without it.
//!
//! Soon after it: whatever changes what the programs ask of the kernel changes what a seed brings.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tests::canary::{Canary, canaries, has_canaries};
use tests::setting;

use crate::runs::{Run, finish, skip, start};

pub(crate) const WITHOUT_CANARIES: &str =
    "this dfs was built without canaries; `tests/run sim --canaries` builds one that has them";

/// What all threads share.
struct Hunt {
    /// Seeds tried for one canary, from the one in the table on.
    seeds_max: u64,
    waiting: Mutex<Vec<Canary>>,
    /// In which one was found, with their minutes: to be tried without.
    seeds: Mutex<BTreeSet<(u64, u64)>>,
    failed: AtomicU64,
    /// This machine cannot do it.
    unsupported: AtomicBool,
}

/// The invariant that a run found to be violated, `None` if it was clean.
fn found_by(said: &str, code: i32) -> Option<&str> {
    let (_, found) = said.split_once(": ")?;
    let invariant = found.split(' ').next().unwrap_or_default();
    (code == 1).then_some(invariant)
}

impl Hunt {
    fn fail(&self, what: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        println!("FAILED {what}");
    }

    /// One run; `None`: no more of them.
    fn run(
        &self,
        (seed, minutes): (u64, u64),
        canary: Option<&str>,
        processor: usize,
    ) -> Option<(String, i32)> {
        let (said, code) = finish(start(&Run { seed, minutes, processor, canary }));
        println!("{} {said}", canary.unwrap_or("no canary:"));
        if code == 3 {
            self.unsupported.store(true, Ordering::Relaxed);
        }
        (code != 3).then_some((said, code))
    }

    fn hunt(&self, canary: &Canary, processor: usize) -> Option<()> {
        let Canary { name, invariants, seed: first, minutes } = canary;
        for seed in *first..first + self.seeds_max {
            let (said, code) = self.run((seed, *minutes), Some(name), processor)?;
            if found_by(&said, code).is_some_and(|by| invariants.iter().any(|it| it == by)) {
                if seed != *first {
                    println!("docs/proof.md says seed {first} for {name}, it is {seed} now");
                }
                self.seeds.lock().expect("no thread panics").insert((seed, *minutes));
                return Some(());
            }
        }
        let last = first + self.seeds_max - 1;
        self.fail(&format!("{name}: not found by {invariants:?} in seeds {first} to {last}"));
        Some(())
    }

    fn be_clean(&self, seed: (u64, u64), processor: usize) -> Option<()> {
        let (said, code) = self.run(seed, None, processor)?;
        if code != 0 {
            self.fail(&format!("not clean without any canary: {said}"));
        }
        Some(())
    }

    /// Takes one after the other on every processor.
    fn on_all<T: Send>(
        &self,
        waiting: &Mutex<Vec<T>>,
        work: impl Fn(T, usize) -> Option<()> + Sync,
    ) {
        std::thread::scope(|scope| {
            for processor in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                let work = &work;
                scope.spawn(move || {
                    loop {
                        let next = waiting.lock().expect("no thread panics").pop();
                        let Some(next) = next.filter(|_| !self.unsupported.load(Ordering::Relaxed))
                        else {
                            return;
                        };
                        if work(next, processor).is_none() {
                            return;
                        }
                    }
                });
            }
        });
    }
}

/// The exit code.
pub(crate) fn main() -> i32 {
    if !has_canaries(tests::dfs_program()) {
        eprintln!("sim: {WITHOUT_CANARIES}");
        return 2;
    }
    let began = Instant::now();
    let mut all = canaries();
    all.reverse();
    let count = all.len() as u64;
    let hunt = Hunt {
        seeds_max: setting("DFS_SIM_CANARY_SEEDS", 20).max(1),
        waiting: Mutex::new(all),
        seeds: Mutex::default(),
        failed: AtomicU64::new(0),
        unsupported: AtomicBool::new(false),
    };
    hunt.on_all(&hunt.waiting, |canary, processor| hunt.hunt(&canary, processor));
    let seeds: Vec<(u64, u64)> =
        hunt.seeds.lock().expect("no thread panics").iter().copied().collect();
    let clean = seeds.len() as u64;
    hunt.on_all(&Mutex::new(seeds), |seed, processor| hunt.be_clean(seed, processor));
    if hunt.unsupported.into_inner() {
        return skip("this machine's kernel gives no seccomp listener");
    }
    let failed = hunt.failed.into_inner();
    println!(
        "{count} canaries, {clean} of their seeds without any: {failed} failed, {:.0} s",
        began.elapsed().as_secs_f64()
    );
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        count + clean - failed
    );
    i32::from(failed != 0)
}
