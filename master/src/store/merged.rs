use std::iter::Peekable;

/// Two sources in key order as one; where both have a key, the upper one counts. Values are `None` where a record was
/// deleted.
pub(super) struct Merged<U: Iterator, L: Iterator> {
    upper: Peekable<U>,
    lower: Peekable<L>,
}

impl<U: Iterator, L: Iterator> Merged<U, L> {
    pub(super) fn new(upper: U, lower: L) -> Self {
        Self { upper: upper.peekable(), lower: lower.peekable() }
    }
}

impl<K, V, U, L> Iterator for Merged<U, L>
where
    K: Ord,
    U: Iterator<Item = (K, Option<V>)>,
    L: Iterator<Item = (K, Option<V>)>,
{
    type Item = (K, Option<V>);

    fn next(&mut self) -> Option<Self::Item> {
        let Some((upper, _)) = self.upper.peek() else { return self.lower.next() };
        if self.lower.peek().is_some_and(|(lower, _)| lower < upper) {
            return self.lower.next();
        }
        if self.lower.peek().is_some_and(|(lower, _)| lower == upper) {
            self.lower.next();
        }
        self.upper.next()
    }
}
