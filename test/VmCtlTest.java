import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.RandomAccessFile;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
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
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine;

/** VmCtl without a guest: its command line, its bookkeeping on real qcow2 files, and a bare QEMU. */
@Tag("unit")
final class VmCtlTest {

    @TempDir
    Path temporary;

    private Path dir;
    private VmCtl.Vm vm;

    record Result(int exitCode, String out, String err) {
        Result exits(int expected) {
            assertEquals(expected, exitCode, out + err);
            return this;
        }

        Result says(String part) {
            assertTrue(err.contains(part), "'" + part + "' is not in: " + err);
            return this;
        }

        Result answers(String part) {
            assertTrue(out.contains(part), "'" + part + "' is not in: " + out);
            return this;
        }
    }

    @BeforeEach
    void makeDirectory() throws IOException {
        dir = Files.createDirectories(temporary.toRealPath().resolve("a, b'c $d \"\u00e9"));
        vm = new VmCtl.Vm(dir, "x");
    }

    @AfterEach
    void leaveNoQemu() throws IOException {
        if (VmCtl.livePid(vm.pidFile()).isPresent()) {
            ctl("stop", "--force").exits(0);
        }
    }

    private Result ctl(String... arguments) {
        return ctl(Map.of(), arguments);
    }

    private Result ctl(Map<String, String> environment, String... arguments) {
        Map<String, String> settings = new HashMap<>(
                Map.of("VM_DIR", dir.toString(), "VM_NAME", "x", "VM_ACCEL", "tcg", "VM_MEMORY", "64M"));
        settings.putAll(environment);
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        CommandLine line = VmCtl.commandLine(new VmCtl.Settings(settings, Map.of("VM_CPUS", "3", "VM_MEMORY", "96M")), arguments);
        int exitCode = line.setOut(new PrintWriter(out, true)).setErr(new PrintWriter(err, true)).execute(arguments);
        return new Result(exitCode, out.toString(), err.toString());
    }

    private static String sh(String... command) throws IOException {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String said = new String(process.getInputStream().readAllBytes(), ISO_8859_1);
        try {
            assertEquals(0, process.waitFor(), said);
        } catch (InterruptedException interrupted) {
            throw new IOException(interrupted);
        }
        return said;
    }

    /** Fills the first 64 KiB of a disk with a byte. */
    private static void write(Path disk, int pattern) throws IOException {
        sh("qemu-io", "-c", "write -P " + pattern + " 0 64k", disk.toString());
    }

    private static void holds(Path disk, int pattern) throws IOException {
        String said = sh("qemu-io", "-r", "-c", "read -P " + pattern + " 0 64k", disk.toString());
        assertFalse(said.contains("verification failed"), disk + " does not hold " + pattern);
    }

    private void makeCleanDisk() throws IOException {
        sh("qemu-img", "create", "-q", "-f", "qcow2", vm.clean().toString(), "1G");
        write(vm.clean(), 1);
        Files.setPosixFilePermissions(vm.clean(), PosixFilePermissions.fromString("r--r--r--"));
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
        ctl().exits(2);
        ctl("--help", "start").exits(0).answers("Commands:").answers("  stop ").answers("  start ");
        ctl("--vm-name", "x", "-h", "start").exits(0).answers("  stop ");
        ctl("start", "--help").exits(0).answers("VM_MEMORY").answers("Examples:").answers("Exit codes:");
    }

    static Stream<CommandLine> commands() {
        CommandLine all = VmCtl.commandLine(new VmCtl.Settings(Map.of("VM_DIR", "/var/vms"), Map.of()));
        return Stream.concat(Stream.of(all), all.getSubcommands().values().stream());
    }

    @ParameterizedTest
    @MethodSource("commands")
    void everyHelpHasExamplesThatParseExitCodesAndTheDefaultOfEachVariable(CommandLine command) {
        String help = command.getUsageMessage(CommandLine.Help.Ansi.OFF);
        assertTrue(help.lines().allMatch(line -> line.length() <= 120), help);
        Matcher page = Pattern.compile("(?s)Usage: .*\n\nOptions:\n.*\n\nExamples:\n(.*)\n\nExit codes:\n  [0N] .*\n  2 .*\n  69 .*")
                .matcher(help);
        assertTrue(page.matches(), help);
        for (String example : page.group(1).lines().toList()) {
            String[] words = example.replaceFirst(".*?vm-ctl ", "").replaceFirst(" *#.*", "").split(" ");
            assertTrue(command.getParent() == null || words[0].equals(command.getCommandName()), example);
            VmCtl.commandLine(new VmCtl.Settings(Map.of(), Map.of()), words).parseArgs(words);
        }
        String text = help.replaceAll("\\s+", " ");
        command.getCommandSpec().options().stream().filter(option -> option.descriptionKey().matches("[A-Z_]+")).forEach(option -> {
            String line = option.longestName() + "=\\S+ [^(]*\\(" + option.descriptionKey() + "; default: [^;)]+\\)";
            assertTrue(Pattern.compile(line).matcher(text).find(), option.longestName() + " in " + help);
        });
        assertTrue(text.contains("(VM_DIR; default: /var/vms)"), "the default is the one that holds here: " + help);
    }

