//! Digests: the host device by the crates that it is made of and by published vectors, the kernels by the host device.

use bytes::Bytes;

use crate::device::Device as _;
use crate::device::cuda::{Cuda, CudaPlan};
use crate::device::host::Host;
use crate::job::{Algorithm, Digest, Hash, Work};
use crate::machine::emulated::Emulated;
use crate::machine::hash;
use crate::plan::plan;
use crate::testing::{EDGES, Random};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Blake3];

fn host(algorithm: Algorithm, buffers: &[&Bytes]) -> Vec<Digest> {
    Host::open(&()).unwrap().hash(algorithm, buffers).unwrap()
}

fn hex(digest: &Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn memory(algorithm: Algorithm, buffers: &[Bytes]) -> usize {
    plan(Work::Hash(Hash { algorithm, buffers: buffers.to_vec() })).unwrap().memory_bytes as usize
}

#[test]
fn known_digests_are_computed() {
    let abc = Bytes::from_static(b"abc");
    let digests = host(Algorithm::Sha256, &[&Bytes::new(), &abc]);
    assert_eq!(hex(&digests[0]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(hex(&digests[1]), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let digests = host(Algorithm::Blake3, &[&Bytes::new(), &abc]);
    assert_eq!(hex(&digests[0]), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    assert_eq!(hex(&digests[1]), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
}

#[test]
fn kernels_hash_each_edge_length_as_the_host_does() {
    let mut random = Random(1);
    for backwards in [false, true] {
        let mut emulated = Emulated::new(backwards);
        for algorithm in ALGORITHMS {
            for length in EDGES {
                let buffer = random.bytes(length);
                let digests = hash(&mut emulated, algorithm, &[&buffer]).unwrap();
                assert_eq!(digests, host(algorithm, &[&buffer]), "{algorithm:?} of {length}");
                let peak = emulated.peak();
                assert!(peak <= memory(algorithm, &[buffer]), "{algorithm:?} of {length}: {peak}");
            }
        }
        assert!(emulated.runs() >= 2 * EDGES.len());
    }
}

#[test]
fn kernels_hash_buffers_of_mixed_lengths_in_their_order() {
    let mut random = Random(2);
    let mut emulated = Emulated::new(false);
    for round in 0..40 {
        let mut buffers: Vec<Bytes> = (0..random.below(300))
            .map(|_| {
                let length = random.below(3_000) as usize;
                if random.below(4) == 0 { random.edge() } else { random.bytes(length) }
            })
            .collect();
        if round == 7 {
            buffers.insert(buffers.len() / 2, random.bytes(1 << 20));
            buffers.push(random.bytes((1 << 20) + 1));
        }
        let lent: Vec<&Bytes> = buffers.iter().collect();
        for algorithm in ALGORITHMS {
            assert_eq!(hash(&mut emulated, algorithm, &lent).unwrap(), host(algorithm, &lent), "{algorithm:?}");
            assert!(emulated.peak() <= memory(algorithm, &buffers));
        }
    }
}

#[test]
fn no_buffers_have_no_digests() {
    let mut emulated = Emulated::new(false);
    for algorithm in ALGORITHMS {
        assert!(hash(&mut emulated, algorithm, &[]).unwrap().is_empty());
    }
    assert_eq!(emulated.runs(), 0);
}

/// The first device, or why the test that asks has nothing to show.
pub(super) fn device(test: &str) -> Option<Cuda> {
    match Cuda::open(&CudaPlan { ordinal: 0, cache: std::sync::Arc::new(crate::cache::Cache::new(None)) }) {
        Ok(cuda) => Some(cuda),
        Err(missing) => {
            eprintln!("SKIPPED {test}: {missing}");
            None
        }
    }
}

#[test]
fn a_cuda_device_hashes_as_the_host_does() {
    let Some(mut cuda) = device("a_cuda_device_hashes_as_the_host_does") else { return };
    let mut random = Random(3);
    let mut buffers: Vec<Bytes> = EDGES.iter().map(|length| random.bytes(*length)).collect();
    buffers.extend((0..5_000).map(|_| {
        let length = random.below(5_000) as usize;
        random.bytes(length)
    }));
    buffers.extend([1 << 20, (1 << 20) + 1, 8 << 20].map(|length| random.bytes(length)));
    let lent: Vec<&Bytes> = buffers.iter().collect();
    for algorithm in ALGORITHMS {
        for _ in 0..3 {
            assert_eq!(cuda.hash(algorithm, &lent).unwrap(), host(algorithm, &lent), "{algorithm:?}");
        }
        for buffer in &lent {
            assert_eq!(cuda.hash(algorithm, &[buffer]).unwrap(), host(algorithm, &[buffer]), "{algorithm:?} of {}", buffer.len());
        }
    }
}
