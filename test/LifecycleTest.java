///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES Guest.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.platform.console.ConsoleLauncher;

/** A VM's life after its installation: first start, status, exec, snapshots, restore, stop, in the order of a day's work. */
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class LifecycleTest {

    private static final Guest GUEST = Guest.installed();

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "LifecycleTest", "--disable-banner", "--details", "summary"});
    }

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
        GUEST.ctl("start").exits(0);
        assertTrue(Files.exists(GUEST.file(".snapshots").resolve("clean/ram")));
        GUEST.ctl("status").exits(0).answers("running");
        GUEST.ctl("start").exits(0);
        assertEquals(1, GUEST.qemus().size());
    }

    @Test
    @Order(3)
    void onlyLoopbackListens() throws IOException {
        long pid = GUEST.qemus().get(0).pid();
        List<String> inodes;
        try (Stream<Path> open = Files.list(Path.of("/proc/" + pid + "/fd"))) {
            inodes = open.map(fd -> {
                try {
                    return Files.readSymbolicLink(fd).toString();
                } catch (IOException closed) {
                    return "";
                }
            }).filter(target -> target.startsWith("socket:[")).map(target -> target.substring(8, target.length() - 1)).toList();
        }
        for (String table : List.of("tcp", "tcp6", "udp", "udp6")) {
            for (String line : Files.readAllLines(Path.of("/proc/net/" + table))) {
                String[] fields = line.strip().split("\\s+");
                boolean listens = table.startsWith("udp") || fields[3].equals("0A");
                if (fields.length > 9 && inodes.contains(fields[9]) && listens) {
                    assertEquals("0100007F", fields[1].substring(0, fields[1].indexOf(':')), line);
                }
            }
        }
    }

    @Test
    @Order(4)
    void execPassesTheCodeTheInputAndTheWords() throws Exception {
        GUEST.ctl("exec", "--", "sh", "-c", "exit 42").exits(42);
        GUEST.ctl("exec", "--", "printf", "%s|", "a b", "it's", "$HOME", "", "\u00e9").exits(0).answers("a b|it's|$HOME||\u00e9|");
        GUEST.ctl("exec", "--env", "GREETING=a 'b' $c", "--", "sh", "-c", "echo \"$GREETING\"").exits(0).answers("a 'b' $c");
    }

    @Test
    @Order(5)
    void anyToolReachesTheGuestByTheSshConfig() {
        GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "guest", "echo from $(hostname)"))
                .exits(0).answers("from ");
    }

    @Test
    @Order(6)
    void aSnapshotWithRamComesBackBootedWithTheRightClock() {
        GUEST.sh("echo one >/root/state; sync").exits(0);
        String boot = GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out();
        GUEST.ctl("snapshot", "one").exits(0);
        GUEST.sh("echo two >/root/state").exits(0);
        GUEST.ctl("restore", "one").exits(0);
        GUEST.sh("cat /root/state").exits(0).answers("one");
        assertEquals(boot, GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out(), "it booted anew");
        long guest = Long.parseLong(GUEST.sh("date +%s").exits(0).out().strip());
        assertTrue(Math.abs(Instant.now().getEpochSecond() - guest) <= 2, "the guest's clock says " + guest);
    }

    @Test
    @Order(7)
    void restoreThenSnapshotThenRestoreLosesNothing() {
        GUEST.ctl("restore").exits(0);
        GUEST.sh("test ! -e /root/state").exits(0);
        GUEST.sh("echo three >/root/state; sync").exits(0);
        GUEST.ctl("snapshot", "one").exits(2).says("--yes");
        GUEST.ctl("snapshot", "one", "--yes").exits(0);
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("restore", "one").exits(0);
        GUEST.sh("cat /root/state").exits(0).answers("three");
        GUEST.ctl("snapshot", "--list").exits(0).answers("clean", "one");
    }

    @Test
    @Order(8)
    void restoreCopiesNoDisk() throws IOException {
        GUEST.ctl("restore").exits(0);
        assertTrue(Files.size(GUEST.file(".qcow2")) < Files.size(GUEST.file("-clean.qcow2")) / 4, "the working disk is no thin overlay");
    }

    @Test
    @Order(9)
    void aKilledQemuIsNoticedAndMended() throws Exception {
        ProcessHandle qemu = GUEST.qemus().get(0);
        qemu.destroyForcibly();
        qemu.onExit().get();
        GUEST.ctl("status").exits(3);
        GUEST.ctl("start").exits(0);
        GUEST.sh("true").exits(0);
    }

    @Test
    @Order(10)
    void stopShutsDownAndASecondStopIsNoError() {
        GUEST.ctl("stop").exits(0).says("shutdown");
        assertEquals(List.of(), GUEST.qemus());
        GUEST.ctl("stop").exits(0);
        GUEST.ctl("status").exits(3).answers("stopped");
    }

    @Test
    @Order(11)
    void aStoppedVmIsFrozenWithoutRamAndComesBackStopped() {
        GUEST.ctl("snapshot", "cold").exits(0);
        assertFalse(Files.exists(GUEST.file(".snapshots").resolve("cold/ram")));
        GUEST.ctl("restore", "cold").exits(0);
        GUEST.ctl("status").exits(3);
        GUEST.ctl("snapshot", "--delete", "cold").exits(0);
    }

    @Test
    @Order(12)
    void statusAnswersAsOneJsonObject() {
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("status", "--json").exits(0).answers("{\"name\":\"guest\",\"state\":\"running\"", "\"port\":", "\"snapshots\":[");
    }
}
