//! Where a word stands in text that is cut in pieces, which different servers read: each finds what lies inside its
//! piece and hands over a few bytes of its edges, in which the asker finds what crosses. So each hit is found once. What
//! a word is and how long an edge is, both sides of [`crate::data_rpc::DataCall::Search`] must see alike.

use memchr::memmem::Finder;

/// Longest word: this many bytes of each edge of a piece travel.
pub const WORD_BYTES_MAX: usize = 4096;

/// What stands before a text and behind it: no part of any word.
const NOTHING: u8 = 0;

/// Why something is not looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WordError {
    #[error("an empty word")]
    Empty,
    #[error("a word of {bytes} bytes, at most {WORD_BYTES_MAX} are looked for")]
    TooLong { bytes: usize },
}

/// What is looked for: every offset at which these bytes stand, also overlapping ones.
#[derive(Clone, Debug)]
pub struct Needle {
    finder: Finder<'static>,
    whole: bool,
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl Needle {
    /// `whole`: only where neither the byte before nor the one behind is an ASCII letter, a digit or `_`.
    ///
    /// # Errors
    /// `Empty`, or `TooLong` for more than [`WORD_BYTES_MAX`].
    pub fn new(word: &[u8], whole: bool) -> Result<Self, WordError> {
        match word.len() {
            0 => Err(WordError::Empty),
            bytes if WORD_BYTES_MAX < bytes => Err(WordError::TooLong { bytes }),
            _ => Ok(Self { finder: Finder::new(word).into_owned(), whole }),
        }
    }

    #[must_use]
    pub fn word(&self) -> &[u8] {
        self.finder.needle()
    }

    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes on each side of the word that decide whether it is a hit.
    fn margin(&self) -> usize {
        usize::from(self.whole)
    }

    /// Bytes of each edge of a piece that a hit may share with another piece.
    #[must_use]
    pub fn edge(&self) -> usize {
        self.word().len() - 1 + 2 * self.margin()
    }

    /// Calls `found` with the offset of each hit that `text` alone decides, in order.
    fn find(&self, text: &[u8], mut found: impl FnMut(usize)) {
        let mut from = 0;
        while let Some(at) =
            text.get(from..).and_then(|rest| self.finder.find(rest)).map(|at| from + at)
        {
            from = at + 1;
            let end = at + self.word().len();
            if !self.whole {
                found(at);
            } else if let (Some(before), Some(behind)) =
                (at.checked_sub(1).and_then(|i| text.get(i)), text.get(end))
                && !is_word_byte(*before)
                && !is_word_byte(*behind)
            {
                found(at);
            }
        }
    }
}

/// A text that is told in pieces, from its start on.
#[derive(Debug)]
pub struct Seams<'a> {
    needle: &'a Needle,
    /// The last bytes told, at most [`Needle::edge`] of them; what stands before the text is one of them.
    told: Vec<u8>,
    /// How much of the text was told.
    at: u64,
}

impl<'a> Seams<'a> {
    /// A whole text: nothing stands before it.
    #[must_use]
    pub fn of_text(needle: &'a Needle) -> Self {
        Self { needle, told: vec![NOTHING; needle.margin()], at: 0 }
    }

    /// A part of a text: somebody else knows what stands before it.
    #[must_use]
    pub fn of_part(needle: &'a Needle) -> Self {
        Self { needle, told: Vec::new(), at: 0 }
    }

    /// The next `len` bytes, of which only the first and the last [`Needle::edge`] are known, or all if there are no
    /// more. Calls `found` with the offset in the text of each hit that ends in them and does not lie inside.
    pub fn piece(&mut self, len: u64, head: &[u8], tail: &[u8], mut found: impl FnMut(u64)) {
        let (edge, margin) = (self.needle.edge(), self.needle.margin());
        let seam = self.told.len();
        let word = self.needle.word().len();
        let mut text = std::mem::take(&mut self.told);
        text.extend_from_slice(head);
        self.needle.find(&text, |at| {
            if at - margin < seam && seam < at + word + margin {
                // `at` < `seam`, but for a hit whose byte before is the last one told.
                found((self.at + at as u64) - seam as u64);
            }
        });
        if edge as u64 <= len {
            text.clear();
            text.extend_from_slice(tail);
        }
        text.drain(..text.len().saturating_sub(edge));
        self.told = text;
        self.at += len;
    }

    /// As [`Self::piece`], of bytes that are all here: hits inside are found too.
    pub fn bytes(&mut self, bytes: &[u8], mut found: impl FnMut(u64)) {
        let start = self.at;
        let (head, tail) = edges(self.needle, bytes);
        self.piece(bytes.len() as u64, head, tail, &mut found);
        self.needle.find(bytes, |at| found(start + at as u64));
    }

    /// As [`Self::piece`], of zeros.
    pub fn zeros(&mut self, len: u64, found: impl FnMut(u64)) {
        let known = usize::try_from(len).unwrap_or(usize::MAX).min(self.needle.edge());
        let zeros = vec![0; known];
        self.piece(len, &zeros, &zeros, found);
    }

