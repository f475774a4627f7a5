import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_16;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import picocli.CommandLine;

/** What a person types, in all five scripts: the built jars as processes, and where only an option is wrong, in this JVM. Each test is about one kind of fault, and has a table of its cases. */
@Tag("unit")
final class CommandLineTest {

    private static final Path TOP = Path.of("").toAbsolutePath();
    private static final Map<String, String> JARS = Map.of("vm-setup", "VmSetup", "vm-auto-install", "VmAutoInstall", "vm-ctl", "VmCtl",
            "vm-sync", "VmSync", "vm-test", "VmTest");
    private static final String LOST = "the output could not be written: the reader of stdout has gone, or its disk is full";
    /** An sshd that plays the guest, and a QEMU without a machine. */
    private static Sshd sshd;

    @TempDir
    Path temp;
    private final Map<String, String> settings = new HashMap<>();

    @BeforeAll
    static void aGuest() throws Exception {
        sshd = Sshd.withOwnProcesses();
    }

    @AfterAll
    static void noGuest() throws IOException {
        if (sshd != null) {
            sshd.close();
        }
    }

    @BeforeEach
    void aDirectoryOfItsOwn() {
        settings.put("VM_DIR", temp.resolve("vm").toString());
        settings.put("VM_PHASES", TOP.resolve("phases").toString()); // whose path may hold blanks
        settings.put("HOME", Path.of(System.getenv().getOrDefault("HOME", "/")).toString());
    }

    /** A command line in words, as vm-ctl status. An odd one, such as <&-, is for the shell, which arranges the streams. */
    private Script.Result run(String command, String... streams) {
        return run(List.of(command.split(" ")), streams);
    }

    private Script.Result run(List<String> words, String... streams) {
        return start(jar(words), streams);
    }

    private static List<String> jar(List<String> words) {
        return Script.command(JARS.get(words.get(0)), words.subList(1, words.size()).toArray(String[]::new));
    }

    private Script.Result start(List<String> command, String... streams) {
        List<String> line = new ArrayList<>(List.of("sh", "-c", "exec \"$@\" " + String.join(" ", streams), "sh"));
        line.addAll(command);
        ProcessBuilder builder = new ProcessBuilder(line).directory(temp.toFile());
        builder.environment().keySet().removeIf(name -> name.matches("(VM|DFLY)_.*|MAKE.*|MFLAGS|ARGS|SYNC_ARGS"));
        builder.environment().putAll(settings);
        builder.environment().values().removeIf(String::isEmpty); // "" stands for a variable that is not set
        return Script.run(builder, Duration.ofMinutes(5));
    }

    /** The same on a terminal on which somebody types; the terminal's output is the result's. */
    private Script.Result onTerminal(String typed, List<String> words) throws Exception {
        Path keys = Files.writeString(temp.resolve("keys"), typed);
        return start(List.of("script", "-qec", VmCtl.shellQuoted(jar(words)), "/dev/null"), "<" + VmCtl.shellQuoted(List.of(keys.toString())));
    }

    /** All names in VM_DIR with the first bytes of the files. */
    private List<String> vmDir() {
        try (Stream<Path> files = Files.walk(temp.resolve("vm"))) {
            return files.sorted().map(file -> file + " " + (Files.isRegularFile(file) ? sizeOf(file) : "")).toList();
        } catch (IOException none) {
            return List.of();
        }
    }

    private static long sizeOf(Path file) {
        try {
            return Files.size(file);
        } catch (IOException gone) {
            throw new UncheckedIOException(gone);
        }
    }

    /** One for each test: vm-test refuses a directory that came from another project. */
    private Path remoteDirectory() {
        return sshd.base.resolve("home").resolve("of " + temp.getFileName());
    }

    private void useGuest() throws IOException {
        settings.putAll(Map.of("VM_DIR", sshd.vmDir.toString(), "VM_REMOTE_DIR", remoteDirectory().toString(), "VM_PROJECT",
                Files.createDirectories(temp.resolve("project")).toString(), "VM_TEST_BUILD", "true", "VM_TEST_UNIT", "echo tested"));
        Files.createDirectories(remoteDirectory());
        Files.writeString(temp.resolve("project/of-" + temp.getFileName()), "what no other test has sent");
        Files.writeString(sshd.base.resolve("home/fetched"), "x");
    }

    /** Each script's commands in turn, as they lock the VM; the scripts beside each other. */
    private void forEach(List<String> commands, Consumer<String> check) {
        commands.stream().collect(Collectors.groupingBy(command -> command.split(" ")[0])).values().parallelStream()
                .forEach(group -> group.forEach(check));
    }

    // Standard streams

    private List<String> answering() throws IOException {
        useGuest();
        Path script = Files.writeString(temp.resolve("mine.sh"), "#!/bin/sh\n");
        Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
        List<String> commands = new ArrayList<>(List.of("vm-ctl status", "vm-ctl status --json", "vm-ctl list", "vm-ctl exec echo x", "vm-ctl ssh echo x",
                "vm-ctl exec --help", "vm-setup disk --vm-name blank --yes", "vm-auto-install make-iso mine.sh mine.iso", "vm-test list",
                "vm-test run echo x", "vm-test unit", "vm-test --quiet unit", "vm-sync --engine tar --dry-run", "vm-sync --engine tar --force",
                "vm-sync pull ../fetched got"));
        JARS.keySet().forEach(name -> commands.add(name + " --help"));
        commands.add("vm-sync --version");
        return commands;
    }

    @Test
    void anAnswerThatIsLostIsAFailure() throws IOException {
        forEach(answering(), command -> {
            Script.Result full = run(command, ">/dev/full");
            full.exits(1).says(command.split(" ")[0] + ": " + LOST);
            assertEquals(1, full.err().lines().filter(line -> line.contains("written")).count(), full.err());
        });
        run("vm-ctl status", ">/dev/full", "2>/dev/full").exits(1);
        run("vm-ctl console", ">/dev/full").exits(69); // there is no console here: that is told
    }

    /** On a terminal control characters are made visible; elsewhere every byte comes through, whatever the other stream is. */
    @Test
    void whatTheGuestPrintsIsBytesUnlessItIsShown() throws Exception {
        useGuest();
        List<String> words = List.of("vm-test", "run", "printf 'a\\000\\377\\033[31m\\n' | tee /dev/stderr");
        byte[] bytes = {'a', 0, (byte) 0xff, 27, '[', '3', '1', 'm', '\n'};
        String shown = "a?\ufffd";
        for (int terminal = 1; terminal <= 2; terminal++) {
            Path file = temp.resolve("bytes");
            Script.Result ran = start(List.of("script", "-qec", VmCtl.shellQuoted(jar(words)) + " " + (3 - terminal) + ">" + VmCtl.shellQuoted(List.of(file.toString())),
                    "/dev/null"));
            ran.exits(0);
            assertArrayEquals(bytes, Files.readAllBytes(file));
            assertEquals(shown, ran.out().strip());
        }
        settings.put("VM_TEST_UNIT", "printf half");
        Script.Result half = run("vm-test unit");
        assertTrue(half.out().startsWith("half\n== unit passed, "), half.toString());
        assertEquals("half", run(List.of("vm-test", "run", "printf half")).out());
    }

