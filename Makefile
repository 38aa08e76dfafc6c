# Verbs of this repository; `make help` lists them.

GO      ?= go
TOOLS   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/switchyard/tools
LINT    := golangci-lint@v2.15.0
VERSION := $(or $(shell git describe --tags --always --dirty 2>/dev/null),dev)
FUZZTIME ?= 10s

.DEFAULT_GOAL := help
.PHONY: help run test fresh lint vuln bench bench-micro bench-compare fuzz mutants faults storms moves proxies browsers cross backup-million e2e e2e-deploy image build docs figures

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## run the service on this machine, with nothing else
	$(GO) run ./cmd/server

build: ## build bin/server and bin/switchyard, static and stripped
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/server ./cmd/switchyard

test: ## install what is missing (Debian, as root), then run all tests with the race detector
	@scripts/deps
	@bin=$$(mktemp -d) && trap 'rm -rf "$$bin"' EXIT && TESTKIT_BIN=$$bin $(GO) test -race -vet off -timeout 30m ./... # make lint vets

fresh: ## do what README.md says in a Debian root that has nothing but Go, as root: DEBIAN=12 or 13
	@scripts/fresh $(or $(DEBIAN),12)

lint: ## hold the code against .golangci.yml
	@test -x $(TOOLS)/$(LINT) || { mkdir -p $(TOOLS) && \
	  GOBIN=$(TOOLS)/build $(GO) install github.com/golangci/golangci-lint/v2/cmd/$(LINT) && \
	  mv $(TOOLS)/build/golangci-lint $(TOOLS)/$(LINT) && rmdir $(TOOLS)/build; }
	$(TOOLS)/$(LINT) run ./...

vuln: ## look for known weaknesses that the code can reach, of moved modules and of images; scripts/vuln exits with 3 for one, 4 where nothing can be known
	@scripts/vuln

PLATFORMS ?= linux/amd64 linux/arm64 linux/arm linux/386 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
cross: ## compile the service and its unit tests for every system, a quarter of an hour the first time; PLATFORMS=windows/amd64
	@packages=$$($(GO) list -deps ./cmd/server | grep ^switchyard/) && for p in $(PLATFORMS); do echo "== $$p" && \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -o /dev/null ./cmd/server && \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) vet $$packages || exit 1; done

fuzz: ## run every fuzz test for FUZZTIME (10s) each, JOBS (1) at once
	@scripts/fuzz $(FUZZTIME)

mutants: ## break the code on purpose in small ways, and name each change that no test notices; RUN=hub for some
	@scripts/deps
	$(GO) test -tags mutants -count 1 -timeout 0 -parallel 2 -v -run 'TestMutants/$(RUN)' ./test/mutants $(if $(WHOLE),-args -mutants.whole)

# The stories that make test runs with fewer faults, clients and messages.
FAULTS = TestVerifyFindsEachBrokenInvariant|TestFaultScenarios|TestDeliveryDuringRedisFaults|TestANodeDiesAndNobodyMissesAMessage|TestPublishersGetUnavailableWhilePostgreSQLFails|TestPendingPublishesAreBoundedWhilePostgreSQLStalls|TestHostileClients|TestAProcessExitsCleanlyBesideASilentClient
faults: ## kill, stop, cut and stall everything under traffic, minutes a run; SEED=, RUNS=20, REPORT=file
	@scripts/deps
	$(GO) test -race -timeout 0 -count 1 -v -run '^($(FAULTS))$$' ./test/e2e -args -faults.long \
	  -faults.seed $(or $(SEED),0) -faults.runs $(or $(RUNS),1) -faults.report '$(abspath $(REPORT))'

hostile: ## strangers use up what a node gives everyone, beside honest clients and a node that nobody attacks, ten minutes
	@scripts/deps
	$(GO) test -timeout 0 -count 1 -v -run '^(TestStrangersDoNotUseUpANode|TestMembersThatAreBrieflyBehindAreNotClosed)$$' ./test/e2e -args -faults.long

