//! Streams of server-sent events: one side takes events from their source as they arrive, the other one is the body of
//! an answer.
//!
//! Events are taken from the source at once, so that none pile up there, and encoded as text. At most [`STREAM_BYTES`]
//! of text wait for the reader, or its share of [`ALL_STREAM_BYTES`] if that is less. If there is more the reader is cut off: it still gets the waiting text, and then an
//! `end` event with the reason. A single event that exceeds the limit is sent in pieces that are made as the reader
//! takes them. Few streams at a time may do that, and meanwhile the source has to keep new events, within a limit of
//! its own.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::end::EndSignal;
use super::gate::{Gate, Permit};
use super::limits::{ALL_STREAM_BYTES, PROGRESS, STREAM_BYTES, TURN_TIME};
use super::{Events, ServerEvent, TextPieces, end_event};

/// The next part of a stream.
enum EventText {
    /// Whole events.
    Text(Bytes),
    /// A long event in pieces: its first part, the others, and the permit to send it.
    Long(Option<Bytes>, TextPieces, Permit),
}

/// The size of the part of a stream that waits for its reader.
#[derive(Default)]
struct Backlog {
    /// Bytes of text, plus one for a long event that is being sent.
    bytes: AtomicUsize,
    shrunk: Notify,
}

impl Backlog {
    fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shrunk.notify_one();
    }
}

/// The side of a stream that is sent to the client.
pub(super) struct EventReader {
    messages: UnboundedReceiver<EventText>,
    backlog: Arc<Backlog>,
    long: Option<(Option<Bytes>, TextPieces, Permit)>,
}

impl EventReader {
    /// Returns the next bytes.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some((first, pieces, _)) = &mut self.long {
                if let Some(first) = first.take() {
                    return Poll::Ready(Some(Ok(first)));
                }
                match pieces.next() {
                    Some(piece) => return Poll::Ready(Some(piece.map(Bytes::from).map_err(io::Error::other))),
                    None => {
                        self.long = None;
                        self.backlog.shrink(1);
                    }
                }
            }
            match ready!(self.messages.poll_recv(context)) {
                None => return Poll::Ready(None),
                Some(EventText::Text(text)) => {
                    self.backlog.shrink(text.len());
                    return Poll::Ready(Some(Ok(text)));
                }
                Some(EventText::Long(first, pieces, permit)) => self.long = Some((first, pieces, permit)),
            }
        }
    }
}

/// The side of a stream that takes events from their source.
struct Pump {
    messages: UnboundedSender<EventText>,
    backlog: Arc<Backlog>,
    gate: Arc<Gate>,
    /// The gate of all streams.
    streams: Arc<Gate>,
    /// A permit to send the first event if it is long.
    permit: Option<Permit>,
    over: EndSignal,
}

/// Starts a stream, with the gates of long answers and of all streams. `slot` is returned when the stream ends; `permit` is for its first event.
pub(super) fn start(
    events: Box<dyn Events>,
    [gate, streams]: [&Arc<Gate>; 2],
    (slot, permit): (Permit, Permit),
    over: EndSignal,
) -> EventReader {
    let (sender, messages) = unbounded_channel();
    let backlog = Arc::<Backlog>::default();
    let (gate, streams, own) = (Arc::clone(gate), Arc::clone(streams), Arc::clone(&backlog));
    let pump = Pump { messages: sender, backlog: own, gate, streams, permit: Some(permit), over };
    tokio::spawn(async move {
        pump.run(events).await;
        drop(slot);
    });
    EventReader { messages, backlog, long: None }
}

impl Pump {
    /// Sends events until the last one, the reader is gone or cut off, or the server ends.
    async fn run(mut self, mut events: Box<dyn Events>) {
        loop {
            let Some(event) = self.next(&mut *events).await else { return };
            let last = event.last;
            let sent = self.send(event.pieces).await;
            // Only the first event has a permit in advance.
            self.permit = None;
            if let Err(reason) = sent {
                return self.end(&reason);
            }
            if last {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Returns the next event; `None` if the stream ends.
    async fn next(&self, events: &mut dyn Events) -> Option<ServerEvent> {
        let mut tick = pin!(sleep(PROGRESS));
        let mut gone = pin!(self.messages.closed());
        let mut over = pin!(self.over.clone().wait());
        let event = poll_fn(|context| {
            if gone.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            if over.as_mut().poll(context).is_ready() {
                self.end(&"the job is over");
                return Poll::Ready(None);
            }
            let is_due = tick.as_mut().poll(context).is_ready();
            let event = events.poll(context, is_due);
            if is_due && event.is_pending() {
                tick.as_mut().reset(Instant::now() + PROGRESS);
                // Polled to register its waker; it cannot be due again.
                let _ = tick.as_mut().poll(context);
            }
            event.map(Some)
        });
        event.await
    }

    /// Sends an event to the reader. Fails with the reason for which the reader is cut off.
    async fn send(&mut self, mut pieces: TextPieces) -> Result<(), String> {
        let mut text = Vec::new();
        let most = STREAM_BYTES.min(ALL_STREAM_BYTES / self.streams.taken().max(1));
        while text.len() <= most {
            match pieces.next() {
                None => {
                    if self.backlog.bytes.load(Ordering::Relaxed) + text.len() > most {
                        return Err(format!("the reader is too slow: more than {most} bytes of events waited for it"));
                    }
                    self.put(text.into());
                    return Ok(());
                }
                Some(Ok(piece)) => text.extend(piece),
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
        let permit = match self.permit.take() {
            Some(permit) => permit,
            None => self.gate.enter_within(TURN_TIME).await?,
        };
        let mut gone = pin!(self.messages.closed());
        let mut over = pin!(self.over.clone().wait());
        while self.backlog.bytes.load(Ordering::Relaxed) > 0 {
            let mut shrunk = pin!(self.backlog.shrunk.notified());
            let goes_on = poll_fn(|context| {
                if gone.as_mut().poll(context).is_ready() || over.as_mut().poll(context).is_ready() {
                    return Poll::Ready(false);
                }
                shrunk.as_mut().poll(context).map(|()| true)
            });
            if !goes_on.await {
                return Err(String::from("the job is over"));
            }
        }
        self.backlog.bytes.fetch_add(1, Ordering::Relaxed);
        // A reader that is gone is noticed before the next event.
        let _ = self.messages.send(EventText::Long(Some(text.into()), pieces, permit));
        Ok(())
    }

    /// Sends the last event, with its reason.
    fn end(&self, reason: &dyn Display) {
        self.put(end_event(reason).into());
    }

    fn put(&self, text: Bytes) {
        self.backlog.bytes.fetch_add(text.len(), Ordering::Relaxed);
        // A reader that is gone is noticed before the next event.
        let _ = self.messages.send(EventText::Text(text));
    }
}
