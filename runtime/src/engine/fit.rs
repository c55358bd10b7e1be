//! What an engine will take, and what would fit where it does not.

use gristmill_formats::model::ModelSpec;
use gristmill_kernels::KvType;

use super::{EngineConfig, MemoryPlan, buffers, default_threads};
use crate::error::{Result, RuntimeError};

/// A configuration with its open ends filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) threads: usize,
    pub(super) context: usize,
    pub(super) chunk: usize,
}

impl EngineConfig {
    /// Memory that an engine for a model of this description holds beside the weights, without building
    /// it.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn memory(&self, spec: &ModelSpec) -> Result<MemoryPlan> {
        let Extent { threads, context, chunk } = self.extent(spec)?;
        Ok(buffers::plan(spec, context, chunk, threads, self.kv))
    }

    /// The longest context whose engine takes at most so many bytes beside the weights; `None` when not
    /// even one position fits.
    pub fn longest_context(&self, spec: &ModelSpec, bytes: u64) -> Option<usize> {
        let fits = |context: usize| {
            let config = Self { context: Some(context), ..self.clone() };
            config.memory(spec).is_ok_and(|plan| plan.total() <= bytes)
        };
        let (mut good, mut bad) = (0, spec.max_context as usize + 1);
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            if fits(middle) { good = middle } else { bad = middle }
        }
        (good > 0).then_some(good)
    }

    /// What would fit into so many bytes beside the weights, as a user would ask for it.
    pub fn advice(&self, spec: &ModelSpec, bytes: u64) -> String {
        let narrower =
            [KvType::Int8, KvType::Int4].into_iter().filter(|kv| kv.bits() < self.kv.bits());
        let fitting = [self.kv].into_iter().chain(narrower).filter_map(|kv| {
            let context = Self { kv, ..self.clone() }.longest_context(spec, bytes)?;
            let kv = if kv == self.kv { String::new() } else { format!(" --kv {}", kv.name()) };
            Some(format!("`--ctx {context}{kv}`"))
        });
        let fitting: Vec<_> = fitting.collect();
        match fitting.is_empty() {
            true => "no context would; free memory, or use a smaller model".into(),
            false => format!("{} would fit", fitting.join(" or ")),
        }
    }

    pub(super) fn extent(&self, spec: &ModelSpec) -> Result<Extent> {
        let threads = self.threads.unwrap_or_else(default_threads);
        if threads == 0 || threads > Self::MAX_THREADS {
            let max = Self::MAX_THREADS;
            return Err(RuntimeError::Config(format!("{threads} threads; expected 1..={max}")));
        }
        let limit = spec.max_context as usize;
        let context = self.context.unwrap_or(limit.min(Self::DEFAULT_CONTEXT));
        if context == 0 || context > limit {
            return Err(RuntimeError::Config(format!(
                "a context of {context}; this model takes 1..={limit}"
            )));
        }
        if self.chunk == 0 || self.chunk > Self::MAX_CHUNK {
            let max = Self::MAX_CHUNK;
            return Err(RuntimeError::Config(format!(
                "chunks of {}; expected 1..={max}",
                self.chunk
            )));
        }
        Ok(Extent { threads, context, chunk: self.chunk.min(context) })
    }
}
