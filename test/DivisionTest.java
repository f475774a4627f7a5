import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Suites in parts, without a VM: which packages a part has, the work of clones, and one verdict of all parts' files. */
@Tag("unit")
final class DivisionTest {

    @TempDir
    Path dir;

    // Parts

    private static Map<String, Double> times(Map<String, Double> known, List<String> packages) throws Exception {
        Path file = Files.createTempFile("timings", ".json");
        VmTest.Timings timings = new VmTest.Timings(file, "p");
        StringBuilder json = new StringBuilder("{\"project\":\"p\",\"suites\":{\"unit\":{");
        known.forEach((pkg, seconds) -> json.append(json.charAt(json.length() - 1) == '{' ? "" : ",").append('"').append(pkg).append("\":").append(seconds));
        Files.writeString(file, json.append("}}}"));
        timings = VmTest.Timings.read(file, "p");
        Files.delete(file);
        return VmTest.Timings.of(timings, "unit", packages);
    }

    /** Whatever the packages and times are: each package is in one part, and each machine computes the same parts. */
    @Test
    void thePartsAreDisjointAndCompleteAndTheSameEverywhere() throws Exception {
        Random random = new Random(20_26);
        for (int round = 0; round < 300; round++) {
            List<String> packages = IntStream.range(0, random.nextInt(60)).mapToObj(i -> "m/p" + i).collect(Collectors.toList());
            Map<String, Double> known = new HashMap<>();
            packages.stream().filter(pkg -> random.nextInt(3) > 0).forEach(pkg -> known.put(pkg,
                    random.nextBoolean() ? random.nextInt(3) : random.nextDouble() * 1000));
            int count = 1 + random.nextInt(12);
            List<String> all = new ArrayList<>();
            for (int index = 1; index <= count; index++) {
                List<String> part = new VmTest.Shard(index, count).of(times(known, packages));
                List<String> shuffled = new ArrayList<>(packages);
                Collections.shuffle(shuffled, random);
                assertEquals(part, new VmTest.Shard(index, count).of(new TreeMap<>(times(known, shuffled))));
                all.addAll(part);
            }
            assertEquals(packages.size(), all.size(), "a package is in two parts");
            assertEquals(new HashSet<>(packages), new HashSet<>(all));
        }
    }

    /** Without times the parts have equally many packages; one without a time counts as the median. */
    @Test
    void timesBalanceTheParts() throws Exception {
        List<String> packages = List.of("a", "b", "c", "d", "e");
        assertEquals(List.of("a", "c", "e"), new VmTest.Shard(1, 2).of(VmTest.Timings.of(null, "unit", packages)));
        assertEquals(List.of("b", "d"), new VmTest.Shard(2, 2).of(VmTest.Timings.of(null, "unit", packages)));
        assertEquals(7.0, times(Map.of("a", 1.0, "b", 7.0, "c", 100.0), packages).get("d"));
        assertEquals(List.of("c"), new VmTest.Shard(1, 2).of(times(Map.of("a", 1.0, "b", 7.0, "c", 100.0), packages)));
        assertEquals(List.of(), new VmTest.Shard(6, 6).of(VmTest.Timings.of(null, "unit", packages)));
    }

    /** Go's own packages with the times that their tests took on one machine. */
    @Test
    void theLongestPartOfARealListIsNearTheIdeal() throws Exception {
        VmTest.Timings timings = VmTest.Timings.read(Path.of("test/go-timings.json"), "go");
        Map<String, Double> seconds = new TreeMap<>();
        JsonParser.object().from(Files.readString(Path.of("test/go-timings.json"))).getObject("suites").getObject("unit")
                .forEach((pkg, time) -> seconds.put(pkg, ((Number) time).doubleValue()));
        assertTrue(seconds.size() > 60, "a list of " + seconds.size());
        assertEquals(seconds, VmTest.Timings.of(timings, "unit", seconds.keySet()));
        double total = seconds.values().stream().mapToDouble(time -> time).sum();
        double longestPackage = Collections.max(seconds.values());
        for (int count = 2; count <= 4; count++) {
            double ideal = Math.max(total / count, longestPackage);
            for (int index = 1; index <= count; index++) {
                double load = new VmTest.Shard(index, count).of(seconds).stream().mapToDouble(seconds::get).sum();
                assertTrue(load <= 1.2 * ideal, "part " + index + "/" + count + " takes " + load + " s, ideal are " + ideal);
            }
        }
    }

