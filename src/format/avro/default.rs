//! Default values of fields, which are JSON in a schema, as Avro data.

use serde_json::Value;

use super::read::{AvroRefusal, refused};
use super::schema::{AvroField, AvroNode, AvroSchema, NodeId};
use super::values::{put_bytes, put_long};

/// Maximum depth of a default.
const DEEPEST_DEFAULT: u32 = 32;

/// Writes the value of a field that a row lacks: its default, or null if the field may be null.
///
/// # Errors
/// Fails if the field has neither.
pub(super) fn put_missing(schema: &AvroSchema, field: &AvroField, out: &mut Vec<u8>) -> Result<(), AvroRefusal> {
    if let Some(default) = &field.default {
        return put(schema, field.node, default, 0, out);
    }
    let is_null = |node: &NodeId| matches!(schema.nodes[*node], AvroNode::Null);
    match &schema.nodes[field.node] {
        AvroNode::Null => Ok(()),
        AvroNode::Union(branches) if branches.iter().any(is_null) => {
            let at = branches.iter().position(is_null).unwrap_or_default();
            put_long(at as i64, out);
            Ok(())
        }
        _ => refused(format!("the row has no field `{}`, and the schema no default of it", field.name)),
    }
}

fn put(schema: &AvroSchema, node: NodeId, json: &Value, depth: u32, out: &mut Vec<u8>) -> Result<(), AvroRefusal> {
    let wrong = || refused(format!("the default {json} is not of its type"));
    let as_bytes = |text: &str| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>();
    if depth > DEEPEST_DEFAULT {
        return refused("a default is nested too deep");
    }
    match (&schema.nodes[node], json) {
        (AvroNode::Null, Value::Null) => {}
        (AvroNode::Boolean, Value::Bool(value)) => out.push(u8::from(*value)),
        (AvroNode::Float, Value::Number(number)) => {
            out.extend_from_slice(&(number.as_f64().unwrap_or_default() as f32).to_le_bytes());
        }
        (AvroNode::Double, Value::Number(number)) => {
            out.extend_from_slice(&number.as_f64().unwrap_or_default().to_le_bytes());
        }
        (AvroNode::Int | AvroNode::Date | AvroNode::Long, Value::Number(number))
        | (AvroNode::TimeOfDay(_) | AvroNode::Timestamp(..), Value::Number(number)) => match number.as_i64() {
            Some(number) => put_long(number, out),
            None => return wrong(),
        },
        (AvroNode::String, Value::String(text)) => put_bytes(text.as_bytes(), out),
        (AvroNode::Bytes | AvroNode::Decimal { size: None, .. }, Value::String(text)) => match as_bytes(text) {
            Some(bytes) => put_bytes(&bytes, out),
            None => return wrong(),
        },
        (AvroNode::Fixed { size, .. } | AvroNode::Decimal { size: Some(size), .. }, Value::String(text)) => {
            match as_bytes(text).filter(|bytes| bytes.len() == *size) {
                Some(bytes) => out.extend_from_slice(&bytes),
                None => return wrong(),
            }
        }
        (AvroNode::Enum { symbols, .. }, Value::String(text)) => {
            match symbols.iter().position(|symbol| symbol == text) {
                Some(at) => put_long(at as i64, out),
                None => return wrong(),
            }
        }
        (AvroNode::Array(item), Value::Array(items)) => {
            if !items.is_empty() {
                put_long(items.len() as i64, out);
            }
            items.iter().try_for_each(|json| put(schema, *item, json, depth + 1, out))?;
            out.push(0);
        }
        (AvroNode::Map(value), Value::Object(entries)) => {
            if !entries.is_empty() {
                put_long(entries.len() as i64, out);
            }
            for (key, json) in entries {
                put_bytes(key.as_bytes(), out);
                put(schema, *value, json, depth + 1, out)?;
            }
            out.push(0);
        }
        (AvroNode::Record(record), Value::Object(entries)) => {
            for field in &record.fields {
                match entries.get(&field.name) {
                    Some(json) => put(schema, field.node, json, depth + 1, out)?,
                    None => put_missing(schema, field, out)?,
                }
            }
        }
        (AvroNode::Union(branches), json) => {
            let length = out.len();
            for (at, branch) in branches.iter().enumerate() {
                put_long(at as i64, out);
                if put(schema, *branch, json, depth + 1, out).is_ok() {
                    return Ok(());
                }
                out.truncate(length);
            }
            return wrong();
        }
        _ => return wrong(),
    }
    Ok(())
}
