//! What `bench` does in other processes than its own.

mod child;
mod cold;
mod interleave;

pub(crate) use cold::{ColdRequest, cold_run, cold_starts};
pub(crate) use interleave::{interleave, list, order, run};
