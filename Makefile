# What people type. CI calls .ci/run, which calls the same commands.
.DEFAULT_GOAL := help
VERSION ?= dev
LINT_VERSION := v2.15.0
N := 500

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | column -t -s '	'

build: ## bin/lb and bin/demo-backend, static
	CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/lb ./demo-backend

test: ## the tests, as the README says
	go test ./...

race: ## the tests under the race detector
	go test -race ./...

chaos: ## the chaos tests at the figures of their promises, for some minutes
	LB_CHAOS=full go test -count=1 -timeout 30m -run Chaos -v ./internal/e2e

crash: ## N (500) times killed and started again under load and faults: no accepted write is lost
	LB_CRASH_CYCLES=$(N) go test -count=1 -timeout 60m -run '^Test(Crash|Restart)' -v ./internal/e2e

lint: ## gofmt, go vet, golangci-lint
	.ci/lint

compose: ## the demonstration by docker-compose, checked, with a short load test
	.ci/compose

bench: ## lb beside a bare httputil.ReverseProxy: needs nginx and wrk, and a quiet machine
	go run ./bench -check

bench-fanout: ## how far the durable fan-out reaches: needs strace, and a quiet machine
	go run ./bench/fanout -check

ci: ## everything CI runs
	.ci/run

.PHONY: help build test race chaos crash lint compose bench bench-fanout ci
