import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * How the stand-in boots, from its CD and from an installed disk, how strict its CD is, and how its build fails. On QEMUs of its own,
 * beside the shared VM: it reads that one's disks under other names.
 */
@Tag("faults")
@Tag("vm")
final class StandinBootTest {

    private static final Path ISO = Guest.standin().resolve("iso-images/dfly-x86_64-6.4.2_REL.iso");
    private static final Path BUILD_SCRIPT = Path.of("test/standin/build.sh").toAbsolutePath();
    private static final Path DISKS = Guest.BUILD.resolve("test/standin disks");

    @BeforeAll
    static void links() throws IOException {
        Guest.delete(DISKS);
        Files.createDirectories(DISKS);
        for (String disk : List.of("-clean.qcow2", ".install/phase2.qcow2", ".install/phase1.qcow2")) {
            Path file = Guest.installed().file(disk);
            Files.createLink(DISKS.resolve(file.getFileName()), file);
        }
    }

    @AfterAll
    static void end() throws IOException {
        Guest.delete(DISKS);
    }

    /** A QEMU of the test's own, with the serial line at its standard input and output. */
    private static final class Machine implements AutoCloseable {
        private final Process qemu;
        private final StringBuilder console = new StringBuilder(); // guarded by itself
        private int read; // up to where it was waited for

        /** @param fault what the guest is asked for by its firmware configuration; empty for nothing */
        Machine(String fault, String... more) throws IOException {
            List<String> command = new ArrayList<>(List.of("qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "512M", "-display", "none",
                    "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none"));
            if (!fault.isEmpty()) {
                command.addAll(List.of("-fw_cfg", "name=opt/standin/fault,string=" + fault));
            }
            command.addAll(List.of(more));
            qemu = new ProcessBuilder(command).redirectError(new File("/dev/null")).start();
            Thread reader = new Thread(this::keep);
            reader.setDaemon(true);
            reader.start();
        }

        /** The installer CD in the first drive, and the other three empty. */
        static Machine withCd(String fault, String... more) throws IOException {
            List<String> all = new ArrayList<>(List.of("-drive", "if=ide,index=0,media=cdrom,readonly=on,file=" + ISO));
            all.addAll(List.of(more));
            return new Machine(fault, all.toArray(String[]::new));
        }

        /** What phase 3 left on its disk, which stays as it is. */
        static Machine withDisk(String fault) throws IOException {
            return new Machine(fault, "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk", "-drive",
                    "if=none,id=disk,snapshot=on,file=" + DISKS.resolve("guest-clean.qcow2"));
        }

        private void keep() {
            byte[] buffer = new byte[8192];
            try (InputStream in = qemu.getInputStream()) {
                for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
                    synchronized (console) {
                        console.append(new String(buffer, 0, n, ISO_8859_1));
                        console.notifyAll();
                    }
                }
            } catch (IOException closed) {
                // the test has ended QEMU
            }
        }

        /** Waits until a text follows what was waited for before; all that came between, with the text. */
        String await(String text) throws InterruptedException {
            long deadline = System.nanoTime() + Duration.ofMinutes(10).toNanos();
            synchronized (console) {
                for (int at = console.indexOf(text, read); ; at = console.indexOf(text, read)) {
                    if (at >= 0) {
                        String between = console.substring(read, at + text.length());
                        read = at + text.length();
                        return between;
                    }
                    long left = (deadline - System.nanoTime()) / 1_000_000;
                    if (left <= 0) {
                        throw new AssertionError("'" + text + "' never came:\n" + console);
                    }
                    console.wait(Math.min(left, 1000));
                }
            }
        }

        void type(String text) throws IOException {
            qemu.getOutputStream().write(text.getBytes(ISO_8859_1));
            qemu.getOutputStream().flush();
        }

        /** At the loader, as a person would; up to the first character that the kernel prints or the loader refuses. */
        void boot(String... settings) throws Exception {
            await("Booting in ");
            type("9");
            await("OK ");
            for (String setting : settings) {
                type("set " + setting + "\r");
                await("OK ");
            }
            type("boot\r");
        }

