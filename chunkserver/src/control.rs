//! What the master orders: promise, adopt, report, delete. Each order of an older reign is refused.

use std::sync::Arc;

use dfs_core::ids::{BadServerId, ChunkId, ChunkVersion, Epoch, InodeNo};
use dfs_proto::control::chunk_control_server::ChunkControl;
use dfs_proto::control::metadata_copies_server::MetadataCopies;
use dfs_proto::control::{
    self, AdoptRequest, CopyListReply, CopyListRequest, CopyPiece, CopyReadReply, CopyReadRequest,
    CopySettleReply, CopySettleRequest, CopyWriteReply, CopyWriteRequest, DeleteReply,
    DeleteRequest, PromiseRequest, ReplicaReport, ReportRequest, VerifyRequest,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::adopt::{NotAdopted, Source, adopt};
use crate::copies::{Complete, CopyFile};
use crate::node::Node;
use crate::primary;
use crate::scrub::{self, verify};
use crate::store::{ChunkSpec, Position, StoreError};

/// Below it copies of the metadata leave the room to chunks and their journal.
const COPY_ROOM_MIN: u64 = 32 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Control(pub(crate) Arc<Node>);

fn status(error: &StoreError) -> Status {
    match error {
        StoreError::NotFound { .. } => Status::not_found(error.to_string()),
        StoreError::NoSpace { .. } => Status::resource_exhausted(error.to_string()),
        StoreError::Fenced { .. }
        | StoreError::WrongVersion { .. }
        | StoreError::NotCurrent { .. } => Status::failed_precondition(error.to_string()),
        StoreError::Gap { .. }
        | StoreError::BadBlock { .. }
        | StoreError::TooLarge { .. }
        | StoreError::TooManyClients { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Foreign { .. }
        | StoreError::Unlabelled { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::InUse { .. }
        | StoreError::DiskFull { .. }
        | StoreError::Io(_) => Status::internal(error.to_string()),
    }
}

impl Control {
    fn obey(&self, epoch: u64, nonce: u64) -> Result<(), Status> {
        // How far its log reaches comes with heartbeats.
        let obeyed = self.0.state.obey(Epoch(epoch), nonce, 0);
        obeyed.map_err(|e| Status::permission_denied(e.to_string()))
    }

    fn check_takes_part(&self) -> Result<(), Status> {
        self.0.fence.check_takes_part().map_err(|e| Status::unavailable(e.to_string()))
    }

    /// Disk work, off the runtime's own threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Node>) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        self.check_takes_part()?;
        self.reading(work).await
    }

    /// As [`Self::blocking`], for what a lost master is made anew from: nobody is there then to admit this server.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Node>) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let open = self.0.fence.check_not_suspended();
        open.map_err(|e| Status::unavailable(e.to_string()))?;
        let node = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&node))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map(Response::new)
    }
}

fn spec(inode: u64, index: u64, chunk_size: u64) -> Result<ChunkSpec, Status> {
    if !chunk_size.is_power_of_two() || dfs_core::namespace::CHUNK_BYTES_MAX < chunk_size {
        return Err(Status::invalid_argument(format!("chunk size {chunk_size}")));
    }
    Ok(ChunkSpec { inode: InodeNo(inode), index, chunk_size })
}

#[tonic::async_trait]
impl ChunkControl for Control {
    async fn promise(
        &self,
        request: Request<PromiseRequest>,
    ) -> Result<Response<ReplicaReport>, Status> {
        let PromiseRequest { epoch, nonce, chunk, version, inode, index, chunk_size, learner } =
            request.into_inner();
        let spec = spec(inode, index, chunk_size)?;
        let this = self.clone();
        self.blocking(move |node| {
            this.obey(epoch, nonce)?;
            let (chunk, version) = (ChunkId(chunk), ChunkVersion(version));
            let promised = node.store.promise(chunk, version, learner.then_some(&spec));
            if promised.is_ok() {
                primary::on_promised(node, chunk, version);
                node.on_changed(chunk);
            }
            promised.map(|report| node.report_to_wire(&report)).map_err(|e| status(&e))
        })
        .await
    }

