import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Supplier;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import picocli.CommandLine;
import picocli.CommandLine.MissingParameterException;
import picocli.CommandLine.Model.OptionSpec;

/**
 * The README says what the scripts and the Makefile do: targets, commands, settings, defaults, suites, file names.
 *
 * <p>Each line of its sh fences is in one of three classes: it is run here, without a VM; it is run by ManualTest, on the stand-in;
 * or it is named here with the reason why nothing runs it, and is only held against the scripts' options and the Makefile's targets.
 */
@Tag("unit")
final class ReadmeTest {

    /** Run here, in the README's order, in a copy of the checkout: a pattern and the exit codes it may have. */
    private static final Map<String, Set<Integer>> HERE = Map.ofEntries(
            Map.entry("make vm-check-prereqs", Set.of(0, 2)), // 2, make's own: whoever runs this may have no mirror, or no KVM
            Map.entry("mkdir -p -m 700 ~/.go-synth && cp vm.env.example ~/.go-synth/vm.env", Set.of(0)),
            Map.entry("export VM_DIR=.*mktemp.*", Set.of(0)),
            Map.entry("jbang catalog add .*", Set.of(0)),
            Map.entry("jbang vm-ctl@dfly --help", Set.of(0)),
            Map.entry("mkdir -p ~/hello/tools && cp .*", Set.of(0)),
            Map.entry("cd ~/hello && jbang tools/VmCtl.java --help", Set.of(0)),
            Map.entry("jbang vm-auto-install make-iso .*", Set.of(0)),
            Map.entry("jbang vm-ctl status", Set.of(3)), // make-iso made the keys of a VM
            Map.entry("jbang vm-ctl list", Set.of(0)),
            Map.entry("jbang vm-test list", Set.of(0)),
            Map.entry("make vm-clean-phases", Set.of(0)),
            Map.entry("make vm-destroy ARGS=--yes", Set.of(0)),
            Map.entry("rm ~/.go-synth/vm/dfly-6.4.2.iso", Set.of(0)));

    /** Run by ManualTest. */
    static final List<String> ON_A_VM = List.of("make vm-(setup|install|auto-install|start|stop|restore|quick)",
            "make vm-test-(?!vet|procctl-reaping).*", "VM_MEMORY=4G VM_CPUS=4 make vm-start",
            "jbang vm-ctl (ssh|exec|start|restart|snapshot|restore|screenshot|clone).*", "VM_NAME=(one|two) jbang vm-ctl .*", "jbang vm-sync( --dry-run| pull .*)?",
            "jbang vm-test (run|--).*", "jbang vm-auto-install (provision|--to 1|run-phase .*|--from 3 --yes)", "ssh -F .*", "rsync .*");

    /** Run by ManualTest in a project that has the README's Makefile and vm.env. */
    static final List<String> IN_THE_EXAMPLE = List.of("make vm-test-vet vm-test-unit vm-test-root");

    /** Run by nobody, and why. */
    private static final Map<String, String> NOWHERE = Map.ofEntries(
            Map.entry("make (demo|test|test-faults|test-real|lint)", "whoever tests runs these"),
            Map.entry("test/run [A-Z]\\w+|make test TESTS=.*", "the same"),
            Map.entry("sudo .*", "changes the machine"),
            Map.entry("jbang (trust add https://github.com/OWNER/|vm-ctl@OWNER/).*", "the internet"),
            Map.entry("make vm-test-procctl-reaping", "DragonFly: a Linux toolchain builds nothing with the tag dragonfly"),
            Map.entry("jbang vm-ctl console", "waits for a person; LifecycleTest pipes into it"),
            Map.entry("jbang vm-ctl console --log", "stays until the VM stops; LifecycleTest follows the console"),
            Map.entry("jbang vm-sync --watch", "stays until Ctrl-C; SyncTest watches"));

    private static final Map<String, Supplier<CommandLine>> SCRIPTS = Map.of("vm-setup", VmSetup::commandLine, "vm-auto-install",
            VmAutoInstall::commandLine, "vm-ctl", VmCtl::commandLine, "vm-sync", VmSync::commandLine, "vm-test", VmTest::commandLine);

