// SHA-256 of many buffers, one thread each. The host has padded every buffer to whole blocks and sorted the buffers by length,
// so that threads that run together have about as much to do.
//
// 1: the blocks, 2: where each buffer begins in bytes (u64, whole blocks), 3: how many blocks it has (u64), 4: the digests.

CONSTANT u32 ROUND[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u,
};

DEVICE u32 right(u32 x, u32 n) {
    return (x >> n) | (x << (32 - n));
}

DEVICE u32 swap(u32 x) {
    return (x >> 24) | ((x >> 8) & 0xff00u) | ((x << 8) & 0xff0000u) | (x << 24);
}

KERNEL(sha256) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    const u64 *offsets = (const u64 *)a.v[2];
    const u64 *counts = (const u64 *)a.v[3];
    const u32 *words = (const u32 *)(a.v[1] + offsets[i]);
    u32 *digest = (u32 *)a.v[4] + (u64)i * 8;
    u32 state[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    u64 blocks = counts[i];
    for (u64 block = 0; block < blocks; block++) {
        u32 w[16], s[8];
        for (int t = 0; t < 16; t++) w[t] = swap(words[block * 16 + t]);
        for (int t = 0; t < 8; t++) s[t] = state[t];
        UNROLL
        for (int t = 0; t < 64; t++) {
            if (t >= 16) {
                u32 x = w[(t + 1) & 15], y = w[(t + 14) & 15];
                w[t & 15] += (right(x, 7) ^ right(x, 18) ^ (x >> 3)) + w[(t + 9) & 15] + (right(y, 17) ^ right(y, 19) ^ (y >> 10));
            }
            u32 one = s[7] + (right(s[4], 6) ^ right(s[4], 11) ^ right(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + ROUND[t] + w[t & 15];
            u32 two = (right(s[0], 2) ^ right(s[0], 13) ^ right(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s[7] = s[6];
            s[6] = s[5];
            s[5] = s[4];
            s[4] = s[3] + one;
            s[3] = s[2];
            s[2] = s[1];
            s[1] = s[0];
            s[0] = one + two;
        }
        for (int t = 0; t < 8; t++) state[t] += s[t];
    }
    for (int t = 0; t < 8; t++) digest[t] = swap(state[t]);
}