        @Override
        public void close() throws InterruptedException {
            qemu.destroyForcibly().waitFor();
        }
    }

    /** The loader's wheel, of however many turns, as one character. */
    private static String withoutWheel(String text) {
        return text.replaceAll("(?:[-|/\\\\]\b){4,}", "*");
    }

    @Test
    void eachProgramOfTheCdTakesItsFlagsAndNoOthers() throws IOException {
        Path phases = Guest.BUILD.resolve("test/phases strict");
        Guest.delete(phases);
        Files.createDirectories(phases);
        for (String phase : List.of("phase1-install.sh", "phase2-update.sh", "phase3-provision.sh")) {
            Path script = Files.writeString(phases.resolve(phase), Files.readString(StandinTest.SCRIPT) + "echo 'DONE WITH PHASE 1.'\npoweroff\nsleep 86400\n");
            Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
        }
        Guest live = Guest.in(Guest.BUILD.resolve("test/live")).with("VM_PHASES", phases.toString(),
                "VM_IMAGE", ISO.toString());
        Guest.delete(live.vmDir());
        live.install("--to", "1").exits(0);
        String log = Files.readString(live.file(".install").resolve("phase1.log"), ISO_8859_1);
        StandinTest.assertAllPassed(log);
        // What its kernel and its programs said beside, to nobody: partitioning, HAMMER2, the way down.
        String plain = log.replace("\r", "");
        assertTrue(plain.contains("Looking for pfi.conf on /dev/acd0...cd9660: RockRidge Extension\n /dev/acd0 ok... not found\n"
                + "Looking for pfi.conf on /dev/cd0...mount_cd9660: /dev/cd0: Device busy\n not found\n"
                + "Looking for pfi.conf on /dev/acd1...cd9660: RockRidge Extension\n /dev/acd1 ok... found!\n"), log);
        assertEquals(6, plain.split("da0s1: cannot find label \\(no disk label\\)\n", -1).length - 1, log);
        for (String noise : List.of("hammer2_mount: '/dev/da0s1d@ROOT'\n", "HAMMER2: CONN WAS TERMINATED\n", "hammer2_unmount(A): devvp /dev/da0s1d rbdirty 0 ronly=0\n")) {
            assertTrue(plain.contains(noise), noise + log);
        }
        assertTrue(Pattern.compile("DONE WITH PHASE 1\\.\nShutdown NOW!\npoweroff: \\[pid \\d+\\]\n\\w+ +\\d+ [0-9:]+ shutdown: power-down by root: \n\n"
                + "System shutdown time has arrived\007\007\nShutting down daemon processes:\\.\n").matcher(plain).find(), log);
        assertTrue(plain.contains("system thread bufdaemon to stop...stopped\n\nsyncing disks... 0 0 0 \ndone\nUptime: "), log);
        Guest.delete(live.vmDir());
    }

    @Test
    void theLoaderOfTheCdPrintsWhatTheRealOnePrints() throws Exception {
        try (Machine cd = Machine.withCd("")) {
            String menu = withoutWheel(cd.await("Booting in "));
            assertTrue(Pattern.compile("XConsole: serial port\r\nConsole: null port\r\nBIOS CD is cd0\r\nMMNBIOS drive A: is disk0\r\n"
                    + "NOOBIOS 639kB/\\d+kB available memory\r\n\r\nDragonFly/i386 bootstrap loader, Revision 1\\.1\r\n\\(root@.*\\)\r\n"
                    + "\\* {79}\r\n 1\\. Boot DragonFly \\[kernel\\] {17}\033\\[36m [^\r]*\r\n(?:[^\r\n]*\r\n){15}\rBooting in ").matcher(menu).matches(), menu);
            cd.type("9");
            assertEquals("10 seconds... \r\n|\b/\b-\b\\\b|\b/\b\r\n\r\nType '?' for a list of commands, 'help' for more detailed help.\r\nOK ", cd.await("OK "));
            cd.type("set console=comconsole\r");
            cd.await("OK ");
            cd.type("boot\r");
            assertEquals("boot\r\n*kernel text=0xafcb24 *data=0xe6ff5+0x9c2313 *syms=[0x8+0x8d870*+0x8+0x60710*]\r\n*ehci.ko *size 0x25600 at 0x1b98000\r\n"
                    + "*xhci.ko *size 0x29058 at 0x1bbe000\r\n*Copyright (c) ", withoutWheel(cd.await("Copyright (c) ")));
            String rc = cd.await("login: ");
            assertTrue(rc.contains("\r\nMounting root from cd9660:/dev/cd0\r\ncd9660: RockRidge Extension\r\n"), rc);
            assertTrue(rc.contains("\r\nStarting pfi...\r\nLooking for pfi.conf on /dev/acd0...cd9660: RockRidge Extension\r\n /dev/acd0 ok... not found\r\n"
                    + "Looking for pfi.conf on /dev/cd0...mount_cd9660: /dev/cd0: Device busy\r\n not found\r\n"), rc);
            assertTrue(rc.endsWith("\r\nlogin as 'root'.\r\r\n\r\r\nDragonFly/x86_64 (Amnesiac) (ttyd0)\r\r\n\r\r\nlogin: "), rc);
        }
    }

    @Test
    void theMenusOwnItemSaysCd0AndWithoutAVideoCardTheKernelNeedsNothingTyped() throws Exception {
        try (Machine cd = Machine.withCd("", "-vga", "none")) {
            cd.await("Booting in ");
            cd.type("\r");
            assertTrue(cd.await("Copyright (c) ").contains("dm.ko "), "the CD's loader.conf asks for it");
            cd.await("\r\nMounting root from cd9660:cd0\r\n");
        }
    }

    @Test
    void aDiskBeginsWithBoot2sLettersAndGoesOnWhenLoaderConfIsRead() throws Exception {
        try (Machine disk = Machine.withDisk("")) {
            String menu = withoutWheel(disk.await("Booting in "));
            assertTrue(menu.startsWith("XMMNNOO*" + " ".repeat(79) + "\r\n 1. Boot DragonFly [kernel]  "), menu);
            assertFalse(menu.contains("\033"), menu);
            assertEquals("1 second... \rBooting in 0 seconds... \r\n*kernel text=", withoutWheel(disk.await("kernel text=")));
            String rc = disk.await("login: ");
            assertTrue(rc.contains("\r\nMounting root from hammer2:da0s1d\r\nhammer2_mount: root 'da0s1d'\r\n"
                    + "hammer2_mount: dev=\"da0s1d\" label=\"ROOT\" rdonly=1\r\nhammer2: using volume header #0\r\n"), rc);
            assertTrue(rc.contains("\r\n/dev/da0s1a: FILESYSTEM CLEAN; SKIPPING CHECKS\r\n/dev/da0s1a: clean, "), rc);
            assertTrue(rc.contains("\r\nmount_hammer2: unable to connect to cluster controller\r\nmount_hammer2: cluster_connect(/dev/da0s1d@ROOT) failed\r\n"
                    + "hammer2_mount: '/dev/da0s1d@ROOT'\r\n"), rc);
            assertTrue(rc.indexOf("Starting sshd.") < rc.indexOf("Starting cron."), rc);
        }
    }

    @Test
    void pfiOnADiskWithoutADiscTriesTheDiskItselfAndGoesOn() throws Exception {
        Path disk = DISKS.resolve("phase2.qcow2"); // phase 3 removes rc.d/pfi
        try (Machine machine = new Machine("", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk", "-drive",
                "if=none,id=disk,snapshot=on,file=" + disk)) {
            String rc = machine.await("login: ");
            assertTrue(rc.indexOf("Starting cron.") < rc.indexOf("Starting pfi...") && rc.indexOf("Starting sshd.") > 0, rc);
            assertTrue(rc.contains("Looking for pfi.conf on /dev/da0s1...mount_msdos: /dev/da0s1: Invalid argument\r\n not found\r\n"), rc);
        }
    }

    @Test
    void aModuleThatIsMissingIsNamedAndTheLoaderBootsOn() throws Exception {
        try (Machine cd = Machine.withCd("nomodule")) {
            cd.boot("console=comconsole");
            assertEquals("*Unable to load /boot/kernel/ehci\r\n*Unable to load /boot/kernel/xhci\r\n*EHCI autoload failed - no such file or directory\r\n*Copyright (c) ",
                    withoutWheel(cd.await("Copyright (c) ").split("\\]\r\n")[1]));
        }
    }

    @Test
    void aLoaderWithoutAKernelSaysSoAndStaysAtItsPrompt() throws Exception {
        try (Machine cd = Machine.withCd("nokernel")) {
            cd.boot("console=comconsole");
            assertEquals("boot\r\n*can't load 'kernel'\r\nboot: no bootable kernel\r\nOK ", withoutWheel(cd.await("OK ")));
            cd.type("boot\r");
            cd.await("boot: no bootable kernel\r\nOK ");
        }
        try (Machine disk = Machine.withDisk("nokernel")) {
            assertTrue(withoutWheel(disk.await("OK ")).endsWith("Booting in 0 seconds... \r\n*Unable to load /kernel/kernel\r\nloadall: can't find 'kernel'\r\n"
                    + "menu: can't find 'kernel'\r\n*\r\n\r\nType '?' for a list of commands, 'help' for more detailed help.\r\nOK "));
        }
    }

    @Test
    void theMountrootPromptDoesNotWaitOnASerialLine() throws Exception {
        try (Machine cd = Machine.withCd("")) {
            cd.boot("console=comconsole", "vfs.root.mountfrom=hammer2:da0s1d");
            cd.await("Mounting root from hammer2:da0s1d\r\n");
            String end = cd.await("db> ");
            assertTrue(end.startsWith("hammer2_mount: root 'da0s1d'\r\nhammer2_mount: dev=\"da0s1d\" label=\"ROOT\" rdonly=1\r\nno disk named 'da0s1d'\r\n"
                    + "hammer2: cannot find 'da0s1d'\r\nRoot mount failed: 6\r\n\r\nManual root filesystem specification:\r\n"), end);
            assertTrue(end.contains("\r\n\r\nmountroot> panic: Root mount failed, startup aborted.\r\ncpuid = 0\r\nTrace beginning at frame 0x"), end);
            assertTrue(end.endsWith(StandinTest.DEBUGGER), end);
        }
    }

    /** All of this machine's programs but xz, as on a Debian that has it not. */
    @Test
    void aBuildWithoutOneOfItsProgramsNamesThePackage() throws IOException {
        Path bin = Guest.BUILD.resolve("test/without xz");
        Guest.delete(bin);
        Files.createDirectories(bin);
        for (String directory : List.of("/usr/bin", "/bin")) {
            try (Stream<Path> programs = Files.list(Path.of(directory))) {
                for (Path program : programs.toList()) {
                    Path link = bin.resolve(program.getFileName());
                    if (!program.endsWith("xz") && !Files.exists(link)) {
                        Files.createSymbolicLink(link, program);
                    }
                }
            }
        }
        Guest.installed().run(List.of("env", "PATH=" + bin, "sh", BUILD_SCRIPT.toString(), Guest.BUILD.resolve("test/not built").toString())).exits(69)
                .says("not installed: xz-utils");
        Guest.delete(bin);
    }

    @Test
    void aBuildWithoutAKernelModuleNamesIt() throws IOException {
        Path copy = Guest.BUILD.resolve("test/standin copy");
        Guest.delete(copy);
        Guest.installed().run(List.of("cp", "-R", BUILD_SCRIPT.getParent().toString(), copy.toString())).exits(0);
        Path script = copy.resolve("build.sh");
        String text = Files.readString(script);
        assertTrue(text.contains("for m in virtio_pci "), text);
        Files.writeString(script, text.replace("for m in virtio_pci ", "for m in virtio_pci no-such_module "));
        Path builds = Guest.standin().getParent();
        TreeSet<String> before = names(builds);
        Guest.installed().run(List.of("sh", script.toString(), builds.toString())).exits(69).says("has no module no-such_module");
        assertEquals(before, names(builds));
        Guest.delete(copy);
    }

    private static TreeSet<String> names(Path directory) throws IOException {
        TreeSet<String> names = new TreeSet<>();
        try (Stream<Path> files = Files.list(directory)) {
            files.forEach(file -> names.add(file.getFileName().toString()));
        }
        return names;
    }
}
