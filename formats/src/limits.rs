//! Bounds on everything that a file may declare. A reader checks each count against these before it
//! allocates, so that no input can ask for more memory than its own size justifies.

/// Largest header (JSON) in bytes.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Largest number of tensors in one file.
pub const MAX_TENSORS: usize = 1 << 20;
/// Longest tensor name in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Largest extent of one tensor dimension.
pub const MAX_DIM: u64 = 1 << 31;
/// Largest number of layers in a model.
pub const MAX_LAYERS: usize = 4096;
/// Largest number of blocks in one layer.
pub const MAX_BLOCKS_PER_LAYER: usize = 8;
/// Largest width of the residual stream, of an attention projection and of a feed-forward layer.
pub const MAX_WIDTH: u32 = 1 << 20;
/// Largest number of attention heads in a layer.
pub const MAX_HEADS: u32 = 4096;
/// Largest vocabulary.
pub const MAX_VOCAB: u32 = 1 << 24;
/// Largest context length a model may declare.
pub const MAX_CONTEXT: u32 = 1 << 28;
/// Largest tokenizer section after decompression.
pub const MAX_TOKENIZER_BYTES: usize = 256 << 20;
/// Largest compressed tokenizer section.
pub const MAX_TOKENIZER_SECTION_BYTES: u64 = 64 << 20;
/// Alignment of sections in the file: the largest page size in common use.
pub const SECTION_ALIGN: u64 = 16 << 10;
/// Alignment of a panel and of every tensor in memory: one cache line, one AVX-512 vector.
pub const PANEL_ALIGN: usize = 64;
