import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonWriter;
import java.io.PrintStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.function.IntConsumer;
import java.util.function.ToIntFunction;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.xml.XMLConstants;
import javax.xml.parsers.DocumentBuilderFactory;
import javax.xml.transform.stream.StreamSource;
import javax.xml.validation.SchemaFactory;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.w3c.dom.Document;
import org.xml.sax.InputSource;
import picocli.CommandLine;

/** VmTest without a VM: its suites, what it makes of go test's events (real streams), its reports, and its supervisor in a real sh. */
@Tag("unit")
final class VmTestTest {

    @TempDir
    Path dir;

    // Command line

    private static Script.Result vmTest(Map<String, String> environment, Map<String, String> file, String... args) {
        return Script.call(VmTest.commandLine(new VmTest.Settings().add(file, "vm.env").add(environment, "the environment")), args);
    }

    private Script.Result vmTest(String... args) {
        return vmTest(Map.of("VM_DIR", dir.toString()), Map.of(), args);
    }

    @Test
    void usageErrorsAreTwoAndOneLine() {
        for (String[] args : new String[][] {{}, {"--nonsense"}, {"unit", "--timeout", "soon"}, {"unit", "--timeout", "0"}, {"unti"}, {"--", "-run", "X"}, {"run", ""}, {"run", " ", ""}, {"unit", "--remote-dir", ""}, {"run", "--remote-dir", "x", "true"},
                {"unit", "--leaks", "maybe"}, {"run"}, {"unit", "--junit", "/nonexistent/x.xml"}, {"unit", "--json", "."}, {"unit", "--env", "=x"},
                {"unit", "list"}, {"all", "run", "--", "true"}, {"--sync", "run", "--", "true"}, {"--leaks", "warn", "list"}, {"list", "--timeout", "5m"}}) {
            Script.Result ran = vmTest(args);
            assertEquals(2, ran.exitCode(), String.join(" ", args));
            assertEquals(1, ran.err().lines().count(), ran.err());
            assertEquals("", ran.out());
        }
        assertTrue(vmTest("unti").err().contains("no suite 'unti' (did you mean unit?), only build, unit, "), vmTest("unti").err());
        assertTrue(vmTest("unit", "--junitt", "x").err().contains("--junit"));
        for (String setting : List.of("VM_TEST_LIST", "VM_TEST_RUN")) {
            assertEquals(2, vmTest(Map.of(setting, "true"), Map.of(), "list").exitCode(), setting);
        }
    }

    @Test
    void aDirectoryThatOthersCanChangeIsRefused() throws Exception {
        for (Path refused : List.of(Guest.foreignDirectory(dir), Guest.openDirectory(dir.resolve("open"), "rwxrwxr-x"))) {
            for (String[] args : new String[][] {{"unit"}, {"--fresh", "unit"}, {"run", "--", "true"}}) {
                Script.Result ran = vmTest(Map.of("VM_DIR", refused.toString()), Map.of(), args);
                assertEquals(69, ran.exitCode(), ran.err());
                assertTrue(ran.err().contains(refused + " belongs to ") && ran.err().contains("chmod go-w"), ran.err());
                assertEquals(1, ran.err().lines().count(), ran.err());
            }
        }
        assertEquals(0, dir.resolve("open").toFile().list().length);
    }

    @Test
    void noLivePidIsThree() throws Exception {
        vmTest("unit").is(69, "", "vm-test: there is no VM dfly-vm in " + dir + ": vm-ctl list names the VMs there, vm-auto-install makes one\n");
        Path disk = Files.createFile(dir.resolve("dfly-vm-clean.qcow2"));
        vmTest("unit").is(3, "", "vm-test: VM dfly-vm is not running; start it: vm-ctl start\n");
        assertEquals(3, vmTest("run", "--", "true").exitCode());
        Files.delete(disk);
        assertEquals(0, dir.toFile().list().length, "nothing written");
        try (FakeVm vm = new FakeVm(dir, "other")) {
            Files.writeString(vm.file(".pid"), "{\"pid\":");
            vmTest("unit", "--vm-name", "other").is(69, "", "vm-test: VM other runs, but " + vm.file(".pid") + " cannot be read (not JSON: {\"pid\":): "
                    + "vm-ctl stop --force, then vm-ctl start, writes it again\n");
            Files.delete(vm.file(".pid"));
            assertEquals(3, vmTest("unit", "--vm-name", "other").exitCode(), "not started yet");
            Files.writeString(vm.file(".pid"), "{\"pid\":" + ProcessHandle.current().pid() + "}");
            vm.signal("KILL");
            assertEquals(3, vmTest("unit", "--vm-name", "other").exitCode(), "all its files are there, and its pid is somebody's");
        }
        Path pidFile = dir.resolve("loop.qemu-pid");
        Files.createSymbolicLink(pidFile, pidFile);
        Script.Result unknown = vmTest("unit", "--vm-name", "loop");
        assertEquals(69, unknown.exitCode());
        assertTrue(unknown.err().startsWith("vm-test: it is unknown whether the VM runs, as " + pidFile + " cannot be locked ("), unknown.err());
    }