    @Test
    void aBadValueIsNamedByItsVariableAndNothingIsDone() throws IOException {
        makeCleanDisk();
        for (String variable : List.of("VM_MEMORY", "VM_CPUS", "VM_ACCEL", "VM_DISK_CACHE", "VM_SSH_PORT", "VM_NAME")) {
            Result result = ctl(Map.of(variable, "no/such"), "start").exits(2).says(variable).says("no/such");
            assertEquals(1, result.err().lines().count());
        }
        ctl(Map.of("VM_NAME", "x-clean"), "status").exits(2).says("-clean");
        ctl(Map.of("VM_SSH_PORT", "65536"), "start").exits(2).says("VM_SSH_PORT");
        for (String line : List.of("snapshot ../up", "restore ../up", "snapshot --delete ../up", "snapshot --list one",
                "snapshot --list --delete one", "snapshot one --delete two", "start --forward 80", "start --forward 0:80",
                "start --forward 80:65536", "start --timeout soon", "exec --timeout 5 true", "exec --env =x true")) {
            assertEquals(1, ctl(line.split(" ")).exits(2).err().lines().count(), line);
        }
        assertEquals(List.of(vm.clean()), vm.files());
    }

    @Test
    void anOptionBeatsTheEnvironmentWhichBeatsTheFile() throws IOException {
        makeCleanDisk();
        ctl("start", "--dry-run").exits(0).answers("-m 64M -smp 3");
        ctl(Map.of("VM_MEMORY", ""), "start", "--dry-run").answers("-m 96M"); // empty is unset
        ctl("start", "--dry-run", "--memory", "128M").answers("-m 128M");
        ctl("start", "--dry-run", "--qemu-args", "-device 'virtio-rng-pci,id=a b'").answers("'virtio-rng-pci,id=a b'");
        assertEquals(List.of(vm.clean()), vm.files(), "a dry run leaves nothing");
    }

    @Test
    void aDryRunCanBePastedIntoAShell() throws Exception {
        makeCleanDisk();
        String printed = ctl("start", "--dry-run").out().lines().findFirst().orElseThrow();
        sh("sh", "-c", printed);
        assertEquals(vm.clean(), VmCtl.Qcow2.read(vm.disk()).backing());
    }

    @Test
    void whatIsMissingIsSaid() throws IOException {
        ctl("start").exits(69).says("vm-auto-install");
        ctl("status").exits(3).answers("stopped");
        ctl("exec", "--", "true").exits(3).says("vm-ctl start");
        ctl("ssh").exits(3);
        ctl("console").exits(3);
        ctl("screenshot", "s.png").exits(3);
        ctl("stop").exits(0);
        ctl("restore").exits(69);
        ctl("snapshot").exits(69);
        ctl("install").exits(69).says("vm-setup");
        Path packed = Files.writeString(temporary.resolve("dfly.iso.bz2"), "vm-setup unpacks it");
        ctl(Map.of("VM_IMAGE", packed.toString()), "install").exits(69).says("vm-setup: " + dir.resolve("dfly-6.4.2.iso"));
        ctl("list").exits(0);
        ctl("list", "--vm-dir", "/proc/version").exits(69).says("VM_DIR");
        makeVm();
        Files.writeString(vm.file(".console.log"), "login: ");
        assertEquals("login: ", ctl("console", "--log").exits(0).out());
        ctl("restore", "no-such").exits(69).says("no-such");
        ctl("snapshot", "--delete", "no-such").exits(69);
    }

    // Argument lists.

    private VmCtl.Boot boot(String accelerator, List<String> forwards) {
        List<String> hardware = new ArrayList<>(List.of("QEMU 1"));
        hardware.addAll(VmCtl.hardware(accelerator, "qemu64", "64M", 2, 0));
        return new VmCtl.Boot(hardware, "writeback", 0, forwards, List.of(), Duration.ofMinutes(1), true);
    }

    @Test
    void everythingListensOnLoopbackOrInThePrivateDirectory() throws IOException {
        List<String> arguments = VmCtl.qemuArguments(vm, boot("kvm", List.of("8080:80")), 2222, null);
        assertTrue(arguments.contains("user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80"));
        assertTrue(arguments.stream().noneMatch(argument -> argument.contains("invtsc")));
        List<String> sockets = arguments.stream().filter(argument -> argument.startsWith("socket,")).toList();
        assertEquals(2, sockets.size());
        assertTrue(sockets.stream().allMatch(socket -> socket.contains("path=/")), sockets.toString());
        assertFalse(arguments.contains("-incoming"));
        assertTrue(VmCtl.qemuArguments(vm, boot("kvm", List.of()), 2222, dir.resolve("ram")).contains("-incoming"));
    }

    @Test
    void theDiskGivesSpaceBackAndItsNameIsSafe() throws Exception {
        List<String> arguments = VmCtl.qemuArguments(vm, boot("tcg", List.of()), 2222, null);
        JsonObject disk = JsonParser.object().from(arguments.get(arguments.indexOf("-blockdev") + 1));
        assertEquals("unmap", disk.getString("discard"));
        assertEquals("unmap", disk.getString("detect-zeroes"));
        assertEquals(vm.disk().toString(), disk.getObject("file").getString("filename"));
    }

