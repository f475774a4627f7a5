import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** Snapshots, restores and clones in great number: each holds what it should, and none leaves anything behind. */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class ManySnapshotsTest {

    private static final Guest GUEST = Guest.twin("many snapshots");
    private static List<String> before;
    private static int depth;

    @BeforeAll
    static void began() throws IOException {
        GuestChecks.asInstalled(GUEST);
        before = files();
        depth = depth();
    }

    @AfterAll
    static void stopped() {
        GUEST.ctl("stop", "--force");
    }

    /** What there is of this VM and of its clones, without logs, and the disks by number: their names are random. */
    private static List<String> files() throws IOException {
        List<String> names = new ArrayList<>();
        try (Stream<Path> files = Files.walk(GUEST.vmDir())) {
            for (Path file : new TreeSet<>(files.toList())) {
                names.add(GUEST.vmDir().relativize(file).toString().replaceFirst("disks/.*", "disks/DISK"));
            }
        }
        names.removeIf(name -> name.matches(".*\\.(console\\.log|console\\.log\\.1|control)"));
        return names;
    }

    private static int depth() throws IOException {
        return VmCtl.Disk.depth(new VmCtl.VmFiles(GUEST.vmDir(), "guest").workingDisk().orElseThrow());
    }

    /** A writer appends a number at a time, and the number of the last one that is on the disk is in a second file. */
    @Test
    @Order(1)
    void fiveSnapshotsInARowUnderAWriterHoldWhatWasWrittenTillThen() {
        GUEST.sh("nohup sh -c 'n=0; while :; do n=$((n + 1)); echo line $n >>/root/lines; sync; echo $n >/root/number;"
                + " /usr/libexec/standin/busybox usleep 200000; done'"
                + " >/dev/null 2>&1 </dev/null & echo $! >/root/writer").exits(0);
        int[] numbers = new int[6];
        for (int i = 1; i <= 5; i++) {
            numbers[i] = number();
            GUEST.ctl("snapshot", "five-" + i).exits(0);
        }
        int end = number();
        assertTrue(end > numbers[5], "the writer does not go on");
        for (int i = 5; i >= 1; i--) {
            GUEST.ctl("restore", "five-" + i).exits(0).says("restored five-" + i + " with its RAM");
            int first = number();
            assertTrue(first >= numbers[i] && first < (i == 5 ? end : numbers[i + 1]) + 200, i + ": " + first + " of " + numbers[i]);
            GUEST.sh("kill -0 $(cat /root/writer)").exits(0);
            // Every line is there, in its place, with nothing between; the writer goes on meanwhile.
            GUEST.sh("awk '$0 != \"line \" NR { exit 1 }' /root/lines").exits(0);
        }
        GUEST.ctl("restore").exits(0);
        IntStream.rangeClosed(1, 5).forEach(i -> GUEST.ctl("snapshot", "--delete", "five-" + i).exits(0));
    }

    private static int number() {
        return Integer.parseInt(GUEST.sh("cat /root/number").exits(0).out().strip());
    }

    /** Each replaced snapshot leaves a layer that nobody needs; it is merged, while the VM runs or when it stops. */
    @Test
    @Order(2)
    void twoSnapshotsReplacedInTurnAreNoDeeperInTheEnd() throws IOException {
        GUEST.ctl("snapshot", "a").exits(0);
        GUEST.ctl("snapshot", "b").exits(0);
        int greatest = 0;
        for (int i = 0; i < 5; i++) {
            GUEST.sh("echo " + i + " >/root/round").exits(0);
            GUEST.ctl("snapshot", "a", "--yes").exits(0);
            GUEST.ctl("snapshot", "b", "--yes").exits(0);
            greatest = Math.max(greatest, depth());
        }
        System.out.println("two snapshots in turn, 5 times: " + greatest + " layers at most, " + depth() + " in the end");
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(depth + 2, depth());
        GUEST.ctl("restore", "a").exits(0).says("restored a with its RAM");
        GUEST.sh("cat /root/round").exits(0).answers("4");
        assertEquals(depth + 1, depth());
        GUEST.ctl("snapshot", "--delete", "b").exits(0);
        GUEST.ctl("snapshot", "--delete", "a").exits(0);
        GUEST.ctl("restore").exits(0);
        assertEquals(before, files());
    }

    /** What vm-test --parallel does while its VM runs; it is killed, and list deletes all. */
    @Test
    @Order(3)
    void temporaryClonesOfARunningVmGoWithTheirUser() throws Exception {
        int before = depth();
        List<String> files = files();
        GUEST.sh("echo here >/root/round; sync").exits(0);
        Path lock = GUEST.vmDir().resolve("round.lock");
        try (LockHolder user = new LockHolder().lock(lock)) {
            GUEST.ctl("snapshot", "--temporary", lock.toString(), "guest-par").exits(0);
            GUEST.ctl("clone", "--temporary", lock.toString(), "--snapshot", "guest-par", "--start", "guest.par-1", "guest.par-2").exits(0);
            GUEST.ctl("list").exits(0).answers("guest.par-2          running");
            GUEST.with("VM_NAME", "guest.par-2").sh("cat /root/round; hostname").exits(0).answers("here", "guest.par-2");
            GUEST.with("VM_NAME", "guest.par-1").ctl("restore").exits(0).says("restored clean with its RAM");
            assertEquals(3, GUEST.qemus().size());
        }
        GUEST.ctl("list").exits(0).says("deleted what was temporary and is no longer in use: clone guest.par-1, clone guest.par-2, snapshot guest-par");
        assertEquals(1, GUEST.qemus().size());
        assertEquals(before, depth());
        GUEST.sh("cat /root/round").exits(0).answers("here");
        assertEquals(files, files());
    }

    @Test
    @Order(3)
    void restoresOnAPortSetByHandLeaveNothingBehind() throws Exception {
        Guest guest = GUEST.with("VM_SSH_PORT", String.valueOf(Guest.freePort()));
        for (int i = 0; i < 2; i++) {
            guest.ctl("restore").exits(0).says("ssh on port " + guest.settings().get("VM_SSH_PORT"));
        }
        guest.sh("true").exits(0);
        assertEquals(1, guest.qemus().size());
        assertEquals(before, files());
    }

    @Test
    @Order(4)
    void manyClonesComeAndGo() throws IOException {
        GUEST.ctl("stop", "--force").exits(0);
        List<String> stopped = files();
        List<String> names = IntStream.rangeClosed(1, 8).mapToObj(i -> "clone" + i).toList();
        List<String> words = new ArrayList<>(List.of("clone"));
        words.addAll(names);
        GUEST.ctl(words.toArray(String[]::new)).exits(0);
        assertEquals(8, GUEST.ctl("list").exits(0).out().lines().filter(line -> line.contains("clone of guest/clean")).count());
        GUEST.ctl("destroy", "--yes").exits(69).says("clones build on it");
        for (String name : names) {
            GUEST.with("VM_NAME", name).ctl("destroy", "--yes").exits(0);
        }
        assertEquals(stopped, files());
        assertEquals(depth, depth());
        GUEST.ctl("restore").exits(0).says("restored clean with its RAM");
    }
}
