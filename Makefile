# A DragonFlyBSD test VM: the make targets of five JBang scripts. `make vm-help` lists them.
#
# Each script is compiled once into .build/ and run by java itself, which starts five times faster than `jbang Script.java`.
# The settings (VM_DIR, VM_PROJECT, ...) are read by the scripts from the environment and vm.env, not by make.
# ARGS is handed to the command: make vm-snapshot ARGS=before-upgrade, make vm-test-unit ARGS='-- -run TestX'
# SYNC_ARGS is handed to vm-sync, also where it runs first: make vm-build SYNC_ARGS=--no-delete

# The order of the targets is the order of the work (vm-setup vm-auto-install vm-start), also under -j; and two first
# builds at once would race in JBang's cache.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

# The path of this file, which may hold blanks. Only vm-help works from another directory (make -f).
makefile := $(strip $(MAKEFILE_LIST))
ifeq ($(wildcard VmSetup.java),)
ifneq ($(filter-out vm-help,$(MAKECMDGOALS)),)
$(error This Makefile works in its own directory only: make -C '$(patsubst %/Makefile,%,$(makefile))' $(MAKECMDGOALS))
endif
endif

ARGS =
# What `make test` runs: tags and class names, e.g. make test TESTS='VmCtlTest LifecycleTest'
TESTS = unit core
SCRIPTS = VmSetup VmAutoInstall VmCtl VmSync VmTest
JARS = $(SCRIPTS:%=.build/%.jar) .build/Mirror.jar
ARCHIVES = $(SCRIPTS:%=.build/%.jsa)

# Runs a script's jar. Only the C1 compiler, because these programs end before C2 is worth its time; VmSetup keeps C2 for its
# decompressor (26 s, 46 s with C1 alone). The class archive (.jsa) makes vm-status take 0.13 s instead of 0.17 s. The JVM ignores
# an archive of another JDK, and says so on stdout unless logging is disabled. -Xmn24m: for 200 MB of output vm-test takes 70 MB
# of memory instead of 490 MB. vm.make tells the script its make
# target and the variable for options ($2), so that a hint can name them.
java = java $(if $2,-Dvm.make="make $@ $2=") $(if $(filter VmAutoInstall,$1),-Dvm.phases="$(CURDIR)/phases") $(if $(filter VmSetup,$1),,-XX:TieredStopAtLevel=1) $(if $(filter VmTest,$1),-XX:+UseSerialGC -Xmn24m) -Xlog:disable \
  -XX:SharedArchiveFile="$(CURDIR)/.build/$1.jsa" -jar "$(CURDIR)/.build/$1.jar"

# How the scripts call each other.
VM_SETUP_CMD ?= $(call java,VmSetup)
VM_CTL_CMD ?= $(call java,VmCtl)
VM_SYNC_CMD ?= $(call java,VmSync,SYNC_ARGS)
export VM_SETUP_CMD VM_CTL_CMD VM_SYNC_CMD
suite = VM_SYNC_CMD="$$VM_SYNC_CMD $$SYNC_ARGS" $(call java,VmTest,ARGS)

# JBang uses the JDK in JAVA_HOME if there is one. The jars that it makes must run with the same one.
ifneq ($(JAVA_HOME),)
export PATH := $(JAVA_HOME)/bin:$(PATH)
endif

# Java loses letters beyond ASCII where the locale is not UTF-8, or is not installed. Then it gets one that is.
ifneq ($(shell locale charmap 2>/dev/null),UTF-8)
utf8 := $(filter %.UTF-8 %.utf8,$(shell locale -a 2>/dev/null))
ifneq ($(utf8),)
export LC_ALL := $(firstword $(filter C.%,$(utf8)) $(utf8))
endif
endif

# GNU's, or that of macOS, which is Perl's.
sha256 = $$(command -v sha256sum || echo shasum -a 256)

JBANG_VERSION = 0.132.1
JBANG_SHA256 = f977075849cff866f45b27997f5671ab8a336a5dd3cf9e702b3479128338f3a7

