# The tasks of this project. Each runs one command.

.DEFAULT_GOAL := help
.PHONY: help demo build test test-rust lint fmt doc bench fuzz gate

help: ## List the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## Run simulator, gateway and status page; no account needed
	cargo run --release -- demo

build: ## Build the program: target/release/insights-gateway
	cargo build --release --locked

test: ## Run all tests: SDKs, browser, deployment files, fuzzers; installs what is missing
	tests/run

test-rust: ## Run the tests that need nothing but Rust
	cargo test --locked

lint: ## Run clippy with warnings denied
	cargo clippy --locked --all-targets --all-features -- -D warnings

fmt: ## Format the code
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

doc: ## Build the documentation of the code, with warnings denied
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

bench: ## Measure a cache hit and a cache miss, and compare with other proxies
	cargo bench --bench hit_path

fuzz: ## Run each fuzz target for half a minute
	fuzz/run 30

gate: ## Run the checks that must pass before a change is merged
	.ci/run
