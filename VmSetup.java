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
import java.io.Console;
import java.io.EOFException;
import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
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
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.LongConsumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.DelegatingProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import me.tongfei.progressbar.ProgressState;
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
            "Without a command: fetch, that is, download, verify and unpack the installer into VM_DIR. Interrupted, it goes on where it was."},
        footer = {"", "Examples:", "  vm-setup check", "  vm-setup", "  VM_MIRROR=https://avalon.dragonflybsd.org/iso-images/ vm-setup",
            "Exit codes: 0 done or already there; 1 a wrong sum, or the disk is full; 2 usage; 69 no mirror has it, or another fetch runs."})
final class VmSetup implements Callable<Integer> {
    private static final String QEMU = "qemu-system-x86_64";
    private static final long MB = 1_000_000;
    private static final long GB = 1L << 30;
    /** Connections in a row that bring nothing new before a mirror is given up. */
    private static final int ATTEMPTS = 5;

    /** Sums of a release's .iso.bz2 and .iso; null where none is known. */
    record Sums(String archiveMd5, String archiveSha256, String isoMd5) {}

    /** From other places than the mirrors: golang/build, dragonfly-packer, cross-platform-actions, and a download compared with them. */
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
            converter = Name.class, paramLabel = "VERSION", description = "The release to install (DFLY_VERSION; default: ${DEFAULT-VALUE}).")
    String version;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            converter = Name.class, paramLabel = "NAME", description = "The VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String name;

    @Option(names = "--mirror", descriptionKey = "VM_MIRROR", split = "[,\\s]+", scope = ScopeType.INHERIT, converter = Web.class,
            defaultValue = "https://mirror-master.dragonflybsd.org/iso-images/,https://avalon.dragonflybsd.org/iso-images/,"
                    + "https://pub.allbsd.org/DragonFly/iso-images/,https://mirror.sjtu.edu.cn/dragonflybsd/iso-images/",
            paramLabel = "URL", description = "Where md5.txt and the images lie; tried in this order (VM_MIRROR; default: ${DEFAULT-VALUE}).")
    List<URI> mirrors;

    @Option(names = "--image", descriptionKey = "VM_IMAGE", scope = ScopeType.INHERIT, paramLabel = "FILE",
            description = "A local .iso or .iso.bz2 instead of a mirror (VM_IMAGE; default: none).")
    void setImage(String value) {
        image = userPath(value);
    }

    @Option(names = "--trust-mirror", scope = ScopeType.INHERIT, description = "Do not check the sums pinned in this script, only the "
            + "mirror's own md5.txt (for VM_IMAGE: none): for an image that calls itself a release and is another file, as a test's stand-in.")
    boolean trustMirror;

    @Option(names = "--disk-size", descriptionKey = "VM_DISK_SIZE", defaultValue = "20G", scope = ScopeType.INHERIT,
            converter = Size.class, paramLabel = "SIZE", description = "Of the VM's disk; sparse (VM_DISK_SIZE; default: ${DEFAULT-VALUE}).")
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
            description = "Download, verify and unpack the installer (what vm-setup does without a command). Prints the ISO's path.",
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
            footer = {"", "Example: VM_MEMORY=4G vm-setup check", "Exit codes: 0 nothing is missing (notes may be there); 69 something is."})
    int check(@Option(names = "--json", description = "Print {ok, checks: [{name, state, detail, fix}]}.") boolean json,
            @Option(names = "--memory", descriptionKey = "VM_MEMORY", converter = Size.class, paramLabel = "SIZE",
                    description = "Of the VM (VM_MEMORY; default: a quarter of this machine's within 2G-8G).") Long memory,
            @Option(names = "--ssh-port", descriptionKey = "VM_SSH_PORT", paramLabel = "PORT",
                    description = "Forwarded to the VM's ssh (VM_SSH_PORT; default: 2222 or the next free one).") Integer sshPort,
            @Option(names = "--accel", descriptionKey = "VM_ACCEL", defaultValue = "auto", paramLabel = "NAME",
                    description = "auto, kvm, hvf or tcg (VM_ACCEL; default: ${DEFAULT-VALUE}).") String accel) throws IOException {
        long total = ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize();
        long wanted = memory != null ? memory : Math.max(2 * GB, Math.min(8 * GB, total / 4));
        List<Check> checks = List.of(checkJava(), checkQemu(), checkProgram("qemu-img", "qemu", Duration.ofSeconds(20), "--version"),
                checkAccelerator(accel), checkMemory(wanted, total), checkSpace(wanted), checkPort(sshPort), checkInstaller(),
                checkProgram("ssh", "ssh", Duration.ofSeconds(20), "-V"), checkRsync());
        boolean ok = checks.stream().noneMatch(check -> check.state == State.FAIL);
        if (json) {
            JsonArray all = new JsonArray();
            checks.forEach(check -> all.add(JsonObject.builder().value("name", check.name).value("state", check.state.name().toLowerCase())
                    .value("detail", check.detail).value("fix", check.fix).done()));
            spec.commandLine().getOut().println(JsonWriter.string().object().value("ok", ok).value("checks", all).end().done());
        } else {
            checks.forEach(check -> spec.commandLine().getOut().println(check.line()));
        }
        return ok ? 0 : 69;
    }

    /** What is wrong with a mirror: it refuses, its file is not the one it should be, or its file changed since the download began. */
    private static final class MirrorException extends IOException {
        private static final long serialVersionUID = 1;

        enum Kind { REFUSED, WRONG_SUM, CHANGED }

        final Kind kind;

        MirrorException(Kind kind, String message) {
            super(message);
            this.kind = kind;
        }
    }

    private Path iso() {
        return vmDir.resolve("dfly-" + version + ".iso");
    }

    private String archiveName() {
        return "dfly-x86_64-" + (version.contains("_") ? version : version + "_REL") + ".iso.bz2"; // 6.4.0_RC1 has no _REL
    }

    /** The sums to hold beside those of md5.txt; all null if none are known or wanted. */
    private Sums pinned() {
        return trustMirror ? new Sums(null, null, null) : PINNED.getOrDefault(version, new Sums(null, null, null));
    }

    /** Whether the ISO is there and is, by size and time, the file that was verified. Says so. */
    private boolean verified(Path iso) throws IOException {
        JsonObject said = memory(iso);
        if (!Files.exists(iso) || said.getLong("size") != Files.size(iso) || !modified(iso).equals(said.getString("modified"))
                || image != null && !origin(image).equals(said.getString("from"))) {
            return false;
        } else if (said.getBoolean("pinsSkipped") && !trustMirror) {
            throw new VmException(1, iso + " was taken on trust (--trust-mirror), against the sums known for DragonFly " + version
                    + ": remove it to download the released one, or give --trust-mirror again");
        }
        say(iso + " is already there, verified " + said.getString("verified") + " (" + said.getString("how") + ")");
        return true;
    }

    /** Whether an ISO that nobody verified is the released one; if it cannot be known, it is the person's to remove. */
    private boolean recognised(Path iso) throws IOException {
        if (!Files.exists(iso) || image != null) {
            return false;
        }
        String known = memory(iso).getString("md5", pinned().isoMd5);
        say(iso + " is there, not verified yet: reading it");
        String md5 = md5(iso);
        if (!md5.equals(known)) {
            throw new VmException(1, iso + " has the MD5 " + md5 + (known == null ? ", and none is known to compare it with" : ", not " + known)
                    + ": remove it and run vm-setup again, or name it as VM_IMAGE");
        }
        remember(iso, iso, new Sums(null, null, md5), origin(iso), "by its MD5");
        return true;
    }

    private void takeImage(Path iso) throws IOException {
        if (!Files.isReadable(image)) {
            throw new VmException(69, "VM_IMAGE: " + image + " cannot be read");
        }
        Path part = beside(iso, ".part");
        Sums found;
        boolean packed;
        try (InputStream in = Files.newInputStream(image); ProgressBar bar = progress()) {
            packed = new String(in.readNBytes(3), UTF_8).equals("BZh");
            bar.maxHint(Files.size(image));
            found = unpack(counted(Files.newInputStream(image), bar::stepTo), packed ? unpacker() : null, part);
            compare(image.toString(), found, packed ? pinned() : new Sums(null, null, pinned().isoMd5));
        } catch (MirrorException wrong) {
            Files.delete(part);
            throw new VmException(1, wrong.getMessage());
        }
        try (FileChannel channel = FileChannel.open(part)) {
            ByteBuffer magic = ByteBuffer.allocate(5);
            channel.read(magic, 0x8001);
            if (!new String(magic.array(), UTF_8).equals("CD001")) {
                Files.delete(part);
                throw new VmException(1, image + " holds no ISO 9660 image");
            }
        }
        remember(iso, part, found, origin(image), how("not checked: no sum is known", packed));
        place(part, iso);
    }

    private void takeFromMirrors(Path iso) throws IOException {
        if (trustMirror && PINNED.containsKey(version)) {
            say("WARNING: --trust-mirror: the sums known for DragonFly " + version + " are NOT checked, only the mirror's own md5.txt");
        } else if (!PINNED.containsKey(version)) {
            say("no sums are pinned for DragonFly " + version + ": it is checked against the mirror's md5.txt only");
        }
        List<String> problems = new ArrayList<>();
        boolean wrong = false;
        for (URI mirror : mirrors) {
            try {
                takeFrom(mirror, iso);
                return;
            } catch (MirrorException problem) {
                wrong |= problem.kind == MirrorException.Kind.WRONG_SUM;
                problems.add(problem.getMessage());
                say(problem.getMessage() + (problems.size() < mirrors.size() ? "; trying the next mirror" : ""));
            }
        }
        boolean kept = Files.exists(beside(iso, ".bz2.part"));
        throw new VmException(wrong ? 1 : 69, "no mirror gave " + archiveName() + ": " + String.join("; ", problems) + (kept
                ? "; run it again to go on where this ended" : "; another mirror: VM_MIRROR, a local file: VM_IMAGE"));
    }

    private void takeFrom(URI mirror, Path iso) throws IOException {
        Listing listing = listing(mirror, 3);
        String md5 = listing.sums.get(archiveName());
        if (md5 == null) {
            throw refused(listing.base + " has no DragonFly " + version + ", but " + versions(listing) + " (choose with DFLY_VERSION)");
        }
        compare(listing.base + "md5.txt: " + archiveName(), new Sums(md5, null, null), pinned());
        Path part = beside(iso, ".part");
        for (int start = 1;; start++) {
            Transfer transfer = new Transfer(listing.base.resolve(archiveName()), beside(iso, ".bz2.part"), md5);
            boolean resumed = transfer.kept > 0;
            transfer.start();
            try (ProgressBar bar = progress()) {
                Sums found = unpack(transfer, part, bar);
                String listed = listing.sums.get(archiveName().replace(".bz2", ""));
                compare(transfer.uri.toString(), found, new Sums(md5, null, trustMirror ? listed : null));
                compare(transfer.uri.toString(), found, pinned());
                remember(iso, part, found, transfer.uri.toString(), how("md5.txt of " + listing.base.getHost(), true));
                place(part, iso);
                transfer.forget();
                return;
            } catch (MirrorException problem) {
                Files.deleteIfExists(part);
                if (problem.kind == MirrorException.Kind.REFUSED) {
                    throw problem; // what came so far is good for the next mirror, or the next run
                }
                transfer.forget();
                if (start == 3 || problem.kind == MirrorException.Kind.WRONG_SUM && !resumed) {
                    throw problem;
                }
                say(problem.getMessage() + "; once more from its start");
            } catch (VmException full) {
                Files.deleteIfExists(part); // room for the rest of the download
                throw full;
            } finally {
                transfer.end();
            }
        }
    }

    /** Fails for the first sum that is known and not met. */
    private static void compare(String what, Sums found, Sums wanted) throws MirrorException {
        String[][] pairs = {{"MD5", found.archiveMd5, wanted.archiveMd5}, {"SHA-256", found.archiveSha256, wanted.archiveSha256},
            {"MD5 (unpacked)", found.isoMd5, wanted.isoMd5}};
        for (String[] pair : pairs) {
            if (pair[1] != null && pair[2] != null && !pair[1].equals(pair[2])) {
                throw new MirrorException(MirrorException.Kind.WRONG_SUM, what + " has the " + pair[0] + " " + pair[1] + ", not " + pair[2]
                        + ": not the released file, or damaged");
            }
        }
    }

    private String how(String otherwise, boolean packed) {
        Sums pins = pinned();
        return pins.isoMd5 != null || packed && pins.archiveMd5 != null ? "by the sums known for DragonFly " + version : otherwise;
    }

    /** Remembers a verified file that is about to get, or has, the ISO's name. */
    private void remember(Path iso, Path file, Sums sums, String from, String how) throws IOException {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
            channel.force(true); // or a power failure could leave a verified name on an empty file
        }
        writeFile(beside(iso, ".json"), JsonWriter.string().object().value("size", Files.size(file)).value("modified", modified(file))
                .value("md5", sums.isoMd5).value("archiveMd5", sums.archiveMd5).value("from", from).value("how", how)
                .value("pinsSkipped", trustMirror && PINNED.containsKey(version))
                .value("verified", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString()).end().done(), "rw-------");
    }

    private void place(Path part, Path iso) throws IOException {
        Files.move(part, iso, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        say(iso + " is complete and verified (" + memory(iso).getString("how") + ")");
    }

    private static JsonObject memory(Path iso) {
        try {
            return json(Files.readString(beside(iso, ".json")));
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

    private static Path beside(Path file, String suffix) {
        return file.resolveSibling(file.getFileName() + suffix);
    }

    /** The directory of a mirror that holds md5.txt, and what stands in that. */
    private record Listing(URI base, Map<String, String> sums, String text) {}

    private Listing listing(URI mirror, int attempts) throws IOException {
        URI base = URI.create(mirror.toString().replaceFirst("/*$", "/"));
        try {
            String text;
            try {
                text = text(base.resolve("md5.txt"), attempts);
            } catch (MirrorException notHere) { // a mirror's own address was given, without the directory
                base = base.resolve("iso-images/");
                text = text(base.resolve("md5.txt"), attempts);
            }
            Map<String, String> sums = sums(text);
            if (sums.isEmpty()) {
                throw refused(base + "md5.txt holds no sums" + (text.contains("<html") ? ", but a web page (a network that wants a login?)" : ""));
            }
            return new Listing(base, sums, text);
        } catch (MirrorException refused) {
            throw refused;
        } catch (IOException unreachable) {
            throw refused(mirror + " cannot be reached (" + cause(unreachable) + ")");
        }
    }

    /** Lines as "MD5 (name) = sum", or "sum  name". */
    static Map<String, String> sums(String text) {
        Matcher lines = Pattern.compile("(?m)^MD5 \\(([^)]+)\\) = ([0-9a-f]{32})\\s*$|^([0-9a-f]{32}) [ *](\\S+)\\s*$").matcher(text);
        Map<String, String> sums = new HashMap<>();
        while (lines.find()) {
            sums.put(lines.group(1) != null ? lines.group(1) : lines.group(4), lines.group(1) != null ? lines.group(2) : lines.group(3));
        }
        return sums;
    }

    /** The releases that a mirror's index page names, or else its md5.txt, newest first. */
    private String versions(Listing listing) {
        String text = listing.text;
        try {
            text = text(listing.base, 1);
        } catch (IOException noIndex) {
            // md5.txt will do
        }
        TreeSet<String> found = new TreeSet<>(Comparator.comparing(VmSetup::sortable).reversed());
        Matcher names = Pattern.compile("dfly-x86_64-([0-9][0-9.]*)_REL\\.iso\\.bz2").matcher(text);
        while (names.find()) {
            found.add(names.group(1));
        }
        return found.isEmpty() ? "no release at all" : String.join(", ", found);
    }

    private static String sortable(String version) {
        return Arrays.stream(version.split("\\.")).map(part -> "0".repeat(Math.max(0, 6 - part.length())) + part).collect(Collectors.joining("."));
    }

    private static MirrorException refused(String message) {
        return new MirrorException(MirrorException.Kind.REFUSED, message);
    }

    private static String cause(IOException failure) {
        String text = failure.getMessage() == null ? "" : failure.getMessage();
        return failure instanceof java.net.UnknownHostException ? "unknown host " + text : text.isEmpty() ? failure.getClass().getSimpleName() : text;
    }

    /** A small text file; transient failures are tried again, a mirror that does not answer at all is not. */
    private String text(URI uri, int attempts) throws IOException {
        for (int attempt = 1;; attempt++) {
            HttpURLConnection connection = null;
            try {
                connection = open(uri, Map.of());
                refuseUnlessGood(connection);
                try (InputStream body = connection.getInputStream()) {
                    return new String(body.readNBytes(4 << 20), UTF_8);
                }
            } catch (MirrorException | SocketTimeoutException last) {
                throw last;
            } catch (IOException transientFailure) {
                if (attempt >= attempts) {
                    throw transientFailure;
                }
                pause(attempt);
            } finally {
                if (connection != null) {
                    connection.disconnect();
                }
            }
        }
    }

    private static void refuseUnlessGood(HttpURLConnection connection) throws IOException {
        int status = connection.getResponseCode();
        if (status == 408 || status == 429 || status >= 500) {
            throw new IOException(connection.getURL() + " answered " + status);
        } else if (status != 200 && status != 206) {
            throw refused(connection.getURL() + " answered " + status + (status == 404 ? ", not found" : ""));
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

    /** Connects, through a proxy if one is set, and follows redirections (HttpURLConnection follows none from http to https). */
    private HttpURLConnection open(URI uri, Map<String, String> headers) throws IOException {
        for (int hop = 0; hop < 5; hop++) {
            HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection(proxy(uri));
            connection.setInstanceFollowRedirects(false);
            connection.setConnectTimeout((int) Math.min(15_000, silence.toMillis()));
            connection.setReadTimeout((int) silence.toMillis());
            headers.forEach(connection::setRequestProperty);
            String target = connection.getHeaderField("Location");
            if (connection.getResponseCode() / 100 != 3 || target == null) {
                return connection;
            }
            connection.disconnect();
            uri = uri.resolve(target);
        }
        throw refused(uri + " is redirected in circles");
    }

    /** Java's own proxy properties, else http_proxy, https_proxy, all_proxy and no_proxy as curl knows them. */
    Proxy proxy(URI uri) {
        Proxy set = ProxySelector.getDefault().select(uri).get(0);
        String address = Stream.of(uri.getScheme() + "_proxy", uri.getScheme().toUpperCase() + "_PROXY", "all_proxy", "ALL_PROXY")
                .map(key -> environment.getOrDefault(key, "")).filter(value -> !value.isEmpty()).findFirst().orElse("");
        String except = environment.getOrDefault("no_proxy", environment.getOrDefault("NO_PROXY", ""));
        boolean direct = Arrays.stream(except.split("[,\\s]+")).map(entry -> entry.replaceFirst("^\\*?\\.", "").replaceFirst(":" + uri.getPort() + "$", ""))
                .anyMatch(entry -> entry.equals("*") || !entry.isEmpty() && ("." + uri.getHost()).endsWith("." + entry));
        if (set.type() != Proxy.Type.DIRECT || address.isEmpty() || direct) {
            return set;
        }
        URI proxy = URI.create(address.contains("://") ? address : "http://" + address);
        if (proxy.getHost() == null) {
            throw new VmException(69, "the proxy " + address + " in the environment is no URL: http://HOST:PORT is expected");
        }
        if (proxy.getUserInfo() != null) {
            String[] login = proxy.getUserInfo().split(":", 2);
            Authenticator.setDefault(new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return getRequestorType() != RequestorType.PROXY ? null
                            : new PasswordAuthentication(login[0], (login.length > 1 ? login[1] : "").toCharArray());
                }
            });
        }
        return new Proxy(proxy.getScheme().startsWith("socks") ? Proxy.Type.SOCKS : Proxy.Type.HTTP,
                new InetSocketAddress(proxy.getHost(), proxy.getPort() > 0 ? proxy.getPort() : proxy.getScheme().startsWith("socks") ? 1080 : 80));
    }

    /**
     * The archive's way into its part file, in a thread of its own, over as many connections as it takes; {@link #read} follows it as
     * it grows, so that unpacking needs no restart when a connection ends.
     */
    private final class Transfer extends Thread {
        final URI uri;
        private final Path part;
        private final String md5;
        private String validator;
        private long kept;
        private long total = -1;
        private boolean complete;
        private Throwable failure;
        private volatile boolean ended;
        private volatile HttpURLConnection connection;

        Transfer(URI uri, Path part, String md5) throws IOException {
            super("download");
            setDaemon(true);
            this.uri = uri;
            this.part = part;
            this.md5 = md5;
            JsonObject said = said();
            if (!Files.exists(part) || !md5.equals(said.getString("md5"))) {
                forget();
                return;
            }
            kept = Files.size(part);
            total = said.getLong("total");
            validator = uri.toString().equals(said.getString("url")) ? said.getString("validator") : null;
            complete = kept == total;
        }

        private JsonObject said() {
            try {
                return json(Files.readString(beside(part, ".json")));
            } catch (IOException none) {
                return new JsonObject();
            }
        }

        void forget() throws IOException {
            Files.deleteIfExists(part);
            Files.deleteIfExists(beside(part, ".json"));
        }

        @Override
        public void run() {
            try {
                for (int fruitless = 0; !complete() && !ended;) {
                    long before = kept;
                    try {
                        request();
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

        private void request() throws IOException {
            Map<String, String> headers = new HashMap<>();
            if (kept > 0) {
                headers.put("Range", "bytes=" + kept + "-");
                if (validator != null) {
                    headers.put("If-Range", validator);
                }
            }
            HttpURLConnection answer = open(uri, headers);
            connection = answer;
            try {
                boolean partial = answer.getResponseCode() == 206;
                if (answer.getResponseCode() != 416) {
                    refuseUnlessGood(answer);
                }
                Matcher range = Pattern.compile("bytes (\\d+)-\\d+/(\\d+)").matcher(String.valueOf(answer.getHeaderField("Content-Range")));
                long size = partial && range.matches() ? Long.parseLong(range.group(2)) : answer.getContentLengthLong();
                // An ETag that begins with W/ may not be used here.
                String tag = answer.getHeaderField("ETag");
                String tagged = tag != null && tag.startsWith("\"") ? tag : answer.getHeaderField("Last-Modified");
                boolean other = validator != null && !validator.equals(tagged) || total >= 0 && size >= 0 && size != total;
                if (kept > 0 && (other || answer.getResponseCode() == 416 || partial && (!range.matches() || Long.parseLong(range.group(1)) != kept))) {
                    throw new MirrorException(MirrorException.Kind.CHANGED, uri + " is not the file any more whose first " + kept + " bytes are here");
                }
                try (InputStream body = answer.getInputStream()) {
                    if (kept == 0) {
                        begin(body, size, tagged, String.valueOf(answer.getContentType()));
                    } else if (!partial) {
                        body.skipNBytes(kept); // a server without ranges
                    }
                    append(body);
                }
                if (total >= 0 && kept < total) {
                    throw new EOFException("the connection ended after " + kept + " of " + total + " bytes");
                }
                finish();
            } finally {
                answer.disconnect();
            }
        }

        /** The first bytes tell a web page, as a captive portal sends it, from an archive. */
        private void begin(InputStream body, long size, String tagged, String type) throws IOException {
            byte[] first = body.readNBytes(3);
            if (first.length == 3 && !new String(first, UTF_8).equals("BZh")) {
                throw refused(uri + " is not a bzip2 file" + (type.contains("html") ? ", but a web page (a network that wants a login?)" : ""));
            }
            Files.deleteIfExists(part);
            total = size;
            validator = tagged;
            writeFile(beside(part, ".json"), JsonWriter.string().object().value("url", uri.toString()).value("md5", md5)
                    .value("validator", validator).value("total", total).end().done(), "rw-------");
            try (OutputStream out = Files.newOutputStream(part, StandardOpenOption.CREATE_NEW)) {
                store(out, first, first.length);
            }
            advance(first.length);
        }

        private void append(InputStream body) throws IOException {
            byte[] buffer = new byte[1 << 16];
            try (OutputStream out = Files.newOutputStream(part, StandardOpenOption.APPEND)) {
                for (int read = body.read(buffer); read >= 0 && !ended; read = body.read(buffer)) {
                    store(out, buffer, read);
                    advance(read);
                }
            }
        }

        private synchronized void advance(int bytes) {
            kept += bytes;
            notifyAll();
        }

        private synchronized void finish() {
            total = kept;
            complete = true;
            notifyAll();
        }

        private synchronized boolean complete() {
            return complete;
        }

        synchronized long total() {
            return total;
        }

        /** The number of bytes in the file once it has more than this, or is complete. */
        synchronized long beyond(long position) throws IOException {
            while (kept <= position && !complete && failure == null) {
                try {
                    wait();
                } catch (InterruptedException interrupted) {
                    throw new VmException(130, "interrupted");
                }
            }
            if (failure instanceof MirrorException refused) {
                throw refused;
            } else if (failure instanceof RuntimeException expected) {
                throw expected;
            } else if (failure != null) {
                throw new IOException(failure);
            }
            return kept;
        }

        /** The archive from its first byte to its last; a read waits for what has not come yet. */
        InputStream follow() throws IOException {
            FileChannel[] channel = new FileChannel[1];
            return new InputStream() {
                private long position;

                @Override
                public int read(byte[] buffer, int offset, int length) throws IOException {
                    long end = beyond(position);
                    if (channel[0] == null && end > 0) {
                        channel[0] = FileChannel.open(part);
                    }
                    int read = end == position ? -1
                            : channel[0].read(ByteBuffer.wrap(buffer, offset, (int) Math.min(length, end - position)), position);
                    position += Math.max(0, read);
                    return read;
                }

                @Override
                public int read() throws IOException {
                    byte[] one = new byte[1];
                    return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
                }

                @Override
                public void close() throws IOException {
                    if (channel[0] != null) {
                        channel[0].close();
                    }
                }
            };
        }

        void end() {
            ended = true;
            HttpURLConnection open = connection;
            if (open != null) {
                open.disconnect();
            }
            try {
                join(silence.toMillis());
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            }
        }
    }

    /** Unpacks what a transfer brings, as it comes. If that fails, the archive's sum tells whose fault it is. */
    private Sums unpack(Transfer transfer, Path to, ProgressBar bar) throws IOException {
        List<String> tool = unpacker();
        try {
            return unpack(counted(transfer.follow(), position -> {
                bar.maxHint(transfer.total());
                bar.stepTo(position);
            }), tool, to);
        } catch (MirrorException refused) {
            throw refused;
        } catch (IOException damaged) {
            while (!transfer.complete()) {
                transfer.beyond(transfer.kept);
            }
            compare(transfer.uri.toString(), new Sums(md5(transfer.part), null, null), new Sums(transfer.md5, null, null));
            if (tool.isEmpty()) {
                throw new VmException(1, transfer.part + " cannot be unpacked, though its sum is right: " + damaged.getMessage());
            }
            say(tool.get(0) + " failed (" + damaged.getMessage() + "); unpacking without it");
            return unpack(Files.newInputStream(transfer.part), List.of(), to);
        }
    }

    /** Hashes what goes in and what comes out. The tool: null for what is not packed, empty for Java's own unpacking. */
    private Sums unpack(InputStream archive, List<String> tool, Path to) throws IOException {
        MessageDigest md5 = digest("MD5");
        MessageDigest sha256 = digest("SHA-256");
        MessageDigest isoMd5 = digest("MD5");
        InputStream hashed = new DigestInputStream(new DigestInputStream(archive, md5), sha256);
        Files.deleteIfExists(to);
        try (archive; InputStream plain = tool == null ? hashed
                : tool.isEmpty() ? new BZip2CompressorInputStream(hashed, true) : piped(hashed, tool);
                OutputStream out = Files.newOutputStream(to, StandardOpenOption.CREATE_NEW)) {
            byte[] buffer = new byte[1 << 17];
            for (int read = plain.read(buffer); read >= 0; read = plain.read(buffer)) {
                isoMd5.update(buffer, 0, read);
                store(out, buffer, read);
            }
            hashed.transferTo(OutputStream.nullOutputStream()); // what may follow the archive counts in its sum
        }
        return new Sums(hex(md5), hex(sha256), hex(isoMd5));
    }

    /** A program that uses all processors, if there is one: "-" options that both know. */
    private List<String> unpacker() {
        return Stream.of("lbzip2", "pbzip2").filter(this::onPath).findFirst().map(tool -> List.of(tool, "-d", "-c")).orElse(List.of());
    }

    /** What a filter program makes of a stream. (Not by zt-exec: it feeds a program's input byte by byte.) */
    private InputStream piped(InputStream source, List<String> command) throws IOException {
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD).start();
        Thread feeder = new Thread(() -> {
            try (OutputStream input = process.getOutputStream()) {
                source.transferTo(input);
            } catch (IOException | RuntimeException ended) {
                process.destroy(); // either it has ended, or the source failed: the reader is told below, and asks the source
            }
        }, "unpack");
        feeder.setDaemon(true);
        feeder.start();
        return new FilterInputStream(process.getInputStream()) {
            @Override
            public int read(byte[] buffer, int offset, int length) throws IOException {
                int read = super.read(buffer, offset, length);
                try {
                    if (read < 0 && (process.waitFor() != 0 | joined(feeder))) {
                        throw new IOException("it ended with " + process.exitValue());
                    }
                } catch (InterruptedException interrupted) {
                    throw new VmException(130, "interrupted");
                }
                return read;
            }

            @Override
            public void close() throws IOException {
                process.destroy();
                super.close();
            }
        };
    }

    private static boolean joined(Thread thread) throws InterruptedException {
        thread.join();
        return false;
    }

    /** Writes, and tells a full disk from what a network does. */
    private void store(OutputStream out, byte[] bytes, int length) {
        try {
            out.write(bytes, 0, length);
        } catch (IOException full) {
            long free = vmDir.toFile().getUsableSpace() / MB;
            throw new VmException(1, "cannot write to " + vmDir + " (" + cause(full) + "; " + free
                    + " MB are free, about 1100 MB are needed): make room and run it again, what was downloaded is kept");
        }
    }

    private static InputStream counted(InputStream source, LongConsumer position) {
        return new FilterInputStream(source) {
            private long count;

            @Override
            public int read() throws IOException {
                byte[] one = new byte[1];
                return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
            }

            @Override
            public int read(byte[] buffer, int offset, int length) throws IOException {
                int read = super.read(buffer, offset, length);
                count += Math.max(0, read);
                position.accept(count);
                return read;
            }
        };
    }

    /** On a terminal a bar with rate and time left; elsewhere a line every 10 seconds. It counts the archive's bytes as unpacked. */
    private ProgressBar progress() {
        boolean terminal = onTerminal(2);
        ProgressBarBuilder bar = new ProgressBarBuilder().setTaskName("DragonFly " + version).setInitialMax(-1).setUnit(" MB", MB).showSpeed()
                .setStyle(ProgressBarStyle.ASCII).setUpdateIntervalMillis(terminal ? 500 : 10_000);
        return terminal ? bar.setConsumer(new ConsoleProgressBarConsumer(System.err)).build()
                : bar.setRenderer((state, width) -> progressLine(state)).setConsumer(new DelegatingProgressBarConsumer(line -> {
                    if (!line.isEmpty()) {
                        say(line);
                    }
                })).build();
    }

    private static String progressLine(ProgressState state) {
        double seconds = state.getElapsedAfterStart().toMillis() / 1000.0;
        if (seconds < 9 || state.getCurrent() == 0) {
            return "";
        }
        double rate = state.getCurrent() / seconds;
        return String.format("%d of %s MB, %.1f MB/s%s", state.getCurrent() / MB, state.isIndefinite() ? "?" : "" + state.getMax() / MB, rate / MB,
                state.isIndefinite() ? "" : String.format(", %.0f s left", (state.getMax() - state.getCurrent()) / rate));
    }

    /** Whether a file descriptor is a terminal. System.console() asks about standard input and output at once. */
    private static boolean onTerminal(int descriptor) {
        try {
            String target = Files.readSymbolicLink(Path.of("/proc/self/fd/" + descriptor)).toString();
            return target.startsWith("/dev/pts/") || target.startsWith("/dev/tty");
        } catch (IOException noProc) {
            return System.console() != null;
        }
    }

    private static String md5(Path file) throws IOException {
        MessageDigest md5 = digest("MD5");
        try (InputStream in = new DigestInputStream(Files.newInputStream(file), md5)) {
            in.transferTo(OutputStream.nullOutputStream());
        }
        return hex(md5);
    }

    private static MessageDigest digest(String algorithm) {
        try {
            return MessageDigest.getInstance(algorithm);
        } catch (NoSuchAlgorithmException everyJavaHasIt) {
            throw new IllegalStateException(everyJavaHasIt);
        }
    }

    private static String hex(MessageDigest digest) {
        return HexFormat.of().formatHex(digest.digest());
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
        if (info.getExitValue() != 0) {
            return "something that qemu-img cannot read";
        }
        JsonObject said = json(info.outputUTF8());
        if (said.has("backing-filename")) {
            return "an overlay on " + said.getString("backing-filename");
        } else if (!said.getString("format", "").equals("qcow2")) {
            return "no qcow2 image, but " + said.getString("format");
        }
        ProcessResult check = run(Duration.ofMinutes(5), List.of("qemu-img", "check", "--output=json", disk.toString()));
        if (check.getExitValue() != 0 || json(check.outputUTF8()).getLong("allocated-clusters") > 0) {
            return "data (" + Files.size(disk) / MB + " MB)";
        }
        return said.getLong("virtual-size") == diskSize ? "blank" : "";
    }

    private boolean confirmed(String question) {
        Console console = System.console();
        String answer = console == null || !onTerminal(0) ? null : console.readLine("%s [y/N] ", question);
        if (answer == null || !answer.strip().toLowerCase().startsWith("y")) {
            throw new VmException(2, answer == null ? question + " Then say so with --yes" : "left as it is");
        }
        return true;
    }

    enum State { OK, NOTE, FAIL }

    /** One finding of the doctor; fix: the command that mends it, or "". */
    record Check(String name, State state, String detail, String fix) {
        String line() {
            return String.format("%-5s %-12s %s%s", state == State.OK ? "ok" : state == State.NOTE ? "note" : "FAIL", name, detail,
                    fix.isEmpty() ? "" : " -> " + fix);
        }
    }

    private Check checkJava() {
        String running = "Java " + System.getProperty("java.version");
        return javax.tools.ToolProvider.getSystemJavaCompiler() != null ? new Check("java", State.OK, running, "")
                : new Check("java", State.NOTE, running + " without a compiler: JBang compiles the scripts with a JDK", install("java"));
    }

    private Check checkQemu() throws IOException {
        Check found = checkProgram(QEMU, "qemu", Duration.ofSeconds(20), "--version");
        Matcher number = Pattern.compile("version (\\d+)\\.(\\d+)").matcher(found.detail);
        return number.find() && Integer.parseInt(number.group(1)) * 100 + Integer.parseInt(number.group(2)) < 702
                ? new Check(QEMU, State.NOTE, found.detail + ": older than 7.2, the oldest that this was tried with", install("qemu")) : found;
    }

    /** A program on PATH, and the first line it prints about itself. */
    private Check checkProgram(String program, String packages, Duration limit, String... arguments) throws IOException {
        if (!onPath(program)) {
            return new Check(program, State.FAIL, "not on PATH", install(packages));
        }
        List<String> command = new ArrayList<>(List.of(program));
        command.addAll(List.of(arguments));
        try {
            ProcessResult said = run(limit, command);
            return said.getExitValue() == 0 ? new Check(program, State.OK, said.outputUTF8().lines().findFirst().orElse(""), "")
                    : new Check(program, State.FAIL, "it does not run: " + said.outputUTF8().strip().lines().findFirst().orElse(""), install(packages));
        } catch (VmException broken) {
            return new Check(program, State.FAIL, broken.getMessage(), install(packages));
        }
    }

    private Check checkRsync() throws IOException {
        Check found = checkProgram("rsync", "rsync", Duration.ofSeconds(20), "--version");
        return found.state == State.OK ? found : new Check("rsync", State.NOTE, "not there: vm-sync copies by its own engine then", found.fix);
    }

    private Check checkAccelerator(String wanted) throws IOException {
        if (!onPath(QEMU)) {
            return new Check("accelerator", State.FAIL, "unknown without QEMU", install("qemu"));
        } else if (!wanted.equals("auto")) {
            long millis = bootSectorMillis(QEMU, wanted);
            return millis >= 0 ? new Check("accelerator", State.OK, wanted + ", as set: a probe ran in " + millis + " ms", "")
                    : new Check("accelerator", State.FAIL, wanted + ", as set, runs no guest here", "unset VM_ACCEL (then what works is used)");
        }
        if (Files.isWritable(vmDir)) {
            Files.deleteIfExists(vmDir.resolve("accel.json")); // a doctor looks afresh
        }
        Accelerator found = Files.isWritable(vmDir) ? accelerator(wanted, QEMU, vmDir) : probe(QEMU);
        return found.name.equals("tcg") ? new Check("accelerator", State.NOTE, "tcg, which is slow: " + found.reason, mendKvm())
                : new Check("accelerator", State.OK, found.name + ": " + found.reason, "");
    }

    private static String mendKvm() throws IOException {
        Path node = Path.of("/dev/kvm");
        String cpu = Files.exists(Path.of("/proc/cpuinfo")) ? Files.readString(Path.of("/proc/cpuinfo")) : "";
        if (!Files.exists(node)) {
            boolean intel = Pattern.compile("\\bvmx\\b").matcher(cpu).find();
            return intel || Pattern.compile("\\bsvm\\b").matcher(cpu).find() ? "sudo modprobe " + (intel ? "kvm_intel" : "kvm_amd")
                    : "switch virtualization on in the firmware (inside a VM: nested virtualization on its host)";
        } else if (Files.isWritable(node)) {
            return "none needed, it works; on a virtual machine: better nested virtualization on its host";
        }
        String group = Files.getAttribute(node, "posix:group").toString();
        String user = System.getProperty("user.name");
        boolean member = Files.readAllLines(Path.of("/etc/group")).stream().map(line -> line.split(":", -1))
                .anyMatch(entry -> entry[0].equals(group) && entry.length > 3 && List.of(entry[3].split(",")).contains(user));
        return member ? "log out and in again (" + user + " is in the group " + group + " since this session began)"
                : "sudo usermod -aG " + group + " " + user + ", then log out and in again";
    }

    private Check checkMemory(long wanted, long total) throws IOException {
        long available = total;
        if (Files.exists(Path.of("/proc/meminfo"))) {
            Matcher line = Pattern.compile("MemAvailable:\\s+(\\d+) kB").matcher(Files.readString(Path.of("/proc/meminfo")));
            available = line.find() ? Long.parseLong(line.group(1)) << 10 : total;
        }
        String detail = String.format("the VM gets %.1f GB; %.1f of %.1f GB are available", gb(wanted), gb(available), gb(total));
        State state = wanted > total ? State.FAIL : wanted > available ? State.NOTE : State.OK;
        return new Check("memory", state, detail, state == State.OK ? "" : "set VM_MEMORY lower, or close programs");
    }

    /** The estimates are generous: an installed system with Go is about 3 GB, which lies there in phases and once flattened. */
    private Check checkSpace(long memory) throws IOException {
        Path there = vmDir;
        while (!Files.exists(there)) {
            there = there.getParent();
        }
        long needed = (Files.exists(iso()) ? 0 : 1100 * MB) + (Files.exists(vmDir.resolve(name + "-clean.qcow2")) ? 0 : 6 * GB) + memory;
        long free = there.toFile().getUsableSpace();
        String detail = String.format("%.1f GB free in %s; needed: %.1f GB, and up to %.1f GB as the VM's disk fills", gb(free), vmDir, gb(needed), gb(diskSize));
        if (!Files.isWritable(there)) {
            return new Check("vm-dir", State.FAIL, "cannot write to " + there, "choose another directory with VM_DIR");
        }
        return free < needed ? new Check("disk", State.FAIL, detail, "make room, or choose another place with VM_DIR")
                : new Check("disk", free < needed + diskSize ? State.NOTE : State.OK, detail, "");
    }

    private static double gb(long bytes) {
        return (double) bytes / GB;
    }

    private Check checkPort(Integer set) {
        int port = set != null ? set : 2222;
        if (free(port)) {
            return new Check("port", State.OK, port + " is free", "");
        }
        Holder holder = holder(Path.of("/proc"), port);
        OptionalLong vm = livePid(vmDir.resolve(name + ".pid"));
        if (vm.isPresent() && vm.equals(holder.pid)) {
            return new Check("port", State.OK, port + " is used by the VM " + name + " itself", "");
        }
        String taken = port + " is taken by " + holder.text;
        return set != null ? new Check("port", State.FAIL, taken, "end that, or set VM_SSH_PORT to another port")
                : new Check("port", State.OK, taken + "; the next free one will be used", "");
    }

    private static boolean free(int port) {
        try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
            return socket.isBound();
        } catch (IOException taken) {
            return false;
        }
    }

    /** Who listens on a port, as far as this user may know. */
    record Holder(OptionalLong pid, String text) {}

    /** Linux: the kernel's table gives a socket's inode and user, a process's descriptors name the inode. */
    static Holder holder(Path proc, int port) {
        String user = "";
        for (String table : List.of("net/tcp", "net/tcp6")) {
            try (Stream<String> lines = Files.lines(proc.resolve(table))) {
                for (String[] row : lines.map(line -> line.strip().split("\\s+")).toList()) {
                    if (row.length > 9 && row[3].equals("0A") && row[1].endsWith(String.format(":%04X", port))) {
                        Path process = owner(proc, "socket:[" + row[9] + "]");
                        if (process != null) {
                            String pid = process.getFileName().toString();
                            return new Holder(OptionalLong.of(Long.parseLong(pid)), Files.readString(process.resolve("comm")).strip() + " (pid " + pid + ")");
                        }
                        user = " of the user with the number " + row[7];
                    }
                }
            } catch (IOException notLinuxOrGone) {
                // the other table, or nobody known
            }
        }
        return new Holder(OptionalLong.empty(), "a process" + (user.isEmpty() ? " that cannot be seen" : user));
    }

    private static Path owner(Path proc, String socket) throws IOException {
        try (Stream<Path> processes = Files.list(proc)) {
            for (Path process : processes.filter(path -> path.getFileName().toString().matches("\\d+")).toList()) {
                try (Stream<Path> descriptors = Files.list(process.resolve("fd"))) {
                    for (Path descriptor : descriptors.toList()) {
                        if (Files.readSymbolicLink(descriptor).toString().equals(socket)) {
                            return process;
                        }
                    }
                } catch (IOException anotherUsersOrGone) {
                    // not to be seen
                }
            }
        }
        return null;
    }

    private Check checkInstaller() throws IOException {
        if (Files.exists(iso())) {
            return new Check("installer", State.OK, iso() + " is there", "");
        } else if (image != null) {
            return Files.isReadable(image) ? new Check("installer", State.OK, image + " (VM_IMAGE)", "")
                    : new Check("installer", State.FAIL, image + " (VM_IMAGE) cannot be read", "set VM_IMAGE to a .iso or .iso.bz2");
        }
        List<String> problems = new ArrayList<>();
        for (URI mirror : mirrors) {
            try {
                Listing listing = listing(mirror, 1);
                if (listing.sums.containsKey(archiveName())) {
                    return new Check("installer", State.OK, listing.base + " has DragonFly " + version, "");
                }
                problems.add(listing.base + " has no DragonFly " + version);
            } catch (MirrorException refused) {
                problems.add(refused.getMessage());
            }
        }
        return new Check("installer", State.FAIL, String.join("; ", problems), "look at the network and https_proxy, set VM_MIRROR, or VM_IMAGE to a local file");
    }

    private boolean onPath(String program) {
        return Arrays.stream(environment.getOrDefault("PATH", "").split(":")).filter(directory -> !directory.isEmpty())
                .anyMatch(directory -> Files.isExecutable(Path.of(directory, program)));
    }

    /** The command that installs something, with the package manager that is here. */
    private String install(String what) {
        Map<String, String> packages = switch (what) {
            case "qemu" -> Map.of("apt-get", "qemu-system-x86 qemu-utils", "dnf", "qemu-system-x86-core qemu-img", "pacman", "qemu-base", "brew", "qemu");
            case "ssh" -> Map.of("apt-get", "openssh-client", "dnf", "openssh-clients", "pacman", "openssh", "brew", "openssh");
            case "java" -> Map.of("apt-get", "default-jdk-headless", "dnf", "java-devel", "pacman", "jdk-openjdk", "brew", "openjdk");
            default -> Map.of("apt-get", what, "dnf", what, "pacman", what, "brew", what);
        };
        String manager = Stream.of("apt-get", "dnf", "pacman", "brew").filter(this::onPath).findFirst().orElse("");
        return switch (manager) {
            case "" -> "install " + what + " with your package manager";
            case "brew" -> "brew install " + packages.get(manager);
            case "pacman" -> "sudo pacman -S " + packages.get(manager);
            default -> "sudo " + manager + " install " + packages.get(manager);
        };
    }

    private void say(String text) {
        spec.commandLine().getErr().println("vm-setup: " + text);
    }

    /** A version or a VM's name: it becomes part of file names. */
    static final class Name implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            if (!value.matches("[A-Za-z0-9_][A-Za-z0-9._-]*")) {
                throw new TypeConversionException("'" + value + "' may hold letters, digits, '.', '_' and '-' only, and not begin with '.' or '-'");
            }
            return value;
        }
    }

    /** 20G, 512M: bytes. */
    static final class Size implements ITypeConverter<Long> {
        @Override
        public Long convert(String value) {
            Matcher size = Pattern.compile("(\\d{1,9}(?:\\.\\d{1,3})?)([MGT])i?B?", Pattern.CASE_INSENSITIVE).matcher(value);
            if (!size.matches()) {
                throw new TypeConversionException("'" + value + "' is no size: a number and M, G or T is expected, as in 20G");
            }
            return (long) (Double.parseDouble(size.group(1)) * (1L << 20 + 10 * "MGT".indexOf(size.group(2).toUpperCase()))) & -512;
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
