///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES Guest.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.platform.console.ConsoleLauncher;

/** What goes wrong in a VM's life: each time the right words and code, nothing lost, nothing left running. */
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class FaultsTest {

    private static final Guest GUEST = Guest.installed();

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "FaultsTest", "--disable-banner", "--details", "summary"});
    }

    @BeforeAll
    static void start() throws IOException {
        GUEST.ctl("start").exits(0);
        GUEST.ctl("stop").exits(0);
    }

    @AfterAll
    static void end() throws IOException {
        GUEST.ctl("stop", "--force");
    }

    @Test
    @Order(20)
    void aGuestThatPanicsIsReportedAndStartedAnew() throws Exception {
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("exec", "--timeout", "20s", "--", "sh", "-c", "sysctl debug.debugger_on_panic=1; /usr/libexec/standin/fault panic");
        Guest.Result status = GUEST.ctl("status");
        status.exits(69).answers("panick");
        GUEST.ctl("restore").exits(0);
        GUEST.sh("true").exits(0);
    }

    @Test
    @Order(21)
    void aSuiteWhoseGuestPanicsSaysSo() {
        GUEST.ctl("restore").exits(0);
        GUEST.sync().exits(0);
        GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_PANIC", "sysctl debug.debugger_on_panic=1; /usr/libexec/standin/fault panic; sleep 600")
                .test("panic").exits(69).says("panic");
        GUEST.ctl("restore").exits(0);
    }

    @Test
    @Order(22)
    void aSuiteWhoseVmIsKilledSaysSo() throws Exception {
        Path log = Guest.BUILD.resolve("test/killed.log");
        Process suite = GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_SLEEPY", "echo started; sleep 600").start(log, "VmTest", "sleepy");
        Guest.await(log, "started");
        GUEST.qemus().forEach(ProcessHandle::destroyForcibly);
        assertTrue(suite.waitFor(5, TimeUnit.MINUTES), "vm-test hangs");
        assertEquals(69, suite.exitValue(), Files.readString(log));
        GUEST.ctl("restore").exits(0);
    }

    @Test
    @Order(23)
    void aTruncatedRamFileMeansAColdBoot() throws IOException {
        GUEST.ctl("snapshot", "cut", "--yes").exits(0);
        Path ram = GUEST.file(".snapshots").resolve("cut/ram");
        ram.toFile().setWritable(true);
        try (var channel = Files.newByteChannel(ram, StandardOpenOption.WRITE)) {
            channel.truncate(Files.size(ram) / 2);
        }
        GUEST.ctl("restore", "cut").exits(0).says("RAM");
        GUEST.sh("true").exits(0);
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("snapshot", "--delete", "cut").exits(0);
    }

    @Test
    @Order(24)
    void aWrongHostKeyIsRefused() throws IOException {
        Path known = GUEST.file(".ssh").resolve("known_hosts");
        String right = Files.readString(known);
        String other = Files.readString(GUEST.file(".ssh").resolve("id_ed25519.pub")).split(" ")[1];
        GUEST.ctl("restore").exits(0);
        try {
            Files.writeString(known, right.replaceAll("AAAA\\S+", other));
            GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "-O", "exit", "guest"));
            GUEST.ctl("exec", "--", "true").exits(69);
            GUEST.sync().exits(69);
        } finally {
            Files.writeString(known, right);
        }
        GUEST.sh("true").exits(0);
    }

    @Test
    @Order(25)
    void aToolKilledAtAnyMomentOfASnapshotOrRestoreLosesNothing() throws Exception {
        GUEST.ctl("restore").exits(0);
        GUEST.sh("echo kept >/root/kept; sync").exits(0);
        GUEST.ctl("snapshot", "kept").exits(0);
        Path log = Guest.BUILD.resolve("test/killed.log");
        for (int millis : List.of(200, 400, 600, 800, 1000, 1300, 1600, 2000)) {
            for (List<String> command : List.of(List.of("restore", "kept"), List.of("snapshot", "kept", "--yes"))) {
                Process tool = GUEST.start(log, "VmCtl", command.toArray(String[]::new));
                tool.waitFor(millis, TimeUnit.MILLISECONDS);
                tool.destroyForcibly().waitFor();
                GUEST.ctl("restore", "kept").exits(0);
                GUEST.sh("cat /root/kept").exits(0).answers("kept");
            }
        }
        assertEquals(1, GUEST.qemus().size());
    }

    @Test
    @Order(26)
    void fiftyRestoresLeaveNothingBehind() {
        for (int i = 0; i < 50; i++) {
            GUEST.ctl("restore").exits(0);
            GUEST.sh("true").exits(0);
        }
        assertEquals(1, GUEST.qemus().size());
        String config = GUEST.vmDir().resolve("ssh_config").toString();
        String socket = GUEST.run(List.of("ssh", "-F", config, "-G", "guest")).out().lines().filter(line -> line.startsWith("controlpath "))
                .findFirst().orElseThrow().substring("controlpath ".length());
        assertEquals("1", GUEST.run(List.of("pgrep", "-fc", "--", "^ssh: " + socket.replaceAll("[^A-Za-z0-9/]+", ".+"))).out().strip(), "ssh masters");
        GUEST.ctl("stop").exits(0);
        assertEquals("0", GUEST.run(List.of("pgrep", "-fc", "--", "^ssh: " + socket.replaceAll("[^A-Za-z0-9/]+", ".+"))).out().strip(), "ssh masters");
        assertEquals(List.of(), GUEST.qemus());
    }
}
