# `make run` and `make test` work on a fresh Debian machine; the recipes that compile are incremental.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The recipes use all cores themselves, and two package managers at once would only wait for each other.
ifndef LINTING
.NOTPARALLEL:
endif
.PHONY: help run run-fleet test lint quick matrix check check-deep mutants proofs cross-test build bench reference micro guard guard-update soak scrape-cost schedules fleet-long failover-long audit-long native-test sanitize-test sbom docs screenshots clean FORCE

CLANG ?= clang-19
CLANG_FORMAT ?= clang-format-19
CLANG_TIDY ?= clang-tidy-19
# Arguments for the program that a target runs: make run ARGS=--help
ARGS ?=

BIN := .venv/bin
SOURCES := CMakeLists.txt setup.py $(shell find native bench/native bindings clients/pkcs11 -type f)
C_FILES := $(shell find native bench/native clients/pkcs11 tests/native tests/fuzz tests/reference tests/proofs -name '*.[ch]')
JOBS := $(shell nproc)
# Of those that run tests in Python four more than there are cores: for half of their time tests wait for timers and for other processes. With two
# more a quarter of two cores was idle.
WORKERS := $(shell expr $(JOBS) + 4)
CONFIGURE := cmake --log-level=NOTICE -S . -B
TOGETHER = $(MAKE) --no-print-directory --output-sync=target LINTING=yes
CTEST := ctest --output-on-failure --no-tests=error --parallel $(JOBS) --test-dir

export CMAKE_GENERATOR := Ninja
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
# Container images like to set it: each of the many commands that the tests start would compile hsmcore once more.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-14s %s\n", $$1, $$2 }'

run: .venv/.built ## Install what is missing, then run the demonstration
	$(BIN)/hsmcore demo $(ARGS)
	@echo "The program is $(BIN)/hsmcore: next, $(BIN)/hsmcore init and $(BIN)/hsmcore --help"

run-fleet: .venv/.setup-fleet .venv/.built ## Two sequencers on a private PostgreSQL; the one that signs is stopped and killed in turn
	$(BIN)/hsmcore demo --fleet $(ARGS)

test: checks native-libraries .venv/.built ## Install what is missing, lint, then run every test: the native ones under sanitizers, and Python's
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/chaos/test_rotation_kills.py \
	    $(if $(ARGS),$(ARGS),-m "not deep")

# Python's packages and its extension take one processor, and native tests mostly wait: other work goes on beside them.
.PHONY: checks sanitize-build
checks:
	@scripts/setup packages
	@$(TOGETHER) --jobs 2 .venv/.setup-test sanitize-build
	@$(TOGETHER) --jobs $(shell expr $(JOBS) + 1) sanitize-test $(LINTS)

quick: native-libraries .venv/.built ## A first look at a change of Python: lint, and the unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(WORKERS) tests/unit -m "not deep" $(ARGS)

matrix: .venv/.setup-run ## `make quick` of the last commit under each CPython 3.11 to 3.14 that is found here, in build/matrix; the simulation tells each the same stories
	rm -f build/matrix/stories
	$(BIN)/python -c 'from scripts.wheels import found_interpreters; print(*found_interpreters(), sep="\n")' | \
	while read -r python; do \
	    copy=build/matrix/$$(basename $$python); \
	    { test -d $$copy || git clone -q . $$copy; } && git -C $$copy fetch -q "$(CURDIR)" HEAD && \
	    git -C $$copy reset -q --hard FETCH_HEAD && PYTHON=$$python $(MAKE) -C $$copy quick < /dev/null && \
	    (cd $$copy && $(BIN)/python -m tests.simulation --seeds 1-30 --digests > build/stories && sed -i '$$d' build/stories) && \
	    { test -f build/matrix/stories || cp $$copy/build/stories build/matrix; } && diff build/matrix/stories $$copy/build/stories || exit 1; \
	done

LINTS := lint-types lint-layers lint-size lint-typescript lint-rust lint-python lint-c

lint: .venv/.setup-test ## Look at the form and the types of everything, but for clang-tidy
	@$(TOGETHER) --jobs $(JOBS) $(LINTS)

# Only read, so that they may run at once; each prints when it has ended.
.PHONY: $(LINTS)
lint-types:
	$(BIN)/mypy
lint-layers:
	$(BIN)/lint-imports --no-cache
lint-size:
	scripts/size --check
lint-typescript:
	cd clients/typescript && node_modules/.bin/tsc --noEmit && node_modules/.bin/prettier --check --log-level warn .
lint-rust:
	@cd clients/rust && if command -v cargo-clippy rustfmt > /dev/null; then cargo fmt --check && \
	    cargo clippy --config ../../tests/support/rust/stand-ins.toml --offline --quiet --target-dir ../../build/rust \
	        --all-features --examples --lib -- --deny warnings; else echo "cargo, rustfmt, rust-clippy are missing: Rust is not linted"; fi
lint-python:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
lint-c:
	@$(CLANG_FORMAT) --dry-run --Werror $(C_FILES)

