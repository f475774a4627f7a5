import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Snapshots and clones that are deleted when the process that holds a lock has ended: on real qcow2 files, without a guest. */
@Tag("unit")
final class TemporaryTest {

    private static final String ONE = "x.par-ab-1";
    private static final String TWO = "x.par-ab-2";

    @TempDir
    Path temporary;

    private Path dir;
    private VmCtl.VmFiles vm;
    private Path lock;
    private LockHolder holder;
    /** All files before anything temporary was made. */
    private List<String> before;

    @BeforeEach
    void makeVm() throws IOException {
        dir = Files.createDirectories(temporary.toRealPath().resolve("vm's dir, *?[\u00e9"));
        vm = new VmCtl.VmFiles(dir, "x");
        makeVm("x");
        Disks.write(vm.workingDisk().orElseThrow(), 2);
        lock = Files.createDirectory(dir.resolve("x.test")).resolve("parallel.lock");
        before = files();
        holder = new LockHolder();
    }

    @AfterEach
    void endHolder() {
        holder.close();
    }

    private void makeVm(String name) throws IOException {
        VmCtl.VmFiles made = new VmCtl.VmFiles(dir, name);
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", made.clean().toString(), "1G");
        Disks.write(made.clean(), 1);
        Files.setPosixFilePermissions(made.clean(), PosixFilePermissions.fromString("r--r--r--"));
        Path keys = Files.createDirectories(made.file(".ssh"));
        Files.writeString(keys.resolve("known_hosts"), name + " ssh-ed25519 AAAA\n");
        Files.setPosixFilePermissions(Files.writeString(keys.resolve("id_ed25519"), "the key"), PosixFilePermissions.fromString("rw-------"));
        ctl(name, "restore").exits(0);
    }

    private Script.Result ctl(String name, String... arguments) {
        Map<String, String> settings = new HashMap<>(Map.of("VM_DIR", dir.toString(), "VM_NAME", name, "VM_ACCEL", "tcg", "VM_MEMORY", "256M"));
        return Script.call(VmCtl.commandLine(new VmCtl.Settings().add(settings, "the environment"), arguments), arguments);
    }

    private void killedAt(String step, String... command) {
        KilledCommand.run(Guest.in(dir).with("VM_NAME", "x", "VM_ACCEL", "tcg", "VM_MEMORY", "256M"), KilledCommand.Way.HALT, step, 1, command).exits(137);
    }

    /** All files in VM_DIR; the disks by number, as their names are random. What the first snapshot and the first clone leave is not counted. */
    private List<String> files() throws IOException {
        try (Stream<Path> files = Files.walk(dir)) {
            return new TreeSet<>(files.toList()).stream().map(file -> dir.relativize(file).toString().replaceFirst("disks/.*", "disks/DISK"))
                    .filter(file -> !List.of("x.snapshots", "ssh_config").contains(file)).toList();
        }
    }

    private int depth() throws IOException {
        return VmCtl.Disk.depth(vm.workingDisk().orElseThrow());
    }

    /** What vm-test --parallel does first. */
    private void makeTemporary() {
        holder.lock(lock);
        ctl("x", "snapshot", "--temporary", lock.toString(), "x-par-ab").exits(0);
        ctl("x", "clone", "--temporary", lock.toString(), "--snapshot", "x-par-ab", ONE, TWO).exits(0);
    }

    @Test
    void theLockFileMustBeOneAndBeLocked() throws IOException {
        Path outside = Files.createFile(temporary.resolve("outside.lock"));
        Path otherName = Files.createFile(dir.resolve("file"));
        Path link = Files.createSymbolicLink(dir.resolve("link.lock"), outside);
        holder.lock(outside).lock(otherName).lock(vm.file(".lock")).lock(vm.clean().resolveSibling("real.lock"));
        for (Path file : List.of(outside, otherName, link, vm.file(".lock"), vm.clean(), dir, Path.of(""))) {
            for (String[] command : new String[][] {{"snapshot", "new"}, {"clone", "new"}}) {
                ctl("x", command[0], "--temporary", file.toString(), command[1]).exits(2).says("is not a file in VM_DIR that ends in .lock");
            }
        }
        for (Path file : List.of(Files.createFile(dir.resolve("free.lock")), dir.resolve("missing.lock"))) {
            ctl("x", "clone", "--temporary", file.toString(), "new").exits(2).says("no process holds a lock on " + file);
        }
        String real = dir.resolve("real.lock").toString();
        for (String[] command : new String[][] {{"snapshot"}, {"snapshot", "clean"}, {"snapshot", "--list"}, {"snapshot", "--delete", "new"}}) {
            List<String> words = new ArrayList<>(List.of(command));
            words.addAll(List.of("--temporary", real));
            ctl("x", words.toArray(String[]::new)).exits(2).says("needs the NAME");
        }
        assertEquals(List.of("x"), VmCtl.vmNames(dir));
    }

