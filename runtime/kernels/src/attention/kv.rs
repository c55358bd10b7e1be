//! The cache of keys and values.

use super::POSITIONS_PER_BLOCK;
use super::windowed::{EXACT_BLOCKS, exact_from};

/// Element type of the key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision: for comparisons.
    F32,
    /// Half precision.
    F16,
    /// int8 with an f32 scale per position and head.
    Int8,
    /// Rotated, in four bits with an f32 scale per position and head; a query sees its own block of 16
    /// positions and the one before in f16.
    Int4,
}

impl KvType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Whether each key and each value has a scale.
    fn is_scaled(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// The type of a layer with a sliding window, if this is the cache's: int8 in place of int4, whose
    /// exact positions would be much of a window.
    pub fn of_sliding_window(self) -> Self {
        if self == Self::Int4 { Self::Int8 } else { self }
    }

    /// Bytes of keys and values that the query at a position reads in one head of `head_dim` elements,
    /// when it sees `positions` of them.
    pub fn bytes_read(self, head_dim: usize, position: usize, positions: usize) -> usize {
        let exact = match self {
            Self::Int4 => (position + 1 - exact_from(position)).min(positions),
            _ => 0,
        };
        exact * Self::F16.position_bytes(head_dim)
            + (positions - exact) * self.position_bytes(head_dim)
    }

    /// Bytes of the key and the value of one position in one head of `head_dim` elements.
    pub fn position_bytes(self, head_dim: usize) -> usize {
        let elements = 2 * head_dim.next_multiple_of(16) * self.bits() / 8;
        elements + if self.is_scaled() { 2 * size_of::<f32>() } else { 0 }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("unknown KV type `{name}`; known: {known}")
        })
    }
}

/// Zeroed bytes whose use begins on a cache line. They come from the allocator as zero pages, so a
/// context costs memory only as far as it is filled; that rules out an allocation with an alignment of
/// its own, which would be written to be zeroed. Not `Clone`: a copy would begin elsewhere.
#[derive(Debug)]
struct Storage(Vec<u8>);

impl Storage {
    const ALIGN: usize = 64;

    fn new(bytes: usize) -> Self {
        let bytes = bytes.checked_add(Self::ALIGN).expect("a cache within the address space");
        Self(vec![0; bytes])
    }

    fn start(&self) -> usize {
        self.0.as_ptr().align_offset(Self::ALIGN)
    }

    fn as_ptr(&self) -> *const u8 {
        self.0[self.start()..].as_ptr()
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        let start = self.start();
        self.0[start..].as_mut_ptr()
    }

    /// Copies some bytes of another.
    fn copy(&mut self, to: usize, source: &Self, from: usize, bytes: usize) {
        let (to, from) = (self.start() + to, source.start() + from);
        self.0[to..to + bytes].copy_from_slice(&source.0[from..from + bytes]);
    }
}

/// Keys and values of one head of one layer: a ring of positions.
#[derive(Debug)]
pub struct KvHead {
    kind: KvType,
    head_dim: usize,
    /// Positions the ring holds: a multiple of 16.
    capacity: usize,
    keys: Storage,
    values: Storage,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    /// The latest positions in f16, where the type has them.
    recent: Option<Box<KvHead>>,
}

impl KvHead {
    /// Positions of the exact window of int4: what a query sees of it, and as much again, so that a
    /// sequence can be taken back by a few tokens.
    pub const RECENT: usize = 2 * EXACT_BLOCKS * POSITIONS_PER_BLOCK;

