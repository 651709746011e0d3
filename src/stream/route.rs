//! Assignment of keys to workers. State belongs to a key, never to a worker: loaded state is routed again.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

/// Hash of a key; the key's worker is the hash modulo the number of workers. It has a seed of its own and takes the
/// upper half of the hash, because hash maps behind the exchange must not use the bits that are equal for all keys of
/// a worker.
#[inline]
pub(crate) fn route<K: Hash>(key: &K) -> u64 {
    FixedState::with_seed(7).hash_one(key) >> 32
}

/// Returns the worker of a key, out of `peers` workers.
#[inline]
pub(crate) fn worker_of<K: Hash>(key: &K, peers: u64) -> u64 {
    if peers.is_power_of_two() { route(key) & (peers - 1) } else { route(key) % peers }
}
