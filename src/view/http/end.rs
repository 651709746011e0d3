//! The signal of the server's end, for which its tasks wait beside their work.

use tokio::sync::watch;

/// Signal of the server's end; each task that waits for it has a copy.
#[derive(Clone)]
pub(super) struct EndSignal(watch::Receiver<bool>);

impl EndSignal {
    /// Creates the signal, and the sender that gives it by sending `true`, or when it is dropped.
    pub(super) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, over) = watch::channel(false);
        (sender, EndSignal(over))
    }

    /// Waits until the server ends.
    pub(super) async fn wait(mut self) {
        // A dropped sender means that the server has ended, too.
        let _ = self.0.wait_for(|over| *over).await;
    }
}
