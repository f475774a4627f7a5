import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import picocli.CommandLine;

/** Runs a script: its jar as make does it, or its commands in this JVM. */
final class Script {

    private static final Path BUILD = Path.of(".build").toAbsolutePath();

    private Script() {
    }

    /** What a command left. */
    record Result(String command, int exitCode, String out, String err) {
        Result exits(int expected) {
            assertEquals(expected, exitCode, this::toString);
            return this;
        }

        /** On stderr, where messages belong. */
        Result says(String... parts) {
            for (String part : parts) {
                assertTrue(err.contains(part), () -> "'" + part + "' is not on stderr: " + this);
            }
            return this;
        }

        /** On stdout, where answers belong. */
        Result answers(String... parts) {
            for (String part : parts) {
                assertTrue(out.contains(part), () -> "'" + part + "' is not on stdout: " + this);
            }
            return this;
        }

        /** One line on stderr, and nothing else. */
        Result saysOnly(String part) {
            says(part);
            assertEquals(1, err.lines().count(), this::toString);
            assertEquals("", out, this::toString);
            return this;
        }

        /** This and nothing else, on both streams. */
        Result is(int code, String answer, String message) {
            assertEquals(List.of(code, answer, message), List.of(exitCode, out, err), command);
            return this;
        }

        @Override
        public String toString() {
            return command + ": exit code " + exitCode + "\n--- stdout\n" + tail(out) + "\n--- stderr\n" + tail(err);
        }

        private static String tail(String text) {
            return text.length() <= 6000 ? text : "..." + text.substring(text.length() - 6000);
        }
    }

    /** The command line of a script, as make has it. */
    static List<String> command(String script, String... arguments) {
        List<String> command = new ArrayList<>(List.of("java", "-XX:TieredStopAtLevel=1", "-Xlog:disable",
                "-XX:SharedArchiveFile=" + BUILD.resolve(script + ".jsa"), "-jar", BUILD.resolve(script + ".jar").toString()));
        command.addAll(Arrays.asList(arguments));
        return command;
    }

    /** Runs a process to its end, without input unless the builder has one. It is killed at the limit, and that is a failure. */
    static Result run(ProcessBuilder builder, Duration limit) {
        try {
            Path out = Files.createTempFile("out", ".txt");
            Path err = Files.createTempFile("err", ".txt");
            if (builder.redirectInput() == ProcessBuilder.Redirect.PIPE) {
                builder.redirectInput(new File("/dev/null"));
            }
            Process process = builder.redirectOutput(out.toFile()).redirectError(err.toFile()).start();
            boolean ended = process.waitFor(limit.toMillis(), TimeUnit.MILLISECONDS);
            int exitCode = process.destroyForcibly().waitFor();
            Result result = new Result(String.join(" ", builder.command()), exitCode, Files.readString(out), Files.readString(err));
            Files.delete(out);
            Files.delete(err);
            assertTrue(ended, () -> "it hangs: " + result);
            return result;
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        } catch (InterruptedException interrupted) {
            throw new IllegalStateException(interrupted);
        }
    }

    /** Runs a command in this JVM. */
    static Result call(CommandLine script, String... arguments) {
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int exitCode = script.setOut(new PrintWriter(out, true)).setErr(new PrintWriter(err, true)).execute(arguments);
        return new Result(script.getCommandName() + " " + String.join(" ", arguments), exitCode, out.toString(), err.toString());
    }
}
