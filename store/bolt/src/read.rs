//! Walks over a file that anybody wrote: every number in it is checked before it is used.

use crate::Error;
use crate::page::{
    BRANCH, BUCKET, ELEMENT, FREELIST, HEADER, Header, IS_BUCKET, LEAF, META, Meta, NO_FREELIST,
    u32_at, u64_at,
};
use std::io::{Read, Seek, SeekFrom};

/// No tree of this format is deeper: a branch has two elements at least.
const DEPTH: usize = 64;

/// An opened file.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    meta: Meta,
}

/// Where a bucket's pairs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket(Root);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    Page(u64),
    /// A leaf that stands in the parent's page.
    Inline(Vec<u8>),
}

/// What [`Reader::check`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Pages that hold something.
    pub used: u64,
    /// Pages in the list of free ones.
    pub free: u64,
    /// Buckets.
    pub buckets: u64,
    /// Pairs of all buckets.
    pub pairs: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens a file: finds the newest meta page that is whole. What follows the pages, as the
    /// checksum of a snapshot does, is left alone.
    ///
    /// # Errors
    /// [`Error::NotBolt`], [`Error::Short`], [`Error::Io`].
    pub fn open(mut source: R) -> Result<Self, Error> {
        let size = source.seek(SeekFrom::End(0))?;
        let mut read_meta = |at: u64| -> Result<Meta, Error> {
            let mut page = [0; HEADER + 64];
            if at.saturating_add(page.len() as u64) > size {
                return Err(Error::NotBolt("it is too short for its meta pages"));
            }
            source.seek(SeekFrom::Start(at))?;
            source.read_exact(&mut page)?;
            Meta::read(&page)
        };
        let first = read_meta(0);
        let second = match &first {
            Ok(meta) => read_meta(u64::from(meta.page_size)),
            // The second page is at the pages' size, which only a meta tells: so look for it.
            Err(_) => (10..=24)
                .map(|shift| 1 << shift)
                .find_map(|at| {
                    read_meta(at).ok().filter(|meta| u64::from(meta.page_size) == at).map(Ok)
                })
                .unwrap_or(Err(Error::NotBolt(""))),
        };
        let meta = match (first, second) {
            (Ok(a), Ok(b)) if b.txid > a.txid => b,
            (Ok(a), _) => a,
            (Err(_), Ok(b)) => b,
            (Err(error), Err(_)) => return Err(error),
        };
        let needed = meta.pages.saturating_mul(u64::from(meta.page_size));
        if needed > size {
            return Err(Error::Short { size, needed });
        }
        if meta.root < 2 || meta.root >= meta.pages {
            return Err(Error::NotBolt("its root lies outside of it"));
        }
        Ok(Self { source, meta })
    }

    /// The length of the file without what follows its pages, in bytes.
    pub fn size(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_size)
    }

    /// What the file is read from.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The bucket of buckets.
    pub fn root(&self) -> Bucket {
        Bucket(Root::Page(self.meta.root))
    }

    /// The bucket of this name in the root, if there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<Option<Bucket>, Error> {
        Ok(self.buckets()?.into_iter().find(|(have, _)| have == name).map(|(_, bucket)| bucket))
    }

    /// The names of the buckets in the root, in order, and where they are.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn buckets(&mut self) -> Result<Vec<(Vec<u8>, Bucket)>, Error> {
        let root = self.root();
        let mut found = Vec::new();
        let mut walk = self.walk(&root)?;
        while let Some(pair) = walk.next()? {
            if let Some(bucket) = pair.bucket {
                found.push((pair.key.to_vec(), bucket));
            }
        }
        Ok(found)
    }

    /// Begins a walk over a bucket's pairs in the order of their keys.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn walk(&mut self, bucket: &Bucket) -> Result<Walk<'_, R>, Error> {
        let mut walk =
            Walk { reader: self, stack: Vec::new(), last: Vec::new(), visited: 0, pages: None };
        match &bucket.0 {
            Root::Page(page) => walk.enter(*page)?,
            Root::Inline(leaf) => walk.stack.push(Frame::of(0, leaf.clone())?),
        }
        Ok(walk)
    }

    /// Reads the whole file and checks that each page is used once or free.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the first contradiction, [`Error::Io`].
    pub fn check(&mut self) -> Result<Counts, Error> {
        let count = usize::try_from(self.meta.pages).map_err(|_| Error::NotBolt("its length"))?;
        let mut seen = Seen(vec![0; count.div_ceil(64)]);
        let mut counts = Counts { used: 2, ..Counts::default() };
        seen.take(0, 1)?;
        seen.take(1, 1)?;
        let mut kept = true;
        if self.meta.freelist == NO_FREELIST {
            kept = false;
        } else {
            counts.used += self.freelist(&mut seen, &mut counts.free)?;
        }
        let mut open = vec![self.root()];
        while let Some(bucket) = open.pop() {
            counts.buckets += 1;
            let mut walk = self.walk_counting(&bucket)?;
            while let Some(pair) = walk.next()? {
                match pair.bucket {
                    Some(bucket) => open.push(bucket),
                    None => counts.pairs += 1,
                }
            }
            for (page, length) in walk.pages.take().unwrap_or_default() {
                seen.take(page, length)?;
                counts.used += length;
            }
        }
        counts.buckets -= 1;
        if kept && counts.used + counts.free != self.meta.pages {
            return Err(Error::Damaged { page: 0, what: "there are pages that nothing refers to" });
        }
        Ok(counts)
    }

    fn walk_counting(&mut self, bucket: &Bucket) -> Result<Walk<'_, R>, Error> {
        let mut walk = Walk {
            reader: self,
            stack: Vec::new(),
            last: Vec::new(),
            visited: 0,
            pages: Some(Vec::new()),
        };
        match &bucket.0 {
            Root::Page(page) => walk.enter(*page)?,
            Root::Inline(leaf) => walk.stack.push(Frame::of(0, leaf.clone())?),
        }
        Ok(walk)
    }

    /// Takes the list of free pages and what it lists. Returns how many pages it takes.
    fn freelist(&mut self, seen: &mut Seen, free: &mut u64) -> Result<u64, Error> {
        let page = self.meta.freelist;
        let damaged = |what| Error::Damaged { page, what };
        let (header, bytes) = self.page(page)?;
        if header.flags != FREELIST {
            return Err(damaged("it is not the list of free pages"));
        }
        let length = u64::from(header.overflow) + 1;
        seen.take(page, length)?;
        // Where the count does not fit the header, it is the first number.
        let (count, from) = match header.count {
            u16::MAX => (u64_at(&bytes, HEADER).unwrap_or(u64::MAX), HEADER + 8),
            count => (u64::from(count), HEADER),
        };
        let listed = bytes.get(from..).unwrap_or_default();
        if count > (listed.len() / 8) as u64 {
            return Err(damaged("the list of free pages is longer than its page"));
        }
        for at in 0..count as usize {
            seen.take(u64_at(listed, at * 8).unwrap_or_default(), 1)?;
        }
        *free = count;
        Ok(length)
    }

    /// The header and the bytes of a page with what follows it.
    fn page(&mut self, id: u64) -> Result<(Header, Vec<u8>), Error> {
        let damaged = |what| Error::Damaged { page: id, what };
        if id < 2 || id >= self.meta.pages {
            return Err(damaged("it lies outside of the file"));
        }
        let size = u64::from(self.meta.page_size);
        let mut bytes = vec![0; self.meta.page_size as usize];
        self.source.seek(SeekFrom::Start(id * size))?;
        self.source.read_exact(&mut bytes)?;
        let header = Header::read(&bytes).ok_or(damaged("it has no header"))?;
        if header.id != id {
            return Err(damaged("it says that it is another page"));
        }
        if header.flags & (BRANCH | LEAF | META | FREELIST) != header.flags {
            return Err(damaged("it is of no known kind"));
        }
        let pages = u64::from(header.overflow) + 1;
        if pages > self.meta.pages - id {
            return Err(damaged("it reaches beyond the file"));
        }
        if pages > 1 {
            let whole = usize::try_from(pages * size).map_err(|_| damaged("it is too long"))?;
            bytes.resize(whole, 0);
            self.source.read_exact(&mut bytes[size as usize..])?;
        }
        Ok((header, bytes))
    }
}

