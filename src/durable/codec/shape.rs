//! The shape of a type, as serde sees it: everything that a format which does not describe itself depends on.
//!
//! A type is deserialised from a [probe](crate::probe); the shape is the text of its requests. Names of structs, fields
//! and variants are part of it, so that two fields of one type that have changed places are noticed.
//!
//! An enum is probed once for each of its variants. Recursion ends because everything below many options and
//! collections is left out; everything behind a value that the type refuses is left out, too. So a shape is a function
//! of the type, and types of equal shape are most likely decoded alike.
//!
//! Invariant: the text of a type never changes, as files contain its hash.

use std::fmt::Write;

use serde::de::DeserializeOwned;

use crate::probe::{self, Branch, Dummy, Leaf, ProbeOfType, ProbeStop, Recorder};
use crate::time::EventTime;

/// Depth up to which options and collections are given an element.
const FILLED: usize = 8;
/// Depth up to which a type is followed.
const DEEPEST: usize = 40;
/// Length in bytes at which the text of a shape is cut off.
const MAX_SHAPE_LENGTH: usize = 1 << 16;

/// The shape of a type.
pub(super) struct TypeShape {
    /// The shape, as a text.
    pub(super) text: String,
    /// `true` if the type asks the format for whatever comes next, as untagged enums do. Only a self-describing format
    /// can answer that.
    pub(super) needs_self_describing: bool,
    /// `false` if a part is left out: behind a value that the type refuses, or because the text became too long.
    pub(super) is_whole: bool,
}

/// Probes a type for its shape.
pub(super) fn shape_of<T: DeserializeOwned>() -> TypeShape {
    shape_of_probed(probe::probe_and_drop::<T>)
}

fn shape_of_probed(probe: ProbeOfType) -> TypeShape {
    let mut seen = ShapeRecorder { text: String::new(), needs_self_describing: false, depth: 0, variant: 0, most: 1 };
    let mut refused = false;
    while seen.variant < seen.most && seen.text.len() < MAX_SHAPE_LENGTH {
        if probe(&mut seen).is_err() {
            refused = true;
            seen.text.push('!');
        }
        seen.text.push('\n');
        (seen.depth, seen.variant) = (0, seen.variant + 1);
    }
    let is_whole = !refused && seen.text.len() < MAX_SHAPE_LENGTH;
    TypeShape { text: seen.text, needs_self_describing: seen.needs_self_describing, is_whole }
}

/// The requests of a type so far.
struct ShapeRecorder {
    text: String,
    needs_self_describing: bool,
    depth: usize,
    /// The variant with which enums are answered in this pass.
    variant: usize,
    /// The greatest number of variants of an enum so far.
    most: usize,
}

impl Recorder for ShapeRecorder {
    fn is_human_readable(&self) -> bool {
        false
    }

    fn leaf(&mut self, leaf: Leaf) -> Result<Dummy, ProbeStop> {
        // Writing to a string does not fail.
        let _ = match leaf {
            Leaf::Bool => write!(self.text, "visit_bool "),
            Leaf::Signed(bits) => write!(self.text, "visit_i{bits} "),
            Leaf::Unsigned(bits) => write!(self.text, "visit_u{bits} "),
            Leaf::Float(bits) => write!(self.text, "visit_f{bits} "),
            Leaf::Char => write!(self.text, "visit_char "),
            Leaf::Text => write!(self.text, "visit_str "),
            Leaf::Bytes => write!(self.text, "visit_bytes "),
            Leaf::Unit | Leaf::Ignored => write!(self.text, "unit "),
            Leaf::UnitVariant => Ok(()),
            Leaf::Any => {
                self.needs_self_describing = true;
                write!(self.text, "any ")
            }
            Leaf::Identifier => return Err(ProbeStop::Stopped),
        };
        Ok(Dummy::ONE)
    }

    fn begin(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        let filled = usize::from(self.depth < FILLED);
        let (name, count) = match branch {
            // Recorded as before the newtype had a name: files contain fingerprints of shapes.
            Branch::Newtype(EventTime::TYPE) => return Ok(1),
            Branch::Option => ("option", filled),
            Branch::List => ("seq", filled),
            Branch::Map => ("map", filled),
            Branch::Tuple(length) | Branch::TupleVariant(length) => ("tuple", length),
            Branch::TupleStruct(name, length) => (name, length),
            Branch::UnitStruct(name) => (name, 0),
            Branch::Newtype(name) => (name, 1),
            Branch::NewtypeVariant => ("newtype", 1),
            Branch::Struct(name, fields) => (name, fields.len()),
            Branch::StructVariant(fields) => ("struct", fields.len()),
            Branch::Enum(name, variants) => {
                self.most = self.most.max(variants.len());
                (name, self.variant.min(variants.len().saturating_sub(1)))
            }
        };
        self.depth += 1;
        if self.depth > DEEPEST || self.text.len() > MAX_SHAPE_LENGTH {
            return Err(ProbeStop::Stopped);
        }
        self.text.push_str(name);
        self.text.push('{');
        if let Branch::Enum(_, variants) = branch {
            let variant = variants.get(count).copied().unwrap_or_default();
            let _ = write!(self.text, "{count}/{} {variant}:", variants.len());
        }
        Ok(count)
    }

