import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.io.IOException;
import java.nio.file.Path;

/** Real qcow2 files, written and read by QEMU's own programs. */
final class Disks {

    private Disks() {
    }

    /** Runs a program that is to end with 0, and returns what it printed. */
    static String run(String... command) throws IOException {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), ISO_8859_1);
        assertEquals(0, process.onExit().join().exitValue(), output);
        return output;
    }

    /** Fills the first 64 KiB of a disk with a byte. */
    static void write(Path disk, int pattern) throws IOException {
        run("qemu-io", "-c", "write -P " + pattern + " 0 64k", disk.toString());
    }

    static void holds(Path disk, int pattern) throws IOException {
        String output = run("qemu-io", "-r", "-c", "read -P " + pattern + " 0 64k", disk.toString());
        assertFalse(output.contains("verification failed"), disk + " does not hold " + pattern);
    }
}
