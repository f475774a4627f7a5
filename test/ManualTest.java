import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/**
 * The commands in the fences of README and CONTRIBUTING, run as a person would type them, on the VM that InstallTest installed. Only names
 * are others: the VM's, its directory's, the project's, a test's, and those of files in the home directory.
 */
@Tag("faults")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class ManualTest {

    private static final Path TOP = Path.of("").toAbsolutePath();
    /** Of the lines in fences those that are run here. The others need no VM, wait for a person, change the machine, or are make targets of MakeTest. */
    private static final Pattern ON_A_VM = Pattern.compile("make vm-quick|VM_PROJECT=\\S+ make .*"
            + "|(VM_NAME=one )?jbang vm-ctl (exec|start|restart|snapshot|restore|screenshot|clone|destroy) .*|jbang vm-sync( pull .*)?|jbang vm-test (run|--) ?.*"
            + "|(ssh|scp) -F .*");
    /** These make a VM; the others use the one that is there. */
    private static final Pattern INSTALLS = Pattern.compile("jbang vm-auto-install (--to 1|run-phase .*|--from 3 --yes)");
    /** What the texts name, but not in a fence, and what no other test types in this form. */
    private static final List<String> IN_TEXT = List.of("jbang vm-ctl exec ps axo pid,ppid,stat,command",
            "rsync -az --delete --exclude /vm/ --exclude '*.db' -e \"ssh -F $HOME/.go-synth/vm/ssh_config\" ~/go-synth/ dfly-vm:/root/by-rsync/",
            "ssh -F ~/.go-synth/vm/ssh_config dfly-vm 'cd /root/by-rsync && gmake build'", "VM_MEMORY=4G VM_CPUS=4 make vm-start");
    private static Path scratch;
    private static Mirror mirror;
    private static Guest guest;

    /** Short names without blanks: a home with the VM's directory in its place, a project, JBang in PATH. */
    @BeforeAll
    static void aHome() throws Exception {
        scratch = Files.createTempDirectory("manual");
        Files.createDirectories(scratch.resolve(".go-synth"));
        Files.createSymbolicLink(scratch.resolve(".go-synth/vm"), Guest.installed().vmDir());
        new ProcessBuilder("cp", "-R", Guest.SAMPLE.toString(), scratch.resolve("go-synth").toString()).inheritIO().start().waitFor();
        Path jbang = Files.createDirectories(scratch.resolve("bin")).resolve("jbang");
        Files.writeString(jbang, "#!/bin/sh\nexec '" + Guest.BUILD.resolve("jbang") + "' \"$@\"\n");
        Files.setPosixFilePermissions(jbang, PosixFilePermissions.fromString("rwxr-xr-x"));
        mirror = new Mirror(Guest.standin()).start();
        guest = Guest.installed().withFirmware(mirror.port(), "").with("VM_PROJECT", scratch.resolve("go-synth").toString(),
                "VM_PHASES", Guest.INSTALLED_PHASES.toString(),
                "PATH", jbang.getParent() + ":" + System.getenv("PATH"));
        guest.ctl("stop", "--force").exits(0);
    }

    @AfterAll
    static void nothingIsLeft() throws IOException {
        guest.ctl("stop", "--force").exits(0);
        mirror.close();
        Guest.delete(scratch);
        assertEquals(List.of(), guest.qemus());
    }

    @Test
    @Order(1)
    void theExampleOfAnotherProject() throws IOException {
        Path project = scratch.resolve("hello");
        Path tools = Files.createDirectories(project.resolve("tools"));
        for (String script : List.of("VmCtl.java", "VmSync.java", "VmTest.java")) {
            Files.copy(TOP.resolve(script), tools.resolve(script));
        }
        Files.writeString(project.resolve("go.mod"), "module hello\n\ngo 1.18\n");
        Files.writeString(project.resolve("Makefile"), "build:\n\tgo build ./...\n");
        for (String directory : List.of("environment", "internal/words")) {
            Path words = Files.createDirectories(project.resolve(directory));
            Files.writeString(words.resolve("hello.go"), "package hello\n");
            Files.writeString(words.resolve("hello_test.go"), "package hello\n\nimport \"testing\"\n\nfunc TestHello(t *testing.T) {}\n");
        }
        Files.writeString(project.resolve("vm.env"), "VM_TEST_BUILD=go build ./...\nVM_TEST_VET=go vet ./...\n"
                + "VM_TEST_ROOT=doas go test -v -tags=integration ./environment/...\n");
        Guest there = guest.with("VM_PROJECT", "", "VM_SETUP_CMD", "", "VM_CTL_CMD", "jbang tools/VmCtl.java", "VM_SYNC_CMD", "jbang tools/VmSync.java");
        type(there, project, "jbang tools/VmCtl.java start").exits(0);
        type(there, project, "jbang tools/VmTest.java --sync unit vet root").exits(0).answers("vet passed", "unit passed", "root passed");
        guest.sh("test -e /root/hello/tools/VmCtl.java").exits(0);
    }

    @Test
    @Order(2)
    void aFailureIsSummedUp() {
        guest.ctl("start").exits(0);
        Script.Result result = guest.test("--sync", "unit", "--env", "SAMPLE_FAIL=1").exits(1);
        shows("""
                == unit failed, guest exit code 1, 1 fail, 9 pass, 3 skip, 2.3 s
                   FAIL sample/internal/words TestFailsWhenTold
                           words_test.go:46: SAMPLE_FAIL=1: failing as told
                vm-test: build passed; unit failed, guest exit code 1
                """, result.out() + result.err());
    }

    /** In the texts' order on one VM: a line that fails ends it, as those behind it want what it did. */
    @Test
    @Order(3)
    void theLinesThatUseTheVm() throws IOException {
        Set<String> lines = lines(ON_A_VM);
        lines.addAll(IN_TEXT);
        int number = 0;
        for (String line : lines) {
            number++;
            try {
                typeOnTheVm(line);
            } catch (AssertionError failed) {
                throw new AssertionError("line " + number + " of " + lines.size() + ", " + line + "\n" + failed.getMessage(), failed);
            }
        }
        assertTrue(Files.size(scratch.resolve("now.png")) > 0);
        assertTrue(Files.readString(scratch.resolve("all.xml")).contains("<testsuite"));
        assertTrue(Files.readString(scratch.resolve("coverage.out")).startsWith("mode: "));
    }

    @Test
    @Order(6)
    void theBenchmarkMeasures() {
        type(guest, TOP, "make bench ARGS=nothing").exits(2).says("bench: the groups are start exec quick");
        type(guest, TOP, "make bench ARGS=many").exits(0).answers("| `vm-ctl list` | 1 VM", "| `vm-ctl restore` of a stopped VM | 1 snapshot");
    }

    /** By Ctrl-] twice. */
    @Test
    @Order(5)
    void anInstallationByHandCanBeEnded() {
        Guest byHand = guest.with("VM_NAME", "by-hand");
        type(byHand, TOP, "printf '\\035\\035' | make vm-install").exits(2).says("sh /mnt/setup.sh", "by-hand.qcow2 is kept. To continue: ");
        byHand.ctl("destroy", "--yes").exits(0);
    }

    /** With small suites: MakeTest runs the real ones. */
    private static void typeOnTheVm(String line) {
        boolean down = line.endsWith("make vm-start");
        if (guest.qemus().isEmpty() != down) {
            guest.ctl(down ? "stop" : "start").exits(0);
        }
        Guest small = guest.with("VM_TEST_UNIT", "go test -v -short ./internal/words", "VM_TEST_INTEGRATION", "echo integrated", "VM_TEST_PHASE4", "doas echo tested");
        // --fresh throws the build away, and the lines after it need none; two clones need two packages.
        boolean unbuilt = line.matches(".* (--fresh|--parallel|--shard) .*");
        small = unbuilt ? small.with("VM_TEST_BUILD", "true") : small;
        small = line.contains("--parallel") ? small.with("VM_TEST_UNIT", "go test -v -short ./internal/words ./stats") : small;
        type(small, TOP, line).exits(0);
    }

    /**
     * On the disks of the phases, so in a VM of its own: the one that is shared stays as it was installed. A twin of that one, whose
     * phase 1 is done already.
     */
    @Test
    @Order(4)
    void theLinesThatInstall() throws IOException {
        Guest second = guest.with("VM_NAME", "second", "VM_PHASES", TOP.resolve("phases").toString());
        guest.ctl("stop").exits(0);
        second.ctl("destroy", "--yes").exits(0); // what a run that was killed left
        second.link(guest);
        second.install("make-iso", TOP.resolve("phases/phase2-update.sh").toString(), scratch.resolve("p2.iso").toString()).exits(0);
        String last = "";
        for (String line : lines(INSTALLS)) {
            last = type(second, TOP, line).exits(0).err();
        }
        shows("""
                phase 3; its console: tail -f /home/me/.go-synth/vm/dfly-vm.install/phase3.log
                [6 s] phase 3, the boot loader
                [11 s] phase 3, pfi
                [11 s] phase 3, step 1 (read the settings)
                [21 s] phase 3, power-off
                phase 3 done in 22 s
                flattening the disk
                booting it once, to see that it answers
                dfly-vm is installed: DragonFly 6.4-RELEASE x86_64, go version go1.19.8 linux/amd64; start it: vm-ctl start
                """, last);
        second.ctl("destroy", "--yes").exits(0);
    }

    private static Set<String> lines(Pattern wanted) {
        Set<String> lines = Stream.of("README.md", "CONTRIBUTING.md").flatMap(text -> ReadmeTest.commands(text).stream())
                .filter(wanted.asMatchPredicate()).collect(Collectors.toCollection(LinkedHashSet::new));
        assertFalse(lines.isEmpty());
        return lines;
    }

    private static Script.Result type(Guest where, Path directory, String line) {
        String typed = line.replaceAll("(~|\\$HOME|/tmp)/", scratch + "/").replace("dfly-vm", "guest")
                .replace("TestParse", "TestCount").replace("8080:", Guest.freePort() + ":");
        long started = System.nanoTime();
        Guest typist = line.startsWith("jbang vm-test --") ? where.with("VM_CTL_CMD", "", "VM_SYNC_CMD", "") : where; // it finds them
        Script.Result result = typist.run(List.of("bash", "-c", "cd \"$0\" && " + typed, directory.toString()));
        System.err.printf("%4d s  $ %s%n", (System.nanoTime() - started) / 1_000_000_000, typed);
        return result;
    }

    /** Its lines are in the output, but for numbers and directories. */
    private static void shows(String lines, String output) {
        String said = plain(output);
        lines.lines().forEach(line -> assertTrue(said.contains(plain(line)), line + "\n--- is not in\n" + output));
    }

    private static String plain(String text) {
        return text.replaceAll("dfly-vm|second", "guest").replaceAll("['\\\\]", "").replaceAll("/.*/(?=guest)", "").replaceAll("\\d+(\\.\\d+)?", "N");
    }
}