/// Which pages have a use already.
struct Seen(Vec<u64>);

impl Seen {
    fn take(&mut self, page: u64, length: u64) -> Result<(), Error> {
        for page in page..page.saturating_add(length) {
            let word = usize::try_from(page / 64).ok().and_then(|at| self.0.get_mut(at));
            let what = match word {
                Some(word) if *word >> (page % 64) & 1 == 0 => {
                    *word |= 1 << (page % 64);
                    continue;
                }
                Some(_) => "it has two uses",
                None => "it lies outside of the file",
            };
            return Err(Error::Damaged { page, what });
        }
        Ok(())
    }
}

/// A page on the way from the root to where the walk is.
#[derive(Debug)]
struct Frame {
    id: u64,
    bytes: Vec<u8>,
    leaf: bool,
    count: usize,
    next: usize,
}

impl Frame {
    fn of(id: u64, bytes: Vec<u8>) -> Result<Self, Error> {
        let damaged = |what| Error::Damaged { page: id, what };
        let header = Header::read(&bytes).ok_or(damaged("it has no header"))?;
        let count = usize::from(header.count);
        if bytes.len() < HEADER + count * ELEMENT {
            return Err(damaged("it has more elements than bytes"));
        }
        let leaf = match header.flags {
            LEAF => true,
            BRANCH if count > 0 => false,
            BRANCH => return Err(damaged("it is a branch without elements")),
            _ => return Err(damaged("it is neither a branch nor a leaf")),
        };
        let frame = Self { id, bytes, leaf, count, next: 0 };
        // Elements do not share bytes: else a small page could be made to hold a lot.
        let lengths = (0..count).map(|at| match leaf {
            true => frame.field(at, 8).saturating_add(frame.field(at, 12)),
            false => frame.field(at, 4),
        });
        if lengths.fold(0, usize::saturating_add) > frame.bytes.len() {
            return Err(damaged("its elements are longer than it"));
        }
        Ok(frame)
    }

