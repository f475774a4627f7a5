import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** The make targets, as a user types them, on the VM that InstallTest installed; without those that ManualTest runs. */
@Tag("core")
@Tag("vm")
final class MakeTest {

    private static final Path TOP = Path.of("").toAbsolutePath();
    private static final Path PROJECT = Guest.BUILD.resolve("test/make project");
    private static final Guest GUEST = Guest.installed().with("VM_PROJECT", PROJECT.toString());

    /** The sample, with the script for capturing fixtures that go-synth has. */
    @BeforeAll
    static void aProject() throws IOException {
        Guest.delete(PROJECT);
        new ProcessBuilder("cp", "-R", Guest.SAMPLE.toString(), PROJECT.toString()).inheritIO().start().onExit().join();
        for (String package_ : List.of("scenario", "build", "internal/worker")) { // SuitesTest compiles these
            Guest.delete(PROJECT.resolve(package_));
        }
        Path script = Files.createDirectories(PROJECT.resolve("scripts")).resolve("capture-bsd-fixtures.sh");
        Files.writeString(script, "#!/bin/sh\nmkdir -p stats/testdata/fixtures && uname -s >stats/testdata/fixtures/uname.txt\n");
        Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
        GUEST.ctl("stop", "--force").exits(0);
        KilledCommand.run(GUEST, KilledCommand.Way.HALT, "link moved", 1, "restore").exits(137); // vm-start need not boot
    }

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), GUEST.qemus());
    }

    private static Script.Result make(String... arguments) {
        List<String> command = new ArrayList<>(List.of("make", "-C", TOP.toString(), "--no-print-directory"));
        command.addAll(Arrays.asList(arguments));
        return GUEST.run(command);
    }

    @Test
    void theWholeDayOfADeveloper() throws IOException {
        make("vm-status").exits(0).answers("stopped"); // a stopped VM is an answer
        make("vm-check-prereqs", "ARGS=--json").exits(0).answers("\"ok\":true");
        make("vm-setup", "ARGS=--trust-mirror").exits(0).answers("dfly-6.4.2.iso");
        make("vm-auto-install", "VM_PHASES=" + Guest.INSTALLED_PHASES).exits(0).says("is installed"); // from these
        make("vm-start", "ARGS=--forward " + Guest.freePort() + ":80").exits(0);
        make("vm-status").exits(0).answers("running");
        make("vm-ssh").exits(0);
        make("vm-snapshot", "ARGS=morning --yes").exits(0); // an earlier run may have left one
        make("vm-sync", "ARGS=--dry-run").exits(0);
        GUEST.sh("test -e '/root/make project'").exits(1);
        make("vm-build").exits(0);
        make("vm-test-unit", "ARGS=--packages ./internal/words/ -- -run TestCount").exits(0).answers("TestCount");
        make("vm-test-fixtures").exits(0);
        make("vm-test-integration", "vm-test-e2e", "SYNC_ARGS=--no-delete").exits(0); // SuitesTest runs the other suites
        make("vm-capture-fixtures").exits(0);
        assertTrue(Files.readString(PROJECT.resolve("stats/testdata/fixtures/uname.txt")).startsWith("DragonFly"));
        make("vm-provision", "ARGS=--help").exits(0).answers("vm-auto-install provision"); // only its help, as InstallFaultsTest provisions
        make("vm-restore", "ARGS=morning").exits(0);
        GUEST.sh("test -e '/root/make project'").exits(1);
        make("vm-stop").exits(0);
        make("vm-clean-phases").exits(0);
    }

    @Test
    void whatDestroysAsks() {
        make("vm-destroy", "VM_NAME=another", "ARGS=--yes").exits(0).says("there is no VM another");
        make("vm-destroy").exits(2).says("to confirm it: ARGS='--yes'"); // make's own code for a failed command
        assertTrue(Files.exists(GUEST.file("-clean.qcow2")));
    }

    @Test
    void theHelpListsTheTargets() {
        make("vm-help").exits(0).answers("vm-auto-install", "vm-quick", "vm-test-NAME");
        assertEquals(make("vm-help").out(), make().exits(0).out(), "the first target");
    }
}
