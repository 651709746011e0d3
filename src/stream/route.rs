//! Which worker has a key. State belongs to a key, never to a worker: whoever loads it sends it here again.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

/// Which worker has a key, before it is taken modulo their number. Its own seed and the upper half of the hash: maps
/// behind the exchange must not use the bits that are equal on a worker.
#[inline]
pub(crate) fn route<K: Hash>(key: &K) -> u64 {
    FixedState::with_seed(7).hash_one(key) >> 32
}

/// The worker that has a key, of so many.
#[inline]
pub(crate) fn worker_of<K: Hash>(key: &K, peers: u64) -> u64 {
    if peers.is_power_of_two() { route(key) & (peers - 1) } else { route(key) % peers }
}
