import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import javax.xml.XMLConstants;
import javax.xml.transform.stream.StreamSource;
import javax.xml.validation.SchemaFactory;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** VmTest on the stand-in guest, with the real Go toolchain and the sample project. */
@Tag("core")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class SuitesTest {

    /** A VM of its own, so that it can run beside the classes that use the shared one. */
    private static final Guest GUEST = Guest.twin("suites");
    /** For suites that need no build. */
    private static final Guest UNBUILT = GUEST.with("VM_TEST_BUILD", "true");
    private static final Path JUNIT = Guest.BUILD.resolve("test/junit.xml");
    private static final Path JSON = Guest.BUILD.resolve("test/test.json");
    private static final Path LOG = Guest.BUILD.resolve("test/suite.log");

    /** One call does it all: restores, syncs once, builds once, runs every suite over one connection. */
    @BeforeAll
    static void aFreshGuestWithTheSample() throws Exception {
        GUEST.fresh();
        GUEST.sh("touch /root/before-fresh").exits(0);
        Script.Result result = GUEST.with("VM_TEST_CONNECTIONS", "test ! -e /root/before-fresh && ps -axo command | grep -c '[s]shd: root@'",
                        "VM_TEST_ORPHANING", "go test -c -tags=scenario -o /root/orphaning.test ./scenario/orphaning")
                .test("--fresh", "--sync", "--junit", JUNIT.toString(), "--json", JSON.toString(), "unit", "phase4", "procctl", "orphans", "integration-e2e",
                        "build-integration", "orphaning", "connections").exits(0)
                .answers("== build passed", "== unit passed", "SKIP sample/internal/words TestCountsLongText", ": words_test.go:32: -short", "\n1\n== connections passed");
        assertEquals(1, (result.out() + result.err()).split("gmake build", -1).length - 1, "built once");
        assertEquals(1, result.err().split("synced", -1).length - 1, "synced once");
        valid(JUNIT, "<testcase classname=\"phase4.sample/internal/worker\" name=\"TestMount\"", "<testcase classname=\"unit.sample/internal/worker\" name=\"TestMount\"",
                "name=\"build\"");
        assertTrue(Files.lines(JSON).allMatch(line -> line.startsWith("{\"Time\":") || line.startsWith("{\"suite\":")), "what go test -json said, and the suites");
        assertTrue(Files.readString(GUEST.file(".test").resolve("last-run.json")).contains("\"verdict\":\"passed\""));
    }

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        for (String suite : List.of("failing", "left", "hangs")) { // the snapshots of the last test
            GUEST.ctl("snapshot", "--delete", "failed-" + suite).exits(0);
        }
        assertEquals(List.of(), GUEST.qemus());
    }

    private static void valid(Path junit, String... parts) throws Exception {
        SchemaFactory.newInstance(XMLConstants.W3C_XML_SCHEMA_NS_URI).newSchema(Path.of("test/junit.xsd").toFile()).newValidator()
                .validate(new StreamSource(junit.toFile()));
        Stream.of(parts).forEach(part -> assertTrue(read(junit).contains(part), part + " is not in " + junit));
    }

    private static String read(Path file) {
        try {
            return Files.readString(file, StandardCharsets.ISO_8859_1);
        } catch (java.io.IOException gone) {
            throw new java.io.UncheckedIOException(gone);
        }
    }

    /** VmTestTest has panics, vet's complaints and os.Exit, as Go printed them; GoVersionsTest has them from several versions of Go. */
    @Test
    void failedAndSkippedTestsGetTheirOutcome() throws Exception {
        String packages = Stream.of("failing", "skipping", "nesting", "racing", "many")
                .map(name -> " ./scenario/" + name).reduce("", String::concat);
        Script.Result result = UNBUILT.with("VM_TEST_SCENARIO", "go test -v -count=1 -tags=scenario" + packages)
                .test("scenario", "--junit", JUNIT.toString(), "--json", JSON.toString()).exits(1)
                .says("vm-test: scenario failed, guest exit code")
                .answers("FAIL sample/scenario/failing TestFailsInSubtest/bad", "the subtest's reason",
                        "SKIP sample/scenario/skipping TestSkipped", ": skipping_test.go:8: there is no moon tonight",
                        "not UTF-8: \ufffd\ufffd");
        valid(JUNIT, "name=\"TestMany/number_1999\"", "name=\"TestNesting/with_space/one\"", "name=\"TestNesting/with/slash/two\"", "name=\"TestSameName/twin#01\"");
        assertEquals(2000 + 1, read(JUNIT).split("classname=\"scenario.sample/scenario/many\"", -1).length - 1);
        assertFalse(read(JUNIT).contains("TestNotATest") && read(JUNIT).contains("classname=\"scenario.sample/not/a/package\""), "a print is no result");
        assertTrue(read(JSON).contains("\"Test\":\"TestMany/number_1999\""));
        List<String> shown = result.out().lines().filter(line -> line.matches("=== RUN .*|(ok  |FAIL)\t.*\t.*s"))
                .map(line -> line.replaceFirst(".*(RUN|\tsample/scenario/\\w+).*", "$1")).toList();
        for (String name : List.of("failing", "nesting", "many")) { // go test's own order: a package's lines, then its result
            int end = shown.indexOf("\tsample/scenario/" + name);
            assertTrue(end > 0 && shown.get(end - 1).equals("RUN"), name + ": " + shown);
        }
    }

    @Test
    void aRootSuiteThatLeavesThingsBehindFails() {
        Guest leaking = UNBUILT.with("VM_TEST_LEAKING", "doas go test -count=1 -tags=scenario ./scenario/leaking", "VM_TEST_ROOT", "doas touch /build/again");
        leaking.test("leaking").exits(1).answers("left behind", "process ", "sleep 600", "mount tmpfs", "/build/Workers/leak", "file /build/Workers/leak.log");
        leaking.test("--leaks", "warn", "root").exits(0).answers("left behind: file /build/again");
        leaking.sh("umount /build/Workers/leak && rm -r /build && kill -9 $(ps -axo pid,command | awk '/[s]leep 600/ { print $1 }')").exits(0);
    }

    /** ssh is root, so any command can leave things behind, not only one that says doas. */
    @Test
    void noSuiteMayLeaveAnythingBehind() throws Exception {
        Guest any = UNBUILT.with("VM_TEST_BOTH", "mount -t tmpfs dummy /mnt && (sleep 903 &)", "VM_TEST_MOUNT", "mount -t tmpfs dummy /mnt",
                "VM_TEST_ENDS", "(sleep 2 &) ; mktemp -d /tmp/left.XXXXXX");
        any.test("both").exits(1).answers("left behind", "process ", " sleep 903\n", "mount tmpfs on /mnt");
        any.test("mount").exits(1).answers("mount tmpfs on /mnt"); // a second one that looks the same
        any.test("ends").exits(0).answers("left in /tmp: /tmp/left.", "== ends passed");
        any.test("both", "--leaks", "ignore").exits(0);
        any.sh("umount /mnt; umount /mnt; umount /mnt; kill -9 $(ps -axo pid,command | awk '/[s]leep 903/ { print $1 }')").exits(0);
    }

    /** The last one: it goes back to the snapshots of its failed suites. */
    @Test
    @Order(Integer.MAX_VALUE)
    void theMachineIsKeptAsASuiteLeftItAndOnlyWhatFailedRunsAgain() throws Exception {
        Guest failing = UNBUILT.with("VM_TEST_FAILING", "go test -count=1 -tags=scenario ./scenario/failing ./scenario/skipping", "VM_TEST_LEFT",
                "touch /root/left; exit 4", "VM_TEST_HANGS", "/root/orphaning.test -test.v -test.timeout 10m");
        failing.test("failing", "left", "--freeze-on-failure").exits(1).says("the VM is kept as left left it: vm-ctl restore failed-left",
                "vm-test: to run again what failed: vm-test --failed", "vm-test: failing failed, guest exit code 1; left failed, guest exit code 4");
        failing.test("--failed").exits(1).says("== failing: go test -json -count=1 -tags=scenario -run '^(TestFails|TestFailsAtOnce|TestFailsInSubtest)$' "
                + "sample/scenario/failing\n", "== left: touch /root/left; exit 4\n");
        failing.sh("rm /root/left").exits(0);
        failing.ctl("restore", "failed-left").exits(0);
        failing.sh("rm /root/left").exits(0);
        failing.test("hangs", "--timeout", "20s", "--freeze-on-failure").exits(124).says("the VM is kept as hangs left it");
        assertEquals("", survivors());
        failing.ctl("restore", "failed-hangs").exits(0);
        assertTrue(survivors().contains("sleep 600"), "frozen before they were killed");
    }

    @Test
    void whatMakePrintsPassesThrough() throws Exception {
        Guest make = GUEST.with("VM_TEST_MAKE", "gmake check");
        make.test("make", "--env", "SAMPLE_FAIL=1").exits(1).answers("go test -v ./internal/words/\n=== RUN   TestCount\n", "--- FAIL: TestFailsWhenTold",
                "== make failed, guest exit code 2");
        Process raw = make.start(LOG, "VmTest", "run", "--", "printf 'a\\000\\001\\377\\n\\r'; exit 7");
        assertTrue(raw.waitFor(10, TimeUnit.MINUTES), "vm-test hangs");
        assertEquals(7, raw.exitValue(), read(LOG));
        assertArrayEquals(new byte[] {'a', 0, 1, (byte) 0xff, '\n', '\r'}, Files.readAllBytes(LOG));
    }

    @Test
    void aFailedBuildIsABuildFailure() {
        GUEST.with("VM_TEST_BUILD", "gmake no-such-target").test("unit").exits(1).says("vm-test: build failed (build failed), guest exit code 2");
        UNBUILT.with("VM_TEST_BROKEN", "go test -tags=scenario ./scenario/nobuild").test("broken").exits(1).says("vm-test: broken failed (build failed)");
    }

    /** Processes in sessions of their own that ignore SIGTERM, and a test that hangs: none of it outlives the suite. */
    @Test
    void nothingOutlivesASuite() throws Exception {
        Guest orphans = UNBUILT.with("VM_TEST_ORPHANS", "/root/orphaning.test -test.v -test.timeout 10m");
        orphans.test("--timeout", "20s", "orphans").exits(124).answers("left behind: ", "SIGQUIT: quit", "TestLeavesProcessesAndHangs(0x").says("orphans timed out");
        assertEquals("", survivors());
        for (boolean cut : new boolean[] {false, true}) {
            Process suite = orphans.start(LOG, "VmTest", "orphans");
            await(() -> read(LOG).split("left behind", -1).length == 4, "the suite's processes");
            assertTrue(suite.isAlive(), "shown live");
            assertFalse(survivors().isEmpty(), "else the test shows nothing");
            if (cut) {
                GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "-O", "exit", "guest")).exits(0);
            } else {
                GUEST.test("unit").exits(69).says("another vm-test uses VM");
                GUEST.run(List.of("kill", "-INT", Long.toString(suite.pid()))).exits(0);
            }
            assertTrue(suite.waitFor(10, TimeUnit.MINUTES), "vm-test hangs");
            assertEquals(cut ? 69 : 130, suite.exitValue(), read(LOG));
            assertTrue(read(LOG).contains(cut ? "the connection was lost" : "== orphans interrupted"), read(LOG));
            await(() -> survivors().isEmpty(), "the end of all that it started");
        }
    }

    private static String survivors() {
        return GUEST.sh("ps -axww -o pid,command | grep '[s]leep 600\\|[o]rphaning.test' || true").exits(0).out();
    }

    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void await(Condition condition, String what) throws Exception {
        for (long end = System.nanoTime() + TimeUnit.MINUTES.toNanos(10); !condition.holds(); Thread.sleep(100)) {
            assertTrue(System.nanoTime() < end, () -> "no " + what + " after ten minutes: " + read(LOG));
        }
    }

    /** 80 MB in a JVM that may use 64 MB. VmTestTest does it with events of go test. */
    @Test
    void muchOutputNeedsLittleMemory() throws Exception {
        Process flood = UNBUILT.with("JAVA_TOOL_OPTIONS", "-Xmx64m", "VM_TEST_FLOOD", "yes " + "what a test prints, over and over ".repeat(2)
                + "| head -c " + (80 << 20)).start(LOG, "VmTest", "flood");
        long peak = 0; // KB
        while (!flood.waitFor(20, TimeUnit.MILLISECONDS)) {
            try { // read at once: a stream of lines would throw another exception when the process ends meanwhile
                peak = Math.max(peak, Files.readString(Path.of("/proc/" + flood.pid() + "/status")).lines().filter(line -> line.startsWith("VmHWM:")).mapToLong(line -> Long.parseLong(line.replaceAll("\\D", ""))).sum());
            } catch (java.io.IOException ended) {
                // between the look at it and the look into it
            }
        }
        assertEquals(0, flood.exitValue(), () -> read(LOG).substring(Math.max(0, read(LOG).length() - 2000)));
        assertTrue(Files.size(LOG) >= 80 << 20, Files.size(LOG) + " bytes shown");
        assertTrue(peak > 0 && peak < 200_000, peak + " KB at most");
        Files.delete(LOG);
    }
}
