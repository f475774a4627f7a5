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
import com.grack.nanojson.JsonWriter;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.Reader;
import java.io.Writer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.SocketChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.xml.stream.XMLOutputFactory;
import javax.xml.stream.XMLStreamException;
import javax.xml.stream.XMLStreamWriter;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.IDefaultValueProvider;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ParseResult;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Builds a project and runs its test suites in the running VM, and says whose fault it is when they do not pass.
 * In order:
 * <ol>
 * <li>--fresh runs {@code vm-ctl restore}, --sync (and --fresh) {@code vm-sync}, as processes.
 * <li>The build runs once, then every suite, in VM_REMOTE_DIR, over the shared connection of VM_DIR/ssh_config. In the
 *     guest a
 * sh supervisor starts the command; at the time limit, on Ctrl-C, or when the connection ends it takes the goroutine
 * dumps
 *     of the Go test binaries and kills all that the suite started. A doas suite is followed by a leak check.
 * <li>A plain {@code go test} gets -json. Its events, whoever prints them, are shown as {@code go test -v} would; all
 *     other output
 *     passes through byte for byte.
 * <li>A summary, the --junit and --json files, and the verdict as exit code.
 * </ol> Reads {@code <name>.pid}, the lock on {@code <name>.qemu-pid}, {@code ssh_config} (ssh does), {@code
 * <name>.console.log}; asks QEMU over {@code <name>.qmp} for the guest's state; writes {@code
 * <name>.test/<suite>.json}, the result and timings of its last run. {@code <name>.test/lock} keeps a second vm-test
 * away from the VM.
 */
@Command(name = "vm-test", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1",
        usageHelpWidth = 120,
        descriptionHeading = "%n", parameterListHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        customSynopsis = {"vm-test [OPTIONS] SUITE... [-- ARG...]", "       vm-test list",
            "       vm-test run [OPTIONS] -- CMD [ARG...]"},
        description = {"Build a project and run its tests in the running VM, and give a verdict", "",
            "The build runs once, then every suite, even if an earlier one fails, in VM_REMOTE_DIR in the guest. A "
                + "summary tells what failed and why, and what was skipped. At the time limit, on Ctrl-C, or when the "
                + "connection ends, all that a suite started is killed. VM_TEST_<SUITE> is a suite's command, a new "
                + "name a new suite; VM_TEST_BUILD=true skips the build.", "",
            "It reads VM_DIR/ssh_config, which vm-ctl start writes, and writes VM_DIR/NAME.test/SUITE.json, the result "
                + "and timings of a suite's last run. An option beats the environment, which beats vm.env (KEY=VALUE "
                + "lines) in the working directory, which beats the default."},
        footer = {"  vm-test unit                              # build, then one suite",
            "  vm-test unit -- -run TestX ./pkg/...      # with arguments for its command",
            "  vm-test --sync all --junit all.xml        # sync, build, three suites, a report",
            "  VM_TEST_VET='go vet ./...' vm-test vet    # a suite of your own"},
        exitCodeList = {"0:all passed",
            "1:a suite or the build failed or left something behind, a report is cut off, or this machine's disk is "
                + "full",
            "2:wrong usage", "3:the VM is not running",
            "69:the VM or the connection was lost, or something needed is not available (ssh, vm-ctl, vm-sync, the "
                + "lock)",
            "124:a time limit", "130, 143:interrupted"})
final class VmTest implements Callable<Integer> {

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
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

    @Option(names = "--ctl-cmd", descriptionKey = "VM_CTL_CMD", defaultValue = "jbang vm-ctl",
            paramLabel = "CMD", description = "How --fresh runs vm-ctl (VM_CTL_CMD; default: ${DEFAULT-VALUE}).")
    String ctlCommand;

    @Option(names = "--sync-cmd", descriptionKey = "VM_SYNC_CMD", defaultValue = "jbang vm-sync",
            paramLabel = "CMD", description = "How --sync and --fresh run vm-sync (VM_SYNC_CMD; default: "
                    + "${DEFAULT-VALUE}).")
    String syncCommand;

    @Option(names = "--sync", description = "Run vm-sync first.")
    boolean sync;

    @Option(names = "--fresh", description = "Run vm-ctl restore first, which brings the clean state back, then "
            + "vm-sync.")
    boolean fresh;

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

    @Option(names = "--json", paramLabel = "FILE", description = "Write what go test -json said, one event a line.")
    Path json;

    enum Leaks { fail, warn, ignore }

    @Option(names = "--leaks", defaultValue = "fail", paramLabel = "MODE",
            description = "fail, warn or ignore: what follows from mounts, "
            + "processes and files under /build that a doas suite leaves behind (default: ${DEFAULT-VALUE}).")
    Leaks leaks;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    @Parameters(paramLabel = "SUITE",
            description = "Suites, see 'vm-test list'. What follows -- is appended to their commands; "
            + "packages among it take the place of those that a go test names.")
    List<String> words = new ArrayList<>();

    @Spec
    CommandSpec spec;

    private static final Duration STOPPING = Duration.ofSeconds(60); // the supervisor takes 20 s at most
    /** How the guest's output is read and written: a file gets every byte as it is, a terminal characters. */
    static final Charset WIRE = terminal(1) || terminal(2) ? UTF_8 : ISO_8859_1;

    private final Settings settings;
    Path vmDir;
    Path project;
    private final CompletableFuture<Void> finished = new CompletableFuture<>();
    private volatile boolean interrupted;
    private volatile Process sibling;
    private FileChannel lock; // held until this process ends

    VmTest(Settings settings) {
        this.settings = settings;
    }

    public static void main(String... args) {
        replaceClosedStreams();
        CommandLine line = commandLine();
        VmTest command = line.getCommand();
        Runtime.getRuntime().addShutdownHook(new Thread(command::interrupt));
        int code = line.execute(args);
        command.finished.complete(null);
        exit("vm-test", code);
    }

    static CommandLine commandLine() {
        return commandLine(readSettings(System.getenv(), Path.of("")));
    }

    static CommandLine commandLine(Settings settings) {
        CommandLine line = commandLine(new VmTest(settings), settings);
        CommandSpec list = line.getSubcommands().get("list").getCommandSpec(); // it goes by none of the options
        List.copyOf(list.options()).stream().filter(OptionSpec::inherited).forEach(list::remove);
        line.getSubcommands().get("run").setStopAtPositional(true); // the rest is passed to the command
        return line;
    }

    /**
     * On Ctrl-C or TERM, before this process ends: what runs in the guest is stopped, and the summary still written.
     */
    private void interrupt() {
        interrupted = true;
        if (!finished.isDone()) {
            System.err.println("vm-test: interrupted; stopping what runs in the guest (within " + STOPPING.toSeconds()
                    + " s)");
            Stream.ofNullable(sibling).forEach(Process::destroy);
            finished.completeOnTimeout(null, STOPPING.toSeconds() + 10, TimeUnit.SECONDS).join();
        }
    }

    @Override
    public Integer call() throws Exception {
        List<String> given = spec.commandLine().getParseResult().originalArgs();
        int named = words.size() - (given.contains("--") ? given.size() - 1 - given.indexOf("--") : 0);
        List<String> names = words.subList(0, named);
        if (names.isEmpty()) {
            throw new ParameterException(spec.commandLine(), "which suite? 'vm-test list' names them");
        }
        Map<String, Suite> table = suites(settings);
        List<Suite> chosen = choose(table, names);
        takeVm();
        if (fresh) {
            runSibling(ctlCommand + " restore");
        }
        if (sync || fresh || names.stream().anyMatch(name -> table.get(name).parts().contains("--sync"))) {
            runSibling(syncCommand);
        }
        List<Report> done = new ArrayList<>();
        List<Path> cutOff = new ArrayList<>();
        try (PrintWriter events = new PrintWriter(json == null ? Writer.nullWriter() : Files.newBufferedWriter(json))) {
            for (Suite suite : chosen) {
                boolean build = suite.name().equals("build");
                Report report = runSuite(suite, build ? List.of() : words.subList(named, words.size()), events);
                done.add(report);
                spec.commandLine().getOut().print(report.summary());
                spec.commandLine().getOut().flush();
                if (build && report.verdict != Verdict.PASSED || report.verdict.compareTo(Verdict.INTERRUPTED) >= 0) {
                    break;
                }
            }
            if (events.checkError()) { // it throws nothing: the verdict comes first
                cutOff.add(json);
            }
        }
        if (junit != null) {
            try (PrintWriter file = new PrintWriter(Files.newBufferedWriter(junit))) {
                junit(done, vmName, file);
                if (file.checkError()) {
                    cutOff.add(junit);
                }
            }
        }
        System.err.println("vm-test: " + done.stream().map(report -> report.said()
                + (report.standstill == null ? "" : ": " + report.standstill)).collect(Collectors.joining("; ")));
        int code = done.stream().map(report -> report.verdict).max(Comparator.naturalOrder()).orElseThrow().exitCode;
        cutOff.forEach(file -> System.err.println("vm-test: cannot write all of " + file
                + ": make room, or choose another place"));
        return code == 0 && !cutOff.isEmpty() ? 1 : code;
    }

