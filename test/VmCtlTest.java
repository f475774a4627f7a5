import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonWriter;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.io.StringReader;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** VmCtl without a guest: its command line, its bookkeeping on real qcow2 files, and a bare QEMU. */
@Tag("unit")
final class VmCtlTest {

    @TempDir
    Path temporary;

    private Path dir;
    private VmCtl.VmFiles vm;

    /** No guest answers ssh here. */
    @BeforeAll
    static void waitForNoGuest() {
        VmCtl.GuestSsh.answerLimit = Duration.ofSeconds(1);
    }

    @AfterAll
    static void waitForGuests() {
        VmCtl.GuestSsh.answerLimit = Duration.ofSeconds(30);
    }

    @BeforeEach
    void makeDirectory() throws IOException {
        dir = Files.createDirectories(temporary.toRealPath().resolve("a, b'c $d \"\u00e9"));
        vm = new VmCtl.VmFiles(dir, "x");
    }

    @AfterEach
    void leaveNoQemu() throws IOException {
        if (VmCtl.isRunning(vm.qemuPid())) {
            ctl("stop", "--force").exits(0);
        }
    }

    private Script.Result ctl(String... arguments) {
        return ctl(Map.of(), arguments);
    }

    private Script.Result ctl(Map<String, String> environment, String... arguments) {
        Map<String, String> settings = new HashMap<>(
                Map.of("VM_DIR", dir.toString(), "VM_NAME", "x", "VM_ACCEL", "tcg", "VM_MEMORY", "256M"));
        settings.putAll(environment);
        return Script.call(VmCtl.commandLine(new VmCtl.Settings().add(Map.of("VM_CPUS", "3", "VM_MEMORY", "384M"), "vm.env").add(settings, "the environment"), arguments), arguments);
    }

    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void awaitTrue(Condition condition) throws Exception {
        for (long deadline = System.nanoTime() + Duration.ofMinutes(2).toNanos(); !condition.holds(); Thread.sleep(10)) {
            assertTrue(System.nanoTime() < deadline, "it never happened");
        }
    }

    private void makeCleanDisk() throws IOException {
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", vm.clean().toString(), "1G");
        Disks.write(vm.clean(), 1);
        Files.setPosixFilePermissions(vm.clean(), PosixFilePermissions.fromString("r--r--r--"));
    }

    /** The disk that the VM works on. */
    private Path disk() throws IOException {
        return vm.workingDisk().orElseThrow();
    }

    private int depth() throws IOException {
        return VmCtl.Disk.depth(disk());
    }

    private VmCtl.Snapshot snapshot(String name) {
        VmCtl.Qemu qemu = new VmCtl.Qemu(vm, message -> { });
        VmCtl.GuestSsh ssh = new VmCtl.GuestSsh(vm, message -> { });
        return new VmCtl.Snapshots(vm, new VmCtl.Machine(vm, qemu, ssh, message -> { }), qemu, ssh, message -> { }).find(name).orElseThrow();
    }

    /** An installed VM whose working disk is a fresh overlay. */
    private void makeVm() throws IOException {
        makeCleanDisk();
        ctl("restore").exits(0);
    }

    // The command line.

    @Test
    void wrongUsageIsOneLineAndTwo() {
        ctl("strt").exits(2).says("did you mean");
        ctl("start", "--no-wiat").exits(2).says("--no-wait");
        ctl("snapshot", "--delete", "clean").exits(2).says("snapshot clean cannot be deleted. vm-ctl snapshot clean --yes replaces it, "); // nor is there a VM
        ctl().exits(2);
        ctl("--help", "start").exits(0).answers("Commands:").answers("  stop ").answers("  start ");
        ctl("--vm-name", "x", "-h", "start").exits(0).answers("  stop ");
        ctl("start", "--help").exits(0).answers("VM_MEMORY").answers("Examples:");
    }

    @Test
    void aBadValueIsNamedByItsVariableAndNothingIsDone() throws IOException {
        makeCleanDisk();
        for (String variable : List.of("VM_MEMORY", "VM_CPUS", "VM_ACCEL", "VM_DISK_CACHE", "VM_SSH_PORT", "VM_NAME")) {
            Script.Result result = ctl(Map.of(variable, "no/such"), "start").exits(2).says(variable).says("no/such");
            assertEquals(1, result.err().lines().count());
        }
        ctl(Map.of("VM_NAME", "x-clean"), "status").exits(2).says("-clean");
        ctl(Map.of("VM_SSH_PORT", "65536"), "start").exits(2).says("VM_SSH_PORT");
        for (String line : List.of("snapshot ../up", "restore ../up", "snapshot --delete ../up", "snapshot --list one",
                "snapshot --list --delete one", "snapshot one --delete two", "start --forward 80", "start --forward 0:80",
                "start --forward 80:65536", "start --forward 80:80 --forward 80:81", "clone y --forward 80:80", "clone y --ssh-port 5000", "exec \t", "start --timeout soon", "exec --timeout 5d true", "exec --env =x true")) {
            assertEquals(1, ctl(line.split(" ")).exits(2).err().lines().count(), line);
        }
        assertEquals(List.of(vm.clean()), vm.all());
    }

    @Test
    void anOptionBeatsTheEnvironmentWhichBeatsTheFile() throws IOException {
        makeCleanDisk();
        ctl("start", "--dry-run").exits(0).answers("-m 256M -smp 3");
        ctl(Map.of("VM_MEMORY", ""), "start", "--dry-run").answers("-m 384M"); // empty is unset
        ctl("start", "--dry-run", "--memory", "300M").answers("-m 300M");
        ctl("start", "--dry-run", "--qemu-args", "-device 'virtio-rng-pci,id=a b'").answers("'virtio-rng-pci,id=a b'");
        assertEquals(List.of(vm.clean()), vm.all(), "a dry run leaves nothing");
    }

    @Test
    void aDryRunCanBePastedIntoAShell() throws Exception {
        makeCleanDisk();
        List<String> printed = ctl("start", "--dry-run").out().lines().toList();
        assertEquals(3, printed.size(), "a directory, an overlay, QEMU");
        Disks.run("sh", "-c", printed.get(0) + "; " + printed.get(1));
        Path overlay = vm.disks().resolve("new.qcow2");
        assertEquals(vm.clean(), VmCtl.Disk.read(overlay).backing());
        assertTrue(printed.get(2).contains("-blockdev") && printed.get(2).contains("new.qcow2"), printed.get(2));
    }

    private static List<String> tree(Path directory) throws IOException {
        try (Stream<Path> files = Files.walk(directory)) {
            return files.map(file -> directory.relativize(file).toString()).sorted().toList();
        }
    }

    /** Whatever the command: a wrong name is said at once, in one line, with the right ones; and nothing is made. */
    @Test
    void aVmThatIsNotThereIsSaidAtOnce() throws IOException {
        String picture = temporary.resolve("screen.png").toString();
        List<List<String>> commands = List.of(List.of("start"), List.of("start", "--dry-run"), List.of("restart"), List.of("status"),
                List.of("status", "--json"), List.of("snapshot"), List.of("snapshot", "--list"), List.of("snapshot", "--delete", "one"),
                List.of("restore"), List.of("clone", "y"), List.of("console"), List.of("console", "--log"), List.of("screenshot", picture),
                List.of("ssh"), List.of("exec", "--", "true"));
        Files.createFile(vm.file(".lock")); // both may be left of a start that failed
        Files.createFile(vm.file(".console.log"));
        for (boolean alone : new boolean[] {true, false}) {
            List<String> before = tree(temporary);
            String message = "there is no VM x in " + dir + ": vm-ctl list names the VMs there, vm-auto-install makes one";
            for (List<String> command : commands) {
                Script.Result result = ctl(command.toArray(String[]::new)).exits(69);
                assertEquals("vm-ctl: " + message + "\n", result.err(), command.toString());
                assertEquals("", result.out());
            }
            assertEquals(message + "\n", ctl("stop").exits(0).err());
            assertEquals(message + "\n", ctl("destroy").exits(0).err(), "it does not ask: there is nothing to destroy");
            assertEquals(before, tree(temporary));
            if (alone) {
                assertEquals("there is no VM in " + dir + ": vm-auto-install makes one\n", ctl("list").exits(0).err());
            }
            Files.write(dir.resolve("other-clean.qcow2"), new byte[0]);
            Files.createDirectories(dir.resolve("z.1.install"));
        }
        assertEquals("", ctl("list").exits(0).answers("other ").answers("z.1 ").err());
        ctl("list", "--vm-dir", "/proc/version").exits(69).says("VM_DIR");
    }

    /** Every command in an order that makes no sense: says what is true now and what to do, and changes nothing. */
    @Test
    void commandsInTheWrongOrderSayWhatToDo() throws IOException {
        Files.createDirectory(vm.file(".install")); // an installation has begun
        for (String command : List.of("start", "restart", "restore", "snapshot")) {
            ctl(command).exits(69).says("vm-auto-install");
            Files.createFile(vm.file(".install").resolve("by-hand.qcow2"));
            ctl(command).exits(69).says("the installation of x by hand is not finished: vm-auto-install by-hand continues it");
            Files.delete(vm.file(".install").resolve("by-hand.qcow2"));
        }
        makeVm();
        List<String> before = tree(temporary);
        for (String command : List.of("ssh", "exec true", "console", "screenshot " + temporary.resolve("s.png"))) {
            ctl(command.split(" ")).exits(3).says("vm-ctl start");
        }
        ctl("status").exits(3).answers("stopped");
        ctl("stop").exits(0).says("not running");
        ctl("console", "--log").exits(3).says("vm-ctl start");
        ctl("restore", "no-such").exits(69).says("snapshot --list");
        ctl("snapshot", "--delete", "no-such").exits(69).says("snapshot --list");
        assertEquals(before, tree(temporary));
        Files.writeString(vm.file(".console.log"), "login: ");
        assertEquals("login: ", ctl("console", "--log").exits(0).out());
        ctl("destroy", "--yes").exits(0);
        ctl("destroy", "--yes").exits(0).says("there is no VM x");
        assertEquals(List.of(), vm.all());
        assertFalse(Files.exists(dir.resolve("ssh_config")), "of the last VM");
    }

    @Test
    void aWordThatIsACommandIsNoSnapshot() throws IOException {
        makeVm();
        List<String> before = tree(temporary);
        for (String name : List.of("list", "delete", "yes", "help")) {
            ctl("snapshot", name).exits(2).says("did you mean vm-ctl snapshot --" + name + "?");
        }
        for (String name : List.of("start", "status", "restore", "destroy", "snapshot")) {
            ctl("snapshot", name).exits(2).says("did you mean vm-ctl " + name + "?");
        }
        assertEquals(before, tree(temporary));
        ctl("snapshot", "lists").exits(0);
        Files.move(vm.record("lists").getParent(), vm.record("list").getParent()); // by a version that did not refuse it
        ctl("restore", "list").exits(0);
        ctl("snapshot", "--delete", "list").exits(0);
    }

    @Test
    void aPictureGoesOnlyWhereOneCanBe() throws IOException {
        makeVm();
        Files.createDirectory(temporary.resolve("directory.png"));
        for (String[] wrong : new String[][] {{"x.jpg", "ends in .png"}, {"png", "ends in .png"}, {"/no/such/x.png", "cannot be written"},
                {temporary.resolve("directory.png").toString(), "cannot be written"}, {"/proc/version/x.png", "cannot be written"}}) {
            assertEquals(1, ctl("screenshot", wrong[0]).exits(2).says(wrong[1]).says(wrong[0]).err().lines().count());
        }
    }

    // Argument lists.

    private static VmCtl.Plan plan(String accelerator, List<String> forwards) {
        List<String> hardware = new ArrayList<>(List.of("QEMU 1"));
        hardware.addAll(VmCtl.Qemu.hardware(accelerator, "qemu64", "256M", 2));
        return new VmCtl.Plan(hardware, "a test", "writeback", 0, false, forwards, "user", Duration.ofMinutes(1), true, false);
    }

    @Test
    void everythingListensOnLoopbackOrInThePrivateDirectory() throws IOException {
        List<String> arguments = VmCtl.Qemu.arguments(vm, plan("kvm", List.of("8080:80")), 2222, dir.resolve("d"), false);
        assertTrue(arguments.contains("user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80"));
        assertTrue(arguments.stream().noneMatch(argument -> argument.contains("invtsc")));
        List<String> sockets = arguments.stream().filter(argument -> argument.startsWith("socket,")).toList();
        assertEquals(2, sockets.size());
        assertTrue(sockets.stream().allMatch(socket -> socket.contains("path=/")), sockets.toString());
        assertFalse(arguments.contains("-incoming"));
        assertTrue(VmCtl.Qemu.arguments(vm, plan("kvm", List.of()), 2222, dir.resolve("d"), true).contains("-incoming"));
    }

