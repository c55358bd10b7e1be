//! One sequence: key/value caches, buffers, and the forward pass over them.

mod buffers;
mod fit;
mod forward;
mod head;
mod two_stage;

use std::sync::Arc;

use gristmill_kernels::{Isa, Kernels, KvType};

use crate::error::{Result, RuntimeError};
use crate::model::Model;
use crate::pool::Pool;
use buffers::{Buffers, Caches, Worker};
use fit::Extent;

/// How an engine is built.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Threads; `None` for as many as the process may use.
    pub threads: Option<usize>,
    /// Instruction-set class; `None` for the CPU's best.
    pub isa: Option<Isa>,
    /// Positions; `None` for the model's own limit, at most [`EngineConfig::DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Element type of the key/value cache.
    pub kv: KvType,
    /// Tokens of a prompt that are computed together.
    pub chunk: usize,
}

impl EngineConfig {
    /// Context of an engine that is not told otherwise.
    pub const DEFAULT_CONTEXT: usize = 4096;
    /// Tokens of a prompt computed together by an engine that is not told otherwise.
    pub const DEFAULT_CHUNK: usize = 512;
    /// Most tokens computed together.
    pub const MAX_CHUNK: usize = 1 << 16;
    /// Most threads.
    pub const MAX_THREADS: usize = 256;
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: None,
            isa: None,
            context: None,
            kv: KvType::F16,
            chunk: Self::DEFAULT_CHUNK,
        }
    }
}

/// Bytes an engine holds beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Key/value caches.
    pub kv_bytes: u64,
    /// Activations, scratch and logits.
    pub buffer_bytes: u64,
}

impl MemoryPlan {
    /// Both together.
    pub fn total(&self) -> u64 {
        self.kv_bytes + self.buffer_bytes
    }
}

/// Which kernel multiplies the matrices of a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelUse {
    /// Codec.
    pub codec: gristmill_formats::codec::CodecId,
    /// Kernel for one token.
    pub decode: String,
    /// Kernel for chunks.
    pub prefill: String,
}

/// How the two-stage head was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadUse {
    /// Tokens whose logits were computed in two stages.
    pub tokens: u64,
    /// Panels of the real head that were computed for them.
    pub panels: u64,
}

impl HeadUse {
    /// What was added since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { tokens: self.tokens - before.tokens, panels: self.panels - before.panels }
    }
}

/// Computes logits for one sequence.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    kernels: &'static Kernels,
    pool: Pool,
    workers: Vec<Worker>,
    buffers: Buffers,
    caches: Caches,
    kv: KvType,
    context: usize,
    chunk: usize,
    position: usize,
    /// Largest position ever written since the last reset, for the check in [`Engine::rewind`].
    written: usize,
    head_use: HeadUse,
}

impl Engine {
    /// Most logits that the two-stage head looks for.
    pub const MAX_TOP: usize = 256;

