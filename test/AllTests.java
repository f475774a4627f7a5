///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Run tests by their tags or class names, in a fixed order
//JAVA 17+
//SOURCES ../VmSetup.java ../VmAutoInstall.java ../VmCtl.java ../VmSync.java ../VmTest.java
//SOURCES Disks.java FakeVm.java GoGuest.java Guest.java GuestChecks.java KilledCommand.java LockHolder.java Mirror.java Script.java Sshd.java
//SOURCES PhaseShellTest.java VmSetupTest.java VmAutoInstallTest.java VmCtlTest.java TemporaryTest.java ImageFileTest.java VmSyncTest.java VmTestTest.java DivisionTest.java LintTest.java
//SOURCES HelpTest.java CommandLineTest.java MakefileTest.java ReadmeTest.java
//SOURCES InstallTest.java StandinTest.java StandinBootTest.java LifecycleTest.java SyncTest.java SuitesTest.java ParallelTest.java ImageTest.java MakeTest.java ManualTest.java
//SOURCES InstallFaultsTest.java ByHandTest.java LifecycleFaultsTest.java InterruptionsTest.java ManySnapshotsTest.java SyncFaultsTest.java WorkflowTest.java
//SOURCES BisectTest.java SlurmTest.java GitlabTest.java GoVersionsTest.java JUnitReadersTest.java
//JAVAC_OPTIONS -J-XX:TieredStopAtLevel=1
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.File;
import java.io.IOException;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.platform.engine.discovery.DiscoverySelectors;
import org.junit.platform.launcher.EngineFilter;
import org.junit.platform.launcher.core.LauncherDiscoveryRequestBuilder;
import org.junit.platform.launcher.core.LauncherFactory;
import org.junit.platform.launcher.listeners.SummaryGeneratingListener;
import org.junit.platform.launcher.listeners.TestExecutionSummary;
import org.junit.platform.reporting.legacy.xml.LegacyXmlReportGeneratingListener;

/**
 * Runs the test classes that have one of the given tags or names, one after the other, with JUnit. test/run starts it.
 *
 * <p>The tags: {@code unit} needs no VM. {@code core} runs end to end on the stand-in guest. {@code faults} are the long matrices of faults,
 * suites in clones of the VM, a VM in a file, the lines of the README, the benchmark, and the tests of the stand-in itself.
 * {@code foreign} needs programs that no one here wrote, from a package registry. {@code vm} marks the classes that use the VM that
 * InstallTest installs in .build/test; InstallTest runs first if they need it and it is not there. Some classes share that VM and run
 * one after the other; meanwhile the others run in two more JVMs.
 *
 * <p>It prints a line for each class, its table of faults, and what failed. For each class, .build/test has NAME.log with all its
 * output and NAME.xml/ with JUnit's own report. The sum goes to .build/test/result. The exit code is 0 if tests ran and all passed, 1
 * if one failed, and 2 if a name is unknown.
 */
final class AllTests {

    /** One after the other, in this JVM: first InstallTest, whose VM ImageTest, MakeTest and ManualTest share. JBang, which some call, builds one thing at a time. */
    private static final List<Class<?>> HERE = List.of(
            InstallTest.class, LintTest.class, HelpTest.class, MakefileTest.class, ReadmeTest.class,
            ImageTest.class, MakeTest.class, ManualTest.class, WorkflowTest.class, JUnitReadersTest.class);

    /**
     * In any JVM: each takes the first one that none has begun. First those that need no VM, as long as it is being installed; then the
     * long ones, and last the short ones, so that all JVMs end at about the same time.
     */
    private static final List<Class<?>> ANYWHERE = List.of(
            CommandLineTest.class, VmCtlTest.class, VmSetupTest.class, VmAutoInstallTest.class,
            LifecycleFaultsTest.class, SuitesTest.class, InterruptionsTest.class, InstallFaultsTest.class, ParallelTest.class, LifecycleTest.class,
            VmSyncTest.class, VmTestTest.class, ManySnapshotsTest.class, SyncTest.class, ByHandTest.class, SlurmTest.class, StandinBootTest.class, StandinTest.class,
            GitlabTest.class, GoVersionsTest.class, SyncFaultsTest.class, ImageFileTest.class, TemporaryTest.class,
            BisectTest.class, DivisionTest.class, PhaseShellTest.class);

