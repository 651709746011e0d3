//! Windows and joins compared with two engines that we did not write, on random input: Kafka Streams, in its
//! TopologyTestDriver, and Flink, in a cluster within one process. `tests/foreign/engines` runs both.
//!
//! What an engine answers is computed from scratch by one naive model, under the rules of that engine (`model.rs`).
//! So each difference between the engines is a rule, and is proven: every answer of every engine is what the model has
//! under its rules, some input has another answer under another rule, and where the rules agree the answers are the same.
//! `docs/semantics.md` has the list.
//!
//! Without Java or Maven the tests are skipped with a line on standard error; with `CI=true` they fail.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod answers;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

use answers::{ask, join_row, parsed, window_row};
use common::cases::seeds;
use model::{
    Case, Clock, Event, FLINK, JoinRow, Rules, STREAMS, SessionLateness, TIDEGATE, WindowRow, WindowRows, pairs,
    pairs_of_streams, sessions, windows,
};
use tidegate::source::memory::MemorySource;
use tidegate::stream::Aggregated;
use tidegate::stream::aggregate::Aggregate;
use tidegate::testing::{Captured, EpochScript, Script, TestRun};
use tidegate::{Closed, Flow, Open, Window};

/// Seeds by default.
const CASES: u64 = 60;

/// The outputs of a step of windows.
#[derive(Clone, Default)]
struct WindowOutputs {
    closed: Captured<WindowRow>,
    changed: Captured<WindowRow>,
    fired: Captured<WindowRow>,
    late: Captured<u32>,
}

impl WindowOutputs {
    fn write<A: Aggregate<Event, Value = Vec<u32>>>(&self, name: &str, rows: &Aggregated<'_, u8, Event, A>) {
        let closed =
            |row: Closed<u8, Vec<u32>>| (row.key, row.window.start.millis(), row.window.end.millis(), row.value);
        let open = |row: Open<u8, Vec<u32>>| (row.key, row.window.start.millis(), row.window.end.millis(), row.value);
        rows.on_close().map(closed).write(&format!("closed {name}"), &self.closed);
        rows.on_change().map(open).write(&format!("changed {name}"), &self.changed);
        rows.on_fire().map(open).write(&format!("fired {name}"), &self.fired);
        rows.late().map(|event| event.3).write(&format!("late {name}"), &self.late);
    }

    /// Returns the rows as [`WindowRows`] has them. The run has an epoch for each record.
    fn rows(&self) -> WindowRows {
        let with_ids = |mut row: WindowRow| {
            row.3.sort_unstable();
            row
        };
        let signed = |rows: &Captured<WindowRow>, positive: bool| -> Vec<WindowRow> {
            let epochs = rows.epochs().into_values().flatten();
            epochs.filter(|(_, diff)| (*diff > 0) == positive).map(|(row, _)| with_ids(row)).collect()
        };
        let sorted = |mut rows: Vec<WindowRow>| {
            rows.sort();
            rows
        };
        WindowRows {
            last: sorted(self.closed.all().into_iter().map(with_ids).collect()),
            updates: signed(&self.changed, true),
            fired: sorted(signed(&self.fired, true)),
            outdated: sorted(signed(&self.fired, false)),
            late: self.late.epochs().into_values().flatten().map(|(id, _)| id).collect(),
        }
    }
}

/// What Tidegate answers to a case.
#[derive(Clone, Default)]
struct Outputs {
    tumbling: WindowOutputs,
    sliding: WindowOutputs,
    sessions: WindowOutputs,
    left: Captured<JoinRow>,
}

fn source(partitions: Vec<Vec<Event>>, case: &Case) -> MemorySource<Event> {
    MemorySource::new(partitions, |event: &Event| event.2).out_of_order(millis(case.disorder))
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis as u64)
}

