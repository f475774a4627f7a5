import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonObject;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import picocli.CommandLine;

/** What VmAutoInstall does without a guest, and with guests of 512 bytes in a real QEMU. */
@Tag("unit")
class VmAutoInstallTest {
    private static final String LOADER = "XConsole: serial port\r\nConsole: null port\r\nBIOS CD is cd0\r\n|\b/\b-\b\\\b\r\n"
            + "\033[H\033[J\033[1;33m    1. Boot DragonFly [kernel]\033[m\r\n    9. Escape to loader prompt (also ESC)\r\n\r\n"
            + "\rBooting in 10 seconds... ";
    private static final String PROMPTS = "\r\n"
            + "Type '?' for a list of commands, 'help' for more detailed help.\r\nOK set console=comconsole\r\nOK boot\r\n";
    private static final String KERNEL = "Copyright (c) 2003-2025 The DragonFly Project.\r\nreal memory  = 2147483648 (2048 MB)\r\n"
            + "da0: <QEMU QEMU HARDDISK 2.5+>\r\nMounting root from cd9660:/dev/cd0\r\nStarting file system checks:\r\n"
            + "debug.debugger_on_panic: 1 -> 0\r\nStarting pfi...\r\nLooking for pfi.conf on /dev/cd0... not found\r\n"
            + "Looking for pfi.conf on /dev/cd1... /dev/cd1 ok... found!\r\n";
    private static final String SCRIPT = "STEP 1: look at the machine\r\n+ echo 'DONE WITH PHASE 1.'\r\nSTEP 2: gr\u00fc\u00dfe\r\n";
    private static final String END = "\r\nDONE WITH PHASE 1.\r\nShutdown NOW!\r\nSystem shutdown time has arrived\r\n"
            + "syncing disks... 3 1\r\ndone\r\nUptime: 1m3s\r\nacpi0: Powering system off\r\n";

    @TempDir
    Path tmp;

    /** What the last command left. */
    private Script.Result last;

    // The console.

    private static VmAutoInstall.ConsoleWatcher watcher(int phase, Consumer<String> passed) {
        VmAutoInstall.Purpose purpose = phase == 0 ? VmAutoInstall.Purpose.CHECK : VmAutoInstall.Purpose.phase(phase);
        return new VmAutoInstall.ConsoleWatcher(purpose, Duration.ofMinutes(60), passed);
    }

    /** The console is quiet for two seconds. */
    private static void pause(VmAutoInstall.ConsoleWatcher watcher) {
        watcher.feed(new byte[0], 2);
    }

    private static VmAutoInstall.ConsoleWatcher watch(int phase, byte[] bytes, int chunk, List<String> passed) {
        VmAutoInstall.ConsoleWatcher watcher = watcher(phase, passed::add);
        for (int i = 0; i < bytes.length; i += chunk) {
            watcher.feed(Arrays.copyOfRange(bytes, i, Math.min(bytes.length, i + chunk)), 0);
        }
        pause(watcher);
        return watcher;
    }

    private static VmAutoInstall.ConsoleWatcher watch(int phase, String text) {
        return watch(phase, text.getBytes(UTF_8), Integer.MAX_VALUE / 2, new ArrayList<>());
    }

    @Test
    void aWholePhaseIsFollowedInWhateverChunksItComes() {
        List<String> passed = List.of("the boot loader", "the kernel's start", "the root mount", "rc", "pfi",
                "step 1 (look at the machine)", "step 2 (gr\u00fc\u00dfe)", "the shutdown", "power-off");
        byte[] phase = (LOADER + PROMPTS + KERNEL + SCRIPT + END).getBytes(UTF_8);
        for (int chunk : IntStream.concat(IntStream.rangeClosed(1, 70), IntStream.of(500, phase.length)).toArray()) {
            List<String> seen = new ArrayList<>();
            VmAutoInstall.ConsoleWatcher end = watch(1, phase, chunk, seen);
            seen.removeIf(place -> place.contains("waiting, because")); // nobody answers the loader here
            assertEquals(passed, seen, "in chunks of " + chunk);
            assertEquals("power-off, acpi0: Powering system off", end.where + ", " + end.lastLines().get(end.lastLines().size() - 1));
            assertTrue(end.done && end.failure == null);
        }
        assertFalse(watch(1, LOADER + PROMPTS + KERNEL + SCRIPT).done, "an echoed command is not the mark");
        assertFalse(watch(1, KERNEL + SCRIPT + "+ mark DONE WITH PHASE 1.\n").done, "nor is it without quotes");
        assertTrue(watch(1, KERNEL + SCRIPT + "DONE WITH PHASE 1.vtnet0: link state changed\r\n").done, "or after it");
        assertTrue(watch(1, KERNEL + SCRIPT + "f-chain 0xf refs=0DONE WITH PHASE 1.\r\n").done, "the kernel speaks in between");
    }

    @Test
    void chunksDoNotMatterToAHostileGuest() {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        all.writeBytes((LOADER + PROMPTS + KERNEL + SCRIPT).getBytes(UTF_8));
        all.writeBytes(new byte[] {0, 0, (byte) 0xff, (byte) 0xc3, 'x', '\r', '\n', 27, '[', '3', '1', ';', '\r', '\n', 27});
        all.writeBytes("c[1/9] Fetching go: 10%\r[1/9] Fetching go: 99%\rdone\r\n".getBytes(UTF_8));
        all.writeBytes("Fatal trap 12: page fault\r\ncpuid = 0; lapic->id = 00000000\r\ndb> ".getBytes(UTF_8));
        for (int chunk : IntStream.concat(IntStream.rangeClosed(1, 70), IntStream.of(500, all.size())).toArray()) {
            VmAutoInstall.ConsoleWatcher end = watch(1, all.toByteArray(), chunk, new ArrayList<>());
            assertEquals("the kernel panicked: Fatal trap 12: page fault", end.failure.getMessage());
            assertEquals("step 2 (gr\u00fc\u00dfe)", end.where);
            assertEquals(List.of("\ufffd\ufffdx", "31;", "done", "Fatal trap 12: page fault", "cpuid = 0; lapic->id = 00000000", "db> "),
                    end.lastLines().subList(end.lastLines().size() - 6, end.lastLines().size()), "in chunks of " + chunk);
        }
    }

    @Test
    void whatIsShownCannotHarmATerminal() {
        assertEquals(List.of("red plain", "finished", "prompt? "), watch(2, "\033]0;title\007\033[31mred\033[0m \000\007plain\r\n"
                + "10%\r20%\rfinished\r\n\r\n\r\nprompt? ").lastLines());
        VmAutoInstall.ConsoleWatcher hostile = watch(2, "STEP 1: \u009b31m\u202eevil\033[2J\007\033]52;c;aGk=\007\n"
                + "\033[\033[31mnested \u0085\u009d0;x\u009c a\bb\n");
        assertEquals("step 1 (?evil)", hostile.where);
        String shown = String.join("|", hostile.lastLines());
        assertFalse(shown.matches("(?s).*[\\p{Cc}\\p{Cf}].*"), shown);
    }

