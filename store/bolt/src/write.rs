//! A whole file in one pass, from sorted pairs.

use crate::Error;
use crate::page::{
    BRANCH, BUCKET, ELEMENT, FREELIST, HEADER, Header, IS_BUCKET, LEAF, Meta, PAGE_SIZE,
};
use std::io::{Seek, SeekFrom, Write};

/// The list of free pages; there are none.
const FREELIST_PAGE: u64 = 2;
/// Pages are handed to the file in pieces of about this many bytes.
const PIECE: usize = 256 << 10;
/// The longest key and the longest value that bbolt takes, in bytes.
const KEY: usize = 32768;
const VALUE: usize = (1 << 31) - 2;
/// A bucket up to this size stands in its parent's page.
const INLINE: usize = PAGE_SIZE / 4;

/// Writes a bbolt file: buckets one after the other, then [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Pages that are not handed to `out` yet.
    buffer: Vec<u8>,
    /// The number of the next page.
    next: u64,
    /// Each bucket's name and what stands for it in the root.
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins a file at the beginning of `out`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(mut out: W) -> Result<Self, Error> {
        out.seek(SeekFrom::Start(0))?;
        // The metas come last, when the root is known: until then it is no bbolt file.
        let mut buffer = vec![0; 2 * PAGE_SIZE];
        Header { id: FREELIST_PAGE, flags: FREELIST, count: 0, overflow: 0 }.put(&mut buffer);
        buffer.resize(3 * PAGE_SIZE, 0);
        Ok(Self { out, buffer, next: FREELIST_PAGE + 1, buckets: Vec::new() })
    }

    /// Begins a bucket. Its pairs must come in the order of their keys.
    pub fn bucket(&mut self, name: &[u8]) -> BucketWriter<'_, W> {
        BucketWriter { tree: Tree::new(name), writer: self }
    }

    /// Completes the file and returns what it was written to, and its length in bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Order`] when two buckets have one name or one has none.
    pub fn finish(mut self) -> Result<(W, u64), Error> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let mut tree = Tree::new(b"of buckets");
        for (name, value) in &buckets {
            tree.put(&mut self, IS_BUCKET, name, value)?;
        }
        let root = tree.root(&mut self)?;
        self.flush()?;
        for id in 0..2 {
            let meta = Meta {
                page_size: PAGE_SIZE as u32,
                root,
                freelist: FREELIST_PAGE,
                pages: self.next,
                txid: id,
            };
            self.out.seek(SeekFrom::Start(id * PAGE_SIZE as u64))?;
            self.out.write_all(&meta.page(id))?;
        }
        self.out.flush()?;
        Ok((self.out, self.next * PAGE_SIZE as u64))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes a page with what follows it and returns its number.
    fn page(&mut self, flags: u16, node: &Node) -> Result<u64, Error> {
        let id = self.next;
        let from = self.buffer.len();
        let pages = node.size().div_ceil(PAGE_SIZE);
        let overflow = u32::try_from(pages - 1).unwrap_or(u32::MAX);
        node.put(Header { id, flags, count: node.count(), overflow }, &mut self.buffer);
        self.buffer.resize(from + pages * PAGE_SIZE, 0);
        self.next += pages as u64;
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(id)
    }
}

/// Writes the pairs of one bucket.
#[derive(Debug)]
pub struct BucketWriter<'a, W> {
    writer: &'a mut Writer<W>,
    tree: Tree,
}

impl<W: Write + Seek> BucketWriter<'_, W> {
    /// Adds the next pair.
    ///
    /// # Errors
    /// [`Error::Order`], [`Error::TooLong`], [`Error::Io`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.tree.put(self.writer, 0, key, value)
    }

    /// Completes the bucket.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        let Self { writer, tree } = self;
        let name = tree.name.clone();
        let mut value = Vec::with_capacity(BUCKET);
        if let Some(leaf) = tree.only_small_leaf() {
            value.resize(BUCKET, 0);
            leaf.put(Header { id: 0, flags: LEAF, count: leaf.count(), overflow: 0 }, &mut value);
        } else {
            value.extend(tree.root(writer)?.to_le_bytes());
            value.resize(BUCKET, 0);
        }
        writer.buckets.push((name, value));
        Ok(())
    }
}

/// The elements of a page that is being filled.
#[derive(Debug, Default)]
struct Node {
    /// Each element's first and last field or fields, and the length of its bytes.
    elements: Vec<Element>,
    /// The keys, each with its value.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Element {
    Leaf { flags: u32, key: u32, value: u32 },
    Branch { key: u32, page: u64 },
}

impl Element {
    fn length(self) -> usize {
        match self {
            Self::Leaf { key, value, .. } => key as usize + value as usize,
            Self::Branch { key, .. } => key as usize,
        }
    }
}

impl Node {
    fn size(&self) -> usize {
        HEADER + self.elements.len() * ELEMENT + self.bytes.len()
    }

    fn count(&self) -> u16 {
        // A page of small elements has far fewer, and one that overflows has few.
        self.elements.len() as u16
    }

    /// Whether an element with so many bytes would make it larger than a page.
    fn is_full_for(&self, bytes: usize) -> bool {
        self.size() + ELEMENT + bytes > PAGE_SIZE
    }