.PHONY: all
all: vm-help

##@ Install

.PHONY: vm-check-prereqs
vm-check-prereqs: .build/VmSetup.jsa ## Check what is missing on this machine, and how to fix it
	@$(call java,VmSetup,ARGS) check $(ARGS)

.PHONY: vm-setup
vm-setup: .build/VmSetup.jsa ## Download and verify the DragonFlyBSD installer
	@$(call java,VmSetup,ARGS) fetch $(ARGS)

.PHONY: vm-auto-install
vm-auto-install: .build/VmAutoInstall.jsa .build/VmSetup.jsa ## Install in three phases, with zero interaction
	@$(call java,VmAutoInstall,ARGS) $(ARGS)

.PHONY: vm-install
vm-install: .build/VmAutoInstall.jsa .build/VmSetup.jsa ## Install by hand instead, at the installer's console
	@$(call java,VmAutoInstall,ARGS) by-hand $(ARGS)

.PHONY: vm-provision
vm-provision: .build/VmAutoInstall.jsa ## Run phase 3 again, over ssh, in the running VM
	@$(call java,VmAutoInstall,ARGS) provision $(ARGS)

.PHONY: vm-clean-phases
vm-clean-phases: .build/VmAutoInstall.jsa ## Delete unfinished files (ARGS=--disks: the phase disks too)
	@$(call java,VmAutoInstall,ARGS) clean-phases $(ARGS)

##@ Run

.PHONY: vm-start
vm-start: .build/VmCtl.jsa .build/VmSetup.jsa ## Start the VM and wait until ssh answers
	@$(call java,VmCtl,ARGS) start $(ARGS)

.PHONY: vm-stop
vm-stop: .build/VmCtl.jsa ## Shut the VM down
	@$(call java,VmCtl,ARGS) stop $(ARGS)

.PHONY: vm-status
vm-status: .build/VmCtl.jsa ## Tell the VM's state (a stopped VM is an answer, not an error)
	@$(call java,VmCtl,ARGS) status $(ARGS) || [ $$? -eq 3 ]

.PHONY: vm-ssh
vm-ssh: .build/VmCtl.jsa ## Open a shell in the VM
	@$(call java,VmCtl,ARGS) ssh $(ARGS)

.PHONY: vm-snapshot
vm-snapshot: .build/VmCtl.jsa ## Take the snapshot "clean" (ARGS=NAME: another)
	@$(call java,VmCtl,ARGS) snapshot $(ARGS)

.PHONY: vm-restore
vm-restore: .build/VmCtl.jsa .build/VmSetup.jsa ## Go back to snapshot "clean" (ARGS=NAME: another)
	@$(call java,VmCtl,ARGS) restore $(ARGS)

.PHONY: vm-destroy
vm-destroy: .build/VmCtl.jsa ## Delete the VM with all its disks, not the ISO (asks; ARGS=--yes)
	@$(call java,VmCtl,ARGS) destroy $(ARGS)

##@ Test a project (VM_PROJECT)

.PHONY: vm-sync
vm-sync: .build/VmSync.jsa ## Copy the project into the VM
	@$(call java,VmSync,ARGS) $(SYNC_ARGS) $(ARGS)

.PHONY: vm-build
vm-build: .build/VmTest.jsa .build/VmSync.jsa .build/VmCtl.jsa ## Sync, then build
	@$(suite) --sync build $(ARGS)

# Any suite: vm-test-NAME runs the suite NAME, also one that VM_TEST_NAME defines.
vm-test-%: .build/VmTest.jsa .build/VmSync.jsa .build/VmCtl.jsa
	@$(suite) --sync $* $(ARGS)

#: vm-test-unit             Sync, build, unit tests
#: vm-test-integration      ... integration tests
#: vm-test-integration-e2e  ... integration_e2e_test.go alone
#: vm-test-phase4           ... worker tests (mount, chroot) as root
#: vm-test-e2e              ... tests tagged e2e
#: vm-test-procctl          ... process-reaping tests as root, without orphans
#: vm-test-procctl-reaping  ... by procctl(2)
#: vm-test-procfind         ... by /proc
#: vm-test-orphans          ... of orphaned processes
#: vm-test-all              ... unit, integration, phase4
#: vm-test-NAME             ... the command in VM_TEST_NAME

