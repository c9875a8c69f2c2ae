//! Digests of many buffers on a device: they are laid out here, and hashed there.

use bytes::Bytes;

use super::{Arg, Machine, u32s, u64s};
use crate::device::Trouble;
use crate::job::{Algorithm, Digest};
use crate::kernels::Kernel;

/// Bytes of a chunk of BLAKE3.
const CHUNK_BYTES: usize = 1_024;
/// Bytes of a block of either.
const BLOCK_BYTES: usize = 64;

/// The digests of `buffers`, in their order.
pub(crate) fn hash<M: Machine>(machine: &mut M, algorithm: Algorithm, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
    if buffers.is_empty() {
        return Ok(Vec::new());
    }
    match algorithm {
        Algorithm::Sha256 => sha256(machine, buffers),
        Algorithm::Blake3 => blake3(machine, buffers),
    }
}

fn sha256<M: Machine>(machine: &mut M, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
    let padded = |buffer: &Bytes| (buffer.len() + 9).next_multiple_of(BLOCK_BYTES);
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|at| padded(buffers[*at]));

    let mut blocks = Vec::with_capacity(buffers.iter().map(|buffer| padded(buffer)).sum());
    let (mut offsets, mut counts) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
    for at in &order {
        let buffer = buffers[*at];
        let start = blocks.len();
        offsets.push(start as u64);
        counts.push((padded(buffer) / BLOCK_BYTES) as u64);
        blocks.extend_from_slice(buffer);
        blocks.push(0x80);
        blocks.resize(start + padded(buffer) - 8, 0);
        blocks.extend_from_slice(&(buffer.len() as u64 * 8).to_be_bytes());
    }
    let threads = count(buffers.len())?;
    let blocks = machine.upload(&blocks)?;
    let offsets = machine.upload(&u64s(offsets))?;
    let counts = machine.upload(&u64s(counts))?;
    let digests = machine.reserve(buffers.len() * 32)?;
    machine.run(Kernel::Sha256, threads, &[Arg::At(&blocks), Arg::At(&offsets), Arg::At(&counts), Arg::At(&digests)])?;

    let sorted = digests_of(&machine.download(&digests, buffers.len() * 32)?);
    let mut digests = vec![[0; 32]; buffers.len()];
    for (at, digest) in order.into_iter().zip(sorted) {
        digests[at] = digest;
    }
    Ok(digests)
}

fn blake3<M: Machine>(machine: &mut M, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
    // An empty buffer has one block of zeros.
    let padded = |buffer: &Bytes| buffer.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
    let mut blocks = Vec::with_capacity(buffers.iter().map(|buffer| padded(buffer)).sum());
    let mut offsets = Vec::with_capacity(buffers.len());
    let mut values: Vec<usize> = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let start = blocks.len();
        offsets.push(start as u64);
        blocks.extend_from_slice(buffer);
        blocks.resize(start + padded(buffer), 0);
        values.push(buffer.len().div_ceil(CHUNK_BYTES).max(1));
    }
    let n = buffers.len() as u64;
    let threads = count(values.iter().sum())?;
    let blocks = machine.upload(&blocks)?;
    let offsets = machine.upload(&u64s(offsets))?;
    let lengths = machine.upload(&u64s(buffers.iter().map(|buffer| buffer.len() as u64)))?;
    let mut firsts = machine.upload(&u32s(before(&values)))?;
    let mut level = machine.reserve(threads as usize * 32)?;
    let args = [Arg::At(&blocks), Arg::At(&offsets), Arg::At(&lengths), Arg::At(&firsts), Arg::Is(n), Arg::At(&level)];
    machine.run(Kernel::Blake3Chunks, threads, &args)?;
    drop((blocks, offsets, lengths));

    while values.iter().any(|count| *count > 1) {
        for count in &mut values {
            *count = count.div_ceil(2);
        }
        let threads = count(values.iter().sum())?;
        let above = machine.upload(&u32s(before(&values)))?;
        let next = machine.reserve(threads as usize * 32)?;
        let args = [Arg::At(&level), Arg::At(&next), Arg::At(&firsts), Arg::At(&above), Arg::Is(n)];
        machine.run(Kernel::Blake3Parents, threads, &args)?;
        (level, firsts) = (next, above);
    }
    Ok(digests_of(&machine.download(&level, buffers.len() * 32)?))
}

/// How many values the buffers before each have, and all of them at the end.
fn before(values: &[usize]) -> impl Iterator<Item = u32> {
    let sums = values.iter().scan(0, |sum, count| {
        *sum += *count as u32;
        Some(*sum)
    });
    std::iter::once(0).chain(sums)
}

fn count(threads: usize) -> Result<u32, Trouble> {
    u32::try_from(threads).map_err(|_| Trouble::Failed(format!("a batch of {threads} threads is too large")))
}

fn digests_of(bytes: &[u8]) -> Vec<Digest> {
    bytes.as_chunks::<32>().0.to_vec()
}