    @Test
    void ofTwoProjectsWithOneNameTheRightOneIsTested() throws Exception {
        useGuest();
        settings.remove("VM_REMOTE_DIR");
        settings.put("VM_TEST_UNIT", "cat it");
        Path remote = sshd.base.resolve("home").resolve(temp.getFileName()).resolve("app");
        List<Path> projects = new ArrayList<>();
        for (String checkout : List.of("w1", "w2")) {
            projects.add(Files.createDirectories(temp.resolve(checkout + "/app")).toRealPath());
            Files.writeString(temp.resolve(checkout + "/app/it"), "of " + checkout + "\n");
        }
        settings.put("VM_REMOTE_DIR", remote.toString());
        settings.put("VM_PROJECT", projects.get(0).toString());
        run("vm-sync").exits(0);
        assertTrue(run("vm-test unit").out().startsWith("of w1\n"));
        Files.writeString(remote.resolve("result"), "x");
        settings.put("VM_PROJECT", projects.get(1).toString());
        run("vm-test unit").exits(69).says(projects.get(1).toString());
        Script.Result sync = run("vm-sync");
        sync.exits(0).says("replaces " + remote + ", which came from ");
        sync.exits(0).says(projects.get(0).toString());
        sync.exits(0).says("result");
        settings.put("VM_PROJECT", projects.get(0).toString());
        for (String command : List.of("vm-test unit", "vm-test run cat it")) {
            Script.Result refused = run(command);
            refused.exits(69).says(remote + " in the guest came from ");
            for (Path project : projects) {
                refused.exits(69).says(":" + project);
            }
            assertEquals("", refused.out());
        }
        settings.put("VM_SYNC_CMD", VmCtl.shellQuoted(jar(List.of("vm-sync"))));
        Script.Result synced = run("vm-test --sync unit");
        assertTrue(synced.out().startsWith("of w1\n"), synced.toString());
    }

    @Test
    void whatIsMissingHereIsNamed() throws Exception {
        useGuest();
        List<String> full = new ArrayList<>(List.of("env", "-u", "PATH", Path.of(System.getProperty("java.home"), "bin/java").toString()));
        List<String> jar = jar(List.of("vm-test", "run", "echo", "ran"));
        full.addAll(jar.subList(1, jar.size()));
        assertEquals("ran\n", start(full).out(), "PATH is not set");
        Path bin = Files.createDirectories(temp.resolve("bin"));
        for (String program : List.of("sh", "ssh", "java")) {
            Path real = Stream.of(System.getenv("PATH").split(":")).map(directory -> Path.of(directory, program)).filter(Files::isExecutable).findFirst().orElseThrow();
            Files.createSymbolicLink(bin.resolve(program), real);
        }
        settings.put("PATH", bin.toString());
        settings.put("VM_SYNC_CMD", "jbang vm-sync");
        run("vm-test --sync unit").exits(69).saysOnly("vm-test: no suite was run: 'jbang vm-sync' cannot be run here; set VM_SYNC_CMD to the command that runs it, as "
                + "VM_SYNC_CMD='jbang vm-sync@NAME' for a catalog that you added, or VM_SYNC_CMD='jbang /path/to/VmSync.java' for a copied file\n");
        settings.put("VM_REMOTE_DIR", "/nonexistent/project");
        run("vm-test unit").exits(69).says("vm-test: the project is not in the guest: there is no /nonexistent/project; vm-test --sync (or vm-sync) brings it\n");
        run("vm-test run true").exits(69).saysOnly("the project is not in the guest: there is no /nonexistent/project");
    }

    @Test
    void aClosedStdinIsEmptyAndAClosedStdoutLosesTheAnswer() throws IOException {
        forEach(answering().stream().filter(command -> !command.matches(".*(--help|--json|--quiet|--dry-run)")).toList(),
                command -> run(command, ">&-").exits(1).says(LOST));
        assertEquals("", run("vm-ctl exec cat", "<&-").out());
        assertEquals("", run("vm-ctl ssh cat", "<&-").out());
        assertEquals("", run("vm-test run cat", "<&-").out());
        run("vm-ctl exec cat", "<&-", ">&-", "2>&-").exits(0);
        run("vm-ctl strat", "2>&-").exits(2);
        run("vm-setup disk --vm-name blank --yes", "<&-", "2>&-").exits(0);
        start(List.of("qemu-img", "check", "-q", sshd.vmDir.resolve("blank.install/by-hand.qcow2").toString())).exits(0);
    }

    @Test
    void aClosedStdinTypesNothingIntoTheConsole() throws Exception {
        useGuest();
        try (ServerSocketChannel console = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
            console.bind(UnixDomainSocketAddress.of(sshd.vmDir.resolve("dfly-vm.console")));
            List<Integer> typed = new ArrayList<>();
            Thread guest = new Thread(() -> {
                try (SocketChannel client = console.accept()) {
                    typed.add(client.read(ByteBuffer.allocate(100)));
                } catch (IOException gone) {
                    throw new UncheckedIOException(gone);
                }
            });
            guest.start();
            run("vm-ctl console", "<&-").exits(0);
            guest.join();
            assertEquals(List.of(-1), typed, "the end of input, and nothing before it");
        } finally {
            Files.deleteIfExists(sshd.vmDir.resolve("dfly-vm.console"));
        }
    }

    @Test
    void aCommandEndsWithItsReader() throws IOException {
        useGuest();
        Files.writeString(sshd.vmDir.resolve("dfly-vm.console.log"), "one\ntwo\n");
        for (List<String> command : List.of(List.of("vm-ctl", "console", "--log"), List.of("vm-ctl", "exec", "yes"), List.of("vm-test", "run", "yes"),
                List.of("vm-test", "run", "echo; sleep 1000"), List.of("vm-sync", "--watch", "--engine", "tar", "--force"))) {
            String line = VmCtl.shellQuoted(jar(command));
            Script.Result result = start(List.of("sh", "-c", "{ " + line + "; echo $? >code; } | head -n 1"));
            assertEquals("1", Files.readString(temp.resolve("code")).strip(), result.toString());
            assertTrue(result.err().contains(LOST), result.toString());
        }
    }

    /** A clone has its source's keys, so it may answer on a dead VM's port. ssh would wait minutes for a paused guest. */
    @Test
    void aGuestThatCannotAnswerIsToldSoon() throws Exception {
        try (Sshd guest = new Sshd()) {
            settings.put("VM_DIR", guest.vmDir.toString());
            run(List.of("vm-ctl", "exec", "exit 255")).is(255, "", "");
            guest.vm.qmp("stop");
            for (String command : List.of("vm-ctl exec true", "vm-ctl ssh true")) {
                run(command).exits(69).saysOnly("the guest does not run (paused): vm-ctl start resumes it");
            }
            guest.vm.qmp("cont");
            run(List.of("vm-ctl", "exec", "kill -9 " + guest.vm.pid() + "; exit 255")).exits(69)
                    .saysOnly("the guest does not answer ssh: the VM has ended: vm-ctl start");
        }
    }

    // What belongs to whom

    @Test
    void optionsAfterTheFirstWordAreTheGuestCommands() throws IOException {
        useGuest();
        Files.writeString(sshd.base.resolve("home/lines"), "X\nb\n");
        String file = sshd.base.resolve("home/lines").toString();
        for (String[] row : new String[][] {
            {"vm-ctl exec grep -v X FILE", "b\n"}, {"vm-ctl exec -- grep -v -- X FILE", "b\n"}, {"vm-ctl exec grep -v -e X -- FILE", "b\n"},
            {"vm-ctl exec echo -h --help --version --vm-name=x", "-h --help --version --vm-name=x\n"},
            {"vm-ctl exec echo status start ssh", "status start ssh\n"}, {"vm-ctl exec echo --", "--\n"}, {"vm-ctl exec -- echo --", "--\n"},
            {"vm-ctl exec --env A=b sh -c echo\\ $A$0 --env", "b--env\n"}, {"vm-ctl --vm-name dfly-vm exec --timeout 1m echo --timeout", "--timeout\n"},
            {"vm-ctl ssh echo -v -h", "-v -h\n"}, {"vm-ctl ssh -- -q echo -v", null}, {"vm-ctl ssh echo exec status", "exec status\n"},
            {"vm-test run echo -v -h --timeout -- x", "-v -h --timeout -- x\n"}, {"vm-test run --env A=b -- echo -v --", "-v --\n"},
            {"vm-test run --timeout 90 echo -q --env", "-q --env\n"}}) {
            List<String> words = Stream.of(row[0].split("(?<!\\\\) ")).map(word -> word.replace("\\ ", " ").replace("FILE", file)).toList();
            Script.Result result = run(words);
            if (row[1] != null) {
                result.is(0, row[1], "");
            }
        }
    }

    // Prompts

