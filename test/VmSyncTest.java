import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.PrintWriter;
import java.io.RandomAccessFile;
import java.io.SequenceInputStream;
import java.io.StringWriter;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.LockSupport;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.commons.compress.archivers.tar.TarArchiveEntry;
import org.apache.commons.compress.archivers.tar.TarArchiveOutputStream;
import org.apache.commons.compress.archivers.tar.TarConstants;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Nested;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * VmSync without a VM. Both engines run against a real sshd on this machine (package openssh-server), whose sessions find a home of
 * their own and a stat that speaks BSD only.
 */
@Tag("unit")
final class VmSyncTest {

    @TempDir
    Path temp;

    static Script.Result call(Map<String, String> environment, Map<String, String> file, String... args) {
        return Script.call(VmSync.commandLine(new VmSync(), new VmSync.Settings().add(file, "vm.env").add(environment, "the environment")), args);
    }

    // The command line

    @Test
    void aVmThatDoesNotRunIsTold() throws IOException {
        call(Map.of("VM_DIR", temp.toString(), "VM_PROJECT", temp.toString()), Map.of()).exits(69)
                .says("there is no VM dfly-vm in " + temp + ": vm-ctl list names");
        Files.createFile(temp.resolve("dfly-vm-clean.qcow2"));
        call(Map.of("VM_DIR", temp.toString(), "VM_PROJECT", temp.toString()), Map.of()).exits(3)
                .says("VM dfly-vm is not running; start it: vm-ctl start");
        call(Map.of("VM_DIR", temp.toString(), "VM_NAME", "other"), Map.of(), "pull", "a", "b").exits(69)
                .says("there is no VM other in " + temp + ": vm-ctl list names the VMs there, vm-auto-install makes one");
    }

    @Test
    void aDirectoryThatOthersCanChangeIsRefused() throws IOException {
        Files.createDirectory(temp.resolve("project"));
        for (Path refused : List.of(Guest.foreignDirectory(temp), Guest.openDirectory(temp.resolve("open"), "rwxrwxr-x"))) {
            Map<String, String> settings = Map.of("VM_DIR", refused.toString(), "VM_PROJECT", temp.resolve("project").toString());
            call(settings, Map.of()).exits(69).says(refused + " belongs to ").says("chmod go-w");
            call(settings, Map.of(), "pull", "a", "b").exits(69).says(refused + " belongs to ");
        }
        assertEquals(0, temp.resolve("open").toFile().list().length);
    }

    private Script.Result sync() {
        return call(Map.of("VM_DIR", temp.toString(), "VM_PROJECT", temp.toString()), Map.of());
    }

    @Test
    void aVmRunsAsLongAsItsQemuHoldsTheLock() throws Exception {
        try (FakeVm vm = new FakeVm(temp, "dfly-vm")) {
            sync().exits(69).says("ssh_config is missing");
            Files.createFile(temp.resolve("ssh_config"));
            call(Map.of("VM_DIR", temp.toString()), Map.of(), "pull", "a", "b").exits(69).says("cannot be reached: no such file: ");
            Files.delete(temp.resolve("ssh_config"));
            Path record = vm.file(".pid");
            Files.writeString(record, "{\"pid\":" + vm.pid() + "}"); // of an older version: without "qmp"
            sync().exits(69).says("ssh_config is missing");
            for (String damaged : List.of("{\"pid\":", "", "[]", "{}", "{\"pid\":\"12\"}", "\0")) {
                Files.writeString(record, damaged);
                Script.Result result = sync().exits(69).says("vm-sync: VM dfly-vm runs, but " + record + " cannot be read (")
                        .says("): vm-ctl stop --force, then vm-ctl start, writes it again");
                assertEquals(1, result.err().lines().count(), result.err());
            }
            Files.delete(record);
            sync().exits(3).says("is not running");
            Files.createDirectory(record);
            sync().exits(69).says(record + " cannot be read (Is a directory)");
            Files.delete(record);
            Files.writeString(record, "{\"pid\":" + vm.pid() + "}");
            vm.signal("KILL");
            assertTrue(Files.exists(record) && Files.exists(vm.file(".qemu-pid")) && Files.exists(vm.file(".qmp")));
            sync().exits(3).says("is not running");
        }
    }

    @Test
    void aPidFileThatCannotBeLockedIsNoAnswer() throws IOException {
        Path pidFile = temp.resolve("dfly-vm.qemu-pid");
        Files.createDirectory(pidFile); // no QEMU has its lock there
        sync().exits(3);
        Files.delete(pidFile);
        Files.createSymbolicLink(pidFile, pidFile); // nobody can read this, root neither
        sync().exits(69).says("it is unknown whether the VM runs, as " + pidFile + " cannot be locked (").says("keep VM_DIR on a local file system");
    }

    @Test
    void aGuestThatStandsStillIsNotSyncedTo() throws Exception {
        Duration before = VmSync.snapshotPause;
        VmSync.snapshotPause = Duration.ofSeconds(1);
        try (FakeVm vm = new FakeVm(temp, "dfly-vm")) {
            vm.qmp("stop");
            long start = System.nanoTime();
            assertEquals("vm-sync: the guest does not run (paused): vm-ctl start resumes it\n", sync().exits(69).err());
            assertTrue(System.nanoTime() - start > 1e9, "it may have been a snapshot");
            VmSync.snapshotPause = before;
            CompletableFuture<Script.Result> waiting = CompletableFuture.supplyAsync(this::sync);
            assertThrows(TimeoutException.class, () -> waiting.get(500, TimeUnit.MILLISECONDS));
            vm.qmp("cont");
            waiting.get(5, TimeUnit.MINUTES).exits(69).says("ssh_config is missing");
            vm.signal("STOP");
            start = System.nanoTime();
            assertEquals("vm-sync: QEMU (pid " + vm.pid() + ") does not answer: if it was stopped, kill -CONT " + vm.pid()
                    + " resumes it; vm-ctl stop --force ends it\n", sync().exits(69).err());
            assertTrue(System.nanoTime() - start < 15e9, "within seconds");
            vm.signal("CONT");
            sync().exits(69).says("ssh_config is missing");
            vm.pretend("io-error");
            assertEquals("vm-sync: the disk of this machine is full, so the guest is paused: free some space, then vm-ctl start\n",
                    sync().exits(1).err());
            vm.pretend("internal-error");
            sync().exits(69).says("an internal error of QEMU stopped the guest: vm-ctl restart --force boots it");
        } finally {
            VmSync.snapshotPause = before;
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"/", "//", "/root", "/root/", "/etc/x", "/usr/src", "/home", "/bin", "relative", "/root/../etc", "/root/./x", "/root/x/..",
        "/root/.ssh", "/root/a\nb", "/var/db", "/dev/null"})
    void whatASyncMustNotEmptyIsRefused(String directory) {
        call(Map.of("VM_REMOTE_DIR", directory), Map.of()).exits(2).says("VM_REMOTE_DIR in the environment: ");
        call(Map.of(), Map.of("VM_REMOTE_DIR", directory)).exits(2).says("VM_REMOTE_DIR in vm.env: ");
        Script.Result option = call(Map.of(), Map.of(), "--remote-dir", directory).exits(2);
        assertFalse(option.err().contains("VM_REMOTE_DIR in"), option.err());
    }

    @ParameterizedTest
    @CsvSource({"/root/x/,/root/x", "/root//it's é,/root/it's é", "/work,/work", "/root/..x,/root/..x", "/usr/home/me,/usr/home/me"})
    void otherDirectoriesAreTakenAsTheyAre(String given, String expected) {
        assertEquals(expected, new VmSync.RemoteDirectory().convert(given));
    }

    @Test
    void usageErrorsAreOneLineAndExit2() {
        call(Map.of(), Map.of(), "--wacth").exits(2).says("--watch");
        call(Map.of(), Map.of(), "pul", "a", "b").exits(2).says("pull");
        call(Map.of(), Map.of(), "pull").exits(2).says("REMOTE");
        call(Map.of(), Map.of(), "pull", "/a").exits(2).says("LOCAL");
        for (String noFile : List.of("", ".", "..", "a/..", "/")) {
            call(Map.of(), Map.of(), "pull", noFile).exits(2).says(noFile.equals("/") ? "LOCAL" : "names no file; for what is in a directory write '");
        }
        call(Map.of(), Map.of(), "pull", "--max-size", "1", "a", "b").exits(2).says("--max-size': '1' is not a size such as 2G or 512M");
        call(Map.of(), Map.of(), "--dry-run", "pull", "a", "b").exits(2).says("not with pull");
        for (String option : List.of("--watch", "--force", "--no-delete", "--engine=tar", "--exclude=x")) {
            call(Map.of(), Map.of(), option, "pull", "a", "b").exits(2).says(option.replaceAll("=.*", "") + " goes with a sync, not with pull");
        }
        call(Map.of(), Map.of(), "--engine", "ftp").exits(2).says("--engine");
        call(Map.of("VM_NAME", "../x"), Map.of()).exits(2).says("VM_NAME in the environment");
        call(Map.of("VM_PROJECT", temp.resolve("none").toString()), Map.of()).exits(2).says("VM_PROJECT in the environment: " + temp.resolve("none") + " is not");
        call(Map.of("VM_PROJECT", temp.toString()), Map.of(), "--watch", "--dry-run").exits(2).says("exclude each other");
        call(Map.of("VM_PROJECT", temp.toString()), Map.of(), "--exclude-from", temp.resolve("none").toString()).exits(2).says("--exclude-from");
        call(Map.of("VM_PROJECT", temp.toString()), Map.of(), "--exclude-from", temp.toString()).exits(2).says("--exclude-from");
        call(Map.of("VM_PROJECT", temp.toString()), Map.of(), "--exclude", "- ").exits(2).says("an empty pattern");
        for (String wrong : List.of("[]", "[z-a]", "[a\\]")) {
            call(Map.of("VM_PROJECT", temp.toString()), Map.of(), "--exclude", wrong).exits(2).says("has a '[' without its ']'");
        }
    }

    /** Asked before the VM is: there is none here. */
    @Test
    void whereAPullWritesIsDecidedHere() throws IOException {
        Path project = Files.createDirectories(temp.resolve("project"));
        Path elsewhere = Files.createDirectories(temp.resolve("elsewhere"));
        Files.createSymbolicLink(project.resolve("out"), elsewhere);
        Files.createDirectories(project.resolve(".git/hooks"));
        Files.createSymbolicLink(project.resolve("hooks"), Path.of(".git/hooks"));
        Files.createDirectories(project.resolve("dir"));
        Map<String, String> settings = Map.of("VM_DIR", temp.resolve("vm").toString(), "VM_PROJECT", project.toString());
        for (String remote : List.of("out/", "out/new/", "out/file", "../elsewhere/", "../file", "dir/../../file")) {
            call(settings, Map.of(), "pull", remote).exits(2).says("the same place in the project is " + temp)
                    .says(", which is outside " + project + ": name a directory or file as LOCAL");
        }
        for (String remote : List.of(".git/", ".git/config", "hooks/", "hooks/x", "vm.env", "dir/VM.ENV", "jbang-catalog.json", "jbang-catalog.json/")) {
            call(settings, Map.of(), "pull", remote).exits(2).says(", so it is not pulled: name another LOCAL");
        }
        call(settings, Map.of(), "pull", "vm.env", project + "/").exits(2).says("it would hold settings for programs of this machine");
        call(settings, Map.of(), "pull", "x", project + "/jbang-catalog.json").exits(2);
        call(settings, Map.of(), "pull", "dir").exits(2).says(project + "/dir is a directory here: to fill it, write 'dir/'");
        call(settings, Map.of(), "pull", "dir", project.toString()).exits(2).says("write 'dir/'");
        Path link = Files.createSymbolicLink(temp.resolve("link"), project);
        Map<String, String> linked = Map.of("VM_DIR", temp.resolve("vm").toString(), "VM_PROJECT", link.toString());
        for (List<String> fine : List.of(List.of("dir/"), List.of("new/file"), List.of("./"), List.of("vm.env", project + "/x.env"), List.of("out/", elsewhere.toString()),
                List.of("config"))) {
            call(linked, Map.of(), Stream.concat(Stream.of("pull"), fine.stream()).toArray(String[]::new)).exits(69).says("there is no VM");
        }
        assertEquals(Set.of("project", "elsewhere", "link"), Set.of(temp.toFile().list()));
    }

    @Test
    void aHomeDirectoryIsNotSentByMistake() throws IOException {
        Path home = Path.of(System.getenv("HOME"));
        Path link = Files.createSymbolicLink(temp.resolve("link"), home);
        Map<String, String> settings = new HashMap<>(Map.of("VM_DIR", temp.resolve("vm").toString()));
        for (Path refused : List.of(home, Path.of("/"), link)) {
            settings.put("VM_PROJECT", refused.toString());
            settings.put("VM_REMOTE_DIR", "/root/home");
            call(settings, Map.of()).exits(2).says("vm-sync: the project would be " + refused.toRealPath() + ", which is ").says(": set VM_PROJECT to a project");
            call(Map.of("VM_DIR", temp.resolve("vm").toString(), "VM_REMOTE_DIR", "/root/home"), Map.of("VM_PROJECT", refused.toString()), "--dry-run").exits(2);
        }
        settings.put("VM_PROJECT", temp.toString()); // where the tests run below the home directory, this one is fine
        call(settings, Map.of()).exits(69).says("there is no VM");
    }

    @Test
    void theCheckoutOfTheseScriptsIsWarnedAbout() throws IOException {
        Files.createFile(temp.resolve("VmSync.java"));
        Files.createFile(temp.resolve("jbang-catalog.json"));
        Files.createFile(temp.resolve("dfly-vm-clean.qcow2"));
        call(Map.of("VM_PROJECT", temp.toString(), "VM_DIR", temp.toString()), Map.of()).exits(3).says("warning: " + temp + " is the checkout");
    }

