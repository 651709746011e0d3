//! Queries that cannot work do not compile, and the compiler says what to do instead.
//!
//! It exists because most mistakes in a typed query show as a trait that is not implemented; the message of such an error
//! is part of the interface. The expected messages are beside the programs, in `tests/compile_fail/*.stderr`; after a
//! change, `TRYBUILD=overwrite cargo test --test compile_fail` writes them anew: read them before they are committed.

#[test]
fn mistakes_are_explained_by_the_compiler() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
