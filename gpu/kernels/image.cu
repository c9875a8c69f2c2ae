// Operations on images of 1, 3 or 4 bytes a pixel, one thread for each pixel that is written. All arithmetic is in integers and
// is that of src/device/host.rs. No index exceeds 32 bits: images are bounded before they come here.

DEVICE u8 held(i64 x) {
    return x < 0 ? 0 : x > 255 ? 255 : (u8)x;
}

DEVICE u8 luma(u32 red, u32 green, u32 blue) {
    return (u8)((red * 54 + green * 183 + blue * 19 + 128) >> 8);
}

// 1: from, 2: to, 3: channels, 4: width of from, 5: width of to, 6 and 7: where the part begins.
KERNEL(crop) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[3], width = (u32)a.v[5];
    u32 x = i % width + (u32)a.v[6], y = i / width + (u32)a.v[7];
    const u8 *in = (const u8 *)a.v[1] + (y * (u32)a.v[4] + x) * channels;
    u8 *out = (u8 *)a.v[2] + i * channels;
    for (u32 c = 0; c < channels; c++) out[c] = in[c];
}

// 1: from, 2: to, 3: channels, 4 and 5: width and height of from, 6 and 7: those of to.
KERNEL(nearest) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[3];
    u64 width = a.v[6];
    u32 x = (u32)((2 * (i % width) + 1) * a.v[4] / (2 * width));
    u32 y = (u32)((2 * (i / width) + 1) * a.v[5] / (2 * a.v[7]));
    const u8 *in = (const u8 *)a.v[1] + (y * (u32)a.v[4] + x) * channels;
    u8 *out = (u8 *)a.v[2] + i * channels;
    for (u32 c = 0; c < channels; c++) out[c] = in[c];
}

// The first pass of a resize, bytes to fractions. 1: from, 2: to (i32), 3: channels, 4: width of from, 5: width of to,
// 6: whether it goes down, 7: first pixel of each (u32), 8: where its weights begin (u32), 9: weights (i32), 10: the shift.
KERNEL(resize_first) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[3], from = (u32)a.v[4], width = (u32)a.v[5], down = (u32)a.v[6], shift = (u32)a.v[10];
    u32 x = i % width, y = i / width, along = down ? y : x;
    u32 old = ((const u32 *)a.v[7])[along], step = down ? from : 1;
    const u32 *offsets = (const u32 *)a.v[8];
    const i32 *weights = (const i32 *)a.v[9];
    const u8 *in = (const u8 *)a.v[1] + (down ? old * from + x : y * from + old) * channels;
    i32 *out = (i32 *)a.v[2] + i * channels;
    i64 sums[4] = {0, 0, 0, 0};
    for (u32 k = offsets[along]; k < offsets[along + 1]; k++) {
        i64 weight = weights[k];
        if (channels == 4) {
            i64 cover = in[3];
            for (u32 c = 0; c < 3; c++) sums[c] += weight * (in[c] * cover);
            sums[3] += weight * cover;
        } else {
            for (u32 c = 0; c < channels; c++) sums[c] += weight * in[c];
        }
        in += step * channels;
    }
    for (u32 c = 0; c < channels; c++) out[c] = (i32)((sums[c] + ((i64)1 << (shift - 1))) >> shift);
}

// The second pass, fractions to bytes. As the first, but 1: from (i32), 2: to.
KERNEL(resize_last) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[3], from = (u32)a.v[4], width = (u32)a.v[5], down = (u32)a.v[6], shift = (u32)a.v[10];
    u32 x = i % width, y = i / width, along = down ? y : x;
    u32 old = ((const u32 *)a.v[7])[along], step = down ? from : 1;
    const u32 *offsets = (const u32 *)a.v[8];
    const i32 *weights = (const i32 *)a.v[9];
    const i32 *in = (const i32 *)a.v[1] + (down ? old * from + x : y * from + old) * channels;
    u8 *out = (u8 *)a.v[2] + i * channels;
    i64 sums[4] = {0, 0, 0, 0};
    for (u32 k = offsets[along]; k < offsets[along + 1]; k++) {
        i64 weight = weights[k];
        for (u32 c = 0; c < channels; c++) sums[c] += weight * in[c];
        in += step * channels;
    }
    for (u32 c = 0; c < channels; c++) {
        if (channels == 4 && c < 3) {
            // Colours were counted by alpha: divided by the sum of it they are colours again.
            i64 whole = sums[3];
            out[c] = whole <= 0 || sums[c] <= 0 ? 0 : held((2 * sums[c] + whole) / (2 * whole));
        } else {
            out[c] = held((sums[c] + ((i64)1 << (shift - 1))) >> shift);
        }
    }
}

