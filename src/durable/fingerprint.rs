//! Fingerprints of types: whether what a state holds can be read by a program.
//!
//! A **probe** is a deserializer that has no data: it answers what a type asks for with dummies, and hashes what was
//! asked: names, fields, variants, kinds of numbers. Variants of enums are tried in turns. The hash is combined with the
//! type's name, without the paths of modules, as two types of one form may mean different things (a least and a greatest).
//!
//! Invariants: equal types have equal fingerprints, on every machine and in every build; a type that refuses a dummy, or
//! contains itself, is hashed as far as it was seen. That two different types have one fingerprint is possible, but not
//! by a field added, removed, renamed, moved or given another type.

use std::any::type_name;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How many turns there are at most: enums of more variants are probed in their first ones.
const TURNS: usize = 64;
/// How deep types are looked into.
const DEPTH: u32 = 24;
/// How many things are looked at in a turn: types that contain themselves several times grow fast.
const STEPS: u32 = 4096;

/// The fingerprint of a type.
pub fn of<T: DeserializeOwned>() -> u64 {
    let mut hash = Hash::new();
    hash.text(&name::<T>());
    let mut turn = 0;
    loop {
        let mut seen = Seen { hash, turn, variants: 0, steps: 0 };
        // What is refused has been hashed so far.
        let _ = T::deserialize(Probe { seen: &mut seen, depth: 0 });
        hash = seen.hash;
        turn += 1;
        if turn >= seen.variants.min(TURNS) {
            return hash.0;
        }
    }
}

/// A type's name without the paths of modules.
fn name<T>() -> String {
    let parts = type_name::<T>().split_inclusive(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':'));
    parts.map(|part| part.rsplit("::").next().unwrap_or(part)).collect()
}

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>. The same everywhere, and fast enough.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn text(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn number(&mut self, number: usize) {
        self.text(&number.to_string());
    }
}

/// What the probes of a turn have seen.
struct Seen {
    hash: Hash,
    turn: usize,
    /// The most variants that an enum has.
    variants: usize,
    steps: u32,
}

/// Ends a turn: a type refused a dummy, or it was looked at long enough.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a probe was stopped")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Stop
    }
}

struct Probe<'a> {
    seen: &'a mut Seen,
    depth: u32,
}

impl Probe<'_> {
    fn note(&mut self, kind: &str) -> Result<(), Stop> {
        self.seen.hash.text(kind);
        self.seen.steps += 1;
        if self.depth > DEPTH || self.seen.steps > STEPS { Err(Stop) } else { Ok(()) }
    }
}