    private final String readme = read("README.md");
    /** What stands in fences and backticks. */
    private final List<String> code = find("(?ms)^```[a-z]+\\n(.*?)^```|`([^`\\n]+)`", readme).stream()
            .flatMap(match -> (match.group(1) == null ? match.group(2) : match.group(1)).lines()).map(String::strip).toList();

    @Test
    void everyFencedLineIsRunOrNamed() {
        assertEquals(Set.of("sh", "make", "ini", "text", "mermaid"), find("(?ms)^```(\\S*)\\n.*?^```$", readme).stream()
                .map(fence -> fence.group(1)).collect(Collectors.toSet()), "each fence says what it is");
        List<String> patterns = new ArrayList<>(HERE.keySet());
        patterns.addAll(ON_A_VM);
        patterns.addAll(IN_THE_EXAMPLE);
        patterns.addAll(NOWHERE.keySet());
        Set<String> used = new HashSet<>();
        List<Executable> checks = new ArrayList<>();
        for (String line : commands()) {
            List<String> classes = patterns.stream().filter(line::matches).toList();
            used.addAll(classes);
            checks.add(() -> assertEquals(1, classes.size(), "'" + line + "' is in " + classes));
        }
        assertTrue(checks.size() > 50, "only " + checks.size() + " lines found");
        checks.add(() -> assertEquals(Set.copyOf(patterns), used, "a class is of lines that are there"));
        assertAll(checks);
    }

    @Test
    void whatNeedsNoVmRuns() throws Exception {
        Path scratch = checkout();
        Files.createDirectories(scratch.resolve("home/.go-synth/vm"));
        Files.createFile(scratch.resolve("home/.go-synth/vm/dfly-6.4.2.iso"));
        Map<String, String> out = new TreeMap<>();
        for (String line : commands()) {
            for (var run : HERE.entrySet()) {
                if (line.matches(run.getKey())) {
                    Ran ran = shell(scratch, line);
                    assertTrue(run.getValue().contains(ran.exitCode()), line + ": exit code " + ran.exitCode() + "\n" + ran.out() + ran.err());
                    out.put(line, ran.out());
                }
            }
        }
        for (String row : List.of("java", "qemu-system-x86_64", "space")) {
            String checked = out.get("make vm-check-prereqs");
            assertTrue(checked.matches("(?s)(.*\\n)?(ok|note|fail) +" + row + " .*"), row + " is not checked:\n" + checked);
        }
        assertTrue(out.get("jbang vm-ctl@dfly --help").startsWith("Usage: vm-ctl "), out.toString());
        assertEquals(out.get("jbang vm-ctl@dfly --help"), out.get("cd ~/hello && jbang tools/VmCtl.java --help"));
        assertTrue(Files.size(scratch.resolve("home/p2.iso")) > 0);
        Files.writeString(scratch.resolve("home/hello/Makefile"), fences("make").get(0));
        assertEquals("jbang tools/VmCtl.java start\njbang tools/VmSync.java\njbang tools/VmTest.java --sync unit\n",
                shell(scratch, "make -C home/hello --no-print-directory -n vm-start vm-sync vm-test-unit").out());
    }

    /** JBang turns them into question marks, before a script can see them. */
    @Test
    void lettersThatJBangLosesAreNotSent() throws Exception {
        Ran utf8 = shell(Path.of(""), "LC_ALL=C.UTF-8 jbang VmCtl.java strät");
        assertTrue(utf8.exitCode() == 2 && utf8.err().contains("there is no command 'strät' (did you mean start?)"), utf8.toString());
        Ran c = shell(Path.of(""), "LC_ALL=C jbang VmCtl.java exec echo strät");
        assertTrue(c.exitCode() == 2 && c.err().startsWith("vm-ctl: letters of an argument may have become question marks"), c.toString());
    }

