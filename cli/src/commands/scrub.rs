//! `dfs scrub`: has all replicas read now, and follows that to its end.

use std::time::Duration;

use anyhow::Context as _;
use dfs_proto::control::jobs_client::JobsClient;
use dfs_proto::control::{JobScrubRequest, JobStatus, JobWorkersRequest};
use dfs_service::conn::control_channel;
use serde::Serialize;

use super::job::{AGAIN, ask_jobs, request_id};
use crate::admin::call;
use crate::args::ClusterArgs;
use crate::args::jobs::ScrubArgs;
use crate::cluster::{self, Target};
use crate::failure::{Failure, fail};
use crate::files::Files;
use crate::output::{self, Table};
use crate::progress::Steps;
use crate::remote_path::RemotePath;
use crate::servers;

const POLL: Duration = Duration::from_millis(500);

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Scrubbed {
    job: u64,
    /// running, paused, done, cancelled
    phase: String,
    replicas_read: u64,
    replicas: u64,
    /// Of those read; they are mended from other members.
    damaged: u64,
    /// Servers that have replicas to read and read none.
    stalled: Vec<String>,
}

impl From<JobStatus> for Scrubbed {
    fn from(job: JobStatus) -> Self {
        Self {
            job: job.id,
            phase: job.phase,
            replicas_read: job.done,
            replicas: job.total,
            damaged: job.found,
            stalled: job.stalled,
        }
    }
}

impl Table for Scrubbed {
    fn table(&self) -> String {
        let Self { job, phase, replicas_read, damaged, .. } = self;
        let found = match damaged {
            0 => "all are as they were written".to_owned(),
            1 => "1 was damaged, and is mended from another member".to_owned(),
            more => format!("{more} were damaged, and are mended from other members"),
        };
        match phase.as_str() {
            "done" => format!("{replicas_read} replicas read: {found}\n"),
            _ => format!("job {job} is {phase}: {}\n", progress(self)),
        }
    }
}

fn progress(scrub: &Scrubbed) -> String {
    let Scrubbed { replicas_read, replicas, damaged, stalled, .. } = scrub;
    let mut text = match replicas {
        0 => "begins".to_owned(),
        all => format!("{replicas_read} of {all} replicas read"),
    };
    if 0 < *damaged {
        text.push_str(&format!(", {damaged} damaged"));
    }
    if !stalled.is_empty() {
        text.push_str(&format!("; nothing comes from {}", stalled.join(", ")));
    }
    text
}

pub(crate) fn run(cluster: &ClusterArgs, args: &ScrubArgs) -> anyhow::Result<()> {
    let ScrubArgs { now: _, path, server, no_wait, output } = args;
    let target = &cluster::target(cluster)?;
    let inode = match path {
        None => None,
        Some(path) => Some(Files::open(cluster)?.attr(&RemotePath::parse(path)?)?.ino.0),
    };
    let request = JobScrubRequest {
        server: server.map(|server| server.to_string()).unwrap_or_default(),
        inode,
        by: servers::myself(),
        request: request_id()?,
    };
    let begun = ask_jobs!(target, scrub, request)
        .map_err(|error| Failure::new(format!("scrub: {error:#}"), "see `dfs status`"))?;
    let scrubbed = if *no_wait { look(target, begun.id)? } else { wait(target, begun.id)? };
    if scrubbed.phase == "cancelled" {
        return fail(
            format!("scrub: somebody cancelled job {} ({})", begun.id, progress(&scrubbed)),
            "give the command again if it is still meant",
        );
    }
    output::print(output.format, &scrubbed)
}

fn look(target: &Target, id: u64) -> anyhow::Result<Scrubbed> {
    let request = JobWorkersRequest { id, first: 0, max: 1 };
    let found = ask_jobs!(target, workers, request).context("ask how far the scrub is")?;
    Ok(Scrubbed::from(found.job.unwrap_or_default()))
}

/// Follows it to its end. Interrupting that ends the watching only.
fn wait(target: &Target, id: u64) -> anyhow::Result<Scrubbed> {
    let mut steps = Steps::new();
    loop {
        let scrubbed = look(target, id)?;
        if matches!(scrubbed.phase.as_str(), "done" | "cancelled") {
            steps.finish();
            return Ok(scrubbed);
        }
        let paused = if scrubbed.phase == "paused" { "paused; " } else { "" };
        steps.say(&format!("job {id}: {paused}{}", progress(&scrubbed)));
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_and_found_is_told() {
        let mut scrub = Scrubbed {
            job: 3,
            phase: "running".to_owned(),
            replicas_read: 5,
            replicas: 9,
            damaged: 1,
            stalled: vec!["cs-2".to_owned()],
        };
        assert_eq!(progress(&scrub), "5 of 9 replicas read, 1 damaged; nothing comes from cs-2");
        scrub.phase = "done".to_owned();
        let said = "5 replicas read: 1 was damaged, and is mended from another member\n";
        assert_eq!(scrub.table(), said);
    }
}
