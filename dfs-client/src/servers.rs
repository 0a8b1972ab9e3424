//! Connections to chunkservers: two for each server, one for what must keep its order and one for reads.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dfs_core::client::replica::{ReplicaView, smooth};
use dfs_core::ids::{ClientId, FsId, ServerId};
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataReply, Peer};
use dfs_proto::frame_conn::{Frame, FrameClient, LoneClient};
use dfs_service::conn::{self, ClusterKey, Door};

use crate::session::lock;

const DIAL_MAX: Duration = Duration::from_secs(1);
/// A write that the server does not take for so long ends the connection.
const SEND_MAX: Duration = Duration::from_secs(10);
/// A server that could not be reached is not dialled again sooner.
const REDIAL_AFTER: Duration = Duration::from_millis(200);
/// And other replicas are read rather than its own for so long.
const AVOID_FOR: Duration = Duration::from_secs(2);
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
    latency_us: AtomicU64,
    in_flight: AtomicU64,
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
                latency_us: AtomicU64::new(0),
                in_flight: AtomicU64::new(0),
            })
        });
        Arc::clone(link)
    }

    /// A living connection, dialled if there is none.
    pub(crate) fn connection(&self, link: &ServerLink, lane: Lane) -> io::Result<Arc<FrameClient>> {
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
        let stream = conn::dial(&link.address, &self.key, Door::Frames, DIAL_MAX)?;
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