    @Test
    void aPartIsNamedOrComesFromTheCiSystem() {
        assertEquals(new VmTest.Shard(2, 3), VmTest.Shard.parse("2/3", Map.of()));
        assertEquals(new VmTest.Shard(2, 3), VmTest.Shard.parse("auto", Map.of("CI_NODE_INDEX", "2", "CI_NODE_TOTAL", "3")));
        Map<String, String> slurm = Map.of("SLURM_ARRAY_TASK_ID", "5", "SLURM_ARRAY_TASK_MIN", "3", "SLURM_ARRAY_TASK_COUNT", "4");
        assertEquals(new VmTest.Shard(3, 4), VmTest.Shard.parse("auto", slurm));
        Map<String, String> stepped = new HashMap<>(slurm);
        stepped.putAll(Map.of("SLURM_ARRAY_TASK_ID", "9", "SLURM_ARRAY_TASK_STEP", "2"));
        assertEquals(new VmTest.Shard(4, 4), VmTest.Shard.parse("auto", stepped));
        for (String wrong : List.of("0/3", "4/3", "a/b", "1", "1/0", "-1/3", "1/3 ", "", "1/99999", "1/99999999999")) {
            assertEquals(2, assertThrows(VmTest.VmException.class, () -> VmTest.Shard.parse(wrong, Map.of())).exitCode, wrong);
        }
        for (Map<String, String> wrong : List.of(Map.<String, String>of(), Map.of("CI_NODE_INDEX", "1"), Map.of("SLURM_ARRAY_TASK_ID", "1"),
                Map.of("CI_NODE_INDEX", "5", "CI_NODE_TOTAL", "3"),
                Map.of("SLURM_ARRAY_TASK_ID", "7", "SLURM_ARRAY_TASK_MIN", "1", "SLURM_ARRAY_TASK_COUNT", "2"))) {
            assertEquals(2, assertThrows(VmTest.VmException.class, () -> VmTest.Shard.parse("auto", wrong)).exitCode, wrong.toString());
        }
    }

    @Test
    void wrongUsageIsToldBeforeAnythingRuns() throws Exception {
        Path garbage = Files.writeString(dir.resolve("garbage.json"), "{\"project\":");
        Path other = Files.writeString(dir.resolve("other.json"), "{\"project\":\"other\",\"suites\":{}}");
        Path numbers = Files.writeString(dir.resolve("numbers.json"), "{\"project\":\"" + dir.getFileName() + "\",\"suites\":{\"unit\":{\"a\":\"soon\"}}}");
        for (String[] row : new String[][] {
            {"--shard 0/3 unit", "'0/3' is neither auto nor a part"}, {"--shard 4/3 unit", "'4/3' is neither auto nor a part"}, {"--shard a/b unit", "'a/b' is neither auto nor a part"},
            {"--shard 1/2 --failed", "leave out --shard"}, {"--parallel 2 --failed", "leave out --parallel"}, {"--parallel 0 unit", "from 1 to 64"},
            {"--parallel 65 unit", "from 1 to 64"}, {"--parallel many unit", "many"}, {"--isolate unit", "needs --parallel"},
            {"--isolate --shard 1/2 unit", "needs --parallel"}, {"--timings " + other + " unit", "needs --shard"},
            {"--parallel 2 --freeze-on-failure unit", "leave out one of them"},
            {"--shard 1/2 --timings " + garbage + " unit", garbage + " is no file that vm-test merge --timings wrote"},
            {"--shard 1/2 --timings " + numbers + " unit", numbers + " is no file that vm-test merge --timings wrote"},
            {"--shard 1/2 --timings " + dir.resolve("none") + " unit", "no such file"},
            {"--shard 1/2 --timings " + other + " unit", "is of project other, not " + dir.getFileName()},
            {"--shard 1/2 merge " + other, "take no suites"}, {"merge", "FILE"}, {"merge --junit /nonexistent/x " + other, "cannot write"}}) {
            Script.Result ran = vmTest((row[0].contains("merge") ? "" : "--project " + dir + " --vm-dir " + dir + " ") + row[0]);
            ran.exits(2).says(row[1]);
            assertEquals(1, ran.err().lines().count(), ran.err());
        }
    }

    private static Script.Result vmTest(String arguments) {
        return Script.call(VmTest.commandLine(new VmTest.Settings()), arguments.split(" "));
    }

