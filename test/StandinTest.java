import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** The stand-in guest is as strict as DragonFly: what its table refuses there, it refuses here. */
@Tag("core")
@Tag("vm")
final class StandinTest {

    private static final Guest GUEST = Guest.installed();
    private static final Path SCRIPT = Path.of("test/standin/strictness.sh").toAbsolutePath();

    @BeforeAll
    static void running() {
        GUEST.fresh();
    }

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), GUEST.qemus());
    }

    @Test
    void eachProgramTakesItsFlagsAndNoOthers() {
        List<String> ssh = List.of("sh", "-c", "exec ssh -F \"$1\" guest sh -s <\"$2\"", "sh",
                GUEST.vmDir().resolve("ssh_config").toString(), SCRIPT.toString());
        assertAllPassed(GUEST.run(ssh).exits(0).out());
    }

    @Test
    void soDoesTheLiveCd() throws IOException {
        Path phases = Guest.BUILD.resolve("test/phases strict");
        Guest.delete(phases);
        Files.createDirectories(phases);
        for (String phase : List.of("phase1-install.sh", "phase2-update.sh", "phase3-provision.sh")) {
            Path script = Files.writeString(phases.resolve(phase), Files.readString(SCRIPT) + "echo 'DONE WITH PHASE 1.'\npoweroff\nsleep 86400\n");
            Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
        }
        Guest live = Guest.in(Guest.BUILD.resolve("test/live")).with("VM_PHASES", phases.toString(),
                "VM_IMAGE", GUEST.vmDir().resolve("dfly-6.4.2.iso").toString());
        Guest.delete(live.vmDir());
        live.install("--to", "1").exits(0);
        assertAllPassed(Files.readString(live.file(".install").resolve("phase1.log")));
        Guest.delete(live.vmDir());
    }

    private static void assertAllPassed(String out) {
        assertTrue(Pattern.compile("^\\d{3} passed, 0 failed$", Pattern.MULTILINE).matcher(out.replace("\r", "")).find(), out);
    }
}
