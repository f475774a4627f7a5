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
import java.io.Console;
import java.io.EOFException;
import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.lang.module.ModuleDescriptor;
import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.Proxy;
import java.net.ProxySelector;
import java.net.ServerSocket;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.net.UnknownHostException;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.DelegatingProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.apache.commons.codec.binary.Hex;
import org.apache.commons.codec.digest.DigestUtils;
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * Puts DragonFlyBSD's installer ISO into VM_DIR, verified; makes a blank disk; tells what this machine lacks.
 *
 * <p>{@code fetch}, in order:
 * <ol>
 * <li>An ISO that is there and was verified (its size and time say that it is still that file) is the answer.
 * <li>For one mirror after the other: {@code md5.txt} is read and compared with the sums pinned here, before any download.
 * <li>{@code dfly-<version>.iso.bz2.part} grows, over as many connections as it takes; {@code .part.json} beside it says of which
 * file it is the beginning, so that the next run goes on with it, from this mirror or another that has the same file.
 * <li>Meanwhile it is unpacked into {@code dfly-<version>.iso.part}, as it grows, and both are hashed on the way.
 * <li>When all sums hold: {@code dfly-<version>.iso.json} remembers what was verified, and the ISO gets its name.
 * </ol>
 * Each of these files is either complete, or recognised as incomplete by the next run: the process can be killed at any point.
 *
 * <p>{@code disk} writes {@code <name>.qcow2} (under {@code <name>.lock}, reading {@code <name>.pid}); {@code check} writes accel.json.
 */
@Command(name = "vm-setup", mixinStandardHelpOptions = true, version = "1",
        description = {"Check this machine and download the DragonFlyBSD installer",
            "Without a command: fetch: download, verify and unpack the installer into VM_DIR. Killed, it goes on where it was."},
        footer = {"", "Examples:", "  vm-setup check", "  vm-setup", "  VM_MIRROR=https://avalon.dragonflybsd.org/iso-images/ vm-setup",
            "Exit codes: 0 done or already there; 1 a wrong sum, or a full disk; 2 usage; 69 no mirror has it, or another fetch runs."})
final class VmSetup implements Callable<Integer> {
    private static final String QEMU = "qemu-system-x86_64";
    private static final long MB = 1_000_000;
    private static final long GB = 1L << 30;
    private static final String PORTAL = " (a network that wants a login?)";
    /** Connections in a row that bring nothing new before a mirror is given up. */
    private static final int ATTEMPTS = 5;

    /** Sums of a release's .iso.bz2 and .iso; null where none is known. */
    record Sums(String archiveMd5, String archiveSha256, String isoMd5) {
        static final Sums NONE = new Sums(null, null, null);
    }

    /** From other places than the mirrors: golang/build, dragonfly-packer, cross-platform-actions, a download that agreed. */
    static final Map<String, Sums> PINNED = Map.of(
            "6.4.2", new Sums("906095312c4a4ac0577fb91d5eb87033", "373150a21eeb7ce0f20c7faf1b8129145bf3bf0463a45d0dc18aad274f7ed661",
                    "fdab09ac37cf427b8c01de5d54bfd1d7"),
            "6.4.0", new Sums("5dbf894d9120664a675030c475f25040", null, "ff4d500c7c75b1f88ca4237a6aa861d1"),
            "6.2.2", new Sums("b391a29c8e9c1cc33f2441ff1f0d98a0", null, null),
            "6.0.0", new Sums("252fc700803dbadce1de928432373bbb", null, null));

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    void setVmDir(String value) {
        vmDir = userPath(value);
    }

    @Option(names = "--dfly-version", descriptionKey = "DFLY_VERSION", defaultValue = "6.4.2", scope = ScopeType.INHERIT,
            converter = Name.class, paramLabel = "VERSION",
            description = "The release to install (DFLY_VERSION; default: ${DEFAULT-VALUE}).")
    String version;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            converter = Name.class, paramLabel = "NAME", description = "The VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String name;

    @Option(names = "--mirror", descriptionKey = "VM_MIRROR", split = "[,\\s]+", scope = ScopeType.INHERIT, converter = Web.class,
            defaultValue = "https://mirror-master.dragonflybsd.org/iso-images/,https://avalon.dragonflybsd.org/iso-images/,"
                    + "https://pub.allbsd.org/DragonFly/iso-images/,https://mirror.sjtu.edu.cn/dragonflybsd/iso-images/",
            paramLabel = "URL", description = "Where md5.txt and the images lie, in this order (VM_MIRROR; default: ${DEFAULT-VALUE}).")
    List<URI> mirrors;

    @Option(names = "--image", descriptionKey = "VM_IMAGE", scope = ScopeType.INHERIT, paramLabel = "FILE",
            description = "A local .iso or .iso.bz2 instead of a mirror (VM_IMAGE; default: none).")
    void setImage(String value) {
        image = userPath(value);
    }

    @Option(names = "--trust-mirror", scope = ScopeType.INHERIT,
            description = "Skip the sums known to this script and believe the mirror's md5.txt, or VM_IMAGE: for an image that is not "
                    + "the release whose name it bears, such as a stand-in for tests.")
    boolean trustMirror;

