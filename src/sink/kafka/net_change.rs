//! Net changes: what an epoch makes of the row of each key.
//!
//! Invariant: a key has at most one row at the end of an epoch, or the epoch is refused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::unique_key::two_rows;

/// The change of a key in an epoch: its row before, if that was retracted, and its row after, if it has one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NetChange<'a, D> {
    pub(super) before: Option<&'a D>,
    pub(super) after: Option<&'a D>,
}

/// Returns the change of each key whose rows an epoch changes, in the order of keys. `rows` are consolidated.
///
/// # Errors
/// Fails if a row has no key, or if a key has more than one row before or after the epoch.
pub(super) fn net_changes<'a, D>(
    rows: &'a [(D, isize)],
    key_of: &dyn Fn(&D) -> Option<Vec<u8>>,
) -> Result<BTreeMap<Vec<u8>, NetChange<'a, D>>> {
    let mut changes = BTreeMap::new();
    for (row, diff) in rows {
        let Some(key) = key_of(row) else {
            let error = Error::of(ErrorKind::SinkFailed, "a row of a collection has no key");
            return Err(error.help("give each row a key (kafka::Sink::key_by)"));
        };
        let mut entry = match changes.entry(key) {
            Entry::Vacant(entry) => entry.insert_entry(NetChange { before: None, after: None }),
            Entry::Occupied(entry) => entry,
        };
        let change = entry.get_mut();
        let side = if *diff < 0 { &mut change.before } else { &mut change.after };
        if side.replace(row).is_some() || diff.unsigned_abs() > 1 {
            return Err(two_rows(entry.key()));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, u32);

    /// The numbers before and after of each change.
    type Numbers = Vec<(Option<u32>, Option<u32>)>;

    fn changed(rows: &[(Row, isize)]) -> std::result::Result<Numbers, String> {
        let key_of = |row: &Row| (!row.0.is_empty()).then(|| row.0.as_bytes().to_vec());
        let changes = net_changes(rows, &key_of).map_err(|error| error.to_string())?;
        let number = |row: Option<&Row>| row.map(|row| row.1);
        Ok(changes.values().map(|change| (number(change.before), number(change.after))).collect())
    }

    #[test]
    fn a_key_has_one_change_of_all_its_rows() {
        let rows = [(("a", 1), -1), (("a", 2), 1), (("b", 1), 1), (("c", 1), -1)];
        assert_eq!(changed(&rows), Ok(vec![(Some(1), Some(2)), (None, Some(1)), (Some(1), None)]));
        assert_eq!(changed(&[]), Ok(vec![]));
    }

    #[test]
    fn two_rows_of_a_key_are_refused_with_the_key() {
        for rows in [
            vec![(("a", 1), 1), (("a", 2), 1)],
            vec![(("a", 1), 2)],
            vec![(("a", 1), -1), (("a", 2), -1), (("a", 3), 1)],
            vec![(("a", 1), -2)],
        ] {
            assert!(changed(&rows).unwrap_err().starts_with("the key \"a\" has more than one row"));
        }
        assert!(changed(&[(("", 1), 1)]).unwrap_err().starts_with("a row of a collection has no key"));
    }
}
