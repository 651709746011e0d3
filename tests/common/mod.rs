//! What the tests of the engine in memory share: the oracle, made-up data, and checks that compare the two.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod cases;
pub mod checks;
pub mod oracle;