    private static final List<Class<?>> CLASSES = Stream.of(HERE, ANYWHERE).flatMap(List::stream).toList();

    /** Other JVMs beside this one. Three in all keep two cores busy: an emulated guest has one processor, and tests often wait. */
    private static final int OTHERS = 2;

    /** Where a JVM beside writes its result; only those have the property. */
    private static final String OTHER_RESULT = System.getProperty("result", "");

    private static final Path RESULTS = Path.of(".build/test");
    private static final Path RESULT = RESULTS.resolve("result" + OTHER_RESULT);

    /** What the JVMs tell each other: a file for each class that one of them has begun, and one when InstallTest is not, or no more, running. */
    private static final Path BEGUN = RESULTS.resolve("begun");
    private static final Path VM_IS_THERE = BEGUN.resolve("the shared VM is there");
    private static final Path NO_STANDIN = BEGUN.resolve("the stand-in cannot be built");

    /** The longest class takes ten minutes on two idle cores without KVM. One that needs an hour hangs. */
    private static final Duration LIMIT = Duration.ofMinutes(60);

    /** A system property: the directory of the stand-in once that is built. */
    private static final String STANDIN = "standin";
    private static final PrintStream STDOUT = System.out;
    private static final PrintStream STDERR = System.err;
    private static long passed;
    private static long failed;
    /** A line for each test that failed: they are shown again at the end, where one looks. */
    private static final List<String> FAILURES = new ArrayList<>();

    public static void main(String... args) throws Exception {
        checkThatEveryTestClassIsListed();
        List<Class<?>> classes = select(List.of(args));
        Files.createDirectories(RESULTS);
        List<Process> others = new ArrayList<>();
        if (OTHER_RESULT.isEmpty()) {
            Guest.delete(BEGUN);
            Files.createDirectory(BEGUN);
            List<Class<?>> anywhere = classes.stream().filter(ANYWHERE::contains).toList();
            int left = anywhere.size() == classes.size() ? anywhere.size() - 1 : anywhere.size(); // for others than this JVM
            for (int i = 1; i <= Math.min(OTHERS, left); i++) {
                others.add(start(".beside" + i, anywhere));
            }
            if (classes.stream().anyMatch(type -> hasTag(type, "vm"))) {
                buildStandin();
            }
        }
        for (Class<?> type : classes) {
            if (OTHER_RESULT.isEmpty() && type != InstallTest.class) {
                Files.write(VM_IS_THERE, new byte[0]);
            }
            if (isFirstToBegin(type) && (!hasTag(type, "vm") || isReadyFor(type))) {
                run(type);
            }
        }
        for (int i = 0; i < others.size(); i++) {
            addResult(".beside" + (i + 1), await(others.get(i)));
        }
        writeResult();
        System.exit(failed == 0 && passed > 0 ? 0 : 1); // also when a test left a thread that does not end
    }

    private static void checkThatEveryTestClassIsListed() throws IOException {
        try (Stream<Path> files = Files.list(Path.of("test"))) {
            Set<String> names = files.map(file -> file.getFileName().toString()).filter(file -> file.endsWith("Test.java"))
                    .map(file -> file.replace(".java", "")).collect(Collectors.toCollection(TreeSet::new));
            CLASSES.forEach(type -> names.remove(type.getName()));
            if (!names.isEmpty()) {
                throw new IllegalStateException("test/AllTests.java does not list " + names);
            }
        }
    }

    /** The classes that have one of these tags or names, in the order of the list; InstallTest, too, if they need the VM and it is not there. */
    private static List<Class<?>> select(List<String> words) {
        for (String word : words) {
            if (CLASSES.stream().noneMatch(type -> isNamed(type, word))) {
                STDOUT.println("no test class has the name or the tag " + word + "; the classes and their tags are");
                CLASSES.forEach(type -> STDOUT.println("  " + type.getName() + " " + tags(type)));
                System.exit(2);
            }
        }
        List<Class<?>> chosen = new ArrayList<>(CLASSES.stream().filter(type -> words.stream().anyMatch(word -> isNamed(type, word))).toList());
        if (OTHER_RESULT.isEmpty() && chosen.stream().anyMatch(type -> hasTag(type, "vm")) && !Files.exists(Guest.FIRST_START)
                && !chosen.contains(InstallTest.class)) {
            chosen.add(0, InstallTest.class);
        }
        return chosen;
    }

