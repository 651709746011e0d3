//! Derives a schema from a row type: what serde reads of it.
//!
//! Every value of the type fits the schema, but for a `u64` above the greatest `i64`, which is refused when it is
//! written. Types whose schema is not clear are refused: tuples, enums with data, decimals (of which scale?), types that
//! contain themselves, fields with aliases, and types that take anything. Their schema has to be given.

use std::any::type_name;
use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::schema::AvroSchema;
use crate::error::{Error, Result};
use crate::probe::{self, AnyValue, Branch, Dummy, Leaf, ProbeStop, Recorder};

/// Maximum number of passes: the variants of the largest enum.
const MOST_PASSES: usize = 1_000;

impl AvroSchema {
    /// Derives the schema of a row type: a struct with named fields, whose name is that of the record.
    ///
    /// Integers are `int` or `long`, and decimals of 38 digits if they have 128 bits; an [`EventTime`](crate::EventTime)
    /// is a `timestamp-millis`, an enum without data an enum, an option a union with null.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// use tidegate::EventTime;
    /// use tidegate::kafka::AvroSchema;
    ///
    /// #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// struct Total { account: String, cents: i64, at: EventTime }
    ///
    /// let schema = AvroSchema::of::<Total>("com.acme")?;
    /// assert_eq!(schema.name(), "com.acme.Total");
    /// # tidegate::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// Fails with the part of the type whose schema has to be given: see [`AvroSchema::parse`].
    pub fn of<D: DeserializeOwned>(namespace: &str) -> Result<AvroSchema> {
        let refused = |why: &str| {
            let error = Error::usage("no Avro schema can be derived from a row type").at(type_name::<D>());
            error.because(why).help("give the schema")
        };
        let (mut derived, mut pass) = (None, 0);
        loop {
            let mut types = TypeRecorder { variant: pass, ..TypeRecorder::default() };
            let probed = probe::probe::<D>(&mut types);
            if let Some(why) = &types.fault {
                return Err(refused(why));
            }
            let Some(found) = types.found.take().filter(|_| probed.is_ok()) else {
                return Err(refused("the type refuses values that stand for others"));
            };
            derived.get_or_insert(found);
            pass += 1;
            if pass >= types.most_variants {
                break;
            }
            if pass == MOST_PASSES {
                return Err(refused("it has an enum of too many variants"));
            }
        }
        let mut schema = derived.unwrap_or_default();
        if schema["type"] != "record" {
            return Err(refused("it is no struct with named fields"));
        }
        if !namespace.is_empty() {
            schema["namespace"] = namespace.into();
        }
        AvroSchema::parse(&schema.to_string())
    }
}

/// Maximum depth of nested types.
const DEEPEST_TYPE: usize = 64;

/// A recorder of the types that a row is made of.
#[derive(Default)]
struct TypeRecorder {
    /// Number of the variant with which enums are answered; those of fewer variants with their last one.
    variant: usize,
    most_variants: usize,
    /// Type of the value that was asked for last.
    found: Option<Value>,
    /// Types of the parts of the values that are open.
    parts: Vec<Vec<Value>>,
    depth: usize,
    /// Names of the structs that are open.
    open: Vec<&'static str>,
    /// Types that have a name.
    named: BTreeMap<&'static str, Value>,
    /// Reason why there is no schema.
    fault: Option<String>,
}

impl TypeRecorder {
    fn fail<V>(&mut self, why: impl Into<String>) -> std::result::Result<V, ProbeStop> {
        self.fault.get_or_insert(why.into());
        Err(ProbeStop::Stopped)
    }

    /// Records a named type: the first time as a whole, then by its name.
    fn define(&mut self, name: &'static str, whole: Value) -> std::result::Result<Value, ProbeStop> {
        match self.named.get(name) {
            None => {
                self.named.insert(name, whole.clone());
                Ok(whole)
            }
            Some(known) if *known == whole => Ok(name.into()),
            Some(_) => self.fail(format!("two types are named `{name}`")),
        }
    }

