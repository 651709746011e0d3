//! Parses the JSON text of a schema to its graph.
//!
//! Names follow the specification: a name without a dot is one of its namespace, or of the type around it. A logical
//! type that is unknown, or that does not fit, is left out: its data are those of the type below it.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::logical::{LARGEST_SCALE, TimeUnit};
use super::schema::{AvroField, AvroNode, AvroRecord, AvroSchema, NodeId};
use crate::error::{self, Error, ErrorKind};

/// Maximum number of types of a schema.
const MOST_NODES: usize = 50_000;

/// Maximum size of a fixed type in bytes.
const LARGEST_FIXED: u64 = 1 << 24;

impl AvroSchema {
    /// Parses a schema.
    ///
    /// ```
    /// use tidegate::kafka::AvroSchema;
    ///
    /// let schema = AvroSchema::parse(r#"{"type": "record", "name": "Paid", "fields": [{"name": "cents", "type": "long"}]}"#)?;
    /// assert_eq!(schema.name(), "Paid");
    /// # tidegate::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// Fails if the text is no schema.
    pub fn parse(text: &str) -> error::Result<AvroSchema> {
        AvroSchema::parse_with(text, &[])
            .map_err(|why| Error::of(ErrorKind::Usage, "an Avro schema cannot be used").because(why))
    }

    /// Parses a schema that refers to named types of others; each stands after those that it needs.
    pub(crate) fn parse_with(text: &str, references: &[&str]) -> Result<AvroSchema, String> {
        let (nodes, root) = parse(text, references)?;
        Ok(AvroSchema { nodes, root, text: text.to_owned() })
    }
}

/// Parses a schema after those that it refers to, and returns its types and the root.
fn parse(text: &str, references: &[&str]) -> Result<(Vec<AvroNode>, NodeId), String> {
    let mut parser = SchemaParser::default();
    for reference in references {
        parser.text(reference)?;
    }
    let root = parser.text(text)?;
    Ok((parser.nodes, root))
}

#[derive(Default)]
struct SchemaParser {
    nodes: Vec<AvroNode>,
    names: HashMap<String, NodeId>,
}

