import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The README's script for git bisect run, taken from the README. */
@Tag("unit")
final class BisectTest {

    @TempDir
    Path temp;

    private record Result(int exitCode, String output) {
    }

    /** The script, and a jbang that stands before it in PATH. */
    private Path script(String jbang) throws Exception {
        List<String> scripts = ReadmeTest.fences("README.md", "sh").stream().filter(fence -> fence.startsWith("#!")).toList();
        assertEquals(1, scripts.size(), "scripts in the README");
        Path script = Files.writeString(temp.resolve("bisect.sh"), scripts.get(0));
        Path program = Files.writeString(Files.createDirectories(temp.resolve("bin")).resolve("jbang"), jbang);
        for (Path file : List.of(script, program)) {
            Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwxr-xr-x"));
        }
        return script;
    }

    private Result run(Path directory, Map<String, String> settings, String... command) throws Exception {
        Path output = temp.resolve("output");
        ProcessBuilder builder = new ProcessBuilder(command).directory(directory.toFile()).redirectInput(new File("/dev/null"))
                .redirectErrorStream(true).redirectOutput(output.toFile());
        builder.environment().keySet().removeIf(name -> name.matches("(VM|DFLY|GIT)_.*"));
        builder.environment().putAll(settings);
        builder.environment().put("PATH", temp.resolve("bin") + ":" + System.getenv("PATH"));
        Process process = builder.start();
        assertTrue(process.waitFor(10, TimeUnit.MINUTES), () -> String.join(" ", command) + " hangs");
        return new Result(process.exitValue(), Files.readString(output));
    }

    /** What vm-sync, the build and the suite end with, and what git bisect is told. */
    @Test
    void eachExitCodeBecomesAWordForGitBisect() throws Exception {
        Path script = script("#!/bin/sh\n[ \"${2:-}\" = build ] && exit $BUILD\ncase $1 in vm-sync*) exit $SYNC ;; esac\n"
                + "[ \"$VM_TEST_BUILD\" = true ] && [ \"$*\" = \"$1 unit --timeout 5m\" ] || exit 77\nexit $SUITE\n");
        for (int[] row : new int[][] {
            {0, 0, 0, 0}, {0, 0, 1, 1}, {0, 0, 124, 125}, {0, 1, 0, 125}, {0, 124, 0, 125},
            {1, 0, 0, 255}, {3, 0, 0, 255}, {124, 0, 0, 255}, {0, 2, 0, 255}, {0, 3, 0, 255}, {0, 69, 0, 255}, {0, 130, 0, 255},
            {0, 0, 2, 255}, {0, 0, 3, 255}, {0, 0, 69, 255}, {0, 0, 130, 255}, {0, 0, 143, 255}}) {
            Result result = run(temp, Map.of("SYNC", "" + row[0], "BUILD", "" + row[1], "SUITE", "" + row[2]), script.toString(), "unit",
                    "--timeout", "5m");
            assertEquals(row[3], result.exitCode(), "sync " + row[0] + ", build " + row[1] + ", suite " + row[2] + "\n" + result.output());
        }
    }

    /** In the middle lies a commit that does not build, and beside it one whose suite hangs: neither is taken for good or bad. */
    @Test
    void theFirstBadCommitIsFound() throws Exception {
        StringBuilder jbang = new StringBuilder("#!/bin/sh\nname=$1\nshift\ncase $name in\n");
        for (String[] tool : new String[][] {{"vm-sync", "VmSync"}, {"vm-test", "VmTest"}}) {
            jbang.append(tool[0]).append("@*) set -- ").append(VmTest.shellQuoted(Script.command(tool[1]))).append(" \"$@\" ;;\n");
        }
        Path script = script(jbang + "esac\nexec \"$@\"\n");
        try (Sshd sshd = Sshd.withOwnProcesses()) {
            Map<String, String> settings = new HashMap<>(Map.of("VM_DIR", sshd.vmDir.toString(), "VM_REMOTE_DIR",
                    sshd.base.resolve("home/project").toString(), "VM_TEST_BUILD", "sh build.sh", "VM_TEST_UNIT", "sh unit.sh"));
            for (String who : List.of("AUTHOR", "COMMITTER")) {
                settings.putAll(Map.of("GIT_" + who + "_NAME", "a", "GIT_" + who + "_EMAIL", "a@example.com"));
            }
            Path project = Files.createDirectory(temp.resolve("project"));
            git(project, settings, "init", "-q");
            List<String> commits = new ArrayList<>();
            for (String unit : List.of("true", "true", "sleep 1000", "no build", "true", "true # bad", "false", "false")) {
                Files.writeString(project.resolve("build.sh"), unit.equals("no build") ? "exit 1\n" : "exit 0\n");
                Files.writeString(project.resolve("unit.sh"), unit.equals("true # bad") ? "false\n" : unit + "\n");
                Files.writeString(project.resolve("number"), commits.size() + "\n");
                git(project, settings, "add", ".");
                git(project, settings, "commit", "-q", "-m", "number " + commits.size());
                commits.add(git(project, settings, "rev-parse", "HEAD").strip());
            }
            git(project, settings, "bisect", "start", commits.get(7), commits.get(0));
            String found = git(project, settings, "bisect", "run", script.toString(), "unit", "--timeout", "3s");
            assertTrue(found.contains(commits.get(5) + " is the first bad commit"), found);
            String log = git(project, settings, "bisect", "log");
            assertTrue(log.contains("git bisect skip " + commits.get(3)), log);
        }
    }

    private String git(Path project, Map<String, String> settings, String... arguments) throws Exception {
        List<String> command = new ArrayList<>(List.of("git", "-c", "gc.auto=0"));
        command.addAll(List.of(arguments));
        Result result = run(project, settings, command.toArray(String[]::new));
        assertEquals(0, result.exitCode(), () -> String.join(" ", command) + "\n" + result.output());
        return result.output();
    }
}
