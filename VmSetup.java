///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Check this machine and download the DragonFlyBSD installer
//JAVA 17+
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.grack:nanojson:1.10
//DEPS org.apache.commons:commons-compress:1.28.0
//DEPS commons-codec:commons-codec:1.19.0
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
import java.io.File;
import java.io.FilterOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.lang.ProcessBuilder.Redirect;
import java.lang.management.ManagementFactory;
import java.lang.module.ModuleDescriptor;
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
import java.net.URLDecoder;
import java.net.UnknownHostException;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.NoSuchFileException;
import java.nio.file.OpenOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
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
import org.apache.commons.codec.digest.DigestUtils;
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
import picocli.CommandLine.ParseResult;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Puts DragonFlyBSD's installer ISO into VM_DIR, verified; makes a blank disk; tells what this machine lacks.
 *
 * <p>{@code fetch}, in order:
 * <ol>
 * <li>An ISO that is there is the answer, if its sum is the one known here, or none is known.
 * <li>For one mirror after the other: {@code md5.txt} is read and compared with the sums known here, before any
 *     download.
 * <li>{@code dfly-<version>.iso.bz2.<its md5>.part} grows, over as many connections as it takes; the next run goes on
 *     with it, from this mirror or another that has the same file.
 * <li>When its sums hold, it is unpacked into {@code dfly-<version>.iso.part}. When that one's sum holds too, it gets
 *     the ISO's name. Of what fails a check nothing is kept.
 * </ol>
 * Each of these files is complete, or recognised as incomplete by the next run: the process can be killed at any point.
 * {@code dfly-<version>.iso.lock}, which stays, keeps a second one out.
 * {@code disk} writes {@code <name>.install/by-hand.qcow2}, under {@code <name>.lock}. {@code check} reads {@code
 * <name>.pid} and looks for {@code <name>-clean.qcow2}. {@code check}, and {@code fetch} if there is none that counts,
 * write {@code accel.json}: which accelerator works here, why, and with which QEMU and access to /dev/kvm that was
 * measured.
 */
@Command(name = "vm-setup", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120, descriptionHeading = "%n", optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        description = {"Check this machine and download the DragonFlyBSD installer", "",
            "Without a command it does what fetch does. An option wins over the environment, the environment over "
                + "vm.env (KEY=VALUE lines) in the working directory, that over ~/.go-synth/vm.env."},
        footer = {"  vm-setup check    # what is missing on this machine, and how to fix it",
            "  vm-setup          # the installer, into VM_DIR",
            "  VM_MIRROR=https://avalon.dragonflybsd.org/iso-images/ vm-setup"},
        exitCodeList = {"0:done, or already there", "1:the job failed (a wrong sum, a damaged file, disk full)",
            "2:wrong usage, or refused because --yes was missing",
            "69:something needed is not available (a mirror, QEMU, the lock)",
            "124:a time limit", "130, 143:interrupted"})
final class VmSetup implements Callable<Integer> {
    private static final String QEMU = "qemu-system-x86_64";
    private static final long MB = 1_000_000; // as mirrors and disks count
    private static final long GB = 1L << 30; // as QEMU counts
    /** Connections in a row that bring nothing new before a mirror is given up. */
    private static final int ATTEMPTS = 5;

    /** Sums of a release's .iso.bz2 and .iso; null where none is known. */
    record Sums(String archiveMd5, String archiveSha256, String isoMd5) {
        static final Sums NONE = new Sums(null, null, null);
    }

