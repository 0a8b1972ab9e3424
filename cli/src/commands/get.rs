//! `dfs get`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::args::{ClusterArgs, Format, GetArgs};
use crate::commands::put::Copied;
use crate::files::{Files, Part};
use crate::output;
use crate::progress::Progress;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &GetArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let files = Files::open(cluster)?;
    let attr = files.logged_attr(&path)?;
    let mut progress = Progress::new((!attr.writing).then_some(attr.size));
    if args.dst == Path::new("-") {
        let mut out = io::stdout().lock();
        files.read_all(&attr, &path, &mut |bytes| {
            progress.add(bytes.len() as u64);
            output::written(out.write_all(bytes))
        })?;
        progress.finish();
        return output::written(out.flush());
    }
    let target = target(&path, &args.dst);
    let written = if is_replaceable(&target) {
        // Beside the target, so that a half copy is never taken for the file.
        let draft = draft_name(&target);
        let written = write_to(&files, &attr, &path, &draft, &target, progress).and_then(|bytes| {
            std::fs::rename(&draft, &target)
                .with_context(|| format!("write {}", target.display()))
                .map(|()| bytes)
        });
        if written.is_err() {
            let _absent = std::fs::remove_file(&draft);
        }
        written
    } else {
        write_to(&files, &attr, &path, &target, &target, progress)
    };
    let copied = Copied {
        from: path.json(),
        from_hex: path.json_hex(),
        to: target.display().to_string(),
        to_hex: output::hex_unless_utf8(target.as_os_str().as_bytes()),
        bytes: written?,
    };
    if args.output.format == Format::Json { output::print(Format::Json, &copied) } else { Ok(()) }
}

/// A directory keeps the name.
fn target(path: &RemotePath, dst: &Path) -> PathBuf {
    match path.last() {
        Some(name) if dst.is_dir() => dst.join(OsStr::from_bytes(name)),
        Some(_) | None => dst.to_owned(),
    }
}

/// A device, a FIFO or a symlink is written to where it is: a rename over `/dev/null` would take it from everybody.
fn is_replaceable(target: &Path) -> bool {
    match std::fs::symlink_metadata(target) {
        Ok(found) => found.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn draft_name(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".dfs-part-{}", std::process::id()));
    target.with_file_name(name)
}

/// Writes to `place`; errors name `target`, which a person asked for.
fn write_to(
    files: &Files,
    attr: &dfs_core::namespace::Attr,
    path: &RemotePath,
    place: &Path,
    target: &Path,
    mut progress: Progress,
) -> anyhow::Result<u64> {
    let named = || format!("write {}", target.display());
    let mut out = match File::create(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = target.parent().unwrap_or(Path::new("/")).display();
            return Err(error).with_context(|| {
                format!("write {}: make its directory first: mkdir -p {dir}", target.display())
            });
        }
        created => created.with_context(named)?,
    };
    if out.metadata().with_context(named)?.is_file() {
        let mut end = 0;
        files.read_parts(attr, path, &mut |part| {
            let bytes = match part {
                Part::Data(bytes) => {
                    out.write_all_at(bytes, end).with_context(named)?;
                    bytes.len() as u64
                }
                Part::Hole(bytes) => bytes,
            };
            progress.add(bytes);
            end += bytes;
            Ok(())
        })?;
        // A hole at the end is not written.
        out.set_len(end).with_context(named)?;
    } else {
        files.read_all(attr, path, &mut |bytes| {
            progress.add(bytes.len() as u64);
            out.write_all(bytes).with_context(named)
        })?;
    }
    match out.sync_all() {
        // Devices and FIFOs have nothing to sync.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        synced => synced.with_context(named)?,
    }
    Ok(progress.finish())
}
