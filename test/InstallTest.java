import static java.nio.charset.StandardCharsets.ISO_8859_1;
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
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/**
 * From an empty VM_DIR to an installed VM: download from a mirror, three phases on the stand-in guest, resuming.
 *
 * <p>The VM it leaves is the one that the other end-to-end tests share.
 */
@Tag("core")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class InstallTest {

    private static final Guest GUEST = Guest.installed();
    private static Mirror mirror;

    @BeforeAll
    static void anEmptyDirectory() throws IOException {
        Guest.delete(Guest.FIRST_START);
        if (Files.exists(GUEST.vmDir())) {
            GUEST.ctl("destroy", "--yes");
            Guest.delete(GUEST.vmDir());
        }
        mirror = new Mirror(Guest.standin()).start();
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
        withMirror().install().exits(69).says("vm-setup");
    }

    @Test
    @Order(2)
    void theInstallerComesFromTheMirrorOnce() {
        withMirror().setup("fetch", "--trust-mirror").exits(0);
        assertTrue(Files.exists(GUEST.vmDir().resolve("dfly-6.4.2.iso")));
        mirror.forgetRequests();
        withMirror().setup("fetch", "--trust-mirror").exits(0);
        assertEquals(List.of(), mirror.requests().stream().filter(request -> request.contains(".iso.bz2 200")).toList());
    }

    @Test
    @Order(3)
    void anIsoThatDoesNotMatchThePinnedSumsIsRefused() throws IOException {
        Path other = Guest.BUILD.resolve("test/pinned");
        Guest.delete(other);
        withMirror().with("VM_DIR", other.toString()).setup("fetch").exits(1).says("dfly-x86_64-6.4.2_REL.iso");
        assertFalse(Files.exists(other.resolve("dfly-6.4.2.iso")));
        Guest.delete(other);
    }

    @Test
    @Order(4)
    void anotherVersionIsNamedAndReplacesNothingUnasked() throws IOException {
        Files.createDirectories(GUEST.file(".install")); // what an installation of 6.4.0 left
        Files.createDirectories(GUEST.file(".snapshots").resolve("of 6.4.0"));
        Files.writeString(GUEST.file("-clean.qcow2"), "6.4.0");
        Files.writeString(GUEST.file(".install").resolve("installed1.inputs"), "DFLY_VERSION=6.4.0\n");
        withMirror().install().exits(2).says("DFLY_VERSION (6.4.0 -> 6.4.2)", "replace VM guest and delete its disks and snapshots", "--yes");
        assertEquals("6.4.0", Files.readString(GUEST.file("-clean.qcow2")));
    }

    @Test
    @Order(5)
    void threePhasesInstallWithoutAWord() throws IOException {
        phases(Guest.INSTALLED_PHASES, "set -eux").install("--yes").exits(0) // with set -x, to see that the trace does not print the password
                .says("phase 1 done in ", "phase 2 done in ", "phase 3 done in ", "guest is installed: DragonFly 6.4-RELEASE x86_64");
        assertFalse(Files.exists(GUEST.file(".snapshots")), "they back on the disk that is gone");
        String installed = Files.readString(GUEST.file(".install").resolve("install.json"));
        assertTrue(installed.contains("\"version\":\"6.4.2\""), installed);
        String sum = GUEST.run(List.of("sha256sum", GUEST.vmDir().resolve("dfly-6.4.2.iso").toString())).exits(0).out();
        assertTrue(installed.contains("\"isoSha256\":\"" + sum.substring(0, 64) + "\""), installed);
        Path clean = GUEST.file("-clean.qcow2");
        assertEquals("r--------", mode(clean));
        String info = GUEST.run(List.of("qemu-img", "info", clean.toString())).exits(0).out();
        assertFalse(info.contains("backing file"), info);
        for (String secret : List.of("id_ed25519", "host_key", "root_password")) {
            assertEquals("rw-------", mode(GUEST.file(".ssh").resolve(secret)), secret);
        }
        assertEquals("rwx------", mode(GUEST.vmDir()));
        String password = Files.readString(GUEST.file(".ssh").resolve("root_password")).strip();
        try (Stream<Path> files = Files.walk(GUEST.vmDir())) {
            for (Path file : files.filter(Files::isRegularFile).filter(file -> !file.endsWith("root_password")).toList()) {
                assertFalse(file.toString().matches(".*phase\\d\\.iso"), "the phase disc holds a password: " + file);
                assertFalse(Files.size(file) < 10_000_000 && Files.readString(file, ISO_8859_1).contains(password), file.toString());
            }
        }
        assertTrue(Files.readString(GUEST.file(".install").resolve("phase3.log"), ISO_8859_1).contains("+ "), "the trace");
    }

    @Test
    @Order(6)
    void onlyAChangeIsInstalledAndNotUnasked() throws IOException {
        FileTime before = Files.getLastModifiedTime(GUEST.file("-clean.qcow2"));
        withMirror().with("VM_PHASES", Guest.INSTALLED_PHASES.toString()).install().exits(0).says("nothing it was made from has changed");
        Path edited = Guest.BUILD.resolve("test/phases edited");
        phases(edited, "set -eu").install().exits(2).says("beginning at phase 3: changed since: its script\n", "--yes");
        withMirror().with("DFLY_VERSION", "6.4.3", "VM_IMAGE", GUEST.vmDir().resolve("dfly-6.4.2.iso").toString())
                .install().exits(2).says("beginning at phase 1: changed since: DFLY_VERSION (6.4.2 -> 6.4.3)\n", "--yes");
        assertEquals(before, Files.getLastModifiedTime(GUEST.file("-clean.qcow2")));
    }

    /** Once, for all twins: they begin with its RAM. */
    @Test
    @Order(7)
    void theFirstStartKeepsDiskAndRam() throws IOException {
        GUEST.ctl("start").exits(0).says("kept disk and RAM");
        GUEST.ctl("stop", "--force").exits(0);
        GUEST.keepFirstStart();
    }

    /** A copy of phases/ in which phase 3 has this line instead of `set -eu`. */
    private static Guest phases(Path copy, String first) throws IOException {
        return withMirror().with("VM_PHASES", Guest.phasesWhere(copy, "phase3-provision.sh", "set -eu", first).toString());
    }

    private static String mode(Path file) throws IOException {
        return PosixFilePermissions.toString(Files.getPosixFilePermissions(file));
    }

    private static Guest withMirror() {
        return GUEST.withFirmware(mirror.port(), "");
    }
}
