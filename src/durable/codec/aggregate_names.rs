//! Names of the aggregates whose accumulators stored rows have.
//!
//! Rows keep the accumulators of a tuple of aggregates by position. Where the program names its aggregates, the stored
//! schema has, in the place of the tuple, a struct whose fields have those names: `postcard` writes both alike, so the
//! bytes of a row do not depend on names. By them a changed program finds the accumulators that it still has
//! (`super::rearrangement`).
//!
//! Invariant: names are part of the fingerprint of rows, so rows are read as they are only where the names are the same,
//! in the same order.

use std::collections::BTreeSet;

use super::schema::Schema;
use crate::error::{Error, Result};

/// The name, in schemas, of a tuple whose aggregates have names. It is no name that a type can have.
const TUPLE: &str = "(named)";
/// The name, in schemas, of one aggregate that has a name and is in no tuple.
const ONE: &str = "(name)";
/// The type of the accumulators of aggregates of some records.
const FILTERED: &str = "FilteredSum";

/// Paths of accumulators in rows: of windows, of sessions, of count windows, and of windows that fire by count.
const PLACES: [&str; 5] =
    [".1.sum", ".1.row[].total.sum", ".1.row.filling.total.sum", ".1.row.waiting[].1", ".1.row.open[].total.sum"];

/// The names of a step's aggregates, and of those within them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum NameTree {
    /// There are none.
    #[default]
    None,
    /// One aggregate, which is in no tuple.
    One(Box<NamedPart>),
    /// The aggregates of a tuple.
    Tuple(Vec<NamedPart>),
    /// Aggregates of some of the records.
    Filtered(Box<NameTree>),
}

/// An aggregate of a tuple.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamedPart {
    pub(crate) name: Option<String>,
    /// The names that it had earlier.
    pub(crate) earlier: Vec<String>,
    /// The accumulator of no records, as it is stored; `None` if there is none.
    pub(crate) empty: Option<Vec<u8>>,
    /// The names of the aggregates within it.
    pub(crate) inner: NameTree,
}

impl NameTree {
    /// The names of a tuple of aggregates with these names.
    pub(crate) fn of_tuple(trees: impl IntoIterator<Item = NameTree>) -> NameTree {
        let part = |tree| match tree {
            NameTree::One(part) => *part,
            inner => NamedPart { inner, ..NamedPart::default() },
        };
        let parts: Vec<_> = trees.into_iter().map(part).collect();
        let is_plain = |part: &NamedPart| part.name.is_none() && part.inner == NameTree::None;
        if parts.iter().all(is_plain) { NameTree::None } else { NameTree::Tuple(parts) }
    }

    /// The names of aggregates that get some of the records.
    pub(crate) fn of_filtered(inner: NameTree) -> NameTree {
        if inner == NameTree::None { NameTree::None } else { NameTree::Filtered(Box::new(inner)) }
    }

    /// Checks that a tuple's aggregates all have names, or none, and that no name is there twice.
    ///
    /// # Errors
    /// Fails with usage if they do not.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            NameTree::None => Ok(()),
            NameTree::Filtered(inner) => inner.check(),
            NameTree::One(part) => check_parts(std::slice::from_ref(part)),
            NameTree::Tuple(parts) => check_parts(parts),
        }
    }

    /// Writes the names into the schema of rows.
    pub(super) fn apply_to_rows(&self, rows: &mut Schema) {
        if *self != NameTree::None {
            self.apply_below(rows, "");
        }
    }

    fn apply_below(&self, schema: &mut Schema, path: &str) {
        if is_accumulator(path) {
            self.apply(schema);
        } else if has_accumulator(path) {
            each_part(schema, path, &mut |part, path| self.apply_below(part, path));
        }
    }

    fn apply(&self, schema: &mut Schema) {
        match (self, schema) {
            (NameTree::One(part), schema) => {
                part.inner.apply(schema);
                let field = (part.name.clone().unwrap_or_default(), std::mem::take(schema));
                *schema = Schema::Struct(ONE.into(), vec![field]);
            }
            (NameTree::Tuple(parts), schema) => {
                let Schema::Tuple(sums) = schema else { return };
                parts.iter().zip(&mut *sums).for_each(|(part, sum)| part.inner.apply(sum));
                let names: Option<Vec<_>> = parts.iter().map(|part| part.name.clone()).collect();
                if let Some(names) = names.filter(|names| names.len() == sums.len()) {
                    let fields = names.into_iter().zip(std::mem::take(sums)).collect();
                    *schema = Schema::Struct(TUPLE.into(), fields);
                }
            }
            (NameTree::Filtered(inner), schema) => {
                if let Some(sum) = filtered_mut(schema) {
                    inner.apply(sum);
                }
            }
            (NameTree::None, _) => {}
        }
    }
}

