///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Check this machine and download the DragonFlyBSD installer
//JAVA 17+
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.grack:nanojson:1.10
//DEPS org.apache.commons:commons-compress:1.28.0
//DEPS me.tongfei:progressbar:0.10.2
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec logs; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import com.grack.nanojson.JsonWriter;
import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.lang.ProcessBuilder.Redirect;
import java.lang.management.ManagementFactory;
import java.net.Authenticator;
import java.net.BindException;
import java.net.HttpURLConnection;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.Proxy;
import java.net.ServerSocket;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.UnknownHostException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.function.LongSupplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.DelegatingProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.IDefaultValueProvider;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Downloads and verifies DragonFlyBSD's installer ISO, makes blank disks, and checks what this machine lacks.
 *
 * <p>{@code fetch}, in order:
 * <ol>
 * <li>If {@code dfly-<version>.iso} exists and has the known checksum, or none is known, there is nothing to do.
 * <li>Mirror by mirror, until one works: reads {@code md5.txt} and compares it with the known checksums.
 * <li>Downloads into {@code dfly-<version>.iso.bz2.part}, over as many connections as it takes. The next run, or the
 *     next mirror, resumes it. If that gives a file with a wrong checksum, it is downloaded once more from the start.
 * <li>Verifies the archive, unpacks it into {@code dfly-<version>.iso.part}, verifies that, and renames it. A file that
 *     fails verification is deleted.
 * </ol>
 * The process can be killed at any point: every file is complete, or the next run sees that it is not. {@code
 * dfly-<version>.iso.lock} keeps a second fetch out; it is not deleted.
 *
 * <p>{@code disk} writes {@code <name>.install/by-hand.qcow2}, under {@code <name>.lock}. {@code check} reads {@code
 * <name>.pid} and looks for {@code <name>-clean.qcow2}. {@code check} and {@code fetch} write {@code
 * accel.json}: which accelerator works here, why, and for which QEMU and access to /dev/kvm.
 */
@Command(name = "vm-setup", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120, descriptionHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        description = {"Check this machine and download the DragonFlyBSD installer", "",
            "Without a command it does what fetch does. The first that is set counts: option, environment, "
                + "vm.env (KEY=VALUE lines) in the working directory, ~/.go-synth/vm.env."},
        footer = {"  vm-setup check    # what is missing on this machine, and how to fix it",
            "  vm-setup          # the installer, into VM_DIR",
            "  VM_MIRROR=https://avalon.dragonflybsd.org/iso-images/ vm-setup"},
        exitCodeList = {"0:done, or already there", "1:the job failed (a wrong checksum, a damaged file, disk full)",
            "2:wrong usage, or refused because --yes or --trust-mirror was missing",
            "69:something needed is not available (a mirror, QEMU, VM_DIR, the lock), or check found it missing",
            "124:a time limit", "130, 143:interrupted"})
