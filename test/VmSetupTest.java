import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.grack.nanojson.JsonObject;
import com.grack.nanojson.JsonParser;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorOutputStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** VmSetup against a real HTTP server, real files, real processes. The images are small; everything else is as it is in use. */
@Tag("unit")
final class VmSetupTest {
    private static final String ARCHIVE = "dfly-x86_64-7.7.7_REL.iso.bz2";
    private static final String PATH = "/iso-images/" + ARCHIVE;
    private static final Duration LIMIT = Duration.ofSeconds(120);
    private static byte[] image;
    private static byte[] archive;
    private static SSLContext tls;
    private static final SSLSocketFactory USUAL = HttpsURLConnection.getDefaultSSLSocketFactory();

    @TempDir
    Path scratch;
    private Path vmDir;
    private Path root;
    private Mirror mirror;
    private final Map<String, String> settings = new HashMap<>();
    /** No QEMU, whose start takes longer than a whole download here. */
    private String searchPath = "/nonexistent";
    private Duration silence = LIMIT;
    private long largestArchive = 1 << 30;
    private long largestIso = 1 << 30;
    private Map<String, VmSetup.Sums> known = VmSetup.Sums.KNOWN;
    /** The mirror of these tests speaks plain http, and nobody knows the sums of their image. */
    private List<String> always = List.of("--trust-mirror");
    private Path kvm = Path.of("/nonexistent");

    @BeforeAll
    static void makeImage() throws IOException {
        image = image(1);
        archive = packed(image);
    }

    private static byte[] image(long seed) {
        byte[] bytes = new byte[700_000];
        new Random(seed).nextBytes(bytes);
        System.arraycopy("CD001".getBytes(UTF_8), 0, bytes, 0x8001, 5); // where ISO 9660 has it
        return bytes;
    }

