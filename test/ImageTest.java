import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** A VM travels in a file to another VM_DIR, and runs there, by its RAM and by its disk. */
@Tag("faults")
@Tag("vm")
final class ImageTest {

    private static final Guest GUEST = Guest.installed();
    private static final Path HERE = Guest.BUILD.resolve("test/image");
    private static final Guest THERE = Guest.in(HERE.resolve("vms")).with("VM_NAME", "travelled");
    private static final Path IMAGE = HERE.resolve("guest.image");

    @BeforeAll
    static void anEmptyDirectory() throws IOException {
        THERE.ctl("destroy", "--yes");
        Guest.delete(HERE);
        Files.createDirectories(HERE);
        GUEST.fresh();
    }

    @AfterAll
    static void nothingIsLeft() throws IOException {
        THERE.ctl("destroy", "--yes").exits(0);
        GUEST.ctl("stop", "--force").exits(0);
        assertEquals(0, THERE.qemus().size());
        Guest.delete(HERE);
    }

    @Test
    void itRunsThereByItsRamAndByItsDisk() throws IOException {
        GUEST.ctl("export", IMAGE.toString(), "--with-ram").exits(0); // it runs meanwhile
        GUEST.sh("hostname").exits(0);
        THERE.ctl("import", IMAGE.toString(), "--with-ram").exits(0);
        THERE.ctl("start").exits(0).says("restored clean with its RAM");
        THERE.ctl("exec", "uname").exits(0).answers("DragonFly");
        THERE.ctl("stop", "--force").exits(0);
        THERE.ctl("import", IMAGE.toString(), "--yes").exits(0).says("its RAM was not imported", "as after a power cut");
        assertFalse(Files.exists(THERE.file(".snapshots")));
        THERE.ctl("start").exits(0).says("booted travelled", "kept disk and RAM");
        THERE.ctl("exec", "uname").exits(0).answers("DragonFly");
    }
}
