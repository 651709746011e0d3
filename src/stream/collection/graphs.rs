//! Collections of pairs as directed graphs: what is reachable, and which nodes are on a cycle.
//!
//! A pair (a, b) is an edge from a to b; an edge that is there several times counts once.
//!
//! The **strongly connected components** of a graph are its largest sets of nodes each of which is reachable from each
//! other. They are found by trimming: an edge is kept if the least node that reaches its start, along edges that are kept,
//! also is the least that reaches its end, and again with all edges turned round, until no edge goes. What is left are
//! the edges inside components. (The algorithm is that of `differential_dataflow::algorithms::graphs::scc`.)

use differential_dataflow::algorithms::graphs::propagate::propagate;
use differential_dataflow::algorithms::graphs::scc::strongly_connected;

use super::Collection;
use crate::record::Record;

/// Collections of pairs that are edges of a directed graph.
impl<'f, N: Record> Collection<'f, (N, N)> {
    /// Returns the nodes that can be reached from `roots` along the edges, `roots` included, each once.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let links = MemorySource::new(vec![vec![(1, 2), (2, 3), (3, 2), (4, 1)]], |_| 0);
    /// let roots = MemorySource::new(vec![vec![2]], |_| 0);
    /// let reached = Captured::<i32>::new();
    /// let output = reached.clone();
    /// TestRun::new().run(move |flow| {
    ///     let links = flow.read("links", &links).collect("links");
    ///     links.reachable_from(flow.read("roots", &roots).collect("roots")).write("reached", &output);
    /// })?;
    /// assert_eq!(reached.all(), [2, 3]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn reachable_from(self, roots: Collection<'f, N>) -> Collection<'f, N> {
        // It ends by itself: a round adds nodes, and there are finitely many.
        roots.distinct().iterate(u64::MAX, move |scope, reached| {
            let edges = scope.enter(&self);
            let next = reached.clone().map(|node| (node, ())).join_map(edges, |_from, (), to| to.clone());
            next.concat(reached).distinct()
        })
    }

    /// Returns each node that is in a strongly connected component of at least two nodes, once, with the least node of its
    /// component as the component's name. So these are the nodes on directed cycles, cycles of one edge from a node to
    /// itself left out; nodes have one name if and only if each can be reached from the other.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // 1 → 2 → 3 → 1, 3 → 4, 4 → 4
    /// let links = MemorySource::new(vec![vec![(1, 2), (2, 3), (3, 1), (3, 4), (4, 4)]], |_| 0);
    /// let cyclic = Captured::<(i32, i32)>::new();
    /// let output = cyclic.clone();
    /// TestRun::new().run(move |flow| flow.read("links", &links).collect("links").cycles().write("cyclic", &output))?;
    /// assert_eq!(cyclic.all(), [(1, 1), (2, 1), (3, 1)]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn cycles(self) -> Collection<'f, (N, N)> {
        self.filter(|(from, to)| from != to).distinct().through(|edges| {
            let inside = strongly_connected(edges);
            let nodes = inside.clone().map(|(from, _)| (from.clone(), from)).distinct();
            propagate(inside, nodes)
        })
    }
}