.PHONY: vm-test-list
vm-test-list: .build/VmTest.jsa ## List the suites and their commands
	@$(call java,VmTest,ARGS) list $(ARGS)

.PHONY: vm-test-run
vm-test-run: .build/VmTest.jsa ## Run one command in the project's directory (ARGS='-- go version')
	@$(call java,VmTest,ARGS) run $(ARGS)

.PHONY: vm-quick
vm-quick: .build/VmTest.jsa .build/VmSync.jsa .build/VmCtl.jsa ## Sync, build and phase4 tests in one go
	@$(suite) quick $(ARGS)

.PHONY: vm-test-fixtures
vm-test-fixtures: .build/VmTest.jsa .build/VmSync.jsa .build/VmCtl.jsa ## Tests over the captured BSD fixtures
	@$(suite) --sync fixtures $(ARGS)

.PHONY: vm-capture-fixtures
vm-capture-fixtures: .build/VmTest.jsa .build/VmSync.jsa ## Capture BSD fixtures in the VM and bring them back
	@$(call java,VmSync,SYNC_ARGS) $(SYNC_ARGS)
	@$(call java,VmTest) run ./scripts/capture-bsd-fixtures.sh
	@$(call java,VmSync,SYNC_ARGS) pull stats/testdata/fixtures/

##@ This project itself (Debian or Ubuntu; demo, test, test-faults and bench may call apt)

.PHONY: demo
demo: ## The whole path on a stand-in guest, from an ISO to test results
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) $(ARCHIVES)
	@test/demo

.PHONY: test
test: ## Unit tests and end-to-end tests on the stand-in guest (TESTS=ReadmeTest: one class)
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) $(ARCHIVES)
	@test/run $(TESTS)

.PHONY: test-faults
test-faults: ## Long tests: kills and failures, clones, README's lines, the stand-in
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) $(ARCHIVES)
	@test/run faults

.PHONY: test-real
test-real: $(JARS) $(ARCHIVES) ## The demo's steps on a real DragonFlyBSD: on the installer VM_IMAGE, else the mirror's
	@test/demo --real

.PHONY: bench
bench: export BENCH_VmSetup = $(call java,VmSetup)
bench: export BENCH_VmAutoInstall = $(call java,VmAutoInstall)
bench: export BENCH_VmCtl = $(call java,VmCtl)
bench: export BENCH_VmSync = $(call java,VmSync)
bench: export BENCH_VmTest = $(call java,VmTest)
bench: ## Measure it all, an hour long, into bench/README.md and chart.svg (ARGS='--merge restore': one group of it)
	@test/install-packages
	@$(MAKE) --no-print-directory --silent $(JARS) $(ARCHIVES)
	@.build/jbang --quiet bench/Bench.java $(ARGS)

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
	  /^#: / { print "  " substr($$0, 4) }' '$(makefile)'

# Built in a temporary directory and then moved, because make takes any existing jar as finished, and the JVM rejects a class
# archive (below) if a library was written again after it. -proc:none: javac must not run code from a library before its sum is compared.
# Without stringConcat=inline the JVM generates code for string concatenation at each start: 0.04 s of a command's 0.33 s of CPU time.
$(SCRIPTS:%=.build/%.jar): .build/%.jar: %.java .build/jbang .build/java
	@new=.build/new-$*-$$$$; \
	.build/jbang --quiet export portable --compile-option=-proc:none --compile-option=-XDstringConcat=inline --compile-option=-J-XX:TieredStopAtLevel=1 --force --output "$$new/$*.jar" $< && mkdir -p .build/lib && \
	if (cd "$$new/lib" && $(sha256) *.jar) | grep -vxFf test/jars.sha256 >&2; then \
	  echo "The libraries of $< above are not in test/jars.sha256. If you changed //DEPS, run test/lint --jars; else do not trust them." >&2; false; fi && \
	for library in "$$new"/lib/*; do [ -e ".build/lib/$${library##*/}" ] || mv "$$library" .build/lib/; done && \
	mv "$$new/$*.jar" $@; code=$$?; rm -rf "$$new"; exit $$code

