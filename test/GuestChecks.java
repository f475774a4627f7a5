import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.grack.nanojson.JsonObject;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;

/** What several classes check of a VM, and how they bring it back to where it began. */
final class GuestChecks {

    private GuestChecks() {
    }

    /** The VM running as it was installed, without the snapshots of a class that was cut off itself. */
    static void asInstalled(Guest guest) {
        guest.ctl("stop", "--force").exits(0);
        for (String line : guest.ctl("snapshot", "--list").exits(0).out().lines().toList()) {
            String snapshot = line.split(" ")[0];
            if (!snapshot.equals("clean")) {
                guest.ctl("snapshot", "--delete", snapshot).exits(0);
            }
        }
        guest.fresh();
    }

    static List<Path> chain(Path top) throws IOException {
        List<Path> chain = new ArrayList<>();
        for (Path disk = top; disk != null; disk = VmCtl.Disk.read(disk).backing()) {
            chain.add(disk);
        }
        return chain;
    }

    /** One QEMU at most, and no file but those that the working disk and the snapshots need; those are all there. */
    static void assertNothingIsLeft(Guest guest, int greatestDepth) throws IOException {
        VmCtl.VmFiles files = new VmCtl.VmFiles(guest.vmDir(), guest.settings().get("VM_NAME"));
        assertTrue(guest.qemus().size() <= 1, "more than one QEMU");
        Path working = files.workingDisk().orElseThrow();
        Set<Path> needed = new TreeSet<>(chain(working));
        assertTrue(needed.size() - 1 <= greatestDepth, needed.size() - 1 + " layers lie under the disk, not " + greatestDepth);
        for (Path directory : entries(files.file(".snapshots"))) {
            JsonObject record = VmCtl.json(Files.readString(directory.resolve("snapshot.json")));
            needed.addAll(chain(files.dir().resolve(record.getString("disk"))));
            Set<Path> right = new TreeSet<>(Set.of(directory.resolve("snapshot.json")));
            if (record.has("ram")) {
                Path ram = files.dir().resolve(record.getString("ram"));
                assertEquals(record.getLong("ramBytes"), Files.size(ram), ram.toString());
                right.add(ram);
            }
            assertEquals(right, new TreeSet<>(entries(directory)));
        }
        needed.removeIf(disk -> !disk.startsWith(files.disks()));
        assertEquals(needed, new TreeSet<>(entries(files.disks())), "the working disk is " + working);
    }

    static List<Path> entries(Path directory) throws IOException {
        try (Stream<Path> entries = Files.list(directory)) {
            return entries.toList();
        }
    }

    /** The guest's clock is that of this machine, but for what ssh takes. */
    static void assertClockIsRight(Guest guest) {
        long before = System.currentTimeMillis() / 1000;
        long clock = Long.parseLong(guest.sh("date +%s").exits(0).out().strip());
        long after = System.currentTimeMillis() / 1000;
        assertTrue(clock >= before - 2 && clock <= after + 2, "the guest's clock is at " + clock + ", between " + before + " and " + after);
    }
}