    /// Room for `positions` (rounded up to 16) keys and values of `head_dim` elements.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn new(kind: KvType, head_dim: usize, positions: usize) -> Self {
        Self::with_recent(kind, head_dim, positions, Self::RECENT)
    }

    /// As [`Self::new`], with an exact window of `recent` positions (rounded up to 16), should the type
    /// have one. Queries that are computed together may be as far apart as leaves what they see in it.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn with_recent(kind: KvType, head_dim: usize, positions: usize, recent: usize) -> Self {
        let capacity = positions.next_multiple_of(POSITIONS_PER_BLOCK);
        let storage = || {
            let elements = capacity.checked_mul(head_dim.next_multiple_of(16));
            let bits = elements.and_then(|n| n.checked_mul(kind.bits()));
            Storage::new(bits.expect("a cache within the address space") / 8)
        };
        let scales = if kind.is_scaled() { capacity } else { 0 };
        Self {
            kind,
            head_dim,
            capacity,
            keys: storage(),
            values: storage(),
            key_scales: vec![0.0; scales],
            value_scales: vec![0.0; scales],
            recent: (kind == KvType::Int4)
                .then(|| Box::new(Self::new(KvType::F16, head_dim, recent))),
        }
    }

    /// An exact window for a chunk of `tokens` tokens, for [`Self::exchange_recent`].
    pub fn recent_for(head_dim: usize, tokens: usize) -> Self {
        Self::new(KvType::F16, head_dim, tokens + Self::RECENT)
    }

    /// Exchanges the exact window for another, which gets what the two can hold of the positions
    /// `from..end`. Does nothing for types that have none.
    ///
    /// # Panics
    /// When `window` is for other heads.
    pub fn exchange_recent(&mut self, window: &mut Self, from: usize, end: usize) {
        let Some(recent) = &mut self.recent else { return };
        assert_eq!((recent.kind, recent.head_dim), (window.kind, window.head_dim));
        let blocks = recent.capacity.min(window.capacity) / POSITIONS_PER_BLOCK;
        let end = end.div_ceil(POSITIONS_PER_BLOCK);
        let block_bytes = recent.head_dim.next_multiple_of(16) * POSITIONS_PER_BLOCK * 2;
        for block in (from / POSITIONS_PER_BLOCK).max(end.saturating_sub(blocks))..end {
            let at = |kv: &Self| block % (kv.capacity / POSITIONS_PER_BLOCK) * block_bytes;
            let (source, target) = (at(recent), at(window));
            window.keys.copy(target, &recent.keys, source, block_bytes);
            window.values.copy(target, &recent.values, source, block_bytes);
        }
        std::mem::swap(&mut **recent, window);
    }

    /// Whether a sequence of which `written` positions have been stored cannot go on at `position`,
    /// because the exact window has left what the query there would see of it.
    pub fn is_recent_lost(&self, position: usize, written: usize) -> bool {
        let Some(recent) = &self.recent else { return false };
        let kept = written.next_multiple_of(POSITIONS_PER_BLOCK).saturating_sub(recent.capacity);
        position > 0 && exact_from(position) < kept
    }

    /// Element type.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Elements of a key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions the ring holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that [`Self::new`] allocates.
    pub fn bytes_for(kind: KvType, head_dim: usize, positions: usize) -> usize {
        let positions = positions.next_multiple_of(POSITIONS_PER_BLOCK);
        let recent = match kind {
            KvType::Int4 => Self::bytes_for(KvType::F16, head_dim, Self::RECENT),
            _ => 0,
        };
        positions * kind.position_bytes(head_dim) + 2 * Storage::ALIGN + recent
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.keys.0.len()
            + self.values.0.len()
            + (self.key_scales.len() + self.value_scales.len()) * size_of::<f32>()
            + self.recent.as_ref().map_or(0, |recent| recent.bytes())
    }

    /// Whether queries from position `first` to `last` may be computed together: what each sees exactly
    /// is in the window.
    pub(crate) fn holds_recent(&self, first: usize, last: usize) -> bool {
        let from = exact_from(first);
        let end = (last + 1).next_multiple_of(POSITIONS_PER_BLOCK);
        self.recent.as_ref().is_none_or(|recent| end - from <= recent.capacity)
    }

    pub(crate) fn view(&self) -> KvView {
        KvView {
            head_dim: self.head_dim,
            capacity: self.capacity,
            keys: self.keys.as_ptr(),
            values: self.values.as_ptr(),
            key_scales: self.key_scales.as_ptr(),
            value_scales: self.value_scales.as_ptr(),
            recent: self.recent.as_ref().map(|recent| recent.ring()),
        }
    }

    fn ring(&self) -> Ring<*const u8> {
        let (keys, values) = (self.keys.as_ptr(), self.values.as_ptr());
        Ring { capacity: self.capacity, keys, values }
    }

    fn ring_mut(&mut self) -> Ring<*mut u8> {
        let (keys, values) = (self.keys.as_mut_ptr(), self.values.as_mut_ptr());
        Ring { capacity: self.capacity, keys, values }
    }

    pub(crate) fn view_mut(&mut self) -> KvViewMut {
        KvViewMut {
            head_dim: self.head_dim,
            capacity: self.capacity,
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            key_scales: self.key_scales.as_mut_ptr(),
            value_scales: self.value_scales.as_mut_ptr(),
            recent: self.recent.as_mut().map(|recent| recent.ring_mut()),
        }
    }
}

/// An exact window.
#[derive(Clone, Copy)]
struct Ring<P> {
    capacity: usize,
    keys: P,
    values: P,
}

/// Where attention reads.
#[derive(Clone, Copy)]
pub(crate) struct KvView {
    pub(super) head_dim: usize,
    pub(super) capacity: usize,
    pub(super) keys: *const u8,
    pub(super) values: *const u8,
    pub(super) key_scales: *const f32,
    pub(super) value_scales: *const f32,
    recent: Option<Ring<*const u8>>,
}

impl KvView {
    /// The exact window.
    pub(super) fn recent(self) -> Self {
        let Ring { capacity, keys, values } = self.recent.expect("the type has a window");
        Self { capacity, keys, values, ..self }
    }

    pub(super) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }
}

/// Where keys and values are written.
#[derive(Clone, Copy)]
pub(crate) struct KvViewMut {
    pub(super) head_dim: usize,
    pub(super) capacity: usize,
    pub(super) keys: *mut u8,
    pub(super) values: *mut u8,
    pub(super) key_scales: *mut f32,
    pub(super) value_scales: *mut f32,
    recent: Option<Ring<*mut u8>>,
}

impl KvViewMut {
    /// The exact window.
    pub(super) fn recent(self) -> Self {
        let Ring { capacity, keys, values } = self.recent.expect("the type has a window");
        Self { capacity, keys, values, ..self }
    }

    pub(super) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }
}
