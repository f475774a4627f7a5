///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES Guest.java
//SOURCES Mirror.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.platform.console.ConsoleLauncher;

/** What goes wrong in an installation: each time the right words and code, nothing lost, nothing left running. */
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class InstallFaultsTest {

    /** Installations that fail, beside the installed VM. */
    private static final Guest BROKEN = Guest.in(Guest.BUILD.resolve("test/broken"))
            .with("VM_IMAGE", Guest.installed().vmDir().resolve("dfly-6.4.2.iso").toString());
    private static Mirror mirror;

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "InstallFaultsTest", "--disable-banner", "--details", "summary"});
    }

    @BeforeAll
    static void start() throws IOException {
        mirror = new Mirror(Guest.STANDIN).start();
        BROKEN.ctl("destroy", "--yes");
        Guest.delete(BROKEN.vmDir());
    }

    @AfterAll
    static void end() throws IOException {
        mirror.close();
        Guest.delete(BROKEN.vmDir());
    }

    @AfterEach
    void noInstallationIsLeftRunning() {
        assertEquals(List.of(), BROKEN.qemus());
    }

    private static Guest.Result install(String fault, String... arguments) {
        return BROKEN.withFirmware(mirror.port(), fault).install(arguments);
    }

    @Test
    @Order(1)
    void aPanicInPhase1IsNamedWithItsConsoleAndAScreenshot() throws IOException {
        install("panic@phase1", "--to", "1").exits(1).says("panic", "phase1.log", ".png");
        assertFalse(Files.exists(BROKEN.file(".install").resolve("phase1.qcow2")));
    }

    @Test
    @Order(2)
    void aGuestThatHaltsInsteadOfPoweringOffIsAFailure() {
        install("halt", "--to", "1").exits(1).says("halt");
    }

    @Test
    @Order(3)
    void aGuestThatRebootsIsAFailure() {
        install("reboot-loop", "--to", "1").exits(1).says("reboot");
    }

    @Test
    @Order(4)
    void anInstallerKilledInPhase1LeavesNothingInTheWay() throws Exception {
        killDuring("phase 1, step 6", "--to", "1");
        install("", "--to", "1").exits(0);
        assertTrue(Files.exists(BROKEN.file(".install").resolve("phase1.qcow2")));
    }

    @Test
    @Order(5)
    void withoutItsRepositoryPhase2SaysSoAndPhase1IsKept() throws IOException {
        var phase1 = Files.getLastModifiedTime(BROKEN.file(".install").resolve("phase1.qcow2"));
        install("nonet@phase2", "--to", "2").exits(1).says("PHASE 2 FAILED", "--from 2");
        assertEquals(phase1, Files.getLastModifiedTime(BROKEN.file(".install").resolve("phase1.qcow2")));
    }

    @Test
    @Order(6)
    void anInstallerKilledInPhase2GoesOnThere() throws Exception {
        var phase1 = Files.getLastModifiedTime(BROKEN.file(".install").resolve("phase1.qcow2"));
        killDuring("phase 2, step", "--to", "2");
        install("", "--to", "2").exits(0);
        assertEquals(phase1, Files.getLastModifiedTime(BROKEN.file(".install").resolve("phase1.qcow2")));
    }

    @Test
    @Order(7)
    void aPanicInPhase3LeavesPhase2() {
        install("panic@phase3").exits(1).says("panic", "--from 3");
        assertTrue(Files.exists(BROKEN.file(".install").resolve("phase2.qcow2")));
        assertFalse(Files.exists(BROKEN.file("-clean.qcow2")));
    }

    /** Kills the installer without warning once it says where it is; its QEMU must not outlive it for long. */
    private static void killDuring(String moment, String... arguments) throws Exception {
        Path log = Guest.BUILD.resolve("test/killed.log");
        Process tool = BROKEN.withFirmware(mirror.port(), "").start(log, "VmAutoInstall", arguments);
        try {
            await(log, moment);
        } finally {
            tool.destroyForcibly().waitFor();
        }
    }

    private static void await(Path log, String text) throws Exception {
        for (int i = 0; i < 3000; i++) { // ten minutes: two phases on a busy machine
            if (Files.exists(log) && Files.readString(log).contains(text)) {
                return;
            }
            Thread.sleep(200);
        }
        throw new AssertionError("'" + text + "' never came:\n" + Files.readString(log));
    }
}
