import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;

/** A process that holds locks on files, as vm-test --parallel does, until it is told to release them, or is killed. */
final class LockHolder implements AutoCloseable {

    private final Process process;
    private final BufferedReader answers;

    LockHolder() {
        try {
            process = new ProcessBuilder("java", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), LockHolder.class.getName())
                    .redirectError(ProcessBuilder.Redirect.INHERIT).start();
            answers = process.inputReader();
        } catch (IOException failed) {
            throw new UncheckedIOException(failed);
        }
    }

    /** Makes the file if there is none, and locks it for this process alone. */
    LockHolder lock(Path file) {
        return ask(file.toString());
    }

    /** Frees all locks. */
    LockHolder release() {
        return ask("");
    }

    private LockHolder ask(String line) {
        try {
            process.outputWriter().write(line + "\n");
            process.outputWriter().flush();
            assertEquals("done " + line, answers.readLine());
            return this;
        } catch (IOException ended) {
            throw new UncheckedIOException(ended);
        }
    }

    /** As by kill -9. */
    @Override
    public void close() {
        process.destroyForcibly().onExit().join();
    }

    public static void main(String... none) throws IOException {
        List<FileChannel> held = new ArrayList<>();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            if (line.isEmpty()) {
                for (FileChannel channel : held) {
                    channel.close();
                }
            } else {
                held.add(FileChannel.open(new File(line).toPath(), StandardOpenOption.CREATE, StandardOpenOption.WRITE));
                if (held.get(held.size() - 1).tryLock() == null) {
                    throw new IOException(line + " is locked by another process");
                }
            }
            System.out.println("done " + line);
        }
    }
}