    fn first_key(&self) -> &[u8] {
        let length = match self.elements.first() {
            Some(Element::Leaf { key, .. } | Element::Branch { key, .. }) => *key as usize,
            None => 0,
        };
        &self.bytes[..length]
    }

    fn push(&mut self, element: Element, parts: [&[u8]; 2]) {
        self.elements.push(element);
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// Moves the last element to the front of `other`.
    fn give_last(&mut self, other: &mut Self) {
        let Some(element) = self.elements.pop() else { return };
        let bytes = self.bytes.split_off(self.bytes.len() - element.length());
        other.elements.insert(0, element);
        other.bytes.splice(..0, bytes);
    }

    fn put(&self, header: Header, out: &mut Vec<u8>) {
        header.put(out);
        // Where an element's bytes begin is counted from the element.
        let mut from = self.elements.len() * ELEMENT;
        for element in &self.elements {
            match *element {
                Element::Leaf { flags, key, value } => {
                    for number in [flags, from as u32, key, value] {
                        out.extend(number.to_le_bytes());
                    }
                }
                Element::Branch { key, page } => {
                    out.extend((from as u32).to_le_bytes());
                    out.extend(key.to_le_bytes());
                    out.extend(page.to_le_bytes());
                }
            }
            from = from + element.length() - ELEMENT;
        }
        out.extend_from_slice(&self.bytes);
    }
}

/// A level of branches. Two pages of it are kept back, because bbolt wants two elements at least in
/// each, also in the last.
#[derive(Debug, Default)]
struct Level {
    before: Option<Node>,
    current: Node,
}

/// The pages of a bucket that are not full yet.
#[derive(Debug)]
struct Tree {
    name: Vec<u8>,
    last: Vec<u8>,
    leaf: Node,
    /// From the one above the leaves to the root.
    levels: Vec<Level>,
}

impl Tree {
    fn new(name: &[u8]) -> Self {
        Self { name: name.to_vec(), last: Vec::new(), leaf: Node::default(), levels: Vec::new() }
    }

    fn title(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    fn put<W: Write + Seek>(
        &mut self,
        writer: &mut Writer<W>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), Error> {
        if key <= self.last.as_slice() {
            return Err(Error::Order(self.title()));
        }
        if key.len() > KEY || value.len() > VALUE {
            return Err(Error::TooLong(self.title()));
        }
        if !self.leaf.elements.is_empty() && self.leaf.is_full_for(key.len() + value.len()) {
            let leaf = std::mem::take(&mut self.leaf);
            self.add(writer, 0, LEAF, &leaf)?;
            // Its buffers are used again.
            self.leaf = leaf;
            self.leaf.elements.clear();
            self.leaf.bytes.clear();
        }
        let element = Element::Leaf { flags, key: key.len() as u32, value: value.len() as u32 };
        self.leaf.push(element, [key, value]);
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    /// Writes a page and adds it to the level of branches above it.
    fn add<W: Write + Seek>(
        &mut self,
        writer: &mut Writer<W>,
        level: usize,
        flags: u16,
        node: &Node,
    ) -> Result<(), Error> {
        let page = writer.page(flags, node)?;
        let key = node.first_key();
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let Level { before, current } = &mut self.levels[level];
        let mut done = None;
        if current.elements.len() >= 2 && current.is_full_for(key.len()) {
            done = before.replace(std::mem::take(current));
        }
        current.push(Element::Branch { key: key.len() as u32, page }, [key, &[]]);
        match done {
            Some(done) => self.add(writer, level + 1, BRANCH, &done),
            None => Ok(()),
        }
    }

    /// The only leaf, if it is small enough to stand in the parent's page.
    fn only_small_leaf(&self) -> Option<&Node> {
        (self.levels.is_empty() && BUCKET + self.leaf.size() <= INLINE).then_some(&self.leaf)
    }

    /// Writes what is left and returns the root's page.
    fn root<W: Write + Seek>(mut self, writer: &mut Writer<W>) -> Result<u64, Error> {
        let leaf = std::mem::take(&mut self.leaf);
        if self.levels.is_empty() {
            return writer.page(LEAF, &leaf);
        }
        self.add(writer, 0, LEAF, &leaf)?;
        let mut at = 0;
        loop {
            let Level { before, mut current } = std::mem::take(&mut self.levels[at]);
            let top = at + 1 == self.levels.len();
            let Some(mut before) = before else {
                if top {
                    return writer.page(BRANCH, &current);
                }
                self.add(writer, at + 1, BRANCH, &current)?;
                at += 1;
                continue;
            };
            if current.elements.len() < 2 {
                // Of pages with huge keys none may be left: then one page has all of them.
                let leave = if before.elements.len() > 2 { before.elements.len() - 1 } else { 0 };
                while before.elements.len() > leave {
                    before.give_last(&mut current);
                }
            }
            if !before.elements.is_empty() {
                self.add(writer, at + 1, BRANCH, &before)?;
            } else if top {
                return writer.page(BRANCH, &current);
            }
            self.add(writer, at + 1, BRANCH, &current)?;
            at += 1;
        }
    }
}
