//! Looks at every chunk again and again, so that what status and metrics say of the data's safety is true and cheap to
//! ask for; and the pages of this process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dfs_core::chunk::Chunk;
use dfs_core::cluster::Liveness;
use dfs_core::exposure::{Exposure, Lens, Looked, Safety, Survey, eta_ms, settled};
use dfs_core::ids::ServerId;
use dfs_core::meta::{self, Key, MetaStore as _, Record};
use dfs_service::canary;
use dfs_service::metrics_http::{MetricsServer, Pages};
use dfs_service::shutdown::Shutdown;

use crate::metrics::Metrics;
use crate::state::{Master, lock, now};

/// Between two surveys at least, and this many times what one takes: of a core at most a twentieth is spent on it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_FACTOR: u32 = 19;

/// What is kept between surveys.
#[derive(Debug, Default)]
pub struct Surveyed {
    pub exposure: Exposure,
    last: Survey,
}

/// Figures of one survey in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outlook {
    pub oldest_exposure_ms: Option<u64>,
    pub backlog_bytes: u64,
    pub copy_rate: u64,
    pub eta_ms: Option<u64>,
}

impl Surveyed {
    #[must_use]
    pub fn outlook(&self, survey: &Survey) -> Outlook {
        let copy_rate = self.exposure.copy_rate();
        Outlook {
            oldest_exposure_ms: self.exposure.oldest_ms(now(), survey),
            backlog_bytes: survey.backlog_bytes,
            copy_rate,
            eta_ms: eta_ms(survey.backlog_bytes, copy_rate),
        }
    }
}

impl Master {
    /// Looks at every chunk, as if the servers `without` had died now.
    #[must_use]
    pub fn survey(&self, without: &BTreeSet<ServerId>) -> Survey {
        let (replication, min_replicas) = (self.replication as usize, self.min_replicas as usize);
        let mut survey = Survey::default();
        self.for_each_chunk(|chunk, record| {
            let look = |record: &Chunk| {
                let written_lately = self.was_written_lately(chunk);
                let lens = Lens { now: now(), replication, without };
                lens.look(&lock(&self.cluster), chunk, record, written_lately)
            };
            let is_bad = |looked: &Looked| looked.safety != Safety::Safe;
            let looked = settled(record, || self.chunk(chunk), look, is_bad);
            let Some(mut looked) = looked else { return };
            if looked.safety == Safety::Unavailable && canary::sings("silent-counts-as-lost") {
                looked.safety = Safety::Lost;
            }
            survey.add(chunk, looked, replication, min_replicas);
        });
        survey
    }
}

/// Surveys until `shutdown`, on a thread of its own.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    loop {
        let began = Instant::now();
        let survey = master.survey(&BTreeSet::new());
        let took = began.elapsed();
        master.metrics.survey_seconds.observe(took.as_secs_f64());
        {
            let mut surveyed = lock(&master.surveyed);
            surveyed.exposure.on_survey(now(), &survey, master.metrics.copied_bytes.get());
            surveyed.last = survey;
        }
        if shutdown.wait_for(PAUSE_MIN.max(took * PAUSE_FACTOR)) {
            return;
        }
    }
}

/// Serves the pages of a process that becomes `master` when its log is read.
///
/// # Errors
/// If the address cannot be had.
pub fn serve_pages(
    listen: SocketAddr,
    metrics: &Metrics,
    master: &Arc<OnceLock<Arc<Master>>>,
) -> std::io::Result<MetricsServer> {
    let (refreshed, ready) = (Arc::clone(master), Arc::clone(master));
    let pages = Pages {
        registry: metrics.registry.clone(),
        refresh: Box::new(move || {
            if let Some(master) = refreshed.get() {
                refresh(master);
            }
        }),
        ready: Box::new(move || match ready.get() {
            Some(master) => check_ready(master),
            None => Err("starting: the log is being read".to_owned()),
        }),
    };
    MetricsServer::start(listen, pages)
}

