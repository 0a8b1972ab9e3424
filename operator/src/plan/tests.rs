//! Tables: a resource, what is seen, and what is to be done. The whole of what is made stands in a golden file.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::crd::SecurityContext;
use crate::crd::status::condition;
use crate::observed::{DaemonState, Lease, Overlay, Server, SetState};

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn resource(replicas: i32) -> DistributedFS {
    serde_json::from_value(json!({
        "apiVersion": "distributedfs.io/v1alpha1", "kind": "DistributedFS",
        "metadata": {"name": "x", "namespace": "ns", "uid": "u-1", "generation": 7, "finalizers": [names::FINALIZER]},
        "spec": {
            "masters": {"storage": {"size": "1Gi"}},
            "chunkServers": {"replicas": replicas, "storage": {"size": "2Gi"}},
        },
    }))
    .unwrap()
}

fn id(number: u32) -> ServerId {
    format!("cs-{number}").parse().unwrap()
}

fn server(number: u32) -> Server {
    Server {
        id: id(number),
        state: "alive".to_owned(),
        overlays: Vec::new(),
        chunks: 5,
        used_bytes: 1,
        free_bytes: 1 << 30,
    }
}

fn pod(name: &str, role: Role, number: Option<u32>) -> Pod {
    Pod {
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        role,
        server: number.map(id),
        node: Some("node-a".to_owned()),
        ready: true,
        ending: false,
        revision: "new".to_owned(),
        problem: None,
        failover: None,
        zone: None,
    }
}

fn set(replicas: i32) -> SetState {
    SetState {
        replicas,
        pods: replicas,
        ready: replicas,
        update_revision: "new".to_owned(),
        seen: true,
    }
}

/// A file system of `servers` servers with nothing left to do for `fs`.
fn settled(fs: &DistributedFS, servers: u32) -> Observed {
    let count = i32::try_from(servers).unwrap();
    let mut seen = Observed {
        operator_image: "dfs:1".to_owned(),
        key_there: true,
        master_set: Some(set(1)),
        chunkserver_set: Some(set(count)),
        mount_set: Some(DaemonState { wanted: 2, ready: 2, seen: true }),
        pods: vec![pod("x-master-0", Role::Master, None)],
        master: MasterView::Told(Report {
            phase: "serving".to_owned(),
            replication: 3,
            min_replicas: 2,
            servers: (1..=servers).map(server).collect(),
            total: 5,
            safe: 5,
            ..Report::default()
        }),
        ..Observed::default()
    };
    for number in 1..=servers {
        seen.pods.push(pod(&format!("x-cs-{number}"), Role::Chunkserver, Some(number)));
        seen.leases.insert(id(number), Lease::Held);
    }
    for action in plan(fs, &seen, now()).actions {
        if let Action::Apply(object) = action {
            seen.applied.insert(identity(&object), digest_of(&object));
        }
    }
    seen
}

fn report(seen: &mut Observed) -> &mut Report {
    match &mut seen.master {
        MasterView::Told(report) => report,
        other @ (MasterView::Absent | MasterView::Silent(_)) => panic!("{other:?}"),
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::AddFinalizer => "add finalizer".to_owned(),
        Action::RemoveFinalizer => "remove finalizer".to_owned(),
        Action::MakeKey => "key".to_owned(),
        Action::Apply(object) => format!("apply {} {}", identity(object).0, identity(object).1),
        Action::DeleteMount => "delete mount".to_owned(),
        Action::TellZone { pod, zone } => format!("zone {zone} of {pod}"),
        Action::MakeLease { server, .. } => format!("lease {server}"),
        Action::Run { name, value, command, .. } => {
            format!("run {name}={value} {}", if command.is_ok() { "ok" } else { "wrong" })
        }
        Action::Drain { server } => format!("drain {server}"),
        Action::EndDrain { server } => format!("end drain {server}"),
        Action::EndMaintenance { server } => format!("end maintenance {server}"),
        Action::Decommission { server } => format!("decommission {server}"),
        Action::Renew { pod, .. } => format!("renew {pod}"),
    }
}