    @Test
    void everyPromptTakesYesAlone() throws Exception {
        Path dir = Files.createDirectories(temp.resolve("vm"));
        Files.setPosixFilePermissions(dir, PosixFilePermissions.fromString("rwx------"));
        VmAutoInstall.PhaseDisc.write(dir.resolve("dfly-6.4.2.iso"), new TreeMap<>(Map.of("a", "a".getBytes(UTF_8))));
        start(List.of("qemu-img", "create", "-q", "-f", "qcow2", dir.resolve("dfly-vm-clean.qcow2").toString(), "1M")).exits(0);
        start(List.of("qemu-img", "create", "-q", "-f", "qcow2", Files.createDirectory(dir.resolve("blank.install"))
                .resolve("by-hand.qcow2").toString(), "1M")).exits(0);
        List<String> prompts = List.of("vm-auto-install --force --accel tcg",
                "vm-auto-install by-hand --accel tcg",
                "vm-ctl snapshot clean", "vm-ctl destroy");
        for (String prompt : prompts) {
            List<String> words = List.of(prompt.split(" "));
            List<String> before = vmDir().stream().filter(kept()).toList();
            run(prompt).exits(2).says("to confirm it: --yes");
            List<String> answers = List.of("y\n", "no\n", "\n", "yes please\n", "\u0004"); // all are refused; only the first prompt is tried with all
            for (String typed : prompt.equals(prompts.get(0)) ? answers : answers.subList(0, 1)) {
                Script.Result refused = onTerminal(typed, words);
                refused.exits(2);
                assertTrue(refused.out().contains("Type yes to go on") && refused.out().contains("not confirmed, nothing was changed"),
                        () -> prompt + " with '" + typed + "': " + refused);
            }
            assertEquals(before, vmDir().stream().filter(kept()).toList(), prompt);
        }
        Script.Result confirmed = onTerminal("  yes \n", List.of("vm-ctl", "destroy"));
        assertEquals(0, confirmed.exitCode(), confirmed.toString());
        assertFalse(Files.exists(dir.resolve("dfly-vm-clean.qcow2")), "destroyed");
    }

    /** What counts; locks and the installation's own directory, which is empty here, may come. */
    private static Predicate<String> kept() {
        return name -> name.contains(".qcow2") || name.contains(".iso ");
    }

    @Test
    void underMakeAMessageNamesTheVariableToAdd() throws IOException {
        Path dir = Files.createDirectories(temp.resolve("vm"));
        Files.setPosixFilePermissions(dir, PosixFilePermissions.fromString("rwx------"));
        Files.writeString(dir.resolve("other-clean.qcow2"), "x");
        Files.writeString(dir.resolve("a b-clean.qcow2"), "x");
        for (String[] row : new String[][] {
            {"make vm-destroy ARGS=--vm-name\\ other", "ARGS='--yes'"}, {"make vm-destroy VM_NAME=other", "ARGS='--yes'"},
            {"make vm-snapshot ARGS=clean VM_NAME=other", "ARGS='--yes'"}}) {
            List<String> words = new ArrayList<>(Stream.of(row[0].split("(?<!\\\\) ")).map(word -> word.replace("\\ ", " ")).toList());
            words.addAll(1, List.of("-C", TOP.toString(), "--no-print-directory"));
            start(words).exits(2).says("to confirm it: " + row[1] + "\n");
        }
        assertEquals("x", Files.readString(dir.resolve("other-clean.qcow2")));
    }

    @Test
    void aDumbTerminalGetsPlainText() throws Exception {
        settings.putAll(Map.of("TERM", "dumb", "COLUMNS", "40"));
        for (String name : JARS.keySet()) {
            Script.Result help = onTerminal("", List.of(name, "--help"));
            assertTrue(help.exitCode() == 0 && help.out().contains("Usage: ") && !help.out().contains("\u001b"), help.toString());
        }
    }

    // Wrong values

    @Test
    void aWrongValueIsToldInPlainWords() throws IOException {
        Path none = temp.resolve("none");
        List<String[]> rows = new ArrayList<>(List.of(new String[][] {
            {"vm-auto-install --from x", "Invalid value for option '--from': 'x' is not the number of a phase, 1 to 3"},
            {"vm-auto-install --from 0", "Invalid value for option '--from': '0' is not the number of a phase"}, {"vm-auto-install --to 99999999999", "Invalid value for option '--to': '99999999999' is not"},
            {"vm-auto-install --from 3 --to 2", "--from 3 --to 2: the last phase comes before the first"},
            {"vm-auto-install run-phase x y.iso", "Invalid value for positional parameter at index 0 (N): 'x' is not the number of a phase"}, {"vm-auto-install --cpus x", "Invalid value for option '--cpus': 'x' is not a number"},
            {"vm-auto-install --time-limit 90", "Invalid value for option '--time-limit': '90' has no unit; it meant minutes in earlier versions: write 90m"},
            {"VM_TIME_LIMIT=90 vm-auto-install", "VM_TIME_LIMIT in the environment: '90' has no unit; it meant minutes in earlier versions: write 90m"},
            {"vm-auto-install --time-limit 0m", "Invalid value for option '--time-limit': '0m' is not a time"}, {"vm-auto-install --memory x", "Invalid value for option '--memory': 'x' is not a size"},
            {"vm-auto-install --disk-size 0G", "Invalid value for option '--disk-size': '0G' is not a size"}, {"vm-auto-install --accel x", "Invalid value for option '--accel': 'x' is not auto, kvm"},
            {"vm-auto-install --dports-clone=x", "Invalid value for option '--dports-clone': 'x' is not yes or no"}, {"vm-auto-install --forse", "Unknown option: '--forse' (did you mean --force?)"},
            {"vm-auto-install prvision", "Unmatched argument at index 0: 'prvision' (did you mean provision?)"},
            {"vm-ctl start --timeout 9999999h", "Invalid value for option '--timeout': '9999999h' is not a time from 1s to 30 days (720h), such as 90s, 5m or 1h30m"},
            {"vm-ctl start --timeout 0", "Invalid value for option '--timeout': '0' is not a time"}, {"vm-ctl restore --timeout x", "Invalid value for option '--timeout': 'x' is not a time"},
            {"vm-ctl restart --timeout 1h30", "Invalid value for option '--timeout': '1h30' is not a time"}, {"vm-ctl clone x --timeout 721h", "Invalid value for option '--timeout': '721h' is not"},
            {"vm-ctl exec --timeout 1d true", "Invalid value for option '--timeout': '1d' is not a time"}, {"vm-ctl exec --env x true", "--env: 'x' is not a variable"},
            {"vm-ctl start --cpus x", "Invalid value for option '--cpus': 'x' is not a number from 1 to 99"}, {"vm-ctl start --memory 2", "Invalid value for option '--memory': '2' is not a size"},
            {"vm-ctl start --ssh-port 70000", "Invalid value for option '--ssh-port': '70000' is not a port"}, {"vm-ctl start --forward x", "--forward: 'x' is not two ports"},
            {"vm-ctl start --disk-cache x", "Invalid value for option '--disk-cache': 'x' is not writeback"}, {"vm-ctl start --qemu-args 'x", "Invalid value for option '--qemu-args': ''x' is not text with"},
            {"VM_CPUS=x vm-ctl start", "VM_CPUS in the environment: 'x' is not a number from 1 to 99"},
            {"VM_CPUS=2 vm-ctl start --cpus x", "Invalid value for option '--cpus': 'x' is not a number from 1 to 99"}, {"vm-ctl --vm-name a/b status", "Invalid value for option '--vm-name': 'a/b' is not a name"},
            {"vm-ctl snapshot a/b", "the snapshot's name: 'a/b' is not"}, {"vm-ctl clone a/b", "Invalid value for positional parameter at index 0..* (NAME): 'a/b' is not"},
            {"vm-ctl strat", "Unmatched argument at index 0: 'strat' (did you mean start?)"}, {"vm-ctl strat status", "Unmatched argument at index 0: 'strat' (did you mean start?)"},
            {"vm-ctl xyz", "Unmatched argument at index 0: 'xyz'; see"}, {"vm-ctl start --memroy 4G", "Unknown options: '--memroy', '4G' (did you mean --memory?)"},
            {"vm-ctl start --memroy=4G", "Unknown option: '--memroy=4G' (did you mean --memory?)"}, {"vm-ctl stop now", "Unmatched argument at index 1: 'now'; see"},
            {"vm-ctl status --quux", "Unknown option: '--quux'; see"}, {"vm-ctl start --timeout", "Missing required parameter for option '--timeout'"},
            {"vm-setup check --ssh-port x", "Invalid value for option '--ssh-port': 'x' is not an int"}, {"vm-setup --mirror x", "Invalid value for option '--mirror' (URL,...): 'x' is no http or https address"},
            {"VM_MIRROR=x vm-setup", "VM_MIRROR in the environment: 'x' is no http"}, {"vm-setup chek", "Unmatched argument at index 0: 'chek' (did you mean check?)"},
            {"vm-setup --dfly-version ../6", "Invalid value for option '--dfly-version': '../6' is not a name"}, {"vm-setup disk --disk-size x", "Invalid value for option '--disk-size': 'x' is not a size"},
            {"vm-sync --engine rsnyc", "Invalid value for option '--engine': expected one of [AUTO, RSYNC, TAR]"}, {"vm-sync --remote-dir x", "Invalid value for option '--remote-dir': 'x' is no absolute path"},
            {"vm-sync --wtach", "Unknown option: '--wtach' (did you mean --watch?)"}, {"vm-sync pul x", "Unmatched arguments from index 0: 'pul', 'x' (did you mean pull?)"},
            {"vm-sync --project " + none, "--project: " + none + " is not a directory"},
            {"VM_PROJECT=" + none + " vm-sync", "VM_PROJECT in the environment: " + none + " is not a directory"},
            {"vm-test --timeout 1h30 unit", "Invalid value for option '--timeout': '1h30' is not a time"}, {"vm-test --leaks x unit", "Invalid value for option '--leaks': expected one of [fail, warn, ignore]"},
            {"vm-test --env x unit", "Value for option option '--env' (K=V) should be in KEY=VALUE format but was x"}, {"vm-test untit", "there is no suite 'untit' (did you mean unit?)"},
            {"vm-test lsit", "there is no suite 'lsit' (did you mean list or unit?)"}, {"vm-test --junti x unit", "Unknown option: '--junti' (did you mean --junit?)"}}));
        String here = "the environment";
        Map<String, Function<String[], CommandLine>> scripts = Map.of(
                "vm-setup", args -> VmSetup.commandLine(new VmSetup(), new VmSetup.Settings().add(settings, here)),
                "vm-auto-install", args -> VmAutoInstall.commandLine(new VmAutoInstall.Settings().add(settings, here)),
                "vm-ctl", args -> VmCtl.commandLine(new VmCtl.Settings().add(settings, here), args),
                "vm-sync", args -> VmSync.commandLine(new VmSync(), new VmSync.Settings().add(settings, here)),
                "vm-test", args -> VmTest.commandLine(new VmTest.Settings().add(settings, here)));
        for (String[] row : rows) {
            List<String> words = new ArrayList<>(List.of(row[0].split(" ")));
            String setting = words.get(0).contains("=") ? words.remove(0) : null;
            String[] arguments = words.subList(1, words.size()).toArray(String[]::new);
            Script.Result result = setting == null ? Script.call(scripts.get(words.get(0)).apply(arguments), arguments)
                    : start(concat(List.of("env", setting), jar(words)));
            result.exits(2).saysOnly(words.get(0) + ": " + row[1]);
        }
        assertEquals(List.of(), vmDir(), "nothing was written");
    }

