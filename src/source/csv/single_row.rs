//! Rows that come one by one, without a header: messages of a topic.

use serde::de::DeserializeOwned;

use super::{Delimiter, Layout, Scratch, rows, shape};
use ::csv::ByteRecord;

/// Advice for record types whose fields have no order.
const NAME_THEM: &str = "the columns are not known from the record's type: name them with `.columns([…])`";

impl Layout {
    /// Returns the layout of rows whose columns are the fields of `T`, in their order.
    ///
    /// # Errors
    /// Fails if `T` is no struct of scalars whose fields have one name each.
    pub(crate) fn of_fields<T: DeserializeOwned>() -> Result<Layout, String> {
        let names = shape::field_names::<T>().ok_or(NAME_THEM)?;
        let header = names.iter().collect();
        match shape::order::<T>(&header) {
            Ok(Some(_)) => Ok(Layout { header, order: None }),
            Ok(None) | Err(_) => Err(NAME_THEM.to_owned()),
        }
    }

    /// Returns the layout of rows with these columns, in this order.
    ///
    /// # Errors
    /// Fails if `T` needs a column that is not named, or if a name stands twice.
    pub(crate) fn of_columns<T: DeserializeOwned>(
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Layout, String> {
        let mut header = ByteRecord::new();
        for name in names {
            header.push_field(name.as_ref().as_bytes());
        }
        shape::order::<T>(&header).map_err(|problem| format!("the list of columns {problem}"))?;
        Ok(Layout { header, order: None })
    }

    /// Decodes bytes that are one row, with fields between `delimiter`.
    ///
    /// # Errors
    /// Fails with the reason if they are no row of these columns, or several rows.
    pub(crate) fn decode_row<T: DeserializeOwned>(
        &self,
        scratch: &mut Scratch,
        delimiter: Delimiter,
        bytes: &[u8],
    ) -> Result<T, String> {
        let Scratch { splitter, record } = scratch;
        let start = rows::begin(bytes, 0).ok_or("there is no row in the message")?;
        let end = splitter.split(bytes, start, delimiter.byte());
        if rows::begin(bytes, end).is_some() {
            return Err("there is more than one row in the message".into());
        }
        if let Some((field, how)) = splitter.quote_fault() {
            return Err(self.misquoted(field, how));
        }
        let row = splitter.row(bytes, None);
        if row.len() != self.header.len() {
            let fields = if row.len() == 1 { "field" } else { "fields" };
            return Err(format!("it has {} {fields} where {} columns are named", row.len(), self.header.len()));
        }
        self.by_name(&row, record)
    }
}
