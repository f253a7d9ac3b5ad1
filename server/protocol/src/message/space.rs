//! Messages about the space that keys take.

use varve_types::{DecodeError, Reader, flags, put_bytes, put_count};

/// Asks how many keys and bytes lie under a prefix, by path component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceRequest<'a> {
    /// What the keys begin with.
    pub prefix: &'a [u8],
    /// What ends a path component.
    pub separator: &'a [u8],
    /// How many components deep.
    pub depth: u32,
    /// Most lines in the answer; 0 leaves it to the node, which has a bound of its own.
    pub limit: u32,
    /// The line to go on behind: its name, and whether it is a directory.
    pub after: Option<(&'a [u8], bool)>,
}

impl<'a> SpaceRequest<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (name, is_directory) = self.after.unwrap_or_default();
        out.push(flags([self.after.is_some(), is_directory]));
        out.extend_from_slice(&self.depth.to_le_bytes());
        out.extend_from_slice(&self.limit.to_le_bytes());
        put_bytes(out, self.prefix);
        put_bytes(out, self.separator);
        put_bytes(out, name);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let bits = reader.u8("space flags")?;
        let depth = reader.u32("depth")?;
        let limit = reader.u32("limit")?;
        let prefix = reader.bytes("prefix")?;
        let separator = reader.bytes("separator")?;
        let name = reader.bytes("after")?;
        Ok(Self {
            prefix,
            separator,
            depth,
            limit,
            after: (bits & 1 != 0).then_some((name, bits & 2 != 0)),
        })
    }
}

/// What one directory or key takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpaceLine {
    /// The key, or the directory with the separator that ends it.
    pub name: Vec<u8>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of these keys and their records.
    pub bytes: u64,
}

impl SpaceLine {
    const LEAST_SIZE: usize = 1 + 8 + 8 + 4;
}

/// Space by path component, each directory before what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpaceResponse {
    /// In the order of their names.
    pub lines: Vec<SpaceLine>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

impl SpaceResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.more]));
        put_count(out, self.lines.len());
        for line in &self.lines {
            out.push(flags([line.is_directory]));
            out.extend_from_slice(&line.keys.to_le_bytes());
            out.extend_from_slice(&line.bytes.to_le_bytes());
            put_bytes(out, &line.name);
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let more = reader.u8("space flags")? & 1 != 0;
        let count = reader.count(SpaceLine::LEAST_SIZE, "lines")?;
        let lines = (0..count).map(|_| {
            Ok(SpaceLine {
                is_directory: reader.u8("line flags")? & 1 != 0,
                keys: reader.u64("keys")?,
                bytes: reader.u64("bytes")?,
                name: reader.bytes("name")?.to_vec(),
            })
        });
        let lines = lines.collect::<Result<_, DecodeError>>()?;
        Ok(Self { lines, more })
    }
}
