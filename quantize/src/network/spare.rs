//! Memory of dropped matrices, kept for the next ones.
//!
//! A block makes and drops matrices of the same few sizes over and over. The allocator gives memory of
//! that size back to the system and has every page of it faulted in and cleared again, which took a
//! seventh of the time of a forward pass.

use std::sync::{Mutex, PoisonError};

/// What is kept at most, in all.
const MAX_KEPT_BYTES: usize = 256 << 20;
/// What the allocator keeps itself.
const MIN_BYTES: usize = 128 << 10;

static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

fn bytes(len: usize) -> usize {
    len * size_of::<f32>()
}

/// `len` values, whatever they are.
pub(super) fn take(len: usize) -> Vec<f32> {
    if bytes(len) >= MIN_BYTES {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = spare.iter().rposition(|v| v.len() >= len && v.len() / 2 <= len) {
            let mut values = spare.swap_remove(i);
            values.truncate(len);
            return values;
        }
    }
    vec![0.0; len]
}

/// Takes back what is worth keeping.
pub(super) fn give(values: Vec<f32>) {
    if bytes(values.len()) >= MIN_BYTES {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = spare.iter().map(|v| bytes(v.len())).sum();
        if kept + bytes(values.len()) <= MAX_KEPT_BYTES {
            spare.push(values);
        }
    }
}
