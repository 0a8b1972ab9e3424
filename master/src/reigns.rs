//! Where in the log each reign of a master's directory began: what tells an older copy of the directory from the newest.
//!
//! A chunkserver keeps whom it obeyed last and how far that reign's log reached. All that a reign has logged lies before
//! the next one's beginning. A server that was told of more has seen entries that are not here, however often this
//! directory was started since: a refused start begins a reign, too, and its own entries must not count.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use dfs_core::ids::Epoch;
use dfs_service::page::Page;
use dfs_service::sealed::{replace_durably, seal, unseal};

/// One line, replaced atomically, in the master's directory.
const NAME: &str = "reigns";
/// Older ones are forgotten: a server that obeyed one of those is judged by the oldest that is left.
const KEPT_MAX: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reign {
    pub(crate) epoch: Epoch,
    pub(crate) nonce: u64,
    /// The last index of the log before it.
    pub(crate) began_after: u64,
}

/// By rising epoch; the last one is the running master's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Reigns(Vec<Reign>);

impl Reigns {
    /// Those of `dir`; none if it was never started by a program that kept them.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes)).with_context(|| {
                format!(
                    "{} is damaged; --accept-loss begins a new one; see {}",
                    path.display(),
                    Page::DamagedLog
                )
            }),
        }
    }

    /// Where the newest began; `None`: there was none.
    pub(crate) fn last_began_after(&self) -> Option<u64> {
        self.0.last().map(|reign| reign.began_after)
    }

    /// Adds one, durably. Before its start is logged: one that then never began has been obeyed by nobody.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn begin(&mut self, dir: &Path, reign: Reign) -> anyhow::Result<()> {
        self.0.retain(|before| before.epoch < reign.epoch);
        self.0.push(reign);
        self.0.drain(..self.0.len().saturating_sub(KEPT_MAX));
        let path = dir.join(NAME);
        replace_durably(&path, &self.text()).with_context(|| format!("write {}", path.display()))
    }

    /// The last index that this reign can have logged as far as is known here; `None`: it goes on, or is later than all
    /// that are known.
    pub(crate) fn ended_at(&self, epoch: Epoch, nonce: u64) -> Option<u64> {
        // Another one of the same number grew from an older copy, or we did: it had nothing after our own beginning.
        let next =
            self.0.iter().find(|it| epoch < it.epoch || epoch == it.epoch && nonce != it.nonce);
        next.map(|next| next.began_after)
    }

    fn text(&self) -> String {
        let one = |it: &Reign| format!(" {}:{}:{}", it.epoch.0, it.nonce, it.began_after);
        let all: String = self.0.iter().map(one).collect();
        seal(&format!("dfs-reigns 1{all}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let body = unseal(text)?.strip_prefix("dfs-reigns 1")?;
        let mut reigns = Self::default();
        // Each has a space before it.
        let (before, words) = body.split_once(' ').map_or((body, None), |(a, b)| (a, Some(b)));
        if !before.is_empty() {
            return None;
        }
        for word in words.into_iter().flat_map(|words| words.split(' ')) {
            let mut numbers = word.split(':').map(|number| number.parse().ok());
            let mut next = || numbers.next()?;
            let reign = Reign { epoch: Epoch(next()?), nonce: next()?, began_after: next()? };
            let rises = reigns.0.last().is_none_or(|before| before.epoch < reign.epoch);
            if !rises || KEPT_MAX <= reigns.0.len() || numbers.next().is_some() {
                return None;
            }
            reigns.0.push(reign);
        }
        Some(reigns)
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn reign(epoch: u64, nonce: u64, began_after: u64) -> Reign {
        Reign { epoch: Epoch(epoch), nonce, began_after }
    }

    #[test]
    fn what_servers_were_told_is_compared_with_where_the_next_reign_began() {
        let dir = tempfile::tempdir().unwrap();
        let mut reigns = Reigns::read(dir.path()).unwrap();
        assert_eq!(reigns.ended_at(Epoch(1), 1), None);
        reigns.begin(dir.path(), reign(3, 30, 100)).unwrap();
        // Never logged: the next start has its number.
        reigns.begin(dir.path(), reign(4, 40, 110)).unwrap();
        reigns.begin(dir.path(), reign(4, 41, 110)).unwrap();
        reigns.begin(dir.path(), reign(5, 50, 117)).unwrap();
        let reigns = Reigns::read(dir.path()).unwrap();
        assert_eq!(reigns.0.len(), 3);
        for (epoch, nonce, ended) in [
            (1, 1, Some(100)),
            (3, 30, Some(110)),
            (4, 41, Some(117)),
            // Of other directories.
            (3, 31, Some(100)),
            (4, 40, Some(110)),
            (5, 51, Some(117)),
            // The running one, and a later one.
            (5, 50, None),
            (6, 60, None),
        ] {
            assert_eq!(reigns.ended_at(Epoch(epoch), nonce), ended, "{epoch} {nonce}");
        }
    }

    #[test]
    fn they_are_bounded_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut reigns = Reigns::default();
        for epoch in 1..=300 {
            reigns.begin(dir.path(), reign(epoch, 1, epoch * 10)).unwrap();
        }
        let read = Reigns::read(dir.path()).unwrap();
        assert_eq!((read.0.len(), read.0[0].epoch), (KEPT_MAX, Epoch(45)));
        let path = dir.path().join(NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(" 300:", " 301:")).unwrap();
        assert!(Reigns::read(dir.path()).unwrap_err().to_string().contains("is damaged"));
    }
}
