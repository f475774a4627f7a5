///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Build a project and run its tests in the running VM, and give a verdict
//JAVA 17+
//DEPS info.picocli:picocli:4.7.7
//DEPS com.grack:nanojson:1.10

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonWriter;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.io.Reader;
import java.io.Writer;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.Charset;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.ITypeConverter;
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
 * Builds a project and runs its test suites in the running VM, and says whose fault it is when they do not pass.
 * In order:
 * <ol>
 * <li>--fresh runs {@code vm-ctl restore}, --sync (and --fresh) {@code vm-sync}, as processes.
 * <li>The build runs once, then every suite, in VM_REMOTE_DIR, over the shared connection of VM_DIR/ssh_config. In the guest a
 *     sh supervisor starts the command; at the time limit, on Ctrl-C, or when this end falls silent it takes the goroutine dumps
 *     of the Go test binaries and kills all that the suite started. A doas suite is followed by a leak check.
 * <li>A plain {@code go test} gets -json and is shown as {@code go test -v} would; any other output passes through.
 * <li>A summary, the --junit and --json files, and the verdict as exit code.
 * </ol>
 * Reads {@code <name>.pid}, {@code ssh_config} (ssh does), {@code <name>.console.log}; writes {@code <name>.test/<suite>.json}, the
 * result and timings of its last run.
 */
@Command(name = "vm-test", mixinStandardHelpOptions = true, version = "1",
        description = "Build a project and run its tests in the running VM, and give a verdict",
        customSynopsis = {"vm-test [OPTIONS] SUITE... [-- ARGS]", "vm-test list", "vm-test run [OPTIONS] -- CMD"},
        footer = {"", "Examples:",
            "  vm-test unit                           build, then one suite",
            "  vm-test unit -- -run TestX ./pkg/...   with arguments for its command",
            "  vm-test --sync all --junit all.xml     sync, build, three suites, a report",
            "  VM_TEST_VET='go vet ./...' vm-test vet    a suite of your own",
            "", "Exit codes: 0 passed, 1 a test or the build failed, 2 usage, 3 the VM is not",
            "running, 69 VM or connection lost, 124 time limit, 130/143 interrupted. The guest's",
            "own code stands in the summary."})
final class VmTest implements Callable<Integer> {

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    void setVmDir(String value) {
        vmDir = userPath(value);
    }

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String vmName;

    @Option(names = "--project", descriptionKey = "VM_PROJECT", defaultValue = ".", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "The project on this machine (VM_PROJECT; default: the working directory).")
    void setProject(String value) {
        project = userPath(value);
    }

    @Option(names = "--remote-dir", descriptionKey = "VM_REMOTE_DIR", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "The project in the guest (VM_REMOTE_DIR; default: /root/<the project's name>).")
    String remoteDir;

    @Option(names = "--ctl-cmd", descriptionKey = "VM_CTL_CMD", defaultValue = "jbang vm-ctl",
            paramLabel = "CMD", description = "How --fresh runs vm-ctl (VM_CTL_CMD; default: ${DEFAULT-VALUE}).")
    String ctlCommand;

    @Option(names = "--sync-cmd", descriptionKey = "VM_SYNC_CMD", defaultValue = "jbang vm-sync",
            paramLabel = "CMD", description = "How --sync runs vm-sync (VM_SYNC_CMD; default: ${DEFAULT-VALUE}).")
    String syncCommand;

    @Option(names = "--sync", description = "Run vm-sync first.")
    boolean sync;

    @Option(names = "--fresh", description = "Restore the clean snapshot first, then sync.")
    boolean fresh;

    @Option(names = "--timeout", defaultValue = "60m", scope = ScopeType.INHERIT, paramLabel = "D", converter = Limit.class,
            description = "Time limit of each suite and of the build: 90s, 10m, 1h30m (default: ${DEFAULT-VALUE}).")
    Duration timeout;

    @Option(names = "--env", scope = ScopeType.INHERIT, paramLabel = "K=V",
            description = "An environment variable for the guest's command (repeatable).")
    Map<String, String> environment = new LinkedHashMap<>();

    @Option(names = {"-q", "--quiet"}, description = "Show no live output, only the summary with the failures.")
    boolean quiet;

    @Option(names = "--junit", paramLabel = "FILE", description = "Write a JUnit report.")
    Path junit;

    @Option(names = "--json", paramLabel = "FILE", description = "Write what go test -json said, one event a line.")
    Path json;

    enum Leaks { fail, warn, ignore }

    @Option(names = "--leaks", defaultValue = "fail", paramLabel = "MODE", description = "What follows from mounts, processes and "
            + "files under /build that a doas suite leaves behind: ${COMPLETION-CANDIDATES} (default: ${DEFAULT-VALUE}).")
    Leaks leaks;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    @Parameters(paramLabel = "SUITE", description = "Suites, see 'vm-test list'; what follows -- is appended to their commands.")
    List<String> words = new ArrayList<>();

    @Spec
    CommandSpec spec;

    private static final Duration BEAT = Duration.ofSeconds(5);
    private static final Duration DRAINED = Duration.ofSeconds(2);
    private static final Duration SILENCE = Duration.ofSeconds(120); // a guest that swaps or is being frozen answers late
    private static final Duration AFTER_PANIC = Duration.ofSeconds(15); // "panic:" on the console, then three beats missed
    private static final Duration STOPPING = Duration.ofSeconds(60); // the supervisor takes 20 s at most

    private final Settings settings;
    private Path vmDir;
    private Path project;
    private final CompletableFuture<Void> finished = new CompletableFuture<>();
    private volatile boolean interrupted;
    private volatile Process sibling;

    VmTest() {
        this(Settings.read(System.getenv(), Path.of("")));
    }

    VmTest(Settings settings) {
        this.settings = settings;
    }

    public static void main(String... args) {
        VmTest command = new VmTest();
        Runtime.getRuntime().addShutdownHook(new Thread(command::interrupt));
        int code = commandLine(command, command.settings).execute(args);
        command.finished.complete(null);
        System.exit(code);
    }

