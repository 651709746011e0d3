//! The shape of a type, as serde sees it: everything that a format which does not describe itself depends on.
//!
//! A type is deserialised from a probe that records the type's requests, and answers each with some value of the
//! requested kind: 1, "1", one element, `Some`. Names of structs, fields and variants are part of the shape, so that
//! two fields of one type that have changed places are noticed.
//!
//! An enum is probed once for each of its variants. Recursion ends because everything below many options and
//! collections is left out; everything behind a value that the type refuses is left out, too. So a shape is a function
//! of the type, and types of equal shape are most likely decoded alike.

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::ProbeStopped;
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
    let mut seen = ShapeRecorder { text: String::new(), needs_self_describing: false, depth: 0, variant: 0, most: 1 };
    let mut refused = false;
    while seen.variant < seen.most && seen.text.len() < MAX_SHAPE_LENGTH {
        if T::deserialize(ShapeProbe(&mut seen)).is_err() {
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

impl ShapeRecorder {
    /// Records the requests inside something named `what`.
    fn within<V>(
        &mut self,
        what: &str,
        within: impl FnOnce(&mut ShapeRecorder) -> Result<V, ProbeStopped>,
    ) -> Result<V, ProbeStopped> {
        self.depth += 1;
        if self.depth > DEEPEST || self.text.len() > MAX_SHAPE_LENGTH {
            return Err(ProbeStopped);
        }
        self.text.push_str(what);
        self.text.push('{');
        let value = within(self)?;
        self.text.push('}');
        self.depth -= 1;
        Ok(value)
    }

    /// The number of elements that a collection is given: 0 or 1.
    fn filled(&self) -> usize {
        usize::from(self.depth < FILLED)
    }
}

/// A deserializer that answers one request and records it.
struct ShapeProbe<'s>(&'s mut ShapeRecorder);

/// Implements requests that are answered with a constant.
macro_rules! values {
    ($($request:ident $visit:ident $value:expr;)*) => { $(
        fn $request<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
            self.0.text.push_str(stringify!($visit));
            self.0.text.push(' ');
            visitor.$visit($value)
        }
    )* };
}

impl<'de> Deserializer<'de> for ShapeProbe<'_> {
    type Error = ProbeStopped;

    values! {
        deserialize_bool visit_bool true;
        deserialize_i8 visit_i8 1;
        deserialize_i16 visit_i16 1;
        deserialize_i32 visit_i32 1;
        deserialize_i64 visit_i64 1;
        deserialize_i128 visit_i128 1;
        deserialize_u8 visit_u8 1;
        deserialize_u16 visit_u16 1;
        deserialize_u32 visit_u32 1;
        deserialize_u64 visit_u64 1;
        deserialize_u128 visit_u128 1;
        deserialize_f32 visit_f32 1.0;
        deserialize_f64 visit_f64 1.0;
        deserialize_char visit_char '1';
        deserialize_str visit_str "1";
        deserialize_string visit_str "1";
        deserialize_bytes visit_bytes b"1";
        deserialize_byte_buf visit_bytes b"1";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        self.0.needs_self_describing = true;
        self.0.text.push_str("any ");
        visitor.visit_str("1")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        let filled = self.0.filled() > 0;
        let inside =
            |seen: &mut ShapeRecorder| if filled { visitor.visit_some(ShapeProbe(seen)) } else { visitor.visit_none() };
        self.0.within("option", inside)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        self.0.text.push_str("unit ");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        self.0.within(name, |_| visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        // Recorded as before the newtype had a name: files contain fingerprints of shapes.
        if name == EventTime::TYPE {
            return visitor.visit_newtype_struct(self);
        }
        self.0.within(name, |seen| visitor.visit_newtype_struct(ShapeProbe(seen)))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        let left = self.0.filled();
        self.0.within("seq", |seen| visitor.visit_seq(ShapeElements { seen, left, names: &[] }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, ProbeStopped> {
        self.0.within("tuple", |seen| visitor.visit_seq(ShapeElements { seen, left, names: &[] }))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        self.0.within(name, |seen| visitor.visit_seq(ShapeElements { seen, left, names: &[] }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        let left = self.0.filled();
        self.0.within("map", |seen| visitor.visit_map(ShapeElements { seen, left, names: &[] }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        self.0.within(name, |seen| visitor.visit_seq(ShapeElements { seen, left: names.len(), names }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        self.0.most = self.0.most.max(names.len());
        let variant = self.0.variant.min(names.len().saturating_sub(1));
        let of = names.get(variant).copied().unwrap_or_default();
        self.0.within(name, |seen| {
            seen.text.push_str(&format!("{variant}/{} {of}:", names.len()));
            visitor.visit_enum(ShapeVariant { seen, variant })
        })
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeStopped> {
        Err(ProbeStopped)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStopped> {
        self.deserialize_unit(visitor)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a collection, or the fields of a struct.
struct ShapeElements<'s> {
    seen: &'s mut ShapeRecorder,
    left: usize,
    names: &'static [&'static str],
}

impl<'de> SeqAccess<'de> for ShapeElements<'_> {
    type Error = ProbeStopped;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStopped> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        if let Some(name) = self.names.len().checked_sub(self.left).and_then(|at| self.names.get(at)) {
            self.seen.text.push_str(name);
            self.seen.text.push(':');
        }
        self.left = left;
        seed.deserialize(ShapeProbe(self.seen)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for ShapeElements<'_> {
    type Error = ProbeStopped;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStopped> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ProbeStopped> {
        seed.deserialize(ShapeProbe(self.seen))
    }
}

/// One variant of an enum.
struct ShapeVariant<'s> {
    seen: &'s mut ShapeRecorder,
    variant: usize,
}

impl<'de> EnumAccess<'de> for ShapeVariant<'_> {
    type Error = ProbeStopped;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), ProbeStopped> {
        let number = u32::try_from(self.variant).map_err(|_| ProbeStopped)?;
        let deserializer: de::value::U32Deserializer<ProbeStopped> = number.into_deserializer();
        Ok((seed.deserialize(deserializer)?, self))
    }
}

impl<'de> VariantAccess<'de> for ShapeVariant<'_> {
    type Error = ProbeStopped;

    fn unit_variant(self) -> Result<(), ProbeStopped> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ProbeStopped> {
        self.seen.within("newtype", |seen| seed.deserialize(ShapeProbe(seen)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, ProbeStopped> {
        ShapeProbe(self.seen).deserialize_tuple(left, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStopped> {
        ShapeProbe(self.seen).deserialize_struct("struct", names, visitor)
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
