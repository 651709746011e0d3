//! The refusal of stored rows that cannot become rows of the program.

/// The reason why rows cannot be converted, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConversionRefusal {
    pub(super) why: String,
    pub(super) help: String,
}
