//! What is said at a chunkserver's local door: the token once, then eight bytes of chunk id (little-endian) for each
//! file; the answer is one byte, with the descriptor beside it if it is [`GIVEN`].

pub const TOKEN_BYTES: usize = 16;
pub type Request = [u8; 8];
pub const GIVEN: u8 = 1;
pub const REFUSED: u8 = 0;
