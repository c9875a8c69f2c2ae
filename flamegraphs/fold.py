#!/usr/bin/env python3
"""Folds `perf script` output into lines "thread;frame;frame count", with the binary's own symbols read by `nm`.

Some builds of perf cannot read the symbols of a Rust binary; nm can. Usage:
    perf script -i perf.data -F comm,ip,sym,dso | fold.py BINARY [THREAD-PREFIX]
"""
import bisect
import collections
import re
import subprocess
import sys

binary = sys.argv[1]
only = sys.argv[2] if len(sys.argv) > 2 else ""

segments = []
for line in subprocess.run(["readelf", "-lW", binary], capture_output=True, text=True).stdout.splitlines():
    part = line.split()
    if part[:1] == ["LOAD"]:
        segments.append((int(part[1], 16), int(part[2], 16), int(part[4], 16)))
symbols = []
for line in subprocess.run(["nm", "-C", "--defined-only", binary], capture_output=True, text=True).stdout.splitlines():
    part = line.split(" ", 2)
    if len(part) == 3 and part[1] in "tTwW":
        symbols.append((int(part[0], 16), part[2]))
symbols.sort()
starts = [start for start, _ in symbols]


def clean(name):
    name = re.sub(r"::h[0-9a-f]{16}$", "", name)
    return re.sub(r"\s+", " ", name).replace(";", ":")


def symbol(offset):
    for file_at, virtual, size in segments:
        if file_at <= offset < file_at + size:
            at = bisect.bisect(starts, offset - file_at + virtual) - 1
            return clean(symbols[at][1]) if at >= 0 else "?"
    return "?"


stacks = collections.Counter()
comm, frames = None, []


def flush():
    global comm, frames
    if comm and comm.startswith(only) and frames:
        stacks[";".join([comm] + frames[::-1])] += 1
    comm, frames = None, []


for line in sys.stdin:
    if " PERF_RECORD_" in line:
        continue
    if not line.strip():
        flush()
    elif line[0] not in " \t" or comm is None:
        flush()
        comm = line.split()[0]
    else:
        part = line.split(None, 1)
        address, rest = int(part[0], 16), part[1].strip() if len(part) > 1 else ""
        name, _, library = rest.rpartition(" (")
        name = clean(name)
        if library.rstrip(")").rsplit("/", 1)[-1] == binary.rsplit("/", 1)[-1]:
            # Without a symbol perf gives the place in the file.
            name = symbol(address) if name == "[unknown]" else name
        if name == "[unknown]":
            continue
        frames.append(name)
flush()
for stack, count in sorted(stacks.items()):
    print(stack, count)
