//! Connections to chunkservers: two for each server, one for what must keep its order and one for reads.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dfs_core::client::replica::{ReplicaView, smooth};
use dfs_core::ids::{ClientId, FsId, ServerId};
use dfs_proto::chunk_file::BLOCK_BYTES_MAX;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataReply, Peer};
use dfs_proto::frame_conn::{Frame, FrameClient, LoneClient};
use dfs_proto::meta_rpc::ChunkLayout;
use dfs_service::conn::{self, ClusterKey, Door};

use crate::local_files::{DoorAddress, LOCAL_BYTES_MIN, LocalFiles};
use crate::session::lock;

const DIAL_MAX: Duration = Duration::from_secs(1);
/// A write that the server does not take for so long ends the connection.
const SEND_MAX: Duration = Duration::from_secs(10);
/// A server that could not be reached is not dialled again sooner.
const REDIAL_AFTER: Duration = Duration::from_millis(200);
/// And other replicas are read rather than its own for so long.
const AVOID_FOR: Duration = Duration::from_secs(2);
/// A server that answers nothing for so long is asked for a sign of life, which it has so long to give.
const SILENCE: Duration = Duration::from_secs(1);
const SIGN_MAX: Duration = Duration::from_secs(1);
/// Who was suspected within this time gets twice the silence each time, up to eight times: on a machine too busy to
/// answer in time clients would otherwise ask for one configuration after the other.
const SUSPICION: Duration = Duration::from_secs(60);
const SILENCE_DOUBLINGS_MAX: u32 = 3;
/// Connections of waiting readers kept for the next ones.
const LONE_MAX: usize = 16;
/// Addresses remembered; those without a living connection go first.
const LINKS_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Write,
    Read,
}

/// One chunkserver at one address.
pub(crate) struct ServerLink {
    server: ServerId,
    address: String,
    lanes: [Mutex<Option<Arc<FrameClient>>>; 2],
    /// For readers that wait for their own answer: no other thread is woken.
    lone: Mutex<Vec<LoneClient>>,
    failed_at: Mutex<Option<Instant>>,
    life: Mutex<Life>,
    latency_us: AtomicU64,
    in_flight: AtomicU64,
    pub(crate) local: LocalFiles,
}

/// What is known of a server that left something unanswered.
#[derive(Default, Debug)]
struct Life {
    asking: bool,
    signed_at: Option<Instant>,
    suspected_at: Option<Instant>,
    doublings: u32,
}

impl Life {
    fn silence(&self) -> Duration {
        let fresh = self.suspected_at.is_some_and(|at| at.elapsed() < SUSPICION);
        if fresh { SILENCE * (1 << self.doublings) } else { SILENCE }
    }

    fn begin_asking(&mut self, silence: Duration) -> bool {
        let allowed = self.silence();
        let signed = self.signed_at.is_some_and(|at| at.elapsed() < allowed);
        let begin = !self.asking && !signed && allowed <= silence;
        self.asking |= begin;
        begin
    }

    fn asked(&mut self, signed: bool) {
        self.asking = false;
        if signed {
            self.signed_at = Some(Instant::now());
            return;
        }
        let fresh = self.suspected_at.is_some_and(|at| at.elapsed() < SUSPICION);
        self.doublings = if fresh { (self.doublings + 1).min(SILENCE_DOUBLINGS_MAX) } else { 1 };
        self.suspected_at = Some(Instant::now());
    }
}

/// All chunkservers this client talks to.
pub(crate) struct Servers {
    key: ClusterKey,
    fs: FsId,
    client: ClientId,
    links: Mutex<HashMap<(ServerId, String), Arc<ServerLink>>>,
}

impl Servers {
    pub(crate) fn new(key: ClusterKey, fs: FsId, client: ClientId) -> Self {
        Self { key, fs, client, links: Mutex::default() }
    }

