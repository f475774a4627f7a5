import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * What goes wrong in an installation: each time the right words and code, soon after the cause, nothing lost, nothing left
 * running.
 *
 * <p>The VM is a twin of the one that InstallTest installed: its frozen disks are hard links, so every phase can be broken
 * without installing the ones before it.
 */
@Tag("faults")
@Tag("vm")
final class InstallFaultsTest {

    private static final Guest GUEST = Guest.installed();
    private static final Guest TWIN = Guest.in(Guest.BUILD.resolve("test/broken"))
            .with("VM_IMAGE", Guest.standin().resolve("iso-images/dfly-x86_64-6.4.2_REL.iso").toString(), "VM_TIME_LIMIT", "6m"); // of which a sixth may be silence
    private static final Path INSTALL = TWIN.file(".install");
    private static final Path CLEAN = TWIN.file("-clean.qcow2");
    private static final Path OUTPUT = Guest.BUILD.resolve("test/install-faults.txt");
    private static Mirror mirror;
    private static Path small;

    @BeforeAll
    static void start() throws IOException {
        mirror = new Mirror(Guest.standin()).start();
        small = Files.createDirectories(Guest.BUILD.resolve("test/small phases"));
        for (String script : List.of("phase1-install.sh", "phase2-update.sh", "phase3-provision.sh")) {
            Path file = Files.writeString(small.resolve(script), """
                    #!/bin/sh
                    echo 'STEP 1: come up'
                    sleep 3
                    printf '\\nDONE WITH PHASE %s.\\n'
                    poweroff
                    sleep 600
                    """.formatted(script.substring(5, 6)));
            assertTrue(file.toFile().setExecutable(true));
        }
    }

    @BeforeEach
    void aTwin() throws IOException {
        TWIN.ctl("destroy", "--yes");
        Guest.delete(TWIN.vmDir());
        TWIN.link(GUEST);
        Files.copy(GUEST.vmDir().resolve("accel.json"), TWIN.vmDir().resolve("accel.json"));
    }

    @AfterEach
    void nothingIsLeftRunning() {
        assertEquals(List.of(), TWIN.qemus());
    }

