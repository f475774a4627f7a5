import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
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
            @NAME.Command(name = "a", version = "1.2",
                    description = "Does A")
            final class NAME {
                @interface Command {
                    String name();

                    String version();

                    String description();
                }

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
    private String option = "";

    @BeforeEach
    void aCleanTree() throws IOException {
        Files.writeString(tree.resolve("VmA.java"), SCRIPT.replace("NAME", "VmA"));
        Files.writeString(tree.resolve("VmB.java"), SCRIPT.replace("NAME", "VmB"));
        Files.writeString(tree.resolve("jbang-catalog.json"), "{\"description\": \"Does A\"}");
        Files.writeString(tree.resolve("CHANGELOG.md"), "# Changelog\n\n## 1.2 (not released)\n\n## 1.1\n");
        Files.createDirectory(tree.resolve("phases"));
        Files.writeString(tree.resolve("phases/phase1.sh"), "#!/bin/sh\necho \"$1\"\n");
        new ProcessBuilder("git", "init", "-q", tree.toString()).inheritIO().start().onExit().join();
    }

    @Test
    void aCleanTreePasses() throws Exception {
        lint(0, "lint: clean");
    }

    /** All in one tree, as each look at one takes seconds. */
    @Test
    void eachFaultIsAFinding() throws Exception {
        String block = "\n    // shared:NAME\n    private static int NAME() {\n        return 1;\n    }\n    // end shared:NAME\n";
        String grown = block.replace("NAME", "grown").replace("return 1;", "int n = 0;\n" + "n++;\n".repeat(30) + "return n;");
        String both = block.replace("NAME", "drifted") + block.replace("NAME", "open") + grown;
        edit("VmA.java", "// end shared:answer\n", "// end shared:answer\n" + both);
        edit("VmB.java", "// end shared:answer\n", "// end shared:answer\n" + both.replace("return 1;\n    }\n    // end shared:drifted", "return 2;\n    }\n    // end shared:drifted")
                .replace("    // end shared:open\n", ""));
        edit("VmA.java", "return 42;", "return (int) 42;"); // -Xlint:cast
        edit("VmB.java", "return 42;", "return (int) 42;");
        edit("VmA.java", "//JAVA 17+", "//JAVA 17+\n// DEPS info.picocli:picocli:4.7.7");
        edit("VmA.java", "//DESCRIPTION Does A", "//DESCRIPTION Does B");
        edit("VmB.java", "version = \"1.2\"", "version = \"1.1\"");
        edit("VmB.java", "System.out.println(answer());", "System.out.println(answer() + \"" + "x".repeat(100) + "\");");
        edit("phases/phase1.sh", "echo \"$1\"", "cd $1");
        lint(1, "lint: VmA.java: javac", "lint: VmB.java: javac", "lint: VmA.java: a directive that a formatter broke",
                "lint: VmA.java: jbang-catalog.json describes it in other words", "lint: VmB.java: --version does not say 1.2, as CHANGELOG.md does",
                "lint: VmB.java: a line longer than 120 columns", "lint: VmB.java: shared:drifted differs from VmA.java",
                "lint: VmB.java: a shared block without its end", "lint: VmA.java: shared:grown has 34 lines of code, 30 at most", "lint: shellcheck");
    }

    @Test
    void aLibraryThatIsNotAsItWasIsAFinding() throws Exception {
        edit("VmA.java", "//JAVA 17+", "//JAVA 17+\n//DEPS info.picocli:picocli:4.7.7\n//DEPS com.grack:nanojson:1.10");
        Path list = Files.createDirectory(tree.resolve("test")).resolve("jars.sha256");
        String wrong = "0".repeat(64);
        Files.writeString(list, "# A comment\n" + wrong + "  picocli-4.7.7.jar\n" + wrong + "  old-1.0.jar\n");
        String known = Files.readString(Path.of("test/jars.sha256"));
        String line = known.lines().filter(one -> one.endsWith("  picocli-4.7.7.jar")).findFirst().orElseThrow();
        lint(1, "lint: test/jars.sha256: picocli-4.7.7.jar has the SHA-256 " + line.substring(0, 64) + ", not " + wrong,
                "lint: test/jars.sha256: nanojson-1.10.jar is not in it", "lint: test/jars.sha256: old-1.0.jar is in it, and no script uses it");
        option = "--jars";
        lint(0, "lint: clean");
        assertEquals("# A comment\n" + known.lines().filter(one -> one.matches(".*(nanojson|picocli)-.*")).map(one -> one + "\n")
                .collect(Collectors.joining()), Files.readString(list), "by name, as the list of this project");
    }

    /** With a JBang that brings one library. */
    @Test
    void makeKeepsNoLibraryThatIsNotInTheList() throws Exception {
        Files.copy(Path.of("Makefile"), tree.resolve("Makefile"));
        Files.writeString(tree.resolve("VmSetup.java"), "");
        Path list = Files.writeString(Files.createDirectory(tree.resolve("test")).resolve("jars.sha256"), "# A comment\n");
        Path jbang = Files.createDirectory(tree.resolve(".build")).resolve("jbang");
        Files.writeString(jbang, "#!/bin/sh\nwhile [ \"$1\" != --output ]; do shift; done\n"
                + "mkdir -p \"${2%/*}/lib\"; echo script >\"$2\"; echo library >\"${2%/*}/lib/a-1.jar\"\n");
        assertTrue(jbang.toFile().setExecutable(true));
        String sum = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest("library\n".getBytes()));
        makeVmSetup(2, sum + "  a-1.jar", "The libraries of VmSetup.java above are not in test/jars.sha256. If you changed //DEPS, run test/lint --jars; else do not trust them.");
        assertEquals(Set.of("java", "jbang", "lib"), Set.of(tree.resolve(".build").toFile().list()));
        assertEquals(0, tree.resolve(".build/lib").toFile().list().length);
        Files.writeString(list, "# A comment\n" + sum + "  a-1.jar\n");
        makeVmSetup(0);
        assertEquals("library\n", Files.readString(tree.resolve(".build/lib/a-1.jar")));
        assertEquals("script\n", Files.readString(tree.resolve(".build/VmSetup.jar")));
    }

    private void makeVmSetup(int exitCode, String... says) throws Exception {
        run(exitCode, new ProcessBuilder("make", "-C", tree.toString(), ".build/VmSetup.jar"), says);
    }

    private void edit(String file, String from, String to) throws IOException {
        String text = Files.readString(tree.resolve(file));
        assertTrue(text.contains(from), file + " does not hold: " + from);
        Files.writeString(tree.resolve(file), text.replace(from, to));
    }

    private void lint(int exitCode, String... says) throws Exception {
        ProcessBuilder builder = new ProcessBuilder("test/lint", option, tree.toString());
        builder.command().remove("");
        builder.environment().putAll(Map.of("JBANG", Path.of(".build/jbang").toAbsolutePath().toString()));
        run(exitCode, builder, says);
    }

    private static void run(int exitCode, ProcessBuilder builder, String... says) throws Exception {
        Process process = builder.redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes());
        assertTrue(process.waitFor(10, TimeUnit.MINUTES), "it hangs");
        for (String text : says) {
            assertTrue(output.contains(text), output);
        }
        assertEquals(exitCode, process.exitValue(), output);
    }
}
