//! Which of several operators acts: an election on a Lease, after client-go's `tools/leaderelection`.
//!
//! Every write carries the resourceVersion that was read, so that the API server decides races. A Lease has run out when
//! it was not seen to change for its duration on this process's own clock; its times are never compared with ours, which
//! may be wrong. It is no fence: what the leader does must do no harm when it is done twice.
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub identity: String, // "<pod name>_<random>": unique per process, not per pod
    pub lease_duration: Duration, // 15 s
    pub renew_deadline: Duration, // 10 s, less than lease_duration
    pub retry_period: Duration, // 2 s, renew_deadline > 1.2 * retry_period
}

#[derive(Debug, PartialEq, Eq)]
pub enum Round {
    Leader,
    Follower,
    Raced,
}

#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    cfg: Config,
    seen: Option<(Option<String>, Instant)>,
}

impl Elector {
    pub fn new(api: Api<Lease>, cfg: Config) -> Self {
        Self { api, cfg, seen: None }
    }

    fn spec(&self, transitions: i32, acquired: MicroTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.cfg.identity.clone()),
            lease_duration_seconds: i32::try_from(self.cfg.lease_duration.as_secs()).ok(),
            acquire_time: Some(acquired),
            renew_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    pub async fn round(&mut self) -> kube::Result<Round> {
        let pp = PostParams::default();
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.cfg.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.cfg.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(0, now)),
            };
            return raced(self.api.create(&pp, &lease).await);
        };
        let rv = lease.metadata.resource_version.clone();
        if self.seen.as_ref().map(|(v, _)| v) != Some(&rv) {
            self.seen = Some((rv, Instant::now()));
        }
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or("");
        let ours = holder == self.cfg.identity;
        let ttl = Duration::from_secs(
            u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0),
        );
        let expired = self.seen.as_ref().is_some_and(|(_, at)| at.elapsed() >= ttl);
        if !ours && !holder.is_empty() && !expired {
            return Ok(Round::Follower);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        lease.spec = Some(if ours {
            self.spec(transitions, spec.acquire_time.unwrap_or(now))
        } else {
            self.spec(transitions + 1, now)
        });
        raced(self.api.replace(&self.cfg.name, &pp, &lease).await)
    }

    /// On a clean stop: no holder and 1 s, so that the next one need not wait out the lease.
    pub async fn release(&mut self) -> kube::Result<()> {
        let mut lease = self.api.get(&self.cfg.name).await?;
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(self.cfg.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api.replace(&self.cfg.name, &PostParams::default(), &lease).await.map(drop)
    }

    /// `lead` turns true when elected. When it turns false again, the process must exit.
    pub async fn run(mut self, lead: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut held: Option<Instant> = None;
        loop {
            let started = Instant::now(); // counted from BEFORE the request
            let budget = held.map_or(self.cfg.renew_deadline, |t| {
                self.cfg.renew_deadline.saturating_sub(t.elapsed())
            });
            match timeout(budget, self.round()).await {
                Ok(Ok(Round::Leader)) => {
                    held = Some(started);
                    lead.send_replace(true);
                }
                Ok(Ok(Round::Follower)) if held.is_some() => break, // somebody took it
                Ok(Ok(_)) => {}
                Ok(Err(e)) => {
                    tracing::warn!(error = %e, "the Lease of the election was not read or written")
                }
                Err(_) => {
                    tracing::warn!("the Lease of the election: no answer within the renew deadline")
                }
            }
            if held.is_some_and(|t| t.elapsed() >= self.cfg.renew_deadline) {
                break;
            }
            tokio::select! {
                _ = sleep(self.cfg.retry_period) => {}
                // the block drops the Ref of wait_for (not Send) before the next await
                _ = async { let _ = stop.wait_for(|s| *s).await; } => {
                    lead.send_replace(false);
                    if held.is_some() { let _ = timeout(self.cfg.retry_period, self.release()).await; }
                    return;
                }
            }
        }
        lead.send_replace(false);
    }
}

fn raced(r: kube::Result<Lease>) -> kube::Result<Round> {
    match r {
        Ok(_) => Ok(Round::Leader),
        // Error::Api holds a Box<Status>; Status::{is_conflict, is_already_exists, is_not_found, ..}
        Err(kube::Error::Api(s)) if s.is_conflict() || s.is_already_exists() => Ok(Round::Raced),
        Err(e) => Err(e),
    }
}
