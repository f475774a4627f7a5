///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Copy a project into the running VM, and results back
//JAVA 17+
//DEPS info.picocli:picocli:4.7.7
//DEPS org.zeroturnaround:zt-exec:1.13.0
//DEPS com.hierynomus:sshj:0.40.0
//DEPS org.apache.commons:commons-compress:1.28.0
//DEPS com.grack:nanojson:1.10
//DEPS org.slf4j:slf4j-nop:2.0.17 // zt-exec and sshj log; without a binding slf4j warns on stderr

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonParserException;
import java.io.BufferedOutputStream;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.file.FileSystemException;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.StandardWatchEventKinds;
import java.nio.file.WatchEvent;
import java.nio.file.WatchKey;
import java.nio.file.WatchService;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermission;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.PublicKey;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import net.schmizz.keepalive.KeepAliveProvider;
import net.schmizz.keepalive.KeepAliveRunner;
import net.schmizz.sshj.DefaultConfig;
import net.schmizz.sshj.SSHClient;
import net.schmizz.sshj.common.DisconnectReason;
import net.schmizz.sshj.common.SSHException;
import net.schmizz.sshj.common.SecurityUtils;
import net.schmizz.sshj.connection.channel.direct.Session;
import net.schmizz.sshj.transport.TransportException;
import net.schmizz.sshj.transport.verification.OpenSSHKnownHosts;
import org.apache.commons.compress.archivers.tar.TarArchiveEntry;
import org.apache.commons.compress.archivers.tar.TarArchiveInputStream;
import org.apache.commons.compress.archivers.tar.TarArchiveOutputStream;
import org.apache.commons.compress.archivers.tar.TarConstants;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.ProcessResult;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.ITypeConverter;
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
 * Makes a directory of the guest equal to a project, and brings files back.
 *
 * <p>A sync, in order:
 * <ol>
 * <li>It waits until no other sync of this VM and directory runs, and reads from {@code <name>.sync/} what the last one left open.
 * <li>It asks the guest about VM_REMOTE_DIR: absent, empty, made by a sync (a mark in the guest's {@code ~/.vm-sync} says so), or
 * somebody's own, which it refuses. The answer also says whether the guest has rsync.
 * <li>With rsync on both sides, rsync does it. Else the built-in engine compares the project with a listing of what is really in the
 * guest and sends what differs in one tar stream; the guest unpacks it beside the tree and moves whole files into place.
 * </ol>
 * Both make the guest's directory hold what the project holds (contents, modes, times, links, empty directories, nothing else), leave
 * alone what is excluded, and never show a half-written file under its name. Whatever interrupts a sync, the next one mends it.
 *
 * <p>Names are kept as the bytes they are, one char each (ISO 8859-1), so that every name a disk can hold arrives in every locale.
 *
 * <p>Reads {@code <name>.pid}, {@code ssh_config}, {@code <name>.ssh/} and {@code <name>.console.log}; writes {@code <name>.sync/}.
 */
@Command(name = "vm-sync", mixinStandardHelpOptions = true, version = "1", sortOptions = false,
        description = {"Copy a project into the running VM, and results back",
            "Without a command: make VM_REMOTE_DIR in the guest equal to VM_PROJECT. Never sent, and left alone in the guest: the "
                + "directory vm/, VM_DIR, the built binary (a file named like the project), *.db, and what --exclude says."},
        footer = {"", "Examples:", "  vm-sync", "  vm-sync --dry-run --exclude '/node_modules/'", "  vm-sync --watch",
            "  vm-sync pull stats/testdata/fixtures ./fixtures",
            "Exit codes: 0 done; 1 something could not be copied; 2 usage, or a remote directory that no sync made (see --force);",
            "  3 the VM is not running; 69 the VM does not answer, or rsync was demanded and is not there; 130 interrupted."})
final class VmSync implements Callable<Integer> {
    /** How long another sync of the same directory may take, and a guest under emulation to list 50,000 files. */
    private static final Duration PATIENCE = Duration.ofMinutes(15);
    /** Where the guest unpacks what is not yet complete; inside the tree, so that it is on the tree's file system. */
    private static final String PART = ".vm-sync-part";
    /** A burst of changes is over when nothing changed for this long; ... */
    private static final Duration QUIET = Duration.ofMillis(80);
    /** ... and is synced anyway after this long. */
    private static final Duration LONGEST_BURST = Duration.ofSeconds(3);

    enum Engine { AUTO, RSYNC, TAR }

    @Spec
    CommandSpec spec;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: ${DEFAULT-VALUE}).")
    void setVmDir(String value) {
        vmDir = userPath(value);
    }

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm", scope = ScopeType.INHERIT,
            converter = Name.class, paramLabel = "NAME", description = "The VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String name;

    @Option(names = "--project", descriptionKey = "VM_PROJECT", defaultValue = ".", scope = ScopeType.INHERIT, paramLabel = "DIR",
            description = "The directory to copy (VM_PROJECT; default: ${DEFAULT-VALUE}).")
    void setProject(String value) {
        project = userPath(value);
    }

    @Option(names = "--remote-dir", descriptionKey = "VM_REMOTE_DIR", scope = ScopeType.INHERIT, converter = RemoteDirectory.class,
            paramLabel = "DIR", description = "Where it goes in the guest (VM_REMOTE_DIR; default: /root/<name of the project>).")
    String remoteDir;

    @Option(names = "--exclude", paramLabel = "PATTERN", description = "Leave this alone, here and in the guest; rsync's patterns: "
            + "'/docs/' at the top, '*.log' anywhere, '+ keep.log' before it makes an exception. May be repeated.")
    List<String> excludes = new ArrayList<>();

    @Option(names = "--exclude-from", paramLabel = "FILE", description = "Such patterns from a file, one a line.")
    List<Path> excludeFiles = new ArrayList<>();

    @Option(names = "--watch", description = "Stay, and sync whenever something in the project changes, until Ctrl-C.")
    boolean watch;

    @Option(names = "--dry-run", description = "Only print what would be sent, changed and deleted.")
    boolean dryRun;

    @Option(names = "--no-delete", description = "Keep what is in the guest and not in the project.")
    boolean keep;

    @Option(names = "--force", description = "Also into a remote directory that no sync made: what the project lacks is deleted there.")
    boolean force;

    @Option(names = "--engine", defaultValue = "AUTO", paramLabel = "ENGINE",
            description = "rsync, tar (built in), or auto: rsync if this machine and the guest have it (default: auto).")
    Engine engine;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    Path vmDir;
    Path project;
    /** The connection of the built-in engine: opened when needed, kept for the next sync of a watch. */
    private Connection connection;
    private Boolean hostHasRsync;

    public static void main(String... args) {
        System.exit(commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmSync(), Settings.read(System.getenv(), Path.of("")));
    }

    @Override
    public Integer call() throws IOException {
        checkProject();
        if (watch && dryRun) {
            throw new ParameterException(spec.commandLine(), "--watch and --dry-run exclude each other");
        }
        Rules rules = rules();
        try {
            return watch ? watch(rules) : report(sync(rules));
        } finally {
            disconnect();
        }
    }

    @Command(name = "pull", description = {"Bring a file, or what is in a directory, back from the guest.",
        "Existing files are overwritten, none is deleted. Nothing is written outside LOCAL, whatever the guest sends: absolute names, "
            + "'..', links that lead out, device nodes and .git directories are left out, named, and make the exit code 1."},
            footer = {"", "Examples:", "  vm-sync pull coverage.out .", "  vm-sync pull /var/log ./guest-log",
                "Exit codes: 0 done; 1 no such file, or something was left out; 2 usage; 3 the VM is not running; 69 it does not answer."})
    int pull(@Parameters(paramLabel = "REMOTE", description = "A file or directory in the guest; relative to VM_REMOTE_DIR.") String remote,
            @Parameters(paramLabel = "LOCAL", description = "The directory its contents go into; for a file, also the file's new name.")
            String local) throws IOException {
        long start = System.nanoTime();
        running();
        String from = remote.startsWith("/") ? remote : remoteDir() + "/" + remote;
        try {
            Pull pull = new Pull(userPath(local), from.replaceAll("/+$", "").replaceAll(".*/", ""));
            Answer answer = connection().exec("sh -s", in -> in.write(bytes(pullScript(bytesOf(from)))), pull::unpack);
            if (answer.status() == 66) {
                throw new VmException(1, "there is no " + from + " in the guest");
            } else if (answer.status() != 0) {
                pull.problems.add("the guest's tar failed: " + answer.errors());
            }
            pull.problems.forEach(spec.commandLine().getErr()::println);
            spec.commandLine().getOut().printf("pulled %s: %d files, %d bytes, %.2f s%n", from, pull.files, pull.bytes, seconds(start));
            return pull.problems.isEmpty() ? 0 : 1;
        } finally {
            disconnect();
        }
    }

    // What to sync, and where to

    private void checkProject() {
        if (!Files.isDirectory(project)) {
            throw new ParameterException(spec.commandLine(), "VM_PROJECT: " + project + " is not a directory");
        }
        remoteDir();
        if (Files.exists(project.resolve("VmSync.java")) && Files.exists(project.resolve("jbang-catalog.json"))) {
            spec.commandLine().getErr().println("vm-sync: warning: " + project + " is the checkout of these scripts; "
                    + "another project is chosen with VM_PROJECT");
        }
    }

    /** VM_REMOTE_DIR, or the project's name in root's home. */
    String remoteDir() {
        if (remoteDir != null) {
            return remoteDir;
        }
        try {
            return new RemoteDirectory().convert("/root/" + (project.getFileName() == null ? "" : project.getFileName()));
        } catch (TypeConversionException unfit) {
            throw new ParameterException(spec.commandLine(), "the project's name gives no directory: " + unfit.getMessage()
                    + "; set VM_REMOTE_DIR");
        }
    }

    /** An absolute path in the guest that may be emptied: not the root, no directory of the system, nothing that climbs. */
    static final class RemoteDirectory implements ITypeConverter<String> {
        private static final Pattern SYSTEM = Pattern.compile("/(bin|boot|dev|etc|lib|libexec|modules|proc|rescue|sbin|sys)(/.*)?"
                + "|/(root|home|usr|var|tmp|mnt|media|build|compat|opt|pfs)|/root/\\.(ssh|vm-sync)(/.*)?|/(usr|var|usr/local)/[^/]+");

        @Override
        public String convert(String value) {
            String path = value.replaceAll("//+", "/").replaceAll("(?<=.)/$", "");
            if (!path.startsWith("/") || path.equals("/") || (path + "/").matches(".*/\\.\\.?/.*") || path.matches("(?s).*\\p{Cntrl}.*")) {
                throw new TypeConversionException("'" + value + "' is no absolute path without '.' and '..', as /root/project is");
            } else if (SYSTEM.matcher(path).matches()) {
                throw new TypeConversionException("'" + value + "' belongs to the guest's system: a sync would empty it");
            }
            return path;
        }
    }

    static final class Name implements ITypeConverter<String> {
        @Override
        public String convert(String value) {
            if (!value.matches("[A-Za-z0-9_][A-Za-z0-9._-]*")) {
                throw new TypeConversionException("'" + value
                        + "' may hold letters, digits, '.', '_' and '-' only, and not begin with '.' or '-'");
            }
            return value;
        }
    }

    /** The rules of this call: the user's, then vm/, VM_DIR, the built binary, and databases. */
    private Rules rules() throws IOException {
        List<String> lines = excludes.stream().map(VmSync::bytesOf).collect(Collectors.toCollection(ArrayList::new));
        for (Path file : excludeFiles) {
            try {
                Files.readString(file, ISO_8859_1).lines().filter(line -> !line.isBlank() && !line.matches("[;#].*")).forEach(lines::add);
            } catch (IOException unreadable) {
                throw new ParameterException(spec.commandLine(), "--exclude-from: " + file + " cannot be read");
            }
        }
        lines.add("/vm/");
        Path root = project.toRealPath();
        Path inside = Files.exists(vmDir) ? vmDir.toRealPath() : vmDir;
        if (inside.startsWith(root) && !inside.equals(root)) {
            lines.add("/" + Rules.literal(nameOf(root, inside)) + "/");
        }
        for (String binary : Set.of(bytesOf(String.valueOf(project.getFileName())), bytesOf(remoteDir()).replaceAll(".*/", ""))) {
            lines.add("+ /" + Rules.literal(binary) + "/"); // a directory of that name is source
            lines.add("/" + Rules.literal(binary));
        }
        lines.add("*.db");
        return Rules.of(lines);
    }

    /** What stays out: rsync's exclude and include patterns, the first that matches decides. */
    record Rules(List<Rule> list) {
        /** {@code text} is the rule as rsync reads it, "- pattern" or "+ pattern". */
        record Rule(boolean hides, boolean directoriesOnly, boolean wholePath, Pattern pattern, String text) {}

        static Rules of(List<String> lines) {
            List<Rule> rules = new ArrayList<>();
            for (String line : lines) {
                boolean sign = line.startsWith("+ ") || line.startsWith("- ");
                String pattern = sign ? line.substring(2) : line;
                if (line.equals("!")) {
                    rules.clear();
                } else if (!pattern.isEmpty()) {
                    boolean directory = pattern.endsWith("/") && pattern.length() > 1;
                    String body = directory ? pattern.substring(0, pattern.length() - 1) : pattern;
                    boolean path = body.contains("/") || body.contains("**");
                    String start = body.startsWith("/") ? "" : path ? "(?:.*/)?" : "";
                    rules.add(new Rule(!line.startsWith("+ "), directory, path,
                            Pattern.compile(start + regex(body.startsWith("/") ? body.substring(1) : body), Pattern.DOTALL),
                            (line.startsWith("+ ") ? "+ " : "- ") + pattern));
                }
            }
            return new Rules(rules);
        }

        /** Whether an entry is excluded by a rule of its own; that its directory is not excluded, the caller knows. */
        boolean hides(String name, boolean directory) {
            for (Rule rule : list) {
                String subject = rule.wholePath() ? name : name.substring(name.lastIndexOf('/') + 1);
                if ((directory || !rule.directoriesOnly()) && (rule.pattern().matcher(subject).matches()
                        || directory && rule.text().endsWith("/***") && rule.pattern().matcher(subject + "/").matches())) {
                    return rule.hides();
                }
            }
            return false;
        }

        /** A name as a pattern that matches it alone: a backslash escapes only where there is a wildcard. */
        static String literal(String name) {
            return name.matches("(?s).*[*?\\[].*") ? name.replaceAll("([\\\\*?\\[])", "\\\\$1") : name;
        }

        private static String regex(String glob) {
            if (!glob.matches("(?s).*[*?\\[].*")) {
                return Pattern.quote(glob);
            }
            StringBuilder regex = new StringBuilder();
            for (int i = 0; i < glob.length(); i++) {
                char c = glob.charAt(i);
                int close = c == '[' ? glob.indexOf(']', i + (glob.startsWith("[!", i) || glob.startsWith("[^", i) ? 3 : 2)) : -1;
                for (int name = glob.indexOf("[:", i + 1); close > 0 && name > 0 && name < close; name = glob.indexOf("[:", name + 2)) {
                    close = glob.indexOf(']', glob.indexOf(":]", name) + 2);
                }
                if (glob.startsWith("**", i)) {
                    boolean prefix = i == 0 && glob.startsWith("**/");
                    regex.append(prefix ? "(?:.*/)?" : ".*");
                    i += prefix ? 2 : glob.startsWith("***", i) ? 2 : 1;
                } else if (c == '*') {
                    regex.append("[^/]*");
                } else if (c == '?') {
                    regex.append("[^/]");
                } else if (close > 0) {
                    String set = glob.substring(i + 1, close).replaceFirst("^[!^]", "").replaceAll("\\[:(\\w)(\\w+):]", "\u0000$1$2\u0001")
                            .replaceAll("([\\[&^])", "\\\\$1");
                    for (String posix : "Alpha Digit Alnum Upper Lower Space Punct XDigit Blank Cntrl Graph Print".split(" ")) {
                        set = set.replace("\u0000" + posix.toLowerCase(Locale.ROOT) + "\u0001", "\\p{" + posix + "}");
                    }
                    regex.append("!^".indexOf(glob.charAt(i + 1)) >= 0 ? "[^/" : "[").append(set).append(']');
                    i = close;
                } else {
                    i += c == '\\' && i + 1 < glob.length() ? 1 : 0;
                    regex.append(Pattern.quote(glob.substring(i, i + 1)));
                }
            }
            return regex.toString();
        }
    }

    // One sync

    enum Kind { SEND, LINK, MKDIR, ATTRS, DELETE }

    /** One difference that a sync removes, or would. */
    record Change(Kind kind, String name, long bytes) {
        @Override
        public String toString() {
            return kind.name().toLowerCase(Locale.ROOT) + " " + quoted(name);
        }
    }

    /** What a sync did. Problems are what it could not do, notes what it left for the next one. */
    record Outcome(List<Change> changes, List<String> problems, List<String> notes, Engine by, double seconds) {
        String summary(String to, boolean dryRun) {
            long sent = changes.stream().filter(change -> change.kind() == Kind.SEND || change.kind() == Kind.LINK).count();
            long deleted = changes.stream().filter(change -> change.kind() == Kind.DELETE).count();
            return String.format(Locale.ROOT, "%s %s: %d sent, %d deleted, %d bytes, %.2f s (%s)", dryRun ? "would sync" : "synced", to,
                    sent, deleted, changes.stream().mapToLong(Change::bytes).sum(), seconds, by.name().toLowerCase(Locale.ROOT));
        }
    }

    private int report(Outcome outcome) {
        PrintWriter err = spec.commandLine().getErr();
        outcome.notes().forEach(err::println);
        outcome.problems().forEach(err::println);
        if (dryRun) {
            outcome.changes().forEach(spec.commandLine().getOut()::println);
        }
        (dryRun ? err : spec.commandLine().getOut()).println(outcome.summary(name + ":" + remoteDir(), dryRun));
        err.flush();
        spec.commandLine().getOut().flush();
        return outcome.problems().isEmpty() ? 0 : 1;
    }

    private Outcome sync(Rules rules) throws IOException {
        long start = System.nanoTime();
        running();
        try (Journal journal = Journal.open(vmDir.resolve(name + ".sync").resolve(key(remoteDir())), dryRun, spec.commandLine().getErr())) {
            Instant began = Instant.now();
            Set<String> suspects = journal.suspects(project);
            State state = engine == Engine.TAR || engine == Engine.AUTO && !hostHasRsync() ? null : look(suspects);
            if (engine == Engine.RSYNC && (!hostHasRsync() || state.rsync().isEmpty())) {
                throw new VmException(69, (hostHasRsync() ? "the guest has no rsync (pkg install rsync)"
                        : "this machine has no rsync (3.1 or newer)") + "; use --engine tar");
            }
            journal.begin();
            Engine by = state != null && !state.rsync().isEmpty() ? Engine.RSYNC : Engine.TAR;
            Outcome outcome = by == Engine.RSYNC ? rsync(rules, state, suspects, journal.unfinished(), start) : tar(rules, suspects, start);
            if (outcome.problems().isEmpty()) {
                journal.end(project, began, outcome.changes());
            }
            return outcome;
        }
    }

    /** The VM is up, as far as the host can tell. */
    private void running() {
        if (livePid(vmDir.resolve(name + ".pid")).isEmpty()) {
            throw new VmException(3, "VM " + name + " is not running; start it: vm-ctl start");
        } else if (!Files.exists(vmDir.resolve("ssh_config"))) {
            throw new VmException(69, vmDir.resolve("ssh_config") + " is missing: 'vm-ctl start' writes it once the guest answers");
        }
    }

    /** 69, with what ssh said last and the end of the console's log: a panic stands there. */
    private VmException lost(String why) {
        StringBuilder message = new StringBuilder("VM " + name + " is running but cannot be reached: " + why);
        try (FileChannel log = FileChannel.open(vmDir.resolve(name + ".console.log"))) {
            ByteBuffer end = ByteBuffer.allocate(2000);
            log.read(end, Math.max(0, log.size() - end.capacity()));
            List<String> lines = new String(end.array(), 0, end.position(), UTF_8).replaceAll("\u001b\\[[0-9;?]*[A-Za-z]", "").lines()
                    .map(line -> line.replaceAll("[\\p{Cntrl}\u0080-\u009f]", "")).filter(line -> !line.isBlank()).toList();
            lines.stream().skip(Math.max(0, lines.size() - 5)).forEach(line -> message.append("\n  console: ").append(line));
        } catch (IOException noLog) {
            // ssh's word has to do
        }
        return new VmException(69, message.toString());
    }

    /**
     * What a sync knows of its predecessors, and the lock that keeps it from running beside another: a file in {@code <name>.sync/}.
     *
     * <p>rsync compares times in seconds. A file that was sent, and written again within the same second, would look unchanged for
     * ever. So each sync notes the files it sent that were that young; what may since have changed unseen is a suspect, sent again.
     */
    static final class Journal implements Closeable {
        private static final String DONE = "done\0";
        private static final String BEGUN = "begun\0";
        private final FileChannel channel;
        private final boolean readOnly;
        private final boolean unfinished;
        /** Name to time of last modification in nanoseconds, 0 where not even that is known for sure. */
        private final Map<String, Long> young = new TreeMap<>();

        private Journal(FileChannel channel, boolean readOnly) throws IOException {
            this.channel = channel;
            this.readOnly = readOnly;
            String text = channel == null ? "" : new String(Channels.newInputStream(channel).readAllBytes(), ISO_8859_1);
            unfinished = !text.isEmpty() && !text.startsWith(DONE);
            if (text.startsWith(DONE)) {
                for (String line : text.substring(DONE.length()).split("\0")) {
                    String[] words = line.split(" ", 2);
                    if (words.length == 2) {
                        young.put(words[1], Long.parseLong(words[0]));
                    }
                }
            }
        }

        static Journal open(Path file, boolean readOnly, PrintWriter err) throws IOException {
            if (readOnly) {
                return new Journal(Files.exists(file) ? FileChannel.open(file) : null, true);
            }
            Files.createDirectories(file.getParent());
            FileChannel channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE);
            Instant limit = Instant.now().plus(PATIENCE);
            for (boolean said = false; channel.tryLock() == null; said = true) {
                if (Instant.now().isAfter(limit)) {
                    throw new VmException(69, "another vm-sync has been at work for " + PATIENCE.toMinutes() + " minutes: end it");
                } else if (!said) {
                    err.println("vm-sync: waiting for another vm-sync of this directory");
                    err.flush();
                }
                pause(Duration.ofMillis(50));
            }
            return new Journal(channel, false);
        }

        /** The last sync was interrupted or failed: what it sent, it did not note. */
        boolean unfinished() {
            return unfinished;
        }

        Set<String> suspects(Path project) {
            return young.entrySet().stream().filter(entry -> {
                long now = modified(project, entry.getKey());
                return now != 0 && now != entry.getValue();
            }).map(Map.Entry::getKey).collect(Collectors.toCollection(TreeSet::new));
        }

        void begin() throws IOException {
            write(BEGUN);
        }

        /** Notes what was sent and could still change within its second, and of the older notes those that still could. */
        void end(Path project, Instant began, List<Change> changes) throws IOException {
            long second = (began.getEpochSecond() - 1) * 1_000_000_000;
            // Written before the sync began (clocks of files are coarse: 50 ms), it is what was sent. Later, who knows.
            long safe = began.minusMillis(50).getEpochSecond() * 1_000_000_000 + began.minusMillis(50).getNano();
            young.values().removeIf(time -> time < second);
            for (Change change : changes) {
                long time = change.kind() == Kind.SEND ? modified(project, change.name()) : 0;
                if (time >= second) {
                    young.put(change.name(), time < safe && time % 1_000_000_000 != 0 ? time : 0);
                }
            }
            write(young.entrySet().stream().map(entry -> entry.getValue() + " " + entry.getKey() + "\0")
                    .collect(Collectors.joining("", DONE, "")));
        }

        private static long modified(Path project, String name) {
            try {
                BasicFileAttributes now = Files.readAttributes(path(project, name), BasicFileAttributes.class, LinkOption.NOFOLLOW_LINKS);
                return now.isRegularFile() ? now.lastModifiedTime().to(TimeUnit.NANOSECONDS) : 0;
            } catch (IOException gone) {
                return 0;
            }
        }

        private void write(String text) throws IOException {
            if (!readOnly) {
                channel.truncate(0).position(0).write(ByteBuffer.wrap(bytes(text)));
            }
        }

        @Override
        public void close() throws IOException {
            if (channel != null) {
                channel.close();
            }
        }
    }

    // What is asked of the guest: plain sh, and the tools of a BSD

    /** What the guest said of the remote directory, the path of its rsync or "", and what came after that. */
    record State(String directory, String rsync, byte[] rest) {
        static State of(byte[] answer) {
            Matcher head = Pattern.compile("vm-sync directory=(\\w+) rsync=(.*)\n").matcher(new String(answer, ISO_8859_1));
            if (!head.find()) {
                throw new VmException(69, "the guest's answer makes no sense: "
                        + quoted(new String(answer, 0, Math.min(answer.length, 200), ISO_8859_1)));
            }
            return new State(head.group(1), head.group(2), Arrays.copyOfRange(answer, head.end(), answer.length));
        }
    }

    /** Says what the remote directory is, and if it may be written to: makes it, and marks it as a sync's own (by its inode). */
    static String lookScript(String directory, boolean write, boolean force, Set<String> suspects) {
        StringBuilder script = new StringBuilder("PATH=$PATH:/usr/local/bin:/usr/local/sbin LC_ALL=C\nexport PATH LC_ALL\numask 022\n"
                + "d=" + word(directory) + " s=$HOME/.vm-sync/" + key(directory) + " state=foreign\n"
                + "inode() { ls -di \"$d/.\" | { read -r i rest; echo \"$i\"; }; }\n"
                + "if [ ! -e \"$d\" ] && [ ! -L \"$d\" ]; then state=absent\n"
                + "elif [ ! -d \"$d\" ]; then state=file\n"
                + "elif [ -z \"$(ls -A \"$d/.\")\" ]; then state=empty\n"
                + "elif [ -f \"$s/made\" ] && [ \"$(cat \"$s/made\")\" = \"$(inode)\" ]; then state=made\n"
                + "fi\n");
        if (write) {
            script.append("case $state in file").append(force ? "" : " | foreign").append(") ;; *)\n"
                    + "  mkdir -p \"$d\" \"$s\" && rm -rf \"$d/" + PART + "\" \"$s/tree\" && ln -s \"$d\" \"$s/tree\" &&\n"
                    + "    inode >\"$s/made.new\" && mv -f \"$s/made.new\" \"$s/made\" || exit 73\n"
                    + "  cd \"$d\" || exit 73\n");
            // rsync will find another time on these, and look into them.
            suspects.forEach(suspect -> script.append("  f=").append(word("./" + suspect))
                    .append("; [ ! -f \"$f\" ] || [ -L \"$f\" ] || touch -c -t 197101010000 \"$f\"\n"));
            script.append("esac\n");
        }
        return script.append("echo \"vm-sync directory=$state rsync=$(command -v rsync)\"\n").toString();
    }

    /** After that: all names, a NUL after each and one more; then a line for each, in the same order. Only names are free of form. */
    static final String LIST_SCRIPT = "[ -d \"$d\" ] || exit 0\ncd \"$d\" && n=$(mktemp /tmp/vm-sync.XXXXXXXX) || exit 73\n"
            + "find . -print0 >\"$n\"; cat \"$n\"; printf '\\000'\nxargs -0 stat -f '%p %z %Fm %Y|' <\"$n\"; rm -f \"$n\"\n";

    static String pullScript(String from) {
        return "LC_ALL=C; export LC_ALL\nf=" + word(from) + "\nif [ -d \"$f\" ]; then cd \"$f\" && exec tar -cf - .\n"
                + "elif [ -f \"$f\" ]; then cd \"${f%/*}/\" && exec tar -chf - \"./${f##*/}\"\nfi\nexit 66\n";
    }

    private String script(Set<String> suspects) {
        return lookScript(bytesOf(remoteDir()), !dryRun, force, suspects);
    }

    private State look(Set<String> suspects) throws IOException {
        return checked(ssh(script(suspects)));
    }

    /** Refuses a directory that is not ours to empty. */
    private State checked(Answer answer) {
        if (answer.status() != 0) {
            throw new VmException(1, "the guest cannot prepare " + remoteDir() + ": " + answer.errors());
        }
        State state = State.of(answer.out());
        if (state.directory().equals("file")) {
            throw new VmException(2, remoteDir() + " is not a directory in the guest: set VM_REMOTE_DIR to another path");
        } else if (state.directory().equals("foreign") && !force) {
            throw new VmException(2, remoteDir() + " was not made by a sync, and a sync deletes what the project lacks: "
                    + "set VM_REMOTE_DIR to another path, or say --force");
        }
        return state;
    }

    /** What a command in the guest said. */
    record Answer(int status, byte[] out, String errors) {}

    private Answer ssh(String script) throws IOException {
        return pipe(List.of("ssh", "-F", vmDir.resolve("ssh_config").toString(), name, "sh -s"), script);
    }

    /** Runs ssh, or rsync over it, with an input; 69 if the connection fails. */
    private Answer pipe(List<String> command, String input) throws IOException {
        if (verbose) {
            System.err.println("+ " + shellQuoted(command));
        }
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        ByteArrayOutputStream errors = new ByteArrayOutputStream();
        int status;
        try {
            status = new ProcessExecutor(command).redirectErrorStream(false).redirectInput(new ByteArrayInputStream(bytes(input)))
                    .redirectOutput(out).redirectError(errors).destroyOnExit().execute().getExitValue();
        } catch (InterruptedException | TimeoutException interrupted) {
            throw new VmException(130, "interrupted");
        } catch (IOException missing) {
            throw new VmException(69, command.get(0) + " cannot be run (is it installed? 'vm-setup check' tells): " + missing.getMessage());
        }
        String said = errors.toString(UTF_8).strip();
        if (status == 255) {
            throw lost(said.isEmpty() ? "ssh failed" : said.substring(said.lastIndexOf('\n') + 1));
        }
        return new Answer(status, out.toByteArray(), said);
    }

    // The rsync engine

    /** Whether this machine has an rsync that will do: what is asked of it works from 3.1 on. macOS has another program of that name. */
    private boolean hostHasRsync() throws IOException {
        if (hostHasRsync == null) {
            try {
                hostHasRsync = run(Duration.ofSeconds(20), List.of("rsync", "--version")).outputUTF8()
                        .matches("(?s)rsync +version v?(3\\.[1-9]|[4-9]|\\d\\d).*");
            } catch (VmException none) {
                hostHasRsync = false;
            }
        }
        return hostHasRsync;
    }

    /** Rules come on stdin; no owners, so that all belongs to root; -s keeps names away from the guest's shell. */
    static List<String> rsyncCommand(Path project, Path sshConfig, String vm, String directory, String guestRsync, boolean delete,
            boolean contents, boolean dryRun) {
        List<String> command = new ArrayList<>(List.of("rsync", "-rlpts", "-0", "--exclude-from=-", "--timeout=300",
                "--out-format=%i|%l|%n", "-e", "ssh -F '" + sshConfig.toString().replace("'", "''") + "'", "--rsync-path=" + guestRsync));
        if (delete) {
            command.add("--delete");
        }
        if (contents) {
            command.add("--checksum");
        }
        if (dryRun) {
            command.add("--dry-run");
        }
        command.add(project + (project.toString().endsWith("/") ? "" : "/"));
        command.add(vm + ":" + directory + "/");
        return command;
    }

    private Outcome rsync(Rules rules, State state, Set<String> suspects, boolean contents, long start) throws IOException {
        Answer answer = pipe(rsyncCommand(project, vmDir.resolve("ssh_config"), name, remoteDir(), state.rsync(), !keep, contents, dryRun),
                rules.list().stream().map(rule -> rule.text() + "\0").collect(Collectors.joining()));
        List<String> errors = answer.errors().lines().filter(line -> !line.isBlank()).toList();
        List<String> notes = new ArrayList<>();
        List<String> problems = new ArrayList<>();
        List<Change> changes = parse(answer.out(), notes);
        if (answer.status() == 0 || answer.status() == 24) { // 24: files vanished while it read them
            notes.addAll(errors);
        } else if (answer.status() == 20) {
            throw new VmException(130, "interrupted");
        } else if (Set.of(10, 12, 30, 35).contains(answer.status()) && errors.stream().noneMatch(line -> line.contains("No space left"))) {
            throw lost(errors.isEmpty() ? "rsync ended with " + answer.status() : errors.get(0));
        } else {
            problems.addAll(errors.isEmpty() ? List.of("rsync ended with " + answer.status()) : errors);
        }
        if (dryRun) { // a real sync makes rsync see these
            Set<String> known = changes.stream().map(Change::name).collect(Collectors.toSet());
            suspects.stream().filter(suspect -> !known.contains(suspect))
                    .forEach(suspect -> changes.add(new Change(Kind.SEND, suspect, size(suspect))));
        }
        return new Outcome(changes, problems, notes, Engine.RSYNC, seconds(start));
    }

    /** rsync's itemized lines; anything else it says is a note. */
    static List<Change> parse(byte[] out, List<String> notes) {
        List<Change> changes = new ArrayList<>();
        Pattern item = Pattern.compile("(\\*deleting|[<>ch.][fdL][^ |]+) *\\|(-?\\d+)\\|(.*?)/?");
        for (String line : new String(out, ISO_8859_1).split("\n")) {
            Matcher match = item.matcher(line);
            if (match.matches()) {
                String what = match.group(1);
                Kind kind = what.startsWith("*") ? Kind.DELETE : what.startsWith(".") ? Kind.ATTRS
                        : what.charAt(1) == 'd' ? Kind.MKDIR : what.charAt(1) == 'L' ? Kind.LINK : Kind.SEND;
                String name = Pattern.compile("\\\\#([0-7]{3})").matcher(match.group(3))
                        .replaceAll(code -> Matcher.quoteReplacement(String.valueOf((char) Integer.parseInt(code.group(1), 8))));
                changes.add(new Change(kind, name, kind == Kind.SEND ? Long.parseLong(match.group(2)) : 0));
            } else if (!line.isBlank() && !line.startsWith("created ")) {
                notes.add(line);
            }
        }
        return changes;
    }

    private long size(String file) {
        try {
            return Files.size(path(project, file));
        } catch (IOException gone) {
            return 0;
        }
    }

    // The built-in engine

    /** An entry of a tree: 'f', 'd', 'l', or 's' for what is not synced; the permission bits; where a link points to. */
    record Item(char type, int mode, long size, long time, String target) {
        static Item of(int mode, long size, long time, String target) {
            char type = switch (mode & 0170000) {
                case 0100000 -> 'f';
                case 0040000 -> 'd';
                case 0120000 -> 'l';
                default -> 's';
            };
            return new Item(type, mode & 07777, size, time, type == 'l' ? target : "");
        }

        /** Microseconds are what HAMMER2 keeps; where the guest has whole seconds only, they have to do. */
        boolean sameTime(Item guest) {
            return Math.floorDiv(time, 1_000_000_000) == Math.floorDiv(guest.time, 1_000_000_000)
                    && (guest.time % 1_000_000_000 == 0 || Math.floorDiv(time, 1000) == Math.floorDiv(guest.time, 1000));
        }
    }

    /** A tree by name, parents before children ("." is its root), and what could not be read. */
    record Tree(TreeMap<String, Item> items, List<String> problems) {
        static Tree scan(Path root, Rules rules) throws IOException {
            Tree tree = new Tree(new TreeMap<>(), new ArrayList<>());
            Files.walkFileTree(root, new SimpleFileVisitor<>() {
                @Override
                public FileVisitResult preVisitDirectory(Path directory, BasicFileAttributes attributes) throws IOException {
                    return add(directory, true) ? FileVisitResult.CONTINUE : FileVisitResult.SKIP_SUBTREE;
                }

                @Override
                public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) throws IOException {
                    add(file, false);
                    return FileVisitResult.CONTINUE;
                }

                @Override
                public FileVisitResult visitFileFailed(Path file, IOException failure) {
                    if (!(failure instanceof NoSuchFileException) && !rules.hides(nameOf(root, file), true)) {
                        tree.problems.add("cannot read " + quoted(nameOf(root, file)));
                    }
                    return FileVisitResult.CONTINUE;
                }

                private boolean add(Path path, boolean directory) throws IOException {
                    String name = nameOf(root, path);
                    if (!name.equals(".") && rules.hides(name, directory)) {
                        return false;
                    }
                    Item item = item(path);
                    if (item != null && item.type() != 's') {
                        tree.items.put(name, item);
                    }
                    return true;
                }
            });
            return tree;
        }

        /** The guest's answer to LIST_SCRIPT; null if its parts do not fit together, because the tree changed in between. */
        static Tree parse(byte[] listing) {
            TreeMap<String, Item> items = new TreeMap<>();
            String text = new String(listing, ISO_8859_1);
            int names = text.indexOf("\0\0");
            if (names < 0) {
                return text.isEmpty() ? new Tree(items, List.of()) : null;
            }
            Pattern line = Pattern.compile("([0-7]+) (\\d+) (-?\\d+)(?:\\.(\\d+))? ");
            Matcher match = line.matcher(text);
            int at = names + 2;
            for (String name : text.substring(0, names).split("\0")) {
                if (!match.region(at, text.length()).lookingAt()) {
                    return null;
                }
                int mode = Integer.parseInt(match.group(1), 8);
                long size = Long.parseLong(match.group(2));
                int end = match.end() + ((mode & 0170000) == 0120000 ? (int) size : 0);
                if (!text.startsWith("|\n", end)) {
                    return null;
                }
                String nanos = ((match.group(4) == null ? "" : match.group(4)) + "000000000").substring(0, 9);
                items.put(name.equals(".") ? name : name.substring(2), Item.of(mode, size,
                        Long.parseLong(match.group(3)) * 1_000_000_000 + Long.parseLong(nanos), text.substring(match.end(), end)));
                at = end + 2;
            }
            return at == text.length() ? new Tree(items, List.of()) : null;
        }
    }

    static Item item(Path path) throws IOException {
        try {
            Map<String, Object> found = Files.readAttributes(path, "unix:mode,size,lastModifiedTime", LinkOption.NOFOLLOW_LINKS);
            int mode = (Integer) found.get("mode");
            // Against "/", as a relative target's bytes are had from an absolute path only.
            String target = (mode & 0170000) == 0120000 ? linkTarget(Files.readSymbolicLink(path)) : "";
            return Item.of(mode, (Long) found.get("size"), ((FileTime) found.get("lastModifiedTime")).to(TimeUnit.NANOSECONDS), target);
        } catch (NoSuchFileException gone) {
            return null;
        }
    }

    private static String linkTarget(Path target) {
        Path slash = Path.of("/");
        return target.equals(slash) ? "/" : (target.isAbsolute() ? "/" : "") + nameOf(slash, slash.resolve(target));
    }

    /**
     * What makes the guest's tree equal to the local one.
     *
     * @param stream what goes into the tar stream, parents first
     * @param modes the files of which only the mode differs
     * @param directories those whose mode and time are to be set at the end
     */
    record Plan(List<Change> changes, List<String> problems, Map<String, Item> stream, Map<String, Item> modes,
            Map<String, Item> directories) {
        Plan(List<String> problems) {
            this(new ArrayList<>(), new ArrayList<>(problems), new TreeMap<>(), new TreeMap<>(), new TreeMap<>());
        }

        static Plan of(Tree local, Tree guest, Rules rules, boolean delete, Set<String> suspects) {
            Plan plan = new Plan(local.problems());
            Set<String> hidden = new HashSet<>();
            Set<String> holdsHidden = new HashSet<>();
            Set<String> holdsAny = new HashSet<>();
            guest.items().forEach((name, item) -> {
                holdsAny.add(parent(name));
                if (hidden.contains(parent(name)) || !name.equals(".") && rules.hides(name, item.type() == 'd')) {
                    hidden.add(name);
                    for (String up = parent(name); holdsHidden.add(up) && !up.equals("."); up = parent(up)) {
                        // up to the root, or to where another one has been
                    }
                }
            });
            // As with rsync, nothing is deleted when the project could not be read in full.
            boolean deleting = delete && local.problems().isEmpty();
            Set<String> blocked = new HashSet<>();
            guest.items().forEach((name, item) -> {
                Item here = local.items().get(name);
                boolean way = here != null && (here.type() == 'd') != (item.type() == 'd');
                if (hidden.contains(name) || name.equals(".") || name.equals(PART) || name.startsWith(PART + "/")) {
                    return;
                } else if (way && item.type() == 'd' && (holdsHidden.contains(name) || !deleting && holdsAny.contains(name))) {
                    blocked.add(name);
                    plan.problems.add("cannot replace the directory " + quoted(name) + " in the guest: it holds "
                            + (holdsHidden.contains(name) ? "excluded files" : "files that may not be deleted"));
                } else if (way || here == null && deleting && !holdsHidden.contains(name)) {
                    plan.changes.add(new Change(Kind.DELETE, name, 0));
                }
            });
            local.items().forEach((name, item) -> {
                Item there = guest.items().get(name);
                if (blocked.contains(name)) {
                    return;
                }
                boolean other = there == null || there.type() != item.type();
                boolean time = other || !item.sameTime(there);
                boolean attributes = time || item.type() != 'l' && item.mode() != there.mode();
                if (item.type() == 'd' && (other || attributes)) {
                    plan.add(other ? Kind.MKDIR : Kind.ATTRS, name, item, other);
                } else if (item.type() == 'l' && (other || time || !item.target().equals(there.target()))) {
                    plan.add(other || !item.target().equals(there.target()) ? Kind.LINK : Kind.ATTRS, name, item, true);
                } else if (item.type() == 'f' && (time || item.size() != there.size() || suspects.contains(name))) {
                    plan.add(Kind.SEND, name, item, true);
                } else if (item.type() == 'f' && attributes) {
                    plan.add(Kind.ATTRS, name, item, false);
                }
            });
            // A directory's time changes with what happens in it.
            plan.changes.forEach(change -> plan.touch(local, parent(change.name())));
            return plan;
        }

        private void add(Kind kind, String name, Item item, boolean send) {
            changes.add(new Change(kind, name, kind == Kind.SEND ? item.size() : 0));
            if (send) {
                stream.put(name, item);
            }
            if (item.type() == 'd') {
                directories.put(name, item);
            } else if (!send) {
                modes.put(name, item);
            }
        }

        private void touch(Tree local, String directory) {
            Item item = local.items().get(directory);
            if (item != null && item.type() == 'd') {
                directories.put(directory, item);
            }
        }
    }

    private Outcome tar(Rules rules, Set<String> suspects, long start) throws IOException {
        Tree guest = null;
        for (int attempt = 1; guest == null; attempt++) {
            Answer answer = connection().exec("sh -s", in -> in.write(bytes(script(Set.of()) + LIST_SCRIPT)), InputStream::readAllBytes);
            guest = Tree.parse(checked(answer).rest());
            if (guest == null && attempt == 3) {
                throw new VmException(1, "the guest's list of " + remoteDir() + " makes no sense, three times: " + answer.errors());
            }
        }
        Tree local = Tree.scan(project.toRealPath(), rules);
        Plan plan = Plan.of(local, guest, rules, !keep, suspects);
        List<String> notes = new ArrayList<>();
        Plan todo = plan;
        for (int round = 1; !dryRun && !todo.changes().isEmpty(); round++) {
            Map<String, Item> unsettled = new TreeMap<>();
            Set<String> skipped = new HashSet<>();
            send(todo, unsettled, skipped, plan.problems());
            plan.changes().removeIf(change -> change.kind() == Kind.SEND && skipped.contains(change.name()));
            todo = new Plan(List.of());
            if (round == 3) { // the guest keeps what it had
                unsettled.keySet().forEach(file -> notes.add(quoted(file) + " kept changing while it was read: the next sync brings it"));
            } else {
                for (Map.Entry<String, Item> entry : unsettled.entrySet()) {
                    todo.add(Kind.SEND, entry.getKey(), entry.getValue(), true);
                    todo.touch(local, parent(entry.getKey()));
                }
            }
        }
        return new Outcome(plan.changes(), plan.problems(), notes, Engine.TAR, seconds(start));
    }

    /**
     * One stream: the files, and last what to do with them, as a script and the directories' times.
     *
     * @param unsettled gets the files that changed while they were read
     * @param skipped gets those that vanished or cannot be read
     */
    private void send(Plan plan, Map<String, Item> unsettled, Set<String> skipped, List<String> problems) throws IOException {
        Path root = project.toRealPath();
        String part = ".vm-sync/" + key(remoteDir()) + "/tree/" + PART;
        Answer answer = connection().exec("cd && mkdir -p " + part + " && cd " + part + " && tar -xpf - && exec sh apply", in -> {
            try (TarArchiveOutputStream tar = tarStream(in)) {
                for (Map.Entry<String, Item> entry : plan.stream().entrySet()) {
                    String file = entry.getKey();
                    if (entry.getValue().type() != 'f') {
                        tar.putArchiveEntry(entry("t/" + file, entry.getValue()));
                        tar.closeArchiveEntry();
                        continue;
                    }
                    try (InputStream content = Files.newInputStream(path(root, file))) {
                        Item now = sendFile(tar, "t/" + file, entry.getValue(), content, path(root, file));
                        if (now != null && now.type() == 'f' && !now.equals(entry.getValue())) {
                            unsettled.put(file, now);
                        } else if (!entry.getValue().equals(now)) {
                            skipped.add(file);
                        }
                    } catch (FileSystemException unreadable) {
                        skipped.add(file);
                        if (!(unreadable instanceof NoSuchFileException)) {
                            problems.add("cannot read " + quoted(file));
                        }
                    }
                }
                ByteArrayOutputStream directories = new ByteArrayOutputStream();
                try (TarArchiveOutputStream inner = tarStream(directories)) {
                    for (Map.Entry<String, Item> entry : plan.directories().entrySet()) {
                        inner.putArchiveEntry(entry(entry.getKey().equals(".") ? "." : "./" + entry.getKey(), entry.getValue()));
                        inner.closeArchiveEntry();
                    }
                }
                Set<String> unfit = new TreeSet<>(skipped);
                unfit.addAll(unsettled.keySet());
                for (Map.Entry<String, byte[]> last : Map.of("dirs.tar", directories.toByteArray(),
                        "apply", bytes(applyScript(plan, unfit, key(remoteDir())))).entrySet()) {
                    tar.putArchiveEntry(entry(last.getKey(), new Item('f', 0600, last.getValue().length, 0, "")));
                    tar.write(last.getValue());
                    tar.closeArchiveEntry();
                }
            }
        }, InputStream::readAllBytes);
        if (answer.status() != 0) {
            problems.add("the guest could not do all of it: " + answer.errors());
        }
    }

    /** Sends exactly the bytes that were announced, and returns what the file is afterwards: if anything else, it was not this. */
    private static Item sendFile(TarArchiveOutputStream tar, String as, Item item, InputStream content, Path file) throws IOException {
        Item before = item(file);
        if (!item.equals(before)) {
            return before;
        }
        tar.putArchiveEntry(entry(as, item));
        byte[] buffer = new byte[1 << 16];
        long left = item.size();
        while (left > 0) {
            int count = content.read(buffer, 0, (int) Math.min(buffer.length, left));
            if (count < 0) {
                Arrays.fill(buffer, (byte) 0); // the file shrank: what was promised is filled up, and thrown away there
                count = (int) Math.min(buffer.length, left);
            }
            tar.write(buffer, 0, count);
            left -= count;
        }
        tar.closeArchiveEntry();
        return item(file);
    }

    private static TarArchiveOutputStream tarStream(OutputStream out) {
        TarArchiveOutputStream tar = new TarArchiveOutputStream(out, ISO_8859_1.name());
        tar.setLongFileMode(TarArchiveOutputStream.LONGFILE_GNU); // pax would want names in UTF-8
        tar.setBigNumberMode(TarArchiveOutputStream.BIGNUMBER_POSIX); // for fractions of a second
        return tar;
    }

    private static TarArchiveEntry entry(String name, Item item) {
        TarArchiveEntry entry = new TarArchiveEntry(item.type() == 'd' ? name + "/" : name,
                item.type() == 'l' ? TarConstants.LF_SYMLINK : item.type() == 'd' ? TarConstants.LF_DIR : TarConstants.LF_NORMAL);
        entry.setMode(item.mode());
        entry.setLastModifiedTime(FileTime.from(item.time(), TimeUnit.NANOSECONDS));
        entry.setIds(0, 0);
        entry.setNames("", "");
        entry.setLinkName(item.target());
        entry.setSize(item.type() == 'f' ? item.size() : 0);
        return entry;
    }

    /**
     * Run in the part directory, after all has arrived: removes what must go, moves what came into place, sets modes and times.
     * mv within one file system is rename(2): a file is the old one or the new one. What fails is told at the end; the rest goes on.
     */
    static String applyScript(Plan plan, Set<String> bad, String key) {
        StringBuilder script = new StringBuilder("LC_ALL=C; export LC_ALL\nr=0; p=" + PART + "/t; s=$HOME/.vm-sync/" + key
                + "\nmv -f dirs.tar \"$s/dirs.tar\" || exit 1\ncd .. || exit 1\n");
        List<String> delete = new ArrayList<>();
        Set<String> gone = new HashSet<>();
        for (Change change : plan.changes()) {
            if (change.kind() == Kind.DELETE && gone.add(change.name()) && !gone.contains(parent(change.name()))) {
                delete.add(change.name());
            }
        }
        batches(delete).forEach(names -> script.append("rm -rf").append(names).append(" || r=1\n"));
        batches(bad.stream().map(name -> PART + "/t/" + name).toList()).forEach(names -> script.append("rm -f").append(names).append('\n'));
        // What lies in a new directory moves with it.
        Map<String, List<String>> moves = new TreeMap<>();
        plan.stream().forEach((name, item) -> {
            boolean parentIsNew = plan.stream().containsKey(parent(name)) && !parent(name).equals(".");
            if (!parentIsNew && !name.equals(".") && !bad.contains(name)) {
                moves.computeIfAbsent(parent(name), directory -> new ArrayList<>()).add(name);
            }
        });
        moves.forEach((directory, names) -> batches(names.stream().map(name -> PART + "/t/" + name).toList()).forEach(batch -> script
                .append("mv -f").append(batch).append(' ').append(word("./" + directory + "/")).append(" || r=1\n")));
        plan.modes().entrySet().stream().collect(Collectors.groupingBy(entry -> entry.getValue().mode(), TreeMap::new,
                Collectors.mapping(Map.Entry::getKey, Collectors.toList()))).forEach((mode, names) -> batches(names)
                        .forEach(batch -> script.append("chmod ").append(Integer.toOctalString(mode)).append(batch).append(" || r=1\n")));
        return script.append("rm -rf ./" + PART + "\ntar -xpf \"$s/dirs.tar\" || r=1\nrm -f \"$s/dirs.tar\"\nexit $r\n").toString();
    }

    /** Names as arguments, in pieces that fit a command line. */
    private static List<String> batches(List<String> names) {
        List<String> batches = new ArrayList<>();
        StringBuilder batch = new StringBuilder();
        for (String name : names) {
            batch.append(' ').append(word("./" + name));
            if (batch.length() > 30_000) {
                batches.add(batch.toString());
                batch.setLength(0);
            }
        }
        return batch.length() == 0 ? batches : Stream.concat(batches.stream(), Stream.of(batch.toString())).toList();
    }

    // The built-in ssh client

    interface Writer {
        void write(OutputStream out) throws IOException;
    }

    interface Reader {
        byte[] read(InputStream in) throws IOException;
    }

    private Connection connection() throws IOException {
        if (connection == null) {
            connection = new Connection();
        }
        return connection;
    }

    private void disconnect() {
        if (connection != null) {
            connection.close();
            connection = null;
        }
    }

    /** One ssh connection, with what {@code <name>.ssh/config} says of it; the host's key is the one in known_hosts, or there is none. */
    private final class Connection implements Closeable {
        private final SSHClient client;

        Connection() throws IOException {
            SecurityUtils.setRegisterBouncyCastle(false); // the JDK has what OpenSSH speaks, and 0.3 s are saved
            Map<String, String> config = sshConfig(Files.readString(vmDir.resolve(name + ".ssh/config")));
            DefaultConfig settings = new DefaultConfig();
            settings.setKeepAliveProvider(KeepAliveProvider.KEEP_ALIVE);
            client = new SSHClient(settings);
            client.setConnectTimeout(20_000);
            client.setTimeout(60_000);
            String alias = config.getOrDefault("hostkeyalias", name);
            client.addHostKeyVerifier(new OpenSSHKnownHosts(Path.of(config.get("userknownhostsfile")).toFile()) {
                @Override
                public boolean verify(String host, int port, PublicKey key) {
                    return super.verify(alias, 22, key);
                }

                @Override
                public List<String> findExistingAlgorithms(String host, int port) {
                    return super.findExistingAlgorithms(alias, 22);
                }
            });
            try {
                client.connect(config.getOrDefault("hostname", "127.0.0.1"), Integer.parseInt(config.getOrDefault("port", "22")));
                client.getSocket().setTcpNoDelay(true);
                KeepAliveRunner alive = (KeepAliveRunner) client.getConnection().getKeepAlive();
                alive.setKeepAliveInterval(15);
                alive.setMaxAliveCount(8); // a busy guest under emulation may be slow, not two minutes
                client.authPublickey(config.getOrDefault("user", "root"), client.loadKeys(config.get("identityfile")));
            } catch (IOException failed) {
                close();
                boolean stranger = failed instanceof TransportException wrong
                        && wrong.getDisconnectReason() == DisconnectReason.HOST_KEY_NOT_VERIFIABLE;
                throw lost(stranger ? "its host key is not in " + config.get("userknownhostsfile") : String.valueOf(failed.getMessage()));
            }
        }

        /** Runs a command, feeding and reading it at once; 69 if the connection breaks. */
        Answer exec(String command, Writer input, Reader output) throws IOException {
            if (verbose) {
                System.err.println("+ (built in) ssh " + name + " " + shellQuoted(List.of(command)));
            }
            try (Session session = client.startSession(); Session.Command running = session.exec(command)) {
                CompletableFuture<Object> fed = inBackground(() -> {
                    try (OutputStream in = new BufferedOutputStream(running.getOutputStream(), 1 << 16)) {
                        input.write(in);
                    }
                    return "";
                });
                CompletableFuture<Object> said = inBackground(() -> new String(running.getErrorStream().readAllBytes(), UTF_8).strip());
                byte[] out = output.read(running.getInputStream());
                String errors = said.join().toString();
                running.join();
                Integer status = running.getExitStatus();
                // A command that ends early closes its input, and its status says why.
                Throwable failure = fed.handle((done, why) -> why).join();
                if (failure != null && (status != null && status == 0 || !(failure.getCause() instanceof SSHException))) {
                    throw new IOException(failure.getCause().getMessage(), failure.getCause());
                } else if (status == null) {
                    throw new EOFException("the connection ended" + (errors.isEmpty() ? "" : ": " + errors));
                }
                return new Answer(status, out, errors);
            } catch (CompletionException | IOException broken) {
                disconnect();
                throw lost(String.valueOf(broken.getMessage()));
            }
        }

        @Override
        public void close() {
            try {
                client.close();
            } catch (IOException broken) {
                // it is gone either way
            }
        }
    }

    /** "Key value" lines, the value perhaps in quotes; keys in lower case. */
    static Map<String, String> sshConfig(String text) {
        Map<String, String> config = new HashMap<>();
        Matcher line = Pattern.compile("(?m)^\\s*(\\w+)[\\s=]+(?:\"([^\"]*)\"|(.*?))\\s*$").matcher(text);
        while (line.find()) {
            String value = line.group(2) == null ? line.group(3) : line.group(2);
            config.putIfAbsent(line.group(1).toLowerCase(Locale.ROOT), value.replace("%%", "%"));
        }
        return config;
    }

    private static CompletableFuture<Object> inBackground(Callable<Object> work) {
        CompletableFuture<Object> result = new CompletableFuture<>();
        Thread thread = new Thread(() -> {
            try {
                result.complete(work.call());
            } catch (Throwable failure) {
                result.completeExceptionally(new CompletionException(failure.getMessage(), failure));
            }
        });
        thread.setDaemon(true);
        thread.start();
        return result;
    }

    // Watching

    /** Syncs at once, then after each burst of changes, and when the VM is another one: restarted, or restored to an older tree. */
    private int watch(Rules rules) throws IOException {
        PrintWriter err = spec.commandLine().getErr();
        try (Watcher watcher = new Watcher(project.toRealPath(), rules)) {
            long synced = -1;
            String said = "";
            boolean due = true;
            while (true) {
                long vm = livePid(vmDir.resolve(name + ".pid")).orElse(-1);
                if (vm != synced) {
                    disconnect();
                    if (synced != -1) { // a connection to the old one would hang
                        run(Duration.ofSeconds(20), List.of("ssh", "-F", vmDir.resolve("ssh_config").toString(), "-O", "exit", name));
                    }
                    due = true;
                }
                if (due) {
                    try {
                        Outcome outcome = sync(rules);
                        String problems = String.join("\n", outcome.problems());
                        if (synced == -1 || !outcome.changes().isEmpty() || !problems.equals(said)) {
                            spec.commandLine().getOut().printf("%tT ", LocalTime.now());
                            report(outcome);
                        }
                        synced = vm;
                        said = problems;
                        due = false;
                    } catch (VmException | IOException failed) {
                        if (failed instanceof VmException expected && (expected.exitCode == 2 || expected.exitCode == 130)) {
                            throw expected;
                        } else if (!failed.getMessage().equals(said)) {
                            err.println("vm-sync: " + failed.getMessage() + " (waiting)");
                            err.flush();
                        }
                        said = failed.getMessage();
                        synced = -1;
                    }
                }
                due |= watcher.changed(Duration.ofSeconds(1));
            }
        }
    }

    /** Tells when something that is not excluded changes in a project. */
    static final class Watcher implements Closeable {
        private final WatchService service;
        private final Map<WatchKey, Path> directories = new HashMap<>();
        private final Path root;
        private final Rules rules;

        Watcher(Path root, Rules rules) throws IOException {
            this.root = root;
            this.rules = rules;
            service = root.getFileSystem().newWatchService();
            register(root);
        }

        /** Waits this long for a change, and then for the burst to end. */
        boolean changed(Duration limit) throws IOException {
            boolean changed = false;
            if (directories.isEmpty() && Files.isDirectory(root)) { // the project was deleted, and is back
                register(root);
                changed = true;
            }
            Instant latest = Instant.now().plus(LONGEST_BURST);
            try {
                WatchKey key = service.poll(limit.toMillis(), TimeUnit.MILLISECONDS);
                while (key != null) {
                    changed |= take(key);
                    boolean enough = Instant.now().isAfter(latest);
                    key = enough ? null : service.poll(changed ? QUIET.toMillis() : 0, TimeUnit.MILLISECONDS);
                }
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            }
            return changed;
        }

        private boolean take(WatchKey key) throws IOException {
            boolean changed = false;
            Path directory = directories.get(key);
            for (WatchEvent<?> event : key.pollEvents()) {
                if (event.kind() == StandardWatchEventKinds.OVERFLOW) {
                    register(root);
                    changed = true;
                } else if (directory != null) {
                    Path path = directory.resolve((Path) event.context());
                    boolean isDirectory = Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS);
                    if (!rules.hides(nameOf(root, path), isDirectory)) {
                        changed = true;
                        if (isDirectory && event.kind() == StandardWatchEventKinds.ENTRY_CREATE) {
                            register(path);
                        }
                    }
                }
            }
            if (!key.reset()) {
                directories.remove(key);
            }
            return changed;
        }

        private void register(Path top) throws IOException {
            Files.walkFileTree(top, new SimpleFileVisitor<>() {
                @Override
                public FileVisitResult preVisitDirectory(Path directory, BasicFileAttributes attributes) throws IOException {
                    if (!directory.equals(root) && rules.hides(nameOf(root, directory), true)) {
                        return FileVisitResult.SKIP_SUBTREE;
                    }
                    try {
                        directories.put(directory.register(service, StandardWatchEventKinds.ENTRY_CREATE,
                                StandardWatchEventKinds.ENTRY_DELETE, StandardWatchEventKinds.ENTRY_MODIFY), directory);
                    } catch (NoSuchFileException | NotDirectoryException gone) {
                        return FileVisitResult.SKIP_SUBTREE;
                    } catch (IOException full) {
                        throw new VmException(69, "cannot watch " + directory + ": " + full.getMessage()
                                + " (more watches: sysctl fs.inotify.max_user_watches; or --exclude what need not be watched)");
                    }
                    return FileVisitResult.CONTINUE;
                }

                @Override
                public FileVisitResult visitFileFailed(Path file, IOException failure) {
                    return FileVisitResult.CONTINUE;
                }
            });
        }

        @Override
        public void close() throws IOException {
            service.close();
        }
    }

    // Pulling

    /** Unpacks what a guest sends, which may be hostile: every name is checked, no link is ever followed, nothing special is made. */
    static final class Pull {
        private final Path local;
        private final String name;
        private final Set<Path> unpacked = new HashSet<>();
        private final Map<Path, TarArchiveEntry> directories = new LinkedHashMap<>();
        private Path root;
        final List<String> problems = new ArrayList<>();
        int files;
        long bytes;

        /** {@code name} is what a single file is called if {@code local} is a directory: as it was asked for, not as the guest says. */
        Pull(Path local, String name) {
            this.local = local;
            this.name = name;
        }

        byte[] unpack(InputStream in) throws IOException {
            TarArchiveInputStream tar = new TarArchiveInputStream(in, UTF_8.name());
            boolean first = true;
            boolean one = false;
            for (TarArchiveEntry entry = tar.getNextEntry(); entry != null; entry = tar.getNextEntry(), first = false) {
                try {
                    if (first) {
                        one = !entry.isDirectory();
                        Path into = one && !Files.isDirectory(local) ? local.getParent() : local;
                        root = Files.createDirectories(into).toRealPath();
                    }
                    if (one && (!first || !isFile(tar, entry))) {
                        problems.add("left out: a file was asked for, and the guest sent " + quoted(bytesOf(entry.getName())));
                    } else {
                        String file = Files.isDirectory(local) ? name : local.getFileName().toString();
                        unpack(tar, entry, one ? List.of(file) : parts(entry.getName()));
                    }
                } catch (Unsafe unsafe) {
                    problems.add("left out: " + quoted(bytesOf(entry.getName())) + ": " + unsafe.getMessage());
                } catch (FileSystemException failed) {
                    throw new VmException(1, "cannot write " + failed.getFile() + ": "
                            + (failed.getReason() == null ? failed.getClass().getSimpleName() : failed.getReason()));
                }
            }
            List<Path> deepest = new ArrayList<>(directories.keySet());
            Collections.reverse(deepest);
            for (Path directory : deepest) {
                dress(directory, directories.get(directory), 0700);
            }
            in.readAllBytes(); // tar's padding, or the guest would be cut off
            return new byte[0];
        }

        /** What is left out, and why. */
        private static final class Unsafe extends Exception {
            private static final long serialVersionUID = 1;

            Unsafe(String why) {
                super(why);
            }
        }

        /** The components of a name below LOCAL. */
        static List<String> parts(String name) throws Unsafe {
            List<String> parts = Stream.of(name.split("/")).filter(part -> !part.isEmpty() && !part.equals(".")).toList();
            if (name.startsWith("/") || parts.contains("..") || name.indexOf('\0') >= 0) {
                throw new Unsafe("it leads out of the directory");
            } else if (parts.stream().anyMatch(part -> part.equalsIgnoreCase(".git"))) {
                throw new Unsafe("git runs what stands there; name it as REMOTE if you want it");
            }
            return parts;
        }

        private void unpack(TarArchiveInputStream tar, TarArchiveEntry entry, List<String> parts) throws IOException, Unsafe {
            if (entry.isDirectory()) {
                directories.put(directory(parts), entry);
                return;
            } else if (parts.isEmpty()) {
                throw new Unsafe("it has no name");
            }
            Path parent = directory(parts.subList(0, parts.size() - 1));
            Path path = parent.resolve(component(parts.get(parts.size() - 1)));
            if (Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS)) {
                throw new Unsafe("there is a directory of that name");
            } else if (entry.isSymbolicLink()) {
                link(path, entry.getLinkName(), parts.size() - 1);
            } else if (entry.isLink()) {
                List<String> target = parts(entry.getLinkName());
                Path other = root.resolve(component(String.join("/", target)));
                if (!unpacked.contains(other)) {
                    throw new Unsafe("a link to what was not sent");
                }
                try (InputStream content = Files.newInputStream(other, LinkOption.NOFOLLOW_LINKS)) {
                    file(path, content, entry);
                }
            } else if (isFile(tar, entry)) {
                file(path, tar, entry);
            } else {
                throw new Unsafe("it is neither a file nor a directory nor a link");
            }
        }

        private static boolean isFile(TarArchiveInputStream tar, TarArchiveEntry entry) {
            return "\00007S".indexOf(entry.getLinkFlag()) >= 0 && tar.canReadEntryData(entry);
        }

        /** A directory below the root, made if need be, that no link leads to. */
        private Path directory(List<String> parts) throws IOException, Unsafe {
            Path directory = root;
            for (String part : parts) {
                directory = directory.resolve(component(part));
                if (!Files.exists(directory, LinkOption.NOFOLLOW_LINKS)) {
                    Files.createDirectory(directory);
                } else if (!Files.isDirectory(directory, LinkOption.NOFOLLOW_LINKS)) {
                    throw new Unsafe("its directory is " + (Files.isSymbolicLink(directory) ? "a link" : "a file"));
                }
            }
            return directory;
        }

        private static Path component(String part) {
            return path(Path.of(""), bytesOf(part));
        }

        private void file(Path path, InputStream content, TarArchiveEntry entry) throws IOException {
            Path beside = Files.createTempFile(path.getParent(), ".vm-sync", ".part");
            try {
                long size = Files.copy(content, beside, StandardCopyOption.REPLACE_EXISTING);
                dress(beside, entry, 0);
                Files.move(beside, path, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
                unpacked.add(path);
                files++;
                bytes += size;
            } finally {
                Files.deleteIfExists(beside);
            }
        }

        /** A link stays inside if it climbs at its beginning only, and no further than to the root: no other link can bend such a one. */
        private void link(Path path, String target, int depth) throws IOException, Unsafe {
            List<String> words = Stream.of(target.split("/")).filter(word -> !word.isEmpty() && !word.equals(".")).toList();
            int climbs = (int) words.stream().takeWhile(".."::equals).count();
            if (target.startsWith("/") || words.isEmpty() || climbs > depth || words.lastIndexOf("..") >= climbs) {
                throw new Unsafe("a link that leads out of the directory, to " + quoted(bytesOf(target)));
            }
            Path beside = Files.createTempFile(path.getParent(), ".vm-sync", ".part");
            Files.delete(beside);
            try {
                Files.createSymbolicLink(beside, component(target));
                Files.move(beside, path, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
                unpacked.remove(path);
                files++;
            } finally {
                Files.deleteIfExists(beside);
            }
        }

        /** The guest's time and permissions, without set-id bits. */
        private static void dress(Path path, TarArchiveEntry entry, int atLeast) throws IOException {
            Set<PosixFilePermission> permissions = EnumSet.noneOf(PosixFilePermission.class);
            for (PosixFilePermission permission : PosixFilePermission.values()) { // from OWNER_READ, 0400, down
                if (((entry.getMode() | atLeast) >> 8 - permission.ordinal() & 1) != 0) {
                    permissions.add(permission);
                }
            }
            Files.setPosixFilePermissions(path, permissions);
            Files.setLastModifiedTime(path, entry.getLastModifiedTime());
        }
    }

    // Names

    /** A text's bytes, one char each. */
    static String bytesOf(String text) {
        return new String(text.getBytes(UTF_8), ISO_8859_1);
    }

    static byte[] bytes(String name) {
        return name.getBytes(ISO_8859_1);
    }

    /** What a path is called below a root; a URI has the very bytes, which a path's text has not in every locale. */
    static String nameOf(Path root, Path path) {
        String raw = Path.of("/").resolve(root.relativize(path)).toUri().getRawPath().replaceAll("^/+|/+$", "");
        StringBuilder name = new StringBuilder();
        for (int i = 0; i < raw.length(); i++) {
            boolean coded = raw.charAt(i) == '%';
            name.append(coded ? (char) Integer.parseInt(raw.substring(i + 1, i + 3), 16) : raw.charAt(i));
            i += coded ? 2 : 0;
        }
        return name.length() == 0 ? "." : name.toString();
    }

    static Path path(Path root, String name) {
        StringBuilder uri = new StringBuilder("file:///");
        for (byte b : bytes(name)) {
            uri.append(b == '/' ? "/" : String.format("%%%02X", b));
        }
        return root.resolve(Path.of("/").relativize(Path.of(URI.create(uri.toString()))));
    }

    static String parent(String name) {
        return name.equals(".") ? "" : name.contains("/") ? name.substring(0, name.lastIndexOf('/')) : ".";
    }

    /** A name for people, and for a shell to read back. */
    static String quoted(String name) {
        String text = new String(bytes(name), UTF_8);
        if (!text.matches("(?s).*[\\p{Cntrl}\ufffd].*")) {
            return shellQuoted(List.of(text));
        }
        StringBuilder quoted = new StringBuilder("$'");
        for (char c : name.toCharArray()) {
            String plain = "'\\".indexOf(c) < 0 ? "" + c : "\\" + c;
            quoted.append(c == '\n' ? "\\n" : c < ' ' || c > '~' ? String.format("\\%03o", (int) c) : plain);
        }
        return quoted + "'";
    }

    /** A word of sh, taken literally. */
    static String word(String text) {
        return "'" + text.replace("'", "'\\''") + "'";
    }

    /** What stands for a remote directory in file names. */
    static String key(String directory) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(directory.getBytes(UTF_8)), 0, 8);
        } catch (NoSuchAlgorithmException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private static double seconds(long start) {
        return (System.nanoTime() - start) / 1e9;
    }

    private static void pause(Duration time) {
        try {
            Thread.sleep(time.toMillis());
        } catch (InterruptedException interrupted) {
            throw new VmException(130, "interrupted");
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
}