    @Test
    void aFloodCostsNeitherMemoryNorTime() {
        long start = System.nanoTime();
        for (String flood : List.of("x".repeat(1_000_000), "a: ".repeat(300_000), "\r.".repeat(300_000), "\033[".repeat(300_000))) {
            VmAutoInstall.ConsoleWatcher huge = watch(2, flood + "\r\nSTEP 4: after it\r\n" + "y\n".repeat(100));
            assertEquals("step 4 (after it)", huge.where);
            assertEquals(15, huge.lastLines().size());
            assertTrue(watch(2, flood).lastLines().stream().allMatch(line -> line.length() < 5000));
        }
        assertTrue(System.nanoTime() - start < 20e9, "6 MB in 20 s, on any machine");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            login: panic: vm_fault: fault on\\r\\ncpuid = 0\\r\\n           | the kernel panicked: panic: vm_fault: fault on
            panic: a\\r\\nda0: a message between\\r\\ncpuid = 1\\r\\n          | the kernel panicked
            panic: a\\r\\ncpuuid = 1\\r\\nTrace beginning at frame 0xf\\r\\n  | the kernel panicked
            Fatal trap 12: page fault\\r\\ncpuid = 0; lapic->id = 0\\r\\n   | the kernel panicked: Fatal trap 12: page fault
            \\r\\nDebugger("panic")\\r\\n                                   | the kernel panicked
            Automatic reboot in 15 seconds - press a key\\r\\n            | the kernel panicked
            Stopped at      Debugger+0x7c:  movb $0\\r\\ndb>\\s             | debugger
            Root mount failed: 6\\r\\n\\r\\nManual root filesystem specification:\\r\\n | root file system
            mountroot>\\s                                                 | root file system
            mountroot>\\spanic: Root mount failed, startup aborted.\\r\\ncpuid = 0\\r\\n | root file system
            init: not found in path /sbin/init:/sbin/oinit\\r\\n          | no init
            Automatic file system check failed; help!\\r\\n               | fsck
            ERROR: ABORTING BOOT (sending SIGTERM to parent)!\\r\\n       | single-user
            Mounting /etc/fstab filesystems failed; startup aborted\\r\\n | fstab
            Mounting root filesystem rw failed; startup aborted\\r\\n     | fstab
            Enter full pathname of shell or RETURN for /bin/sh:           | single-user
            The operating system has halted.\\r\\n                        | halted
            Please press any key to reboot.\\r\\n                         | halted
            acpi0: power-off failed - timeout\\r\\n                       | ACPI
            acpi0: AcpiEnterSleepState failed - AE_BAD\\r\\n              | ACPI
            giving up on 3 buffers\\r\\n                                  | write
            DragonFly boot\\n0:ad(0,a)/loader:\\s                         | loader
            can't load 'kernel'\\r\\n                                     | cannot load the kernel
            boot: no bootable kernel\\r\\n                                 | cannot load the kernel
            menu: can't find 'kernel'\\r\\n                                | cannot load the kernel
            Type '?' for a list of commands.\\r\\nOK\\s                     | back at its prompt
            login:\\s                                                     | the phase script was skipped
            PHASE 2 FAILED: update the packages\\r\\n                     | gave up: update the packages
            DONE WITH PHASE 3.\\r\\n                                      | the script of phase 3
            """)
    void everyKnownFailureIsSeen(String console, String cause) {
        String text = console.replace("\\r", "\r").replace("\\n", "\n").replace("\\s", " ");
        for (int chunk = 1; chunk <= 40; chunk++) {
            VmAutoInstall.ConsoleWatcher watcher = watch(2, text.getBytes(UTF_8), chunk, new ArrayList<>());
            assertEquals(1, watcher.failure.exitCode, watcher.failure.getMessage());
            assertTrue(watcher.failure.getMessage().contains(cause), watcher.failure.getMessage());
        }
    }

    /** A false alarm would end an installation that works. */
    @ParameterizedTest
    @ValueSource(strings = {"panic: runtime error: index out of range\n\ngoroutine 1 [running]:\n", "panic: said a program\ndb> ",
        "Unable to load /kernel/ehci\r\nEHCI autoload failed - no such file or directory\r\n", "db> ",
        "Root mount failed: 6\r\nMounting root from cd9660:acd0\r\nStarting file system checks:\r\n", "Rebooting...\n", "cpuid = 1\n",
        "Can't work out which disk we are booting from.\r\nGuessed BIOS device 0x0 not found by probes, defaulting to disk0:\r\n",
        "/dev/da0s1a: UNEXPECTED INCONSISTENCY; RUN fsck_ufs MANUALLY.\nFile system preen failed, trying fsck -y.\n",
        "debug.debugger_on_panic: 1 -> 0\r\n", "STEP 2: x\nOK ", "STEP 2: x\nlogin: shell changed\n",
        "STEP 2: x\nFix can't load 'kernel' on some boards\n", "STEP 2: x\ninitdb failed; startup aborted\n", "STEP 2: x\nmountroot> ",
        "STEP 2: x\nManual root filesystem specification:\n", "STEP 2: x\nsee PHASE 3 FAILED: in the log\n", "power-off failed\n", "cpdup: /mnt/boot/loader: ", "Last login: ", "it is OK ", "login",
        "Setting hostname: x.\r\n# Automatic file system check failed\r\n"})
    void whatAHealthyBootMayPrintIsNoFailure(String console) {
        for (int chunk = 1; chunk <= 40; chunk++) {
            assertNull(watch(2, console.getBytes(UTF_8), chunk, new ArrayList<>()).failure);
        }
    }

    @Test
    void aPromptCountsOnceTheConsoleIsQuiet() {
        VmAutoInstall.ConsoleWatcher watcher = watcher(2, step -> { });
        watcher.feed("STEP 1: look\nDragonFly/x86_64 (x) (ttyd0)\n\nlogin: ".getBytes(UTF_8), 0);
        assertNull(watcher.failure, "it may be the beginning of a panic's line");
        pause(watcher);
        assertTrue(watcher.failure.getMessage().contains("without DONE or FAILED"), watcher.failure.getMessage());
    }

    /** What a real DragonFly printed: test/console/README.md. The cause's beginning, or "done", or nothing to report. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            cd-boot-to-login.log              | 1 | the phase script was skipped: Looking for pfi.conf on 
            phase1.log                        | 1 | done
            phase2.log                        | 2 | done
            phase3.log                        | 3 | done
            phase1-two-cds-only.log           | 1 | done
            phase1-blind-no-typing.log        | 1 | done
            phase1-failed-no-network-card.log | 1 | its script gave up: look at the machine: no network interface vtnet0
            phase1-not-executable.log         | 1 | the phase script was skipped: Looking for pfi.conf on /dev/
            phase-panic-ddb.log               | 1 | the kernel panicked: panic: sysctl_debug_panic
            panic-ddb.log                     | 3 | the kernel panicked: panic: sysctl_debug_panic
            panic-reboot.log                  | 3 | the kernel panicked: panic: sysctl_debug_panic
            mountroot-prompt.log              | 1 | the kernel cannot mount its root file system
            mountroot-disk.log                | 2 | the kernel cannot mount its root file system
            loader-no-kernel.log              | 1 | the loader cannot load the kernel: can't load 'kernel'
            loader-no-kernel-autoboot.log     | 1 | the loader cannot load the kernel
            loader-missing-modules.log        | 2 |
            disk-boot.log                     | 0 | done
            single-user.log                   | 0 | done
            fsck-after-kill.log               | 0 | done
            shutdown-p-now.log                | 2 | the guest powered off, but its script did not report DONE
            acpi-poweroff.log                 | 2 | the guest powered off, but its script did not report DONE
            halt.log                          | 2 | the guest halted without powering off
            boot2-hang-after-kill.log         | 2 |
            """)
    void aRealConsoleGivesTheRightAnswer(String log, int phase, String answer) throws IOException {
        byte[] bytes = Files.readAllBytes(Path.of("test/console").resolve(log));
        Random random = new Random(20);
        for (int turn = 0; turn < 10; turn++) {
            VmAutoInstall.ConsoleWatcher watcher = watcher(phase, step -> { });
            for (int from = 0, to; from < bytes.length; from = to) { // whole, byte by byte, then cut at random places
                to = turn == 0 ? bytes.length : Math.min(bytes.length, from + (turn == 1 ? 1 : 1 + random.nextInt(4000)));
                watcher.feed(Arrays.copyOfRange(bytes, from, to), 0);
                watcher.keys();
                if (turn == 1 && "done".equals(answer) && !log.equals("single-user.log")) {
                    pause(watcher); // a healthy guest may be slow anywhere
                    assertNull(watcher.failure, log + " at byte " + to);
                }
            }
            if (watcher.stage != VmAutoInstall.Stage.OFF) {
                pause(watcher);
            }
            String seen = watcher.failure != null ? watcher.failure.getMessage() : watcher.done ? "done" : "";
            if (watcher.stage == VmAutoInstall.Stage.OFF || log.equals("phase1-blind-no-typing.log")) { // the screen shows its power-off
                VmAutoInstall.VmException verdict = watcher.end("guest-shutdown", 0);
                seen = verdict == null ? "done" : verdict.getMessage();
            }
            assertTrue(answer == null ? seen.isEmpty() : seen.startsWith(answer), log + ", turn " + turn + ": " + seen);
        }
    }

    @Test
    void theSingleUserPromptIsSeenWhileItStands() throws IOException {
        String log = Files.readString(Path.of("test/console/single-user.log"), ISO_8859_1);
        String prompt = "Enter full pathname of shell or RETURN for /bin/sh: ";
        VmAutoInstall.ConsoleWatcher watcher = watch(0, log.substring(0, log.indexOf(prompt) + prompt.length()));
        assertEquals("the guest went to single-user mode", watcher.failure.getMessage());
    }

    @Test
    void aLoginPromptSaysWhatWentWrong() {
        String nothing = "Starting pfi...\r\nLooking for pfi.conf on /dev/cd0... not found\r\n\r\nlogin: ";
        assertTrue(watch(2, nothing).failure.getMessage().endsWith("skipped: Looking for pfi.conf on /dev/cd0... not found"));
        assertTrue(watch(1, KERNEL + "\r\nlogin: ").failure.getMessage().endsWith("skipped: Looking for pfi.conf on /dev/cd1... /dev/cd1 ok... found!"));
        String getty = "\r\nDragonFly/x86_64 (Amnesiac) (ttyd0)\r\n\r\nlogin: ";
        assertTrue(watch(1, KERNEL + SCRIPT + getty).failure.getMessage().contains("without DONE or FAILED"));
        assertTrue(watch(1, KERNEL + SCRIPT + getty + "vtnet0: link\r\n").failure.getMessage().contains("without DONE or FAILED"));
        assertNull(watch(1, KERNEL + SCRIPT + "\r\nlogin: ").failure, "a program may print that");
        assertNull(watch(1, KERNEL + SCRIPT + "DONE WITH PHASE 1.\r\nlogin: ").failure, "the shutdown may come a little later");
        assertNull(watch(1, KERNEL + "STEP 2: forbid root to login: with a password\r\nLast login: never\r\n").failure);
        VmAutoInstall.ConsoleWatcher without = watch(0, KERNEL + "Welcome to DragonFly!\r\n\r\nlogin: ");
        assertTrue(without.done && without.failure == null, "a boot without a script is meant to end there");
    }

    @Test
    void hintsExplainAFailure() {
        VmAutoInstall.ConsoleWatcher watcher = watch(2, "STEP 3: upgrade\npkg: lua script failed\n"
                + "No active remote repositories configured.\nmirror gone\n\n"
                + "PHASE 2 FAILED: upgrade\n");
        assertEquals("its script gave up: upgrade: mirror gone "
                + "(pkg has no repository configured; pkg's upgrade of itself failed in a lua script)", watcher.failure.getMessage());
        assertEquals("step 3 (upgrade)", watcher.where);
        assertEquals("the phase script", watch(2, "PHASE 2 FAILED: without a step\n").where);
        String mended = "pkg: lua script failed\nNo active remote repositories configured.\nSTEP 4: go on\n";
        assertNull(watch(2, mended).failure, "phase 2 mends both");
    }

    @Test
    void theLoaderIsAnsweredAndNotTypedAt() {
        VmAutoInstall.ConsoleWatcher watcher = watcher(1, step -> { });
        String said = "";
        for (String[] turn : new String[][] {{"", ""}, {LOADER, "9"}, {"\rBooting in 9 seconds... 9\r\nType '?' for a list\r\n", ""},
            {"OK ", "set console=comconsole\r"}, {"set console=comconsole\r\n", ""}, {"OK ", "boot\r"}, {"boot\r\nOK ", ""}}) {
            assertEquals(!said.endsWith("boot\r"), watcher.awaitsLoader());
            watcher.feed(turn[0].getBytes(UTF_8), 0);
            assertEquals(turn[1], watcher.keys(), "after " + turn[0]);
            assertEquals("", watcher.keys(), "nothing is typed twice");
            said += turn[1];
        }
        assertEquals("", watch(2, LOADER).keys(), "an installed disk needs no typing");
    }

    @Test
    void aPhaseSucceedsByItsMarkFollowedByPowerOffOnly() {
        VmAutoInstall.ConsoleWatcher good = watch(1, KERNEL + SCRIPT + END);
        assertNull(good.end("guest-shutdown", 0));
        assertNull(good.end(null, 0), "the event may be lost, the console has seen the power-off");
        assertEquals(1, good.end("guest-reset", 0).exitCode);
        assertEquals(69, good.end("host-signal", 0).exitCode);
        assertTrue(good.end(null, 137).getMessage().contains("signal 9"));
        VmAutoInstall.ConsoleWatcher unfinished = watch(1, KERNEL + SCRIPT + END.replace("DONE", "DUNE"));
        assertTrue(unfinished.end("guest-shutdown", 0).getMessage().contains("did not report DONE"));
        VmAutoInstall.ConsoleWatcher cut = watch(1, KERNEL + SCRIPT + "DONE WITH PHASE 1.\n");
        assertEquals(69, cut.end(null, 0).exitCode, "no power-off was seen");
    }

