//! The values of a pickle: a flat list of nodes that refer to each other by number, and the few names they may contain.

use super::Dtype;
use std::ops::Range;
/// Number of a node.
pub(super) type Ref = u32;

/// A value of the pickle.
#[derive(Debug)]
pub(super) enum Node {
    /// `None`, and numbers that nothing here reads (floats, integers beyond 64 bits).
    Opaque,
    Bool(bool),
    Int(i64),
    /// Text, as its place in the bytes of the pickle.
    Text(Range<usize>),
    Bytes,
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    /// `dict` and `OrderedDict`, keys as they come, repeated ones included.
    Dict(Vec<(Ref, Ref)>),
    Callable(Callable),
    Storage(Box<Storage>),
    Tensor(Box<TensorRef>),
}

/// What may be named in a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Storage(Dtype),
}

impl Callable {
    pub(super) fn named(module: &str, name: &str) -> Option<Callable> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Callable::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Callable::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Callable::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Callable::RebuildParameter,
            ("torch", "FloatStorage") => Callable::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Callable::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Callable::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Callable::Storage(Dtype::F64),
            ("torch", "CharStorage") => Callable::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Callable::Storage(Dtype::U8),
            ("torch", "ShortStorage") => Callable::Storage(Dtype::I16),
            ("torch", "IntStorage") => Callable::Storage(Dtype::I32),
            ("torch", "LongStorage") => Callable::Storage(Dtype::I64),
            ("torch", "BoolStorage") => Callable::Storage(Dtype::Bool),
            _ => return None,
        })
    }
}

/// Memory that tensors lie in, named by a persistent id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    /// Elements of the whole storage.
    pub(super) len: u64,
    /// The part of it that this reference may see: first element and number of elements.
    pub(super) view: (u64, u64),
}

/// A tensor within a storage.
#[derive(Debug)]
pub(super) struct TensorRef {
    /// The node of its storage: by number, so that many tensors in one storage stay small.
    pub(super) storage: Ref,
    /// First element, counted from the start of the storage's view.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<u64>,
}

/// A pickle that has been read: its nodes and which of them it means.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) nodes: Vec<Node>,
    pub(super) root: Ref,
    /// Position after the pickle's last instruction.
    pub(super) end: usize,
}

impl<'a> Tree<'a> {
    pub(super) fn node(&self, at: Ref) -> &Node {
        &self.nodes[at as usize]
    }

    /// All nodes, in the order of their making.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text of a node, if it is one.
    pub(super) fn text(&self, at: Ref) -> Option<&'a str> {
        text_of(self.bytes, self.node(at))
    }
}

/// The text of a node of the pickle in `bytes`, if it is one.
pub(super) fn text_of<'a>(bytes: &'a [u8], node: &Node) -> Option<&'a str> {
    match node {
        Node::Text(range) => std::str::from_utf8(&bytes[range.clone()]).ok(),
        _ => None,
    }
}
