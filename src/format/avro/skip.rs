//! Skips values that nobody asks for, and reads what tells a value's length or type.

use super::read::{AvroRefusal, DatumBytes, refused};
use super::schema::{AvroNode, AvroSchema, NodeId};

/// Reads which type of a union is there.
pub(super) fn branch<'s>(
    schema: &'s AvroSchema,
    branches: &[NodeId],
    bytes: &mut DatumBytes<'_>,
) -> Result<&'s AvroNode, AvroRefusal> {
    let index = bytes.long()?;
    match usize::try_from(index).ok().and_then(|index| branches.get(index)) {
        Some(branch) => Ok(&schema.nodes[*branch]),
        None => refused(format!("type {index} of a union of {}: it does not fit the schema", branches.len())),
    }
}

/// Reads the bytes of a decimal.
pub(super) fn decimal<'de>(size: Option<usize>, bytes: &mut DatumBytes<'de>) -> Result<&'de [u8], AvroRefusal> {
    match size {
        Some(size) => bytes.exactly(size),
        None => bytes.bytes(),
    }
}

/// Reads a symbol of an enum.
pub(super) fn symbol<'s>(symbols: &'s [String], bytes: &mut DatumBytes<'_>) -> Result<&'s str, AvroRefusal> {
    let index = bytes.int()?;
    match usize::try_from(index).ok().and_then(|index| symbols.get(index)) {
        Some(symbol) => Ok(symbol),
        None => refused(format!("symbol {index} of {}", symbols.len())),
    }
}

/// Skips a value.
pub(super) fn skip(schema: &AvroSchema, node: &AvroNode, bytes: &mut DatumBytes<'_>) -> Result<(), AvroRefusal> {
    match node {
        AvroNode::Null => bytes.count(),
        AvroNode::Boolean => bytes.boolean().map(drop),
        AvroNode::Int | AvroNode::Date => bytes.int().map(drop),
        AvroNode::Long | AvroNode::TimeOfDay(_) | AvroNode::Timestamp(..) => bytes.long().map(drop),
        AvroNode::Float => bytes.exactly(4).map(drop),
        AvroNode::Double => bytes.exactly(8).map(drop),
        AvroNode::Bytes => bytes.bytes().map(drop),
        AvroNode::String => bytes.text().map(drop),
        AvroNode::Fixed { size, .. } => bytes.exactly(*size).map(drop),
        AvroNode::Uuid(_) => bytes.exactly(16).map(drop),
        AvroNode::Decimal { size, .. } => decimal(*size, bytes).map(drop),
        AvroNode::Enum { symbols, .. } => symbol(symbols, bytes).map(drop),
        AvroNode::Union(branches) => {
            let node = branch(schema, branches, bytes)?;
            skip(schema, node, bytes)
        }
        AvroNode::Record(record) => {
            bytes.enter()?;
            record.fields.iter().try_for_each(|field| skip(schema, &schema.nodes[field.node], bytes))?;
            bytes.leave();
            Ok(())
        }
        AvroNode::Array(item) => skip_blocks(schema, *item, false, bytes),
        AvroNode::Map(value) => skip_blocks(schema, *value, true, bytes),
    }
}

fn skip_blocks(schema: &AvroSchema, item: NodeId, is_map: bool, bytes: &mut DatumBytes<'_>) -> Result<(), AvroRefusal> {
    bytes.enter()?;
    loop {
        match bytes.block()? {
            (0, _) => break,
            (_, Some(length)) => drop(bytes.exactly(length)?),
            (count, None) => {
                for _ in 0..count {
                    bytes.count()?;
                    if is_map {
                        bytes.text()?;
                    }
                    skip(schema, &schema.nodes[item], bytes)?;
                }
            }
        }
    }
    bytes.leave();
    Ok(())
}
