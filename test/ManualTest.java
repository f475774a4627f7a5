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
import java.util.function.Predicate;
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
 * The README's commands, taken from the README and run as a person would type them, on the VM that InstallTest installed; and what it
 * shows of their output. Only names are others: the VM's, its directory's, the project's, a test's, and those of files in /tmp.
 */
@Tag("core")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class ManualTest {

    private static final Path TOP = Path.of("").toAbsolutePath();
    /** These make a VM; the others use the one that is there. */
    private static final Predicate<String> INSTALLS = line -> line.matches(".*(--to 1|run-phase .*|--from 3 --yes)");
    private static Path scratch;
    private static Mirror mirror;
    private static Guest guest;

    /** Short names without blanks: a home with the VM's directory in its place, a project, JBang in PATH. */
    @BeforeAll
    static void aHome() throws Exception {
        scratch = Files.createTempDirectory("manual");
        Files.createDirectories(scratch.resolve(".go-synth"));
        Files.createSymbolicLink(scratch.resolve(".go-synth/vm"), Guest.installed().vmDir());
        for (String project : List.of("go-synth", "hello")) {
            new ProcessBuilder("cp", "-R", Guest.SAMPLE.toString(), scratch.resolve(project).toString()).inheritIO().start().waitFor();
        }
        Path jbang = Files.createDirectories(scratch.resolve("bin")).resolve("jbang");
        Files.writeString(jbang, "#!/bin/sh\nexec '" + Guest.BUILD.resolve("jbang") + "' \"$@\"\n");
        Files.setPosixFilePermissions(jbang, PosixFilePermissions.fromString("rwxr-xr-x"));
        mirror = new Mirror(Guest.STANDIN).start();
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

    /** First, as Go's cache in the guest is still that of the tests before; the README's lines restore a cold one. */
    @Test
    @Order(1)
    void theExampleOfAnotherProject() throws IOException {
        Path project = scratch.resolve("hello");
        Path tools = Files.createDirectories(project.resolve("tools"));
        for (String script : List.of("VmCtl.java", "VmSync.java", "VmTest.java")) {
            Files.copy(TOP.resolve(script), tools.resolve(script));
        }
        Files.writeString(project.resolve("Makefile"), only("make", "vm-test-%"));
        Files.writeString(project.resolve("vm.env"), only("ini", "VM_TEST_VET"));
        Guest there = guest.with("VM_PROJECT", "", "VM_SETUP_CMD", "", "VM_CTL_CMD", "", "VM_SYNC_CMD", "");
        type(there, project, "make vm-start").exits(0);
        for (String line : lines(ReadmeTest.IN_THE_EXAMPLE, line -> true)) {
            type(there, project, line).exits(0).answers("vet passed", "unit passed", "root passed");
        }
        guest.sh("test -e /root/hello/tools/VmCtl.java").exits(0);
        type(there, project, "make vm-stop").exits(0);
    }

    /** In the README's order on one VM: a line that fails ends it, as those behind it want what it did. */
    @Test
    @Order(2)
    void theLinesThatUseTheVm() throws IOException {
        Set<String> lines = lines(ReadmeTest.ON_A_VM, INSTALLS.negate());
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

    private static void typeOnTheVm(String line) {
        if (line.equals("make vm-install")) { // ended by Ctrl-] twice
            Guest byHand = guest.with("VM_NAME", "by-hand");
            type(byHand, TOP, "printf '\\035\\035' | " + line).exits(2).says("sh /mnt/setup.sh", "the disk is empty");
            byHand.ctl("destroy", "--yes").exits(0);
            return;
        }
        // Setting up is done with the VM down, and a start is one; what is so already needs no command that says it.
        boolean down = line.matches(".*make vm-(setup|auto-install|start)");
        if (guest.qemus().isEmpty() != down) {
            guest.ctl(down ? "stop" : "start").exits(0);
        }
        type(guest, TOP, line).exits(0);
    }

    @Test
    @Order(3)
    void aFailureIsShownAsTheReadmeShowsIt() {
        guest.ctl("start").exits(0);
        Script.Result result = guest.test("--sync", "unit", "--env", "SAMPLE_FAIL=1").exits(1);
        shows("== unit failed", result.out() + result.err());
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
        for (String line : lines(ReadmeTest.ON_A_VM, INSTALLS)) {
            last = type(second, TOP, line).exits(0).err();
        }
        shows("phase 3; its console", last);
        second.ctl("destroy", "--yes").exits(0);
    }

    private static Set<String> lines(List<String> patterns, Predicate<String> wanted) {
        Set<String> lines = ReadmeTest.commands().stream().filter(line -> patterns.stream().anyMatch(line::matches)).filter(wanted)
                .collect(Collectors.toCollection(LinkedHashSet::new));
        assertFalse(lines.isEmpty());
        return lines;
    }

    private static Script.Result type(Guest where, Path directory, String line) {
        String typed = line.replaceAll("(~|\\$HOME|/tmp)/", scratch + "/").replace("dfly-vm", "guest")
                .replace("TestParse", "TestCount").replace("8080:", Guest.freePort() + ":");
        // The pinned sums are those of a release.
        String trusting = typed.replaceAll("^make vm-setup$", "make vm-setup ARGS=--trust-mirror");
        long started = System.nanoTime();
        Guest typist = line.startsWith("jbang vm-test --") ? where.with("VM_CTL_CMD", "", "VM_SYNC_CMD", "") : where; // it finds them
        Script.Result result = typist.run(List.of("bash", "-c", "cd \"$0\" && " + trusting, directory.toString()));
        System.err.printf("%4d s  $ %s%n", (System.nanoTime() - started) / 1_000_000_000, trusting);
        return result;
    }

    private static String only(String language, String holds) {
        List<String> found = ReadmeTest.fences(language).stream().filter(text -> text.contains(holds)).toList();
        assertEquals(1, found.size(), language + " with " + holds);
        return found.get(0);
    }

    /** The README's text that holds this is in the output, but for numbers, directories, and lines left out. */
    private static void shows(String holds, String output) {
        String said = plain(output);
        Stream.of(only("text", holds).split("\n")).filter(line -> !line.equals("..."))
                .forEach(line -> assertTrue(said.contains(plain(line)), line + "\n--- is not in\n" + output));
    }

    private static String plain(String text) {
        return text.replaceAll("dfly-vm|second", "guest").replaceAll("['\\\\]", "").replaceAll("/.*/(?=guest)", "").replaceAll("\\d+(\\.\\d+)?", "N");
    }
}
