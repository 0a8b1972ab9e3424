//! Small text files: lines that say themselves whether they are whole, and files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

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

/// Replaces the file `path` by one with `text`, whole or not at all. By way of `path` with the extension `next`.
/// After a loss of power it may be the one before.
///
/// # Errors
/// I/O errors; the file is then as it was.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)
}

/// [`replace`], and a loss of power brings the one before not back.
///
/// # Errors
/// I/O errors; the file is then as it was, or replaced and not durable.
pub fn replace_durably(path: &Path, text: &str) -> io::Result<()> {
    replace(path, text)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
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
