//! Order of what is written of values with parts: blocks of items, and the fields of records.
//!
//! The parts themselves are written by functions that are passed in.

use super::default::put_missing;
use super::read::{AvroRefusal, refused};
use super::schema::{AvroNode, AvroRecord, AvroSchema, NodeId};
use super::values::put_long;

/// Outcome of writing.
type Written = Result<(), AvroRefusal>;

/// Writes the items of an array, or the entries of a map, as one block.
pub(super) struct BlockWriter<'s, 'o> {
    item: &'s AvroNode,
    out: &'o mut Vec<u8>,
    /// Number of items, if it was known before.
    announced: Option<usize>,
    count: usize,
    /// Place of the block in `out`.
    start: usize,
}

impl<'s, 'o> BlockWriter<'s, 'o> {
    pub(super) fn new(schema: &'s AvroSchema, item: NodeId, announced: Option<usize>, out: &'o mut Vec<u8>) -> Self {
        if let Some(count) = announced.filter(|count| *count > 0) {
            put_long(count as i64, out);
        }
        let start = out.len();
        BlockWriter { item: &schema.nodes[item], out, announced, count: 0, start }
    }

    /// Writes an item, or the value of an entry.
    pub(super) fn item(&mut self, write: impl FnOnce(&'s AvroNode, &mut Vec<u8>) -> Written) -> Written {
        self.count += 1;
        write(self.item, self.out)
    }

    /// Writes the key of an entry.
    pub(super) fn key(&mut self, write: impl FnOnce(&'s AvroNode, &mut Vec<u8>) -> Written) -> Written {
        write(&AvroNode::String, self.out)
    }

    pub(super) fn end(self) -> Written {
        match self.announced {
            Some(announced) if announced != self.count => {
                return refused(format!("{} items, and {announced} were announced", self.count));
            }
            None if self.count > 0 => {
                let mut count = Vec::new();
                put_long(self.count as i64, &mut count);
                self.out.splice(self.start..self.start, count);
            }
            _ => {}
        }
        self.out.push(0);
        Ok(())
    }
}

/// Writes the fields of a record in the schema's order, whatever the order in which they come.
pub(super) struct RecordWriter<'s, 'o> {
    schema: &'s AvroSchema,
    pub(super) record: &'s AvroRecord,
    out: &'o mut Vec<u8>,
    pub(super) next: usize,
    /// Fields that have come too early.
    early: Vec<Option<Vec<u8>>>,
}

impl<'s, 'o> RecordWriter<'s, 'o> {
    pub(super) fn new(schema: &'s AvroSchema, record: &'s AvroRecord, out: &'o mut Vec<u8>) -> Self {
        RecordWriter { schema, record, out, next: 0, early: Vec::new() }
    }

    /// Returns the place of a field.
    pub(super) fn place(&self, name: &str) -> Result<usize, AvroRefusal> {
        let fields = &self.record.fields;
        let is_next = fields.get(self.next).is_some_and(|field| field.name == name);
        let at = if is_next { Some(self.next) } else { fields.iter().position(|field| field.name == name) };
        at.ok_or_else(|| AvroRefusal(format!("the record `{}` has no field `{name}`", self.record.name)))
    }

    /// Writes the field at a place.
    pub(super) fn field(&mut self, at: usize, write: impl FnOnce(&'s AvroNode, &mut Vec<u8>) -> Written) -> Written {
        let field = &self.record.fields[at];
        if at < self.next || self.early.get(at).is_some_and(Option::is_some) {
            return refused(format!("the field `{}` comes twice", field.name));
        }
        let node = &self.schema.nodes[field.node];
        let of_field = |AvroRefusal(why): AvroRefusal| AvroRefusal(format!("field `{}`: {why}", field.name));
        if at > self.next {
            let mut bytes = Vec::new();
            write(node, &mut bytes).map_err(of_field)?;
            self.early.resize(self.record.fields.len(), None);
            self.early[at] = Some(bytes);
            return Ok(());
        }
        write(node, self.out).map_err(of_field)?;
        self.next += 1;
        while let Some(bytes) = self.early.get_mut(self.next).and_then(Option::take) {
            self.out.extend_from_slice(&bytes);
            self.next += 1;
        }
        Ok(())
    }

    /// Writes the fields that have not come.
    pub(super) fn end(mut self) -> Written {
        for at in self.next..self.record.fields.len() {
            match self.early.get_mut(at).and_then(Option::take) {
                Some(bytes) => self.out.extend_from_slice(&bytes),
                None => put_missing(self.schema, &self.record.fields[at], self.out)?,
            }
        }
        Ok(())
    }
}
