//! `dfs fsck`: exit code 0 only if all is clean.

use dfs_service::page::Page;
use serde::Serialize;

use crate::args::{ClusterArgs, Format, FsckArgs};
use crate::failure::AlreadySaid;
use crate::output::{self, Table};
use crate::progress::Steps;
use crate::{admin, cluster};

#[derive(Debug, Default, Serialize)]
struct Report {
    clean: bool,
    checked: u64,
    violations: Vec<String>,
}

impl Table for Report {
    fn table(&self) -> String {
        if self.clean {
            format!("clean: {} records and replicas checked\n", self.checked)
        } else {
            format!(
                "NOT CLEAN: {} violation(s), {} records and replicas checked; see {}\n",
                self.violations.len(),
                self.checked,
                Page::Fsck
            )
        }
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &FsckArgs) -> anyhow::Result<()> {
    let target = cluster::target(cluster)?;
    let table = args.output.format == Format::Table;
    let mut report = Report::default();
    let mut unwritten = Ok(());
    let mut progress = Steps::new();
    admin::fsck(&target, |finding| {
        report.checked = report.checked.max(finding.checked);
        if finding.kind == "progress" {
            progress.say(&finding.text);
        }
        if finding.kind == "violation" {
            // At once: a long check should not keep its findings to itself.
            if table && unwritten.is_ok() {
                let line = format!("violation: {}", output::printable(&finding.text));
                unwritten = progress.hidden(|| output::line(&line));
            }
            report.violations.push(finding.text);
        }
    })?;
    progress.finish();
    unwritten?;
    report.clean = report.violations.is_empty();
    output::print(args.output.format, &report)?;
    if report.clean { Ok(()) } else { Err(AlreadySaid.into()) }
}
