# A DragonFlyBSD test VM: the make targets of five JBang scripts. `make vm-help` lists them.
#
# Each script is compiled once into .build/ and run as a plain jar, which starts five times faster than `jbang Script.java`.
# The settings (VM_DIR, VM_PROJECT, ...) are read by the scripts from the environment and vm.env, not by make.
# ARGS is handed to the command: make vm-snapshot ARGS=before-upgrade, make vm-test-unit ARGS='-- -run TestX'
# SYNC_ARGS is handed to vm-sync where it runs first: make vm-build SYNC_ARGS=--no-delete

# The order of the targets is the order of the work (vm-setup vm-auto-install vm-start), also under -j; and two first
# builds at once would race in JBang's cache.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

ARGS =
SCRIPTS = VmSetup VmAutoInstall VmCtl VmSync VmTest
JARS = $(SCRIPTS:%=.build/%.jar)

# How the scripts call each other.
VM_CTL_CMD ?= java -XX:TieredStopAtLevel=1 -jar "$(CURDIR)/.build/VmCtl.jar"
VM_SYNC_CMD ?= java -XX:TieredStopAtLevel=1 -jar "$(CURDIR)/.build/VmSync.jar"
export VM_CTL_CMD VM_SYNC_CMD
# C1 alone starts faster, and these programs end before C2 would pay - but for the decompressor in VmSetup (26 s, 46 s with C1).
RUN = java -XX:TieredStopAtLevel=1 -jar .build/

JBANG_VERSION = 0.132.1
JBANG_SHA256 = f977075849cff866f45b27997f5671ab8a336a5dd3cf9e702b3479128338f3a7

.PHONY: all
all: vm-help

##@ Install

.PHONY: vm-check-prereqs
vm-check-prereqs: .build/VmSetup.jar ## Say what this machine lacks, with the command that mends it
	@$(RUN)VmSetup.jar check $(ARGS)

.PHONY: vm-setup
vm-setup: .build/VmSetup.jar ## Download and verify the DragonFlyBSD installer
	@java -jar .build/VmSetup.jar fetch $(ARGS)

.PHONY: vm-auto-install
vm-auto-install: .build/VmAutoInstall.jar ## Install in three phases, with zero interaction
	@$(RUN)VmAutoInstall.jar $(ARGS)

.PHONY: vm-install
vm-install: .build/VmCtl.jar ## Install by hand instead: boot the installer with a console
	@$(RUN)VmCtl.jar install $(ARGS)

.PHONY: vm-provision
vm-provision: .build/VmAutoInstall.jar ## Run phase 3 again, over ssh, in the running VM
	@$(RUN)VmAutoInstall.jar provision $(ARGS)

.PHONY: vm-clean-phases
vm-clean-phases: .build/VmAutoInstall.jar ## Remove the phase ISOs (ARGS=--disks: the phase disks too)
	@$(RUN)VmAutoInstall.jar clean-phases $(ARGS)

##@ Run

.PHONY: vm-start
vm-start: .build/VmCtl.jar ## Start the VM and wait until ssh answers
	@$(RUN)VmCtl.jar start $(ARGS)

.PHONY: vm-stop
vm-stop: .build/VmCtl.jar ## Shut the VM down
	@$(RUN)VmCtl.jar stop $(ARGS)

.PHONY: vm-status
vm-status: .build/VmCtl.jar ## Tell the VM's state (a stopped VM is an answer, not an error)
	@$(RUN)VmCtl.jar status $(ARGS) || [ $$? -eq 3 ]

.PHONY: vm-ssh
vm-ssh: .build/VmCtl.jar ## Open a shell in the VM
	@$(RUN)VmCtl.jar ssh $(ARGS)

.PHONY: vm-snapshot
vm-snapshot: .build/VmCtl.jar ## Freeze the VM as snapshot "clean" (ARGS=NAME: another)
	@$(RUN)VmCtl.jar snapshot $(ARGS)

.PHONY: vm-restore
vm-restore: .build/VmCtl.jar ## Go back to snapshot "clean" (ARGS=NAME: another)
	@$(RUN)VmCtl.jar restore $(ARGS)

.PHONY: vm-destroy
vm-destroy: .build/VmCtl.jar ## Delete the VM with all its disks, not the ISO (asks; ARGS=--yes)
	@$(RUN)VmCtl.jar destroy $(ARGS)

##@ Test a project (VM_PROJECT)

.PHONY: vm-sync
vm-sync: .build/VmSync.jar ## Copy the project into the VM
	@$(RUN)VmSync.jar $(if $(filter vm-sync,$(MAKECMDGOALS)),$(ARGS)) $(SYNC_ARGS)

