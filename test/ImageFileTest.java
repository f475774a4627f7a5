import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonArray;
import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonWriter;
import java.io.IOException;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeSet;
import java.util.function.Consumer;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.apache.commons.compress.archivers.tar.TarArchiveEntry;
import org.apache.commons.compress.archivers.tar.TarArchiveInputStream;
import org.apache.commons.compress.archivers.tar.TarArchiveOutputStream;
import org.apache.commons.compress.archivers.tar.TarConstants;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** vm-ctl export and import: on real qcow2 files, without a guest. The VM x is exported, and imported as y into the same VM_DIR. */
@Tag("unit")
final class ImageFileTest {

    private static final List<String> HARDWARE = List.of("QEMU emulator version 7.2", "-accel", "tcg", "-cpu", "qemu64", "-m", "256M",
            "-smp", "1", "-machine", "pc");

    @TempDir
    Path temporary;

    private Path dir;
    private VmCtl.VmFiles vm;
    private VmCtl.VmFiles imported;
    private Path file;

    /** The clean disk holds 1, and the snapshot clean, which the first start would have taken, 2 and RAM. */
    @BeforeEach
    void makeVm() throws IOException {
        dir = Files.createDirectories(temporary.toRealPath().resolve("vm's dir, *?[\u00e9"));
        vm = new VmCtl.VmFiles(dir, "x");
        imported = new VmCtl.VmFiles(dir, "y");
        file = temporary.toRealPath().resolve("x's image, \u00e9");
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", vm.clean().toString(), "1G");
        Disks.write(vm.clean(), 1);
        Files.setPosixFilePermissions(vm.clean(), PosixFilePermissions.fromString("r--------"));
        Path keys = Files.createDirectories(vm.file(".ssh"));
        for (String key : VmCtl.Part.KEY_NAMES) {
            Files.writeString(keys.resolve(key), key.equals("known_hosts") ? "x ssh-ed25519 AAAA\n" : "it is " + key);
        }
        Path install = Files.createDirectories(vm.file(".install"));
        Files.writeString(install.resolve("install.json"), "{\"version\": \"6.4.2\", \"versions\": {\"uname\": \"DragonFly 6.4-RELEASE x86_64\"}, \"isoSha256\": \"bb\", \"qemu\": \"QEMU 7\", \"accelerator\": \"tcg\"}");
        Files.writeString(install.resolve("installed1.inputs"), "DFLY_VERSION=6.4.2\nits script=aa\n");
        Files.writeString(install.resolve("installed2.inputs"), "its script=cc\n");
        ctl("x", "restore").exits(0);
    }

    @AfterEach
    void noStep() {
        VmCtl.onStep = step -> { };
    }

    /** Makes clean what the first start makes it: an overlay, and RAM. */
    private byte[] addRam() throws IOException {
        Disks.write(vm.workingDisk().orElseThrow(), 2);
        ctl("x", "snapshot", "--yes").exits(0);
        byte[] ram = new byte[3_000_000];
        new Random(1).nextBytes(ram);
        Files.write(vm.record("clean").resolveSibling("ram"), ram);
        CRC32C crc = new CRC32C();
        crc.update(ram);
        changeRecord(record -> record.putAll(VmCtl.object("ram", "x.snapshots/clean/ram", "ramBytes", ram.length, "ramCrc32c", crc.getValue(),
                "hardware", HARDWARE, "automatic", true)));
        return ram;
    }

    private void changeRecord(Consumer<JsonObject> change) throws IOException {
        JsonObject record = VmCtl.json(Files.readString(vm.record("clean")));
        change.accept(record);
        Files.writeString(vm.record("clean"), JsonWriter.string(record));
    }

    private Script.Result ctl(String name, String... arguments) {
        Map<String, String> settings = new HashMap<>(Map.of("VM_DIR", dir.toString(), "VM_NAME", name, "VM_ACCEL", "tcg", "VM_MEMORY", "256M"));
        return Script.call(VmCtl.commandLine(new VmCtl.Settings().add(settings, "the environment"), arguments), arguments);
    }

    private void happensAt(KilledCommand.Way way, String name, String step, String... command) {
        Script.Result result = KilledCommand.run(Guest.in(dir).with("VM_NAME", name, "VM_ACCEL", "tcg", "VM_MEMORY", "256M"), way, step, 1, command);
        result.exits(way == KilledCommand.Way.HALT ? 137 : 130);
    }