    @Test
    void goListGetsThePackagesAndWhatChoosesFiles() {
        assertEquals("A=b doas go list -e -f x '-tags=a b' -mod vendor ./x/... ./y", VmTest.GoTest.parse(
                "A=b doas go test -v -short '-tags=a b' -run TestX -mod vendor -count=1 ./x/... ./y").list("-f x"));
        assertEquals("/usr/local/go/bin/go list -e -f x", VmTest.GoTest.parse("/usr/local/go/bin/go test").list("-f x"));
        VmTest.PackageList list = VmTest.PackageList.parse("noise\nvm-test m/b 0 0\nvm-test m/a 1 0\nvm-test m/c 0 2\nvm-test m/d 0 0\n");
        assertEquals(VmTest.PackageList.NONE, VmTest.PackageList.parse("vm-test m/a 1 0\nvm-test m/b c 1 0\n"), "its tests would never run");
        assertEquals(new TreeSet<>(Set.of("m/a", "m/b", "m/c", "m/d")), list.packages());
        assertEquals(List.of(List.of("m/c"), List.of("m/a"), List.of("m/d", "m/b")), list.work(List.of("m/d", "m/c", "m/b", "m/a")));
        assertTrue(VmTest.PackageList.parse("vm-test command-line-arguments 1 0\n").packages().isEmpty());
        assertEquals("go test -json -short m/a m/b -args -x", VmTest.GoTest.parse("go test -short ./...").with(new VmTest.CallerArgs(
                List.of("-args", "-x"), List.of(), false)).of(List.of("m/a", "m/b")).line());
    }

    /** Garbage where times should be is wrong usage, and counts as none where nobody named the file. */
    @Test
    void garbageIsNoTiming() throws Exception {
        Path file = dir.resolve("timings.json");
        for (String garbage : List.of("", "[]", "{\"project\":\"p\",\"suites\":null}", "{\"project\":\"p\",\"suites\":[]}", "{\"project\":\"p\",\"suites\":5}",
                "{\"project\":\"p\",\"suites\":{\"unit\":null}}", "{\"project\":\"p\",\"suites\":{\"unit\":{\"a\":null}}}", "{\"project\":5,\"suites\":{}}",
                "{\"project\":\"p\",\"suites\":{\"unit\":{\"a\":\"soon\"}}}", "{\"a\":".repeat(100_000))) {
            Files.writeString(file, garbage);
            assertEquals(2, assertThrows(VmTest.VmException.class, () -> VmTest.Timings.read(file, "p"), garbage).exitCode, garbage);
            assertEquals(Map.of("a", 1.0), VmTest.Timings.of(VmTest.Timings.ofThisMachine(dir.resolve("last-run.json"), "p"), "unit", List.of("a")));
        }
    }

    /** Else that of an earlier run would be taken for this one's, which ran nothing. */
    @Test
    void anOldReportDoesNotStay() throws Exception {
        Path old = Files.writeString(dir.resolve("part.json"), "old");
        vmTest("--project " + dir + " --vm-dir " + dir + " --json " + old + " unit").exits(69);
        assertFalse(Files.exists(old));
    }

    // Clones

    private VmTest.CloneSet clones(int count) throws Exception {
        return new VmTest.CloneSet(dir, "vm", count, () -> { });
    }

    private static VmTest.Ending ending(VmTest.Verdict verdict) {
        return new VmTest.Ending(verdict, verdict == VmTest.Verdict.LOST ? null : verdict.exitCode, List.of(), List.of(),
                verdict == VmTest.Verdict.LOST ? "it died" : null, null, List.of());
    }

