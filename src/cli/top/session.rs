//! A job that `tidegate top` asks again and again, and the frames of its answers.

#[cfg(feature = "top")]
use std::time::SystemTime;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::job_access;
use super::frame::{Answers, FigureSample, TopFrame, frame};
use crate::error::{Error, Result};
use crate::status::Why;
use crate::view::http::HttpTarget;

/// Timeout of all requests of a frame.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The answer of `/history`, as far as it is needed.
#[derive(Debug, Deserialize)]
struct HistoryAnswer {
    started_ms: u64,
    samples: Vec<FigureSample>,
}

/// A job that is asked again and again.
pub(super) struct TopSession {
    target: HttpTarget,
    /// The last two samples of the process that answers, and the time of its start.
    samples: Vec<FigureSample>,
    started_ms: u64,
    /// The last frame.
    last: Option<TopFrame>,
    /// The time since which the job does not answer.
    #[cfg(feature = "top")]
    silent_since: Option<SystemTime>,
}

impl TopSession {
    pub(super) fn new(target: HttpTarget) -> Self {
        TopSession {
            target,
            samples: Vec::new(),
            started_ms: 0,
            last: None,
            #[cfg(feature = "top")]
            silent_since: None,
        }
    }

    /// Asks the job, and returns a frame of its answers.
    pub(super) fn ask(&mut self) -> Result<&TopFrame> {
        let until = Instant::now() + REQUEST_TIMEOUT;
        let since = self.samples.last().map_or(String::new(), |last| format!("?since={}", last.number));
        let mut history: HistoryAnswer = self.ask_json(&format!("/history{since}"), until)?;
        if history.started_ms != self.started_ms {
            // Another incarnation: its figures begin anew.
            self.samples.clear();
            history = self.ask_json("/history", until)?;
            self.started_ms = history.started_ms;
        }
        self.samples.append(&mut history.samples);
        self.samples.drain(..self.samples.len().saturating_sub(2));
        let status = self.ask_json("/status", until)?;
        let why = match self.ask_text("/why?format=json", until)? {
            (200, text) => Ok(parsed::<Why>(&self.target.address, &text)?),
            (_, refusal) => Err(refusal),
        };
        let answers = Answers { address: &self.target.address, status: &status, why: &why, samples: &self.samples };
        Ok(self.last.insert(frame(&answers)))
    }

    /// Returns the frame for a terminal: the last one with a notice, if the job does not answer.
    #[cfg(feature = "top")]
    pub(super) fn frame(&mut self) -> TopFrame {
        match self.ask().cloned() {
            Ok(frame) => {
                self.silent_since = None;
                frame
            }
            Err(error) => {
                let since = *self.silent_since.get_or_insert_with(SystemTime::now);
                let last = self.last.clone().unwrap_or_default();
                last.with_notice(&format!("not reachable since {}: {error}", super::frame::clock(since)))
            }
        }
    }

    fn ask_json<T: DeserializeOwned>(&self, path: &str, until: Instant) -> Result<T> {
        match self.ask_text(path, until)? {
            (200, text) => parsed(&self.target.address, &text),
            (status, text) => Err(Error::new(format!("the job answers {status} for {path}"))
                .at(&self.target.address)
                .because(text.trim())),
        }
    }

    /// Asks the job for a path: the only place that does.
    fn ask_text(&self, path: &str, until: Instant) -> Result<(u16, String)> {
        job_access::ask(&self.target, path, until.saturating_duration_since(Instant::now()))
    }
}

fn parsed<T: DeserializeOwned>(address: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|why| {
        let error = Error::new("the answer is not one of a job of this version").at(address).because(why);
        error.help("use the `tidegate` that the job was built with")
    })
}
