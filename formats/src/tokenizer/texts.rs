//! Token texts in one buffer with a hash index, so that replaying merges makes no small
//! allocations.

use std::hash::{BuildHasher, RandomState};

const EMPTY: u32 = u32::MAX;

/// Texts by id, all different, some not known yet.
pub(super) struct Texts {
    buffer: String,
    /// Start and end in `buffer`; `None` while the text is not known.
    spans: Vec<Option<(usize, usize)>>,
    /// Open addressing over ids; a power of two, at most half full.
    slots: Vec<u32>,
    // Keyed at random: a file must not be able to choose colliding texts.
    hasher: RandomState,
}

impl Texts {
    /// For `len` tokens, with the texts of the explicit ones in `buffer`.
    pub(super) fn new(buffer: String, len: usize) -> Self {
        Self {
            buffer,
            spans: vec![None; len],
            slots: vec![EMPTY; (len * 2).next_power_of_two()],
            hasher: RandomState::new(),
        }
    }

    /// Says that token `id` is `start..end` of the buffer. False when that is not text or not new.
    pub(super) fn insert(&mut self, id: u32, start: usize, end: usize) -> bool {
        if self.buffer.get(start..end).is_none() {
            return false;
        }
        match self.find(start, end) {
            Ok(_) => false,
            Err(slot) => {
                self.slots[slot] = id;
                self.spans[id as usize] = Some((start, end));
                true
            }
        }
    }

    /// Spells `left` and `right` less `prefix_len` bytes. `Ok(true)` when this was a new text, now
    /// that of `id`; `Ok(false)` when a token has it already.
    pub(super) fn merge(
        &mut self,
        left: u32,
        right: u32,
        prefix_len: usize,
        id: Option<u32>,
        max_bytes: usize,
    ) -> Result<bool, &'static str> {
        let span = |id: u32| self.spans.get(id as usize).copied().flatten();
        let (Some(left), Some((right, right_end))) = (span(left), span(right)) else {
            return Err("a merge uses a token before its text is known");
        };
        let right = right + prefix_len;
        if right > right_end || !self.buffer.is_char_boundary(right) {
            return Err("a merge drops more than its right part has");
        }
        let start = self.buffer.len();
        let end = start + (left.1 - left.0) + (right_end - right);
        if end > max_bytes {
            return Err("merges spell more text than the section justifies");
        }
        self.buffer.extend_from_within(left.0..left.1);
        self.buffer.extend_from_within(right..right_end);
        match (self.find(start, end), id) {
            (Ok(_), _) => {
                self.buffer.truncate(start);
                Ok(false)
            }
            (Err(slot), Some(id)) => {
                self.slots[slot] = id;
                self.spans[id as usize] = Some((start, end));
                Ok(true)
            }
            (Err(_), None) => Err("a merge spells a text that no token has"),
        }
    }

    /// The texts by id; `None` when one is not known.
    pub(super) fn into_vec(self) -> Option<Vec<String>> {
        self.spans.iter().map(|span| span.map(|(a, b)| self.buffer[a..b].to_owned())).collect()
    }

    /// The slot of the token with the text `start..end`, or else the slot where it belongs.
    fn find(&self, start: usize, end: usize) -> Result<usize, usize> {
        let text = &self.buffer.as_bytes()[start..end];
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        loop {
            let id = self.slots[slot];
            if id == EMPTY {
                return Err(slot);
            }
            if let Some((a, b)) = self.spans[id as usize]
                && &self.buffer.as_bytes()[a..b] == text
            {
                return Ok(slot);
            }
            slot = (slot + 1) & mask;
        }
    }
}