    /** Each package once, all clones at work at the same time, what a package prints together. */
    @Test
    void eachPackageRunsOnceInTheCloneThatIsFree() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        List<List<String>> work = IntStream.range(0, 40).mapToObj(i -> List.of("p" + i)).toList();
        Map<String, String> ranIn = new ConcurrentHashMap<>();
        CountDownLatch all = new CountDownLatch(4);
        StringBuilder shown = new StringBuilder();
        List<String> restored = Collections.synchronizedList(new ArrayList<>());
        try (VmTest.CloneSet clones = clones(4)) {
            VmTest.Ending ending = new VmTest.ParallelRun(clones, work, () -> false).run((clone, packages, spool) -> {
                all.countDown();
                assertTrue(all.await(1, TimeUnit.MINUTES), "not all clones work at the same time");
                assertEquals(null, ranIn.put(packages.get(0), clone));
                spool.add(1, packages.get(0) + " begins\n");
                spool.add(2, packages.get(0) + " goes on\n");
                spool.add(1, packages.get(0) + " ends\n");
                return ending(packages.get(0).equals("p7") ? VmTest.Verdict.FAILED : VmTest.Verdict.PASSED);
            }, restored::add, true, (stream, bytes) -> shown.append(bytes == null ? "|" : bytes));
            assertEquals(VmTest.Verdict.FAILED, ending.verdict());
            assertEquals(1, ending.code());
            assertEquals(40, ranIn.size());
            assertEquals(4, new HashSet<>(ranIn.values()).size());
            assertEquals(36, restored.size(), "each clone is restored before each package but its first");
            assertEquals(IntStream.range(0, 40).mapToObj(i -> "p" + i + " begins\np" + i + " goes on\np" + i + " ends\n").collect(Collectors.toSet()),
                    Set.of(shown.toString().split("\\|")));
        }
        try (Stream<Path> left = Files.list(dir.resolve("vm.test"))) {
            assertEquals(List.of(), left.toList());
        }
    }

    /** A clone that dies costs one retry, in a restored clone; nothing of the first attempt is shown. The second time it is the verdict. */
    @Test
    void aCloneThatDiesCostsOneRetry() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        for (int deaths = 1; deaths <= 2; deaths++) {
            int[] left = {deaths};
            List<String> restored = new ArrayList<>();
            StringBuilder shown = new StringBuilder();
            try (VmTest.CloneSet clones = clones(1)) {
                VmTest.Ending ending = new VmTest.ParallelRun(clones, List.of(List.of("a"), List.of("b"), List.of("c")), () -> false).run(
                        (clone, packages, spool) -> {
                            boolean dies = packages.contains("b") && left[0]-- > 0;
                            spool.add(1, packages + (dies ? " dies " : " "));
                            return ending(dies ? VmTest.Verdict.LOST : VmTest.Verdict.PASSED);
                        }, restored::add, false, (stream, bytes) -> shown.append(bytes == null ? "" : bytes));
                assertEquals(1, restored.size());
                assertEquals(deaths == 1 ? VmTest.Verdict.PASSED : VmTest.Verdict.LOST, ending.verdict());
                assertEquals(deaths == 1 ? null : "it died (after b)", ending.trouble());
                assertEquals(deaths == 1 ? "[a] [b] [c] " : "[a] [b] dies ", shown.toString());
            }
        }
    }

    /** The time limit comes in one clone; what it stops in the others is no interruption. The next suite may use them again. */
    @Test
    void aTimeLimitEndsAllClonesAndIsTheVerdict() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        try (VmTest.CloneSet clones = clones(2)) {
            Set<String> ran = ConcurrentHashMap.newKeySet();
            VmTest.ParallelRun.Tests tests = (clone, packages, spool) -> {
                ran.addAll(packages);
                if (packages.contains("late")) {
                    return ending(VmTest.Verdict.TIMED_OUT);
                }
                for (long end = System.nanoTime() + TimeUnit.MINUTES.toNanos(1); !clones.stopped && !packages.contains("short"); Thread.sleep(5)) {
                    assertTrue(System.nanoTime() < end, "nobody stops it");
                }
                return ending(packages.contains("short") ? VmTest.Verdict.PASSED : VmTest.Verdict.INTERRUPTED);
            };
            assertEquals(VmTest.Verdict.TIMED_OUT, new VmTest.ParallelRun(clones, List.of(List.of("endless"), List.of("late"), List.of("never")), () -> false)
                    .run(tests, clone -> { }, false, (stream, bytes) -> { }).verdict());
            assertFalse(ran.contains("never"));
            assertFalse(clones.stopped, "a suite that is not divided runs next, and in the VM itself");
            List<String> restored = Collections.synchronizedList(new ArrayList<>());
            assertEquals(VmTest.Verdict.PASSED, new VmTest.ParallelRun(clones, List.of(List.of("short")), () -> false)
                    .run(tests, restored::add, true, (stream, bytes) -> { }).verdict());
            assertEquals(List.of(clones.names.get(0)), restored, "a suite before has used it");
        }
    }

    /** A test that failed before its clone died has failed: no retry may hide it. A retry is told in the summary. */
    @Test
    void aRetryHidesNoFailureAndIsTold() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        for (boolean fails : new boolean[] {true, false}) {
            int[] runs = {0};
            try (VmTest.CloneSet clones = clones(1)) {
                VmTest.Ending ending = new VmTest.ParallelRun(clones, List.of(List.of("a")), () -> false).run((clone, packages, spool) -> {
                    spool.add(1, "{\"Time\":\"\",\"Act");
                    spool.add(1, "ion\":\"" + (fails ? "fail" : "pass") + "\"}\n");
                    return ending(runs[0]++ == 0 ? VmTest.Verdict.LOST : VmTest.Verdict.PASSED);
                }, clone -> { }, false, (stream, bytes) -> { });
                assertEquals(fails ? 1 : 2, runs[0]);
                assertEquals(fails ? VmTest.Verdict.LOST : VmTest.Verdict.PASSED, ending.verdict());
                VmTest.Report report = new VmTest.Report(job(), ending, new VmTest.SuiteOutput(line -> { }, new VmTest.MemoryLimits()), Instant.now(), VmTest.Leaks.fail);
                assertEquals(!fails, report.summary().contains(" while it ran a, which runs once more: it died"), report.summary());
            }
        }
    }

    private VmTest.Job job() {
        return new VmTest.Suites(new VmTest.Settings().add(Map.of("VM_TEST_X", "go test ./...", "VM_TEST_BUILD", "true"), "the environment"), dir)
                .jobs(List.of("x"), VmTest.CallerArgs.NONE).get(0);
    }

    /** A clone that cannot be restored is lost. An error of this program is no result, whatever the other clones say. */
    @Test
    void whatCannotBeRestoredIsLost() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        try (VmTest.CloneSet clones = clones(1)) {
            VmTest.Ending ending = new VmTest.ParallelRun(clones, List.of(List.of("a"), List.of("b")), () -> false).run((clone, packages, spool) ->
                    ending(VmTest.Verdict.PASSED), clone -> {
                        throw new VmTest.VmException(69, "no RAM");
                    }, true, (stream, bytes) -> { });
            assertEquals(VmTest.Verdict.LOST, ending.verdict());
            assertEquals("no RAM (after b)", ending.trouble());
        }
        try (VmTest.CloneSet clones = clones(2)) {
            assertThrows(OutOfMemoryError.class, () -> new VmTest.ParallelRun(clones, List.of(List.of("a"), List.of("b")), () -> false).run((clone, packages, spool) -> {
                if (packages.contains("b")) {
                    throw new OutOfMemoryError("as it were");
                }
                return ending(VmTest.Verdict.PASSED);
            }, clone -> { }, false, (stream, bytes) -> { }));
        }
    }

    /** The lock of a run that was killed before it made anything. */
    @Test
    void aLockThatNobodyHoldsIsDeleted() throws Exception {
        Path old = Files.createFile(Files.createDirectories(dir.resolve("vm.test")).resolve("par-abcdef.lock"));
        try (VmTest.CloneSet clones = clones(1)) {
            assertFalse(Files.exists(old));
            assertTrue(Files.exists(clones.lockFile));
        }
        // A dangling link stands for a lock that vm-ctl deletes meanwhile: it is listed, but cannot be opened.
        Files.createSymbolicLink(old, dir.resolve("none"));
        clones(1).close();
        Files.delete(old);
        try (Stream<Path> left = Files.list(dir.resolve("vm.test"))) {
            assertEquals(List.of(), left.toList(), "its own is deleted, too");
        }
    }

    /** What is left behind is told with the package. A disk that is full is no result. */
    @Test
    void whatIsLeftBehindIsToldWithItsPackage() throws Exception {
        Files.createDirectories(dir.resolve("vm.test"));
        try (VmTest.CloneSet clones = clones(1)) {
            VmTest.Ending ending = new VmTest.ParallelRun(clones, List.of(List.of("a"), List.of("b")), () -> false).run((clone, packages, spool) ->
                    new VmTest.Ending(VmTest.Verdict.PASSED, 0, packages.contains("b") ? List.of("mount /x") : List.of(), List.of(), null, null, List.of()),
                    clone -> { }, false, (stream, bytes) -> { });
            assertEquals(List.of("mount /x (after b)"), ending.left());
        }
        try (VmTest.CloneSet clones = clones(1)) {
            Files.createDirectories(dir.resolve(clones.names.get(0) + ".test"));
            Files.createSymbolicLink(dir.resolve(clones.names.get(0) + ".test/output"), Path.of("/dev/full"));
            VmTest.VmException full = assertThrows(VmTest.VmException.class, () -> new VmTest.ParallelRun(clones, List.of(List.of("a")), () -> false).run(
                    (clone, packages, spool) -> {
                        spool.add(1, "x");
                        return ending(VmTest.Verdict.PASSED);
                    }, clone -> { }, false, (stream, bytes) -> { }));
            assertEquals(1, full.exitCode);
            assertTrue(full.getMessage().contains("cannot write all of"), full.getMessage());
        }
    }

    @Test
    void clonesThatDoNotFitIntoTheMemoryAreRefused() throws Exception {
        VmTest.CloneSet.checkMemory(new JsonObject(Map.of("memory", "1M")), 64);
        VmTest.VmException refused = assertThrows(VmTest.VmException.class, () ->
                VmTest.CloneSet.checkMemory(new JsonObject(Map.of("memory", "1000G")), 2));
        assertEquals(69, refused.exitCode);
        assertTrue(refused.getMessage().matches("(?s).* 2 clones with 1024000 MB of memory each do not fit into the \\d+ MB .*: not even one does; .*"), refused.getMessage());
        refused = assertThrows(VmTest.VmException.class, () -> VmTest.CloneSet.checkMemory(new JsonObject(Map.of("memory", "64M")), 1_000_000));
        assertTrue(refused.getMessage().matches("(?s).*use --parallel \\d+"), refused.getMessage());
    }

    /** The names fit into what a VM's name may be, whatever the VM's name is. */
    @Test
    void clonesHaveNamesThatAVmMayHave() throws Exception {
        Files.createDirectories(dir.resolve("x".repeat(64) + ".test"));
        try (VmTest.CloneSet clones = new VmTest.CloneSet(dir, "x".repeat(64), 64, () -> { })) {
            clones.names.forEach(name -> assertTrue(name.matches("[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"), name));
            assertEquals(64, new HashSet<>(clones.names).size());
        }
    }

    // Merging

    private static String event(String action, String pkg, String test, String more) {
        return "{\"Time\":\"2026-01-01T00:00:00Z\",\"Action\":\"" + action + "\",\"Package\":\"" + pkg + "\"" + (test.isEmpty() ? "" : ",\"Test\":\"" + test + "\"")
                + more + "}\n";
    }

    /** What vm-test writes for a part, with the parts of the list a b c d; FAIL as a test's name makes it fail. */
    private Path part(String name, VmTest.Shard shard, String... tests) throws Exception {
        return part(name, "go test -short ./...", shard, "0123456789abcdef0123456789abcdef01234567", tests);
    }

    private Path part(String name, String command, VmTest.Shard shard, String commit, String... tests) throws Exception {
        Path file = dir.resolve(name);
        VmTest.PackageList list = VmTest.PackageList.parse(Stream.of("a", "b", "c", "d").map(pkg -> "vm-test m/" + pkg + " 1 0\n").collect(Collectors.joining()));
        VmTest.Job job = new VmTest.Suites(new VmTest.Settings().add(Map.of("VM_TEST_X", command, "VM_TEST_BUILD", "true"), "the environment"), dir)
                .jobs(List.of("x"), VmTest.CallerArgs.NONE).get(0);
        List<String> packages = shard.of(VmTest.Timings.of(null, "x", list.packages()));
        job = job.with(new VmTest.Part(shard, packages, list.hash()));
        try (VmTest.EventFile events = new VmTest.EventFile(file, 1 << 20, List.of("x"))) {
            events.begin(job, "project", commit);
            VmTest.SuiteOutput output = new VmTest.SuiteOutput(events::write, new VmTest.MemoryLimits());
            boolean fails = Arrays.asList(tests).contains("FAIL");
            for (String pkg : packages) {
                output.take(1, event("run", pkg, "TestIt", ""));
                output.take(1, event("output", pkg, "TestIt", ",\"Output\":\"the reason\\n\""));
                output.take(1, event(fails ? "fail" : "pass", pkg, "TestIt", ""));
                output.take(1, event(fails ? "fail" : "pass", pkg, "", ",\"Elapsed\":" + packages.size()));
            }
            output.take(2, "some text\n");
            output.end();
            VmTest.Verdict verdict = fails ? VmTest.Verdict.FAILED : Arrays.asList(tests).contains("LOST") ? VmTest.Verdict.LOST : VmTest.Verdict.PASSED;
            VmTest.Ending ending = new VmTest.Ending(verdict, verdict.exitCode, Arrays.asList(tests).contains("LEAK") ? List.of("mount /y") : List.of(),
                    List.of(), verdict == VmTest.Verdict.LOST ? "it died" : null, null, List.of());
            events.end(new VmTest.Report(job, ending, output, Instant.now(), VmTest.Leaks.fail));
        }
        return file;
    }

    private Script.Result merge(Object... arguments) {
        return vmTest("merge " + Arrays.stream(arguments).map(String::valueOf).collect(Collectors.joining(" ")));
    }

    @Test
    void allPartsGiveOneReportAndOneVerdict() throws Exception {
        Path first = part("1", new VmTest.Shard(1, 2));
        Path second = part("2", new VmTest.Shard(2, 2));
        Path junit = dir.resolve("all.xml");
        Path json = dir.resolve("all.json");
        Path timings = dir.resolve("timings.json");
        Path mine = Files.writeString(dir.resolve("mine"), "mine");
        Files.createSymbolicLink(dir.resolve("timings.json.new"), mine); // a project's, where one could expect a temporary file
        merge("--junit", junit, "--json", json, "--timings", timings, first, second).exits(0).answers("== x passed, 4 pass, ");
        assertEquals(4, Files.readString(junit).split("<testcase ").length - 1);
        assertEquals(Map.of("m/a", 2.0, "m/b", 2.0, "m/c", 2.0, "m/d", 2.0),
                VmTest.Timings.of(VmTest.Timings.read(timings, "project"), "x", List.of("m/a", "m/b", "m/c", "m/d")));
        assertEquals("mine", Files.readString(mine));
        merge(json).exits(0).answers("== x passed, 4 pass, "); // what is merged can be merged
        merge(second, first).exits(0); // in any order
        String repeated = Files.readString(json).replace("\"repeated\":false", "\"repeated\":true");
        merge("--timings", timings, Files.writeString(dir.resolve("repeated"), repeated)).exits(0); // by --failed, which may skip tests
        assertEquals(Map.of("m/a", 1.0), VmTest.Timings.of(VmTest.Timings.read(timings, "project"), "x", List.of("m/a")), "unknown");
        // Two workspaces may have the project in directories of other names: the commit tells.
        String elsewhere = Files.readString(second).replace("\"project\":\"project\"", "\"project\":\"project@2\"");
        merge(first, Files.writeString(dir.resolve("elsewhere"), elsewhere)).exits(0);
        String unknown = "\"commit\":null";
        merge(Files.writeString(dir.resolve("unknown"), Files.readString(first).replaceAll("\"commit\":\"\\w+\"", unknown)),
                Files.writeString(dir.resolve("elsewhere"), elsewhere.replaceAll("\"commit\":\"\\w+\"", unknown))).exits(69).answers("project differ");
        merge(part("3", new VmTest.Shard(1, 2), "FAIL"), second).exits(1).answers("FAIL m/a TestIt", "the reason", "2 fail, 2 pass");
        merge(part("4", new VmTest.Shard(1, 2), "LEAK"), second).exits(1).answers("left behind (part 1/2)", "mount /y");
        merge(part("5", new VmTest.Shard(1, 2), "LOST"), second).exits(69).answers("VM (part 1/2)", "it died");
        String sixth = Files.readString(part("6", new VmTest.Shard(1, 6)));
        assertTrue(sixth.lines().allMatch(line -> line.startsWith("{") && line.getBytes().length < 65_536), sixth);
        List<Path> parts = new ArrayList<>();
        for (int index = 1; index <= 6; index++) {
            parts.add(part("of6-" + index, new VmTest.Shard(index, 6)));
        }
        merge(parts.toArray()).exits(0).answers("== x passed, 4 pass, "); // two parts have no packages
    }

    /** Whatever is missing, damaged or doubled: 69, and it is named. */
    @Test
    void whatIsNotAllPartsOfOneRunIsNoPass() throws Exception {
        Path first = part("1", new VmTest.Shard(1, 2));
        Path second = part("2", new VmTest.Shard(2, 2));
        List<String> lines = Files.readAllLines(second);
        merge(first).exits(69).answers("== x lost: part 2/2 is missing");
        merge(first, second, second).exits(69).answers("part 2/2 is in " + second + " and in " + second);
        merge(first, part("3", new VmTest.Shard(2, 3))).exits(69).answers("the number of parts is 3, not 2");
        merge(first, part("4", "go test ./...", new VmTest.Shard(2, 2), "0123456789abcdef0123456789abcdef01234567")).exits(69).answers("command differ");
        merge(first, part("5", "go test -short ./...", new VmTest.Shard(2, 2), null)).exits(69).answers("commit differ");
        merge(first, dir.resolve("none")).exits(69).answers("no such file", "part 2/2 is missing");
        merge(dir.resolve("none")).exits(69).says("there is nothing to merge");
        merge(Files.writeString(dir.resolve("soon"), Files.readString(second).replaceAll("\"started\":\"[^\"]*\"", "\"started\":\"soon\"")))
                .exits(69).says("it has a line that vm-test --json does not write");
        String deep = "[".repeat(3000) + "]".repeat(3000);
        Path nested = Files.writeString(dir.resolve("nested"), lines.get(0).replace("\"chosen\":false", "\"chosen\":" + deep) + "\n");
        merge(nested, nested).exits(69); // wherever the stack ends, and no stack trace
        String[][] damages = {
            {"its last line is missing", String.join("\n", lines.subList(0, lines.size() - 1)) + "\n"},
            {"events of the suite, and its last line counts", String.join("\n", Stream.concat(lines.subList(0, 3).stream(),
                    lines.subList(4, lines.size()).stream()).toList()) + "\n"},
            {"its last line has no end", Files.readString(second).strip()},
            {"cannot be read: it is empty", ""}, {"it has a line that vm-test --json does not write", "FAIL\n"},
            {"it has a line that vm-test --json does not write", "[]\n"}, {"it has a line that vm-test --json does not write", "{\"a\":".repeat(100_000) + "\n"},
            {"it has a line that vm-test --json does not write", event("pass", "m/b", "", "")},
            {"it has a line that vm-test --json does not write", lines.get(0) + "\n{\"suite\":\"x\",\"packages\":[[]]}\n"},
            {"differ", Files.readString(second).replace("\"version\":\"" + version() + "\"", "\"version\":\"0.1\"")},
            {"it has a line that vm-test --json does not write", Files.readString(second).replace("\"shard\":\"2/2\"", "\"shard\":\"3/2\"")},
            {"differ", Files.readString(second).replaceAll("\"list\":\"[^\"]*\"", "\"list\":\"0\"")},
            {"there is no result for these packages", Files.readString(second).replace("m/b\",\"Test", "m/a\",\"Test").replace("m/b\",\"El", "m/a\",\"El")},
            {"is in part 1 and in part 2", Files.readString(second).replace("\"packages\":[\"m/b\"", "\"packages\":[\"m/a\"")},
            {"the parts together do not have exactly the packages of the suite", Files.readString(second).replace("{\"suite\":\"x\",\"packages\":[\"m/b\"]}\n", "")}};
        String end = lines.get(lines.size() - 1);
        for (String contradiction : List.of(end.replace("\"suite\":\"x\"", "\"suite\":\"y\""), end.replace("\"exit\":0", "\"exit\":1"),
                end.replace("\"passed\"", "\"fine\""), end.replace("\"passed\"", "null"))) {
            assertFalse(contradiction.equals(end));
            merge(first, Files.writeString(dir.resolve("contradicts"), Files.readString(second).replace(end, contradiction))).exits(69)
                    .answers("a line that vm-test --json does not write");
        }
        String both = "\"suites\":[\"x\",\"y\"]";
        merge(Files.writeString(dir.resolve("both1"), Files.readString(first).replace("\"suites\":[\"x\"]", both)),
                Files.writeString(dir.resolve("both2"), Files.readString(second).replace("\"suites\":[\"x\"]", both)))
                .exits(69).answers("no file has the suites that were to run, too: y");
        merge(Files.writeString(dir.resolve("escapes"), Files.readString(first).replace("\"suite\":\"x\"", "\"suite\":\"\\u001b[2J\"")))
                .exits(69).says("there is nothing to merge");
        merge("--json", second, first, second).exits(2).says(second + " is one of the files to merge");
        assertEquals(lines, Files.readAllLines(second));
        for (String[] damage : damages) {
            Path damaged = Files.writeString(dir.resolve("damaged"), damage[1]);
            Script.Result ran = merge(first, damaged);
            assertEquals(damage[0].startsWith("there is no result") ? 1 : 69, ran.exitCode(), ran.toString());
            assertTrue((ran.out() + ran.err()).contains(damage[0]), damage[0] + ": " + ran);
            assertFalse(ran.out().contains("== x passed"), ran.out());
        }
    }

    /** If a part cannot be read to its end, a message names it, and the verdict is still printed. */
    @Test
    void aPartThatIsCutInALineIsNamedAndTheVerdictTold() throws Exception {
        Path first = part("1", new VmTest.Shard(1, 2));
        Path second = part("2", new VmTest.Shard(2, 2));
        Path cut = Files.writeString(dir.resolve("cut"), Files.readString(second).strip());
        Path all = dir.resolve("all.json");
        ByteArrayOutputStream told = new ByteArrayOutputStream();
        PrintStream before = System.err;
        System.setErr(new PrintStream(told, true));
        try {
            merge("--json", all, first, cut).exits(69).answers("== x lost: ", cut + " cannot be read: its last line has no end");
        } finally {
            System.setErr(before);
        }
        assertEquals("vm-test: x lost: " + cut + " ends in the middle of the suite: its last line is missing\nvm-test: cannot write all of " + all + ": " + cut
                + " cannot be read: its last line has no end\n", told.toString());
        merge(all).exits(69);
        merge("--json", dir.resolve("none/all.json"), first, second).exits(2).says("name a file in a directory that exists");
        merge("--json", Files.createSymbolicLink(dir.resolve("dangling"), dir.resolve("none/all.json")), first, second).exits(69)
                .says("no such file: ");
    }

    private static String version() {
        return VmTest.commandLine(new VmTest.Settings()).getCommandSpec().version()[0];
    }

    /** Go's decoders ignore case and unknown members: none of ours may be taken for one of an event's. */
    @Test
    void theLinesAroundTheEventsMeanNothingToOtherReaders() throws Exception {
        Set<String> theirs = Set.of("time", "action", "package", "test", "elapsed", "output", "failedbuild", "importpath", "runid", "key", "value", "path");
        Path file = part("1", new VmTest.Shard(1, 2), "FAIL", "LEAK");
        int ours = 0;
        for (String line : Files.readString(file, ISO_8859_1).lines().toList()) {
            JsonObject json = JsonParser.object().from(line);
            if (json.has("suite")) {
                ours++;
                json.keySet().forEach(name -> assertFalse(theirs.contains(name.toLowerCase()), name));
            }
        }
        assertTrue(ours >= 3, Files.readString(file));
    }
}
