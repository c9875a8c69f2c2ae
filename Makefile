# Everything a visitor or a developer types. Cargo decides where things are built: CARGO_TARGET_DIR is honoured.
#
#   make run      see it work: steps, a kill -9, a burst (under 20 s once built; no server, no internet)
#   make deps     what build and tests need besides Rust and git: nats-server, PostgreSQL, chromium, a C compiler, rustfmt, clippy
#   make test     all tests
#   make lint     formatting, clippy, and that the machine compiles without its runtime
#   make chaos    kills and every trouble at random, simulated worlds, bent inputs, recorded in tests/runs/ (under 30 min once built)
#   make coverage which branches of the machine simulated worlds take, by seeds alone (needs llvm-tools; says how to get them)
#   make perf     measurements, recorded in perf/runs/

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help deps run test lint chaos chaos-runs coverage perf

CARGO ?= cargo
# Failpoints are the crash points C0 to C9; planted bugs are what the simulation must find.
FEATURES := failpoints,planted
# Debian keeps servers in /usr/sbin, which is not in everybody's PATH.
export PATH := $(PATH):/usr/sbin:/usr/local/sbin
# Where a recorded run is kept.
RUN := $(shell date -u +%Y-%m-%d)-$(shell uname -n)

help:
	@sed -n 's/^#   //p' Makefile

deps:
	@.ci/deps

run:
	@$(CARGO) build --release
	@$(CARGO) run --release --quiet -- demo

test:
	$(CARGO) test --workspace --features $(FEATURES)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features $(FEATURES) -- -D warnings
	$(CARGO) check -p shards --no-default-features
	$(CARGO) clippy -p shards --no-default-features -- -D warnings

# How much: make chaos WORKER_KILLS=20 SERVER_KILLS=5 MIXED_SECONDS=60 SEEDS=1..1000 FUZZ=1000000 (executions of each target).
# SEED is the first world's of the mixed run.
WORKER_KILLS ?= 200
SERVER_KILLS ?= 50
MIXED_SECONDS ?= 900
SEED ?= $(shell date -u +%s)
SEEDS ?= 1..20000
FUZZ ?= 5000000
# Whatever the machine: what has not ended by then is cut off, and the run fails.
BUDGET ?= 30m

chaos: deps
	$(CARGO) test --release --features failpoints --test it --test sim --test fuzz --no-run
	timeout $(BUDGET) $(MAKE) --no-print-directory chaos-runs

chaos-runs:
	@mkdir -p tests/runs/$(RUN)
	ENDSTATION_IT_WORKER_KILLS=$(WORKER_KILLS) ENDSTATION_IT_SERVER_KILLS=$(SERVER_KILLS) \
	  MIXED_SECONDS=$(MIXED_SECONDS) SEED=$(SEED) ENDSTATION_IT_RECORD=$(CURDIR)/tests/runs/$(RUN)/chaos.jsonl \
	  $(CARGO) test --release --features failpoints --test it scenario::chaos -- --nocapture
	SEEDS=$(SEEDS) $(CARGO) test --release --features failpoints --test sim many_seeds -- --ignored --nocapture | tee tests/runs/$(RUN)/sim.txt
	FUZZ_RECORD=$(CURDIR)/tests/runs/$(RUN)/fuzz.jsonl \
	  $(CARGO) test --release --features failpoints --test fuzz exhaustive -- --nocapture
	FUZZ=$(FUZZ) FUZZ_RECORD=$(CURDIR)/tests/runs/$(RUN)/fuzz.jsonl \
	  $(CARGO) test --release --features failpoints --test fuzz long -- --ignored --nocapture

# make coverage COVERAGE_SEEDS=1..500 for a quick look.
COVERAGE_SEEDS ?= 1..3000

coverage:
	SEEDS=$(COVERAGE_SEEDS) tests/sim/coverage.sh

# What is measured and how: cargo run -p perf -- help
PERF_ARGS ?=

perf: deps
	$(CARGO) build --profile profiling --workspace --bins
	$(CARGO) run --profile profiling --quiet -p perf -- engine
	$(CARGO) run --profile profiling --quiet -p perf -- engine --what plans --shards 1 --windows 1024 --events off
	$(CARGO) run --profile profiling --quiet -p perf -- nats $(PERF_ARGS)
	$(CARGO) run --profile profiling --quiet -p perf -- blocks --rows 64,open $(PERF_ARGS)
	$(CARGO) run --profile profiling --quiet -p perf -- neighbours --rows open $(PERF_ARGS)
	$(CARGO) run --profile profiling --quiet -p perf -- sql $(PERF_ARGS)
	$(CARGO) run --profile profiling --quiet -p perf -- gpu
