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
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.platform.console.ConsoleLauncher;

/**
 * From an empty VM_DIR to an installed VM: download from a mirror, three phases on the stand-in guest, resuming.
 *
 * <p>The VM it leaves is the one that the other end-to-end tests share.
 */
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class InstallTest {

    private static final Guest GUEST = Guest.installed();
    private static Mirror mirror;

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "InstallTest", "--disable-banner", "--details", "summary"});
    }

    @BeforeAll
    static void anEmptyDirectory() throws IOException {
        Files.deleteIfExists(Guest.BUILD.resolve("test/installed"));
        if (Files.exists(GUEST.vmDir())) {
            GUEST.ctl("destroy", "--yes");
            Guest.delete(GUEST.vmDir());
        }
        mirror = new Mirror(Guest.STANDIN).start();
    }

    @AfterAll
    static void stopTheMirror() throws IOException {
        mirror.close();
    }

    @AfterEach
    void nothingIsLeftRunning() {
        assertEquals(List.of(), GUEST.qemus());
    }

    @Test
    @Order(1)
    void withoutAnIsoTheInstallationSaysHowToGetOne() {
        withMirror("").install().exits(69).says("vm-setup");
    }

    @Test
    @Order(2)
    void theInstallerComesFromTheMirrorOnce() {
        withMirror("").setup("fetch", "--trust-mirror").exits(0);
        assertTrue(Files.exists(GUEST.vmDir().resolve("dfly-6.4.2.iso")));
        mirror.forgetRequests();
        withMirror("").setup("fetch", "--trust-mirror").exits(0);
        assertEquals(List.of(), mirror.requests().stream().filter(request -> request.contains(".iso.bz2 200")).toList());
    }

    @Test
    @Order(3)
    void anIsoThatDoesNotMatchThePinnedSumsIsRefused() throws IOException {
        Path other = Guest.BUILD.resolve("test/pinned");
        Guest.delete(other);
        withMirror("").with("VM_DIR", other.toString()).setup("fetch").exits(1).says("dfly-x86_64-6.4.2_REL.iso");
        assertFalse(Files.exists(other.resolve("dfly-6.4.2.iso")));
        Guest.delete(other);
    }

    @Test
    @Order(4)
    void aFailingPhaseIsReportedAndNothingIsLeft() throws IOException {
        Guest.Result result = withMirror("").with("VM_PHASES", phasesWhere("phase1-install.sh", "newfs /dev/", "newfs --bad /dev/").toString())
                .install();
        result.exits(1).says("PHASE 1 FAILED", "phase1.log", "--from 1");
        assertFalse(Files.exists(GUEST.file("-clean.qcow2")));
    }

    @Test
    @Order(5)
    void threePhasesInstallWithoutAWord() throws IOException {
        Guest.Result result = withMirror("").install().exits(0);
        for (int phase = 1; phase <= 3; phase++) {
            assertTrue(result.err().contains("DONE WITH PHASE " + phase + ".") || (result.err() + result.out()).contains("phase " + phase), result.err());
        }
        Path clean = GUEST.file("-clean.qcow2");
        assertFalse(PosixFilePermissions.toString(Files.getPosixFilePermissions(clean)).contains("w"));
        String info = GUEST.run(List.of("qemu-img", "info", clean.toString())).exits(0).out();
        assertFalse(info.contains("backing file"), info);
        for (String secret : List.of("id_ed25519", "host_key", "root_password")) {
            assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(GUEST.file(".ssh").resolve(secret))), secret);
        }
        assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(GUEST.vmDir())));
        String password = Files.readString(GUEST.file(".ssh").resolve("root_password")).strip();
        try (Stream<Path> files = Files.walk(GUEST.vmDir())) {
            for (Path file : files.filter(Files::isRegularFile).filter(file -> !file.endsWith("root_password")).toList()) {
                assertFalse(file.toString().endsWith(".iso") && file.toString().contains("phase"), "the phase disc holds a password: " + file);
                if (Files.size(file) < 10_000_000) {
                    assertFalse(new String(Files.readAllBytes(file), java.nio.charset.StandardCharsets.ISO_8859_1).contains(password), file.toString());
                }
            }
        }
    }

    @Test
    @Order(6)
    void aSecondRunHasNothingToDo() throws IOException {
        FileTime before = Files.getLastModifiedTime(GUEST.file("-clean.qcow2"));
        withMirror("").install().exits(0);
        assertEquals(before, Files.getLastModifiedTime(GUEST.file("-clean.qcow2")));
    }

    @Test
    @Order(7)
    void aChangedPhaseIsNamedAndNotRunUnasked() throws IOException {
        FileTime before = Files.getLastModifiedTime(GUEST.file("-clean.qcow2"));
        withMirror("").with("VM_PHASES", phasesWhere("phase3-provision.sh", "set -eu", "set -eu # edited").toString())
                .install().exits(2).says("phase 3", "--yes");
        assertEquals(before, Files.getLastModifiedTime(GUEST.file("-clean.qcow2")));
    }

    @Test
    @Order(8)
    void anEditedPhase3RerunsPhase3Only() throws IOException {
        Guest edited = withMirror("").with("VM_PHASES", phasesWhere("phase3-provision.sh", "set -eu", "set -eu # edited").toString());
        FileTime phase2 = Files.getLastModifiedTime(GUEST.file(".install").resolve("phase2.qcow2"));
        edited.install("--yes").exits(0);
        assertEquals(phase2, Files.getLastModifiedTime(GUEST.file(".install").resolve("phase2.qcow2")));
        Files.createFile(Guest.BUILD.resolve("test/installed"));
    }

    private static Guest withMirror(String fault) {
        return GUEST.withFirmware(mirror.port(), fault);
    }

    /** A copy of phases/ with one edit. */
    static Path phasesWhere(String script, String from, String to) throws IOException {
        Path copy = Guest.BUILD.resolve("test/phases edited");
        Guest.delete(copy);
        Files.createDirectories(copy);
        try (Stream<Path> scripts = Files.list(Path.of("phases"))) {
            for (Path phase : scripts.toList()) {
                Files.copy(phase, copy.resolve(phase.getFileName()), java.nio.file.StandardCopyOption.COPY_ATTRIBUTES);
            }
        }
        String text = Files.readString(copy.resolve(script));
        assertTrue(text.contains(from), script + " does not hold: " + from);
        Files.writeString(copy.resolve(script), text.replaceFirst(java.util.regex.Pattern.quote(from), java.util.regex.Matcher.quoteReplacement(to)));
        return copy;
    }
}
