// BLAKE3 of many buffers. First a thread for each chunk of 1 KiB, then level by level one for each pair of chaining values; the
// odd one of a level goes up as it is, which makes the tree that BLAKE3 asks for. Which buffer a thread works on is found in a
// table of how many values the buffers before it have; every buffer has at least one.

#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define ROOT 8u

CONSTANT u32 IV[8] = {
    0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u,
};

// The words of the next round, by their places in this one.
CONSTANT u8 ORDER[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};

DEVICE u32 right(u32 x, u32 n) {
    return (x >> n) | (x << (32 - n));
}

DEVICE void mix(u32 *s, int a, int b, int c, int d, u32 x, u32 y) {
    s[a] += s[b] + x;
    s[d] = right(s[d] ^ s[a], 16);
    s[c] += s[d];
    s[b] = right(s[b] ^ s[c], 12);
    s[a] += s[b] + y;
    s[d] = right(s[d] ^ s[a], 8);
    s[c] += s[d];
    s[b] = right(s[b] ^ s[c], 7);
}

// The chaining value `cv` becomes that after a block. The words of the block are used up.
DEVICE void compress(u32 *cv, u32 *m, u64 counter, u32 bytes, u32 flags) {
    u32 s[16], next[16];
    for (int t = 0; t < 8; t++) s[t] = cv[t];
    for (int t = 0; t < 4; t++) s[8 + t] = IV[t];
    s[12] = (u32)counter;
    s[13] = (u32)(counter >> 32);
    s[14] = bytes;
    s[15] = flags;
    for (int round = 0; round < 7; round++) {
        mix(s, 0, 4, 8, 12, m[0], m[1]);
        mix(s, 1, 5, 9, 13, m[2], m[3]);
        mix(s, 2, 6, 10, 14, m[4], m[5]);
        mix(s, 3, 7, 11, 15, m[6], m[7]);
        mix(s, 0, 5, 10, 15, m[8], m[9]);
        mix(s, 1, 6, 11, 12, m[10], m[11]);
        mix(s, 2, 7, 8, 13, m[12], m[13]);
        mix(s, 3, 4, 9, 14, m[14], m[15]);
        for (int t = 0; t < 16; t++) next[t] = m[ORDER[t]];
        for (int t = 0; t < 16; t++) m[t] = next[t];
    }
    for (int t = 0; t < 8; t++) cv[t] = s[t] ^ s[t + 8];
}

// The last of `n` buffers whose values begin at or before `i`.
DEVICE u32 find(const u32 *first, u32 n, u32 i) {
    u32 low = 0, high = n;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        if (first[middle] <= i) low = middle;
        else high = middle;
    }
    return low;
}

// 1: the buffers, each followed by zeros up to whole blocks, 2: where each begins in bytes (u64), 3: its bytes (u64),
// 4: chunks of the buffers before each (u32), 5: the number of buffers, 6: the chaining values of all chunks.
KERNEL(blake3_chunks) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    const u32 *first = (const u32 *)a.v[4];
    u32 b = find(first, (u32)a.v[5], i);
    u64 chunk = i - first[b];
    u64 left = ((const u64 *)a.v[3])[b] - chunk * 1024;
    u32 bytes = left < 1024 ? (u32)left : 1024;
    const u32 *words = (const u32 *)(a.v[1] + ((const u64 *)a.v[2])[b] + chunk * 1024);
    u32 root = first[b + 1] - first[b] == 1 ? ROOT : 0;
    u32 blocks = bytes == 0 ? 1 : (bytes + 63) / 64;
    u32 cv[8], m[16];
    for (int t = 0; t < 8; t++) cv[t] = IV[t];
    for (u32 block = 0; block < blocks; block++) {
        u32 last = block + 1 == blocks;
        u32 flags = (block == 0 ? CHUNK_START : 0) | (last ? CHUNK_END | root : 0);
        for (int t = 0; t < 16; t++) m[t] = words[block * 16 + t];
        compress(cv, m, chunk, last ? bytes - block * 64 : 64, flags);
    }
    u32 *out = (u32 *)a.v[6] + (u64)i * 8;
    for (int t = 0; t < 8; t++) out[t] = cv[t];
}

// 1: the values of one level, 2: those of the next, 3 and 4: values of the buffers before each (u32) on both, 5: the number of
// buffers.
KERNEL(blake3_parents) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    const u32 *below = (const u32 *)a.v[3];
    const u32 *above = (const u32 *)a.v[4];
    u32 b = find(above, (u32)a.v[5], i);
    u32 left = 2 * (i - above[b]), count = below[b + 1] - below[b];
    const u32 *in = (const u32 *)a.v[1] + ((u64)below[b] + left) * 8;
    u32 *out = (u32 *)a.v[2] + (u64)i * 8;
    u32 cv[8], m[16];
    if (left + 1 < count) {
        for (int t = 0; t < 16; t++) m[t] = in[t];
        for (int t = 0; t < 8; t++) cv[t] = IV[t];
        compress(cv, m, 0, 64, PARENT | (count == 2 ? ROOT : 0));
    } else {
        for (int t = 0; t < 8; t++) cv[t] = in[t];
    }
    for (int t = 0; t < 8; t++) out[t] = cv[t];
}
