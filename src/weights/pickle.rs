//! Python's pickle, read as data.
//!
//! A pickle is a program for a stack machine that can import and call anything. This machine has the same stack and no
//! way to call: values are nodes of a flat list that refer to each other by number, and the few callables that PyTorch
//! checkpoints need are recognised by name ([`Callable`]) and turned into nodes. Everything else is an error with the
//! name and the position. A flat list also means that sharing costs nothing (a value referred to a thousand times is
//! stored once), that cycles are harmless and that dropping a million nested tuples does not recurse.

use super::Limits;
use super::pickle_tree::{Callable, Node, Ref, Storage, TensorRef, Tree, text_of};
use super::state_dict::shown;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// Dimensions of a tensor at most.
const MAX_RANK: usize = 8;
/// Bytes of a storage key at most; PyTorch numbers them.
const MAX_KEY: usize = 200;

/// Reads the pickle that starts at the beginning of `bytes`; `file` stands for it in messages.
pub(super) fn read<'a>(bytes: &'a [u8], file: &str, limits: &Limits) -> Result<Tree<'a>> {
    let mut machine = Machine {
        bytes,
        file,
        at: 0,
        start: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let mut steps = 0usize;
    loop {
        if machine.at as u64 > limits.max_header {
            return Err(Error::limit(file, "size of the pickle in bytes", limits.max_header, machine.at as u64));
        }
        steps += 1;
        if steps > limits.max_objects {
            return Err(Error::limit(file, "number of pickle instructions", limits.max_objects as u64, steps as u64));
        }
        if let Some(root) = machine.step()? {
            return Ok(Tree { bytes, nodes: machine.nodes, root, end: machine.at });
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    file: &'a str,
    /// Next byte.
    at: usize,
    /// First byte of the instruction being carried out, for messages.
    start: usize,
    nodes: Vec<Node>,
    stack: Vec<Ref>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'a> Machine<'a> {
    /// Carries out one instruction; the root when the pickle ends.
    fn step(&mut self) -> Result<Option<Ref>> {
        self.start = self.at;
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => drop(self.array::<8>()?), // a frame is only a hint for buffering
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::Opaque),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(opcode)?,
            b'X' | b'T' | 0x8c | b'U' | 0x8d => self.text(opcode)?,
            b'C' | b'B' | 0x8e => self.byte_string(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode)?,
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.set_items(items)?;
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)?;
            }
            b'c' | 0x93 | b'i' => self.global(opcode)?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.persistent_id()?,
            _ => return Err(self.unknown(opcode)),
        }
        Ok(None)
    }

    fn fail(&self, problem: impl AsRef<str>) -> Error {
        Error::format(self.file, format!("pickle, byte {}: {}", self.start, problem.as_ref()))
    }

    fn unknown(&self, opcode: u8) -> Error {
        let what = match opcode {
            0x81 | 0x92 | b'o' => "makes an object of a class",
            0x82..=0x84 => "calls an extension",
            0x8f..=0x91 => "makes a set",
            _ => "is not one that PyTorch checkpoints use",
        };
        self.fail(format!("instruction {:?} {what}; refused", (opcode as char).escape_debug().to_string()))
    }

    // ---- bytes

    fn take(&mut self, count: u64) -> Result<Range<usize>> {
        let left = self.bytes.len() - self.at;
        if count > left as u64 {
            return Err(self.fail(format!("ends early: {count} bytes wanted, {left} left")));
        }
        let range = self.at..self.at + count as usize;
        self.at = range.end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        Ok(self.bytes[range].try_into().expect("as many bytes as were taken"))
    }

    /// The length that precedes a string: 1, 4 or 8 bytes.
    fn length(&mut self, width: u8) -> Result<u64> {
        Ok(match width {
            1 => u64::from(u8::from_le_bytes(self.array()?)),
            4 => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        })
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(1000).position(|&b| b == b'\n').ok_or_else(|| self.fail("a name has no end"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.fail("a name is not UTF-8"))
    }

    // ---- stack

    fn push(&mut self, node: Node) {
        // The number of nodes is bounded by the number of instructions, which `Limits` keeps in 32 bits in practice;
        // saturation would only make two nodes one.
        self.stack.push(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(node);
    }

    /// Lowest height that may be popped to: that of the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Ref> {
        if self.stack.len() <= self.floor() {
            return Err(self.fail("takes from an empty stack"));
        }
        Ok(self.stack.pop().expect("just checked"))
    }

    fn top(&self) -> Result<Ref> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| self.fail("looks at an empty stack"))
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Ref>> {
        if self.stack.len() - self.floor() < count {
            return Err(self.fail("takes from an empty stack"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self) -> Result<Vec<Ref>> {
        let height = self.marks.pop().ok_or_else(|| self.fail("takes up to a mark that is not there"))?;
        Ok(self.stack.split_off(height))
    }

    fn node(&self, at: Ref) -> &Node {
        &self.nodes[at as usize]
    }

    // ---- instructions

    fn protocol(&mut self) -> Result<()> {
        let [version] = self.array()?;
        if version > 5 { Err(self.fail(format!("protocol {version} is not known; the highest is 5"))) } else { Ok(()) }
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        let node = match opcode {
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Node::Int(i64::from(u8::from_le_bytes(self.array()?))),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'G' => {
                self.array::<8>()?;
                Node::Opaque
            }
            _ => {
                let count = self.length(if opcode == 0x8a { 1 } else { 4 })?;
                if count > 1024 {
                    return Err(self.fail(format!("an integer of {count} bytes")));
                }
                let range = self.take(count)?;
                let digits = &self.bytes[range];
                match digits.last() {
                    None => Node::Int(0),
                    Some(high) if digits.len() <= 8 => {
                        let fill = if high & 0x80 != 0 { 0xff } else { 0 };
                        let mut wide = [fill; 8];
                        wide[..digits.len()].copy_from_slice(digits);
                        Node::Int(i64::from_le_bytes(wide))
                    }
                    Some(_) => Node::Opaque,
                }
            }
        };
        self.push(node);
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let count = self.length(match opcode {
            0x8c | b'U' => 1,
            0x8d => 8,
            _ => 4,
        })?;
        let range = self.take(count)?;
        if std::str::from_utf8(&self.bytes[range.clone()]).is_err() {
            // Python 2 had one type for text and bytes: what is no text is bytes.
            if matches!(opcode, b'T' | b'U') {
                self.push(Node::Bytes);
                return Ok(());
            }
            return Err(self.fail("text that is not UTF-8"));
        }
        self.push(Node::Text(range));
        Ok(())
    }

    fn byte_string(&mut self, opcode: u8) -> Result<()> {
        let count = self.length(match opcode {
            b'C' => 1,
            b'B' => 4,
            _ => 8,
        })?;
        self.take(count)?;
        self.push(Node::Bytes);
        Ok(())
    }

    fn memory(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            0x94 => self.memo.len() as u32,
            b'q' | b'h' => u32::from(u8::from_le_bytes(self.array()?)),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(opcode, b'h' | b'j') {
            let known = self.memo.get(&index).copied();
            let value = known.ok_or_else(|| self.fail(format!("recalls {index}, which was never remembered")))?;
            self.stack.push(value);
        } else {
            let top = self.top()?;
            self.memo.insert(index, top);
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Ref>) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(list) => list.extend(items),
            _ => return Err(self.fail("appends to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Ref>) -> Result<()> {
        let top = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(self.fail("sets a key without a value"));
        }
        match &mut self.nodes[top as usize] {
            Node::Dict(entries) => entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err(self.fail("sets a key of what is not a dictionary")),
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let (module, name) = if opcode == 0x93 {
            let pair = self.pop_many(2)?;
            let text = |at| text_of(self.bytes, self.node(at));
            text(pair[0]).zip(text(pair[1])).ok_or_else(|| self.fail("names a global by what is not text"))?
        } else {
            (self.line()?, self.line()?)
        };
        match Callable::named(module, name) {
            Some(callable) if opcode != b'i' => self.push(Node::Callable(callable)),
            _ => {
                return Err(self.fail(format!(
                    "names `{}.{}`, which is not on the list of what a checkpoint of weights needs; nothing was \
                     executed. In Python save only the weights: torch.save(model.state_dict(), file)",
                    shown(module),
                    shown(name)
                )));
            }
        }
        Ok(())
    }

    /// Calls, that is: recognises, one of the known functions.
    fn reduce(&mut self) -> Result<()> {
        let pair = self.pop_many(2)?;
        let Node::Callable(callable) = *self.node(pair[0]) else {
            return Err(self.fail("calls what is not one of the known functions"));
        };
        let Node::Tuple(arguments) = self.node(pair[1]) else {
            return Err(self.fail("calls with what is not a tuple of arguments"));
        };
        let node = match callable {
            Callable::OrderedDict => self.ordered_dict(arguments)?,
            Callable::RebuildTensor => self.tensor(arguments, 4..=4)?,
            Callable::RebuildTensorV2 => self.tensor(arguments, 6..=7)?,
            Callable::RebuildParameter => {
                // A parameter is its tensor; the flag and the hooks beside it say nothing about the values.
                let tensor = arguments.first().copied().filter(|&t| matches!(self.node(t), Node::Tensor(_)));
                let tensor = tensor.ok_or_else(|| self.fail("a parameter of what is not a tensor"))?;
                self.stack.push(tensor);
                return Ok(());
            }
            Callable::Storage(_) => return Err(self.fail("makes a storage by calling its class; refused")),
        };
        self.push(node);
        Ok(())
    }

    /// `OrderedDict()`, or as Python 2 wrote it `OrderedDict([[key, value], ...])`.
    fn ordered_dict(&self, arguments: &[Ref]) -> Result<Node> {
        let wrong = || self.fail("an OrderedDict of what is not a list of pairs");
        let pairs = match arguments {
            [] => return Ok(Node::Dict(Vec::new())),
            [list] => match self.node(*list) {
                Node::List(pairs) => pairs,
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        let entries = pairs.iter().map(|&pair| match self.node(pair) {
            Node::List(items) | Node::Tuple(items) if items.len() == 2 => Ok((items[0], items[1])),
            _ => Err(wrong()),
        });
        Ok(Node::Dict(entries.collect::<Result<_>>()?))
    }

    /// `(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
    fn tensor(&self, arguments: &[Ref], count: std::ops::RangeInclusive<usize>) -> Result<Node> {
        if !count.contains(&arguments.len()) {
            return Err(self.fail(format!("a tensor of {} arguments, not {count:?}", arguments.len())));
        }
        let storage = arguments[0];
        if !matches!(self.node(storage), Node::Storage(_)) {
            return Err(self.fail("a tensor in what is not a storage"));
        }
        let shape = self.extents(arguments[2], "size")?;
        let strides = self.extents(arguments[3], "stride")?;
        if shape.len() != strides.len() {
            return Err(self.fail(format!("a tensor with {} extents but {} strides", shape.len(), strides.len())));
        }
        let shape = shape.into_iter().map(|n| usize::try_from(n).map_err(|_| self.fail("an extent too large")));
        Ok(Node::Tensor(Box::new(TensorRef {
            storage,
            offset: self.count(arguments[1], "offset")?,
            shape: shape.collect::<Result<_>>()?,
            strides,
        })))
    }

    fn extents(&self, at: Ref, what: &str) -> Result<Vec<u64>> {
        let Node::Tuple(items) = self.node(at) else {
            return Err(self.fail(format!("the {what} of a tensor is not a tuple")));
        };
        if items.len() > MAX_RANK {
            return Err(self.fail(format!("a tensor with {} dimensions", items.len())));
        }
        items.iter().map(|&item| self.count(item, what)).collect()
    }

    fn count(&self, at: Ref, what: &str) -> Result<u64> {
        match self.node(at) {
            Node::Int(n) => u64::try_from(*n).map_err(|_| self.fail(format!("a negative {what}: {n}"))),
            _ => Err(self.fail(format!("the {what} is not an integer"))),
        }
    }

    /// Sets attributes: of an OrderedDict only (`_metadata`, which says nothing about the values).
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.node(self.top()?) {
            Node::Dict(_) => Ok(()),
            _ => Err(self.fail("sets attributes of what is not a dictionary; refused")),
        }
    }

    /// `('storage', type, key, location, elements[, view])`, the view being `None` or `(key, first, elements)`.
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Node::Tuple(parts) = self.node(id) else { return Err(self.fail("a persistent id that is not a tuple")) };
        let text = |at| text_of(self.bytes, self.node(at));
        let (&[tag, class, key, _, len], view) = match parts.as_slice() {
            [head @ .., view] if head.len() == 5 => (head.try_into().expect("five"), Some(*view)),
            head => (head.try_into().map_err(|_| self.fail("a persistent id of the wrong length"))?, None),
        };
        if text(tag) != Some("storage") {
            return Err(self.fail("a persistent id that is not a storage"));
        }
        let Node::Callable(Callable::Storage(dtype)) = *self.node(class) else {
            return Err(self.fail("a storage of an unknown class"));
        };
        let key = text(key).filter(|key| key.len() <= MAX_KEY);
        let key = key.ok_or_else(|| self.fail("a storage whose key is not a short text"))?.to_owned();
        let len = self.count(len, "number of elements")?;
        let view = match view.map(|v| self.node(v)) {
            None | Some(Node::Opaque) => (0, len),
            Some(Node::Tuple(parts)) if parts.len() == 3 => {
                (self.count(parts[1], "view offset")?, self.count(parts[2], "view size")?)
            }
            Some(_) => return Err(self.fail("a storage view that is neither None nor a triple")),
        };
        if view.0.checked_add(view.1).is_none_or(|end| end > len) {
            return Err(self.fail(format!("a view of {} elements from {} in a storage of {len}", view.1, view.0)));
        }
        self.push(Node::Storage(Box::new(Storage { key, dtype, len, view })));
        Ok(())
    }
}
