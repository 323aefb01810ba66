//! Between the bytes of a file and the `f32` this crate computes with.

use super::Dtype;
use half::{bf16, f16};

impl Dtype {
    /// Decodes one element from exactly [`Dtype::size`] little-endian bytes.
    pub(super) fn element(self) -> fn(&[u8]) -> f32 {
        /// The array behind a slice whose length the caller has fixed.
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("the caller cuts slices of one element")
        }
        match self {
            Dtype::F32 => |b| f32::from_le_bytes(array(b)),
            Dtype::F16 => |b| f16::from_le_bytes(array(b)).to_f32(),
            Dtype::BF16 => |b| bf16::from_le_bytes(array(b)).to_f32(),
            Dtype::F64 => |b| f64::from_le_bytes(array(b)) as f32,
            Dtype::I8 => |b| f32::from(i8::from_le_bytes(array(b))),
            Dtype::U8 => |b| f32::from(b[0]),
            Dtype::I16 => |b| f32::from(i16::from_le_bytes(array(b))),
            Dtype::U16 => |b| f32::from(u16::from_le_bytes(array(b))),
            Dtype::I32 => |b| i32::from_le_bytes(array(b)) as f32,
            Dtype::U32 => |b| u32::from_le_bytes(array(b)) as f32,
            Dtype::I64 => |b| i64::from_le_bytes(array(b)) as f32,
            Dtype::U64 => |b| u64::from_le_bytes(array(b)) as f32,
            Dtype::Bool => |b| f32::from(u8::from(b[0] != 0)),
        }
    }

    /// Decodes `out.len()` little-endian elements from `bytes`, which must be exactly as long.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "callers check the length against the file");
        if self == Dtype::F32 {
            // Kept apart from the general loop so that it compiles to a copy.
            let (words, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(words).for_each(|(slot, word)| *slot = f32::from_le_bytes(*word));
            return;
        }
        let element = self.element();
        out.iter_mut().zip(bytes.chunks_exact(self.size())).for_each(|(slot, b)| *slot = element(b));
    }

    /// Appends `values` to `out` as little-endian elements, rounded to nearest even. Only the 16- and 32-bit floats can
    /// be written; returns the first finite value that would become infinite, or `None` if all went in.
    #[cfg(any(feature = "safetensors", feature = "npz"))]
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Option<f32> {
        match self {
            Dtype::F16 => encode_half(values, out, |v| (f16::from_f32(v).to_le_bytes(), f16::from_f32(v).is_finite())),
            Dtype::BF16 => {
                encode_half(values, out, |v| (bf16::from_f32(v).to_le_bytes(), bf16::from_f32(v).is_finite()))
            }
            _ => {
                out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
                None
            }
        }
    }
}

#[cfg(any(feature = "safetensors", feature = "npz"))]
fn encode_half(values: &[f32], out: &mut Vec<u8>, convert: impl Fn(f32) -> ([u8; 2], bool)) -> Option<f32> {
    for &value in values {
        let (bytes, finite) = convert(value);
        if value.is_finite() && !finite {
            return Some(value);
        }
        out.extend(bytes);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes_to_the_value_it_stands_for() {
        let cases: [(Dtype, &[u8], f32); 13] = [
            (Dtype::F32, &1.5f32.to_le_bytes(), 1.5),
            (Dtype::F16, &[0x00, 0xc1], -2.5),
            (Dtype::BF16, &[0x20, 0xc0], -2.5),
            (Dtype::F64, &0.1f64.to_le_bytes(), 0.1),
            (Dtype::I8, &[0xff], -1.0),
            (Dtype::U8, &[0xff], 255.0),
            (Dtype::I16, &[0xfe, 0xff], -2.0),
            (Dtype::U16, &[0xfe, 0xff], 65534.0),
            (Dtype::I32, &(-3i32).to_le_bytes(), -3.0),
            (Dtype::U32, &u32::MAX.to_le_bytes(), 4294967296.0),
            (Dtype::I64, &(1i64 << 40).to_le_bytes(), 1099511627776.0),
            (Dtype::U64, &7u64.to_le_bytes(), 7.0),
            (Dtype::Bool, &[2], 1.0),
        ];
        for (dtype, bytes, value) in cases {
            assert_eq!(bytes.len(), dtype.size(), "{dtype}");
            let mut out = [0.0; 2];
            dtype.decode(&[bytes, bytes].concat(), &mut out);
            assert_eq!(out, [value; 2], "{dtype}");
        }
    }

    #[test]
    #[cfg(any(feature = "safetensors", feature = "npz"))]
    fn a_value_beyond_half_precision_is_reported_not_made_infinite() {
        let mut out = Vec::new();
        assert_eq!(Dtype::F16.encode(&[1.0, 65504.0, f32::INFINITY, -70000.0], &mut out), Some(-70000.0));
        assert_eq!(Dtype::BF16.encode(&[70000.0, f32::NAN], &mut out), None);
        assert_eq!(Dtype::BF16.encode(&[f32::MAX], &mut out), Some(f32::MAX));
    }
}
