//! The chart's NetworkPolicies, judged as a network plugin would: the test's nodes have none that enforces them. Pods are
//! the ones that operator and chart ask for; at level 3 every connection of a running cluster must be among what is allowed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};
use crate::resource::minimal;

/// One end of a connection: a pod, or an address outside of the cluster.
#[derive(Clone, Debug)]
struct End {
    namespace: &'static str,
    labels: BTreeMap<String, String>,
    address: Ipv4Addr,
}

impl End {
    fn pod(namespace: &'static str, labels: &Value) -> Self {
        let labels = labels.as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            namespace,
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            address: Ipv4Addr::new(10, 89, 1, 2),
        }
    }

    fn outside(address: [u8; 4]) -> Self {
        Self { namespace: "", labels: BTreeMap::new(), address: address.into() }
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A label selector, as the API says: all its parts must hold, and an empty one selects everything.
fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut holds =
        equal.into_iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    for part in items(&selector["matchExpressions"]) {
        let found = labels.get(part["key"].as_str().unwrap());
        let listed =
            items(&part["values"]).iter().any(|value| value.as_str() == found.map(String::as_str));
        holds &= match part["operator"].as_str().unwrap() {
            "In" => found.is_some() && listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            other => panic!("operator {other}"),
        };
    }
    holds
}

fn in_block(cidr: &str, address: Ipv4Addr) -> bool {
    let (base, bits) = cidr.split_once('/').unwrap();
    let (base, bits): (Ipv4Addr, u32) = (base.parse().unwrap(), bits.parse().unwrap());
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    base.to_bits() & mask == address.to_bits() & mask
}

fn is_peer(peer: &Value, policy_namespace: &str, end: &End) -> bool {
    if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
        let except = items(&peer["ipBlock"]["except"]);
        return in_block(cidr, end.address)
            && !except.iter().any(|cidr| in_block(cidr.as_str().unwrap(), end.address));
    }
    let names =
        BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), end.namespace.to_owned())]);
    let selector = &peer["namespaceSelector"];
    let namespace = if selector.is_null() {
        end.namespace == policy_namespace
    } else {
        !end.namespace.is_empty() && selects(selector, &names)
    };
    namespace && (peer["podSelector"].is_null() || selects(&peer["podSelector"], &end.labels))
}

/// Whether the policies let `port` through at `own`, in the direction `Ingress` or `Egress`.
fn passes(policies: &[Value], direction: &str, own: &End, other: &End, port: (u16, &str)) -> bool {
    let (rules, peers) =
        if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
    let mut closed = false;
    for policy in policies {
        let namespace = policy["metadata"]["namespace"].as_str().unwrap();
        let spec = &policy["spec"];
        let here = namespace == own.namespace && selects(&spec["podSelector"], &own.labels);
        if !here || !items(&spec["policyTypes"]).iter().any(|kind| kind == direction) {
            continue;
        }
        closed = true;
        for rule in items(&spec[rules]) {
            let (peers, ports) = (items(&rule[peers]), items(&rule["ports"]));
            let peer = peers.is_empty() || peers.iter().any(|p| is_peer(p, namespace, other));
            let named = |p: &Value| p["port"] == port.0 && p["protocol"] == port.1;
            if peer && (ports.is_empty() || ports.iter().any(named)) {
                return true;
            }
        }
    }
    !closed
}

fn allowed(policies: &[Value], from: &End, to: &End, port: u16, protocol: &str) -> bool {
    passes(policies, "Egress", from, to, (port, protocol))
        && passes(policies, "Ingress", to, from, (port, protocol))
}

/// What the chart makes with `values`, as the API server reads it.
#[track_caller]
fn rendered(cluster: &Cluster, namespace: &str, values: &[&str]) -> Vec<Value> {
    let chart = tests::repository().join("charts/distributedfs");
    let chart = chart.to_string_lossy();
    let mut args = vec!["template", "t", &chart, "--namespace", namespace];
    for value in values {
        args.extend(["--set-json", value]);
    }
    let text = tests::stdout_of(&cluster.helm(&args));
    let taken = cluster.try_kubectl(
        &["-n", namespace, "create", "--dry-run=client", "-o", "json", "-f", "-"],
        &text,
    );
    // One after the other, not as a list.
    let objects = serde_json::Deserializer::from_slice(&taken.stdout).into_iter::<Value>();
    let objects: Vec<Value> = objects.map(Result::unwrap).collect();
    assert!(5 <= objects.len(), "{}", String::from_utf8_lossy(&taken.stderr));
    objects
}

fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
    objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
}

/// The labels of a workload's pods.
fn pod_labels(workload: &Value) -> Value {
    workload["spec"]["template"]["metadata"]["labels"].clone()
}