    async fn adopt(
        &self,
        request: Request<AdoptRequest>,
    ) -> Result<Response<ReplicaReport>, Status> {
        let AdoptRequest {
            epoch,
            nonce,
            chunk,
            version,
            source_server,
            source_address,
            source_version,
            source_seq,
            source_digest,
            inode,
            index,
            chunk_size,
            another_source,
        } = request.into_inner();
        let spec = spec(inode, index, chunk_size)?;
        let source = match source_server.as_str() {
            "" => None,
            name => Some(Source {
                server: name
                    .parse()
                    .map_err(|e: BadServerId| Status::invalid_argument(e.to_string()))?,
                address: source_address,
                position: Position { version: ChunkVersion(source_version), seq: source_seq },
                digest: source_digest,
                another: another_source,
            }),
        };
        let this = self.clone();
        self.blocking(move |node| {
            this.obey(epoch, nonce)?;
            let chunk = ChunkId(chunk);
            let (report, copied) =
                adopt(node, chunk, ChunkVersion(version), &spec, source.as_ref()).map_err(
                    |refused| match refused {
                        NotAdopted::SourceIsFlawed(reason) => Status::data_loss(reason),
                        NotAdopted::Other(reason) => Status::failed_precondition(reason),
                    },
                )?;
            node.members.forget(chunk);
            node.on_changed(chunk);
            node.metrics.adopted.inc();
            Ok(ReplicaReport { copied_bytes: copied, ..node.report_to_wire(&report) })
        })
        .await
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReplicaReport>, Status> {
        let chunk = ChunkId(request.into_inner().chunk);
        self.blocking(move |node| {
            let report = node.store.report(chunk);
            report
                .map(|r| node.report_to_wire(&r))
                .ok_or_else(|| Status::not_found("no replica of this chunk here"))
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteReply>, Status> {
        let DeleteRequest { chunks, epoch, nonce } = request.into_inner();
        let this = self.clone();
        self.blocking(move |node| {
            this.obey(epoch, nonce)?;
            Ok(DeleteReply {
                deleted: chunks.into_iter().filter(|chunk| delete(node, ChunkId(*chunk))).collect(),
            })
        })
        .await
    }

    type VerifyStream = ReceiverStream<Result<ReplicaReport, Status>>;

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        self.check_takes_part()?;
        let VerifyRequest { chunks, paced } = request.into_inner();
        let node = Arc::clone(&self.0);
        let stop = node.stopping.clone();
        let (send, reports) = tokio::sync::mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            for chunk in chunks {
                let answer = match verify(&node, ChunkId(chunk), &mut |bytes| {
                    if paced {
                        scrub::give_way(&node, bytes, &stop);
                    }
                }) {
                    Ok(report) => Ok(report),
                    Err(StoreError::NotFound { .. }) => continue,
                    Err(error) => Err(status(&error)),
                };
                if send.blocking_send(answer).is_err() {
                    // The asker is gone.
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(reports)))
    }
}

#[tonic::async_trait]
impl MetadataCopies for Control {
    async fn list(&self, _: Request<CopyListRequest>) -> Result<Response<CopyListReply>, Status> {
        self.reading(|node| {
            let files = node.copies.list().map_err(|e| copy_status(&e))?;
            let complete = node.copies.complete().unwrap_or_else(|error| {
                tracing::error!(%error, "copy of the metadata: it counts as none");
                None
            });
            let reign = node.state.reign();
            Ok(CopyListReply {
                files: files
                    .into_iter()
                    .map(|CopyFile { name, length, crc }| control::CopyFile { name, length, crc })
                    .collect(),
                fs: node.fs.0.to_be_bytes().to_vec(),
                server: node.server.to_string(),
                epoch: reign.epoch.0,
                log_index: reign.log_index,
                index: complete.map(|complete| complete.index),
                at_ns: complete.map_or(0, |complete| complete.at_ns),
            })
        })
        .await
    }

    async fn write(
        &self,
        request: Request<CopyWriteRequest>,
    ) -> Result<Response<CopyWriteReply>, Status> {
        let CopyWriteRequest { epoch, nonce, name, offset, data } = request.into_inner();
        let this = self.clone();
        self.blocking(move |node| {
            this.obey(epoch, nonce)?;
            check_room_for_copies(node)?;
            node.copies.write(&name, offset, &data).map_err(|e| copy_status(&e))?;
            Ok(CopyWriteReply {})
        })
        .await
    }

    async fn settle(
        &self,
        request: Request<CopySettleRequest>,
    ) -> Result<Response<CopySettleReply>, Status> {
        let CopySettleRequest { epoch, nonce, files, index, at_ns, pieces } = request.into_inner();
        let this = self.clone();
        self.blocking(move |node| {
            this.obey(epoch, nonce)?;
            if !pieces.is_empty() {
                check_room_for_copies(node)?;
            }
            for CopyPiece { name, offset, data } in pieces {
                node.copies.write(&name, offset, &data).map_err(|e| copy_status(&e))?;
            }
            let files = files.into_iter().map(|file| (file.name, file.length)).collect();
            let complete = Complete { index, at_ns };
            node.copies.settle(&files, complete).map_err(|e| copy_status(&e))?;
            Ok(CopySettleReply {})
        })
        .await
    }

    async fn read(
        &self,
        request: Request<CopyReadRequest>,
    ) -> Result<Response<CopyReadReply>, Status> {
        let CopyReadRequest { name, offset, length } = request.into_inner();
        self.reading(move |node| {
            let data = node.copies.read(&name, offset, length).map_err(|e| copy_status(&e))?;
            Ok(CopyReadReply { data })
        })
        .await
    }
}

fn check_room_for_copies(node: &Node) -> Result<(), Status> {
    if node.free_bytes() < COPY_ROOM_MIN {
        return Err(Status::resource_exhausted("no space for a copy of the metadata"));
    }
    Ok(())
}

fn copy_status(error: &std::io::Error) -> Status {
    use std::io::ErrorKind::{InvalidInput, NotFound, StorageFull};
    let made = [
        (InvalidInput, Status::invalid_argument as fn(String) -> Status),
        (NotFound, Status::not_found),
        (StorageFull, Status::resource_exhausted),
    ];
    let found = made.into_iter().find(|(kind, _)| *kind == error.kind());
    found.map_or(Status::internal as fn(String) -> Status, |(_, make)| make)(error.to_string())
}

/// Takes a replica that nobody needs out of service, unless it is needed again.
pub(crate) fn delete_below(node: &Arc<Node>, chunk: ChunkId, below: ChunkVersion) {
    match node.store.quarantine_below(chunk, below) {
        Ok(()) => {
            primary::on_deleted(node, chunk);
            node.members.forget(chunk);
            tracing::info!(chunk = chunk.0, "replica that nobody needs put aside");
        }
        Err(StoreError::NotFound { .. }) => {}
        Err(StoreError::Fenced { promised, .. }) => {
            tracing::debug!(chunk = chunk.0, promised = promised.0, "replica is needed again");
        }
        Err(error) => tracing::error!(chunk = chunk.0, %error, "quarantine"),
    }
    node.on_changed(chunk);
}

/// Takes a replica out of service; says whether it is gone.
pub(crate) fn delete(node: &Arc<Node>, chunk: ChunkId) -> bool {
    primary::on_deleted(node, chunk);
    node.members.forget(chunk);
    let gone = match node.store.quarantine(chunk) {
        Ok(()) | Err(StoreError::NotFound { .. }) => true,
        Err(error) => {
            tracing::error!(chunk = chunk.0, %error, "quarantine");
            false
        }
    };
    node.on_changed(chunk);
    gone
}
