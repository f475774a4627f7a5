///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Copy a project into the running VM, and results back
//JAVA 17+
//RUNTIME_OPTIONS -XX:TieredStopAtLevel=1 // starts faster (jbang: 0.76 s, 0.81 s without); ends before C2 would pay
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
import java.io.EOFException;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringReader;
import java.net.InetAddress;
import java.net.Socket;
import java.net.StandardProtocolFamily;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.SocketChannel;
import java.nio.charset.Charset;
import java.nio.file.AccessDeniedException;
import java.nio.file.DirectoryIteratorException;
import java.nio.file.DirectoryStream;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.StandardWatchEventKinds;
import java.nio.file.WatchEvent;
import java.nio.file.WatchKey;
import java.nio.file.WatchService;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalTime;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Scanner;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BiConsumer;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import net.schmizz.keepalive.KeepAliveProvider;
import net.schmizz.keepalive.KeepAliveRunner;
import net.schmizz.sshj.DefaultConfig;
import net.schmizz.sshj.SSHClient;
import net.schmizz.sshj.common.DisconnectReason;
import net.schmizz.sshj.common.IOUtils;
import net.schmizz.sshj.common.LoggerFactory;
import net.schmizz.sshj.common.Message;
import net.schmizz.sshj.common.SSHException;
import net.schmizz.sshj.common.SSHPacket;
import net.schmizz.sshj.common.SecurityUtils;
import net.schmizz.sshj.common.StreamCopier;
import net.schmizz.sshj.connection.channel.direct.Session;
import net.schmizz.sshj.connection.channel.direct.SessionChannel;
import net.schmizz.sshj.transport.verification.OpenSSHKnownHosts;
import org.apache.commons.compress.archivers.tar.TarArchiveEntry;
import org.apache.commons.compress.archivers.tar.TarArchiveInputStream;
import org.apache.commons.compress.archivers.tar.TarArchiveOutputStream;
import org.apache.commons.compress.archivers.tar.TarConstants;
import org.zeroturnaround.exec.ProcessExecutor;
import org.zeroturnaround.exec.listener.ProcessListener;
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
 * <li>It waits until no other sync of this directory runs.
 * <li>It asks the guest what VM_REMOTE_DIR is: absent, empty, made by a sync (a mark in the guest's {@code ~/.vm-sync}
 *     says so, and from which project), or somebody's own, which it refuses; and whether there is an rsync.
 * <li>It tells which other project is replaced, and names what will be deleted.
 * <li>With rsync on both sides, rsync does it. Else the built-in engine compares the project with a listing of what is
 *     really in the guest, and sends what differs in one tar stream; the guest unpacks it beside the tree and moves
 *     whole files into place.
 * </ol>
 * Either way the guest's directory then holds what the project holds, excluded files are left alone, and no file is
 * ever half-written under its own name. After an interrupted sync, the next one repairs the copy. Times of directories
 * and links do not count.
 *
 * <p>Names are kept as the bytes they are, one char each (ISO 8859-1): so every name arrives, in every locale.
 *
 * <p>Reads in VM_DIR: {@code <name>.pid}, the lock on {@code <name>.qemu-pid}, {@code ssh_config}, {@code <name>.ssh/};
 * asks QEMU over {@code <name>.qmp} for the guest's state. Writes {@code <name>.sync/}: for each remote directory a
 * file, which is the lock and says when its last sync began.
 */
@Command(name = "vm-sync", scope = ScopeType.INHERIT, mixinStandardHelpOptions = true, version = "1.0",
        usageHelpWidth = 120, abbreviateSynopsis = true, parameterListHeading = "%n", descriptionHeading = "%n",
        optionListHeading = "%nOptions:%n",
        commandListHeading = "%nCommands:%n", footerHeading = "%nExamples:%n", exitCodeListHeading = "%nExit codes:%n",
        description = {"Copy a project into the running VM, and results back", "",
            "Without a command it makes VM_REMOTE_DIR in the guest equal to VM_PROJECT. Some files are neither sent "
                + "nor deleted in the guest: VM_DIR, a *.db at the top that git does not track, the built binary "
                + "(a file named like the project), and what --exclude says. Of .git it sends what git needs to read "
                + "the repository, without remotes, logs and hooks. It reads VM_DIR/ssh_config and VM_DIR/NAME.ssh/, "
                + "and keeps notes for the next sync in VM_DIR/NAME.sync/. The first that is set counts: option, "
                + "environment, vm.env (KEY=VALUE lines) in the working directory, "
                + "~/.go-synth/vm.env."},
        footer = {"  vm-sync --watch", "  vm-sync --dry-run --exclude /node_modules/",
            "  VM_PROJECT=~/go-synth vm-sync --no-delete",
            "  vm-sync pull stats/testdata/fixtures/    # and back"},
        exitCodeList = {"0:done", "1:something could not be copied (unreadable, too large, disk full)",
            "2:wrong usage, or refused because --force was missing", "3:the VM is not running",
            "69:something needed is not available (ssh, rsync with --engine rsync, the lock)", "130, 143:interrupted"})
final class VmSync implements Callable<Integer> {
    private static final Path ROOT = Path.of("/");

    enum Engine { AUTO, RSYNC, TAR }

    @Spec
    CommandSpec spec;

    @Option(names = "--vm-dir", descriptionKey = "VM_DIR", defaultValue = "~/.go-synth/vm", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "Where everything about the VMs lies (VM_DIR; default: "
                    + "${DEFAULT-VALUE}).")
    String dirOption;

    @Option(names = "--vm-name", descriptionKey = "VM_NAME", defaultValue = "dfly-vm",
            converter = FileName.class, scope = ScopeType.INHERIT,
            paramLabel = "NAME", description = "Which VM (VM_NAME; default: ${DEFAULT-VALUE}).")
    String name;

    @Option(names = "--project", descriptionKey = "VM_PROJECT", defaultValue = ".", scope = ScopeType.INHERIT,
            paramLabel = "DIR", description = "The project on this machine (VM_PROJECT; default: ${DEFAULT-VALUE}).")
    String projectOption;

    @Option(names = "--remote-dir", descriptionKey = "VM_REMOTE_DIR", scope = ScopeType.INHERIT,
            converter = RemoteDirectory.class,
            paramLabel = "DIR", description = "The project in the guest (VM_REMOTE_DIR; default: /root/<name of the "
                    + "project>).")
    String remoteDir;

    @Option(names = "--exclude", paramLabel = "PATTERN",
            description = "Leave this alone, here and in the guest (repeatable); as "
            + "in rsync: '/docs/' at the top, '*.log' anywhere; '+ keep.log' before them is an exception.")
    List<String> excludes = new ArrayList<>();

    @Option(names = "--exclude-from", paramLabel = "FILE",
            description = "Such patterns from a file, one a line (repeatable).")
    List<Path> excludeFiles = new ArrayList<>();

    @Option(names = "--watch", description = "Stay, and sync whenever something in the project changes, until Ctrl-C.")
    boolean watch;

    @Option(names = "--dry-run", description = "Print what would be sent, changed and deleted, and do nothing.")
    boolean dryRun;

    @Option(names = "--no-delete", description = "Keep what is in the guest and not in the project.")
    boolean keep;

    @Option(names = "--force", description = "Also sync into a directory that no sync made, and delete there "
            + "what the project lacks.")
    boolean force;

    @Option(names = "--engine", defaultValue = "auto", paramLabel = "ENGINE",
            description = "rsync, tar (built in), or auto: rsync if this machine and the guest have it (default: "
                    + "${DEFAULT-VALUE}).")
    Engine engine;

    @Option(names = "-v", scope = ScopeType.INHERIT, description = "Echo every external command.")
    boolean verbose;

    private Path vmDir;
    private Path project;
    private Guest guest;
    private final Programs programs = new Programs(this::echo);
    /** The rules of the user come first: so they can make exceptions from the built-in ones. */
    private final List<String> patterns = new ArrayList<>();
    private Source source;
    private boolean rsyncHere;
    private boolean reported;
    private long started;

    public static void main(String... args) {
        writeUtf8();
        exit("vm-sync", commandLine().execute(args));
    }

    static CommandLine commandLine() {
        return commandLine(new VmSync(), readSettings(System.getenv(), Path.of("")));
    }

    @Override
    public Integer call() throws IOException {
        readPlaces();
        if (watch && dryRun) {
            throw new VmException(2, "--watch and --dry-run exclude each other");
        } else if (Files.exists(requireProject().resolve("VmSync.java"))
                && Files.exists(project.resolve("jbang-catalog.json"))) {
            tell("vm-sync: warning: " + project
                    + " is the checkout of these scripts; VM_PROJECT chooses another project");
        }
        remoteDir = remoteDir();
        project = project.toRealPath();
        refuseHome();
        String lost = problem(new Settings(), List.of(project.toString())); // what was typed may be a link to it
        if (lost != null) {
            throw new VmException(2, "the project is " + quoted(bytesOf(project)) + ": " + lost);
        }
        readPatterns();
        rsyncHere = engine != Engine.TAR && RsyncEngine.isHere(programs);
        try {
            return watch ? watch() : report(sync(null), "");
        } finally {
            guest.close();
        }
    }

    @Command(name = "pull",
            description = {"Bring a file, or what is in a directory, back from the guest.", "",
                "REMOTE names one file; with a slash at its end it names a directory. Files in LOCAL are overwritten "
                    + "and none is deleted. Nothing is written outside LOCAL, whatever the guest sends. Absolute "
                    + "names, '..', links that lead out, device nodes, .git, HEAD (which makes a repository of git), "
                    + "vm.env, jbang-catalog.json and jbang.properties are left out; a message names them, and the "
                    + "exit code is then 1."},
            footer = {"  vm-sync pull stats/testdata/fixtures/    # to the same place in VM_PROJECT",
                "  vm-sync pull coverage.out .",
                "  vm-sync pull --max-size 4G /var/crash/ crash",
                "  vm-sync pull /var/log/messages guest.log"})
    int pull(@Parameters(index = "0", paramLabel = "REMOTE",
            description = "In the guest; relative to VM_REMOTE_DIR. A file, or with a slash at its end a directory.")
            String remote,
            @Parameters(index = "1", arity = "0..1", paramLabel = "LOCAL",
                    description = "The directory to fill; for a file the directory to put it in (it exists, or has a "
                    + "slash at its end), else its new name (default: the same place in VM_PROJECT).") String local,
            @Option(names = "--max-size", defaultValue = "1G", paramLabel = "SIZE",
                    converter = Size.class,
                    description = "Stop if the files are larger than this in total, such as 512M or 2G (default: "
                    + "${DEFAULT-VALUE}).")
            long maxSize) throws IOException {
        boolean tree = remote.endsWith("/");
        for (OptionSpec option : spec.commandLine().getParseResult().matchedOptions()) {
            if (option.scopeType() != ScopeType.INHERIT) {
                throw new VmException(2, option.longestName() + " goes with a sync, not with pull");
            }
        }
        if (remote.matches("(?s)(.*/)?\\.{0,2}") && !tree) {
            throw new VmException(2, "REMOTE: '" + remote + "' names no file; for what is in a directory write '"
                    + (remote.isEmpty() ? "." : remote) + "/'");
        } else if (local == null && remote.startsWith("/")) {
            throw new VmException(2, "LOCAL is missing: name the file or directory for " + remote);
        }
        readPlaces();
        started = System.nanoTime();
        String from = (remote.startsWith("/") ? remote : remoteDir() + "/" + remote).replaceAll("(?<=.)/+$", "");
        Pull pull = newPull(remote, local, tree ? null : bytesOf(from.substring(from.lastIndexOf('/') + 1)), maxSize);
        guest.requireRunning();
        try {
            Answer answer = guest.exec("sh -s", in -> in.write(bytes(Pull.script(bytesOf(from), tree))), pull::unpack);
            if (answer.status() == Pull.REFUSED) {
                throw new VmException(1, from + " " + answer.errors());
            } else if (answer.status() != 0) {
                pull.leftOut.add("the guest's tar failed: " + answer.errors());
            } else if (!tree && pull.files == 0 && pull.leftOut.isEmpty()) {
                throw new VmException(1, "the guest did not send " + from + ": nothing was written");
            }
        } finally {
            guest.close();
            pull.leftOut.forEach(this::tell);
        }
        spec.commandLine().getOut().printf(Locale.ROOT, "pulled %s: %s, %.2f s%n", from, pull.written(), seconds());
        return pull.leftOut.isEmpty() ? 0 : 1;
    }