/// Every kind of pod there is, in `storage`.
struct Pods {
    master: End,
    chunkserver: End,
    mount: End,
    operator: End,
    hook: End,
}

fn pods(objects: &[Value]) -> Pods {
    let mut fs = minimal("x");
    fs["metadata"]["namespace"] = json!("storage");
    let fs: ::operator::crd::DistributedFS = serde_json::from_value(fs).unwrap();
    let wanted = ::operator::resources::Wanted { image: "i", chunkservers: 3, disruptions: 1 };
    let made = ::operator::resources::all(&fs, wanted);
    let named = |name: &str| {
        let found = made.iter().find(|object| {
            object["metadata"]["name"] == name && !object["spec"]["template"].is_null()
        });
        End::pod("storage", &pod_labels(found.unwrap()))
    };
    Pods {
        master: named("x-master"),
        chunkserver: named("x-cs"),
        mount: named("x-mount"),
        operator: End::pod("storage", &pod_labels(&of_kind(objects, "Deployment")[0])),
        hook: End::pod("storage", &pod_labels(&of_kind(objects, "Job")[0])),
    }
}

pub(crate) fn policies(cluster: &Cluster) {
    // Without being asked for there are none.
    let none = rendered(cluster, "storage", &[]);
    assert_eq!(of_kind(&none, "NetworkPolicy"), [json!(null); 0]);
    let all = rendered(cluster, "storage", &["networkPolicy.enabled=true"]);
    let policies = of_kind(&all, "NetworkPolicy");
    let Pods { master, chunkserver, mount, operator, hook } = pods(&all);
    let api = End::outside([172, 18, 0, 2]);
    let names = End::pod("kube-system", &json!({"k8s-app": "kube-dns"}));
    let prometheus = End::pod("monitoring", &json!({"app.kubernetes.io/name": "prometheus"}));
    let stranger = End::pod("storage", &json!({"app": "stranger"}));
    let elsewhere = End::pod("other", &json!({"app.kubernetes.io/name": "distributedfs"}));
    for (what, from, to, port, protocol, expected) in [
        ("heartbeats", &chunkserver, &master, 7000, "TCP", true),
        ("copies", &chunkserver, &chunkserver, 7001, "TCP", true),
        ("names of files", &mount, &master, 7000, "TCP", true),
        ("bytes of files", &mount, &chunkserver, 7001, "TCP", true),
        ("what is and what to do", &operator, &master, 7000, "TCP", true),
        ("configurations of chunks", &master, &chunkserver, 7001, "TCP", true),
        ("the operator's API server", &operator, &api, 6443, "TCP", true),
        ("a Lease", &chunkserver, &api, 6443, "TCP", true),
        ("a hook's API server", &hook, &api, 443, "TCP", true),
        ("names for mounts", &mount, &names, 53, "UDP", true),
        ("names for the operator", &operator, &names, 53, "TCP", true),
        ("names for chunkservers", &chunkserver, &names, 53, "UDP", true),
        ("names for hooks", &hook, &names, 53, "UDP", true),
        ("scrape of the master", &prometheus, &master, 9600, "TCP", true),
        ("scrape of a chunkserver", &prometheus, &chunkserver, 9600, "TCP", true),
        ("scrape of a mount", &prometheus, &mount, 9600, "TCP", true),
        ("scrape of the operator", &prometheus, &operator, 9600, "TCP", true),
        ("a stranger at the master", &stranger, &master, 7000, "TCP", false),
        ("a stranger at a chunkserver", &stranger, &chunkserver, 7001, "TCP", false),
        ("a namesake of another namespace", &elsewhere, &master, 7000, "TCP", false),
        ("a scrape from outside", &api, &master, 9600, "TCP", false),
        ("a master that asks the API server", &master, &api, 6443, "TCP", false),
        ("a mount that asks the API server", &mount, &api, 6443, "TCP", false),
        ("a mount that goes elsewhere", &mount, &api, 80, "TCP", false),
        ("the operator at a disk", &operator, &chunkserver, 7001, "TCP", false),
        ("anybody at a hook", &operator, &hook, 9600, "TCP", false),
    ] {
        assert_eq!(allowed(&policies, from, to, port, protocol), expected, "{what}");
    }

    // What the values open or close.
    let other =
        r#"[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"other"}}}]"#;
    let set = [
        "networkPolicy.enabled=true",
        "operator.watchAllNamespaces=true",
        &format!("networkPolicy.clients={other}"),
        &format!("networkPolicy.metricsFrom={other}"),
        r#"networkPolicy.apiServer={"to":[{"ipBlock":{"cidr":"172.18.0.2/32"}}],"ports":[6443]}"#,
    ];
    let policies = of_kind(&rendered(cluster, "storage", &set), "NetworkPolicy");
    let far = End { namespace: "other", ..master.clone() };
    for (what, from, to, port, expected) in [
        ("a client that was named", &elsewhere, &master, 7000, true),
        ("its bytes", &elsewhere, &chunkserver, 7001, true),
        ("a scrape that was named", &elsewhere, &mount, 9600, true),
        ("a scrape that was not", &prometheus, &mount, 9600, false),
        ("the API server", &operator, &api, 6443, true),
        ("another port of it", &operator, &api, 443, false),
        ("another address", &operator, &End::outside([172, 18, 0, 3]), 6443, false),
        ("a master of another namespace", &operator, &far, 7000, true),
    ] {
        assert_eq!(allowed(&policies, from, to, port, "TCP"), expected, "{what}");
    }
}