    @AfterAll
    static void end() throws IOException {
        mirror.close();
        Guest.delete(TWIN.vmDir());
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
        1 | panic@boot       |                                  | panic: assertion | 1   | the kernel's start | the kernel panicked
        1 | hang@boot        |                                  | real memory      | 124 | the kernel's start | silent for 30 s
        1 | reboot-loop@boot |                                  | Rebooting...     | 1   | the kernel's start | the guest rebooted
        1 | halt             | small                            | has halted       | 1   | the shutdown       | the guest halted without
        1 | mute             | newfs /dev/ to newfs --bad /dev/ | PHASE 1 FAILED   | 1   | step 4 (make the   | its script gave up: make; usage: newfs; waiting, because
        1 |                  | rm -rf /mnt/R to rm -f /mnt/R    | PHASE 1 FAILED   | 1   | step 7 (remove     | rm: /mnt/autorun: is a directory
        1 | nokernel         |                                  | bootable kernel  | 1   | the boot loader    | the loader cannot load
        2 | nonet@phase2     | 5 15 30 60 none to none          | PHASE 2 FAILED   | 1   | step 2 (reach the  | its script gave up: reach
        2 | norepo@phase2    | 5 15 30 60 none to none          | PHASE 2 FAILED   | 1   | step 3 (update the | pkg update: failed
        2 | mountroot        |                                  | mountroot>       | 1   | the root mount     | the kernel cannot mount
        """)
    void aFailedPhaseSaysWhatHappened(int phase, String fault, String edit, String sign, int code, String where, String cause)
            throws Exception {
        Guest guest = TWIN.withFirmware(mirror.port(), fault == null ? "" : fault);
        if ("small".equals(edit)) {
            guest = guest.with("VM_PHASES", small.toString());
        } else if (edit != null) {
            String script = phase == 1 ? "phase1-install.sh" : "phase2-update.sh";
            guest = guest.with("VM_PHASES", Guest.phasesWhere(script, edit.split(" to ")[0], edit.split(" to ")[1]).toString());
        }
        if (code == 124) { // three minutes for a phase, a sixth of it for its silence
            guest = guest.with("VM_TIME_LIMIT", "3m");
        }
        Process tool = begin(guest, "phase" + phase, "--yes", "--from", "" + phase, "--to", "" + phase);
        if (code == 124) {
            await(tool, INSTALL.resolve("phase1.log"), sign);
            guest.install().exits(69).says("vm-auto-install (pid " + tool.pid() + ")", "holds the lock");
        }
        fails(tool, phase, sign, code, code == 124 ? 30 : 0, where,
                (cause + "; to go on from there: vm-auto-install --yes --to " + phase + "\n").split("; "));
    }

    @Test
    void aScriptThatPfiSkipsIsNamed() throws Exception {
        Path cd = Files.createDirectories(Guest.BUILD.resolve("test/not executable"));
        Files.writeString(cd.resolve("pfi.conf"), "pfi_script=phase1.sh\n");
        Files.writeString(cd.resolve("phase1.sh"), "#!/bin/sh\n");
        Path iso = Guest.BUILD.resolve("test/not executable.img");
        GUEST.run(List.of("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", iso.toString(), cd.toString())).exits(0);
        Process tool = begin(TWIN, "phase1", "run-phase", "1", iso.toString());
        fails(tool, 1, "login: ", 1, 0, "pfi", "the phase script was skipped: Looking for pfi.conf on ",
                "to go on from there: vm-auto-install run-phase 1 '" + iso + "'\n");
    }

    @Test
    void aFullDiskIsNamed() throws Exception {
        Guest.delete(TWIN.vmDir());
        Files.createDirectories(TWIN.vmDir());
        assumeTrue(GUEST.run(List.of("mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", TWIN.vmDir().toString())).exitCode() == 0,
                "only root can mount a small disk");
        try {
            TWIN.install("--to", "1").exits(1).says("phase 1 failed at step ", "cannot write the VM's disk (No space left on device)",
                    "free some space for " + TWIN.vmDir(), "to go on from there: vm-auto-install --to 1");
            try (Stream<Path> left = Files.list(INSTALL)) {
                assertEquals(List.of(), left.filter(file -> file.toString().matches(".*(part|iso|qcow2)")).toList());
            }
        } finally {
            GUEST.run(List.of("umount", TWIN.vmDir().toString())).exits(0);
        }
    }

    @Test
    void afterAKillInPhase1TheNextRunRepeatsThePhase() throws Exception {
        Guest guest = TWIN.with("VM_PHASES", small.toString());
        Map<Path, FileTime> before = disks();
        killTool(guest, 1, "--to", "1");
        assertEquals(before, disks());
        guest.install("--to", "1").exits(0).says("beginning at phase 1: changed since: its script", "phase 1 done in ")
                .answers(INSTALL.resolve("phase1.qcow2").toString());
        assertFalse(Files.exists(INSTALL.resolve("phase2.qcow2")), "it was built on the old phase 1");
        assertEquals(before.get(CLEAN), disks().get(CLEAN));
    }

    @Test
    void whateverIsKilledLaterTheNextRunGoesOnThere() throws Exception {
        Path phases = Guest.phasesWhere("phase1-install.sh", "", "");
        for (String script : List.of("phase2-update.sh", "phase3-provision.sh")) {
            Files.copy(small.resolve(script), phases.resolve(script), StandardCopyOption.REPLACE_EXISTING);
        }
        Guest guest = TWIN.with("VM_PHASES", phases.toString());
        Map<Path, FileTime> before = disks();
        killTool(guest, 2, "--yes");
        assertEquals(before, disks());
        // On its way to phase 3 it does phase 2, whatever modules the loader cannot load.
        killQemu(guest.withFirmware(mirror.port(), "nomodule"), 3, "--yes");
        assertTrue(read(INSTALL.resolve("phase2.log")).contains("Unable to load /kernel/ehci\r\n"), "the loader has nothing to complain about");
        before.remove(INSTALL.resolve("phase3.qcow2"));
        before.put(INSTALL.resolve("phase2.qcow2"), disks().get(INSTALL.resolve("phase2.qcow2")));
        assertEquals(before, disks());
        // The small phases install nothing: the check finds out, and the installed VM stays.
        guest.install("--yes").exits(1).says("beginning at phase 3: it was not done yet", "phase 3 done in ",
                "the check of the installed disk failed at ", "a tool is missing or broken",
                "to go on from there: vm-auto-install --yes\n");
        before.put(INSTALL.resolve("phase3.qcow2"), disks().get(INSTALL.resolve("phase3.qcow2")));
        assertEquals(before, disks());
    }

    /** The story of a changed phase 3 without a reinstallation. */
    @Test
    void changedProvisioningBecomesTheCleanState() throws IOException {
        Path phases = Guest.phasesWhere("phase3-provision.sh", "complete=yes", "echo changed >/root/changed\ncomplete=yes");
        Guest guest = TWIN.with("VM_PHASES", phases.toString(), "VM_SSH_PORT", "" + Guest.freePort()); // 2222 is the shared VM's
        try {
            guest.install().exits(2).says("beginning at phase 3: changed since: its script", "to confirm it: --yes");
            guest.ctl("start").exits(0);
            guest.install("provision").exits(0).says("STEP 1: read the settings", "DONE WITH PHASE 3.", "vm-ctl snapshot clean");
            guest.ctl("snapshot", "clean", "--yes").exits(0);
            guest.sh("rm /root/changed").exits(0);
            guest.ctl("restore").exits(0);
            guest.sh("cat /root/changed").exits(0).answers("changed");
            guest.ctl("stop").exits(0);
            guest.install().exits(0).says("nothing it was made from has changed");
            guest.install("provision").exits(3).says("vm-ctl start");
        } finally {
            guest.ctl("stop", "--force");
        }
    }

    /** Starts an installation, whose console is read from the beginning. */
    private static Process begin(Guest guest, String log, String... arguments) throws IOException {
        Files.deleteIfExists(INSTALL.resolve(log + ".log"));
        return guest.start(OUTPUT, "VmAutoInstall", arguments);
    }

    /** Waits for a sign of the cause on the console, then for the end, and holds what was said against what is wanted. */
    private static void fails(Process tool, int phase, String sign, int code, int silence, String where, String... says) throws Exception {
        Path log = INSTALL.resolve("phase" + phase + ".log");
        Map<Path, FileTime> before = disks();
        await(tool, log, sign);
        long seen = System.nanoTime();
        assertEquals(code, end(tool), () -> read(OUTPUT));
        Duration took = Duration.ofNanos(System.nanoTime() - seen);
        System.out.println("phase " + phase + ", " + sign + ": ended " + took.toMillis() + " ms after it");
        assertTrue(took.toSeconds() < 60 + silence, "it took " + took);
        Path picture = INSTALL.resolve("phase" + phase + ".png");
        List<String> all = new ArrayList<>(Arrays.asList(says));
        all.addAll(List.of("phase " + phase + " failed at " + where, "\nthe last console lines:\n  | ", "\nwhole log: " + log + "\n",
                "\nscreenshot: " + picture + "\n"));
        new Script.Result("vm-auto-install", code, "", read(OUTPUT)).says(all.toArray(String[]::new));
        assertEquals("\u0089PNG", read(picture).substring(0, 4));
        assertEquals(before, disks());
        assertEquals(List.of(), TWIN.qemus());
    }

    private static void killQemu(Guest guest, int phase, String... arguments) throws Exception {
        Process tool = begin(guest, "phase" + phase, arguments);
        await(tool, INSTALL.resolve("phase" + phase + ".log"), "STEP 1: come up");
        TWIN.qemus().forEach(ProcessHandle::destroyForcibly);
        assertEquals(69, end(tool), () -> read(OUTPUT));
        new Script.Result("vm-auto-install", 69, "", read(OUTPUT)).says("phase " + phase + " failed at step 1 (come up) after ",
                "QEMU ended by itself with signal 9", "  | STEP 1: come up\n", "to go on from there: vm-auto-install ");
    }

    private static void killTool(Guest guest, int phase, String... arguments) throws Exception {
        Process tool = begin(guest, "phase" + phase, arguments);
        await(tool, INSTALL.resolve("phase" + phase + ".log"), "STEP 1: come up");
        List<ProcessHandle> qemus = TWIN.qemus();
        tool.destroyForcibly().waitFor();
        assertEquals(1, qemus.size());
        qemus.get(0).onExit().get(5, TimeUnit.MINUTES);
    }

    private static int end(Process tool) throws InterruptedException {
        boolean ended = tool.waitFor(15, TimeUnit.MINUTES);
        tool.destroyForcibly().waitFor();
        assertTrue(ended, "vm-auto-install hangs");
        return tool.exitValue();
    }

    /** The finished disks, and when they were written: what a failure must not touch. */
    private static Map<Path, FileTime> disks() throws IOException {
        Map<Path, FileTime> disks = new TreeMap<>();
        for (String file : List.of(".install/phase1.qcow2", ".install/phase2.qcow2", ".install/phase3.qcow2", "-clean.qcow2")) {
            Path disk = TWIN.file(file);
            if (Files.exists(disk)) {
                disks.put(disk, Files.getLastModifiedTime(disk));
            }
        }
        return disks;
    }

    private static String read(Path file) {
        try {
            return Files.readString(file, file.equals(OUTPUT) ? java.nio.charset.StandardCharsets.UTF_8 : ISO_8859_1);
        } catch (IOException missing) {
            return "";
        }
    }

    private static void await(Process tool, Path log, String text) throws InterruptedException {
        long limit = System.nanoTime() + Duration.ofMinutes(15).toNanos(); // two phases on a busy machine
        while (!read(log).contains(text)) {
            boolean going = tool.isAlive() && System.nanoTime() < limit;
            assertTrue(going || read(log).contains(text), () -> "'" + text + "' never came:\n" + read(log) + "\n" + read(OUTPUT));
            Thread.sleep(50);
        }
    }
}
