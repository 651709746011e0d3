//! Views over HTTP.
//!
//! | path | answer |
//! | --- | --- |
//! | `/views` | the views, and the epoch that each has reached |
//! | `/views/NAME` | all its rows at one epoch: `{"view": NAME, "epoch": E, "rows": […]}` |
//! | `/views/NAME?key=KEY` | the rows of a key |
//! | `/views/NAME/changes` | server-sent events: one `state`, then `changes` for each epoch that has any, `progress` at intervals, and an `end` with its reason; `key=KEY` as before. A client that accepts `text/event-stream` gets them at `/views/NAME` too |
//!
//! A row is an object as in NDJSON files, with a last field `diff`: the number of copies of the row, or the change of
//! that number.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{Error, Result};
use crate::view::http::{AnswerKind, Events, HttpReply, HttpRequest, PIECE, ServerEvent, TextPieces, end_event};
use crate::view::{Answer, Refusal, Subscription, ViewRows, ViewUpdate, Views};

/// Answers a request for views; `path` is the part of the URL after `/views`.
pub(super) fn answer(views: &Arc<Views>, path: &str, asked: &HttpRequest) -> HttpReply {
    let name = path.trim_matches('/');
    if name.is_empty() {
        return list(views);
    }
    let (views, key) = (Arc::clone(views), asked.parameter("key").map(str::to_owned));
    let (name, changes) = match name.strip_suffix("/changes") {
        Some(name) => (name.to_owned(), true),
        None => (name.to_owned(), asked.events),
    };
    if changes {
        return HttpReply::later(AnswerKind::Events, move || match views.subscribe(&name, key.as_deref()) {
            Ok(subscription) => HttpReply::Events(Box::new(Changes(subscription))),
            Err(refusal) => refused(&refusal),
        });
    }
    HttpReply::later(AnswerKind::Rows, move || match views.get(&name, key.as_deref()) {
        Err(refusal) => refused(&refusal),
        Ok(answer) => match AnswerJson::new("", answer, "\n") {
            Ok(text) => HttpReply::Pieces("application/json", Box::new(text)),
            Err(error) => HttpReply::text(500, error),
        },
    })
}

fn list(views: &Views) -> HttpReply {
    let all = views.status().into_iter().map(|status| {
        let reached = status.reached.map(|epoch| epoch.0);
        serde_json::json!({"view": status.view, "ready": status.ready, "epoch": reached, "rows": status.rows})
    });
    HttpReply::json(200, &serde_json::Value::from_iter(all))
}

/// Builds the answer of a view that refuses; the status tells whether a retry makes sense.
fn refused(refusal: &Refusal) -> HttpReply {
    let status = match refusal {
        Refusal::Unknown { .. } => 404,
        Refusal::NotReady { .. } => 503,
        Refusal::OtherProcess { .. } => 409,
        Refusal::NotRecoverable { .. } | Refusal::Over { .. } => 410,
    };
    HttpReply::text(status, refusal)
}

/// An answer as JSON, made in pieces on demand.
struct AnswerJson {
    /// Text that was made and not returned yet.
    made: Vec<u8>,
    rows: Option<ViewRows>,
    is_first: bool,
    after: &'static str,
}

impl AnswerJson {
    /// Creates the JSON of an answer, enclosed in `before` and `after`.
    fn new(before: &str, answer: Answer, after: &'static str) -> Result<Self> {
        let Answer { view, epoch, rows } = answer;
        let view = serde_json::to_string(&view).map_err(|why| Error::new("cannot write the answer").because(why))?;
        let made = format!("{before}{{\"view\":{view},\"epoch\":{epoch},\"rows\":[").into_bytes();
        Ok(AnswerJson { made, rows: Some(rows), is_first: true, after })
    }
}

impl Iterator for AnswerJson {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Result<Vec<u8>>> {
        let rows = self.rows.as_mut()?;
        while self.made.len() < PIECE {
            match rows.next() {
                Some(Ok(row)) => {
                    if !std::mem::take(&mut self.is_first) {
                        self.made.push(b',');
                    }
                    self.made.extend(row.trim_end().as_bytes());
                }
                Some(Err(error)) => {
                    self.rows = None;
                    return Some(Err(error));
                }
                None => {
                    self.rows = None;
                    self.made.extend(b"]}");
                    self.made.extend(self.after.as_bytes());
                    break;
                }
            }
        }
        Some(Ok(std::mem::take(&mut self.made)))
    }
}

/// The server-sent events of a subscription.
struct Changes(Subscription);

impl Events for Changes {
    fn poll(&mut self, context: &mut Context<'_>, progress: bool) -> Poll<ServerEvent> {
        self.0.poll(context.waker(), progress).map(|update| match update {
            ViewUpdate::State(answer) => of_answer("event: state\ndata: ", answer),
            ViewUpdate::Changes(answer) => of_answer("event: changes\ndata: ", answer),
            ViewUpdate::Progress(epoch) => whole(format!("event: progress\ndata: {{\"epoch\":{epoch}}}\n\n"), false),
            ViewUpdate::End(end) => whole(end_event(&end), true),
        })
    }
}

fn of_answer(before: &str, answer: Answer) -> ServerEvent {
    match AnswerJson::new(before, answer, "\n\n") {
        Ok(text) => ServerEvent { pieces: Box::new(text), last: false },
        Err(error) => whole(end_event(&error), true),
    }
}

/// Builds an event from a complete text.
fn whole(text: String, last: bool) -> ServerEvent {
    let pieces: TextPieces = Box::new(std::iter::once(Ok(text.into_bytes())));
    ServerEvent { pieces, last }
}
