import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonWriter;
import java.io.BufferedReader;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.locks.LockSupport;

/**
 * To the scripts a running VM: a real QEMU, but without a machine. It holds the lock on NAME.qemu-pid, which this JVM could not hold for
 * itself to see, and it answers on NAME.qmp. Its record is NAME.pid. It lives until it is closed.
 */
final class FakeVm implements AutoCloseable {

    final Path vmDir;
    final String name;
    private final Process qemu;

    /** Returns when QEMU answers: it has locked its pid file before. Options are QEMU's, such as -S. */
    FakeVm(Path vmDir, String name, String... options) throws IOException {
        this.vmDir = vmDir;
        this.name = name;
        List<String> command = new ArrayList<>(List.of("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none",
                "-pidfile", file(".qemu-pid").toString(), "-qmp", "unix:" + file(".qmp").toString().replace(",", ",,") + ",server=on,wait=off"));
        command.addAll(List.of(options));
        Path log = Files.createTempFile("fake-vm", ".log");
        qemu = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log.toFile()).start();
        try {
            for (long end = System.nanoTime() + Duration.ofMinutes(5).toNanos(); !answers(); LockSupport.parkNanos(2_000_000)) {
                assertTrue(qemu.isAlive() && System.nanoTime() < end, () -> "QEMU does not start: " + read(log));
            }
            record(file(".qmp"));
        } catch (Throwable failed) {
            close();
            throw failed;
        } finally {
            Files.delete(log);
        }
    }

    Path file(String suffix) {
        return vmDir.resolve(name + suffix);
    }

    long pid() {
        return qemu.pid();
    }

    /** Writes NAME.pid as vm-ctl does. */
    private void record(Path qmp) throws IOException {
        Files.writeString(file(".pid"), JsonWriter.string().object().value("pid", pid()).value("port", 1).value("accel", "tcg")
                .value("memory", "1G").value("cpus", 1).array("forwards").end().value("qmp", qmp.toString()).end().done());
    }

    /** Lets the record name a socket that tells this run state, for states that a QEMU without a machine never has. */
    void pretend(String status) throws IOException {
        Path socket = file("." + status);
        ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(UnixDomainSocketAddress.of(socket));
        Thread thread = new Thread(() -> {
            String response = "{\"QMP\": {}}\r\n{\"return\": {}}\r\n{\"return\": {\"status\": \"" + status + "\", \"running\": false}}\r\n";
            while (true) {
                try (SocketChannel client = server.accept()) {
                    client.write(UTF_8.encode(response));
                    client.read(ByteBuffer.allocate(1)); // until the client has sent something or is gone
                } catch (IOException gone) {
                    // the next one, then
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
        record(socket);
    }

    /** runState gives up after 5 s: a QEMU that is starting may hang until the next connection, see VmAutoInstall.Qmp. */
    private boolean answers() {
        return !VmTest.runState(file(".qmp")).equals("unknown");
    }

    /** Runs a command of QMP, such as stop or cont, and returns its response. */
    String qmp(String command) throws IOException {
        try (SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
            channel.connect(UnixDomainSocketAddress.of(file(".qmp")));
            channel.write(UTF_8.encode("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"" + command + "\",\"id\":\"this\"}\n"));
            BufferedReader lines = new BufferedReader(Channels.newReader(channel, UTF_8));
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                if (line.contains("\"this\"")) {
                    assertTrue(line.contains("\"return\""), line);
                    return line;
                }
            }
            throw new IOException("QEMU closed the connection");
        }
    }

    /** The same where nothing may be thrown but by a bug. */
    void mustDo(String command) {
        try {
            qmp(command);
        } catch (IOException failed) {
            throw new AssertionError(failed);
        }
    }

    /** Sends a signal to QEMU, such as STOP, and returns when it has had its effect. */
    void signal(String signal) throws IOException, InterruptedException {
        assertEquals(0, new ProcessBuilder("kill", "-" + signal, Long.toString(pid())).start().waitFor());
        if (signal.equals("KILL")) {
            qemu.waitFor();
        }
        while (signal.equals("STOP") && !Files.readString(Path.of("/proc/" + pid() + "/stat")).contains(") T ")) {
            LockSupport.parkNanos(2_000_000);
        }
    }

    private static String read(Path file) {
        try {
            return Files.readString(file);
        } catch (IOException gone) {
            return gone.toString();
        }
    }

    /** As a power cut: all files stay. */
    @Override
    public void close() {
        qemu.destroyForcibly().onExit().join();
    }
}
