//! Least privilege: what our ServiceAccounts were granted against what the API server's audit log says they did.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::Cluster;

/// ServiceAccount, API group, resource (with its subresource), verb.
type Right = (String, String, String, String);

/// Checked by an admission plugin that is off by default, never asked for by itself.
const ADMISSION_ONLY: &str = "distributedfs/finalizers";

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Everything that ServiceAccounts of `namespace` may do there or in the whole cluster by roles of ours.
#[track_caller]
pub(crate) fn granted(cluster: &Cluster, namespace: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for (bindings, roles) in [("rolebinding", "role"), ("clusterrolebinding", "clusterrole")] {
        let list = cluster.get(namespace, bindings);
        for binding in list["items"].as_array().into_iter().flatten() {
            for subject in binding["subjects"].as_array().into_iter().flatten() {
                if subject["kind"] != "ServiceAccount" || subject["namespace"] != namespace {
                    continue;
                }
                let account = subject["name"].as_str().unwrap_or_default().to_owned();
                let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
                let role = cluster.get(namespace, &format!("{roles} {role}"));
                for rule in role["rules"].as_array().into_iter().flatten() {
                    for group in texts(&rule["apiGroups"]) {
                        for resource in texts(&rule["resources"]) {
                            for verb in texts(&rule["verbs"]) {
                                rights.insert((
                                    account.clone(),
                                    group.clone(),
                                    resource.clone(),
                                    verb,
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(10 < rights.len(), "{rights:?}");
    rights
}

fn audit(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.dir.join("run/log/audit.log")).unwrap()
}

/// How long the audit log is now.
pub(crate) fn lines(cluster: &Cluster) -> usize {
    audit(cluster).lines().count()
}

/// Nothing was refused in the first `lines` lines of the log (later on rights are taken away), and nothing is granted that
/// was not used.
#[track_caller]
pub(crate) fn compare(cluster: &Cluster, namespace: &str, granted: &BTreeSet<Right>, lines: usize) {
    let text = audit(cluster);
    let prefix = format!("system:serviceaccount:{namespace}:");
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (number, line) in text.lines().enumerate() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let user = entry["user"]["username"].as_str().unwrap_or_default();
        let Some(account) = user.strip_prefix(&prefix) else { continue };
        let object = &entry["objectRef"];
        // Such as a look at the version, which everybody may have.
        let Some(resource) = object["resource"].as_str() else { continue };
        let resource = match object["subresource"].as_str() {
            Some(sub) => format!("{resource}/{sub}"),
            None => resource.to_owned(),
        };
        let group = object["apiGroup"].as_str().unwrap_or_default().to_owned();
        let verb = entry["verb"].as_str().unwrap_or_default().to_owned();
        let code = entry["responseStatus"]["code"].as_u64().unwrap_or(0);
        let right = (account.to_owned(), group, resource, verb);
        if code == 403 && lines <= number {
            continue;
        }
        if code == 403 {
            refused.insert(format!("{right:?}: {}", entry["responseStatus"]["message"]));
            continue;
        }
        // An apply that made something needs the right to create it.
        if right.3 == "patch" && code == 201 {
            used.insert((right.0.clone(), right.1.clone(), right.2.clone(), "create".to_owned()));
        }
        used.insert(right);
    }
    let unused: Vec<&Right> =
        granted.iter().filter(|right| !used.contains(right) && right.2 != ADMISSION_ONLY).collect();
    println!(
        "{} rights granted, {} used, {} requests refused",
        granted.len(),
        used.len(),
        refused.len()
    );
    assert!(refused.is_empty(), "refused: {refused:#?}");
    assert!(unused.is_empty(), "granted and never used: {unused:#?}");
}
