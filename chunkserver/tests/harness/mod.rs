//! Real servers on loopback, a client that speaks frames, and a hand that plays the master's promise and adopt.

pub(crate) mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chunkserver::{Config, Server};
use dfs_core::chunk::Member;
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, Epoch, FsId, InodeNo, ServerId};
use dfs_proto::codec::Wire as _;
use dfs_proto::control::chunk_control_client::ChunkControlClient;
use dfs_proto::control::{AdoptRequest, PromiseRequest, ReplicaReport};
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer, WireMutation};
use dfs_proto::frame_conn::{Frame, FrameClient};
use dfs_proto::meta_rpc::{ChunkLayout, MemberAddress};
use dfs_proto::record_list::RecordList;
use dfs_service::conn::{ClusterKey, Door, control_channel, dial};

pub(crate) const FS: FsId = FsId(0xF5);
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Cluster {
    // Before the directories: fields are dropped in order, and a store whose directory vanishes ends the process.
    pub(crate) servers: Vec<Option<Server>>,
    pub(crate) dirs: Vec<tempfile::TempDir>,
    pub(crate) chunk_size: u64,
    /// Said in orders to adopt.
    pub(crate) another_source: AtomicBool,
    runtime: tokio::runtime::Runtime,
    change: Box<dyn Fn(&mut Config) + Send + Sync>,
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Self {
        Self::with(count, |_| {})
    }

    pub(crate) fn with(count: usize, change: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dirs = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self {
            dirs,
            servers: Vec::new(),
            chunk_size: MIB,
            another_source: AtomicBool::new(false),
            runtime,
            change: Box::new(change),
        };
        for index in 0..count {
            let server = cluster.open(index);
            cluster.servers.push(Some(server));
        }
        cluster
    }

    fn open(&self, index: usize) -> Server {
        let id = ServerId(u32::try_from(index).unwrap() + 1);
        let mut config = Config::new(id, self.dirs[index].path().to_owned());
        config.fs = Some(FS);
        config.segment_bytes = 1 << 20;
        // Not a share of the machine's disk, which may be nearly full.
        config.capacity_bytes = Some(4096 * MIB);
        (self.change)(&mut config);
        Server::start(config).unwrap()
    }

    pub(crate) fn stop(&mut self, index: usize) {
        self.servers[index].take().unwrap().stop();
    }

    pub(crate) fn start(&mut self, index: usize) {
        self.servers[index] = Some(self.open(index));
    }

    pub(crate) fn server(&self, index: usize) -> &Server {
        self.servers[index].as_ref().unwrap()
    }

    pub(crate) fn member(&self, index: usize) -> MemberAddress {
        let server = self.server(index);
        MemberAddress {
            member: Member { server: server.store().server(), disk: server.store().disk_id() },
            address: server.addr().to_string(),
        }
    }

    /// The first of `members` is the primary.
    pub(crate) fn layout(&self, chunk: u64, version: u64, members: &[usize]) -> ChunkLayout {
        ChunkLayout {
            chunk: ChunkId(chunk),
            ino: InodeNo(7),
            index: 0,
            chunk_size: self.chunk_size,
            version: ChunkVersion(version),
            members: members.iter().map(|&index| self.member(index)).collect(),
            primary: self.server(members[0]).store().server(),
            epoch: Epoch(1),
            born: true,
            sealed: false,
            writable: true,
        }
    }

    pub(crate) fn client(&self, index: usize, id: u128) -> Client {
        Client::open(&self.server(index).addr().to_string(), id)
    }

    pub(crate) fn promise(
        &self,
        index: usize,
        chunk: u64,
        version: u64,
        learner: bool,
    ) -> Result<ReplicaReport, tonic::Status> {
        let request = PromiseRequest {
            epoch: 1,
            nonce: 1,
            chunk,
            version,
            inode: 7,
            index: 0,
            chunk_size: self.chunk_size,
            learner,
        };
        let mut control = self.control(index);
        self.runtime.block_on(control.promise(request)).map(tonic::Response::into_inner)
    }

    fn control(&self, index: usize) -> ChunkControlClient<tonic::transport::Channel> {
        let _in_runtime = self.runtime.enter();
        ChunkControlClient::new(control_channel(
            &self.server(index).addr().to_string(),
            &ClusterKey::none(),
        ))
    }

    pub(crate) fn adopt(
        &self,
        index: usize,
        version: u64,
        source: usize,
        from: &ReplicaReport,
    ) -> Result<ReplicaReport, tonic::Status> {
        let server = self.server(source);
        let (name, address) = (server.store().server().to_string(), server.addr().to_string());
        self.adopt_from(index, version, &name, &address, from)
    }

    pub(crate) fn adopt_from(
        &self,
        index: usize,
        version: u64,
        source_server: &str,
        source_address: &str,
        from: &ReplicaReport,
    ) -> Result<ReplicaReport, tonic::Status> {
        let request = AdoptRequest {
            epoch: 1,
            nonce: 1,
            chunk: from.chunk,
            version,
            source_server: source_server.to_owned(),
            source_address: source_address.to_owned(),
            source_version: from.version,
            source_seq: from.seq,
            source_digest: from.digest,
            inode: 7,
            index: 0,
            chunk_size: self.chunk_size,
            another_source: self.another_source.load(Ordering::Relaxed),
        };
        let mut control = self.control(index);
        self.runtime.block_on(control.adopt(request)).map(tonic::Response::into_inner)
    }

    /// What the master does: promise by all, adopt from the highest position, then the layout that may be used.
    pub(crate) fn reconfigure(
        &self,
        chunk: u64,
        version: u64,
        voters: &[usize],
        learner: Option<usize>,
    ) -> ChunkLayout {
        // A member of version 1 may never have got its first operation.
        let unmade = version == 2;
        let reports: Vec<_> =
            voters.iter().map(|&i| (i, self.promise(i, chunk, version, unmade).unwrap())).collect();
        if let Some(index) = learner {
            self.promise(index, chunk, version, true).unwrap();
        }
        let (source, from) = reports.iter().max_by_key(|(_, r)| (r.version, r.seq)).unwrap();
        let members: Vec<usize> = voters.iter().copied().chain(learner).collect();
        // The source last: it has to keep its position while it is copied.
        for &index in members.iter().filter(|index| *index != source).chain([source]) {
            let report = match from.version {
                0 => self.adopt_from(index, version, "", "", from).unwrap(),
                _ => self.adopt(index, version, *source, from).unwrap(),
            };
            assert_eq!((report.version, report.seq, report.digest), (version, 0, from.digest));
        }
        self.layout(chunk, version, &members)
    }

    /// The whole content of a replica, blocks verified.
    pub(crate) fn content(&self, index: usize, chunk: u64, version: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let store = self.server(index).store();
        let len = store
            .read(ChunkId(chunk), ChunkVersion(version), 0, self.chunk_size, &mut out)
            .unwrap();
        assert_eq!(out.len() as u64, len);
        out
    }
}

pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) connection: Arc<FrameClient>,
}

impl Client {
    pub(crate) fn open(addr: &str, id: u128) -> Self {
        let stream = dial(addr, &ClusterKey::none(), Door::Frames, DEADLINE).unwrap();
        let connection = FrameClient::new(stream).unwrap();
        let client = Self { id: ClientId(id), connection };
        let hello = DataCall::Hello { fs: FS, from: Peer::Client(client.id) };
        assert!(matches!(client.call(&hello, &[]), Ok((DataReply::Welcome { .. }, _))));
        client
    }

    pub(crate) fn call(
        &self,
        call: &DataCall,
        payload: &[u8],
    ) -> Result<(DataReply, Vec<u8>), DataFailure> {
        let frame = self.connection.call(&call.to_bytes(), &[payload], DEADLINE).unwrap();
        answer(frame)
    }

    pub(crate) fn mutate(
        &self,
        layout: &ChunkLayout,
        counter: u64,
        mutation: WireMutation,
        payload: &[u8],
    ) -> Result<DataReply, DataFailure> {
        let call = DataCall::Mutate {
            layout: layout.clone(),
            client: self.id,
            counter,
            low_water: counter,
            mutation,
        };
        self.call(&call, payload).map(|(reply, _)| reply)
    }

    pub(crate) fn write(
        &self,
        layout: &ChunkLayout,
        counter: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(u64, u64), DataFailure> {
        match self.mutate(layout, counter, WireMutation::Write { offset }, data)? {
            DataReply::Mutated { seq, len } => Ok((seq, len)),
            other => panic!("{other:?}"),
        }
    }

    /// (offset, appended)
    pub(crate) fn append(
        &self,
        layout: &ChunkLayout,
        counter: u64,
        record: bool,
        data: &[u8],
    ) -> Result<(u64, u64), DataFailure> {
        match self.mutate(layout, counter, WireMutation::Append { record, at_least: 0 }, data)? {
            DataReply::Appended { offset, appended, .. } => Ok((offset, appended)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn sync(&self, layout: &ChunkLayout) -> Result<(u64, u64), DataFailure> {
        match self.call(&DataCall::Sync { layout: layout.clone() }, &[])?.0 {
            DataReply::Synced { seq, len } => Ok((seq, len)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read(
        &self,
        layout: &ChunkLayout,
        offset: u64,
        len: u32,
    ) -> Result<Vec<u8>, DataFailure> {
        let call = DataCall::Read { chunk: layout.chunk, version: layout.version, offset, len };
        match self.call(&call, &[])? {
            (DataReply::Read { .. }, bytes) => Ok(bytes),
            other => panic!("{other:?}"),
        }
    }

    /// Offset and length of each record, and how many answers it took.
    pub(crate) fn records(
        &self,
        layout: &ChunkLayout,
    ) -> Result<(Vec<(u64, u64)>, u32), DataFailure> {
        let (mut from, mut found, mut answers) = (0, Vec::new(), 0);
        loop {
            let call = DataCall::Records { chunk: layout.chunk, version: layout.version, from };
            let (reply, list) = self.call(&call, &[])?;
            let DataReply::Records { more, all_known: true, .. } = reply else {
                panic!("{reply:?}")
            };
            let list = RecordList::decode(&list).unwrap();
            assert!(list.iter().all(|record| from <= record.offset), "{list:?} from {from} on");
            found.extend(list.iter().map(|record| (record.offset, record.len)));
            (from, answers) = (list.end(), answers + 1);
            if !more {
                return Ok((found, answers));
            }
        }
    }

    /// Reads where the answer may be "not known yet, ask the primary" for a moment.
    pub(crate) fn read_soon(&self, layout: &ChunkLayout, offset: u64, len: u32) -> Vec<u8> {
        for _ in 0..500 {
            match self.read(layout, offset, len) {
                Ok(bytes) => return bytes,
                Err(DataFailure::NotPrimary) => std::thread::sleep(Duration::from_millis(10)),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("never committed at this member");
    }
}

pub(crate) fn answer(frame: Frame) -> Result<(DataReply, Vec<u8>), DataFailure> {
    match DataReply::from_bytes(&frame.args).unwrap() {
        DataReply::Failed(failure) => Err(failure),
        reply => Ok((reply, frame.payload)),
    }
}

/// Bytes that differ everywhere.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