    private static boolean isNamed(Class<?> type, String word) {
        return type.getName().equals(word) || hasTag(type, word);
    }

    private static boolean hasTag(Class<?> type, String tag) {
        return tags(type).contains(tag);
    }

    private static List<String> tags(Class<?> type) {
        return Arrays.stream(type.getAnnotationsByType(Tag.class)).map(Tag::value).toList();
    }

    /** Builds the stand-in guest; at once, if that has been done. If it cannot be built, the classes that use the VM do not run, and that is a failure. */
    private static void buildStandin() throws Exception {
        ScheduledExecutorService timer = giveUpAfterTheLimit("the build of the stand-in guest", RESULTS);
        Process build = new ProcessBuilder("test/standin/build.sh", Path.of(".build/standin").toAbsolutePath().toString())
                .redirectInput(new File("/dev/null")).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        String directory = new String(build.getInputStream().readAllBytes(), UTF_8).strip();
        if (build.waitFor() == 0) {
            System.setProperty(STANDIN, directory);
        } else {
            FAILURES.add("FAILED: the stand-in guest cannot be built");
            failed++;
            Files.write(NO_STANDIN, new byte[0]);
        }
        timer.shutdownNow();
    }

    private static boolean isFirstToBegin(Class<?> type) throws IOException {
        try {
            Files.createFile(BEGUN.resolve(type.getName()));
            return true;
        } catch (FileAlreadyExistsException anotherJvmHas) {
            return false;
        }
    }

    /**
     * Whether there is a stand-in for a class that uses a VM. The JVMs beside wait for it, and for what else InstallTest makes, such as
     * the disks of the shared VM.
     */
    private static boolean isReadyFor(Class<?> type) throws Exception {
        ScheduledExecutorService timer = giveUpAfterTheLimit("the installation of the shared VM", RESULTS);
        while (type != InstallTest.class && !Files.exists(VM_IS_THERE)) {
            TimeUnit.MILLISECONDS.sleep(200);
        }
        timer.shutdownNow();
        if (System.getProperty(STANDIN) == null && !Files.exists(NO_STANDIN)) {
            buildStandin();
        }
        return System.getProperty(STANDIN) != null;
    }

    /** Another JVM like this one, with a result of its own. It shows its lines where this one does. */
    private static Process start(String result, List<Class<?>> classes) throws IOException {
        Files.deleteIfExists(RESULTS.resolve("result" + result));
        List<String> command = new ArrayList<>(List.of(Path.of(System.getProperty("java.home"), "bin/java").toString()));
        command.addAll(ManagementFactory.getRuntimeMXBean().getInputArguments());
        command.addAll(List.of("-Dresult=" + result, "-cp", System.getProperty("java.class.path"), AllTests.class.getName()));
        classes.forEach(type -> command.add(type.getName()));
        Process other = new ProcessBuilder(command).inheritIO().start();
        Runtime.getRuntime().addShutdownHook(new Thread(other::destroy));
        return other;
    }

    private static int await(Process other) throws InterruptedException {
        ScheduledExecutorService timer = giveUpAfterTheLimit("the tests in another JVM", RESULTS);
        int code = other.waitFor();
        timer.shutdownNow();
        return code;
    }

    private static void addResult(String result, int code) throws IOException {
        Path file = RESULTS.resolve("result" + result);
        if (!Files.exists(file)) {
            FAILURES.add("FAILED: another JVM ended with exit code " + code + " and without a result");
            failed++;
            return;
        }
        List<String> lines = new ArrayList<>(Files.readAllLines(file));
        String[] sum = lines.remove(lines.size() - 1).split(" ");
        FAILURES.addAll(lines);
        passed += Long.parseLong(sum[0]);
        failed += Long.parseLong(sum[2]);
    }