    @Test
    void aGuestThatStandsStillIsNotWaitedFor() throws Exception {
        VmTest.snapshotPause = Duration.ofMillis(500);
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            vm.qmp("stop");
            vmTest("unit").is(69, "", "vm-test: the guest does not run (paused): vm-ctl start resumes it\n");
            vm.signal("STOP");
            vmTest("run", "--", "true").is(69, "", "vm-test: QEMU (pid " + vm.pid() + ") does not answer: if it was stopped, kill -CONT " + vm.pid()
                    + " resumes it; vm-ctl stop --force ends it\n");
            vm.pretend("io-error");
            vmTest("unit").is(1, "", "vm-test: the disk of this machine is full, so the guest is paused: free some space, "
                    + "then vm-ctl start\n");
        }
    }

    @Test
    void aSiblingsFailureIsTheVerdict() throws Exception {
        Path ctl = dir.resolve("my 'ctl'");
        for (int[] codes : new int[][] {{2, 2}, {124, 124}, {42, 69}}) {
            Files.writeString(ctl, "#!/bin/sh\necho \"$1 $VM_NAME $VM_REMOTE_DIR\" > \"$VM_DIR/said\"\nexit " + codes[0] + "\n");
            assertTrue(ctl.toFile().setExecutable(true));
            Path project = Files.createDirectories(dir.resolve("my project"));
            Script.Result ran = vmTest("--fresh", "unit", "--vm-name", "x" + codes[0], "--project", project.toString(), "--ctl-cmd", "\"" + ctl + "\"",
                    "--sync-cmd", "false");
            assertEquals(codes[1], ran.exitCode(), ran.err());
            assertEquals("restore x" + codes[0] + " /root/my project\n", Files.readString(dir.resolve("said")));
        }
        assertEquals(69, vmTest("--fresh", "unit", "--vm-name", "top", "--project", "/", "--ctl-cmd", "\"" + ctl + "\"", "--sync-cmd", "false").exitCode());
        assertEquals("restore top /root/\n", Files.readString(dir.resolve("said")), "which vm-sync refuses");
        Script.Result missing = vmTest("--fresh", "unit", "--ctl-cmd", "/nonexistent/ctl", "--sync-cmd", "false");
        assertEquals(69, missing.exitCode());
        assertEquals("vm-test: no suite was run: '/nonexistent/ctl restore' cannot be run here; set VM_CTL_CMD to the command that runs it, as "
                + "VM_CTL_CMD='jbang vm-ctl@NAME' for a catalog that you added, or VM_CTL_CMD='jbang /path/to/VmCtl.java' for a copied file\n", missing.err());
    }

    /** With a stand-in for ssh that runs the supervisor in this machine's sh: the verdict is told, whatever becomes of the reports. */
    @Test
    void aReportThatCannotBeWrittenTakesNothingFromTheVerdict() throws Exception {
        // A link, because reports go only into directories that the user may write to, which /dev is not.
        Path full = Files.createSymbolicLink(dir.resolve("full"), Path.of("/dev/full"));
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            for (String report : List.of("--json", "--junit")) {
                for (String exit : List.of("0", "5")) {
                    int code = exitCode(start(GUEST_HERE, "yes '{\"Action\":\"pass\",\"Package\":\"p\"}' | head -n 2000; seq 20000; exit " + exit,
                            "it", report, full.toString()));
                    String said = Files.readString(dir.resolve("err"));
                    assertEquals((exit.equals("0") ? "vm-test: it passed, 0 tests ran" : "vm-test: to run again what failed: vm-test --failed\n"
                            + "vm-test: it failed, guest exit code 5") + "\nvm-test: cannot write all of " + full
                            + " (): make room, or choose another place\n",
                            said.replaceFirst("(?s).*?(?=vm-test: )", "").replaceFirst("\\([^)]*No space left on device\\)", "()"));
                    assertEquals(1, code, said);
                }
            }
        }
    }

    /** A PID namespace. The supervisor ends what init has adopted meanwhile: here that could be any program that somebody starts. */
    static final List<String> OWN_PROCESSES = List.of("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child",
            "sh", "-c", "\"$@\"; exit $?", "init"); // an init of its own, which adopts, and is not the supervisor
    /** A stand-in for ssh that runs the supervisor in this machine's sh. */
    private static final String GUEST_HERE = "for last; do :; done\nexec " + VmTest.shellQuoted(OWN_PROCESSES) + " sh -c \"$last\"\n";
    /** One that begins to run a command and then loses the connection, as soon as there is a file "go". */
    private static final String CONNECTION_BREAKS = "touch \"$VM_DIR/begun\"; until [ -e \"$VM_DIR/go\" ]; do sleep 0.1; done; exit 255\n";

    private final PrintStream outBefore = System.out;
    private final PrintStream errBefore = System.err;
    private final Duration pauseBefore = VmTest.snapshotPause;

    /** VmTest in this process, whose ssh is this script; its one suite, "it", runs this command. A pause of a second is too long for it. */
    private FutureTask<Integer> start(String ssh, String command, String... args) throws Exception {
        needsOwnProcesses();
        Path bin = Files.createDirectories(dir.resolve("bin"));
        String head = "#!/bin/sh\nexport VM_DIR='" + dir + "' PATH='" + bin + "':\"$PATH\"\n";
        assertTrue(Files.writeString(bin.resolve("ssh"), head + ssh).toFile().setExecutable(true));
        // Another test may remount something on this machine meanwhile.
        assertTrue(Files.writeString(bin.resolve("mount"), "#!/bin/sh\necho '/dev/da0s1d on / (hammer2, local)'\n").toFile().setExecutable(true));
        VmTest.snapshotPause = Duration.ofSeconds(1);
        VmTest.Supervisor.ssh = bin.resolve("ssh").toString();
        System.setOut(new PrintStream(Files.newOutputStream(dir.resolve("out")), true, UTF_8));
        System.setErr(new PrintStream(Files.newOutputStream(dir.resolve("err")), true, UTF_8));
        CommandLine line = VmTest.commandLine(new VmTest.Settings().add(Map.of("VM_DIR", dir.toString(), "VM_REMOTE_DIR", dir.toString(),
                "VM_TEST_BUILD", "true", "VM_TEST_IT", command), "the environment"));
        FutureTask<Integer> task = new FutureTask<>(() -> {
            int code = line.execute(args);
            VmTest vmTest = line.getCommand();
            vmTest.lock.close(); // as the end of a process would
            return code;
        });
        new Thread(task).start();
        return task;
    }

    @AfterEach
    void asBefore() {
        System.setOut(outBefore);
        System.setErr(errBefore);
        VmTest.snapshotPause = pauseBefore;
        VmTest.Supervisor.ssh = "ssh";
    }

    /** Waits until a file is there and has this text. */
    private void await(String file, String text) throws Exception {
        for (long start = System.nanoTime(); !Files.exists(dir.resolve(file)) || !Files.readString(dir.resolve(file)).contains(text); Thread.sleep(20)) {
            assertTrue(System.nanoTime() - start < 60e9, () -> "'" + text + "' does not come to " + file);
        }
    }

    private static int exitCode(FutureTask<Integer> command) throws Exception {
        return command.get(5, TimeUnit.MINUTES);
    }

    @Test
    void ignoredLeaksAreNotReported() throws Exception {
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            assertEquals(0, exitCode(start(GUEST_HERE, "sleep 617 >/dev/null 2>&1 &", "it", "--leaks", "ignore")), Files.readString(dir.resolve("err")));
            String out = Files.readString(dir.resolve("out"));
            assertTrue(out.startsWith("== it passed") && out.lines().count() == 1, out);
        }
    }

    /** Times of runs in which only some of a package's tests run would spoil the balance of later divided runs. */
    @Test
    void onlyTimesOfWholePackagesAreKept() throws Exception {
        Path go = Files.writeString(Files.createDirectories(dir.resolve("bin")).resolve("go"), "#!/bin/sh\ncat \"$VM_DIR/events\"\nexit $(cat \"$VM_DIR/code\")\n");
        assertTrue(go.toFile().setExecutable(true));
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            Object[][] rows = { // what the tests say, how long the package takes, the time that is known then, arguments
                {"fail", 7.0, 7.0, "it"}, {"fail", 0.01, 7.0, "it -- -run TestA"}, {"fail", 0.01, 7.0, "it -- -skip=TestB"},
                {"fail", 9.0, 9.0, "it --packages ./p"}, {"pass", 0.01, 9.0, "--failed"}, {"pass", 8.0, 8.0, "it -- -count=1"}};
            for (Object[] row : rows) {
                Files.writeString(dir.resolve("events"), ("{'Action':'run','Package':'p','Test':'TestA'}\n{'Action':'" + row[0] + "','Package':'p','Test':'TestA'}\n{'Action':'output',"
                        + "'Package':'p','Output':'" + row[0].toString().toUpperCase() + "\\n'}\n{'Action':'" + row[0] + "','Package':'p','Elapsed':" + row[1] + "}\n").replace('\'', '"'));
                int code = row[0].equals("fail") ? 1 : 0;
                Files.writeString(dir.resolve("code"), code + "\n");
                assertEquals(code, exitCode(start(GUEST_HERE, "go test ./...", row[3].toString().split(" "))), Files.readString(dir.resolve("err")));
                String project = Path.of("").toAbsolutePath().getFileName().toString();
                assertEquals(Map.of("p", row[2]), VmTest.Timings.of(VmTest.Timings.ofThisMachine(dir.resolve("dfly-vm.test/last-run.json"), project), "it", List.of("p")),
                        List.of(row).toString());
            }
        }
    }

    private static final String PAUSED = "the guest does not run (paused): vm-ctl start resumes it";
    private static final String UNTIL_GO = "touch begun; until [ -e go ]; do sleep 0.1; done";

    @Test
    void aStandstillIsToldOnceAndTheSuiteGoesOnAfterIt() throws Exception {
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            FutureTask<Integer> process = start(GUEST_HERE, UNTIL_GO, "it");
            await("begun", "");
            vm.qmp("stop");
            await("err", PAUSED);
            Thread.sleep(500); // more looks
            vm.qmp("cont");
            Thread.sleep(500);
            vm.pretend("io-error");
            await("err", "the disk of this machine is full, so the guest is paused: free some space, then vm-ctl start");
            Files.createFile(dir.resolve("go"));
            assertEquals(0, exitCode(process));
            assertEquals("== it: " + UNTIL_GO + "\nvm-test: " + PAUSED + "\nvm-test: the disk of this machine is full, so the guest is paused: "
                    + "free some space, then vm-ctl start\nvm-test: it passed\n", Files.readString(dir.resolve("err")));
        }
    }

    @Test
    void theVerdictNamesTheStandstillInWhichTheTimeLimitCame() throws Exception {
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            FutureTask<Integer> process = start(GUEST_HERE, UNTIL_GO, "--timeout", "6s", "it");
            await("begun", "");
            vm.qmp("stop");
            assertEquals(124, exitCode(process));
            String err = Files.readString(dir.resolve("err"));
            assertTrue(err.matches("(?s).*\nvm-test: it timed out, guest exit code \\d+: " + Pattern.quote(PAUSED) + "\n"), err);
            assertTrue(Files.readString(dir.resolve("out")).contains(PAUSED), Files.readString(dir.resolve("out")));
            vm.qmp("cont");
            Files.delete(dir.resolve("begun"));
            process = start(GUEST_HERE, UNTIL_GO, "run", "--timeout", "6s", "--", UNTIL_GO);
            await("begun", "");
            vm.qmp("stop");
            assertEquals(124, exitCode(process));
            err = Files.readString(dir.resolve("err"));
            assertTrue(err.endsWith("vm-test: the command did not end within 6 s: " + PAUSED + "\n"), err);
        }
    }

    @Test
    void aConnectionThatIsLostInAStandstillNamesIt() throws Exception {
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            FutureTask<Integer> process = start(CONNECTION_BREAKS, "true", "it");
            await("begun", "");
            vm.qmp("stop");
            Files.createFile(dir.resolve("go"));
            assertEquals(69, exitCode(process));
            String err = Files.readString(dir.resolve("err"));
            assertTrue(err.endsWith("\nvm-test: it lost: " + PAUSED + "\n"), err);
            String out = Files.readString(dir.resolve("out"));
            assertTrue(out.contains("the connection was lost: " + PAUSED + ". From " + dir.resolve("dfly-vm.console.log")), out);
            vm.qmp("cont");
            process = start(CONNECTION_BREAKS, "true", "it");
            assertEquals(69, exitCode(process));
            out = Files.readString(dir.resolve("out"));
            assertTrue(out.contains("the connection was lost; if vm-ctl ssh fails, too, vm-ctl restart brings it back"), out);
            Files.delete(dir.resolve("go"));
            Files.delete(dir.resolve("begun"));
            process = start(CONNECTION_BREAKS, "true", "it");
            await("begun", "");
            vm.signal("KILL");
            assertEquals(69, exitCode(process));
            out = Files.readString(dir.resolve("out"));
            assertTrue(out.contains("VM dfly-vm ended; vm-ctl start brings it back"), out);
        }
    }

    // Suites

    @Test
    void settingsChangeAndMakeSuites() {
        String list = vmTest(Map.of("VM_TEST_UNIT", "go test ./a", "VM_TEST_E2E", "", "VM_TEST_INTEGRATION_E2E", "make e2e"),
                Map.of("VM_TEST_UNIT", "go test ./b", "VM_TEST_LINT", "go vet ./...", "VM_TEST_E2E", "make x"), "list",
                "--project", "test/sample").out();
        List<String> lines = list.lines().map(line -> line.replaceAll(" +", " ")).toList();
        assertTrue(lines.contains("unit go test ./a (VM_TEST_UNIT)"), "the environment beats vm.env: " + list);
        assertTrue(lines.contains("e2e make x (VM_TEST_E2E)"), "empty is unset");
        assertTrue(lines.contains("integration-e2e make e2e (VM_TEST_INTEGRATION_E2E)"));
        assertTrue(lines.contains("lint go vet ./... (VM_TEST_LINT)"));
        assertTrue(lines.contains("phase4 doas go test -v ./internal/worker/..."));
        assertTrue(lines.contains("all unit integration phase4") && lines.contains("quick --sync phase4"));
    }

    @Test
    void phase4FollowsTheProject() throws Exception {
        assertEquals("doas go test -v -tags=integration ./environment/bsd/", suite(dir, "phase4"));
        Files.createDirectories(dir.resolve("internal/worker"));
        assertEquals("doas go test -v ./internal/worker/...", suite(dir, "phase4"));
        assertTrue(vmTest("list", "--project", dir.toString()).out().matches("(?s).*\nphase4 +doas go test -v ./internal/worker/\\.\\.\\.\n.*"));
    }

    private static String suite(Path project, String name) {
        return new VmTest.Suites(new VmTest.Settings(), project).chosen(List.of(name)).get(0).command();
    }

    @Test
    void aSuiteHasOneNameHoweverItIsWritten() {
        Map<String, String> mine = Map.of("VM_TEST_MY_SUITE", "true");
        for (String name : List.of("my-suite", "my_suite", "MY_SUITE", "My-Suite")) {
            assertEquals("build my-suite", chosen(mine, name));
        }
        assertEquals("build x", chosen(Map.of("VM_TEST_x", "true"), "x"));
        Script.Result twice = vmTest(Map.of("VM_TEST_A_B", "true"), Map.of("VM_TEST_a_b", "false"), "list");
        twice.is(2, "", "vm-test: VM_TEST_A_B and VM_TEST_a_b both name the suite a-b: remove one of them\n");
        assertEquals(0, vmTest(Map.of("VM_TEST_A_B", "true"), Map.of("VM_TEST_A_B", "false"), "list").exitCode(), "one beats the other");
        assertEquals("vm-test: VM_TEST_X is blank: give the suite x a command\n", vmTest(Map.of("VM_TEST_X", "  "), Map.of(), "list").err());
        for (String setting : List.of("VM_TEST_", "VM_TEST__X", "VM_TEST_" + "A".repeat(65))) {
            assertTrue(vmTest(Map.of(setting, "true"), Map.of(), "list").err().startsWith("vm-test: " + setting + " names no suite: "), setting);
        }
    }

    @Test
    void flagsOfGoTestComeAfterTwoDashes() {
        for (String flag : List.of("-run", "-count=2", "-failfast", "-vet=off", "-quick")) {
            Script.Result ran = vmTest("unit", flag, "TestX");
            assertEquals(2, ran.exitCode());
            assertEquals("vm-test: " + flag + " is no option of vm-test; flags of go test come after --, as in: vm-test unit -- " + flag
                    + (flag.equals("-run") ? " TestX" : "") + "\n", ran.err());
        }
    }

    private static List<VmTest.Job> jobs(Map<String, String> settings, VmTest.CallerArgs callerArgs, String... names) {
        return new VmTest.Suites(new VmTest.Settings().add(settings, "the environment"), Path.of("test/sample")).jobs(List.of(names), callerArgs);
    }

    private static String chosen(Map<String, String> settings, String... names) {
        return jobs(settings, VmTest.CallerArgs.NONE, names).stream().map(job -> job.suite().name()).collect(Collectors.joining(" "));
    }

    @Test
    void theBuildComesFirstAndOnce() {
        assertEquals("build unit phase4", chosen(Map.of(), "unit", "phase4", "unit"));
        assertEquals("build", chosen(Map.of(), "build"));
        assertEquals("build e2e unit", chosen(Map.of(), "e2e", "build", "unit"));
        assertEquals("build phase4 unit integration", chosen(Map.of(), "quick", "all"));
        assertEquals("build all", chosen(Map.of("VM_TEST_ALL", "make check"), "all"));
        assertEquals("unit", chosen(Map.of("VM_TEST_BUILD", "true"), "unit"));
        assertEquals("build", chosen(Map.of("VM_TEST_BUILD", "true"), "build"));
        VmTest.VmException unknown = assertThrows(VmTest.VmException.class, () -> chosen(Map.of(), "integratoin"));
        assertEquals(2, unknown.exitCode);
        assertTrue(unknown.getMessage().contains("integration"), unknown.getMessage());
    }

    /** The suite x with this command: what the guest runs, after what the caller adds; "opaque: " in front if it is no plain go test. */
    private static String line(String command, List<String> words, List<String> packages) {
        VmTest.Job job = jobs(Map.of("VM_TEST_X", command, "VM_TEST_BUILD", "true"), new VmTest.CallerArgs(words, packages, false), "x").get(0);
        return (job.isGoTest() ? "" : "opaque: ") + job.command();
    }

    @Test
    void aPlainGoTestGetsJsonAndAnyOtherCommandRunsAsItIs() {
        String[][] commands = {
            {"go test -v -short ./...", "go test -json -short ./..."},
            {"go test", "go test -json"},
            {"doas go test ./x", "doas go test -json ./x"},
            {"CGO_ENABLED=0 A='b c' doas go test .", "CGO_ENABLED=0 A='b c' doas go test -json ."},
            {"/usr/local/go/bin/go test -json ./a", "/usr/local/go/bin/go test -json ./a"},
            {"go test -run 'TestA|TestB' -tags=\"a b\" -count 1 -v=true --v ./p 'a b'/...", "go test -json -run 'TestA|TestB' -tags=\"a b\" -count 1 ./p 'a b'/..."},
            {"go test -run -v -test.v ./p", "go test -json -run -v ./p"},
            {"go test -coverpkg ./... -coverprofile c.out", "go test -json -coverpkg ./... -coverprofile c.out"},
            {"go test ./integration_e2e_test.go", "go test -json ./integration_e2e_test.go"},
            {"go test -newflag ./x ./y", "go test -json -newflag ./x ./y"},
        };
        for (String[] row : commands) {
            assertEquals(row[1], line(row[0], List.of(), List.of()));
        }
        for (String same : List.of("gmake test", "go vet ./...", "go test ./... | tee log", "echo go test", "go testify", "go test ./... > log",
                "(go test)", "sh -c 'go test ./...'", "go test 'open", "x=$(go test)", "go test `id`", "go test ./$PKG", "go test -run \"$X\" .",
                "go test *_test.go", "go test ./a?", "go test ./[ab]", "go test {a,b}", "go test . # all", "cd x && go test", "go test; go vet", "go test\ngo vet",
                "go test ./p1 ./p2 -run .", "go test ./p1 -short -args ./p2", "go test -short -args ./...", "go test -c ./x", "go test -run", "go test -- ./x", "env go test .", "doas -n go test .",
                "A=b", "doas", "")) {
            assertEquals("opaque: " + same, same.isEmpty() ? "opaque: " : line(same, List.of(), List.of()));
        }
    }

    @Test
    void flagsComeBeforeThePackagesAndPackagesTakeThePlaceOfOthers() {
        String unit = "go test -v -short ./...";
        String[][] rows = { // command, packages, words; and the line
            {unit, "", "-run TestX", "go test -json -short -run TestX ./..."},
            {unit, "", "-v -json -run TestX -count=2 -race", "go test -json -short -run TestX -count=2 -race ./..."},
            {unit, "./a ./b/...", "", "go test -json -short ./a './b/...'"},
            {unit, "it's", "-run ^A$|B", "go test -json -short -run '^A$|B' 'it'\\''s'"},
            {unit, "", "-coverpkg ./... -coverprofile c.out", "go test -json -short -coverpkg ./... -coverprofile c.out ./..."},
            {unit, "./p", "-short -args ./data -v", "go test -json -short -short ./p -args ./data -v"},
            {"go test", "", "-timeout 5m", "go test -json -timeout 5m"},
            {"gmake test", "", "-k a ./x", "opaque: gmake test -k a ./x"},
            {"go test ./a | cat", "", "", "opaque: go test ./a | cat"},
        };
        for (String[] row : rows) {
            String line = line(row[0], words(row[2]), words(row[1])).replace("./b/...", "./b/...");
            assertEquals(row[3].replace("'./b/...'", "./b/..."), line);
        }
        String[][] refused = { // command, packages, words, and the reason
            {unit, "", "-run TestX ./pkg/...", "'./pkg/...' after -- is neither a flag of go test nor a flag's value: packages are named by --packages ./pkg/..."},
            {unit, "", "example.com/x", "packages are named by --packages example.com/x"},
            {unit, "", "-- ./x", "packages are named by --packages --"},
            {unit, "-short", "", "--packages: '-short' is no package"},
            {unit, "", "-c", "with -c go test runs no test, so there would be no verdict"},
            {unit, "", "-short -list=.", "with -list=. go test runs no test, so there would be no verdict"},
            {unit, "", "-short -tags", "after --, the flag -tags lacks its value; if it takes none, write -tags=true"},
            {"gmake test", "./x", "", "--packages is for suites of the form 'go test FLAGS PACKAGES', and x is another command: gmake test"},
            {"go test ./x # all", "", "-run A", "the command of suite x has a # comment, in which the words after -- would be lost: go test ./x # all"},
        };
        for (String[] row : refused) {
            VmTest.VmException failure = assertThrows(VmTest.VmException.class, () -> line(row[0], words(row[2]), words(row[1])), row[2]);
            assertEquals(2, failure.exitCode);
            assertTrue(failure.getMessage().endsWith(row[3]), failure.getMessage());
        }
        for (VmTest.CallerArgs lost : List.of(new VmTest.CallerArgs(List.of("-k"), List.of(), false), new VmTest.CallerArgs(List.of(), List.of("./x"), false))) {
            assertThrows(VmTest.VmException.class, () -> jobs(Map.of(), lost, "build"), "the build takes none of them");
        }
        assertThrows(VmTest.VmException.class, () -> line("go test ./x", List.of(), List.of("./x", "")), "a variable that was not set");
        for (String command : List.of("go test -v ./p1 -run . ./p2", "go test ./p1 -short ./p2 -args x")) {
            VmTest.VmException lost = assertThrows(VmTest.VmException.class, () -> line(command, List.of(), List.of()));
            assertEquals("go test would never test ./p2, because a flag stands between it and the packages before it: put all flags before the packages",
                    lost.getMessage());
        }
        assertEquals("opaque: echo 'a # b' a#b c", line("echo 'a # b' a#b", List.of("c"), List.of()), "no comments");
    }

    private static List<String> words(String text) {
        return text.isEmpty() ? List.of() : List.of(text.split(" "));
    }

    // The guest's side, in this machine's sh

    private Path home;

    private static VmTest.Place place(String directory) {
        return new VmTest.Place(Path.of("/vm"), "x", directory, "host:/project", false);
    }

    /** The supervisor on stdin as ssh brings it; stdin stays open until it says how the command ended. */
    private String supervised(String directory, String command, Map<String, String> environment) throws Exception {
        return supervised("sh", directory, command, environment, script -> script.length);
    }

    /** As above, in this shell. The first bytes are sent alone; the rest follows once they were read. */
    private String supervised(String shell, String directory, String command, Map<String, String> environment, ToIntFunction<byte[]> first)
            throws Exception {
        byte[] script = VmTest.Supervisor.script("MARK ", place(directory), command, environment, false).getBytes(UTF_8);
        String remote = VmTest.Supervisor.sshCommand(Path.of("/vm"), "x", script.length).get(5).replaceFirst("^exec sh", "exec env " + shell);
        ProcessBuilder builder = new ProcessBuilder("sh", "-c", remote).redirectErrorStream(true);
        builder.environment().put("HOME", home == null ? dir.toString() : home.toString());
        Process process = builder.start();
        int size = first.applyAsInt(script);
        process.getOutputStream().write(script, 0, size);
        process.getOutputStream().flush();
        for (long end = System.nanoTime() + TimeUnit.MINUTES.toNanos(5); size < script.length && process.descendants().noneMatch(VmTestTest::readsTheRest); Thread.sleep(5)) {
            assertTrue(process.isAlive() && System.nanoTime() < end, "it does not read the rest");
        }
        process.getOutputStream().write(script, size, script.length - size);
        process.getOutputStream().flush();
        StringBuilder said = new StringBuilder();
        for (int c = process.getInputStream().read(); c >= 0; c = process.getInputStream().read()) {
            said.append((char) c);
        }
        assertTrue(process.waitFor(5, TimeUnit.MINUTES));
        return said.toString();
    }

    @Test
    void theSupervisorRunsTheCommandAsGiven() throws Exception {
        Path work = Files.createDirectory(dir.resolve("it's a \"dir\""));
        String odd = "a'b\"c $HOME `id` \\ !x\n*";
        String said = supervised(work.toString(), "pwd; printf '%s|' " + VmTest.shellQuoted(List.of(odd, "", "-n")) + " \"$ODD\"; sleep 1; exit 7",
                Map.of("ODD", odd));
        assertTrue(said.contains(work + "\n"), said);
        assertTrue(said.contains(odd + "||-n|" + odd + "|"), said);
        assertTrue(said.endsWith("MARK exit 7\nMARK exit 7\n"), said);
    }

    private static boolean readsTheRest(ProcessHandle process) {
        return process.info().arguments().filter(words -> words[0].equals("bs=1")).isPresent();
    }

    @Test
    void whatFollowsTheScriptIsLeftToIt() throws Exception {
        Path input = Files.writeString(dir.resolve("input"), "cat\norder\n");
        Process shell = new ProcessBuilder("sh", "-c", "cat " + VmTest.shellQuoted(List.of(input.toString())) + " | "
                + VmTest.Supervisor.sshCommand(Path.of("/vm"), "x", 4).get(5).replaceFirst("^exec ", "")).start();
        assertEquals("order\n", new String(shell.getInputStream().readAllBytes(), UTF_8));
    }

    /** ssh may bring the script in pieces. In UTF-8, bash and BSD's sh count characters, not bytes. */
    @Test
    void theScriptMayComeInPieces() throws Exception {
        List<ToIntFunction<byte[]>> pieces = List.of(script -> 1, script -> script.length - 1, script -> script.length,
                script -> new String(script, ISO_8859_1).indexOf("\n\n") + 1, script -> new String(script, ISO_8859_1).indexOf("\u00c3") + 1);
        for (ToIntFunction<byte[]> first : pieces) {
            for (String shell : List.of("sh", "LC_ALL=C.UTF-8 bash")) {
                String said = supervised(shell, dir.toString(), "printf '%s|' \"$ODD\"; exit 7", Map.of("ODD", "\u00fc\n\n\u00fc"), first);
                assertEquals("\u00fc\n\n\u00fc|MARK exit 7\nMARK exit 7\n", new String(said.getBytes(ISO_8859_1), UTF_8), shell);
            }
        }
    }

    @Test
    void signalsReachTheCommandAsUsual() throws Exception {
        String said = supervised(dir.toString(), "for s in INT QUIT TERM HUP; do sh -c \"kill -$s \\$\\$; echo ignored $s\"; done", Map.of());
        assertFalse(said.contains("ignored"), said);
    }

    @Test
    void aMissingDirectoryIsSaid() throws Exception {
        assertEquals("MARK nowhere\n", supervised(dir.resolve("nope").toString(), "echo ran", Map.of()));
    }

    @Test
    void theOrderToStopKillsWhatLeftTheGroupAndNobodyElse() throws Exception {
        String left = stopped("setsid sh -c 'trap \"\" TERM; sleep 611' & (sleep 612 &) ; sleep 613");
        assertTrue(left.contains("sleep 614"), left);
        assertFalse(left.contains("sleep 611") || left.contains("sleep 612") || left.contains("sleep 613"), left);
    }

    @Test
    void aSuiteThatEmptiesTmpIsStoppedAll() throws Exception {
        String left = stopped("rm -rf \"$TMPDIR\"/*; sleep 613 & sleep 611");
        assertTrue(left.contains("sleep 614"), left);
        assertFalse(left.contains("sleep 611") || left.contains("sleep 613"), left);
    }

    /** The caller's variables do not meet the supervisor's: not even those that it is made of. */
    @Test
    void theCallersVariablesReachTheCommandAndNothingElse() throws Exception {
        Map<String, String> hostile = new TreeMap<>();
        for (String name : VmTest.Supervisor.script("M", place("/"), "true", Map.of(), true).split("[^A-Za-z_]+")) {
            if (name.matches("[A-Za-z_]+") && !Set.of("PATH", "HOME", "PWD", "LC_ALL", "IFS").contains(name)) {
                hostile.put(name, "hijacked '" + name + "'");
            }
        }
        assertTrue(hostile.keySet().containsAll(Set.of("command", "mark", "dir", "start", "before", "watcher", "code")) && hostile.size() > 50, hostile.toString());
        String said = supervised(dir.toString(), "echo \"$start|$mark|$watcher\"; exit 3", hostile);
        assertEquals("hijacked 'start'|hijacked 'mark'|hijacked 'watcher'\nMARK exit 3\nMARK exit 3\n", said);
    }

    @Test
    void anotherProjectInTheDirectoryIsNamedAndNotRun() throws Exception {
        Path tree = Files.createDirectory(dir.resolve("app"));
        Path mark = Files.createDirectories(dir.resolve("home/.vm-sync/key"));
        Files.writeString(mark.resolve("made"), Files.getAttribute(tree, "unix:ino") + "\n");
        Files.createSymbolicLink(mark.resolve("tree"), tree);
        home = dir.resolve("home");
        assertTrue(supervised(tree.toString(), "echo ran", Map.of()).startsWith("ran\n"), "from a version that wrote no origin");
        Files.writeString(mark.resolve("origin"), "host:/project\n2026-11-29T00:00:00Z\n");
        assertTrue(supervised(tree.toString(), "echo ran", Map.of()).startsWith("ran\n"));
        Files.writeString(mark.resolve("origin"), "host:/other\n2026-11-29T00:00:00Z\n");
        assertEquals("MARK origin host:/other 2026-11-29T00:00:00Z\n", supervised(tree.toString(), "echo ran", Map.of()));
        Files.writeString(mark.resolve("made"), "1\n");
        assertTrue(supervised(tree.toString(), "echo ran", Map.of()).startsWith("ran\n"), "the directory was made anew since");
    }

    /** A snapshot that was taken at a time limit is restored: then stdin ends, and nothing that it holds is killed. */
    @Test
    void whatIsKeptIsOnlyKilledByAnOrder() throws Exception {
        String left = stopped("sleep 611 & sleep 4", "keep\n");
        assertTrue(left.contains("sleep 611"), left);
        assertFalse(stopped("sleep 611 & sleep 613", "keep\nkill\n").contains("sleep 611"));
    }

    /** After a vm-test that was killed, its supervisor ends its suite, and the next one waits for that. */
    @Test
    void oneSuiteAfterTheOther() throws Exception {
        needsOwnProcesses();
        List<String> both = new ArrayList<>();
        for (String command : List.of("sleep 3; touch ended", "test -e ended && echo in turn")) {
            byte[] script = VmTest.Supervisor.script("MARK ", place(dir.toString()), command, Map.of(), false).getBytes(UTF_8);
            Path file = Files.write(Files.createTempFile(dir, "script", null), script);
            both.add("{ cat " + VmTest.shellQuoted(List.of(file.toString())) + "; sleep 20; } | "
                    + VmTest.Supervisor.sshCommand(Path.of("/vm"), "x", script.length).get(5).replaceFirst("^exec ", ""));
        }
        Process process = new ProcessBuilder(Stream.concat(OWN_PROCESSES.stream(), Stream.of("sh", "-c",
                String.join(" & sleep 1; ", both))).toList()).start();
        process.getOutputStream().close();
        assertTrue(process.inputReader().lines().anyMatch("in turn"::equals));
        process.destroy();
    }

    /** A leftover is one whatever its name is: only the system's own daemons do not count. */
    @Test
    void aProgramNamedLikeADaemonIsLeftBehind() throws Exception {
        needsOwnProcesses();
        Path program = Files.createSymbolicLink(Files.createDirectories(dir.resolve("cron")).resolve("cron.test"), Path.of("/bin/sleep"));
        String said = leftBehind("(" + VmTest.shellQuoted(List.of(program.toString())) + " 615 &)", System.getenv("PATH"));
        assertTrue(Pattern.compile("(?m)^MARK left process \\d+ .*/cron/cron\\.test 615$").matcher(said).find(), said);
        assertTrue(said.contains("MARK left end\n"), said);
    }

    private String stopped(String command) throws Exception {
        return stopped(command, "");
    }

    /** What runs after the order to stop a command, beside which a sleep 614 runs. */
    private String stopped(String command, String orders) throws Exception {
        needsOwnProcesses();
        byte[] script = VmTest.Supervisor.script("MARK ", place(dir.toString()), command, Map.of("TMPDIR", dir.toString()), false).getBytes(UTF_8);
        String outer = "sleep 614 & " + VmTest.Supervisor.sshCommand(Path.of("/vm"), "x", script.length).get(5).replaceFirst("^exec ", "") + "; ps -axww -o command";
        Process process = new ProcessBuilder(Stream.concat(OWN_PROCESSES.stream(), Stream.of("sh", "-c", outer)).toList()).start();
        process.getOutputStream().write(script);
        process.getOutputStream().flush();
        Thread.sleep(1500);
        process.getOutputStream().write(orders.getBytes(UTF_8));
        process.getOutputStream().close();
        return new String(process.getInputStream().readAllBytes(), UTF_8);
    }

    static void needsOwnProcesses() throws Exception {
        assumeTrue(ended(Stream.concat(OWN_PROCESSES.stream(), Stream.of("true")).toList()), "needs a PID namespace");
    }

    private static boolean ended(List<String> command) throws Exception {
        try {
            Process process = new ProcessBuilder(command).start();
            return process.waitFor(5, TimeUnit.MINUTES) && process.exitValue() == 0;
        } catch (java.io.IOException missing) {
            return false;
        }
    }

    @Test
    void theSupervisorsLinesAreFoundInTheMiddleOfOthers() {
        String stream = "half a line" + "\u001eMARK left process 7 x\n, its rest\n\u001enot ours\n" + "\u001eMARK left mount tmpfs on /build\n"
                + "\u001eMARK exit 3\nlate";
        for (int size : new int[] {1, 7, 1000}) {
            VmTest.GuestRun guest = guestRun();
            String mine = stream.replace("\u001eMARK ", guest.mark);
            StringBuilder rest = new StringBuilder();
            StringBuilder held = new StringBuilder();
            boolean more = true;
            for (int i = 0; more && i < mine.length(); i += size) {
                more = guest.sift(held.append(mine, i, Math.min(mine.length(), i + size)), rest::append);
            }
            VmTest.Leftovers listed = guest.leftovers;
            assertFalse(more);
            assertEquals("half a line, its rest\n\u001enot ours\n", rest.toString());
            assertEquals(3, guest.code);
            listed.take("end");
            assertEquals(List.of("process 7 x", "mount tmpfs on /build"), listed.failing());
        }
        VmTest.GuestRun guest = guestRun();
        StringBuilder rest = new StringBuilder();
        StringBuilder held = new StringBuilder();
        for (int i = 0; i < 100; i++) { // a mark that the guest found out, without an end
            guest.sift(held.append(guest.mark).append("x".repeat(10_000)), rest::append);
            assertTrue(held.length() < 100_000, "memory is bounded");
        }
        assertFalse(guest.sift(new StringBuilder(guest.mark + "exit nonsense\n"), rest::append));
        assertEquals(null, guest.code, "so it is lost");
    }

    private VmTest.GuestRun guestRun() {
        return new VmTest.GuestRun(new VmTest.Place(dir, "x", "/d", "h:/p", false), "true", Map.of(), Duration.ofSeconds(1), true, () -> false);
    }

    /** One whose guest has listed that nothing was left behind. */
    private VmTest.GuestRun cleanRun(int code) {
        VmTest.GuestRun guest = guestRun();
        guest.code = code;
        guest.leftovers.take("end");
        return guest;
    }

    /** The guest compares its listings. Here its sh is this machine's, with a mount that lists what a file holds. */
    @Test
    void whatIsLeftBehindIsWhatWasNotThereBefore() throws Exception {
        needsOwnProcesses();
        Path mounts = Files.writeString(dir.resolve("mounts"), "tmpfs on /gone\ntmpfs on /mnt\n\\x on / (local)\n");
        Path mount = Files.writeString(dir.resolve("mount"), "#!/bin/sh\nexec cat '" + mounts + "'\n");
        assertTrue(mount.toFile().setExecutable(true));
        Path there = Files.createTempFile(Path.of("/tmp"), "there before", "");
        Path left = Files.createTempFile(Path.of("/tmp"), "left", "");
        Files.delete(left);
        String command = "printf 'tmpfs on /mnt\\n\\\\x on / (local)\\ntmpfs on /mnt\\nnew\\n' >'" + mounts + "'; touch '" + left + "'";
        try {
            String said = leftBehind(command, dir + ":" + System.getenv("PATH"));
            assertEquals(List.of("mount tmpfs on /mnt", "mount new"), said.lines().filter(line -> line.startsWith("MARK left mount ")).map(line -> line.substring(10)).toList(),
                    "a second mount of the same kind counts");
            assertTrue(said.contains("MARK left tmp " + left.getFileName() + "\n") && !said.contains("there before"), said);
            assertTrue(said.contains("MARK left end\nMARK exit 0\n"), said);
            Files.writeString(mounts, "x\n".repeat(200_000));
            said = leftBehind("echo y >>'" + mounts + "'", dir + ":" + System.getenv("PATH"));
            assertTrue(said.contains("MARK left unknown: not checked, 200000 or more files were there before\nMARK left end\n") && !said.contains("mount y"), said);
        } finally {
            Files.delete(there);
            Files.deleteIfExists(left);
        }
    }

    /** The supervisor's report on what this command left behind. */
    private String leftBehind(String command, String path) throws Exception {
        byte[] script = VmTest.Supervisor.script("MARK ", place(dir.toString()), command, Map.of(), true).getBytes(UTF_8);
        ProcessBuilder builder = new ProcessBuilder(Stream.concat(OWN_PROCESSES.stream(), Stream.of("sh", "-c",
                VmTest.Supervisor.sshCommand(Path.of("/vm"), "x", script.length).get(5))).toList());
        builder.environment().put("PATH", path);
        Process process = builder.start();
        process.getOutputStream().write(script);
        process.getOutputStream().flush();
        String said = new String(process.getErrorStream().readAllBytes(), UTF_8);
        process.getOutputStream().close();
        return said;
    }

    @Test
    void whatIsLeftInTmpIsOnlyReported() {
        VmTest.Leftovers left = new VmTest.Leftovers();
        String unknown = "unknown: the guest did not list all that was there before and after";
        assertEquals(List.of(unknown), left.failing());
        Stream.of("process 12 sleep 903", "mount tmpfs on /mnt", "file /build/a b", "file /build/a\r", "tmp go-build123", "tmp go-builder", "tmp vm-sync.Ab", "tmp t1", "odd", "", "strange x")
                .forEach(left::take);
        assertEquals(List.of("process 12 sleep 903", "mount tmpfs on /mnt", "file /build/a b", "file /build/a\r", unknown), left.failing());
        left.take("end");
        assertEquals(List.of("process 12 sleep 903", "mount tmpfs on /mnt", "file /build/a b", "file /build/a\r"), left.failing());
        assertEquals(List.of("/tmp/go-builder", "/tmp/t1"), left.inTmp());
    }

    // go test -json

    /** {@code go test -json ./pass ./fail ./skip ./nodep ./tmain}, Go 1.19: package, action, test and what it says or takes. */
    private static final String SIDE_BY_SIDE = Stream.of("pass run TestA", "pass out TestA     pass_test.go:3: hello", "pass pass TestA 0.00",
            "pass run TestSlow", "fail run TestBad", "fail out TestBad     fail_test.go:3: got 3, want 4", "fail fail TestBad 0.00",
            "fail run TestSub", "fail run TestSub/ok", "fail run TestSub/ko", "fail out TestSub/ko     fail_test.go:4: deep",
            "fail fail TestSub 0.00", "fail pass TestSub/ok 0.00", "fail fail TestSub/ko 0.00", "fail FAIL - 0.002",
            "skip run TestOther", "skip out TestOther     skip_test.go:4: thinking", "skip out TestOther     skip_test.go:4: no /dev/x",
            "skip skip TestOther 0.00", "skip ok - 0.002", "tmain out - cannot set up", "tmain FAIL - 0.001",
            "pass pass TestSlow 0.30", "pass ok - 0.304", "nodep out - ?   \texample.com/s/nodep\t[no test files]", "nodep skip - 0.0")
            .map(VmTestTest::events).collect(Collectors.joining());

    private static String events(String line) {
        String[] word = line.split(" ", 4);
        String pkg = "example.com/s/" + word[0];
        String test = word.length < 3 || word[2].equals("-") ? null : word[2];
        String said = word.length > 3 ? word[3] : "";
        return switch (word[1]) {
            case "start" -> event("start", pkg, null, null);
            case "end" -> event("output", pkg, null, "FAIL\n"); // what the testing package prints after all tests
            case "raw" -> event("output", pkg, test, said);
            case "run" -> event("run", pkg, test, null) + event("output", pkg, test, "=== RUN   " + test + "\n");
            case "out" -> event("output", pkg, test, said + "\n");
            case "ok" -> event("output", pkg, null, "PASS\n") + event("output", pkg, null, "ok  \t" + pkg + "\t" + said + "s\n") + event("pass", pkg, null, said);
            case "FAIL" -> event("output", pkg, null, "FAIL\t" + pkg + "\t" + said + "s\n") + event("fail", pkg, null, said);
            default -> (test == null ? "" : event("output", pkg, test, "--- " + word[1].toUpperCase() + ": " + test + " (" + said + "s)\n"))
                    + event(word[1], pkg, test, said);
        };
    }

    private static String event(String action, String pkg, String test, String said) {
        JsonObject event = new JsonObject(new TreeMap<>(Map.of("Action", action, "Package", pkg)));
        if (test != null) {
            event.put("Test", test);
        }
        if (said != null) {
            event.put(action.equals("output") ? "Output" : "Elapsed", action.equals("output") ? said : Double.valueOf(said));
        }
        return JsonWriter.string(event) + "\n";
    }

    /** Go 1.19: a test whose output ends without a newline has no result of its own. */
    private static final String RAW = """
            {"Action":"run","Package":"example.com/s/raw","Test":"TestNoNewline"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestNoNewline","Output":"=== RUN   TestNoNewline\\n"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestNoNewline","Output":"no newline here--- PASS: TestNoNewline (0.00s)\\n"}
            {"Action":"run","Package":"example.com/s/raw","Test":"TestStderr"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestStderr","Output":"=== RUN   TestStderr\\n"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestStderr","Output":"to stderr \\u001b[31mred\\u001b[0m \\u0000 ]]> <&\\n"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestStderr","Output":"--- PASS: TestStderr (0.00s)\\n"}
            {"Action":"pass","Package":"example.com/s/raw","Test":"TestStderr","Elapsed":0}
            {"Action":"run","Package":"example.com/s/raw","Test":"TestNoNewlineFail"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestNoNewlineFail","Output":"=== RUN   TestNoNewlineFail\\n"}
            {"Action":"output","Package":"example.com/s/raw","Test":"TestNoNewlineFail","Output":"dots...--- FAIL: TestNoNewlineFail (0.00s)\\n"}
            {"Action":"output","Package":"example.com/s/raw","Output":"FAIL\\n"}
            {"Action":"output","Package":"example.com/s/raw","Output":"FAIL\\texample.com/s/raw\\t0.002s\\n"}
            {"Action":"fail","Package":"example.com/s/raw","Elapsed":0.002}
            """;

    /** Go 1.19, stdout: a panic, packages that cannot be built (frames left out). */
    private static final String PANIC = """
            FAIL	example.com/s/setup [setup failed]
            {"Action":"run","Package":"example.com/s/boom","Test":"TestFirst"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestFirst","Output":"=== RUN   TestFirst\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestFirst","Output":"--- PASS: TestFirst (0.00s)\\n"}
            {"Action":"pass","Package":"example.com/s/boom","Test":"TestFirst","Elapsed":0}
            {"Action":"run","Package":"example.com/s/boom","Test":"TestPar"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPar","Output":"=== RUN   TestPar\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPar","Output":"=== PAUSE TestPar\\n"}
            {"Action":"pause","Package":"example.com/s/boom","Test":"TestPar"}
            {"Action":"run","Package":"example.com/s/boom","Test":"TestPanic"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"=== RUN   TestPanic\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"--- FAIL: TestPanic (0.00s)\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"panic: assignment to entry in nil map [recovered]\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"\\tpanic: assignment to entry in nil map\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"panic({0x508ec0, 0x551d60})\\n"}
            {"Action":"output","Package":"example.com/s/boom","Test":"TestPanic","Output":"example.com/s/boom.TestPanic(0x0?)\\n"}
            {"Action":"fail","Package":"example.com/s/boom","Test":"TestPanic","Elapsed":0}
            {"Action":"output","Package":"example.com/s/boom","Output":"FAIL\\texample.com/s/boom\\t0.007s\\n"}
            {"Action":"fail","Package":"example.com/s/boom","Elapsed":0.007}
            FAIL	example.com/s/brk [build failed]
            FAIL	example.com/s/vet [build failed]
            """;

    private static final String PANIC_STDERR = """
            go: finding module for package example.com/nowhere/x
            # example.com/s/setup
            setup/setup_test.go:2:19: cannot find module providing package example.com/nowhere/x: module lookup disabled by GOPROXY=off
            # example.com/s/brk [example.com/s/brk.test]
            brk/brk_test.go:3:28: undefined: undefinedThing
            brk/brk_test.go:3:61: cannot use 3 (untyped int constant) as string value in variable declaration
            # example.com/s/vet
            vet/vet_test.go:3:28: fmt.Printf format %d has arg "s" of wrong type string
            """;

    /** {@code go test -json -timeout 1s ./hang}, Go 1.19 (frames left out). */
    private static final String HANG = """
            {"Action":"run","Package":"example.com/s/hang","Test":"TestOk"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestOk","Output":"=== RUN   TestOk\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestOk","Output":"--- PASS: TestOk (0.00s)\\n"}
            {"Action":"pass","Package":"example.com/s/hang","Test":"TestOk","Elapsed":0}
            {"Action":"run","Package":"example.com/s/hang","Test":"TestHang"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"=== RUN   TestHang\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"    hang_test.go:4: about to hang\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"panic: test timed out after 1s\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"\\t_testmain.go:49 +0x1aa\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"\\n"}
            {"Action":"output","Package":"example.com/s/hang","Test":"TestHang","Output":"example.com/s/hang.TestHang(0xc000096680?)\\n"}
            {"Action":"output","Package":"example.com/s/hang","Output":"FAIL\\texample.com/s/hang\\t1.014s\\n"}
            {"Action":"fail","Package":"example.com/s/hang","Elapsed":1.015}
            """;

    /** As Go 1.24 and later say it: start events, build-output, FailedBuild, attributes, NAME lines. */
    private static final String NEWER = """
            {"ImportPath":"example.com/s/brk [example.com/s/brk.test]","Action":"build-output","Output":"# example.com/s/brk [example.com/s/brk.test]\\n"}
            {"ImportPath":"example.com/s/brk [example.com/s/brk.test]","Action":"build-output","Output":"brk/brk_test.go:3:28: undefined: thing\\n"}
            {"ImportPath":"example.com/s/brk [example.com/s/brk.test]","Action":"build-fail"}
            {"Action":"start","Package":"example.com/s/brk"}
            {"Action":"output","Package":"example.com/s/brk","Output":"FAIL\\texample.com/s/brk [build failed]\\n"}
            {"Action":"fail","Package":"example.com/s/brk","Elapsed":0,"FailedBuild":"example.com/s/brk [example.com/s/brk.test]"}
            {"Action":"start","Package":"example.com/s/new"}
            {"Action":"run","Package":"example.com/s/new","Test":"TestA"}
            {"Action":"output","Package":"example.com/s/new","Test":"TestA","Output":"=== RUN   TestA\\n"}
            {"Action":"attr","Package":"example.com/s/new","Test":"TestA","Key":"k","Value":"v"}
            {"Action":"output","Package":"example.com/s/new","Test":"TestA","Output":"=== NAME  TestA\\n"}
            {"Action":"output","Package":"example.com/s/new","Test":"TestA","Output":"    a_test.go:5: why\\n"}
            {"Action":"output","Package":"example.com/s/new","Test":"TestA","Output":"--- FAIL: TestA (1.50s)\\n"}
            {"Action":"fail","Package":"example.com/s/new","Test":"TestA","Elapsed":1.5}
            {"Action":"output","Package":"example.com/s/new","Output":"FAIL\\n"}
            {"Action":"output","Package":"example.com/s/new","Output":"FAIL\\texample.com/s/new\\t1.502s\\n"}
            {"Action":"fail","Package":"example.com/s/new","Elapsed":1.502}
            """;

    private final StringBuilder screen = new StringBuilder();
    private final StringBuilder events = new StringBuilder();

    private void take(VmTest.SuiteOutput output, int stream, String piece) {
        screen.append(output.take(stream, piece));
    }

    private final VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());

    private VmTest.Report report(String stdout, String stderr, int guestCode) {
        return report("unit", "go test ./...", stdout, stderr, guestCode);
    }

    private VmTest.Report report(String suite, String command, String stdout, String stderr, int guestCode) {
        VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
        take(output, 2, wire(stderr));
        take(output, 1, wire(stdout));
        return report(job(suite, command), output, guestCode);
    }

    private static VmTest.Job job(String suite, String command) {
        List<VmTest.Job> jobs = jobs(Map.of("VM_TEST_" + suite.toUpperCase(), command), VmTest.CallerArgs.NONE, suite);
        return jobs.get(jobs.size() - 1);
    }

    private VmTest.Report report(VmTest.Job job, VmTest.SuiteOutput output, int guestCode) {
        screen.append(output.end());
        VmTest.GuestRun guest = cleanRun(guestCode);
        return new VmTest.Report(job, VmTest.Ending.of(guestCode == 0 ? VmTest.Verdict.PASSED : VmTest.Verdict.FAILED, guest), output, Instant.now(), VmTest.Leaks.fail);
    }

    private static String wire(String text) {
        return new String(text.getBytes(UTF_8), ISO_8859_1);
    }

    private static String outcomes(VmTest.Report report) {
        return report.tests.stream().filter(test -> !test.name().isEmpty()).map(test -> test.name() + "=" + test.outcome()).sorted()
                .collect(Collectors.joining(" "));
    }

    @Test
    void packagesSideBySideAreShownOneAfterTheOther() {
        VmTest.Report report = report(SIDE_BY_SIDE, "", 1);
        assertEquals("TestA=pass TestBad=fail TestOther=skip TestSlow=pass TestSub/ko=fail TestSub/ok=pass TestSub=fail", outcomes(report));
        List<String> order = screen.toString().lines().filter(line -> line.matches("(ok|FAIL|\\?) +\t?.*\t.*|FAIL\t.*"))
                .map(line -> line.replaceAll(".*/s/(\\w+).*", "$1")).toList();
        assertEquals(List.of("pass", "fail", "skip", "tmain", "nodep"), order);
        assertTrue(screen.indexOf("=== RUN   TestBad") > screen.indexOf("ok  \texample.com/s/pass"), "after the package that was first");
        assertTrue(screen.toString().startsWith("=== RUN   TestA\n    pass_test.go:3: hello\n--- PASS: TestA (0.00s)\n=== RUN   TestSlow\n"), screen.toString());
        assertEquals(SIDE_BY_SIDE, events.toString());
    }

    @Test
    void aPackageThatSaysVeryMuchDoesNotWaitAndLosesNothing() {
        take(output, 1, events("a run TestA") + events("b run TestB"));
        IntStream.range(0, 600).forEach(i -> take(output, 1, events("b out TestB " + "x".repeat(9_999))));
        assertTrue(screen.length() > 1 << 20, "shown beside a");
        screen.append(output.end());
        assertEquals(600 * 9_999, screen.chars().filter(c -> c == 'x').count());
    }

    @Test
    void theFirstPackageIsShownLive() {
        SIDE_BY_SIDE.lines().limit(8).forEach(line -> take(output, 1, line + "\n"));
        assertTrue(screen.toString().endsWith("=== RUN   TestSlow\n"), screen.toString());
    }

    @Test
    void theSummarySaysWhatFailedAndWhyAndWhatWasSkipped() {
        String summary = report(SIDE_BY_SIDE, "", 1).summary();
        assertEquals("""
                == unit failed, guest exit code 1, 3 fail, 3 pass, 1 skip
                   FAIL example.com/s/fail TestBad
                           fail_test.go:3: got 3, want 4
                   FAIL example.com/s/fail TestSub/ko
                           fail_test.go:4: deep
                   FAIL example.com/s/tmain
                       cannot set up
                       FAIL	example.com/s/tmain	0.001s
                   SKIP example.com/s/skip TestOther: skip_test.go:4: no /dev/x
                """, summary.replaceFirst(", [0-9.]+ s\n", "\n"));
    }

    @Test
    void buildFailuresAreToldApartFromFailedTests() {
        VmTest.Report report = report(PANIC, PANIC_STDERR, 2);
        assertEquals("TestFirst=pass TestPanic=fail TestPar=unfinished", outcomes(report));
        String summary = report.summary();
        assertTrue(summary.contains("   BUILD FAILED example.com/s/brk\n       brk/brk_test.go:3:28: undefined: undefinedThing\n"
                + "       brk/brk_test.go:3:61: cannot use 3"), summary);
        assertTrue(summary.contains("   BUILD FAILED example.com/s/setup\n       setup/setup_test.go:2:19: cannot find module"), summary);
        assertTrue(summary.contains("   BUILD FAILED example.com/s/vet\n       vet/vet_test.go:3:28: fmt.Printf format"), summary);
        assertTrue(summary.contains("   FAIL example.com/s/boom TestPanic\n       panic: assignment to entry in nil map [recovered]\n"), summary);
        assertTrue(summary.contains("   DID NOT FINISH example.com/s/boom TestPar\n"), summary);
        assertTrue(summary.startsWith("== unit failed, guest exit code 2"), summary);
        VmTest.Report only = report(PANIC.lines().filter(line -> line.startsWith("FAIL")).map(line -> line + "\n").collect(Collectors.joining()), PANIC_STDERR, 2);
        assertTrue(only.summary().startsWith("== unit failed (build failed), guest exit code 2"), only.summary());
    }

    @Test
    void newerGoSaysBuildFailuresAsEvents() {
        VmTest.Report report = report(NEWER, "", 1);
        assertEquals("TestA=fail", outcomes(report));
        assertTrue(report.summary().contains("   BUILD FAILED example.com/s/brk\n       brk/brk_test.go:3:28: undefined: thing\n"),
                report.summary());
        assertTrue(report.summary().contains("   FAIL example.com/s/new TestA (1.50s)\n           a_test.go:5: why\n"), report.summary());
        assertTrue(screen.toString().startsWith("# example.com/s/brk [example.com/s/brk.test]\nbrk/brk_test.go"), screen.toString());
    }

    @Test
    void aTestThatHangsDidNotFinish() {
        VmTest.Report report = report(HANG, "", 1);
        assertEquals("TestHang=unfinished TestOk=pass", outcomes(report));
        assertTrue(report.summary().contains("DID NOT FINISH example.com/s/hang TestHang\n           hang_test.go:4: about to hang\n       panic: test timed out after 1s"),
                report.summary());
    }

    @Test
    void aStreamThatBreaksOffLeavesTestsUnfinished() {
        String cut = SIDE_BY_SIDE.substring(0, SIDE_BY_SIDE.indexOf("--- FAIL: TestBad") - 30);
        VmTest.Report report = report(cut, "", 1);
        assertEquals("TestA=pass TestBad=unfinished TestSlow=unfinished", outcomes(report));
        assertEquals(VmTest.Verdict.FAILED, report.verdict);
        assertTrue(screen.toString().contains("fail_test.go:3: got 3, want 4"), "what waited for its turn is shown");
    }

    @Test
    void printsThatLookLikeResultsAreNotResults() {
        VmTest.Report report = report("""
                {"Action":"run","Package":"p","Test":"TestReal"}
                {"Action":"output","Package":"p","Test":"TestFake","Output":"--- FAIL: TestFake (0.00s)\\n"}
                {"Action":"fail","Package":"p","Test":"TestFake","Elapsed":0}
                {"Action":"pass","Package":"p","Test":"TestReal","Elapsed":0}
                {"Action":"pass","Package":"p","Elapsed":0.1}
                {"Action":5}
                {"no":"event"}
                {not JSON
                {"two":[{}
                {}]},3
                plain
                """, "", 0);
        assertEquals("TestReal=pass", outcomes(report));
        assertEquals(VmTest.Verdict.PASSED, report.verdict);
        assertTrue(screen.toString().endsWith("{\"Action\":5}\n{\"no\":\"event\"}\n{not JSON\n{\"two\":[{}\n{}]},3\nplain\n"), screen.toString());
        VmTest.Report raw = report(RAW, "", 1);
        assertEquals("TestNoNewline=pass TestNoNewlineFail=fail TestStderr=pass", outcomes(raw));
    }

    /** As Go 1.19 and 1.24 print it, or as it was reported of other tools that read it. The exit code is go test's. */
    @Test
    void oddStreamsGetARightVerdict() {
        String big = "x".repeat(8_000);
        String[][] rows = { // what is odd, exit code, events, outcomes, verdict
            {"the first of two runs fails", "1", "p run T, p fail T 0.01, p run T, p pass T 0.01, p FAIL - 0.1", "T=fail", "failed"},
            {"it fails in the first of two commands", "0", "p run T, p fail T 0, p FAIL - 0.1, p run T, p pass T 0, p ok - 0.1", "T=fail", "failed"},
            {"it fails in the second of two commands", "1", "p start, p run T, p pass T 0, p ok - 0.1, p start, p run T, p fail T 0, p FAIL - 0.1", "T=fail", "failed"},
            {"two commands side by side", "1", "p start, p start, p run T, p run T, p pass T 0, p ok - 0.1, p fail T 0, p FAIL - 0.1", "T=fail", "failed"},
            {"one of two commands has no end", "0", "p start, p run T, p start, p pass T 0, p ok - 0.1", "T=unfinished", "failed"},
            {"no end: the line is in the middle of another", "0", "p run T, p out T 100%--- PASS: T (0.00s), p ok - 0.1", "T=pass", "passed"},
            {"no end: and it failed", "1", "p run T, p out T dots--- FAIL: T (0.00s), p run U, p pass U 0, p FAIL - 0.1", "T=fail U=pass", "failed"},
            {"no end: and it was skipped", "0", "p run T, p out T dots--- SKIP: T (0.00s), p ok - 0.1", "T=skip", "passed, all tests skipped"},
            {"no end: the line came under another test", "1", "p run T, p run T/s, p out T/s a--- FAIL: T (0.0s), p out T/s     --- PASS: T/s (0.00s), p FAIL - 0.1",
                "T/s=pass T=fail", "failed"},
            {"no end: the last line counts", "1", "p run T, p out T --- PASS: T (0.00s), p out T --- FAIL: T (0.00s), p FAIL - 0.1", "T=fail", "failed"},
            {"no end, no line, the package passed", "0", "p run T, p ok - 0.1", "T=pass", "passed"},
            {"no end, no line, the package failed", "1", "p run T, p FAIL - 0.1", "T=unfinished", "failed"},
            {"no end, a line that failed, the package passed", "0", "p run T, p out T a--- FAIL: T (0.00s), p ok - 0.1", "T=fail", "failed"},
            {"the package has no end", "0", "p run T, p pass T 0", "T=pass", "failed"},
            {"nothing but a start", "0", "p start", "", "failed, 0 tests ran"},
            {"cut off in the middle", "137", "p run T, p pass T 0, p run U", "T=pass U=unfinished", "failed"},
            {"two results for one run", "0", "p run T, p pass T 0, p fail T 0, p ok - 0.1", "T=fail", "failed"},
            {"the same result twice", "0", "p run T, p pass T 0, p pass T 0, p ok - 0.1", "T=pass", "passed"},
            {"a failure without a run, the package passed", "0", "p run T, p fail Fake 0, p pass T 0, p ok - 0.1", "T=pass", "passed"},
            {"a failure without a run, the package failed", "1", "p run T, p pass T 0, p fail U 0, p FAIL - 0.1", "T=pass U=fail", "failed"},
            {"TestMain swallows a failure", "0", "p run T, p fail T 0, p ok - 0.1", "T=fail", "failed"},
            {"a pass where go test ended with 1", "1", "p run T, p pass T 0, p ok - 0.1", "T=pass", "failed"},
            {"packages mixed", "1", "p run T, q run T, q fail T 0, p pass T 0, q FAIL - 0.1, p ok - 0.1", "T=fail T=pass", "failed"},
            {"a failing benchmark of 1.19", "1", "p out - BenchmarkA-2 \t 10\t 3 ns/op, p fail BenchmarkB-2 0, p FAIL - 0.1", "BenchmarkA=pass BenchmarkB=fail", "failed"},
            {"a failing benchmark of 1.24", "1", "p run BenchmarkA, p out BenchmarkA BenchmarkA-2 \t 10\t 0.3 ns/op, p run BenchmarkB, p fail BenchmarkB-2 0, p FAIL - 0.1",
                "BenchmarkA=pass BenchmarkB=fail", "failed"},
            {"one of three numbers of processors", "1", "p run BenchmarkB, p out BenchmarkB BenchmarkB \t 10, p fail BenchmarkB-2 0, p FAIL - 0.1", "BenchmarkB=fail", "failed"},
            {"a name that ends like that", "1", "p run BenchmarkB/x-2, p fail BenchmarkB/x-2 0, p FAIL - 0.1", "BenchmarkB/x-2=fail", "failed"},
            {"a benchmark that did not complete", "1", "p run BenchmarkB, p out BenchmarkB panic: x, p FAIL - 0.1", "BenchmarkB=unfinished", "failed"},
            {"a long name has no events but lines in pieces", "1", "p run T, p raw T === RUN   T/" + big + ", p out T y, p out T reason, p raw T     --- FAIL: T/" + big
                + ", p out T y (0.00s), p fail T 0, p FAIL - 0.1", "T/" + big + "y=fail T=fail", "failed"},
            {"a long name of 1.24", "0", "p run T, p raw T \u0016=== RUN   T/" + big + ", p out T y, p raw T \u0016--- SKIP: T/" + big + ", p out T y (0.00s), p pass T 0, p ok - 0.1",
                "T/" + big + "y=skip T=pass", "passed"},
            {"a failing fuzz test of 1.19, whose TestMain swallows it", "0", "p run T, p pass T 0, p fail FuzzX 0, p ok - 0.1", "FuzzX=fail T=pass", "failed"},
            {"no end, after very much in one line", "1", "p run T, p raw T " + big.repeat(10) + ", p out T --- PASS: T (0.00s), p FAIL - 0.1", "T=pass", "failed"},
            {"a panic after which nothing ran", "2", "p run T, p fail T 0, p out T panic: x, p FAIL - 0.1", "T=fail", "failed"},
            {"nothing ran", "0", "p out - testing: warning: no tests to run, p ok - 0.1", "", "passed, 0 tests ran"},
            {"all skipped", "0", "p run T, p skip T 0, p ok - 0.1", "T=skip", "passed, all tests skipped"},
        };
        for (String[] row : rows) {
            String stream = Stream.of(row[2].split(", (?=[pq] )")).map(VmTestTest::events).collect(Collectors.joining());
            VmTest.Report report = report(stream, "", Integer.parseInt(row[1]));
            assertEquals(row[3], outcomes(report), row[0]);
            assertEquals("unit " + row[4], report.line().replaceFirst(", guest exit code \\d+", ""), row[0] + "\n" + report.summary());
        }
    }

    @Test
    void everyRunOfATestIsKept() throws Exception {
        VmTest.Report report = report(events("p run T") + events("p out T the first reason") + events("p fail T 0") + events("p run T") + events("p pass T 0")
                + events("p run T") + events("p out T the third reason") + events("p fail T 0") + events("p FAIL - 0.1"), "", 1);
        assertEquals("""
                == unit failed, guest exit code 1, 1 fail
                   FAIL example.com/s/p T, 2 of 3 runs
                       run 1 of 3:
                       the first reason
                       run 3 of 3:
                       the third reason
                """, report.summary().replaceFirst(", [0-9.]+ s\n", "\n"));
        Document xml = junit(report);
        assertEquals(1, count(xml, "testcase"), "a name is there once");
        assertEquals("run 1 of 3:\nthe first reason\nrun 3 of 3:\nthe third reason\n", xml.getElementsByTagName("failure").item(0).getTextContent());
    }

    @Test
    void anEventBehindATextWithoutANewlineIsOne() {
        String event = events("p run T") + events("p fail T 0") + events("p ok - 0.1");
        String stream = "building... " + event.replace("{\"Action\"", "{\"Time\":\"2026-11-29T00:00:00Z\",\"Action\"");
        for (int size = 1; size < stream.length(); size += 7) {
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
            for (int i = 0; i < stream.length(); i += size) {
                take(output, 1, stream.substring(i, Math.min(stream.length(), i + size)));
            }
            VmTest.Report report = report(job("make", "gmake check"), output, 0);
            assertEquals("T=fail", outcomes(report), "in pieces of " + size);
            assertEquals("make failed, guest exit code 0", report.line());
        }
    }

    @Test
    void aLineThatBeganAsAnEventIsNotLostInSilence() {
        String event = events("p run T") + events("p pass T 0") + events("p ok - 0.1");
        for (String odd : List.of("{\"Time\":\"2026-11-29T00:00:00Z\",\"Action\":\"fail\",\"Pack\n", "{\"Action\":\"run\"{\"Action\":\"run\",\"Package\":\"p\"}\n",
                "{\"Action\":\"fail\",\"Pa", "{\"Action\":\"" + "x".repeat(2 << 20) + "\n")) {
            VmTest.Report report = report(event + odd, "", 0);
            assertEquals("unit failed, guest exit code 0", report.line(), odd.substring(0, 12));
            assertTrue(report.summary().contains("1 lines that began as events of go test -json could not be read"), report.summary());
        }
    }

    /** Of a command that is no plain go test, vm-test knows what it prints and its exit code. */
    @Test
    void aFailureThatAPipeHidesIsSeen() {
        for (String tells : List.of("--- FAIL: TestX (0.00s)\n", "FAIL\n", "FAIL", "FAIL\texample.com/x\t0.1s\n", "ok\nFAIL\tx [build failed]\n", "x\n\nFAIL\r\n")) {
            for (int size : new int[] {1, 3, 100}) {
                VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
                for (int i = 0; i < tells.length(); i += size) {
                    take(output, 1, tells.substring(i, Math.min(tells.length(), i + size)));
                }
                VmTest.Report report = report(job("pipe", "go test ./fail | cat"), output, 0);
                assertEquals("pipe failed, guest exit code 0", report.line(), tells);
                assertTrue(report.summary().contains("the command ended with 0, but go test reported failures (in a pipe, bash's 'set -o pipefail' keeps the exit code):"), report.summary());
            }
        }
        for (String tellsNot : List.of("    --- FAIL: TestX/sub\n", "FAILED\n", "FAIL:\n", "no FAIL\n", "FAIL x\n", "--- FAIL\n", "F\nAIL\n")) {
            assertEquals("pipe passed", report("pipe", "go test ./fail | cat", tellsNot, "", 0).line(), tellsNot);
            assertEquals("pipe passed", report("pipe", "go test ./fail | cat", "", tellsNot, 0).line(), tellsNot);
        }
    }

    /** Rules for a run without tests: where the caller chose some, none is a failure. */
    @Test
    void noTestsIsAFailureWhereSomeWereAskedFor() {
        String none = events("p ok - 0.1");
        String skipped = events("p run T") + events("p skip T 0") + events("p ok - 0.1");
        Object[][] rows = { // words, packages, --require-tests, stream, line
            {List.of(), List.of(), false, none, "x passed, 0 tests ran"}, {List.of(), List.of(), true, none, "x failed, guest exit code 0, 0 tests ran"},
            {List.of("-run", "T"), List.of(), false, none, "x failed, guest exit code 0, 0 tests ran"},
            {List.of("-test.run=T"), List.of(), false, none, "x failed, guest exit code 0, 0 tests ran"},
            {List.of("-args", "-test.run=T"), List.of(), false, none, "x failed, guest exit code 0, 0 tests ran"},
            {List.of("-count=1"), List.of(), false, none, "x passed, 0 tests ran"}, {List.of(), List.of("./p"), false, none, "x failed, guest exit code 0, 0 tests ran"},
            {List.of("-run", "T"), List.of("./p"), false, skipped, "x passed, all tests skipped"},
            {List.of(), List.of(), true, skipped, "x failed, guest exit code 0, all tests skipped"}};
        VmTest.Job opaque = jobs(Map.of("VM_TEST_X", "gmake check"), new VmTest.CallerArgs(List.of(), List.of(), true), "x").get(1);
        VmTest.GuestRun make = cleanRun(0);
        assertEquals("x failed, guest exit code 0, no test could be counted", new VmTest.Report(opaque, VmTest.Ending.of(VmTest.Verdict.PASSED, make),
                new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits()), Instant.now(), VmTest.Leaks.fail).line());
        for (Object[] row : rows) {
            @SuppressWarnings("unchecked")
            VmTest.CallerArgs callerArgs = new VmTest.CallerArgs((List<String>) row[0], (List<String>) row[1], (boolean) row[2]);
            VmTest.Job job = jobs(Map.of("VM_TEST_X", "go test ./...", "VM_TEST_BUILD", "true"), callerArgs, "x").get(0);
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
            take(output, 1, (String) row[3]);
            output.end();
            VmTest.GuestRun guest = cleanRun(0);
            assertEquals(row[4], new VmTest.Report(job, VmTest.Ending.of(VmTest.Verdict.PASSED, guest), output, Instant.now(), VmTest.Leaks.fail).line(),
                    List.of(row).toString());
        }
    }

    /** Go sends none, but a program that is tested can print one: it is output like any other. */
    @Test
    void aRunWithoutATestIsNoEvent() throws Exception {
        for (int code = 0; code <= 1; code++) {
            String odd = "{\"Action\":\"run\",\"Package\":\"example.com/s/p\"}\n";
            VmTest.Report report = report(odd + events("p run TestA") + odd + events(code == 0 ? "p pass TestA 0" : "p fail TestA 0")
                    + events(code == 0 ? "p ok - 0.1" : "p FAIL - 0.1"), "", code);
            assertEquals(code == 0 ? "unit passed" : "unit failed, guest exit code 1", report.line());
            assertEquals(1, count(junit(report), "testcase"));
            assertEquals(odd + odd, report.plain);
        }
    }

    // What failed last time

    private static final VmTest.Settings TWO = new VmTest.Settings().add(Map.of("VM_TEST_BUILD", "true", "VM_TEST_X", "go test -v -short ./...",
            "VM_TEST_MAKE", "gmake check"), "the environment");

    /** Runs the suites x and make, whose events and exit codes are given, and then asks what failed. */
    private List<String> again(VmTest.CallerArgs callerArgs, String[] streams, int... codes) throws Exception {
        VmTest.Suites suites = new VmTest.Suites(TWO, dir);
        VmTest.LastRun last = new VmTest.LastRun(dir, "host:/p", callerArgs);
        List<VmTest.Job> jobs = suites.jobs(List.of("x", "make"), callerArgs);
        last.begin(jobs);
        for (int i = 0; i < streams.length; i++) {
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
            take(output, 1, streams[i]);
            last.add(report(jobs.get(i), output, codes[i]));
        }
        return failed(suites);
    }

    private List<String> failed(VmTest.Suites suites, String... names) throws Exception {
        return new VmTest.LastRun(dir, "host:/p", VmTest.CallerArgs.NONE).failedJobs(suites, suites.chosen(List.of(names))).stream().map(VmTest.Job::command).toList();
    }

    private static String stream(String lines) {
        return Stream.of(lines.split(", ")).map(VmTestTest::events).collect(Collectors.joining());
    }

    @Test
    void onlyWhatFailedIsRunAgain() throws Exception {
        VmTest.CallerArgs none = VmTest.CallerArgs.NONE;
        String whole = "go test -json -short ./...";
        Object[][] rows = { // the stream of x, and its command
            {"p run A, p fail A 0, p run B, p pass B 0, p run C/s, p run C, p fail C/s 0, p fail C 0, p end, p FAIL - 0.1, q run D, q pass D 0, q ok - 0.1",
                "go test -json -short -run '^(TestA|TestC)$' example.com/s/p"},
            {"p run A, p fail A 0, p end, p FAIL - 0.1, q run B, q fail B 0, q end, q FAIL - 0.1", "code=0; go test -json -short -run '^(TestA)$' example.com/s/p "
                + "|| code=$?; go test -json -short -run '^(TestB)$' example.com/s/q || code=$?; exit $code"},
            {"p run A, p fail A 0, p FAIL - 0.1", "go test -json -short example.com/s/p"}, // a panic: the others had no turn
            {"p run A, p pass A 0, p end, p out - teardown failed, p FAIL - 0.1", "go test -json -short example.com/s/p"},
            {"p run A, p pass A 0", "go test -json -short example.com/s/p"},
            {"p out - FAIL\texample.com/s/p [build failed], p FAIL - 0", "go test -json -short example.com/s/p"},
        };
        for (Object[] row : rows) {
            String stream = stream(((String) row[0]).replaceAll("(run|fail|pass) ([A-D])", "$1 Test$2"));
            assertEquals(List.of(row[1]), again(none, new String[] {stream, ""}, 1, 0), stream);
        }
        assertEquals(List.of("go test -json -short -count=1 -run '^(TestA)$' example.com/s/p"), again(new VmTest.CallerArgs(List.of("-count=1"), List.of(), false),
                new String[] {stream("p run TestA, p fail TestA 0, p end, p FAIL - 0.1")}, 1).subList(0, 1), "with the flags of that run");
        assertEquals(List.of("go test -json -short -failfast example.com/s/p"), again(new VmTest.CallerArgs(List.of("-failfast"), List.of(), false),
                new String[] {stream("p run TestA, p fail TestA 0, p end, p FAIL - 0.1")}, 1).subList(0, 1), "the others had no turn");
        assertEquals(List.of(), again(none, new String[] {stream("p run A, p pass A 0, p ok - 0.1"), "fine\n"}, 0, 0));
        assertEquals(List.of("gmake check"), again(none, new String[] {stream("p run A, p pass A 0, p ok - 0.1"), "oh\n"}, 0, 2), "an opaque suite runs whole");
        assertEquals(List.of(whole, "gmake check"), again(none, new String[] {"nothing\n", "fine\n"}, 1, 1), "go itself failed");
        assertEquals(List.of("gmake check"), again(none, new String[] {stream("p run A, p pass A 0, p ok - 0.1")}, 0), "cut off before the second");
        assertEquals(List.of(whole), again(none, new String[] {stream("command-line-arguments run A").replace("example.com/s/", ""), "fine\n"}, 1, 0));
    }

    /** A test that was renamed, or whose build tag is missing: its failure is not forgotten. */
    @Test
    void aFailedTestThatDoesNotRunAgainIsNoPass() throws Exception {
        VmTest.Suites suites = new VmTest.Suites(TWO, dir);
        again(VmTest.CallerArgs.NONE, new String[] {stream("p run TestA, p fail TestA 0, p end, p FAIL - 0.1, q run TestB, q fail TestB 0, q end, q FAIL - 0.1"), ""}, 1, 0);
        for (String rest : List.of("q run TestB, q pass TestB 0, q ok - 0.1, p ok - 0.1", "q run TestB, q fail TestB 0, q end, q FAIL - 0.1, p ok - 0.1")) {
            VmTest.LastRun last = new VmTest.LastRun(dir, "host:/p", VmTest.CallerArgs.NONE);
            VmTest.Job job = last.failedJobs(suites, List.of()).get(0);
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
            take(output, 1, stream(rest));
            VmTest.Report report = report(job, output, rest.contains("fail") ? 1 : 0);
            assertEquals(VmTest.Verdict.FAILED, report.verdict);
            assertTrue(report.summary().contains("did not run (were they renamed, or is a build tag missing?):\n       example.com/s/p TestA\n"), report.summary());
            assertEquals(Map.of(), report.failedTests, "the whole suite next time");
        }
    }

    @Test
    void anotherRunIsNotTakenForTheLast() throws Exception {
        VmTest.Suites suites = new VmTest.Suites(TWO, dir);
        assertEquals("--failed: there was no run yet: run a suite first", assertThrows(VmTest.VmException.class, () -> failed(suites)).getMessage());
        again(VmTest.CallerArgs.NONE, new String[] {stream("p run TestA, p fail TestA 0, p end, p FAIL - 0.1"), "oh\n"}, 1, 1);
        VmTest.VmException other = assertThrows(VmTest.VmException.class, () -> new VmTest.LastRun(dir, "host:/q", VmTest.CallerArgs.NONE).failedJobs(suites, List.of()));
        assertEquals(2, other.exitCode);
        assertEquals("--failed: the last run was that of another project, host:/p, not host:/q: run a suite of this one first", other.getMessage());
        assertEquals("--failed: suite unit was not in the last run, only x, make",
                assertThrows(VmTest.VmException.class, () -> failed(suites, "unit")).getMessage());
        VmTest.Suites changed = new VmTest.Suites(new VmTest.Settings().add(Map.of("VM_TEST_BUILD", "true", "VM_TEST_X", "go test ./p"), "the environment"), dir);
        assertEquals(List.of("go test -json ./p"), failed(changed, "x"), "its command has changed, so it runs whole");
        // One suite again, which passes: what else failed is not forgotten.
        VmTest.LastRun next = new VmTest.LastRun(dir, "host:/p", VmTest.CallerArgs.NONE);
        List<VmTest.Job> jobs = next.failedJobs(suites, suites.chosen(List.of("make")));
        next.begin(jobs);
        next.add(report(jobs.get(0), new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits()), 0));
        assertEquals(List.of("go test -json -short -run '^(TestA)$' example.com/s/p"), failed(suites));
        Path file = dir.resolve("last-run.json");
        String text = Files.readString(file);
        for (String damaged : List.of(text.substring(0, text.length() / 2), "[".repeat(200_000))) {
            Files.writeString(file, damaged);
            assertEquals(file + " is damaged: delete it, and run the suites again", assertThrows(VmTest.VmException.class, () -> failed(suites)).getMessage());
        }
        Files.write(file, new byte[] {'{', '"', (byte) 0xff, '"', ':', '1', '}'});
        assertEquals(file + " is damaged: delete it, and run the suites again", assertThrows(VmTest.VmException.class, () -> failed(suites)).getMessage());
        Files.writeString(file, text);
        VmTest.LastRun cutOff = new VmTest.LastRun(dir, "host:/p", VmTest.CallerArgs.NONE);
        cutOff.begin(cutOff.failedJobs(suites, List.of()));
        assertEquals(List.of("go test -json -short ./..."), failed(suites), "it has begun, and has no result");
        VmTest.Suites gone = new VmTest.Suites(new VmTest.Settings(), dir);
        assertEquals("--failed: there is no suite x any more, which the last run had: set its VM_TEST_... again, or name other suites",
                assertThrows(VmTest.VmException.class, () -> failed(gone)).getMessage());
        VmTest.CallerArgs required = new VmTest.CallerArgs(List.of(), List.of(), true);
        again(required, new String[] {""}, 1);
        assertEquals(required, new VmTest.LastRun(dir, "host:/p", VmTest.CallerArgs.NONE).failedJobs(suites, List.of()).get(0).callerArgs(), "as in the last run");
    }

    // Texts

    @Test
    void memoryIsBounded() {
        VmTest.Tail kept = new VmTest.Tail(new VmTest.MemoryLimits());
        int length = 0;
        for (int i = 0; i < 100_000; i++) {
            kept.add("line " + i + "\n");
            length += ("line " + i + "\n").length();
        }
        String end = kept.toString();
        assertTrue(end.matches("(?s)\\(the first \\d+ characters are left out\\)\nline \\d+\n.*\nline 99999\n"), end.substring(0, 100));
        assertTrue(end.length() >= 64_000 && end.length() <= 128_000 + 50, end.length() + "");
        int cut = Integer.parseInt(end.replaceAll("(?s)\\D*(\\d+) .*", "$1"));
        assertEquals(length, cut + end.length() - end.indexOf('\n') - 1, "nothing is cut without a word");
        take(output, 1, "{");
        IntStream.range(0, 17).forEach(i -> take(output, 1, "x".repeat(64_000)));
        assertEquals(1 + 17 * 64_000, screen.length(), "a line without end is shown");
    }

    @Test
    void whatIsNoEventPassesAtOnceAndUntouched() {
        String event = "{\"Action\":\"output\",\"Package\":\"p\",\"Output\":\"größe\\n\"}\n";
        String text = "half a\u00ff\n\nline\r\n{\"Action\":\"deploy\",\"Package\":\"p\"}\n" + wire(event) + "{ no event\n{rest";
        for (int size = 1; size <= text.length(); size++) {
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, new VmTest.MemoryLimits());
            screen.setLength(0);
            events.setLength(0);
            for (int i = 0; i < text.length(); i += size) {
                take(output, 1, text.substring(i, Math.min(text.length(), i + size)));
            }
            screen.append(output.end());
            assertEquals(text.replace(wire(event), wire("größe\n")), screen.toString(), "in pieces of " + size);
            assertEquals(event, events.toString());
            assertEquals(0, output.unreadable, "others may print what they like");
        }
    }

    @Test
    void controlCharactersAreMadeHarmless() {
        assertEquals("red\ttab\n???? größe $1 \\", VmTest.printable("\u001b[31mred\u001b[0m\ttab\r\n\u0007\b\u001c\u007f\u009b2J größe $1 \\"));
        assertEquals("a?b?c", VmTest.printable("a\u202eb\u2066c"));
        assertEquals("red, title, char, 8 bit", VmTest.printable("\u001b[31;1mred\u001b[0m, \u001b]0;x y\u0007title, \u001bMchar, \u009b2J8 bit"));
        assertEquals("over[31mwritten?", VmTest.printable("o\u001b]0;never ended\u001b]1;nor this\u001b\\ver\r[31mwritten\u001b"));
    }

    // JUnit

    private static Document junit(VmTest.Report... reports) throws Exception {
        StringWriter xml = new StringWriter();
        VmTest.JUnit.write(List.of(reports), "dfly-vm", xml);
        SchemaFactory.newInstance(XMLConstants.W3C_XML_SCHEMA_NS_URI).newSchema(Path.of("test/junit.xsd").toFile())
                .newValidator().validate(new StreamSource(new StringReader(xml.toString())));
        return DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new InputSource(new StringReader(xml.toString())));
    }

    private static int count(Document xml, String element) {
        return xml.getElementsByTagName(element).getLength();
    }

    @Test
    void theJunitReportIsValidAndComplete() throws Exception {
        Document xml = junit(report(SIDE_BY_SIDE, "", 1), report(PANIC, PANIC_STDERR, 2), report(RAW, "", 1));
        assertEquals(4 + 4 + 1, count(xml, "testsuite"));
        assertEquals(4 + 1 + 1, count(xml, "failure"), "a test, one in another and that, TestMain; a panic; one without a newline");
        assertEquals(3 + 1, count(xml, "error"), "three not built, one not finished");
        assertEquals(1, count(xml, "skipped"));
        long tests = 0;
        for (int i = 0; i < count(xml, "testsuite"); i++) {
            tests += Long.parseLong(xml.getElementsByTagName("testsuite").item(i).getAttributes().getNamedItem("tests").getNodeValue());
        }
        assertEquals(count(xml, "testcase"), tests);
    }

    @Test
    void theJunitReportHoldsTimingsAndReasons() throws Exception {
        Document xml = junit(report(SIDE_BY_SIDE, "", 1));
        List<String> slow = IntStream.range(0, count(xml, "testcase")).mapToObj(i -> xml.getElementsByTagName("testcase").item(i).getAttributes())
                .filter(test -> test.getNamedItem("name").getNodeValue().equals("TestSlow")).map(test -> test.getNamedItem("time").getNodeValue()).toList();
        assertEquals(List.of("0.300"), slow);
        assertEquals("    fail_test.go:3: got 3, want 4\n", xml.getElementsByTagName("failure").item(0).getTextContent());
    }

    @Test
    void theJunitReportSurvivesWhatTestsPrint() throws Exception {
        String odd = "\u0000\u001b[31m ]]> <&\"' größe \ud83d\ude00 \ud800 \uffff tab\t\n end";
        String events = "";
        for (String[] line : new String[][] {{"run", "Test" + odd, null}, {"output", "Test" + odd, odd}, {"fail", "Test" + odd, "0"},
                {"run", "TestS", null}, {"output", "TestS", odd}, {"skip", "TestS", "0"}, {"fail", null, "0"}}) {
            events += event(line[0], "p", line[1], line[2]);
        }
        Document xml = junit(report(events, "", 1));
        String expected = " ]]> <&\"' größe \ud83d\ude00 " + " ? ".substring(2) + " tab\t\n end\n"; // half a pair does not come through UTF-8
        assertEquals(expected, xml.getElementsByTagName("failure").item(0).getTextContent().replace("?", ""));
        assertEquals("Test" + expected.strip().replaceAll("[\t\n]", " "), xml.getElementsByTagName("testcase").item(0).getAttributes()
                .getNamedItem("name").getNodeValue().replace("?", "").replace("Test ", "Test"));
    }

    @Test
    void anOrdinaryCommandIsOneTestCase() throws Exception {
        VmTest.Report report = report("build", "gmake build", "", "main.go:3:1: syntax error\ngmake: *** [all] Error 2\n", 2);
        assertEquals("== build failed (build failed), guest exit code 2\n   BUILD FAILED build\n       main.go:3:1: syntax error\n       gmake: *** [all] Error 2\n",
                report.summary().replaceFirst(", [0-9.]+ s\n", "\n"));
        Document xml = junit(report);
        assertEquals("build", xml.getElementsByTagName("testcase").item(0).getAttributes().getNamedItem("name").getNodeValue());
        assertEquals(1, count(xml, "error"));
    }

    /** What a real DragonFly printed: test/console/README.md; and what programs print. */
    @Test
    void aKernelPanicIsNoProgramsPanic() throws Exception {
        for (String log : List.of("phase-panic-ddb.log", "panic-ddb.log", "panic-reboot.log", "mountroot-prompt.log", "mountroot-disk.log")) {
            assertTrue(VmTest.kernelPanic(Files.readString(Path.of("test/console").resolve(log), ISO_8859_1)) > 0, log);
        }
        for (String log : List.of("disk-boot.log", "phase3.log", "shutdown-p-now.log", "halt.log", "single-user.log")) {
            assertEquals(-1, VmTest.kernelPanic(Files.readString(Path.of("test/console").resolve(log), ISO_8859_1)), log);
        }
        // vm-test looks every 0.1 s at what the guest printed last, 64 KB, and the guest may print anything.
        for (String hostile : List.of("panic: ", "Fatal trap 1 ", "panic: x\n")) {
            assertTimeoutPreemptively(Duration.ofSeconds(30), () -> VmTest.kernelPanic(hostile.repeat((1 << 18) / hostile.length())));
        }
        for (String program : List.of("panic: runtime error\n\ngoroutine 1 [running]:\nmain.main()\n", "panic: x\npanic: y\ndb> ", "cpuid = 0\n")) {
            assertEquals(-1, VmTest.kernelPanic(program), program);
        }
    }

    // What a hostile guest sends

    /**
     * VmTest's parts in a JVM with the script's options and 48 MB, with a twentieth of what is kept else: that fits, then, into 256 MB
     * with all of it. The strings have two bytes a character, which is the worst.
     */
    static final class Flood {
        private static final String WIDE = "\u0436".repeat(128_000);
        private static final int MANY = 10_500;
        static final List<String> STREAMS = List.of("tests", "output", "names", "subtests", "lines", "packages", "runs", "build", "builds", "shared", "unbuilt", "listings");
        private final VmTest.SuiteOutput output = new VmTest.SuiteOutput(line -> { }, new VmTest.MemoryLimits(20));
        private final VmTest.GuestRun guest = new VmTest.GuestRun(place("/d"), "true", Map.of(), Duration.ofSeconds(1), true, () -> false);

        /** Prints for each stream the verdict, whether a result may be lost, and whether the reports have a limit. */
        public static void main(String... args) throws Exception {
            for (String name : STREAMS) {
                Flood flood = new Flood();
                flood.guest.code = 0;
                flood.send(name);
                flood.output.end();
                VmTest.Report report = new VmTest.Report(job("unit", "go test ./..."), VmTest.Ending.of(VmTest.Verdict.PASSED, flood.guest), flood.output, Instant.now(), VmTest.Leaks.fail);
                StringWriter xml = new StringWriter();
                String summary = report.summary();
                VmTest.JUnit.write(List.of(report), "x", xml);
                boolean small = Stream.of(summary, xml.toString()).allMatch(text -> text.length() < 12_000_000);
                System.out.println(name + ": " + report.verdict + (summary.contains("results may be lost") ? ", lost" : "")
                        + (summary.contains("   output: ") ? ", cut" : "") + (small ? "" : ", too large"));
            }
        }

        private void event(String action, String pkg, String test, String key, Object value) {
            JsonObject event = new JsonObject(Map.of("Action", action, "Package", pkg, "Test", test));
            event.put(key, value);
            output.events.take(event);
        }

        private static void many(IntConsumer event) {
            IntStream.range(0, MANY).forEach(event);
        }

        private void send(String name) {
            switch (name) {
                case "tests" -> many(i -> output.take(1, "{\"Action\":\"run\",\"Package\":\"p\",\"Test\":\"Test" + i + "\"}\n"
                        + "{\"Action\":\"pass\",\"Package\":\"p\",\"Test\":\"Test" + i + "\"}\n"));
                case "output" -> IntStream.range(0, 1000).forEach(i -> {
                    event("run", "p", "Test" + i, "Output", "");
                    event("output", "p", "Test" + i, "Output", WIDE + "\n");
                    event("fail", "p", "Test" + i, "Output", "");
                });
                case "names" -> many(i -> event("fail", "p" + i % 7, "Test" + i + WIDE.substring(0, 1 + i % 1000), "Output", ""));
                case "subtests" -> many(i -> event("run", "p", i + WIDE.substring(0, 60) + "/x", "Output", ""));
                case "lines" -> many(i -> event("output", "p" + i, "", "Output", WIDE.substring(0, 60_000)));
                case "packages" -> many(i -> output.take(1, "{\"Action\":\"output\",\"Package\":\"p" + i + "\",\"Output\":\"x\\n\"}\n"));
                case "runs" -> many(i -> event("pass", "p", "", "Output", ""));
                case "build" -> {
                    output.events.take(new JsonObject(Map.of("Action", "build-output", "ImportPath", "b", "Output", "# p1\n" + "\u0436\n".repeat(60_000))));
                    many(i -> event("fail", "p" + i, "", "FailedBuild", "b"));
                }
                case "builds" -> many(i -> output.events.take(new JsonObject(Map.of("Action", "build-output", "ImportPath", "b" + i, "Output", WIDE))));
                case "shared" -> {
                    event("output", "p", "", "Output", WIDE + "\n");
                    many(i -> event("run", "p", "Test" + i, "Output", ""));
                }
                case "unbuilt" -> many(i -> {
                    output.take(1, "# q" + i + " [p.test]\nFAIL\tp" + i + " [build failed]\n");
                    event("output", "q" + i, "", "Output", "FAIL\tq" + i + " [build failed]\n");
                    event("fail", "q" + i, "", "Output", "");
                });
                default -> Stream.of("file ", "mount ", "tmp ", "process ").forEach(kind -> many(i -> guest.leftovers.take(kind + i + WIDE.substring(0, 5000))));
            }
        }
    }

    @Test
    void aGuestThatSendsWithoutEndFillsNeitherTheMemoryNorTheDisk() throws Exception {
        Process process = new ProcessBuilder(Path.of(System.getProperty("java.home"), "bin/java").toString(), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
                "-Xmn24m", "-Xmx64m", "-cp", System.getProperty("java.class.path"), "VmTestTest$Flood").redirectErrorStream(true).start();
        String said = new String(process.getInputStream().readAllBytes(), UTF_8);
        assertEquals("""
                tests: failed, lost
                output: failed, cut
                names: failed, lost
                subtests: failed, lost
                lines: failed, lost
                packages: failed, lost
                runs: failed, lost
                build: failed, lost, cut
                builds: failed, lost
                shared: failed, lost, cut
                unbuilt: failed, lost, cut
                listings: failed
                """, said);
    }

    /** What tests print is no reason to fail them, however much it is. */
    @Test
    void outputBeyondTheLimitIsCutAndCountedAndChangesNoVerdict() {
        VmTest.MemoryLimits kept = new VmTest.MemoryLimits();
        VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::append, kept);
        String line = "x".repeat(99) + "\n";
        String printed = line.repeat(1000);
        for (int i = 0; i < 100; i++) { // 10 MB of tests that pass
            take(output, 1, stream("p run P" + i + ", p raw P" + i + " " + printed + ", p pass P" + i + " 0"));
        }
        for (int i = 0; i < 100; i++) { // 10 MB of tests that are skipped
            take(output, 1, stream("p run S" + i + ", p raw S" + i + " " + printed + ", p skip S" + i + " 0"));
        }
        take(output, 1, events("p ok - 0.1"));
        VmTest.Report report = report(job("unit", "go test ./..."), output, 0);
        assertEquals("unit passed", report.line());
        long left = report.tests.stream().filter(VmTest.Result::isTest).flatMap(test -> test.output().lines()).filter(it -> it.length() == 99).count() * 100;
        Matcher note = Pattern.compile("\n   output: (\\d+) characters are left out here and in the reports\n").matcher(report.summary());
        assertTrue(note.find(), report.summary());
        assertTrue(left <= kept.maxOutput && left >= kept.maxOutput / 3, left + " are left");
        assertEquals(100 * 100_000, left + Long.parseLong(note.group(1)), 100 * 100, "what is not there was counted, but for frames and half lines");
        assertTrue(report.tests.stream().filter(test -> test.name().equals("S0")).allMatch(test -> test.output().length() > 64_000));
        assertFalse(report("unit", "go test ./...", stream("p run T, p out T x, p fail T 0, p FAIL - 0"), "", 1).summary().contains("left out"));
    }

    /** Each took minutes before, or could, or ended the thread that reads: with --timeout and Ctrl-C waiting for it. */
    @Test
    void timeGrowsWithTheOutputAndNoFaster() {
        String event = "{\"Action\":\"%s\",\"Package\":\"p\",\"Test\":\"T\",\"%s\":%s}\n";
        String begin = String.format(event, "run", "Output", "\"\"");
        Map<String, String> hostile = new TreeMap<>(Map.of("blank lines in an event", String.format(event, "output", "Output", "\"" + "\\n".repeat(300_000) + "\""),
                "blank lines", "\n".repeat(500_000), "digits", String.format(event, "pass", "Elapsed", "1".repeat(800_000)),
                "depth", "{\"Time\":" + "[".repeat(1_000_000) + "\n", "objects", "{\"Time\":" + "{\"a\":".repeat(200_000) + "\n",
                "a benchmark", String.format(event, "output", "Output", "\"BenchmarkX\\t1\\t" + " ".repeat(60_000) + "\u2028\\n\"").repeat(8),
                "digits of benchmarks", String.format(event, "output", "Output", "\"Benchmark" + "-1".repeat(30_000) + "1".repeat(30_000) + "\\n\"").repeat(8),
                "result lines", String.format(event, "output", "Output", "\"" + "--- PASS: x (1.".repeat(4000) + " ".repeat(5000) + "\\n\"").repeat(8),
                "a name", String.format(event, "run", "Test", "\"Benchmark" + "-1".repeat(300_000) + "\""), "escapes", "\u001b[" + "1;".repeat(50_000) + " ".repeat(50_000)));
        hostile.put("unbuilt", ("FAIL\t" + "x".repeat(100) + " [build\n").repeat(5000) + "FAIL\t" + "x [".repeat(20_000) + "\n");
        hostile.put("ends", String.format(event.replace(",\"Test\":\"T\"", ""), "pass", "Elapsed", "0").repeat(10_000));
        hostile.put("waiting", IntStream.range(0, 2000).mapToObj(i -> event("output", "w" + i, null, "x") + event("output", "s", null, "y") + event("pass", "s", null, "0"))
                .collect(Collectors.joining()));
        hostile.forEach((name, text) -> assertTimeoutPreemptively(Duration.ofSeconds(60), () -> {
            VmTest.Report report = report(begin + text, "", 1);
            report.summary();
            junit(report);
        }, name));
        assertTimeoutPreemptively(Duration.ofSeconds(60), () -> IntStream.range(0, 1 << 20).forEach(i -> output.take(1, i == 0 ? "{" : "x")), "an event in pieces");
    }

    /** What comes after the mark is the supervisor's word only as long as no test has found out the mark. */
    @Test
    void anOddWordOfTheSupervisorIsNoVerdictAndNoStackTrace() throws Exception {
        Object[][] rows = { // what comes on stderr and on stdout, the exit code, the message
            {"exit 0", "exit 0", 0, null}, {"exit 255", "exit 255", 255, null},
            {"exit", "exit", null, "ones, ''"}, {"exit ", "exit 0", null, "ones, ''"}, {"exit 0", "exit -1", null, "ones, '-1'"},
            {"exit 256", "exit 256", null, "ones, '256'"}, {"exit 99999999999999999999", "exit 0", null, "ones, '99999999999999999999'"},
            {"exit 0x0", "exit 0x0", null, "ones, '0x0'"}, {"exit \u0660", "exit \u0660", null, "ones, '\u0660'"}, {"exit 0 0", "exit 0 0", null, "ones, '0 0'"},
            {"exit 0", "exit 1", null, "ones, '1'"}, {"exit 1", "exit 0", null, "ones, '0'"}, {"exit \u001b[2J\u009b\u202e\u0000", "exit 0", null, "ones, '"},
            {"exit " + "9".repeat(5000), "exit 0", null, "9..."}, {"origin\nexit 0", "exit 0", 0, "in the guest came from , and this"},
            {"origin \u001b[31mx\u202e" + "y".repeat(5000) + "\nexit 0", "exit 0", 0, "x?yyyy"}, {"nowhere 1 2\nbusy\nexit 0", "exit 0", 0, "an earlier vm-test"},
            {"dumped\ndumped x\nleft process\nleft process 1\nleft process abc\n\n left\nleft\nleft file\nleft end\nleft x y\nend\nunknown \u0000\nexit 3",
                "dumped\nexit 3", 3, null}, {"EXIT 0\nexit 4", "exit 4", 4, null}, {"\u00ff\u00fe\nexit 5", "exit 5", 5, null}};
        for (Object[] row : rows) {
            VmTest.GuestRun guest = guestRun();
            StringBuilder rest = new StringBuilder();
            for (String stream : List.of((String) row[0], (String) row[1])) {
                String marked = stream.lines().map(line -> guest.mark + line + "\n").collect(Collectors.joining());
                assertFalse(guest.sift(new StringBuilder(wire(marked) + "late"), rest::append), stream);
            }
            assertEquals("", rest.toString());
            assertEquals(row[2], guest.code, row[0].toString());
            String said = String.valueOf(guest.trouble);
            assertTrue(row[3] == null ? guest.trouble == null : said.contains((String) row[3]), said);
            assertTrue(said.length() < 1500 && said.lines().count() == 1 && said.equals(VmTest.printable(said)), said);
            guest.leftovers.failing();
            guest.leftovers.inTmp();
        }
        if (ended(Stream.concat(OWN_PROCESSES.stream(), Stream.of("true")).toList())) {
            try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
                FutureTask<Integer> process = start("mark=$(sed -n \"s/^mark='\\(.*\\)'$/\\1/p;/^say exit .* 3>&1/q\"); echo \"${mark}exit x\" | tee /dev/stderr\n", "true", "it");
                assertEquals(69, exitCode(process));
                String out = Files.readString(dir.resolve("out"));
                assertTrue(out.contains("       the guest sent an invalid exit code, or two different ones, 'x': run the suite again\n"), out);
                String err = Files.readString(dir.resolve("err"));
                assertTrue(err.contains("vm-test: it lost") && !err.contains("Exception"), err);
            }
        }
    }

    @Test
    void listingsOfTheGuestHaveALimit() {
        VmTest.Leftovers listed = new VmTest.Leftovers();
        IntStream.range(0, 20_000).forEach(i -> listed.take("mount same on /mnt" + "x".repeat(i % 3000)));
        listed.take("end");
        assertEquals(1200, listed.failing().size());
        assertTrue(listed.failing().stream().allMatch(line -> line.length() <= 2000));
    }

    /** Neither of the summary, nor of the messages, nor commands to the CI system that shows them. */
    @Test
    void namesAndOutputForgeNoLineOfOurs() throws Exception {
        String forged = "\n== unit passed, 3 pass, 0.1 s\n::error::x\r\nvm-test: unit passed\u001b[2J\u009b2J\u202e\u2028::error::y\u0085##[error]z\u001b]0;";
        String events = event("run", "p" + forged, "Test" + forged, null) + event("output", "p" + forged, "Test" + forged, forged + "\n  \u00a0::error::x\n##vso[x]##[warning]\n")
                + event("fail", "p" + forged, "Test" + forged, "0") + event("run", "p", "TestS", null) + event("output", "p", "TestS", forged + "\n")
                + event("skip", "p", "TestS", "0.5") + event("run", "p", "Slow" + forged, null) + event("pass", "p", "Slow" + forged, "7") + event("run", "p", "TestLast", null)
                + event("output", "p", "TestLast", "the last reason\n") + event("fail", "p", "TestLast", "0");
        VmTest.SuiteOutput output = new VmTest.SuiteOutput(this.events::append, new VmTest.MemoryLimits());
        take(output, 1, wire(events));
        output.end();
        VmTest.GuestRun guest = cleanRun(1);
        guest.leftovers.take("tmp " + forged.replace("\n", ""));
        guest.leftovers.take("file " + forged.replace("\n", ""));
        VmTest.Report report = new VmTest.Report(job("unit", "go test ./..."), VmTest.Ending.of(VmTest.Verdict.FAILED, guest), output, Instant.now(), VmTest.Leaks.fail);
        List<String> lines = report.summary().lines().toList();
        assertTrue(lines.get(0).startsWith("== unit failed, guest exit code 1"));
        lines.stream().skip(1).forEach(line -> assertTrue(line.matches("   (    .*|(FAIL|SKIP|DID NOT FINISH|left) .*)"), line));
        lines.forEach(line -> assertFalse(line.contains("##") || line.matches("(?U)\\s*::.*"), line));
        assertEquals(report.summary().replace("\u2028", "").replace("\u0085", ""), VmTest.printable(report.summary()));
        assertTrue(lines.contains("       the last reason"), "a sequence without an end swallows no other test: " + report.summary());
        assertTrue(lines.stream().anyMatch(line -> line.contains("FAIL p\\n== unit passed, 3 pass, 0.1 s\\n: :error::x\\nvm-test: unit passed")), report.summary());
        assertEquals("unit failed, guest exit code 1", report.line());
        assertEquals("   : :error::x # #[error]y ##x ::1", VmTest.printable("   ::error::x ##[error]y ##x ::1"));
        assertEquals(1003, VmTest.oneLine("x".repeat(10_000_000)).length());
        Document xml = junit(report);
        assertEquals(1, count(xml, "testsuites"));
        Path results = Files.createDirectories(dir.resolve("dfly-vm.test"));
        VmTest.Report evil = report(event("fail", "../../evil", "../../Test/x", "1e999").replace("\"1e999\"", "1e999"), "", 1);
        VmTest.LastRun last = new VmTest.LastRun(results, "host:/p", VmTest.CallerArgs.NONE);
        last.begin(List.of(evil.job));
        last.add(evil);
        assertEquals(List.of("last-run.json"), List.of(results.toFile().list()), "the guest names no file");
    }

    @Test
    void timesThatGoNeverSaysAreLegal() throws Exception {
        for (String odd : List.of("1e999", "-1e999", "-5", "1e308", "\"x\"", "null", "[1]", "{}", "true", "99999999999999999999")) {
            String events = "{\"Action\":\"run\",\"Package\":\"p\",\"Test\":\"T\"}\n{\"Action\":\"fail\",\"Package\":\"p\",\"Test\":\"T\",\"Elapsed\":" + odd + "}\n"
                    + "{\"Action\":\"fail\",\"Package\":\"p\",\"Elapsed\":" + odd + "}\n";
            VmTest.Report report = report(events, "", 1);
            assertEquals("T=fail", outcomes(report), odd);
            assertEquals(1, count(junit(report), "failure"), odd);
        }
    }

    @Test
    void aReportOfTheGuestHasALimit() throws Exception {
        Path file = dir.resolve("x.json");
        try (VmTest.EventFile events = new VmTest.EventFile(file, 20_000, List.of())) {
            events.write("\u00e9".repeat(9_000));
            assertEquals(null, events.problem);
            IntStream.range(0, 1000).forEach(i -> events.write("x".repeat(10_000)));
            assertEquals(file + " is cut off: the suites printed more than 20000 bytes for it", events.problem);
        }
        assertTrue(Files.size(file) <= 20_000 && Files.size(file) >= 18_000, Files.size(file) + "");
    }
}
