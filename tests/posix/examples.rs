//! The examples of `docs/semantics.md` run, each in a directory of its own, and every line of them succeeds.

use std::process::Command;
use std::time::Duration;

use tests::{Cluster, no_fuse, skipped};

fn examples(document: &str) -> Vec<&str> {
    document
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect()
}

#[test]
fn examples_of_the_document_run() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let document = std::fs::read_to_string(tests::repository().join("docs/semantics.md")).unwrap();
    let examples = examples(&document);
    assert!(4 <= examples.len(), "{} examples found", examples.len());
    let mut cluster = Cluster::start();
    let second = cluster.mount_again("second");
    for (n, example) in examples.iter().enumerate() {
        let dir = format!("example-{n}");
        std::fs::create_dir(cluster.mount().join(&dir)).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-u", "-c", example])
            .env("A", cluster.mount().join(&dir))
            .env("B", second.join(&dir));
        let output = tests::run(&mut shell, Duration::from_secs(120));
        assert!(
            output.status.success(),
            "{}:\n{example}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