    private static String digest(String algorithm, byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance(algorithm).digest(bytes));
        } catch (NoSuchAlgorithmException impossible) {
            throw new AssertionError(impossible);
        }
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
        HttpsURLConnection.setDefaultSSLSocketFactory(USUAL);
    }

    private void serve(String version, byte[] iso, byte[] packed) throws IOException {
        String name = "dfly-x86_64-" + version + "_REL.iso";
        Files.write(root.resolve("iso-images/" + name + ".bz2"), packed);
        Files.writeString(root.resolve("iso-images/md5.txt"), "MD5 (" + name + ") = " + digest("MD5", iso) + "\nMD5 (" + name
                + ".bz2) = " + digest("MD5", packed) + "\n");
    }

    private Script.Result run(String... args) {
        VmSetup command = new VmSetup();
        command.limits = new VmSetup.Limits(silence, Duration.ofMillis(2), largestArchive, largestIso);
        command.known = known;
        command.environment = settings;
        command.programs = new VmSetup.Programs(searchPath);
        command.kvm = kvm;
        List<String> all = new ArrayList<>(always);
        all.addAll(List.of(args));
        return Script.call(VmSetup.commandLine(command, new VmSetup.Settings().add(settings, "the environment")), all.toArray(String[]::new));
    }

    /** As a person runs it, in a process of its own. */
    private ProcessBuilder process(String... args) throws IOException {
        List<String> command = Script.command("VmSetup");
        command.addAll(always);
        command.addAll(List.of(args));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.environment().keySet().removeIf(name -> name.toLowerCase(Locale.ROOT).endsWith("_proxy"));
        builder.environment().putAll(settings);
        Path bin = Files.createDirectories(scratch.resolve("bin"));
        Path qemu = Files.writeString(bin.resolve("qemu-system-x86_64"), "#!/bin/sh\nexit 33\n"); // the real one takes seconds
        Files.setPosixFilePermissions(qemu, PosixFilePermissions.fromString("rwx------"));
        builder.environment().put("PATH", bin + ":" + System.getenv("PATH"));
        return builder;
    }

    /** What a process prints, and the code it ends with. */
    private static Script.Result ended(Process process) throws Exception {
        String output = new String(process.getInputStream().readAllBytes(), UTF_8);
        assertTrue(process.waitFor(LIMIT.toSeconds(), TimeUnit.SECONDS), "it hangs");
        return new Script.Result("vm-setup", process.exitValue(), "", output);
    }

    private static void await(Callable<Boolean> condition) throws Exception {
        long deadline = System.nanoTime() + LIMIT.toNanos();
        while (!condition.call()) {
            assertTrue(System.nanoTime() < deadline, "it did not happen within " + LIMIT);
            Thread.sleep(5);
        }
    }

    private Path iso() {
        return vmDir.resolve("dfly-7.7.7.iso");
    }

    private Path part() {
        return vmDir.resolve("dfly-7.7.7.iso.bz2.part");
    }

    private static long size(Path file) throws IOException {
        return Files.exists(file) ? Files.size(file) : 0;
    }

    private void assertFetched(Script.Result result) throws IOException {
        assertEquals(0, result.exitCode(), result.err());
        assertEquals(iso() + "\n", result.out());
        assertComplete();
    }

    private void assertComplete() throws IOException {
        assertArrayEquals(image, Files.readAllBytes(iso()));
        try (Stream<Path> files = Files.list(vmDir)) {
            assertEquals("[dfly-7.7.7.iso, dfly-7.7.7.iso.lock]", files.map(Path::getFileName) // accel.json: where QEMU is installed
                    .filter(file -> !file.endsWith("accel.json")).sorted().toList().toString());
        }
    }

    private void assertFailed(Script.Result result, int code, String... words) throws IOException {
        assertEquals(code, result.exitCode(), result.err());
        assertEquals("", result.out());
        String last = result.err().lines().reduce("", (first, second) -> second);
        for (String word : words) {
            assertTrue(last.contains(word), "'" + word + "' is missing in: " + result.err());
        }
        assertFalse(result.err().contains("\tat "), result.err());
        if (Files.exists(vmDir)) {
            try (Stream<Path> files = Files.list(vmDir)) {
                assertEquals(List.of(), files.filter(file -> file.toString().matches(".*iso(\\.part)?")).toList(), "it did not pass");
            }
        }
    }

    private List<String> downloads() {
        return mirror.requests().stream().filter(request -> request.contains(ARCHIVE)).toList();
    }

    /** Leaves the first 400,000 bytes of the archive in the part file, as a run that was cut off does. */
    private void haveABeginning() throws IOException {
        mirror.fault("ignore-ranges", "drop=400000");
        assertFailed(run(), 69, PATH + " failed 5 times in a row", "The part is kept: run it again to resume");
        assertEquals(400_000, Files.size(part()));
        mirror.heal().forgetRequests();
    }

    // Download

    @Test
    void fetchesOnce() throws IOException {
        Script.Result first = run();
        assertFetched(first);
        assertTrue(first.err().contains("no checksums are known for DragonFly 7.7.7: only the mirror's own md5.txt is compared"), first.err());
        assertTrue(first.err().contains("is complete, verified"), first.err());
        assertEquals(List.of("GET " + PATH + " 200"), downloads());
        assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(vmDir)));
        mirror.forgetRequests();
        run("fetch").is(0, iso() + "\n", "");
        assertEquals(List.of(), mirror.requests());
    }

    @Test
    void aReleaseMustHaveItsKnownSums() throws IOException {
        always = List.of();
        settings.put("DFLY_VERSION", "6.4.2");
        serve("6.4.2", image, archive);
        assertFailed(run(), 1, "906095312c4a4ac0577fb91d5eb87033", digest("MD5", archive));
        assertEquals(List.of("GET /iso-images/md5.txt 200"), mirror.requests(), "md5.txt was wrong enough");
        // A mirror that lies in md5.txt and serves another file is found out by the file.
        Files.writeString(root.resolve("iso-images/md5.txt"), "MD5 (dfly-x86_64-6.4.2_REL.iso.bz2) = 906095312c4a4ac0577fb91d5eb87033\n");
        assertFailed(run(), 1, "not 906095312c4a4ac0577fb91d5eb87033");
    }

    @Test
    void trustMirrorIsLoudAndIsNotForgotten() throws IOException {
        always = List.of();
        settings.put("DFLY_VERSION", "6.4.2");
        serve("6.4.2", image, archive);
        Script.Result trusted = run("fetch", "--trust-mirror");
        assertEquals(0, trusted.exitCode(), trusted.err());
        assertTrue(trusted.err().contains("WARNING: --trust-mirror") && trusted.err().contains("NOT checked"), trusted.err());
        Path iso = vmDir.resolve("dfly-6.4.2.iso");
        assertArrayEquals(image, Files.readAllBytes(iso));
        assertEquals(0, run("--trust-mirror").exitCode());
        Script.Result later = run();
        assertEquals(1, later.exitCode(), later.err());
        assertTrue(later.err().contains(iso + " is not the DragonFly 6.4.2 that is known here (its MD5 is "), later.err());
        assertArrayEquals(image, Files.readAllBytes(iso), "it is the user's to remove");
        Files.delete(iso);
        mirror.fault("md5=wrong");
        assertFailed(run("--trust-mirror"), 1, "has the MD5");
    }

    /** A known sum that the file does not have, by which it is refused, and when: before the download, or after it. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            archiveMd5    | md5.txt: dfly-x86_64-7.7.7_REL.iso.bz2 has the MD5 | 0
            archiveSha256 | dfly-x86_64-7.7.7_REL.iso.bz2 has the SHA-256      | 1
            isoMd5        | dfly-x86_64-7.7.7_REL.iso.bz2, unpacked, has the MD5 | 1
            """)
    void everyKnownSumCounts(String wrong, String words, int downloads) throws IOException {
        always = List.of();
        String other = "0".repeat(32);
        known = Map.of("7.7.7", new VmSetup.Sums(wrong.equals("archiveMd5") ? other : digest("MD5", archive),
                wrong.equals("archiveSha256") ? other : digest("SHA-256", archive), wrong.equals("isoMd5") ? other : digest("MD5", image)));
        assertFailed(run(), 1, words, "not " + other + ", so it is damaged, or another file");
        assertEquals(downloads, downloads().size());
        assertEquals(List.of(), parts());
    }

    /** Also where the mirror's md5.txt does not list the ISO. */
    @Test
    void aKnownSumOfTheIsoCountsByItself() throws IOException {
        always = List.of();
        Path sums = root.resolve("iso-images/md5.txt");
        Files.writeString(sums, Files.readString(sums).replaceFirst("(?m)^MD5 \\(.*iso\\).*\n", ""));
        known = Map.of("7.7.7", new VmSetup.Sums(null, null, "0".repeat(32)));
        assertFailed(run(), 1, ARCHIVE + ", unpacked, has the MD5 " + digest("MD5", image) + ", not 0000");
    }

    /** Names with other characters cannot be a release's. */
    @Test
    void readsMd5Txt() {
        String sum = "0123456789abcdef0123456789abcdef";
        assertEquals(Map.of("a-1.iso", sum), VmSetup.Mirrors.parse("# x\nMD5 (a-1.iso) = " + sum + "\r\nMD5 (d) = 12\nMD5 (a b) = " + sum + "\n"));
    }

    /** What a mirror may do, the exit code, the words of the one line that follows, and how often the archive was asked for. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            md5=wrong                            |  1 | has the MD5 % damaged, or another file                        | 1
            404=/iso-images/%s                   | 69 | answered 404, not found % Choose another mirror with VM_MIRROR | 1
            404=/iso-images/md5.txt              | 69 | md5.txt answered 404, not found                               | 0
            503=/iso-images/%s                   | 69 | failed 5 times in a row % answered 503                        | 5
            503=/iso-images/md5.txt              | 69 | cannot be reached % answered 503                              | 0
            html=/iso-images/%s                  |  1 | has the MD5 % damaged, or another file                        | 1
            html=/iso-images/md5.txt             | 69 | md5.txt lists no checksums, but a web page                         | 0
            stall=/iso-images/md5.txt            | 69 | cannot be reached (Read timed out)                            | 0
            stall=/iso-images/%s                 | 69 | failed 5 times in a row (Read timed out)                      | 5
            moved=https://elsewhere.example      | 69 | answered 302, it moved to https://elsewhere.example/iso-images/md5.txt | 0
            """)
    void saysWhatAMirrorDid(String fault, int code, String words, int downloads) throws IOException {
        mirror.fault(fault.replace("%s", ARCHIVE));
        silence = fault.startsWith("stall") ? Duration.ofMillis(500) : LIMIT; // md5.txt must come within
        assertFailed(run(), code, words.split(" % "));
        assertEquals(downloads, downloads().size());
        assertEquals(0, size(part()));
    }

    @Test
    void saysWhichFileIsDamaged() throws IOException {
        serve("7.7.7", image(2), archive);
        assertFailed(run(), 1, ARCHIVE + ", unpacked, has the MD5");
        serve("7.7.7", image, archive);
        byte[] flipped = archive.clone();
        flipped[200_000] ^= 1;
        for (byte[] damaged : List.of(Arrays.copyOf(archive, 400_000), flipped, Arrays.copyOf(archive, 1), new byte[] {'B', 0})) {
            serve("7.7.7", image, damaged);
            for (String path : List.of("/nonexistent", System.getenv("PATH"))) { // Java's unpacker, and lbzip2's if there is one
                searchPath = path;
                assertFailed(run(), 1, ARCHIVE + " cannot be unpacked", "truncated, or damaged");
                assertFalse(Files.exists(part()));
            }
        }
        serve("7.7.7", image, new byte[0]);
        assertFailed(run(), 1, "cannot be unpacked");
    }

    @Test
    void namesTheReleasesThatThereAre() throws IOException {
        Path sums = root.resolve("iso-images/md5.txt");
        for (String version : List.of("6.4.0", "6.4.2")) {
            Files.writeString(sums, "MD5 (dfly-x86_64-" + version + "_REL.iso.bz2) = " + "0".repeat(32) + "\n", StandardOpenOption.APPEND);
        }
        assertFailed(run("--dfly-version", "9.9"), 69, "has no DragonFly 9.9, but " + ARCHIVE
                + ", dfly-x86_64-6.4.2_REL.iso.bz2, dfly-x86_64-6.4.0_REL.iso.bz2 (choose with DFLY_VERSION)");
    }

    private static int freePort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return socket.getLocalPort();
        }
    }

    @Test
    void goesToTheNextMirror() throws IOException {
        try (Mirror broken = new Mirror(root).start().fault("404=" + PATH)) {
            settings.put("VM_MIRROR", "http://127.0.0.1:" + freePort() + "/, http://mirror.invalid " + broken.url() + "iso-images "
                    + mirror.url() + "iso-images");
            Script.Result result = run();
            assertFetched(result);
            for (String word : List.of("/ cannot be reached (Connection refused", "cannot be reached (unknown host mirror.invalid",
                    "answered 404, not found")) {
                assertTrue(result.err().contains(word), result.err());
            }
        }
    }

    @Test
    void survivesDroppedConnections() throws IOException {
        mirror.fault("drop=100000");
        assertFetched(run());
        int connections = downloads().size();
        assertTrue(connections >= 7 && connections <= 9, downloads().toString());
        assertTrue(downloads().stream().skip(1).allMatch(one -> one.matches(".* bytes=\\d00000- 206")), downloads().toString());
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
    @ValueSource(strings = {"no-length", "ignore-ranges", "rate=2000000"})
    void takesServersAsTheyAre(String fault) throws IOException {
        mirror.fault(fault, "drop=400000");
        run(); // some of them give up here
        mirror.heal().fault(fault);
        assertFetched(run());
    }

    @Test
    void goesOnWhereAnEarlierRunOrMirrorEnded() throws IOException {
        haveABeginning();
        assertFetched(run());
        assertEquals(List.of("GET " + PATH + " bytes=400000- 206"), downloads());
        Files.delete(iso());
        mirror.forgetRequests();
        try (Mirror other = new Mirror(root).start().fault("ignore-ranges", "drop=400000")) {
            settings.put("VM_MIRROR", other.url() + "iso-images," + mirror.url() + "iso-images");
            assertFetched(run());
            assertEquals(List.of("GET " + PATH + " bytes=400000- 206"), downloads());
        }
    }

    @Test
    void aFileThatWasPublishedAgainIsNotStitchedToTheOldOne() throws IOException {
        haveABeginning();
        byte[] newer = image(2);
        serve("7.7.7", newer, packed(newer));
        Script.Result result = run();
        assertEquals(0, result.exitCode(), result.err());
        assertTrue(result.err().contains("; once more from the start"), result.err());
        assertEquals("GET " + PATH + " 200", downloads().get(1));
        assertArrayEquals(newer, Files.readAllBytes(iso()));
        assertFalse(Files.exists(part()), "the old one's beginning is of no use");
    }

    /** After a power failure; and of a file that is shorter by now. */
    @ParameterizedTest
    @CsvSource({"400000,0", "400000,100000", "2000000,100000"})
    void aDamagedBeginningCostsASecondDownloadNotAFailure(int length, int hole) throws IOException {
        haveABeginning();
        byte[] bytes = Arrays.copyOf(Files.readAllBytes(part()), length);
        Arrays.fill(bytes, hole, 200_000, (byte) 0);
        Files.write(part(), bytes);
        Script.Result result = run();
        assertFetched(result);
        assertTrue(result.err().contains("; once more from the start"), result.err());
        assertTrue(downloads().get(downloads().size() - 1).endsWith(PATH + " 200"), downloads().toString());
    }

    @Test
    void aCompleteArchiveIsNotSentAgain() throws IOException {
        Files.createDirectories(vmDir);
        // What a process leaves behind that was killed while it unpacked what it had downloaded.
        Files.write(part(), archive);
        Files.write(vmDir.resolve("dfly-7.7.7.iso.part"), Arrays.copyOf(image, 123_456));
        assertFetched(run());
        assertEquals(List.of("GET " + PATH + " bytes=" + archive.length + "- 416"), downloads());
        Files.delete(iso());
        Files.write(part(), archive);
        mirror.fault("ignore-ranges");
        assertFetched(run());
    }

    // Unpacking

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            /usr/bin/bzip2 -d -c                            | 0
            cat >/dev/null; exit 1                          | 1
            exit 3                                          | 3
            '/usr/bin/bzip2 -d -c | head -c 100000; exit 1' | 1
            """)
    void anUnpackingToolIsUsedAndItsFailureNoticed(String body, int code) throws IOException {
        assumeTrue(Files.exists(Path.of("/usr/bin/bzip2")), "no bzip2 here");
        searchPath = program("lbzip2", "touch '" + scratch + "/used'; " + body) + ":" + System.getenv("PATH");
        if (code == 0) {
            assertFetched(run());
        } else {
            assertFailed(run(), 1, "lbzip2 ended with " + code);
        }
        assertTrue(Files.exists(scratch.resolve("used")));
    }

    @Test
    void anUnpackingToolThatCannotBeStartedIsNamed() throws IOException {
        Path directory = program("lbzip2", "");
        Files.writeString(directory.resolve("lbzip2"), "#!/nonexistent\n");
        searchPath = directory.toString();
        assertFailed(run(), 1, ARCHIVE + " cannot be unpacked (Cannot run program", "my bin/lbzip2");
    }

    /** Makes a program and returns its directory. */
    private Path program(String name, String body) throws IOException {
        Path file = Files.createDirectories(scratch.resolve("my bin")).resolve(name);
        Files.writeString(file, "#!/bin/sh\n" + body + "\n");
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwx------"));
        return file.getParent();
    }

    @Test
    void needsTheSameMemoryForAnyImage() throws Exception {
        ByteArrayOutputStream iso = new ByteArrayOutputStream();
        ByteArrayOutputStream packed = new ByteArrayOutputStream();
        for (int i = 0; i < 20; i++) { // 14 MB
            iso.write(image);
            packed.write(archive);
        }
        serve("7.7.7", iso.toByteArray(), packed.toByteArray());
        ProcessBuilder builder = process("fetch");
        builder.command().add(1, "-Xmx12m");
        Process process = builder.start();
        Pattern peak = Pattern.compile("VmHWM:\\s*(\\d+) kB");
        long[] kibibytes = {0};
        await(() -> {
            try (Stream<String> lines = Files.lines(Path.of("/proc/" + process.pid() + "/status"))) {
                lines.map(peak::matcher).filter(line -> line.matches()).forEach(line -> kibibytes[0] = Long.parseLong(line.group(1)));
            } catch (IOException | java.io.UncheckedIOException ended) {
                // and its peak with it
            }
            return !process.isAlive();
        });
        assertEquals(0, ended(process).exitCode());
        assertEquals(iso.size(), Files.size(iso()));
        assertTrue(kibibytes[0] > 0 && kibibytes[0] < 256 << 10, kibibytes[0] + " KiB");
    }

    // Killed, full, twice at once

    @Test
    void goesOnAfterKillMinusNine() throws Exception {
        mirror.fault("rate=500000"); // the whole archive takes 1.4 s
        Random random = new Random();
        for (int kill = 1; kill <= 3; kill++) {
            Process process = process("fetch").start();
            long target = Math.min(archive.length - 1, size(part()) + random.nextInt(archive.length / 6));
            await(() -> !process.isAlive() || size(part()) > target);
            Thread.sleep(random.nextInt(30));
            assertTrue(process.isAlive(), () -> "it ended by itself");
            String signal = kill == 1 ? "TERM" : "KILL";
            new ProcessBuilder("kill", "-" + signal, Long.toString(process.pid())).start().waitFor();
            assertEquals(signal.equals("TERM") ? 143 : 137, process.waitFor());
            assertFalse(Files.exists(iso()));
        }
        mirror.heal();
        Script.Result last = ended(process("fetch").start());
        assertEquals(0, last.exitCode(), last.err());
        assertComplete();
        // What the server sent and a killed process did not store is lost, no more: what is in the sockets, three times.
        long extra = mirror.bytesSent() - archive.length;
        assertTrue(extra < 3 * 65_536, extra + " bytes came twice: " + mirror.requests());
    }

    @Test
    void aSecondFetchNamesTheFirst() throws Exception {
        mirror.fault("rate=100000");
        Process first = process("fetch").start();
        try {
            await(() -> Files.exists(part()));
            Script.Result second = run("fetch");
            assertEquals(69, second.exitCode(), second.err());
            assertTrue(second.err().contains("vm-setup fetch (pid " + first.pid()), second.err());
        } finally {
            first.destroyForcibly().waitFor();
        }
    }

    /** On a small file system: too small for the archive, for anything, for the unpacked image. With room, it goes on. */
    @ParameterizedTest
    @ValueSource(strings = {"520k", "4k", "1m"})
    void aFullDiskIsNamedAndWhatCameIsKept(String size) throws Exception {
        List<String> inside = new ArrayList<>(List.of("unshare", "-rm", "sh", "-c",
                "mount -t tmpfs -o mode=700,size=" + size + " tmpfs \"$VM_DIR\" || exit 99; "
                + "\"$@\"; code=$?; ls \"$VM_DIR\"; mount -o remount,size=9m tmpfs \"$VM_DIR\"; \"$@\" || exit 98; exit $code", "sh"));
        inside.addAll(process("fetch").command());
        Files.createDirectories(vmDir);
        Process process;
        try {
            process = process().command(inside).start();
        } catch (IOException noUnshare) {
            assumeTrue(false, "no unshare here");
            return;
        }
        Script.Result result = ended(process);
        assumeTrue(result.exitCode() != 99 && !result.err().startsWith("unshare:"), "no mounts here: " + result.err());
        assertEquals(1, result.exitCode(), result.err());
        assertFalse(result.err().contains("\tat "), result.err());
        assertTrue(result.err().contains("cannot write to " + vmDir + " (No space left on device): make room"), result.err());
        assertTrue(size.equals("4k") || result.err().contains(part().getFileName() + "\n"), result.err());
        assertFalse(result.err().contains("iso.part\n"), result.err());
        assertTrue(result.err().contains("is complete"), result.err());
    }

    // VM_IMAGE

    @Test
    void takesALocalImagePackedOrNot() throws IOException {
        mirror.close();
        settings.put("VM_IMAGE", Files.write(scratch.resolve("my, image.iso"), image).toString());
        assertFetched(run());
        byte[] other = image(2);
        settings.put("VM_IMAGE", Files.write(scratch.resolve("other.iso.bz2"), packed(other)).toString());
        assertEquals(0, run().exitCode());
        assertArrayEquals(other, Files.readAllBytes(iso()));
        settings.remove("VM_IMAGE");
        run().is(0, iso() + "\n", "");
    }

    @Test
    void refusesALocalImageThatIsNone() throws IOException {
        settings.put("VM_IMAGE", scratch.resolve("nowhere.iso").toString());
        assertFailed(run(), 69, "nowhere.iso is no file that can be read");
        settings.put("VM_IMAGE", scratch.toString());
        assertFailed(run(), 69, scratch + " is no file that can be read");
        settings.put("VM_IMAGE", Files.writeString(scratch.resolve("text.iso"), "hello").toString());
        assertFailed(run(), 1, "text.iso holds no ISO 9660 image, so it is no installer");
        settings.put("VM_IMAGE", Files.write(scratch.resolve("half.iso.bz2"), Arrays.copyOf(archive, 50_000)).toString());
        assertFailed(run(), 1, "half.iso.bz2 cannot be unpacked");
        settings.put("VM_IMAGE", Files.write(scratch.resolve("a.iso"), image).toString());
        always = List.of();
        settings.put("DFLY_VERSION", "6.4.2");
        assertFailed(run(), 1, "fdab09ac37cf427b8c01de5d54bfd1d7");
        Script.Result trusted = run("--trust-mirror");
        assertEquals(0, trusted.exitCode());
        assertTrue(trusted.err().contains("are NOT checked\n") && trusted.err().contains("dfly-6.4.2.iso is complete, unchecked"), trusted.err());
    }

    // A mirror that lies, and the road to it

    /** A server that sends what it likes, byte by byte; its answer gets the line asked, and the position asked for. */
    private record RawMirror(ServerSocket socket) implements Closeable {
        private interface Answer {
            void write(String request, long from, OutputStream out) throws IOException, InterruptedException;
        }

        static RawMirror start(Answer answer) throws IOException {
            RawMirror mirror = new RawMirror(new ServerSocket(0, 50, InetAddress.getLoopbackAddress()));
            daemon(() -> {
                while (true) {
                    Socket client = mirror.socket.accept();
                    daemon(() -> {
                        try (client) {
                            BufferedReader in = new BufferedReader(new InputStreamReader(client.getInputStream(), UTF_8));
                            String request = in.readLine();
                            long from = 0;
                            for (String line = in.readLine(); line != null && !line.isEmpty(); line = in.readLine()) {
                                Matcher range = Pattern.compile("(?i)range: bytes=(\\d+)-").matcher(line);
                                from = range.matches() ? Long.parseLong(range.group(1)) : from;
                            }
                            answer.write(request, from, client.getOutputStream());
                        }
                        return null;
                    });
                }
            });
            return mirror;
        }

        private static void daemon(Callable<Void> task) {
            Thread thread = new Thread(new FutureTask<>(task)); // which keeps the exception of a closed socket to itself
            thread.setDaemon(true);
            thread.start();
        }

        String url() {
            return "http://127.0.0.1:" + socket.getLocalPort() + "/iso-images/";
        }

        @Override
        public void close() throws IOException {
            socket.close();
        }
    }

    private static void send(OutputStream out, String text) throws IOException {
        out.write(text.getBytes(StandardCharsets.ISO_8859_1));
        out.flush();
    }

    /** Sends something over and over, until the other side has gone. */
    private static void flood(OutputStream out, String text, int pauseMillis) throws IOException, InterruptedException {
        while (true) {
            send(out, text);
            Thread.sleep(pauseMillis);
        }
    }

    /** A mirror whose md5.txt is right, and whose archive is as written here: a head, then a text over and over. */
    private RawMirror lying(String head, String body, int pauseMillis) throws IOException {
        String sums = Files.readString(root.resolve("iso-images/md5.txt"));
        return RawMirror.start((request, from, out) -> {
            if (request.contains("md5.txt")) {
                send(out, "HTTP/1.1 200 OK\r\nContent-Length: " + sums.length() + "\r\n\r\n" + sums);
            } else {
                send(out, "HTTP/1.1 " + head.replace("FROM", "" + from).replace(" | ", "\r\n") + "\r\n\r\n");
                flood(out, body, pauseMillis);
            }
        });
    }

    private List<String> parts() throws IOException {
        try (Stream<Path> files = Files.list(vmDir)) {
            return files.map(file -> file.getFileName().toString()).filter(name -> name.endsWith(".part")).toList();
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '"', textBlock = """
            200 OK % Content-Length: 99999999999
            200 OK
            200 OK % Transfer-Encoding: chunked
            206 Partial Content % Content-Range: bytes FROM-99/99999999999
            206 Partial Content % Content-Range: bytes FROM-99/700000
            """)
    void anEndlessDownloadEndsAtTheLimitAndLeavesNothing(String head) throws IOException {
        largestArchive = 2_000_000;
        String body = "B".repeat(1000);
        try (RawMirror lying = lying(head.replace(" % ", " | "), head.contains("chunked") ? "3e8\r\n" + body + "\r\n" : body, 0)) {
            String honest = settings.put("VM_MIRROR", lying.url());
            assertFailed(run(), 1, ARCHIVE + " is larger than 2 MB, so it is no release of DragonFly");
            assertEquals(List.of(), parts());
            settings.put("VM_MIRROR", lying.url() + "," + honest);
            assertFetched(run());
        }
    }

    /** In one run, and in the next; whether it sends all of a wrong file, or a part and then ends. */
    @ParameterizedTest
    @CsvSource({"700000,false", "700000,true", "100000,false", "100000,true"})
    void whatAHostileMirrorSentDoesNotSpoilTheHonestOne(int bytes, boolean inOneRun) throws IOException {
        Files.createDirectories(scratch.resolve("hostile/iso-images"));
        Files.copy(root.resolve("iso-images/md5.txt"), scratch.resolve("hostile/iso-images/md5.txt"));
        byte[] wrong = archive.clone();
        Arrays.fill(wrong, 10, wrong.length, (byte) 7);
        Files.write(scratch.resolve("hostile" + PATH), wrong);
        try (Mirror hostile = new Mirror(scratch.resolve("hostile")).start()) {
            if (bytes < archive.length) {
                hostile.fault("ignore-ranges", "drop=" + bytes);
            }
            String honest = settings.put("VM_MIRROR", hostile.url() + "iso-images");
            if (inOneRun) {
                settings.put("VM_MIRROR", hostile.url() + "iso-images," + honest);
            } else {
                Script.Result result = run();
                assertFailed(result, bytes < archive.length ? 69 : 1);
                assertEquals(bytes < archive.length ? 1 : 0, parts().size(), "a wrong file is not kept");
                settings.put("VM_MIRROR", honest);
            }
            Script.Result result = run();
            assertFetched(result);
            assertEquals(bytes < archive.length, result.err().contains("not " + digest("MD5", archive)
                    + ", so it is damaged, or another file; once more from the start"), result.err());
        }
    }

    /** A few hundred bytes that become 5 MB, with the sum that they should have; by Java and by a native tool. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aBombStopsAtTheLimitAndLeavesNothing(boolean nativeTool) throws IOException {
        assumeTrue(!nativeTool || Files.exists(Path.of("/usr/bin/bzip2")), "no bzip2 here");
        searchPath = nativeTool ? program("lbzip2", "touch '" + scratch + "/used'; exec /usr/bin/bzip2 -d -c").toString() : "/nonexistent";
        largestIso = 2_000_000;
        serve("7.7.7", image, packed(new byte[5_000_000]));
        assertFailed(run(), 1, ARCHIVE + ", unpacked, is larger than 2 MB, so it is no release of DragonFly");
        assertEquals(nativeTool, Files.exists(scratch.resolve("used")));
        assertEquals(List.of(), parts());
        settings.put("VM_IMAGE", Files.write(scratch.resolve("bomb.iso.bz2"), packed(new byte[5_000_000])).toString());
        assertFailed(run(), 1, "bomb.iso.bz2, unpacked, is larger than 2 MB");
        settings.put("VM_IMAGE", Files.write(scratch.resolve("large.iso"), new byte[2_000_001]).toString());
        assertFailed(run(), 1, "large.iso, unpacked, is larger than 2 MB");
        settings.remove("VM_IMAGE");
        serve("7.7.7", image, archive);
        assertFetched(run());
    }

    /** A tool that is not memory safe gets no archive but one whose sum held, and whose sum somebody else vouches for. */
    @Test
    void anUnpackingToolSeesOnlyWhatIsKnown() throws Exception {
        searchPath = program("lbzip2", "touch '" + scratch + "/used'; exit 3").toString();
        mirror.fault("md5=wrong");
        assertFailed(run(), 1, "has the MD5");
        mirror.heal();
        settings.put("VM_IMAGE", Files.write(scratch.resolve("a.iso.bz2"), archive).toString());
        assertFetched(run());
        settings.remove("VM_IMAGE");
        Files.delete(iso());
        always = List.of();
        useTls();
        assertFetched(run());
        assertFalse(Files.exists(scratch.resolve("used")));
        Files.delete(iso());
        known = Map.of("7.7.7", new VmSetup.Sums(digest("MD5", archive), digest("SHA-256", archive), digest("MD5", image)));
        assertFailed(run(), 1, "lbzip2 ended with 3");
        assertTrue(Files.exists(scratch.resolve("used")));
    }

    /** Puts the mirror of this test on https, with a key that its clients trust. */
    private void useTls() throws Exception {
        if (tls == null) {
            Path keys = scratch.resolve("keys");
            String password = "secret"; // keytool wants one
            assertEquals(0, new ProcessBuilder(Path.of(System.getProperty("java.home"), "bin/keytool").toString(), "-genkeypair", "-keyalg", "EC",
                    "-alias", "a", "-dname", "CN=a", "-ext", "san=ip:127.0.0.1", "-keystore", keys.toString(), "-storepass", password)
                    .redirectError(ProcessBuilder.Redirect.DISCARD).start().waitFor());
            KeyStore store = KeyStore.getInstance(keys.toFile(), password.toCharArray());
            KeyManagerFactory own = KeyManagerFactory.getInstance("PKIX");
            own.init(store, password.toCharArray());
            TrustManagerFactory trusted = TrustManagerFactory.getInstance("PKIX");
            trusted.init(store);
            tls = SSLContext.getInstance("TLS");
            tls.init(own.getKeyManagers(), trusted.getTrustManagers(), null);
        }
        HttpsURLConnection.setDefaultSSLSocketFactory(tls.getSocketFactory());
        mirror.close();
        mirror = new Mirror(root).startTls(tls);
        settings.put("VM_MIRROR", mirror.url() + "iso-images/");
    }

    /** Whose word counts. The sums known here are right, wrong, or none are; plain or https; with and without --trust-mirror. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            none  | http  | false | 2 | is skipped, as no checksums are known for DragonFly 7.7.7, and over http % this release needs an https mirror, or --trust-mirror
            none  | http  | true  | 0 | no checksums are known for DragonFly 7.7.7: only the mirror's own md5.txt is compared
            none  | https | false | 0 | no checksums are known for DragonFly 7.7.7: only the mirror's own md5.txt is compared
            none  | https | true  | 0 | no checksums are known for DragonFly 7.7.7: only the mirror's own md5.txt is compared
            wrong | http  | false | 1 | not 00000000000000000000000000000000, so it is damaged, or another file
            wrong | http  | true  | 0 | WARNING: --trust-mirror: the known checksums of DragonFly 7.7.7 are NOT checked: only the mirror's own md5.txt is compared
            wrong | https | false | 1 | not 00000000000000000000000000000000, so it is damaged, or another file
            wrong | https | true  | 0 | WARNING: --trust-mirror: the known checksums of DragonFly 7.7.7 are NOT checked: only the mirror's own md5.txt is compared
            right | http  | false | 0 | is complete, verified
            right | http  | true  | 0 | WARNING: --trust-mirror
            right | https | false | 0 | is complete, verified
            right | https | true  | 0 | WARNING: --trust-mirror
            """)
    void whoseWordCounts(String sums, String scheme, boolean trust, int code, String words) throws Exception {
        always = trust ? List.of("--trust-mirror") : List.of();
        known = sums.equals("none") ? Map.of() : Map.of("7.7.7", sums.equals("right")
                ? new VmSetup.Sums(digest("MD5", archive), digest("SHA-256", archive), digest("MD5", image))
                : new VmSetup.Sums("0".repeat(32), null, null));
        if (scheme.equals("https")) {
            useTls();
        }
        Script.Result result = run();
        if (code == 0) {
            assertFetched(result);
            assertTrue(result.err().contains(words), result.err());
        } else {
            assertFailed(result, code, words.split(" % "));
            assertEquals(List.of(), downloads(), "it was refused before the download");
            assertEquals(code == 2, mirror.requests().isEmpty());
        }
    }

    @Test
    void theDoctorNamesAMirrorThatNeedsTrust() throws Exception {
        always = List.of();
        searchPath = "/nonexistent";
        assertSays(checks(69), "installer", "fail", "no checksums are known for DragonFly 7.7.7, and over http");
    }

    @Test
    void aRedirectLeadsNeitherAwayFromHttpsNorRoundAndRound() throws Exception {
        always = List.of();
        useTls();
        mirror.fault("moved=http://127.0.0.1:1");
        assertFailed(run(), 69, "answered 302, it moved to http://127.0.0.1:1/iso-images/md5.txt");
        mirror.forgetRequests();
        mirror.fault("moved=" + mirror.url().replaceFirst("/$", ""));
        assertFailed(run(), 69, "cannot be reached (", "redirected too many");
        assertTrue(mirror.requests().size() <= 20, mirror.requests().size() + " requests");
    }

    /** Never silent for long, and never done: what comes before a body, a body, what comes before a piece of it. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', ignoreLeadingAndTrailingWhitespace = false, textBlock = """
            md5.txt|HTTP/1.1 200 OK~X: |x|5
            md5.txt|HTTP/1.1 200 OK~~|x|5
            md5.txt|HTTP/1.1 200 OK~|X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy~|0
            .bz2|HTTP/1.1 200 OK~X: |x|5
            .bz2|HTTP/1.1 200 OK~~|B|5
            .bz2|HTTP/1.1 200 OK~Content-Length: 700000~~|B|5
            .bz2|HTTP/1.1 200 OK~Transfer-Encoding: chunked~~1;|x|5
            """)
    void aMirrorThatTricklesIsGivenUp(String file, String head, String text, int pauseMillis) throws IOException {
        silence = Duration.ofMillis(300);
        String sums = Files.readString(root.resolve("iso-images/md5.txt"));
        try (RawMirror slow = RawMirror.start((request, from, out) -> {
            if (!request.contains(file)) {
                send(out, "HTTP/1.1 200 OK\r\nContent-Length: " + sums.length() + "\r\n\r\n" + sums);
            } else {
                send(out, head.replace("~", "\r\n"));
                flood(out, text.replace("~", "\r\n"), pauseMillis);
            }
        })) {
            settings.put("VM_MIRROR", slow.url());
            assertFailed(run(), 69, pauseMillis == 0 ? "iso-images/" : "sends less than a kilobyte a second");
        }
    }

    /** Each connection brings something, and nothing comes of it. */
    @Test
    void aMirrorThatSendsAByteForEachRequestIsGivenUp() throws IOException {
        String sums = Files.readString(root.resolve("iso-images/md5.txt"));
        try (RawMirror slow = RawMirror.start((request, from, out) -> send(out, request.contains("md5.txt")
                ? "HTTP/1.1 200 OK\r\nContent-Length: " + sums.length() + "\r\n\r\n" + sums
                : "HTTP/1.1 " + (from == 0 ? "200 OK" : "206 Partial Content\r\nContent-Range: bytes " + from + "-9/700000")
                + "\r\nContent-Length: 100\r\n\r\nB"))) {
            settings.put("VM_MIRROR", slow.url());
            assertFailed(run(), 69, "failed 5 times in a row", "The part is kept");
            assertEquals(5, Files.size(part()));
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"600 Nonsense", "-1", "nonsense"})
    void anAnswerThatMakesNoSenseIsNoAnswer(String head) throws IOException {
        try (RawMirror lying = lying(head, "B", 0)) {
            settings.put("VM_MIRROR", lying.url());
            assertFailed(run(), 69, PATH);
        }
    }

    /** The checksum tells, whatever the header says; and what was stored of it does not spoil the next mirror's file. */
    @ParameterizedTest
    @ValueSource(strings = {"206 Partial Content % Content-Range: bytes 0-9/999999999999999999999999999999", "206 Partial Content",
        "206 Partial Content % Content-Range: bytes 5-9/10", "206 Partial Content % Content-Range: bytes 0-9/10 % Content-Length: 100000"})
    void aWrongRangeIsFoundOut(String head) throws IOException {
        largestArchive = 2_000_000;
        haveABeginning();
        try (RawMirror lying = lying(head.replace(" % ", " | "), "B".repeat(1000), 0)) {
            settings.put("VM_MIRROR", lying.url() + "," + settings.get("VM_MIRROR"));
            assertFetched(run());
        }
    }

    /** Colours, a title, U+009B, a line of its own: on the way to another mirror, at the end, and in what check prints. */
    @Test
    void aMirrorsWordsAreHarmless() throws IOException {
        try (RawMirror rude = RawMirror.start((request, from, out) -> send(out,
                "HTTP/1.1 302 Found\r\nLocation: https://x/\u001b[31mred\u001b]0;title\u0007\u009b2J" + "y".repeat(10_000) + "\r\n\r\n"))) {
            String honest = settings.put("VM_MIRROR", rude.url());
            Script.Result last = run();
            assertFailed(last, 69, "answered 302, it moved to https://x/red");
            settings.put("VM_MIRROR", rude.url() + "," + honest);
            Script.Result first = run();
            assertFetched(first);
            assertTrue(first.err().contains("it moved to https://x/red") && first.err().contains("; trying the next mirror"), first.err());
            Files.delete(iso());
            settings.put("VM_MIRROR", rude.url());
            searchPath = "/nonexistent";
            Script.Result checked = run("check");
            assertTrue(checked.out().contains("it moved to https://x/red"), checked.out());
            for (String text : List.of(last.err(), first.err(), checked.out())) {
                assertTrue(text.chars().allMatch(letter -> letter == '\n' || !Character.isISOControl(letter)), text);
                assertTrue(text.lines().allMatch(line -> line.length() < 1000), text);
            }
        }
    }

    @Test
    void anOddMd5TxtNamesNoFile() throws IOException {
        String sum = "0123456789abcdef0123456789abcdef";
        Path sums = root.resolve("iso-images/md5.txt");
        String odd = "MD5 (../../evil) = " + sum + "\nMD5 (/etc/passwd) = " + sum + "\n\0\u001b[2J\nMD5 (" + ARCHIVE + ") = ../../../../evil/etc/etc/passwd\n";
        for (String text : List.of(odd, odd.repeat(20_000), "MD5 (".repeat(300_000), "\n".repeat(2_000_000), "")) {
            Files.writeString(sums, text);
            assertFailed(run(), 69, "iso-images/");
            assertEquals(List.of("dfly-7.7.7.iso.lock"), List.of(vmDir.toFile().list()));
        }
    }

    @Test
    void aLongMd5TxtIsAShortList() throws IOException {
        Files.writeString(root.resolve("iso-images/md5.txt"), IntStream.range(1000, 6000)
                .mapToObj(i -> "MD5 (dfly-x86_64-5." + i + "_REL.iso.bz2) = " + "0".repeat(32) + "\n").collect(Collectors.joining()));
        Script.Result result = run();
        assertFailed(result, 69, "has no DragonFly 7.7.7, but dfly-x86_64-5.5999_REL.iso.bz2, ", "5.5980_REL.iso.bz2 (choose with DFLY_VERSION)");
    }

    // Proxies

    @ParameterizedTest
    @CsvSource({"'',''", "john:p%40ss@,Basic am9objpwQHNz", "john:p+s@,Basic am9objpwK3M=", "john@,Basic am9objo=", "john:p%3As@,Basic am9objpwOnM="})
    void goesThroughTheProxyOfTheEnvironment(String user, String authorization) throws Exception {
        settings.put("VM_MIRROR", "http://mirror.invalid/iso-images/");
        settings.put("http_proxy", mirror.url().replace("//", "//" + user));
        if (!authorization.isEmpty()) {
            mirror.fault("proxy=" + authorization);
        }
        assertFetched(run());
        assertTrue(downloads().contains("GET http://mirror.invalid" + PATH + " 200"), downloads().toString());
    }

    /** The mirror has another name here, because 127.0.0.1 needs no proxy. */
    @Test
    void aProxyThatCannotBeReachedIsNotBypassed() throws IOException {
        settings.put("VM_MIRROR", mirror.url().replace("127.0.0.1", "[::ffff:127.0.0.1]") + "iso-images/");
        settings.put("http_proxy", "127.0.0.1:" + freePort());
        assertFailed(run(), 69, "cannot be reached (Connection refused");
        assertEquals(List.of(), mirror.requests());
        settings.remove("http_proxy");
        assertFetched(run());
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            https | mirror.bsd.org  | https_proxy=http://u:p@proxy.example:3128/ | proxy.example:3128
            http  | mirror.bsd.org  | HTTP_PROXY=p:80                            | p:80
            http  | mirror.bsd.org  | https_proxy=p:80                           | direct
            http  | bsd.org         | http_proxy=p:80 no_proxy=.bsd.org          | direct
            http  | mirror.bsd.org  | http_proxy=p:80 no_proxy=x,bsd.org         | direct
            http  | freebsd.org     | http_proxy=p:80 no_proxy=bsd.org           | p:80
            http  | freebsd.org     | http_proxy=p:80 no_proxy=*                 | direct
            http  | 127.0.0.1       | http_proxy=p:80                            | direct
            https | mirror.bsd.org  | https_proxy=socks5://p:80                  | https_proxy is not http://[user:password@]host:port
            http  | mirror.bsd.org  | http_proxy=p:65536                         | http_proxy is not http://[user:password@]host:port
            """)
    void readsProxyVariables(String scheme, String host, String variables, String expected) {
        Map<String, String> environment = Stream.of(variables.split(" ")).map(one -> one.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
        String found;
        try {
            found = VmSetup.Http.proxy(scheme, host, environment).map(proxy -> proxy.getHost() + ":" + proxy.getPort()).orElse("direct");
        } catch (VmSetup.VmException refused) {
            assertEquals(2, refused.exitCode);
            found = refused.getMessage();
        }
        assertEquals(expected, found);
    }

    // On a terminal: script(1) makes one

    @Test
    void showsABarOnATerminal() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/script")), "no script(1) here");
        mirror.fault("rate=500000");
        ProcessBuilder builder = process("fetch");
        Script.Result result = ended(builder.command("script", "-qec", VmSetup.shellQuoted(builder.command()), "/dev/null").start());
        assertEquals(0, result.exitCode(), result.err());
        assertTrue(Pattern.compile("\rDragonFly 7\\.7\\.7 +\\d+% \\[=+ .*\\d MB/s").matcher(result.err()).find(), result.err());
    }

    // Disk

    @Test
    void makesABlankDiskAndKeepsOneThatIsThere() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        settings.put("VM_NAME", "my-vm");
        Path disk = vmDir.resolve("my-vm.install/by-hand.qcow2");
        run("disk", "--disk-size", "3G").is(0, disk + "\n", "");
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(disk)));
        assertEquals(3L << 30, virtualSize(disk));
        byte[] before = Files.readAllBytes(disk);
        assertFailed(run("disk"), 2, disk + " is there (0 MB), and nothing was changed; to replace it with a blank disk: --yes");
        assertArrayEquals(before, Files.readAllBytes(disk));
        assertEquals(0, run("disk", "--yes").exitCode());
        assertEquals(40L << 30, virtualSize(disk));
        assertEquals(List.of("by-hand.qcow2"), List.of(disk.getParent().toFile().list()));
        assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(disk.getParent())));
    }

    private static long virtualSize(Path disk) throws Exception {
        Process info = new ProcessBuilder("qemu-img", "info", "--output=json", disk.toString()).start();
        return JsonParser.object().from(info.getInputStream()).getLong("virtual-size");
    }

    @Test
    void refusesADiskInUse() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        Path disk = vmDir.resolve("dfly-vm.install/by-hand.qcow2");
        assertEquals(0, run("disk").exitCode());
        Process qemu = new ProcessBuilder("qemu-io", disk.toString()).start(); // locks the disk as a VM does
        try {
            qemu.getOutputStream().write("read 0 512\n".getBytes(UTF_8));
            qemu.getOutputStream().flush();
            assertEquals('q', qemu.getInputStream().read()); // its prompt: the disk is open
            assertFailed(run("disk", "--yes"), 69, disk + " is in use by a QEMU process, as of an installation by hand: end that first, with Ctrl-] in its terminal");
        } finally {
            qemu.destroyForcibly().waitFor();
        }
    }

    @Test
    void namesWhoIsAtWorkOnTheDisk() throws Exception {
        ProcessBuilder slow = process("disk");
        slow.environment().put("PATH", program("qemu-img", "exec sleep 600") + ":" + System.getenv("PATH"));
        Process first = slow.start();
        try {
            await(() -> size(vmDir.resolve("dfly-vm.lock")) > 0);
            assertFailed(run("disk", "--yes"), 69, "vm-setup disk (pid " + first.pid());
        } finally {
            first.descendants().forEach(ProcessHandle::destroyForcibly);
            first.destroyForcibly().waitFor();
        }
    }

    @Test
    void aDiskThatCannotBeMadeLeavesNothing() throws IOException {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        assertFailed(run("disk", "--disk-size", "9999999T"), 1, "qemu-img made no disk: ");
        assertEquals(List.of(), List.of(vmDir.resolve("dfly-vm.install").toFile().list()));
    }

    @Test
    void aDamagedDiskIsNotOneInUseWhateverItsName() throws IOException {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-img")), "qemu-img is not installed");
        settings.put("VM_NAME", "block");
        Files.write(Files.createDirectories(vmDir.resolve("block.install")).resolve("by-hand.qcow2"), new byte[] {'Q', 'F', 'I', (byte) 0xfb, 0, 0, 0, 9});
        assertFailed(run("disk"), 2, "to replace it with a blank disk: --yes");
        assertEquals(0, run("disk", "--yes").exitCode());
    }

    // The doctor

    private Map<String, JsonObject> checks(int code, String... args) throws Exception {
        List<String> all = new ArrayList<>(List.of("check", "--json"));
        all.addAll(List.of(args));
        settings.putIfAbsent("VM_ACCEL", "tcg");
        Script.Result result = run(all.toArray(String[]::new));
        assertEquals(code, result.exitCode(), result.out() + result.err());
        JsonObject said = JsonParser.object().from(result.out());
        assertEquals(code == 0, said.getBoolean("ok"));
        Map<String, JsonObject> checks = new HashMap<>();
        said.getArray("checks").forEach(check -> checks.put(((JsonObject) check).getString("name"), (JsonObject) check));
        assertEquals(10, checks.size());
        assertTrue(checks.values().stream().allMatch(check -> check.getString("state").equals("ok") == check.getString("fix").isEmpty()
                || check.getString("detail").equals("unknown without QEMU")), "a fault has its remedy: " + checks);
        return checks;
    }

    private static void assertSays(Map<String, JsonObject> checks, String name, String state, String detail) {
        JsonObject check = checks.get(name);
        assertEquals(state, check.getString("state"), check.toString());
        assertTrue(check.getString("detail").contains(detail), check.toString());
    }

    @ParameterizedTest
    @CsvSource({"apt-get,sudo apt-get install openssh-client", "dnf,sudo dnf install openssh-clients", "pacman,sudo pacman -S openssh",
        "brew,brew install openssh", "none,install ssh"})
    void theDoctorNamesWhatIsMissingAndTheCommandThatMendsIt(String manager, String command) throws Exception {
        searchPath = program(manager, "").toString();
        Map<String, JsonObject> checks = checks(69);
        for (String name : List.of("ssh", "qemu-img", "qemu-system-x86_64")) {
            assertSays(checks, name, "fail", "not on PATH");
        }
        assertSays(checks, "rsync", "note", "not on PATH"); // optional
        assertEquals(command, checks.get("ssh").getString("fix"));
        Script.Result text = run("check");
        assertEquals(69, text.exitCode());
        assertTrue(text.out().contains("fail  ssh                 not on PATH -> " + command + "\n"), text.out());
        assertEquals(10, text.out().lines().count());
        assertFalse(Files.exists(vmDir), "a doctor leaves nothing behind");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            --memory=64M                  | memory    | ok   | the VM gets 64M;
            --memory=999999G              | memory    | fail | the VM gets 1023998976M;
            --memory=999999G              | space     | fail | are needed, up to 42949 more
            --memory=64M --disk-size=999T | space     | note | are needed, up to
            --vm-dir=/proc/x/y            | space     | fail | /proc/x/y
            --memory=64M                  | installer | ok   | iso-images/ has DragonFly 7.7.7
            --dfly-version=1.0            | installer | fail | has no DragonFly 1.0, but dfly-x86_64-7.7.7_REL.iso.bz2
            --mirror=http://127.0.0.1:1/  | installer | fail | cannot be reached (Connection refused
            --image=/nonexistent          | installer | fail | /nonexistent
            --image=/etc/passwd           | installer | ok   | /etc/passwd
            --memory=64M                  | accelerator | note | unknown without QEMU
            """)
    void theDoctorLooksAround(String options, String name, String state, String detail) throws Exception {
        searchPath = "/nonexistent"; // QEMU takes its time
        assertSays(checks(69, options.split(" ")), name, state, detail);
    }

    @Test
    void theDoctorNamesWhoHoldsThePort() throws Exception {
        searchPath = "/nonexistent";
        long pid = ProcessHandle.current().pid();
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            settings.put("VM_SSH_PORT", Integer.toString(socket.getLocalPort()));
            assertSays(checks(69), "port", "fail", socket.getLocalPort() + " cannot be used: Address already in use by java (pid " + pid + ")");
            Files.writeString(Files.createDirectories(vmDir).resolve("dfly-vm.pid"), "{\"pid\": " + pid + "}");
            assertSays(checks(69), "port", "ok", "(pid " + pid + "), the VM dfly-vm itself");
        }
        assertSays(checks(69), "port", "ok", " is free");
        Files.write(iso(), image);
        assertSays(checks(69), "installer", "ok", iso() + " is there");
    }

    @Test
    void theDoctorRunsTheRealPrograms() throws Exception {
        assumeTrue(Files.exists(Path.of("/usr/bin/qemu-system-x86_64")), "QEMU is not installed");
        searchPath = System.getenv("PATH");
        Map<String, JsonObject> checks = checks(0, "--memory", "64M");
        assertSays(checks, "accelerator", "ok", "tcg, as set, runs a guest here");
        assertSays(checks, "qemu-system-x86_64", "ok", "QEMU emulator version");
        assertSays(checks, "ssh", "ok", "OpenSSH");
        settings.put("VM_ACCEL", "hvf");
        assertSays(checks(69), "accelerator", "fail", "hvf, as set, runs no guest here");
    }

    @Test
    void theDoctorDoesNotBelieveAProgramThatDoesNotRun() throws Exception {
        program("ssh", "echo broken; exit 1");
        program("qemu-img", "exit 3");
        searchPath = program("rsync", "exec /nonexistent 2>/dev/null").toString();
        Map<String, JsonObject> checks = checks(69);
        assertSays(checks, "ssh", "fail", "broken");
        assertSays(checks, "qemu-img", "fail", "my bin/qemu-img ends with 3");
        assertSays(checks, "rsync", "note", "my bin/rsync ends with 127");
    }

    @Test
    void theDoctorSaysWhyEachMirrorFailed() throws Exception {
        settings.put("VM_MIRROR", "http://mirror.invalid/ http://127.0.0.1:" + freePort() + "/");
        Script.Result result = run("check", "--memory=64M");
        assertTrue(result.err().contains("vm-setup: http://mirror.invalid/ cannot be reached (unknown host mirror.invalid"), result.err());
        assertTrue(result.out().contains("/ cannot be reached (Connection refused"), result.out());
    }

    /** ssh is installed, but refuses to run: to install it would not help. */
    @Test
    void theDoctorKnowsThatSshRefusesAUserWithoutAnEntry() throws Exception {
        searchPath = program("ssh", "echo 'No user exists for uid 54321' >&2; exit 255") + ":" + program("apt-get", "");
        Map<String, JsonObject> checks = checks(69);
        assertSays(checks, "ssh", "fail", "ssh refuses to run for a user without an entry in the user database: No user exists for uid 54321");
        assertEquals("run this as a user with an entry, or add one as root: useradd --uid 54321 vm", checks.get("ssh").getString("fix"));
    }

    /** The same with the real ssh, which root starts as such a user. */
    @Test
    void theRealSshRefusesAUserWithoutAnEntry() throws Exception {
        assumeTrue(Files.isExecutable(Path.of("/usr/bin/ssh")) && Files.isExecutable(Path.of("/usr/bin/setpriv"))
                && ProcessHandle.current().info().user().orElse("").equals("root"), "needs root, setpriv and ssh");
        searchPath = program("ssh", "exec setpriv --reuid 54321 --clear-groups /usr/bin/ssh \"$@\"").toString();
        assertSays(checks(69), "ssh", "fail", "ssh refuses to run for a user without an entry in the user database: No user exists for uid 54321");
    }

    /** The option, if that was used; else the variable. */
    @Test
    void theDoctorNamesWhatTheUserWroteForAWrongImage() throws Exception {
        assertEquals("--image must name a file that can be read", checks(69, "--image=/nonexistent").get("installer").getString("fix"));
        settings.put("VM_IMAGE", "/nonexistent");
        assertEquals("VM_IMAGE in the environment must name a file that can be read", checks(69).get("installer").getString("fix"));
        assertEquals("--image must name a file that can be read", checks(69, "--image", "/none").get("installer").getString("fix"));
    }

    /** A QEMU that runs a guest at once, but under KVM as told; a node that is there. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            exit 33  | true  | ok   | kvm: a probe ran in
            exit 1   | true  | note | tcg, which is slow: kvm exists, but the probe failed or was too slow with it (emulated:
            exec sleep 60 | true | note | tcg, which is slow: kvm exists, but the probe failed or was too slow with it (emulated:
            exit 33  | false | note | tcg, which is slow: no /dev/kvm
            """)
    void theDoctorProbesTheAccelerator(String underKvm, boolean node, String state, String detail) throws Exception {
        assumeTrue(Files.exists(Path.of("/proc/cpuinfo")), "KVM is Linux's");
        searchPath = qemu("QEMU 1", underKvm).toString();
        kvm = node ? Files.createFile(scratch.resolve("kvm")) : scratch.resolve("kvm");
        settings.put("VM_ACCEL", "auto");
        Files.writeString(Files.createDirectories(vmDir).resolve("accel.json"), "{\"name\": \"hvf\", \"qemu\": \"QEMU 1\"}");
        assertSays(checks(69), "accelerator", state, detail);
        JsonObject record = record();
        assertEquals(state.equals("ok") ? "kvm" : "tcg", record.getString("name"));
        assertTrue(("tcg, which is slow: " + record.getString("reason")).contains(detail.replaceFirst("^kvm: ", "")), record.toString());
        assertEquals("QEMU 1", record.getString("qemu"));
        assertEquals(node, record.getBoolean("kvm"));
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(vmDir.resolve("accel.json"))));
    }

    /** One that runs a guest at once, but under KVM as told. */
    private Path qemu(String version, String underKvm) throws IOException {
        return program("qemu-system-x86_64", "echo \"$*\" >>'" + scratch.resolve("qemu.log") + "'\ncase \"$*\" in --version) echo '"
                + version + "';; *'-accel kvm'*) " + underKvm + ";; *) exit 33;; esac");
    }

    private JsonObject record() throws Exception {
        return JsonParser.object().from(Files.readString(vmDir.resolve("accel.json")));
    }

    @Test
    void onlyTheAcceleratorIsMeasuredOnRequest() throws Exception {
        searchPath = qemu("QEMU 1", "exit 1").toString();
        String reason = record(run("check", "--accel")).getString("reason");
        assertTrue(Files.readAllLines(scratch.resolve("qemu.log")).stream().filter(line -> line.contains("-accel"))
                .allMatch(line -> line.contains("-no-user-config -nodefaults")), "QEMU reads no files but ours");
        assertTrue(reason.startsWith("no /dev/kvm"), reason);
        kvm = Files.createFile(scratch.resolve("kvm"));
        settings.put("VM_ACCEL", "kvm"); // what is set is not what is asked
        reason = record(run("check", "--accel")).getString("reason");
        assertTrue(reason.startsWith("kvm exists, but the probe failed"), reason);
        Script.Result json = run("check", "--accel", "--json");
        JsonObject answer = JsonParser.object().from(json.out());
        assertEquals(Set.of("name", "reason", "qemu", "kvm"), answer.keySet());
        assertEquals(record(), answer);
        settings.put("VM_DIR", "/proc/nowhere");
        assertFailed(run("check", "--accel"), 69, "/proc/nowhere cannot be used (");
        searchPath = "/nonexistent";
        assertFailed(run("check", "--accel"), 69, "qemu-system-x86_64 is not on PATH: install qemu");
    }

    /** What accel.json holds, and that it is what was printed. */
    private JsonObject record(Script.Result result) throws Exception {
        result.is(0, "accelerator: tcg (" + record().getString("reason") + ")\n", "");
        return record();
    }

    @Test
    void theDoctorGoesOnWhereNothingCanBeRecorded() throws Exception {
        searchPath = qemu("QEMU 1", "exit 33").toString();
        assertSays(checks(69, "--vm-dir", "/proc/nowhere"), "accelerator", "ok",
                "tcg, as set, runs a guest here (not recorded in accel.json: /proc/nowhere cannot be used (");
    }

    @Test
    void fetchMeasuresEachTime() throws Exception {
        searchPath = qemu("QEMU 1", "exit 33").toString();
        Script.Result first = run();
        assertEquals(0, first.exitCode());
        assertTrue(first.err().contains("vm-setup: accelerator: tcg (no /dev/kvm"), first.err());
        qemu("QEMU 2", "exit 33");
        assertTrue(run().err().startsWith("vm-setup: accelerator: tcg (no /dev/kvm"));
        kvm = Files.createFile(scratch.resolve("kvm"));
        assertTrue(run().err().startsWith("vm-setup: accelerator: kvm (a probe ran in "));
        assertEquals("QEMU 2", record().getString("qemu"));
        for (String broken : List.of("", "{", "{\"name\": 3, \"qemu\": \"QEMU 2\", \"kvm\": true}", "[]")) {
            Files.writeString(vmDir.resolve("accel.json"), broken);
            assertTrue(run().err().startsWith("vm-setup: accelerator: kvm (a probe ran in "), broken);
        }
        Files.delete(vmDir.resolve("accel.json"));
        Files.createDirectory(vmDir.resolve("accel.json")); // a failure here is none of the download
        Script.Result last = run();
        assertEquals(0, last.exitCode());
        assertTrue(last.err().startsWith("vm-setup: the accelerator is not known yet ("), last.err());
    }

    @ParameterizedTest
    @CsvSource({"true,vmx,no permission for /dev/kvm,'sudo usermod -aG kvm $USER, log in again; in a container, pass the device in'",
        "false,sse svm,'no /dev/kvm: no module is loaded, or a container hides it',sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        "false,vmx sse,'no /dev/kvm: no module is loaded, or a container hides it',sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        "false,sse,'no /dev/kvm, and the processor shows no virtualization','switch it on in the firmware, or for this VM'"})
    void theDoctorSaysWhatKeepsGuestsFromKvm(boolean exists, String flags, String detail, String fix) {
        assertEquals(new VmSetup.AcceleratorProbe.Obstacle(detail, fix), VmSetup.AcceleratorProbe.obstacle(exists, flags));
    }

    // Settings

    @Test
    void anOptionBeatsTheEnvironmentWhichBeatsVmEnv() {
        VmSetup setup = new VmSetup();
        VmSetup.commandLine(setup, new VmSetup.Settings().add(Map.of("DFLY_VERSION", "3", "VM_NAME", "file"), "vm.env")
                .add(Map.of("DFLY_VERSION", "2", "VM_DISK_SIZE", "2G", "VM_NAME", "", "VM_DIR", ""), "the environment")).parseArgs("disk", "--disk-size", "30G");
        assertEquals(List.of("2", "file", "30G"), List.of(setup.version, setup.vmName, setup.diskSize));
        assertEquals("~/.go-synth/vm", setup.dirOption);
        assertEquals("https://avalon.dragonflybsd.org/iso-images/", setup.mirrorOption.get(1).toString());
    }

    @ParameterizedTest
    @CsvSource({"VM_NAME,a/b", "VM_NAME,dfly-vm-clean", "DFLY_VERSION,../x", "VM_DISK_SIZE,20", "VM_MIRROR,ftp://x/",
        "VM_MIRROR,http://127.0.0.1:99999/", "VM_MIRROR,'http://[::1'", "VM_MIRROR,http:///x"})
    void aBadValueIsNamedByItsVariable(String variable, String value) throws IOException {
        settings.put(variable, value);
        Script.Result result = run("disk");
        assertFailed(result, 2, variable);
        assertEquals(1, result.err().lines().count(), result.err());
        assertFalse(Files.exists(vmDir));
    }

    @Test
    void usageErrorsAreOneLineWithASuggestion() throws IOException {
        assertFailed(run("chek"), 2, "did you mean check");
        assertFailed(run("--nonsense"), 2, "--nonsense");
    }

    @Test
    void aDirectoryThatCannotBeWrittenIsNamed() throws IOException {
        settings.put("VM_DIR", "/proc/nowhere");
        assertFailed(run(), 69, "/proc/nowhere cannot be used (");
        assertFailed(run("disk"), 69, "/proc/nowhere cannot be used (");
    }

    @ParameterizedTest
    @CsvSource({"rwxrwxr-x,775", "rwx----w-,702", "rwxrwxrwx,777"})
    void aDirectoryInWhichOthersCanWriteIsRefusedAndStaysAsItIs(String mode, String octal) throws IOException {
        Guest.openDirectory(vmDir, mode);
        String owner = Files.getOwner(vmDir).getName();
        for (String command : List.of("fetch", "disk", "check")) {
            assertFailed(run(command), 69, vmDir + " belongs to " + owner + " and has the mode " + octal + ", so another user could",
                    "choose another directory with --vm-dir or VM_DIR, or run this as " + owner + ", or make it yours alone: sudo chown -R $(id -u) '" + scratch + "/vm, '\\''a'\\'' ");
        }
        assertEquals(mode, PosixFilePermissions.toString(Files.getPosixFilePermissions(vmDir)));
        assertEquals(0, vmDir.toFile().list().length);
        Path link = Files.createSymbolicLink(scratch.resolve("link"), vmDir);
        settings.put("VM_DIR", link.toString());
        assertFailed(run(), 69, link + " belongs to " + owner + " and has the mode " + octal);
    }

    @Test
    void aDirectoryOfAnotherUserIsRefused() throws IOException {
        Path foreign = Guest.foreignDirectory(scratch);
        settings.put("VM_DIR", foreign.toString());
        String owner = Files.getOwner(foreign).getName();
        for (String command : List.of("fetch", "disk", "check")) {
            assertFailed(run(command), 69, foreign + " belongs to " + owner + " and has the mode 755", ", or run this as " + owner
                    + ", or make it yours alone: sudo chown -R $(id -u) '" + foreign + "'; chmod go-w '" + foreign + "'");
        }
    }

    @Test
    void aFileIsNoVmDirectory() throws IOException {
        settings.put("VM_DIR", Files.createFile(scratch.resolve("file")).toString());
        for (String command : List.of("fetch", "disk", "check")) {
            assertFailed(run(command), 69, scratch.resolve("file").toString(), "choose another directory with --vm-dir or VM_DIR");
        }
    }

    /** As it was before anybody's umask or ours; through a link, too. */
    @Test
    void aDirectoryOfThisUserIsUsedAsItIs() throws IOException {
        Guest.openDirectory(vmDir, "rwxr-xr-x");
        assertEquals(0, run().exitCode());
        settings.put("VM_DIR", Files.createSymbolicLink(scratch.resolve("link"), vmDir).toString());
        run().is(0, scratch.resolve("link/dfly-7.7.7.iso") + "\n", "");
        assertEquals("rwxr-xr-x", PosixFilePermissions.toString(Files.getPosixFilePermissions(vmDir)));
    }

    @ParameterizedTest
    @ValueSource(strings = {"000", "022", "077"})
    void aNewDirectoryAndItsNewParentsAreTheirOwnersAloneWhateverTheUmask(String umask) throws Exception {
        Path made = vmDir.resolve("a/b");
        settings.putAll(Map.of("VM_DIR", made.toString(), "VM_IMAGE", "/nonexistent"));
        ProcessBuilder builder = process("fetch");
        builder.command().addAll(0, List.of("sh", "-c", "umask " + umask + "; exec \"$@\"", "sh"));
        Script.Result result = ended(builder.start());
        assertEquals(69, result.exitCode(), result.err());
        for (Path directory : List.of(vmDir, vmDir.resolve("a"), made)) {
            assertEquals("rwx------", PosixFilePermissions.toString(Files.getPosixFilePermissions(directory)), directory.toString());
        }
    }
}
