import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.xml.parsers.DocumentBuilderFactory;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

/** The module test/outcomes, brought by vm-sync to an sshd that plays the guest; there vm-test runs real go tests, as a process. */
final class GoGuest implements AutoCloseable {

    static final Path TOP = Path.of("").toAbsolutePath();

    /** What vm-test left: its exit code, its output, and the entries of its JUnit file, if it wrote one. */
    record Result(int exitCode, String out, String err, List<Entry> entries) {
        /** The last line, which tells what became of each suite. */
        String lastLine() {
            return err.lines().reduce("", (before, line) -> line);
        }

        /** What stands in the summary about a suite. */
        String summary(String suite) {
            return Pattern.compile("(?ms)^== " + suite + " .*?(?=^== |\\z)").matcher(out).results().map(MatchResult::group)
                    .collect(Collectors.joining());
        }

        @Override
        public String toString() {
            return "exit code " + exitCode + "\n" + out + "--- stderr\n" + err;
        }
    }

    /** One test in a JUnit file, by "classname name": passed, failed or skipped, and what is said about it. */
    record Entry(String name, String outcome, String text) {
    }

    final Sshd sshd = Sshd.withOwnProcesses();
    final Path project = Files.createDirectory(sshd.base.resolve("outcomes"));
    final Path junit = sshd.base.resolve("junit.xml");
    private final Map<String, String> settings = new HashMap<>();

    GoGuest() throws Exception {
        copy(Path.of("test/outcomes"), project);
        settings.putAll(Map.of("VM_DIR", sshd.vmDir.toString(), "VM_PROJECT", project.toString(), "VM_REMOTE_DIR",
                sshd.base.resolve("home/outcomes").toString(), "VM_TEST_BUILD", "true", "VM_SYNC_CMD",
                VmTest.shellQuoted(Script.command("VmSync"))));
        assertEquals(0, run(Script.command("VmSync"), Map.of()).exitCode());
    }

    /** A version of Go, and the directory of its go command. */
    record Go(String version, Path bin) {
        @Override
        public String toString() {
            return "Go " + version;
        }
    }

    /** Debian 12's. */
    static Go go119() throws Exception {
        return go("1.19", "bookworm");
    }

    /** Debian 13's. */
    static Go go124() throws Exception {
        return go("1.24", "trixie");
    }

    private static Go go(String version, String suite) throws Exception {
        Path output = Files.createTempFile("go", ".txt");
        Process fetch = new ProcessBuilder("test/fetch-go", version, suite).redirectInput(new File("/dev/null"))
                .redirectOutput(output.toFile()).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        assertTrue(fetch.waitFor(10, TimeUnit.MINUTES) && fetch.exitValue() == 0, "Go " + version + " cannot be had");
        return new Go(version, Path.of(Files.readString(output).strip()));
    }

    /** Runs vm-test with this go command in the guest; "suites" are VM_TEST_... by the suite's name. */
    Result test(Go go, Map<String, String> suites, String... arguments) throws Exception {
        Files.deleteIfExists(junit);
        Map<String, String> more = new HashMap<>();
        suites.forEach((name, command) -> more.put("VM_TEST_" + name.toUpperCase().replace('-', '_'), command));
        List<String> command = Script.command("VmTest");
        command.addAll(List.of("--junit", junit.toString(), "--env", "PATH=" + go.bin() + ":/usr/bin:/bin",
                "--env", "GOCACHE=" + TOP.resolve(".build/go-cache-" + go.version()), "--env", "GOPROXY=off", "--env", "GOTOOLCHAIN=local"));
        command.addAll(List.of(arguments));
        return run(command, more);
    }

    private Result run(List<String> command, Map<String, String> more) throws Exception {
        ProcessBuilder builder = new ProcessBuilder(command).directory(project.toFile());
        builder.environment().keySet().removeIf(name -> name.matches("(VM|DFLY)_.*"));
        builder.environment().putAll(settings);
        builder.environment().putAll(more);
        Script.Result result = Script.run(builder, Duration.ofMinutes(10));
        return new Result(result.exitCode(), result.out(), result.err(), entries(junit));
    }

    private static List<Entry> entries(Path junit) throws Exception {
        List<Entry> entries = new ArrayList<>();
        if (Files.exists(junit)) {
            for (Element test : elements(DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(junit.toFile())
                    .getElementsByTagName("testcase"))) {
                List<Element> inside = elements(test.getElementsByTagName("*"));
                String outcome = inside.isEmpty() ? "passed" : inside.get(0).getTagName().equals("skipped") ? "skipped" : "failed";
                String text = inside.isEmpty() ? "" : inside.get(0).getAttribute("message") + "\n" + inside.get(0).getTextContent();
                entries.add(new Entry(test.getAttribute("classname") + " " + test.getAttribute("name"), outcome, text));
            }
        }
        return entries;
    }

    private static List<Element> elements(NodeList nodes) {
        return IntStream.range(0, nodes.getLength()).mapToObj(nodes::item).map(Element.class::cast).toList();
    }

    private static void copy(Path from, Path to) throws Exception {
        try (Stream<Path> files = Files.walk(from)) {
            for (Path file : files.filter(Files::isRegularFile).toList()) {
                Path copy = to.resolve(from.relativize(file));
                Files.createDirectories(copy.getParent());
                Files.copy(file, copy);
            }
        }
    }

    @Override
    public void close() throws Exception {
        sshd.close();
    }
}
