//! The channels between worker 0, which decides, and all other workers, which follow: dataflows of their own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::core;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::worker::Worker;

use crate::source::WorkerContext;

/// Commands of worker 0 to all workers, itself included, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Control {
    /// The current epoch ends, and this one starts.
    Tick(u64),
    /// Like `Tick`, and the new epoch has a snapshot.
    Snapshot(u64),
    /// Like `Tick`, and from the new epoch on the sources are read that waited for those that are read first.
    ReadAll(u64),
    /// Journals are not needed up to and including this epoch, and may be truncated.
    TruncateJournals(u64),
    /// No further epoch follows.
    Stop,
}

/// Requests of the other processes to worker 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Request {
    /// An epoch is full.
    EarlyTick,
    /// Input was committed since the last snapshot was announced.
    Dirty,
    /// The process was asked to stop.
    Stop,
    /// All workers of the process have caught up.
    CaughtUp,
    /// All workers of the process have read what is read first.
    ReadFirst,
}

/// Input handle for messages of one type.
type MessageInput<T> = core::input::Handle<u64, CapacityContainerBuilder<Vec<T>>>;
/// Queue of received messages.
type MessageQueue<T> = Rc<RefCell<VecDeque<T>>>;

/// The channel of worker 0's commands to all workers, and the channel of the other processes' requests to worker 0.
/// Each is a dataflow of its own.
pub(crate) struct Controls {
    input: Option<MessageInput<Control>>,
    received: MessageQueue<Control>,
    sent: u64,
    /// Set on the first worker of each process but process 0.
    asks: Option<MessageInput<Request>>,
    /// On worker 0: requests that have arrived.
    asked: MessageQueue<Request>,
}

impl Controls {
    /// Builds both channels on a worker.
    pub(crate) fn new(worker: &mut Worker, place: &WorkerContext) -> Self {
        let (asks, asked) = Self::requests(worker, place);
        let received = Rc::new(RefCell::new(VecDeque::new()));
        let queue = Rc::clone(&received);
        let input = worker.dataflow_named::<u64, _, _>("Control", |scope| {
            let (input, controls) = scope.new_input();
            controls.broadcast().sink(Pipeline, "Receive", move |(input, _frontier)| {
                input.for_each(|_capability, controls| queue.borrow_mut().extend(controls.drain(..)));
            });
            input
        });
        let input = (worker.index() == 0).then_some(input);
        Controls { input, received, sent: 0, asks, asked }
    }

    /// Builds the channel from the first worker of each process to worker 0; the input is `None` on other workers, and
    /// in a job of one process.
    fn requests(worker: &mut Worker, place: &WorkerContext) -> (Option<MessageInput<Request>>, MessageQueue<Request>) {
        let asked = Rc::new(RefCell::new(VecDeque::new()));
        if place.threads == place.workers {
            return (None, asked);
        }
        let queue = Rc::clone(&asked);
        let input = worker.dataflow_named::<u64, _, _>("Requests", |scope| {
            let (input, requests) = scope.new_input();
            requests.sink(Exchange::new(|_request: &Request| 0), "Ask", move |(input, _frontier)| {
                input.for_each(|_capability, requests| queue.borrow_mut().extend(requests.drain(..)));
            });
            input
        });
        let is_first = worker.index() > 0 && worker.index().is_multiple_of(place.threads);
        (is_first.then_some(input), asked)
    }

    /// Sends worker 0 a request.
    pub(crate) fn ask(&mut self, request: Request) {
        if let Some(asks) = &mut self.asks {
            asks.send(request);
            // A flush would not send it: the input's time has to advance.
            asks.advance_to(asks.time() + 1);
        }
    }

    /// Closes both channels on this worker.
    pub(crate) fn close(&mut self) {
        (self.input, self.asks) = (None, None);
    }

    /// Worker 0: sends a command to all workers.
    pub(crate) fn send(&mut self, control: Control) {
        if let Some(input) = &mut self.input {
            input.send(control);
            self.sent += 1;
            input.advance_to(self.sent);
        }
    }

    /// Returns the next request of another process; on worker 0 alone.
    pub(crate) fn next_request(&mut self) -> Option<Request> {
        self.asked.borrow_mut().pop_front()
    }

    /// `true` on the worker that sends the requests of a process other than process 0.
    pub(crate) fn sends_requests(&self) -> bool {
        self.asks.is_some()
    }

    /// Returns the next command to follow.
    pub(crate) fn next(&mut self) -> Option<Control> {
        self.received.borrow_mut().pop_front()
    }
}
