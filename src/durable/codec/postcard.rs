//! Rows serialised with serde in the `postcard` format: compact, and readable by any program with the same types.
//!
//! A block is its rows, one after the other. The format does not describe itself; it is protected by the checksum of
//! the block and the fingerprint of the type, which is a hash of its shape as serde sees it. The type's module, crate
//! and compiler name are no part of the fingerprint, so types can be moved.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable::codec::conversion;
use crate::durable::codec::conversion_refusal::ConversionRefusal;
use crate::durable::codec::shape::shape_of;
use crate::durable::codec::{
    AlignedBytes, BlockBuffer, BlockRows, Codec, CodecId, NameTree, RowEncoding, RowFit, Schema, fingerprint,
};
use crate::error::{Error, ErrorKind};

/// The default codec, for all row types that serde can serialise.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Postcard;

impl<T: Serialize + DeserializeOwned + Send + 'static> Codec<T> for Postcard {
    fn id(&self) -> CodecId {
        CodecId::POSTCARD
    }

    fn fingerprint(&self) -> u64 {
        fingerprint_of::<T>("")
    }

    fn can_read(&self, written: &RowEncoding) -> Result<(), Error> {
        // Fingerprints of earlier versions included the type's name, which the file records.
        let earlier = || fingerprint([&*written.rows, &*shape_of::<T>().text]);
        if written.codec == CodecId::POSTCARD && written.fingerprint == earlier() {
            return Ok(());
        }
        Codec::<T>::encoding(self).accepts(written)
    }

    fn fit(&self, written: &RowEncoding) -> Result<RowFit, Error> {
        fit_rows::<T>(Codec::<T>::can_read(self, written), written, &NameTree::None)
    }

    fn convert(&self, written: &RowEncoding, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> Result<(), String> {
        convert_rows(written, &NameTree::None, (block.as_slice(), rows), out)
    }

    fn check(&self) -> Result<(), String> {
        if !shape_of::<T>().needs_self_describing {
            return Ok(());
        }
        let rows = std::any::type_name::<T>();
        Err(format!(
            "`{rows}` has a part that asks what comes next (an untagged enum, a `rust_decimal::Decimal`), which postcard cannot tell"
        ))
    }

    fn schema(&self) -> Schema {
        Schema::of::<T>()
    }

    fn encode(&self, row: &T, draft: &mut BlockBuffer) -> Result<(), String> {
        postcard::serialize_with_flavor(row, AppendFlavor(&mut draft.head)).map_err(|why| why.to_string())
    }

    fn open(&self, block: AlignedBytes, rows: u32) -> Result<BlockRows<T>, String> {
        let mut decoded = Vec::new();
        decode(block.as_slice(), rows, &mut decoded)?;
        Ok(BlockRows::decoded(decoded))
    }

    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> Result<AlignedBytes, String> {
        decode(block.as_slice(), rows, out)?;
        Ok(block)
    }
}

/// Returns the fingerprint of rows; `names` are those of their aggregates, empty if they have none.
pub(super) fn fingerprint_of<T: DeserializeOwned>(names: &str) -> u64 {
    let shape = shape_of::<T>();
    // The shape lacks everything behind a value that the type refuses; type names stand in for it.
    let types = if shape.is_whole { String::new() } else { stored_name(std::any::type_name::<T>()) };
    match names {
        "" => fingerprint(["shape", &shape.text, &types]),
        names => fingerprint(["shape", &shape.text, &types, names]),
    }
}

/// Checks how rows fit that can be read as they are, or not.
pub(super) fn fit_rows<T: DeserializeOwned>(
    can_read: Result<(), Error>,
    written: &RowEncoding,
    names: &NameTree,
) -> Result<RowFit, Error> {
    let Err(refused) = can_read else { return Ok(RowFit::Same) };
    if written.codec != CodecId::POSTCARD {
        return Err(refused);
    }
    conversion::check::<T>(&written.schema, names).map(RowFit::Converted).map_err(|ConversionRefusal { why, help }| {
        let refused = Error::of(ErrorKind::StateIncompatible, "the state has rows that do not fit the query");
        refused.because(why).help(help)
    })
}