    @Command(name = "list", customSynopsis = "vm-test list",
            description = {"Show the suites, their commands, and the settings that gave them.", "",
                "Reads the environment and vm.env, and nothing of the VM."},
            footer = {"  vm-test list", "  VM_TEST_VET='go vet ./...' vm-test list"},
            exitCodeList = {"0:done", "2:wrong usage"})
    int list() {
        refuseSuites();
        suites(settings).values().forEach(suite -> spec.commandLine().getOut().printf("%-18s %s%s%n", suite.name(),
                suite.command() + String.join(" ", suite.parts()), suite.setting().isEmpty() ? "" : "  ("
                + suite.setting() + ")"));
        return 0;
    }

    @Command(name = "run", customSynopsis = "vm-test run [OPTIONS] CMD [ARG...]",
            description = {"Run a command in VM_REMOTE_DIR in the guest, as root, without input; its exit code is the "
                    + "exit code.", "",
                "Several words are a command and its arguments, which reach it as they are. A single word is a line "
                    + "for the guest's sh. "
                    + "At the time limit, on Ctrl-C, or when the connection ends, all that it started is killed."},
            footer = {"  vm-test run ./scripts/capture-bsd-fixtures.sh",
                "  vm-test run --env GOFLAGS=-v --timeout 5m go vet ./...",
                "  vm-test run 'gmake check 2>&1 | tail'"},
            exitCodeList = {"N:what the command in the guest ended with", "2:wrong usage", "3:the VM is not running",
                "69:the VM or the connection was lost, or something needed is not available (ssh, the lock)",
                "124:a time limit", "130, 143:interrupted"})
    int run(@Parameters(arity = "1..*", paramLabel = "CMD",
            description = "The command and its arguments, or one line for sh. Everything after the command's "
                    + "name is passed to it.")
            List<String> command) throws Exception {
        refuseSuites();
        takeVm();
        GuestRun guest = new GuestRun(command.size() == 1 ? command.get(0) : shellQuoted(command), false);
        Verdict verdict = guest.run(text -> print(1, text), text -> print(2, text));
        return switch (verdict) {
            case LOST -> throw new VmException(69, guest.trouble);
            case TIMED_OUT -> throw new VmException(124, "the command did not end within " + timeout.toSeconds() + " s"
                    + (guest.standstill == null ? " and was killed" : ": " + guest.standstill));
            case INTERRUPTED -> verdict.exitCode;
            default -> guest.code;
        };
    }

    /** Suites and their options in front of a subcommand would do nothing, and its 0 be taken for theirs. */
    private void refuseSuites() {
        List<OptionSpec> given = spec.commandLine().getParseResult().matchedOptions();
        if (!words.isEmpty() || given.stream().anyMatch(option -> option.scopeType() == ScopeType.LOCAL)) {
            throw new ParameterException(spec.commandLine(),
                    "a subcommand takes no suites and none of the options for suites alone");
        }
    }

    // Suites

    private static final String SUITES = """
            build              gmake build
            unit               go test -v -short ./...
            integration        go test -v -tags=integration ./...
            integration-e2e    go test -v -tags=integration ./integration_e2e_test.go
            build-integration  go test -v ./build/ -run TestIntegration
            build-cancellation go test -v ./build/ -run TestIntegration_BuildCancellation
            phase4             doas go test -v ./internal/worker/...
            e2e                go test -v -tags=e2e ./...
            procctl            doas go test -v -tags=integration -run TestIntegration_Proc ./environment/bsd/
            procctl-reaping    doas go test -v -tags="dragonfly integration" \
            -run TestIntegration_ProcctlReaping ./environment/bsd/
            procfind           doas go test -v -tags=integration -run TestIntegration_ProcfindReaping ./environment/bsd/
            orphans            doas go test -v -tags=integration \
            -run TestIntegration_OrphanedProcesses ./environment/bsd/
            fixtures           go test -v ./stats/ -run Fixture
            """;

    /** A suite: its command, or what it stands for; and the setting that gave it, or "". */
    record Suite(String name, String command, List<String> parts, String setting) {
        /** A command line whose output goes nowhere but to its stdout: no pipe, redirection or subshell. */
        private static final Pattern PLAIN = Pattern.compile(
                "(?s)(?:'[^']*+'|\"[^\"]*+\"|\\\\.|\\|\\||2>&1|[^2|<>`()'\"\\\\]++|2)*+");
        /** A go test at the start of one of its commands; quoted text is passed over. */
        private static final Pattern GO_TEST = Pattern.compile(
                "'[^']*'|\"[^\"]*\"|((?:^|[;&|\n])\\s*(?:(?:doas|env|exec|\\w+=\\S*)\\s+)*"
                + "(?:[^\\s;&|]*/)?go\\s+test)(?=\\s|$)");
        /** What names packages or files among the arguments of go test, unless it is the value of a flag. */
        private static final Pattern PACKAGES = Pattern.compile(
                "(?<!\\s--?(?:run|skip|bench|fuzz|tags|exec|o|C|trace|outputdir|\\w{1,9}profile))"
                        + "\\s(?:\\.|\\.{0,2}/\\S*|[^-\\s]\\S*(?:\\.\\.\\.|\\.go))(?=\\s|$)");

        /**
         * What the guest's sh is given: the command with arguments; a go test with -json, and with their packages if
         * they name some.
         */
        String guestCommand(List<String> arguments) {
            int go = command.lastIndexOf("go test");
            String its = " " + String.join(" ", arguments.stream().takeWhile(word -> !word.equals("-args")).toList());
            String kept = go >= 0 && PACKAGES.matcher(its).find()
                    ? command.substring(0, go) + PACKAGES.matcher(command.substring(go)).replaceAll("") : command;
            String whole = arguments.isEmpty() ? kept : kept + " " + shellQuoted(arguments);
            return !PLAIN.matcher(whole).matches() ? whole : GO_TEST.matcher(whole)
                    .replaceAll(found -> Matcher.quoteReplacement(found.group()
                            + (found.group(1) == null ? "" : " -json")));
        }
    }

    /** The suites by name: the built-in ones, changed and extended by VM_TEST_<SUITE>. */
    static Map<String, Suite> suites(Settings settings) {
        Map<String, Suite> table = new LinkedHashMap<>();
        SUITES.lines().map(line -> line.split(" +", 2)).forEach(row ->
                table.put(row[0], new Suite(row[0], row[1], List.of(), "")));
        table.put("all", new Suite("all", "", List.of("unit", "integration", "phase4"), ""));
        table.put("quick", new Suite("quick", "", List.of("--sync", "phase4"), ""));
        Stream.concat(settings.environment.keySet().stream(), settings.file.keySet().stream())
                .filter(key -> key.matches("VM_TEST_[A-Z0-9_]+") && settings.get(key) != null).distinct().sorted()
                .forEach(key -> {
                    String name = key.substring("VM_TEST_".length()).toLowerCase(Locale.ROOT).replace('_', '-');
                    if (Set.of("list", "run").contains(name)) {
                        throw new VmException(2, key + ": '" + name + "' is a subcommand: give the suite another name");
                    }
                    table.put(name, new Suite(name, settings.get(key), List.of(), key));
                });
        return table;
    }

    /** The suites to run, each once, the build first. */
    static List<Suite> choose(Map<String, Suite> table, List<String> names) {
        Set<String> chosen = new LinkedHashSet<>(List.of("build"));
        for (String name : names) {
            if (!table.containsKey(name)) {
                throw new VmException(2, "there is no suite '" + name + "'" + didYouMean(name, known(table))
                        + ", only " + String.join(", ", table.keySet())
                        + "; a setting VM_TEST_<SUITE> makes another");
            }
            chosen.addAll(table.get(name).parts().isEmpty() ? List.of(name) : table.get(name).parts());
        }
        if (!names.contains("build") && List.of("true", ":").contains(table.get("build").command())) {
            chosen.remove("build"); // VM_TEST_BUILD=true: there is nothing to build
        }
        return chosen.stream().filter(table::containsKey).map(table::get).toList();
    }

    private static Set<String> known(Map<String, Suite> table) {
        Set<String> known = new HashSet<>(table.keySet());
        known.addAll(List.of("list", "run"));
        return known;
    }

