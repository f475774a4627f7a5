///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Build a project and run its tests in the running VM, and give a verdict
//JAVA 17+
//RUNTIME_OPTIONS -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmn24m // starts faster, uses less memory (70 MB, not 490)
//DEPS info.picocli:picocli:4.7.7
//DEPS com.grack:nanojson:1.10

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonStringWriter;
import com.grack.nanojson.JsonWriter;
import java.io.*;
import java.lang.ProcessBuilder.Redirect;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.SocketChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.Charset;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.file.*;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.*;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BiConsumer;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.xml.stream.XMLOutputFactory;
import javax.xml.stream.XMLStreamException;
import javax.xml.stream.XMLStreamWriter;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.IDefaultValueProvider;
import picocli.CommandLine.IParameterExceptionHandler;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Builds a project and runs its test suites in the running VM, and gives a verdict. In order:
 * <ol>
 * <li>{@code --fresh} runs {@code vm-ctl restore}; {@code --sync} and {@code --fresh} run {@code vm-sync}.
 * <li>The build runs once, then every suite, in VM_REMOTE_DIR, over the shared connection of VM_DIR/ssh_config. In the
 *     guest a supervisor in sh starts the command. At the time limit, on Ctrl-C, or when the connection ends, it takes
 *     the goroutine dumps of the Go test binaries and kills everything that the suite started.
 * <li>A plain {@code go test} gets -json. Its events, whoever prints them, are shown as {@code go test -v} shows them;
 *     all other output passes through byte for byte.
 * <li>What a suite leaves behind (processes, mounts, files under /build) fails it.
 * <li>A summary, the --junit and --json files, and the verdict as exit code.
 * </ol>
 * A suite that is a plain go test can be divided by its packages: {@code --parallel N} runs them in N clones of the VM,
 * {@code --shard I/N} runs one part of N, and {@code merge} makes one verdict of the --json files of all parts.
 * <p>
 * Reads {@code <name>.pid}, the lock on {@code <name>.qemu-pid}, {@code ssh_config} (ssh does), {@code
 * <name>.console.log}; asks QEMU over {@code <name>.qmp} for the guest's state. Writes {@code
 * <name>.test/last-run.json}, the last run's results, which --failed reads, and {@code <name>.test/timings.json}, how
 * long packages took. {@code <name>.test/lock} keeps a second vm-test away from the VM. As long as {@code
 * <name>.test/par-<random>.lock} is held, vm-ctl keeps the clones of a parallel run.
 */
@Command(name = "vm-test", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120,
        descriptionHeading = "%n", parameterListHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        customSynopsis = {"vm-test [OPTIONS] SUITE... [-- FLAG...]", "       vm-test --failed [OPTIONS] [SUITE...]",
            "       vm-test list", "       vm-test run [OPTIONS] CMD [ARG...]",
            "       vm-test merge [OPTIONS] FILE..."},
        description = {"Build a project and run its tests in the running VM, and give a verdict", "",
            "The build runs once, then every suite, even if an earlier one fails, in VM_REMOTE_DIR in the guest. A "
                + "summary tells what failed and why, and what was skipped. At the time limit, on Ctrl-C, or when the "
                + "connection ends, everything that a suite started is killed. VM_TEST_<SUITE> sets a suite's command, "
                + "or defines a new suite: VM_TEST_MY_SUITE is my-suite. VM_TEST_BUILD=true skips the build.", "",
            "It reads VM_DIR/ssh_config, which vm-ctl start writes, and writes VM_DIR/NAME.test, the results of the "
                + "last run. The first that is set counts: option, environment, vm.env (KEY=VALUE lines) in "
                + "the working directory, ~/.go-synth/vm.env."},
        footer = {"  vm-test unit                                  # build, then one suite",
            "  vm-test unit --packages ./pkg/... -- -run TestX   # some packages, with flags for go test",
            "  vm-test --sync all --junit all.xml            # sync, build, three suites, a report",
            "  vm-test --sync --failed                       # again what failed last time",
            "  vm-test --sync --parallel 4 unit              # in four clones of the VM",
            "  vm-test --shard 2/3 --json 2.json unit        # on the second of three machines",
            "  VM_TEST_VET='go vet ./...' vm-test vet        # a suite of your own"},
        exitCodeList = {"0:every test that ran passed, and nothing was lost",
            "1:a suite or the build failed or left something behind, a result is in doubt, a report is cut off, or "
                + "this machine's disk is full",
            "2:wrong usage", "3:the VM is not running",
            "69:the VM or the connection was lost, or something needed is not available (ssh, vm-ctl, vm-sync, the "
                + "project in the guest, the lock)",
            "124:a time limit", "130, 143:interrupted", "N:run: the exit code of the command in the guest"})
final class VmTest implements Callable<Integer> {

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm",
            converter = FileName.class, scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String vmName;

    @Option(names = "--project", descriptionKey = "VM_PROJECT", defaultValue = ".", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "The project on this machine (VM_PROJECT; default: the working "
                    + "directory).")
    String projectOption;

    @Option(names = "--remote-dir", descriptionKey = "VM_REMOTE_DIR", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "The project in the guest (VM_REMOTE_DIR; default: /root/<name of the "
                    + "project>).")
    String remoteDir;

    @Option(names = "--ctl-cmd", descriptionKey = "VM_CTL_CMD", paramLabel = "CMD",
            description = "How --fresh, --freeze-on-failure and --parallel run vm-ctl (VM_CTL_CMD; default: VmCtl "
                    + "beside this script's jar, else VmCtl.java here or above, outside the project).")
    String ctlCommand;

    @Option(names = "--sync-cmd", descriptionKey = "VM_SYNC_CMD", paramLabel = "CMD",
            description = "How --sync and --fresh run vm-sync (VM_SYNC_CMD; default: as for --ctl-cmd).")
    String syncCommand;

    @Option(names = "--sync", description = "Run vm-sync first.")
    boolean sync;

    @Option(names = "--fresh", description = "Run vm-ctl restore first, which brings the clean state back, then "
            + "vm-sync.")
    boolean fresh;

    @Option(names = "--packages", paramLabel = "P", description = "Test this package or pattern instead of the suite's "
            + "own (repeatable), as ./pkg/... .")
    List<String> packages = new ArrayList<>();

    @Option(names = "--failed", description = "Run again only the tests that failed in the last run, with the flags of "
            + "that run.")
    boolean onlyFailed;

    @Option(names = "--require-tests", description = "Fail a suite in which no test ran, or all were skipped.")
    boolean requireTests;

    @Option(names = "--freeze-on-failure", description = "Take the snapshot failed-<suite> after a suite that failed. "
            + "It replaces an older one.")
    boolean freeze;

    @Option(names = "--timeout", defaultValue = "60m", scope = ScopeType.INHERIT, paramLabel = "TIME",
            converter = DurationConverter.class,
            description = "Stop the build, a suite or run's command after this long, as 90s, 5m or 1h30m (default: "
                    + "${DEFAULT-VALUE}).")
    Duration timeout;

    @Option(names = "--env", scope = ScopeType.INHERIT, paramLabel = "K=V",
            description = "An environment variable for the guest's command (repeatable).")
    Map<String, String> environment = new LinkedHashMap<>();

    @Option(names = {"-q", "--quiet"}, description = "Show no live output, only the summary with the failures.")
    boolean quiet;

    @Option(names = "--junit", paramLabel = "FILE", description = "Write a JUnit report of all suites.")
    Path junit;

    @Option(names = "--json", paramLabel = "FILE", description = "Write the events of go test -json, one a line, and "
            + "lines before and after those of each suite, which vm-test merge needs.")
    Path json;

    @Option(names = "--parallel", paramLabel = "N", description = "Build in the VM, then run the packages of each "
            + "suite in at most this many clones of it, which are removed afterwards. A suite that cannot be divided "
            + "runs whole, in the VM.")
    Integer parallel;

    @Option(names = "--isolate", description = "With --parallel, restore a clone before it gets another package.")
    boolean isolate;

    @Option(names = "--shard", paramLabel = "I/N", description = "Run only part I of N of each suite's packages. auto "
            + "takes both from GitLab CI or a Slurm array job. A suite that cannot be divided runs whole, in part 1.")
    String shardOption;

    @Option(names = "--timings", paramLabel = "FILE", description = "A file of 'vm-test merge --timings', which says "
            + "how long packages take. Parts that all get the same file take about equally long.")
    Path timingsFile;

    enum Leaks { fail, warn, ignore }

    @Option(names = "--leaks", defaultValue = "fail", paramLabel = "MODE",
            description = "What to do about processes, mounts and files under /build that a suite leaves behind: fail, "
            + "warn or ignore (default: ${DEFAULT-VALUE}).")
    Leaks leaks;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    @Parameters(paramLabel = "SUITE",
            description = "Suites, see 'vm-test list'. What follows -- is added to their commands; to a go test, "
            + "before its packages.")
    List<String> words = new ArrayList<>();

    @Spec
    CommandSpec spec;

    private final Settings settings;
    Path vmDir;
    Path project;
    private final Screen stdout = new Screen(System.out, 1);
    private final Screen stderr = new Screen(System.err, 2);
    private final MemoryLimits limits = new MemoryLimits();
    private final CompletableFuture<Void> finished = new CompletableFuture<>();
    private volatile boolean interrupted;
    private final Set<Process> otherScripts = ConcurrentHashMap.newKeySet(); // vm-ctl or vm-sync
    private Script vmCtl;
    private Division division; // null: suites run whole
    private CloneSet clones; // of --parallel; null until the first suite that uses them
    FileChannel lock; // held until this process ends

    VmTest(Settings settings) {
        this.settings = settings;
    }

    public static void main(String... args) {
        writeUtf8();
        CommandLine line = commandLine();
        VmTest command = line.getCommand();
        Runtime.getRuntime().addShutdownHook(new Thread(command::interrupt));
        int code;
        try {
            code = line.execute(args);
        } finally {
            command.finished.complete(null); // after an Error, too: interrupt() waits for this
        }
        exit("vm-test", code);
    }

    static CommandLine commandLine() {
        return commandLine(readSettings(System.getenv(), Path.of("")));
    }

    static CommandLine commandLine(Settings settings) {
        CommandLine line = commandLine(new VmTest(settings), settings).setPosixClusteredShortOptionsAllowed(false);
        line.getSubcommands().forEach((name, command) -> { // list needs the project alone, and merge no VM
            CommandSpec sub = command.getCommandSpec();
            List.copyOf(sub.options()).stream().filter(option -> option.inherited() && !name.equals("run")
                    && !(name.equals("list") && option.longestName().equals("--project"))).forEach(sub::remove);
        });
        line.getSubcommands().get("run").setStopAtPositional(true); // the rest is passed to the command
        IParameterExceptionHandler usual = line.getParameterExceptionHandler();
        return line.setParameterExceptionHandler((failure, args) -> {
            String word = failure instanceof UnmatchedArgumentException it ? it.getUnmatched().get(0) : "";
            if (!word.matches("-[a-z][a-z.]+(=.*)?")) {
                return usual.handleParseException(failure, args);
            }
            failure.getCommandLine().getErr().println("vm-test: " + word + " is no option of vm-test; flags of go test "
                    + "come after --, as in: vm-test unit -- " + word + (word.equals("-run") ? " TestX" : ""));
            return 2;
        });
    }

    /**
     * On Ctrl-C or TERM, before this process ends: what runs in the guest is stopped, and the summary still written.
     */
    private void interrupt() {
        interrupted = true;
        if (!finished.isDone()) {
            // for the goroutine dumps, the kill and the summary; to remove the clones
            long limit = 2 * GuestRun.MAX_STOPPING.toSeconds() + 10 + (parallel == null ? 0 : 60);
            tell("interrupted; stopping (at most " + limit + " s)");
            otherScripts.forEach(Process::destroy);
            finished.completeOnTimeout(null, limit, TimeUnit.SECONDS).join();
        }
    }

    @Override
    public Integer call() throws Exception {
        List<String> given = spec.commandLine().getParseResult().originalArgs();
        int count = words.size() - (given.contains("--") ? given.size() - 1 - given.indexOf("--") : 0);
        List<String> names = words.subList(0, count);
        CallerArgs callerArgs = new CallerArgs(words.subList(count, words.size()), packages, requireTests);
        if (names.isEmpty() && !onlyFailed) {
            throw new ParameterException(spec.commandLine(), "which suite? 'vm-test list' names them");
        } else if (onlyFailed && !callerArgs.isEmpty()) {
            throw new ParameterException(spec.commandLine(),
                    "--failed uses the packages and flags of the last run: leave out --packages and what follows --");
        }
        checkOptions();
        checkDivision();
        Suites suites = new Suites(settings, project);
        List<Job> whole = suites.jobs(names, callerArgs); // with --failed it checks the names
        for (Path report : Stream.of(junit, json).filter(file -> file != null && Files.isRegularFile(file)).toList()) {
            Files.delete(report); // if nothing runs, that of an earlier run would be taken for this one's
        }
        vmDir = vmDirectory(userPath(dirOption));
        LastRun last = new LastRun(vmDir.resolve(vmName + ".test"), projectOrigin(project), callerArgs);
        List<Job> jobs = onlyFailed ? last.failedJobs(suites, suites.chosen(names)) : whole;
        if (jobs.isEmpty()) {
            tell("there is nothing to run again: these suites passed in the last run");
            return 0;
        }
        vmCtl = fresh || freeze || parallel != null ? script("VmCtl", ctlCommand) : null;
        Script vmSync = sync || fresh || names.stream().anyMatch(suites::needsSync)
                ? script("VmSync", syncCommand) : null;
        lockVm();
        if (fresh) {
            runScript(NOTHING_RAN, vmCtl, "restore");
        }
        if (parallel != null) {
            CloneSet.checkMemory(runningVm(vmDir, vmName), parallel);
        }
        if (vmSync != null) { // it sends a home directory only if --project names it, not VM_PROJECT
            boolean named = spec.commandLine().getParseResult().hasMatchedOption("--project");
            runScript(NOTHING_RAN, vmSync, named ? new String[] {"--project", project.toString()} : new String[0]);
        }
        last.begin(jobs);
        try {
            return runJobs(jobs, last);
        } finally {
            if (clones != null) {
                clones.close();
            }
        }
    }

    /** Runs the build and the suites, and tells and writes what became of them. */
    private int runJobs(List<Job> jobs, LastRun last) throws Exception {
        List<Report> reports = new ArrayList<>();
        List<String> problems = new ArrayList<>(); // of the report files
        EventFile events = json == null ? null
                : new EventFile(json, EventFile.MAX_BYTES, jobs.stream().map(Job::name).toList());
        Timings timings = Timings.ofThisMachine(last.file, projectName());
        try (events) {
            for (Job job : jobs) {
                Report report = runSuite(divided(job, jobs, timings), reports.isEmpty(), events);
                reports.add(report);
                stdout.endLine();
                stderr.endLine();
                spec.commandLine().getOut().print(report.summary());
                spec.commandLine().getOut().flush();
                last.add(report);
                if (job.runsWholePackages()) {
                    timings.add(report);
                }
                boolean broken = job.suite().isBuild() && report.verdict != Verdict.PASSED;
                if (broken || report.verdict.compareTo(Verdict.INTERRUPTED) >= 0) {
                    break;
                }
            }
        }
        timings.write().forEach(VmTest::tell); // they only make later runs faster
        if (events != null && events.problem != null) {
            problems.add(events.problem);
        }
        if (junit != null) {
            problems.addAll(JUnit.write(reports, vmName, junit));
        }
        Verdict worst = worst(reports);
        if (worst == Verdict.FAILED || worst == Verdict.TIMED_OUT) {
            tell("to run again what failed: vm-test --failed");
        }
        return verdict(reports, problems);
    }

    private static Verdict worst(List<Report> reports) {
        return reports.stream().map(report -> report.verdict).max(Comparator.naturalOrder()).orElseThrow();
    }

    /** Tells the verdict in one line, and what is wrong with the files; the exit code. */
    private static int verdict(List<Report> reports, List<String> problems) {
        tell(reports.stream().map(Report::line).collect(Collectors.joining("; ")));
        problems.forEach(VmTest::tell);
        Verdict worst = worst(reports);
        return worst == Verdict.PASSED && !problems.isEmpty() ? 1 : worst.exitCode;
    }

    @Command(name = "list", customSynopsis = "vm-test list [--project=DIR]",
            description = {"Show the suites, their commands, and the settings that gave them.", "",
                "Which command phase4 is depends on the project."},
            footer = {"  vm-test list", "  VM_TEST_VET='go vet ./...' vm-test list"})
    int list() {
        refuseSuites();
        new Suites(settings, userPath(projectOption)).all().forEach(suite -> spec.commandLine().getOut().printf(
                "%-18s %s%s%n", suite.name(), suite.command() + String.join(" ", suite.parts()),
                suite.setting().isEmpty() ? "" : "  (" + suite.setting() + ")"));
        return 0;
    }

    @Command(name = "run", customSynopsis = "vm-test run [OPTIONS] CMD [ARG...]",
            description = {"Run a command in VM_REMOTE_DIR in the guest, as root, without input; its exit code is "
                    + "this command's.", "",
                "Several words are a command and its arguments, which reach it as they are. A single word is a line "
                    + "for the guest's sh. At the time limit and on Ctrl-C, all that it started is killed."},
            footer = {"  vm-test run ./scripts/capture-bsd-fixtures.sh",
                "  vm-test run --env GOFLAGS=-v --timeout 5m go vet ./...",
                "  vm-test run 'gmake check 2>&1 | tail'"})
    int run(@Parameters(arity = "1..*", paramLabel = "CMD",
            description = "The command. Everything after its name is passed to it.")
            List<String> command) throws Exception {
        refuseSuites();
        if (String.join("", command).isBlank()) {
            throw new ParameterException(spec.commandLine(), "the command is blank");
        }
        checkOptions();
        vmDir = vmDirectory(userPath(dirOption));
        lockVm();
        GuestRun guest = guestRun(vmName, command.size() == 1 ? command.get(0) : shellQuoted(command), timeout, false);
        Verdict verdict = guest.run(stdout::print, stderr::print);
        return switch (verdict) {
            case LOST -> throw new VmException(69, guest.trouble);
            case TIMED_OUT -> throw new VmException(124, "the command did not end within " + timeout.toSeconds() + " s"
                    + (guest.trouble == null ? " and was killed" : ": " + guest.trouble));
            case INTERRUPTED -> verdict.exitCode;
            default -> guest.code;
        };
    }

    @Command(name = "merge", customSynopsis = "vm-test merge [OPTIONS] FILE...",
            description = {"Make one report and one verdict from the --json files of all parts of a run.", "",
                "The parts are those of vm-test --shard I/N --json FILE. The exit code is 69 if a part is missing, cut "
                    + "off or given twice, or if parts differ in commands, commits or versions; a message says where."},
            footer = {"  vm-test merge part-1.json part-2.json part-3.json",
                "  vm-test merge --junit all.xml --timings timings.json part-*.json"})
    int merge(@Parameters(arity = "1..*", paramLabel = "FILE", description = "A file that vm-test --json wrote.")
            List<Path> files,
            @Option(names = "--junit", paramLabel = "FILE", description = "Write a JUnit report of all parts.")
            Path mergedJunit,
            @Option(names = "--json", paramLabel = "FILE", description = "Write the events of all parts in one file.")
            Path mergedJson,
            @Option(names = "--timings", paramLabel = "FILE", description = "Write how long packages took, for the "
                    + "--timings of the next run.") Path mergedTimings) throws IOException {
        refuseSuites();
        Path junitTarget = writable(mergedJunit);
        Path jsonTarget = writable(mergedJson);
        Path timingsTarget = writable(mergedTimings);
        for (Path target : Stream.of(mergedJunit, mergedJson, mergedTimings).filter(Objects::nonNull).toList()) {
            for (Path file : files) {
                if (Files.exists(file) && Files.exists(target) && Files.isSameFile(file, target)) {
                    throw new VmException(2, target + " is one of the files to merge: write to another one");
                }
            }
        }
        Merge merge = new Merge(limits);
        files.forEach(merge::read);
        List<Report> reports = merge.reports();
        reports.forEach(report -> spec.commandLine().getOut().print(report.summary()));
        spec.commandLine().getOut().flush();
        List<String> problems = new ArrayList<>();
        if (junitTarget != null) {
            problems.addAll(JUnit.write(reports, vmName, junitTarget));
        }
        if (jsonTarget != null) {
            problems.addAll(merge.write(reports, jsonTarget));
        }
        if (timingsTarget != null) {
            Timings timings = new Timings(timingsTarget, merge.project());
            reports.stream().filter(merge::isOfWholePackages).forEach(timings::add);
            problems.addAll(timings.write());
        }
        return verdict(reports, problems);
    }

    /** Suites or their options before a subcommand would be ignored, and its 0 taken for a verdict on them. */
    private void refuseSuites() {
        List<OptionSpec> given = spec.commandLine().getParseResult().matchedOptions();
        if (!words.isEmpty() || given.stream().anyMatch(option -> option.scopeType() == ScopeType.LOCAL)) {
            throw new ParameterException(spec.commandLine(),
                    "list, run and merge take no suites and none of the options that only suites have");
        }
    }

    // Before the suites

    private void checkOptions() {
        project = userPath(projectOption);
        if (!Files.isDirectory(project)) {
            throw new VmException(2, originOf(spec, "--project") + ": " + project + " is not a directory");
        } else if (remoteDir != null && !remoteDir.startsWith("/")) {
            throw new VmException(2, originOf(spec, "--remote-dir") + ": '" + remoteDir
                    + "' is no absolute path, as /root/project is");
        }
        environment.keySet().stream().filter(name -> !name.matches("[A-Za-z_]\\w*")).forEach(name -> {
            throw new VmException(2, "--env: '" + name + "' is not the name of a variable");
        });
        junit = writable(junit);
        json = writable(json);
    }

    private void checkDivision() {
        boolean divides = shardOption != null || parallel != null;
        String wrong = isolate && parallel == null ? "--isolate needs --parallel"
                : timingsFile != null && !divides ? "--timings needs --shard or --parallel"
                : onlyFailed && divides
                ? "--failed is not divided: leave out " + (shardOption != null ? "--shard" : "--parallel")
                : parallel != null && (parallel < 1 || parallel > CloneSet.MAX)
                ? "--parallel: " + parallel + " is not a number from 1 to " + CloneSet.MAX
                : parallel != null && freeze
                ? "--freeze-on-failure keeps VM " + vmName + ", and --parallel runs the suites in clones: leave out "
                + "one of them"
                : null;
        if (wrong != null) {
            throw new ParameterException(spec.commandLine(), wrong);
        } else if (divides) {
            Shard shard = shardOption == null ? Shard.WHOLE : Shard.parse(shardOption, System.getenv());
            division = new Division(shard, timingsFile == null ? null : Timings.read(timingsFile, projectName()),
                    new HashMap<>());
        }
    }

    private String projectName() {
        Path name = project.getFileName();
        return name == null ? "/" : name.toString();
    }

    private static Path writable(Path file) {
        Path named = file == null ? null : written(file);
        if (named != null && (Files.isDirectory(named) || !Files.isWritable(named.getParent()))) {
            throw new VmException(2, "cannot write " + named + ": name a file in a directory that exists and that "
                    + "you can write to");
        }
        return named;
    }