    /** On Ctrl-C or TERM, before this process ends: what runs in the guest is stopped, and the summary still written. */
    private void interrupt() {
        interrupted = true;
        if (!finished.isDone()) {
            System.err.println("vm-test: interrupted; stopping what runs in the guest (within " + STOPPING.toSeconds() + " s)");
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
        checkOptions();
        if (fresh) {
            runSibling(ctlCommand, "restore");
        }
        requireRunning();
        if (sync || fresh || names.contains("quick") && table.get("quick").parts().contains("--sync")) {
            runSibling(syncCommand);
        }
        List<Report> done = new ArrayList<>();
        try (PrintWriter events = new PrintWriter(json == null ? Writer.nullWriter() : Files.newBufferedWriter(json))) {
            for (Suite suite : chosen) {
                boolean build = suite.name().equals("build");
                if (build && List.of("true", ":").contains(suite.command().strip())) {
                    continue; // VM_TEST_BUILD=true: there is nothing to build
                }
                Report report = runSuite(suite.name(), suite.command(), build ? List.of() : words.subList(named, words.size()), events);
                done.add(report);
                spec.commandLine().getOut().print(report.summary());
                spec.commandLine().getOut().flush();
                if (build && report.verdict != Verdict.PASSED || report.verdict.compareTo(Verdict.INTERRUPTED) >= 0) {
                    break;
                }
            }
        }
        if (junit != null) {
            Files.writeString(junit, junit(done, vmName));
        }
        System.err.println("vm-test: " + done.stream().map(Report::said).collect(Collectors.joining("; ")));
        return done.stream().map(report -> report.verdict).max(Comparator.naturalOrder()).orElse(Verdict.PASSED).exitCode;
    }

    @Command(name = "list", mixinStandardHelpOptions = true, footer = {"", "Example: vm-test list", "Exit codes: 0 done, 2 usage."},
            description = "Show the suites, their commands, and the settings that gave them.")
    int list() {
        suites(settings).values().forEach(suite -> spec.commandLine().getOut().printf("%-18s %s%s%n", suite.name(),
                suite.command() + String.join(" ", suite.parts()), suite.setting().isEmpty() ? "" : "  (" + suite.setting() + ")"));
        return 0;
    }

    @Command(name = "run", mixinStandardHelpOptions = true, customSynopsis = "vm-test run [OPTIONS] -- CMD [ARG...]",
            description = "Run a command in VM_REMOTE_DIR in the guest and exit with its code. CMD alone is a line of shell; "
                    + "with arguments every word stays one word.",
            footer = {"", "Example: vm-test run -- ./scripts/capture-bsd-fixtures.sh", "Exit codes: the command's own; 2 usage,",
                "3 the VM is not running, 69 the VM or the connection was lost, 124 time limit, 130/143 interrupted."})
    int run(@Parameters(arity = "1..*", paramLabel = "CMD", description = "The command.") List<String> command) throws Exception {
        checkOptions();
        requireRunning();
        GuestRun guest = new GuestRun(command.size() == 1 ? command.get(0) : quoted(command), false);
        Charset bytes = terminal(1) || terminal(2) ? UTF_8 : ISO_8859_1; // a file gets every byte as it is
        Verdict verdict = guest.run(bytes, text -> print(1, text, bytes), text -> print(2, text, bytes));
        if (verdict == Verdict.LOST) {
            throw new VmException(69, guest.trouble);
        } else if (verdict == Verdict.TIMED_OUT) {
            throw new VmException(124, "the command did not end within " + timeout.toSeconds() + " s and was killed");
        }
        return verdict == Verdict.INTERRUPTED ? verdict.exitCode : guest.code;
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
            procctl-reaping    doas go test -v -tags="dragonfly integration" -run TestIntegration_ProcctlReaping ./environment/bsd/
            procfind           doas go test -v -tags=integration -run TestIntegration_ProcfindReaping ./environment/bsd/
            orphans            doas go test -v -tags=integration -run TestIntegration_OrphanedProcesses ./environment/bsd/
            fixtures           go test -v ./stats/ -run Fixture
            """;

    /** A suite: its command, or what it stands for; and the setting that gave it, or "". */
    record Suite(String name, String command, List<String> parts, String setting) {}

    /** The suites by name: the built-in ones, changed and extended by VM_TEST_<SUITE>. */
    static Map<String, Suite> suites(Settings settings) {
        Map<String, Suite> table = new LinkedHashMap<>();
        SUITES.lines().map(line -> line.split(" +", 2)).forEach(row -> table.put(row[0], new Suite(row[0], row[1], List.of(), "")));
        table.put("all", new Suite("all", "", List.of("unit", "integration", "phase4"), ""));
        table.put("quick", new Suite("quick", "", List.of("--sync", "phase4"), ""));
        Stream.concat(settings.environment().keySet().stream(), settings.file().keySet().stream())
                .filter(key -> key.matches("VM_TEST_[A-Z0-9_]+") && settings.get(key) != null).distinct().sorted().forEach(key -> {
                    String name = key.substring("VM_TEST_".length()).toLowerCase(Locale.ROOT).replace('_', '-');
                    table.put(name, new Suite(name, settings.get(key), List.of(), key));
                });
        return table;
    }

    /** The suites to run, each once, the build first. */
    static List<Suite> choose(Map<String, Suite> table, List<String> names) {
        Set<String> chosen = new LinkedHashSet<>(List.of("build"));
        for (String name : names) {
            if (!table.containsKey(name)) {
                CommandSpec known = CommandSpec.create();
                Stream.concat(table.keySet().stream(), Stream.of("list", "run"))
                        .forEach(it -> known.addSubcommand(it, CommandSpec.create()));
                List<String> near = new UnmatchedArgumentException(new CommandLine(known), List.of(name)).getSuggestions();
                throw new VmException(2, "there is no suite '" + name + "'" + (near.isEmpty() ? "" : " (did you mean "
                        + String.join(" or ", near) + "?)") + "; 'vm-test list' names them, and a setting VM_TEST_<SUITE> makes one");
            }
            chosen.addAll(table.get(name).parts().isEmpty() ? List.of(name) : table.get(name).parts());
        }
        return chosen.stream().filter(table::containsKey).map(table::get).toList();
    }

    /** The words of a command that is one plain go test, whose output can be asked for as JSON; of any other, none. */
    static List<String> goTest(String command) {
        String bare = command.replaceAll("'[^']*'|\"[^\"$`]*\"|\\\\.", "");
        List<String> words = bare.matches("(?s)[^|;&<>`()$*?~\n\"']*") ? split(command) : List.of();
        int go = 0;
        while (go < words.size() && words.get(go).matches("\\w+=.*|doas|env")) {
            go++;
        }
        return go + 1 < words.size() && words.get(go).matches("(.*/)?go") && words.get(go + 1).equals("test")
                && Collections.disjoint(words, List.of("-c", "-n", "-h", "-help")) ? words : List.of();
    }

    /** What the guest's sh is given: command and arguments; a go test with -json, and if the arguments name packages, with these alone. */
    static String guestCommand(String command, List<String> arguments) {
        List<String> words = goTest(command);
        if (words.isEmpty()) {
            return arguments.isEmpty() ? command : command + " " + quoted(arguments);
        }
        int test = words.indexOf("test") + 1;
        boolean otherPackages = IntStream.range(0, arguments.size()).anyMatch(i -> isPackage(arguments, i));
        List<String> kept = IntStream.range(test, words.size()).filter(i -> !(otherPackages && isPackage(words, i)))
                .mapToObj(words::get).filter(word -> !word.equals("-json")).toList();
        return (words.get(0).contains("=") ? "env " : "")
                + quoted(Stream.of(words.subList(0, test), List.of("-json"), kept, arguments).flatMap(List::stream).toList());
    }

    private static boolean isPackage(List<String> words, int i) {
        return words.get(i).matches("\\.|(\\./|\\.\\./|/).*|[^-].*(\\.\\.\\.|\\.go)") && !words.subList(0, i).contains("-args")
                && (i == 0 || !words.get(i - 1).matches("--?(run|skip|bench|fuzz|tags|exec|o|C|trace|outputdir|\\w+profile)"));
    }

    /** Words that sh reads back as they are. */
    static String quoted(List<String> words) {
        return words.stream().map(word -> word.matches("[A-Za-z0-9_@%+=:,./-]+") ? word : "'" + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    // Before the suites

    private void checkOptions() {
        environment.keySet().stream().filter(name -> !name.matches("[A-Za-z_]\\w*")).forEach(name -> {
            throw new VmException(2, "--env: '" + name + "' is not the name of a variable");
        });
        Stream.concat(Stream.ofNullable(junit), Stream.ofNullable(json)).forEach(file -> {
            if (Files.isDirectory(file) || !Files.isWritable(file.toAbsolutePath().getParent())) {
                throw new VmException(2, "cannot write " + file + ": name a file in a folder that exists and is writable");
            }
        });
    }

    private void requireRunning() {
        if (!alive()) {
            throw new VmException(3, "VM " + vmName + " is not running; start it: vm-ctl start");
        }
    }

    private boolean alive() {
        return livePid(vmDir.resolve(vmName + ".pid")).isPresent();
    }

    private String guestDirectory() {
        return remoteDir != null ? remoteDir : "/root/" + project.getFileName();
    }

    /** vm-ctl or vm-sync, as a process with the same settings and its own time limits; what it says goes to stderr. */
    private void runSibling(String command, String... arguments) throws IOException, InterruptedException {
        List<String> line = Stream.concat(split(command).stream(), Stream.of(arguments)).toList();
        ProcessBuilder builder = new ProcessBuilder(line).redirectErrorStream(true);
        builder.environment().putAll(
                Map.of("VM_DIR", vmDir.toString(), "VM_NAME", vmName, "VM_PROJECT", project.toString(), "VM_REMOTE_DIR", guestDirectory()));
        sibling = start(builder);
        sibling.getOutputStream().close();
        sibling.getInputStream().transferTo(System.err);
        int code = sibling.waitFor();
        if (code != 0) {
            throw new VmException(code, "no suite was run: '" + quoted(line) + "' failed with exit code " + code);
        }
    }

    private Process start(ProcessBuilder builder) {
        if (verbose) {
            System.err.println("+ " + quoted(builder.command()));
        }
        try {
            return builder.start();
        } catch (IOException missing) {
            throw new VmException(69, builder.command().get(0) + " cannot be run (is it installed?): " + missing.getMessage());
        }
    }

    // One command in the guest

    /**
     * The guest's side, in plain sh: no timeout(1), setsid(1) or cgroups there. It comes on stdin, which afterwards carries a line
     * every few seconds; any other line, the end, or a minute's silence is the order to stop. The suite's processes are those that
     * were not there before and descend from it, or whose forefather init adopted (it left the process group, or its parent died).
     * Out of reach: what an old daemon (cron, at) starts for the suite. Taken for the suite's: what another daemonizes meanwhile.
     */
    static final String SUPERVISOR = """
            exec 3>&2 4<&0 </dev/null 2>/dev/null
            trap '' HUP INT QUIT TERM PIPE
            say() { echo "$mark$*" >&3; }
            nap() { sleep 0.2; }
            table() { ps -axww -o pid,ppid,stat,command; }
            files() { [ ! -d /build ] || find /build -xdev; }
            mine() { # its processes: pid and command; $1 is the pid it hangs from
                table | awk -v top="$1" -v watcher="$(cat "$d/watcher")" -v before="$d/before" '
                    BEGIN { while ((getline line < before) > 0) { split(line, f, " "); old[f[1]] = 1 } }
                    $1 + 0 > 0 { p = $1; parent[p] = $2; zombie[p] = $3 ~ /^Z/; sub(/^ *[0-9]+ +[0-9]+ +[^ ]+ +/, ""); name[p] = $0 }
                    END {
                        for (p in parent) if (parent[p] == 1 && name[p] ~ /^[^ ]*(sshd|getty|cron)/) old[p] = 1
                        for (p in parent) {
                            for (q = p; q in parent && !(q in old) && q != watcher; q = parent[q]) ;
                            if (!(p in old) && !zombie[p] && (q == top || q == 1)) print p, name[p]
                        }
                    }'
            }
            pids() { mine $$ | awk "$1 { print \\$1 }"; }
            tests() { pids '$2 ~ /\\.test$/ && / -test\\./'; }
            gone() { # up to $1 naps until $2 finds nothing
                n=$1
                while [ $n -gt 0 ] && [ -n "$($2)" ]; do nap; n=$((n - 1)); done
            }
            stop() {
                : >"$d/stopping"
                kill -QUIT $(tests) # the goroutine dump; go test then ends by itself, unless something holds its pipes open
                gone 40 tests
                gone 10 pids
                n=0
                while nap; [ $n -lt 20 ] && [ -n "$(pids)" ]; do kill -KILL $(pids); n=$((n + 1)); done
                mine $$ | head -n 100 | while read -r l; do say "leak process $l"; done
            }
            cd "$dir" || { say nowhere; exit; }
            d=$(mktemp -d /tmp/vm-test.XXXXXX) || { say "leak no room in /tmp"; exit; }
            [ -z "$leaks" ] || { mount >"$d/mounts"; files >"$d/files"; }
            table >"$d/before"
            (
                (while read -r word <&4 && [ "$word" = beat ]; do say beat; : >"$d/beat"; done; : >"$d/over") &
                echo $! >"$d/reader"
                exec 3>&- 4<&-
                n=0
                while [ ! -e "$d/over" ] && [ $n -lt 60 ]; do
                    if [ -e "$d/beat" ]; then rm "$d/beat"; n=0; fi
                    sleep 1
                    n=$((n + 1))
                done
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
            [ ! -e "$d/stopping" ] || wait $watcher
            orphans() { mine none; }
            if [ -n "$leaks" ]; then
                gone 15 orphans
                {
                    orphans | sed 's/^/process /'
                    mount | grep -vxF -f "$d/mounts" | sed 's/^/mount /'
                    files | grep -vxF -f "$d/files" | sed 's/^/file /'
                } | head -n 200 | while read -r l; do say "leak $l"; done
            fi
            kill -KILL $watcher $(cat "$d/reader")
            rm -r "$d"
            say "exit $code"
            """;

    /** The supervisor with what it is to run: text for sh's stdin. */
    static String supervisor(String mark, String directory, String command, Map<String, String> environment, boolean leakCheck) {
        return assignments(Map.of("mark", mark, "dir", directory, "command", command, "environment", assignments(environment),
                "leaks", leakCheck ? "yes" : "")) + SUPERVISOR;
    }

    private static String assignments(Map<String, String> values) {
        return values.entrySet().stream().map(it -> it.getKey() + "=" + quoted(List.of(it.getValue())) + "\n")
                .collect(Collectors.joining());
    }

    /** ssh to a sh that takes so many bytes of stdin as its script. csh, a possible login shell, reads this one line as sh does. */
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
        private static final Pattern PANIC = Pattern.compile("(?m)^(panic: |Fatal trap |SECONDARY PANIC|db> )");
        final String mark = "\u001e" + UUID.randomUUID() + " ";
        private final byte[] script;
        private final Path console = vmDir.resolve(vmName + ".console.log");
        private final long consoleStart = Files.exists(console) ? console.toFile().length() : 0;
        private final AtomicInteger showing = new AtomicInteger();
        private volatile long lastSign = System.nanoTime();
        private String held = "";
        volatile Integer code;
        final List<String> left = Collections.synchronizedList(new ArrayList<>());
        String trouble;

        GuestRun(String command, boolean leakCheck) {
            script = supervisor(mark, guestDirectory(), command, environment, leakCheck).getBytes(UTF_8);
        }

        /** Runs it to its end, or the time limit, or until VM or connection are lost; the texts come one at a time. */
        Verdict run(Charset charset, Consumer<String> stdout, Consumer<String> stderr) throws InterruptedException {
            // In a session of its own: else Ctrl-C would end ssh too, and with it the way to say "stop".
            Stream<String> setsid = Stream.of(System.getenv("PATH").split(":")).map(dir -> dir + "/setsid")
                    .filter(file -> Files.isExecutable(Path.of(file))).limit(1);
            Process process = start(new ProcessBuilder(Stream.concat(setsid, sshCommand(vmDir, vmName, script.length).stream()).toList()));
            send(process, script);
            List<Thread> pumps = List.of(pump(process.getInputStream(), charset, stdout),
                    pump(process.getErrorStream(), charset, text -> sift(text, stderr)));
            long deadline = System.nanoTime() + timeout.toNanos();
            long stopAt = 0;
            long panickedAt = 0;
            Verdict stop = null;
            try {
                for (int round = 0;; round++) {
                    boolean gone = process.waitFor(100, TimeUnit.MILLISECONDS);
                    long now = System.nanoTime();
                    if (gone || code != null && silent(DRAINED)) { // the latter: something that was left behind holds the output open
                        while (pumps.stream().anyMatch(Thread::isAlive) && !silent(DRAINED)) {
                            Thread.sleep(10);
                        }
                        return stop != null ? stop : code == null ? lost("the connection was lost")
                                : code == 0 ? Verdict.PASSED : Verdict.FAILED;
                    } else if (stop == null && (interrupted || now > deadline)) {
                        stop = interrupted ? Verdict.INTERRUPTED : Verdict.TIMED_OUT;
                        stopAt = now;
                        send(process, "stop\n".getBytes(UTF_8));
                    } else if (stop != null && now - stopAt > STOPPING.toNanos()) {
                        left.add("perhaps everything: the guest did not answer the order to stop");
                        return stop;
                    } else if (stop == null && round % (BEAT.toMillis() / 100) == 0) {
                        send(process, "beat\n".getBytes(UTF_8));
                    }
                    panickedAt = panickedAt == 0 && round % 10 == 9 && PANIC.matcher(console(consoleStart)).find() ? now : panickedAt;
                    if (!alive() || panickedAt > 0 && now - panickedAt > AFTER_PANIC.toNanos() && silent(AFTER_PANIC) || silent(SILENCE)) {
                        return lost("the guest has not answered for " + SILENCE.toSeconds() + " s");
                    }
                }
            } finally {
                process.destroy();
            }
        }

        private Verdict lost(String what) throws InterruptedException {
            if (trouble != null) {
                return Verdict.LOST;
            }
            Thread.sleep(2_000); // QEMU may be on its way out, and the console's last words on theirs
            String said = console(consoleStart);
            Matcher panic = PANIC.matcher(said);
            boolean panicked = panic.find();
            List<String> lines = (panicked ? said.substring(panic.start()) : console(0)).lines().filter(line -> !line.isBlank()).toList();
            int first = panicked ? 0 : Math.max(0, lines.size() - 10);
            trouble = (panicked ? "the guest panicked" : alive() ? what : "VM " + vmName + " ended")
                    + "; vm-ctl " + (alive() ? "restart" : "start") + " brings it back. From " + console + ":\n"
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

        /** Has the guest said nothing for so long, not counting the time that this end needed to show it? */
        private boolean silent(Duration limit) {
            return showing.get() == 0 && System.nanoTime() - lastSign > limit.toNanos();
        }

        private Thread pump(InputStream in, Charset charset, Consumer<String> sink) {
            Thread thread = new Thread(() -> {
                char[] buffer = new char[1 << 16];
                try (Reader reader = new InputStreamReader(in, charset)) {
                    for (int n = reader.read(buffer); n >= 0; n = reader.read(buffer)) {
                        showing.incrementAndGet();
                        synchronized (this) {
                            sink.accept(new String(buffer, 0, n));
                        }
                        lastSign = System.nanoTime();
                        showing.decrementAndGet();
                    }
                } catch (IOException closed) {
                    // ssh has ended, which run() sees
                }
            });
            thread.setDaemon(true);
            thread.start();
            return thread;
        }

        /** Takes the supervisor's own lines out of stderr; they may stand in the middle of another line, or come in pieces. */
        void sift(String text, Consumer<String> rest) {
            held += text;
            for (int start = held.indexOf(mark), end; start >= 0 && (end = held.indexOf('\n', start)) >= 0; start = held.indexOf(mark)) {
                rest.accept(held.substring(0, start));
                heard(held.substring(start + mark.length(), end));
                held = held.substring(end + 1);
            }
            int mine = held.lastIndexOf('\u001e');
            int ready = mine >= 0 && (mark.startsWith(held.substring(mine)) || held.startsWith(mark, mine)) ? mine : held.length();
            rest.accept(held.substring(0, ready));
            held = held.substring(ready);
        }

        private void heard(String word) {
            String rest = word.substring(word.indexOf(' ') + 1);
            switch (word.split(" ")[0]) {
                case "exit" -> code = Integer.valueOf(rest);
                case "nowhere" -> trouble = guestDirectory() + " is not in the VM; vm-sync (or vm-test --sync) brings the project there";
                case "leak" -> left.add(rest);
                default -> { } // a beat: that something came is all it says
            }
        }

        private void send(Process process, byte[] bytes) {
            try {
                process.getOutputStream().write(bytes);
                process.getOutputStream().flush();
            } catch (IOException closed) {
                // ssh has ended, which run() sees
            }
        }
    }

    // One suite

    private Report runSuite(String suite, String command, List<String> arguments, PrintWriter events)
            throws IOException, InterruptedException {
        String whole = guestCommand(command, arguments);
        System.err.println("== " + suite + ": " + harmless(whole));
        StringBuilder output = new StringBuilder();
        StringBuilder screen = new StringBuilder();
        StringBuilder outLine = new StringBuilder();
        StringBuilder errLine = new StringBuilder();
        Report report = new Report(suite, screen::append, events::print);
        boolean go = !goTest(command).isEmpty();
        boolean root = Pattern.compile("(^|[\\s;&|(])doas\\s").matcher(command).find();
        GuestRun guest = new GuestRun(whole, root && leaks != Leaks.ignore);
        report.verdict = guest.run(UTF_8, text -> {
            lines(outLine, text, go ? report::line : line -> { });
            keep(output, go ? "" : text);
            print(1, go ? screen.toString() : text, UTF_8);
            screen.setLength(0);
        }, text -> {
            lines(errLine, text, report::errorLine);
            keep(output, text);
            print(2, text, UTF_8);
        });
        report.end();
        print(1, screen.toString(), UTF_8);
        report.seconds = Duration.between(report.started, Instant.now()).toMillis() / 1000.0;
        report.guestCode = guest.code;
        if (!go || report.verdict == Verdict.FAILED && !report.failed()) {
            report.add(suite, "", report.verdict == Verdict.PASSED ? "pass" : report.verdict != Verdict.FAILED ? "unfinished"
                    : suite.equals("build") ? "broken" : "fail", output.toString());
        }
        if (leaks == Leaks.warn) {
            guest.left.forEach(what -> System.err.println("vm-test: " + suite + " left behind: " + harmless(what)));
        } else if (!guest.left.isEmpty()) {
            report.add(suite, "left behind", "fail", String.join("\n", guest.left));
        }
        if (guest.trouble != null) {
            report.add(suite, "VM", "unfinished", guest.trouble);
        }
        report.verdict = report.verdict == Verdict.PASSED && report.failed() ? Verdict.FAILED : report.verdict;
        Path results = Files.createDirectories(vmDir.resolve(vmName + ".test"));
        Files.writeString(results.resolve(suite + ".json"), report.json(whole));
        return report;
    }

    /** Adds to a text of which only the end is kept. */
    static void keep(StringBuilder end, String text) {
        end.append(text);
        end.delete(0, end.length() > 128_000 ? end.length() - 64_000 : 0);
    }

    /** Gives on the lines of a text that comes in pieces; a line of more than a megabyte stays in pieces. */
    static void lines(StringBuilder line, String text, Consumer<String> consumer) {
        int start = 0;
        for (int end = text.indexOf('\n') + 1; end > 0; end = text.indexOf('\n', start) + 1) {
            consumer.accept(line.append(text, start, end).toString());
            line.setLength(0);
            start = end;
        }
        if (line.append(text, start, text.length()).length() > 1 << 20) {
            consumer.accept(line.toString());
            line.setLength(0);
        }
    }

    /** A test, or under the name "" its package. Outcomes: "" (it runs), pass, fail, skip, unfinished, broken (not built). */
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

        /** Its output without the lines that frame it. */
        String said() {
            return output.toString().replaceAll("(?m)^\\s*(=== (RUN|PAUSE|CONT|NAME) .*|--- (PASS|FAIL|SKIP): .*)\n?", "");
        }

        @Override
        public String toString() {
            String said = Map.of("skip", "SKIP ", "fail", "FAIL ", "unfinished", "DID NOT FINISH ", "broken", "BUILD FAILED ")
                    .getOrDefault(outcome, "");
            return said + pkg + (name.isEmpty() ? "" : " " + name) + (seconds > 0 ? String.format(Locale.ROOT, " (%.2fs)", seconds) : "");
        }
    }

    /**
     * What became of a suite; of a {@code go test} what its events said, one by one. Its packages run side by side: one is shown live, the
     * others' output waits for its turn, so that it reads like {@code go test -v}. What passed keeps no output, the rest the end of it.
     */
    static final class Report {
        private static final Pattern BROKEN = Pattern.compile("FAIL\t(\\S+) \\[(?:build|setup) failed]\\s*");
        private static final Pattern BUILD_OF = Pattern.compile("# (\\S+)(?: \\[(\\S+)\\.test])?\\s*");

        final String suite;
        final Instant started = Instant.now();
        Verdict verdict;
        Integer guestCode;
        double seconds;
        final Map<String, Map<String, Test>> packages = new TreeMap<>();
        private final Map<String, StringBuilder> builds = new LinkedHashMap<>();
        private final Map<String, StringBuilder> waiting = new LinkedHashMap<>();
        private final Consumer<String> screen;
        private final Consumer<String> events;
        private String shown;
        private StringBuilder building;

        Report(String suite, Consumer<String> screen, Consumer<String> events) {
            this.suite = suite;
            this.screen = screen;
            this.events = events;
        }

        /** One line of go test's stdout: an event; or anything else, like a build failure before Go 1.24, which is shown as it is. */
        void line(String line) {
            JsonObject event = new JsonObject();
            try {
                event = line.startsWith("{") ? VmTest.json(line) : event;
            } catch (IOException notAnEvent) {
                // without an Action it is shown
            }
            String action = event.getString("Action", "");
            String output = event.getString("Output", "");
            if (action.isEmpty()) {
                errorLine(line);
                screen.accept(line);
                return;
            }
            events.accept(line);
            if (action.startsWith("build-")) { // Go 1.24 and later
                keep(build(event.getString("ImportPath", "")), output);
                screen.accept(output);
            } else {
                event(action, test(event.getString("Package", ""), ""), event.getString("Test"), output, event);
            }
        }

        private void event(String action, Test pkg, String name, String output, JsonObject event) {
            Test test = name == null ? pkg : packages.get(pkg.pkg).get(name);
            if (action.equals("run") && name != null) {
                packages.get(pkg.pkg).put(name, new Test(pkg.pkg, name)); // with -count it runs again
            } else if (action.equals("output")) {
                show(pkg.pkg, output);
                broken(output);
                keep(test == null ? pkg.output : test.output, output);
            } else if (List.of("pass", "fail", "skip").contains(action) && test != null) { // null: a print that looks like a result
                test.end(event.has("FailedBuild") || test.outcome.equals("broken") ? "broken" : action, event.getDouble("Elapsed", 0));
                if (test == pkg) {
                    packages.get(pkg.pkg).values().stream().filter(it -> it.outcome.isEmpty())
                            .forEach(it -> it.end(action.equals("fail") ? "unfinished" : action, 0));
                    showNext(pkg.pkg);
                }
            }
        }

        /** One line that is no event: stderr, where Go before 1.24 says what the compiler and vet say. */
        void errorLine(String line) {
            Matcher header = BUILD_OF.matcher(line);
            if (header.matches()) {
                building = build(header.group(2) != null ? header.group(2) : header.group(1));
            } else if (broken(line)) {
                building = null;
            } else if (building != null) {
                keep(building, line);
            }
        }

        private StringBuilder build(String importPath) {
            return builds.computeIfAbsent(importPath.replaceFirst(" \\[.*", ""), path -> new StringBuilder());
        }

        private boolean broken(String line) {
            Matcher found = BROKEN.matcher(line);
            if (found.matches()) {
                test(found.group(1), "").outcome = "broken";
            }
            return found.matches();
        }

        private Test test(String pkg, String name) {
            return packages.computeIfAbsent(pkg, it -> new LinkedHashMap<>()).computeIfAbsent(name, it -> new Test(pkg, name));
        }

        void add(String pkg, String name, String outcome, String output) {
            test(pkg, name).end(outcome, name.isEmpty() ? seconds : 0);
            keep(test(pkg, name).output, output);
        }

        private void show(String pkg, String output) {
            shown = shown == null ? pkg : shown;
            StringBuilder text = waiting.computeIfAbsent(pkg, it -> new StringBuilder());
            keep(text, output);
            if (shown.equals(pkg)) {
                screen.accept(text.toString());
                text.setLength(0);
            }
        }

        /** After a package's end: if it was on the screen, what others that ended said follows, then whoever says something next. */
        private void showNext(String ended) {
            if (ended.equals(shown)) {
                shown = null;
                waiting.entrySet().stream().filter(it -> !test(it.getKey(), "").outcome.isEmpty()).forEach(it -> {
                    screen.accept(it.getValue().toString());
                    it.getValue().setLength(0);
                });
            }
        }

        /** No more events: what has no result now never gets one. */
        void end() {
            all().filter(test -> test.outcome.isEmpty()).forEach(test -> test.end("unfinished", 0));
            waiting.values().forEach(text -> screen.accept(text.toString()));
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
                Set<String> holders = tests.values().stream().filter(Test::failed).map(Test::parent).collect(Collectors.toSet());
                return tests.values().stream().filter(test -> test.failed()
                        && (!holders.contains(test.name) || !test.name.isEmpty() && !test.said().isBlank()));
            }).toList();
        }

        /** Why. A package that was not built for another's fault has no lines of its own: then all of them. */
        String reason(Test test) {
            if (test.outcome.equals("broken") && !builds.isEmpty()) {
                return builds.containsKey(test.pkg) ? builds.get(test.pkg).toString() : String.join("", builds.values());
            }
            return test.said() + (test.outcome.equals("unfinished") && !test.name.isEmpty() ? "\n" + test(test.pkg, "").said() : "");
        }

        /** The verdict in one line. */
        String said() {
            boolean build = verdict == Verdict.FAILED && failures().stream().allMatch(test -> test.outcome.equals("broken"));
            return suite + " " + verdict + (build ? " (build failed)" : "")
                    + (verdict == Verdict.PASSED || guestCode == null ? "" : ", guest exit code " + guestCode);
        }

        /** What a person reads after the suite: the verdict, then why; in a suite of 2,000 tests not every skipped one. */
        String summary() {
            Map<String, Long> counts = all().filter(test -> !test.name.isEmpty())
                    .collect(Collectors.groupingBy(test -> test.outcome, TreeMap::new, Collectors.counting()));
            List<String> lines = new ArrayList<>();
            lines.add("== " + said()
                    + counts.entrySet().stream().map(count -> ", " + count.getValue() + " " + count.getKey()).collect(Collectors.joining())
                    + String.format(Locale.ROOT, ", %.1f s", seconds));
            failures().forEach(test -> {
                lines.add("   " + test);
                shortened(reason(test)).forEach(line -> lines.add("       " + line));
            });
            all().filter(test -> test.outcome.equals("skip") && !test.name.isEmpty()).limit(50).forEach(test -> lines.add("   " + test
                    + test.said().lines().map(line -> ": " + line.strip()).reduce("", (first, last) -> last)));
            Set<String> holders = all().map(test -> test.pkg + " " + test.parent()).collect(Collectors.toSet());
            all().filter(test -> test.seconds >= 0.1 && !test.name.isEmpty() && !holders.contains(test.pkg + " " + test.name))
                    .sorted(Comparator.comparingDouble(test -> -test.seconds)).limit(5).forEach(test -> lines.add("   slow: " + test));
            return harmless(String.join("\n", lines)) + "\n";
        }

        private static List<String> shortened(String text) {
            List<String> lines = text.lines().filter(line -> !line.isBlank()).toList();
            return lines.size() <= 180 ? lines : Stream.of(lines.subList(0, 90), List.of("... (" + (lines.size() - 170) + " lines)"),
                    lines.subList(lines.size() - 80, lines.size())).flatMap(List::stream).toList();
        }

        /** The result as it is kept in VM_DIR. */
        String json(String command) {
            JsonArray tests = new JsonArray();
            all().forEach(test -> tests.add(new JsonObject(Map.of("package", test.pkg, "test", test.name, "outcome", test.outcome,
                    "seconds", test.seconds, "output", test.failed() ? reason(test) : test.said()))));
            return JsonWriter.indent("  ").string().object().value("suite", suite).value("command", command)
                    .value("verdict", verdict.toString()).value("guestExitCode", guestCode).value("started", started.toString())
                    .value("seconds", seconds).array("tests", tests).end().done() + "\n";
        }
    }

    // JUnit

    /** The JUnit report: a testsuite for each package of a go test, and one for each suite of another kind. */
    static String junit(List<Report> reports, String host) {
        StringBuilder xml = new StringBuilder("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        int id = 0;
        for (Report report : reports) {
            List<Test> failures = report.failures();
            for (Map.Entry<String, Map<String, Test>> pkg : report.packages.entrySet()) {
                List<Test> tests = pkg.getValue().values().stream()
                        .filter(test -> !test.name.isEmpty() || failures.contains(test) || test.pkg.equals(report.suite)).toList();
                Map<String, Long> kinds = tests.stream().collect(Collectors.groupingBy(VmTest::junitKind, Collectors.counting()));
                xml.append(tag("testsuite", "id", id++, "package", report.suite, "name", pkg.getKey(), "hostname", host,
                        "timestamp", report.started.truncatedTo(ChronoUnit.SECONDS).toString().replace("Z", ""),
                        "time", pkg.getValue().containsKey("") ? pkg.getValue().get("").seconds : 0.0, "tests", tests.size(),
                        "failures", kinds.getOrDefault("failure", 0L), "errors", kinds.getOrDefault("error", 0L),
                        "skipped", kinds.getOrDefault("skipped", 0L))).append("<properties/>\n");
                for (Test test : tests) {
                    String kind = junitKind(test);
                    String name = test.name.isEmpty() ? test.pkg : test.name;
                    xml.append(tag("testcase", "classname", test.pkg, "name", name, "time", test.seconds));
                    if (!kind.isEmpty()) {
                        xml.append(kind.equals("skipped") ? tag(kind, "message", test.said().strip())
                                : tag(kind, "type", test.outcome, "message", test) + escaped(report.reason(test)));
                        xml.append("</" + kind + ">");
                    }
                    xml.append("</testcase>\n");
                }
                xml.append("<system-out/><system-err/></testsuite>\n");
            }
        }
        return xml.append("</testsuites>\n").toString();
    }

    private static String junitKind(Test test) {
        return Map.of("pass", "", "skip", "skipped", "fail", "failure").getOrDefault(test.outcome, "error");
    }

    private static String tag(String name, Object... attributes) {
        StringBuilder tag = new StringBuilder("<" + name);
        for (int i = 0; i < attributes.length; i += 2) {
            String value = escaped(String.format(Locale.ROOT, attributes[i + 1] instanceof Double ? "%.3f" : "%s", attributes[i + 1]));
            tag.append(" " + attributes[i] + "=\"" + value.replace("\n", "&#10;").replace("\t", "&#9;") + "\"");
        }
        return tag.append('>').toString();
    }

    /** Text for XML 1.0, without the characters that it cannot hold even escaped. */
    static String escaped(String text) {
        return text.replaceAll("[^\t\n\\x20-\ud7ff\ue000-\ufffd\\x{10000}-\\x{10ffff}]", "")
                .replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\"", "&quot;");
    }

    // On a terminal

    private void print(int descriptor, String text, Charset charset) {
        byte[] bytes = (quiet ? "" : terminal(descriptor) ? harmless(text) : text).getBytes(charset);
        (descriptor == 1 ? System.out : System.err).write(bytes, 0, bytes.length);
        (descriptor == 1 ? System.out : System.err).flush();
    }

    /** Is this file descriptor a terminal, or not known not to be one? */
    private static boolean terminal(int descriptor) {
        try {
            return Files.readSymbolicLink(Path.of("/proc/self/fd/" + descriptor)).toString().matches("/dev/(pts/.*|tty.*|console)");
        } catch (IOException noProc) {
            return true;
        }
    }

    /** Control characters made visible (^[ for an escape), so that the guest cannot speak to the terminal; newlines and tabs stay. */
    static String harmless(String text) {
        return Pattern.compile("[\\p{Cc}&&[^\n\t]]").matcher(text.replace("\r\n", "\n")).replaceAll(found -> {
            char c = found.group().charAt(0);
            return Matcher.quoteReplacement(c < 0x80 ? "^" + (char) (c ^ 0x40) : String.format("<%02x>", (int) c));
        });
    }

    static final class Limit implements ITypeConverter<Duration> {
        @Override
        public Duration convert(String value) {
            if (!value.matches("(?=.*[1-9])(\\d{1,6}h)?(\\d{1,6}m)?(\\d{1,6}s?)?")) {
                throw new TypeConversionException("'" + value + "' is no time limit: 90s, 10m, 1h30m");
            }
            return Duration.parse("PT" + value + (Character.isDigit(value.charAt(value.length() - 1)) ? "S" : ""));
        }
    }

    // shared:cli
    /** An expected failure: one line that says what happened and what to do, and the exit code that goes with it. */
    static final class VmException extends RuntimeException {
        private static final long serialVersionUID = 1;
        final int exitCode;

        VmException(int exitCode, String message) {
            super(message);
            this.exitCode = exitCode;
        }
    }

    /** A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code. */
    static CommandLine commandLine(Object command, Settings settings) {
        return new CommandLine(command).setExpandAtFiles(false).setCaseInsensitiveEnumValuesAllowed(true)
                .setDefaultValueProvider(arg -> settings.get(arg.descriptionKey()))
                .setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException expected)) {
                        throw failure;
                    }
                    line.getErr().println(line.getCommandSpec().root().name() + ": " + expected.getMessage());
                    return expected.exitCode;
                }).setParameterExceptionHandler((failure, args) -> {
                    CommandLine line = failure.getCommandLine();
                    List<String> near = failure instanceof UnmatchedArgumentException unmatched ? unmatched.getSuggestions() : List.of();
                    line.getErr().println(line.getCommandSpec().root().name() + ": " + settings.blame(failure, args)
                            + (near.isEmpty() ? "" : " (did you mean " + String.join(" or ", near) + "?)")
                            + "; see: " + line.getCommandSpec().qualifiedName() + " --help");
                    return line.getCommandSpec().exitCodeOnInvalidInput();
                });
    }
    // end shared:cli

    // shared:settings
    /** What holds where no option is given: the environment, else the KEY=VALUE lines of vm.env. Empty means unset. */
    record Settings(Map<String, String> environment, Map<String, String> file) {
        static Settings read(Map<String, String> environment, Path directory) {
            Map<String, String> file = new HashMap<>();
            Pattern setting = Pattern.compile("\\s*(\\w+)\\s*=\\s*(['\"]?)(.*?)\\2\\s*");
            try (Stream<String> lines = Files.lines(directory.resolve("vm.env"))) {
                lines.map(setting::matcher).filter(Matcher::matches).forEach(match -> file.put(match.group(1), match.group(3)));
            } catch (IOException none) {
                // without a vm.env the environment alone counts
            }
            return new Settings(environment, file);
        }

        /** The value of a setting, or null. */
        String get(String name) {
            String value = environment.getOrDefault(name, "").isEmpty() ? file.get(name) : environment.get(name);
            return value == null || value.isEmpty() ? null : value;
        }

        /** What a refused command line is told: a bad value that no argument gave is named by its variable. */
        String blame(ParameterException failure, String... args) {
            if (!(failure.getArgSpec() instanceof OptionSpec option) || get(option.descriptionKey()) == null
                    || Arrays.stream(args).anyMatch(arg -> arg.startsWith(option.longestName()))) {
                return failure.getMessage();
            }
            boolean fromFile = environment.getOrDefault(option.descriptionKey(), "").isEmpty();
            return option.descriptionKey() + (fromFile ? " in vm.env: " : " in the environment: ") + failure.getMessage();
        }
    }
    // end shared:settings

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is the home directory, a relative one starts here. */
    static Path userPath(String value) {
        return Path.of(value.equals("~") || value.startsWith("~/") ? System.getProperty("user.home") + value.substring(1) : value)
                .toAbsolutePath().normalize();
    }
    // end shared:paths

    // shared:process
    /** The process that a pid file speaks of, if it still is that process: same host boot, same start time, a QEMU. */
    static OptionalLong livePid(Path pidFile) {
        try {
            JsonObject said = json(Files.readString(pidFile));
            long pid = said.getLong("pid");
            long started = startTicks(pid);
            boolean same = started > 0 && started == said.getLong("startTicks") && bootId().equals(said.getString("bootId"));
            return same ? OptionalLong.of(pid) : OptionalLong.empty();
        } catch (IOException | ClassCastException none) {
            return OptionalLong.empty();
        }
    }

    /** When a process started: clock ticks since boot (field 22 of /proc/PID/stat), milliseconds without /proc; -1 if it is gone. */
    static long startTicks(long pid) {
        try {
            String stat = Files.readString(Path.of("/proc/" + pid + "/stat"));
            String[] fields = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
            return fields[0].equals("Z") ? -1 : Long.parseLong(fields[19]);
        } catch (IOException noProc) {
            return ProcessHandle.of(pid).flatMap(process -> process.info().startInstant()).map(Instant::toEpochMilli).orElse(-1L);
        }
    }

    /** Changes with every boot of the host: a pid from before it means nothing. */
    static String bootId() {
        try {
            return Files.readString(Path.of("/proc/sys/kernel/random/boot_id")).strip();
        } catch (IOException notLinux) {
            return "";
        }
    }
    // end shared:process

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

    // shared:split
    /** The words of a setting, split like a shell does it: quotes and backslashes count, nothing else is expanded. */
    static List<String> split(String text) {
        String piece = "'[^']*'|\"(?:\\\\.|[^\"\\\\])*\"|\\\\.|[^\\s'\"\\\\]";
        if (!text.matches("(?s)(?:" + piece + "|\\s)*")) {
            throw new VmException(2, "a quote is not closed: " + text);
        }
        return Pattern.compile("(?s)(?:" + piece + ")+").matcher(text).results().map(word -> Pattern.compile("(?s)" + piece)
                .matcher(word.group()).replaceAll(part -> Matcher.quoteReplacement(switch (part.group().charAt(0)) {
                    case '\'' -> part.group().substring(1, part.group().length() - 1);
                    case '"' -> part.group().substring(1, part.group().length() - 1).replaceAll("\\\\([\"\\\\$`])", "$1");
                    case '\\' -> part.group().substring(1);
                    default -> part.group();
                }))).collect(Collectors.toList());
    }
    // end shared:split
}
