///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Start, stop, snapshot and restore the DragonFlyBSD test VM
//JAVA 17+
//RUNTIME_OPTIONS -XX:TieredStopAtLevel=1 // starts faster (jbang: 0.76 s, 0.81 s without), and it ends before C2 would pay
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.grack:nanojson:1.10
//DEPS com.github.stephenc.java-iso-tools:iso9660-writer:2.1.0 // the CD of `install`
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec logs; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.UTF_8;

import com.github.stephenc.javaisotools.iso9660.ConfigException;
import com.github.stephenc.javaisotools.iso9660.ISO9660File;
import com.github.stephenc.javaisotools.iso9660.ISO9660RootDirectory;
import com.github.stephenc.javaisotools.iso9660.impl.CreateISO;
import com.github.stephenc.javaisotools.iso9660.impl.ISO9660Config;
import com.github.stephenc.javaisotools.iso9660.impl.ISOImageFileHandler;
import com.github.stephenc.javaisotools.rockridge.impl.RockRidgeConfig;
import com.github.stephenc.javaisotools.sabre.HandlerException;
import com.github.stephenc.javaisotools.sabre.impl.ByteArrayDataReference;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonWriter;
import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Method;
import java.math.BigInteger;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.AsynchronousCloseException;
import java.nio.channels.Channel;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.SecureRandom;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import java.util.zip.CheckedInputStream;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ParseResult;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Runs the VM whose disk VmAutoInstall made: start, stop, status, snapshots, console, ssh.
 *
 * <p>A start, in order: takes the VM's lock; mends what an interrupted command left; makes the working disk, an overlay on the
 * clean disk, if there is none; starts QEMU on a free port, with the RAM of the snapshot below if nothing was written since;
 * waits until ssh answers. The first start after an installation then freezes disk and RAM as snapshot "clean". Beside QEMU lives
 * a small sh that cuts {@code <name>.console.log} when it grows, keeping its end as {@code <name>.console.log.1}.
 *
 * <p>A snapshot gives the working disk a second name, writes the snapshot's record, and puts a new overlay in the working disk's
 * place: no disk is copied, or changed once frozen, and after a kill at any point the next command finds the old state or the new
 * one. The RAM of a running guest is what QEMU's migration writes; the guest goes on in a new QEMU, as after a restore.
 *
 * <p>Reads in VM_DIR: {@code <name>-clean.qcow2}, {@code <name>.ssh/}. Writes: {@code <name>.qcow2}, {@code <name>.snapshots/},
 * {@code <name>.lock}, {@code <name>.pid}, {@code <name>.ssh/config}, {@code ssh_config}, {@code accel.json}, sockets and logs as
 * {@link Vm} names them; after an installation by hand also {@code <name>-clean.qcow2} and the keys.
 */
@Command(name = "vm-ctl", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1", usageHelpWidth = 120,
        addMethodSubcommands = false, // commandLine() does it
        abbreviateSynopsis = true, parameterListHeading = "%n", descriptionHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        description = {"Start, stop, snapshot and restore the DragonFlyBSD test VM", "",
            "It runs on VM_DIR/NAME.qcow2, an overlay on the disk that vm-auto-install made. An option beats the environment, which beats "
                + "vm.env (KEY=VALUE lines) in the working directory, which beats the default."},
        footer = {"  vm-ctl start", "  vm-ctl exec -- uname -a", "  vm-ctl snapshot before-upgrade",
            "  vm-ctl restore before-upgrade    # no disk is copied", "  VM_NAME=other vm-ctl status"},
        exitCodeList = {"0:done", "1:the job failed (disk full)", "2:wrong usage, or refused for want of --yes", "3:the VM is not running",
            "69:something needed is not available (QEMU, a disk, a port, the lock, ssh)", "124:a time limit", "130, 143:interrupted"})
final class VmCtl {
    static final String QEMU = "qemu-system-x86_64";
    static final String CLEAN = "clean";
    private static final List<String> PHASES = List.of("phase1-install.sh", "phase2-update.sh", "phase3-provision.sh");
    /** For what QEMU or ssh does at once, on a very busy machine. */
    private static final Duration SOON = Duration.ofSeconds(60);

    @Spec
    CommandSpec spec;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT, paramLabel = "DIR",
            description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT, paramLabel = "NAME",
            description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String nameOption;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    /** The VM at hand. */
    Vm vm;

    public static void main(String... args) {
        System.exit(commandLine(args).execute(args));
    }

    static CommandLine commandLine(String... args) {
        return commandLine(Settings.read(System.getenv(), Path.of("")), args);
    }

    /**
     * The command line for these arguments. It takes picocli 5 ms to read the annotations of a subcommand and 1 ms to add it at all,
     * half a start for all of them: so it has those that the arguments name. Where they name none, --help and the hint at a mistyped
     * one want all names and descriptions; without arguments it has all.
     */
    static CommandLine commandLine(Settings settings, String... args) {
        CommandSpec root = CommandSpec.forAnnotatedObject(new VmCtl());
        List<Method> named = Stream.of(VmCtl.class.getDeclaredMethods()) // a command's method bears its name
                .filter(method -> List.of(args).contains(method.getName()) && method.isAnnotationPresent(Command.class)).toList();
        int first = named.stream().mapToInt(method -> List.of(args).indexOf(method.getName())).min().orElse(0);
        if (List.of(args).subList(0, first).stream().anyMatch(arg -> arg.matches("--help|-[vV]*h[hvV]*"))) {
            named = List.of(); // --help of all, whatever follows
        }
        boolean hint = named.isEmpty() && args.length > 0;
        for (Method method : named.isEmpty() ? CommandLine.getCommandMethods(VmCtl.class, null) : named) {
            CommandSpec command = hint ? CommandSpec.create() : CommandSpec.forAnnotatedObject(method);
            command.usageMessage().description(method.getAnnotation(Command.class).description());
            root.addSubcommand(method.getName(), command);
        }
        return commandLine(root, settings);
    }

    /** Options of every command that starts a VM. */
    static final class Machine {
        @Option(names = "--memory", descriptionKey = "VM_MEMORY", paramLabel = "SIZE",
                description = "As 2G or 512M (VM_MEMORY; default: a quarter of the host's within 2G-8G).")
        String memory;

        @Option(names = "--cpus", descriptionKey = "VM_CPUS", paramLabel = "N",
                description = "Processors (VM_CPUS; default: half the host's within 2-4, emulated 1).")
        String cpus;

        @Option(names = "--cpu", descriptionKey = "VM_CPU", paramLabel = "MODEL", description = "QEMU's CPU model "
            + "(VM_CPU; default: kvm Broadwell-v4,+hypervisor,pmu=off, hvf host, tcg qemu64).")
        String cpu;

        @Option(names = "--accel", descriptionKey = "VM_ACCEL", defaultValue = "auto", paramLabel = "NAME",
                description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}: what runs a probe guest well).")
        String accel;

        @Option(names = "--qemu-args", descriptionKey = "VM_QEMU_ARGS", defaultValue = "", paramLabel = "ARGS",
                description = "Appended to QEMU's arguments, split like a shell does (VM_QEMU_ARGS; default: none).")
        String qemuArgs;

        @Option(names = "--disk-cache", descriptionKey = "VM_DISK_CACHE", defaultValue = "writeback", paramLabel = "MODE",
                description = "writeback, none or unsafe (VM_DISK_CACHE; default: ${DEFAULT-VALUE}).")
        String cache;

