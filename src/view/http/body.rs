//! Bodies of answers, produced as the client reads them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::TextPieces;
use super::events::EventReader;
use super::gate::Permit;
use super::gzip::{self, GzipEncoder};
use super::limits::{GZIP_BYTES, PIECE};
use super::tracker::ConnectionTracker;

/// The content of an answer.
pub(super) enum BodyContent {
    /// A complete text, with a permit to send it if it is long.
    Text(Bytes, Option<Permit>),
    /// A text that is made while it is sent: its first piece, and an iterator of the others.
    Pieces(Option<Bytes>, Option<(TextPieces, Permit)>),
    /// Server-sent events.
    Events(EventReader),
    /// A text or pieces, which are compressed as they are sent.
    Compressed(Box<BodyContent>, Box<GzipEncoder>),
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
            BodyContent::Compressed(content, encoder) if !encoder.is_finished() => {
                match ready!(content.next(context)) {
                    Some(Ok(piece)) => Poll::Ready(Some(encoder.compress(&piece))),
                    Some(Err(error)) => Poll::Ready(Some(Err(error))),
                    None => Poll::Ready(encoder.finish()),
                }
            }
            BodyContent::Compressed(..) => Poll::Ready(None),
        }
    }

    /// Returns the content in gzip, and `true`, if it is worth that; otherwise as it is.
    pub(super) fn compress(self) -> (Self, bool) {
        match self {
            BodyContent::Text(text, permit) if text.len() < GZIP_BYTES => (BodyContent::Text(text, permit), false),
            BodyContent::Text(text, None) => match gzip::compressed(&text) {
                Ok(short) => (BodyContent::Text(short, None), true),
                Err(_) => (BodyContent::Text(text, None), false),
            },
            content @ (BodyContent::Text(..) | BodyContent::Pieces(..)) => {
                (BodyContent::Compressed(Box::new(content), Box::new(GzipEncoder::new())), true)
            }
            content @ (BodyContent::Events(_) | BodyContent::Compressed(..)) => (content, false),
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
        match &self.content {
            BodyContent::Text(text, _) => text.is_empty(),
            BodyContent::Compressed(_, encoder) => encoder.is_finished(),
            BodyContent::Pieces(..) | BodyContent::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            BodyContent::Text(text, _) => SizeHint::with_exact(text.len() as u64),
            BodyContent::Pieces(..) | BodyContent::Events(_) | BodyContent::Compressed(..) => SizeHint::default(),
        }
    }
}

/// Error type of operations that cannot fail.
pub(super) type Never = Infallible;
