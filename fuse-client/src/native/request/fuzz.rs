//! Fuzz target of the kernel's requests.

use super::tests::requests;
use super::*;
use crate::fuzz_engine::Target;

#[test]
fn fuse_request() {
    let valid = requests().into_iter().map(|(bytes, _)| bytes).collect();
    // A request longer than it says has bytes behind it that count for nothing.
    Target::new("fuse_request", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok((header, body)) = decode_header(bytes) else { return false };
        assert!(body.len() + abi::IN_HEADER_BYTES <= bytes.len());
        assert_eq!(header.caller().unique >> 63, 0);
        match decode_body(&header, body) {
            Ok(Body::Call { operation, payload, shape }) => {
                assert!(payload.len() <= body.len());
                if let Operation::Lookup { name, .. } = &operation {
                    assert!(name.len() < body.len() && !name.contains(&0));
                }
                if let Shape::Listing { bytes_max, .. } = shape {
                    assert!(bytes_max <= crate::transport::WRITE_BYTES_MAX as usize);
                }
                true
            }
            Ok(_) => true,
            Err(Malformed) => false,
        }
    });
}
