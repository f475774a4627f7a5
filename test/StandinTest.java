///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES Guest.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.platform.console.ConsoleLauncher;

/** The stand-in guest is as strict as DragonFly: what its table refuses there, it refuses here. */
final class StandinTest {

    private static final Guest GUEST = Guest.installed();

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
    void eachProgramTakesItsFlagsAndNoOthers() throws Exception {
        Path script = Path.of("test/standin/strictness.sh").toAbsolutePath();
        List<String> ssh = List.of("sh", "-c", "exec ssh -F \"$1\" guest sh -s <\"$2\"", "sh",
                GUEST.vmDir().resolve("ssh_config").toString(), script.toString());
        Guest.Result result = GUEST.run(ssh).exits(0);
        String last = result.out().lines().reduce((a, b) -> b).orElse("");
        assertTrue(last.matches("\\d\\d+ passed, 0 failed"), result.out());
    }
}