#[track_caller]
fn check(fs: &DistributedFS, seen: &Observed, expected: &[&str]) -> DistributedFSStatus {
    let plan = plan(fs, seen, now());
    // It follows the chunk map, and has a test of its own.
    let budget = "apply PodDisruptionBudget x-cs";
    let mut actions: Vec<String> = plan.actions.iter().map(short).collect();
    actions.retain(|action| action != budget || expected.contains(&budget));
    assert_eq!(actions, expected);
    plan.status
}

#[track_caller]
fn check_condition(status: &DistributedFSStatus, kind: &str, state: &str, reason: &str) {
    let found = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
    assert_eq!(
        (found.status.as_str(), found.reason.as_str()),
        (state, reason),
        "{kind}: {}",
        found.message
    );
    assert_eq!(found.observed_generation, Some(7));
}

#[test]
fn a_new_one_gets_its_key_first_and_then_everything_else() {
    let mut fs = resource(3);
    fs.metadata.finalizers = None;
    let seen = Observed { operator_image: "dfs:1".to_owned(), ..Observed::default() };
    let status = check(
        &fs,
        &seen,
        &[
            "add finalizer",
            "key",
            "apply ServiceAccount x-master",
            "apply ServiceAccount x-cs",
            "apply Role x-cs",
            "apply RoleBinding x-cs",
            "apply Service x-master",
            "apply Service x-cs",
            "apply StatefulSet x-master",
            "apply StatefulSet x-cs",
            "apply PodDisruptionBudget x-cs",
            "apply ConfigMap x-config",
            "apply ServiceAccount x-mount",
            "apply DaemonSet x-mount",
        ],
    );
    assert_eq!(status.phase, "Creating");
    check_condition(&status, condition::READY, "False", "MasterStarting");
    check_condition(&status, condition::RECONCILING, "True", "Applying");
    check_condition(&status, condition::DATA_SAFE, "False", "Unknown");
}

#[test]
fn a_deleted_one_goes_when_its_mounts_are_gone() {
    let mut fs = resource(3);
    let mut seen = settled(&fs, 3);
    seen.pods.push(pod("x-mount-1", Role::Mount, None));
    fs.metadata.deletion_timestamp = Some(Time(now()));
    let status = check(&fs, &seen, &["delete mount"]);
    assert_eq!(status.phase, "Deleting");
    seen.mount_set = None;
    let status = check(&fs, &seen, &[]);
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY).unwrap();
    assert!(ready.message.contains("waits for the mount pods x-mount-1"), "{}", ready.message);
    seen.pods.pop();
    check(&fs, &seen, &["remove finalizer"]);
    fs.metadata.finalizers = Some(vec!["somebody/else".to_owned()]);
    check(&fs, &seen, &[]);
    // Even if nothing else is to be changed.
    fs.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    fs.spec.paused = true;
    check(&fs, &seen, &["remove finalizer"]);
}

#[test]
fn a_settled_one_is_left_alone() {
    let fs = resource(3);
    let status = check(&fs, &settled(&fs, 3), &[]);
    assert_eq!(status.phase, "Ready");
    check_condition(&status, condition::READY, "True", "Serving");
    check_condition(&status, condition::RECONCILING, "False", "Settled");
    check_condition(&status, condition::DEGRADED, "False", "Whole");
    check_condition(&status, condition::DATA_SAFE, "True", "AllSafe");
    check_condition(&status, condition::STALLED, "False", "NotStalled");
}