    /** Decides where a pull may write, before anything is asked of the guest. {@code file} is null for a tree. */
    private Pull newPull(String remote, String local, String file, long maxSize) throws IOException {
        Path place = local == null ? project.resolve(remote).normalize() : userPath(local);
        if (local != null) {
            written(place);
            boolean into = file != null && (local.endsWith("/") || Files.isDirectory(place));
            place = into ? path(place, file) : place;
        }
        if (file != null && Files.isDirectory(place)) {
            throw new VmException(2, place + " is a directory here: to fill it, write '" + remote + "/'");
        }
        Path directory = file == null ? place : place.getParent();
        Path base = directory;
        if (local == null) { // the project's links may lead anywhere
            base = requireProject().toRealPath();
            directory = realPath(directory);
        }
        if (!directory.startsWith(base)) {
            throw new VmException(2, "the same place in the project is " + directory + ", which is outside " + base
                    + ": name a directory or file as LOCAL");
        }
        List<String> parts = Pull.parts(nameOf(base, file == null ? directory
                : directory.resolve(place.getFileName())));
        for (String part : parts) {
            String refusal = Pull.refusal(part);
            if (refusal != null) {
                throw new VmException(2, place + ": " + refusal + ", so it is not pulled: name another LOCAL");
            }
        }
        return new Pull(base, parts, file, maxSize);
    }

    // What the options say

    private void readPlaces() {
        vmDir = userPath(dirOption);
        project = userPath(projectOption);
        guest = new Guest(vmDir, name, programs);
    }

    private void readPatterns() {
        excludes.forEach(pattern -> patterns.add(bytesOf(pattern)));
        for (Path file : excludeFiles) {
            try {
                Files.readString(file, ISO_8859_1).lines().filter(line -> !line.isBlank() && !line.matches("[;#].*"))
                        .forEach(patterns::add);
            } catch (IOException unreadable) {
                throw new VmException(2, "--exclude-from: " + file
                        + " cannot be read: choose a file with a pattern a line");
            }
        }
        Rules.of(patterns); // which refuses a wrong one
    }

    private Path requireProject() {
        if (!Files.isDirectory(project)) {
            throw new VmException(2, originOf(spec, "--project") + ": " + project + " is not a directory");
        }
        return project;
    }

    /** A home directory holds its owner's keys, so it is sent only if --project names it. */
    private void refuseHome() throws IOException {
        String variable = System.getenv().getOrDefault("HOME", "");
        Path home = realPath(ROOT.resolve(variable.isEmpty() ? System.getProperty("user.home") : variable));
        if (home.startsWith(project) && !spec.commandLine().getParseResult().hasMatchedOption("--project")) {
            throw new VmException(2, "the project would be " + project + ", which is " + (project.equals(ROOT)
                    ? "the root" : "your home directory or above it") + ": set VM_PROJECT to a project, or name "
                    + "this one with --project");
        }
    }

    // shared:realpath
    /** The real path; its last parts need not exist yet. */
    private static Path realPath(Path path) throws IOException {
        return Files.exists(path) ? path.toRealPath() : realPath(path.getParent()).resolve(path.getFileName());
    }
    // end shared:realpath

    private String remoteDir() {
        try {
            return remoteDir != null ? remoteDir : new RemoteDirectory().convert("/root/"
                    + ROOT.relativize(project).getFileName());
        } catch (TypeConversionException unfit) {
            throw new VmException(2, unfit.getMessage() + " (from the project's name): set VM_REMOTE_DIR");
        }
    }

    /** An absolute path in the guest that a sync may empty: not the root or a system directory, and without "..". */
    static final class RemoteDirectory implements ITypeConverter<String> {
        private static final Pattern SYSTEM = Pattern.compile(
                "/|/(bin|boot|dev|etc|lib|libexec|modules|proc|rescue|sbin|sys)(/.*)?"
                + "|/(root|home|usr|var|tmp|mnt|media|build|compat|opt|pfs)"
                + "|/root/\\.(ssh|vm-sync)(/.*)?|/(usr|var|usr/local)/[^/]+");

        @Override
        public String convert(String value) {
            String path = value.replaceAll("//+", "/").replaceAll("(?<=.)/$", "");
            if (!path.startsWith("/") || (path + "/").matches("(?s).*(/\\.\\.?/|\\p{Cntrl}).*")) {
                throw new TypeConversionException("'" + value
                        + "' is no absolute path without '.' and '..', as /root/project is");
            } else if (SYSTEM.matcher(path).matches()) {
                throw new TypeConversionException("'" + value
                        + "' belongs to the guest's system, and a sync would empty it");
            }
            return path;
        }
    }

    /** A size as VM_MEMORY has it, in bytes. */
    static final class Size implements ITypeConverter<Long> {
        @Override
        public Long convert(String value) {
            String digits = matching(value, "[1-9]\\d{0,6}[MG]", "a size such as 2G or 512M").replaceAll("\\D", "");
            return Long.parseLong(digits) << (value.endsWith("G") ? 30 : 20);
        }
    }

    // The acts, and what is said about them

    /** Only one sync of a directory runs at a time. A watch is set up anew before it, so that no change is missed. */
    private Outcome sync(Watch changes) throws IOException {
        started = System.nanoTime();
        guest.requireRunning();
        String key = UUID.nameUUIDFromBytes(remoteDir.getBytes(UTF_8)).toString();
        try (Journal journal = dryRun ? null : new Journal(
                privateDirectory(vmDir.resolve(name + ".sync")).resolve(key), patterns, this::tell)) {
            source = Source.read(project, vmDir, bytesOf(remoteDir), patterns, journal, programs);
            if (changes != null) {
                changes.start(source.rules());
            }
            Destination to = new Destination(bytesOf(remoteDir), key, bytesOf(projectOrigin(project)),
                    originOf(spec, "--remote-dir") + ": " + remoteDir, force);
            Outcome outcome = send(new Job(project, source, to, !keep, dryRun, this::tell));
            if (journal != null) {
                journal.completed();
            }
            return outcome;
        }
    }

    private Outcome send(Job job) {
        Sender sender = new RsyncEngine(programs, guest);
        Look look = rsyncHere ? look(job, sender, "") : null;
        if (look == null || look.rsync().isEmpty()) {
            if (engine == Engine.RSYNC) {
                throw new VmException(69, (rsyncHere ? "the guest has no rsync (pkg install rsync)"
                        : "this machine has no rsync 3.1 or newer") + "; use " + withOption("--engine tar"));
            }
            sender = new BuiltInEngine(guest);
            look = look(job, sender, Listing.SCRIPT);
        }
        Outcome outcome = sender.sync(job, look);
        boolean moved = outcome.all(Kind.MKDIR, Kind.LINK, Kind.DELETE).findAny().isPresent();
        if (!dryRun && moved && !source.gitConfigs().isEmpty()
                && sender.inGuest(job.to().configsAgainScript(source)).status() != 0) {
            throw new VmException(1, "the guest could not write the configuration of git in " + job.to().label());
        }
        boolean noted = dryRun || !outcome.complete() || look.origin().equals(job.to().origin());
        if (!noted && sender.inGuest(job.to().originScript(true)).status() != 0) {
            throw new VmException(1, job.to().label() + ": the guest could not record which project this "
                    + "is: free some space there, then sync again");
        }
        return outcome;
    }

    /** Looks at the directory in the guest, and prepares it; tells which other project is replaced. */
    private Look look(Job job, Sender sender, String more) {
        Look look = Look.of(job.to().label(), sender.inGuest(job.to().lookScript()
                + (dryRun ? "" : job.to().prepareScript(source)) + more));
        boolean again = rsyncHere && !more.isEmpty(); // because the guest has no rsync
        if (job.to().isForeign(look.origin()) && !again) {
            tell("vm-sync: replaces " + remoteDir + ", which came from " + quoted(cut(look.origin())));
        }
        return look;
    }

    /**
     * Syncs at once, then after each burst of changes, and after the VM was restarted or restored.
     */
    private int watch() throws IOException {
        try (Watch changes = new Watch(project)) {
            String synced = "";
            String trouble = "";
            for (boolean due = true; canAnswer(); due |= changes.await()) {
                String vm = guest.runningSince();
                if (vm.equals(synced) && !due) {
                    continue;
                } else if (!vm.equals(synced)) {
                    guest.close();
                }
                try {
                    Outcome outcome = sync(changes);
                    if (!vm.equals(synced) || !outcome.changes().isEmpty() || !outcome.complete()) {
                        report(outcome, String.format(Locale.ROOT, "%tT ", LocalTime.now()));
                    }
                    synced = vm;
                    trouble = "";
                    due = false;
                } catch (VmException failed) {
                    if (failed.exitCode == 2 || failed.exitCode == 130) {
                        throw failed;
                    } else if (!failed.getMessage().equals(trouble)) {
                        tell("vm-sync: " + failed.getMessage() + " (waiting)");
                    }
                    trouble = failed.getMessage();
                    synced = "";
                }
            }
            return 1;
        }
    }

    private int report(Outcome outcome, String time) {
        outcome.messages().forEach(this::tell);
        if (!reported && source.needsMore()) {
            tell("vm-sync: warning: git in the guest cannot read this checkout, because it is a worktree, a submodule "
                    + "or a shared clone, and part of it is outside the project: if a build there fails with 'error "
                    + "obtaining VCS status', use vm-test --env GOFLAGS=-buildvcs=false, or sync a plain clone");
        }
        PrintWriter out = spec.commandLine().getOut();
        String line = time + (dryRun ? "would sync " : "synced ") + name + ":" + remoteDir + ": "
                + outcome.summary(seconds())
                + (reported || source.leftOut().isEmpty() ? "" : "; left out: " + firstTen(source.leftOut()));
        reported = true;
        if (dryRun) {
            outcome.changes().forEach(out::println);
            tell(line);
        } else {
            out.println(line);
        }
        out.flush();
        return outcome.complete() ? 0 : 1;
    }

    private void tell(String line) {
        spec.commandLine().getErr().println(printable(line));
        spec.commandLine().getErr().flush();
    }

    private void echo(String command) {
        if (verbose) {
            tell("+ " + command);
        }
    }

    private double seconds() {
        return (System.nanoTime() - started) / 1e9;
    }

    // The parts: values that go from one to the next

    /** What one sync is to do. */
    record Job(Path project, Source source, Destination to, boolean delete, boolean dryRun, Consumer<String> tell) {
        /** Names what only the guest has, before it is deleted there: a program in it may have made it as a result. */
        void tellDeletions(Stream<Change> changes) {
            Set<String> deleted = names(changes, Kind.DELETE);
            deleted.removeAll(deleted.stream().map(VmSync::parent).collect(Collectors.toSet())); // content is enough
            if (!deleted.isEmpty()) {
                tell.accept("vm-sync: deletes what only the guest has: " + firstTen(deleted));
            }
        }
    }

