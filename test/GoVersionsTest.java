import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * The verdict on real go tests, of two versions of Go, whose streams of events differ in many ways. The project is test/outcomes. A
 * version that cannot be fetched is a failure, and not a reason to leave the test out.
 */
@Tag("foreign")
final class GoVersionsTest {

    /**
     * A suite, its command, its verdict, and then pairs: an entry of the JUnit file (its package below example.com/outcomes/, its
     * name; "*" stands for any text) and what it must be, with a text that its reason must hold. "1.24: " before an entry: with this
     * version of Go only.
     */
    private static final String[][] SUITES = {
        {"passes", "go test -v ./passes", "passed", "passes TestOne", "passed", "passes TestTwo", "passed", "passes TestTwo/sub", "passed"},
        {"again", "go test -v -short -count=2 ./again", "failed", "again TestFirstRunFails*", "failed: the reason of the first run",
            "again TestNeedsShort", "passed"},
        {"long", "go test -v ./again", "failed", "again TestFirstRunFails", "passed", "again TestNeedsShort", "failed: the reason without -short"},
        {"processors", "go test -short -cpu 1,2 ./again", "failed", "again TestFirstRunFails*", "failed: the reason of the first run"},

        // Output without a newline
        {"noline", "go test -v ./noline ./passes", "passed", "noline TestPrints", "passed", "noline TestParent", "passed", "noline TestParent/sub",
            "passed", "noline TestLongLine", "passed", "noline TestLast", "passed", "passes TestOne", "passed"},
        {"nolinefail", "go test -v ./nolinefail", "failed", "nolinefail TestPrints", "passed", "nolinefail TestFailsWithReason",
            "failed: the real failure", "nolinefail TestFailsInSilence", "failed", "nolinefail TestAfter", "passed"},

        // Benchmarks
        {"bench", "go test -v -run NONE -bench . -benchtime 10x ./bench", "failed", "bench BenchmarkFailsLate", "failed: the late reason",
            "bench BenchmarkParts/fails", "failed: the reason of a part", "1.24: bench BenchmarkFine", "passed"},
        // With -bench the first package waits for all builds, so go test says of it that its own one failed.
        {"bench-broken", "go test -v -bench . -benchtime 10x ./benchfine ./nobuild", "failed", "nobuild *", "failed: undefined: undefinedName"},
        {"benchfine", "go test -v -bench . -benchtime 10x ./benchfine", "passed"},

        // Tests that do not come to their end
        {"panics", "go test -v ./panics ./passes", "failed", "panics TestBefore", "passed", "panics TestPanics",
            "failed: assignment to entry in nil map", "passes TestOne", "passed"},
        {"goroutine", "go test -v ./goroutine", "failed", "goroutine TestBefore", "passed", "goroutine TestStarts", "failed: panic: in a goroutine"},
        {"exits", "go test -v ./exits", "failed", "exits TestBefore", "passed", "exits TestExits", "failed"},
        {"exitszero", "go test -v ./exitszero", "failed", "exitszero TestExits", "failed: os.Exit(0)"},
        {"hangs", "go test -v -timeout 2s ./hangs", "failed", "hangs TestBefore", "passed", "hangs TestHangs/sub", "failed: test timed out after 2s"},

        // TestMain
        {"setup", "go test -v ./setup", "failed", "setup *", "failed: no database here"},
        {"swallows", "go test -v ./swallows", "failed", "swallows TestFails", "failed: the swallowed reason"},

        // Packages that cannot be tested
        {"nobuild", "go test -v ./nobuild ./passes", "failed", "nobuild *", "failed: undefined: undefinedName", "passes TestOne", "passed"},
        {"novet", "go test -v ./novet ./passes", "failed", "novet *", "failed: fmt.Printf format %d", "passes TestOne", "passed"},
        {"noimport", "go test -v ./noimport ./passes", "failed", "noimport *", "failed: example.com/nowhere/to/be/found", "passes TestOne", "passed"},
        {"nowhere", "go test -v ./nowhere", "failed", "*", "failed: nowhere"},
        {"untested", "go test -v -cover ./covered/untested ./passes", "passed", "passes TestOne", "passed"},

        // Side by side, and other kinds of tests
        {"parallel", "go test -v ./parallel", "failed", "parallel TestA", "passed", "parallel TestB", "failed: the reason of TestB",
            "parallel TestC", "passed"},
        {"fuzz", "go test -v ./fuzz", "failed", "fuzz FuzzSeed/seed#0", "passed", "fuzz FuzzSeed/seed#1", "failed: the reason of the seed"},
        {"example", "go test -v ./example", "failed", "example Example_good", "passed", "example Example_bad", "failed: want that"},
        {"first", "go test -v -failfast -shuffle off ./nolinefail", "failed", "nolinefail TestFailsWithReason", "failed: the real failure"},

        // Tests that print what go test prints. Go 1.19 makes events of the lines of speaks.
        {"says", "go test -v ./says", "passed", "says TestSays", "passed"},
        {"speaks", "go test -v ./speaks", "passed", "speaks TestSpeaks", "passed"},
        {"child", "go test -v ./child", "passed", "child TestStarts", "passed", "child TestAfter", "passed"},

        // Opaque commands that end with 0
        {"twice", "go test ./again; go test -short -run TestNeedsShort ./again", "failed"},
        {"twice-json", "go test -json -run Short ./again; go test -json -short -run Short ./again", "failed"},
        {"retry", "go test -run Short ./again || go test -short -run Short ./again", "failed"},
        {"piped", "go test ./nolinefail | cat", "failed"},
        {"piped-build", "go test ./nobuild 2>&1 | cat", "failed"},
        {"piped-fine", "go test ./passes | cat", "passed"}};

