//! Small text files of one line that says itself whether it is whole.

/// `body` with its CRC32C behind it.
#[must_use]
pub fn seal(body: &str) -> String {
    format!("{body} {:08x}\n", crc32c::crc32c(body.as_bytes()))
}

/// The body of what [`seal`] made; `None` if that is not what it is.
#[must_use]
pub fn unseal(text: &str) -> Option<&str> {
    let (body, crc) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(body.as_bytes())).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_or_changed_is_none() {
        let line = seal("one 2 three");
        assert_eq!(unseal(&line), Some("one 2 three"));
        assert!((0..line.len()).all(|len| unseal(&line[..len]).is_none()));
        assert_eq!(unseal(&line.replace('2', "3")), None);
    }
}