impl Outputs {
    /// Runs windows with an epoch for each record, and a join at any pace.
    fn of(case: &Case) -> Outputs {
        let outputs = Outputs::default();
        let side = |side: u8| case.events.iter().filter(|event| event.0 == side).copied().collect::<Vec<_>>();
        let partitions = case.partitions();
        let events = source((0..partitions as u8).map(side).collect(), case);
        let find = |acts| (0..partitions).fold(acts, EpochScript::find);
        let script = Script::new().epoch(find);
        let script = case.events.iter().fold(script, |script, event| script.epoch(|acts| acts.take(event.0.into(), 1)));
        let script = script.epoch(|acts| (0..partitions).fold(acts, EpochScript::end));
        let (own, of) = (outputs.clone(), case.clone());
        let query = move |flow: &Flow<'_>| {
            let events = flow.read("events", &events);
            let keyed = || events.clone().key_by(|event| event.1);
            let lateness = millis(of.lateness);
            let tumbling = keyed().window(Window::tumbling(millis(of.size))).allowed_lateness(lateness);
            own.tumbling.write("tumbling", &tumbling.aggregate("tumbling", |each| each.collect(|event| event.3)));
            let sliding = Window::sliding(millis(of.size), millis(of.slide));
            let sliding = keyed().window(sliding).allowed_lateness(lateness);
            own.sliding.write("sliding", &sliding.aggregate("sliding", |each| each.collect(|event| event.3)));
            let sessions = keyed().window(Window::session(millis(of.gap))).allowed_lateness(lateness);
            own.sessions.write("sessions", &sessions.aggregate("sessions", |each| each.collect(|event| event.3)));
        };
        TestRun::new().workers(2).script("events", script).run(query).unwrap();
        let (left, right) = (source(vec![side(0)], case), source(vec![side(1)], case));
        let (own, of) = (outputs.clone(), case.clone());
        let query = move |flow: &Flow<'_>| {
            let right = flow.read("right", &right).key_by(|event| event.1);
            flow.read("left", &left)
                .key_by(|event| event.1)
                .join_within("left join", right, millis(of.before), millis(of.after))
                .left_outer(|key, left, right| (*key, left.3, right.map(|right| right.3)))
                .results()
                .map_with_time(|at, (key, left, right)| (key, at.millis(), left, right))
                .write("pairs", &own.left);
        };
        TestRun::new().workers(2).seed(case.seed).run(query).unwrap();
        outputs
    }
}

/// The cases with what Tidegate answers to them, which the tests share.
fn answered() -> &'static [(Case, Outputs)] {
    static ANSWERED: OnceLock<Vec<(Case, Outputs)>> = OnceLock::new();
    ANSWERED.get_or_init(|| {
        let cases = seeds(CASES).into_iter().map(Case::random);
        cases.map(|case| (case.clone(), Outputs::of(&case))).collect()
    })
}

fn cases() -> Vec<Case> {
    answered().iter().map(|(case, _)| case.clone()).collect()
}

/// Fails with the seed unless both are the same.
fn same<T: PartialEq + Debug>(case: &Case, what: &str, found: &T, expected: &T) {
    assert_eq!(found, expected, "{what} of TIDEGATE_SEED={}: {case:?}", case.seed);
}

/// Returns the rows that are pairs.
fn inner(rows: &[JoinRow]) -> Vec<JoinRow> {
    rows.iter().filter(|row| row.3.is_some()).copied().collect()
}

