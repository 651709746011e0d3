//! What can be read of a running job from outside.

pub(crate) mod http;
