import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.jupiter.api.function.Executable;

/**
 * Every act on a running VM, cut off at each of its steps: by the end of the tool, by the end of QEMU, by Ctrl-C. The next command
 * recovers, no data is lost, and nothing is left behind. Prints a table of it. What needs no guest is cut off in VmCtlTest.
 */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class InterruptionsTest {

    private static final Guest GUEST = Guest.twin("interruptions");
    private static final VmCtl.VmFiles FILES = new VmCtl.VmFiles(GUEST.vmDir(), "guest");
    private static final List<String> TAKE = List.of("stopped", "overlay made", "RAM saved", "link moved", "overlay attached",
            "overlay in use", "recorded", "going on");
    private static final List<String> RESTORE = List.of("overlay made", "ended", "link moved");
    private static final List<String> RESTORE_RAM = List.of("waiting for RAM", "RAM loaded", "woken");

    // The tool's end is tried at each step. The other ways only once for each way to recover: what a step adds to what must be undone.
    private static final Set<String> TAKE_WITHOUT_QEMU = Set.of("overlay made", "link moved", "overlay in use", "going on");
    private static final Set<String> TAKE_CTRL_C = Set.of("RAM saved", "overlay attached", "recorded");
    private static final Set<String> RESTORE_WITHOUT_QEMU = Set.of("QEMU started", "waiting for RAM", "woken");
    private static final Set<String> RESTORE_CTRL_C = Set.of("overlay made", "ended", "RAM loaded");
    /** What was tried, and how it ended. */
    private static final Map<String, String> TABLE = new LinkedHashMap<>();

    /** What was written to the guest's /root/last, now, and when snapshot cut was taken. */
    private static int last;
    private static int inCut;

    @BeforeAll
    static void somethingToLose() throws IOException {
        GuestChecks.asInstalled(GUEST);
        write();
        GUEST.ctl("snapshot", "kept", "--yes").exits(0);
        write();
        GUEST.ctl("snapshot", "cut", "--yes").exits(0);
        inCut = last;
    }

    @AfterAll
    static void end() {
        GuestChecks.asInstalled(GUEST);
        GUEST.ctl("stop", "--force");
        System.out.printf("| %-58s | survived | data |%n", "interruption");
        TABLE.forEach((name, outcome) -> System.out.printf("| %-58s | %s |%n", name, outcome));
    }

    /** Writes a new number in the guest, so that it reaches the disk. */
    private static void write() {
        GUEST.sh("echo number " + ++last + " >/root/last; sync").exits(0);
    }

    private static int read() {
        return Integer.parseInt(GUEST.sh("cat /root/last").exits(0).out().replaceAll("\\D", ""));
    }

    private static DynamicTest interruption(String name, Executable deed) {
        return DynamicTest.dynamicTest(name, () -> {
            TABLE.put(name, "no       | ?   ");
            if (GUEST.qemus().isEmpty()) { // after one that was not survived
                GUEST.ctl("restore", "kept").exits(0);
            }
            deed.execute();
            TABLE.put(name, "yes      | kept");
        });
    }

    private static Stream<KilledCommand.Way> ways(String step, Set<String> withoutQemu, Set<String> ctrlC) {
        return Stream.of(KilledCommand.Way.values()).filter(way -> switch (way) {
            case HALT -> true;
            case QEMU -> withoutQemu.contains(step);
            case SIGINT -> ctrlC.contains(step);
        });
    }

    private static Script.Result killed(KilledCommand.Way way, String step, String... arguments) {
        return KilledCommand.run(GUEST, way, step, 1, arguments);
    }

    /** A new step in VmCtl.java needs its line in this class. */
    @Test
    @Order(1)
    void allStepsAreInTheseLists() throws IOException {
        Map<String, List<String>> steps = new LinkedHashMap<>();
        String method = "";
        for (String line : Files.readAllLines(Path.of("VmCtl.java"))) {
            Matcher begin = Pattern.compile("^ {4}(?: {4})?(?!return|throw)\\w[\\w<>, ]* (\\w+)\\([^;]*").matcher(line);
            Matcher step = Pattern.compile("onStep\\.accept\\(\"([^\"]+)\"").matcher(line);
            if (begin.matches()) {
                method = begin.group(1);
            } else if (step.find()) {
                steps.computeIfAbsent(method, key -> new ArrayList<>()).add(step.group(1));
            }
        }
        Map.of("start", List.of("QEMU begins"), "stateUnlessEnded", List.of("found running"), "takeStopped", List.of("overlay made", "link moved", "recorded"),
                "makeClone", List.of("clone recorded"), "make", List.of("clone made"), "destroy", List.of("destroying"))
                .forEach((cut, own) -> assertEquals(own, steps.remove(cut), cut + ", which VmCtlTest cuts off"));
        assertEquals(List.of("clone emptied", "clone discarded"), steps.remove("deleteClone"), "which TemporaryTest cuts off");
        for (String cut : List.of("write", "unpack", "receive", "place")) {
            assertTrue(steps.remove(cut) != null, cut + " of an image file, which ImageFileTest cuts off");
        }
        assertEquals(Map.of("takeRunning", TAKE, "restore", RESTORE, "restoreRam", RESTORE_RAM,
                "launch", List.of("QEMU started"), "remove", List.of("deleted"), "endsBy", List.of("stopping by ")), steps);
    }

    // Snapshots of a running VM.

    @TestFactory
    @Order(2)
    Stream<DynamicTest> snapshot() {
        return TAKE.stream().flatMap(step -> ways(step, TAKE_WITHOUT_QEMU, TAKE_CTRL_C)
                .map(way -> interruption("snapshot: " + way + " at '" + step + "'", () -> cutSnapshot(way, step))));
    }

    private static void cutSnapshot(KilledCommand.Way way, String step) throws IOException {
        write();
        String record = Files.readString(FILES.record("cut"));
        int depth = depth();
        Script.Result cut = killed(way, step, "snapshot", "cut", "--yes");
        boolean taken = !record.equals(Files.readString(FILES.record("cut")));
        if (!step.equals("overlay in use") || way == KilledCommand.Way.HALT) { // else it may still come to write the record
            assertEquals(TAKE.indexOf(step) >= TAKE.indexOf("recorded"), taken, "whether the snapshot was taken");
        }
        inCut = taken ? last : inCut;
        switch (way) {
            case QEMU -> {
                cut.exits(step.equals("going on") ? 0 : 69);
                GUEST.ctl("status").exits(3).answers("gone");
                assertTrue(isOnDisk("number " + last), "the working disk has lost what was written");
                GUEST.ctl("restore", "cut").exits(0).says("restored cut with its RAM");
            }
            case HALT -> {
                cut.exits(137);
                GUEST.ctl("status").exits(0).answers(step.equals("going on") ? "running" : "paused");
                if (TAKE.indexOf(step) % 2 == 0) {
                    GUEST.ctl("start").exits(0).says("runs already");
                } else {
                    GUEST.ctl("snapshot", "cut", "--yes").exits(0);
                    inCut = last;
                }
            }
            default -> {
                cut.exits(130);
                GUEST.ctl("status").exits(0).answers("running");
            }
        }
        assertEquals(way == KilledCommand.Way.QEMU ? inCut : last, read());
        last = way == KilledCommand.Way.QEMU ? inCut : last;
        GuestChecks.assertNothingIsLeft(GUEST, depth + 1);
    }

    /** Snapshots come and go while the guest runs: the layers under its disk do not pile up. */
    @Test
    @Order(3)
    void whatWasCutOffIsMergedByALaterSnapshot() throws IOException {
        GUEST.ctl("restore", "cut").exits(0);
        int depth = depth();
        GUEST.ctl("snapshot", "cut", "--yes").exits(0);
        assertEquals(depth, depth());
        assertTrue(depth <= 4, "the clean disk and what clean, kept and cut hold are " + depth + " layers");
        assertEquals(inCut, read());
    }

    @Test
    @Order(4)
    void aWorkingDiskThatLostItsQemuBootsWithWhatWasWritten() throws IOException {
        write();
        killed(KilledCommand.Way.QEMU, "overlay attached", "snapshot", "cut", "--yes").exits(69);
        GUEST.ctl("start").exits(0).says("booted");
        assertEquals(last, read());
    }

    // Restore, and the start from RAM that is its second half.

    @TestFactory
    @Order(5)
    Stream<DynamicTest> restore() {
        List<String> steps = new ArrayList<>(RESTORE);
        steps.add("QEMU started");
        steps.addAll(RESTORE_RAM);
        return steps.stream().flatMap(step -> ways(step, RESTORE_WITHOUT_QEMU, RESTORE_CTRL_C)
                .map(way -> interruption("restore: " + way + " at '" + step + "'", () -> cutRestore(way, step, steps.indexOf(step)))));
    }

    private static void cutRestore(KilledCommand.Way way, String step, int number) throws IOException {
        write();
        Script.Result cut = killed(way, step, "restore", "cut");
        boolean untouched = step.equals("overlay made");
        if (way != KilledCommand.Way.QEMU) {
            cut.exits(way == KilledCommand.Way.HALT ? 137 : 130);
        } else if (step.equals("woken")) {
            cut.exits(0).says("QEMU ended", "booting its disk");
        } else {
            cut.exits(69).says("QEMU");
        }
        boolean booted = way == KilledCommand.Way.QEMU && step.equals("woken");
        int code = Set.of("ended", "link moved").contains(step) || way == KilledCommand.Way.QEMU && !booted ? 3 : 0;
        GUEST.ctl("status").exits(code);
        if (!untouched && (step.equals("ended") || number % 2 == 1)) { // else the working disk, which the user gave up, boots
            GUEST.ctl("restore", "cut").exits(0).says("restored cut with its RAM");
        } else {
            GUEST.ctl("start").exits(0);
        }
        last = untouched ? last : inCut;
        assertEquals(last, read());
        GuestChecks.assertNothingIsLeft(GUEST, 9);
    }

    /** A start from RAM that is cut off three times in a row. Its steps are the second half of a restore's, which are all tried there. */
    @TestFactory
    @Order(6)
    Stream<DynamicTest> start() {
        return Stream.of(interruption("start: each way at 'woken'", () -> {
            for (KilledCommand.Way way : KilledCommand.Way.values()) {
                GUEST.ctl("stop", "--force").exits(0);
                killed(KilledCommand.Way.HALT, "link moved", "restore", "cut").exits(137);
                killed(way, "woken", "start").exits(switch (way) {
                    case HALT -> 137; // it is restored, and lacks the right time only
                    case QEMU -> 0; // the disk was booted instead
                    case SIGINT -> 130;
                });
            }
            GUEST.ctl("start").exits(0);
            assertEquals(inCut, read());
            GuestChecks.assertClockIsRight(GUEST);
            GuestChecks.assertNothingIsLeft(GUEST, 9);
        }));
    }

    // Deleting, stopping.

    @TestFactory
    @Order(7)
    Stream<DynamicTest> delete() {
        return Stream.of(KilledCommand.Way.HALT, KilledCommand.Way.QEMU).map(way -> interruption("snapshot --delete: " + way + " at 'deleted'", () -> {
            write();
            GUEST.ctl("snapshot", "gone", "--yes").exits(0);
            int depth = depth();
            killed(way, "deleted", "snapshot", "--delete", "gone").exits(way == KilledCommand.Way.HALT ? 137 : 0);
            assertFalse(GUEST.ctl("snapshot", "--list").exits(0).out().contains("gone"));
            if (way == KilledCommand.Way.QEMU) {
                assertTrue(isOnDisk("number " + last), "the working disk has lost what was written");
                assertEquals(depth - 1, depth());
                GUEST.ctl("restore", "cut").exits(0);
                last = inCut;
            }
            GUEST.ctl("start").exits(0);
            assertEquals(last, read());
            GuestChecks.assertNothingIsLeft(GUEST, depth);
        }));
    }

    @TestFactory
    @Order(8)
    Stream<DynamicTest> stop() {
        return Stream.of(
                interruption("stop: QEMU at 'shutdown -p now over ssh'", () -> {
                    killed(KilledCommand.Way.QEMU, "stopping by shutdown -p now over ssh", "stop").exits(0);
                    GUEST.ctl("status").exits(3).answers("stopped");
                    GUEST.ctl("restore", "cut").exits(0);
                }),
                interruption("stop: Ctrl-C before the guest was asked", () -> {
                    killed(KilledCommand.Way.SIGINT, "stopping by shutdown -p now over ssh", "stop").exits(130);
                    GUEST.ctl("start").exits(0).says("it did not shut down", "runs already");
                    assertEquals(1, GUEST.qemus().size());
                }),
                interruption("stop --force: HALT at 'QMP quit'", () -> {
                    killed(KilledCommand.Way.HALT, "stopping by QMP quit", "stop", "--force").exits(137);
                    GUEST.ctl("status").exits(0).answers("running");
                    GUEST.ctl("start").exits(0).says("runs already");
                }),
                interruption("stop: Ctrl-C while the guest shuts down", () -> {
                    write();
                    Path log = Guest.BUILD.resolve("test/interruption.log");
                    Files.deleteIfExists(log);
                    Process stop = GUEST.start(log, "VmCtl", "stop", "-v");
                    Guest.await(log, "'shutdown -p now'");
                    while (stop.descendants().anyMatch(ssh -> ssh.info().commandLine().orElse("").contains("shutdown -p now"))) {
                        Thread.sleep(50);
                    }
                    new ProcessBuilder("kill", "-INT", String.valueOf(stop.pid())).start().waitFor();
                    assertEquals(130, stop.waitFor());
                    GUEST.ctl("status").exits(0).answers("it is shutting down");
                    GUEST.ctl("start").exits(0).says("the guest is shutting down; waiting for its end", "booted");
                    inCut = read();
                    assertEquals(last, inCut);
                    GuestChecks.assertNothingIsLeft(GUEST, 9);
                }));
    }

    // What the tests share.

    /** How many layers lie under the working disk. */
    private static int depth() throws IOException {
        return VmCtl.Disk.depth(FILES.workingDisk().orElseThrow());
    }

    /** Whether a text stands in one of the layers that make the working disk: looked for here, as a boot takes half a minute. */
    private static boolean isOnDisk(String text) throws IOException {
        for (Path layer : GuestChecks.chain(FILES.workingDisk().orElseThrow())) {
            if (layer.startsWith(FILES.disks()) && new String(Files.readAllBytes(layer), ISO_8859_1).contains(text)) {
                return true;
            }
        }
        return false;
    }
}