    /// Puts the type of a value together from those of its parts.
    fn compose(&mut self, branch: Branch, parts: &[Value]) -> std::result::Result<Value, ProbeStop> {
        match (branch, parts) {
            (Branch::Option, [Value::Array(_)] | []) => self.fail("it has an option of an option"),
            (Branch::Option, [inner]) => Ok(json!(["null", inner])),
            (Branch::List, [item]) => Ok(json!({ "type": "array", "items": item })),
            (Branch::Map, [key, value]) if key == "string" => Ok(json!({ "type": "map", "values": value })),
            (Branch::Map, _) => self.fail("it has a map whose keys are no texts"),
            (Branch::Struct(name, fields), parts) => {
                if fields.len() != parts.len() {
                    return self.fail(format!("fields of `{name}` have aliases"));
                }
                let field = |(name, kind): (&&str, &Value)| match kind {
                    Value::Array(_) => json!({ "name": name, "type": kind, "default": null }),
                    kind => json!({ "name": name, "type": kind }),
                };
                let fields: Vec<_> = fields.iter().zip(parts).map(field).collect();
                self.define(name, json!({ "type": "record", "name": name, "fields": fields }))
            }
            (Branch::Enum(name, variants), _) => {
                self.define(name, json!({ "type": "enum", "name": name, "symbols": variants }))
            }
            _ => self.fail("it has a part whose schema is not clear"),
        }
    }
}

impl Recorder for TypeRecorder {
    fn is_human_readable(&self) -> bool {
        true
    }

    fn leaf(&mut self, leaf: Leaf) -> std::result::Result<Dummy, ProbeStop> {
        let kind = match leaf {
            Leaf::Bool => json!("boolean"),
            Leaf::Signed(8 | 16 | 32) | Leaf::Unsigned(8 | 16) => json!("int"),
            Leaf::Signed(64) | Leaf::Unsigned(32 | 64) => json!("long"),
            Leaf::Signed(_) | Leaf::Unsigned(_) => {
                json!({ "type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 0 })
            }
            Leaf::Float(32) => json!("float"),
            Leaf::Float(_) => json!("double"),
            Leaf::Char | Leaf::Text | Leaf::Identifier => json!("string"),
            Leaf::Bytes => json!("bytes"),
            Leaf::Unit | Leaf::UnitVariant => json!("null"),
            Leaf::Any | Leaf::Ignored => return self.fail("it has a part that takes anything"),
        };
        self.found = Some(kind);
        Ok(Dummy::ONE)
    }

    fn begin(&mut self, branch: Branch) -> std::result::Result<usize, ProbeStop> {
        // Newtypes and options have no names by which those that contain themselves are known.
        self.depth += 1;
        if self.depth > DEEPEST_TYPE {
            return self.fail("it is nested too deep, or contains itself");
        }
        let count = match branch {
            Branch::Newtype(_) => return Ok(1),
            Branch::Option | Branch::List | Branch::Map => 1,
            Branch::Struct(name, _) if self.open.contains(&name) => {
                return self.fail(format!("`{name}` contains itself"));
            }
            Branch::Struct(name, fields) => {
                self.open.push(name);
                fields.len()
            }
            Branch::Enum(_, variants) if !variants.is_empty() => {
                self.most_variants = self.most_variants.max(variants.len());
                self.variant.min(variants.len() - 1)
            }
            Branch::UnitStruct(_) => {
                self.found = Some(json!("null"));
                return Ok(0);
            }
            Branch::Tuple(_) | Branch::TupleStruct(..) => return self.fail("it has a tuple"),
            Branch::Enum(..) | Branch::NewtypeVariant | Branch::TupleVariant(_) | Branch::StructVariant(_) => {
                return self.fail("it has an enum with data");
            }
        };
        self.parts.push(Vec::new());
        Ok(count)
    }

    fn end(&mut self, branch: Branch, is_answered: bool) -> std::result::Result<(), ProbeStop> {
        if !is_answered {
            return Ok(());
        }
        self.depth -= 1;
        if matches!(branch, Branch::Newtype(_) | Branch::UnitStruct(_)) {
            return Ok(());
        }
        if matches!(branch, Branch::Struct(..)) {
            self.open.pop();
        }
        let parts = self.parts.pop().unwrap_or_default();
        self.found = Some(self.compose(branch, &parts)?);
        Ok(())
    }

    fn end_part(&mut self, _: usize, is_answered: bool) {
        if !is_answered {
            return;
        }
        if let (Some(kind), Some(parts)) = (self.found.take(), self.parts.last_mut()) {
            parts.push(kind);
        }
    }

    fn any(&mut self, visitor: &'static str) -> std::result::Result<AnyValue, ProbeStop> {
        // Only this visitor tells an event time from what takes anything, in formats for people.
        if visitor == EVENT_TIME_VISITOR {
            self.found = Some(json!({ "type": "long", "logicalType": "timestamp-millis" }));
            return Ok(AnyValue::Signed(1));
        }
        self.leaf(Leaf::Any).map(|dummy| AnyValue::Text(dummy.text))
    }
}

/// Name of the visitor of [`EventTime`](crate::EventTime); a test checks it.
const EVENT_TIME_VISITOR: &str = concat!(env!("CARGO_CRATE_NAME"), "::time::EventTimeVisitor");
