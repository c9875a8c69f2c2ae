#!/usr/bin/env python3
"""The heaviest functions of folded stacks: by themselves, and with what they call. Usage: top.py [COUNT] < folded"""
import collections
import sys

most = int(sys.argv[1]) if len(sys.argv) > 1 else 40
own, whole, total = collections.Counter(), collections.Counter(), 0
for line in sys.stdin:
    stack, count = line.rsplit(" ", 1)
    frames, count = stack.split(";"), int(count)
    own[frames[-1]] += count
    for frame in set(frames):
        whole[frame] += count
    total += count
for title, counts in (("own", own), ("whole", whole)):
    print(f"-- {title}, of {total} samples")
    for frame, count in counts.most_common(most):
        print(f"{100 * count / total:6.2f} %  {frame[:150]}")