    enum Kind { SEND, LINK, MKDIR, ATTRS, DELETE }

    /** One difference that a sync removes, or would. */
    record Change(Kind kind, String name, Item item) {
        @Override
        public String toString() {
            return kind.name().toLowerCase(Locale.ROOT) + " " + quoted(name);
        }
    }

    private static Set<String> names(Stream<Change> changes, Kind kind) {
        return changes.filter(change -> change.kind() == kind).map(Change::name)
                .collect(Collectors.toCollection(TreeSet::new));
    }

    /** What a sync did, with messages for the user. It is incomplete if something could not be copied. */
    record Outcome(List<Change> changes, List<String> messages, boolean complete, String by) {
        private Stream<Change> all(Kind... kinds) {
            return changes.stream().filter(change -> List.of(kinds).contains(change.kind()));
        }

        String summary(double seconds) {
            return String.format(Locale.ROOT, "%d sent, %d deleted, %d bytes, %.2f s (%s)",
                    all(Kind.SEND, Kind.LINK).count(), all(Kind.DELETE).count(),
                    all(Kind.SEND).mapToLong(change -> change.item().size()).sum(), seconds, by);
        }
    }

    // Rules: what is excluded

    /** What stays out: rsync's exclude and include patterns, the first that matches decides. */
    record Rules(List<Rule> list) {
        /** {@code text} is the rule as rsync reads it, "- pattern" or "+ pattern". */
        record Rule(boolean hides, boolean directoriesOnly, boolean wholePath, Pattern pattern, String text) {}

        private static final Pattern WILDCARD = Pattern.compile("[*?\\[]");
        private static final Pattern TOKEN = Pattern.compile(
                "(?s)(^\\*\\*/)|(/\\*{3}$)|(\\*{2,})|(\\*)|(\\?)|\\[([!^]?)(]?[^]]*)]|\\\\?(.)");

        static Rules of(List<String> lines) {
            return new Rules(lines.stream().map(Rules::rule).toList());
        }

        private static Rule rule(String line) {
            String pattern = line.matches("(?s)[+-] .*") ? line.substring(2) : line;
            if (pattern.isEmpty()) {
                throw new VmException(2, "--exclude: an empty pattern; patterns are such as '/docs/' or '*.log'");
            }
            boolean hides = !line.startsWith("+ ");
            String body = pattern.replaceAll("(?<=.)/$", "");
            boolean path = body.contains("/") || body.contains("**");
            String start = path && !body.startsWith("/") ? "(?:.*/)?" : "";
            try {
                return new Rule(hides, body.length() < pattern.length(), path, Pattern.compile(start
                        + regex(body.replaceAll("^/", "")), Pattern.DOTALL), (hides ? "- " : "+ ") + pattern);
            } catch (PatternSyntaxException wrong) {
                throw new VmException(2, "--exclude: " + quoted(pattern)
                        + " has a '[' without its ']', or a wrong range");
            }
        }

        /** As rsync reads them. */
        String text() {
            return list.stream().map(rule -> rule.text() + "\0").collect(Collectors.joining());
        }

        /** Whether a rule excludes an entry; that none excludes its directory, the caller knows. */
        boolean hides(String name, boolean directory) {
            String last = last(name);
            return list.stream().filter(rule -> (directory || !rule.directoriesOnly())
                    && rule.pattern().matcher(rule.wholePath() ? name : last).matches()).findFirst().map(Rule::hides)
                    .orElse(false);
        }

        /** Whether a rule excludes an entry, or a directory above it. A directory's name ends in a slash. */
        boolean hidesPath(String name) {
            return !name.endsWith("/") && hides(name, false) || IntStream.range(0, name.length())
                    .filter(i -> name.charAt(i) == '/').anyMatch(i -> hides(name.substring(0, i), true));
        }

        /** A pattern for this name alone: a backslash escapes only where there is a wildcard. */
        static String literal(String name) {
            return WILDCARD.matcher(name).find() ? name.replaceAll("([\\\\*?\\[])", "\\\\$1") : name;
        }

        private static String regex(String glob) {
            return !WILDCARD.matcher(glob).find() ? Pattern.quote(glob)
                    : TOKEN.matcher(glob).replaceAll(token -> Matcher.quoteReplacement(regex(token)));
        }

        private static String regex(MatchResult token) {
            if (token.group(7) != null) {
                return (token.group(6).isEmpty() ? "[" : "[^/") + token.group(7).replaceAll("([\\[&^\\]])", "\\\\$1")
                        + "]";
            }
            return token.group(1) != null ? "(?:.*/)?" : token.group(2) != null ? "(?:/.*)?"
                    : token.group(3) != null ? ".*" : token.group(4) != null ? "[^/]*"
                    : token.group(5) != null ? "[^/]" : Pattern.quote(token.group(8));
        }
    }

    /**
     * What of the project is sent, found out anew for each sync: the rules; what is left out without an --exclude; of
     * git's configurations, which may hold credentials, what the guest gets instead; which files are sent even if they
     * look the same there; and whether git needs more than the project.
     */
    record Source(Rules rules, Set<String> leftOut, Map<String, String> gitConfigs, Set<String> resend,
            boolean needsMore) {
        /** What git needs in .git. The rest is about this machine, or may hold credentials, as logs and config do. */
        private static final List<String> GIT_NEEDS = List.of("HEAD", "index", "sharedindex.*", "objects/", "refs/",
                "packed-refs", "reftable/", "info/", "modules/", "shallow");
        private static final Pattern HARMLESS_SECTION = Pattern.compile(
                "(?i)\\[(core|extensions|filter|branch|submodule|index)( \"[^\"@:]*\")?\\]");
        /** No key whose value is a program with its arguments, no URL, and no comment. */
        private static final Pattern HARMLESS_LINE = Pattern.compile(
                "(?i)(?!sshcommand|askpass|gitproxy|editor|pager|fsmonitor|alternaterefs)"
                + "[a-z][\\w-]*([ \t]*=[^:@\\\\;#!=]*)?");
        private static final Pattern CREDENTIAL = Pattern.compile(
                "(?i)extraheader|helper|pass|token|secret|cookie|://[^/\\s]*@");

        static Source read(Path project, Path vmDir, String remoteDir, List<String> patterns, Journal journal,
                Programs programs) throws IOException {
            Rules users = Rules.of(patterns);
            List<String> lines = new ArrayList<>();
            Map<String, String> gitConfigs = new TreeMap<>();
            Set<String> resend = new TreeSet<>();
            Set<String> leftOut = new TreeSet<>();
            for (String name : find(project, journal, programs)) {
                String git = last(name).equals(".git") ? name : parent(name);
                if (last(name).equals(".git") || last(name).equals("HEAD") && !last(git).equals(".git")
                        && Files.isDirectory(path(project, git).resolve("objects"))) {
                    addGitDirectory(project, git, users, lines, gitConfigs, leftOut);
                }
                if (journal != null && journal.mayDiffer(path(project, name))) {
                    resend.add(name);
                }
            }
            lines.addAll(patterns);
            Path inside = vmDir.toRealPath();
            if (inside.startsWith(project) && !inside.equals(project)) {
                lines.add("/" + Rules.literal(nameOf(project, inside)) + "/");
            }
            for (String binary : List.of(last(bytesOf(project)), last(remoteDir))) {
                if (!binary.isEmpty()) { // else the project is the root directory
                    lines.add("+ /" + Rules.literal(binary) + "/"); // a directory of that name is source
                    lines.add("/" + Rules.literal(binary));
                }
            }
            trackedDatabases(project, programs).forEach(name -> lines.add("+ /" + Rules.literal(name)));
            lines.add("/*.db");
            Rules all = Rules.of(lines);
            try (DirectoryStream<Path> top = Files.newDirectoryStream(project)) {
                top.forEach(path -> {
                    boolean directory = Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS);
                    String name = nameOf(project, path);
                    if (all.hides(name, directory) && !users.hides(name, directory)) {
                        leftOut.add(directory ? name + "/" : name);
                    }
                });
            }
            resend.removeIf(all::hidesPath);
            Path git = project.resolve(".git");
            boolean needsMore = Files.isRegularFile(git) || Files.isSymbolicLink(git)
                    || Files.exists(git.resolve("objects/info/alternates"));
            return new Source(all, leftOut, gitConfigs, resend, needsMore);
        }

        /** What shows a repository of git, and what was modified since the last sync began. */
        private static List<String> find(Path project, Journal journal, Programs programs) throws IOException {
            List<String> command = new ArrayList<>(List.of("find", project.toString(), "(", "-name", "HEAD", "-o",
                    "-name", ".git", "-type", "d"));
            if (journal != null) {
                command.addAll(List.of("-o", "-type", "f", "-newer", journal.reference().toString()));
            }
            command.addAll(List.of(")", "-print0"));
            return programs.run(command, "").names().map(name -> nameOf(project, path(ROOT, name))).toList();
        }

        /** Nothing that the checkout's configuration names is run here. */
        private static List<String> trackedDatabases(Path project, Programs programs) {
            try {
                return programs.run(List.of("git", "-C", project.toString(), "-c", "core.fsmonitor=false", "-c",
                        "core.hooksPath=/dev/null", "ls-files", "-z", "--", ":(glob)*.db", ":(glob)*.db/**"), "")
                        .names().map(name -> name.replaceFirst("(?s)/.*", "/")).distinct().toList();
            } catch (VmException noGit) {
                return List.of();
            }
        }

        /**
         * Of .git, also of submodules and nested checkouts, the guest gets what git needs to read the repository. A
         * bare repository elsewhere may be a test's data: only a configuration with a credential is replaced.
         */
        private static void addGitDirectory(Path project, String name, Rules users, List<String> rules,
                Map<String, String> configs, Set<String> leftOut) {
            String directory = name.equals(".") ? "" : name + "/";
            String text = readSmall(path(project, directory + "config"));
            if (("/" + directory).contains("/.git/")) {
                GIT_NEEDS.stream().filter(needed -> !users.hidesPath(directory + needed)).forEach(needed ->
                        rules.add("+ /" + Rules.literal(directory) + needed));
                rules.add("/" + Rules.literal(directory) + "*");
            } else if (CREDENTIAL.matcher(text).find()) {
                rules.add("/" + Rules.literal(directory) + "config");
                leftOut.add(directory + "config");
            } else {
                return;
            }
            if (!users.hidesPath(directory + "config")) {
                configs.put(directory + "config", withoutCredentials(text));
            }
        }

        /** A text file of at most 1 MB; else "". */
        private static String readSmall(Path file) {
            try {
                boolean small = Files.isRegularFile(file) && Files.size(file) < 1 << 20;
                return small ? Files.readString(file, ISO_8859_1) : "";
            } catch (IOException unreadable) {
                return "";
            }
        }

