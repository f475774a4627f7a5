///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Start, stop, snapshot and restore the DragonFlyBSD test VM
//JAVA 17+
//RUNTIME_OPTIONS -XX:TieredStopAtLevel=1 // starts faster (jbang: 0.76 s, 0.81 s without); C2 would not pay
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS org.apache.commons:commons-compress:1.28.0
//DEPS com.grack:nanojson:1.10
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec logs; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonWriter;
import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedInputStream;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.io.Reader;
import java.lang.ProcessBuilder.Redirect;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Method;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channel;
import java.nio.channels.Channels;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.channels.WritableByteChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFileAttributes;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.SecureRandom;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.apache.commons.compress.archivers.tar.TarArchiveEntry;
import org.apache.commons.compress.archivers.tar.TarArchiveOutputStream;
import org.apache.commons.compress.archivers.tar.TarConstants;
import org.apache.commons.compress.archivers.tar.TarUtils;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.IDefaultValueProvider;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Runs the VM whose disk VmAutoInstall made: start, stop, status, snapshots, clones, export, import, console, ssh.
 *
 * <p>A start, in order: takes the VM's lock; cleans up after a command that was killed; makes the working disk, an
 * overlay on the clean disk, if there is none; starts QEMU on a free port, with the RAM of the snapshot below if
 * nothing was written since; waits until ssh answers. The first start after an installation then takes the snapshot
 * "clean". Beside QEMU a small shell loop looks every 30 s whether {@code <name>.console.log} or QEMU's own log is
 * larger than 10 MB; if so, it keeps the end, as in {@code <name>.console.log.1}, and empties the log.
 *
 * <p>A snapshot puts an empty overlay on the working disk, and the VM works on that overlay from then on. So no disk is
 * copied. The RAM of a running guest goes to a file while the guest is paused, for a second or so; then the guest
 * resumes in the same QEMU. A restore starts a new QEMU with a fresh overlay and that RAM.
 *
 * <p>An export writes one flat disk, which needs no backing file, and the keys into one file; an import makes a VM from
 * it.
 *
 * <p>Reads in VM_DIR: {@code <name>-clean.qcow2}, {@code <name>.ssh/}, {@code accel.json}. Writes: {@code
 * <name>.qcow2}, a link that names the overlay at work in {@code <name>.disks/}; {@code <name>.snapshots/}, {@code
 * <name>.lock}, {@code <name>.pid}, {@code <name>.ssh/config}, {@code ssh_config}, sockets and logs as {@link VmFiles}
 * names them.
 */
@Command(name = "vm-ctl", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120,
        addMethodSubcommands = false, // commandLine() does it
        abbreviateSynopsis = true, parameterListHeading = "%n", descriptionHeading = "%n",
        optionListHeading = "%nOptions:%n", commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n",
        exitCodeListHeading = "%nExit codes:%n",
        description = {"Start, stop, snapshot and restore the DragonFlyBSD test VM", "",
            "The VM works on an overlay over the disk that vm-auto-install or import made. VM_DIR/NAME.qcow2 is a "
                + "link to that overlay. "
                + "The first that is set counts: option, environment, vm.env (KEY=VALUE lines) in the "
                + "working directory, ~/.go-synth/vm.env."},
        footer = {"  vm-ctl start", "  vm-ctl exec -- uname -a", "  vm-ctl snapshot before-upgrade",
            "  vm-ctl restore before-upgrade    # no disk is copied", "  VM_NAME=other vm-ctl status"},
        exitCodeList = {"0:done", "1:the job failed (disk full, a damaged file)",
            "2:wrong usage, or refused because --yes was missing",
            "3:the VM is not running; status: it is stopped or gone",
            "69:something needed is not available (QEMU, a disk, a port, the lock, ssh), or the guest is in trouble",
            "124:a time limit", "130, 143:interrupted", "N:ssh, exec: the exit code of the command in the guest"})
final class VmCtl {
    static final String QEMU = "qemu-system-x86_64";
    static final String CLEAN = "clean";
    /** Ctrl-] */
    private static final int DETACH_KEY = 0x1d;
    private static final String SNAPSHOT_NAME = "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}";
    /** The limit for commands of QEMU, qemu-img and ssh that take a moment; long, for a very busy machine. */
    private static final Duration SOON = Duration.ofSeconds(60);
    /** Called between the steps of an act that must survive a kill, with the step's name. Tests kill there. */
    static Consumer<String> onStep = step -> { };

    @Spec
    CommandSpec spec;

    private Settings settings;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm",
            converter = FileName.class, scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String nameOption;

    @Option(names = "-v", scope = ScopeType.INHERIT, defaultValue = "false",
            description = "Echo every external command.")
    static boolean verbose;

    /** Which VM a message is about, if a command acts on several; else empty. */
    private String messagePrefix = "";

    /** The VM at hand, and the parts that act on it. */
    VmFiles files;
    private Qemu qemu;
    private GuestSsh guestSsh;
    private Machine machine;
    private Snapshots snapshots;

    public static void main(String... args) {
        writeUtf8();
        exit("vm-ctl", commandLine(args).execute(args));
    }

    static CommandLine commandLine(String... args) {
        return commandLine(readSettings(System.getenv(), Path.of("")), args);
    }

    /**
     * The command line for these arguments. picocli takes 5 ms to read a subcommand's annotations and 1 ms to add it,
     * for all of them half the startup time: so only those that the arguments name are added. If they name none, all
     * are added with a name and a description, for --help and for the hint at a mistyped one; without arguments, fully.
     */
    static CommandLine commandLine(Settings settings, String... args) {
        VmCtl ctl = new VmCtl();
        ctl.settings = settings;
        CommandSpec root = CommandSpec.forAnnotatedObject(ctl);
        List<String> words = List.of(args);
        List<String> before = words.stream().takeWhile(word -> !isCommand(word)).toList();
        boolean named = before.size() < words.size() && (before.isEmpty() || before.get(0).startsWith("-"))
                && before.stream().noneMatch(word -> word.matches("--help|-[vV]*h[hvV]*")); // that is the help of all
        for (Method method : CommandLine.getCommandMethods(VmCtl.class, null)) {
            String name = method.getAnnotation(Command.class).name();
            if (!named || words.contains(name)) {
                CommandSpec command = named || args.length == 0 ? CommandSpec.forAnnotatedObject(method)
                        : CommandSpec.create();
                command.usageMessage().description(method.getAnnotation(Command.class).description());
                root.addSubcommand(name, command);
            }
        }
        CommandLine line = commandLine(root, settings);
        line.getSubcommands().forEach((name, command) -> // what follows the first word is the guest command's own
                command.setStopAtPositional(List.of("exec", "ssh").contains(name)));
        return line;
    }

    private static boolean isCommand(String word) {
        return CommandLine.getCommandMethods(VmCtl.class, null).stream()
                .anyMatch(method -> method.getAnnotation(Command.class).name().equals(word));
    }

    /** Options of every command that starts a VM. */
    static final class MachineOptions {
        @Option(names = "--memory", descriptionKey = "VM_MEMORY",
                converter = Size.class, paramLabel = "SIZE",
                description = "As 2G or 512M (VM_MEMORY; default: a quarter of the host's within 2G-8G).")
        String memory;

        @Option(names = "--cpus", descriptionKey = "VM_CPUS",
                converter = Cpus.class, paramLabel = "N",
                description = "Processors (VM_CPUS; default: half the host's within 2-4, emulated 1).")
        String cpus;

        @Option(names = "--cpu", descriptionKey = "VM_CPU", paramLabel = "MODEL", description = "QEMU's CPU model "
            + "(VM_CPU; default: kvm Broadwell-v4,+hypervisor,pmu=off, hvf host, tcg qemu64).")
        String cpu;

        @Option(names = "--accel", descriptionKey = "VM_ACCEL",
                converter = AccelName.class, defaultValue = "auto", paramLabel = "NAME",
                description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}: what vm-setup found to "
                        + "work).")
        String accel;

        @Option(names = "--qemu-args", descriptionKey = "VM_QEMU_ARGS", defaultValue = "", paramLabel = "ARGS",
                converter = Words.class,
                description = "Appended to QEMU's arguments, split like a shell does (VM_QEMU_ARGS; default: none).")
        String qemuArgs;

        @Option(names = "--disk-cache", descriptionKey = "VM_DISK_CACHE", defaultValue = "writeback",
                paramLabel = "MODE", converter = CacheMode.class,
                description = "writeback, none or unsafe (VM_DISK_CACHE; default: ${DEFAULT-VALUE}).")
        String cache;

