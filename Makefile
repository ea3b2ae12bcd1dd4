# Axion Runner Agent. `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
export VERSION
GO_TAGS := nomsgpack
TOOL := go tool -modfile=tools/go.mod

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: ## Install what is missing, build, start engine, plane and agent, deploy the sample, show the result
	@deploy/up

.PHONY: down
down: ## Remove all that `make up` made
	@deploy/down

.PHONY: build
build: ## Build the three programs for this machine into dist/
	@mkdir -p dist
	CGO_ENABLED=0 go build -trimpath -tags $(GO_TAGS) -ldflags "-s -w -X github.com/axion/runner-agent/proto/version.Version=$(VERSION)" -o dist/ ./cmd/...

.PHONY: images
images: ## Build the images axion/{agent,plane,hello}:dev for this machine's engine
	@mkdir -p dist && deploy/build-image agent plane hello axionctl

.PHONY: compose-up
compose-up: ## The local development loop: plane and agent by docker compose
	@deploy/compose-up

.PHONY: test
test: ## Install what the tests need; run unit, integration and end-to-end tests
	@test/run

.PHONY: test-images
test-images: ## Bake the images for amd64 and arm64 with real buildx, BuildKit and Compose
	@test/images/run

.PHONY: fault
fault: ## Break things on purpose, in a short form, and print what held (docs/faults.md)
	@test/fault/run

.PHONY: fault-long
fault-long: ## The whole of the fault tests; takes hours
	@AXION_FAULT=long test/fault/run

.PHONY: rig-up
rig-up: ## A real Swarm of four nodes on this machine, with plane and agents, to be broken (docs/rig.md)
	@mkdir -p dist && go build -tags $(GO_TAGS) -o dist/rig ./test/rig/cmd/rig && dist/rig up $(RIG)

.PHONY: rig-down
rig-down: ## Remove the rig
	@mkdir -p dist && go build -tags $(GO_TAGS) -o dist/rig ./test/rig/cmd/rig && dist/rig down

.PHONY: lint
lint: ## Formatting, vet, staticcheck, contract lint, stale generated files, shell syntax
	@unformatted=$$($(TOOL) gofumpt -l agent cmd ctl deploy images internal plane proto stack test bench); \
	  if [ -n "$$unformatted" ]; then echo "not gofumpt-clean (make fmt):"; echo "$$unformatted"; exit 1; fi
	go vet -tags $(GO_TAGS) ./...
	$(TOOL) staticcheck -tags $(GO_TAGS) ./...
	$(TOOL) buf lint
	@$(MAKE) --no-print-directory proto-breaking check-generated
	@for f in deploy/up deploy/down deploy/build-image deploy/lib.sh deploy/compose-up test/run test/fault/run test/images/run .ci/run; do bash -n $$f; done
	@sh -n deploy/build-rootfs

.PHONY: vulncheck
vulncheck: ## Known vulnerabilities in what is linked (asks the Go vulnerability database)
	$(TOOL) govulncheck -tags $(GO_TAGS) ./...

.PHONY: fmt
fmt: ## Format Go and protobuf files
	$(TOOL) gofumpt -w agent cmd ctl deploy images internal plane proto stack test bench
	$(TOOL) buf format -w

.PHONY: generate
generate: ## Generate Go code from the contract, the example configuration and the golden files of help texts
	$(TOOL) buf generate

.PHONY: check-generated
check-generated: ## Fail when generated files are stale
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(TOOL) buf generate -o "$$dir"; \
	(cd "$$dir" && find . -name '*.pb.go') | while read -r f; do cmp -s "$$dir/$$f" "$$f" || { echo "$$f is stale: run make generate and commit it"; exit 1; }; done

.PHONY: proto-breaking
proto-breaking: ## Fail when the contract breaks what was released (proto/released.binpb)
	$(TOOL) buf breaking --against proto/released.binpb

.PHONY: proto-release
proto-release: ## Record the contract as it is now as the released one
	$(TOOL) buf build -o proto/released.binpb

.PHONY: bench-footprint
bench-footprint: ## Measure the agent's memory at rest and the images' sizes
	@bench/footprint/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf dist
