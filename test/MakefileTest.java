import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What make says before anything is built: where something is missing, where it cannot write, and in another directory. */
@Tag("unit")
final class MakefileTest {

    private static final String INSTALL = "Install a JDK, version 17 or newer: sudo apt-get install default-jdk-headless";

    @TempDir
    Path checkout;
    private Path bin;

    /** PATH is one directory with all programs of this machine, but none of those that the tests add. */
    @BeforeEach
    void aMachineWithoutJava() throws IOException {
        for (String file : List.of("Makefile", "VmSetup.java")) {
            Files.copy(Path.of(file), checkout.resolve(file));
        }
        bin = Files.createDirectory(checkout.resolve("bin"));
        for (String directory : System.getenv("PATH").split(":")) {
            if (Files.isDirectory(Path.of(directory))) {
                try (Stream<Path> programs = Files.list(Path.of(directory))) {
                    for (Path program : programs.toList()) {
                        Path link = bin.resolve(program.getFileName());
                        if (!Set.of("java", "javac", "jbang", "mvn").contains(program.getFileName().toString()) && !Files.exists(link)) {
                            Files.createSymbolicLink(link, program);
                        }
                    }
                }
            }
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
        "mvn              | There is no java in PATH. INSTALL",
        "javac, mvn       | There is no java in PATH. INSTALL",
        "jbang            | There is no java in PATH. INSTALL. Or use the JDK that JBang brings: eval \"$(jbang jdk java-env)\"",
        "java, mvn        | There is a Java runtime, but no compiler: javac is not in PATH. INSTALL",
        "java, jbang      | There is a Java runtime, but no compiler: javac is not in PATH. INSTALL",
        "java, javac, mvn | javac is of version 11.0.2. INSTALL"})
    void oneLineNamesThePackage(String there, String line) throws Exception {
        for (String program : there.split(", ")) {
            script(program, program.equals("javac") ? "echo javac 11.0.2" : "touch '" + checkout + "/started'; exit 1");
        }
        List<String> output = make(2, checkout, "vm-check-prereqs");
        assertEquals(2, output.size(), output.toString());
        assertEquals(line.replace("INSTALL", INSTALL), output.get(0));
        assertTrue(output.get(1).matches("make: \\*\\*\\* .* Error 69"), output.get(1));
        assertFalse(Files.exists(checkout.resolve("started")), "Java, JBang or Maven was started without a JDK");
    }

    /** A link that leads nowhere, as root can write to any directory. */
    @Test
    void aCheckoutThatCannotBeWrittenToIsNamed() throws Exception {
        script("java", "exit 1");
        script("javac", "echo javac 17.0.1");
        Files.createSymbolicLink(checkout.resolve(".build"), Path.of("/proc/none"));
        List<String> output = make(2, checkout, "vm-check-prereqs");
        assertEquals("make cannot write to " + checkout.toRealPath() + "/.build, where it builds the scripts: copy this checkout to a directory of your own",
                output.get(0));
        assertEquals(2, output.size(), output.toString());
    }

    @Test
    void fromAnotherDirectoryThereIsTheHelpAndALineThatSaysHow() throws Exception {
        Path named = Files.createDirectory(checkout.resolve("a b"));
        Path makefile = Files.copy(Path.of("Makefile"), named.resolve("Makefile"));
        Path elsewhere = Files.createDirectory(checkout.resolve("elsewhere"));
        List<String> help = make(0, elsewhere, "-f", makefile.toString(), "vm-help");
        assertTrue(help.stream().anyMatch(line -> line.startsWith("  vm-auto-install ")), help.toString());
        assertEquals(help, make(0, elsewhere, "-f", makefile.toString()), "the first target");
        List<String> output = make(2, elsewhere, "-f", makefile.toString(), "vm-start", "clean");
        assertEquals(1, output.size(), output.toString());
        assertTrue(output.get(0).contains("This Makefile works in its own directory only: make -C '" + named + "' vm-start clean."), output.get(0));
        assertEquals(0, elsewhere.toFile().list().length);
    }

    /** Debian's Maven ends with an escape sequence, whatever its output is. */
    @Test
    void mavenFetchesJBangAndPrintsNothing() throws Exception {
        for (String program : List.of("java", "javac", "mvn")) {
            Path found = Stream.of(System.getenv("PATH").split(":")).map(directory -> Path.of(directory, program)).filter(Files::isExecutable)
                    .findFirst().orElse(null);
            assumeTrue(found != null, program + " is not installed");
            Files.createSymbolicLink(bin.resolve(program), found);
        }
        assertEquals(List.of(), make(0, checkout, ".build/jbang"));
        assertTrue(Files.isExecutable(checkout.resolve(".build/jbang")));
    }

    private void script(String name, String line) throws IOException {
        assertTrue(Files.writeString(bin.resolve(name), "#!/bin/sh\n" + line + "\n").toFile().setExecutable(true));
    }

    private List<String> make(int exitCode, Path directory, String... arguments) throws Exception {
        ProcessBuilder builder = new ProcessBuilder("make").directory(directory.toFile()).redirectErrorStream(true);
        builder.command().addAll(List.of(arguments));
        builder.environment().keySet().removeIf(name -> name.matches("JAVA_HOME|MAKE.*|MFLAGS|MAVEN_OPTS"));
        builder.environment().put("PATH", bin.toString());
        Process make = builder.redirectOutput(checkout.resolve("output").toFile()).start();
        assertTrue(make.waitFor(5, TimeUnit.MINUTES), "it hangs");
        List<String> output = Files.readAllLines(checkout.resolve("output"), StandardCharsets.UTF_8);
        assertEquals(exitCode, make.exitValue(), output.toString());
        return output;
    }
}
