import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * A JUnit file by vm-test, read by two programs that others wrote: junit2json (npm) and Maven Surefire's report parser. The file is
 * of two suites that run the same tests, with all that is hard to write in XML.
 */
@Tag("foreign")
final class JUnitReadersTest {

    private static final Path SCRATCH = Path.of(".build/foreign").toAbsolutePath();
    /** Prints an entry a line: its kind, class name, name, and the text without line breaks, with tabs between. */
    private static final String SUREFIRE = """
            //JAVA 17+
            //DEPS org.apache.maven.surefire:surefire-report-parser:3.5.4
            import org.apache.maven.plugins.surefire.report.*;
            class ReadJUnit {
                public static void main(String... files) throws Exception {
                    var out = new java.io.PrintStream(System.out, true, java.nio.charset.StandardCharsets.UTF_8);
                    for (ReportTestSuite suite : new TestSuiteXmlParser(null).parse(files[0])) {
                        for (ReportTestCase test : suite.getTestCases()) {
                            String kind = test.hasError() ? "error" : test.hasFailure() ? "failure" : test.hasSkipped() ? "skipped" : "passed";
                            out.println(kind + "\\t" + test.getFullClassName() + "\\t" + test.getName() + "\\t"
                                    + (test.getFailureMessage() + " " + test.getFailureDetail()).replaceAll("\\\\s+", " "));
                        }
                    }
                }
            }
            """;

    /** An entry as a reader sees it. In its name, "a x 8000" stands for so many of a letter, so that a failure can be read. */
    record Entry(String kind, String className, String name, String text) {
        Entry {
            name = Pattern.compile("(.)\\1{99,}").matcher(name).replaceAll(found -> found.group(1) + " x " + found.group().length());
        }

        String key() {
            return className + " " + name;
        }
    }

    private static GoGuest guest;
    private static List<JsonObject> suites;
    private static List<Entry> byJunit2json;
    private static List<Entry> bySurefire;

    @BeforeAll
    static void aFileAndItsReaders() throws Exception {
        guest = new GoGuest();
        String command = "go test -v ./odd ./skips ./nobuild";
        GoGuest.Result result = guest.test(GoGuest.go124(), Map.of("one", command, "two", command, "benchmarks",
                "go test -v -bench . -benchtime 10x ./bench", "other", "false"), "one", "two", "benchmarks", "other");
        assertEquals(1, result.exitCode(), result.toString());
        Files.createDirectories(SCRATCH);
        run("npm", "install", "--prefix", SCRATCH.toString(), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "junit2json@4.0.0");
        suites = objects(JsonParser.object().from(run("node", SCRATCH.resolve("node_modules/junit2json/dist/esm/cli.js").toString(),
                guest.junit.toString())).getArray("testsuite"));
        byJunit2json = suites.stream().flatMap(suite -> objects(suite.getArray("testcase")).stream()).map(JUnitReadersTest::entry).toList();
        String read = run(".build/jbang", "--quiet", Files.writeString(SCRATCH.resolve("ReadJUnit.java"), SUREFIRE).toString(), guest.junit.toString());
        bySurefire = read.lines().map(line -> line.split("\t", 4)).map(row -> new Entry(row[0], row[1], row[2], row[3])).toList();
    }

    @AfterAll
    static void noGuest() throws Exception {
        if (guest != null) {
            guest.close();
        }
    }

    private static List<JsonObject> objects(JsonArray array) {
        return array == null ? List.of() : array.stream().map(JsonObject.class::cast).toList();
    }

    private static Entry entry(JsonObject test) {
        String kind = Stream.of("error", "failure", "skipped").filter(test::has).findFirst().orElse("passed");
        String text = objects(test.getArray(kind)).stream().map(it -> it.getString("message", "") + " " + it.getString("inner", ""))
                .collect(Collectors.joining());
        return new Entry(kind, test.getString("classname"), test.getString("name"), text.replaceAll("\\s+", " "));
    }

    @Test
    void bothReadersSeeTheSame() {
        assertEquals(kinds(byJunit2json), kinds(bySurefire));
        assertEquals(byJunit2json.size(), bySurefire.size());
    }

    private static Map<String, String> kinds(List<Entry> entries) {
        return entries.stream().collect(Collectors.toMap(Entry::key, Entry::kind, (one, other) -> one + " and " + other, TreeMap::new));
    }

    @Test
    void anEntryHasItsClassNameAndNameForItselfAlone() {
        HashSet<String> seen = new HashSet<>();
        assertEquals(List.of(), byJunit2json.stream().map(Entry::key).filter(key -> !seen.add(key)).toList());
        assertTrue(byJunit2json.stream().noneMatch(entry -> entry.className().isEmpty() || entry.name().isEmpty()));
    }