    /** merge compares it in the parts. */
    @Test
    void aReportNamesTheCommitThatWasTested() throws Exception {
        useGuest();
        for (String line : List.of("init -q", "add .", "-c user.name=x -c user.email=x@example.org commit -qm one")) {
            start(concat(List.of("git", "-C", temp.resolve("project").toString()), List.of(line.split(" ")))).exits(0);
        }
        String commit = start(List.of("git", "-C", temp.resolve("project").toString(), "rev-parse", "HEAD")).exits(0).out().strip();
        run("vm-sync --engine tar --force").exits(0);
        run("vm-test unit --json report.json").exits(0);
        assertTrue(Files.readString(temp.resolve("report.json")).contains("\"commit\":\"" + commit + "\""), Files.readString(temp.resolve("report.json")));
    }

    @Test
    void aLateRefusalNamesWhatTheUserWrote() throws IOException {
        String none = temp.resolve("none").toString();
        run("vm-setup --image " + none).exits(69).says("vm-setup: --image: " + none + " is no file that can be read");
        settings.put("VM_IMAGE", none);
        run("vm-setup").exits(69).says("vm-setup: VM_IMAGE in the environment: " + none + " is no file");
        run("vm-auto-install").exits(69).says("VM_IMAGE in the environment: there is no file " + none);
        run("vm-auto-install --phases " + none).exits(69).says("--phases: " + none + " does not hold");
        settings.put("VM_IMAGE", "");
        usersSettings("VM_IMAGE=" + none + "\n");
        run("vm-setup").exits(69).says("vm-setup: VM_IMAGE in " + temp + "/home/.go-synth/vm.env: " + none + " is no file");
        Files.writeString(temp.resolve("vm.env"), "VM_MEMORY=1\n");
        run("vm-ctl start").exits(2).saysOnly("vm-ctl: VM_MEMORY in vm.env: '1' is not a size");
    }

    @Test
    void aVmMayBearTheNameOfACommand() throws IOException {
        for (String command : List.of("vm-ctl list", "vm-setup disk", "vm-auto-install clean-phases", "vm-test list")) {
            settings.put("VM_NAME", command.split(" ")[1]);
            run(command).exits(0);
        }
        run("vm-ctl --vm-name status list").exits(0);
    }

    @Test
    void aTimeHasOneFormEverywhere() {
        Map<String, Integer> times = Map.of("90", 90, "90s", 90, "5m", 300, "1h30m", 5400, "1h1s", 3601, "0h5m0s", 300, "720h", 30 * 86_400,
                "2592000", 30 * 86_400, "007s", 7);
        times.forEach((text, seconds) -> {
            assertEquals(Duration.ofSeconds(seconds), new VmCtl.DurationConverter().convert(text));
            if (!text.matches("\\d+")) { // of an installation's limit the unit is said
                assertEquals(Duration.ofSeconds(seconds), new VmAutoInstall.TimeLimit().convert(text));
            }
        });
        List<String> none = List.of("", "0", "0s", "-1", "1d", "5M", "5 m", " 5m", "1.5h", "1h30", "30m1h", "m", "721h", "2592001", "720h1s",
                "99999999h", "99999999999999999999", "1e3", "\u0661m");
        run("vm-auto-install --time-limit=2592000").exits(2).says("--time-limit': '2592000' has no unit");
        List<String> options = List.of("vm-auto-install --time-limit=", "vm-auto-install provision --time-limit=", "vm-auto-install by-hand --time-limit=",
                "vm-ctl start --timeout=", "vm-ctl restart --timeout=", "vm-ctl restore --timeout=", "vm-ctl clone x --timeout=", "vm-ctl exec --timeout=",
                "vm-test unit --timeout=", "vm-test run --timeout=");
        none.forEach(text -> assertThrows(CommandLine.TypeConversionException.class, () -> new VmCtl.DurationConverter().convert(text), text));
        forEach(options, option -> { // run and exec need a word more, which comes last
            List<String> words = new ArrayList<>(List.of((option + "1.5h").split(" ")));
            words.add("x");
            run(words).exits(2).says("'1.5h' is not a time from 1s to 30 days (720h), such as 90s, 5m or 1h30m");
        });
    }

    // vm.env

