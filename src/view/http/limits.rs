//! Limits of what clients can hold or take: every one of the server is here.

use std::time::Duration;

/// Open connections at most. Beyond it the connection that has waited longest for a request, or whose reader is stuck,
/// is closed for the new one; where all are being answered, the new one gets status 503.
pub(crate) const CONNECTIONS: usize = 256;
/// One in so many of the descriptors that the process may have open is a connection at most.
pub(crate) const DESCRIPTORS_FOR_ONE: u64 = 4;
/// Bytes of a request's header, its request line included.
pub(crate) const HEADER_BYTES: usize = 16 << 10;
/// Lines of a request's header.
pub(crate) const HEADER_LINES: usize = 64;
/// Time in which a request's header has to come, from the connection or from its first byte on.
pub(crate) const HEADER_TIME: Duration = Duration::from_secs(10);
/// Time that a connection stays open after an answer without another request.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(60);
/// Time in which a client has to take [`WRITE_BYTES`] while an answer waits for it, or all that waits.
pub(crate) const WRITE_TIME: Duration = Duration::from_secs(10);
/// See [`WRITE_TIME`].
pub(crate) const WRITE_BYTES: usize = 64 << 10;
/// A client that has taken nothing for this time may be cut off in favour of a new one, where connections run out.
pub(crate) const STUCK: Duration = Duration::from_secs(1);
/// Bytes that the system holds for a connection in each direction.
pub(crate) const SOCKET_BYTES: u32 = 128 << 10;
/// Bytes of a piece of a long answer.
pub(crate) const PIECE: usize = 64 << 10;
/// Long documents (`/status`, `/metrics`) that are sent at a time.
pub(crate) const DOCUMENTS: usize = 8;
/// Answers with rows of views that are sent at a time, first events of streams included.
pub(crate) const ROWS: usize = 4;
/// Time that a request waits for its turn to be answered.
pub(crate) const TURN_TIME: Duration = Duration::from_secs(5);
/// One in so many connections at most waits for its turn to be answered, of each kind of answer.
pub(crate) const CONNECTIONS_FOR_A_TURN: usize = 8;
/// Open streams of events.
pub(crate) const STREAMS: usize = 64;
/// One in so many connections is a stream of events at most.
pub(crate) const CONNECTIONS_FOR_A_STREAM: usize = 4;
/// Bytes of events that wait for the reader of a stream.
pub(crate) const STREAM_BYTES: usize = 1 << 20;
/// Interval in which a stream tells how far its view is while nothing changes.
pub(crate) const PROGRESS: Duration = Duration::from_millis(500);
/// Time that accepting pauses after the system refused a connection for lack of descriptors or memory.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// Time that clients have to take what is left for them when the job ends.
pub(crate) const GRACE: Duration = Duration::from_millis(300);
/// Time after which the job ends without its server.
pub(crate) const END_TIME: Duration = Duration::from_millis(900);
/// Bytes of an answer that the client reads.
pub(crate) const ANSWER_BYTES: u64 = 64 << 20;
