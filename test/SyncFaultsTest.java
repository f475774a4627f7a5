import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What takes long of VmSync, without a VM: connections cut at many points, and a tree of 50,000 files. */
@Tag("faults")
final class SyncFaultsTest {

    private static Sshd sshd;

    @BeforeAll
    static void start() throws Exception {
        sshd = new Sshd();
    }

    @AfterAll
    static void stop() throws IOException {
        if (sshd != null) {
            sshd.close();
            VmSyncTest.delete(sshd.base);
        }
    }

    private static Script.Result sync(Path project, Path guest, String... args) {
        return VmSyncTest.call(Map.of("VM_DIR", sshd.vmDir.toString(), "VM_PROJECT", project.toString(), "VM_REMOTE_DIR", guest.toString()),
                Map.of(), args);
    }

    @VmSyncTest.ByEitherEngine
    void aConnectionCutAnywhereLeavesWholeFilesAndTheNextSyncMendsIt(String engine) throws IOException {
        Path project = Files.createDirectories(sshd.base.resolve("cut-" + engine));
        Path guest = sshd.base.resolve("guest/cut-" + engine);
        Random random = new Random(1);
        rewrite(project, random);
        sync(project, guest, "--engine", engine).exits(0);
        rewrite(project, random);
        sshd.budget.set(1L << 40);
        sync(project, guest, "--engine", engine).exits(0);
        long all = (1L << 40) - sshd.budget.get();
        int lost = 0;
        for (double part : new double[] {0, 0.001, 0.003, 0.01, 0.1, 0.5, 0.9, 0.995, 0.999}) {
            Map<String, byte[]> before = contents(project);
            rewrite(project, random);
            sshd.budget.set((long) (all * part));
            Script.Result cut = sync(project, guest, "--engine", engine);
            sshd.budget.set(Long.MAX_VALUE);
            if (cut.exitCode() != 0) {
                lost++;
                cut.exits(69).says("cannot be reached");
                assertEquals(1, cut.err().lines().count(), cut.err());
            }
            Map<String, byte[]> wanted = contents(project);
            contents(guest).forEach((name, content) -> assertTrue(Arrays.equals(content, before.get(name)) || Arrays.equals(content, wanted.get(name)),
                    () -> "cut at " + part + ": " + name + " is neither the old nor the new file"));
            sync(project, guest, "--engine", engine).exits(0);
            assertEquals(Map.of(), differences(project, guest), "after a cut at " + part);
        }
        assertTrue(lost > 6, lost + " syncs only were cut");
    }

    private static Map<String, String> differences(Path project, Path guest) throws IOException {
        Map<String, String> wanted = VmSyncTest.tree(project);
        Map<String, String> there = VmSyncTest.tree(guest);
        Map<String, String> all = new TreeMap<>(wanted);
        all.putAll(there);
        all.replaceAll((name, either) -> wanted.get(name) + " <> " + there.get(name));
        all.keySet().removeIf(name -> Objects.equals(wanted.get(name), there.get(name)));
        return all;
    }

    /** New content, of the same sizes, in every file. */
    private static void rewrite(Path project, Random random) throws IOException {
        for (int i = 0; i < 30; i++) {
            byte[] content = new byte[i % 10 == 0 ? 500_000 : 1000];
            random.nextBytes(content);
            Files.createDirectories(project.resolve("dir" + i % 3));
            Files.write(project.resolve("dir" + i % 3 + "/file" + i), content);
        }
    }

    /** What stands under the names of files, without what is on its way there. */
    private static Map<String, byte[]> contents(Path root) throws IOException {
        Map<String, byte[]> contents = new TreeMap<>();
        for (String name : VmSyncTest.tree(root).keySet()) {
            if (name.matches("dir./file.*")) {
                contents.put(name, Files.readAllBytes(root.resolve(name)));
            }
        }
        return contents;
    }

    @Test
    void fiftyThousandFilesTakeNotMuchLongerThanWithPlainRsync() throws Exception {
        Path project = sshd.base.resolve("big");
        for (int i = 0; i < 50_000; i++) {
            Path directory = project.resolve("package" + i / 1000 + "/sub" + i / 50 % 20);
            if (i % 50 == 0) {
                Files.createDirectories(directory);
            }
            Files.writeString(directory.resolve("file" + i + ".go"), "package p // " + i + "\n" + "x".repeat(i % 2000));
        }
        Path changed = project.resolve("package7/sub7/file7350.go");
        assertTrue(Files.exists(changed));
        StringBuilder table = new StringBuilder("50,000 files, seconds (ratio to plain rsync -az --delete)\n");
        double[] plain = new double[3];
        for (String by : List.of("plain", "rsync", "tar")) {
            Path guest = sshd.base.resolve("guest/big-" + by);
            table.append(String.format("%-6s", by));
            for (int run = 0; run < 3; run++) { // first, no change, one change
                if (run == 2) {
                    Files.writeString(changed, "changed by " + by);
                }
                long start = System.nanoTime();
                if (by.equals("plain")) {
                    Files.createDirectories(guest);
                    Process rsync = new ProcessBuilder("rsync", "-az", "--delete", "-e", "ssh -F '" + sshd.vmDir.resolve("ssh_config").toString().replace("'", "''") + "'",
                            project + "/", "dfly-vm:" + guest + "/").redirectErrorStream(true).start();
                    String said = new String(rsync.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
                    assertEquals(0, rsync.waitFor(), said);
                } else {
                    String out = sync(project, guest, "--engine", by).exits(0).out();
                    assertTrue(out.contains(": " + List.of(50_000, 0, 1).get(run) + " sent, 0 deleted"), out);
                }
                double seconds = (System.nanoTime() - start) / 1e9;
                plain[run] = by.equals("plain") ? seconds : plain[run];
                table.append(String.format("  %6.2f (%.2f)", seconds, seconds / plain[run]));
                // Generous: a busy machine must not trip it, a quadratic algorithm must.
                assertTrue(seconds < 20 + 10 * plain[run], table.toString());
            }
            table.append('\n');
            if (!by.equals("plain")) {
                assertEquals(Map.of(), differences(project, guest));
            }
        }
        System.out.println(table);
    }
}