    @Test
    void sshItselfUnderstandsTheConfig() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        int port = VmCtl.json(ctl("status", "--json").out()).getInt("port");
        String config = sh("ssh", "-G", "-F", dir.resolve("ssh_config").toString(), "x");
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
        String said = sh("sh", "-c", VmCtl.remoteCommand(words, List.of(), null));
        assertEquals("a b|it's|$HOME||*|!x|\\|\u00e9|", new String(said.getBytes(ISO_8859_1), UTF_8));
        assertEquals("a 'b' $c\n", sh("sh", "-c", VmCtl.remoteCommand(List.of("echo \"$G\""), List.of("G=a 'b' $c"), null)));
    }

    @Test
    void onlyABannerIsAnAnswer() throws Exception {
        try (ServerSocket silent = new ServerSocket(0, 5, InetAddress.getLoopbackAddress())) { // accepts, as QEMU does, and says nothing
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
        assertEquals(Optional.of("panic: no init"), VmCtl.trouble("booting\npanic: no init\ncpuid = 0\n"));
        assertEquals(Optional.of("panic: vm_fault"), VmCtl.trouble("\nlogin: panic: vm_fault\r\ncpuid = 1\r\n"));
        assertEquals(Optional.of("Fatal trap 12: page fault"), VmCtl.trouble("Fatal trap 12: page fault\r\ncpuid = 0; lapic->id = 0\r\n"));
        assertEquals(Optional.of("Stopped at      Debugger+0x7c"), VmCtl.trouble("x\nStopped at      Debugger+0x7c\r\ndb> "));
        assertTrue(VmCtl.trouble("The operating system has halted.\n").isPresent());
        for (String healthy : List.of("panic: x\ncpuid = 0\nCopyright (c) 2003-2025 The DragonFly Project.\nlogin: ",
                "debug.debugger_on_panic: 1 -> 0\nsaid: panic: no\nlogin: ", "panic: index out of range\n\ngoroutine 1 [running]:\n",
                "panic: said a program\ndb> ", "Unable to load /kernel/ehci\n", "Root mount failed: 6\nMounting root from cd9660:acd0\n",
                "Enter full pathname of shell or RETURN for /bin/sh: \n# exit\n\nlogin: ")) {
            assertEquals(Optional.empty(), VmCtl.trouble(healthy), healthy);
        }
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
                assertEquals(Optional.ofNullable(trouble.get(name)), VmCtl.trouble(console), name);
            }
        }
        String rebooted = Files.readString(Path.of("test/console/panic-reboot.log"), ISO_8859_1);
        assertEquals(Optional.of("panic: sysctl_debug_panic"), VmCtl.trouble(rebooted.substring(0, rebooted.indexOf("Rebooting..."))));
        String singleUser = Files.readString(Path.of("test/console/single-user.log"), ISO_8859_1);
        assertTrue(VmCtl.trouble(singleUser.substring(0, singleUser.indexOf("# fsck"))).isPresent());
    }

    @Test
    void emulatedProcessorsShareAThread() {
        assertEquals(List.of("-accel", "tcg"), VmCtl.hardware("tcg", "qemu64", "64M", 1, 0).subList(0, 2));
        assertEquals(List.of("-accel", "tcg,thread=single"), VmCtl.hardware("tcg", "qemu64", "64M", 2, 0).subList(0, 2));
        assertEquals(List.of("-accel", "kvm"), VmCtl.hardware("kvm", "host", "64M", 2, 0).subList(0, 2));
    }

    /** In an Include line, OpenSSH 9.9 expands % and ${}, and OpenSSH 9.2 does not: no line says the same to both. */
    @Test
    void aDirectoryThatSshWouldReadDifferentlyIsRefused() throws IOException {
        for (String name : List.of("a%b", "a%h", "a${HOME}b")) {
            Path odd = temporary.toRealPath().resolve(name);
            ctl("start", "--vm-dir", odd.toString()).exits(2).says("is not a path without % and ${").says(odd.toString());
            VmCtl.VmException refused = assertThrows(VmCtl.VmException.class, () -> VmCtl.vmDirectory(odd.resolve("relative").toString()));
            assertEquals(2, refused.exitCode);
            assertFalse(Files.exists(odd));
        }
    }

    @Test
    void whatAGuestPrintsIsHarmless() {
        assertEquals("red?]0;title? ?c\tx\ny", VmCtl.printable("\u001b[1;31mred\u001b]0;title\u0007 \u001bc\tx\r\ny"));
        assertFalse(VmCtl.printable("\u009b31m").contains("\u009b"));
    }

    // Disks.

    @Test
    void theHeaderIsReadAsQemuImgReadsIt() throws Exception {
        makeVm();
        VmCtl.Qcow2 disk = VmCtl.Qcow2.read(vm.disk());
        JsonObject info = JsonParser.object().from(sh("qemu-img", "info", "--output=json", vm.disk().toString()));
        assertEquals(info.getLong("virtual-size"), disk.size());
        assertEquals(vm.clean(), disk.backing());
        assertTrue(disk.empty());
        assertNull(VmCtl.Qcow2.read(vm.clean()).backing());
        write(vm.disk(), 2);
        assertFalse(VmCtl.Qcow2.read(vm.disk()).empty());
        byte[] sound = Files.readAllBytes(vm.disk());
        for (int at : List.of(16, 36)) { // a name's length, a table's
            byte[] damaged = sound.clone();
            Arrays.fill(damaged, at, at + 4, (byte) 0xff);
            Files.write(vm.disk(), damaged);
            assertEquals(Optional.empty(), VmCtl.Qcow2.find(vm.disk()));
            ctl("start").exits(69).says("is damaged: vm-ctl restore");
        }
        Files.write(vm.disk(), Arrays.copyOf(sound, 80));
        ctl("start").exits(69).says("is damaged: vm-ctl restore");
        Files.writeString(vm.disk(), "no image");
        ctl("start").exits(69).says("no qcow2").says("vm-ctl restore");
        ctl("restore").exits(0);
        assertTrue(VmCtl.Qcow2.read(vm.disk()).empty());
    }

    /** The original's way to lose everything: a restore, then a snapshot over the snapshot just restored. */
    @Test
    void restoreThenSnapshotThenRestoreLosesNothing() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        ctl("snapshot", "one").exits(0);
        for (int pattern = 3; pattern < 7; pattern++) {
            ctl("restore", "one").exits(0);
            holds(vm.disk(), pattern - 1);
            write(vm.disk(), pattern);
            ctl("snapshot", "one").exits(2).says("--yes");
            ctl("snapshot", "one", "--yes").exits(0);
        }
        ctl("restore").exits(0);
        holds(vm.disk(), 1);
        ctl("restore", "one").exits(0);
        holds(vm.disk(), 6);
        sh("qemu-img", "check", "-q", vm.disk().toString());
    }

    @Test
    void aReplacedDiskStaysWhileSomethingBuildsOnItAndGoesThen() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        ctl("snapshot", "one").exits(0);
        ctl("snapshot", "two").exits(0);
        ctl("restore", "clean").exits(0);
        write(vm.disk(), 3);
        ctl("snapshot", "one", "--yes").exits(0);
        ctl("restore", "two").exits(0);
        holds(vm.disk(), 2);
        Path replaced = vm.file(".snapshots").resolve("one/disk.qcow2");
        assertTrue(Files.exists(replaced));
        ctl("restore", "one").exits(0);
        holds(vm.disk(), 3);
        ctl("snapshot", "--delete", "two").exits(0);
        assertFalse(Files.exists(replaced));
        assertFalse(Files.exists(vm.file(".snapshots").resolve("two")));
        holds(vm.disk(), 3);
    }

    @Test
    void whatOthersBuildOnIsNotDeleted() throws IOException {
        makeVm();
        ctl("snapshot", "one").exits(0);
        write(vm.disk(), 2);
        ctl("snapshot", "two").exits(0);
        ctl("snapshot", "--delete", "one").exits(69).says("two");
        ctl("snapshot", "--delete", "clean").exits(2);
        ctl("snapshot", "--delete", "two").exits(0);
        holds(vm.disk(), 2); // the VM itself still builds on it
        ctl("snapshot", "--list").exits(0).answers("one");
        ctl("restore", "one").exits(0);
        holds(vm.disk(), 1);
        ctl("snapshot", "--delete", "one").exits(0);
        holds(vm.disk(), 1);
        ctl("restore").exits(0);
        assertFalse(Files.exists(vm.file(".snapshots")) && Files.list(vm.file(".snapshots")).findAny().isPresent());
    }

    @Test
    void aFreezeThatWasCutOffBeforeItsRecordNeverWas() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        Path half = Files.createDirectories(vm.file(".snapshots").resolve("one")).resolve("disk.qcow2");
        Files.createLink(half, vm.disk());
        Files.writeString(half.resolveSibling("ram"), "half of it");
        ctl("stop").exits(0);
        assertFalse(Files.exists(half.getParent()));
        holds(vm.disk(), 2);
        write(vm.disk(), 3);
    }

    @Test
    void aFreezeThatWasCutOffAfterItsRecordIsFinished() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        Path frozen = vm.freeze("one", new JsonObject(), false);
        assertTrue(Files.isSameFile(frozen, vm.disk()));
        ctl("stop").exits(0);
        assertFalse(Files.isSameFile(frozen, vm.disk()));
        assertEquals(frozen, VmCtl.Qcow2.read(vm.disk()).backing());
        assertEquals("r--------", PosixFilePermissions.toString(Files.getPosixFilePermissions(frozen)));
        write(vm.disk(), 3);
        ctl("restore", "one").exits(0);
        holds(vm.disk(), 2);
    }

    @Test
    void anInstallationByHandBecomesTheCleanDisk() throws IOException {
        sh("qemu-img", "create", "-q", "-f", "qcow2", vm.disk().toString(), "1G");
        write(vm.disk(), 5);
        vm.freeze("clean", new JsonObject(), false);
        Files.delete(vm.file(".snapshots").resolve("clean/snapshot.json")); // cut off even before the record
        ctl("stop").exits(0);
        assertEquals(vm.clean(), VmCtl.Qcow2.read(vm.disk()).backing());
        assertNull(VmCtl.Qcow2.read(vm.clean()).backing());
        holds(vm.disk(), 5);
        assertTrue(vm.isAsInstalled());
    }

    @Test
    void aNewInstallationMakesTheOldOnesDisksUseless() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        ctl("snapshot", "one").exits(0);
        Files.setLastModifiedTime(vm.clean(), FileTime.from(Instant.now().plusSeconds(10)));
        ctl("start").exits(69).says("vm-ctl restore");
        ctl("restore", "one").exits(69);
        assertTrue(Files.exists(vm.file(".snapshots").resolve("one/disk.qcow2")), "nothing is thrown away by itself");
    }

    @Test
    void aMissingDiskIsSaidAndNothingElseIsRemoved() throws IOException {
        makeVm();
        ctl("snapshot", "one").exits(0);
        write(vm.disk(), 2);
        ctl("snapshot", "two").exits(0);
        Path one = vm.file(".snapshots").resolve("one/disk.qcow2");
        Files.move(one, temporary.resolve("away"));
        ctl("start").exits(69).says("is gone");
        ctl("restore", "two").exits(69);
        Files.move(temporary.resolve("away"), one);
        ctl("restore", "two").exits(0);
        holds(vm.disk(), 2);
    }

    @Test
    void aSymbolicLinkToTheDirectoryIsTheSameDirectory() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        Path link = Files.createSymbolicLink(temporary.resolve("link"), dir);
        ctl("snapshot", "one").exits(0);
        ctl(Map.of("VM_DIR", link.toString()), "snapshot", "two").exits(0);
        ctl("snapshot", "--delete", "one").exits(69).says("two");
        holds(vm.disk(), 2);
    }

    @Test
    void aDamagedRecordCostsNothing() throws IOException {
        makeVm();
        write(vm.disk(), 2);
        ctl("snapshot", "one").exits(0);
        write(vm.disk(), 3);
        ctl("snapshot", "two").exits(0);
        Path record = vm.file(".snapshots").resolve("one/snapshot.json");
        String text = Files.readString(record);
        Files.writeString(record, text.substring(0, 20));
        ctl("status").exits(3);
        ctl("restore", "one").exits(69).says("--list");
        ctl("restore", "two").exits(0);
        holds(vm.disk(), 3);
        Files.writeString(record, text);
        ctl("restore", "one").exits(0);
        holds(vm.disk(), 2);
    }

    // RAM that does not fit.

    @Test
    void ramIsUsedOnTheSameHardwareOnly() throws IOException {
        makeVm();
        Path file = Files.writeString(dir.resolve("ram"), "12345");
        List<String> hardware = boot("tcg", List.of()).hardware();
        vm.freeze("one", VmCtl.object("ram", "ram", "ramBytes", 5, "ramCrc32c", 0, "hardware", hardware), false);
        Files.move(file, vm.file(".snapshots").resolve("one/ram"));
        VmCtl.Snapshot snapshot = vm.snapshot("one").orElseThrow();
        assertNull(snapshot.ramProblem(hardware));
        List<String> other = new ArrayList<>(hardware);
        other.set(6, "128M");
        assertEquals("it was made with -m 64M, now it is 128M", snapshot.ramProblem(other));
        other.set(0, "QEMU 2");
        assertEquals("it was made with QEMU 1, now it is QEMU 2", snapshot.ramProblem(other));
        List<String> more = new ArrayList<>(hardware);
        more.add("-device");
        assertTrue(snapshot.ramProblem(more).contains("other QEMU arguments"));
        Files.writeString(snapshot.ram(), "1234");
        assertTrue(snapshot.ramProblem(hardware).contains("4 bytes instead of 5"));
    }

    // Processes and ports.

    @Test
    void aPidCountsOnlyWithItsStartTimeAndBoot() throws IOException {
        makeVm();
        long self = ProcessHandle.current().pid();
        for (String text : List.of("", "garbage", "{\"pid\":1}",
                "{\"pid\":" + self + ",\"bootId\":\"" + VmCtl.bootId() + "\",\"startTicks\":1}",
                "{\"pid\":" + self + ",\"bootId\":\"other\",\"startTicks\":" + VmCtl.startTicks(self) + "}")) {
            Files.writeString(vm.pidFile(), text);
            ctl("status").exits(3);
            ctl("exec", "--", "true").exits(3);
            ctl("stop").exits(0);
            assertFalse(Files.exists(vm.pidFile()), text);
        }
        assertEquals(self, ProcessHandle.current().pid()); // and nobody was killed
    }

    @Test
    void aTakenPortIsNamedOrPassedOver() throws IOException {
        makeCleanDisk();
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            String port = String.valueOf(taken.getLocalPort());
            ctl(Map.of("VM_SSH_PORT", port), "start").exits(69).says(port).says("pid " + ProcessHandle.current().pid());
            ctl("start", "--forward", port + ":80").exits(69).says("pid " + ProcessHandle.current().pid());
        }
        int free = Integer.parseInt(ctl("start", "--dry-run").out().replaceAll("(?s).*127\\.0\\.0\\.1:(\\d+)-:22.*", "$1"));
        try (ServerSocket taken = new ServerSocket(free, 1, InetAddress.getLoopbackAddress())) {
            assertFalse(ctl("start", "--dry-run").answers("hostfwd").out().contains("127.0.0.1:" + taken.getLocalPort() + "-"));
        }
    }

    /** The tool as a process of its own, to be killed. */
    private Process start(Path said, String... arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), "VmCtl"));
        command.addAll(List.of(arguments));
        command.addAll(List.of("--vm-dir", dir.toString(), "--vm-name", "x"));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(said.toFile());
        builder.environment().put("VM_ACCEL", "tcg"); // no probe
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
    void aToolKilledAtAnyMomentLosesNothing() throws Exception {
        makeVm();
        write(vm.disk(), 2);
        ctl("snapshot", "kept").exits(0);
        for (String command : List.of("start --no-wait", "stop --force", "snapshot other --yes", "snapshot kept --yes",
                "restore kept")) {
            for (int millis : List.of(400, 800)) {
                Process tool = start(temporary.resolve("said"), command.split(" "));
                tool.waitFor(millis, TimeUnit.MILLISECONDS);
                tool.destroyForcibly().waitFor();
                ctl("stop", "--force").exits(0);
                assertEquals(List.of(), qemus(), command);
                ctl("restore", "kept").exits(0);
                holds(vm.disk(), 2);
            }
        }
        Process destroy = start(temporary.resolve("said"), "destroy", "--yes");
        while (Files.exists(vm.clean()) && destroy.isAlive()) {
            Thread.sleep(1);
        }
        destroy.destroyForcibly().waitFor();
        ctl("destroy", "--yes").exits(0);
        assertEquals(List.of(), vm.files());
    }

    private List<Long> qemus() {
        try (Stream<ProcessHandle> all = ProcessHandle.allProcesses()) {
            return all.filter(process -> process.info().commandLine().orElse("").contains(vm.disk().toString())).map(ProcessHandle::pid).toList();
        }
    }

    // A bare QEMU.

    @Test
    void aBareQemuIsStartedSeenAndStopped() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        JsonObject status = VmCtl.json(ctl("status", "--json").exits(0).out());
        assertEquals("starting", status.getString("state"));
        assertEquals("64M", status.getString("memory"));
        long pid = status.getLong("pid");
        ctl("start", "--no-wait").exits(0).says("runs already");
        assertEquals(pid, VmCtl.json(ctl("status", "--json").out()).getLong("pid"));
        ctl("list").answers("starting");
        ctl("snapshot", "--yes").exits(69).says("ssh");
        Path picture = temporary.resolve("screen, 1.png");
        ctl("screenshot", temporary.toString()).exits(69).says("directory");
        ctl("screenshot", picture.toString()).exits(0);
        assertEquals("\u0089PNG", new String(Files.readAllBytes(picture), ISO_8859_1).substring(0, 4));

        sh("kill", "-STOP", String.valueOf(pid));
        for (int i = 0; i < 5; i++) { // until the monitor's backlog is full, too
            long begun = System.nanoTime();
            ctl("status").exits(69).answers("hung");
            assertTrue(System.nanoTime() - begun < 5e9, "a hung QEMU holds status up");
        }
        sh("kill", "-CONT", String.valueOf(pid));

        Files.writeString(vm.file(".console.log"), "booting\npanic: vm_fault\ncpuid = 0\nCopyright (c) 2003-2025 The DragonFly Project.\n");
        ctl("status").exits(0).answers("rebooted after a panic");
        Files.writeString(vm.file(".console.log"), "login: panic: vm_fault\ncpuid = 0\ndb> ");
        ctl("status").exits(69).answers("panicked").answers("vm_fault");
        ctl("stop").exits(0).says("QMP quit");
        assertTrue(VmCtl.startTicks(pid) < 0);
        ctl("status").exits(3).answers("stopped");
        for (String suffix : List.of(".pid", ".qemu-pid", ".qmp", ".console")) {
            assertFalse(Files.exists(vm.file(suffix)), suffix);
        }
    }

    @Test
    void aKilledQemuOrOneWithoutItsPidFileIsClearedAway() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        long pid = VmCtl.json(ctl("status", "--json").out()).getLong("pid");
        sh("kill", "-KILL", String.valueOf(pid));
        while (VmCtl.startTicks(pid) > 0) {
            Thread.sleep(10);
        }
        ctl("status").exits(3).answers("gone");
        ctl("start", "--no-wait").exits(0);
        long orphan = VmCtl.json(ctl("status", "--json").out()).getLong("pid");
        Files.delete(vm.pidFile()); // its starter was killed too soon
        ctl("start", "--no-wait").exits(0);
        assertTrue(VmCtl.startTicks(orphan) < 0, "two QEMUs on one disk");
    }

    @Test
    void aDiskThatAnotherQemuHoldsIsSaid() throws Exception {
        makeVm();
        Process other = new ProcessBuilder("qemu-io", vm.disk().toString()).start(); // waits for a command, the disk locked
        try {
            other.getInputStream().read(); // its prompt
            ctl("start").exits(69).says("lock");
            ctl("status").exits(3);
        } finally {
            other.destroyForcibly().waitFor();
        }
        ctl("start", "--no-wait").exits(0);
    }

    @Test
    void aFloodOfTheConsoleIsCut() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        Path log = vm.file(".console.log");
        byte[] part = "login: the guest asks and asks for a name\n".repeat(1 << 15).getBytes(UTF_8);
        long most = 0;
        for (int i = 0; i < 75; i++) { // 100 MB, appended as QEMU does it
            Files.write(log, part, StandardOpenOption.APPEND);
            most = Math.max(most, Files.size(log));
            Thread.sleep(most > 20_000_000 ? 100 : 20); // no guest is as fast as a file
        }
        for (int i = 0; i < 600 && Files.size(log) > 10_000_000; i++) {
            Thread.sleep(100);
        }
        assertTrue(Files.size(log) <= 10_000_000 && most < 100_000_000, Files.size(log) + ", at most " + most);
        assertEquals(1_000_000, Files.size(vm.file(".console.log.1")));
    }

    @Test
    void restartAndRestoreKeepThePortAndTheForwards() throws Exception {
        makeVm();
        String port;
        String forward;
        try (ServerSocket one = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
                ServerSocket two = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
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

    @Test
    void qemusOwnErrorIsTheReason() throws Exception {
        makeVm();
        ctl("start", "--qemu-args", "-device no-such-device").exits(69).says("no-such-device");
        ctl("status").exits(3);
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            String rule = "tcp:127.0.0.1:" + taken.getLocalPort() + "-:1";
            ctl("start", "--qemu-args", "-netdev user,id=n1,hostfwd=" + rule).exits(69).says(rule);
        }
        ctl("start", "--no-wait").exits(0);
        ctl("start", "--timeout", "3s").exits(124).says("sshd does not answer");
    }

    @Test
    void ramGoesOutAndInAndADamagedOneNeverRuns() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        VmCtl ctl = new VmCtl();
        new CommandLine(ctl).setErr(new PrintWriter(new StringWriter()));
        ctl.vm = vm;
        JsonObject running = ctl.running();
        List<String> hardware = running.getArray("hardware").stream().map(String.class::cast).toList();
        VmCtl.Boot again = new VmCtl.Boot(hardware, "writeback", 0, List.of(), List.of(), Duration.ofMinutes(1), true);

        // While it is saved the guest runs; afterwards it stands still, and the next command lets it go on.
        Path directory = Files.createDirectories(vm.file(".snapshots").resolve("one"));
        Path file = directory.resolve("ram");
        JsonObject ram = ctl.saveRam(file, hardware, Duration.ofMinutes(1));
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file)));
        assertEquals(Files.size(file), ram.getLong("ramBytes"));
        assertEquals("postmigrate", VmCtl.runState(vm, Duration.ofSeconds(10)));
        ctl("start", "--no-wait").exits(0);
        assertEquals("running", VmCtl.runState(vm, Duration.ofSeconds(10)));
        assertFalse(Files.exists(file), "RAM without a record is of no use");

        // Killed between the record and the fresh overlay: the snapshot is there, the old QEMU does not go on.
        ram = ctl.saveRam(Files.createDirectories(directory).resolve("ram"), hardware, Duration.ofMinutes(1));
        Path frozen = vm.freeze("one", ram, false);
        ctl("stop").exits(0);
        assertEquals(frozen, VmCtl.Qcow2.read(vm.disk()).backing());
        assertTrue(VmCtl.startTicks(running.getLong("pid")) < 0);

        // The round trip.
        VmCtl.Snapshot snapshot = vm.below().orElseThrow();
        assertNull(snapshot.ramProblem(hardware));
        JsonObject restored = ctl.launch(again, snapshot.ram());
        assertNull(ctl.wake(snapshot, restored));
        assertEquals("running", VmCtl.runState(vm, Duration.ofSeconds(10)));
        ctl("stop", "--force").exits(0);

        // Damage in the middle and at the very end, and a QEMU that cannot take it.
        for (long position : List.of(Files.size(file) / 2, Files.size(file) - 1)) {
            try (RandomAccessFile damage = new RandomAccessFile(snapshot.ram().toFile(), "rw")) {
                damage.seek(position);
                int old = damage.read();
                damage.seek(position);
                damage.write(old ^ 1);
                JsonObject waiting = ctl.launch(again, snapshot.ram());
                String problem = ctl.wake(snapshot, waiting);
                assertTrue(problem.contains("damaged") || problem.contains("refuses"), problem);
                assertNotEquals("running", VmCtl.runState(vm, Duration.ofSeconds(10)));
                ctl("stop", "--force").exits(0);
                damage.seek(position);
                damage.write(old);
            }
        }
        assertTrue(ctl.wake(snapshot, ctl.launch(again, null)).startsWith("QEMU refuses")); // one that does not wait for RAM
        ctl("stop", "--force").exits(0);
        assertTrue(VmCtl.Qcow2.read(vm.disk()).empty(), "nothing ran on the disk");
        // By the command, too: it says so and boots the disk.
        ctl("start", "--memory", "96M", "--timeout", "3s").exits(124).says("cannot be used: it was made with -m 64M, now it is 96M");
    }

    @Test
    void aGuestWhoseRamCouldNotBeSavedGoesOn() throws Exception {
        makeVm();
        ctl("start", "--no-wait").exits(0);
        VmCtl ctl = new VmCtl();
        new CommandLine(ctl);
        ctl.vm = vm;
        Path file = temporary.resolve("ram");
        VmCtl.VmException failed = assertThrows(VmCtl.VmException.class, () -> ctl.saveRam(file, List.of(), Duration.ofMillis(1)));
        assertEquals(69, failed.exitCode);
        assertFalse(Files.exists(file));
        for (int i = 0; i < 100 && !VmCtl.runState(vm, Duration.ofSeconds(10)).equals("running"); i++) {
            Thread.sleep(50);
        }
        assertEquals("running", VmCtl.runState(vm, Duration.ofSeconds(10)));
    }

    // Installing by hand, destroying.

    @Test
    void theProvisioningDiscHoldsWhatTheSystemNeedsAndOnlyItsOwnerReadsIt() throws Exception {
        Path phases = Files.createDirectories(temporary.resolve("phases"));
        Path image = Files.writeString(phases.resolve("phase2-update.sh"), "echo two"); // any file will do for an installer
        Files.writeString(phases.resolve("phase1-install.sh"), "echo one");
        Files.writeString(phases.resolve("phase3-provision.sh"), "echo three");
        Map<String, String> settings = Map.of("VM_PHASES", phases.toString(), "VM_IMAGE", image.toString());
        ctl(Map.of("VM_PHASES", temporary.toString(), "VM_IMAGE", image.toString()), "install").exits(69).says("VM_PHASES");
        Result result = ctl(settings, "install").exits(0).says("mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh").says("VNC on 127.0.0.1:");
        assertEquals("", result.out());
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(vm.file(".setup.iso"))));
        String disc = Files.readString(vm.file(".setup.iso"), ISO_8859_1);
        for (String part : List.of("RRIP_1991A", "echo one", "echo two", "echo three", "setup.sh", "VM_ROOT_PASSWORD=", "BEGIN OPENSSH")) {
            assertTrue(disc.contains(part), part);
        }
        assertFalse(disc.contains("pfi.conf"), "the installer itself would run the disc");
        assertTrue(Files.readString(vm.file(".ssh").resolve("known_hosts")).startsWith("x ssh-ed25519 "));
        assertEquals(40L << 30, VmCtl.Qcow2.read(vm.disk()).size());
        ctl(settings, "install").exits(69).says("runs");
        ctl("stop", "--force").exits(0);
        ctl("snapshot", "clean").exits(0);
        assertEquals(vm.clean(), VmCtl.Qcow2.read(vm.disk()).backing());
        ctl(settings, "install").exits(69).says("installed already");
    }

    @Test
    void destroyTakesThisVmAndNothingElse() throws IOException {
        makeVm();
        List<Path> others = new ArrayList<>();
        for (String name : List.of("x2.qcow2", "x.y.qcow2", "x.y.ssh", "dfly-6.4.2.iso", "x-clean2.qcow2", "accel.json")) {
            others.add(Files.createFile(dir.resolve(name)));
        }
        ctl("snapshot", "one").exits(0);
        ctl("start", "--no-wait").exits(0);
        long pid = VmCtl.livePid(vm.pidFile()).orElseThrow();
        ctl("destroy").exits(2).says("--yes");
        assertTrue(Files.exists(vm.disk()));
        ctl("destroy", "--yes").exits(0).says("freed");
        assertTrue(VmCtl.startTicks(pid) < 0);
        others.add(dir.resolve("ssh_config"));
        try (Stream<Path> left = Files.list(dir)) {
            assertEquals(others.stream().sorted().toList(), left.sorted().toList());
        }
        ctl("destroy", "--yes").exits(0);
        ctl("list").exits(0).answers("x2");
    }

    @Test
    void vmEnvIsReadAsPeopleWriteIt() throws IOException {
        VmCtl.Settings settings = settings("\ufeffexport VM_NAME=a\r\n# a comment\n\n VM_DIR = \"/x y\" \nVM_TEST_X='go test -run \"A b\"'\n");
        assertEquals("a", settings.get("VM_NAME"));
        assertEquals("/x y", settings.get("VM_DIR"));
        assertEquals("go test -run \"A b\"", settings.get("VM_TEST_X"));
        assertEquals(List.of(), settings.problems());
    }

    @Test
    void whatIsNoSettingInVmEnvIsSaid() throws IOException {
        for (String text : List.of("VM_NAME: a", "VM_NAME", "\u0000")) {
            StringWriter err = new StringWriter();
            CommandLine line = VmCtl.commandLine(settings(text + "\n"), "status").setErr(new PrintWriter(err, true));
            assertEquals(2, line.execute("status"), text);
            assertTrue(err.toString().startsWith("vm-ctl: vm.env: not KEY=VALUE: " + text), err.toString());
            assertEquals(0, line.setOut(new PrintWriter(new StringWriter())).execute("--help"), "the way out");
        }
        Files.createDirectory(temporary.resolve("vm.env"));
        assertTrue(VmCtl.Settings.read(Map.of(), temporary).problems().get(0).startsWith("vm.env cannot be read"));
        assertEquals("caf\ufffd", settingsOf(new byte[] {'V', '=', 'c', 'a', 'f', (byte) 0xe9}).get("V"));
    }

    private VmCtl.Settings settings(String vmEnv) throws IOException {
        return settingsOf(vmEnv.getBytes(UTF_8));
    }

    private VmCtl.Settings settingsOf(byte[] vmEnv) throws IOException {
        Path directory = Files.createTempDirectory(temporary, "env");
        Files.write(directory.resolve("vm.env"), vmEnv);
        return VmCtl.Settings.read(Map.of(), directory);
    }
}