check: lint native-test ## Lint and type-check everything, and run the native tests as they ship
	printf '%s\0' native/src/*.c native/host/*.c bench/native/load/*.c clients/pkcs11/*.c | xargs -0 -P $(JOBS) -n 1 $(CLANG_TIDY) --quiet -p build/test

check-deep: sanitize-test guard proofs cross-test wheels-sign native-libraries .venv/.built ## Run every test at full size, the proofs, the native tests for AArch64 and under every sanitizer, and the fuzzers
	HSMCORE_TESTS=full $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/chaos/test_rotation_kills.py
	$(BIN)/python -m pytest tests/chaos/test_rotation_kills.py tests/chaos/rotation_at_length.py --timeout 1200
	$(BIN)/python -m tests.chaos.looks --seeds 0-199
	$(BIN)/python -m tests.chaos.emergency_at_length
	$(BIN)/python -m tests.fleet.schedules --seeds 0-99 --jobs 2
	$(BIN)/python -m tests.fleet.patroni_schedules --seeds 0-9 --jobs 1
	$(BIN)/python -m tests.fleet.promotions --times 100
	$(BIN)/python -m tests.fuzz.payloads --count 10000000 --seed 1000
	$(BIN)/python -m tests.fuzz.wire --count 5000000 --seed 1000
	for fuzzer in tests/fuzz/fuzz_*.py; do \
	    $(BIN)/python -m tests.fuzz.$$(basename $$fuzzer .py) --seconds 60 --seed 1000 || exit 1; done
	$(BIN)/python -m pytest tests/chaos/rotation_leaders_at_length.py
	$(BIN)/python -m pytest tests/chaos/tune_at_length.py
	$(BIN)/python -m pytest tests/chaos/policy_kills_at_length.py
	$(BIN)/python -m pytest tests/chaos/log_and_store_at_length.py
	$(BIN)/python -m pytest tests/chaos/audit_beside_at_length.py --timeout 7200
	$(BIN)/python -m pytest tests/browser/console_at_length.py --timeout 600
	$(BIN)/python -m pytest tests/proofs/faults/audit_at_length.py --timeout 1200
	$(BIN)/python -m tests.soak.upkeep --most-ms 20
	$(BIN)/python -m tests.soak.upkeep --most-ms 20 --sealed
	$(CONFIGURE) build/tsan -DHSMC_SANITIZE=thread
	cmake --build build/tsan
	$(CTEST) build/tsan
	$(CONFIGURE) build/fuzz -DCMAKE_C_COMPILER=$(CLANG) -DHSMC_FUZZ=ON '-DHSMC_SANITIZE=address;undefined'
	cmake --build build/fuzz
	$(CTEST) build/fuzz

mutants: .venv/.setup-test .venv/.built ## Whether the tests see small changes of the code, 300 of them: make mutants ARGS='--only failover/budget.py --jobs 2'
	$(BIN)/python -m tests.mutants $(ARGS)

proofs: setup-deep ## Prove memory orders, parsers and arithmetic within bounds: see tests/proofs/README.md
	$(BIN)/python -m pytest -n $(JOBS) --timeout 1800 tests/proofs/memory_order.py tests/proofs/bounded.py $(ARGS)

cross-test: setup-deep ## Cross-compile for AArch64 and run the native tests in QEMU
	scripts/sysroot build/aarch64/sysroot
	$(CONFIGURE) build/aarch64/build -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/scripts/aarch64.cmake
	cmake --build build/aarch64/build
	$(CTEST) build/aarch64/build --exclude-regex test_softhsm

.PHONY: wheels-sign
wheels-sign: setup-deep ## Install wheels where others will, and sign there: in roots of Debian 12 and 13, and for AArch64 in QEMU
	test -x /usr/bin/python3.11 || scripts/python 3.11 bookworm
	scripts/sysroot build/aarch64/sysroot
	scripts/python 3.13 trixie arm64
	rm -rf build/roots/dist build/aarch64/dist
	PATH="$$PATH:$(CURDIR)/build/pythons/3.11/usr/bin" $(BIN)/python scripts/wheels.py --no-sources \
	    --output build/roots/dist --python python3.11 /usr/bin/python3.13
	$(BIN)/python scripts/platforms.py build/roots/dist/hsmcore-*-cp*.whl
	scripts/roots_sign build/roots/dist
	$(BIN)/python scripts/wheels.py --no-sources --output build/aarch64/dist --folder build/aarch64/wheels \
	    --aarch64 build/pythons/3.13-arm64 --python /usr/bin/python3.13
	$(BIN)/python scripts/platforms.py build/aarch64/dist/hsmcore-*-cp*.whl
	scripts/aarch64_signs build/aarch64/dist/hsmcore-*-cp*.whl

build: .venv/.built ## Build the extension and the tools in place

bench: .venv/.setup-test .venv/.built ## Run the benchmark suite
	$(BIN)/hsmcore bench $(ARGS)

micro: .venv/.setup-test .venv/.built ## Micro-benchmarks: make micro ARGS='--benchmark-autosave --benchmark-compare'
	$(BIN)/python -m pytest bench/micro --benchmark-group-by=group --benchmark-columns=median,iqr,ops $(ARGS)

guard: build/guard/hot_path ## Count the instructions of the hot path and compare them with those on record
	$(BIN)/python -m bench.guard.guard --program $< $(ARGS)

guard-update: build/guard/hot_path ## Put the instructions of the hot path on record
	$(BIN)/python -m bench.guard.guard --program $< --update

build/guard/hot_path: .venv/.setup-test FORCE
	$(CONFIGURE) build/guard -DCMAKE_BUILD_TYPE=RelWithDebInfo -DHSMC_LTO=ON
	cmake --build build/guard --target hot_path

reference: .venv/.setup-test .venv/.built ## Hold the raw C loop against a second one: make reference ARGS='--lives 40'
	$(BIN)/python -m tests.reference.check $(ARGS)

soak: .venv/.setup-test .venv/.built ## Sign for long in every way there is: make soak ARGS='--seconds 600 --isolation process --chaos'
	$(BIN)/python -m tests.soak.soak $(ARGS)

scrape-cost: .venv/.setup-test .venv/.built ## What a scrape of the metrics costs: make scrape-cost ARGS='--members 50'
	$(BIN)/python -m tests.soak.scrape_cost $(ARGS)

schedules: .venv/.setup-test .venv/.built ## Random fault schedules: make schedules ARGS='--seeds 0-9999'
	$(BIN)/python -m tests.chaos.schedules $(ARGS)

failover-long: .venv/.setup-test .venv/.built ## A thousand random schedules over levels, a thousand of callers that give up, and the emergency budget under twenty kills
	$(BIN)/python -m tests.chaos.failover_schedules $(ARGS)
	$(BIN)/python -m tests.chaos.binding_schedules $(ARGS)
	$(BIN)/python -m pytest tests/chaos/budget_at_length.py

fleet-long: .venv/.setup-test .venv/.built ## Random schedules of a fleet under faults: make fleet-long ARGS='--seeds 0-499 --seconds 30'
	$(BIN)/python -m tests.fleet.schedules $(ARGS)

audit-long: .venv/.setup-test .venv/.built ## The audit log at length: 2000 tamperings, 200 and 500 kills, ten million records
	$(BIN)/python -m pytest tests/chaos/audit_at_length.py $(ARGS)

native-test: native-configure ## Build the native tests and run them
	cmake --build build/test
	$(CTEST) build/test

sanitize-test: .venv/.setup-test sanitize-build ## Run the native tests under the address and undefined-behaviour sanitizers
	$(CTEST) build/asan

# It needs nothing of Python's.
sanitize-build:
	$(CONFIGURE) build/asan '-DHSMC_SANITIZE=address;undefined'
	cmake --build build/asan

sbom: .venv/.setup-test .venv/.built ## Write the software bill of materials: dist/hsmcore.cdx.json
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python scripts/sbom.py dist/hsmcore.cdx.json

docs: .venv/.setup-test .venv/.built ## Build the site of the documentation: build/site/index.html
	$(BIN)/python scripts/site/build.py build/site $(ARGS)

screenshots: .venv/.setup-test .venv/.built ## Take the console's pictures again: docs/console/*.png
	$(BIN)/python -m tests.browser.screenshots docs/console

.PHONY: wheel client-wheel reproduce release verify-release
wheel: .venv/.setup-run ## Build the wheels and source distributions: dist/, for each CPython 3.11 to 3.14 that is found here
	-command -v python3.14 > /dev/null || scripts/python 3.14 forky
	rm -rf dist/*.whl dist/*.tar.gz
	$(BIN)/python scripts/wheels.py $(ARGS)

client-wheel: .venv/.setup-run ## Build the wheel of the gateway's client in pure Python: dist/hsmcore_client-*.whl
	$(BIN)/python scripts/wheels.py --client

reproduce: .venv/.setup-run ## Build the last commit twice and compare: make reproduce ARGS='--python python3.13 --against dist'
	$(BIN)/python scripts/reproduce.py $(ARGS)

release: .venv/.built ## Sign the provenance of dist/ with a key in an HSM: make release ARGS=releaser.json
	$(BIN)/python scripts/release.py $(ARGS)

verify-release: .venv/.built ## Check dist/ against its provenance: make verify-release ARGS=PUBLIC_KEY
	$(BIN)/python scripts/verify_release.py $(ARGS)

clean: ## Delete everything that was built; .venv stays
	rm -rf build dist core/*.egg-info bench/build bench/*.egg-info core/hsmcore/_bin core/hsmcore/_native.*.so .venv/.built
	rm -rf clients/typescript/build clients/typescript/dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find core bench tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: native-configure native-libraries
native-libraries: native-configure # what tests in Python load
	cmake --build build/test --target hsmcore_shared hsmcore_noop

native-configure: .venv/.setup-test
	$(CONFIGURE) build/test -DCMAKE_BUILD_TYPE=Debug

.PHONY: setup-deep
setup-deep:
	@scripts/setup deep

# The script looks every time and touches its stamp only if it changed something, so FORCE rebuilds nothing by itself.
.venv/.setup-run .venv/.setup-fleet .venv/.setup-test: FORCE
	@scripts/setup $(@:.venv/.setup-%=%)

.venv/.built: .venv/.setup-run $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@
