import static org.junit.jupiter.api.Assertions.assertNotEquals;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * A vm-ctl that something happens to at one of its steps, which are the texts that VmCtl hands to {@code onStep}. It runs as a
 * process of its own, of the jar and of the tests' class path.
 */
final class KilledCommand {

    /** What happens at the step. */
    enum Way {
        /** The tool ends at once, as by kill -9. */
        HALT,
        /** The VM's QEMU ends at once; the tool goes on. */
        QEMU,
        /** The tool gets what Ctrl-C sends. */
        SIGINT
    }

    /** The exit code of a command that ended before it came to the step. */
    private static final int NEVER_REACHED = 99;

    private KilledCommand() {
    }

    /** Runs vm-ctl with these arguments until it comes to the step for the nth time. */
    static Script.Result run(Guest guest, Way way, String step, int nth, String... arguments) {
        // The class archive is that of the jar, which must come first then.
        String classPath = Stream.concat(Stream.of(".build/VmCtl.jar"), Arrays.stream(System.getProperty("java.class.path").split(File.pathSeparator)))
                .map(entry -> Path.of(entry).toAbsolutePath().toString()).collect(Collectors.joining(File.pathSeparator));
        List<String> command = new ArrayList<>(List.of("java", "-XX:TieredStopAtLevel=1", "-Xlog:disable",
                "-XX:SharedArchiveFile=" + Path.of(".build/VmCtl.jsa").toAbsolutePath(), "-cp", classPath,
                KilledCommand.class.getName(), way.name(), step, String.valueOf(nth)));
        command.addAll(List.of(arguments));
        Script.Result ended = guest.run(command);
        Script.Result result = new Script.Result(String.join(" ", arguments) + ", " + way + " at '" + step + "'", ended.exitCode(),
                ended.out(), ended.err());
        assertNotEquals(NEVER_REACHED, result.exitCode(), () -> "it never came to '" + step + "': " + result);
        return result;
    }

    public static void main(String... args) {
        Way way = Way.valueOf(args[0]);
        String step = args[1];
        int[] left = {Integer.parseInt(args[2])};
        VmCtl.onStep = reached -> {
            if (reached.equals(step) && --left[0] == 0) {
                happen(way);
            }
        };
        String[] arguments = Arrays.copyOfRange(args, 3, args.length);
        int code = VmCtl.commandLine(arguments).execute(arguments);
        System.exit(left[0] > 0 ? NEVER_REACHED : code);
    }

    private static void happen(Way way) {
        try {
            switch (way) {
                case HALT -> Runtime.getRuntime().halt(137);
                case QEMU -> {
                    Path pid = Path.of(System.getenv("VM_DIR"), System.getenv("VM_NAME") + ".qemu-pid");
                    ProcessHandle qemu = ProcessHandle.of(Long.parseLong(Files.readString(pid).strip())).orElseThrow();
                    qemu.destroyForcibly();
                    while (qemu.isAlive()) {
                        Thread.sleep(10);
                    }
                }
                case SIGINT -> {
                    new ProcessBuilder("kill", "-INT", String.valueOf(ProcessHandle.current().pid())).start().waitFor();
                    Thread.sleep(60_000); // until the act is interrupted, or this process has ended
                }
            }
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        } catch (IOException failed) {
            throw new IllegalStateException(failed);
        }
    }
}
