//! The registry of a flow's steps beside its plan: their outputs, the names that they had earlier, and those of their
//! aggregates.
//!
//! * An **output** of a step is the timely stream that the step's method returns. [`Stream::was`](super::Stream::was) and
//!   its like find by it the step that they stand behind.
//! * An **earlier name** is recorded while the flow is built, and applied to a state before anything of it is read: so no
//!   operator knows of it.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use timely::progress::Source as OutputPort;

use crate::durable::codec::NameTree;
use crate::durable::declared_changes::{NameScope, Rename};
use crate::durable::migration::StepRows;

/// A step by what its name is unique among, and its name.
type StepKey = (NameScope, String);

/// What a flow declares of its steps while it is built.
#[derive(Default)]
pub(crate) struct StepRegistry {
    outputs: RefCell<Vec<((usize, usize), StepKey)>>,
    renames: RefCell<Vec<Rename>>,
    rows: RefCell<Vec<RegisteredRows>>,
    /// The names of the aggregates of steps that have some.
    aggregates: RefCell<Vec<(String, NameTree)>>,
    /// Operators, by their numbers in the flow, that are inputs of sources, with the sources' names.
    source_inputs: RefCell<Vec<(usize, String)>>,
}

/// The stored rows of a step: a value that knows their type, and what makes a [`StepRows`] of it.
struct RegisteredRows {
    step: String,
    typed: Rc<dyn Any>,
    finish: Box<dyn FnOnce() -> StepRows>,
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

    /// Returns the name of the step with rows that a stream is an output of; `None` if it is of none.
    pub(crate) fn step_of(&self, port: &OutputPort) -> Option<String> {
        self.steps_of(port).into_iter().find_map(|(scope, name)| (scope == NameScope::Step).then_some(name))
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

    /// Records the names of a step's aggregates, before the step is built.
    pub(crate) fn name_aggregates(&self, step: &str, names: NameTree) {
        if names != NameTree::None {
            self.aggregates.borrow_mut().push((step.to_owned(), names));
        }
    }

    /// Returns the names of a step's aggregates.
    pub(crate) fn aggregate_names(&self, step: &str) -> NameTree {
        let aggregates = self.aggregates.borrow();
        aggregates.iter().find(|(known, _)| known == step).map_or(NameTree::None, |(_, names)| names.clone())
    }

    /// Records the stored rows of a step; `finish` is called when the flow is complete.
    pub(crate) fn add_rows(&self, step: &str, typed: Rc<dyn Any>, finish: Box<dyn FnOnce() -> StepRows>) {
        self.rows.borrow_mut().push(RegisteredRows { step: step.to_owned(), typed, finish });
    }

    /// Returns the typed value of a step's stored rows; `None` if they are of another type.
    pub(crate) fn rows_of<T: 'static>(&self, step: &str) -> Option<Rc<T>> {
        let rows = self.rows.borrow();
        let of_step = rows.iter().find(|rows| rows.step == step)?;
        Rc::clone(&of_step.typed).downcast().ok()
    }

    /// Takes the stored rows of all steps.
    pub(crate) fn take_rows(&self) -> Vec<StepRows> {
        self.rows.take().into_iter().map(|rows| (rows.finish)()).collect()
    }

    /// Records a stream as an input of a source.
    pub(crate) fn add_source_input(&self, port: &OutputPort, source: &str) {
        self.source_inputs.borrow_mut().push((port.node, source.to_owned()));
    }

    /// Returns the operators, by their numbers in the flow, that are inputs of sources, with the sources' names.
    pub(crate) fn source_inputs(&self) -> Vec<(usize, String)> {
        self.source_inputs.borrow().clone()
    }

    /// Takes the earlier names.
    pub(crate) fn take_renames(&self) -> Vec<Rename> {
        self.renames.take()
    }
}
