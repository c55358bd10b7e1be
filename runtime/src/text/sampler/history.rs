//! Which tokens the last part of a sequence contains.

/// The distinct tokens among the last `n`.
#[derive(Debug, Clone)]
pub(super) struct History {
    /// The last tokens, a ring; without capacity when the whole sequence counts.
    ring: Vec<u32>,
    /// Where the ring's oldest token is, once it is full.
    oldest: usize,
    window: usize,
    /// Per token, how often it is in the window and its place in `distinct`.
    counts: Vec<(u32, u32)>,
    distinct: Vec<u32>,
}

/// Longer windows are the whole sequence: beyond this a ring costs more than it says.
const MAX_WINDOW: u32 = 1 << 20;

impl History {
    pub(super) fn new(last_n: u32, vocab_size: usize) -> Self {
        let window = if last_n > MAX_WINDOW { usize::MAX } else { last_n as usize };
        let len = if window == 0 { 0 } else { vocab_size };
        Self {
            ring: Vec::with_capacity(if window == usize::MAX { 0 } else { window }),
            oldest: 0,
            window,
            counts: vec![(0, 0); len],
            distinct: Vec::with_capacity(len),
        }
    }

    pub(super) fn distinct(&self) -> &[u32] {
        &self.distinct
    }

    pub(super) fn push(&mut self, id: u32) {
        let Some((count, place)) = self.counts.get_mut(id as usize) else { return };
        if *count == 0 {
            *place = self.distinct.len() as u32;
            self.distinct.push(id);
        }
        if self.window == usize::MAX {
            *count = 1;
            return;
        }
        *count += 1;
        if self.ring.len() < self.window {
            self.ring.push(id);
        } else {
            let gone = std::mem::replace(&mut self.ring[self.oldest], id);
            self.oldest = (self.oldest + 1) % self.window;
            self.forget(gone);
        }
    }

    pub(super) fn clear(&mut self) {
        self.ring.clear();
        self.oldest = 0;
        for id in self.distinct.drain(..) {
            self.counts[id as usize] = (0, 0);
        }
    }

    #[cfg(test)]
    pub(super) fn buffers(&self) -> [(usize, usize); 2] {
        [&self.ring, &self.distinct].map(|list| (list.as_ptr() as usize, list.capacity()))
    }

    fn forget(&mut self, id: u32) {
        let (count, place) = &mut self.counts[id as usize];
        *count -= 1;
        if *count == 0 {
            let place = *place as usize;
            self.distinct.swap_remove(place);
            if let Some(&moved) = self.distinct.get(place) {
                self.counts[moved as usize].1 = place as u32;
            }
        }
    }
}
