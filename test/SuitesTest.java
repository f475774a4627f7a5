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

/** VmTest on the stand-in guest, with the real Go toolchain and the sample project. */
final class SuitesTest {

    private static final Guest GUEST = Guest.installed();

    public static void main(String... args) {
        ConsoleLauncher.main(new String[] {"execute", "--select-class", "SuitesTest", "--disable-banner", "--details", "summary"});
    }

    @BeforeAll
    static void aFreshGuestWithTheSample() {
        GUEST.fresh();
        GUEST.sync().exits(0);
    }

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), GUEST.qemus());
    }

    @Test
    void severalSuitesAreBuiltOnceAndPass() throws Exception {
        Path junit = Guest.BUILD.resolve("test/junit.xml");
        Path json = Guest.BUILD.resolve("test/test.json");
        Guest.Result result = GUEST.test("--junit", junit.toString(), "--json", json.toString(), "unit", "phase4").exits(0);
        assertEquals(1, (result.out() + result.err()).split("gmake build", -1).length - 1, "built once");
        assertTrue(Files.readString(junit).contains("<testcase"), Files.readString(junit));
        assertTrue(Files.readString(json).contains("\"Action\":\"pass\""));
    }

    @Test
    void aFailingTestIsReportedAsFailing() {
        GUEST.test("unit", "--env", "SAMPLE_FAIL=1").exits(1);
    }

    @Test
    void aCommandThatIsNotGoPassesThrough() {
        GUEST.with("VM_TEST_GREET", "echo hello; exit 7").test("greet").exits(1).says("7");
        GUEST.test("run", "--", "sh", "-c", "exit 7").exits(7);
    }

    @Test
    void aFailedBuildIsABuildFailure() {
        GUEST.with("VM_TEST_BUILD", "gmake no-such-target").test("unit").exits(1).says("build");
    }

    @Test
    void theLimitKillsTheSuiteAndEverythingItStarted() {
        GUEST.with("VM_TEST_SLEEPY", "sleep 987 & sleep 986", "VM_TEST_BUILD", "true").test("--timeout", "5s", "sleepy").exits(124);
        assertEquals("", GUEST.sh("ps -axo command | grep 'sleep 98[67]' || true").exits(0).out());
    }

    @Test
    void anUnknownSuiteIsRefusedWithTheNearest() {
        GUEST.test("units").exits(2).says("unit");
    }

    @Test
    void testsThatDoNotCompileAreABuildFailure() {
        GUEST.sh("mkdir -p /root/sample/broken && echo 'package broken; func f() { x }' >/root/sample/broken/broken_test.go").exits(0);
        try {
            GUEST.with("VM_TEST_BROKEN", "go test ./broken/", "VM_TEST_BUILD", "true").test("broken").exits(1).says("build");
        } finally {
            GUEST.sh("rm -r /root/sample/broken").exits(0);
        }
    }
}
