//! A source whose partitions are read in turns: while one is read, the others are idle; between turns, all are.
//!
//! A turn begins when everything read before is published, and so committed: a crash cannot lose a turn and keep a
//! later one. Whatever is read in a turn happened after everything of the turns before. So no record is late by the
//! activation watermark of a partition that woke, and the final results of windows are a function of the data, although
//! partitions become idle and wake all the time: they can be compared over crashes and numbers of workers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::journal::{Frame, PartitionProgress};
use tidegate::source::memory::MemorySource;
use tidegate::source::{
    PartitionHandle, PartitionTracker, Polled, Reader, RestoredPartition, Source, TimeOf, WorkerContext,
};
use tidegate::time::Epoch;

use super::cases::{Data, Deal};

/// A turn of a partition, up to record number `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub partition: u32,
    pub end: u64,
    /// Number of polls without records before it begins.
    pub pause: u32,
}

impl Data {
    /// Generates about `records` deals in two or three partitions that take turns, some late and one with an impossible
    /// time.
    pub fn in_turns(seed: u64, records: u32) -> Data {
        let mut random = Rng::with_seed(seed);
        let count = 2 + seed as usize % 2;
        let (mut partitions, mut turns) = (vec![Vec::new(); count], Vec::new());
        let mut id = 0;
        while id < records {
            let at = turns.len() % count;
            let first = id;
            for _ in 0..random.u32(1..25) {
                let behind = if random.u8(0..12) == 0 { 45 } else { random.i64(0..4) };
                let at_ms = (i64::from(id) * 4 - behind).max(i64::from(first) * 4);
                let at_ms = if id == records / 2 { i64::MAX } else { at_ms };
                partitions[at].push(Deal { id, key: random.u8(0..3), at_ms, amount: random.i64(0..100) });
                id += 1;
            }
            turns.push(Turn { partition: at as u32, end: partitions[at].len() as u64, pause: random.u32(0..8) });
        }
        Data { partitions, disorder: 5, turns }
    }
}

/// Counts the epochs of a journal in which every partition of a source is idle or has ended, and not all have ended.
pub fn epochs_of_silence(journal: &[Frame], source: &str) -> usize {
    let (mut now, mut count) = (std::collections::BTreeMap::new(), 0);
    for frame in journal {
        let mine = frame.progress.iter().filter(|bound| bound.source == source);
        now.extend(mine.map(|bound| (bound.partition, (bound.idle, bound.ended))));
        let silent = !now.is_empty() && now.values().all(|(idle, ended)| *idle || *ended);
        count += usize::from(silent && !now.values().all(|(_, ended)| *ended));
    }
    count
}

/// The deals of some data as a source: all at once, or in turns if it has any.
#[derive(Clone)]
pub struct Deals {
    records: MemorySource<Deal>,
    partitions: Arc<Vec<Vec<Deal>>>,
    turns: Arc<Vec<Turn>>,
    read: Arc<Mutex<ReadState>>,
}

/// The next offset of each partition, and the greatest epoch that has read anything: a worker in an earlier epoch
/// waits.
struct ReadState {
    next: Vec<u64>,
    last: Epoch,
}

impl Deals {
    pub fn new(data: &Data) -> Self {
        let records = MemorySource::new(data.partitions.clone(), |deal: &Deal| deal.at_ms);
        Deals {
            records: records.out_of_order(Duration::from_millis(data.disorder)),
            partitions: Arc::new(data.partitions.clone()),
            turns: Arc::new(data.turns.clone()),
            read: Arc::new(Mutex::new(ReadState { next: vec![0; data.partitions.len()], last: Epoch(0) })),
        }
    }
}

impl Source for Deals {
    type Item = Deal;

    fn describe(&self) -> String {
        self.records.describe()
    }

    fn event_time(&self) -> TimeOf<Deal> {
        self.records.event_time()
    }

    fn out_of_order(&self) -> Option<Duration> {
        Source::out_of_order(&self.records)
    }

    fn open(&self, at: &WorkerContext) -> tidegate::Result<Box<dyn Reader<Deal>>> {
        if self.turns.is_empty() {
            return self.records.open(at);
        }
        let mine = (0..self.partitions.len() as u32).filter(|id| at.owns(*id)).map(|id| (id, None)).collect();
        Ok(Box::new(TurnReader {
            of: self.clone(),
            mine,
            pauses: self.turns.iter().map(|turn| turn.pause).collect(),
            shown: Epoch(0),
        }))
    }