    private static String mode(Path path) throws IOException {
        return PosixFilePermissions.toString(Files.getPosixFilePermissions(path));
    }

    /** All files of the imported VM and beside the image file, such as what an interrupted command leaves. */
    private List<String> left() throws IOException {
        try (Stream<Path> files = Stream.concat(Files.list(dir), Files.list(file.getParent()))) {
            return new TreeSet<>(files.map(path -> path.getFileName().toString()).filter(name -> name.matches("\\.?y.*|.*\\.part|.*image.*")).toList())
                    .stream().toList();
        }
    }

    private void importFails(int code, String line) throws IOException {
        ctl("y", "import", file.toString()).exits(code).saysOnly(line);
        assertEquals(List.of(file.getFileName().toString()), left(), "after: " + line);
    }

    /** Of an installer that VM_IMAGE named. */
    @Test
    void anImageNamesTheReleaseThatWasInstalled() throws IOException {
        Path record = dir.resolve("x.install/install.json");
        Files.writeString(record, Files.readString(record).replace("6.4-RELEASE", "5.9-DEVELOPMENT"));
        ctl("x", "export", file.toString()).exits(0);
        ctl("y", "import", file.toString()).exits(0).says("imported y, DragonFly 5.9-DEVELOPMENT, in ");
    }

    @Test
    void aVmTravels() throws IOException {
        Script.Result made = ctl("x", "export", file.toString()).exits(0).says("exported x/clean to " + file, "whoever has it can log in");
        assertEquals("", made.out());
        assertEquals("rw-------", mode(file));
        JsonObject manifest = VmCtl.json(ctl("any", "export", "--list", file.toString()).exits(0).out());
        assertEquals(List.of("vm-ctl image", "x", "clean", "6.4.2", "bb", List.of("aa", "cc"), "QEMU 7", "tcg", false),
                Stream.of("format", "vm", "snapshot", "dragonfly", "isoSha256", "phasesSha256", "qemu", "accelerator", "diskInUse").map(manifest::get).toList());
        assertEquals(7, manifest.getArray("parts").size());
        try (TarArchiveInputStream tar = new TarArchiveInputStream(Files.newInputStream(file))) {
            assertEquals("", tar.getNextEntry().getUserName(), "who made it");
        }
        assertTrue(Disks.run("tar", "-tf", file.toString()).startsWith("manifest.json\nssh/id_ed25519\n"));

        ctl("y", "import", file.toString()).exits(0).says("imported y, DragonFly 6.4.2, in ", ": VM_NAME=y vm-ctl start");
        assertEquals("r--------", mode(imported.clean()));
        assertFalse(Disks.run("qemu-img", "info", imported.clean().toString()).contains("backing file"));
        Disks.holds(imported.clean(), 1);
        assertEquals(1L << 30, VmCtl.Disk.find(imported.clean()).orElseThrow().size());
        Path keys = imported.file(".ssh");
        assertEquals("rwx------", mode(keys));
        for (String key : VmCtl.Part.KEY_NAMES) {
            assertEquals(key.equals("known_hosts") ? "y ssh-ed25519 AAAA\n" : "it is " + key, Files.readString(keys.resolve(key)));
            assertEquals("rw-------", mode(keys.resolve(key)));
        }
        assertEquals(List.of(file.getFileName().toString(), "y-clean.qcow2", "y.lock", "y.ssh"), left());
        ctl("y", "snapshot", "--list").is(0, "", ""); // as after an installation: the first start takes clean
        ctl("y", "start", "--dry-run").exits(0).answers("qemu-img create", "../y-clean.qcow2");
        ctl("y", "restore").exits(0);
        Disks.holds(imported.workingDisk().orElseThrow(), 1);
    }

