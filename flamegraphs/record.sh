#!/usr/bin/env bash
# Records a flamegraph of a scenario of perf, or of any command after --, and keeps it beside this script.
#
#   record.sh engine [options of perf engine]
#   record.sh nats [options of perf nats]
#   record.sh -- COMMAND [ARGUMENTS]
#
# SECONDS_MAX (60) ends a recording that would go on; FREQUENCY (997) is samples a second; NAME names the graph.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }

command -v perf >/dev/null || { echo "perf is missing: apt-get install linux-perf" >&2; exit 1; }
paranoid=$(cat /proc/sys/kernel/perf_event_paranoid 2>/dev/null || echo 0)
if [ "$(id -u)" != 0 ] && [ "$paranoid" -gt 1 ]; then
    echo "perf may not look: run as root, or sysctl kernel.perf_event_paranoid=1 (it is $paranoid)" >&2
    exit 1
fi

# Frame pointers make stacks cheap and whole; without them perf would have to copy each stack.
export RUSTFLAGS="${RUSTFLAGS:-} -C force-frame-pointers=yes"
if [ "$1" = -- ]; then
    shift
    name=${NAME:-$(basename "$1")}
    what=("$@")
else
    name=${NAME:-$1}
    cargo build --profile profiling --workspace --bins
    what=("${CARGO_TARGET_DIR:-target}/profiling/perf" "$@")
fi

out="$here/$(date -u +%Y-%m-%d)-$name"
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
# 124: the time was up, which is fine.
timeout --signal=INT "${SECONDS_MAX:-60}" \
    perf record --freq "${FREQUENCY:-997}" --call-graph fp --output "$data/perf.data" -- "${what[@]}" || [ $? -eq 124 ]

if command -v inferno-collapse-perf >/dev/null && command -v inferno-flamegraph >/dev/null; then
    perf script --input "$data/perf.data" 2>/dev/null |
        inferno-collapse-perf | inferno-flamegraph --title "$name, $(uname -n), $(git rev-parse --short HEAD)" >"$out.svg"
    echo "$out.svg"
else
    mv "$data/perf.data" "$out.perf.data"
    perf report --input "$out.perf.data" --stdio --no-children --percent-limit 1 --sort symbol 2>/dev/null | grep -v '^#' | head -n 40
    echo "inferno is missing (cargo install inferno --locked): kept $out.perf.data, nothing drawn" >&2
fi