    @Test
    void theyLiveAsLongAsTheLockIsHeldAndNoLonger() throws IOException {
        makeTemporary();
        ctl("x", "list").exits(0).answers(ONE + "           stopped  clone of x/x-par-ab  temporary");
        ctl("x", "snapshot", "--list").exits(0).answers("disk  temporary");
        assertEquals("x.test/parallel.lock", VmCtl.json(ctl(ONE, "status", "--json").exits(3).out()).getString("temporary"));
        assertNull(VmCtl.json(ctl("x", "status", "--json").out()).getString("temporary"));
        ctl(ONE, "snapshot", "clean", "--yes").exits(0); // it is a temporary clone still
        ctl("x", "destroy", "--yes").exits(69).says("clones build on it: " + ONE + ", " + TWO);
        try (FakeVm running = new FakeVm(dir, ONE); FakeVm own = new FakeVm(dir, "x")) {
            ctl("x", "list").exits(0);
            assertTrue(VmCtl.isRunning(running.file(".qemu-pid")));
            holder.close();
            ctl("x", "list").exits(0).says("deleted what was temporary and is no longer in use: clone " + ONE + ", clone " + TWO + ", snapshot x-par-ab");
            assertFalse(VmCtl.isRunning(running.file(".qemu-pid")));
            assertTrue(VmCtl.isRunning(own.file(".qemu-pid")));
        }
        ctl("x", "stop").exits(0);
        assertEquals(before, files());
        assertEquals(1, depth());
        Disks.holds(vm.workingDisk().orElseThrow(), 2);
        ctl("x", "list").is(0, "x                    stopped\n", "");
    }

    /** Of the commands that change something, each deletes what belongs to its VM; list does it for all. */
    @Test
    void anotherVmsAreLeftToItsOwnCommands() throws IOException {
        makeVm("y");
        makeTemporary();
        holder.close();
        ctl("y", "stop").exits(0);
        assertEquals(List.of("x", ONE, TWO, "y"), VmCtl.vmNames(dir));
        ctl("x", "snapshot", "own").exits(0).says("deleted what was temporary");
        assertEquals(List.of("x", "y"), VmCtl.vmNames(dir));
    }

    @Test
    void aLockThatCannotBeTestedCountsAsHeld() throws IOException {
        makeTemporary();
        holder.close();
        Files.delete(lock);
        Files.createSymbolicLink(lock, lock.getFileName()); // names itself
        ctl("x", "list").exits(0).answers(ONE);
        Files.delete(lock); // one that is missing is free
        ctl("x", "list").exits(0).says("clone " + ONE + ", clone " + TWO + ", snapshot x-par-ab");
        assertEquals(before, files());
    }

    @Test
    void aCloneThatACommandWorksOnIsLeftForLater() throws IOException {
        makeTemporary();
        try (LockHolder command = new LockHolder().lock(new VmCtl.VmFiles(dir, TWO).file(".lock"))) {
            holder.close();
            ctl("x", "list").exits(0).answers(TWO).says("temporary clone " + TWO + " could not be deleted now", "temporary and is no longer in use: clone " + ONE);
            ctl("x", "snapshot", "--list").exits(0).answers("x-par-ab");
        }
        ctl("x", "list").exits(0).says("in use: clone " + TWO + ", snapshot x-par-ab");
        assertEquals(before, files());
        assertEquals(1, depth());
    }

