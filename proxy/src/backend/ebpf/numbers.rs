//! Small numbers that are given out, taken back and given out again.

use std::collections::BTreeSet;

/// Which numbers are in use: all below the end but those that were taken back.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    end: u32,
    free: BTreeSet<u32>,
}

impl Numbers {
    /// The smallest number that nobody has.
    pub(crate) fn give(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.end += 1;
            self.end - 1
        })
    }

    /// Takes a certain number; whether it was free.
    pub(crate) fn take(&mut self, number: u32) -> bool {
        if number < self.end {
            return self.free.remove(&number);
        }
        self.free.extend(self.end..number);
        self.end = number + 1;
        true
    }

    /// Takes a number back.
    pub(crate) fn release(&mut self, number: u32) {
        if number < self.end {
            self.free.insert(number);
        }
        while self.end > 0 && self.free.remove(&(self.end - 1)) {
            self.end -= 1;
        }
    }

    /// One more than the largest number in use.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn numbers_come_back() {
        let mut numbers = Numbers::default();
        assert_eq!([numbers.give(), numbers.give(), numbers.give()], [0, 1, 2]);
        numbers.release(1);
        assert_eq!(numbers.give(), 1);
        assert!(numbers.take(5) && !numbers.take(5) && !numbers.take(2));
        assert_eq!([numbers.give(), numbers.give(), numbers.give()], [3, 4, 6]);
        for number in [6, 5, 4, 3] {
            numbers.release(number);
        }
        assert_eq!(numbers.end(), 3);
    }
}