    private static void run(Class<?> type) {
        String name = type.getName();
        Path log = RESULTS.resolve(name + ".log");
        long started = System.nanoTime();
        SummaryGeneratingListener listener = new SummaryGeneratingListener();
        ScheduledExecutorService timer = giveUpAfterTheLimit(name, log);
        try (PrintStream output = new PrintStream(log.toFile(), UTF_8)) {
            System.setOut(output);
            System.setErr(output);
            LauncherFactory.create().execute(
                    LauncherDiscoveryRequestBuilder.request().selectors(DiscoverySelectors.selectClass(type))
                            .filters(EngineFilter.includeEngines("junit-jupiter")).build(),
                    listener, new LegacyXmlReportGeneratingListener(RESULTS.resolve(name + ".xml"), new PrintWriter(output, true)));
            listener.getSummary().printFailuresTo(new PrintWriter(output, true), 30);
        } catch (IOException noLog) {
            throw new UncheckedIOException(noLog);
        } finally {
            System.setOut(STDOUT);
            System.setErr(STDERR);
            timer.shutdownNow();
        }
        report(name, listener.getSummary(), log, Duration.ofNanos(System.nanoTime() - started));
    }

    private static void report(String name, TestExecutionSummary summary, Path log, Duration time) {
        long good = summary.getTestsSucceededCount();
        long bad = summary.getTotalFailureCount(); // with the methods that run before or after all tests of a class
        // Something that they need is missing on this machine, or a method that runs before them failed.
        long notRun = summary.getTestsFoundCount() - good - summary.getTestsFailedCount();
        boolean nothing = good + bad + notRun == 0; // a class that tests nothing has not passed
        passed += good;
        failed += nothing ? 1 : bad;
        StringWriter text = new StringWriter(); // shown at once: the other JVMs write there, too
        PrintWriter lines = new PrintWriter(text);
        lines.println(name + ": " + good + " passed, " + (nothing ? 1 : bad) + " failed"
                + (notRun == 0 ? "" : ", " + notRun + " not run") + ", " + time.toSeconds() + " s");
        tables(log).forEach(lines::println);
        summary.getFailures().forEach(failure -> FAILURES.add("FAILED " + name + ", " + failure.getTestIdentifier().getDisplayName() + ": "
                + String.valueOf(failure.getException().getMessage()).lines().findFirst().orElse("")));
        if (nothing) {
            FAILURES.add("FAILED " + name + ": no test ran");
            lines.println("  no test of this class ran; its output is in " + log);
        } else if (bad > 0) {
            summary.printFailuresTo(lines, 10);
            lines.println("  its whole output is in " + log);
        }
        lines.flush();
        STDOUT.print(text);
        STDOUT.flush();
    }

    /** A class's table of faults. */
    private static List<String> tables(Path log) {
        try (Stream<String> lines = Files.lines(log)) {
            return lines.filter(line -> line.startsWith("| ")).toList();
        } catch (IOException noLog) {
            throw new UncheckedIOException(noLog);
        }
    }

    private static ScheduledExecutorService giveUpAfterTheLimit(String name, Path log) {
        ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
        timer.schedule(() -> giveUp(name, log), LIMIT.toSeconds(), TimeUnit.SECONDS);
        return timer;
    }

    /** Ends everything: a test that hangs cannot be stopped for certain, and the classes after it may wait for what it holds. */
    private static void giveUp(String name, Path log) {
        String late = name + " did not end within " + LIMIT.toMinutes() + " minutes; its output is in " + log;
        FAILURES.add("FAILED " + late);
        STDOUT.println(late + "; its threads:");
        Thread.getAllStackTraces().forEach((thread, stack) -> {
            STDOUT.println(thread);
            Arrays.stream(stack).forEach(frame -> STDOUT.println("    at " + frame));
        });
        ProcessHandle.current().descendants().forEach(ProcessHandle::destroyForcibly);
        failed++;
        try {
            writeResult();
        } catch (IOException noResult) {
            STDOUT.println(noResult);
        }
        Runtime.getRuntime().halt(1);
    }

    private static void writeResult() throws IOException {
        FAILURES.add(passed + " passed, " + failed + " failed");
        Files.write(RESULT, FAILURES);
    }
}
