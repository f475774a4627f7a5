import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * GitHub's workflows, checked against GitHub's schema by action-validator, which npm installs into .build/foreign. A validator that
 * cannot be installed is a failure, and not a reason to leave the test out.
 */
@Tag("foreign")
final class WorkflowTest {

    private static final Path WORKFLOWS = Path.of(".github/workflows");
    private static final Path SCRATCH = Path.of(".build/foreign").toAbsolutePath();
    private static final String VERSION = "0.6.0";

    private record Result(int exitCode, String output) {
    }

    @BeforeAll
    static void installTheValidator() throws Exception {
        Files.createDirectories(SCRATCH);
        Result npm = run(List.of("npm", "install", "--prefix", SCRATCH.toString(), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund",
                "@action-validator/core@" + VERSION, "@action-validator/cli@" + VERSION));
        assertEquals(0, npm.exitCode(), npm.output());
    }

    @Test
    void everyWorkflowIsValid() throws Exception {
        try (Stream<Path> files = Files.list(WORKFLOWS)) {
            List<Path> workflows = files.filter(file -> file.toString().endsWith(".yml")).sorted().toList();
            assertTrue(workflows.contains(WORKFLOWS.resolve("dragonfly.yml")), workflows.toString());
            for (Path workflow : workflows) {
                Result result = validate(workflow);
                assertEquals(0, result.exitCode(), workflow + "\n" + result.output());
            }
        }
    }

    /** Shows that the validator can fail, and that it names what is wrong. */
    @ParameterizedTest
    @CsvSource({"runs-on:, run-on:, run-on", "permissions:, permision:, permision", "contents: read, contents: reed, /permissions",
        "timeout-minutes: 120, timeout-minutes: soon, timeout-minutes", "uses: actions/checkout, use: actions/checkout, /steps/0",
        "workflow_dispatch, workflow_dispach, /on"})
    void aBrokenWorkflowIsRefused(String text, String broken, String named) throws Exception {
        String workflow = Files.readString(WORKFLOWS.resolve("dragonfly.yml"));
        assertTrue(workflow.contains(text), text);
        Path copy = Files.createDirectories(SCRATCH.resolve("broken")).resolve("dragonfly.yml");
        Files.writeString(copy, workflow.replace(text, broken));
        Result result = validate(copy);
        assertEquals(1, result.exitCode(), result.output());
        assertTrue(result.output().contains(named), result.output());
    }

    private static Result validate(Path workflow) throws Exception {
        return run(List.of(SCRATCH.resolve("node_modules/.bin/action-validator").toString(), workflow.toString()));
    }

    private static Result run(List<String> command) throws Exception {
        File output = File.createTempFile("output", ".txt");
        try {
            Process process = new ProcessBuilder(command).redirectInput(new File("/dev/null")).redirectErrorStream(true).redirectOutput(output).start();
            boolean ended = process.waitFor(5, TimeUnit.MINUTES); // npm downloads a few megabytes
            process.destroyForcibly();
            String text = Files.readString(output.toPath(), UTF_8);
            assertTrue(ended, command + " hangs\n" + text);
            return new Result(process.exitValue(), text);
        } finally {
            Files.delete(output.toPath());
        }
    }
}
