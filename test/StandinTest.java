import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/**
 * The stand-in guest, installed, is as strict as DragonFly: what its table refuses there, it refuses here. And it prints on the serial
 * line what a real DragonFly was seen to print. StandinBootTest tests the same of its CD.
 */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class StandinTest {

    static final Path SCRIPT = Path.of("test/standin/strictness.sh").toAbsolutePath();
    static final String DEBUGGER = "Debugger(\"panic\")\r\n\r\nCPU0 stopping CPUs: 0x00000000\r\n stopped\r\n"
            + "Stopped at      Debugger+0x7c:  movb    $0,0xb834e9(%rip)\r\ndb> ";
    private static Guest guest;

    /** Not before: StandinBootTest uses this class, in another JVM. */
    @BeforeAll
    static void aVm() {
        guest = Guest.twin("standin's");
    }

    /** The VM as it was after its installation, also when a test before has made it panic. */
    private static void freshGuest() {
        guest.ctl("stop", "--force").exits(0);
        guest.fresh();
    }

    @AfterAll
    static void stop() {
        guest.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), guest.qemus());
    }

    @Test
    @Order(1)
    void gitWorksOverSsh() throws IOException {
        freshGuest();
        Path clone = Guest.BUILD.resolve("test/cloned");
        Guest.delete(clone);
        guest.sh("cd /root && rm -rf one.git && git init -q --bare one.git && git init -q one && cd one && echo text >file && git add file"
                + " && git -c user.name=x -c user.email=x@example.org commit -qm one && git push -q /root/one.git HEAD:refs/heads/main"
                + " && git -C /root/one.git symbolic-ref HEAD refs/heads/main").exits(0);
        guest.run(List.of("sh", "-c", "GIT_SSH_COMMAND=\"ssh -F \\\"$1\\\"\" git clone -q guest:/root/one.git \"$2\"", "sh",
                guest.vmDir().resolve("ssh_config").toString(), clone.toString())).exits(0);
        assertEquals("text\n", Files.readString(clone.resolve("file")));
        Guest.delete(clone);
    }

    @Test
    void eachProgramTakesItsFlagsAndNoOthers() {
        freshGuest();
        List<String> ssh = List.of("sh", "-c", "exec ssh -F \"$1\" guest sh -s <\"$2\"", "sh",
                guest.vmDir().resolve("ssh_config").toString(), SCRIPT.toString());
        assertAllPassed(guest.run(ssh).exits(0).out());
    }

    static void assertAllPassed(String out) {
        assertTrue(Pattern.compile("^\\d{3} passed, 0 failed$", Pattern.MULTILINE).matcher(out.replace("\r", "")).find(), out);
    }

    /** The last word of the guest that the test before has used. */
    @Test
    @Order(2)
    void aPanicGoesOnInTheConsolesLineAndStaysInTheDebugger() throws Exception {
        guest.ctl("start").exits(0);
        String console = consoleAfter("sysctl debug.debugger_on_panic=1; sysctl debug.panic=1", "db> ");
        assertTrue(console.contains("panic: sysctl_debug_panic\r\ncpuid = 0\r\nTrace beginning at frame 0x") && console.endsWith(DEBUGGER), console);
        assertFalse(console.contains("\npanic: "), "it begins in the line of the login prompt: " + console);
        guest.ctl("stop", "--force").exits(0);
    }

    @Test
    void withoutTheDebuggerItRebootsAfter15Seconds() throws Exception {
        freshGuest();
        int before = consoleLog().length();
        consoleAfter("sysctl debug.debugger_on_panic=0; sysctl debug.panic=1",
                "Automatic reboot in 15 seconds - press a key on the console to abort\r\n");
        long said = System.nanoTime();
        String console = console(before, "Rebooting...\r\n");
        long took = (System.nanoTime() - said) / 1_000_000_000;
        assertTrue(took >= 10 && took < 180, "it rebooted after " + took + " s"); // the guest's clock may be ahead of ours
        assertFalse(console.contains("Debugger("), console);
        guest.ctl("stop", "--force").exits(0);
    }

    @Test
    void aShutdownOverSshIsSilentUntilItsScriptsRun() throws Exception {
        freshGuest();
        String console = consoleAfter("shutdown -p now", "Powering system off");
        assertFalse(console.contains("System shutdown time has arrived"), console);
        assertTrue(Pattern.compile("\\w+ +\\d+ [0-9:]+ \\S+ shutdown: power-down by root: \r\nShutting down daemon processes:\\.\r\nStopping cron\\.\r\n").matcher(console).find(), console);
        assertTrue(console.contains("\r\nhammer2_unmount(A): devvp da0s1d rbdirty 0 ronly=0\r\n"), console);
        guest.ctl("stop", "--force").exits(0);
    }

    /** What the VM's console shows after a command over ssh, up to a text. The command may end the guest or never end. */
    private static String consoleAfter(String command, String until) throws Exception {
        int from = consoleLog().length();
        Process tool = guest.start(Guest.BUILD.resolve("test/standin-command.txt"), "VmCtl", "exec", "--", command);
        try {
            return console(from, until);
        } finally {
            tool.destroyForcibly().waitFor();
        }
    }

    private static String console(int from, String until) throws Exception {
        for (long deadline = System.nanoTime() + Duration.ofMinutes(10).toNanos(); System.nanoTime() < deadline; Thread.sleep(100)) {
            String since = consoleLog().substring(from);
            if (since.contains(until)) {
                return since;
            }
        }
        throw new AssertionError("'" + until + "' never came:\n" + consoleLog());
    }

    private static String consoleLog() throws IOException {
        return Files.readString(guest.file(".console.log"), ISO_8859_1);
    }
}
