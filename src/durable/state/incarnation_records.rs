//! Files of incarnations in `lives`: their names, and how they are read.
//!
//! Invariant: a number that an incarnation has taken is greater than all before it, whatever was removed: the record of
//! the greatest is never removed.

use std::io;
use std::path::Path;

use crate::durable::StateId;
use crate::durable::disk::Disk;
use crate::durable::envelope::Envelope;
use crate::durable::recovery::Claim;
use crate::error::{Error, ErrorKind, Result};

pub(super) const INCARNATION_RECORD: Envelope =
    Envelope { magic: *b"TGALIFE", version: 1, name: "record of an incarnation" };
/// Version 1 differs only in the contents of a `StepFingerprint`.
pub(super) const CLAIM: Envelope = Envelope { magic: *b"TGCLAIM", version: 2, name: "claim" };

/// Number of incarnations before the current one whose records are kept, for users.
const RECORDS_KEPT: u64 = 16;

/// Parses the incarnation that a file in `lives` belongs to.
pub(super) fn incarnation_of_record(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".claim").unwrap_or(name);
    digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
}

/// `true` if a file in `lives` belongs to an incarnation whose record is removed once `current` has begun.
pub(super) fn is_obsolete_record(name: &str, current: u64) -> bool {
    incarnation_of_record(name).is_some_and(|incarnation| incarnation + RECORDS_KEPT < current)
}

/// Parses the incarnation that a file is the claim of; `None` for other files.
pub(super) fn incarnation_of_claim(name: &str) -> Option<u64> {
    incarnation_of_record(name).filter(|_| name.ends_with(".claim"))
}

/// The greatest incarnation number that was taken; 0 if none was.
pub(super) fn latest(disk: &dyn Disk, lives: &Path) -> io::Result<u64> {
    Ok(disk.list(lives)?.iter().filter_map(|name| incarnation_of_record(name)).max().unwrap_or(0))
}

pub(super) fn read_claim(state: StateId, number: u64, bytes: &[u8]) -> Result<Claim> {
    let place = format!("{number}.claim");
    let opened = CLAIM.open_any(bytes).map_err(|broken| CLAIM.error_for(broken, &place))?;
    let (mut claim, version): (Claim, u8) = opened;
    claim.query.upgrade(version);
    if claim.state != state || claim.incarnation != number {
        let why = format!("it is that of incarnation {} of the state {}", claim.incarnation, claim.state);
        return Err(Error::of(ErrorKind::StateDamaged, "a claim is not that of its incarnation")
            .at(place)
            .because(why));
    }
    Ok(claim)
}
