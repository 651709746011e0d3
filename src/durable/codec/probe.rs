//! The end of a probe: what shapes and schemas have in common.

use std::fmt;

/// The error by which a probe stops following a type.
#[derive(Debug)]
pub(in crate::durable) struct ProbeStopped;

impl fmt::Display for ProbeStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the type is not followed any further")
    }
}

impl std::error::Error for ProbeStopped {}

impl serde::de::Error for ProbeStopped {
    fn custom<M: fmt::Display>(_: M) -> Self {
        ProbeStopped
    }
}