    /// Plans and allocates all memory that running needs.
    ///
    /// # Errors
    /// When the configuration is impossible or needs more memory than there is.
    pub fn new(model: Arc<Model>, config: &EngineConfig) -> Result<Self> {
        let isa = config.isa.unwrap_or_else(Isa::detect);
        let kernels = Kernels::for_isa(isa).ok_or_else(|| {
            let available: Vec<_> = Isa::available().map(Isa::name).collect();
            RuntimeError::IsaUnavailable { requested: isa.name(), available: available.join(", ") }
        })?;
        let Extent { threads, context, chunk } = config.extent(model.spec())?;
        let plan = buffers::plan(model.spec(), context, chunk, threads, config.kv);
        if let Some(available) = crate::memory::available_memory_bytes()
            && plan.total() > available
        {
            return Err(RuntimeError::OutOfMemory {
                needed_mib: plan.total() >> 20,
                available_mib: available >> 20,
                context,
                advice: config.advice(model.spec(), available),
            });
        }
        Ok(Self {
            workers: (0..threads).map(|_| Worker::new(&model, chunk, threads)).collect(),
            buffers: Buffers::new(&model, context, chunk),
            caches: Caches::new(&model, context, chunk, config.kv),
            pool: Pool::new(threads),
            kernels,
            kv: config.kv,
            context,
            chunk,
            position: 0,
            written: 0,
            head_use: HeadUse::default(),
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Instruction-set class in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Kernel of each codec that the model uses.
    pub fn kernel_uses(&self) -> Vec<KernelUse> {
        let name = |codec, tokens| self.kernels.matmul_name(codec, tokens);
        let mut codecs = self.model.codecs();
        codecs.extend(self.model.coarse_head().map(|coarse| coarse.matrix.codec.id()));
        codecs.sort_unstable();
        codecs.dedup();
        let uses = codecs.into_iter();
        uses.map(|codec| KernelUse {
            codec,
            decode: name(codec, 1),
            prefill: name(codec, self.chunk),
        })
        .collect()
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Element type of the key/value cache.
    pub fn kv(&self) -> KvType {
        self.kv
    }

    /// Positions that fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens processed so far: the position of the next one.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes held beside the weights.
    pub fn memory(&self) -> MemoryPlan {
        MemoryPlan {
            kv_bytes: self.caches.bytes(),
            buffer_bytes: self.buffers.bytes()
                + self.workers.iter().map(Worker::bytes).sum::<u64>(),
        }
    }

    /// How the two-stage head was used since the engine was built.
    pub fn head_use(&self) -> HeadUse {
        self.head_use
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.position = 0;
        self.written = 0;
    }

    /// Goes back to an earlier position; the tokens from there on are forgotten.
    ///
    /// # Errors
    /// When the position is ahead, or a sliding window no longer holds what it would need.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        let lost = self.caches.oldest_needed_is_lost(position, self.written);
        if position > self.position || lost {
            return Err(RuntimeError::Rewind { position });
        }
        self.position = position;
        Ok(())
    }

    /// Appends tokens and returns the logits after the last: one value per vocabulary entry.
    ///
    /// # Errors
    /// When there are no tokens, one is not in the vocabulary, or they do not fit the context. The
    /// sequence is unchanged then.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&mut [f32]> {
        self.prefill_top(tokens, usize::MAX)
    }

    /// [`Self::prefill`] for who needs only the `top` largest logits: others may be -∞, and the rest have the
    /// same bits. Without a coarse head ([`Model::set_head`]), and for more than [`Self::MAX_TOP`], all are
    /// computed.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn prefill_top(&mut self, tokens: &[u32], top: usize) -> Result<&mut [f32]> {
        self.check(tokens)?;
        let mut count = 0;
        for chunk in tokens.chunks(self.chunk) {
            self.forward(chunk);
            count = chunk.len();
        }
        Ok(self.last_logits(count, top))
    }

    /// Appends one token and returns the logits after it. Allocates nothing.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&mut [f32]> {
        self.decode_top(token, usize::MAX)
    }

    /// [`Self::decode`] for who needs only the `top` largest logits, as [`Self::prefill_top`].
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode_top(&mut self, token: u32, top: usize) -> Result<&mut [f32]> {
        self.check(&[token])?;
        self.forward(&[token]);
        Ok(self.last_logits(1, top))
    }

    /// Appends tokens and hands the logits after each from index `from` on to `each`, in order, as
    /// `(index in tokens, logits)`.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn score(
        &mut self,
        tokens: &[u32],
        from: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check(tokens)?;
        let mut done = 0;
        for chunk in tokens.chunks(self.chunk) {
            self.forward(chunk);
            let first = from.saturating_sub(done).min(chunk.len());
            self.all_logits(chunk.len(), first, |i, logits| each(done + i, logits));
            done += chunk.len();
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(RuntimeError::NoTokens);
        }
        let vocab_size = self.model.spec().vocab_size;
        if let Some(&token) = tokens.iter().find(|&&t| t >= vocab_size) {
            return Err(RuntimeError::UnknownToken { token, vocab_size });
        }
        let needed = self.position + tokens.len();
        if needed > self.context {
            return Err(RuntimeError::ContextFull { needed, context: self.context });
        }
        Ok(())
    }
}

/// Threads the process may use: its affinity and its control group's quota are honoured.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(EngineConfig::MAX_THREADS)
}