    pub(crate) fn link(&self, server: ServerId, address: &str) -> Arc<ServerLink> {
        let mut links = lock(&self.links);
        if LINKS_MAX <= links.len() {
            links.retain(|_, link| link.is_connected());
        }
        let link = links.entry((server, address.to_owned())).or_insert_with(|| {
            Arc::new(ServerLink {
                server,
                address: address.to_owned(),
                lanes: [Mutex::new(None), Mutex::new(None)],
                lone: Mutex::default(),
                failed_at: Mutex::new(None),
                life: Mutex::default(),
                latency_us: AtomicU64::new(0),
                in_flight: AtomicU64::new(0),
                local: LocalFiles::default(),
            })
        });
        Arc::clone(link)
    }

    /// A living connection, dialled if there is none.
    pub(crate) fn connection(&self, link: &ServerLink, lane: Lane) -> io::Result<Arc<FrameClient>> {
        // One place for each kind of lane.
        let mut slot = lock(&link.lanes[lane as usize]);
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        if link.failed_since(REDIAL_AFTER) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                format!("{} could not be reached a moment ago", link.server),
            ));
        }
        let dialled = self.dial(link);
        match &dialled {
            Ok(client) => {
                *slot = Some(Arc::clone(client));
                *lock(&link.failed_at) = None;
            }
            Err(_) => link.failed(),
        }
        dialled
    }

    fn dial(&self, link: &ServerLink) -> io::Result<Arc<FrameClient>> {
        let client = FrameClient::new(self.connect(link)?)?;
        let frame = client.call(&self.hello(), &[], DIAL_MAX)?;
        self.check_welcome(link, &frame)?;
        Ok(client)
    }

    fn connect(&self, link: &ServerLink) -> io::Result<TcpStream> {
        if link.address.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "server is not known to be up",
            ));
        }
        self.connect_within(link, DIAL_MAX)
    }

    fn connect_within(&self, link: &ServerLink, deadline: Duration) -> io::Result<TcpStream> {
        let stream = conn::dial(&link.address, &self.key, Door::Frames, deadline)?;
        stream.set_write_timeout(Some(SEND_MAX))?;
        Ok(stream)
    }

    fn hello(&self) -> Vec<u8> {
        DataCall::Hello { fs: self.fs, from: Peer::Client(self.client) }.to_bytes()
    }

    fn check_welcome(&self, link: &ServerLink, frame: &Frame) -> io::Result<()> {
        match reply_of(frame)? {
            DataReply::Welcome { fs, server } if fs == self.fs && server == link.server => Ok(()),
            DataReply::Welcome { fs, server } => Err(io::Error::other(format!(
                "{} is {server} of file system {fs}, not {} of {}",
                link.address, link.server, self.fs
            ))),
            other => Err(io::Error::other(format!("hello was answered {other:?}"))),
        }
    }

    /// One call and its answer on the caller's thread.
    pub(crate) fn call(
        &self,
        link: &ServerLink,
        args: &[u8],
        deadline: Duration,
    ) -> io::Result<Frame> {
        let mut lone = match lock(&link.lone).pop() {
            Some(lone) => lone,
            None => self.dial_lone(link)?,
        };
        let frame = lone.call(args, &[], deadline).inspect_err(|_| {
            // The others were to the same process.
            lock(&link.lone).clear();
        })?;
        let mut idle = lock(&link.lone);
        if idle.len() < LONE_MAX {
            idle.push(lone);
        }
        Ok(frame)
    }

    /// The chunk's file, if a read of it is better done here.
    pub(crate) fn local_file(
        &self,
        link: &ServerLink,
        layout: &ChunkLayout,
        offset: u64,
        len: u32,
    ) -> Option<Arc<File>> {
        let whole = offset.is_multiple_of(BLOCK_BYTES_MAX.min(layout.chunk_size.max(1)));
        if len < LOCAL_BYTES_MIN || !whole {
            return None;
        }
        link.local.file(layout.chunk, || {
            let frame = self.call(link, &DataCall::LocalDoor.to_bytes(), DIAL_MAX)?;
            match reply_of(&frame)? {
                DataReply::LocalDoor { name, token } => Ok(DoorAddress { name, token }),
                other => Err(io::Error::other(format!("local door was answered {other:?}"))),
            }
        })
    }

    /// Closes files that were open for long enough.
    pub(crate) fn sweep_local_files(&self) {
        let links: Vec<_> = lock(&self.links).values().map(Arc::clone).collect();
        for link in links {
            link.local.sweep();
        }
    }

    fn dial_lone(&self, link: &ServerLink) -> io::Result<LoneClient> {
        if link.failed_since(REDIAL_AFTER) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                format!("{} could not be reached a moment ago", link.server),
            ));
        }
        let dialled = self.connect(link).and_then(|stream| {
            let mut lone = LoneClient::new(stream);
            let frame = lone.call(&self.hello(), &[], DIAL_MAX)?;
            self.check_welcome(link, &frame)?;
            Ok(lone)
        });
        dialled.inspect_err(|_| link.failed())
    }

    /// Any answer on a connection made for it: a process that is stopped accepts connections, and says nothing.
    pub(crate) fn ask_for_life(&self, link: &ServerLink) -> io::Result<()> {
        let mut lone = LoneClient::new(self.connect_within(link, SIGN_MAX)?);
        let frame = lone.call(&self.hello(), &[], SIGN_MAX)?;
        self.check_welcome(link, &frame)
    }

    pub(crate) fn close(&self) {
        for link in lock(&self.links).drain().map(|(_, link)| link) {
            link.close();
        }
    }
}

