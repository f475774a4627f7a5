///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Start, stop, snapshot and restore the DragonFlyBSD test VM
//JAVA 17+
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.grack:nanojson:1.10
//DEPS com.github.stephenc.java-iso-tools:iso9660-writer:2.1.0 // the CD of `install`
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec logs; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonWriter;
import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.io.Writer;
import java.lang.management.ManagementFactory;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.FileChannel;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Mixin;
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
 * Runs the VM whose disks VmAutoInstall made: start, stop, status, snapshots, console, ssh.
 *
 * <p>A start, in order: takes the VM's lock; mends what an interrupted command left; makes the working disk, an overlay on the
 * clean disk, if there is none; picks a port; starts QEMU, with the RAM of the snapshot below if nothing was written since; waits
 * until ssh answers a command. The first start after an installation then freezes disk and RAM as snapshot "clean".
 *
 * <p>A snapshot freezes the working disk where it is: the file gets a second name under the snapshots, the snapshot's record is
 * written, and a new overlay takes the first name. No disk is ever copied or changed once frozen, and after a kill at any point
 * the next command finds either the old state or the new one. A live snapshot has QEMU migrate the running guest into a file, and
 * goes on as a restore does: a new QEMU on a fresh overlay, with that file.
 *
 * <p>Reads in VM_DIR: {@code <name>-clean.qcow2}, {@code <name>.ssh/}. Writes: {@code <name>.qcow2}, {@code <name>.snapshots/},
 * {@code <name>.ssh/config}, {@code ssh_config}, {@code <name>.pid}, the sockets {@code .qmp .console .control .ram}, the logs
 * {@code .console.log .qemu.log}, {@code <name>.lock}, {@code accel.json}; {@code <name>-clean.qcow2} after an installation by hand.
 */
@Command(name = "vm-ctl", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "vm-ctl 1.0", usageHelpWidth = 120,
        description = "Start, stop, snapshot and restore the DragonFlyBSD test VM", exitCodeListHeading = "%nExit codes:%n",
        exitCodeList = {"0:done", "1:the job failed (disk full)", "2:wrong usage, or refused for want of --yes", "3:the VM is not running",
            "69:something needed is not available (QEMU, a disk, the lock, ssh)", "124:a time limit", "130, 143:interrupted"})
final class VmCtl {

    static final String QEMU = "qemu-system-x86_64";
    static final String CLEAN = "clean";
    /** Beyond any healthy QEMU: for what it or ssh does at once unless the machine is very busy. */
    private static final Duration SOON = Duration.ofSeconds(30);

    @Spec
    CommandSpec spec;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    void setVmDir(String value) throws IOException {
        vmDir = realPath(userPath(value));
    }

    private Path vmDir;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT, paramLabel = "NAME",
            converter = VmName.class, description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    private String vmName;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    private boolean verbose;

    public static void main(String... args) {
        System.exit(commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmCtl(), Settings.read(System.getenv(), Path.of("")));
    }

    /** The machine to build: options of every command that starts one. */
    static final class Machine {
        @Option(names = "--memory", descriptionKey = "VM_MEMORY", defaultValue = "auto", paramLabel = "SIZE", converter = Memory.class,
                description = "Memory, as 2G or 512M (VM_MEMORY; default: ${DEFAULT-VALUE}, a quarter of the host's within 2G-8G).")
        String memory;

        @Option(names = "--cpus", descriptionKey = "VM_CPUS", defaultValue = "auto", paramLabel = "N", converter = Cpus.class,
                description = "Processors (VM_CPUS; default: ${DEFAULT-VALUE}, half the host's within 2-4).")
        String cpus;

        @Option(names = "--cpu", descriptionKey = "VM_CPU", defaultValue = "auto", paramLabel = "MODEL",
                description = "QEMU's CPU model (VM_CPU; default: ${DEFAULT-VALUE}: kvm Broadwell-v4,+hypervisor,pmu=off, hvf host, tcg qemu64).")
        String cpu;

        @Option(names = "--accel", descriptionKey = "VM_ACCEL", defaultValue = "auto", paramLabel = "NAME", converter = Accel.class,
                description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}: what runs a probe guest well).")
        String accel;

        @Option(names = "--qemu-args", descriptionKey = "VM_QEMU_ARGS", defaultValue = "", paramLabel = "ARGS",
                description = "Appended to QEMU's arguments, split like a shell does (VM_QEMU_ARGS; default: none).")
        String qemuArgs;

        @Option(names = "--disk-cache", descriptionKey = "VM_DISK_CACHE", defaultValue = "writeback", paramLabel = "MODE",
                converter = Cache.class, description = "writeback, none or unsafe (VM_DISK_CACHE; default: ${DEFAULT-VALUE}).")
        String cache;