# The tests that make test runs with smaller numbers, without a service besides.
STORMS = TestStorm.*|TestAnIdleConnectionIsSmall|TestAResumeOfEveryRoomIsNotRateLimited|TestAFloodDoesNotFloodTheAuditLog|TestProbesAndDrainsDoNotDeadlock|TestMovesLoseDuplicateAndReorderNothing
storms: ## thousands of rooms, members, connections and moves at once in one process, at full size, two minutes
	$(GO) test -race -p 1 -count 1 -v -timeout 30m -run '^($(STORMS))$$' ./internal/hub ./internal/http ./internal/drain ./internal/audit ./internal/client -args -storm.long

moves: ## move CLIENTS (5000) from a node that goes, minutes a story
	@scripts/deps
	$(GO) test -timeout 0 -count 1 -v -run '^(TestADeployMovesEveryClient|TestClientsOfAKilledNodeReconnectSpreadOut|TestPlainClients|TestADrainTakenBack|TestAClientOfManyRooms)' ./test/e2e -args -moves.clients $(or $(CLIENTS),5000)

proxies: ## run the service behind real nginx, Caddy, HAProxy and Traefik with the configurations of docs/proxies.md, two minutes
	@scripts/deps proxies
	@traefik=$$(scripts/traefik) && $(GO) test -race -count 1 -v ./test/proxies -args -proxies.all -proxies.traefik "$$traefik"

browsers: ## run the page and client.js in Chromium, Firefox and WebKitGTK, all stories, also of a server that is away for minutes
	@scripts/deps
	$(GO) test -race -count 1 -timeout 30m -v ./test/browser -args -browsers.all

backup-million: ## back up a log of 1,000,000 messages, verify it, and restore it to a moment in the middle; minutes
	@scripts/deps
	$(GO) test -timeout 0 -count 1 -v -run '^TestAMillionMessages$$' ./internal/backup -args -backup.million

bench: ## hold the service beside its peers, with load on core 1; QUICK=1 for a first look, VERB=churn for another run (bench/README.md)
	@scripts/deps
	cd bench && $(GO) run ./run $(if $(QUICK),-quick) $(BENCH) $(VERB)

bench-micro: ## the benchmarks beside the code; QUICK=1 for a short look
	$(GO) test -run '^$$' -bench . -benchmem $(if $(QUICK),-benchtime 100ms,-benchtime 2s -count 3) ./internal/...

bench-compare: ## the same beside another commit's, by benchstat: BASE=main
	@scripts/bench-compare $(or $(BASE),main)

e2e: ## build the image and run both compose files on Docker, as root; ARGS="-run TestTwentySwitches"
	@scripts/e2e $(ARGS)

# What a release wants to see; RUN= picks a story.
LONG_DEPLOYS = -deploy.n 20 -deploy.kills 25 -deploy.clients 1000 -deploy.addresses 200 -deploy.rate 300 -deploy.newcomers 40 -deploy.crash 60s -deploy.watch 5s
e2e-deploy: ## the stories of switchyard deploy on Docker, as root: LONG=1 takes hours, RUN=TestDeployKilledAndRunAgain one of them, ARGS="-deploy.seed 7"
	@scripts/e2e -timeout 0 -run '$(or $(RUN),^TestDeploy)' -args -deploy $(if $(LONG),$(LONG_DEPLOYS)) $(ARGS)

image: ## build the image switchyard:VERSION
	docker build --build-arg VERSION=$(VERSION) --tag switchyard:$(VERSION) .

docs: ## write what is made from the code: the settings, the tables of import rules, the help of both commands
	$(GO) test ./internal/config -run TestTheConfigurationDocumentIsUpToDate -update
	$(GO) test ./internal/app -run TestTheImportRules -update
	$(GO) test ./cmd/... -run TestTheHelp -update

figures: ## lines of files and functions, share of comments, test to code, by package; FOLDERS= for other code
	@$(GO) run ./scripts/figures $(FOLDERS)