/// Returns the rows of a join without the times of those that are no pairs, about which engines differ.
fn untimed(rows: &[JoinRow]) -> Vec<JoinRow> {
    rows.iter()
        .map(|row| if row.3.is_some() { *row } else { (row.0, 0, row.2, None) })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Fails unless some case has other windows or sessions if one of an engine's rules were as Tidegate has it.
fn matters(rule: &str, engine: Rules, without: Rules) {
    let differs = |case: &Case| {
        windows(case, engine, case.slide) != windows(case, without, case.slide)
            || sessions(case, engine) != sessions(case, without)
    };
    let count = cases().iter().filter(|case| differs(case)).count();
    assert!(count > 0 || answered().len() < CASES as usize, "{rule} makes no difference to any case");
}

#[test]
fn tidegate_follows_its_rules() {
    for (case, found) in answered() {
        same(case, "tumbling windows", &found.tumbling.rows(), &windows(case, TIDEGATE, case.size));
        same(case, "sliding windows", &found.sliding.rows(), &windows(case, TIDEGATE, case.slide));
        same(case, "sessions", &found.sessions.rows(), &sessions(case, TIDEGATE));
        let marks = case.marks(Clock::OwnPartition);
        let on_time = |at: usize| case.events[at].2 >= marks[at];
        same(case, "the left join", &found.left.all(), &pairs(case, on_time));
        // What was taken back is not there.
        for step in [&found.tumbling, &found.sliding, &found.sessions] {
            let valid = step.fired.all().into_iter().map(|(key, start, end, mut ids)| {
                ids.sort_unstable();
                (key, start, end, ids)
            });
            same(case, "what is valid in the end", &valid.collect(), &step.rows().last);
        }
    }
}

#[test]
fn kafka_streams_differs_by_the_rules_that_are_named() {
    let Some(answers) = ask("streams", &cases()) else { return };
    let (mut equal, mut withheld, mut tombstones) = ([0; 3], 0, 0);
    for (case, found) in answered() {
        let rows = &answers[&case.seed];
        let expected = windows(case, STREAMS, case.size);
        let updates: Vec<_> = rows["updates"].iter().map(|row| window_row(row)).collect();
        same(case, "updates", &updates, &expected.updates);
        // No window is told before stream time has reached its end and the grace, and there is no end of the input.
        let time = *case.marks(Clock::Fastest).last().unwrap();
        for (name, expected) in [("tumbling", &expected), ("sliding", &windows(case, STREAMS, case.slide))] {
            let (told, left): (Vec<_>, Vec<_>) =
                expected.last.iter().cloned().partition(|row| row.2 + case.lateness <= time);
            same(case, name, &parsed(&rows[name], window_row), &told);
            same(case, "windows that wait", &parsed(&rows[&format!("{name} at the end")], window_row), &left);
            withheld += left.len();
        }
        let mut of_sessions = BTreeMap::new();
        for row in &rows["sessions"] {
            let (key, start, last, ids) = window_row(row);
            if ids.is_empty() {
                tombstones += 1;
                assert!(
                    of_sessions.remove(&(key, start, last)).is_some(),
                    "a session that was not there is gone: {row}"
                );
            } else {
                of_sessions.insert((key, start, last), ids);
            }
        }
        // In its last millisecond a session is told, but not kept: one that follows in that millisecond takes its place.
        let expected_sessions =
            sessions(case, STREAMS).last.into_iter().map(|(key, start, end, ids)| ((key, start, end), ids));
        let of_sessions = of_sessions.into_iter().map(|((key, start, last), ids)| ((key, start, last + case.gap), ids));
        same(case, "sessions", &of_sessions.collect::<BTreeMap<_, _>>(), &expected_sessions.collect());
        let left = [&rows["left"][..], &rows["left at the end"]].concat();
        same(case, "the left join", &parsed(&left, join_row), &pairs_of_streams(case));
        same(case, "the join", &parsed(&rows["inner"], join_row), &inner(&pairs_of_streams(case)));

        // Where the rules agree, Tidegate answers the same.
        let tumbling = found.tumbling.rows();
        if case.partitions() == 1 {
            same(case, "changes of one partition", &tumbling.updates, &updates);
            same(case, "late records of one partition", &tumbling.late, &expected.late);
        }
        let own = found.sessions.rows().last;
        equal[0] += usize::from(tumbling.updates == updates && !updates.is_empty());
        equal[1] += usize::from(own == sessions(case, STREAMS).last && own.len() > 3);
        equal[2] +=
            usize::from(untimed(&found.left.all()) == untimed(&parsed(&left, join_row)) && case.partitions() > 1);
    }
    if answered().len() >= CASES as usize {
        assert!(equal.iter().all(|count| *count > 3), "too few cases are the same: {equal:?}");
        assert!(withheld > 0 && tombstones > 0);
        let joins = |case: &Case| {
            let marks = case.marks(Clock::OwnPartition);
            untimed(&pairs(case, |at| case.events[at].2 >= marks[at])) != untimed(&pairs_of_streams(case))
        };
        assert!(cases().iter().any(joins), "joins make no difference");
    }
    matters("stream time", STREAMS, Rules { clock: TIDEGATE.clock, ..STREAMS });
    matters("sessions that touch", STREAMS, Rules { touching_joins: false, ..STREAMS });
    matters("the lateness of sessions", STREAMS, Rules { session_lateness: SessionLateness::OwnTime, ..STREAMS });
    matters("the last millisecond", STREAMS, Rules { session_lateness: SessionLateness::Session, ..STREAMS });
    matters("windows before 1970", STREAMS, Rules { from_1970: false, ..STREAMS });
}

#[test]
fn flink_differs_by_the_rules_that_are_named() {
    let Some(answers) = ask("flink", &cases()) else { return };
    let (mut equal, mut outdated) = ([0; 3], 0);
    for (case, found) in answered() {
        let rows = &answers[&case.seed];
        let (tumbling, sliding, of_sessions) =
            (windows(case, FLINK, case.size), windows(case, FLINK, case.slide), sessions(case, FLINK));
        same(case, "tumbling windows", &parsed(&rows["tumbling"], window_row), &tumbling.fired);
        same(case, "sliding windows", &parsed(&rows["sliding"], window_row), &sliding.fired);
        same(case, "sessions", &parsed(&rows["sessions"], window_row), &of_sessions.fired);
        let late: Vec<u32> = rows["late"].iter().map(|id| id.parse().unwrap()).collect();
        same(case, "late records", &late, &tumbling.late);
        outdated += tumbling.outdated.len() + of_sessions.outdated.len();

        // Which late records a join drops depends on how its inputs are interleaved: only what is certain is compared.
        let marks = case.marks(Clock::Slowest);
        let joined: BTreeSet<_> = rows["inner"].iter().map(|row| join_row(row)).collect();
        assert_eq!(joined.len(), rows["inner"].len());
        let certain: BTreeSet<_> = inner(&pairs(case, |at| case.events[at].2 >= marks[at])).into_iter().collect();
        let possible: BTreeSet<_> = inner(&pairs(case, |_| true)).into_iter().collect();
        assert!(certain.is_subset(&joined) && joined.is_subset(&possible), "the join of TIDEGATE_SEED={}", case.seed);

        // Where the rules agree, Tidegate answers the same.
        let own = found.tumbling.rows();
        if case.partitions() == 1 {
            same(case, "windows of one partition", &found.sliding.rows().fired, &parsed(&rows["sliding"], window_row));
            same(case, "late records of one partition", &own.late, &late);
        }
        let marks = case.marks(Clock::OwnPartition);
        if inner(&pairs(case, |at| case.events[at].2 >= marks[at])).into_iter().eq(possible.iter().copied()) {
            same(case, "the join of records on time", &inner(&found.left.all()), &joined.into_iter().collect());
            equal[2] += usize::from(possible.len() > 3);
        }
        equal[0] += usize::from(own.fired == tumbling.fired);
        equal[1] += usize::from(found.sessions.rows().fired == of_sessions.fired && of_sessions.fired.len() > 3);
    }
    if answered().len() >= CASES as usize {
        assert!(equal.iter().all(|count| *count > 3), "too few cases are the same: {equal:?}");
        assert!(outdated > 0, "nothing that Flink has emitted is untrue in the end");
    }
    matters("the slowest partition's watermark", FLINK, Rules { clock: TIDEGATE.clock, ..FLINK });
    matters("sessions that touch", FLINK, Rules { touching_joins: false, ..FLINK });
    matters("the lateness of sessions", FLINK, Rules { session_lateness: SessionLateness::OwnTime, ..FLINK });
}
