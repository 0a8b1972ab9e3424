//! What the chart has is what the program says.

#[test]
fn the_charts_definition_is_what_the_operator_prints() {
    let path = tests::repository().join("charts/distributedfs/crds/distributedfs.yaml");
    let expected = operator::crd::definition_yaml().unwrap();
    if std::env::var_os("DFS_WRITE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{} is not what `dfs operator crd` prints; first difference: {differs:?}; \
         write it with DFS_WRITE_DOCS=1 cargo test -p tests --test tidy chart",
        path.display()
    );
}

/// The words after each `- alert:` and the like.
fn after<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key))
        .map(str::trim)
        .collect()
}

fn alerts() -> (String, String) {
    let dir = tests::repository().join("charts/distributedfs/alerts");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    (read("distributedfs.yaml"), read("tests.yaml"))
}

#[test]
fn every_alert_has_a_page_and_a_test() {
    let (rules, tried) = alerts();
    let names = after(&rules, "alert:");
    assert!(10 <= names.len(), "{names:?}");
    let tried = after(&tried, "name:");
    let mut findings = Vec::new();
    for name in names {
        let page = format!("docs/runbooks/{name}.md");
        if !tests::repository().join(&page).is_file() {
            findings.push(format!("{name}: no {page}"));
        }
        if !tried.contains(&name) {
            findings.push(format!("{name}: not in alerts/tests.yaml"));
        }
        if !rules.contains(&format!("runbook_url: https://distributedfs.io/{page}")) {
            findings.push(format!("{name}: names no page"));
        }
    }
    crate::check_none(&findings);
}

/// The page says when the alert fires in the words of the rule, and what is recorded has been tried.
#[test]
fn pages_say_what_the_rules_say() {
    let (rules, tried) = alerts();
    let mut findings = Vec::new();
    for alert in rules.split("\n  - alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let one = |key: &str| after(alert, key)[0];
        let (expr, time, severity) = (one("expr:"), one("for:"), one("severity:"));
        let line = format!("Fires when `{expr}` for {time}; severity {severity}.");
        let page = tests::repository().join(format!("docs/runbooks/{name}.md"));
        let page = std::fs::read_to_string(page).unwrap_or_default();
        if !page.lines().any(|found| found == line) {
            findings.push(format!("docs/runbooks/{name}.md does not say: {line}"));
        }
        if !page.starts_with(&format!("# {name}\n")) || !page.contains("\n1. ") {
            findings.push(format!("docs/runbooks/{name}.md: no title, or no first step"));
        }
    }
    let records = after(&rules, "record:");
    assert!(5 <= records.len(), "{records:?}");
    for record in records {
        if !tried.contains(&format!("expr: '{record}'")) && !tried.contains(&format!("({record},"))
        {
            findings.push(format!("{record}: not in alerts/tests.yaml"));
        }
    }
    let pages = tests::repository().join("docs/runbooks");
    for page in std::fs::read_dir(pages).unwrap().map(|entry| entry.unwrap().path()) {
        let name = page.file_stem().unwrap().to_string_lossy().into_owned();
        if !after(&rules, "alert:").contains(&name.as_str()) {
            findings.push(format!("docs/runbooks/{name}.md: no such alert"));
        }
    }
    crate::check_none(&findings);
}

/// Names of metrics of ours in an expression.
fn metrics_in(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("dfs_"))
        .collect()
}

#[test]
fn alerts_use_only_metrics_that_are_exported() {
    let described = [
        master::metrics::Metrics::new().described.clone(),
        chunkserver::metrics::Metrics::new().described,
        fuse_client::metrics::Metrics::new().described,
        operator::metrics::Metrics::new().described,
    ];
    let known: Vec<&str> = described.iter().flatten().map(|one| one.name.as_str()).collect();
    let (rules, tried) = alerts();
    let used: Vec<&str> =
        [rules.as_str(), tried.as_str()].into_iter().flat_map(metrics_in).collect();
    assert!(10 <= used.len(), "{used:?}");
    let records: Vec<&str> = after(&rules, "record:").into_iter().flat_map(metrics_in).collect();
    let unknown = used.into_iter().filter(|name| {
        !known.contains(name) && !known.contains(&base(name)) && !records.contains(name)
    });
    crate::check_none(
        &unknown.map(|name| format!("alerts: nobody exports {name}")).collect::<Vec<_>>(),
    );
}

