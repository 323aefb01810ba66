//! Element types a file may hold.

use std::fmt;

/// The type of one stored element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE single precision, 4 bytes: kept bit for bit.
    F32,
    /// IEEE half precision, 2 bytes: widened exactly.
    F16,
    /// bfloat16, 2 bytes: widened exactly.
    BF16,
    /// IEEE double precision, 8 bytes: rounded to nearest; beyond the range of `f32` that is infinity, as in PyTorch.
    F64,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 32-bit integer: rounded to nearest beyond 2²⁴.
    I32,
    /// Unsigned 32-bit integer: rounded to nearest beyond 2²⁴.
    U32,
    /// Signed 64-bit integer: rounded to nearest beyond 2²⁴.
    I64,
    /// Unsigned 64-bit integer: rounded to nearest beyond 2²⁴.
    U64,
    /// One byte, zero or not.
    Bool,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }

    /// True for the four floating-point types, the only ones that weights may come in.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::F64 => "f64",
            Dtype::I8 => "i8",
            Dtype::U8 => "u8",
            Dtype::I16 => "i16",
            Dtype::U16 => "u16",
            Dtype::I32 => "i32",
            Dtype::U32 => "u32",
            Dtype::I64 => "i64",
            Dtype::U64 => "u64",
            Dtype::Bool => "bool",
        })
    }
}