    private static final Map<GoGuest.Go, GoGuest> GUESTS = new LinkedHashMap<>();

    private interface Check {
        void of(GoGuest.Go go, GoGuest guest) throws Exception;
    }

    @BeforeAll
    static void guests() throws Exception {
        GUESTS.put(GoGuest.go119(), new GoGuest());
        GUESTS.put(GoGuest.go124(), new GoGuest());
    }

    @AfterAll
    static void noGuests() throws Exception {
        for (GoGuest guest : GUESTS.values()) {
            guest.close();
        }
    }

    /** Both versions at the same time, each in its guest: most of the time a test waits. */
    private static void forBoth(Check check) {
        List<CompletableFuture<Void>> running = GUESTS.entrySet().stream().map(each -> CompletableFuture.runAsync(() -> {
            try {
                check.of(each.getKey(), each.getValue());
            } catch (Exception failed) {
                throw new AssertionError(each.getKey().toString(), failed);
            }
        }, Executors.newSingleThreadExecutor())).toList();
        running.forEach(CompletableFuture::join);
    }

    /** In one call, so that what one suite found must not touch another's. */
    @Test
    void everySuiteGetsItsVerdict() {
        forBoth(GoVersionsTest::everySuiteGetsItsVerdict);
    }

    private static void everySuiteGetsItsVerdict(GoGuest.Go go, GoGuest guest) throws Exception {
        Map<String, String> suites = new LinkedHashMap<>();
        Arrays.stream(SUITES).forEach(row -> suites.put(row[0], row[1]));
        GoGuest.Result result = guest.test(go, suites, Stream.concat(Stream.of("--quiet"), suites.keySet().stream()).toArray(String[]::new));
        List<String> faults = new ArrayList<>();
        Set<String> names = new HashSet<>();
        result.entries().stream().filter(entry -> !names.add(entry.name()))
                .forEach(entry -> faults.add("twice in the JUnit file: " + entry.name()));
        for (String[] row : SUITES) {
            if (!result.lastLine().matches(".*[:;] " + row[0] + " " + row[2] + "\\b.*")) {
                faults.add(row[0] + " is not " + row[2] + ": " + result.summary(row[0]));
            }
            for (int i = 3; i < row.length; i += 2) {
                boolean forAll = !row[i].startsWith("1.");
                if (forAll || row[i].startsWith(go.version())) {
                    faults.addAll(faults(result, row[0], forAll ? row[i] : row[i].split(": ", 2)[1], row[i + 1]));
                }
            }
        }
        assertEquals("", String.join("\n", faults), () -> go + result.err());
        assertEquals(1, result.exitCode());
    }

    /** What is wrong with a suite's entry in the JUnit file, and with the summary's reason for it. */
    private static List<String> faults(GoGuest.Result result, String suite, String wanted, String expected) {
        String name = suite + (wanted.startsWith("*") ? "" : ".example.com/outcomes/") + wanted;
        String pattern = "(?s)" + Pattern.quote(name).replace("*", "\\E.*\\Q");
        List<GoGuest.Entry> found = result.entries().stream().filter(entry -> entry.name().matches(pattern)).toList();
        String[] outcome = expected.split(": ", 2);
        String reason = outcome.length == 1 ? "" : outcome[1];
        List<String> faults = new ArrayList<>();
        if (found.stream().noneMatch(entry -> entry.outcome().equals(outcome[0]) && entry.text().contains(reason))) {
            faults.add(name + " is not " + expected + " in the JUnit file but " + found);
        }
        if (!result.summary(suite).contains(reason)) {
            faults.add("the summary does not say '" + reason + "': " + result.summary(suite));
        }
        return faults;
    }

