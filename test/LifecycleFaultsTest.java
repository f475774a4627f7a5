import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
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

/**
 * What goes wrong in a VM's life, or is unusual in it: each time the right words and code, nothing lost, nothing left running; and a
 * table of it. What is interrupted has its own class, InterruptionsTest.
 */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class LifecycleFaultsTest {

    /** A VM of its own, as its directory is moved away and the VM destroyed, while other classes need the one that is shared. */
    private static final Guest GUEST = Guest.twin("life's faults, \u00e9");
    private static final Path LOG = Guest.BUILD.resolve("test/fault.log");
    private static final String STANDIN = "/usr/libexec/standin/";
    private static final String FAULT = STANDIN + "fault ";
    /** What was tried, and how it ended. */
    private static final Map<String, String> TABLE = new TreeMap<>();

    /** Nothing is decided by a file's date: the clean disk's lies in the future all the while. Of a copy: the links to it share one date. */
    @BeforeAll
    static void somethingToLose() throws IOException {
        Path copy = GUEST.vmDir().resolve("copy");
        Files.copy(GUEST.file("-clean.qcow2"), copy, StandardCopyOption.COPY_ATTRIBUTES);
        Files.move(copy, GUEST.file("-clean.qcow2"), StandardCopyOption.REPLACE_EXISTING);
        Files.setLastModifiedTime(GUEST.file("-clean.qcow2"), FileTime.from(Instant.now().plus(Duration.ofHours(2))));
        GuestChecks.asInstalled(GUEST);
        GUEST.sync().exits(0);
        GUEST.sh("echo kept >/root/kept; sync").exits(0);
        GUEST.ctl("snapshot", "kept", "--yes").exits(0);
    }

    @AfterAll
    static void end() {
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
            GuestChecks.assertNothingIsLeft(GUEST, 3);
        });
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

    private static ProcessHandle qemu() {
        assertEquals(1, GUEST.qemus().size());
        return GUEST.qemus().get(0);
    }

    private static void signal(String name, long pid) {
        GUEST.run(List.of("kill", "-" + name, String.valueOf(pid))).exits(0);
    }

    @TestFactory
    @Order(1)
    Stream<DynamicTest> somebodyIsKilledDuringExec() {
        return Stream.of(
                fault("kill -9 of QEMU during exec", () -> {
                    Files.deleteIfExists(LOG);
                    Process exec = GUEST.start(LOG, "VmCtl", "exec", "--", "echo started; sleep 600");
                    Guest.await(LOG, "started");
                    qemu().destroyForcibly();
                    assertTrue(exec.waitFor(10, TimeUnit.MINUTES), "exec hangs");
                    assertEquals(69, exec.exitValue(), Files.readString(LOG));
                    GUEST.ctl("status").exits(3).answers("gone");
                }),
                fault("kill -9 of vm-ctl exec", () -> {
                    Files.deleteIfExists(LOG);
                    Process exec = GUEST.start(LOG, "VmCtl", "exec", "--", "echo started; sleep 600");
                    Guest.await(LOG, "started");
                    exec.destroyForcibly().waitFor();
                    GUEST.ctl("exec", "true").exits(0);
                }));
    }

    @TestFactory
    @Order(2)
    Stream<DynamicTest> twoCommandsAtOnce() {
        return Stream.of(
                fault("two starts at once", () -> {
                    GUEST.ctl("stop", "--force").exits(0);
                    KilledCommand.run(GUEST, KilledCommand.Way.HALT, "link moved", 1, "restore", "kept").exits(137); // start needs not boot
                    Process other = GUEST.start(LOG, "VmCtl", "start");
                    awaitTrue(() -> !GUEST.qemus().isEmpty());
                    Script.Result second = GUEST.ctl("start");
                    assertTrue(second.exitCode() == 0 || second.exits(69).err().contains("vm-ctl start (pid " + other.pid()), second.err());
                    assertTrue(other.waitFor(10, TimeUnit.MINUTES), "the first start hangs");
                    assertEquals(0, other.exitValue());
                }),
                fault("start during stop", () -> {
                    Process stop = GUEST.start(LOG, "VmCtl", "stop");
                    awaitTrue(() -> Files.readString(GUEST.file(".lock")).contains("vm-ctl stop"));
                    GUEST.ctl("start").exits(69).says("vm-ctl stop (pid " + stop.pid());
                    assertTrue(stop.waitFor(10, TimeUnit.MINUTES), "stop hangs");
                    assertEquals(0, stop.exitValue());
                    assertEquals(List.of(), GUEST.qemus());
                }));
    }

    @TestFactory
    @Order(3)
    Stream<DynamicTest> theGuestMisbehaves() {
        return Stream.of(
                fault("the guest panics", () -> {
                    GUEST.ctl("exec", "--timeout", "5s", "--", "sysctl debug.debugger_on_panic=1; " + FAULT + "panic").exits(124).says("db>");
                    GUEST.ctl("status").exits(69).answers("panicked");
                    GUEST.ctl("stop").exits(0).says("the guest cannot be asked", "QMP quit");
                }),
                fault("the guest hangs", () -> {
                    GUEST.ctl("exec", "--timeout", "1s", "--", FAULT + "hang").exits(124).says("hangs");
                    long begun = System.nanoTime();
                    GUEST.ctl("status").exits(0).answers("running");
                    assertTrue(System.nanoTime() - begun < 30e9, "status waits for the guest");
                }),
                fault("the guest halts", () -> {
                    GUEST.sh(FAULT + "halt");
                    awaitTrue(() -> GUEST.ctl("status").exitCode() == 69);
                    GUEST.ctl("status").exits(69).answers("has halted");
                    GUEST.ctl("stop").exits(0);
                }),
                fault("the guest floods its console", () -> {
                    Path console = GUEST.file(".console.log");
                    GUEST.ctl("exec", "--timeout", "5s", "--", FAULT + "flood 1000000");
                    long grown = Files.size(console);
                    System.out.println("a flood of 5 s left " + grown + " bytes");
                    assertTrue(grown < 30_000_000, grown + " bytes of console");
                }),
                fault("programs print what a panic prints", () -> {
                    // A Go program's words, and those of a real panic, as dmesg has them after one: sshd answers, so all is well.
                    // vm-test looks at the console every 0.1 s, and asks sshd within 5 s.
                    String go = "printf 'panic: index out of range\\n\\ngoroutine 1 [running]:\\n' >/dev/console; sleep 3; ";
                    String real = "printf 'panic: of before\\ncpuid = 0\\nTrace beginning at frame 0xf\\n' >/dev/console; sleep 7";
                    GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_LOUD", go + real).test("loud").exits(0);
                    GUEST.ctl("status").exits(0).answers("running");
                    GUEST.ctl("stop").exits(0).says("by shutdown -p now over ssh");
                }),
                fault("a suite whose guest panics", () -> {
                    GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_PANIC", "sysctl debug.debugger_on_panic=1; " + FAULT + "panic; sleep 600")
                            .test("panic").exits(69).says("panic");
                }),
                fault("a suite whose VM is killed", () -> {
                    Files.deleteIfExists(LOG);
                    Process suite = GUEST.with("VM_TEST_BUILD", "true", "VM_TEST_SLEEPY", "echo started; sleep 600").start(LOG, "VmTest", "sleepy");
                    Guest.await(LOG, "started");
                    qemu().destroyForcibly();
                    assertTrue(suite.waitFor(10, TimeUnit.MINUTES), "vm-test hangs");
                    assertEquals(69, suite.exitValue(), Files.readString(LOG));
                }));
    }

    @TestFactory
    @Order(4)
    Stream<DynamicTest> qemuStandsStill() {
        return Stream.of(
                fault("QEMU is stopped by SIGSTOP", () -> {
                    long pid = qemu().pid();
                    signal("STOP", pid);
                    GUEST.ctl("status").exits(69).answers("hung", "QEMU (pid " + pid + ") does not answer", "kill -CONT " + pid);
                    GUEST.ctl("start").exits(69).says("QEMU (pid " + pid + ") does not answer");
                    GUEST.ctl("snapshot", "cut").exits(69).says("QEMU (pid " + pid + ") does not answer");
                    Process screenshot = GUEST.start(LOG, "VmCtl", "screenshot", Guest.BUILD.resolve("test/still.png").toString());
                    assertFalse(screenshot.waitFor(2, TimeUnit.SECONDS), "a screenshot of a QEMU that does not answer");
                    signal("CONT", pid);
                    assertEquals(0, screenshot.waitFor());
                    GUEST.sh("true").exits(0);
                    signal("STOP", pid);
                    GUEST.ctl("stop").exits(69).says("QEMU (pid " + pid + ") does not answer", "vm-ctl stop --force ends it");
                    GUEST.ctl("stop", "--force").exits(0).says("by SIGKILL");
                }),
                fault("the guest is paused for some seconds", () -> {
                    new VmCtl.Qemu(new VmCtl.VmFiles(GUEST.vmDir(), "guest"), message -> { }).qmp("stop");
                    GUEST.ctl("status").exits(0).answers("paused", "vm-ctl start resumes it");
                    Thread.sleep(6000);
                    GUEST.ctl("start").exits(0).says("the guest was paused: resuming it", "runs already");
                    GuestChecks.assertClockIsRight(GUEST);
                }));
    }

    @TestFactory
    @Order(5)
    Stream<DynamicTest> filesAreDamaged() {
        return Stream.of(
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

    /**
     * A guest that breaks as soon as it is restored: it notices, because the connection that it held to this host's port is gone.
     * It is booted in the same command. VmCtlTest shows that a short limit marks no RAM, and that a second full silence does.
     */
    @Test
    @Order(6)
    void aRestoredGuestThatDoesNotAnswerIsBooted() throws Exception {
        GUEST.ctl("restore", "kept").exits(0);
        try (ServerSocket held = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            String job = "(while :; do echo x; B usleep 50000; done) | B nc 10.0.2.2 " + held.getLocalPort()
                    + "; sysctl debug.debugger_on_panic=1; B killall -9 sshd; B usleep 200000; " + FAULT + "panic";
            GUEST.sh("nohup sh -c '" + job.replace("B ", STANDIN + "busybox ") + "' >/dev/null 2>&1 </dev/null &").exits(0);
            held.accept();
            GUEST.ctl("snapshot", "cut", "--yes").exits(0);
        }
        GUEST.ctl("restore", "cut").exits(0).says("the RAM of cut cannot be used: the guest is in trouble: panic", "booted guest");
        GUEST.sh("cat /root/kept").exits(0).answers("kept");
        GUEST.ctl("status", "--json").exits(0).answers("\"usableRam\":[\"clean\",\"cut\",\"kept\"]");
        GUEST.ctl("restore", "kept").exits(0);
        GUEST.ctl("snapshot", "cut", "--yes").exits(0);
        GUEST.ctl("restore", "cut").exits(0).says("restored cut with its RAM");
        TABLE.put("a restored guest does not answer", "yes      | kept");
    }

    @TestFactory
    @Order(7)
    Stream<DynamicTest> unusualPlaces() {
        return Stream.of(
                fault("the snapshots lie on another file system", () -> {
                    Path here = GUEST.file(".snapshots");
                    Path there = Path.of("/dev/shm/" + here.getFileName() + "." + ProcessHandle.current().pid());
                    GUEST.run(List.of("mv", here.toString(), there.toString())).exits(0);
                    Files.createSymbolicLink(here, there);
                    try {
                        GUEST.ctl("snapshot", "away", "--yes").exits(0).says("kept disk and RAM");
                        assertTrue(Files.exists(there.resolve("away/ram")));
                        GUEST.ctl("restore", "away").exits(0).says("restored away with its RAM");
                        GUEST.ctl("snapshot", "--delete", "away").exits(0);
                        assertFalse(Files.exists(there.resolve("away")));
                    } finally {
                        Files.delete(here);
                        GUEST.run(List.of("mv", there.toString(), here.toString())).exits(0);
                    }
                }),
                fault("VM_DIR is moved, then copied, while the VM is stopped", () -> {
                    GUEST.ctl("restore", "kept").exits(0);
                    KilledCommand.run(GUEST, KilledCommand.Way.HALT, "link moved", 1, "restore", "kept").exits(137);
                    Guest moved = GUEST.with("VM_DIR", GUEST.vmDir() + " moved");
                    Guest copy = GUEST.with("VM_DIR", GUEST.vmDir() + " copy");
                    Files.move(GUEST.vmDir(), moved.vmDir());
                    try {
                        moved.ctl("start").exits(0).says("restored kept with its RAM");
                        moved.sh("cat /root/kept; echo moved >/root/moved; sync").exits(0).answers("kept");
                        moved.ctl("snapshot", "cut", "--yes").exits(0);
                        moved.ctl("stop", "--force").exits(0);
                        GUEST.run(List.of("cp", "-a", "--reflink=auto", moved.vmDir().toString(), copy.vmDir().toString())).exits(0);
                        copy.ctl("restore", "cut").exits(0).says("restored cut with its RAM");
                        copy.sh("cat /root/moved").exits(0).answers("moved");
                        List<Path> open = new ArrayList<>();
                        try (Stream<Path> files = Files.list(Path.of("/proc/" + copy.qemus().get(0).pid() + "/fd"))) {
                            for (Path file : files.toList()) {
                                open.add(Files.readSymbolicLink(file));
                            }
                        }
                        assertTrue(open.stream().anyMatch(file -> file.startsWith(copy.vmDir())), open.toString());
                        assertFalse(open.stream().anyMatch(file -> file.startsWith(moved.vmDir()) || file.startsWith(GUEST.vmDir())), open.toString());
                    } finally {
                        moved.ctl("stop", "--force");
                        copy.ctl("stop", "--force");
                        Files.move(moved.vmDir(), GUEST.vmDir());
                        Guest.delete(copy.vmDir());
                    }
                }));
    }

    /** As in a container that shares VM_DIR: QEMU's pid is somebody else's there, who must live. */
    @TestFactory
    @Order(8)
    Stream<DynamicTest> fromAnotherPidNamespace() {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root may make a pid namespace");
        return Stream.of("status, start, stop --force", "restore kept", "destroy --yes").map(lines -> fault("from another pid namespace: " + lines, () -> {
            Guest guest = GUEST;
            if (lines.startsWith("destroy")) {
                guest = GUEST.with("VM_NAME", "seen");
                GUEST.ctl("clone", "--snapshot", "kept", "--start", "seen").exits(0);
            }
            String pid = Files.readString(guest.file(".qemu-pid")).strip();
            for (String line : lines.split(", ")) {
                List<String> command = new ArrayList<>(List.of("unshare", "-p", "-f", "--mount-proc", "-m", "sh", "-c", """
                        echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid; sleep 300 & shift
                        "$@"; code=$?
                        kill $! && exit $code
                        echo "the stranger is dead" >&2; exit 99
                        """, "sh", pid));
                command.addAll(Script.command("VmCtl", line.split(" ")));
                Script.Result inside = guest.run(command).exits(0);
                switch (line) {
                    case "status" -> inside.answers("running");
                    case "start" -> inside.says("runs already");
                    case "restore kept" -> inside.says("restored kept with its RAM");
                    default -> assertEquals(List.of(), guest.qemus().stream()
                            .filter(qemu -> String.valueOf(qemu.pid()).equals(pid)).toList());
                }
            }
        }));
    }

    /** On a file system with 64 MB beside the clean disk: neither the VM's RAM nor much of a disk has room there. */
    @Test
    @Order(9)
    void aFullDiskStopsTheGuestOrTheSnapshotAndNothingElse() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root may mount");
        GUEST.ctl("stop", "--force").exits(0);
        long clean = Files.size(GUEST.file("-clean.qcow2"));
        Guest full = Guest.in(Files.createDirectories(Guest.BUILD.resolve("test/full")));
        GUEST.run(List.of("mount", "-t", "tmpfs", "-o", "size=" + (clean + (64 << 20)) + ",mode=700", "tmpfs", full.vmDir().toString())).exits(0);
        try {
            Files.copy(GUEST.file("-clean.qcow2"), full.file("-clean.qcow2"));
            GUEST.run(List.of("cp", "-r", GUEST.file(".ssh").toString(), full.vmDir().toString())).exits(0);
            full.ctl("start").exits(0).says("could not be kept as snapshot clean", "no space is left on", full.vmDir().toString());
            full.ctl("snapshot", "one").exits(1).says("no space is left on", full.vmDir().toString(), "the guest resumes");
            full.sh("nohup sh -c 'dd if=/dev/urandom of=/root/big bs=1048576 count=100; md5 -q /root/big >/root/sum; sync'"
                    + " >/dev/null 2>&1 </dev/null &").exits(0);
            awaitTrue(() -> full.ctl("status").exits(0).out().contains("paused"));
            full.ctl("status").answers("the disk of this machine is full");
            full.ctl("stop").exits(1).says("the disk of this machine is full", "stop --force");
            full.ctl("snapshot", "one").exits(1).says("the disk of this machine is full");
            full.ctl("start").exits(1).says("the disk of this machine is full");
            GUEST.run(List.of("mount", "-o", "remount,size=" + (clean + (400 << 20)), full.vmDir().toString())).exits(0);
            full.ctl("start").exits(0);
            awaitTrue(() -> full.sh("test -s /root/sum").exitCode() == 0);
            full.sh("test $(cat /root/sum) = $(md5 -q /root/big)").exits(0);

            full.ctl("snapshot", "one", "--yes").exits(0);
            full.sh("echo later >/root/later; sync").exits(0);
            fill(full);
            full.ctl("status").exits(0).answers("running");
            full.ctl("snapshot", "two").exits(1).says("no space is left on", full.vmDir().toString());
            full.sh("cat /root/later").exits(0).answers("later");
            full.ctl("restore", "one").exits(1).says("o space", full.vmDir().toString());
            full.sh("cat /root/later").exits(0).answers("later");
            GuestChecks.assertNothingIsLeft(full, 3);
            full.ctl("snapshot", "--delete", "one").exits(0);
            assertTrue(Files.notExists(full.file(".snapshots").resolve("one")));
            full.sh("cat /root/later").exits(0).answers("later");
            fill(full);
            full.ctl("stop", "--force").exits(0).says("by QMP quit");
            full.ctl("status").exits(3).answers("stopped");
            fill(full);
            full.ctl("start").exits(1).says("o space", full.vmDir().toString());
            full.ctl("destroy", "--yes").exits(0);
            assertEquals(List.of(), full.qemus());
            TABLE.put("disk full: run, snapshot, restore, delete, stop, destroy", "yes      | kept");
        } finally {
            full.ctl("stop", "--force");
            awaitTrue(() -> GUEST.run(List.of("umount", full.vmDir().toString())).exitCode() == 0);
        }
    }

    /** Leaves not one block free. */
    private static void fill(Guest guest) {
        GUEST.run(List.of("sh", "-c", "cat /dev/zero >>\"$1\"", "sh", guest.vmDir().resolve("filler").toString()));
    }
}
