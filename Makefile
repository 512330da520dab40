# What a contributor types. `make demo` and `make test` need Debian 12 or 13 and gcc only.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/xenemu
STAMP := $(VENV)/.installed
INITRD := $(CACHE)/demo-initrd.gz

.PHONY: help setup demo demo-system test check fuzz fuzz-devices guests abi docs man wheel install-test clean \
	bench bench-table bench-compare bench-gate

help:
	@echo "make demo     boot Debian's cloud kernel as a Xen PV guest"
	@echo "make demo-system  boot a Debian with systemd from a disk, to its login"
	@echo "make test     fetch the guest images and run every test"
	@echo "make check    ruff, mypy, import contracts, and where we diverge from Xen"
	@echo "make fuzz     do random things to the hypervisor: make fuzz FUZZ=\"--env pv64 --seed 1\""
	@echo "make guests   fill the image cache, print what is in it"
	@echo "make abi      compare our structs with Xen's headers"
	@echo "make docs     build the documents as a site in build/site, and check their links"
	@echo "make bench    measure all, against Xen on QEMU and QEMU: make bench BENCH=\"boots micro\""
	@echo "make bench-table    put what was measured into the documents and their pictures"
	@echo "make bench-compare  compare what was measured with what the last commit has"
	@echo "make bench-gate     a few minutes: has something become slower?"
	@echo "make man      manual pages and completion scripts, in share/"
	@echo "make wheel    a wheel and an sdist, in dist/"
	@echo "make install-test  install the wheel on Debian 12 and 13 without a compiler, and use it"
	@echo "make setup    install into $(VENV); everything above does it"

setup: $(STAMP)

# Debian splits venv's own installer from python3; only root can do something about that.
$(STAMP): pyproject.toml setup.py $(wildcard xenemu/cpu/native/* xenemu/dom0/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "xenemu needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ [ "$$(id -u)" = 0 ] && { apt-get -qq install -y python3-venv || \
			{ apt-get -qq update && apt-get -qq install -y python3-venv; }; }; } || \
		{ echo "xenemu needs Python's venv: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test,check]'
	@$(BIN)/python -m compileall -q xenemu hypercalls # also where PYTHONDONTWRITEBYTECODE is set
	@touch $@

demo: setup
	@$(BIN)/python guests/fetch.py debian-cloud-amd64 busybox
	@$(BIN)/python guests/initramfs.py $(INITRD) --busybox \
		$$($(BIN)/python guests/fetch.py --path busybox)
	$(BIN)/xenemu run --mode pv $$($(BIN)/python guests/fetch.py --path debian-cloud-amd64) \
		--initrd $(INITRD) --cmdline "console=hvc0"

# root has no password, and poweroff ends it. Without a terminal, nobody logs in, and it ends there.
demo-system: setup
	@$(BIN)/python guests/fetch.py debian-12-system
	system=$$($(BIN)/python guests/fetch.py --path debian-12-system) && \
	$(BIN)/xenemu run $$system/vmlinuz --initrd $$system/initrd.img --disk $$system/root.ext4 \
		--memory 512M --cmdline "console=hvc0 root=/dev/xvda ro quiet" \
		$$([ -t 0 ] || echo "--expect login:")

# An image that cannot be had is the business of the tests that need it.
test: setup
	-@$(BIN)/python guests/fetch.py
	$(BIN)/python -m pytest -q -n 2

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "Where xenemu departs from Xen:"
	@grep -rn --include='*.py' --include='*.c' --exclude-dir=cli 'DIVERGES:' xenemu hypercalls; true
	@$(BIN)/xenemu hypercalls | grep 'DIVERGES:'; true

# FUZZ may have --env, --backend model or engine, --vcpus, --steps, --seed, --seeds, --seconds,
# --planted, --replay FILE.
fuzz: setup
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

# Hostile frontends of dom0's devices: 200,000 steps each.
fuzz-devices: setup
	PYTHONPATH=tests $(BIN)/python -m fuzz.devices $(FUZZ)

guests: setup
	@$(BIN)/python guests/fetch.py

abi: setup
	-@$(BIN)/python guests/fetch.py xen-headers
	$(BIN)/python -m pytest -q tests/abi/test_layout.py

# BENCH may name groups, and --quick or --rounds N: `python -m bench list` has them.
bench: setup
	$(BIN)/python -m bench measure --install $(BENCH)

bench-table: setup
	$(BIN)/python -m bench table --update

bench-compare: setup
	$(BIN)/python -m bench compare

bench-gate: setup
	$(BIN)/python -m bench gate

# Its warning is of a later version of mkdocs.
docs: setup
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "The first page is build/site/index.html"

man: setup
	@$(BIN)/python ship/share.py share

# The wheel is built from the sdist. The same commit gives the same bytes of it.
wheel: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 1)
wheel: man
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[ship]'
	@rm -rf build dist
	@umask 022 && $(BIN)/python -m build --outdir build/raw >build.log || { cat build.log; exit 1; }
	@rm build.log
	@PATH=$(abspath $(BIN)):$$PATH auditwheel repair --strip --wheel-dir dist build/raw/*.whl
	@mv build/raw/*.tar.gz dist
	@ls dist

# As root: it makes the two systems with mmdebstrap.
install-test: wheel
	@ship/install_test.sh dist/*.whl

clean:
	rm -rf $(VENV) build dist share *.egg-info guests/*/build .mypy_cache .ruff_cache .pytest_cache
	rm -rf .hypothesis .import_linter_cache
	find xenemu hypercalls guests tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f xenemu/cpu/_shim*.so xenemu/dom0/_blkif.so
