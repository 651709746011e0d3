//! The registry of a flow's steps beside its plan: their outputs, and the names that they had earlier.
//!
//! * An **output** of a step is the timely stream that the step's method returns. [`Stream::was`](super::Stream::was) and
//!   its like find by it the step that they stand behind.
//! * An **earlier name** is recorded while the flow is built, and applied to a state before anything of it is read: so no
//!   operator knows of it.

use std::cell::RefCell;

use timely::progress::Source as OutputPort;

use crate::durable::declared_changes::{NameScope, Rename};

/// A step by what its name is unique among, and its name.
type StepKey = (NameScope, String);

/// What a flow declares of its steps while it is built.
#[derive(Default)]
pub(crate) struct StepRegistry {
    outputs: RefCell<Vec<((usize, usize), StepKey)>>,
    renames: RefCell<Vec<Rename>>,
}

impl StepRegistry {
    /// Records a stream as an output of a step; a stream may be the output of several.
    pub(crate) fn add_output(&self, port: &OutputPort, scope: NameScope, name: &str) {
        self.outputs.borrow_mut().push(((port.node, port.port), (scope, name.to_owned())));
    }

    /// Returns the steps that a stream is an output of.
    fn steps_of(&self, port: &OutputPort) -> Vec<StepKey> {
        let outputs = self.outputs.borrow();
        outputs.iter().filter(|(known, _)| *known == (port.node, port.port)).map(|(_, key)| key.clone()).collect()
    }

    /// Records an earlier name of the steps that a stream is an output of; returns `false` if it is of none.
    pub(crate) fn rename_output(&self, port: &OutputPort, old: &str) -> bool {
        let steps = self.steps_of(port);
        steps.iter().for_each(|(scope, new)| self.rename(*scope, new, old));
        !steps.is_empty()
    }

    /// Records an earlier name of a step, a source or an output.
    pub(crate) fn rename(&self, scope: NameScope, new: &str, old: &str) {
        let rename = Rename { scope, old: old.to_owned(), new: new.to_owned() };
        let mut renames = self.renames.borrow_mut();
        if !renames.contains(&rename) {
            renames.push(rename);
        }
    }

    /// Takes the earlier names.
    pub(crate) fn take_renames(&self) -> Vec<Rename> {
        self.renames.take()
    }
}
