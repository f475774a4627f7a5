import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.jupiter.api.io.TempDir;

/**
 * examples/ci/gitlab-ci.yml, run by gitlab-ci-local (npm), which also checks it against GitLab's schema. Each job has a directory of its
 * own and gets the artifacts of those before it. The image is in the cache, so nothing is installed.
 */
@Tag("foreign")
@Tag("vm")
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
final class GitlabTest {

    /** The last version that runs on Node 18, which Debian 12 has. */
    private static final String VERSION = "4.62.0";
    private static final Path RUNNER = Guest.BUILD.resolve("gitlab-ci-local");
    private static final Guest GUEST = Guest.unstartedTwin("gitlab");

    @TempDir
    static Path repository;
    /** A runner's commands are words between blanks, and this checkout's path may hold one. */
    @TempDir
    static Path bin;

    @BeforeAll
    static void aRepositoryAndAnImageInTheCache() throws IOException {
        GUEST.run(List.of("npm", "install", "--prefix", RUNNER.toString(), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund",
                "gitlab-ci-local@" + VERSION)).exits(0);
        try (Stream<Path> files = Files.walk(Guest.SAMPLE)) {
            for (Path file : files.toList()) {
                Files.copy(file, repository.resolve("sample").resolve(Guest.SAMPLE.relativize(file).toString()));
            }
        }
        Files.writeString(repository.resolve("vm.env"), """
                VM_PROJECT=sample
                VM_TEST_BUILD=true
                VM_TEST_HALVES=go test -v ./internal/words ./stats
                """);
        String pipeline = Files.readString(Path.of("examples/ci/gitlab-ci.yml"));
        assertTrue(pipeline.contains("parallel: 4"), pipeline);
        Files.writeString(repository.resolve(".gitlab-ci.yml"), pipeline.replace("parallel: 4", "parallel: 2"));
        git("init", "--quiet");
        git("add", ".");
        git("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "a project");

        Script.Result missed = pipeline(List.of("false"));
        assertTrue(missed.exitCode() != 0, "the installation failed: " + missed);
        Matcher image = Pattern.compile("the cache has no (vm-image/\\S+): installing the VM").matcher(missed.out());
        assertTrue(image.find(), missed.toString());
        Path cached = repository.resolve(".gitlab-ci-local/cache/vm-image").resolve(image.group(1));
        Guest.delete(cached.getParent());
        Files.createDirectories(cached.getParent());
        GUEST.ctl("export", cached.toString()).exits(0);
    }

    @AfterAll
    static void end() {
        assertEquals(List.of(), GUEST.qemus());
    }

    private static void git(String... arguments) {
        List<String> command = new ArrayList<>(List.of("git", "-C", repository.toString()));
        command.addAll(List.of(arguments));
        GUEST.run(command).exits(0);
    }

    private static Script.Result pipeline(String... jobs) {
        return pipeline(Script.command("VmSetup"), jobs);
    }

    /** All jobs, or those that are named, one at a time. The scripts come from this checkout; their commands are the built jars. */
    private static Script.Result pipeline(List<String> vmSetup, String... jobs) {
        List<String> command = new ArrayList<>(List.of("env", "-C", repository.toString(), RUNNER.resolve("node_modules/.bin/gitlab-ci-local").toString()));
        command.addAll(List.of(jobs));
        command.addAll(List.of("--force-shell-executor", "--shell-isolation", "--no-artifacts-to-source",
                "--concurrency", "1"));
        for (String variable : List.of("SUITE=halves", "SCRIPTS_URL=" + Path.of("").toAbsolutePath(), "SCRIPTS_COMMIT=HEAD",
                "VM_SETUP_CMD=" + oneWord("VmSetup", vmSetup), "VM_CTL_CMD=" + oneWord("VmCtl", Script.command("VmCtl")),
                "VM_SYNC_CMD=" + oneWord("VmSync", Script.command("VmSync")), "VM_TESTER=" + oneWord("VmTest", Script.command("VmTest")))) {
            command.addAll(List.of("--variable", variable));
        }
        return GUEST.with("VM_PROJECT", "").run(command); // vm.env names it
    }

    private static Path oneWord(String name, List<String> command) {
        try {
            Path file = Files.writeString(bin.resolve(name), "#!/bin/sh\nexec " + VmCtl.shellQuoted(command) + " \"$@\"\n");
            assertTrue(file.toFile().setExecutable(true));
            return file;
        } catch (IOException failed) {
            throw new UncheckedIOException(failed);
        }
    }

    private static List<Path> artifacts(String name) throws IOException {
        try (Stream<Path> files = Files.walk(repository.resolve(".gitlab-ci-local/artifacts"))) {
            return files.filter(file -> file.getFileName().toString().matches(name)).sorted().toList();
        }
    }

    @Test
    @Order(1)
    void theShardsTogetherAreTheSuite() throws IOException {
        Script.Result result = pipeline().exits(0);
        assertEquals(2, artifacts("shard-[12]\\.json").size(), result.toString());
        String report = Files.readString(artifacts("report\\.xml").get(0));
        for (String part : List.of("sample/internal/words", "sample/stats")) {
            assertTrue(report.contains(part), part + " is not in " + report);
        }
        String vms = GUEST.ctl("list").exits(0).answers("guest ").out();
        assertEquals(1, vms.lines().count(), "each job deletes its VM: " + vms);
    }

    @Test
    @Order(2)
    void aMissingShardIsNoSuccess() throws IOException {
        pipeline("verdict").exits(0);
        Files.delete(artifacts("shard-2\\.json").get(0));
        Script.Result result = pipeline("verdict");
        assertTrue(result.exitCode() != 0 && (result.out() + result.err()).matches("(?s).*FAIL.{0,20} 69 .*"), result.toString());
    }
}