    @Test
    void aSnapshotThatTheUsersCloneBuildsOnStays() throws IOException {
        makeTemporary();
        ctl("x", "clone", "--snapshot", "x-par-ab", "own").exits(0);
        holder.close();
        ctl("x", "list").exits(0).says("temporary snapshot x-par-ab stays, as clones build on it: own;", "in use: clone " + ONE + ", clone " + TWO);
        Disks.holds(new VmCtl.VmFiles(dir, "own").workingDisk().orElseThrow(), 2);
        assertEquals("", ctl("x", "list").exits(0).err(), "it is said once");
        ctl("own", "destroy", "--yes").exits(0);
        ctl("x", "snapshot", "--delete", "x-par-ab").exits(0);
        assertEquals(1, depth());
        assertEquals(before, files());
    }

    /** Of a snapshot that is taken later, only the layer below goes: what it holds stays. */
    @Test
    void theUsersSnapshotKeepsWhatItHolds() throws IOException {
        makeTemporary();
        ctl("x", "snapshot", "own").exits(0);
        Disks.write(vm.workingDisk().orElseThrow(), 3);
        holder.close();
        ctl("x", "stop").exits(0).says("snapshot x-par-ab");
        assertEquals(2, depth());
        ctl("x", "restore", "own").exits(0);
        Disks.holds(vm.workingDisk().orElseThrow(), 2);
    }

    @Test
    void whatAKilledCommandLeftIsDeletedByTheNext() throws IOException {
        for (String step : List.of("clone recorded", "clone made")) {
            holder.lock(lock);
            ctl("x", "snapshot", "--temporary", lock.toString(), "x-par-ab").exits(0);
            killedAt(step, "clone", "--temporary", lock.toString(), "--snapshot", "x-par-ab", ONE, TWO);
            holder.release();
            ctl("x", "list").exits(0).says("clone " + ONE + ", snapshot x-par-ab");
            assertEquals(before, files(), step);
        }
        for (String step : List.of("destroying", "clone emptied", "clone discarded", "deleted")) {
            makeTemporary();
            holder.release();
            killedAt(step, "list");
            ctl("x", "list").exits(0);
            ctl("x", "stop").exits(0);
            assertEquals(before, files(), step);
            assertEquals(1, depth(), step);
            Disks.holds(vm.workingDisk().orElseThrow(), 2);
        }
    }

    @Test
    void thirtyRoundsLeaveTheDiskNoDeeper() throws IOException {
        for (int i = 0; i < 30; i++) {
            holder.lock(lock);
            ctl("x", "snapshot", "--temporary", lock.toString(), "round-" + i).exits(0);
            Disks.write(vm.workingDisk().orElseThrow(), i);
            holder.release();
            ctl("x", "list").exits(0).says("snapshot round-" + i);
            assertEquals(1, depth());
        }
        Disks.holds(vm.workingDisk().orElseThrow(), 29);
        assertEquals(before, files());
    }

    /** A name may begin as another VM's, and go on with a dot. */
    @Test
    void filesOfVmsWhoseNamesBeginAlikeAreNotMixedUp() throws IOException {
        List<String> names = List.of("x", "x.par-ab-1", "x.par-ab-1.ssh", "x.qemu", "x.snapshots.y");
        for (String name : names.subList(1, names.size())) {
            makeVm(name);
            ctl(name, "snapshot", "own").exits(0);
        }
        assertEquals(names, VmCtl.vmNames(dir));
        for (String name : names) {
            List<String> others = files().stream().filter(file -> VmCtl.vmNames(dir).stream()
                    .noneMatch(vmName -> vmName.equals(name) && isOf(file, name))).toList();
            ctl(name, "stop").exits(0);
            JsonObject status = VmCtl.json(ctl(name, "status", "--json").exits(3).out());
            assertEquals(name.equals("x") ? List.of() : List.of("own"), status.getArray("snapshots"));
            ctl(name, "destroy", "--yes").exits(0);
            assertEquals(others, files().stream().filter(file -> !file.equals(name + ".lock")).toList(), name);
        }
    }

    /** Whether a file is this VM's; one that is longer belongs to another VM whose name begins alike. */
    private static boolean isOf(String file, String name) {
        return file.matches(Pattern.quote(name) + "(-clean\\.qcow2|\\.(qcow2|disks|snapshots|ssh|lock|test)(/.*)?)");
    }
}
