//! Who owns a tenant: tenant → partition → shard. Pure arithmetic, the same on every core and in the NATS server.
//!
//! The partition is FNV-1a-32 modulo 256, which is what `{{partition(256,…)}}` computes in nats-server, so that a later
//! subject mapping splits work exactly as the shards do.

use crate::ids::Partition;
use crate::limits::PARTITIONS;

/// The partition of a tenant.
pub fn partition(tenant: &str) -> Partition {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in tenant.as_bytes() {
        hash ^= u32::from(*byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    Partition((hash % u32::from(PARTITIONS)) as u16)
}

/// The shard, of `shards`, that owns a partition.
pub fn shard(partition: Partition, shards: u16) -> u16 {
    partition.0 % shards.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_is_fnv1a_32_as_the_nats_server_computes_it() {
        // FNV-1a-32 reference vectors: "" = 811c9dc5, "a" = e40c292c, "foobar" = bf9cf968.
        assert_eq!(partition(""), Partition(0xc5));
        assert_eq!(partition("a"), Partition(0x2c));
        assert_eq!(partition("foobar"), Partition(0x68));
    }

    #[test]
    fn every_partition_has_exactly_one_shard() {
        for shards in 1..=256 {
            for index in 0..PARTITIONS {
                assert!(shard(Partition(index), shards) < shards);
            }
        }
    }
}