impl SchemaParser {
    fn text(&mut self, text: &str) -> Result<NodeId, String> {
        // A plain name of a type need not be quoted.
        let json = match text.trim() {
            name if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) => name.into(),
            json => serde_json::from_str(json).map_err(|why| format!("it is no JSON: {why}"))?,
        };
        self.node(&json, "")
    }

    fn add(&mut self, node: AvroNode) -> Result<NodeId, String> {
        if self.nodes.len() == MOST_NODES {
            return Err(format!("it has more than {MOST_NODES} types"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn node(&mut self, json: &Value, namespace: &str) -> Result<NodeId, String> {
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => {
                let mut nodes = Vec::new();
                for branch in branches {
                    let node = self.node(branch, namespace)?;
                    if matches!(self.nodes[node], AvroNode::Union(_)) {
                        return Err("a union within a union".into());
                    }
                    nodes.push(node);
                }
                if nodes.is_empty() {
                    return Err("a union of no types".into());
                }
                self.add(AvroNode::Union(nodes))
            }
            Value::Object(object) => match object.get("type") {
                Some(Value::String(kind)) => self.complex(kind, json, namespace),
                Some(inner @ (Value::Object(_) | Value::Array(_))) => self.node(inner, namespace),
                _ => Err("a type without `type`".into()),
            },
            _ => Err(format!("{json} is no type")),
        }
    }

    fn named(&mut self, name: &str, namespace: &str) -> Result<NodeId, String> {
        if let Some(node) = primitive(name) {
            return self.add(node);
        }
        let full = full_name(name, namespace);
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| format!("the type `{full}` is not defined"))
    }

    fn complex(&mut self, kind: &str, json: &Value, namespace: &str) -> Result<NodeId, String> {
        match kind {
            "array" => {
                let items = self.node(&json["items"], namespace)?;
                self.add(AvroNode::Array(items))
            }
            "map" => {
                let values = self.node(&json["values"], namespace)?;
                self.add(AvroNode::Map(values))
            }
            "record" | "error" => self.record(json, namespace),
            "enum" => {
                let name = self.define(json, namespace)?;
                let symbols = strings(&json["symbols"]).ok_or_else(|| format!("the enum `{name}` has no symbols"))?;
                self.finish(&name, AvroNode::Enum { name: Arc::clone(&name), symbols })
            }
            "fixed" => {
                let name = self.define(json, namespace)?;
                let size = json["size"].as_u64().filter(|size| (1..=LARGEST_FIXED).contains(size));
                let size = size.ok_or_else(|| format!("the fixed type `{name}` has no size, or too large a one"))?;
                let node = fixed(json, &name, size as usize);
                self.finish(&name, node)
            }
            name => match primitive(name) {
                Some(node) => self.add(with_logical_type(node, json)),
                None => self.named(name, namespace),
            },
        }
    }

    /// Enters a name before the type behind it is known, because the type may contain itself.
    fn define(&mut self, json: &Value, namespace: &str) -> Result<Arc<str>, String> {
        let name = json["name"].as_str().filter(|name| !name.is_empty()).ok_or("a named type without a name")?;
        let full = full_name(name, json["namespace"].as_str().unwrap_or(namespace));
        if primitive(&full).is_some() {
            return Err(format!("a type named `{full}`"));
        }
        let at = self.add(AvroNode::Null)?;
        if self.names.insert(full.clone(), at).is_some() {
            return Err(format!("the type `{full}` is defined twice"));
        }
        Ok(full.into())
    }

    fn finish(&mut self, name: &str, node: AvroNode) -> Result<NodeId, String> {
        let at = *self.names.get(name).ok_or_else(|| format!("the type `{name}` is not defined"))?;
        self.nodes[at] = node;
        Ok(at)
    }

    fn record(&mut self, json: &Value, namespace: &str) -> Result<NodeId, String> {
        let name = self.define(json, namespace)?;
        let inside = name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        let listed = json["fields"].as_array().ok_or_else(|| format!("the record `{name}` has no fields"))?;
        let mut fields: Vec<AvroField> = Vec::with_capacity(listed.len());
        let mut names = std::collections::HashSet::new();
        for field in listed {
            let of_record = |why: &str| format!("record `{name}`: {why}");
            let field_name = field["name"].as_str().ok_or_else(|| of_record("a field without a name"))?.to_owned();
            let node =
                self.node(&field["type"], &inside).map_err(|why| of_record(&format!("field `{field_name}`: {why}")))?;
            if !names.insert(field_name.clone()) {
                return Err(of_record(&format!("two fields `{field_name}`")));
            }
            fields.push(AvroField { name: field_name, node, default: field.get("default").cloned() });
        }
        self.finish(&name, AvroNode::Record(AvroRecord { name: Arc::clone(&name), fields }))
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn strings(json: &Value) -> Option<Vec<String>> {
    json.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

fn primitive(name: &str) -> Option<AvroNode> {
    Some(match name {
        "null" => AvroNode::Null,
        "boolean" => AvroNode::Boolean,
        "int" => AvroNode::Int,
        "long" => AvroNode::Long,
        "float" => AvroNode::Float,
        "double" => AvroNode::Double,
        "bytes" => AvroNode::Bytes,
        "string" => AvroNode::String,
        _ => return None,
    })
}

fn with_logical_type(node: AvroNode, json: &Value) -> AvroNode {
    use TimeUnit::{Micros, Millis, Nanos};
    match (node, json["logicalType"].as_str().unwrap_or_default()) {
        (AvroNode::Int, "date") => AvroNode::Date,
        (AvroNode::Int, "time-millis") => AvroNode::TimeOfDay(Millis),
        (AvroNode::Long, "time-micros") => AvroNode::TimeOfDay(Micros),
        (AvroNode::Long, "timestamp-millis") => AvroNode::Timestamp(Millis, false),
        (AvroNode::Long, "timestamp-micros") => AvroNode::Timestamp(Micros, false),
        (AvroNode::Long, "timestamp-nanos") => AvroNode::Timestamp(Nanos, false),
        (AvroNode::Long, "local-timestamp-millis") => AvroNode::Timestamp(Millis, true),
        (AvroNode::Long, "local-timestamp-micros") => AvroNode::Timestamp(Micros, true),
        (AvroNode::Long, "local-timestamp-nanos") => AvroNode::Timestamp(Nanos, true),
        (AvroNode::Bytes, "decimal") => match digits_of(json) {
            Some((precision, scale)) => AvroNode::Decimal { name: None, size: None, precision, scale },
            None => AvroNode::Bytes,
        },
        (node, _) => node,
    }
}

fn fixed(json: &Value, name: &Arc<str>, size: usize) -> AvroNode {
    let name = Arc::clone(name);
    match (json["logicalType"].as_str().unwrap_or_default(), digits_of(json)) {
        ("decimal", Some((precision, scale))) => {
            AvroNode::Decimal { name: Some(name), size: Some(size), precision, scale }
        }
        ("uuid", _) if size == 16 => AvroNode::Uuid(name),
        _ => AvroNode::Fixed { name, size },
    }
}

/// Returns precision and scale of a decimal type; `None` if it is none.
fn digits_of(json: &Value) -> Option<(u64, u32)> {
    let precision = json["precision"].as_u64()?;
    let scale = if json["scale"].is_null() { 0 } else { json["scale"].as_u64()? };
    let scale = u32::try_from(scale).ok().filter(|scale| scale <= &LARGEST_SCALE && u64::from(*scale) <= precision)?;
    Some((precision, scale))
}
