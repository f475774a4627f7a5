import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
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
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Supplier;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import picocli.CommandLine;
import picocli.CommandLine.MissingParameterException;
import picocli.CommandLine.Model.OptionSpec;

/**
 * The texts are complete and lead somewhere: every target, setting, suite and command is in the README, every command in a fence exists,
 * every link resolves. What needs no VM is also run here, as a person types it; ManualTest runs the rest.
 */
@Tag("unit")
final class ReadmeTest {

    private static final List<String> TEXTS = List.of("README.md", "CONTRIBUTING.md", "bench/README.md");
    private static final Set<String> OF_JBANG = Set.of("app", "catalog", "trust", "export");
    private static final Map<String, Supplier<CommandLine>> SCRIPTS = Map.of("vm-setup", VmSetup::commandLine, "vm-auto-install",
            VmAutoInstall::commandLine, "vm-ctl", VmCtl::commandLine, "vm-sync", VmSync::commandLine, "vm-test", VmTest::commandLine);

    private final String readme = read("README.md");

    @Test
    void theReadmeIsShort() {
        assertTrue(readme.lines().count() <= 400, readme.lines().count() + " lines");
        for (String text : List.of("README.md", "CONTRIBUTING.md")) {
            assertEquals(List.of(), read(text).lines().filter(line -> line.length() > 120).toList(), text);
        }
    }

    @Test
    void everyTargetIsThere() throws Exception {
        String texts = readme + read("CONTRIBUTING.md");
        List<String> targets = find("(?m)^  (\\S+) ", run("make", "-s", "vm-help")).stream().map(match -> match.group(1)).toList();
        assertTrue(targets.size() > 30, targets.toString());
        Set<String> suites = suites().lines().map(line -> "vm-test-" + line.split(" ")[0]).collect(Collectors.toSet());
        assertEquals(List.of(), targets.stream().filter(target -> !target.equals("vm-test-NAME") && !suites.contains(target)
                && !texts.contains("`" + target + "`") && find("\\bmake " + target + "\\b", texts).isEmpty()).toList());
    }

    @Test
    void everySettingIsThere() {
        Set<String> settings = new TreeSet<>();
        SCRIPTS.values().forEach(script -> collectSettings(script.get(), settings));
        assertEquals(Set.copyOf(VmCtl.SETTINGS), settings, "what a file may set without a warning");
        assertEquals(List.of(), settings.stream().filter(name -> find("(?m)^\\|.*`" + name + "`.*\\|.*\\|.*\\|$", readme).isEmpty()).toList());
    }

    @Test
    void everySuiteIsThere() {
        assertTrue(fences("README.md", "text").contains(suites()), "vm-test list prints:\n" + suites());
    }

    @Test
    void everyCommandIsThere() {
        for (var script : SCRIPTS.entrySet()) {
            for (String command : script.getValue().get().getSubcommands().keySet()) {
                assertTrue(readme.contains("`" + script.getKey() + " " + command), script.getKey() + " " + command);
            }
        }
    }

    @Test
    void everyCommandThatIsNamedExists() {
        Set<String> targets = find("(?m)^([a-z0-9-]+):", read("Makefile")).stream().map(match -> match.group(1)).collect(Collectors.toSet());
        suites().lines().forEach(line -> targets.add("vm-test-" + line.split(" ")[0]));
        List<Executable> checks = new ArrayList<>();
        for (String text : TEXTS) {
            Stream<String> inline = text.startsWith("bench/") ? Stream.of() : find("`([^`\\n]+)`", read(text).replaceAll("(?ms)^```.*?^```$", "")).stream().map(match -> match.group(1))
                    .filter(code -> code.matches("(make|jbang|vm-\\S+|java) .*") && !code.matches(".*[<|\\[…].*|.*[A-Z]+@.*|.*\\.\\.\\..*"));
            Stream.concat(commands(text).stream().flatMap(line -> Stream.of(line.split(" && "))), inline)
                    .forEach(command -> checks.add(() -> exists(command, targets)));
        }
        assertTrue(checks.size() > 60, "only " + checks.size() + " commands found");
        assertAll(checks);
    }

