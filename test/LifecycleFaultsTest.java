import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
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

/** What goes wrong in a VM's life: each time the right words and code, nothing lost, nothing left running; and a table of it. */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class LifecycleFaultsTest {

    private static final Guest GUEST = Guest.installed();
    private static final Path LOG = Guest.BUILD.resolve("test/fault.log");
    private static final String FAULT = "/usr/libexec/standin/fault ";
    /** What was tried, and how it ended. */
    private static final Map<String, String> TABLE = new TreeMap<>();

    @BeforeAll
    static void somethingToLose() {
        GUEST.fresh();
        GUEST.sh("echo kept >/root/kept; sync").exits(0);
        GUEST.ctl("snapshot", "kept", "--yes").exits(0);
        GUEST.ctl("stop").exits(0);
        GUEST.ctl("snapshot", "cold", "--yes").exits(0); // without RAM: a start from it boots
        GUEST.ctl("restore", "kept").exits(0);
    }

    @AfterAll
    static void end() {
        GUEST.ctl("stop", "--force");
        GUEST.ctl("restore");
        for (String snapshot : List.of("cut", "torn", "cold", "kept")) {
            GUEST.ctl("snapshot", "--delete", snapshot);
        }
        GUEST.ctl("stop", "--force");
        System.out.printf("| %-58s | survived | data |%n", "fault");
        TABLE.forEach((fault, outcome) -> System.out.printf("| %-58s | %s |%n", fault, outcome));
    }

    /** A fault of a running VM, after which a snapshot comes back with what was written, in one QEMU. */
    private static DynamicTest fault(String name, Executable deed) {
        return DynamicTest.dynamicTest(name, () -> {
            TABLE.put(name, "no       | ?   ");
            if (GUEST.qemus().isEmpty()) { // after a fault that was not survived
                GUEST.ctl("restore", "kept").exits(0);
            }
            deed.execute();
            GUEST.ctl("restore", "kept").exits(0);
            TABLE.put(name, "yes      | LOST");
            GUEST.sh("cat /root/kept").exits(0).answers("kept");
            TABLE.put(name, "yes      | kept");
            assertEquals(1, GUEST.qemus().size());
        });
    }

    private static void killQemu() {
        GUEST.qemus().forEach(ProcessHandle::destroyForcibly);
    }

    /** A command in the background; its exit code once the VM's QEMU was killed under it. */
    private static int codeWhenQemuDies(String until, String... command) throws Exception {
        Files.deleteIfExists(LOG);
        String before = pidFile();
        Process tool = GUEST.start(LOG, "VmCtl", command);
        switch (until) {
            case "new QEMU" -> awaitTrue(() -> !pidFile().isEmpty() && !pidFile().equals(before));
            case "RAM" -> awaitTrue(() -> Files.exists(GUEST.file(".snapshots").resolve("torn/ram")));
            case "at once" -> tool.waitFor(500, TimeUnit.MILLISECONDS);
            default -> Guest.await(LOG, until);
        }
        killQemu();
        assertTrue(tool.waitFor(3, TimeUnit.MINUTES), "it hangs: " + Files.readString(LOG));
        return tool.exitValue();
    }

    private static String pidFile() throws IOException {
        return Files.exists(GUEST.file(".pid")) ? Files.readString(GUEST.file(".pid")) : "";
    }

    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void awaitTrue(Condition condition) throws Exception {
        for (int i = 0; !condition.holds(); i++) {
            assertTrue(i < 3000, "it never happened: " + (Files.exists(LOG) ? Files.readString(LOG) : "")); // five minutes
            Thread.sleep(100);
        }
    }

    @TestFactory
    @Order(1)
    Stream<DynamicTest> qemuIsKilled() {
        return Stream.of(
                fault("kill -9 of QEMU during exec", () -> {
                    assertEquals(69, codeWhenQemuDies("started", "exec", "--", "echo started; sleep 600"));
                    GUEST.ctl("status").exits(3).answers("gone");
                }),
                fault("kill -9 of QEMU during snapshot", () -> {
                    assertEquals(69, codeWhenQemuDies("RAM", "snapshot", "torn"));
                    GUEST.ctl("stop").exits(0);
                    assertFalse(Files.exists(GUEST.file(".snapshots").resolve("torn")), "half a snapshot");
                }),
                fault("kill -9 of QEMU during stop", () -> assertEquals(0, codeWhenQemuDies("at once", "stop"))),
                fault("kill -9 of QEMU during restore", () -> {
                    int code = codeWhenQemuDies("new QEMU", "restore", "kept");
                    assertTrue(code == 69 || code == 0 && Files.readString(LOG).contains("booting its disk"), Files.readString(LOG));
                }),
                fault("kill -9 of QEMU during start", () -> {
                    GUEST.ctl("stop", "--force").exits(0);
                    GUEST.ctl("restore", "cold").exits(0);
                    assertEquals(69, codeWhenQemuDies("new QEMU", "start"));
                    assertTrue(Files.readString(LOG).contains("QEMU ended while the guest was starting"), Files.readString(LOG));
                }));
    }

    @TestFactory
    @Order(2)
    Stream<DynamicTest> theToolIsKilled() {
        return Stream.of(List.of("exec", "--", "sleep 600"), List.of("stop"), List.of("restore", "kept"),
                List.of("snapshot", "torn", "--yes"), List.of("snapshot", "kept", "--yes")).map(words -> fault("kill -9 of vm-ctl " + words, () -> {
                    String[] command = words.toArray(String[]::new);
                    for (int millis : words.get(0).matches("exec|stop") ? List.of(1300) : List.of(700, 1200, 1800, 2500)) {
                        Process tool = GUEST.start(LOG, "VmCtl", command);
                        tool.waitFor(millis, TimeUnit.MILLISECONDS);
                        tool.destroyForcibly().waitFor();
                        if (words.contains("exec")) {
                            GUEST.sh("true").exits(0);
                        } else {
                            if (words.contains("snapshot")) {
                                GUEST.ctl("start").exits(0); // a stopped VM's has no RAM
                            }
                            GUEST.ctl(command).exits(0);
                        }
                    }
                }));
    }

    @TestFactory
    @Order(3)
    Stream<DynamicTest> twoCommandsAtOnce() {
        return Stream.of(
                fault("two starts at once", () -> {
                    GUEST.ctl("stop", "--force").exits(0);
                    Process other = GUEST.start(LOG, "VmCtl", "start");
                    awaitTrue(() -> !GUEST.qemus().isEmpty());
                    Guest.Result second = GUEST.ctl("start");
                    assertTrue(second.exitCode() == 0 || second.exits(69).err().contains("vm-ctl start (pid " + other.pid()), second.err());
                    assertTrue(other.waitFor(5, TimeUnit.MINUTES), "the first start hangs");
                    assertEquals(0, other.exitValue());
                }),
                fault("start during stop", () -> {
                    Process stop = GUEST.start(LOG, "VmCtl", "stop");
                    awaitTrue(() -> Files.readString(GUEST.file(".lock")).contains("vm-ctl stop"));
                    GUEST.ctl("start").exits(69).says("vm-ctl stop (pid " + stop.pid());
                    assertTrue(stop.waitFor(5, TimeUnit.MINUTES), "stop hangs");
                    assertEquals(0, stop.exitValue());
                    assertEquals(List.of(), GUEST.qemus());
                }));
    }

    @TestFactory
    @Order(4)
    Stream<DynamicTest> theGuestMisbehaves() {
        return Stream.of(
                fault("the guest panics", () -> {
                    GUEST.ctl("exec", "--timeout", "1s", "--", "sysctl debug.debugger_on_panic=1; " + FAULT + "panic").exits(124).says("db>");
                    GUEST.ctl("status").exits(69).answers("panicked");
                    GUEST.ctl("stop").exits(0).says("the guest cannot be asked", "QMP quit");
                }),
                fault("the guest hangs", () -> {
                    GUEST.ctl("exec", "--timeout", "1s", "--", FAULT + "hang").exits(124).says("hangs");
                    long begun = System.nanoTime();
                    GUEST.ctl("status").exits(0).answers("running");
                    assertTrue(System.nanoTime() - begun < 10e9, "status waits for the guest");
                    GUEST.ctl("stop", "--force").exits(0);
                }),
                fault("the guest halts", () -> {
                    GUEST.sh(FAULT + "halt");
                    awaitTrue(() -> GUEST.ctl("status").exitCode() == 69);
                    GUEST.ctl("status").exits(69).answers("has halted");
                    GUEST.ctl("stop").exits(0);
                }),
                fault("the guest floods its console", () -> {
                    Path console = GUEST.file(".console.log");
                    GUEST.ctl("exec", "--timeout", "30s", "--", FAULT + "flood 1000000");
                    long grown = Files.size(console);
                    System.out.println("a flood of 30 s left " + grown + " bytes");
                    assertTrue(grown < 30_000_000, grown + " bytes of console");
                }),
                fault("programs print what a panic prints", () -> {
                    GUEST.sync().exits(0);
                    // A Go program's words, and those of a real panic, as dmesg has them after one: sshd answers, so all is well.
                    for (String words : List.of("panic: index out of range\\n\\ngoroutine 1 [running]:\\n",
                            "panic: of before\\ncpuid = 0\\nTrace beginning at frame 0xf\\n")) {
                        // vm-test looks at the console every 0.1 s, and asks sshd within 5 s
                        GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_LOUD", "printf '" + words + "' >/dev/console; sleep 7")
                                .test("loud").exits(0);
                        GUEST.ctl("status").exits(0).answers("running");
                    }
                    GUEST.ctl("stop").exits(0).says("by shutdown -p now over ssh");
                }),
                fault("a suite whose guest panics", () -> {
                    GUEST.sync().exits(0);
                    GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_PANIC", "sysctl debug.debugger_on_panic=1; " + FAULT + "panic; sleep 600")
                            .test("panic").exits(69).says("panic");
                }),
                fault("a suite whose VM is killed", () -> {
                    GUEST.sync().exits(0);
                    Process suite = GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_SLEEPY", "echo started; sleep 600").start(LOG, "VmTest", "sleepy");
                    Guest.await(LOG, "started");
                    killQemu();
                    assertTrue(suite.waitFor(5, TimeUnit.MINUTES), "vm-test hangs");
                    assertEquals(69, suite.exitValue(), Files.readString(LOG));
                }));
    }

    @TestFactory
    @Order(5)
    Stream<DynamicTest> filesAreDamaged() {
        return Stream.of(
                fault("a RAM file is truncated", () -> {
                    GUEST.ctl("snapshot", "cut", "--yes").exits(0);
                    Path ram = GUEST.file(".snapshots").resolve("cut/ram");
                    try (var channel = Files.newByteChannel(ram, StandardOpenOption.WRITE)) {
                        channel.truncate(Files.size(ram) / 2);
                    }
                    GUEST.ctl("restore", "cut").exits(0).says("RAM of cut cannot be used", "booted");
                    GUEST.sh("cat /root/kept").exits(0).answers("kept");
                }),
                fault("the guest has another host key", () -> {
                    Path known = GUEST.file(".ssh").resolve("known_hosts");
                    String right = Files.readString(known);
                    String other = Files.readString(GUEST.file(".ssh").resolve("id_ed25519.pub")).split(" ")[1];
                    try {
                        Files.writeString(known, right.replaceAll("AAAA\\S+", other));
                        GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "-O", "exit", "guest"));
                        GUEST.ctl("exec", "--", "true").exits(69).says("Host key verification failed");
                        GUEST.sync().exits(69);
                        GUEST.ctl("restore", "kept").exits(69).says("keys are not those in");
                    } finally {
                        Files.writeString(known, right);
                    }
                }));
    }

    /** On a file system of 64 MB, with the shared VM's clean disk: neither its RAM nor much of a disk has room there. */
    @Test
    @Order(6)
    void aFullDiskStopsTheGuestOrTheSnapshotAndNothingElse() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root may mount");
        Guest full = Guest.in(Files.createDirectories(Guest.BUILD.resolve("test/full")));
        GUEST.run(List.of("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", full.vmDir().toString())).exits(0);
        try {
            Files.createSymbolicLink(full.file("-clean.qcow2"), GUEST.file("-clean.qcow2"));
            GUEST.run(List.of("cp", "-r", GUEST.file(".ssh").toString(), full.vmDir().toString())).exits(0);
            full.ctl("start").exits(0).says("could not be kept", "No space");
            full.ctl("snapshot", "one").exits(1).says("No space", "the guest goes on");
            Files.deleteIfExists(LOG);
            Process writing = full.start(LOG, "VmCtl", "exec", "--", "dd if=/dev/urandom of=/root/big bs=1048576 count=100; sync; md5 -q /root/big");
            awaitTrue(() -> full.ctl("status").out().contains("io-error: no space?"));
            GUEST.run(List.of("mount", "-o", "remount,size=400m", full.vmDir().toString())).exits(0);
            full.ctl("start").exits(0);
            assertTrue(writing.waitFor(5, TimeUnit.MINUTES), "the guest does not go on");
            String sum = Files.readString(LOG).lines().reduce((first, last) -> last).orElseThrow();
            full.sh("md5 -q /root/big").exits(0).answers(sum);
            TABLE.put("disk full during run and snapshot", "yes      | kept");
        } finally {
            full.ctl("stop", "--force");
            awaitTrue(() -> GUEST.run(List.of("umount", full.vmDir().toString())).exitCode() == 0);
        }
    }

    @Test
    @Order(7)
    void fiftyRestoresOnAPortSetByHandLeaveNothingBehind() throws Exception {
        Guest guest = GUEST.with("VM_SSH_PORT", "2399");
        GUEST.ctl("stop", "--force").exits(0);
        List<Path> before = files();
        for (int i = 0; i < 50; i++) {
            guest.ctl("restore").exits(0).says("ssh on port 2399");
        }
        guest.sh("true").exits(0);
        assertEquals(1, guest.qemus().size());
        guest.ctl("stop").exits(0);
        List<String> processes = List.of("pgrep", "-fa", GUEST.vmDir().getFileName().toString() + "/guest");
        awaitTrue(() -> GUEST.run(processes).exitCode() == 1); // the log's keeper looks every second
        assertEquals(before, files());
        assertEquals("", GUEST.run(List.of("ss", "-Hltn", "sport = :2399")).out());
        TABLE.put("50 restores in a row", "yes      | kept");
    }

    private static List<Path> files() throws IOException {
        try (Stream<Path> files = Files.walk(GUEST.vmDir())) {
            return files.filter(file -> !file.toString().contains(".console.log")).sorted().toList();
        }
    }

    /** At the console, as a person would: the loader, phase 1 from the CD, then the one line, and the snapshot. */
    @Test
    @Order(8)
    void anInstallationByHandIsAsGoodAsAnother() throws Exception {
        Guest.delete(Guest.BUILD.resolve("test/hand"));
        try (Mirror mirror = new Mirror(Guest.STANDIN).start()) {
            Guest hand = Guest.in(Guest.BUILD.resolve("test/hand")).withFirmware(mirror.port(), "")
                    .with("VM_IMAGE", GUEST.vmDir().resolve("dfly-6.4.2.iso").toString());
            hand.ctl("install").exits(0).says("VNC on 127.0.0.1", "sh /mnt/setup.sh");
            Process console = hand.attach(LOG, "VmCtl", "console");
            try (OutputStream keys = console.getOutputStream()) {
                Guest.type(keys, LOG, "9", "OK ");
                Guest.type(keys, LOG, "\r", "OK ");
                Guest.type(keys, LOG, "set console=comconsole\r", "OK ");
                Guest.type(keys, LOG, "boot\r", "Copyright");
                Guest.await(LOG, "login:");
                Guest.type(keys, LOG, "root\r", "# ");
                Guest.type(keys, LOG, "mount_cd9660 /dev/cd1 /mnt && sh /mnt/phase1.sh\r", "STEP 1");
                assertTrue(console.waitFor(10, TimeUnit.MINUTES), "phase 1 does not power off");
            }
            hand.ctl("install").exits(0);
            console = hand.attach(LOG, "VmCtl", "console");
            try (OutputStream keys = console.getOutputStream()) {
                Guest.type(keys, LOG, "\r", "login:");
                Guest.type(keys, LOG, "root\r", "assword:");
                Guest.type(keys, LOG, Files.readString(hand.file(".ssh").resolve("root_password")).strip() + "\r", "# ");
                Guest.type(keys, LOG, "mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh\r", "STEP 1");
                Guest.await(LOG, "DONE WITH PHASE 3.");
            }
            hand.ctl("snapshot", "clean").exits(0);
            assertFalse(Files.exists(hand.file(".setup.iso")), "the root password is on it");
            hand.ctl("start").exits(0).says("froze disk and RAM");
            hand.sh("go version && rsync --version").exits(0);
            hand.ctl("restore").exits(0).says("with its RAM");
            hand.ctl("destroy", "--yes").exits(0);
            assertEquals(List.of(), hand.qemus());
        }
    }
}