#[test]
fn the_time_of_a_condition_moves_only_with_its_state() {
    let mut fs = resource(3);
    let mut seen = settled(&fs, 3);
    let mut status = plan(&fs, &seen, now()).status;
    let before: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(before);
    }
    fs.status = Some(status);
    report(&mut seen).servers[0].state = "dead".to_owned();
    let status = plan(&fs, &seen, now()).status;
    for condition in &status.conditions {
        let moved = condition.type_ == condition::DEGRADED;
        assert_eq!(
            condition.last_transition_time.0,
            if moved { now() } else { before },
            "{}",
            condition.type_
        );
    }
    assert_eq!(status.phase, "Degraded");
}

#[test]
fn what_is_changed_is_applied_and_nothing_else() {
    let fs = resource(3);
    let seen = settled(&fs, 3);
    check(&resource(4), &seen, &["apply Role x-cs", "apply StatefulSet x-cs"]);
    let mut other = resource(3);
    other.spec.mount.enabled = false;
    check(&other, &seen, &["apply ConfigMap x-config", "delete mount"]);
    let mut other = resource(3);
    other.spec.image = Some("dfs:2".to_owned());
    check(
        &other,
        &seen,
        &["apply StatefulSet x-master", "apply StatefulSet x-cs", "apply DaemonSet x-mount"],
    );
}

#[test]
fn a_paused_one_is_looked_at_and_not_touched() {
    let settled_as = resource(3);
    let mut seen = settled(&settled_as, 3);
    seen.key_there = false;
    let mut fs = resource(5);
    fs.spec.paused = true;
    fs.metadata.annotations =
        Some([("distributedfs.io/failover".to_owned(), "cs-1".to_owned())].into());
    assert_eq!(check(&fs, &seen, &[]).phase, "Paused");
    fs.spec.paused = false;
    fs.metadata.annotations = Some([(names::RECONCILE.to_owned(), "disabled".to_owned())].into());
    assert_eq!(check(&fs, &seen, &[]).phase, "Paused");
}

#[test]
fn the_last_server_goes_only_when_it_is_empty_and_taken_out() {
    let four = resource(4);
    let fs = resource(3);
    let mut seen = settled(&four, 4);
    let overlay =
        |kind: &str| Overlay { kind: kind.to_owned(), by: names::SIGNED_SCALING.to_owned() };
    let status = check(&fs, &seen, &["drain cs-4"]);
    check_condition(&status, condition::RECONCILING, "True", "Applying");
    report(&mut seen).servers[3].overlays = vec![overlay("draining")];
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::RECONCILING, "True", "Draining");
    // Thought better of it.
    check(&four, &seen, &["end drain cs-4"]);
    report(&mut seen).servers[3].chunks = 0;
    check(&fs, &seen, &["decommission cs-4"]);
    report(&mut seen).servers[3].overlays = vec![overlay("decommissioned")];
    check(&fs, &seen, &["apply Role x-cs", "apply StatefulSet x-cs"]);
}

#[test]
fn nobody_goes_without_a_word_from_a_master_that_knows() {
    let fs = resource(3);
    let mut seen = settled(&resource(5), 5);
    for view in [MasterView::Absent, MasterView::Silent("refused".to_owned())] {
        seen.master = view;
        check(&fs, &seen, &[]);
    }
    // Just started: it may not list yet who belongs to it.
    seen.master = MasterView::Told(Report { phase: "warming".to_owned(), ..Report::default() });
    check(&fs, &seen, &[]);
}

#[test]
fn a_drain_that_is_refused_is_said() {
    let mut seen = settled(&resource(4), 4);
    seen.drain_refused = Some("2 servers would be left".to_owned());
    let status = check(&resource(3), &seen, &["drain cs-4"]);
    check_condition(&status, condition::STALLED, "True", "ScaleDownRefused");
}

#[test]
fn a_drain_of_a_person_is_not_ended() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    report(&mut seen).servers[1].overlays =
        vec![Overlay { kind: "draining".to_owned(), by: "ann@host".to_owned() }];
    check(&fs, &seen, &[]);
}

