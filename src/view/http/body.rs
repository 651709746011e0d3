//! Bodies of answers, produced as the client reads them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::TextPieces;
use super::events::EventReader;
use super::gate::Permit;
use super::limits::PIECE;
use super::tracker::ConnectionTracker;

/// The content of an answer.
pub(super) enum BodyContent {
    /// A complete text, with a permit to send it if it is long.
    Text(Bytes, Option<Permit>),
    /// A text that is made while it is sent: its first piece, and an iterator of the others.
    Pieces(Option<Bytes>, Option<(TextPieces, Permit)>),
    /// Server-sent events.
    Events(EventReader),
}

/// The body of an answer. When it is dropped, the answer is sent completely, or given up.
pub(super) struct AnswerBody {
    content: BodyContent,
    pulse: ConnectionTracker,
}

impl AnswerBody {
    pub(super) fn new(content: BodyContent, pulse: ConnectionTracker) -> Self {
        AnswerBody { content, pulse }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.pulse.answered();
    }
}

impl BodyContent {
    /// Returns the next piece.
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            BodyContent::Text(text, permit) => {
                let piece = text.split_to(text.len().min(PIECE));
                if text.is_empty() {
                    *permit = None;
                }
                Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
            }
            BodyContent::Pieces(first, rest) => {
                if let Some(first) = first.take() {
                    return Poll::Ready(Some(Ok(first)));
                }
                let piece = rest.as_mut().and_then(|(pieces, _)| pieces.next());
                if piece.is_none() {
                    *rest = None;
                }
                Poll::Ready(piece.map(|piece| piece.map(Bytes::from).map_err(io::Error::other)))
            }
            BodyContent::Events(events) => events.poll(context),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.content.next(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, BodyContent::Text(text, _) if text.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            BodyContent::Text(text, _) => SizeHint::with_exact(text.len() as u64),
            BodyContent::Pieces(..) | BodyContent::Events(_) => SizeHint::default(),
        }
    }
}

/// Error type of operations that cannot fail.
pub(super) type Never = Infallible;