    /** Also below a link; then its real path is used. */
    @Test
    void anImportMakesVmDir() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        Path real = Files.createDirectory(temporary.toRealPath().resolve("real"));
        Path made = Files.createSymbolicLink(temporary.resolve("link"), real).resolve("new/vms");
        ctl("y", "import", "--vm-dir", made.toString(), file.toString()).exits(0);
        assertEquals("rwx------", mode(real.resolve("new/vms")));
        ctl("y", "restore", "--vm-dir", made.toString()).exits(0);
        Disks.holds(new VmCtl.VmFiles(real.resolve("new/vms"), "y").workingDisk().orElseThrow(), 1);
        Path odd = Files.createSymbolicLink(temporary.resolve("odd"), Files.createDirectory(temporary.toRealPath().resolve("a%b"))).resolve("vms");
        ctl("y", "import", "--vm-dir", odd.toString(), file.toString()).exits(2).says("VM_DIR must not contain %");
        assertFalse(Files.exists(odd));
    }

    @Test
    void withoutRamTheDiskIsTheOneThatAColdRestoreBoots() throws IOException {
        addRam();
        ctl("x", "export", file.toString()).exits(0);
        assertEquals(List.of(false, "256M", "qemu64", "1", "pc"), Stream.of("diskInUse", "memory", "cpu", "cpus", "machine")
                .map(VmCtl.json(ctl("x", "export", "--list", file.toString()).out())::get).toList());
        ctl("y", "import", file.toString()).exits(0);
        Disks.holds(imported.clean(), 1);
        changeRecord(record -> record.put("automatic", false));
        ctl("x", "export", file.toString()).exits(0);
        ctl("y", "import", "--yes", file.toString()).exits(0).says("the first start boots as after a power cut");
        Disks.holds(imported.clean(), 2);
        Disks.write(vm.workingDisk().orElseThrow(), 3);
        ctl("x", "snapshot", "later").exits(0);
        ctl("x", "clone", "--snapshot", "later", "c").exits(0);
        for (String[] command : new String[][] {{"x", "later"}, {"c", "clean"}}) {
            ctl(command[0], "export", file.toString(), "--snapshot", command[1]).exits(0);
            ctl("y", "import", "--yes", file.toString()).exits(0).says("DragonFly 6.4.2");
            Disks.holds(imported.clean(), 3);
        }
    }

    @Test
    void ramTravelsWithItsDisk() throws IOException {
        byte[] ram = addRam();
        ctl("x", "export", "--with-ram", file.toString()).exits(0);
        ctl("y", "import", "--with-ram", file.toString()).exits(0);
        Disks.holds(imported.clean(), 2);
        VmCtl.Snapshot clean = VmCtl.Snapshot.find(imported, "clean").orElseThrow();
        assertEquals(imported.clean(), clean.disk());
        assertTrue(Arrays.equals(ram, Files.readAllBytes(clean.ram())));
        CRC32C crc = new CRC32C();
        crc.update(ram);
        assertEquals(crc.getValue(), clean.json().getLong("ramCrc32c"));
        assertEquals(null, clean.ramProblem(HARDWARE));
        assertEquals("it was made with -m 256M, now it is 1G", clean.ramProblem(HARDWARE.stream().map(word -> word.replace("256M", "1G")).toList()));
        assertEquals("rw-------", mode(clean.ram()));
        ctl("y", "snapshot", "--list").exits(0).answers("disk and RAM");
        ctl("y", "destroy", "--yes").exits(0);
        ctl("y", "import", file.toString()).exits(0).says("its RAM was not imported", "after a power cut");
        assertFalse(Files.exists(imported.file(".snapshots")));
        ctl("x", "export", file.toString()).exits(0);
        ctl("y", "import", "--with-ram", file.toString()).exits(69).saysOnly("holds no RAM: import it without --with-ram");
    }

    @Test
    void whatCannotBeExportedIsRefused() throws IOException {
        ctl("x", "export", file.toString(), "--with-ram").exits(69).saysOnly("snapshot clean has no RAM that can be used");
        ctl("x", "export", file.toString(), "--snapshot", "none").exits(69).saysOnly("x has no snapshot none");
        ctl("x", "export", file.toString(), "--snapshot", "../x").exits(2).says("the snapshot's name");
        ctl("none", "export", file.toString()).exits(69).saysOnly("there is no VM none");
        ctl("x", "export", temporary.toString()).exits(2).saysOnly("cannot be written");
        for (Path inVmDir : List.of(vm.clean(), vm.disks().resolve("image"))) {
            ctl("x", "export", inVmDir.toString()).exits(2).saysOnly("lies in VM_DIR");
        }
        ctl("y", "import", temporary.toString()).exits(69).saysOnly("it is a directory");
        ctl("x", "export", "--list", "--with-ram", file.toString()).exits(2).saysOnly("takes no other option");
        ctl("x", "export", "--list", file.toString()).exits(69).saysOnly("no such file");
        ctl("y", "import", file.toString()).exits(69).saysOnly("no such file");
        addRam();
        changeRecord(record -> record.put("ramCrc32c", 1));
        ctl("x", "export", "--with-ram", file.toString()).exits(1).saysOnly("the RAM of snapshot clean is damaged (its checksum is wrong)");
        Path elsewhere = Files.createDirectory(temporary.resolve("elsewhere"));
        Path link = Files.createSymbolicLink(file.resolveSibling("." + file.getFileName() + ".part"), elsewhere);
        ctl("x", "export", file.toString()).exits(69).saysOnly("is a link, which is in the way");
        Files.delete(link);
        Files.move(vm.file(".ssh").resolve("id_ed25519"), dir.resolve("key"));
        ctl("x", "export", file.toString()).exits(69).saysOnly("put id_ed25519 and known_hosts back");
        Files.move(dir.resolve("key"), vm.file(".ssh").resolve("id_ed25519"));
        Files.delete(vm.clean());
        Disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/hostname", "-F", "raw", vm.clean().toString(), "1G");
        ctl("x", "export", file.toString()).exits(69).saysOnly("builds on /etc/hostname");
        assertEquals(List.of(), left());
    }

    @Test
    void aVmIsReplacedOnlyIfSomebodySaysSo() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        ctl("y", "import", file.toString()).exits(0);
        ctl("y", "restore").exits(0);
        Disks.write(imported.workingDisk().orElseThrow(), 7);
        ctl("y", "snapshot", "own").exits(0);
        ctl("y", "import", file.toString()).exits(2).saysOnly("this would replace VM y and delete its disks and snapshots; nothing was changed");
        try (FakeVm running = new FakeVm(dir, "y")) {
            ctl("y", "import", "--yes", file.toString()).exits(69).says("VM y is running; stop it first");
            assertTrue(VmCtl.isRunning(running.file(".qemu-pid")));
        }
        ctl("y", "clone", "z").exits(0);
        ctl("y", "import", "--yes", file.toString()).exits(69).saysOnly("cannot replace y: clones build on it: z");
        ctl("z", "destroy", "--yes").exits(0);
        Disks.holds(VmCtl.Snapshot.find(imported, "own").orElseThrow().disk(), 7);
        ctl("y", "import", "--yes", file.toString()).exits(0);
        ctl("y", "snapshot", "--list").is(0, "", "");
        Disks.holds(imported.clean(), 1);
        assertFalse(Files.exists(imported.link()));
        ctl("y-clean", "import", file.toString()).exits(2).says("or end in -clean");
        assertEquals(List.of("x", "y"), VmCtl.vmNames(dir));
    }

    // Files that somebody else made.

    /** The entries of the image file, to be changed and written again. */
    private Map<String, byte[]> entries() throws IOException {
        Map<String, byte[]> entries = new LinkedHashMap<>();
        try (TarArchiveInputStream tar = new TarArchiveInputStream(Files.newInputStream(file))) {
            for (TarArchiveEntry entry = tar.getNextEntry(); entry != null; entry = tar.getNextEntry()) {
                entries.put(entry.getName(), tar.readAllBytes());
            }
        }
        return entries;
    }

    private static TarArchiveEntry entry(String name, long size) {
        TarArchiveEntry entry = new TarArchiveEntry(name, true);
        entry.setSize(size);
        return entry;
    }

    private static void put(TarArchiveOutputStream tar, TarArchiveEntry entry, byte[] content) throws IOException {
        tar.putArchiveEntry(entry);
        tar.write(content);
        tar.closeArchiveEntry();
    }

    private void writeAgain(Map<String, byte[]> entries) throws IOException {
        try (TarArchiveOutputStream tar = new TarArchiveOutputStream(Files.newOutputStream(file))) {
            tar.setLongFileMode(TarArchiveOutputStream.LONGFILE_GNU);
            for (var each : entries.entrySet()) {
                put(tar, entry(each.getKey(), each.getValue().length), each.getValue());
            }
        }
    }

    /** Writes the file again with another manifest and the sum that belongs to it. */
    private void changeManifest(Consumer<JsonObject> change) throws IOException {
        Map<String, byte[]> entries = entries();
        JsonObject manifest = VmCtl.json(new String(entries.get("manifest.json"), UTF_8));
        change.accept(manifest);
        entries.put("manifest.json", JsonWriter.string(manifest).getBytes(UTF_8));
        entries.put("manifest.sha256", VmCtl.Sums.sha256Of(entries.get("manifest.json")).getBytes(UTF_8));
        writeAgain(entries);
    }

    private static JsonObject part(JsonObject manifest, String name) {
        return manifest.getArray("parts").stream().map(JsonObject.class::cast).filter(part -> name.equals(part.getString("name"))).findFirst().orElseThrow();
    }

    /** Replaces a part as somebody would who wants it to be taken: all sums are right. */
    private void replacePart(String name, byte[] content) throws IOException {
        Map<String, byte[]> entries = entries();
        entries.put(name, content);
        writeAgain(entries);
        changeManifest(manifest -> {
            part(manifest, name).put("bytes", content.length);
            part(manifest, name).put("sha256", VmCtl.Sums.sha256Of(content));
        });
    }

    @Test
    void aFileThatIsNoneIsNotRead() throws IOException {
        for (byte[] content : List.of(new byte[0], new byte[100], new byte[100_000], "\u007fELF".repeat(1000).getBytes(UTF_8))) {
            Files.write(file, content);
            importFails(69, "is no file that vm-ctl export has written: ");
            ctl("y", "export", "--list", file.toString()).exits(69).saysOnly("is no file that vm-ctl export has written: ");
        }
        for (String manifest : List.of("", "no JSON", "[]", "{}", "{\"format\": 1}", "{\"format\": \"vm-ctl image\"}", "[".repeat(100_000))) {
            writeAgain(Map.of("manifest.json", manifest.getBytes(UTF_8)));
            importFails(69, "its manifest ");
        }
        writeAgain(Map.of("manifest.json", new byte[(1 << 20) + 1]));
        importFails(69, "its manifest has 1048577 bytes, at most 1048576 are read");
        writeAgain(Map.of("disk.qcow2", new byte[1000]));
        importFails(69, "'disk.qcow2' is where manifest.json should be");
    }

    @Test
    void aManifestIsNotBelieved() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        byte[] good = Files.readAllBytes(file);
        Map<String, Consumer<JsonObject>> lies = new LinkedHashMap<>();
        lies.put("disk.qcow2 cannot have 1099511627777 bytes", json -> part(json, "disk.qcow2").put("bytes", (1L << 40) + 1));
        lies.put("ssh/id_ed25519 cannot have 65537 bytes", json -> part(json, "ssh/id_ed25519").put("bytes", 65537));
        lies.put("disk.qcow2 cannot have -1 bytes", json -> part(json, "disk.qcow2").put("bytes", -1));
        lies.put("../../evil cannot have", json -> part(json, "ssh/host_key").put("name", "../../evil"));
        lies.put("/etc/passwd cannot have", json -> part(json, "ssh/host_key").put("name", "/etc/passwd"));
        lies.put("ssh/../evil cannot have", json -> part(json, "ssh/host_key").put("name", "ssh/../evil"));
        lies.put("ssh/config cannot have", json -> part(json, "ssh/host_key").put("name", "ssh/config"));
        lies.put("a part is missing, or listed twice", json -> part(json, "ssh/host_key").put("name", "disk.qcow2"));
        lies.put("a part is missing, or", json -> json.put("parts", new JsonArray()));
        lies.put("it does not say with which hardware the RAM was saved", json -> part(json, "ssh/host_key").put("name", "ram"));
        lies.put("its hardware has control characters", json -> json.put("hardware", new JsonArray(List.of("a\nvm-ctl: all is well"))));
        lies.put("a?vm-ctl: all is well?a", json -> part(json, "ssh/host_key").put("name", "a\nvm-ctl: all is well\n" + "a".repeat(10_000)));
        lies.put("its manifest cannot be used", json -> json.put("parts", new JsonArray(List.of(1, "two"))));
        for (var lie : lies.entrySet()) {
            Files.write(file, good);
            changeManifest(lie.getValue());
            importFails(69, lie.getKey());
        }
        Files.write(file, good);
        changeManifest(json -> json.put("version", 2));
        importFails(69, "was written by a newer vm-ctl, in version 2 of its format; this one reads version 1: use a newer vm-ctl");
        Files.write(file, good);
        changeManifest(json -> part(json, "disk.qcow2").put("bytes", part(json, "disk.qcow2").getLong("bytes") - 1));
        importFails(1, "and the manifest says ");
        Files.write(file, good);
        changeManifest(json -> part(json, "disk.qcow2").put("bytes", 1L << 40)); // a tar bomb would need as much
        importFails(1, "it is cut off, as it has " + Files.size(file) + " bytes, and its parts have 10995");
        Files.write(file, good);
        changeManifest(json -> json.put("diskSize", 1L << 31));
        importFails(69, "is damaged, or not as large as the manifest says");
        Files.write(file, good);
        changeManifest(json -> json.put("vm", "\u001b[31mred\u202e"));
        String listed = ctl("y", "export", "--list", file.toString()).exits(0).out();
        assertFalse(listed.contains("\u001b") || listed.contains("\u202e"), listed);
    }

    /** A sparse file that is as long as the manifest says. */
    @Test
    void aPartThatWouldFillTheDiskIsNotWrittenFurtherThanItIsLong() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        changeManifest(json -> part(json, "disk.qcow2").put("bytes", 1L << 40));
        try (RandomAccessFile sparse = new RandomAccessFile(file.toFile(), "rw")) {
            sparse.setLength((1L << 40) + (1 << 20));
        }
        importFails(1, "disk.qcow2 has ");
    }

    /** Wherever a byte is lost or changed, the file is refused. */
    @Test
    void damageIsFound() throws IOException {
        addRam();
        ctl("x", "export", "--with-ram", file.toString()).exits(0);
        byte[] good = Files.readAllBytes(file);
        int ram = good.length - 3_000_000;
        for (int length : List.of(511, 512, 700, 3000, 20_000, ram, good.length - 12_000, good.length - 10_240)) {
            Files.write(file, Arrays.copyOf(good, length));
            Script.Result result = ctl("y", "import", file.toString());
            assertTrue(result.exitCode() == 1 || length < 3000 && result.exitCode() == 69, length + ": " + result);
            result.saysOnly(result.exitCode() == 1 ? "is damaged, or was changed: " : "is no file that vm-ctl export has written");
            assertEquals(List.of(file.getFileName().toString()), left());
        }
        int manifest = new String(good, ISO_8859_1).indexOf("\"dragonfly\":\"6.4.2\"") + 13;
        int padding = new String(good, ISO_8859_1).indexOf("it is id_ed25519") + 100;
        assertTrue(manifest > 512 && padding > 512, manifest + " " + padding);
        for (int at : List.of(3, 124, 156, 600, manifest, padding, 12_000, ram, good.length - 50_000, good.length - 300, good.length - 11_000)) {
            byte[] changed = good.clone();
            changed[at] ^= 1;
            Files.write(file, changed);
            Script.Result result = ctl("y", "import", file.toString());
            assertTrue(result.exitCode() == 1 || at < 3000 && result.exitCode() == 69, at + ": " + result);
            assertEquals(1, result.err().lines().count(), result.toString());
            assertEquals(List.of(file.getFileName().toString()), left());
        }
        Files.write(file, good);
        try (OutputStream more = Files.newOutputStream(file, StandardOpenOption.APPEND)) {
            more.write(new byte[100_000]);
        }
        importFails(1, "it is cut off after its parts, or something else follows them");
    }

    @Test
    void onlyPlainFilesOfKnownNamesAreTaken() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        Map<String, byte[]> entries = entries();
        Path evil = dir.resolve("evil");
        for (String name : List.of("../evil", evil.toString(), "ssh/../../evil", "ssh/evil", "ssh/id_ed25519/evil", "disk.qcow2", "n".repeat(300))) {
            Map<String, byte[]> changed = new LinkedHashMap<>();
            entries.forEach((key, value) -> changed.put(key.equals("ssh/host_key") ? name : key, value));
            writeAgain(changed);
            importFails(1, "is where ssh/host_key should be");
            assertFalse(Files.exists(evil));
        }
        Map<Byte, String> types = Map.of(TarConstants.LF_LINK, "1", TarConstants.LF_SYMLINK, "2", TarConstants.LF_CHR, "3", TarConstants.LF_BLK, "4",
                TarConstants.LF_DIR, "5", TarConstants.LF_FIFO, "6", TarConstants.LF_GNUTYPE_SPARSE, "S", TarConstants.LF_PAX_EXTENDED_HEADER_LC, "x");
        for (var type : types.entrySet()) {
            try (TarArchiveOutputStream tar = new TarArchiveOutputStream(Files.newOutputStream(file))) {
                put(tar, entry("manifest.json", entries.get("manifest.json").length), entries.get("manifest.json"));
                TarArchiveEntry odd = new TarArchiveEntry("ssh/id_ed25519", type.getKey());
                odd.setLinkName("/etc/passwd");
                put(tar, odd, new byte[0]);
                put(tar, entry("padding", 1 << 20), new byte[1 << 20]);
            }
            importFails(1, type.getKey() == TarConstants.LF_DIR ? "'ssh/id_ed25519/' is where" : "ssh/id_ed25519 is no plain file (its type is '" + type.getValue() + "')");
        }
    }

    /** With all sums right, so only the disk's header tells. */
    @ParameterizedTest
    @ValueSource(strings = {"backing", "qcow2 backing", "data file", "raw", "vmdk"})
    void aDiskThatNamesAFileOfThisHostIsRefused(String kind) throws IOException {
        Path secret = Files.writeString(temporary.resolve("secret"), "x".repeat(1 << 20));
        Path bad = temporary.resolve("bad");
        String options = switch (kind) {
            case "backing" -> "-f qcow2 -u -F raw -b " + secret;
            case "qcow2 backing" -> "-f qcow2 -u -F qcow2 -b " + secret;
            case "data file" -> "-f qcow2 -o data_file=" + temporary.resolve("data");
            default -> "-f " + kind;
        };
        Disks.run("sh", "-c", "qemu-img create -q " + options + " " + bad + " 1G" + (kind.equals("raw") ? "; truncate -s 2M " + bad : ""));
        ctl("x", "export", file.toString()).exits(0);
        replacePart("disk.qcow2", Files.readAllBytes(bad));
        importFails(69, switch (kind) {
            case "backing" -> "builds on " + secret + ", which is not said to be a qcow2 file; it came from " + file;
            case "qcow2 backing" -> "builds on another file, " + secret + ", which is refused";
            case "data file" -> "keeps its data in another file, which is refused";
            default -> "is not a qcow2 image";
        });
    }

    @Test
    void aDiskWhoseTablesAreMissingIsRefused() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        replacePart("disk.qcow2", Arrays.copyOf(entries().get("disk.qcow2"), 104));
        importFails(69, "is damaged, or not as large");
    }

    @Test
    void aHostKeyIsOneLine() throws IOException {
        ctl("x", "export", file.toString()).exits(0);
        for (String known : List.of("", "x ssh-ed25519", "x ssh-ed25519 AAAA\n* ssh-rsa BBBB\n", "@cert-authority * AAAA", "x ssh-ed25519 AA;AA")) {
            replacePart("ssh/known_hosts", known.getBytes(UTF_8));
            importFails(1, "known_hosts is not one host key");
        }
    }

    // What goes wrong here.

    @Test
    void aFullDiskIsOneLineAndLeavesNothing() throws IOException {
        Path small = Files.createDirectory(temporary.resolve("small"));
        assumeTrue(new ProcessBuilder("mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", small.toString()).start().onExit().join().exitValue() == 0,
                "only root can mount");
        try {
            Disks.run("qemu-io", "-c", "write -s /dev/urandom 1M 1536k", vm.workingDisk().orElseThrow().toString()); // does not compress
            ctl("x", "snapshot", "full").exits(0);
            Path target = small.toRealPath().resolve("image");
            ctl("x", "export", target.toString(), "--snapshot", "full").exits(1).saysOnly("no space is left on the disk of " + target.getParent());
            assertEquals(List.of(), Arrays.asList(small.toFile().list()), "written, and packed in vain");
            Disks.run("qemu-io", "-c", "write -s /dev/urandom 8M 1536k", vm.workingDisk().orElseThrow().toString());
            ctl("x", "snapshot", "fuller").exits(0);
            ctl("x", "export", target.toString(), "--snapshot", "fuller").exits(1).saysOnly("no space is left");
            assertEquals(List.of(), Arrays.asList(small.toFile().list()), "flattened in vain");
            ctl("x", "export", file.toString(), "--snapshot", "fuller").exits(0);
            Path vms = dir;
            dir = Files.createDirectory(small.toRealPath().resolve("vms"), PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
            ctl("y", "import", file.toString()).exits(1).saysOnly("no space is left on the disk of " + dir);
            assertEquals(List.of(), Arrays.asList(dir.toFile().list()));
            dir = vms;
        } finally {
            Disks.run("umount", small.toString());
        }
    }

    @Test
    void aKilledExportLeavesNoFileAndTheNextCleansUp() throws IOException {
        Files.writeString(file, "an older one");
        for (KilledCommand.Way way : List.of(KilledCommand.Way.HALT, KilledCommand.Way.SIGINT)) {
            for (String step : List.of("disk flattened", "packed")) {
                happensAt(way, "x", step, "export", file.toString());
                assertEquals("an older one", Files.readString(file), step);
                assertEquals(way == KilledCommand.Way.SIGINT ? 1 : 2, left().size(), step + ": " + left());
            }
        }
        happensAt(KilledCommand.Way.HALT, "x", "disk flattened", "export", file.toString());
        ctl("x", "export", file.toString()).exits(0);
        assertEquals(List.of(file.getFileName().toString()), left());
        ctl("y", "import", file.toString()).exits(0);
    }

    /** Until all is verified the next command deletes what there is; from then on it completes the import. */
    @Test
    void aKilledImportIsDeletedOrCompletedByTheNextCommand() throws IOException {
        addRam();
        ctl("x", "export", "--with-ram", file.toString()).exits(0);
        for (String step : List.of("part unpacked", "unpacked")) {
            happensAt(KilledCommand.Way.SIGINT, "y", step, "import", file.toString());
            assertEquals(List.of("x"), VmCtl.vmNames(dir), step);
            assertFalse(Files.exists(imported.file(".import.part")), step);
            happensAt(KilledCommand.Way.HALT, "y", step, "import", "--with-ram", file.toString());
            assertEquals(List.of("x"), VmCtl.vmNames(dir), step);
            ctl("y", "start").exits(69).says("there is no VM y");
        }
        for (String step : List.of("import complete", "old VM removed", "placed .ssh", "placed .snapshots", "placed -clean.qcow2")) {
            happensAt(KilledCommand.Way.HALT, "y", step, "import", "--with-ram", "--yes", file.toString());
            assertEquals(List.of("x", "y"), VmCtl.vmNames(dir), step);
            ctl("y", "restore", "none").exits(69).says("completed the import of y, which had been interrupted", "y has no snapshot none");
            Disks.holds(imported.clean(), 2);
            assertEquals(3_000_000, Files.size(VmCtl.Snapshot.find(imported, "clean").orElseThrow().ram()), step);
            assertEquals("y ssh-ed25519 AAAA\n", Files.readString(imported.file(".ssh").resolve("known_hosts")));
            assertEquals(List.of(file.getFileName().toString(), "y-clean.qcow2", "y.lock", "y.snapshots", "y.ssh"), left(), step);
        }
        happensAt(KilledCommand.Way.HALT, "y", "unpacked", "import", "--yes", file.toString());
        ctl("y", "stop").exits(0); // the VM that was to be replaced is there as before
        assertEquals("disk and RAM", VmCtl.Snapshot.find(imported, "clean").orElseThrow().contents());
        assertFalse(Files.exists(imported.file(".import.part")));
    }

    @Test
    void twoExportsToOneFileDoNotMix() throws IOException {
        Path work = Files.createDirectory(file.resolveSibling("." + file.getFileName() + ".part"));
        try (LockHolder other = new LockHolder().lock(work.resolve("lock"))) {
            ctl("x", "export", file.toString()).exits(69).saysOnly("holds the lock");
        }
        ctl("x", "export", file.toString()).exits(0);
        assertNotEquals(0, Files.size(file));
    }
}
