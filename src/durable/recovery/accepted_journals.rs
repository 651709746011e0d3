//! The parts of journals that count, and the frames in them.
//!
//! Invariants: of the journals of earlier incarnations exactly what the claim names counts; of its own incarnation's, all
//! up to a torn tail. A tail is torn only if no later frame, no later file and no claim proves that it was synced;
//! otherwise it is damage, and refused by the name of the file.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::{AcceptedFile, Claim, RESTORE_HINT};
use super::input::StateScan;
use crate::durable::journal::{FileId, Frame, JournalEntry, JournalFile, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

/// A torn tail: bytes that do not count, and on which nothing was built. They stay in the file; the claim leaves them
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TornTail {
    /// The file.
    pub file: FileId,
    /// Number of bytes that count.
    pub kept: u64,
    /// Number of bytes that do not.
    pub dropped: u64,
}

/// A journal file with the length of the part that counts.
pub(super) struct JournalPrefix<'a> {
    pub(super) file: &'a JournalFile,
    pub(super) length: u64,
}

impl JournalPrefix<'_> {
    pub(super) fn entries(&self) -> impl Iterator<Item = &JournalEntry> {
        self.file.entries.iter().filter(|entry| entry.end <= self.length)
    }

    pub(super) fn last(&self) -> Option<Epoch> {
        self.entries().map(|entry| entry.frame.epoch).max()
    }

    pub(super) fn accepted(&self) -> AcceptedFile {
        AcceptedFile { file: self.file.id, length: self.length, last: self.last() }
    }

    pub(super) fn torn(&self) -> Option<TornTail> {
        let dropped = self.file.file_length.checked_sub(self.length).filter(|dropped| *dropped > 0)?;
        Some(TornTail { file: self.file.id, kept: self.length, dropped })
    }
}

pub(super) fn damaged(file: FileId, why: String) -> Error {
    Error::of(ErrorKind::StateDamaged, "the journal is damaged")
        .at(format!("journal/{file}"))
        .because(why)
        .help(RESTORE_HINT)
}

pub(super) fn missing(file: FileId, why: String) -> Error {
    Error::of(ErrorKind::StateDamaged, "a file of the journal is missing")
        .at(format!("journal/{file}"))
        .because(why)
        .help(RESTORE_HINT)
}

/// Adds the journal files of earlier incarnations that the claim names. Fails if one that is needed is missing or
/// damaged.
pub(super) fn claimed_journals<'a>(
    survey: &'a StateScan,
    claim: &Claim,
    base: Option<Epoch>,
    taken: &mut Vec<JournalPrefix<'a>>,
) -> Result<()> {
    for named in &claim.journals {
        let file = match survey.journals.get(&named.file) {
            None if named.last <= base => continue,
            None => {
                let last = named.last.unwrap_or_default();
                return Err(missing(
                    named.file,
                    format!("incarnation {} counts it up to epoch {last}", claim.incarnation),
                ));
            }
            Some(Err(why)) => return Err(why.clone().help(RESTORE_HINT)),
            Some(Ok(file)) => file,
        };
        let new = JournalPrefix { file, length: named.length };
        if file.intact_length < named.length || new.last() != named.last {
            let Claim { incarnation, .. } = claim;
            let why = format!(
                "incarnation {incarnation} counts {} bytes of it, of which {} are good",
                named.length, file.intact_length
            );
            return Err(damaged(named.file, why));
        }
        taken.push(new);
    }
    Ok(())
}

