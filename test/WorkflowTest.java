import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
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
 * GitHub's workflows, checked against GitHub's schema by action-validator, which npm installs into .build/foreign; and
 * examples/ci/Jenkinsfile, read by Groovy's own parser. No Jenkins runs: that its steps exist, nothing here shows. A validator that
 * cannot be installed is a failure, and not a reason to leave the test out.
 */
@Tag("foreign")
final class WorkflowTest {

    private static final Path WORKFLOWS = Path.of(".github/workflows");
    private static final Path SCRATCH = Path.of(".build/foreign").toAbsolutePath();
    private static final String VERSION = "0.6.0";
    /** Prints a Jenkinsfile's calls with those around them, its texts of several lines, and each text into which Groovy puts values. */
    private static final String JENKINSFILE = """
            //JAVA 17+
            //DEPS org.apache.groovy:groovy:4.0.28
            import java.nio.file.*;
            import org.codehaus.groovy.ast.*;
            import org.codehaus.groovy.ast.expr.*;
            class ReadJenkinsfile extends CodeVisitorSupport {
                String path = "";
                public static void main(String... files) throws Exception {
                    var nodes = new org.codehaus.groovy.ast.builder.AstBuilder().buildFromString(
                            org.codehaus.groovy.control.CompilePhase.CONVERSION, false, Files.readString(Path.of(files[0])));
                    nodes.get(0).visit(new ReadJenkinsfile());
                }
                @Override
                public void visitMethodCallExpression(MethodCallExpression call) {
                    String above = path;
                    path += "/" + call.getMethodAsString();
                    if (call.getMethodAsString().equals("stage")) {
                        path += " " + ((TupleExpression) call.getArguments()).getExpression(0).getText();
                    }
                    System.out.println(path);
                    super.visitMethodCallExpression(call);
                    path = above;
                }
                @Override
                public void visitConstantExpression(ConstantExpression text) {
                    if (text.getText().contains("\\n")) {
                        System.out.println("script\\n" + text.getText() + "\\nend");
                    }
                }
                @Override
                public void visitGStringExpression(GStringExpression text) {
                    System.out.println(path + " with " + text.getText());
                }
            }
            """;

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

    /** A value of an event, such as a branch's name, would be run as a part of the script. It must come as a variable. */
    @Test
    void noExpressionIsPutIntoAScript() throws Exception {
        int scripts = 0;
        for (String workflow : List.of("dragonfly.yml", "test-in-vm.yml")) {
            int run = -1; // the column of the run that a line belongs to
            for (String line : Files.readAllLines(WORKFLOWS.resolve(workflow))) {
                int column = line.length() - line.replaceAll("^[ -]*", "").length();
                if (!line.isBlank() && column <= run) {
                    run = -1;
                }
                if (line.matches("[ -]*run:.*")) {
                    run = column;
                    scripts++;
                }
                assertTrue(run < 0 || !line.contains("${{"), workflow + ": " + line);
            }
        }
        assertTrue(scripts > 5, scripts + " scripts");
    }

    @Test
    void theJenkinsfileHasTheThreeStages() throws Exception {
        String read = readJenkinsfile(Files.readString(Path.of("examples/ci/Jenkinsfile")), 0);
        assertEquals(List.of("/pipeline/stages/stage prime", "/pipeline/stages/stage test", "/pipeline/stages/stage test/matrix/stages/stage shard",
                "/pipeline/stages/stage verdict"), read.lines().filter(line -> line.matches("/.*/stage [^/]*")).toList(), read);
        assertTrue(read.contains("/pipeline/stages/stage verdict/post/always/junit\n"), read);
        assertFalse(read.contains("/sh with "), read);
        String[] scripts = read.split("(?m)^script\n");
        assertEquals(5, scripts.length, read);
        for (int i = 1; i < scripts.length; i++) {
            Path script = Files.writeString(SCRATCH.resolve("script.sh"), scripts[i].substring(0, scripts[i].indexOf("\nend\n")));
            Result syntax = run(List.of("sh", "-n", script.toString()));
            assertEquals(0, syntax.exitCode(), syntax.output() + scripts[i]);
        }
    }

    @Test
    void aBrokenJenkinsfileIsRefused() throws Exception {
        String file = Files.readString(Path.of("examples/ci/Jenkinsfile"));
        assertTrue(readJenkinsfile(file.replace("agent none", "agent {"), 1).contains("Unexpected input"));
        assertTrue(file.contains("sh 'rm -f shard-*.json report.xml'"), file);
        assertTrue(readJenkinsfile(file.replace("sh 'rm -f shard-*.json report.xml'", "sh \"rm $SUITE\""), 0).contains("/sh with "));
    }

    private static String readJenkinsfile(String text, int exitCode) throws Exception {
        Path copy = Files.writeString(SCRATCH.resolve("Jenkinsfile"), text);
        Result result = run(List.of(".build/jbang", "--quiet", Files.writeString(SCRATCH.resolve("ReadJenkinsfile.java"), JENKINSFILE).toString(),
                copy.toString()));
        assertEquals(exitCode, result.exitCode(), result.output());
        return result.output();
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
