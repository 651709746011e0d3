//! Iteration: a function that is applied to a collection again and again, until nothing changes or a number of times.
//!
//! The function is built once, in a scope whose timestamp is a pair of epoch and **round**. What it returns in a round is
//! its input in the next. Differential keeps the differences between rounds, so a change of an epoch costs what it
//! changes in each round, not a computation from scratch.
//!
//! * What the function returns is consolidated before the next round: changes that cancel do not circulate.
//! * Rounds have a **limit**: differences at it are not fed back, so no loop runs for ever. Those of [`Collection::iterate`]
//!   fail the job, as the fixed point was not reached; those of [`Collection::iterate_times`] are expected.
//!
//! Invariant: the epoch of a result is the epoch of the changes that caused it. A loop's frontier passes the epoch when
//! no difference circulates any more, so nobody downstream sees a round before the last.

use std::sync::Arc;

use differential_dataflow::operators::iterate::Variable;
use differential_dataflow::{AsCollection, VecCollection};
use timely::dataflow::Scope;
use timely::dataflow::operators::vec::Filter;
use timely::order::Product;

use super::Collection;
use crate::error::Error;
use crate::record::Record;

/// A collection inside an iteration: one of differential dataflow, with all of its operators, whose timestamp is a pair
/// of epoch and round.
pub type LoopCollection<'s, D> = VecCollection<'s, Product<u64, u64>, D, isize>;

/// The scope of an iteration.
#[derive(Clone, Debug)]
pub struct LoopScope<'s> {
    scope: Scope<'s, Product<u64, u64>>,
}

impl<'s> LoopScope<'s> {
    /// Brings a collection into the iteration, where it is the same in every round.
    pub fn enter<D: Record>(&self, collection: &Collection<'_, D>) -> LoopCollection<'s, D> {
        collection.check_recoverable();
        collection.inner.clone().enter(self.scope)
    }
}

impl<'f, D: Record> Collection<'f, D> {
    /// Applies `step` to the collection, to what it returned, and so on, until it returns what it was given: a **fixed
    /// point**. The result is kept up to date: it is the fixed point for the rows of each epoch.
    ///
    /// `step` is called once, to build the computation. Inside, collections are those of differential dataflow
    /// ([`LoopCollection`]); [`LoopScope::enter`] brings others in.
    ///
    /// `limit` is the greatest number of rounds that an epoch may take. If there is no fixed point by then, the job fails,
    /// at the same epoch whenever it is repeated. It guards against steps that never come to an end, such as those that
    /// add up counts; for steps that end by themselves, as the one below, a generous one costs nothing.
    ///
    /// # Reachability
    ///
    /// The pattern of most iterations: rows find further rows through a join, the old ones are kept, and `distinct` makes
    /// rows equal that are found on several ways. That each round keeps what the round before had makes it end.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (who, boss); Cid has no boss any more.
    /// let changes = [("Ann", Some("Bob")), ("Bob", Some("Cid")), ("Cid", Some("Dot")), ("Eve", Some("Dot")), ("Cid", None)];
    /// let changes = changes.map(|(who, boss)| (who.to_string(), boss.map(String::from)));
    /// let source = MemorySource::new(vec![changes.to_vec()], |_| 0);
    /// let bosses = Captured::new();
    /// let output = bosses.clone();
    /// TestRun::new().run(move |flow| {
    ///     let reports = flow.table("reports", &source);
    ///     let all = reports.clone().iterate(1_000, move |scope, known| {
    ///         let reports = scope.enter(&reports);
    ///         // (who, boss) and (boss, boss of boss) give (who, boss of boss).
    ///         let by_boss = known.clone().map(|(who, boss)| (boss, who));
    ///         by_boss.join_map(reports, |_boss, who, higher| (who.clone(), higher.clone())).concat(known).distinct()
    ///     });
    ///     all.filter(|(who, _)| who == "Ann").map(|(_, boss)| boss).write("bosses of Ann", &output);
    /// })?;
    /// assert_eq!(bosses.all(), ["Bob".to_string(), "Cid".to_string()]);
    /// # Ok(()) }
    /// ```
    pub fn iterate<S>(self, limit: u64, step: S) -> Collection<'f, D>
    where
        S: for<'s> FnOnce(&LoopScope<'s>, LoopCollection<'s, D>) -> LoopCollection<'s, D>,
    {
        let failure = Arc::clone(&self.flow.build.failure);
        let too_many = move |epoch: u64| {
            let what = format!("an iteration has no fixed point after {limit} rounds, at epoch {epoch}");
            let help = "raise its limit if it needs more rounds; otherwise make each round keep what the round before had, \
                        and end in `distinct`";
            failure.set(Error::new(what).help(help));
        };
        self.repeat(limit.max(1), step, too_many)
    }

    /// Applies `step` to the collection, to what it returned, and so on, `times` times in all, whether or not a fixed
    /// point is reached earlier: see [`Collection::iterate`].
    pub fn iterate_times<S>(self, times: u64, step: S) -> Collection<'f, D>
    where
        S: for<'s> FnOnce(&LoopScope<'s>, LoopCollection<'s, D>) -> LoopCollection<'s, D>,
    {
        match times {
            0 => self,
            // What round r returns is the result of r + 1 applications.
            times => self.repeat(times - 1, step, |_epoch| {}),
        }
    }

    /// Builds the loop. Differences of what `step` returns in round `limit` and later ones are passed on, but not fed
    /// back; `beyond` is called with the epoch of each.
    fn repeat<S>(self, limit: u64, step: S, beyond: impl Fn(u64) + 'static) -> Collection<'f, D>
    where
        S: for<'s> FnOnce(&LoopScope<'s>, LoopCollection<'s, D>) -> LoopCollection<'s, D>,
    {
        self.through(|rows| {
            let outer = rows.scope();
            outer.scoped("Iterate", |scope| {
                let (variable, now) = Variable::new_from(rows.enter(scope), Product::new(0, 1));
                let result = step(&LoopScope { scope }, now).consolidate();
                let fed_back = result.clone().inner.filter(move |(_, time, _)| {
                    let within = time.inner < limit;
                    if !within {
                        beyond(time.outer);
                    }
                    within
                });
                variable.set(fed_back.as_collection());
                result.leave(outer)
            })
        })
    }
}
