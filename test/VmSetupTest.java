///usr/bin/env jbang "$0" "$@" ; exit $?
//JAVA 17+
//SOURCES ../VmSetup.java
//SOURCES Mirror.java
//DEPS org.junit.platform:junit-platform-console-standalone:6.1.3

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import com.grack.nanojson.JsonWriter;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.InetAddress;
import java.net.Proxy;
import java.net.ServerSocket;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.apache.commons.codec.digest.DigestUtils;
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorOutputStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** VmSetup against a real HTTP server, real files, real processes. The images are small; everything else is as it is in use. */
final class VmSetupTest {
    private static final String ARCHIVE = "dfly-x86_64-7.7.7_REL.iso.bz2";
    private static final String PATH = "/iso-images/" + ARCHIVE;
    private static byte[] image;
    private static byte[] archive;

    @TempDir
    Path scratch;
    private Path vmDir;
    private Path root;
    private Mirror mirror;
    private final Map<String, String> settings = new HashMap<>();
    private String searchPath = System.getenv("PATH");

    public static void main(String... args) throws IOException {
        if (args.length == 2 && args[0].equals("hold")) { // as a process that holds a lock until its input ends
            VmSetup.lock(Path.of(args[1]), "vm-ctl start");
            System.out.println("held");
            System.in.transferTo(OutputStream.nullOutputStream());
            return;
        }
        org.junit.platform.console.ConsoleLauncher.main(
                new String[] {"execute", "--select-class", "VmSetupTest", "--disable-banner", "--details", "summary"});
    }

    private record Result(int code, String out, String err) {}

    @BeforeAll
    static void makeImage() throws IOException {
        image = image(1);
        archive = packed(image);
    }

    private static byte[] image(long seed) {
        byte[] bytes = new byte[700_000];
        new Random(seed).nextBytes(bytes);
        System.arraycopy("CD001".getBytes(UTF_8), 0, bytes, 0x8001, 5);
        return bytes;
    }