    /** The words after a make are targets, a script's command line parses, and any other program is on this machine. */
    private static void exists(String command, Set<String> targets) throws Exception {
        String line = command.replaceAll("^(sudo |[A-Z_]+=\\S+ )+", "").replaceAll("'[^']*'|\"[^\"]*\"", "x");
        List<String> words = new ArrayList<>(List.of(line.split("\\s+")));
        String program = words.remove(0);
        if (program.equals("make")) {
            words.removeIf(word -> word.contains("="));
            assertTrue(targets.containsAll(words), command);
            return;
        }
        if (program.equals("jbang") && OF_JBANG.contains(words.get(0))) {
            return;
        }
        if (program.equals("jbang") || line.startsWith("java -jar ")) {
            words.remove("-jar");
            program = scriptName(words.remove(0));
        }
        if (!SCRIPTS.containsKey(program)) {
            assertEquals("", run("sh", "-c", "command -v \"$0\" >/dev/null || echo missing", program), command);
            return;
        }
        try {
            SCRIPTS.get(program).get().parseArgs(words.toArray(String[]::new));
        } catch (MissingParameterException named) {
            // the text names the command, without its arguments
        }
    }

    /** vm-ctl, from vm-ctl@dfly, tools/VmCtl.java or .build/VmCtl.jar. */
    private static String scriptName(String word) {
        String letters = word.replaceAll("@.*", "").replaceAll(".*/|\\.(java|jar)$|-", "");
        return SCRIPTS.keySet().stream().filter(name -> name.replace("-", "").equalsIgnoreCase(letters)).findFirst().orElse(word);
    }

    @Test
    void everyLinkResolves() {
        for (String text : TEXTS) {
            String markdown = read(text);
            Set<String> headings = find("(?m)^#+ (.*)$", markdown).stream()
                    .map(heading -> "#" + heading.group(1).toLowerCase().replaceAll("[^a-z0-9 _-]", "").replace(' ', '-')).collect(Collectors.toSet());
            for (MatchResult link : find("\\]\\(([^)\\s]+)\\)", markdown)) {
                String to = link.group(1);
                assertTrue(to.startsWith("https://") || headings.contains(to) || Files.exists(Path.of(text).resolveSibling(to)), text + ": " + to);
            }
        }
    }

    /** In a copy of the checkout, with a home of its own. */
    @Test
    void whatNeedsNoVmWorksAsItIsTyped() throws Exception {
        Path checkout = checkout();
        String checked = type(checkout, "make vm-check-prereqs", 0, 2); // 2, make's own: whoever runs this may have no mirror, or no KVM
        for (String row : List.of("java", "qemu-system-x86_64", "space")) {
            assertTrue(checked.matches("(?s)(.*\\n)?(ok|note|fail) +" + row + " .*"), row + " is not checked:\n" + checked);
        }
        type(checkout, "mkdir -p -m 700 ~/.go-synth && cp vm.env.example ~/.go-synth/vm.env", 0);
        type(checkout, "jbang catalog add --global --name dfly jbang-catalog.json", 0);
        String help = type(checkout, "jbang vm-ctl@dfly --help", 0);
        assertTrue(help.startsWith("Usage: vm-ctl "), help);
        type(checkout, "jbang app install vm-ctl@dfly", 0);
        Path elsewhere = Files.createDirectories(checkout.resolveSibling("elsewhere"));
        assertEquals(help, shell(elsewhere, "\"$JBANG_DIR/bin/vm-ctl\" --help").out(), "from another directory");
        type(checkout, "mkdir -p ~/hello/tools && cp VmCtl.java VmSync.java VmTest.java ~/hello/tools/", 0);
        assertEquals(help, shell(checkout.resolve("home/hello"), "jbang tools/VmCtl.java --help").out());
        type(checkout, "jbang vm-auto-install make-iso phases/phase2-update.sh ~/p2.iso", 0);
        assertTrue(Files.size(checkout.resolve("home/p2.iso")) > 0);
        assertEquals(3, shell(checkout, "jbang vm-ctl status").exitCode(), "make-iso made the keys of a VM");
    }

    /** A line that is in the texts. */
    private static String type(Path directory, String line, Integer... exitCodes) throws Exception {
        assertTrue(Stream.of("README.md", "CONTRIBUTING.md").anyMatch(text -> commands(text).contains(line)), "not in a fence: " + line);
        Ran ran = shell(directory, line);
        assertTrue(Set.of(exitCodes).contains(ran.exitCode()), line + ": exit code " + ran.exitCode() + "\n" + ran.out() + ran.err());
        return ran.out();
    }