    /** What a line gives to the setting VM_TEST_X; with the character | for a line's end. */
    @Test
    void vmEnvHasAGrammar() throws IOException {
        for (String[] row : new String[][] {
            {"VM_TEST_X=8G # eight", "8G"}, {"VM_TEST_X=\"/tmp/a b.iso\"", "/tmp/a b.iso"}, {"VM_TEST_X='my tool' --flag 'x y'", "'my tool' --flag 'x y'"},
            {"export VM_TEST_X=echo \"#1\" # say", "echo \"#1\""}, {"  export\t VM_TEST_X = a b \t", "a b"}, {"exportX=a", null}, {"VM_TEST_X=a|VM_TEST_X=b", "b"}, {"VM_TEST_X=a|VM_TEST_X=", null},
            // comments
            {"VM_TEST_X=#1", "#1"}, {"VM_TEST_X= # nothing", null}, {"VM_TEST_X=a#b", "a#b"}, {"VM_TEST_X=a\t# b", "a"}, {"VM_TEST_X=a #", "a"}, {"VM_TEST_X='a # b' # c", "a # b"},
            {"VM_TEST_X=\"it's # b\"", "it's # b"}, {"VM_TEST_X=a # it's", "a"}, {"VM_TEST_X=a \\# b", "a \\# b"}, {"# VM_TEST_X=a", null}, {"   |\t|#|VM_TEST_X=a", "a"}, {"VM_TEST_X=# a # b", "# a"},
            // quotes
            {"VM_TEST_X=\"\"", null}, {"VM_TEST_X='a'", "a"}, {"VM_TEST_X=' a '", " a "}, {"VM_TEST_X='a' 'b'", "'a' 'b'"}, {"VM_TEST_X='a'b", "'a'b"}, {"VM_TEST_X=a'b'", "a'b'"}, {"VM_TEST_X='a'\"b\"", "'a'\"b\""},
            {"VM_TEST_X=\"a \\\" # b\"", "a \\\" # b"}, {"VM_TEST_X='a\\'", "a\\"}, {"VM_TEST_X=it\\'s # b", "it\\'s"}, {"VM_TEST_X=\"'a'\"", "'a'"}, {"VM_TEST_X=C:\\", "C:\\"},
            // nothing is expanded
            {"VM_TEST_X=$HOME/~ `x` \\n", "$HOME/~ `x` \\n"}, {"VM_TEST_X=a=b", "a=b"}, {"VM_TEST_X=é日", "é日"},
            // files as editors write them
            {"\ufeffVM_TEST_X=a", "a"}, {"VM_TEST_X=a\r|Y=b\r|", "a"}, {"VM_TEST_X=a\r", "a"}, {"\ufeff# a|VM_TEST_X=a", "a"}}) {
            VmCtl.Settings read = vmEnv(row[0].replace("|", "\n").getBytes(UTF_8));
            assertEquals(Arrays.asList(null, row[1]), Arrays.asList(read.fault, read.values.get("VM_TEST_X")), row[0]);
        }
        assertEquals("a", vmEnv("# f\u00fcr mich\nVM_TEST_X=a # \u00fc".getBytes(ISO_8859_1)).values.get("VM_TEST_X"), "a comment is not read");
        for (String[] row : new String[][] {
            {"VM_MEMORY=8G # eight", "VM_MEMORY", "8G"}, {"VM_IMAGE=\"/tmp/a b.iso\"", "VM_IMAGE", "/tmp/a b.iso"},
            {"VM_TEST_A='my tool' --flag 'x y'", "VM_TEST_A", "'my tool' --flag 'x y'"},
            {"export VM_TEST_B=echo \"#1\" # say", "VM_TEST_B", "echo \"#1\""}, {"VM_TEST_C=#1", "VM_TEST_C", "#1"}}) {
            assertEquals(row[2], settings(row[0], null).values.get(row[1]), row[0]);
        }
    }

    @Test
    void aFaultInVmEnvIsToldWithTheNumberOfItsLineAndNotItsText() throws IOException {
        for (String[] row : new String[][] {
            {"VM_NAME: a", "VM_NAME: a"}, {"# a||VM_NAME", "VM_NAME"}, {"VM_TEST_X=a|\u0000", "\u0000"}, {"VM_TEST_X=a|=b", "=b"}, {"VM_TEST_A-B=x", "VM_TEST_A-B=x"},
            {"export X", "export X"}, {"1X=a", "1X=a"}, {"A B=c", "A B=c"}, {"VM_TEST_X=it's", "VM_TEST_X=it's"},
            {"VM_TEST_X=a|VM_TEST_X=say \"hi # a|Y: b", "VM_TEST_X=say \"hi # a"}, {"VM_TEST_X='a # b", "VM_TEST_X='a # b"},
            {"VM_TEST_X=a\\|VM_TEST_X=\"a\\\"", "VM_TEST_X=\"a\\\""}, {"VM_TEST_X=a\u0000b", "VM_TEST_X=a\u0000b"}}) {
            String fault = vmEnv(row[0].replace("|", "\n").getBytes(UTF_8)).fault;
            int number = List.of(row[0].split("\\|")).indexOf(row[1]) + 1;
            assertTrue(fault.endsWith("/vm.env, line " + number + ": this is not KEY=value with every quote closed"), row[0] + ": " + fault);
        }
        assertTrue(vmEnv("VM_TEST_X=a".getBytes(UTF_16)).fault.contains("this is not KEY=value"));
        List<String> commands = List.of("vm-setup check", "vm-auto-install clean-phases", "vm-ctl status", "vm-sync", "vm-test list");
        Files.writeString(temp.resolve("vm.env"), "# mine\nVM_TEST_A=/home/o'neil/x\n");
        forEach(commands, command -> run(command).exits(2).saysOnly(command.split(" ")[0] + ": vm.env, line 2: this is not KEY=value with every quote closed\n"));
        Files.writeString(temp.resolve("netrc"), "machine example.org login me password secret");
        Files.delete(temp.resolve("vm.env"));
        Files.createSymbolicLink(temp.resolve("vm.env"), temp.resolve("netrc")); // as a project could, to read it in the log of a CI
        forEach(commands, command -> run(command).exits(2).saysOnly(command.split(" ")[0] + ": vm.env, line 1: this is not KEY=value with every quote closed\n"));
        run("vm-ctl --help").exits(0); // the way out
        Files.write(temp.resolve("vm.env"), "VM_TEST_X=a\nVM_TEST_X=caf\u00e9".getBytes(ISO_8859_1));
        settings.put("LC_ALL", "C.UTF-8");
        forEach(commands, command -> run(command).exits(2).saysOnly("letters of an argument, a setting or a directory are not in UTF-8"));
        Files.delete(temp.resolve("vm.env"));
        Files.createDirectory(temp.resolve("vm.env"));
        forEach(commands, command -> run(command).exits(2).saysOnly("vm.env is not a file of at most 64 KB"));
        Files.delete(temp.resolve("vm.env"));
        settings.put("VM_NAME", "a/b");
        run("vm-ctl status --help").exits(0);
        run("vm-ctl exec echo --help").exits(2).saysOnly("vm-ctl: VM_NAME in the environment: 'a/b' is not a name");
    }

    private VmCtl.Settings vmEnv(byte[] text) throws IOException {
        Path directory = Files.createTempDirectory(temp, "env");
        Files.write(directory.resolve("vm.env"), text);
        return VmCtl.readSettings(Map.of(), directory);
    }

    // The two files of settings: the user's own, and the one of a project, which may be somebody else's

    private Path usersSettings(String text) throws IOException {
        settings.put("HOME", temp.resolve("home").toString());
        return Files.writeString(Files.createDirectories(temp.resolve("home/.go-synth")).resolve("vm.env"), text);
    }

    private VmCtl.Settings settings(String own, String project, String... environment) throws IOException {
        usersSettings(own);
        Map<String, String> all = new HashMap<>(Map.of("HOME", temp.resolve("home").toString()));
        for (int i = 0; i < environment.length; i += 2) {
            all.put(environment[i], environment[i + 1]);
        }
        Path directory = Files.createDirectories(temp.resolve("checkout/sub")).getParent();
        Files.deleteIfExists(directory.resolve("vm.env"));
        return VmCtl.readSettings(all, project == null ? directory : Files.writeString(directory.resolve("vm.env"), project).getParent());
    }

