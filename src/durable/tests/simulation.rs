//! Simulation of incarnations of a state, one after another and sometimes two at once, on a disk that fails and loses
//! power at random: nothing that may have been published is lost, and no epoch is committed twice with different input.
//!
//! A worker of an incarnation commits epochs of the partitions that it reads; an epoch is complete when every worker
//! has passed it and its input is synced. The sink publishes complete epochs of the incarnation that fenced it last.
//! Everything runs on one thread, so that a seed can be replayed.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::*;
use crate::durable::journal::{FileJournal, Journal, JournalWriter};

const PARTITIONS: u32 = 4;

/// Committed input by epoch.
type History = BTreeMap<Epoch, Vec<PartitionProgress>>;

/// The world outside of all incarnations.
struct World {
    disk: CrashingDisk,
    random: Rng,
    /// The incarnation that fenced the sink last.
    fence: u64,
    shown: Option<Epoch>,
    /// Input that may have been published, or was replayed by an incarnation that could publish it.
    settled: History,
    /// Counts events by name, to prove that the simulation covers them.
    seen: BTreeMap<&'static str, usize>,
}

struct ModelProcess {
    journal: FileJournal,
    writer: JournalWriter,
    /// `true` if it has frames to write.
    behind: bool,
}

struct ModelWorker {
    process: usize,
    /// Number of proposed epochs that it has passed.
    past: usize,
    /// The epochs for which it wrote a frame.
    bound: Vec<Epoch>,
}

/// An incarnation that has a claim.
struct Running {
    state: StateDir,
    claim: Claim,
    processes: Vec<ModelProcess>,
    workers: Vec<ModelWorker>,
    proposed: Vec<Epoch>,
    /// The input that its workers have committed.
    bound: History,
    /// The current offsets of the partitions.
    next: BTreeMap<u32, u64>,
    /// The offsets at the start of the incarnation.
    start: BTreeMap<u32, u64>,
    /// Number of proposed epochs that are complete.
    complete: usize,
}

fn positions<'a>(of: impl Iterator<Item = &'a PartitionProgress>) -> BTreeMap<u32, u64> {
    let mut positions = BTreeMap::new();
    for bound in of {
        let next = positions.entry(bound.partition).or_default();
        *next = bound.next_offset.max(*next);
    }
    positions
}

impl World {
    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Starts an incarnation, and checks that nothing that may have been published is lost.
    fn recover(&mut self) -> Result<Running> {
        let state = StateDir::open(Arc::new(self.disk.clone()), "state", true)?;
        let incarnation = state.begin_incarnation()?;
        self.fence = self.fence.max(incarnation);
        let scan = state.scan_and_sync()?;
        let decision = decided(&scan, incarnation, self.shown.map(|shown| shown.0)).expect("it can go on");
        self.check(&decision);
        let last = scan.claims.keys().next_back();
        let bound = |file: &JournalFile| Some(&file.id.incarnation) == last && !file.entries.is_empty();
        if scan.journals.values().flatten().any(bound)
            && !decision.accepted.iter().any(|accepted| Some(&accepted.file.incarnation) == last)
        {
            self.saw("did not count a life");
        }
        let claim = state.claim(&decision, &print())?.expect("nobody else begins");
        let others = claimed(&state.scan_and_sync()?, &state.claim_of(incarnation)?, &DeclaredChanges::default())?;
        assert_eq!((&others.0, &others.1), (&decision.base, &decision.replay));

        for frame in &decision.replay {
            self.settled.insert(frame.epoch, frame.progress.clone());
        }
        let base = decision.base.iter().flat_map(|base| &base.sources[0].progress);
        let start = positions(base.chain(decision.replay.iter().flat_map(|frame| &frame.progress)));
        let (processes, each) = (self.random.usize(1..=2), self.random.usize(1..=2));
        let mut running = Running {
            state,
            claim,
            processes: Vec::new(),
            workers: Vec::new(),
            proposed: vec![decision.last_epoch.next_at(0)],
            bound: History::new(),
            next: start.clone(),
            start,
            complete: 0,
        };
        for process in 0..processes {
            let file_limit = self.random.u64(1..600);
            let place = running.state.journal_config(&running.claim, process as u32, processes * each);
            let (journal, writer) = FileJournal::prepare(JournalConfig { file_limit, ..place })?;
            running.processes.push(ModelProcess { journal, writer, behind: false });
            running.workers.extend((0..each).map(|_| ModelWorker { process, past: 0, bound: Vec::new() }));
        }
        state_collects(&running, &decision.obsolete)?;
        Ok(running)
    }

