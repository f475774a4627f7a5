import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Stream;

/**
 * A VM_DIR whose VM is an sshd on this machine's loopback (package openssh-server): its sessions find a home of their own and a stat
 * that speaks BSD only. The VM's process is a QEMU without a machine. A relay stands between, which can cut the connection.
 */
final class Sshd implements AutoCloseable {

    final Path base;
    final Path vmDir;
    /** How many bytes may still pass to the sshd before all connections are cut. */
    final AtomicLong budget = new AtomicLong(Long.MAX_VALUE);
    /** What happens at this point, before the cut. */
    volatile Runnable beforeCut = () -> { };
    final FakeVm vm;
    private final Process sshd;
    private final ServerSocket relay = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());

    Sshd() throws Exception {
        this("");
    }

    /** Each command that it runs gets a PID namespace, for vm-test, which ends what a suite leaves. Without namespaces the test is aborted. */
    static Sshd withOwnProcesses() throws Exception {
        VmTestTest.needsOwnProcesses();
        return new Sshd("ForceCommand exec " + VmTest.shellQuoted(VmTestTest.OWN_PROCESSES) + " sh -c \"$SSH_ORIGINAL_COMMAND\"\n");
    }

    /** Aborts the test where there is no sshd: a developer's machine should not get one that listens to the world. */
    private Sshd(String moreConfig) throws Exception {
        Optional<Path> program = Stream.of((System.getenv("PATH") + ":/usr/sbin:/usr/local/sbin").split(":"))
                .map(directory -> Path.of(directory, "sshd")).filter(Files::isExecutable).findFirst();
        assumeTrue(program.isPresent(), "no sshd on this machine");
        base = Files.createTempDirectory("vm's sync, \u00e9");
        vmDir = base.resolve("vm");
        Path keys = Files.createDirectories(vmDir.resolve("dfly-vm.ssh"));
        Path bin = Files.createDirectories(base.resolve("bin"));
        Files.createDirectories(base.resolve("home"));
        for (String key : new String[] {"id_ed25519", "host_key"}) {
            assertEquals(0, new ProcessBuilder("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys.resolve(key).toString()).start().waitFor());
        }
        Files.writeString(keys.resolve("known_hosts"), "dfly-vm " + Files.readString(keys.resolve("host_key.pub")));
        Files.writeString(bin.resolve("stat"), "#!/bin/sh\n[ \"$1\" = -f ] && [ \"$2\" = '%p %z %Fm %Y|' ] || exit 1\nshift 2\n"
                + "exec /usr/bin/find \"$@\" -maxdepth 0 \\( -type d -printf '4%04m %s %T@ |\\n' -o -type l -printf '12%04m %s %T@ %l|\\n' "
                + "-o -type f -printf '10%04m %s %T@ |\\n' -o -printf '1%04m %s %T@ |\\n' \\)\n");
        // Another test may remount something on this machine meanwhile, which vm-test would take for what a suite left behind.
        Files.writeString(bin.resolve("mount"), "#!/bin/sh\necho '/dev/da0s1d on / (hammer2, local)'\n");
        for (String name : new String[] {"stat", "mount"}) {
            Files.setPosixFilePermissions(bin.resolve(name), PosixFilePermissions.fromString("rwxr-xr-x"));
        }
        int port;
        try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            port = free.getLocalPort();
        }
        Path config = Files.writeString(base.resolve("sshd_config"), "Port " + port + "\nListenAddress 127.0.0.1\nPasswordAuthentication no\n"
                + "StrictModes no\nPermitRootLogin yes\nPidFile none\nMaxStartups 100\nHostKey \"" + keys.resolve("host_key") + "\"\nAuthorizedKeysFile \""
                + keys.resolve("id_ed25519.pub") + "\"\nSetEnv \"HOME=" + base.resolve("home") + "\" \"PATH=" + bin + ":/usr/bin:/bin\"\n" + moreConfig);
        // A cheap key exchange: some tests make hundreds of connections.
        Files.writeString(keys.resolve("config"), "Host dfly-vm\n  HostName 127.0.0.1\n  Port " + relay.getLocalPort() + "\n  User " + System.getProperty("user.name")
                + "\n  IdentityFile \"" + keys.resolve("id_ed25519") + "\"\n  IdentitiesOnly yes\n  UserKnownHostsFile \"" + keys.resolve("known_hosts")
                + "\"\n  HostKeyAlias dfly-vm\n  StrictHostKeyChecking yes\n  BatchMode yes\n  KexAlgorithms curve25519-sha256\n  LogLevel ERROR\n");
        Files.writeString(vmDir.resolve("ssh_config"), "Include \"" + keys.resolve("config") + "\"\n");
        if (System.getProperty("user.name").equals("root")) {
            Files.createDirectories(Path.of("/run/sshd"));
        }
        sshd = new ProcessBuilder(program.get().toString(), "-D", "-e", "-f", config.toString()).redirectErrorStream(true)
                .redirectOutput(base.resolve("log").toFile()).start();
        for (int tenth = 0; ; tenth++) {
            try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), port)) {
                break;
            } catch (IOException notYet) {
                assertTrue(tenth < 100 && sshd.isAlive(), () -> "sshd does not start; see " + base.resolve("log"));
                Thread.sleep(100);
            }
        }
        vm = new FakeVm(vmDir, "dfly-vm");
        daemon(() -> {
            while (true) {
                Socket client = relay.accept();
                Socket server = new Socket(InetAddress.getLoopbackAddress(), port);
                client.setTcpNoDelay(true);
                server.setTcpNoDelay(true);
                daemon(() -> pass(client, server, budget));
                daemon(() -> pass(server, client, new AtomicLong(Long.MAX_VALUE)));
            }
        });
    }

    interface Work {
        void run() throws IOException;
    }

    private static void daemon(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (IOException closed) {
                // by one of its ends, or by this test's
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    private void pass(Socket from, Socket to, AtomicLong budget) throws IOException {
        try (from; to) {
            InputStream in = from.getInputStream();
            OutputStream out = to.getOutputStream();
            byte[] buffer = new byte[8192];
            for (int count = in.read(buffer); count > 0; count = in.read(buffer)) {
                long left = budget.addAndGet(-count);
                out.write(buffer, 0, (int) Math.max(0, left < 0 ? count + left : count));
                if (left < 0) {
                    beforeCut.run();
                    return;
                }
            }
        }
    }

    @Override
    public void close() throws IOException {
        relay.close();
        vm.close();
        sshd.descendants().forEach(ProcessHandle::destroy);
        sshd.destroy();
        sshd.onExit().join();
    }
}
