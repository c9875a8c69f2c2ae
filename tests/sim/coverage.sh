#!/usr/bin/env bash
# Which branches of the machine the simulated worlds take, by seeds alone: a table, and every branch that none took.
#
# A branch is one side of a condition (`if`, `let … else`, `&&`, `||`); arms of a `match` are no branches to the compiler, so the
# regions beside them count those. The machine is built without its runtime and without planted bugs. Where a spot for a planted
# bug stands, its armed side counts as unreachable; so does what unreachable.txt names with a reason. If a world takes such a
# branch all the same, that list is wrong and this fails, as it does below 90 %.
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=${SEEDS:-1..3000}
at_least=${AT_LEAST:-90}
target=${CARGO_TARGET_DIR:-target}/coverage

# The tools must know the compiler's profile format: the same major version of LLVM.
major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
tools=""
for folder in "$(rustc --print sysroot)/lib/rustlib/$host/bin" "/usr/lib/llvm-$major/bin"; do
    if [ -x "$folder/llvm-cov" ] && [ -x "$folder/llvm-profdata" ]; then tools=$folder; fi
done
if [ -z "$tools" ]; then
    cat >&2 <<TEXT
llvm-cov and llvm-profdata $major are missing. Either of
    rustup component add llvm-tools
    apt-get install llvm-$major
TEXT
    exit 1
fi

# Branches are still an unstable option of the compiler: it is told to take it, here only.
binary=$(RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Cinstrument-coverage -Zcoverage-options=branch" CARGO_TARGET_DIR=$target \
    cargo test -p shards --no-default-features --test worlds --no-run 2>&1 | tee /dev/stderr |
    sed -n 's/.*Executable .*(\(.*\))$/\1/p')
profile=$target/worlds
SEEDS=$seeds LLVM_PROFILE_FILE=$profile.profraw "$binary" many_seeds --ignored --nocapture | grep -E "seeds/s|^seed " >&2
"$tools/llvm-profdata" merge -sparse "$profile.profraw" -o "$profile.profdata"
"$tools/llvm-cov" export "$binary" -instr-profile="$profile.profdata" -format=lcov >"$profile.lcov" 2>/dev/null
"$tools/llvm-cov" report "$binary" -instr-profile="$profile.profdata" >"$profile.report" 2>/dev/null

awk -v at_least="$at_least" '
    function machine(path) {
        return path ~ /shards\/src\/(shard|dedup|fold|lane|quota|retry|strike|deadlines|tenant|outcome)\.rs$/ ||
            path ~ /shards\/src\/shard\/[a-z]+\.rs$/
    }
    function short(path) { sub(/.*shards\/src\//, "", path); return path }
    FILENAME ~ /unreachable.txt$/ {
        if ($0 ~ /^[^#]/) { split($0, part, "\t"); listed[part[1], part[2], part[3]]++ }
        next
    }
    FILENAME ~ /report$/ {
        # Filename Regions Missed Cover ...
        for (file in want) if (index($1, "/") && want[file] ~ ($1 "$")) { regions[file] = $2; missed[file] = $3 }
        next
    }
    /^SF:/ { path = substr($0, 4); file = machine(path) ? short(path) : ""; if (file != "") { want[file] = path; files[++count] = file } }
    /^BRDA:/ && file != "" {
        split(substr($0, 6), part, ",")
        key = file SUBSEP part[1] SUBSEP part[3]
        if (!(key in taken)) { order[++branches] = key }
        taken[key] += part[4] == "-" ? 0 : part[4]
    }
    END {
        for (at = 1; at <= count; at++) {
            line = 0
            while ((getline text < want[files[at]]) > 0) { line++; sub(/^ */, "", text); source[files[at], line] = text }
        }
        for (at = 1; at <= branches; at++) {
            split(order[at], part, SUBSEP)
            file = part[1]; line = part[2]; side = part[3] % 2 ? "false" : "true"
            text = source[file, line]
            said = (file, side, text) in listed && hidden[file, side, text] < listed[file, side, text]
            if (taken[order[at]]) { all[file]++; covered[file]++; continue }
            if (said) { apart++; hidden[file, side, text]++; continue }
            # One side of one condition is the planted bug itself.
            if (text ~ /planted\(/ && !spot[file, line]++) { apart++; continue }
            all[file]++
            open[++opens] = sprintf("%s:%d: never %s: %s", file, line, side, text)
        }
        printf "%-20s %9s %8s %8s %10s\n", "file", "branches", "covered", "", "regions"
        for (at = 1; at <= count; at++) {
            file = files[at]; if (shown[file]++) continue
            total += all[file]; took += covered[file]; r += regions[file]; m += missed[file]
            if (all[file] + regions[file] == 0) continue
            printf "%-20s %9d %8d %7.1f%% %9.1f%%\n", file, all[file], covered[file],
                all[file] ? 100 * covered[file] / all[file] : 100, regions[file] ? 100 * (1 - missed[file] / regions[file]) : 100
        }
        percent = total ? 100 * took / total : 0
        printf "%-20s %9d %8d %7.1f%% %9.1f%%\n", "all", total, took, percent, r ? 100 * (1 - m / r) : 0
        printf "%d more are said to be unreachable; with them it is %.1f%%\n", apart, 100 * took / (total + apart)
        for (at = 1; at <= opens; at++) print open[at]
        for (key in listed) if (hidden[key] < listed[key]) {
            split(key, part, SUBSEP); printf "unreachable.txt is wrong: %s | %s | %s\n", part[1], part[2], part[3]; wrong = 1
        }
        if (percent < at_least) { printf "%.1f%% is less than %s%%\n", percent, at_least; wrong = 1 }
        exit wrong
    }' tests/sim/unreachable.txt "$profile.lcov" "$profile.report"
