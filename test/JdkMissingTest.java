import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

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
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What make says where Java or its compiler is missing or too old: one line that names the package, before anything is built. */
@Tag("unit")
final class JdkMissingTest {

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
            Path script = Files.writeString(bin.resolve(program),
                    program.equals("javac") ? "#!/bin/sh\necho javac 11.0.2\n" : "#!/bin/sh\ntouch '" + checkout + "/started'\nexit 1\n");
            assertTrue(script.toFile().setExecutable(true));
        }
        ProcessBuilder builder = new ProcessBuilder("make", "vm-check-prereqs").directory(checkout.toFile()).redirectErrorStream(true);
        builder.environment().keySet().removeIf(name -> name.matches("JAVA_HOME|MAKE.*|MFLAGS"));
        builder.environment().put("PATH", bin.toString());
        Process make = builder.redirectOutput(checkout.resolve("output").toFile()).start();
        assertTrue(make.waitFor(60, TimeUnit.SECONDS), "it only looks for programs, which takes less than a second");
        List<String> output = Files.readAllLines(checkout.resolve("output"), StandardCharsets.UTF_8);
        assertEquals(2, output.size(), output.toString());
        assertEquals(line.replace("INSTALL", INSTALL), output.get(0));
        assertTrue(output.get(1).matches("make: \\*\\*\\* .* Error 69"), output.get(1));
        assertEquals(2, make.exitValue(), "make's own code for a command that failed");
        assertFalse(Files.exists(checkout.resolve("started")), "Java, JBang or Maven was started without a JDK");
    }
}