        @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", defaultValue = "auto", paramLabel = "PORT", converter = Port.class,
                description = "Port of this host that leads to the guest's sshd (VM_SSH_PORT; default: ${DEFAULT-VALUE}, 2222 or the next free one).")
        String sshPort;

        @Option(names = "--forward", paramLabel = "HOST:GUEST", converter = Forward.class,
                description = "Forward one more port of 127.0.0.1 to the guest, as 8080:80; may be repeated.")
        List<String> forwards = List.of();

        @Option(names = "--timeout", defaultValue = "15m", paramLabel = "TIME", converter = Limit.class,
                description = "Give up on the guest after this long, as 90s, 5m or 1h (default: ${DEFAULT-VALUE}).")
        Duration limit;
    }

    @Command(name = "start", footer = {"", "Example: vm-ctl start --forward 8080:80"},
            description = "Start the VM and wait until ssh answers. What runs already is no error. The first start after an installation "
                + "freezes disk and RAM as snapshot clean; a start from an untouched snapshot is a restore of its RAM.")
    int start(@Mixin Machine machine,
            @Option(names = "--no-wait", description = "Return as soon as QEMU runs.") boolean noWait,
            @Option(names = "--dry-run", description = "Print the commands, shell-quoted, and do nothing.") boolean dryRun) throws IOException {
        Vm vm = vm();
        if (!Files.exists(vm.disk()) && vm.snapshot(CLEAN).isEmpty() && !Files.exists(vm.clean())) {
            throw new VmException(69, "there is no disk for " + vmName + " in " + vmDir + ": run vm-auto-install first, or vm-ctl install");
        }
        if (dryRun) {
            return printCommands(vm, boot(machine, true));
        }
        locked("start", () -> {
            Optional<Running> running = running();
            if (running.isPresent()) {
                goOn(running.get(), machine.limit, !noWait);
            } else {
                boot(boot(machine, !noWait), true);
            }
        });
        return 0;
    }

    @Command(name = "stop", footer = {"", "Example: vm-ctl stop --force"},
            description = "Shut the guest down: by ssh, else by the power button, else QEMU by its monitor, else by SIGKILL. "
                + "Says which of them worked. A stopped VM is no error.")
    int stop(@Option(names = "--force", description = "Do not ask the guest: unwritten data is lost.") boolean force) throws IOException {
        if (!Files.isDirectory(vmDir)) {
            say(vmName + " is not running");
            return 0;
        }
        locked("stop", () -> {
            Optional<Running> running = running();
            if (running.isPresent()) {
                shutDown(running.get(), force);
            } else {
                say(vmName + " is not running");
            }
        });
        return 0;
    }

    @Command(name = "restart", footer = {"", "Example: vm-ctl restart --memory 4G"}, description = "Stop the VM and start it again.")
    int restart(@Mixin Machine machine,
            @Option(names = "--force", description = "Do not ask the guest: unwritten data is lost.") boolean force) throws IOException {
        stop(force);
        return start(machine, false, false);
    }

    @Command(name = "status", footer = {"", "Example: vm-ctl status --json", "A stopped VM is exit code 3, a panicked or hung one 69."},
            description = "Tell the VM's state, without waiting for the guest.")
    int status(@Option(names = "--json", description = "One JSON object.") boolean asJson,
            @Option(names = "--guest", description = "Ask the guest for its name, uptime and clock, too.") boolean guest) throws IOException {
        Vm vm = vm();
        Report report = report(vm);
        Running running = report.running();
        JsonObject answer = new JsonObject();
        answer.put("name", vmName);
        answer.put("state", report.state().name().toLowerCase(Locale.ROOT));
        answer.put("reason", report.reason());
        answer.put("pid", running == null ? null : running.pid());
        answer.put("uptimeSeconds", running == null ? null : Duration.between(running.started(), Instant.now()).toSeconds());
        answer.put("port", running == null ? null : running.port());
        answer.put("forwards", running == null ? null : running.forwards());
        answer.put("accelerator", running == null ? null : running.hardware().value("-accel"));
        answer.put("memory", running == null ? null : running.hardware().value("-m"));
        answer.put("cpus", running == null ? null : Integer.valueOf(running.hardware().value("-smp")));
        answer.put("diskBytes", Files.exists(vm.disk()) ? Qcow2.read(vm.disk()).size() : null);
        answer.put("diskFileBytes", Files.exists(vm.disk()) ? Files.size(vm.disk()) : null);
        answer.put("snapshots", vm.snapshots().stream().map(Snapshot::name).toList());
        if (guest) {
            answer.put("guest", running == null ? null : guestSays());
        }
        if (asJson) {
            answer(JsonWriter.string(answer));
        } else {
            answer.forEach((key, value) -> {
                if (value != null && !value.equals(List.of())) {
                    answer(String.format("%-14s %s", key, value.toString().replaceAll("^\\[|]$", "")));
                }
            });
        }
        return report.state().exitCode;
    }

    @Command(name = "list", footer = {"", "Example: vm-ctl list"}, description = "List all VMs in VM_DIR.")
    int list() throws IOException {
        for (String name : Vm.names(vmDir)) {
            Report report = report(new Vm(vmDir, name));
            String where = report.running() == null ? "" : "port " + report.running().port() + ", pid " + report.running().pid();
            answer(String.format("%-20s %-10s %s", name, report.state().name().toLowerCase(Locale.ROOT), where).stripTrailing());
        }
        return 0;
    }

    @Command(name = "snapshot", footer = {"", "Example: vm-ctl snapshot before-upgrade; vm-ctl snapshot --list"},
            description = "Freeze the VM under a name: the disk of a stopped one, disk and RAM of a running one. Nothing is copied.")
    int snapshot(@Parameters(arity = "0..1", paramLabel = "NAME", converter = SnapshotName.class, description = "Default: clean.") String given,
            @Option(names = "--list", description = "List the snapshots.") boolean list,
            @Option(names = "--delete", paramLabel = "NAME", converter = SnapshotName.class,
                    description = "Delete a snapshot that nothing builds on.") String delete,
            @Option(names = "--yes", description = "Replace a snapshot of this name without asking.") boolean yes) throws IOException {
        Vm vm = vm();
        if (list) {
            for (Snapshot snapshot : vm.snapshots()) {
                String ram = snapshot.ram() == null ? "disk only" : "with RAM";
                String below = Qcow2.read(snapshot.disk()).backing().map(vm::nameOf).map(" on "::concat).orElse("");
                answer(String.format("%-20s %s  %s%s", snapshot.name(), snapshot.made().truncatedTo(ChronoUnit.SECONDS), ram, below));
            }
            return 0;
        }
        if (delete != null) {
            locked("snapshot --delete", () -> {
                delete(vm, delete);
            });
            return 0;
        }
        String name = given == null ? CLEAN : given;
        if (!Files.exists(vm.disk())) {
            throw new VmException(69, vmName + " has no disk of its own to freeze: vm-ctl start makes one");
        } else if (vm.snapshot(name).isPresent() || name.equals(CLEAN) && Files.exists(vm.clean())) {
            confirm("replace snapshot " + name + " of " + vmName, yes);
        }
        locked("snapshot", () -> {
            Optional<Running> running = running();
            if (running.isPresent() && running.get().byHand()) {
                say("a VM started by 'install' is frozen without its RAM, which knows of the CDs: shutting it down");
                shutDown(running.get(), false);
                running = Optional.empty();
            }
            if (running.isPresent()) {
                freezeRunning(running.get(), name, false, Duration.ofMinutes(15));
            } else {
                thaw(vm.freeze(name, null, null, false));
                say("froze the disk as " + name);
            }
        });
        return 0;
    }

    @Command(name = "restore", footer = {"", "Example: vm-ctl restore before-upgrade"},
            description = "Throw the working disk away and go back to a snapshot. One with RAM comes back running, its clock set; "
                + "one without leaves the VM running or stopped, as it was.")
    int restore(@Mixin Machine machine,
            @Parameters(arity = "0..1", paramLabel = "NAME", converter = SnapshotName.class, description = "Default: clean.") String given)
            throws IOException {
        Vm vm = vm();
        String name = given == null ? CLEAN : given;
        if (vm.snapshot(name).isEmpty() && !(name.equals(CLEAN) && Files.exists(vm.clean()))) {
            throw new VmException(69, vmName + " has no snapshot " + name + (vm.snapshots().isEmpty() ? ""
                    : "; it has " + vm.snapshots().stream().map(Snapshot::name).collect(Collectors.joining(", "))));
        }
        locked("restore", () -> {
            Path frozen = vm.snapshot(name).map(Snapshot::disk).orElse(vm.clean());
            vm.chain(frozen);
            Optional<Running> running = running();
            if (running.isPresent()) {
                closeSshMaster();
                kill(running.get().pid()); // its disk is thrown away: nothing to write back
                if (machine.forwards.isEmpty()) {
                    machine.forwards = running.get().forwards();
                }
            }
            overlay(frozen);
            if (running.isPresent() || vm.snapshot(name).map(Snapshot::ram).isPresent()) {
                boot(boot(machine, true), true);
            } else {
                say("restored the disk of " + name + ": vm-ctl start boots it");
            }
        });
        return 0;
    }

    @Command(name = "console", footer = {"", "Example: vm-ctl console --log"},
            description = "Attach to the guest's serial console; Ctrl-] detaches. With --log print what it said and follow it.")
    int console(@Option(names = "--log", description = "Print the console's log and follow it until Ctrl-C.") boolean log) throws IOException {
        Vm vm = vm();
        if (log) {
            return follow(vm.file(".console.log"));
        }
        needRunning();
        boolean terminal = isTerminal();
        if (terminal) {
            say("attached to the console of " + vmName + "; Ctrl-] detaches");
            interactive(List.of("stty", "raw", "-echo"), null);
        }
        try (SocketChannel guest = SocketChannel.open(UnixDomainSocketAddress.of(vm.socket(".console")))) {
            CompletableFuture.anyOf(inBackground(Channels.newInputStream(guest), System.out, -1),
                    inBackground(System.in, Channels.newOutputStream(guest), terminal ? 0x1d : -1)).join();
        } finally {
            if (terminal) {
                interactive(List.of("stty", "sane"), null);
            }
        }
        return 0;
    }

    @Command(name = "screenshot", footer = {"", "Example: vm-ctl screenshot now.png"}, description = "Write what the guest's screen shows as PNG.")
    int screenshot(@Parameters(paramLabel = "FILE.png", description = "Where to.") Path file) throws IOException {
        needRunning();
        Path beside = vmDir.resolve("." + vmName + ".screenshot.new");
        JsonObject where = new JsonObject();
        where.put("filename", beside.toString());
        where.put("format", "png");
        try {
            qmp("screendump", where);
            Files.move(beside, file.toAbsolutePath(), StandardCopyOption.REPLACE_EXISTING);
        } catch (NoSuchFileException noDirectory) {
            throw new VmException(69, "cannot write " + noDirectory.getOtherFile() + ": no such directory");
        } finally {
            Files.deleteIfExists(beside);
        }
        return 0;
    }

    @Command(name = "ssh", footer = {"", "Example: vm-ctl ssh"}, description = "Open a shell in the guest.")
    int ssh(@Parameters(arity = "0..*", paramLabel = "WORD", description = "Handed to ssh, after --.") List<String> words) throws IOException {
        needRunning();
        List<String> command = ssh();
        command.addAll(words == null ? List.of() : words);
        return sshResult(interactive(command, null));
    }

    @Command(name = "exec", footer = {"", "Example: vm-ctl exec --timeout 5m -- gmake -C /root/project test",
            "Several words are that command and its arguments; a single one is a line for the guest's sh."},
            description = "Run a command in the guest, with this command's input; its exit code is the exit code.")
    int exec(@Parameters(arity = "1..*", paramLabel = "WORD", description = "The command, after --.") List<String> words,
            @Option(names = "--env", paramLabel = "K=V", description = "Set a variable for it; may be repeated.") Map<String, String> environment,
            @Option(names = "--timeout", paramLabel = "TIME", converter = Limit.class, description = "End it after this long: exit code 124.")
            Duration limit) throws IOException {
        needRunning();
        String group = limit == null ? null : "/tmp/.vm-exec-" + UUID.randomUUID();
        List<String> command = ssh();
        command.add(remoteCommand(words, environment == null ? Map.of() : environment, group));
        try {
            return sshResult(interactive(command, limit));
        } catch (VmException late) {
            List<String> end = ssh(); // the guest's sshd lets a command run on when its connection is gone
            end.add("sh -c 'kill -s TERM -- -`cat " + group + "`; rm -f " + group + "'");
            run(SOON, end);
            throw late;
        }
    }

    @Command(name = "install", footer = {"", "Example: vm-ctl install --vm-name by-hand"},
            description = "Install by hand: boot the installer with a blank disk, a serial console and a VNC screen on loopback, and a CD that "
                + "makes of the installed system what vm-auto-install would have made of it.")
    int install(@Mixin Machine machine,
            @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2", paramLabel = "V",
                    description = "Which installer (DFLY_VERSION; default: ${DEFAULT-VALUE}).") String version,
            @Option(names = "--image", descriptionKey = "VM_IMAGE", paramLabel = "ISO", description = "A local installer ISO instead (VM_IMAGE).") String image,
            @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE", defaultValue = "20G", paramLabel = "SIZE", converter = Memory.class,
                    description = "The blank disk's size (VM_DISK_SIZE; default: ${DEFAULT-VALUE}, sparse).") String diskSize,
            @Option(names = "--phases", descriptionKey = "VM_PHASES", paramLabel = "DIR",
                    description = "The phase scripts (VM_PHASES; default: the nearest phases/ upwards).") String phases) throws IOException {
        return 0;
    }

    @Command(name = "destroy", footer = {"", "Example: vm-ctl destroy --yes"},
            description = "Delete the VM: disks, snapshots, keys, logs. The installer ISO stays.")
    int destroy(@Option(names = "--yes", description = "Do not ask.") boolean yes) throws IOException {
        Vm vm = vm();
        if (vm.files().isEmpty()) {
            say("there is no VM " + vmName + " in " + vmDir);
            return 0;
        }
        confirm("destroy " + vmName + " with all its disks and snapshots", yes);
        locked("destroy", () -> {
            closeSshMaster();
            Optional<Running> running = running();
            if (running.isPresent()) {
                kill(running.get().pid());
            }
            List<String> du = new ArrayList<>(List.of("du", "-skc", "--"));
            vm.files().forEach(file -> du.add(file.toString()));
            String[] total = run(SOON, du).outputUTF8().strip().split("\n");
            for (Path file : vm.files()) {
                deleteTree(file);
                say("removed " + file.getFileName());
            }
            writeSshConfigs(null, 0);
            say("freed " + Long.parseLong(total[total.length - 1].split("\\s")[0]) / 1024 + " MiB");
        });
        return 0;
    }

    // ---- the files of a VM ----

    /** One VM's files in VM_DIR, and the bookkeeping of its disks and snapshots; the rules hold whoever was killed, and when. */
    record Vm(Path dir, String name) {
        private static final Pattern OWNER = Pattern.compile("(.+?)(?:-clean\\.qcow2|\\.(?:qcow2|snapshots|install|ssh|pid))");

        Path file(String suffix) {
            return dir.resolve(name + suffix);
        }

        Path disk() {
            return file(".qcow2");
        }

        Path clean() {
            return file("-clean.qcow2");
        }

        Path pidFile() {
            return file(".pid");
        }

        Path snapshotDir(String snapshot) {
            return file(".snapshots").resolve(snapshot);
        }

        Path socket(String suffix) throws IOException {
            return VmCtl.socket(dir, name + suffix);
        }

        /** The names of all VMs that have a file here. */
        static List<String> names(Path dir) throws IOException {
            return entries(dir).stream().map(file -> OWNER.matcher(file.getFileName().toString())).filter(Matcher::matches)
                    .map(match -> match.group(1)).filter(name -> !name.startsWith(".")).distinct().sorted().toList();
        }

        /** All files of this VM, and of no VM whose name begins like its name. */
        List<Path> files() throws IOException {
            List<String> longer = names(dir).stream().filter(other -> other.startsWith(name + ".")).toList();
            List<Path> mine = new ArrayList<>(entries(dir).stream().filter(file -> {
                String text = file.getFileName().toString().replaceFirst("^\\.", "");
                return (text.startsWith(name + ".") || text.equals(name + "-clean.qcow2"))
                        && longer.stream().noneMatch(other -> text.startsWith(other + ".") || text.startsWith(other + "-clean."));
            }).toList());
            for (String suffix : List.of(".qmp", ".console", ".control", ".ram")) {
                if (Files.exists(dir) && Files.exists(socket(suffix)) && !mine.contains(socket(suffix))) {
                    mine.add(socket(suffix));
                }
            }
            return mine;
        }

        /** A disk and all it builds on, down to the one that backs on nothing; refuses a chain that is broken or was changed below. */
        List<Path> chain(Path top) throws IOException {
            List<Path> chain = new ArrayList<>();
            for (Optional<Path> disk = Optional.of(top); disk.isPresent(); disk = Qcow2.read(disk.get()).backing()) {
                Path overlay = chain.isEmpty() ? null : chain.get(chain.size() - 1);
                if (!Files.exists(disk.get())) {
                    throw new VmException(69, disk.get() + " is missing" + (overlay == null ? "" : ", and " + overlay
                            + " builds on it (if the directory was moved, move it back)"));
                } else if (overlay != null && Files.getLastModifiedTime(disk.get()).compareTo(Files.getLastModifiedTime(overlay)) > 0) {
                    throw new VmException(69, disk.get().getFileName() + " was made anew since " + overlay + " was built on it, which is of no use"
                            + " any more: vm-ctl restore goes back to " + CLEAN);
                } else if (chain.contains(disk.get())) {
                    throw new VmException(69, disk.get() + " builds on itself");
                }
                chain.add(disk.get());
            }
            return chain;
        }

        /** A snapshot by name. The clean disk alone is no snapshot yet: it has no record. */
        Optional<Snapshot> snapshot(String snapshot) {
            try {
                return Optional.of(Snapshot.read(this, snapshot)).filter(found -> Files.exists(found.disk()));
            } catch (IOException | RuntimeException noneOrDamaged) {
                return Optional.empty();
            }
        }

        List<Snapshot> snapshots() throws IOException {
            return entries(file(".snapshots")).stream().map(directory -> snapshot(directory.getFileName().toString()))
                    .flatMap(Optional::stream).toList();
        }

        /** What a disk is called by people. */
        String nameOf(Path disk) {
            return disk.getParent().getParent() != null && disk.getParent().getParent().equals(file(".snapshots"))
                    ? disk.getParent().getFileName().toString() : disk.getFileName().toString();
        }

        /** The names of what builds on a snapshot: other snapshots, or the VM's own disk. */
        List<String> buildersOn(Snapshot snapshot) throws IOException {
            List<String> builders = new ArrayList<>();
            for (Snapshot other : snapshots()) {
                if (!other.name().equals(snapshot.name()) && backings(other.disk()).contains(snapshot.disk())) {
                    builders.add(other.name());
                }
            }
            if (Files.exists(disk()) && backings(disk()).contains(snapshot.disk())) {
                builders.add("the VM's own disk");
            }
            return builders;
        }

        /** As far as the chain reaches, whole or not. */
        private static Set<Path> backings(Path top) throws IOException {
            Set<Path> found = new LinkedHashSet<>();
            for (Optional<Path> disk = Optional.of(top); disk.isPresent() && found.add(disk.get()) && Files.exists(disk.get()); ) {
                disk = Qcow2.read(disk.get()).backing();
            }
            return found;
        }

        /**
         * Makes a snapshot of the working disk, whose QEMU is stopped or done migrating: gives the file a second name, then writes
         * the record, which is the moment the snapshot exists. {@link #thaw} must follow; an interrupted one is made up for later.
         */
        Path freeze(String snapshot, Ram ram, Hardware hardware, boolean automatic) throws IOException {
            Path directory = Files.createDirectories(snapshotDir(snapshot));
            boolean first = snapshot.equals(CLEAN) && !Files.exists(clean());
            Path frozen = Files.createLink(first ? clean() : unused(directory, "disk", ".qcow2"), disk());
            JsonObject record = new JsonObject();
            record.put("disk", dir.relativize(frozen).toString());
            record.put("made", Instant.now().toString());
            record.put("automatic", automatic);
            record.put("identity", identity(frozen));
            if (ram != null) {
                record.put("ram", ram.file().getFileName().toString());
                record.put("ramBytes", ram.bytes());
                record.put("ramCrc32c", ram.crc());
                record.put("hardware", hardware.toJson());
            }
            writeFile(directory.resolve("snapshot.json"), JsonWriter.indent("  ").string().object(record).done(), "rw-------");
            return frozen;
        }

        /** A frozen disk never changes, so its size and time tell it from one that an installation put in its place. */
        static String identity(Path disk) throws IOException {
            return Files.size(disk) + " bytes, " + Files.getLastModifiedTime(disk).toMillis();
        }

        /** disk.qcow2, disk-2.qcow2, ...: a replaced snapshot's files stay while something builds on them. */
        static Path unused(Path directory, String stem, String extension) {
            return IntStream.iterate(1, i -> i + 1).mapToObj(i -> directory.resolve(stem + (i == 1 ? "" : "-" + i) + extension))
                    .filter(file -> !Files.exists(file)).findFirst().orElseThrow();
        }

        /** The frozen disk whose second name the working disk still is: a freeze was interrupted after the record was written. */
        Optional<Path> halfFrozen() throws IOException {
            List<Path> frozen = new ArrayList<>(snapshots().stream().map(Snapshot::disk).toList());
            frozen.add(clean());
            for (Path disk : frozen) {
                if (Files.exists(disk()) && Files.exists(disk) && Files.isSameFile(disk(), disk)) {
                    return Optional.of(disk);
                }
            }
            return Optional.empty();
        }

        /** Removes what no snapshot and no disk refers to any more: replaced disks that nothing builds on, RAM, temporary files. */
        void sweep() throws IOException {
            Set<Path> needed = new LinkedHashSet<>(List.of(disk(), clean()));
            for (Path directory : entries(file(".snapshots"))) {
                Optional<Snapshot> snapshot = snapshot(directory.getFileName().toString());
                boolean damaged = snapshot.isEmpty() && Files.exists(directory.resolve("snapshot.json"));
                needed.addAll(damaged ? entries(directory) : snapshot.map(found -> Arrays.asList(found.disk(), found.ram())).orElse(List.of()));
            }
            for (Path disk : needed.stream().filter(file -> file != null && file.toString().endsWith(".qcow2") && Files.exists(file)).toList()) {
                Set<Path> below = backings(disk);
                if (!below.stream().allMatch(Files::exists)) {
                    return; // a broken chain, as of a VM_DIR that was moved: nobody knows what is needed
                }
                needed.addAll(below);
            }
            for (Path directory : entries(file(".snapshots"))) {
                for (Path file : entries(directory)) {
                    if (!needed.contains(file) && !file.endsWith("snapshot.json")) {
                        Files.delete(file);
                    }
                }
                if (entries(directory).isEmpty()) {
                    Files.delete(directory);
                }
            }
            for (Path file : entries(dir)) {
                if (file.getFileName().toString().startsWith("." + name + ".") && file.toString().endsWith(".new")) {
                    Files.delete(file);
                }
            }
        }
    }

    /** What the header of a qcow2 image says; read directly, because it is needed often and QEMU's lock is in the way of qemu-img. */
    record Qcow2(Optional<Path> backing, long size, boolean empty) {
        static Qcow2 read(Path file) throws IOException {
            try (RandomAccessFile image = new RandomAccessFile(file.toFile(), "r")) {
                if (image.length() < 72 || image.readInt() != 0x514649fb) {
                    throw new VmException(69, file + " is no qcow2 image");
                }
                image.seek(8);
                long nameAt = image.readLong();
                byte[] name = new byte[image.readInt()];
                image.seek(24);
                long size = image.readLong();
                image.seek(36);
                byte[] clusters = new byte[8 * image.readInt()]; // the L1 table: all zero until the first write
                image.seek(image.readLong());
                image.readFully(clusters);
                image.seek(nameAt);
                image.readFully(name);
                Path backing = name.length == 0 ? null : file.resolveSibling(new String(name, UTF_8)).normalize();
                return new Qcow2(Optional.ofNullable(backing), size, IntStream.range(0, clusters.length).allMatch(i -> clusters[i] == 0));
            }
        }
    }

    /** A RAM file and what it must be to be believed. */
    record Ram(Path file, long bytes, long crc) {}

    /** A frozen disk, with the RAM that belongs to it unless it was stopped; automatic: made by the first start, to be made again at need. */
    record Snapshot(String name, Path disk, Path ram, long ramBytes, long ramCrc, Hardware hardware, Instant made, boolean automatic, String identity) {
        static Snapshot read(Vm vm, String name) throws IOException {
            Path directory = vm.snapshotDir(name);
            JsonObject said = json(Files.readString(directory.resolve("snapshot.json")));
            Path ram = said.has("ram") ? directory.resolve(said.getString("ram")) : null;
            return new Snapshot(name, vm.dir().resolve(said.getString("disk")), ram, said.getLong("ramBytes"), said.getLong("ramCrc32c"),
                    ram == null ? null : Hardware.of(said.getObject("hardware")), Instant.parse(said.getString("made")), said.getBoolean("automatic"),
                    said.getString("identity"));
        }

        /** Why the RAM cannot be used on this hardware; nothing if it can. */
        Optional<String> ramProblem(Hardware now) throws IOException {
            if (ram == null || !Files.exists(ram)) {
                return Optional.of("there is none");
            } else if (Files.size(ram) != ramBytes) {
                return Optional.of("it has " + Files.size(ram) + " bytes instead of " + ramBytes);
            } else if (!Vm.identity(disk).equals(identity)) {
                return Optional.of("it belongs to another disk");
            }
            return hardware.difference(now);
        }
    }

    /** What QEMU must have in common to take over another one's RAM: its version and the arguments that make the machine. */
    record Hardware(String qemu, List<String> arguments) {
        static Hardware of(JsonObject said) {
            return new Hardware(said.getString("qemu"), said.getArray("arguments").stream().map(String.class::cast).toList());
        }

        JsonObject toJson() {
            JsonObject object = new JsonObject();
            object.put("qemu", qemu);
            object.put("arguments", arguments);
            return object;
        }

        /** The value of an option, as "-m". */
        String value(String option) {
            return arguments.get(arguments.indexOf(option) + 1);
        }

        Optional<String> difference(Hardware now) {
            if (!qemu.equals(now.qemu)) {
                return Optional.of("it was made by " + qemu + ", this is " + now.qemu);
            }
            for (String option : List.of("-accel", "-cpu", "-m", "-smp")) {
                if (!value(option).equals(now.value(option))) {
                    return Optional.of("it was made with " + option + " " + value(option) + ", now it is " + now.value(option));
                }
            }
            return arguments.equals(now.arguments) ? Optional.empty() : Optional.of("it was made with other QEMU arguments");
        }
    }

    /** A start: the machine, and what does not matter to its RAM. */
    record Boot(Hardware hardware, String cache, String sshPort, List<String> forwards, List<Path> discs, Duration limit, boolean awaited) {
        boolean byHand() {
            return !discs.isEmpty();
        }
    }

    /** What the pid file says of a QEMU; ready once ssh has answered. */
    record Running(long pid, int port, Instant started, long consoleAt, boolean ready, boolean byHand, String cache, List<String> forwards,
            Hardware hardware) {
        static Running read(Path pidFile) throws IOException {
            JsonObject said = json(Files.readString(pidFile));
            if (!said.has("hardware")) {
                throw new VmException(69, "this VM is at work for another command (QEMU's pid is " + said.getLong("pid") + "): wait for it to end");
            }
            return new Running(said.getLong("pid"), said.getInt("port"), Instant.parse(said.getString("started")), said.getLong("consoleAt"),
                    said.getBoolean("ready"), said.getBoolean("byHand"), said.getString("cache"),
                    said.getArray("forwards").stream().map(String.class::cast).toList(), Hardware.of(said.getObject("hardware")));
        }

        void write(Path pidFile) throws IOException {
            writeFile(pidFile, JsonWriter.string().object().value("pid", pid).value("bootId", bootId()).value("startTicks", startTicks(pid))
                    .value("port", port).value("accel", hardware.value("-accel")).value("started", started.toString()).value("consoleAt", consoleAt)
                    .value("ready", ready).value("byHand", byHand).value("cache", cache).array("forwards", forwards)
                    .object("hardware", hardware.toJson()).end().done(), "rw-------");
        }

        Running answered() {
            return new Running(pid, port, started, consoleAt, true, byHand, cache, forwards, hardware);
        }

        /** The same machine on the same port, for a new QEMU process. */
        Boot again(Duration limit) {
            return new Boot(hardware, cache, "auto:" + port, forwards, List.of(), limit, true);
        }
    }

    /** A VM's state, as its exit code. */
    enum State {
        STOPPED(3), GONE(3), STARTING(0), RUNNING(0), PAUSED(0), PANICKED(69), HUNG(69);

        final int exitCode;

        State(int exitCode) {
            this.exitCode = exitCode;
        }
    }

    /** What status says. */
    record Report(State state, String reason, Running running) {}

    // ---- starting ----

    /** The command line of QEMU, with nothing in it that a path could break. */
    static List<String> qemuArguments(Vm vm, Boot boot, int port, boolean incoming) throws IOException {
        List<String> arguments = new ArrayList<>(List.of(QEMU, "-name", vm.name(), "-pidfile", vm.file(".qemu.pid").toString(), "-daemonize",
                "-display", "none", "-d", "strace", "-D", vm.file(".qemu.log").toString())); // -D alone logs nothing; "strace" is for user mode only
        if (!System.getProperty("os.name").startsWith("Mac")) {
            arguments.addAll(List.of("-sandbox", "on,resourcecontrol=deny")); // denying spawn or privileges does not go with -daemonize
        }
        JsonObject disk = blockdev("disk0", "qcow2", vm.disk());
        disk.put("discard", "unmap");
        disk.put("detect-zeroes", "unmap");
        JsonObject cache = new JsonObject();
        cache.put("direct", boot.cache().equals("none"));
        cache.put("no-flush", boot.cache().equals("unsafe"));
        disk.put("cache", cache);
        arguments.addAll(List.of("-blockdev", JsonWriter.string(disk)));
        for (int i = 0; i < boot.discs().size(); i++) {
            JsonObject disc = blockdev("cd" + i, "raw", boot.discs().get(i));
            disc.put("read-only", true);
            arguments.addAll(List.of("-blockdev", JsonWriter.string(disc)));
        }
        StringBuilder network = new StringBuilder("user,id=net0,hostfwd=tcp:127.0.0.1:" + port + "-:22");
        boot.forwards().forEach(forward -> network.append(",hostfwd=tcp:127.0.0.1:").append(forward.replace(":", "-:")));
        arguments.addAll(List.of("-netdev", network.toString(),
                "-chardev", "socket,id=qmp0,server=on,wait=off,path=" + optionValue(vm.socket(".qmp")), "-mon", "chardev=qmp0,mode=control",
                "-chardev", "socket,id=serial0,server=on,wait=off,path=" + optionValue(vm.socket(".console"))
                        + ",logfile=" + optionValue(vm.file(".console.log")) + ",logappend=on"));
        if (incoming) {
            arguments.addAll(List.of("-incoming", "unix:" + vm.socket(".ram")));
        }
        arguments.addAll(boot.hardware().arguments());
        return arguments;
    }

    private static JsonObject blockdev(String node, String driver, Path file) {
        JsonObject protocol = new JsonObject();
        protocol.put("driver", "file");
        protocol.put("filename", file.toString());
        JsonObject format = new JsonObject();
        format.put("driver", driver);
        format.put("node-name", node);
        format.put("file", protocol);
        return format;
    }

    /** In an option of the key=value kind a comma separates; doubled it is one. */
    private static String optionValue(Path path) {
        return path.toString().replace(",", ",,");
    }

    /** The arguments that make the machine. The legacy "pc" machine and virtio devices are what DragonFly is known to run on. */
    static List<String> hardwareArguments(String accelerator, String cpu, String memory, int cpus, int discs, List<String> extra) {
        List<String> arguments = new ArrayList<>(List.of("-nodefaults", "-no-user-config", "-machine", "pc", "-accel", accelerator, "-cpu", cpu,
                "-m", memory, "-smp", String.valueOf(cpus), "-rtc", "base=utc", "-vga", "std", "-serial", "chardev:serial0",
                "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=1", // da0
                "-device", "virtio-net-pci,netdev=net0,romfile=")); // vtnet0; no network boot
        if (accelerator.equals("kvm")) {
            arguments.addAll(List.of("-global", "kvm-pit.lost_tick_policy=delay"));
        }
        for (int i = 0; i < discs; i++) {
            arguments.addAll(List.of("-device", "ide-cd,bus=ide." + i / 2 + ",unit=" + i % 2 + ",drive=cd" + i + (i == 0 ? ",bootindex=2" : "")));
        }
        arguments.addAll(extra);
        return arguments;
    }

    private Boot boot(Machine machine, boolean wait) throws IOException {
        return boot(machine, wait, List.of(), List.of());
    }

    private Boot boot(Machine machine, boolean wait, List<Path> discs, List<String> display) throws IOException {
        Accelerator accelerator = accelerator(machine.accel, QEMU, vmDir);
        if (verbose) {
            say("accelerator " + accelerator.name() + ": " + accelerator.reason());
        }
        String cpu = !machine.cpu.equals("auto") ? machine.cpu : switch (accelerator.name()) {
            case "kvm" -> "Broadwell-v4,+hypervisor,pmu=off"; // never +invtsc: QEMU then refuses to save the RAM
            case "hvf" -> "host";
            default -> "qemu64";
        };
        long mebibytes = ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getTotalMemorySize() >> 20;
        String memory = machine.memory.equals("auto") ? Math.max(2048, Math.min(8192, mebibytes / 4)) + "M" : machine.memory;
        int cpus = machine.cpus.equals("auto") ? Math.max(2, Math.min(4, Runtime.getRuntime().availableProcessors() / 2)) : Integer.parseInt(machine.cpus);
        List<String> extra = new ArrayList<>(display);
        extra.addAll(split(machine.qemuArgs));
        String version = run(SOON, List.of(QEMU, "--version")).outputUTF8().lines().findFirst().orElse("");
        Hardware hardware = new Hardware(version, hardwareArguments(accelerator.name(), cpu, memory, cpus, discs.size(), extra));
        return new Boot(hardware, machine.cache, machine.sshPort, machine.forwards == null ? List.of() : machine.forwards, discs, machine.limit, wait);
    }

    private int printCommands(Vm vm, Boot boot) throws IOException {
        Path base = vm.snapshot(CLEAN).map(Snapshot::disk).orElse(vm.clean());
        if (!Files.exists(vm.disk())) {
            answer(shellQuoted(overlayCommand(base, vm.disk())));
        }
        Optional<Snapshot> below = below(vm);
        boolean incoming = below.isPresent() && below.get().ramProblem(boot.hardware()).isEmpty();
        answer(shellQuoted(qemuArguments(vm, boot, ports(boot.sshPort()).get(0), incoming)));
        return 0;
    }

    /** The snapshot that the working disk, or a new one, would be a copy of: nothing was written to it yet. */
    private static Optional<Snapshot> below(Vm vm) throws IOException {
        if (!Files.exists(vm.disk())) {
            return vm.snapshot(CLEAN);
        }
        Qcow2 disk = Qcow2.read(vm.disk());
        return disk.empty() && disk.backing().isPresent()
                ? vm.snapshots().stream().filter(snapshot -> snapshot.disk().equals(disk.backing().get())).findFirst() : Optional.empty();
    }

    /**
     * From the working disk to a guest that answers: by the RAM of the snapshot below if nothing was written since and the RAM can
     * be used, else by a cold boot. A cold boot of the installation's own state is then frozen, so that the next one need not be.
     */
    private void boot(Boot boot, boolean freeze) throws IOException {
        Vm vm = vm();
        long begun = System.nanoTime();
        Optional<Snapshot> below = below(vm);
        boolean installation = below.isPresent() ? below.get().automatic()
                : !Files.exists(vm.disk()) || Qcow2.read(vm.disk()).empty() && Qcow2.read(vm.disk()).backing().equals(Optional.of(vm.clean()));
        String problem = below.isEmpty() ? "" : below.get().ramProblem(boot.hardware()).orElse(null);
        if (!Files.exists(vm.disk())) {
            overlay(below.map(Snapshot::disk).orElse(vm.clean()));
        }
        vm.chain(vm.disk());
        if (below.isPresent() && problem == null) {
            Running running = launch(boot, true);
            try {
                feed(below.get());
                awaitAnswer(running, boot.limit(), true);
                say(String.format(Locale.ROOT, "restored %s with its RAM in %.1f s: ssh on port %d (pid %d, %s)", below.get().name(),
                        seconds(begun), running.port(), running.pid(), boot.hardware().value("-accel")));
                return;
            } catch (IOException damaged) {
                kill(running.pid());
                problem = damaged.getMessage();
            }
        }
        if (below.isPresent() && below.get().ram() != null) {
            say("the RAM of " + below.get().name() + " cannot be used: " + problem + "; booting its disk");
            overlay(installation && Files.exists(vm.clean()) ? vm.clean() : below.get().disk());
        }
        Running running = launch(boot, false);
        if (!boot.awaited()) {
            say("started " + vmName + ": ssh will be on port " + running.port() + " (pid " + running.pid() + ")");
            return;
        }
        awaitAnswer(running, boot.limit(), false);
        say(String.format(Locale.ROOT, "booted %s in %.1f s: ssh on port %d (pid %d, %s)", vmName, seconds(begun), running.port(), running.pid(),
                boot.hardware().value("-accel")));
        if (installation && freeze) {
            try {
                freezeRunning(running, CLEAN, true, boot.limit());
            } catch (VmException notFrozen) {
                if (running().isEmpty()) {
                    throw notFrozen;
                }
                say("the booted state could not be kept as snapshot clean, so the next start will boot again: " + notFrozen.getMessage());
            }
        }
    }

    /** Starts QEMU on the first free port, and writes down what runs. */
    private Running launch(Boot boot, boolean incoming) throws IOException {
        Vm vm = vm();
        long consoleAt = Files.exists(vm.file(".console.log")) ? Files.size(vm.file(".console.log")) : 0;
        boot.forwards().forEach(forward -> needFree(Integer.parseInt(forward.split(":")[0])));
        boolean sandbox = true;
        for (Iterator<Integer> ports = ports(boot.sshPort()).iterator(); ; ) {
            int port = ports.next();
            List<String> command = qemuArguments(vm, boot, port, incoming);
            if (!sandbox) {
                command.subList(command.indexOf("-sandbox"), command.indexOf("-sandbox") + 2).clear();
            }
            ProcessResult started = run(SOON.multipliedBy(4), command);
            String said = printable(started.outputUTF8()).strip();
            if (started.getExitValue() == 0) {
                long pid = Long.parseLong(Files.readString(vm.file(".qemu.pid")).strip());
                Running running = new Running(pid, port, Instant.now(), consoleAt, false, boot.byHand(), boot.cache(), boot.forwards(), boot.hardware());
                running.write(vm.pidFile());
                writeSshConfigs(vmName, port);
                return running;
            } else if (sandbox && said.contains("sandbox")) {
                sandbox = false; // this QEMU was built without it
                ports = ports(boot.sshPort()).iterator();
            } else if (!said.contains("host forwarding") || !ports.hasNext()) {
                throw new VmException(69, "QEMU did not start: " + (said.isEmpty() ? "exit code " + started.getExitValue() : said));
            }
        }
    }

    /** The ports to try: the one set by hand, which must be free, else 2222 and what follows. */
    private static List<Integer> ports(String wanted) {
        if (wanted.matches("\\d+")) {
            needFree(Integer.parseInt(wanted));
            return List.of(Integer.valueOf(wanted));
        }
        IntStream candidates = wanted.startsWith("auto:") ? IntStream.of(Integer.parseInt(wanted.substring(5))) : IntStream.empty();
        List<Integer> free = IntStream.concat(candidates, IntStream.range(2222, 2322)).filter(VmCtl::isFree).boxed().toList();
        if (free.isEmpty()) {
            throw new VmException(69, "no port from 2222 to 2321 is free: choose one with --ssh-port");
        }
        return free;
    }

    static boolean isFree(int port) {
        try (ServerSocket probe = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
            return probe.isBound();
        } catch (IOException taken) {
            return false;
        }
    }

    private static void needFree(int port) {
        if (!isFree(port)) {
            throw new VmException(69, "port " + port + " of 127.0.0.1 is taken" + portHolder(port).map(" by "::concat).orElse("") + ": choose another");
        }
    }

    /** Who listens on a port of this host, as far as /proc tells. */
    static Optional<String> portHolder(int port) {
        Set<String> sockets = new HashSet<>();
        for (String table : List.of("/proc/net/tcp", "/proc/net/tcp6")) {
            try (Stream<String> lines = Files.lines(Path.of(table))) {
                lines.map(line -> line.strip().split("\\s+")).filter(field -> field[1].endsWith(String.format(":%04X", port)) && field[3].equals("0A"))
                        .forEach(field -> sockets.add("socket:[" + field[9] + "]"));
            } catch (IOException notLinux) {
                return Optional.empty();
            }
        }
        return ProcessHandle.allProcesses().filter(process -> {
            try (Stream<Path> open = Files.list(Path.of("/proc/" + process.pid() + "/fd"))) {
                return open.anyMatch(fd -> {
                    try {
                        return sockets.contains(Files.readSymbolicLink(fd).toString());
                    } catch (IOException closed) {
                        return false;
                    }
                });
            } catch (IOException anotherUsers) {
                return false;
            }
        }).findFirst().map(process -> process.info().command().map(Path::of).map(Path::getFileName).map(Path::toString).orElse("a process")
                + " (pid " + process.pid() + ")");
    }

    // ---- waiting for the guest ----

    /** Waits until the guest's sshd answers a command, the restored guest's clock set on the way; says why if it does not. */
    private void awaitAnswer(Running running, Duration limit, boolean setClock) throws IOException {
        long deadline = System.nanoTime() + limit.toNanos();
        String last = "sshd does not answer on port " + running.port();
        int refusals = 0;
        for (int patience = 1000; ; patience = Math.min(5000, patience + 250)) { // an emulated sshd may need longer for its banner
            if (startTicks(running.pid()) < 0) {
                throw new VmException(69, "QEMU ended while the guest was starting: " + tail(vm().file(".qemu.log"), 2) + lastWords());
            }
            Optional<String> trouble = trouble(consoleSince(running));
            if (trouble.isPresent()) {
                throw new VmException(69, "the guest is in trouble: " + trouble.get() + lastWords());
            }
            if (hasBanner(running.port(), patience)) {
                Optional<String> refusal = firstCommand(setClock);
                if (refusal.isEmpty()) {
                    running.answered().write(vm().pidFile());
                    return;
                }
                last = refusal.get();
                if (last.contains("HOST IDENTIFICATION HAS CHANGED") || last.contains("Host key verification failed")
                        || last.contains("Permission denied") && ++refusals == 3) {
                    throw new VmException(69, "the guest's sshd is not the one this VM was given, or refuses its key: " + last);
                }
            }
            if (System.nanoTime() > deadline) {
                throw new VmException(124, "no answer after " + limit.toSeconds() + " s: " + last + lastWords());
            }
            pause(50);
        }
    }

    /** QEMU's network accepts a connection before the guest does, so only the first bytes tell. */
    static boolean hasBanner(int port, int millis) {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), millis);
            socket.setSoTimeout(millis);
            return new String(socket.getInputStream().readNBytes(4), UTF_8).equals("SSH-");
        } catch (IOException notYet) {
            return false;
        }
    }

    /**
     * The first real command, over a new connection. A restored guest believes it is the moment of its snapshot: it is sent the
     * time when its shell is ready to take it, rounded to the second, which keeps the error below one.
     */
    private Optional<String> firstCommand(boolean setClock) throws IOException {
        List<String> command = ssh();
        command.add(setClock ? "sh -c 'echo ready; read now && date -u $now >/dev/null'" : "sh -c 'echo ready'");
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        CompletableFuture.delayedExecutor(SOON.toMillis(), TimeUnit.MILLISECONDS).execute(process::destroyForcibly);
        StringBuilder said = new StringBuilder();
        boolean ready = false;
        try (BufferedReader in = process.inputReader(UTF_8); Writer out = process.outputWriter(UTF_8)) {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                if (line.equals("ready") && setClock) {
                    out.write(DateTimeFormatter.ofPattern("yyyyMMddHHmm.ss").withZone(ZoneOffset.UTC).format(Instant.now().plusMillis(500)) + "\n");
                    out.flush();
                }
                ready |= line.equals("ready");
                said.append(line.equals("ready") ? "" : printable(line) + " ");
            }
            if (ready && process.waitFor() != 0) {
                say("the guest's clock could not be set: " + said);
            }
            return ready ? Optional.empty() : Optional.of(said.isEmpty() ? "ssh was cut off" : said.toString().strip());
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } finally {
            process.destroyForcibly();
        }
    }

    /** What the console says since this QEMU started, as far as it matters: its end. */
    private String consoleSince(Running running) throws IOException {
        return tail(vm().file(".console.log"), running.consoleAt(), 1 << 18);
    }

    /** What went wrong in the guest, by what DragonFly's kernel, loader and rc print then. A boot after a panic is no trouble any more. */
    static Optional<String> trouble(String console) {
        int booted = console.lastIndexOf("Copyright (c) 2003-");
        Matcher match = Pattern.compile("^.*(?:panic: |Fatal trap \\d+|Debugger\\(\"panic\"\\)|^db> |mountroot> ?|Root mount failed: |no bootable kernel|"
                + "can't load 'kernel'|Automatic file system check failed|ABORTING BOOT|Enter full pathname of shell|"
                + "The operating system has halted).*$", Pattern.MULTILINE).matcher(console);
        return match.find(Math.max(0, booted)) ? Optional.of(match.group().strip()) : Optional.empty();
    }

    /** It panicked since this QEMU started, and booted again. */
    static boolean rebootedAfterPanic(String console) {
        int panic = console.indexOf("panic: ");
        return panic >= 0 && console.indexOf("Copyright (c) 2003-", panic) >= 0;
    }

    private String lastWords() throws IOException {
        String words = tail(vm().file(".console.log"), 5);
        return words.isEmpty() ? "" : System.lineSeparator() + "the console's last lines:" + System.lineSeparator() + words;
    }

    // ---- RAM ----

    /** Writes a running guest's RAM to a file. Whatever goes wrong, also if this process dies, QEMU lets the guest go on. */
    private Ram saveRam(Path file, Duration limit) throws IOException {
        Path socket = vm().socket(".ram");
        Files.deleteIfExists(socket);
        CRC32C crc = new CRC32C();
        long bytes = 0;
        try (ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(UnixDomainSocketAddress.of(socket));
                FileChannel to = FileChannel.open(file, Set.of(StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE),
                    PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")))) {
            JsonObject unhurried = new JsonObject();
            unhurried.put("max-bandwidth", 1L << 40); // the default of 128 MiB/s is for networks
            unhurried.put("downtime-limit", 600_000); // one pass: nobody notices, and a busy guest would never converge
            qmp("migrate-set-parameters", unhurried);
            JsonObject where = new JsonObject();
            where.put("uri", "unix:" + socket);
            qmp("migrate", where);
            CompletableFuture.delayedExecutor(limit.toMillis(), TimeUnit.MILLISECONDS).execute(() -> closeQuietly(server));
            try (SocketChannel from = server.accept()) {
                CompletableFuture.delayedExecutor(limit.toMillis(), TimeUnit.MILLISECONDS).execute(() -> closeQuietly(from));
                ByteBuffer buffer = ByteBuffer.allocateDirect(1 << 20);
                while (from.read(buffer.clear()) >= 0) {
                    crc.update(buffer.flip());
                    for (buffer.rewind(); buffer.hasRemaining(); ) {
                        bytes += to.write(buffer);
                    }
                }
            }
            for (long deadline = System.nanoTime() + limit.toNanos(); !migration("status").equals("completed"); pause(10)) {
                if (migration("status").equals("failed") || System.nanoTime() > deadline) {
                    throw new IOException("QEMU says: " + migration("error-desc"));
                }
            }
            return new Ram(file, bytes, crc.getValue());
        } catch (IOException failed) {
            Files.deleteIfExists(file);
            boolean full = file.toFile().getUsableSpace() < 1 << 20 || String.valueOf(failed.getMessage()).contains("space");
            throw new VmException(full ? 1 : 69, "the RAM could not be saved (" + (full ? "the disk is full" : failed.getMessage()) + "); the guest runs on");
        } finally {
            Files.deleteIfExists(socket);
        }
    }

    private String migration(String key) throws IOException {
        return ((JsonObject) qmp("query-migrate", new JsonObject())).getString(key, "");
    }

    /** Gives a waiting QEMU the RAM of a snapshot. The last part is held back until the checksum is known: a damaged RAM never runs. */
    private void feed(Snapshot snapshot) throws IOException {
        Path socket = vm().socket(".ram");
        CRC32C crc = new CRC32C();
        try (FileChannel from = FileChannel.open(snapshot.ram()); SocketChannel to = SocketChannel.open(UnixDomainSocketAddress.of(socket))) {
            CompletableFuture.delayedExecutor(10, TimeUnit.MINUTES).execute(() -> closeQuietly(to));
            ByteBuffer buffer = ByteBuffer.allocateDirect(1 << 20);
            for (long left = snapshot.ramBytes(); left > 0; left -= buffer.limit()) {
                buffer.clear().limit((int) ((left - 1) % buffer.capacity() + 1)); // the first one is short, so the last one is full
                while (buffer.hasRemaining() && from.read(buffer) >= 0) {
                    // a file is read in as many pieces as it likes
                }
                crc.update(buffer.flip());
                if (buffer.limit() == 0 || left == buffer.limit() && crc.getValue() != snapshot.ramCrc()) {
                    throw new IOException("it is damaged (its checksum is wrong)");
                }
                for (buffer.rewind(); buffer.hasRemaining(); ) {
                    to.write(buffer);
                }
            }
        } catch (ClosedChannelException | SocketException refused) {
            throw new IOException("QEMU refuses it: " + tail(vm().file(".qemu.log"), 2), refused);
        }
        for (long deadline = System.nanoTime() + SOON.toNanos() * 2; runStateOr("gone").equals("inmigrate"); pause(10)) {
            if (System.nanoTime() > deadline) {
                throw new IOException("QEMU does not come to an end with it");
            }
        }
        if (running().isEmpty()) {
            throw new IOException("QEMU refuses it: " + tail(vm().file(".qemu.log"), 2));
        }
        Files.deleteIfExists(socket);
    }

    // ---- snapshots ----

    /** Freezes a running guest's disk and RAM, and goes on from there in a new QEMU. */
    private void freezeRunning(Running running, String name, boolean automatic, Duration limit) throws IOException {
        Vm vm = vm();
        long begun = System.nanoTime();
        String state = runState(SOON);
        if (!state.equals("running")) {
            throw new VmException(69, vmName + " is " + state + ": vm-ctl start lets it go on, vm-ctl stop lets its disk alone be frozen");
        }
        List<String> sync = ssh();
        sync.add("sync"); // so that the disk alone is worth something, too
        ProcessResult synced = run(SOON.multipliedBy(4), sync);
        if (synced.getExitValue() != 0) {
            throw new VmException(69, "the guest does not answer ssh, so its RAM is not worth keeping (" + printable(synced.outputUTF8()).strip()
                    + "): vm-ctl stop lets its disk alone be frozen");
        }
        closeSshMaster(); // or the frozen guest keeps a dead session for ever
        Ram ram = saveRam(Vm.unused(Files.createDirectories(vm.snapshotDir(name)), "ram", ""), limit);
        Path frozen = vm.freeze(name, ram, running.hardware(), automatic);
        kill(running.pid()); // it stands still and has written everything
        thaw(frozen);
        say(String.format(Locale.ROOT, "froze disk and RAM (%d MiB) as %s in %.1f s", ram.bytes() >> 20, name, seconds(begun)));
        boot(running.again(limit), false);
    }

    /** Ends a freeze: the file that was the working disk keeps its new name only, and a fresh overlay on it takes the old one. */
    private void thaw(Path frozen) throws IOException {
        Files.setPosixFilePermissions(frozen, PosixFilePermissions.fromString("r--------"));
        overlay(frozen);
        vm().sweep();
    }

    /** Puts a fresh overlay in the working disk's place, at once or not at all. */
    private void overlay(Path base) throws IOException {
        Path beside = vmDir.resolve("." + vmName + ".qcow2.new");
        Files.deleteIfExists(beside);
        ProcessResult made = run(SOON, overlayCommand(base, beside));
        if (made.getExitValue() != 0) {
            throw new VmException(1, "no new disk could be made: " + made.outputUTF8().strip());
        }
        Files.setPosixFilePermissions(beside, PosixFilePermissions.fromString("rw-------"));
        Files.move(beside, vm().disk(), StandardCopyOption.ATOMIC_MOVE);
    }

    static List<String> overlayCommand(Path base, Path overlay) {
        return List.of("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.toString(), overlay.toString());
    }

    private void delete(Vm vm, String name) throws IOException {
        Snapshot snapshot = vm.snapshot(name).orElseThrow(() -> new VmException(69, vmName + " has no snapshot " + name));
        List<String> builders = vm.buildersOn(snapshot);
        if (name.equals(CLEAN)) {
            throw new VmException(2, "clean is what the VM was installed as; vm-ctl destroy deletes the VM");
        } else if (!builders.isEmpty()) {
            throw new VmException(69, name + " cannot be deleted, as others build on it: " + String.join(", ", builders));
        }
        Files.delete(vm.snapshotDir(name).resolve("snapshot.json"));
        vm.sweep();
        say("deleted " + name);
    }

    // ---- state ----

    private Vm vm() {
        return new Vm(vmDir, vmName);
    }

    /** Takes the VM's lock and mends what a killed command or host left, so that nobody else need think of it. */
    private FileChannel take(String command) throws IOException {
        FileChannel held = lock(privateDirectory(vmDir).resolve(vmName + ".lock"), "vm-ctl " + command);
        Vm vm = vm();
        Optional<Running> running = running();
        if (running.isEmpty()) {
            endOrphan(vm);
            forget(vm);
        }
        Optional<Path> frozen = vm.halfFrozen();
        if (frozen.isPresent()) { // the snapshot exists, and the QEMU that stands still on its disk must not go on
            if (running.isPresent()) {
                kill(running.get().pid());
            }
            thaw(frozen.get());
        } else if (running.isPresent() && runStateOr("unknown").equals("postmigrate")) {
            qmp("cont", new JsonObject()); // its RAM was saved, but no snapshot came of it
        } else if (running.isPresent() && runStateOr("unknown").equals("inmigrate")) {
            kill(running.get().pid()); // a restore was cut off
        }
        vm.sweep();
        rotate(vm);
        return held;
    }

    private interface Work {
        void run() throws IOException;
    }

    /** Does what changes the VM's state, while nobody else does. */
    private void locked(String command, Work work) throws IOException {
        try (FileChannel held = take(command)) {
            work.run();
            held.truncate(0); // no holder any more
        }
    }

    private Optional<Running> running() throws IOException {
        return livePid(vm().pidFile()).isPresent() ? Optional.of(Running.read(vm().pidFile())) : Optional.empty();
    }

    private Running needRunning() throws IOException {
        return running().orElseThrow(() -> new VmException(3, "VM " + vmName + " is not running; start it: vm-ctl start"));
    }

    /** A QEMU that was started by a command which died before it could write the pid file. */
    private static void endOrphan(Vm vm) throws IOException {
        try {
            long pid = Long.parseLong(Files.readString(vm.file(".qemu.pid")).strip());
            List<String> command = List.of(Files.readString(Path.of("/proc/" + pid + "/cmdline")).split("\0"));
            if (command.contains(vm.file(".qemu.pid").toString())) {
                kill(pid);
            }
        } catch (NoSuchFileException | NumberFormatException none) {
            // no QEMU, or one that never came so far
        }
    }

    /** Removes what a QEMU that is gone left: its pid files and sockets. */
    private static void forget(Vm vm) throws IOException {
        for (Path file : List.of(vm.pidFile(), vm.file(".qemu.pid"), vm.socket(".qmp"), vm.socket(".console"), vm.socket(".ram"))) {
            Files.deleteIfExists(file);
        }
    }

    private static void kill(long pid) throws IOException {
        ProcessHandle.of(pid).ifPresent(ProcessHandle::destroyForcibly);
        if (!isGone(pid, SOON)) {
            throw new VmException(69, "QEMU (pid " + pid + ") does not die: it waits for the host's kernel, likely for a disk");
        }
    }

    private static boolean isGone(long pid, Duration limit) {
        for (long deadline = System.nanoTime() + limit.toNanos(); startTicks(pid) > 0; pause(20)) {
            if (System.nanoTime() > deadline) {
                return false;
            }
        }
        return true;
    }

    /** A start of what runs: lets it go on if it stands still, and waits for its first answer if nobody did. */
    private void goOn(Running running, Duration limit, boolean wait) throws IOException {
        if (Set.of("paused", "io-error").contains(runStateOr("unknown"))) {
            qmp("cont", new JsonObject());
        }
        if (wait && !running.byHand()) {
            awaitAnswer(running, limit, false);
        }
        say(vmName + " runs already: ssh on port " + running.port() + " (pid " + running.pid() + ")");
    }

    /** A way to end a VM, and how long it may take. */
    private record Rung(String name, Duration limit, Callable<Boolean> step) {}

    private void shutDown(Running running, boolean force) throws IOException {
        long begun = System.nanoTime();
        Optional<String> trouble = trouble(consoleSince(running));
        if (trouble.isPresent() && !force) {
            say("the guest cannot be asked: " + trouble.get());
        }
        List<Rung> rungs = List.of(
                // rc.shutdown and init may take 150 s by their own limits
                new Rung("shutdown -p now over ssh", Duration.ofSeconds(160), () -> hasBanner(running.port(), 5000) && askToShutDown()),
                new Rung("the power button", Duration.ofSeconds(60), () -> qmp("system_powerdown", new JsonObject()) != null),
                new Rung("QMP quit", SOON, () -> qmp("quit", new JsonObject()) != null),
                new Rung("SIGKILL", SOON, () -> ProcessHandle.of(running.pid()).map(ProcessHandle::destroyForcibly).orElse(true)));
        for (Rung rung : force || trouble.isPresent() ? rungs.subList(2, 4) : rungs) {
            try {
                if (rung.step().call() && isGone(running.pid(), rung.limit())) {
                    closeSshMaster();
                    forget(vm());
                    say(String.format(Locale.ROOT, "stopped %s by %s in %.1f s", vmName, rung.name(), seconds(begun)));
                    return;
                }
            } catch (Exception noAnswer) {
                // the next rung asks less
            }
            say(rung.name() + ": no effect");
        }
        throw new VmException(69, "QEMU (pid " + running.pid() + ") does not die: it waits for the host's kernel, likely for a disk");
    }

    private boolean askToShutDown() throws IOException {
        List<String> command = ssh();
        command.add("shutdown -p now");
        boolean asked = run(SOON, command).getExitValue() == 0;
        closeSshMaster();
        return asked;
    }

    /** What can be said of a VM at once: nobody is asked who might not answer within a second. */
    private Report report(Vm vm) throws IOException {
        if (livePid(vm.pidFile()).isEmpty()) {
            boolean pidFile = Files.exists(vm.pidFile()) && Files.readString(vm.pidFile()).contains(bootId());
            return pidFile ? new Report(State.GONE, "QEMU is gone but its pid file is not; the console's end: " + tail(vm.file(".console.log"), 1), null)
                    : new Report(State.STOPPED, null, null);
        }
        Running running = Running.read(vm.pidFile());
        String console = tail(vm.file(".console.log"), running.consoleAt(), 1 << 18);
        Optional<String> trouble = trouble(console);
        try (Qmp qmp = new Qmp(vm.socket(".qmp"), Duration.ofSeconds(1))) {
            String state = ((JsonObject) qmp.execute("query-status", new JsonObject())).getString("status");
            if (!state.equals("running") && !state.equals("inmigrate")) {
                return new Report(State.PAUSED, state.equals("io-error") ? "a disk error, likely no space; vm-ctl start goes on" : state, running);
            }
        } catch (IOException noAnswer) {
            return new Report(State.HUNG, "QEMU does not answer", running);
        }
        if (trouble.isPresent()) {
            return new Report(State.PANICKED, trouble.get(), running);
        }
        boolean ready = running.ready() || hasBanner(running.port(), 500);
        return new Report(ready ? State.RUNNING : State.STARTING, rebootedAfterPanic(console) ? "rebooted after a panic" : null, running);
    }

    private List<String> guestSays() throws IOException {
        List<String> command = ssh();
        command.add("uname -sr; uptime; date -u");
        ProcessResult result = run(SOON, command);
        return result.getExitValue() == 0 ? printable(result.outputUTF8()).lines().map(String::strip).toList() : List.of("does not answer ssh");
    }

    private Object qmp(String command, JsonObject arguments) throws IOException {
        try (Qmp qmp = new Qmp(vm().socket(".qmp"), SOON)) {
            return qmp.execute(command, arguments);
        }
    }

    private String runState(Duration limit) throws IOException {
        try (Qmp qmp = new Qmp(vm().socket(".qmp"), limit)) {
            return ((JsonObject) qmp.execute("query-status", new JsonObject())).getString("status");
        }
    }

    private String runStateOr(String unknown) {
        try {
            return runState(Duration.ofSeconds(5));
        } catch (IOException noAnswer) {
            return unknown;
        }
    }

    // ---- ssh ----

    /** The connection's settings, one a line, for every tool that reads ssh_config. */
    static String sshConfig(String name, int port, Path keys, Path control) {
        return String.join("\n", "Host " + name, "HostName 127.0.0.1", "Port " + port, "User root", "HostKeyAlias " + name,
                "IdentityFile " + sshQuoted(keys.resolve("id_ed25519")), "IdentitiesOnly yes",
                "UserKnownHostsFile " + sshQuoted(keys.resolve("known_hosts")), "GlobalKnownHostsFile /dev/null", "StrictHostKeyChecking yes",
                "UpdateHostKeys no", "PasswordAuthentication no", "BatchMode yes", "ConnectTimeout 30", "ServerAliveInterval 15",
                "ServerAliveCountMax 8", "ControlMaster auto", "ControlPath " + sshQuoted(control), "ControlPersist 60", "");
    }

    private static String sshQuoted(Path path) {
        return '"' + path.toString().replace("\\", "\\\\").replace("\"", "\\\"").replace("%", "%%") + '"';
    }

    /** This VM's config, and the one that includes them all. */
    private void writeSshConfigs(String name, int port) throws IOException {
        if (name != null) {
            Path keys = privateDirectory(vmDir.resolve(name + ".ssh"));
            writeFile(keys.resolve("config"), sshConfig(name, port, keys, vm().socket(".control")), "rw-------");
        }
        List<Path> configs = entries(vmDir).stream().filter(file -> file.toString().endsWith(".ssh")).map(file -> file.resolve("config"))
                .filter(Files::exists).toList();
        writeFile(vmDir.resolve("ssh_config"), configs.stream().map(file -> "Include \""
                + file.toString().replaceAll("[\\\\*?\\[\"]", "\\\\\\\\$0") + "\"\n").collect(Collectors.joining()), "rw-------");
    }

    private List<String> ssh() {
        return new ArrayList<>(List.of("ssh", "-F", vmDir.resolve("ssh_config").toString(), vmName));
    }

    /** A connection does not outlive its guest; one that is left would hang whoever comes next. */
    private void closeSshMaster() throws IOException {
        Path control = vm().socket(".control");
        if (Files.exists(control)) {
            List<String> command = ssh();
            command.addAll(1, List.of("-O", "exit"));
            run(SOON, command);
            Files.deleteIfExists(control);
        }
    }

    /** What sshd hands to root's shell, which may be csh: words in single quotes, and sh for the rest. */
    static String remoteCommand(List<String> words, Map<String, String> environment, String groupFile) {
        List<String> command = new ArrayList<>(environment.isEmpty() ? List.of() : List.of("env"));
        environment.forEach((name, value) -> command.add(name + "=" + value));
        command.addAll(words.size() == 1 ? List.of("sh", "-c", words.get(0)) : words);
        if (groupFile != null) {
            command.addAll(0, List.of("exec", "sh", "-c", "echo $$ >" + groupFile + "; \"$@\"; code=$?; rm -f " + groupFile + "; exit $code", "sh"));
        }
        return shellQuoted(command);
    }

    /** ssh's 255 is its own, or the guest command's: the guest is asked which. */
    private int sshResult(int code) throws IOException {
        List<String> command = ssh();
        command.add("true");
        if (code == 255 && run(SOON, command).getExitValue() != 0) {
            throw new VmException(69, "the guest does not answer ssh" + lastWords());
        }
        return code;
    }

    /** Runs a program on this terminal. */
    private int interactive(List<String> command, Duration limit) throws IOException {
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        Process process = new ProcessBuilder(command).inheritIO().start();
        Thread end = new Thread(process::destroy);
        Runtime.getRuntime().addShutdownHook(end);
        try {
            if (limit == null) {
                return process.waitFor();
            } else if (process.waitFor(limit.toMillis(), TimeUnit.MILLISECONDS)) {
                return process.exitValue();
            }
            throw new VmException(124, "not done after " + limit.toSeconds() + " s");
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } finally {
            process.destroy();
            Runtime.getRuntime().removeShutdownHook(end);
        }
    }

    // ---- small things ----

    private void say(String message) {
        spec.commandLine().getErr().println(message);
    }

    private void answer(String line) {
        spec.commandLine().getOut().println(line);
    }

    private static double seconds(long begun) {
        return (System.nanoTime() - begun) / 1e9;
    }

    private static void pause(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        }
    }

    private void confirm(String what, boolean yes) throws IOException {
        if (yes) {
            return;
        } else if (!isTerminal()) {
            throw new VmException(2, "this would " + what + ": say --yes if it should");
        }
        say("This will " + what + ". Type yes to go on:");
        if (!"yes".equals(new BufferedReader(new InputStreamReader(System.in, UTF_8)).readLine())) {
            throw new VmException(2, "not confirmed, nothing done");
        }
    }

    private boolean isTerminal() throws IOException {
        return interactive(List.of("test", "-t", "0"), null) == 0; // System.console() means different things in different Javas
    }

    /** Without symbolic links, as far as it exists: disks name each other by absolute paths, and one disk must have one name. */
    static Path realPath(Path path) throws IOException {
        return Files.exists(path) || path.getParent() == null ? path.toRealPath() : realPath(path.getParent()).resolve(path.getFileName());
    }

    private static List<Path> entries(Path directory) throws IOException {
        try (Stream<Path> entries = Files.list(directory)) {
            return entries.sorted().toList();
        } catch (NoSuchFileException | NotDirectoryException none) {
            return List.of();
        }
    }

    private static void deleteTree(Path tree) throws IOException {
        try (Stream<Path> files = Files.walk(tree)) {
            for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                Files.deleteIfExists(file);
            }
        } catch (NoSuchFileException gone) {
            // a temporary file that went by itself
        }
    }

    /** At 10 MB the console's log becomes the old one. QEMU appends, so it may be emptied while it runs. */
    private static void rotate(Vm vm) throws IOException {
        Path log = vm.file(".console.log");
        if (Files.exists(log) && Files.size(log) > 10_000_000) {
            try (FileChannel from = FileChannel.open(log, StandardOpenOption.READ, StandardOpenOption.WRITE);
                    FileChannel to = FileChannel.open(vm.file(".console.log.1"), StandardOpenOption.CREATE, StandardOpenOption.WRITE,
                            StandardOpenOption.TRUNCATE_EXISTING)) {
                from.transferTo(from.size() - 10_000_000, 10_000_000, to);
                from.truncate(0);
            }
        }
    }

    private int follow(Path log) throws IOException {
        say("following " + log + "; Ctrl-C ends it");
        long at = Files.exists(log) ? Math.max(0, Files.size(log) - 10_000) : 0;
        for (; ; pause(200)) {
            long size = Files.exists(log) ? Files.size(log) : 0;
            at = size < at ? 0 : at; // it was rotated
            if (size > at) {
                spec.commandLine().getOut().print(printable(tail(log, at, 1 << 20)));
                spec.commandLine().getOut().flush();
                at = size;
            } else if (running().isEmpty()) {
                return 0;
            }
        }
    }

    /** The end of a text file, from a position on if that is later. */
    private static String tail(Path file, long from, int bytes) throws IOException {
        try (FileChannel channel = FileChannel.open(file)) {
            long start = Math.max(from <= channel.size() ? from : 0, channel.size() - bytes);
            return new String(Channels.newInputStream(channel.position(start)).readNBytes(bytes), UTF_8);
        } catch (NoSuchFileException none) {
            return "";
        }
    }

    /** Its last lines that say something, harmless for a terminal. */
    private static String tail(Path file, int lines) throws IOException {
        List<String> all = printable(tail(file, 0, 1 << 14)).lines().filter(line -> !line.isBlank()).toList();
        return String.join(System.lineSeparator(), all.subList(Math.max(0, all.size() - lines), all.size()));
    }

    /** Without what a terminal would obey: a guest may print anything. */
    static String printable(String text) {
        return text.replaceAll("\\x1b\\[[0-9;?]*[ -/]*[@-~]|\\r(?=\\n)", "").replaceAll("[\\p{Cntrl}\\x80-\\x9f&&[^\\n\\t]]", "?");
    }

    /** Copies until the end, or a byte that means it, in a thread that keeps nobody from leaving. */
    private static CompletableFuture<Void> inBackground(InputStream from, OutputStream to, int end) {
        CompletableFuture<Void> done = new CompletableFuture<>();
        Thread copy = new Thread(() -> {
            try {
                for (int next = from.read(); next >= 0 && next != end; next = from.read()) {
                    to.write(next);
                    to.flush();
                }
            } catch (IOException closed) {
                // the other side is gone
            }
            done.complete(null);
        });
        copy.setDaemon(true);
        copy.start();
        return done;
    }

    private static void closeQuietly(Closeable closeable) {
        try {
            closeable.close();
        } catch (IOException alreadyClosed) {
            // it is closed either way
        }
    }

    // ---- values ----

    /** A value that must look like something. */
    private abstract static class Checked implements ITypeConverter<String> {
        private final Pattern pattern;
        private final String expected;

        Checked(String pattern, String expected) {
            this.pattern = Pattern.compile(pattern);
            this.expected = expected;
        }

        @Override
        public String convert(String value) {
            if (!pattern.matcher(value).matches()) {
                throw new TypeConversionException("'" + value + "' is not " + expected);
            }
            return value;
        }
    }

    static final class VmName extends Checked {
        VmName() {
            super("(?!.*-clean$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a VM name (letters, digits, '.', '_', '-'; not ending in -clean)");
        }
    }

    static final class SnapshotName extends Checked {
        SnapshotName() {
            super("[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", "a snapshot name (letters, digits, '.', '_', '-')");
        }
    }

    static final class Memory extends Checked {
        Memory() {
            super("auto|[1-9][0-9]{0,8}[MG]", "a size such as 512M or 2G");
        }
    }

    static final class Cpus extends Checked {
        Cpus() {
            super("auto|[1-9][0-9]{0,2}", "a number of processors");
        }
    }

    static final class Accel extends Checked {
        Accel() {
            super("auto|kvm|hvf|tcg", "auto, kvm, hvf or tcg");
        }
    }

    static final class Cache extends Checked {
        Cache() {
            super("writeback|none|unsafe", "writeback, none or unsafe");
        }
    }

    static final class Port extends Checked {
        Port() {
            super("auto|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]", "a port (1-65535)");
        }
    }

    static final class Forward extends Checked {
        Forward() {
            super("[1-9][0-9]{0,4}:[1-9][0-9]{0,4}", "HOST:GUEST, two ports such as 8080:80");
        }
    }

    static final class Limit implements ITypeConverter<Duration> {
        @Override
        public Duration convert(String value) {
            if (!value.matches("[1-9][0-9]{0,6}[smh]?")) {
                throw new TypeConversionException("'" + value + "' is not a time such as 90s, 5m or 1h");
            }
            return Duration.parse("PT" + (value.matches(".*[smh]") ? value : value + "s"));
        }
    }

    // shared:cli
    /** An expected failure: one line that says what happened and what to do, and the exit code that goes with it. */
    static final class VmException extends RuntimeException {
        private static final long serialVersionUID = 1;
        final int exitCode;

        VmException(int exitCode, String message) {
            super(message);
            this.exitCode = exitCode;
        }
    }

    /** A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code. */
    static CommandLine commandLine(Object command, Settings settings) {
        return new CommandLine(command).setExpandAtFiles(false).setCaseInsensitiveEnumValuesAllowed(true)
                .setDefaultValueProvider(arg -> settings.get(arg.descriptionKey()))
                .setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException expected)) {
                        throw failure;
                    }
                    line.getErr().println(line.getCommandSpec().root().name() + ": " + expected.getMessage());
                    return expected.exitCode;
                }).setParameterExceptionHandler((failure, args) -> {
                    CommandLine line = failure.getCommandLine();
                    List<String> near = failure instanceof UnmatchedArgumentException unmatched ? unmatched.getSuggestions() : List.of();
                    line.getErr().println(line.getCommandSpec().root().name() + ": " + settings.blame(failure, args)
                            + (near.isEmpty() ? "" : " (did you mean " + String.join(" or ", near) + "?)")
                            + "; see: " + line.getCommandSpec().qualifiedName() + " --help");
                    return line.getCommandSpec().exitCodeOnInvalidInput();
                });
    }
    // end shared:cli

    // shared:settings
    /** What holds where no option is given: the environment, else the KEY=VALUE lines of vm.env. Empty means unset. */
    record Settings(Map<String, String> environment, Map<String, String> file) {
        static Settings read(Map<String, String> environment, Path directory) {
            Map<String, String> file = new HashMap<>();
            Pattern setting = Pattern.compile("\\s*(\\w+)\\s*=\\s*(['\"]?)(.*?)\\2\\s*");
            try (Stream<String> lines = Files.lines(directory.resolve("vm.env"))) {
                lines.map(setting::matcher).filter(Matcher::matches).forEach(match -> file.put(match.group(1), match.group(3)));
            } catch (IOException none) {
                // without a vm.env the environment alone counts
            }
            return new Settings(environment, file);
        }

        /** The value of a setting, or null. */
        String get(String name) {
            String value = environment.getOrDefault(name, "").isEmpty() ? file.get(name) : environment.get(name);
            return value == null || value.isEmpty() ? null : value;
        }

        /** What a refused command line is told: a bad value that no argument gave is named by its variable. */
        String blame(ParameterException failure, String... args) {
            if (!(failure.getArgSpec() instanceof OptionSpec option) || get(option.descriptionKey()) == null
                    || Arrays.stream(args).anyMatch(arg -> arg.startsWith(option.longestName()))) {
                return failure.getMessage();
            }
            boolean fromFile = environment.getOrDefault(option.descriptionKey(), "").isEmpty();
            return option.descriptionKey() + (fromFile ? " in vm.env: " : " in the environment: ") + failure.getMessage();
        }
    }
    // end shared:settings

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is the home directory, a relative one starts here. */
    static Path userPath(String value) {
        return Path.of(value.equals("~") || value.startsWith("~/") ? System.getProperty("user.home") + value.substring(1) : value)
                .toAbsolutePath().normalize();
    }
    // end shared:paths

    // shared:process
    /** The process that a pid file speaks of, if it still is that process: same host boot, same start time, a QEMU. */
    static OptionalLong livePid(Path pidFile) {
        try {
            JsonObject said = json(Files.readString(pidFile));
            long pid = said.getLong("pid");
            long started = startTicks(pid);
            boolean same = started > 0 && started == said.getLong("startTicks") && bootId().equals(said.getString("bootId"));
            return same ? OptionalLong.of(pid) : OptionalLong.empty();
        } catch (IOException | ClassCastException none) {
            return OptionalLong.empty();
        }
    }

    /** When a process started: clock ticks since boot (field 22 of /proc/PID/stat), milliseconds without /proc; -1 if it is gone. */
    static long startTicks(long pid) {
        try {
            String stat = Files.readString(Path.of("/proc/" + pid + "/stat"));
            String[] fields = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
            return fields[0].equals("Z") ? -1 : Long.parseLong(fields[19]);
        } catch (IOException noProc) {
            return ProcessHandle.of(pid).flatMap(process -> process.info().startInstant()).map(Instant::toEpochMilli).orElse(-1L);
        }
    }

    /** Changes with every boot of the host: a pid from before it means nothing. */
    static String bootId() {
        try {
            return Files.readString(Path.of("/proc/sys/kernel/random/boot_id")).strip();
        } catch (IOException notLinux) {
            return "";
        }
    }
    // end shared:process

    // shared:lock
    /** Takes a VM's lock, held until the channel is closed or this process ends; its text names the holder. 69 if another holds it. */
    static FileChannel lock(Path file, String command) throws IOException {
        FileChannel channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE);
        if (channel.tryLock() == null) {
            String holder;
            try (channel; InputStream in = Channels.newInputStream(channel)) {
                JsonObject said = json(new String(in.readAllBytes(), UTF_8));
                holder = said.getString("command") + " (pid " + said.getLong("pid") + ", since " + said.getString("since") + ")";
            } catch (IOException beingWritten) {
                holder = "another command";
            }
            throw new VmException(69, holder + " is at work on this VM: wait for it, or stop it, and try again");
        }
        channel.truncate(0).write(ByteBuffer.wrap(JsonWriter.string().object().value("pid", ProcessHandle.current().pid())
                .value("command", command).value("since", Instant.now().toString()).end().done().getBytes(UTF_8)));
        return channel;
    }
    // end shared:lock

    // shared:files
    /** Writes a file that others read: beside itself, then moved into place, so that nobody ever sees half of it. */
    static void writeFile(Path file, String text, String mode) throws IOException {
        Path beside = Files.createTempFile(file.getParent(), "." + file.getFileName(), ".new");
        try {
            Files.setPosixFilePermissions(Files.writeString(beside, text), PosixFilePermissions.fromString(mode));
            Files.move(beside, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            Files.deleteIfExists(beside);
        }
    }

    /** VM_DIR, made if missing, for its owner alone: keys and sockets lie in it. */
    static Path privateDirectory(Path directory) {
        try {
            Files.createDirectories(directory);
            return Files.setPosixFilePermissions(directory, PosixFilePermissions.fromString("rwx------"));
        } catch (IOException refused) {
            throw new VmException(69, "cannot write to " + directory + " (" + refused.getClass().getSimpleName()
                    + "): choose another directory with --vm-dir or VM_DIR");
        }
    }
    // end shared:files

    // shared:run
    /** A command as a person could paste it into a shell. */
    static String shellQuoted(List<String> command) {
        return command.stream().map(word -> word.matches("[A-Za-z0-9_@%+=:,./-]+") ? word : "'" + word.replace("'", "'\\''") + "'")
                .collect(Collectors.joining(" "));
    }

    /** Runs a program to its end, without input, and returns what it printed; 69 if it is not installed, 124 past the limit. */
    ProcessResult run(Duration limit, List<String> command) throws IOException {
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        try {
            return new ProcessExecutor(command).redirectInput(InputStream.nullInputStream()).readOutput(true)
                    .timeout(limit.toMillis(), TimeUnit.MILLISECONDS).destroyOnExit().execute();
        } catch (TimeoutException late) {
            throw new VmException(124, command.get(0) + " did not end within " + limit.toSeconds() + " s: " + shellQuoted(command));
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } catch (IOException missing) {
            throw new VmException(69, command.get(0) + " cannot be run (is it installed? 'vm-setup check' tells): " + missing.getMessage());
        }
    }
    // end shared:run

    // shared:accel
    /** An accelerator, and why it was chosen. */
    record Accelerator(String name, String reason) {}

    /** The accelerator to use: what was asked for, else what a probe said on this host boot with this QEMU (kept in accel.json). */
    Accelerator accelerator(String wanted, String qemu, Path vmDir) throws IOException {
        if (!wanted.equals("auto")) {
            return new Accelerator(wanted, "as set by VM_ACCEL");
        }
        String key = run(Duration.ofSeconds(20), List.of(qemu, "--version")).outputUTF8().lines().findFirst().orElse("") + " " + bootId()
                + (Files.isWritable(Path.of("/dev/kvm")) ? " kvm" : ""); // permission given since: probe again
        Path memory = vmDir.resolve("accel.json");
        try {
            JsonObject said = json(Files.readString(memory));
            if (key.equals(said.getString("key"))) {
                return new Accelerator(said.getString("name"), said.getString("reason"));
            }
        } catch (IOException unknown) {
            // probed below, and remembered
        }
        Accelerator found = probe(qemu);
        writeFile(memory, JsonWriter.string().object().value("key", key).value("name", found.name())
                .value("reason", found.reason()).end().done(), "rw-------");
        return found;
    }
    // end shared:accel

    // shared:probe
    /** Believes a running guest, not the device node: a /dev/kvm that opens may still crawl (seen: 17 times slower than TCG). */
    Accelerator probe(String qemu) throws IOException {
        String virtual = System.getProperty("os.name").startsWith("Mac") ? "hvf" : "kvm";
        Path node = Path.of("/dev/kvm");
        if (virtual.equals("kvm") && !Files.exists(node)) {
            return new Accelerator("tcg", "no /dev/kvm: virtualization is off in the firmware, or the kvm module is not loaded");
        } else if (virtual.equals("kvm") && !(Files.isReadable(node) && Files.isWritable(node))) {
            return new Accelerator("tcg", "no permission for /dev/kvm: join its group (sudo usermod -aG kvm $USER) and log in again");
        }
        long emulated = bootSectorMillis(qemu, "tcg");
        for (int attempt = 1; attempt <= 2; attempt++) { // a busy machine may slow one down, hardly two
            long millis = bootSectorMillis(qemu, virtual);
            if (millis >= 0 && millis <= 3 * Math.max(emulated, 100)) {
                return new Accelerator(virtual, "a probe ran in " + millis + " ms (" + emulated + " ms emulated)");
            }
        }
        return new Accelerator("tcg", virtual + " is there but a probe guest failed or crawled in it (emulated: " + emulated + " ms)");
    }
    // end shared:probe

    // shared:bootsector
    /** Milliseconds until a 512-byte guest has written 0x10 to the debug port, which ends QEMU with status 33; -1 if it does not. */
    private long bootSectorMillis(String qemu, String accelerator) throws IOException {
        byte[] code = {(byte) 0xb0, 0x10, (byte) 0xe6, (byte) 0xf4, (byte) 0xeb, (byte) 0xfe}; // mov al,0x10; out 0xf4,al; jmp $
        byte[] sector = Arrays.copyOf(code, 512);
        sector[510] = 0x55;
        sector[511] = (byte) 0xaa;
        Path image = Files.write(Files.createTempFile("vm-probe", ".img"), sector);
        try {
            long start = System.nanoTime();
            int status = run(Duration.ofSeconds(10), List.of(qemu, "-machine", "pc", "-accel", accelerator, "-m", "16", "-nodefaults",
                    "-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
                    "-drive", "format=raw,file=" + image.toString().replace(",", ",,"))).getExitValue();
            return status == 33 ? Duration.ofNanos(System.nanoTime() - start).toMillis() : -1;
        } catch (VmException tooLong) {
            return -1;
        } finally {
            Files.delete(image);
        }
    }
    // end shared:bootsector

    // shared:qmp
    /** One conversation with QEMU's monitor. A hung QEMU accepts and never answers: at the limit it is closed, and calls fail. */
    static final class Qmp implements Closeable {
        private final SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX);
        private final BufferedReader in = new BufferedReader(Channels.newReader(channel, UTF_8));

        Qmp(Path socket, Duration limit) throws IOException {
            CompletableFuture.delayedExecutor(limit.toMillis(), TimeUnit.MILLISECONDS).execute(this::close);
            channel.connect(UnixDomainSocketAddress.of(socket));
            in.readLine(); // the greeting
            execute("qmp_capabilities", new JsonObject());
        }

        /** The command's "return"; events that come in between are skipped. */
        Object execute(String command, JsonObject arguments) throws IOException {
            String request = JsonWriter.string().object().value("execute", command).value("arguments", arguments).end().done() + "\n";
            channel.write(ByteBuffer.wrap(request.getBytes(UTF_8)));
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                JsonObject answer = json(line);
                if (answer.has("error")) {
                    throw new IOException(command + ": " + answer.getObject("error").getString("desc"));
                } else if (answer.has("return")) {
                    return answer.get("return");
                }
            }
            throw new IOException(command + ": QEMU closed the connection");
        }

        @Override
        public void close() {
            try {
                channel.close();
            } catch (IOException alreadyClosed) {
                // it is closed either way
            }
        }
    }
    // end shared:qmp

    // shared:json
    /** The JSON object in a text; an IOException if there is none. */
    static JsonObject json(String text) throws IOException {
        try {
            return JsonParser.object().from(text);
        } catch (JsonParserException garbled) {
            throw new IOException("not JSON: " + text, garbled);
        }
    }
    // end shared:json

    // shared:socket
    /** Where a socket of VM_DIR lies: there, or, as a socket's path holds 107 bytes at most, in a short private directory. */
    static Path socket(Path vmDir, String fileName) throws IOException {
        Path socket = vmDir.resolve(fileName);
        if (socket.toString().getBytes(UTF_8).length <= 85) { // ssh appends 17 characters while it makes a ControlPath
            return socket;
        }
        String runtime = System.getenv().getOrDefault("XDG_RUNTIME_DIR", "");
        Path directory = Path.of(runtime.isEmpty() ? System.getProperty("java.io.tmpdir") : runtime)
                .resolve("vm-" + System.getProperty("user.name") + "-" + Integer.toHexString(vmDir.toString().hashCode()));
        privateDirectory(directory); // fails if it is somebody else's
        return directory.resolve(fileName);
    }
    // end shared:socket

    // shared:split
    /** The words of a setting, split like a shell does it: quotes and backslashes count, nothing else is expanded. */
    static List<String> split(String text) {
        String piece = "'[^']*'|\"(?:\\\\.|[^\"\\\\])*\"|\\\\.|[^\\s'\"\\\\]";
        if (!text.matches("(?s)(?:" + piece + "|\\s)*")) {
            throw new VmException(2, "a quote is not closed: " + text);
        }
        return Pattern.compile("(?s)(?:" + piece + ")+").matcher(text).results().map(word -> Pattern.compile("(?s)" + piece)
                .matcher(word.group()).replaceAll(part -> Matcher.quoteReplacement(switch (part.group().charAt(0)) {
                    case '\'' -> part.group().substring(1, part.group().length() - 1);
                    case '"' -> part.group().substring(1, part.group().length() - 1).replaceAll("\\\\([\"\\\\$`])", "$1");
                    case '\\' -> part.group().substring(1);
                    default -> part.group();
                }))).collect(Collectors.toList());
    }
    // end shared:split
}