    fn check(&mut self, decision: &RecoveryDecision) {
        let base = decision.base.as_ref().map(|base| base.epoch);
        for (epoch, bounds) in self.settled.iter().filter(|(epoch, _)| Some(**epoch) > base) {
            let replayed = decision.replay.iter().find(|frame| frame.epoch == *epoch);
            assert_eq!(replayed.map(|frame| &frame.progress), Some(bounds), "epoch {epoch} is not as it was");
        }
        if let Some(base) = &decision.base {
            let before = self.settled.iter().filter(|(epoch, _)| **epoch <= base.epoch);
            let expected = positions(before.flat_map(|(_, bounds)| bounds));
            assert_eq!(positions(base.sources[0].progress.iter()), expected, "the manifest of epoch {}", base.epoch);
            self.saw("went on from a manifest");
        }
        let last = self.settled.keys().next_back().copied().max(self.shown);
        assert!(Some(decision.last_epoch) >= last);
        if !decision.replay.is_empty() {
            self.saw("replayed");
        }
        if !decision.torn.is_empty() {
            self.saw("cut a torn tail");
        }
    }

    /// Has a worker pass its epoch, and append the epoch's input to the journal.
    fn commit_epoch(&mut self, life: &mut Running) -> Result<()> {
        let workers = life.workers.len();
        let index = self.random.usize(..workers);
        let worker = &mut life.workers[index];
        if worker.past == life.proposed.len() {
            let last = life.proposed[worker.past - 1];
            life.proposed.push(Epoch(last.0 + 2 * self.random.u64(1..4)));
        }
        let epoch = life.proposed[worker.past];
        let mut progress = Vec::new();
        for partition in (0..PARTITIONS).filter(|partition| *partition as usize % workers == index) {
            if self.random.u8(..3) == 0 {
                let next = life.next.entry(partition).or_default();
                *next += self.random.u64(1..5);
                progress.push(bound(partition, *next));
            }
        }
        worker.past += 1;
        if !progress.is_empty() || worker.past == 1 {
            worker.bound.push(epoch);
            let all = life.bound.entry(epoch).or_default();
            all.extend(progress.iter().cloned());
            all.sort();
            let process = &mut life.processes[worker.process];
            process.behind = true;
            process.journal.append(index, Frame { epoch, progress })?;
        }
        Ok(())
    }

    /// Has a process write its journal.
    fn sync(&mut self, life: &mut Running) -> Result<()> {
        let index = self.random.usize(..life.processes.len());
        let process = &mut life.processes[index];
        if std::mem::take(&mut process.behind) {
            process.writer.step();
        }
        process.journal.check()
    }

    /// Settles complete epochs if the incarnation may publish them, and publishes some.
    fn show(&mut self, life: &mut Running) {
        let is_complete = |life: &Running, epoch: Epoch| {
            life.workers.iter().enumerate().all(|(index, worker)| {
                let needed = worker.bound.iter().rfind(|bound| **bound <= epoch);
                let synced = life.processes[worker.process].journal.synced(index);
                worker.past > life.complete && synced.as_ref() >= needed
            })
        };
        while life.proposed.get(life.complete).is_some_and(|epoch| is_complete(life, *epoch)) {
            let epoch = life.proposed[life.complete];
            life.complete += 1;
            if self.fence > life.claim.incarnation {
                self.saw("was fenced");
                continue;
            }
            let bounds = life.bound.get(&epoch).cloned().unwrap_or_default();
            if life.bound.contains_key(&epoch) {
                self.settled.insert(epoch, bounds);
                if self.random.bool() {
                    self.shown = Some(Epoch(epoch.0 + self.random.u64(..2)));
                    self.saw("showed");
                }
            }
        }
    }

