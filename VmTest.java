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
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.Charset;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
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
import picocli.CommandLine.Help.Ansi;
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
 * <li>A summary, the --junit and --json files, and the verdict as exit code: 0, 1, 69 (VM lost), 124 (time limit).
 * </ol>
 * Reads {@code <name>.pid}, {@code ssh_config} (ssh does), {@code <name>.console.log}; writes {@code <name>.test/}:
 * {@code <suite>.json} (result and timings of its last run), {@code <suite>.log} (its output), {@code lock}.
 */
@Command(name = "vm-test", mixinStandardHelpOptions = true, version = "1",
        description = "Build a project and run its tests in the running VM, and give a verdict",
        customSynopsis = {"vm-test [OPTIONS] SUITE... [-- ARGS]", "vm-test list", "vm-test run [OPTIONS] -- CMD"},
        footer = {"", "Examples:",
            "  vm-test unit                               the build, then one suite",
            "  vm-test unit -- -run TestX ./pkg/...       arguments for its command (packages replace the suite's)",
            "  vm-test --sync all --junit report.xml      the project's newest state, three suites, a report",
            "  VM_TEST_LINT='go vet ./...' vm-test lint   a suite of your own",
            "", "Exit codes: 0 passed, 1 a test or the build failed, 2 usage, 3 the VM is not running,",
            "69 the VM or the connection was lost (or another vm-test is at work), 124 time limit, 130/143 interrupted.",
            "The guest's own exit code stands in the summary."})
final class VmTest implements Callable<Integer> {

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    void setVmDir(String value) {
        vmDir = userPath(value);
    }

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            paramLabel = "NAME", converter = VmName.class, description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
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

    @Option(names = "--leaks", defaultValue = "fail", paramLabel = "MODE", description = "What follows from mounts, processes and "
            + "files under /build that a doas suite leaves behind: ${COMPLETION-CANDIDATES} (default: ${DEFAULT-VALUE}).")
    Leaks leaks;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    @Parameters(paramLabel = "SUITE", description = "Suites, see 'vm-test list'; what follows -- is appended to their commands.")
    List<String> words = new ArrayList<>();

    @Spec
    CommandSpec spec;

    enum Leaks { fail, warn, ignore }

    private static final Duration BEAT = Duration.ofSeconds(5);
    private static final Duration SILENCE = Duration.ofSeconds(120); // a guest that swaps or is being frozen answers late
    private static final Duration AFTER_PANIC = Duration.ofSeconds(15); // "panic:" on the console, then three beats missed
    private static final Duration STOPPING = Duration.ofSeconds(60); // the supervisor takes 25 s at most