        /** Of a git configuration, the lines that are needed to read the repository. No URL is one, and no comment. */
        static String withoutCredentials(String config) {
            StringBuilder kept = new StringBuilder();
            boolean harmless = false;
            String wholeLines = config.replaceAll("\\\\\r?\n", ""); // a line goes on after a backslash
            for (String line : wholeLines.lines().map(String::strip).toList()) {
                boolean header = line.startsWith("[");
                harmless = header ? HARMLESS_SECTION.matcher(line).matches() : harmless;
                if (harmless && (header || HARMLESS_LINE.matcher(line).matches())) {
                    kept.append(line).append('\n');
                }
            }
            return kept.toString();
        }
    }

    /**
     * The lock of a remote directory, and when its last complete sync with these patterns began. rsync compares whole
     * seconds: a file that was sent and then written again in the same second would look the same for ever. So what was
     * written since that sync began is sent, whatever it looks like in the guest. The time is in a file of its own,
     * because Java drops a process's lock on a file when it closes any other descriptor of it.
     */
    static final class Journal implements AutoCloseable {
        private static final long SECOND = 1_000_000_000;
        private final FileChannel channel;
        private final Path time;
        private final long began;
        private final long lastBegan;

        Journal(Path file, List<String> patterns, Consumer<String> tell) throws IOException {
            channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
            for (int tenth = 0; channel.tryLock() == null; tenth++) {
                if (tenth == 0) {
                    tell.accept("vm-sync: waiting for another vm-sync of this directory");
                } else if (tenth == 6000) {
                    channel.close();
                    throw new VmException(69, "another vm-sync has been at work for ten minutes: end it");
                }
                LockSupport.parkNanos(100_000_000);
            }
            String hash = UUID.nameUUIDFromBytes(bytes(String.join("\0", patterns))).toString().substring(0, 8);
            time = file.resolveSibling(file.getFileName() + "-" + hash + ".time");
            began = ChronoUnit.NANOS.between(Instant.EPOCH, Instant.now());
            lastBegan = Files.exists(time) ? read(time) : oldest(file);
        }

        private long read(Path note) throws IOException {
            String text = Files.readString(note, ISO_8859_1);
            return text.matches("\\d{1,18}|[0-8]\\d{18}") ? Long.parseLong(text) : began;
        }

        /** For other patterns: what they left out may have changed since any earlier sync. */
        private long oldest(Path file) throws IOException {
            long oldest = began;
            try (DirectoryStream<Path> notes = Files.newDirectoryStream(file.getParent(),
                    file.getFileName() + "-*.time")) {
                for (Path note : notes) {
                    oldest = Math.min(oldest, read(note));
                }
            }
            return oldest;
        }

        /** A file with a date shortly before that sync. */
        Path reference() throws IOException {
            if (!Files.exists(time)) {
                note(lastBegan); // this sync may be interrupted
            }
            return Files.setLastModifiedTime(time, FileTime.from(lastBegan / SECOND - 1, TimeUnit.SECONDS));
        }

        /** Files of the future were not written since. */
        boolean mayDiffer(Path path) {
            try {
                long time = Item.of(path).time();
                long lag = time % SECOND == 0 ? SECOND : SECOND / 50; // the clock of files lags a few milliseconds
                return time >= lastBegan - lag && time <= began;
            } catch (IOException gone) {
                return false;
            }
        }

        void completed() {
            note(began);
        }

        private void note(long when) {
            Path temporary = time.resolveSibling(time.getFileName() + ".new");
            try {
                Files.writeString(temporary, String.valueOf(when));
                Files.move(temporary, time, StandardCopyOption.ATOMIC_MOVE);
            } catch (IOException refused) {
                throw new VmException(1, "cannot write " + time + " (" + reason(refused) + "): make room, then sync "
                        + "again");
            }
        }

        @Override
        public void close() throws IOException {
            channel.close();
        }
    }

    // In the guest: plain sh, and a BSD's tools

    /** What a command left. */
    record Answer(int status, byte[] out, String errors) {
        String text() {
            return new String(out, ISO_8859_1);
        }

        /** Of a program that ends each with a NUL. */
        Stream<String> names() {
            return Stream.of(text().split("\0")).filter(name -> !name.isEmpty());
        }
    }

    /**
     * The directory in the guest: whether a sync may change it, and from which project it came. The guest notes both in
     * {@code ~/.vm-sync}.
     */
    record Destination(String directory, String key, String origin, String label, boolean force) {
        private static final int REFUSED = 67;
        private static final String INCOMPLETE = " (incomplete)";
        /** Where the guest unpacks what is not yet complete: inside the tree, and so on its file system. */
        static final String PART = ".vm-sync-part";

        boolean isForeign(String from) {
            return !List.of("", "unknown", origin, origin + INCOMPLETE).contains(from);
        }

        /**
         * Whether files of the same size and date are the same: not if the guest's are those of another project. Of
         * this project, the journal knows which may differ.
         */
        boolean datesCount(Look look) {
            return List.of("", origin).contains(look.origin());
        }

        String lookScript() {
            return """
                    PATH=$PATH:/usr/local/bin:/usr/local/sbin LC_ALL=C
                    export PATH LC_ALL
                    umask 022
                    refuse() { echo "$1" >&2; exit %s; }
                    d=%s s=$HOME/.vm-sync/%s made= inode= from=
                    look() { inode=$(ls -di "$d/." 2>/dev/null) && set -- $inode && inode=$1; }
                    [ ! -f "$s/made" ] || read -r made <"$s/made"
                    if ! look || [ "$inode" != "$made" ]; then
                      if [ -e "$d" ] || [ -L "$d" ]; then
                        [ -d "$d" ] || refuse 'is not a directory in the guest: choose another'
                        [ -z "$(ls -A "$d/.")" ] || { from=unknown && %s; } ||
                          refuse 'was not made by vm-sync. A sync would delete files there that the project does not \
                    have: choose another directory, or use '%s
                      fi
                      made=
                    fi
                    if [ -n "$made" ]; then
                      [ ! -f "$s/origin" ] || IFS= read -r from <"$s/origin"
                      [ -n "$from" ] || from=unknown
                    fi
                    echo "vm-sync rsync=$(command -v rsync)"
                    printf 'origin=%%.4200s\n' "$from"
                    """.formatted(REFUSED, word(directory), key, force, word(withOption("--force")));
        }

        /**
         * Makes the directory and marks it, by its inode, as a sync's own; gives files that may differ a time that no
         * file of the project has; and puts git's configurations in place, on a full disk rather none than an old one.
         */
        String prepareScript(Source source) {
            StringBuilder script = new StringBuilder("""
                    if [ -z "$made" ] || [ -e "$d/%1$s" ] || [ ! -L "$s/tree" ]; then
                      mkdir -p "$d" "$s" && rm -rf "$d/%1$s" "$s/tree" && ln -s "$d" "$s/tree" &&
                        look && echo "$inode" >"$s/made.new" && mv -f "$s/made.new" "$s/made" || exit 73
                    fi
                    cd "$d" || exit 73
                    old() {
                      for f do shift; [ ! -f "$f" ] || [ -L "$f" ] || set -- "$@" "$f"; done
                      [ $# = 0 ] || touch -c -t 197101010000 "$@"
                    }
                    """.formatted(PART)).append(originScript(false));
            step(script, "old", "./", source.resend(), "");
            return script.append(configsScript(source)).toString();
        }

        /** Git's configurations, not through a link: it may lead to another repository, or out of the directory. */
        private static String configsScript(Source source) {
            StringBuilder script = new StringBuilder("""
                    put() {
                      p=$1
                      while p=${p%/*} && [ "$p" != . ]; do [ ! -L "$p" ] || return 0; done
                      [ ! -L "$1" ] && [ "$(cat "$1" 2>/dev/null)" = "$2" ] || { mkdir -p "${1%/*}" &&
                        printf '%s\\n' "$2" >"$1.vm-sync" && mv -f "$1.vm-sync" "$1"; } || rm -f "$1"
                    }
                    """);
            source.gitConfigs().forEach((file, content) -> script.append("put ").append(word("./" + file))
                    .append(' ').append(word(content.strip())).append('\n'));
            return script.toString();
        }

        /** The same once more: a link, or a file in place of a directory, stood in the way until now. */
        String configsAgainScript(Source source) {
            return "PATH=$PATH:/usr/local/bin; umask 022; cd " + word(directory) + " || exit 73\n"
                    + configsScript(source);
        }

        /**
         * Notes where the directory comes from, and when. Until a sync from another project is complete, the directory
         * holds files of both, and " (incomplete)" is noted. On a full disk an old time may stay, never a wrong origin.
         */
        String originScript(boolean complete) {
            return "s=$HOME/.vm-sync/" + key + " o=" + word(origin) + "\n"
                    + (complete ? "" : "[ \"$from\" = \"$o\" ] || o=\"$o" + INCOMPLETE + "\"\n")
                    + "printf '%s\\n' \"$o\" " + Instant.now().truncatedTo(ChronoUnit.SECONDS)
                    + " >\"$s/origin.new\" && mv -f \"$s/origin.new\" \"$s/origin\" "
                    + "|| [ \"$from\" = \"$o\" ] || exit 73\n";
        }
    }

    /** What lookScript prints: where the guest's rsync is, if it has one; the origin; the output of what follows it. */
    record Look(String rsync, String origin, String rest) {
        private static final Pattern RESPONSE = Pattern.compile(
                "(?s).*?vm-sync rsync=([^\n]*)\norigin=([^\n]*)\n(.*)");

        static Look of(String label, Answer answer) {
            if (answer.status() != 0) {
                throw new VmException(answer.status() == Destination.REFUSED ? 2 : 1, label + " "
                        + oneLine(answer.errors()));
            }
            Matcher response = RESPONSE.matcher(answer.text());
            if (!response.matches()) { // its .profile ended it, say
                throw new VmException(69, "the guest's sh ended early (look at root's .profile there); it printed: "
                        + quoted(cut(answer.text().replaceFirst("(?s)\n.*", ""))));
            }
            String rsync = response.group(1).matches("/[\\w./+-]+") ? response.group(1) : ""; // an argument of ssh
            return new Look(rsync, response.group(2), response.group(3));
        }
    }

    // One comparison

    /** An entry of a tree: 'f', 'd', 'l', or 's' for what is not synced; permissions; nanoseconds; a link's target. */
    record Item(char type, int mode, long size, long time, String target) {
        static Item of(int mode, long size, long time, String target) {
            char type = switch (mode >> 12) {
                case 8 -> 'f';
                case 4 -> 'd';
                case 10 -> 'l';
                default -> 's';
            };
            return new Item(type, mode & 07777, type == 'f' ? size : 0, time, target);
        }

        static Item of(Path path) throws IOException {
            Map<String, Object> found = Files.readAttributes(path, "unix:mode,size,lastModifiedTime",
                    LinkOption.NOFOLLOW_LINKS);
            int mode = (Integer) found.get("mode");
            return of(mode, (Long) found.get("size"), ((FileTime) found.get("lastModifiedTime"))
                    .to(TimeUnit.NANOSECONDS), mode >> 12 == 10 ? bytesOf(Files.readSymbolicLink(path)) : "");
        }

        /** By the microsecond, which HAMMER2 keeps, if the guest has fractions of a second; else by the second. */
        boolean sameTime(Item guest) {
            long unit = guest.time % 1_000_000_000 == 0 ? 1_000_000_000 : 1000;
            return Math.floorDiv(time, unit) == Math.floorDiv(guest.time, unit);
        }
    }

    /** A tree, by name, parents before children, "." first: of the project, or of the guest's directory. */
    static final class Listing {
        /** All names with a NUL after each, one more NUL, then a line for each in the same order. */
        static final String SCRIPT = """
                [ -d "$d" ] || exit 0
                cd "$d" && n=$(mktemp /tmp/vm-sync.XXXXXXXX) || exit 73
                find . -print0 >"$n"; cat "$n"; printf '\\000'
                xargs -0 stat -f '%p %z %Fm %Y|' <"$n"; rm -f "$n"
                """;
        private static final Pattern LINE = Pattern.compile(
                "([0-7]{1,6}) (\\d{1,18}) (-?\\d{1,18})\\.(\\d{9})\\d* ");

        /** {@code messages} gets what is unreadable. */
        static TreeMap<String, Item> of(Path root, Rules rules, List<String> messages) {
            TreeMap<String, Item> tree = new TreeMap<>();
            walk(root, root, rules, messages, tree::put);
            tree.values().removeIf(item -> item.type() == 's');
            return tree;
        }

        /** What is not excluded of a tree, from {@code top} on, directories before what is in them. */
        static void walk(Path root, Path top, Rules rules, List<String> messages, BiConsumer<String, Item> visitor) {
            String name = nameOf(root, top);
            try {
                Item item = Item.of(top);
                if (!top.equals(root) && rules.hides(name, item.type() == 'd')) {
                    return;
                }
                visitor.accept(name, item);
                if (item.type() == 'd') {
                    try (DirectoryStream<Path> entries = Files.newDirectoryStream(top)) {
                        entries.forEach(entry -> walk(root, entry, rules, messages, visitor));
                    }
                }
            } catch (IOException | DirectoryIteratorException failed) {
                if (!(failed instanceof NoSuchFileException) || top.equals(root)) {
                    messages.add("cannot read " + quoted(name));
                } // else it was deleted meanwhile
            }
        }

        /**
         * Reads what SCRIPT prints; null if its parts do not fit together: the tree changed in between. A link's target
         * may hold anything, but it is as long as the link's size says.
         */
        static TreeMap<String, Item> parse(String text) {
            TreeMap<String, Item> tree = new TreeMap<>();
            if (text.isEmpty()) { // there is no such directory
                return tree;
            }
            int names = text.indexOf("\0\0");
            Matcher line = LINE.matcher(text);
            int next = names + 2;
            for (String name : text.substring(0, Math.max(0, names)).split("\0")) {
                if (!line.region(next, text.length()).lookingAt()) {
                    return null;
                }
                Item item = Item.of(Integer.parseInt(line.group(1), 8), Long.parseLong(line.group(2)),
                        Long.parseLong(line.group(3)) * 1_000_000_000 + Long.parseLong(line.group(4)), "");
                int end = line.end();
                if (item.type() == 'l') {
                    end += (int) Math.min(Long.parseLong(line.group(2)), text.length() - end);
                    item = new Item('l', item.mode(), 0, item.time(), text.substring(line.end(), end));
                }
                if (!text.startsWith("|\n", end)) {
                    return null;
                }
                tree.put(name.replaceFirst("^\\./", ""), item);
                if (tree.size() > MAX_FILES) {
                    throw tooMuch();
                }
                next = end + 2;
            }
            return names > 0 && next == text.length() ? tree : null;
        }
    }

    /** What makes the guest's tree equal to the project's. It compares, and does nothing. */
    static final class Plan {
        /** Deletions come first; {@code messages} gets what cannot be done. */
        static List<Change> of(Map<String, Item> project, TreeMap<String, Item> guest, Rules rules, boolean delete,
                Set<String> resend, List<String> messages) {
            Set<String> hidden = new HashSet<>();
            guest.forEach((name, item) -> {
                if (!name.equals(".") && (hidden.contains(parent(name)) || rules.hides(name, item.type() == 'd'))) {
                    hidden.add(name);
                }
            });
            List<Change> changes = new ArrayList<>();
            Set<String> occupied = new HashSet<>(); // directories that stay, for something in them does
            Set<String> blocked = new HashSet<>();
            guest.descendingMap().forEach((name, item) -> {
                Item wanted = project.get(name);
                boolean inTheWay = wanted != null && (wanted.type() == 'd') != (item.type() == 'd');
                if (!hidden.contains(name) && !occupied.contains(name) && (inTheWay || wanted == null && delete)) {
                    changes.add(new Change(Kind.DELETE, name, item));
                    return;
                }
                occupied.add(parent(name));
                if (inTheWay) {
                    blocked.add(name);
                    messages.add("cannot replace the directory " + quoted(name)
                            + ": it contains files that are excluded or kept");
                }
            });
            project.forEach((name, item) -> {
                Kind kind = blocked.contains(name) ? null : difference(item, guest.get(name), resend.contains(name));
                if (kind != null) {
                    changes.add(new Change(kind, name, item));
                }
            });
            return changes;
        }

        /** Null if there is none. Times of links and directories do not count. */
        private static Kind difference(Item item, Item there, boolean resend) {
            boolean same = there != null && there.type() == item.type() && there.target().equals(item.target());
            return switch (item.type()) {
                case 'l' -> same ? null : Kind.LINK;
                case 'd' -> !same ? Kind.MKDIR : item.mode() != there.mode() ? Kind.ATTRS : null;
                default -> !same || resend || item.size() != there.size() || !item.sameTime(there) ? Kind.SEND
                        : item.mode() != there.mode() ? Kind.ATTRS : null;
            };
        }
    }

    // Two ways to send

    /** An engine: how it runs a script in the guest, and how it makes the guest's tree equal. */
    interface Sender {
        Answer inGuest(String script);

        Outcome sync(Job job, Look look);
    }

    /** Lets rsync compare and send, over ssh. */
    record RsyncEngine(Programs programs, Guest guest) implements Sender {
        private static final Pattern ITEMIZED = Pattern.compile(
                "(\\*deleting|[<>ch.][fdL][^ |]+) *\\|(-?\\d{1,18})\\|(.*?)/?");
        private static final Pattern ESCAPED = Pattern.compile("\\\\#([0-7]{3})");
        private static final String FULL = "No space left";
        /** What is asked of it works from 3.1 on; macOS has another program of that name. */
        static boolean isHere(Programs programs) {
            try {
                return programs.run(List.of("rsync", "--version"), "").text()
                        .matches("(?s)rsync +version v?(3\\.[1-9]|[4-9]).*");
            } catch (VmException missing) {
                return false;
            }
        }

        @Override
        public Answer inGuest(String script) {
            Answer answer = programs.run(List.of("ssh", "-F", guest.sshConfig(), guest.name, "sh -s"), script);
            if (answer.status() == 255) {
                throw guest.lost(answer.errors().isEmpty() ? "ssh failed"
                        : cut(answer.errors().lines().findFirst().get()));
            }
            return answer;
        }

        /**
         * Names what will be deleted before it is deleted. The first run has --max-delete=0: it sends everything, and
         * reports whether something is to be deleted. Only then a dry run names it and a third run deletes it. If the
         * guest's disk is full, this third run also makes room.
         */
        @Override
        public Outcome sync(Job job, Look look) {
            if (!job.delete()) {
                return outcome(job.dryRun() ? run(job, look, "--dry-run") : run(job, look), List.of());
            }
            List<Change> changes = new ArrayList<>();
            if (!job.dryRun()) {
                Answer sent = run(job, look, "--delete", "--max-delete=0");
                boolean deletions = Set.of(23, 25).contains(sent.status()) && sent.errors().contains("--max-delete");
                if (!deletions && !sent.errors().contains(FULL)) {
                    return outcome(sent, changes);
                }
                changes.addAll(parse(sent.text(), new ArrayList<>())); // what else it said, the last run says again
            }
            Outcome planned = outcome(run(job, look, "--delete", "--dry-run"), List.of());
            job.tellDeletions(planned.changes().stream());
            return job.dryRun() ? planned : outcome(run(job, look, "--delete"), changes);
        }

        private Answer run(Job job, Look look, String... more) {
            List<String> command = command(job.project(), guest.sshConfig(), guest.name + ":"
                    + new String(bytes(job.to().directory()), UTF_8) + "/", look.rsync());
            Collections.addAll(command, more);
            if (!job.to().datesCount(look)) {
                command.add("--checksum");
            }
            return programs.run(command, job.source().rules().text());
        }

        /**
         * Without owners, so that all belongs to root, and without times of directories and links; -s keeps names from
         * the guest's shell; the rules come on stdin.
         */
        static List<String> command(Path project, String sshConfig, String to, String guestRsync) {
            return new ArrayList<>(List.of("rsync", "-rlptsOJ", "-0", "--exclude-from=-", "--timeout=300",
                    "--out-format=%i|%l|%n", "-e", "ssh -F '" + sshConfig.replace("'", "''") + "'", "--rsync-path="
                    + guestRsync, project.toString().replaceAll("/?$", "/"), to));
        }

        private Outcome outcome(Answer answer, List<Change> before) {
            List<String> messages = new ArrayList<>(answer.errors().lines().toList());
            List<Change> changes = new ArrayList<>(before);
            changes.addAll(parse(answer.text(), messages));
            String why = messages.isEmpty() ? "rsync ended with " + answer.status() : messages.get(0);
            if (List.of(10, 12, 30, 35, 255).contains(answer.status()) && !answer.errors().contains(FULL)) {
                throw guest.lost(why);
            } else if (!List.of(0, 23, 24).contains(answer.status())) { // what these left out, they have named
                throw new VmException(1, why);
            }
            return new Outcome(changes, messages, answer.status() != 23, "rsync"); // 24: a file vanished meanwhile
        }

        /** rsync's itemized lines; up to a thousand others become messages. */
        static List<Change> parse(String output, List<String> messages) {
            List<Change> changes = new ArrayList<>();
            for (String line : output.split("\n")) {
                Matcher match = ITEMIZED.matcher(line);
                if (match.matches()) {
                    String file = ESCAPED.matcher(match.group(3)).replaceAll(code -> Matcher.quoteReplacement(
                            String.valueOf((char) Integer.parseInt(code.group(1), 8))));
                    changes.add(new Change(kind(match.group(1)), file,
                            new Item('f', 0, Long.parseLong(match.group(2)), 0, "")));
                    if (changes.size() > MAX_FILES) {
                        throw tooMuch();
                    }
                } else if (!line.isBlank() && !line.startsWith("created ") && messages.size() < 1000) {
                    messages.add(printable(new String(bytes(line), UTF_8)));
                }
            }
            return changes;
        }

        private static Kind kind(String itemized) {
            return switch (itemized.charAt(0)) {
                case '*' -> Kind.DELETE;
                case '.' -> Kind.ATTRS;
                default -> itemized.charAt(1) == 'd' ? Kind.MKDIR : itemized.charAt(1) == 'L' ? Kind.LINK : Kind.SEND;
            };
        }
    }

    /**
     * For machines and guests without rsync: compares the project with a listing of what is really in the guest, and
     * sends whole files in one tar stream. The guest unpacks it beside the tree and moves the files into place.
     */
    static final class BuiltInEngine implements Sender {
        private final Guest guest;
        private final List<String> messages = new ArrayList<>();

        BuiltInEngine(Guest guest) {
            this.guest = guest;
        }

        @Override
        public Answer inGuest(String script) {
            return guest.exec("sh -s", in -> in.write(bytes(script)), LimitedOutput::readAnswer);
        }

        @Override
        public Outcome sync(Job job, Look look) {
            TreeMap<String, Item> there = Listing.parse(look.rest());
            for (int attempt = 2; there == null; attempt++) {
                if (attempt > 3) {
                    throw new VmException(1, "the guest's files changed while they were listed, three times: end what "
                            + "writes in " + job.to().label() + ", and sync again");
                }
                there = Listing.parse(inGuest("LC_ALL=C d=" + word(job.to().directory()) + "\nexport LC_ALL\n"
                        + Listing.SCRIPT).text());
            }
            TreeMap<String, Item> here = Listing.of(job.project(), job.source().rules(), messages);
            // As with rsync, nothing is deleted when the project could not be read in full.
            List<Change> changes = Plan.of(here, there, job.source().rules(), job.delete() && messages.isEmpty(),
                    job.to().datesCount(look) ? job.source().resend() : here.keySet(), messages);
            job.tellDeletions(changes.stream().filter(change -> !here.containsKey(change.name())));
            if (!job.dryRun() && !changes.isEmpty()) {
                Answer answer = guest.exec("cd && cd .vm-sync/" + job.to().key() + "/tree && mkdir " + Destination.PART
                        + " && cd " + Destination.PART + " && tar -xpf - && exec sh apply",
                        out -> send(out, job.project(), changes), LimitedOutput::readAnswer);
                if (answer.status() != 0) {
                    messages.add("some files could not be changed in the guest: " + answer.errors());
                }
            }
            // A deletion that makes room for something else is no news.
            changes.removeIf(change -> change.kind() == Kind.DELETE && here.containsKey(change.name()));
            return new Outcome(changes, messages, messages.isEmpty(), "tar");
        }

        /** One stream: what is new, and last a script that puts it in place. What cannot be sent leaves the changes. */
        private void send(OutputStream out, Path project, List<Change> changes) throws IOException {
            try (TarArchiveOutputStream tar = new TarArchiveOutputStream(out, ISO_8859_1.name())) {
                tar.setLongFileMode(TarArchiveOutputStream.LONGFILE_GNU); // pax would want names in UTF-8
                tar.setBigNumberMode(TarArchiveOutputStream.BIGNUMBER_POSIX); // for fractions of a second
                List<String> spoiled = new ArrayList<>(); // arrived with zeros in place of what could not be read
                for (Change change : List.copyOf(changes)) {
                    Path file = path(project, change.name());
                    boolean arrives = change.kind() != Kind.DELETE && !isModeOfDirectory(change);
                    try (InputStream content = arrives && change.item().type() == 'f' ? Files.newInputStream(file)
                            : InputStream.nullInputStream()) {
                        if (arrives && !put(tar, "t/" + change.name(), change.item(), content)) {
                            spoiled.add(change.name());
                            changes.remove(change);
                            messages.add("could not be read in full: " + quoted(change.name()));
                        }
                    } catch (FileSystemException refused) {
                        changes.remove(change);
                        if (!(refused instanceof NoSuchFileException)) { // else it is the next sync's to delete
                            messages.add("cannot read " + quoted(change.name()));
                        }
                    }
                }
                byte[] script = bytes(applyScript(changes, spoiled));
                put(tar, "apply", new Item('f', 0600, script.length, 0, ""), new ByteArrayInputStream(script));
            }
        }

        private static boolean isModeOfDirectory(Change change) {
            return change.kind() == Kind.ATTRS && change.item().type() == 'd';
        }

        /**
         * Sends a file as long as it was when it was listed: what was added meanwhile is for the next sync. If it is
         * shorter by now, the rest is zeros, and the result false.
         */
        private static boolean put(TarArchiveOutputStream tar, String name, Item item, InputStream content)
                throws IOException {
            TarArchiveEntry entry = new TarArchiveEntry(item.type() == 'd' ? name + "/" : name,
                    item.type() == 'l' ? TarConstants.LF_SYMLINK : item.type() == 'd' ? TarConstants.LF_DIR
                    : TarConstants.LF_NORMAL);
            entry.setMode(item.mode());
            entry.setLastModifiedTime(FileTime.from(item.time(), TimeUnit.NANOSECONDS));
            entry.setIds(0, 0);
            entry.setNames("", "");
            entry.setLinkName(item.target());
            entry.setSize(item.size());
            tar.putArchiveEntry(entry);
            byte[] buffer = new byte[1 << 16];
            boolean whole = true;
            for (long left = item.size(); left > 0; left -= buffer.length) {
                int count = (int) Math.min(buffer.length, left);
                Arrays.fill(buffer, (byte) 0);
                try {
                    whole &= content.readNBytes(buffer, 0, count) == count;
                } catch (IOException unreadable) {
                    whole = false;
                }
                tar.write(buffer, 0, count);
            }
            tar.closeArchiveEntry();
            return whole;
        }

        /**
         * Run in the part directory when all has arrived: removes spoiled files and what must go, moves what came into
         * place, sets the modes of directories. mv within one file system is rename(2): there is the old file or the
         * new one. If one step fails, the others are done all the same.
         */
        static String applyScript(List<Change> changes, List<String> spoiled) {
            StringBuilder script = new StringBuilder("LC_ALL=C; export LC_ALL\nr=0\ncd .. || exit 1\n");
            Set<String> deleted = names(changes.stream(), Kind.DELETE);
            Set<String> made = names(changes.stream(), Kind.MKDIR);
            step(script, "rm -f", Destination.PART + "/t/", spoiled, "");
            step(script, "rm -rf", "./",
                    deleted.stream().filter(name -> !deleted.contains(parent(name))).toList(), "");
            changes.stream().filter(change -> change.kind() != Kind.DELETE && !isModeOfDirectory(change))
                    .map(Change::name)
                    .filter(name -> !made.contains(parent(name))) // what is in a new directory moves with it
                    .collect(Collectors.groupingBy(VmSync::parent, TreeMap::new, Collectors.toList()))
                    .forEach((directory, names) -> step(script, "mv -f", Destination.PART + "/t/", names,
                            " " + word("./" + directory + "/")));
            changes.stream().filter(BuiltInEngine::isModeOfDirectory)
                    .collect(Collectors.groupingBy(change -> Integer.toOctalString(change.item().mode()),
                            Collectors.mapping(Change::name, Collectors.toList())))
                    .forEach((mode, names) -> step(script, "chmod " + mode, "./", names, ""));
            return script + "rm -rf " + Destination.PART + "\nexit $r\n";
        }
    }

    // The way to the guest

    interface Writer {
        void write(OutputStream out) throws IOException;
    }

    interface Reader {
        byte[] read(InputStream in) throws IOException;
    }

    /** The VM: whether it runs, how the built-in engine and a pull run commands in it, why it cannot be reached. */
    static final class Guest implements AutoCloseable {
        final String name;
        private final Path vmDir;
        private final Programs programs;
        /** Opened when needed, kept for a watch's next sync. */
        private SSHClient client;

        Guest(Path vmDir, String name, Programs programs) {
            this.vmDir = vmDir;
            this.name = name;
            this.programs = programs;
        }

        void requireRunning() {
            awaitGuest(vmDirectory(vmDir), name, () -> false); // Ctrl-C ends vm-sync by itself
            if (!Files.exists(Path.of(sshConfig()))) {
                throw new VmException(69, sshConfig() + " is missing: vm-ctl start writes it again");
            }
        }

        /** Tells one run of the VM from another. Not by the pid alone: in a container, QEMU often gets the same. */
        String runningSince() {
            try {
                JsonObject vm = runningVm(vmDir, name);
                return vm == null ? "" : vm.getLong("pid") + " " + vm.getString("started");
            } catch (IOException | VmException unknown) {
                return ""; // the sync that follows says what is wrong
            }
        }

        String sshConfig() {
            return vmDir.resolve("ssh_config").toString();
        }

        /**
         * The guest may have ended or be paused meanwhile, which says more than what ssh makes of it. A QEMU that
         * ends closes its connections before it is gone, so it gets a second.
         */
        VmException lost(String why) {
            long start = System.nanoTime();
            GuestState guest = GuestState.of(vmDir, name);
            while (guest != null && (guest.why() == null || guest.word().equals("unknown"))
                    && System.nanoTime() - start < 1_000_000_000) {
                LockSupport.parkNanos(50_000_000);
                guest = GuestState.of(vmDir, name);
            }
            if (guest == null) {
                return new VmException(69, "VM " + name + " ended meanwhile (" + why + "); start it: vm-ctl start");
            } else if (guest.why() != null) {
                return guest.failure();
            }
            return new VmException(69, "VM " + name + " is running but cannot be reached: " + why
                    + "; 'vm-ctl status' and " + vmDir.resolve(name + ".console.log") + " tell more");
        }

        /** Runs a command in the guest, over one connection; 69 if that breaks. */
        Answer exec(String command, Writer input, Reader output) {
            programs.echo().accept("(built in) ssh " + name + " " + word(command));
            try {
                client = client == null ? connect() : client;
                SessionChannel session = (SessionChannel) client.startSession();
                Socket socket = client.getSocket();
                client.getTransport().setDisconnectListener((reason, why) -> wake(socket, reason, session));
                Session.Command running = session.exec(command);
                LimitedOutput errors = new LimitedOutput(MAX_ERRORS);
                var drained = new StreamCopier(running.getErrorStream(), errors, LoggerFactory.DEFAULT)
                        .bufSize(8192).spawnDaemon("stderr"); // else it copies byte by byte
                try (OutputStream in = new BufferedOutputStream(running.getOutputStream(), 1 << 16)) {
                    input.write(in);
                } catch (SSHException ended) {
                    // the command ended before its input did: its status says why
                }
                byte[] out = output.read(running.getInputStream());
                drained.await();
                running.join();
                if (running.getExitStatus() == null) {
                    throw new EOFException(("the connection ended " + oneLine(errors.text())).strip());
                }
                session.close(); // only here: it waits for the guest
                return new Answer(running.getExitStatus(), out, oneLine(errors.text()));
            } catch (VmException refused) {
                close();
                throw refused;
            } catch (IOException broken) {
                close();
                throw lost(oneLine(reason(broken)));
            }
        }

        /**
         * When the connection breaks: wakes a sender that waits until the guest accepts more data. sshj would let it
         * wait 30 s. With a larger window it tries to send, and fails at once.
         */
        private static void wake(Socket socket, DisconnectReason reason, SessionChannel session) {
            if (reason != DisconnectReason.BY_APPLICATION) {
                IOUtils.closeQuietly(socket);
                try {
                    session.handle(Message.CHANNEL_WINDOW_ADJUST, new SSHPacket().putUInt32(0xffff_ffffL));
                } catch (SSHException impossible) { // the packet is well-formed
                    throw new IllegalStateException(impossible);
                }
            }
        }

        /** As {@code <name>.ssh/config} says; the host's key is the one in known_hosts, or there is no connection. */
        private SSHClient connect() throws IOException {
            SecurityUtils.setRegisterBouncyCastle(false); // the JDK has what OpenSSH speaks, and 0.3 s are saved
            Map<String, String> config = keywords(Files.readString(vmDir.resolve(name + ".ssh/config")));
            String address = config.get("hostname");
            int port = Integer.parseInt(config.get("port"));
            DefaultConfig settings = new DefaultConfig();
            settings.setKeepAliveProvider(KeepAliveProvider.KEEP_ALIVE);
            SSHClient ssh = new SSHClient(settings);
            ssh.setConnectTimeout(20_000);
            ssh.setTimeout(60_000);
            String alias = Pattern.quote(config.get("hostkeyalias")); // to sshj the host is its address
            String knownHosts = Files.readString(Path.of(config.get("userknownhostsfile")))
                    .replaceAll("(?m)^" + alias + " ", "[" + address + "]:" + port + " ");
            ssh.addHostKeyVerifier(new OpenSSHKnownHosts(new StringReader(knownHosts)));
            try {
                ssh.connect(address, port);
                ssh.getSocket().setTcpNoDelay(true);
                KeepAliveRunner alive = (KeepAliveRunner) ssh.getConnection().getKeepAlive();
                alive.setKeepAliveInterval(15);
                alive.setMaxAliveCount(8); // a guest under emulation may be slow, but not two minutes
                ssh.authPublickey(config.get("user"), ssh.loadKeys(config.get("identityfile")));
                return ssh;
            } catch (IOException failed) {
                IOUtils.closeQuietly(ssh);
                throw failed;
            }
        }

        /** "Key value" lines, the value perhaps in quotes, with backslashes before quotes; keys in lower case. */
        static Map<String, String> keywords(String text) {
            return Pattern.compile("(?m)^\\s*(\\w+)\\s+(\"?)(.*?)\\2\\s*$").matcher(text).results()
                    .collect(Collectors.toMap(line -> line.group(1).toLowerCase(Locale.ROOT),
                    line -> line.group(3).replaceAll("\\\\([\\\\\"])", "$1").replace("%%", "%"),
                    (first, second) -> first));
        }

        @Override
        public void close() {
            IOUtils.closeQuietly(client);
            client = null;
        }
    }

    /** Runs programs of this machine: find, git, ssh, rsync. */
    record Programs(Consumer<String> echo) {
        /** Keep-alives end a dead connection; the limit is for a guest that hangs and still answers those. */
        Answer run(List<String> command, String input) {
            echo.accept(command.stream().map(VmSync::word).collect(Collectors.joining(" ")));
            LimitedOutput out = new LimitedOutput(maxAnswer);
            LimitedOutput errors = new LimitedOutput(MAX_ERRORS);
            try {
                ProcessExecutor executor = new ProcessExecutor(command)
                        .redirectInput(new ByteArrayInputStream(bytes(input)))
                        .redirectErrorStream(false).redirectOutput(out).redirectError(errors).destroyOnExit()
                        .addListener(out.endsProcess())
                        // git may want objects that a checkout lacks, and would run its core.sshCommand for them
                        .environment("GIT_ALLOW_PROTOCOL", "none");
                if (!command.get(0).equals("rsync")) {
                    executor.timeout(10, TimeUnit.MINUTES);
                }
                int status = executor.execute().getExitValue();
                if (out.full) {
                    throw tooMuch();
                }
                return new Answer(status, out.toByteArray(), printable(errors.text()).strip());
            } catch (TimeoutException late) {
                throw new VmException(69, command.get(0) + " did not end within ten minutes");
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            } catch (IOException missing) {
                throw new VmException(69, command.get(0) + " cannot be run ('vm-setup check' tells what is missing): "
                        + missing.getMessage());
            }
        }
    }

    // What the guest may send

    /**
     * How many bytes of an answer are kept. The names and lines of 500,000 files, 500 bytes for each, fit; on a machine
     * with little memory, less. A test shortens it.
     */
    static int maxAnswer = (int) Math.min(250_000_000, Runtime.getRuntime().maxMemory() / 8);
    private static final int MAX_ERRORS = 1 << 18;
    /** How many files an answer may name: they take more memory than their names. */
    private static final int MAX_FILES = 1_000_000;

    private static VmException tooMuch() {
        return new VmException(1, "there are too many files here or in the guest (their list has more than " + maxAnswer
                + " bytes or " + MAX_FILES + " files): leave some out with --exclude");
    }

    /** Keeps an output up to a limit. If a process writes it, that is then ended. */
    private static final class LimitedOutput extends ByteArrayOutputStream {
        private final int limit;
        private volatile Process process;
        private volatile boolean full;

        LimitedOutput(int limit) {
            this.limit = limit;
        }

        /** Reads what a command in the guest prints. */
        static byte[] readAnswer(InputStream in) throws IOException {
            byte[] answer = in.readNBytes(maxAnswer + 1);
            if (answer.length > maxAnswer) {
                throw tooMuch();
            }
            return answer;
        }

        ProcessListener endsProcess() {
            return new ProcessListener() {
                @Override
                public void afterStart(Process started, ProcessExecutor executor) {
                    process = started;
                }
            };
        }

        @Override
        public synchronized void write(byte[] buffer, int offset, int length) {
            full |= length > limit - count;
            if (!full) {
                super.write(buffer, offset, length);
            } else if (process != null) {
                process.destroy();
            }
        }

        String text() {
            return toString(UTF_8);
        }
    }

    // Watching

    /**
     * Sees changes of what is not excluded. Before each sync it starts anew, so that it misses no directory that was
     * made or moved.
     */
    static final class Watch implements AutoCloseable {
        private final Path project;
        private WatchService service;
        private Rules rules;

        Watch(Path project) {
            this.project = project;
        }

        void start(Rules current) throws IOException {
            close();
            rules = current;
            service = project.getFileSystem().newWatchService();
            Listing.walk(project, project, rules, new ArrayList<>(), (name, item) -> {
                if (item.type() == 'd') {
                    register(name.equals(".") ? project : path(project, name));
                }
            });
        }

        private void register(Path directory) {
            try {
                directory.register(service, StandardWatchEventKinds.ENTRY_CREATE,
                        StandardWatchEventKinds.ENTRY_DELETE, StandardWatchEventKinds.ENTRY_MODIFY);
            } catch (FileSystemException gone) {
                // or unreadable, which the sync tells
            } catch (IOException full) {
                throw new VmException(69, "cannot watch " + directory + ": " + full.getMessage()
                        + " (more watches: sysctl fs.inotify.max_user_watches; or leave out what need not be "
                        + "watched: " + withOption("--exclude PATTERN") + ")");
            }
        }

        /** Waits a second for a change, and then until the burst is over, three seconds at most. */
        boolean await() {
            boolean changed = false;
            long start = System.nanoTime();
            try {
                if (service == null) { // no sync came as far yet
                    TimeUnit.SECONDS.sleep(1);
                    return false;
                }
                WatchKey key = service.poll(1, TimeUnit.SECONDS);
                while (key != null && System.nanoTime() - start < 3_000_000_000L) {
                    for (WatchEvent<?> event : key.pollEvents()) {
                        changed |= matters((Path) key.watchable(), (Path) event.context());
                    }
                    key.reset();
                    key = service.poll(changed ? 80 : 0, TimeUnit.MILLISECONDS);
                }
            } catch (InterruptedException interrupted) {
                throw new VmException(130, "interrupted");
            }
            if (!Files.isDirectory(project)) {
                throw new VmException(1, project + " is gone: nothing left to watch");
            }
            return changed;
        }

        /** Without a name, so much happened that the kernel lost count. */
        private boolean matters(Path directory, Path name) {
            return name == null || !rules.hides(nameOf(project, directory.resolve(name)),
                    Files.isDirectory(directory.resolve(name), LinkOption.NOFOLLOW_LINKS));
        }

        @Override
        public void close() throws IOException {
            if (service != null) {
                service.close();
            }
        }
    }

    // Pulling

    /**
     * Unpacks what a guest sends, which may be hostile: every name is checked, no link is followed, nothing special is
     * made, and everything has a limit.
     */
    static final class Pull {
        static final int REFUSED = 68;
        /** Of files and directories. A test shortens it. */
        static int maxEntries = 100_000;
        private static final String RUNS = "git would run what stands there";
        private static final String SETS = "it would hold settings for programs of this machine";
        /** Files that programs of this machine read in the directory they start in; git~1 is the DOS name of .git. */
        static final Map<String, String> REFUSED_NAMES = Map.of(".git", RUNS, "git~1", RUNS, "vm.env", SETS,
                "jbang-catalog.json", SETS, "jbang.properties", SETS,
                "head", "git would take its directory for a repository, and run what stands there");
        private static final Pattern UNSEEN = Pattern.compile("\\p{Cf}|[. ]+$");
        private final Path base;
        private final List<String> place;
        private final String file;
        private final long maxSize;
        private Path root;
        private long total;
        private int entries;
        final Set<String> leftOut = new LinkedHashSet<>();
        int files;
        long bytes;

        /**
         * Fills the directory {@code place}, below {@code base}; or, if a single {@code file} was asked for, makes the
         * file {@code place}, whatever else the guest sends.
         */
        Pull(Path base, List<String> place, String file, long maxSize) {
            this.base = base;
            this.place = place;
            this.file = file;
            this.maxSize = maxSize;
        }

        static String script(String from, boolean tree) {
            return """
                    LC_ALL=C; export LC_ALL
                    f=%s t=
                    # the own format of bsdtar has names in UTF-8 only
                    case $(tar --version 2>/dev/null) in bsdtar*) t=--format=gnutar ;; esac
                    %s
                    [ -e "$f" ] && echo 'is no %s' >&2 || echo 'is not in the guest' >&2
                    exit %s
                    """.formatted(word(from), tree ? "[ ! -d \"$f\" ] || { cd \"$f\" && exec tar $t -cf - .; }"
                    : "[ ! -f \"$f\" ] || { cd \"${f%/*}/\" && exec tar $t -chf - \"./${f##*/}\"; }",
                    tree ? "directory in the guest: write it without the slash"
                    : "file in the guest; if it is a directory, write a slash at its end", REFUSED);
        }

        String written() {
            return files + " files, " + bytes + " bytes";
        }

        byte[] unpack(InputStream in) throws IOException {
            LimitedInput limited = new LimitedInput(in);
            TarArchiveInputStream tar = new TarArchiveInputStream(limited, ISO_8859_1.name());
            try {
                for (TarArchiveEntry entry = next(tar); entry != null; entry = next(tar)) {
                    // A sparse file is written with its holes. What is left out counts too: it has to be read.
                    long size = Math.max(entry.getSize(), entry.getRealSize());
                    if (size < 0 || size > maxSize - total) {
                        throw stopped("the files are larger than --max-size, which is " + (maxSize >> 20) + "M");
                    }
                    total += size;
                    limited.allow(entry.getSize());
                    count();
                    take(tar, entry);
                }
                limited.allow(0);
                limited.transferTo(OutputStream.nullOutputStream()); // a guest cut off earlier calls it an error
            } catch (SSHException lost) {
                throw lost;
            } catch (IOException failed) {
                // a write says it without the file
                boolean full = String.valueOf(failed.getMessage()).contains("No space left");
                throw failed instanceof FileSystemException || full
                        ? new VmException(1, "cannot write in " + base + ": " + oneLine(reason(failed))
                        + "; choose another LOCAL, or make room")
                        : stopped("what the guest sends is no whole archive (" + oneLine(reason(failed)) + ")");
            }
            return new byte[0];
        }

        private static TarArchiveEntry next(TarArchiveInputStream tar) throws IOException {
            try {
                return tar.getNextEntry();
            } catch (VmException limit) {
                throw limit;
            } catch (RuntimeException garbled) { // the library trusts numbers in the archive
                throw new IOException("a header that makes no sense", garbled);
            }
        }

        private VmException stopped(String why) {
            return new VmException(1, "stopped, because " + why + ": kept " + written() + " in " + base);
        }

        private void count() {
            if (++entries > maxEntries) {
                throw stopped("more than " + maxEntries + " files and directories arrive");
            }
        }

        private void take(TarArchiveInputStream tar, TarArchiveEntry entry) throws IOException {
            String name = entry.getName();
            if (file != null && (files > 0 || !isFile(entry) || !parts(name).equals(List.of(file)))) {
                throw stopped(files > 0 ? "the guest sent more than the one file that was asked for"
                        : "the guest did not send the file that was asked for, but " + quoted(cut(name)));
            }
            try {
                Path path = makeWay(name, entry.isDirectory());
                if (isFile(entry)) {
                    writeFile(tar, entry, path);
                } else if (entry.isSymbolicLink()) {
                    Path target = path(Path.of(""), safeTarget(entry.getLinkName(), parts(name).size() - 1));
                    putInPlace(path, temporary -> Files.createSymbolicLink(temporary, target));
                } else if (!entry.isDirectory()) {
                    throw new SecurityException("it is neither a file nor a directory nor a symbolic link");
                }
            // the latter: no name for a file, with a NUL in it
            } catch (SecurityException | IllegalArgumentException unsafe) {
                leftOut.add("left out: " + (leftOut.size() < 100 ? quoted(cut(name)) + ": " + unsafe.getMessage()
                        : "and more"));
            }
        }

        private static boolean isFile(TarArchiveEntry entry) {
            return List.of(TarConstants.LF_OLDNORM, TarConstants.LF_NORMAL, TarConstants.LF_CONTIG,
                    TarConstants.LF_GNUTYPE_SPARSE).contains(entry.getLinkFlag())
                    && !entry.isDirectory();
        }

        static List<String> parts(String name) {
            return Stream.of(name.split("/")).filter(part -> !part.isEmpty() && !part.equals(".")).toList();
        }

        /** Why nothing of this name is pulled; null if it is. Some file systems ignore case, and what has no shape. */
        static String refusal(String part) {
            return REFUSED_NAMES.get(UNSEEN.matcher(new String(bytes(part), UTF_8)).replaceAll("")
                    .toUpperCase(Locale.ROOT).toLowerCase(Locale.ROOT));
        }

        /** Checks an entry's name, makes the directories that are missing below the base, and returns its path. */
        private Path makeWay(String name, boolean directory) throws IOException {
            List<String> parts = parts(name);
            if (parts.isEmpty() && !directory) { // it would be written beside LOCAL, to take its place
                throw new SecurityException("it has no name");
            } else if (name.startsWith("/") || parts.contains("..")) {
                throw new SecurityException("it leads out of the directory");
            } else if (parts.size() > 100) { // each costs time
                throw new SecurityException("it lies more than 100 directories deep");
            }
            List<String> all = new ArrayList<>(place);
            all.addAll(file == null ? parts : List.of());
            for (String part : all) {
                if (refusal(part) != null) {
                    throw new SecurityException(refusal(part));
                }
            }
            root = root != null ? root : Files.createDirectories(base).toRealPath();
            Path path = root;
            for (int depth = 1; depth <= all.size(); depth++) {
                if (Files.exists(path.resolve("HEAD"), LinkOption.NOFOLLOW_LINKS)) {
                    throw new SecurityException(REFUSED_NAMES.get("head"));
                }
                path = path(path, all.get(depth - 1));
                boolean wanted = directory || depth < all.size();
                if (wanted && !Files.exists(path, LinkOption.NOFOLLOW_LINKS)) {
                    if (depth < all.size()) { // else its entry was counted
                        count();
                    }
                    Files.createDirectory(path);
                } else if (wanted != Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS)) {
                    throw new SecurityException(wanted ? "a directory of its path is a file or link here"
                            : "there is a directory of that name");
                }
            }
            return path;
        }

        private interface Maker {
            void make(Path file) throws IOException;
        }

        /** Makes a file under another name, and then takes the place of what was there: no link is followed. */
        private void putInPlace(Path path, Maker maker) throws IOException {
            Path temporary = path.resolveSibling(".vm-sync" + UUID.randomUUID() + ".part");
            try {
                maker.make(temporary);
                Files.move(temporary, path, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
                files++;
            } finally {
                Files.deleteIfExists(temporary);
            }
        }

        private void writeFile(TarArchiveInputStream tar, TarArchiveEntry entry, Path path) throws IOException {
            Set<PosixFilePermission> mode = EnumSet.allOf(PosixFilePermission.class);
            mode.removeIf(bit -> (entry.getMode() & 0755 & 0400 >> bit.ordinal()) == 0);
            putInPlace(path, temporary -> {
                // The kernel takes away what the umask says.
                try (OutputStream out = Channels.newOutputStream(Files.newByteChannel(temporary,
                        Set.of(StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE),
                        PosixFilePermissions.asFileAttribute(mode)))) {
                    bytes += tar.transferTo(out); // the library reads no further than the header says
                }
                Files.setLastModifiedTime(temporary, entry.getLastModifiedTime());
            });
        }

        /**
         * A link's target stays inside if ".." stands only at its beginning, and does not lead above the root. Then no
         * other link can change where it leads.
         */
        private static String safeTarget(String target, int depth) {
            List<String> words = List.of(target.split("/"));
            int climbs = (int) words.stream().takeWhile(".."::equals).count();
            if (target.startsWith("/") || target.isEmpty() || climbs > depth || words.lastIndexOf("..") >= climbs) {
                throw new SecurityException("a link that leads out of the directory, to " + quoted(cut(target)));
            }
            return target;
        }

        /** What the guest sends, as far as it is allowed. */
        private final class LimitedInput extends FilterInputStream {
            /** How much may come before the next entry: the library keeps long names in memory, and recurses. */
            private long left;

            LimitedInput(InputStream in) {
                super(in);
                allow(0);
            }

            void allow(long size) {
                left = size + (1 << 17);
            }

            @Override
            public int read() throws IOException {
                byte[] one = new byte[1];
                return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
            }

            @Override
            public int read(byte[] buffer, int offset, int length) throws IOException {
                if (left == 0 && length > 0) {
                    throw stopped("the guest sends more than the files of its archive");
                }
                int count = in.read(buffer, offset, (int) Math.min(length, left));
                left -= Math.max(count, 0);
                return count;
            }
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

    /** A path's bytes, one char each. Its text may lose some in some locales, its URI never does. */
    static String bytesOf(Path path) {
        String text = path.toString();
        return text.matches("\\p{ASCII}*") ? text : Pattern.compile("%(..)")
                .matcher(ROOT.resolve(path).toUri().getRawPath().replaceAll("(?<=.)/$", "").substring(path.isAbsolute()
                        ? 0 : 1))
                .replaceAll(hex -> Matcher.quoteReplacement(String.valueOf((char) Integer.parseInt(hex.group(1), 16))));
    }

    /** What a path is called below a root. */
    static String nameOf(Path root, Path path) {
        return path.equals(root) ? "." : bytesOf(root.relativize(path));
    }

    static Path path(Path root, String name) {
        Path absolute = Path.of(URI.create("file:///"
                + HexFormat.of().withPrefix("%").formatHex(bytes(name)).replace("%2f", "/")));
        return root.resolve(absolute.subpath(0, absolute.getNameCount()));
    }

    static String last(String name) {
        return name.substring(name.lastIndexOf('/') + 1);
    }

    static String parent(String name) {
        return name.equals(".") ? "" : name.contains("/") ? name.substring(0, name.lastIndexOf('/')) : ".";
    }

    /** What could control a terminal, turns the direction of writing, or was no UTF-8. */
    private static final Pattern UNSAFE = Pattern.compile("[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\ufffd]");

    /** A name for a message, in one line that a shell can read back; unsafe characters are written as numbers. */
    static String quoted(String name) {
        String text = new String(bytes(name), UTF_8);
        return !UNSAFE.matcher(text).find() ? word(text) : "$'" + Pattern.compile("[^ -~]|['\\\\]").matcher(name)
                .replaceAll(odd -> String.format(Locale.ROOT, "\\\\%03o", (int) odd.group().charAt(0))) + "'";
    }

    /** Of a text that comes from elsewhere, as much as fits into a message. */
    private static String cut(String text) {
        return text.length() > 500 ? text.substring(0, 500) + "..." : text;
    }

    private static String firstTen(Collection<String> names) {
        return names.stream().limit(10).map(name -> quoted(cut(name))).collect(Collectors.joining(", "))
                + (names.size() > 10 ? " and " + (names.size() - 10) + " more" : "");
    }

    /** A text from elsewhere as a part of a message: harmless, not long, and without lines that seem to be ours. */
    private static String oneLine(String text) {
        return cut(printable(text).strip()).replaceAll("\\s*\n\\s*", " / ");
    }

    /** Adds a command over many names to a script, in pieces that fit a command line. */
    private static void step(StringBuilder script, String command, String prefix, Collection<String> names,
            String last) {
        List<String> all = List.copyOf(names);
        for (int from = 0; from < all.size(); from += 100) {
            script.append(command);
            all.subList(from, Math.min(from + 100, all.size())).forEach(name ->
                    script.append(' ').append(word(prefix + name)));
            script.append(last).append(" || r=1\n");
        }
    }

    /** A word of sh, taken literally. */
    static String word(String text) {
        return text.matches("[A-Za-z0-9_@%+=:,./-]+") ? text : "'" + text.replace("'", "'\\''") + "'";
    }

    // shared:projectorigin
    /** Where a project in the guest came from: this machine's name and the project's real path, in one line. */
    static String projectOrigin(Path project) throws IOException {
        Path name = Path.of("/proc/sys/kernel/hostname");
        String host = Files.exists(name) ? Files.readString(name).strip() : InetAddress.getLocalHost().getHostName();
        return (host + ":" + project.toRealPath()).replaceAll("\\p{Cntrl}", "?");
    }
    // end shared:projectorigin

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

    // shared:runstate
    private static final Pattern STATUS = Pattern.compile("\"return\": \\{[^}]*\"status\": \"([a-z-]+)\"");

    /**
     * What the guest does, by QEMU's word ("running", "paused", ...); "unknown" if QEMU does not tell within 5 s. A
     * QEMU that was stopped accepts a connection and never responds. So the connection is closed at the limit, which
     * ends the wait. QEMU serves one connection at a time: whoever holds another one longer makes this one "unknown".
     */
    static String runState(Path qmp) {
        try (SocketChannel channel = closedAfter5s(SocketChannel.open(StandardProtocolFamily.UNIX))) {
            channel.connect(UnixDomainSocketAddress.of(qmp));
            channel.write(UTF_8.encode("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n"));
            Scanner responses = new Scanner(channel, UTF_8);
            return responses.findWithinHorizon(STATUS, 1 << 20) != null ? responses.match().group(1) : "unknown";
        } catch (IOException noResponse) { // QEMU ends, or was stopped
            return "unknown";
        }
    }

    private static SocketChannel closedAfter5s(SocketChannel channel) {
        CompletableFuture.delayedExecutor(5, TimeUnit.SECONDS).execute(() -> {
            try {
                channel.close();
            } catch (IOException closed) {
                // which is all that is wanted
            }
        });
        return channel;
    }
    // end shared:runstate

    // shared:gueststate
    /** How long a snapshot may pause the guest. A test shortens it. */
    static Duration snapshotPause = Duration.ofSeconds(60);

    /**
     * A running VM: its record, QEMU's word for what the guest does, and why the guest is paused (null if it goes
     * on).
     */
    record GuestState(JsonObject vm, String word, String why) {
        /** Null if the VM does not run. */
        static GuestState of(Path vmDir, String vmName) {
            try {
                JsonObject vm = runningVm(vmDir, vmName);
                if (vm == null) {
                    return null;
                } else if (vm.getLong("pid") < 1) {
                    throw new IOException("it names no pid");
                }
                String word = runState(Path.of(vm.getString("qmp", vmDir.resolve(vmName + ".qmp").toString())));
                boolean ended = word.equals("unknown") && !isRunning(vmDir.resolve(vmName + ".qemu-pid"));
                return ended ? null : new GuestState(vm, word, standstill(word, vm.getLong("pid")));
            } catch (IOException damaged) {
                throw new VmException(69, "VM " + vmName + " runs, but " + vmDir.resolve(vmName + ".pid")
                        + " cannot be read ("
                        + reason(damaged) + "): vm-ctl stop --force, then vm-ctl start, writes it again");
            }
        }

        /** The standstill as a failure: of this machine's disk (1), or of the VM. */
        VmException failure() {
            return new VmException(word.equals("io-error") ? 1 : 69, why);
        }
    }
    // end shared:gueststate

    // shared:awaitguest
    /** Returns the VM's record as soon as its guest goes on. Only what may be a snapshot's pause is waited for. */
    static JsonObject awaitGuest(Path vmDir, String vmName, BooleanSupplier interrupted) {
        for (long start = System.nanoTime(); !interrupted.getAsBoolean(); LockSupport.parkNanos(200_000_000)) {
            GuestState guest = GuestState.of(vmDir, vmName);
            if (guest == null) {
                throw notRunning(vmDir, vmName);
            } else if (guest.why() == null) {
                return guest.vm();
            } else if (!Set.of("paused", "finish-migrate", "postmigrate").contains(guest.word())
                    || System.nanoTime() - start > snapshotPause.toNanos()) {
                throw guest.failure();
            }
        }
        throw new VmException(130, "interrupted");
    }
    // end shared:awaitguest

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
}
