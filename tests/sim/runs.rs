//! Many seeds, two at a time; each in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tests::canary::has_canaries;
use tests::setting;

use crate::canaries::{self, WITHOUT_CANARIES};
use crate::native;
use crate::world::{Outcome, Plan, World};

const HELP: &str = "\
Tries whole clusters on a simulated kernel, each made from a seed.

Usage: tests/run sim [--seeds N]             seeds 1 to N
       tests/run sim --seed S [--minutes M] [--verbose] [--follow] [--canary NAME]
                                             one seed again: --verbose prints what every program says and
                                             what goes wrong, --follow also every system call
       tests/run sim --canaries              every deliberate bug of docs/proof.md at its seed: each must be found

Environment:
  DFS_SIM_SEEDS    seeds to try [default: 20]
  DFS_SIM_FIRST    the first of them [default: 1]
  DFS_SIM_MINUTES  simulated minutes of trouble for each [default: 10]
  DFS_SIM_TWICE    so many are run twice, to see that they are the same [default: 2]";

/// How long trouble lasts in runs that are made twice.
const TWICE_MINUTES: u64 = 2;

#[derive(Debug)]
struct Asked {
    seed: Option<u64>,
    seeds: u64,
    minutes: u64,
    processor: usize,
    verbose: bool,
    follow: bool,
    canary: Option<String>,
    canaries: bool,
}

fn parse(args: &[String]) -> Result<Option<Asked>, String> {
    let mut asked = Asked {
        seed: None,
        seeds: setting("DFS_SIM_SEEDS", 20),
        minutes: setting("DFS_SIM_MINUTES", 10),
        processor: 0,
        verbose: false,
        follow: false,
        canary: None,
        canaries: false,
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{arg} needs a value; see --help"));
        let number =
            |text: &String| text.parse().map_err(|_| format!("{arg} '{text}' is no number"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--seed" => asked.seed = Some(number(value()?)?),
            "--seeds" => asked.seeds = number(value()?)?,
            "--minutes" => asked.minutes = number(value()?)?,
            "--processor" => asked.processor = usize::try_from(number(value()?)?).unwrap_or(0),
            "--canary" => asked.canary = Some(value()?.clone()),
            "--canaries" => asked.canaries = true,
            "--verbose" => asked.verbose = true,
            "--follow" => asked.follow = true,
            // Of the test runner.
            "--nocapture" | "--quiet" => {}
            filter if !filter.starts_with('-') && !"sim".contains(filter) => {
                return Err(String::new());
            }
            other => return Err(format!("unknown argument '{other}'; see --help")),
        }
    }
    Ok(Some(asked))
}

/// The exit code.
pub(crate) fn main(args: &[String]) -> i32 {
    let asked = match parse(args) {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            println!("{HELP}");
            return 0;
        }
        Err(wrong) if wrong.is_empty() => {
            println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
            return 0;
        }
        Err(wrong) => {
            eprintln!("sim: {wrong}");
            return 2;
        }
    };
    if !cfg!(target_arch = "x86_64") {
        return skip("the simulated kernel speaks x86-64 only");
    }
    if asked.canary.is_some() && !has_canaries(tests::dfs_program()) {
        eprintln!("sim: {WITHOUT_CANARIES}");
        return 2;
    }
    match asked.seed {
        _ if asked.canaries => canaries::main(),
        Some(seed) => one(seed, &asked),
        None => many(&asked),
    }
}

pub(crate) fn skip(reason: &str) -> i32 {
    tests::skipped(reason);
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    0
}

fn one(seed: u64, asked: &Asked) -> i32 {
    let own = std::env::current_exe().expect("a program knows its own name");
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let plan = Plan {
        seed,
        minutes: asked.minutes,
        canary: asked.canary.clone(),
        program: text(tests::dfs_program()),
        own_program: text(&own),
        verbose: asked.verbose,
        follow: asked.follow,
    };
    if let Err(error) = native::stay_on(asked.processor) {
        eprintln!("sim: {error}");
    }
    let began = Instant::now();
    match World::new(plan).run() {
        Ok(outcome) => {
            print_outcome(seed, &outcome, began);
            i32::from(outcome.violation.is_some())
        }
        Err(error) => {
            println!("seed {seed}: cannot be run: {error}");
            if error.kind() == std::io::ErrorKind::Unsupported { 3 } else { 1 }
        }
    }
}