fn check_parts(parts: &[NamedPart]) -> Result<()> {
    let help = "give each aggregate of a tuple a name of its own, or none of them";
    let named = parts.iter().filter(|part| part.name.is_some()).count();
    if named > 0 && named < parts.len() {
        let what = format!("{named} of {} aggregates of a tuple have names", parts.len());
        return Err(Error::usage(what).help(help));
    }
    let mut names = BTreeSet::new();
    for name in parts.iter().flat_map(|part| part.name.iter().chain(&part.earlier)) {
        if !names.insert(name) {
            return Err(Error::usage(format!("two aggregates are, or were, named `{name}`")).help(help));
        }
    }
    parts.iter().try_for_each(|part| part.inner.check())
}

/// `true` if the path is that of an accumulator.
pub(super) fn is_accumulator(path: &str) -> bool {
    PLACES.contains(&path)
}

/// `true` if the path is that of something with an accumulator in it.
pub(super) fn has_accumulator(path: &str) -> bool {
    PLACES.iter().any(|place| place.starts_with(path))
}

fn each_part(schema: &mut Schema, path: &str, each: &mut dyn FnMut(&mut Schema, &str)) {
    match schema {
        Schema::Option(inner) => each(inner, path),
        Schema::List(inner) => each(inner, &format!("{path}[]")),
        Schema::Tuple(parts) => {
            (0..).zip(parts).for_each(|(number, part): (usize, _)| each(part, &format!("{path}.{number}")));
        }
        Schema::Struct(_, fields) => {
            fields.iter_mut().for_each(|(name, field)| each(field, &format!("{path}.{name}")));
        }
        _ => {}
    }
}

/// Returns the schema of the accumulator within that of an aggregate of some records.
pub(super) fn filtered(schema: &Schema) -> Option<&Schema> {
    let Schema::Struct(name, fields) = schema else { return None };
    let [(_, Schema::Option(passed))] = &fields[..] else { return None };
    match &**passed {
        Schema::Tuple(parts) if name == FILTERED => parts.get(1),
        _ => None,
    }
}

fn filtered_mut(schema: &mut Schema) -> Option<&mut Schema> {
    let Schema::Struct(name, fields) = schema else { return None };
    let [(_, Schema::Option(passed))] = &mut fields[..] else { return None };
    match &mut **passed {
        Schema::Tuple(parts) if name == FILTERED => parts.get_mut(1),
        _ => None,
    }
}

/// Returns the accumulators of a schema by name; `None` if they have no names.
pub(super) fn named_parts(schema: &Schema) -> Option<&[(String, Schema)]> {
    match schema {
        Schema::Struct(name, fields) if name == TUPLE || name == ONE => Some(fields),
        _ => None,
    }
}

/// Returns a schema without the names of aggregates: that of the program's type.
pub(super) fn without_names(schema: &Schema) -> Schema {
    let fields = |fields: &[(String, Schema)]| {
        fields.iter().map(|(name, field)| (name.clone(), without_names(field))).collect::<Vec<_>>()
    };
    match schema {
        Schema::Struct(name, parts) if name == ONE => parts.first().map_or(Schema::Unit, |(_, one)| without_names(one)),
        Schema::Struct(name, parts) if name == TUPLE => {
            Schema::Tuple(parts.iter().map(|(_, part)| without_names(part)).collect())
        }
        Schema::Struct(name, parts) => Schema::Struct(name.clone(), fields(parts)),
        Schema::Tuple(parts) => Schema::Tuple(parts.iter().map(without_names).collect()),
        Schema::Option(inner) => Schema::Option(Box::new(without_names(inner))),
        Schema::List(inner) => Schema::List(Box::new(without_names(inner))),
        other => other.clone(),
    }
}

/// Returns all names of aggregates in a schema, as a text; empty if there are none.
pub(super) fn names_of(schema: &Schema) -> String {
    let parts = |parts: &[(String, Schema)]| parts.iter().map(|(_, part)| names_of(part)).collect::<String>();
    match schema {
        Schema::Struct(name, fields) if name == TUPLE || name == ONE => {
            let named = |(name, field): &(String, Schema)| format!("{name:?}{},", names_of(field));
            format!("({})", fields.iter().map(named).collect::<String>())
        }
        Schema::Struct(_, fields) => parts(fields),
        Schema::Tuple(parts) => parts.iter().map(names_of).collect(),
        Schema::Option(inner) | Schema::List(inner) => names_of(inner),
        _ => String::new(),
    }
}
