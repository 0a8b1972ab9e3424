//! Connections to other chunkservers: one per server, opened when first needed, shared by all chunks.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::ids::{FsId, ServerId};
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer};
use dfs_proto::frame_conn::{Frame, FrameClient};
use dfs_service::clock::monotonic_nanos;
use dfs_service::conn::{self, ClusterKey, Door};

/// After a failed attempt the next one waits this long: many chunks ask for the same dead server at once.
const RETRY_NANOS: u64 = 200_000_000;
const HELLO_MAX: Duration = Duration::from_secs(5);
/// A server without space is asked for it once in so long, and has this time to answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const ASK_SPACE_MAX: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Peers {
    me: ServerId,
    fs: FsId,
    key: ClusterKey,
    connect_timeout: Duration,
    write_timeout: Duration,
    slots: Mutex<HashMap<ServerId, Arc<Slot>>>,
}

#[derive(Debug)]
struct Slot {
    connection: Mutex<Connection>,
    /// As last told; `u64::MAX`: not told yet.
    free_bytes: AtomicU64,
    asked_at: Mutex<Option<Instant>>,
    /// Payload sent and not answered: not in `free_bytes` yet.
    unanswered_bytes: AtomicU64,
}

#[derive(Default, Debug)]
struct Connection {
    address: String,
    client: Option<Arc<FrameClient>>,
    failed_at: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reply in a frame, or what the frame says went wrong.
pub(crate) fn reply_of(frame: io::Result<Frame>) -> Result<(DataReply, Vec<u8>), String> {
    answer_of(frame)?.map_err(|failure| failure.to_string())
}

/// As [`reply_of`], for callers to whom it matters what failed.
pub(crate) fn answer_of(
    frame: io::Result<Frame>,
) -> Result<Result<(DataReply, Vec<u8>), DataFailure>, String> {
    let frame = frame.map_err(|e| e.to_string())?;
    match DataReply::from_bytes(&frame.args) {
        Ok(DataReply::Failed(failure)) => Ok(Err(failure)),
        Ok(reply) => Ok(Ok((reply, frame.payload))),
        Err(e) => Err(format!("reply: {e}")),
    }
}

impl Peers {
    pub(crate) fn new(
        me: ServerId,
        fs: FsId,
        key: ClusterKey,
        connect_timeout: Duration,
        write_timeout: Duration,
    ) -> Self {
        Self { me, fs, key, connect_timeout, write_timeout, slots: Mutex::new(HashMap::new()) }
    }

    fn slot(&self, server: ServerId) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        let slot = slots.entry(server).or_insert_with(|| {
            Arc::new(Slot {
                connection: Mutex::default(),
                free_bytes: AtomicU64::new(u64::MAX),
                asked_at: Mutex::default(),
                unanswered_bytes: AtomicU64::new(0),
            })
        });
        Arc::clone(slot)
    }

    /// The open connection to `server`, made now if there is none.
    ///
    /// # Errors
    /// Connection errors; `PermissionDenied` if another server, or one of another file system, answers there.
    pub(crate) fn client(&self, server: ServerId, address: &str) -> io::Result<Arc<FrameClient>> {
        let slot = self.slot(server);
        let mut connection = lock(&slot.connection);
        if let Some(client) = &connection.client
            && !client.is_closed()
            && (address.is_empty() || connection.address == address)
        {
            return Ok(Arc::clone(client));
        }
        connection.client = None;
        if address.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no address of {server}")));
        }
        let now = monotonic_nanos();
        if connection.address == address
            && connection.failed_at.is_some_and(|at| now < at + RETRY_NANOS)
        {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                format!("{server} at {address} could not be reached a moment ago"),
            ));
        }
        address.clone_into(&mut connection.address);
        match self.connect(server, address) {
            Ok((client, free_bytes)) => {
                slot.free_bytes.store(free_bytes, Ordering::Release);
                connection.failed_at = None;
                connection.client = Some(Arc::clone(&client));
                Ok(client)
            }
            Err(error) => {
                connection.failed_at = Some(monotonic_nanos());
                Err(error)
            }
        }
    }

    fn connect(&self, server: ServerId, address: &str) -> io::Result<(Arc<FrameClient>, u64)> {
        let stream = conn::dial(address, &self.key, Door::Frames, self.connect_timeout)?;
        // A member that stops reading must not hold up the chunk for longer than one that does not answer.
        stream.set_write_timeout(Some(self.write_timeout))?;
        let client = FrameClient::new(stream)?;
        let hello = DataCall::Hello { fs: self.fs, from: Peer::Server(self.me) };
        let refused = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
        match reply_of(client.call(&hello.to_bytes(), &[], HELLO_MAX)).map_err(refused)? {
            (DataReply::Welcome { server: there, .. }, _) if there == server => {}
            (other, _) => return Err(refused(format!("{address} is not {server}: {other:?}"))),
        }
        let space =
            reply_of(client.call(&DataCall::Space.to_bytes(), &[], HELLO_MAX)).map_err(refused)?;
        let free_bytes = if let (DataReply::Applied { free_bytes, .. }, _) = space {
            free_bytes
        } else {
            u64::MAX
        };
        Ok((client, free_bytes))
    }

    /// `bytes` of payload go to `server`; [`Self::on_answered`] follows.
    pub(crate) fn on_sent(&self, server: ServerId, bytes: u64) {
        self.slot(server).unanswered_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn on_answered(&self, server: ServerId, bytes: u64) {
        self.slot(server).unanswered_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// `server` said how much space it has.
    pub(crate) fn on_free_bytes(&self, server: ServerId, free_bytes: u64) {
        self.slot(server).free_bytes.store(free_bytes, Ordering::Release);
    }

    /// Whether `server` has space for `bytes`. What it told may be old, as only its answers to writes tell it: if it is too
    /// little, the server is asked, by one for all who wait to know.
    pub(crate) fn has_space(&self, server: ServerId, address: &str, bytes: u64) -> bool {
        let slot = self.slot(server);
        let fits = || {
            let unanswered = slot.unanswered_bytes.load(Ordering::Acquire);
            unanswered.saturating_add(bytes) <= slot.free_bytes.load(Ordering::Acquire)
        };
        if fits() {
            return true;
        }
        let mut asked_at = lock(&slot.asked_at);
        let is_old = asked_at.is_none_or(|at| ASK_AGAIN <= at.elapsed());
        if is_old && !fits() {
            let asked = self.client(server, address).map_err(|error| error.to_string());
            let told = asked.and_then(|client| {
                reply_of(client.call(&DataCall::Space.to_bytes(), &[], ASK_SPACE_MAX))
            });
            match told {
                Ok((DataReply::Applied { free_bytes, .. }, _)) => {
                    self.on_free_bytes(server, free_bytes);
                }
                Ok((other, _)) => tracing::debug!(%server, ?other, "ask for space"),
                Err(error) => tracing::debug!(%server, %error, "ask for space"),
            }
            *asked_at = Some(Instant::now());
        }
        fits()
    }

    /// Connections to these servers, whoever is known.
    pub(crate) fn known(&self) -> Vec<(ServerId, String)> {
        let slots: Vec<_> =
            lock(&self.slots).iter().map(|(server, slot)| (*server, Arc::clone(slot))).collect();
        slots
            .into_iter()
            .map(|(server, slot)| (server, lock(&slot.connection).address.clone()))
            .collect()
    }

    pub(crate) fn close(&self) {
        let slots: Vec<_> = lock(&self.slots).drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            if let Some(client) = lock(&slot.connection).client.take() {
                client.close();
            }
        }
    }
}
