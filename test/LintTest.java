import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A gate that cannot fail is none: each fault that test/lint is there for is made once, in a tree of two tiny scripts. */
@Tag("unit")
final class LintTest {

    private static final String SCRIPT = """
            ///usr/bin/env jbang "$0" "$@" ; exit $?
            //DESCRIPTION Does A
            //JAVA 17+
            final class NAME {
                public static void main(String... args) {
                    System.out.println(answer());
                }

                // shared:answer
                static int answer() {
                    return 42;
                }
                // end shared:answer
            }
            """;

    @TempDir
    Path tree;

    @BeforeEach
    void aCleanTree() throws IOException {
        Files.writeString(tree.resolve("VmA.java"), SCRIPT.replace("NAME", "VmA"));
        Files.writeString(tree.resolve("VmB.java"), SCRIPT.replace("NAME", "VmB"));
        Files.writeString(tree.resolve("jbang-catalog.json"), "{\"description\": \"Does A\"}");
        Files.createDirectory(tree.resolve("phases"));
        Files.writeString(tree.resolve("phases/phase1.sh"), "#!/bin/sh\necho \"$1\"\n");
        new ProcessBuilder("git", "init", "-q", tree.toString()).inheritIO().start().onExit().join();
    }

    @Test
    void aCleanTreePasses() throws Exception {
        lint(0, "lint: clean");
    }

    @Test
    void aCompilerWarningIsAFinding() throws Exception {
        edit("VmA.java", "return 42;", "return (int) 42;"); // -Xlint:cast
        edit("VmB.java", "return 42;", "return (int) 42;");
        lint(1, "lint: VmA.java: javac");
    }

    @Test
    void aDriftedSharedBlockIsAFinding() throws Exception {
        edit("VmB.java", "return 42;", "return 43;");
        lint(1, "VmB.java: shared:answer differs from VmA.java");
    }

    @Test
    void aSharedBlockWithoutItsEndIsAFinding() throws Exception {
        edit("VmB.java", "    // end shared:answer\n", "");
        lint(1, "VmB.java: a shared block without its end");
    }

    @Test
    void aSharedBlockThatGrewIsAFinding() throws Exception {
        String lines = "System.out.print(1);\n".repeat(30) + "return 42;";
        edit("VmA.java", "return 42;", lines);
        edit("VmB.java", "return 42;", lines);
        lint(1, "30 at most");
    }

    @Test
    void aDirectiveThatAFormatterBrokeIsAFinding() throws Exception {
        edit("VmA.java", "//JAVA 17+", "//JAVA 17+\n// DEPS info.picocli:picocli:4.7.7");
        lint(1, "VmA.java: a directive that a formatter broke");
    }

    @Test
    void aDescriptionThatDiffersFromTheCatalogIsAFinding() throws Exception {
        edit("VmA.java", "Does A", "Does B");
        lint(1, "VmA.java: jbang-catalog.json describes it in other words");
    }

    @Test
    void aShellFaultIsAFinding() throws Exception {
        edit("phases/phase1.sh", "echo \"$1\"", "cd $1");
        lint(1, "lint: shellcheck");
    }

    private void edit(String file, String from, String to) throws IOException {
        String text = Files.readString(tree.resolve(file));
        assertTrue(text.contains(from), file + " does not hold: " + from);
        Files.writeString(tree.resolve(file), text.replace(from, to));
    }

    private void lint(int exitCode, String says) throws Exception {
        ProcessBuilder builder = new ProcessBuilder("test/lint", tree.toString()).redirectErrorStream(true);
        builder.environment().putAll(Map.of("JBANG", Path.of(".build/jbang").toAbsolutePath().toString()));
        Process process = builder.start();
        String output = new String(process.getInputStream().readAllBytes());
        assertTrue(process.waitFor(120, TimeUnit.SECONDS), "lint hangs");
        assertTrue(output.contains(says), output);
        assertEquals(exitCode, process.exitValue(), output);
    }
}