    /** Pictures that GitHub shows: no script, nothing of the machine they were made on; and the measurements, in their place. */
    @Test
    void thePicturesAndTheMeasurementsAreThere() throws Exception {
        String foreign = "<script|href|/home/|/root/\\S*/\\.build|" + Pattern.quote(Path.of("").toAbsolutePath() + "/");
        for (String picture : List.of("bench/demo.svg", "bench/chart.svg")) {
            assertTrue(Files.exists(Path.of(picture)), picture + " is missing: make bench, or bench/Record.java, makes it");
            String text = read(picture);
            DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new File(picture));
            assertEquals(List.of(), words(foreign, text, "(?s)(.*)"), picture);
            assertTrue(text.length() < 150_000, picture);
        }
        assertTrue(read("bench/demo.svg").contains(">demo passed in "));
        List<MatchResult> measured = find("(?ms)^<!-- bench:begin -->\\n.*^\\| what \\| against \\|[^\\n]*\\n\\|---[^\\n]*\\n"
                + "((?:\\|[^\\n]*\\n)*).*^<!-- bench:end -->$", section("Speed"));
        assertEquals(1, measured.size(), "a table of measurements: make bench");
        long rows = measured.get(0).group(1).lines().count();
        assertTrue(rows >= 12, "only " + rows + " rows measured");
    }

    @Test
    void theCatalogSaysWhatTheScriptsSay() throws Exception {
        String listed = shell(Path.of(""), "jbang alias list").out();
        for (var script : SCRIPTS.entrySet()) {
            String description = String.join("", script.getValue().get().getCommandSpec().usageMessage().description()[0]);
            String file = find("\\w+\\.java", read("jbang-catalog.json")).stream().map(MatchResult::group)
                    .filter(name -> name.equalsIgnoreCase(script.getKey().replace("-", "") + ".java")).findFirst().orElseThrow();
            assertTrue(listed.matches("(?s)(.*\\n)?" + script.getKey() + "\\n +" + Pattern.quote(description) + "\\n.*" + file + "\\n.*"),
                    script.getKey() + ": " + description + "\n" + listed);
        }
        assertEquals(5, find("(?m)^\\S+$", listed).size(), listed);
    }

    @Test
    void everyTargetIsInTheTableAndInTheHelp() throws Exception {
        Set<String> listed = new TreeSet<>(words("vm-[a-z0-9-]+", section("Targets"), "(?m)^\\|([^|]*)\\|"));
        listed.addAll(words("vm-test-[a-z0-9-]+", section("Suites").replaceAll("(?m)^\\| (?!suite)([a-z0-9-]+) \\|.*", "vm-test-$1"), "(?s)(.*)"));
        Set<String> offered = new TreeSet<>(words("vm-[a-z0-9-]+", run("make", "-s", "vm-help"), "(?m)^  (\\S+)"));
        offered.remove("vm-test-"); // vm-test-NAME
        listed.removeAll(Set.of("vm-test-", "vm-test-build", "vm-test-all", "vm-test-quick", "vm-test-build-integration",
                "vm-test-build-cancellation")); // any suite's name will do; the help lists what the original had
        offered.remove("vm-test-all");
        assertEquals(offered, listed);
    }

    @Test
    void everyMakeCommandNamesTargetsThatExist() {
        Set<String> targets = new HashSet<>(words("[a-z0-9-]+", read("Makefile"), "(?m)^([a-z0-9-]+):"));
        Map<String, String> settings = fences("ini").stream().flatMap(String::lines).map(line -> line.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
        new VmTest.Suites(new VmTest.Settings(Map.of(), settings), Path.of("")).all().forEach(suite -> targets.add("vm-test-" + suite.name()));
        List<String> makes = code.stream().map(line -> line.replaceAll("^([A-Z_]+=\\S+ )+", "")).filter(line -> line.startsWith("make ")).toList();
        assertTrue(makes.size() > 5, makes.toString());
        for (String line : makes) {
            for (String word : line.replaceAll("\\s+#.*|\\S+='[^']*'|\\S+=\\S+", "").split("\\s+")) {
                assertTrue(word.equals("make") || word.startsWith("-") || targets.contains(word), line);
            }
        }
    }

    @Test
    void everyCommandParses() {
        List<Executable> checks = new ArrayList<>();
        for (String line : code) {
            List<String> words = new ArrayList<>(Arrays.asList(line.replaceAll("^jbang |\\s+#.*", "").split("\\s+")));
            boolean complete = words.size() > 1 && !line.matches(".*[<\\[…|].*|.*\\.\\.\\..*");
            if (SCRIPTS.containsKey(words.get(0)) && complete) {
                checks.add(() -> parse(words));
            }
        }
        assertTrue(checks.size() > 10, "only " + checks.size() + " commands found");
        assertAll(checks);
    }

    @Test
    void everySettingIsInTheTableWithItsDefault() {
        Map<String, String> defaults = new TreeMap<>();
        SCRIPTS.values().forEach(script -> collect(script.get(), defaults));
        assertEquals(VmCtl.SETTINGS, defaults.keySet(), "what a file may set without a warning");
        String table = section("Settings");
        Set<String> listed = new TreeSet<>(words("VM_[A-Z_]+(?<!_)|DFLY_VERSION", table, "(?m)^\\|([^|=]*)\\|")); // with = it is a line of vm.env
        listed.remove("VM_TEST"); // this is no option
        assertEquals(defaults.keySet(), listed);
        for (String name : List.of("DFLY_VERSION", "VM_DIR", "VM_NAME", "VM_DISK_SIZE", "VM_DISK_CACHE")) {
            assertTrue(table.matches("(?s).*`" + name + "` \\| `?" + Pattern.quote(defaults.get(name)) + "`? \\|.*"), name + " is " + defaults.get(name));
        }
    }

    @Test
    void theSuitesAreThoseOfVmTest() {
        Map<String, String> listed = find("(?m)^\\| ([a-z0-9-]+) \\| (.*?) \\|$", section("Suites")).stream().filter(row -> !row.group(1).equals("suite"))
                .collect(Collectors.toMap(row -> row.group(1), row -> row.group(2).replaceAll("`", ""), (one, other) -> one, TreeMap::new));
        listed.put("all", "unit integration phase4"); // in the table with a word more
        VmTest.Settings none = new VmTest.Settings(Map.of(), Map.of());
        StringWriter out = new StringWriter();
        assertEquals(0, VmTest.commandLine(new VmTest(none), none).setOut(new PrintWriter(out, true)).execute("list", "--project", "test/sample"));
        assertEquals(out.toString().lines().map(line -> line.split(" +", 2)).collect(Collectors.toMap(row -> row[0], row -> row[1].strip(),
                (one, other) -> one, TreeMap::new)), listed);
    }

    @Test
    void everyFileAndLinkIsThere() {
        Set<String> headings = find("(?m)^#+ (.*)$", readme).stream()
                .map(heading -> "#" + heading.group(1).toLowerCase().replaceAll("[^a-z0-9 _-]", "").replace(' ', '-')).collect(Collectors.toSet());
        for (MatchResult link : find("\\]\\(([^)\\s]+)\\)", readme)) {
            String to = link.group(1);
            assertTrue(to.startsWith("https://") || headings.contains(to) || Files.exists(Path.of(to)), to);
        }
        List<String> files = code.stream().filter(word -> word.matches("(test|phases|bench|\\.ci)/[\\w./-]*|[\\w.-]+\\.(java|json|example)"))
                .filter(word -> !word.equals("install.json") && !word.equals("accel.json")).toList();
        assertFalse(files.isEmpty());
        files.forEach(file -> assertTrue(Files.exists(Path.of(file)), file));
    }

    /** The lines of the sh fences, without their comments. A fence that begins with #! is a script, which BisectTest runs. */
    static List<String> commands() {
        return fences("sh").stream().filter(fence -> !fence.startsWith("#!")).flatMap(String::lines).map(line -> line.replaceAll("\\s+# .*", "").strip())
                .filter(line -> !line.isEmpty()).toList();
    }

    static List<String> fences(String language) {
        return find("(?ms)^```" + language + "\\n(.*?)^```$", read("README.md")).stream().map(fence -> fence.group(1)).toList();
    }

    private record Ran(int exitCode, String out, String err) {
    }

    /** As a person would type it: with JBang in PATH and no settings but VM_DIR. HOME and JBang's catalogs are not the developer's. */
    private static Ran shell(Path directory, String line) throws Exception {
        Path build = Path.of(".build").toAbsolutePath();
        Path home = build.resolve("test/readme");
        Path bin = Files.createDirectories(home.resolve("bin"));
        Files.writeString(bin.resolve("jbang"), "#!/bin/sh\nexec '" + build.resolve("jbang") + "' \"$@\"\n");
        Files.setPosixFilePermissions(bin.resolve("jbang"), PosixFilePermissions.fromString("rwxr-xr-x"));
        ProcessBuilder builder = new ProcessBuilder("bash", "-c", line).directory(directory.toAbsolutePath().toFile());
        builder.environment().keySet().removeIf(name -> name.matches("(VM_|DFLY_|MAKE|MFLAGS|JBANG_).*"));
        builder.environment().put("HOME", home.resolve("checkout/home").toString());
        builder.environment().put("VM_DIR", home.resolve("vm").toString());
        builder.environment().put("JBANG_DIR", home.resolve("jbang").toString());
        builder.environment().put("JBANG_CACHE_DIR", System.getenv().getOrDefault("JBANG_CACHE_DIR", System.getProperty("user.home") + "/.jbang/cache"));
        builder.environment().put("PATH", bin + ":" + System.getenv("PATH"));
        File err = File.createTempFile("readme", ".txt");
        Process process = builder.redirectError(err).redirectInput(new File("/dev/null")).start();
        String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        Ran ran = new Ran(process.waitFor(), out, Files.readString(err.toPath()));
        Files.delete(err.toPath());
        return ran;
    }

    /** The checkout as far as a user's commands need it, to write into; it shares what is built. */
    private static Path checkout() throws Exception {
        Path scratch = Path.of(".build/test/readme").toAbsolutePath();
        shell(Path.of(""), "rm -rf '" + scratch + "'/* && mkdir -p '" + scratch + "/checkout' && cp -pR Vm*.java phases Makefile jbang-catalog.json vm.env.example '" + scratch
                + "/checkout/' && ln -s ../../.. '" + scratch + "/checkout/.build'");
        return scratch.resolve("checkout");
    }

    private static void parse(List<String> words) {
        try {
            SCRIPTS.get(words.get(0)).get().parseArgs(words.subList(1, words.size()).toArray(String[]::new));
        } catch (MissingParameterException named) {
            // the text names the command, without its arguments
        }
    }

    private static void collect(CommandLine command, Map<String, String> defaults) {
        for (OptionSpec option : command.getCommandSpec().options()) {
            if (option.descriptionKey() != null && option.descriptionKey().matches("[A-Z_]+")) {
                defaults.put(option.descriptionKey(), option.defaultValue());
            }
        }
        command.getSubcommands().values().forEach(subcommand -> collect(subcommand, defaults));
    }

    private String section(String heading) {
        return find("(?ms)^## " + heading + "\\n(.*?)(?=^## |\\z)", readme).get(0).group(1);
    }

    /** All matches of a word in the first group of all matches of a frame. */
    private static List<String> words(String word, String text, String frame) {
        return find(frame, text).stream().flatMap(match -> find(word, match.group(1)).stream()).map(MatchResult::group).toList();
    }

    private static List<MatchResult> find(String pattern, String text) {
        return Pattern.compile(pattern).matcher(text).results().toList();
    }

    private static String read(String file) {
        try {
            return Files.readString(Path.of(file));
        } catch (IOException missing) {
            throw new IllegalStateException("the tests run at the top of the checkout", missing);
        }
    }

    private static String run(String... command) throws IOException {
        return new String(new ProcessBuilder(command).redirectErrorStream(true).start().getInputStream().readAllBytes());
    }
}