// 1: the image, which changes, 2: channels, 3 or 4.
KERNEL(gray) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u8 *pixel = (u8 *)a.v[1] + i * (u32)a.v[2];
    u8 value = luma(pixel[0], pixel[1], pixel[2]);
    for (int c = 0; c < 3; c++) pixel[c] = value;
}

// 1: the image, which changes, 2: channels, 3: 256 bytes.
KERNEL(table) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[2];
    const u8 *values = (const u8 *)a.v[3];
    u8 *pixel = (u8 *)a.v[1] + i * channels;
    for (u32 c = 0; c < channels && c < 3; c++) pixel[c] = values[pixel[c]];
}

// 1: the image, which changes, 2: channels, 3 or 4.
KERNEL(swap_red_blue) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u8 *pixel = (u8 *)a.v[1] + i * (u32)a.v[2];
    u8 red = pixel[0];
    pixel[0] = pixel[2];
    pixel[2] = red;
}

// 1: from, 2: to, 3 and 4: their channels.
KERNEL(convert) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 from = (u32)a.v[3], to = (u32)a.v[4];
    const u8 *in = (const u8 *)a.v[1] + i * from;
    u8 *out = (u8 *)a.v[2] + i * to;
    u8 red = in[0], green = from == 1 ? red : in[1], blue = from == 1 ? red : in[2];
    if (to == 1) {
        out[0] = luma(red, green, blue);
    } else {
        out[0] = red;
        out[1] = green;
        out[2] = blue;
        if (to == 4) out[3] = from == 4 ? in[3] : 255;
    }
}

// 1: the image, which changes, 2 and 3: its channels and width, 4 and 5: where it changes, 6: the image over it,
// 7 and 8: its channels and width, 9 and 10: where it is read, 11: the width of the part, 12: opacity.
KERNEL(overlay) {
    u32 i = THREAD;
    if (i >= (u32)a.v[0]) return;
    u32 channels = (u32)a.v[2], from = (u32)a.v[7], width = (u32)a.v[11];
    u32 x = i % width, y = i / width;
    u8 *under = (u8 *)a.v[1] + ((y + (u32)a.v[5]) * (u32)a.v[3] + x + (u32)a.v[4]) * channels;
    const u8 *over = (const u8 *)a.v[6] + ((y + (u32)a.v[10]) * (u32)a.v[8] + x + (u32)a.v[9]) * from;
    u32 red = over[0], green = from == 1 ? red : over[1], blue = from == 1 ? red : over[2];
    u32 cover = ((from == 4 ? over[3] : 255u) * (u32)a.v[12] + 127) / 255, rest = 255 - cover;
    if (channels == 1) {
        under[0] = (u8)((luma(red, green, blue) * cover + under[0] * rest + 127) / 255);
    } else if (channels == 3) {
        under[0] = (u8)((red * cover + under[0] * rest + 127) / 255);
        under[1] = (u8)((green * cover + under[1] * rest + 127) / 255);
        under[2] = (u8)((blue * cover + under[2] * rest + 127) / 255);
    } else {
        // Both weights and their sum in 255ths of 255ths.
        u32 upper = cover * 255, lower = under[3] * rest, whole = upper + lower;
        under[0] = whole == 0 ? 0 : (u8)((red * upper + under[0] * lower + whole / 2) / whole);
        under[1] = whole == 0 ? 0 : (u8)((green * upper + under[1] * lower + whole / 2) / whole);
        under[2] = whole == 0 ? 0 : (u8)((blue * upper + under[2] * lower + whole / 2) / whole);
        under[3] = (u8)((whole + 127) / 255);
    }
}
