import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** A suite in clones of the VM, and in parts with one verdict, on the stand-in guest: what is built, started and run, and what is left. */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class ParallelTest {

    private static final Path STARTS = Guest.BUILD.resolve("test/qemu starts");
    private static final Path JUNIT = Guest.BUILD.resolve("test/parallel.xml");
    private static final Path JSON = Guest.BUILD.resolve("test/parallel.json");
    private static final Path LOG = Guest.BUILD.resolve("test/parallel.log");
    private static Guest guest;
    private static int depth;

    /** A QEMU that writes down its starts. */
    @BeforeAll
    static void aVmWithTheSample() throws Exception {
        Path bin = Files.createDirectories(Guest.BUILD.resolve("test/counting bin"));
        Path qemu = Files.writeString(bin.resolve("qemu-system-x86_64"), "#!/bin/sh\ncase \" $* \" in *' -pidfile '*) echo \"$*\" >>'" + STARTS
                + "' ;; esac\nPATH=" + System.getenv("PATH") + "\nexec qemu-system-x86_64 \"$@\"\n");
        Files.setPosixFilePermissions(qemu, PosixFilePermissions.fromString("rwxr-xr-x"));
        guest = Guest.twin("parallel's, \u00e9").with("PATH", bin + ":" + System.getenv("PATH"));
        guest.fresh();
        depth = GuestChecks.chain(guest.file(".qcow2").toRealPath()).size();
    }

    @AfterEach
    void nothingIsLeft() throws IOException {
        assertEquals(1, guest.qemus().size(), "only the VM itself runs");
        try (Stream<Path> files = Files.list(guest.vmDir())) {
            assertEquals(List.of(), files.filter(file -> file.toString().contains("par-")).toList());
        }
        try (Stream<Path> files = Files.list(guest.file(".test"))) {
            assertEquals(List.of(), files.filter(file -> file.toString().contains("par-")).toList());
        }
        assertFalse(guest.ctl("snapshot", "--list").exits(0).out().contains("par-"));
        assertEquals(depth, GuestChecks.chain(guest.file(".qcow2").toRealPath()).size(), "layers under the disk");
    }

    @AfterAll
    static void stop() {
        guest.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), guest.qemus());
    }

    /** One build, one QEMU for each clone, each package once; what cannot be divided runs whole. */
    @Test
    @Order(1)
    void aSuiteRunsInTwoClones() throws Exception {
        Files.writeString(STARTS, "");
        Script.Result result = guest.with("VM_TEST_HOST", "hostname; go version").test("--sync", "--parallel", "2", "--junit", JUNIT.toString(),
                "--json", JSON.toString(), "unit", "host").exits(0).says("suite host cannot be divided, because it is no plain go test: it runs whole");
        assertEquals(1, (result.out() + result.err()).split("gmake build", -1).length - 1, "built once");
        // One is tried again if another VM of this machine takes its port meanwhile.
        assertEquals(2, Files.readAllLines(STARTS).stream().map(line -> line.replaceAll(" -display.*", "")).distinct().count(), "a QEMU for each clone");
        Map<String, Integer> ends = new TreeMap<>();
        for (String line : Files.readAllLines(JSON)) {
            JsonObject json = JsonParser.object().from(line);
            if (json.has("Action") && !json.has("Test") && !json.getString("Action").matches("start|output")) {
                ends.merge(json.getString("Package"), 1, Integer::sum);
            }
        }
        assertTrue(ends.size() >= 4 && ends.values().stream().allMatch(times -> times == 1), ends.toString());
        assertEquals(1, Files.readString(JUNIT).split("name=\"TestFixture\"", -1).length - 1);
        // What a package prints stands together.
        List<String> order = result.out().lines().filter(line -> line.matches("=== RUN   Test(Count|Fixture)|ok  \tsample/(stats|internal/words)\t.*"))
                .map(line -> line.replaceAll("ok  \tsample/(\\S+)\t.*", "$1").replace("=== RUN   ", "")).toList();
        assertTrue(order.equals(List.of("TestCount", "internal/words", "TestFixture", "stats")) || order.equals(List.of("TestFixture", "stats", "TestCount",
                "internal/words")), order.toString());
        assertTrue(Files.readString(guest.file(".test").resolve("timings.json")).contains("sample/internal/words"));
    }

    /** With --isolate a package begins in a restored clone: what one leaves behind, the next one does not see. */
    @Test
    @Order(2)
    void whatAPackageLeavesIsNamedWithItAndHarmsNoOther() {
        Script.Result result = guest.with("VM_TEST_BUILD", "true", "VM_TEST_LEAKING", "doas go test -count=1 -tags=scenario ./scenario/leaking "
                + "./scenario/failing ./scenario/nobuild ./internal/words").test("--parallel", "1", "--isolate", "leaking").exits(1)
                .answers("left behind", "mount tmpfs", "(after sample/scenario/leaking)", "FAIL sample/scenario/failing TestFailsInSubtest/bad",
                        "BUILD FAILED sample/scenario/nobuild", "ok  \tsample/internal/words");
        assertFalse(result.out().contains("(after sample/internal/words)"), result.out());
        guest.sh("test ! -e /build/Workers/leak.log").exits(0);
    }

    private static Guest slow() {
        return guest.with("VM_TEST_BUILD", "true", "VM_TEST_SLOW", "go test -count=1 -tags=scenario ./scenario/slow ./stats");
    }

    /** A clone that dies costs its package one retry. After a kill -9 of vm-test, the next vm-ctl removes the clones. */
    @Test
    @Order(3)
    void aCloneThatDiesAndAVmTestThatIsKilled() throws Exception {
        Process test = slow().start(LOG, "VmTest", "--parallel", "2", "--env", "SAMPLE_SECONDS=600", "slow");
        String clone = cloneInWhichSlowRuns(test);
        ProcessHandle qemu = guest.qemus().stream().filter(it -> commandLine(it).contains(clone + ".qemu-pid")).findFirst().orElseThrow();
        qemu.destroyForcibly();
        qemu.onExit().get(1, TimeUnit.MINUTES);
        await(test, () -> Files.readString(LOG).contains("lost clone " + clone + " while it ran sample/scenario/slow, which runs once more: VM " + clone + " ended"));
        cloneInWhichSlowRuns(test);
        test.destroyForcibly().waitFor();
        assertEquals(3, guest.qemus().size(), "nobody has ended them");
        guest.ctl("list").exits(0).says("par-");
        assertFalse(guest.ctl("list").exits(0).out().contains("par-"));
    }

    /** More clones than packages are not made. */
    @Test
    @Order(4)
    void ctrlCEndsTheClones() throws Exception {
        Process test = slow().start(LOG, "VmTest", "--parallel", "4", "--env", "SAMPLE_SECONDS=600", "slow");
        cloneInWhichSlowRuns(test);
        assertEquals(3, guest.qemus().size(), "a clone for each package, and the VM");
        guest.run(List.of("kill", "-INT", "" + test.pid())).exits(0);
        assertTrue(test.waitFor(15, TimeUnit.MINUTES), "vm-test hangs");
        assertEquals(130, test.exitValue(), Files.readString(LOG));
        assertTrue(Files.readString(LOG).contains("== slow interrupted"), Files.readString(LOG));
    }

    /** Two parts, one after the other, and their merged verdict. */
    @Test
    @Order(5)
    void theSuiteInTwoPartsIsTheWholeSuite() throws Exception {
        List<String> files = new ArrayList<>();
        for (int part = 1; part <= 2; part++) {
            Path file = Guest.BUILD.resolve("test/part " + part + ".json");
            files.add(file.toString());
            guest.with("VM_TEST_BUILD", "true", "CI_NODE_INDEX", "" + part, "CI_NODE_TOTAL", "2").test("--shard", "auto", "--json", file.toString(), "unit")
                    .exits(0).says("to run exactly this part elsewhere: vm-test unit --packages sample").answers("== unit (part " + part + "/2) passed");
        }
        files.add(0, "merge");
        Script.Result merged = guest.test(files.toArray(String[]::new)).exits(0);
        String counts = guest.with("VM_TEST_BUILD", "true").test("-q", "unit").exits(0).out();
        assertEquals(counts.replaceAll(", [0-9.]+ s\\n", "\n").lines().findFirst().orElseThrow(),
                merged.out().replaceAll(", [0-9.]+ s\\n", "\n").lines().findFirst().orElseThrow());
        files.remove(1);
        guest.test(files.toArray(String[]::new)).exits(69).answers("part 1/2 is missing");
        Script.Result empty = guest.with("VM_TEST_BUILD", "true").test("--shard", "40/40", "unit").exits(0).answers("this part has no packages");
        assertFalse(empty.out().contains("=== RUN"), empty.out());
    }

    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void await(Process test, Condition condition) throws Exception {
        for (long end = System.nanoTime() + TimeUnit.MINUTES.toNanos(15); !condition.holds(); Thread.sleep(1000)) {
            assertTrue(test.isAlive() && System.nanoTime() < end, Files.readString(LOG));
        }
    }

    private static String cloneInWhichSlowRuns(Process test) throws Exception {
        String[] found = {""};
        await(test, () -> {
            for (ProcessHandle qemu : guest.qemus()) {
                Matcher name = Pattern.compile("([^/]+)\\.qemu-pid").matcher(commandLine(qemu));
                if (name.find() && name.group(1).contains(".par-") && VmCtl.isRunning(guest.vmDir().resolve(name.group()))
                        && guest.with("VM_NAME", name.group(1)).sh("ps -axww -o command").out().contains("/slow.test ")) {
                    found[0] = name.group(1);
                }
            }
            return !found[0].isEmpty();
        });
        return found[0];
    }

    private static String commandLine(ProcessHandle process) {
        try {
            return new String(Files.readAllBytes(Path.of("/proc/" + process.pid() + "/cmdline")), UTF_8).replace('\0', ' ');
        } catch (IOException gone) {
            return "";
        }
    }
}