#[test]
fn old_pods_are_renewed_one_at_a_time_and_only_while_all_is_safe() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    for pod in &mut seen.pods {
        pod.revision = "old".to_owned();
    }
    let status = check(&fs, &seen, &["renew x-cs-1"]);
    check_condition(&status, condition::RECONCILING, "True", "Renewing");
    let mut away = seen.clone();
    away.pods[2].ready = false;
    check(&fs, &away, &[]);
    let mut unsafe_ = seen.clone();
    report(&mut unsafe_).degraded = 1;
    check(&fs, &unsafe_, &[]);
    let mut dead = seen.clone();
    report(&mut dead).servers[2].state = "suspect".to_owned();
    check(&fs, &dead, &[]);
    let mut silent = seen.clone();
    silent.master = MasterView::Silent("gone".to_owned());
    check(&fs, &silent, &[]);
    // The master last.
    for pod in seen.pods.iter_mut().filter(|pod| pod.role == Role::Chunkserver) {
        pod.revision = "new".to_owned();
    }
    check(&fs, &seen, &["renew x-master-0"]);
}

#[test]
fn a_renewed_server_is_announced_to_be_back() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    let overlay = |by: &str| vec![Overlay { kind: "maintenance".to_owned(), by: by.to_owned() }];
    report(&mut seen).servers[0].overlays = overlay(names::SIGNED_RENEWAL);
    check(&fs, &seen, &["end maintenance cs-1"]);
    seen.pods[1].ending = true;
    check(&fs, &seen, &[]);
    seen.pods[1].ending = false;
    report(&mut seen).servers[0].state = "dead".to_owned();
    check(&fs, &seen, &[]);
    // A person's.
    let server = &mut report(&mut seen).servers[0];
    server.state = "alive".to_owned();
    server.overlays = overlay("ann@host");
    check(&fs, &seen, &[]);
}

#[test]
fn commands_wait_for_a_master_that_answers_and_wrong_ones_do_not() {
    let mut fs = resource(3);
    let annotate = |fs: &mut DistributedFS, name: &str, value: &str| {
        fs.metadata.annotations =
            Some([(format!("distributedfs.io/{name}"), value.to_owned())].into());
    };
    let mut seen = settled(&fs, 3);
    annotate(&mut fs, "failover", "cs-1;for=10m");
    check(&fs, &seen, &["run failover=cs-1;for=10m ok"]);
    seen.pods[1].failover = Some("true".to_owned());
    check(&fs, &seen, &["run failover=cs-1;for=10m ok", "run failover=true ok"]);
    seen.master = MasterView::Silent("gone".to_owned());
    check(&fs, &seen, &[]);
    annotate(&mut fs, "drain", "all");
    check(&fs, &seen, &["run drain=all wrong"]);
}

#[test]
fn a_failover_waits_until_it_is_known_who_lives() {
    let mut fs = resource(3);
    let annotate = |fs: &mut DistributedFS, value: &str| {
        fs.metadata.annotations =
            Some([("distributedfs.io/failover".to_owned(), value.to_owned())].into());
    };
    let mut seen = settled(&fs, 3);
    annotate(&mut fs, "cs-3");
    report(&mut seen).servers[1].state = "suspect".to_owned();
    check(&fs, &seen, &[]);
    for decided in ["alive", "dead"] {
        report(&mut seen).servers[1].state = decided.to_owned();
        check(&fs, &seen, &["run failover=cs-3 ok"]);
    }
    report(&mut seen).servers[1].state = "suspect".to_owned();
    annotate(&mut fs, "cs-3;force");
    check(&fs, &seen, &["run failover=cs-3;force ok"]);
    // Itself, and one that is silent as wished, are no reason to wait.
    annotate(&mut fs, "cs-2");
    check(&fs, &seen, &["run failover=cs-2 ok"]);
    annotate(&mut fs, "cs-3");
    report(&mut seen).servers[1].overlays =
        vec![Overlay { kind: "suspended".to_owned(), by: "ann@host".to_owned() }];
    check(&fs, &seen, &["run failover=cs-3 ok"]);
}