    /// The text ends here: nothing stands behind it.
    pub fn end(mut self, found: impl FnMut(u64)) {
        let behind = vec![NOTHING; self.needle.margin()];
        self.piece(behind.len() as u64, &behind, &behind, found);
    }

    /// The last bytes told, at most [`Needle::edge`].
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        &self.told
    }
}

/// The bytes of both edges of `bytes`.
#[must_use]
pub fn edges<'b>(needle: &Needle, bytes: &'b [u8]) -> (&'b [u8], &'b [u8]) {
    let edge = needle.edge().min(bytes.len());
    let (head, _) = bytes.split_at(edge);
    let (_, tail) = bytes.split_at(bytes.len() - edge);
    (head, tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(text: &[u8], word: &[u8], whole: bool) -> Vec<u64> {
        let at = |i: usize| text.get(i).copied().unwrap_or(NOTHING);
        let is_hit = |i: &usize| {
            let apart = !is_word_byte(at(i.wrapping_sub(1))) && !is_word_byte(at(i + word.len()));
            text[*i..].starts_with(word) && (!whole || apart)
        };
        (0..text.len()).filter(is_hit).map(|i| i as u64).collect()
    }

    /// Told as servers tell it: each piece is searched by itself, in steps, and only its edges are told.
    fn in_pieces(text: &[u8], needle: &Needle, pieces: &[usize], step: usize) -> Vec<u64> {
        let mut hits = Vec::new();
        let mut seams = Seams::of_text(needle);
        let (mut rest, mut start) = (text, 0);
        let mut sizes = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(sizes.next().unwrap_or(1).clamp(1, rest.len()));
            let mut inside = Vec::new();
            let mut part = Seams::of_part(needle);
            for bytes in piece.chunks(step) {
                part.bytes(bytes, |at| inside.push(start + at));
            }
            let (head, tail) = edges(needle, piece);
            assert_eq!(part.tail(), tail);
            seams.piece(piece.len() as u64, head, tail, |at| hits.push(at));
            hits.extend(inside);
            start += piece.len() as u64;
            rest = behind;
        }
        seams.end(|at| hits.push(at));
        hits
    }

    #[track_caller]
    fn check(text: &str, word: &str, whole: bool, expected: &[u64]) {
        let needle = Needle::new(word.as_bytes(), whole).unwrap();
        assert_eq!(plain(text.as_bytes(), word.as_bytes(), whole), expected);
        for piece in 1..=text.len() + 1 {
            assert_eq!(in_pieces(text.as_bytes(), &needle, &[piece], 3), expected, "{piece}");
        }
    }

    #[test]
    fn a_word_is_found_once_however_the_text_is_cut() {
        let text = "abcd efgh ijkl abcd abcd defg dsds abcddufhef ebhfeihf udefheifh abcde";
        check(text, "abcd", true, &[0, 15, 20]);
        check(text, "abcd", false, &[0, 15, 20, 35, 65]);
        check("aaaa", "aa", false, &[0, 1, 2]);
        check("a-a-a", "a-a", true, &[0, 2]);
        check("_ab ab_ 9ab (ab)", "ab", true, &[13]);
        check("x", "x", true, &[0]);
        check("x", "xy", false, &[]);
    }

    #[test]
    fn zeros_end_words_and_hold_none() {
        let needle = Needle::new(b"ab", true).unwrap();
        let mut hits = Vec::new();
        let mut seams = Seams::of_text(&needle);
        seams.zeros(1 << 40, |at| hits.push(at));
        seams.bytes(b"ab", |at| hits.push(at));
        seams.zeros(1, |at| hits.push(at));
        seams.bytes(b"ab", |at| hits.push(at));
        seams.end(|at| hits.push(at));
        assert_eq!(hits, [1 << 40, (1 << 40) + 3]);
    }

    #[test]
    fn no_word_and_one_that_is_too_long_are_refused() {
        assert_eq!(Needle::new(b"", false).unwrap_err(), WordError::Empty);
        assert!(Needle::new(&[b'a'; WORD_BYTES_MAX], true).is_ok());
        let bytes = WORD_BYTES_MAX + 1;
        let refused = Needle::new(&vec![b'a'; bytes], false).unwrap_err();
        assert_eq!(refused, WordError::TooLong { bytes });
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_the_whole_text_gives(
            text in "[ab _\\x00]{0,60}",
            word in "[ab _]{1,7}",
            whole: bool,
            pieces in prop::collection::vec(1_usize..12, 1..6),
            step in 1_usize..9,
        ) {
            let needle = Needle::new(word.as_bytes(), whole).unwrap();
            let expected = plain(text.as_bytes(), word.as_bytes(), whole);
            prop_assert_eq!(in_pieces(text.as_bytes(), &needle, &pieces, step), expected);
        }
    }
}