    /**
     * From other places than the mirrors: golang/build, dragonfly-packer, cross-platform-actions, a download that
     * agreed; the SHA-256 of 6.4.0 from kevemueller/ksysroot. DragonFly itself publishes MD5 only.
     */
    static final Map<String, Sums> PINNED = Map.of(
            "6.4.2", new Sums("906095312c4a4ac0577fb91d5eb87033",
                    "373150a21eeb7ce0f20c7faf1b8129145bf3bf0463a45d0dc18aad274f7ed661",
                    "fdab09ac37cf427b8c01de5d54bfd1d7"),
            "6.4.0", new Sums("5dbf894d9120664a675030c475f25040",
                    "c213cc20ba1284efafe017c16db1974c154728e2e757c649af91d0e2a246a0dd",
                    "ff4d500c7c75b1f88ca4237a6aa861d1"),
            "6.2.2", new Sums("b391a29c8e9c1cc33f2441ff1f0d98a0", null, null),
            "6.0.0", new Sums("252fc700803dbadce1de928432373bbb", null, null));

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2",
            scope = ScopeType.INHERIT,
            paramLabel = "VERSION", description = "The release (DFLY_VERSION; default: ${DEFAULT-VALUE}).")
    String version;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String name;

    @Option(names = "--mirror", descriptionKey = "VM_MIRROR", split = "[,\\s]+", scope = ScopeType.INHERIT,
            converter = Web.class, defaultValue = """
                https://mirror-master.dragonflybsd.org/iso-images/
                https://avalon.dragonflybsd.org/iso-images/
                https://pub.allbsd.org/DragonFly/iso-images/
                https://mirror.sjtu.edu.cn/dragonflybsd/iso-images/""", paramLabel = "URL,...", hideParamSyntax = true,
            description = {"fetch, check: where md5.txt and the images lie, tried in this order",
                "(VM_MIRROR; default: ${DEFAULT-VALUE})."})
    List<URI> mirrors;

    @Option(names = "--image", descriptionKey = "VM_IMAGE", scope = ScopeType.INHERIT, paramLabel = "FILE",
            description = "fetch, check: a local .iso or .iso.bz2 instead of a mirror (VM_IMAGE; default: none).")
    String imageOption;

    @Option(names = "--trust-mirror", scope = ScopeType.INHERIT,
            description = "fetch: skip the sums known to this script and believe the mirror's md5.txt, or VM_IMAGE: "
                    + "for an image that is not the release whose name it bears, such as a stand-in for tests, and for "
                    + "a version without known sums from an http mirror.")
    boolean trustMirror;

    @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE", defaultValue = "40G", scope = ScopeType.INHERIT,
            paramLabel = "SIZE", description = "disk, check: the blank disk's size (VM_DISK_SIZE; default: "
                    + "${DEFAULT-VALUE}, sparse).")
    String diskSize;

    @Option(names = "-v", scope = ScopeType.INHERIT, defaultValue = "false",
            description = "Echo every external command.")
    static boolean verbose;

    @Spec
    CommandSpec spec;

    Path vmDir;
    private Path image;
    /**
     * Tests change these: the pause before a second connection, how long one may be silent, how often the progress of
     * the download is printed, the largest files (releases have 260 and 784 MB), the known sums, the proxies, where
     * programs and KVM are.
     */
    Duration pause = Duration.ofSeconds(1);
    Duration silence = Duration.ofSeconds(60);
    Duration report = Duration.ofSeconds(10);
    long largestArchive = 2 * GB;
    long largestIso = 4 * GB;
    Map<String, Sums> known = PINNED;
    Map<String, String> environment = System.getenv();
    String searchPath = System.getenv().getOrDefault("PATH", "");
    Path kvm = Path.of("/dev/kvm");

    public static void main(String... args) {
        replaceClosedStreams();
        Authenticator.setDefault(new ProxyUser());
        System.setProperty("jdk.http.auth.tunneling.disabledSchemes", ""); // or no proxy for https is told a password
        exit("vm-setup", commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmSetup(), readSettings(System.getenv(), Path.of("")));
    }

    @Override
    public Integer call() throws Exception {
        return fetch();
    }

    @Command(name = "fetch",
            description = {"Download, verify and unpack the installer: what vm-setup does without a command. Prints "
                    + "the ISO's path.", "",
                "Writes dfly-VERSION.iso in VM_DIR, which gets its name once all sums hold. What came so far lies "
                    + "beside it in a .part file, and the next run goes on with it. Uses https_proxy, http_proxy, "
                    + "no_proxy, and for a known release lbzip2 or pbzip2 if installed. At the end it records in "
                    + "accel.json which accelerator works here, if that is not known."},
            footer = {"  vm-setup fetch --dfly-version 6.4.0",
                "  vm-setup fetch --image ~/Downloads/dfly-x86_64-6.4.2_REL.iso.bz2"},
            exitCodeList = {"0:done, or already there", "1:the job failed (a wrong sum, a damaged file, disk full)",
                "2:wrong usage, or refused because --trust-mirror was missing",
                "69:something needed is not available (a mirror that has it, VM_IMAGE, VM_DIR, the lock)",
                "130, 143:interrupted"})
    int fetch() throws Exception {
        vmDir = privateDirectory(vmDirectory(userPath(dirOption)));
        image = imageOption == null ? null : userPath(imageOption);
        if (image != null || !isThere()) {
            try {
                FileChannel lock = lock(iso(".lock"), "vm-setup fetch");
                try (lock) {
                    take();
                }
            } catch (UncheckedIOException | IOException full) { // what a network does is a VmException by now
                throw new VmException(1, "cannot write to " + vmDir + " ("
                        + reason(full instanceof UncheckedIOException kept ? kept.getCause() : (IOException) full)
                        + "): make room (about 1100 MB in all) and run it again: what came is kept");
            }
        }
        spec.commandLine().getOut().println(iso());
        measureUnlessRecorded();
        return 0;
    }

    @Command(name = "disk",
            description = {"Make the blank disk that vm-auto-install by-hand begins with. Prints its path.", "",
                "vm-auto-install by-hand makes one itself if there is none. You need this only to start over with a "
                    + "blank disk. Writes NAME.install/by-hand.qcow2 in VM_DIR; replacing one that is there asks on a "
                    + "terminal, and elsewhere wants --yes. The disk of an installed VM is not touched."},
            footer = {"  vm-setup disk --disk-size 40G", "  vm-setup disk --vm-name mine --yes"},
            exitCodeList = {"0:done", "1:the job failed (disk full)",
                "2:wrong usage, or refused because --yes was missing",
                "69:something needed is not available (qemu-img, VM_DIR, the lock), or the disk is in use",
                "124:a time limit",
                "130, 143:interrupted"})
    int disk(@Option(names = "--yes",
            description = "Replace a disk that is there without asking.") boolean yes) throws Exception {
        vmDir = privateDirectory(vmDirectory(userPath(dirOption)));
        Path disk = privateDirectory(vmDir.resolve(name + ".install")).resolve("by-hand.qcow2");
        Path tempFile = disk.resolveSibling("by-hand.part");
        FileChannel lock = lock(vmDir.resolve(name + ".lock"), "vm-setup disk");
        try {
            if (Files.exists(disk)) {
                ProcessResult info = run(Duration.ofMinutes(1), List.of("qemu-img", "info", disk.toString()));
                if (info.getExitValue() != 0 && info.outputUTF8().contains("\" lock")) { // QEMU locks the disks it uses
                    throw new VmException(69, disk + " is in use by a QEMU process: end that process first");
                }
                confirm("replace " + disk + " (" + Files.size(disk) / MB + " MB) with a blank disk", yes);
            }
            ProcessResult made = run(Duration.ofMinutes(1),
                    List.of("qemu-img", "create", "-q", "-f", "qcow2", tempFile.toString(), diskSize));
            if (made.getExitValue() != 0) {
                throw new VmException(1, "qemu-img made no disk: " + made.outputUTF8().lines().findFirst().orElse(""));
            }
            Files.setPosixFilePermissions(tempFile, PosixFilePermissions.fromString("rw-------"));
            Files.move(tempFile, disk, StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(tempFile);
            lock.close();
        }
        spec.commandLine().getOut().println(disk);
        return 0;
    }

    @Command(name = "check",
            description = {"Check what is missing on this machine for the VM as configured, a line each, and "
                    + "how to fix it.", "",
                "A line begins with ok, note (it works, but not as well as it could) or fail. It also runs a tiny "
                    + "guest to find out which accelerator works, and records that in VM_DIR/accel.json, which the "
                    + "other scripts read. If VM_ACCEL names one, that is tried, too."},
            footer = {"  vm-setup check", "  VM_MEMORY=4G vm-setup check --json", "  vm-setup check --accel"},
            exitCodeList = {"0:nothing is missing, notes or not", "2:wrong usage", "69:something is missing",
                "130, 143:interrupted"})
    int check(@Option(names = "--json", description = {"Print {ok, checks: [{name, state, detail, fix}]};",
                "with --accel what accel.json holds: {name, reason, qemu, kvm}."}) boolean json,
            @Option(names = "--accel", description = "Only find out which accelerator works, and record it.")
            boolean measure,
            @Option(names = "--memory", descriptionKey = "VM_MEMORY", paramLabel = "SIZE",
                    description = "As 2G or 512M (VM_MEMORY; default: a quarter of the host's within 2G-8G).")
            String memory,
            @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                    description = "The host's port to the guest's sshd (VM_SSH_PORT; default: 2222 or the next free "
                            + "one).") String sshPort,
            @Option(names = "--wanted-accel", hidden = true, descriptionKey = "VM_ACCEL",
                    defaultValue = "auto") String accel)
            throws Exception {
        vmDir = vmDirectory(userPath(dirOption));
        image = imageOption == null ? null : userPath(imageOption);
        if (measure) {
            return measureAccelerator(json);
        }
        long total = ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize();
        long wanted = memory != null ? bytes(memory) : Math.max(2 * GB, Math.min(8 * GB, total / 4));
        boolean ok = true;
        JsonArray all = new JsonArray();
        for (Callable<Check> next : List.<Callable<Check>>of(this::checkJava, () ->
                checkProgram("fail", "qemu", QEMU, "--version"),
                () -> checkProgram("fail", "qemu", "qemu-img", "--version"), () -> checkAccelerator(accel),
                () -> checkMemory(wanted, total), () -> checkSpace(wanted), () -> checkPort(sshPort),
                this::checkInstaller, () -> checkProgram("fail", "ssh", "ssh", "-V"), () ->
                checkProgram("note", "rsync", "rsync", "--version"))) {
            Check check = next.call();
            ok &= !check.state.equals("fail");
            all.add(JsonObject.builder().value("name", check.name).value("state", check.state).value("detail",
                    check.detail)
                    .value("fix", check.fix).done());
            if (!json) { // at once: some take seconds
                spec.commandLine().getOut().printf("%-4s  %-18s  %s%s%n", check.state, check.name, check.detail,
                        check.fix.isEmpty() ? "" : " -> " + check.fix);
            }
        }
        if (json) {
            spec.commandLine().getOut().println(JsonWriter.string().object().value("ok", ok).value("checks", all).end()
                    .done());
        }
        return ok ? 0 : 69;
    }

    private Path iso(String... suffix) {
        return vmDir.resolve("dfly-" + version + ".iso" + String.join("", suffix));
    }

    private String archiveName() {
        return "dfly-x86_64-" + version + "_REL.iso.bz2";
    }

    /** The sums to hold beside those of md5.txt: none if none are known, or the mirror is trusted. */
    private Sums pinned() {
        return trustMirror ? Sums.NONE : known.getOrDefault(version, Sums.NONE);
    }

    /**
     * Whether the ISO is there. It had its name only after its check; where its sum is known it is checked again, in
     * seconds.
     */
    private boolean isThere() throws IOException {
        if (Files.exists(iso()) && pinned().isoMd5 != null) {
            String md5 = md5(iso());
            if (!md5.equals(pinned().isoMd5)) {
                throw new VmException(1, iso() + " is not the DragonFly " + version
                        + " that is known here (its MD5 is " + md5
                        + "): delete it to download the released one, or use " + withOption("--trust-mirror"));
            }
        }
        return Files.exists(iso());
    }

    /** From VM_IMAGE, or from the first mirror that gives it. */
    private void take() throws IOException, InterruptedException {
        String rest = image != null ? "" : ": only the mirror's own md5.txt is compared";
        if (!known.containsKey(version)) {
            say("no sums are known here for DragonFly " + version + rest);
        } else if (trustMirror) {
            say("WARNING: --trust-mirror: the sums known for DragonFly " + version + " are NOT checked" + rest);
        }
        if (image != null) {
            if (!(Files.isRegularFile(image) && Files.isReadable(image))) {
                throw new VmException(69, originOf(spec, "--image") + ": " + image + " is no file that can be read");
            }
            makeIso(image, image.toString().endsWith(".bz2"), image.toString(), Sums.NONE);
            return;
        }
        List<String> problems = new ArrayList<>();
        int code = 69;
        for (URI mirror : mirrors) {
            if (!problems.isEmpty()) {
                say(problems.get(problems.size() - 1) + "; trying the next mirror");
            }
            try {
                takeFrom(mirror);
                return;
            } catch (VmException problem) {
                code = Math.min(code, problem.exitCode);
                problems.add(problem.getMessage());
            }
        }
        throw new VmException(code, String.join("; ", problems) + ". "
                + (parts().stream().allMatch(part -> part.toFile().length() == 0)
                ? "Another mirror: VM_MIRROR; a local file: VM_IMAGE" : "What came is kept: run it again to go on"));
    }

    private void takeFrom(URI mirror) throws IOException, InterruptedException {
        Map<String, String> listed = published(mirror);
        Sums sums = new Sums(listed.get(archiveName()), null, listed.get(archiveName().replace(".bz2", "")));
        compare(mirror + "md5.txt: " + archiveName(), sums, pinned());
        URI uri = mirror.resolve(archiveName());
        Path part = iso(".bz2." + sums.archiveMd5 + ".part");
        boolean resumed = Files.exists(part);
        for (Path other : parts()) {
            if (!other.equals(part)) {
                Files.delete(other); // another file was published, or a mirror lies: it only takes up room
            }
        }
        try {
            new Download(uri, part).run();
            makeIso(part, true, uri.toString(), sums);
        } catch (VmException problem) {
            if (problem.exitCode != 1) {
                throw problem; // what came so far is good for the next mirror, or the next run
            }
            Files.delete(part);
            if (!resumed) {
                throw problem;
            }
            say(problem.getMessage() + "; once more from the start");
            takeFrom(mirror);
            return;
        }
        Files.delete(part);
    }

    /** The beginnings of archives of this version that are here. */
    private List<Path> parts() throws IOException {
        try (Stream<Path> files = Files.list(vmDir)) {
            return files.filter(file -> file.getFileName().toString().matches("dfly-\\Q" + version
                    + "\\E\\.iso\\.bz2\\..*part")).toList();
        }
    }

    /** Verifies an archive and unpacks it, or copies an image. Once that is verified it gets the ISO's name. */
    private void makeIso(Path source, boolean packed, String what, Sums listed) throws IOException,
            InterruptedException {
        Path part = iso(".part");
        try {
            verify(what, packed ? archiveSums(source) : Sums.NONE, listed);
            unpack(source, packed, pinned().archiveMd5 != null || trustMirror && listed.archiveMd5 != null, what);
            verify(what, new Sums(null, null, md5(part)), listed);
            try (FileChannel channel = FileChannel.open(part, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
                ByteBuffer magic = ByteBuffer.allocate(5);
                channel.read(magic, 0x8001);
                if (!new String(magic.array(), UTF_8).equals("CD001")) {
                    throw new VmException(1, what + " holds no ISO 9660 image");
                }
                channel.force(true); // or a power failure could leave a verified name on an empty file
            }
            Files.move(part, iso(), StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(part); // on a full disk the download needs the room
        }
        say(iso() + " is complete, " + (listed == Sums.NONE && pinned() == Sums.NONE ? "unchecked" : "its sums hold"));
    }

    private void verify(String what, Sums found, Sums listed) {
        compare(what, found, listed);
        compare(what, found, pinned());
    }

    private static Sums archiveSums(Path archive) throws IOException {
        try (InputStream in = Files.newInputStream(archive)) {
            return new Sums(md5(archive), DigestUtils.sha256Hex(in), null);
        }
    }

    private static String md5(Path file) throws IOException {
        try (InputStream in = Files.newInputStream(file)) {
            return DigestUtils.md5Hex(in);
        }
    }

    /** Ends what would fill the disk; no release comes near the limits. */
    private static void requireSize(String what, long size, long most) {
        if (size > most) {
            throw new VmException(1, what + " is larger than " + most / MB + " MB, so it is no release of DragonFly");
        }
    }

    /** Fails for the first sum that is known and not met. */
    static void compare(String what, Sums found, Sums wanted) {
        String[][] pairs = {{"MD5", found.archiveMd5, wanted.archiveMd5},
            {"SHA-256", found.archiveSha256, wanted.archiveSha256}, {"MD5, unpacked,", found.isoMd5, wanted.isoMd5}};
        for (String[] pair : pairs) {
            if (pair[1] != null && pair[2] != null && !pair[1].equals(pair[2])) {
                throw new VmException(1, what + " has the " + pair[0] + " " + pair[1] + ", not " + pair[2]
                        + ": damaged, or another file");
            }
        }
    }

    /** What a mirror's md5.txt says, by file; 69 if it does not know the version. */
    private Map<String, String> published(URI mirror) throws InterruptedException {
        if (mirror.getScheme().equals("http") && !trustMirror && !known.containsKey(version)) {
            throw new VmException(2, mirror + " is not asked: no sums are known here for DragonFly " + version
                    + ", and without https anybody on the way could replace it: use an https mirror, or "
                    + withOption("--trust-mirror"));
        }
        try {
            String text = text(mirror.resolve("md5.txt"));
            Map<String, String> sums = sums(text);
            if (sums.isEmpty()) {
                throw new VmException(69, mirror + "md5.txt holds no sums" + webPage(text.contains("<html")));
            } else if (!sums.containsKey(archiveName())) {
                String releases = Pattern.compile("dfly-x86_64-(\\d{1,4}(?:\\.\\d{1,4}){1,3})_REL\\.iso\\.bz2")
                        .matcher(text(mirror)).results()
                        .map(name -> ModuleDescriptor.Version.parse(name.group(1))).distinct()
                        .sorted(Comparator.reverseOrder()).limit(20)
                        .map(Object::toString).collect(Collectors.joining(", "));
                throw new VmException(69, mirror + " has no DragonFly " + version + ", but " + releases
                        + " (choose with DFLY_VERSION)");
            }
            return sums;
        } catch (IOException unreachable) {
            throw new VmException(69, mirror + " cannot be reached (" + cause(unreachable) + ")");
        }
    }

    /** Lines like "MD5 (name) = sum". */
    static Map<String, String> sums(String text) {
        return Pattern.compile("(?m)^MD5 \\((.+)\\) = ([0-9a-f]{32})\\s*$").matcher(text).results()
                .collect(Collectors.toMap(line -> line.group(1), line -> line.group(2), (first, again) -> again));
    }

    private static String webPage(boolean is) {
        return is ? ", but a web page (a network that wants a login?)" : "";
    }

    private static String cause(IOException failure) {
        return (failure instanceof UnknownHostException ? "unknown host " : "") + reason(failure);
    }

    private String text(URI uri) throws IOException, InterruptedException {
        return withMinimumRate(uri, () -> 0, () -> {
            try (InputStream body = open(uri, 0).getInputStream()) {
                return new String(body.readNBytes(1 << 20), UTF_8);
            }
        });
    }

    /**
     * Runs a request in a thread of its own, and gives it up when {@code received} grows by less than a kilobyte a
     * second. The timeouts of a socket apply to single reads only, so a server that sends a byte a minute never hits
     * them.
     */
    private <T> T withMinimumRate(URI uri, LongSupplier received, Callable<T> exchange) throws IOException,
            InterruptedException {
        FutureTask<T> task = new FutureTask<>(exchange);
        Thread thread = new Thread(task, "download");
        thread.setDaemon(true); // one that was given up does not keep this process
        thread.start();
        long millis = 2 * silence.toMillis(); // silence itself is noticed before, by the socket
        for (long before = 0;;) {
            try {
                return task.get(millis, TimeUnit.MILLISECONDS);
            } catch (TimeoutException stillRunning) {
                if (received.getAsLong() - before < millis) {
                    throw new VmException(69, uri + " sends less than a kilobyte a second");
                }
                before = received.getAsLong();
            } catch (ExecutionException failed) {
                if (failed.getCause() instanceof IOException ended) {
                    throw ended;
                }
                throw failed.getCause() instanceof RuntimeException other ? other : new IllegalStateException(failed);
            }
        }
    }

    /** An answer with 200, 206 or 416, to a request for all from a position on. */
    private HttpURLConnection open(URI uri, long position) throws IOException {
        Optional<Matcher> proxy = proxy(uri.getScheme(), uri.getHost(), environment);
        HttpURLConnection connection = (HttpURLConnection) (proxy.isEmpty() ? uri.toURL().openConnection()
                : uri.toURL().openConnection(
                new Proxy(Proxy.Type.HTTP, new InetSocketAddress(proxy.get().group(3),
                        Integer.parseInt(proxy.get().group(4))))));
        connection.setConnectTimeout((int) Math.min(15_000, silence.toMillis()));
        connection.setReadTimeout((int) silence.toMillis());
        if (position > 0) {
            connection.setRequestProperty("Range", "bytes=" + position + "-");
        }
        int status = connection.getResponseCode();
        if (status == 408 || status == 429 || status >= 500) {
            throw new IOException(uri + " answered " + status);
        } else if (status != 200 && status != 206 && status != 416) {
            throw new VmException(69, uri + " answered " + status + (status == 404 ? ", not found" : status / 100 == 3
                    ? String.format(", it moved to %.200s", connection.getHeaderField("Location")) : ""));
        }
        return connection;
    }

    /** The host, port, user and password of the proxy that the environment sets for an address, if it does. */
    static Optional<Matcher> proxy(String scheme, String host, Map<String, String> environment) {
        String setting = either(environment, scheme + "_proxy");
        if (setting.isEmpty() || Arrays.stream(("localhost,127.0.0.1," + either(environment, "no_proxy"))
                .split("[,\\s]+"))
                .anyMatch(direct -> direct.equals("*") || ("." + host).endsWith(direct.replaceFirst("^\\.?", ".")))) {
            return Optional.empty();
        }
        Matcher proxy = Pattern.compile("(?:http://)?(?:([^:/@]+):([^/@]*)@)?([^:/@]+):("
                + VALUES.get("VM_SSH_PORT").get(0) + ")/?").matcher(setting);
        if (!proxy.matches()) {
            throw new VmException(2, scheme + "_proxy is not http://[user:password@]host:port");
        }
        return Optional.of(proxy);
    }

    private static String either(Map<String, String> environment, String key) {
        return environment.getOrDefault(key, environment.getOrDefault(key.toUpperCase(Locale.ROOT), ""));
    }

    private static final class ProxyUser extends Authenticator {
        @Override
        protected PasswordAuthentication getPasswordAuthentication() {
            return getRequestorType() != RequestorType.PROXY ? null
                    : proxy(getRequestingURL().getProtocol(), getRequestingURL().getHost(), System.getenv())
                            .filter(proxy -> proxy.group(1) != null).map(proxy -> new PasswordAuthentication(
                                    URLDecoder.decode(proxy.group(1), UTF_8), URLDecoder.decode(proxy.group(2), UTF_8)
                                    .toCharArray()))
                            .orElse(null);
        }
    }

    /** Completes the part file of an archive. */
    private final class Download {
        private final URI uri;
        private final Path part;
        private volatile long position;
        private volatile long total = -1;
        /** Also what a server without ranges sends again. */
        private volatile long received;

        Download(URI uri, Path part) {
            this.uri = uri;
            this.part = part;
        }

        /** Over as many connections as it takes, unless many in a row bring next to nothing. */
        void run() throws IOException, InterruptedException {
            position = Files.exists(part) ? Files.size(part) : 0;
            try (OutputStream file = kept(part, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
                    ProgressBar bar = progress()) {
                for (int fruitless = 0;;) {
                    long before = position;
                    received = 0;
                    try {
                        withMinimumRate(uri, () -> received, () -> receive(file, bar));
                        return;
                    } catch (IOException ended) {
                        fruitless = position - before < 1 << 16 ? fruitless + 1 : 0;
                        if (fruitless == ATTEMPTS) {
                            throw new VmException(69, uri + " failed " + ATTEMPTS + " times in a row (" + cause(ended)
                                    + ")");
                        }
                        // once, 2, 4, 8 times the pause
                        Thread.sleep(fruitless == 0 ? 0 : pause.toMillis() << fruitless - 1);
                    }
                }
            }
        }

        /** Appends what one connection brings; an IOException if that is not all. */
        private Void receive(OutputStream file, ProgressBar bar) throws IOException {
            HttpURLConnection response = open(uri, position);
            int status = response.getResponseCode();
            Matcher range = Pattern.compile("bytes (\\d{1,18})-\\d{1,18}/(\\d{1,18})")
                    .matcher(String.valueOf(response.getHeaderField("Content-Range")));
            if (status == 206 && !(range.matches() && Long.parseLong(range.group(1)) == position)) {
                throw new IOException(uri + " sent another range than it was asked for");
            }
            // 416: all is here, or of another file, which the sums tell
            total = status == 206 ? Long.parseLong(range.group(2)) : status == 416 ? position
                    : response.getContentLengthLong();
            requireSize(uri.toString(), total, largestArchive);
            if (total >= 0 && total <= position) {
                return null;
            }
            byte[] buffer = new byte[1 << 16];
            long again = status == 206 ? 0 : position; // what a server without ranges sends once more
            try (InputStream body = response.getInputStream()) {
                for (int read = body.read(buffer); read >= 0; read = body.read(buffer)) {
                    if (position == 0 && read > 0 && buffer[0] != 'B') { // bzip2 begins with "BZh"
                        throw new VmException(69, uri + " is not a bzip2 file" + webPage(buffer[0] == '<'));
                    }
                    int skip = (int) Math.min(again, read);
                    again -= skip;
                    received += read;
                    requireSize(uri.toString(), position + read - skip, largestArchive);
                    file.write(buffer, skip, read - skip);
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
        private ProgressBar progress() throws IOException, InterruptedException {
            ProgressBarBuilder builder = new ProgressBarBuilder().setTaskName("DragonFly " + version).setInitialMax(-1)
                    .setUnit(" MB", MB).startsFrom(position, Duration.ZERO)
                    .setStyle(ProgressBarStyle.ASCII).showSpeed();
            return (isTerminal(2)
                    ? builder.setUpdateIntervalMillis(500).setConsumer(new ConsoleProgressBarConsumer(System.err, 79))
                    : builder.setUpdateIntervalMillis((int) report.toMillis())
                    .setConsumer(new DelegatingProgressBarConsumer(line -> {
                        if (position > 0 && position < total) {
                            say(line);
                        }
                    }, 100))).build();
        }
    }

    /** A file on which any failure (a full disk) is unchecked, and so told from those of a network or an unpacker. */
    private static OutputStream kept(Path file, OpenOption... options) {
        try {
            return new FilterOutputStream(Files.newOutputStream(file, options)) {
                @Override
                public void write(byte[] bytes, int offset, int length) {
                    try {
                        out.write(bytes, offset, length);
                    } catch (IOException full) {
                        throw new UncheckedIOException(full);
                    }
                }
            };
        } catch (IOException full) {
            throw new UncheckedIOException(full);
        }
    }

    /**
     * Unpacks an archive, or copies an image, to the ISO's part file. lbzip2 and pbzip2 are fast, but not memory safe:
     * they only get an archive with a sum that this script knows, or that --trust-mirror accepts.
     */
    private void unpack(Path source, boolean packed, boolean trusted, String what)
            throws IOException, InterruptedException {
        Optional<Path> tool = !packed || !trusted ? Optional.empty()
                : Stream.of("lbzip2", "pbzip2").map(this::onPath).flatMap(Optional::stream).findFirst();
        List<String> command = tool.map(file -> List.of(file.toString(), "-d", "-c")).orElse(List.of());
        if (verbose && tool.isPresent()) {
            System.err.println("+ " + shellQuoted(command) + " <" + shellQuoted(List.of(source.toString())));
        }
        Process process = tool.isEmpty() ? null : new ProcessBuilder(command).redirectInput(source.toFile())
                .redirectError(Redirect.DISCARD).start();
        try (InputStream file = new BufferedInputStream(Files.newInputStream(source), 1 << 16);
                InputStream plain = process != null ? process.getInputStream()
                        : packed ? new BZip2CompressorInputStream(file, true) : file;
                OutputStream iso = kept(iso(".part"))) {
            byte[] buffer = new byte[1 << 16];
            long size = 0;
            for (int read = plain.read(buffer); read >= 0; read = plain.read(buffer)) {
                size += read;
                requireSize(what + ", unpacked,", size, largestIso);
                iso.write(buffer, 0, read);
            }
            if (process != null && process.waitFor() != 0) {
                throw new IOException(tool.get().getFileName() + " ended with " + process.exitValue());
            }
        } catch (UncheckedIOException | VmException explained) {
            throw explained;
        } catch (IOException | RuntimeException damage) { // a decompressor may trip over a bad archive in any way
            throw new VmException(1, what + " cannot be unpacked ("
                    + (damage instanceof IOException told ? reason(told) : damage) + "): truncated, or damaged");
        } finally {
            if (process != null) {
                process.destroyForcibly();
            }
        }
    }

    /** One finding of the doctor: "ok", "note" or "fail"; how to fix it, or "". */
    record Check(String name, String state, String detail, String fix) {
        Check {
            detail = printable(detail); // a mirror's words may be in it
        }

        static Check of(String name, boolean good, String otherwise, String detail, String fix) {
            return new Check(name, good ? "ok" : otherwise, detail, good ? "" : fix);
        }
    }

    private Check checkJava() {
        boolean compiler = Files.exists(Path.of(System.getProperty("java.home"), "bin/javac"));
        return Check.of("java", compiler, "note", "Java " + Runtime.version()
                + (compiler ? "" : " without javac, which JBang and make want"), install("jdk"));
    }

    private Check checkProgram(String missing, String packages, String program, String argument) throws IOException {
        Optional<Path> file = onPath(program);
        try {
            ProcessResult result = file.isEmpty() ? null : run(Duration.ofSeconds(20),
                    List.of(file.get().toString(), argument));
            String detail = result == null ? "not on PATH" : result.outputUTF8().lines().findFirst()
                    .orElse(file.get() + " ends with " + result.getExitValue());
            return Check.of(program, result != null && result.getExitValue() == 0, missing, detail,
                    install(packages));
        } catch (VmException broken) {
            return new Check(program, missing, broken.getMessage(), install(packages));
        }
    }

    // The accelerator. The other scripts go by accel.json, so that only this one measures.

    /** What keeps Linux from KVM before a probe could tell, and the command that changes it. */
    record Obstacle(String what, String fix) {}

    /** Measures, records the result, and with VM_ACCEL also tries what is set. */
    private Check checkAccelerator(String wanted) throws IOException {
        String qemu = onPath(QEMU).map(Path::toString).orElse(null);
        if (qemu == null) {
            return new Check("accelerator", "note", "unknown without QEMU", "");
        }
        Accelerator found = probe(qemu);
        String unrecorded = "";
        try {
            record(found, qemuVersion(qemu));
        } catch (VmException refused) {
            unrecorded = " (not recorded in accel.json: " + refused.getMessage() + ")";
        } catch (IOException refused) {
            unrecorded = " (not recorded in accel.json: " + reason(refused) + ")";
        }
        if (!wanted.equals("auto")) {
            boolean runs = bootSectorMillis(qemu, wanted, Duration.ofSeconds(10)) >= 0;
            String detail = wanted + ", as set, runs " + (runs ? "a" : "no") + " guest here" + unrecorded;
            return Check.of("accelerator", runs, "fail", detail, "unset VM_ACCEL: then what works is used");
        }
        boolean emulates = found.name.equals("tcg");
        String detail = found.name + (emulates ? ", which is slow: " : ": ") + found.reason + unrecorded;
        return Check.of("accelerator", !emulates, "note", detail, !isMac() && !opens(kvm) ? obstacle().fix
                : "emulation, which is slow, is used; a KVM on the bare machine would work");
    }

    /** For the other scripts, which ask for this when accel.json does not fit any more. */
    private int measureAccelerator(boolean asJson) throws IOException {
        String qemu = onPath(QEMU).map(Path::toString)
                .orElseThrow(() -> new VmException(69, QEMU + " is not on PATH: " + install("qemu")));
        Accelerator found = probe(qemu);
        JsonObject record = record(found, qemuVersion(qemu));
        spec.commandLine().getOut().println(asJson ? JsonWriter.string(record)
                : "accelerator: " + found.name + " (" + found.reason + ")");
        return 0;
    }

    /** After a download. Without QEMU there is nothing to measure; what fails here is no failure of the download. */
    private void measureUnlessRecorded() {
        String qemu = onPath(QEMU).map(Path::toString).orElse(null);
        try {
            String version = qemu == null ? null : qemuVersion(qemu);
            if (version != null && recordedAccelerator(vmDir, version, opens(kvm)).isEmpty()) {
                Accelerator found = probe(qemu);
                record(found, version);
                say("accelerator: " + found.name + " (" + found.reason + ")");
            }
        } catch (VmException | IOException failed) {
            say("the accelerator is not known yet (" + failed.getMessage() + "): vm-setup check tells more");
        }
    }

    private JsonObject record(Accelerator found, String qemuVersion) throws IOException {
        JsonObject record = JsonObject.builder().value("name", found.name).value("reason", found.reason)
                .value("qemu", qemuVersion).value("kvm", opens(kvm)).done();
        writeFile(privateDirectory(vmDir).resolve("accel.json"), JsonWriter.string(record) + "\n", "rw-------");
        return record;
    }

    private static String qemuVersion(String qemu) throws IOException {
        return run(Duration.ofSeconds(20), List.of(qemu, "--version")).outputUTF8().lines().findFirst().orElse("");
    }

    /** Trusts a running guest, not the device: one that opens may still crawl (seen: 17 times slower than TCG). */
    private Accelerator probe(String qemu) throws IOException {
        String virtual = isMac() ? "hvf" : "kvm";
        if (!isMac() && !opens(kvm)) {
            return new Accelerator("tcg", obstacle().what);
        }
        long emulated = bootSectorMillis(qemu, "tcg", Duration.ofSeconds(10));
        for (int attempt = 1; attempt <= 2; attempt++) { // a busy machine may slow one down, hardly two
            long limit = 3 * Math.max(emulated, 100);
            long millis = bootSectorMillis(qemu, virtual, Duration.ofMillis(limit + 1000));
            if (millis >= 0 && millis <= limit) {
                return new Accelerator(virtual, "a probe ran in " + millis + " ms (" + emulated + " ms emulated)");
            }
        }
        return new Accelerator("tcg", virtual + " is there but a probe guest failed or crawled in it (emulated: "
                + emulated + " ms)");
    }

    private static boolean isMac() {
        return System.getProperty("os.name").startsWith("Mac");
    }

    /**
     * Milliseconds until a 512-byte guest has written 0x10 to the debug port, which ends QEMU with 33; -1 if it does
     * not.
     */
    private static long bootSectorMillis(String qemu, String accelerator, Duration limit) throws IOException {
        // mov al,0x10; out 0xf4,al; jmp $
        byte[] code = {(byte) 0xb0, 0x10, (byte) 0xe6, (byte) 0xf4, (byte) 0xeb, (byte) 0xfe};
        byte[] sector = Arrays.copyOf(code, 512);
        sector[510] = 0x55;
        sector[511] = (byte) 0xaa;
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

    private Obstacle obstacle() throws IOException {
        Path cpuinfo = Path.of("/proc/cpuinfo");
        return obstacle(Files.exists(kvm), Files.exists(cpuinfo) ? Files.readString(cpuinfo) : "");
    }

    static Obstacle obstacle(boolean exists, String cpuinfo) {
        boolean capable = Pattern.compile("\\b(vmx|svm)\\b").matcher(cpuinfo).find();
        if (exists) {
            return new Obstacle("no permission for /dev/kvm", "sudo usermod -aG kvm $USER, then log out and in again");
        }
        return capable
                ? new Obstacle("no /dev/kvm, its module is not loaded",
                        "sudo modprobe kvm_intel || sudo modprobe kvm_amd")
                : new Obstacle("no /dev/kvm, and the processor shows no virtualization",
                        "switch it on in the firmware, or for this VM");
    }

    private static Check checkMemory(long wanted, long total) throws IOException {
        Path meminfo = Path.of("/proc/meminfo"); // what the JDK calls free leaves out the page cache
        long free = !Files.exists(meminfo) ? total : Math.min(total, Pattern.compile("MemAvailable: *(\\d+)")
                .matcher(Files.readString(meminfo)).results().mapToLong(line -> Long.parseLong(line.group(1)) << 10)
                .sum());
        return Check.of("memory", wanted <= free, wanted > total ? "fail" : "note",
                String.format("the VM gets %dM; %dM of %dM are free",
                wanted >> 20, free >> 20, total >> 20), "set VM_MEMORY lower, or close programs");
    }

    /**
     * Estimated generously: an installed system with Go is about 3 GB, there once in phases and once flattened; a RAM
     * snapshot.
     */
    private Check checkSpace(long memory) {
        Path there = vmDir;
        while (!Files.exists(there)) {
            there = there.getParent();
        }
        long needed = (Files.exists(iso()) ? 0 : 1100 * MB)
                + (Files.exists(vmDir.resolve(name + "-clean.qcow2")) ? 0 : 6 * GB) + memory;
        long free = there.toFile().getUsableSpace();
        boolean usable = Files.isDirectory(there) && Files.isWritable(there);
        String detail = String.format("%d MB are free in %s%s; %d are needed, up to %d more as the VM's disk fills",
                free / MB, vmDir, usable ? "" : ", which cannot be written", needed / MB, bytes(diskSize) / MB);
        return Check.of("space", usable && free >= needed + bytes(diskSize), usable && free >= needed ? "note" : "fail",
                detail,
                "make room, or choose another place with VM_DIR");
    }

    private Check checkPort(String portOption) throws IOException {
        int port = portOption != null ? Integer.parseInt(portOption) : 2222;
        try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getByName("127.0.0.1"))) {
            return new Check("port", "ok", socket.getLocalPort() + " is free", "");
        } catch (BindException taken) {
            String holder = port >= 1024 || taken.getMessage().contains("in use") // in the user's language
                    ? portHolder(port) : "root alone (" + taken.getMessage() + ")";
            boolean own = holder.endsWith("(pid " + readJson(vmDir.resolve(name + ".pid")).getInt("pid") + ")");
            return Check.of("port", own || portOption == null, "fail", port + " is taken by " + holder
                    + (own ? ", the VM " + name + " itself"
                    : portOption == null ? "; the next free one will be used" : ""),
                    "choose another port with --ssh-port or VM_SSH_PORT, or none");
        }
    }

    /** Who listens on a port of this host, as far as this user may know. */
    private String portHolder(int port) throws IOException {
        try {
            String listeners = run(Duration.ofSeconds(20), List.of("ss", "-Hltnp", "sport = :" + port)).outputUTF8();
            Matcher user = Pattern.compile("\"(.*?)\",pid=(\\d+)").matcher(listeners);
            return user.find() ? user.group(1) + " (pid " + user.group(2) + ")" : "another user's process";
        } catch (VmException noSs) {
            return "another process";
        }
    }

    private Check checkInstaller() throws InterruptedException {
        if (Files.exists(iso())) {
            return new Check("installer", "ok", iso() + " is there", "");
        } else if (image != null) {
            return Check.of("installer", Files.isRegularFile(image) && Files.isReadable(image), "fail", "from " + image,
                    originOf(spec, "--image") + " must name a file that can be read");
        }
        List<String> problems = new ArrayList<>();
        for (URI mirror : mirrors) {
            try {
                published(mirror);
                return new Check("installer", "ok", mirror + " has DragonFly " + version, "");
            } catch (VmException refused) {
                problems.add(refused.getMessage());
            }
        }
        return new Check("installer", "fail", String.join("; ", problems), "set https_proxy, VM_MIRROR or VM_IMAGE");
    }

    /** The content of a JSON file; empty if there is none. */
    private static JsonObject readJson(Path file) {
        try {
            return json(Files.readString(file));
        } catch (IOException none) {
            return new JsonObject();
        }
    }

    private Optional<Path> onPath(String program) {
        return Arrays.stream(searchPath.split(":")).filter(directory -> !directory.isEmpty())
                .map(directory -> Path.of(directory, program)).filter(Files::isExecutable).findFirst();
    }

    /** The command that installs something, with the package manager that is here. */
    private String install(String what) {
        String[][] managers = {{"apt-get", "sudo apt-get install ", "qemu-system-x86 qemu-utils", "openssh-client",
            "default-jdk"},
            {"dnf", "sudo dnf install ", "qemu-system-x86-core qemu-img", "openssh-clients", "java-devel"},
            {"pacman", "sudo pacman -S ", "qemu-base", "openssh", "jdk-openjdk"},
            {"brew", "brew install ", "qemu", "openssh", "openjdk"}};
        int column = 2 + List.of("qemu", "ssh", "jdk").indexOf(what);
        return Arrays.stream(managers).filter(manager -> onPath(manager[0]).isPresent()).findFirst()
                .map(manager -> manager[1] + (column < 2 ? what : manager[column])).orElse("install " + what);
    }

    private void say(String text) {
        spec.commandLine().getErr().println("vm-setup: " + printable(text));
    }

    /** 40G or 512M in bytes. */
    private static long bytes(String size) {
        return Long.parseLong(size.substring(0, size.length() - 1)) << 20
                + 10 * "MGT".indexOf(size.charAt(size.length() - 1));
    }

    /** A directory of a mirror. */
    static final class Web implements ITypeConverter<URI> {
        @Override
        public URI convert(String value) {
            try {
                URI uri = new URI(value.replaceFirst("/*$", "/"));
                if (value.matches("https?://.*") && uri.getHost() != null && uri.getPort() <= 65535) {
                    return uri;
                }
            } catch (URISyntaxException garbled) {
                // which is no address either
            }
            throw new TypeConversionException("'" + value + "' is no http or https address");
        }
    }

    // shared:terminal
    /** A program that has this command's own stdin, stdout and stderr. */
    static ProcessBuilder onOurStreams(List<String> command) {
        File none = new File("/dev/null");
        return new ProcessBuilder(command).redirectInput(CLOSED[0] ? Redirect.from(none) : Redirect.INHERIT)
                .redirectOutput(CLOSED[1] ? Redirect.to(none) : Redirect.INHERIT)
                .redirectError(CLOSED[2] ? Redirect.to(none) : Redirect.INHERIT);
    }

    /** Whether a file descriptor is a terminal; System.console() behaves differently across Java versions. */
    static boolean isTerminal(int descriptor) {
        try {
            return onOurStreams(List.of("test", "-t", "" + descriptor)).start().waitFor() == 0;
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
        StringBuilder answer = new StringBuilder();
        // one line only: the rest of stdin may be for the guest
        for (int key = System.in.read(); key >= 0 && key != '\n'; key = System.in.read()) {
            answer.append((char) key);
        }
        if (!answer.toString().strip().equals("yes")) {
            throw new VmException(2, "not confirmed, nothing was changed");
        }
    }
    // end shared:confirm

    // shared:streams
    /** Whether stdin, stdout and stderr were closed at the start. Such a stream counts as /dev/null. */
    static final boolean[] CLOSED = new boolean[3];

    /**
     * Comes first in main. If descriptor 0, 1 or 2 is closed, the first file that the JVM opens, its class library,
     * gets that number. For further closed ones the JVM opens /dev/null, so that no file that is opened later gets such
     * a number. What is printed is UTF-8 in every locale.
     */
    static void replaceClosedStreams() {
        try {
            Path java = Path.of(System.getProperty("java.home")).toRealPath();
            for (int i = 0; i < CLOSED.length; i++) {
                Path link = Path.of("/proc/self/fd", String.valueOf(i));
                CLOSED[i] = Files.isSymbolicLink(link) && Files.readSymbolicLink(link).startsWith(java);
            }
        } catch (IOException noProc) {
            // then they count as open
        }
        System.setIn(CLOSED[0] ? InputStream.nullInputStream() : System.in);
        System.setOut(new PrintStream(CLOSED[1] ? OutputStream.nullOutputStream() : System.out, true, UTF_8));
        System.setErr(new PrintStream(CLOSED[2] ? OutputStream.nullOutputStream() : System.err, true, UTF_8));
        System.setProperty("sun.stdout.encoding", "UTF-8"); // which picocli asks
        System.setProperty("sun.stderr.encoding", "UTF-8");
    }

    /**
     * Ends this process. If stdout could not be written, because its reader has gone or a disk is full, the exit code
     * is 1.
     */
    static void exit(String command, int code) {
        boolean lost = System.out.checkError();
        if (lost) {
            System.err.println(command + ": the output could not be written: the reader of stdout has gone, or its "
                    + "disk is full");
        }
        System.exit(lost ? 1 : code);
    }
    // end shared:streams

    // shared:make
    /**
     * How to give this command another option. Under make, which sets vm.make to "TARGET VARIABLE", it is the whole
     * make command with the variables that were given to make, so that it names the same VM.
     */
    static String withOption(String option) {
        String[] make = System.getProperty("vm.make", "").split(" ");
        if (make.length < 2) {
            return option;
        }
        Map<String, String> environment = System.getenv();
        String variables = Stream.of(environment.getOrDefault("MAKEFLAGS", "").split("(?<!\\\\) "))
                .filter(word -> word.matches("(?s)(VM|DFLY)_[A-Z_]+=.*") && !word.startsWith(make[1] + "="))
                .map(word -> word + " ").collect(Collectors.joining());
        String options = (environment.getOrDefault(make[1], "") + " " + option).strip();
        String quoted = options.matches("[A-Za-z0-9_=,./-]+") ? options : "'" + options.replace("'", "'\\''") + "'";
        return "make " + variables + make[0] + (options.isEmpty() ? "" : " " + make[1] + "=" + quoted);
    }
    // end shared:make

    // shared:printable
    private static final Pattern ESCAPE_SEQUENCE = Pattern.compile(
            "(?:\u001b\\[|\u009b)[0-?]*[ -/]*[@-~]" // such as a colour
            + "|\u001b\\][^\u0007\u001b]*(?:\u0007|\u001b\\\\)?" // such as a window's title
            + "|\u001b[ -/]*[0-~]");
    private static final Pattern CI_COMMAND = Pattern.compile("(?mU)^[^\\S\n]*+::(?=[A-Za-z])|##(?=[A-Za-z]*\\[)");
    private static final Pattern NOT_PRINTABLE = Pattern.compile("[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}&&[^\n\t]]");

    /** A text without the escape sequences of terminals. */
    static String withoutEscapes(String text) {
        return ESCAPE_SEQUENCE.matcher(text).replaceAll("");
    }

    /**
     * A text from outside (the guest, a project, a mirror), made safe for a message: without escape sequences and
     * carriage returns. Control characters and those that change the direction of writing become '?'; newlines and tabs
     * stay. What CI systems take for a command, such as ::error:: and ##[group], gets a blank inside.
     */
    static String printable(String text) {
        String safe = NOT_PRINTABLE.matcher(withoutEscapes(text).replace("\r", "")).replaceAll("?");
        return CI_COMMAND.matcher(safe).replaceAll(command -> command.group().replaceFirst("(?=.$)", " "));
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

    /** What a file system refused, in words: of some refusals Java tells the file alone. */
    static String reason(IOException refused) {
        return (refused instanceof AccessDeniedException ? "permission denied: "
                : refused instanceof FileAlreadyExistsException ? "a file is in the way: "
                : refused instanceof NoSuchFileException ? "no such file: " : "")
                + (refused.getMessage() == null ? refused.getClass().getSimpleName() : refused.getMessage());
    }
    // end shared:failure

    // shared:cli
    /**
     * A command line with the settings as its defaults; what goes wrong becomes one line on stderr and an exit code.
     */
    static CommandLine commandLine(Object command, Settings settings) {
        CommandLine all = new CommandLine(command);
        boolean dumb = "dumb".equals(System.getenv("TERM"));
        List<String> help = new ArrayList<>(all.getHelpSectionKeys());
        // the footer, which is examples, before the exit codes, which hold for all commands and only the top one shows
        Collections.rotate(help.subList(help.size() - 4, help.size()), 2);
        all.setHelpSectionKeys(help).getSubcommands().values()
                .forEach(sub -> sub.setHelpSectionKeys(help.subList(0, help.size() - 2)));
        return all.setExpandAtFiles(false).setAllowSubcommandsAsOptionParameters(true)
                .setColorScheme(CommandLine.Help.defaultColorScheme(dumb ? Ansi.OFF : Ansi.AUTO))
                .setCaseInsensitiveEnumValuesAllowed(true).setDefaultValueProvider(settings)
                .setExecutionStrategy(parsed -> {
                    checkValues(settings, parsed);
                    return new CommandLine.RunLast().execute(parsed);
                })
                .setExecutionExceptionHandler((failure, line, parsed) -> {
                    if (!(failure instanceof VmException || failure instanceof IOException)) {
                        throw failure; // a bug keeps its stack trace
                    }
                    line.getErr().println(printable(line.getCommandSpec().root().name() + ": "
                            + (failure instanceof IOException refused ? reason(refused) : failure.getMessage())));
                    boolean full = String.valueOf(failure.getMessage()).contains("No space left");
                    return failure instanceof VmException expected ? expected.exitCode : full ? 1 : 69;
                }).setParameterExceptionHandler((failure, args) -> {
                    CommandSpec spec = failure.getCommandLine().getCommandSpec();
                    String general = generalProblem(settings, List.of(args));
                    failure.getCommandLine().getErr().println(printable(spec.root().name() + ": " + (general != null
                            ? general : describeOptionError(settings, failure, args) + seeHelp(spec))));
                    return spec.exitCodeOnInvalidInput();
                });
    }
    // end shared:cli

    // shared:settings
    /**
     * What holds where no option is given: the environment, else the vm.env of the working directory, else the user's
     * own. Empty means unset.
     */
    static final class Settings implements IDefaultValueProvider { // no record: picocli takes 8 ms longer with one
        private final Map<String, String> environment;
        private final Map<String, String> file;
        /** Which file a setting in {@code file} comes from. */
        private final Map<String, String> fileNames = new HashMap<>();
        final List<String> warnings = new ArrayList<>();
        /** Why a file cannot be used; null if all can. */
        String problem;

        Settings(Map<String, String> environment, Map<String, String> file) {
            this.environment = environment;
            this.file = file;
        }

        /** The value of a setting, or null. */
        String get(String name) {
            String value = environment.getOrDefault(name, "").isEmpty() ? file.get(name) : environment.get(name);
            return value == null || value.isEmpty() ? null : value;
        }

        /** A setting and where it stands. */
        String origin(String name) {
            return name + " in " + (environment.getOrDefault(name, "").isEmpty()
                    ? fileNames.getOrDefault(name, "vm.env") : "the environment");
        }

        @Override
        public String defaultValue(ArgSpec argument) {
            String value = get(argument.descriptionKey());
            return value == null ? null : value.replace("$", "$$"); // or picocli would replace ${env:NAME}
        }
    }
    // end shared:settings

    // shared:locale
    /** The encoding of arguments, paths and the environment; in Java 17 programs get theirs in the default one. */
    private static final String ENCODING = "UTF-8".equals(System.getProperty("sun.jnu.encoding"))
            ? Charset.defaultCharset().name() : System.getProperty("sun.jnu.encoding");

    /** Whether a text has letters that the encoding loses. In UTF-8 those are bytes that are not UTF-8. */
    private static boolean losesLetters(String text) {
        return text.chars().anyMatch(letter -> ENCODING.equals("UTF-8") ? letter == 0xfffd : letter > 127);
    }

    /**
     * A problem that every command has, or null: vm.env is wrong, or something would not arrive as it was typed. JBang
     * replaces letters that the locale cannot express by question marks before this script starts.
     */
    static String generalProblem(Settings settings, List<String> args) {
        String words = String.join(" ", args);
        boolean utf8 = ENCODING.equals("UTF-8");
        String what = losesLetters(words) || !utf8 && words.contains("?") ? "an argument"
                : losesLetters(System.getProperty("user.dir")) ? "the working directory" : null;
        for (String name : settings.environment.keySet()) {
            if (losesLetters(settings.environment.get(name))
                    && name.matches("HOME|PATH|XDG_RUNTIME_DIR|(VM|DFLY)_.*")) {
                what = name + " in the environment";
            }
        }
        for (String name : settings.file.keySet()) {
            what = losesLetters(settings.file.get(name)) ? settings.origin(name) : what;
        }
        if (SETTINGS.stream().anyMatch(name -> "_NULL_".equals(settings.get(name)))) {
            return "_NULL_ is no value of a setting: leave the setting empty"; // to picocli _NULL_ means none
        }
        return settings.problem != null ? settings.problem : what == null ? null : "letters of " + what + (utf8
                ? " are not in UTF-8 and would be lost: write it in UTF-8 (rename a file or directory)"
                : " may have become question marks, because the locale's encoding is " + ENCODING
                + ", not UTF-8: set LC_ALL=C.UTF-8");
    }
    // end shared:locale

    // shared:vmenv
    /** The settings of the environment, of the user's own vm.env, and of the one in this directory, which wins. */
    static Settings readSettings(Map<String, String> environment, Path directory) {
        Settings settings = new Settings(environment, new HashMap<>());
        String home = environment.getOrDefault("HOME", "");
        Path here = directory.resolve("vm.env");
        try {
            Path own = home.startsWith("/") ? Path.of(home, ".go-synth", "vm.env") : null;
            if (own != null && Files.exists(own)) {
                readFile(settings, own, null);
            }
            if (Files.exists(here) && !(own != null && Files.exists(own) && Files.isSameFile(own, here))) {
                settings.file.remove("VM_PROJECT"); // the project is the directory with this file, or what it names
                readFile(settings, here, directory.toRealPath());
            }
        } catch (InvalidPathException lostLetters) {
            return settings; // which generalProblem tells
        } catch (IOException unreadable) {
            settings.problem = here + " cannot be read (" + reason(unreadable) + "): repair it, or move it away";
        }
        for (String name : environment.keySet().stream().sorted().toList()) {
            // Other programs have variables that begin with VM_, too: only what is close to a setting counts.
            String hint = name.matches("(VM|DFLY)_.*") && !isSetting(name) ? didYouMean(name, SETTINGS) : "";
            if (!hint.isEmpty()) {
                settings.warnings.add(name + " in the environment is no setting" + hint);
            }
        }
        return settings;
    }
    // end shared:vmenv

    // shared:vmenvfile
    /** Reads the user's own vm.env, or that of the project in this directory, which may be somebody else's. */
    private static void readFile(Settings settings, Path file, Path project) {
        String name = project == null ? "~/.go-synth/vm.env" : "vm.env";
        Map<String, String> values = new HashMap<>();
        int number = 0;
        try {
            checkFile(file, project == null);
            String text = new String(Files.readAllBytes(file), UTF_8);
            for (String line : text.replaceFirst("^\ufeff", "").lines().toList()) {
                number++;
                String key = readLine(line.strip(), values);
                if (key != null && key.matches("(VM|DFLY)_.*") && !isSetting(key) && settings.warnings.size() < 10) {
                    settings.warnings.add(name + ", line " + number + ": there is no setting " + key
                            + didYouMean(key, SETTINGS));
                } else if (key != null && isSetting(key)) {
                    checkSetting(key, values.get(key), project);
                }
            }
        } catch (VmException wrongLine) {
            settings.problem = name + ", line " + number + ": " + wrongLine.getMessage();
        } catch (InvalidPathException lostLetters) {
            // which generalProblem tells
        } catch (IOException unreadable) {
            settings.problem = name + " cannot be read (" + reason(unreadable) + "): repair it, or move it away";
        }
        values.keySet().removeIf(key -> values.get(key).isEmpty() || !isSetting(key)
                || project != null && key.equals("VM_NET") && values.get(key).equals("user"));
        values.keySet().forEach(key -> settings.fileNames.put(key, name));
        settings.file.putAll(values);
    }
    // end shared:vmenvfile

    // shared:checksetting
    /** Refuses a setting that this vm.env must not hold: the project's in {@code directory}, or if null the user's. */
    private static void checkSetting(String name, String value, Path directory) throws IOException {
        if (value.isEmpty()) {
            return;
        } else if (directory == null) {
            // in a working directory with somebody else's files it would be one of those
            if (Set.of("VM_DIR", "VM_IMAGE", "VM_PHASES", "VM_PROJECT").contains(name) && !value.matches("[/~].*")) {
                throw new VmException(2, name + " must begin with / or ~ in this file, not be relative: " + value);
            }
        } else if (!PROJECT_SETTINGS.contains(name) && SETTINGS.contains(name)) {
            throw new VmException(2, name + " is read only from your own settings, because a project could harm this "
                    + "machine by it. If you wrote this line, move it to ~/.go-synth/vm.env; else delete it");
        } else if (name.equals("VM_PROJECT")) {
            Path project = value.startsWith("~") ? userPath(value) : directory.resolve(value).normalize();
            Path there = project;
            while (!Files.exists(there)) {
                there = there.getParent();
            }
            if (!there.toRealPath().resolve(there.relativize(project)).startsWith(directory)) {
                throw new VmException(2, "VM_PROJECT lies outside of the directory of this file: " + value + "; name "
                        + "it with --project, or move this file away and put VM_PROJECT into ~/.go-synth/vm.env");
            }
        }
    }
    // end shared:checksetting

    // shared:vmenvline
    /** Puts the setting in a line of vm.env into {@code values}: KEY=value, perhaps with export before it. */
    private static String readLine(String line, Map<String, String> values) {
        String assignment = line.replaceFirst("^export\\s+", "");
        int equals = assignment.indexOf('=');
        String key = equals < 0 ? "" : assignment.substring(0, equals).strip();
        if (line.isEmpty() || line.startsWith("#")) {
            return null;
        } else if (line.length() > 4096) {
            throw new VmException(2, "this line is longer than 4096 characters");
        } else if (!key.matches("[A-Za-z_]\\w*")) {
            throw new VmException(2, "this is not KEY=value");
        }
        values.put(key, readValue(assignment.substring(equals + 1)));
        return key;
    }
    // end shared:vmenvline

    // shared:vmenvvalue
    /**
     * The value in what follows "KEY=". A # after a blank, outside quotes, begins a comment. Quotes are removed only if
     * one pair encloses the whole value. A backslash stays in the value, and a quote after it is not counted.
     */
    private static String readValue(String text) {
        char quote = 0; // the one that is open
        int firstClosed = -1; // where the first pair of quotes ends
        int end = 0;
        for (; end < text.length(); end++) {
            char here = text.charAt(end);
            if (here == '\\' && quote != '\'' && end + 1 < text.length()) {
                end++;
            } else if (quote == 0 && (here == '"' || here == '\'')) {
                quote = here;
            } else if (here == quote) {
                quote = 0;
                firstClosed = firstClosed < 0 ? end : firstClosed;
            } else if (quote == 0 && here == '#' && end > 0 && Character.isWhitespace(text.charAt(end - 1))) {
                break;
            }
        }
        String value = text.substring(0, end).strip();
        if (quote != 0) {
            throw new VmException(2, "the quote " + quote + " is not closed");
        } else if (value.chars().anyMatch(c -> c == 0xfffd || Character.isISOControl(c) && c != '\t')) {
            throw new VmException(2, "this is not plain text in UTF-8");
        }
        boolean enclosed = (value.startsWith("'") || value.startsWith("\""))
                && text.substring(firstClosed + 1, end).isBlank();
        return enclosed ? value.substring(1, value.length() - 1) : value;
    }
    // end shared:vmenvvalue

    // shared:names
    /** What the vm.env of a project may set: nothing that runs a program here or names a file outside the project. */
    private static final Set<String> PROJECT_SETTINGS = Set.of("DFLY_VERSION", "VM_NAME", "VM_MEMORY", "VM_CPUS",
            "VM_DISK_SIZE", "VM_DPORTS_CLONE", "VM_NET", "VM_PROJECT", "VM_REMOTE_DIR", "VM_TIME_LIMIT");
    static final Set<String> SETTINGS = Stream.concat(PROJECT_SETTINGS.stream(), Stream.of("VM_ACCEL", "VM_CPU",
            "VM_CTL_CMD", "VM_DIR", "VM_DISK_CACHE", "VM_IMAGE", "VM_MIRROR", "VM_PHASES", "VM_QEMU_ARGS",
            "VM_SETUP_CMD", "VM_SSH_PORT", "VM_SYNC_CMD")).collect(Collectors.toSet());

    private static boolean isSetting(String name) {
        return SETTINGS.contains(name) || name.startsWith("VM_TEST_");
    }

    private static void checkFile(Path file, boolean mustBeOwn) throws IOException {
        if (!Files.isRegularFile(file) || Files.size(file) > 1 << 20) { // a pipe would never end
            throw new IOException("it is not a file of at most 1 MB");
        } else if (mustBeOwn && !isOwn(file)) {
            throw new IOException("another user owns it or can write to it: chown and chmod go-w make it yours");
        }
    }
    // end shared:names

    // shared:optionerror
    /** What is wrong with a command line, in plain words and by the name that the user wrote. */
    static String describeOptionError(Settings settings, ParameterException failure, String... args) {
        CommandSpec command = failure.getCommandLine().getCommandSpec();
        if (failure instanceof UnmatchedArgumentException unmatched) {
            String word = unmatched.getUnmatched().get(0);
            boolean isOption = word.matches("-.+");
            boolean isCommand = !isOption && !command.subcommands().isEmpty();
            String name = word.replaceFirst("(?<=^--[\\w-]{1,99})=.*", "");
            return isOption ? "there is no option " + name + didYouMean(name, command.optionsMap().keySet())
                    : isCommand ? "there is no command '" + word + "'"
                    + didYouMean(word, command.subcommands().keySet())
                    : "'" + word + "' is one word too many";
        }
        ArgSpec argument = failure.getArgSpec();
        String message = failure.getMessage();
        String fault = (message.startsWith("Invalid value for ") ? message.substring(message.indexOf(": ") + 2)
                : message)
                .replaceFirst("(?s)expected one of \\[(.*)] .*but was (.*)", "$2 is none of $1")
                .replaceFirst("(?s).* should be in KEY=VALUE format but was (.*)",
                        "'$1' is not a variable such as K=V");
        String name = argument instanceof OptionSpec option ? originOf(settings, option, List.of(args))
                : argument == null ? "" : argument.paramLabel();
        return name.isEmpty() || fault.startsWith("Missing ") ? fault : name + ": " + fault;
    }

    private static String seeHelp(CommandSpec spec) {
        String make = System.getProperty("vm.make"); // the target and its variable for options
        return "; see: " + (make == null ? spec.qualifiedName() + " " : "make " + make + "=") + "--help";
    }
    // end shared:optionerror

    // shared:origin
    /** What the user wrote to give an option its value: the option, or the setting and where it stands. */
    static String originOf(Settings settings, OptionSpec option, List<String> args) {
        String key = option.descriptionKey();
        boolean given = args.stream().takeWhile(arg -> !arg.equals("--"))
                .anyMatch(arg -> List.of(option.names()).contains(arg) || arg.startsWith(option.longestName() + "="));
        return given || settings.get(key) == null ? option.longestName() : settings.origin(key);
    }

    /** As above, for checks after the command line has been read. */
    static String originOf(CommandSpec command, String option) {
        CommandLine root = command.root().commandLine();
        Settings settings = (Settings) root.getDefaultValueProvider();
        return originOf(settings, command.findOption(option), root.getParseResult().originalArgs());
    }
    // end shared:origin

    // shared:nearest
    /** " (did you mean start?)" if known words are near, else "". */
    static String didYouMean(String word, Collection<String> known) {
        int letters = word.replaceFirst("^-+", "").length();
        for (int changes = 0; changes <= (letters < 3 ? 0 : letters < 5 ? 1 : 2); changes++) {
            int most = changes;
            String near = known.stream().distinct().sorted().filter(other -> isNear(word, other, most))
                    .collect(Collectors.joining(" or "));
            if (!near.isEmpty()) {
                return " (did you mean " + near + "?)";
            }
        }
        return "";
    }

    /** Whether the edit distance is at most this; two letters in the wrong order are one change. */
    static boolean isNear(String from, String to, int changes) {
        if (from.isEmpty() || to.isEmpty()) {
            return from.length() + to.length() <= changes;
        }
        String a = from.substring(1);
        String b = to.substring(1);
        if (from.charAt(0) == to.charAt(0)) {
            return isNear(a, b, changes);
        }
        boolean swapped = !a.isEmpty() && !b.isEmpty() && from.charAt(0) == b.charAt(0) && a.charAt(0) == to.charAt(0);
        return changes > 0 && (isNear(a, b, changes - 1) || isNear(from, b, changes - 1) || isNear(a, to, changes - 1)
                || swapped && isNear(a.substring(1), b.substring(1), changes - 1));
    }
    // end shared:nearest

    // shared:values
    /** What a setting must look like, and how to say so: the same in every script. */
    private static final Map<String, List<String>> VALUES = Map.ofEntries(
            Map.entry("DFLY_VERSION", List.of("[A-Za-z0-9_][A-Za-z0-9._-]{0,31}", "a version such as 6.4.2")),
            Map.entry("VM_DIR", List.of("(?s)(?!.*(%|\\$\\{)).*", "a path without % and ${, which ssh would replace")),
            Map.entry("VM_NAME", List.of("(?!.*-clean$)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}",
                    // NAME-clean.qcow2 is a disk
                    "a name of letters, digits, '.', '_' and '-', without '.' or '-' in front or -clean at the end")),
            Map.entry("VM_MEMORY", List.of("[1-9]\\d{0,6}[MG]", "a size such as 2G or 512M")),
            Map.entry("VM_DISK_SIZE", List.of("[1-9]\\d{0,6}[MGT]", "a size such as 40G")),
            Map.entry("VM_DPORTS_CLONE", List.of("yes|no", "yes or no")),
            Map.entry("VM_CPUS", List.of("[1-9]\\d?", "a number from 1 to 99")),
            Map.entry("VM_ACCEL", List.of("auto|kvm|hvf|tcg", "auto, kvm, hvf or tcg")),
            Map.entry("VM_DISK_CACHE", List.of("writeback|none|unsafe", "writeback, none or unsafe")),
            Map.entry("VM_NET", List.of("user|offline", "user or offline")),
            Map.entry("VM_SSH_PORT", List.of(
                    "[1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]",
                    "a port")),
            Map.entry("VM_QEMU_ARGS", List.of("(?s)('[^']*'|\"(\\\\.|[^\"\\\\])*\"|\\\\.|[^'\"\\\\])*",
                    "words whose quotes are closed")));
    // end shared:values

    // shared:checkvalues
    /** Refuses a value that does not look like one, wherever it came from, before anything is done with it. */
    private static void checkValues(Settings settings, ParseResult parsed) {
        List<CommandLine> lines = parsed.asCommandLineList();
        if (lines.stream().anyMatch(line -> line.isUsageHelpRequested() || line.isVersionHelpRequested())) {
            return;
        } else if (generalProblem(settings, parsed.originalArgs()) != null) {
            throw new ParameterException(parsed.commandSpec().commandLine(), "general problem");
        }
        settings.warnings.forEach(warning -> lines.get(0).getErr().println(printable(lines.get(0).getCommandName()
                + ": warning: " + warning)));
        for (CommandLine line : lines) {
            for (OptionSpec option : line.getCommandSpec().options()) {
                List<String> rule = VALUES.getOrDefault(String.valueOf(option.descriptionKey()), List.of("(?s).*"));
                Object value = option.getValue();
                if (value != null && !value.toString().matches(rule.get(0))) {
                    throw new ParameterException(line, "'" + value + "' is not " + rule.get(1), option, null);
                }
            }
        }
    }
    // end shared:checkvalues

    // shared:paths
    /** A path as a person writes it in a setting: "~/" is $HOME, a relative one starts here. */
    static Path userPath(String value) {
        boolean inHome = value.equals("~") || value.startsWith("~/");
        String home = System.getenv().getOrDefault("HOME", "");
        if (inHome && !home.startsWith("/")) {
            throw new VmException(69, "HOME is not set to a full path, so " + value
                    + " cannot be found: set it, or write the full path");
        } else if (value.startsWith("~") && !inHome) {
            throw new VmException(2, value + ": only ~ and ~/ stand for a home directory; write the full path, or ./"
                    + value);
        }
        return Path.of(inHome ? home + value.substring(1) : value).toAbsolutePath().normalize();
    }
    // end shared:paths

    // shared:lock
    /**
     * Takes a VM's lock, held until the channel is closed or this process ends; its text names the holder. 69 if
     * another holds it.
     */
    static FileChannel lock(Path file, String command) throws IOException {
        FileChannel channel = FileChannel.open(file,
                Set.of(StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE),
                PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
        if (channel.tryLock() == null) {
            try (channel; InputStream in = Channels.newInputStream(channel)) {
                String holder = new String(in.readNBytes(200), UTF_8).strip();
                throw new VmException(69, (holder.isEmpty() ? "another command" : holder)
                        + " is at work on this VM: wait for it, or stop it, and try again");
            }
        }
        try {
            channel.truncate(0).write(UTF_8.encode(command + " (pid " + ProcessHandle.current().pid() + ", since "
                    + Instant.now() + ")\n"));
        } catch (IOException full) {
            // the lock holds without its text, and what frees space must work on a full disk
        }
        return channel;
    }
    // end shared:lock

    // shared:files
    /** Writes a file that others read: beside itself, then moved into place, so that nobody ever sees half of it. */
    static void writeFile(Path file, String text, String mode) throws IOException {
        Path beside = Files.createTempFile(file.getParent(), "." + file.getFileName(), ".new");
        try {
            Files.setPosixFilePermissions(Files.writeString(beside, text), PosixFilePermissions.fromString(mode));
            try (FileChannel channel = FileChannel.open(beside, StandardOpenOption.WRITE)) {
                channel.force(true); // or a power cut could leave an empty file under the new name
            }
            Files.move(beside, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            Files.deleteIfExists(beside);
        }
    }
    // end shared:files

    // shared:vmdirectory
    /** VM_DIR, if it can be used. OpenSSH 9.9 expands % and ${ in Include lines, and 9.2 does not. */
    static Path vmDirectory(Path directory) {
        if (directory.toString().contains("%") || directory.toString().contains("${")) {
            throw new VmException(2, "VM_DIR must not contain % or ${, which ssh may replace in its configuration: "
                    + directory + "; choose another directory with --vm-dir or VM_DIR");
        }
        Path existing = directory;
        while (!Files.exists(existing)) { // also false without permission to read it
            existing = existing.getParent();
        }
        if (!Files.isDirectory(existing) || !Files.isExecutable(existing)) {
            throw new VmException(69, existing + (Files.isDirectory(existing) ? " is closed to you"
                    : " is not a directory")
                    + ": choose another directory with --vm-dir or VM_DIR");
        }
        return existing.equals(directory) ? requireOwn(directory) : directory;
    }
    // end shared:vmdirectory

    // shared:directory
    /** Makes a directory and its missing parents for this user alone. One that exists is checked, and never changed. */
    static Path privateDirectory(Path directory) {
        try {
            makeDirectory(directory);
        } catch (IOException refused) {
            throw new VmException(69, "cannot write to " + directory + " (" + reason(refused)
                    + "): choose another directory with --vm-dir or VM_DIR");
        }
        return requireOwn(directory);
    }

    private static void makeDirectory(Path directory) throws IOException {
        if (!Files.isDirectory(directory)) {
            makeDirectory(directory.getParent());
            var owner = PosixFilePermissions.fromString("rwx------");
            try {
                Files.createDirectory(directory, PosixFilePermissions.asFileAttribute(owner));
                Files.setPosixFilePermissions(directory, owner); // a strict umask may have taken some away
            } catch (FileAlreadyExistsException inTheWay) {
                if (!Files.isDirectory(directory)) { // or another command made it at the same moment
                    throw inTheWay;
                }
            }
        }
    }
    // end shared:directory

    // shared:foreign
    /** Refuses a directory in which another user could replace keys and disks. Of a symbolic link the target counts. */
    static Path requireOwn(Path directory) {
        String another = "choose another directory with --vm-dir or VM_DIR";
        try {
            if (!Files.isDirectory(directory)) {
                throw new VmException(69, directory + " is not a directory: " + another);
            } else if (isOwn(directory)) {
                return directory;
            }
            String owner = Files.getOwner(directory).getName();
            String quoted = "'" + directory.toString().replace("'", "'\\''") + "'";
            String mode = Integer.toOctalString((int) Files.getAttribute(directory, "unix:mode") & 07777);
            String remedy = Files.getAttribute(directory, "unix:uid").equals(userId())
                    ? ", or, if nobody else uses this one: "
                    : ", or run this as " + owner + ", or make it yours: sudo chown -R $(id -u) " + quoted + "; ";
            boolean everybodys = mode.matches("1..."); // as /tmp, which must stay so
            throw new VmException(69, directory + " belongs to " + owner + " and has the mode " + mode
                    + ", so another user could replace keys and disks in it: " + another
                    + (everybodys ? ", as " + directory.resolve("vm") : remedy + "chmod go-w " + quoted));
        } catch (IOException unknown) {
            throw new VmException(69, "cannot tell who owns " + directory + " (" + reason(unknown) + "): " + another);
        }
    }
    // end shared:foreign

    // shared:owner
    /** Whether this user owns a file and nobody else can write to it. Ids are compared: a user may have no name. */
    static boolean isOwn(Path file) throws IOException {
        int mode = (int) Files.getAttribute(file, "unix:mode");
        return Files.getAttribute(file, "unix:uid").equals(userId()) && (mode & 02) == 0
                && ((mode & 020) == 0 || hasPrivateGroup(file));
    }

    /** Whether a file's group is its owner's alone, as on systems where each user has a group and the umask 002. */
    static boolean hasPrivateGroup(Path file) throws IOException {
        String owner = Files.getOwner(file).getName();
        Path groups = Path.of("/etc/group");
        return Files.getAttribute(file, "posix:group").toString().equals(owner) && !owner.equals("root")
                && Files.exists(groups) && new String(Files.readAllBytes(groups), UTF_8).lines()
                .anyMatch(line -> line.startsWith(owner + ":") && line.endsWith(":")); // no members after the colon
    }

    /** The user id that new files get. On Linux this process's files in /proc have it, so that nothing is written. */
    private static Object userId() throws IOException {
        Path own = Path.of("/proc/self/stat");
        if (Files.exists(own)) {
            return Files.getAttribute(own, "unix:uid");
        }
        Path file = Files.createTempFile("vm", null);
        try {
            return Files.getAttribute(file, "unix:uid");
        } finally {
            Files.delete(file);
        }
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

    // shared:accel
    /** An accelerator, and why it is the one to use. */
    record Accelerator(String name, String reason) {}

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

    /** Whether this user can open a device to use it. Its mode alone does not tell: a container may forbid it. */
    static boolean opens(Path device) {
        try (FileChannel channel = FileChannel.open(device, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            return channel.isOpen();
        } catch (IOException refused) {
            return false;
        }
    }
    // end shared:accel

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
}