    @Test
    void helpNeedsNoArguments() {
        assertTrue(call(Map.of(), Map.of(), "--help").exits(0).out().contains("--watch"));
        assertTrue(call(Map.of(), Map.of(), "pull", "--help").exits(0).out().contains("LOCAL"));
    }

    // Pieces

    @Test
    void rsyncGetsItsWordsWhole() {
        assertEquals(List.of("rsync", "-rlptsOJ", "-0", "--exclude-from=-", "--timeout=300", "--out-format=%i|%l|%n", "-e",
                "ssh -F '/vm''s dir/ssh_config'", "--rsync-path=/usr/local/bin/rsync", "/my, project/", "vm:/root/it's/"),
                VmSync.RsyncEngine.command(Path.of("/my, project"), "/vm's dir/ssh_config", "vm:/root/it's/", "/usr/local/bin/rsync"));
    }

    @Test
    void rsyncsLinesAreUnderstood() {
        List<String> said = new ArrayList<>();
        List<VmSync.Change> changes = VmSync.RsyncEngine.parse(bytesOf("cd+++++++++|60|./\n<f+++++++++|3|a|b\n<f.st......|12|new\\#012line\n<f+++++++++|1|\\#303\\#251\n"
                + "cL+++++++++|7|l\n.d..t......|40|dir/\n*deleting  |0|old/\ncannot delete non-empty directory: é\n.f...p.....|9|m\n"), said);
        assertEquals(List.of("mkdir .", "send 'a|b'", "send $'new\\012line'", "send 'é'", "link l", "attrs dir", "delete old", "attrs m"),
                changes.stream().map(VmSync.Change::toString).toList());
        assertEquals(List.of("cannot delete non-empty directory: é"), said);
        assertEquals("4 sent, 1 deleted, 16 bytes, 1.50 s (rsync)",
                new VmSync.Outcome(changes, said, true, "rsync").summary(1.5));
    }

    @Test
    void aListingIsReadWhateverTheNames() {
        Map<String, VmSync.Item> tree = VmSync.Listing.parse(".\0./a\nb\0./l\0./d\0./|\0\0"
                + "40755 512 1700000000.000000000 |\n100644 5 1700000000.123456789 |\n120777 45 1.000000001 x\n|\n100644 5 1700000000.123456789 |\n9 9 9.9 y|\n40700 9 -5.000000000 |\n10600 0 7.000000000 |\n");
        assertEquals(Map.of(".", new VmSync.Item('d', 0755, 0, 1_700_000_000_000_000_000L, ""),
                "a\nb", new VmSync.Item('f', 0644, 5, 1_700_000_000_123_456_789L, ""), "l", new VmSync.Item('l', 0777, 0, 1_000_000_001L, "x\n|\n100644 5 1700000000.123456789 |\n9 9 9.9 y"),
                "d", new VmSync.Item('d', 0700, 0, -5_000_000_000L, ""), "|", new VmSync.Item('s', 0600, 0, 7_000_000_000L, "")), tree);
    }

    @Test
    void aListingThatDoesNotFitTogetherIsNone() {
        assertNull(VmSync.Listing.parse(".\0./a\0\0" + "40755 512 1700000000.000000000 |\n"));
        assertNull(VmSync.Listing.parse(".\0\0" + "40755 512 1700000000.000000000 |\n40755 512 1700000000.000000000 |\n"));
        assertNull(VmSync.Listing.parse(".\0"));
        assertNull(VmSync.Listing.parse("\0"));
        assertNull(VmSync.Listing.parse(".\0\0" + "40755 512 " + "1".repeat(30) + ".000000000 |\n"));
        assertNull(VmSync.Listing.parse(".\0\0" + "7".repeat(30) + " 512 1700000000.000000000 |\n"));
        assertEquals(Map.of(), VmSync.Listing.parse(""));
    }

    @Test
    void aShellThatDoesNotAnswerAsAskedIsTold() {
        assertEquals(new VmSync.Look("/bin/rsync", "h:/x", "list"),
                VmSync.Look.of("", new VmSync.Answer(0, bytes("hi\nvm-sync rsync=/bin/rsync\norigin=h:/x\nlist"), "")));
        for (String said : List.of("", "no more logins\n", "vm-sync rsync=", "vm-sync rsync=\n", "\033[2J".repeat(100_000))) {
            VmSync.VmException told = assertThrows(VmSync.VmException.class, () -> VmSync.Look.of("", new VmSync.Answer(0, bytes(said), "")));
            assertEquals(69, told.exitCode);
            assertTrue(told.getMessage().matches("[ -~]{1,2000}"), "short, and harmless to a terminal: " + told.getMessage());
        }
    }

    @Test
    void sshsConfigurationIsRead() {
        assertEquals(Map.of("host", "vm", "hostname", "127.0.0.1", "identityfile", "/a b/100% \"key\\ ", "port", "2222"),
                VmSync.Guest.keywords("Host vm\n  HostName 127.0.0.1\n\tIdentityFile \"/a b/100%% \\\"key\\\\ \"\n  Port 2222\n"));
    }

    /** In Egypt %d writes other digits than a shell reads. */
    @Test
    void whatTheGuestIsAskedIsTheSameInEveryLocale() {
        Locale before = Locale.getDefault();
        String here = VmSync.Pull.script("/a", true);
        try {
            Locale.setDefault(Locale.forLanguageTag("ar-EG"));
            assertEquals("\u0667", String.format("%d", 7));
            assertEquals(here, VmSync.Pull.script("/a", true));
        } finally {
            Locale.setDefault(before);
        }
    }

    @Test
    void namesAreTheirBytes() throws IOException {
        String name = bytesOf("ü") + "/a%\nb" + (char) 0xff;
        Path path = VmSync.path(temp, name);
        Files.createDirectories(path);
        assertEquals(name, VmSync.nameOf(temp, path));
        assertEquals(".", VmSync.nameOf(temp, temp));
        assertEquals(List.of(".", "a", "b"), Stream.of("a", "a/b", "b/c").map(VmSync::parent).toList());
        assertEquals("'it'\\''s é'", VmSync.quoted(bytesOf("it's é")));
        assertEquals("$'\\134n \\012 \\047'", VmSync.quoted("\\n \n '"));
        // What controls a terminal, also in Unicode (the one-letter form of "ESC [", and an order to write from right to left).
        assertEquals("$'\\033[2J'", VmSync.quoted("\033[2J"));
        assertEquals("$'\\302\\2332J \\303\\251'", VmSync.quoted(bytesOf("\u009b2J é")));
        assertEquals("$'a\\342\\200\\256b'", VmSync.quoted(bytesOf("a\u202eb")));
        assertEquals("$'\\377'", VmSync.quoted("\u00ff"), "which is no UTF-8");
    }

    /** rsync itself says which files the same rules leave. */
    @ParameterizedTest
    @ValueSource(strings = {"/vm/", "vm", "vm/", "*.db", "/a/b", "a/b", "b/", "**/c", "a/**", "/a/**/c", "a**c", "?", "[ab]", "[!ab]", "[^a-c]x", "[]x]", "\\*",
        "star\\*", "back\\slash", "/a/***", "+ *.db|*.db|- /a", "+ /a/|/*|+ b", "*/b", "/*/b", "a*", "/a*/", "+ a/***|+ a/|*", "é", "with space", "new\nline",
        "- - x", "b/c", "**.db", "/**b"})
    void patternsMeanWhatTheyMeanToRsync(String patterns) throws Exception {
        for (String file : List.of("vm/disk", "a/b/c", "a/b/a/b", "a/x.db", "x.db", "b", "c/vm", "ax", "dx", "]x", "*", "star*", "back\\slash", "é", "with space",
                "new\nline", "- x", "a/ac", "deep/a/b/c", "abc/c")) {
            Path path = temp.resolve(file);
            Files.createDirectories(path.getParent());
            Files.writeString(path, file);
        }
        VmSync.Rules rules = VmSync.Rules.of(Arrays.stream(patterns.split("\\|")).map(VmSyncTest::bytesOf).toList());
        Path list = Files.createTempFile("rules", "");
        Files.write(list, bytes(rules.text()));
        Process rsync = new ProcessBuilder("rsync", "-rn", "-0", "--exclude-from=" + list, "--out-format=%i|%l|%n", temp + "/", temp + ".none/").start();
        Set<String> expected = VmSync.RsyncEngine.parse(new String(rsync.getInputStream().readAllBytes(), ISO_8859_1), new ArrayList<>()).stream().map(VmSync.Change::name)
                .collect(Collectors.toCollection(TreeSet::new));
        assertEquals(0, rsync.waitFor());
        Files.delete(list);
        assertEquals(expected, VmSync.Listing.of(temp, rules, new ArrayList<>()).keySet());
    }

    @Test
    void aLiteralPatternMatchesItsNameAlone() {
        for (String name : List.of("a", "a*b", "a[b]", "a\\b", "a\\*b", "what?", "[", "+ a", "- a")) {
            VmSync.Rules rules = VmSync.Rules.of(List.of("/" + VmSync.Rules.literal(name)));
            assertTrue(rules.hides(name, false), name);
            assertFalse(rules.hides(name + "b", false), name);
            assertFalse(rules.hides("x/" + name, false), name);
        }
    }

    @Test
    void onlyWhatGitNeedsIsLeftOfAConfiguration() {
        assertEquals("[core]\nrepositoryformatversion = 1\nworktree = ../my sub\nbare\n[extensions]\nobjectFormat=sha256\n[branch \"a\"]\nmerge = refs/heads/a\n"
                + "[filter \"lfs\"]\nclean = git-lfs clean -- %f\n", VmSync.Source.withoutCredentials("""
                [core]
                \trepositoryformatversion = 1
                \tworktree = ../my sub
                \tbare
                \tsshCommand = sh -c 'x=secret y'
                \teditor = x \\
                secret
                \tgitProxy = socks5://user:secret@proxy
                [Http "https://example.org"] extraheader = secret
                \tfoo = secret
                [extensions]
                \tobjectFormat=sha256
                [extensions] token = secret
                \tfoo = secret
                [url "https://secret@example.org"]
                [remote "core"]
                \turl = https://secret@example.org
                [branch "https://secret@x"]
                [branch "a"]
                \tremote = https://secret@example.org
                \tmerge = refs/heads/a
                [credential] helper = "!echo password=secret"
                [corelike]
                \ttoken = secret
                [filter "lfs"]
                \tclean = git-lfs clean -- %f
                """));
        assertEquals("[branch \"fix]x\"]\nrebase = true\n", VmSync.Source.withoutCredentials("[branch \"fix]x\"]\n rebase = true\n\t-i = x\n"));
    }

    /** A file of the configuration may hold many things; a search of it must end soon. */
    @Test
    void aConfigurationIsReadInLinearTime() {
        assertTimeoutPreemptively(Duration.ofSeconds(20), () -> {
            for (String flood : List.of("\r".repeat(300_000), "[core]\n" + " ".repeat(300_000), "[core]\na=" + ":".repeat(300_000), "[" + "a".repeat(300_000), "[".repeat(300_000),
                    "token = 1\n[branch \"" + "a".repeat(300_000) + "\"]", "://".repeat(100_000), "[core]\n" + "a".repeat(300_000), "\\\n".repeat(100_000))) {
                VmSync.Source.withoutCredentials(flood + "\n");
            }
        });
    }

    /** It becomes the argument --rsync-path, and OpenSSH reads options after a host's name, too. */
    @Test
    void whereTheGuestHasItsRsyncIsAPathOrNone() {
        for (String[] row : new String[][] {{"/usr/local/bin/rsync", "/usr/local/bin/rsync"}, {"-oProxyCommand=touch evil", ""}, {"/bin/x -y", ""}, {"rsync", ""}}) {
            assertEquals(row[1], VmSync.Look.of("x", new VmSync.Answer(0, bytes("vm-sync rsync=" + row[0] + "\norigin=\n"), "")).rsync(), row[0]);
        }
    }

    /** As on a full disk, at each sync of a watch. */
    @Test
    void notesThatCannotBeWrittenHoldNoLock() throws IOException {
        Path file = temp.resolve("notes/key");
        Files.createDirectory(file.getParent());
        try (VmSync.Journal journal = new VmSync.Journal(file, List.of(), message -> { })) {
            Path time = journal.reference();
            Files.delete(time);
            Files.createDirectory(time.resolveSibling(time.getFileName() + ".new")); // where it is to be written
        }
        for (int sync = 1; sync <= 2; sync++) {
            try (VmSync.Journal journal = new VmSync.Journal(file, List.of(), message -> { })) {
                assertTrue(assertThrows(VmSync.VmException.class, journal::reference).getMessage().contains("make room, then sync again"));
            }
        }
    }

    @Test
    void aProjectsLinkLeadsNoPullAway() throws IOException {
        Path links = Files.createDirectories(Path.of(".build/test/links"));
        Path link = links.resolve("crash");
        Files.deleteIfExists(link);
        Files.createSymbolicLink(link, temp);
        for (String name : List.of(link.toString(), link.resolve("new").toString(), link + "/")) {
            VmSync.VmException refused = assertThrows(VmSync.VmException.class, () -> VmSync.written(Path.of(name)));
            assertEquals(2, refused.exitCode);
            assertTrue(refused.getMessage().contains(" is a link, and may be a project's"), refused.getMessage());
            call(Map.of("VM_DIR", temp.resolve("vm").toString(), "VM_PROJECT", temp.toString()), Map.of(), "pull", "x/", name).exits(2).says(" is a link, and may be a project's");
        }
        Files.delete(link);
        Files.createSymbolicLink(link, temp.resolve("not there"));
        assertThrows(VmSync.VmException.class, () -> VmSync.written(link));
        assertThrows(VmSync.VmException.class, () -> VmSync.written(link.toAbsolutePath()));
        Files.delete(link);
        Files.createSymbolicLink(link, Path.of("../../.git/hooks")); // which git would run
        assertThrows(VmSync.VmException.class, () -> VmSync.written(link));
        assertEquals(links.resolve("file").toAbsolutePath(), VmSync.written(link.resolve("../file")), "what is opened is what was checked");
        VmSync.written(links.resolve("inside/new"));
        VmSync.written(temp.resolve("elsewhere"));
        Files.delete(link);
    }

