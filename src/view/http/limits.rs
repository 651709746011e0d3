//! Limits on what clients can hold or take; all limits of the server are here.

use std::time::Duration;

/// Maximum number of open connections. Beyond it the connection that has waited longest for a request, or whose reader
/// is stuck, is closed for a new one; if all are being answered, the new one gets status 503.
pub(crate) const CONNECTIONS: usize = 512;
/// At most one in this many of the process's file descriptors is used for a connection.
pub(crate) const DESCRIPTORS_FOR_ONE: u64 = 4;
/// Maximum size of a request's header, its request line included, in bytes.
pub(crate) const HEADER_BYTES: usize = 16 << 10;
/// Maximum number of lines of a request's header.
pub(crate) const HEADER_LINES: usize = 64;
/// Maximum time until a request's header is complete, from the connection or from its first byte on.
pub(crate) const HEADER_TIME: Duration = Duration::from_secs(10);
/// Minimum time between two readings of the file of the token.
pub(crate) const TOKEN_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which the answer to a request with a wrong token waits: once for the first on a connection, twice for the
/// second, and so on.
pub(crate) const WRONG_TOKEN_TIME: Duration = Duration::from_millis(500);
/// Number of requests with wrong tokens after which a connection is closed.
pub(crate) const WRONG_TOKENS: u32 = 3;
/// Time after which a connection without another request is closed.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(60);
/// Time in which a client has to read [`WRITE_BYTES`], or all that waits for it.
pub(crate) const WRITE_TIME: Duration = Duration::from_secs(10);
/// Number of bytes that a client has to read in [`WRITE_TIME`].
pub(crate) const WRITE_BYTES: usize = 64 << 10;
/// Time after which a client that has read nothing may be cut off for a new one, if connections run out.
pub(crate) const STUCK: Duration = Duration::from_secs(1);
/// Size of the system's buffer of a connection, in each direction, in bytes.
pub(crate) const SOCKET_BYTES: u32 = 128 << 10;
/// Size of a piece of a long answer, in bytes.
pub(crate) const PIECE: usize = 64 << 10;
/// Minimum size of an answer that is compressed for a client that accepts it, in bytes.
pub(crate) const GZIP_BYTES: usize = 1 << 10;
/// Maximum number of long documents (`/status`, `/metrics`) sent at a time.
pub(crate) const DOCUMENTS: usize = 8;
/// Maximum number of answers with rows of views sent at a time, first events of streams included.
pub(crate) const ROWS: usize = 4;
/// Maximum time that a request waits for its turn to be answered.
pub(crate) const TURN_TIME: Duration = Duration::from_secs(5);
/// For each kind of answer, at most one in this many connections waits for its turn.
pub(crate) const CONNECTIONS_FOR_A_TURN: usize = 8;
/// Maximum number of open streams of events.
pub(crate) const STREAMS: usize = 256;
/// At most one in this many connections is a stream of events.
pub(crate) const CONNECTIONS_FOR_A_STREAM: usize = 2;
/// Maximum number of bytes of events that wait for the reader of a stream.
pub(crate) const STREAM_BYTES: usize = 1 << 20;
/// Maximum number of bytes of events that wait for the readers of all streams, which share it equally.
pub(crate) const ALL_STREAM_BYTES: usize = 64 << 20;
/// Interval at which a stream reports its progress while nothing changes.
pub(crate) const PROGRESS: Duration = Duration::from_millis(500);
/// Pause of accepting after the system refused a connection for lack of descriptors or memory.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// Time that clients have to read the rest of their answers when the job ends.
pub(crate) const GRACE: Duration = Duration::from_millis(300);
/// Time after which the job ends without waiting for its server.
pub(crate) const END_TIME: Duration = Duration::from_millis(900);
/// Maximum size of an answer that the client reads, in bytes.
#[cfg_attr(all(feature = "http", not(feature = "cli")), expect(dead_code, reason = "the command-line tool uses it"))]
pub(crate) const ANSWER_BYTES: u64 = 64 << 20;
