//! Refusals: the reasons for which a view does not answer, and the errors that they become.

use std::fmt;

use crate::error::Error;
use crate::time::Epoch;

/// The reasons for which a view does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The query has no view of that name.
    Unknown {
        /// The requested name.
        view: String,
        /// The names of the query's views.
        known: Vec<String>,
    },
    /// The view cannot answer yet.
    NotReady {
        /// The name of the view.
        view: String,
        /// The epoch up to which the view is complete, if there is one.
        reached: Option<Epoch>,
        /// The epoch that the view must reach: the last one in the journal when the job resumed. `None` if there was
        /// none; then it is the first epoch of this incarnation.
        needs: Option<Epoch>,
    },
    /// The views are in process 0, and this is another one.
    OtherProcess {
        /// The name of the view.
        view: String,
    },
    /// The job resumed after one of its streams had ended. Live rows of that stream's windows that never close are in
    /// no snapshot any more, so the views cannot be rebuilt.
    NotRecoverable {
        /// The name of the view.
        view: String,
    },
    /// The job ended before the view could answer.
    Over {
        /// The name of the view.
        view: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Error::from(self.clone()).fmt(f)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let at = |error: Error, view: &str| error.at(format!("view `{view}`"));
        match refusal {
            Refusal::Unknown { view, known } => {
                let known: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
                let known = if known.is_empty() {
                    "the query has no views".into()
                } else {
                    format!("there is {}", known.join(", "))
                };
                Error::usage(format!("there is no view `{view}`")).because(known)
            }
            Refusal::NotReady { view, reached, needs } => {
                let reached = reached
                    .map_or("no epoch is complete yet".into(), |reached| format!("it has reached epoch {reached}"));
                let why = match needs {
                    Some(needs) => {
                        format!("{reached}, and must reach epoch {needs}, the last in the journal when the job resumed")
                    }
                    None => reached,
                };
                at(Error::new("the view is not ready"), &view).because(why).help("ask again a little later")
            }
            Refusal::OtherProcess { view } => {
                at(Error::new("views are not in this process"), &view).help("ask process 0, which has them")
            }
            Refusal::NotRecoverable { view } => at(Error::new("the view cannot be what it was"), &view)
                .because("a stream was over before the job went on, and no snapshot has its live rows any more")
                .help("read what the job has written"),
            Refusal::Over { view } => at(Error::new("the job ended before the view was ready"), &view),
        }
    }
}