fn check_ready(master: &Master) -> Result<(), String> {
    if !master.group.is_leader() {
        return Err("this master does not lead".to_owned());
    }
    if let Some(why) = crate::run::older_than_cluster() {
        return Err(why.to_owned());
    }
    if master.is_warming() {
        let (up, ms) = (master.uptime_ms(), master.config.profile.dead_after_ms);
        return Err(format!(
            "warming: chunkservers have {} ms left to report",
            ms.saturating_sub(up)
        ));
    }
    Ok(())
}

fn whole(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people: 53 bits are enough")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn refresh(master: &Master) {
    let metrics = &master.metrics;
    {
        let surveyed = lock(&master.surveyed);
        for safety in Safety::ALL {
            let count = surveyed.last.totals.of(safety);
            metrics.chunks.with_label_values(&[safety.name()]).set(whole(count));
        }
        let outlook = surveyed.outlook(&surveyed.last);
        metrics.oldest_exposure.set(seconds(outlook.oldest_exposure_ms.unwrap_or(0)));
        metrics.backlog_bytes.set(whole(outlook.backlog_bytes));
        let applied = master.group.applied_index().unwrap_or(0);
        let (holders, lag_ms) = lock(&master.copies).state(now(), applied);
        metrics.metadata_copies.set(whole(holders.len() as u64));
        metrics.metadata_lag.set(lag_ms.map_or(f64::INFINITY, seconds));
        metrics.copy_rate.set(whole(outlook.copy_rate));
        metrics.copy_eta.set(outlook.eta_ms.map_or(f64::INFINITY, seconds));
    }
    metrics.diverging.set(whole(lock(&master.rebuild.diverging).len()));
    for (phase, count) in master.works.counts() {
        metrics.jobs.with_label_values(&[phase]).set(count);
    }
    refresh_servers(master);
    metrics.connections.set(whole(lock(&master.connections).len()));
    metrics.clients.set(whole(lock(&master.clients).len()));
    metrics.leader.set(i64::from(master.group.is_leader()));
    metrics.warming.set(i64::from(master.is_warming()));
    metrics.epoch.set(whole(master.epoch.0));
    metrics.log_entries.set(whole(master.group.applied_index().unwrap_or(0)));
    if let Some(Record::Super(superblock)) = master.reader().get(&Key::Super) {
        metrics.inodes.set(whole(superblock.inode_count));
        metrics.file_bytes.set(whole(superblock.file_bytes));
    }
    let dir = &master.config.dir;
    metrics.log_bytes.set(whole(bytes_in(&dir.join("log"))));
    metrics.snapshot_bytes.set(whole(bytes_in(&dir.join("snapshots"))));
    let store = std::fs::metadata(crate::run::store_path(dir)).map_or(0, |file| file.len());
    metrics.store_bytes.set(whole(store));
}

fn refresh_servers(master: &Master) {
    let metrics = &master.metrics;
    let (mut alive, mut suspect, mut dead, mut used) = (0, 0, 0, 0_u64);
    let known = meta::servers(&master.reader());
    let cluster = lock(&master.cluster);
    let now = now();
    for (server, _) in known {
        match cluster.liveness(now, server) {
            Liveness::Alive => alive += 1,
            Liveness::Suspect => suspect += 1,
            Liveness::Dead => dead += 1,
        }
        let Some(row) = cluster.row(server) else { continue };
        if cluster.liveness(now, server) != Liveness::Dead {
            used = used.saturating_add(row.used_bytes);
        }
        let name = server.to_string();
        let age = seconds(now.nanos_since(row.heard_at) / 1_000_000);
        metrics.heartbeat_age.with_label_values(&[&name]).set(age);
        metrics.server_chunks.with_label_values(&[&name]).set(whole(row.chunk_count));
    }
    for (state, count) in [("alive", alive), ("suspect", suspect), ("dead", dead)] {
        metrics.servers.with_label_values(&[state]).set(count);
    }
    let damaged: usize = cluster.rows().values().map(|row| row.damaged.len()).sum();
    metrics.damaged.set(whole(damaged));
    metrics.used_bytes.set(whole(used));
    metrics.free_bytes.set(whole(cluster.capacity(now).1));
}

/// Of the files in one directory; one that goes meanwhile is not counted.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len()).sum()
}
