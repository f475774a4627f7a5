///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES ../VmSetup.java ../VmAutoInstall.java ../VmCtl.java ../VmSync.java ../VmTest.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
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
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.platform.console.ConsoleLauncher;
import picocli.CommandLine;
import picocli.CommandLine.MissingParameterException;
import picocli.CommandLine.Model.OptionSpec;

/** The README says what the scripts and the Makefile do: targets, commands, settings, defaults, suites, file names. */
final class ReadmeTest {

    private static final Map<String, Supplier<CommandLine>> SCRIPTS = Map.of("vm-setup", VmSetup::commandLine, "vm-auto-install",
            VmAutoInstall::commandLine, "vm-ctl", VmCtl::commandLine, "vm-sync", VmSync::commandLine, "vm-test", VmTest::commandLine);

    private final String readme = read("README.md");
    /** What stands in fences and backticks. */
    private final List<String> code = find("(?ms)^```\\n(.*?)^```|`([^`\\n]+)`", readme).stream()
            .flatMap(match -> (match.group(1) == null ? match.group(2) : match.group(1)).lines()).map(String::strip).toList();

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "ReadmeTest", "--disable-banner", "--details", "summary"});
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
        List<String> makes = code.stream().filter(line -> line.startsWith("make ")).toList();
        assertTrue(makes.size() > 5, makes.toString());
        for (String line : makes) {
            for (String word : line.replaceAll("\\s+#.*|\\S+='[^']*'|\\S+=\\S+", "").split("\\s+")) {
                assertTrue(word.equals("make") || word.startsWith("-") || word.startsWith("vm-test-") || targets.contains(word), line);
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
        String table = section("Settings");
        Set<String> listed = new TreeSet<>(words("VM_[A-Z_]+(?<!_)|DFLY_VERSION", table, "(?m)^\\|([^|]*)\\|"));
        listed.removeAll(Set.of("VM_TEST", "VM_CTL_CMD", "VM_SYNC_CMD")); // these are no options
        defaults.keySet().removeAll(Set.of("VM_CTL_CMD", "VM_SYNC_CMD"));
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
        assertEquals(0, VmTest.commandLine(new VmTest(none), none).setOut(new PrintWriter(out, true)).execute("list"));
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