        @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                description = "The host's port to the guest's sshd (VM_SSH_PORT; default: 2222 or the next free one).")
        String sshPort;

        @Option(names = "--forward", paramLabel = "HOST:GUEST", description = "Forward one more port of 127.0.0.1 to the guest, as "
            + "8080:80 (repeatable; default: none, or what the running VM has).")
        List<String> forwards;
    }

    /** The option of every command that waits for the guest. */
    static final class Patience {
        @Option(names = "--timeout", defaultValue = "15m", paramLabel = "TIME",
                description = "Give up on the guest after this long, as 90s, 5m or 1h (default: ${DEFAULT-VALUE}).")
        String timeout;
    }

    @Command(name = "start",
            description = {"Start the VM and wait until ssh answers.", "",
                "The first start after an installation freezes disk and RAM as snapshot clean. If nothing was written since a snapshot, a "
                    + "start restores its RAM, unless QEMU, accelerator, CPU, memory or processors differ from then: so it boots. "
                    + "A paused VM goes on. VM_DIR/ssh_config is written: ssh -F VM_DIR/ssh_config NAME works for every tool."},
            footer = {"  vm-ctl start", "  vm-ctl start --memory 4G --forward 8080:80",
                "  vm-ctl start --dry-run    # prints the commands, to be pasted into a shell"},
            exitCodeList = {"0:done, or it runs already", "1:the job failed (disk full)", "2:wrong usage",
                "69:something needed is not available (a disk, QEMU, a port, the lock), or the guest is in trouble", "124:a time limit",
                "130, 143:interrupted"})
    int start(@Mixin Machine machine, @Mixin Patience patience,
            @Option(names = "--no-wait", description = "Return as soon as QEMU runs. Restored RAM is waited for, to set its clock.")
            boolean noWait,
            @Option(names = "--dry-run", description = "Print the commands, shell-quoted, and do nothing.") boolean dryRun)
            throws IOException {
        openVm();
        Boot boot = planned(machine, duration(patience.timeout), !noWait, List.of());
        if (dryRun) {
            Snapshot below = vm.below().orElse(null);
            if (!Files.exists(vm.disk())) {
                answer(shellQuoted(overlayCommand(below == null ? vm.clean() : below.disk(), vm.disk())));
            }
            boolean warm = below != null && below.ramProblem(boot.hardware()) == null;
            answer(shellQuoted(qemuArguments(vm, boot, freePorts(boot.port()).get(0), warm ? below.ram() : null)));
            return 0;
        }
        locked("start", () -> {
            JsonObject running = running();
            if (running == null) {
                boot(boot, true);
                return;
            }
            if (Set.of("paused", "io-error").contains(runState(vm, SOON))) {
                qmp("cont");
            }
            if (!noWait) {
                awaitAnswer(running, boot.limit());
            }
            say(vm.name() + " runs already: " + describe(running));
        });
        return 0;
    }

    @Command(name = "stop",
            description = {"Shut the guest down: by ssh, else by the power button, else QEMU by its monitor, else by SIGKILL.", "",
                "It says which it was. A guest that panicked is not asked. The working disk stays; a start goes on with it."},
            footer = {"  vm-ctl stop", "  vm-ctl stop --force"},
            exitCodeList = {"0:done, or it did not run", "2:wrong usage", "69:something needed is not available (VM_DIR, the lock)",
                "130, 143:interrupted"})
    int stop(@Option(names = "--force", description = "Do not ask the guest: what it has not written is lost.") boolean force)
            throws IOException {
        openVm();
        locked("stop", () -> shutDown(force));
        return 0;
    }

    @Command(name = "restart",
            description = {"Stop the VM and start it again.", "", "It keeps the port and the forwards that it was started with."},
            footer = {"  vm-ctl restart", "  vm-ctl restart --memory 4G --cpus 2"},
            exitCodeList = {"0:done", "1:the job failed (disk full)", "2:wrong usage",
                "69:something needed is not available (a disk, QEMU, a port, the lock), or the guest is in trouble", "124:a time limit",
                "130, 143:interrupted"})
    int restart(@Mixin Machine machine, @Mixin Patience patience,
            @Option(names = "--force", description = "Do not ask the guest: what it has not written is lost.") boolean force)
            throws IOException {
        openVm();
        Boot boot = planned(machine, duration(patience.timeout), true, List.of());
        locked("restart", () -> {
            shutDown(force);
            boot(boot, true);
        });
        return 0;
    }

    @Command(name = "status",
            description = {"Tell the VM's state, without waiting for the guest.", "",
                "The state is running, starting, paused, panicked, hung, stopped, or gone (it ended without being stopped). With it come "
                    + "what the VM was started with, the size of its disk (as the guest sees it, and here), and its snapshots."},
            footer = {"  vm-ctl status --guest", "  vm-ctl status --json"},
            exitCodeList = {"0:it runs, starts or is paused", "2:wrong usage", "3:it is stopped or gone", "69:it panicked or hangs",
                "130, 143:interrupted"})
    int status(@Option(names = "--json", description = "Print {name, state, reason, pid, port, accel, memory, cpus, forwards, "
                + "uptimeSeconds, diskBytes, diskFileBytes, snapshots, guest}.") boolean asJson,
            @Option(names = "--guest", description = "Ask the guest for its name, uptime and clock, too, within 10 s.") boolean guest)
            throws IOException {
        openVm();
        Report report = report(vm);
        JsonObject running = report.running();
        JsonObject answer = object("name", vm.name(), "state", report.state(), "reason", report.reason());
        for (String key : List.of("pid", "port", "accel", "memory", "cpus", "forwards")) {
            answer.put(key, running == null ? null : running.get(key));
        }
        Instant started = running == null ? null : Instant.parse(running.getString("started"));
        boolean disk = Files.exists(vm.disk());
        answer.putAll(object("uptimeSeconds", running == null ? null : Duration.between(started, Instant.now()).toSeconds(),
                "diskBytes", disk ? Qcow2.read(vm.disk()).size() : null, "diskFileBytes", disk ? Files.size(vm.disk()) : null,
                "snapshots", vm.snapshots().stream().map(Snapshot::name).toList()));
        if (guest && running != null) {
            answer.put("guest", ask(Duration.ofSeconds(10), "uname -sr; uptime; date -u").text().lines().toList());
        }
        if (asJson) {
            answer(JsonWriter.string(answer));
        } else {
            answer.values().removeAll(Arrays.asList(null, List.of()));
            answer.forEach((key, value) -> answer(String.format("%-14s %s", key, value.toString().replaceAll("^\\[|]$", ""))));
        }
        return report.exitCode();
    }

    @Command(name = "list", description = "List all VMs in VM_DIR: name, state, port.",
            footer = {"  vm-ctl list", "  vm-ctl list --vm-dir /var/tmp/vms"},
            exitCodeList = {"0:done", "2:wrong usage", "69:something needed is not available (VM_DIR)", "130, 143:interrupted"})
    int list() throws IOException {
        openVm();
        for (String name : vm.names()) {
            Report report = report(new Vm(vm.dir(), name));
            String where = report.running() == null ? "" : "  port " + report.running().getInt("port");
            answer(String.format("%-20s %s%s", name, report.state(), where));
        }
        return 0;
    }

    @Command(name = "snapshot",
            description = {"Freeze the VM under a name: the disk of a stopped one, disk and RAM of a running one.", "",
                "No disk is copied: the working disk becomes the snapshot's, in the VM's .snapshots/ in VM_DIR, and the VM goes on with an "
                    + "overlay on it. A running guest has to answer ssh, and stands still until its RAM is written and read. "
                    + "Replacing a snapshot asks on a terminal, and elsewhere wants --yes."},
            footer = {"  vm-ctl snapshot before-upgrade", "  vm-ctl snapshot clean --yes    # from now on this is the clean state",
                "  vm-ctl snapshot --list", "  vm-ctl snapshot --delete before-upgrade"},
            exitCodeList = {"0:done", "1:the job failed (disk full)", "2:wrong usage, or refused for want of --yes",
                "69:something needed is not available (a disk, QEMU, the lock, ssh), or others build on the snapshot", "124:a time limit",
                "130, 143:interrupted"})
    int snapshot(@Parameters(arity = "0..1", paramLabel = "NAME", description = "What to freeze it as (default: clean).") String given,
            @Option(names = "--list", description = "List the snapshots: name, time, what is in it.") boolean list,
            @Option(names = "--delete", paramLabel = "NAME", description = "Delete a snapshot that no other builds on.") String delete,
            @Option(names = "--yes", description = "Replace a snapshot of this name without asking.") boolean yes) throws IOException {
        if (Stream.of(given != null, list, delete != null).filter(wanted -> wanted).count() > 1) {
            throw new VmException(2, "snapshot takes a NAME, --list or --delete NAME: one of them");
        }
        String name = given == null ? CLEAN : given;
        openVm();
        checkSnapshotName(delete == null ? name : delete);
        if (list) {
            for (Snapshot snapshot : vm.snapshots()) {
                answer(String.format("%-20s %.19s  %s", snapshot.name(), snapshot.said().getString("made"),
                        snapshot.ram() == null ? "disk" : "disk and RAM"));
            }
            return 0;
        } else if (delete != null) {
            locked("snapshot --delete", () -> delete(delete));
            return 0;
        } else if (!Files.exists(vm.disk())) {
            throw new VmException(69, vm.name() + " has no disk of its own to freeze: vm-ctl start makes one");
        } else if (vm.snapshot(name).isPresent() || name.equals(CLEAN) && Files.exists(vm.clean())) {
            confirm("replace snapshot " + name + " of " + vm.name(), yes);
        }
        locked("snapshot", () -> {
            JsonObject running = running();
            if (running != null && running.getBoolean("byHand")) {
                say("shutting down: the RAM of a VM with the installer's CDs is not worth keeping");
                shutDown(false);
                Files.deleteIfExists(vm.file(".setup.iso")); // the root password is on it
            }
            if (running() != null) {
                freezeRunning(running, name, false, Duration.ofMinutes(15));
            } else {
                thaw(vm.freeze(name, object(), false));
                say("froze the disk as " + name);
            }
        });
        return 0;
    }

    @Command(name = "restore",
            description = {"Throw the working disk away, unasked, and go back to a snapshot.", "",
                "One with RAM comes back running, its clock set; one without leaves the VM running or stopped, as it was. The snapshots "
                    + "stay. A running VM keeps the port and the forwards that it was started with."},
            footer = {"  vm-ctl restore", "  vm-ctl restore before-upgrade"},
            exitCodeList = {"0:done", "1:the job failed (disk full)", "2:wrong usage",
                "69:something needed is not available (the snapshot, QEMU, a port, the lock), or the guest is in trouble",
                "124:a time limit", "130, 143:interrupted"})
    int restore(@Mixin Machine machine, @Mixin Patience patience,
            @Parameters(arity = "0..1", paramLabel = "NAME", defaultValue = CLEAN,
                    description = "The snapshot (default: ${DEFAULT-VALUE}).") String name) throws IOException {
        openVm();
        checkSnapshotName(name);
        Boot boot = planned(machine, duration(patience.timeout), true, List.of());
        locked("restore", () -> {
            Snapshot snapshot = vm.snapshot(name).orElse(null);
            if (snapshot == null && !(name.equals(CLEAN) && Files.exists(vm.clean()))) {
                throw new VmException(69, vm.name() + " has no usable snapshot " + name + (name.equals(CLEAN)
                        ? ": run vm-auto-install, or vm-ctl install" : ": vm-ctl snapshot --list names those it has"));
            }
            JsonObject running = running();
            if (running != null) {
                kill(running.getLong("pid")); // its disk is thrown away: nothing to write back
            }
            overlay(snapshot == null ? vm.clean() : snapshot.disk());
            if (running != null || snapshot != null && snapshot.ram() != null) {
                boot(boot, true);
            } else {
                say("restored the disk of " + name + ": vm-ctl start boots it");
            }
        });
        return 0;
    }

    @Command(name = "console",
            description = {"Attach to the guest's serial console; Ctrl-] detaches.", "",
                "It works when ssh does not. What the guest prints is also in VM_DIR/NAME.console.log, whether one is attached or not."},
            footer = {"  vm-ctl console", "  vm-ctl console --log"},
            exitCodeList = {"0:done: detached, or the VM stopped", "2:wrong usage", "3:the VM is not running; with --log: it never ran",
                "69:something needed is not available (the console)", "130, 143:interrupted"})
    int console(@Option(names = "--log", description = "Print the console's log from its beginning, and follow it until the VM stops.")
            boolean log)
            throws IOException {
        openVm();
        if (log) {
            followLog();
            return 0;
        }
        needRunning();
        boolean terminal = isTerminal(0);
        if (terminal) {
            say("attached to the console of " + vm.name() + "; Ctrl-] detaches");
            interactive(List.of("stty", "raw", "-echo"), null);
        }
        try (SocketChannel guest = SocketChannel.open(UnixDomainSocketAddress.of(vm.socket(".console")))) {
            Thread keyboard = new Thread(() -> type(guest, terminal ? 0x1d : -1));
            keyboard.setDaemon(true); // it waits for a key that need not come
            keyboard.start();
            ByteBuffer said = ByteBuffer.allocate(1 << 16);
            while (guest.read(said.clear()) >= 0) {
                System.out.write(said.array(), 0, said.position());
                System.out.flush();
            }
        } catch (AsynchronousCloseException detached) {
            return 0;
        } finally {
            if (terminal) {
                interactive(List.of("stty", "sane"), null);
            }
        }
        return 0;
    }

    /** Sends what is typed to the guest, until the end or the key that detaches. */
    private static void type(SocketChannel guest, int detach) {
        try (guest) {
            for (int key = System.in.read(); key >= 0 && key != detach; key = System.in.read()) {
                guest.write(ByteBuffer.wrap(new byte[] {(byte) key}));
            }
        } catch (IOException gone) {
            // the reading side sees it too, and ends the command
        }
    }

    @Command(name = "screenshot", description = "Write what the guest's screen shows, as PNG.", footer = "  vm-ctl screenshot now.png",
            exitCodeList = {"0:done", "2:wrong usage", "3:the VM is not running", "69:QEMU cannot write the file, or hangs",
                "130, 143:interrupted"})
    int screenshot(@Parameters(paramLabel = "FILE.png", description = "Where to; a file that is there is replaced.") Path file)
            throws IOException {
        openVm();
        needRunning();
        qmp("screendump", "filename", file.toAbsolutePath().toString(), "format", "png");
        return 0;
    }

    @Command(name = "ssh", description = {"Open a shell in the guest, as root.", "",
                "It is ssh -F VM_DIR/ssh_config NAME: keys, port and host key are settled."},
            footer = {"  vm-ctl ssh", "  vm-ctl ssh -- -t top", "  vm-ctl ssh -- -L 8080:127.0.0.1:80"},
            exitCodeList = {"N:what the shell or the command in the guest ended with", "2:wrong usage", "3:the VM is not running",
                "69:the guest does not answer ssh", "130, 143:interrupted"})
    int ssh(@Parameters(arity = "0..*", paramLabel = "WORD", description = "What else ssh is told, after --: its options, a command for "
            + "root's shell (default: none, which is a shell on this terminal).") List<String> words) throws IOException {
        openVm();
        needRunning();
        return sshResult(interactive(ssh(words == null ? new String[0] : words.toArray(String[]::new)), null));
    }

    @Command(name = "exec",
            description = {"Run a command in the guest, as root, with this command's input; its exit code is the exit code.", "",
                "Several words are a command and its arguments, which reach it as they are. A single word is a line for the guest's sh. "
                    + "There is no terminal: vm-ctl ssh -- -t COMMAND gives one."},
            footer = {"  vm-ctl exec -- uname -a", "  vm-ctl exec 'cd /root/project && gmake 2>&1 | tail'",
                "  vm-ctl exec --env GOFLAGS=-v --timeout 5m -- gmake -C /root/project test"},
            exitCodeList = {"N:what the command in the guest ended with", "2:wrong usage", "3:the VM is not running",
                "69:the guest does not answer ssh", "124:a time limit", "130, 143:interrupted"})
    int exec(@Parameters(arity = "1..*", paramLabel = "WORD", description = "The command and its arguments, after --, or one line for sh.")
            List<String> words,
            @Option(names = "--env", paramLabel = "K=V", description = "An environment variable for the guest's command (repeatable).")
            List<String> environment,
            @Option(names = "--timeout", paramLabel = "TIME",
                    description = "Kill it with its process group after this long, as 90s, 5m or 1h (default: none).") String timeout)
            throws IOException {
        openVm();
        Duration limit = timeout == null ? null : duration(timeout);
        List<String> variables = environment == null ? List.of() : environment;
        variables.forEach(variable -> require("--env", variable, "(?s)[A-Za-z_]\\w*=.*", "a variable such as K=V"));
        needRunning();
        long begun = System.nanoTime();
        String command = remoteCommand(words, variables, limit);
        int code = interactive(ssh(command), limit == null ? null : limit.plusSeconds(15)); // the guest kills it, if it can
        if (code == 255 && limit != null && System.nanoTime() - begun >= limit.toNanos()) {
            throw new VmException(124, "killed after " + limit.toSeconds() + " s");
        }
        return sshResult(code);
    }

    @Command(name = "install",
            description = {"Install by hand: boot the installer with a blank disk and a CD with the provisioning.", "",
                "The CD makes of the installed system what vm-auto-install would have made of it; what to type is printed. There is the "
                    + "serial console, and a VNC screen on 127.0.0.1. Reads VM_DIR/dfly-VERSION.iso, which vm-setup fetches, and the "
                    + "scripts in phases/; writes NAME.qcow2, unless vm-setup disk made it, and NAME.ssh/ in VM_DIR. After a power-off run "
                    + "it again. In the end vm-ctl snapshot clean makes it a VM like any other."},
            footer = {"  vm-ctl install --vm-name by-hand", "  vm-ctl install --image ~/Downloads/dfly.iso --disk-size 40G"},
            exitCodeList = {"0:done: it runs", "1:the job failed (disk full)", "2:wrong usage",
                "69:something needed is not available (ISO, phase scripts, QEMU, a port, the lock), or it is installed already",
                "124:a time limit", "130, 143:interrupted"})
    int install(@Mixin Machine machine,
            @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2", paramLabel = "VERSION",
                    description = "Which installer (DFLY_VERSION; default: ${DEFAULT-VALUE}).") String version,
            @Option(names = "--image", descriptionKey = "VM_IMAGE", paramLabel = "FILE",
                    description = "A local installer ISO instead (VM_IMAGE; default: VM_DIR/dfly-VERSION.iso).") String image,
            @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE", defaultValue = "40G", paramLabel = "SIZE",
                    description = "The blank disk's size (VM_DISK_SIZE; default: ${DEFAULT-VALUE}, sparse).") String diskSize,
            @Option(names = "--phases", descriptionKey = "VM_PHASES", paramLabel = "DIR",
                    description = "The phase scripts (VM_PHASES; default: the nearest phases/ upwards).") String phases)
            throws IOException {
        openVm();
        // vm-setup unpacks a .bz2 that VM_IMAGE names
        Path installer = image == null || image.endsWith(".bz2") ? vm.dir().resolve("dfly-" + version + ".iso") : userPath(image);
        if (!Files.isRegularFile(installer)) {
            throw new VmException(69, "the installer ISO is missing; fetch it with vm-setup: " + installer);
        }
        Path scripts = phases(phases);
        locked("install", () -> {
            if (running() != null || Files.exists(vm.clean())) {
                throw new VmException(69, vm.name() + " is installed already, or runs: vm-ctl destroy deletes it, --vm-name makes another");
            }
            if (!Files.exists(vm.disk())) {
                makeDisk(beside -> List.of("qemu-img", "create", "-q", "-f", "qcow2", beside.toString(), diskSize));
            }
            int screen = IntStream.range(5900, 6000).filter(VmCtl::isFree).findFirst()
                    .orElseThrow(() -> new VmException(69, "no port from 5900 to 5999 is free for the screen"));
            machine.qemuArgs += " -vnc 127.0.0.1:" + (screen - 5900);
            JsonObject running = launch(planned(machine, SOON, false, List.of(installer, provisioningDisc(scripts), installer)), null);
            say("it boots the CD, or da0 once installed. Its screen is VNC on 127.0.0.1:" + screen + ", its serial line 'vm-ctl console'.\n"
                    + "Install to da0 with the installer; without it, log in as root and type\n\n"
                    + "  mount_cd9660 /dev/cd1 /mnt && sh /mnt/phase1.sh\n\n"
                    + "which powers off; 'vm-ctl install' boots again. Then, on the installed system, as root (its password: "
                    + vm.file(".ssh").resolve("root_password") + "):\n\n"
                    + "  mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh\n\n"
                    + "and when that is done: vm-ctl snapshot clean (ssh will be on port " + running.getInt("port") + ")");
        });
        return 0;
    }

    @Command(name = "destroy",
            description = {"Delete the VM: disks, snapshots, keys, logs. The installer ISO stays.", "",
                "It asks on a terminal, and elsewhere wants --yes. A running VM is killed. Other VMs in VM_DIR are left alone."},
            footer = {"  vm-ctl destroy", "  vm-ctl destroy --vm-name by-hand --yes"},
            exitCodeList = {"0:done, or there is none", "2:wrong usage, or refused for want of --yes",
                "69:something needed is not available (VM_DIR, the lock)", "130, 143:interrupted"})
    int destroy(@Option(names = "--yes", description = "Do not ask.") boolean yes) throws IOException {
        openVm();
        if (vm.files().isEmpty()) {
            say("there is no VM " + vm.name() + " in " + vm.dir());
            return 0;
        }
        confirm("destroy " + vm.name() + " with all its disks and snapshots", yes);
        locked("destroy", () -> {
            JsonObject running = running();
            if (running != null) {
                kill(running.getLong("pid"));
            }
            List<String> du = new ArrayList<>(List.of("du", "-sk", "--"));
            vm.files().forEach(file -> du.add(file.toString()));
            long kibibytes = run(SOON, du).outputUTF8().lines().mapToLong(line -> Long.parseLong(line.split("\\s")[0])).sum();
            for (Path file : vm.files()) {
                deleteTree(file);
                say("removed " + file.getFileName());
            }
            writeSshConfig();
            say("freed " + kibibytes / 1024 + " MiB");
        });
        return 0;
    }

    /** One VM's files in VM_DIR, and the rules its disks live by. */
    record Vm(Path dir, String name) {
        /** What a VM may leave, by the suffix to its name; the sockets may lie elsewhere. */
        private static final List<String> FILES = List.of("-clean.qcow2", ".qcow2", ".snapshots", ".install", ".ssh", ".test", ".sync",
                ".pid", ".qemu-pid", ".qemu.log", ".console.log", ".console.log.1", ".setup.iso", ".new", ".lock");
        private static final List<String> SOCKETS = List.of(".qmp", ".console", ".control", ".ram");

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

        /** Where a socket lies: in VM_DIR, or, as a socket's path holds 107 bytes at most, in a short private directory. */
        Path socket(String suffix) throws IOException {
            Path socket = file(suffix);
            if (socket.toString().getBytes(UTF_8).length <= 85) { // ssh appends 17 characters while it makes a ControlPath
                return socket;
            }
            String runtime = System.getenv().getOrDefault("XDG_RUNTIME_DIR", "");
            Path directory = Path.of(runtime.isEmpty() ? System.getProperty("java.io.tmpdir") : runtime)
                    .resolve("vm-" + System.getProperty("user.name") + "-" + Integer.toHexString(dir.toString().hashCode()));
            return privateDirectory(directory).resolve(name + suffix); // fails if it is somebody else's
        }

        /** The names of all VMs here. */
        List<String> names() throws IOException {
            Pattern owner = Pattern.compile("([^.].*?)(?:-clean\\.qcow2|\\.(?:qcow2|install|pid|ssh))");
            return entries(dir).stream().map(file -> owner.matcher(file.getFileName().toString())).filter(Matcher::matches)
                    .map(match -> match.group(1)).distinct().toList();
        }

        List<Path> files() throws IOException {
            List<Path> files = new ArrayList<>(FILES.stream().map(this::file).toList());
            for (String suffix : SOCKETS) {
                files.add(socket(suffix));
            }
            return files.stream().filter(file -> Files.exists(file, LinkOption.NOFOLLOW_LINKS)).toList();
        }

        /**
         * Whether all that a disk builds on is there, and no newer than what builds on it: an installation may have replaced it. What
         * is known already of some disks is believed and added to: many snapshots have their lower disks in common.
         */
        static boolean isSound(Path top, Map<Path, Boolean> known) throws IOException {
            if (!known.containsKey(top)) {
                known.put(top, false); // also if it builds on itself
                Optional<Qcow2> disk = Qcow2.find(top);
                Path backing = disk.map(Qcow2::backing).orElse(null);
                known.put(top, disk.isPresent() && (backing == null || isSound(backing, known)
                        && Files.getLastModifiedTime(backing).compareTo(Files.getLastModifiedTime(top)) <= 0));
            }
            return known.get(top);
        }

        /** A snapshot by its name, if it can be used. */
        Optional<Snapshot> snapshot(String snapshot) throws IOException {
            return snapshots(List.of(file(".snapshots").resolve(snapshot))).stream().findFirst();
        }

        List<Snapshot> snapshots() throws IOException {
            return snapshots(entries(file(".snapshots")));
        }

        private List<Snapshot> snapshots(List<Path> directories) throws IOException {
            List<Snapshot> usable = new ArrayList<>();
            Map<Path, Boolean> known = new HashMap<>();
            for (Path directory : directories) {
                Snapshot snapshot = Snapshot.read(this, directory.resolve("snapshot.json"));
                if (snapshot != null && isSound(snapshot.disk(), known)) {
                    usable.add(snapshot);
                }
            }
            return usable;
        }

        /** The snapshot that the working disk still equals, nothing having been written to it; without one, what it will be made from. */
        Optional<Snapshot> below() throws IOException {
            if (!Files.exists(disk())) {
                return snapshot(CLEAN);
            }
            Qcow2 disk = Qcow2.read(disk());
            return snapshots().stream().filter(snapshot -> disk.empty() && snapshot.disk().equals(disk.backing())).findFirst();
        }

        /** Whether a boot would be one of the installation as it was made. */
        boolean isAsInstalled() throws IOException {
            Optional<Snapshot> below = below();
            return below.isPresent() ? below.get().said().getBoolean("automatic")
                    : !Files.exists(disk()) || Qcow2.read(disk()).empty() && clean().equals(Qcow2.read(disk()).backing());
        }

        /**
         * Gives the working disk, which nobody may write to meanwhile, a second name and writes the record, which is the moment the
         * snapshot exists. {@link VmCtl#thaw} must follow; {@link VmCtl#mend} makes up for one that did not. The RAM is what
         * {@link VmCtl#saveRam} tells, or empty.
         */
        Path freeze(String snapshot, JsonObject ram, boolean automatic) throws IOException {
            Path directory = Files.createDirectories(file(".snapshots").resolve(snapshot));
            Path frozen = snapshot.equals(CLEAN) && !Files.exists(clean()) ? clean() : unused(directory, "disk", ".qcow2");
            Files.createLink(frozen, disk());
            JsonObject record = object("disk", dir.relativize(frozen).toString(), "made", Instant.now().toString(),
                    "automatic", automatic || frozen.equals(clean()) && ram.isEmpty()); // the first start adds the RAM
            record.putAll(ram);
            writeFile(directory.resolve("snapshot.json"), JsonWriter.string(record), "rw-------");
            return frozen;
        }

        /** The frozen disk that the working disk still is, a freeze having been interrupted after the record was written; or null. */
        Path halfFrozen() throws IOException {
            Stream<Path> frozen = Stream.concat(Stream.of(clean()), snapshots().stream().map(Snapshot::disk));
            for (Path disk : frozen.filter(Files::exists).toList()) {
                if (Files.exists(disk()) && Files.isSameFile(disk, disk())) {
                    return disk;
                }
            }
            return null;
        }

        /** disk.qcow2, disk-2.qcow2, ...: a replaced snapshot's disk keeps its name while something builds on it. */
        static Path unused(Path directory, String stem, String extension) {
            return IntStream.iterate(1, i -> i + 1).mapToObj(i -> directory.resolve(stem + (i == 1 ? "" : "-" + i) + extension))
                    .filter(file -> !Files.exists(file)).findFirst().orElseThrow();
        }

        /** Removes what no record and no disk refers to any more; nothing at all while a record or a chain is damaged. */
        void sweep() throws IOException {
            Set<Path> needed = new HashSet<>();
            List<Path> tops = new ArrayList<>(Files.exists(disk()) ? List.of(disk()) : List.of());
            List<Path> directories = entries(file(".snapshots"));
            for (Path directory : directories) {
                Path record = directory.resolve("snapshot.json");
                Snapshot snapshot = Snapshot.read(this, record);
                if (snapshot != null) {
                    tops.add(snapshot.disk());
                    needed.addAll(snapshot.ram() == null ? List.of(record) : List.of(record, snapshot.ram()));
                } else if (Files.exists(record)) {
                    return;
                }
            }
            if (!needed.stream().allMatch(Files::exists)) {
                return;
            }
            for (Path top : tops) {
                Path disk = top;
                while (disk != null && needed.add(disk)) {
                    Optional<Qcow2> found = Qcow2.find(disk);
                    if (found.isEmpty()) {
                        return;
                    }
                    disk = found.get().backing();
                }
            }
            for (Path directory : directories) {
                for (Path file : entries(directory)) {
                    if (!needed.contains(file)) {
                        Files.delete(file);
                    }
                }
                if (entries(directory).isEmpty()) {
                    Files.delete(directory);
                }
            }
        }
    }

    /** A qcow2 image's header; read directly, as it is needed often, and QEMU's lock is in the way of qemu-img. Empty: never written to. */
    record Qcow2(Path backing, long size, boolean empty) {
        /** Empty if the file is missing or damaged. */
        static Optional<Qcow2> find(Path file) {
            try {
                return Optional.of(read(file)).filter(image -> image.size() > 0);
            } catch (IOException | VmException damaged) {
                return Optional.empty();
            }
        }

        static Qcow2 read(Path file) throws IOException {
            try (RandomAccessFile image = new RandomAccessFile(file.toFile(), "r")) {
                if (image.length() < 72 || image.readInt() != 0x514649fb) {
                    throw new VmException(69, file + " is no qcow2 image: vm-ctl restore makes a new one");
                }
                image.seek(8);
                long nameAt = image.readLong();
                int nameLength = image.readInt();
                image.seek(24);
                long size = image.readLong();
                image.seek(36);
                int tables = image.readInt();
                if (nameLength < 0 || nameLength > 1023 || tables < 0 || tables > 1 << 22) { // the format's own limits
                    throw new VmException(69, file + " is damaged: vm-ctl restore makes a new one");
                }
                byte[] name = new byte[nameLength];
                byte[] clusters = new byte[8 * tables];
                image.seek(image.readLong());
                image.readFully(clusters);
                image.seek(nameAt);
                image.readFully(name);
                return new Qcow2(name.length == 0 ? null : file.resolveSibling(new String(name, UTF_8)).normalize(), size,
                        IntStream.range(0, clusters.length).allMatch(i -> clusters[i] == 0));
            } catch (EOFException cut) {
                throw new VmException(69, file + " is damaged: vm-ctl restore makes a new one");
            }
        }
    }

    /** A frozen disk and, unless the VM was stopped, the RAM that belongs to it. */
    record Snapshot(String name, Path disk, Path ram, JsonObject said) {
        /** Null if there is no record, or a damaged one. */
        static Snapshot read(Vm vm, Path record) {
            try {
                JsonObject said = json(Files.readString(record));
                return new Snapshot(record.getParent().getFileName().toString(), vm.dir().resolve(said.getString("disk", "?")),
                        said.has("ram") ? record.resolveSibling(said.getString("ram")) : null, said);
            } catch (IOException none) {
                return null;
            }
        }

        /** Why the RAM cannot be used on this hardware; null if it can, unless its checksum is wrong. */
        String ramProblem(List<String> now) throws IOException {
            if (ram == null || !Files.exists(ram)) {
                return "there is none";
            } else if (Files.size(ram) != said.getLong("ramBytes")) {
                return "its file has " + Files.size(ram) + " bytes instead of " + said.getLong("ramBytes");
            }
            List<String> then = strings(said, "hardware");
            for (int i = 0; i < Math.min(then.size(), now.size()); i++) {
                if (!then.get(i).equals(now.get(i))) {
                    String option = i > 0 && then.get(i - 1).startsWith("-") ? then.get(i - 1) + " " : "";
                    return "it was made with " + option + then.get(i) + ", now it is " + now.get(i);
                }
            }
            return then.size() == now.size() ? null : "it was made with other QEMU arguments";
        }
    }

    /** A start: the machine, and what does not matter to its RAM. Port 0: any. */
    record Boot(List<String> hardware, String cache, int port, List<String> forwards, List<Path> discs, Duration limit, boolean waits) {}

    /** A VM's state, the exit code of its status, why it is so (or null), and its pid file's record unless it is stopped. */
    record Report(String state, int exitCode, String reason, JsonObject running) {}

    // Starting.

    /** What the options say, checked; port and forwards that they do not name are those that the running VM was given. */
    private Boot planned(Machine machine, Duration limit, boolean waits, List<Path> discs) throws IOException {
        long mebibytes = ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getTotalMemorySize() >> 20;
        String memory = machine.memory == null ? Math.max(2048, Math.min(8192, mebibytes / 4)) + "M" : machine.memory;
        JsonObject before = running();
        List<String> forwards = machine.forwards != null ? machine.forwards : before == null ? List.of() : strings(before, "forwards");
        String aPort = VALUES.get("VM_SSH_PORT").get(0);
        forwards.forEach(forward -> require("--forward", forward, "(" + aPort + "):(" + aPort + ")", "two ports such as 8080:80"));
        int port = machine.sshPort != null ? Integer.parseInt(machine.sshPort) : before == null ? 0 : before.getInt("wantedPort");
        List<String> more = split(machine.qemuArgs);
        if (!Files.exists(vm.disk()) && !Files.exists(vm.clean())) {
            throw new VmException(69, "there is no disk for " + vm.name() + " in " + vm.dir() + ": run vm-auto-install, or vm-ctl install");
        }
        String accelerator = accelerator(machine.accel, QEMU, privateDirectory(vm.dir())).name();
        int cpus = processors(machine.cpus == null ? null : Integer.valueOf(machine.cpus), accelerator);
        String cpu = machine.cpu != null ? machine.cpu : switch (accelerator) {
            case "kvm" -> "Broadwell-v4,+hypervisor,pmu=off"; // never +invtsc: QEMU then refuses to save the RAM
            case "hvf" -> "host";
            default -> "qemu64";
        };
        List<String> hardware = new ArrayList<>(run(SOON, List.of(QEMU, "--version")).outputUTF8().lines().limit(1).toList());
        hardware.addAll(hardware(accelerator, cpu, memory, cpus, discs.size()));
        hardware.addAll(more);
        return new Boot(hardware, machine.cache, port, forwards, discs, limit, waits);
    }

    /** The arguments that make the machine, as the guest and its RAM see it. */
    static List<String> hardware(String accelerator, String cpu, String memory, int cpus, int discs) {
        List<String> arguments = new ArrayList<>(List.of("-accel", accelArgument(accelerator, cpus), "-cpu", cpu, "-m", memory,
                "-smp", "" + cpus, "-machine", "pc", "-nodefaults", "-no-user-config", "-rtc", "base=utc", "-vga", "std",
                "-serial", "chardev:serial0",
                "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=1", // DragonFly's da0
                "-device", "virtio-net-pci,netdev=net0,romfile=")); // vtnet0, without booting from the network
        if (accelerator.equals("kvm")) {
            arguments.addAll(List.of("-global", "kvm-pit.lost_tick_policy=delay"));
        }
        for (int i = 0; i < discs; i++) {
            String place = "bus=ide." + i / 2 + ",unit=" + i % 2 + (i == 0 ? ",bootindex=2" : "");
            arguments.addAll(List.of("-device", "ide-cd,drive=cd" + i + "," + place));
        }
        return arguments;
    }

    /** QEMU's command line, with nothing in it that a path could break. With RAM, the guest is there and stands still. */
    static List<String> qemuArguments(Vm vm, Boot boot, int port, Path ram) throws IOException {
        List<String> arguments = new ArrayList<>(List.of(QEMU, "-name", vm.name(), "-pidfile", vm.file(".qemu-pid").toString(),
                "-daemonize", "-display", "none"));
        if (!vm.dir().toString().contains("%")) { // QEMU puts its pid there
            arguments.addAll(List.of("-D", vm.file(".qemu.log").toString(), "-d", "strace")); // errors alone: no guest is in user mode
        }
        if (System.getProperty("os.name").equals("Linux")) {
            arguments.addAll(List.of("-sandbox", "on,resourcecontrol=deny")); // denying more does not go with -daemonize
        }
        arguments.addAll(List.of("-blockdev", JsonWriter.string(object("node-name", "disk0", "driver", "qcow2", "discard", "unmap",
                "detect-zeroes", "unmap", "cache", object("direct", boot.cache().equals("none"), "no-flush", boot.cache().equals("unsafe")),
                "file", object("driver", "file", "filename", vm.disk().toString())))));
        for (int i = 0; i < boot.discs().size(); i++) {
            arguments.addAll(List.of("-blockdev", JsonWriter.string(object("node-name", "cd" + i, "driver", "raw", "read-only", true,
                    "file", object("driver", "file", "filename", boot.discs().get(i).toString())))));
        }
        StringBuilder network = new StringBuilder("user,id=net0,hostfwd=tcp:127.0.0.1:" + port + "-:22");
        boot.forwards().forEach(forward -> network.append(",hostfwd=tcp:127.0.0.1:").append(forward.replace(":", "-:")));
        String socket = "socket,server=on,wait=off,id=";
        String log = ",logappend=on,logfile=" + doubled(vm.file(".console.log"));
        arguments.addAll(List.of("-netdev", network.toString(),
                "-chardev", socket + "qmp0,path=" + doubled(vm.socket(".qmp")), "-mon", "chardev=qmp0,mode=control",
                "-chardev", socket + "serial0,path=" + doubled(vm.socket(".console")) + log));
        if (ram != null) {
            arguments.addAll(List.of("-S", "-incoming", "defer")); // until it is known to run
        }
        arguments.addAll(boot.hardware().subList(1, boot.hardware().size()));
        return arguments;
    }

    /** In an option of the key=value kind a comma separates; doubled it is one. */
    private static String doubled(Path path) {
        return path.toString().replace(",", ",,");
    }

    /**
     * From the working disk to a guest that answers: by the RAM of the snapshot below if it can be used, else by a cold boot. A cold
     * boot of the installation as it was made is then frozen, so that the next one need not be.
     */
    private void boot(Boot boot, boolean freeze) throws IOException {
        long begun = System.nanoTime();
        Snapshot below = vm.below().orElse(null);
        boolean asInstalled = vm.isAsInstalled();
        if (!Files.exists(vm.disk())) {
            overlay(below == null ? vm.clean() : below.disk());
        } else if (!Vm.isSound(vm.disk(), new HashMap<>())) {
            throw new VmException(69, "what " + vm.disk() + " builds on is gone or was made anew: vm-ctl restore goes back to clean");
        }
        if (below != null && below.ram() != null) {
            String problem = below.ramProblem(boot.hardware());
            if (problem == null) {
                JsonObject running = launch(boot, below.ram());
                problem = wake(below, running);
                if (problem == null) {
                    awaitAnswer(running, boot.limit());
                    say("restored " + below.name() + " with its RAM in " + seconds(begun) + ": " + describe(running));
                    return;
                }
                kill(running.getLong("pid"));
            }
            say("the RAM of " + below.name() + " cannot be used: " + problem + "; booting its disk");
            overlay(asInstalled ? vm.clean() : below.disk());
        }
        JsonObject running = launch(boot, null);
        if (!boot.waits()) {
            say("started " + vm.name() + ", which has yet to boot: " + describe(running));
            return;
        }
        awaitAnswer(running, boot.limit());
        say("booted " + vm.name() + " in " + seconds(begun) + ": " + describe(running));
        if (asInstalled && freeze) {
            try {
                freezeRunning(running, CLEAN, true, boot.limit());
            } catch (VmException notFrozen) {
                if (running() == null) {
                    throw notFrozen;
                }
                say("it runs, but could not be kept as snapshot clean, so the next start will boot again: " + notFrozen.getMessage());
            }
        }
    }

    private static String describe(JsonObject running) {
        return "ssh on port " + running.getInt("port") + " (pid " + running.getLong("pid") + ", " + running.getString("accel") + ")";
    }

    /** Cuts the console's log when it is larger than 10 MB and keeps its last 1 MB as .1, while QEMU (pid file, pid, log) lives. */
    private static final String LOG_KEEPER = """
            cd /
            trap '' HUP INT
            while [ "$(cat "$1")" = "$2" ] && kill -0 "$2"; do
                if [ "$(wc -c <"$3")" -gt 10000000 ]; then tail -c 1000000 "$3" >"$3.1"; : >"$3"; fi
                sleep 1
            done </dev/null >/dev/null 2>&1 &
            """;

    /** Starts QEMU on the first port it can have, and writes down what runs. */
    JsonObject launch(Boot boot, Path ram) throws IOException {
        closeSshMaster();
        Path log = vm.file(".console.log");
        long consoleAt = Files.exists(log) ? Files.size(log) : 0;
        for (String forward : boot.forwards()) {
            freePorts(Integer.parseInt(forward.split(":")[0]));
        }
        String said = "";
        for (int port : freePorts(boot.port())) {
            ProcessResult started = run(SOON, qemuArguments(vm, boot, port, ram));
            said = printable(started.outputUTF8() + end(vm.file(".qemu.log"), 0, 1 << 12)).strip(); // its stderr is the log
            if (started.getExitValue() == 0) {
                String pidText = Files.readString(vm.file(".qemu-pid")).strip();
                long pid = Long.parseLong(pidText);
                JsonObject running = object("pid", pid, "bootId", bootId(), "startTicks", startTicks(pid), "port", port,
                        "wantedPort", boot.port(), "accel", boot.hardware().get(2).split(",")[0], "memory", boot.hardware().get(6),
                        "cpus", boot.hardware().get(8), "hardware", boot.hardware(), "cache", boot.cache(), "forwards", boot.forwards(),
                        "byHand", !boot.discs().isEmpty(), "started", Instant.now().toString(), "consoleAt", consoleAt,
                        "restored", ram != null, "ready", false, "qmp", vm.socket(".qmp").toString());
                writeFile(vm.pidFile(), JsonWriter.string(running), "rw-------");
                run(SOON, List.of("sh", "-c", LOG_KEEPER, "log-keeper", vm.file(".qemu-pid").toString(), pidText, log.toString()));
                Path keys = privateDirectory(vm.file(".ssh"));
                writeFile(keys.resolve("config"), sshConfig(vm.name(), port, keys, vm.socket(".control")), "rw-------");
                writeSshConfig();
                return json(Files.readString(vm.pidFile()));
            } else if (!said.contains("tcp:127.0.0.1:" + port + "-")) {
                break; // else somebody took the port meanwhile
            }
        }
        boolean full = vm.dir().toFile().getUsableSpace() < 1 << 20; // then QEMU cannot say why
        throw new VmException(full ? 1 : 69, "QEMU did not start: "
                + (full ? "no space left in " + vm.dir() : said.isEmpty() ? "somebody ended it; try again" : said));
    }

    /** The port asked for, which must be free, or all free ones from 2222 on. */
    private List<Integer> freePorts(int wanted) throws IOException {
        if (wanted == 0) {
            List<Integer> free = IntStream.range(2222, 2322).filter(VmCtl::isFree).boxed().toList();
            if (free.isEmpty()) {
                throw new VmException(69, "no port from 2222 to 2321 is free: choose one with VM_SSH_PORT");
            }
            return free;
        }
        long deadline = System.nanoTime() + Duration.ofSeconds(10).toNanos();
        for (; !isFree(wanted); pause(50)) {
            Optional<String> holder = portHolder(wanted);
            if (holder.isPresent() || System.nanoTime() > deadline) { // a QEMU that is killed counts as dead before its port is free
                throw new VmException(69, "port " + wanted + " of 127.0.0.1 is taken by "
                        + holder.orElse("another user's process") + ": choose another");
            }
        }
        return List.of(wanted);
    }

    static boolean isFree(int port) {
        try (ServerSocket probe = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
            return probe.isBound();
        } catch (IOException taken) {
            return false;
        }
    }

    /** Who listens on a port of this host, as far as this user may know. */
    private Optional<String> portHolder(int port) throws IOException {
        try {
            String listeners = run(SOON, List.of("ss", "-Hltnp", "sport = :" + port)).outputUTF8();
            return Pattern.compile("\"(.*?)\",pid=(\\d+)").matcher(listeners).results().findFirst()
                    .map(user -> user.group(1) + " (pid " + user.group(2) + ")");
        } catch (VmException noSs) {
            return Optional.of("another process");
        }
    }

    // Waiting for the guest.

    /** Waits until the guest's sshd answers a command; says why if it does not. A restored guest's clock is set. */
    private void awaitAnswer(JsonObject running, Duration limit) throws IOException {
        int port = running.getInt("port");
        String last = "sshd does not answer on port " + port;
        int refusals = 0;
        long deadline = System.nanoTime() + limit.toNanos();
        for (int patience = 1000; System.nanoTime() < deadline; patience = Math.min(5000, patience + 250)) { // an emulated sshd may be slow
            if (startTicks(running.getLong("pid")) < 0) {
                throw new VmException(69, "QEMU ended while the guest was starting: " + lastLines(vm.file(".qemu.log"), 2) + consoleEnd());
            }
            String console = consoleSince(vm, running);
            Optional<String> trouble = trouble(console);
            // A panic without the debugger reboots by itself.
            if (trouble.isPresent() && !console.contains("Automatic reboot in ") && !hasBanner(port, 5000)) {
                throw new VmException(69, "the guest is in trouble: " + trouble.get() + consoleEnd());
            }
            Said first = hasBanner(port, patience) ? ask(SOON.dividedBy(2), "true") : null;
            if (first != null && first.done()) {
                if (running.getBoolean("restored") && !running.getBoolean("ready")) {
                    setClock();
                }
                running.put("ready", true);
                writeFile(vm.pidFile(), JsonWriter.string(running), "rw-------");
                return;
            } else if (first != null) {
                closeSshMaster(); // the next try has a connection of its own
                last = first.text().substring(first.text().lastIndexOf('\n') + 1);
                refusals += last.contains("Permission denied") ? 1 : 0;
                if (last.contains("Host key verification failed") || refusals == 3) {
                    throw new VmException(69, "the guest's keys are not those in " + vm.file(".ssh") + ": " + last);
                }
            }
            pause(50);
        }
        String advice = hangAdvice(running.getString("accel"), Integer.parseInt(running.getString("cpus")));
        throw new VmException(124, "no answer after " + limit.toSeconds() + " s: " + last + advice + consoleEnd());
    }

    /** A restored guest's clock stood still. The BSD date takes whole seconds; a try that took long is repeated, with its delay. */
    private void setClock() throws IOException {
        DateTimeFormatter form = DateTimeFormatter.ofPattern("yyyyMMddHHmm.ss").withZone(ZoneOffset.UTC);
        long delay = 0;
        for (int attempt = 0; attempt < 3 && (attempt == 0 || delay > 150); attempt++) {
            Instant begun = Instant.now();
            if (!ask(SOON, "date -u " + form.format(begun.plusMillis(500 + delay))).done()) {
                say("the guest's clock could not be set; it stands at the moment of the snapshot");
                return;
            }
            delay = Duration.between(begun, Instant.now()).toMillis() / 2;
        }
    }

    /** What keeps the guest from answering, by what DragonFly's loader, kernel and rc print on the console. */
    static Optional<String> trouble(String console) {
        int goodSign = Math.max(console.lastIndexOf(KERNEL_STARTS), console.lastIndexOf("\nlogin: ")); // older trouble is over
        String recent = console.substring(Math.max(0, goodSign));
        int panic = kernelPanic(recent);
        Matcher other = TROUBLE.matcher(recent);
        if (other.find() && (panic < 0 || other.start() < panic)) { // the first one is the cause of the others
            return Optional.of(other.group().strip());
        }
        return panic < 0 ? Optional.empty() : recent.substring(panic).lines().findFirst();
    }

    private static final String KERNEL_STARTS = "Copyright (c) 2003-";
    /** The kernel may try several devices as its root: one that fails matters only if it then asks for another. */
    private static final Pattern TROUBLE = Pattern.compile("Root mount failed: \\d+(?=\\s+Manual root filesystem specification)"
            + "|no bootable kernel|can't (load|find) 'kernel'|Automatic file system check failed|ABORTING BOOT"
            + "|Enter full pathname of shell|The operating system has halted|Stopped at .{0,500}(?=\\Rdb> \\z)");

    private static String consoleSince(Vm vm, JsonObject running) throws IOException {
        return end(vm.file(".console.log"), running.getLong("consoleAt"), 1 << 18);
    }

    private String consoleEnd() throws IOException {
        String lines = lastLines(vm.file(".console.log"), 5);
        return lines.isEmpty() ? "" : "\nthe console's last lines:\n" + lines;
    }

    // RAM.

    /** Writes a running guest's RAM to a file; what its record will say. If this fails, or this process dies, the guest goes on. */
    JsonObject saveRam(Path file, List<String> hardware, Duration limit) throws IOException {
        Path socket = vm.socket(".ram");
        Files.deleteIfExists(socket);
        CRC32C crc = new CRC32C();
        try (ServerSocketChannel server = limited(ServerSocketChannel.open(StandardProtocolFamily.UNIX), SOON)) {
            server.bind(UnixDomainSocketAddress.of(socket));
            qmp("migrate-set-parameters", "max-bandwidth", 1L << 40, "downtime-limit", 600_000); // the defaults are for networks
            qmp("migrate", "uri", "unix:" + socket);
            try (InputStream in = new CheckedInputStream(Channels.newInputStream(limited(server.accept(), limit)), crc)) {
                Files.copy(in, file);
            }
            Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rw-------"));
            JsonObject migration = qmp("query-migrate");
            long deadline = System.nanoTime() + SOON.toNanos(); // all is written
            for (; !migration.getString("status").equals("completed"); migration = qmp("query-migrate")) {
                if (Set.of("failed", "cancelled").contains(migration.getString("status")) || System.nanoTime() > deadline) {
                    throw new IOException(migration.getString("error-desc", "QEMU does not say why"));
                }
                pause(10);
            }
            return object("ram", file.getFileName().toString(), "ramBytes", Files.size(file), "ramCrc32c", crc.getValue(),
                    "hardware", hardware);
        } catch (IOException | VmException failed) {
            Files.deleteIfExists(file);
            boolean full = String.valueOf(failed.getMessage()).contains("No space");
            throw new VmException(full ? 1 : 69, "the RAM could not be saved: " + failed.getMessage()
                    + (running() == null ? "; QEMU ended" : "; the guest goes on"));
        } finally {
            Files.deleteIfExists(socket);
        }
    }

    /** Lets a guest go on from the RAM that its QEMU reads, if that is not damaged; else tells why not. */
    String wake(Snapshot snapshot, JsonObject running) throws IOException {
        try {
            qmp("migrate-incoming", "uri", "exec:exec cat " + shellQuoted(List.of(snapshot.ram().toString())));
            CRC32C crc = new CRC32C();
            try (FileChannel ram = FileChannel.open(snapshot.ram())) { // while QEMU reads it, too
                for (ByteBuffer part = ByteBuffer.allocateDirect(1 << 20); ram.read(part.clear()) >= 0; ) {
                    crc.update(part.flip());
                }
            }
            if (crc.getValue() != snapshot.said().getLong("ramCrc32c")) {
                return "it is damaged (its checksum is wrong)";
            }
            long deadline = System.nanoTime() + SOON.multipliedBy(10).toNanos();
            for (String state = "inmigrate"; state.equals("inmigrate") && System.nanoTime() < deadline; pause(10)) {
                state = runState(vm, SOON);
                if (state.equals("paused")) {
                    qmp("cont");
                    return null;
                }
            }
            return "QEMU refuses it: " + lastLines(vm.file(".qemu.log"), 2);
        } catch (VmException refused) {
            if (refused.exitCode != 69) {
                throw refused;
            }
            return refused.getMessage();
        }
    }

    // Snapshots.

    /** Freezes a running guest's disk and RAM, and goes on from there in a new QEMU. */
    private void freezeRunning(JsonObject running, String name, boolean automatic, Duration limit) throws IOException {
        long begun = System.nanoTime();
        if (!runState(vm, SOON).equals("running")) {
            throw new VmException(69, vm.name() + " stands still: vm-ctl start lets it go on, vm-ctl stop lets its disk alone be frozen");
        } else if (!hasBanner(running.getInt("port"), 5000) || !ask(SOON, "sync").done()) { // for the day when the disk alone can be used
            throw new VmException(69, "the guest does not answer ssh: vm-ctl stop lets its disk alone be frozen");
        }
        closeSshMaster(); // or the frozen guest keeps a dead session for ever
        Path directory = Files.createDirectories(vm.file(".snapshots").resolve(name));
        List<String> hardware = strings(running, "hardware");
        JsonObject ram = saveRam(Vm.unused(directory, "ram", ""), hardware, limit);
        Path frozen = vm.freeze(name, ram, automatic);
        kill(running.getLong("pid")); // it stands still, and has written everything
        thaw(frozen);
        say("froze disk and RAM (" + (ram.getLong("ramBytes") >> 20) + " MiB) as " + name + " in " + seconds(begun));
        boot(new Boot(hardware, running.getString("cache"), running.getInt("wantedPort"), strings(running, "forwards"), List.of(), limit,
                true), false);
    }

    /** Ends a freeze: what was the working disk keeps its new name alone, read-only, and a fresh overlay takes the old one. */
    private void thaw(Path frozen) throws IOException {
        Files.setPosixFilePermissions(frozen, PosixFilePermissions.fromString("r--------"));
        overlay(frozen);
    }

    private void overlay(Path base) throws IOException {
        makeDisk(beside -> overlayCommand(base, beside));
        vm.sweep();
    }

    /** Puts a new disk in the working disk's place, at once or not at all. */
    private void makeDisk(Function<Path, List<String>> command) throws IOException {
        Path beside = vm.file(".new");
        Files.deleteIfExists(beside);
        ProcessResult made = run(SOON, command.apply(beside));
        if (made.getExitValue() != 0) {
            throw new VmException(1, "no new disk could be made: " + made.outputUTF8().strip());
        }
        Files.setPosixFilePermissions(beside, PosixFilePermissions.fromString("rw-------"));
        Files.move(beside, vm.disk(), StandardCopyOption.ATOMIC_MOVE);
    }

    static List<String> overlayCommand(Path base, Path overlay) {
        return List.of("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.toString(), overlay.toString());
    }

    private void delete(String name) throws IOException {
        if (name.equals(CLEAN)) {
            throw new VmException(2, "clean is what the VM was installed as; vm-ctl destroy deletes the VM");
        }
        Snapshot snapshot = vm.snapshot(name).orElseThrow(() -> new VmException(69, vm.name() + " has no snapshot " + name));
        List<String> builders = new ArrayList<>();
        Map<Path, Boolean> known = new HashMap<>(Map.of(snapshot.disk(), false)); // as if it were gone
        for (Snapshot other : vm.snapshots()) {
            if (!other.name().equals(name) && !Vm.isSound(other.disk(), known)) {
                builders.add(other.name());
            }
        }
        if (!builders.isEmpty()) {
            throw new VmException(69, name + " cannot be deleted, others build on it: " + String.join(", ", builders));
        }
        Files.delete(vm.file(".snapshots").resolve(name).resolve("snapshot.json"));
        vm.sweep();
        say("deleted " + name);
    }

    // State.

    private interface Work {
        void run() throws IOException;
    }

    /** Changes the VM's state while nobody else does, after mending what an interrupted command left. */
    private void locked(String command, Work work) throws IOException {
        try (FileChannel held = lock(privateDirectory(vm.dir()).resolve(vm.name() + ".lock"), "vm-ctl " + command)) {
            mend();
            work.run();
            held.truncate(0);
        }
    }

    /** After a kill of QEMU, of a command or of the host at any point: makes the files say what is so. */
    private void mend() throws IOException {
        JsonObject running = running();
        Path frozen = vm.halfFrozen();
        if (running == null) {
            Path qemuPid = vm.file(".qemu-pid");
            String pid = Files.exists(qemuPid) ? Files.readString(qemuPid).strip() : "";
            Path commandLine = Path.of("/proc/" + pid + "/cmdline");
            if (!pid.isEmpty() && Files.exists(commandLine) && Files.readString(commandLine).contains("\0" + qemuPid + "\0")) {
                kill(Long.parseLong(pid)); // its starter was killed before it could write the pid file
            }
            for (Path file : List.of(vm.pidFile(), qemuPid, vm.socket(".qmp"), vm.socket(".console"), vm.socket(".ram"))) {
                Files.deleteIfExists(file);
            }
        } else {
            String state = runState(vm, Duration.ofSeconds(5));
            boolean halfRestored = running.getBoolean("restored") && !running.getBoolean("ready");
            if (frozen != null || state.equals("inmigrate") || halfRestored && state.equals("paused")) {
                kill(running.getLong("pid")); // it stands still: on a frozen disk, or before it was woken
            } else if (state.equals("postmigrate")) {
                qmp("cont"); // its RAM was saved, but no snapshot came of it
            }
        }
        if (frozen != null) {
            thaw(frozen);
        }
        vm.sweep();
    }

    /** What the pid file says, if its QEMU still runs; else null. */
    JsonObject running() throws IOException {
        return livePid(vm.pidFile()).isEmpty() ? null : json(Files.readString(vm.pidFile()));
    }

    private void needRunning() throws IOException {
        if (running() == null) {
            throw new VmException(3, "VM " + vm.name() + " is not running; start it: vm-ctl start");
        }
    }

    private void kill(long pid) throws IOException {
        closeSshMaster();
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

    /** A way to end a VM, and how long it may take. */
    private record Rung(String name, Duration limit, Callable<Boolean> step) {}

    private void shutDown(boolean force) throws IOException {
        JsonObject running = running();
        if (running == null) {
            say(vm.name() + " is not running");
            return;
        }
        long begun = System.nanoTime();
        long pid = running.getLong("pid");
        Optional<String> trouble = trouble(consoleSince(vm, running));
        // Whatever its console says, a guest whose sshd answers can be asked, and its power is not cut.
        boolean ask = !force && (trouble.isEmpty() || hasBanner(running.getInt("port"), 5000));
        if (!force && !ask) {
            say("the guest cannot be asked: " + trouble.get());
        }
        List<Rung> rungs = List.of( // rc.shutdown and init may take 150 s by their own limits
                new Rung("shutdown -p now over ssh", Duration.ofSeconds(160),
                        () -> hasBanner(running.getInt("port"), 5000) && ask(SOON, "shutdown -p now").done()),
                new Rung("the power button", Duration.ofSeconds(60), () -> qmp("system_powerdown") != null),
                new Rung("QMP quit", Duration.ofSeconds(30), () -> qmp("quit") != null),
                new Rung("SIGKILL", SOON, () -> {
                    kill(pid);
                    return true;
                }));
        for (Rung rung : ask ? rungs : rungs.subList(2, 4)) {
            try {
                boolean taken = rung.step().call();
                closeSshMaster();
                if (taken && isGone(pid, rung.limit())) {
                    mend();
                    say("stopped " + vm.name() + " by " + rung.name() + " in " + seconds(begun));
                    return;
                }
                say(rung.name() + ": no effect");
            } catch (Exception noAnswer) { // the next rung asks less
                say(rung.name() + ": " + noAnswer.getMessage());
            }
        }
        throw new VmException(69, vm.name() + " could not be stopped");
    }

    /** What can be said of a VM soon. Its sshd gets more than a second to answer only if the console tells of trouble. */
    private Report report(Vm vm) throws IOException {
        if (livePid(vm.pidFile()).isEmpty()) {
            boolean left = Files.exists(vm.pidFile()) && Files.readString(vm.pidFile()).contains(bootId());
            return left ? new Report("gone", 3, "QEMU is gone but its pid file is not", null) : new Report("stopped", 3, null, null);
        }
        JsonObject running = json(Files.readString(vm.pidFile()));
        String console = consoleSince(vm, running);
        String state = runState(vm, Duration.ofSeconds(1));
        Optional<String> trouble = trouble(console);
        if (state.equals("unknown")) {
            return new Report("hung", 69, "QEMU does not answer", running);
        } else if (!state.equals("running") && !state.equals("inmigrate")) {
            return new Report("paused", 0, state + (state.equals("io-error") ? ": no space? vm-ctl start lets it go on" : ""), running);
        } else if (trouble.isPresent() && !hasBanner(running.getInt("port"), 5000)) {
            return new Report("panicked", 69, trouble.get(), running);
        }
        int panic = kernelPanic(console);
        boolean panicked = panic >= 0 && console.lastIndexOf(KERNEL_STARTS) > panic;
        return new Report(running.getBoolean("ready") || hasBanner(running.getInt("port"), 500) ? "running" : "starting", 0,
                panicked ? "rebooted after a panic" : null, running);
    }

    /** One command for QEMU's monitor; what it returns. A hung QEMU accepts and never answers: at the limit the connection is closed. */
    private static JsonObject monitor(Vm vm, Duration limit, String command, Object... arguments) throws IOException {
        try (SocketChannel channel = limited(SocketChannel.open(StandardProtocolFamily.UNIX), limit);
                BufferedReader in = new BufferedReader(Channels.newReader(channel, UTF_8))) {
            channel.connect(UnixDomainSocketAddress.of(vm.socket(".qmp")));
            String requests = "{\"execute\":\"qmp_capabilities\"}\n"
                    + JsonWriter.string(object("execute", command, "arguments", object(arguments), "id", command)) + "\n";
            channel.write(ByteBuffer.wrap(requests.getBytes(UTF_8)));
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                JsonObject answer = json(line); // the greeting, events, or what was asked for
                if (command.equals(answer.getString("id")) && answer.has("return")) {
                    return answer.getObject("return");
                } else if (answer.has("error")) {
                    throw new IOException(command + ": " + answer.getObject("error").getString("desc"));
                }
            }
            throw new IOException(command + ": QEMU closed the connection");
        }
    }

    private JsonObject qmp(String command, Object... arguments) throws IOException {
        try {
            return monitor(vm, SOON, command, arguments);
        } catch (IOException refused) {
            throw new VmException(69, "QEMU refuses " + refused.getMessage());
        }
    }

    /** QEMU's own word for what the guest does: running, paused, inmigrate, postmigrate, io-error ... */
    static String runState(Vm vm, Duration limit) {
        try {
            return monitor(vm, limit, "query-status").getString("status");
        } catch (IOException noAnswer) {
            return "unknown";
        }
    }

    // ssh.

    /** The connection's settings, one a line, for every tool that reads ssh_config. */
    static String sshConfig(String name, int port, Path keys, Path control) {
        return String.join("\n", "Host " + name, "HostName 127.0.0.1", "Port " + port, "User root", "HostKeyAlias " + name,
                "IdentityFile " + sshQuoted(keys.resolve("id_ed25519")), "IdentitiesOnly yes",
                "UserKnownHostsFile " + sshQuoted(keys.resolve("known_hosts")), "GlobalKnownHostsFile /dev/null",
                "StrictHostKeyChecking yes", "UpdateHostKeys no", "PasswordAuthentication no", "BatchMode yes",
                "ConnectTimeout 30", "ServerAliveInterval 15", "ServerAliveCountMax 4", "ControlMaster auto",
                "ControlPath " + sshQuoted(control), "ControlPersist 60", "");
    }

    private static String sshQuoted(Path path) {
        return '"' + path.toString().replace("\\", "\\\\").replace("\"", "\\\"").replace("%", "%%") + '"';
    }

    /** The file that includes every VM's. */
    private void writeSshConfig() throws IOException {
        String includes = entries(vm.dir()).stream().filter(file -> file.toString().endsWith(".ssh")).map(keys -> keys.resolve("config"))
                .filter(Files::exists).map(file -> file.toString().replaceAll("[\\\\*?\\[]", "\\\\$0")) // a pattern for ssh
                .map(pattern -> "Include \"" + pattern.replace("\\", "\\\\").replace("\"", "\\\"") + "\"\n").collect(Collectors.joining());
        writeFile(vm.dir().resolve("ssh_config"), includes, "rw-------");
    }

    private List<String> ssh(String... words) {
        List<String> command = new ArrayList<>(List.of("ssh", "-F", vm.dir().resolve("ssh_config").toString(), vm.name()));
        command.addAll(List.of(words));
        return command;
    }

    /** What a command in the guest printed, and whether it was done; not if ssh failed or took too long. */
    private record Said(boolean done, String text) {}

    private Said ask(Duration limit, String command) throws IOException {
        try {
            ProcessResult result = run(limit, ssh(command));
            return new Said(result.getExitValue() == 0, printable(result.outputUTF8()).strip());
        } catch (VmException late) {
            return new Said(false, late.getMessage());
        }
    }

    /** A shared connection that outlived its guest would hang whoever uses it next. */
    private void closeSshMaster() throws IOException {
        if (Files.exists(vm.socket(".control"))) {
            List<String> command = ssh();
            command.addAll(1, List.of("-O", "exit"));
            run(SOON, command);
            Files.deleteIfExists(vm.socket(".control"));
        }
    }

    /** What sshd hands to root's shell, which may be csh: quoted words. At the limit the guest itself kills the process group. */
    static String remoteCommand(List<String> words, List<String> environment, Duration limit) {
        List<String> command = new ArrayList<>();
        if (limit != null) {
            command.addAll(List.of("sh", "-c", "(n=" + limit.toSeconds() + "; while [ $n -gt 0 ] && kill -0 $$; do sleep 1; n=$((n - 1)); "
                    + "done; kill -0 $$ && kill -KILL 0) </dev/null >/dev/null 2>&1 & exec \"$@\"", "sh"));
        }
        if (!environment.isEmpty()) {
            command.add("env");
            command.addAll(environment);
        }
        command.addAll(words.size() == 1 ? List.of("sh", "-c", words.get(0)) : words);
        return shellQuoted(command);
    }

    /** ssh's 255 is its own or the guest command's: the guest is asked which. */
    private int sshResult(int code) throws IOException {
        if (code == 255 && !ask(SOON, "true").done()) {
            throw new VmException(69, "the guest does not answer ssh" + consoleEnd());
        }
        return code;
    }

    /** Runs a program on this terminal. */
    private int interactive(List<String> command, Duration limit) throws IOException {
        if (verbose) {
            say("+ " + shellQuoted(command));
        }
        ProcessBuilder builder = new ProcessBuilder(command).inheritIO();
        Path stdin = Path.of("/proc/self/fd/0");
        if (Files.isSymbolicLink(stdin) && Files.readSymbolicLink(stdin).startsWith(System.getProperty("java.home"))) {
            builder.redirectInput(Path.of("/dev/null").toFile()); // it was closed, and a file of the JVM's took its number
        }
        Process process;
        try {
            process = builder.start();
        } catch (IOException refused) {
            throw new VmException(69, refused.getMessage()); // it names the program, and whether it is missing or its line too long
        }
        Runtime.getRuntime().addShutdownHook(new Thread(process::destroy)); // if this command is ended
        try {
            if (process.waitFor(limit == null ? Long.MAX_VALUE : limit.toMillis(), TimeUnit.MILLISECONDS)) {
                return process.exitValue();
            }
            throw new VmException(124, "not done after " + limit.toSeconds() + " s; the guest hangs: vm-ctl restore" + consoleEnd());
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } finally {
            process.destroy();
        }
    }

    // Installing by hand.

    /** A CD with the phases for typing. setup.sh is phases 2 and 3, for a system whose network the installer may not have set up. */
    private Path provisioningDisc(Path phases) throws IOException {
        SortedMap<String, byte[]> files = new TreeMap<>(provisioning(privateDirectory(vm.file(".ssh")), vm.name(), "no"));
        for (String phase : PHASES) {
            files.put(phase.replaceAll("-.*", ".sh"), Files.readAllBytes(phases.resolve(phase)));
        }
        files.put("setup.sh", """
                #!/bin/sh
                # As root, after the installation and its reboot: mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh
                set -eu
                . /mnt/vm.conf
                grep -q '^ifconfig_vtnet0=' /etc/rc.conf || cat >>/etc/rc.conf <<CONF
                hostname="$VM_HOSTNAME"
                ifconfig_vtnet0="inet $VM_ADDRESS netmask $VM_NETMASK"
                defaultrouter="$VM_GATEWAY"
                CONF
                grep -q '^console=' /boot/loader.conf 2>/dev/null || echo 'console="comconsole"' >>/boot/loader.conf
                ifconfig vtnet0 inet "$VM_ADDRESS" netmask "$VM_NETMASK" up
                route add default "$VM_GATEWAY" 2>/dev/null || true
                echo "nameserver $VM_DNS" >/etc/resolv.conf
                PFI_POWEROFF=no sh /mnt/phase2.sh
                PFI_POWEROFF=no sh /mnt/phase3.sh
                """.getBytes(UTF_8));
        return writeIso(vm.file(".setup.iso"), files);
    }

    /** The directory of the phase scripts: as given, or the nearest one upwards. */
    private static Path phases(String given) {
        for (Path above = userPath(""); above != null; above = above.getParent()) {
            Path phases = given == null ? above.resolve("phases") : userPath(given);
            if (PHASES.stream().map(phases::resolve).allMatch(Files::isRegularFile)) {
                return phases;
            }
        }
        String where = given == null ? "in a phases/ here or above" : "in " + given;
        throw new VmException(69, "no " + String.join(", ", PHASES) + " " + where
                + ": copy it from where vm-ctl comes from, or name it with --phases or VM_PHASES");
    }

    // Small things.

    /** The VM that the options name. Disks name each other by absolute paths, so one disk must have one name: no symbolic links. */
    private void openVm() throws IOException {
        Path dir = vmDirectory(dirOption);
        Path there = dir;
        while (!Files.exists(there)) {
            there = there.getParent();
        }
        if (!Files.isDirectory(there) || !Files.isReadable(there)) {
            throw new VmException(69, there + " is no directory that you may read: choose another with --vm-dir or VM_DIR");
        }
        vm = new Vm(there.toRealPath().resolve(there.relativize(dir)).normalize(), nameOption);
    }

    /** Refuses a value that does not look like one, by the name of its setting. */
    private static void require(String setting, String value, String pattern, String expected) {
        if (!value.matches(pattern)) {
            throw new VmException(2, setting + ": '" + value + "' is not " + expected);
        }
    }

    private static void checkSnapshotName(String name) {
        require("the snapshot's name", name, "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_', '-'");
    }

    private static Duration duration(String text) {
        require("--timeout", text, "[1-9]\\d{0,6}[smh]", "a time such as 90s, 5m or 1h");
        return Duration.parse("PT" + text);
    }

    private static List<String> strings(JsonObject object, String key) {
        return object.getArray(key).stream().map(String.class::cast).toList();
    }

    private void say(String message) {
        spec.commandLine().getErr().println(message);
    }

    private void answer(String line) {
        spec.commandLine().getOut().println(line);
    }

    private static String seconds(long begun) {
        return String.format(Locale.ROOT, "%.1f s", (System.nanoTime() - begun) / 1e9);
    }

    private static void pause(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        }
    }

    private void confirm(String what, boolean yes) throws IOException {
        if (!yes && !isTerminal(0)) {
            throw new VmException(2, "this would " + what + ": say --yes if it should");
        } else if (!yes) {
            say("This will " + what + ". Type yes to go on:");
            if (!"yes".equals(new BufferedReader(new InputStreamReader(System.in, UTF_8)).readLine())) {
                throw new VmException(2, "not confirmed, nothing done");
            }
        }
    }

    private static List<Path> entries(Path directory) {
        try (Stream<Path> entries = Files.list(directory)) {
            return entries.sorted().toList();
        } catch (IOException none) {
            return List.of();
        }
    }

    private static void deleteTree(Path tree) throws IOException {
        try (Stream<Path> files = Files.walk(tree)) {
            for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                Files.delete(file);
            }
        }
    }

    private void followLog() throws IOException {
        Path log = vm.file(".console.log");
        if (!Files.exists(log)) {
            throw new VmException(3, vm.name() + " has not run yet; start it: vm-ctl start");
        }
        try (FileChannel channel = FileChannel.open(log)) {
            for (boolean runs = true; runs; pause(200)) {
                runs = running() != null;
                channel.position(channel.position() <= channel.size() ? channel.position() : 0); // else it was cut
                spec.commandLine().getOut().print(printable(new String(Channels.newInputStream(channel).readAllBytes(), UTF_8)));
                spec.commandLine().getOut().flush();
            }
        }
    }

    /** What stands in a text file from a position on, its end if that is too much; all of a file that was cut since. */
    private static String end(Path file, long from, int bytes) throws IOException {
        try (FileChannel channel = FileChannel.open(file)) {
            long start = Math.max(from <= channel.size() ? from : 0, channel.size() - bytes);
            return new String(Channels.newInputStream(channel.position(start)).readNBytes(bytes), UTF_8);
        } catch (NoSuchFileException none) {
            return "";
        }
    }

    private static String lastLines(Path file, int count) throws IOException {
        List<String> lines = printable(end(file, 0, 1 << 14)).lines().filter(line -> !line.isBlank()).toList();
        return String.join("\n", lines.subList(Math.max(0, lines.size() - count), lines.size()));
    }

    /** Without what a terminal would obey: a guest may print anything. */
    static String printable(String text) {
        return text.replaceAll("\\x1b\\[[0-9;?]*[ -/]*[@-~]|\\r", "").replaceAll("[\\p{Cntrl}\\x80-\\x9f&&[^\\n\\t]]", "?");
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

    // shared:iso
    /** Writes an ISO 9660 image. The guest's kernel takes Rock Ridge only if its ER field says RRIP_1991A: mkisofs compatibility. */
    static Path writeIso(Path iso, SortedMap<String, byte[]> files) throws IOException {
        Path part = iso.resolveSibling(iso.getFileName() + ".part");
        Files.deleteIfExists(part);
        Files.createFile(part, PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
        PrintStream stdout = System.out;
        System.setOut(new PrintStream(OutputStream.nullOutputStream(), false, UTF_8)); // the library talks
        try {
            ISO9660RootDirectory root = new ISO9660RootDirectory();
            for (Map.Entry<String, byte[]> file : files.entrySet()) {
                root.addFile(new ISO9660File(new ByteArrayDataReference(file.getValue()), file.getKey(), System.currentTimeMillis()));
            }
            ISO9660Config config = new ISO9660Config();
            config.setInterchangeLevel(2);
            config.setVolumeID("PFI");
            RockRidgeConfig rockRidge = new RockRidgeConfig();
            rockRidge.setMkisofsCompatibility(true);
            rockRidge.addModeForPattern(".*\\.sh", 0555);
            rockRidge.addModeForPattern("(?!.*\\.sh$).*", 0444);
            new CreateISO(new ISOImageFileHandler(part.toFile()), root).process(config, rockRidge, null, null);
        } catch (HandlerException | ConfigException failed) {
            throw new IOException("cannot write " + iso + ": " + failed.getMessage(), failed);
        } finally {
            System.setOut(stdout);
        }
        return Files.move(part, iso, StandardCopyOption.ATOMIC_MOVE);
    }
    // end shared:iso

    // shared:provisioning
    /** What a phase's disc tells the guest: who may log in, which host key to have, the addresses of QEMU's network. Made once. */
    Map<String, byte[]> provisioning(Path keys, String name, String dportsClone) throws IOException {
        for (String key : List.of("id_ed25519", "host_key")) {
            if (!Files.exists(keys.resolve(key)) || !Files.exists(keys.resolve(key + ".pub"))) {
                Files.deleteIfExists(keys.resolve("half"));
                Files.deleteIfExists(keys.resolve(key));
                run(Duration.ofMinutes(1), List.of("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name,
                        "-f", keys.resolve("half").toString()));
                Files.move(keys.resolve("half.pub"), keys.resolve(key + ".pub"), StandardCopyOption.REPLACE_EXISTING);
                Files.move(keys.resolve("half"), keys.resolve(key));
            }
        }
        if (!Files.exists(keys.resolve("root_password"))) {
            writeFile(keys.resolve("root_password"), new BigInteger(128, new SecureRandom()).toString(36) + "\n", "rw-------");
        }
        String[] hostKey = Files.readString(keys.resolve("host_key.pub")).split("\\s");
        writeFile(keys.resolve("known_hosts"), name + " " + hostKey[0] + " " + hostKey[1] + "\n", "rw-------");
        String conf = String.join("\n", "VM_HOSTNAME=" + name.replace('_', '-'), "VM_ADDRESS=10.0.2.15", "VM_NETMASK=255.255.255.0",
                "VM_GATEWAY=10.0.2.2", "VM_DNS=10.0.2.3", "VM_ROOT_PASSWORD=" + Files.readString(keys.resolve("root_password")).strip(),
                "VM_DPORTS_CLONE=" + dportsClone, "");
        return Map.of("authorized_keys", Files.readAllBytes(keys.resolve("id_ed25519.pub")), "vm.conf", conf.getBytes(UTF_8),
                "hostkey", Files.readAllBytes(keys.resolve("host_key")), "hostkey.pub", Files.readAllBytes(keys.resolve("host_key.pub")));
    }
    // end shared:provisioning

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

    // shared:processors
    /** How many processors the guest gets: as many as were asked for, else half the host's within 2-4, or 1 if emulated. */
    static int processors(Integer wanted, String accel) {
        int half = Math.max(2, Math.min(4, Runtime.getRuntime().availableProcessors() / 2));
        return wanted != null ? wanted : accel.equals("tcg") ? 1 : half;
    }

    /** QEMU's -accel. With a thread for each emulated processor, DragonFly hangs: its processors wait for each other. */
    static String accelArgument(String accel, int processors) {
        return accel.equals("tcg") && processors > 1 ? "tcg,thread=single" : accel;
    }

    /** What to try if an emulated guest hangs; empty if it has one processor. */
    static String hangAdvice(String accel, int processors) {
        return accel.equals("tcg") && processors > 1 ? "; an emulated DragonFly may hang with several processors: try --cpus 1" : "";
    }
    // end shared:processors

    // shared:banner
    /** Whether the guest's sshd answers. QEMU's network accepts a connection before the guest does, so only the first bytes tell. */
    static boolean hasBanner(int port, int millis) {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), millis);
            socket.setSoTimeout(millis);
            return new String(socket.getInputStream().readNBytes(8), UTF_8).equals("SSH-2.0-");
        } catch (IOException notYet) {
            return false;
        }
    }
    // end shared:banner

    // shared:panic
    private static final Pattern KERNEL_PANIC = Pattern.compile(
            "(panic: (?!.{0,500}panic: )|Fatal trap \\d).{0,500}(\\R.{0,500}){0,2}\\R" // bounded: a guest may print anything
            + "(cpuid = \\d|Trace beginning at frame |Debugger\\(\"panic\"\\))");

    /**
     * Where a console's text tells of a kernel panic, or -1. "panic: " may stand anywhere in a line ("login: panic: ..."),
     * and programs print it too (Go does). So it counts only if the kernel's next words follow within three lines.
     */
    static int kernelPanic(String console) {
        Matcher panic = KERNEL_PANIC.matcher(console);
        return panic.find() ? panic.start() : -1;
    }
    // end shared:panic

    // shared:terminal
    /** Whether a file descriptor is a terminal; System.console() means something else in every Java. */
    static boolean isTerminal(int descriptor) {
        try {
            return new ProcessBuilder("test", "-t", "" + descriptor).inheritIO().start().waitFor() == 0;
        } catch (IOException | InterruptedException unknown) {
            return false;
        }
    }
    // end shared:terminal

    // shared:failure
    /** An expected failure: one line that says what happened and what to do, and the exit code that goes with it. */
    static final class VmException extends RuntimeException {
        private static final long serialVersionUID = 1;
        final int exitCode;

        VmException(int exitCode, String message) {
            super(message);
            this.exitCode = exitCode;
        }
    }

    /** What a file system refused, in words: of some refusals Java tells the file alone. */
    static String reason(IOException refused) {
        return (refused instanceof AccessDeniedException ? "permission denied: "
                : refused instanceof FileAlreadyExistsException ? "a file is in the way: "
                : refused instanceof NoSuchFileException ? "no such file: " : "")
                + (refused.getMessage() == null ? refused.getClass().getSimpleName() : refused.getMessage());
    }
    // end shared:failure

    // shared:cli
    /** A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code. */
    static CommandLine commandLine(Object command, Settings settings) {
        CommandLine all = new CommandLine(command);
        List<String> help = new ArrayList<>(all.getHelpSectionKeys());
        Collections.rotate(help.subList(help.size() - 4, help.size()), 2); // the footer, which is examples, before the exit codes
        return all.setHelpSectionKeys(help).setExpandAtFiles(false).setCaseInsensitiveEnumValuesAllowed(true)
                .setDefaultValueProvider(arg -> settings.get(arg.descriptionKey()))
                .setExecutionStrategy(parsed -> {
                    checkValues(settings, parsed);
                    return new CommandLine.RunLast().execute(parsed);
                })
                .setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException || failure instanceof IOException)) {
                        throw failure; // a bug keeps its stack trace
                    }
                    line.getErr().println(line.getCommandSpec().root().name() + ": "
                            + (failure instanceof IOException refused ? reason(refused) : failure.getMessage()));
                    boolean full = String.valueOf(failure.getMessage()).contains("No space left");
                    return failure instanceof VmException expected ? expected.exitCode : full ? 1 : 69;
                }).setParameterExceptionHandler((failure, args) -> {
                    CommandLine line = failure.getCommandLine();
                    List<String> near = failure instanceof UnmatchedArgumentException unmatched ? unmatched.getSuggestions() : List.of();
                    line.getErr().println(line.getCommandSpec().root().name() + ": " + blame(settings, failure, args)
                            + (near.isEmpty() ? "" : " (did you mean " + String.join(" or ", near) + "?)")
                            + "; see: " + line.getCommandSpec().qualifiedName() + " --help");
                    return line.getCommandSpec().exitCodeOnInvalidInput();
                });
    }
    // end shared:cli

    // shared:settings
    /** What holds where no option is given: the environment, else the KEY=VALUE lines of vm.env. Empty means unset. */
    record Settings(Map<String, String> environment, Map<String, String> file, List<String> problems) {
        Settings(Map<String, String> environment, Map<String, String> file) {
            this(environment, file, List.of());
        }

        static Settings read(Map<String, String> environment, Path directory) {
            Settings settings = new Settings(environment, new HashMap<>(), new ArrayList<>());
            Path file = directory.resolve("vm.env");
            Pattern setting = Pattern.compile("\\s*(?:export\\s+)?(\\w+)\\s*=\\s*(['\"]?)(.*?)\\2\\s*|\\s*(?:#.*)?");
            try {
                String text = Files.exists(file) ? new String(Files.readAllBytes(file), UTF_8) : "";
                for (String line : text.replaceFirst("^\ufeff", "").lines().toList()) {
                    Matcher match = setting.matcher(line);
                    if (!match.matches()) {
                        settings.problems.add("vm.env: not KEY=VALUE: " + line);
                    } else if (match.group(1) != null) {
                        settings.file.put(match.group(1), match.group(3));
                    }
                }
            } catch (IOException unreadable) {
                settings.problems.add("vm.env cannot be read (" + reason(unreadable) + "): mend it, or move it away");
            }
            return settings;
        }

        /** The value of a setting, or null. */
        String get(String name) {
            String value = environment.getOrDefault(name, "").isEmpty() ? file.get(name) : environment.get(name);
            return value == null || value.isEmpty() ? null : value;
        }
    }
    // end shared:settings

    // shared:blame
    /** What a refused command line is told: a bad value that no argument gave is named by its variable. */
    static String blame(Settings settings, ParameterException failure, String... args) {
        if (!(failure.getArgSpec() instanceof OptionSpec option) || settings.get(option.descriptionKey()) == null
                || Arrays.stream(args).anyMatch(arg -> arg.startsWith(option.longestName()))) {
            return failure.getMessage();
        }
        boolean fromFile = settings.environment.getOrDefault(option.descriptionKey(), "").isEmpty();
        return option.descriptionKey() + (fromFile ? " in vm.env: " : " in the environment: ")
                + failure.getMessage().replace(option.longestName() + ": ", "");
    }
    // end shared:blame

    // shared:values
    /** What a setting must look like, and how to say so: the same in every script. */
    private static final Map<String, List<String>> VALUES = Map.ofEntries(
            Map.entry("DFLY_VERSION", List.of("[A-Za-z0-9_][A-Za-z0-9._-]{0,31}", "a version such as 6.4.2")),
            Map.entry("VM_DIR", List.of("(?s)(?!.*(%|\\$\\{)).*", "a path without % and ${, which ssh would replace")),
            Map.entry("VM_NAME", List.of("(?!.*-clean$)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}",
                    "a name of letters, digits, '.', '_' and '-', without '.' or '-' in front or -clean at the end")), // NAME-clean.qcow2
            Map.entry("VM_MEMORY", List.of("[1-9]\\d{0,6}[MG]", "a size such as 2G or 512M")),
            Map.entry("VM_DISK_SIZE", List.of("[1-9]\\d{0,6}[MGT]", "a size such as 40G")),
            Map.entry("VM_DPORTS_CLONE", List.of("yes|no", "yes or no")), Map.entry("VM_CPUS", List.of("[1-9]\\d?", "a processor count")),
            Map.entry("VM_ACCEL", List.of("auto|kvm|hvf|tcg", "auto, kvm, hvf or tcg")),
            Map.entry("VM_DISK_CACHE", List.of("writeback|none|unsafe", "writeback, none or unsafe")),
            Map.entry("VM_SSH_PORT", List.of("[1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]", "a port")),
            Map.entry("VM_QEMU_ARGS", List.of("(?s)('[^']*'|\"(\\\\.|[^\"\\\\])*\"|\\\\.|[^'\"\\\\])*", "words whose quotes are closed")),
            Map.entry("VM_TIME_LIMIT", List.of("[1-9]\\d{0,4}", "a number of minutes")));

    /** Refuses a value that does not look like one, wherever it came from, before anything is done with it. */
    private static void checkValues(Settings settings, ParseResult parsed) {
        List<CommandLine> lines = parsed.asCommandLineList();
        if (lines.stream().anyMatch(line -> line.isUsageHelpRequested() || line.isVersionHelpRequested())) {
            return;
        } else if (!settings.problems.isEmpty()) {
            throw new ParameterException(parsed.commandSpec().commandLine(), settings.problems.get(0));
        }
        for (CommandLine line : lines) {
            for (OptionSpec option : line.getCommandSpec().options()) {
                List<String> rule = VALUES.getOrDefault(String.valueOf(option.descriptionKey()), List.of("(?s).*"));
                Object value = option.getValue();
                if (value != null && !value.toString().matches(rule.get(0))) {
                    throw new ParameterException(line, option.longestName() + ": '" + value + "' is not " + rule.get(1), option, null);
                }
            }
        }
    }
    // end shared:values

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is the home directory, a relative one starts here. */
    static Path userPath(String value) {
        return Path.of(value.equals("~") || value.startsWith("~/") ? System.getProperty("user.home") + value.substring(1) : value)
                .toAbsolutePath().normalize();
    }
    // end shared:paths

    // shared:process
    /** The process that a pid file speaks of, if it still is that process: same host boot, same start time. */
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
            boolean gone = fields[0].equals("Z") && Integer.parseInt(fields[17]) <= 1; // other threads still hold ports and locks
            return gone ? -1 : Long.parseLong(fields[19]);
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
    // end shared:files

    // shared:directory
    /** VM_DIR. OpenSSH 9.9 expands % and ${ in Include lines and 9.2 does not, so such a path works in one of them only. */
    static Path vmDirectory(String value) {
        Path directory = userPath(value);
        if (directory.toString().contains("%") || directory.toString().contains("${")) {
            throw new VmException(2, "VM_DIR must not contain % or ${, which ssh may replace in its configuration: "
                    + directory + "; choose another directory with --vm-dir or VM_DIR");
        }
        return directory;
    }

    /** VM_DIR, made if missing, for its owner alone: keys and sockets lie in it. */
    static Path privateDirectory(Path directory) {
        try {
            Files.createDirectories(directory);
            return Files.setPosixFilePermissions(directory, PosixFilePermissions.fromString("rwx------"));
        } catch (IOException refused) {
            throw new VmException(69, "cannot write to " + directory + " (" + reason(refused)
                    + "): choose another directory with --vm-dir or VM_DIR");
        }
    }
    // end shared:directory

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
        Accelerator found = probe(qemu, Path.of("/dev/kvm"));
        writeFile(memory, JsonWriter.string().object().value("key", key).value("name", found.name())
                .value("reason", found.reason()).end().done(), "rw-------");
        return found;
    }
    // end shared:accel

    // shared:probe
    /** Believes a running guest, not the device node: a /dev/kvm that opens may still crawl (seen: 17 times slower than TCG). */
    Accelerator probe(String qemu, Path node) throws IOException {
        String virtual = System.getProperty("os.name").startsWith("Mac") ? "hvf" : "kvm";
        if (virtual.equals("kvm") && !Files.exists(node)) {
            return new Accelerator("tcg", "no " + node + ": virtualization is off in the firmware, or the kvm module is not loaded");
        } else if (virtual.equals("kvm") && !(Files.isReadable(node) && Files.isWritable(node))) {
            return new Accelerator("tcg", "no permission for " + node + ": join its group (sudo usermod -aG kvm $USER) and log in again");
        }
        long emulated = bootSectorMillis(qemu, "tcg", Duration.ofSeconds(10));
        for (int attempt = 1; attempt <= 2; attempt++) { // a busy machine may slow one down, hardly two
            long limit = 3 * Math.max(emulated, 100);
            long millis = bootSectorMillis(qemu, virtual, Duration.ofMillis(limit + 1000));
            if (millis >= 0 && millis <= limit) {
                return new Accelerator(virtual, "a probe ran in " + millis + " ms (" + emulated + " ms emulated)");
            }
        }
        return new Accelerator("tcg", virtual + " is there but a probe guest failed or crawled in it (emulated: " + emulated + " ms)");
    }
    // end shared:probe

    // shared:bootsector
    /** Milliseconds until a 512-byte guest has written 0x10 to the debug port, which ends QEMU with status 33; -1 if it does not. */
    private long bootSectorMillis(String qemu, String accelerator, Duration limit) throws IOException {
        byte[] code = {(byte) 0xb0, 0x10, (byte) 0xe6, (byte) 0xf4, (byte) 0xeb, (byte) 0xfe}; // mov al,0x10; out 0xf4,al; jmp $
        byte[] sector = Arrays.copyOf(code, 512);
        sector[510] = 0x55;
        sector[511] = (byte) 0xaa;
        Path image = Files.write(Files.createTempFile("vm-probe", ".img"), sector);
        try {
            long start = System.nanoTime();
            int status = run(limit, List.of(qemu, "-machine", "pc", "-accel", accelerator, "-m", "16", "-nodefaults",
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