final class VmSetup implements Callable<Integer> {
    private static final String QEMU = "qemu-system-x86_64";
    private static final long MB = 1_000_000; // as mirrors and disks count
    private static final long GB = 1L << 30; // as QEMU counts

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2",
            converter = FileName.class,
            scope = ScopeType.INHERIT,
            paramLabel = "VERSION", description = "The release (DFLY_VERSION; default: ${DEFAULT-VALUE}).")
    String version;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm",
            converter = FileName.class, scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String vmName;

    @Option(names = "--mirror", descriptionKey = "VM_MIRROR", split = "[,\\s]+", scope = ScopeType.INHERIT,
            converter = MirrorConverter.class, defaultValue = """
                https://mirror-master.dragonflybsd.org/iso-images/
                https://avalon.dragonflybsd.org/iso-images/
                https://pub.allbsd.org/DragonFly/iso-images/
                https://mirror.sjtu.edu.cn/dragonflybsd/iso-images/""", paramLabel = "URL,...", hideParamSyntax = true,
            description = {"fetch, check: where md5.txt and the images lie, tried in this order",
                "(VM_MIRROR; default: ${DEFAULT-VALUE})."})
    List<URI> mirrorOption;

    @Option(names = "--image", descriptionKey = "VM_IMAGE", scope = ScopeType.INHERIT, paramLabel = "FILE",
            description = "fetch, check: a local .iso or .iso.bz2 instead of a mirror (VM_IMAGE; default: none).")
    String imageOption;

    @Option(names = "--trust-mirror", scope = ScopeType.INHERIT,
            description = "fetch, check: do not compare the checksums in this script, for an installer of your own "
                    + "with a release's name. It also allows an http mirror for a version without known checksums.")
    boolean trustMirror;

    @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE",
            converter = Size.class, defaultValue = "40G", scope = ScopeType.INHERIT,
            paramLabel = "SIZE", description = "disk, check: the blank disk's size (VM_DISK_SIZE; default: "
                    + "${DEFAULT-VALUE}, sparse).")
    String diskSize;

    @Option(names = "-v", scope = ScopeType.INHERIT, defaultValue = "false",
            description = "Echo every external command.")
    static boolean verbose;

    @Spec
    CommandSpec spec;

    // Tests replace these.
    Limits limits = new Limits(Duration.ofSeconds(60), Duration.ofSeconds(1), 2 * GB, 4 * GB);
    Map<String, Sums> known = Sums.KNOWN;
    Map<String, String> environment = System.getenv();
    Programs programs = new Programs(System.getenv().getOrDefault("PATH", ""));
    Path kvm = Path.of("/dev/kvm");

    public static void main(String... args) {
        writeUtf8();
        System.setProperty("jdk.http.auth.tunneling.disabledSchemes", ""); // allows a password for an https proxy
        exit("vm-setup", commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmSetup(), readSettings(System.getenv(), Path.of("")));
    }

    // Commands

    @Override
    public Integer call() throws Exception {
        return fetch();
    }

    @Command(name = "fetch",
            description = {"Download, verify and unpack the installer: what vm-setup does without a command. Prints "
                    + "the ISO's path.", "",
                "Writes dfly-VERSION.iso in VM_DIR once all checksums are verified. The next run resumes an "
                    + "interrupted download. Uses https_proxy, http_proxy, no_proxy, and for a known release lbzip2 "
                    + "or pbzip2 if installed. Then records in accel.json which accelerator works here."},
            footer = {"  vm-setup fetch --dfly-version 6.4.0",
                "  vm-setup fetch --image ~/Downloads/dfly-x86_64-6.4.2_REL.iso.bz2"})
    int fetch() throws Exception {
        Path vmDir = privateDirectory(vmDirectory(userPath(dirOption)));
        Installer installer = installer(vmDir);
        if (imageOption != null || !installer.isThere()) {
            try {
                FileChannel lock = lock(installer.file(".lock"), "vm-setup fetch");
                try (lock) {
                    if (imageOption != null) {
                        installer.takeImage(userPath(imageOption), originOf(spec, "--image"));
                    } else {
                        installer.download(mirrors());
                    }
                }
            } catch (UncheckedIOException | IOException failed) { // failures of a network are VmExceptions by now
                boolean full = reason(failed).contains("No space left");
                throw full ? new VmException(1, "cannot write to " + vmDir + " (" + reason(failed)
                        + "): make room (about 1100 MB in all), then run it again")
                        : new VmException(69, "cannot make " + installer.iso() + ": " + reason(failed));
            }
        }
        print(installer.iso());
        recordAccelerator(vmDir);
        return 0;
    }

    @Command(name = "disk",
            description = {"Make the blank disk that vm-auto-install by-hand begins with. Prints its path.", "",
                "Only needed to start over with a blank disk: vm-auto-install by-hand makes the first one itself. "
                    + "Writes NAME.install/by-hand.qcow2 in VM_DIR; one that is there is replaced only with --yes. "
                    + "The disk of an installed VM is not touched."},
            footer = {"  vm-setup disk --disk-size 40G", "  vm-setup disk --vm-name mine --yes"})
    int disk(@Option(names = "--yes", description = "Replace a disk that is there.") boolean yes)
            throws Exception {
        Path vmDir = privateDirectory(vmDirectory(userPath(dirOption)));
        Path disk = privateDirectory(vmDir.resolve(vmName + ".install")).resolve("by-hand.qcow2");
        FileChannel lock = lock(vmDir.resolve(vmName + ".lock"), "vm-setup disk");
        try (lock) {
            if (Files.exists(disk)) {
                ProcessResult info = run(Duration.ofMinutes(1), List.of("qemu-img", "info", disk.toString()));
                if (info.getExitValue() != 0 && info.outputUTF8().contains("\" lock")) { // QEMU locks the disks it uses
                    throw new VmException(69, disk + " is in use by a QEMU process, as of an installation by hand: end "
                            + "that first, with Ctrl-] in its terminal");
                }
                if (!yes) {
                    throw new VmException(2, disk + " is there (" + Files.size(disk) / MB + " MB), and nothing was "
                            + "changed; to replace it with a blank disk: " + withOption("--yes"));
                }
            }
            makeDisk(disk);
        }
        print(disk);
        return 0;
    }

    private void makeDisk(Path disk) throws IOException {
        Path tempFile = disk.resolveSibling("by-hand.part");
        try {
            ProcessResult made = run(Duration.ofMinutes(1),
                    List.of("qemu-img", "create", "-q", "-f", "qcow2", tempFile.toString(), diskSize));
            if (made.getExitValue() != 0) {
                throw new VmException(1, "qemu-img made no disk: " + made.outputUTF8().lines().findFirst().orElse(""));
            }
            Files.setPosixFilePermissions(tempFile, PosixFilePermissions.fromString("rw-------"));
            Files.move(tempFile, disk, StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(tempFile);
        }
    }

    @Command(name = "check",
            description = {"Check what is missing on this machine for the VM as configured, a line each, and "
                    + "how to fix it.", "",
                "A line begins with ok, note (it works, but not as well as it could) or fail. Runs a tiny guest to "
                    + "find out which accelerator works, and records that for the other scripts in VM_DIR/accel.json. "
                    + "If VM_ACCEL names one, that is tried, too."},
            footer = {"  vm-setup check", "  VM_MEMORY=4G vm-setup check --json", "  vm-setup check --accel"})
    int check(@Option(names = "--json", description = {"Print {ok, checks: [{name, state, detail, fix}]};",
                "with --accel what accel.json holds: {name, reason, qemu, kvm}."}) boolean json,
            @Option(names = "--accel", description = "Only find out which accelerator works, and record it.")
            boolean accelOnly,
            @Option(names = "--memory", descriptionKey = "VM_MEMORY",
                    converter = Size.class, paramLabel = "SIZE",
                    description = "As 2G or 512M (VM_MEMORY; default: a quarter of the host's within 2G-8G).")
            String memory,
            @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                    description = "The host's port to the guest's sshd (VM_SSH_PORT; default: 2222 or the next free "
                            + "one).") Integer sshPort,
            @Option(names = "--wanted-accel", hidden = true, descriptionKey = "VM_ACCEL",
                    defaultValue = "auto") String accel)
            throws Exception {
        Path vmDir = vmDirectory(userPath(dirOption));
        Optional<AcceleratorProbe> probe = probe(vmDir);
        if (accelOnly) {
            JsonObject record = probe.orElseThrow(() -> new VmException(69, QEMU + " is not on PATH: "
                    + programs.installCommand("qemu"))).measureAndRecord();
            print(json ? JsonWriter.string(record) : AcceleratorProbe.describe(record));
            return 0;
        }
        HostCheck host = new HostCheck(vmDir, vmName, programs);
        Installer installer = installer(vmDir);
        long ram = memory != null ? bytes(memory) : HostCheck.defaultMemory();
        List<Callable<Finding>> checks = List.of(host::java,
                () -> host.program("fail", "qemu", QEMU, "--version"),
                () -> host.program("fail", "qemu", "qemu-img", "--version"),
                () -> host.accelerator(probe, accel),
                () -> host.memory(ram),
                () -> host.space(ram + installer.missingBytes(), bytes(diskSize)),
                () -> host.port(sshPort),
                () -> imageOption == null ? host.installer(installer, mirrors())
                        : host.image(userPath(imageOption), originOf(spec, "--image")),
                host::ssh,
                () -> host.program("note", "rsync", "rsync", "--version"));
        return report(checks, json) ? 0 : 69;
    }

    /** Prints what the checks find; false if one of them failed. */
    private boolean report(List<Callable<Finding>> checks, boolean json) throws Exception {
        boolean ok = true;
        JsonArray all = new JsonArray();
        for (Callable<Finding> check : checks) {
            Finding finding = check.call();
            ok &= !finding.state.equals("fail");
            all.add(finding.toJson());
            if (!json) { // at once, because some checks take seconds
                print(finding);
            }
        }
        if (json) {
            print(JsonWriter.string().object().value("ok", ok).value("checks", all).end().done());
        }
        return ok;
    }

    private Installer installer(Path vmDir) {
        return new Installer(vmDir, release(), limits, programs, this::say);
    }

    private Release release() {
        return new Release(version, known.get(version), trustMirror);
    }

    private Mirrors mirrors() {
        return new Mirrors(mirrorOption, release(), new Http(environment, limits.silence), this::say);
    }

    private Optional<AcceleratorProbe> probe(Path vmDir) {
        return programs.find(QEMU).map(qemu -> new AcceleratorProbe(qemu.toString(), kvm, vmDir));
    }

    /** After a download. Without QEMU there is nothing to measure, and a failure here does not fail the download. */
    private void recordAccelerator(Path vmDir) {
        try {
            Optional<AcceleratorProbe> probe = probe(vmDir);
            if (probe.isPresent()) {
                say(AcceleratorProbe.describe(probe.get().measureAndRecord()));
            }
        } catch (VmException | IOException failed) {
            say("the accelerator is not known yet (" + reason(failed) + "): run vm-setup check");
        }
    }

    private void print(Object answer) {
        spec.commandLine().getOut().println(answer);
    }

    private void say(String text) {
        spec.commandLine().getErr().println("vm-setup: " + printable(text));
    }

    // The installer

    /** What ends a download, and the pause before a retry. A release's files have 260 and 784 MB. */
    record Limits(Duration silence, Duration retryPause, long archive, long iso) {}

    /** Checksums of a release's .iso.bz2 and .iso; null where none is known. */
    record Sums(String archiveMd5, String archiveSha256, String isoMd5) {
        static final Sums NONE = new Sums(null, null, null);
        /**
         * Not from the mirrors, but from golang/build, dragonfly-packer, cross-platform-actions, and compared with a
         * download; the SHA-256 of 6.4.0 from kevemueller/ksysroot. DragonFly itself publishes MD5 only.
         */
        static final Map<String, Sums> KNOWN = Map.of(
                "6.4.2", new Sums("906095312c4a4ac0577fb91d5eb87033",
                        "373150a21eeb7ce0f20c7faf1b8129145bf3bf0463a45d0dc18aad274f7ed661",
                        "fdab09ac37cf427b8c01de5d54bfd1d7"),
                "6.4.0", new Sums("5dbf894d9120664a675030c475f25040",
                        "c213cc20ba1284efafe017c16db1974c154728e2e757c649af91d0e2a246a0dd",
                        "ff4d500c7c75b1f88ca4237a6aa861d1"),
                "6.2.2", new Sums("b391a29c8e9c1cc33f2441ff1f0d98a0", null, null),
                "6.0.0", new Sums("252fc700803dbadce1de928432373bbb", null, null));

        /** Fails if there is something to compare, and it differs. */
        static void require(String what, String algorithm, String actual, String expected) {
            if (actual != null && expected != null && !actual.equals(expected)) {
                throw new VmException(1, what + " has the " + algorithm + " " + actual + ", not " + expected
                        + ", so it is damaged, or another file");
            }
        }

        static String digest(Path file, String algorithm) throws IOException {
            try {
                MessageDigest digest = MessageDigest.getInstance(algorithm);
                try (InputStream in = new DigestInputStream(Files.newInputStream(file), digest)) {
                    in.transferTo(OutputStream.nullOutputStream());
                }
                return HexFormat.of().formatHex(digest.digest());
            } catch (NoSuchAlgorithmException impossible) {
                throw new IllegalStateException(impossible); // every JDK has MD5 and SHA-256
            }
        }
    }

    /** A release of DragonFly: the name of its archive, and the checksums that it must have. */
    record Release(String version, Sums known, boolean trustMirror) {
        String archive() {
            return "dfly-x86_64-" + version + "_REL.iso.bz2";
        }

        /** The checksums to compare with, beside a mirror's md5.txt. */
        Sums pinned() {
            return trustMirror || known == null ? Sums.NONE : known;
        }
    }

    /** Makes dfly-VERSION.iso. A file gets this name only when all its checksums are verified. */
    record Installer(Path vmDir, Release release, Limits limits, Programs programs, Consumer<String> say) {
        Path file(String suffix) {
            return vmDir.resolve("dfly-" + release.version + ".iso" + suffix);
        }

        Path iso() {
            return file("");
        }

        /** An estimate for the archive and the ISO together. */
        long missingBytes() {
            return Files.exists(iso()) ? 0 : 1100 * MB;
        }

        /** Whether the ISO exists. Where its checksum is known it is verified again, which takes seconds. */
        boolean isThere() throws IOException {
            if (Files.exists(iso()) && release.pinned().isoMd5 != null) {
                String md5 = Sums.digest(iso(), "MD5");
                if (!md5.equals(release.pinned().isoMd5)) {
                    throw new VmException(1, iso() + " is not the DragonFly " + release.version
                            + " that is known here (its MD5 is " + md5
                            + "): delete it to download the released one, or use " + withOption("--trust-mirror"));
                }
            }
            return Files.exists(iso());
        }

        void takeImage(Path image, String origin) throws IOException, InterruptedException {
            warnOfUnverified("");
            if (!isReadableFile(image)) {
                throw new VmException(69, origin + ": " + image + " is no file that can be read");
            }
            makeIso(image, image.toString().endsWith(".bz2"), image.toString(), release.pinned());
        }

        void download(Mirrors mirrors) throws IOException, InterruptedException {
            warnOfUnverified(": only the mirror's own md5.txt is compared");
            try {
                mirrors.first(mirror -> downloadFrom(mirrors, mirror));
            } catch (VmException failed) {
                throw new VmException(failed.exitCode, failed.getMessage() + (file(".bz2.part").toFile().length() > 0
                        ? ". The part is kept: run it again to resume"
                        : ". Choose another mirror with VM_MIRROR, or name a local installer with VM_IMAGE"));
            }
        }

        private void warnOfUnverified(String instead) {
            if (release.known == null) {
                say.accept("no checksums are known for DragonFly " + release.version + instead);
            } else if (release.trustMirror) {
                say.accept("WARNING: --trust-mirror: the known checksums of DragonFly " + release.version
                        + " are NOT checked" + instead);
            }
        }

        private void downloadFrom(Mirrors mirrors, URI mirror) throws IOException, InterruptedException {
            Sums expected = mirrors.sums(mirror);
            URI uri = mirror.resolve(release.archive());
            Path part = file(".bz2.part");
            boolean resumed = part.toFile().length() > 0; // perhaps a part of another file
            try {
                new Download(mirrors.http, uri, part, limits).run("DragonFly " + release.version, say);
                makeIso(part, true, uri.toString(), expected);
            } catch (VmException problem) {
                if (problem.exitCode != 1) {
                    throw problem; // what came so far is good for the next mirror, or the next run
                }
                Files.delete(part);
                if (!resumed) {
                    throw problem;
                }
                say.accept(problem.getMessage() + "; once more from the start");
                downloadFrom(mirrors, mirror);
            }
            Files.deleteIfExists(part);
        }

        /** Verifies an archive and unpacks it, or copies an image; verifies the ISO, and gives it its name. */
        private void makeIso(Path source, boolean packed, String what, Sums expected) throws IOException,
                InterruptedException {
            Path part = file(".part");
            try {
                if (packed) {
                    Sums.require(what, "MD5", Sums.digest(source, "MD5"), expected.archiveMd5);
                    Sums.require(what, "SHA-256", Sums.digest(source, "SHA-256"), expected.archiveSha256);
                }
                Optional<Path> tool = packed ? unpacker(expected) : Optional.empty();
                new Unpack(what, source, packed, tool, limits.iso).to(part);
                Sums.require(what + ", unpacked,", "MD5", Sums.digest(part, "MD5"), expected.isoMd5);
                requireIso9660(part, what);
                Files.move(part, iso(), StandardCopyOption.ATOMIC_MOVE);
            } finally {
                Files.deleteIfExists(part); // on a full disk the download needs the room
            }
            say.accept(iso() + " is complete, "
                    + (expected.equals(Sums.NONE) ? "unchecked" : "verified"));
        }

        /**
         * A program that unpacks faster than Java, if it may. lbzip2 and pbzip2 are not memory safe, so they only get a
         * verified archive whose checksum this script knows, or --trust-mirror accepts.
         */
        private Optional<Path> unpacker(Sums verified) {
            Sums trusted = release.trustMirror ? verified : release.pinned();
            return trusted.archiveMd5 == null ? Optional.empty()
                    : programs.find("lbzip2").or(() -> programs.find("pbzip2"));
        }

        private static void requireIso9660(Path file, String what) throws IOException {
            try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
                ByteBuffer magic = ByteBuffer.allocate(5);
                channel.read(magic, 0x8001);
                if (!new String(magic.array(), UTF_8).equals("CD001")) {
                    throw new VmException(1, what + " holds no ISO 9660 image, so it is no installer");
                }
                channel.force(true); // or a power failure could leave an empty file with the name of a verified one
            }
        }
    }

    /** The mirrors: in which order they are tried, and what each publishes. */
    record Mirrors(List<URI> uris, Release release, Http http, Consumer<String> say) {
        interface Action {
            void accept(URI mirror) throws IOException, InterruptedException;
        }

        /** The first mirror with which the action succeeds. Says why others failed; of the last one it throws why. */
        URI first(Action action) throws IOException, InterruptedException {
            for (URI mirror : uris) {
                try {
                    action.accept(mirror);
                    return mirror;
                } catch (VmException problem) {
                    if (mirror.equals(uris.get(uris.size() - 1))) {
                        throw problem;
                    }
                    say.accept(problem.getMessage() + "; trying the next mirror");
                }
            }
            throw new VmException(2, "no mirror is set");
        }

        /** The known checksums, completed by those of a mirror's md5.txt. Fails if the mirror has another archive. */
        Sums sums(URI mirror) throws InterruptedException {
            String archive = release.archive();
            if (mirror.getScheme().equals("http") && !release.trustMirror && release.known == null) {
                throw new VmException(2, mirror + " is skipped, as no checksums are known for DragonFly "
                        + release.version + ", and over http anybody could replace the file: this release needs an "
                        + "https mirror, or " + withOption("--trust-mirror"));
            }
            try {
                String text = http.text(mirror.resolve("md5.txt"));
                Map<String, String> listed = parse(text);
                if (listed.isEmpty()) {
                    throw new VmException(69, mirror + "md5.txt lists no checksums" + (text.contains("<html")
                            ? ", but a web page (a network that wants a login?)" : ""));
                } else if (!listed.containsKey(archive)) {
                    throw new VmException(69, mirror + " has no DragonFly " + release.version + ", but "
                            + listed.keySet().stream().filter(name -> name.endsWith(".iso.bz2"))
                            .sorted(Comparator.reverseOrder()).limit(20).collect(Collectors.joining(", "))
                            + " (choose with DFLY_VERSION)");
                }
                Sums pinned = release.pinned();
                Sums.require(mirror + "md5.txt: " + archive, "MD5", listed.get(archive), pinned.archiveMd5);
                return new Sums(listed.get(archive), pinned.archiveSha256,
                        pinned.isoMd5 != null ? pinned.isoMd5 : listed.get(archive.replace(".bz2", "")));
            } catch (IOException unreachable) {
                throw new VmException(69, mirror + " cannot be reached (" + Http.cause(unreachable) + ")");
            }
        }

        /** Lines like "MD5 (name) = sum". */
        static Map<String, String> parse(String text) {
            return Pattern.compile("(?m)^MD5 \\(([\\w.-]{1,64})\\) = ([0-9a-f]{32})\\s*$").matcher(text).results()
                    .collect(Collectors.toMap(line -> line.group(1), line -> line.group(2), (first, again) -> again));
        }
    }

    /** Completes the part file of an archive, until five connections in a row bring nothing. */
    static final class Download {
        /** Connections in a row that bring nothing new before a mirror is given up. */
        private static final int ATTEMPTS = 5;

        private final Http http;
        private final URI uri;
        private final Path part;
        private final Limits limits;
        private volatile long position;
        private volatile long total = -1;
        /** All bytes of responses, also those that a server without ranges sends again. */
        private volatile long received;

        Download(Http http, URI uri, Path part, Limits limits) {
            this.http = http;
            this.uri = uri;
            this.part = part;
            this.limits = limits;
        }

        void run(String title, Consumer<String> say) throws IOException, InterruptedException {
            position = Files.exists(part) ? Files.size(part) : 0;
            try (OutputStream file = Files.newOutputStream(part, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
                    ProgressBar bar = progressBar(title, say)) {
                for (int fruitless = 0;;) {
                    long before = position;
                    try {
                        http.withMinimumRate(uri, () -> received, () -> receive(file, bar));
                        return;
                    } catch (IOException ended) {
                        fruitless = position - before < 1 << 16 ? fruitless + 1 : 0;
                        if (fruitless == ATTEMPTS) {
                            throw new VmException(69, uri + " failed " + ATTEMPTS + " times in a row ("
                                    + Http.cause(ended) + ")");
                        }
                        // once, 2, 4, 8 times the pause
                        Thread.sleep(fruitless == 0 ? 0 : limits.retryPause.toMillis() << fruitless - 1);
                    }
                }
            }
        }

        /** Appends what one connection brings; an IOException if that is not all. */
        private Void receive(OutputStream file, ProgressBar bar) throws IOException {
            HttpURLConnection response = http.open(uri, position);
            int status = response.getResponseCode();
            long again = status == 200 ? position : 0; // what a server without ranges sends once more
            long length = response.getContentLengthLong();
            total = length < 0 ? -1 : position - again + length;
            requireSize(uri.toString(), total, limits.archive);
            if (status == 416 || total >= 0 && total <= position) {
                return null; // all is here, or it is of another file, which the checksums tell
            }
            byte[] buffer = new byte[1 << 16];
            try (InputStream body = response.getInputStream()) {
                for (int read = body.read(buffer); read >= 0; read = body.read(buffer)) {
                    received += read;
                    int skip = (int) Math.min(again, read);
                    again -= skip;
                    requireSize(uri.toString(), position + read - skip, limits.archive);
                    write(file, buffer, skip, read - skip);
                    position += read - skip;
                    bar.maxHint(total).stepTo(position);
                }
            }
            if (position < total) {
                throw new EOFException("the connection ended after " + position + " of " + total + " bytes");
            }
            return null;
        }

        /** Rate and time left: a bar on a terminal, a line now and then elsewhere. */
        private ProgressBar progressBar(String title, Consumer<String> say) {
            boolean terminal = isTerminal(2);
            return new ProgressBarBuilder().setTaskName(title).setInitialMax(-1).setUnit(" MB", MB).showSpeed()
                    .startsFrom(position, Duration.ZERO).setStyle(ProgressBarStyle.ASCII)
                    .setUpdateIntervalMillis(terminal ? 500 : 10_000)
                    .setConsumer(terminal ? new ConsoleProgressBarConsumer(System.err, 79)
                            : new DelegatingProgressBarConsumer(line -> {
                                if (position > 0 && position < total) {
                                    say.accept(line);
                                }
                            }, 100)).build();
        }
    }

    /**
     * Makes GET requests, directly or through the proxy of the environment, and gives up servers that are silent or
     * send very little. HttpURLConnection, because in Java 17 HttpClient has no timeout for a response's body, and does
     * not tell why it cannot connect.
     */
    record Http(Map<String, String> environment, Duration silence) {
        String text(URI uri) throws IOException, InterruptedException {
            return withMinimumRate(uri, () -> 0, () -> {
                try (InputStream body = open(uri, 0).getInputStream()) {
                    return new String(body.readNBytes(1 << 20), UTF_8);
                }
            });
        }

        /**
         * Runs a request in a thread of its own, and gives it up when {@code received} grows by less than a kilobyte a
         * second. The timeouts of a socket apply to single reads only, so a server that sends a byte a minute never
         * hits them.
         */
        <T> T withMinimumRate(URI uri, LongSupplier received, Callable<T> exchange) throws IOException,
                InterruptedException {
            FutureTask<T> task = new FutureTask<>(exchange);
            Thread thread = new Thread(task, "download");
            thread.setDaemon(true); // one that was given up does not keep this process
            thread.start();
            long millis = 2 * silence.toMillis(); // silence itself is noticed before, by the socket
            for (long before = received.getAsLong();;) {
                try {
                    return task.get(millis, TimeUnit.MILLISECONDS);
                } catch (TimeoutException stillRunning) {
                    long now = received.getAsLong();
                    if (now - before < millis) {
                        throw new VmException(69, uri + " sends less than a kilobyte a second");
                    }
                    before = now;
                } catch (ExecutionException failed) {
                    if (failed.getCause() instanceof IOException ended) {
                        throw ended;
                    }
                    throw failed.getCause() instanceof RuntimeException other ? other
                            : new IllegalStateException(failed);
                }
            }
        }

        /** A response with 200, 206 or 416, to a request for all from a position on. */
        HttpURLConnection open(URI uri, long position) throws IOException {
            HttpURLConnection connection = connection(uri);
            connection.setConnectTimeout((int) Math.min(15_000, silence.toMillis()));
            connection.setReadTimeout((int) silence.toMillis());
            if (position > 0) {
                connection.setRequestProperty("Range", "bytes=" + position + "-");
            }
            int status = connection.getResponseCode();
            if (status == 408 || status == 429 || status >= 500) {
                throw new IOException(uri + " answered " + status);
            } else if (status != 200 && status != 206 && status != 416) {
                throw new VmException(69, uri + " answered " + status + (status == 404 ? ", not found"
                        : status / 100 == 3 ? String.format(", it moved to %.200s",
                        connection.getHeaderField("Location")) : ""));
            }
            return connection;
        }

        /** With a proxy of its own: the JDK's settings for proxies connect directly if the proxy cannot be reached. */
        private HttpURLConnection connection(URI uri) throws IOException {
            Optional<URI> setting = proxy(uri.getScheme(), uri.getHost(), environment);
            if (setting.isEmpty()) {
                return (HttpURLConnection) uri.toURL().openConnection();
            }
            URI proxy = setting.get();
            HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection(
                    new Proxy(Proxy.Type.HTTP, new InetSocketAddress(proxy.getHost(), proxy.getPort())));
            if (proxy.getUserInfo() != null) {
                String[] user = (proxy.getUserInfo() + (proxy.getUserInfo().contains(":") ? "" : ":")).split(":", 2);
                connection.setAuthenticator(new Authenticator() {
                    @Override
                    protected PasswordAuthentication getPasswordAuthentication() {
                        return getRequestorType() != RequestorType.PROXY ? null
                                : new PasswordAuthentication(user[0], user[1].toCharArray());
                    }
                });
            }
            return connection;
        }

        /** The proxy that the environment names for a host, if it does. */
        static Optional<URI> proxy(String scheme, String host, Map<String, String> environment) {
            String setting = either(environment, scheme + "_proxy");
            String direct = "localhost,127.0.0.1," + either(environment, "no_proxy");
            if (setting.isEmpty() || Stream.of(direct.split("[,\\s]+")).anyMatch(domain -> domain.equals("*")
                    || ("." + host).endsWith(domain.startsWith(".") ? domain : "." + domain))) {
                return Optional.empty();
            }
            return Optional.of(httpAddress(setting.contains("://") ? setting : "http://" + setting)
                    .filter(proxy -> proxy.getScheme().equals("http") && proxy.getPort() > 0)
                    .orElseThrow(() -> new VmException(2, scheme + "_proxy is not http://[user:password@]host:port")));
        }

        private static String either(Map<String, String> environment, String key) {
            return environment.getOrDefault(key, environment.getOrDefault(key.toUpperCase(Locale.ROOT), ""));
        }

        static String cause(IOException failure) {
            return (failure instanceof UnknownHostException ? "unknown host " : "") + reason(failure);
        }
    }

    /** Unpacks an archive with a program or the built-in unpacker, or copies an image. */
    record Unpack(String what, Path source, boolean packed, Optional<Path> tool, long limit) {
        void to(Path target) throws IOException, InterruptedException {
            try (OutputStream out = Files.newOutputStream(target)) {
                unpack(out);
            }
        }

        private void unpack(OutputStream out) throws InterruptedException {
            try (InputStream in = new BufferedInputStream(Files.newInputStream(source), 1 << 16)) {
                if (tool.isPresent()) {
                    runTool(out);
                } else {
                    copy(packed ? new BZip2CompressorInputStream(in, true) : in, out);
                }
            } catch (UncheckedIOException | VmException explained) {
                throw explained;
            } catch (IOException | RuntimeException damage) { // the unpacker may trip over a bad archive in any way
                throw new VmException(1, what + " cannot be unpacked (" + reason(damage) + "): truncated, or damaged");
            }
        }

        private void runTool(OutputStream out) throws IOException, InterruptedException {
            List<String> command = List.of(tool.get().toString(), "-d", "-c");
            if (verbose) {
                System.err.println("+ " + shellQuoted(command) + " <" + shellQuoted(List.of(source.toString())));
            }
            Process process = new ProcessBuilder(command).redirectInput(source.toFile())
                    .redirectError(Redirect.DISCARD).start();
            try (InputStream in = process.getInputStream()) {
                copy(in, out);
                if (process.waitFor() != 0) {
                    throw new IOException(tool.get().getFileName() + " ended with " + process.exitValue());
                }
            } finally {
                process.destroyForcibly();
            }
        }

        private void copy(InputStream in, OutputStream out) throws IOException {
            byte[] buffer = new byte[1 << 16];
            long size = 0;
            for (int read = in.read(buffer); read >= 0; read = in.read(buffer)) {
                size += read;
                requireSize(what + ", unpacked,", size, limit);
                write(out, buffer, 0, read);
            }
        }
    }

    /** Writes to a file in VM_DIR. A failure (a full disk) is unchecked, unlike that of a network or an archive. */
    private static void write(OutputStream file, byte[] bytes, int offset, int length) {
        try {
            file.write(bytes, offset, length);
        } catch (IOException full) {
            throw new UncheckedIOException(full.getMessage(), full);
        }
    }

    /** Ends what would fill the disk; no release comes near the limits. */
    private static void requireSize(String what, long size, long limit) {
        if (size > limit) {
            throw new VmException(1, what + " is larger than " + limit / MB + " MB, so it is no release of DragonFly");
        }
    }

    // This machine

    /** What one check found. The state is ok, note or fail; {@code fix} says what to do unless it is ok. */
    record Finding(String name, String state, String detail, String fix) {
        Finding {
            detail = printable(detail); // a mirror's words may be in it
            fix = state.equals("ok") ? "" : fix;
        }

        JsonObject toJson() {
            return JsonObject.builder().value("name", name).value("state", state).value("detail", detail)
                    .value("fix", fix).done();
        }

        @Override
        public String toString() {
            return String.format("%-4s  %-18s  %s%s", state, name, detail, fix.isEmpty() ? "" : " -> " + fix);
        }
    }

    /** Checks what the VM needs on this machine: a method for each requirement. */
    record HostCheck(Path vmDir, String vmName, Programs programs) {
        Finding java() {
            boolean compiler = Files.exists(Path.of(System.getProperty("java.home"), "bin/javac"));
            return new Finding("java", compiler ? "ok" : "note", "Java " + Runtime.version()
                    + (compiler ? "" : " without javac, which JBang and make need"), programs.installCommand("jdk"));
        }

        Finding program(String ifMissing, String packages, String program, String argument) throws IOException {
            Optional<Path> file = programs.find(program);
            String detail = "not on PATH";
            boolean runs = false;
            if (file.isPresent()) {
                try {
                    ProcessResult result = run(Duration.ofSeconds(20), List.of(file.get().toString(), argument));
                    runs = result.getExitValue() == 0;
                    detail = result.outputUTF8().lines().findFirst()
                            .orElse(file.get() + " ends with " + result.getExitValue());
                } catch (VmException broken) {
                    detail = broken.getMessage();
                }
            }
            return new Finding(program, runs ? "ok" : ifMissing, detail, programs.installCommand(packages));
        }

        /** In a container a process may have a user id without an entry in /etc/passwd, and ssh refuses to run then. */
        Finding ssh() throws IOException {
            Finding found = program("fail", "ssh", "ssh", "-V");
            Matcher unknown = Pattern.compile("No user exists for uid (\\d+)").matcher(found.detail);
            return !unknown.matches() ? found : new Finding("ssh", "fail", "ssh refuses to run for a user without an "
                    + "entry in the user database: " + found.detail, "run this as a user with an entry, or add one as "
                    + "root: useradd --uid " + unknown.group(1) + " vm");
        }

        Finding accelerator(Optional<AcceleratorProbe> optional, String wanted) throws IOException {
            if (optional.isEmpty()) {
                return new Finding("accelerator", "note", "unknown without QEMU", "");
            }
            AcceleratorProbe probe = optional.get();
            Accelerator found;
            try {
                found = probe.measure();
            } catch (VmException none) {
                return new Finding("accelerator", "fail", none.getMessage(), programs.installCommand("qemu"));
            }
            String unrecorded = "";
            try {
                probe.record(found);
            } catch (VmException | IOException refused) {
                unrecorded = " (not recorded in accel.json: " + reason(refused) + ")";
            }
            boolean set = !wanted.equals("auto");
            boolean good = set ? probe.bootMillis(wanted, Duration.ofSeconds(10)) >= 0 : !found.name.equals("tcg");
            String detail = set ? wanted + ", as set, runs " + (good ? "a" : "no") + " guest here"
                    : found.name + (good ? ": " : ", which is slow: ") + found.reason;
            return new Finding("accelerator", good ? "ok" : set ? "fail" : "note", detail + unrecorded,
                    set ? "unset VM_ACCEL: then what works is used" : probe.fix());
        }

        private static long totalMemory() {
            return ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize();
        }

        static long defaultMemory() {
            return Math.max(2 * GB, Math.min(8 * GB, totalMemory() / 4));
        }

        Finding memory(long wanted) throws IOException {
            long total = totalMemory();
            Path meminfo = Path.of("/proc/meminfo"); // what the JDK calls free leaves out the page cache
            long free = !Files.exists(meminfo) ? total : Math.min(total, Pattern.compile("MemAvailable: *(\\d+)")
                    .matcher(Files.readString(meminfo)).results()
                    .mapToLong(line -> Long.parseLong(line.group(1)) << 10).sum());
            return new Finding("memory", wanted <= free ? "ok" : wanted <= total ? "note" : "fail",
                    String.format("the VM gets %dM; %dM of %dM are free", wanted >> 20, free >> 20, total >> 20),
                    "set VM_MEMORY lower, or close programs");
        }

        /**
         * Estimated generously: an installed system with Go is about 3 GB, there once in phases and once flattened.
         * A snapshot takes as much as the RAM.
         */
        Finding space(long other, long diskSize) {
            Path there = vmDir;
            while (!Files.exists(there)) {
                there = there.getParent();
            }
            long needed = other + (Files.exists(vmDir.resolve(vmName + "-clean.qcow2")) ? 0 : 6 * GB);
            long free = there.toFile().getUsableSpace();
            boolean usable = Files.isDirectory(there) && Files.isWritable(there);
            String detail = String.format("%d MB are free in %s%s; %d are needed, up to %d more as the VM's disk fills",
                    free / MB, vmDir, usable ? "" : ", which cannot be written", needed / MB, diskSize / MB);
            String state = !usable || free < needed ? "fail" : free < needed + diskSize ? "note" : "ok";
            return new Finding("space", state, detail, "make room, or choose another place with VM_DIR");
        }

        Finding port(Integer portOption) throws IOException {
            int port = portOption != null ? portOption : 2222;
            try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
                return new Finding("port", "ok", socket.getLocalPort() + " is free", "");
            } catch (BindException | IllegalArgumentException refused) { // in use, for root alone, or no port
                String holder = portHolder(port);
                boolean own = holder.endsWith("(pid " + runningPid() + ")");
                return new Finding("port", own || portOption == null ? "ok" : "fail", port + " cannot be used: "
                        + refused.getMessage() + holder + (own ? ", the VM " + vmName + " itself"
                        : portOption == null ? "; the next free one will be used" : ""),
                        "choose another port with --ssh-port or VM_SSH_PORT, or unset it");
            }
        }

        /** " by PROGRAM (pid N)", as far as this user may know who listens on a port; else "". */
        private static String portHolder(int port) throws IOException {
            try {
                ProcessResult listeners = run(Duration.ofSeconds(20), List.of("ss", "-Hltnp", "sport = :" + port));
                Matcher user = Pattern.compile("\"(.*?)\",pid=(\\d+)").matcher(listeners.outputUTF8());
                return user.find() ? " by " + user.group(1) + " (pid " + user.group(2) + ")" : "";
            } catch (VmException noSs) {
                return "";
            }
        }

        /** The pid that vm-ctl recorded for the running VM, or 0. */
        private int runningPid() {
            try {
                return JsonParser.object().from(Files.readString(vmDir.resolve(vmName + ".pid"))).getInt("pid");
            } catch (IOException | JsonParserException notRunning) {
                return 0;
            }
        }

        Finding installer(Installer installer, Mirrors mirrors) throws IOException, InterruptedException {
            if (Files.exists(installer.iso())) {
                return new Finding("installer", "ok", installer.iso() + " is there", "");
            }
            try {
                URI mirror = mirrors.first(mirrors::sums);
                return new Finding("installer", "ok", mirror + " has DragonFly " + installer.release.version, "");
            } catch (VmException refused) {
                return new Finding("installer", "fail", refused.getMessage(), "set https_proxy, VM_MIRROR or VM_IMAGE");
            }
        }

        Finding image(Path image, String origin) {
            return new Finding("installer", isReadableFile(image) ? "ok" : "fail", "from " + image,
                    origin + " must name a file that can be read");
        }
    }

    /** Runs a tiny guest to find out which accelerator works, and records it for the other scripts in accel.json. */
    record AcceleratorProbe(String qemu, Path kvm, Path vmDir) {
        /** What keeps Linux from using KVM, and how to change that. */
        record Obstacle(String what, String fix) {}

        JsonObject measureAndRecord() throws IOException {
            return record(measure());
        }

        JsonObject record(Accelerator found) throws IOException {
            JsonObject record = JsonObject.builder().value("name", found.name).value("reason", found.reason)
                    .value("qemu", version()).value("kvm", opens(kvm)).done();
            writeFile(privateDirectory(vmDir).resolve("accel.json"), JsonWriter.string(record) + "\n");
            return record;
        }

        static String describe(JsonObject record) {
            return "accelerator: " + record.getString("name") + " (" + record.getString("reason") + ")";
        }

        private String version() throws IOException {
            return run(Duration.ofSeconds(20), List.of(qemu, "--version")).outputUTF8().lines().findFirst().orElse("");
        }

        /** Measures a guest, because a device that opens may still be useless (seen: 17 times slower than TCG). */
        Accelerator measure() throws IOException {
            String virtual = isMac() ? "hvf" : "kvm";
            if (!isMac() && !opens(kvm)) {
                return new Accelerator("tcg", obstacle().what);
            }
            long emulated = bootMillis("tcg", Duration.ofSeconds(10));
            for (int attempt = 1; attempt <= 2; attempt++) { // a busy machine may slow one down, hardly two
                long limit = 3 * Math.max(emulated, 100);
                long millis = bootMillis(virtual, Duration.ofMillis(limit + 1000));
                if (millis >= 0 && millis <= limit) {
                    return new Accelerator(virtual, "a probe ran in " + millis + " ms (" + emulated + " ms emulated)");
                }
            }
            if (emulated < 0) {
                throw new VmException(69, qemu + " runs no guest, neither with " + virtual + " nor with tcg: is it "
                        + "installed completely?");
            }
            return new Accelerator("tcg", virtual + " exists, but the probe failed or was too slow with it (emulated: "
                    + emulated + " ms)");
        }

        /** Milliseconds until a 512-byte guest has ended QEMU with 33, by writing 0x10 to the debug port; -1 if not. */
        long bootMillis(String accelerator, Duration limit) throws IOException {
            byte[] code = HexFormat.of().parseHex("b010e6f4ebfe"); // mov al,0x10; out 0xf4,al; jmp $
            byte[] sector = ByteBuffer.allocate(512).put(code).putShort(510, (short) 0x55aa).array();
            Path image = Files.write(Files.createTempFile("vm-probe", ".img"), sector);
            try {
                long start = System.nanoTime();
                int status = run(limit, List.of(qemu, "-machine", "pc", "-accel", accelerator, "-m", "16",
                        "-no-user-config", "-nodefaults", "-display", "none",
                        "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
                        "-drive", "format=raw,file=" + image.toString().replace(",", ",,"))).getExitValue();
                return status == 33 ? Duration.ofNanos(System.nanoTime() - start).toMillis() : -1;
            } catch (VmException tooLong) {
                return -1;
            } finally {
                Files.delete(image);
            }
        }

        /** What to do where only emulation works. */
        String fix() throws IOException {
            return !isMac() && !opens(kvm) ? obstacle().fix
                    : "until it works, emulation is used, which is slow" + (isMac() ? ""
                    : "; KVM often fails on a host that is itself a VM");
        }

        private Obstacle obstacle() throws IOException {
            Path cpuinfo = Path.of("/proc/cpuinfo");
            return obstacle(Files.exists(kvm), Files.exists(cpuinfo) ? Files.readString(cpuinfo) : "");
        }

        static Obstacle obstacle(boolean exists, String cpuinfo) {
            if (exists) {
                return new Obstacle("no permission for /dev/kvm",
                        "sudo usermod -aG kvm $USER, log in again; in a container, pass the device in");
            }
            return Pattern.compile("\\b(vmx|svm)\\b").matcher(cpuinfo).find()
                    ? new Obstacle("no /dev/kvm: no module is loaded, or a container hides it",
                            "sudo modprobe kvm_intel || sudo modprobe kvm_amd")
                    : new Obstacle("no /dev/kvm, and the processor shows no virtualization",
                            "switch it on in the firmware, or for this VM");
        }

        private static boolean isMac() {
            return System.getProperty("os.name").startsWith("Mac");
        }
    }

    /** Finds programs, and says how to install a missing one with the package manager of this machine. */
    record Programs(String searchPath) {
        Optional<Path> find(String program) {
            return Stream.of(searchPath.split(":")).filter(directory -> !directory.isEmpty())
                    .map(directory -> Path.of(directory, program)).filter(Files::isExecutable).findFirst();
        }

        String installCommand(String what) {
            String[][] managers = {{"apt-get", "sudo apt-get install ", "qemu-system-x86 qemu-utils", "openssh-client",
                "default-jdk"},
                {"dnf", "sudo dnf install ", "qemu-system-x86-core qemu-img", "openssh-clients", "java-devel"},
                {"pacman", "sudo pacman -S ", "qemu-base", "openssh", "jdk-openjdk"},
                {"brew", "brew install ", "qemu", "openssh", "openjdk"}};
            int column = 2 + List.of("qemu", "ssh", "jdk").indexOf(what);
            return Stream.of(managers).filter(manager -> find(manager[0]).isPresent()).findFirst()
                    .map(manager -> manager[1] + (column < 2 ? what : manager[column])).orElse("install " + what);
        }
    }

    // Values

    private static boolean isReadableFile(Path file) {
        return Files.isRegularFile(file) && Files.isReadable(file);
    }

    /** 40G or 512M in bytes. */
    private static long bytes(String size) {
        return Long.parseLong(size.substring(0, size.length() - 1)) << 20
                + 10 * "MGT".indexOf(size.charAt(size.length() - 1));
    }

    /** A mirror's directory: its address ends with a slash. */
    static final class MirrorConverter implements ITypeConverter<URI> {
        @Override
        public URI convert(String value) {
            return httpAddress(value.replaceFirst("/*$", "/"))
                    .orElseThrow(() -> new TypeConversionException("'" + value + "' is no http or https address"));
        }
    }

    private static Optional<URI> httpAddress(String text) {
        try {
            return Optional.of(new URI(text)).filter(uri -> text.matches("https?://.*") && uri.getHost() != null
                    && uri.getPort() <= 65535);
        } catch (URISyntaxException garbled) {
            return Optional.empty();
        }
    }

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

}
