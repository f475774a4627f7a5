import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The scripts as a user runs them, as processes, with the settings of one VM on the stand-in guest.
 *
 * @param settings the environment the scripts see, beside the host's own
 */
record Guest(Map<String, String> settings) {

    static final Path BUILD = Path.of(".build").toAbsolutePath();
    static final Path SAMPLE = Path.of("test/sample").toAbsolutePath();
    /** The phases that the shared VM was installed by. */
    static final Path INSTALLED_PHASES = BUILD.resolve("test/phases installed");
    /** The shared VM's snapshot clean, as its first start made it. InstallTest makes this copy last: if it exists, the shared VM does. */
    static final Path FIRST_START = BUILD.resolve("test/first start");
    /** Ends whatever hangs. An installation takes three minutes on two idle cores without KVM, three times that on busy ones. */
    private static final Duration LIMIT = Duration.ofMinutes(15);

    /** The mirror's root; AllTests builds it before it runs a class that uses a VM. */
    static Path standin() {
        return Path.of(System.getProperty("standin", "the-stand-in-was-not-built"));
    }

    /** The VM that InstallTest installs and the other tests share. Its directory's name holds what paths trip over. */
    static Guest installed() {
        return in(BUILD.resolve("test/vm's dir, \u00e9"));
    }

    static Guest in(Path vmDir) {
        Map<String, String> settings = new TreeMap<>(Map.of("VM_DIR", vmDir.toString(), "VM_NAME", "guest", "VM_MEMORY", "1G",
                "VM_PROJECT", SAMPLE.toString(), "VM_PHASES", Path.of("phases").toAbsolutePath().toString()));
        settings.put("VM_SETUP_CMD", VmCtl.shellQuoted(Script.command("VmSetup")));
        settings.put("VM_CTL_CMD", VmCtl.shellQuoted(Script.command("VmCtl")));
        settings.put("VM_SYNC_CMD", VmCtl.shellQuoted(Script.command("VmSync")));
        return new Guest(settings);
    }

    /** The same with other settings: name, value, name, value... */
    Guest with(String... pairs) {
        Map<String, String> changed = new TreeMap<>(settings);
        for (int i = 0; i < pairs.length; i += 2) {
            changed.put(pairs[i], pairs[i + 1]);
        }
        return new Guest(changed);
    }

    /** Asks the stand-in for its mirror's packages at this port of the host, and for a fault (or none). */
    Guest withFirmware(int mirrorPort, String fault) {
        return with("VM_MIRROR", "http://127.0.0.1:" + mirrorPort + "/iso-images",
                "VM_QEMU_ARGS", "-fw_cfg name=opt/standin/mirror,string=http://10.0.2.2:" + mirrorPort
                        + (fault.isEmpty() ? "" : " -fw_cfg name=opt/standin/fault,string=" + fault));
    }

    Path vmDir() {
        return Path.of(settings.get("VM_DIR"));
    }

    Path file(String suffix) {
        return vmDir().resolve(settings.get("VM_NAME") + suffix);
    }

    Script.Result setup(String... arguments) {
        return run("VmSetup", arguments);
    }

    Script.Result install(String... arguments) {
        return run("VmAutoInstall", arguments);
    }

    Script.Result ctl(String... arguments) {
        return run("VmCtl", arguments);
    }

    Script.Result sync(String... arguments) {
        return run("VmSync", arguments);
    }

    Script.Result test(String... arguments) {
        return run("VmTest", arguments);
    }

    /** Brings the VM up as it was after its installation, whatever state a test before left it in. */
    void fresh() {
        ctl("restore").exits(0); // starts it, too, if it has the RAM that the first start freezes
        ctl("start").exits(0); // that first start; else it runs already
    }

    /** Makes this VM a twin of another one: its finished disks are links, its keys copies. */
    void link(Guest other) throws IOException {
        Files.createDirectories(file(".install"));
        Files.createDirectories(file(".ssh"));
        for (String file : List.of(".install/phase1.qcow2", ".install/phase2.qcow2", ".install/phase3.qcow2", "-clean.qcow2")) {
            Files.createLink(file(file), other.file(file));
        }
        try (Stream<Path> records = Files.list(other.file(".install"))) {
            for (Path record : records.filter(file -> file.toString().matches(".*\\.(inputs|json)")).toList()) {
                Files.copy(record, file(".install").resolve(record.getFileName()));
            }
        }
        for (String file : List.of("id_ed25519", "id_ed25519.pub", "host_key", "host_key.pub", "root_password")) {
            Files.copy(other.file(".ssh").resolve(file), file(".ssh").resolve(file), StandardCopyOption.COPY_ATTRIBUTES);
        }
    }