    /** JBang turns them into question marks, before a script can see them. */
    @Test
    void lettersThatJBangLosesAreNotSent() throws Exception {
        Ran utf8 = shell(Path.of(""), "LC_ALL=C.UTF-8 jbang VmCtl.java strät");
        assertTrue(utf8.exitCode() == 2 && utf8.err().contains("'strät' (did you mean start?)"), utf8.toString());
        Ran c = shell(Path.of(""), "LC_ALL=C jbang VmCtl.java exec echo strät");
        assertTrue(c.exitCode() == 2 && c.err().startsWith("vm-ctl: letters of an argument, a setting or a directory may have become question marks"), c.toString());
    }

    /** Pictures that GitHub shows: no script, nothing of the machine they were made on; and the tables that make bench writes again. */
    @Test
    void thePicturesAndTheMeasurementsAreThere() throws Exception {
        String foreign = "<script|href|/home/|/root/\\S*/\\.build|" + Pattern.quote(Path.of("").toAbsolutePath() + "/");
        for (String picture : List.of("bench/demo.svg", "bench/chart.svg")) {
            DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new File(picture));
            assertEquals(List.of(), find(foreign, read(picture)).stream().map(MatchResult::group).toList(), picture);
            assertTrue(read(picture).length() < 150_000, picture);
        }
        assertTrue(read("bench/demo.svg").contains(">demo passed in "));
        List<MatchResult> measured = find("(?ms)^<!-- bench:begin -->\\n(.*)^<!-- bench:end -->$", read("bench/README.md"));
        assertEquals(1, measured.size(), "where make bench writes");
        assertTrue(measured.get(0).group(1).lines().filter(line -> line.startsWith("| ")).count() >= 12, measured.get(0).group());
    }

    @Test
    void theCatalogSaysWhatTheScriptsSay() throws Exception {
        String listed = shell(Path.of(""), "jbang alias list").out();
        Set<String> versions = new HashSet<>();
        for (var script : SCRIPTS.entrySet()) {
            CommandLine command = script.getValue().get();
            String description = command.getCommandSpec().usageMessage().description()[0];
            versions.addAll(List.of(command.getCommandSpec().version()));
            String file = find("\\w+\\.java", read("jbang-catalog.json")).stream().map(MatchResult::group)
                    .filter(name -> name.equalsIgnoreCase(script.getKey().replace("-", "") + ".java")).findFirst().orElseThrow();
            assertTrue(listed.matches("(?s)(.*\\n)?" + script.getKey() + "\\n +" + Pattern.quote(description) + "\\n.*" + file + "\\n.*"),
                    script.getKey() + ": " + description + "\n" + listed);
        }
        assertEquals(5, find("(?m)^\\S+$", listed).size(), listed);
        assertEquals(1, versions.size(), versions.toString());
        assertEquals(List.of(), find("\\{\\s*\\}", read("jbang-catalog.json")).stream().map(MatchResult::group).toList(), "empty parts");
    }

    /** The lines of a text's sh fences, without their comments. A fence that begins with #! is a script, which BisectTest runs. */
    static List<String> commands(String text) {
        return fences(text, "sh").stream().filter(fence -> !fence.startsWith("#!")).flatMap(String::lines).map(line -> line.replaceAll("\\s+# .*", "").strip())
                .filter(line -> !line.isEmpty()).toList();
    }

    static List<String> fences(String text, String language) {
        return find("(?ms)^```" + language + "\\n(.*?)^```$", read(text)).stream().map(fence -> fence.group(1)).toList();
    }

    /** What vm-test list prints in a project that has all directories. */
    private static String suites() {
        VmTest.Settings none = new VmTest.Settings();
        StringWriter out = new StringWriter();
        assertEquals(0, VmTest.commandLine(new VmTest(none), none).setOut(new PrintWriter(out, true)).execute("list", "--project", "test/sample"));
        return out.toString();
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

    private static void collectSettings(CommandLine command, Set<String> settings) {
        command.getCommandSpec().options().stream().map(OptionSpec::descriptionKey).filter(key -> key != null && key.matches("[A-Z_]+")).forEach(settings::add);
        command.getSubcommands().values().forEach(subcommand -> collectSettings(subcommand, settings));
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