    @Test
    void aGuestThatIsSilentOrSlowFails() {
        VmAutoInstall.ConsoleWatcher silent = watcher(2, step -> { });
        silent.feed(KERNEL.getBytes(UTF_8), 10);
        silent.feed(new byte[0], 609);
        assertNull(silent.failure);
        silent.feed(new byte[0], 611);
        assertEquals("124 its console has been silent for 10m0s", silent.failure.exitCode + " " + silent.failure.getMessage());
        assertFalse(silent.hasFailedFor(2));
        silent.feed(new byte[0], 614);
        assertTrue(silent.hasFailedFor(2));

        VmAutoInstall.ConsoleWatcher slow = watcher(2, step -> { });
        for (int minute = 0; minute <= 60; minute++) {
            slow.feed("Fetching go\r\n".getBytes(UTF_8), 60 * minute);
            assertNull(slow.failure);
        }
        slow.feed("Fetching go\r\n".getBytes(UTF_8), 3601);
        assertEquals("124 it did not end within 60m0s", slow.failure.exitCode + " " + slow.failure.getMessage());
    }

    /** The loader's menu boots by itself, and then nothing may come before the phase script, which writes to the serial line. */
    @Test
    void aLoaderThatIsNotHeardIsNoFailure() {
        List<String> seen = new ArrayList<>();
        VmAutoInstall.ConsoleWatcher blind = watcher(1, seen::add);
        blind.feed(new byte[0], 119);
        assertEquals(List.of(), seen);
        blind.feed(new byte[0], 121);
        blind.feed(new byte[0], 3599);
        assertTrue(seen.get(0).contains("waiting, because") && seen.size() == 1 && blind.failure == null, seen.toString());
        blind.feed(new byte[0], 3601);
        assertTrue(blind.failure.getMessage().endsWith("(the boot loader did not answer on the serial line)"));

        VmAutoInstall.ConsoleWatcher byHand = new VmAutoInstall.ConsoleWatcher(VmAutoInstall.Purpose.CHECK_BY_HAND, Duration.ofMinutes(60), seen::add);
        byHand.feed(new byte[0], 119);
        assertNull(byHand.failure);
        byHand.feed(new byte[0], 121);
        assertEquals("the kernel printed nothing on the serial console: did setup.sh run?", byHand.failure.getMessage());
    }

    @Test
    void anOptionThatACommandWouldIgnoreIsRefused() {
        assertEquals(2, run("--memory", "4G", "by-hand"));
        says("--memory belongs after by-hand");
        assertEquals(2, run("--force", "clean-phases"));
        says("--force belongs after clean-phases");
        assertEquals(0, run("--vm-name", "other", "clean-phases"), "that one is every command's");
    }

    // The CD.

    private Path script(String name, String text) throws IOException {
        Path script = Files.writeString(tmp.resolve(name), text);
        return Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
    }

    /** Name to mode and content, as Rock Ridge has them. */
    private static Map<String, String> list(byte[] iso) {
        ByteBuffer image = ByteBuffer.wrap(iso).order(ByteOrder.LITTLE_ENDIAN);
        int at = image.getInt(0x8000 + 156 + 2) * 2048;
        int end = at + image.getInt(0x8000 + 156 + 10);
        Map<String, String> files = new TreeMap<>();
        for (; at < end && image.get(at) != 0; at += image.get(at) & 0xff) {
            String name = "";
            int mode = 0;
            int nameLength = image.get(at + 32) & 0xff;
            int next = at + (image.get(at) & 0xff);
            for (int field = at + 33 + nameLength + (nameLength + 1) % 2; field + 4 < next; field += image.get(field + 2) & 0xff) {
                String kind = new String(iso, field, 2, ISO_8859_1);
                mode = kind.equals("PX") ? image.getInt(field + 4) : mode;
                name = kind.equals("NM") ? name + new String(iso, field + 5, (image.get(field + 2) & 0xff) - 5, ISO_8859_1) : name;
                if (image.get(field + 2) == 0) {
                    break;
                }
            }
            if (!name.isEmpty()) {
                String recorded = new String(iso, at + 33, nameLength, ISO_8859_1);
                files.put(name, Integer.toOctalString(mode) + " " + recorded + " "
                        + new String(iso, image.getInt(at + 2) * 2048, image.getInt(at + 10), ISO_8859_1));
            }
        }
        return files;
    }

