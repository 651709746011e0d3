//! Tables of a circuit, and their rows of the next transaction.

use dbsp::utils::Tup2;
use dbsp::{DBData, OrdZSet, RootCircuit, Stream, ZSetHandle, ZWeight};

/// A table to which rows are added.
pub(crate) struct Table<R: DBData> {
    handle: ZSetHandle<R>,
    rows: Vec<Tup2<R, ZWeight>>,
}

impl<R: DBData> Table<R> {
    /// Adds a table to a circuit.
    pub(crate) fn create(circuit: &RootCircuit) -> (Self, Stream<RootCircuit, OrdZSet<R>>) {
        let (stream, handle) = circuit.add_input_zset();
        (Table { handle, rows: Vec::new() }, stream)
    }

    /// Adds a row.
    pub(crate) fn insert(&mut self, row: R) {
        self.rows.push(Tup2(row, 1));
    }

    /// Hands the rows over to the next transaction.
    pub(crate) fn flush(&mut self) {
        let rows = self.rows.len();
        self.handle.append(&mut self.rows);
        // As many are likely to come again.
        self.rows.reserve(rows);
    }
}