    fn has_new_data(&self, at: &WorkerContext, bounds: &[PartitionProgress]) -> tidegate::Result<Option<String>> {
        self.records.has_new_data(at, bounds)
    }
}

struct TurnReader {
    of: Deals,
    mine: Vec<(u32, Option<PartitionHandle>)>,
    /// Remaining pause of each turn.
    pauses: Vec<u32>,
    /// Epoch through which all sinks have published.
    shown: Epoch,
}

impl TurnReader {
    fn length(&self, id: u32) -> u64 {
        self.of.partitions[id as usize].len() as u64
    }

    fn has_read(&self, epoch: Epoch, id: u32, next: u64) {
        let read = &mut *self.of.read.lock().unwrap();
        if read.next[id as usize] < next {
            (read.next[id as usize], read.last) = (next, read.last.max(epoch));
        }
    }

    /// Returns the turn in which a partition that was read up to `next` may be read now, if any.
    fn turn(&mut self, epoch: Epoch, id: u32, next: u64) -> Option<Turn> {
        let at = self.of.turns.iter().position(|turn| turn.partition == id && turn.end > next)?;
        let read = self.of.read.lock().unwrap();
        let is_read = |turn: &Turn| read.next[turn.partition as usize] >= turn.end;
        if epoch < read.last || !self.of.turns[..at].iter().all(is_read) {
            return None;
        }
        let begun =
            self.of.turns[..at].iter().rev().find(|turn| turn.partition == id).map_or(0, |turn| turn.end) < next;
        if !begun && self.shown < read.last {
            return None;
        }
        if !begun && self.pauses[at] > 0 {
            self.pauses[at] -= 1;
            return None;
        }
        Some(self.of.turns[at])
    }

    fn take(
        &self,
        epoch: Epoch,
        (id, slot): (u32, PartitionHandle),
        end: u64,
        intake: &mut PartitionTracker<Deal>,
    ) -> tidegate::Result<()> {
        let from = intake.next(slot);
        intake.accept_all(epoch, slot, from, &self.of.partitions[id as usize][from as usize..end as usize])?;
        self.has_read(epoch, id, end);
        Ok(())
    }
}

impl Reader<Deal> for TurnReader {
    fn notify_published(&mut self, epoch: Epoch) {
        self.shown = epoch;
    }

    fn resume(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        intake: &mut PartitionTracker<Deal>,
    ) -> tidegate::Result<()> {
        intake.begin(epoch);
        for at in 0..self.mine.len() {
            let id = self.mine[at].0;
            let Some(place) = places.iter().find(|place| place.progress.partition == id) else { continue };
            self.mine[at].1 = Some(intake.resume(epoch, place));
            self.has_read(epoch, id, place.progress.next_offset);
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<Deal>) -> tidegate::Result<Polled> {
        intake.all_found();
        for at in 0..self.mine.len() {
            let (id, slot) = self.mine[at];
            let slot = slot.unwrap_or_else(|| intake.track(epoch, id, 0, Some(self.length(id))));
            self.mine[at].1 = Some(slot);
            if intake.ended(slot) {
                continue;
            }
            match self.turn(epoch, id, intake.next(slot)) {
                None => intake.set_idle(slot),
                Some(turn) => {
                    let end = turn.end.min(intake.next(slot) + budget as u64);
                    self.take(epoch, (id, slot), end, intake)?;
                }
            }
        }
        Ok(Polled::new(epoch, true))
    }

    fn replay(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        intake: &mut PartitionTracker<Deal>,
    ) -> tidegate::Result<bool> {
        intake.all_found();
        intake.begin(epoch);
        for bound in bounds {
            let id = bound.partition;
            let Some(at) = self.mine.iter().position(|(mine, _)| *mine == id) else { continue };
            let find = || intake.track(epoch, id, bound.start_offset.unwrap_or(0), bound.end_offset);
            let slot = self.mine[at].1.unwrap_or_else(find);
            self.mine[at].1 = Some(slot);
            self.take(epoch, (id, slot), bound.next_offset, intake)?;
            intake.replay_flags(slot, bound);
        }
        Ok(true)
    }
}