    /** Waits for the guest and takes the lock: two runs on one VM would kill each other's processes. */
    private void lockVm() throws IOException {
        if (!fresh || !Files.isDirectory(vmDir)) { // else vm-ctl restore starts it
            awaitGuest(vmDir, vmName, () -> interrupted);
        }
        lock = FileChannel.open(privateDirectory(vmDir.resolve(vmName + ".test")).resolve("lock"),
                StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        if (lock.tryLock() == null) {
            throw new VmException(69, "another vm-test uses VM " + vmName + ": wait for it, or stop it");
        }
    }

    private String guestDirectory() {
        // for the project / this is "/root/", which vm-sync refuses
        return remoteDir != null ? remoteDir : "/root/" + Path.of("/").relativize(project).getFileName();
    }

    private static final String NOTHING_RAN = "no suite was run";

    /** Another one of these scripts, and the command that runs it. */
    record Script(String name, List<String> command) {
        /** What to do if it cannot be run. */
        String remedy() {
            String alias = name.equals("VmCtl") ? "vm-ctl" : "vm-sync";
            String setting = name.equals("VmCtl") ? "VM_CTL_CMD" : "VM_SYNC_CMD";
            return "; set " + setting + " to the command that runs it, as " + setting + "='jbang " + alias
                    + "@NAME' for a catalog that you added, or " + setting + "='jbang /path/to/" + name
                    + ".java' for a copied file";
        }
    }

    private Script script(String name, String setting) throws IOException {
        Script script = new Script(name, sibling(setting, name, userPath(""), project));
        if (script.command() == null) {
            throw new VmException(69, NOTHING_RAN + ": found no " + name + ".java here or above that only you can "
                    + "change and that is outside of the project" + script.remedy());
        }
        return script;
    }

    /**
     * Runs another script with the same settings. It has time limits of its own. Its output goes to stderr. A failure's
     * message begins with what follows from it.
     */
    private void runScript(String consequence, Script script, String... arguments) throws IOException,
            InterruptedException {
        if (interrupted) {
            throw new VmException(130, consequence + ": interrupted");
        }
        runScript(consequence, vmName, script, System.err, arguments);
    }

    private void runScript(String consequence, String name, Script script, OutputStream output, String... arguments)
            throws IOException, InterruptedException {
        List<String> command = Stream.concat(script.command().stream(), Stream.of(arguments)).toList();
        String what = consequence + ": '" + shellQuoted(command) + "' ";
        boolean removesClones = clones != null && clones.isClosed; // which a second Ctrl-C does not stop
        ProcessBuilder builder = new ProcessBuilder(removesClones ? inOwnSession(command) : command)
                .redirectErrorStream(true);
        builder.environment().putAll(Map.of("VM_DIR", vmDir.toString(), "VM_NAME", name,
                "VM_PROJECT", project.toString(), "VM_REMOTE_DIR", guestDirectory()));
        Process process;
        try {
            process = start(builder, verbose);
        } catch (VmException missing) {
            throw new VmException(69, what + "cannot be run here" + script.remedy());
        }
        if (!removesClones) {
            otherScripts.add(process);
            if (interrupted) { // perhaps after interrupt() went through that list
                process.destroy();
            }
        }
        try {
            process.getOutputStream().close();
            process.getInputStream().transferTo(output);
            int code = process.waitFor();
            if (code != 0) {
                throw new VmException(Set.of(1, 2, 3, 124, 130, 143).contains(code) ? code : 69,
                        what + "failed with exit code " + code);
            }
        } finally {
            otherScripts.remove(process);
        }
    }

    /** Runs vm-ctl for a VM by its name. What it prints is shown only if it fails. */
    private void vmCtlFor(String name, String... arguments) {
        ByteArrayOutputStream output = new ByteArrayOutputStream();
        try {
            runScript("vm-ctl for " + name, name, vmCtl, output, arguments);
        } catch (VmException failed) {
            throw new VmException(failed.exitCode, failed.getMessage() + ": " + output.toString(UTF_8).strip());
        } catch (IOException | InterruptedException failed) {
            throw new VmException(69, "vm-ctl for " + name + ": " + reason(failed));
        }
    }

    /** The command in a session of its own, where there is setsid: Ctrl-C does not reach it. */
    static List<String> inOwnSession(List<String> command) {
        String path = System.getenv().getOrDefault("PATH", "/usr/bin:/bin");
        return Stream.concat(Stream.of(path.split(":")).map(dir -> dir + "/setsid")
                .filter(file -> Files.isExecutable(Path.of(file))).limit(1), command.stream()).toList();
    }

    /** Writes a new temporary file and moves it into place: no reader sees half of it, and no link is followed. */
    private static void replaceFile(Path file, String text) throws IOException {
        Path temporary = Files.createTempFile(file.getParent(), "." + file.getFileName(), ".new");
        try (FileOutputStream stream = new FileOutputStream(temporary.toFile())) {
            stream.write((text + "\n").getBytes(UTF_8));
            stream.getFD().sync();
            Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(temporary);
        }
    }

    static void tell(String line) {
        System.err.println(printable("vm-test: " + line));
    }

    private static Process start(ProcessBuilder builder, boolean verbose) {
        if (verbose) {
            System.err.println("+ " + shellQuoted(builder.command()));
        }
        try {
            return builder.start();
        } catch (IOException missing) {
            throw new VmException(69, builder.command().get(0) + " cannot be run (is it installed?): "
                    + missing.getMessage());
        }
    }

    // One suite

    /** Runs a suite. If the project is not in the guest, the first suite ends the command with 69. */
    private Report runSuite(Job job, boolean first, EventFile events) throws Exception {
        System.err.println("== " + job.label() + ": " + printable(job.command()));
        SuiteOutput output = new SuiteOutput(events == null ? line -> { } : events::write, limits);
        Instant started = Instant.now();
        if (events != null) {
            events.begin(job, projectName(), commit());
        }
        Ending ending;
        if (job.part().isEmpty()) {
            ending = Ending.only(Verdict.PASSED, 0);
        } else if (parallel != null && !job.part().packages().isEmpty()) {
            ending = runInClones(job, output);
        } else {
            GuestRun guest = guestRun(vmName, job.command(), timeout, leaks != Leaks.ignore);
            guest.beforeKill = freeze ? () -> freeze(job.suite()) : null;
            Verdict verdict = guest.run(bytes -> show(stdout, output.take(1, bytes)),
                    bytes -> show(stderr, output.take(2, bytes)));
            if (first && guest.refused) {
                throw new VmException(69, guest.trouble);
            }
            ending = Ending.of(verdict, guest);
        }
        show(stdout, output.end());
        Report report = new Report(job, ending, output, started, leaks);
        if (events != null) {
            events.end(report);
        }
        if (freeze && report.verdict == Verdict.FAILED) {
            freeze(job.suite());
        }
        return report;
    }

    /** A command for a VM; {@code leftovers}: whether the guest is to list what it leaves behind. */
    private GuestRun guestRun(String name, String command, Duration limit, boolean leftovers) throws IOException {
        Place place = new Place(vmDir, name, guestDirectory(), projectOrigin(project), verbose);
        return new GuestRun(place, command, environment, limit, leftovers,
                () -> interrupted || clones != null && clones.stopped);
    }

    /** The commit that the project is at; null if git does not tell. rev-parse runs no program of the project's. */
    private String commit() throws InterruptedException {
        ProcessBuilder git = new ProcessBuilder("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
                "-C", project.toString(), "rev-parse", "--verify", "HEAD").redirectError(Redirect.DISCARD);
        try {
            Process process = start(git, verbose);
            process.getOutputStream().close();
            boolean ended = process.waitFor(10, TimeUnit.SECONDS); // it reads two files and prints one line
            String hash = ended ? new String(process.getInputStream().readNBytes(100), UTF_8).strip() : "";
            process.destroyForcibly(); // not before: it closes the streams, of an ended process too
            return hash.matches("[0-9a-f]{40,64}") ? hash : null;
        } catch (IOException | VmException noGit) {
            return null;
        }
    }

    // One suite, divided

    /** With --shard or --parallel the part of a suite that is run here, else the suite. */
    private Job divided(Job job, List<Job> jobs, Timings timings) throws IOException, InterruptedException {
        if (division == null || job.suite().isBuild()) {
            return division == null ? job : job.with(Part.undivided(division.shard(), true));
        }
        for (Job each : parallel != null ? jobs : List.of(job)) { // now, so that every clone has what it builds
            if (each.isGoTest() && !each.suite().isBuild() && !division.lists().containsKey(each.name())) {
                division.lists().put(each.name(), listPackages(each));
            }
        }
        PackageList list = division.lists().getOrDefault(job.name(), PackageList.NONE);
        if (list.packages().isEmpty()) {
            tell("suite " + job.name() + " cannot be divided, because " + (job.isGoTest() ? "go list does not tell "
                    + "all its packages" : "it is no plain go test") + ": it runs whole"
                    + (division.shard().count() == 1 ? "" : ", as part 1"));
            return job.with(Part.undivided(division.shard(), false));
        }
        Timings known = division.timings() != null ? division.timings() : parallel != null ? timings : null;
        Map<String, Double> seconds = Timings.of(known, job.name(), list.packages());
        Part part = new Part(division.shard(), division.shard().of(seconds), list.hash());
        if (division.shard().count() > 1 && !part.isEmpty()) {
            tell("to run exactly this part elsewhere: vm-test " + shellQuoted(Stream.concat(Stream.of(job.name()),
                    part.packages().stream().flatMap(pkg -> Stream.of("--packages", pkg))).toList())
                    + (job.callerArgs().words().isEmpty() ? "" : " -- " + shellQuoted(job.callerArgs().words())));
        }
        return job.with(part);
    }

    /** The packages of a suite, from go list in the guest. With --parallel it also builds their tests. */
    private PackageList listPackages(Job job) throws IOException, InterruptedException {
        StringBuilder output = new StringBuilder();
        GoTest goTest = job.goTest();
        String build = goTest.list("-export -test -deps") + " >/dev/null 2>&1 || :"; // go test reports what is wrong
        GuestRun guest = guestRun(vmName, goTest.list("-f " + shellQuoted(List.of(PackageList.FORMAT)))
                + (parallel == null ? "" : " && { " + build + "; }"), timeout, false);
        Verdict verdict = guest.run(bytes -> output.append(bytes, 0, Math.min(bytes.length(),
                PackageList.MAX_LENGTH - output.length())), errors -> { });
        return switch (verdict) {
            case PASSED -> PackageList.parse(output.toString());
            case FAILED -> PackageList.NONE;
            case TIMED_OUT -> throw new VmException(124, "go list for suite " + job.name() + " did not end within "
                    + timeout.toSeconds() + " s");
            case INTERRUPTED -> throw new VmException(130, "interrupted");
            case LOST -> throw new VmException(69, guest.trouble);
        };
    }

    /** Runs a part of a suite in the clones. The first suite that needs them makes them. */
    private Ending runInClones(Job job, SuiteOutput output) throws Exception {
        long deadline = System.nanoTime() + timeout.toNanos();
        PackageList list = division.lists().get(job.name());
        if (clones == null) {
            int most = division.lists().values().stream().mapToInt(all -> all.work(all.packages()).size())
                    .max().orElse(1);
            clones = new CloneSet(vmDir, vmName, Math.min(parallel, most), () -> vmCtlFor(vmName, "list"));
            runScript("no clone was made", vmCtl, "snapshot", "--temporary", clones.lockFile.toString(), clones.id);
            runScript("no suite was run in clones", vmCtl, Stream.concat(Stream.of("clone", "--temporary",
                    clones.lockFile.toString(), "--snapshot", clones.id, "--start"), clones.names.stream())
                    .toArray(String[]::new));
        }
        ParallelRun run = new ParallelRun(clones, list.work(job.part().packages()), () -> interrupted);
        return run.run((clone, packages, spool) -> {
            Duration left = Duration.ofNanos(Math.max(1, deadline - System.nanoTime()));
            GuestRun guest = guestRun(clone, job.goTest().of(packages).line(), left, leaks != Leaks.ignore);
            return Ending.of(guest.run(bytes -> spool.add(1, bytes), bytes -> spool.add(2, bytes)), guest);
        }, clone -> vmCtlFor(clone, "restore"), isolate, (stream, bytes) -> {
            show(stream == 1 ? stdout : stderr, bytes == null ? output.endPart() : output.take(stream, bytes));
            if (bytes == null) {
                stdout.endLine();
                stderr.endLine();
            }
        });
    }

    private void show(Screen screen, String bytes) {
        if (!quiet) {
            screen.print(bytes);
        }
    }

    /** Keeps the VM as a suite left it. A failure of this changes no verdict. */
    private void freeze(Suite suite) {
        String snapshot = "failed-" + suite.name();
        try {
            runScript("no snapshot " + snapshot, vmCtl, "snapshot", "--yes", snapshot);
            tell("the VM is kept as " + suite.name() + " left it: vm-ctl restore " + snapshot);
        } catch (IOException | InterruptedException | VmException refused) {
            tell(reason(refused));
        }
    }

    // Suites

    /** A suite: its command, or the suites that it stands for; and the setting that gave it, or "". */
    record Suite(String name, String command, List<String> parts, String setting) {
        boolean isBuild() {
            return name.equals("build");
        }
    }

    /** What the caller adds to the suites of one call: the words after --, --packages, and --require-tests. */
    record CallerArgs(List<String> words, List<String> packages, boolean requireTests) {
        static final CallerArgs NONE = new CallerArgs(List.of(), List.of(), false);

        boolean isEmpty() {
            return words.isEmpty() && packages.isEmpty();
        }

        /** Whether a word is this flag of go test, however it is written. */
        boolean hasFlag(String name) {
            return words.stream().anyMatch(word -> GoTest.isFlag(word) && GoTest.nameOf(word).equals(name));
        }
    }

    /**
     * A suite as it is run: the line for the guest's sh, whether it is a go test with -json, the tests that failed
     * last time, by package, if only these run again, and the part of it that is run.
     */
    record Job(Suite suite, String command, boolean isGoTest, CallerArgs callerArgs,
            Map<String, List<String>> repeated, Part part) {
        String name() {
            return suite.name();
        }

        /** Its name, and which part of it this is. */
        String label() {
            return name() + (part.shard().count() == 1 || suite.isBuild() ? "" : " (part " + part.shard() + ")");
        }

        /** The suite's command as a go test, with what the caller adds. */
        GoTest goTest() {
            return GoTest.parse(suite.command()).with(callerArgs);
        }

        /** The same with the packages of a part. A suite that is not divided keeps its command. */
        Job with(Part part) {
            return new Job(suite, part.packages().isEmpty() || part.shard().count() == 1 ? command
                    : goTest().of(part.packages()).line(), isGoTest,
                    callerArgs, repeated, part);
        }

        /** Whether 0 tests are a failure, because the tests were chosen. */
        boolean needsTests() {
            return isGoTest
                    && (!callerArgs.packages().isEmpty() || callerArgs.hasFlag("run") || !repeated.isEmpty());
        }

        /** Whether all tests of its packages run: only then are the packages' times useful for later runs. */
        boolean runsWholePackages() {
            return repeated.isEmpty() && !callerArgs.hasFlag("run") && !callerArgs.hasFlag("skip");
        }
    }

    /** The suites by name: the built-in ones, changed and extended by VM_TEST_<SUITE>. */
    static final class Suites {
        private static final String BUILT_IN = """
                build              gmake build
                unit               go test -v -short ./...
                integration        go test -v -tags=integration ./...
                integration-e2e    go test -v -tags=integration ./integration_e2e_test.go
                build-integration  go test -v -run TestIntegration ./build/
                build-cancellation go test -v -run TestIntegration_BuildCancellation ./build/
                phase4             doas go test -v ./internal/worker/...
                e2e                go test -v -tags=e2e ./...
                procctl            doas go test -v -tags=integration -run TestIntegration_Proc ./environment/bsd/
                procctl-reaping    doas go test -v -tags="dragonfly integration" \
                -run TestIntegration_ProcctlReaping ./environment/bsd/
                procfind           doas go test -v -tags=integration \
                -run TestIntegration_ProcfindReaping ./environment/bsd/
                orphans            doas go test -v -tags=integration \
                -run TestIntegration_OrphanedProcesses ./environment/bsd/
                fixtures           go test -v -run Fixture ./stats/
                """;
        private static final Set<String> SUBCOMMANDS = Set.of("list", "run", "merge");

        private final Map<String, Suite> byName = new LinkedHashMap<>();

        Suites(Settings settings, Path project) {
            BUILT_IN.lines().map(line -> line.split(" +", 2)).forEach(row -> add(row[0], row[1], ""));
            if (!Files.isDirectory(project.resolve("internal/worker"))) { // as in go-synth's newer trees
                add("phase4", "doas go test -v -tags=integration ./environment/bsd/", "");
            }
            byName.put("all", new Suite("all", "", List.of("unit", "integration", "phase4"), ""));
            byName.put("quick", new Suite("quick", "", List.of("--sync", "phase4"), ""));
            settings.values.keySet().stream().filter(key -> key.startsWith("VM_TEST_")).sorted()
                    .forEach(key -> add(nameOf(key), settings.values.get(key), key));
        }

        private void add(String name, String command, String setting) {
            if (command.isBlank()) {
                throw new VmException(2, setting + " is blank: give the suite " + name + " a command");
            }
            Suite before = byName.put(name, new Suite(name, command, List.of(), setting));
            if (before != null && !before.setting().isEmpty()) {
                throw new VmException(2, before.setting() + " and " + setting + " both name the suite " + name
                        + ": remove one of them");
            }
        }

        private static String nameOf(String setting) {
            String name = canonical(setting.substring("VM_TEST_".length()));
            if (!name.matches("[a-z0-9][a-z0-9-]{0,63}")) {
                throw new VmException(2, setting + " names no suite: letters, digits and _ may follow VM_TEST_, at "
                        + "most 64, and no _ first");
            } else if (SUBCOMMANDS.contains(name)) {
                throw new VmException(2, setting + ": '" + name + "' is a subcommand: give the suite another name");
            }
            return name;
        }

        private static String canonical(String name) {
            return name.toLowerCase(Locale.ROOT).replace('_', '-');
        }

        Collection<Suite> all() {
            return byName.values();
        }

        boolean needsSync(String name) {
            return byName.get(canonical(name)).parts().contains("--sync");
        }

        /** The suites that these names stand for, each once. */
        List<Suite> chosen(List<String> names) {
            Set<String> chosen = new LinkedHashSet<>();
            for (String name : names.stream().map(Suites::canonical).toList()) {
                if (!byName.containsKey(name)) {
                    Set<String> known = new HashSet<>(byName.keySet());
                    known.addAll(SUBCOMMANDS);
                    throw new VmException(2, "there is no suite '" + name + "'" + didYouMean(name, known) + ", only "
                            + String.join(", ", byName.keySet()) + "; a setting VM_TEST_<SUITE> makes another");
                }
                List<String> parts = byName.get(name).parts();
                chosen.addAll(parts.isEmpty() ? List.of(name) : parts);
            }
            return chosen.stream().filter(byName::containsKey).map(byName::get).toList();
        }

        /** What to run for these names, the build first. */
        List<Job> jobs(List<String> names, CallerArgs callerArgs) {
            List<Suite> chosen = chosen(names);
            List<Job> jobs = new ArrayList<>(chosen.stream().filter(suite -> !suite.isBuild())
                    .map(suite -> job(suite, callerArgs)).toList());
            if (jobs.isEmpty() && !callerArgs.isEmpty()) {
                throw new VmException(2, "--packages and what follows -- cannot be used with the build alone");
            }
            build(chosen.size() > jobs.size()).ifPresent(job -> jobs.add(0, job));
            return jobs;
        }

        /** The build, unless VM_TEST_BUILD says that there is nothing to build and nobody named it. */
        Optional<Job> build(boolean named) {
            Suite build = byName.get("build");
            boolean nothing = List.of("true", ":").contains(build.command());
            return named || !nothing ? Optional.of(job(build, CallerArgs.NONE)) : Optional.empty();
        }

        private static Job job(Suite suite, CallerArgs callerArgs) {
            GoTest goTest = GoTest.parse(suite.command());
            if (goTest != null) {
                return new Job(suite, goTest.with(callerArgs).line(), true, callerArgs, Map.of(), Part.WHOLE);
            } else if (!callerArgs.packages().isEmpty()) {
                throw new VmException(2, "--packages is for suites of the form 'go test FLAGS PACKAGES', and "
                        + suite.name() + " is another command: " + suite.command());
            } else if (!callerArgs.words().isEmpty() && Shell.hasComment(suite.command())) {
                throw new VmException(2, "the command of suite " + suite.name()
                        + " has a # comment, in which the words after -- would be lost: " + suite.command());
            }
            String added = callerArgs.words().isEmpty() ? "" : " " + shellQuoted(callerArgs.words());
            return new Job(suite, suite.command() + added, false, callerArgs, Map.of(), Part.WHOLE);
        }

        /** The suite's failed tests, by package; of a package without names all tests. */
        Job again(Suite suite, Map<String, List<String>> failed, CallerArgs callerArgs) {
            GoTest goTest = GoTest.parse(suite.command());
            if (goTest == null || failed.isEmpty()) {
                return job(suite, callerArgs);
            }
            Map<String, List<String>> packages = new LinkedHashMap<>(); // by the pattern of their failed tests
            failed.forEach((pkg, tests) -> packages.computeIfAbsent(String.join("|", tests), it -> new ArrayList<>())
                    .add(pkg));
            List<String> lines = new ArrayList<>();
            packages.forEach((pattern, named) -> {
                List<String> run = pattern.isEmpty() ? List.of() : List.of("-run", "^(" + pattern + ")$");
                lines.add(goTest.with(callerArgs).with(new CallerArgs(run, named, false)).line());
            });
            String command = lines.size() == 1 ? lines.get(0) : "code=0; " + lines.stream()
                    .map(line -> line + " || code=$?; ").collect(Collectors.joining()) + "exit $code";
            return new Job(suite, command, true, callerArgs, failed, Part.WHOLE);
        }
    }

    /**
     * A command of the form {@code [VAR=x...] [doas] go test FLAGS PACKAGES}, quoted as it was written. Any other
     * command is opaque: it runs whole. An unknown flag takes the next word as its value, so that too few words count
     * as packages, never too many.
     */
    record GoTest(String start, List<String> flags, String packages, String args) {

        /** The flags of go test and go build that take no value: after any other, the next word is its value. */
        private static final Set<String> NO_VALUE = Set.of("a", "artifacts", "asan", "benchmem", "buildvcs", "cover",
                "failfast", "fullpath", "i", "json", "linkshared", "modcacherw", "msan", "n", "race", "short",
                "trimpath", "v", "work", "x");

        /** The flags of go test that choose what is built, and from which files. go list takes them, too. */
        private static final Set<String> BUILD_FLAGS = Set.of("asan", "asmflags", "buildvcs", "compiler", "gccgoflags",
                "gcflags", "installsuffix", "ldflags", "mod", "modcacherw", "modfile", "msan", "overlay", "pgo", "race",
                "tags", "toolexec", "trimpath");
        /** For all packages' names together: Linux takes 128 KB in one argument. */
        private static final int MAX_LENGTH = 100_000;

        /** Null if the command is opaque. */
        static GoTest parse(String command) {
            List<Shell.Word> words = Shell.words(command);
            int go = (int) words.stream().takeWhile(word -> word.raw().matches("[A-Za-z_]\\w*=(?s:.*)")).count();
            go += raw(words.subList(go, words.size())).startsWith("doas ") ? 1 : 0;
            int next = go + 2;
            if (next > words.size() || !raw(words.subList(go, next)).matches("(\\S*/)?go test")) {
                return null;
            }
            List<String> flags = new ArrayList<>();
            while (next < words.size() && isFlag(words.get(next).value())) {
                int length = flagLength(words.get(next).value());
                String flag = nameOf(words.get(next).value());
                if (Set.of("args", "c", "C", "").contains(flag) || next + length > words.size()) {
                    return null; // it has arguments of its own, runs no test, must come first, or lacks a value
                }
                addFlag(flags, raw(words.subList(next, next + length)), flag);
                next += length;
            }
            List<Shell.Word> packages = words.subList(next, words.size());
            if (packages.stream().anyMatch(word -> isFlag(word.value()))) {
                refuseLostPackages(packages.stream().map(Shell.Word::value).dropWhile(it -> !isFlag(it)).toList());
                return null;
            }
            return new GoTest(raw(words.subList(0, go + 2)), flags, raw(packages), "");
        }

        private static String raw(List<Shell.Word> words) {
            return words.stream().map(Shell.Word::raw).collect(Collectors.joining(" "));
        }

        /** The words after a flag that follows the packages: go test tests no packages among them, and says nothing. */
        private static void refuseLostPackages(List<String> words) {
            for (int i = 0; i < words.size() && !nameOf(words.get(i)).equals("args"); i += flagLength(words.get(i))) {
                if (!isFlag(words.get(i))) {
                    throw new VmException(2, "go test would never test " + words.get(i) + ", because a flag stands "
                            + "between it and the packages before it: put all flags before the packages");
                }
            }
        }

        private static boolean isFlag(String word) {
            return word.startsWith("-") && word.length() > 1;
        }

        /** -run and --run, -test.run and -run=X are one flag. */
        private static String nameOf(String flag) {
            return flag.replaceFirst("^--?(test\\.)?", "").replaceFirst("(?s)=.*", "");
        }

        private static int flagLength(String flag) {
            return flag.contains("=") || NO_VALUE.contains(nameOf(flag)) ? 1 : 2;
        }

        /** -json is added once for all. -v changes how go test -json ends its lines, and so results would be lost. */
        private static void addFlag(List<String> flags, String words, String name) {
            if (!Set.of("v", "json").contains(name)) {
                flags.add(words);
            }
        }

        /** With the caller's flags before the packages, because go test reads no packages after a further flag. */
        GoTest with(CallerArgs callerArgs) {
            List<String> words = callerArgs.words();
            int end = words.contains("-args") ? words.indexOf("-args") : words.size();
            List<String> more = new ArrayList<>(flags);
            callerArgs.packages().stream().filter(it -> it.isBlank() || isFlag(it)).forEach(word -> {
                throw new VmException(2, "--packages: '" + word + "' is no package");
            });
            for (int i = 0; i < end; i += flagLength(words.get(i))) {
                String flag = words.get(i);
                if (Set.of("c", "n", "list").contains(nameOf(flag))) {
                    throw new VmException(2, "with " + flag + " go test runs no test, so there would be no verdict");
                } else if (!isFlag(flag) || flag.equals("--")) {
                    throw new VmException(2, "'" + flag + "' after -- is neither a flag of go test nor a flag's value: "
                            + "packages are named by --packages " + flag);
                } else if (i + flagLength(flag) > end) {
                    throw new VmException(2, "after --, the flag " + flag + " lacks its value; if it takes none, write "
                            + flag + "=true");
                }
                addFlag(more, shellQuoted(words.subList(i, i + flagLength(flag))), nameOf(flag));
            }
            return new GoTest(start, more,
                    callerArgs.packages().isEmpty() ? packages : shellQuoted(callerArgs.packages()),
                    end < words.size() ? shellQuoted(words.subList(end, words.size())) : args);
        }

        /** The same for these packages. */
        GoTest of(List<String> named) {
            String quoted = shellQuoted(named);
            if (quoted.length() > MAX_LENGTH) {
                throw new VmException(2, "the names of the " + named.size() + " packages of a part are too long for "
                        + "one command line: use more parts");
            }
            return new GoTest(start, flags, quoted, args);
        }

        /** A go list command with these options and this suite's build flags. It also lists packages with an error. */
        String list(String options) {
            return Stream.concat(Stream.of(start.replaceFirst("test$", "list -e"), options), Stream.concat(
                    flags.stream().filter(flag -> BUILD_FLAGS.contains(nameOf(Shell.words(flag).get(0).value()))),
                    Stream.of(packages))).filter(part -> !part.isEmpty()).collect(Collectors.joining(" "));
        }

        String line() {
            return Stream.of(start, "-json", String.join(" ", flags), packages, args)
                    .filter(part -> !part.isEmpty()).collect(Collectors.joining(" "));
        }
    }

    /** What vm-test has to know of sh's grammar. */
    static final class Shell {
        /** What stands for itself, also with a blank or a special character in it. */
        private static final String QUOTED = "\\\\[^\n]|'[^']*'|\"[^\"$`\\\\]*\"";
        private static final Pattern WORD = Pattern.compile("(?:" + QUOTED + "|[^ \t'\"\\\\]+)+");

        /** A word as it was written, and what sh makes of it. */
        record Word(String raw, String value) {}

        /** The words of a simple command; none if it is more than that, or its quotes are not closed. */
        static List<Word> words(String line) {
            IntStream unquoted = line.replaceAll(QUOTED, "").chars();
            if (unquoted.anyMatch(c -> ";&|<>$#`()[]{}*?\n\r'\"\\".indexOf(c) >= 0)) {
                return List.of();
            }
            return WORD.matcher(line).results().map(MatchResult::group)
                    .map(word -> new Word(word, split(word).get(0))).toList();
        }

        /** Whether a # outside quotes begins a comment. */
        static boolean hasComment(String line) {
            return line.replaceAll("(?s)\\\\.|'[^']*'|\"(\\\\.|[^\"\\\\])*\"", "x").matches("(?s)(.*[ \t\n;&|()])?#.*");
        }
    }

    /** Words as a person could paste them into a shell. */
    static String shellQuoted(List<String> words) {
        return words.stream().map(word -> word.matches("[A-Za-z0-9_@%+=:,./-]+") ? word : "'"
                + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    // What failed last time

    /**
     * The last run in one file: its project, the caller's flags, and of each suite the verdict and the failed tests. It
     * is written before anything runs, so that a run that is cut off is known too, and after each suite.
     */
    static final class LastRun {
        private final Path file;
        private final String project;
        private CallerArgs callerArgs;
        private final JsonObject results = new JsonObject(); // by suite

        LastRun(Path directory, String project, CallerArgs callerArgs) {
            file = directory.resolve("last-run.json");
            this.project = project;
            this.callerArgs = callerArgs;
        }

        /** What failed in the last run, of these suites, or of all if there are none. */
        List<Job> failedJobs(Suites suites, List<Suite> chosen) throws IOException {
            JsonObject last = read();
            if (!project.equals(last.getString("project"))) {
                throw new VmException(2, "--failed: the last run was that of another project, " + printable(
                        last.getString("project", "?")) + ", not " + project + ": run a suite of this one first");
            }
            callerArgs = new CallerArgs(strings(last.getArray("words")), strings(last.getArray("packages")),
                    last.getBoolean("requireTests") || callerArgs.requireTests());
            results.putAll(last.getObject("suites", new JsonObject()));
            List<Job> jobs = new ArrayList<>();
            for (String name : chosen.isEmpty() ? results.keySet() : chosen.stream().map(Suite::name).toList()) {
                Suite suite = suites.byName.get(name);
                if (!results.has(name)) {
                    throw new VmException(2, "--failed: suite " + name + " was not in the last run, only "
                            + printable(String.join(", ", results.keySet())));
                } else if (suite == null) {
                    throw new VmException(2, "--failed: there is no suite " + printable(name) + " any more, which the "
                            + "last run had: set its VM_TEST_... again, or name other suites");
                } else if (!suite.isBuild()) {
                    failedJob(suites, suite).ifPresent(jobs::add);
                }
            }
            boolean buildFailed = results.has("build") && !"passed".equals(
                    results.getObject("build").getString("verdict"));
            if (!jobs.isEmpty() || buildFailed) {
                suites.build(buildFailed).ifPresent(job -> jobs.add(0, job));
            }
            return jobs;
        }

        private Optional<Job> failedJob(Suites suites, Suite suite) {
            JsonObject result = results.getObject(suite.name());
            boolean same = suite.command().equals(result.getString("command"));
            if (same && "passed".equals(result.getString("verdict"))) {
                return Optional.empty();
            }
            Map<String, List<String>> failed = new LinkedHashMap<>();
            if (same) {
                result.getObject("failed", new JsonObject()).forEach((pkg, tests) ->
                        failed.put(pkg, strings((JsonArray) tests)));
            }
            if (failed.isEmpty()) {
                tell("suite " + suite.name() + " runs whole, because it is not known which of its tests failed");
            }
            return Optional.of(suites.again(suite, failed, callerArgs));
        }

        private static List<String> strings(JsonArray array) {
            return array == null ? List.of() : array.stream().map(String::valueOf).toList();
        }

        private JsonObject read() throws IOException {
            try {
                return JsonParser.object().from(Files.readString(file));
            } catch (NoSuchFileException none) {
                throw new VmException(2, "--failed: there was no run yet: run a suite first");
            } catch (JsonParserException | CharacterCodingException | StackOverflowError damaged) {
                throw new VmException(69, file + " is damaged: delete it, and run the suites again");
            }
        }

        /** Before these jobs run. What --failed has read of other suites stays. */
        void begin(List<Job> jobs) {
            jobs.forEach(job -> results.put(job.name(),
                    new JsonObject(Map.of("command", job.suite().command()))));
            write();
        }

        void add(Report report) {
            results.getObject(report.job.name()).putAll(Map.of("verdict", report.verdict.toString(),
                    "failed", report.failedTests));
            write();
        }

        /** If it cannot be written, the old file goes: else --failed would take the run before for this one. */
        private void write() {
            String text = JsonWriter.indent("  ").string().object().value("project", project)
                    .array("words", callerArgs.words()).array("packages", callerArgs.packages())
                    .value("requireTests", callerArgs.requireTests()).object("suites", results).end().done();
            try {
                replaceFile(file, text);
            } catch (IOException refused) {
                tell(file + " cannot be written (" + reason(refused) + "), so --failed will not work");
                file.toFile().delete();
            }
        }
    }

    // One command in the guest

    /** The VM, the project's directory in it, and where the project there should have come from. */
    record Place(Path vmDir, String vmName, String directory, String origin, boolean verbose) {
        /** A lock that cannot be read counts as held: ssh will notice if the VM has ended. */
        boolean isAlive() {
            try {
                return isRunning(vmDir.resolve(vmName + ".qemu-pid"));
            } catch (VmException unknown) {
                return true;
            }
        }

        /** The guest's state from QEMU; null if the VM ended or its state is unknown. */
        GuestState guestState() {
            try {
                return GuestState.of(vmDir, vmName);
            } catch (VmException unreadable) {
                return null;
            }
        }
    }

    enum Verdict {
        PASSED(0), FAILED(1), TIMED_OUT(124), INTERRUPTED(130), LOST(69); // from good to bad

        final int exitCode;

        Verdict(int exitCode) {
            this.exitCode = exitCode;
        }

        @Override
        public String toString() {
            return name().replace('_', ' ').toLowerCase(Locale.ROOT);
        }
    }

    /**
     * The guest's side, in plain sh, because there is no timeout(1), setsid(1) or cgroup. It keeps no files, which a
     * suite could delete.
     * <ul>
     * <li>On stdin come this script and then the orders. The first line, or the end of stdin, stops the suite: the Go
     *     test binaries print their goroutines, and "dumped" is reported. The second line, or the end, kills the rest.
     * <li>Its own lines on stderr begin with the mark, which the suite does not know. The last line on both streams is
     *     "exit", so that a stream without it was cut off.
     * <li>The suite's processes are those that were not there before and descend from it, or from a process that init
     *     adopted. A process that another program daemonizes meanwhile counts as the suite's. What an old daemon (cron,
     *     at) starts for the suite is not seen.
     * </ul>
     */
    static final class Supervisor {
        /** The program. A test names another one. */
        static String ssh = "ssh";

        private static final String SCRIPT = """
            listed=200000 # if there are more lines before the suite, nobody can tell which are new
            exec 3>&2 4<&0 </dev/null 2>/dev/null
            trap '' HUP INT QUIT TERM PIPE
            say() { printf '%s\\n' "$mark$*" >&3; }
            nap() { sleep 0.2; }
            table() { ps -axww -o pid,ppid,stat,command; }
            listing() { # what a suite may leave behind, beside processes
                { mount || echo 'cannot be listed'; } | sed 's/^/mount /'
                [ ! -d /build ] || find /build -xdev | sed 's/^/file /'
                ls -A /tmp | sed 's/^/tmp /'
            }
            added() { # tells what was not in the listing $was; the same mount twice is two
                { printf '%s\\n' "$listed" "$mark" "$was" ''; listing; } | LC_ALL=C awk '
                    NR == 1 { listed = $0; next }
                    NR == 2 { mark = $0; next }
                    /^$/ { now = 1; next }
                    !now { old[$0]++; n++; next }
                    n < listed && old[$0]-- <= 0 && new++ < 1000 { print mark "left " $0 }
                    END {
                        if (n >= listed) print mark "left unknown: not checked, " n " or more files were there before"
                        print mark "left end"
                    }' >&3
            }
            # Prints PID and COMMAND of every new process that descends from $1, or whose ancestor's parent is init.
            mine() {
                { printf '%s\\n\\n' "$before"; table; } | LC_ALL=C awk -v top="$1" -v watcher="$watcher" -v self=$$ '
                    BEGIN { daemon = "^(/usr/(sbin|libexec)/(sshd|getty|cron)|(sshd|cron):)( |$)" }
                    /^$/ { now = 1; next }
                    !now { old[$1 + 0] = 1; next }
                    $1 + 0 > 0 {
                        p = $1 + 0; parent[p] = $2 + 0; zombie[p] = $3 ~ /^Z/
                        sub(/^ *[0-9]+ +[0-9]+ +[^ ]+ +/, ""); name[p] = $0
                    }
                    END {
                        if (!(self in parent)) print "? the processes could not be listed"
                        for (p in parent) if (parent[p] == 1 && name[p] ~ daemon) old[p] = 1
                        for (p in parent) {
                            for (q = p; q in parent && !(q in old) && q != watcher; q = parent[q]) ;
                            if (!(p in old) && !zombie[p] && (q == top || q == 1) && n++ < 200) print p " " name[p]
                        }
                    }'
            }
            pids() { mine $$ | awk '{ print $1 }'; }
            tests() { mine $$ | awk '$2 ~ /\\.test$/ && / -test\\./ { print $1 }'; }
            gone() { # waits up to $1 naps until $2 finds nothing
                n=$1
                while [ $n -gt 0 ] && [ -n "$($2)" ]; do nap; n=$((n - 1)); done
            }
            stop() {
                trap '' USR1
                # The goroutine dump; go test then ends by itself, unless something holds its pipes open.
                kill -QUIT $(tests)
                gone 40 tests
                say dumped
                # After "keep" only an order kills: stdin also ends when a snapshot that was taken now is restored.
                read -r next <&4 || [ "$order" != keep ] || return
                gone 10 pids
                n=0
                while nap; [ $n -lt 20 ] && [ -n "$(pids)" ]; do kill -KILL $(pids); n=$((n + 1)); done
            }
            cd "$dir" || { say nowhere; exit; }
            set -- $(ls -di .)
            for made in "$HOME"/.vm-sync/*/made; do # find the sync that made this directory
                [ "${made%made}tree/." -ef . ] && read -r inode <"$made" && [ "$inode" = "$1" ] || continue
                { IFS= read -r there && read -r time; } <"${made%made}origin" || continue
                [ "$there" = "$origin" ] || { say origin "$there" "$time"; exit; }
            done
            # Another supervisor, whose vm-test was killed, may still be ending its suite.
            n=150
            while ps -axww -o pid,ppid,command | awk -v self=$$ '
                    $1 != self && $2 != self && /[s]h -c script=.*dd bs=/ { other = 1 } END { exit !other }'
            do nap; n=$((n - 1)); [ $n -gt 0 ] || { say busy; exit; }; done
            [ -z "$grace" ] || was=$(listing | head -n $listed)
            before=$(table)
            (
                watcher=$(sh -c 'echo $PPID')
                read -r order <&4
                stop
            ) >/dev/null &
            watcher=$!
            (
                trap - HUP INT QUIT TERM PIPE
                eval "$start"
            ) 2>&3 3>&- 4<&-
            code=$?
            kill -USR1 $watcher # unless it has begun to stop the suite
            wait $watcher
            end=$(($(date +%s) + ${grace:-0})) # a process may end by itself, as git gc --auto does
            while left=$(mine none) || left='? the processes could not be listed'
                [ -n "$left" ] && [ "$(date +%s)" -lt $end ]; do nap; done
            [ -z "$left" ] || printf '%s\\n' "$left" | while read -r process; do say left process "$process"; done
            [ -z "$grace" ] || added
            say exit $code
            say exit $code 3>&1
            """;

        /**
         * The supervisor with what it is to run, as text for sh's stdin. The suite's own variables are set in the last
         * moment, by a shell that needs none of the supervisor's any more. {@code leftovers}: whether it lists files
         * and mounts before and after the suite. If so, processes have 5 seconds to end before they count.
         */
        static String script(String mark, Place place, String command, Map<String, String> environment,
                boolean leftovers) {
            Map<String, String> variables = Map.of("mark", mark, "dir", place.directory(), "origin", place.origin(),
                    "start", assignments("export ", environment) + "exec /bin/sh -c " + shellQuoted(List.of(command)),
                    "grace", leftovers ? "5" : "");
            return assignments("", variables) + SCRIPT;
        }

        private static String assignments(String before, Map<String, String> variables) {
            return variables.entrySet().stream().map(variable -> before + variable.getKey() + "="
                    + shellQuoted(List.of(variable.getValue())) + "\n").collect(Collectors.joining());
        }

        /**
         * Starts a sh in the guest that reads its script, scriptBytes long, from stdin. The orders that follow stay
         * unread. The script usually arrives in one read: byte by byte costs 0.6 s of CPU time in an emulated guest.
         * csh, a possible login shell, reads this one line as sh does.
         */
        static List<String> sshCommand(Path vmDir, String vmName, int scriptBytes) {
            return List.of(ssh, "-F", vmDir.resolve("ssh_config").toString(), "-T", vmName, ("exec sh -c '"
                    + "script=$(dd bs=SIZE count=1 2>/dev/null; echo .); script=${script%.}; "
                    + "[ ${#script} -eq SIZE ] || { n=$(printf %s \"$script\" | wc -c); [ $n -ge SIZE ] || "
                    + "script=$script$(dd bs=1 count=$((SIZE - $n)) 2>/dev/null); }; eval \"$script\"'")
                    .replace("SIZE", String.valueOf(scriptBytes)));
        }
    }

    /**
     * Runs one command in the guest under the supervisor, until it ends, the time limit comes, it is interrupted, or
     * the VM or the connection is lost. The guest's bytes are handed on as strings of one character for each byte.
     */
    static final class GuestRun {
        static final Duration MAX_STOPPING = Duration.ofSeconds(60); // the supervisor takes 20 s at most
        /** The supervisor's lines are shorter. A longer one was made by a suite that knows the mark. */
        private static final int MAX_LINE = 1 << 16;

        final String mark = "\u001e" + UUID.randomUUID() + " ";
        private final Place place;
        private final byte[] script;
        private final Duration timeout;
        private final BooleanSupplier interrupted;
        private final Path console;
        private final long consoleStart;
        /** What the command left behind; incomplete if the guest did not list its files and mounts. */
        final Leftovers leftovers = new Leftovers();
        /** At the time limit, after the goroutine dumps and before the kill; null: nothing. */
        Runnable beforeKill;
        volatile Integer code;
        /** How many of the two streams came to the supervisor's last line: nothing of them was lost. */
        private volatile int ended;
        private volatile boolean dumped;
        private volatile boolean over;
        /** The project is not in the guest, or another one is: nothing was run. */
        volatile boolean refused;
        /** Why there is no result, and what to do. */
        volatile String trouble;
        private volatile String standstillNow; // why the guest is paused; null while it goes on
        /** Why it was paused when the time limit came or the connection was lost. */
        String standstill;

        /** {@code lists}: whether the guest lists what is there before and after the command. */
        GuestRun(Place place, String command, Map<String, String> environment, Duration timeout, boolean lists,
                BooleanSupplier interrupted) {
            this.place = place;
            this.timeout = timeout;
            this.interrupted = interrupted;
            script = Supervisor.script(mark, place, command, environment, lists).getBytes(UTF_8);
            console = place.vmDir().resolve(place.vmName() + ".console.log");
            consoleStart = console.toFile().length();
        }

        Verdict run(Consumer<String> stdout, Consumer<String> stderr) throws IOException, InterruptedException {
            // else Ctrl-C would end ssh, too, and nothing could be stopped in the guest
            Process process = start(new ProcessBuilder(inOwnSession(Supervisor.sshCommand(place.vmDir(),
                    place.vmName(), script.length))), place.verbose());
            CountDownLatch open = new CountDownLatch(2);
            pump(process.getInputStream(), stdout, open);
            pump(process.getErrorStream(), stderr, open);
            Verdict stopped = null;
            try {
                OutputStream orders = process.getOutputStream();
                orders.write(script);
                orders.flush();
                stopped = watch(open, orders);
            } catch (IOException closed) {
                // ssh has ended: whether the exit line came decides
            } finally {
                process.destroy();
            }
            open.await(4, TimeUnit.SECONDS);
            synchronized (this) { // a thread that still works takes nothing more into a result
                over = true;
            }
            return stopped != null ? stopped : refused || code == null || ended < 2 ? lost()
                    : code == 0 ? Verdict.PASSED : Verdict.FAILED;
        }

        /** Waits for the end; why it was stopped, or null. */
        private Verdict watch(CountDownLatch open, OutputStream orders) throws IOException, InterruptedException {
            long deadline = System.nanoTime() + timeout.toNanos();
            Verdict stopped = null;
            boolean killed = false;
            boolean asked = false; // whether sshd still answers after the text of a kernel panic
            daemon(this::watchStandstill);
            while (!open.await(100, TimeUnit.MILLISECONDS)) {
                boolean late = System.nanoTime() > deadline;
                // if nobody reads stdout, the suite is stopped as by Ctrl-C
                boolean interrupt = interrupted.getAsBoolean() || !canAnswer();
                if (stopped == null && (interrupt || late)) {
                    stopped = interrupt ? Verdict.INTERRUPTED : Verdict.TIMED_OUT;
                    standstill = interrupt ? null : standstillNow;
                    trouble = standstill == null ? trouble : standstill;
                    order(orders, interrupt || beforeKill == null ? "stop" : "keep");
                    deadline = System.nanoTime() + MAX_STOPPING.toNanos();
                } else if (stopped != null && !killed && (dumped || late)) {
                    if (stopped == Verdict.TIMED_OUT && beforeKill != null && dumped) {
                        beforeKill.run();
                    }
                    killed = true;
                    order(orders, "kill");
                    orders.close();
                    deadline = System.nanoTime() + MAX_STOPPING.toNanos();
                } else if (late) {
                    trouble = trouble != null ? trouble : "the guest did not answer the order to stop, so the "
                            + "suite may still run in it; vm-ctl restart ends it";
                    break;
                } else if (!place.isAlive()) {
                    break;
                } else if (!asked && kernelPanic(console()) >= 0) {
                    asked = true; // once, as programs may print what a panic prints
                    JsonObject vm = runningVm(place.vmDir(), place.vmName());
                    if (vm == null || !hasBanner(vm.getInt("port"), 5000)) {
                        break; // ssh itself would notice after a minute
                    }
                }
            }
            return stopped;
        }

        /** Asks QEMU now and then whether the guest is paused, in a thread of its own: QEMU may not answer. */
        private void watchStandstill() {
            long since = 0; // since when it is paused
            boolean told = false;
            while (!over) {
                GuestState guest = place.guestState();
                String why = guest == null ? null : guest.why();
                long now = System.nanoTime();
                since = standstillNow == null ? now : since;
                standstillNow = why;
                told &= why != null;
                boolean diskFull = why != null && guest.word().equals("io-error");
                if (why != null && !told && (diskFull || now - since > snapshotPause.toNanos())) {
                    told = true;
                    tell(why);
                }
                LockSupport.parkNanos(snapshotPause.dividedBy(30).toNanos()); // 2 s
            }
        }

        private static void order(OutputStream orders, String word) throws IOException {
            orders.write((word + "\n").getBytes(UTF_8));
            orders.flush();
        }

        private Verdict lost() {
            if (trouble != null) {
                return Verdict.LOST;
            }
            // QEMU may be ending, and the last console lines still be on their way
            long start = System.nanoTime();
            while (place.isAlive() && kernelPanic(console()) < 0 && System.nanoTime() - start < 2e9) {
                LockSupport.parkNanos(100_000_000);
            }
            String text = console();
            int panic = kernelPanic(text);
            GuestState guest = panic < 0 ? place.guestState() : null;
            standstill = guest == null ? null : guest.why();
            boolean alive = guest != null || place.isAlive();
            List<String> lines = text.substring(Math.max(0, panic)).lines().filter(line -> !line.isBlank()).toList();
            trouble = (panic >= 0 ? "the guest panicked" : alive ? "the connection was lost"
                    : "VM " + place.vmName() + " ended")
                    + (standstill != null ? ": " + standstill : panic >= 0 && alive ? "; vm-ctl restart brings it back"
                    : alive ? "; if vm-ctl ssh fails, too, vm-ctl restart brings it back"
                    : "; vm-ctl start brings it back") + ". From " + console + ":"
                    + lines.stream().skip(panic < 0 ? Math.max(0, lines.size() - 10) : 0).limit(15)
                    .map(line -> "\n  | " + line).collect(Collectors.joining());
            return Verdict.LOST;
        }

        /** What came to the console log, at most its last 64 KB. A log shorter than before was rotated. */
        private String console() {
            try (FileChannel log = FileChannel.open(console)) {
                ByteBuffer text = ByteBuffer.allocate(1 << 16);
                log.read(text, Math.max(log.size() < consoleStart ? 0 : consoleStart, log.size() - text.capacity()));
                return printable(new String(text.array(), 0, text.position(), UTF_8));
            } catch (IOException none) {
                return "";
            }
        }

        private void pump(InputStream in, Consumer<String> sink, CountDownLatch open) {
            daemon(() -> {
                byte[] buffer = new byte[1 << 16];
                StringBuilder held = new StringBuilder();
                try (in) {
                    int n = in.read(buffer);
                    while (n >= 0 && sift(held.append(new String(buffer, 0, n, ISO_8859_1)), sink)) {
                        n = in.read(buffer);
                    }
                } catch (IOException closed) {
                    // ssh has ended
                } finally {
                    open.countDown();
                }
            });
        }

        private static void daemon(Runnable work) {
            Thread thread = new Thread(work);
            thread.setDaemon(true);
            thread.start();
        }

        /**
         * Takes out the supervisor's lines, which may begin in the middle of a line or come in pieces. False after the
         * last one.
         */
        synchronized boolean sift(StringBuilder held, Consumer<String> rest) {
            if (over) {
                return false;
            }
            int start = held.indexOf(mark);
            while (start >= 0) {
                pass(held, start, rest);
                int end = held.indexOf("\n");
                if (end < 0 && held.length() < MAX_LINE) {
                    return true; // its end is still to come
                }
                end = end < 0 ? held.length() : end;
                String line = new String(held.substring(mark.length(), end).getBytes(ISO_8859_1), UTF_8);
                held.delete(0, end + 1);
                if (!report(line.split(" ", 2))) {
                    return false;
                }
                start = held.indexOf(mark);
            }
            int half = held.lastIndexOf("\u001e"); // of a mark whose rest is still to come
            pass(held, half >= 0 && mark.startsWith(held.substring(half)) ? half : held.length(), rest);
            return true;
        }

        private static void pass(StringBuilder held, int length, Consumer<String> rest) {
            rest.accept(held.substring(0, length));
            held.delete(0, length);
        }

        /** A line of the supervisor's; false if it is its last on this stream. */
        private boolean report(String[] line) {
            String text = line.length > 1 ? line[1] : "";
            switch (line[0]) {
                case "exit" -> exit(text);
                case "dumped" -> dumped = true;
                case "busy" -> refuse("an earlier vm-test is still stopping its suite: try again, or run vm-ctl "
                        + "restart");
                case "nowhere" -> refuse("the project is not in the guest: there is no " + place.directory()
                        + "; vm-test --sync (or vm-sync) brings it");
                case "origin" -> refuse(place.directory() + " in the guest came from "
                        + oneLine(text.replaceFirst(" (\\S+)$", " ($1)")) + ", and this project is " + place.origin()
                        + ": vm-test --sync (or vm-sync) puts this one in its place, or give it a VM_REMOTE_DIR of its "
                        + "own");
                case "left" -> leftovers.take(text);
                default -> { } // a suite that knows the mark
            }
            return !line[0].equals("exit");
        }

        /** Both streams end with the exit code. If one is not 0 to 255, or the two differ, the result is unknown. */
        private void exit(String text) {
            Integer number = text.matches("\\d{1,3}") && Integer.parseInt(text) < 256 ? Integer.valueOf(text) : null;
            if (number == null || ended > 0 && !number.equals(code)) {
                trouble = trouble != null ? trouble : "the guest sent an invalid exit code, or two different "
                        + "ones, '" + oneLine(text) + "': run the suite again";
                number = null;
            }
            code = number;
            ended++;
        }

        private void refuse(String why) {
            refused = true;
            trouble = why;
        }
    }

    /** What a suite left behind: processes that live on, and mounts and files that were not there before. */
    static final class Leftovers {
        /** Temporary files of go test and of vm-sync. */
        private static final Pattern TEMPORARY = Pattern.compile("tmp (go-build\\d.*|vm-sync\\..*)");
        private static final int MAX_LINES = 1200; // the supervisor sends no more
        private static final int MAX_LINE = 2000; // characters

        private final List<String> lines = new ArrayList<>();
        private boolean complete;

        /** Takes a line of the supervisor. It comes from the guest: its length and the number of lines are limited. */
        synchronized void take(String line) {
            complete |= line.equals("end");
            if (lines.size() < MAX_LINES) {
                lines.add(line.substring(0, Math.min(line.length(), MAX_LINE)));
            }
        }

        /** What fails a suite: processes, mounts and files under /build. So does what could not be listed. */
        List<String> failing() {
            Stream<String> unknown = Stream.of("unknown: the guest did not list all that was there before and after");
            return Stream.concat(lines.stream().filter(line -> line.matches("(?s)(process|mount|file|unknown:) .*")),
                    complete ? Stream.empty() : unknown).toList();
        }

        /** New files in /tmp: these are only reported. */
        List<String> inTmp() {
            return lines.stream().filter(line -> line.startsWith("tmp ") && !TEMPORARY.matcher(line).matches())
                    .map(line -> line.replaceFirst("tmp ", "/tmp/")).toList();
        }
    }

    /**
     * How a command in the guest ended: the verdict; its exit code, or null; what it left behind, and in /tmp; why
     * there is no result, or null; why the guest was paused, or null; and what else is known of it.
     */
    record Ending(Verdict verdict, Integer code, List<String> left, List<String> leftInTmp, String trouble,
            String standstill, List<Result> results) {
        /** Only a verdict and an exit code. */
        static Ending only(Verdict verdict, Integer code) {
            return new Ending(verdict, code, List.of(), List.of(), null, null, List.of());
        }

        /** The same with a note for the summary: a result that is no failure. */
        Ending noting(String text) {
            return new Ending(verdict, code, left, leftInTmp, trouble, standstill,
                    List.of(Result.ofSuite("", "note", Outcome.SKIP, text)));
        }

        Ending with(Verdict other) {
            return new Ending(other, code, left, leftInTmp, trouble, standstill, results);
        }

        static Ending of(Verdict verdict, GuestRun guest) {
            return new Ending(verdict, guest.code, guest.leftovers.failing(), guest.leftovers.inTmp(), guest.trouble,
                    guest.standstill, List.of());
        }

        /** The worst verdict, the first exit code that is not 0, and all that was left behind. */
        static Ending of(List<Ending> parts) {
            return new Ending(parts.stream().map(Ending::verdict).max(Comparator.naturalOrder()).orElseThrow(),
                    parts.stream().map(Ending::code).filter(code -> code != null && code != 0).findFirst()
                    .orElse(parts.stream().anyMatch(part -> part.code == null) ? null : Integer.valueOf(0)),
                    parts.stream().flatMap(part -> part.left.stream()).toList(),
                    parts.stream().flatMap(part -> part.leftInTmp.stream()).distinct().toList(),
                    parts.stream().map(Ending::trouble).filter(Objects::nonNull).findFirst().orElse(null),
                    parts.stream().map(Ending::standstill).filter(Objects::nonNull).findFirst().orElse(null),
                    parts.stream().flatMap(part -> part.results.stream()).toList());
        }

        /** The same, but leftovers and trouble name the packages after which they were seen. */
        Ending after(List<String> packages) {
            String names = " (after " + String.join(", ", packages.subList(0, Math.min(3, packages.size())))
                    + (packages.size() > 3 ? ", ..." : "") + ")";
            return new Ending(verdict, code, left.stream().map(line -> line + names).toList(),
                    leftInTmp, trouble == null ? null : trouble + names, standstill, results);
        }
    }

    // What a suite prints

    /**
     * Limits how much of the suites' results and output is kept in memory, because a guest may send without end. All
     * of it fits into a JVM with 256 MB, also if every character takes two bytes.
     */
    static final class MemoryLimits {
        private static final int MAX_LINE = 1 << 16; // characters

        /** Runs of tests and packages: twice what the largest Go projects have. */
        final int maxRuns;
        /** Characters of their names, each with its package's, as the reports have them. */
        final int maxNames;
        /** Characters of lines that have no end yet. */
        final int maxLines;
        /** Characters of output. Tests that passed keep none. */
        final int maxOutput;
        private int runs;
        private long names;
        private long lines;
        private long output;
        /** Whether there was no room for a run or a line, so that a result may be lost. */
        boolean exceeded;

        MemoryLimits() {
            this(1);
        }

        /** For a test: one part of this many. */
        MemoryLimits(int parts) {
            maxRuns = 200_000 / parts;
            maxNames = 16_000_000 / parts;
            maxLines = 2_000_000 / parts;
            maxOutput = 8_000_000 / parts;
        }

        /** Whether there is room for another run. */
        boolean addRun(String pkg, String test) {
            runs++;
            names += pkg.length() + test.length();
            exceeded |= runs > maxRuns || names > maxNames;
            return !exceeded;
        }

        /** Adds to a line that may have no end yet; of a long one the last part is kept. */
        void append(StringBuilder line, String piece) {
            lines -= line.length();
            line.append(piece);
            if (line.length() > 2 * MAX_LINE) {
                line.delete(0, line.length() - MAX_LINE).trimToSize();
            }
            lines += line.length();
            if (lines > maxLines) {
                exceeded = true;
                clear(line);
            }
        }

        void clear(StringBuilder line) {
            lines -= line.length();
            line.setLength(0);
            line.trimToSize();
        }
    }

    /** The end of an output, from the start of a line. */
    static final class Tail {
        private static final int LENGTH = 64_000; // characters that are kept at least, as long as there is room
        private final MemoryLimits limits;
        private StringBuilder end; // null: nothing
        long cut;

        Tail(MemoryLimits limits) {
            this.limits = limits;
        }

        /** When half of the total is used, each output gets only 2,000 characters; when all is used, none. */
        void add(String text) {
            end = end == null ? new StringBuilder() : end;
            end.append(text);
            limits.output += text.length();
            int room = limits.output > limits.maxOutput ? 0 : limits.output > limits.maxOutput / 2 ? 2000 : 2 * LENGTH;
            if (end.length() > room) {
                int start = end.indexOf("\n", end.length() - room / 2) + 1;
                start = start == 0 ? end.length() - room / 2 : start;
                cut += start;
                limits.output -= start;
                end.delete(0, start).trimToSize();
            }
        }

        void clear() {
            limits.output -= end == null ? 0 : end.length();
            end = null;
            cut = 0;
        }

        @Override
        public String toString() {
            return (cut == 0 ? "" : "(the first " + cut + " characters are left out)\n") + (end == null ? "" : end);
        }
    }

    /**
     * Splits what a command prints into the events of go test and everything else, and tells what to show of it now.
     * A String named {@code bytes} holds one character for each byte.
     */
    static final class SuiteOutput {
        private static final int MAX_LINE = 1 << 20; // a longer line is no event, and is shown at once
        /** How an event of go test begins. It may stand behind a text that has no newline. */
        private static final String EVENT = "{\"Time\":\"";
        private static final Pattern LINE = Pattern.compile("(?<=\n)|(?=\\{\"Time\":\")");
        /** How a line begins by which go test tells of a failure. */
        private static final Pattern FAILURE = Pattern.compile("(?s)--- FAIL: .*|FAIL([\t\r].*)?");
        private static final int START = 12; // characters of a line that are enough to see this

        final TestEvents events;
        /** Everything that is no event. */
        final Tail plain = new Tail(new MemoryLimits());
        /** Lines that began as an event and are none: a result may be lost. */
        int unreadable;
        /** Whether a line outside the events told of a failed test. */
        boolean tellsFailure;
        private final Consumer<String> eventLines;
        private final LiveOutput live = new LiveOutput();
        private final StringBuilder[] held = {null, new StringBuilder(), new StringBuilder()}; // by descriptor
        private final StringBuilder[] lineStarts = {null, new StringBuilder(), new StringBuilder()};

        SuiteOutput(Consumer<String> eventLines, MemoryLimits limits) {
            this.eventLines = eventLines;
            events = new TestEvents(limits);
        }

        /** Takes a piece of a stream; returns what to show now. A line that may become an event waits for its end. */
        String take(int stream, String bytes) {
            StringBuilder text = held[stream];
            boolean waits = text.length() > 0 && bytes.indexOf('\n') < 0;
            text.append(bytes);
            if (waits && text.length() <= MAX_LINE) { // not searched again for each byte that comes
                return "";
            }
            boolean maybeEvents = text.indexOf("{") == 0 || text.indexOf("\n{") >= 0 || text.indexOf(EVENT) >= 0;
            int end = maybeEvents ? text.lastIndexOf("\n") + 1 : 0;
            LINE.splitAsStream(text.substring(0, end)).forEach(line -> takeLine(stream, line));
            text.delete(0, end);
            int event = text.indexOf("{") == 0 ? 0 : text.indexOf(EVENT);
            int brace = text.lastIndexOf("{");
            event = event < 0 && brace >= 0 && EVENT.startsWith(text.substring(brace)) ? brace : event;
            int ready = event < 0 || text.length() > MAX_LINE ? text.length() : event;
            takeLine(stream, text.substring(0, ready));
            text.delete(0, ready);
            return live.take();
        }

        /** After the last piece. */
        String end() {
            String text = endPart();
            events.finish();
            return text;
        }

        /** After the last piece of what ran by itself: its last line has ended. */
        String endPart() {
            for (int stream = 1; stream <= 2; stream++) {
                takeLine(stream, held[stream].toString());
                held[stream].setLength(0);
                tellsFailure |= FAILURE.matcher(lineStarts[stream]).matches();
                lineStarts[stream].setLength(0);
            }
            live.flushAll();
            return live.take();
        }

        /** Takes a line, or a piece of one that cannot become an event. */
        private void takeLine(int stream, String bytes) {
            String line = new String(bytes.getBytes(ISO_8859_1), UTF_8);
            JsonObject json = line.startsWith("{") ? parsed(line) : null;
            if (json != null && events.take(json)) {
                eventLines.accept(line);
                show(json);
                return;
            }
            boolean beganAsEvent = line.startsWith("{\"Time\":") || line.startsWith("{\"Action\":");
            unreadable += beganAsEvent && json == null ? 1 : 0;
            plain.add(line);
            live.passBytes(bytes);
            lookForFailure(lineStarts[stream], bytes);
        }

        /**
         * A line's JSON, or null. Deep nesting overflows the parser's stack. Numbers are converted when they are read:
         * one of a million digits would take minutes.
         */
        private static JsonObject parsed(String line) {
            try {
                return JsonParser.object().withLazyNumbers().from(line);
            } catch (JsonParserException | StackOverflowError none) {
                return null;
            }
        }

        private void show(JsonObject event) {
            String pkg = event.getString("Package", "");
            String output = event.getString("Output", "");
            if (pkg.isEmpty()) { // of a build
                live.pass(output);
            } else if (!output.isEmpty()) {
                live.show(pkg, output);
            } else if (event.getString("Test") == null && List.of("pass", "fail", "skip")
                    .contains(event.getString("Action"))) {
                live.ended(pkg);
            }
        }

        private void lookForFailure(StringBuilder lineStart, String bytes) {
            for (int from = 0, end; from < bytes.length(); from = end + 1) {
                int newline = bytes.indexOf('\n', from);
                end = newline < 0 ? bytes.length() : newline;
                lineStart.append(bytes, from, Math.min(end, from + START - lineStart.length()));
                if (newline >= 0) {
                    tellsFailure |= FAILURE.matcher(lineStart).matches();
                    lineStart.setLength(0);
                }
            }
        }
    }

    /**
     * Packages are tested in parallel. One is shown live; the output of the others waits until it ends, as with
     * {@code go test -v}.
     */
    static final class LiveOutput {
        private static final int MAX_WAITING = 1 << 22; // characters of all packages; when more wait, all are shown
        private static final int ENTRY = 100; // what a package counts beside its text
        private static final String ENDED = ""; // instead of a name: the packages that ended before the one on screen
        private final Map<String, StringBuilder> waiting = new LinkedHashMap<>();
        private final StringBuilder ready = new StringBuilder(); // bytes
        private int size; // of what waits
        private String shown; // the package on the screen

        void passBytes(String bytes) {
            ready.append(bytes);
        }

        void pass(String text) {
            ready.append(new String(text.getBytes(UTF_8), ISO_8859_1));
        }

        void show(String pkg, String output) {
            if (shown == null) {
                shown = pkg;
                pass(remove(pkg));
            }
            if (shown.equals(pkg)) {
                pass(output);
            } else {
                add(pkg, output);
            }
            if (size > MAX_WAITING) {
                flushAll();
            }
        }

        private void add(String pkg, String output) {
            StringBuilder text = waiting.computeIfAbsent(pkg, it -> new StringBuilder());
            size += output.length() + (text.length() == 0 ? pkg.length() + ENTRY : 0);
            text.append(output);
        }

        private String remove(String pkg) {
            StringBuilder text = waiting.remove(pkg);
            size -= text == null ? 0 : text.length() + pkg.length() + ENTRY;
            return text == null ? "" : text.toString();
        }

        /** After the package on the screen comes the output of those that ended meanwhile, then whoever prints next. */
        void ended(String pkg) {
            String text = remove(pkg);
            if (!text.isEmpty()) {
                add(ENDED, text);
            }
            if (pkg.equals(shown)) {
                shown = null;
                pass(remove(ENDED));
            }
        }

        void flushAll() {
            pass(remove(ENDED));
            List.copyOf(waiting.keySet()).forEach(pkg -> pass(remove(pkg)));
        }

        /** What to show now, as bytes. */
        String take() {
            String bytes = ready.toString();
            ready.setLength(0);
            return bytes;
        }
    }

    // The events of go test

    /** What became of a test, a package or a suite; from good to bad. */
    enum Outcome {
        PASS("", ""), SKIP("SKIP ", "skipped"), RUNNING("", "error"), UNFINISHED("DID NOT FINISH ", "error"),
        FAIL("FAIL ", "failure"), BROKEN("BUILD FAILED ", "error");

        private final String heading; // in the summary
        private final String junit; // its element

        Outcome(String heading, String junit) {
            this.heading = heading;
            this.junit = junit;
        }

        boolean isFailure() {
            return compareTo(RUNNING) >= 0;
        }

        static Outcome of(String word) {
            return word.equals("pass") || word.equals("bench") ? PASS : word.equals("skip") ? SKIP : FAIL;
        }

        @Override
        public String toString() {
            return name().toLowerCase(Locale.ROOT);
        }
    }

    /** One run of a test, or under the name "" of its package. */
    static final class Run {
        Outcome outcome = Outcome.RUNNING;
        double seconds;
        final Tail output;
        /** The result in its line, such as {@code --- FAIL: TestX (0.00s)}. It counts if there is no end event. */
        private Outcome line;

        Run(MemoryLimits limits) {
            output = new Tail(limits);
        }

        void end(Outcome how, double took) {
            outcome = how;
            seconds = took;
            if (how == Outcome.PASS) {
                output.clear(); // it is not reported
            }
        }

        /** A test that lost its end event has the result of its line; without one, a pass if its package passed. */
        void resolve(boolean packagePassed) {
            if (outcome == Outcome.RUNNING) {
                end(line != null ? line : packagePassed ? Outcome.PASS : Outcome.UNFINISHED, 0);
            }
        }
    }

    /** All runs of a test, or under the name "" of a package: the worst of them counts. */
    record Result(String pkg, String name, List<Run> runs) {
        private static final Pattern FRAME = Pattern.compile(
                "\u0016?(=== (RUN|PAUSE|CONT|NAME) |--- (PASS|FAIL|SKIP): )");

        Outcome outcome() {
            Outcome worst = runs.stream().map(run -> run.outcome).max(Comparator.naturalOrder()).orElseThrow();
            boolean passed = runs.stream().anyMatch(run -> run.outcome == Outcome.PASS);
            return passed && worst == Outcome.SKIP ? Outcome.PASS : worst;
        }

        /** A result of a suite itself. */
        static Result ofSuite(String suite, String name, Outcome outcome, String output) {
            Run run = new Run(new MemoryLimits());
            run.outcome = outcome;
            run.output.add(output);
            return new Result(suite, name, List.of(run));
        }

        boolean failed() {
            return outcome().isFailure();
        }

        /** Else it is a package, or what is told of a suite. */
        boolean isTest() {
            return !name.isEmpty();
        }

        double seconds() {
            return runs.stream().mapToDouble(run -> run.seconds).sum();
        }

        String fullName() {
            return pkg + " " + name;
        }

        /** The full name of the test that it is a subtest of, or of the package. */
        String parent() {
            return isTest() ? pkg + " " + name.substring(0, Math.max(0, name.lastIndexOf('/'))) : null;
        }

        /** Its output without go test's own lines. Of several runs the failed or worst ones, each with a heading. */
        String output() {
            Outcome worst = outcome();
            StringBuilder text = new StringBuilder();
            for (int i = 0; i < runs.size(); i++) {
                if (runs.get(i).outcome == worst || runs.get(i).outcome.isFailure()) {
                    text.append(runs.size() == 1 ? "" : "run " + (i + 1) + " of " + runs.size() + ":\n");
                    String output = runs.get(i).output.toString();
                    text.append(isTest() ? withoutFrame(output) : output);
                }
            }
            return text.toString();
        }

        private static String withoutFrame(String output) {
            return output.lines().filter(line -> !FRAME.matcher(line.strip()).lookingAt()).map(line -> line + "\n")
                    .collect(Collectors.joining());
        }

        @Override
        public String toString() {
            String took = seconds() < 0.005 ? "" : String.format(Locale.ROOT, " (%.2fs)", seconds());
            long failed = runs.stream().filter(run -> run.outcome.isFailure()).count();
            String some = runs.size() == 1 || failed == 0 ? "" : ", " + failed + " of " + runs.size() + " runs";
            return outcome().heading + oneLine(pkg) + (isTest() ? " " + oneLine(name) : "") + took + some;
        }
    }

    /**
     * Understands {@code go test -json}: events in, the runs of packages and tests out. No I/O. Every run counts, also
     * of a package that is tested twice. Fits Go 1.19 to 1.24, which differ: 1.19 has no start event, loses the end of
     * a test that prints without a newline, and tells builds that fail in plain text; 1.24 has events for those, and
     * ends BenchmarkX as BenchmarkX-2.
     */
    static final class TestEvents {
        private static final double MAX_SECONDS = Duration.ofDays(365).toSeconds();

        final MemoryLimits limits;
        private final Map<String, List<PackageRun>> packages = new TreeMap<>();
        private final Map<String, PackageRun> open = new HashMap<>(); // the newest run of a package that has no end yet
        private final PackageRun withoutRoom;
        private final Map<String, Run> builds = new HashMap<>(); // their output

        TestEvents(MemoryLimits limits) {
            this.limits = limits;
            withoutRoom = new PackageRun("", limits, null);
        }

        /** False if this is no event of go test. */
        boolean take(JsonObject event) {
            String action = event.getString("Action", "");
            String pkg = event.getString(action.startsWith("build-") ? "ImportPath" : "Package", "");
            String test = event.getString("Test", "");
            String output = event.getString("Output", "");
            if (pkg.isEmpty() || action.equals("run") && test.isEmpty()) {
                return false;
            }
            switch (action) {
                case "start" -> begin(pkg);
                case "run" -> current(pkg).begin(test);
                case "output" -> current(pkg).output(test, output);
                case "pass", "fail", "skip", "bench" -> {
                    double seconds = Math.max(0, Math.min(MAX_SECONDS, event.getDouble("Elapsed", 0)));
                    Run failedBuild = builds.get(event.getString("FailedBuild", ""));
                    if (test.isEmpty()) {
                        current(pkg).end(Outcome.of(action), seconds, failedBuild);
                        open.computeIfPresent(pkg, (name, run) -> run.older);
                    } else {
                        current(pkg).end(test, Outcome.of(action), seconds);
                    }
                }
                case "build-output" -> {
                    if (builds.containsKey(pkg) || limits.addRun("", pkg)) {
                        builds.computeIfAbsent(pkg, it -> new Run(limits)).output.add(output);
                    }
                }
                case "pause", "cont", "attr", "artifacts", "build-fail" -> { } // nothing follows from it
                default -> {
                    return false;
                }
            }
            return true;
        }

        private PackageRun begin(String pkg) {
            if (!limits.addRun(pkg, "")) {
                return withoutRoom;
            }
            PackageRun run = new PackageRun(pkg, limits, open.get(pkg));
            packages.computeIfAbsent(pkg, it -> new ArrayList<>(1)).add(run);
            open.put(pkg, run);
            return run;
        }

        /** The newest run of a package that has no end yet: after its end, another one begins. */
        private PackageRun current(String pkg) {
            PackageRun run = open.get(pkg);
            return run != null ? run : begin(pkg);
        }

        /** After the last event: what has no end yet is unfinished. */
        void finish() {
            packages.values().forEach(runs -> runs.forEach(PackageRun::finish));
        }

        /** A package that was not built, as Go before 1.24 tells it. */
        void notBuilt(String pkg) {
            List<PackageRun> runs = packages.computeIfAbsent(pkg, it -> List.of(new PackageRun(pkg, limits, null)));
            if (runs.stream().allMatch(run -> run.tests.isEmpty())) {
                runs.forEach(run -> run.self.outcome = Outcome.BROKEN);
            }
        }

        /** Packages (under the name "") and tests, by package, in the order in which they began. */
        List<Result> results() {
            List<Result> results = new ArrayList<>();
            packages.forEach((pkg, runs) -> {
                results.add(new Result(pkg, "", runs.stream().map(run -> run.self).toList()));
                Map<String, List<Run>> tests = new LinkedHashMap<>();
                runs.forEach(run -> run.tests.forEach((name, its) ->
                        tests.computeIfAbsent(name, it -> new ArrayList<>()).addAll(its)));
                tests.forEach((name, its) -> results.add(new Result(pkg, name, its)));
            });
            return results;
        }

        /** Whether all tests of a package ran to their end, and none was cut off by a panic, os.Exit or a kill. */
        boolean isComplete(String pkg) {
            return packages.get(pkg).stream().allMatch(run -> run.complete);
        }
    }

    /** A run of a package, and of the tests in it. */
    private static final class PackageRun {
        private static final Pattern RESULT_LINE = Pattern.compile(
                "--- (PASS|FAIL|SKIP): (\\S+)( \\(\\d+\\.\\d+s\\))?\\s*$");
        private static final Pattern RUN_LINE = Pattern.compile("=== RUN   (\\S+)\n");
        /** {@code BenchmarkX-2 \t 1000\t 0.38 ns/op}: a benchmark that completed; it has no end event. */
        private static final Pattern BENCHMARK_LINE = Pattern.compile(
                "(Benchmark\\S*?)(-\\d+)? *+\t *+\\d++(\t|\\s*+$)");
        private static final Pattern NOT_BUILT_LINE = Pattern.compile("FAIL\t\\S+ \\[(build|setup) failed]\\s*");

        final Run self;
        final Map<String, List<Run>> tests = new LinkedHashMap<>();
        /** Failures of tests that never began. They count only if the package fails: a program can print them. */
        private final Map<String, Run> unclaimed = new LinkedHashMap<>();
        /** The line that is being printed. test2json cuts lines of more than 1,024 bytes into several outputs. */
        private final StringBuilder line = new StringBuilder();
        private final String name;
        private final MemoryLimits limits;
        /** An earlier run of the package that has no end yet. */
        final PackageRun older;
        private int pieces;
        private boolean notBuilt;
        /** Whether PASS or FAIL came, which go test prints after all tests, and nothing of a test after it. */
        boolean complete;

        PackageRun(String name, MemoryLimits limits, PackageRun older) {
            this.name = name;
            this.limits = limits;
            this.older = older;
            self = new Run(limits);
        }

        void begin(String test) {
            complete = false;
            addRun(test);
        }

        /** A new run of a test. It is not kept if there is no room for it. */
        private Run addRun(String test) {
            Run run = new Run(limits);
            if (limits.addRun(name, test)) {
                tests.computeIfAbsent(test, it -> new ArrayList<>(1)).add(run);
            }
            return run;
        }

        /** The newest run of a test; null if it did not begin. */
        private Run newest(String test) {
            List<Run> runs = tests.get(test);
            return runs == null ? null : runs.get(runs.size() - 1);
        }

        private static boolean isRunning(Run run) {
            return run != null && run.outcome == Outcome.RUNNING;
        }

        void output(String test, String output) {
            Objects.requireNonNullElse(newest(known(test)), self).output.add(output);
            complete = test.isEmpty() && (complete || output.equals("PASS\n") || output.equals("FAIL\n"));
            pieces++;
            boolean ends = output.endsWith("\n");
            if (!ends || pieces > 1) {
                limits.append(line, output);
            }
            if (ends) {
                lookAtLine(pieces == 1 ? output : line.toString());
                limits.clear(line);
                pieces = 0;
            }
        }

        private void lookAtLine(String text) {
            String start = text.replaceFirst("^\u0016?\\s*", ""); // ^V: how Go 1.20 and later mark such lines
            Matcher run = RUN_LINE.matcher(start);
            Matcher result = RESULT_LINE.matcher(start);
            Matcher benchmark = BENCHMARK_LINE.matcher(start);
            if (pieces > 1 && run.matches()) {
                Run last = newest(run.group(1));
                if (!isRunning(last) || last.line != null) { // else a run event came, too (names up to 4,085 bytes)
                    begin(run.group(1));
                }
            } else if (NOT_BUILT_LINE.matcher(start).matches()) {
                notBuilt = tests.isEmpty();
            } else if (start.contains("--- ") && result.find()) {
                Run last = newest(known(result.group(2)));
                if (last != null) {
                    last.line = Outcome.of(result.group(1).toLowerCase(Locale.ROOT));
                }
            } else if (benchmark.lookingAt()) {
                Run last = newest(benchmark.group(1));
                if (last == null || isRunning(last)) {
                    (last == null ? addRun(benchmark.group(1)) : last).end(Outcome.PASS, 0);
                }
            }
        }

        /** BenchmarkX for BenchmarkX-2, its name with the number of processors, unless that is a name of its own. */
        private String known(String test) {
            return test.startsWith("Benchmark") && !tests.containsKey(test) ? test.replaceFirst("-\\d+$", "") : test;
        }

        void end(String test, Outcome how, double seconds) {
            complete = false;
            String name = known(test);
            Run last = newest(name);
            if (isRunning(last)) {
                last.end(how, seconds);
            } else if (name.matches("(Benchmark|Fuzz).*")) { // has no run event in Go 1.19
                addRun(name).end(how, seconds);
            } else if (last == null && how == Outcome.FAIL) {
                if (unclaimed.containsKey(name) || limits.addRun(this.name, name)) {
                    unclaimed.computeIfAbsent(name, it -> new Run(limits)).end(how, seconds);
                }
            } else if (last != null && last.outcome != how) {
                last.output.add("two different results came for this run: " + last.outcome + " and " + how + "\n");
                last.outcome = Outcome.FAIL;
            }
        }

        /** The package's end; the output of its build if that failed. */
        void end(Outcome how, double seconds, Run failedBuild) {
            boolean passed = how != Outcome.FAIL;
            if (!passed) {
                unclaimed.forEach((test, run) -> tests.put(test, List.of(run)));
            }
            tests.values().forEach(runs -> runs.forEach(run -> run.resolve(passed)));
            boolean built = passed || failedBuild == null && !notBuilt;
            self.end(built ? how : Outcome.BROKEN, seconds);
            if (!built && failedBuild != null) { // a copy, as the packages that a build serves are many
                self.output.clear();
                self.output.add(failedBuild.output.toString());
            }
        }

        void finish() {
            if (self.outcome == Outcome.RUNNING) {
                end(Outcome.FAIL, 0, null);
                self.outcome = Outcome.UNFINISHED;
            }
        }
    }

    // What is told and written of a suite

    /**
     * What became of a suite: the results of its tests and of the suite itself, what failed and why, and the verdict
     * that follows. In doubt the verdict is not "passed".
     */
    static final class Report {
        private static final int MAX_FAILURES = 1000; // in the summary
        private static final int MAX_AGAIN = 50_000; // characters of names for --failed: sh has its limit
        private static final Pattern NOT_BUILT = Pattern.compile("(?m)^FAIL\t(\\S+) \\[(?:build|setup) failed]$");

        final Job job;
        final Verdict verdict;
        /** Tests, and under the name "" packages. */
        final List<Result> tests;
        /** The results of the suite itself: of its command, what it left behind, the VM. */
        final List<Result> suiteResults = new ArrayList<>();
        /** What failed, each with the reason. */
        final Map<Result, String> failures;
        /** What --failed runs: failed tests by package. No names: the whole package. Empty: the whole suite. */
        final Map<String, List<String>> failedTests;
        final Instant started;
        double seconds;
        /** What was printed outside of the events. */
        final String plain;
        private final Integer guestCode;
        private String remark = ""; // in the last line
        private final List<String> notes = new ArrayList<>(); // in the summary

        Report(Job job, Ending ending, SuiteOutput output, Instant started, Leaks leaks) {
            this.job = job;
            this.started = started;
            seconds = Duration.between(started, Instant.now()).toMillis() / 1000.0;
            guestCode = ending.code();
            Verdict ended = ending.verdict();
            plain = output.plain.toString();
            if (ended == Verdict.FAILED) {
                NOT_BUILT.matcher(plain).results().forEach(match -> output.events.notBuilt(match.group(1)));
            }
            tests = output.events.results();
            checkThatNothingWasLost(output);
            for (Result result : ending.results()) {
                if (result.failed()) {
                    suiteResults.add(result);
                } else {
                    notes.add(result.output());
                }
            }
            if (ended == Verdict.PASSED) {
                checkForHiddenFailure(output);
                checkThatTestsRan();
                checkThatAllPackagesRan();
            }
            if (guestCode != null) {
                checkThatFailedTestsRanAgain();
            }
            if (guestCode != null && leaks != Leaks.ignore) {
                checkLeftovers(ending, leaks);
            }
            if (ending.trouble() != null) {
                add("VM", Outcome.UNFINISHED, ending.trouble());
            }
            boolean failed = !suiteResults.isEmpty() || tests.stream().anyMatch(Result::failed);
            verdict = ended == Verdict.PASSED && failed ? Verdict.FAILED : ended;
            failedTests = ended == Verdict.FAILED && suiteResults.isEmpty() ? failedTests(output.events) : Map.of();
            if (tests.isEmpty() && suiteResults.isEmpty() || ended != Verdict.PASSED && !failed) { // else it is told
                Outcome outcome = ended == Verdict.PASSED ? Outcome.PASS : ended != Verdict.FAILED ? Outcome.UNFINISHED
                        : job.suite().isBuild() ? Outcome.BROKEN : Outcome.FAIL;
                add("", outcome, plain);
            }
            failures = new FailureReasons(tests, plain).of(suiteResults);
            remark += ending.standstill() == null ? "" : ": " + ending.standstill();
            long cut = tests.stream().flatMap(test -> test.runs().stream()).mapToLong(run -> run.output.cut).sum()
                    + (verdict == Verdict.PASSED ? 0 : output.plain.cut);
            if (cut > 0) {
                notes.add(0, "output: " + cut + " characters are left out here and in the reports");
            }
        }

        private void add(String name, Outcome outcome, String output) {
            suiteResults.add(Result.ofSuite(job.name(), name, outcome, output));
        }

        private void checkThatNothingWasLost(SuiteOutput output) {
            MemoryLimits limits = output.events.limits;
            String why = (output.unreadable == 0 ? "" : output.unreadable + " lines that began as events of go test "
                    + "-json could not be read, so a result may be lost\n")
                    + (!limits.exceeded ? "" : "more results came than fit (" + limits.maxRuns + " tests with "
                    + limits.maxNames + " characters of names, or " + limits.maxLines + " of lines without an end): "
                    + "results may be lost\n");
            if (!why.isEmpty()) {
                add("events of go test", Outcome.UNFINISHED, why);
            }
        }

        private void checkForHiddenFailure(SuiteOutput output) {
            if (!job.isGoTest() && output.tellsFailure) {
                add("failures", Outcome.FAIL, "the command ended with 0, but go test reported failures (in a pipe, "
                        + "bash's 'set -o pipefail' keeps the exit code):\n" + plain);
            }
        }

        /** That no test ran, or all were skipped, is a remark. It is a failure where the caller asked for tests. */
        private void checkThatTestsRan() {
            boolean required = job.callerArgs().requireTests();
            boolean counted = job.isGoTest() || !tests.isEmpty();
            boolean none = tests.stream().noneMatch(Result::isTest);
            boolean skipped = tests.stream().filter(Result::isTest).allMatch(test -> test.outcome() == Outcome.SKIP);
            if (skipped && (counted || required)) { // of none, all were skipped
                String what = !counted ? "no test could be counted" : none ? "0 tests ran" : "all tests skipped";
                remark = ", " + what;
                if (job.part().isEmpty()) {
                    remark = ", this part has no packages";
                } else if ((required || none && job.needsTests())
                        && job.part().shard().count() == 1) { // of a part merge decides
                    add("tests", Outcome.FAIL, what + ", but "
                            + (required ? "--require-tests asks for some" : "some were chosen: check their names"));
                }
            }
        }

        /** A package that go test says nothing of, not even that it has no tests, may not have been tested. */
        private void checkThatAllPackagesRan() {
            Set<String> ran = tests.stream().map(Result::pkg).collect(Collectors.toSet());
            String missing = job.part().packages().stream().filter(pkg -> !ran.contains(pkg))
                    .collect(Collectors.joining("\n"));
            if (!missing.isEmpty()) {
                add("packages", Outcome.UNFINISHED, "there is no result for these packages:\n" + missing);
            }
        }

        /** With --failed every test that failed last time has to run, or its failure would be forgotten. */
        private void checkThatFailedTestsRanAgain() {
            Set<String> ran = tests.stream().map(Result::fullName).collect(Collectors.toSet());
            String missing = job.repeated().entrySet().stream()
                    .flatMap(pkg -> pkg.getValue().stream().map(name -> pkg.getKey() + " " + name))
                    .filter(test -> !ran.contains(test)).collect(Collectors.joining("\n"));
            if (!missing.isEmpty()) {
                add("failed last time", Outcome.UNFINISHED,
                        "these tests did not run (were they renamed, or is a build tag missing?):\n" + missing);
            }
        }

        private void checkLeftovers(Ending ending, Leaks leaks) {
            if (leaks == Leaks.fail && !ending.left().isEmpty()) {
                add("left behind", Outcome.FAIL, String.join("\n", ending.left()));
            } else {
                ending.left().forEach(what -> notes.add("left behind: " + what));
            }
            ending.leftInTmp().forEach(file -> notes.add("left in /tmp: " + file));
        }

        /** A package runs whole if it was not built, or if not all its tests ran. */
        private Map<String, List<String>> failedTests(TestEvents events) {
            Map<String, List<String>> failed = new LinkedHashMap<>();
            for (Result test : tests.stream().filter(Result::failed).toList()) {
                if (test.pkg().equals("command-line-arguments") || !test.pkg().matches("[\\w./~+][\\w./~+-]*")) {
                    return Map.of(); // it was named by its files
                }
                List<String> names = failed.computeIfAbsent(test.pkg(), it -> new ArrayList<>());
                if (test.isTest() && !test.name().contains("/")) {
                    names.add(test.name());
                }
            }
            failed.forEach((pkg, names) -> {
                boolean byName = names.stream().allMatch(name -> name.matches("(Test|Fuzz|Example)[\\p{L}\\p{N}_]*"));
                if (!events.isComplete(pkg) || !byName || job.command().contains("failfast")) {
                    names.clear();
                }
            });
            return failed.toString().length() > MAX_AGAIN ? Map.of() : failed;
        }

        /** The verdict in one line. */
        String line() {
            boolean notBuilt = verdict == Verdict.FAILED && failures.keySet().stream().allMatch(test ->
                    test.outcome() == Outcome.BROKEN);
            return job.label() + " " + verdict + (notBuilt ? " (build failed)" : "")
                    + (verdict == Verdict.PASSED || guestCode == null ? "" : ", guest exit code " + guestCode) + remark;
        }

        /**
         * What is printed after the suite: the verdict, the failures, at most 50 skipped tests, notes. No line
         * begins with a text from the guest.
         */
        String summary() {
            List<String> lines = new ArrayList<>();
            Map<String, Long> counts = tests.stream().filter(Result::isTest).collect(Collectors.groupingBy(test ->
                    test.outcome().toString(), TreeMap::new, Collectors.counting()));
            lines.add("== " + line() + counts.entrySet().stream().map(count -> ", " + count.getValue() + " "
                    + count.getKey()).collect(Collectors.joining()) + String.format(Locale.ROOT, ", %.1f s", seconds));
            List<Result> failed = failures.keySet().stream().filter(test -> !suiteResults.contains(test)).toList();
            failed.stream().limit(MAX_FAILURES).forEach(failure -> addFailure(lines, failure));
            more(lines, failed.size() - MAX_FAILURES);
            suiteResults.stream().filter(Result::failed).forEach(failure -> addFailure(lines, failure));
            tests.stream().filter(test -> test.outcome() == Outcome.SKIP && test.isTest()).limit(50)
                    .forEach(test -> lines.add("   " + test + test.output().lines().map(line -> ": " + line.strip())
                    .reduce("", (first, last) -> last)));
            notes.stream().limit(20).forEach(note -> lines.add("   " + note));
            more(lines, notes.size() - 20);
            // line by line: a sequence without an end would swallow all that follows
            return lines.stream().map(line -> printable(line) + "\n").collect(Collectors.joining());
        }

        /** The failure, and of its reason the first 90 and the last 80 lines. */
        private void addFailure(List<String> lines, Result failure) {
            lines.add("   " + failure);
            List<String> reason = failures.get(failure).lines().filter(line -> !line.isBlank()).toList();
            for (int i = 0; i < reason.size(); i++) {
                if (i == 90 && reason.size() > 180) {
                    i = reason.size() - 80;
                    lines.add("       ... (" + (i - 90) + " lines)");
                }
                lines.add("       " + reason.get(i));
            }
        }

        private static void more(List<String> lines, int count) {
            if (count > 0) {
                lines.add("   ... and " + count + " more");
            }
        }
    }

    /** Finds what failed in a suite, and why. */
    static final class FailureReasons {
        /** Characters of shared output (a package's or the build's) that are repeated, for all failures together. */
        private static final int MAX_SHARED = 2_000_000;
        /** "# PKG", "# PKG [...]", or "# OTHER [PKG.test]". "# [PKG]" is a second header, which go vet prints. */
        private static final Pattern HEADER = Pattern.compile("# ([^\\[ ]\\S*+)(?: \\[(\\S+)\\.test])?.*");

        private final List<Result> tests;
        private final Map<String, Result> packages;
        private final String plain;
        private final Map<String, StringBuilder> buildErrors = new HashMap<>(); // by package
        private int room = MAX_SHARED;

        FailureReasons(List<Result> tests, String plain) {
            this.tests = tests;
            this.plain = plain;
            packages = tests.stream().filter(test -> !test.isTest()).collect(Collectors.toMap(Result::pkg, it -> it));
            Stream<Result> notBuilt = tests.stream().filter(test -> test.outcome() == Outcome.BROKEN);
            Stream.concat(notBuilt.map(Result::output), Stream.of(plain)).distinct().forEach(this::addBuildErrors);
        }

        /** Each with its reason. A test whose subtest failed is left out, unless it has output of its own. */
        Map<Result, String> of(List<Result> suiteResults) {
            Map<Result, String> failures = new LinkedHashMap<>();
            List<Result> failed = tests.stream().filter(Result::failed).toList();
            Set<String> parents = failed.stream().map(Result::parent).collect(Collectors.toSet());
            for (Result test : failed) {
                if (!parents.contains(test.fullName()) || test.isTest() && !test.output().isBlank()) {
                    failures.put(test, reason(test));
                }
            }
            suiteResults.stream().filter(Result::failed).forEach(result -> failures.put(result, result.output()));
            return failures;
        }

        /** Its output, and its package's if it did not finish or printed nothing. */
        private String reason(Result test) {
            String output = test.output();
            if (test.outcome() == Outcome.BROKEN) {
                StringBuilder errors = buildErrors.get(test.pkg());
                return errors == null || errors.length() == 0 ? output + shared(plain) : errors.toString();
            }
            boolean saysLittle = test.isTest() && (test.outcome() == Outcome.UNFINISHED || output.isBlank());
            return saysLittle && room > 0 ? output + shared(packages.get(test.pkg()).output()) : output;
        }

        /** Nothing as soon as there is no room: a text that is told thousands of times would fill the disk. */
        private String shared(String text) {
            room = text.length() > room ? 0 : room - text.length();
            return room == 0 ? "" : text;
        }

        /** The compiler's lines by package. Go 1.24 sends them as events, older versions as plain text. */
        private void addBuildErrors(String text) {
            List<StringBuilder> current = List.of();
            for (String line : text.lines().toList()) {
                Matcher header = HEADER.matcher(line);
                if (header.matches()) {
                    current = Stream.of(header.group(1), header.group(2)).filter(Objects::nonNull).distinct()
                            .map(pkg -> buildErrors.computeIfAbsent(pkg, it -> new StringBuilder())).toList();
                } else if (line.startsWith("FAIL\t")) {
                    current = List.of();
                } else if (!line.startsWith("# [")) {
                    current.forEach(section -> section.append(line).append('\n'));
                }
            }
        }
    }

    /**
     * The file of --json. A full disk does not stop the run: what is wrong is told at the end.
     * <p>
     * Before and after a suite's events it has lines of ours, with the member "suite" and no "Action"; other readers of
     * go test -json take them for events without a meaning. They are not longer than 64 KB, which is as long as Go's
     * bufio.Scanner reads.
     */
    static final class EventFile implements Closeable {
        /** 200 MB of short lines are 2 GB of events. The guest decides how many come, and must not fill this disk. */
        static final long MAX_BYTES = 4_000_000_000L;
        private static final Pattern PIECE = Pattern.compile("(?s).{1,8000}+"); // JSON may write a character as six
        private final Path path;
        private final long limit;
        private final List<String> suites; // of the call
        private final OutputStream stream;
        private long size;
        private long events; // of the suite
        /** Why it is not complete, or null. */
        String problem;

        EventFile(Path path, long limit, List<String> suites) throws IOException {
            this.path = path;
            this.limit = limit;
            this.suites = suites;
            stream = new BufferedOutputStream(Files.newOutputStream(path));
        }

        /** The lines before a suite's events. */
        void begin(Job job, String project, String commit) {
            Part part = job.part();
            writeLine(line(job).value("command", job.suite().command()).value("project", project)
                    .value("commit", commit).value("shard", part.shard().toString())
                    .value("version", VmTest.class.getAnnotation(Command.class).version()[0])
                    .value("goTest", job.isGoTest()).value("requireTests", job.callerArgs().requireTests())
                    .array("suites", suites).array("words", job.callerArgs().words())
                    .value("chosen", !job.callerArgs().packages().isEmpty())
                    .value("repeated", !job.repeated().isEmpty())
                    .value("list", part.listHash()).value("started", Instant.now().toString()));
            part.packages().forEach(pkg -> writeLine(line(job).array("packages", List.of(pkg))));
            events = 0;
        }

        /** The lines after a suite's events. */
        void end(Report report) {
            for (Result result : report.suiteResults) {
                // one without a name is about the whole suite, and merge makes it again from the other lines
                for (String text : result.isTest() ? pieces(result.output()) : List.<String>of()) {
                    writeLine(line(report.job).value("result", result.name())
                            .value("outcome", result.outcome().name()).value("text", text));
                }
            }
            pieces(report.plain).forEach(text -> writeLine(line(report.job).value("text", text)));
            writeLine(line(report.job).value("verdict", report.verdict.toString())
                    .value("exit", report.verdict.exitCode).value("events", events).value("seconds", report.seconds));
        }

        private static JsonStringWriter line(Job job) {
            return JsonWriter.string().object().value("suite", job.name());
        }

        private static List<String> pieces(String text) {
            return PIECE.matcher(text).results().map(MatchResult::group).toList();
        }

        /** An event, which ends in a newline, unless it was cut off. */
        void write(String event) {
            events++;
            writeLine(event.strip());
        }

        private void writeLine(JsonStringWriter line) {
            writeLine(line.end().done());
        }

        private void writeLine(String line) {
            byte[] bytes = (line + "\n").getBytes(UTF_8);
            size += bytes.length;
            try {
                if (size > limit) {
                    problem = path + " is cut off: the suites printed more than " + limit + " bytes for it";
                } else if (problem == null) {
                    stream.write(bytes);
                }
            } catch (IOException failed) {
                problem = cannotWrite(path, failed);
            }
        }

        @Override
        public void close() {
            try {
                stream.close();
            } catch (IOException failed) {
                problem = cannotWrite(path, failed);
            }
        }

        static String cannotWrite(Path file, Exception failed) {
            return "cannot write all of " + file + " (" + reason(failed) + "): make room, or choose another place";
        }
    }

    /** The JUnit report: a testsuite for each package of a suite, and one for the results of the suite itself. */
    static final class JUnit {
        private static final Pattern ILLEGAL = Pattern.compile(
                "[^\t\n\\x20-\ud7ff\ue000-\ufffd\\x{10000}-\\x{10ffff}]");
        private final XMLStreamWriter xml;
        private final String host;
        private int id;

        private JUnit(XMLStreamWriter xml, String host) {
            this.xml = xml;
            this.host = host;
        }

        /** Writes the file; what is wrong, if it cannot be written. */
        static List<String> write(List<Report> reports, String host, Path path) {
            try (Writer file = Files.newBufferedWriter(path)) {
                write(reports, host, file);
                return List.of();
            } catch (IOException | XMLStreamException failed) {
                return List.of(EventFile.cannotWrite(path, failed));
            }
        }

        static void write(List<Report> reports, String host, Writer file) throws XMLStreamException {
            JUnit junit = new JUnit(XMLOutputFactory.newInstance().createXMLStreamWriter(file), host);
            junit.xml.writeStartDocument();
            junit.begin("testsuites");
            for (Report report : reports) {
                String suite = report.job.name();
                Map<String, List<Result>> packages = report.tests.stream()
                        .filter(test -> test.isTest() || report.failures.containsKey(test))
                        .collect(Collectors.groupingBy(Result::pkg, LinkedHashMap::new, Collectors.toList()));
                for (Map.Entry<String, List<Result>> pkg : packages.entrySet()) {
                    junit.suite(report, pkg.getKey(), suite + "." + pkg.getKey(), pkg.getValue());
                }
                if (!report.suiteResults.isEmpty()) {
                    junit.suite(report, suite, suite, report.suiteResults);
                }
            }
            junit.xml.writeEndDocument();
            junit.xml.flush();
        }

        private void suite(Report report, String name, String className, List<Result> tests) throws XMLStreamException {
            Map<String, Long> kinds = tests.stream().collect(Collectors.groupingBy(test -> test.outcome().junit,
                    Collectors.counting()));
            double seconds = tests.stream().filter(test -> !test.name().contains("/")).mapToDouble(Result::seconds)
                    .sum();
            begin("testsuite", "id", id++, "package", report.job.name(), "name", name, "hostname", host,
                    "timestamp", report.started.truncatedTo(ChronoUnit.SECONDS).toString().replace("Z", ""),
                    "time", seconds, "tests", tests.size(), "failures", kinds.getOrDefault("failure", 0L),
                    "errors", kinds.getOrDefault("error", 0L), "skipped", kinds.getOrDefault("skipped", 0L));
            element("", "properties");
            for (Result test : tests) {
                String kind = test.outcome().junit;
                begin("testcase", "classname", className, "name", test.isTest() ? test.name() : test.pkg(),
                        "time", test.seconds());
                if (kind.equals("skipped")) {
                    String reason = test.output().strip(); // a reader takes an empty one for a test that passed
                    element("", kind, "message", reason.isEmpty() ? "skipped" : reason);
                } else if (!kind.isEmpty()) {
                    element(report.failures.getOrDefault(test, ""), kind, "type", test.outcome(), "message", test);
                }
                xml.writeEndElement();
            }
            element("", "system-out"); // Ant's schema wants all three
            element("", "system-err");
            xml.writeEndElement();
        }

        private void begin(String name, Object... attributes) throws XMLStreamException {
            xml.writeStartElement(name);
            for (int i = 0; i < attributes.length; i += 2) {
                Object value = attributes[i + 1];
                xml.writeAttribute(attributes[i].toString(), legal(value instanceof Double
                        ? String.format(Locale.ROOT, "%.3f", value) : value.toString()));
            }
        }

        private void element(String text, String name, Object... attributes) throws XMLStreamException {
            begin(name, attributes);
            xml.writeCharacters(legal(text));
            xml.writeEndElement();
        }

        /** Without the characters that XML 1.0 cannot hold even escaped. */
        private static String legal(String text) {
            return ILLEGAL.matcher(ESCAPE_SEQUENCE.matcher(text).replaceAll("")).replaceAll("");
        }
    }

    // Divided suites

    /** Which part of a divided run this is: part {@code index}, from 1, of {@code count}. */
    record Shard(int index, int count) {
        static final Shard WHOLE = new Shard(1, 1);
        private static final int MAX = 10_000;

        /** From "2/3"; "auto" takes the variables that GitLab CI and Slurm's array jobs set. */
        static Shard parse(String text, Map<String, String> environment) {
            Matcher numbers = Pattern.compile("([1-9]\\d{0,4})/([1-9]\\d{0,4})").matcher(text.equals("auto")
                    ? automatic(environment) : text);
            if (numbers.matches()) {
                Shard shard = new Shard(Integer.parseInt(numbers.group(1)), Integer.parseInt(numbers.group(2)));
                if (shard.index <= shard.count && shard.count <= MAX) {
                    return shard;
                }
            }
            throw new VmException(2, "--shard: '" + text + "' is neither auto nor a part such as 2/3, the second of "
                    + "three (at most " + MAX + ")" + (text.equals("auto") ? ": " + automatic(environment) : ""));
        }

        private static String automatic(Map<String, String> environment) {
            if (environment.containsKey("CI_NODE_INDEX")) { // GitLab counts from 1
                return environment.get("CI_NODE_INDEX") + "/" + environment.getOrDefault("CI_NODE_TOTAL", "?");
            } else if (!environment.containsKey("SLURM_ARRAY_TASK_ID")) {
                throw new VmException(2, "--shard auto: this is no job of GitLab CI with 'parallel' and no array job "
                        + "of Slurm (CI_NODE_INDEX and SLURM_ARRAY_TASK_ID are not set): name the part, as 2/3");
            }
            List<String> numbers = Stream.of("ID", "MIN", "STEP", "COUNT").map(name -> environment.getOrDefault(
                    "SLURM_ARRAY_TASK_" + name, name.equals("STEP") ? "1" : "")).toList();
            if (!numbers.stream().allMatch(number -> number.matches("\\d{1,9}")) || numbers.get(2).matches("0+")) {
                throw new VmException(2, "--shard auto: SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT are " + numbers
                        + ", which cannot be used: name the part, as --shard 2/3");
            }
            List<Integer> values = numbers.stream().map(Integer::valueOf).toList();
            return ((values.get(0) - values.get(1)) / values.get(2) + 1) + "/" + values.get(3);
        }

        /**
         * The packages of this part. The longest package is assigned first, each to the part that has the least work so
         * far. The same packages and times give the same parts on every machine.
         */
        List<String> of(Map<String, Double> seconds) {
            double[] load = new double[count];
            int[] size = new int[count];
            List<String> mine = new ArrayList<>();
            Comparator<String> bySeconds = Comparator.comparing(seconds::get);
            List<String> longestFirst = seconds.keySet().stream()
                    .sorted(bySeconds.reversed().thenComparing(pkg -> pkg)).toList();
            for (String pkg : longestFirst) {
                int least = 0;
                for (int part = 1; part < count; part++) {
                    boolean less = load[part] < load[least] || load[part] == load[least] && size[part] < size[least];
                    least = less ? part : least;
                }
                load[least] += seconds.get(pkg);
                size[least]++;
                if (least == index - 1) {
                    mine.add(pkg);
                }
            }
            return mine;
        }

        @Override
        public String toString() {
            return index + "/" + count;
        }
    }

    /**
     * The part of a suite that is run here: its packages, and the hash of the whole list. A suite that is not divided
     * has no packages, the hash "", and may run in all parts (the build), or in part 1 only.
     */
    record Part(Shard shard, List<String> packages, String listHash, boolean isEmpty) {
        static final Part WHOLE = undivided(Shard.WHOLE, true);

        Part(Shard shard, List<String> packages, String listHash) {
            this(shard, packages, listHash, packages.isEmpty());
        }

        static Part undivided(Shard shard, boolean inAllParts) {
            return new Part(shard, List.of(), "", shard.index() > 1 && !inAllParts);
        }
    }

    /** How the suites of a call are divided: by the timings that the caller named, or null. And go list's packages. */
    record Division(Shard shard, Timings timings, Map<String, PackageList> lists) {}

    /** A suite's packages by go list, sorted, and which of them have no tests. */
    record PackageList(SortedSet<String> packages, Set<String> withoutTests) {
        static final PackageList NONE = new PackageList(new TreeSet<>(), Set.of());
        static final String FORMAT = "vm-test {{.ImportPath}} {{len .TestGoFiles}} {{len .XTestGoFiles}}";
        /** The limit for go list's output: twice what the largest Go projects have. */
        static final int MAX_LENGTH = 8_000_000;
        private static final Pattern LINE = Pattern.compile("(?m)^vm-test ([\\w.~+@:/-]+) (\\d+) (\\d+)$");

        /**
         * No packages if one was named by its files: go test gets them together or not at all. Also none if a name is
         * not understood or may be cut off: that package would never be tested.
         */
        static PackageList parse(String output) {
            if (output.length() >= MAX_LENGTH || output.lines().anyMatch(line -> line.startsWith("vm-test ")
                    && !LINE.matcher(line).matches())) {
                return NONE;
            }
            SortedSet<String> packages = new TreeSet<>();
            Set<String> withoutTests = new HashSet<>();
            LINE.matcher(output).results().forEach(line -> {
                packages.add(line.group(1));
                if (line.group(2).equals("0") && line.group(3).equals("0")) {
                    withoutTests.add(line.group(1));
                }
            });
            return packages.contains("command-line-arguments") ? NONE : new PackageList(packages, withoutTests);
        }

        String hash() {
            try {
                byte[] sum = MessageDigest.getInstance("SHA-256").digest(String.join("\n", packages).getBytes(UTF_8));
                return HexFormat.of().formatHex(sum);
            } catch (NoSuchAlgorithmException impossible) {
                throw new IllegalStateException(impossible);
            }
        }

        /** What a clone runs at a time: one package; or all those without tests, which go test only names. */
        List<List<String>> work(Collection<String> part) {
            List<List<String>> work = new ArrayList<>();
            part.stream().filter(pkg -> !withoutTests.contains(pkg)).forEach(pkg -> work.add(List.of(pkg)));
            List<String> rest = part.stream().filter(withoutTests::contains).toList();
            for (int from = 0; from < rest.size(); from += 500) { // as many as a command line takes
                work.add(rest.subList(from, Math.min(rest.size(), from + 500)));
            }
            return work;
        }
    }

    /** How long packages took, in seconds, by suite: of one project, in one file. */
    static final class Timings {
        private static final long MAX_BYTES = 50_000_000;
        private final Path file;
        private final String project;
        private final Map<String, SortedMap<String, Double>> suites = new TreeMap<>();

        Timings(Path file, String project) {
            this.file = file;
            this.project = project;
        }

        /** From a file that the caller named; 2 if it cannot be used. */
        static Timings read(Path file, String project) {
            Timings timings = new Timings(file, project);
            try {
                if (Files.size(file) > MAX_BYTES) {
                    throw new IOException("it is larger than " + MAX_BYTES + " bytes");
                }
                JsonObject json = SuiteOutput.parsed(Files.readString(file));
                if (json == null || !(json.get("project") instanceof String of)
                        || !(json.get("suites") instanceof JsonObject all)) {
                    throw new IOException("it names no project and no suites");
                } else if (!of.equals(project)) {
                    throw new VmException(2, "--timings: " + file + " is of project " + oneLine(of) + ", not "
                            + project);
                }
                for (String suite : all.keySet()) {
                    if (!(all.get(suite) instanceof JsonObject times)
                            || !times.values().stream().allMatch(Number.class::isInstance)) {
                        throw new IOException("a time is no number");
                    }
                    SortedMap<String, Double> packages = new TreeMap<>();
                    times.keySet().forEach(pkg ->
                            packages.put(pkg, Math.max(0, Math.min(1e9, times.getDouble(pkg)))));
                    timings.suites.put(suite, packages);
                }
                return timings;
            } catch (IOException wrong) {
                throw new VmException(2, "--timings: " + file + " is no file that vm-test merge --timings wrote ("
                        + reason(wrong) + ")");
            }
        }

        /** Those of earlier runs here, beside last-run.json. A file that cannot be used counts as none. */
        static Timings ofThisMachine(Path lastRun, String project) {
            Path file = lastRun.resolveSibling("timings.json");
            try {
                return read(file, project);
            } catch (VmException unusable) {
                return new Timings(file, project);
            }
        }

        /** The weight of each package: its time, else the median of the others' times, else 1. */
        static Map<String, Double> of(Timings timings, String suite, Collection<String> packages) {
            Map<String, Double> known = timings == null ? Map.of()
                    : timings.suites.getOrDefault(suite, new TreeMap<>());
            List<Double> sorted = packages.stream().map(known::get).filter(Objects::nonNull).sorted().toList();
            double median = sorted.isEmpty() ? 1 : sorted.get(sorted.size() / 2);
            return packages.stream().collect(Collectors.toMap(pkg -> pkg, pkg -> known.getOrDefault(pkg, median)));
        }

        /** Adds the times of the packages that finished. */
        void add(Report report) {
            for (Result result : report.tests) {
                if (!result.isTest() && Set.of(Outcome.PASS, Outcome.FAIL, Outcome.SKIP).contains(result.outcome())) {
                    suites.computeIfAbsent(report.job.name(), it -> new TreeMap<>())
                            .put(result.pkg(), result.seconds());
                }
            }
        }

        /** What is wrong, if the file cannot be written. */
        List<String> write() {
            try {
                replaceFile(file, JsonWriter.indent("  ").string().object().value("project", project)
                        .object("suites", new JsonObject(suites)).end().done());
                return List.of();
            } catch (IOException failed) {
                return List.of(EventFile.cannotWrite(file, failed));
            }
        }
    }

    // In clones

    /** The clones of a parallel run. vm-ctl keeps them and their snapshot as long as we hold the lock. */
    static final class CloneSet implements Closeable {
        static final int MAX = 64;
        private static final int MAX_NAME = 64; // of VM_NAME

        final String id = "par-" + UUID.randomUUID().toString().substring(0, 6);
        final List<String> names;
        final Path vmDir;
        final Path lockFile;
        /** Removes them, once the lock is free. */
        private final Runnable removal;
        /** Those in which something has run. */
        final Set<String> used = ConcurrentHashMap.newKeySet();
        /** Whether what still runs in them must end. */
        volatile boolean stopped;
        private final FileChannel lock;
        boolean isClosed;

        CloneSet(Path vmDir, String vmName, int count, Runnable removal) throws IOException {
            this.removal = removal;
            this.vmDir = vmDir;
            lockFile = vmDir.resolve(vmName + ".test").resolve(id + ".lock");
            String start = vmName.substring(0, Math.min(vmName.length(), MAX_NAME - id.length() - 4)) + "." + id + "-";
            names = IntStream.rangeClosed(1, count).mapToObj(number -> start + number).toList();
            deleteLocksOfKilledRuns();
            lock = FileChannel.open(lockFile, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
            lock.lock(); // it does not wait: the name is random, so nobody else holds it
        }

        /**
         * Deletes the locks of runs that were killed before they made a snapshot or a clone. vm-ctl deletes any other
         * lock, with the snapshot and the clones that name it.
         */
        private void deleteLocksOfKilledRuns() throws IOException {
            try (DirectoryStream<Path> locks = Files.newDirectoryStream(lockFile.getParent(), "par-*.lock")) {
                for (Path old : locks) {
                    try (FileChannel channel = FileChannel.open(old, StandardOpenOption.WRITE)) {
                        if (channel.tryLock() != null) {
                            Files.delete(old);
                        }
                    } catch (NoSuchFileException deleted) {
                        // by vm-ctl, meanwhile
                    }
                }
            }
        }

        /** 69 if the memory that is available is too small for so many clones of this VM. */
        static void checkMemory(JsonObject vm, int count) throws IOException {
            Path memory = Path.of("/proc/meminfo");
            if (vm == null || !Files.exists(memory)) { // on another system: what is available is unknown
                return;
            }
            Matcher available = Pattern.compile("MemAvailable: +(\\d{1,15}) kB").matcher(Files.readString(memory));
            long each = megabytes(vm);
            long free = available.find() ? Long.parseLong(available.group(1)) / 1024 : Long.MAX_VALUE;
            if (each * count > free) {
                throw new VmException(69, NOTHING_RAN + ": " + count + " clones with " + each + " MB of memory each do "
                        + "not fit into the " + free + " MB that are available: " + (free < each ? "not even one does; "
                        + "stop other programs, or restart the VM with less (VM_MEMORY=512M vm-ctl restart)"
                        : "use --parallel " + free / each));
            }
        }

        private static long megabytes(JsonObject vm) {
            Matcher size = Pattern.compile("(\\d{1,7})([MG])").matcher(vm.getString("memory", ""));
            return !size.matches() ? 0 : Long.parseLong(size.group(1)) * (size.group(2).equals("G") ? 1024 : 1);
        }

        @Override
        public void close() throws IOException {
            isClosed = true;
            lock.close();
            try {
                removal.run();
                Files.deleteIfExists(lockFile);
                List<String> left = names.stream().filter(name -> Files.exists(vmDir.resolve(name + ".snapshots")))
                        .toList();
                if (!left.isEmpty()) {
                    throw new VmException(69, String.join(", ", left) + " are still there");
                }
            } catch (VmException failed) {
                tell("the clones " + String.join(", ", names) + " could not be removed (" + failed.getMessage()
                        + "); vm-ctl list tries again");
            }
        }
    }

    /** Runs packages in clones, each in the next one that is free. */
    static final class ParallelRun {
        /** Runs packages in a clone, and keeps what they print. */
        interface Tests {
            Ending run(String clone, List<String> packages, Spool spool) throws IOException, InterruptedException;
        }

        private final CloneSet clones;
        private final Queue<List<String>> work;
        private final BooleanSupplier interrupted;
        private final List<Ending> endings = new ArrayList<>();
        private Verdict stoppedBy; // why the rest was stopped
        private Throwable failure; // read only after all threads have ended

        /** The work begins with the first packages of the list. */
        ParallelRun(CloneSet clones, List<List<String>> work, BooleanSupplier interrupted) {
            this.clones = clones;
            this.work = new ConcurrentLinkedQueue<>(work);
            this.interrupted = interrupted;
        }

        /**
         * Runs all packages. {@code show} gets the output of one package after the other, and null at the end of each.
         * A clone that dies is restored, and its packages run once more.
         */
        Ending run(Tests tests, Consumer<String> restore, boolean isolate, BiConsumer<Integer, String> show)
                throws Exception {
            List<Thread> threads = clones.names.stream().limit(work.size())
                    .map(clone -> new Thread(() -> workIn(clone, tests, restore, isolate, show), clone)).toList();
            threads.forEach(Thread::start);
            for (Thread thread : threads) {
                thread.join();
            }
            clones.stopped = false; // for the next suite, which may run in the VM itself
            if (failure instanceof Error failed) {
                throw failed;
            } else if (failure != null) {
                throw (Exception) failure;
            }
            if (!work.isEmpty()) { // it was stopped before the rest
                endings.add(Ending.only(stoppedBy == null ? Verdict.INTERRUPTED : stoppedBy, null));
            }
            return Ending.of(endings);
        }

        private void workIn(String clone, Tests tests, Consumer<String> restore, boolean isolate,
                BiConsumer<Integer, String> show) {
            try (Spool spool = new Spool(privateDirectory(clones.vmDir.resolve(clone + ".test")).resolve("output"))) {
                List<String> packages = next();
                while (packages != null) {
                    boolean used = !clones.used.add(clone);
                    Ending ending = attempt(tests, isolate && used ? restore : null, clone, packages, spool);
                    if (ending.verdict() == Verdict.LOST && !isStopped() && !spool.tellsFailure) {
                        String lost = "lost clone " + clone + " while it ran " + String.join(" ", packages)
                                + ", which runs once more: " + ending.trouble();
                        tell(lost);
                        spool.clear();
                        ending = attempt(tests, restore, clone, packages, spool).noting(lost);
                    }
                    take(ending.after(packages), spool, show);
                    packages = next();
                }
            } catch (IOException | InterruptedException | RuntimeException | Error failed) {
                failure = failed; // an Error, too: its package would be missing
                clones.stopped = true;
            }
        }

        /** Runs packages in a clone, after restoring it if a way to do that is given. If that fails, it is lost. */
        private static Ending attempt(Tests tests, Consumer<String> restore, String clone, List<String> packages,
                Spool spool) throws IOException, InterruptedException {
            try {
                if (restore != null) {
                    restore.accept(clone);
                }
                return tests.run(clone, packages, spool);
            } catch (VmException failed) {
                return new Ending(Set.of(130, 143).contains(failed.exitCode) ? Verdict.INTERRUPTED : Verdict.LOST, null,
                        List.of(), List.of(), failed.getMessage(), null, List.of());
            }
        }

        private boolean isStopped() {
            return clones.stopped || interrupted.getAsBoolean();
        }

        private List<String> next() {
            return isStopped() ? null : work.poll();
        }

        private synchronized void take(Ending ending, Spool spool, BiConsumer<Integer, String> show)
                throws IOException {
            spool.replay(show);
            show.accept(1, null);
            if (ending.verdict() == Verdict.INTERRUPTED && stoppedBy != null) {
                ending = ending.with(stoppedBy); // not the user, but the end of another package stopped it
            }
            endings.add(ending);
            if (ending.verdict().compareTo(Verdict.TIMED_OUT) >= 0) {
                stoppedBy = ending.verdict();
                clones.stopped = true;
            }
        }
    }

    /** Keeps on disk what a package prints until it has ended, because that may be much. */
    static final class Spool implements Closeable {
        private static final long MAX_BYTES = 1_000_000_000;
        private static final String FAILURE = "\"Action\":\"fail\"";
        private final Path file;
        private DataOutputStream stream;
        private IOException failed;
        private long size;
        private String before = ""; // the end of the piece before
        /** Whether an event in it tells of a failed test. */
        boolean tellsFailure;

        Spool(Path file) throws IOException {
            this.file = file;
            clear();
        }

        /** The threads of both streams call this. replay() reports a full disk. */
        synchronized void add(int descriptor, String bytes) {
            size += bytes.length();
            tellsFailure |= (before + bytes).contains(FAILURE);
            before = bytes.substring(Math.max(0, bytes.length() - FAILURE.length()));
            try {
                if (size > MAX_BYTES) {
                    throw new IOException("a package printed more than " + MAX_BYTES + " bytes");
                } else if (failed == null && !bytes.isEmpty()) {
                    stream.writeByte(descriptor);
                    stream.writeInt(bytes.length());
                    stream.write(bytes.getBytes(ISO_8859_1));
                }
            } catch (IOException full) {
                failed = full;
            }
        }

        /** Passes on what was kept, in the order in which it came, and deletes it. */
        synchronized void replay(BiConsumer<Integer, String> sink) throws IOException {
            try {
                stream.close();
            } catch (IOException full) {
                failed = full;
            }
            if (failed != null) {
                throw new VmException(1, EventFile.cannotWrite(file, failed));
            }
            try (DataInputStream in = new DataInputStream(new BufferedInputStream(Files.newInputStream(file)))) {
                for (int descriptor = in.read(); descriptor >= 0; descriptor = in.read()) {
                    sink.accept(descriptor, new String(in.readNBytes(in.readInt()), ISO_8859_1));
                }
            }
            clear();
        }

        synchronized void clear() throws IOException {
            if (stream != null) {
                stream.close();
            }
            size = 0;
            before = "";
            tellsFailure = false;
            stream = new DataOutputStream(new BufferedOutputStream(Files.newOutputStream(file)));
        }

        @Override
        public void close() {
            try {
                stream.close();
            } catch (IOException full) {
                // nobody needs it any more
            }
            file.toFile().delete();
        }
    }

    // Parts of a run, from several machines

    /** Makes one report of each suite from the --json files of all its parts. In doubt the verdict is "lost". */
    static final class Merge {
        private static final int MAX_LINE = 16_000_000; // characters; test2json cuts lines at 1,024
        private static final int MAX_PROBLEMS = 50;
        private final MemoryLimits limits;
        private final Map<String, MergedSuite> suites = new LinkedHashMap<>();
        /** What is wrong with files, but belongs to no suite. */
        private final List<String> problems = new ArrayList<>();

        Merge(MemoryLimits limits) {
            this.limits = limits;
        }

        void read(Path file) {
            MergedSuite[] suite = {null};
            try {
                forEachLine(file, (line, json) -> suite[0] = take(file, suite[0], json));
            } catch (IOException damaged) {
                problems.add(damaged.getMessage());
            }
            if (suite[0] != null) {
                suite[0].problems.add(file + " ends in the middle of the suite: its last line is missing");
            }
        }

        /** Takes a line; the suite that it belongs to, or null after the last line of one. */
        private MergedSuite take(Path file, MergedSuite suite, JsonObject json) {
            if (json.has("command") && !isEvent(json)) {
                if (suite != null) {
                    suite.problems.add(file + " has a suite without its last line");
                }
                Shard shard = Shard.parse(json.getString("shard", ""), Map.of());
                MergedSuite begun = suites.computeIfAbsent(json.getString("suite"), name ->
                        new MergedSuite(json, shard.count(), limits));
                begun.begin(file, json, shard);
                return begun;
            } else if (suite == null) {
                throw new IllegalArgumentException("a line outside of a suite");
            } else if (isEvent(json)) {
                suite.takeEvent(json);
                return suite;
            }
            return suite.take(json) ? suite : null;
        }

        private static boolean isEvent(JsonObject json) {
            return json.has("Action") || !json.has("suite");
        }

        List<Report> reports() {
            if (suites.isEmpty()) {
                throw new VmException(69, "there is nothing to merge: " + problems.stream().limit(MAX_PROBLEMS)
                        .collect(Collectors.joining("; ")));
            }
            // A file that cannot be read may have had a part of any suite.
            suites.values().forEach(suite -> suite.problems.addAll(problems));
            Set<List<String>> sources = suites.values().stream().map(MergedSuite::source).collect(Collectors.toSet());
            if (sources.size() > 1) {
                suites.values().forEach(suite -> suite.problems.add("the suites are from different runs (project, "
                        + "commit, version, number of parts): " + sources));
            }
            Set<String> neverBegun = suites.values().stream().flatMap(suite -> LastRun.strings(
                    suite.header.getArray("suites")).stream()).filter(name -> !suites.containsKey(name))
                    .collect(Collectors.toCollection(TreeSet::new));
            boolean passed = suites.values().stream().allMatch(suite -> suite.verdict == Verdict.PASSED);
            if (!neverBegun.isEmpty() && passed) { // a failed suite explains why others did not run
                suites.values().forEach(suite -> suite.problems.add("no file has the suites that were to run, too: "
                        + oneLine(String.join(", ", neverBegun))));
            }
            suites.values().forEach(MergedSuite::finish);
            return suites.values().stream().map(MergedSuite::report).toList();
        }

        /** Whether all tests of the suite's packages ran. */
        boolean isOfWholePackages(Report report) {
            return report.job.runsWholePackages() && !suites.get(report.job.name()).header.getBoolean("repeated");
        }

        String project() {
            return suites.values().iterator().next().header.getString("project");
        }

        /** Writes all in one file; what is wrong, if that cannot be done. */
        List<String> write(List<Report> reports, Path target) throws IOException {
            List<String> wrong = new ArrayList<>();
            EventFile events = new EventFile(target, EventFile.MAX_BYTES, List.copyOf(suites.keySet()));
            try (events) {
                for (Report report : reports) {
                    MergedSuite suite = suites.get(report.job.name());
                    events.begin(report.job, project(), suite.header.getString("commit"));
                    for (Path file : new LinkedHashSet<>(suite.parts.values())) {
                        String[] current = {null};
                        forEachLine(file, (line, json) -> {
                            if (!isEvent(json)) {
                                current[0] = json.getString("suite");
                            } else if (report.job.name().equals(current[0])) {
                                events.write(line);
                            }
                        });
                    }
                    events.end(report);
                }
            } catch (IOException unreadable) {
                wrong.add("cannot write all of " + target + ": " + unreadable.getMessage());
            }
            if (events.problem != null) {
                wrong.add(events.problem);
            }
            return wrong;
        }

        /** Hands on each line of a file with its JSON. A failure says which file cannot be read, and why. */
        private static void forEachLine(Path file, BiConsumer<String, JsonObject> reader) throws IOException {
            try (BufferedReader in = new BufferedReader(new InputStreamReader(Files.newInputStream(file), UTF_8))) {
                StringBuilder line = new StringBuilder();
                for (int c = in.read(); c >= 0; c = in.read()) {
                    if (c == '\n') {
                        JsonObject json = SuiteOutput.parsed(line.toString());
                        if (json == null) {
                            throw new IllegalArgumentException("a line is not JSON");
                        }
                        reader.accept(line.toString(), json);
                        line.setLength(0);
                    } else if (line.length() < MAX_LINE) {
                        line.append((char) c);
                    } else {
                        throw new IOException("it has a line of more than " + MAX_LINE + " characters");
                    }
                }
                if (line.length() > 0) {
                    throw new IOException("its last line has no end");
                } else if (Files.size(file) == 0) {
                    throw new IOException("it is empty");
                }
            } catch (IOException | RuntimeException | StackOverflowError damaged) { // Error: very deep JSON
                throw new IOException(file + " cannot be read: " + (damaged instanceof IOException refused
                        ? reason(refused) : "it has a line that vm-test --json does not write"), damaged);
            }
        }
    }

    /** One suite, from the files of all parts. */
    private static final class MergedSuite {
        final JsonObject header;
        private final int count; // of parts
        private final Instant started;
        /** The files of the parts, by the parts' numbers. */
        final SortedMap<Integer, Path> parts = new TreeMap<>();
        final List<String> problems = new ArrayList<>();
        private final SuiteOutput output;
        private final Map<String, Integer> packages = new TreeMap<>(); // which part has it
        private final Map<String, Result> results = new LinkedHashMap<>(); // of the suite itself in its parts, by name
        Verdict verdict = Verdict.PASSED; // the worst of the parts that were read
        private Integer part; // the one that is read now; null if it is refused
        private Path file;
        private long events;
        private double seconds;

        MergedSuite(JsonObject header, int count, MemoryLimits limits) {
            if (Stream.of("command", "project", "version", "list").anyMatch(name -> header.getString(name) == null)
                    || !header.getString("suite", "").matches("[a-z0-9][a-z0-9-]{0,63}")
                    || !header.getString("started", "").matches("\\d{4}-.*")
                    || Stream.of("suites", "words").map(header::getArray).anyMatch(all -> all == null
                    || !all.stream().allMatch(String.class::isInstance))) {
                throw new IllegalArgumentException("a member is missing");
            }
            started = Instant.parse(header.getString("started"));
            this.header = header;
            this.count = count;
            output = new SuiteOutput(line -> { }, limits);
        }

        List<String> source() {
            return Stream.concat(Stream.of(hasCommit() ? "commit" : "project", "version").map(name ->
                    oneLine(header.getString(name))), Stream.of(count + " parts")).toList();
        }

        /**
         * With a commit, the project's directory may have another name in each part: CI systems have several
         * workspaces.
         */
        private boolean hasCommit() {
            return header.getString("commit") != null;
        }

        /** The first line of a part. */
        void begin(Path file, JsonObject json, Shard shard) {
            this.file = file;
            events = 0;
            part = null;
            List<String> different = Stream.of("command", "project", "commit", "version", "list", "suites", "words",
                    "chosen", "repeated", "goTest", "requireTests")
                    .filter(name -> !Objects.equals(json.get(name), header.get(name))
                    && !(name.equals("project") && hasCommit())).toList();
            if (!different.isEmpty() || shard.count() != count) {
                problems.add(file + " is from another run than " + (parts.isEmpty() ? "the files before it"
                        : parts.get(parts.firstKey())) + ": " + (different.isEmpty() ? "the number of parts is "
                        + shard.count() + ", not " + count : String.join(", ", different) + " differ"));
            } else if (parts.containsKey(shard.index())) {
                problems.add("part " + shard + " is in " + parts.get(shard.index()) + " and in " + file);
            } else {
                parts.put(shard.index(), file);
                part = shard.index();
            }
        }

        void takeEvent(JsonObject event) {
            events++;
            if (part != null) {
                output.events.take(event);
            }
        }

        /** Another line of the part; false if it is the last one. */
        boolean take(JsonObject json) {
            String text = json.getString("text", "");
            if (json.has("verdict")) {
                end(json);
                return false;
            } else if (part == null) {
                return true;
            } else if (json.has("packages")) {
                json.getArray("packages").forEach(name -> addPackage((String) name));
            } else if (json.has("result")) {
                String name = json.getString("result") + (count == 1 ? "" : " (part " + part + "/" + count + ")");
                results.computeIfAbsent(name, it -> Result.ofSuite(header.getString("suite"), name,
                        Outcome.valueOf(json.getString("outcome")), "")).runs().get(0).output.add(text);
            } else {
                output.plain.add(text);
            }
            return true;
        }

        private void addPackage(String name) {
            Integer other = packages.putIfAbsent(name, part);
            if (other != null && !other.equals(part)) {
                problems.add("package " + oneLine(name) + " is in part " + other + " and in part " + part);
            }
        }

        private void end(JsonObject json) {
            Verdict ended = Arrays.stream(Verdict.values()).filter(it -> it.toString().equals(json.get("verdict")))
                    .findFirst().orElseThrow(IllegalArgumentException::new);
            if (!header.getString("suite").equals(json.get("suite")) || json.getInt("exit", -1) != ended.exitCode) {
                throw new IllegalArgumentException("the last line is of another suite, or contradicts itself");
            } else if (json.getLong("events", -1) != events) {
                problems.add(file + " has " + events + " events of the suite, and its last line counts "
                        + json.getLong("events", -1));
            }
            if (part != null) {
                seconds = Math.max(seconds, json.getDouble("seconds", 0));
                verdict = Collections.max(List.of(verdict, ended));
            }
        }

        /** After the last file. */
        void finish() {
            for (int number = 1; number <= count; number++) {
                if (!parts.containsKey(number)) {
                    problems.add("part " + number + "/" + count + " is missing: no file has it");
                }
            }
            String list = header.getString("list");
            if (problems.isEmpty() && !(list.isEmpty() && packages.isEmpty())
                    && !list.equals(new PackageList(new TreeSet<>(packages.keySet()), Set.of()).hash())) {
                problems.add("the parts together do not have exactly the packages of the suite");
            }
        }

        Report report() {
            List<Result> all = new ArrayList<>(results.values());
            String suite = header.getString("suite");
            if (!problems.isEmpty()) {
                verdict = Verdict.LOST;
                all.add(Result.ofSuite(suite, "parts", Outcome.UNFINISHED, problems.stream().distinct()
                        .limit(Merge.MAX_PROBLEMS).collect(Collectors.joining("\n"))));
            }
            output.end();
            List<String> names = List.copyOf(packages.keySet());
            CallerArgs callerArgs = new CallerArgs(LastRun.strings(header.getArray("words")),
                    header.getBoolean("chosen") ? names : List.of(), header.getBoolean("requireTests"));
            Job job = new Job(new Suite(suite, header.getString("command"), List.of(), ""), header.getString("command"),
                    header.getBoolean("goTest"), callerArgs, Map.of(),
                    new Part(Shard.WHOLE, names, header.getString("list"), false));
            Report report = new Report(job, new Ending(verdict, null, List.of(), List.of(), null,
                    problems.isEmpty() ? null : problems.get(0), all), output, started, Leaks.ignore);
            report.seconds = seconds;
            return report;
        }
    }

    // Texts from the guest in lines of ours

    private static final int MAX_NAME = 1000; // characters

    /** A text from the guest in one short line, so that it cannot look like a line of ours. */
    static String oneLine(String text) {
        String start = text.length() > MAX_NAME ? text.substring(0, MAX_NAME) + "..." : text;
        return printable(start).replace("\n", "\\n");
    }

    /** Shows what the guest prints to one of its streams: on a terminal without control characters, else as it is. */
    static final class Screen {
        private final PrintStream stream;
        private final boolean terminal;
        private final CharsetDecoder decoder = UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPLACE);
        private ByteBuffer rest = ByteBuffer.allocate(0); // the first bytes of a character, which wait for the others
        private boolean inLine;

        Screen(PrintStream stream, int descriptor) {
            this.stream = stream;
            terminal = isTerminal(descriptor);
        }

        /** Called by the stream's thread and by the main thread. */
        synchronized void print(String bytes) {
            if (!bytes.isEmpty()) {
                inLine = !bytes.endsWith("\n");
                byte[] raw = bytes.getBytes(ISO_8859_1);
                byte[] shown = terminal ? printable(decoded(raw)).getBytes(UTF_8) : raw;
                stream.write(shown, 0, shown.length);
                stream.flush();
            }
        }

        /** So that what comes next begins a line. */
        synchronized void endLine() {
            print(inLine ? "\n" : "");
        }

        private String decoded(byte[] bytes) {
            ByteBuffer in = ByteBuffer.allocate(rest.remaining() + bytes.length).put(rest).put(bytes).flip();
            CharBuffer out = CharBuffer.allocate(in.remaining());
            decoder.decode(in, out, false);
            rest = in;
            return out.flip().toString();
        }

        /** Whether this descriptor is a terminal. Without /proc it counts as one. */
        private static boolean isTerminal(int descriptor) {
            try {
                return Files.readSymbolicLink(Path.of("/proc/self/fd/" + descriptor)).toString()
                        .matches("/dev/(pts/.*|tty.*|console)");
            } catch (IOException noProc) {
                return true;
            }
        }
    }

    // shared:projectorigin
    /** Where a project in the guest came from: this machine's name and the project's real path, in one line. */
    static String projectOrigin(Path project) throws IOException {
        Path name = Path.of("/proc/sys/kernel/hostname");
        String host = Files.exists(name) ? Files.readString(name).strip() : InetAddress.getLocalHost().getHostName();
        return (host + ":" + project.toRealPath()).replaceAll("\\p{Cntrl}", "?");
    }
    // end shared:projectorigin

    // shared:banner
    /**
     * Whether the guest's sshd answers. QEMU's network accepts a connection before the guest does, so only the first
     * bytes tell.
     */
    static boolean hasBanner(int port, int millis) {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), port), millis);
            socket.setSoTimeout(millis);
            return new String(socket.getInputStream().readNBytes(8), UTF_8).equals("SSH-2.0-");
        } catch (IOException notYet) {
            return false;
        }
    }
    // end shared:banner

    // shared:panic
    private static final Pattern KERNEL_PANIC = Pattern.compile(
            // bounded: a guest may print anything
            "(panic: (?!.{0,500}panic: )|Fatal trap \\d).{0,500}(\\R.{0,500}){0,2}\\R"
            + "(cpuid = \\d|Trace beginning at frame |Debugger\\(\"panic\"\\))");

    /**
     * Where a console's text tells of a kernel panic, or -1. "panic: " may stand anywhere in a line ("login: panic:
     * ..."), and programs print it too (Go does). So it counts only if the kernel's next words follow within three
     * lines.
     */
    static int kernelPanic(String console) {
        Matcher panic = KERNEL_PANIC.matcher(console);
        return panic.find() ? panic.start() : -1;
    }
    // end shared:panic

    // shared:streams
    /** Call this first in main: output is UTF-8 in every locale. */
    static void writeUtf8() {
        System.setOut(new PrintStream(System.out, true, UTF_8));
        System.setErr(new PrintStream(System.err, true, UTF_8));
        System.setProperty("sun.stdout.encoding", "UTF-8"); // which picocli asks
        System.setProperty("sun.stderr.encoding", "UTF-8");
    }

    /** Ends this process; with 1 if stdout could not be written. */
    static void exit(String command, int code) {
        if (System.out.checkError()) {
            System.err.println(command + ": the output could not be written: the reader of stdout has gone, or its "
                    + "disk is full");
            System.exit(1);
        }
        System.exit(code);
    }
    // end shared:streams

    // shared:reader
    /**
     * Whether stdout still takes output. To send nothing of a file (which must not be empty) fails if nobody reads the
     * pipe any more. The line that is printed then is lost, and makes exit() see the failure.
     */
    static boolean canAnswer() {
        try (FileChannel file = FileChannel.open(Path.of(System.getProperty("java.home"), "lib", "modules"))) {
            file.transferTo(0, 0, new FileOutputStream(FileDescriptor.out).getChannel());
        } catch (IOException readerGone) {
            System.out.println();
        }
        return !System.out.checkError();
    }
    // end shared:reader

    // shared:duration
    /** A length of time as a person writes it: 90s, 5m, 1h30m or a plain number of seconds; at most 30 days. */
    static class DurationConverter implements ITypeConverter<Duration> {
        @Override
        public Duration convert(String value) {
            String withUnit = value.matches("\\d+") ? value + "s" : value;
            if (withUnit.matches("(?=.*[1-9])(\\d{1,7}h)?(\\d{1,7}m)?(\\d{1,7}s)?")) {
                Duration time = Duration.parse("PT" + withUnit);
                if (time.compareTo(Duration.ofDays(30)) <= 0) {
                    return time;
                }
            }
            throw new TypeConversionException("'" + value
                    + "' is not a time from 1s to 30 days (720h), such as 90s, 5m or 1h30m");
        }
    }
    // end shared:duration

    // shared:printable
    private static final Pattern ESCAPE_SEQUENCE = Pattern.compile(
            "(?:\u001b\\[|\u009b)[0-?]*[ -/]*[@-~]" // such as a colour
            + "|\u001b\\][^\u0007\u001b]*(?:\u0007|\u001b\\\\)?" // such as a window's title
            + "|\u001b[ -/]*[0-~]");
    private static final Pattern CI_COMMAND = Pattern.compile("(?mU)^[^\\S\n]*+::(?=[A-Za-z])|##(?=[A-Za-z]*\\[)");
    private static final Pattern NOT_PRINTABLE = Pattern.compile("[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}&&[^\n\t]]");

    /**
     * A text from outside (the guest, a project, a mirror), made safe for a message: without the escape sequences of
     * terminals and carriage returns. Control characters and those that change the direction of writing become '?';
     * newlines and tabs stay. What CI systems take for a command, such as ::error:: and ##[group], gets a blank inside.
     */
    static String printable(String text) {
        String plain = ESCAPE_SEQUENCE.matcher(text).replaceAll("").replace("\r", "");
        return CI_COMMAND.matcher(NOT_PRINTABLE.matcher(plain).replaceAll("?"))
                .replaceAll(command -> command.group().replaceFirst("(?=.$)", " "));
    }
    // end shared:printable

    // shared:written
    /**
     * A file or directory that the user named, to be written. 2 if a link below the working directory is on the way: it
     * may be a project's, and lead to keys, or to git's hooks.
     */
    static Path written(Path file) {
        Path here = Path.of("").toAbsolutePath();
        Path named = here.resolve(file).normalize();
        for (Path way = named; way.startsWith(here) && !way.equals(here); way = way.getParent()) {
            if (Files.isSymbolicLink(way)) {
                throw new VmException(2, file + ": " + way + " is a link, and may be a project's; if it is meant, "
                        + "write the path that it leads to");
            }
        }
        return named;
    }
    // end shared:written

    // shared:failure
    /** An expected failure: one line that says what happened and what to do, and the exit code that goes with it. */
    static class VmException extends RuntimeException {
        private static final long serialVersionUID = 1;
        final int exitCode;

        VmException(int exitCode, String message) {
            super(message);
            this.exitCode = exitCode;
        }
    }

    /** Why something failed: some exceptions of the file system have only the file as message. */
    static String reason(Exception failure) {
        return (failure instanceof AccessDeniedException ? "permission denied: "
                : failure instanceof FileAlreadyExistsException ? "a file is in the way: "
                : failure instanceof NoSuchFileException ? "no such file: " : "")
                + (failure.getMessage() == null ? failure.getClass().getSimpleName() : failure.getMessage());
    }
    // end shared:failure

    // shared:cli
    /**
     * A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code.
     */
    static CommandLine commandLine(Object command, Settings settings) {
        CommandLine all = new CommandLine(command);
        List<String> help = new ArrayList<>(all.getHelpSectionKeys());
        help.removeIf(section -> section.startsWith("exitCode")); // which only the top command's help shows
        all.getSubcommands().values().forEach(sub -> sub.setHelpSectionKeys(help));
        return all.setExpandAtFiles(false).setAllowSubcommandsAsOptionParameters(true)
                .setColorScheme(CommandLine.Help.defaultColorScheme(Ansi.OFF))
                .setCaseInsensitiveEnumValuesAllowed(true).setDefaultValueProvider(settings)
                .setExecutionStrategy(parsed -> {
                    if (problem(settings, parsed.originalArgs()) != null) {
                        throw new ParameterException(all, "refuse() tells the problem");
                    }
                    settings.warnings.forEach(warning -> tell(all, "warning: " + warning));
                    return new CommandLine.RunLast().execute(parsed);
                }).setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException || failure instanceof IOException)) {
                        throw failure; // a bug keeps its stack trace
                    }
                    tell(all, reason(failure));
                    boolean full = reason(failure).contains("No space left");
                    return failure instanceof VmException expected ? expected.exitCode : full ? 1 : 69;
                }).setParameterExceptionHandler((failure, args) -> refuse(all, settings, failure, args));
    }

    private static void tell(CommandLine all, String text) {
        all.getErr().println(printable(all.getCommandName() + ": " + text));
    }
    // end shared:cli

    // shared:refuse
    /** Tells what is wrong in a command line or a setting; shows the help instead if it was asked for. */
    private static int refuse(CommandLine all, Settings settings, ParameterException failure, String... args) {
        CommandSpec command = failure.getCommandLine().getCommandSpec();
        String help = "; see: " + System.getProperty("vm.make", command.qualifiedName() + " ") + "--help";
        String fault = problem(settings, List.of(args));
        try { // without the settings: a wrong one must not keep the help away
            Integer helped = CommandLine.executeHelpRequest(all.setDefaultValueProvider(null).parseArgs(args));
            if (helped != null) {
                return helped;
            } else if (fault == null) { // a setting is wrong, or the command itself refuses the arguments
                fault = failure.getArgSpec() == null ? failure.getMessage() + help
                        : settings.origins.get(failure.getArgSpec().descriptionKey()) + ": "
                        + failure.getCause().getMessage();
            }
        } catch (ParameterException wrongArguments) {
            List<String> known = new ArrayList<>(command.optionsMap().keySet());
            known.addAll(command.subcommands().keySet());
            String hint = !(wrongArguments instanceof UnmatchedArgumentException unmatched) ? ""
                    : didYouMean(unmatched.getUnmatched().get(0).replaceFirst("=.*", ""), known);
            fault = fault != null ? fault : wrongArguments.getMessage() + hint + help;
        }
        tell(all, fault);
        return 2;
    }
    // end shared:refuse

    // shared:settings
    /** What holds where no option is given: the environment, else vm.env here, else the user's own vm.env. */
    static final class Settings implements IDefaultValueProvider { // no record: picocli takes 8 ms longer with one
        final Map<String, String> values = new HashMap<>();
        /** Each setting's name and where it stands, as messages tell it. */
        final Map<String, String> origins = new HashMap<>();
        final List<String> warnings = new ArrayList<>();
        /** Why a vm.env cannot be used; null if all can. */
        String fault;

        /** Adds the settings of one source. They win over those that were added before. */
        Settings add(Map<String, String> found, String place) {
            found.forEach((name, value) -> {
                if (value.isEmpty() || value.equals("_NULL_")) {
                    return; // unset; the latter to picocli
                } else if (SETTINGS.contains(name) || name.startsWith("VM_TEST_")) {
                    values.put(name, value);
                    origins.put(name, name + " in " + place);
                } else if (name.matches("(VM|DFLY)_.*")) {
                    String hint = didYouMean(name, SETTINGS);
                    // other programs have such variables, too
                    if (place.endsWith("vm.env") ? warnings.size() < 10 : !hint.isEmpty()) {
                        warnings.add(name + " in " + place + " is no setting" + hint);
                    }
                }
            });
            return this;
        }

        @Override
        public String defaultValue(ArgSpec argument) {
            String value = values.get(argument.descriptionKey());
            return value == null ? null : value.replace("$", "$$"); // or picocli would replace ${env:NAME}
        }
    }
    // end shared:settings

    // shared:locale
    /** The encoding of arguments, paths and the environment; in Java 17 programs get theirs in the default one. */
    private static final String ENCODING = "UTF-8".equals(System.getProperty("sun.jnu.encoding"))
            ? Charset.defaultCharset().name() : System.getProperty("sun.jnu.encoding");

    /**
     * Why no command can run, or null: letters would not arrive as they were typed, or a vm.env is wrong. JBang
     * replaces what the locale cannot express by question marks before this script starts.
     */
    static String problem(Settings settings, List<String> args) {
        boolean utf8 = ENCODING.equals("UTF-8");
        String texts = String.join(" ", args) + settings.values.values() + System.getProperty("user.dir")
                + System.getenv("HOME") + System.getenv("PATH");
        boolean lost = utf8 ? texts.contains("\ufffd")
                : texts.chars().anyMatch(letter -> letter > 127) || String.join("", args).contains("?");
        return !lost ? settings.fault : "letters of an argument, a setting or a directory " + (utf8
                ? "are not in UTF-8: write them in UTF-8" : "may have become question marks, because the locale's "
                + "encoding is " + ENCODING + ", not UTF-8: set LC_ALL=C.UTF-8");
    }
    // end shared:locale

    // shared:vmenv
    /** The settings of the environment, of the user's own vm.env, and of the one in this directory, which wins. */
    static Settings readSettings(Map<String, String> environment, Path directory) {
        Settings settings = new Settings();
        Path here = directory.resolve("vm.env");
        try {
            Path own = Path.of(environment.getOrDefault("HOME", ""), ".go-synth", "vm.env");
            boolean hasOwn = own.isAbsolute() && Files.exists(own);
            if (hasOwn && !isOwn(own)) {
                throw new VmException(2, own + " can be changed by another user: chown and chmod go-w make it yours");
            } else if (hasOwn) {
                Map<String, String> mine = readFile(own);
                for (String name : List.of("VM_DIR", "VM_IMAGE", "VM_PHASES", "VM_PROJECT")) {
                    if (!mine.getOrDefault(name, "/").matches("[/~].*")) { // it would depend on where one stands
                        throw new VmException(2, name + " in " + own + " must begin with / or ~: " + mine.get(name));
                    }
                }
                settings.add(mine, own.toString());
            }
            if (Files.exists(here) && !(hasOwn && Files.isSameFile(own, here))) {
                Map<String, String> project = readFile(here);
                project.remove("VM_NET", "user"); // a project may take the network away, and not give it
                settings.values.remove("VM_PROJECT"); // the project is the directory with this file, or what it names
                settings.add(project, here.toString());
                requireHarmless(project, directory);
            }
        } catch (VmException | InvalidPathException | IOException wrong) {
            settings.fault = reason(wrong);
        }
        return settings.add(environment, "the environment");
    }
    // end shared:vmenv

    // shared:vmenvproject
    /** Refuses what a project's vm.env must not hold. It may be somebody else's, and must not harm this machine. */
    private static void requireHarmless(Map<String, String> settings, Path directory) throws IOException {
        for (String name : settings.keySet()) {
            if (SETTINGS.contains(name) && !PROJECT_SETTINGS.contains(name)) {
                throw new VmException(2, name + " is allowed only in your own ~/.go-synth/vm.env, as a project could "
                        + "harm this machine with it: if you wrote this line of vm.env, move it there, else delete it");
            }
        }
        String project = settings.getOrDefault("VM_PROJECT", ".");
        // normalized first, as when it is used: the system would follow a link before the ".." behind it
        Path named = project.startsWith("~") ? userPath(project) : directory.resolve(project).normalize();
        if (!Files.exists(named) || !named.toRealPath().startsWith(directory.toRealPath())) {
            throw new VmException(2, "VM_PROJECT in vm.env is " + project + ", which is no directory in or below that "
                    + "of vm.env: name it with --project, or move vm.env away and put VM_PROJECT into "
                    + "~/.go-synth/vm.env");
        }
    }
    // end shared:vmenvproject

    // shared:vmenvfile
    private static final String QUOTED = "'[^']*+'|\"(?:[^\"\\\\]|\\\\.)*+\"";
    /** A value ends before a # that follows a blank outside quotes. What follows a backslash is no quote. */
    private static final String VALUE = "(?:" + QUOTED + "|\\\\.?|[^'\"#]|(?<!\\s)#)*+";
    private static final Pattern LINE = Pattern.compile(
            "(?:(?:export\\s+)?([A-Za-z_]\\w*)\\s*=(" + VALUE + "))?(?:#.*)?");

    /** The lines KEY=value of a vm.env. Quotes are removed only if one pair encloses the whole value. */
    private static Map<String, String> readFile(Path file) throws IOException {
        if (!Files.isRegularFile(file) || Files.size(file) > 1 << 16) { // a pipe would never end
            throw new VmException(2, file + " is not a file of at most 64 KB");
        }
        Map<String, String> settings = new TreeMap<>();
        int number = 0;
        for (String line : new String(Files.readAllBytes(file), UTF_8).replaceFirst("^\ufeff", "").lines().toList()) {
            number++;
            Matcher found = LINE.matcher(line.strip());
            if (!found.matches() || line.contains("\0")) {
                throw new VmException(2, file + ", line " + number // not the text: a link may lead to a secret
                        + ": this is not KEY=value with every quote closed");
            } else if (found.group(1) != null) {
                String value = found.group(2).strip();
                settings.put(found.group(1), value.matches(QUOTED) ? value.substring(1, value.length() - 1) : value);
            }
        }
        settings.values().removeIf(String::isEmpty); // unset
        return settings;
    }
    // end shared:vmenvfile

    // shared:names
    static final List<String> SETTINGS = List.of("DFLY_VERSION", "VM_ACCEL", "VM_CPU", "VM_CPUS",
            "VM_CTL_CMD", "VM_DIR", "VM_DISK_CACHE", "VM_DISK_SIZE", "VM_DPORTS_CLONE", "VM_IMAGE", "VM_MEMORY",
            "VM_MIRROR", "VM_NAME", "VM_NET", "VM_PHASES", "VM_PROJECT", "VM_QEMU_ARGS", "VM_REMOTE_DIR",
            "VM_SETUP_CMD", "VM_SSH_PORT", "VM_SYNC_CMD", "VM_TIME_LIMIT");
    /** What the vm.env of a project may set: nothing that runs a program here or names a file outside the project. */
    private static final Set<String> PROJECT_SETTINGS = Set.of("DFLY_VERSION", "VM_CPUS", "VM_DISK_SIZE",
            "VM_DPORTS_CLONE", "VM_MEMORY", "VM_NAME", "VM_NET", "VM_PROJECT", "VM_REMOTE_DIR", "VM_TIME_LIMIT");
    // end shared:names

    // shared:origin
    /** What gave an option its value: the setting and where it stands, or the option itself. */
    static String originOf(CommandSpec command, String name) {
        Settings settings = (Settings) command.root().commandLine().getDefaultValueProvider();
        OptionSpec option = command.findOption(name);
        String value = settings.values.get(option.descriptionKey());
        return value != null && value.equals(option.getValue()) ? settings.origins.get(option.descriptionKey()) : name;
    }
    // end shared:origin

    // shared:nearest
    /** " (did you mean start?)" if known words differ by at most two letters, else "". */
    static String didYouMean(String word, Collection<String> known) {
        int letters = word.replaceFirst("^-+", "").length();
        String near = known.stream().filter(other -> letters > 2 && letters < 50 && isNear(word, other, 2))
                .collect(Collectors.joining(" or "));
        return near.isEmpty() ? "" : " (did you mean " + near + "?)";
    }

    /** Whether at most this many letters differ, are missing, or are too many. */
    static boolean isNear(String word, String other, int most) {
        if (word.isEmpty() || other.isEmpty() || most < 0) {
            return word.length() + other.length() <= most;
        }
        String a = word.substring(1);
        String b = other.substring(1);
        return word.charAt(0) == other.charAt(0) ? isNear(a, b, most)
                : isNear(a, b, most - 1) || isNear(a, other, most - 1) || isNear(word, b, most - 1);
    }
    // end shared:nearest

    // shared:values
    /** The value that an option was given, if it looks as it should. */
    static String matching(String value, String pattern, String what) {
        if (!value.matches(pattern)) {
            throw new TypeConversionException("'" + value + "' is not " + what);
        }
        return value;
    }

    /** What becomes part of a file's name. NAME-clean.qcow2 is a disk of NAME, so no name ends in -clean. */
    static final class FileName implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "(?!.*-clean$)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", "a name of at most 64 letters, "
                    + "digits, '.', '_' and '-' that does not begin with '.' or '-' or end in -clean");
        }
    }
    // end shared:values

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is $HOME, a relative one starts here. */
    static Path userPath(String value) {
        String home = System.getenv().getOrDefault("HOME", "");
        if (!value.startsWith("~")) {
            return Path.of(value).toAbsolutePath().normalize();
        } else if (!value.matches("~(/.*)?")) {
            throw new VmException(2, value + ": only ~/ stands for a home directory; write the full path instead");
        } else if (!home.startsWith("/")) {
            throw new VmException(69, value + " cannot be found, as HOME is no full path: write the full path");
        }
        return Path.of(home + value.substring(1)).normalize();
    }
    // end shared:paths

    // shared:running
    /**
     * Whether a VM's QEMU lives. It holds a lock on its pid file as long as it does; the kernel takes the lock away
     * even after kill -9. One thread at a time, because closing the file drops every lock that this JVM holds on it.
     */
    static synchronized boolean isRunning(Path qemuPid) {
        try (FileChannel file = FileChannel.open(qemuPid, StandardOpenOption.READ);
                FileLock ours = file.tryLock(0, Long.MAX_VALUE, true)) { // a shared lock, for a moment
            return ours == null;
        } catch (NoSuchFileException none) {
            return false;
        } catch (IOException noLocks) {
            throw new VmException(69, "it is unknown whether the VM runs, as " + qemuPid + " cannot be locked ("
                    + reason(noLocks)
                    + "): keep VM_DIR on a local file system, owned by you");
        }
    }
    // end shared:running

    // shared:runningvm
    /** What NAME.pid tells of a running VM; null if it does not run, or not yet. */
    static JsonObject runningVm(Path vmDir, String name) throws IOException {
        try {
            return isRunning(vmDir.resolve(name + ".qemu-pid")) ? json(Files.readString(vmDir.resolve(name + ".pid")))
                    : null;
        } catch (NoSuchFileException notYet) {
            return null;
        }
    }
    // end shared:runningvm

    // shared:known
    /** Why a VM does not run: there is none of this name (69), or nobody has started it (3). */
    static VmException notRunning(Path vmDir, String name) {
        boolean known = Stream.of("-clean.qcow2", ".qcow2", ".qemu-pid")
                .anyMatch(end -> Files.exists(vmDir.resolve(name + end)));
        return known ? new VmException(3, "VM " + name + " is not running; start it: vm-ctl start")
                : new VmException(69, "there is no VM " + name + " in " + vmDir + ": vm-ctl list names the VMs "
                        + "there, vm-auto-install makes one");
    }
    // end shared:known

    // shared:standstill
    /**
     * Why a guest does not go on, by QEMU's word for its state ("unknown": QEMU gave none), and what to do; null if it
     * goes on.
     */
    static String standstill(String state, long pid) {
        return switch (state) {
            case "running", "inmigrate", "prelaunch" -> null;
            case "unknown" -> "QEMU (pid " + pid + ") does not answer: if it was stopped, kill -CONT " + pid
                    + " resumes it; vm-ctl stop --force ends it";
            case "internal-error" -> "an internal error of QEMU stopped the guest: vm-ctl restart --force boots it";
            case "io-error" -> "the disk of this machine is full, so the guest is paused: free some space, then "
                    + "vm-ctl start";
            default -> "the guest does not run (" + state + "): vm-ctl start resumes it";
        };
    }
    // end shared:standstill

    // shared:runstate
    private static final Pattern STATUS = Pattern.compile("\"return\": \\{[^}]*\"status\": \"([a-z-]+)\"");

    /**
     * What the guest does, by QEMU's word ("running", "paused", ...); "unknown" if QEMU does not tell within 5 s. A
     * QEMU that was stopped accepts a connection and never responds. So the connection is closed at the limit, which
     * ends the wait. QEMU serves one connection at a time: whoever holds another one longer makes this one "unknown".
     */
    static String runState(Path qmp) {
        try (SocketChannel channel = closedAfter5s(SocketChannel.open(StandardProtocolFamily.UNIX))) {
            channel.connect(UnixDomainSocketAddress.of(qmp));
            channel.write(UTF_8.encode("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n"));
            Scanner responses = new Scanner(channel, UTF_8);
            return responses.findWithinHorizon(STATUS, 1 << 20) != null ? responses.match().group(1) : "unknown";
        } catch (IOException noResponse) { // QEMU ends, or was stopped
            return "unknown";
        }
    }

    private static SocketChannel closedAfter5s(SocketChannel channel) {
        CompletableFuture.delayedExecutor(5, TimeUnit.SECONDS).execute(() -> {
            try {
                channel.close();
            } catch (IOException closed) {
                // which is all that is wanted
            }
        });
        return channel;
    }
    // end shared:runstate

    // shared:gueststate
    /** How long a snapshot may pause the guest. A test shortens it. */
    static Duration snapshotPause = Duration.ofSeconds(60);

    /**
     * A running VM: its record, QEMU's word for what the guest does, and why the guest is paused (null if it goes
     * on).
     */
    record GuestState(JsonObject vm, String word, String why) {
        /** Null if the VM does not run. */
        static GuestState of(Path vmDir, String vmName) {
            try {
                JsonObject vm = runningVm(vmDir, vmName);
                if (vm == null) {
                    return null;
                } else if (vm.getLong("pid") < 1) {
                    throw new IOException("it names no pid");
                }
                String word = runState(Path.of(vm.getString("qmp", vmDir.resolve(vmName + ".qmp").toString())));
                boolean ended = word.equals("unknown") && !isRunning(vmDir.resolve(vmName + ".qemu-pid"));
                return ended ? null : new GuestState(vm, word, standstill(word, vm.getLong("pid")));
            } catch (IOException damaged) {
                throw new VmException(69, "VM " + vmName + " runs, but " + vmDir.resolve(vmName + ".pid")
                        + " cannot be read ("
                        + reason(damaged) + "): vm-ctl stop --force, then vm-ctl start, writes it again");
            }
        }

        /** The standstill as a failure: of this machine's disk (1), or of the VM. */
        VmException failure() {
            return new VmException(word.equals("io-error") ? 1 : 69, why);
        }
    }
    // end shared:gueststate

    // shared:awaitguest
    /** Returns the VM's record as soon as its guest goes on. Only what may be a snapshot's pause is waited for. */
    static JsonObject awaitGuest(Path vmDir, String vmName, BooleanSupplier interrupted) {
        for (long start = System.nanoTime(); !interrupted.getAsBoolean(); LockSupport.parkNanos(200_000_000)) {
            GuestState guest = GuestState.of(vmDir, vmName);
            if (guest == null) {
                throw notRunning(vmDir, vmName);
            } else if (guest.why() == null) {
                return guest.vm();
            } else if (!Set.of("paused", "finish-migrate", "postmigrate").contains(guest.word())
                    || System.nanoTime() - start > snapshotPause.toNanos()) {
                throw guest.failure();
            }
        }
        throw new VmException(130, "interrupted");
    }
    // end shared:awaitguest

    // shared:directory
    /** VM_DIR, if it can be used; it need not exist. */
    static Path vmDirectory(Path directory) {
        if (directory.toString().matches("(?s).*(%|\\$\\{).*")) { // what OpenSSH 9.9 expands in an Include line
            throw new VmException(2, "VM_DIR must not contain % or ${, which ssh may replace: choose another "
                    + "directory than " + directory + " with --vm-dir or VM_DIR");
        }
        return Files.notExists(directory) ? directory : privateDirectory(directory);
    }

    /**
     * A directory in which no other user can replace keys and disks; of a link the target counts. If it is missing, it
     * is made with its parents, for this user alone. One that exists is never changed.
     */
    static Path privateDirectory(Path directory) {
        String another = ": choose another directory with --vm-dir or VM_DIR";
        try {
            if (Files.notExists(directory)) {
                Files.createDirectories(directory, PosixFilePermissions.asFileAttribute(
                        PosixFilePermissions.fromString("rwx------")));
            }
            int mode = (int) Files.getAttribute(directory, "unix:mode") & 07777;
            String owner = Files.getOwner(directory).getName();
            if (!Files.isDirectory(directory)) {
                throw new VmException(69, directory + " is not a directory" + another);
            } else if (isOwn(directory)) {
                return directory;
            }
            String quoted = "'" + directory.toString().replace("'", "'\\''") + "'";
            throw new VmException(69, directory + " belongs to " + owner + " and has the mode "
                    + Integer.toOctalString(mode) + ", so another user could replace keys and disks in it" + another
                    + ((mode & 01000) != 0 ? "" : ", or run this as " + owner // else it is like /tmp
                    + ", or make it yours alone: sudo chown -R $(id -u) " + quoted + "; chmod go-w " + quoted));
        } catch (IOException refused) {
            throw new VmException(69, directory + " cannot be used (" + reason(refused) + ")" + another);
        }
    }
    // end shared:directory

    // shared:owner
    /** Whether this user owns a file and nobody else can write to it. Ids are compared: a user may have no name. */
    static boolean isOwn(Path file) throws IOException {
        Path process = Path.of("/proc/self/stat");
        Path home = Path.of(System.getProperty("user.home")); // where there is no /proc; from the user database
        Object user = Files.getAttribute(Files.exists(process) ? process : home, "unix:uid");
        int mode = (int) Files.getAttribute(file, "unix:mode");
        return Files.getAttribute(file, "unix:uid").equals(user) && (mode & 02) == 0
                && ((mode & 020) == 0 || hasPrivateGroup(file));
    }

    /** Whether a file's group is its owner's alone, as on systems where each user has a group and the umask 002. */
    static boolean hasPrivateGroup(Path file) throws IOException {
        String owner = Files.getOwner(file).getName();
        return Files.getAttribute(file, "posix:group").toString().equals(owner) && !owner.equals("root")
                && new String(Files.readAllBytes(Path.of("/etc/group")), UTF_8).lines()
                .anyMatch(line -> line.startsWith(owner + ":") && line.endsWith(":")); // no members after the colon
    }
    // end shared:owner

    // shared:sibling
    /**
     * The command that runs another of these scripts: what its setting says, else its jar beside the running one, else
     * its source by JBang, in a directory that only this user can change, and that neither holds the project nor is in
     * it; null if there is none.
     */
    static List<String> sibling(String setting, String script, Path directory, Path project) throws IOException {
        if (setting != null && !setting.isBlank()) {
            return split(setting);
        }
        Path running = Path.of(System.getProperty("java.class.path")).toAbsolutePath(); // by java -jar: the jar alone
        Path jar = running.resolveSibling(script + ".jar");
        if (Files.isRegularFile(running) && Files.isRegularFile(jar)) {
            return List.of(Path.of(System.getProperty("java.home"), "bin", "java").toString(), "-jar", jar.toString());
        }
        Path untrusted = Files.exists(project) ? project.toRealPath() : project;
        for (Path above = directory; above != null; above = above.getParent()) {
            Path source = above.resolve(script + ".java");
            boolean trusted = Files.isRegularFile(source) && isOwn(source) && isOwn(above);
            Path tools = above.toRealPath();
            if (trusted && !tools.startsWith(untrusted) && !untrusted.startsWith(tools)) {
                return List.of("jbang", source.toString());
            }
        }
        return null;
    }
    // end shared:sibling

    // shared:json
    /** The JSON object in a text; an IOException if there is none. */
    static JsonObject json(String text) throws IOException {
        try {
            return JsonParser.object().from(text);
        } catch (JsonParserException | StackOverflowError garbled) { // the latter: nested very deeply
            throw new IOException("not JSON: " + text, garbled);
        }
    }
    // end shared:json

    // shared:split
    /** The words of a setting, split like a shell does it: quotes and backslashes count, nothing else is expanded. */
    static List<String> split(String text) {
        String piece = QUOTED + "|\\\\.|[^\\s'\"\\\\]";
        if (!text.matches("(?s)(?:" + piece + "|\\s)*+")) {
            throw new VmException(2, "a quote is not closed: " + text);
        }
        Pattern quoted = Pattern.compile("(?s)'([^']*)'|\"((?:[^\"\\\\]|\\\\.)*+)\"|\\\\(.)");
        return Pattern.compile("(?s)(?:" + piece + ")++").matcher(text).results()
                .map(word -> quoted.matcher(word.group()).replaceAll(part -> Matcher.quoteReplacement(
                        part.group(1) != null ? part.group(1) : part.group(3) != null ? part.group(3)
                        : part.group(2).replaceAll("\\\\([\"\\\\$`])", "$1")))).collect(Collectors.toList());
    }
    // end shared:split
}
