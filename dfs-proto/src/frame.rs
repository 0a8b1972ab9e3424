//! Frames of the data plane and of metadata requests: a fixed header, arguments, raw payload.
//!
//! ```text
//! 0  magic "dF"   2  format (1)   3  kind (request 1, reply 2, one-way 3)
//! 4  u32 argument bytes (≤ 2 MiB)     8  u32 payload bytes (≤ 4 MiB)
//! 12 u64 request id, chosen by the asker, repeated in the reply
//! 20 u32 CRC32C of the arguments     24 u32 CRC32C of the payload
//! 28 u32 CRC32C of bytes 0..28
//! 32 arguments, then payload
//! ```
//! The payload is never copied into a message; replies may come in any order.

pub const HEADER_BYTES: usize = 32;
pub const ARGS_BYTES_MAX: u32 = 2 << 20;
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;
const MAGIC: [u8; 2] = *b"dF";
const FORMAT: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    Request,
    Reply,
    /// Nobody answers.
    OneWay,
}

/// What a header says follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub args_bytes: u32,
    pub payload_bytes: u32,
    pub request: u64,
    pub args_crc: u32,
    pub payload_crc: u32,
}

/// Why bytes are no frame. The connection they came on is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("not a frame of ours (first bytes {0:02x?})")]
    Magic([u8; 2]),
    #[error("frame format {0}, this program speaks {FORMAT}")]
    Format(u8),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("{what} of {bytes} bytes, at most {max} allowed")]
    Oversized { what: &'static str, bytes: u32, max: u32 },
    #[error("checksum of the {0} does not match")]
    Checksum(&'static str),
}

impl FrameHeader {
    /// Header for these arguments and this payload (its CRC32C given, so that it can be stored or forwarded).
    #[must_use]
    pub fn new(
        kind: FrameKind,
        request: u64,
        args: &[u8],
        payload_bytes: usize,
        payload_crc: u32,
    ) -> Self {
        Self {
            kind,
            args_bytes: u32::try_from(args.len()).unwrap_or(u32::MAX),
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            request,
            args_crc: crc32c::crc32c(args),
            payload_crc,
        }
    }

    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        // Every index below, and in `decode`, is a constant within these 32 bytes.
        let mut out = [0; HEADER_BYTES];
        out[0..2].copy_from_slice(&MAGIC);
        out[2] = FORMAT;
        out[3] = match self.kind {
            FrameKind::Request => 1,
            FrameKind::Reply => 2,
            FrameKind::OneWay => 3,
        };
        out[4..8].copy_from_slice(&self.args_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[12..20].copy_from_slice(&self.request.to_le_bytes());
        out[20..24].copy_from_slice(&self.args_crc.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// # Errors
    /// [`FrameError`] for anything [`Self::encode`] does not write; limits are checked before anyone allocates.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[0..2] != MAGIC {
            return Err(FrameError::Magic([bytes[0], bytes[1]]));
        }
        if bytes[2] != FORMAT {
            return Err(FrameError::Format(bytes[2]));
        }
        if crc32c::crc32c(&bytes[..28]) != word(28) {
            return Err(FrameError::Checksum("header"));
        }
        let kind = match bytes[3] {
            1 => FrameKind::Request,
            2 => FrameKind::Reply,
            3 => FrameKind::OneWay,
            other => return Err(FrameError::Kind(other)),
        };
        let (args_bytes, payload_bytes) = (word(4), word(8));
        if ARGS_BYTES_MAX < args_bytes {
            return Err(FrameError::Oversized {
                what: "arguments",
                bytes: args_bytes,
                max: ARGS_BYTES_MAX,
            });
        }
        if PAYLOAD_BYTES_MAX < payload_bytes {
            return Err(FrameError::Oversized {
                what: "payload",
                bytes: payload_bytes,
                max: PAYLOAD_BYTES_MAX,
            });
        }
        Ok(Self {
            kind,
            args_bytes,
            payload_bytes,
            request: u64::from(word(12)) | u64::from(word(16)) << 32,
            args_crc: word(20),
            payload_crc: word(24),
        })
    }

    /// # Errors
    /// `Checksum` if `args` are not what was sent.
    pub fn check_args(&self, args: &[u8]) -> Result<(), FrameError> {
        if crc32c::crc32c(args) == self.args_crc {
            Ok(())
        } else {
            Err(FrameError::Checksum("arguments"))
        }
    }

    /// # Errors
    /// `Checksum` if `payload` is not what was sent.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        if crc32c::crc32c(payload) == self.payload_crc {
            Ok(())
        } else {
            Err(FrameError::Checksum("payload"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_no_single_bit_may_change() {
        let header =
            FrameHeader::new(FrameKind::Request, 0x0123_4567_89ab_cdef, b"args", 70_000, 42);
        let bytes = header.encode();
        assert_eq!(FrameHeader::decode(&bytes), Ok(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut torn = bytes;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&torn).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_header() {
        let header =
            FrameHeader::new(FrameKind::Request, 1, b"", PAYLOAD_BYTES_MAX as usize + 1, 0);
        assert!(matches!(
            FrameHeader::decode(&header.encode()),
            Err(FrameError::Oversized { what: "payload", .. })
        ));
    }
}