/// Converts the rows of a block and appends them to `out`.
pub(super) fn convert_rows<T: DeserializeOwned>(
    written: &RowEncoding,
    names: &NameTree,
    (block, rows): (&[u8], u32),
    out: &mut Vec<T>,
) -> Result<(), String> {
    conversion::convert((&written.schema, names), block, rows, out)
}

/// Types whose rows are stored under an earlier name: their paths and that name.
const STORED_NAMES: [(&str, &str); 9] = [
    ("tidegate::stream::aggregate::distinct::DistinctValues", "Kinds"),
    ("tidegate::stream::aggregate::quantiles::QuantileHistogram", "Ranges"),
    ("tidegate::stream::aggregate::ranked::BottomValues", "Lowest"),
    ("tidegate::stream::aggregate::ranked::TopValues", "Highest"),
    ("tidegate::stream::count::CountState", "Run"),
    ("tidegate::stream::count::PartialWindow", "Filling"),
    ("tidegate::stream::panes::PaneRange", "Range"),
    ("tidegate::stream::state::KeyState", "Stated"),
    ("tidegate::stream::table::StampedValue", "Stamped"),
];

/// A type's name without module paths; renamed types have the name under which their rows are stored.
fn stored_name(name: &str) -> String {
    let renamed = |name: String, (path, stored): &(&str, &str)| name.replace(path, stored);
    without_paths(&STORED_NAMES.iter().fold(name.to_owned(), renamed))
}

/// A type's name without module paths.
fn without_paths(name: &str) -> String {
    let is_of_path = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | ':');
    let parts = name.split_inclusive(|letter| !is_of_path(letter));
    parts.map(|part| part.rsplit_once("::").map_or(part, |(_, last)| last)).collect()
}

fn decode<T: DeserializeOwned>(mut bytes: &[u8], rows: u32, out: &mut Vec<T>) -> Result<(), String> {
    // A row may take no bytes at all; it then needs no memory either.
    out.reserve((rows as usize).min(bytes.len()));
    for number in 0..rows {
        let (row, rest) = postcard::take_from_bytes(bytes)
            .map_err(|why| format!("row {number} of {rows} in the block cannot be read: {why}"))?;
        out.push(row);
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(format!("{} bytes are behind the last of the block's {rows} rows", bytes.len()));
    }
    Ok(())
}