#[test]
fn alerts_fire_on_what_they_are_for() {
    let dir = tests::repository().join("charts/distributedfs/alerts");
    for args in [["check", "rules", "distributedfs.yaml"], ["test", "rules", "tests.yaml"]] {
        let output =
            match std::process::Command::new("promtool").args(args).current_dir(&dir).output() {
                Ok(output) => output,
                Err(_) => {
                    return tests::skipped(
                        "promtool is not installed (apt-get install prometheus)",
                    );
                }
            };
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// Name of the file, and what Grafana gets.
fn dashboards() -> Vec<(String, serde_json::Value)> {
    let dir = tests::repository().join("charts/distributedfs/dashboards");
    let mut found: Vec<(String, serde_json::Value)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.display().to_string(),
                serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap(),
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn expressions(dashboard: &serde_json::Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// A histogram is exported as its buckets, its sum and its count.
fn base(name: &str) -> &str {
    ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

#[test]
fn dashboards_say_what_they_show_and_use_only_metrics_that_are_exported() {
    let described = [
        master::metrics::Metrics::new().described.clone(),
        chunkserver::metrics::Metrics::new().described,
        fuse_client::metrics::Metrics::new().described,
        operator::metrics::Metrics::new().described,
    ];
    let known: Vec<&str> = described.iter().flatten().map(|one| one.name.as_str()).collect();
    let mut findings = Vec::new();
    let all = dashboards();
    assert!(5 <= all.len());
    for (file, dashboard) in &all {
        for panel in dashboard["panels"].as_array().unwrap() {
            for key in ["/title", "/description", "/fieldConfig/defaults/unit"] {
                if panel.pointer(key).and_then(|v| v.as_str()).is_none_or(str::is_empty) {
                    findings.push(format!("{file}: panel {} has no {key}", panel["id"]));
                }
            }
        }
        for expression in expressions(dashboard) {
            let used = metrics_in(&expression);
            assert!(!used.is_empty(), "{file}: {expression}");
            for name in used {
                if !known.contains(&name) && !known.contains(&base(name)) {
                    findings.push(format!("{file}: nobody exports {name}"));
                }
            }
        }
    }
    crate::check_none(&findings);
}

/// As rules, which promtool reads as Prometheus does.
#[test]
fn queries_of_dashboards_are_understood() {
    let mut rules = String::from("groups:\n- name: dashboards\n  rules:\n");
    for (number, expression) in dashboards().iter().flat_map(|(_, d)| expressions(d)).enumerate() {
        let expression = expression.replace("$__rate_interval", "1m").replace("$namespace", "n");
        rules.push_str(&format!(
            "  - {{record: 'panel:{number}', expr: {}}}\n",
            serde_json::Value::from(expression)
        ));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yaml");
    std::fs::write(&file, rules).unwrap();
    let output =
        match std::process::Command::new("promtool").args(["check", "rules"]).arg(file).output() {
            Ok(output) => output,
            Err(_) => {
                return tests::skipped("promtool is not installed (apt-get install prometheus)");
            }
        };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
}

/// Every value has a default and a description, and what is not there is refused. That the defaults satisfy the schema is
/// Helm's to say (tests/k8s).
#[test]
fn the_schema_has_all_values_and_says_what_they_are() {
    let chart = tests::repository().join("charts/distributedfs");
    let read = |name: &str| std::fs::read_to_string(chart.join(name)).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values = read("values.yaml");
    let mut findings = Vec::new();
    check_schema("", &schema, &values, &mut findings);
    crate::check_none(&findings);
}

fn check_schema(path: &str, schema: &serde_json::Value, values: &str, findings: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    if schema["additionalProperties"] != false {
        findings.push(format!("values.schema.json: {path}/ takes values that it does not know"));
    }
    for (name, property) in properties {
        let path = format!("{path}/{name}");
        // What a chart above shares; requests and limits are a container's.
        if path == "/global" || path.starts_with("/operator/resources/") {
            continue;
        }
        if !values.lines().any(|line| line.trim_start().starts_with(&format!("{name}:"))) {
            findings.push(format!("values.yaml: no {path}"));
        }
        if property["description"].as_str().is_none_or(|words| words.len() < 8) {
            findings.push(format!("values.schema.json: {path} has no description"));
        }
        check_schema(&path, property, values, findings);
    }
}