/// Established connections of the network namespace that `pid` is in: own port, the other's address and port.
fn connections(pid: i32) -> Vec<(u16, IpAddr, u16)> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let end = |text: &str| -> Option<(IpAddr, u16)> {
        let (address, port) = text.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_be();
        Some((Ipv4Addr::from(address).into(), u16::from_str_radix(port, 16).ok()?))
    };
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (own, other, state) = (words.nth(1)?, words.next()?, words.next()?);
        (state == "01").then_some(())?;
        let (other, port) = end(other)?;
        Some((end(own)?.1, other, port))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Level 3: what the pods of `namespace` are connected to, by the kind of both ends and the server's port, is allowed.
pub(crate) fn connections_are_allowed(cluster: &Cluster, namespace: &'static str) {
    let all = rendered(
        cluster,
        namespace,
        &["networkPolicy.enabled=true", "networkPolicy.apiServer.ports=[16443]"],
    );
    // Of the release that runs here.
    let text = serde_json::to_string(&of_kind(&all, "NetworkPolicy")).unwrap();
    let policies: Value =
        serde_json::from_str(&text.replace(
            r#""app.kubernetes.io/instance":"t""#,
            r#""app.kubernetes.io/instance":"dfs""#,
        ))
        .unwrap();
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    wait_for("every pair of ends", || {
        look(cluster, namespace, items(&policies), &mut seen);
        let pairs = [
            "chunkserver -> master:7000",
            "chunkserver -> chunkserver:7001",
            "master -> chunkserver:7001",
            "mount -> master:7000",
            "mount -> chunkserver:7001",
            "operator -> master:7000",
            "operator -> outside:16443",
        ];
        pairs.iter().all(|pair| seen.contains_key(*pair)).then_some(())
    });
    println!("connections seen: {}", seen.keys().cloned().collect::<Vec<_>>().join(", "));
    let refused: Vec<&String> = seen.iter().filter(|(_, good)| !**good).map(|(p, _)| p).collect();
    assert_eq!(refused, [""; 0], "connections that the policies would cut");
}

fn look(
    cluster: &Cluster,
    namespace: &'static str,
    policies: &[Value],
    seen: &mut BTreeMap<String, bool>,
) {
    let list = cluster.get(namespace, "pod");
    let mut known: BTreeMap<String, (String, End)> = BTreeMap::new();
    for pod in items(&list["items"]) {
        let labels = &pod["metadata"]["labels"];
        let Some(component) = labels["app.kubernetes.io/component"].as_str() else { continue };
        let Some(address) = pod["status"]["podIP"].as_str() else { continue };
        let end = End { address: address.parse().unwrap(), ..End::pod(namespace, labels) };
        known.insert(address.to_owned(), (component.to_owned(), end));
    }
    for pod in items(&list["items"]) {
        let Some((component, own)) =
            pod["status"]["podIP"].as_str().and_then(|address| known.get(address))
        else {
            continue;
        };
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let Some(pid) = crate::files::pids_in(uid).into_iter().next() else { continue };
        for (own_port, address, port) in connections(pid) {
            // Its own end of a connection that the other made: seen there, or made by a probe.
            if [7000, 7001, 9600].contains(&own_port) {
                continue;
            }
            let IpAddr::V4(v4) = address else { continue };
            let (name, other) = known.get(&address.to_string()).cloned().unwrap_or_else(|| {
                ("outside".to_owned(), End { address: v4, ..End::outside([0; 4]) })
            });
            // A Service's address stands for the pod behind it, which policies see.
            let service = port == 443 || (name == "outside" && [7000, 7001].contains(&port));
            let (name, other, port) = match (service, port) {
                (true, 443) => ("outside".to_owned(), End::outside([10, 88, 0, 1]), 16443),
                (true, 7000) => {
                    let found = known.values().find(|(component, _)| component == "master");
                    let Some((name, end)) = found.cloned() else { continue };
                    (name, end, port)
                }
                _ => (name, other, port),
            };
            let good = allowed(policies, own, &other, port, "TCP");
            seen.insert(format!("{component} -> {name}:{port}"), good);
        }
    }
}