.PHONY: vm-build
vm-build: vm-sync .build/VmTest.jar ## Sync, then build
	@$(RUN)VmTest.jar build $(ARGS)

# Any suite: vm-test-NAME runs the suite NAME, also one that VM_TEST_NAME defines.
vm-test-%: vm-sync .build/VmTest.jar
	@$(RUN)VmTest.jar $* $(ARGS)

#: vm-test-unit             Sync, build, unit tests
#: vm-test-integration      ... integration tests
#: vm-test-integration-e2e  ... integration_e2e_test.go alone
#: vm-test-phase4           ... worker tests (mount, chroot) as root
#: vm-test-e2e              ... tests tagged e2e
#: vm-test-procctl          ... process-reaping tests as root, all
#: vm-test-procctl-reaping  ... by procctl(2)
#: vm-test-procfind         ... by /proc
#: vm-test-orphans          ... of orphaned processes
#: vm-test-all              ... unit, integration, phase4
#: vm-test-NAME             ... the command in VM_TEST_NAME

.PHONY: vm-quick
vm-quick: .build/VmTest.jar .build/VmSync.jar ## Sync, build and phase4 tests in one go
	@VM_SYNC_CMD="$$VM_SYNC_CMD $(SYNC_ARGS)" $(RUN)VmTest.jar quick $(ARGS)

.PHONY: vm-test-fixtures
vm-test-fixtures: vm-sync .build/VmTest.jar ## Tests over the captured BSD fixtures
	@$(RUN)VmTest.jar fixtures $(ARGS)

.PHONY: vm-capture-fixtures
vm-capture-fixtures: vm-sync .build/VmTest.jar ## Capture BSD fixtures in the VM and bring them back
	@$(RUN)VmTest.jar run -- ./scripts/capture-bsd-fixtures.sh
	@$(RUN)VmSync.jar pull stats/testdata/fixtures

##@ This project itself (Debian or Ubuntu; these may call apt)

.PHONY: demo
demo: ## The whole path on a stand-in guest, from an ISO to test results
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) .build/Mirror.jar
	@test/demo

.PHONY: test
test: ## Unit tests and end-to-end tests on the stand-in guest
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) .build/Mirror.jar
	@test/run core

.PHONY: test-faults
test-faults: ## The long fault matrices
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) .build/Mirror.jar
	@test/run faults

.PHONY: lint
lint: .build/jbang ## javac -Xlint:all, shellcheck, the shared blocks, the headers
	@test/lint

.PHONY: clean
clean: ## Remove what was built (not VM_DIR)
	rm -rf .build

##@ Help

.PHONY: vm-help
vm-help: ## This list
	@awk '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { split($$0, a, /:.*## /); printf "  %-24s %s\n", a[1], a[2] } \
	  /^#: / { print "  " substr($$0, 4) }' Makefile

# Beside itself, then moved into place: make believes a jar that is there. The libraries land in .build/lib.
.build/%.jar: %.java .build/jbang
	@.build/jbang --quiet export portable --force --output .build/new-$*.jar $<
	@mv .build/new-$*.jar $@

.build/Mirror.jar: test/Mirror.java .build/jbang
	@.build/jbang --quiet export portable --force --output .build/new-Mirror.jar $<
	@mv .build/new-Mirror.jar $@

# JBang from PATH, else its jar by Maven coordinates. The jar prints the command to run and exits with 255.
.build/jbang:
	@mkdir -p .build
	@if command -v jbang >/dev/null 2>&1; then \
	  printf '#!/bin/sh\nexec jbang "$$@"\n' >$@.new; \
	elif command -v mvn >/dev/null 2>&1; then \
	  mvn -q -B -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dmdep.stripVersion=true -DoutputDirectory=.build \
	    -Dartifact=dev.jbang:jbang-cli:$(JBANG_VERSION):jar:all && \
	  echo "$(JBANG_SHA256)  .build/jbang-cli-all.jar" | sha256sum --check --quiet - && \
	  printf '%s\n' '#!/bin/sh' 'out=$$(java -jar "$${0%/*}/jbang-cli-all.jar" "$$@"); code=$$?' \
	    '[ $$code -ne 255 ] || eval "exec $$out"' '[ -z "$$out" ] || printf "%s\\n" "$$out"' 'exit $$code' >$@.new; \
	else \
	  echo "JBang is missing: install it (https://www.jbang.dev/download), or Maven, which fetches it: sudo apt-get install maven" >&2; \
	  exit 69; \
	fi
	@chmod +x $@.new && mv $@.new $@