    /** Two -sandbox options would both hold, so the user's own comes alone; -daemonize needs more of the system. */
    @Test
    void qemuRunsInASandbox() throws IOException {
        List<String> arguments = VmCtl.Qemu.arguments(vm, plan("tcg", List.of()), 2222, dir.resolve("d"), true);
        assertEquals("setsid", arguments.get(0));
        assertTrue(String.join(" ", arguments).contains(
                " -sandbox on,resourcecontrol=deny,obsolete=deny,elevateprivileges=deny,spawn=deny "), arguments.toString());
        assertTrue(arguments.contains("-no-user-config") && !arguments.contains("-daemonize"), arguments.toString());
        VmCtl.Plan own = plan("tcg", List.of());
        own.hardware().addAll(List.of("-sandbox", "off"));
        arguments = VmCtl.Qemu.arguments(vm, own, 2222, dir.resolve("d"), false);
        assertEquals(1, Collections.frequency(arguments, "-sandbox"), arguments.toString());
        assertEquals("off", arguments.get(arguments.indexOf("-sandbox") + 1));
        VmCtl.Qemu.hasSetsid = false;
        try {
            arguments = VmCtl.Qemu.arguments(vm, plan("tcg", List.of()), 2222, dir.resolve("d"), false);
        } finally {
            VmCtl.Qemu.hasSetsid = true;
        }
        assertEquals("qemu-system-x86_64", arguments.get(0));
        assertTrue(String.join(" ", arguments).contains(" -daemonize "), arguments.toString());
        assertTrue(String.join(" ", arguments).contains(" -sandbox on,resourcecontrol=deny "), arguments.toString());
    }

    @Test
    void theDiskGivesSpaceBackAndItsNameIsSafe() throws Exception {
        List<String> arguments = VmCtl.Qemu.arguments(vm, plan("tcg", List.of()), 2222, dir.resolve("d, 1.qcow2"), false);
        JsonObject disk = JsonParser.object().from(arguments.get(arguments.indexOf("-blockdev") + 1));
        assertEquals("unmap", disk.getString("discard"));
        assertEquals("unmap", disk.getString("detect-zeroes"));
        assertEquals(dir.resolve("d, 1.qcow2").toString(), disk.getObject("file").getString("filename"));
    }