    /** In two streams, one after the other, as parallel packers write them. */
    private static byte[] packed(byte[] bytes) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (byte[] half : List.of(Arrays.copyOf(bytes, 300_000), Arrays.copyOfRange(bytes, 300_000, bytes.length))) {
            try (OutputStream packer = new BZip2CompressorOutputStream(out)) {
                packer.write(half);
            }
        }
        return out.toByteArray();
    }

    @BeforeEach
    void startMirror() throws IOException {
        vmDir = scratch.resolve("vm, 'a' \"b\" é");
        root = Files.createDirectories(scratch.resolve("mirror/iso-images")).getParent();
        serve("7.7.7", image, archive);
        mirror = new Mirror(root).start();
        settings.put("VM_DIR", vmDir.toString());
        settings.put("VM_MIRROR", mirror.url() + "iso-images/");
        settings.put("DFLY_VERSION", "7.7.7");
    }

    @AfterEach
    void stopMirror() throws IOException {
        mirror.close();
    }

    private void serve(String version, byte[] iso, byte[] packed) throws IOException {
        String name = "dfly-x86_64-" + version + "_REL.iso";
        Files.write(root.resolve("iso-images/" + name + ".bz2"), packed);
        Files.writeString(root.resolve("iso-images/md5.txt"), "MD5 (" + name + ") = " + DigestUtils.md5Hex(iso) + "\nMD5 (" + name
                + ".bz2) = " + DigestUtils.md5Hex(packed) + "\n");
    }

    private Result run(String... args) {
        VmSetup command = new VmSetup();
        command.pause = Duration.ofMillis(2);
        command.silence = Duration.ofMillis(700);
        command.searchPath = searchPath;
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int code = VmSetup.commandLine(command, new VmSetup.Settings(settings, Map.of()))
                .setOut(new PrintWriter(out, true)).setErr(new PrintWriter(err, true)).execute(args);
        return new Result(code, out.toString(), err.toString());
    }

    /** As a person runs it, in a process of its own. */
    private ProcessBuilder process(String... args) {
        List<String> command = new ArrayList<>(List.of(Path.of(System.getProperty("java.home"), "bin/java").toString(),
                "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), "VmSetup"));
        command.addAll(List.of(args));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.environment().putAll(settings);
        return builder;
    }

    private Path iso() {
        return vmDir.resolve("dfly-7.7.7.iso");
    }

    private Path part() {
        return vmDir.resolve("dfly-7.7.7.iso.bz2.part");
    }

    private void assertFetched(Result result) throws IOException {
        assertEquals(0, result.code, result.err);
        assertEquals(iso() + "\n", result.out);
        assertArrayEquals(image, Files.readAllBytes(iso()));
        try (Stream<Path> files = Files.list(vmDir)) {
            assertEquals(List.of("dfly-7.7.7.iso", "dfly-7.7.7.iso.json", "dfly-7.7.7.iso.lock"),
                    files.map(file -> file.getFileName().toString()).sorted().toList());
        }
    }

    private void assertFailed(Result result, int code, String... words) {
        assertEquals(code, result.code, result.err);
        assertEquals("", result.out);
        String last = result.err.lines().reduce((first, second) -> second).orElse("");
        for (String word : words) {
            assertTrue(last.contains(word), "'" + word + "' is missing in: " + result.err);
        }
        assertFalse(Files.exists(iso()), "an ISO that did not pass has the final name");
    }

    private List<String> downloads() {
        return mirror.requests().stream().filter(request -> request.contains(ARCHIVE)).toList();
    }

    // Download

    @Test
    void fetchesOnceAndRemembers() throws IOException {
        assertFetched(run());
        assertEquals(List.of("GET " + PATH + " 200"), downloads());
        assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(vmDir)));
        mirror.forgetRequests();
        Result again = run("fetch");
        assertFetched(again);
        assertTrue(again.err.contains("already there, verified"), again.err);
        assertEquals(List.of(), mirror.requests());
    }

    @Test
    void saysThatNoSumIsKnownForAnUnknownVersion() {
        Result result = run();
        assertTrue(result.err.contains("no sums are known here for DragonFly 7.7.7: only the mirror's md5.txt is checked"), result.err);
        assertTrue(result.err.contains("verified: by md5.txt of 127.0.0.1"), result.err);
    }

    @Test
    void aReleaseMustHaveItsKnownSums() throws IOException {
        settings.put("DFLY_VERSION", "6.4.2");
        serve("6.4.2", image, archive);
        Result refused = run();
        assertFailed(refused, 1, "906095312c4a4ac0577fb91d5eb87033", DigestUtils.md5Hex(archive));
        assertEquals(List.of("GET /iso-images/md5.txt 200"), mirror.requests(), "md5.txt was wrong enough");
        // A mirror that lies in md5.txt and serves another file is found out by the file.
        Files.writeString(root.resolve("iso-images/md5.txt"), "MD5 (dfly-x86_64-6.4.2_REL.iso.bz2) = 906095312c4a4ac0577fb91d5eb87033\n");
        assertFailed(run(), 1, "not 906095312c4a4ac0577fb91d5eb87033");
        assertFalse(Files.exists(vmDir.resolve("dfly-6.4.2.iso")));
    }

    @Test
    void trustMirrorIsLoudAndRemembered() throws IOException {
        settings.put("DFLY_VERSION", "6.4.2");
        serve("6.4.2", image, archive);
        Result trusted = run("fetch", "--trust-mirror");
        assertEquals(0, trusted.code, trusted.err);
        assertTrue(trusted.err.contains("WARNING: --trust-mirror") && trusted.err.contains("NOT checked"), trusted.err);
        assertArrayEquals(image, Files.readAllBytes(vmDir.resolve("dfly-6.4.2.iso")));
        assertEquals(0, run("--trust-mirror").code);
        Result later = run();
        assertEquals(1, later.code);
        assertTrue(later.err.contains("was taken on trust"), later.err);
        mirror.fault("md5=wrong");
        Files.delete(vmDir.resolve("dfly-6.4.2.iso"));
        assertEquals(1, run("--trust-mirror").code, "md5.txt holds for a trusted mirror, too");
    }

    @Test
    void everySumCounts() throws IOException {
        VmSetup.Sums found = new VmSetup.Sums("a", "b", "c");
        VmSetup.compare("x", found, new VmSetup.Sums("a", "b", "c"));
        VmSetup.compare("x", found, VmSetup.Sums.NONE);
        for (VmSetup.Sums wrong : List.of(new VmSetup.Sums("z", "b", "c"), new VmSetup.Sums("a", "z", "c"),
                new VmSetup.Sums("a", "b", "z"))) {
            assertThrows(VmSetup.VmException.class, () -> VmSetup.compare("x", found, wrong));
        }
    }

    @Test
    void refusesAWrongSum() {
        mirror.fault("md5=wrong");
        assertFailed(run(), 1, "has the MD5", "damaged, or another file");
        assertFalse(Files.exists(part()));
        assertEquals(1, downloads().size());
    }

    @Test
    void refusesAnIsoThatMd5TxtDoesNotKnow() throws IOException {
        serve("7.7.7", image(2), archive);
        assertFailed(run(), 1, "unpacked");
    }

    @Test
    void refusesATruncatedArchive() throws IOException {
        Files.write(root.resolve("iso-images/" + ARCHIVE), Arrays.copyOf(archive, 400_000));
        assertFailed(run(), 1, "cannot be unpacked", "truncated, or damaged");
        assertFalse(Files.exists(part()));
    }

    @Test
    void readsMd5Txt() {
        String sum = "0123456789abcdef0123456789abcdef";
        assertEquals(Map.of("a b.iso", sum), VmSetup.sums("# x\nMD5 (a b.iso) = " + sum + "\r\nMD5 (d) = 12\n"));
    }

    @Test
    void tellsAWebPageFromAnArchive() {
        mirror.fault("html=" + PATH);
        assertFailed(run(), 69, "not a bzip2 file, but a web page");
        mirror.heal().fault("html=/iso-images/md5.txt");
        assertFailed(run(), 69, "md5.txt holds no sums, but a web page");
    }

    @Test
    void namesTheVersionsThatThereAre() throws IOException {
        for (String version : List.of("6.4.0", "6.10.1", "6.4.2")) {
            Files.writeString(root.resolve("iso-images/dfly-x86_64-" + version + "_REL.iso.bz2"), "");
        }
        assertFailed(run("--dfly-version", "9.9"), 69, "has no DragonFly 9.9, but 7.7.7, 6.10.1, 6.4.2, 6.4.0 (choose with DFLY_VERSION)");
    }

    private static int freePort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return socket.getLocalPort();
        }
    }

    @Test
    void goesToTheNextMirror() throws IOException {
        int port = freePort();
        try (Mirror broken = new Mirror(root).start().fault("404=" + PATH)) {
            settings.put("VM_MIRROR", "http://127.0.0.1:" + port + "/, " + broken.url() + "iso-images " + mirror.url() + "iso-images");
            Result result = run();
            assertFetched(result);
            assertTrue(result.err.contains("cannot be reached"), result.err);
            assertTrue(result.err.contains("answered 404, not found; trying the next mirror"), result.err);
        }
    }

    @Test
    void triesAgainWhatMayPassAndGivesUpInTime() {
        mirror.fault("503=" + PATH);
        assertFailed(run(), 69, "failed 5 times in a row", "answered 503");
        assertEquals(5, downloads().size());
    }

    @Test
    void doesNotWaitForASilentMirror() throws IOException {
        try (Mirror silent = new Mirror(root).start().fault("stall=/iso-images/md5.txt")) {
            settings.put("VM_MIRROR", silent.url() + "iso-images," + mirror.url() + "iso-images");
            assertFetched(run());
        }
    }

    @Test
    void survivesDroppedConnections() throws IOException {
        mirror.fault("drop=100000");
        assertFetched(run());
        int connections = downloads().size();
        assertTrue(connections >= 7 && connections <= 9, downloads().toString());
        assertTrue(downloads().stream().skip(1).allMatch(one -> one.matches(".* bytes=\\d00000- If-Range 206")), downloads().toString());
        assertTrue(mirror.bytesSent() < archive.length + 2000, "more was sent than the archive: " + mirror.bytesSent());
    }

    @Test
    void survivesResets() throws IOException {
        mirror.fault("reset=150000");
        settings.put("VM_MIRROR", mirror.resetUrl() + "iso-images");
        assertFetched(run());
        assertTrue(downloads().size() > 4, downloads().toString());
    }

    @ParameterizedTest
    @ValueSource(strings = {"no-validators", "no-length", "ignore-ranges", "rate=2000000"})
    void takesServersAsTheyAre(String fault) throws IOException {
        mirror.fault(fault, "drop=400000");
        run(); // some of them give up here
        mirror.heal().fault(fault);
        assertFetched(run());
    }

    @Test
    void keepsWhatAServerWithoutRangesSentAlready() throws IOException {
        mirror.fault("ignore-ranges", "drop=400000");
        assertFailed(run(), 69, "failed 5 times in a row", "run it again to go on");
        assertEquals(400_000, Files.size(part()));
        mirror.heal();
        mirror.forgetRequests();
        assertFetched(run());
        assertEquals(List.of("GET " + PATH + " bytes=400000- If-Range 206"), downloads());
    }

    @Test
    void anotherMirrorGoesOnWhereOneEnded() throws IOException {
        try (Mirror other = new Mirror(root).start().fault("ignore-ranges", "drop=400000")) {
            settings.put("VM_MIRROR", other.url() + "iso-images," + mirror.url() + "iso-images");
            assertFetched(run());
            assertEquals(List.of("GET " + PATH + " bytes=400000- 206"), downloads());
        }
    }

    @Test
    void aFileReplacedOnTheServerIsNotStitchedToTheOldOne() throws IOException {
        mirror.fault("ignore-ranges", "drop=400000");
        run();
        mirror.heal();
        // Announced in md5.txt: what is here is of no use.
        byte[] newer = image(2);
        serve("7.7.7", newer, packed(newer));
        Result result = run();
        assertEquals(0, result.code, result.err);
        assertArrayEquals(newer, Files.readAllBytes(iso()));
    }

    @Test
    void aFileTouchedOnTheServerIsTakenAfresh() throws IOException {
        mirror.fault("ignore-ranges", "drop=400000");
        run();
        mirror.heal();
        mirror.forgetRequests();
        Files.setLastModifiedTime(root.resolve("iso-images/" + ARCHIVE), FileTime.from(Instant.now().minusSeconds(1000)));
        Result result = run();
        assertFetched(result);
        assertTrue(result.err.contains("changed since its first 400000 bytes came; once more from the start"), result.err);
        assertEquals(List.of("GET " + PATH + " bytes=400000- If-Range 200", "GET " + PATH + " 200"), downloads());
    }

    @Test
    void aDamagedBeginningCostsASecondDownloadNotAFailure() throws IOException {
        mirror.fault("ignore-ranges", "drop=400000");
        run();
        mirror.heal();
        byte[] bytes = Files.readAllBytes(part());
        Arrays.fill(bytes, 100_000, 200_000, (byte) 0); // as after a power failure
        Files.write(part(), bytes);
        Result result = run();
        assertFetched(result);
        assertTrue(result.err.contains("once more from the start"), result.err);
    }

    @Test
    void aCompleteArchiveIsNotAskedForAgain() throws IOException {
        Files.createDirectories(vmDir);
        Files.write(part(), archive);
        Files.writeString(vmDir.resolve(part().getFileName() + ".json"),
                JsonWriter.string().object().value("md5", DigestUtils.md5Hex(archive)).value("total", archive.length).end().done());
        assertFetched(run());
        assertEquals(List.of(), downloads());
    }

    @Test
    void saysWhereAMirrorWent() throws IOException {
        mirror.fault("moved=https://elsewhere.example");
        assertFailed(run(), 69, "answered 302, it moved to https://elsewhere.example/iso-images/md5.txt");
    }

    // Unpacking

    @ParameterizedTest
    @ValueSource(strings = {"/usr/bin/bzip2 -d -c", "cat >/dev/null; exit 1", "exit 3", "/usr/bin/bzip2 -d -c | head -c 100000; exit 1"})
    void anUnpackingToolIsUsedAndItsFailureNoticed(String body) throws IOException {
        assumeTrue(Files.exists(Path.of("/usr/bin/bzip2")));
        Path tool = Files.createDirectories(scratch.resolve("my bin")).resolve("lbzip2");
        Files.writeString(tool, "#!/bin/sh\ntouch '" + scratch + "/used'\n" + body + "\n");
        Files.setPosixFilePermissions(tool, PosixFilePermissions.fromString("rwx------"));
        searchPath = tool.getParent() + ":" + System.getenv("PATH");
        if (body.contains("exit")) {
            assertFailed(run(), 1, "lbzip2 ended with " + body.charAt(body.length() - 1));
        } else {
            assertFetched(run());
        }
        assertTrue(Files.exists(scratch.resolve("used")));
    }

    @Test
    void unpacksWithoutATool() throws IOException {
        searchPath = "/nonexistent";
        assertFetched(run());
    }

    // Killed, full, twice at once

    @Test
    void goesOnAfterKillMinusNine() throws Exception {
        mirror.fault("rate=200000"); // the whole archive takes 3.5 s
        Random random = new Random();
        for (int kill = 1; kill <= 5; kill++) {
            Process process = process("fetch").start();
            long target = Math.min(archive.length - 1, size(part()) + random.nextInt(archive.length / 5));
            for (int i = 0; i < 1200 && process.isAlive() && size(part()) <= target; i++) { // 60 s
                Thread.sleep(50);
            }
            Thread.sleep(random.nextInt(30));
            assertTrue(process.isAlive() || Files.exists(iso()), () -> "ended by itself: " + output(process));
            process.destroyForcibly().waitFor();
        }
        mirror.heal();
        Process last = process("fetch").start();
        assertTrue(last.waitFor(60, TimeUnit.SECONDS));
        assertEquals(0, last.exitValue(), output(last));
        assertArrayEquals(image, Files.readAllBytes(iso()));
        assertFalse(Files.exists(part()));
        // What the server sent and a killed process did not store is lost, no more: its buffers, five times.
        assertTrue(mirror.bytesSent() < 2 * archive.length, "it was downloaded again and again: " + mirror.requests());
    }

    private static long size(Path file) throws IOException {
        return Files.exists(file) ? Files.size(file) : 0;
    }

    private static String output(Process process) {
        try {
            return new String(process.getInputStream().readAllBytes(), UTF_8);
        } catch (IOException gone) {
            return gone.toString();
        }
    }

    @Test
    void goesOnAfterKillWhileUnpacking() throws Exception {
        Files.createDirectories(vmDir);
        // What a process killed after the download, while it unpacked or after it remembered the sums, left behind.
        Files.write(part(), archive);
        Files.writeString(vmDir.resolve(part().getFileName() + ".json"),
                JsonWriter.string().object().value("md5", DigestUtils.md5Hex(archive)).value("total", archive.length).end().done());
        Files.write(vmDir.resolve("dfly-7.7.7.iso.part"), Arrays.copyOf(image, 123_456));
        Files.writeString(vmDir.resolve("dfly-7.7.7.iso.json"), "{\"size\":123456,\"modified\":\"" + Instant.now() + "\"}");
        assertFetched(run());
    }

    @Test
    void aSecondFetchNamesTheFirst() throws Exception {
        mirror.fault("rate=100000");
        Process first = process("fetch").start();
        try {
            for (int i = 0; i < 1200 && !Files.exists(part()); i++) {
                Thread.sleep(50);
            }
            Result second = run("fetch");
            assertEquals(69, second.code);
            assertTrue(second.err.contains("vm-setup fetch (pid " + first.pid()), second.err);
        } finally {
            first.destroyForcibly().waitFor();
        }
        mirror.heal();
        assertFetched(run());
    }

    @ParameterizedTest
    @ValueSource(strings = {"1m", "4k", "520k"})
    void aFullDiskIsNamedAndWhatCameIsKept(String size) throws Exception {
        List<String> inside = new ArrayList<>(List.of("unshare", "-rm", "sh", "-c",
                "mount -t tmpfs -o size=" + size + " tmpfs \"$VM_DIR\" || exit 99; "
                + "\"$@\"; code=$?; ls \"$VM_DIR\"; mount -o remount,size=9m \"$VM_DIR\"; \"$@\" || exit 98; exit $code", "sh"));
        inside.addAll(process("fetch").command());
        Files.createDirectories(vmDir);
        ProcessBuilder builder = process().command(inside);
        Process process;
        try {
            process = builder.start();
        } catch (IOException noUnshare) {
            assumeTrue(false, "no unshare here");
            return;
        }
        String output = output(process);
        assumeTrue(process.waitFor() != 99 && !output.startsWith("unshare:"), "no mounts here: " + output);
        assertEquals(1, process.exitValue(), output);
        assertFalse(output.contains("\tat "), output);
        assertTrue(output.contains("No space left on device): make room"), output);
        boolean kept = output.contains("dfly-7.7.7.iso.bz2.part\n");
        assertTrue((size.equals("4k") || kept) && !output.contains("dfly-7.7.7.iso.part\n"), output);
        assertTrue(output.contains("is complete"), output);
    }

    // VM_IMAGE and files that are there already

    @Test
    void takesALocalImagePackedOrNot() throws IOException {
        mirror.close();
        Path plain = Files.write(scratch.resolve("my, image.iso"), image);
        settings.put("VM_IMAGE", plain.toString());
        assertFetched(run());
        assertTrue(run().err.contains("already there"));
        byte[] other = image(2);
        settings.put("VM_IMAGE", Files.write(scratch.resolve("other.iso.bz2"), packed(other)).toString());
        assertEquals(0, run().code);
        assertArrayEquals(other, Files.readAllBytes(iso()));
        settings.remove("VM_IMAGE");
        assertTrue(run().err.contains("already there"), "VM_IMAGE is needed once only");
    }

    @Test
    void refusesALocalImageThatIsNone() throws IOException {
        settings.put("VM_IMAGE", scratch.resolve("nowhere.iso").toString());
        assertFailed(run(), 69, "nowhere.iso cannot be read");
        settings.put("VM_IMAGE", Files.write(scratch.resolve("half.iso.bz2"), Arrays.copyOf(archive, 50_000)).toString());
        assertFailed(run(), 1, "half.iso.bz2 cannot be unpacked");
        settings.put("VM_IMAGE", Files.write(scratch.resolve("a.iso"), image).toString());
        settings.put("DFLY_VERSION", "6.4.2");
        assertFailed(run(), 1, "fdab09ac37cf427b8c01de5d54bfd1d7");
        assertFalse(Files.exists(vmDir.resolve("dfly-6.4.2.iso")));
        assertEquals(0, run("--trust-mirror").code);
    }

    @Test
    void anIsoThatChangedSinceIsNotReplacedUnasked() throws IOException {
        assertFetched(run());
        Files.writeString(iso(), "something else");
        Result changed = run();
        assertEquals(1, changed.code);
        assertTrue(changed.err.contains("is not a file that was verified here: remove it"), changed.err);
        assertEquals("something else", Files.readString(iso()));
        assertEquals(1, downloads().size());
    }

    // Proxies

    @Test
    void goesThroughTheProxyOfTheEnvironment() throws Exception {
        settings.put("VM_MIRROR", "http://mirror.invalid/iso-images/");
        ProcessBuilder builder = process("fetch");
        builder.environment().put("http_proxy", mirror.url());
        Process process = builder.start();
        String output = output(process);
        assertEquals(0, process.waitFor(), output);
        assertEquals(List.of("GET http://mirror.invalid" + PATH + " 200"), downloads());
    }

    @Test
    void translatesProxyVariables() {
        assertEquals(Map.of("http.nonProxyHosts", "localhost|*.localhost|127.0.0.1|*.127.0.0.1"), VmSetup.proxies(Map.of()));
        assertEquals(Map.of("https.proxyHost", "proxy.example", "https.proxyPort", "3128", "http.proxyHost", "p", "http.proxyPort", "80",
                "http.nonProxyHosts", "localhost|*.localhost|127.0.0.1|*.127.0.0.1|bsd.org|*.bsd.org|*"),
                VmSetup.proxies(Map.of("https_proxy", "http://proxy.example:3128/", "HTTP_PROXY", "p:80", "no_proxy", ".bsd.org, *")));
    }

    // Disk

    @Test
    void makesABlankDiskAndKeepsOneThatIsThere() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        settings.put("VM_NAME", "my-vm");
        Path disk = vmDir.resolve("my-vm.qcow2");
        assertEquals(new Result(0, disk + "\n", ""), run("disk", "--disk-size", "3G"));
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(disk)));
        assertEquals(3L << 30, info(disk).getLong("virtual-size"));
        byte[] before = Files.readAllBytes(disk);
        Result kept = run("disk");
        assertEquals(2, kept.code, kept.err);
        assertTrue(kept.err.contains(disk + " is there, 0 MB. Replace it with a blank disk? Then say so with --yes"), kept.err);
        assertArrayEquals(before, Files.readAllBytes(disk));
        assertEquals(0, run("disk", "--yes").code);
        assertEquals(20L << 30, info(disk).getLong("virtual-size"));
        assertEquals(0, Stream.of(vmDir.toFile().list()).filter(name -> name.endsWith(".new")).count());
    }

    @Test
    void refusesADiskInUse() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        Path disk = vmDir.resolve("dfly-vm.qcow2");
        assertEquals(0, run("disk").code);
        Process qemu = new ProcessBuilder("qemu-io", disk.toString()).start(); // locks the disk as a VM does
        try {
            qemu.getOutputStream().write("read 0 512\n".getBytes(UTF_8));
            qemu.getOutputStream().flush();
            assertEquals('q', qemu.getInputStream().read()); // its prompt: the disk is open
            Result running = run("disk", "--yes");
            assertEquals(69, running.code, running.err);
            assertTrue(running.err.contains("the VM dfly-vm is running: stop it first: vm-ctl stop"), running.err);
        } finally {
            qemu.destroyForcibly().waitFor();
        }
        List<String> hold = new ArrayList<>(process("hold", vmDir.resolve("dfly-vm.lock").toString()).command());
        hold.replaceAll(word -> word.equals("VmSetup") ? "VmSetupTest" : word);
        Process holder = new ProcessBuilder(hold).start();
        assertEquals('h', holder.getInputStream().read());
        Result locked = run("disk", "--yes");
        holder.destroyForcibly().waitFor();
        assertEquals(69, locked.code);
        assertTrue(locked.err.contains("vm-ctl start (pid " + holder.pid()), locked.err);
    }

    private static JsonObject info(Path disk) throws Exception {
        return JsonParser.object().from(qemu("qemu-img", "info", "--output=json", disk.toString()));
    }

    private static String qemu(String... command) throws Exception {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = output(process);
        assertEquals(0, process.waitFor(), output);
        return output;
    }

    // The doctor

    private Map<String, JsonObject> checks(int code, String... args) throws Exception {
        List<String> all = new ArrayList<>(List.of("check", "--json"));
        all.addAll(List.of(args));
        settings.putIfAbsent("VM_ACCEL", "tcg");
        Result result = run(all.toArray(String[]::new));
        assertEquals(code, result.code, result.out + result.err);
        JsonObject said = JsonParser.object().from(result.out);
        assertEquals(code == 0, said.getBoolean("ok"));
        Map<String, JsonObject> checks = new HashMap<>();
        said.getArray("checks").forEach(check -> checks.put(((JsonObject) check).getString("name"), (JsonObject) check));
        return checks;
    }

    @Test
    void theDoctorNamesWhatIsMissingAndHowToMendIt() throws Exception {
        Map<String, String> commands = Map.of("apt-get", "sudo apt-get install openssh-client", "dnf", "sudo dnf install openssh-clients",
                "pacman", "sudo pacman -S openssh", "brew", "brew install openssh");
        for (Map.Entry<String, String> manager : commands.entrySet()) {
            Path bin = Files.createDirectories(scratch.resolve(manager.getKey()));
            Path program = Files.writeString(bin.resolve(manager.getKey()), "");
            Files.setPosixFilePermissions(program, PosixFilePermissions.fromString("rwx------"));
            searchPath = bin.toString();
            Map<String, JsonObject> checks = checks(69);
            assertEquals("fail", checks.get("ssh").getString("state"));
            assertEquals(manager.getValue(), checks.get("ssh").getString("fix"));
            assertEquals("note", checks.get("rsync").getString("state"), "rsync is optional");
            assertEquals("fail", checks.get("qemu-img").getString("state"));
        }
        Result text = run("check", "--accel", "tcg");
        assertEquals(69, text.code);
        assertTrue(text.out.contains("fail  ssh          not on PATH -> "), text.out);
        assertFalse(Files.exists(vmDir), "a doctor leaves nothing behind");
    }

    @Test
    void theDoctorLooksAtPortMemorySpaceAndMirror() throws Exception {
        searchPath = "/nonexistent"; // QEMU takes its time
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            String port = Integer.toString(socket.getLocalPort());
            settings.put("VM_SSH_PORT", port);
            JsonObject taken = checks(69).get("port");
            assertEquals("fail", taken.getString("state"));
            assertTrue(taken.getString("detail").contains("(pid " + ProcessHandle.current().pid() + ")"), taken.getString("detail"));
        }
        assertEquals("ok", checks(69).get("port").getString("state"));
        assertEquals("ok", checks(69, "--memory", "64M").get("memory").getString("state"));
        assertEquals("fail", checks(69, "--memory", "999999G").get("memory").getString("state"));
        assertEquals("fail", checks(69, "--memory", "999999G").get("space").getString("state"));
        settings.remove("VM_SSH_PORT");
        assertEquals("fail", checks(69, "--vm-dir", "/proc/x/y").get("space").getString("state"));
        assertTrue(checks(69).get("installer").getString("detail").contains("has DragonFly 7.7.7"));
        assertTrue(checks(69, "--dfly-version", "1.0").get("installer").getString("detail").contains("has no DragonFly 1.0, but 7.7.7"));
        mirror.close();
        assertEquals("fail", checks(69).get("installer").getString("state"));
        settings.put("VM_IMAGE", root.resolve("iso-images/" + ARCHIVE).toString());
        assertEquals("ok", checks(69).get("installer").getString("state"));
    }

    @Test
    void theDoctorRunsTheRealPrograms() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-system-x86_64")), "QEMU is not installed");
        Map<String, JsonObject> checks = checks(0, "--memory", "64M");
        assertTrue(checks.get("accelerator").getString("detail").equals("tcg, as set, runs a guest here"), checks.toString());
    }

    // Settings

    @Test
    void anOptionBeatsTheEnvironmentWhichBeatsVmEnv() {
        VmSetup setup = new VmSetup();
        VmSetup.commandLine(setup, new VmSetup.Settings(Map.of("DFLY_VERSION", "2", "VM_NAME", "", "VM_DIR", ""),
                Map.of("DFLY_VERSION", "3", "VM_NAME", "file"))).parseArgs("disk", "--disk-size", "30G");
        assertEquals("2", setup.version);
        assertEquals("file", setup.name);
        assertEquals("30G", setup.diskSize);
        assertEquals(Path.of(System.getProperty("user.home"), ".go-synth/vm"), setup.vmDir);
        assertEquals("https://avalon.dragonflybsd.org/iso-images/", setup.mirrors.get(1).toString());
        VmSetup.commandLine(setup, new VmSetup.Settings(Map.of("DFLY_VERSION", "2"), Map.of())).parseArgs("--dfly-version", "1");
        assertEquals("1", setup.version);
    }

    @Test
    void aBadValueIsNamedByItsVariable() {
        Map<String, String> values = Map.of("VM_NAME", "a/b", "DFLY_VERSION", "../x", "VM_DISK_SIZE", "20", "VM_MIRROR", "ftp://x/");
        for (Map.Entry<String, String> bad : values.entrySet()) {
            settings.put(bad.getKey(), bad.getValue());
            Result result = run("disk");
            assertEquals(2, result.code, result.err);
            assertTrue(result.err.startsWith("vm-setup: " + bad.getKey() + " in the environment: "), result.err);
            assertEquals(1, result.err.lines().count(), result.err);
            settings.remove(bad.getKey());
        }
        assertFalse(Files.exists(vmDir));
    }

    @Test
    void usageErrorsAreOneLineWithASuggestion() {
        Result result = run("chek");
        assertEquals(2, result.code);
        assertTrue(result.err.contains("did you mean check"), result.err);
        assertEquals(2, run("--nonsense").code);
    }

    @Test
    void aDirectoryThatCannotBeWrittenIsNamed() {
        settings.put("VM_DIR", "/proc/nowhere");
        Result result = run();
        assertEquals(69, result.code);
        assertTrue(result.err.contains("cannot write to /proc/nowhere"), result.err);
    }

    @Test
    void builtCommands() {
        assertEquals(List.of("qemu-img", "create", "-q", "-f", "qcow2", "/a b/c,d.qcow2", "21474836480"),
                VmSetup.blankDisk(Path.of("/a b/c,d.qcow2"), 20L << 30));
    }

    @Test
    void everyCommandHasHelpWithAnExampleAndExitCodes() {
        for (String command : List.of("", "fetch", "disk", "check")) {
            Result help = run(Stream.of(command, "--help").filter(word -> !word.isEmpty()).toArray(String[]::new));
            assertEquals(0, help.code);
            assertTrue(help.out.contains("Example") && help.out.contains("Exit codes: 0"), help.out);
        }
    }
}
