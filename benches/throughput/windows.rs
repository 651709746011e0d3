//! Windows other than tumbling, and programs written by hand for them: one thread, hash maps with a fast hasher,
//! partitions in turns.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use differential_dataflow::difference::Semigroup;
use foldhash::fast::FixedState;
use tidegate::Window;

use crate::Query;
use kit::{RowChecksum, RunFigures, timed};

use crate::data::{self, DISORDER, WINDOW};
use crate::programs::{RunParameters, Totals, check_of};

/// Length of a sliding window, in milliseconds.
const SIZE: i64 = 6 * WINDOW;
/// Gap between sessions, in milliseconds.
const GAP: i64 = 1_000;

/// Returns the windows of a query.
pub(crate) fn of(query: Query) -> Window {
    let millis = |millis: i64| Duration::from_millis(millis.unsigned_abs());
    match query {
        Query::Tumbling | Query::Drop | Query::Copy => Window::tumbling(millis(WINDOW)).any(),
        Query::Sliding => Window::sliding(millis(SIZE), millis(WINDOW)).any(),
        Query::Session => Window::session(millis(GAP)).any(),
    }
}

/// Passes all records to a program, partitions in turns, and the watermark after each turn; at the end, the greatest
/// time.
fn in_turns(partitions: &[Vec<data::Small>], mut record: impl FnMut(data::Small), mut watermark: impl FnMut(i64)) {
    let mut marks = vec![i64::MIN; partitions.len()];
    let longest = partitions.iter().map(Vec::len).max().unwrap_or(0);
    for from in (0..longest).step_by(1024) {
        for (partition, mark) in partitions.iter().zip(&mut marks) {
            let to = (from + 1024).min(partition.len());
            for &one in partition.get(from..to).unwrap_or_default() {
                record(one);
                *mark = (*mark).max(one.1 - DISORDER);
            }
        }
        watermark(marks.iter().copied().min().unwrap_or(i64::MIN));
    }
    watermark(i64::MAX);
}

type ByAccount = HashMap<u32, Totals, FixedState>;

/// Totals of ten seconds each, six of which are added up when a window closes.
pub(crate) fn sliding_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let partitions = setting.partitions();
    timed(|| {
        let panes = std::cell::RefCell::new(BTreeMap::<i64, ByAccount>::new());
        let (mut closed, mut check) = (None::<i64>, RowChecksum::default());
        let record = |(account, at, amount): data::Small| {
            let end = at - at.rem_euclid(WINDOW) + WINDOW;
            let mut panes = panes.borrow_mut();
            let pane = panes.entry(end).or_default();
            pane.entry(account).and_modify(|row| row.add(amount)).or_insert(Totals::of(amount));
        };
        in_turns(&partitions, record, |watermark| {
            let mut panes = panes.borrow_mut();
            let Some((&first, &last)) = panes.keys().next().zip(panes.keys().next_back()) else { return };
            let mut end = closed.map_or(first, |closed| closed + WINDOW);
            while end <= watermark && end < last + SIZE {
                let mut window = ByAccount::default();
                for pane in panes.range(end - SIZE + 1..=end).map(|(_, pane)| pane) {
                    for (account, row) in pane {
                        window.entry(*account).and_modify(|sum| sum.plus_equals(row)).or_insert(*row);
                    }
                }
                window.iter().for_each(|(account, row)| check.add(check_of(end, u64::from(*account), row)));
                panes.remove(&(end - SIZE + WINDOW));
                closed = Some(end);
                end += WINDOW;
            }
        });
        Ok(check)
    })
}

/// A session: its start, its end, its totals.
type Session = (i64, i64, Totals);

/// An account's open sessions in a short list; all accounts are scanned after every second of event time.
pub(crate) fn sessions_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let partitions = setting.partitions();
    timed(|| {
        let open = std::cell::RefCell::new(HashMap::<u32, Vec<Session>, FixedState>::default());
        let (mut looked, mut check) = (i64::MIN, RowChecksum::default());
        let record = |(account, at, amount): data::Small| {
            let mut open = open.borrow_mut();
            let sessions = open.entry(account).or_default();
            let mut joined = (at, at + GAP, Totals::of(amount));
            // Sessions are in order, and most records are near the last one.
            let mut place = sessions.len();
            while place > 0 && sessions[place - 1].1 > at {
                place -= 1;
                if sessions[place].0 < at + GAP {
                    let (start, end, totals) = sessions.remove(place);
                    joined.2.plus_equals(&totals);
                    (joined.0, joined.1) = (joined.0.min(start), joined.1.max(end));
                }
            }
            sessions.insert(place, joined);
        };
        in_turns(&partitions, record, |watermark| {
            if watermark < looked.saturating_add(GAP) {
                return;
            }
            looked = watermark;
            open.borrow_mut().retain(|account, sessions| {
                let over = sessions.iter().take_while(|session| session.1 <= watermark).count();
                for (_, end, row) in sessions.drain(..over) {
                    check.add(check_of(end, u64::from(*account), &row));
                }
                !sessions.is_empty()
            });
        });
        Ok(check)
    })
}