    @Test
    void aProjectsSettingsWinOverTheUsersWhereTheyAreHarmless() throws IOException {
        VmCtl.Settings both = settings("VM_NAME=mine\nVM_MEMORY=4G\nVM_DIR=~/vms\nVM_CTL_CMD=my ctl", "VM_NAME=theirs\nVM_MEMORY=\nPATH=/evil\nLD_PRELOAD=x");
        assertEquals(Arrays.asList(null, "theirs", "4G", "~/vms", "my ctl", null, null), Stream.of(both.fault, both.values.get("VM_NAME"), both.values.get("VM_MEMORY"),
                both.values.get("VM_DIR"), both.values.get("VM_CTL_CMD"), both.values.get("PATH"), both.values.get("LD_PRELOAD")).toList());
        assertEquals("VM_NAME in " + temp.resolve("checkout/vm.env") + ", VM_DIR in " + temp.resolve("home/.go-synth/vm.env"), both.origins.get("VM_NAME") + ", "
                + both.origins.get("VM_DIR"));
        assertEquals("env", settings("VM_NAME=mine", "VM_NAME=theirs", "VM_NAME", "env").values.get("VM_NAME"));
        for (String home : List.of("", "relative", "/nonexistent")) {
            assertEquals(null, settings("VM_NAME=mine", null, "HOME", home).values.get("VM_NAME"), "the user's file is not read without HOME");
        }

        // which project
        assertEquals("~/p", settings("VM_PROJECT=~/p", null).values.get("VM_PROJECT"));
        assertEquals(null, settings("VM_PROJECT=~/p", "VM_NAME=x").values.get("VM_PROJECT"), "a directory with a vm.env is the project");
        assertEquals(null, settings("VM_PROJECT=~/p", "VM_PROJECT=").values.get("VM_PROJECT"));
        assertEquals("sub", settings("VM_PROJECT=~/p", "VM_PROJECT=sub").values.get("VM_PROJECT"));

        // a project may take the network away, and not give it
        assertEquals("offline", settings("", "VM_NET=offline").values.get("VM_NET"));
        assertEquals("offline", settings("VM_NET=user", "VM_NET=offline").values.get("VM_NET"));
        assertEquals("offline", settings("VM_NET=offline", "VM_NET=user").values.get("VM_NET"));

        // in the directory of the user's own file
        Path own = usersSettings("VM_CTL_CMD=mine").getParent();
        assertEquals("mine", VmCtl.readSettings(Map.of("HOME", temp.resolve("home").toString()), own).values.get("VM_CTL_CMD"));
    }

    @Test
    void aProjectSetsNothingThatCanHarmThisMachine() throws IOException {
        Path outside = Files.createDirectories(temp.resolve("outside"));
        Files.createDirectories(temp.resolve("checkout/sub/below"));
        Files.createSymbolicLink(temp.resolve("checkout/link"), outside);
        Files.createDirectories(temp.resolve("checkout/outside")); // where the system finds jump/../../outside
        Files.createSymbolicLink(temp.resolve("checkout/jump"), Path.of("sub/below"));
        for (String line : List.of("VM_CTL_CMD=touch evil", "VM_SYNC_CMD=x", "VM_SETUP_CMD=x", "VM_DIR=vm", "VM_QEMU_ARGS=-incoming \"exec:touch evil\"",
                "VM_IMAGE=/etc/shadow", "VM_MIRROR=http://evil.example/", "VM_PHASES=phases", "VM_ACCEL=tcg", "VM_CPU=host", "VM_DISK_CACHE=unsafe",
                "export VM_SSH_PORT=22")) {
            String setting = line.replaceAll("^export |=.*", "");
            assertEquals(setting + " is allowed only in your own ~/.go-synth/vm.env, as a project could harm this machine with it: "
                    + "if you wrote this line of vm.env, move it there, else delete it", settings("", "# theirs\n" + line).fault);
        }
        for (String project : List.of("..", "/", "~/.ssh", "link", "link/new", "sub/../../outside", "jump/../../outside", outside.toString())) {
            assertEquals("VM_PROJECT in vm.env is " + project + ", which is no directory in or below that of vm.env: name it with --project, or move vm.env away and put "
                    + "VM_PROJECT into ~/.go-synth/vm.env", settings("", "# theirs\nVM_PROJECT=" + project).fault);
        }
        assertEquals(null, settings("VM_DIR=~/vm\nVM_CTL_CMD=x", "VM_DIR=").fault);
        // else it would lie in whatever project one stands in
        for (String line : List.of("VM_DIR=vm", "VM_IMAGE=./x.iso", "VM_PHASES=phases", "VM_PROJECT=..")) {
            assertEquals(line.replaceFirst("=.*", "") + " in " + temp.resolve("home/.go-synth/vm.env") + " must begin with / or ~: " + line.replaceFirst(".*=", ""),
                    settings(line, null).fault);
        }
        for (String line : List.of("VM_PROJECT=.", "VM_PROJECT=sub", "VM_PROJECT=./sub/below", "VM_PROJECT=" + temp.toRealPath().resolve("checkout/sub"),
                "VM_TEST_X=rm -rf / # in the guest", "VM_REMOTE_DIR=/root/x", "VM_TIME_LIMIT=5m", "DFLY_VERSION=6.4.1", "VM_CPUS=2", "VM_DISK_SIZE=9G",
                "VM_DPORTS_CLONE=yes")) {
            VmCtl.Settings fine = settings("", line);
            assertEquals(Arrays.asList(null, line.replaceFirst(" #.*", "")), Arrays.asList(fine.fault, line.replaceAll("=.*", "=")
                    + fine.values.get(line.replaceAll("=.*", ""))));
        }
        Files.writeString(temp.resolve("vm.env"), "VM_QEMU_ARGS=-incoming exec:evil\n");
        forEach(List.of("vm-setup check", "vm-auto-install", "vm-ctl start", "vm-sync", "vm-test unit"), command ->
                run(command).exits(2).saysOnly(command.split(" ")[0] + ": VM_QEMU_ARGS is allowed only in your own ~/.go-synth/vm.env"));
    }

    /** picocli replaces ${env:NAME} and others in a default value, and takes _NULL_ for none. */
    @Test
    void nothingInAValueIsReplaced() throws IOException {
        for (String value : List.of("${env:HOME}", "${sys:user.home}", "$${env:HOME}", "${", "${}", "$", "a$$b", "${bundle:x}", "$HOME", "${DEFAULT-VALUE}")) {
            settings.put("VM_NAME", value);
            run("vm-ctl status").exits(2).says("vm-ctl: VM_NAME in the environment: '" + value + "' is not a name");
        }
        settings.put("VM_NAME", "");
        Files.writeString(temp.resolve("vm.env"), "VM_PROJECT=${sys:user.home}\n");
        run("vm-sync").exits(2).saysOnly("vm-sync: VM_PROJECT in vm.env is ${sys:user.home}, which is no directory in or below that of vm.env: ");
        assertEquals(null, settings("VM_MEMORY=_NULL_", "VM_PROJECT=_NULL_").values.get("VM_PROJECT"));
    }

    @Test
    void lettersThatTheLocaleLosesLoseNoOtherSetting() throws IOException {
        Files.writeString(temp.resolve("vm.env"), "VM_NAME=foo\nVM_NET=offline\nVM_PROJECT=übung\n");
        settings.put("LC_ALL", "C");
        run("vm-ctl status").exits(2).saysOnly("vm-ctl: " + LETTERS);
    }

    @Test
    void aVeryLongLineIsRefusedSoon() throws IOException {
        assertTrue(settings("", "VM_NAME=" + "x".repeat(900_000)).fault.endsWith("/vm.env is not a file of at most 64 KB"));
        assertEquals(null, settings("", "VM_TEST_X=" + "'\"'\\\"".repeat(13_000)).fault);
        assertEquals(1, settings("", "VM_" + "X".repeat(65_000) + "=1\n").warnings.size());
    }

