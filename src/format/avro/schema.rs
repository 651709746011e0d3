//! Schemas as a graph of nodes: a named type that occurs again is the same node.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::logical::TimeUnit;

/// Index of a node in its schema.
pub(super) type NodeId = usize;

/// A type of a schema.
#[derive(Debug)]
pub(super) enum AvroNode {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed {
        name: Arc<str>,
        size: usize,
    },
    Enum {
        name: Arc<str>,
        symbols: Vec<String>,
    },
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record(AvroRecord),
    /// Days since 1970.
    Date,
    /// Time of a day: an `int` of milliseconds or a `long`.
    TimeOfDay(TimeUnit),
    /// Time since 1970; `true` if it is local, of an unknown time zone.
    Timestamp(TimeUnit, bool),
    /// An integer of bytes, big-endian, times a power of ten; in a fixed type if it has a size.
    Decimal {
        name: Option<Arc<str>>,
        size: Option<usize>,
        precision: u64,
        scale: u32,
    },
    /// A UUID of 16 bytes. One in a text is a text.
    Uuid(Arc<str>),
}

/// A record type.
#[derive(Debug)]
pub(super) struct AvroRecord {
    pub(super) name: Arc<str>,
    pub(super) fields: Vec<AvroField>,
}

/// A field of a record type.
#[derive(Debug)]
pub(super) struct AvroField {
    pub(super) name: String,
    pub(super) node: NodeId,
    /// Value for writers whose rows lack the field.
    pub(super) default: Option<Value>,
}

impl AvroNode {
    /// Returns the name by which a union tells the type from others: its full name, or its kind.
    pub(super) fn branch_name(&self) -> &str {
        match self {
            AvroNode::Null => "null",
            AvroNode::Boolean => "boolean",
            AvroNode::Int | AvroNode::Date | AvroNode::TimeOfDay(TimeUnit::Millis) => "int",
            AvroNode::Long | AvroNode::TimeOfDay(_) | AvroNode::Timestamp(..) => "long",
            AvroNode::Float => "float",
            AvroNode::Double => "double",
            AvroNode::Bytes | AvroNode::Decimal { name: None, .. } => "bytes",
            AvroNode::String => "string",
            AvroNode::Array(_) => "array",
            AvroNode::Map(_) => "map",
            AvroNode::Union(_) => "union",
            AvroNode::Fixed { name, .. }
            | AvroNode::Enum { name, .. }
            | AvroNode::Uuid(name)
            | AvroNode::Decimal { name: Some(name), .. } => name,
            AvroNode::Record(record) => &record.name,
        }
    }
}

/// An Avro schema.
pub struct AvroSchema {
    pub(super) nodes: Vec<AvroNode>,
    pub(super) root: NodeId,
    pub(super) text: String,
}

impl AvroSchema {
    /// Returns the full name of the schema's type, or its kind, such as `string`.
    pub fn name(&self) -> &str {
        self.nodes[self.root].branch_name()
    }

    /// Returns the schema's text, as it was parsed.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for AvroSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AvroSchema").field(&self.text).finish()
    }
}
