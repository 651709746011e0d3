//! The `postcard` format for rows with the accumulators of aggregates that have names.
//!
//! Names change neither the bytes of rows nor how they are read; they are stored with the schema, and are part of the
//! fingerprint, so that rows with other names are rearranged before they are read.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::aggregate_names::{NameTree, names_of};
use super::postcard::{convert_rows, fingerprint_of, fit_rows};
use super::{AlignedBytes, BlockBuffer, BlockRows, Codec, CodecId, Postcard, RowEncoding, RowFit, Schema};
use crate::error::Error;

/// [`Postcard`] with the names of a step's aggregates.
#[derive(Clone, Debug)]
pub(crate) struct NamedPostcard {
    names: NameTree,
    /// `true` if rows are read whatever the names that are stored with them.
    any: bool,
}

impl NamedPostcard {
    /// A codec of rows whose aggregates have these names.
    pub(crate) fn new(names: NameTree) -> Self {
        NamedPostcard { names, any: false }
    }

    /// A codec that writes no names, and reads rows with any.
    pub(crate) fn of_any_names() -> Self {
        NamedPostcard { names: NameTree::None, any: true }
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Codec<T> for NamedPostcard {
    fn id(&self) -> CodecId {
        CodecId::POSTCARD
    }

    fn fingerprint(&self) -> u64 {
        fingerprint_of::<T>(&names_of(&Codec::<T>::schema(self)))
    }

    fn can_read(&self, written: &RowEncoding) -> Result<(), Error> {
        if self.any
            && written.codec == CodecId::POSTCARD
            && written.fingerprint == fingerprint_of::<T>(&names_of(&written.schema))
        {
            return Ok(());
        }
        match self.names {
            NameTree::None => Codec::<T>::can_read(&Postcard, written),
            _ => Codec::<T>::encoding(self).accepts(written),
        }
    }

    fn fit(&self, written: &RowEncoding) -> Result<RowFit, Error> {
        fit_rows::<T>(Codec::<T>::can_read(self, written), written, &self.names)
    }

    fn convert(&self, written: &RowEncoding, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> Result<(), String> {
        convert_rows(written, &self.names, (block.as_slice(), rows), out)
    }

    fn check(&self) -> Result<(), String> {
        Codec::<T>::check(&Postcard)
    }

    fn schema(&self) -> Schema {
        let mut schema = Schema::of::<T>();
        self.names.apply_to_rows(&mut schema);
        schema
    }

    fn encode(&self, row: &T, draft: &mut BlockBuffer) -> Result<(), String> {
        Postcard.encode(row, draft)
    }

    fn open(&self, block: AlignedBytes, rows: u32) -> Result<BlockRows<T>, String> {
        Postcard.open(block, rows)
    }

    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> Result<AlignedBytes, String> {
        Postcard.decode(block, rows, out)
    }
}