    /// A number of an element.
    fn field(&self, element: usize, at: usize) -> usize {
        u32_at(&self.bytes, HEADER + element * ELEMENT + at).unwrap_or_default() as usize
    }

    /// Where `length` bytes at `from` bytes behind the element's beginning are.
    fn part(
        &self,
        element: usize,
        from: usize,
        length: usize,
    ) -> Result<std::ops::Range<usize>, Error> {
        let start = (HEADER + element * ELEMENT).checked_add(from);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.bytes.len() => Ok(start..end),
            _ => Err(Error::Damaged { page: self.id, what: "an element reaches beyond its page" }),
        }
    }
}

/// A pair.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value; empty for a bucket.
    pub value: &'a [u8],
    /// The bucket, where a bucket stands in place of a value.
    pub bucket: Option<Bucket>,
}

/// A walk over a bucket.
#[derive(Debug)]
pub struct Walk<'a, R> {
    reader: &'a mut Reader<R>,
    stack: Vec<Frame>,
    last: Vec<u8>,
    visited: u64,
    /// The pages that were visited and how long each is, when asked for.
    pages: Option<Vec<(u64, u64)>>,
}

impl<R: Read + Seek> Walk<'_, R> {
    /// The next pair; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    #[allow(clippy::should_implement_trait, reason = "a pair borrows from the walk")]
    pub fn next(&mut self) -> Result<Option<Pair<'_>>, Error> {
        loop {
            let Some(frame) = self.stack.last_mut() else { return Ok(None) };
            let at = frame.next;
            if at == frame.count {
                self.stack.pop();
                continue;
            }
            frame.next += 1;
            if frame.leaf {
                break;
            }
            let key = frame.part(at, frame.field(at, 0), frame.field(at, 4))?;
            // The first key of what is below must not lie before it.
            if at > 0 && frame.bytes[key.clone()] <= self.last[..] {
                return Err(Error::Damaged { page: frame.id, what: "its keys are not in order" });
            }
            let child = u64_at(&frame.bytes, HEADER + at * ELEMENT + 8).unwrap_or_default();
            self.enter(child)?;
        }
        let Self { stack, last, .. } = self;
        let Some(frame) = stack.last() else { return Ok(None) };
        let damaged = |what| Error::Damaged { page: frame.id, what };
        let at = frame.next - 1;
        let (from, key, value) = (frame.field(at, 4), frame.field(at, 8), frame.field(at, 12));
        let key = frame.part(at, from, key)?;
        let value = frame.part(at, from + key.len(), value)?;
        let (key, value) = (&frame.bytes[key], &frame.bytes[value]);
        if key <= last.as_slice() {
            return Err(damaged("its keys are not in order"));
        }
        last.clear();
        last.extend_from_slice(key);
        if frame.field(at, 0) as u32 & IS_BUCKET == 0 {
            return Ok(Some(Pair { key, value, bucket: None }));
        }
        let root = match u64_at(value, 0) {
            _ if frame.id == 0 => return Err(damaged("a bucket stands in a bucket without pages")),
            Some(0) => Root::Inline(value.get(BUCKET..).unwrap_or_default().to_vec()),
            Some(page) if value.len() >= BUCKET => Root::Page(page),
            _ => return Err(damaged("a bucket in it is cut short")),
        };
        Ok(Some(Pair { key, value: &[], bucket: Some(Bucket(root)) }))
    }

    fn enter(&mut self, page: u64) -> Result<(), Error> {
        self.visited += 1;
        if self.visited > self.reader.meta.pages || self.stack.len() >= DEPTH {
            return Err(Error::Damaged { page, what: "the pages refer to each other in a circle" });
        }
        let (header, bytes) = self.reader.page(page)?;
        if let Some(pages) = &mut self.pages {
            pages.push((page, u64::from(header.overflow) + 1));
        }
        self.stack.push(Frame::of(page, bytes)?);
        Ok(())
    }
}