    @Test
    void aMisspeltSettingIsAWarning() throws IOException {
        String own = temp.resolve("home/.go-synth/vm.env").toString();
        String project = temp.resolve("checkout/vm.env").toString();
        assertEquals(List.of("VM_MEMORI in " + own + " is no setting (did you mean VM_MEMORY?)", "VM_COLOUR in " + project + " is no setting", "VM_PORJECT in "
                + project + " is no setting (did you mean VM_PROJECT?)", "DFLY_VERSON in the environment is no setting (did you mean DFLY_VERSION?)"),
                settings("VM_MEMORI=1G", "VM_NAME=x\nVM_PORJECT=/etc\nVM_COLOUR=red\nNO_COLOR=1",
                "DFLY_VERSON", "1", "VM_TEST_NAMES", "2", "VM_SOMEBODY_ELSES", "3", "VMS", "4").warnings);
        usersSettings("VM_MEMORI=1G\n");
        run("vm-ctl list").exits(0).says("vm-ctl: warning: VM_MEMORI in " + own + " is no setting (did you mean VM_MEMORY?)\n");
    }

    @Test
    void aFileOfSettingsIsAFileOfItsUser() throws Exception {
        Path own = usersSettings("VM_NAME=mine\n");
        Files.setPosixFilePermissions(own, PosixFilePermissions.fromString("rw-rw-rw-"));
        run("vm-ctl list").exits(2).saysOnly("vm-ctl: " + own + " can be changed by another user: chown and chmod go-w make it yours");
        Files.delete(own);
        assertEquals(0, new ProcessBuilder("mkfifo", own.toString()).start().waitFor());
        run("vm-ctl list").exits(2).saysOnly("vm-ctl: " + own + " is not a file of at most 64 KB");
        Files.delete(own);
        Files.createSymbolicLink(temp.resolve("vm.env"), Path.of("/dev/zero"));
        run("vm-ctl list").exits(2).saysOnly("vm-ctl: vm.env is not a file of at most 64 KB");
    }

