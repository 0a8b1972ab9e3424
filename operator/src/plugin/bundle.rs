//! Everything that tells how a file system is, in one archive for whoever is asked for help. No Secrets: they are not
//! read, and where the cluster key stood in a log it is struck out.

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams, LogParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Plugin;
use crate::names;

/// Of each log, its end.
const LOG_BYTES_MAX: i64 = 1 << 20;
const BLOCK: usize = 512;

/// A file of the archive.
pub type File = (String, String);

impl Plugin {
    /// What the API server knows; what it does not give is named in a file of its own.
    ///
    /// # Errors
    /// If the file system is not there.
    pub fn bundle(&self) -> anyhow::Result<Vec<File>> {
        let mut files = vec![("resource.json".to_owned(), text(&self.resource()?))];
        let mut missing = Vec::new();
        let ours = format!(
            "app.kubernetes.io/managed-by={},app.kubernetes.io/instance={}",
            names::MANAGER,
            self.name
        );
        self.list::<Pod>("pods", &ours, &mut files, &mut missing);
        self.list::<StatefulSet>("statefulsets", &ours, &mut files, &mut missing);
        self.list::<DaemonSet>("daemonsets", &ours, &mut files, &mut missing);
        self.list::<Lease>("leases", &ours, &mut files, &mut missing);
        self.list::<ConfigMap>("configmaps", &ours, &mut files, &mut missing);
        self.list::<PodDisruptionBudget>("disruptionbudgets", &ours, &mut files, &mut missing);
        self.list::<PersistentVolumeClaim>("claims", &ours, &mut files, &mut missing);
        self.list::<Event>("events", "", &mut files, &mut missing);
        for selector in [ours.as_str(), "app.kubernetes.io/component=operator"] {
            self.logs(selector, &mut files, &mut missing);
        }
        if !missing.is_empty() {
            files.push(("missing.txt".to_owned(), missing.join("\n") + "\n"));
        }
        Ok(files)
    }

    fn list<K>(&self, what: &str, selector: &str, files: &mut Vec<File>, missing: &mut Vec<String>)
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let params = ListParams::default().labels(selector);
        match self.runtime.block_on(self.api::<K>().list(&params)) {
            Ok(list) => files.push((format!("{what}.json"), text(&list.items))),
            Err(error) => missing.push(format!("{what}: {error}")),
        }
    }

    fn logs(&self, selector: &str, files: &mut Vec<File>, missing: &mut Vec<String>) {
        let api: Api<Pod> = self.api();
        let params = ListParams::default().labels(selector);
        let pods = match self.runtime.block_on(api.list(&params)) {
            Ok(list) => list.items,
            Err(error) => return missing.push(format!("pods {selector}: {error}")),
        };
        for pod in pods.iter().map(kube::ResourceExt::name_any) {
            for previous in [false, true] {
                let params = LogParams {
                    previous,
                    timestamps: true,
                    limit_bytes: Some(LOG_BYTES_MAX),
                    tail_lines: Some(10_000),
                    ..LogParams::default()
                };
                let word = if previous { ".previous" } else { "" };
                match self.runtime.block_on(api.logs(&pod, &params)) {
                    Ok(log) => files.push((format!("logs/{pod}{word}.log"), log)),
                    // Most containers never ended.
                    Err(_) if previous => {}
                    Err(error) => missing.push(format!("log of {pod}: {error}")),
                }
            }
        }
    }
}

/// As JSON, without what only the API server wants.
fn text(object: &impl Serialize) -> String {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    without_managed_fields(&mut value);
    format!("{value:#}\n")
}

fn without_managed_fields(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("managedFields");
            map.values_mut().for_each(without_managed_fields);
        }
        Value::Array(list) => list.iter_mut().for_each(without_managed_fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// With `secret` struck out wherever it stands.
#[must_use]
pub fn without(files: Vec<File>, secret: &str) -> Vec<File> {
    let strike = |text: String| match secret.is_empty() {
        true => text,
        false => text.replace(secret, "<cluster key>"),
    };
    files.into_iter().map(|(name, text)| (name, strike(text))).collect()
}

/// A tar archive (POSIX ustar) of `files` below the directory `root`.
///
/// # Errors
/// If a name is longer than the format allows.
pub fn archive(root: &str, files: &[File], unix_seconds: u64) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    for (name, text) in files {
        let path = format!("{root}/{name}");
        anyhow::ensure!(path.len() <= 100, "'{path}' is too long for the archive");
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = header.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, path.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", text.len()).as_bytes());
        put(136, format!("{unix_seconds:011o}\0").as_bytes());
        put(148, b"        0");
        put(257, b"ustar\x0000");
        // Counted with eight spaces in its own place.
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = header.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(148, format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(text.as_bytes());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_the_archive_and_the_key_is_not_in_it() {
        let files = vec![
            ("resource.json".to_owned(), "{}\n".to_owned()),
            ("logs/x-master-0.log".to_owned(), "key abc123\n".repeat(100)),
            ("empty".to_owned(), String::new()),
        ];
        let files = without(files, "abc123");
        let bytes = archive("dfs-report", &files, 1_767_225_600).unwrap();
        let dir = std::env::temp_dir().join(format!("dfs-bundle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("x.tar"), bytes).unwrap();
        let status = std::process::Command::new("tar")
            .args(["-xf", "x.tar"])
            .current_dir(&dir)
            .status()
            .unwrap();
        assert!(status.success());
        for (name, text) in &files {
            assert_eq!(std::fs::read_to_string(dir.join("dfs-report").join(name)).unwrap(), *text);
        }
        assert!(files[1].1.starts_with("key <cluster key>\n"));
        std::fs::remove_dir_all(dir).unwrap();
        let long = vec![("n".repeat(100), String::new())];
        assert!(archive("dfs-report", &long, 0).unwrap_err().to_string().contains("too long"));
    }
}