# The classes that --help needs, which are most of what any command needs. A static archive: a dynamic one takes no picocli.
# Empty where the JVM makes none, which costs no more than time.
$(ARCHIVES): .build/%.jsa: .build/%.jar
	@java -XX:DumpLoadedClassList=.build/$*.classes -jar "$(CURDIR)/$<" --help >.build/$*.log 2>&1 && \
	  java -Xshare:dump -XX:SharedClassListFile=.build/$*.classes -XX:SharedArchiveFile=$@.new \
	    -jar "$(CURDIR)/$<" >.build/$*.log 2>&1 || : >$@.new
	@mv -f $@.new $@

.build/Mirror.jar: test/Mirror.java .build/jbang .build/java
	@.build/jbang --quiet export portable --force --output .build/new-Mirror.jar $<
	@mv .build/new-Mirror.jar $@

# Records which java built the jars; with another one they are rebuilt. Checked first, because JBang and Maven do not name the
# missing package.
.build/java: always
	@install='Install a JDK, version 17 or newer: sudo apt-get install default-jdk-headless'; \
	if ! command -v java >/dev/null; then \
	  ! command -v jbang >/dev/null || install="$$install. Or use the JDK that JBang brings: eval \"\$$(jbang jdk java-env)\""; \
	  echo "There is no java in PATH. $$install" >&2; exit 69; \
	elif ! command -v javac >/dev/null; then \
	  echo "There is a Java runtime, but no compiler: javac is not in PATH. $$install" >&2; exit 69; \
	fi; \
	java=$$(readlink -f "$$(command -v java)"); \
	if ! echo "$$java" | cmp -s - $@; then \
	  version=$$(javac -version 2>&1 | sed -n 's/^javac //p'); \
	  if [ "$${version%%[!0-9]*}" -lt 17 ]; then echo "javac is of version $$version. $$install" >&2; exit 69; fi; \
	  if ! { mkdir -p .build && echo "$$java" >$@; } 2>/dev/null; then \
	    echo "make cannot write to $(CURDIR)/.build, where it builds the scripts: copy this checkout to a directory of your own" >&2; exit 69; \
	  fi; \
	fi

.PHONY: always
always:

# JBang from PATH, else its jar by Maven coordinates. The jar prints the command to run and exits with 255.
# noreset: Maven 3.8 ends with the escape sequence ESC[0m, also where its output is no terminal, and with colours off.
.build/jbang: | .build/java
	@if command -v jbang >/dev/null 2>&1; then \
	  printf '#!/bin/sh\nexec "%s" "$$@"\n' "$$(command -v jbang)" >$@.new; \
	elif command -v mvn >/dev/null 2>&1; then \
	  MAVEN_OPTS="$$MAVEN_OPTS -Djansi.noreset=true" mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dmdep.stripVersion=true -DoutputDirectory=.build \
	    -Dartifact=dev.jbang:jbang-cli:$(JBANG_VERSION):jar:all >&2 && \
	  echo "$(JBANG_SHA256)  .build/jbang-cli-all.jar" | $(sha256) --check --quiet - && \
	  printf '%s\n' '#!/bin/sh' 'out=$$(java -XX:TieredStopAtLevel=1 -jar "$${0%/*}/jbang-cli-all.jar" "$$@"); code=$$?' \
	    '[ $$code -ne 255 ] || eval "exec $$out"' '[ -z "$$out" ] || printf "%s\\n" "$$out"' 'exit $$code' >$@.new; \
	else \
	  echo "JBang is missing: install it (https://www.jbang.dev/download), or Maven, which fetches it: sudo apt-get install maven" >&2; \
	  exit 69; \
	fi
	@chmod +x $@.new && mv $@.new $@