    @Test
    void aGroupThatIsOneUsersAloneMayWrite() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root can give files away");
        Path file = Files.createFile(temp.resolve("file"));
        for (String[] row : new String[][] {{"daemon:daemon", "true"}, {"daemon:bin", "false"}, {"root:root", "false"}, {"54321:54321", "false"}, {"54321:daemon", "false"}}) {
            assertEquals(0, new ProcessBuilder("chown", row[0], file.toString()).start().waitFor());
            assertEquals(row[1], "" + VmCtl.hasPrivateGroup(file), row[0]);
        }
    }

    /** What `jbang vm-ctl` runs is decided by the nearest jbang-catalog.json, which may be the project's. */
    @Test
    void aProjectsOwnVmCtlIsNeverRun() throws IOException {
        Path alone = Files.createDirectories(temp.resolve("alone/lib"));
        copy(TOP.resolve(".build/VmTest.jar"), alone.getParent().resolve("VmTest.jar"));
        try (Stream<Path> libraries = Files.list(TOP.resolve(".build/lib"))) {
            libraries.forEach(library -> copy(library, alone.resolve(library.getFileName())));
        }
        Path jbang = Files.writeString(Files.createDirectories(temp.resolve("bin")).resolve("jbang"), "#!/bin/sh\necho \"$*\" >\"" + temp + "/ran\"\nexit 1\n");
        assertTrue(jbang.toFile().setExecutable(true));
        settings.put("PATH", jbang.getParent() + ":" + System.getenv("PATH"));
        Files.createDirectories(temp.resolve("vm"), PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
        Files.writeString(temp.resolve("jbang-catalog.json"), "{\"aliases\": {\"vm-ctl\": {\"script-ref\": \"VmCtl.java\"}}}");
        Files.writeString(temp.resolve("VmCtl.java"), "class VmCtl {}");
        List<String> test = List.of("java", "-jar", alone.getParent().resolve("VmTest.jar").toString(), "--fresh", "unit");
        for (String project : List.of("", temp.toString(), temp.getParent().toString(), Files.createDirectories(temp.resolve("src")).toString())) {
            settings.put("VM_PROJECT", project);
            start(test).exits(69).saysOnly("vm-test: no suite was run: found no VmCtl.java here or above that only you can change and that is outside of "
                    + "the project; set VM_CTL_CMD to the command that runs it, as VM_CTL_CMD='jbang vm-ctl@NAME'");
            assertFalse(Files.exists(temp.resolve("ran")));
        }
        settings.put("VM_PROJECT", sshd.base.toString()); // then this is the user's checkout of the scripts
        for (String script : List.of("VmSync.java", "VmCtl.java")) {
            Files.writeString(temp.resolve(script), "class X {}");
        }
        start(test).exits(1).says("no suite was run: 'jbang " + temp.resolve("VmCtl.java") + " restore' failed with exit code 1");
        assertEquals(temp.resolve("VmCtl.java") + " restore\n", Files.readString(temp.resolve("ran")));
    }

    /** In a container, root often works on a checkout that belongs to another user. */
    @Test
    void makeNamesThePhasesOfItsCheckout() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root can give files away");
        Path phases = Files.createDirectories(temp.resolve("phases"));
        for (String script : VmAutoInstall.SCRIPTS) {
            copy(TOP.resolve("phases").resolve(script), phases.resolve(script));
        }
        assertEquals(0, new ProcessBuilder("chown", "-R", "54321", phases.toString()).start().waitFor());
        settings.put("VM_PHASES", "");
        run("vm-auto-install").exits(69).saysOnly("here or above (not " + phases + ", because other users own it or can write to it)");
        List<String> make = jar(List.of("vm-auto-install"));
        make.add(1, "-Dvm.phases=" + phases);
        start(make).exits(69).says("phases: " + phases + "\n");
        settings.put("VM_PHASES", phases.toString()); // by hand
        run("vm-auto-install").exits(69).says("phases: " + phases + "\n");
    }

    private static void copy(Path from, Path to) {
        try {
            Files.copy(from, to);
        } catch (IOException failed) {
            throw new UncheckedIOException(failed);
        }
    }

    // Locales

    private static final List<String> ANY = List.of("vm-setup check", "vm-auto-install clean-phases", "vm-ctl exec true", "vm-sync --dry-run", "vm-test unit");
    private static final String LETTERS = "letters of an argument, a setting or a directory may have become question marks, because the locale's encoding is ";

    @Test
    void whatALocaleWouldLoseIsRefused() throws Exception {
        Path beyond = Files.createDirectory(temp.resolve("ünï"));
        settings.put("LC_ALL", "C");
        forEach(ANY, command -> {
            List<String> words = List.of(command.split(" "));
            String name = words.get(0);
            for (String lost : List.of("TestÜnïcode", "日", "Test??n??code")) { // JBang hands on the last for the first
                run(plus(words, lost)).exits(2).saysOnly(name + ": " + LETTERS + "ANSI_X3.4-1968, not UTF-8: set LC_ALL=C.UTF-8\n");
            }
            List<String> there = List.of("sh", "-c", "cd ünï && exec \"$@\"", "sh");
            start(concat(there, jar(words))).exits(2).saysOnly(name + ": " + LETTERS);
            start(concat(there, jar(List.of(name, "--help")))).exits(0);
            for (String setting : List.of("HOME", "VM_DIR", "PATH")) {
                start(concat(List.of("env", setting + "=" + beyond + ":" + System.getenv("PATH")), jar(words)))
                        .exits(2).saysOnly(name + ": " + LETTERS);
            }
        });
        Files.writeString(temp.resolve("vm.env"), "# ünï\nVM_TEST_UNIT=go test -run TestÜnïcode\n");
        forEach(ANY, command -> run(command).exits(2).saysOnly(": " + LETTERS));
        Files.delete(temp.resolve("vm.env"));
        assertEquals(List.of(), vmDir(), "nothing was written");
    }

    @Test
    void everyLocaleIsUtf8OrRefuses() throws Exception {
        settings.put("LC_ALL", "C.UTF-8");
        forEach(ANY, command -> start(concat(List.of("sh", "-c", "exec \"$@\" \"$(printf '\\374')\"", "sh"), jar(List.of(command.split(" ")))))
                .exits(2).saysOnly("letters of an argument, a setting or a directory are not in UTF-8: write them in UTF-8"));
        for (Map<String, String> locale : List.of(Map.of("LC_ALL", "xx_XX.UTF-8"), // which is not installed
                Map.of("LC_ALL", "", "LC_CTYPE", "", "LANG", ""), Map.of("LC_CTYPE", "POSIX", "LANG", "C.UTF-8"), latin1())) {
            settings.putAll(locale);
            run("vm-ctl exec echo ü").exits(2).saysOnly("vm-ctl: " + LETTERS);
        }
    }

    /** A locale in which a letter such as é is one byte, made here. Where it cannot be made, the C locale once more. */
    private Map<String, String> latin1() throws Exception {
        Path made = temp.resolve("locales");
        Files.createDirectories(made);
        start(List.of("localedef", "-i", "de_DE", "-f", "ISO-8859-1", made.resolve("de_DE").toString()));
        return Files.exists(made.resolve("de_DE")) ? Map.of("LC_ALL", "de_DE", "LOCPATH", made.toString()) : Map.of("LC_ALL", "C");
    }

    private static List<String> plus(List<String> words, String last) {
        return concat(words, List.of(last));
    }

    private static List<String> concat(List<String> first, List<String> second) {
        return Stream.concat(first.stream(), second.stream()).toList();
    }

    @Test
    void whatIsTypedIsWhatIsSent() throws IOException {
        useGuest();
        settings.putAll(Map.of("LC_ALL", "C.UTF-8", "VM_TEST_UNIT", "printf '%s\\n' ünï日"));
        run("vm-ctl exec printf %s ünï日?").is(0, "ünï日?", "");
        run("vm-test run printf %s ünï日?").is(0, "ünï日?", "");
        run(List.of("vm-ctl", "exec", "--env", "K=ü", "sh", "-c", "printf $K")).is(0, "ü", "");
        assertTrue(run("vm-test unit").out().contains("ünï日\n"));
    }

    /** What comes from the guest or the disk is bytes, and is printed as such in every locale. */
    @Test
    void outputIsUtf8InEveryLocale() throws IOException {
        useGuest();
        Files.writeString(temp.resolve("project/ünï日"), "x");
        Path text = Files.writeString(temp.resolve("text"), "ünï日\n");
        // the guest's VM_DIR and its project, by paths in ASCII
        Path dir = Files.createDirectories(temp.resolve("vm"), PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
        start(List.of("cp", "-R", sshd.vmDir.resolve("dfly-vm.ssh").toString(), dir.toString())).exits(0);
        for (String file : List.of("dfly-vm.ssh/config", "ssh_config")) {
            Files.writeString(dir.resolve(file), Files.readString(sshd.vmDir.resolve(file)).replace(sshd.vmDir.toString(), dir.toString()));
        }
        settings.putAll(Map.of("VM_DIR", dir.toString(), "VM_TEST_UNIT", "cat " + text, "VM_REMOTE_DIR",
                Files.createSymbolicLink(temp.resolve("remote"), remoteDirectory()).toString()));
        try (FakeVm vm = new FakeVm(dir, "dfly-vm")) {
            for (String locale : List.of("C", "C.UTF-8")) {
                settings.put("LC_ALL", locale);
                for (String command : List.of("vm-ctl exec cat " + text, "vm-ctl ssh cat " + text, "vm-test run cat " + text, "vm-test unit",
                        "vm-sync --engine tar --dry-run --force", "vm-sync --engine rsync --dry-run --force")) {
                    Script.Result result = run(command);
                    assertTrue(result.exitCode() == 0 && result.out().contains("ünï日"), () -> command + " in " + locale + ": " + result);
                }
            }
        }
    }

    @Test
    void makeFindsALocaleThatIsUtf8() throws IOException {
        useGuest();
        List<String> make = List.of("make", "-C", TOP.toString(), "--no-print-directory");
        for (String locale : List.of("C", "xx_XX.UTF-8", "", "C.UTF-8")) {
            settings.putAll(Map.of("LC_ALL", locale, "LANG", ""));
            assertEquals("ünï?\n", start(plus(plus(make, "vm-test-run"), "ARGS=printf '%s\\n' ünï?")).out(), locale);
            settings.put("VM_TEST_MY_SUITE", "go test -run ünï");
            Script.Result list = start(plus(make, "vm-test-list"));
            assertTrue(list.exitCode() == 0 && list.out().contains("ünï") && list.out().startsWith("build "), list::toString);
        }
        start(plus(make, "vm-test-run")).exits(2).says("'CMD'; see: make vm-test-run ARGS=--help");
    }

    // Home and other users

    @Test
    void homeIsWhatTheEnvironmentSays() throws IOException {
        settings.putAll(Map.of("VM_DIR", "", "HOME", temp.resolve("home").toString()));
        run("vm-setup disk").exits(0);
        assertTrue(Files.exists(temp.resolve("home/.go-synth/vm/dfly-vm.install/by-hand.qcow2")));
        run("vm-ctl --vm-dir ~root/x list").exits(2).saysOnly("only ~/ stands for a home directory");
        settings.put("HOME", "relative");
        run("vm-ctl list").exits(69).saysOnly("as HOME is no full path");
        settings.put("HOME", "");
        Path project = Files.createDirectories(temp.resolve("project"));
        for (String command : List.of("vm-ctl status", "vm-setup disk", "vm-auto-install clean-phases", "vm-sync --project " + project,
                "vm-test unit", "vm-ctl --vm-dir ~/vm status")) {
            run(command).exits(69).saysOnly("as HOME is no full path");
        }
        settings.put("VM_DIR", temp.resolve("vm").toString());
        run("vm-setup disk").exits(0);
        run("vm-ctl --help").exits(0);
        assertFalse(Files.exists(temp.resolve("?")));
        assertFalse(Files.exists(temp.resolve("~")));
    }

    @Test
    void aDirectoryOfAnotherUserIsNoStoppedVm() throws Exception {
        assumeTrue(System.getProperty("user.name").equals("root"), "only root can become another user");
        Path others = Files.createDirectories(temp.resolve("vm"));
        Path closed = Files.createDirectories(temp.resolve("closed/vm"));
        Files.setPosixFilePermissions(closed.getParent(), PosixFilePermissions.fromString("rwx------"));
        Files.setPosixFilePermissions(temp, PosixFilePermissions.fromString("rwxrwxrwx"));
        List<String> user = List.of("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"); // without a name
        List<String> reading = new ArrayList<>(user);
        reading.addAll(List.of("test", "-r", TOP.resolve(".build/VmCtl.jar").toString()));
        assumeTrue(start(reading).exitCode() == 0, "the jars are closed to others");
        Files.writeString(others.resolve("ssh_config"), "Host *\nProxyCommand touch " + temp.resolve("evil") + "\n");
        for (String command : List.of("vm-ctl status", "vm-sync", "vm-sync pull x", "vm-test unit", "vm-auto-install provision", "vm-setup check")) {
            assertEquals(0, new ProcessBuilder("chown", "54321", others.toString()).start().waitFor());
            settings.put("VM_DIR", others.toString());
            run(command).exits(69).says(others + " belongs to 54321");
            assertEquals(0, new ProcessBuilder("chown", "root", others.toString()).start().waitFor());
            for (Path dir : List.of(others, closed)) {
                settings.put("VM_DIR", dir.toString());
                List<String> words = new ArrayList<>(user);
                words.addAll(jar(List.of(command.split(" "))));
                start(words).exits(69).says(dir.equals(others) ? others + " belongs to root" : dir + " cannot be used (permission denied: ");
            }
            assertFalse(Files.exists(temp.resolve("evil")), "its ssh_config was used");
        }
    }
}
