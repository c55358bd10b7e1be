//! A strict reader of GGUF files, written from the specification and not from the writer.

use std::collections::BTreeMap;

use gristmill_formats::gguf::{GgmlType, Value};

/// A tensor as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    /// Its name.
    pub(crate) name: String,
    /// Extents, outermost first.
    pub(crate) shape: Vec<u64>,
    /// Its type.
    pub(crate) ty: GgmlType,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Everything in a file. Panics where the file breaks a rule of the format.
pub(crate) fn read(file: &[u8]) -> (BTreeMap<String, Value>, Vec<Tensor>) {
    let mut cursor = Cursor { file, at: 0 };
    assert_eq!(cursor.take(4), b"GGUF");
    assert_eq!(cursor.u32(), 3, "version");
    let (tensors, entries) = (cursor.u64(), cursor.u64());
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = cursor.text();
        let ty = cursor.u32();
        let value = cursor.value(ty);
        assert!(key.is_ascii() && key.len() < 1 << 16, "key {key}");
        assert!(metadata.insert(key, value).is_none(), "a key occurs twice");
    }
    assert!(!metadata.contains_key("general.alignment"), "the default is meant");
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let name = cursor.text();
            let dimensions = cursor.u32();
            let mut shape: Vec<u64> = (0..dimensions).map(|_| cursor.u64()).collect();
            shape.reverse();
            let id = cursor.u32();
            let ty = GgmlType::ALL.into_iter().find(|ty| ty.id() == id).expect("a known type");
            (name, shape, ty, cursor.u64() as usize)
        })
        .collect();
    cursor.align();
    let data = cursor.at;
    let mut read: Vec<Tensor> = Vec::new();
    for (name, shape, ty, offset) in infos {
        assert_eq!(data + offset, cursor.at, "{name}: tensors tile the data");
        let row = ty.row_bytes(*shape.last().expect("a dimension") as usize).expect("whole blocks");
        let rows: u64 = shape[..shape.len() - 1].iter().product();
        let bytes = cursor.take(row * rows as usize).to_vec();
        cursor.align();
        assert!(read.iter().all(|t| t.name != name), "{name} occurs twice");
        read.push(Tensor { name, shape, ty, bytes });
    }
    assert_eq!(cursor.at, file.len(), "nothing is left");
    (metadata, read)
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        self.at += n;
        &self.file[self.at - n..self.at]
    }

    fn align(&mut self) {
        while !self.at.is_multiple_of(32) {
            assert_eq!(self.take(1), [0], "padding is zero");
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("4 bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("8 bytes"))
    }

    fn f32(&mut self) -> f32 {
        f32::from_bits(self.u32())
    }

    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).expect("UTF-8")
    }

    fn value(&mut self, ty: u32) -> Value {
        match ty {
            4 => Value::U32(self.u32()),
            6 => Value::F32(self.f32()),
            7 => {
                let byte = self.take(1)[0];
                assert!(byte < 2, "a truth value");
                Value::Bool(byte == 1)
            }
            8 => Value::Text(self.text()),
            9 => {
                let (element, n) = (self.u32(), self.u64());
                match element {
                    5 => Value::I32s((0..n).map(|_| self.u32() as i32).collect()),
                    6 => Value::F32s((0..n).map(|_| self.f32()).collect()),
                    8 => Value::Texts((0..n).map(|_| self.text()).collect()),
                    _ => panic!("an array of type {element}"),
                }
            }
            _ => panic!("a value of type {ty}"),
        }
    }
}