/// Adds the journal files of the claim's own incarnation. Fails if one is missing, or damaged before its torn tail.
pub(super) fn own_journals<'a>(
    survey: &'a StateScan,
    claim: &Claim,
    base: Option<Epoch>,
    taken: &mut Vec<JournalPrefix<'a>>,
) -> Result<()> {
    let mut files = Vec::new();
    for (id, file) in &survey.journals {
        if id.incarnation == claim.incarnation {
            files.push(file.as_ref().map_err(|why| why.clone().help(RESTORE_HINT))?);
        }
    }
    let is_next = |file: &JournalFile, of: FileId| {
        file.id.process == of.process && file.id.number.checked_sub(1) == Some(of.number)
    };
    for (at, file) in files.iter().enumerate() {
        let next = files.get(at + 1).filter(|next| next.id.process == file.id.process);
        let told = next.filter(|next| is_next(next, file.id)).and_then(|next| next.header.as_ref()?.before);
        let known = file.synced_length.max(told.map_or(0, |told| told.length));
        let Some(header) = &file.header else {
            if known > 0 || next.is_some() {
                return Err(damaged(file.id, "its beginning is not as it was written".into()));
            }
            continue; // The file was being created.
        };
        if file.intact_length < known {
            let why = format!("{known} bytes of it were synced, of which {} are good", file.intact_length);
            return Err(damaged(file.id, why));
        }
        let follows = at.checked_sub(1).is_some_and(|before| is_next(file, files[before].id));
        match header.before {
            Some(_) if follows => {}
            Some(before) if file.id.number > 0 => {
                if before.last > base {
                    let why = format!("it goes up to epoch {}", before.last.unwrap_or_default());
                    return Err(missing(FileId { number: file.id.number - 1, ..file.id }, why));
                }
            }
            None if file.id.number == 0 => {}
            _ => return Err(damaged(file.id, "it does not follow the file before it".into())),
        }
        taken.push(JournalPrefix { file, length: told.map_or(file.intact_length, |told| told.length) });
    }
    Ok(())
}

/// Checks that every worker committed its epochs in order, and every incarnation after the epochs of those before it.
pub(super) fn check_epoch_order(taken: &[JournalPrefix<'_>]) -> Result<()> {
    let mut last_of = BTreeMap::new();
    let mut lives = BTreeMap::<u64, (Epoch, u32)>::new();
    for new in taken {
        let life = new.file.id.incarnation;
        let before = lives.range(..life).map(|(_, (last, _))| *last).max();
        let workers = new.file.header.as_ref().map_or(0, |header| header.workers);
        for JournalEntry { worker, frame: Frame { epoch, .. }, .. } in new.entries() {
            let last: Option<Epoch> = last_of.insert((life, *worker), *epoch);
            if last.max(before) >= Some(*epoch) || *worker >= workers {
                return Err(damaged(new.file.id, format!("worker {worker} has committed epoch {epoch} out of order")));
            }
            let known = lives.entry(life).or_insert((*epoch, workers));
            if known.1 != workers {
                return Err(damaged(new.file.id, format!("its incarnation has {} workers, not {workers}", known.1)));
            }
            known.0 = known.0.max(*epoch);
        }
    }
    Ok(())
}

/// `true` if every worker of an incarnation has committed its first epoch. Before that, nothing that the incarnation
/// itself committed can have been published, and none of it counts. Otherwise partitions that a worker had yet to find
/// would be found later, with an activation watermark that the partitions found before have raised, and records could
/// become late.
pub(super) fn first_epoch_is_whole(own: &[JournalPrefix<'_>], base: Option<Epoch>) -> bool {
    let headers = || own.iter().filter_map(|taken| taken.file.header.as_ref());
    let entries = || own.iter().flat_map(JournalPrefix::entries);
    let epochs = || entries().map(|entry| entry.frame.epoch);
    // A manifest includes the first epoch, and files that have it may have been removed.
    if epochs().chain(headers().filter_map(|header| header.before?.last)).any(|epoch| Some(epoch) <= base) {
        return true;
    }
    let Some(first) = epochs().min() else { return false };
    let bound: BTreeSet<_> =
        entries().filter(|entry| entry.frame.epoch == first).map(|entry| entry.worker as usize).collect();
    headers().all(|header| header.workers as usize == bound.len())
}

/// Returns the frames after the base, those of one epoch merged.
pub(super) fn merge(taken: &[JournalPrefix<'_>], base: Option<Epoch>) -> Vec<Frame> {
    let mut by_epoch = BTreeMap::<Epoch, Vec<PartitionProgress>>::new();
    for JournalEntry { frame, .. } in taken.iter().flat_map(JournalPrefix::entries) {
        if Some(frame.epoch) > base {
            by_epoch.entry(frame.epoch).or_default().extend(frame.progress.iter().cloned());
        }
    }
    let frames = by_epoch.into_iter().map(|(epoch, mut progress)| {
        progress.sort();
        Frame { epoch, progress }
    });
    frames.collect()
}