/// Serialisation target that appends to a vector.
struct AppendFlavor<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for AppendFlavor<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Decimal, Origin, Real};
    use crate::time::EventTime;

    type Row = (i64, String, Option<(u8, i128)>, Vec<u16>);

    fn row(random: &mut fastrand::Rng) -> Row {
        let text = (0..random.usize(..9)).map(|_| random.char(..)).collect();
        let option = random.bool().then(|| (random.u8(..), random.i128(..)));
        (random.i64(..), text, option, (0..random.usize(..4)).map(|_| random.u16(..)).collect())
    }

    fn aligned(bytes: &[u8]) -> AlignedBytes {
        let mut block = AlignedBytes::zeroed(bytes.len());
        block.as_mut_slice().copy_from_slice(bytes);
        block
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rows: Vec<Row> = (0..random.usize(..50)).map(|_| row(&mut random)).collect();
            let mut draft = BlockBuffer::default();
            rows.iter().for_each(|row| Postcard.encode(row, &mut draft).unwrap());
            let (block, count) = (draft.take(), rows.len() as u32);
            assert_eq!(Codec::<Row>::open(&Postcard, aligned(&block), count).unwrap().as_slice(), rows, "seed {seed}");
            let mut read = vec![rows.first().cloned().unwrap_or_default()];
            Postcard.decode(aligned(&block), count, &mut read).unwrap();
            assert_eq!(read[1..], rows, "seed {seed}");
        }
    }

    #[test]
    fn all_that_records_may_hold_is_read_as_it_was_written() {
        type All = (EventTime, Real, Origin, (u128, char, bool, ()), std::collections::BTreeMap<u8, String>, Decimal);
        let map = [(1, "one".to_owned()), (2, String::new())].into();
        let row: All = (
            EventTime::MAX,
            Real::new(-0.5),
            Origin::default(),
            (u128::MAX, 'ß', true, ()),
            map,
            Decimal::new(-150, 2),
        );
        let mut draft = BlockBuffer::default();
        Postcard.encode(&row, &mut draft).unwrap();
        assert_eq!(Codec::<All>::check(&Postcard), Ok(()));
        assert_eq!(Codec::<All>::open(&Postcard, aligned(&draft.take()), 1).unwrap().as_slice(), [row]);
    }

    /// Two types of one name in different modules.
    mod here {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub(super) struct Row(pub(super) u8, pub(super) i64);
    }
    mod there {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub(super) struct Row(pub(super) u8, pub(super) i64);
        pub(super) mod changed {
            #[derive(serde::Serialize, serde::Deserialize)]
            pub(crate) struct Row(pub(crate) u8, pub(crate) u64);
        }
    }

    #[test]
    fn rows_of_a_type_that_has_moved_are_read() {
        let written = Codec::<here::Row>::encoding(&Postcard);
        assert_eq!(Codec::<there::Row>::can_read(&Postcard, &written), Ok(()));
        let refused = Codec::<there::changed::Row>::can_read(&Postcard, &written).unwrap_err().to_string();
        assert!(refused.contains("they were written as `tidegate::") && refused.contains("changed::Row`"), "{refused}");
    }

    #[test]
    fn rows_with_a_fingerprint_of_version_1_are_read_wherever_their_type_lies() {
        for name in ["tidegate::durable::codec::postcard::tests::here::Row", "another_crate::Row"] {
            let fingerprint = fingerprint([name, &shape_of::<here::Row>().text]);
            let written = RowEncoding { fingerprint, rows: name.into(), ..Codec::<here::Row>::encoding(&Postcard) };
            assert_eq!(Codec::<there::Row>::can_read(&Postcard, &written), Ok(()));
            assert!(Codec::<there::changed::Row>::can_read(&Postcard, &written).is_err());
            let of_another_codec = RowEncoding { codec: CodecId::ABOMONATION, ..written };
            assert!(Codec::<there::Row>::can_read(&Postcard, &of_another_codec).is_err());
        }
    }

    #[test]
    fn what_is_behind_a_refused_value_is_told_apart_by_names() {
        /// A type that refuses every value that the shape offers.
        #[derive(serde::Serialize)]
        struct Refuses;
        impl<'de> serde::Deserialize<'de> for Refuses {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let _value = u8::deserialize(from)?;
                Err(serde::de::Error::custom("never"))
            }
        }
        assert!(!shape_of::<(Refuses, u8)>().is_whole && shape_of::<Row>().is_whole);
        let (byte, word) = (Codec::<(Refuses, u8)>::encoding(&Postcard), Codec::<(Refuses, u16)>::encoding(&Postcard));
        assert!(Codec::<(Refuses, u8)>::can_read(&Postcard, &byte).is_ok());
        assert!(Codec::<(Refuses, u8)>::can_read(&Postcard, &word).is_err());
    }

    #[test]
    fn paths_are_no_part_of_names() {
        let name = "(alloc::vec::Vec<my_app::a::Key>, [u8; 4], core::option::Option<&'static str>)";
        assert_eq!(without_paths(name), "(Vec<Key>, [u8; 4], Option<&'static str>)");
    }

    #[test]
    fn what_could_not_be_read_back_is_told_beforehand() {
        let said = Codec::<(u8, Option<rust_decimal::Decimal>)>::check(&Postcard).unwrap_err();
        assert!(said.contains("rust_decimal") && said.contains("asks what comes next"), "{said}");
    }

    #[test]
    fn bytes_that_are_not_exactly_so_many_rows_are_refused() {
        let mut draft = BlockBuffer::default();
        (0..3u32).for_each(|row| Postcard.encode(&(row, "abc".to_owned()), &mut draft).unwrap());
        let block = draft.take();
        let open = |bytes: &[u8], rows| Codec::<(u32, String)>::open(&Postcard, aligned(bytes), rows).unwrap_err();
        assert_eq!(open(&block, 2), "5 bytes are behind the last of the block's 2 rows");
        assert!(open(&block, 4).starts_with("row 3 of 4 in the block cannot be read"));
        assert!(open(&block[..14], 3).starts_with("row 2 of 3 in the block cannot be read"));
        assert!(open(&[], u32::MAX).starts_with("row 0 of"));
    }

    #[test]
    fn no_bytes_make_it_panic_or_ask_for_much_memory() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            // Either result is fine; the test looks for panics.
            let _unverified = Codec::<Row>::open(&Postcard, aligned(&bytes), random.u32(..5));
        }
    }
}
