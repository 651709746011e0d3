//! Views over HTTP.
//!
//! | path | answer |
//! | --- | --- |
//! | `/views` | the views, and how far each is |
//! | `/views/NAME` | all its rows at one epoch: `{"view": NAME, "epoch": E, "rows": […]}` |
//! | `/views/NAME?key=KEY` | those of a key |
//! | `/views/NAME/changes` | server-sent events: one `state`, then `changes` for each epoch that has any, `progress` now and then, and an `end` with its reason; `key=KEY` as before. Who accepts `text/event-stream` only gets them at `/views/NAME` too |
//!
//! A row is an object as NDJSON files have it, with a last field `diff`: how many there are of it, or by how much that changed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::view::http::{Asked, Reply};
use crate::view::{Answer, Refusal, Subscription, Update, Views};

/// How often who subscribes hears of a view that does not change.
const PROGRESS: Duration = Duration::from_millis(500);

/// Answers a question for views: its path is what comes after `/views`.
pub(super) fn answer(views: &Arc<Views>, path: &str, asked: &Asked) -> Reply {
    let name = path.trim_matches('/');
    if name.is_empty() {
        return list(views);
    }
    let key = asked.parameter("key");
    let (name, changes) = match name.strip_suffix("/changes") {
        Some(name) => (name, true),
        None => (name, asked.events),
    };
    if changes {
        return match views.subscribe(name, key) {
            Ok(subscription) => Reply::Events(Box::new(|writer, is_over| events(subscription, writer, is_over))),
            Err(refusal) => refused(&refusal),
        };
    }
    match views.get(name, key) {
        Err(refusal) => refused(&refusal),
        Ok(answer) => match text_of(answer) {
            Ok(text) => Reply::Whole(200, "application/json", text + "\n"),
            Err(error) => Reply::text(500, error),
        },
    }
}

fn list(views: &Views) -> Reply {
    let all = views.status().into_iter().map(|status| {
        let reached = status.reached.map(|epoch| epoch.0);
        serde_json::json!({"view": status.view, "ready": status.ready, "epoch": reached, "rows": status.rows})
    });
    Reply::json(200, &serde_json::Value::from_iter(all))
}

/// A view that does not answer says why, and whether to ask again makes sense.
fn refused(refusal: &Refusal) -> Reply {
    let status = match refusal {
        Refusal::Unknown { .. } => 404,
        Refusal::NotReady { .. } => 503,
        Refusal::Elsewhere { .. } => 409,
        Refusal::Lost { .. } | Refusal::Over { .. } => 410,
    };
    Reply::text(status, refusal)
}

/// An answer as JSON.
fn text_of(answer: Answer) -> Result<String> {
    let Answer { view, epoch, rows } = answer;
    let view = serde_json::to_string(&view).map_err(|why| Error::new("cannot write the answer").because(why))?;
    let mut text = format!("{{\"view\":{view},\"epoch\":{epoch},\"rows\":[");
    for (number, row) in rows.enumerate() {
        if number > 0 {
            text.push(',');
        }
        text += row?.trim_end();
    }
    text += "]}";
    Ok(text)
}

/// Writes what a subscription tells, until nothing comes any more.
fn events(mut subscription: Subscription, writer: &mut dyn Write, is_over: &dyn Fn() -> bool) -> io::Result<()> {
    while !is_over() {
        let Some(update) = subscription.wait(PROGRESS) else { continue };
        let mut tell = |event: &str, data: &str| {
            write!(writer, "event: {event}\ndata: {data}\n\n")?;
            writer.flush()
        };
        let mut of = |event: &str, answer: Answer| match text_of(answer) {
            Ok(text) => tell(event, &text).map(|()| true),
            Err(error) => tell("end", &reason(&error)).map(|()| false),
        };
        let goes_on = match update {
            Update::State(answer) => of("state", answer)?,
            Update::Changes(answer) => of("changes", answer)?,
            Update::Progress(epoch) => tell("progress", &format!("{{\"epoch\":{epoch}}}")).map(|()| true)?,
            Update::End(end) => tell("end", &reason(&end)).map(|()| false)?,
        };
        if !goes_on {
            return Ok(());
        }
    }
    write!(writer, "event: end\ndata: {}\n\n", reason(&"the job is over"))?;
    writer.flush()
}

fn reason(why: &impl std::fmt::Display) -> String {
    serde_json::json!({ "reason": why.to_string() }).to_string()
}