    /// Has the incarnation write a manifest at the last complete epoch.
    fn snapshot(&mut self, life: &mut Running) -> Result<()> {
        let Some(epoch) = life.complete.checked_sub(1).map(|last| life.proposed[last]) else { return Ok(()) };
        let mut manifest = manifest(life.state.id(), life.claim.incarnation, epoch.0);
        let start = life.start.iter().map(|(partition, next)| bound(*partition, *next)).collect::<Vec<_>>();
        let bound_then = life.bound.range(..=epoch).flat_map(|(_, bounds)| bounds);
        let at = positions(start.iter().chain(bound_then));
        manifest.sources[0].progress = at.iter().map(|(partition, next)| bound(*partition, *next)).collect();
        let published = self.shown.filter(|_| self.fence == life.claim.incarnation);
        manifest.sinks = vec![SinkState { name: "out".into(), published, on_change: false }];
        let current = life.state.still_current(life.claim.incarnation);
        manifest.write(&**life.state.disk(), &life.state.manifests(), &current)?;
        self.saw("wrote a manifest");
        Ok(())
    }

    fn collect(&mut self, life: &mut Running) -> Result<()> {
        let kept = life.state.collect_garbage(&life.claim, self.random.usize(1..=3), &[])?;
        if let Some(oldest) = kept.oldest {
            for process in &mut life.processes {
                process.journal.truncate(oldest);
                process.writer.step();
                process.behind = false;
                process.journal.check()?;
            }
        }
        if kept.removed > 0 {
            self.saw("removed files");
        }
        Ok(())
    }

    fn step(&mut self, life: &mut Running) -> Result<()> {
        match self.random.u8(..20) {
            0 => self.snapshot(life)?,
            1 => self.collect(life)?,
            2..9 => self.sync(life)?,
            _ => self.commit_epoch(life)?,
        }
        self.show(life);
        Ok(())
    }
}

fn state_collects(life: &Running, obsolete: &[String]) -> Result<()> {
    life.state.collect_garbage(&life.claim, 3, obsolete).map(drop)
}

fn simulate(seed: u64, seen: &mut BTreeMap<&'static str, usize>) {
    let mut world = World {
        disk: CrashingDisk::new(),
        random: Rng::with_seed(seed),
        fence: 0,
        shown: None,
        settled: History::new(),
        seen: std::mem::take(seen),
    };
    let mut lives: Vec<Running> = Vec::new();
    for _ in 0..world.random.usize(3..15) {
        if world.random.u8(..3) == 0 {
            let acts = world.random.usize(..80);
            fail_after(&world.disk, acts);
        }
        let mut ended = false;
        match world.recover() {
            Ok(life) => lives.push(life),
            Err(_) => {
                world.saw("failed to begin");
                ended = true;
            }
        }
        for _ in 0..world.random.usize(..150) {
            if lives.is_empty() || ended {
                break;
            }
            let index = world.random.usize(..lives.len());
            let mut life = lives.swap_remove(index);
            match world.step(&mut life) {
                Ok(()) => lives.push(life),
                Err(_) if life.claim.incarnation < world.fence => world.saw("was overtaken"),
                Err(_) => {
                    world.saw("failed");
                    ended = true;
                }
            }
        }
        // Sometimes the incarnation runs on beside the next one.
        if ended || world.random.u8(..4) > 0 {
            lives.clear();
            let (power, seed) = (world.random.bool(), world.random.u64(..));
            world.disk = crashed(&world.disk, power, seed);
        }
        world.disk.fail_from(usize::MAX);
    }
    lives.clear();
    world.disk = world.disk.survivors(world.random.u64(..));
    world.recover().expect("the disk is good");
    *seen = world.seen;
}

#[test]
fn whatever_happens_what_could_have_been_shown_is_not_lost() {
    let mut seen = BTreeMap::new();
    for seed in 0..300 {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| simulate(seed, &mut seen)));
        assert!(caught.is_ok(), "seed {seed}");
    }
    for what in [
        "showed",
        "replayed",
        "went on from a manifest",
        "wrote a manifest",
        "removed files",
        "cut a torn tail",
        "did not count a life",
        "was fenced",
        "was overtaken",
        "failed",
        "failed to begin",
    ] {
        assert!(seen.get(what) > Some(&20), "{what}: {seen:?}");
    }
}