    @Test
    void theKernelOfTheGuestTakesTheCdsRockRidge() throws IOException {
        byte[] conf = "A=b\n".getBytes(UTF_8);
        SortedMap<String, byte[]> data = new TreeMap<>(Map.of("authorized_keys", "k\n".getBytes(UTF_8), "vm.conf", conf));
        SortedMap<String, byte[]> disc = VmAutoInstall.PhaseDisc.of(script("phase1-install.sh", "#!/bin/sh\ntrue\n"), data);
        ByteArrayOutputStream talk = new ByteArrayOutputStream();
        PrintStream stdout = System.out;
        System.setOut(new PrintStream(talk, true, UTF_8));
        Path iso;
        try {
            iso = VmAutoInstall.PhaseDisc.write(tmp.resolve("a b,'\u00e9.iso"), disc);
        } finally {
            System.setOut(stdout);
        }
        assertEquals("", talk.toString(UTF_8), "stdout is for the answer");
        byte[] bytes = Files.readAllBytes(iso);
        String text = new String(bytes, ISO_8859_1);
        int er = text.indexOf("ER", text.indexOf("RRIP_1991A") - 8);
        assertEquals("RRIP_1991A", text.substring(er + 8, er + 8 + (bytes[er + 4] & 0xff)), "the ER field's identifier");
        assertEquals(1, bytes[er + 7], "its extension version");
        assertFalse(text.contains("IEEE"));
        assertEquals(Map.of("pfi.conf", "100444 PFI.CONF;1 pfi_script=phase1.sh\n", "phase1.sh", "100555 PHASE1.SH;1 #!/bin/sh\ntrue\n",
                "authorized_keys", "100444 AUTHORIZED_KEYS.;1 k\n", "vm.conf", "100444 VM.CONF;1 A=b\n"), list(bytes));
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(iso)));
        try (Stream<Path> left = Files.list(tmp)) {
            assertEquals(2, left.count(), "the script and the ISO");
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            phase1-x.sh     | \\r\\n | rwxr-xr-x | vm.conf      | CR line ends
            phase2-x.sh     | \\n    | rw-r--r-- | vm.conf      | 0
            mine            | \\n    | rwxr-xr-x | vm.conf      | 0
            mine.sh         | \\n    | rwxr-xr-x | pfi.conf     | must not be among the data files
            phase1-x.sh     | \\n    | rwxr-xr-x | phase1.sh    | must not be among the data files
            mine.sh         | \\n    | rwxr-xr-x | script.sh    | must not be among the data files
            mine.sh         | \\n    | rwxr-xr-x | Upper        | the name Upper does not fit
            mine.sh         | \\n    | rwxr-xr-x | two.dots.sh  | the name two.dots.sh does not fit
            mine.sh         | \\n    | rwxr-xr-x | sp ace       | the name sp ace does not fit
            mine.sh         | \\n    | rwxr-xr-x | min-us       | the name min-us does not fit
            mine.sh         | \\n    | rwxr-xr-x | \u00e9       | does not fit
            mine.sh         | \\n    | rwxr-xr-x | a234567890123456789012345678901 | at most 30
            mine.sh         | \\n    | rwxr-xr-x | directory/x  | must be a directory of plain files
            phase1 twice.sh | \\n    | rwxr-xr-x | vm.conf      | 0
            """)
    void whatCannotWorkInTheGuestIsRefused(String script, String end, String mode, String data, String message) throws IOException {
        Path file = script(script, "#!/bin/sh" + end.replace("\\r", "\r").replace("\\n", "\n"));
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString(mode));
        Files.createDirectories(tmp.resolve("data/" + data).getParent());
        Files.writeString(tmp.resolve("data/" + data), "x");
        Path iso = tmp.resolve("out.iso");
        boolean fits = message.equals("0");
        assertEquals(fits ? 0 : 2, run("make-iso", file.toString(), iso.toString(), tmp.resolve("data").toString()));
        assertEquals(fits, Files.exists(iso));
        if (!fits) {
            says(message);
            assertEquals(1, last.err().lines().count(), last.err());
            assertFalse(Files.exists(vmDir()), "nothing is made");
        }
    }

    // Command line and settings.

    @Test
    void aDirectoryThatOthersCanChangeIsRefused() throws IOException {
        phaseScripts();
        Path script = script("mine.sh", "#!/bin/sh\n");
        for (Path refused : List.of(Guest.foreignDirectory(tmp), Guest.openDirectory(tmp.resolve("open"), "rwxrwxr-x"))) {
            for (List<String> command : List.of(List.of("--yes"), List.of("provision"), List.of("clean-phases"),
                    List.of("make-iso", script.toString(), tmp.resolve("out.iso").toString()),
                    List.of("run-phase", "1", script.toString(), "--dry-run"))) {
                assertEquals(69, run(Map.of("VM_DIR", refused.toString()), Map.of(), command.toArray(String[]::new)), command.toString());
                says(refused + " belongs to " + Files.getOwner(refused).getName() + " and has the mode 7", "chmod go-w");
            }
        }
        assertEquals(0, tmp.resolve("open").toFile().list().length);
        assertFalse(Files.exists(tmp.resolve("out.iso")));
    }

    @Test
    void whereNothingWasInstalledThereIsNothingToClean() {
        assertEquals(0, run("clean-phases"));
        assertFalse(Files.exists(vmDir()));
    }

    private int run(Map<String, String> environment, Map<String, String> file, String... args) {
        Map<String, String> settings = new TreeMap<>(Map.of("VM_DIR", vmDir().toString(), "VM_ACCEL", "tcg",
                "VM_PHASES", tmp.resolve("phases").toString()));
        settings.putAll(environment);
        last = Script.call(VmAutoInstall.commandLine(new VmAutoInstall.Settings().add(file, "vm.env").add(settings, "the environment")), args);
        return last.exitCode();
    }

    private int run(String... args) {
        return run(Map.of(), Map.of(), args);
    }

    private void says(String... parts) {
        last.says(parts);
    }

    /** With all that a path can hold. */
    private Path vmDir() {
        return tmp.resolve("vm d,ir's \"\u00e9");
    }

    private Path install(String file) {
        return vmDir().resolve("dfly-vm.install").resolve(file);
    }

    private List<String> installFiles() throws IOException {
        try (Stream<Path> files = Files.list(install(""))) {
            return files.map(file -> file.getFileName().toString()).sorted().toList();
        }
    }

    private void phaseScripts() throws IOException {
        Files.createDirectories(tmp.resolve("phases"));
        for (String script : VmAutoInstall.SCRIPTS) {
            script("phases/" + script, "#!/bin/sh\n# " + script + "\n");
        }
    }

    private void installer() throws IOException {
        Files.createDirectories(vmDir());
        VmAutoInstall.PhaseDisc.write(vmDir().resolve("dfly-6.4.2.iso"), new TreeMap<>(Map.of("a", "a".getBytes(UTF_8))));
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            VM_NAME         | ../evil
            VM_NAME         | -x
            VM_NAME         | x-clean
            DFLY_VERSION    | 6/4
            VM_DISK_SIZE    | 20
            VM_MEMORY       | lots
            VM_CPUS         | 0
            VM_CPUS         | many
            VM_ACCEL        | xen
            VM_DPORTS_CLONE | maybe
            VM_TIME_LIMIT   | -5m
            VM_TIME_LIMIT   | 90
            VM_TIME_LIMIT   | 0m
            VM_QEMU_ARGS    | -fw_cfg 'open
            """)
    void aBadValueIsNamedByItsVariable(String variable, String value) {
        assertEquals(2, run(Map.of(variable, value), Map.of()));
        assertTrue(last.err().startsWith("vm-auto-install: "), last.err());
        says(variable);
        assertEquals(1, last.err().lines().count(), last.err());
        assertEquals(2, run(Map.of("VM_ACCEL", ""), Map.of(variable, value)), "from vm.env");
        assertFalse(Files.exists(vmDir()), "nothing is made");
    }

    @Test
    void theCommandLineIsStrict() throws IOException {
        assertEquals(2, run("--forse"));
        says("--force");
        assertEquals(2, run("--from", "3", "--to", "2"));
        assertEquals(2, run("--to", "4"));
        assertEquals(2, run("run-phase", "4", "x.iso"));
        assertEquals(2, run("make-iso", "/nowhere/x.sh", tmp.resolve("o.iso").toString()));
        String mine = script("mine.sh", "#!/bin/sh\n").toString();
        Files.createDirectories(install(""));
        for (String out : List.of("/nowhere/o.iso", tmp.toString(), install("o.iso").toString())) {
            assertEquals(2, run("make-iso", mine, out));
            says("cannot write the CD to " + out);
        }
        for (String ignored : List.of("make-iso a.sh b.iso --memory=4G", "run-phase 1 a.iso --phases=x", "provision --disk-size=9G",
                "clean-phases --accel=tcg")) {
            assertEquals(2, run(ignored.split(" ")));
            says("Unknown option: '--", "; see: vm-auto-install ");
        }
        assertEquals(List.of(), installFiles(), "nothing is made");
    }

    @Test
    void whatIsMissingIsSaid() throws IOException {
        assertEquals(69, run());
        says("phases", "phase2-update.sh");
        phaseScripts();
        for (String[] command : new String[][] {{}, {"by-hand"}}) {
            assertEquals(69, run(command));
            says("the installer ISO " + vmDir().resolve("dfly-6.4.2.iso") + " is missing: run vm-setup");
            assertEquals(69, run(Map.of("VM_IMAGE", "dfly.iso.bz2"), Map.of(), command), "vm-setup unpacks it");
            says(vmDir().resolve("dfly-6.4.2.iso") + " is missing: run vm-setup");
        }
        Files.createDirectories(vmDir());
        Files.writeString(vmDir().resolve("dfly-6.4.2.iso"), "<html>not found</html>");
        assertEquals(69, run());
        says("not an ISO");
        assertEquals(69, run("provision"));
        says("there is no VM dfly-vm");
        installer();
        assertEquals(69, run("run-phase", "2", vmDir().resolve("dfly-6.4.2.iso").toString()));
        says("phase 1");
        assertEquals(69, run("--from", "3"));
    }

    @Test
    void aDryRunPrintsAndDoesNothing() throws IOException {
        phaseScripts();
        installer();
        assertEquals(0, run("make-iso", tmp.resolve("phases/phase1-install.sh").toString(), tmp.resolve("p1.iso").toString()));
        Map<String, String> more = Map.of("VM_QEMU_ARGS", "-fw_cfg 'name=a b'");
        assertEquals(0, run(more, Map.of(), "run-phase", "1", tmp.resolve("p1.iso").toString(), "--dry-run"));
        List<String> lines = last.out().lines().toList();
        assertTrue(lines.get(0).startsWith("qemu-img create ") && lines.get(0).endsWith(" 40G"), lines.get(0));
        assertTrue(lines.get(1).startsWith("qemu-system-x86_64 ") && lines.get(1).endsWith("-fw_cfg 'name=a b'"), lines.get(1));
        assertFalse(Files.exists(install("phase1.qcow2.part")));
        assertFalse(Files.exists(install("phase1.log")));
    }

    @Test
    void theMachineIsTheOneTheScriptsExpect() {
        VmAutoInstall.MachineOptions machine = new VmAutoInstall.MachineOptions();
        CommandLine.populateCommand(machine, "--accel", "tcg", "--memory", "2G", "--cpus", "3", "--qemu-args", "-more");
        Path odd = Path.of("/a,b 'c\"/d:e");
        List<String> phase1 = qemu(machine, odd.resolve("disk"), List.of(odd.resolve("i"), odd, odd), Path.of("/q,q"), 0, false);
        assertEquals("-more", phase1.get(phase1.size() - 1));
        assertTrue(String.join(" ", phase1).contains(" -accel tcg,thread=single -cpu qemu64 -m 2G -smp 3 "),
                "a thread for each processor would make an emulated DragonFly stand still: " + phase1);
        machine.cpus = null;
        assertTrue(String.join(" ", qemu(machine, odd, List.of(), odd, 0, false)).contains(" -accel tcg -cpu qemu64 -m 2G -smp 1 "));
        assertTrue(phase1.containsAll(List.of("-no-reboot", "virtio-net-pci,netdev=net0,romfile=", "user,id=net0",
                "scsi-hd,drive=disk0,bus=scsi0.0,bootindex=1", "ide-cd,drive=cd0,bus=ide.0,unit=0,bootindex=0",
                "ide-cd,drive=cd1,bus=ide.0,unit=1", "ide-cd,drive=cd2,bus=ide.1,unit=0",
                "driver=raw,read-only=on,node-name=cd0,file.driver=file,file.filename=/a,,b 'c\"/d:e/i",
                "socket,id=qmp0,server=on,wait=off,path=/q,,q", "-no-user-config", "-sandbox",
                "on,resourcecontrol=deny,obsolete=deny,elevateprivileges=deny,spawn=deny")), phase1.toString());
        String disk = phase1.stream().filter(word -> word.contains("=disk0,discard")).findFirst().orElseThrow();
        for (String part : List.of("file.filename=/a,,b 'c\"/d:e/disk", "detect-zeroes=unmap", "cache.no-flush=on")) {
            assertTrue(disk.contains(part), disk);
        }
        List<String> byHand = qemu(machine, odd, List.of(odd, odd, odd), odd, 0, true);
        assertTrue(byHand.containsAll(List.of("unix:by-hand.vnc", "scsi-hd,drive=disk0,bus=scsi0.0,bootindex=0",
                "ide-cd,drive=cd0,bus=ide.0,unit=0,bootindex=1")), byHand.toString());
        assertFalse(byHand.contains("-no-reboot"), byHand.toString());
        machine.qemuArgs = "-sandbox off";
        String own = String.join(" ", qemu(machine, odd, List.of(), odd, 0, false));
        assertTrue(own.endsWith("-sandbox off") && !own.contains("-sandbox on"), "two would both hold: " + own);
        assertTrue(qemu(machine, odd, List.of(odd), odd, 0, false).containsAll(List.of(
                "scsi-hd,drive=disk0,bus=scsi0.0,bootindex=0", "ide-cd,drive=cd0,bus=ide.0,unit=0")));
        assertTrue(qemu(machine, odd, List.of(), odd, 2345, false).contains("user,id=net0,hostfwd=tcp:127.0.0.1:2345-:22"));
        assertEquals(List.of("qemu-img", "create", "-q", "-f", "qcow2", "-b", "phase2.qcow2", "-F", "qcow2", "/v/p"),
                VmAutoInstall.Disk.createCommand(Path.of("/v/p"), "9G", Path.of("/v/phase2.qcow2")));
    }

    private static List<String> qemu(VmAutoInstall.MachineOptions machine, Path disk, List<Path> cds, Path qmp, int port, boolean byHand) {
        return VmAutoInstall.Qemu.command(machine, "x", disk, cds, qmp, port, byHand);
    }

    @Test
    void keysAreMadeOnceAndForTheirOwnerAlone() throws IOException {
        phaseScripts();
        Path iso = tmp.resolve("p.iso");
        String script = tmp.resolve("phases/phase3-provision.sh").toString();
        assertEquals(0, run("make-iso", script, iso.toString()));
        assertEquals(iso + "\n", last.out());
        Map<String, String> first = list(Files.readAllBytes(iso));
        assertEquals(List.of("authorized_keys", "hostkey", "hostkey.pub", "pfi.conf", "phase3.sh", "vm.conf"), List.copyOf(first.keySet()));
        String password = Files.readString(vmDir().resolve("dfly-vm.ssh/root_password")).strip();
        assertTrue(password.matches("[0-9a-z]{20,25}"));
        assertTrue(first.get("vm.conf").contains("\nVM_ROOT_PASSWORD=" + password + "\n"), first.get("vm.conf"));
        assertTrue(first.get("vm.conf").contains("VM_HOSTNAME=dfly-vm\n"), first.get("vm.conf"));
        assertTrue(Files.readString(vmDir().resolve("dfly-vm.ssh/known_hosts")).startsWith("dfly-vm ssh-ed25519 AAAA"));
        for (String secret : List.of("id_ed25519", "host_key", "root_password")) {
            Path file = vmDir().resolve("dfly-vm.ssh").resolve(secret);
            assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file)));
        }
        Files.delete(vmDir().resolve("dfly-vm.ssh/host_key")); // what a kill may leave: half a pair
        assertEquals(0, run("make-iso", script, iso.toString()));
        Map<String, String> second = list(Files.readAllBytes(iso));
        assertEquals(first.get("authorized_keys"), second.get("authorized_keys"));
        assertFalse(first.get("hostkey.pub").equals(second.get("hostkey.pub")));
        Files.createDirectories(tmp.resolve("data/directory"));
        assertEquals(2, run("make-iso", script, iso.toString(), tmp.resolve("data").toString()));
        assertEquals(second, list(Files.readAllBytes(iso)), "a refused one changes nothing");
    }

    // Which phase is next.

    private static VmAutoInstall.Phase phase(int number, String script) {
        return new VmAutoInstall.Phase(number, null, new TreeMap<>(Map.of("its script", script)));
    }

    @Test
    void theFirstChangedPhaseIsNext() throws Exception {
        List<VmAutoInstall.Phase> phases = List.of(phase(1, "a"), phase(2, "b"), phase(3, "c"));
        VmAutoInstall.Installation made = new VmAutoInstall.Installation(new VmAutoInstall.VmFiles(vmDir(), "dfly-vm"));
        assertEquals(new VmAutoInstall.Start(1, "it was not done yet"), made.firstChange(phases, "phase"));
        recordPhase(1, "its script=a\n");
        recordPhase(2, "its script=b\n");
        assertEquals(new VmAutoInstall.Start(3, "it was not done yet"), made.firstChange(phases, "phase"));
        assertEquals(new VmAutoInstall.Start(1, "it was not done yet"), made.firstChange(phases, "installed"));
        recordPhase(3, "its script=c\n");
        assertEquals(new VmAutoInstall.Start(4, ""), made.firstChange(phases, "phase"));
        recordPhase(3, "its script=x\n");
        assertEquals(new VmAutoInstall.Start(3, "changed since: its script"), made.firstChange(phases, "phase"));
        phases.get(0).inputs().put("VM_DISK_SIZE", "40G");
        recordPhase(1, "its script=x\nVM_DISK_SIZE=9G\ngone=1\n");
        VmAutoInstall.Start changed = new VmAutoInstall.Start(1, "changed since: VM_DISK_SIZE (9G -> 40G), gone, its script");
        assertEquals(changed, made.firstChange(phases, "phase"));
        Files.writeString(vmDir().resolve("dfly-vm-clean.qcow2"), "");
        Files.move(install("phase1.inputs"), install("installed1.inputs"));
        assertEquals(changed, made.firstChange(phases, "installed"), "the installed VM has a record of its own");
    }

    /** A finished phase: its disk, which is empty here, and the record of its inputs. */
    private void recordPhase(int number, String inputs) throws IOException {
        Files.createDirectories(install(""));
        Files.writeString(install("phase" + number + ".qcow2"), "");
        Files.writeString(install("phase" + number + ".inputs"), inputs);
    }

    @Test
    void theRecordOfAnEarlierVersionIsRecognised() throws IOException {
        phaseScripts();
        installer();
        Files.createDirectories(install(""));
        Files.writeString(install("install.json"), "{\"phases\": {\"1\": {\"inputs\": {}}}, \"installed\": {\"version\": \"1\"}}");
        for (String[] command : new String[][] {{}, {"by-hand"}, {"clean-phases", "--disks"}}) {
            assertEquals(69, run(command));
            says(install("install.json") + " is of an earlier version", "The VM can be used as before. To install it again, remove this file first");
        }
        assertEquals(0, run("clean-phases"));
        assertEquals(List.of("install.json"), installFiles());
    }

    // The accelerator, and the script that finds it.

    /** A vm-setup that notes its arguments and VM_DIR, and records kvm for this QEMU. */
    private Path setup(String qemu, boolean kvm, int code) throws IOException {
        return script("my setup", "#!/bin/sh\necho \"$*\" >>'" + tmp.resolve("asked") + "'\n"
                + "echo '{\"name\": \"kvm\", \"reason\": \"measured\", \"qemu\": \"" + qemu + "\", \"kvm\": " + kvm
                + "}' >\"$4/accel.json\"\necho first\necho last\nexit " + code + "\n");
    }

    private VmAutoInstall.Accelerator accelerator(Path setup, Path kvm) throws IOException {
        return VmAutoInstall.accelerator("auto", vmDir(), "QEMU 1", setup == null ? null : List.of(setup.toString()), kvm);
    }

    @Test
    void theRecordedAcceleratorIsUsedAndVmSetupAskedOnlyWithoutOne() throws IOException {
        Files.createDirectories(vmDir());
        Path kvm = Files.createFile(tmp.resolve("kvm"));
        Path setup = setup("QEMU 1", true, 0);
        VmAutoInstall.Accelerator measured = new VmAutoInstall.Accelerator("kvm", "measured");
        for (String record : List.of("", "{", "{}", "{\"name\": \"x\", \"qemu\": \"QEMU 1\", \"kvm\": true}",
                "{\"name\": \"tcg\", \"reason\": \"old\", \"qemu\": \"QEMU 0\", \"kvm\": true}",
                "{\"name\": \"tcg\", \"reason\": \"old\", \"qemu\": \"QEMU 1\", \"kvm\": false}",
                "{\"name\": \"tcg\", \"reason\": \"old\", \"qemu\": \"QEMU 1\"}")) {
            Files.deleteIfExists(tmp.resolve("asked"));
            Files.writeString(vmDir().resolve("accel.json"), record);
            assertEquals(measured, accelerator(setup, kvm), record);
            assertEquals("check --accel --vm-dir " + vmDir() + "\n", Files.readString(tmp.resolve("asked")));
            assertEquals(measured, accelerator(setup, kvm), "and now it is recorded");
            assertEquals(measured, accelerator(null, kvm));
            assertEquals(1, Files.readAllLines(tmp.resolve("asked")).size());
        }
        assertEquals(new VmAutoInstall.Accelerator("tcg", "as set"),
                VmAutoInstall.accelerator("tcg", vmDir(), "", List.of(setup.toString()), kvm));
    }

    @Test
    void withoutARecordTheDeviceDecides() throws IOException {
        assumeTrue(System.getProperty("os.name").equals("Linux"), "KVM is Linux's");
        Files.createDirectories(vmDir());
        Path kvm = Files.createFile(tmp.resolve("kvm"));
        String measured = kvm + " can be opened; not measured: ";
        assertEquals(new VmAutoInstall.Accelerator("kvm", measured + "vm-setup check does that"), accelerator(null, kvm));
        Path none = tmp.resolve("none");
        assertEquals(new VmAutoInstall.Accelerator("tcg", none + " cannot be opened; not measured: vm-setup check does that"),
                accelerator(null, none));
        Path failing = setup("another QEMU", true, 9);
        assertEquals(new VmAutoInstall.Accelerator("kvm", measured + "'" + failing + "' ended with 9 (last)"), accelerator(failing, kvm));
        for (Path unfit : List.of(tmp.resolve("nowhere"), Files.createFile(tmp.resolve("not-executable")))) { // 127 and 126
            String reason = accelerator(unfit, kvm).reason();
            assertTrue(reason.startsWith(measured + unfit + " cannot be run (is it installed?") && reason.endsWith("; VM_SETUP_CMD names the command, "
                    + "such as 'jbang vm-setup@NAME'"), reason);
        }
    }

    @Test
    void phasesOfAnotherUserAreNotRun() throws IOException {
        Path below = Files.createDirectories(tmp.resolve("checkout/src"));
        phaseScripts();
        assertEquals(tmp.resolve("phases"), VmAutoInstall.nearestPhases(below));
        Files.createDirectories(tmp.resolve("checkout/phases")); // which holds none
        assertEquals(tmp.resolve("phases"), VmAutoInstall.nearestPhases(below));
        Path key = tmp.resolve("phases/phase3-provision.sh"); // a link would put another file of this host on the phase's CD
        Files.move(key, tmp.resolve("key"));
        Files.createSymbolicLink(key, tmp.resolve("key"));
        assertThrows(VmAutoInstall.VmException.class, () -> VmAutoInstall.nearestPhases(below));
        Files.move(tmp.resolve("key"), key, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
        for (Path opened : List.of(tmp.resolve("phases"), tmp.resolve("phases/phase2-update.sh"))) {
            Set<PosixFilePermission> mode = Files.getPosixFilePermissions(opened);
            Files.setPosixFilePermissions(opened, PosixFilePermissions.fromString("rwxrwxrwx"));
            VmAutoInstall.VmException refused = assertThrows(VmAutoInstall.VmException.class, () -> VmAutoInstall.nearestPhases(below));
            assertEquals(69, refused.exitCode);
            assertTrue(refused.getMessage().contains(" here or above (not " + tmp.resolve("phases") + ", because other users own it or can write to it): "
                    + "copy it"), refused.getMessage());
            Files.setPosixFilePermissions(opened, mode);
        }
    }

    @Test
    void anotherScriptIsFoundByItsSettingItsJarOrItsSource() throws IOException {
        String classPath = System.getProperty("java.class.path");
        Path below = Files.createDirectories(tmp.resolve("tools/project/src"));
        Path tools = tmp.resolve("tools");
        try {
            assertEquals(List.of("my setup", "-x"), VmAutoInstall.sibling("'my setup' -x", "VmSetup", below, below));
            assertEquals(null, VmAutoInstall.sibling(null, "VmSetup", below, below));

            Path source = Files.createFile(tools.resolve("VmSetup.java"));
            List<String> command = List.of("jbang", source.toString());
            Path elsewhere = Files.createDirectories(tmp.resolve("elsewhere"));
            assertEquals(command, VmAutoInstall.sibling(null, "VmSetup", tools, elsewhere));
            assertEquals(command, VmAutoInstall.sibling(" ", "VmSetup", below, elsewhere));
            for (Path project : List.of(tools, below, tmp, Files.createSymbolicLink(tmp.resolve("link"), tools))) {
                assertEquals(null, VmAutoInstall.sibling(null, "VmSetup", below, project), "a project's file is not run");
            }
            for (Path opened : List.of(source, tools)) {
                Set<PosixFilePermission> mode = Files.getPosixFilePermissions(opened);
                Files.setPosixFilePermissions(opened, PosixFilePermissions.fromString("rwxrwxrwx"));
                assertEquals(null, VmAutoInstall.sibling(null, "VmSetup", below, elsewhere), opened + " can be written by others");
                Files.setPosixFilePermissions(opened, mode);
            }
            Files.createFile(tools.resolve("project/VmSetup.java"));
            assertEquals(null, VmAutoInstall.sibling(null, "VmSetup", below, tools.resolve("project")), "a directory above may be the project's, too");

            System.setProperty("java.class.path", Files.createFile(tools.resolve("VmAutoInstall.jar")).toString());
            assertEquals(command, VmAutoInstall.sibling(null, "VmSetup", tools, elsewhere), "there is no jar beside it");
            Path jar = Files.createFile(tools.resolve("VmSetup.jar"));
            List<String> java = List.of(System.getProperty("java.home") + "/bin/java", "-jar", jar.toString());
            assertEquals(java, VmAutoInstall.sibling(null, "VmSetup", below, tools), "make's own");
        } finally {
            System.setProperty("java.class.path", classPath);
        }
    }

    // Guests of one sector: they print a text on the serial line and then power off, reset or hang.

    private static final String PRINT = "31c08ed8be407cfc" // ds:si = 0x7c40, the text
            + "ac84c0741288c4bafd03eca82074fbbaf80388e0eeebe9"; // lodsb; until 0: wait for the port, out
    private static final String POWER_OFF = "ba0406b80020ef" + "f4ebfd"; // out 0x604, 0x2000; hlt
    private static final String POWER_OFF_OR_HANG = "baf701ec84c07407" + POWER_OFF; // hang if port 0x1f7 says 0: no CD drive
    private static final String RESET = "b0fee664" + "f4ebfd"; // out 0x64, 0xfe; hlt
    private static final String HANG = "f4ebfd";

    /** Puts a guest where phase 1 would have left its disk, and a CD that nobody reads. */
    private String[] secondPhaseOf(String text, String end) throws Exception {
        ByteBuffer sector = ByteBuffer.allocate(1 << 20);
        sector.put(HexFormat.of().parseHex(PRINT + end)).position(0x40);
        sector.put(text.getBytes(ISO_8859_1)).putShort(510, (short) 0x55aa);
        Files.write(tmp.resolve("sector"), sector.array());
        Files.createDirectories(install(""));
        Files.deleteIfExists(install("phase1.qcow2"));
        assertEquals(0, new ProcessBuilder("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp.resolve("sector").toString(),
                install("phase1.qcow2").toString()).inheritIO().start().waitFor());
        installer();
        Files.writeString(install("phase1.inputs"), "a=b\n");
        Files.writeString(install("install.json"), "{\"version\": \"1\"}");
        return new String[] {"run-phase", "2", vmDir().resolve("dfly-6.4.2.iso").toString()};
    }

    @Test
    void thePhaseRunsWithWhatVmSetupFound() throws Exception {
        String[] command = secondPhaseOf("DONE WITH PHASE 2.\r\n", POWER_OFF);
        Path setup = script("my setup", "#!/bin/sh\necho \"{\\\"name\\\": \\\"tcg\\\", \\\"reason\\\": \\\"$1 $2 $3\\\", "
                + "\\\"kvm\\\": " + VmAutoInstall.opens(Path.of("/dev/kvm"))
                + ", \\\"qemu\\\": \\\"$(qemu-system-x86_64 --version | head -n 1)\\\"}\" >\"$5/accel.json\"\n");
        Map<String, String> settings = Map.of("VM_ACCEL", "auto", "VM_SETUP_CMD", "'" + setup + "' -v");
        assertEquals(0, run(settings, Map.of(), "run-phase", "2", command[2], "--dry-run"));
        says("; not measured: vm-setup check does that)");
        assertFalse(Files.exists(vmDir().resolve("accel.json")), "a dry run writes nothing");
        assertEquals(0, run(settings, Map.of(), command), last.err());
        says("accelerator: tcg (-v check --accel)\n");
        assertEquals(2, run(Map.of("VM_ACCEL", "auto", "VM_SETUP_CMD", "'open"), Map.of(), command));
    }

    @Test
    void aPhaseLeavesAFrozenDisk() throws Exception {
        String[] command = secondPhaseOf("STEP 1: one\r\nDONE WITH PHASE 2.\r\n", POWER_OFF);
        recordPhase(3, "x=y\n"); // built on the old one
        byte[] before = Files.readAllBytes(install("phase1.qcow2"));
        assertEquals(0, run(command), last.err());
        assertEquals(install("phase2.qcow2") + "\n", last.out());
        says("phase 2, step 1 (one)");
        assertEquals("r--------", PosixFilePermissions.toString(Files.getPosixFilePermissions(install("phase2.qcow2"))));
        assertTrue(Arrays.equals(before, Files.readAllBytes(install("phase1.qcow2"))), "what it is built on is untouched");
        assertEquals("STEP 1: one\r\nDONE WITH PHASE 2.\r\n", Files.readString(install("phase2.log")));
        assertEquals("the CD of run-phase=" + command[2] + "\n", Files.readString(install("phase2.inputs")));
        assertEquals("{\"version\": \"1\"}", Files.readString(install("install.json")), "the installed VM is as it was");
        assertEquals(List.of("install.json", "phase1.inputs", "phase1.qcow2", "phase2.inputs", "phase2.log", "phase2.qcow2"), installFiles());
    }

    @Test
    void aFailedPhaseSaysWhyAndLeavesEverythingAsItWas() throws Exception {
        String[] command = secondPhaseOf("STEP 7: fetch\r\nno route to host\r\nPHASE 2 FAILED: fetch\r\n", HANG);
        Files.writeString(install("phase2.qcow2"), "an older one");
        long start = System.nanoTime();
        assertEquals(1, run(command));
        assertTrue(System.nanoTime() - start < 60e9, "soon after the cause is visible");
        says("vm-auto-install: phase 2 failed at step 7 (fetch) after ");
        says("its script gave up: fetch: no route to host");
        says("  | no route to host\n");
        says("whole log: " + install("phase2.log"));
        says("to go on from there: vm-auto-install run-phase 2 '" + tmp);
        assertEquals("\u0089PNG", new String(Files.readAllBytes(install("phase2.png")), ISO_8859_1).substring(0, 4));
        assertEquals("an older one", Files.readString(install("phase2.qcow2")));
        assertTrue(ProcessHandle.current().children().noneMatch(VmAutoInstallTest::isQemu), "QEMU is gone");
    }

    private static boolean isQemu(ProcessHandle process) {
        return process.info().commandLine().filter(line -> line.contains("qemu-system") && !line.contains("--version")).isPresent();
    }

    /** The header of a disk can name any file of this machine, which QEMU would read or write. */
    @Test
    void byHandTakesNoDiskThatNamesOtherFiles() throws Exception {
        phaseScripts();
        installer();
        Path disk = Files.createDirectories(vmDir().resolve("dfly-vm.install")).resolve("by-hand.qcow2");
        Path secret = Files.writeString(tmp.resolve("secret"), "precious".repeat(100));
        Path outside = tmp.resolve("outside.qcow2");
        Path beside = disk.resolveSibling("beside.qcow2");
        for (Path plain : List.of(outside, beside)) {
            assertEquals(0, new ProcessBuilder("qemu-img", "create", "-q", "-f", "qcow2", plain.toString(), "10M").inheritIO().start().waitFor());
        }
        for (String[] options : new String[][] {{"builds on " + secret + ", which is not said to be a qcow2 file", "-f", "qcow2", "-F", "raw", "-b", secret.toString()},
                {"builds on " + outside + ", which is not in VM_DIR", "-f", "qcow2", "-F", "qcow2", "-b", outside.toString()},
                {"needs another disk as its backing file", "-f", "qcow2", "-F", "qcow2", "-b", "beside.qcow2"},
                {"keeps its data in another file", "-f", "qcow2", "-o", "data_file=" + tmp.resolve("data")},
                {"is not a qcow2 image", "-f", "raw"}, {"is not a qcow2 image", "-f", "vmdk"}}) {
            List<String> command = new ArrayList<>(List.of("qemu-img", "create", "-q"));
            command.addAll(List.of(options).subList(1, options.length));
            command.addAll(List.of(disk.toString(), "10M"));
            assertEquals(0, new ProcessBuilder(command).inheritIO().start().waitFor());
            assertEquals(69, run("by-hand"), last.err());
            says(disk.toString(), options[0], "vm-setup disk --yes");
            // neither does the next phase take one that a phase before left
            String[] phase = secondPhaseOf("DONE WITH PHASE 2.\r\n", POWER_OFF);
            Files.move(disk, install("phase1.qcow2"), StandardCopyOption.REPLACE_EXISTING);
            boolean inside = options[0].equals("needs another disk as its backing file");
            assertEquals(inside ? 124 : 69, run(Map.of("VM_TIME_LIMIT", "6s"), Map.of(), phase), last.err());
            says(inside ? "phase 2 failed" : options[0]);
        }
        Files.createSymbolicLink(disk, secret);
        assertEquals(69, run("by-hand"), last.err());
        says(disk + " is " + secret + ", which is not in VM_DIR");
        assertEquals("precious".repeat(100), Files.readString(secret));
    }

    @Test
    void theOtherEndsOfAPhase() throws Exception {
        assertEquals(1, run(secondPhaseOf("DONE WITH PHASE 2.\r\n", RESET)));
        says("rebooted instead of powering off");
        assertEquals(1, run(secondPhaseOf("STEP 1: x\r\n", POWER_OFF)));
        says("did not report DONE");
        assertEquals(1, run(secondPhaseOf("\r\nlogin: panic: from the test\r\ncpuid = 0\r\n", HANG)));
        says("the kernel panicked: panic: from the test");
        assertEquals(69, run(Map.of("VM_QEMU_ARGS", "-no-such-option"), Map.of(), secondPhaseOf("", HANG)));
        says("no-such-option");
        String[] command = secondPhaseOf("STEP 1: wait\r\n", HANG);
        CompletableFuture<Integer> code = CompletableFuture.supplyAsync(() -> run(command));
        ProcessHandle qemu = awaitQemu(ProcessHandle.current());
        while (!Files.exists(install("phase2.log")) || !Files.readString(install("phase2.log")).contains("STEP")) {
            Thread.sleep(20);
        }
        assertTrue(Files.readString(Path.of("/proc/" + qemu.pid() + "/status")).contains("Seccomp:\t2\n"), "QEMU's sandbox");
        qemu.destroyForcibly();
        assertEquals(69, code.get(5, TimeUnit.MINUTES));
        says("QEMU ended by itself with signal 9");
        assertFalse(Files.exists(install("phase2.qcow2")));
    }

    /** There is no QEMU without seccomp here: a script refuses -sandbox in the words of one, and runs the real one otherwise. */
    @Test
    void aQemuWithoutSeccompRunsWithoutASandbox() throws Exception {
        String[] command = secondPhaseOf("DONE WITH PHASE 2.\r\n", POWER_OFF);
        Files.createDirectory(tmp.resolve("bin"));
        Path qemu = script("bin/qemu-system-x86_64", """
                #!/bin/sh
                case " $* " in *' -sandbox '*) echo 'qemu: -sandbox: There is no such option group' >&2; exit 1 ;; esac
                PATH=${PATH#*:} exec qemu-system-x86_64 "$@"
                """);
        ProcessBuilder builder = tool(command);
        builder.environment().put("PATH", qemu.getParent() + ":" + System.getenv("PATH"));
        Process tool = builder.start();
        String said = new String(tool.getInputStream().readAllBytes(), UTF_8);
        assertEquals(0, tool.waitFor(), said);
        assertTrue(said.contains("built without seccomp, so it runs without -sandbox: qemu: -sandbox:"), said);
    }

    /** Nobody else reads or writes what is made here, although the umask allows it, and the directories above VM_DIR neither. */
    @Test
    void whatIsMadeIsItsUsersAlone() throws Exception {
        phaseScripts();
        installer();
        Path iso = vmDir().resolve("dfly-6.4.2.iso");
        Path vmDir = tmp.resolve("new/above/vm");
        Path disc = tmp.resolve("p1.iso");
        Path usual = Files.createFile(tmp.resolve("usual"));
        assumeTrue(PosixFilePermissions.toString(Files.getPosixFilePermissions(usual)).endsWith("r--"), "the umask hides faults");
        Map<String, String> settings = Map.of("VM_DIR", vmDir.toString(), "VM_IMAGE", iso.toString(), "VM_TIME_LIMIT", "1s");
        assertEquals(0, run(settings, Map.of(), "make-iso", tmp.resolve("phases/phase1-install.sh").toString(), disc.toString()));
        assertEquals(124, run(settings, Map.of(), "run-phase", "1", disc.toString()), last.err());
        List<Path> open = new ArrayList<>();
        try (Stream<Path> all = Files.walk(tmp.resolve("new"))) {
            for (Path file : Stream.concat(all, Stream.of(tmp.resolve("p1.iso"))).toList()) {
                if (((int) Files.getAttribute(file, "unix:mode") & 077) != 0 && !file.toString().endsWith(".pub")) {
                    open.add(file);
                }
            }
        }
        assertEquals(List.of(), open);
        assertTrue(Files.exists(vmDir.resolve("dfly-vm.install/phase1.log")) && Files.exists(vmDir.resolve("dfly-vm.ssh/id_ed25519")), last.err());
    }

    /** Whoever answers on the guest's port may print a line without end, and what a terminal would obey. */
    @Test
    void whatAGuestPrintsIsCutAndHarmless() throws Exception {
        phaseScripts();
        Files.createDirectories(vmDir());
        Path flood = Files.writeString(tmp.resolve("flood"), "(printf '\\033[31m\\302\\233\\342\\200\\256'; "
                + "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo next) >&2\n");
        Files.writeString(vmDir().resolve("ssh_config"), "Host dfly-vm\nProxyCommand sh " + flood + "\n");
        try (FakeVm vm = new FakeVm(vmDir(), "dfly-vm")) {
            assertEquals(69, run("provision"), last.err());
            assertTrue(vm.pid() > 0);
        }
        says("ssh to dfly-vm failed", "\nnext\n", "xxxx");
        assertTrue(last.err().length() < 10_000, last.err().length() + " characters");
        assertFalse(last.err().matches("(?s).*[\u001b\u009b\u202e].*"));
    }

    // By hand.

    /**
     * Ends an installation by hand in each way, at a terminal: QEMU goes with it, the terminal is as it was, and the disk
     * is kept. The installer does not boot, so the disk stays empty.
     */
    @ParameterizedTest
    @CsvSource({"typed, 1", "TERM, 143", "KILL, 137"})
    void whateverEndsAnInstallationByHandTheTerminalIsAsBefore(String way, int code) throws Exception {
        phaseScripts();
        installer();
        ProcessBuilder asked = tool("by-hand");
        asked.command(List.of("script", "-qec", "before=$(stty -g); tty; " + VmAutoInstall.shellQuoted(asked.command())
                + "; echo \"code=$?\"; until [ \"$(stty -g)\" = \"$before\" ]; do sleep 0.1; done; echo restored", "/dev/null"));
        Path output = tmp.resolve("terminal");
        Process terminal = asked.redirectOutput(output.toFile()).start();
        ProcessHandle qemu = awaitQemu(terminal.toHandle());
        String tty = Files.readString(output).lines().findFirst().orElseThrow();
        await(() -> new String(new ProcessBuilder("stty", "-F", tty, "-a").start().getInputStream().readAllBytes(), UTF_8)
                .contains("-isig"));
        await(() -> Files.exists(install("by-hand.vnc")));
        for (String secret : List.of("by-hand.iso", "by-hand.vnc", "by-hand.qcow2")) {
            String mode = PosixFilePermissions.toString(Files.getPosixFilePermissions(install(secret)));
            assertTrue(mode.matches("rw[x-]------"), secret + " " + mode);
        }
        assertEquals(69, run("by-hand"));
        says("vm-auto-install by-hand (pid ");
        if (way.equals("typed")) {
            terminal.getOutputStream().write("\003\035\035".getBytes(ISO_8859_1)); // Ctrl-C is the guest's
            terminal.getOutputStream().flush();
        } else {
            long tool = qemu.parent().orElseThrow().pid();
            assertEquals(0, new ProcessBuilder("kill", "-" + way, "" + tool).start().waitFor());
        }
        boolean ended = terminal.waitFor(5, TimeUnit.MINUTES);
        terminal.descendants().forEach(ProcessHandle::destroyForcibly);
        terminal.destroyForcibly();
        String said = Files.readString(output);
        assertTrue(ended && said.contains("code=" + code) && said.contains("restored"), said);
        assertTrue(said.contains("mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh\r\n"), said);
        assertEquals(way.equals("typed"), said.contains("so its last writes may be missing. " + install("by-hand.qcow2")
                + " is kept. To continue: vm-auto-install by-hand\r\n"), said);
        qemu.onExit().get(5, TimeUnit.MINUTES);
        assertTrue(Files.exists(install("by-hand.qcow2")));
        run("clean-phases"); // a kill -9 leaves it the CD, which holds the root password
        assertEquals(List.of("by-hand.log", "by-hand.qcow2"), installFiles());
    }

    interface Check {
        boolean holds() throws Exception;
    }

    private static void await(Check check) throws Exception {
        for (int i = 0; i < 600; i++) { // 60 s for a busy machine
            if (check.holds()) {
                return;
            }
            Thread.sleep(100);
        }
        throw new AssertionError("it never came true");
    }

    /** Whatever a disk prints, without a login prompt and ssh it is not provisioned, and is kept. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            ''                 | off       | power-on         | it powered off before a login prompt came
            ''                 | off, hang | power-on         | the kernel printed nothing on the serial console: did setup.sh run?
            DONE WITH PHASE 3. | off       | the phase script | it powered off before a login prompt came
            """)
    void aDiskThatIsNotProvisionedIsKept(String text, String end, String where, String cause) throws Exception {
        phaseScripts();
        secondPhaseOf(text + "\r\n", end.equals("off") ? POWER_OFF : POWER_OFF_OR_HANG);
        Files.move(install("phase1.qcow2"), install("by-hand.qcow2"), StandardCopyOption.REPLACE_EXISTING);
        byte[] before = Files.readAllBytes(install("by-hand.qcow2"));
        assertEquals(1, run(Map.of("VM_TIME_LIMIT", "1m"), Map.of(), "by-hand"), last.err());
        says("booting it once, to see that it answers", "the check of the disk (which is kept) failed at " + where + " after ",
                ": " + cause + "\n", "to go on from there: vm-auto-install by-hand\n");
        assertTrue(Arrays.equals(before, Files.readAllBytes(install("by-hand.qcow2"))));
        assertFalse(Files.exists(vmDir().resolve("dfly-vm-clean.qcow2")));
    }

    @Test
    void theDiscForTheHandHoldsWhatTheSystemNeeds() throws Exception {
        phaseScripts();
        SortedMap<String, byte[]> disc = VmAutoInstall.PhaseDisc.forHand(
                VmAutoInstall.SCRIPTS.stream().map(tmp.resolve("phases")::resolve).toList(), new TreeMap<>(Map.of("vm.conf", new byte[0])));
        assertEquals(List.of("phase1.sh", "phase2.sh", "phase3.sh", "setup.sh", "vm.conf"), List.copyOf(disc.keySet()),
                "with a pfi.conf the installer itself would run it");
        assertTrue(new String(disc.get("phase2.sh"), UTF_8).contains("# phase2-update.sh"));
    }

    private static ProcessHandle awaitQemu(ProcessHandle parent) throws InterruptedException {
        for (int i = 0; i < 300; i++) { // 30 s for a busy machine
            ProcessHandle qemu = parent.descendants().filter(VmAutoInstallTest::isQemu).findFirst().orElse(null);
            if (qemu != null) {
                return qemu;
            }
            Thread.sleep(100);
        }
        throw new AssertionError("no QEMU");
    }

    /** Ends the tool from outside while a guest runs: QEMU goes with it, and the next run needs no cleaning up. */
    @ParameterizedTest
    @CsvSource({"KILL, 137", "TERM, 143", "INT, 130"})
    void whoeverEndsItTakesQemuAlong(String signal, int code) throws Exception {
        String[] command = secondPhaseOf("STEP 1: wait\r\n", HANG);
        Process tool = tool(command).redirectOutput(tmp.resolve("tool.out").toFile()).start();
        ProcessHandle qemu = awaitQemu(tool.toHandle());
        assertEquals(0, new ProcessBuilder("kill", "-" + signal, "" + tool.pid()).start().waitFor());
        boolean ended = tool.waitFor(5, TimeUnit.MINUTES);
        tool.destroyForcibly();
        assertTrue(ended);
        assertEquals(code, tool.exitValue());
        qemu.onExit().get(5, TimeUnit.MINUTES);
        assertFalse(Files.readString(tmp.resolve("tool.out")).contains("failed"), "nothing went wrong but the signal");
        assertEquals(signal.equals("KILL"), Files.exists(install("phase2.part")), "only a kill -9 leaves it to the next run");
        assertEquals(0, run(secondPhaseOf("DONE WITH PHASE 2.\r\n", POWER_OFF)), last.err());
        assertFalse(Files.exists(install("phase2.part")));
    }

    /** Imitates a QEMU that hangs in accept(), and answers only after a second connection. */
    @Test
    void aMonitorThatWaitsForAnotherConnectionGetsOne() throws Exception {
        Duration before = VmAutoInstall.Qmp.answerLimit;
        VmAutoInstall.Qmp.answerLimit = Duration.ofMillis(50);
        try (VmAutoInstall.Qmp qmp = new VmAutoInstall.Qmp(); ServerSocketChannel monitor = ServerSocketChannel.open(StandardProtocolFamily.UNIX)
                .bind(UnixDomainSocketAddress.of(qmp.socket))) {
            CompletableFuture<Void> qemu = CompletableFuture.runAsync(() -> {
                try (SocketChannel first = monitor.accept()) {
                    first.write(UTF_8.encode("{\"QMP\": {}}\r\n"));
                    monitor.accept().close();
                    first.write(UTF_8.encode("{\"return\": {}, \"id\": \"first\"}\r\n"));
                    first.read(ByteBuffer.allocate(1000)); // and keeps it open
                    first.read(ByteBuffer.allocate(1000));
                } catch (IOException closed) {
                    throw new UncheckedIOException(closed);
                }
            });
            List<String> said = new ArrayList<>();
            for (long end = System.nanoTime() + Duration.ofMinutes(5).toNanos(); !said.toString().contains("return"); Thread.sleep(10)) {
                assertTrue(System.nanoTime() < end && !qemu.isCompletedExceptionally(), said.toString());
                qmp.exchange(null, new JsonObject()).forEach(event -> said.add(event.toString()));
            }
            assertFalse(Files.exists(qmp.socket), "litter");
        } finally {
            VmAutoInstall.Qmp.answerLimit = before;
        }
    }

    /** The tool in a process of its own, both its outputs in one. */
    private ProcessBuilder tool(String... arguments) {
        ProcessBuilder tool = new ProcessBuilder("java", "-cp", System.getProperty("java.class.path"), "VmAutoInstall");
        tool.command().addAll(List.of(arguments));
        tool.environment().putAll(Map.of("VM_DIR", vmDir().toString(), "VM_ACCEL", "tcg", "VM_PHASES", tmp.resolve("phases").toString()));
        return tool.redirectErrorStream(true);
    }

    // What a person still wants.

    /** After a failure, what is done already is not to be done again. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '"', textBlock = """
            vm-auto-install --force --yes                       | vm-auto-install --yes
            vm-auto-install --vm-dir 'a  b' --from=1            | vm-auto-install --vm-dir 'a  b'
            vm-auto-install --from 1 --to 2                     | vm-auto-install --to 2
            make vm-auto-install ARGS='--from 2 --yes'          | make vm-auto-install ARGS='--yes'
            make vm-auto-install ARGS='--yes --force'           | make vm-auto-install ARGS='--yes '
            make vm-auto-install ARGS=--force                   | make vm-auto-install
            make vm-auto-install ARGS='--from 3'                | make vm-auto-install
            make vm-install ARGS=''                             | make vm-install
            "vm-auto-install "                                  | vm-auto-install
            """)
    void theCommandThatGoesOnDoesNothingTwice(String line, String expected) {
        assertEquals(expected, VmAutoInstall.withoutRestart(line));
    }

    @Test
    void anInstalledVmIsNotReplacedUnasked() throws Exception {
        phaseScripts();
        installer();
        Path clean = Files.writeString(vmDir().resolve("dfly-vm-clean.qcow2"), "precious");
        Files.createDirectories(vmDir().resolve("dfly-vm.snapshots/before"));
        for (String[] command : new String[][] {{}, {"by-hand"}}) {
            assertEquals(2, run(command));
            assertTrue(last.err().contains("and delete its disks and snapshots; nothing was changed; to confirm it: --yes"), last.err());
        }
        try (FakeVm vm = new FakeVm(vmDir(), "dfly-vm")) {
            for (String record : List.of(Files.readString(vm.file(".pid")), "damaged")) { // the lock alone counts
                Files.writeString(vm.file(".pid"), record);
                assertEquals(69, run("--force", "--yes"));
                says("VM dfly-vm is running; stop it first: vm-ctl stop");
            }
            assertEquals(69, run("provision"));
            vm.signal("KILL");
        }
        assertEquals(3, run("provision"));
        says("VM dfly-vm is not running");
        assertEquals(2, run("--force"));
        says("to confirm it: --yes");
        Path pidFile = vmDir().resolve("dfly-vm.qemu-pid");
        Files.delete(pidFile);
        Files.createSymbolicLink(pidFile, pidFile);
        assertEquals(69, run("--force", "--yes"));
        says("it is unknown whether the VM runs, as " + pidFile);
        assertEquals("precious", Files.readString(clean));
    }

    private Path cleanSnapshot(String vm, String record) throws IOException {
        return Files.writeString(Files.createDirectories(vmDir().resolve(vm + ".snapshots/clean")).resolve("snapshot.json"), record);
    }

    @Test
    void aVmWithClonesIsNotReplacedAtAll() throws Exception {
        phaseScripts();
        installer();
        Path clean = Files.writeString(vmDir().resolve("dfly-vm-clean.qcow2"), "precious");
        cleanSnapshot("dfly-vm", "{\"cloneOf\": \"dfly-vm\"}"); // its own does not count
        cleanSnapshot("other", "{\"disk\": \"x\"}");
        cleanSnapshot("others-clone", "{\"cloneOf\": \"other\"}");
        Files.createDirectories(vmDir().resolve("never-started.snapshots"));
        assertEquals(2, run("--force"));
        says("to confirm it: --yes");
        cleanSnapshot("w2", "{\"cloneOf\": \"dfly-vm\"}");
        cleanSnapshot("w1", "{\"cloneOf\": \"dfly-vm\"}");
        for (List<String> words : List.of(List.of("--force"), List.of("--force", "--yes"))) {
            assertEquals(69, run(words.toArray(String[]::new)));
            says("another installation would destroy the disks of these clones of dfly-vm: w1, w2; destroy them first");
        }
        Path damaged = cleanSnapshot("w1", "{\"cloneOf\":");
        cleanSnapshot("w2", "{}");
        assertEquals(69, run("--force", "--yes"));
        says("vm-auto-install: " + damaged + " cannot be read (not JSON: {\"cloneOf\":), so w1 may be a clone of dfly-vm");
        assertEquals("precious", Files.readString(clean));
        assertEquals(0, installFiles().size(), "nothing was begun");
        Files.delete(clean); // what is not there has no clones
        removeTree(vmDir().resolve("dfly-vm.snapshots"));
        assertEquals(69, run("--from", "3"));
        says("phase 3 needs the disk of phase 2");
    }

    private static void removeTree(Path directory) throws IOException, InterruptedException {
        assertEquals(0, new ProcessBuilder("rm", "-r", directory.toString()).start().waitFor());
    }

    @Test
    void anotherInstallationRemovesAllThatBuildsOnTheOldDisk() throws Exception {
        Files.createDirectories(vmDir().resolve("dfly-vm.disks"));
        Files.writeString(vmDir().resolve("dfly-vm.disks/abc.qcow2"), "");
        Files.createSymbolicLink(vmDir().resolve("dfly-vm.qcow2"), Path.of("dfly-vm.disks/abc.qcow2"));
        Files.createDirectories(vmDir().resolve("other.disks"));
        cleanSnapshot("dfly-vm", "{}");
        new VmAutoInstall.VmFiles(vmDir(), "dfly-vm").removeOldDisks();
        assertEquals(List.of("other.disks"), List.of(vmDir().toFile().list()));
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void phaseDisksGoOnlyOnRequest(boolean disks) throws Exception {
        Files.createDirectories(install(""));
        for (String file : List.of("phase1.qcow2", "phase1.inputs", "installed1.inputs", "phase2.part", "phase3.iso", "phase1.log", "install.json")) {
            Files.writeString(install(file), "");
        }
        assertEquals(0, disks ? run("clean-phases", "--disks") : run("clean-phases"));
        assertEquals(disks ? List.of("install.json", "installed1.inputs", "phase1.log")
                : List.of("install.json", "installed1.inputs", "phase1.inputs", "phase1.log", "phase1.qcow2"), installFiles());
    }

    /** A restore loses what was provisioned, unless the snapshot clean was taken after it, by the user. */
    @Test
    void provisioningCountsOnceTheCleanStateHasIt() throws Exception {
        VmAutoInstall.VmFiles files = new VmAutoInstall.VmFiles(Files.createDirectories(vmDir()), "dfly-vm");
        Path snapshot = Files.createDirectories(files.file(".snapshots").resolve("clean")).resolve("snapshot.json");
        Files.createDirectories(files.install(""));
        Files.createFile(files.clean());
        Files.writeString(install("installed3.inputs"), "its script=old\n");
        VmAutoInstall.Installation installation = new VmAutoInstall.Installation(files);
        String before = Instant.now().toString();
        installation.provisioned(new VmAutoInstall.Phase(3, null, new TreeMap<>(Map.of("its script", "new"))));
        for (String[] row : new String[][] {{null, "old"}, {"{\"made\":\"" + before + "\"}", "old"},
            {"{\"made\":\"9\",\"automatic\":true}", "old"}, {"{\"made\":\"9\"}", "new"}, {"{\"made\":\"" + before + "\"}", "new"}}) {
            if (row[0] != null) {
                Files.writeString(snapshot, row[0]);
            }
            assertEquals(Map.of("its script", row[1]), installation.inputs(VmAutoInstall.Installation.VM, 3), row[0]);
        }
        assertFalse(Files.exists(install("provisioned3.inputs")));
    }

    @Test
    void provisioningByHandCarriesEveryFile() {
        SortedMap<String, byte[]> disc = new TreeMap<>(Map.of("vm.conf", "A='$b'\n".getBytes(UTF_8), "phase3.sh",
                ("test \"$PFI_POWEROFF\" = no && cat $PFI_MEDIA/vm.conf && stat -c %a $PFI_MEDIA && "
                        + "echo DONE WITH PHASE 3.\n").getBytes(UTF_8)));
        String script = VmAutoInstall.Provisioning.guestScript(disc).replace("/root/", tmp + "/");
        assertEquals("A='$b'\n700\nDONE WITH PHASE 3.\n", sh(script));
    }

    private static String sh(String script) {
        try {
            Process sh = new ProcessBuilder("sh", "-s").redirectErrorStream(true).start();
            sh.getOutputStream().write(script.getBytes(UTF_8));
            sh.getOutputStream().close();
            return new String(sh.getInputStream().readAllBytes(), UTF_8);
        } catch (IOException failed) {
            throw new AssertionError(failed);
        }
    }
}