        @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                converter = Port.class,
                description = "The host's port to the guest's sshd (VM_SSH_PORT; default: 2222 or the next free one).")
        String sshPort;

        @Option(names = "--net", descriptionKey = "VM_NET", paramLabel = "NET",
                converter = Network.class,
                description = "user: the guest reaches the internet and this machine; or offline: it reaches nothing, "
                        + "and only ssh and forwarded ports reach it (VM_NET; default: user, but a VM that was not "
                        + "stopped keeps what it has).")
        String net;

        @Option(names = "--forward", paramLabel = "HOST:GUEST",
                description = "Forward one more port of 127.0.0.1 to the "
            + "guest, as 8080:80 (repeatable; default: none, or what the running VM has).")
        List<String> forwards;

        @Option(names = "--setup-cmd", descriptionKey = "VM_SETUP_CMD", paramLabel = "CMD",
                description = "How to run vm-setup, "
            + "for the accelerator (VM_SETUP_CMD; default: VmSetup beside this script's jar, else VmSetup.java here "
            + "or above, outside the project).")
        String setupCommand;

        @Option(names = "--timeout", defaultValue = "15m", paramLabel = "TIME",
                converter = DurationConverter.class,
                description = "Give up on the guest after this long, as 90s, 5m or 1h30m (default: ${DEFAULT-VALUE}).")
        Duration timeout;

        @Option(names = "--cold", description = "Boot the disk; do not use a snapshot's RAM.")
        boolean cold;

        /** Refuses what this machine cannot give, before anything is looked up or stopped. */
        void check(CommandSpec command) {
            checkHardware(command, memory, cpus);
            Set<String> hostPorts = new HashSet<>(Arrays.asList(sshPort));
            for (String forward : forwards == null ? List.<String>of() : forwards) {
                require("--forward", forward, "(" + Port.PATTERN + "):(" + Port.PATTERN + ")",
                        "two ports such as 8080:80");
                String host = forward.split(":")[0];
                if (!hostPorts.add(host)) {
                    throw wrongUsage("--forward: port " + host + (host.equals(sshPort) ? " is the one for ssh"
                            : " is named twice"));
                }
            }
        }

        /** The options whose values differ from those of the running VM, as words of a command line. */
        List<String> missingIn(Running running) {
            List<String> now = running.hardware();
            List<String> arguments = split(qemuArgs);
            boolean same = now.subList(Math.max(0, now.size() - arguments.size()), now.size()).equals(arguments);
            String[][] options = {
                {"--memory", memory, running.json().getString("memory")},
                {"--cpus", cpus, running.json().getString("cpus")},
                {"--cpu", cpu, option(now, "-cpu")},
                {"--accel", accel.equals("auto") ? null : accel, running.accel()},
                {"--disk-cache", cache.equals("writeback") ? null : cache, running.cache()},
                {"--net", net, running.net()},
                {"--ssh-port", sshPort, "" + running.port()},
                {"--qemu-args", same ? null : qemuArgs, ""}};
            return Stream.of(options).filter(option -> option[1] != null && !option[1].equals(option[2]))
                    .flatMap(option -> Stream.of(option[0], option[1])).toList();
        }
    }

    /** The option of every command that stops a VM. */
    static final class ForceOption {
        @Option(names = "--force", description = "Do not ask the guest: what it has not written is lost.")
        boolean force;
    }

    @Command(name = "start",
            description = {"Start the VM and wait until ssh answers.", "",
                "The first start after an installation takes the snapshot clean, disk and RAM. If nothing was written "
                    + "since a snapshot, a start restores its RAM. It boots the disk instead if QEMU, its arguments or "
                    + "the hardware have changed, or if the guest does not answer. A paused guest resumes."},
            footer = {"  vm-ctl start", "  vm-ctl start --memory 4G --forward 8080:80",
                "  vm-ctl start --dry-run    # prints the commands that it would run"})
    void start(@Mixin MachineOptions options,
            @Option(names = "--no-wait", description = "Return as soon as QEMU runs; with restored RAM only after the "
                    + "clock is set.")
            boolean noWait,
            @Option(names = "--dry-run", description = "Print the commands, shell-quoted, and do nothing.")
            boolean dryRun)
            throws IOException {
        options.check(command());
        openExistingVm();
        Plan plan = plan(options, !noWait, dryRun);
        if (dryRun) {
            snapshots.startCommands(plan).forEach(command -> answer("%s", shellQuoted(command)));
            return;
        }
        locked("start", () -> {
            if (qemu.isRunning() && machine.resume(plan)) {
                say(files.name() + " runs already: " + machine.describe());
                machine.addForwards(plan.forwards());
                List<String> missing = options.missingIn(qemu.requireRunning());
                if (!missing.isEmpty()) {
                    say("it keeps the options that it was started with. To use the new ones: vm-ctl restart "
                            + shellQuoted(missing));
                }
            } else {
                snapshots.start(plan);
            }
        });
    }

    @Command(name = "stop",
            description = {"Shut the VM down: by ssh, else by the power button, else by QMP quit, else by SIGKILL.", "",
                "It prints which of them worked. After a panic it skips the first two. If QEMU does not answer, only "
                    + "--force ends it. The working disk is kept, and "
                    + "the next start uses it."},
            footer = {"  vm-ctl stop", "  vm-ctl stop --force"})
    void stop(@Mixin ForceOption how) throws IOException {
        openVm();
        if (isMissing()) {
            return;
        }
        locked("stop", () -> {
            machine.stop(how.force);
            Files.deleteIfExists(files.offlineMark());
            snapshots.cleanup().cleanUp();
        });
    }

    @Command(name = "restart",
            description = {"Stop the VM and start it again.", "",
                "It keeps the port, the forwards and the kind of network that it was started with."},
            footer = {"  vm-ctl restart", "  vm-ctl restart --memory 4G --cpus 2"})
    void restart(@Mixin MachineOptions options, @Mixin ForceOption how) throws IOException {
        options.check(command());
        openExistingVm();
        Plan plan = plan(options, true, false);
        locked("restart", () -> {
            qemu.requireStart(plan);
            machine.stop(how.force);
            snapshots.start(plan);
        });
    }

    @Command(name = "status",
            description = {"Show the VM's state, without waiting for the guest.", "",
                "The state is running, starting, paused, panicked (or the boot failed), hung (QEMU does not answer), "
                    + "stopped, or gone (QEMU ended by itself). With it come what the VM was started with, the size of "
                    + "its disk (as the guest sees it, and here), how many backing files that disk has, its "
                    + "snapshots, and which of them have RAM that can be used."},
            footer = {"  vm-ctl status --guest", "  vm-ctl status --json"})
    int status(@Option(names = "--json",
            description = "Print {name, state, reason, cloneOf, temporary, pid, port, accel, memory, cpus, "
                + "forwards, net, uptimeSeconds, diskBytes, diskFileBytes, depth, snapshots, usableRam, guest}.")
            boolean asJson,
            @Option(names = "--guest", description = "Ask the guest for its name, uptime and clock, too, within 10 s.")
            boolean guest)
            throws IOException {
        openExistingVm();
        Report report = machine.report();
        Optional<Snapshot> source = Snapshot.source(files);
        JsonObject answer = object("name", files.name(), "state", report.state(), "reason", report.reason(),
                "cloneOf", source.map(Snapshot::origin).orElse(null),
                "temporary", source.map(Snapshot::temporary).orElse(null));
        answer.putAll(report.details());
        answer.putAll(snapshots.details());
        if (guest && report.running() != null) {
            answer.put("guest", guestSsh.run(Duration.ofSeconds(10), "uname -sr; uptime; date -u").text().lines()
                    .toList());
        }
        if (asJson) {
            answer("%s", JsonWriter.string(answer));
        } else {
            answer.values().removeAll(Arrays.asList(null, List.of()));
            answer.forEach((key, value) -> answer("%-14s %s", key, value.toString().replaceAll("^\\[|]$", "")));
        }
        return report.exitCode();
    }

    @Command(name = "list",
            description = {"List all VMs in VM_DIR: name, state, port, and what it is a clone of.", "",
                "Temporary clones and snapshots whose lock file no process holds any more are deleted first."},
            footer = {"  vm-ctl list", "  vm-ctl list --vm-dir /var/tmp/vms"})
    void list() throws IOException {
        openVm();
        for (String name : vmNames(files.dir())) {
            VmCtl other = other(name);
            if (other.temporary().isLeft()) {
                attempt(other::say, Temporary.NOT_DELETED,
                        () -> other.locked("list", () -> { }));
            }
        }
        if (vmNames(files.dir()).isEmpty()) {
            say("there is no VM in " + files.dir() + ": vm-auto-install makes one");
        }
        for (String name : vmNames(files.dir())) {
            VmCtl other = other(name);
            Report report;
            try {
                report = other.machine.report();
            } catch (VmException damaged) {
                report = new Report("unknown", 69, damaged.getMessage(), null);
                other.say(damaged.getMessage());
            }
            String where = report.running() == null ? "" : "  port " + report.running().port();
            String clone = Snapshot.source(other.files).map(snapshot -> "  clone of " + snapshot.origin()
                    + (snapshot.temporary() == null ? "" : "  temporary")).orElse("");
            answer("%-20s %s%s%s", name, report.state(), where, clone);
        }
    }

    @Command(name = "snapshot",
            description = {"Take a snapshot of the VM: the disk of a stopped VM, disk and RAM of a running one.", "",
                "No disk is copied: the VM goes on with an overlay on what it had. A running guest has to answer ssh. "
                    + "It is paused while its RAM is written, then resumes. Replacing a snapshot asks on a terminal, "
                    + "and elsewhere needs --yes. Deleting one merges its overlay into the disk that builds on it."},
            footer = {"  vm-ctl snapshot before-upgrade",
                "  vm-ctl snapshot clean --yes    # from now on this is the clean state",
                "  vm-ctl snapshot --list", "  vm-ctl snapshot --delete before-upgrade"})
    void snapshot(@Parameters(arity = "0..1", paramLabel = "NAME",
            description = "The snapshot's name (default: clean).") String given,
            @Option(names = "--list", description = "List the snapshots: name, time, what is in it.") boolean list,
            @Option(names = "--delete", paramLabel = "NAME", description = "Delete a snapshot.") String delete,
            @Option(names = "--temporary", paramLabel = "FILE", description = Temporary.OPTION) Path lockFile,
            @Option(names = "--yes", description = "Replace a snapshot of this name without asking.") boolean yes)
            throws IOException {
        if (Stream.of(given != null, list, delete != null).filter(wanted -> wanted).count() > 1) {
            throw wrongUsage("snapshot takes a NAME, --list or --delete NAME: one of them");
        } else if (lockFile != null && (given == null || given.equals(CLEAN))) {
            throw wrongUsage("--temporary needs the NAME of a new snapshot, other than clean");
        }
        String name = given == null ? CLEAN : given;
        checkSnapshotName(delete == null ? name : delete);
        if (delete == null) {
            refuseCommandAsName(name);
        } else if (delete.equals(CLEAN)) {
            throw wrongUsage("snapshot clean cannot be deleted. vm-ctl snapshot clean --yes replaces it, vm-ctl "
                    + "destroy deletes the whole VM; both are refused while clones build on it");
        }
        openExistingVm();
        if (list) {
            for (Snapshot snapshot : Snapshot.all(files)) {
                answer("%-20s %.19s  %s%s", snapshot.name(), snapshot.json().getString("made", "?"),
                        snapshot.contents(), snapshot.temporary() == null ? "" : "  temporary");
            }
            Snapshot.damaged(files).forEach(bad -> answer("%-20s its record is damaged: %s", bad, files.record(bad)));
        } else if (delete != null) {
            locked("snapshot --delete", () -> snapshots.delete(delete));
        } else {
            if (snapshots.find(name).isPresent()) {
                confirm("replace snapshot " + name + " of " + files.name(), yes);
            }
            snapshots.requireDisk(); // before anything is made: an empty .snapshots would count as a VM
            JsonObject details = object("temporary", temporary().lockFile(lockFile));
            locked("snapshot", () -> {
                snapshots.take(name, details, Duration.ofMinutes(15));
                snapshots.cleanup().cleanUp();
            });
        }
    }

    @Command(name = "restore",
            description = {"Go back to a snapshot. The working disk is deleted without asking.", "",
                "If the snapshot has RAM, the guest runs from it, and its clock is set; if the RAM cannot be used, "
                    + "the disk is booted. A snapshot without RAM leaves the VM running or stopped, as it was. The "
                    + "snapshots stay. A running VM keeps the port, the forwards and the kind of network that it was "
                    + "started with."},
            footer = {"  vm-ctl restore", "  vm-ctl restore before-upgrade",
                "  vm-ctl restore --cold    # boot, do not use the RAM"})
    void restore(@Mixin MachineOptions options,
            @Parameters(arity = "0..1", paramLabel = "NAME", defaultValue = CLEAN,
                    description = "The snapshot (default: ${DEFAULT-VALUE}).") String name) throws IOException {
        checkSnapshotName(name);
        options.check(command());
        openExistingVm();
        Plan plan = plan(options, true, false);
        locked("restore", () -> snapshots.restore(name, plan));
    }

    @Command(name = "clone",
            description = {"Make VMs that begin as a snapshot of this one.", "",
                "A clone shares the snapshot's disk and RAM file, and has its own overlay, port and hostname, and the "
                    + "same keys. Its own snapshot clean is the snapshot that it came from. A clone can be "
                    + "snapshotted, but not cloned. While it exists, the snapshot that it builds on cannot be replaced "
                    + "or deleted."},
            footer = {"  vm-ctl clone one two", "  vm-ctl clone --snapshot before-upgrade --start trial",
                "  vm-ctl clone --start one    # then: VM_NAME=one vm-ctl ssh"})
    int clone(@Mixin MachineOptions options,
            @Parameters(arity = "1..*", paramLabel = "NAME", converter = FileName.class,
                    description = "The new VMs' names.") List<String> names,
            @Option(names = "--snapshot", defaultValue = CLEAN, paramLabel = "NAME",
                    description = "The snapshot that they begin as (default: ${DEFAULT-VALUE}).") String snapshot,
            @Option(names = "--temporary", paramLabel = "FILE", description = Temporary.OPTION) Path lockFile,
            @Option(names = "--start", description = "Start them, all at once.") boolean start) throws IOException {
        checkSnapshotName(snapshot);
        if (Set.copyOf(names).size() < names.size()) {
            throw wrongUsage("a clone's name is given twice: " + String.join(" ", names));
        }
        options.check(command());
        for (String option : List.of("--forward", "--ssh-port")) {
            if (command().commandLine().getParseResult().hasMatchedOption(option)) {
                throw wrongUsage(option + " does not go with clone, as each clone has ports of its own: give it to "
                        + "vm-ctl restart, with VM_NAME set to the clone's name");
            }
        }
        openExistingVm();
        String lock = temporary().lockFile(lockFile);
        Plan plan = start ? plan(options, true, false).elsewhere() : null;
        locked("clone", () -> snapshots.clones().make(snapshots.require(snapshot), names, lock));
        say("made " + String.join(", ", names) + " of " + files.name() + "/" + snapshot + (start ? ""
                : "; to start " + (names.size() == 1 ? "it" : "one of them") + ": VM_NAME=" + names.get(0)
                + " vm-ctl start"));
        return start ? startClones(names, plan) : 0;
    }

    /** Starts VMs at the same time, each under its own lock; the exit code is that of the first one that failed. */
    private int startClones(List<String> names, Plan plan) {
        List<CompletableFuture<Integer>> starts = names.stream().map(name -> CompletableFuture.supplyAsync(
                () -> startClone(name, plan), task -> new Thread(task, "start " + name).start())).toList();
        return starts.stream().map(CompletableFuture::join).reduce(0, (first, next) -> first == 0 ? next : first);
    }

    private int startClone(String name, Plan plan) {
        VmCtl clone = other(name);
        try {
            clone.locked("start", () -> clone.snapshots.start(plan));
            return 0;
        } catch (IOException | VmException failed) {
            clone.say(reason(failed));
            return failed instanceof VmException expected ? expected.exitCode : 69;
        }
    }

    @Command(name = "export",
            description = {"Write a snapshot of a VM, and its keys, into one file, from which import makes a VM.",
                "", "Whoever has the file can log in to VMs made from it. The disk is flattened, so that it needs no "
                    + "backing file, and compressed. Without --with-ram, it is the disk that restore --cold would "
                    + "boot. The file is a tar file that begins with a manifest: versions, hardware, size and SHA-256 "
                    + "of each part. While it is written, its directory needs room for "
                    + "up to twice its size. The VM may run."},
            footer = {"  vm-ctl export ~/dfly.image", "  vm-ctl export ~/built.image --snapshot built --with-ram",
                "  vm-ctl export --list ~/dfly.image"})
    void exportImage(@Parameters(paramLabel = "FILE", description = "The file; one that is there is replaced.")
            Path file,
            @Option(names = "--snapshot", paramLabel = "NAME", description = "The snapshot to export (default: clean).")
            String given,
            @Option(names = "--with-ram", description = "Export the snapshot's RAM, too.") boolean withRam,
            @Option(names = "--list", description = "Only print the manifest of a file that is there, as JSON; "
                    + "what follows the manifest is not verified.") boolean list) throws IOException {
        if (list && (given != null || withRam)) {
            throw wrongUsage("export --list FILE takes no other option");
        } else if (list) {
            try (ImageFile image = new ImageFile(file)) {
                answer("%s", printable(JsonWriter.indent("  ").string().value(image.manifest.json()).done()));
            }
            return;
        }
        String name = given == null ? CLEAN : given;
        checkSnapshotName(name);
        Path target = writable("export", file);
        openExistingVm();
        if (target.getParent().toRealPath().startsWith(files.dir())) {
            throw wrongUsage("export: " + file + " lies in VM_DIR, where it could take the place of a VM's own file: "
                    + "name one in another directory");
        }
        snapshots.requireDisk();
        locked("export", () -> new ImageExport(files, this::say).write(snapshots.require(name), withRam, target));
    }

    @Command(name = "import",
            description = {"Make a VM from a file that export has written.", "",
                "Nothing is changed before the whole file is verified. Its checksums detect damage; they do not prove "
                    + "who made the file. Use --with-ram only if you trust who made it. If QEMU or the hardware are "
                    + "not those of the export, the first start boots the disk, and says why. Replacing a VM asks on "
                    + "a terminal, and elsewhere needs --yes.", "",
                "The exit code is 1 if the file is damaged or was changed. It is 69 if export did not write the file, "
                    + "if a newer vm-ctl did, or if its disk names other files or cannot be used."},
            footer = {"  vm-ctl import ~/dfly.image", "  vm-ctl import ~/built.image --vm-name built --with-ram"})
    void importImage(@Parameters(paramLabel = "FILE", description = "The file.") Path file,
            @Option(names = "--with-ram", description = "Import the RAM, too.") boolean withRam,
            @Option(names = "--yes", description = "Replace a VM of this name without asking.") boolean yes)
            throws IOException {
        try (ImageFile image = new ImageFile(file)) {
            if (withRam && !image.manifest.hasRam()) {
                throw unavailable(file + " holds no RAM: import it without --with-ram");
            }
            openVm();
            locked("import", () -> {
                try {
                    confirmReplacing(yes);
                    new ImageImport(files, this::say).receive(image, withRam);
                    guestSsh.writeIncludes();
                } finally {
                    if (!exists()) {
                        Files.deleteIfExists(files.file(".lock"));
                    }
                }
            });
        }
    }

    /** Asks before an import replaces a VM. One that runs, or that clones build on, is not replaced. */
    private void confirmReplacing(boolean yes) throws IOException {
        if (qemu.isRunning()) {
            throw unavailable("VM " + files.name() + " is running; stop it first: vm-ctl stop");
        } else if (exists()) {
            snapshots.clones().refuseIfCloned(null, "replace " + files.name());
            confirm("replace VM " + files.name() + " and delete its disks and snapshots", yes);
        }
    }

    @Command(name = "console",
            description = {"Attach to the guest's serial console; Ctrl-] detaches.", "",
                "It works when ssh does not. What the guest prints is also in VM_DIR/NAME.console.log, whether one is "
                    + "attached or not."},
            footer = {"  vm-ctl console", "  vm-ctl console --log"})
    void console(@Option(names = "--log",
            description = "Print the console's log from its beginning, and follow it until the VM stops.")
            boolean log)
            throws IOException {
        if (log) {
            openExistingVm();
            followLog();
            return;
        }
        openRunningVm();
        if (isTerminal(0)) {
            say("attached to the console of " + files.name() + "; Ctrl-] detaches");
        }
        try (RawTerminal terminal = RawTerminal.enter(); Console console = new Console(files.socket(".console"))) {
            console.attach(terminal.shell() == null ? -1 : DETACH_KEY);
        }
    }

    @Command(name = "screenshot", description = "Write what the guest's screen shows, as PNG.",
            footer = "  vm-ctl screenshot now.png")
    void screenshot(@Parameters(paramLabel = "FILE.png",
            description = "Where to; a file that is there is replaced.") Path file)
            throws IOException {
        require("screenshot", file.toString(), "(?s).*\\.png", "a file name that ends in .png");
        Path picture = writable("screenshot", file);
        openRunningVm();
        qemu.stateUnlessEnded(); // 69 soon, not after a minute, if QEMU does not answer
        Path dump = Files.createTempFile(files.dir(), "." + files.name() + "-", ".png"); // QEMU has another umask
        try {
            qemu.qmp("screendump", "filename", dump.toString(), "format", "png");
            try (OutputStream out = Files.newOutputStream(picture)) {
                Files.copy(dump, out);
            }
        } finally {
            Files.delete(dump);
        }
    }

    @Command(name = "ssh", description = {"Open a shell in the guest, as root.", "",
                "It runs ssh -F VM_DIR/ssh_config NAME. scp, rsync and other tools can use that file, too."},
            footer = {"  vm-ctl ssh", "  vm-ctl ssh -- -t top", "  vm-ctl ssh -- -L 8080:127.0.0.1:80"})
    int ssh(@Parameters(arity = "0..*", paramLabel = "WORD",
            description = "A command to run; after -- also options for ssh "
                    + "(default: a shell on this terminal).") List<String> words) throws IOException {
        openVmForSsh();
        String[] more = words == null ? new String[0] : words.toArray(String[]::new);
        return sshResult(interactive(guestSsh.command(more), null, null));
    }

    @Command(name = "exec",
            description = {"Run a command in the guest, as root, with this command's input; its exit code is this "
                    + "command's.", "",
                "Several words are a command and its arguments, which reach it as they are. A single word is a line "
                    + "for the guest's sh. There is no terminal: vm-ctl ssh -- -t COMMAND gives one."},
            footer = {"  vm-ctl exec uname -a", "  vm-ctl exec 'cd /root/project && gmake 2>&1 | tail'",
                "  vm-ctl exec --env GOFLAGS=-v --timeout 5m gmake -C /root/project test"})
    int exec(@Parameters(arity = "1..*", paramLabel = "WORD",
            description = "The command and its arguments, or one line for sh. What follows its first word is its own.")
            List<String> words,
            @Option(names = "--env", paramLabel = "K=V",
                    description = "An environment variable for the guest's command (repeatable).")
            List<String> environment,
            @Option(names = "--timeout", paramLabel = "TIME",
                    converter = DurationConverter.class, description = "Kill "
                    + "it with its process group after this long, as 90s, 5m or 1h30m (default: none).") Duration limit)
            throws IOException {
        if (String.join("", words).isBlank()) {
            throw wrongUsage("exec: the command is empty");
        }
        List<String> variables = environment == null ? List.of() : environment;
        variables.forEach(variable -> require("--env", variable, "(?s)[A-Za-z_]\\w*=.*", "a variable such as K=V"));
        openVmForSsh();
        long started = System.nanoTime();
        String mark = "vm-ctl-exec-" + randomWord();
        String command = GuestSsh.remoteCommand(words, variables, limit, mark);
        // the guest kills it, if it can
        int code = interactive(guestSsh.command(command), limit == null ? null : limit.plusSeconds(15), mark);
        if (code == 255 && limit != null && System.nanoTime() - started >= limit.toNanos()) {
            throw new VmException(124, "the command was killed after " + limit.toSeconds() + " s (--timeout)");
        }
        return sshResult(code);
    }

    @Command(name = "destroy",
            description = {"Delete the VM: disks, snapshots, keys, logs. The installer ISO stays.", "",
                "It asks on a terminal, and elsewhere needs --yes. A running VM is killed. Other VMs in VM_DIR are "
                    + "not touched. Delete the clones of a VM first."},
            footer = {"  vm-ctl destroy", "  vm-ctl destroy --vm-name by-hand --yes"})
    void destroy(@Option(names = "--yes", description = "Do not ask.") boolean yes) throws IOException {
        openVm();
        if (isMissing()) {
            return;
        }
        confirm("destroy " + files.name() + " with all its disks and snapshots", yes);
        locked("destroy", () -> {
            snapshots.clones().refuseIfCloned(null, "destroy " + files.name());
            machine.destroy();
            guestSsh.writeIncludes();
        });
    }

    // What the commands share.

    /** What may fail with a file or with QEMU. */
    interface Step {
        void run() throws IOException;
    }

    /** Changes the VM's state while nobody else does, after cleaning up what a killed command left. */
    private void locked(String command, Step work) throws IOException {
        try (FileChannel held = lock(privateDirectory(files.dir()).resolve(files.name() + ".lock"), "vm-ctl "
                + command)) {
            snapshots.cleanup().recover(List.of("start", "stop", "restart", "restore", "destroy").contains(command));
            temporary().deleteLeft();
            work.run();
            held.truncate(0);
        } catch (ClosedByInterruptException interrupted) {
            throw interrupted();
        } catch (IOException failed) {
            if (reason(failed).contains("No space left")) {
                throw new VmException(1, noSpace(files.dir()) + " (" + reason(failed)
                        + "): free some, as with vm-ctl snapshot --delete NAME");
            }
            throw failed;
        }
    }

    /**
     * The VM that the options name. A symbolic link to VM_DIR is the same directory: locks and sockets go by its real
     * path.
     */
    private void openVm() throws IOException {
        open(new VmFiles(vmDirectory(realPath(userPath(dirOption))), nameOption));
    }

    // shared:realpath
    /** The real path; its last parts need not exist yet. */
    private static Path realPath(Path path) throws IOException {
        return Files.exists(path) ? path.toRealPath() : realPath(path.getParent()).resolve(path.getFileName());
    }
    // end shared:realpath

    /** The same, and 69 at once if there is no such VM. */
    private void openExistingVm() throws IOException {
        openVm();
        if (!exists()) {
            throw notRunning(files.dir(), files.name());
        } else if (Files.exists(files.file(".import"))) {
            locked("import", () -> { }); // recover() completes it
        }
    }

    /** The same, and 3 if it does not run. */
    private void openRunningVm() throws IOException {
        openVm();
        if (!qemu.isRunning()) {
            throw notRunning(files.dir(), files.name());
        }
    }

    /** The same, and 69 if its guest is paused: ssh would wait for minutes. */
    private void openVmForSsh() throws IOException {
        openRunningVm();
        machine.refuseIfPaused();
    }

    /** Whether there is a VM of this name. */
    private boolean exists() {
        return vmNames(files.dir()).contains(files.name());
    }

    /** Whether there is nothing to stop or to destroy; says so. */
    private boolean isMissing() {
        boolean missing = !exists();
        if (missing) {
            say(notRunning(files.dir(), files.name()).getMessage());
        }
        return missing;
    }

    private void open(VmFiles vmFiles) {
        files = vmFiles;
        machine = Machine.of(files, this::say);
        qemu = machine.qemu();
        guestSsh = machine.ssh();
        snapshots = new Snapshots(files, machine, qemu, guestSsh, this::say);
    }

    private Temporary temporary() {
        return new Temporary(files, snapshots, this::say);
    }

    /** Another VM of the same directory. */
    private VmCtl other(String name) {
        VmCtl other = new VmCtl();
        other.spec = spec;
        other.messagePrefix = name + ": ";
        other.open(files.other(name));
        return other;
    }

    /**
     * What the options say, checked. Port, forwards and network that they do not name are those of the running VM. An
     * offline VM stays offline until vm-ctl stop, even if the guest ends QEMU, because NAME.offline stays.
     */
    private Plan plan(MachineOptions options, boolean waits, boolean dryRun) throws IOException {
        long mebibytes = ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
                .getTotalMemorySize() >> 20;
        String memory = options.memory == null ? Math.max(2048, Math.min(8192, mebibytes / 4)) + "M" : options.memory;
        Running before = qemu.running().orElse(null);
        List<String> forwards = options.forwards != null ? options.forwards
                : before == null ? List.of() : before.forwards();
        boolean staysOffline = Files.exists(files.offlineMark()) || before != null && before.net().equals("offline");
        String net = options.net != null ? options.net : staysOffline ? "offline" : "user";
        int port = options.sshPort != null ? Integer.parseInt(options.sshPort) : before == null ? 0 : before.port();
        if (forwards.stream().anyMatch(forward -> Ports.ofHost(forward) == port)) {
            throw wrongUsage("--forward: port " + port + " is the one for ssh");
        }
        snapshots.requireDisk();
        String version = dryRun ? recordedVersion()
                : run(SOON, List.of(QEMU, "--version")).outputUTF8().lines().findFirst().orElse("");
        Path project = userPath(settings.values.getOrDefault("VM_PROJECT", ""));
        List<String> setup = dryRun ? null : sibling(options.setupCommand, "VmSetup", userPath(""), project);
        Accelerator chosen = accelerator(options.accel, files.dir(), version, setup, Path.of("/dev/kvm"));
        String accelerator = chosen.name();
        int cpus = processors(options.cpus, accelerator);
        String cpu = options.cpu != null ? options.cpu : switch (accelerator) {
            case "kvm" -> "Broadwell-v4,+hypervisor,pmu=off"; // never +invtsc: QEMU then refuses to save the RAM
            case "hvf" -> "host";
            default -> "qemu64";
        };
        List<String> hardware = Stream.of(List.of(version), Qemu.hardware(accelerator, cpu, memory, cpus),
                split(options.qemuArgs)).flatMap(List::stream).toList();
        boolean fixed = options.sshPort != null || before != null && before.json().getBoolean("portIsFixed");
        return new Plan(hardware, chosen.reason(), options.cache, port, fixed, forwards, net, options.timeout, waits,
                options.cold);
    }

    /** QEMU's version when the accelerator was measured; a dry run does not ask QEMU. */
    private String recordedVersion() {
        try {
            return json(Files.readString(files.dir().resolve("accel.json"))).getString("qemu", "");
        } catch (IOException none) {
            return "";
        }
    }

    /**
     * Exit code 255 comes from ssh or from the guest's command; a second ssh call tells which. If QEMU has ended, that
     * call may reach a clone, which has the same keys, on the same port.
     */
    private int sshResult(int code) throws IOException {
        if (code == 255 && (qemu.stateUnlessEnded().isEmpty() || !guestSsh.run(SOON, "true").ok())) {
            throw unavailable("the guest does not answer ssh: " + machine.whySilent());
        }
        return code;
    }

    /** Runs a program on this terminal. An interrupt also ends the guest's command that has this mark. */
    private int interactive(List<String> command, Duration limit, String mark) throws IOException {
        if (verbose) {
            say("+ " + shellQuoted(command));
        }
        ProcessBuilder builder = new ProcessBuilder(command).inheritIO()
                .redirectInput(isStdinClosed() ? Redirect.from(new File("/dev/null")) : Redirect.INHERIT);
        Process process;
        try { // ssh ignores write errors on stdout, so its output is copied here unless stdout is a terminal
            process = (isTerminal(1) ? builder : builder.redirectOutput(Redirect.PIPE)).start();
        } catch (IOException refused) {
            // The message names the program and says whether it is missing or its command line too long.
            throw unavailable(refused.getMessage());
        }
        CountDownLatch interrupted = new CountDownLatch(1);
        Thread hook = new Thread(() -> {
            interrupted.countDown();
            if (mark != null) {
                guestSsh.kill(mark);
            }
            process.destroy();
        });
        Runtime.getRuntime().addShutdownHook(hook);
        Thread output = new Thread(() -> passOutput(process));
        output.start();
        try {
            if (process.waitFor(limit == null ? Long.MAX_VALUE : limit.toMillis(), TimeUnit.MILLISECONDS)) {
                output.join();
                int code = process.exitValue();
                boolean wasCut = code > 127; // perhaps: by a signal, a lost connection, or as nobody reads on
                // Ctrl-C also reaches ssh, which may end before our shutdown hook runs: wait for the hook a moment.
                if (interrupted.await(wasCut ? 500 : 0, TimeUnit.MILLISECONDS)) {
                    throw interrupted();
                } else if (!wasCut) {
                    Runtime.getRuntime().removeShutdownHook(hook); // System.exit would run it, too
                }
                return code;
            }
            throw new VmException(124, "the guest did not kill the command after " + limit.toSeconds() + " s: "
                    + machine.whySilent());
        } catch (InterruptedException | IllegalStateException ended) { // the latter: the hook runs already
            throw interrupted();
        } finally {
            process.destroy();
        }
    }

    /** Copies a program's output to stdout, until its end or until stdout takes no more. */
    private static void passOutput(Process process) {
        try (InputStream output = process.getInputStream()) {
            byte[] buffer = new byte[1 << 16];
            for (int n = output.read(buffer); n >= 0 && !System.out.checkError(); n = output.read(buffer)) {
                System.out.write(buffer, 0, n);
                System.out.flush();
            }
        } catch (IOException ended) {
            // by the time limit
        }
        if (System.out.checkError()) {
            process.destroy();
        }
    }

    private void followLog() throws IOException {
        Path log = files.consoleLog();
        if (!Files.exists(log)) {
            throw new VmException(3, files.name() + " has not run yet; start it: vm-ctl start");
        }
        try (FileChannel channel = FileChannel.open(log)) {
            for (boolean runs = true; runs; pause(200)) {
                runs = qemu.isRunning() && canAnswer();
                channel.position(channel.position() <= channel.size() ? channel.position() : 0); // else it was cut
                byte[] part;
                do {
                    part = Channels.newInputStream(channel).readNBytes(1 << 20);
                    spec.commandLine().getOut().print(printable(new String(part, UTF_8)));
                } while (part.length == 1 << 20);
                spec.commandLine().getOut().flush();
            }
        }
    }

    /** {@code snapshot list} is a typo for {@code snapshot --list}, so names of options and commands are refused. */
    private void refuseCommandAsName(String name) {
        String meant = command().findOption("--" + name) != null ? "snapshot --" + name : isCommand(name) ? name : null;
        if (meant != null) {
            throw wrongUsage("'" + name + "' cannot be a snapshot's name; did you mean vm-ctl " + meant + "?");
        }
    }

    /** The command that was typed. */
    private CommandSpec command() {
        return spec.commandLine().getParseResult().subcommand().commandSpec();
    }

    private static void checkSnapshotName(String name) {
        require("the snapshot's name", name, SNAPSHOT_NAME,
                "a name of at most 64 letters, digits, '.', '_' and '-', without '.' or '-' in front");
    }

    /** A file that the user named, to be written; 2 unless it can be. */
    private static Path writable(String command, Path file) {
        Path directory = file.toAbsolutePath().getParent();
        if (Files.isDirectory(file) || !Files.isDirectory(directory) || !Files.isWritable(directory)) {
            throw wrongUsage(command + ": " + file
                    + " cannot be written: name a file in a directory that exists and that you can write to");
        }
        return written(file);
    }

    /** Refuses a value that does not look like one, by the name of its setting. */
    private static void require(String setting, String value, String pattern, String expected) {
        if (!value.matches(pattern)) {
            throw wrongUsage(setting + ": '" + value + "' is not " + expected);
        }
    }

    private void say(String message) {
        spec.commandLine().getErr().println(Progress.clearLine() + messagePrefix + printable(message));
    }

    private void answer(String format, Object... values) {
        spec.commandLine().getOut().printf(format + "%n", values);
    }

    // Values.

    /**
     * What to start. The hardware is QEMU's version, then the arguments that make the machine: RAM fits only the same
     * ones. Port 0 means any port. Another port is required if it is fixed, else it is tried first.
     */
    record Plan(List<String> hardware, String accelReason, String cache, int port, boolean portIsFixed,
            List<String> forwards, String net, Duration timeout, boolean waits, boolean cold) {
        String accel() {
            return option(hardware, "-accel").split(",")[0];
        }

        /** The same for another VM, which has ports of its own. */
        Plan elsewhere() {
            return new Plan(hardware, accelReason, cache, 0, false, List.of(), net, timeout, waits, cold);
        }
    }

    /**
     * The change that a command is making to a running VM. If the command is killed, the next one reads it and
     * recovers.
     */
    enum Act { NONE, RESTORING, SAVING, STOPPING }

    /** The record of a running VM, {@code <name>.pid}; a record with wrong members is refused. */
    record Running(JsonObject json) {
        Running {
            if (json.getLong("pid") < 1 || json.getLong("consoleAt") < 0 || json.getInt("port") < 1
                    || json.getInt("port") > 65535) {
                throw new IllegalArgumentException("out of range");
            }
            strings(json, "forwards");
            strings(json, "hardware");
            startOf(json);
            Act.valueOf(json.getString("act", "NONE"));
        }

        private static Instant startOf(JsonObject json) {
            return Instant.parse(json.getString("started", Instant.EPOCH.toString()));
        }

        Duration uptime() {
            return Duration.between(startOf(json), Instant.now());
        }

        long pid() {
            return json.getLong("pid");
        }

        int port() {
            return json.getInt("port");
        }

        String accel() {
            return json.getString("accel", "?");
        }

        List<String> forwards() {
            return strings(json, "forwards");
        }

        String net() {
            return json.getString("net", "user");
        }

        List<String> hardware() {
            return strings(json, "hardware");
        }

        String cache() {
            return json.getString("cache", "writeback");
        }

        /** The size of the console's log at the start of this QEMU. */
        long consoleAt() {
            return json.getLong("consoleAt");
        }

        /** Whether ssh has answered. */
        boolean isReady() {
            return json.getBoolean("ready");
        }

        Act act() {
            return Act.valueOf(json.getString("act", "NONE"));
        }

        Running with(String member, Object value) {
            JsonObject changed = new JsonObject(json);
            changed.put(member, value);
            return new Running(changed);
        }

        Running during(Act act) {
            return with("act", act.name());
        }
    }

    /** A snapshot: a disk that does not change any more and, unless the VM was stopped, the RAM that belongs to it. */
    record Snapshot(String name, Path disk, Path ram, JsonObject json) {
        /** A VM's snapshot by its name, if its record can be read. */
        static Optional<Snapshot> find(VmFiles files, String name) {
            try {
                JsonObject json = VmCtl.json(Files.readString(files.record(name)));
                Path ram = json.has("ram") ? files.inside(json.getString("ram")) : null;
                strings(json, "hardware"); // fails if it is no list of words
                if (json.get("temporary") != null) {
                    files.inside(json.getString("temporary"));
                }
                return Optional.of(new Snapshot(name, files.inside(json.getString("disk")), ram, json));
            } catch (IOException | RuntimeException none) {
                return Optional.empty();
            }
        }

        /** Those that have a record which can be read. */
        static List<Snapshot> all(VmFiles files) {
            return names(files).flatMap(name -> find(files, name).stream()).toList();
        }

        /** The names of snapshots whose record cannot be read; while there is one, no disk is deleted or merged. */
        static List<String> damaged(VmFiles files) {
            return names(files).filter(name -> Files.exists(files.record(name)) && find(files, name).isEmpty())
                    .toList();
        }

        private static Stream<String> names(VmFiles files) {
            return entries(files.file(".snapshots")).stream().map(directory -> directory.getFileName().toString());
        }

        /** A clone's snapshot of the VM that it comes from. */
        static Optional<Snapshot> source(VmFiles files) {
            return find(files, CLEAN).filter(snapshot -> snapshot.cloneOf() != null);
        }

        /** Whether the first start after the installation took it, and the clean disk still exists. */
        boolean isAsInstalled(VmFiles files) {
            return json.getBoolean("automatic") && Files.exists(files.clean());
        }

        /** The VM that this clone's snapshot comes from; null for a snapshot of the VM's own. */
        String cloneOf() {
            return json.getString("cloneOf");
        }

        String origin() {
            return cloneOf() + "/" + json.getString("cloneSnapshot");
        }

        /** Relative to VM_DIR: the file without whose lock this is deleted. Null if this is not temporary. */
        String temporary() {
            return json.getString("temporary");
        }

        /**
         * Why the RAM cannot be used whatever the hardware, as far as can be told without reading it; null if it can.
         */
        String damage() throws IOException {
            if (!Files.exists(ram)) {
                return "its file is missing: " + ram;
            } else if (Files.size(ram) != json.getLong("ramBytes")) {
                return "its file has " + Files.size(ram) + " bytes instead of " + json.getLong("ramBytes");
            }
            return json.getString("unusable");
        }

        /** Why the RAM cannot be used on this hardware; null if it can, unless its checksum is wrong. */
        String ramProblem(List<String> now) throws IOException {
            if (damage() != null) {
                return damage();
            }
            List<String> then = strings(json, "hardware");
            for (int i = 0; i < Math.min(then.size(), now.size()); i++) {
                if (!then.get(i).equals(now.get(i)) && !now.get(i).isEmpty()) { // a dry run does not ask QEMU's version
                    String option = i > 0 && then.get(i - 1).startsWith("-") ? then.get(i - 1) + " " : "";
                    return "it was made with " + option + then.get(i) + ", now it is " + now.get(i);
                }
            }
            return then.size() == now.size() ? null : "it was made with other QEMU arguments";
        }

        /** For a list: what is in it. */
        String contents() throws IOException {
            return ram == null ? "disk" : damage() == null ? "disk and RAM" : "disk; its RAM is unusable: " + damage();
        }
    }

    /** A VM's state, the exit code of its status, why it is so (or null), and its record (null if it does not run). */
    record Report(String state, int exitCode, String reason, Running running) {
        JsonObject details() {
            JsonObject record = running == null ? object() : running.json();
            JsonObject details = new JsonObject();
            for (String member : List.of("pid", "port", "accel", "memory", "cpus", "forwards", "net")) {
                details.put(member, record.get(member));
            }
            details.put("uptimeSeconds", running == null ? null : running.uptime().toSeconds());
            return details;
        }
    }

    /** Steps to take back, the last one first, if an act fails or its command is interrupted (Ctrl-C, TERM). */
    static final class Undo implements AutoCloseable {
        private final Deque<Step> steps = new ArrayDeque<>();
        private final Consumer<String> say;
        private final CountDownLatch closed = new CountDownLatch(1);
        private final Thread hook;
        private boolean closing;
        private volatile boolean kept;

        Undo(Consumer<String> say) {
            this.say = say;
            Thread act = Thread.currentThread();
            hook = new Thread(() -> {
                synchronized (this) {
                    if (!closing) {
                        act.interrupt(); // its waits end with an exception, so that it comes to close()
                    }
                }
                try {
                    if (closed.await(SOON.toSeconds(), TimeUnit.SECONDS)) {
                        say.accept("interrupted" + (kept ? "" : ": all changes were undone"));
                    }
                } catch (InterruptedException impatient) {
                    // then the next command cleans up
                }
            });
            Runtime.getRuntime().addShutdownHook(hook);
        }

        void add(Step step) {
            steps.push(step);
        }

        /** From here on nothing is taken back. */
        void clear() {
            kept = true;
            steps.clear();
        }

        @Override
        public void close() {
            synchronized (this) {
                closing = true;
            }
            Thread.interrupted(); // from here on, undoing may wait
            Set<String> failures = new LinkedHashSet<>(); // if QEMU has ended, each step fails with the same words
            for (Step step : steps) {
                try {
                    step.run();
                } catch (IOException | VmException failed) {
                    failures.add(reason(failed));
                }
            }
            kept |= !failures.isEmpty(); // then not all is undone
            failures.forEach(failure -> say.accept("a step could not be undone; the next command tries again: "
                    + failure));
            closed.countDown();
            try {
                Runtime.getRuntime().removeShutdownHook(hook);
            } catch (IllegalStateException ending) {
                // the hook runs already
            }
        }
    }

    // The terminal.

    /**
     * Tells that a long act goes on, and how far it is: on a terminal in a line that changes each second, elsewhere in
     * a line each 30 s.
     */
    static final class Progress implements AutoCloseable {
        /** Seconds between the lines where there is no terminal. Tests shorten it. */
        static int interval = 30;
        /** The instance that owns the terminal's line; parallel starts share one terminal. */
        private static Progress shown;

        private final String act;
        private final Consumer<String> say;
        private final long started = System.nanoTime();
        private final CountDownLatch closed = new CountDownLatch(1);
        private volatile String stage = "";

        Progress(String act, Consumer<String> say) {
            this.act = act;
            this.say = say;
            Thread ticker = new Thread(this::tick);
            ticker.setDaemon(true);
            ticker.start();
        }

        void stage(String now) {
            stage = now;
        }

        private void tick() {
            try {
                boolean terminal = false;
                for (int second = 1; !closed.await(1, TimeUnit.SECONDS); second++) {
                    if (second == 1) { // asking starts a program, and most acts are over by now
                        terminal = isTerminal(2) && !"dumb".equals(System.getenv("TERM"));
                    }
                    if (terminal) {
                        show();
                    } else if (second % interval == 0) {
                        say.accept(this.toString());
                    }
                }
            } catch (InterruptedException ending) {
                // nothing more to tell
            }
        }

        private void show() {
            synchronized (Progress.class) {
                if (closed.getCount() > 0 && (shown == null || shown == this)) {
                    shown = this;
                    System.err.print("\r\u001b[K" + this);
                    System.err.flush();
                }
            }
        }

        /** What removes the line from the terminal, before something else is printed there. */
        static String clearLine() {
            synchronized (Progress.class) {
                return shown == null ? "" : "\r\u001b[K";
            }
        }

        @Override
        public String toString() {
            long seconds = Duration.ofNanos(System.nanoTime() - started).toSeconds();
            return act + ": " + stage + ", " + seconds + " s";
        }

        @Override
        public void close() {
            synchronized (Progress.class) {
                closed.countDown();
                if (shown == this) {
                    System.err.print(clearLine());
                    System.err.flush();
                    shown = null;
                }
            }
        }
    }

    /** The guest's serial console on this command's stdin and stdout. */
    static final class Console implements AutoCloseable {
        /** After the end of piped input, wait until the guest has printed nothing for this long. */
        private static final Duration SILENCE = Duration.ofSeconds(2);

        private final SocketChannel guest;
        private volatile long lastOutput = System.nanoTime();

        Console(Path socket) throws IOException {
            guest = SocketChannel.open(UnixDomainSocketAddress.of(socket));
        }

        /** Returns when the guest ends, when the key is typed, or when the input has ended and the guest is silent. */
        void attach(int detachKey) throws IOException {
            Thread keyboard = new Thread(() -> type(detachKey));
            keyboard.setDaemon(true); // it waits for a key that need not come
            keyboard.start();
            ByteBuffer output = ByteBuffer.allocate(1 << 16);
            try {
                while (guest.read(output.clear()) >= 0 && !System.out.checkError()) {
                    lastOutput = System.nanoTime();
                    System.out.write(output.array(), 0, output.position());
                    System.out.flush();
                }
            } catch (ClosedChannelException detached) {
                // by type()
            }
        }

        private void type(int detachKey) {
            try (guest) {
                InputStream keyboard = isStdinClosed() ? InputStream.nullInputStream() : System.in;
                int key = keyboard.read();
                for (; key >= 0 && key != detachKey; key = keyboard.read()) {
                    guest.write(ByteBuffer.wrap(new byte[] {(byte) key}));
                }
                long ended = System.nanoTime();
                while (key < 0 && System.nanoTime() - Math.max(ended, lastOutput) < SILENCE.toNanos()) {
                    pause(50);
                }
            } catch (IOException gone) {
                // attach() sees it too
            }
        }

        @Override
        public void close() throws IOException {
            guest.close();
        }
    }

    // Snapshots.

    /**
     * Snapshots and clones that are kept as long as a process holds a lock on a file in VM_DIR. The kernel frees the
     * lock even after kill -9. So whatever ends that process, they are deleted by the next command that takes the lock
     * of the VM they come from, or by list.
     */
    record Temporary(VmFiles files, Snapshots snapshots, Consumer<String> say) {
        static final String OPTION = "When no process holds an fcntl lock on this file any more, the next command "
                + "that changes the VM, or list, deletes the snapshot or clone. The file must be in VM_DIR, and its "
                + "name must end in .lock.";
        static final String NOT_DELETED = "what is temporary could not be deleted now; a later command tries again";

        /** The lock file that the user gave, relative to VM_DIR; 2 if it cannot be used. Null if none was given. */
        String lockFile(Path given) throws IOException {
            if (given == null) {
                return null;
            }
            Path file = Files.exists(given) ? given.toRealPath() : given.toAbsolutePath().normalize();
            boolean ofVm = vmNames(files.dir()).stream()
                    .anyMatch(name -> files.other(name).file(".lock").equals(file));
            if (!file.startsWith(files.dir()) || !file.toString().endsWith(".lock") || ofVm) {
                throw wrongUsage("--temporary: " + given
                        + " is not a file in VM_DIR that ends in .lock, or is a VM's own lock: name another file");
            } else if (!isHeld(file, false)) {
                throw wrongUsage("--temporary: no process holds a lock on " + given
                        + ", so it would be deleted at once: lock the file first (with fcntl, not flock)");
            }
            return files.relative(file);
        }

        /**
         * Whether a process holds a lock on a file; true also if that cannot be determined. If none does and the caller
         * wants it, the file is deleted, while we hold its lock. One thread at a time, because closing the file drops
         * every lock that this JVM holds on it.
         */
        private static synchronized boolean isHeld(Path file, boolean deletes) {
            try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ);
                    FileLock ours = channel.tryLock(0, Long.MAX_VALUE, true)) {
                if (ours != null && deletes) {
                    Files.delete(file);
                }
                return ours == null;
            } catch (NoSuchFileException none) {
                return false;
            } catch (IOException unknown) {
                return true;
            }
        }

        private boolean isLeft(Snapshot snapshot, boolean deletesLock) {
            return snapshot.temporary() != null && !isHeld(files.inside(snapshot.temporary()), deletesLock);
        }

        /** This VM's temporary clones whose lock file no process holds any more. */
        private List<String> leftClones(boolean deletesLock) {
            return vmNames(files.dir()).stream().filter(name -> Snapshot.source(files.other(name))
                    .filter(source -> files.name().equals(source.cloneOf()) && isLeft(source, deletesLock))
                    .isPresent()).toList();
        }

        private List<Snapshot> leftSnapshots(boolean deletesLock) {
            return Snapshot.all(files).stream()
                    .filter(snapshot -> snapshot.cloneOf() == null && isLeft(snapshot, deletesLock)).toList();
        }

        boolean isLeft() {
            return !leftClones(false).isEmpty() || !leftSnapshots(false).isEmpty();
        }

        /**
         * Under this VM's lock: deletes temporary clones and snapshots whose lock file no process holds any more. The
         * lock file is deleted first. As a missing one counts as free, the next command continues if this one is
         * interrupted. Never fails: a later command tries again.
         */
        void deleteLeft() {
            List<String> deleted = new ArrayList<>();
            attempt(say, NOT_DELETED, () -> {
                for (String clone : leftClones(true)) {
                    attempt(say, "temporary clone " + clone + " could not be deleted now; a later command tries again",
                            () -> {
                                deleteClone(files.other(clone));
                                deleted.add("clone " + clone);
                            });
                }
                for (Snapshot snapshot : leftSnapshots(true)) {
                    if (deleteSnapshot(snapshot)) {
                        deleted.add("snapshot " + snapshot.name());
                    }
                }
            });
            if (!deleted.isEmpty()) {
                say.accept("deleted what was temporary and is no longer in use: " + String.join(", ", deleted));
                snapshots.cleanup().cleanUp();
            }
        }

        /** The clone's record is moved away last, in one step: without one, a clone would pass for a VM of its own. */
        private void deleteClone(VmFiles clone) throws IOException {
            Path lock = clone.file(".lock");
            Path record = clone.file(".snapshots");
            FileChannel held = lock(lock, "the deletion of what is temporary");
            try {
                Machine.of(clone, message -> { }).destroy(lock, record);
                onStep.accept("clone emptied");
                Files.move(lock, record.resolve("lock"), StandardCopyOption.ATOMIC_MOVE);
                Path discarded = privateDirectory(files.disks()).resolve(Cleanup.CLONE_PART);
                deleteTree(discarded); // of a command that was killed
                Files.move(record, discarded, StandardCopyOption.ATOMIC_MOVE);
                onStep.accept("clone discarded");
                deleteTree(discarded);
            } finally {
                held.close();
            }
        }

        /** Whether it is deleted. If a clone that is not temporary builds on it, it stops being temporary. */
        private boolean deleteSnapshot(Snapshot snapshot) throws IOException {
            List<String> builders = snapshots.clones().of(snapshot.name());
            if (builders.isEmpty()) {
                snapshots.remove(snapshot);
                return true;
            } else if (builders.stream().noneMatch( // else a later command deletes both
                    name -> Snapshot.source(files.other(name)).map(Snapshot::temporary).isPresent())) {
                snapshot.json().remove("temporary");
                writeRecord(files.record(snapshot.name()), snapshot.json());
                say.accept("temporary snapshot " + snapshot.name() + " stays, as clones build on it: "
                        + String.join(", ", builders) + "; vm-ctl snapshot --delete " + snapshot.name()
                        + " deletes it after them");
            }
            return false;
        }
    }

    /**
     * A VM's snapshots and the disks under them: takes, restores, deletes and clones them, and starts the VM from them.
     */
    record Snapshots(VmFiles files, Machine machine, Qemu qemu, GuestSsh ssh, Consumer<String> say) {
        /** A restored guest answers within a second or two; after this long it is booted instead. */
        private static final Duration RESTORE_LIMIT = Duration.ofSeconds(60);
        /** What is left for a boot even if a restore took the whole time. */
        private static final Duration MIN_BOOT = Duration.ofSeconds(1);
        /** The limit of a restore for an emulated guest. Tests shorten it. */
        static Duration emulatedRestoreLimit = Duration.ofSeconds(180);

        Cleanup cleanup() {
            return new Cleanup(files, qemu, ssh, say);
        }

        Clones clones() {
            return new Clones(files, say);
        }

        private GuestDisk disk() {
            return new GuestDisk(qemu);
        }

        private GuestRam ram() {
            return new GuestRam(qemu);
        }

        /** 69 if there is no disk to run: the installation is not finished, or an older vm-ctl made the disk. */
        void requireDisk() {
            if (!Files.exists(files.link(), LinkOption.NOFOLLOW_LINKS) && !Files.exists(files.clean())
                    && find(CLEAN).isEmpty()) {
                boolean byHand = Files.exists(files.file(".install").resolve("by-hand.qcow2"));
                throw unavailable(byHand ? "the installation of " + files.name()
                        + " by hand is not finished: vm-auto-install by-hand continues it"
                        : "there is no disk for " + files.name() + " in " + files.dir() + ": run vm-auto-install");
            }
            files.refuseOlderVersion();
        }

        /** The snapshot of this name; clean before the first start, which has no record, is the clean disk alone. */
        Optional<Snapshot> find(String name) {
            return name.equals(CLEAN) && !Files.exists(files.record(CLEAN)) && Files.exists(files.clean())
                    ? Optional.of(new Snapshot(CLEAN, files.clean(), null, object("automatic", true)))
                    : Snapshot.find(files, name);
        }

        Snapshot require(String name) {
            return find(name).orElseThrow(() -> unavailable(Files.exists(files.record(name))
                    ? "the record of snapshot " + name + " is damaged: " + files.record(name)
                    + "; vm-ctl snapshot --list names those that can be used"
                    : files.name() + " has no snapshot " + name + ": vm-ctl snapshot --list names those it has"));
        }

        /** For status: the working disk, the layers under it, the snapshots. */
        JsonObject details() throws IOException {
            Optional<Path> disk = files.workingDisk().filter(Files::exists);
            List<String> usable = new ArrayList<>();
            for (Snapshot snapshot : Snapshot.all(files)) {
                if (snapshot.ram() != null && snapshot.damage() == null) {
                    usable.add(snapshot.name());
                }
            }
            return object("diskBytes", disk.flatMap(Disk::find).map(Disk::size).orElse(null),
                    "diskFileBytes", disk.map(Path::toFile).map(File::length).orElse(null),
                    "depth", disk.map(Disk::depth).orElse(null),
                    "snapshots", Snapshot.all(files).stream().map(Snapshot::name).toList(), "usableRam", usable);
        }

        // Starting.

        /**
         * From a stopped VM to a guest that answers: with the RAM of the snapshot below if nothing was written since,
         * else by a boot. A boot of the installation as it was made is then kept as snapshot clean, so that the next
         * start need not boot.
         */
        void start(Plan plan) throws IOException {
            long begun = System.nanoTime();
            cleanup().cleanUp();
            if (files.workingDisk().isEmpty()) {
                files.useDisk(Disk.newOverlay(files, require(CLEAN).disk()));
            }
            Path before = requireWorkingDisk();
            Snapshot below = below().orElse(null);
            String problem = null;
            if (below != null && below.ram() != null && !plan.cold()) {
                problem = below.ramProblem(plan.hardware());
                if (problem == null) {
                    long started = System.nanoTime();
                    before = null; // the guest will write to it
                    problem = restoreRam(below, plan);
                    if (problem == null) {
                        say.accept("restored " + below.name() + " with its RAM in " + seconds(started) + ": "
                                + machine.describe());
                        return;
                    }
                }
                if (below.cloneOf() != null && below.temporary() != null) { // its user could not tell what is missing
                    throw unavailable("the RAM of " + below.name() + " cannot be used: " + problem + "; a temporary "
                            + "clone is not booted, as what the guest wrote last could be missing");
                }
                say.accept("booting its disk, as the RAM of " + below.name() + " cannot be used: " + problem);
            }
            Duration left = plan.timeout().minusNanos(System.nanoTime() - begun);
            boot(plan, left.compareTo(MIN_BOOT) < 0 ? MIN_BOOT : left, below, problem, before);
        }

        /**
         * Boots the disk. The problem is why the RAM of the snapshot below was not used, or null. {@code before} is the
         * working disk until now, null if a guest wrote to it; if QEMU does not start, it is used again, with that RAM.
         */
        private void boot(Plan plan, Duration limit, Snapshot below, String problem, Path before) throws IOException {
            boolean asInstalled = below != null && below.isAsInstalled(files);
            if (below != null && below.ram() != null) { // boots without what a silent guest wrote
                files.useDisk(Disk.newOverlay(files, asInstalled ? files.clean() : below.disk()));
                if (!asInstalled) {
                    say.accept("this boot is like one after a power cut: what the guest wrote in the last 30 s before "
                            + "the snapshot may be missing");
                }
            }
            long started = System.nanoTime();
            Running running;
            try {
                running = launch(plan, false);
            } catch (IOException | VmException refused) {
                if (before != null) {
                    files.useDisk(before);
                }
                throw refused;
            }
            cleanup().deleteUnused();
            if (!plan.waits()) {
                say.accept("started " + files.name() + ", which is still booting: " + machine.describe());
                return;
            }
            machine.awaitGuest(running, limit);
            say.accept("booted " + files.name() + " in " + seconds(started) + ": " + machine.describe());
            boolean silent = below != null && below.json().getInt("silent") > 0; // new RAM could fail in the same way
            if (asInstalled && (!Files.exists(files.record(CLEAN)) || problem != null && !silent)) {
                takeClean(limit);
            }
        }

        /** Takes the snapshot clean. A failure is reported, and the VM keeps running. */
        private void takeClean(Duration limit) throws IOException {
            try {
                take(CLEAN, object("automatic", true), limit);
            } catch (VmException | IOException notTaken) {
                if (!qemu.isRunning()) {
                    throw notTaken;
                }
                say.accept("the VM runs, but could not be kept as snapshot clean, so the next restore boots again: "
                        + reason(notTaken));
            }
        }

        /** The working disk; 69 if it, or what it builds on, cannot be used, or if others need it as it is. */
        private Path requireWorkingDisk() throws IOException {
            Path disk = files.workingDisk().orElseThrow();
            Disk.requireChain(disk, files.dir());
            Optional<Layers> layers = Layers.read(files, qemu);
            if (!disk.startsWith(files.disks())
                    || Snapshot.all(files).stream().anyMatch(snapshot -> snapshot.disk().equals(disk))
                    || layers.isPresent() && !layers.get().overlaysOn(disk).isEmpty()) {
                throw unavailable(files.link() + " names " + disk
                        + ", which must not change, as a snapshot or another disk "
                        + "needs it: vm-ctl restore makes a new working disk");
            }
            return disk;
        }

        /** Starts QEMU. With takesRam it stays paused and waits for the RAM. */
        private Running launch(Plan plan, boolean takesRam) throws IOException {
            ssh.closeMaster(); // of the QEMU before
            say.accept("accelerator: " + plan.accel() + " (" + plan.accelReason() + ")");
            Running running = qemu.launch(plan, files.workingDisk().orElseThrow(), takesRam);
            try {
                ssh.writeConfig(running.port());
            } catch (IOException full) {
                qemu.end();
                throw full;
            }
            if (plan.port() != 0 && running.port() != plan.port()) {
                say.accept("port " + plan.port() + " is in use by another program: ssh is on port " + running.port());
            }
            return running;
        }

        /**
         * Restores RAM into a new QEMU and waits for the guest. Returns null, or why this RAM cannot be used; then QEMU
         * has ended. Marks RAM as unusable that is certainly so.
         */
        private String restoreRam(Snapshot snapshot, Plan plan) throws IOException {
            Duration limit = plan.accel().equals("tcg") ? emulatedRestoreLimit : RESTORE_LIMIT;
            boolean full = plan.timeout().dividedBy(2).compareTo(limit) >= 0; // the other half is for a boot
            Running running = launch(plan, true);
            onStep.accept("waiting for RAM");
            Duration atMost = full ? limit : plan.timeout().dividedBy(2);
            String refusal;
            try (Progress progress = new Progress("restoring", say)) {
                progress.stage("loading the RAM");
                refusal = ram().load(snapshot.ram(), snapshot.json().getLong("ramCrc32c"), atMost);
            }
            if (refusal != null) {
                qemu.end();
                if (!refusal.startsWith("it was not read")) {
                    mark(snapshot, refusal);
                }
                return refusal;
            }
            onStep.accept("RAM loaded");
            running = qemu.write(running.during(Act.NONE));
            qemu.qmp("cont");
            onStep.accept("woken");
            try {
                machine.awaitGuest(running, atMost);
            } catch (GuestUnusable silent) {
                ssh.closeMaster();
                boolean ended = !qemu.isRunning();
                qemu.end();
                int times = snapshot.json().getInt("silent") + 1;
                if (full && !ended && snapshot.cloneOf() == null) {
                    snapshot.json().put("silent", times);
                    mark(snapshot, times < 2 ? null : "the restored guest did not answer, twice in a row");
                }
                return silent.getMessage();
            }
            if (snapshot.json().getInt("silent") > 0) {
                snapshot.json().remove("silent");
                mark(snapshot, null);
            }
            return null;
        }

        /** Writes into the snapshot's record why its RAM is unusable. A clone leaves the record of its source alone. */
        private void mark(Snapshot snapshot, String reason) {
            if (!snapshot.ram().startsWith(files.file(".snapshots"))) {
                return;
            }
            if (reason != null) {
                snapshot.json().put("unusable", reason);
            }
            attempt(say, "the record of snapshot " + snapshot.name() + " could not be written",
                    () -> writeRecord(files.record(snapshot.name()), snapshot.json()));
        }

        /** The snapshot that the working disk still equals, as nothing was written to it. */
        private Optional<Snapshot> below() throws IOException {
            Disk disk = Disk.read(files.workingDisk().orElseThrow());
            return Stream.concat(Snapshot.all(files).stream(), find(CLEAN).stream())
                    .filter(snapshot -> disk.empty() && snapshot.disk().equals(disk.backing())).findFirst();
        }

        /** What a start would run, for --dry-run. */
        List<List<String>> startCommands(Plan plan) throws IOException {
            List<List<String>> commands = new ArrayList<>();
            boolean isNew = files.workingDisk().isEmpty();
            Path disk = files.workingDisk().orElse(files.disks().resolve("new.qcow2"));
            Snapshot below = isNew ? require(CLEAN) : below().orElse(null);
            if (isNew) {
                commands.add(List.of("mkdir", "-p", files.disks().toString()));
                commands.add(Disk.overlayCommand(below.disk(), disk));
            }
            boolean warm = below != null && below.ram() != null && !plan.cold()
                    && below.ramProblem(plan.hardware()) == null;
            commands.add(Qemu.arguments(files, plan, Ports.firstChoice(plan), disk, warm));
            return commands;
        }

        // Taking a snapshot.

        /**
         * Keeps the VM's state under a name, with details for its record; the VM goes on, or stays stopped. What fails
         * is undone.
         */
        void take(String name, JsonObject details, Duration limit) throws IOException {
            if (Files.exists(files.record(name))) {
                clones().refuseIfCloned(name, "replace snapshot " + name);
            }
            privateDirectory(files.record(name).getParent());
            try {
                if (qemu.isRunning()) {
                    takeRunning(name, details, limit);
                } else {
                    takeStopped(name, details);
                }
            } finally {
                deleteIfEmpty(files.record(name).getParent());
            }
        }

        private void takeStopped(String name, JsonObject details) throws IOException {
            if (files.workingDisk().isEmpty()) {
                throw unavailable(files.name() + " was never started, so there is nothing to snapshot: run vm-ctl "
                        + "start first");
            }
            Path disk = requireWorkingDisk();
            try (Undo undo = new Undo(say)) {
                Path overlay = Disk.newOverlay(files, disk);
                undo.add(() -> discard(overlay));
                onStep.accept("overlay made");
                files.useDisk(overlay);
                undo.add(() -> files.useDisk(disk));
                onStep.accept("link moved");
                record(name, disk, details);
                undo.clear();
            }
            onStep.accept("recorded");
            cleanup().cleanUp();
            say.accept("kept the disk as " + name);
        }

        /**
         * Lets the guest flush its disk. Fails with 69 if it does not answer, with 1 if this machine's disk is full.
         */
        private void requireAnsweringGuest(Running running) throws IOException {
            String state = qemu.runState();
            if (!state.equals("running")) {
                throw Machine.standsStill(state, running);
            }
            // sync: so that a boot of this disk finds what the guest wrote
            if (!hasBanner(running.port(), 5000) || !ssh.run(SOON, "sync").ok()) {
                throw unavailable("no snapshot was taken: the guest does not answer ssh. Repeat after vm-ctl "
                        + "restart, or after vm-ctl stop to keep the disk only");
            }
        }

        /** The QEMU that runs goes on running, on a new overlay. See the class comment of VmCtl. */
        private void takeRunning(String name, JsonObject details, Duration limit) throws IOException {
            long started = System.nanoTime();
            Running running = qemu.requireRunning();
            requireAnsweringGuest(running);
            JsonObject ram;
            String pause;
            try (Undo undo = new Undo(say)) {
                qemu.write(running.during(Act.SAVING));
                undo.add(() -> qemu.write(running));
                undo.add(this::setClock);
                undo.add(ram()::resume);
                long stopped = System.nanoTime();
                qemu.qmp("stop");
                onStep.accept("stopped");
                Path disk = disk().active();
                Path overlay = Disk.newOverlay(files, disk);
                undo.add(() -> {
                    if (!disk().active().equals(overlay)) { // an interrupt may hide that QEMU did what it was told
                        discard(overlay);
                    }
                });
                onStep.accept("overlay made");
                Path parent = files.record(name).getParent();
                // the RAM of the snapshot that this one replaces stays until the new record is written
                Path ramFile = parent.resolve(Files.exists(parent.resolve("ram")) ? "ram-" + randomWord() : "ram");
                undo.add(() -> Files.deleteIfExists(ramFile));
                try (Progress progress = new Progress("snapshot", say)) {
                    progress.stage("saving the RAM");
                    ram = ram().save(ramFile, limit);
                }
                ram.putAll(object("ram", files.relative(ramFile), "hardware", running.hardware()));
                ram.putAll(details);
                onStep.accept("RAM saved");
                // it is still empty, so it does not matter yet whether QEMU writes to it or to the disk below
                files.useDisk(overlay);
                undo.add(() -> files.useDisk(disk().active()));
                onStep.accept("link moved");
                String node = disk().addOverlay(overlay, running.cache());
                undo.add(() -> {
                    if (!disk().active().equals(overlay)) {
                        disk().close(node);
                    }
                });
                onStep.accept("overlay attached");
                disk().switchTo(node);
                undo.clear(); // the guest will write to the overlay, whatever else fails
                undo.add(cleanup()::deleteUnused);
                undo.add(() -> qemu.write(running));
                undo.add(this::setClock);
                undo.add(() -> qemu.qmp("cont"));
                onStep.accept("overlay in use");
                record(name, disk, ram);
                onStep.accept("recorded");
                qemu.qmp("cont"); // and once more when undo is closed, which does no harm; that sets the clock, too
                pause = seconds(stopped);
                onStep.accept("going on");
            }
            say.accept("kept disk and RAM (" + (ram.getLong("ramBytes") >> 20) + " MiB) as " + name + " in "
                    + seconds(started) + "; the guest was paused for " + pause);
        }

        /** The guest was paused, so its clock is late. */
        private void setClock() throws IOException {
            if (qemu.isRunning()) {
                ssh.setClock();
            }
        }

        /** Writes the record, the moment from which the snapshot exists; its disk is read-only from then on. */
        private void record(String name, Path disk, JsonObject more) throws IOException {
            JsonObject record = object("disk", files.relative(disk), "made", Instant.now().toString());
            record.putAll(more);
            if (name.equals(CLEAN)) { // a clone stays one
                Snapshot.source(files).ifPresent(source -> List.of("cloneOf", "cloneSnapshot", "temporary")
                        .forEach(member -> record.put(member, source.json().get(member))));
            }
            Files.setPosixFilePermissions(disk, PosixFilePermissions.fromString("r--------"));
            writeRecord(files.record(name), record);
        }

        /**
         * Deletes an overlay that was not used; not if the link names it, as it then shows the content of the disk
         * below.
         */
        private void discard(Path overlay) throws IOException {
            if (!files.workingDisk().equals(Optional.of(overlay))) {
                Files.deleteIfExists(overlay);
            }
        }

        // Restoring.

        /**
         * Discards the working disk and goes back to a snapshot. It checks what it can before it changes the VM.
         */
        void restore(String name, Plan plan) throws IOException {
            Snapshot snapshot = require(name);
            boolean bootsClean = plan.cold() && snapshot.isAsInstalled(files);
            Path base = bootsClean ? files.clean() : snapshot.disk();
            Disk.requireChain(base, files.dir());
            boolean wasRunning = qemu.isRunning();
            boolean starts = wasRunning || snapshot.ram() != null;
            if (starts) {
                qemu.requireStart(plan);
            }
            try (Undo undo = new Undo(say)) {
                Path overlay = Disk.newOverlay(files, base);
                undo.add(() -> discard(overlay));
                Path link = files.prepareLink(overlay); // there may be no room for it later
                undo.add(() -> Files.deleteIfExists(link));
                onStep.accept("overlay made");
                refuseIfInterrupted(); // from here on the working disk is given up
                if (wasRunning) {
                    ssh.closeMaster();
                    qemu.end(); // its disk is thrown away: nothing to write back
                }
                onStep.accept("ended");
                files.useLink(link);
                undo.clear();
            }
            onStep.accept("link moved");
            cleanup().cleanUp();
            if (starts) {
                start(plan);
            } else {
                say.accept("restored the disk of " + name + ": vm-ctl start boots it");
            }
        }

        // Deleting.

        void delete(String name) throws IOException {
            Snapshot snapshot = require(name);
            clones().refuseIfCloned(name, "delete snapshot " + name);
            remove(snapshot);
            say.accept("deleted " + name);
            cleanup().cleanUp();
        }

        /** Removes the name and the RAM; cleanUp() then merges the layer. */
        private void remove(Snapshot snapshot) throws IOException {
            Files.delete(files.record(snapshot.name()));
            onStep.accept("deleted");
            if (snapshot.ram() != null) {
                Files.deleteIfExists(snapshot.ram());
            }
            deleteIfEmpty(files.record(snapshot.name()).getParent());
        }
    }

    /** The VMs that build on this one's snapshots: makes them, and protects what they need. */
    record Clones(VmFiles files, Consumer<String> say) {
        /**
         * Makes VMs that begin as a snapshot of this one; all of them or, if something fails, none. With a lock file
         * they are temporary.
         */
        void make(Snapshot snapshot, List<String> clones, String lockFile) throws IOException {
            Snapshot.source(files).ifPresent(source -> {
                throw unavailable(files.name() + " is a clone itself, which cannot be cloned: clone "
                        + source.cloneOf() + " instead");
            });
            files.refuseOlderVersion();
            Disk.requireChain(snapshot.disk(), files.dir());
            for (String clone : clones) {
                if (!files.other(clone).all().isEmpty()) {
                    throw unavailable("there is a VM " + clone
                            + " already: choose another name, or vm-ctl destroy it");
                }
            }
            try (Undo undo = new Undo(say)) {
                for (String clone : clones) {
                    VmFiles made = files.other(clone);
                    undo.add(() -> {
                        for (Path file : made.all()) {
                            deleteTree(file);
                        }
                        deleteTree(files.disks().resolve(Cleanup.CLONE_PART)); // its record, not yet in place
                    });
                    makeClone(made, snapshot, lockFile);
                    onStep.accept("clone made");
                }
                undo.clear();
            }
        }

        private void makeClone(VmFiles clone, Snapshot snapshot, String lockFile) throws IOException {
            JsonObject record = object("disk", files.relative(snapshot.disk()), "made", Instant.now().toString(),
                    "cloneOf", files.name(), "cloneSnapshot", snapshot.name(), "temporary", lockFile);
            if (snapshot.ram() != null) {
                record.put("ram", files.relative(snapshot.ram()));
                for (String member : List.of("ramBytes", "ramCrc32c", "hardware", "unusable")) {
                    record.put(member, snapshot.json().get(member));
                }
            }
            // first, and in one step: from then on nothing that the clone builds on is deleted
            Path part = files.disks().resolve(Cleanup.CLONE_PART);
            writeRecord(privateDirectory(part.resolve(CLEAN)).resolve("snapshot.json"), record);
            Files.move(part, clone.file(".snapshots"), StandardCopyOption.ATOMIC_MOVE);
            onStep.accept("clone recorded");
            Path keys = privateDirectory(clone.file(".ssh"));
            for (Path key : entries(files.file(".ssh"))) {
                if (!key.getFileName().toString().matches("config|known_hosts")) {
                    Files.copy(key, keys.resolve(key.getFileName()), StandardCopyOption.COPY_ATTRIBUTES);
                }
            }
            String known = Files.readString(files.file(".ssh").resolve("known_hosts")).replaceFirst("^\\S+",
                    clone.name());
            writeFile(keys.resolve("known_hosts"), known);
            if (Files.exists(files.offlineMark())) {
                makeFile(clone.offlineMark());
            }
            clone.useDisk(Disk.newOverlay(clone, snapshot.disk()));
        }

        /** 69 if clones build on a snapshot of this VM, or, without a name, on any of its disks. */
        void refuseIfCloned(String snapshot, String act) {
            List<String> clones = of(snapshot);
            if (!clones.isEmpty()) {
                throw unavailable("cannot " + act + ": clones build on it: " + String.join(", ", clones)
                        + "; vm-ctl destroy deletes a clone");
            }
        }

        /** The clones of a snapshot of this VM, or, without a name, of any of its disks. */
        List<String> of(String snapshot) {
            List<String> clones = new ArrayList<>();
            for (String name : vmNames(files.dir())) {
                VmFiles other = files.other(name);
                if (name.equals(files.name())) {
                    continue;
                } else if (buildsOn(other, snapshot)) {
                    clones.add(name);
                } else if (Snapshot.damaged(other).contains(CLEAN)) {
                    clones.add(name + " (perhaps: its record " + other.record(CLEAN) + " is damaged)");
                }
            }
            return clones;
        }

        /** Whether another VM builds on this one: its record says so, or the backing file of one of its disks. */
        private boolean buildsOn(VmFiles other, String snapshot) {
            Path disk = snapshot == null ? null : Snapshot.find(files, snapshot).map(Snapshot::disk).orElse(null);
            return Snapshot.source(other).filter(source -> files.name().equals(source.cloneOf())
                    && (snapshot == null || snapshot.equals(source.json().getString("cloneSnapshot")))).isPresent()
                    || entries(other.disks()).stream()
                    .flatMap(overlay -> Disk.find(overlay).map(Disk::backing).stream())
                    .anyMatch(base -> (base.equals(files.clean()) || base.startsWith(files.disks()))
                            && (snapshot == null || base.equals(disk)));
        }
    }

    /** Brings a VM's directory in order: after a command that was killed, and when disks are no longer needed. */
    record Cleanup(VmFiles files, Qemu qemu, GuestSsh ssh, Consumer<String> say) {
        /** In NAME.disks: the record of a clone while it is made or deleted. */
        static final String CLONE_PART = "clone.part";

        /**
         * Cleans up after a command, a QEMU or a host that died in the middle of something. It never fails, so that it
         * never stands in the way of a command that frees space or throws the state away.
         */
        void recover(boolean endsVm) {
            attempt(say, "could not clean up after an earlier import", () -> new ImageImport(files, say).recover());
            attempt(say, "could not clean up after an earlier command", () -> {
                Running running = qemu.running().orElse(null);
                if (!qemu.isRunning()) {
                    qemu.removeLeftovers();
                } else if (running == null && !endsVm) {
                    say.accept("an earlier start was interrupted: run vm-ctl start again");
                } else if (running == null || running.act() == Act.RESTORING) {
                    say.accept("an earlier start was interrupted: ending its QEMU");
                    qemu.end();
                    qemu.removeLeftovers();
                } else if (running.act() == Act.SAVING) {
                    Path active = new GuestDisk(qemu).active();
                    if (Files.exists(active)) {
                        files.useDisk(active);
                    } else {
                        say.accept(active + " is missing, though QEMU uses it: copy what you need out of the guest "
                                + "before you stop it");
                    }
                    new GuestRam(qemu).resume();
                    qemu.write(running.during(Act.NONE));
                    say.accept("an earlier snapshot was interrupted: the guest resumes");
                    ssh.setClock();
                }
                if (qemu.isRunning() && qemu.answers()) {
                    new GuestDisk(qemu).cancelMerges();
                }
                deleteUnused();
            });
        }

        /**
         * Deletes what no record and no disk refers to any more, and returns the disks that are left; does nothing,
         * and returns nothing, while a record or a disk cannot be read.
         */
        Optional<Layers> deleteUnused() throws IOException {
            Optional<Layers> read = Layers.read(files, qemu);
            if (read.isEmpty()) {
                return read;
            }
            Layers layers = read.get();
            for (Optional<Path> disk = layers.unused(); disk.isPresent(); disk = layers.unused()) {
                Files.delete(disk.get());
                layers.disks().remove(disk.get());
            }
            deleteMatching(files.disks(), "([0-9a-f]+\\.qcow2|link|clone)\\.part", null); // whose maker was killed
            for (Path directory : entries(files.file(".snapshots"))) {
                String name = directory.getFileName().toString();
                if (name.matches(SNAPSHOT_NAME) && Files.isDirectory(directory)) { // else not ours, as lost+found
                    deleteMatching(directory, "ram(-[0-9a-f]+)?|\\.snapshot\\.json.*\\.new",
                            Snapshot.find(files, name).map(Snapshot::ram).orElse(null));
                    deleteIfEmpty(directory);
                }
            }
            return read;
        }

        private static void deleteMatching(Path directory, String pattern, Path except) throws IOException {
            for (Path file : entries(directory)) {
                if (file.getFileName().toString().matches(pattern) && !file.equals(except)) {
                    deleteTree(file);
                }
            }
        }

        /**
         * Deletes what nothing needs, and merges each layer that no snapshot names, and one disk builds on, into that
         * disk. What the disk contains stays the same, so its RAM stays valid. Never fails: a later command tries
         * again.
         */
        void cleanUp() {
            attempt(say, "could not clean up now; a later command tries again", () -> {
                Set<Path> tried = new HashSet<>();
                for (Optional<Layers> layers = deleteUnused(); layers.isPresent(); layers = deleteUnused()) {
                    Path layer = layers.get().mergeable(tried).orElse(null);
                    if (layer == null) {
                        return;
                    }
                    tried.add(layer);
                    Path overlay = layers.get().overlaysOn(layer).get(0);
                    try (Progress progress = new Progress("cleaning up", say)) {
                        progress.stage("merging disks");
                        attempt(say, "an overlay could not be merged now; a later command tries again",
                                () -> merge(layer, overlay));
                    }
                }
            });
        }

        private void merge(Path layer, Path builder) throws IOException {
            Disk.requireChain(builder, files.dir());
            Path base = Disk.read(layer).backing();
            String relative = builder.getParent().relativize(base).toString();
            Set<PosixFilePermission> mode = Files.getPosixFilePermissions(builder);
            Files.setPosixFilePermissions(builder, PosixFilePermissions.fromString("rw-------"));
            try {
                if (qemu.isRunning() && new GuestDisk(qemu).node(builder).isPresent()) {
                    new GuestDisk(qemu).merge(builder, base, relative);
                } else {
                    Disk.rebase(builder, relative);
                }
            } finally {
                Files.setPosixFilePermissions(builder, mode);
            }
        }
    }

    /** The overlays in VM_DIR by path, of this VM and of others, and those that this VM needs; read once. */
    record Layers(VmFiles files, Map<Path, Disk> disks, Set<Path> needed) {
        private static final Disk DAMAGED = new Disk(null, 0, false);

        /** Empty while QEMU does not answer, or a record or a needed disk cannot be read: what is needed is unknown. */
        static Optional<Layers> read(VmFiles files, Qemu qemu) throws IOException {
            boolean runs = qemu.isRunning();
            if (!Snapshot.damaged(files).isEmpty() || runs && !qemu.answers()) {
                return Optional.empty();
            }
            Layers layers = new Layers(files, new TreeMap<>(), new HashSet<>());
            Snapshot.all(files).forEach(snapshot -> layers.needed.add(snapshot.disk()));
            files.workingDisk().ifPresent(layers.needed::add);
            if (runs) {
                layers.needed.add(new GuestDisk(qemu).active());
            }
            for (String name : vmNames(files.dir())) {
                for (Path disk : entries(files.other(name).disks())) {
                    Optional<Disk> image = Disk.find(disk);
                    // Skips files that are half made, and another VM's disk that was deleted just now.
                    if (disk.toString().endsWith(".qcow2") && (image.isPresent() || Files.exists(disk))) {
                        layers.disks.put(disk, image.orElse(DAMAGED));
                    }
                }
            }
            boolean readable = layers.needed.stream().allMatch(Files::exists)
                    && layers.disks.keySet().stream().noneMatch(disk -> layers.disks.get(disk) == DAMAGED
                    && (layers.needed.contains(disk) || !disk.startsWith(files.disks())
                    || !layers.overlaysOn(disk).isEmpty()));
            return Optional.of(layers).filter(read -> readable);
        }

        List<Path> overlaysOn(Path disk) {
            return disks.keySet().stream().filter(overlay -> disk.equals(disks.get(overlay).backing())).toList();
        }

        /** Disks that no record names, and that vm-ctl made for this VM. What else lies there is left alone. */
        private Stream<Path> unnamed() {
            return disks.keySet().stream().filter(disk -> disk.startsWith(files.disks()) && !needed.contains(disk)
                    && disk.getFileName().toString().matches("[0-9a-f]+\\.qcow2"));
        }

        /** An unnamed disk on which nothing builds. Without a working disk, one that holds data may be it. */
        Optional<Path> unused() throws IOException {
            boolean workingDiskIsKnown = files.workingDisk().isPresent();
            return unnamed().filter(disk -> overlaysOn(disk).isEmpty()
                    && (workingDiskIsKnown || disks.get(disk).empty())).findFirst();
        }

        /** An unnamed disk on which exactly one disk builds; both, and all above, are of this VM. */
        Optional<Path> mergeable(Set<Path> except) {
            return unnamed().filter(disk -> !except.contains(disk) && overlaysOn(disk).size() == 1
                    && Stream.concat(overlaysOn(disk).stream(), overlaysOn(overlaysOn(disk).get(0)).stream())
                    .allMatch(above -> above.startsWith(files.disks()))).findFirst();
        }
    }

    // Image files.

    /** The checksums of some bytes. */
    record Sums(String sha256, long crc32c) {
        /** Copies this many bytes, and returns their checksums; an EOFException if the input ends before. */
        static Sums copy(InputStream in, OutputStream out, long bytes, Progress progress, String act)
                throws IOException {
            MessageDigest sha256 = newSha256();
            CRC32C crc32c = new CRC32C();
            byte[] buffer = new byte[1 << 20];
            for (long done = 0; done < bytes; ) {
                int count = in.readNBytes(buffer, 0, (int) Math.min(buffer.length, bytes - done));
                if (count == 0) {
                    throw new EOFException();
                }
                refuseIfInterrupted();
                sha256.update(buffer, 0, count);
                crc32c.update(buffer, 0, count);
                out.write(buffer, 0, count);
                done += count;
                progress.stage(act + ", " + (done >> 20) + " of " + (bytes >> 20) + " MiB");
            }
            return new Sums(HexFormat.of().formatHex(sha256.digest()), crc32c.getValue());
        }

        static String sha256Of(byte[] bytes) {
            return HexFormat.of().formatHex(newSha256().digest(bytes));
        }

        private static MessageDigest newSha256() {
            try {
                return MessageDigest.getInstance("SHA-256");
            } catch (NoSuchAlgorithmException never) { // every Java has it
                throw new IllegalStateException(never);
            }
        }
    }

    /** A file in an image file. */
    record Part(String name, long bytes, String sha256) {
        static final String DISK = "disk.qcow2";
        static final String RAM = "ram";
        static final String KEYS = "ssh/";
        /** What vm-auto-install makes in NAME.ssh. The first and the last are needed to reach the guest. */
        static final List<String> KEY_NAMES = List.of("id_ed25519", "id_ed25519.pub", "host_key", "host_key.pub",
                "root_password", "known_hosts");
        static final Set<String> REQUIRED = Set.of(DISK, KEYS + "id_ed25519", KEYS + "known_hosts");

        Part {
            boolean isKey = name.startsWith(KEYS) && KEY_NAMES.contains(name.substring(KEYS.length()));
            long limit = name.equals(DISK) || name.equals(RAM) ? 1L << 40 : isKey ? 1 << 16 : -1; // no other is allowed
            if (bytes < 0 || bytes > limit || !sha256.matches("[0-9a-f]{64}")) {
                throw new IllegalArgumentException(name + " cannot have " + bytes + " bytes");
            }
        }

        static Part of(JsonObject json) {
            return new Part(json.getString("name", ""), json.getLong("bytes", -1), json.getString("sha256", ""));
        }

        JsonObject json() {
            return object("name", name, "bytes", bytes, "sha256", sha256);
        }
    }

    /**
     * The description, in JSON, with which an image file begins. Somebody else may have written it. So it is checked,
     * and its texts are only shown or compared.
     */
    record Manifest(JsonObject json, List<Part> parts) {
        static final String FORMAT = "vm-ctl image";
        static final int VERSION = 1;
        static final int MAX_BYTES = 1 << 20;

        /** Throws an exception that says what is missing or impossible. */
        static Manifest of(JsonObject json) {
            List<Part> parts = json.getArray("parts", new JsonArray()).stream()
                    .map(part -> Part.of((JsonObject) part)).toList();
            List<String> names = parts.stream().map(Part::name).toList();
            if (Set.copyOf(names).size() < names.size() || !names.containsAll(Part.REQUIRED)) {
                throw new IllegalArgumentException("a part is missing, or listed twice");
            } else if (names.contains(Part.RAM) && strings(json, "hardware").isEmpty()) {
                throw new IllegalArgumentException("it does not say with which hardware the RAM was saved");
            } else if (strings(json, "hardware").stream().anyMatch(word -> word.matches("(?s).*\\p{Cntrl}.*"))) {
                throw new IllegalArgumentException("its hardware has control characters");
            }
            return new Manifest(json, parts);
        }

        boolean hasRam() {
            return parts.stream().anyMatch(part -> part.name().equals(Part.RAM));
        }

        /** The release; a question mark if it is not known. */
        String dragonfly() {
            String version = json.getString("dragonfly", "?");
            return version.matches("[A-Za-z0-9_][A-Za-z0-9._-]{0,31}") ? version : "?";
        }
    }

    /** Writes a snapshot into an image file. */
    record ImageExport(VmFiles files, Consumer<String> say) {
        /** Writes to a directory beside the target first, and deletes what a killed export left in it. */
        void write(Snapshot snapshot, boolean withRam, Path target) throws IOException {
            long started = System.nanoTime();
            if (withRam && (snapshot.ram() == null || snapshot.damage() != null)) {
                throw unavailable("snapshot " + snapshot.name() + " has no RAM that can be used"
                        + (snapshot.ram() == null ? "" : " (" + snapshot.damage() + ")")
                        + ": take it again while the VM runs, or export it without --with-ram");
            }
            boolean bootsClean = !withRam && snapshot.isAsInstalled(files);
            Path disk = bootsClean ? files.clean() : snapshot.disk();
            Disk.requireChain(disk, files.dir());
            Path work = workDirectory(target);
            try (FileChannel held = lock(work.resolve("lock"), "vm-ctl export"); Undo undo = new Undo(say);
                    Progress progress = new Progress("export", say)) {
                Path flat = work.resolve(Part.DISK);
                Path image = work.resolve("image");
                Files.deleteIfExists(flat);
                Files.deleteIfExists(image);
                undo.add(() -> deleteTree(work));
                progress.stage("compressing the disk");
                Disk.flatten(disk, flat);
                onStep.accept("disk flattened");
                pack(image, snapshot, sources(flat, withRam ? snapshot.ram() : null),
                        !bootsClean && snapshot.ram() != null, progress);
                onStep.accept("packed");
                refuseIfInterrupted();
                Files.move(image, target, StandardCopyOption.ATOMIC_MOVE);
                undo.clear();
                undo.add(() -> deleteTree(work));
                onStep.accept("exported");
                held.truncate(0);
            } catch (IOException failed) {
                if (reason(failed).contains("No space left")) {
                    throw new VmException(1, noSpace(target.getParent()) + ", so nothing was exported");
                }
                throw failed;
            }
            say.accept("exported " + files.name() + "/" + snapshot.name() + " to " + target + " ("
                    + (Files.size(target) >> 20) + " MiB) in " + seconds(started)
                    + "; it holds the keys: whoever has it can log in to VMs made from it");
        }

        /** Others may be able to write beside the target, as in /tmp: a link there could lead anywhere. */
        private static Path workDirectory(Path target) {
            Path work = privateDirectory(target.resolveSibling("." + target.getFileName() + ".part"));
            if (Files.isSymbolicLink(work)) { // looked at last: nobody else can replace a directory of this user's
                throw unavailable(work + " is a link, which is in the way: remove it");
            }
            return work;
        }

        /** The parts by their names, in the order in which they are written. */
        private Map<String, Path> sources(Path disk, Path ram) {
            Map<String, Path> sources = new LinkedHashMap<>();
            for (String key : Part.KEY_NAMES) {
                if (Files.exists(files.file(".ssh").resolve(key))) {
                    sources.put(Part.KEYS + key, files.file(".ssh").resolve(key));
                }
            }
            sources.put(Part.DISK, disk);
            if (ram != null) {
                sources.put(Part.RAM, ram);
            }
            if (!sources.keySet().containsAll(Part.REQUIRED)) {
                throw unavailable("a key of " + files.name() + " is missing in " + files.file(".ssh")
                        + ": put id_ed25519 and known_hosts back there");
            }
            return sources;
        }

        /** The manifest is written first, so each part is read twice: for its checksum, and to be copied. */
        private void pack(Path image, Snapshot snapshot, Map<String, Path> sources, boolean inUse, Progress progress)
                throws IOException {
            List<Part> parts = new ArrayList<>();
            for (String name : sources.keySet()) {
                long size = Files.size(sources.get(name));
                try (InputStream in = Files.newInputStream(sources.get(name))) {
                    Sums sums = Sums.copy(in, OutputStream.nullOutputStream(), size, progress, "reading the " + name);
                    if (name.equals(Part.RAM) && sums.crc32c() != snapshot.json().getLong("ramCrc32c")) {
                        throw new VmException(1, "the RAM of snapshot " + snapshot.name() + " is damaged (its checksum "
                                + "is wrong): export it without --with-ram");
                    }
                    parts.add(new Part(name, size, sums.sha256()));
                }
            }
            JsonObject manifest = manifest(snapshot, parts, inUse);
            manifest.put("diskSize", Disk.read(sources.get(Part.DISK)).size());
            byte[] text = JsonWriter.indent("  ").string().value(manifest).done().getBytes(UTF_8);
            try (FileChannel file = newFile(image);
                    TarArchiveOutputStream tar = new TarArchiveOutputStream(Channels.newOutputStream(file))) {
                tar.setBigNumberMode(TarArchiveOutputStream.BIGNUMBER_STAR); // in the header, for 8 GiB and more
                put(tar, ImageFile.MANIFEST, text);
                for (Part part : parts) {
                    begin(tar, part.name(), part.bytes());
                    try (InputStream in = Files.newInputStream(sources.get(part.name()))) {
                        Sums.copy(in, tar, part.bytes(), progress, "writing the " + part.name());
                    }
                    tar.closeArchiveEntry();
                }
                put(tar, ImageFile.MANIFEST_SUM, Sums.sha256Of(text).getBytes(UTF_8));
                tar.finish();
                file.force(true);
            }
        }

        private static void put(TarArchiveOutputStream tar, String name, byte[] content) throws IOException {
            begin(tar, name, content.length);
            tar.write(content);
            tar.closeArchiveEntry();
        }

        /** Begins a file of the archive, for its owner alone, and without this user's name. */
        private static void begin(TarArchiveOutputStream tar, String name, long size) throws IOException {
            TarArchiveEntry entry = new TarArchiveEntry(name);
            entry.setMode(TarArchiveEntry.DEFAULT_FILE_MODE & ~077);
            entry.setUserName("");
            entry.setSize(size);
            tar.putArchiveEntry(entry);
        }

        private JsonObject manifest(Snapshot snapshot, List<Part> parts, boolean inUse) throws IOException {
            JsonObject manifest = object("format", Manifest.FORMAT, "version", Manifest.VERSION,
                    "made", Instant.now().toString(), "vm", files.name(), "snapshot", snapshot.name());
            manifest.putAll(installation());
            List<String> hardware = strings(snapshot.json(), "hardware");
            if (!hardware.isEmpty()) { // else it was never started
                manifest.putAll(object("qemu", hardware.get(0), "accelerator", option(hardware, "-accel"),
                        "machine", option(hardware, "-machine"), "cpu", option(hardware, "-cpu"),
                        "cpus", option(hardware, "-smp"), "memory", option(hardware, "-m")));
            }
            if (parts.stream().anyMatch(part -> part.name().equals(Part.RAM))) {
                manifest.put("hardware", hardware);
            }
            manifest.putAll(object("diskInUse", inUse, "parts", parts.stream().map(Part::json).toList()));
            return manifest;
        }

        /** What vm-auto-install has recorded of the installation; of a clone, that of the VM that it comes from. */
        private JsonObject installation() throws IOException {
            Path directory = Snapshot.source(files).map(source -> files.other(source.cloneOf()))
                    .orElse(files).file(".install");
            Path text = directory.resolve("install.json");
            JsonObject install = Files.exists(text) ? VmCtl.json(Files.readString(text)) : object();
            List<String> scripts = new ArrayList<>();
            for (Path record : entries(directory)) {
                if (record.getFileName().toString().matches("installed\\d\\.inputs")) {
                    Files.readAllLines(record).stream().filter(line -> line.startsWith("its script="))
                            .forEach(line -> scripts.add(line.substring(line.indexOf('=') + 1)));
                }
            }
            // With VM_IMAGE, another release may be installed than was asked for.
            // A 6.4.2 calls itself "DragonFly 6.4-RELEASE x86_64".
            String asked = install.getString("version", "?");
            Matcher system = Pattern.compile("DragonFly (([\\w.]+)-\\w+) .*")
                    .matcher(install.getObject("versions", object()).getString("uname", ""));
            String release = !system.matches() || asked.startsWith(system.group(2)) ? asked : system.group(1);
            return object("dragonfly", release, "isoSha256", install.getString("isoSha256"),
                    "phasesSha256", scripts, "qemu", install.getString("qemu"),
                    "accelerator", install.getString("accelerator"));
        }
    }

    /**
     * Reads an image file from its beginning to its end. Somebody else may have made it. It is accepted only if it is
     * exactly what an export writes: the manifest, the parts that it lists, in that order, as plain files, and the
     * manifest's checksum. So the file cannot choose a path, and only the manifest is kept in memory.
     */
    static final class ImageFile implements AutoCloseable {
        static final String MANIFEST = "manifest.json";
        static final String MANIFEST_SUM = "manifest.sha256";
        private static final int BLOCK = 512;
        /** A tar file ends with two blocks of zeros or more. */
        private static final int MAX_END = 1 << 16;

        private final Path file;
        private final InputStream in;
        private final Manifest manifest;
        private String manifestSum;

        ImageFile(Path file) throws IOException {
            this.file = file;
            if (Files.isDirectory(file)) {
                throw noImage("it is a directory");
            }
            in = new BufferedInputStream(Files.newInputStream(file));
            try {
                manifest = readManifest();
            } catch (IOException | RuntimeException refused) {
                in.close();
                throw refused;
            }
        }

        @Override
        public void close() throws IOException {
            in.close();
        }

        private VmException noImage(String why) {
            return unavailable(file + " is no file that vm-ctl export has written: " + why);
        }

        private static String oneLine(String foreign) {
            return foreign.substring(0, Math.min(foreign.length(), 200)).replaceAll("\\p{Cntrl}", "?");
        }

        /** 69 until the manifest has been read, as it may be any file; then 1. */
        private VmException wrong(String why) {
            return manifestSum == null ? noImage(why)
                    : new VmException(1, file + " is damaged, or was changed: " + why + "; nothing was imported");
        }

        private Manifest readManifest() throws IOException {
            long size = header(MANIFEST);
            if (size > Manifest.MAX_BYTES) {
                throw noImage("its manifest has " + size + " bytes, at most " + Manifest.MAX_BYTES + " are read");
            }
            byte[] text = content(MANIFEST, (int) size);
            try {
                JsonObject json = json(new String(text, UTF_8));
                if (!Manifest.FORMAT.equals(json.getString("format"))) {
                    throw noImage("its manifest is not that of an export");
                } else if (json.getLong("version") < 1) {
                    throw noImage("its manifest does not say in which version of the format it is");
                } else if (json.getLong("version") > Manifest.VERSION) {
                    throw unavailable(file + " was written by a newer vm-ctl, in version " + json.getLong("version")
                            + " of its format; this one reads version " + Manifest.VERSION + ": use a newer vm-ctl");
                }
                Manifest read = Manifest.of(json);
                manifestSum = Sums.sha256Of(text);
                return read;
            } catch (VmException refused) {
                throw refused;
            } catch (IOException | RuntimeException garbled) { // a member has another type
                throw noImage("its manifest cannot be used" + (garbled instanceof IllegalArgumentException
                        ? ": " + oneLine(garbled.getMessage()) : ""));
            }
        }

        /** The size of the next file in the archive, which must be a plain one of this name. */
        private long header(String name) throws IOException {
            byte[] block = in.readNBytes(BLOCK);
            if (block.length < BLOCK) {
                throw wrong("it is cut off where " + name + " should begin");
            }
            TarArchiveEntry entry;
            try {
                entry = TarUtils.verifyCheckSum(block) ? new TarArchiveEntry(block) : null;
            } catch (RuntimeException noNumber) { // where there should be one
                entry = null;
            }
            if (entry == null) {
                throw wrong("there is no header of a tar file where " + name + " should begin");
            } else if (!entry.getName().equals(name)) {
                throw wrong("'" + oneLine(entry.getName()) + "' is where " + name + " should be");
            } else if (entry.getLinkFlag() != TarConstants.LF_NORMAL) {
                throw wrong(name + " is no plain file (its type is '" + (char) entry.getLinkFlag() + "')");
            }
            return entry.getSize();
        }

        /** After a file, zeros fill up the last block. */
        private void fill(String name, long size) throws IOException {
            byte[] zeros = new byte[(int) (-size & BLOCK - 1)];
            if (!Arrays.equals(in.readNBytes(zeros.length), zeros)) {
                throw wrong("the zeros that should follow " + name + " are not there");
            }
        }

        private byte[] content(String name, int size) throws IOException {
            byte[] content = in.readNBytes(size);
            if (content.length < size) {
                throw wrong("it is cut off in " + name);
            }
            fill(name, size);
            return content;
        }

        /**
         * Reads and verifies all parts, and writes them into a directory, the RAM only if it is wanted. Returns the
         * checksums by the parts' names.
         */
        Map<String, Sums> unpack(Path directory, boolean withRam, Progress progress) throws IOException {
            Map<String, Sums> sums = new HashMap<>();
            long total = manifest.parts().stream().mapToLong(Part::bytes).sum();
            if (Files.isRegularFile(file) && Files.size(file) < total) {
                throw wrong("it is cut off, as it has " + Files.size(file) + " bytes, and its parts have " + total);
            }
            for (Part part : manifest.parts()) {
                long size = header(part.name());
                if (size != part.bytes()) {
                    throw wrong(part.name() + " has " + size + " bytes, and the manifest says " + part.bytes());
                }
                boolean kept = withRam || !part.name().equals(Part.RAM);
                Sums read = read(part, kept ? directory.resolve(part.name()) : null, progress);
                fill(part.name(), size);
                if (!read.sha256().equals(part.sha256())) {
                    throw wrong("the SHA-256 of " + part.name() + " is not the one in the manifest");
                }
                sums.put(part.name(), read);
                onStep.accept("part unpacked");
            }
            if (header(MANIFEST_SUM) != manifestSum.length()
                    || !new String(content(MANIFEST_SUM, manifestSum.length()), UTF_8).equals(manifestSum)) {
                throw wrong("the SHA-256 at its end is not that of its manifest");
            }
            byte[] end = in.readNBytes(MAX_END + 1);
            if (end.length < 2 * BLOCK || !Arrays.equals(end, new byte[Math.min(end.length, MAX_END)])) {
                throw wrong("it is cut off after its parts, or something else follows them");
            }
            return sums;
        }

        /** Copies a part into a file. Without a file it only computes the checksums. */
        private Sums read(Part part, Path target, Progress progress) throws IOException {
            String act = "reading the " + part.name();
            try {
                if (target == null) {
                    return Sums.copy(in, OutputStream.nullOutputStream(), part.bytes(), progress, act);
                }
                privateDirectory(target.getParent());
                try (FileChannel out = newFile(target)) {
                    Sums sums = Sums.copy(in, Channels.newOutputStream(out), part.bytes(), progress, act);
                    out.force(true);
                    return sums;
                }
            } catch (EOFException cut) {
                throw wrong("it is cut off in " + part.name());
            }
        }
    }

    /**
     * Makes a VM from an image file. All of it is first written to NAME.import.part and verified. Then this directory
     * is renamed to NAME.import, and from then on the VM exists: its files only have to be moved, by the next command
     * if this one is killed.
     */
    record ImageImport(VmFiles files, Consumer<String> say) {
        private Path part() {
            return files.file(".import.part");
        }

        private Path complete() {
            return files.file(".import");
        }

        /** Reads and verifies the image, and makes its VM, in place of the one of this name if there is one. */
        void receive(ImageFile image, boolean withRam) throws IOException {
            long started = System.nanoTime();
            Manifest manifest = image.manifest;
            try (Undo undo = new Undo(say); Progress progress = new Progress("import", say)) {
                undo.add(() -> deleteTree(part()));
                Map<String, Sums> sums = image.unpack(privateDirectory(part()), withRam, progress);
                Path disk = part().resolve(Part.DISK);
                checkDisk(disk, manifest, "it came from " + image.file);
                Files.setPosixFilePermissions(disk, PosixFilePermissions.fromString("r--------"));
                Files.move(disk, part().resolve("-clean.qcow2"));
                renameHostKey(part().resolve(Part.KEYS + "known_hosts"), image);
                Files.move(part().resolve(Part.KEYS), part().resolve(".ssh"));
                if (withRam) {
                    recordRam(manifest, sums.get(Part.RAM).crc32c());
                }
                onStep.accept("unpacked");
                refuseIfInterrupted();
                Files.move(part(), complete(), StandardCopyOption.ATOMIC_MOVE);
                undo.clear();
            }
            onStep.accept("import complete");
            place();
            if (manifest.hasRam() && !withRam) {
                say.accept("its RAM was not imported, as that needs --with-ram: the first start boots the disk");
            }
            if (manifest.json().getBoolean("diskInUse") && !withRam) {
                say.accept("a guest was using the disk when the snapshot was taken, so the first start boots as after "
                        + "a power cut: what the guest wrote in the last 30 s before may be missing");
            }
            say.accept("imported " + files.name() + ", DragonFly " + manifest.dragonfly()
                    + ", in " + seconds(started) + ": VM_NAME=" + files.name() + " vm-ctl start");
        }

        /** A header can name any file of this machine, which QEMU would then read or write. */
        private static void checkDisk(Path disk, Manifest manifest, String origin) throws IOException {
            Path backing = backingFile(disk, origin);
            if (backing != null) {
                throw unavailable(disk + " builds on another file, " + backing + ", which is refused; " + origin);
            } else if (Disk.find(disk).filter(found -> found.size() == manifest.json().getLong("diskSize")).isEmpty()) {
                throw unavailable(disk + " is damaged, or not as large as the manifest says; " + origin);
            }
        }

        /** known_hosts has the guest's host key under the VM's name. */
        private void renameHostKey(Path knownHosts, ImageFile image) throws IOException {
            String[] words = Files.readString(knownHosts, ISO_8859_1).strip().split("\\s+");
            if (words.length != 3 || !words[1].matches("[a-z0-9-]+") || !words[2].matches("[A-Za-z0-9+/]+=*")) {
                throw image.wrong("known_hosts is not one host key");
            }
            writeFile(knownHosts, files.name() + " " + words[1] + " " + words[2] + "\n");
        }

        /** The RAM becomes that of the snapshot clean. The record names the files where place() will move them. */
        private void recordRam(Manifest manifest, long crc32c) throws IOException {
            Path directory = privateDirectory(part().resolve(".snapshots").resolve(CLEAN));
            Path ram = Files.move(part().resolve(Part.RAM), directory.resolve("ram"));
            Path later = files.record(CLEAN).resolveSibling("ram");
            writeRecord(directory.resolve("snapshot.json"), object("disk", files.relative(files.clean()),
                    "made", Instant.now().toString(), "ramBytes", Files.size(ram), "ramCrc32c", crc32c,
                    "ram", files.relative(later), "hardware", strings(manifest.json(), "hardware")));
        }

        /**
         * Moves the files of a complete import to their places. It can be killed and repeated: the keys are moved
         * first, so as long as they are not, the files there are those of the VM that is replaced.
         */
        private void place() throws IOException {
            if (Files.exists(complete().resolve(".ssh"))) {
                Machine.of(files, removed -> { }).destroy(files.file(".lock"), complete());
                onStep.accept("old VM removed");
            }
            for (String suffix : List.of(".ssh", ".snapshots", "-clean.qcow2")) {
                Path file = complete().resolve(suffix);
                if (Files.exists(file)) {
                    Files.move(file, files.file(suffix), StandardCopyOption.ATOMIC_MOVE);
                    onStep.accept("placed " + suffix);
                }
            }
            Files.delete(complete());
        }

        /** After an import that was killed: completes it if it was verified, else deletes what it wrote. */
        void recover() throws IOException {
            deleteTree(part());
            if (Files.exists(complete())) {
                place();
                say.accept("completed the import of " + files.name() + ", which had been interrupted");
            }
        }
    }

    // The machine.

    /** A guest that does not come up: it is silent, or its console tells of trouble. */
    static final class GuestUnusable extends VmException {
        private static final long serialVersionUID = 1;

        GuestUnusable(int exitCode, String message) {
            super(exitCode, message);
        }
    }

    /** A VM with its QEMU and its guest: waits until the guest answers, tells its state, stops it. */
    record Machine(VmFiles files, Qemu qemu, GuestSsh ssh, Consumer<String> say) {
        /** rc.shutdown and init may take 150 s by their own limits. */
        private static final Duration SHUTDOWN_LIMIT = Duration.ofSeconds(160);
        /** A guest that shuts down has ended its sshd long before. */
        private static final Duration STILL_ANSWERS = Duration.ofSeconds(30);

        static Machine of(VmFiles files, Consumer<String> say) {
            return new Machine(files, new Qemu(files, say), new GuestSsh(files, say), say);
        }

        /** For messages: how the running VM is reached. */
        String describe() throws IOException {
            Running running = qemu.requireRunning();
            return "ssh on port " + running.port() + " (pid " + running.pid() + ", " + running.accel() + ")";
        }

        /**
         * Waits until the guest's sshd answers a command; says why if it does not. A restored guest is told the time,
         * and gets fresh random bytes; a clone gets its own hostname.
         */
        void awaitGuest(Running running, Duration limit) throws IOException {
            int port = running.port();
            boolean restoring = running.json().getBoolean("restored") && !running.isReady();
            String last = "sshd does not answer on port " + port;
            int refusals = 0;
            long deadline = System.nanoTime() + limit.toNanos();
            try (Progress progress = new Progress(restoring ? "restoring" : "booting", say)) {
                // an emulated sshd is slow
                for (int patience = 1000; System.nanoTime() < deadline; patience = Math.min(5000, patience + 250)) {
                    ConsoleText console = consoleOfUsable(running);
                    progress.stage(restoring ? "waiting for ssh" : console.bootStage());
                    if (hasBanner(port, patience)) {
                        GuestSsh.Output first = ssh.greet(restoring);
                        if (first.ok()) {
                            qemu.write(running.with("ready", true).during(Act.NONE));
                            return;
                        }
                        ssh.closeMaster(); // the next try has a connection of its own
                        last = first.text().substring(first.text().lastIndexOf('\n') + 1);
                        refusals += last.contains("Permission denied") ? 1 : 0;
                        if (last.contains("Host key verification failed") || refusals == 3) {
                            throw unavailable("the guest's keys are not those in " + files.file(".ssh")
                                    + ": put the right ones back there (" + last + ")");
                        }
                    }
                    pause(50);
                }
            }
            String advice = hangAdvice(running.accel(), Integer.parseInt(running.json().getString("cpus", "1")));
            throw new GuestUnusable(124, "no answer after " + limit.toSeconds() + " s: " + last + advice
                    + consoleSince(running).end());
        }

        /** What the console has shown since the start; an exception if the guest cannot come up any more. */
        private ConsoleText consoleOfUsable(Running running) throws IOException {
            if (!qemu.isRunning()) {
                throw new GuestUnusable(69, "QEMU ended while the guest was starting" + qemu.logEnd()
                        + consoleSince(running).end());
            }
            String state = qemu.runState();
            if (state.equals("internal-error")) {
                throw new GuestUnusable(69, standstill(state, running.pid()));
            } else if (standstill(state, running.pid()) != null) {
                throw standsStill(state, running);
            }
            ConsoleText console = consoleSince(running);
            Optional<String> trouble = troubleOf(running, console);
            // A panic without the debugger reboots by itself.
            if (trouble.isPresent() && !console.text().contains("Automatic reboot in ")) {
                throw new GuestUnusable(69, "the guest is in trouble: " + trouble.get() + consoleSince(running).end());
            }
            return console;
        }

        /** Why a guest that is paused cannot be used; 1 if this machine's disk is full. */
        static VmException standsStill(String state, Running running) {
            return new VmException(state.equals("io-error") ? 1 : 69, standstill(state, running.pid()));
        }

        /** Refuses a paused guest. One that a snapshot or a restore has paused is about to resume. */
        void refuseIfPaused() throws IOException {
            String[] why = new String[1];
            if (!await(Duration.ofSeconds(1), () -> (why[0] = whyPaused()) == null)) {
                throw unavailable(why[0]);
            }
        }

        private String whyPaused() throws IOException {
            Running running = qemu.running().orElse(null);
            String state = qemu.runState();
            boolean known = running != null && running.act() == Act.NONE && !state.equals("unknown");
            return known ? standstill(state, running.pid()) : null;
        }

        /** What its console tells of trouble; whatever that is, a guest whose sshd answers has none. */
        private Optional<String> troubleOf(Running running, ConsoleText console) {
            return console.trouble().filter(trouble -> !hasBanner(running.port(), 5000));
        }

        /**
         * What start does if the VM runs: a paused guest resumes, one that shuts down is awaited. False if
         * it has ended.
         */
        boolean resume(Plan plan) throws IOException {
            Running running = qemu.running().orElse(null);
            if (running == null && qemu.isRunning()) {
                throw unavailable("QEMU runs, but " + files.pidFile() + " is missing: vm-ctl restart --force");
            }
            Optional<String> state = running == null ? Optional.empty() : qemu.stateUnlessEnded();
            if (state.isEmpty()) {
                qemu.removeLeftovers();
                return false;
            }
            if (plan.net().equals("offline") && !running.net().equals("offline")) {
                throw unavailable(files.name() + " runs with a network, which cannot be taken away while it "
                        + "runs: vm-ctl restart --net offline");
            }
            // a start may have been killed before it did, or VM_DIR moved since
            attempt(say, "the ssh config could not be written", () -> ssh.writeConfig(running.port()));
            boolean wasPaused = !state.get().equals("running");
            if (wasPaused) {
                qemu.qmp("cont");
                say.accept("the guest was paused: resuming it");
            }
            if (running.act() == Act.STOPPING || consoleSince(running).showsShutdown()) {
                say.accept("the guest is shutting down; waiting for its end");
                // A stop may have been interrupted before the guest was asked: then it still answers after a while.
                if (hasEnded(STILL_ANSWERS) || !ssh.run(SOON, "true").ok() && hasEnded(SHUTDOWN_LIMIT)) {
                    qemu.removeLeftovers();
                    return false;
                }
                say.accept("it did not shut down, and goes on running");
                note(running.during(Act.NONE));
            }
            if (plan.waits()) {
                awaitGuest(running, plan.timeout());
                if (wasPaused) {
                    ssh.setClock();
                }
            }
            return true;
        }

        /** Opens further ports of a running VM. */
        void addForwards(List<String> forwards) throws IOException {
            for (String forward : forwards) {
                Running running = qemu.requireRunning();
                if (!running.forwards().contains(forward)) {
                    qemu.addForward(forward);
                    List<String> all = new ArrayList<>(running.forwards());
                    all.add(forward);
                    qemu.write(running.with("forwards", all));
                    say.accept("forwarding port " + forward.replace(":", " of 127.0.0.1 to the guest's port "));
                }
            }
        }

        /** Ends the VM; asks the guest first, unless forced or in vain. Each step needs less than the one before. */
        void stop(boolean force) throws IOException {
            if (!qemu.isRunning()) {
                say.accept(files.name() + " is not running");
                return;
            }
            Running running = force ? null : qemu.running().orElse(null);
            boolean ask = false;
            if (running != null) {
                Optional<String> state = qemu.stateUnlessEnded();
                if (state.isEmpty()) {
                    qemu.removeLeftovers();
                    say.accept(files.name() + " has ended by itself");
                    return;
                }
                ask = canBeAsked(running, state.get());
            }
            ssh.closeMaster(); // it may belong to a boot of the guest that is over
            if (ask) {
                note(running.during(Act.STOPPING));
            }
            boolean ended = ask && endsBy("shutdown -p now over ssh", SHUTDOWN_LIMIT,
                            () -> hasBanner(running.port(), 5000) && ssh.run(SOON, "shutdown -p now").ok())
                    || ask && endsBy("the power button", SOON, () -> qemu.qmp("system_powerdown") != null)
                    || qemu.answers()
                    && endsBy("QMP quit", Duration.ofSeconds(30), () -> qemu.qmp("quit") != null)
                    || endsBy("SIGKILL", SOON, () -> {
                        qemu.end();
                        return true;
                    });
            if (!ended) {
                throw unavailable(files.name() + " could not be stopped; the lines above say why");
            }
        }

        /** Takes a step, and waits for QEMU's end; a step that does not work is said. */
        private boolean endsBy(String step, Duration limit, Condition taken) throws IOException {
            long started = System.nanoTime();
            try {
                onStep.accept("stopping by " + step);
                boolean ends = taken.holds();
                ssh.closeMaster();
                if (ends && hasEnded(limit)) {
                    qemu.removeLeftovers();
                    say.accept("stopped " + files.name() + " by " + step + " in " + seconds(started));
                    return true;
                }
                say.accept(step + ": no effect");
            } catch (IOException | VmException failed) {
                if (failed instanceof VmException expected && expected.exitCode != 69) { // interrupted, or a full disk
                    throw failed;
                }
                say.accept(step + ": " + failed.getMessage());
            }
            return false;
        }

        /**
         * Waits for QEMU's end. A guest that cannot write on the way is not ended: what it has not written would be
         * lost.
         */
        private boolean hasEnded(Duration limit) throws IOException {
            try (Progress progress = new Progress("stopping", say)) {
                progress.stage("waiting for the guest");
                return await(limit, () -> {
                    if (qemu.hasEnded(Duration.ofSeconds(2))) {
                        return true;
                    } else if (qemu.runState().equals("io-error")) {
                        throw cannotWrite();
                    }
                    return false;
                });
            }
        }

        private static VmException cannotWrite() {
            return new VmException(1, "the disk of this machine is full, so the guest cannot finish its writes: free "
                    + "some space and repeat vm-ctl stop; vm-ctl stop --force loses what it has not written");
        }

        /** Whether it makes sense to ask the guest to shut down. */
        private boolean canBeAsked(Running running, String state) throws IOException {
            if (state.equals("io-error")) {
                throw cannotWrite();
            } else if (!Set.of("running", "internal-error").contains(state)) {
                qemu.qmp("cont");
            }
            Optional<String> trouble = state.equals("internal-error") ? Optional.of(standstill(state, running.pid()))
                    : troubleOf(running, consoleSince(running));
            trouble.ifPresent(why -> say.accept("the guest cannot be asked to shut down: " + why));
            return trouble.isEmpty();
        }

        /** Ends the VM at once and deletes its files, except those to keep; reports each that it removed. */
        void destroy(Path... kept) throws IOException {
            ssh.closeMaster();
            if (qemu.isRunning()) {
                qemu.end();
            }
            Path sockets = files.socket(".qmp").getParent();
            onStep.accept("destroying");
            for (Path file : files.all()) {
                // a copy of VM_DIR may use it, too
                boolean elsewhere = Files.isSymbolicLink(file) && Files.isDirectory(file);
                String target = elsewhere ? "; what it names stays: " + file.toRealPath() : "";
                if (!List.of(kept).contains(file)) {
                    deleteTree(file);
                    say.accept("removed " + file.getFileName() + target);
                }
            }
            if (!sockets.equals(files.dir())) {
                deleteIfEmpty(sockets);
            }
        }

        /** Writes the record. A failure is only reported, because the record only helps the next command. */
        private void note(Running running) {
            attempt(say, "the record of the VM could not be written", () -> qemu.write(running));
        }

        /**
         * What can be said of a VM soon. Its sshd gets more than a second to answer only if the console tells of
         * trouble.
         */
        Report report() throws IOException {
            Running running = qemu.running().orElse(null);
            if (!qemu.isRunning()) {
                return Files.exists(files.pidFile()) ? new Report("gone", 3, "QEMU ended without being stopped", null)
                        : new Report("stopped", 3, null, null);
            } else if (running == null) {
                return new Report("starting", 0,
                        "a start is running, or was interrupted; after an interruption run vm-ctl start", null);
            }
            String state = qemu.runState();
            String standstill = standstill(state, running.pid());
            if (state.equals("unknown")) {
                return new Report("hung", 69, standstill, running);
            } else if (running.act() == Act.SAVING && !state.equals("running")) {
                return new Report("paused", 0,
                        "a snapshot is being taken, or was interrupted; if so, vm-ctl start resumes the guest",
                        running);
            } else if (standstill != null) {
                return new Report("paused", 0, standstill, running);
            }
            ConsoleText console = consoleSince(running);
            Optional<String> trouble = troubleOf(running, console);
            if (trouble.isPresent()) {
                return new Report("panicked", 69, trouble.get(), running);
            }
            String reason = running.act() == Act.STOPPING || console.showsShutdown() ? "it is shutting down"
                    : console.showsRebootAfterPanic() ? "rebooted after a panic" : null;
            return new Report(running.isReady() || hasBanner(running.port(), 500) ? "running" : "starting", 0, reason,
                    running);
        }

        /** Why a guest does not answer, what to do, and what its console shows. */
        String whySilent() throws IOException {
            Running running = qemu.running().orElse(null);
            if (running == null) {
                return "the VM has ended: vm-ctl start";
            }
            String standstill = standstill(qemu.runState(), running.pid());
            return (standstill == null ? "the guest or its sshd hangs: vm-ctl restart" : standstill)
                    + consoleSince(running).end();
        }

        private ConsoleText consoleSince(Running running) throws IOException {
            return new ConsoleText(fileEnd(files.consoleLog(), running.consoleAt(), 1 << 18));
        }
    }

    /** What a guest has printed on its console since its start; DragonFly's loader, kernel and rc are known here. */
    record ConsoleText(String text) {
        private static final String KERNEL_STARTS = "Copyright (c) 2003-";
        /** The kernel may try several devices as its root: one that fails matters only if it then asks for another. */
        private static final Pattern TROUBLE = Pattern.compile(
                "Root mount failed: \\d+(?=\\s+Manual root filesystem specification)"
                + "|no bootable kernel|can't (load|find) 'kernel'|Automatic file system check failed|ABORTING BOOT"
                + "|Enter full pathname of shell|The operating system has halted|Stopped at .{0,500}(?=\\Rdb> \\z)");

        /** What keeps the guest from answering. */
        Optional<String> trouble() {
            String recent = text.substring(Math.max(0, lastGoodSign())); // older trouble is over
            int panic = kernelPanic(recent);
            Matcher other = TROUBLE.matcher(recent);
            if (other.find() && (panic < 0 || other.start() < panic)) { // the first one is the cause of the others
                return Optional.of(printable(other.group().strip()));
            }
            return panic < 0 ? Optional.empty() : recent.substring(panic).lines().findFirst().map(VmCtl::printable);
        }

        private int lastGoodSign() {
            return Math.max(text.lastIndexOf(KERNEL_STARTS), text.lastIndexOf("\nlogin: "));
        }

        boolean showsRebootAfterPanic() {
            int panic = kernelPanic(text);
            return panic >= 0 && text.lastIndexOf(KERNEL_STARTS) > panic;
        }

        /** Whether it ends in what DragonFly's kernel prints last, with its processes gone already. */
        boolean showsShutdown() {
            return text.lastIndexOf("\nsyncing disks...") > lastGoodSign();
        }

        /** How far a boot is. */
        String bootStage() {
            int kernel = text.lastIndexOf(KERNEL_STARTS);
            return kernel < 0 ? "the loader" : text.lastIndexOf("\nlogin: ") > kernel ? "waiting for sshd"
                    : text.lastIndexOf("\nMounting root from ") > kernel ? "services start" : "the kernel starts";
        }

        /** For a message: its last lines, or an empty text if there are none. */
        String end() {
            String lines = lastLines(text, 5);
            return lines.isEmpty() ? "" : "\nthe console's last lines:\n" + lines;
        }
    }

    // ssh.

    /** The guest by ssh, through the config that every tool can use; one connection is shared for a minute. */
    record GuestSsh(VmFiles files, Consumer<String> say) {
        /** How many bytes are kept of what a command in the guest prints. */
        static final int MAX_OUTPUT = 1 << 16;
        /** For a command that ends soon if the guest answers: KILL takes 5 s, and the guest may be slow. */
        static Duration answerLimit = Duration.ofSeconds(30);

        /**
         * RAM holds the ssh sessions of then, whose other end is gone. They would stay for hours; all but our own are
         * ended. Only positive PIDs count: DragonFly's kernel threads have -1, with 0 as parent, and the parent of 0 is
         * -1.
         */
        private static final String END_OLD_SESSIONS = """
                for pid in $(ps -axww -o pid,ppid,command | awk -v own=$$ '
                        $1 + 0 > 0 { parent[$1] = $2 }
                        /sshd: root/ { session[$1] }
                        END {
                            for (pid = own; pid in parent; pid = parent[pid]) delete session[pid]
                            for (pid in session) print pid
                        }'); do kill $pid; done 2>/dev/null""";

        /** [v]MARK keeps awk from matching its own command line. KILL comes 5 s after TERM. */
        private static final String KILL = """
                for group in $(ps -axww -o pgid,command | awk '/[v]MARK/ { print $1 }' | sort -u); do
                    kill -TERM -$group
                    n=0
                    while kill -0 -$group && [ $n -lt 5 ]; do sleep 1; n=$((n + 1)); done
                    kill -KILL -$group
                done 2>/dev/null
                :""";

        /** What a command in the guest printed, and whether it ended with 0; not if ssh failed or took too long. */
        record Output(boolean ok, String text) {}

        List<String> command(String... words) {
            return Stream.concat(Stream.of("ssh", "-F", files.dir().resolve("ssh_config").toString(), files.name()),
                    Stream.of(words)).toList();
        }

        Output run(Duration limit, String line) throws IOException {
            ByteArrayOutputStream kept = new ByteArrayOutputStream() { // the guest may print without end
                @Override
                public synchronized void write(byte[] bytes, int from, int count) {
                    super.write(bytes, from, Math.min(count, MAX_OUTPUT - size()));
                }
            };
            if (verbose) {
                say.accept("+ " + shellQuoted(command(line)));
            }
            try {
                int code = new ProcessExecutor(command(line)).redirectInput(InputStream.nullInputStream())
                        .redirectOutput(kept).timeout(limit.toMillis(), TimeUnit.MILLISECONDS).destroyOnExit()
                        .execute().getExitValue();
                return new Output(code == 0, printable(kept.toString(UTF_8)).strip());
            } catch (TimeoutException late) {
                return new Output(false, "ssh did not end within " + limit.toSeconds() + " s");
            } catch (InterruptedException interrupted) {
                throw interrupted();
            } catch (IOException missing) {
                return new Output(false, missing.getMessage());
            }
        }

        /**
         * The first command for a guest that should answer. It brings a restored one, and a clone, up to date with the
         * same call.
         */
        Output greet(boolean restored) throws IOException {
            List<String> lines = new ArrayList<>();
            if (restored) {
                byte[] seed = new byte[64];
                new SecureRandom().nextBytes(seed);
                lines.add(seedCommand(seed) + " || echo its random numbers could not be seeded");
                lines.add(END_OLD_SESSIONS);
            }
            if (Snapshot.source(files).isPresent()) {
                lines.add("hostname " + files.name().replace('_', '-') + " || echo its hostname could not be set");
            }
            lines.add(":");
            Output output = run(SOON.dividedBy(2), shellQuoted(List.of("sh", "-c", String.join("\n", lines))));
            if (output.ok() && !output.text().isEmpty()) {
                say.accept("the guest answers, but " + output.text());
            }
            if (output.ok() && restored) {
                setClock();
            }
            return output;
        }

        /**
         * Without new bytes, guests of one RAM file would hand out the same random numbers. DragonFly's /dev/random
         * takes some only while this sysctl is set.
         */
        static String seedCommand(byte[] seed) {
            StringBuilder octal = new StringBuilder();
            for (byte one : seed) {
                octal.append(String.format("\\%03o", one & 0xff));
            }
            return "sysctl kern.seedenable=1 >/dev/null && printf '" + octal + "' >/dev/random"
                    + " && sysctl kern.seedenable=0 >/dev/null";
        }

        /**
         * A guest that was paused has the time of then. The BSD date takes whole seconds; a try that took long is
         * repeated.
         */
        void setClock() throws IOException {
            DateTimeFormatter form = DateTimeFormatter.ofPattern("yyyyMMddHHmm.ss").withZone(ZoneOffset.UTC);
            long delay = 0; // of the connection, in milliseconds
            for (int attempt = 0; attempt < 3 && (attempt == 0 || delay > 150); attempt++) {
                Instant started = Instant.now();
                if (!endsWell(command("date -u " + form.format(started.plusMillis(500 + delay))))) {
                    say.accept("the guest's clock could not be set; it is late by as long as the guest was paused");
                    return;
                }
                delay = Duration.between(started, Instant.now()).toMillis() / 2;
            }
        }

        /** Ends the shared connection: one that outlives its guest would hang whoever uses it next. */
        void closeMaster() throws IOException {
            Path control = files.socket(".control");
            if (Files.exists(control)) {
                VmCtl.run(SOON, command("-O", "exit"));
                Files.deleteIfExists(control);
            }
        }

        /** Writes the connection's settings, for every tool that reads ssh_config, and the file that includes them. */
        void writeConfig(int port) throws IOException {
            Path keys = privateDirectory(files.file(".ssh"));
            writeFile(keys.resolve("config"), """
                    Host %1$s
                    HostName 127.0.0.1
                    Port %2$d
                    User root
                    HostKeyAlias %1$s
                    IdentityFile %3$s
                    IdentitiesOnly yes
                    UserKnownHostsFile %4$s
                    GlobalKnownHostsFile /dev/null
                    StrictHostKeyChecking yes
                    UpdateHostKeys no
                    PasswordAuthentication no
                    BatchMode yes
                    ConnectTimeout 30
                    ServerAliveInterval 15
                    ServerAliveCountMax 4
                    ControlMaster auto
                    ControlPath %5$s
                    ControlPersist 60
                    """.formatted(files.name(), port, quoted(keys.resolve("id_ed25519")),
                    quoted(keys.resolve("known_hosts")), quoted(files.socket(".control"))));
            writeIncludes();
        }

        /**
         * Writes the file that includes every VM's config, by a pattern. With a list of the VMs, one could be missing
         * while several start at the same time: the command that made its list first could write last.
         */
        void writeIncludes() throws IOException {
            Path config = files.dir().resolve("ssh_config");
            if (entries(files.dir()).stream().noneMatch(file -> file.toString().endsWith(".ssh")
                    && Files.exists(file.resolve("config")))) {
                Files.deleteIfExists(config);
                return;
            }
            String directory = files.dir().toString().replaceAll("[\\\\*?\\[]", "\\\\$0"); // ssh expands what follows
            writeFile(config, "Include " + quoted(Path.of(directory, "*.ssh/config")) + "\n");
        }

        private static String quoted(Path path) {
            return '"' + path.toString().replace("\\", "\\\\").replace("\"", "\\\"").replace("%", "%%") + '"';
        }

        /**
         * What sshd hands to root's shell, which may be csh: quoted words. At the limit the guest itself kills the
         * process group. The command runs under a shell that has the mark as $0, so that kill() can find
         * its process group.
         */
        static String remoteCommand(List<String> words, List<String> environment, Duration limit, String mark) {
            String watcher = limit == null ? "" : "(n=" + limit.toSeconds()
                    + "; while [ $n -gt 0 ] && kill -0 $$; do sleep 1; n=$((n - 1)); done; "
                    + "kill -0 $$ && kill -KILL 0) </dev/null >/dev/null 2>&1 & ";
            List<String> command = new ArrayList<>(List.of("sh", "-c", watcher + "\"$@\"; exit $?", mark));
            if (!environment.isEmpty()) {
                command.add("env");
                command.addAll(environment);
            }
            command.addAll(words.size() == 1 ? List.of("sh", "-c", words.get(0)) : words);
            return shellQuoted(command);
        }

        /**
         * Ends a marked command in the guest with its process group. If the guest does not answer, the shared
         * connection is closed: while the guest's command runs, the ssh master keeps our stdout open.
         */
        void kill(String mark) {
            if (!endsWell(command(KILL.replace("MARK", mark.substring(1))))) {
                endsWell(command("-O", "exit"));
            }
        }

        /**
         * Whether a command that prints nothing of interest succeeds; also while this process is being ended by a
         * signal.
         */
        private static boolean endsWell(List<String> command) { // zt-exec's own shutdown hook would end it
            try {
                Process process = new ProcessBuilder(command).redirectInput(new File("/dev/null"))
                        .redirectOutput(Redirect.DISCARD).redirectError(Redirect.DISCARD).start();
                boolean ended = process.waitFor(answerLimit.toMillis(), TimeUnit.MILLISECONDS);
                process.destroy();
                return ended && process.exitValue() == 0;
            } catch (IOException | InterruptedException failed) {
                return false;
            }
        }
    }

    // QEMU.

    /** The QEMU process of one VM: starts it, tells whether it lives, talks to its monitor, ends it. */
    record Qemu(VmFiles files, Consumer<String> say) {
        /**
         * Every 30 s, while this QEMU lives: if the console's log or QEMU's own is larger than 10 MB, keeps its last
         * 1 MB as .1 and empties it. Arguments: QEMU's pid file, its pid, the seconds, the logs.
         */
        private static final String LOG_KEEPER = """
                cd /
                trap '' HUP INT
                while [ "$(cat "$1")" = "$2" ] && kill -0 "$2"; do
                    for log in "$4" "$5"; do
                        if [ "$(wc -c <"$log")" -gt 10000000 ]; then tail -c 1000000 "$log" >"$log.1"; : >"$log"; fi
                    done
                    sleep "$3"
                done </dev/null >/dev/null 2>&1 &
                """;
        /** Tests shorten it. */
        static int logCheckSeconds = 30;
        /** A QEMU that has not told the guest's state after this long hangs. Tests shorten it. */
        static Duration answerLimit = Duration.ofSeconds(5);
        /** The longest line that is read from the monitor, in characters. */
        private static final int MAX_RESPONSE = 1 << 24;
        /** The exit code of a QEMU that made a forbidden system call: 128 + SIGSYS. */
        private static final int KILLED_BY_SANDBOX = 159;
        /** Whether QEMU can start in a session of its own; macOS has no setsid. Tests clear it. */
        static boolean hasSetsid = Stream.of(System.getenv().getOrDefault("PATH", "").split(":"))
                .anyMatch(directory -> Files.isExecutable(Path.of(directory, "setsid")));

        /** The arguments that make the machine, as the guest and its RAM see it. */
        static List<String> hardware(String accelerator, String cpu, String memory, int cpus) {
            List<String> arguments = new ArrayList<>(List.of("-accel", accelArgument(accelerator, cpus), "-cpu", cpu,
                    "-m", memory, "-smp", "" + cpus, "-machine", "pc", "-nodefaults", "-no-user-config",
                    "-rtc", "base=utc", "-vga", "std", "-serial", "chardev:serial0",
                    // DragonFly's da0
                    "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=1",
                    "-device", "virtio-net-pci,netdev=net0,romfile=")); // vtnet0, without booting from the network
            if (accelerator.equals("kvm")) {
                arguments.addAll(List.of("-global", "kvm-pit.lost_tick_policy=delay"));
            }
            return arguments;
        }

        /** Makes QEMU forward a port of 127.0.0.1 to the guest. */
        void addForward(String forward) throws IOException {
            Ports.require(Ports.ofHost(forward));
            monitor("hostfwd_add net0 " + hostForward(forward), "QEMU refuses --forward " + forward);
        }

        private static String hostForward(String forward) {
            return "tcp:127.0.0.1:" + forward.replace(":", "-:");
        }

        /** A command of QEMU's monitor for people, which reports failures as text. */
        void monitor(String line, String failure) throws IOException {
            String refusal = printable((String) qmp("human-monitor-command", "command-line", line)).strip();
            if (!refusal.isEmpty()) {
                throw unavailable(failure + ": " + refusal);
            }
        }

        /** QEMU's command line. One that takes RAM in waits for it, and is paused then. */
        static List<String> arguments(VmFiles files, Plan plan, int port, Path disk,
                boolean takesRam) throws IOException {
            List<String> arguments = new ArrayList<>(hasSetsid ? List.of("setsid") : List.of());
            arguments.addAll(List.of(QEMU, "-name", files.name(), "-pidfile", files.qemuPid().toString(),
                    "-display", "none"));
            if (!hasSetsid) { // with -d strace, -D logs errors only, as no guest program is emulated
                arguments.addAll(List.of("-daemonize", "-D", files.qemuLog().toString(), "-d", "strace"));
            }
            arguments.addAll(sandbox(plan.hardware(), hasSetsid));
            arguments.addAll(List.of("-blockdev", JsonWriter.string(GuestDisk.options(disk, "disk0", plan.cache()))));
            String network = "user,id=net0" + (plan.net().equals("offline") ? ",restrict=on" : "") + ",hostfwd="
                    + hostForward(port + ":22");
            for (String forward : plan.forwards()) {
                network += ",hostfwd=" + hostForward(forward);
            }
            String socket = "socket,server=on,wait=off,id=";
            String log = ",logappend=on,logfile=" + doubled(files.consoleLog());
            arguments.addAll(List.of("-netdev", network,
                    "-chardev", socket + "qmp0,path=" + doubled(files.socket(".qmp")),
                    "-mon", "chardev=qmp0,mode=control",
                    "-chardev", socket + "serial0,path=" + doubled(files.socket(".console")) + log));
            if (takesRam) {
                arguments.addAll(List.of("-S", "-incoming", "defer"));
            }
            arguments.addAll(plan.hardware().subList(1, plan.hardware().size()));
            return arguments;
        }

        /** A comma in a key=value option has to be doubled. */
        private static String doubled(Path path) {
            return path.toString().replace(",", ",,");
        }

        /**
         * Starts QEMU on the first port it can have, and writes the record. With takesRam, QEMU stays paused and waits
         * for the RAM.
         */
        Running launch(Plan plan, Path disk, boolean takesRam) throws IOException {
            Disk.requireChain(disk, files.dir());
            if (plan.net().equals("offline")) {
                makeFile(files.offlineMark());
            } else {
                Files.deleteIfExists(files.offlineMark());
            }
            Files.deleteIfExists(files.pidFile()); // of the QEMU before
            privateDirectory(files.socket(".qmp").getParent()); // if it is in /tmp, arguments() checks it
            makeFile(files.consoleLog());
            long consoleAt = Files.size(files.consoleLog());
            requirePorts(plan);
            long deadline = System.nanoTime() + Duration.ofSeconds(10).toNanos();
            List<Integer> ports = Ports.candidates(plan);
            List<String> unknownOptions = List.of(); // to this QEMU
            while (true) {
                int port = ports.get(0);
                List<String> arguments = arguments(files, plan, port, disk, takesRam);
                arguments.removeAll(unknownOptions);
                String problem = start(arguments);
                if (problem == null) {
                    onStep.accept("QEMU started");
                    return begin(plan, port, consoleAt, takesRam);
                } else if (problem.contains("Cannot lock pid file") && System.nanoTime() < deadline) {
                    pause(20); // somebody asks whether it runs, which takes a moment
                } else if (unknownOptions.isEmpty() && problem.matches("(?sm)(.*^)?\\S+: -sandbox\\b.*")) {
                    say.accept("this QEMU was built without seccomp, so it runs without -sandbox: " + problem);
                    unknownOptions = sandbox(plan.hardware(), hasSetsid);
                } else if (problem.contains("tcp:127.0.0.1:" + port + "-") && ports.size() > 1) {
                    ports.remove(0); // somebody took the port meanwhile
                } else {
                    boolean full = files.dir().toFile().getUsableSpace() < 1 << 20; // then QEMU cannot say why
                    throw new VmException(full ? 1 : 69, "QEMU did not start: "
                            + (full ? noSpace(files.dir()) : problem));
                }
            }
        }

        /**
         * Starts QEMU apart from this command's terminal, session and streams, and waits until its monitor answers.
         * Returns null, or why it does not run.
         */
        private String start(List<String> command) throws IOException {
            Path log = files.qemuLog();
            Files.deleteIfExists(log);
            makeFile(log);
            if (verbose) {
                say.accept("+ " + shellQuoted(command));
            }
            try (Undo undo = new Undo(say)) {
                Process process = new ProcessBuilder(withUmask(command)).redirectInput(new File("/dev/null"))
                        .redirectErrorStream(true).redirectOutput(Redirect.appendTo(log.toFile())).start();
                undo.add(process::destroyForcibly);
                onStep.accept("QEMU begins");
                await(SOON, () -> !process.isAlive() || answers());
                // with -daemonize, this process is only QEMU's parent
                if (process.isAlive() ? answers() : process.exitValue() == 0 && !hasSetsid) {
                    undo.clear();
                    return null;
                }
                String output = printable(fileEnd(log, 0, 1 << 12)).strip();
                return !output.isEmpty() ? output
                        : process.isAlive() ? "it did not answer within " + SOON.toSeconds() + " s"
                        : process.exitValue() == KILLED_BY_SANDBOX ? "its sandbox forbids something that its arguments "
                        + "need, such as starting a program; to allow it, add a -sandbox of your own to VM_QEMU_ARGS"
                        : "it gave no reason (exit code " + process.exitValue()
                        + "); vm-ctl -v start shows its command line";
            }
        }

        /**
         * 69 if QEMU could not start as planned: asked before the VM is ended. If the plan changes the running
         * VM's hardware, a second QEMU is started with it, paused, and ended at once.
         */
        void requireStart(Plan plan) throws IOException {
            requirePorts(plan);
            if (!isRunning() || running().filter(running -> running.hardware().equals(plan.hardware())).isPresent()) {
                return;
            }
            List<String> command = new ArrayList<>(List.of("sh", "-c",
                    "echo '{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}' | exec \"$@\" >/dev/null", "sh",
                    QEMU, "-S",
                    "-display", "none", "-blockdev", "driver=null-co,node-name=disk0,read-zeroes=on", "-netdev",
                    "user,id=net0", "-chardev", "null,id=serial0", "-qmp", "stdio"));
            command.addAll(plan.hardware().subList(1, plan.hardware().size()));
            ProcessResult tried = run(SOON, command);
            if (tried.getExitValue() != 0) {
                throw unavailable("QEMU refuses these options, so nothing was changed: "
                        + printable(tried.outputUTF8()).strip());
            }
        }

        /** 69 if a port that must be had is in use by somebody else than this VM. */
        private void requirePorts(Plan plan) throws IOException {
            Running running = running().orElse(null);
            if (plan.portIsFixed() && (running == null || running.port() != plan.port())) {
                Ports.require(plan.port());
            }
            for (int port : plan.forwards().stream().map(Ports::ofHost).toList()) {
                if (running == null || running.forwards().stream().noneMatch(own -> Ports.ofHost(own) == port)) {
                    Ports.require(port);
                }
            }
        }

        private Running begin(Plan plan, int port, long consoleAt, boolean takesRam) throws IOException {
            String pid = Files.readString(files.qemuPid()).strip();
            try {
                Running running = write(new Running(object("pid", Long.parseLong(pid), "port", port,
                        "portIsFixed", plan.portIsFixed(), "accel", plan.accel(),
                        "memory", option(plan.hardware(), "-m"), "cpus", option(plan.hardware(), "-smp"),
                        "forwards", plan.forwards(), "net", plan.net(),
                        "hardware", plan.hardware(), "cache", plan.cache(), "started", Instant.now().toString(),
                        "consoleAt", consoleAt, "qmp", files.socket(".qmp").toString(), "restored", takesRam,
                        "act", (takesRam ? Act.RESTORING : Act.NONE).name())));
                run(SOON, withUmask(List.of("sh", "-c", LOG_KEEPER, "log-keeper", files.qemuPid().toString(), pid,
                        "" + logCheckSeconds, files.consoleLog().toString(),
                        files.qemuLog().toString())));
                return running;
            } catch (IOException full) {
                end();
                throw full;
            }
        }

        boolean isRunning() {
            return VmCtl.isRunning(files.qemuPid());
        }

        /** The record of the running VM; empty if it does not run, or if its start has not come that far. */
        Optional<Running> running() throws IOException {
            try {
                return Optional.ofNullable(runningVm(files.dir(), files.name())).map(Running::new);
            } catch (VmException locks) {
                throw locks;
            } catch (IOException | RuntimeException damaged) { // of whatever kind
                throw unavailable("the record of the running VM is damaged: " + files.pidFile()
                        + "; vm-ctl stop --force ends the VM, so that it can be started again");
            }
        }

        /** Like running(), of a VM that ran a moment ago: 69 if it has ended, or if its start wrote no record. */
        Running requireRunning() throws IOException {
            Optional<Running> running = running();
            if (running.isEmpty()) {
                throw unavailable(isRunning() ? "an earlier start was interrupted: run vm-ctl start again"
                        : "QEMU has ended" + logEnd());
            }
            return running.get();
        }

        Running write(Running running) throws IOException {
            writeRecord(files.pidFile(), running.json());
            return running;
        }

        /** One command for the monitor, and what it returns; 69 if QEMU refuses it or does not answer. */
        Object qmp(String command, Object... arguments) throws IOException {
            try {
                return qmp(SOON, command, arguments);
            } catch (IOException silence) {
                throw noAnswer();
            }
        }

        /** A QEMU that hangs accepts connections and never answers: at the limit the connection is closed. */
        private Object qmp(Duration limit, String command, Object... arguments) throws IOException {
            try (SocketChannel channel = limited(SocketChannel.open(StandardProtocolFamily.UNIX), limit);
                    Reader in = new BufferedReader(Channels.newReader(channel, UTF_8))) {
                channel.connect(UnixDomainSocketAddress.of(files.socket(".qmp")));
                String requests = "{\"execute\":\"qmp_capabilities\"}\n"
                        + JsonWriter.string(object("execute", command, "arguments", object(arguments), "id", command))
                        + "\n";
                channel.write(ByteBuffer.wrap(requests.getBytes(UTF_8)));
                for (String line = line(in, MAX_RESPONSE); line != null; line = line(in, MAX_RESPONSE)) {
                    JsonObject response = json(line); // the greeting, an event, or what was asked for
                    if (command.equals(response.getString("id")) && response.has("return")) {
                        return response.get("return");
                    } else if (response.has("error")) {
                        throw unavailable("QEMU refuses " + command + ": "
                                + response.getObject("error").getString("desc"));
                    }
                }
                throw new IOException("QEMU closed the connection");
            }
        }

        /** The next line, which an intruder in QEMU may never end; null at the end. */
        static String line(Reader in, int max) throws IOException {
            StringBuilder line = new StringBuilder();
            for (int character = in.read(); character >= 0 && character != '\n'; character = in.read()) {
                if (line.length() == max) {
                    throw new IOException("QEMU's answer is longer than " + max + " characters");
                }
                line.append((char) character);
            }
            return line.isEmpty() ? null : line.toString();
        }

        /**
         * For a QEMU that was found running: what the guest does, or empty if QEMU has ended meanwhile, as after a
         * shutdown. 69 if it runs and does not answer soon.
         */
        Optional<String> stateUnlessEnded() throws IOException {
            onStep.accept("found running");
            String state = runState();
            if (!state.equals("unknown")) {
                return Optional.of(state);
            } else if (!hasEnded(Duration.ofSeconds(1))) { // it closes its socket a moment before it is gone
                throw noAnswer();
            }
            return Optional.empty();
        }

        private VmException noAnswer() throws IOException {
            return unavailable(isRunning() ? standstill("unknown", process().map(ProcessHandle::pid).orElse(0L))
                    : "QEMU has ended" + logEnd());
        }

        /**
         * QEMU's word for what the guest does: running, paused, inmigrate, postmigrate, io-error ...; "unknown" without
         * an answer.
         */
        String runState() {
            try {
                return ((JsonObject) qmp(answerLimit, "query-status")).getString("status");
            } catch (IOException | VmException noAnswer) {
                return "unknown";
            }
        }

        boolean answers() {
            return !runState().equals("unknown");
        }

        /** Ends QEMU at once: by SIGKILL if the process is known to be this VM's, else by its monitor. */
        void end() throws IOException {
            ProcessHandle process = process().orElse(null);
            if (process != null) {
                process.destroyForcibly();
            } else {
                try {
                    qmp("quit");
                } catch (VmException noAnswer) {
                    // it may have ended while it was asked
                }
            }
            if (!hasEnded(SOON)) {
                throw unavailable(process != null ? "QEMU (pid " + process.pid()
                        + ") did not end after SIGKILL: it probably waits for this machine's disk"
                        : "QEMU does not answer, and its process cannot be seen from here; it probably runs in another "
                        + "container: vm-ctl stop --force there ends it");
            }
        }

        /**
         * QEMU's process. The pid may belong to a stranger, in another container; so its command line must name this
         * pid file.
         */
        private Optional<ProcessHandle> process() throws IOException {
            String pid = Files.exists(files.qemuPid()) ? Files.readString(files.qemuPid()).strip() : "";
            if (!pid.matches("[1-9]\\d{0,17}")) {
                return Optional.empty();
            }
            Path proc = Path.of("/proc/" + pid + "/cmdline");
            Optional<ProcessHandle> process = ProcessHandle.of(Long.parseLong(pid));
            String commandLine = Files.isReadable(proc) ? Files.readString(proc, ISO_8859_1)
                    : process.flatMap(found -> found.info().commandLine()).orElse("");
            String name = new String(files.qemuPid().toString().getBytes(UTF_8), ISO_8859_1);
            return process.filter(found -> commandLine.contains(name));
        }

        boolean hasEnded(Duration limit) throws IOException {
            return await(limit, () -> !isRunning());
        }

        /**
         * Removes what a QEMU that has ended left. Only under the VM's lock: a QEMU that starts meanwhile would lose
         * its pid file.
         */
        void removeLeftovers() throws IOException {
            for (Path file : List.of(files.pidFile(), files.qemuPid(), files.socket(".qmp"), files.socket(".console"),
                    files.socket(".ram"))) {
                Files.deleteIfExists(file);
            }
        }

        String logEnd() throws IOException {
            String lines = lastLines(fileEnd(files.qemuLog(), 0, 1 << 14), 2);
            return lines.isEmpty() ? "" : ": " + lines;
        }
    }

    /**
     * The disk of a running guest as QEMU has it open: which overlay it works on, one more on top of it, and the layers
     * under it, which can be merged meanwhile.
     */
    record GuestDisk(Qemu qemu) {
        /** A qcow2 disk for -blockdev; in JSON, because paths may contain commas and colons. */
        static JsonObject options(Path file, String node, String cache) {
            return object("node-name", node, "driver", "qcow2", "discard", "unmap", "detect-zeroes", "unmap",
                    "cache", object("direct", cache.equals("none"), "no-flush", cache.equals("unsafe")),
                    "file", object("driver", "file", "filename", file.toString()));
        }

        /** The overlay that the guest's disk is now; known by its file name, as VM_DIR may have been moved. */
        Path active() throws IOException {
            return qemu.files().disks().resolve(fileOf(activeImage().getString("file")).getFileName());
        }

        private JsonObject activeImage() throws IOException {
            return query("query-block").map(device -> device.getObject("inserted"))
                    .filter(image -> image != null && isOurs(image)).findFirst()
                    .orElseThrow(() -> unavailable("QEMU does not name the guest's disk"));
        }

        /** Whether vm-ctl named this node: disk0, or disk- and the name of its overlay. The user may add others. */
        private static boolean isOurs(JsonObject image) {
            String node = image.getString("node-name", "");
            return node.equals("disk0") || node.startsWith("disk-")
                    && image.getString("file").contains("/" + node.substring(5) + ".qcow2");
        }

        private Stream<JsonObject> query(String command) throws IOException {
            return ((JsonArray) qemu.qmp(command)).stream().map(JsonObject.class::cast);
        }

        /** The qcow2 images that QEMU has open. */
        private List<JsonObject> images() throws IOException {
            return query("query-named-block-nodes").filter(node -> node.getString("drv").equals("qcow2")).toList();
        }

        /**
         * QEMU tells a file's path, or, if its backing file is not the one that the image names, a JSON description.
         */
        private static Path fileOf(String name) throws IOException {
            return Path.of(name.startsWith("json:") ? json(name.substring(5)).getObject("file").getString("filename")
                    : name);
        }

        /** The node of a disk of this VM, also of one under the working disk; empty if QEMU does not use it. */
        Optional<String> node(Path disk) throws IOException {
            for (JsonObject image : images()) {
                if (fileOf(image.getString("file")).endsWith(disk.getFileName())) {
                    return Optional.of(image.getString("node-name"));
                }
            }
            return Optional.empty();
        }

        /** Opens an overlay beside the guest's disk, and returns its node's name. */
        String addOverlay(Path overlay, String cache) throws IOException {
            String node = "disk-" + overlay.getFileName().toString().replace(".qcow2", "");
            JsonObject options = options(overlay, node, cache);
            options.put("backing", null); // blockdev-snapshot sets it
            qemu.qmp("blockdev-add", options.entrySet().stream().flatMap(entry ->
                    Stream.of(entry.getKey(), entry.getValue())).toArray());
            return node;
        }

        /** Lets the guest work on an overlay that was added. */
        void switchTo(String node) throws IOException {
            qemu.qmp("blockdev-snapshot", "node", activeImage().getString("node-name"), "overlay", node);
        }

        void close(String node) throws IOException {
            qemu.qmp("blockdev-del", "node-name", node);
        }

        /**
         * Copies into a disk in use what lies between it and the base, and lets it build on the base, while the guest
         * runs. What was copied is flushed before the disk is said to build on the base: else a killed QEMU would lose
         * it.
         */
        void merge(Path disk, Path base, String relativeBase) throws IOException {
            String job = "merge-" + randomWord();
            String node = node(disk).orElseThrow();
            qemu.qmp("block-stream", "job-id", job, "device", node, "base-node", node(base).orElseThrow(),
                    "backing-file", relativeBase, "auto-finalize", false, "auto-dismiss", false);
            awaitJob(job, "pending");
            qemu.monitor("qemu-io " + node + " flush", "the disk could not be flushed");
            qemu.qmp("job-finalize", "id", job);
            awaitJob(job, "concluded");
            qemu.qmp("job-dismiss", "id", job);
            for (JsonObject image : images()) { // QEMU keeps an image open, and its space in use, until it is closed
                try {
                    if (isOurs(image)) {
                        close(image.getString("node-name"));
                    }
                } catch (VmException inUse) {
                    // it is still part of a chain
                }
            }
        }

        /** Ends merges of a command that was killed: no snapshot can be taken during one. They are begun anew later. */
        void cancelMerges() throws IOException {
            for (JsonObject state : query("query-jobs").toList()) {
                String job = state.getString("id");
                if (job.startsWith("merge-")) {
                    if (!state.getString("status").equals("concluded")) {
                        qemu.qmp("job-cancel", "id", job);
                    }
                    try {
                        awaitJob(job, "concluded");
                        qemu.qmp("job-dismiss", "id", job);
                    } catch (VmException cancelled) {
                        // awaitJob has dismissed it
                    }
                }
            }
        }

        /** Waits until a job is that far; a job that has failed is dismissed. */
        private void awaitJob(String job, String status) throws IOException {
            boolean reached = await(Duration.ofMinutes(15), () -> {
                JsonObject state = query("query-jobs").filter(each -> each.getString("id").equals(job)).findFirst()
                        .orElseThrow(() -> unavailable("the merge was ended by somebody else"));
                if (state.getString("error") != null) {
                    qemu.qmp("job-dismiss", "id", job);
                    throw unavailable(state.getString("error"));
                }
                return state.getString("status").equals(status);
            });
            if (!reached) {
                qemu.qmp("job-cancel", "id", job);
                throw new VmException(124, "merging takes longer than 15 minutes");
            }
        }
    }

    /** The RAM of a guest that is paused: to a file, and from a file into a QEMU that waits for it. */
    record GuestRam(Qemu qemu) {
        /**
         * Writes the RAM of a guest that is paused to a file; returns its size and checksum, for the snapshot's
         * record. It goes through this process, because QEMU says "completed" also if the program at the other end
         * failed or the disk was full.
         */
        JsonObject save(Path file, Duration limit) throws IOException {
            long started = System.nanoTime();
            Path socket = qemu.files().socket(".ram");
            Files.deleteIfExists(socket);
            try (ServerSocketChannel server = limited(ServerSocketChannel.open(StandardProtocolFamily.UNIX), limit)) {
                server.bind(UnixDomainSocketAddress.of(socket));
                // the defaults are for networks
                qemu.qmp("migrate-set-parameters", "max-bandwidth", 1L << 40, "downtime-limit", 600_000);
                qemu.qmp("migrate", "uri", "unix:" + socket);
                JsonObject written;
                try (SocketChannel in = limited(server.accept(), limit); FileChannel out = newFile(file)) {
                    written = copy(in, out);
                }
                JsonObject migration = awaitMigration();
                if (!migration.getString("status").equals("completed")) {
                    throw new IOException(migration.getString("error-desc", "QEMU does not say why"));
                }
                return written;
            } catch (ClosedByInterruptException interrupted) {
                throw interrupted();
            } catch (IOException | VmException failed) {
                boolean full = reason(failed).contains("No space");
                boolean late = !full && qemu.isRunning() && System.nanoTime() - started >= limit.toNanos();
                if (failed instanceof VmException && !late) {
                    throw failed;
                }
                throw new VmException(full ? 1 : late ? 124 : 69, "the RAM could not be saved: "
                        + (full ? noSpace(file.getParent()) : late ? "it took longer than " + limit.toSeconds() + " s"
                        : reason(failed))
                        + (qemu.isRunning() ? "; the guest resumes" : "; QEMU has ended"));
            } finally {
                Files.deleteIfExists(socket);
            }
        }

        /** Copies RAM from its file to QEMU or back; returns its size and checksum, for the snapshot's record. */
        private static JsonObject copy(ReadableByteChannel in, WritableByteChannel out) throws IOException {
            CRC32C crc = new CRC32C();
            long size = 0;
            for (ByteBuffer part = ByteBuffer.allocateDirect(1 << 20); in.read(part.clear()) >= 0; ) {
                crc.update(part.flip().duplicate());
                for (size += part.remaining(); part.hasRemaining(); ) {
                    out.write(part);
                }
            }
            return object("ramBytes", size, "ramCrc32c", crc.getValue());
        }

        /** Waits until a migration has ended, and returns what QEMU tells of it. */
        private JsonObject awaitMigration() throws IOException {
            await(SOON, () -> Set.of("none", "completed", "failed", "cancelled").contains( // all is written by now
                    ((JsonObject) qemu.qmp("query-migrate")).getString("status", "none")));
            return (JsonObject) qemu.qmp("query-migrate");
        }

        /** Lets a guest go on whose RAM was to be saved. */
        void resume() throws IOException {
            awaitMigration();
            qemu.qmp("cont");
        }

        /**
         * Gives a QEMU that waits for RAM this file. Returns null, or why it is of no use; then the guest has not run.
         */
        String load(Path file, long checksum, Duration limit) throws IOException {
            Path socket = qemu.files().socket(".ram");
            boolean taken = false;
            qemu.qmp("migrate-incoming", "uri", "unix:" + socket);
            try (FileChannel in = FileChannel.open(file);
                    SocketChannel out = limited(SocketChannel.open(StandardProtocolFamily.UNIX), limit)) {
                out.connect(UnixDomainSocketAddress.of(socket));
                if (copy(in, out).getLong("ramCrc32c") != checksum) {
                    return "it is damaged (its checksum is wrong)";
                }
                taken = true;
            } catch (ClosedChannelException late) { // in the middle of a step, or between two
                return late instanceof ClosedByInterruptException ? "it was not read: interrupted"
                        : "it was not read within " + limit.toSeconds() + " s";
            } catch (IOException closed) {
                // by QEMU, whose log says why
            } finally {
                Files.deleteIfExists(socket);
            }
            await(SOON, () -> !qemu.runState().equals("inmigrate"));
            if (taken && qemu.runState().equals("paused")) {
                return null;
            }
            return qemu.logEnd().contains("load") ? "QEMU refuses it" + qemu.logEnd()
                    : "it was not read: " + (qemu.isRunning() ? "QEMU hangs" : "QEMU ended");
        }
    }

    // Ports.

    /** Ports of 127.0.0.1 for a VM. */
    static final class Ports {
        private static final int FIRST = 2222;
        /** Ports that this process has already chosen: clones start at the same time, and QEMU opens its port later. */
        private static final Set<Integer> CHOSEN = ConcurrentHashMap.newKeySet();

        /** The host's port in HOST:GUEST. */
        static int ofHost(String forward) {
            return Integer.parseInt(forward.split(":")[0]);
        }

        /** The ports that ssh may get, in the order of choice: the one that must be had, or all that are free. */
        static List<Integer> candidates(Plan plan) throws IOException {
            if (plan.portIsFixed()) {
                return List.of(plan.port());
            }
            if (plan.port() != 0) {
                awaitFree(plan.port());
            }
            List<Integer> free = Stream.concat(Stream.of(plan.port()), IntStream.range(FIRST, FIRST + 100).boxed())
                    .filter(port -> port != 0 && isFreeForSsh(plan, port))
                    .distinct().collect(Collectors.toCollection(ArrayList::new));
            if (plan.port() == 0) {
                free.stream().filter(CHOSEN::add).findFirst().ifPresent(port -> {
                    free.remove(port);
                    free.add(0, port);
                });
            }
            if (free.isEmpty()) {
                throw unavailable("no port from 2222 to 2321 is free: choose one with VM_SSH_PORT");
            }
            return free;
        }

        /** What a start would take if nothing happened until then; runs no program, for --dry-run. */
        static int firstChoice(Plan plan) {
            return plan.port() != 0 ? plan.port() : IntStream.range(FIRST, FIRST + 100)
                    .filter(port -> isFreeForSsh(plan, port)).findFirst().orElse(FIRST);
        }

        private static boolean isFreeForSsh(Plan plan, int port) {
            return isFree(port) && plan.forwards().stream().noneMatch(forward -> ofHost(forward) == port);
        }

        /** 69, naming who has it, if a port cannot be used. */
        static void require(int port) throws IOException {
            if (!awaitFree(port)) {
                throw unavailable("port " + port + " of 127.0.0.1 " + holder(port).map("is taken by "::concat)
                        .orElse(port < 1024 ? "is for root alone, or taken by another user"
                                : "is taken by another user's process") + ": choose another port");
            }
        }

        /** Waits for a port whose QEMU has just ended, but for no other. */
        private static boolean awaitFree(int port) throws IOException {
            return await(Duration.ofSeconds(10), () -> isFree(port) || holder(port).isPresent()) && isFree(port);
        }

        static boolean isFree(int port) {
            try (ServerSocket probe = new ServerSocket(port, 1, InetAddress.getByName("127.0.0.1"))) {
                return probe.isBound();
            } catch (IOException taken) {
                return false;
            }
        }

        /** Who listens on a port of this host, as far as this user may know. */
        private static Optional<String> holder(int port) throws IOException {
            try {
                String listeners = run(SOON, List.of("ss", "-Hltnp", "sport = :" + port)).outputUTF8();
                return Pattern.compile("\"(.*?)\",pid=(\\d+)").matcher(listeners).results().findFirst()
                        .map(user -> user.group(1) + " (pid " + user.group(2) + ")");
            } catch (VmException noSs) {
                return Optional.of("another process");
            }
        }
    }

    // Disks.

    /**
     * A qcow2 image's header; read directly, as it is needed often, and QEMU's lock is in the way of qemu-img. Empty:
     * nothing was written to it, so it shows what it builds on.
     */
    record Disk(Path backing, long size, boolean empty) {
        private static final String REMEDY = "vm-ctl restore goes back to a snapshot";

        /** Empty if the file is missing or damaged. */
        static Optional<Disk> find(Path file) {
            try {
                return Optional.of(read(file)).filter(image -> image.size() > 0);
            } catch (IOException | VmException damaged) {
                return Optional.empty();
            }
        }

        static Disk read(Path file) throws IOException {
            Path backing = backingFile(file, REMEDY);
            try (RandomAccessFile image = new RandomAccessFile(file.toFile(), "r")) {
                image.seek(24);
                long size = image.readLong();
                image.seek(36);
                int tables = image.readInt();
                long tablesAt = image.readLong();
                if (tables < 0 || tables > 1 << 22 || tablesAt < 0) { // the format's own limit
                    throw new EOFException();
                }
                byte[] clusters = new byte[8 * tables];
                image.seek(tablesAt);
                image.readFully(clusters);
                return new Disk(backing == null ? null : backing.normalize(), size,
                        Arrays.equals(clusters, new byte[clusters.length]));
            } catch (EOFException cut) {
                throw unavailable(file + " is damaged; " + REMEDY);
            }
        }

        /** 69 unless a disk and all that it builds on are qcow2 files that really lie in VM_DIR. */
        static void requireChain(Path top, Path vmDir) throws IOException {
            Set<Path> seen = new HashSet<>();
            String forOthers = top + " builds on it; " + REMEDY;
            for (Path disk = top; disk != null; disk = backingFile(disk, disk == top ? REMEDY : forOthers)) {
                Path real = Files.exists(disk) ? disk.toRealPath() : disk; // one that is missing has its own message
                if (!real.startsWith(vmDir.toRealPath()) && Files.exists(disk)) {
                    throw unavailable(top + (disk == top ? " is " : " builds on ") + real
                            + ", which is not in VM_DIR; " + REMEDY);
                } else if (!seen.add(real)) {
                    throw unavailable(top + " builds on itself; " + REMEDY);
                }
            }
        }

        /** How many layers lie under a disk. */
        static int depth(Path top) {
            int depth = -1;
            for (Path disk = top; disk != null && depth < 10_000; depth++) {
                disk = find(disk).map(Disk::backing).orElse(null);
            }
            return depth;
        }

        /**
         * The base is named relative to the overlay, so that VM_DIR can be moved; -u: not opened, as a VM may be using
         * it.
         */
        static List<String> overlayCommand(Path base, Path overlay) throws IOException {
            return List.of("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-u", "-b",
                    overlay.getParent().relativize(base).toString(), overlay.toString(),
                    "" + read(base).size());
        }

        /** Makes an overlay for a VM; under another name first, so that there is never half of one. */
        static Path newOverlay(VmFiles vm, Path base) throws IOException {
            Path overlay = privateDirectory(vm.disks()).resolve(randomWord() + ".qcow2");
            Path part = overlay.resolveSibling(overlay.getFileName() + ".part");
            image(part, overlayCommand(base, part), "no new disk could be made");
            return Files.move(part, overlay, StandardCopyOption.ATOMIC_MOVE);
        }

        /**
         * Copies into a disk that nobody uses what lies between it and a base, and lets it build on the base. Can be
         * repeated, as each write is flushed before the base is changed.
         */
        static void rebase(Path disk, String relativeBase) throws IOException {
            image(disk, List.of("qemu-img", "rebase", "-q", "-t", "writethrough", "-f", "qcow2", "-F", "qcow2", "-b",
                    relativeBase, disk.toString()),
                    "a layer could not be merged");
        }

        /** Copies the content of a disk, with that of its backing files, into one compressed file. */
        static void flatten(Path disk, Path flat) throws IOException {
            image(Duration.ofHours(2), flat, List.of("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2",
                    disk.toString(), flat.toString()), "the disk could not be copied"); // it compresses some MB/s
        }

        private static void image(Path file, List<String> command, String failure) throws IOException {
            image(Duration.ofMinutes(15), file, command, failure);
        }

        private static void image(Duration limit, Path file, List<String> command, String failure) throws IOException {
            ProcessResult result = run(limit, withUmask(command));
            if (result.getExitValue() != 0) {
                String output = result.outputUTF8().strip();
                boolean full = output.contains("No space");
                throw new VmException(full ? 1 : 69, failure + ": "
                        + (full ? noSpace(file.getParent()) : output));
            }
        }
    }

    // Files.

    /** Where everything about one VM lies in VM_DIR. */
    record VmFiles(Path dir, String name) {
        /** What a VM may leave, by the suffix to its name; the sockets may lie elsewhere. */
        private static final List<String> SUFFIXES = List.of("-clean.qcow2", ".qcow2", ".disks", ".snapshots",
                ".install", ".ssh",
                ".test", ".sync", ".pid", ".qemu-pid", ".qemu.log", ".qemu.log.1", ".console.log", ".console.log.1",
                ".lock", ".offline", ".import", ".import.part");
        private static final List<String> SOCKETS = List.of(".qmp", ".console", ".control", ".ram");

        /** The files of another VM in the same VM_DIR. */
        VmFiles other(String vm) {
            return new VmFiles(dir, vm);
        }

        Path file(String suffix) {
            return dir.resolve(name + suffix);
        }

        /** The link that names the overlay at work; in an older VM_DIR a disk. */
        Path link() {
            return file(".qcow2");
        }

        Path disks() {
            return file(".disks");
        }

        Path clean() {
            return file("-clean.qcow2");
        }

        Path pidFile() {
            return file(".pid");
        }

        Path consoleLog() {
            return file(".console.log");
        }

        /** What QEMU prints, such as why it does not start. */
        Path qemuLog() {
            return file(".qemu.log");
        }

        Path qemuPid() {
            return file(".qemu-pid");
        }

        /**
         * It is there from the start of an offline VM until vm-ctl stop. It stays if the guest ends QEMU, so that the
         * next start is offline, too.
         */
        Path offlineMark() {
            return file(".offline");
        }

        /** The record of a snapshot. */
        Path record(String snapshot) {
            return file(".snapshots").resolve(snapshot).resolve("snapshot.json");
        }

        /** How a record names a path in VM_DIR, which may be moved. */
        String relative(Path path) {
            return dir.relativize(path).toString();
        }

        /** A path that a record or the link names, which must lie in VM_DIR. */
        Path inside(String relative) {
            Path path = dir.resolve(relative).normalize();
            if (!path.startsWith(dir)) {
                throw unavailable(path + ", which a record of " + name
                        + " names, is not in VM_DIR: vm-ctl restore makes a new working disk");
            }
            return path;
        }

        /**
         * The disk that the VM works on; QEMU and qemu-img get this name, because they do not follow the link as we do.
         */
        Optional<Path> workingDisk() throws IOException {
            if (Files.isSymbolicLink(link())) {
                return Optional.of(inside(Files.readSymbolicLink(link()).toString()));
            }
            return Files.exists(link()) ? Optional.of(link()) : Optional.empty();
        }

        /** Makes the link name this overlay, at once or not at all. */
        void useDisk(Path overlay) throws IOException {
            useLink(prepareLink(overlay));
        }

        /** Makes a link to an overlay, to be put in place by useLink. */
        Path prepareLink(Path overlay) throws IOException {
            Path fresh = disks().resolve("link.part");
            Files.deleteIfExists(fresh);
            return Files.createSymbolicLink(fresh, dir.relativize(overlay));
        }

        void useLink(Path prepared) throws IOException {
            Files.move(prepared, link(), StandardCopyOption.ATOMIC_MOVE);
        }

        /**
         * Where a socket lies: in VM_DIR, or, as a socket's path holds 107 bytes at most, in a short private directory.
         */
        Path socket(String suffix) throws IOException {
            Path socket = file(suffix);
            // ssh appends 17 characters while it makes a ControlPath
            if (socket.toString().getBytes(UTF_8).length <= 85) {
                return socket;
            }
            String hash = UUID.nameUUIDFromBytes(file("").toString().getBytes(UTF_8)).toString().substring(0, 18);
            Path directory = Path.of(System.getProperty("java.io.tmpdir"), "vm-" + hash);
            return (Files.exists(directory, LinkOption.NOFOLLOW_LINKS) ? socketDirectory(directory) : directory)
                    .resolve(suffix.substring(1));
        }

        /** A directory for sockets, which others could have put there before us: it counts only if it is ours alone. */
        static Path socketDirectory(Path directory) throws IOException {
            PosixFileAttributes found = Files.readAttributes(privateDirectory(directory), PosixFileAttributes.class,
                    LinkOption.NOFOLLOW_LINKS);
            if (!found.isDirectory() || !PosixFilePermissions.toString(found.permissions()).equals("rwx------")) {
                throw unavailable(directory + ", for the sockets of this long VM_DIR, is not a private "
                        + "directory of yours: remove it, or choose a shorter VM_DIR");
            }
            return directory;
        }

        /** What there is of this VM. */
        List<Path> all() throws IOException {
            List<Path> found = new ArrayList<>(SUFFIXES.stream().map(this::file).toList());
            for (String suffix : SOCKETS) {
                found.add(socket(suffix));
            }
            return found.stream().filter(file -> Files.exists(file, LinkOption.NOFOLLOW_LINKS)).toList();
        }

        /**
         * 69 if an older vm-ctl made this VM's disks: it named them in another way, which cannot be told apart later.
         */
        void refuseOlderVersion() {
            boolean isFile = Files.isRegularFile(link(), LinkOption.NOFOLLOW_LINKS);
            String old = shellQuoted(List.of(link().toString()));
            String install = shellQuoted(List.of(file(".install").toString()));
            if (entries(file(".snapshots")).stream().anyMatch(snapshot -> Files.exists(snapshot.resolve("disk.qcow2")))
                    || isFile && Disk.find(link()).map(Disk::backing).isPresent()) {
                throw unavailable("the disk of " + name + " was made by an older vm-ctl, and this one cannot "
                        + "use it. To keep the installation without what was done since: rm -r " + old + " "
                        + shellQuoted(List.of(file(".snapshots").toString())) + "; or vm-ctl destroy, and "
                        + "vm-auto-install");
            } else if (isFile) {
                throw unavailable(link() + " is a disk that an older vm-setup disk or vm-ctl install made. To "
                        + "go on with that installation: mkdir -p -m 700 " + install + " && mv " + old + " " + install
                        + "/by-hand.qcow2 && vm-auto-install by-hand; or, to do without it: rm " + old);
            }
        }
    }

    // Small things.

    private static List<String> strings(JsonObject object, String key) {
        return object.has(key) ? ((List<?>) object.get(key)).stream().map(String.class::cast).toList() : List.of();
    }

    private static VmException unavailable(String message) {
        return new VmException(69, message);
    }

    private static VmException wrongUsage(String message) {
        return new VmException(2, message);
    }

    private static VmException interrupted() {
        return new VmException(130, "interrupted");
    }

    /** For long work in which no blocking call would notice an interrupt. */
    private static void refuseIfInterrupted() {
        if (Thread.currentThread().isInterrupted()) {
            throw interrupted();
        }
    }

    /** The value of one of QEMU's options, or an empty text. */
    private static String option(List<String> arguments, String name) {
        int at = arguments.indexOf(name);
        return at < 0 ? "" : arguments.get(at + 1);
    }

    private static String noSpace(Path file) {
        return "no space is left on the disk of " + file;
    }

    private static String randomWord() {
        return Long.toHexString(new SecureRandom().nextLong());
    }

    private static String seconds(long since) {
        return String.format(Locale.ROOT, "%.1f s", (System.nanoTime() - since) / 1e9);
    }

    /** Members without a value are left out. */
    private static void writeRecord(Path file, JsonObject record) throws IOException {
        JsonObject written = new JsonObject(record);
        written.values().removeIf(value -> value == null);
        writeFile(file, JsonWriter.string(written));
    }

    /** Runs a step that the command can do without: its failure is only reported. */
    private static void attempt(Consumer<String> say, String failure, Step step) {
        try {
            step.run();
        } catch (IOException | VmException failed) {
            say.accept(failure + ": " + reason(failed));
        }
    }

    /** Something that may become true. */
    interface Condition {
        boolean holds() throws IOException;
    }

    /** Waits until something is true; whether it became so within the limit. */
    private static boolean await(Duration limit, Condition condition) throws IOException {
        for (long deadline = System.nanoTime() + limit.toNanos(); !condition.holds(); pause(10)) {
            if (System.nanoTime() > deadline) {
                return false;
            }
        }
        return true;
    }

    private static void pause(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException interrupted) {
            throw interrupted();
        }
    }

    /** Makes an empty file for this user alone, unless there is one. */
    private static void makeFile(Path file) throws IOException {
        if (!Files.exists(file)) {
            newFile(file).close();
        }
    }

    /** Makes a file for this user alone; fails if there is one. */
    private static FileChannel newFile(Path file) throws IOException {
        return FileChannel.open(file, Set.of(StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW),
                PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
    }

    private static List<Path> entries(Path directory) {
        try (Stream<Path> entries = Files.list(directory)) {
            return entries.sorted().toList();
        } catch (NoSuchFileException | NotDirectoryException none) {
            return List.of();
        } catch (IOException unreadable) {
            throw unavailable(directory + " cannot be read: " + reason(unreadable));
        }
    }

    private static void deleteIfEmpty(Path directory) throws IOException {
        if (entries(directory).isEmpty()) {
            Files.deleteIfExists(directory);
        }
    }

    private static void deleteTree(Path tree) throws IOException {
        if (!Files.exists(tree, LinkOption.NOFOLLOW_LINKS)) {
            return;
        }
        try (Stream<Path> files = Files.walk(tree)) {
            for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                Files.delete(file);
            }
        }
    }

    /** What stands in a text file from a position on, its end if that is too much; all of a file that was cut since. */
    private static String fileEnd(Path file, long from, int bytes) throws IOException {
        try (FileChannel channel = FileChannel.open(file)) {
            long start = Math.max(from <= channel.size() ? from : 0, channel.size() - bytes);
            return new String(Channels.newInputStream(channel.position(start)).readNBytes(bytes), UTF_8);
        } catch (NoSuchFileException none) {
            return "";
        }
    }

    private static String lastLines(String text, int count) {
        List<String> lines = printable(text).lines().filter(line -> !line.isBlank()).toList();
        return String.join("\n", lines.subList(Math.max(0, lines.size() - count), lines.size()));
    }

    /** Closes a channel when its time is up: whoever waits on it gets an exception. */
    private static <C extends Channel> C limited(C channel, Duration limit) {
        CompletableFuture.delayedExecutor(limit.toMillis(), TimeUnit.MILLISECONDS).execute(() -> {
            try {
                channel.close();
            } catch (IOException closed) {
                // it is closed either way
            }
        });
        return channel;
    }

    /** A port of this machine. */
    static final class Port implements ITypeConverter<String> {
        static final String PATTERN = "[1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]";

        @Override
        public String convert(String value) {
            return matching(value, PATTERN, "a port");
        }
    }

    /** What the guest reaches. */
    static final class Network implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "user|offline", "user or offline");
        }
    }

    /** QEMU's cache of a disk. */
    static final class CacheMode implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "writeback|none|unsafe", "writeback, none or unsafe");
        }
    }

    /**
     * What a disk builds on, or null. 69 unless it is qcow2 and names nothing but another qcow2 file: a header can name
     * any file of this machine, and QEMU would use it.
     */
    static Path backingFile(Path disk, String remedy) throws IOException {
        if (!Files.isRegularFile(disk)) {
            throw unavailable(disk + (Files.exists(disk) ? " is no file; " + remedy
                    : " is missing: was VM_DIR moved or copied in part? Put the file back and try again"));
        }
        try (InputStream in = Files.newInputStream(disk)) {
            ByteBuffer header = ByteBuffer.wrap(in.readNBytes(1 << 16));
            if (header.limit() < 4 || header.getInt(0) != 0x514649fb) {
                throw unavailable(disk + " is not a qcow2 image; " + remedy);
            } else if (header.getInt(4) > 2 && (header.getLong(72) & 4) != 0) { // an incompatible feature
                throw unavailable(disk + " keeps its data in another file, which is refused; " + remedy);
            }
            int nameAt = Math.toIntExact(header.getLong(8));
            if (nameAt == 0) {
                return null;
            }
            String backing = UTF_8.decode(header.slice(nameAt, header.getInt(16))).toString();
            if (backing.contains(":") || !backingFormats(header, nameAt).equals(Set.of("qcow2"))) {
                throw unavailable(disk + " builds on " + backing + ", which is not said to be a qcow2 file; " + remedy);
            }
            return disk.resolveSibling(backing);
        } catch (IndexOutOfBoundsException | ArithmeticException | InvalidPathException damaged) {
            throw unavailable(disk + " is damaged; " + remedy);
        }
    }

    /** The formats that a qcow2 header gives for the backing file, in its list of extensions; the last one counts. */
    private static Set<String> backingFormats(ByteBuffer header, int end) {
        Set<String> formats = new HashSet<>();
        for (int at = header.getInt(4) > 2 ? header.getInt(100) : 72; at + 8 <= end && header.getInt(at) != 0; ) {
            ByteBuffer value = header.slice(at + 8, header.getInt(at + 4));
            if (header.getInt(at) == 0xe2792aca) {
                formats.add(UTF_8.decode(value.duplicate()).toString());
            }
            at += 8 + (value.limit() + 7 & ~7);
        }
        return formats;
    }

    // shared:umask
    /** What the command creates is for its user alone, whatever the caller's umask is; Java cannot set one. */
    private static List<String> withUmask(List<String> command) {
        List<String> wrapped = new ArrayList<>(List.of("sh", "-c", "umask 077; exec \"$@\"", "sh"));
        wrapped.addAll(command);
        return wrapped;
    }
    // end shared:umask

    // shared:sandbox
    /**
     * QEMU gives up the system calls that it does not need, so that a guest that broke into it cannot start programs.
     * Not {@code full}: -daemonize needs some of them. Two -sandbox options would add up, so the user's replaces this.
     */
    static List<String> sandbox(List<String> arguments, boolean full) {
        boolean own = arguments.stream().anyMatch(word -> word.matches("--?sandbox"));
        boolean linux = System.getProperty("os.name").equals("Linux");
        return own || !linux ? List.of() : List.of("-sandbox", "on,resourcecontrol=deny"
                + (full ? ",obsolete=deny,elevateprivileges=deny,spawn=deny" : ""));
    }
    // end shared:sandbox

    // shared:object
    /** A JSON object of name, value, name, value. */
    static JsonObject object(Object... pairs) {
        JsonObject object = new JsonObject();
        for (int i = 0; i < pairs.length; i += 2) {
            object.put((String) pairs[i], pairs[i + 1]);
        }
        return object;
    }
    // end shared:object

    // shared:limits
    /** 2 for less memory than DragonFly boots with, more than this host has, or far more processors than it has. */
    static void checkHardware(CommandSpec command, String memory, String cpus) {
        long host = ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getTotalMemorySize() >> 20;
        long wanted = memory == null ? 256 : Long.parseLong(memory.replaceAll("\\D", ""))
                << 10 * "MGT".indexOf(memory.charAt(memory.length() - 1));
        int most = Math.max(4, Runtime.getRuntime().availableProcessors()); // four work on a small host, too
        if (wanted < 256 || wanted > host) {
            throw new VmException(2, originOf(command, "--memory") + ": " + memory + (wanted < 256
                    ? " is too little for DragonFly: give it 256M or more"
                    : " is more than this machine has (" + host + "M)"));
        } else if (cpus != null && Integer.parseInt(cpus) > most) {
            throw new VmException(2, originOf(command, "--cpus") + ": " + cpus
                    + " is too much for this machine: at most " + most);
        }
    }
    // end shared:limits

    // shared:processors
    /**
     * How many processors the guest gets: as many as were asked for, else half the host's within 2-4, or 1 if emulated.
     */
    static int processors(String wanted, String accel) {
        int half = Math.max(2, Math.min(4, Runtime.getRuntime().availableProcessors() / 2));
        return wanted != null ? Integer.parseInt(wanted) : accel.equals("tcg") ? 1 : half;
    }

    /**
     * QEMU's -accel. With a thread for each emulated processor, DragonFly hangs: its processors wait for each other.
     */
    static String accelArgument(String accel, int processors) {
        return accel.equals("tcg") && processors > 1 ? "tcg,thread=single" : accel;
    }

    /** What to try if an emulated guest hangs; empty if it has one processor. */
    static String hangAdvice(String accel, int processors) {
        return accel.equals("tcg") && processors > 1
                ? "; an emulated DragonFly may hang with several processors: try VM_CPUS=1" : "";
    }
    // end shared:processors

    // shared:banner
    /**
     * Whether the guest's sshd answers. QEMU's network accepts a connection before the guest does, so only the first
     * bytes tell.
     */
    static boolean hasBanner(int port, int millis) {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), port), millis);
            socket.setSoTimeout(millis);
            return new String(socket.getInputStream().readNBytes(8), UTF_8).equals("SSH-2.0-");
        } catch (IOException notYet) {
            return false;
        }
    }
    // end shared:banner

    // shared:panic
    private static final Pattern KERNEL_PANIC = Pattern.compile(
            // bounded: a guest may print anything
            "(panic: (?!.{0,500}panic: )|Fatal trap \\d).{0,500}(\\R.{0,500}){0,2}\\R"
            + "(cpuid = \\d|Trace beginning at frame |Debugger\\(\"panic\"\\))");

    /**
     * Where a console's text tells of a kernel panic, or -1. "panic: " may stand anywhere in a line ("login: panic:
     * ..."), and programs print it too (Go does). So it counts only if the kernel's next words follow within three
     * lines.
     */
    static int kernelPanic(String console) {
        Matcher panic = KERNEL_PANIC.matcher(console);
        return panic.find() ? panic.start() : -1;
    }
    // end shared:panic

    // shared:terminal
    /** Whether a file descriptor is a terminal; System.console() behaves differently across Java versions. */
    static boolean isTerminal(int descriptor) {
        try {
            return new ProcessBuilder("test", "-t", "" + descriptor).inheritIO().start().waitFor() == 0;
        } catch (IOException | InterruptedException unknown) {
            return false;
        }
    }
    // end shared:terminal

    // shared:confirm
    /** Asks before something is lost; 2 unless the answer is yes. Without a terminal to ask on, only --yes confirms. */
    static void confirm(String what, boolean yes) throws IOException {
        if (yes) {
            return;
        } else if (!isTerminal(0) || !isTerminal(2)) {
            throw new VmException(2, "this would " + what + "; nothing was changed; to confirm it: "
                    + withOption("--yes"));
        }
        System.err.print("This will " + what + ". Type yes to go on: ");
        String answer = new BufferedReader(new InputStreamReader(System.in, UTF_8)).readLine();
        if (answer == null || !answer.strip().equals("yes")) {
            throw new VmException(2, "not confirmed, nothing was changed");
        }
    }
    // end shared:confirm

    // shared:streams
    /** Call this first in main: output is UTF-8 in every locale. */
    static void writeUtf8() {
        System.setOut(new PrintStream(System.out, true, UTF_8));
        System.setErr(new PrintStream(System.err, true, UTF_8));
        System.setProperty("sun.stdout.encoding", "UTF-8"); // which picocli asks
        System.setProperty("sun.stderr.encoding", "UTF-8");
    }

    /** Ends this process; with 1 if stdout could not be written. */
    static void exit(String command, int code) {
        if (System.out.checkError()) {
            System.err.println(command + ": the output could not be written: the reader of stdout has gone, or its "
                    + "disk is full");
            System.exit(1);
        }
        System.exit(code);
    }
    // end shared:streams

    // shared:reader
    /**
     * Whether stdout still takes output. To send nothing of a file (which must not be empty) fails if nobody reads the
     * pipe any more. The line that is printed then is lost, and makes exit() see the failure.
     */
    static boolean canAnswer() {
        try (FileChannel file = FileChannel.open(Path.of(System.getProperty("java.home"), "lib", "modules"))) {
            file.transferTo(0, 0, new FileOutputStream(FileDescriptor.out).getChannel());
        } catch (IOException readerGone) {
            System.out.println();
        }
        return !System.out.checkError();
    }
    // end shared:reader

    // shared:make
    /** What to add to this command for one more option. make sets vm.make to its command up to the options. */
    static String withOption(String option) {
        String make = System.getProperty("vm.make");
        return make == null ? option : make.replaceFirst(".* ", "") + "'" + option + "'";
    }
    // end shared:make

    // shared:duration
    /** A length of time as a person writes it: 90s, 5m, 1h30m or a plain number of seconds; at most 30 days. */
    static class DurationConverter implements ITypeConverter<Duration> {
        @Override
        public Duration convert(String value) {
            String withUnit = value.matches("\\d+") ? value + "s" : value;
            if (withUnit.matches("(?=.*[1-9])(\\d{1,7}h)?(\\d{1,7}m)?(\\d{1,7}s)?")) {
                Duration time = Duration.parse("PT" + withUnit);
                if (time.compareTo(Duration.ofDays(30)) <= 0) {
                    return time;
                }
            }
            throw new TypeConversionException("'" + value
                    + "' is not a time from 1s to 30 days (720h), such as 90s, 5m or 1h30m");
        }
    }
    // end shared:duration

    // shared:stdin
    /** Whether stdin was closed at the start: then descriptor 0 is the first file that the JVM opened, its classes. */
    static boolean isStdinClosed() {
        try {
            Path java = Path.of(System.getProperty("java.home")).toRealPath();
            return Path.of("/proc/self/fd/0").toRealPath().startsWith(java);
        } catch (IOException pipe) {
            return false;
        }
    }
    // end shared:stdin

    // shared:vmnames
    private static final Pattern VM_FILE = Pattern.compile(
            "([^.].*?)(?:-clean\\.qcow2|\\.(?:qcow2|disks|snapshots|install|import|pid|qemu-pid|ssh))");

    /** The names of all VMs in VM_DIR. A lock or a log, which a failed command may leave, does not count. */
    static List<String> vmNames(Path vmDir) {
        try (Stream<Path> files = Files.list(vmDir)) {
            return files.map(file -> VM_FILE.matcher(file.getFileName().toString())).filter(Matcher::matches)
                    .map(match -> match.group(1)).distinct().sorted().collect(Collectors.toList());
        } catch (NoSuchFileException none) {
            return List.of();
        } catch (IOException unreadable) {
            throw new VmException(69, vmDir + " cannot be read: " + reason(unreadable));
        }
    }
    // end shared:vmnames

    // shared:rawterminal
    /**
     * This terminal in raw mode, so that each key reaches the guest; nothing if stdin is no terminal. A shell gives it
     * its own settings back: when its input is closed, and also when this process is killed.
     */
    record RawTerminal(Process shell) implements AutoCloseable {
        static RawTerminal enter() throws IOException {
            if (!isTerminal(0)) {
                return new RawTerminal(null);
            }
            Process shell = new ProcessBuilder("sh", "-c", """
                    trap '' HUP INT TERM TTOU
                    saved=$(stty -g </dev/tty) || exit
                    stty raw -echo </dev/tty
                    echo raw
                    cat >/dev/null
                    stty "$saved" </dev/tty
                    """).redirectError(ProcessBuilder.Redirect.INHERIT).start();
            shell.getInputStream().read();
            RawTerminal terminal = new RawTerminal(shell);
            Runtime.getRuntime().addShutdownHook(new Thread(terminal::close)); // the terminal may go with this process
            return terminal;
        }

        @Override
        public void close() {
            if (shell != null) {
                shell.destroy(); // its own signals are ignored: this closes its input
                shell.onExit().completeOnTimeout(shell, 5, TimeUnit.SECONDS).join();
            }
        }
    }
    // end shared:rawterminal

    // shared:printable
    private static final Pattern ESCAPE_SEQUENCE = Pattern.compile(
            "(?:\u001b\\[|\u009b)[0-?]*[ -/]*[@-~]" // such as a colour
            + "|\u001b\\][^\u0007\u001b]*(?:\u0007|\u001b\\\\)?" // such as a window's title
            + "|\u001b[ -/]*[0-~]");
    private static final Pattern CI_COMMAND = Pattern.compile("(?mU)^[^\\S\n]*+::(?=[A-Za-z])|##(?=[A-Za-z]*\\[)");
    private static final Pattern NOT_PRINTABLE = Pattern.compile("[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}&&[^\n\t]]");

    /**
     * A text from outside (the guest, a project, a mirror), made safe for a message: without the escape sequences of
     * terminals and carriage returns. Control characters and those that change the direction of writing become '?';
     * newlines and tabs stay. What CI systems take for a command, such as ::error:: and ##[group], gets a blank inside.
     */
    static String printable(String text) {
        String plain = ESCAPE_SEQUENCE.matcher(text).replaceAll("").replace("\r", "");
        return CI_COMMAND.matcher(NOT_PRINTABLE.matcher(plain).replaceAll("?"))
                .replaceAll(command -> command.group().replaceFirst("(?=.$)", " "));
    }
    // end shared:printable

    // shared:written
    /**
     * A file or directory that the user named, to be written. 2 if a link below the working directory is on the way: it
     * may be a project's, and lead to keys, or to git's hooks.
     */
    static Path written(Path file) {
        Path here = Path.of("").toAbsolutePath();
        Path named = here.resolve(file).normalize();
        for (Path way = named; way.startsWith(here) && !way.equals(here); way = way.getParent()) {
            if (Files.isSymbolicLink(way)) {
                throw new VmException(2, file + ": " + way + " is a link, and may be a project's; if it is meant, "
                        + "write the path that it leads to");
            }
        }
        return named;
    }
    // end shared:written

    // shared:failure
    /** An expected failure: one line that says what happened and what to do, and the exit code that goes with it. */
    static class VmException extends RuntimeException {
        private static final long serialVersionUID = 1;
        final int exitCode;

        VmException(int exitCode, String message) {
            super(message);
            this.exitCode = exitCode;
        }
    }

    /** Why something failed: some exceptions of the file system have only the file as message. */
    static String reason(Exception failure) {
        return (failure instanceof AccessDeniedException ? "permission denied: "
                : failure instanceof FileAlreadyExistsException ? "a file is in the way: "
                : failure instanceof NoSuchFileException ? "no such file: " : "")
                + (failure.getMessage() == null ? failure.getClass().getSimpleName() : failure.getMessage());
    }
    // end shared:failure

    // shared:cli
    /**
     * A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code.
     */
    static CommandLine commandLine(Object command, Settings settings) {
        CommandLine all = new CommandLine(command);
        List<String> help = new ArrayList<>(all.getHelpSectionKeys());
        help.removeIf(section -> section.startsWith("exitCode")); // which only the top command's help shows
        all.getSubcommands().values().forEach(sub -> sub.setHelpSectionKeys(help));
        return all.setExpandAtFiles(false).setAllowSubcommandsAsOptionParameters(true)
                .setColorScheme(CommandLine.Help.defaultColorScheme(Ansi.OFF))
                .setCaseInsensitiveEnumValuesAllowed(true).setDefaultValueProvider(settings)
                .setExecutionStrategy(parsed -> {
                    if (problem(settings, parsed.originalArgs()) != null) {
                        throw new ParameterException(all, "refuse() tells the problem");
                    }
                    settings.warnings.forEach(warning -> tell(all, "warning: " + warning));
                    return new CommandLine.RunLast().execute(parsed);
                }).setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException || failure instanceof IOException)) {
                        throw failure; // a bug keeps its stack trace
                    }
                    tell(all, reason(failure));
                    boolean full = reason(failure).contains("No space left");
                    return failure instanceof VmException expected ? expected.exitCode : full ? 1 : 69;
                }).setParameterExceptionHandler((failure, args) -> refuse(all, settings, failure, args));
    }

    private static void tell(CommandLine all, String text) {
        all.getErr().println(printable(all.getCommandName() + ": " + text));
    }
    // end shared:cli

    // shared:refuse
    /** Tells what is wrong in a command line or a setting; shows the help instead if it was asked for. */
    private static int refuse(CommandLine all, Settings settings, ParameterException failure, String... args) {
        CommandSpec command = failure.getCommandLine().getCommandSpec();
        String help = "; see: " + System.getProperty("vm.make", command.qualifiedName() + " ") + "--help";
        String fault = problem(settings, List.of(args));
        try { // without the settings: a wrong one must not keep the help away
            Integer helped = CommandLine.executeHelpRequest(all.setDefaultValueProvider(null).parseArgs(args));
            if (helped != null) {
                return helped;
            } else if (fault == null) { // a setting is wrong, or the command itself refuses the arguments
                fault = failure.getArgSpec() == null ? failure.getMessage() + help
                        : settings.origins.get(failure.getArgSpec().descriptionKey()) + ": "
                        + failure.getCause().getMessage();
            }
        } catch (ParameterException wrongArguments) {
            List<String> known = new ArrayList<>(command.optionsMap().keySet());
            known.addAll(command.subcommands().keySet());
            String hint = !(wrongArguments instanceof UnmatchedArgumentException unmatched) ? ""
                    : didYouMean(unmatched.getUnmatched().get(0).replaceFirst("=.*", ""), known);
            fault = fault != null ? fault : wrongArguments.getMessage() + hint + help;
        }
        tell(all, fault);
        return 2;
    }
    // end shared:refuse

    // shared:settings
    /** What holds where no option is given: the environment, else vm.env here, else the user's own vm.env. */
    static final class Settings implements IDefaultValueProvider { // no record: picocli takes 8 ms longer with one
        final Map<String, String> values = new HashMap<>();
        /** Each setting's name and where it stands, as messages tell it. */
        final Map<String, String> origins = new HashMap<>();
        final List<String> warnings = new ArrayList<>();
        /** Why a vm.env cannot be used; null if all can. */
        String fault;

        /** Adds the settings of one source. They win over those that were added before. */
        Settings add(Map<String, String> found, String place) {
            found.forEach((name, value) -> {
                if (value.isEmpty() || value.equals("_NULL_")) {
                    return; // unset; the latter to picocli
                } else if (SETTINGS.contains(name) || name.startsWith("VM_TEST_")) {
                    values.put(name, value);
                    origins.put(name, name + " in " + place);
                } else if (name.matches("(VM|DFLY)_.*")) {
                    String hint = didYouMean(name, SETTINGS);
                    // other programs have such variables, too
                    if (place.endsWith("vm.env") ? warnings.size() < 10 : !hint.isEmpty()) {
                        warnings.add(name + " in " + place + " is no setting" + hint);
                    }
                }
            });
            return this;
        }

        @Override
        public String defaultValue(ArgSpec argument) {
            String value = values.get(argument.descriptionKey());
            return value == null ? null : value.replace("$", "$$"); // or picocli would replace ${env:NAME}
        }
    }
    // end shared:settings

    // shared:locale
    /** The encoding of arguments, paths and the environment; in Java 17 programs get theirs in the default one. */
    private static final String ENCODING = "UTF-8".equals(System.getProperty("sun.jnu.encoding"))
            ? Charset.defaultCharset().name() : System.getProperty("sun.jnu.encoding");

    /**
     * Why no command can run, or null: letters would not arrive as they were typed, or a vm.env is wrong. JBang
     * replaces what the locale cannot express by question marks before this script starts.
     */
    static String problem(Settings settings, List<String> args) {
        boolean utf8 = ENCODING.equals("UTF-8");
        String texts = String.join(" ", args) + settings.values.values() + System.getProperty("user.dir")
                + System.getenv("HOME") + System.getenv("PATH");
        boolean lost = utf8 ? texts.contains("\ufffd")
                : texts.chars().anyMatch(letter -> letter > 127) || String.join("", args).contains("?");
        return !lost ? settings.fault : "letters of an argument, a setting or a directory " + (utf8
                ? "are not in UTF-8: write them in UTF-8" : "may have become question marks, because the locale's "
                + "encoding is " + ENCODING + ", not UTF-8: set LC_ALL=C.UTF-8");
    }
    // end shared:locale

    // shared:vmenv
    /** The settings of the environment, of the user's own vm.env, and of the one in this directory, which wins. */
    static Settings readSettings(Map<String, String> environment, Path directory) {
        Settings settings = new Settings();
        Path here = directory.resolve("vm.env");
        try {
            Path own = Path.of(environment.getOrDefault("HOME", ""), ".go-synth", "vm.env");
            boolean hasOwn = own.isAbsolute() && Files.exists(own);
            if (hasOwn && !isOwn(own)) {
                throw new VmException(2, own + " can be changed by another user: chown and chmod go-w make it yours");
            } else if (hasOwn) {
                Map<String, String> mine = readFile(own);
                for (String name : List.of("VM_DIR", "VM_IMAGE", "VM_PHASES", "VM_PROJECT")) {
                    if (!mine.getOrDefault(name, "/").matches("[/~].*")) { // it would depend on where one stands
                        throw new VmException(2, name + " in " + own + " must begin with / or ~: " + mine.get(name));
                    }
                }
                settings.add(mine, own.toString());
            }
            if (Files.exists(here) && !(hasOwn && Files.isSameFile(own, here))) {
                Map<String, String> project = readFile(here);
                project.remove("VM_NET", "user"); // a project may take the network away, and not give it
                settings.values.remove("VM_PROJECT"); // the project is the directory with this file, or what it names
                settings.add(project, here.toString());
                requireHarmless(project, directory);
            }
        } catch (VmException | InvalidPathException | IOException wrong) {
            settings.fault = reason(wrong);
        }
        return settings.add(environment, "the environment");
    }
    // end shared:vmenv

    // shared:vmenvproject
    /** Refuses what a project's vm.env must not hold. It may be somebody else's, and must not harm this machine. */
    private static void requireHarmless(Map<String, String> settings, Path directory) throws IOException {
        for (String name : settings.keySet()) {
            if (SETTINGS.contains(name) && !PROJECT_SETTINGS.contains(name)) {
                throw new VmException(2, name + " is allowed only in your own ~/.go-synth/vm.env, as a project could "
                        + "harm this machine with it: if you wrote this line of vm.env, move it there, else delete it");
            }
        }
        String project = settings.getOrDefault("VM_PROJECT", ".");
        // normalized first, as when it is used: the system would follow a link before the ".." behind it
        Path named = project.startsWith("~") ? userPath(project) : directory.resolve(project).normalize();
        if (!Files.exists(named) || !named.toRealPath().startsWith(directory.toRealPath())) {
            throw new VmException(2, "VM_PROJECT in vm.env is " + project + ", which is no directory in or below that "
                    + "of vm.env: name it with --project, or move vm.env away and put VM_PROJECT into "
                    + "~/.go-synth/vm.env");
        }
    }
    // end shared:vmenvproject

    // shared:vmenvfile
    private static final String QUOTED = "'[^']*+'|\"(?:[^\"\\\\]|\\\\.)*+\"";
    /** A value ends before a # that follows a blank outside quotes. What follows a backslash is no quote. */
    private static final String VALUE = "(?:" + QUOTED + "|\\\\.?|[^'\"#]|(?<!\\s)#)*+";
    private static final Pattern LINE = Pattern.compile(
            "(?:(?:export\\s+)?([A-Za-z_]\\w*)\\s*=(" + VALUE + "))?(?:#.*)?");

    /** The lines KEY=value of a vm.env. Quotes are removed only if one pair encloses the whole value. */
    private static Map<String, String> readFile(Path file) throws IOException {
        if (!Files.isRegularFile(file) || Files.size(file) > 1 << 16) { // a pipe would never end
            throw new VmException(2, file + " is not a file of at most 64 KB");
        }
        Map<String, String> settings = new TreeMap<>();
        int number = 0;
        for (String line : new String(Files.readAllBytes(file), UTF_8).replaceFirst("^\ufeff", "").lines().toList()) {
            number++;
            Matcher found = LINE.matcher(line.strip());
            if (!found.matches() || line.contains("\0")) {
                throw new VmException(2, file + ", line " + number // not the text: a link may lead to a secret
                        + ": this is not KEY=value with every quote closed");
            } else if (found.group(1) != null) {
                String value = found.group(2).strip();
                settings.put(found.group(1), value.matches(QUOTED) ? value.substring(1, value.length() - 1) : value);
            }
        }
        settings.values().removeIf(String::isEmpty); // unset
        return settings;
    }
    // end shared:vmenvfile

    // shared:names
    static final List<String> SETTINGS = List.of("DFLY_VERSION", "VM_ACCEL", "VM_CPU", "VM_CPUS",
            "VM_CTL_CMD", "VM_DIR", "VM_DISK_CACHE", "VM_DISK_SIZE", "VM_DPORTS_CLONE", "VM_IMAGE", "VM_MEMORY",
            "VM_MIRROR", "VM_NAME", "VM_NET", "VM_PHASES", "VM_PROJECT", "VM_QEMU_ARGS", "VM_REMOTE_DIR",
            "VM_SETUP_CMD", "VM_SSH_PORT", "VM_SYNC_CMD", "VM_TIME_LIMIT");
    /** What the vm.env of a project may set: nothing that runs a program here or names a file outside the project. */
    private static final Set<String> PROJECT_SETTINGS = Set.of("DFLY_VERSION", "VM_CPUS", "VM_DISK_SIZE",
            "VM_DPORTS_CLONE", "VM_MEMORY", "VM_NAME", "VM_NET", "VM_PROJECT", "VM_REMOTE_DIR", "VM_TIME_LIMIT");
    // end shared:names

    // shared:origin
    /** What gave an option its value: the setting and where it stands, or the option itself. */
    static String originOf(CommandSpec command, String name) {
        Settings settings = (Settings) command.root().commandLine().getDefaultValueProvider();
        OptionSpec option = command.findOption(name);
        String value = settings.values.get(option.descriptionKey());
        return value != null && value.equals(option.getValue()) ? settings.origins.get(option.descriptionKey()) : name;
    }
    // end shared:origin

    // shared:nearest
    /** " (did you mean start?)" if known words differ by at most two letters, else "". */
    static String didYouMean(String word, Collection<String> known) {
        int letters = word.replaceFirst("^-+", "").length();
        String near = known.stream().filter(other -> letters > 2 && letters < 50 && isNear(word, other, 2))
                .collect(Collectors.joining(" or "));
        return near.isEmpty() ? "" : " (did you mean " + near + "?)";
    }

    /** Whether at most this many letters differ, are missing, or are too many. */
    static boolean isNear(String word, String other, int most) {
        if (word.isEmpty() || other.isEmpty() || most < 0) {
            return word.length() + other.length() <= most;
        }
        String a = word.substring(1);
        String b = other.substring(1);
        return word.charAt(0) == other.charAt(0) ? isNear(a, b, most)
                : isNear(a, b, most - 1) || isNear(a, other, most - 1) || isNear(word, b, most - 1);
    }
    // end shared:nearest

    // shared:values
    /** The value that an option was given, if it looks as it should. */
    static String matching(String value, String pattern, String what) {
        if (!value.matches(pattern)) {
            throw new TypeConversionException("'" + value + "' is not " + what);
        }
        return value;
    }

    /** What becomes part of a file's name. NAME-clean.qcow2 is a disk of NAME, so no name ends in -clean. */
    static final class FileName implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "(?!.*-clean$)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", "a name of at most 64 letters, "
                    + "digits, '.', '_' and '-' that does not begin with '.' or '-' or end in -clean");
        }
    }
    // end shared:values

    // shared:size
    /** A size of memory or of a disk. */
    static final class Size implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "[1-9]\\d{0,6}[MGT]", "a size such as 512M or 40G");
        }
    }
    // end shared:size

    // shared:accelname
    /** What QEMU runs the guest with. */
    static final class AccelName implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "auto|kvm|hvf|tcg", "auto, kvm, hvf or tcg");
        }
    }
    // end shared:accelname

    // shared:cpus
    /** How many processors. */
    static final class Cpus implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "[1-9]\\d?", "a number from 1 to 99");
        }
    }
    // end shared:cpus

    // shared:words
    /** Words as a shell takes them. */
    static final class Words implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "(?s)(" + QUOTED + "|\\\\.|[^'\"\\\\])*+", "text with every quote closed");
        }
    }
    // end shared:words

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is $HOME, a relative one starts here. */
    static Path userPath(String value) {
        String home = System.getenv().getOrDefault("HOME", "");
        if (!value.startsWith("~")) {
            return Path.of(value).toAbsolutePath().normalize();
        } else if (!value.matches("~(/.*)?")) {
            throw new VmException(2, value + ": only ~/ stands for a home directory; write the full path instead");
        } else if (!home.startsWith("/")) {
            throw new VmException(69, value + " cannot be found, as HOME is no full path: write the full path");
        }
        return Path.of(home + value.substring(1)).normalize();
    }
    // end shared:paths

    // shared:running
    /**
     * Whether a VM's QEMU lives. It holds a lock on its pid file as long as it does; the kernel takes the lock away
     * even after kill -9. One thread at a time, because closing the file drops every lock that this JVM holds on it.
     */
    static synchronized boolean isRunning(Path qemuPid) {
        try (FileChannel file = FileChannel.open(qemuPid, StandardOpenOption.READ);
                FileLock ours = file.tryLock(0, Long.MAX_VALUE, true)) { // a shared lock, for a moment
            return ours == null;
        } catch (NoSuchFileException none) {
            return false;
        } catch (IOException noLocks) {
            throw new VmException(69, "it is unknown whether the VM runs, as " + qemuPid + " cannot be locked ("
                    + reason(noLocks)
                    + "): keep VM_DIR on a local file system, owned by you");
        }
    }
    // end shared:running

    // shared:runningvm
    /** What NAME.pid tells of a running VM; null if it does not run, or not yet. */
    static JsonObject runningVm(Path vmDir, String name) throws IOException {
        try {
            return isRunning(vmDir.resolve(name + ".qemu-pid")) ? json(Files.readString(vmDir.resolve(name + ".pid")))
                    : null;
        } catch (NoSuchFileException notYet) {
            return null;
        }
    }
    // end shared:runningvm

    // shared:known
    /** Why a VM does not run: there is none of this name (69), or nobody has started it (3). */
    static VmException notRunning(Path vmDir, String name) {
        boolean known = Stream.of("-clean.qcow2", ".qcow2", ".qemu-pid")
                .anyMatch(end -> Files.exists(vmDir.resolve(name + end)));
        return known ? new VmException(3, "VM " + name + " is not running; start it: vm-ctl start")
                : new VmException(69, "there is no VM " + name + " in " + vmDir + ": vm-ctl list names the VMs "
                        + "there, vm-auto-install makes one");
    }
    // end shared:known

    // shared:standstill
    /**
     * Why a guest does not go on, by QEMU's word for its state ("unknown": QEMU gave none), and what to do; null if it
     * goes on.
     */
    static String standstill(String state, long pid) {
        return switch (state) {
            case "running", "inmigrate", "prelaunch" -> null;
            case "unknown" -> "QEMU (pid " + pid + ") does not answer: if it was stopped, kill -CONT " + pid
                    + " resumes it; vm-ctl stop --force ends it";
            case "internal-error" -> "an internal error of QEMU stopped the guest: vm-ctl restart --force boots it";
            case "io-error" -> "the disk of this machine is full, so the guest is paused: free some space, then "
                    + "vm-ctl start";
            default -> "the guest does not run (" + state + "): vm-ctl start resumes it";
        };
    }
    // end shared:standstill

    // shared:lock
    /** Takes a lock, held until the channel is closed or this process ends. Its text names the holder: 69 tells it. */
    static FileChannel lock(Path file, String command) throws IOException {
        FileChannel channel = FileChannel.open(file, Set.of(StandardOpenOption.CREATE, StandardOpenOption.WRITE),
                PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
        if (channel.tryLock() == null) {
            channel.close();
            throw new VmException(69, "another command holds the lock (" + Files.readString(file).strip()
                    + "): wait for it, or stop it, and try again");
        }
        try {
            channel.truncate(0).write(UTF_8.encode(command + " (pid " + ProcessHandle.current().pid() + ")\n"));
        } catch (IOException full) {
            // the lock holds without its text, and what frees space must work on a full disk
        }
        return channel;
    }
    // end shared:lock

    // shared:files
    /** Writes a temporary file of mode 0600 and moves it into place, so that no reader ever sees half of a file. */
    static void writeFile(Path file, String text) throws IOException {
        Path temp = Files.createTempFile(file.getParent(), "." + file.getFileName(), ".new");
        // writeString, as one write of a channel may take a part only when the disk fills up
        try (FileChannel channel = FileChannel.open(Files.writeString(temp, text), StandardOpenOption.WRITE)) {
            channel.force(true); // or a power cut could leave an empty file under the new name
            Files.move(temp, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            Files.deleteIfExists(temp);
        }
    }
    // end shared:files

    // shared:directory
    /** VM_DIR, if it can be used; it need not exist. */
    static Path vmDirectory(Path directory) {
        if (directory.toString().matches("(?s).*(%|\\$\\{).*")) { // what OpenSSH 9.9 expands in an Include line
            throw new VmException(2, "VM_DIR must not contain % or ${, which ssh may replace: choose another "
                    + "directory than " + directory + " with --vm-dir or VM_DIR");
        }
        return Files.notExists(directory) ? directory : privateDirectory(directory);
    }

    /**
     * A directory in which no other user can replace keys and disks; of a link the target counts. If it is missing, it
     * is made with its parents, for this user alone. One that exists is never changed.
     */
    static Path privateDirectory(Path directory) {
        String another = ": choose another directory with --vm-dir or VM_DIR";
        try {
            if (Files.notExists(directory)) {
                Files.createDirectories(directory, PosixFilePermissions.asFileAttribute(
                        PosixFilePermissions.fromString("rwx------")));
            }
            int mode = (int) Files.getAttribute(directory, "unix:mode") & 07777;
            String owner = Files.getOwner(directory).getName();
            if (!Files.isDirectory(directory)) {
                throw new VmException(69, directory + " is not a directory" + another);
            } else if (isOwn(directory)) {
                return directory;
            }
            String quoted = "'" + directory.toString().replace("'", "'\\''") + "'";
            throw new VmException(69, directory + " belongs to " + owner + " and has the mode "
                    + Integer.toOctalString(mode) + ", so another user could replace keys and disks in it" + another
                    + ((mode & 01000) != 0 ? "" : ", or run this as " + owner // else it is like /tmp
                    + ", or make it yours alone: sudo chown -R $(id -u) " + quoted + "; chmod go-w " + quoted));
        } catch (IOException refused) {
            throw new VmException(69, directory + " cannot be used (" + reason(refused) + ")" + another);
        }
    }
    // end shared:directory

    // shared:owner
    /** Whether this user owns a file and nobody else can write to it. Ids are compared: a user may have no name. */
    static boolean isOwn(Path file) throws IOException {
        Path process = Path.of("/proc/self/stat");
        Path home = Path.of(System.getProperty("user.home")); // where there is no /proc; from the user database
        Object user = Files.getAttribute(Files.exists(process) ? process : home, "unix:uid");
        int mode = (int) Files.getAttribute(file, "unix:mode");
        return Files.getAttribute(file, "unix:uid").equals(user) && (mode & 02) == 0
                && ((mode & 020) == 0 || hasPrivateGroup(file));
    }

    /** Whether a file's group is its owner's alone, as on systems where each user has a group and the umask 002. */
    static boolean hasPrivateGroup(Path file) throws IOException {
        String owner = Files.getOwner(file).getName();
        return Files.getAttribute(file, "posix:group").toString().equals(owner) && !owner.equals("root")
                && new String(Files.readAllBytes(Path.of("/etc/group")), UTF_8).lines()
                .anyMatch(line -> line.startsWith(owner + ":") && line.endsWith(":")); // no members after the colon
    }
    // end shared:owner

    // shared:run
    /** A command as a person could paste it into a shell. */
    static String shellQuoted(List<String> command) {
        return command.stream().map(word -> word.matches("[A-Za-z0-9_@%+=:,./-]+") ? word : "'"
                + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    /**
     * Runs a program to its end, without input, and returns what it printed; 69 if it is not installed, 124 past the
     * limit.
     */
    static ProcessResult run(Duration limit, List<String> command) throws IOException {
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        try {
            return new ProcessExecutor(command).redirectInput(InputStream.nullInputStream()).readOutput(true)
                    .timeout(limit.toMillis(), TimeUnit.MILLISECONDS).destroyOnExit().execute();
        } catch (TimeoutException late) {
            throw new VmException(124, command.get(0) + " did not end within " + limit.toSeconds() + " s: "
                    + shellQuoted(command));
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } catch (IOException missing) {
            throw new VmException(69, command.get(0) + " cannot be run (is it installed? 'vm-setup check' tells): "
                    + missing.getMessage());
        }
    }
    // end shared:run

    // shared:opens
    /** An accelerator, and why it is the one to use. */
    record Accelerator(String name, String reason) {}

    /** Whether this user can open a device to use it. Its mode alone does not tell: a container may forbid it. */
    static boolean opens(Path device) {
        try (FileChannel channel = FileChannel.open(device, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            return channel.isOpen();
        } catch (IOException refused) {
            return false;
        }
    }
    // end shared:opens

    // shared:accel
    /** What vm-setup recorded in accel.json. It counts while QEMU's version and the access to KVM are the same. */
    static Optional<Accelerator> recordedAccelerator(Path vmDir, String qemuVersion, boolean kvmOpens) {
        try {
            JsonObject record = json(Files.readString(vmDir.resolve("accel.json")));
            String name = record.getString("name", "");
            boolean counts = name.matches("kvm|hvf|tcg") && qemuVersion.equals(record.getString("qemu"))
                    && Boolean.valueOf(kvmOpens).equals(record.get("kvm"));
            return Optional.of(new Accelerator(name, record.getString("reason", "recorded"))).filter(any -> counts);
        } catch (IOException none) {
            return Optional.empty();
        }
    }
    // end shared:accel

    // shared:auto
    /**
     * What VM_ACCEL names, else what accel.json records. Without one vm-setup is run; if that fails, the device
     * decides.
     */
    static Accelerator accelerator(String wanted, Path vmDir, String qemuVersion, List<String> setup, Path kvm)
            throws IOException {
        if (!wanted.equals("auto")) {
            return new Accelerator(wanted, "as set");
        }
        String problem = "";
        Optional<Accelerator> recorded = recordedAccelerator(vmDir, qemuVersion, opens(kvm));
        if (recorded.isEmpty() && setup != null) {
            problem = askSetup(setup, vmDir);
            recorded = recordedAccelerator(vmDir, qemuVersion, opens(kvm));
        }
        boolean mac = System.getProperty("os.name").startsWith("Mac"); // hvf has no device, and runs its own kind
        boolean usable = mac ? System.getProperty("os.arch").equals("x86_64") : opens(kvm);
        String reason = (mac ? "by the processor" : kvm + (usable ? " can be opened" : " cannot be opened"))
                + "; not measured: " + (problem.isEmpty() ? "vm-setup check does that" : problem);
        return recorded.orElse(new Accelerator(!usable ? "tcg" : mac ? "hvf" : "kvm", reason));
    }
    // end shared:auto

    // shared:asksetup
    /** Lets vm-setup write accel.json, and returns how that ended, to be told if there is still no record. */
    private static String askSetup(List<String> setup, Path vmDir) throws IOException {
        List<String> command = new ArrayList<>(setup);
        command.addAll(List.of("check", "--accel", "--vm-dir", vmDir.toString()));
        try {
            ProcessResult result = run(Duration.ofSeconds(30), command);
            String lastLine = result.outputUTF8().lines().reduce("", (before, line) -> line);
            return shellQuoted(setup) + " ended with " + result.getExitValue() + " (" + lastLine + ")";
        } catch (VmException failed) {
            return failed.getMessage() + "; VM_SETUP_CMD names the command, such as 'jbang vm-setup@NAME'";
        }
    }
    // end shared:asksetup

    // shared:sibling
    /**
     * The command that runs another of these scripts: what its setting says, else its jar beside the running one, else
     * its source by JBang, in a directory that only this user can change, and that neither holds the project nor is in
     * it; null if there is none.
     */
    static List<String> sibling(String setting, String script, Path directory, Path project) throws IOException {
        if (setting != null && !setting.isBlank()) {
            return split(setting);
        }
        Path running = Path.of(System.getProperty("java.class.path")).toAbsolutePath(); // by java -jar: the jar alone
        Path jar = running.resolveSibling(script + ".jar");
        if (Files.isRegularFile(running) && Files.isRegularFile(jar)) {
            return List.of(Path.of(System.getProperty("java.home"), "bin", "java").toString(), "-jar", jar.toString());
        }
        Path untrusted = Files.exists(project) ? project.toRealPath() : project;
        for (Path above = directory; above != null; above = above.getParent()) {
            Path source = above.resolve(script + ".java");
            boolean trusted = Files.isRegularFile(source) && isOwn(source) && isOwn(above);
            Path tools = above.toRealPath();
            if (trusted && !tools.startsWith(untrusted) && !untrusted.startsWith(tools)) {
                return List.of("jbang", source.toString());
            }
        }
        return null;
    }
    // end shared:sibling

    // shared:json
    /** The JSON object in a text; an IOException if there is none. */
    static JsonObject json(String text) throws IOException {
        try {
            return JsonParser.object().from(text);
        } catch (JsonParserException | StackOverflowError garbled) { // the latter: nested very deeply
            throw new IOException("not JSON: " + text, garbled);
        }
    }
    // end shared:json

    // shared:split
    /** The words of a setting, split like a shell does it: quotes and backslashes count, nothing else is expanded. */
    static List<String> split(String text) {
        String piece = QUOTED + "|\\\\.|[^\\s'\"\\\\]";
        if (!text.matches("(?s)(?:" + piece + "|\\s)*+")) {
            throw new VmException(2, "a quote is not closed: " + text);
        }
        Pattern quoted = Pattern.compile("(?s)'([^']*)'|\"((?:[^\"\\\\]|\\\\.)*+)\"|\\\\(.)");
        return Pattern.compile("(?s)(?:" + piece + ")++").matcher(text).results()
                .map(word -> quoted.matcher(word.group()).replaceAll(part -> Matcher.quoteReplacement(
                        part.group(1) != null ? part.group(1) : part.group(3) != null ? part.group(3)
                        : part.group(2).replaceAll("\\\\([\"\\\\$`])", "$1")))).collect(Collectors.toList());
    }
    // end shared:split
}
