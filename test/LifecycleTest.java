import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** A VM's life after its installation: first start, status, exec, snapshots, restore, stop, in the order of a day's work. */
@Tag("core")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class LifecycleTest {

    private static final Guest GUEST = Guest.installed();
    private static final int PORT = Guest.freePort();

    @BeforeAll
    @AfterAll
    static void stopped() {
        GUEST.ctl("stop", "--force");
        assertEquals(List.of(), GUEST.qemus());
    }

    @Test
    @Order(1)
    void whatNeedsARunningVmSaysHowToStartIt() {
        GUEST.ctl("status").exits(3).answers("stopped");
        for (Guest.Result result : List.of(GUEST.ctl("exec", "--", "true"), GUEST.sync(), GUEST.test("unit"))) {
            result.exits(3).says("vm-ctl start");
        }
        GUEST.ctl("stop").exits(0);
    }

    @Test
    @Order(2)
    void theFirstStartColdBootsAndFreezesDiskAndRam() {
        GUEST.ctl("start", "--forward", PORT + ":80").exits(0);
        assertTrue(Files.exists(GUEST.file(".snapshots").resolve("clean/ram")));
        GUEST.ctl("status").exits(0).answers("running", PORT + ":80");
        GUEST.ctl("start").exits(0).says("runs already");
        assertEquals(1, GUEST.qemus().size());
    }

    @Test
    @Order(3)
    void onlyLoopbackListens() throws IOException {
        List<String> inodes;
        try (Stream<Path> open = Files.list(Path.of("/proc/" + GUEST.qemus().get(0).pid() + "/fd"))) {
            inodes = open.map(fd -> GUEST.run(List.of("readlink", fd.toString())).out().strip())
                    .filter(target -> target.startsWith("socket:[")).map(target -> target.substring(8, target.length() - 1)).toList();
        }
        int listeners = 0;
        for (String table : List.of("tcp", "tcp6", "udp", "udp6")) {
            for (String line : Files.readAllLines(Path.of("/proc/net/" + table))) {
                String[] fields = line.strip().split("\\s+");
                boolean listens = table.startsWith("udp") || fields[3].equals("0A");
                if (fields.length > 9 && inodes.contains(fields[9]) && listens) {
                    assertEquals("0100007F", fields[1].substring(0, fields[1].indexOf(':')), line);
                    listeners++;
                }
            }
        }
        assertEquals(2, listeners, "ssh and the forward");
    }

    @Test
    @Order(4)
    void execPassesTheCodeTheInputAndTheWords() {
        GUEST.ctl("exec", "--", "sh", "-c", "exit 42").exits(42);
        GUEST.ctl("exec", "--", "printf", "%s|", "a b", "it's", "$HOME", "", "\u00e9").exits(0).answers("a b|it's|$HOME||\u00e9|");
        GUEST.ctl("exec", "--env", "GREETING=a 'b' $c", "--timeout", "5m", "--", "sh", "-c", "echo \"$GREETING\"; exit 255")
                .exits(255).answers("a 'b' $c");
    }

    @Test
    @Order(5)
    void execKillsWhatIsNotDoneInTime() {
        GUEST.ctl("exec", "--timeout", "2s", "--", "sleep 4321 & sleep 4321").exits(124).says("killed after 2 s");
        GUEST.sh("ps -axww -o pid,command | grep '[s]leep 4321'").exits(1);
    }

    @Test
    @Order(6)
    void anyToolReachesTheGuestByTheSshConfig() {
        ssh("echo from $(hostname)").exits(0).answers("from ");
    }

    private static Guest.Result ssh(String command) {
        return GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "guest", command));
    }

    @Test
    @Order(7)
    void aSnapshotWithRamComesBackBootedWithTheRightClock() {
        DateTimeFormatter form = DateTimeFormatter.ofPattern("yyyyMMddHHmm.ss").withZone(ZoneOffset.UTC);
        GUEST.sh("echo one >/root/state; sync; date -u " + form.format(Instant.now().minus(Duration.ofMinutes(10)))).exits(0);
        String boot = GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out();
        GUEST.ctl("snapshot", "one", "--yes").exits(0); // as if ten minutes ago
        GUEST.sh("echo two >/root/state").exits(0);
        GUEST.ctl("restore", "one").exits(0);
        GUEST.sh("cat /root/state").exits(0).answers("one");
        assertEquals(boot, GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out(), "it booted anew");
        double behind = 1e9;
        for (int i = 0; i < 3; i++) { // the guest tells when its second begins; the way here only adds
            long second = Long.parseLong(ssh("s=$(date +%s); while [ $(date +%s) = $s ]; do :; done; date +%s").exits(0).out().strip());
            behind = Math.min(behind, System.currentTimeMillis() / 1000.0 - second);
        }
        System.out.println("after a restore the guest's clock is " + behind + " s behind");
        assertTrue(Math.abs(behind) <= 1, "the guest's clock is " + behind + " s behind");
        GUEST.ctl("status").answers(PORT + ":80"); // the forward outlived snapshot and restore
    }

    @Test
    @Order(8)
    void restoreThenSnapshotThenRestoreLosesNothing() throws IOException {
        GUEST.ctl("restore").exits(0);
        GUEST.sh("test ! -e /root/state").exits(0);
        assertTrue(Files.size(GUEST.file(".qcow2")) < Files.size(GUEST.file("-clean.qcow2")) / 4, "the working disk is no thin overlay");
        GUEST.sh("echo three >/root/state; sync").exits(0);
        GUEST.ctl("snapshot", "one").exits(2).says("--yes");
        GUEST.ctl("snapshot", "one", "--yes").exits(0);
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("restore", "one").exits(0);
        GUEST.sh("cat /root/state").exits(0).answers("three");
        GUEST.ctl("snapshot", "--list").exits(0).answers("clean", "one");
    }

    @Test
    @Order(9)
    void theConsoleTakesWhatIsTyped() throws Exception {
        Path log = Guest.BUILD.resolve("test/console.log");
        Process console = GUEST.attach(log, "VmCtl", "console");
        try (OutputStream keys = console.getOutputStream()) {
            Guest.type(keys, log, "\r", "login:");
        }
        assertTrue(console.waitFor(1, TimeUnit.MINUTES), "the console does not end with its input");
        assertEquals(0, console.exitValue());
    }

    @Test
    @Order(10)
    void aKilledQemuIsNoticedAndMended() throws Exception {
        ProcessHandle qemu = GUEST.qemus().get(0);
        qemu.destroyForcibly();
        qemu.onExit().get();
        GUEST.ctl("status").exits(3).answers("gone");
        GUEST.ctl("start").exits(0);
        GUEST.sh("true").exits(0);
    }

    @Test
    @Order(11)
    void stopShutsDownAndASecondStopIsNoError() {
        GUEST.ctl("stop").exits(0).says("shutdown");
        assertEquals(List.of(), GUEST.qemus());
        GUEST.ctl("stop").exits(0);
        GUEST.ctl("status").exits(3).answers("stopped");
    }

    /** The target: a third of a cold boot of the same guest in the same run. */
    @Test
    @Order(12)
    void aRestoreIsFasterThanABoot() {
        GUEST.ctl("snapshot", "cold").exits(0);
        assertFalse(Files.exists(GUEST.file(".snapshots").resolve("cold/ram")));
        GUEST.ctl("restore", "cold").exits(0);
        GUEST.ctl("status").exits(3);
        double boot = seconds(GUEST.ctl("start").exits(0), "booted guest in ");
        double restore = Stream.generate(() -> seconds(GUEST.ctl("restore").exits(0), " with its RAM in ")).limit(3).min(Double::compare).get();
        System.out.printf("cold boot %.1f s, restore %.1f s: %.2f%n", boot, restore, restore / boot);
        assertTrue(restore < boot, "a restore takes " + restore + " s, a boot " + boot + " s");
        GUEST.ctl("snapshot", "--delete", "cold").exits(0);
    }

    private static double seconds(Guest.Result result, String before) {
        Matcher match = Pattern.compile(Pattern.quote(before) + "([0-9.]+) s").matcher(result.err());
        assertTrue(match.find(), result.err());
        return Double.parseDouble(match.group(1));
    }

    @Test
    @Order(13)
    void statusAnswersAsOneJsonObject() {
        GUEST.ctl("status", "--json").exits(0).answers("{\"name\":\"guest\",\"state\":\"running\"", "\"port\":", "\"snapshots\":[");
    }
}