    /** Whether anything ran, which a verdict of 0 must not leave open. */
    @Test
    void whatDidNotRunIsSaid() {
        forBoth(GoVersionsTest::whatDidNotRunIsSaid);
    }

    private static void whatDidNotRunIsSaid(GoGuest.Go go, GoGuest guest) throws Exception {
        String none = "go test -v -run Nothing ./passes";
        String skips = "go test -v ./skips";
        for (String[] row : new String[][] {
            {none, "it", "0", "0 tests ran"}, {none, "it --require-tests", "1", "0 tests ran"},
            {"go test -v ./covered/untested", "it", "0", "0 tests ran"}, {"go test -v ./passes", "it -- -run Nothing", "1", "0 tests ran"},
            {"go test -v ./passes", "it -- -run TestOne", "0", "it passed"},
            {skips, "it", "0", "all tests skipped"}, {skips, "it --require-tests", "1", "all tests skipped"},
            {skips, "it -- -run TestSkips", "0", "all tests skipped"}}) {
            GoGuest.Result result = guest.test(go, Map.of("it", row[0]), row[1].split(" "));
            assertEquals(row[2], String.valueOf(result.exitCode()), () -> String.join(" | ", row) + "\n" + result);
            assertTrue(result.lastLine().contains(row[3]), () -> String.join(" | ", row) + "\n" + result);
        }
    }

    /** Flags and packages from the caller, which go test itself easily takes for each other. */
    @Test
    void theCallersFlagsAndPackagesAreThoseThatRun() {
        forBoth(GoVersionsTest::theCallersFlagsAndPackagesAreThoseThatRun);
    }

    private static void theCallersFlagsAndPackagesAreThoseThatRun(GoGuest.Go go, GoGuest guest) throws Exception {
        GoGuest.Result covered = guest.test(go, Map.of("it", "go test -v ./covered/..."), "it", "--", "-coverpkg", "./covered/...",
                "-coverprofile", "/dev/null");
        assertEquals(1, covered.exitCode(), covered.toString());
        assertEquals(List.of(), faults(covered, "it", "covered TestRoot", "passed"));
        assertEquals(List.of(), faults(covered, "it", "covered/inner TestInner", "failed: found by running all packages only"));
        GoGuest.Result replaced = guest.test(go, Map.of("it", "go test -v ./nolinefail"), "it", "--packages", "./passes", "--packages",
                "./again", "--", "-short", "-count", "2");
        assertEquals(1, replaced.exitCode(), replaced.toString());
        assertEquals(List.of(), faults(replaced, "it", "passes TestOne*", "passed"));
        assertEquals(List.of(), faults(replaced, "it", "again TestFirstRunFails*", "failed: the reason of the first run"));
        assertTrue(replaced.entries().stream().noneMatch(entry -> entry.name().contains("nolinefail")), replaced.toString());
    }

    /** --failed names the tests that failed by -run, and runs a package whole that was not built. */
    @Test
    void onlyWhatFailedRunsAgain() {
        forBoth(GoVersionsTest::onlyWhatFailedRunsAgain);
    }

    private static void onlyWhatFailedRunsAgain(GoGuest.Go go, GoGuest guest) throws Exception {
        Map<String, String> suites = Map.of("it", "go test -v ./noline ./nolinefail ./parallel ./nobuild", "fine", "go test -v ./passes");
        assertEquals(1, guest.test(go, suites, "it", "fine").exitCode());
        GoGuest.Result again = guest.test(go, suites, "--failed");
        assertEquals(1, again.exitCode(), again.toString());
        assertEquals(List.of("it.example.com/outcomes/nobuild example.com/outcomes/nobuild",
                "it.example.com/outcomes/nolinefail TestFailsInSilence", "it.example.com/outcomes/nolinefail TestFailsWithReason",
                "it.example.com/outcomes/parallel TestB"), again.entries().stream().map(GoGuest.Entry::name).sorted().toList(), again.toString());
        assertTrue(again.entries().stream().allMatch(entry -> entry.outcome().equals("failed")), again.toString());
    }
}
