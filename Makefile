# The commands people and CI use. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# deploy/install puts the cargo tools here when the machine has none.
export PATH := $(PATH):$(TARGET)/tools/bin
COMPOSE := docker compose --file deploy/compose.yaml

.PHONY: help fmt lint test e2e chaos fuzz doc deny advisories up down demo check-config ci bench

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## see events become webhooks, with no server and no configuration (ARGS="--once")
	deploy/install demo
	cargo run --locked --package postrider -- demo $(ARGS)

test: ## every test, on both brokers and both stores; installs what they need
	deploy/install test
	# One selection for binary and tests, so that their dependencies are compiled once.
	cargo build --locked --workspace --bins --tests
	$(MAKE) check-config
	cargo test --locked --workspace --doc --quiet
	tests/with-services cargo nextest run --locked --workspace $(ARGS)

e2e: ## the end-to-end tests only (ARGS="retries" picks some)
	deploy/install test
	cargo build --locked --workspace --bins --tests
	tests/with-services cargo nextest run --locked --package postrider-tests $(ARGS)

chaos: ## the fault matrix under load, every fault, about half an hour (ARGS="-n 2 f04 f07")
	deploy/install test chaos
	tests/chaos $(ARGS)

fuzz: ## look for input that breaks a law, FUZZ_SECONDS=60 a target (ARGS="filter" picks some)
	deploy/install fuzz
	fuzz/run $(ARGS)

fmt: ## format the code
	cargo fmt --all

lint: ## what CI refuses: format, clippy, docs, dependencies
	deploy/install lint
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(MAKE) doc deny advisories

doc: ## build the API documentation; a broken link fails
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

advisories: ## check for known vulnerabilities; offline it says that it did not (ADVISORIES=required fails)
	deploy/advisories

deny: ## check licences, sources and the walls between crates
	cargo deny --log-level error check --hide-inclusion-graph bans licenses sources

check-config: ## check the files under deploy/ (Prometheus rules, dashboard, compose)
	deploy/check

ci: ## what .ci/run does
	.ci/run

bench: ## measure publish to endpoint on the embedded broker (ARGS="--set broker.url=amqp://…")
	deploy/install demo
	cargo run --locked --release --package postrider -- bench $(ARGS)

up: ## RabbitMQ, PostgreSQL, the roles, Prometheus and Grafana in containers
	$(COMPOSE) up --build --detach --wait

down: ## stop them; the data stays (ARGS="--volumes" removes it)
	$(COMPOSE) down $(ARGS)
