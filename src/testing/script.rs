//! Scripts: what each epoch of a run takes.

use std::collections::BTreeMap;

use crate::durable::journal::{Frame, PartitionProgress};
use crate::time::{Epoch, EventTime};

/// One epoch of a [`Script`].
#[derive(Clone, Debug, Default)]
pub struct EpochScript(Vec<(u32, ScriptStep)>);

#[derive(Clone, Copy, Debug)]
enum ScriptStep {
    Find,
    Take(u64),
    Idle,
    End,
}

impl EpochScript {
    /// Finds a partition. A partition that is first mentioned by another step is found by that step.
    #[must_use]
    pub fn find(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::Find));
        self
    }

    /// Takes the next `records` records of a partition; an idle partition becomes active.
    #[must_use]
    pub fn take(mut self, partition: u32, records: u64) -> Self {
        self.0.push((partition, ScriptStep::Take(records)));
        self
    }

    /// Makes the partition idle at the end of the epoch.
    #[must_use]
    pub fn idle(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::Idle));
        self
    }

    /// Ends the partition.
    #[must_use]
    pub fn end(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::End));
        self
    }
}

/// A script of what each epoch takes from the partitions of a source.
#[derive(Clone, Debug, Default)]
pub struct Script(Vec<EpochScript>);

impl Script {
    /// Creates a script without epochs.
    pub fn new() -> Self {
        Script::default()
    }

    /// Adds an epoch.
    #[must_use]
    pub fn epoch(mut self, acts: impl FnOnce(EpochScript) -> EpochScript) -> Self {
        self.0.push(acts(EpochScript::default()));
        self
    }

    /// Returns the script as the journal of a run that did the same. Its epochs are 2, 4, 6 …
    pub fn journal(&self, source: &str) -> Vec<Frame> {
        let mut now = BTreeMap::<u32, PartitionProgress>::new();
        let frames = self.0.iter().zip(1..).map(|(acts, number)| {
            let mut changed = BTreeMap::new();
            for &(partition, act) in &acts.0 {
                let new = !now.contains_key(&partition);
                let bound = now.entry(partition).or_insert_with(|| PartitionProgress {
                    source: source.to_owned(),
                    partition,
                    start_offset: None,
                    next_offset: 0,
                    watermark: EventTime::MIN,
                    idle: false,
                    end_offset: None,
                    ended: false,
                    check: None,
                    values: None,
                    topic: None,
                    rejected_for_now: Vec::new(),
                });
                match act {
                    ScriptStep::Find => {}
                    ScriptStep::Take(records) => {
                        bound.next_offset += records;
                        bound.idle &= records == 0;
                    }
                    ScriptStep::Idle => bound.idle = true,
                    ScriptStep::End => bound.ended = true,
                }
                let found: &mut bool = changed.entry(partition).or_insert(new);
                *found |= new;
            }
            let bounds = changed.into_iter().map(|(partition, new)| {
                let bound = now[&partition].clone();
                PartitionProgress { start_offset: new.then_some(0), ..bound }
            });
            Frame { epoch: Epoch(number * 2), progress: bounds.collect() }
        });
        frames.collect()
    }
}