macro_rules! answer {
    ($($ask:ident => $visit:ident($($dummy:expr)?)),* $(,)?) => {
        $(fn $ask<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
            self.note(stringify!($ask))?;
            visitor.$visit($($dummy)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Stop;

    answer! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_i8(0), deserialize_i16 => visit_i16(0), deserialize_i32 => visit_i32(0),
        deserialize_i64 => visit_i64(0), deserialize_i128 => visit_i128(0),
        deserialize_u8 => visit_u8(0), deserialize_u16 => visit_u16(0), deserialize_u32 => visit_u32(0),
        deserialize_u64 => visit_u64(0), deserialize_u128 => visit_u128(0),
        deserialize_f32 => visit_f32(0.0), deserialize_f64 => visit_f64(0.0),
        deserialize_char => visit_char('0'),
        deserialize_str => visit_str("0"), deserialize_string => visit_str("0"),
        deserialize_bytes => visit_bytes(&[]), deserialize_byte_buf => visit_bytes(&[]),
        deserialize_unit => visit_unit(), deserialize_any => visit_unit(),
        deserialize_identifier => visit_u64(0), deserialize_ignored_any => visit_unit(),
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.note("option")?;
        if self.depth == DEPTH { visitor.visit_none() } else { visitor.visit_some(self.below()) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(mut self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.note("unit struct")?;
        self.seen.hash.text(name);
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(mut self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.note("newtype struct")?;
        self.seen.hash.text(name);
        visitor.visit_newtype_struct(self.below())
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.note("sequence")?;
        visitor.visit_seq(self.elements(1))
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.note("tuple")?;
        self.seen.hash.number(length);
        visitor.visit_seq(self.elements(length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note("tuple struct")?;
        self.seen.hash.text(name);
        self.seen.hash.number(length);
        visitor.visit_seq(self.elements(length))
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.note("map")?;
        visitor.visit_map(self.elements(1))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note("struct")?;
        self.seen.hash.text(name);
        fields.iter().for_each(|field| self.seen.hash.text(field));
        visitor.visit_seq(self.elements(fields.len()))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note("enum")?;
        self.seen.hash.text(name);
        variants.iter().for_each(|variant| self.seen.hash.text(variant));
        self.seen.variants = self.seen.variants.max(variants.len());
        let variant = self.seen.turn % variants.len().max(1);
        self.seen.hash.number(variant);
        visitor.visit_enum(Variant { probe: self.below(), variant: variant as u32 })
    }
}

impl<'a> Probe<'a> {
    fn below(self) -> Probe<'a> {
        Probe { seen: self.seen, depth: self.depth + 1 }
    }

    fn elements(self, left: usize) -> Elements<'a> {
        Elements { seen: self.seen, depth: self.depth + 1, left }
    }
}

/// So many elements of a sequence, fields of a struct, or entries of a map.
struct Elements<'a> {
    seen: &'a mut Seen,
    depth: u32,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Probe { seen: self.seen, depth: self.depth }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        seed.deserialize(Probe { seen: self.seen, depth: self.depth })
    }
}

struct Variant<'a> {
    probe: Probe<'a>,
    variant: u32,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Stop;
    type Variant = Probe<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Probe<'a>), Stop> {
        let index = de::value::U32Deserializer::<Stop>::new(self.variant);
        Ok((seed.deserialize(index)?, self.probe))
    }
}

impl<'de> VariantAccess<'de> for Probe<'_> {
    type Error = Stop;

    fn unit_variant(mut self) -> Result<(), Stop> {
        self.note("unit variant")
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Stop> {
        self.note("newtype variant")?;
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.note("tuple variant")?;
        self.seen.hash.number(length);
        visitor.visit_seq(self.elements(length))
    }

    fn struct_variant<V: Visitor<'de>>(
        mut self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note("struct variant")?;
        fields.iter().for_each(|field| self.seen.hash.text(field));
        visitor.visit_seq(self.elements(fields.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    macro_rules! fingerprints {
        ($($body:tt)*) => {{
            #[derive(Deserialize)]
            #[expect(dead_code, reason = "only its form matters")]
            $($body)*
            of::<T>()
        }};
    }

    #[test]
    fn a_type_that_changed_has_another_fingerprint() {
        let all = [
            fingerprints!(
                struct T {
                    a: u32,
                    b: String,
                }
            ),
            fingerprints!(
                struct T {
                    a: u64,
                    b: String,
                }
            ),
            fingerprints!(
                struct T {
                    b: String,
                    a: u32,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    b: Option<String>,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    b: String,
                    c: u8,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    d: String,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    b: Vec<String>,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    b: BTreeMap<u8, String>,
                }
            ),
            fingerprints!(
                struct T {
                    a: u32,
                    b: BTreeMap<u8, u8>,
                }
            ),
            fingerprints!(
                struct T(u32, String);
            ),
            fingerprints!(
                enum T {
                    A(u32),
                    B { b: String },
                }
            ),
            fingerprints!(
                enum T {
                    A(u32),
                    B { b: Vec<u8> },
                }
            ),
            fingerprints!(
                enum T {
                    A(u32),
                    B { b: String },
                    C,
                }
            ),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "type {at} has the fingerprint of another");
        }
    }

    #[test]
    fn equal_types_have_equal_fingerprints_that_never_change() {
        let one = fingerprints!(
            struct T {
                a: u32,
                b: Option<(i8, String)>,
            }
        );
        let two = fingerprints!(
            struct T {
                a: u32,
                b: Option<(i8, String)>,
            }
        );
        assert_eq!(one, two);
        assert_eq!(of::<(u32, String)>(), 0x12f3_4d63_b2f9_3e4a, "states on disk would be refused");
    }

    #[test]
    fn types_of_one_form_are_told_apart_by_name() {
        mod least {
            #[derive(serde::Deserialize)]
            #[expect(dead_code, reason = "only its form matters")]
            pub(super) struct Min(i64);
        }
        #[derive(Deserialize)]
        #[serde(transparent)]
        #[expect(dead_code, reason = "only its form matters")]
        struct Max(i64);
        assert_ne!(of::<least::Min>(), of::<Max>());
    }

    #[test]
    fn a_type_that_contains_itself_has_a_fingerprint() {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only its form matters")]
        struct Tree {
            value: u32,
            children: Vec<Tree>,
            other: Option<Box<Tree>>,
        }
        assert_eq!(of::<Tree>(), of::<Tree>());
    }
}
