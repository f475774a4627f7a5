import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** An installation by hand: what a person types at the console, and what becomes of the disk. */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class ByHandTest {

    private static final Guest HAND = Guest.in(Guest.BUILD.resolve("test/by hand"))
            .with("VM_IMAGE", Guest.standin().resolve("iso-images/dfly-x86_64-6.4.2_REL.iso").toString());
    private static final Path LOG = Guest.BUILD.resolve("test/by-hand.log");
    private static final Path DISK = HAND.file(".install").resolve("by-hand.qcow2");
    private static final Path CLEAN = HAND.file("-clean.qcow2");

    @BeforeAll
    static void noVm() throws IOException {
        HAND.ctl("destroy", "--yes");
        Guest.delete(HAND.vmDir());
        Files.createDirectories(HAND.vmDir());
        Files.copy(Guest.installed().vmDir().resolve("accel.json"), HAND.vmDir().resolve("accel.json"));
    }

    @AfterEach
    void nothingIsLeftRunning() {
        assertEquals(List.of(), HAND.qemus());
    }

    /** At a terminal: the loader, phase 1 from the CD, then the one line that the instructions give. */
    @Test
    @Order(1)
    void whatThePrintedInstructionsSayGivesAVmLikeAnother() throws Exception {
        try (Mirror mirror = new Mirror(Guest.standin()).start()) {
            Guest guest = HAND.withFirmware(mirror.port(), "");
            guest.setup("disk", "--disk-size", "8G").exits(0).answers(DISK.toString());
            Process terminal = guest.atTerminal(LOG, "VmAutoInstall", "by-hand");
            try (OutputStream keys = terminal.getOutputStream()) {
                Guest.type(keys, LOG, "9", "OK ");
                Guest.type(keys, LOG, "\r", "OK ");
                Guest.type(keys, LOG, "set console=comconsole\r", "OK ");
                Guest.type(keys, LOG, "boot\r", "Copyright");
                Guest.await(LOG, "login:");
                Guest.type(keys, LOG, "root\r", "# ");
                Guest.type(keys, LOG, "mount_cd9660 /dev/cd1 /mnt && sh /mnt/phase1.sh\r", "STEP 1");
                end(terminal, 1, "booting it once, to see that it answers", "the check of the disk (which is kept) failed at ",
                        "a tool is missing or broken: go, bash, git, ", "to go on from there: vm-auto-install by-hand\r\n");
            }
            guest.ctl("start").exits(69).says("the installation of guest by hand is not finished: vm-auto-install by-hand continues");

            terminal = guest.atTerminal(LOG, "VmAutoInstall", "by-hand");
            try (OutputStream keys = terminal.getOutputStream()) {
                Guest.await(LOG, "login:");
                Guest.type(keys, LOG, "root\r", "assword:");
                Guest.type(keys, LOG, Files.readString(guest.file(".ssh").resolve("root_password")).strip() + "\r", "# ");
                Guest.type(keys, LOG, "mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh\r", "STEP 1");
                end(terminal, 0, "DONE WITH PHASE 3.", "guest is installed: DragonFly 6.4-RELEASE x86_64", CLEAN + "\r\n");
            }
            assertEquals("r--------", PosixFilePermissions.toString(Files.getPosixFilePermissions(CLEAN)));
            assertFalse(Files.exists(DISK));
            assertFalse(Files.exists(guest.file(".install").resolve("by-hand.iso")), "the root password is on it");
            guest.ctl("start", "--dry-run").exits(0).answers("guest.disks/"); // the check has booted it, and asked for go and rsync
        }
    }

    /** Without a terminal, over an installed VM. Ctrl-] shuts the guest down, and a check that is interrupted changes nothing. */
    @Test
    @Order(2)
    void anInterruptedCheckKeepsBothDisks() throws Exception {
        Object clean = Files.getAttribute(CLEAN, "unix:ino");
        Files.copy(CLEAN, DISK, StandardCopyOption.REPLACE_EXISTING);
        Files.setPosixFilePermissions(DISK, PosixFilePermissions.fromString("rw-------"));
        HAND.ctl("restore").exits(0); // makes the working disk, and boots nothing
        HAND.ctl("snapshot", "kept").exits(0);
        HAND.install("by-hand").exits(2).says("this would replace VM guest and delete its disks and snapshots", "--yes");
        Process tool = HAND.attach(LOG, "VmAutoInstall", "by-hand", "--yes");
        Guest.await(LOG, "login:");
        OutputStream keys = tool.getOutputStream();
        keys.write(0x1d);
        keys.close(); // the end of the input ends nothing
        Guest.await(LOG, "booting it once, to see that it answers");
        tool.destroy();
        end(tool, 143, "shutting it down; Ctrl-] again ends it at once", "Powering system off");
        assertTrue(Files.exists(DISK));
        assertEquals(clean, Files.getAttribute(CLEAN, "unix:ino"));
        HAND.ctl("snapshot", "--list").exits(0).answers("kept");
        HAND.ctl("destroy", "--yes").exits(0);
        assertFalse(Files.exists(DISK));
    }

    private static void end(Process tool, int code, String... says) throws Exception {
        boolean ended = tool.waitFor(10, TimeUnit.MINUTES);
        tool.destroyForcibly().waitFor();
        new Script.Result("by-hand", ended ? tool.exitValue() : -1, "", Files.readString(LOG, java.nio.charset.StandardCharsets.ISO_8859_1))
                .says(says).exits(code);
    }
}