    fn end(&mut self, branch: Branch, is_answered: bool) -> Result<(), ProbeStop> {
        if is_answered && branch != Branch::Newtype(EventTime::TYPE) {
            self.text.push('}');
            self.depth -= 1;
        }
        Ok(())
    }

    fn begin_part(&mut self, whole: Branch, at: usize) -> Result<(), ProbeStop> {
        if let Branch::Struct(_, fields) | Branch::StructVariant(fields) = whole {
            self.text.push_str(fields[at]);
            self.text.push(':');
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(dead_code, reason = "the types here have only a shape")]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::probe::samples::{self, SampleReader};
    use crate::record::{Decimal, Real};

    fn text_of<T: DeserializeOwned>() -> String {
        shape_of::<T>().text
    }

    #[test]
    fn a_shape_names_what_a_type_asks_for() {
        #[derive(Deserialize)]
        struct Total {
            sum: i64,
            key: (String, Option<u8>),
        }
        let expected = "Total{sum:visit_i64 key:tuple{visit_str option{visit_u8 }}}\n";
        assert_eq!(text_of::<Total>(), expected);
        assert_eq!(text_of::<BTreeMap<char, Vec<bool>>>(), "map{visit_char seq{visit_bool }}\n");
        assert_eq!(text_of::<(EventTime, Real, ())>(), "tuple{visit_i64 visit_f64 unit }\n");
        assert_eq!(text_of::<Decimal>(), "tuple{visit_i128 visit_u32 }\n");
        assert!(
            shape_of::<Vec<rust_decimal::Decimal>>().needs_self_describing
                && !shape_of::<Vec<Decimal>>().needs_self_describing
        );
        assert!(!shape_of::<(String, Vec<Total>)>().needs_self_describing);
    }

    /// The shapes of variations of a type named `Row`, as it might change between runs.
    macro_rules! shapes {
        ($($body:item)*) => { [$({
            #[derive(Deserialize)]
            $body
            text_of::<Vec<Row>>()
        }),*] };
    }

    #[test]
    fn types_of_one_name_that_are_read_differently_have_different_shapes() {
        let shapes = shapes! {
            struct Row { a: i64, b: i64 }
            struct Row { b: i64, a: i64 }
            struct Row { a: i64, b: u64 }
            struct Row { a: i64, b: i32 }
            struct Row { a: i64 }
            struct Row { a: i64, b: i64, c: () }
            struct Row { a: i64, b: Option<i64> }
            struct Row { a: i64, b: (i64,) }
            struct Row { a: i64, b: Vec<i64> }
            struct Row(i64, i64);
            struct Row(i64);
            struct Row;
            enum Row { A, B }
            enum Row { B, A }
            enum Row { A, B, C }
            enum Row { A, B(i64) }
            enum Row { A, B(u64) }
            enum Row { A, B(i64, i64) }
            enum Row { A, B { c: i64 } }
        };
        let distinct: std::collections::BTreeSet<_> = shapes.iter().collect();
        assert_eq!(distinct.len(), shapes.len(), "{shapes:#?}");
        assert!(shapes.iter().all(|shape| !shape.contains('!')), "{shapes:#?}");
    }

    #[test]
    fn types_that_hold_themselves_have_a_shape() {
        #[derive(Deserialize)]
        struct Tree {
            value: u8,
            left: Option<Box<Tree>>,
            right: Option<Box<Tree>>,
            more: Vec<Tree>,
            named: BTreeMap<String, Tree>,
        }
        #[derive(Deserialize)]
        enum Term {
            Sum(Box<Term>, Box<Term>),
            Number(u8),
        }
        for shape in [text_of::<Tree>(), text_of::<Term>()] {
            assert!(shape.len() < 2 * MAX_SHAPE_LENGTH, "{}", shape.len());
        }
        assert!(text_of::<Term>().contains("1/2 Number:newtype{visit_u8 }"));
        // A type that refuses the value that it is given.
        assert_eq!(text_of::<(u8, std::net::IpAddr, u8)>().matches('\n').count(), 2);
        assert!(text_of::<(u8, std::num::NonZeroU8)>().ends_with("visit_u8 }\n"));
    }

    struct Pinned;

    impl SampleReader for Pinned {
        fn probe<T: DeserializeOwned>() -> String {
            let TypeShape { text, needs_self_describing, is_whole } = shape_of::<T>();
            format!("self-describing {needs_self_describing}, whole {is_whole}\n{}", text.trim_end_matches('\n'))
        }
    }

    #[test]
    fn shapes_stay_as_they_were_when_files_were_written_with_them() {
        samples::check::<Pinned>("shapes.txt");
    }
}
