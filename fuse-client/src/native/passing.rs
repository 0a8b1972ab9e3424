//! Messages with descriptors over a Unix socket, between a holder and its client.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Of one message; more than a mount has.
pub(crate) const DESCRIPTORS_MAX: usize = 80;
/// Of one message.
const BYTES_MAX: usize = 8192;

/// What holder and client say ([`crate::holder`]), and whoever asks a holder for another client. A first byte tells which; a socket of packets keeps them apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// Generation and client id; with the kept memory.
    Start(Vec<u8>),
    Want,
    /// The answer to INIT, empty before the first; with all descriptors.
    Grant(Vec<u8>),
    Init(Vec<u8>),
    Kept,
    Serving,
    /// A program to be put in place, and what became of it, in words.
    Upgrade(Vec<u8>),
    Upgraded(Vec<u8>),
    NotUpgraded(Vec<u8>),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (tag, body): (u8, &[u8]) = match self {
            Self::Start(body) => (1, body),
            Self::Want => (2, &[]),
            Self::Grant(body) => (3, body),
            Self::Init(body) => (4, body),
            Self::Kept => (5, &[]),
            Self::Serving => (6, &[]),
            Self::Upgrade(body) => (7, body),
            Self::Upgraded(body) => (8, body),
            Self::NotUpgraded(body) => (9, body),
        };
        [&[tag], body].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, body) = bytes.split_first()?;
        Some(match (tag, body) {
            (1, body) => Self::Start(body.to_vec()),
            (2, []) => Self::Want,
            (3, body) => Self::Grant(body.to_vec()),
            (4, body) => Self::Init(body.to_vec()),
            (5, []) => Self::Kept,
            (6, []) => Self::Serving,
            (7, body) => Self::Upgrade(body.to_vec()),
            (8, body) => Self::Upgraded(body.to_vec()),
            (9, body) => Self::NotUpgraded(body.to_vec()),
            _ => return None,
        })
    }
}

/// Sends one message.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let bytes = message.encode();
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one message; the end of the other side is an error.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<(Message, Vec<OwnedFd>)> {
    let (bytes, descriptors) = receive_bytes(socket)?;
    let message = Message::decode(&bytes);
    let message = message.ok_or_else(|| io::Error::other("a message of another program"))?;
    Ok((message, descriptors))
}

pub(super) fn receive_bytes(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more descriptors than fit"));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptors))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    pub(super) fn messages() -> Vec<Message> {
        let body = vec![7; 64];
        vec![
            Message::Start(body.clone()),
            Message::Want,
            Message::Grant(Vec::new()),
            Message::Grant(body.clone()),
            Message::Init(body.clone()),
            Message::Kept,
            Message::Serving,
            Message::Upgrade(body.clone()),
            Message::Upgraded(body.clone()),
            Message::NotUpgraded(body),
        ]
    }

    #[test]
    fn messages_arrive_whole_with_their_descriptors_and_then_an_end() {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for message in messages() {
            send(one.as_fd(), &message, &[file.as_fd(), one.as_fd()]).unwrap();
        }
        for message in messages() {
            let (received, descriptors) = receive(other.as_fd()).unwrap();
            assert_eq!((received, descriptors.len()), (message, 2));
        }
        drop(one);
        assert_eq!(receive(other.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