    @Test
    void sshItselfUnderstandsTheConfig() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        int port = VmCtl.json(ctl("status", "--json").out()).getInt("port");
        String config = Disks.run("ssh", "-G", "-F", dir.resolve("ssh_config").toString(), "x");
        for (String line : List.of("hostname 127.0.0.1", "port " + port, "user root", "hostkeyalias x", "stricthostkeychecking true",
                "batchmode yes", "identitiesonly yes", "controlmaster auto", "controlpersist 60")) {
            assertTrue(config.lines().anyMatch(line::equals), line + " is not in " + config);
        }
        String keys = new String(vm.file(".ssh").toString().getBytes(UTF_8), ISO_8859_1).replace("%", "%%");
        assertTrue(config.contains("identityfile ") && config.contains("id_ed25519") && config.contains(keys), config);
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(vm.file(".ssh").resolve("config"))));
    }

    @Test
    void theGuestsShellGetsTheWordsAsTheyWere() throws IOException {
        List<String> words = List.of("printf", "%s|", "a b", "it's", "$HOME", "", "*", "!x", "\\", "\u00e9");
        String said = Disks.run("sh", "-c", VmCtl.GuestSsh.remoteCommand(words, List.of(), null, "mark"));
        assertEquals("a b|it's|$HOME||*|!x|\\|\u00e9|", new String(said.getBytes(ISO_8859_1), UTF_8));
        assertEquals("a 'b' $c\n", Disks.run("sh", "-c", VmCtl.GuestSsh.remoteCommand(List.of("echo \"$G\""), List.of("G=a 'b' $c"), null, "mark")));
    }

    /** All 64 bytes reach /dev/random, between the two settings of DragonFly's sysctl. */
    @Test
    void aRestoredGuestGetsFreshRandomBytes() throws IOException {
        byte[] seed = new byte[64];
        for (int i = 0; i < seed.length; i++) {
            seed[i] = (byte) (i * 4 + i / 32); // 0, '%', a backslash and others that printf may trip on
        }
        Path device = Files.createFile(temporary.resolve("random"));
        Disks.run("sh", "-c", "sysctl() { echo \"$1 $(wc -c <\"$device\")\" >>\"$device.log\"; }; device=$1; "
                + VmCtl.GuestSsh.seedCommand(seed).replace("/dev/random", "\"$device\""), "sh", device.toString());
        assertArrayEquals(seed, Files.readAllBytes(device));
        assertEquals(List.of("kern.seedenable=1 0", "kern.seedenable=0 64"), Files.readAllLines(temporary.resolve("random.log")));
    }

    @Test
    void onlyABannerIsAnAnswer() throws Exception {
        try (ServerSocket silent = new ServerSocket(0, 5, InetAddress.getByName("127.0.0.1"))) { // accepts, as QEMU does, and says nothing
            long begun = System.nanoTime();
            assertFalse(VmCtl.hasBanner(silent.getLocalPort(), 300));
            assertTrue(System.nanoTime() - begun < 5e9);
            silent.accept().close();
            Thread sshd = new Thread(() -> {
                try (Socket client = silent.accept()) {
                    client.getOutputStream().write("SSH-2.0-OpenSSH_9.2\r\n".getBytes(UTF_8));
                } catch (IOException failed) {
                    throw new UncheckedIOException(failed);
                }
            });
            sshd.start();
            assertTrue(VmCtl.hasBanner(silent.getLocalPort(), 5000));
            sshd.join();
        }
    }

    // The guest's console.

    @Test
    void troubleIsReadFromTheConsole() {
        assertEquals(Optional.of("panic: no init"), trouble("booting\npanic: no init\ncpuid = 0\n"));
        assertEquals(Optional.of("panic: vm_fault"), trouble("\nlogin: panic: vm_fault\r\ncpuid = 1\r\n"));
        assertEquals(Optional.of("Fatal trap 12: page fault"), trouble("Fatal trap 12: page fault\r\ncpuid = 0; lapic->id = 0\r\n"));
        assertEquals(Optional.of("Stopped at      Debugger+0x7c"), trouble("x\nStopped at      Debugger+0x7c\r\ndb> "));
        assertTrue(trouble("The operating system has halted.\n").isPresent());
        for (String healthy : List.of("panic: x\ncpuid = 0\nCopyright (c) 2003-2025 The DragonFly Project.\nlogin: ",
                "debug.debugger_on_panic: 1 -> 0\nsaid: panic: no\nlogin: ", "panic: index out of range\n\ngoroutine 1 [running]:\n",
                "panic: said a program\ndb> ", "Unable to load /kernel/ehci\n", "Root mount failed: 6\nMounting root from cd9660:acd0\n",
                "Enter full pathname of shell or RETURN for /bin/sh: \n# exit\n\nlogin: ")) {
            assertEquals(Optional.empty(), trouble(healthy), healthy);
        }
    }

    private static Optional<String> trouble(String console) {
        return new VmCtl.ConsoleText(console).trouble();
    }

    private static String bootStage(String console) {
        return new VmCtl.ConsoleText(console).bootStage();
    }

    /** What a real DragonFly printed: test/console/README.md. */
    @Test
    void aRealConsoleGivesTheRightAnswer() throws IOException {
        Map<String, String> trouble = Map.of("phase-panic-ddb.log", "panic: sysctl_debug_panic", "panic-ddb.log", "panic: sysctl_debug_panic",
                "mountroot-prompt.log", "Root mount failed: 6", "mountroot-disk.log", "Root mount failed: 6",
                "loader-no-kernel.log", "can't load 'kernel'", "loader-no-kernel-autoboot.log", "can't find 'kernel'",
                "halt.log", "The operating system has halted");
        try (Stream<Path> logs = Files.list(Path.of("test/console"))) {
            for (Path log : logs.filter(file -> file.toString().endsWith(".log")).toList()) {
                String name = log.getFileName().toString();
                String console = Files.readString(log, ISO_8859_1);
                assertEquals(Optional.ofNullable(trouble.get(name)), trouble(console), name);
            }
        }
        String rebooted = Files.readString(Path.of("test/console/panic-reboot.log"), ISO_8859_1);
        assertEquals(Optional.of("panic: sysctl_debug_panic"), trouble(rebooted.substring(0, rebooted.indexOf("Rebooting..."))));
        String singleUser = Files.readString(Path.of("test/console/single-user.log"), ISO_8859_1);
        assertTrue(trouble(singleUser.substring(0, singleUser.indexOf("# fsck"))).isPresent());
    }

    @Test
    void emulatedProcessorsShareAThread() {
        assertEquals(List.of("-accel", "tcg"), VmCtl.Qemu.hardware("tcg", "qemu64", "256M", 1).subList(0, 2));
        assertEquals(List.of("-accel", "tcg,thread=single"), VmCtl.Qemu.hardware("tcg", "qemu64", "256M", 2).subList(0, 2));
        assertEquals(List.of("-accel", "kvm"), VmCtl.Qemu.hardware("kvm", "host", "256M", 2).subList(0, 2));
    }

    /** In an Include line, OpenSSH 9.9 expands % and ${}, and OpenSSH 9.2 does not: no line says the same to both. */
    @Test
    void aDirectoryThatSshWouldReadDifferentlyIsRefused() throws IOException {
        for (String name : List.of("a%b", "a%h", "a${HOME}b")) {
            Path odd = temporary.toRealPath().resolve(name);
            ctl("start", "--vm-dir", odd.toString()).exits(2).says("must not contain % or ${").says(odd.toString());
            VmCtl.VmException refused = assertThrows(VmCtl.VmException.class, () -> VmCtl.vmDirectory(odd.resolve("relative")));
            assertEquals(2, refused.exitCode);
            assertFalse(Files.exists(odd));
            Path link = Files.createSymbolicLink(temporary.resolve("link"), Files.createDirectory(odd));
            ctl("start", "--vm-dir", link.toString()).exits(2).says("must not contain % or ${").says(odd.toString());
            Files.delete(link);
        }
        Path oddLink = Files.createSymbolicLink(temporary.resolve("50%"), dir); // ssh is given what it leads to
        ctl("start", "--vm-dir", oddLink.toString()).exits(69).says("there is no VM x in " + dir);
    }

    @Test
    void whatAGuestPrintsIsHarmless() {
        assertEquals("red \tx\ny", VmCtl.printable("\u001b[1;31mred\u001b]0;title\u0007 \u001bc\tx\r\ny"));
        assertFalse(VmCtl.printable("\u009b31m").contains("\u009b"));
    }

    /** Whoever answers on the guest's port may print without end. */
    @Test
    void whatAGuestPrintsWithoutEndIsCut() throws IOException {
        Path flood = Files.writeString(temporary.resolve("flood"), "(printf '\\033[31m\\302\\233\\342\\200\\256'; yes no | head -c 10000000) >&2\n");
        Files.writeString(dir.resolve("ssh_config"), "Host x\nProxyCommand sh " + flood + "\n");
        VmCtl.GuestSsh.Output output = new VmCtl.GuestSsh(vm, message -> { }).run(Duration.ofMinutes(1), "true");
        assertFalse(output.ok());
        assertTrue(output.text().length() > 60_000 && output.text().length() <= VmCtl.GuestSsh.MAX_OUTPUT, output.text().length() + "");
        assertFalse(output.text().matches("(?s).*[\u001b\u009b\u202e].*"));
        assertEquals("{}", VmCtl.Qemu.line(new StringReader("{}\n{}"), 2));
        assertThrows(IOException.class, () -> VmCtl.Qemu.line(new StringReader("{ }\n"), 2));
    }

    // Disks.

    @Test
    void theHeaderIsReadAsQemuImgReadsIt() throws Exception {
        makeVm();
        VmCtl.Disk disk = VmCtl.Disk.read(disk());
        JsonObject info = JsonParser.object().from(Disks.run("qemu-img", "info", "--output=json", disk().toString()));
        assertEquals(info.getLong("virtual-size"), disk.size());
        assertEquals(vm.clean(), disk.backing());
        assertTrue(disk.empty());
        assertNull(VmCtl.Disk.read(vm.clean()).backing());
        Disks.write(disk(), 2);
        assertFalse(VmCtl.Disk.read(disk()).empty());
        byte[] sound = Files.readAllBytes(disk());
        for (int at : List.of(16, 36)) { // a name's length, a table's
            byte[] damaged = sound.clone();
            Arrays.fill(damaged, at, at + 4, (byte) 0xff);
            Files.write(disk(), damaged);
            assertEquals(Optional.empty(), VmCtl.Disk.find(disk()));
            ctl("start").exits(69).says("is damaged; vm-ctl restore");
        }
        Files.write(disk(), Arrays.copyOf(sound, 80));
        ctl("start").exits(69).says("is damaged; vm-ctl restore");
        Files.writeString(disk(), "no image");
        ctl("start").exits(69).says("not a qcow2 image").says("vm-ctl restore");
        ctl("restore").exits(0);
        assertTrue(VmCtl.Disk.read(disk()).empty());
    }

    /** The original's way to lose everything: a restore, then a snapshot over the snapshot just restored. */
    @Test
    void restoreThenSnapshotThenRestoreLosesNothing() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        for (int pattern = 3; pattern < 7; pattern++) {
            ctl("restore", "one").exits(0);
            Disks.holds(disk(), pattern - 1);
            Disks.write(disk(), pattern);
            ctl("snapshot", "one").exits(2).says("--yes");
            ctl("snapshot", "one", "--yes").exits(0);
            assertEquals(2, depth(), "the replaced snapshot's layer was not merged away");
        }
        ctl("restore").exits(0);
        Disks.holds(disk(), 1);
        ctl("restore", "one").exits(0);
        Disks.holds(disk(), 6);
        Disks.run("qemu-img", "check", "-q", disk().toString());
    }

    @Test
    void aReplacedDiskStaysWhileSomethingBuildsOnIt() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        Path replaced = snapshot("one").disk();
        ctl("snapshot", "two").exits(0);
        ctl("restore", "one").exits(0);
        Disks.write(disk(), 4);
        ctl("snapshot", "three").exits(0);
        ctl("restore", "clean").exits(0);
        Disks.write(disk(), 3);
        ctl("snapshot", "one", "--yes").exits(0);
        assertTrue(Files.exists(replaced), "two and three build on it");
        ctl("restore", "two").exits(0);
        Disks.holds(disk(), 2);
        ctl("snapshot", "--delete", "three").exits(0);
        assertFalse(Files.exists(replaced), "it could be merged into the disk of two");
        Disks.holds(disk(), 2);
        ctl("restore", "one").exits(0);
        Disks.holds(disk(), 3);
        ctl("restore", "two").exits(0);
        Disks.holds(disk(), 2);
    }

    @Test
    void deletingASnapshotMergesItsLayerAway() throws IOException {
        makeVm();
        ctl("snapshot", "one").exits(0);
        Disks.write(disk(), 2);
        ctl("snapshot", "two").exits(0);
        assertEquals(3, depth());
        ctl("snapshot", "--delete", "one").exits(0).says("deleted one");
        assertEquals(2, depth());
        Disks.holds(disk(), 2);
        ctl("snapshot", "--delete", "clean").exits(2);
        ctl("snapshot", "--delete", "two").exits(0);
        assertEquals(1, depth(), "the VM itself still builds on it");
        Disks.holds(disk(), 2);
        assertEquals("", ctl("snapshot", "--list").exits(0).out());
        assertEquals(List.of(disk()), files(vm.disks()));
        assertFalse(Files.exists(vm.file(".snapshots")) && !files(vm.file(".snapshots")).isEmpty());
        Disks.run("qemu-img", "check", "-q", disk().toString());
    }

    @Test
    void manySnapshotsLeaveNothingBehind() throws IOException {
        makeVm();
        for (int i = 0; i < 30; i++) {
            Disks.write(disk(), 2 + i);
            ctl("snapshot", "s" + i % 3, "--yes").exits(0);
        }
        assertEquals(4, depth());
        Disks.holds(disk(), 31);
        for (int i = 0; i < 3; i++) {
            ctl("snapshot", "--delete", "s" + i).exits(0);
        }
        assertEquals(1, depth());
        Disks.holds(disk(), 31);
        assertEquals(List.of(disk()), files(vm.disks()));
    }

    private static List<Path> files(Path directory) throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.sorted().toList();
        }
    }

    @Test
    void aVmDirThatWasMovedOrCopiedUsesItsOwnDisks() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        Disks.write(disk(), 3);
        Path moved = temporary.toRealPath().resolve("moved");
        Disks.run("cp", "-a", dir.toString(), moved.toString());
        Map<String, String> there = Map.of("VM_DIR", moved.toString());
        VmCtl.VmFiles copy = new VmCtl.VmFiles(moved, "x");
        Disks.write(copy.workingDisk().orElseThrow(), 4);
        Disks.holds(disk(), 3);
        ctl(there, "restore", "one").exits(0);
        ctl(there, "snapshot", "--delete", "one").exits(0);
        Files.move(dir, temporary.resolve("away"));
        Disks.holds(copy.workingDisk().orElseThrow(), 2);
        assertTrue(copy.workingDisk().orElseThrow().startsWith(moved));
    }

    /** After a correction of the clock, or a copy that gave every file a new date, all is as before, and the RAM is used. */
    @Test
    void theDatesOfFilesDecideNothing() throws IOException {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        List<String> hardware = new VmCtl.Qemu(vm, message -> { }).running().orElseThrow().hardware();
        ctl("stop", "--force").exits(0);
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        giveRam("one", hardware);
        List<String> before = whatIsSaid();
        assertTrue(before.get(0).contains("-incoming"), "a start restores the RAM: " + before);
        for (int days : List.of(-400, 400, 0)) {
            try (Stream<Path> all = Files.walk(dir)) {
                for (Path file : all.toList()) {
                    Files.setLastModifiedTime(file, FileTime.from(Instant.now().plus(Duration.ofDays(days))));
                }
            }
            Files.setLastModifiedTime(vm.clean(), FileTime.from(Instant.now().minus(Duration.ofDays(days)))); // older or newer than the rest
            assertEquals(before, whatIsSaid(), days + " days");
            Disks.write(disk(), 3);
            ctl("snapshot", "two", "--yes").exits(0);
            ctl("restore", "--cold", "--timeout", "1s").exits(0);
            Disks.holds(disk(), 1);
            ctl("restore", "two").exits(0);
            Disks.holds(disk(), 3);
            ctl("snapshot", "--delete", "two").exits(0);
            restoredDisk("one");
            Disks.holds(disk(), 2);
        }
    }

    /** What tells how a VM is, and what a start would do. */
    private List<String> whatIsSaid() {
        return Stream.of(ctl("start", "--dry-run").exits(0), ctl("status", "--json").exits(3), ctl("snapshot", "--list").exits(0))
                .map(result -> result.out().replaceAll("127\\.0\\.0\\.1:\\d+|[0-9a-f]+\\.qcow2", "")).toList();
    }

    /** Gives a snapshot a RAM file of five bytes. */
    private Path giveRam(String snapshot, List<String> hardware) throws IOException {
        Path ram = Files.writeString(vm.record(snapshot).resolveSibling("ram"), "12345");
        JsonObject record = VmCtl.json(Files.readString(vm.record(snapshot)));
        record.putAll(VmCtl.object("ram", dir.relativize(ram).toString(), "ramBytes", 5, "ramCrc32c", 0, "hardware", hardware));
        Files.writeString(vm.record(snapshot), JsonWriter.string(record));
        return ram;
    }

    /** The VM stopped, on a fresh overlay on a snapshot, whose RAM was not tried. */
    private void restoredDisk(String snapshot) {
        killedAt("link moved", "restore", snapshot);
    }

    @Test
    void aMissingDiskIsSaidAndNothingElseIsRemoved() throws IOException {
        makeVm();
        ctl("snapshot", "one").exits(0);
        Disks.write(disk(), 2);
        ctl("snapshot", "two").exits(0);
        Path one = snapshot("one").disk();
        Files.move(one, temporary.resolve("away"));
        Script.Result refused = ctl("start").exits(69).says(one + " is missing");
        assertFalse(refused.err().contains("restore"), "it would throw the user's work away: " + refused.err());
        ctl("restore", "two").exits(69).says("is missing");
        ctl("snapshot", "three").exits(69).says("is missing");
        List<Path> left = files(vm.disks());
        ctl("stop").exits(0);
        assertEquals(left, files(vm.disks()));
        Files.move(temporary.resolve("away"), one);
        ctl("restore", "two").exits(0);
        Disks.holds(disk(), 2);
    }

    /** Of a layer without a name, as a killed snapshot --delete leaves it, only the disk above it tells that it is needed. */
    @Test
    void noLayerIsDeletedWhileTheWorkingDiskIsMissing() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        Files.delete(vm.record("one"));
        Path working = disk();
        Path layer = VmCtl.Disk.read(working).backing();
        Files.move(working, temporary.resolve("away"));
        ctl("stop").exits(0);
        assertTrue(Files.exists(layer));
        Files.move(temporary.resolve("away"), working);
        ctl("stop").exits(0);
        assertFalse(Files.exists(layer), "merged");
        Disks.holds(disk(), 2);
    }

    @Test
    void aSymbolicLinkToTheDirectoryIsTheSameDirectory() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        Path link = Files.createSymbolicLink(temporary.resolve("link"), dir);
        ctl("snapshot", "one").exits(0);
        ctl(Map.of("VM_DIR", link.toString()), "snapshot", "two").exits(0);
        ctl("snapshot", "--delete", "one").exits(0);
        Disks.holds(disk(), 2);
        ctl("restore", "two").exits(0);
        Disks.holds(disk(), 2);
    }

    @Test
    void aDamagedRecordCostsNothing() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        Path foreign = Files.createDirectory(vm.file(".snapshots").resolve("lost+found"));
        Path note = Files.writeString(vm.file(".snapshots").resolve("note.txt"), "not ours");
        Disks.write(disk(), 3);
        ctl("snapshot", "two").exits(0);
        Path own = Files.writeString(Files.createDirectory(vm.file(".snapshots").resolve("mine")).resolve("a"), "not ours");
        Path backup = Files.copy(vm.clean(), vm.disks().resolve("backup.qcow2"));
        ctl("stop").exits(0);
        for (Path stays : List.of(foreign, note, own, backup)) {
            assertTrue(Files.exists(stays), "not ours: " + stays);
        }
        Files.delete(backup);
        Path record = vm.record("one");
        String text = Files.readString(record);
        for (String damage : List.of(text.substring(0, 20), "{\"disk\":\"../../etc/passwd\"}", "{\"disk\":7}", "{}", "{\"disk\":\"x\",\"hardware\":[1]}")) {
            Files.writeString(record, damage);
            ctl("status").exits(3);
            ctl("snapshot", "--list").answers("one                  its record is damaged");
            ctl("restore", "one").exits(69).says("is damaged").says("--list");
            ctl("restore", "two").exits(0);
            ctl("snapshot", "--delete", "one").exits(69);
            Disks.holds(disk(), 3);
        }
        Files.writeString(record, text);
        ctl("restore", "one").exits(0);
        Disks.holds(disk(), 2);
    }

    /** A header can name any file of this machine, and QEMU and qemu-img would use it. */
    @Test
    void aDiskThatReachesOutOfVmDirIsRefused() throws IOException {
        makeVm();
        Path outside = temporary.resolve("outside.qcow2");
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", outside.toString(), "1G");
        Path link = Files.createSymbolicLink(dir.resolve("link.qcow2"), outside);
        Path deeper = dir.resolve("deeper.qcow2");
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", outside.toString(), deeper.toString());
        Path secret = Files.writeString(dir.resolve("secret"), "a key");
        Path disk = disk();
        byte[] sound = Files.readAllBytes(disk);
        for (String[] attack : new String[][] {
                {"-F qcow2 -b", outside.toString(), "builds on " + outside + ", which is not in VM_DIR"},
                {"-F qcow2 -b", "../../outside.qcow2", "builds on " + outside + ", which is not in VM_DIR"},
                {"-F qcow2 -b", link.toString(), "builds on " + outside + ", which is not in VM_DIR"},
                {"-F qcow2 -b", deeper.toString(), "builds on " + outside + ", which is not in VM_DIR"},
                {"-F qcow2 -b", secret.toString(), secret + " is not a qcow2 image; "},
                {"-F raw -b", "../x-clean.qcow2", "builds on ../x-clean.qcow2, which is not said to be a qcow2 file"},
                {"-F qcow2 -b", "nbd:unix:/s", "builds on nbd:unix:/s, which is not said to be a qcow2 file"},
                {"-F qcow2 -b", "json:{\"driver\":\"qcow2\"}", "builds on json:"},
                {"-o", "data_file=" + temporary.resolve("data"), "keeps its data in another file"}}) {
            Files.delete(disk);
            List<String> command = new ArrayList<>(List.of("qemu-img", "create", "-q", "-f", "qcow2", "-u"));
            command.addAll(List.of(attack[0].split(" ")));
            command.addAll(List.of(attack[1], disk.toString(), "1G"));
            Disks.run(command.toArray(String[]::new));
            for (String line : List.of("start --no-wait", "snapshot one")) {
                ctl(line.split(" ")).exits(69).says(disk.toString()).says(attack[2]);
            }
        }
        int format = new String(sound, ISO_8859_1).indexOf("\u00e2\u0079\u002a\u00ca"); // the extension that gives it
        for (int change : new int[] {0, 4}) { // it is gone, then longer than the file
            byte[] changed = sound.clone();
            Arrays.fill(changed, format + change, format + change + 4, (byte) 0x7f);
            Files.write(disk, changed);
            ctl("start", "--no-wait").exits(69).says(change == 0 ? "not said to be a qcow2 file" : "is damaged");
        }
        byte[] nul = sound.clone();
        nul[(int) ByteBuffer.wrap(sound).getLong(8)] = 0; // in the name of the disk below
        Files.write(disk, nul);
        ctl("start", "--no-wait").exits(69).says("is damaged");
        Files.write(disk, sound);
        Path elsewhere = temporary.resolve("elsewhere");
        Files.move(vm.disks(), elsewhere);
        Files.createSymbolicLink(vm.disks(), elsewhere);
        ctl("start", "--no-wait").exits(69).says("is " + elsewhere).says("not in VM_DIR");
        Files.delete(vm.disks());
        Files.move(elsewhere, vm.disks());

        ctl("snapshot", "one").exits(0); // the clean disk of a clone and of a restore, and a layer that is to be merged
        ctl("snapshot", "two").exits(0);
        Files.delete(vm.clean());
        Files.copy(deeper, vm.clean());
        ctl("restore").exits(69).says("builds on " + outside);
        ctl("clone", "y").exits(69).says("builds on " + outside);
        ctl("snapshot", "--delete", "one").exits(0).says("could not be merged now").says("builds on " + outside);
    }

    /** Root could write to a read-only disk. */
    @Test
    void aLinkThatNamesADiskOthersNeedIsRefused() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        for (Path wrong : List.of(snapshot("one").disk(), vm.clean(), dir.resolve("x.disks/none.qcow2"), Path.of("/etc/passwd"))) {
            Files.delete(vm.link());
            Files.createSymbolicLink(vm.link(), wrong);
            ctl("start", "--no-wait").exits(69).says(wrong.toString());
            ctl("snapshot", "two").exits(69).says(wrong.toString());
        }
        ctl("restore", "one").exits(0);
        Disks.holds(disk(), 2);
    }

    /** An older vm-setup disk or vm-ctl install made NAME.qcow2 a disk of its own: what the line says to do about it works. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void anOlderDiskOfAnInstallationByHandIsRecognised(boolean installed) throws IOException {
        if (installed) {
            makeCleanDisk();
        }
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", vm.link().toString(), "1G");
        String said = "";
        for (String command : List.of("start", "snapshot clean --yes", "restore")) {
            said = ctl(command.split(" ")).exits(69).says("is a disk that an older vm-setup disk or vm-ctl install made").err();
        }
        Disks.run("sh", "-c", said.replaceAll("(?s).*installation: (mkdir .*) && vm-auto-install.*", "$1"));
        assertEquals(1L << 30, VmCtl.Disk.read(vm.file(".install").resolve("by-hand.qcow2")).size());
        if (installed) {
            Disks.holds(vm.clean(), 1);
            ctl("start", "--no-wait").exits(0);
        } else {
            ctl("start").exits(69).says("vm-auto-install by-hand continues it");
        }
    }

    @Test
    void whatAnOlderVersionMadeIsRecognised() throws IOException {
        makeCleanDisk();
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", vm.clean().toString(), vm.link().toString());
        for (String command : List.of("start", "restart", "restore", "snapshot one", "clone two")) {
            ctl(command.split(" ")).exits(69).says("made by an older vm-ctl").says("rm -r ");
        }
        ctl("status").exits(3);
        ctl("stop").exits(0);
        Files.delete(vm.link());
        Files.createDirectories(vm.file(".snapshots").resolve("clean"));
        Files.createFile(vm.file(".snapshots").resolve("clean/disk.qcow2"));
        ctl("start").exits(69).says("made by an older vm-ctl");
        ctl("destroy", "--yes").exits(0);
    }

    // Commands that are killed, at the step that is meant.

    /** Runs a command that ends, as by kill -9, at one of its steps. */
    private void killedAt(String step, String... command) {
        KilledCommand.run(killable(), KilledCommand.Way.HALT, step, 1, command).exits(137);
    }

    private Guest killable() {
        return Guest.in(dir).with("VM_NAME", "x", "VM_ACCEL", "tcg", "VM_MEMORY", "256M");
    }

    @Test
    void aKilledSnapshotOfAStoppedVmIsThereOrNotAndLosesNothing() throws Exception {
        makeVm();
        for (String step : List.of("overlay made", "link moved", "recorded")) {
            Disks.write(disk(), step.length());
            killedAt(step, "snapshot", "one", "--yes");
            Disks.holds(disk(), step.length());
            ctl("stop").exits(0); // cleans up, and merges
            assertEquals(step.equals("recorded") ? "one" : "", ctl("snapshot", "--list").out().replaceAll("(?s) .*", ""));
            assertEquals(step.equals("recorded") ? 2 : 1, depth(), step);
            assertEquals(depth(), files(vm.disks()).size(), step);
        }
        killedAt("deleted", "snapshot", "--delete", "one");
        ctl("stop").exits(0);
        assertEquals(1, depth());
        KilledCommand.run(killable(), KilledCommand.Way.SIGINT, "link moved", 1, "snapshot", "two").exits(130);
        assertEquals("", ctl("snapshot", "--list").out());
        assertEquals(List.of(1, 1), List.of(depth(), files(vm.disks()).size()), "it is undone");
        Disks.holds(disk(), "recorded".length());
    }

    @Test
    void aKilledRestoreLeavesTheOldDiskOrTheNewOne() throws Exception {
        makeVm();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        for (String step : List.of("overlay made", "ended", "link moved")) {
            Disks.write(disk(), 3);
            killedAt(step, "restore", "one");
            Disks.holds(disk(), step.equals("link moved") ? 2 : 3);
            ctl("stop").exits(0);
            assertEquals(2, files(vm.disks()).size(), step);
            ctl("restore", "one").exits(0);
            Disks.holds(disk(), 2);
        }
        Disks.write(disk(), 3);
        KilledCommand.run(killable(), KilledCommand.Way.SIGINT, "overlay made", 1, "restore", "one").exits(130);
        Disks.holds(disk(), 3);
        assertEquals(2, files(vm.disks()).size(), "it is undone");
        ctl("start", "--no-wait").exits(0); // a QEMU that the restore would have ended itself
        KilledCommand.run(killable(), KilledCommand.Way.QEMU, "overlay made", 1, "restore", "one", "--timeout", "1s").exits(124); // which boots it, and nothing answers
        ctl("stop", "--force").exits(0);
        ctl("restore", "one").exits(0);
        killedAt("QEMU started", "start", "--no-wait");
        assertTrue(VmCtl.isRunning(vm.qemuPid()), "it runs, without a record");
        ctl("status").exits(0).answers("starting");
        ctl("snapshot", "two").exits(69).says("vm-ctl: an earlier start was interrupted: run vm-ctl start again");
        ctl("start", "--no-wait").exits(0).says("was interrupted: ending its QEMU");
        ctl("stop", "--force").exits(0);
        Disks.holds(disk(), 2);
    }

    @Test
    void aKilledCloneIsNoVmOrOneThatCanBeDestroyed() throws Exception {
        makeVm();
        keys();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        for (String step : List.of("clone recorded", "clone made")) {
            killedAt(step, "clone", "--snapshot", "one", "two", "three");
            ctl("list").exits(0).answers("clone of x/one");
            ctl("snapshot", "--delete", "one").exits(69).says("clones build on it: two");
            ctl("clone", "two").exits(69).says("there is a VM two already");
            ctl(Map.of("VM_NAME", "two"), "status").exits(3).answers("stopped");
            ctl(Map.of("VM_NAME", "two"), "destroy", "--yes").exits(0);
            KilledCommand.run(killable(), KilledCommand.Way.SIGINT, step, 1, "clone", "--snapshot", "one", "two", "three").exits(130);
            assertEquals(List.of(), files(dir).stream().filter(file -> file.getFileName().toString().matches("(two|three).*")).toList());
        }
        ctl("snapshot", "--delete", "one").exits(0);
        Disks.holds(disk(), 2);
    }

    // Clones.

    @Test
    void aCloneHasItsOwnDiskAndProtectsWhatItBuildsOn() throws IOException {
        makeVm();
        keys();
        Disks.write(disk(), 2);
        ctl("snapshot", "one").exits(0);
        Disks.write(disk(), 3);
        ctl("clone", "a", "--snapshot", "one").exits(0).says("made a of x/one; to start it: VM_NAME=a vm-ctl start\n");
        ctl("clone", "b", "c").exits(0).says("made b, c of x/clean; to start one of them: VM_NAME=b vm-ctl start\n"); // of the clean disk: it was never started
        Map<String, String> a = Map.of("VM_NAME", "a");
        VmCtl.VmFiles clone = new VmCtl.VmFiles(dir, "a");
        Disks.holds(clone.workingDisk().orElseThrow(), 2);
        Disks.write(clone.workingDisk().orElseThrow(), 4);
        Disks.holds(disk(), 3);
        Disks.holds(new VmCtl.VmFiles(dir, "b").workingDisk().orElseThrow(), 1);
        ctl("list").exits(0).answers("clone of x/one").answers("clone of x/clean");
        assertEquals("x/one", VmCtl.json(ctl(a, "status", "--json").out()).getString("cloneOf"));
        assertTrue(Files.readString(clone.file(".ssh").resolve("known_hosts")).startsWith("a ssh-ed25519"));

        ctl("snapshot", "one", "--yes").exits(69).says("clones build on it: a;");
        ctl("snapshot", "--delete", "one").exits(69).says("clones build on it: a;");
        ctl("destroy", "--yes").exits(69).says("clones build on it: a, b, c;");
        ctl("snapshot", "two").exits(0); // what nobody builds on can be replaced and deleted
        ctl("snapshot", "--delete", "two").exits(0);
        ctl(a, "clone", "d").exits(69).says("clone itself");
        ctl(a, "snapshot", "clean", "--yes").exits(0); // it is a clone still
        ctl("destroy", "--yes").exits(69).says("clones build on it: a, b, c;");
        ctl(a, "clone", "d").exits(69).says("clone itself");
        String record = Files.readString(clone.record("clean"));
        ctl("snapshot", "two").exits(0);
        Files.writeString(clone.record("clean"), "{");
        ctl("snapshot", "--delete", "two").exits(69).says("a (perhaps: its record " + clone.record("clean") + " is damaged)");
        Files.writeString(clone.record("clean"), record);
        ctl("snapshot", "--delete", "two").exits(0);
        ctl(a, "snapshot", "own").exits(0);
        ctl(a, "clone", "d", "--snapshot", "own").exits(69).says("clone x instead");
        ctl(a, "snapshot", "--delete", "own").exits(0);
        Files.delete(clone.record("clean"));
        ctl("destroy", "--yes").exits(69).says("clones build on it: a, b, c;");
        ctl(a, "snapshot", "own").exits(0);
        ctl(a, "restore").exits(69).says("has no snapshot clean");
        ctl(a, "restore", "own").exits(0);
        Disks.holds(clone.workingDisk().orElseThrow(), 4);

        for (String name : List.of("a", "b", "c")) {
            ctl(Map.of("VM_NAME", name), "destroy", "--yes").exits(0);
        }
        Disks.holds(disk(), 3);
        ctl("restore", "one").exits(0);
        Disks.holds(disk(), 2);
        ctl("destroy", "--yes").exits(0);
    }

    @Test
    void aCloneThatCannotBeMadeLeavesNoneOfThem() throws IOException {
        makeVm();
        keys();
        ctl("clone", "a", "x").exits(69).says("there is a VM x already");
        ctl("clone", "a", "a").exits(2).says("given twice");
        for (String name : List.of("../up", "a-clean", ".a", "")) {
            ctl("clone", name).exits(2).says("(NAME): '");
        }
        ctl("clone", "a", "--snapshot", "no-such").exits(69).says("x has no snapshot no-such");
        Files.delete(vm.file(".ssh").resolve("known_hosts"));
        ctl("clone", "a", "b").exits(69).says("known_hosts");
        ctl("list").exits(0);
        assertEquals(List.of(), new VmCtl.VmFiles(dir, "a").all());
        assertEquals(List.of(), new VmCtl.VmFiles(dir, "b").all());
    }

    /** Each is waited for, also if one before it has failed; the exit code is that of the first that failed. */
    @Test
    void clonesThatStartTogetherAreAllAwaited() throws IOException {
        makeVm();
        keys();
        VmCtl.onStep = step -> {
            try {
                if (step.equals("clone made") && !Files.exists(dir.resolve("b.disks"))) {
                    Files.delete(new VmCtl.VmFiles(dir, "a").workingDisk().orElseThrow());
                }
            } catch (IOException failed) {
                throw new UncheckedIOException(failed);
            }
        };
        try {
            Script.Result result = ctl("clone", "--start", "--timeout", "2s", "a", "b").exits(69);
            result.says("made a, b of x/clean\n", "a: ", " is missing", "b: no answer after ");
        } finally {
            VmCtl.onStep = step -> { };
            ctl(Map.of("VM_NAME", "b"), "stop", "--force");
        }
    }

    private void keys() throws IOException {
        Path keys = Files.createDirectories(vm.file(".ssh"));
        Files.writeString(keys.resolve("known_hosts"), "x ssh-ed25519 AAAA\n");
        Files.writeString(keys.resolve("id_ed25519"), "the key");
        Files.setPosixFilePermissions(keys.resolve("id_ed25519"), PosixFilePermissions.fromString("rw-------"));
    }

    // RAM that does not fit.

    @Test
    void ramIsUsedOnTheSameHardwareOnly() throws IOException {
        makeVm();
        ctl("snapshot", "one").exits(0);
        List<String> hardware = plan("tcg", List.of()).hardware();
        Path ram = giveRam("one", hardware);
        VmCtl.Snapshot snapshot = snapshot("one");
        assertNull(snapshot.ramProblem(hardware));
        assertEquals("disk and RAM", snapshot.contents());
        assertEquals(List.of("one"), VmCtl.json(ctl("status", "--json").out()).getArray("usableRam"));
        for (String[] change : new String[][] {{"256M", "512M", "-m 256M"}, {"QEMU 1", "QEMU 2", "QEMU 1"}, {"tcg", "kvm", "-accel tcg"}}) {
            List<String> other = new ArrayList<>(hardware);
            other.replaceAll(word -> word.startsWith(change[0]) ? change[1] : word);
            assertTrue(snapshot.ramProblem(other).contains("it was made with " + change[2]), snapshot.ramProblem(other));
        }
        List<String> longer = new ArrayList<>(hardware);
        longer.add("-device");
        assertEquals("it was made with other QEMU arguments", snapshot.ramProblem(longer));
        Files.writeString(ram, "1234");
        assertTrue(snapshot("one").ramProblem(hardware).contains("4 bytes instead of 5"));
        ctl("snapshot", "--list").answers("its RAM is unusable: its file has 4 bytes");
        Files.delete(ram);
        assertTrue(snapshot("one").ramProblem(hardware).contains("is missing"));
        assertEquals(0, VmCtl.json(ctl("status", "--json").out()).getArray("usableRam").size());
        ctl("restore", "one", "--timeout", "1s").exits(124).says("the RAM of one cannot be used: its file is missing")
                .says("like one after a power cut");
    }

    @Test
    void theRecordOfAVmIsReadBackAsItWasWritten() {
        VmCtl.Running running = new VmCtl.Running(VmCtl.object("pid", 7L, "port", 2222, "accel", "tcg", "forwards", List.of("80:80"), "net", "offline",
                "hardware", List.of("QEMU", "-m"), "cache", "none", "started", "2026-01-02T03:04:05Z", "consoleAt", 6L)).during(VmCtl.Act.SAVING);
        String line = JsonWriter.string(running.json());
        assertFalse(line.contains(" ") || line.contains("\n"), "one line without blanks: " + line);
        try {
            VmCtl.Running read = new VmCtl.Running(VmCtl.json(line)).with("ready", true);
            assertEquals(List.of(7L, 2222, "tcg", List.of("80:80"), "offline", List.of("QEMU", "-m"), "none", 6L, true, VmCtl.Act.SAVING),
                    List.of(read.pid(), read.port(), read.accel(), read.forwards(), read.net(), read.hardware(), read.cache(), read.consoleAt(),
                            read.isReady(), read.act()));
        } catch (IOException garbled) {
            throw new UncheckedIOException(garbled);
        }
    }

    /** The pid file may name a process that is a stranger's, as one of another container: only QEMU's lock tells that it runs. */
    @Test
    void onlyQemusLockTellsThatItRuns() throws Exception {
        makeVm();
        Process stranger = new ProcessBuilder("sleep", "600").start();
        try {
            for (String record : List.of("{\"pid\":" + stranger.pid() + "}", "{\"pid\":", "")) { // of a QEMU that has ended
                Files.writeString(vm.qemuPid(), stranger.pid() + "\n");
                Files.writeString(vm.pidFile(), record);
                ctl("status").exits(3).answers("gone");
                for (String command : List.of("stop", "restore", "snapshot one --yes")) {
                    ctl(command.split(" ")).exits(0);
                }
                assertTrue(stranger.isAlive());
                assertFalse(Files.exists(vm.pidFile()));
            }
            ctl("start", "--no-wait").exits(0);
            Files.writeString(vm.qemuPid(), stranger.pid() + "\n"); // as it looks from another pid namespace
            ctl("status").exits(0).answers("starting");
            ctl("stop", "--force").exits(0).says("by QMP quit");
            ctl("start", "--no-wait").exits(0);
            Files.writeString(vm.qemuPid(), stranger.pid() + "\n");
            ctl("destroy", "--yes").exits(0);
            assertTrue(stranger.isAlive(), "a stranger was killed");

            makeVm();
            ctl("start", "--no-wait").exits(0);
            for (String damaged : List.of("{\"pid\":", "", "{\"pid\":1,\"started\":\"soon\"}", "{\"pid\":1,\"act\":\"X\"}",
                    "{\"pid\":1,\"port\":2222,\"forwards\":\"x\"}", "{\"pid\":1,\"port\":99999}")) {
                Files.writeString(vm.pidFile(), damaged);
                for (String command : List.of("status", "start", "stop", "restore", "snapshot one")) {
                    ctl(command.split(" ")).exits(69).says("is damaged").says("vm-ctl stop --force");
                }
            }
            ctl("stop", "--force").exits(0);
        } finally {
            stranger.destroyForcibly().waitFor();
        }
    }

    @Test
    void aTakenPortIsNamedOrPassedOver() throws IOException {
        makeCleanDisk();
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            String port = String.valueOf(taken.getLocalPort());
            ctl(Map.of("VM_SSH_PORT", port), "start").exits(69).says(port).says("pid " + ProcessHandle.current().pid());
            ctl("start", "--forward", port + ":80").exits(69).says("pid " + ProcessHandle.current().pid());
        }
        int free = Integer.parseInt(ctl("start", "--dry-run").out().replaceAll("(?s).*127\\.0\\.0\\.1:(\\d+)-:22.*", "$1"));
        ServerSocket taken = null;
        try {
            taken = new ServerSocket(free, 1, InetAddress.getByName("127.0.0.1"));
        } catch (java.net.BindException another) {
            // a VM of this machine was faster
        }
        try {
            assertFalse(ctl("start", "--dry-run").answers("hostfwd").out().contains("127.0.0.1:" + free + "-"));
        } finally {
            if (taken != null) {
                taken.close();
            }
        }
    }

    /** A dry run does not give ssh the port that the user forwards. */
    @Test
    void aDryRunForwardsAPortOnce() throws IOException {
        makeCleanDisk();
        String port = ctl("start", "--dry-run").out().replaceAll("(?s).*127\\.0\\.0\\.1:(\\d+)-:22.*", "$1");
        String line = ctl("start", "--dry-run", "--forward", port + ":80").exits(0).answers("127.0.0.1:" + port + "-:80").out();
        assertFalse(line.contains("127.0.0.1:" + port + "-:22"), line);
    }

    @Test
    void aRestoreThatStartsNothingNeedsNoPort() throws IOException {
        makeVm();
        Disks.write(disk(), 2);
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            ctl(Map.of("VM_SSH_PORT", "" + taken.getLocalPort()), "restore").exits(0).says("restored the disk of clean: vm-ctl start boots it");
        }
        Disks.holds(disk(), 1);
    }

    /** The tool as a process of its own. */
    private Process start(Path said, String... arguments) throws IOException {
        return start(said, List.of(), Map.of(), arguments);
    }

    private Process start(Path said, List<String> javaOptions, Map<String, String> environment, String... arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path")));
        command.addAll(javaOptions);
        command.add("VmCtl");
        command.addAll(List.of(arguments));
        command.addAll(List.of("--vm-dir", dir.toString(), "--vm-name", "x"));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(said.toFile());
        builder.environment().putAll(Map.of("VM_ACCEL", "tcg", "VM_MEMORY", "256M"));
        builder.environment().putAll(environment);
        return builder.start();
    }

    @Test
    void aLockThatAnotherProcessHoldsIsNamed() throws Exception {
        makeVm();
        try (FileChannel held = VmCtl.lock(vm.file(".lock"), "a test")) {
            for (String command : List.of("start", "stop", "restore")) {
                Path said = temporary.resolve("said");
                assertEquals(69, start(said, command).waitFor());
                assertTrue(Files.readString(said).contains("a test (pid " + ProcessHandle.current().pid()), Files.readString(said));
            }
            assertTrue(held.isOpen());
        }
    }

    @Test
    void aRefusedSnapshotMakesNothing() throws IOException {
        keys(); // as after an installation that failed
        List<Path> before = files(dir);
        ctl("snapshot", "one").exits(69).says("there is no disk for x in ", "run vm-auto-install");
        assertEquals(before, files(dir));
    }

    @Test
    void aKilledDestroyCanBeRepeated() throws Exception {
        makeVm();
        ctl("snapshot", "one").exits(0);
        ctl("start", "--no-wait").exits(0);
        killedAt("destroying", "destroy", "--yes");
        ctl("destroy", "--yes").exits(0);
        assertEquals(List.of(), vm.all());
    }

    // A bare QEMU.

    @Test
    void aBareQemuIsStartedSeenAndStopped() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        JsonObject status = VmCtl.json(ctl("status", "--json").exits(0).out());
        assertEquals("starting", status.getString("state"));
        assertEquals("256M", status.getString("memory"));
        long pid = status.getLong("pid");
        ctl("start", "--no-wait").exits(0).says("runs already");
        assertEquals(pid, VmCtl.json(ctl("status", "--json").out()).getLong("pid"));
        ctl("list").answers("starting");
        ctl("snapshot", "--yes").exits(69).says("does not answer ssh");
        Path picture = temporary.resolve("screen, 1.png");
        ctl("screenshot", picture.toString()).exits(0);
        assertEquals("\u0089PNG", new String(Files.readAllBytes(picture), ISO_8859_1).substring(0, 4));

        Duration limit = VmCtl.Qemu.answerLimit;
        VmCtl.Qemu.answerLimit = Duration.ofSeconds(1);
        Disks.run("kill", "-STOP", String.valueOf(pid));
        awaitTrue(() -> Files.readString(Path.of("/proc/" + pid + "/stat")).contains(") T "));
        for (int i = 0; i < 3; i++) { // until the monitor's backlog is full, too
            ctl("status").exits(69).answers("hung");
        }
        for (String command : List.of("start", "snapshot", "screenshot s.png", "stop")) {
            ctl((command + (command.equals("snapshot") ? " --yes" : "")).split(" ")).exits(69)
                    .says("QEMU (pid " + pid + ") does not answer: if it was stopped, kill -CONT " + pid);
        }
        Disks.run("kill", "-CONT", String.valueOf(pid));
        VmCtl.Qemu.answerLimit = limit;

        Files.writeString(vm.file(".console.log"), "booting\npanic: vm_fault\ncpuid = 0\nCopyright (c) 2003-2025 The DragonFly Project.\n");
        ctl("status").exits(0).answers("rebooted after a panic");
        Files.writeString(vm.file(".console.log"), "login: panic: vm_fault\ncpuid = 0\ndb> ");
        ctl("status").exits(69).answers("panicked").answers("vm_fault");
        ctl("stop").exits(0).says("QMP quit");
        assertFalse(VmCtl.isRunning(vm.qemuPid()));
        ctl("status").exits(3).answers("stopped");
        for (String suffix : List.of(".pid", ".qemu-pid", ".qmp", ".console")) {
            assertFalse(Files.exists(vm.file(suffix)), suffix);
        }
    }

    /** QEMU belongs to no terminal, session or pipe of the command that starts it, and has given up what it does not need. */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void qemuIsApartFromWhoStartsIt(boolean setsid) throws Exception {
        makeVm();
        VmCtl.Qemu.hasSetsid = setsid;
        try {
            ctl("start", "--no-wait").exits(0);
        } finally {
            VmCtl.Qemu.hasSetsid = true;
        }
        String proc = "/proc/" + Files.readString(vm.qemuPid()).strip();
        String[] stat = Files.readString(Path.of(proc, "stat")).replaceFirst(".*\\) ", "").split(" ");
        String[] own = Files.readString(Path.of("/proc/self/stat")).replaceFirst(".*\\) ", "").split(" ");
        assertNotEquals(own[3], stat[3], "the session");
        assertEquals("0", stat[4], "the terminal");
        assertTrue(Files.readString(Path.of(proc, "status")).contains("Seccomp:\t2\n"));
        assertEquals("/dev/null", Files.readSymbolicLink(Path.of(proc, "fd/0")).toString());
        assertEquals(setsid ? vm.file(".qemu.log").toString() : "/dev/null", Files.readSymbolicLink(Path.of(proc, "fd/1")).toString());
        assertEquals(vm.file(".qemu.log"), Files.readSymbolicLink(Path.of(proc, "fd/2")));
    }

    /** Ctrl-C and the end of a terminal reach the whole process group; whoever reads the command's output sees its end. */
    @Test
    void aSignalToTheCommandsGroupSparesQemu() throws Exception {
        makeVm();
        String tool = VmCtl.shellQuoted(List.of("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), "VmCtl",
                "start", "--no-wait", "--accel", "tcg", "--memory", "256M", "--vm-dir", dir.toString(), "--vm-name", "x"));
        Process shell = new ProcessBuilder("setsid", "--wait", "sh", "-c", tool + " 2>&1; echo $?; kill -INT -$$; kill -HUP -$$").start();
        String said = new String(shell.getInputStream().readAllBytes(), UTF_8);
        assertTrue(said.endsWith("\n0\n"), said);
        shell.waitFor();
        assertEquals("running", new VmCtl.Qemu(vm, message -> { }).runState());
    }

    @Test
    void aStartThatIsCutOffLeavesAQemuThatIsFoundOrNone() throws Exception {
        makeVm();
        killedAt("QEMU begins", "start", "--no-wait");
        awaitTrue(() -> VmCtl.isRunning(vm.qemuPid()));
        ctl("status").exits(0).answers("starting");
        String first = Files.readString(vm.qemuPid());
        ctl("start", "--no-wait").exits(0).says("an earlier start was interrupted");
        assertNotEquals(first, Files.readString(vm.qemuPid()));
        ctl("stop", "--force").exits(0);
        Guest guest = Guest.in(dir).with("VM_NAME", "x", "VM_ACCEL", "tcg", "VM_MEMORY", "256M");
        KilledCommand.run(guest, KilledCommand.Way.SIGINT, "QEMU begins", 1, "start", "--no-wait").exits(130)
                .says("interrupted: all changes were undone");
        assertEquals(List.of(), guest.qemus());
        ctl("status").exits(3);
    }

    /** Whatever the caller's umask is, nobody else reads or writes what a VM leaves. */
    @Test
    void whatAVmLeavesIsItsUsersAlone() throws Exception {
        makeVm();
        Files.setPosixFilePermissions(dir, PosixFilePermissions.fromString("rwxr-xr-x")); // it was there: never changed
        keys();
        Disks.run("chmod", "-R", "go=", vm.file(".ssh").toString());
        String tool = VmCtl.shellQuoted(List.of("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), "VmCtl",
                "--vm-dir", dir.toString(), "--vm-name", "x")) + " ";
        Disks.run("sh", "-c", "set -e; umask 000; export VM_ACCEL=tcg VM_MEMORY=256M; " + tool + "restore; " + tool + "snapshot one; "
                + tool + "clone --snapshot one y; " + tool + "start --no-wait");
        List<String> open = new ArrayList<>();
        try (Stream<Path> all = Files.walk(dir)) {
            for (Path file : all.filter(file -> !List.of(dir, vm.clean()).contains(file) && !Files.isSymbolicLink(file)).toList()) {
                if (((int) Files.getAttribute(file, "unix:mode") & 077) != 0) {
                    open.add(file + " " + PosixFilePermissions.toString(Files.getPosixFilePermissions(file)));
                }
            }
        }
        assertEquals(List.of(), open);
        for (String suffix : List.of(".qmp", ".console", ".console.log", ".qemu.log", ".qemu-pid", ".pid", ".lock", ".disks", ".snapshots")) {
            assertTrue(Files.exists(vm.file(suffix)), suffix);
        }
    }

    @Test
    void anOfflineVmStaysOffline() throws Exception {
        makeVm();
        ctl(Map.of("VM_NET", "lan"), "start").exits(2).says("VM_NET");
        ctl(Map.of("VM_NET", "offline"), "start", "--dry-run").exits(0).answers("user,id=net0,restrict=on,hostfwd=");
        assertFalse(ctl("start", "--dry-run").exits(0).out().contains("restrict"));
        ctl("start", "--no-wait").exits(0);
        ctl("status").answers("net            user");
        String record = Files.readString(vm.pidFile());
        ctl(Map.of("VM_NET", "offline"), "start", "--no-wait").exits(69).says("vm-ctl restart --net offline");
        assertEquals(record, Files.readString(vm.pidFile()));
        for (String line : List.of("restart --force --net offline --timeout 1s", "restart --force --timeout 1s", "restore --timeout 1s")) {
            ctl(line.split(" ")).exits(124); // nothing answers, but QEMU runs
            assertEquals("offline", VmCtl.json(ctl("status", "--json").out()).getString("net"), line);
        }
        Disks.run("kill", "-KILL", Files.readString(vm.qemuPid()).strip()); // as a guest could end it
        awaitTrue(() -> !VmCtl.isRunning(vm.qemuPid()));
        ctl("start", "--no-wait").exits(0);
        ctl("status").answers("net            offline");
        ctl("start", "--no-wait", "--net", "user").exits(0).says("vm-ctl restart --net user");
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            for (String line : List.of("start --ssh-port " + taken.getLocalPort(), "start --qemu-args=-nonsense", "snapshot --delete nope")) {
                Disks.run("kill", "-KILL", Files.readString(vm.qemuPid()).strip());
                awaitTrue(() -> !VmCtl.isRunning(vm.qemuPid()));
                ctl(line.split(" ")).exits(69); // none of these is a stop by the user
                ctl("start", "--no-wait").exits(0);
                assertEquals("offline", VmCtl.json(ctl("status", "--json").out()).getString("net"), line);
            }
        }
        Path keys = Files.createDirectories(vm.file(".ssh"));
        Files.setPosixFilePermissions(keys, PosixFilePermissions.fromString("rwx------"));
        Files.writeString(keys.resolve("known_hosts"), "x ssh-ed25519 AAAA\n");
        ctl("clone", "twin").exits(0);
        assertTrue(ctl(Map.of("VM_NAME", "twin"), "start", "--dry-run").out().contains("restrict=on"));
        ctl(Map.of("VM_NAME", "twin"), "destroy", "--yes").exits(0);
        ctl("restart", "--force", "--net", "user", "--timeout", "1s").exits(124);
        ctl("status").answers("net            user");
        ctl("restart", "--force", "--net", "offline", "--timeout", "1s").exits(124);
        ctl("stop", "--force").exits(0);
        assertFalse(ctl("start", "--dry-run").exits(0).out().contains("restrict"), "it was stopped");
    }

    @Test
    void aKilledQemuOrOneWithoutItsPidFileIsClearedAway() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        long pid = VmCtl.json(ctl("status", "--json").out()).getLong("pid");
        Disks.run("kill", "-KILL", String.valueOf(pid));
        awaitTrue(() -> !VmCtl.isRunning(vm.qemuPid()));
        ctl("status").exits(3).answers("gone");
        ctl("start", "--no-wait").exits(0);
        long orphan = VmCtl.json(ctl("status", "--json").out()).getLong("pid");
        Files.delete(vm.pidFile()); // its starter was killed too soon
        ctl("start", "--no-wait").exits(0);
        assertNotEquals(orphan, VmCtl.json(ctl("status", "--json").out()).getLong("pid"), "it has no record");
        awaitTrue(() -> ProcessHandle.of(orphan).filter(ProcessHandle::isAlive).isEmpty()); // or two QEMUs use one disk
    }

    @Test
    void aDiskThatAnotherQemuHoldsIsSaid() throws Exception {
        makeVm();
        Process other = new ProcessBuilder("qemu-io", disk().toString()).start(); // waits for a command, the disk locked
        try {
            other.getInputStream().read(); // its prompt
            assertFalse(ctl("start").exits(69).says("lock").err().contains("without -sandbox"), "a name does not switch it off");
            ctl("status").exits(3);
        } finally {
            other.destroyForcibly().waitFor();
        }
        ctl("start", "--no-wait").exits(0);
    }

    @Test
    void aFloodOfTheConsoleIsCut() throws Exception {
        makeVm();
        int seconds = VmCtl.Qemu.logCheckSeconds;
        VmCtl.Qemu.logCheckSeconds = 1;
        try {
            ctl("start", "--no-wait").exits(0);
        } finally {
            VmCtl.Qemu.logCheckSeconds = seconds;
        }
        Path log = vm.file(".console.log");
        for (int flood = 1; flood <= 3; flood++) { // appended as QEMU does it
            String line = "login: the guest asks and asks for a name, " + flood + "\n";
            Files.writeString(log, line.repeat(12_000_000 / line.length()), StandardOpenOption.APPEND);
            awaitTrue(() -> Files.size(log) <= 10_000_000);
            String kept = Files.readString(vm.file(".console.log.1"));
            assertEquals(1_000_000, kept.length());
            assertTrue(kept.endsWith(line), "its end, of this flood");
        }
    }

    @Test
    void restartAndRestoreKeepThePortAndTheForwards() throws Exception {
        makeVm();
        String port;
        String forward;
        try (ServerSocket one = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"));
                ServerSocket two = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            port = String.valueOf(one.getLocalPort());
            forward = two.getLocalPort() + ":80";
        }
        Map<String, String> byHand = Map.of("VM_SSH_PORT", port);
        ctl(byHand, "start", "--no-wait", "--forward", forward).exits(0);
        for (List<String> command : List.of(List.of("restart", "--force", "--timeout", "2s"), List.of("restore", "--timeout", "2s"))) {
            ctl(command.toArray(String[]::new)).exits(124);
            JsonObject status = VmCtl.json(ctl("status", "--json").out());
            assertEquals(port, String.valueOf(status.getInt("port")));
            assertEquals(List.of(forward), status.getArray("forwards"));
        }
    }

    /** What a VM cannot get is said before the VM that runs is touched. */
    @Test
    void whatCannotBeHadIsSaidBeforeAnythingIsStopped() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        String running = Files.readString(vm.pidFile());
        Path disk = disk();
        for (String options : List.of("--memory 9999999G", "--memory 255M", "--memory 1M", "--memory 0G", "--cpus 99", "--cpus 0",
                "--forward 80:80 --forward 80:81", "--forward 80", "--ssh-port 2230 --forward 2230:80", "--cpu nosuch", "--qemu-args -nonsense")) {
            int expected = options.contains("nosuch") || options.contains("nonsense") ? 69 : 2;
            for (String command : List.of("start", "restart", "restore")) {
                if (expected == 2 || !command.equals("start")) {
                    List<String> words = new ArrayList<>(List.of(command));
                    words.addAll(List.of(options.split(" ")));
                    assertEquals(1, ctl(words.toArray(String[]::new)).exits(expected).err().lines()
                            .filter(line -> !line.startsWith("accelerator")).count(), words.toString());
                    assertEquals(running, Files.readString(vm.pidFile()), words.toString());
                }
            }
        }
        String ownPort = VmCtl.json(running).getInt("port") + ":80";
        for (String command : List.of("start", "restart", "restore")) {
            ctl(command, "--forward", ownPort).exits(2).says("is the one for ssh");
        }
        assertEquals("running", new VmCtl.Qemu(vm, message -> { }).runState());
        assertEquals(disk, disk());
        ctl("restart", "--force", "--cpu", "max", "--timeout", "1s").exits(124); // what QEMU takes is taken
    }

    @Test
    void aVmThatRunsGetsFurtherPortsAndIsToldWhatItLacks() throws Exception {
        makeVm();
        ctl("start", "--no-wait", "--cpus", "1").exits(0);
        String port = String.valueOf(Guest.freePort());
        Script.Result same = ctl("start", "--no-wait", "--cpus", "1").exits(0).says("runs already");
        assertFalse(same.err().contains("restart"), same.err());
        ctl("start", "--no-wait", "--cpus", "1", "--forward", port + ":80").exits(0)
                .says("forwarding port " + port + " of 127.0.0.1 to the guest's port 80");
        assertEquals(List.of(port + ":80"), VmCtl.json(ctl("status", "--json").out()).getArray("forwards"));
        new Socket("127.0.0.1", Integer.parseInt(port)).close(); // QEMU listens
        ctl("start", "--no-wait", "--cpus", "1", "--forward", port + ":81").exits(69).says("taken by qemu-system");
        ctl("start", "--no-wait", "--cpus", "2", "--memory", "512M", "--cpu", "max", "--disk-cache", "unsafe", "--ssh-port", "2",
                "--qemu-args", "-device virtio-rng-pci").exits(0).says("vm-ctl restart --memory 512M --cpus 2 --cpu max "
                + "--disk-cache unsafe --ssh-port 2 --qemu-args '-device virtio-rng-pci'");
    }

    /** As a guest that was shutting down when the command began. */
    @Test
    void aVmThatEndsUnderTheEyesOfACommandIsStartedOrIsStopped() throws Exception {
        makeVm();
        Map<String, String> outcomes = Map.of("stop", "x has ended by itself", "start --no-wait", "");
        for (Map.Entry<String, String> row : outcomes.entrySet()) {
            ctl("start", "--no-wait").exits(0);
            long before = new VmCtl.Qemu(vm, message -> { }).running().orElseThrow().pid();
            VmCtl.onStep = step -> {
                if (step.equals("found running") && ProcessHandle.of(before).isPresent()) {
                    ProcessHandle qemu = ProcessHandle.of(before).orElseThrow();
                    qemu.destroyForcibly();
                    qemu.onExit().join();
                }
            };
            try {
                ctl(row.getKey().split(" ")).exits(0).says(row.getValue());
            } finally {
                VmCtl.onStep = step -> { };
            }
            assertEquals(!row.getKey().equals("stop"), VmCtl.isRunning(vm.qemuPid()), row.getKey());
            ctl("stop", "--force").exits(0);
        }
    }

    /** A start that QEMU refuses leaves the disk that fits the RAM, so that the next one need not boot. */
    @Test
    void aStartThatFailsLeavesTheDiskAsItWas() throws Exception {
        makeVm();
        ctl("snapshot", "one").exits(0);
        giveRam("one", List.of("QEMU 1"));
        Path before = disk();
        ctl("start", "--cpu", "no-such").exits(69).says("the RAM of one cannot be used").says("no-such");
        assertEquals(before, disk());
        ctl("start", "--no-wait").exits(0);
        assertNotEquals(before, disk());
        assertFalse(Files.exists(before), "nothing needs it any more");
    }

    @Test
    void aFailureShowsTheConsoleOfThisStartOnly() throws Exception {
        makeVm();
        Files.writeString(vm.file(".console.log"), "what an earlier boot said\n");
        Script.Result result = ctl("start", "--timeout", "2s").exits(124);
        assertFalse(result.err().contains("earlier boot"), result.err());
        Files.writeString(vm.file(".console.log"), "what this boot says\n", StandardOpenOption.APPEND);
        ctl("start", "--timeout", "1s").exits(124).says("the console's last lines:\nwhat this boot says");
    }

    @Test
    void aLongWaitTellsHowFarItIs() throws Exception {
        List<String> said = new ArrayList<>();
        int interval = VmCtl.Progress.interval;
        VmCtl.Progress.interval = 1;
        try (VmCtl.Progress progress = new VmCtl.Progress("booting", message -> {
            synchronized (said) {
                said.add(message);
            }
        })) {
            progress.stage(bootStage("BIOS"));
            awaitTrue(() -> {
                synchronized (said) {
                    return !said.isEmpty();
                }
            });
        } finally {
            VmCtl.Progress.interval = interval;
        }
        assertTrue(said.get(0).matches("booting: the loader, \\d+ s"), said.get(0));
        String console = "|/-\nCopyright (c) 2003-2025 The DragonFly Project.\n";
        assertEquals("the kernel starts", bootStage(console));
        assertEquals("services start", bootStage(console + "\nMounting root from hammer2:da0s1d\n"));
        assertEquals("waiting for sshd", bootStage(console + "\nMounting root from hammer2:da0s1d\n\nlogin: "));
        assertEquals("the kernel starts", bootStage("\nlogin: " + console), "it has rebooted");
    }

    /** Runs this tool's command line in a shell on a terminal of its own; "$@" is the tool. Returns what the terminal got. */
    private String onTerminal(String term, String shell) throws Exception {
        Path transcript = temporary.resolve("transcript");
        String tool = VmCtl.shellQuoted(List.of("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), "VmCtl"));
        ProcessBuilder builder = new ProcessBuilder("script", "-qefc", "vm() { " + tool + " \"$@\"; }; " + shell, transcript.toString())
                .redirectErrorStream(true).redirectOutput(temporary.resolve("script.out").toFile());
        builder.environment().putAll(Map.of("VM_ACCEL", "tcg", "VM_MEMORY", "256M", "VM_DIR", dir.toString(), "VM_NAME", "x", "TERM", term));
        Process process = builder.start();
        process.getOutputStream().close();
        assertTrue(process.waitFor(5, TimeUnit.MINUTES));
        return Files.readString(transcript);
    }

    @Test
    void onATerminalTheProgressIsALineThatChanges() throws Exception {
        makeVm();
        String shown = onTerminal("xterm", "vm start --timeout 4s");
        assertTrue(shown.contains("\r\u001b[Kbooting: the loader, "), shown);
        ctl("stop", "--force").exits(0);
        assertFalse(onTerminal("dumb", "vm start --timeout 3s").contains("\u001b"));
    }

    /** stty's settings of before, not those called sane. */
    @Test
    void theTerminalGetsItsSettingsBack() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        Path before = temporary.resolve("before");
        Path during = temporary.resolve("during");
        Path after = temporary.resolve("after");
        String quotedBefore = VmCtl.shellQuoted(List.of(before.toString()));
        onTerminal("xterm", "stty -echo erase '#'; stty -g >" + quotedBefore + "; vm console </dev/tty & tool=$!; "
                + "while [ \"$(stty -g)\" = \"$(cat " + quotedBefore + ")\" ]; do sleep 0.1; done; stty -g >"
                + VmCtl.shellQuoted(List.of(during.toString())) + "; kill $(pgrep -P $tool java || echo $tool); wait $tool; "
                + "for i in $(seq 300); do [ \"$(stty -g)\" = \"$(cat " + quotedBefore + ")\" ] && break; sleep 0.1; done; stty -g >"
                + VmCtl.shellQuoted(List.of(after.toString())));
        assertNotEquals(Files.readString(before), Files.readString(during));
        assertEquals(Files.readString(before), Files.readString(after));
    }

    /** With its input ended, it ends when the guest has been silent for two seconds; what the guest said until then is there. */
    @Test
    void theConsoleEndsAfterItsInput() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        Path said = temporary.resolve("said");
        Process console = start(said, "console");
        console.getOutputStream().write("to the guest\n".getBytes(UTF_8));
        console.getOutputStream().close();
        assertTrue(console.waitFor(1, TimeUnit.MINUTES));
        assertEquals(0, console.exitValue(), Files.readString(said));
    }

    /** Java prefers IPv6 if told so; QEMU listens on 127.0.0.1, whatever Java prefers. */
    @Test
    void thePortsAreThoseOf127001() throws Exception {
        makeVm();
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            Path said = temporary.resolve("said");
            Process tool = start(said, List.of("-Djava.net.preferIPv6Addresses=true"), Map.of(), "start", "--ssh-port", "" + taken.getLocalPort());
            assertEquals(69, tool.waitFor());
            assertTrue(Files.readString(said).contains("is taken by java (pid " + ProcessHandle.current().pid()), Files.readString(said));
        }
    }

    /** There is no QEMU without seccomp here: a script refuses -sandbox in the words of one, and runs the real one otherwise. */
    @Test
    void aQemuWithoutSeccompRunsWithoutASandbox() throws Exception {
        makeVm();
        Path bin = Files.createDirectory(temporary.resolve("bin"));
        Path qemu = Files.writeString(bin.resolve("qemu-system-x86_64"), """
                #!/bin/sh
                case " $* " in *' -sandbox '*) printf '\\033[31m\\342\\200\\256qemu: -sandbox: There is no such option group' >&2; exit 1 ;; esac
                PATH=${PATH#*:} exec qemu-system-x86_64 "$@"
                """);
        Files.setPosixFilePermissions(qemu, PosixFilePermissions.fromString("rwxr-xr-x"));
        Path said = temporary.resolve("said");
        assertEquals(0, start(said, List.of(), Map.of("PATH", bin + ":" + System.getenv("PATH")), "start", "--no-wait").waitFor(),
                Files.readString(said));
        assertTrue(Files.readString(said).contains("built without seccomp, so it runs without -sandbox: ?qemu: -sandbox:"), Files.readString(said));
        assertTrue(VmCtl.isRunning(vm.qemuPid()));
    }

    @Test
    void aDryRunRunsNoProgram() throws Exception {
        makeVm();
        String java = ProcessHandle.current().info().command().orElseThrow();
        List<String> command = List.of(java, "-cp", System.getProperty("java.class.path"), "VmCtl", "start", "--dry-run", "--ssh-port", "1",
                "--vm-dir", dir.toString(), "--vm-name", "x", "--accel", "tcg");
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.environment().put("PATH", "/no/such");
        Process dryRun = builder.start();
        String said = new String(dryRun.getInputStream().readAllBytes(), UTF_8);
        assertEquals(0, dryRun.waitFor(), said);
        assertTrue(said.contains("127.0.0.1:1-:22"), said);
    }

    @Test
    void qemusOwnErrorIsTheReason() throws Exception {
        makeVm();
        ctl("start", "--qemu-args", "-device no-such-device").exits(69).says("no-such-device");
        ctl("status").exits(3);
        ctl("start", "--qemu-args", "-netdev bridge,id=b").exits(69).says("its sandbox forbids").says("add a -sandbox of your own");
        String attack = "-S -incoming 'exec:touch " + temporary.resolve("evil") + "'"; // what the sandbox is there for must not switch it off
        assertFalse(ctl("start", "--no-wait", "--qemu-args", attack).exits(69).err().contains("without -sandbox"));
        assertFalse(Files.exists(temporary.resolve("evil")));
        ctl("start", "--qemu-args", "-netdev bridge,id=b -sandbox off").exits(69).says("bridge helper");
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            String rule = "tcp:127.0.0.1:" + taken.getLocalPort() + "-:1";
            ctl("start", "--qemu-args", "-netdev user,id=n1,hostfwd=" + rule).exits(69).says(rule);
        }
        ctl("start", "--no-wait").exits(0);
        ctl("start", "--timeout", "3s").exits(124).says("sshd does not answer");
    }

    /** RAM of a bare QEMU, without a guest that could answer: what it is saved to, what is refused. */
    @Test
    void ramGoesOutAndInAndADamagedOneNeverRuns() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        VmCtl.Qemu qemu = new VmCtl.Qemu(vm, message -> { });
        VmCtl.Running running = qemu.running().orElseThrow();
        List<String> hardware = running.hardware();
        VmCtl.Plan again = new VmCtl.Plan(hardware, "a test", "writeback", 0, false, List.of(), "user", Duration.ofMinutes(1), true, false);
        Path directory = Files.createDirectories(vm.file(".snapshots").resolve("one"));
        Path file = directory.resolve("ram");

        // The tool died after the RAM was saved: the guest is paused, and the next command resumes it.
        qemu.write(running.during(VmCtl.Act.SAVING));
        qemu.qmp("stop");
        JsonObject ram = ram(qemu).save(file, Duration.ofMinutes(1));
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file)));
        assertEquals(Files.size(file), ram.getLong("ramBytes"));
        assertEquals("postmigrate", qemu.runState());
        ctl("status").exits(0).answers("a snapshot is being taken, or was interrupted");
        ctl("start", "--no-wait").exits(0).says("an earlier snapshot was interrupted: the guest resumes");
        assertEquals("running", qemu.runState());
        assertFalse(Files.exists(file), "RAM without a record is of no use");

        // The round trip.
        qemu.qmp("stop");
        ram = ram(qemu).save(Files.createDirectories(directory).resolve("ram"), Duration.ofMinutes(1));
        qemu.end();
        assertEquals("running", restored(qemu, again, file, ram.getLong("ramCrc32c"), null));

        // Damage in the middle and at the very end, and a QEMU that cannot take it.
        for (long position : List.of(Files.size(file) / 2, Files.size(file) - 1)) {
            try (RandomAccessFile damage = new RandomAccessFile(file.toFile(), "rw")) {
                damage.seek(position);
                int old = damage.read();
                damage.seek(position);
                damage.write(old ^ 1);
                assertNotEquals("running", restored(qemu, again, file, ram.getLong("ramCrc32c"), "it is damaged|QEMU refuses it: .+"));
                damage.seek(position);
                damage.write(old);
            }
        }
        // A limit that comes between two writes says nothing against the RAM.
        qemu.launch(again, disk(), true);
        assertEquals("it was not read within 0 s", ram(qemu).load(file, ram.getLong("ramCrc32c"), Duration.ZERO));
        qemu.end();
        qemu.removeLeftovers();
        List<String> smaller = new ArrayList<>(hardware);
        smaller.replaceAll(word -> word.equals("256M") ? "128M" : word);
        VmCtl.Plan other = new VmCtl.Plan(smaller, "a test", "writeback", 0, false, List.of(), "user", Duration.ofMinutes(1), true, false);
        assertNotEquals("running", restored(qemu, other, file, ram.getLong("ramCrc32c"), "QEMU refuses it: .+"));
        assertTrue(VmCtl.Disk.read(disk()).empty(), "nothing ran on the disk");
    }

    /** What the guest does after this RAM was loaded; the problem is a pattern, or null if none is expected. */
    private String restored(VmCtl.Qemu qemu, VmCtl.Plan plan, Path ram, long checksum, String problem) throws IOException {
        qemu.launch(plan, disk(), true);
        String refusal = ram(qemu).load(ram, checksum, Duration.ofMinutes(1));
        if (problem == null) {
            assertNull(refusal);
            qemu.qmp("cont");
        } else {
            assertTrue(refusal.matches("(?s)(" + problem + ").*"), refusal);
        }
        String state = qemu.runState();
        qemu.end();
        qemu.removeLeftovers();
        return state;
    }

    /** RAM that QEMU refuses, and RAM whose checksum is wrong, is marked; the same command boots the disk; a new snapshot is not marked. */
    @Test
    void unusableRamIsMarkedAndTheDiskIsBooted() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        VmCtl.Qemu qemu = new VmCtl.Qemu(vm, message -> { });
        List<String> hardware = qemu.running().orElseThrow().hardware();
        qemu.qmp("stop");
        Path file = dir.resolve("ram");
        JsonObject ram = ram(qemu).save(file, Duration.ofMinutes(1));
        qemu.end();
        ctl("snapshot", "one").exits(0);
        Files.move(file, vm.record("one").resolveSibling("ram"));
        JsonObject record = VmCtl.json(Files.readString(vm.record("one")));
        record.putAll(ram);
        record.putAll(VmCtl.object("ram", "x.snapshots/one/ram", "hardware", hardware));
        Files.writeString(vm.record("one"), JsonWriter.string(record));

        // The guest is silent, but the limit was shorter than the one for restores: nothing is marked.
        Script.Result silent = ctl("restore", "one", "--timeout", "4s").exits(124).says("the RAM of one cannot be used: no answer after 2 s");
        silent.says("booting its disk").says("like one after a power cut").says("sshd does not answer");
        assertEquals(List.of("one"), VmCtl.json(ctl("status", "--json").out()).getArray("usableRam"));
        assertEquals("starting", VmCtl.json(ctl("status", "--json").exits(0).out()).getString("state"), "a booted VM runs");
        ctl("restore", "one", "--cold", "--timeout", "1s").exits(124);
        KilledCommand.run(killable(), KilledCommand.Way.HALT, "link moved", 1, "restore", "one").exits(137);
        ctl("start", "--no-wait", "--timeout", "4s").exits(0).says("the RAM of one cannot be used: no answer after 2 s", "booting its disk");

        // Twice silent for the full limit.
        Duration limit = VmCtl.Snapshots.emulatedRestoreLimit;
        VmCtl.Snapshots.emulatedRestoreLimit = Duration.ofSeconds(2);
        try {
            ctl("restore", "one", "--timeout", "4s").exits(124).says("no answer after 2 s");
            assertEquals(List.of("one"), VmCtl.json(ctl("status", "--json").out()).getArray("usableRam"));
            ctl("restore", "one", "--timeout", "4s").exits(124).says("no answer after 2 s");
        } finally {
            VmCtl.Snapshots.emulatedRestoreLimit = limit;
        }
        ctl("snapshot", "--list").answers("its RAM is unusable: the restored guest did not answer, twice in a row");
        ctl("restore", "one", "--timeout", "1s").exits(124).says("cannot be used: the restored guest did not answer, twice in a row");

        // A file that was cut off, and a wrong checksum.
        long bytes = record.getLong("ramBytes");
        record.put("ramBytes", bytes + 1);
        Files.writeString(vm.record("one"), JsonWriter.string(record));
        ctl("restore", "one", "--timeout", "4s").exits(124).says("cannot be used: its file has " + bytes + " bytes instead of " + (bytes + 1), "power cut");
        record.put("ramBytes", bytes);
        record.put("ramCrc32c", 1);
        Files.writeString(vm.record("one"), JsonWriter.string(record));
        ctl("restore", "one", "--timeout", "4s").exits(124).says("cannot be used: it is damaged (its checksum is wrong)");
        ctl("status", "--json").answers("\"usableRam\":[]");
        ctl("stop", "--force").exits(0);
        ctl("snapshot", "one", "--yes").exits(0);
        ctl("snapshot", "--list").answers("disk\n");
        // By other hardware it is not marked.
        ctl("restore", "one").exits(0).says("restored the disk of one");
    }

    /** Takes a snapshot of a bare QEMU, as if its guest answered: by a port that greets as sshd does, and an ssh that only succeeds. */
    private void snapshotOfBareQemu(String name) throws Exception {
        Path ssh = Files.createDirectories(temporary.resolve("bin")).resolve("ssh");
        Files.setPosixFilePermissions(Files.writeString(ssh, "#!/bin/sh\n"), PosixFilePermissions.fromString("rwxr-xr-x"));
        try (ServerSocket sshd = new ServerSocket(0, 5, InetAddress.getByName("127.0.0.1"))) {
            VmCtl.Qemu qemu = new VmCtl.Qemu(vm, message -> { });
            qemu.write(qemu.running().orElseThrow().with("port", sshd.getLocalPort()));
            Thread greeter = new Thread(() -> {
                try (Socket client = sshd.accept()) {
                    client.getOutputStream().write("SSH-2.0-OpenSSH_9.2\r\n".getBytes(UTF_8));
                } catch (IOException closed) {
                    // the command never asked
                }
            });
            greeter.setDaemon(true);
            greeter.start();
            Path said = temporary.resolve("said");
            Process tool = start(said, List.of(), Map.of("PATH", ssh.getParent() + ":" + System.getenv("PATH")), "snapshot", name, "--yes");
            assertEquals(0, tool.waitFor(), Files.readString(said));
            greeter.join(60_000);
            assertFalse(greeter.isAlive(), "the command never asked");
        }
    }

    /** QEMU lists a disk of -drive before the VM's own, and one of -blockdev after it. */
    @Test
    void aDiskOfTheUserIsNotTakenForTheVms() throws Exception {
        makeVm();
        Path extra = temporary.toRealPath().resolve("extra.qcow2");
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", extra.toString(), "1G");
        Path another = Files.copy(extra, extra.resolveSibling("another.qcow2"));
        ctl("start", "--no-wait", "--qemu-args", "-drive file=" + extra + ",if=none,id=x -device scsi-hd,drive=x -blockdev "
                + "driver=qcow2,node-name=y,file.driver=file,file.filename=" + another + " -device scsi-hd,drive=y").exits(0);
        Path before = disk();
        assertEquals(before, new VmCtl.GuestDisk(new VmCtl.Qemu(vm, message -> { })).active());
        snapshotOfBareQemu("one");
        assertEquals(before, snapshot("one").disk());
        assertEquals(disk(), new VmCtl.GuestDisk(new VmCtl.Qemu(vm, message -> { })).active());
        assertEquals(before, VmCtl.Disk.read(disk()).backing());
        assertNotEquals("r--------", PosixFilePermissions.toString(Files.getPosixFilePermissions(extra)));
    }

    /** While another snapshot's record is damaged, nothing is deleted, so the RAM of replaced snapshots piles up. */
    @Test
    void aSnapshotThatIsReplacedThreeTimesKeepsItsRam() throws Exception {
        makeVm();
        ctl("snapshot", "damaged").exits(0);
        String record = Files.readString(vm.record("damaged"));
        ctl("start", "--no-wait").exits(0);
        Files.writeString(vm.record("damaged"), "{");
        for (int i = 1; i <= 3; i++) {
            snapshotOfBareQemu("one");
            assertEquals("disk and RAM", snapshot("one").contents(), "snapshot number " + i);
        }
        Files.writeString(vm.record("damaged"), record);
        ctl("stop", "--force").exits(0);
        assertEquals(List.of(snapshot("one").ram(), vm.record("one")), files(vm.record("one").getParent()));
    }

    private static VmCtl.GuestRam ram(VmCtl.Qemu qemu) {
        return new VmCtl.GuestRam(qemu);
    }

    @Test
    void aGuestWhoseRamCouldNotBeSavedGoesOn() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        VmCtl.Qemu qemu = new VmCtl.Qemu(vm, message -> { });
        Path file = temporary.resolve("ram");
        qemu.qmp("stop");
        VmCtl.VmException failed = assertThrows(VmCtl.VmException.class, () -> ram(qemu).save(file, Duration.ofMillis(1)));
        assertEquals(124, failed.exitCode);
        ram(qemu).resume();
        assertEquals("running", qemu.runState());
    }

    /** With a VM_DIR that is too long for a socket's path. */
    @Test
    void theDirectoryForSocketsIsOursAloneOrNotUsed() throws Exception {
        Path directory = temporary.toRealPath().resolve("sockets");
        assertEquals(directory, VmCtl.VmFiles.socketDirectory(directory));
        assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(directory)));
        assertEquals(directory, VmCtl.VmFiles.socketDirectory(directory), "its own is taken again");
        Files.setPosixFilePermissions(directory, PosixFilePermissions.fromString("rwxr-xr-x"));
        Path link = Files.createSymbolicLink(temporary.resolve("link"), Files.createDirectory(temporary.resolve("private"),
                PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------"))));
        Path file = Files.createFile(temporary.resolve("file"), PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
        for (Path bad : List.of(directory, link, file)) {
            VmCtl.VmException refused = assertThrows(VmCtl.VmException.class, () -> VmCtl.VmFiles.socketDirectory(bad));
            assertEquals(69, refused.exitCode);
            assertTrue(refused.getMessage().contains(bad.toString()) && refused.getMessage().contains("VM_DIR"), refused.getMessage());
        }
        dir = Files.createDirectories(temporary.toRealPath().resolve("long".repeat(25)));
        vm = new VmCtl.VmFiles(dir, "x");
        makeVm();
        ctl("start", "--no-wait").exits(0);
        assertEquals("running", new VmCtl.Qemu(vm, message -> { }).runState());
        Path sockets = vm.socket(".qmp").getParent();
        assertNotEquals(dir, sockets);
        ctl("stop", "--force").exits(0);
        ctl("destroy", "--yes").exits(0);
        assertFalse(Files.exists(sockets), "its private directory is left");
        ctl("status").exits(69);
        assertFalse(Files.exists(sockets), "status makes nothing");
    }

    /** What QEMU merges while it runs: the working disk, and disks under it. */
    @Test
    void layersAreMergedWhileQemuRuns() throws Exception {
        makeVm();
        for (int i = 2; i < 6; i++) {
            Disks.write(disk(), i);
            ctl("snapshot", "s" + i).exits(0);
        }
        ctl("start", "--no-wait").exits(0);
        assertEquals(5, depth());
        ctl("snapshot", "--delete", "s3").exits(0);
        assertEquals(4, depth());
        ctl("snapshot", "--delete", "s5").exits(0);
        assertEquals(3, depth());
        assertTrue(ctl("snapshot", "--delete", "s4").exits(0).err().lines().count() == 1, "nothing but: deleted s4");
        assertEquals(2, depth());
        long pid = VmCtl.json(ctl("status", "--json").out()).getLong("pid");
        List<String> open = new ArrayList<>();
        for (Path descriptor : files(Path.of("/proc/" + pid + "/fd"))) {
            try {
                open.add(Files.readSymbolicLink(descriptor).toString());
            } catch (IOException closed) {
                // meanwhile
            }
        }
        assertTrue(open.stream().noneMatch(file -> file.endsWith("(deleted)") && file.contains(".disks")), open.toString());
        ctl("stop", "--force").exits(0);
        Disks.holds(disk(), 5);
        Disks.run("qemu-img", "check", "-q", disk().toString());
        assertEquals(2, files(vm.disks()).size());
        ctl("restore", "s2").exits(0);
        Disks.holds(disk(), 2);
        assertTrue(Disks.run("qemu-img", "info", snapshot("s2").disk().toString()).contains("backing file: ../x-clean.qcow2"), "relative");
    }

    @Test
    void whatCannotBeMadeIsUndoneAndAFullDiskIsNamed() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root may mount");
        Disks.run("mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=60,mode=700", "tmpfs", dir.toString());
        try {
            makeVm();
            Disks.write(disk(), 2);
            ctl("snapshot", "one").exits(0);
            fill();
            ctl("snapshot", "two").exits(1).says("no space is left on the disk of ");
            ctl("status").exits(3).answers("one");
            assertFalse(ctl("status").out().contains("two"));
            ctl("stop").exits(0);
            ctl("restore", "one").exits(1);
            Disks.holds(disk(), 2);
            ctl("snapshot", "--delete", "one").exits(0);
            fill();
            ctl("start", "--no-wait").exits(1).says("no space is left on the disk of " + dir);
            assertFalse(VmCtl.isRunning(vm.qemuPid()), "a start that failed leaves nothing running");
            ctl("destroy", "--yes").exits(0);
        } finally {
            Disks.run("umount", "-l", dir.toString());
        }
    }

    private void fill() throws Exception {
        new ProcessBuilder("dd", "if=/dev/zero", "of=" + dir.resolve("filler"), "bs=1k", "oflag=append", "conv=notrunc").start().waitFor();
    }

    // Destroying.

    @Test
    void destroyTakesThisVmAndNothingElse() throws IOException {
        makeVm();
        List<Path> others = new ArrayList<>();
        for (String name : List.of("x2.qcow2", "x.y.qcow2", "x.y.ssh", "dfly-6.4.2.iso", "x-clean2.qcow2", "accel.json")) {
            others.add(Files.createFile(dir.resolve(name)));
        }
        ctl("snapshot", "one").exits(0);
        ctl("start", "--no-wait").exits(0);
        ctl("destroy").exits(2).says("--yes");
        assertTrue(Files.exists(disk()));
        ctl("destroy", "--yes").exits(0).says("removed x.disks");
        assertFalse(VmCtl.isRunning(vm.qemuPid()));
        try (Stream<Path> left = Files.list(dir)) {
            assertEquals(others.stream().sorted().toList(), left.sorted().toList());
        }
        ctl("destroy", "--yes").exits(0);
        ctl("list").exits(0).answers("x2");
    }
}
