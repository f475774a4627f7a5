///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Install DragonFlyBSD into a VM with zero interaction, in three phases
//JAVA 17+
//RUNTIME_OPTIONS -XX:TieredStopAtLevel=1 // starts faster (jbang: 0.76 s, 0.81 s without); it mostly waits
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.grack:nanojson:1.10
//DEPS com.github.stephenc.java-iso-tools:iso9660-writer:2.1.0
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec logs; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static picocli.CommandLine.ScopeType.INHERIT;

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
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.math.BigInteger;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.SocketChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.SecureRandom;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
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
import picocli.CommandLine.ParseResult;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Installs DragonFlyBSD into a VM, unattended.
 *
 * <ol>
 * <li>Finds the installer ISO and the three phase scripts, makes the VM's keys, and finds the first phase whose inputs
 *     changed since it was done.
 * <li>For each phase from there on: writes a CD with the script (the guest's rc.d/pfi runs it at boot), boots the
 *     installer (phase 1) or the disk, watches the serial console, and makes the disk read-only once the script has
 *     reported DONE and the guest has powered off.
 * <li>Flattens the last disk, boots it once through a throw-away overlay, asks it over ssh for its tools' versions, and
 *     moves it into place as the clean disk.
 * </ol>
 *
 * <p>{@code by-hand} lets a person install at the console instead, on {@code <name>.install/by-hand.qcow2}. That disk
 * is checked and moved into place in the same way.
 *
 * <p>Reads in VM_DIR: {@code dfly-<version>.iso}, {@code accel.json}, the lock on {@code <name>.qemu-pid}, every VM's
 * {@code <name>.snapshots/clean/snapshot.json}, and {@code ssh_config}. Writes {@code <name>.install/}, {@code
 * <name>.ssh/} and, under {@code <name>.lock}, {@code <name>-clean.qcow2}; removes {@code <name>.qcow2}, {@code
 * <name>.disks/} and {@code <name>.snapshots/} of an older installation. What is not finished is called {@code .part}:
 * a kill -9 leaves nothing that the next run trips on.
 */
@Command(name = "vm-auto-install", scope = INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120,
        abbreviateSynopsis = true, sortOptions = false, parameterListHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        description = {"Install DragonFlyBSD into a VM with zero interaction, in three phases", "",
            "It begins at the first phase whose script, settings or inputs changed since that phase was done, and so "
                + "resumes an interrupted installation. It reads VM_DIR/dfly-VERSION.iso, which vm-setup "
                + "fetches, and the scripts in phases/; it writes VM_DIR/NAME-clean.qcow2, the disk that vm-ctl start "
                + "builds on, and keeps each phase's disk and console log in VM_DIR/NAME.install/. The path of the "
                + "new disk is printed. An installation needs the network, so VM_NET does not apply to it. The first "
                + "that is set counts: option, environment, vm.env (KEY=VALUE lines) in the working directory, "
                + "~/.go-synth/vm.env."},
        footer = {"  vm-auto-install                         install, or resume an interrupted installation",
            "  vm-auto-install --from 3 --yes          phase 3 again, and replace the VM",
            "  vm-auto-install --to 2                  prepare the disk of phase 2, and leave the VM as it is",
            "  vm-auto-install --vm-name big --disk-size 60G --memory 8G"},
        exitCodeList = {"0:done, or nothing to do", "1:a phase failed, or the disk is full",
            "2:wrong usage, or refused because --yes was missing", "3:the VM is not running (provision)",
            "69:something needed is not available (ISO, QEMU, phase scripts, the lock), or the VM runs",
            "124:a time limit", "130, 143:interrupted"})
final class VmAutoInstall implements Callable<Integer> {
    static final List<String> SCRIPTS = List.of("phase1-install.sh", "phase2-update.sh", "phase3-provision.sh");
    private static final int LAST = SCRIPTS.size();
    /** An input of phase 1. Of the ISO its beginning counts, where ISO 9660 has its size and its date. */
    private static final String ISO = "the installer ISO";

    @Spec
    CommandSpec spec;

    private static volatile boolean interrupted;
    private final CountDownLatch done = new CountDownLatch(1);

    @Option(names = "--from", paramLabel = "PHASE", converter = PhaseNumber.class,
            description = "Begin at this phase; those before it are taken as they are (default: the first that "
                    + "changed).")
    Integer from;

    @Option(names = "--to", paramLabel = "PHASE", converter = PhaseNumber.class,
            description = "End after this phase (default: ${DEFAULT-VALUE}); only phase 3 changes the VM.")
    int to = LAST;

    @Option(names = "--force", description = "Do all phases again.")
    boolean force;

    @Option(names = "--yes", description = "Replace an installed VM, its disk and its snapshots, without asking.")
    boolean yes;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = INHERIT,
            paramLabel = "DIR",
            description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    String vmDir;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm",
            converter = FileName.class, scope = INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String vmName;

    @Mixin
    MachineOptions machine;

    @Mixin
    PhasesOption phases;

    @Mixin
    DportsOption dports;

    @Mixin
    LimitOption limit;

    @Option(names = "-v", scope = INHERIT, defaultValue = "false", description = "Echo every external command.")
    static boolean verbose;

    /** What is installed, and on which hardware. */
    static final class MachineOptions {
        @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2",
                converter = FileName.class,
                paramLabel = "VERSION", description = "Which installer (DFLY_VERSION; default: ${DEFAULT-VALUE}).")
        String version;

        @Option(names = "--image", descriptionKey = "VM_IMAGE", paramLabel = "FILE",
                description = "A local installer ISO instead (VM_IMAGE; default: VM_DIR/dfly-VERSION.iso).")
        String image;

        @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE",
                converter = Size.class, defaultValue = "40G", paramLabel = "SIZE",
                description = "The blank disk's size (VM_DISK_SIZE; default: ${DEFAULT-VALUE}, sparse).")
        String diskSize;

        @Option(names = "--memory", descriptionKey = "VM_MEMORY",
                converter = Size.class, paramLabel = "SIZE",
                description = "As 2G or 512M (VM_MEMORY; default: a quarter of the host's within 2G-8G).")
        String memory;

        @Option(names = "--cpus", descriptionKey = "VM_CPUS",
                converter = Cpus.class, paramLabel = "N",
                description = "Processors (VM_CPUS; default: half the host's within 2-4, emulated 1).")
        String cpus;

        @Option(names = "--accel", descriptionKey = "VM_ACCEL",
                converter = AccelName.class, defaultValue = "auto", paramLabel = "NAME",
                description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}: what vm-setup found to "
                        + "work).")
        String accel;

        @Option(names = "--setup-cmd", descriptionKey = "VM_SETUP_CMD", paramLabel = "CMD",
                description = "How to run vm-setup, for the accelerator (VM_SETUP_CMD; default: VmSetup beside this "
                        + "script's jar, else VmSetup.java here or above, outside the project).")
        String setupCommand;

        @Option(names = "--cpu", descriptionKey = "VM_CPU", paramLabel = "MODEL", description = "QEMU's CPU model "
                + "(VM_CPU; default: kvm Broadwell-v4,+hypervisor,pmu=off, hvf host, tcg qemu64).")
        String cpu;

        @Option(names = "--qemu-args", descriptionKey = "VM_QEMU_ARGS", defaultValue = "", paramLabel = "ARGS",
                converter = Words.class,
                description = "Appended to QEMU's arguments, split like a shell does (VM_QEMU_ARGS; default: none).")
        String qemuArgs;
    }

    /** Where the phase scripts are. */
    static final class PhasesOption {
        @Option(names = "--phases", descriptionKey = "VM_PHASES", paramLabel = "DIR",
                description = "The phase scripts (VM_PHASES; default: the nearest phases/ upwards that is yours).")
        String directory;
    }

    /** What a phase's CD tells phase 3. */
    static final class DportsOption {
        @Option(names = "--dports-clone", descriptionKey = "VM_DPORTS_CLONE", defaultValue = "no",
                fallbackValue = "yes", arity = "0..1", paramLabel = "yes|no", converter = YesOrNo.class,
                description = "Whether phase 3 clones DPorts into /usr/dports (VM_DPORTS_CLONE; default: "
                        + "${DEFAULT-VALUE}).")
        String clone;
    }

    /** How long a guest may take. */
    static final class LimitOption {
        @Option(names = "--time-limit", descriptionKey = "VM_TIME_LIMIT", paramLabel = "TIME",
                converter = TimeLimit.class,
                description = "The limit for each phase and for provision, as 90m or 2h. A phase whose console is "
                        + "silent for a sixth of it is ended, too (VM_TIME_LIMIT; default: 60m, emulated and for "
                        + "provision 4h).")
        Duration time;

        Duration with(String accel) {
            return time != null ? time : Duration.ofHours(accel.matches("kvm|hvf") ? 1 : 4);
        }
    }

    public static void main(String... args) {
        writeUtf8();
        exit("vm-auto-install", commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(readSettings(System.getenv(), Path.of("")));
    }

    static CommandLine commandLine(Settings settings) {
        return commandLine(new VmAutoInstall(), settings);
    }

    @Override
    public Integer call() throws Exception {
        if (from != null && from > to) {
            throw new VmException(2, "--from " + from + " --to " + to + ": the last phase comes before the first");
        }
        VmFiles files = files(machine);
        List<Path> scripts = findScripts(phases);
        Path iso = installer(files, machine);
        return locked(files, "vm-auto-install", () -> {
            List<Phase> all = phases(files, scripts, iso);
            Start start = chooseStart(files, all);
            if (start == null) {
                return files.clean();
            } else if (to == LAST) {
                confirmReplacing(files, yes);
            }
            Job job = job(files, machine, limit);
            for (Phase phase : all.subList(Math.min(start.phase - 1, to), to)) {
                Path cd = PhaseDisc.write(files.install("phase" + phase.number + ".iso"), phase.disc);
                job.runPhase(phase, iso, cd);
            }
            return to < LAST ? files.disk(to) : job.replaceCleanDisk(job.flatten(), Purpose.CHECK, iso);
        });
    }

    /** Says where the installation begins, and why; null if the VM is installed, and from the same inputs. */
    private Start chooseStart(VmFiles files, List<Phase> all) throws IOException {
        Installation installation = new Installation(files);
        Start changed = installation.firstChange(all, Installation.VM);
        if (changed.phase > LAST && !force && from == null && to == LAST) {
            say(vmName + " is installed, and nothing it was made from has changed; to install it again: "
                    + withOption("--force"));
            return null;
        }
        Start start = force ? new Start(1, "--force") : from != null ? new Start(from, "--from")
                : installation.firstChange(all, Installation.DISKS);
        if (Files.exists(files.clean()) && !changed.equals(start) && changed.phase <= LAST) {
            say("the installed VM is not what these phases make now (phase " + changed.phase + ": " + changed.why
                    + ")");
        }
        say(start.phase > to ? "phases 1 to " + to + " are done" : "beginning at phase " + start.phase + ": "
                + start.why);
        return start;
    }

    @Command(name = "by-hand", description = {"Install by hand, with the serial console on this terminal", "",
        "Boots the installer with a blank disk and a CD with the phase scripts, and prints what to type. If the disk "
            + "can boot already, it is booted. When the guest powers off, the disk is checked: if it is provisioned, "
            + "it becomes the VM's disk. Otherwise it stays in VM_DIR/NAME.install/by-hand.qcow2, and the same command "
            + "continues with it; vm-setup disk makes it blank again. Ctrl-] shuts the guest down, a second Ctrl-] "
            + "kills it. The screen is VNC on a unix socket."},
            footer = {"  vm-auto-install by-hand", "  vm-auto-install by-hand --vm-name mine --disk-size 60G"})
    int byHand(@Mixin MachineOptions machine, @Mixin PhasesOption phases, @Mixin DportsOption dports,
            @Mixin LimitOption limit, @Option(names = "--yes", description = "Replace an installed VM, its disk and "
            + "its snapshots, without asking.") boolean yes) throws Exception {
        VmFiles files = files(machine);
        List<Path> scripts = findScripts(phases);
        Path iso = installer(files, machine);
        return locked(files, "vm-auto-install by-hand", () -> {
            confirmReplacing(files, yes);
            Job job = job(files, machine, limit);
            Path disk = files.install("by-hand.qcow2");
            if (!Files.exists(disk)) {
                Disk.create(files, "by-hand.qcow2", machine.diskSize, null);
            }
            Disk.checkPlain(files, disk);
            Path cd = PhaseDisc.write(files.install("by-hand.iso"),
                    PhaseDisc.forHand(scripts, Credentials.files(files, dports.clone)));
            try (InstallGuest guest = new InstallGuest(job, Purpose.BY_HAND, disk, List.of(iso, cd, iso), 0)) {
                say(String.format(BY_HAND_HELP, files.install("by-hand.vnc"), files.key("root_password")));
                guest.attach(disk + " is kept. To continue: " + job.goOn);
            }
            Disk.checkPlain(files, disk); // once more, after QEMU had it
            return job.replaceCleanDisk(disk, Purpose.CHECK_BY_HAND, iso);
        });
    }

    private static final String BY_HAND_HELP = """
            This terminal is the guest's serial console. Ctrl-] shuts the guest down; a second Ctrl-] kills it.
            Its screen is VNC on the unix socket %s

            To install: press 9 at the boot menu, type "set console=comconsole", then "boot", and log in as root.
            Install to da0 as you like, or type this, which powers off in the end:

              mount_cd9660 /dev/cd1 /mnt && sh /mnt/phase1.sh

            Then the check of the disk fails, as the system is not provisioned yet. Run the same command again: it boots
            the disk. Log in as root (phase 1 sets the password in %s)
            and type this, which provisions the system and powers off:

              mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh
            """;

    @Command(name = "make-iso", description = {"Write the CD of a phase, as the guest's rc.d/pfi looks for it", "",
        "It holds pfi.conf, the script as phaseN.sh or script.sh, and the files of DATA_DIR. Only its owner may read "
            + "it. Its path is printed."}, footer = "  vm-auto-install make-iso phases/phase1-install.sh p1.iso")
    int makeIso(@Mixin DportsOption dports,
            @Parameters(paramLabel = "SCRIPT", description = "A sh script.") Path script,
            @Parameters(paramLabel = "OUT", description = "The ISO to write.") Path out,
            @Parameters(paramLabel = "DATA_DIR", arity = "0..1", description = "A directory of plain files (default: "
                    + "this VM's own keys, root password and vm.conf).") Path data) throws Exception {
        // before anything is made: a refused CD leaves nothing
        SortedMap<String, byte[]> disc = PhaseDisc.of(script, data == null ? Map.of() : PhaseDisc.filesIn(data));
        VmFiles files = files(null);
        Path iso = out.toAbsolutePath().normalize();
        boolean swept = iso.startsWith(files.install("")); // every command removes the CDs there
        if (swept || Files.isDirectory(iso) || !Files.isWritable(iso.getParent())) {
            throw new VmException(2, "cannot write the CD to " + iso + ": name a file in a writable directory, not in "
                    + files.install(""));
        }
        return locked(files, "vm-auto-install make-iso", () -> {
            disc.putAll(data == null ? Credentials.files(files, dports.clone) : Map.of());
            return PhaseDisc.write(iso, disc);
        });
    }

    @Command(name = "run-phase", description = {"Run one phase from a CD that make-iso wrote", "",
        "Phase 1 boots the installer with a blank disk, a later one the disk of the phase before. The new disk is "
            + "kept, and its path printed: vm-auto-install --from N+1 goes on from it."},
            footer = {"  vm-auto-install run-phase 1 p1.iso", "  vm-auto-install run-phase 1 p1.iso --dry-run"})
    int runPhase(@Mixin MachineOptions machine, @Mixin LimitOption limit,
            @Parameters(paramLabel = "N", converter = PhaseNumber.class, description = "1, 2 or 3.") int number,
            @Parameters(paramLabel = "ISO", description = "The phase's CD.") Path disc,
            @Option(names = "--dry-run", description = "Print what would be run, shell-quoted, and do nothing.")
            boolean dryRun) throws Exception {
        VmFiles files = files(machine);
        Path iso = number == 1 ? installer(files, machine) : null;
        Path cd = PhaseDisc.require(disc.toAbsolutePath(), "the phase's CD " + disc
                + " is missing: write it with vm-auto-install make-iso");
        if (dryRun) {
            Path part = files.install("phase" + number + ".part");
            chooseAccelerator(files, machine, true);
            answer(shellQuoted(Disk.createCommand(part, machine.diskSize, files.disk(number - 1))));
            answer(shellQuoted(Qemu.command(machine, vmName + "-phase" + number, part, Job.cds(number, iso, cd),
                    files.install("qmp"), 0, false)));
            return 0;
        }
        SortedMap<String, String> inputs = new TreeMap<>(Map.of("the CD of run-phase", cd.toString()));
        return locked(files, "vm-auto-install run-phase " + number, () ->
                job(files, machine, limit).runPhase(new Phase(number, null, inputs), iso, cd));
    }

    @Command(name = "provision", description = {"Do phase 3's work again, over ssh, in the running VM", "",
        "After a change to phase3-provision.sh, instead of another installation. The VM must not be offline. "
            + "vm-ctl snapshot clean then keeps the result as the clean state."},
            footer = {"  vm-auto-install provision",
                "  vm-ctl restore && vm-ctl start && vm-auto-install provision && vm-ctl snapshot clean --yes"})
    int provision(@Mixin PhasesOption phases, @Mixin DportsOption dports, @Mixin LimitOption limit) throws Exception {
        VmFiles files = files(null);
        Path script = findScripts(phases).get(LAST - 1);
        if (!isRunning(files.file(".qemu-pid"))) {
            throw notRunning(files.dir, vmName);
        }
        return locked(files, "vm-auto-install provision", () -> {
            Installation installation = new Installation(files);
            Phase phase = Phase.of(LAST, script, Credentials.files(files, dports.clone), dports.clone);
            Provisioning.run(files, limit.with("auto"), phase.disc, this::say);
            installation.provisioned(phase);
            say("provisioned; to keep it as the clean state: vm-ctl snapshot clean --yes");
            return null;
        });
    }

    @Command(name = "clean-phases", description = {
        "Delete the unfinished files of a killed run; with --disks the phase disks too", "",
        "The VM needs none of them. After --disks the next installation begins at phase 1, even if only phase 3 "
            + "has changed."},
            footer = "  vm-auto-install clean-phases --disks")
    int cleanPhases(@Option(names = "--disks", description = "The phases' disks too.") boolean disks) throws Exception {
        VmFiles files = files(null);
        return !Files.exists(files.install("")) ? 0 : locked(files, "vm-auto-install clean-phases", () -> {
            if (disks) {
                new Installation(files).forget(1);
            }
            return null;
        });
    }

    // What the commands share.

    /** The files of the VM. 2 if an option of the installation stands before another command, which would ignore it. */
    private VmFiles files(MachineOptions machine) {
        ParseResult parsed = spec.commandLine().getParseResult();
        for (OptionSpec option : parsed.hasSubcommand() ? parsed.matchedOptions() : List.<OptionSpec>of()) {
            if (option.scopeType() != INHERIT) {
                throw new VmException(2, option.longestName() + " belongs after "
                        + parsed.subcommand().commandSpec().name());
            }
        }
        if (machine != null) {
            checkHardware(spec, machine.memory, machine.cpus);
        }
        return new VmFiles(vmDirectory(userPath(vmDir)), vmName);
    }

    /** The phase scripts: in the directory that the user names, or make, else in the nearest phases/ of this user. */
    private List<Path> findScripts(PhasesOption option) throws IOException {
        String named = option.directory != null ? option.directory : System.getProperty("vm.phases");
        Path directory = named == null ? nearestPhases(userPath("")) : userPath(named);
        List<Path> scripts = SCRIPTS.stream().map(directory::resolve).toList();
        if (!scripts.stream().allMatch(Files::isRegularFile)) {
            throw new VmException(69, (option.directory == null ? "" : originOf(spec, "--phases") + ": ") + directory
                    + " does not hold all of " + String.join(", ", SCRIPTS));
        }
        say("phases: " + directory);
        return scripts;
    }

    /**
     * The nearest phases/ upwards that only this user can change. Others are skipped: anybody can make a /tmp/phases,
     * and its scripts would run in the new guest and see its keys.
     */
    static Path nearestPhases(Path directory) throws IOException {
        String another = "";
        for (Path above = directory; above != null; above = above.getParent()) {
            Path phases = above.resolve("phases");
            if (SCRIPTS.stream().map(phases::resolve)
                    .allMatch(script -> Files.isRegularFile(script, LinkOption.NOFOLLOW_LINKS))) {
                boolean own = isOwn(phases.toRealPath());
                for (String script : SCRIPTS) {
                    own &= isOwn(phases.resolve(script));
                }
                if (own) {
                    return phases.toRealPath();
                }
                another = " (not " + phases + ", because other users own it or can write to it)";
            }
        }
        throw new VmException(69, "no phases/ with " + String.join(", ", SCRIPTS) + " here or above" + another
                + ": copy it from where vm-auto-install comes from, or name it with --phases or VM_PHASES");
    }

    private Path installer(VmFiles files, MachineOptions machine) throws IOException {
        // vm-setup unpacks a .bz2 that VM_IMAGE names
        boolean fetched = machine.image == null || machine.image.endsWith(".bz2");
        Path iso = fetched ? files.dir.resolve("dfly-" + machine.version + ".iso") : userPath(machine.image);
        return PhaseDisc.require(iso, fetched ? "the installer ISO " + iso + " is missing: run vm-setup"
                : originOf(spec, "--image") + ": there is no file " + iso);
    }

    /** All phases of an installation. */
    private List<Phase> phases(VmFiles files, List<Path> scripts, Path iso) throws Exception {
        SortedMap<String, byte[]> data = Credentials.files(files, dports.clone);
        List<Phase> phases = new ArrayList<>();
        for (Path script : scripts) {
            phases.add(Phase.of(phases.size() + 1, script, data, dports.clone));
        }
        phases.get(0).inputs.putAll(Map.of("DFLY_VERSION", machine.version, "VM_DISK_SIZE", machine.diskSize,
                ISO, startOf(iso)));
        return phases;
    }

    /**
     * Runs a command that changes this VM under its lock, and prints its answer, if any. Unfinished files in
     * NAME.install are deleted before and after it.
     */
    private int locked(VmFiles files, String command, Callable<Path> work) throws Exception {
        privateDirectory(files.dir);
        FileChannel lock = lock(files.file(".lock"), command);
        try (lock) {
            privateDirectory(files.install(""));
            try {
                files.removeUnfinished();
                Path answer = work.call();
                if (answer != null) {
                    answer(answer.toString());
                }
                return 0;
            } finally {
                files.removeUnfinished();
            }
        } finally {
            done.countDown();
        }
    }

    /** Asks before anything is replaced that a person may still want. A clone needs this VM's disks: refused. */
    private static void confirmReplacing(VmFiles files, boolean yes) throws IOException {
        if (isRunning(files.file(".qemu-pid"))) {
            throw new VmException(69, "VM " + files.name + " is running; stop it first: vm-ctl stop");
        }
        List<String> replaced = List.of("-clean.qcow2", ".qcow2", ".disks", ".snapshots");
        if (replaced.stream().noneMatch(suffix -> Files.exists(files.file(suffix)))) {
            return;
        }
        List<String> clones = files.clones();
        if (!clones.isEmpty()) {
            throw new VmException(69, "another installation would destroy the disks of these clones of " + files.name
                    + ": " + String.join(", ", clones)
                    + "; destroy them first, each with vm-ctl destroy --vm-name CLONE");
        }
        confirm("replace VM " + files.name + " and delete its disks and snapshots", yes);
    }

    /** Turns "auto" into the accelerator that it stands for. In a dry run nothing is measured. */
    private void chooseAccelerator(VmFiles files, MachineOptions machine, boolean dryRun) throws IOException {
        String project = ((Settings) spec.commandLine().getDefaultValueProvider()).values.get("VM_PROJECT");
        List<String> setup = dryRun ? null : sibling(machine.setupCommand, "VmSetup", userPath(""),
                userPath(project == null ? "" : project));
        Accelerator found = accelerator(machine.accel, files.dir, machine.accel.equals("auto") ? Qemu.version() : "",
                setup, Path.of("/dev/kvm"));
        say("accelerator: " + found.name() + " (" + found.reason() + ")");
        machine.accel = found.name();
    }

    /** What runs guests. A signal that ends this process is delayed until they have ended and their files are gone. */
    private Job job(VmFiles files, MachineOptions machine, LimitOption limit) throws IOException {
        chooseAccelerator(files, machine, false);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            interrupted = done.getCount() > 0;
            try {
                done.await(10, TimeUnit.SECONDS); // it takes less than one
            } catch (InterruptedException enough) {
                // then they stay
            }
        }));
        return new Job(files, new Installation(files), machine, limit.with(machine.accel), goOn(), this::say);
    }

    /** How to go on after a failure: this command as it was typed, or its make target. */
    private String goOn() {
        String make = System.getProperty("vm.make");
        return make != null ? make.replaceFirst(" \\w+=$", ", with the same variables")
                : withoutRestart("vm-auto-install "
                + shellQuoted(spec.root().commandLine().getParseResult().originalArgs()));
    }

    /** A command line without --force and --from, which would do again what is done. */
    static String withoutRestart(String line) {
        return line.replaceAll("(?<=['= ])--(force|from[= ]\\d)( |(?='|$))", "").replaceFirst(" +(ARGS=('')?)?$", "");
    }

    private void answer(String text) {
        spec.commandLine().getOut().println(text);
    }

    private void say(String text) {
        spec.commandLine().getErr().println(printable(text));
    }

    // Parts, from the top down.

    /** One run: makes the disks of phases and, from the last one, the clean disk. */
    record Job(VmFiles files, Installation installation, MachineOptions machine, Duration limit, String goOn,
            Consumer<String> say) {
        /** Runs a phase. If it succeeds, its old disk and the later ones are deleted, and the new disk is recorded. */
        Path runPhase(Phase phase, Path iso, Path cd) throws Exception {
            int n = phase.number;
            if (n > 1 && installation.inputs(Installation.DISKS, n - 1).isEmpty()) {
                throw new VmException(69, "phase " + n + " needs the disk of phase " + (n - 1)
                        + ": let vm-auto-install make it first");
            }
            long started = System.nanoTime();
            Path part = Disk.create(files, "phase" + n + ".part", machine.diskSize, files.disk(n - 1));
            try (InstallGuest guest = new InstallGuest(this, Purpose.phase(n), part, cds(n, iso, cd), 0)) {
                guest.follow();
            }
            installation.finish(phase, part);
            say.accept("phase " + n + " done in " + text(Duration.ofNanos(System.nanoTime() - started)));
            return files.disk(n);
        }

        /**
         * The drives of a phase. The installer's root is cd0; pfi looks at cd0 and cd1; phase 1 copies from cd2, the
         * same ISO without memory disks over it.
         */
        static List<Path> cds(int phase, Path iso, Path cd) {
            return phase == 1 ? List.of(iso, cd, iso) : List.of(cd);
        }

        /** The last phase's disk without the disks that it builds on. */
        Path flatten() throws IOException {
            Path flat = files.install("clean.part");
            say.accept("flattening the disk");
            Disk.checkChain(files, files.disk(LAST));
            Disk.qemuImg(List.of("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", files.disk(LAST).toString(),
                    flat.toString()));
            return flat;
        }

        /** Checks a disk, then moves it into place as the clean disk, and records what it was made from. */
        Path replaceCleanDisk(Path disk, Purpose check, Path iso) throws Exception {
            String start = check == Purpose.CHECK ? installation.inputs(Installation.DISKS, 1).get(ISO) : null;
            String sum = start != null && start.equals(startOf(iso)) ? sha256(iso) : null; // else it is another ISO
            JsonObject versions = check(disk, check);
            installation.place(disk, check == Purpose.CHECK, object("version", machine.version, "iso", iso.toString(),
                    "isoSha256", sum, "versions", versions, "accelerator", machine.accel,
                    "qemu", Qemu.version(), "finished", Instant.now().toString()));
            say.accept(files.name + " is installed: " + versions.getString("uname") + ", " + versions.getString("go")
                    + "; start it: vm-ctl start");
            return files.clean();
        }

        /** Boots a disk through a throw-away overlay and asks it over ssh for its tools' versions. */
        private JsonObject check(Path disk, Purpose purpose) throws Exception {
            say.accept("booting it once, to see that it answers");
            Path overlay = Disk.create(files, "verify.part", "", disk);
            int port;
            try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
                port = free.getLocalPort();
            }
            try (InstallGuest guest = new InstallGuest(this, purpose, overlay, List.of(), port)) {
                guest.follow();
                try {
                    return Provisioning.versions(files, port, limit.dividedBy(4));
                } catch (VmException failed) {
                    throw guest.report(failed);
                }
            }
        }
    }

    /** A phase, the files of its CD (null if that was made elsewhere), and what its result depends on. */
    record Phase(int number, SortedMap<String, byte[]> disc, SortedMap<String, String> inputs) {
        static Phase of(int number, Path script, SortedMap<String, byte[]> data, String dportsClone) throws Exception {
            SortedMap<String, String> inputs = new TreeMap<>(Map.of("its script", sha256(Files.readAllBytes(script))));
            if (number == LAST) {
                inputs.put("VM_DPORTS_CLONE", dportsClone);
                for (String file : data.keySet()) {
                    inputs.put(file, sha256(data.get(file)));
                }
            }
            return new Phase(number, PhaseDisc.of(script, data), inputs);
        }
    }

    /** Where to begin, and why. */
    record Start(int phase, String why) {}

    /**
     * Records from what each disk was made, to find the phase to begin with. A phase has a disk, phaseN.qcow2, and a
     * text file of its inputs, phaseN.inputs. Those of the installed VM are in installedN.inputs, and install.json says
     * for people what was installed. provision writes provisionedN.inputs, which count once the snapshot clean was
     * taken after it.
     */
    static final class Installation {
        static final String DISKS = "phase";
        static final String VM = "installed";
        private static final String PROVISIONED = "provisioned";
        private static final String FINISHED = "finished";
        private final VmFiles files;
        private final Path description;

        Installation(VmFiles files) throws IOException {
            this.files = files;
            description = files.install("install.json");
            if (Files.exists(description) && Files.readString(description).contains("\"phases\"")) {
                throw new VmException(69, description + " is of an earlier version, which recorded the phases in it. "
                        + "The VM can be used as before. To install it again, remove this file first");
            }
        }

        /** What a phase's disk, or the installed VM's part of it, was made from; empty if it is not there. */
        Map<String, String> inputs(String of, int phase) throws IOException {
            acceptProvisioned();
            return Files.exists(of.equals(VM) ? files.clean() : files.disk(phase)) ? read(record(of, phase)) : Map.of();
        }

        private static Map<String, String> read(Path record) throws IOException {
            Map<String, String> inputs = new TreeMap<>();
            for (String line : Files.exists(record) ? Files.readAllLines(record) : List.<String>of()) {
                String[] pair = line.split("=", 2);
                inputs.put(pair[0], pair[pair.length - 1]);
            }
            return inputs;
        }

        /** The first phase that was not made from these inputs, and why. If all were: one past the last, and "". */
        Start firstChange(List<Phase> phases, String of) throws IOException {
            for (Phase phase : phases) {
                Map<String, String> before = inputs(of, phase.number);
                Set<String> changed = new TreeSet<>(phase.inputs.keySet());
                changed.addAll(before.keySet());
                changed.removeIf(name -> Objects.equals(phase.inputs.get(name), before.get(name)));
                if (!changed.isEmpty()) {
                    return new Start(phase.number, before.isEmpty() ? "it was not done yet" : "changed since: "
                            + changed.stream().map(name -> describe(name, before.get(name), phase.inputs.get(name)))
                            .collect(Collectors.joining(", ")));
                }
            }
            return new Start(phases.size() + 1, "");
        }

        /** The name of an input; of a setting the values, too. */
        private static String describe(String name, String before, String now) {
            boolean setting = name.matches("[A-Z_]+") && before != null && now != null;
            return setting ? name + " (" + before + " -> " + now + ")" : name;
        }

        /** Gives a phase's disk its name, and records what it was made from. */
        void finish(Phase phase, Path part) throws IOException {
            forget(phase.number);
            Disk.finish(part, files.disk(phase.number));
            write(DISKS, phase.number, phase.inputs);
        }

        /** Removes the disks from this phase on, first what is known of them. */
        void forget(int phase) throws IOException {
            files.remove("phase[" + phase + "-9]\\.inputs");
            files.remove("phase[" + phase + "-9]\\.qcow2");
        }

        /** The running VM has had the last phase done again. A restore would lose that. */
        void provisioned(Phase phase) throws IOException {
            SortedMap<String, String> noted = new TreeMap<>(phase.inputs);
            noted.put(FINISHED, Instant.now().toString());
            write(PROVISIONED, phase.number, noted);
        }

        /** It is the VM's once the user has taken the snapshot clean after it. */
        private void acceptProvisioned() throws IOException {
            Path record = record(PROVISIONED, LAST);
            Path clean = files.file(".snapshots").resolve("clean/snapshot.json");
            if (Files.exists(record) && Files.exists(clean)) {
                Map<String, String> noted = read(record);
                JsonObject snapshot = json(Files.readString(clean));
                if (!snapshot.getBoolean("automatic")
                        && snapshot.getString("made", "").compareTo(noted.getOrDefault(FINISHED, "~")) > 0) {
                    noted.remove(FINISHED);
                    write(VM, LAST, noted);
                    Files.delete(record);
                }
            }
        }

        /**
         * Replaces the clean disk, and all that builds on the old one. If it is killed meanwhile, nothing is recorded
         * of the VM, and the next run places the disk once more.
         */
        void place(Path disk, boolean fromPhases, JsonObject text) throws IOException {
            files.remove("(install|provision)ed\\d\\.inputs|install\\.json");
            files.removeOldDisks();
            Disk.finish(disk, files.clean());
            writeFile(description, JsonWriter.indent("  ").string().value(text).done() + "\n");
            for (int phase = 1; fromPhases && phase <= LAST; phase++) {
                write(VM, phase, inputs(DISKS, phase));
            }
        }

        private Path record(String of, int phase) {
            return files.install(of + phase + ".inputs");
        }

        private void write(String of, int phase, Map<String, String> inputs) throws IOException {
            String lines = inputs.entrySet().stream().map(input -> input + "\n").collect(Collectors.joining());
            writeFile(record(of, phase), lines);
        }
    }

    /** The VM's files in VM_DIR, by their names. */
    record VmFiles(Path dir, String name) {
        private static final String UNFINISHED = ".*\\.(part|iso|vnc)"; // a CD holds a password

        Path file(String suffix) {
            return dir.resolve(name + suffix);
        }

        Path clean() {
            return file("-clean.qcow2");
        }

        Path install(String fileName) {
            return file(".install").resolve(fileName);
        }

        /** What a phase makes; null for phase 0: phase 1 begins with a blank disk. */
        Path disk(int phase) {
            return phase == 0 ? null : install("phase" + phase + ".qcow2");
        }

        Path key(String fileName) {
            return file(".ssh").resolve(fileName);
        }

        void removeUnfinished() throws IOException {
            remove(UNFINISHED);
        }

        /** Removes the files of the installation whose names match. */
        void remove(String pattern) throws IOException {
            try (Stream<Path> files = Files.list(install(""))) {
                for (Path file : files.filter(file -> file.getFileName().toString().matches(pattern)).toList()) {
                    Files.delete(file);
                }
            }
        }

        /** Removes all that builds on the clean disk. */
        void removeOldDisks() throws IOException {
            for (Path old : List.of(file(".qcow2"), file(".offline"), file(".snapshots"), file(".disks"),
                    file(".import"))) { // a vm-ctl import that was killed would be finished over this VM
                if (Files.exists(old, LinkOption.NOFOLLOW_LINKS)) {
                    try (Stream<Path> tree = Files.walk(old)) {
                        for (Path file : tree.sorted(Comparator.reverseOrder()).toList()) {
                            Files.delete(file);
                        }
                    }
                }
            }
        }

        /** The VMs whose disks build on this one's. */
        List<String> clones() {
            List<String> clones = new ArrayList<>();
            for (String other : vmNames(dir)) {
                Path record = dir.resolve(other + ".snapshots/clean/snapshot.json");
                try {
                    if (!other.equals(name) && Files.exists(record)
                            && name.equals(json(Files.readString(record)).get("cloneOf"))) {
                        clones.add(other);
                    }
                } catch (IOException damaged) {
                    throw new VmException(69, record + " cannot be read (" + reason(damaged) + "), so " + other
                            + " may be a clone of " + name
                            + ", whose disk would be lost: repair this file, or vm-ctl destroy that VM first");
                }
            }
            return clones;
        }
    }

    /** Makes and checks qcow2 disks by qemu-img. */
    static final class Disk {
        /** A blank disk of this size, or an overlay on a disk beside it. */
        static List<String> createCommand(Path disk, String size, Path backing) {
            List<String> from = backing == null ? List.of(disk.toString(), size)
                    : List.of("-b", backing.getFileName().toString(), "-F", "qcow2", disk.toString());
            return Stream.concat(Stream.of("qemu-img", "create", "-q", "-f", "qcow2"), from.stream()).toList();
        }

        static Path create(VmFiles files, String name, String size, Path backing) throws IOException {
            if (backing != null) {
                checkChain(files, backing);
            }
            qemuImg(createCommand(files.install(name), size, backing));
            return files.install(name);
        }

        static void qemuImg(List<String> command) throws IOException {
            ProcessResult result = run(Duration.ofHours(1), withUmask(command));
            if (result.getExitValue() != 0) {
                throw new VmException(1, "qemu-img failed: " + result.outputUTF8().strip());
            }
        }

        /** A finished disk gets its name once all of it is on the host's disk: QEMU and qemu-img do not flush. */
        static void finish(Path part, Path disk) throws IOException {
            try (FileChannel channel = FileChannel.open(part, StandardOpenOption.WRITE)) {
                channel.force(true);
            }
            Files.setPosixFilePermissions(part, PosixFilePermissions.fromString("r--------"));
            Files.move(part, disk, StandardCopyOption.ATOMIC_MOVE);
        }

        /** 69 if the header of a disk makes QEMU use a file outside of VM_DIR. */
        static void checkChain(VmFiles files, Path top) throws IOException {
            Set<Path> seen = new HashSet<>();
            for (Path disk = top; disk != null && seen.add(disk);) {
                disk = backingFile(files, disk, "move it away, and run vm-auto-install again");
            }
        }

        /** 69 if the header of a disk makes QEMU use any other file. */
        static void checkPlain(VmFiles files, Path disk) throws IOException {
            String remedy = "move it away, or let vm-setup disk --yes make a blank one";
            if (backingFile(files, disk, remedy) != null) {
                throw new VmException(69, disk + " needs another disk as its backing file: " + remedy);
            }
        }

        /**
         * What a disk builds on, or null. 69 unless both are qcow2 files in VM_DIR that hold their own data: a header
         * can name any file of this machine, and QEMU would use it.
         */
        private static Path backingFile(VmFiles files, Path disk, String remedy) throws IOException {
            requireInside(files, disk, disk + " is ", remedy);
            ProcessResult info = run(Duration.ofMinutes(1),
                    List.of("qemu-img", "info", "-f", "qcow2", "--output=json", disk.toString()));
            if (info.getExitValue() != 0) {
                throw new VmException(69, disk + " is not a qcow2 image that can be used; " + remedy + ": "
                        + info.outputUTF8().strip());
            }
            JsonObject header = json(info.outputUTF8());
            String backing = header.getString("backing-filename");
            if (header.getObject("format-specific").getObject("data").has("data-file")) {
                throw new VmException(69, disk + " keeps its data in another file, which is refused; " + remedy);
            } else if (backing == null) {
                return null;
            } else if (backing.contains(":") || !"qcow2".equals(header.getString("backing-filename-format"))) {
                throw new VmException(69, disk + " builds on " + backing + ", which is not said to be a qcow2 file; "
                        + remedy);
            }
            requireInside(files, disk.resolveSibling(backing), disk + " builds on ", remedy);
            return disk.resolveSibling(backing);
        }

        private static void requireInside(VmFiles files, Path disk, String what, String remedy) throws IOException {
            if (!disk.toRealPath().startsWith(files.dir.toRealPath())) {
                throw new VmException(69, what + disk.toRealPath() + ", which is not in VM_DIR; " + remedy);
            }
        }
    }

    /** The CD of a phase: which files it holds, and how they are written. */
    static final class PhaseDisc {
        /** pfi.conf, the script as phaseN.sh or, of another name, script.sh, and the data files. */
        static SortedMap<String, byte[]> of(Path script, Map<String, byte[]> data) throws IOException {
            if (!Files.isRegularFile(script)) {
                throw new VmException(2, "there is no script " + script);
            }
            byte[] content = Files.readAllBytes(script);
            String file = script.getFileName().toString();
            String name = file.matches("phase\\d.*\\.sh") ? file.substring(0, 6) + ".sh" : "script.sh";
            if (new String(content, ISO_8859_1).contains("\r")) {
                throw new VmException(2, script
                        + " has CR line ends, which the guest's sh does not take: convert it to LF");
            } else if (data.containsKey("pfi.conf") || data.containsKey(name)) {
                throw new VmException(2, "the CD's own pfi.conf and " + name
                        + " must not be among the data files, too");
            }
            SortedMap<String, byte[]> disc = new TreeMap<>(data);
            disc.put("pfi.conf", ("pfi_script=" + name + "\n").getBytes(UTF_8));
            disc.put(name, content);
            return disc;
        }

        /**
         * The CD for an installation by hand. setup.sh configures the network if needed, then runs phases 2 and 3.
         * There is no pfi.conf, because the installer would run it unattended.
         */
        static SortedMap<String, byte[]> forHand(List<Path> scripts, Map<String, byte[]> data) throws IOException {
            SortedMap<String, byte[]> disc = new TreeMap<>(data);
            for (Path script : scripts) {
                disc.put(script.getFileName().toString().replaceAll("-.*", ".sh"), Files.readAllBytes(script));
            }
            disc.put("setup.sh", """
                    #!/bin/sh
                    # As root, on the installed system: mount_cd9660 /dev/cd1 /mnt && sh /mnt/setup.sh
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
                    poweroff
                    """.getBytes(UTF_8));
            return disc;
        }

        /** The files in a directory. 2 unless their names are the same where the guest reads ISO 9660 level 2 alone. */
        static SortedMap<String, byte[]> filesIn(Path directory) {
            SortedMap<String, byte[]> files = new TreeMap<>();
            try (Stream<Path> listed = Files.list(directory)) {
                for (Path file : listed.toList()) {
                    String name = file.getFileName().toString();
                    if (name.length() > 30 || !name.matches("[a-z0-9_]+(\\.[a-z0-9_]+)?")) {
                        throw new VmException(2, "the name " + name
                                + " does not fit a phase's CD: at most 30 of a-z, 0-9 and _, and one dot");
                    }
                    files.put(name, Files.readAllBytes(file));
                }
                return files;
            } catch (IOException unreadable) {
                throw new VmException(2, directory + " must be a directory of plain files (" + reason(unreadable)
                        + ")");
            }
        }

        /** Writes an ISO 9660 image. The guest takes Rock Ridge only if its ER field says RRIP_1991A, as of mkisofs. */
        static Path write(Path iso, SortedMap<String, byte[]> files) throws IOException {
            Path part = iso.resolveSibling(iso.getFileName() + ".part");
            Files.deleteIfExists(part);
            createPrivate(part);
            PrintStream stdout = System.out;
            System.setOut(new PrintStream(OutputStream.nullOutputStream(), false, UTF_8)); // the library talks
            try {
                ISO9660RootDirectory root = new ISO9660RootDirectory();
                for (Map.Entry<String, byte[]> file : files.entrySet()) {
                    root.addFile(new ISO9660File(new ByteArrayDataReference(file.getValue()), file.getKey(),
                            System.currentTimeMillis()));
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
                Files.deleteIfExists(part); // it holds the root password and the host key
                throw new IOException("cannot write " + iso + ": " + failed.getMessage(), failed);
            } finally {
                System.setOut(stdout);
            }
            return Files.move(part, iso, StandardCopyOption.ATOMIC_MOVE);
        }

        /** An ISO, after a look at whether it is one. */
        static Path require(Path iso, String missing) throws IOException {
            if (!Files.isRegularFile(iso)) {
                throw new VmException(69, missing);
            }
            try (InputStream image = Files.newInputStream(iso)) {
                image.skip(0x8001);
                if (!new String(image.readNBytes(5), ISO_8859_1).equals("CD001")) {
                    throw new VmException(69, iso + " is not an ISO 9660 image");
                }
            }
            return iso;
        }
    }

    /** The VM's keys and its root password, which are made once, and what a phase's CD tells the guest of them. */
    static final class Credentials {
        /** The CD's data files: who may log in, which host key to have, the addresses of QEMU's network. */
        static SortedMap<String, byte[]> files(VmFiles files, String dportsClone) throws IOException {
            Path keys = privateDirectory(files.key(""));
            makeKey(keys.resolve("id_ed25519"), files.name);
            makeKey(keys.resolve("host_key"), files.name);
            if (!Files.exists(keys.resolve("root_password"))) {
                writeFile(keys.resolve("root_password"), new BigInteger(128, new SecureRandom()).toString(36) + "\n");
            }
            String[] hostKey = Files.readString(keys.resolve("host_key.pub")).split("\\s");
            writeFile(keys.resolve("known_hosts"), files.name + " " + hostKey[0] + " " + hostKey[1] + "\n");
            String conf = String.join("\n", "VM_HOSTNAME=" + files.name.replace('_', '-'), "VM_ADDRESS=10.0.2.15",
                    "VM_NETMASK=255.255.255.0", "VM_GATEWAY=10.0.2.2", "VM_DNS=10.0.2.3",
                    "VM_ROOT_PASSWORD=" + Files.readString(keys.resolve("root_password")).strip(),
                    "VM_DPORTS_CLONE=" + dportsClone, "");
            return new TreeMap<>(Map.of("vm.conf", conf.getBytes(UTF_8),
                    "authorized_keys", Files.readAllBytes(keys.resolve("id_ed25519.pub")),
                    "hostkey", Files.readAllBytes(keys.resolve("host_key")),
                    "hostkey.pub", Files.readAllBytes(keys.resolve("host_key.pub"))));
        }

        /** Makes a pair of keys, unless there is one. ssh-keygen writes the public key last. */
        private static void makeKey(Path key, String comment) throws IOException {
            Path publicKey = Path.of(key + ".pub");
            if (!Files.exists(key) || !Files.exists(publicKey)) {
                Files.deleteIfExists(key);
                ProcessResult made = run(Duration.ofMinutes(1), List.of("ssh-keygen", "-q", "-t", "ed25519", "-N", "",
                        "-C", comment, "-f", key.toString()));
                if (made.getExitValue() != 0) {
                    Files.deleteIfExists(publicKey); // an empty one would count as made
                    throw new VmException(1, "ssh-keygen failed: " + made.outputUTF8().strip());
                }
            }
        }
    }

    /** What is done over ssh: phase 3 in the running VM, and the look at a new disk's tools. */
    static final class Provisioning {
        private static final List<String> TOOLS = List.of("go", "bash", "git", "rsync", "curl", "wget", "doas",
                "gmake");
        private static final String PRINT_VERSIONS = """
                echo "uname=$(uname -srm)"
                for tool in %s; do
                  case $tool in
                    go) version=$(go version) ;;
                    doas) version=$(doas true && command -v doas) ;;
                    *) version=$($tool --version | sed -n 1p) ;;
                  esac
                  echo "$tool=$version"
                done
                """.formatted(String.join(" ", TOOLS));

        /** Runs phase 3 in the running VM. */
        static void run(VmFiles files, Duration limit, SortedMap<String, byte[]> disc, Consumer<String> say)
                throws IOException {
            // A new ssh master would keep our stderr open, and we would wait for it.
            List<String> ssh = List.of("ssh", "-F", files.dir.resolve("ssh_config").toString(), "-o",
                    "ControlMaster=no", files.name, "sh -s");
            int code = feed(limit, files.dir, ssh, guestScript(disc), say);
            if (code == 255) {
                throw new VmException(69, "ssh to " + files.name + " failed: vm-ctl status tells how the VM is");
            } else if (code != 0) {
                throw new VmException(1, "phase " + LAST + " failed with exit code " + code + ", see above");
            }
        }

        /** A script for the guest's sh that unpacks a disc's files into a private directory and runs phase 3 there. */
        static String guestScript(SortedMap<String, byte[]> disc) {
            StringBuilder script = new StringBuilder("umask 077\nd=/root/.pfi.$$\nmkdir $d || exit 1\n");
            disc.forEach((file, content) -> script.append("cat >$d/" + file + " <<'END OF FILE'\n"
                    + new String(content, UTF_8).stripTrailing() + "\nEND OF FILE\n"));
            return script + "PFI_MEDIA=$d PFI_POWEROFF=no sh $d/phase" + LAST
                    + ".sh </dev/null 2>&1\ncode=$?\nrm -rf $d\nexit $code\n";
        }

        /** The versions of a guest's tools, asked with this VM's key and the pinned host key. */
        static JsonObject versions(VmFiles files, int port, Duration limit) throws IOException {
            // It runs in the directory of the keys: relative names need none of ssh's quoting.
            String ssh = "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=60 -o StrictHostKeyChecking=yes"
                    + " -o UserKnownHostsFile=known_hosts -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
                    + " -o IdentityFile=id_ed25519 -o HostKeyAlias=" + files.name + " -p " + port
                    + " root@127.0.0.1 sh -s";
            List<String> output = new ArrayList<>();
            JsonObject versions = new JsonObject();
            int code = feed(limit, files.key(""), List.of(ssh.split(" ")), PRINT_VERSIONS, line -> {
                String[] pair = line.split("=", 2);
                if (output.size() < 100 && output.add(line) && pair.length == 2 && !pair[1].isBlank()) {
                    versions.put(pair[0], pair[1]);
                }
            });
            List<String> missing = TOOLS.stream().filter(tool -> !versions.has(tool)).toList();
            if (code == 255) {
                throw new VmException(69, "ssh to the new system failed: " + String.join(" ", output));
            } else if (code != 0 || !missing.isEmpty()) {
                throw new VmException(1, "a tool is missing or broken: " + String.join(", ", missing)
                        + "\nthe versions that were found:\n" + quoted(output));
            }
            return versions;
        }

        /** Runs a program with an input, and hands on its output line by line. */
        private static int feed(Duration limit, Path directory, List<String> command, String input,
                Consumer<String> lines) throws IOException {
            if (verbose) {
                System.err.println("+ " + shellQuoted(command));
            }
            OutputStream output = new OutputStream() {
                private final ByteArrayOutputStream line = new ByteArrayOutputStream();

                @Override
                public void write(int letter) {
                    if (letter == '\n') {
                        lines.accept(line.toString(UTF_8));
                        line.reset();
                    } else if (line.size() < 4000) { // the guest may never end one
                        line.write(letter);
                    }
                }
            };
            try {
                return new ProcessExecutor(command).directory(directory.toFile())
                        .redirectInput(new ByteArrayInputStream(input.getBytes(UTF_8))).redirectOutput(output)
                        .timeout(limit.toMillis(), TimeUnit.MILLISECONDS).destroyOnExit().execute().getExitValue();
            } catch (TimeoutException late) {
                throw new VmException(124, "ssh did not end within " + text(limit) + ": raise VM_TIME_LIMIT");
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            }
        }
    }

    /** What a guest is booted for: a phase, or the check of a new disk or a person's work, which have the number 0. */
    record Purpose(int phase, String file, String title) {
        static final Purpose CHECK = new Purpose(0, "verify", "the check of the installed disk");
        static final Purpose CHECK_BY_HAND = new Purpose(0, "verify", "the check of the disk (which is kept)");
        static final Purpose BY_HAND = new Purpose(0, "by-hand", "the installation by hand");

        static Purpose phase(int number) {
            return new Purpose(number, "phase" + number, "phase " + number);
        }
    }

    /** QEMU's arguments, and what it says of itself. */
    static final class Qemu {
        private static final String NAME = "qemu-system-x86_64";

        /**
         * QEMU's command line. The serial console is QEMU's stdin and stdout. With several CDs it boots the first one.
         * By hand it tries the disk first, a reboot does not end QEMU, and the screen is on a socket in its working
         * directory.
         */
        static List<String> command(MachineOptions machine, String title, Path disk, List<Path> cds, Path qmp,
                int sshPort, boolean byHand) {
            int cdOrder = cds.size() < 2 ? -1 : byHand ? 1 : 0;
            int processors = processors(machine.cpus, machine.accel);
            String model = Map.of("kvm", "Broadwell-v4,+hypervisor,pmu=off", "hvf", "host", "tcg", "qemu64")
                    .get(machine.accel);
            long host = ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize() >> 20;
            List<String> command = new ArrayList<>(List.of(NAME, "-name", title, "-machine", "pc",
                    "-accel", accelArgument(machine.accel, processors),
                    "-cpu", machine.cpu != null ? machine.cpu : model,
                    "-m", machine.memory != null ? machine.memory : Math.max(2048, Math.min(8192, host / 4)) + "M",
                    "-smp", "" + processors,
                    "-chardev", "socket,id=qmp0,server=on,wait=off,path=" + escaped(qmp),
                    "-netdev", "user,id=net0" + (sshPort > 0 ? ",hostfwd=tcp:127.0.0.1:" + sshPort + "-:22" : ""),
                    "-blockdev", "driver=qcow2,node-name=disk0,discard=unmap,detect-zeroes=unmap,cache.no-flush="
                            + (byHand ? "off" : "on") + ",file.driver=file,file.discard=unmap,file.filename="
                            + escaped(disk)));
            command.addAll(List.of(("-nodefaults -no-user-config -vga std -display none -mon chardev=qmp0,mode=control"
                    + " -chardev stdio,id=serial0,signal=off -serial chardev:serial0"
                    + " -device virtio-net-pci,netdev=net0,romfile= -device virtio-scsi-pci,id=scsi0"
                    + " -device scsi-hd,drive=disk0,bus=scsi0.0,bootindex=" + (cdOrder == 0 ? 1 : 0)
                    + (byHand ? " -vnc unix:by-hand.vnc" : " -no-reboot")).split(" ")));
            for (int i = 0; i < cds.size(); i++) {
                command.addAll(List.of("-blockdev", "driver=raw,read-only=on,node-name=cd" + i
                        + ",file.driver=file,file.filename=" + escaped(cds.get(i)),
                        "-device", "ide-cd,drive=cd" + i + ",bus=ide." + i / 2 + ",unit=" + i % 2
                        + (cdOrder >= 0 && i == 0 ? ",bootindex=" + cdOrder : "")));
            }
            List<String> more = split(machine.qemuArgs);
            command.addAll(sandbox(more, true));
            command.addAll(more);
            return command;
        }

        /** A path as the value of a QEMU option. */
        private static String escaped(Path path) {
            return path.toString().replace(",", ",,");
        }

        static String version() throws IOException {
            return run(Duration.ofSeconds(20), List.of(NAME, "--version")).outputUTF8().lines().findFirst().orElse("");
        }

        /** A QEMU without seccomp does not know -sandbox. It reads its options in order, and ends at --version. */
        static void removeUnknownSandbox(List<String> command, Consumer<String> say) throws IOException {
            List<String> sandbox = sandbox(List.of(), true);
            List<String> question = new ArrayList<>(sandbox);
            question.add(0, NAME);
            question.add("--version");
            ProcessResult tried = run(Duration.ofSeconds(20), question);
            if (tried.getExitValue() != 0) {
                say.accept("this QEMU was built without seccomp, so it runs without -sandbox: "
                        + tried.outputUTF8().strip());
                command.removeAll(sandbox);
            }
        }
    }

    /** A QEMU child process. Its console goes to the log file, keys go to its stdin, QMP to a socket. */
    static final class InstallGuest implements AutoCloseable {
        private static final char CTRL_BRACKET = 0x1d;
        private final Job job;
        private final Purpose purpose;
        private final ConsoleWatcher watcher;
        private final Process process;
        private final Path log;
        private final Path picture;
        private final Qmp qmp = new Qmp();
        private final long started = System.nanoTime();
        private boolean pictured;
        private String shutdownReason; // of QEMU's SHUTDOWN event
        private String problem; // why QEMU cannot go on
        private volatile int ctrlBracketCount; // how often Ctrl-] was typed

        InstallGuest(Job job, Purpose purpose, Path disk, List<Path> cds, int sshPort) throws IOException {
            this.job = job;
            this.purpose = purpose;
            watcher = new ConsoleWatcher(purpose, job.limit, where -> job.say.accept("[" + text(elapsed()) + "] "
                    + purpose.title + ", " + where));
            log = job.files.install(purpose.file + ".log");
            picture = job.files.install(purpose.file + ".png");
            Files.deleteIfExists(picture);
            Files.deleteIfExists(log);
            createPrivate(log);
            boolean byHand = purpose == Purpose.BY_HAND;
            if (!byHand) {
                job.say.accept(purpose.title + "; its console: tail -f " + shellQuoted(List.of(log.toString())));
            }
            // On Linux the kernel ends QEMU when this process dies, even of kill -9.
            boolean linux = System.getProperty("os.name").equals("Linux");
            List<String> command = new ArrayList<>(linux ? List.of("setpriv", "--pdeathsig", "KILL") : List.of());
            command.addAll(withUmask(Qemu.command(job.machine, job.files.name + "-" + purpose.file, disk, cds,
                    qmp.socket, sshPort, byHand)));
            Qemu.removeUnknownSandbox(command, job.say);
            if (verbose) {
                job.say.accept("+ " + shellQuoted(command));
            }
            try {
                process = new ProcessBuilder(command).directory(byHand ? log.getParent().toFile() : null)
                        .redirectErrorStream(true).redirectOutput(log.toFile()).start();
            } catch (IOException missing) {
                qmp.close();
                throw new VmException(69, command.get(0) + " cannot be run (setpriv is in the package util-linux): "
                        + reason(missing));
            }
        }

        private Duration elapsed() {
            return Duration.ofNanos(System.nanoTime() - started);
        }

        /** What the console printed since the last time; null once QEMU has ended and everything is read. */
        private byte[] read(InputStream console) throws IOException, InterruptedException {
            boolean alive = process.isAlive(); // before reading, so that the last output is not missed
            byte[] output = console.readNBytes(1 << 16);
            ask(null);
            if (interrupted) {
                throw new VmException(130, "interrupted");
            }
            Thread.sleep(alive && output.length == 0 ? 20 : 0);
            return alive || output.length > 0 ? output : null;
        }

        /** Watches until QEMU ends, or until the installed disk's login prompt. Throws a report if that went wrong. */
        void follow() throws IOException, InterruptedException {
            boolean pictureAsked = false;
            try (InputStream console = Files.newInputStream(log)) {
                for (byte[] output = read(console); output != null; output = read(console)) {
                    watcher.feed(output, elapsed().toMillis() / 1000.0);
                    if (problem != null) {
                        watcher.fail(1, problem);
                    }
                    if (purpose.phase == 0 && watcher.done) {
                        return;
                    } else if (watcher.hasFailedFor(2)) { // what comes right after the failure tells more
                        throw report(watcher.failure);
                    } else if (!pictureAsked && (watcher.failure != null || watcher.rebooting)) {
                        pictureAsked = true;
                        takePicture(); // at once: a guest that reboots takes QEMU along
                    }
                    type(watcher.keys());
                }
            }
            VmException failure = watcher.end(shutdownReason, process.exitValue());
            if (failure != null) {
                throw report(failure);
            }
        }

        /** Takes a picture of the screen unless there is one, ends QEMU, and says what a person needs to know. */
        VmException report(VmException failure) throws IOException, InterruptedException {
            if (!pictured) {
                takePicture();
            }
            for (int i = 0; i < 100 && !pictured && process.isAlive(); i++) { // 5 s
                Thread.sleep(50);
                ask(null);
            }
            close();
            String advice = hangAdvice(job.machine.accel, processors(job.machine.cpus, job.machine.accel));
            return new VmException(failure.exitCode, purpose.title + " failed at " + watcher.where + " after "
                    + text(elapsed()) + ": " + failure.getMessage() + (failure.exitCode != 124 ? "" : advice
                    + "; if it is only slow, raise VM_TIME_LIMIT")
                    + "\nthe last console lines:\n" + quoted(watcher.lastLines()) + "whole log: " + log
                    + (Files.exists(picture) ? "\nscreenshot: " + picture : "") + "\nto go on from there: " + job.goOn);
        }

        private void takePicture() throws IOException {
            ask("screendump", "filename", picture.toString(), "format", "png"); // PNG since QEMU 7.1
        }

        /**
         * Lets a person work at the guest's console until QEMU ends. The end of the input does not stop the guest. If
         * the guest did not shut itself down, it fails and says what becomes of the disk.
         */
        void attach(String kept) throws IOException, InterruptedException {
            RawTerminal terminal = RawTerminal.enter();
            try (terminal; InputStream console = Files.newInputStream(log)) {
                Thread keys = new Thread(this::copyInput);
                keys.setDaemon(true); // it waits for a key
                keys.start();
                int handled = 0;
                for (byte[] output = read(console); output != null; output = read(console)) {
                    System.err.write(output);
                    System.err.flush();
                    if (problem != null) {
                        throw new VmException(1, problem + ". " + kept);
                    } else if (ctrlBracketCount > handled && qmp.isOpen()) {
                        System.err.print(handled == 0 ? "\r\nshutting it down; Ctrl-] again ends it at once\r\n"
                                : "\r\n");
                        ask(handled++ == 0 ? "system_powerdown" : "quit");
                    }
                }
            }
            if (shutdownReason == null) {
                throw new VmException(69, "QEMU ended by itself with " + exitText(process.exitValue()) + ". " + kept);
            } else if (!shutdownReason.equals("guest-shutdown")) {
                String who = shutdownReason.equals("host-qmp-quit") ? "you ended it" : "it was ended from outside";
                throw new VmException(1, "the guest did not shut itself down (" + who
                        + "), so its last writes may be missing. " + kept);
            }
        }

        private void copyInput() {
            byte[] typed = new byte[256];
            try {
                InputStream keyboard = isStdinClosed() ? InputStream.nullInputStream() : System.in;
                for (int count = keyboard.read(typed); count >= 0; count = keyboard.read(typed)) {
                    String keys = new String(typed, 0, count, ISO_8859_1);
                    ctrlBracketCount += (int) keys.chars().filter(key -> key == CTRL_BRACKET).count();
                    type(keys.replace("" + CTRL_BRACKET, ""));
                }
            } catch (IOException ended) {
                // the terminal
            }
        }

        private void type(String keys) {
            try {
                process.getOutputStream().write(keys.getBytes(ISO_8859_1));
                process.getOutputStream().flush();
            } catch (IOException ended) {
                // and the next look at QEMU tells how
            }
        }

        /** Sends a command to the monitor, or none (null), and notes what the monitor said since the last time. */
        private void ask(String command, Object... arguments) throws IOException {
            for (JsonObject event : qmp.exchange(command, object(arguments))) {
                JsonObject data = event.getObject("data", new JsonObject());
                pictured |= "screendump".equals(event.get("id"));
                if ("SHUTDOWN".equals(event.get("event"))) {
                    shutdownReason = data.getString("reason");
                } else if ("BLOCK_IO_ERROR".equals(event.get("event")) && "stop".equals(data.get("action"))) {
                    problem = "this machine cannot write the VM's disk (" + data.getString("reason")
                            + "): free some space for " + job.files.dir;
                }
            }
        }

        @Override
        public void close() throws IOException {
            process.destroyForcibly().onExit().completeOnTimeout(process, 30, TimeUnit.SECONDS).join();
            qmp.close();
        }
    }

    /** QEMU's monitor. Nothing is waited for: it may not listen yet, and it ends with QEMU. */
    static final class Qmp implements AutoCloseable {
        // in a directory of its own: VM_DIR's path may be too long for a socket
        final Path socket = Files.createTempDirectory("vm-install").resolve("qmp");
        /** How long the first answer may take. A test shortens it. */
        static Duration answerLimit = Duration.ofSeconds(5);
        private final StringBuilder received = new StringBuilder();
        private SocketChannel channel;
        private long asked; // when we began to wait for the first response; 0 when it has come, and before the greeting

        Qmp() throws IOException {}

        boolean isOpen() {
            return channel != null;
        }

        /** Sends a command, or none (null), and returns what the monitor said since the last time. */
        List<JsonObject> exchange(String command, JsonObject arguments) throws IOException {
            try {
                if (channel == null && Files.exists(socket)) {
                    channel = SocketChannel.open(UnixDomainSocketAddress.of(socket));
                    channel.configureBlocking(false);
                    send(object("execute", "qmp_capabilities", "id", "first"));
                } else if (channel != null) {
                    ByteBuffer buffer = ByteBuffer.allocate(8192);
                    // an intruder in QEMU may never end a line
                    while (received.length() < 1 << 20 && channel.read(buffer.clear()) > 0) {
                        received.append(ISO_8859_1.decode(buffer.flip())); // QEMU's JSON is ASCII
                    }
                    if (command != null) { // after reading: QEMU may have ended and refuse it
                        send(object("execute", command, "arguments", arguments, "id", command));
                    }
                    wake();
                }
            } catch (IOException ended) {
                // with QEMU, or it does not listen yet
            }
            List<JsonObject> events = new ArrayList<>();
            for (int end = received.indexOf("\n"); end >= 0; end = received.indexOf("\n")) {
                events.add(json(received.substring(0, end)));
                received.delete(0, end + 1);
            }
            for (JsonObject event : events) {
                if (event.has("QMP")) { // the greeting: the connection is accepted, and any other one is refused
                    asked = System.nanoTime();
                } else if ("first".equals(event.get("id"))) {
                    asked = 0;
                    removeSocket(); // a kill -9 leaves no litter
                }
            }
            return events;
        }

        /**
         * While QEMU starts, its main thread and its monitor's thread may both call accept() for our connection (seen
         * once, with 7.2). The second one blocks until another connection comes, and QEMU hangs. So one comes; QEMU
         * closes it and goes on.
         */
        private void wake() throws IOException {
            if (asked != 0 && System.nanoTime() - asked > answerLimit.toNanos()) {
                asked = System.nanoTime();
                try (SocketChannel another = SocketChannel.open(StandardProtocolFamily.UNIX)) {
                    another.configureBlocking(false); // must not block: a QEMU that is stopped accepts none
                    another.connect(UnixDomainSocketAddress.of(socket));
                }
            }
        }

        private void send(JsonObject command) throws IOException {
            channel.write(UTF_8.encode(JsonWriter.string(command) + "\n"));
        }

        private void removeSocket() throws IOException {
            Files.deleteIfExists(socket);
            Files.deleteIfExists(socket.getParent());
        }

        @Override
        public void close() throws IOException {
            if (channel != null) {
                channel.close();
            }
            removeSocket();
        }
    }

    private static String exitText(int exitCode) {
        return exitCode > 128 ? "signal " + (exitCode - 128) : "exit code " + exitCode;
    }

    /** Where a guest is on its way, in the order in which it gets there, and what the console says then. */
    enum Stage {
        POWER_ON("power-on", ""),
        LOADER("the boot loader", "Console: serial port|Escape to loader prompt|Type '\\?' for a list of "
                + "commands|Booting in "),
        KERNEL("the kernel's start", "The DragonFly Project\\.|real memory  ="),
        ROOT("the root mount", "Mounting root from "),
        RC("rc", "start_init: trying|Starting file system checks|FILESYSTEM CLEAN; SKIPPING CHECKS"),
        NETWORK("rc, network", "vtnet0: flags="),
        PFI("pfi", "Starting pfi|Looking for pfi\\.conf"),
        SCRIPT("the phase script", "STEP \\d+: |DONE WITH PHASE |PHASE \\d+ FAILED: "),
        SHUTDOWN("the shutdown", "Shutdown NOW!|System shutdown time has arrived|syncing disks\\.\\.\\."),
        OFF("power-off", "Powering system off");

        final String title;
        private final Pattern sign;

        Stage(String title, String sign) {
            this.title = title;
            this.sign = Pattern.compile(sign);
        }

        /** This stage, or the last one beyond it that a line tells of. */
        Stage after(String line) {
            return Stream.of(values()).filter(next -> next.compareTo(this) > 0 && next.sign.matcher(line).find())
                    .reduce(this, (before, next) -> next);
        }
    }

    /**
     * Reads a guest's serial console and tells how far the guest is, or why it failed. It parses byte by byte, so it
     * does not matter how the output is chunked. Phase 0 has no script: it is the check of the installed disk.
     *
     * <p>A false alarm would end an installation that works. So a line counts as a failure only if no healthy boot
     * prints it, and a prompt only once the console has been quiet for a moment: see {@link #pause}.
     */
    static final class ConsoleWatcher {
        private static final String PANIC = "the kernel panicked";
        private static final String NO_ROOT = "the kernel cannot mount its root file system";
        private static final String NO_KERNEL = "the loader cannot load the kernel";
        /**
         * Lines of loader, kernel and rc that mean failure, until the script says its first word: later, programs may
         * print them.
         */
        private static final Map<Pattern, String> BOOT_FAILURES = patterns(
                "can't (load|find) 'kernel'|no bootable kernel", NO_KERNEL,
                "init: not found in path", "the root file system holds no init: the wrong CD is cd0, or nothing is "
                    + "installed",
                "^Manual root filesystem specification", NO_ROOT,
                "^Automatic file system check failed", "fsck cannot repair a file system by itself",
                "ERROR: ABORTING BOOT", "rc stopped the boot: single-user mode",
                "failed; startup aborted", "rc cannot mount what fstab lists");
        /** Lines that mean failure in any stage. A kernel panic takes several lines: see kernelPanic. */
        private static final Map<Pattern, String> FAILURES = patterns(
                "^Debugger\\(\"panic\"\\)|^Automatic reboot in \\d+ seconds", PANIC,
                "^The operating system has halted\\.|^Please press any key to reboot\\.",
                "the guest halted without powering off",
                "^acpi0: (power-off|AcpiEnterSleepState) failed", "ACPI cannot power the guest off",
                "^giving up on \\d+ buffers", "the guest could not write all its data to the disk");
        /** What stands at the end of the output while the guest waits for somebody to type. */
        private static final Map<Pattern, String> QUESTIONS = patterns(
                "^mountroot> ?$", NO_ROOT,
                "\\)/loader: $", "the boot blocks find no loader, or a key interrupted them",
                "^Enter full pathname of shell or RETURN for /bin/sh:", "the guest went to single-user mode");
        /** Lines that are no failure by themselves, but that explain one. */
        private static final Map<Pattern, String> HINTS = patterns(
                "smp_invltlb.*waited too long|excessive contended", "its processors wait for each other",
                "No active remote repositories", "pkg has no repository configured",
                "lua script failed", "pkg's upgrade of itself failed in a lua script");
        /** Tells the installer's boot loader, prompt by prompt, that the serial line is the kernel's console. */
        private static final List<String> ANSWERS = List.of("9", "set console=comconsole\r", "boot\r");
        /**
         * A mark of the script. A kernel's message may stand before it in its line, or after DONE; a line of sh -x is
         * none.
         */
        private static final Pattern MARK = Pattern.compile("^(?!\\+ ).*?"
                + "(?:STEP (\\d+): *(.*)|DONE WITH PHASE (\\d+)\\.(?!['\"]).*|PHASE (\\d+) FAILED: *(.*))$");

        private final Purpose purpose;
        private final Duration limit;
        private final Consumer<String> passed;
        Stage stage = Stage.POWER_ON;
        String where = stage.title; // its stage, or the step of its script; where it failed
        VmException failure; // not thrown yet
        boolean done;
        boolean rebooting; // no failure yet: QEMU tells what becomes of it
        private long bytes;
        private double now; // in seconds, as the other times
        private double lastOutput;
        private double failedAt;
        private boolean blind; // the boot loader's menu is not on the serial line
        private int prompts; // of the boot loader: its countdown is one, each OK another
        private int answered;
        private final Set<String> hints = new TreeSet<>();
        private String step = "";
        private String pfi = ""; // what it said last
        private final byte[] line = new byte[4096];
        private int length; // of the line
        private boolean returned; // by a CR: LF ends the line, anything else overwrites it
        private boolean login; // a login prompt was printed
        private final List<String> last = new ArrayList<>(); // lines, without the empty ones

        /** Tells {@code passed} of each place that the guest reaches. */
        ConsoleWatcher(Purpose purpose, Duration limit, Consumer<String> passed) {
            this.purpose = purpose;
            this.limit = limit;
            this.passed = passed;
        }

        private static Map<Pattern, String> patterns(String... pairs) {
            Map<Pattern, String> patterns = new LinkedHashMap<>();
            for (int i = 0; i < pairs.length; i += 2) {
                patterns.put(Pattern.compile(pairs[i]), pairs[i + 1]);
            }
            return patterns;
        }

        /** Takes what the console has printed, perhaps nothing, this many seconds after the start. */
        void feed(byte[] chunk, double seconds) {
            now = seconds;
            lastOutput = chunk.length > 0 ? now : lastOutput;
            bytes += chunk.length;
            for (byte next : chunk) {
                feed(next);
            }
            if (now - lastOutput > 1) { // a line is complete within a second, also when emulated
                pause();
            }
            checkTime(now - lastOutput);
        }

        private void feed(byte next) {
            if (returned && next != '\n' && next != '\r') {
                length = 0;
            }
            returned = next == '\r';
            if (next == '\b') { // the loader draws a spinner
                length = Math.max(0, length - 1);
            } else if (next != '\n' && next != '\r') {
                line[length++] = next;
            }
            if (next == '\n' || length == line.length) {
                String text = text().stripTrailing();
                length = 0;
                if (!text.isEmpty()) {
                    keep(text);
                    read(text);
                }
            } else if (next == ' ' && length < 200) { // prompts are short, and a flood of text must not cost
                prompt(text());
            }
        }

        private String text() {
            // a backspace takes a character back; NUL and BEL are nothing to read
            return printable(new String(line, 0, length, UTF_8).replaceAll("[^\b]\b|[\0\7]", ""));
        }

        private void keep(String text) {
            // a panic may stand after a long line
            String shown = text.substring(Math.max(0, text.lastIndexOf("panic: ")));
            last.add(text.length() <= 200 ? text : shown.substring(0, Math.min(200, shown.length())) + "...");
            if (last.size() > 15) {
                last.remove(0);
            }
        }

        /** The line that is so many before the end, or "". */
        private String lineBefore(int count) {
            return last.size() < count ? "" : last.get(last.size() - count);
        }

        /** Notes a prompt as it appears. The boot loader counts down, so it is answered at once. */
        private void prompt(String text) {
            if (inLoader() && text.equals("OK ") || text.endsWith("Booting in ") && prompts == 0) {
                prompts++;
            }
            // While the script runs, a program may print it; getty's comes after its banner, "DragonFly/x86_64 (host)
            // (ttyd0)".
            login |= text.equals("login: ") && (stage != Stage.SCRIPT || lineBefore(1).startsWith("DragonFly/"));
        }

        private boolean inLoader() {
            return stage.compareTo(Stage.KERNEL) < 0;
        }

        /**
         * The console has been quiet for a moment, so its last line is a prompt, and not the beginning of a longer
         * line: "login: " may go on with a kernel's panic. A login prompt stays noted, because other messages of the
         * kernel may follow it in its line.
         */
        private void pause() {
            String text = text();
            if (login && purpose.phase == 0) {
                done = failure == null;
            } else if (login && !done) {
                fail(hinted(stage == Stage.SCRIPT ? "the phase script ended without DONE or FAILED"
                        : "the phase script was skipped" + (pfi.isEmpty() ? "" : ": " + pfi)));
            } else if (inLoader() && text.equals("OK ") && (purpose.phase != 1 || prompts > ANSWERS.size())) {
                fail(NO_KERNEL + ": it is back at its prompt");
            } else if (text.equals("db> ") && lineBefore(1).startsWith("Stopped at ")) {
                fail("the kernel is in its debugger");
            } else if (stage.compareTo(Stage.SCRIPT) < 0) {
                match(QUESTIONS, text, this::fail);
            }
        }

        private void checkTime(double silent) {
            // Under emulation the menu takes seconds. The script's output comes on the serial line in any case.
            if (!blind && awaitsLoader() && (silent > 120 || stage == Stage.SCRIPT)) {
                blind = true;
                hints.add("the boot loader did not answer on the serial line");
                passed.accept("the boot loader does not answer on the serial line: waiting, because its menu boots by "
                        + "itself");
            }
            Duration silence = limit.dividedBy(6);
            // a disk that was installed by hand may not use the serial console
            if (purpose == Purpose.CHECK_BY_HAND && inLoader() && silent > Math.min(120, limit.toSeconds() / 12.0)) {
                fail("the kernel printed nothing on the serial console: did setup.sh run?");
            } else if (!blind && silent > silence.toSeconds()) {
                fail(124, hinted("its console has been silent for " + VmAutoInstall.text(silence)));
            } else if (now > limit.toSeconds()) {
                fail(124, hinted("it did not end within " + VmAutoInstall.text(limit)));
            } else if (bytes > 200e6) {
                fail("it printed more than 200 MB to its console");
            }
        }

        private void read(String text) {
            stage = stage.after(text);
            rebooting |= text.startsWith("Rebooting...");
            pfi = text.contains("pfi.conf") ? text : pfi;
            match(HINTS, text, hints::add);
            Matcher mark = MARK.matcher(text);
            boolean marked = purpose.phase > 0 && mark.matches();
            step = marked && mark.group(1) != null ? "step " + mark.group(1) + " (" + mark.group(2) + ")" : step;
            String place = stage == Stage.SCRIPT && !step.isEmpty() ? step : stage.title;
            if (failure == null && !place.equals(where)) {
                where = place;
                passed.accept(where);
            }
            if (marked && mark.group(1) == null) {
                readEnd(text, mark.group(3), mark.group(4), mark.group(5));
            }
            readFailures(text);
        }

        /** A phase's script says that it is done, or that it failed; the number of the other phase is null. */
        private void readEnd(String text, String donePhase, String failedPhase, String why) {
            String own = "" + purpose.phase;
            if (own.equals(donePhase)) {
                done = failure == null;
            } else if (own.equals(failedPhase)) { // what it printed before says why
                fail(hinted("its script gave up: " + why + (lineBefore(2).isEmpty() ? "" : ": " + lineBefore(2))));
            } else if (text.startsWith("DONE WITH PHASE ") || text.startsWith("PHASE ")) { // not quoted in a line
                fail("the CD holds the script of phase " + (donePhase != null ? donePhase : failedPhase));
            }
        }

        private void readFailures(String text) {
            String recent = String.join("\n", last.subList(Math.max(0, last.size() - 4), last.size()));
            int panic = kernelPanic(recent);
            if (panic >= 0) {
                String message = recent.substring(panic).lines().findFirst().orElse("");
                fail((message.contains("Root mount failed") ? NO_ROOT : PANIC) + ": " + message);
            }
            Consumer<String> failed = cause -> fail(hinted(cause + ": " + text));
            match(FAILURES, text, failed);
            match(stage.compareTo(Stage.SCRIPT) < 0 ? BOOT_FAILURES : Map.of(), text, failed);
        }

        private static void match(Map<Pattern, String> patterns, String text, Consumer<String> then) {
            patterns.forEach((pattern, meaning) -> {
                if (pattern.matcher(text).find()) {
                    then.accept(meaning);
                }
            });
        }

        private void fail(String cause) {
            fail(1, cause);
        }

        /** The first failure counts: it is the cause of the others. */
        void fail(int code, String cause) {
            if (failure == null) {
                failure = new VmException(code, cause);
                failedAt = now;
            }
        }

        boolean hasFailedFor(double seconds) {
            return failure != null && now - failedAt > seconds;
        }

        /** What QEMU's end means. A phase is done if its script said so and the guest then powered itself off: null. */
        VmException end(String reason, int exitCode) {
            if (failure != null) {
                return failure;
            } else if ("guest-reset".equals(reason)) {
                return new VmException(1, hinted("the guest rebooted instead of powering off"));
            } else if (exitCode != 0 || reason == null && stage != Stage.OFF) {
                return new VmException(69, "QEMU ended by itself with " + exitText(exitCode));
            } else if (reason != null && !reason.equals("guest-shutdown")) {
                return new VmException(69, "QEMU was ended from outside (" + reason + ")");
            }
            return done ? null : new VmException(1, hinted(purpose.phase == 0
                    ? "it powered off before a login prompt came"
                    : "the guest powered off, but its script did not report DONE"));
        }

        /** What to type now. A key that came before its prompt would be lost. */
        String keys() {
            return awaitsLoader() && prompts > answered ? ANSWERS.get(answered++) : "";
        }

        /** Whether the boot loader has yet to ask for something. */
        boolean awaitsLoader() {
            return purpose.phase == 1 && answered < ANSWERS.size();
        }

        private String hinted(String cause) {
            return hints.isEmpty() ? cause : cause + " (" + String.join("; ", hints) + ")";
        }

        /** The last lines, and what stands there without a line end. */
        List<String> lastLines() {
            return Stream.concat(last.stream(), Stream.of(text()).filter(text -> !text.isBlank())).toList();
        }
    }

    // Values and small things.

    /** The number of a phase. */
    static final class PhaseNumber implements ITypeConverter<Integer> {
        @Override
        public Integer convert(String value) {
            return Integer.valueOf(matching(value, "[1-" + LAST + "]", "the number of a phase, 1 to " + LAST));
        }
    }

    /** A time limit. A plain number meant minutes once, and elsewhere it means seconds, so it needs a unit. */
    static final class TimeLimit extends DurationConverter {
        @Override
        public Duration convert(String value) {
            if (value.matches("\\d+")) {
                throw new TypeConversionException("'" + value + "' has no unit; it meant minutes in earlier versions: "
                        + "write " + value + "m");
            }
            return super.convert(value);
        }
    }

    static final class YesOrNo implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            return matching(value, "yes|no", "yes or no");
        }
    }

    private static void createPrivate(Path file) throws IOException {
        Files.createFile(file, PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
    }

    private static String sha256(byte[] content) throws NoSuchAlgorithmException {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
    }

    /** The checksum of an ISO's first MiB. */
    private static String startOf(Path iso) throws IOException, NoSuchAlgorithmException {
        try (InputStream image = Files.newInputStream(iso)) {
            return sha256(image.readNBytes(1 << 20));
        }
    }

    private static String sha256(Path file) throws IOException, NoSuchAlgorithmException {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        Files.copy(file, new DigestOutputStream(OutputStream.nullOutputStream(), digest));
        return HexFormat.of().formatHex(digest.digest());
    }

    private static String quoted(List<String> lines) {
        return lines.stream().map(line -> "  | " + line + "\n").collect(Collectors.joining());
    }

    private static String text(Duration duration) {
        return duration.toMinutes() > 0 ? duration.toMinutes() + "m" + duration.toSecondsPart() + "s"
                : duration.toSeconds() + " s";
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