fn print_outcome(seed: u64, outcome: &Outcome, began: Instant) {
    let Outcome { violation, calls, trace, acknowledged, errors, faults, virtual_seconds, profile } =
        outcome;
    let faults: Vec<String> =
        faults.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!(
        "seed {seed}: {}: {acknowledged} acknowledged, {errors} errors, {virtual_seconds} s simulated in {:.1} s, {calls} calls, trace {trace:016x}; {profile}, {}",
        violation.as_deref().unwrap_or("ok"),
        began.elapsed().as_secs_f64(),
        faults.join(", ")
    );
}

/// A run in a process of its own.
pub(crate) struct Run<'a> {
    pub(crate) seed: u64,
    pub(crate) minutes: u64,
    pub(crate) processor: usize,
    pub(crate) canary: Option<&'a str>,
}

pub(crate) fn start(run: &Run<'_>) -> Child {
    let Run { seed, minutes, processor, canary } = run;
    let own = std::env::current_exe().expect("a program knows its own name");
    let canary = canary.map_or_else(Vec::new, |name| vec!["--canary", name]);
    Command::new(own)
        .args([
            "--seed",
            &seed.to_string(),
            "--minutes",
            &minutes.to_string(),
            "--processor",
            &processor.to_string(),
        ])
        .args(canary)
        .env("DFS_BIN", tests::dfs_program())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started")
}

/// What it printed, and its exit code.
pub(crate) fn finish(mut child: Child) -> (String, i32) {
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            said.push_str(&line);
        }
    }
    let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(-1);
    (said, code)
}

fn trace_of(said: &str) -> Option<String> {
    let rest = said.split("trace ").nth(1)?;
    rest.split(';').next().map(str::to_owned)
}

fn many(asked: &Asked) -> i32 {
    let first = setting("DFS_SIM_FIRST", 1);
    let twice = setting("DFS_SIM_TWICE", 2).min(asked.seeds);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let jobs: Vec<(u64, u64, bool)> = (first..first + twice)
        .map(|seed| (seed, TWICE_MINUTES, true))
        .chain((first..first + asked.seeds).map(|seed| (seed, asked.minutes, false)))
        .collect();
    let next = std::sync::Mutex::new(jobs.into_iter());
    let failed = std::sync::atomic::AtomicU64::new(0);
    let unsupported = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for processor in 0..processors {
            let (next, failed, unsupported) = (&next, &failed, &unsupported);
            scope.spawn(move || {
                loop {
                    let Some((seed, minutes, again)) =
                        next.lock().expect("no thread panics").next()
                    else {
                        return;
                    };
                    let run = Run { seed, minutes, processor, canary: None };
                    let (said, code) = finish(start(&run));
                    let mut bad = code != 0;
                    if code == 3 {
                        unsupported.store(true, std::sync::atomic::Ordering::Relaxed);
                        println!("{said}");
                        return;
                    }
                    if again && !bad {
                        let (repeated, _) = finish(start(&run));
                        if trace_of(&repeated) != trace_of(&said) {
                            bad = true;
                            println!("I24 seed {seed} is not the same twice:\n{said}\n{repeated}");
                        }
                    } else {
                        println!("{said}");
                    }
                    if bad {
                        failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        println!(
                            "again: tests/run sim --seed {seed} --minutes {minutes} --verbose"
                        );
                    }
                }
            });
        }
    });
    if unsupported.into_inner() {
        return skip("this machine's kernel gives no seccomp listener");
    }
    let failed = failed.into_inner();
    println!(
        "{} seeds of {} simulated minutes, {twice} of them twice: {failed} failed, {:.0} s",
        asked.seeds,
        asked.minutes,
        began.elapsed().as_secs_f64()
    );
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        asked.seeds + twice - failed
    );
    i32::from(failed != 0)
}
