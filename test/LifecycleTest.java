import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;

/** A VM's life after its installation: first start, status, exec, snapshots, restore, stop, in the order of a day's work. */
@Tag("core")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class LifecycleTest {

    private static final Guest GUEST = Guest.unstartedTwin("a life's days, \u00e9");
    private static final int PORT = Guest.freePort();

    @AfterAll
    static void stop() {
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(List.of(), GUEST.qemus());
    }

    @Test
    @Order(1)
    void whatNeedsARunningVmSaysHowToStartIt() {
        GUEST.ctl("status").exits(3).answers("stopped");
        for (Script.Result result : List.of(GUEST.ctl("exec", "--", "true"), GUEST.sync(), GUEST.test("unit"))) {
            result.exits(3).says("vm-ctl start");
        }
        GUEST.ctl("stop").exits(0);
    }

    @Test
    @Order(2)
    void theFirstStartBootsAndKeepsDiskAndRam() throws IOException {
        GUEST.ctl("start", "--forward", PORT + ":80").exits(0);
        assertTrue(Files.exists(GUEST.file(".snapshots").resolve("clean/ram")));
        assertTrue(Files.isSymbolicLink(GUEST.file(".qcow2")) && GUEST.file(".qcow2").toRealPath().startsWith(GUEST.file(".disks")));
        GUEST.ctl("status").exits(0).answers("running", PORT + ":80");
        GUEST.ctl("start").exits(0).says("runs already");
        assertEquals(1, GUEST.qemus().size());
    }

    @Test
    @Order(3)
    void onlyLoopbackListens() throws IOException {
        List<String> inodes;
        try (Stream<Path> open = Files.list(Path.of("/proc/" + GUEST.qemus().get(0).pid() + "/fd"))) {
            inodes = open.map(fd -> GUEST.run(List.of("readlink", fd.toString())).out().strip())
                    .filter(target -> target.startsWith("socket:[")).map(target -> target.substring(8, target.length() - 1)).toList();
        }
        int listeners = 0;
        for (String table : List.of("tcp", "tcp6", "udp", "udp6")) {
            for (String line : Files.readAllLines(Path.of("/proc/net/" + table))) {
                String[] fields = line.strip().split("\\s+");
                boolean listens = table.startsWith("udp") || fields[3].equals("0A");
                if (fields.length > 9 && inodes.contains(fields[9]) && listens) {
                    assertEquals("0100007F", fields[1].substring(0, fields[1].indexOf(':')), line);
                    listeners++;
                }
            }
        }
        assertEquals(2, listeners, "ssh and the forward");
    }

    @Test
    @Order(4)
    void execPassesTheCodeTheInputAndTheWords() {
        GUEST.ctl("exec", "--", "sh", "-c", "exit 42").exits(42);
        GUEST.ctl("exec", "--", "printf", "%s|", "a b", "it's", "$HOME", "", "\u00e9").exits(0).answers("a b|it's|$HOME||\u00e9|");
        GUEST.ctl("exec", "--env", "GREETING=a 'b' $c", "--timeout", "5m", "--", "sh", "-c", "echo \"$GREETING\"; exit 255")
                .exits(255).answers("a 'b' $c");
    }

    @Test
    @Order(5)
    void execKillsWhatIsNotDoneInTime() {
        GUEST.ctl("exec", "--timeout", "2s", "--", "sleep 4321 & sleep 4321").exits(124).says("killed after 2 s");
        GUEST.sh("ps -axww -o pid,command | grep '[s]leep 4321'").exits(1);
    }

    /** Ctrl-C reaches the tool and its ssh; a signal by kill the tool alone. Both end the guest's command, and let go of stdout. */
    @Test
    @Order(5)
    void aCommandInTheGuestEndsWithTheOneThatRunsIt() throws IOException, InterruptedException {
        String tool = VmCtl.shellQuoted(Script.command("VmCtl", "exec", "--", "echo begun; sleep 4322 & sleep 4322"));
        for (String signal : List.of("INT", "TERM")) {
            for (String target : List.of("$!", "-$!")) {
                // setsid gives the tool a process group; the shell lets no background process get SIGINT otherwise
                String script = "said=$(mktemp); env --default-signal=INT setsid " + tool + " >$said & until grep -q begun $said; do sleep 0.1; done; "
                        + "kill -" + signal + " " + target + "; wait $!; echo $?; rm $said";
                Script.Result result = GUEST.run(List.of("sh", "-c", script));
                assertEquals(signal.equals("INT") ? "130\n" : "143\n", result.exits(0).out(), result.err());
                GUEST.sh("ps -axww -o pid,command | grep '[s]leep 4322'").exits(1);
            }
        }
        // Whoever waits for the end of its output gets it.
        GUEST.run(List.of("sh", "-c", "said=$(timeout -s INT 5 " + tool + "); echo $said")).exits(0).answers("begun");
        GUEST.sh("ps -axww -o pid,command | grep '[s]leep 4322'").exits(1);
    }

    @Test
    @Order(5)
    void theConsoleTakesItsInputFromAPipe() {
        GUEST.run(List.of("sh", "-c", "echo | " + VmCtl.shellQuoted(Script.command("VmCtl", "console")))).exits(0).answers("login: ");
    }

    @Test
    @Order(6)
    void anyToolReachesTheGuestByTheSshConfig() {
        ssh("echo from $(hostname)").exits(0).answers("from ");
    }

    private static Script.Result ssh(String command) {
        return GUEST.run(List.of("ssh", "-F", GUEST.vmDir().resolve("ssh_config").toString(), "guest", command));
    }

    @Test
    @Order(7)
    void aSnapshotWithRamComesBackBootedWithTheRightClock() {
        DateTimeFormatter form = DateTimeFormatter.ofPattern("yyyyMMddHHmm.ss").withZone(ZoneOffset.UTC);
        GUEST.sh("echo one >/root/state; sync; date -u " + form.format(Instant.now().minus(Duration.ofMinutes(10)))).exits(0);
        String boot = GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out();
        GUEST.ctl("snapshot", "one", "--yes").exits(0).says("kept disk and RAM", "the guest was paused for "); // as if ten minutes ago
        GUEST.sh("echo two >/root/state").exits(0);
        // Linux takes the new random bytes in without using them at once; a real DragonFly gives different numbers after each restore.
        Script.Result restored = GUEST.ctl("restore", "one").exits(0);
        assertFalse(restored.err().contains("the guest answers, but"), restored.err());
        GUEST.sh("sysctl kern.seedenable; cat /root/state").exits(0).answers("kern.seedenable: 0", "one");
        assertEquals(boot, GUEST.sh("cat /proc/sys/kernel/random/boot_id").exits(0).out(), "it booted anew");
        double behind = 1e9;
        double trip = 1e9; // to the guest and back: the clock was set over such a connection, and is read over it
        for (int i = 0; i < 3; i++) { // the guest tells when its second begins; the way here only adds
            long sent = System.nanoTime();
            ssh("true").exits(0);
            trip = Math.min(trip, (System.nanoTime() - sent) / 1e9);
            long second = Long.parseLong(ssh("s=$(date +%s); while [ $(date +%s) = $s ]; do :; done; date +%s").exits(0).out().strip());
            behind = Math.min(behind, System.currentTimeMillis() / 1000.0 - second);
        }
        System.out.println("after a restore the guest's clock is " + behind + " s behind");
        assertTrue(Math.abs(behind) <= 1 + 2 * trip, "the guest's clock is " + behind + " s behind");
        GUEST.ctl("status").answers(PORT + ":80"); // the forward outlived snapshot and restore
    }

    @Test
    @Order(8)
    void restoreThenSnapshotThenRestoreLosesNothing() throws IOException {
        GUEST.ctl("restore").exits(0).says("restored clean with its RAM");
        GUEST.sh("test ! -e /root/state").exits(0);
        assertTrue(Files.size(GUEST.file(".qcow2")) < Files.size(GUEST.file("-clean.qcow2")) / 4, "the working disk is no thin overlay");
        GUEST.sh("echo three >/root/state; sync").exits(0);
        GUEST.ctl("snapshot", "one").exits(2).says("--yes");
        GUEST.ctl("snapshot", "one", "--yes").exits(0);
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("restore", "one").exits(0);
        GUEST.sh("cat /root/state").exits(0).answers("three");
        GUEST.ctl("snapshot", "--list").exits(0).answers("clean", "one", "disk and RAM");
    }

    /** Two VMs that begin as this one's snapshot, at once, while it runs: each is itself in all that must differ. */
    @Test
    @Order(9)
    void clonesAreVmsOfTheirOwn() {
        GUEST.sh("echo source >/root/state; sync").exits(0);
        int port = number("port");
        Script.Result made = GUEST.ctl("clone", "--snapshot", "one", "--start", "left", "right").exits(0);
        // Linux takes the new random bytes in without using them at once; a real DragonFly's clones give different numbers.
        assertFalse(made.err().contains("the guest answers, but"), made.err());
        List<Guest> clones = List.of(GUEST.with("VM_NAME", "left"), GUEST.with("VM_NAME", "right"));
        for (Guest clone : clones) {
            String name = clone.settings().get("VM_NAME");
            long before = System.currentTimeMillis() / 1000;
            List<String> lines = clone.sh("hostname; cat /root/state; date +%s").exits(0).out().lines().toList();
            long after = System.currentTimeMillis() / 1000; // on a busy machine much later
            assertEquals(List.of(name, "three"), lines.subList(0, 2));
            long clock = Long.parseLong(lines.get(2));
            assertTrue(clock >= before - 3 && clock <= after + 3, "the clock of " + name + " is at " + clock + ", between " + before + " and " + after);
            clone.ctl("clone", "more").exits(69).says(name + " is a clone itself");
        }
        String list = GUEST.ctl("list").exits(0).answers("guest  ").out();
        assertEquals(2, list.lines().filter(line -> line.matches("(left|right) .*running.*  clone of guest/one")).count(), list);
        assertEquals(3, list.lines().map(line -> line.replaceAll("  clone.*", "").replaceAll(".*port ", "")).distinct().count(), list);
        GUEST.ctl("destroy", "--yes").exits(69).says("clones build on it: left, right");
        GUEST.ctl("snapshot", "--delete", "one").exits(69).says("clones build on it: left, right");
        GUEST.ctl("snapshot", "one", "--yes").exits(69).says("clones build on it: left, right");
        clones.forEach(clone -> clone.ctl("destroy", "--yes").exits(0));
        GUEST.sh("cat /root/state").exits(0).answers("source");
        assertEquals(port, number("port"));
        assertEquals(1, GUEST.qemus().size());
    }

    /** A number in the answer of status --json. */
    private static int number(String key) {
        return Integer.parseInt(GUEST.ctl("status", "--json").exits(0).out().replaceAll("(?s).*\"" + key + "\":(\\d+).*", "$1"));
    }

    @Test
    @Order(10)
    void deletingASnapshotMergesItsLayerWhileTheVmRuns() {
        int depth = number("depth");
        GUEST.ctl("snapshot", "two").exits(0);
        GUEST.sh("echo four >/root/state; sync").exits(0);
        assertEquals(depth + 1, number("depth"));
        GUEST.ctl("status", "--json").answers("\"usableRam\":[\"clean\",\"one\",\"two\"]");
        GUEST.ctl("snapshot", "--delete", "two").exits(0).says("deleted two");
        assertEquals(depth, number("depth"));
        GUEST.sh("cat /root/state").exits(0).answers("four");
        assertFalse(Files.exists(GUEST.file(".snapshots").resolve("two")));
    }

    @Test
    @Order(11)
    void theConsoleTakesWhatIsTyped() throws Exception {
        Path log = Guest.BUILD.resolve("test/console.log");
        Process console = GUEST.attach(log, "VmCtl", "console");
        try (OutputStream keys = console.getOutputStream()) {
            Guest.type(keys, log, "\r", "login:");
        }
        assertTrue(console.waitFor(10, TimeUnit.MINUTES), "the console does not end with its input");
        assertEquals(0, console.exitValue());
    }

    /** The guest reaches this machine's loopback as 10.0.2.2, unless it is offline. Its RAM fits either network. */
    @Test
    @Order(13)
    void anOfflineGuestReachesNothingAndAnswersSsh() throws Exception {
        try (ServerSocket service = new ServerSocket(0, 5, InetAddress.getByName("127.0.0.1"))) {
            Thread answers = new Thread(() -> {
                while (true) {
                    try (Socket client = service.accept()) {
                        client.getOutputStream().write("secret\n".getBytes(ISO_8859_1));
                    } catch (IOException closed) {
                        return;
                    }
                }
            });
            answers.start();
            String ask = "/usr/libexec/standin/busybox nc -w 5 10.0.2.2 " + service.getLocalPort() + " </dev/null";
            for (String net : List.of("offline", "user")) {
                GUEST.ctl("restore", "one", "--net", net).exits(0).says("restored one with its RAM");
                GUEST.ctl("status", "--json").answers("\"net\":\"" + net + "\"");
                assertEquals(net.equals("user") ? "secret\n" : "", GUEST.sh(ask + "; true").exits(0).out(), net);
            }
        }
    }

    @Test
    @Order(14)
    void aColdRestoreBootsTheSnapshotsDisk() {
        GUEST.ctl("restore", "one", "--cold").exits(0).says("like one after a power cut", "booted guest in ");
        GUEST.sh("cat /root/state").exits(0).answers("three");
    }

    @Test
    @Order(15)
    void stopShutsDownAndASecondStopIsNoError() {
        GUEST.ctl("stop").exits(0).says("stopped guest by shutdown -p now over ssh");
        assertEquals(List.of(), GUEST.qemus());
        GUEST.ctl("stop").exits(0);
        GUEST.ctl("status").exits(3).answers("stopped");
    }

    @Test
    @Order(16)
    void aStoppedVmsSnapshotIsItsDisk() {
        GUEST.ctl("snapshot", "cold").exits(0).says("kept the disk as cold");
        assertFalse(Files.exists(GUEST.file(".snapshots").resolve("cold/ram")));
        GUEST.ctl("restore", "cold").exits(0).says("vm-ctl start boots it");
        GUEST.ctl("status").exits(3).answers("stopped");
        GUEST.ctl("start", "--dry-run").exits(0).answers("guest.disks/");
        GUEST.ctl("snapshot", "--delete", "cold").exits(0);
        GUEST.ctl("snapshot", "--delete", "one").exits(0);
        GUEST.ctl("status", "--json").exits(3).answers("{\"name\":\"guest\",\"state\":\"stopped\"", "\"depth\":2,", "\"snapshots\":[\"clean\"]");
    }

    @Test
    @Order(17)
    void statusAnswersAsOneJsonObject() {
        GUEST.ctl("restore").exits(0);
        GUEST.ctl("status", "--json").exits(0).answers("{\"name\":\"guest\",\"state\":\"running\"", "\"port\":", "\"depth\":2,",
                "\"snapshots\":[\"clean\"]", "\"usableRam\":[\"clean\"]");
    }
}