#[test]
fn a_server_that_is_away_as_wished_is_not_waited_for() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    seen.pods[1].ready = false;
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::RECONCILING, "True", "WaitingForPods");
    let server = &mut report(&mut seen).servers[0];
    server.state = "dead".to_owned();
    server.overlays = vec![Overlay { kind: "suspended".to_owned(), by: "ann@host".to_owned() }];
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::RECONCILING, "False", "Settled");
    check_condition(&status, condition::DEGRADED, "True", "ServersAway");
    check_condition(&status, condition::READY, "True", "Serving");
}

#[test]
fn leases_that_lapse_together_are_the_control_planes_fault() {
    let fs = resource(5);
    let mut seen = settled(&fs, 5);
    for number in 1..=2 {
        seen.leases.insert(id(number), Lease::Lapsed);
    }
    // Some lapsed, and the master hears all: nothing is wrong with the data.
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::DEGRADED, "False", "Whole");
    seen.leases.insert(id(3), Lease::Lapsed);
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::DEGRADED, "True", "ControlPlaneSuspect");
    check_condition(&status, condition::READY, "True", "Serving");
    assert_eq!(status.servers[0].lease.as_deref(), Some("Lapsed"));
}

#[test]
fn a_lease_is_made_for_each_new_pod() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    seen.leases.remove(&id(2));
    check(&fs, &seen, &["lease cs-2"]);
    seen.pods[2].ending = true;
    check(&fs, &seen, &[]);
}

#[test]
fn a_server_is_told_its_zone_and_a_node_without_one_is_named() {
    let mut fs = resource(3);
    fs.spec.topology_key = "topology.kubernetes.io/zone".to_owned();
    let mut seen = settled(&fs, 3);
    seen.pods[1].node = Some("node-b".to_owned());
    seen.zones = [("node-a".to_owned(), Some("z1".to_owned())), ("node-b".to_owned(), None)].into();
    seen.pods[3].zone = Some("z1".to_owned());
    check(&fs, &seen, &["zone z1 of x-cs-2"]);
    seen.pods[2].zone = Some("z0".to_owned());
    check(&fs, &seen, &["zone z1 of x-cs-2"]);
    seen.pods[2].ending = true;
    check(&fs, &seen, &[]);
    // It waits to be told.
    assert_eq!(plan(&fs, &seen, now()).problem, None);
    seen.pods[1].ready = false;
    let (reason, words) = plan(&fs, &seen, now()).problem.unwrap();
    assert_eq!(reason, "PodProblem");
    assert!(
        words.starts_with(
            "pod x-cs-1 on node-b: node node-b has no label topology.kubernetes.io/zone"
        ),
        "{words}"
    );
}

#[test]
fn as_many_may_be_evicted_as_the_chunk_map_allows() {
    let fs = resource(3);
    let allowed = |seen: &Observed| {
        let mut allowed = None;
        for action in plan(&fs, seen, now()).actions {
            assert_eq!(short(&action), "apply PodDisruptionBudget x-cs");
            if let Action::Apply(object) = action {
                allowed = object["spec"]["maxUnavailable"].as_i64();
            }
        }
        allowed
    };
    let seen = settled(&fs, 3);
    assert_eq!(allowed(&seen), None, "one, as before");
    let with = |change: &dyn Fn(&mut Report)| {
        let mut seen = seen.clone();
        change(report(&mut seen));
        allowed(&seen)
    };
    assert_eq!(with(&|report| report.degraded = 1), Some(0));
    assert_eq!(with(&|report| report.servers[2].state = "suspect".to_owned()), Some(0));
    assert_eq!(with(&|report| report.phase = "warming".to_owned()), Some(0));
    assert_eq!(with(&|report| report.min_replicas = 3), Some(0), "each is needed for a write");
    let mut silent = seen.clone();
    silent.master = MasterView::Silent("gone".to_owned());
    assert_eq!(allowed(&silent), Some(0));
    // It is nothing that anybody waits for.
    let mut short = seen.clone();
    report(&mut short).degraded = 1;
    let status = plan(&fs, &short, now()).status;
    check_condition(&status, condition::RECONCILING, "False", "Settled");
}

