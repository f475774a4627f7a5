import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.jupiter.api.io.TempDir;

/** examples/ci/slurm.sh on a real Slurm of two nodes, both on this machine. Its daemons live as long as this class. */
@Tag("foreign")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class SlurmTest {

    /** The daemons start within seconds; a busy machine gets more. */
    private static final Duration LIMIT = Duration.ofMinutes(2);
    private static final Guest GUEST = Guest.twin("slurm");
    private static final List<Process> DAEMONS = new ArrayList<>();

    @TempDir
    static Path temporary;

    private static Path project;
    private static Guest user;

    @BeforeAll
    static void aClusterWithAnInstalledVm() throws Exception {
        assumeTrue(Files.isExecutable(Path.of("/usr/sbin/slurmctld")), "no Slurm on this machine");
        Path conf = Files.writeString(temporary.resolve("slurm.conf"), configuration());
        project = copyOfTheSample();
        // What an admin would change in the script: two shards, one at a time, as this machine has two processors.
        String script = Files.readString(Path.of("examples/ci/slurm.sh"));
        assertTrue(script.contains("\nshards=4 ") && script.contains("\nat_once=2 "), script);
        Path edited = Files.writeString(project.resolve("slurm.sh"), script.replace("\nshards=4 ", "\nshards=2 ").replace("\nat_once=2 ", "\nat_once=1 "));
        assertTrue(edited.toFile().setExecutable(true));
        user = GUEST.with("SLURM_CONF", conf.toString(), "VM_PROJECT", project.toString(), "VM_TEST_BUILD", "true",
                "VM_TESTER", VmCtl.shellQuoted(Script.command("VmTest")), "VM_TEST_HALVES", "go test -v ./internal/words ./stats",
                "VM_TEST_BROKEN", "echo the reason; exit 3"); // it cannot be divided, so the second shard has nothing to do
        startDaemons();
    }

    @AfterAll
    static void end() {
        if (user != null) {
            user.run(List.of("scancel", "--user", System.getProperty("user.name")));
        }
        Collections.reverse(DAEMONS);
        for (Process daemon : DAEMONS) {
            daemon.descendants().forEach(ProcessHandle::destroy);
            daemon.destroy();
            daemon.onExit().join();
        }
        GUEST.ctl("list");
        assertEquals(List.of(), GUEST.qemus());
    }

    private static String configuration() throws IOException {
        String name = System.getProperty("user.name");
        String host = Files.readString(Path.of("/proc/sys/kernel/hostname")).strip().replaceFirst("\\..*", "");
        byte[] key = new byte[1024];
        new SecureRandom().nextBytes(key);
        assertTrue(Files.write(temporary.resolve("munge.key"), key).toFile().setReadable(false, false));
        assertTrue(temporary.resolve("munge.key").toFile().setReadable(true, true));
        Files.createDirectory(temporary.resolve("state"));
        return """
                ClusterName=test
                SlurmctldHost=%2$s(127.0.0.1)
                SlurmctldPort=%3$d
                SlurmUser=%1$s
                SlurmdUser=%1$s
                AuthType=auth/munge
                AuthInfo=socket=DIR/munge.socket
                CredType=cred/munge
                StateSaveLocation=DIR/state
                SlurmdSpoolDir=DIR/spool-%%n
                SlurmctldPidFile=DIR/slurmctld.pid
                SlurmdPidFile=DIR/slurmd-%%n.pid
                ProctrackType=proctrack/linuxproc
                TaskPlugin=task/none
                SelectType=select/cons_tres
                SelectTypeParameters=CR_Core_Memory
                JobAcctGatherType=jobacct_gather/none
                AccountingStorageType=accounting_storage/none
                MpiDefault=none
                SlurmdParameters=config_overrides
                NodeName=one,two NodeHostname=%2$s NodeAddr=127.0.0.1 Port=%4$d,%5$d CPUs=2 RealMemory=4000
                PartitionName=all Nodes=one,two Default=YES
                """.formatted(name, host, Guest.freePort(), Guest.freePort(), Guest.freePort()).replace("DIR", temporary.toString());
    }

    private static void startDaemons() throws Exception {
        String conf = user.settings().get("SLURM_CONF");
        daemon("munged", "--foreground", "--force", "--key-file=" + temporary.resolve("munge.key"), "--socket=" + temporary.resolve("munge.socket"),
                "--pid-file=" + temporary.resolve("munged.pid"), "--log-file=" + temporary.resolve("munged.log"), "--seed-file=" + temporary.resolve("munged.seed"));
        awaitOutput("", "munge", "--no-input", "--socket=" + temporary.resolve("munge.socket"), "--output=" + temporary.resolve("credential"));
        daemon("slurmctld", "-D", "-f", conf);
        daemon("slurmd", "-D", "-N", "one", "-f", conf);
        daemon("slurmd", "-D", "-N", "two", "-f", conf);
        awaitOutput("idle 2", "sinfo", "--noheader", "--format=%T %D");
    }

    private static void daemon(String... command) throws IOException {
        Path log = temporary.resolve("daemon-" + DAEMONS.size() + ".log");
        List<String> words = new ArrayList<>(List.of(command));
        words.set(0, "/usr/sbin/" + command[0]);
        DAEMONS.add(new ProcessBuilder(words).redirectErrorStream(true).redirectOutput(log.toFile()).start());
    }

    /** Repeats a command until it ends with 0 and prints this. */
    private static void awaitOutput(String part, String... command) throws Exception {
        Script.Result last = null;
        for (long deadline = System.nanoTime() + LIMIT.toNanos(); System.nanoTime() < deadline; Thread.sleep(200)) {
            last = user.run(List.of(command));
            if (last.exitCode() == 0 && last.out().contains(part)) {
                return;
            }
        }
        throw new AssertionError(last + logs());
    }

    private static String logs() throws IOException {
        StringBuilder text = new StringBuilder();
        try (Stream<Path> files = Stream.concat(Files.list(temporary), Files.list(project))) {
            for (Path file : files.filter(file -> file.toString().matches(".*\\.(log|out)")).sorted().toList()) {
                text.append("\n--- ").append(file.getFileName()).append('\n').append(Files.readString(file, StandardCharsets.ISO_8859_1));
            }
        }
        return text.toString();
    }

    private static Path copyOfTheSample() throws IOException {
        Path copy = temporary.resolve("sample");
        try (Stream<Path> files = Files.walk(Guest.SAMPLE)) {
            for (Path file : files.toList()) {
                Files.copy(file, copy.resolve(Guest.SAMPLE.relativize(file).toString()));
            }
        }
        return copy;
    }

    private static Script.Result slurm(String suite) {
        return user.run(List.of("env", "-C", project.toString(), "./slurm.sh", suite));
    }

    private static List<Path> shards() throws IOException {
        try (Stream<Path> files = Files.walk(project)) {
            return files.filter(file -> file.toString().matches(".*/shards-\\d+/shard-\\d\\.json")).sorted().toList();
        }
    }

    @Test
    @Order(1)
    void theShardsTogetherAreTheSuite() throws IOException {
        Script.Result result = slurm("halves");
        assertEquals(0, result.exitCode(), () -> result + read());
        assertEquals(2, shards().size());
        String report = Files.readString(project.resolve("report.xml"));
        for (String part : List.of("sample/internal/words", "sample/stats")) {
            assertTrue(report.contains(part), part + " is not in " + report);
        }
        assertEquals(1, GUEST.ctl("list").exits(0).answers("guest ").out().lines().count(), "each task deletes its clone");
    }

    private static String read() {
        try {
            return logs();
        } catch (IOException gone) {
            return gone.toString();
        }
    }

    @Test
    @Order(2)
    void aMissingShardIsNoSuccess() throws IOException {
        Path lost = shards().get(1);
        String array = lost.getParent().getFileName().toString().replace("shards-", "");
        Guest node = user.with("SLURM_SUBMIT_DIR", project.toString());
        node.run(List.of(project.resolve("slurm.sh").toString(), "--merge", array)).exits(0);
        Files.delete(lost);
        assertFalse(node.run(List.of(project.resolve("slurm.sh").toString(), "--merge", array)).exitCode() == 0);
    }

    @Test
    @Order(3)
    void oneFailedShardIsTheVerdict() throws IOException {
        Script.Result result = slurm("broken");
        assertEquals(1, result.exitCode(), () -> result + read());
        String report = Files.readString(project.resolve("report.xml"));
        assertTrue(report.contains("the reason") && report.contains("name=\"broken\""), report);
    }
}
