//! DistributedFS on a real Kubernetes: API server and etcd (level 1), controllers and scheduler (2), and three nodes with
//! kubelet, containerd and kube-proxy, each in a network namespace of its own, running our image (3).
//!
//! The programs are built from source once and kept outside of the repository (`tools/build`); `cluster` starts and stops
//! them. The cases of a level share one cluster of it, one after the other.

#![expect(clippy::print_stdout, reason = "people and tests/run read it")]
#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod chart;
mod cluster;
mod commands;
mod files;
mod gate;
mod network;
mod operator;
mod prometheus;
mod resource;
mod rights;
mod trouble;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Instant;

use cluster::Cluster;

/// One thing that is tried; `level` is what it needs.
struct Case {
    name: &'static str,
    level: u8,
    run: fn(&Cluster),
}

const NEEDS: [&[&str]; 3] = [
    &["etcd", "kube-apiserver", "kubectl", "helm"],
    &["kube-controller-manager", "kube-scheduler"],
    &["kubelet", "kube-proxy", "coredns"],
];

fn main() {
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    std::process::exit(run(&filters));
}

fn run(filters: &[String]) -> i32 {
    let cases: Vec<Case> = [resource::CASES, operator::CASES, chart::CASES, files::CASES]
        .into_iter()
        .flatten()
        .map(|&(name, level, run)| Case { name, level, run })
        .filter(|case| {
            filters.is_empty() || filters.iter().any(|word| case.name.contains(word.as_str()))
        })
        .collect();
    let highest = cases.iter().map(|case| case.level).max().unwrap_or(0);
    let offer = offer(highest);
    let (mut passed, mut failed, mut left_out) = (0, Vec::new(), 0);
    let available = offer.level.unwrap_or(0);
    // Each level in a cluster of its own: what is looked at on the first must not begin to run.
    for level in 1..=available {
        let mut cases = cases.iter().filter(|case| case.level == level).peekable();
        if cases.peek().is_none() {
            continue;
        }
        let Some(cluster) = start(level, &mut failed) else { continue };
        for case in cases {
            let began = Instant::now();
            println!("-- {}", case.name);
            let good = catch_unwind(AssertUnwindSafe(|| (case.run)(&cluster))).is_ok();
            if !good {
                cluster.tell();
            }
            let word = if good { "ok" } else { "FAILED" };
            println!("test k8s::{} ... {word} ({:.1} s)", case.name, began.elapsed().as_secs_f64());
            if good {
                passed += 1;
            } else {
                failed.push(case.name.to_owned());
            }
        }
        if let Err(left) = cluster.stop() {
            println!("left behind: {left}");
            failed.push("stop".to_owned());
        }
    }
    for case in cases.iter().filter(|case| available < case.level) {
        let why = offer.why[usize::from(case.level) - 1].clone().unwrap_or_default();
        println!("test k8s::{} ... left out: {why}", case.name);
        left_out += 1;
    }
    if let Some(why) = &offer.must {
        println!("nothing may be left out for want of it, as DFS_TESTS_REQUIRE=1 says: {why}");
        failed.push("prerequisites".to_owned());
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {} failed; {left_out} ignored; 0 measured; 0 filtered out",
        failed.len()
    );
    i32::from(!failed.is_empty())
}

fn start(level: u8, failed: &mut Vec<String>) -> Option<Cluster> {
    let began = Instant::now();
    match Cluster::start(level) {
        Ok(cluster) => {
            println!(
                "Kubernetes of level {level} started in {:.1} s",
                began.elapsed().as_secs_f64()
            );
            Some(cluster)
        }
        Err(said) => {
            println!("Kubernetes of level {level} does not start: {said}");
            failed.push("start".to_owned());
            None
        }
    }
}

/// What can be had on this machine.
struct Offer {
    level: Option<u8>,
    /// By level: why not.
    why: [Option<String>; 3],
    /// What is missing though CI must have it.
    must: Option<String>,
}

/// Builds what was asked for (`DFS_K8S_BUILD`, else level 1) and says how far the machine gets. No further than
/// `DFS_K8S_LEVEL`, if that is set.
fn offer(highest: u8) -> Offer {
    let build =
        std::env::var("DFS_K8S_BUILD").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u8);
    let require = std::env::var("DFS_TESTS_REQUIRE").is_ok_and(|value| value == "1");
    let mut offer = Offer { level: None, why: [None, None, None], must: None };
    let mut stopped: Option<String> = None;
    let asked_for = tests::setting("DFS_K8S_LEVEL", 3);
    for level in 1..=highest {
        let at = usize::from(level) - 1;
        if asked_for < u64::from(level) {
            let why = "because a run of all parts goes no further; to run them: tests/run k8s";
            stopped.get_or_insert_with(|| why.to_owned());
        }
        if stopped.is_none() {
            let missing = missing(level);
            if let Some(why) = &missing
                && require
                && (level <= build || in_cache(level))
            {
                offer.must = Some(why.clone());
            }
            stopped = missing;
        }
        if stopped.is_none() && !in_cache(level) {
            stopped = if level <= build {
                let failed = build_level(level);
                if failed.is_some() && require {
                    offer.must.clone_from(&failed);
                }
                failed
            } else {
                Some(format!(
                    "because {} are not built; to get them: tests/run k8s, which takes some 20 minutes of two cores once",
                    NEEDS[at].join(", ")
                ))
            };
        }
        match &stopped {
            None => offer.level = Some(level),
            Some(why) => offer.why[at] = Some(why.clone()),
        }
    }
    offer
}

fn in_cache(level: u8) -> bool {
    let bin = cluster::programs();
    NEEDS[..usize::from(level)]
        .iter()
        .flat_map(|names| names.iter())
        .all(|name| bin.join(name).is_file())
}

/// Why the machine cannot have `level`, whatever is built.
fn missing(level: u8) -> Option<String> {
    let has = |program: &str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let mut programs = vec![("openssl", "openssl"), ("curl", "curl")];
    if 3 <= level {
        if !rustix::process::geteuid().is_root() {
            return Some(
                "skipped: because network namespaces and mounts take root, to get it: run as root"
                    .to_owned(),
            );
        }
        if let Some(why) = tests::no_fuse() {
            return Some(format!("skipped: because {why}, to get it: modprobe fuse"));
        }
        programs.extend([
            ("containerd", "containerd"),
            ("runc", "runc"),
            ("iptables", "iptables"),
            ("busybox", "busybox-static"),
            ("gcc", "gcc"),
            ("ip", "iproute2"),
            ("nsenter", "util-linux"),
        ]);
    }
    if let Some((program, package)) = programs.into_iter().find(|(program, _)| !has(program)) {
        return Some(format!(
            "skipped: because {program} is missing, to get it: apt-get install {package}"
        ));
    }
    if 3 <= level && !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        return Some("skipped: because /usr/lib/cni/bridge is missing, to get it: apt-get install containernetworking-plugins".to_owned());
    }
    None
}

fn build_level(level: u8) -> Option<String> {
    println!("building the programs of level {level} into {}", cluster::programs().display());
    let status = Command::new(cluster::here().join("tools/build")).arg(level.to_string()).status();
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!(
            "skipped: because tests/k8s/tools/build {level} ended with {status}, to get it: Go 1.26 or later on PATH and its module proxy in reach"
        )),
        Err(error) => Some(format!("skipped: because tests/k8s/tools/build: {error}")),
    }
}