    @Test
    void whatRsyncPassesOnIsHarmless() {
        List<String> said = new ArrayList<>();
        assertEquals(0, VmSync.RsyncEngine.parse("\033[2J" + bytesOf("\u009b\u202e") + "!\n<f+++++++++|" + "9".repeat(30) + "|a\n" + "x\n".repeat(5000), said).size());
        assertEquals("??!", said.get(0));
        assertEquals(1000, said.size());
    }

    // What a hostile guest may send

    private static byte[] tar(TarArchiveEntry... entries) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (TarArchiveOutputStream tar = new TarArchiveOutputStream(bytes, "ISO-8859-1")) {
            tar.setLongFileMode(TarArchiveOutputStream.LONGFILE_GNU);
            for (TarArchiveEntry entry : entries) {
                entry.setSize(entry.isFile() && entry.getLinkFlag() == TarConstants.LF_NORMAL ? 5 : 0);
                tar.putArchiveEntry(entry);
                tar.write(new byte[] {'e', 'v', 'i', 'l', '\n'}, 0, (int) entry.getSize());
                tar.closeArchiveEntry();
            }
        }
        return bytes.toByteArray();
    }

    private VmSync.Pull unpack(Path local, TarArchiveEntry... entries) throws IOException {
        VmSync.Pull pull = new VmSync.Pull(local, List.of(), null, 1 << 30);
        pull.unpack(new ByteArrayInputStream(tar(entries)));
        return pull;
    }

    private static String refused(VmSync.Pull pull, InputStream in) {
        VmSync.VmException told = assertThrows(VmSync.VmException.class, () -> pull.unpack(in));
        assertEquals(1, told.exitCode);
        return told.getMessage();
    }

    private static TarArchiveEntry file(String name) {
        return new TarArchiveEntry(name, TarConstants.LF_NORMAL, true);
    }

    private static TarArchiveEntry link(String name, String target) {
        TarArchiveEntry entry = new TarArchiveEntry(name, TarConstants.LF_SYMLINK, true);
        entry.setLinkName(target);
        return entry;
    }

    private static TarArchiveEntry directory(String name) {
        return new TarArchiveEntry(name + "/", TarConstants.LF_DIR, true);
    }

    @Test
    void nothingIsWrittenOutsideLocal() throws IOException {
        Path local = Files.createDirectories(temp.resolve("deep/local"));
        Path precious = Files.writeString(temp.resolve("deep/precious"), "mine");
        Files.createSymbolicLink(local.resolve("mine"), temp.resolve("deep"));
        Map<String, String> before = tree(temp);
        VmSync.Pull pull = unpack(local, directory("."), file(temp + "/deep/absolute"), file("../precious"), file("a/../../precious"), link("out", "../precious"),
                link("out2", temp.toString()), link("here", "."), link("bend", "here/../.."), link("d/up", "../.."), file("mine/precious"),
                link("ok", "d"), file("ok/through"), file(".git/hooks/pre-commit"), file("sub/.GIT/config"), link("d/root", "../ok/fine"),
                new TarArchiveEntry("pipe", TarConstants.LF_FIFO, true), new TarArchiveEntry("node", TarConstants.LF_CHR, true), hard("hard", "mine/precious"),
                file("."), link("./.", "d"), file("nul\0" + "x".repeat(120)));
        assertEquals("mine", Files.readString(precious));
        Map<String, String> added = tree(temp);
        added.keySet().removeAll(before.keySet());
        assertEquals(Set.of("deep/local/here", "deep/local/ok", "deep/local/d", "deep/local/d/root"), added.keySet());
        assertEquals(17, pull.leftOut.size(), pull.leftOut.toString());
    }

    @Test
    void aFullDiskIsNoLostConnection() throws IOException {
        InputStream full = new InputStream() { // a write says it without a file's name, as this does
            @Override
            public int read() throws IOException {
                throw new IOException("No space left on device");
            }
        };
        InputStream in = new SequenceInputStream(new ByteArrayInputStream(tar(file("big")), 0, 512), full);
        VmSync.VmException told = assertThrows(VmSync.VmException.class, 
                () -> new VmSync.Pull(temp, List.of("big"), "big", 1 << 30).unpack(in));
        assertEquals(1, told.exitCode);
        assertTrue(told.getMessage().contains("make room"), told.getMessage());
        assertEquals(Set.of("."), tree(temp).keySet());
    }

    private static TarArchiveEntry hard(String name, String target) {
        TarArchiveEntry entry = new TarArchiveEntry(name, TarConstants.LF_LINK, true);
        entry.setLinkName(target);
        return entry;
    }

    @Test
    void aLinkThatStandsWhereAFileGoesIsReplacedAndNotFollowed() throws IOException {
        Path local = Files.createDirectories(temp.resolve("local"));
        Path precious = Files.writeString(temp.resolve("precious"), "mine");
        Files.createSymbolicLink(local.resolve("result"), precious);
        unpack(local, directory("."), file("result"));
        assertEquals("mine", Files.readString(precious));
        assertEquals("evil\n", Files.readString(local.resolve("result")));
        assertFalse(Files.isSymbolicLink(local.resolve("result")));
    }

    /** One file was asked for: whether it is one, and what it is called, is not the guest's to say. */
    @Test
    void oneFileIsThisFileOrNone() throws IOException {
        Path local = temp.resolve("new");
        for (TarArchiveEntry lie : List.of(directory("."), directory("asked"), file("vm.env"), file("../asked"), file("asked/asked"), link("asked", "/etc/passwd"),
                hard("asked", "/etc/passwd"), new TarArchiveEntry("asked", TarConstants.LF_FIFO, true))) {
            VmSync.Pull pull = new VmSync.Pull(local, List.of("as"), "asked", 1 << 30);
            String told = refused(pull, new ByteArrayInputStream(tar(lie, file("asked"), file("vm.env"))));
            assertTrue(told.startsWith("stopped, because the guest did not send the file that was asked for, but "), told);
            assertFalse(Files.exists(local), told);
        }
        for (TarArchiveEntry second : List.of(file("asked"), file("vm.env"), directory("more"), link("link", "x"))) {
            VmSync.Pull pull = new VmSync.Pull(local, List.of("as"), "asked", 1 << 30);
            assertEquals("stopped, because the guest sent more than the one file that was asked for: kept 1 files, 5 bytes in " + local,
                    refused(pull, new ByteArrayInputStream(tar(file("./asked"), second))));
            assertEquals(Set.of(".", "as"), tree(local).keySet());
        }
        VmSync.Pull pull = new VmSync.Pull(local, List.of("config"), "config", 1 << 30);
        pull.unpack(new ByteArrayInputStream(tar(file("config"))));
        assertEquals(Set.of("as", "config", "."), tree(local).keySet());
    }

    @Test
    void settingsForProgramsOfThisMachineAreLeftOut() throws IOException {
        for (String name : List.of(".git", ".GIT", "git~1", ".g\u200cit", ".git.", "vm.env", "VM.Env", "jbang-catalog.json", "JBANG-CATALOG.JSON", "jbang-catalog.j\u017fon",
                "jbang.properties")) {
            VmSync.Pull pull = unpack(temp, directory("."), file(bytesOf(name)), file("sub/" + bytesOf(name)), file(bytesOf(name) + "/config"),
                    link(bytesOf(name), "good"), file("good"));
            assertEquals(3, pull.leftOut.size(), name + pull.leftOut);
            assertTrue(pull.leftOut.iterator().next().startsWith("left out: " + VmSync.quoted(bytesOf(name)) + ": "), pull.leftOut.toString());
            assertEquals(Set.of(".", "good"), tree(temp).keySet(), name);
        }
    }

    /** In such a directory git runs what config names as core.fsmonitor or core.pager. */
    @Test
    void aDirectoryDoesNotBecomeARepository() throws IOException {
        List<TarArchiveEntry> parts = List.of(file("x/HEAD"), directory("x/objects"), link("x/refs", "elsewhere"));
        int[][] orders = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
        for (int[] order : orders) {
            Path local = Files.createDirectories(temp.resolve("local"));
            VmSync.Pull pull = unpack(local, parts.get(order[0]), parts.get(order[1]), parts.get(order[2]), file("x/config"), file("x/objects/ab"), file("y/config"));
            assertEquals(1, pull.leftOut.size(), pull.leftOut.toString());
            assertTrue(pull.leftOut.iterator().next().contains("x/HEAD: git would take its directory for a repository"), pull.leftOut.toString());
            assertTrue(Files.exists(local.resolve("y/config")) && !Files.exists(local.resolve("x/HEAD")));
            delete(local);
        }
        // In other letters, and with what is there already, in this directory and above.
        assertEquals(1, unpack(temp.resolve("a"), file("head"), file("Objects/x"), file("REFS/x")).leftOut.size());
        assertEquals(1, unpack(temp.resolve("b"), file("commondir"), file("HEAD")).leftOut.size());
        Files.createDirectories(temp.resolve("c/refs"));
        Files.createFile(temp.resolve("c/HEAD"));
        assertEquals(1, unpack(temp.resolve("c"), file("objects/x")).leftOut.size());
        Files.createDirectories(temp.resolve("d/r/objects"));
        Files.createDirectories(temp.resolve("d/r/refs"));
        Files.createFile(temp.resolve("d/r/HEAD"));
        assertEquals(2, unpack(temp.resolve("d"), file("r/config"), file("r/hooks/post-checkout"), file("good")).leftOut.size());
        assertEquals(Set.of(".", "good", "r", "r/objects", "r/refs", "r/HEAD"), tree(temp.resolve("d")).keySet());
        VmSync.Pull head = new VmSync.Pull(temp.resolve("e"), List.of("HEAD"), "HEAD", 1 << 30);
        Files.createDirectories(temp.resolve("e/refs"));
        Files.createDirectories(temp.resolve("e/objects"));
        head.unpack(new ByteArrayInputStream(tar(file("HEAD"))));
        assertEquals(1, head.leftOut.size());
    }

    /** A file that is one hole, in the form of POSIX that GNU tar writes. */
    private static byte[] sparse(String name, long size) throws IOException {
        StringBuilder records = new StringBuilder();
        for (String record : List.of("GNU.sparse.size=" + size, "GNU.sparse.numblocks=1", "GNU.sparse.map=" + size + ",0")) {
            int length = record.length() + 4; // with a number of two digits, a blank and a newline
            records.append(length).append(' ').append(record).append('\n');
        }
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (TarArchiveOutputStream tar = new TarArchiveOutputStream(bytes, "ISO-8859-1")) {
            TarArchiveEntry header = new TarArchiveEntry("records", TarConstants.LF_PAX_EXTENDED_HEADER_LC);
            header.setSize(records.length());
            tar.putArchiveEntry(header);
            tar.write(bytes(records.toString()));
            tar.closeArchiveEntry();
            tar.putArchiveEntry(file(name));
            tar.closeArchiveEntry();
        }
        return bytes.toByteArray();
    }

    @Test
    void whatAPullWritesHasALimit() throws IOException {
        VmSync.Pull pull = new VmSync.Pull(temp, List.of(), null, 1 << 20);
        pull.unpack(new ByteArrayInputStream(sparse("holes", 1_000_000)));
        assertEquals(1_000_000, Files.size(temp.resolve("holes")));
        Files.delete(temp.resolve("holes"));
        for (long size : new long[] {1_048_577, Integer.MAX_VALUE}) {
            assertEquals("stopped, because the files are larger than --max-size, which is 1M: kept 0 files, 0 bytes in " + temp,
                    refused(new VmSync.Pull(temp, List.of(), null, 1 << 20), new ByteArrayInputStream(sparse("holes", size))));
        }
        assertTrue(refused(new VmSync.Pull(temp, List.of(), null, 1 << 20), new ByteArrayInputStream(sparse("holes", Long.MAX_VALUE))).startsWith("stopped, "));
        // Header by header, the sum counts, also of what is left out.
        byte[] zeros = new byte[600_000];
        TarArchiveEntry large = file("x");
        for (String second : List.of("second", "../second")) {
            large.setName(second);
            ByteArrayOutputStream two = new ByteArrayOutputStream();
            try (TarArchiveOutputStream tar = new TarArchiveOutputStream(two, "ISO-8859-1")) {
                for (TarArchiveEntry entry : List.of(file("first"), large)) {
                    entry.setSize(zeros.length);
                    tar.putArchiveEntry(entry);
                    tar.write(zeros);
                    tar.closeArchiveEntry();
                }
            }
            assertEquals("stopped, because the files are larger than --max-size, which is 1M: kept 1 files, 600000 bytes in " + temp,
                    refused(new VmSync.Pull(temp, List.of(), null, 1 << 20), new ByteArrayInputStream(two.toByteArray())));
            assertEquals(Set.of(".", "first"), tree(temp).keySet());
            Files.delete(temp.resolve("first"));
        }
    }

    /** The same bytes for ever. */
    private static InputStream endless(byte[] piece) {
        return new InputStream() {
            private int next;

            @Override
            public int read() {
                return piece[next++ % piece.length] & 0xff;
            }

            @Override
            public int read(byte[] buffer, int offset, int length) {
                for (int i = 0; i < length; i++) {
                    buffer[offset + i] = piece[next++ % piece.length];
                    next %= piece.length;
                }
                return length;
            }
        };
    }

    @Test
    void whatAGuestSendsEnds() throws IOException {
        byte[] whole = tar(file("first"));
        byte[] entry = Arrays.copyOf(whole, 1024);
        String kept = ": kept 1 files, 5 bytes in " + temp;
        VmSync.Pull pull = new VmSync.Pull(temp, List.of(), null, 1 << 30);
        assertEquals("stopped, because the guest sends more than the files of its archive" + kept,
                refused(pull, new SequenceInputStream(new ByteArrayInputStream(whole), endless(new byte[512]))));
        // A name that has no end, names for names, and directories without end in one name.
        TarArchiveEntry name = new TarArchiveEntry("././@LongLink", TarConstants.LF_GNUTYPE_LONGNAME);
        name.setSize(8L << 30);
        byte[] nameHeader = new byte[512];
        name.writeEntryHeader(nameHeader);
        for (byte[] odd : List.of(nameHeader, Arrays.copyOf(tar(file("y".repeat(300))), 1024))) {
            assertEquals("stopped, because the guest sends more than the files of its archive" + kept,
                    refused(new VmSync.Pull(temp, List.of(), null, 1 << 30), new SequenceInputStream(new ByteArrayInputStream(entry), endless(odd))));
        }
        VmSync.Pull deep = unpack(temp.resolve("deep"), file("d/".repeat(100) + "f"), file("e/".repeat(99) + "f"));
        assertEquals(1, deep.leftOut.size(), deep.leftOut.toString());
        int usual = VmSync.Pull.maxEntries;
        assertEquals(100_000, usual);
        VmSync.Pull.maxEntries = 200;
        try {
            byte[] link = Arrays.copyOf(tar(link("../x", "y")), 512);
            pull = new VmSync.Pull(temp, List.of(), null, 1 << 30);
            assertEquals("stopped, because more than 200 files and directories arrive" + kept,
                    refused(pull, new SequenceInputStream(new ByteArrayInputStream(entry), endless(link))));
            assertEquals(1, pull.leftOut.size());
            pull = new VmSync.Pull(temp.resolve("deep"), List.of(), null, 1 << 30);
            assertTrue(refused(pull, new ByteArrayInputStream(tar(file("f/".repeat(99) + "f"), file("g/".repeat(99) + "f"), file("h/".repeat(99) + "f"))))
                    .startsWith("stopped, because more than 200 files and directories arrive: kept 2 files"));
        } finally {
            VmSync.Pull.maxEntries = usual;
        }
        delete(temp.resolve("deep"));
        assertEquals(Set.of(".", "first"), tree(temp).keySet());
    }

    @Test
    void anArchiveThatMakesNoSenseIsTold() throws IOException {
        java.util.Random random = new java.util.Random(17);
        byte[] good = tar(directory("."), file("first"), file("l".repeat(200)), link("link", "first"));
        byte[] holes = sparse("holes", 5000);
        for (int i = 0; i < 300; i++) {
            byte[] bad = (i % 2 == 0 ? good : holes).clone();
            for (int change = 0; change < 1 + i % 5; change++) {
                bad[random.nextInt(bad.length)] = (byte) random.nextInt();
            }
            try {
                new VmSync.Pull(temp.resolve("out"), List.of(), null, 1 << 20).unpack(new ByteArrayInputStream(bad));
            } catch (VmSync.VmException told) {
                assertEquals(1, told.exitCode);
            }
        }
        assertEquals(Set.of("out"), Set.of(temp.toFile().list()));
    }

    @Test
    void modesAndTimesArriveWithoutSetIdBits() throws IOException {
        TarArchiveEntry entry = file("tool");
        entry.setMode(06755);
        entry.setLastModifiedTime(FileTime.fromMillis(981_173_106_000L));
        unpack(temp, directory("."), entry);
        assertEquals(0100755, Files.getAttribute(temp.resolve("tool"), "unix:mode"));
        assertEquals(981_173_106_000L, Files.getLastModifiedTime(temp.resolve("tool")).toMillis());
    }

    // Both engines, over a real sshd

    @ParameterizedTest
    @ValueSource(strings = {"rsync", "tar"})
    @Retention(RetentionPolicy.RUNTIME)
    @interface ByEitherEngine {}

    @Nested
    final class OverSsh {
        private static Sshd sshd;
        private static Path base;
        private Path project;
        private Path guest;
        /** For what else a test needs. */
        private Path extra;

        @BeforeAll
        static void start() throws Exception {
            sshd = new Sshd();
            base = sshd.base;
        }

        @AfterAll
        static void stop() throws IOException {
            if (sshd != null) {
                sshd.close();
                delete(base);
            }
        }

        @BeforeEach
        void newProject() throws IOException {
            project = Files.createDirectories(base.resolve("my, \"project\" é"));
            guest = base.resolve("guest/it's a \"tree\" é");
            Files.createDirectories(guest.getParent());
            extra = Files.createDirectories(base.resolve("extra"));
        }

        @AfterEach
        void noProject() throws IOException {
            delete(project);
            delete(guest.getParent());
            delete(base.resolve("home/.vm-sync"));
            delete(extra);
            for (String replaced : List.of("touch", "tar", "mkdir")) {
                Files.deleteIfExists(base.resolve("bin").resolve(replaced));
            }
        }

        private Map<String, String> settings() {
            return new HashMap<>(Map.of("VM_DIR", base.resolve("vm").toString(), "VM_PROJECT", project.toString(), "VM_REMOTE_DIR", guest.toString()));
        }

        private Script.Result sync(String... args) {
            return call(settings(), Map.of(), args);
        }

        /** As a process of its own; what it says goes to the files out and err. */
        private Process start(String... args) throws IOException {
            List<String> command = new ArrayList<>(List.of("java", "-cp", System.getProperty("java.class.path"), "VmSync"));
            command.addAll(List.of(args));
            ProcessBuilder builder = new ProcessBuilder(command).redirectOutput(base.resolve("out").toFile()).redirectError(base.resolve("err").toFile());
            builder.environment().putAll(settings());
            return builder.start();
        }

        private Path write(String name, String content) throws IOException {
            Path file = VmSync.path(project, bytesOf(name));
            Files.createDirectories(file.getParent());
            return Files.writeString(file, content);
        }

        private void fill() throws IOException {
            for (String name : List.of("a b", "it's", "say \"hi\"", "new\nline", "é日本", "-dash", "back\\slash", "$HOME", "*", "#x", "\\#012", "|",
                    "d/" + "long".repeat(30) + "/" + "x".repeat(120), "dir/inner/file", "dir/other")) {
                write(name, name);
            }
            Files.write(VmSync.path(project, "not-utf8-" + (char) 0xff), new byte[] {1});
            Files.createDirectories(project.resolve("empty/too"));
            Files.setPosixFilePermissions(write("script.sh", "#!/bin/sh\n"), PosixFilePermissions.fromString("rwxr-x---"));
            Files.setPosixFilePermissions(project.resolve("dir"), PosixFilePermissions.fromString("rwx------"));
            Files.createSymbolicLink(project.resolve("link"), Path.of("../nowhere\nat all"));
            Files.createSymbolicLink(project.resolve("dirlink"), Path.of("dir"));
            Files.createSymbolicLink(project.resolve("absolute"), Path.of("/etc/" + "x".repeat(150)));
            Files.setLastModifiedTime(write("old", ""), FileTime.from(Instant.parse("2001-02-03T04:05:06.123456Z")));
            Files.setLastModifiedTime(project.resolve("dir"), FileTime.from(Instant.parse("2002-02-03T04:05:06Z")));
        }

        private void change() throws IOException {
            delete(project.resolve("a b"));
            write("a b/now", "a file became a directory");
            delete(project.resolve("dir"));
            write("dir", "a directory became a file");
            delete(project.resolve("empty"));
            Files.createSymbolicLink(project.resolve("empty"), Path.of("a b"));
            delete(project.resolve("dirlink"));
            write("dirlink/x", "a link became a directory");
            delete(project.resolve("link"));
            Files.createSymbolicLink(project.resolve("link"), Path.of("elsewhere"));
            delete(project.resolve("it's"));
            Files.setPosixFilePermissions(project.resolve("script.sh"), PosixFilePermissions.fromString("r-xr--r--"));
            write("new\nline", "NEW\nLINE and longer");
            write("added/deeply/here", "");
        }

        @ByEitherEngine
        void theGuestHoldsWhatTheProjectHolds(String engine) throws Exception {
            fill();
            Thread.sleep(50); // what is written in this very moment is sent twice
            Script.Result first = sync("--engine", engine).exits(0);
            assertTrue(first.out().matches("(?s)synced dfly-vm:.*: 21 sent, 0 deleted, \\d+ bytes, .* s \\(" + engine + "\\)\n"), first.out());
            assertEquals(tree(project), tree(guest));
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 0 sent, 0 deleted, 0 bytes"));
            change();
            sync("--engine", engine).exits(0);
            assertEquals(tree(project), tree(guest));
            // The other engine finds nothing left to do.
            assertEquals("", sync("--dry-run", "--engine", engine.equals("tar") ? "rsync" : "tar").exits(0).out());
            assertEquals(1, VmSync.Listing.of(base.resolve("home/.vm-sync"), VmSync.Rules.of(List.of()), new ArrayList<>()).keySet().stream()
                    .filter(name -> name.endsWith("/made")).count(), "the mark stands outside the tree");
        }

        /** The lock is of the process: Java drops it when it closes any other descriptor of the file. */
        @Test
        void twoSyncsOfOneDirectoryTakeTurns() throws Exception {
            write("file", "x");
            sync("--engine", "tar").exits(0);
            Path note;
            try (Stream<Path> notes = Files.list(base.resolve("vm/dfly-vm.sync"))) {
                note = notes.filter(file -> !file.toString().endsWith(".time")).findFirst().orElseThrow();
            }
            Process second;
            try (VmSync.Journal first = new VmSync.Journal(note, List.of(), message -> { })) {
                first.reference();
                first.completed();
                second = start("--engine", "tar");
                while (!read(base.resolve("err")).contains("waiting for another vm-sync of this directory")) {
                    assertTrue(second.isAlive(), () -> "it did not wait: " + read(base.resolve("out")) + read(base.resolve("err")));
                    Thread.sleep(20);
                }
            }
            assertEquals(0, second.waitFor(), () -> read(base.resolve("err")));
        }

        @Test
        void aDryRunListsExactlyWhatWouldHappenByEitherEngine() throws IOException {
            fill();
            Map<String, List<String>> said = new TreeMap<>();
            for (String engine : List.of("rsync", "tar")) {
                said.put("new " + engine, sync("--dry-run", "--engine", engine).exits(0).out().lines().sorted().toList());
                assertFalse(Files.exists(guest), "a dry run does nothing");
            }
            assertEquals(said.get("new rsync"), said.get("new tar"));
            sync().exits(0);
            change();
            Map<String, String> before = tree(guest);
            for (String engine : List.of("rsync", "tar")) {
                said.put(engine, sync("--dry-run", "--engine", engine).exits(0).out().lines().sorted().toList());
            }
            assertEquals(before, tree(guest));
            assertEquals(said.get("rsync"), said.get("tar"));
            assertTrue(said.get("tar").containsAll(List.of("delete 'it'\\''s'", "send dir", "send $'new\\012line'", "link link", "attrs script.sh", "mkdir added")),
                    said.get("tar").toString());
            Map<String, String> wanted = tree(project);
            Set<String> differing = Stream.concat(before.keySet().stream(), wanted.keySet().stream())
                    .filter(name -> !String.valueOf(before.get(name)).equals(wanted.get(name))).map(VmSync::quoted).collect(Collectors.toSet());
            assertEquals(differing, said.get("tar").stream().map(line -> line.replaceFirst("\\w+ ", "")).collect(Collectors.toSet()));
        }

        @ByEitherEngine
        void whatIsExcludedStaysOutAndSurvives(String engine) throws IOException {
            write("x.db", "");
            write("vm/vm.go", "package vm");
            write("sub/testdata/fixture.db", "");
            write("logs/a.log", "");
            write("logs/keep.log", "");
            write(project.getFileName().toString(), "the built binary");
            Path list = Files.writeString(base.resolve("list"), "# comment\n\n; too\n+ keep.log\n*.log\n");
            List<String> args = List.of("--engine", engine, "--exclude-from", list.toString(), "--exclude", "/cache/");
            Set<String> sent = Set.of(".", "sub", "sub/testdata", "sub/testdata/fixture.db", "vm", "vm/vm.go", "logs", "logs/keep.log");
            Script.Result first = sync(args.toArray(String[]::new)).exits(0);
            assertTrue(first.out().endsWith("; left out: 'my, \"project\" é', x.db\n"), first.out());
            assertEquals(sent, tree(guest).keySet());
            for (String there : List.of("y.db", "vm/z", "cache/c", "gone/deep.log", guest.getFileName().toString(), "stray")) {
                Files.createDirectories(guest.resolve(there).getParent());
                Files.writeString(guest.resolve(there), "");
            }
            sync(args.toArray(String[]::new)).exits(0).says("vm-sync: deletes what only the guest has: stray, vm/z\n");
            Set<String> kept = new TreeSet<>(sent);
            kept.addAll(List.of(bytesOf(guest.getFileName().toString()), "y.db", "cache", "cache/c", "gone", "gone/deep.log"));
            assertEquals(kept, tree(guest).keySet());
            write("gone", "a file where the guest has a directory of excluded files");
            write("after", "");
            sync(args.toArray(String[]::new)).exits(1).says("gone");
            assertTrue(Files.exists(guest.resolve("gone/deep.log")) && Files.exists(guest.resolve("after")));
            // Source in a directory named like the project is no binary.
            Files.delete(project.resolve("gone"));
            delete(project.resolve(project.getFileName()));
            write(project.getFileName() + "/main.go", "package main");
            sync(args.toArray(String[]::new)).exits(0);
            assertTrue(Files.exists(guest.resolve(project.getFileName()).resolve("main.go")));
        }

        @ByEitherEngine
        void aVmDirectoryInTheProjectIsNotSent(String engine) throws IOException {
            Path inside = project.resolve("my [vm]*");
            write("my [vm]*/dfly-vm.iso", "");
            write("my v/x", "");
            for (String file : List.of("ssh_config", "dfly-vm.pid", "dfly-vm.ssh/config")) {
                write("my [vm]*/" + file, Files.readString(base.resolve("vm").resolve(file)));
            }
            Files.createSymbolicLink(inside.resolve("dfly-vm.qemu-pid"), sshd.vm.file(".qemu-pid")); // the same file, with its lock
            Map<String, String> settings = settings();
            settings.put("VM_DIR", inside.toString());
            Script.Result result = call(settings, Map.of(), "--engine", engine).exits(0);
            assertEquals(Set.of(".", "my v", "my v/x"), tree(guest).keySet());
            assertTrue(result.out().endsWith("; left out: 'my [vm]*/'\n"), result.out());
        }

        private Script.Result sync(Path from, String... args) {
            Map<String, String> settings = settings();
            settings.put("VM_PROJECT", from.toString());
            return call(settings, Map.of(), args);
        }

        /** The two lines that the guest has about its directory: from where it came, and when. */
        private List<String> origin() throws IOException {
            try (Stream<Path> files = Files.walk(base.resolve("home/.vm-sync"))) {
                List<Path> found = files.filter(file -> file.getFileName().toString().startsWith("origin")).toList();
                assertEquals(1, found.size(), found.toString());
                return Files.readAllLines(found.get(0));
            }
        }

        private static String host() throws IOException {
            return Files.readString(Path.of("/proc/sys/kernel/hostname")).strip();
        }

        @ByEitherEngine
        void aDirectoryThatCameFromAnotherProjectIsReplacedAloud(String engine) throws IOException {
            Path other = Files.createDirectories(extra.resolve("app"));
            Files.writeString(other.resolve("same"), "");
            Files.setLastModifiedTime(write("same", ""), Files.getLastModifiedTime(other.resolve("same")));
            write("first/only", "");
            Instant began = Instant.now().truncatedTo(ChronoUnit.SECONDS);
            assertEquals("", sync("--engine", engine).exits(0).err());
            String ours = host() + ":" + project;
            assertEquals(ours, origin().get(0));
            assertFalse(Instant.parse(origin().get(1)).isBefore(began));
            assertEquals(2, origin().size());
            assertEquals("", sync("--engine", engine).exits(0).err(), "from the same project");
            // Whether a dry run or not, the same is said.
            String replaces = "vm-sync: replaces " + guest + ", which came from " + VmSync.quoted(bytesOf(ours)) + "\n";
            String deletes = "vm-sync: deletes what only the guest has: first/only\n";
            Map<String, String> before = tree(guest);
            assertEquals(replaces + deletes + "would", sync(other, "--engine", engine, "--dry-run").exits(0).err().replaceFirst("would.*\n", "would"));
            assertEquals(List.of(before, ours), List.of(tree(guest), origin().get(0)));
            assertEquals(replaces, sync(other, "--engine", engine, "--no-delete").exits(0).err());
            assertEquals(host() + ":" + other, origin().get(0), "although nothing had to be sent");
            sync("--engine", engine).exits(0).says("which came from " + VmSync.quoted(bytesOf(host() + ":" + other)) + "\n");
            assertEquals(replaces + deletes, sync(other, "--engine", engine).exits(0).err());
            assertEquals(tree(other), tree(guest));
            // A directory that was made anew came from nowhere.
            delete(guest);
            assertEquals("", sync("--engine", engine).exits(0).err());
        }

        /** As two checkouts made in one second, or two archives in which all dates are one. */
        @ByEitherEngine
        void filesOfTwoProjectsMayLookTheSame(String engine) throws IOException {
            Path other = Files.createDirectories(extra.resolve("app"));
            FileTime time = FileTime.from(Instant.parse("2020-01-01T00:00:00Z"));
            Files.setLastModifiedTime(write("it", "first"), time);
            Files.setLastModifiedTime(write("equal", ""), time);
            Files.setLastModifiedTime(Files.writeString(other.resolve("it"), "other"), time);
            Files.setLastModifiedTime(Files.writeString(other.resolve("equal"), ""), time);
            sync("--engine", engine).exits(0);
            assertTrue(sync(other, "--engine", engine, "--dry-run").exits(0).out().contains("send it\n"));
            sync(other, "--engine", engine).exits(0);
            assertEquals("other", Files.readString(guest.resolve("it")));
            assertTrue(sync(other, "--engine", engine).exits(0).out().contains(": 0 sent,"));
            // The directory of an older vm-sync, which noted no origin; and one that somebody filled.
            try (Stream<Path> files = Files.walk(base.resolve("home/.vm-sync"))) {
                Files.delete(files.filter(file -> file.endsWith("origin")).findFirst().get());
            }
            assertEquals("", sync("--engine", engine).exits(0).err());
            assertEquals("first", Files.readString(guest.resolve("it")));
            delete(base.resolve("home/.vm-sync"));
            sync(other, "--engine", engine, "--force").exits(0);
            assertEquals("other", Files.readString(guest.resolve("it")));
            assertEquals(host() + ":" + other, origin().get(0));
        }

        @ByEitherEngine
        void whatTheGuestSaysAboutTheOriginIsHarmless(String engine) throws IOException {
            write("file", "");
            sync("--engine", engine).exits(0);
            Path mark;
            try (Stream<Path> files = Files.walk(base.resolve("home/.vm-sync"))) {
                mark = files.filter(file -> file.endsWith("origin")).findFirst().get();
            }
            for (String text : List.of("h:/\033]0;x\007" + "y".repeat(1_000_000) + "\n", "h:/\u009b2J", "`touch x`$(touch x)'\"\\\n")) {
                Files.writeString(mark, text);
                Script.Result result = sync("--engine", engine).exits(0);
                assertTrue(result.err().matches("vm-sync: replaces [^\n]*, which came from [ -~]{1,1500}\n"), result.err());
                assertEquals(host() + ":" + project, origin().get(0));
            }
            assertEquals(tree(project), tree(guest));
        }

        /** The guest has files of both projects then, and vm-test must take them for neither's. */
        @ByEitherEngine
        void aDirectoryThatWasReplacedInPartBelongsToNobody(String engine) throws IOException {
            Path other = Files.createDirectories(extra.resolve("w2"));
            Files.writeString(other.resolve("theirs"), "");
            sync(other, "--engine", engine).exits(0);
            byte[] content = new byte[3_000_000];
            new java.util.Random(1).nextBytes(content);
            Files.write(project.resolve("big"), content);
            try {
                sshd.budget.set(1_000_000);
                sync("--engine", engine).exits(69).says("which came from " + VmSync.quoted(bytesOf(host() + ":" + other)));
            } finally {
                sshd.budget.set(Long.MAX_VALUE);
            }
            assertEquals(host() + ":" + project + " (incomplete)", origin().get(0));
            sync("--engine", engine, "--dry-run").exits(0);
            assertEquals(host() + ":" + project + " (incomplete)", origin().get(0));
            Script.Result result = sync(other, "--engine", engine).exits(0).says("which came from " + VmSync.quoted(bytesOf(host() + ":" + project + " (incomplete)")) + "\n");
            assertFalse(result.err().contains("theirs"), result.err());
            assertEquals(host() + ":" + other, origin().get(0));
            sync("--engine", engine).exits(0);
            assertEquals(host() + ":" + project, origin().get(0));
            assertEquals(tree(project), tree(guest));
        }

        @ByEitherEngine
        void whatIsDeletedIsNamedBefore(String engine) throws IOException {
            write("dir/file", "");
            write("old", "");
            sync("--engine", engine).exits(0);
            for (int i = 0; i < 25; i++) {
                Files.writeString(Files.createDirectories(guest.resolve("results")).resolve("r" + (char) ('a' + i) + "\033[2J"), "");
            }
            delete(project.resolve("dir"));
            write("dir", "a file where the guest has a directory with files of its own");
            Files.writeString(guest.resolve("dir/own"), "");
            Files.delete(project.resolve("old"));
            write("old/new", "a directory where a file was");
            List<Boolean> there = new ArrayList<>();
            StringWriter err = new StringWriter() {
                @Override
                public void flush() {
                    if (toString().contains("deletes")) {
                        there.add(Files.exists(guest.resolve("results/ra\033[2J")) && Files.exists(guest.resolve("dir/own")));
                    }
                }
            };
            int code = VmSync.commandLine(new VmSync(), new VmSync.Settings().add(settings(), "the environment")).setOut(new PrintWriter(new StringWriter()))
                    .setErr(new PrintWriter(err)).execute("--engine", engine);
            assertEquals(0, code, err.toString());
            assertEquals(List.of(true), there, err.toString());
            String names = Stream.of("a b c d e f g h".split(" ")).map(letter -> "$'results/r" + letter + "\\033[2J'").collect(Collectors.joining(", "));
            assertEquals("vm-sync: deletes what only the guest has: dir/file, dir/own, " + names + " and 17 more\n", err.toString());
            assertEquals(tree(project), tree(guest));
        }

        private void git(Path directory, String... words) throws Exception {
            List<String> command = new ArrayList<>(List.of("git", "-C", directory.toString(), "-c", "user.name=a", "-c", "user.email=a@example.org",
                    "-c", "protocol.file.allow=always"));
            command.addAll(List.of(words));
            Process git = new ProcessBuilder(command).redirectErrorStream(true).start();
            String said = new String(git.getInputStream().readAllBytes(), UTF_8);
            assertEquals(0, git.waitFor(), said);
        }

        private static String databases(Path root) throws IOException {
            return tree(root).keySet().stream().filter(name -> name.contains(".db") && !name.startsWith(".git/")).collect(Collectors.joining(" "));
        }

        /** At the top, what git does not track is a program's state. Nothing that a project configures may run here. */
        @ByEitherEngine
        void databasesThatGitKnowsAreSource(String engine) throws Exception {
            for (String name : List.of("state.db", "deep/fixture.db", "known.db", "tree.db/log", "source.db/log", "source.db/deep/x.db", "[odd]*.db")) {
                write(name, "");
            }
            git(project, "init", "-q");
            write(".gitignore", "*.db\n");
            git(project, "add", "-f", "known.db", "source.db", "[[]odd[]]*.db");
            Path ran = temp.resolve("ran"); // a path that needs no quotes
            for (String program : List.of("core.fsmonitor", "core.hooksPath", "filter.f.clean", "filter.f.process")) {
                git(project, "config", program, "touch " + ran + "; false");
            }
            Files.writeString(project.resolve(".gitattributes"), "* filter=f\n");
            Script.Result result = sync("--engine", engine).exits(0);
            assertTrue(result.out().endsWith("; left out: state.db, tree.db/\n"), result.out());
            String known = "[odd]*.db deep/fixture.db known.db source.db source.db/deep source.db/deep/x.db source.db/log";
            assertEquals(known, databases(guest));
            Files.writeString(guest.resolve("made-there.db"), "");
            sync("--engine", engine).exits(0);
            assertEquals("[odd]*.db deep/fixture.db known.db made-there.db source.db source.db/deep source.db/deep/x.db source.db/log", databases(guest));
            delete(guest);
            sync("--engine", engine, "--exclude", "+ /state.db").exits(0);
            assertEquals(known + " state.db", databases(guest));
            assertFalse(Files.exists(ran), "a program of the project ran on this machine");
            // Without git, none at the top is source.
            delete(guest);
            delete(project.resolve(".git"));
            sync("--engine", engine).exits(0);
            assertEquals("deep/fixture.db", databases(guest));
        }

        /** To list its index, git wants the tree of a directory that is not checked out, and would fetch it. */
        @Test
        void aCheckoutThatLacksObjectsRunsNothingHere() throws Exception {
            write("in/file", "in");
            write("out/file", "out");
            git(project, "init", "-q");
            git(project, "add", ".");
            git(project, "commit", "-qm", "one");
            git(project, "sparse-checkout", "set", "--cone", "--sparse-index", "in");
            Process tree = new ProcessBuilder("git", "-C", project.toString(), "rev-parse", "HEAD:out").start();
            String object = new String(tree.getInputStream().readAllBytes(), UTF_8).strip();
            Files.delete(project.resolve(".git/objects").resolve(object.substring(0, 2)).resolve(object.substring(2)));
            Path ran = temp.resolve("ran"); // a path that needs no quotes
            for (String[] setting : new String[][] {{"core.repositoryFormatVersion", "1"}, {"extensions.partialClone", "origin"},
                    {"remote.origin.url", "ssh://nowhere/x"}, {"remote.origin.promisor", "true"}, {"core.sshCommand", "touch " + ran + "; false"}}) {
                git(project, "config", setting[0], setting[1]);
            }
            Process list = new ProcessBuilder("git", "-C", project.toString(), "ls-files").redirectErrorStream(true).start();
            String said = new String(list.getInputStream().readAllBytes(), UTF_8);
            list.waitFor();
            assertTrue(Files.exists(ran), () -> "plain git runs it: " + said);
            Files.delete(ran);
            sync().exits(0);
            assertFalse(Files.exists(ran), "a program of the project ran on this machine");
            assertTrue(Files.exists(guest.resolve("in/file")));
        }

        @Test
        void gitDataOutsideTheProjectIsSeen() throws Exception {
            write("file", "");
            git(project, "init", "-q");
            git(project, "add", ".");
            git(project, "commit", "-qm", "one");
            git(project, "worktree", "add", "-q", extra.resolve("linked").toString());
            git(extra, "clone", "-q", "--shared", project.toString(), "shared");
            git(extra, "clone", "-q", project.toString(), "outer");
            git(extra.resolve("outer"), "submodule", "--quiet", "add", project.toString(), "sub");
            Path link = Files.createDirectories(extra.resolve("link"));
            Files.createSymbolicLink(link.resolve(".git"), project.resolve(".git"));
            Path odd = Files.createDirectories(extra.resolve("odd"));
            Files.writeString(odd.resolve(".git"), "gitdir: \0");
            String warning = "vm-sync: warning: git in the guest cannot read this checkout, because it is a worktree, a submodule or a shared clone, and part of it is outside "
                    + "the project: if a build there fails with 'error obtaining VCS status', use vm-test --env GOFLAGS=-buildvcs=false, or sync a plain clone\n";
            for (Path checkout : List.of(project, extra.resolve("outer"), odd.getParent())) {
                assertFalse(sync(checkout, "--dry-run").exits(0).err().contains("warning"), checkout.toString());
            }
            for (Path checkout : List.of(extra.resolve("linked"), extra.resolve("outer/sub"), extra.resolve("shared"), link, odd)) {
                assertTrue(sync(checkout, "--dry-run").exits(0).err().contains(warning), checkout.toString());
            }
        }

        /** How often the guest's shell has started touch. */
        private long touches() {
            return read(base.resolve("touched")).lines().count();
        }

        @ByEitherEngine
        void filesOfTheFutureAreSentOnce(String engine) throws IOException {
            Files.writeString(base.resolve("bin/touch"), "#!/bin/sh\necho >>'" + base.toString().replace("'", "'\\''") + "/touched'\nexec /usr/bin/touch \"$@\"\n");
            Files.setPosixFilePermissions(base.resolve("bin/touch"), PosixFilePermissions.fromString("rwxr-xr-x"));
            Files.deleteIfExists(base.resolve("touched"));
            Instant future = Instant.now().plus(Duration.ofHours(2));
            for (int i = 0; i < 250; i++) { // every tenth without fractions of a second
                Files.setLastModifiedTime(write("dir/f" + i, "one"), FileTime.from(i % 10 == 0
                        ? future.truncatedTo(ChronoUnit.SECONDS) : future));
            }
            Files.setLastModifiedTime(write("late", ""), FileTime.from(Instant.parse("2150-01-01T00:00:00Z")));
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 251 sent,"));
            for (int i = 0; i < 2; i++) {
                Script.Result again = sync("--engine", engine).exits(0);
                assertTrue(again.out().contains(": 0 sent,"), again.out());
            }
            assertEquals(0, touches());
            assertEquals(tree(project), tree(guest));
            // They may have been written again since the last sync read them: that takes no process for each.
            for (int i = 0; i < 250; i++) {
                Files.setLastModifiedTime(project.resolve("dir/f" + i), FileTime.from(Instant.now()));
            }
            sync("--engine", engine).exits(0);
            Path precious = Files.writeString(extra.resolve("precious"), "");
            FileTime kept = Files.getLastModifiedTime(precious);
            for (int i = 0; i < 250; i++) {
                Files.setLastModifiedTime(project.resolve("dir/f" + i), FileTime.from(Instant.now()));
            }
            Files.deleteIfExists(base.resolve("touched"));
            Files.delete(guest.resolve("dir/f1"));
            Files.createSymbolicLink(guest.resolve("dir/f1"), precious); // and it leads nowhere that a sync may write
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 250 sent,"));
            assertEquals(3, touches());
            assertEquals(kept, Files.getLastModifiedTime(precious));
            assertEquals(tree(project), tree(guest));
        }

        /** In these locales Java cannot put such names into words, which no other program would find again. */
        @ParameterizedTest
        @CsvSource({"rsync,LANG,C", "tar,LC_ALL,POSIX"})
        void namesAreWhatTheyAreInEveryLocale(String engine, String variable, String locale) throws Exception {
            Path ascii = Files.createDirectories(Files.createTempDirectory("vm-sync").resolve("vm")).getParent();
            Path link = Files.createSymbolicLink(ascii.resolve("base"), base);
            for (String file : List.of("ssh_config", "dfly-vm.pid", "dfly-vm.ssh/config")) {
                Files.createDirectories(ascii.resolve("vm").resolve(file).getParent());
                Files.writeString(ascii.resolve("vm").resolve(file), Files.readString(base.resolve("vm").resolve(file))
                        .replace(base.toString(), link.toString()));
            }
            Files.createSymbolicLink(ascii.resolve("vm/dfly-vm.qemu-pid"), sshd.vm.file(".qemu-pid"));
            Files.createSymbolicLink(ascii.resolve("vm/dfly-vm.qmp"), sshd.vm.file(".qmp"));
            fill();
            Path plain = ascii.resolve("project");
            copy(project, plain);
            String[] command = {"java", "-cp", System.getProperty("java.class.path"), "VmSync", "--engine", engine};
            try {
                Script.Result result = inLocale(variable, locale, ascii, plain, command);
                result.exits(0);
                assertEquals(tree(plain), tree(base.resolve("guest/tree")));
                Files.writeString(base.resolve("guest/tree/ü"), "");
                Script.Result again = inLocale(variable, locale, ascii, plain, command).exits(0).says("deletes what only the guest has: 'ü'\n");
                assertTrue(again.out().contains(": 0 sent, 1 deleted"), again.out());
                if (engine.equals("tar")) { // the others are the same for both
                    return;
                }
                String[] pull = {"java", "-cp", System.getProperty("java.class.path"), "VmSync", "pull", "./", ascii.resolve("pulled").toString()};
                inLocale(variable, locale, ascii, plain, pull).exits(1).says("left out");
                Set<String> pulled = tree(ascii.resolve("pulled")).keySet();
                assertTrue(pulled.containsAll(List.of(bytesOf("é日本"), "not-utf8-\u00ff")), pulled.toString());
                // The project's own name would be handed to other programs.
                Path project = Files.createSymbolicLink(ascii.resolve("linked"), this.project);
                inLocale(variable, locale, ascii, project, command).exits(2).says("may have become question marks")
                        .says("set LC_ALL=C.UTF-8");
            } finally {
                delete(ascii);
            }
        }

        private Script.Result inLocale(String variable, String locale, Path ascii, Path from, String... command) throws Exception {
            ProcessBuilder builder = new ProcessBuilder(command).redirectOutput(base.resolve("out").toFile()).redirectError(base.resolve("err").toFile())
                    .directory(ascii.toFile());
            builder.environment().keySet().removeIf(name -> name.matches("LANG|LC_.*"));
            builder.environment().putAll(Map.of(variable, locale, "VM_DIR", ascii.resolve("vm").toString(), "VM_PROJECT", from.toString(),
                    "VM_REMOTE_DIR", ascii.resolve("base/guest/tree").toString()));
            int code = builder.start().waitFor();
            return new Script.Result("vm-sync", code, read(base.resolve("out")), read(base.resolve("err")));
        }

        private static void copy(Path from, Path to) throws Exception {
            assertEquals(0, new ProcessBuilder("cp", "-a", from.toString(), to.toString()).start().waitFor());
        }

        @ByEitherEngine
        void onlyItsOwnDirectoryIsEmptied(String engine) throws IOException {
            write("file", "");
            Files.createDirectories(guest);
            Files.writeString(guest.resolve("precious"), "mine");
            sync("--engine", engine).exits(2).says("--force");
            sync("--engine", engine, "--dry-run").exits(2);
            assertEquals(Set.of(".", "precious"), tree(guest).keySet());
            assertEquals(List.of("delete precious", "send file"), sync("--engine", engine, "--force", "--dry-run").exits(0).out().lines()
                    .filter(line -> !line.equals("attrs .")).sorted().toList());
            assertEquals(Set.of(".", "precious"), tree(guest).keySet());
            sync("--engine", engine, "--force").exits(0);
            assertEquals(Set.of(".", "file"), tree(guest).keySet());
            sync("--engine", engine).exits(0);
            // Made anew by somebody: not a sync's any more.
            Files.move(guest, base.resolve("guest/before"));
            Files.createDirectories(guest);
            Files.writeString(guest.resolve("precious"), "mine");
            sync("--engine", engine).exits(2);
            delete(guest);
            Files.createDirectories(guest);
            sync("--engine", engine).exits(0);
            delete(guest);
            Files.writeString(guest, "a file");
            sync("--engine", engine).exits(2).says("not a directory");
        }

        @ByEitherEngine
        void withoutDeletionTheGuestKeepsItsOwn(String engine) throws IOException {
            write("dir/file", "");
            sync("--engine", engine).exits(0);
            write("new", "");
            delete(project.resolve("dir"));
            write("dir", "");
            Files.writeString(guest.resolve("own"), "");
            sync("--engine", engine, "--no-delete").exits(1).says("dir");
            assertEquals(Set.of(".", "dir", "dir/file", "own", "new"), tree(guest).keySet());
        }

        @ByEitherEngine
        void aChangeInTheSameSecondIsSeen(String engine) throws Exception {
            Instant second = Instant.now().plusSeconds(3).truncatedTo(ChronoUnit.SECONDS);
            Path file = write("file", "one");
            Files.setLastModifiedTime(file, FileTime.from(second.plusMillis(100)));
            sync("--engine", engine).exits(0);
            Files.writeString(file, "two");
            Files.setLastModifiedTime(file, FileTime.from(second.plusMillis(200)));
            while (Instant.now().isBefore(second.plusMillis(500))) { // so that the next sync begins clearly later
                Thread.sleep(5);
            }
            sync("--engine", engine).exits(0);
            assertEquals("two", Files.readString(guest.resolve("file")));
            assertEquals(tree(project), tree(guest));
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 0 sent"));
        }

        /** The sync in between did not look at the file, so for the next one it may still differ. */
        @ByEitherEngine
        void aChangeThatAnExcludeHidIsSeen(String engine) throws Exception {
            Instant second = Instant.now().plusSeconds(3).truncatedTo(ChronoUnit.SECONDS);
            Path file = write("file", "one");
            Files.setLastModifiedTime(file, FileTime.from(second.plusMillis(100)));
            sync("--engine", engine).exits(0);
            Files.writeString(file, "two");
            Files.setLastModifiedTime(file, FileTime.from(second.plusMillis(200)));
            while (Instant.now().isBefore(second.plusMillis(500))) {
                Thread.sleep(5);
            }
            sync("--engine", engine, "--exclude", "/file").exits(0);
            assertEquals("one", Files.readString(guest.resolve("file")));
            sync("--engine", engine).exits(0);
            assertEquals("two", Files.readString(guest.resolve("file")));
        }

        @ByEitherEngine
        void aFileThatChangesMeanwhileIsWholeOrOldAndArrivesNextTime(String engine) throws Exception {
            write("still", "x");
            Path file = write("moving", "0".repeat(3_000_000));
            sync("--engine", engine).exits(0);
            Thread writer = new Thread(() -> {
                try (RandomAccessFile moving = new RandomAccessFile(file.toFile(), "rw")) {
                    for (long end = System.nanoTime() + 2_500_000_000L, i = 0; System.nanoTime() < end; i++) {
                        moving.setLength(1000 + (i % 2) * 3_000_000);
                    }
                } catch (IOException failed) {
                    throw new IllegalStateException(failed);
                }
            });
            writer.start();
            sync("--engine", engine);
            writer.join();
            assertTrue(Files.exists(guest.resolve("still")));
            sync("--engine", engine).exits(0);
            assertEquals(tree(project), tree(guest));
        }

        /** As a log does. It arrives as long as it was at some moment, not never. */
        @ByEitherEngine
        void aFileThatOnlyGrowsArrives(String engine) throws Exception {
            Path log = write("app.log", "line\n".repeat(100_000));
            Thread writer = new Thread(() -> {
                try (RandomAccessFile growing = new RandomAccessFile(log.toFile(), "rw")) {
                    while (!Thread.currentThread().isInterrupted()) {
                        growing.seek(growing.length());
                        growing.write(utf8("line\n"));
                    }
                } catch (IOException failed) {
                    throw new IllegalStateException(failed);
                }
            });
            writer.start();
            try {
                sync("--engine", engine);
            } finally {
                writer.interrupt();
                writer.join();
            }
            String there = Files.readString(guest.resolve("app.log"));
            assertTrue(there.length() >= 500_000 && Files.readString(log).startsWith(there), there.length() + " bytes");
            sync("--engine", engine).exits(0);
            assertEquals(tree(project), tree(guest));
        }

        /** Else it would have zeros under the right size and date, which no later sync would send again. */
        @Test
        void whatCouldNotBeReadInFullIsNotPutInPlace() throws Exception {
            write("small", "x");
            sync("--engine", "tar").exits(0);
            byte[] content = new byte[64 << 20];
            Arrays.fill(content, (byte) 'x');
            Path big = Files.write(project.resolve("big"), content);
            FileTime time = FileTime.from(Instant.parse("2001-02-03T04:05:06Z"));
            Files.setLastModifiedTime(big, time);
            FutureTask<Script.Result> sync = new FutureTask<>(() -> sync("--engine", "tar"));
            new Thread(sync).start();
            while (!Files.exists(guest.resolve(VmSync.Destination.PART + "/t/big"))) {
                assertFalse(sync.isDone(), "it was too fast for this test");
                Thread.onSpinWait();
            }
            try (RandomAccessFile shorter = new RandomAccessFile(big.toFile(), "rw")) {
                shorter.setLength(10);
            }
            sync.get().exits(1).says("could not be read in full: big");
            assertFalse(Files.exists(guest.resolve("big")));
            Files.setLastModifiedTime(Files.write(big, content), time);
            sync("--engine", "tar").exits(0);
            assertEquals(-1, Files.mismatch(big, guest.resolve("big")));
        }

        /** A link, or a file, may stand where the guest's repository will be. */
        @ByEitherEngine
        void aConfigurationOfGitGoesThroughNoLink(String engine) throws IOException {
            for (String repository : List.of("other", "sub")) {
                Files.createDirectories(project.resolve(repository + "/.git/objects"));
                write(repository + "/.git/HEAD", "ref: refs/heads/main\n");
                write(repository + "/.git/config", "[core]\n\tbare = " + repository.equals("sub") + "\n");
            }
            Path sub = Files.move(project.resolve("sub"), base.resolve("sub aside"));
            Files.createSymbolicLink(project.resolve("sub"), Path.of("other"));
            sync("--engine", engine).exits(0);
            Files.delete(project.resolve("sub"));
            Files.move(sub, project.resolve("sub"));
            sync("--engine", engine).exits(0);
            assertTrue(Files.readString(guest.resolve("other/.git/config")).contains("bare = false"));
            assertTrue(Files.readString(guest.resolve("sub/.git/config")).contains("bare = true"));
        }

        /** The target of a link may be any text, also one that looks like our listing. */
        @ByEitherEngine
        void aLinksTargetConfusesNoListing(String engine) throws IOException {
            Files.createDirectories(project);
            Files.createSymbolicLink(project.resolve("link"), Path.of("x|\n100644 5 1700000000.000000000 |\n40755 9 9.9"));
            sync("--engine", engine).exits(0);
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 0 sent,"));
            assertEquals(tree(project), tree(guest));
        }

        @Test
        void notesThatCannotBeWrittenAreOneLine() throws IOException {
            write("file", "");
            Path notes = Files.createDirectories(base.resolve("vm/dfly-vm.sync"));
            delete(notes);
            Files.createDirectories(notes.resolve(java.util.UUID.nameUUIDFromBytes(utf8(guest.toString())).toString()));
            assertTrue(sync().exits(69).err().matches("vm-sync: [^\n]*dfly-vm.sync/[^\n]*: Is a directory\n"), sync().err());
            delete(notes);
            Files.writeString(notes, "");
            assertTrue(sync().exits(69).err().matches("vm-sync: [^\n]*dfly-vm.sync is not a directory: [^\n]*\n"), sync().err());
            Files.delete(notes);
        }

        /** As a kill -9 does. The connection is gone at once, QEMU's lock a moment later. */
        @ByEitherEngine
        void aVmThatEndsMeanwhileIsTold(String engine) throws Exception {
            sshd.budget.set(1_000_000);
            aVmEndsMeanwhile(engine);
        }

        /** The guest's tar reads nothing, so vm-sync waits with a full window when the connection breaks. */
        @Test
        void aVmThatEndsWhileItTakesNoMoreIsTold() throws Exception {
            Thread sender = Thread.currentThread();
            Path over = base.resolve("over");
            Path tar = Files.writeString(base.resolve("bin/tar"), "#!/bin/sh\nuntil [ -e \"" + over + "\" ] || [ ! -e \"$0\" ]; do sleep 0.1; done\n"
                    + "kill -9 $(ps -o ppid= -p $PPID)\n");
            Files.setPosixFilePermissions(tar, PosixFilePermissions.fromString("rwxr-xr-x"));
            Thread end = new Thread(() -> {
                while (!Thread.currentThread().isInterrupted()) {
                    if (Stream.of(sender.getStackTrace()).anyMatch(frame -> frame.getMethodName().equals("awaitExpansion"))) {
                        sshd.beforeCut.run();
                        over.toFile().mkdir();
                        return;
                    }
                    LockSupport.parkNanos(10_000_000);
                }
            });
            try {
                aVmEndsMeanwhile("tar", end);
            } finally {
                end.interrupt();
                end.join();
                Files.delete(tar);
                Files.deleteIfExists(over);
            }
        }

        private void aVmEndsMeanwhile(String engine, Thread... end) throws Exception {
            byte[] content = new byte[4_000_000];
            new java.util.Random(1).nextBytes(content);
            Files.write(project.resolve("big"), content);
            Path keys = Files.createDirectories(base.resolve("vm/dying.ssh"));
            Files.writeString(keys.resolve("config"), Files.readString(base.resolve("vm/dfly-vm.ssh/config")).replace("Host dfly-vm", "Host dying"));
            Path config = base.resolve("vm/ssh_config");
            String before = Files.readString(config);
            Files.writeString(config, before + "Include \"" + keys.resolve("config") + "\"\n");
            try (FakeVm dying = new FakeVm(base.resolve("vm"), "dying")) {
                sshd.beforeCut = () -> ProcessHandle.of(dying.pid()).ifPresent(ProcessHandle::destroyForcibly);
                Stream.of(end).forEach(Thread::start);
                long start = System.nanoTime();
                sync("--vm-name", "dying", "--engine", engine).exits(69).says("VM dying ended meanwhile (").says("); start it: vm-ctl start");
                assertTrue(System.nanoTime() - start < 25e9, "soon");
            } finally {
                sshd.beforeCut = () -> { };
                sshd.budget.set(Long.MAX_VALUE);
                Files.writeString(config, before);
            }
        }

        @ByEitherEngine
        void aSyncThatWasKilledLeavesNoHalfAndTheNextOneMendsIt(String engine) throws Exception {
            byte[] old = new byte[1000];
            Files.write(project.resolve("big"), old);
            sync("--engine", engine).exits(0);
            byte[] content = new byte[60_000_000];
            new java.util.Random(1).nextBytes(content);
            Files.write(project.resolve("big"), content);
            write("other/file", "x");
            Process killed = start("--engine", engine);
            long size = 0;
            for (int i = 0; i < 2000 && size < 5_000_000; i++) { // until something of it has arrived somewhere
                Thread.sleep(5);
                try (Stream<Path> files = Files.walk(guest)) {
                    size = files.filter(Files::isRegularFile).mapToLong(file -> file.toFile().length()).sum();
                } catch (java.io.UncheckedIOException moved) {
                    // next time
                }
            }
            killed.descendants().forEach(ProcessHandle::destroyForcibly);
            killed.destroyForcibly().waitFor();
            assertTrue(size >= 5_000_000, () -> "nothing was under way: " + read(base.resolve("out")) + read(base.resolve("err")));
            byte[] there = Files.readAllBytes(guest.resolve("big"));
            assertTrue(Arrays.equals(old, there) || Arrays.equals(content, there), "a half-written file of " + there.length + " bytes");
            sync("--engine", engine).exits(0);
            assertEquals(tree(project), tree(guest));
        }

        @ByEitherEngine
        void aWatchSyncsEachBurstOnceAndAVmThatCameBack(String engine) throws Exception {
            write("dir/file", "1");
            write("x.db", "");
            write(".git", "gitdir: /nowhere");
            try (Watching watch = new Watching("--watch", "--engine", engine)) {
                watch.awaitLines(watch.out, 1);
                assertTrue(watch.out.toString().endsWith("; left out: x.db\n"), watch.out.toString());
                assertTrue(watch.err.toString().matches("vm-sync: warning: git .*\n"), watch.err.toString());
                for (int i = 0; i < 30; i++) {
                    write("dir/new/burst" + i, "");
                }
                watch.awaitLines(watch.out, 2);
                Map<String, String> wanted = tree(project);
                wanted.remove("x.db");
                assertEquals(wanted, tree(guest));
                write("dir/new/burst1", "again"); // in a directory that is new itself
                watch.awaitLines(watch.out, 3);
                assertEquals("again", Files.readString(guest.resolve("dir/new/burst1")));
                Files.move(project.resolve("dir"), project.resolve("moved")); // and what is new below a directory that was moved
                watch.awaitLines(watch.out, 4);
                Files.createDirectories(project.resolve("moved/new/deep"));
                watch.awaitLines(watch.out, 5);
                write("moved/new/deep/file", "");
                watch.awaitLines(watch.out, 6);
                write("x.db", "changed"); // excluded
                Files.delete(project.resolve("moved/file"));
                watch.awaitLines(watch.out, 7);
                // The VM goes away, something changes, it comes back with another tree.
                String pid = Files.readString(base.resolve("vm/dfly-vm.pid"));
                Files.delete(base.resolve("vm/dfly-vm.pid"));
                write("while-away", "");
                watch.awaitLines(watch.err, 4);
                delete(guest);
                Files.writeString(base.resolve("vm/dfly-vm.pid"), pid);
                watch.awaitLines(watch.out, 8);
                assertEquals(tree(project).keySet().stream().filter(name -> !name.equals("x.db")).collect(Collectors.toSet()), tree(guest).keySet());
                Thread.sleep(300);
                assertEquals(List.of(8L, 4L), List.of(watch.lines(watch.out), watch.lines(watch.err)), () -> watch.out.toString() + watch.err.toString());
                List<String> told = watch.err.toString().lines().toList();
                assertEquals("vm-sync: deletes what only the guest has: dir/file, dir/new/burst0, dir/new/burst1, dir/new/burst10, dir/new/burst11, "
                        + "dir/new/burst12, dir/new/burst13, dir/new/burst14, dir/new/burst15, dir/new/burst16 and 21 more", told.get(1));
                assertEquals("vm-sync: deletes what only the guest has: moved/file", told.get(2));
                assertTrue(told.get(3).contains("is not running"), told.get(3));
                assertEquals(1, watch.out.toString().split("left out", -1).length - 1, "said once");
            }
        }

        @Test
        void aWatchEndsWithItsProject() throws Exception {
            write("dir/file", "1");
            try (Watching watch = new Watching("--watch", "--engine", "tar")) {
                watch.awaitLines(watch.out, 1);
                delete(project);
                assertEquals(1, watch.code.get(5, TimeUnit.MINUTES), () -> watch.out.toString() + watch.err);
                assertTrue(watch.err.toString().contains("is gone: nothing left to watch"), watch.err.toString());
            }
        }

        /** A sync with --watch in this JVM, until it is closed. */
        private final class Watching implements AutoCloseable {
            final StringWriter out = new StringWriter();
            final StringWriter err = new StringWriter();
            final CompletableFuture<Integer> code = new CompletableFuture<>();
            private final Thread thread;

            Watching(String... args) {
                thread = new Thread(() -> code.complete(VmSync.commandLine(new VmSync(), new VmSync.Settings().add(settings(), "the environment"))
                        .setOut(new PrintWriter(out)).setErr(new PrintWriter(err)).execute(args)));
                thread.start();
            }

            private long lines(StringWriter text) {
                return text.toString().lines().count();
            }

            private void awaitLines(StringWriter text, int count) throws InterruptedException {
                for (int tenth = 0; lines(text) < count; tenth++) {
                    assertTrue(tenth < 600 && thread.isAlive(), () -> out.toString() + err);
                    Thread.sleep(100);
                }
            }

            @Override
            public void close() throws InterruptedException {
                while (thread.isAlive()) {
                    thread.interrupt();
                    thread.join(100);
                }
            }
        }

        @Test
        void filesComeBack() throws IOException {
            Files.createDirectories(guest.resolve("out/sub"));
            Files.createDirectories(guest.resolve("odd"));
            Files.writeString(guest.resolve("out/sub/a \n é"), "result");
            Files.createSymbolicLink(guest.resolve("out/inside"), Path.of("sub/a \n é"));
            Path local = base.resolve("pulled/here");
            Script.Result pulled = sync("pull", "out/", local.toString()).exits(0);
            assertTrue(pulled.out().matches("(?s)pulled .*/out: 2 files, 6 bytes, .* s\n"), pulled.out());
            assertEquals("result", Files.readString(local.resolve("inside")));
            Files.createSymbolicLink(guest.resolve("out/escape"), Path.of("/etc/passwd"));
            Files.writeString(guest.resolve("out/sub/a \n é"), "newer");
            sync("pull", guest + "/out/", local.toString()).exits(1).says("left out: ./escape: a link that leads out of the directory");
            assertEquals("newer", Files.readString(local.resolve("sub/a \n é")));
            assertFalse(Files.exists(local.resolve("escape"), LinkOption.NOFOLLOW_LINKS));
            sync("pull", "out/sub/a \n é", base.resolve("pulled").toString()).exits(0);
            assertEquals("newer", Files.readString(base.resolve("pulled/a \n é")));
            sync("pull", "out/inside", base.resolve("pulled/its content").toString()).exits(0);
            assertEquals("newer", Files.readString(base.resolve("pulled/its content")));
            sync("pull", "out/sub/").exits(0); // to the same place in the project, wherever that was set
            assertEquals("newer", Files.readString(project.resolve("out/sub/a \n é")));
            Files.delete(project.resolve("out/sub/a \n é"));
            sync("pull", "out/sub/a \n é").exits(0);
            assertEquals("newer", Files.readString(project.resolve("out/sub/a \n é")));
            sync("pull", "out/none", local.toString()).exits(1).says("/out/none is not in the guest");
            sync("pull", "out/none/", local.toString()).exits(1).says("/out/none is not in the guest");
            Script.Result directory = sync("pull", "out/sub", base.resolve("pulled/name").toString()).exits(1).says("/out/sub is no file in the guest; if it is a directory, write a slash at its end");
            assertFalse(Files.exists(base.resolve("pulled/name")), directory.err());
            sync("pull", "out/inside/", base.resolve("pulled/name").toString()).exits(1).says("/out/inside is no directory in the guest: write it without the slash");
            sync("pull", "out/sub/a \n é", base.resolve("pulled/new") + "/").exits(0);
            assertEquals("newer", Files.readString(base.resolve("pulled/new/a \n é")));
            for (char odd : new char[] {0xfe, 0xff, '?'}) { // neither of the first two is UTF-8
                Files.writeString(VmSync.path(guest, "odd/" + odd + "é".repeat(100)), String.valueOf((int) odd));
            }
            sync("pull", "odd/", base.resolve("pulled/odd").toString()).exits(0);
            assertEquals(tree(guest.resolve("odd")).keySet(), tree(base.resolve("pulled/odd")).keySet());
            sync("pull", "odd/", base.resolve("pulled/new/a \n é/x").toString()).exits(1).says("cannot write ");
            delete(base.resolve("pulled"));
        }

        /** A program of the guest, in the place of the usual one, until this test's end. */
        private void replace(String program, String script) throws IOException {
            Path file = Files.writeString(base.resolve("bin").resolve(program), "#!/bin/sh\n" + script + "\n");
            Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwxr-xr-x"));
        }

        private void guestSends(byte[] archive, String andThen) throws IOException {
            Path file = Files.write(extra.resolve("archive"), archive);
            replace("tar", "[ \"$1\" != --version ] || exit 0\ncat '" + file.toString().replace("'", "'\\''") + "'\n" + andThen);
        }

        @Test
        void aGuestThatLiesAboutAPullGetsNowhere() throws IOException {
            Files.createDirectories(guest.resolve("dir"));
            Files.writeString(guest.resolve("coverage.out"), "mode: set\n");
            Path local = Files.createDirectories(extra.resolve("local"));
            guestSends(tar(directory("."), file("./vm.env"), file("./Makefile")), "");
            sync("pull", "coverage.out", local.toString()).exits(1).says("vm-sync: stopped, because the guest did not send the file that was asked for, but ./");
            assertEquals(Set.of("."), tree(local).keySet());
            guestSends(tar(file("./coverage.out"), file("./Makefile")), "");
            sync("pull", "coverage.out", local.toString()).exits(1).says("more than the one file that was asked for: kept 1 files, 5 bytes in " + local + "\n");
            assertEquals(Set.of(".", "coverage.out"), tree(local).keySet());
            guestSends(new byte[10_240], "");
            sync("pull", "coverage.out", local.toString()).exits(1).says("the guest did not send " + guest + "/coverage.out: nothing was written");
            guestSends(bytes("no archive".repeat(100)), "");
            sync("pull", "dir/", local.toString()).exits(1).says("what the guest sends is no whole archive (");
            // What does not end: after the archive, on stderr (which is no archive), in a name.
            guestSends(tar(file("./coverage.out")), "exec cat /dev/zero");
            sync("pull", "coverage.out", local.toString()).exits(1).says("the guest sends more than the files of its archive: kept 1 files");
            guestSends(tar(file("./one")), "yes '\033[2J' | head -c 3000000 >&2; printf '\033[2J\302\233\342\200\256\nvm-sync: synced\n' >&2; exit 3");
            Script.Result failed = sync("pull", "dir/", local.toString()).exits(1).says("the guest's tar failed: ");
            assertTrue(failed.err().length() < 1000 && failed.err().lines().count() == 1, failed.err());
            assertHarmless(failed);
            guestSends(tar(file("./\033[2J" + bytesOf("\u009b\u202e") + "\nvm-sync: synced/vm.env"), file("./good")), "");
            assertHarmless(sync("pull", "dir/", local.toString()).exits(1).says("left out: $'./\\033[2J\\302\\233\\342\\200\\256\\012vm-sync: synced/vm.env': it would hold"));
            // A file name too long for this machine is in the message.
            guestSends(tar(file("./" + ("\033" + bytesOf("\u202e") + "\n").repeat(60))), "");
            assertHarmless(sync("pull", "dir/", local.toString()).exits(1).says("cannot write in "));
        }

        private void assertHarmless(Script.Result result) {
            assertFalse(Pattern.compile("[\\p{Cc}\\p{Cf}&&[^\n]]|(?m)^vm-sync: synced").matcher(result.err()).find(), () -> VmSync.quoted(bytesOf(result.err())));
        }

        @Test
        void aPulledFileHasNoMoreRightsThanTheUmaskLeaves() throws Exception {
            Files.createDirectories(guest);
            Files.setPosixFilePermissions(Files.writeString(guest.resolve("tool"), ""), PosixFilePermissions.fromString("rwxrwxrwx"));
            Files.setPosixFilePermissions(Files.writeString(guest.resolve("readable"), "r"), PosixFilePermissions.fromString("r--r--rw-"));
            ProcessBuilder builder = new ProcessBuilder("sh", "-c", "umask 027; exec java -cp \"$0\" VmSync pull ./ \"$1\"", System.getProperty("java.class.path"),
                    extra.resolve("pulled").toString()).redirectErrorStream(true);
            builder.environment().putAll(settings());
            Process pull = builder.start();
            String said = new String(pull.getInputStream().readAllBytes(), UTF_8);
            assertEquals(0, pull.waitFor(), said);
            assertEquals("rwxr-x---", PosixFilePermissions.toString(Files.getPosixFilePermissions(extra.resolve("pulled/tool"))));
            assertEquals("r--r-----", PosixFilePermissions.toString(Files.getPosixFilePermissions(extra.resolve("pulled/readable"))));
            assertEquals("r", Files.readString(extra.resolve("pulled/readable")));
        }

        @ByEitherEngine
        void anAnswerWithoutEndEnds(String engine) throws IOException {
            write("file", "");
            int usual = VmSync.maxAnswer;
            VmSync.maxAnswer = 1_000_000;
            replace("mkdir", "exec yes"); // the first thing that is done for a new directory
            try {
                sync("--engine", engine).exits(1).says("there are too many files here or in the guest (their list has more than 1000000 bytes or 1000000 files): leave some out with --exclude");
            } finally {
                VmSync.maxAnswer = usual;
            }
        }

        @ByEitherEngine
        void whatTheGuestSaysIsHarmless(String engine) throws IOException {
            write("file", "");
            replace("mkdir", "printf '\033[2J\302\233\342\200\256\\nvm-sync: synced\\n' >&2; exit 1");
            assertHarmless(sync("--engine", engine).exits(1).says(guest.toString()));
            replace("mkdir", "printf '\033]0;x\\nvm-sync: synced\\n'; exit 0");
            assertHarmless(sync("--engine", engine));
        }

        /** Before the keys are exchanged, a server may send any text. */
        @ByEitherEngine
        void whatAServerSaysInPlaceOfAGuestIsHarmless(String engine) throws Exception {
            write("file", "");
            byte[] text = utf8("\033[2J\u009b\u202e\nvm-sync: synced");
            java.nio.ByteBuffer packet = java.nio.ByteBuffer.allocate(1000);
            packet.put(utf8("SSH-2.0-x\r\n"));
            int padding = 16 - (4 + 1 + 1 + 4 + 4 + text.length + 4) % 8;
            packet.putInt(1 + 1 + 4 + 4 + text.length + 4 + padding).put((byte) padding).put((byte) 1).putInt(11);
            packet.putInt(text.length).put(text).putInt(0).put(new byte[padding]);
            Path config = base.resolve("vm/dfly-vm.ssh/config");
            String right = Files.readString(config);
            for (byte[] greeting : List.of(utf8("\033[2J\u009b\u202e\r\nSSH-1.0-\033[2J\u009b\u202e\r\n"), Arrays.copyOf(packet.array(), packet.position()))) {
                try (java.net.ServerSocket server = new java.net.ServerSocket(0, 1, java.net.InetAddress.getLoopbackAddress())) {
                    Thread thread = new Thread(() -> {
                        try (java.net.Socket client = server.accept()) {
                            client.getOutputStream().write(greeting);
                            client.getInputStream().transferTo(java.io.OutputStream.nullOutputStream());
                        } catch (IOException gone) {
                            // the client has enough
                        }
                    });
                    thread.start();
                    Files.writeString(config, right.replaceFirst("Port \\d+", "Port " + server.getLocalPort()));
                    assertHarmless(sync("--engine", engine).exits(69).says("is running but cannot be reached: "));
                    thread.join();
                } finally {
                    Files.writeString(config, right);
                }
            }
        }

        private String inGuest(Path directory, String... command) throws Exception {
            Process process = new ProcessBuilder(command).directory(directory.toFile()).redirectErrorStream(true).start();
            String said = new String(process.getInputStream().readAllBytes(), UTF_8);
            assertEquals(0, process.waitFor(), said);
            return said;
        }

        private static final String SECRET = "c2VjcmV0";

        /** CI checkouts leave a token in .git/config. Builds ask git for their version, in the guest too. */
        @ParameterizedTest
        @CsvSource({"rsync,sha1", "tar,sha1", "rsync,sha256", "tar,sha256"})
        void credentialsOfGitStayHere(String engine, String format) throws Exception {
            write("file", "");
            write("sub/testdata/config", "[remote \"origin\"]\n\turl = https://user:" + SECRET + "@example.org/x\n"); // no file of git's
            git(project, "init", "-q", "--object-format=" + format);
            git(project, "add", ".");
            git(project, "commit", "-qm", "one");
            git(project, "init", "-q", "--bare", "mirror.git");
            git(project, "init", "-q", "nested");
            sync("--engine", engine).exits(0);
            git(project, "config", "http.https://github.com/.extraheader", "AUTHORIZATION: basic " + SECRET);
            git(project, "config", "remote.origin.url", "https://example.org/x");
            git(project.resolve("mirror.git"), "config", "remote.origin.url", "https://" + SECRET + "@example.org/x");
            git(project.resolve("nested"), "config", "include.path", "more");
            write("nested/.git/more", "[url \"https://user:" + SECRET + "@example.org\"]\n\tinsteadOf = x\n");
            Files.copy(project.resolve(".git/config"), Files.createDirectories(guest.resolve(".git")).resolve("config"),
                    java.nio.file.StandardCopyOption.REPLACE_EXISTING); // as an earlier version sent it
            Files.writeString(project.resolve(".git/logs/HEAD"), "0 1 me <me@example.org> 1 +0000\tpull https://" + SECRET + "@example.org/x: Fast-forward\n");
            Files.writeString(project.resolve(".git/config.worktree"), "[http] extraheader = " + SECRET + "\n");
            Files.createSymbolicLink(project.resolve(".git/credentials"), Files.writeString(extra.resolve("credentials"), SECRET));
            Map<String, String> before = tree(guest);
            sync("--engine", engine, "--dry-run").exits(0);
            assertEquals(before, tree(guest));
            assertTrue(sync("--engine", engine).exits(0).out().endsWith("; left out: mirror.git/config\n"));
            for (String name : tree(guest).keySet()) {
                Path file = VmSync.path(guest, name);
                if (Files.isRegularFile(file) && !name.equals("sub/testdata/config")) {
                    assertFalse(Files.readString(file, ISO_8859_1).contains(SECRET), name);
                }
            }
            assertTrue(sync("--engine", engine).exits(0).out().contains(": 0 sent, 0 deleted"));
            assertEquals("", inGuest(guest, "git", "status", "--porcelain", "--", "file", "sub"));
            assertEquals(inGuest(project, "git", "log", "--format=%H %ct"), inGuest(guest, "git", "log", "--format=%H %ct"));
            assertEquals("false\n", inGuest(guest.resolve("nested"), "git", "rev-parse", "--is-bare-repository"));
            assertEquals("true\n", inGuest(guest.resolve("mirror.git"), "git", "rev-parse", "--is-bare-repository"));
            // A repository that holds none may be a test's data, and comes whole. What is excluded is left alone.
            git(project.resolve("mirror.git"), "config", "remote.origin.url", "https://example.org/x");
            sync("--engine", engine).exits(0);
            assertEquals(Files.readString(project.resolve("mirror.git/config")), Files.readString(guest.resolve("mirror.git/config")));
            delete(guest);
            assertEquals("", sync("--engine", engine, "--exclude", "/nested/", "--exclude", "/mirror.git").exits(0).err());
            assertFalse(Files.exists(guest.resolve("nested")));
        }

        /** The connection breaks in the middle: because of what, QEMU or its lock says. */
        @ByEitherEngine
        void aConnectionThatBreaksHasAReason(String engine) throws Exception {
            byte[] content = new byte[4_000_000];
            new java.util.Random(1).nextBytes(content);
            Files.write(project.resolve("big"), content);
            Path record = sshd.vm.file(".pid");
            byte[] kept = Files.readAllBytes(record);
            try {
                sshd.budget.set(1_000_000);
                sshd.beforeCut = () -> sshd.vm.mustDo("stop");
                assertEquals("vm-sync: the guest does not run (paused): vm-ctl start resumes it\n", sync("--engine", engine).exits(69).err());
                sshd.vm.qmp("cont");
                sshd.budget.set(1_000_000);
                sshd.beforeCut = () -> record.toFile().delete();
                sync("--engine", engine).exits(69).says("VM dfly-vm ended meanwhile (").says("); start it: vm-ctl start");
                Files.write(record, kept);
                sshd.budget.set(1_000_000);
                sshd.beforeCut = () -> { };
                sync("--engine", engine).exits(69).says("VM dfly-vm is running but cannot be reached: ");
            } finally {
                sshd.beforeCut = () -> { };
                sshd.budget.set(Long.MAX_VALUE);
                sshd.vm.qmp("cont");
                Files.write(record, kept);
            }
            sync("--engine", engine).exits(0);
        }

        @ByEitherEngine
        void anotherHostKeyOrNoGuestIs69(String engine) throws IOException {
            Path known = base.resolve("vm/dfly-vm.ssh/known_hosts");
            String right = Files.readString(known);
            try {
                Files.writeString(known, "dfly-vm " + Files.readString(base.resolve("vm/dfly-vm.ssh/id_ed25519.pub")));
                sync("--engine", engine).exits(69).says("'vm-ctl status'");
                assertFalse(Files.exists(guest));
            } finally {
                Files.writeString(known, right);
            }
        }
    }

    // Helpers

    /** All there is by name: kind, mode, size, time (of files, to the microsecond, as HAMMER2 has it), target. */
    static Map<String, String> tree(Path root) throws IOException {
        Map<String, String> tree = new TreeMap<>();
        VmSync.Listing.of(root, VmSync.Rules.of(List.of()), new ArrayList<>()).forEach((name, item) -> tree.put(name,
                item.type() + " " + Integer.toOctalString(item.mode()) + " " + item.size() + " " + (item.type() == 'f' ? item.time() / 1000 : "")
                        + " " + item.target()));
        return tree;
    }

    static void delete(Path root) throws IOException {
        if (Files.isDirectory(root, LinkOption.NOFOLLOW_LINKS)) {
            try (Stream<Path> entries = Files.list(root)) {
                for (Path entry : entries.toList()) {
                    delete(entry);
                }
            }
        }
        Files.deleteIfExists(root);
    }

    private static String read(Path file) {
        try {
            return Files.exists(file) ? Files.readString(file) : "";
        } catch (IOException unreadable) {
            return unreadable.toString();
        }
    }

    private static String bytesOf(String text) {
        return new String(text.getBytes(UTF_8), ISO_8859_1);
    }

    private static byte[] utf8(String text) {
        return text.getBytes(UTF_8);
    }

    private static byte[] bytes(String text) {
        return text.getBytes(ISO_8859_1);
    }
}