    @Test
    void theCountsAreThoseOfTheEntries() {
        for (JsonObject suite : suites) {
            Map<String, Long> kinds = objects(suite.getArray("testcase")).stream().map(JUnitReadersTest::entry)
                    .collect(Collectors.groupingBy(Entry::kind, Collectors.counting()));
            for (String[] row : new String[][] {{"failures", "failure"}, {"errors", "error"}, {"skipped", "skipped"}}) {
                assertEquals(kinds.getOrDefault(row[1], 0L), suite.getLong(row[0]), suite.getString("name") + ": " + row[0]);
            }
            assertEquals(objects(suite.getArray("testcase")).size(), suite.getInt("tests"), suite.getString("name"));
        }
    }

    /** Each test is there, once for each suite, with its name as it is; and nothing else is said to have passed. */
    @Test
    void eachTestIsThere() {
        List<String> passed = List.of("TestName", "TestName/\"<&>'", "TestName/\u00fcn\u00ef_\u65e5\u672c", "TestName/\\x1b[31mred",
                "TestName/a_(0.00s)", "TestName/]]>", "TestName/same", "TestName/same#01", "TestLong/p x 8000",
                "TestLong/b x 4070");
        List<String> failed = List.of("TestOutput", "TestLong", "TestLong/f x 8000");
        List<String> skipped = List.of("TestSkips", "TestLong/s x 8000");
        for (List<Entry> entries : List.of(byJunit2json, bySurefire)) {
            for (String suite : List.of("one", "two")) {
                Map<String, List<String>> odd = entries.stream().filter(entry -> entry.className().equals(suite + ".example.com/outcomes/odd"))
                        .collect(Collectors.groupingBy(entry -> entry.kind().replaceFirst("error|failure", "failed"), TreeMap::new,
                                Collectors.mapping(Entry::name, Collectors.toList())));
                assertEquals(sorted(passed), sorted(odd.get("passed")), suite);
                assertEquals(sorted(failed), sorted(odd.get("failed")), suite);
                assertEquals(sorted(skipped), sorted(odd.get("skipped")), suite);
                assertEquals("skipped", kind(entries, suite + ".example.com/outcomes/skips", "TestSkips"));
                List<Entry> broken = entries.stream().filter(entry -> entry.className().equals(suite + ".example.com/outcomes/nobuild")).toList();
                assertTrue(broken.size() == 1 && broken.get(0).kind().matches("failure|error"), broken.toString());
                assertTrue(broken.get(0).text().contains("undefined: undefinedName"), broken.toString());
            }
            assertTrue(kind(entries, "benchmarks.example.com/outcomes/bench", "BenchmarkFailsLate").matches("failure|error"));
            assertTrue(entries.stream().anyMatch(entry -> entry.className().startsWith("other") && entry.kind().matches("failure|error")));
        }
    }

    private static List<String> sorted(List<String> names) {
        return names == null ? List.of() : names.stream().sorted().toList();
    }

    private static String kind(List<Entry> entries, String className, String name) {
        return entries.stream().filter(entry -> entry.className().equals(className) && entry.name().equals(name)).map(Entry::kind)
                .collect(Collectors.joining(" "));
    }

    /** Colour codes are gone as a whole, other control characters too; what else a test said is all there. */
    @Test
    void whatATestSaidIsThereWithoutControlCharacters() {
        for (List<Entry> entries : List.of(byJunit2json, bySurefire)) {
            Entry output = entries.stream().filter(entry -> entry.key().equals("one.example.com/outcomes/odd TestOutput")).findFirst().orElseThrow();
            for (String part : List.of(" red ", "the reason: green \u00fcn\u00ef", "not UTF-8", "]]>", "&amp; <b>")) {
                assertTrue(output.text().contains(part), part + " is not in " + output);
            }
            assertFalse(output.text().matches(".*(\\[[0-9;]*m|\\p{Cc}).*"), output.text());
            List<String> skips = entries.stream().filter(entry -> entry.name().equals("TestSkips") && entry.className().endsWith("odd"))
                    .map(Entry::text).toList();
            assertTrue(!skips.isEmpty() && skips.stream().allMatch(text -> text.contains("there is <no> moon")), skips.toString());
        }
    }

    private static String run(String... command) throws Exception {
        File output = File.createTempFile("output", ".txt");
        File errors = File.createTempFile("errors", ".txt");
        try {
            Process process = new ProcessBuilder(new ArrayList<>(List.of(command))).redirectInput(new File("/dev/null")).redirectError(errors)
                    .redirectOutput(output).start();
            boolean ended = process.waitFor(5, TimeUnit.MINUTES); // the first time it downloads a few megabytes
            process.destroyForcibly();
            assertTrue(ended && process.exitValue() == 0, () -> String.join(" ", command) + "\n" + read(output) + read(errors));
            return read(output);
        } finally {
            Files.delete(output.toPath());
            Files.delete(errors.toPath());
        }
    }

    private static String read(File file) {
        try {
            return Files.readString(file.toPath(), UTF_8);
        } catch (java.io.IOException unreadable) {
            return unreadable.toString();
        }
    }
}
