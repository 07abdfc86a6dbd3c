# make run    build everything and start a demo
# make test   install what the tests need and run all of them
# make help   the other targets

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export GOFLAGS ?= -mod=readonly

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# How long a fuzz target runs, and how many test packages at once.
FUZZTIME ?= 60s
TESTJOBS ?= 2

client_sources := $(shell find web/client -name node_modules -prune -o -type f -print 2>/dev/null)
client_built   := web/dist/index.html

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

.PHONY: run
run: build ## build everything and start the demo
	./bin/trunkhall demo

.PHONY: build
build: $(client_built) server ## build bin/trunkhall, the web client inside

.PHONY: server
server:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/trunkhall ./cmd/trunkhall

.PHONY: client
client: $(client_built) ## build the web client into web/dist

$(client_built): $(client_sources)
	cd web/client && npm ci --no-fund --no-audit && npm run build
	touch web/dist/.keep $@

# ---- tests ---------------------------------------------------------------

# command:Debian package
test_tools := chromium:chromium gcc:gcc turnutils_uclient:coturn nginx:nginx-light \
	caddy:caddy systemd-analyze:systemd git:git \
	baresip:baresip-core sipp:sip-tester kamailio:kamailio

.PHONY: test-tools
test-tools:
	@missing=""; \
	for pair in $(test_tools); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; \
	done; \
	[ -e /usr/include/stdlib.h ] || missing="$$missing libc6-dev"; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q update; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qy install --no-install-recommends $$missing; \
	fi
	cd test && npm ci --no-fund --no-audit

.PHONY: test
test: test-tools build check test-client test-go test-livekitsdk test-whole ## install what the tests need and run all of them
	@echo "all tests passed"

.PHONY: check
check: ## go vet and gofmt
	@unformatted=$$(find . -name node_modules -prune -o -name '*.go' -print0 | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	go vet -tags goolm ./...
	go vet -tags 'goolm soak' ./test/phones

.PHONY: test-client
test-client: $(client_built)
	cd web/client && npm test

# Everything but the whole-program tests, under the race detector.
.PHONY: test-go
test-go:
	CGO_ENABLED=1 go test -race -tags goolm -timeout 20m -p $(TESTJOBS) $$(go list -tags goolm ./... | grep -v '/trunkhall/test')
	go test -tags goolm -timeout 5m -p 1 -run 'Alloc|ScenariosCarrySound' ./sfu ./audio ./sip/media ./sip/bench # what the detector distorts

# LiveKit's Go SDK wants other versions of our libraries: a module of its own.
.PHONY: test-livekitsdk
test-livekitsdk: build
	cd test/livekitsdk && go test -count=1 -timeout 10m ./...

# Whole programs, driven by clients we did not write; one at a time.
.PHONY: test-whole
test-whole: build
	TRUNKHALL_BIN=$(CURDIR)/bin/trunkhall go test -count=1 -tags goolm -timeout 60m -p 1 ./test/...

# ---- more ----------------------------------------------------------------

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (60s)
	@grep -rlE '^func Fuzz' --include='*_test.go' . | grep -v node_modules | sort | while read -r file; do \
		for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
			echo "== $$file $$name"; \
			go test -tags goolm -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "$$(dirname "$$file")" < /dev/null; \
		done; \
	done

.PHONY: soak
soak: server ## thousands of telephone calls and what they leave behind; the delay between two phones
	TRUNKHALL_BIN=$(CURDIR)/bin/trunkhall go test -count=1 -v -tags 'goolm soak' -timeout 30m -run 'TestManyCalls|TestCallsLeaveNothing|TestAddedDelay' ./test/phones

.PHONY: bench
bench: server ## the figures of docs/performance.md
	./bin/trunkhall bench sfu
	./bin/trunkhall bench homeserver
	./bin/trunkhall bench sip

.PHONY: lint
lint: check ## go vet, gofmt and, where installed, golangci-lint and govulncheck
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: left out"; fi
	@if command -v govulncheck >/dev/null; then govulncheck ./...; else echo "govulncheck is not installed: left out"; fi

.PHONY: clean
clean: ## remove what was built
	rm -rf bin web/client/node_modules test/node_modules test/output
	find web/dist -mindepth 1 ! -name .keep -delete
