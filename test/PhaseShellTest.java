import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What all three phase scripts share, in this machine's sh: whatever happens, the last line says how the phase ended, and why. */
@Tag("unit")
final class PhaseShellTest {

    @TempDir
    Path tmp;

    private Path log;

    @Test
    void aFinishedPhaseSaysSo() throws Exception {
        assertEquals(List.of("STEP 1: work", "a warning", "DONE WITH PHASE 2."), ran("echo 'a warning' >&2; complete=yes", 0));
    }

    /** The failing command's words come with mark, too, because the console may be the screen. */
    @Test
    void aFailedPhaseRepeatsTheLastWords() throws Exception {
        List<String> said = ran("echo 'not the last' >&2; printf 'no such disk' >&2; false", 1);
        assertEquals(List.of("not the last", "no such disk", "PHASE 2 FAILED: work"), said.subList(said.size() - 3, said.size()));
    }

    @Test
    void aLongLineIsCut() throws Exception {
        List<String> said = ran("head -c 3000000 /dev/zero | tr '\\0' x >&2; false", 1);
        assertEquals(300, said.get(said.size() - 2).length());
    }

    /** A program that stays in the background keeps stderr open. The script waits 5 s for it, the test half a minute. */
    @Test
    void aProgramInTheBackgroundDoesNotHoldItUp() throws Exception {
        List<String> said = ran("sleep 60 & echo $! >" + quoted("background") + "; false", 1);
        assertEquals("PHASE 2 FAILED: work", said.get(said.size() - 1));
        new ProcessBuilder("kill", Files.readString(tmp.resolve("background")).strip()).start().waitFor();
    }

    /** tee must survive it: a broken pipe would end the script without a word. */
    @ParameterizedTest
    @ValueSource(strings = {"HUP", "INT", "TERM"})
    void aSignalForTheWholeGroupEndsInAFailure(String signal) throws Exception {
        Process script = start("echo before >&2; echo ready >" + quoted("ready") + "; sleep 60");
        for (int i = 0; i < 300 && !Files.exists(tmp.resolve("ready")); i++) { // 30 s for a busy machine
            Thread.sleep(100);
        }
        assertEquals(0, new ProcessBuilder("kill", "-" + signal, "--", "-" + script.pid()).start().waitFor());
        List<String> said = end(script, 1);
        assertEquals("PHASE 2 FAILED: work", said.get(said.size() - 1));
    }

    private List<String> ran(String work, int exitCode) throws Exception {
        return end(start(work), exitCode);
    }

    /** Starts a phase of one step, in a process group of its own. */
    private Process start(String work) throws Exception {
        String phase = Files.readString(Path.of("phases/phase2-update.sh"));
        String blocks = phase.substring(phase.indexOf("# shared:mark"), phase.indexOf("# end shared:phase"));
        assertTrue(blocks.contains("keep_errors") && blocks.contains("finish()"), "the blocks have other names now");
        Path script = Files.writeString(tmp.resolve("phase.sh"), "set -eu\nphase=2\n" + blocks.replace("/tmp/phase.", tmp + "/phase.")
                .replace("$(mktemp -d " + tmp + "/phase.XXXXXX)", "$(mktemp -d '" + tmp + "/phase.XXXXXX')")
                .replace("/dev/cuaa0", "/nonexistent/cuaa0") + "step 1 work\n" + work + "\n");
        log = tmp.resolve("log");
        ProcessBuilder builder = new ProcessBuilder("setsid", "sh", script.toString());
        builder.environment().put("PFI_POWEROFF", "no");
        return builder.redirectErrorStream(true).redirectOutput(log.toFile()).redirectInput(new File("/dev/null")).start();
    }

    private List<String> end(Process script, int exitCode) throws Exception {
        boolean ended = script.waitFor(5, TimeUnit.MINUTES);
        script.destroyForcibly();
        assertTrue(ended, "the script hangs");
        assertEquals(exitCode, script.exitValue(), Files.readString(log));
        try (Stream<Path> left = Files.list(tmp)) {
            assertTrue(left.noneMatch(file -> file.getFileName().toString().startsWith("phase.") && Files.isDirectory(file)), "litter");
        }
        return Files.readString(log).lines().filter(line -> !line.isBlank()).toList();
    }

    private String quoted(String file) {
        return "'" + tmp.resolve(file) + "'";
    }
}