    /** Keeps disk and RAM of a VM's first start for its twins. */
    void keepFirstStart() throws IOException {
        Path copy = BUILD.resolve("test/first start, unfinished");
        delete(copy);
        copySnapshot(vmDir(), copy);
        Files.move(copy, FIRST_START);
    }

    private static void copySnapshot(Path from, Path to) throws IOException {
        String record = "guest.snapshots/clean/snapshot.json";
        JsonObject snapshot = VmCtl.json(Files.readString(from.resolve(record)));
        for (String file : List.of(record, snapshot.getString("disk"), snapshot.getString("ram"))) {
            Files.createDirectories(to.resolve(file).getParent());
            Files.copy(from.resolve(file), to.resolve(file), StandardCopyOption.COPY_ATTRIBUTES);
        }
    }

    /** Another VM_DIR with the VM as its first start left it, for a class that runs beside those which share that one. */
    static Guest twin(String directory) {
        Guest twin = unstartedTwin(directory);
        try {
            copySnapshot(FIRST_START, twin.vmDir());
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
        return twin;
    }

    /** Another VM_DIR with the VM as it was installed. */
    static Guest unstartedTwin(String directory) {
        Guest twin = in(BUILD.resolve("test").resolve(directory));
        for (ProcessHandle left : twin.qemus()) { // by a run that was killed
            left.destroyForcibly();
            left.onExit().join();
        }
        try {
            delete(twin.vmDir());
            Files.createDirectories(twin.file(".ssh"));
            Files.createLink(twin.file("-clean.qcow2"), installed().file("-clean.qcow2"));
            Files.copy(installed().vmDir().resolve("accel.json"), twin.vmDir().resolve("accel.json"));
            for (String file : List.of("id_ed25519", "id_ed25519.pub", "host_key", "host_key.pub", "root_password", "known_hosts")) {
                Files.copy(installed().file(".ssh").resolve(file), twin.file(".ssh").resolve(file),
                        StandardCopyOption.COPY_ATTRIBUTES);
            }
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
        return twin;
    }

    /** A text in the guest's sh, by ssh itself: it has no JVM to start, and vm-ctl exec has tests of its own. */
    Script.Result sh(String text) {
        assertTrue(VmCtl.isRunning(file(".qemu-pid")), () -> "no VM runs, and another may have its port: " + text); // all have the same keys
        try {
            Path script = Files.writeString(Files.createTempFile("guest", ".sh"), text);
            ProcessBuilder ssh = builder(List.of("ssh", "-F", vmDir().resolve("ssh_config").toString(), settings.get("VM_NAME"),
                    "exec sh -c 'text=$(cat); exec </dev/null; eval \"$text\"'")).redirectInput(script.toFile());
            Script.Result result = Script.run(ssh, LIMIT);
            Files.delete(script);
            return new Script.Result(text, result.exitCode(), result.out(), result.err());
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
    }

    Script.Result run(String script, String... arguments) {
        return run(Script.command(script, arguments));
    }

    Script.Result run(List<String> command) {
        return Script.run(builder(command), LIMIT);
    }

    /** A script in the background, to be killed or waited for; its output goes to a file. */
    Process start(Path output, String script, String... arguments) throws IOException {
        return builder(Script.command(script, arguments)).redirectInput(new java.io.File("/dev/null"))
                .redirectErrorStream(true).redirectOutput(output.toFile()).start();
    }

    /** The same with a keyboard: its standard input is the process's output stream here. */
    Process attach(Path output, String script, String... arguments) throws IOException {
        return builder(Script.command(script, arguments))
                .redirectErrorStream(true).redirectOutput(output.toFile()).start();
    }

    /** The same at a terminal of its own. */
    Process atTerminal(Path output, String script, String... arguments) throws IOException {
        return builder(List.of("script", "-qec", VmCtl.shellQuoted(Script.command(script, arguments)), "/dev/null"))
                .redirectErrorStream(true).redirectOutput(output.toFile()).start();
    }

    /** Types on a console until a text shows in what its log has got since. Early keys may be lost, so a single one is repeated. */
    static void type(OutputStream keys, Path log, String text, String until) throws IOException, InterruptedException {
        int from = Files.readString(log, ISO_8859_1).length();
        long deadline = System.nanoTime() + LIMIT.toNanos();
        for (int i = 0; System.nanoTime() < deadline; i++) {
            if (i == 0 || i % 20 == 0 && text.length() == 1) {
                keys.write(text.getBytes(UTF_8));
                keys.flush();
            }
            Thread.sleep(100);
            if (Files.readString(log, ISO_8859_1).substring(from).contains(until)) {
                return;
            }
        }
        throw new AssertionError("'" + until + "' never came:\n" + Files.readString(log, ISO_8859_1));
    }

    /** A port of this host that nobody listens on now. */
    static int freePort() {
        try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return free.getLocalPort();
        } catch (IOException none) {
            throw new UncheckedIOException(none);
        }
    }

    /** Waits for a text in a file that another process writes. */
    static void await(Path log, String text) throws IOException, InterruptedException {
        for (long deadline = System.nanoTime() + LIMIT.toNanos(); System.nanoTime() < deadline; Thread.sleep(100)) {
            if (Files.exists(log) && Files.readString(log, ISO_8859_1).contains(text)) {
                return;
            }
        }
        throw new AssertionError("'" + text + "' never came:\n" + Files.readString(log, ISO_8859_1));
    }

    private ProcessBuilder builder(List<String> command) {
        Path directory = BUILD.resolve("test/work"); // holds no vm.env
        directory.toFile().mkdirs();
        ProcessBuilder builder = new ProcessBuilder(command).directory(directory.toFile());
        builder.environment().keySet().removeIf(name -> name.startsWith("VM_") || name.startsWith("DFLY_"));
        builder.environment().put("HOME", BUILD.resolve("test/home").toString()); // not the developer's, which may hold settings
        builder.environment().putAll(settings);
        return builder;
    }

    /** The QEMU processes that serve this VM_DIR, whoever started them: a test that leaves one behind has failed. */
    List<ProcessHandle> qemus() {
        try (Stream<ProcessHandle> all = ProcessHandle.allProcesses()) {
            return all.filter(process -> commandLine(process).matches("(?s).*qemu-system.*" + Pattern.quote(vmDir().toString()) + ".*")).toList();
        }
    }

    private static String commandLine(ProcessHandle process) {
        try {
            return Files.readString(Path.of("/proc/" + process.pid() + "/cmdline")).replace('\0', ' ');
        } catch (IOException gone) {
            return "";
        }
    }

    /** A copy of phases/ with one edit, until the next one. */
    static Path phasesWhere(String script, String from, String to) throws IOException {
        return phasesWhere(BUILD.resolve("test/phases edited"), script, from, to);
    }

    static Path phasesWhere(Path copy, String script, String from, String to) throws IOException {
        delete(copy);
        Files.createDirectories(copy);
        try (Stream<Path> scripts = Files.list(Path.of("phases"))) {
            for (Path phase : scripts.toList()) {
                Files.copy(phase, copy.resolve(phase.getFileName()), StandardCopyOption.COPY_ATTRIBUTES);
            }
        }
        String text = Files.readString(copy.resolve(script));
        assertTrue(text.contains(from), script + " does not hold: " + from);
        Files.writeString(copy.resolve(script), text.replace(from, to));
        return copy;
    }

    /** A directory that belongs to another user: as root one that is given away, else one of root's. */
    static Path foreignDirectory(Path scratch) throws IOException {
        if (!Files.getAttribute(scratch, "unix:uid").equals(0)) {
            return Path.of("/usr");
        }
        return Files.setAttribute(Files.createDirectory(scratch.resolve("foreign")), "unix:uid", 65534);
    }

    /** A directory of this user's that others can write to. */
    static Path openDirectory(Path directory, String mode) throws IOException {
        return Files.setPosixFilePermissions(Files.createDirectories(directory), PosixFilePermissions.fromString(mode));
    }

    /** A directory with all that is in it; nothing if there is none. */
    static void delete(Path tree) throws IOException {
        if (Files.exists(tree)) {
            try (Stream<Path> files = Files.walk(tree)) {
                for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                    Files.delete(file);
                }
            }
        }
    }
}