impl ServerLink {
    pub(crate) fn server(&self) -> ServerId {
        self.server
    }

    fn is_connected(&self) -> bool {
        self.lanes.iter().any(|lane| lock(lane).as_ref().is_some_and(|client| !client.is_closed()))
    }

    pub(crate) fn failed(&self) {
        *lock(&self.failed_at) = Some(Instant::now());
    }

    fn failed_since(&self, window: Duration) -> bool {
        lock(&self.failed_at).is_some_and(|at| at.elapsed() < window)
    }

    /// Whether somebody who got no answer for `silence` should ask for a sign of life; [`Self::asked`] ends that.
    pub(crate) fn is_worth_asking(&self, silence: Duration) -> bool {
        lock(&self.life).begin_asking(silence)
    }

    pub(crate) fn asked(&self, signed: bool) {
        lock(&self.life).asked(signed);
    }

    /// Ends both connections: everything in flight fails.
    pub(crate) fn close(&self) {
        lock(&self.lone).clear();
        for lane in &self.lanes {
            if let Some(client) = lock(lane).take() {
                client.close();
            }
        }
    }

    pub(crate) fn view(&self, place: usize) -> ReplicaView {
        ReplicaView {
            place,
            latency_us: self.latency_us.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            avoid: self.address.is_empty() || self.failed_since(AVOID_FOR),
        }
    }

    pub(crate) fn read_began(&self) -> Instant {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    pub(crate) fn read_ended(&self, began: Instant, worked: bool) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if worked {
            let sample = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let smoothed = smooth(self.latency_us.load(Ordering::Relaxed), sample);
            self.latency_us.store(smoothed, Ordering::Relaxed);
        }
    }
}

pub(crate) fn reply_of(frame: &Frame) -> io::Result<DataReply> {
    DataReply::from_bytes(&frame.args)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_asked_once_and_a_sign_of_life_gives_it_time() {
        let mut life = Life::default();
        assert!(!life.begin_asking(SILENCE / 2), "too early");
        assert!(life.begin_asking(SILENCE) && !life.begin_asking(SILENCE), "somebody asks already");
        life.asked(true);
        assert!(!life.begin_asking(60 * SILENCE), "it is alive and slow");
    }

    #[test]
    fn a_server_that_was_suspected_is_given_more_time_each_time() {
        let mut life = Life::default();
        for expected in [1, 2, 4, 8, 8] {
            assert!(!life.begin_asking(SILENCE * expected - Duration::from_millis(1)));
            assert!(life.begin_asking(SILENCE * expected));
            life.asked(false);
        }
    }
}