#[test]
fn a_mount_is_not_taken_from_under_the_pods_that_use_it() {
    let mut fs = resource(3);
    let mut seen = settled(&fs, 3);
    seen.pods.push(pod("x-mount-1", Role::Mount, None));
    seen.users = vec!["shop-1".to_owned()];
    fs.metadata.deletion_timestamp = Some(Time(now()));
    let status = check(&fs, &seen, &[]);
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY).unwrap();
    assert!(ready.message.starts_with("1 pod(s) use its mount: shop-1; delete them"), "{ready:?}");
    let (reason, words) = plan(&fs, &seen, now()).problem.unwrap();
    assert_eq!((reason, words), ("InUse", ready.message.clone()));
    fs.metadata.annotations = Some([(names::FORCE_DELETION.to_owned(), "true".to_owned())].into());
    check(&fs, &seen, &["delete mount"]);
    fs.metadata.annotations = None;
    seen.users.clear();
    check(&fs, &seen, &["delete mount"]);
}

#[test]
fn what_keeps_a_pod_from_running_is_said() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    seen.master = MasterView::Absent;
    seen.pods[0].ready = false;
    seen.pods[0].problem = Some("ImagePullBackOff: no such image".to_owned());
    let status = plan(&fs, &seen, now()).status;
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY).unwrap();
    assert!(
        ready.message.contains("pod x-master-0 on node-a: ImagePullBackOff: no such image"),
        "{}",
        ready.message
    );
    assert_eq!(status.servers, []);
}

#[test]
fn lost_chunks_are_told_and_nothing_is_called_ready() {
    let fs = resource(3);
    let mut seen = settled(&fs, 3);
    let told = report(&mut seen);
    (told.safe, told.degraded, told.lost) = (2, 2, 1);
    let status = check(&fs, &seen, &[]);
    check_condition(&status, condition::READY, "False", "ChunksUnavailable");
    check_condition(&status, condition::DATA_SAFE, "False", "ChunksLost");
    assert_eq!(status.chunks.short, 3);
}

/// All objects as they are applied. After a wanted change: `DFS_WRITE_GOLDEN=1 cargo test -p operator`.
#[test]
fn everything_that_is_made_is_as_in_the_golden_file() {
    let mut fs = resource(3);
    fs.spec.liveness.rebuild_delay = Some("2m".to_owned());
    fs.spec.chunk_servers.node_selector = [("disk".to_owned(), "fast".to_owned())].into();
    check_golden(&fs, "made.yaml");
    // All that may be said and changes what is made.
    fs.spec.chunk_size = "1Mi".to_owned();
    fs.spec.topology_key = "topology.kubernetes.io/zone".to_owned();
    fs.spec.security_context = SecurityContext {
        run_as_user: 1000,
        run_as_group: 1001,
        fs_group: 1002,
        se_linux_options: Some(json!({"level": "s0:c1"})),
    };
    fs.spec.mount.enabled = false;
    check_golden(&fs, "made-otherwise.yaml");
}

#[track_caller]
fn check_golden(fs: &DistributedFS, name: &str) {
    let wanted = Wanted { image: "dfs:1", chunkservers: 3, disruptions: 1 };
    let mut text = String::new();
    for object in resources::all(fs, wanted) {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object).unwrap());
    }
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan").join(name);
    if std::env::var_os("DFS_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = text.lines().zip(golden.lines()).find(|(new, old)| new != old);
    assert!(
        text == golden,
        "{}: first difference {differs:?}; DFS_WRITE_GOLDEN=1 writes it anew",
        file.display()
    );
}