    private final Settings settings;
    private Path vmDir;
    private Path project;
    List<String> ssh = List.of("ssh");
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
        if (!fresh) {
            requireRunning();
        }
        Path results = privateDirectory(vmDir.resolve(vmName + ".test"));
        List<Result> done = new ArrayList<>();
        FileChannel alone = lock(results.resolve("lock"), "vm-test " + String.join(" ", words)); // two would see each other's leaks
        try (PrintWriter events = new PrintWriter(json == null ? Writer.nullWriter() : Files.newBufferedWriter(json))) {
            if (fresh) {
                runSibling(ctlCommand, "restore");
                requireRunning();
            }
            if (sync || fresh || names.contains("quick") && !table.get("quick").parts().isEmpty()) {
                runSibling(syncCommand);
            }
            for (Suite suite : chosen) {
                boolean build = suite.name().equals("build");
                if (build && List.of("true", ":").contains(suite.command().strip())) {
                    continue; // VM_TEST_BUILD=true: there is nothing to build
                }
                Result result = runSuite(suite, build ? List.of() : words.subList(named, words.size()), results, events);
                done.add(result);
                show(result);
                if (build && result.verdict() != Verdict.PASSED || result.verdict().compareTo(Verdict.INTERRUPTED) >= 0) {
                    break;
                }
            }
            if (junit != null) {
                writeFile(junit.toAbsolutePath(), junit(done, vmName), "rw-r--r--");
            }
        } finally {
            alone.close();
        }
        return overall(done, chosen);
    }

    @Command(name = "list", mixinStandardHelpOptions = true, footer = {"", "Example: vm-test list", "Exit codes: 0 done, 2 usage."},
            description = "Show the suites, their commands, and the settings that gave them.")
    int list() {
        PrintWriter answer = spec.commandLine().getOut();
        suites(settings).values().forEach(suite -> answer.printf("%-18s %s%s%n", suite.name(), suite,
                suite.setting().isEmpty() ? "" : "  (" + suite.setting() + ")"));
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

    /** A suite: its command, or the suites it stands for; and the setting that gave it, or "". */
    record Suite(String name, String command, List<String> parts, String setting) {
        @Override
        public String toString() {
            return parts.isEmpty() ? command : (name.equals("quick") ? "--sync " : "") + String.join(" ", parts);
        }
    }

    /** The suites by name: the built-in ones, changed and extended by VM_TEST_<SUITE>. */
    static Map<String, Suite> suites(Settings settings) {
        String bsd = "doas go test -v -tags=%s -run TestIntegration_%s ./environment/bsd/";
        Map<String, Suite> table = new LinkedHashMap<>();
        Stream.of(
                List.of("build", "gmake build"),
                List.of("unit", "go test -v -short ./..."),
                List.of("integration", "go test -v -tags=integration ./..."),
                List.of("integration-e2e", "go test -v -tags=integration ./integration_e2e_test.go"),
                List.of("build-integration", "go test -v ./build/ -run TestIntegration"),
                List.of("build-cancellation", "go test -v ./build/ -run TestIntegration_BuildCancellation"),
                List.of("phase4", "doas go test -v ./internal/worker/..."),
                List.of("e2e", "go test -v -tags=e2e ./..."),
                List.of("procctl", bsd.formatted("integration", "Proc")),
                List.of("procctl-reaping", bsd.formatted("\"dragonfly integration\"", "ProcctlReaping")),
                List.of("procfind", bsd.formatted("integration", "ProcfindReaping")),
                List.of("orphans", bsd.formatted("integration", "OrphanedProcesses")),
                List.of("fixtures", "go test -v ./stats/ -run Fixture"))
                .forEach(row -> table.put(row.get(0), new Suite(row.get(0), row.get(1), List.of(), "")));
        table.put("all", new Suite("all", "", List.of("unit", "integration", "phase4"), ""));
        table.put("quick", new Suite("quick", "", List.of("phase4"), ""));
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
                Stream.concat(table.keySet().stream(), Stream.of("list", "run")).forEach(it -> known.addSubcommand(it, CommandSpec.create()));
                List<String> near = new UnmatchedArgumentException(new CommandLine(known), List.of(name)).getSuggestions();
                throw new VmException(2, "there is no suite '" + name + "'" + (near.isEmpty() ? "" : " (did you mean "
                        + String.join(" or ", near) + "?)") + "; 'vm-test list' names them, and a setting VM_TEST_<SUITE> makes one");
            }
            chosen.addAll(table.get(name).parts().isEmpty() ? List.of(name) : table.get(name).parts());
        }
        return chosen.stream().map(table::get).toList();
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

    /** What the guest's sh is given: the suite's command and the arguments; a go test with -json, and only the packages of the arguments, if any. */
    static String guestCommand(String command, List<String> arguments) {
        List<String> words = goTest(command);
        if (words.isEmpty()) {
            return arguments.isEmpty() ? command : command + " " + quoted(arguments);
        }
        int test = words.indexOf("test") + 1;
        boolean otherPackages = IntStream.range(0, arguments.size()).anyMatch(i -> isPackage(arguments, i));
        return (words.get(0).contains("=") ? "env " : "") + quoted(Stream.of(words.subList(0, test), List.of("-json"),
                IntStream.range(test, words.size()).filter(i -> !words.get(i).equals("-json") && !(otherPackages && isPackage(words, i)))
                        .mapToObj(words::get).toList(), arguments).flatMap(List::stream).toList());
    }

    private static boolean isPackage(List<String> words, int i) {
        return words.get(i).matches("\\.|(\\./|\\.\\./|/).*|[^-].*(\\.\\.\\.|\\.go)") && !words.subList(0, i).contains("-args")
                && (i == 0 || !words.get(i - 1).matches("--?(run|skip|bench|fuzz|tags|exec|o|C|trace|outputdir|\\w+profile)"));
    }

    /** Words that sh reads back as they are. */
    static String quoted(List<String> words) {
        return words.stream().map(word -> word.matches("[A-Za-z0-9_@%+:,./-]+") ? word : "'" + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    // Before the suites

    private void checkOptions() {
        environment.keySet().stream().filter(key -> !key.matches("[A-Za-z_][A-Za-z0-9_]*")).findFirst().ifPresent(key -> {
            throw new VmException(2, "--env: '" + key + "' is not the name of a variable");
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
            throw new VmException(69, builder.command().get(0) + " cannot be run ('vm-setup check' tells what is missing): " + missing.getMessage());
        }
    }

    // One command in the guest

    /**
     * The guest's side, in plain sh: no timeout(1), setsid(1) or cgroups there. It comes on stdin, which afterwards carries a line every few
     * seconds; any other line, the end, or a minute's silence is the order to stop. The suite's processes are those that were not there
     * before and descend from it, or whose forefather init adopted (it left the process group, or its parent died). Out of reach:
     * what an old daemon (cron, at) starts for the suite. Taken for the suite's: what somebody else daemonizes meanwhile.
     */
    static final String SUPERVISOR = """
            d=$(mktemp -d /tmp/vm-test.XXXXXX) || exit 69
            exec 3>&2 4<&0 </dev/null 2>/dev/null
            trap '' HUP INT QUIT TERM PIPE
            say() { echo "$mark$*" >&3; }
            nap() { sleep 0.2; }
            table() { ps -axww -o pid,ppid,stat,command; }
            files() { [ ! -d /build ] || find /build -xdev | sort; }
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
                kill -QUIT $(tests) # the goroutine dump; go test then ends by itself, if nothing holds its pipes open
                gone 40 tests
                kill -TERM $(pids '$2 !~ /(^|\\/)(go|doas|sh)$/')
                gone 15 pids
                n=0
                while nap; [ $n -lt 20 ] && [ -n "$(pids)" ]; do kill -KILL $(pids); n=$((n + 1)); done
                mine $$ | head -n 100 | while read -r l; do say "survivor $l"; done
            }
            cd "$dir" || { say nodir; rm -r "$d"; exit 69; }
            [ -z "$leaks" ] || { mount | sort >"$d/mounts"; files >"$d/files"; }
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
                eval "$environment"
                exec sh -c "$command"
            ) 2>&3 3>&- 4<&-
            code=$?
            [ ! -e "$d/stopping" ] || wait $watcher
            orphans() { mine none; }
            if [ -n "$leaks" ]; then
                gone 15 orphans
                {
                    orphans | sed 's/^/process /'
                    mount | sort | comm -13 "$d/mounts" - | sed 's/^/mount /'
                    files | comm -13 "$d/files" - | sed 's/^/file /'
                } | head -n 200 | while read -r l; do say "leak $l"; done
            fi
            kill -KILL $watcher $(cat "$d/reader")
            rm -r "$d"
            say "exit $code"
            """;

    /** The supervisor with what it is to run: text for sh's stdin. */
    static String supervisor(String mark, String directory, String command, Map<String, String> environment, boolean leakCheck) {
        String exports = environment.entrySet().stream().map(it -> "export " + it.getKey() + "=" + quoted(List.of(it.getValue())) + "\n")
                .collect(Collectors.joining());
        Map<String, String> values = Map.of("mark", mark, "dir", directory, "command", command, "environment", exports, "leaks", leakCheck ? "yes" : "");
        return values.entrySet().stream().map(it -> it.getKey() + "=" + quoted(List.of(it.getValue())) + "\n").collect(Collectors.joining()) + SUPERVISOR;
    }

    /** ssh to a sh that takes so many bytes of stdin as its script. csh, a possible login shell, reads this one line as sh does. */
    static List<String> sshCommand(List<String> ssh, Path vmDir, String vmName, int scriptBytes) {
        return Stream.concat(ssh.stream(), Stream.of("-F", vmDir.resolve("ssh_config").toString(), "-T", vmName,
                "exec sh -c 'eval \"$(dd bs=1 count=" + scriptBytes + " 2>/dev/null)\"'")).toList();
    }

    enum Verdict {
        PASSED(0), FAILED(1), TIMED_OUT(124), INTERRUPTED(130), LOST(69);

        final int exitCode;

        Verdict(int exitCode) {
            this.exitCode = exitCode;
        }

        @Override
        public String toString() {
            return name().replace('_', ' ').toLowerCase(Locale.ROOT);
        }
    }

    private final class GuestRun {
        private static final Pattern PANIC = Pattern.compile("(?m)^(panic: |Fatal trap |SECONDARY PANIC|db> )");
        private final String mark = "\u001e" + UUID.randomUUID() + " ";
        private final byte[] script;
        private final Path console = vmDir.resolve(vmName + ".console.log");
        private final long consoleStart = Files.exists(console) ? console.toFile().length() : 0;
        private final AtomicInteger showing = new AtomicInteger();
        private volatile long lastSign = System.nanoTime();
        private volatile boolean noDirectory;
        private String held = "";
        volatile Integer code;
        final List<String> left = Collections.synchronizedList(new ArrayList<>());
        final List<String> survivors = Collections.synchronizedList(new ArrayList<>());
        String trouble;

        GuestRun(String command, boolean leakCheck) {
            script = supervisor(mark, guestDirectory(), command, environment, leakCheck).getBytes(UTF_8);
        }

        /** Runs it to its end, or the time limit, or until VM or connection are lost; the texts come one at a time. */
        Verdict run(Charset charset, Consumer<String> stdout, Consumer<String> stderr) throws InterruptedException {
            // In a session of its own: else Ctrl-C would end ssh too, and with it the way to say "stop".
            boolean setsid = Stream.of(System.getenv().getOrDefault("PATH", "").split(":")).anyMatch(dir -> Files.isExecutable(Path.of(dir, "setsid")));
            Process process = start(new ProcessBuilder(Stream.concat(Stream.of("setsid").filter(it -> setsid),
                    sshCommand(ssh, vmDir, vmName, script.length).stream()).toList()));
            send(process, script);
            List<Thread> pumps = List.of(pump(process.getInputStream(), charset, stdout), pump(process.getErrorStream(), charset, text -> sift(text, stderr)));
            long deadline = System.nanoTime() + timeout.toNanos();
            long stopAt = 0;
            long panickedAt = 0;
            Verdict stop = null;
            try {
                for (int round = 0;; round++) {
                    boolean gone = process.waitFor(100, TimeUnit.MILLISECONDS);
                    long now = System.nanoTime();
                    if (gone || code != null && silent(Duration.ofSeconds(2))) { // the latter: something that was left behind holds the output open
                        while (pumps.stream().anyMatch(Thread::isAlive) && !silent(Duration.ofSeconds(2))) {
                            Thread.sleep(10);
                        }
                        if (noDirectory) {
                            throw new VmException(69, guestDirectory() + " is not in the VM; bring the project there: vm-sync (or vm-test --sync)");
                        }
                        return stop != null ? stop : code == null ? lost("the connection was lost") : code == 0 ? Verdict.PASSED : Verdict.FAILED;
                    } else if (stop == null && (interrupted || now > deadline)) {
                        stop = interrupted ? Verdict.INTERRUPTED : Verdict.TIMED_OUT;
                        stopAt = now;
                        send(process, "stop\n".getBytes(UTF_8));
                    } else if (stop != null && now - stopAt > STOPPING.toNanos()) {
                        survivors.add("perhaps all of it: the guest did not answer the order to stop");
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
            for (int i = 0; i < 20 && alive() && !PANIC.matcher(console(consoleStart)).find(); i++) {
                Thread.sleep(100); // QEMU may be on its way out, and the console's last words on theirs
            }
            String said = console(consoleStart);
            Matcher panic = PANIC.matcher(said);
            boolean panicked = panic.find();
            List<String> lines = (panicked ? said.substring(panic.start()) : console(0)).lines().filter(line -> !line.isBlank()).toList();
            trouble = (panicked ? "the guest panicked" : alive() ? what : "VM " + vmName + " ended")
                    + "; vm-ctl " + (alive() ? "restart" : "start") + " brings it back. From " + console + ":\n"
                    + String.join("\n", panicked ? lines.subList(0, Math.min(15, lines.size())) : lines.subList(Math.max(0, lines.size() - 10), lines.size()));
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
        private void sift(String text, Consumer<String> rest) {
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
                case "leak" -> left.add(rest);
                case "survivor" -> survivors.add(rest);
                case "nodir" -> noDirectory = true;
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

    /** How a suite ended. {@code go} is null if it was no go test, {@code guestCode} if nothing was heard of it. */
    record Result(Suite suite, Verdict verdict, Integer guestCode, Instant started, double seconds, GoReport go, String output,
            List<String> left, List<String> survivors, String trouble) {
        /** The verdict in words. */
        String said() {
            boolean build = suite.name().equals("build") || go != null && go.count("fail") + go.count("unfinished") == 0 && !go.broken().isEmpty();
            return verdict + (verdict != Verdict.FAILED ? "" : build ? " (build failed)" : go != null && go.failed() ? " (tests failed)"
                    : guestCode == 0 ? " (something was left behind)" : "") + (guestCode == null || verdict == Verdict.PASSED ? "" : ", guest exit code " + guestCode);
        }
    }

    private Result runSuite(Suite suite, List<String> arguments, Path results, PrintWriter events) throws IOException, InterruptedException {
        String command = guestCommand(suite.command(), arguments);
        System.err.println("== " + suite.name() + ": " + harmless(command));
        Instant started = Instant.now();
        Kept output = new Kept(16_000);
        AtomicInteger room = new AtomicInteger(64 << 20);
        try (PrintWriter log = new PrintWriter(Files.newBufferedWriter(results.resolve(suite.name() + ".log")))) {
            Consumer<String> record = text -> {
                if (room.get() > 0 && room.addAndGet(-text.length()) <= 0) {
                    log.print("\n[the log ends here: over 64 MB]\n");
                } else if (room.get() > 0) {
                    log.print(text);
                }
            };
            StringBuilder screen = new StringBuilder();
            GoReport go = goTest(suite.command()).isEmpty() ? null : new GoReport(screen::append, events::print);
            Lines lines = new Lines(line -> {
                if (go != null) {
                    go.line(line);
                }
            });
            Lines errorLines = new Lines(line -> {
                if (go != null) {
                    go.errorLine(line);
                }
            });
            Consumer<String> show = text -> {
                record.accept(text);
                if (!quiet) {
                    print(1, text, UTF_8);
                }
            };
            boolean leakCheck = leaks != Leaks.ignore && Pattern.compile("(^|[\\s;&|(])doas\\s").matcher(suite.command()).find();
            GuestRun guest = new GuestRun(command, leakCheck);
            Verdict verdict = guest.run(UTF_8, text -> {
                if (go == null) {
                    output.add(text);
                    show.accept(text);
                } else {
                    lines.accept(text);
                    show.accept(screen.toString());
                    screen.setLength(0);
                }
            }, text -> {
                record.accept(text);
                output.add(text);
                errorLines.accept(text);
                if (!quiet) {
                    print(2, text, UTF_8);
                }
            });
            if (go != null) {
                lines.end();
                errorLines.end();
                go.end();
                show.accept(screen.toString());
            }
            boolean failed = go != null && go.failed() || leaks == Leaks.fail && !guest.left.isEmpty();
            Result result = new Result(suite, verdict == Verdict.PASSED && failed ? Verdict.FAILED : verdict, guest.code, started,
                    Duration.between(started, Instant.now()).toMillis() / 1000.0, go, output.text(), guest.left, guest.survivors, guest.trouble);
            writeFile(results.resolve(suite.name() + ".json"), json(result, command), "rw-------");
            return result;
        }
    }

    /** A suite's last result, as it is kept in VM_DIR. */
    static String json(Result result, String command) {
        JsonArray packages = new JsonArray();
        if (result.go() != null) {
            result.go().packages.values().forEach(pkg -> packages.add(new JsonObject(Map.of("package", pkg.name, "outcome", pkg.outcome, "seconds", pkg.seconds,
                    "tests", new JsonArray(pkg.tests.values().stream().map(test -> new JsonObject(
                            Map.of("name", test.name, "outcome", test.outcome, "seconds", test.seconds))).toList())))));
        }
        return JsonWriter.indent("  ").string().object().value("suite", result.suite().name()).value("command", command)
                .value("verdict", result.verdict().toString()).value("guestExitCode", result.guestCode())
                .value("started", result.started().truncatedTo(ChronoUnit.SECONDS).toString()).value("seconds", result.seconds())
                .array("left", result.left()).array("packages", packages).end().done() + "\n";
    }

    private void show(Result result) {
        String said = result.said();
        String coloured = Ansi.AUTO.string("@|bold," + (result.verdict() == Verdict.PASSED ? "green " : "red ") + said + "|@");
        spec.commandLine().getOut().print(summary(result, leaks).replaceFirst(Pattern.quote(said), Matcher.quoteReplacement(coloured)));
        spec.commandLine().getOut().flush();
    }

    /** What a person reads after a suite: the verdict, then why. */
    static String summary(Result result, Leaks leaks) {
        GoReport go = result.go();
        List<String> lines = new ArrayList<>(List.of("== " + result.suite().name() + ": " + result.said() + (go == null ? "" : ", " + go.counts())
                + String.format(Locale.ROOT, ", %.1f s", result.seconds())));
        Map<String, String> failures = go == null ? Map.of() : go.failures();
        failures.forEach((title, text) -> {
            lines.add("   " + title);
            shortened(text, 80, 20).forEach(line -> lines.add("       " + line));
        });
        if (go != null) {
            go.skipped().stream().limit(20).forEach(line -> lines.add("   SKIP " + line));
            Stream.of(go.skipped().size() - 20).filter(more -> more > 0).forEach(more -> lines.add("   SKIP ... and " + more + " more"));
            go.slowest().forEach(line -> lines.add("   slow " + line));
        }
        if (failures.isEmpty() && result.verdict() == Verdict.FAILED && result.left().isEmpty()) {
            String compiler = result.output().lines().filter(line -> line.matches("\\S+\\.\\w+:\\d+.*")).collect(Collectors.joining("\n"));
            shortened(compiler.isEmpty() ? result.output() : compiler, 0, 15).forEach(line -> lines.add("       " + line));
        }
        result.left().forEach(what -> lines.add("   LEFT BEHIND" + (leaks == Leaks.fail ? " " : " (warning) ") + what));
        result.survivors().forEach(what -> lines.add("   STILL RUNNING " + what));
        Stream.ofNullable(result.trouble()).flatMap(String::lines).forEach(lines::add);
        return harmless(String.join("\n", lines)) + "\n";
    }

    private static List<String> shortened(String text, int first, int last) {
        List<String> lines = text.lines().filter(line -> !line.isBlank()).toList();
        return lines.size() <= first + last + 1 ? lines : Stream.of(lines.subList(0, first), List.of("... (" + (lines.size() - first - last)
                + " lines; the log has all)"), lines.subList(lines.size() - last, lines.size())).flatMap(List::stream).toList();
    }

    private int overall(List<Result> done, List<Suite> chosen) {
        Verdict worst = done.stream().map(Result::verdict).max(Comparator.naturalOrder()).orElse(Verdict.PASSED);
        String all = done.stream().map(result -> result.suite().name() + " " + result.said()).collect(Collectors.joining("; "));
        String notRun = chosen.stream().map(Suite::name).filter(name -> !name.equals("build")
                && done.stream().noneMatch(result -> result.suite().name().equals(name))).collect(Collectors.joining(", "));
        System.err.println("== " + worst + ": " + all + (notRun.isEmpty() ? "" : "; not run: " + notRun) + " [" + vmDir.resolve(vmName + ".test") + "]");
        return worst.exitCode;
    }

    // go test -json

    /**
     * What a {@code go test -json} run said, event by event. Packages run side by side: one is shown live, the others' output waits for
     * its turn, so that it reads like {@code go test -v}. Only what did not pass keeps its output, and only the beginning and the end of it.
     */
    static final class GoReport {
        /** {@code outcome}: "" while it runs, pass, fail, skip, or unfinished. */
        static final class Test {
            final String name;
            String outcome = "";
            double seconds;
            Kept output = new Kept(64_000);

            Test(String name) {
                this.name = name;
            }

            void end(String how, double took) {
                outcome = how;
                seconds = took;
                output = how.equals("pass") ? new Kept(0) : output;
            }

            /** Its output without the lines that frame it. */
            String said() {
                return output.text().lines().filter(line -> !line.matches("\\s*(=== (RUN|PAUSE|CONT|NAME) .*|--- (PASS|FAIL|SKIP): .*)"))
                        .collect(Collectors.joining("\n"));
            }
        }

        static final class Pkg {
            final String name;
            String outcome = "";
            double seconds;
            boolean broken;
            final Kept output = new Kept(16_000);
            Kept held = new Kept(1 << 20);
            final Map<String, Test> tests = new LinkedHashMap<>();

            Pkg(String name) {
                this.name = name;
            }

            List<Test> with(String wanted) {
                return tests.values().stream().filter(test -> test.outcome.equals(wanted)).toList();
            }

            void end(String how, double took) {
                outcome = how;
                seconds = took;
                with("").forEach(test -> test.end(how.equals("pass") ? "pass" : "unfinished", 0));
            }

            /** Did it fail for a reason that no test of it names: TestMain, an init function? */
            boolean failedByItself() {
                return !broken && !List.of("pass", "skip").contains(outcome) && with("fail").isEmpty() && with("unfinished").isEmpty();
            }
        }

        private static final List<String> RESULTS = List.of("pass", "fail", "skip");
        /** Go before 1.20 loses the result of a test whose output does not end in a newline: it stands at the end of that line. */
        private static final Pattern MID_LINE = Pattern.compile("\\s*[^\\s-].*--- (PASS|FAIL|SKIP): (\\S+) \\((\\d+\\.\\d+)s\\)\\s*");
        private static final Pattern BROKEN = Pattern.compile("FAIL\t(\\S+) \\[(?:build|setup) failed]\\s*");
        private static final Pattern BUILD_OF = Pattern.compile("# (\\S+)(?: \\[(\\S+)\\.test])?\\s*");

        final Map<String, Pkg> packages = new TreeMap<>();
        private final Map<String, Kept> builds = new LinkedHashMap<>();
        private final Consumer<String> screen;
        private final Consumer<String> events;
        private Pkg shown;
        private Kept building;

        GoReport(Consumer<String> screen, Consumer<String> events) {
            this.screen = screen;
            this.events = events;
        }

        /** One line of its stdout: an event; or anything else, like a build failure before Go 1.24, which is shown as it is. */
        void line(String line) {
            JsonObject event = new JsonObject();
            try {
                event = line.startsWith("{") ? json(line) : event;
            } catch (IOException notAnEvent) {
                // without an Action it is shown
            }
            String action = event.getString("Action", "");
            String output = event.getString("Output", "");
            String name = event.getString("Test");
            double seconds = event.getDouble("Elapsed", 0);
            if (action.isEmpty()) {
                errorLine(line);
                screen.accept(line);
                return;
            }
            events.accept(line.endsWith("\n") ? line : line + "\n");
            if (action.startsWith("build-")) { // Go 1.24 and later
                build(event.getString("ImportPath", "")).add(output);
                screen.accept(output);
                return;
            }
            Pkg pkg = packages.computeIfAbsent(event.getString("Package", ""), Pkg::new);
            if (action.equals("output")) {
                show(pkg, output);
                broken(output);
                (pkg.tests.containsKey(name) ? pkg.tests.get(name).output : pkg.output).add(output);
                Matcher late = MID_LINE.matcher(output);
                if (late.matches()) {
                    pkg.with("").stream().filter(test -> test.name.equals(late.group(2))).forEach(
                            test -> test.end(late.group(1).toLowerCase(Locale.ROOT), Double.parseDouble(late.group(3))));
                }
            } else if (action.equals("run") && name != null) {
                pkg.tests.put(name, new Test(name)); // with -count it runs again
            } else if (RESULTS.contains(action) && name != null) {
                Stream.ofNullable(pkg.tests.get(name)).forEach(test -> test.end(action, seconds)); // none: a test printed what looks like a result
            } else if (RESULTS.contains(action)) {
                pkg.broken |= event.has("FailedBuild");
                pkg.end(action, seconds);
                next(pkg);
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
                building.add(line);
            }
        }

        private Kept build(String importPath) {
            return builds.computeIfAbsent(importPath.replaceFirst(" \\[.*", ""), path -> new Kept(8_000));
        }

        private boolean broken(String line) {
            Matcher found = BROKEN.matcher(line);
            if (found.matches()) {
                Pkg pkg = packages.computeIfAbsent(found.group(1), Pkg::new);
                pkg.broken = true;
                pkg.outcome = "fail";
            }
            return found.matches();
        }

        private void show(Pkg pkg, String output) {
            shown = shown == null ? pkg : shown;
            if (shown == pkg) {
                screen.accept(output);
            } else {
                pkg.held.add(output);
            }
        }

        /** After a package's end: if it was the one on the screen, the others catch up, and one that still runs is shown live. */
        private void next(Pkg ended) {
            if (shown == ended || shown == null) {
                shown = null;
                packages.values().stream().filter(pkg -> !pkg.outcome.isEmpty()).forEach(this::catchUp);
                packages.values().stream().filter(pkg -> pkg.outcome.isEmpty() && !pkg.held.text().isEmpty()).findFirst().ifPresent(pkg -> {
                    catchUp(pkg);
                    shown = pkg;
                });
            }
        }

        private void catchUp(Pkg pkg) {
            screen.accept(pkg.held.text());
            pkg.held = new Kept(1 << 20);
        }

        /** No more events: what has no result now never gets one. */
        void end() {
            packages.values().stream().filter(pkg -> pkg.outcome.isEmpty()).forEach(pkg -> pkg.end("unfinished", 0));
            packages.values().forEach(this::catchUp);
        }

        boolean failed() {
            return !packages.values().stream().allMatch(pkg -> List.of("pass", "skip").contains(pkg.outcome));
        }

        long count(String outcome) {
            return packages.values().stream().mapToLong(pkg -> pkg.with(outcome).size()).sum();
        }

        List<String> broken() {
            return packages.values().stream().filter(pkg -> pkg.broken).map(pkg -> pkg.name).toList();
        }

        String counts() {
            return count("pass") + " passed" + Stream.of("fail: failed", "unfinished: did not finish", "skip: skipped").map(it -> it.split(":"))
                    .filter(it -> count(it[0]) > 0).map(it -> ", " + count(it[0]) + it[1]).collect(Collectors.joining())
                    + ", packages: " + packages.values().stream().filter(pkg -> !pkg.tests.isEmpty()).count()
                    + (broken().isEmpty() ? "" : ", " + broken().size() + " not built");
        }

        /** What went wrong, with the output that says why; of a test and its subtests only those that say something. */
        Map<String, String> failures() {
            Map<String, String> answer = new LinkedHashMap<>();
            if (!broken().isEmpty()) {
                answer.put("BUILD FAILED " + String.join(", ", broken()), builds.values().stream().map(Kept::text).collect(Collectors.joining()));
            }
            for (Pkg pkg : packages.values()) {
                Set<String> holders = pkg.with("fail").stream().map(test -> parent(test.name)).collect(Collectors.toSet());
                pkg.with("fail").stream().filter(test -> !holders.contains(test.name) || !test.said().isBlank()).forEach(
                        test -> answer.put(String.format(Locale.ROOT, "FAIL %s %s (%.2fs)", pkg.name, test.name, test.seconds), test.said()));
                pkg.with("unfinished").forEach(test -> answer.put("DID NOT FINISH " + pkg.name + " " + test.name, test.said() + "\n" + pkg.output.text()));
                if (pkg.failedByItself()) {
                    answer.put((pkg.outcome.equals("fail") ? "FAIL " : "DID NOT FINISH ") + pkg.name, pkg.output.text());
                }
            }
            return answer;
        }

        private static String parent(String test) {
            return test.substring(0, Math.max(0, test.lastIndexOf('/')));
        }

        List<String> skipped() {
            return packages.values().stream().flatMap(pkg -> pkg.with("skip").stream().map(test -> pkg.name + " " + test.name + test.said().lines()
                    .filter(line -> !line.isBlank()).reduce((first, last) -> last).map(reason -> ": " + reason.strip()).orElse(""))).toList();
        }

        /** The slowest tests; of a test with subtests, these. */
        List<String> slowest() {
            record Timed(double seconds, String name) {}
            return packages.values().stream().flatMap(pkg -> {
                Set<String> holders = pkg.tests.keySet().stream().map(GoReport::parent).collect(Collectors.toSet());
                return pkg.tests.values().stream().filter(test -> test.seconds >= 0.1 && !holders.contains(test.name))
                        .map(test -> new Timed(test.seconds, pkg.name + " " + test.name));
            }).sorted(Comparator.comparingDouble(Timed::seconds).reversed()).limit(5)
                    .map(timed -> String.format(Locale.ROOT, "%.2fs %s", timed.seconds(), timed.name())).toList();
        }
    }

    /** The beginning and the end of a text that may be of any length. */
    static final class Kept {
        private final int half;
        private final StringBuilder first = new StringBuilder();
        private final StringBuilder last = new StringBuilder();
        private long dropped;

        Kept(int size) {
            half = size / 2;
        }

        void add(String text) {
            int fits = last.length() > 0 ? 0 : Math.min(text.length(), half - first.length());
            first.append(text, 0, fits);
            last.append(text, fits, text.length());
            if (last.length() > 2 * half) {
                dropped += last.length() - half;
                last.delete(0, last.length() - half);
            }
        }

        String text() {
            return first + (dropped == 0 ? "" : "\n[" + dropped + " characters left out]\n") + last;
        }
    }

    /** Cuts a text that comes in pieces into lines; a line of more than a megabyte stays in pieces. */
    static final class Lines {
        private final Consumer<String> consumer;
        private final StringBuilder line = new StringBuilder();

        Lines(Consumer<String> consumer) {
            this.consumer = consumer;
        }

        void accept(String text) {
            int start = 0;
            for (int end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
                line.append(text, start, end + 1);
                start = end + 1;
                end();
            }
            line.append(text, start, text.length());
            if (line.length() > 1 << 20) {
                end();
            }
        }

        void end() {
            if (line.length() > 0) {
                consumer.accept(line.toString());
                line.setLength(0);
            }
        }
    }

    // JUnit

    /** A test case; {@code kind}: "" passed, skipped, failure (the test says so), error (not built, not finished). */
    private record Case(String name, double seconds, String kind, String message, String text) {}

    /** The JUnit report: a testsuite for each package of a go test, and one for each suite of another kind. */
    static String junit(List<Result> results, String host) {
        StringBuilder xml = new StringBuilder("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        int id = 0;
        for (Result result : results) {
            for (Map.Entry<String, List<Case>> suite : cases(result).entrySet()) {
                List<Case> cases = suite.getValue();
                xml.append(tag("testsuite", "id", id++, "package", result.suite().name(), "name", suite.getKey(), "hostname", host,
                        "timestamp", result.started().truncatedTo(ChronoUnit.SECONDS).toString().replace("Z", ""),
                        "time", cases.stream().filter(test -> !test.name().contains("/")).mapToDouble(Case::seconds).sum(), "tests", cases.size(),
                        "failures", count(cases, "failure"), "errors", count(cases, "error"), "skipped", count(cases, "skipped"))).append("<properties/>\n");
                for (Case test : cases) {
                    xml.append("  ").append(tag("testcase", "classname", suite.getKey(), "name", test.name(), "time", test.seconds()));
                    if (test.kind().equals("skipped")) {
                        xml.append(tag("skipped", "message", test.message())).append("</skipped>");
                    } else if (!test.kind().isEmpty()) {
                        xml.append(tag(test.kind(), "type", test.message(), "message", test.message())).append(escaped(test.text()))
                                .append("</").append(test.kind()).append('>');
                    }
                    xml.append("</testcase>\n");
                }
                xml.append("<system-out/><system-err/></testsuite>\n");
            }
        }
        return xml.append("</testsuites>\n").toString();
    }

    private static Map<String, List<Case>> cases(Result result) {
        Map<String, List<Case>> suites = new LinkedHashMap<>();
        if (result.go() != null) {
            result.go().packages.values().forEach(pkg -> {
                List<Case> cases = new ArrayList<>();
                pkg.tests.values().forEach(test -> cases.add(new Case(test.name, test.seconds,
                        Map.of("fail", "failure", "skip", "skipped", "unfinished", "error").getOrDefault(test.outcome, ""),
                        Map.of("fail", "failed", "skip", test.said().strip(), "unfinished", "did not finish").getOrDefault(test.outcome, ""), test.said())));
                if (pkg.broken) {
                    cases.add(new Case("build", 0, "error", "build failed", result.go().failures().values().iterator().next()));
                } else if (pkg.failedByItself()) {
                    cases.add(new Case("package", pkg.seconds, "error", "failed outside its tests", pkg.output.text()));
                }
                suites.put(pkg.name, cases);
            });
        }
        if (suites.isEmpty() || result.trouble() != null) {
            String kind = result.verdict() == Verdict.PASSED ? "" : result.verdict() == Verdict.FAILED && result.go() == null ? "failure" : "error";
            suites.put(result.suite().name(), List.of(new Case(result.suite().name(), result.seconds(), kind, result.said(),
                    result.output() + Stream.ofNullable(result.trouble()).collect(Collectors.joining()))));
        }
        if (!result.left().isEmpty()) {
            suites.put(result.suite().name() + " leaks", List.of(new Case("leaks", 0, "failure", "left behind", String.join("\n", result.left()))));
        }
        return suites;
    }

    private static long count(List<Case> cases, String kind) {
        return cases.stream().filter(test -> test.kind().equals(kind)).count();
    }

    private static String tag(String name, Object... attributes) {
        StringBuilder tag = new StringBuilder("<" + name);
        for (int i = 0; i < attributes.length; i += 2) {
            String value = attributes[i + 1] instanceof Double seconds ? String.format(Locale.ROOT, "%.3f", seconds) : attributes[i + 1].toString();
            tag.append(' ').append(attributes[i]).append("=\"").append(escaped(value).replace("\n", "&#10;").replace("\t", "&#9;")).append('"');
        }
        return tag.append('>').toString();
    }

    /** Text for XML 1.0, without the characters that it cannot hold even escaped. */
    static String escaped(String text) {
        return text.replaceAll("[^\t\n\\x20-\ud7ff\ue000-\ufffd\\x{10000}-\\x{10ffff}]", "")
                .replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\"", "&quot;");
    }

    // On a terminal

    private static void print(int descriptor, String text, Charset charset) {
        byte[] bytes = (terminal(descriptor) ? harmless(text) : text).getBytes(charset);
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
        return Pattern.compile("[\\p{Cc}&&[^\n\t]]").matcher(text.replace("\r\n", "\n"))
                .replaceAll(found -> found.group().charAt(0) < 0x80 ? "^" + (char) (found.group().charAt(0) ^ 0x40) : String.format("<%02x>", (int) found.group().charAt(0)));
    }

    // Option values

    static final class VmName implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            if (!value.matches("[A-Za-z0-9_][A-Za-z0-9._-]*")) {
                throw new TypeConversionException("'" + value + "' is no name for a VM: letters, digits, '.', '_', '-'");
            }
            return value;
        }
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

    // shared:lock
    /** Takes a VM's lock, held until the channel is closed or this process ends; its text names the holder. 69 if another holds it. */
    static FileChannel lock(Path file, String command) throws IOException {
        FileChannel channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE);
        if (channel.tryLock() == null) {
            String holder;
            try (channel; InputStream in = Channels.newInputStream(channel)) {
                JsonObject said = json(new String(in.readAllBytes(), UTF_8));
                holder = said.getString("command") + " (pid " + said.getLong("pid") + ", since " + said.getString("since") + ")";
            } catch (IOException beingWritten) {
                holder = "another command";
            }
            throw new VmException(69, holder + " is at work on this VM: wait for it, or stop it, and try again");
        }
        channel.truncate(0).write(ByteBuffer.wrap(JsonWriter.string().object().value("pid", ProcessHandle.current().pid())
                .value("command", command).value("since", Instant.now().toString()).end().done().getBytes(UTF_8)));
        return channel;
    }
    // end shared:lock

    // shared:files
    /** Writes a file that others read: beside itself, then moved into place, so that nobody ever sees half of it. */
    static void writeFile(Path file, String text, String mode) throws IOException {
        Path beside = Files.createTempFile(file.getParent(), "." + file.getFileName(), ".new");
        try {
            Files.setPosixFilePermissions(Files.writeString(beside, text), PosixFilePermissions.fromString(mode));
            Files.move(beside, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            Files.deleteIfExists(beside);
        }
    }

    /** VM_DIR, made if missing, for its owner alone: keys and sockets lie in it. */
    static Path privateDirectory(Path directory) {
        try {
            Files.createDirectories(directory);
            return Files.setPosixFilePermissions(directory, PosixFilePermissions.fromString("rwx------"));
        } catch (IOException refused) {
            throw new VmException(69, "cannot write to " + directory + " (" + refused.getClass().getSimpleName()
                    + "): choose another directory with --vm-dir or VM_DIR");
        }
    }
    // end shared:files

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
