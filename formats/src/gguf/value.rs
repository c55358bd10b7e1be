//! Metadata of a GGUF file.

/// A metadata value. Arrays have elements of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// 32-bit unsigned integer.
    U32(u32),
    /// 32-bit floating-point number.
    F32(f32),
    /// Truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// 32-bit signed integers.
    I32s(Vec<i32>),
    /// 32-bit floating-point numbers.
    F32s(Vec<f32>),
    /// Texts.
    Texts(Vec<String>),
}

/// Numbers of the types in the file.
const ARRAY: u32 = 9;

impl Value {
    /// Number of the value's type, or of an array's elements.
    fn type_id(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::I32s(_) => 5,
            Self::F32(_) | Self::F32s(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) | Self::Texts(_) => 8,
        }
    }

    /// Appends type and value.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let mut head = |len: Option<usize>| {
            if let Some(len) = len {
                bytes.extend_from_slice(&ARRAY.to_le_bytes());
                bytes.extend_from_slice(&self.type_id().to_le_bytes());
                bytes.extend_from_slice(&(len as u64).to_le_bytes());
            } else {
                bytes.extend_from_slice(&self.type_id().to_le_bytes());
            }
        };
        match self {
            Self::U32(_) | Self::F32(_) | Self::Bool(_) | Self::Text(_) => head(None),
            Self::I32s(list) => head(Some(list.len())),
            Self::F32s(list) => head(Some(list.len())),
            Self::Texts(list) => head(Some(list.len())),
        }
        match self {
            Self::U32(x) => bytes.extend_from_slice(&x.to_le_bytes()),
            Self::F32(x) => bytes.extend_from_slice(&x.to_le_bytes()),
            Self::Bool(x) => bytes.push(u8::from(*x)),
            Self::Text(text) => write_text(text, bytes),
            Self::I32s(list) => bytes.extend(list.iter().flat_map(|x| x.to_le_bytes())),
            Self::F32s(list) => bytes.extend(list.iter().flat_map(|x| x.to_le_bytes())),
            Self::Texts(list) => list.iter().for_each(|text| write_text(text, bytes)),
        }
    }
}

/// Appends a text with its length.
pub(super) fn write_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}

value_from!(
    u32 => U32, f32 => F32, bool => Bool, &str => Text, String => Text,
    Vec<i32> => I32s, Vec<f32> => F32s, Vec<String> => Texts
);

/// Metadata in the order of the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Sets a key; one that is there already keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Keys and values in order.
    pub fn entries(&self) -> &[(String, Value)] {
        &self.0
    }
}