    /** A command as a person could paste it into a shell. */
    static String shellQuoted(List<String> words) {
        return words.stream().map(word -> word.matches("[A-Za-z0-9_@%+=:,./-]+") ? word : "'"
                + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    // Before the suites

    /**
     * Checks what can be checked before anything runs, and keeps other vm-tests away: they would kill each other's
     * processes.
     */
    private void takeVm() throws IOException {
        project = userPath(projectOption);
        environment.keySet().stream().filter(name -> !name.matches("[A-Za-z_]\\w*")).forEach(name -> {
            throw new VmException(2, "--env: '" + name + "' is not the name of a variable");
        });
        Stream.concat(Stream.ofNullable(junit), Stream.ofNullable(json)).forEach(file -> {
            if (Files.isDirectory(file) || !Files.isWritable(file.toAbsolutePath().getParent())) {
                throw new VmException(2, "cannot write " + file
                        + ": name a file in a folder that exists and is writable");
            }
        });
        vmDir = vmDirectory(userPath(dirOption));
        if (!fresh || !Files.isDirectory(vmDir)) { // else vm-ctl restore starts it
            awaitGuest(vmDir, vmName, () -> interrupted);
        }
        lock = FileChannel.open(privateDirectory(vmDir.resolve(vmName + ".test")).resolve("lock"),
                StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        if (lock.tryLock() == null) {
            throw new VmException(69, "another vm-test is at work on VM " + vmName
                    + ": wait for it, or stop it, and try again");
        }
        Stream.ofNullable(settings.get("NO_COLOR")).forEach(value -> environment.putIfAbsent("NO_COLOR", value));
    }

    /**
     * While a suite runs, a lock that cannot be asked for counts as held: the suite's result is not to be lost for
     * that.
     */
    private boolean alive() {
        try {
            return isRunning(vmDir.resolve(vmName + ".qemu-pid"));
        } catch (VmException unknown) {
            return true;
        }
    }

    private String guestDirectory() {
        // of /: vm-sync refuses "/root/"
        return remoteDir != null ? remoteDir : "/root/" + Path.of("/").relativize(project).getFileName();
    }

    /** vm-ctl or vm-sync, as a process with the same settings and its own time limits; what it says goes to stderr. */
    private void runSibling(String command) throws IOException, InterruptedException {
        ProcessBuilder builder = new ProcessBuilder("sh", "-c", "exec " + command);
        builder.environment().putAll(
                Map.of("VM_DIR", vmDir.toString(), "VM_NAME", vmName, "VM_PROJECT", project.toString(), "VM_REMOTE_DIR",
                        guestDirectory()));
        sibling = start(builder.redirectErrorStream(true));
        sibling.getOutputStream().close();
        sibling.getInputStream().transferTo(System.err);
        int code = sibling.waitFor();
        if (code != 0) {
            throw new VmException(Set.of(1, 2, 3, 124, 130, 143).contains(code) ? code : 69,
                    "no suite was run: '" + command + "' failed with exit code " + code);
        }
    }

    private Process start(ProcessBuilder builder) {
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

    // One command in the guest

    /**
     * The guest's side, in plain sh: no timeout(1), setsid(1) or cgroups there. It comes on stdin, whose next line or
     * end is the order to stop. The suite's processes are those that were not there before and descend from it, or
     * whose forefather init adopted (it left the process group, or its parent died). Out of reach: what an old daemon
     * (cron, at) starts for the suite. Taken for the suite's: what another daemonizes meanwhile. The last word is
     * "exit", on both streams: what came before it has all arrived.
     */
    static final String SUPERVISOR = """
            exec 3>&2 4<&0 </dev/null 2>/dev/null
            trap '' HUP INT QUIT TERM PIPE
            say() { printf '%s\\n' "$mark$*" >&3; }
            nap() { sleep 0.2; }
            table() { ps -axww -o pid,ppid,stat,command; }
            state() { # processes; with the leak check also mounts and files, each after an empty line
                table
                [ -z "$leaks" ] || { echo; mount; echo; [ ! -d /build ] || find /build -xdev; }
            }
            # What is there and was not before: "process PID COMMAND" if its ancestor is the pid $1 or init;
            # of the output of $2 the rest.
            mine() {
                "${2:-table}" | awk -v top="$1" -v watcher="$watcher" -v before="$d/before" '
                    function process(line,  f) { split(line, f, " "); return f[1] + 0 }
                    function say(line) { if (said++ < 200) print line }
                    BEGIN {
                        while ((getline line < before) > 0) {
                            known = 1
                            if (line == "" && was < 2) was++
                            else if (was) old[was, line] = 1
                            else old[process(line)] = 1
                        }
                        if (!known) old[top] = 1 # the suite emptied /tmp: of the others nothing is known
                    }
                    /^$/ && now < 2 { now++; next }
                    now { if (!((now, $0) in old)) rest[++n] = (now == 1 ? "mount " : "file ") $0; next }
                    process($0) > 0 {
                        p = process($0); parent[p] = $2; zombie[p] = $3 ~ /^Z/
                        sub(/^ *[0-9]+ +[0-9]+ +[^ ]+ +/, ""); name[p] = $0
                    }
                    END {
                        for (p in parent) if (parent[p] == 1 && name[p] ~ /^[^ ]*(sshd|getty|cron)/) old[p] = 1
                        for (p in parent) {
                            for (q = p; q in parent && !(q in old) && q != watcher; q = parent[q]) ;
                            if (!(p in old) && !zombie[p] && (q == top || known && q == 1))
                                say("process " p " " name[p])
                        }
                        for (i = 1; known && i <= n; i++) say(rest[i])
                    }'
            }
            pids() { mine $$ | awk "$1 { print \\$2 }"; }
            tests() { pids '$3 ~ /\\.test$/ && / -test\\./'; }
            report() { while read -r l; do say "leak $l"; done; }
            gone() { # up to $1 naps until $2 finds nothing
                n=$1
                while [ $n -gt 0 ] && [ -n "$($2)" ]; do nap; n=$((n - 1)); done
            }
            stop() {
                rm -f "$d/watcher" # a full disk allows that; a file made would be refused
                # The goroutine dump; go test then ends by itself, unless something holds its pipes open.
                kill -QUIT $(tests)
                gone 40 tests
                gone 10 pids
                n=0
                while nap; [ $n -lt 20 ] && [ -n "$(pids)" ]; do kill -KILL $(pids); n=$((n + 1)); done
                mine $$ | report
            }
            cd "$dir" || { say nowhere; exit; }
            d=$(mktemp -d /tmp/vm-test.XXXXXX) || { say full; exit; }
            { state; echo; } >"$d/before" || { rm -r "$d"; say full; exit; }
            (
                read -r order <&4
                until read -r watcher <"$d/watcher" || [ ! -d "$d" ]; do nap; done
                [ -d "$d" ] || { mkdir "$d"; watcher=$(sh -c 'echo $PPID'); } # the suite removed it
                stop
            ) >/dev/null &
            watcher=$!
            echo $watcher >"$d/watcher"
            (
                trap - HUP INT QUIT TERM PIPE
                set -a
                eval "$environment"
                set +a
                exec sh -c "$command"
            ) 2>&3 3>&- 4<&-
            code=$?
            [ -e "$d/watcher" ] || [ ! -d "$d" ] || wait $watcher
            if [ -n "$leaks" ]; then
                n=15 # naps for what ends by itself
                while left=$(mine none state); [ $n -gt 0 ] && [ "${left#process}" != "$left" ]; do
                    nap; n=$((n - 1))
                done
                [ -z "$left" ] || printf '%s\\n' "$left" | report
            fi
            kill -KILL $watcher
            rm -r "$d"
            say exit $code
            say exit $code 3>&1
            """;

    /** The supervisor with what it is to run: text for sh's stdin. */
    static String supervisor(String mark, String directory, String command, Map<String, String> environment,
            boolean leakCheck) {
        return assignments(Map.of("mark", mark, "dir", directory, "command", command, "environment",
                assignments(environment),
                "leaks", leakCheck ? "yes" : "")) + SUPERVISOR;
    }

    private static String assignments(Map<String, String> values) {
        return values.entrySet().stream().map(it -> it.getKey() + "=" + shellQuoted(List.of(it.getValue())) + "\n")
                .collect(Collectors.joining());
    }

    /**
     * ssh to a sh that takes so many bytes of stdin as its script. csh, a possible login shell, reads this one line as
     * sh does.
     */
    static List<String> sshCommand(Path vmDir, String vmName, int scriptBytes) {
        return List.of("ssh", "-F", vmDir.resolve("ssh_config").toString(), "-T", vmName,
                "exec sh -c 'eval \"$(dd bs=1 count=" + scriptBytes + " 2>/dev/null)\"'");
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

    final class GuestRun {
        final String mark = "\u001e" + UUID.randomUUID() + " ";
        private final byte[] script;
        private final Path console = vmDir.resolve(vmName + ".console.log");
        private final long consoleStart = Files.exists(console) ? console.toFile().length() : 0;
        volatile Integer code;
        final List<String> left = Collections.synchronizedList(new ArrayList<>());
        String trouble;
        String standstill; // why the guest stood still when the time limit came or the connection was lost

        GuestRun(String command, boolean leakCheck) {
            script = supervisor(mark, guestDirectory(), command, environment, leakCheck).getBytes(UTF_8);
        }

        /** Runs it to its end, or the time limit, or until VM or connection are lost; the texts come one at a time. */
        Verdict run(Consumer<String> stdout, Consumer<String> stderr) throws IOException, InterruptedException {
            // In a session of its own: else Ctrl-C would end ssh too, and with it the way to say "stop".
            Stream<String> setsid = Stream.of(System.getenv("PATH").split(":")).map(dir -> dir + "/setsid")
                    .filter(file -> Files.isExecutable(Path.of(file))).limit(1);
            Process process = start(new ProcessBuilder(Stream.concat(setsid,
                    sshCommand(vmDir, vmName, script.length).stream()).toList()));
            CountDownLatch open = new CountDownLatch(2);
            pump(process.getInputStream(), stdout, open);
            pump(process.getErrorStream(), stderr, open);
            long deadline = System.nanoTime() + timeout.toNanos();
            Verdict stop = null;
            boolean asked = false; // whether sshd still answers, after the words of a panic
            StandstillWatch watch = new StandstillWatch();
            OutputStream orders = process.getOutputStream();
            try {
                orders.write(script);
                orders.flush();
                while (!open.await(100, TimeUnit.MILLISECONDS)) {
                    boolean late = System.nanoTime() > deadline;
                    interrupted |= !canAnswer(); // if nobody reads stdout, stop the suite as Ctrl-C does
                    watch.look();
                    if (stop == null && (interrupted || late)) {
                        stop = interrupted ? Verdict.INTERRUPTED : Verdict.TIMED_OUT;
                        standstill = interrupted ? null : watch.why;
                        trouble = standstill == null ? trouble : standstill;
                        deadline = System.nanoTime() + STOPPING.toNanos();
                        orders.close();
                    } else if (late) {
                        left.add("perhaps everything: the guest did not answer the order to stop");
                        break;
                    } else if (!alive()) {
                        break;
                    } else if (!asked && kernelPanic(console(consoleStart)) >= 0) {
                        asked = true;
                        JsonObject vm = runningVm(vmDir, vmName);
                        if (vm == null || !hasBanner(vm.getInt("port"), 5000)) {
                            break; // ssh itself would notice after a minute
                        }
                    }
                }
            } catch (IOException closed) {
                // ssh has ended: what it said, or did not say, decides
            } finally {
                process.destroy();
            }
            open.await(4, TimeUnit.SECONDS);
            return stop != null ? stop : code == null ? lost() : code == 0 ? Verdict.PASSED : Verdict.FAILED;
        }

        private Verdict lost() throws InterruptedException {
            if (trouble != null) {
                return Verdict.LOST;
            }
            Thread.sleep(2_000); // QEMU may be on its way out, and the console's last words on theirs
            String said = console(consoleStart);
            int panic = kernelPanic(said);
            boolean panicked = panic >= 0;
            List<String> lines = (panicked ? said.substring(panic) : console(0)).lines().filter(line -> !line.isBlank())
                    .toList();
            int first = panicked ? 0 : Math.max(0, lines.size() - 10);
            GuestState guest = panicked ? null : guestState();
            standstill = guest == null ? null : guest.why();
            trouble = (standstill != null ? "the connection was lost: " + standstill
                    : (panicked ? "the guest panicked" : alive() ? "the connection was lost" : "VM " + vmName
                            + " ended")
                            + "; vm-ctl " + (alive() ? "restart" : "start") + " brings it back") + ". From " + console
                            + ":\n"
                    + String.join("\n", lines.subList(first, Math.min(first + 15, lines.size())));
            return Verdict.LOST;
        }

        /** The console's log from there on, its last 64 KB at most. (After a rotation: all of it.) */
        private String console(long from) {
            try (FileChannel log = FileChannel.open(console)) {
                ByteBuffer text = ByteBuffer.allocate(1 << 16);
                log.read(text, Math.max(log.size() < from ? 0 : from, log.size() - text.capacity()));
                return harmless(new String(text.array(), 0, text.position(), UTF_8));
            } catch (IOException none) {
                return "";
            }
        }

        private void pump(InputStream in, Consumer<String> sink, CountDownLatch open) {
            Thread thread = new Thread(() -> {
                char[] buffer = new char[1 << 16];
                StringBuilder held = new StringBuilder();
                try (Reader reader = new InputStreamReader(in, WIRE)) {
                    for (int n = reader.read(buffer); n >= 0 && sift(held.append(buffer, 0, n),
                            sink); n = reader.read(buffer)) { }
                } catch (IOException closed) {
                    // ssh has ended
                } finally {
                    open.countDown();
                }
            });
            thread.setDaemon(true);
            thread.start();
        }

        /**
         * Takes the supervisor's own lines out; they may stand in the middle of another, or come in pieces. False after
         * the last.
         */
        synchronized boolean sift(StringBuilder held, Consumer<String> rest) {
            for (int start = held.indexOf(mark), end; start >= 0
                    && (end = held.indexOf("\n", start)) >= 0; start = held.indexOf(mark)) {
                rest.accept(held.substring(0, start));
                String[] said = held.substring(start + mark.length(), end).split(" ", 2);
                held.delete(0, end + 1);
                switch (said[0]) {
                    case "exit" -> code = Integer.valueOf(said[1]);
                    case "leak" -> left.add(said[1]);
                    case "full" -> trouble = "the guest has no room in /tmp: make some, or vm-ctl restore";
                    default -> trouble = guestDirectory()
                            + " is not in the VM; vm-sync (or vm-test --sync) brings the project there";
                }
                if (said[0].equals("exit")) {
                    return false;
                }
            }
            int mine = held.lastIndexOf("\u001e");
            int ready = mine >= 0 && (mark.startsWith(held.substring(mine)) || held.indexOf(mark, mine) == mine) ? mine
                    : held.length();
            rest.accept(held.substring(0, ready));
            held.delete(0, ready);
            return true;
        }
    }

    /** What QEMU says of the guest; null if the VM ended, or if nothing can be said of it. */
    private GuestState guestState() {
        try {
            return GuestState.of(vmDir, vmName);
        } catch (VmException unreadable) {
            return null;
        }
    }

    /**
     * Asks QEMU while a command runs whether the guest stands still: then its silence has a reason that can be told.
     */
    private final class StandstillWatch {
        private static final Duration INTERVAL = Duration.ofSeconds(2);
        private CompletableFuture<GuestState> response; // null: nothing was asked
        private long askedAt = System.nanoTime() - INTERVAL.toNanos();
        private long since; // when it began to stand still
        private boolean told;
        String why; // null while the guest goes on

        /** Never waits for QEMU, because the loop that calls it also handles the time limit and Ctrl-C. */
        void look() {
            long now = System.nanoTime();
            if (response == null && now - askedAt >= INTERVAL.toNanos()) {
                askedAt = now;
                response = CompletableFuture.supplyAsync(VmTest.this::guestState);
            } else if (response != null && response.isDone()) {
                take(response.join(), now);
                response = null;
            }
        }

        private void take(GuestState guest, long now) {
            since = why == null ? now : since;
            why = guest == null ? null : guest.why();
            if (why == null) {
                told = false;
            } else if (!told && (guest.word().equals("io-error") || now - since > snapshotPause.toNanos())) {
                told = true;
                System.err.println("vm-test: " + why);
            }
        }
    }

    // One suite

    private Report runSuite(Suite suite, List<String> arguments, PrintWriter events) throws IOException,
            InterruptedException {
        String command = suite.guestCommand(arguments);
        System.err.println("== " + suite.name() + ": " + harmless(command));
        Report report = new Report(suite.name(), events::print);
        boolean root = Pattern.compile("(^|[\\s;&|(])doas\\s").matcher(suite.command()).find();
        GuestRun guest = new GuestRun(command, root && leaks != Leaks.ignore);
        report.verdict = guest.run(text -> print(1, report.take(1, text)), text -> print(2, report.take(2, text)));
        print(1, report.end(guest.code));
        if (leaks == Leaks.warn) {
            guest.left.forEach(what -> System.err.println("vm-test: " + suite.name() + " left behind: "
                    + harmless(what)));
        } else if (!guest.left.isEmpty()) {
            report.add("left behind", "fail", String.join("\n", guest.left));
        }
        if (guest.trouble != null) {
            report.add("VM", "unfinished", guest.trouble);
        }
        report.standstill = guest.standstill;
        report.verdict = report.verdict == Verdict.PASSED && report.failed() ? Verdict.FAILED : report.verdict;
        try { // by getBytes, which takes half a surrogate pair that a test printed, too
            Files.write(vmDir.resolve(vmName + ".test").resolve(suite.name() + ".json"),
                    report.json(command).getBytes(UTF_8));
        } catch (IOException refused) { // the verdict is still to be told
            System.err.println("vm-test: the result of " + suite.name() + " is not kept: " + reason(refused));
        }
        return report;
    }

    /**
     * A test, or under the name "" its package. Outcomes: "" (it runs), pass, fail, skip, unfinished, broken (not
     * built).
     */
    static final class Test {
        final String pkg;
        final String name;
        String outcome = "";
        double seconds;
        StringBuilder output = new StringBuilder();

        Test(String pkg, String name) {
            this.pkg = pkg;
            this.name = name;
        }

        void end(String how, double took) {
            outcome = how;
            seconds = took;
            output = how.equals("pass") ? new StringBuilder() : output;
        }

        boolean failed() {
            return List.of("fail", "unfinished", "broken").contains(outcome);
        }

        /** The test that it is a subtest of, or the package. */
        String parent() {
            return name.isEmpty() ? null : name.substring(0, Math.max(0, name.lastIndexOf('/')));
        }

        /** Its output; a test's without the lines that frame it. */
        String said() {
            String frame = "(?m)^\\s*(=== (RUN|PAUSE|CONT|NAME) .*|--- (PASS|FAIL|SKIP): .*)\n?";
            return name.isEmpty() ? output.toString() : output.toString().replaceAll(frame, "");
        }

        @Override
        public String toString() {
            String said = Map.of("skip", "SKIP ", "fail", "FAIL ", "unfinished", "DID NOT FINISH ", "broken",
                    "BUILD FAILED ")
                    .getOrDefault(outcome, "");
            String took = seconds < 0.005 ? "" : String.format(Locale.ROOT, " (%.2fs)", seconds);
            return said + pkg + (name.isEmpty() ? "" : " " + name) + took;
        }
    }

    /**
     * What became of a suite, by the events of its go tests, one by one. Their packages run side by side: one is shown
     * live, the others' output waits for its turn, so that it reads like {@code go test -v}. What passed keeps no
     * output, the rest the end of it.
     */
    static final class Report {
        private static final Set<String> ACTIONS = Set.of("start", "run", "pause", "cont", "bench", "output", "attr",
                "artifacts",
                "pass", "fail", "skip", "build-output", "build-fail");
        private static final Pattern BROKEN = Pattern.compile("(?m)^FAIL\t(\\S+) \\[(?:build|setup) failed]");
        // characters of a line or of a package; what has more is shown at once
        private static final int WAITING = 1 << 20;

        final String suite;
        final Instant started = Instant.now();
        Verdict verdict;
        String standstill; // of the guest, if that is why the suite has no end
        Integer guestCode;
        double seconds;
        final Map<String, Map<String, Test>> packages = new TreeMap<>();
        private final Map<String, StringBuilder> waiting = new LinkedHashMap<>();
        private final Map<Integer, StringBuilder> partial = new TreeMap<>();
        private final StringBuilder plain = new StringBuilder();
        private final StringBuilder screen = new StringBuilder(); // what take and end return next
        private final Consumer<String> events;
        private final Set<String> ended = new HashSet<>();
        private String shown; // the package on the screen

        Report(String suite, Consumer<String> events) {
            this.suite = suite;
            this.events = events;
        }

        /**
         * Takes a piece of a stream; returns what to show now. What is no event is shown as it is, at once unless it
         * may become one.
         */
        String take(int stream, String piece) {
            StringBuilder text = partial.computeIfAbsent(stream, it -> new StringBuilder()).append(piece);
            int end = text.indexOf("{") == 0 || text.indexOf("\n{") >= 0 ? text.lastIndexOf("\n") + 1 : 0;
            List<String> lines = Pattern.compile("(?<=\n)").splitAsStream(text.substring(0, end)).toList();
            text.delete(0, end);
            List<String> maybe = lines.stream().filter(line -> line.startsWith("{")).map(Report::decoded).toList();
            Iterator<JsonObject> objects = objects(maybe).iterator();
            for (String line : lines) {
                if (!line.startsWith("{") || !event(decoded(line), objects.next())) {
                    pass(line);
                }
            }
            if (text.length() > WAITING || text.length() > 0 && text.charAt(0) != '{') {
                pass(text.toString());
                text.setLength(0);
            }
            return toShow();
        }

        private String toShow() {
            String text = screen.toString();
            screen.setLength(0);
            return text;
        }

        private static String decoded(String line) {
            return new String(line.getBytes(WIRE), UTF_8);
        }

        /**
         * What lines hold, parsed together: the parser takes 64 KB for each text. An empty object for what is no JSON.
         */
        private static Stream<JsonObject> objects(List<String> lines) {
            JsonArray all = new JsonArray();
            try {
                all = JsonParser.array().from("[" + String.join(",", lines) + "]");
            } catch (JsonParserException notAll) {
                // one by one, then
            }
            boolean oneEach = all.size() == lines.size() && all.stream().allMatch(JsonObject.class::isInstance);
            return oneEach ? all.stream().map(JsonObject.class::cast) : lines.size() == 1 ? Stream.of(new JsonObject())
                    : lines.stream().flatMap(line -> objects(List.of(line)));
        }

        /** Adds to a text of which only the end is kept. */
        static void keep(StringBuilder end, String text) {
            end.append(text);
            end.delete(0, end.length() > 128_000 ? end.length() - 64_000 : 0);
        }

        private void pass(String text) {
            keep(plain, decoded(text));
            screen.append(text);
        }

        /** Takes note of an event of go test; false if it is none. */
        private boolean event(String line, JsonObject event) {
            String action = event.getString("Action", "");
            String pkg = event.getString("Package", event.getString("ImportPath", ""));
            if (pkg.isEmpty() || !ACTIONS.contains(action)) {
                return false;
            }
            events.accept(line);
            String output = event.getString("Output", "");
            String name = event.getString("Test", "");
            Test known = packages.getOrDefault(pkg, Map.of()).get(name);
            if (action.equals("build-output")) { // Go 1.24 and later
                keep(plain, output);
                screen.append(new String(output.getBytes(UTF_8), WIRE));
            } else if (action.equals("run")) {
                // with -count it runs again
                packages.computeIfAbsent(pkg, it -> new LinkedHashMap<>()).put(name, new Test(pkg, name));
            } else if (action.equals("output")) {
                show(pkg, output);
                keep(known == null ? test(pkg, "").output : known.output, output);
            // not what a print made up
            } else if (List.of("pass", "fail", "skip").contains(action) && (known != null || name.isEmpty())) {
                test(pkg, name).end(action, event.getDouble("Elapsed", 0));
                if (name.isEmpty()) {
                    packages.get(pkg).values().stream().filter(it -> it.outcome.isEmpty())
                            .forEach(it -> it.end(action.equals("fail") ? "unfinished" : action, 0));
                    ended.add(pkg);
                    if (pkg.equals(shown)) { // what others that ended said follows, then whoever says something next
                        shown = null;
                        List.copyOf(waiting.keySet()).stream().filter(ended::contains).forEach(this::flush);
                    }
                }
            }
            return true;
        }

        private Test test(String pkg, String name) {
            return packages.computeIfAbsent(pkg, it -> new LinkedHashMap<>()).computeIfAbsent(name, it ->
                    new Test(pkg, name));
        }

        /** A result that is not a test's own: the suite's, or what was found after it. */
        void add(String name, String outcome, String output) {
            test(suite, name).end(outcome, name.isEmpty() ? seconds : 0);
            keep(test(suite, name).output, output);
        }

        private void show(String pkg, String output) {
            shown = shown == null ? pkg : shown;
            StringBuilder text = waiting.computeIfAbsent(pkg, it -> new StringBuilder()).append(output);
            if (shown.equals(pkg) || text.length() > WAITING) {
                flush(pkg);
            }
        }

        private void flush(String pkg) {
            screen.append(new String(waiting.remove(pkg).toString().getBytes(UTF_8), WIRE));
        }

        /**
         * The command ended: what has no result now never gets one. A suite without tests is its own only test. Returns
         * what to show.
         */
        String end(Integer exitCode) {
            guestCode = exitCode;
            seconds = Duration.between(started, Instant.now()).toMillis() / 1000.0;
            List.copyOf(waiting.keySet()).forEach(this::flush);
            partial.values().forEach(text -> pass(text.toString()));
            all().filter(test -> test.outcome.isEmpty()).forEach(test -> test.end("unfinished", 0));
            if (verdict == Verdict.FAILED) {
                String all = plain + packages.values().stream().flatMap(tests -> Stream.ofNullable(tests.get("")))
                        .map(test -> "\n" + test.output).collect(Collectors.joining());
                BROKEN.matcher(all).results().forEach(found -> test(found.group(1), "").outcome = "broken");
            }
            if (packages.isEmpty() || verdict == Verdict.FAILED && !failed()) {
                String failure = verdict == Verdict.FAILED ? suite.equals("build") ? "broken" : "fail" : "unfinished";
                add("", verdict == Verdict.PASSED ? "pass" : failure, plain.toString());
            }
            return toShow();
        }

        Stream<Test> all() {
            return packages.values().stream().flatMap(tests -> tests.values().stream());
        }

        boolean failed() {
            return all().anyMatch(Test::failed);
        }

        /** What went wrong: of a package, a test and its subtests the innermost, and what else has something to say. */
        List<Test> failures() {
            return packages.values().stream().flatMap(tests -> {
                Set<String> holders = tests.values().stream().filter(Test::failed).map(Test::parent)
                        .collect(Collectors.toSet());
                return tests.values().stream().filter(test -> test.failed()
                        && (!holders.contains(test.name) || !test.name.isEmpty() && !test.said().isBlank()));
            }).toList();
        }

        /**
         * Why. Of a package that was not built, what stands below its name; if it has none, for another's fault, all of
         * it.
         */
        String reason(Test test) {
            if (test.outcome.equals("broken")) {
                String name = Pattern.quote(test.pkg);
                // "# [pkg]" below it is vet's
                String heading = "^# (?:" + name + "(?: \\[\\S+])?|\\S+ \\[" + name + "\\.test])\n";
                String own = Pattern.compile("(?ms)" + heading + "(.*?)(?=^# [^\\[]|^FAIL\t|\\z)").matcher(plain)
                        .results()
                        .map(found -> found.group(1)).collect(Collectors.joining());
                return own.isEmpty() ? plain.toString() : own;
            }
            return test.said() + (test.outcome.equals("unfinished") && !test.name.isEmpty() ? "\n"
                    + test(test.pkg, "").said() : "");
        }

        /** The verdict in one line. */
        String said() {
            boolean build = verdict == Verdict.FAILED && failures().stream().allMatch(test ->
                    test.outcome.equals("broken"));
            return suite + " " + verdict + (build ? " (build failed)" : "")
                    + (verdict == Verdict.PASSED || guestCode == null ? "" : ", guest exit code " + guestCode);
        }

        /**
         * What a person reads after the suite: the verdict, then why; in a suite of 2,000 tests not every skipped one.
         */
        String summary() {
            Map<String, Long> counts = all().filter(test -> !test.name.isEmpty())
                    .collect(Collectors.groupingBy(test -> test.outcome, TreeMap::new, Collectors.counting()));
            List<String> lines = new ArrayList<>();
            lines.add("== " + said()
                    + counts.entrySet().stream().map(count -> ", " + count.getValue() + " " + count.getKey())
                    .collect(Collectors.joining())
                    + String.format(Locale.ROOT, ", %.1f s", seconds));
            failures().forEach(test -> {
                lines.add("   " + test);
                shortened(reason(test)).forEach(line -> lines.add("       " + line));
            });
            all().filter(test -> test.outcome.equals("skip") && !test.name.isEmpty()).limit(50).forEach(test ->
                    lines.add("   " + test
                    + test.said().lines().map(line -> ": " + line.strip()).reduce("", (first, last) -> last)));
            Set<String> holders = all().map(test -> test.pkg + " " + test.parent()).collect(Collectors.toSet());
            all().filter(test -> test.seconds >= 0.1 && !test.name.isEmpty()
                    && !holders.contains(test.pkg + " " + test.name))
                    .sorted(Comparator.comparingDouble(test -> -test.seconds)).limit(5).forEach(test ->
                            lines.add("   slow: " + test));
            return harmless(String.join("\n", lines)) + "\n";
        }

        private static List<String> shortened(String text) {
            List<String> lines = text.lines().filter(line -> !line.isBlank()).toList();
            return lines.size() <= 180 ? lines : Stream.of(lines.subList(0, 90),
                    List.of("... (" + (lines.size() - 170) + " lines)"),
                    lines.subList(lines.size() - 80, lines.size())).flatMap(List::stream).toList();
        }

        /** The result as it is kept in VM_DIR. */
        String json(String command) {
            JsonArray tests = new JsonArray();
            all().forEach(test -> tests.add(new JsonObject(Map.of("package", test.pkg, "test", test.name, "outcome",
                    test.outcome,
                    "seconds", test.seconds, "output", test.failed() ? reason(test) : test.said()))));
            return JsonWriter.indent("  ").string().object().value("suite", suite).value("command", command)
                    .value("verdict", verdict.toString()).value("guestExitCode", guestCode).value("started",
                            started.toString())
                    .value("seconds", seconds).array("tests", tests).end().done() + "\n";
        }
    }

    // JUnit

    /** The JUnit report: a testsuite for each package of a go test, and one for each suite of another kind. */
    static void junit(List<Report> reports, String host, Writer file) throws XMLStreamException {
        XMLStreamWriter xml = XMLOutputFactory.newInstance().createXMLStreamWriter(file);
        xml.writeStartDocument();
        begin(xml, "testsuites");
        int id = 0;
        for (Report report : reports) {
            List<Test> failures = report.failures();
            for (Map.Entry<String, Map<String, Test>> pkg : report.packages.entrySet()) {
                List<Test> tests = pkg.getValue().values().stream()
                        .filter(test -> !test.name.isEmpty() || failures.contains(test)
                                || test.pkg.equals(report.suite)).toList();
                Map<String, Long> kinds = tests.stream().collect(Collectors.groupingBy(VmTest::junitKind,
                        Collectors.counting()));
                begin(xml, "testsuite", "id", id++, "package", report.suite, "name", pkg.getKey(), "hostname", host,
                        "timestamp", report.started.truncatedTo(ChronoUnit.SECONDS).toString().replace("Z", ""),
                        "time", pkg.getValue().containsKey("") ? pkg.getValue().get("").seconds : 0.0, "tests",
                        tests.size(),
                        "failures", kinds.getOrDefault("failure", 0L), "errors", kinds.getOrDefault("error", 0L),
                        "skipped", kinds.getOrDefault("skipped", 0L));
                element(xml, "", "properties");
                for (Test test : tests) {
                    String kind = junitKind(test);
                    begin(xml, "testcase", "classname", test.pkg, "name", test.name.isEmpty() ? test.pkg : test.name,
                            "time", test.seconds);
                    if (kind.equals("skipped")) {
                        element(xml, "", kind, "message", test.said().strip());
                    } else if (!kind.isEmpty()) {
                        element(xml, report.reason(test), kind, "type", test.outcome, "message", test);
                    }
                    xml.writeEndElement();
                }
                element(xml, "", "system-out"); // Ant's schema wants all three
                element(xml, "", "system-err");
                xml.writeEndElement();
            }
        }
        xml.writeEndDocument();
        xml.flush();
    }

    private static String junitKind(Test test) {
        return Map.of("pass", "", "skip", "skipped", "fail", "failure").getOrDefault(test.outcome, "error");
    }

    private static void begin(XMLStreamWriter xml, String name, Object... attributes) throws XMLStreamException {
        xml.writeStartElement(name);
        for (int i = 0; i < attributes.length; i += 2) {
            String format = attributes[i + 1] instanceof Double ? "%.3f" : "%s";
            xml.writeAttribute(attributes[i].toString(), legal(String.format(Locale.ROOT, format, attributes[i + 1])));
        }
    }

    private static void element(XMLStreamWriter xml, String text, String name,
            Object... attributes) throws XMLStreamException {
        begin(xml, name, attributes);
        xml.writeCharacters(legal(text));
        xml.writeEndElement();
    }

    /** Without the characters that XML 1.0 cannot hold even escaped. */
    private static String legal(String text) {
        return text.replaceAll("[^\t\n\\x20-\ud7ff\ue000-\ufffd\\x{10000}-\\x{10ffff}]", "");
    }

    // On a terminal

    private void print(int descriptor, String text) {
        byte[] bytes = (quiet ? "" : terminal(descriptor) ? harmless(text) : text).getBytes(WIRE);
        (descriptor == 1 ? System.out : System.err).write(bytes, 0, bytes.length);
        (descriptor == 1 ? System.out : System.err).flush();
    }

    /** Is this file descriptor a terminal, or not known not to be one? */
    private static boolean terminal(int descriptor) {
        try {
            return Files.readSymbolicLink(Path.of("/proc/self/fd/" + descriptor)).toString()
                    .matches("/dev/(pts/.*|tty.*|console)");
        } catch (IOException noProc) {
            return true;
        }
    }

    /**
     * Control characters made visible (^[ for an escape), so that the guest cannot speak to the terminal; newlines and
     * tabs stay.
     */
    static String harmless(String text) {
        return Pattern.compile("[\\p{Cc}&&[^\n\t]]").matcher(text.replace("\r\n", "\n")).replaceAll(found -> {
            char c = found.group().charAt(0);
            return Matcher.quoteReplacement(c < 0x80 ? "^" + (char) (c ^ 0x40) : String.format("<%02x>", (int) c));
        });
    }

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
    /** Whether stdin, stdout and stderr were closed at the start. Such a stream counts as /dev/null. */
    static final boolean[] CLOSED = new boolean[3];

    /**
     * Comes first in main. If descriptor 0, 1 or 2 is closed, the first file that the JVM opens, its class library,
     * gets that number. For further closed ones the JVM opens /dev/null, so that no file that is opened later gets such
     * a number.
     */
    static void replaceClosedStreams() {
        try {
            Path java = Path.of(System.getProperty("java.home")).toRealPath();
            for (int i = 0; i < CLOSED.length; i++) {
                Path link = Path.of("/proc/self/fd", String.valueOf(i));
                CLOSED[i] = Files.isSymbolicLink(link) && Files.readSymbolicLink(link).startsWith(java);
            }
        } catch (IOException noProc) {
            // then they count as open
        }
        System.setIn(CLOSED[0] ? InputStream.nullInputStream() : System.in);
        System.setOut(CLOSED[1] ? new PrintStream(OutputStream.nullOutputStream(), false, UTF_8) : System.out);
        System.setErr(CLOSED[2] ? new PrintStream(OutputStream.nullOutputStream(), false, UTF_8) : System.err);
    }

    /**
     * Ends this process. An answer that was lost, because its reader has gone or a disk is full, is a failure whatever
     * the code is.
     */
    static void exit(String command, int code) {
        boolean lost = System.out.checkError();
        if (lost) {
            System.err.println(command + ": the output could not be written: the reader of stdout has gone, or its "
                    + "disk is full");
        }
        System.exit(lost ? 1 : code);
    }
    // end shared:streams

    // shared:reader
    /**
     * Whether stdout still takes output. An empty transfer fails if nobody reads the pipe any more. The line that is
     * printed then is lost, and makes exit() see the failure.
     */
    static boolean canAnswer() {
        try (FileChannel nothing = FileChannel.open(Path.of("/dev/null"))) {
            if (!CLOSED[1]) {
                nothing.transferTo(0, 0, new FileOutputStream(FileDescriptor.out).getChannel());
            }
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

    /** What a file system refused, in words: of some refusals Java tells the file alone. */
    static String reason(IOException refused) {
        return (refused instanceof AccessDeniedException ? "permission denied: "
                : refused instanceof FileAlreadyExistsException ? "a file is in the way: "
                : refused instanceof NoSuchFileException ? "no such file: " : "")
                + (refused.getMessage() == null ? refused.getClass().getSimpleName() : refused.getMessage());
    }
    // end shared:failure

    // shared:cli
    /**
     * A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code.
     */
    static CommandLine commandLine(Object command, Settings settings) {
        CommandLine all = new CommandLine(command);
        boolean dumb = "dumb".equals(System.getenv("TERM"));
        List<String> help = new ArrayList<>(all.getHelpSectionKeys());
        // the footer, which is examples, before the exit codes
        Collections.rotate(help.subList(help.size() - 4, help.size()), 2);
        return all.setHelpSectionKeys(help).setExpandAtFiles(false).setAllowSubcommandsAsOptionParameters(true)
                .setColorScheme(CommandLine.Help.defaultColorScheme(dumb ? Ansi.OFF : Ansi.AUTO))
                .setCaseInsensitiveEnumValuesAllowed(true).setDefaultValueProvider(settings)
                .setExecutionStrategy(parsed -> {
                    checkValues(settings, parsed);
                    return new CommandLine.RunLast().execute(parsed);
                })
                .setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException || failure instanceof IOException)) {
                        throw failure; // a bug keeps its stack trace
                    }
                    line.getErr().println(line.getCommandSpec().root().name() + ": "
                            + (failure instanceof IOException refused ? reason(refused) : failure.getMessage()));
                    boolean full = String.valueOf(failure.getMessage()).contains("No space left");
                    return failure instanceof VmException expected ? expected.exitCode : full ? 1 : 69;
                }).setParameterExceptionHandler((failure, args) -> {
                    CommandLine line = failure.getCommandLine();
                    String make = System.getProperty("vm.make"); // the target and its variable for options
                    line.getErr().println(line.getCommandSpec().root().name() + ": "
                            + describeOptionError(settings, failure, args)
                            + "; see: " + (make == null ? line.getCommandSpec().qualifiedName() + " "
                            : "make " + make + "=") + "--help");
                    return line.getCommandSpec().exitCodeOnInvalidInput();
                });
    }
    // end shared:cli

    // shared:settings
    /** What holds where no option is given: the environment, else the KEY=VALUE lines of vm.env. Empty means unset. */
    static final class Settings implements IDefaultValueProvider { // no record: picocli takes 8 ms longer with one
        private final Map<String, String> environment;
        private final Map<String, String> file;
        /** Why vm.env cannot be used; null if it can. */
        String problem;

        Settings(Map<String, String> environment, Map<String, String> file) {
            this.environment = environment;
            this.file = file;
        }

        /** The value of a setting, or null. */
        String get(String name) {
            String value = environment.getOrDefault(name, "").isEmpty() ? file.get(name) : environment.get(name);
            return value == null || value.isEmpty() ? null : value;
        }

        @Override
        public String defaultValue(ArgSpec argument) {
            return get(argument.descriptionKey());
        }
    }
    // end shared:settings

    // shared:vmenv
    private static final Pattern VM_ENV_LINE = Pattern.compile(
            "\\s*(?:export\\s+)?(\\w+)\\s*=\\s*(['\"]?)(.*?)\\2\\s*|\\s*(?:#.*)?");

    /** The settings of the environment and of the vm.env in this directory. */
    static Settings readSettings(Map<String, String> environment, Path directory) {
        Settings settings = new Settings(environment, new HashMap<>());
        Path file = directory.resolve("vm.env");
        try {
            String text = Files.exists(file) ? new String(Files.readAllBytes(file), UTF_8) : "";
            for (String line : text.replaceFirst("^\ufeff", "").lines().toList()) {
                Matcher match = VM_ENV_LINE.matcher(line);
                if (!match.matches()) {
                    settings.problem = "vm.env: not KEY=VALUE: " + line;
                } else if (match.group(1) != null) {
                    settings.file.put(match.group(1), match.group(3));
                }
            }
        } catch (IOException unreadable) {
            settings.problem = "vm.env cannot be read (" + reason(unreadable) + "): repair it, or move it away";
        }
        return settings;
    }
    // end shared:vmenv

    // shared:optionerror
    /** What is wrong with a command line, in plain words and by the name that the user wrote. */
    static String describeOptionError(Settings settings, ParameterException failure, String... args) {
        CommandSpec command = failure.getCommandLine().getCommandSpec();
        if (failure instanceof UnmatchedArgumentException unmatched) {
            String word = unmatched.getUnmatched().get(0);
            boolean isOption = word.matches("-.+");
            boolean isCommand = !isOption && !command.subcommands().isEmpty();
            String name = word.replaceFirst("(?<=^--[\\w-]{1,99})=.*", "");
            return isOption ? "there is no option " + name + didYouMean(name, command.optionsMap().keySet())
                    : isCommand ? "there is no command '" + word + "'"
                    + didYouMean(word, command.subcommands().keySet())
                    : "'" + word + "' is one word too many";
        }
        ArgSpec argument = failure.getArgSpec();
        String message = failure.getMessage();
        String fault = (message.startsWith("Invalid value for ") ? message.substring(message.indexOf(": ") + 2)
                : message)
                .replaceFirst("(?s)expected one of \\[(.*)] .*but was (.*)", "$2 is none of $1")
                .replaceFirst("(?s).* should be in KEY=VALUE format but was (.*)",
                        "'$1' is not a variable such as K=V");
        String name = argument instanceof OptionSpec option ? originOf(settings, option, List.of(args))
                : argument == null ? "" : argument.paramLabel();
        return name.isEmpty() || fault.startsWith("Missing ") ? fault : name + ": " + fault;
    }
    // end shared:optionerror

    // shared:origin
    /** What the user wrote to give an option its value: the option, or the setting and where it stands. */
    static String originOf(Settings settings, OptionSpec option, List<String> args) {
        String key = option.descriptionKey();
        boolean given = args.stream().takeWhile(arg -> !arg.equals("--"))
                .anyMatch(arg -> List.of(option.names()).contains(arg) || arg.startsWith(option.longestName() + "="));
        return given || settings.get(key) == null ? option.longestName()
                : key + (settings.environment.getOrDefault(key, "").isEmpty() ? " in vm.env" : " in the environment");
    }

    /** As above, for checks after the command line has been read. */
    static String originOf(CommandSpec command, String option) {
        CommandLine root = command.root().commandLine();
        Settings settings = (Settings) root.getDefaultValueProvider();
        return originOf(settings, command.findOption(option), root.getParseResult().originalArgs());
    }
    // end shared:origin

    // shared:nearest
    /** " (did you mean start?)" if known words are near, else "". */
    static String didYouMean(String word, Collection<String> known) {
        int letters = word.replaceFirst("^-+", "").length();
        for (int changes = 0; changes <= (letters < 3 ? 0 : letters < 5 ? 1 : 2); changes++) {
            int most = changes;
            String near = known.stream().distinct().sorted().filter(other -> isNear(word, other, most))
                    .collect(Collectors.joining(" or "));
            if (!near.isEmpty()) {
                return " (did you mean " + near + "?)";
            }
        }
        return "";
    }

    /** Whether the edit distance is at most this; two letters in the wrong order are one change. */
    static boolean isNear(String from, String to, int changes) {
        if (from.isEmpty() || to.isEmpty()) {
            return from.length() + to.length() <= changes;
        }
        String a = from.substring(1);
        String b = to.substring(1);
        if (from.charAt(0) == to.charAt(0)) {
            return isNear(a, b, changes);
        }
        boolean swapped = !a.isEmpty() && !b.isEmpty() && from.charAt(0) == b.charAt(0) && a.charAt(0) == to.charAt(0);
        return changes > 0 && (isNear(a, b, changes - 1) || isNear(from, b, changes - 1) || isNear(a, to, changes - 1)
                || swapped && isNear(a.substring(1), b.substring(1), changes - 1));
    }
    // end shared:nearest

    // shared:values
    /** What a setting must look like, and how to say so: the same in every script. */
    private static final Map<String, List<String>> VALUES = Map.ofEntries(
            Map.entry("DFLY_VERSION", List.of("[A-Za-z0-9_][A-Za-z0-9._-]{0,31}", "a version such as 6.4.2")),
            Map.entry("VM_DIR", List.of("(?s)(?!.*(%|\\$\\{)).*", "a path without % and ${, which ssh would replace")),
            Map.entry("VM_NAME", List.of("(?!.*-clean$)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}",
                    // NAME-clean.qcow2 is a disk
                    "a name of letters, digits, '.', '_' and '-', without '.' or '-' in front or -clean at the end")),
            Map.entry("VM_MEMORY", List.of("[1-9]\\d{0,6}[MG]", "a size such as 2G or 512M")),
            Map.entry("VM_DISK_SIZE", List.of("[1-9]\\d{0,6}[MGT]", "a size such as 40G")),
            Map.entry("VM_DPORTS_CLONE", List.of("yes|no", "yes or no")),
            Map.entry("VM_CPUS", List.of("[1-9]\\d?", "a number from 1 to 99")),
            Map.entry("VM_ACCEL", List.of("auto|kvm|hvf|tcg", "auto, kvm, hvf or tcg")),
            Map.entry("VM_DISK_CACHE", List.of("writeback|none|unsafe", "writeback, none or unsafe")),
            Map.entry("VM_SSH_PORT", List.of(
                    "[1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]",
                    "a port")),
            Map.entry("VM_QEMU_ARGS", List.of("(?s)('[^']*'|\"(\\\\.|[^\"\\\\])*\"|\\\\.|[^'\"\\\\])*",
                    "words whose quotes are closed")));
    // end shared:values

    // shared:checkvalues
    /** Refuses a value that does not look like one, wherever it came from, before anything is done with it. */
    private static void checkValues(Settings settings, ParseResult parsed) {
        List<CommandLine> lines = parsed.asCommandLineList();
        if (lines.stream().anyMatch(line -> line.isUsageHelpRequested() || line.isVersionHelpRequested())) {
            return;
        } else if (settings.problem != null) {
            throw new ParameterException(parsed.commandSpec().commandLine(), settings.problem);
        }
        for (CommandLine line : lines) {
            for (OptionSpec option : line.getCommandSpec().options()) {
                List<String> rule = VALUES.getOrDefault(String.valueOf(option.descriptionKey()), List.of("(?s).*"));
                Object value = option.getValue();
                if (value != null && !value.toString().matches(rule.get(0))) {
                    throw new ParameterException(line, "'" + value + "' is not " + rule.get(1), option, null);
                }
            }
        }
    }
    // end shared:checkvalues

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is $HOME, a relative one starts here. */
    static Path userPath(String value) {
        boolean inHome = value.equals("~") || value.startsWith("~/");
        String home = System.getenv().getOrDefault("HOME", "");
        if (inHome && !home.startsWith("/")) {
            throw new VmException(69, "HOME is not set to a full path, so " + value
                    + " cannot be found: set it, or write the full path");
        } else if (value.startsWith("~") && !inHome) {
            throw new VmException(2, value + ": only ~ and ~/ stand for a home directory; write the full path, or ./"
                    + value);
        }
        return Path.of(inHome ? home + value.substring(1) : value).toAbsolutePath().normalize();
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
    private static final Pattern VM_FILE = Pattern.compile(
            "([^.].*?)(?:-clean\\.qcow2|\\.(?:qcow2|disks|snapshots|install|pid|qemu-pid|ssh))");

    /** The names of all VMs in VM_DIR. A lock or a log, which a failed command may leave, does not count. */
    static List<String> vmNames(Path vmDir) {
        try (Stream<Path> files = Files.list(vmDir)) {
            return files.map(file -> VM_FILE.matcher(file.getFileName().toString())).filter(Matcher::matches)
                    .map(match -> match.group(1)).distinct().sorted().collect(Collectors.toList());
        } catch (NoSuchFileException none) {
            return List.of();
        } catch (IOException unreadable) {
            throw new VmException(69, vmDir + " cannot be read: " + reason(unreadable));
        }
    }

    /** Why a VM does not run: there is none of this name (69), or nobody has started it (3). */
    static VmException notRunning(Path vmDir, String name) {
        List<String> names = vmNames(vmDir);
        if (names.contains(name)) {
            return new VmException(3, "VM " + name + " is not running; start it: vm-ctl start");
        }
        return new VmException(69, "there is no VM " + name + " in " + vmDir
                + (names.isEmpty() ? ": vm-auto-install makes one" : " (there are: " + String.join(", ", names) + ")"));
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
                    + " lets it go on; vm-ctl stop --force ends it";
            case "internal-error" -> "the guest stopped by an internal error of QEMU: vm-ctl restart --force boots it";
            case "io-error" -> "the disk of this machine is full, so the guest stands still: free some space, then "
                    + "vm-ctl start";
            default -> "the guest stands still (" + state + "): vm-ctl start lets it go on";
        };
    }
    // end shared:standstill

    // shared:runstate
    /**
     * What the guest does, by QEMU's word ("running", "paused", ...); "unknown" if QEMU does not tell within 5 s. A
     * QEMU that was stopped accepts a connection and never responds. So the connection is closed at the limit, which
     * ends the wait. QEMU serves one connection at a time: whoever holds another one longer makes this one "unknown".
     */
    static String runState(Path qmp) {
        try (SocketChannel channel = closedAfter5s(SocketChannel.open(StandardProtocolFamily.UNIX))) {
            channel.connect(UnixDomainSocketAddress.of(qmp));
            channel.write(UTF_8.encode("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n"));
            BufferedReader responses = new BufferedReader(Channels.newReader(channel, UTF_8));
            for (String line = responses.readLine(); line != null; line = responses.readLine()) {
                String status = json(line).getObject("return", new JsonObject()).getString("status");
                if (status != null) { // else it is the greeting, an event, or the response to qmp_capabilities
                    return status;
                }
            }
        } catch (IOException noResponse) {
            // QEMU ends, or was stopped
        }
        return "unknown";
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
     * A running VM: its record, QEMU's word for what the guest does, and why the guest stands still (null if it goes
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

    // shared:vmdirectory
    /** VM_DIR, if it can be used. OpenSSH 9.9 expands % and ${ in Include lines, and 9.2 does not. */
    static Path vmDirectory(Path directory) {
        if (directory.toString().contains("%") || directory.toString().contains("${")) {
            throw new VmException(2, "VM_DIR must not contain % or ${, which ssh may replace in its configuration: "
                    + directory + "; choose another directory with --vm-dir or VM_DIR");
        }
        Path existing = directory;
        while (!Files.exists(existing)) { // also false without permission to read it
            existing = existing.getParent();
        }
        if (!Files.isDirectory(existing) || !Files.isExecutable(existing)) {
            throw new VmException(69, existing + (Files.isDirectory(existing) ? " is closed to you"
                    : " is not a directory")
                    + ": choose another directory with --vm-dir or VM_DIR");
        }
        return existing.equals(directory) ? requireOwn(directory) : directory;
    }
    // end shared:vmdirectory

    // shared:directory
    /** Makes a directory and its missing parents for this user alone. One that exists is checked, and never changed. */
    static Path privateDirectory(Path directory) {
        try {
            makeDirectory(directory);
        } catch (IOException refused) {
            throw new VmException(69, "cannot write to " + directory + " (" + reason(refused)
                    + "): choose another directory with --vm-dir or VM_DIR");
        }
        return requireOwn(directory);
    }

    private static void makeDirectory(Path directory) throws IOException {
        if (!Files.isDirectory(directory)) {
            makeDirectory(directory.getParent());
            var owner = PosixFilePermissions.fromString("rwx------");
            try {
                Files.createDirectory(directory, PosixFilePermissions.asFileAttribute(owner));
                Files.setPosixFilePermissions(directory, owner); // a strict umask may have taken some away
            } catch (FileAlreadyExistsException inTheWay) {
                if (!Files.isDirectory(directory)) { // or another command made it at the same moment
                    throw inTheWay;
                }
            }
        }
    }
    // end shared:directory

    // shared:foreign
    /** Refuses a directory in which another user could replace keys and disks. Of a symbolic link the target counts. */
    static Path requireOwn(Path directory) {
        String another = "choose another directory with --vm-dir or VM_DIR";
        try {
            if (!Files.isDirectory(directory)) {
                throw new VmException(69, directory + " is not a directory: " + another);
            } else if (isOwn(directory)) {
                return directory;
            }
            String owner = Files.getOwner(directory).getName();
            String quoted = "'" + directory.toString().replace("'", "'\\''") + "'";
            String mode = Integer.toOctalString((int) Files.getAttribute(directory, "unix:mode") & 07777);
            String remedy = Files.getAttribute(directory, "unix:uid").equals(userId())
                    ? ", or, if nobody else uses this one: "
                    : ", or run this as " + owner + ", or make it yours: sudo chown -R $(id -u) " + quoted + "; ";
            boolean everybodys = mode.matches("1..."); // as /tmp, which must stay so
            throw new VmException(69, directory + " belongs to " + owner + " and has the mode " + mode
                    + ", so another user could replace keys and disks in it: " + another
                    + (everybodys ? ", as " + directory.resolve("vm") : remedy + "chmod go-w " + quoted));
        } catch (IOException unknown) {
            throw new VmException(69, "cannot tell who owns " + directory + " (" + reason(unknown) + "): " + another);
        }
    }
    // end shared:foreign

    // shared:owner
    /** Whether this user owns a file and nobody else can write to it. Ids are compared: a user may have no name. */
    static boolean isOwn(Path file) throws IOException {
        boolean closed = ((int) Files.getAttribute(file, "unix:mode") & 022) == 0;
        return closed && Files.getAttribute(file, "unix:uid").equals(userId());
    }

    /** The user id that new files get. On Linux this process's files in /proc have it, so that nothing is written. */
    private static Object userId() throws IOException {
        Path own = Path.of("/proc/self/stat");
        if (Files.exists(own)) {
            return Files.getAttribute(own, "unix:uid");
        }
        Path file = Files.createTempFile("vm", null);
        try {
            return Files.getAttribute(file, "unix:uid");
        } finally {
            Files.delete(file);
        }
    }
    // end shared:owner

    // shared:json
    /** The JSON object in a text; an IOException if there is none. */
    static JsonObject json(String text) throws IOException {
        try {
            return JsonParser.object().from(text);
        } catch (JsonParserException garbled) {
            throw new IOException("not JSON: " + text, garbled);
        }
    }
    // end shared:json
}
