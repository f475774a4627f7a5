import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine;
import picocli.CommandLine.Help.Ansi;
import picocli.CommandLine.Model.OptionSpec;

/** The --help of every command of all five scripts. */
@Tag("unit")
final class HelpTest {

    private static final Map<String, String> SETTINGS = Map.of("VM_DIR", "/var/vms", "VM_NAME", "mine", "VM_DISK_SIZE", "7G");

    private static CommandLine script(String name) {
        return switch (name) {
            case "vm-setup" -> VmSetup.commandLine(new VmSetup(), new VmSetup.Settings().add(SETTINGS, "the environment"));
            case "vm-auto-install" -> VmAutoInstall.commandLine(new VmAutoInstall.Settings().add(SETTINGS, "the environment"));
            case "vm-ctl" -> VmCtl.commandLine(new VmCtl.Settings().add(SETTINGS, "the environment"));
            case "vm-sync" -> VmSync.commandLine(new VmSync(), new VmSync.Settings().add(SETTINGS, "the environment"));
            default -> VmTest.commandLine(new VmTest.Settings().add(SETTINGS, "the environment"));
        };
    }

    static Stream<CommandLine> commands() {
        return Stream.of("vm-setup", "vm-auto-install", "vm-ctl", "vm-sync", "vm-test").map(HelpTest::script)
                .flatMap(script -> Stream.concat(Stream.of(script), script.getSubcommands().values().stream()));
    }

    @ParameterizedTest
    @MethodSource("commands")
    void everyHelpHasExamplesThatParse(CommandLine command) {
        String name = command.getCommandSpec().qualifiedName();
        String help = command.getUsageMessage(Ansi.OFF);
        assertTrue(help.startsWith("Usage: " + name + " "), help);
        assertTrue(help.lines().allMatch(line -> line.length() <= 120), help);
        assertTrue(help.contains("\n\nOptions:\n"), help);
        List<String> examples = help.replaceFirst("(?s).*\n\nExamples:\n", "").replaceFirst("(?s)\n\n.*", "").lines().toList();
        assertFalse(examples.isEmpty(), help);
        String root = name.split(" ")[0];
        for (String example : examples) {
            String words = (example + " ").replaceFirst(".*?" + root + " ", "").replaceFirst("(  |#|&&).*", "");
            assertTrue(example.contains(name) || root.equals("vm-setup"), example); // fetch is what vm-setup does without a word
            script(root).parseArgs(Pattern.compile("'([^']*)'|\\S+").matcher(words).results()
                    .map(word -> word.group(1) == null ? word.group() : word.group(1)).toArray(String[]::new));
        }
    }

    @ParameterizedTest
    @MethodSource("commands")
    void everyHelpTellsTheSettingAndTheDefaultOfItsOptions(CommandLine command) {
        String help = command.getUsageMessage(Ansi.OFF).replaceAll("\\s+", " ");
        for (OptionSpec option : command.getCommandSpec().options()) {
            String setting = option.descriptionKey();
            if (!option.hidden() && setting.matches("[A-Z_]+")) {
                String told = option.longestName() + "\\[?=\\S+ [^(]*\\(" + setting + "; default: "
                        + SETTINGS.getOrDefault(setting, "[^;)]"); // the default is the one that holds here
                assertTrue(Pattern.compile(told).matcher(help).find(), option.longestName() + " in " + help);
            }
        }
    }

    /** They hold for all commands of a script, so they are told once. */
    @ParameterizedTest
    @MethodSource("commands")
    void theExitCodesStandInTheMainHelp(CommandLine command) {
        String help = command.getUsageMessage(Ansi.OFF);
        assertEquals(command.getParent() == null, Pattern.compile("(?s)\n\nExit codes:\n  0 .*\n  1 .*\n  2 .*\n  69 .*\n  130, 143 .*").matcher(help).find(), help);
        assertEquals(command.getParent() == null, help.contains("Exit codes:"), help);
    }
}
