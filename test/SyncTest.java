import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** VmSync against the stand-in guest: one tree with everything that trips over, by both engines, and back again. */
@Tag("core")
@Tag("vm")
final class SyncTest {

    private static final Guest GUEST = Guest.twin("sync's, \u00e9");
    private static final Path PROJECT = Guest.BUILD.resolve("test/project, \u00e9");

    @BeforeAll
    static void running() {
        GUEST.fresh();
    }

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), GUEST.qemus());
    }

    @ParameterizedTest
    @ValueSource(strings = {"rsync", "tar"})
    void theGuestHoldsWhatTheProjectHolds(String engine) throws IOException {
        Guest project = project(engine);
        project.sync("--engine", engine).exits(0);
        assertEquals(local(), remote(engine));
        project.sync("--engine", engine).exits(0).answers(": 0 sent, 0 deleted, 0 bytes");

        // Changes of every kind, then the same again.
        Files.delete(PROJECT.resolve("plain"));
        Files.createDirectory(PROJECT.resolve("plain")); // a file became a directory
        Files.delete(PROJECT.resolve("dir/inner"));
        Files.delete(PROJECT.resolve("dir"));
        Files.writeString(PROJECT.resolve("dir"), "a directory became a file");
        Files.delete(PROJECT.resolve("link"));
        Files.createSymbolicLink(PROJECT.resolve("link"), Path.of("it's \"new\""));
        Files.setPosixFilePermissions(PROJECT.resolve("script.sh"), PosixFilePermissions.fromString("rw-r--r--"));
        project.sync("--engine", engine).exits(0);
        assertEquals(local(), remote(engine));
        GUEST.sh("rm -rf /root/tree-" + engine).exits(0);
    }

    @ParameterizedTest
    @ValueSource(strings = {"rsync", "tar"})
    void gitInTheGuestIsAtHome(String engine) throws IOException {
        Guest project = project(engine);
        for (String[] git : new String[][] {{"init", "-q"}, {"add", "."}, {"-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "all"}}) {
            List<String> command = new ArrayList<>(List.of("git", "-C", PROJECT.toString()));
            command.addAll(List.of(git));
            GUEST.run(command).exits(0);
        }
        // As if another user than root had made it on the host: the guest's git must not take it for somebody else's.
        if (System.getProperty("user.name").equals("root")) {
            GUEST.run(List.of("chown", "-hR", "65534:65534", PROJECT.toString())).exits(0);
        }
        project.sync("--engine", engine).exits(0);
        String status = GUEST.sh("cd /root/tree-" + engine + " && GIT_CONFIG_NOSYSTEM=1 git status --porcelain --branch").exits(0).out();
        assertEquals(1, status.lines().count(), status);
        GUEST.sh("rm -rf /root/tree-" + engine).exits(0);
    }

    @ParameterizedTest
    @ValueSource(strings = {"rsync", "tar"})
    void aWatchBringsASaveAtOnceAndOutlivesAStopAndRestores(String engine) throws Exception {
        Guest project = project(engine);
        Path log = Guest.BUILD.resolve("test/watch.log");
        Process watch = project.start(log, "VmSync", "--watch", "--engine", engine);
        try {
            awaitSyncs(log, 1);
            StringBuilder latencies = new StringBuilder(engine + ": seconds from a save to its sync's end:");
            for (int save = 0; save < 5; save++) {
                long saved = System.nanoTime();
                Files.writeString(PROJECT.resolve("dir/inner"), "save " + save);
                awaitSyncs(log, 2 + save);
                latencies.append(String.format(" %.2f", (System.nanoTime() - saved) / 1e9));
            }
            System.out.println(latencies);
            GUEST.sh("cat /root/tree-" + engine + "/dir/inner").exits(0).answers("save 4");
            if (engine.equals("rsync")) {
                GUEST.ctl("stop", "--force").exits(0);
                Files.writeString(PROJECT.resolve("dir/inner"), "while it was stopped");
                GUEST.ctl("restore").exits(0); // which starts it
                awaitSyncs(log, 7);
                GUEST.sh("cat /root/tree-" + engine + "/dir/inner").exits(0).answers("while it was stopped");
            }
            int before = syncs(log);
            GUEST.ctl("restore").exits(0);
            awaitSyncs(log, before + 1);
            assertEquals(local(), remote(engine));
        } finally {
            watch.destroy();
            assertEquals(143, watch.waitFor());
        }
        GUEST.sh("rm -rf /root/tree-" + engine).exits(0);
    }

    private static int syncs(Path log) throws IOException {
        return Files.exists(log) ? (int) Files.readString(log).lines().filter(line -> line.contains(" synced ")).count() : 0;
    }

    private static void awaitSyncs(Path log, int count) throws Exception {
        for (int i = 0; syncs(log) < count; i++) { // five minutes: a boot on a busy machine
            assertTrue(i < 15_000, Files.exists(log) ? Files.readString(log) : "no log");
            Thread.sleep(20);
        }
    }

    /** VmSyncTest has it by both engines, where there is an sshd. */
    @Test
    void whatIsExcludedStaysInTheGuest() throws IOException {
        String engine = "tar";
        Guest project = project(engine);
        project.sync("--engine", engine).exits(0);
        GUEST.sh("cd /root/tree-" + engine + " && touch cache.db tree-" + engine + " stray").exits(0);
        project.sync("--engine", engine, "--dry-run").exits(0);
        GUEST.sh("test -e /root/tree-" + engine + "/stray").exits(0);
        project.sync("--engine", engine).exits(0);
        GUEST.sh("cd /root/tree-" + engine + " && test -e cache.db && test -e tree-" + engine + " && test ! -e stray").exits(0);
        GUEST.sh("rm -rf /root/tree-" + engine).exits(0);
    }

    @ParameterizedTest
    @ValueSource(strings = {"rsync", "tar"})
    void aDirectoryThatNoSyncMadeIsNotEmptied(String engine) throws IOException {
        Guest project = project(engine).with("VM_REMOTE_DIR", "/root/precious");
        GUEST.sh("mkdir -p /root/precious && echo mine >/root/precious/file").exits(0);
        project.sync("--engine", engine).exits(2).says("--force");
        GUEST.sh("cat /root/precious/file").exits(0).answers("mine");
        GUEST.sh("rm -rf /root/precious").exits(0);
    }

    /** There is one way to pull, whatever engine syncs. A link that leads out of the tree stays there, and is named. */
    @Test
    void pullBringsFilesBackAndNoLinkThatLeadsOut() throws IOException {
        GUEST.sh("rm -rf /root/out && mkdir -p /root/out/sub && echo result >'/root/out/sub/a b' && ln -s /etc/passwd /root/out/escape").exits(0);
        Path local = Guest.BUILD.resolve("test/pulled");
        Guest.delete(local);
        GUEST.sync("pull", "/root/out/", local.toString()).exits(1).says("escape: a link that leads out of the directory");
        assertEquals("result\n", Files.readString(local.resolve("sub/a b")));
        assertFalse(Files.exists(local.resolve("escape"), LinkOption.NOFOLLOW_LINKS));
        Guest.delete(local);
    }

    private static Guest project(String engine) throws IOException {
        Guest.delete(PROJECT);
        Files.createDirectories(PROJECT.resolve("empty"));
        Files.createDirectories(PROJECT.resolve("dir"));
        Files.writeString(PROJECT.resolve("dir/inner"), "x");
        Files.writeString(PROJECT.resolve("plain"), "plain");
        for (String name : List.of("new\nline", "a b", "it's", "say \"hi\"", "\u00e9\u00e8 \u65e5\u672c", "-dash", "back\\slash", "$HOME", "*")) {
            Files.writeString(PROJECT.resolve(name), name);
        }
        Files.writeString(PROJECT.resolve("script.sh"), "#!/bin/sh\n");
        Files.setPosixFilePermissions(PROJECT.resolve("script.sh"), PosixFilePermissions.fromString("rwxr-x---"));
        Files.createSymbolicLink(PROJECT.resolve("link"), Path.of("nowhere at all"));
        Files.setLastModifiedTime(PROJECT.resolve("plain"), FileTime.from(Instant.parse("2001-02-03T04:05:06Z")));
        return GUEST.with("VM_PROJECT", PROJECT.toString(), "VM_REMOTE_DIR", "/root/tree-" + engine);
    }

    /** Kind, mode, size, time, link target and name of all there is; the guest's tools are those of a BSD. */
    private static String local() {
        return listing(GUEST.run(List.of("sh", "-c", "cd \"$1\" && find . -type d -exec sh -c 'for f; do printf \"d %s\\n\" \"$f\"; done' sh {} + "
                + "; find . -type f -exec stat -c '%a %s %Y %n' {} + ; find . -type l -exec sh -c 'for f; do printf \"l %s -> %s\\n\" \"$f\" \"$(readlink \"$f\")\"; done' sh {} +",
                "sh", PROJECT.toString())).exits(0).out());
    }

    private static String remote(String engine) {
        return listing(GUEST.sh("cd /root/tree-" + engine + " && find . -type d -exec sh -c 'for f; do printf \"d %s\\n\" \"$f\"; done' sh {} + "
                + "; find . -type f -exec stat -f '%Lp %z %m %N' {} + ; find . -type l -exec sh -c 'for f; do printf \"l %s -> %s\\n\" \"$f\" \"$(readlink \"$f\")\"; done' sh {} +")
                .exits(0).out());
    }

    private static String listing(String text) {
        List<String> lines = text.lines().sorted().toList();
        assertTrue(lines.size() > 10, text);
        return String.join("\n", lines);
    }
}
