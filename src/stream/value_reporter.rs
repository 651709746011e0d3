//! Values of windows: the aggregate's value of a total, or the error that fails the job.

use std::rc::Rc;
use std::sync::Arc;

use crate::error::Result;
use crate::record::Record;
use crate::stream::JobFailure;
use crate::stream::aggregate::Aggregate;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;

/// Computes the values of windows' rows; a value that cannot be computed fails the job.
pub(crate) struct ValueReporter<A> {
    pub(crate) name: String,
    pub(crate) aggregate: Rc<A>,
    pub(crate) failure: Arc<JobFailure>,
}

impl<A> ValueReporter<A> {
    /// Returns the value of a window's total; `None` if it cannot be computed, which fails the job.
    pub(crate) fn value<D: 'static, S>(
        &self,
        window: Interval,
        key: &impl Record,
        total: &Counted<S>,
    ) -> Option<A::Value>
    where
        A: Aggregate<D, Sum = S>,
    {
        assert!(total.count > 0, "a row counts {} records", total.count);
        let value: Result<A::Value> = self.aggregate.value(total.count, &total.sum);
        let place = || format!("step `{}`, window ending {}, key {key:?}", self.name, window.end);
        value.map_err(|error| self.failure.set(error.at(place()))).ok()
    }
}