    @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE", defaultValue = "20G", scope = ScopeType.INHERIT,
            converter = Size.class, paramLabel = "SIZE", description = "Of the VM's sparse disk (VM_DISK_SIZE; default: ${DEFAULT-VALUE}).")
    long diskSize;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    @Spec
    CommandSpec spec;

    Path vmDir;
    Path image;
    /** For tests: where proxies and PATH are looked up; the pause before a connection is tried again; how long one may be silent. */
    Map<String, String> environment = System.getenv();
    Duration pause = Duration.ofSeconds(1);
    Duration silence = Duration.ofSeconds(60);

    public static void main(String... args) {
        System.setProperty("jdk.http.auth.tunneling.disabledSchemes", ""); // or a proxy's user name would not be sent for https
        System.exit(commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmSetup(), Settings.read(System.getenv(), Path.of("")));
    }

    @Override
    public Integer call() throws IOException {
        return fetch();
    }

    @Command(name = "fetch", mixinStandardHelpOptions = true,
            description = "Download, verify and unpack the installer: what vm-setup does without a command. Prints the ISO's path.",
            footer = {"", "Example: vm-setup fetch --dfly-version 6.4.0",
                "Exit codes: 0 done or already there; 1 a wrong sum, or the disk is full; 69 no mirror has it, or another fetch runs."})
    int fetch() throws IOException {
        privateDirectory(vmDir);
        Path iso = iso();
        if (!verified(iso)) {
            FileChannel lock = lock(vmDir.resolve(iso.getFileName() + ".lock"), "vm-setup fetch");
            try {
                if (verified(iso) || recognised(iso)) {
                    // another fetch ended just now, or a person put the file there
                } else if (image != null) {
                    takeImage(iso);
                } else {
                    takeFromMirrors(iso);
                }
            } finally {
                lock.close();
            }
        }
        spec.commandLine().getOut().println(iso);
        return 0;
    }

    @Command(name = "disk", mixinStandardHelpOptions = true,
            description = "Make a blank disk, <name>.qcow2, for an installation by hand. Prints its path.",
            footer = {"", "Example: vm-setup disk --disk-size 40G",
                "Exit codes: 0 done; 1 the disk is full; 2 it holds something and --yes is missing; 69 no qemu-img, or the VM is in use."})
    int disk(@Option(names = "--yes", description = "Replace a disk that holds something.") boolean yes) throws IOException {
        privateDirectory(vmDir);
        Path disk = vmDir.resolve(name + ".qcow2");
        FileChannel lock = lock(vmDir.resolve(name + ".lock"), "vm-setup disk");
        try {
            OptionalLong pid = livePid(vmDir.resolve(name + ".pid"));
            if (pid.isPresent()) {
                throw new VmException(69, "VM " + name + " is running (pid " + pid.getAsLong() + "): stop it first: vm-ctl stop");
            }
            String content = content(disk);
            if (content.equals("blank")) {
                say(disk + " is already there, and blank");
            } else if (content.isEmpty() || yes || confirmed(disk + " holds " + content + ". Replace it with a blank disk?")) {
                Path beside = vmDir.resolve("." + name + ".qcow2.new");
                Files.deleteIfExists(beside);
                ProcessResult made = run(Duration.ofMinutes(1), blankDisk(beside, diskSize));
                if (made.getExitValue() != 0) {
                    throw new VmException(1, "qemu-img made no disk: " + made.outputUTF8().strip());
                }
                Files.setPosixFilePermissions(beside, PosixFilePermissions.fromString("rw-------"));
                Files.move(beside, disk, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            }
        } finally {
            lock.close();
        }
        spec.commandLine().getOut().println(disk);
        return 0;
    }

    @Command(name = "check", mixinStandardHelpOptions = true,
            description = "Tell what this machine lacks for the VM as configured, a line each, with the command that mends it.",
            footer = {"", "Example: VM_MEMORY=4G vm-setup check", "Exit codes: 0 nothing is missing (notes or not); 69 something is."})
    int check(@Option(names = "--json", description = "Print {ok, checks: [{name, state, detail, fix}]}.") boolean json,
            @Option(names = "--memory", descriptionKey = "VM_MEMORY", converter = Size.class, paramLabel = "SIZE",
                    description = "Of the VM (VM_MEMORY; default: a quarter of this machine's within 2G-8G).") Long memory,
            @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                    description = "Forwarded to the VM's ssh (VM_SSH_PORT; default: 2222 or the next free one).") Integer sshPort,
            @Option(names = "--accel", descriptionKey = "VM_ACCEL", defaultValue = "auto", paramLabel = "NAME",
                    description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}).") String accel) throws IOException {
        long total = ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize();
        long wanted = memory != null ? memory : Math.max(2 * GB, Math.min(8 * GB, total / 4));
        Check rsync = checkProgram("rsync", "rsync", "--version");
        List<Check> checks = List.of(checkJava(), checkQemu(), checkProgram("qemu", "qemu-img", "--version"), checkAccelerator(accel),
                checkMemory(wanted, total), checkSpace(wanted), checkPort(sshPort), checkInstaller(), checkProgram("ssh", "ssh", "-V"),
                rsync.state == State.OK ? rsync : note("rsync", "not there: vm-sync copies by its own engine then", rsync.fix));
        boolean ok = checks.stream().noneMatch(check -> check.state == State.FAIL);
        if (json) {
            JsonArray all = new JsonArray();
            checks.forEach(check -> all.add(JsonObject.builder().value("name", check.name).value("state", check.state.toString())
                    .value("detail", check.detail).value("fix", check.fix).done()));
            spec.commandLine().getOut().println(JsonWriter.string().object().value("ok", ok).value("checks", all).end().done());
        } else {
            checks.forEach(check -> spec.commandLine().getOut().println(check.line()));
        }
        return ok ? 0 : 69;
    }

    /** What is wrong with a mirror: it refuses, its file is not the one it should be, or its file changed during the download. */
    static final class MirrorException extends IOException {
        private static final long serialVersionUID = 1;

        enum Kind { REFUSED, WRONG_SUM, CHANGED }

        final Kind kind;

        MirrorException(Kind kind, String message) {
            super(message);
            this.kind = kind;
        }
    }

    private static MirrorException refused(String message) {
        return new MirrorException(MirrorException.Kind.REFUSED, message);
    }

    private Path iso() {
        return vmDir.resolve("dfly-" + version + ".iso");
    }

    private String archiveName() {
        return "dfly-x86_64-" + (version.contains("_") ? version : version + "_REL") + ".iso.bz2"; // 6.4.0_RC1 has no _REL
    }

    /** The sums to hold beside those of md5.txt: none if none are known, or the mirror is trusted. */
    private Sums pinned() {
        return trustMirror ? Sums.NONE : PINNED.getOrDefault(version, Sums.NONE);
    }

    /** Whether the ISO is there and is, by size and time, the file that was verified. Says so. */
    private boolean verified(Path iso) throws IOException {
        JsonObject said = saidBeside(iso);
        if (!Files.exists(iso) || said.getLong("size") != Files.size(iso) || !modified(iso).equals(said.getString("modified"))
                || image != null && !origin(image).equals(said.getString("from"))) {
            return false;
        } else if (said.getBoolean("pinsSkipped") && !trustMirror) {
            throw new VmException(1, iso + " was taken on trust (--trust-mirror) and is not the DragonFly " + version
                    + " that is known here: remove it to download that, or give --trust-mirror again");
        }
        say(iso + " is already there, verified " + said.getString("verified") + " (" + said.getString("how") + ")");
        return true;
    }

    /** Whether an ISO that nobody verified, or somebody touched, has the known sum; if not, it is the person's to remove. */
    private boolean recognised(Path iso) throws IOException {
        if (!Files.exists(iso) || image != null) {
            return false;
        }
        String known = saidBeside(iso).getString("md5", pinned().isoMd5);
        String md5 = md5(iso);
        if (!md5.equals(known)) {
            throw new VmException(1, iso + " has the MD5 " + md5 + (known == null ? ", and none is known to compare" : ", not " + known)
                    + ": remove it and run vm-setup again, or name it as VM_IMAGE");
        }
        remember(iso, iso, new Sums(null, null, md5), origin(iso), "by its MD5");
        return verified(iso);
    }

    private void takeImage(Path iso) throws IOException {
        if (!Files.isReadable(image)) {
            throw new VmException(69, "VM_IMAGE: " + image + " cannot be read");
        }
        Path part = beside(iso, ".part");
        boolean packed = image.toString().endsWith(".bz2");
        Sums pins = packed ? pinned() : new Sums(null, null, pinned().isoMd5);
        try (InputStream in = ProgressBar.wrap(Files.newInputStream(image), progress(Files.size(image)))) {
            Sums found = unpack(in, packed, packed ? unpacker() : List.of(), part);
            compare(image.toString(), found, pins);
            if (!isIso(part)) {
                throw new IOException("no ISO 9660 image");
            }
            remember(iso, part, found, origin(image), pins.equals(Sums.NONE) ? "VM_IMAGE, no sum is known" : "by the sums known here");
        } catch (IOException wrong) {
            Files.deleteIfExists(part);
            throw new VmException(1, "VM_IMAGE: " + image + " is of no use: " + wrong.getMessage());
        }
        place(part, iso);
    }

    private static boolean isIso(Path file) throws IOException {
        ByteBuffer magic = ByteBuffer.allocate(5);
        try (FileChannel channel = FileChannel.open(file)) {
            channel.read(magic, 0x8001);
        }
        return new String(magic.array(), UTF_8).equals("CD001");
    }

    private void takeFromMirrors(Path iso) throws IOException {
        if (trustMirror && PINNED.containsKey(version)) {
            say("WARNING: --trust-mirror: the sums known for DragonFly " + version + " are NOT checked, only the mirror's own md5.txt");
        } else if (!PINNED.containsKey(version)) {
            say("no sums are known here for DragonFly " + version + ": it is checked against the mirror's md5.txt only");
        }
        List<String> problems = new ArrayList<>();
        boolean wrong = false;
        for (URI mirror : mirrors) {
            if (!problems.isEmpty()) {
                say(problems.get(problems.size() - 1) + "; trying the next mirror");
            }
            try {
                takeFrom(mirror, iso);
                return;
            } catch (MirrorException problem) {
                wrong |= problem.kind == MirrorException.Kind.WRONG_SUM;
                problems.add(problem.getMessage());
            }
        }
        throw new VmException(wrong ? 1 : 69, String.join("; ", problems) + ". " + (Files.exists(beside(iso, ".bz2.part"))
                ? "What came is kept: run it again to go on" : "Another mirror: VM_MIRROR; a local file: VM_IMAGE"));
    }

    private void takeFrom(URI mirror, Path iso) throws IOException {
        Listing listing = listing(mirror, 3);
        String md5 = listing.sums.get(archiveName());
        if (md5 == null) {
            throw refused(listing.base + " has no DragonFly " + version + ", but " + releases(listing) + " (choose with DFLY_VERSION)");
        }
        compare(listing.base + "md5.txt: " + archiveName(), new Sums(md5, null, null), pinned());
        String isoMd5 = listing.sums.get(archiveName().replace(".bz2", ""));
        Path part = beside(iso, ".part");
        for (int start = 1;; start++) {
            Transfer transfer = new Transfer(listing.base.resolve(archiveName()), beside(iso, ".bz2.part"), md5);
            boolean resumed = transfer.kept > 0;
            transfer.start();
            try {
                Sums found = unpack(transfer, part);
                compare(transfer.uri.toString(), found, new Sums(md5, null, isoMd5));
                compare(transfer.uri.toString(), found, pinned());
                remember(iso, part, found, transfer.uri.toString(),
                        (pinned().equals(Sums.NONE) ? "" : "by the sums known here and ") + "by md5.txt of " + listing.base.getHost());
                place(part, iso);
                transfer.forget();
                return;
            } catch (MirrorException problem) {
                if (problem.kind == MirrorException.Kind.REFUSED) {
                    throw problem; // what came so far is good for the next mirror, or the next run
                }
                transfer.forget();
                if (start == 3 || problem.kind == MirrorException.Kind.WRONG_SUM && !resumed) {
                    throw problem;
                }
                say(problem.getMessage() + "; once more from the start");
            } finally {
                Files.deleteIfExists(part); // it has its name, or is of no use; on a full disk the download needs the room
            }
        }
    }

    /** Fails for the first sum that is known and not met. */
    static void compare(String what, Sums found, Sums wanted) throws MirrorException {
        String[][] pairs = {{"MD5", found.archiveMd5, wanted.archiveMd5}, {"SHA-256", found.archiveSha256, wanted.archiveSha256},
            {"MD5, unpacked,", found.isoMd5, wanted.isoMd5}};
        for (String[] pair : pairs) {
            if (pair[1] != null && pair[2] != null && !pair[1].equals(pair[2])) {
                throw new MirrorException(MirrorException.Kind.WRONG_SUM, what + " has the " + pair[0] + " " + pair[1] + ", not " + pair[2]
                        + ": damaged, or another file than it should be");
            }
        }
    }

    /** Remembers what was verified, before the file gets the ISO's name (or has it). */
    private void remember(Path iso, Path file, Sums sums, String from, String how) throws IOException {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
            channel.force(true); // or a power failure could leave a verified name on an empty file
        }
        boolean pinsSkipped = trustMirror && PINNED.containsKey(version);
        writeFile(beside(iso, ".json"), JsonWriter.string().object().value("size", Files.size(file)).value("modified", modified(file))
                .value("md5", sums.isoMd5).value("archiveMd5", sums.archiveMd5).value("from", from).value("how", how)
                .value("pinsSkipped", pinsSkipped).value("verified", Instant.now().toString()).end().done(), "rw-------");
    }

    private void place(Path part, Path iso) throws IOException {
        Files.move(part, iso, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        say(iso + " is complete (verified: " + saidBeside(iso).getString("how") + ")");
    }

    private static Path beside(Path file, String suffix) {
        return file.resolveSibling(file.getFileName() + suffix);
    }

    /** What FILE.json says of FILE; empty if there is none. */
    private static JsonObject saidBeside(Path file) {
        try {
            return json(Files.readString(beside(file, ".json")));
        } catch (IOException none) {
            return new JsonObject();
        }
    }

    private static String modified(Path file) throws IOException {
        return Files.getLastModifiedTime(file).toString();
    }

    private static String origin(Path file) throws IOException {
        return Files.exists(file) ? file + ", " + Files.size(file) + " bytes of " + modified(file) : file.toString();
    }

    private static String md5(Path file) throws IOException {
        try (InputStream in = Files.newInputStream(file)) {
            return DigestUtils.md5Hex(in);
        }
    }

    /** The directory of a mirror that holds md5.txt, the sums in it, and its text. */
    private record Listing(URI base, Map<String, String> sums, String text) {}

    private Listing listing(URI mirror, int attempts) throws MirrorException {
        URI base = URI.create(mirror.toString().replaceFirst("/*$", "/"));
        try {
            String text = text(base.resolve("md5.txt"), attempts);
            if (sums(text).isEmpty()) {
                throw refused(base + "md5.txt holds no sums" + (text.contains("<html") ? ", but a web page" + PORTAL : ""));
            }
            return new Listing(base, sums(text), text);
        } catch (MirrorException refused) {
            if (base.getPath().endsWith("/iso-images/")) {
                throw refused;
            }
            return listing(base.resolve("iso-images/"), attempts); // a mirror's own address was given, without the directory
        } catch (IOException unreachable) {
            throw refused(mirror + " cannot be reached (" + cause(unreachable) + ")");
        }
    }

    /** Lines as "MD5 (name) = sum", or "sum  name". */
    static Map<String, String> sums(String text) {
        Map<String, String> sums = new HashMap<>();
        for (String line : text.split("\\s*\n")) {
            Matcher bsd = Pattern.compile("MD5 \\((.+)\\) = ([0-9a-f]{32})").matcher(line);
            Matcher gnu = Pattern.compile("([0-9a-f]{32}) [ *](.+)").matcher(line);
            if (bsd.matches()) {
                sums.put(bsd.group(1), bsd.group(2));
            } else if (gnu.matches()) {
                sums.put(gnu.group(2), gnu.group(1));
            }
        }
        return sums;
    }

    /** The releases that a mirror's index page and md5.txt name, newest first. */
    private String releases(Listing listing) {
        String index = "";
        try {
            index = text(listing.base, 1);
        } catch (IOException noIndex) {
            // md5.txt will do
        }
        String found = Pattern.compile("dfly-x86_64-([0-9][0-9.]*)_REL\\.iso\\.bz2").matcher(index + listing.text).results()
                .map(match -> ModuleDescriptor.Version.parse(match.group(1))).distinct().sorted(Comparator.reverseOrder())
                .map(Object::toString).collect(Collectors.joining(", "));
        return found.isEmpty() ? "no release at all" : found;
    }

    private static String cause(IOException failure) {
        return (failure instanceof UnknownHostException ? "unknown host " : "")
                + (failure.getMessage() == null ? failure.getClass().getSimpleName() : failure.getMessage());
    }

    /** A small text file; what may pass is tried again, silence is not. */
    private String text(URI uri, int attempts) throws IOException {
        for (int attempt = 1;; attempt++) {
            try (InputStream body = open(uri, Map.of()).getInputStream()) {
                return new String(body.readNBytes(4 << 20), UTF_8);
            } catch (MirrorException | SocketTimeoutException last) {
                throw last;
            } catch (IOException mayPass) {
                if (attempt >= attempts) {
                    throw mayPass;
                }
                pause(attempt);
            }
        }
    }

    /** Back-off: 1, 2, 4, 8 times the pause. */
    private void pause(int attempt) {
        try {
            Thread.sleep(pause.toMillis() << Math.min(attempt - 1, 3));
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        }
    }

    /** An answer with 200, 206 or 416; redirections are followed (HttpURLConnection follows none from http to https). */
    private HttpURLConnection open(URI uri, Map<String, String> headers) throws IOException {
        for (int hop = 0; hop < 5; hop++) {
            HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection(proxy(uri));
            connection.setInstanceFollowRedirects(false);
            connection.setConnectTimeout((int) Math.min(15_000, silence.toMillis()));
            connection.setReadTimeout((int) silence.toMillis());
            headers.forEach(connection::setRequestProperty);
            int status = connection.getResponseCode();
            if (status == 200 || status == 206 || status == 416) {
                return connection;
            } else if (status == 408 || status == 429 || status >= 500) {
                throw new IOException(uri + " answered " + status);
            } else if (status / 100 != 3 || connection.getHeaderField("Location") == null) {
                throw refused(uri + " answered " + status + (status == 404 ? ", not found" : ""));
            }
            uri = uri.resolve(connection.getHeaderField("Location"));
        }
        throw refused(uri + " is redirected in circles");
    }

    /** Java's own proxy properties, else http_proxy, https_proxy, all_proxy and no_proxy as curl knows them. */
    Proxy proxy(URI uri) {
        Proxy byProperty = ProxySelector.getDefault().select(uri).get(0);
        String address = setting(uri.getScheme() + "_proxy", setting("all_proxy", ""));
        boolean direct = Arrays.stream(setting("no_proxy", "").split("[,\\s]+")).map(entry -> entry.replaceFirst("^\\*?\\.", ""))
                .anyMatch(entry -> entry.equals("*") || !entry.isEmpty() && ("." + uri.getHost()).endsWith("." + entry));
        if (byProperty.type() != Proxy.Type.DIRECT || address.isEmpty() || direct) {
            return byProperty;
        }
        URI proxy = URI.create(address.contains("://") ? address : "http://" + address);
        if (proxy.getHost() == null || proxy.getPort() < 0) {
            throw new VmException(69, "the environment's proxy " + address + " is not of the form http://HOST:PORT");
        }
        if (proxy.getUserInfo() != null) {
            String[] login = (proxy.getUserInfo() + ":").split(":", -1);
            Authenticator.setDefault(new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return getRequestorType() == RequestorType.PROXY ? new PasswordAuthentication(login[0], login[1].toCharArray()) : null;
                }
            });
        }
        return new Proxy(proxy.getScheme().startsWith("socks") ? Proxy.Type.SOCKS : Proxy.Type.HTTP,
                new InetSocketAddress(proxy.getHost(), proxy.getPort()));
    }

    private String setting(String variable, String otherwise) {
        return environment.getOrDefault(variable, environment.getOrDefault(variable.toUpperCase(), otherwise));
    }

    /** The archive's way into its part file, in a thread of its own, over as many connections as it takes, while others read it. */
    private final class Transfer extends Thread {
        final URI uri;
        final Path part;
        final String md5;
        long kept;
        private String validator;
        private long total = -1;
        private boolean complete;
        private Throwable failure;

        /** Goes on with a part that is of the same file: by its sum, and if it came from this address by ETag or date too. */
        Transfer(URI uri, Path part, String md5) throws IOException {
            setDaemon(true);
            this.uri = uri;
            this.part = part;
            this.md5 = md5;
            JsonObject said = saidBeside(part);
            if (Files.exists(part) && md5.equals(said.getString("md5"))) {
                kept = Files.size(part);
                total = said.getLong("total");
                validator = uri.toString().equals(said.getString("url")) ? said.getString("validator") : null;
                complete = kept == total;
            }
        }

        void forget() throws IOException {
            Files.deleteIfExists(part);
            Files.deleteIfExists(beside(part, ".json"));
        }

        @Override
        public void run() {
            try {
                for (int fruitless = 0; !complete;) {
                    long before = kept;
                    try {
                        connect();
                    } catch (MirrorException refused) {
                        throw refused;
                    } catch (IOException dropped) {
                        fruitless = kept > before ? 1 : fruitless + 1;
                        if (fruitless == ATTEMPTS) {
                            throw refused(uri + " failed " + ATTEMPTS + " times in a row (" + cause(dropped) + ")");
                        }
                        pause(fruitless);
                    }
                }
            } catch (IOException | RuntimeException fatal) {
                synchronized (this) {
                    failure = fatal;
                    notifyAll();
                }
            }
        }

        private void connect() throws IOException {
            Map<String, String> headers = new HashMap<>();
            if (kept > 0) {
                headers.put("Range", "bytes=" + kept + "-");
                if (validator != null) {
                    headers.put("If-Range", validator);
                }
            }
            HttpURLConnection answer = open(uri, headers);
            int status = answer.getResponseCode();
            Matcher range = Pattern.compile("bytes (\\d+)-\\d+/(\\d+)").matcher(String.valueOf(answer.getHeaderField("Content-Range")));
            boolean partial = status == 206 && range.matches() && Long.parseLong(range.group(1)) == kept;
            long size = partial ? Long.parseLong(range.group(2)) : answer.getContentLengthLong();
            String tag = answer.getHeaderField("ETag"); // one that begins with W/ says nothing about bytes
            String found = tag != null && tag.startsWith("\"") ? tag : answer.getHeaderField("Last-Modified");
            if (kept > 0 && (status == 416 || status == 206 && !partial || validator != null && !validator.equals(found)
                    || total >= 0 && size >= 0 && size != total)) {
                throw new MirrorException(MirrorException.Kind.CHANGED, uri + " changed since its first " + kept + " bytes came");
            }
            try (InputStream body = answer.getInputStream()) {
                if (kept == 0) {
                    begin(size, found);
                } else if (!partial) {
                    body.skipNBytes(kept); // a server without ranges
                }
                append(body);
            }
            if (kept < total) {
                throw new EOFException("the connection ended after " + kept + " of " + total + " bytes");
            }
            progress(0, true);
        }

        private void begin(long size, String found) throws IOException {
            forget();
            total = size;
            validator = found;
            writeFile(beside(part, ".json"), JsonWriter.string().object().value("url", uri.toString()).value("md5", md5)
                    .value("validator", validator).value("total", total).end().done(), "rw-------");
        }

        private void append(InputStream body) throws IOException {
            byte[] buffer = new byte[1 << 16];
            try (OutputStream out = Files.newOutputStream(part, StandardOpenOption.CREATE, StandardOpenOption.APPEND)) {
                for (int read = body.read(buffer); read >= 0; read = body.read(buffer)) {
                    if (kept == 0 && buffer[0] != 'B') { // bzip2 begins with "BZh"
                        throw refused(uri + " is not a bzip2 file" + (buffer[0] == '<' ? ", but a web page" + PORTAL : ""));
                    }
                    store(out, buffer, read);
                    progress(read, false);
                }
            }
        }

        private synchronized void progress(int bytes, boolean end) {
            kept += bytes;
            complete = end;
            notifyAll();
        }

        /** How much there is, once it is more than this, or all. */
        synchronized long beyond(long position) throws IOException {
            try {
                while (kept <= position && !complete && failure == null) {
                    wait();
                }
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            }
            if (failure instanceof RuntimeException expected) {
                throw expected;
            } else if (failure != null) {
                throw (IOException) failure;
            }
            return kept;
        }

        /** The archive from its first byte to its last; a read waits for what has not come yet. */
        InputStream follow() throws IOException {
            beyond(0);
            return new FilterInputStream(Files.newInputStream(part)) {
                private long position;

                @Override
                public int read() throws IOException {
                    byte[] one = new byte[1];
                    return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
                }

                @Override
                public int read(byte[] buffer, int offset, int length) throws IOException {
                    long there = beyond(position) - position;
                    int read = there == 0 ? -1 : super.read(buffer, offset, (int) Math.min(length, there));
                    position += read;
                    return read;
                }
            };
        }
    }

    /** Unpacks what a transfer brings, as it comes. If that fails, the archive's sum tells whose fault it is. */
    private Sums unpack(Transfer transfer, Path to) throws IOException {
        List<String> tool = unpacker();
        try (InputStream archive = ProgressBar.wrap(transfer.follow(), progress(transfer.total))) {
            return unpack(archive, true, tool, to);
        } catch (MirrorException refused) {
            throw refused;
        } catch (IOException damaged) {
            String md5;
            try (InputStream archive = transfer.follow()) {
                md5 = DigestUtils.md5Hex(archive);
            }
            compare(transfer.uri.toString(), new Sums(md5, null, null), new Sums(transfer.md5, null, null));
            if (tool.isEmpty()) {
                throw new VmException(1, transfer.part + " cannot be unpacked, though its sum is right: " + damaged.getMessage());
            }
            say(damaged.getMessage() + "; unpacking without it");
            return unpack(transfer.follow(), true, List.of(), to);
        }
    }

    /** Unpacks, with a tool or without, or only copies; hashes what goes in and what comes out. */
    private Sums unpack(InputStream archive, boolean packed, List<String> tool, Path to) throws IOException {
        MessageDigest md5 = DigestUtils.getMd5Digest();
        MessageDigest sha256 = DigestUtils.getSha256Digest();
        MessageDigest isoMd5 = DigestUtils.getMd5Digest();
        DigestInputStream hashed = new DigestInputStream(new DigestInputStream(archive, md5), sha256);
        hashed.on(pinned().archiveSha256 != null);
        Process process = tool.isEmpty() ? null : new ProcessBuilder(tool).redirectError(ProcessBuilder.Redirect.DISCARD).start();
        CompletableFuture<?> feeding = process == null ? null : CompletableFuture.runAsync(() -> feed(hashed, process.getOutputStream()));
        Files.deleteIfExists(to);
        try (InputStream plain = process != null ? process.getInputStream()
                : packed ? new BZip2CompressorInputStream(new BufferedInputStream(hashed, 1 << 16), true) : hashed;
                OutputStream out = Files.newOutputStream(to, StandardOpenOption.CREATE_NEW)) {
            byte[] buffer = new byte[1 << 17];
            for (int read = plain.read(buffer); read >= 0; read = plain.read(buffer)) {
                isoMd5.update(buffer, 0, read);
                store(out, buffer, read);
            }
            if (process != null) {
                feeding.handle((fed, failed) -> fed).join();
                if (process.waitFor() != 0) {
                    throw new IOException(tool.get(0) + " ended with " + process.exitValue());
                }
            }
            hashed.transferTo(OutputStream.nullOutputStream()); // what may follow the archive counts in its sum
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
        } finally {
            if (process != null) {
                process.destroy();
            }
        }
        return new Sums(Hex.encodeHexString(md5.digest()), pinned().archiveSha256 == null ? null : Hex.encodeHexString(sha256.digest()),
                Hex.encodeHexString(isoMd5.digest()));
    }

    /** A program's input; if that ends early the program tells why. (Not by zt-exec: it feeds byte by byte.) */
    private static void feed(InputStream source, OutputStream input) {
        try (input) {
            source.transferTo(input);
        } catch (IOException ended) {
            throw new UncheckedIOException(ended);
        }
    }

    /** A program that unpacks on all processors, if there is one; else Java does it. */
    private List<String> unpacker() {
        return Stream.of("lbzip2", "pbzip2").map(this::onPath).flatMap(Optional::stream).findFirst()
                .map(tool -> List.of(tool.toString(), "-d", "-c")).orElse(List.of());
    }

    /** Writes, and tells a full disk from what a network does. */
    private void store(OutputStream out, byte[] bytes, int length) {
        try {
            out.write(bytes, 0, length);
        } catch (IOException full) {
            throw new VmException(1, "cannot write to " + vmDir + " (" + full.getMessage() + "; " + vmDir.toFile().getUsableSpace() / MB
                    + " MB are free, about 1100 MB are needed): make room and run it again; what was downloaded is kept");
        }
    }

    /** On a terminal a bar with rate and time left; elsewhere a line every 10 seconds. It counts the archive's bytes as unpacked. */
    private ProgressBarBuilder progress(long total) {
        ProgressBarBuilder bar = new ProgressBarBuilder().setTaskName("DragonFly " + version).setInitialMax(total).setUnit(" MB", MB)
                .setStyle(ProgressBarStyle.ASCII).showSpeed();
        return onTerminal(2) ? bar.setUpdateIntervalMillis(500).setConsumer(new ConsoleProgressBarConsumer(System.err))
                : bar.setUpdateIntervalMillis(10_000).setConsumer(new DelegatingProgressBarConsumer(l -> l.lines().forEach(this::say)))
                        .setRenderer((state, width) -> progressLine(state.getCurrent(), state.getMax(), state.getElapsedAfterStart()));
    }

    /** Nothing in the first seconds, as a short download needs no line, and nothing at the end, which is told otherwise. */
    static String progressLine(long current, long total, Duration elapsed) {
        double rate = current / (elapsed.toMillis() / 1000.0);
        boolean quiet = elapsed.toSeconds() < 9 || current == 0 || current == total;
        return quiet ? "" : String.format(Locale.ROOT, "%d of %s MB, %.1f MB/s%s", current / MB, total < 0 ? "?" : "" + total / MB, rate / MB,
                total < 0 ? "" : String.format(Locale.ROOT, ", %.0f s left", (total - current) / rate));
    }

    /** Whether a file descriptor is a terminal. (System.console() asks about standard input and output at once.) */
    private static boolean onTerminal(int descriptor) {
        try {
            return Files.readSymbolicLink(Path.of("/proc/self/fd/" + descriptor)).toString().matches("/dev/(pts/|tty).*");
        } catch (IOException noProc) {
            return System.console() != null;
        }
    }

    static List<String> blankDisk(Path file, long size) {
        return List.of("qemu-img", "create", "-q", "-f", "qcow2", file.toString(), Long.toString(size));
    }

    /** Nothing there: "". An untouched disk of the wanted size: "blank". Else what it holds, in words. */
    private String content(Path disk) throws IOException {
        if (!Files.exists(disk)) {
            return "";
        }
        ProcessResult info = run(Duration.ofMinutes(1), List.of("qemu-img", "info", "--output=json", disk.toString()));
        JsonObject said = info.getExitValue() == 0 ? json(info.outputUTF8()) : new JsonObject();
        if (said.has("backing-filename")) {
            return "an overlay on " + said.getString("backing-filename");
        } else if (!said.getString("format", "").equals("qcow2")) {
            return "something that is no qcow2 image";
        }
        ProcessResult check = run(Duration.ofMinutes(5), List.of("qemu-img", "check", "--output=json", disk.toString()));
        if (check.getExitValue() != 0 || json(check.outputUTF8()).getLong("allocated-clusters") > 0) {
            return "data (" + Files.size(disk) / MB + " MB)";
        }
        return said.getLong("virtual-size") == diskSize ? "blank" : "";
    }

    private boolean confirmed(String question) {
        Console console = onTerminal(0) ? System.console() : null;
        String answer = console == null ? null : console.readLine("%s [y/N] ", question);
        if (answer == null || !answer.strip().toLowerCase(Locale.ROOT).startsWith("y")) {
            throw new VmException(2, answer == null ? question + " Then say so with --yes" : "left as it is");
        }
        return true;
    }

    enum State {
        OK, NOTE, FAIL;

        @Override
        public String toString() {
            return name().toLowerCase(Locale.ROOT);
        }
    }

    /** One finding of the doctor; fix: what mends it, or "". */
    record Check(String name, State state, String detail, String fix) {
        String line() {
            return String.format("%-5s %-12s %s%s", state == State.FAIL ? "FAIL" : state, name, detail, fix.isEmpty() ? "" : " -> " + fix);
        }
    }

    private static Check ok(String name, String detail) {
        return new Check(name, State.OK, detail, "");
    }

    private static Check note(String name, String detail, String fix) {
        return new Check(name, State.NOTE, detail, fix);
    }

    private static Check fail(String name, String detail, String fix) {
        return new Check(name, State.FAIL, detail, fix);
    }

    private Check checkJava() {
        String running = "Java " + System.getProperty("java.version");
        return ToolProvider.getSystemJavaCompiler() != null ? ok("java", running)
                : note("java", running + " without a compiler: JBang compiles the scripts with a JDK", install("java"));
    }

    private Check checkQemu() throws IOException {
        Check found = checkProgram("qemu", QEMU, "--version");
        Matcher number = Pattern.compile("version (\\d+)\\.(\\d+)").matcher(found.detail);
        return number.find() && Integer.parseInt(number.group(1)) * 100 + Integer.parseInt(number.group(2)) < 702
                ? note("qemu", found.detail + ": older than 7.2, the oldest that this was tried with", "") : found;
    }

    /** A program on PATH, and the first line it prints about itself. */
    private Check checkProgram(String name, String program, String argument) throws IOException {
        if (onPath(program).isEmpty()) {
            return fail(name, program + " is not on PATH", install(name));
        }
        ProcessResult said = run(Duration.ofSeconds(20), List.of(program, argument));
        String first = said.outputUTF8().lines().findFirst().orElse("");
        return said.getExitValue() == 0 ? ok(name, first) : fail(name, program + " does not run: " + first, install(name));
    }

    private Check checkAccelerator(String wanted) throws IOException {
        if (onPath(QEMU).isEmpty()) {
            return note("accelerator", "unknown without QEMU", "");
        } else if (!wanted.equals("auto")) {
            long millis = bootSectorMillis(QEMU, wanted);
            return millis >= 0 ? ok("accelerator", wanted + ", as set: a probe ran in " + millis + " ms")
                    : fail("accelerator", wanted + ", as set, runs no guest here", "unset VM_ACCEL: then what works is used");
        }
        Files.deleteIfExists(vmDir.resolve("accel.json")); // a doctor looks afresh
        Accelerator found = Files.isWritable(vmDir) ? accelerator(wanted, QEMU, vmDir) : probe(QEMU);
        return found.name.equals("tcg") ? note("accelerator", "tcg, which is slow: " + found.reason, mendKvm())
                : ok("accelerator", found.name + ": " + found.reason);
    }

    private static String mendKvm() throws IOException {
        Path node = Path.of("/dev/kvm");
        if (Files.isWritable(node)) {
            return ""; // it is there and cannot run a guest: nothing on this machine mends that
        } else if (Files.exists(node)) {
            String group = Files.getAttribute(node, "posix:group").toString();
            return "sudo usermod -aG " + group + " " + System.getProperty("user.name") + ", then log out and in again";
        }
        Path cpu = Path.of("/proc/cpuinfo");
        Matcher flag = Pattern.compile("\\b(vmx|svm)\\b").matcher(Files.exists(cpu) ? Files.readString(cpu) : "");
        return flag.find() ? "sudo modprobe " + (flag.group().equals("vmx") ? "kvm_intel" : "kvm_amd")
                : "switch virtualization on in the firmware (in a virtual machine: nested virtualization, on its host)";
    }

    private Check checkMemory(long wanted, long total) throws IOException {
        Path meminfo = Path.of("/proc/meminfo");
        Matcher line = Pattern.compile("MemAvailable:\\s+(\\d+) kB").matcher(Files.exists(meminfo) ? Files.readString(meminfo) : "");
        long available = line.find() ? Long.parseLong(line.group(1)) << 10 : total;
        String detail = String.format(Locale.ROOT, "the VM gets %.1f GB; %.1f of %.1f GB are free", gb(wanted), gb(available), gb(total));
        return wanted > total ? fail("memory", detail, "set VM_MEMORY lower")
                : wanted > available ? note("memory", detail, "set VM_MEMORY lower, or close programs") : ok("memory", detail);
    }

    /** Estimated generously: an installed system with Go is about 3 GB, there once in phases and once flattened; a RAM snapshot. */
    private Check checkSpace(long memory) throws IOException {
        Path there = vmDir;
        while (!Files.exists(there)) {
            there = there.getParent();
        }
        if (!Files.isWritable(there)) {
            return fail("space", "cannot write to " + there, "choose another directory with VM_DIR");
        }
        long needed = (Files.exists(iso()) ? 0 : 1100 * MB) + (Files.exists(vmDir.resolve(name + "-clean.qcow2")) ? 0 : 6 * GB) + memory;
        long free = there.toFile().getUsableSpace();
        String detail = String.format(Locale.ROOT, "%.1f GB are free in %s; %.1f GB are needed, up to %.1f GB more as the VM's disk fills",
                gb(free), vmDir, gb(needed), gb(diskSize));
        return free < needed ? fail("space", detail, "make room, or choose another place with VM_DIR")
                : free < needed + diskSize ? note("space", detail, "") : ok("space", detail);
    }

    private static double gb(long bytes) {
        return (double) bytes / GB;
    }

    private Check checkPort(Integer set) {
        int port = set != null ? set : 2222;
        try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
            return ok("port", socket.getLocalPort() + " is free");
        } catch (IOException taken) {
            Holder holder = holder(Path.of("/proc"), port);
            OptionalLong vm = livePid(vmDir.resolve(name + ".pid"));
            return vm.isPresent() && vm.equals(holder.pid) ? ok("port", port + " is used by the VM " + name + " itself")
                    : set == null ? ok("port", port + " is taken by " + holder.text + "; the next free one will be used")
                    : fail("port", port + " is taken by " + holder.text, "end that, or set VM_SSH_PORT to another port, or not at all");
        }
    }

    /** Who listens on a port, as far as this user may know. */
    record Holder(OptionalLong pid, String text) {}

    /** Linux: the kernel's table gives a socket's inode and user, a process's descriptors name the inode. */
    static Holder holder(Path proc, int port) {
        String text = "a process that cannot be seen";
        for (String table : List.of("net/tcp", "net/tcp6")) {
            try (Stream<String> lines = Files.lines(proc.resolve(table))) {
                for (String[] row : lines.map(line -> line.strip().split("\\s+")).toList()) {
                    if (row.length > 9 && row[3].equals("0A") && row[1].endsWith(String.format(":%04X", port))) { // 0A: it listens
                        Optional<Path> process = owner(proc, "socket:[" + row[9] + "]");
                        if (process.isPresent()) {
                            long pid = Long.parseLong(process.get().getFileName().toString());
                            String program = Files.readString(process.get().resolve("comm")).strip();
                            return new Holder(OptionalLong.of(pid), program + " (pid " + pid + ")");
                        }
                        text = "a process of the user with the number " + row[7];
                    }
                }
            } catch (IOException notLinuxOrGone) {
                // then it stays unknown
            }
        }
        return new Holder(OptionalLong.empty(), text);
    }

    private static Optional<Path> owner(Path proc, String socket) throws IOException {
        try (Stream<Path> processes = Files.list(proc)) {
            return processes.filter(process -> process.getFileName().toString().matches("\\d+")).filter(process -> {
                try (Stream<Path> descriptors = Files.list(process.resolve("fd"))) {
                    for (Path descriptor : descriptors.toList()) {
                        if (Files.readSymbolicLink(descriptor).toString().equals(socket)) {
                            return true;
                        }
                    }
                } catch (IOException anotherUsersOrGone) {
                    // not to be seen
                }
                return false;
            }).findFirst();
        }
    }

    private Check checkInstaller() throws IOException {
        if (Files.exists(iso())) {
            return ok("installer", iso() + " is there");
        } else if (image != null) {
            return Files.isReadable(image) ? ok("installer", image + " (VM_IMAGE)")
                    : fail("installer", image + " (VM_IMAGE) cannot be read", "set VM_IMAGE to a .iso or .iso.bz2 file");
        }
        List<String> problems = new ArrayList<>();
        for (URI mirror : mirrors) {
            try {
                Listing listing = listing(mirror, 1);
                if (listing.sums.containsKey(archiveName())) {
                    return ok("installer", listing.base + " has DragonFly " + version);
                }
                problems.add(listing.base + " has no DragonFly " + version + ", but " + releases(listing));
            } catch (MirrorException refused) {
                problems.add(refused.getMessage());
            }
        }
        return fail("installer", String.join("; ", problems), "see to the network or https_proxy; or set VM_MIRROR, or VM_IMAGE");
    }

    private Optional<Path> onPath(String program) {
        return Arrays.stream(environment.getOrDefault("PATH", "").split(":")).filter(directory -> !directory.isEmpty())
                .map(directory -> Path.of(directory, program)).filter(Files::isExecutable).findFirst();
    }

    /** The command that installs something, with the package manager that is here. */
    private String install(String what) {
        Map<String, List<String>> packages = Map.of(
                "qemu", List.of("qemu-system-x86 qemu-utils", "qemu-system-x86-core qemu-img", "qemu-base", "qemu"),
                "ssh", List.of("openssh-client", "openssh-clients", "openssh", "openssh"),
                "rsync", List.of("rsync", "rsync", "rsync", "rsync"),
                "java", List.of("default-jdk-headless", "java-devel", "jdk-openjdk", "openjdk"));
        List<String> managers = List.of("apt-get", "dnf", "pacman", "brew");
        List<String> commands = List.of("sudo apt-get install ", "sudo dnf install ", "sudo pacman -S ", "brew install ");
        return IntStream.range(0, 4).filter(i -> onPath(managers.get(i)).isPresent())
                .mapToObj(i -> commands.get(i) + packages.get(what).get(i)).findFirst().orElse("install " + what);
    }

    private void say(String text) {
        spec.commandLine().getErr().println("vm-setup: " + text);
    }

    /** A version or a VM's name: it becomes part of file names. */
    static final class Name implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            if (!value.matches("[A-Za-z0-9_][A-Za-z0-9._-]*")) {
                throw new TypeConversionException("'" + value + "': letters, digits, '_', '.' and '-' are allowed, no '.' or '-' in front");
            }
            return value;
        }
    }

    /** 20G, 512M: bytes. */
    static final class Size implements ITypeConverter<Long> {
        @Override
        public Long convert(String value) {
            Matcher size = Pattern.compile("([1-9]\\d{0,6})([MGT])(i?B)?", Pattern.CASE_INSENSITIVE).matcher(value);
            if (!size.matches()) {
                throw new TypeConversionException("'" + value + "' is no size: a number and M, G or T is expected, as in 20G");
            }
            return Long.parseLong(size.group(1)) << 20 + 10 * "MGT".indexOf(size.group(2).toUpperCase(Locale.ROOT));
        }
    }

    /** A mirror's address. */
    static final class Web implements ITypeConverter<URI> {
        @Override
        public URI convert(String value) {
            if (!value.matches("https?://[^/ ]+(/.*)?")) {
                throw new TypeConversionException("'" + value + "' is no http or https address");
            }
            return URI.create(value);
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
