//! The `tidegate` tool.

fn main() {}
