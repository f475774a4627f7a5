///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES Guest.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

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
import org.junit.jupiter.api.Test;
import org.junit.platform.console.ConsoleLauncher;

/** The stand-in guest is as strict as DragonFly: what its table refuses there, it refuses here. */
final class StandinTest {

    private static final Guest GUEST = Guest.installed();
    private static final Path SCRIPT = Path.of("test/standin/strictness.sh").toAbsolutePath();

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "StandinTest", "--disable-banner", "--details", "summary"});
    }

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
