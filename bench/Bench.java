///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Measure the scripts on the stand-in guest, against what they replace
//JAVA 17+
//DEPS org.apache.commons:commons-compress:1.28.0 // what vm-setup unpacks with where there is no lbzip2

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedInputStream;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.DoubleStream;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream;

/**
 * Measures the scripts on the stand-in guest, and writes what it found into bench/README.md and bench/chart.svg. {@code make bench} runs it.
 *
 * <p>A figure is a comparison: our command and the other one in turn, as whole processes, once to warm up and then as often as the
 * table says. What is compared with a target is the median over the pairs, of the ratio or of the difference. That holds on a
 * machine whose speed drifts; the absolute times are of that machine alone.
 *
 * <p>{@code make bench ARGS='start exec'} measures these groups only, and writes nothing. {@code ARGS='--merge start exec'}
 * puts what they measured into the table that is there, each row with its date. The VM, its mirror and what else takes long
 * to make are kept in .build/bench; groups that need an installed VM install it.
 */
final class Bench {
    private static final Path TOP = Path.of("").toAbsolutePath();
    private static final Path WORK = TOP.resolve(".build/bench");
    private static final Path VM_DIR = WORK.resolve("vm");
    private static final String NAME = "bench";
    private static final Path README = Path.of("bench/README.md");
    private static final Path CHART = Path.of("bench/chart.svg");
    /** An installer as large as DragonFly 6.4.2's. */
    private static final long ISO_BYTES = 783_974_400;

    /** One comparison. Its unit is "x" for a ratio or "s" for a difference; the seconds of both sides, pair by pair. */
    record Row(String what, String against, double target, String unit, List<Double> ours, List<Double> theirs) {
        double[] values() {
            boolean ratio = unit.equals("x");
            return IntStream.range(0, ours.size()).mapToDouble(i -> ratio ? ours.get(i) / theirs.get(i) : ours.get(i) - theirs.get(i))
                    .sorted().toArray();
        }

        double measured() {
            return median(DoubleStream.of(values()).boxed().toList());
        }

        String said(double value) {
            return unit.equals("x") ? number("%.2f x", value) : number("%+.3f s", value);
        }

        String line() {
            double[] values = values();
            return String.join(" | ", "| " + what, against, seconds(median(ours)), seconds(median(theirs)), "**" + said(measured()) + "**",
                    said(values[0]) + " ... " + said(values[values.length - 1]), "" + values.length,
                    (unit.equals("x") ? "" : "+") + number("%.2f ", target) + unit, LocalDate.now() + " |");
        }
    }

    /** One cost as its work grows. */
    record Growth(String what, String small, String large, double factor, double smallSeconds, double largeSeconds) {
        String line() {
            return String.join(" | ", "| " + what, small + " \u2192 " + large, number("%.0f x", factor), seconds(smallSeconds),
                    seconds(largeSeconds), "**" + number("%.1f x", largeSeconds / smallSeconds) + "**",
                    LocalDate.now() + " |");
        }
    }

    private interface Work {
        void run() throws Exception;
    }

    private final List<Row> rows = new ArrayList<>();
    private final List<Growth> growths = new ArrayList<>();
    private final List<String> notes = new ArrayList<>();
    /** VMs that a group made beside the one that stays. */
    private final List<String> clones = new ArrayList<>();
    private final Map<String, String> settings = new TreeMap<>(Map.of("VM_DIR", VM_DIR.toString(), "VM_NAME", NAME, "VM_MEMORY", "1G",
            "VM_PHASES", TOP.resolve("phases").toString()));
    private Process mirror;
    private int port;

    public static void main(String... args) throws Exception {
        if (args.length == 2 && args[0].equals("unpack")) {
            try (InputStream in = new BZip2CompressorInputStream(new BufferedInputStream(Files.newInputStream(Path.of(args[1]))), true)) {
                in.transferTo(OutputStream.nullOutputStream());
            }
            return;
        }
        Bench bench = new Bench();
        try {
            bench.run(List.of(args));
        } finally {
            bench.end();
        }
    }

    private void run(List<String> arguments) throws Exception {
        Map<String, Work> groups = new LinkedHashMap<>();
        groups.put("start", this::start);
        groups.put("exec", this::exec);
        groups.put("quick", this::quick);
        groups.put("restore", this::restore);
        groups.put("snapshot", this::snapshot);
        groups.put("clone", this::cloneFour);
        groups.put("parallel", this::parallel);
        groups.put("data", this::data);
        groups.put("output", this::output);
        groups.put("sync", this::sync);
        groups.put("install", this::install);
        groups.put("image", this::image);
        groups.put("fetch", this::fetch);
        groups.put("disk", this::disk);
        groups.put("many", this::many);
        boolean merge = arguments.contains("--merge");
        List<String> chosen = arguments.stream().filter(word -> !word.equals("--merge")).toList();
        if (!groups.keySet().containsAll(chosen)) {
            System.err.println("bench: the groups are " + String.join(" ", groups.keySet()) 
                    + "; before them --merge, to write what they measured into bench/README.md");
            System.exit(2);
        }
        Files.createDirectories(WORK);
        for (Map.Entry<String, Work> group : groups.entrySet()) {
            if (chosen.isEmpty() || chosen.contains(group.getKey())) {
                group.getValue().run();
            }
        }
        Pattern place = Pattern.compile("(?s)(?<=<!-- bench:begin -->\n).*(?=<!-- bench:end -->)");
        String readme = Files.readString(README);
        Matcher written = place.matcher(readme);
        String table = table(merge && written.find() ? written.group() : "");
        System.out.println(table);
        if (chosen.isEmpty() || merge) {
            Files.writeString(README, place.matcher(readme).replaceFirst(Matcher.quoteReplacement(table)));
            Files.writeString(CHART, chart(table.lines().map(Bar::of).flatMap(Optional::stream).toList()));
        }
    }

    // The groups.

    private void start() throws Exception {
        Path classes = Files.createDirectories(WORK.resolve("classes"));
        Path empty = Files.writeString(WORK.resolve("Empty.java"), "public class Empty { public static void main(String[] args) {} }\n");
        done(command("javac", "-d", classes.toString(), empty.toString()), 0);
        List<String> java = command("java", "-XX:TieredStopAtLevel=1", "-cp", classes.toString(), "Empty");
        String against = "an empty Java main";
        List<String> status = script("VmCtl", "--vm-dir", WORK.resolve("none").toString(), "status");
        pairs("`vm-ctl status`, a stopped VM", against, 0.12, "s", 15, () -> done(status, 3),
                () -> done(java, 0));
        pairs("`vm-ctl --help`", against, 0.12, "s", 15, () -> done(script("VmCtl", "--help"), 0), () -> done(java, 0));
        pairs("a usage error of `vm-ctl`", against, 0.12, "s", 15,
                () -> done(script("VmCtl", "start", "--nope"), 2), () -> done(java, 0));
        String jbang = TOP.resolve(".build/jbang").toString();
        pairs("`jbang VmCtl.java --help`", "`jbang Empty.java`", 0.20, "s", 15, () -> done(command(jbang, "VmCtl.java", "--help"), 0),
                () -> done(command(jbang, empty.toString()), 0));
    }

    /** A download and its unpacking, one after the other, against the slower of the two alone. */
    private void fetch() throws Exception {
        Path images = Files.createDirectories(WORK.resolve("mirror/iso-images"));
        Path iso = images.resolve("dfly-x86_64-6.4.2_REL.iso");
        Path archive = images.resolve(iso.getFileName() + ".bz2");
        if (!Files.exists(images.resolve("md5.txt"))) {
            Path standin = standin().resolve("iso-images").resolve(archive.getFileName());
            String make = """
                    { bzip2 -dc "$0"; tar cf - /usr/lib /usr/share 2>/dev/null; } | head -c "$2" >"$1" &&
                    $(command -v lbzip2 || command -v bzip2) -kf "$1" &&
                    cd "${1%/*}" && md5sum --tag *.iso *.bz2 >md5.new && mv md5.new md5.txt
                    """;
            done(command("sh", "-c", make, standin.toString(), iso.toString(), "" + ISO_BYTES), 0);
        }
        Process server = serve(WORK.resolve("mirror"), WORK.resolve("fetch.port"));
        try {
            String url = "http://127.0.0.1:" + Files.readString(WORK.resolve("fetch.port")).strip() + "/iso-images/";
            for (String tool : Stream.of("", "lbzip2").filter(it -> it.isEmpty() || onPath(it)).toList()) {
                Path to = WORK.resolve("fetched");
                List<String> unpack = !tool.isEmpty() ? command(tool, "-dc", archive.toString())
                        : command("java", "-cp", System.getProperty("java.class.path"), "Bench", "unpack", archive.toString());
                List<String> fetch = script("VmSetup", "--vm-dir", to.toString(), "--mirror", url, "fetch", "--trust-mirror");
                if (tool.isEmpty()) { // a PATH without it
                    fetch.addAll(0, command("env", "PATH=" + linksTo("java", "sh", "env", "test")));
                }
                List<Double> ours = new ArrayList<>();
                List<Double> theirs = new ArrayList<>();
                for (int i = 0; i < 3; i++) {
                    delete(to);
                    ours.add(seconds(() -> done(fetch, 0)));
                    double alone = seconds(() -> done(unpack, 0));
                    theirs.add(Math.max(alone, seconds(() -> done(command("curl", "-sfo", "/dev/null", url + archive.getFileName()), 0))));
                }
                delete(to);
                add(new Row("`vm-setup fetch`, 784 MB, " + (tool.isEmpty() ? "built-in bzip2" : tool),
                        "the slower of `curl` and that decompressor alone", 1.15, "x", ours, theirs));
            }
        } finally {
            server.destroy();
        }
    }

    /**
     * The three phases, from the command's start to the third one's end, against what the guests did: from kernel to power-off. The
     * stand-in's kernel is up when its loader says the first word, so its work begins with that.
     */
    private void install() throws Exception {
        List<Double> ours = new ArrayList<>();
        List<Double> theirs = new ArrayList<>();
        List<Double> whole = new ArrayList<>();
        List<Double> three = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            destroy();
            Map<String, Double> seen = installOnce();
            double guests = 0;
            for (int phase = 1; phase <= 3; phase++) {
                guests += seen.get("off" + phase) - seen.get("on" + phase);
            }
            ours.add(seen.get("phase3"));
            theirs.add(guests);
            whole.add(seen.get("all"));
            three.add(seen.get("phase3"));
        }
        add(new Row("`vm-auto-install`, three phases", "the guests' own work, first word to power-off", 1.1, "x", ours, theirs));
        notes.add("An installation takes " + number("%.0f s", median(whole)) + " here: the three phases "
                + number("%.0f s", median(three)) + ", the rest flattens the disk and boots it once to see that it answers.");
    }

    private void exec() throws Exception {
        needVm();
        pairs("`vm-ctl exec -- true`", "`ssh ... true`, a new connection", 1.3, "x", 15,
                () -> done(script("VmCtl", "exec", "--", "true"), 0), () -> done(ssh("true"), 0));
    }

    private void sync() throws Exception {
        needVm();
        double[] nothing = new double[2];
        List<Integer> sizes = List.of(250, 50_000);
        for (int files : sizes) {
            Path project = project(files);
            String count = String.format(Locale.ROOT, "%,d", files);
            String rsync = "`rsync -az --delete`, a new connection";
            double limit = files > 1000 ? 1.1 : 1.3;
            String ours = "/root/" + project.getFileName();
            List<String> sync = script("VmSync", "--project", project.toString());
            if (files > 1000) {
                add(compare("`vm-sync`, " + count + " files, the first time", rsync, limit, "x", 2, () -> done(ssh("rm -rf " + ours), 0),
                        () -> done(sync, 0), () -> done(ssh("rm -rf /root/theirs"), 0), () -> done(rsync(project, "/root/theirs"), 0)));
            } else {
                done(sync, 0);
                done(rsync(project, "/root/theirs"), 0);
            }
            nothing[sizes.indexOf(files)] = median(pairs("`vm-sync`, " + count + " files, nothing changed", rsync, limit, "x",
                    files > 1000 ? 5 : 15, () -> done(sync, 0), () -> done(rsync(project, "/root/theirs"), 0)).ours());
            if (files > 1000) {
                Work change = () -> Files.writeString(project.resolve("dir7/file7.go"), "// " + System.nanoTime() + "\n");
                add(compare("`vm-sync`, " + count + " files, one changed", rsync, limit, "x", 5, change, () -> done(sync, 0),
                        change, () -> done(rsync(project, "/root/theirs"), 0)));
            }
            done(ssh("rm -rf " + ours + " /root/theirs"), 0);
        }
        grown("`vm-sync`, nothing changed", "250 files", "50,000 files", 200, nothing[0], nothing[1]);
    }

    private void quick() throws Exception {
        needVm();
        Path project = project(250);
        Map<String, String> suites = Map.of("VM_PROJECT", project.toString(), "VM_TEST_BUILD", "true 'a trivial build'",
                "VM_TEST_PHASE4", "doas true", "VM_REMOTE_DIR", "/root/quick");
        pairs("`make vm-quick` with commands that do nothing",
                "rsync, rsync, `ssh make`, `ssh go test`, each with a connection of its own", 0.7, "x", 9,
                () -> done(command("make", "-s", "vm-quick"), 0, suites),
                () -> {
                    done(rsync(project, "/root/theirs"), 0);
                    done(rsync(project, "/root/theirs"), 0);
                    done(ssh("cd /root/theirs && true"), 0);
                    done(ssh("cd /root/theirs && doas true"), 0);
                });
        done(ssh("rm -rf /root/quick /root/theirs"), 0);
    }

    private void restore() throws Exception {
        needVm();
        done(script("VmCtl", "restore"), 0); // this QEMU began as each restore's does
        pairs("`vm-ctl restore`, until ssh answers", "`vm-ctl restore --cold`, a boot of the same guest", 0.20, "x", 5,
                () -> done(script("VmCtl", "restore"), 0), () -> done(script("VmCtl", "restore", "--cold"), 0));
        done(script("VmCtl", "restore"), 0);
    }

    /**
     * A snapshot of a running guest, by the RAM that it uses, against what it takes if its QEMU is ended for that: then the
     * guest is paused until it is restored, and the command has to do that, too.
     */
    private void snapshot() throws Exception {
        needVm();
        Map<String, String> vm = Map.of("VM_NAME", "ram", "VM_MEMORY", "4G");
        cloned(List.of("ram"));
        done(script("VmCtl", "start"), 0, vm); // a boot: the RAM of the snapshot is of a guest with less memory
        done(script("VmCtl", "exec", "mkdir /ram && mount_tmpfs -s 3500m tmpfs /ram"), 0, vm);
        double[] stood = new double[3];
        double[] whole = new double[3];
        double[] back = new double[3];
        List<String> sizes = List.of("0.2 GiB", "1 GiB", "3 GiB");
        List<Integer> fill = List.of(0, 850, 2900); // MiB, of random bytes as no page of them is then sent as zeroes
        for (int i = 0; i < sizes.size(); i++) {
            done(script("VmCtl", "exec", "dd if=/dev/urandom of=/ram/fill bs=1m count=" + fill.get(i)), 0, vm);
            List<Double> pauses = new ArrayList<>();
            List<Double> commands = new ArrayList<>();
            List<Double> restores = new ArrayList<>();
            for (int run = 0; run <= 3; run++) {
                double command = seconds(() -> done(script("VmCtl", "snapshot", "measured"), 0, vm));
                // It is told in tenths.
                double pause = Math.max(0.05, Double.parseDouble(saidLast("the guest was paused for ([\\d.]+) s")));
                double restore = seconds(() -> done(script("VmCtl", "restore", "measured"), 0, vm));
                done(script("VmCtl", "snapshot", "--delete", "measured"), 0, vm);
                if (run > 0) {
                    pauses.add(pause);
                    commands.add(command);
                    restores.add(restore);
                }
            }
            add(new Row("the guest is paused for `vm-ctl snapshot`, " + sizes.get(i) + " of RAM used",
                    "until it is restored from that RAM", 0.50, "x", pauses, sums(pauses, restores)));
            add(new Row("`vm-ctl snapshot`, " + sizes.get(i) + " of RAM used", "the same and a restore of it", 0.60, "x",
                    commands, sums(commands, restores)));
            stood[i] = median(pauses);
            whole[i] = median(commands);
            back[i] = median(restores);
        }
        destroyClones();
        String small = sizes.get(0) + " of RAM used";
        String large = sizes.get(2) + " of RAM used";
        grown("the guest is paused for `vm-ctl snapshot`", small, large, 15, stood[0], stood[2]);
        grown("`vm-ctl snapshot` of a running VM", small, large, 15, whole[0], whole[2]);
        grown("`vm-ctl restore` of a running VM", small, large, 15, back[0], back[2]);
    }

    private static List<Double> sums(List<Double> some, List<Double> others) {
        return IntStream.range(0, some.size()).mapToObj(i -> some.get(i) + others.get(i)).toList();
    }

    /** Clones that are started together. The VM that they are made of is stopped, so that they have the processors. */
    private void cloneFour() throws Exception {
        needVm();
        done(script("VmCtl", "stop"), 0);
        List<String> four = List.of("a", "b", "c", "d");
        clones.addAll(four);
        destroyClones();
        clones.addAll(four);
        add(compare("`vm-ctl clone --start a b c d`, until ssh answers in all four", "`vm-ctl clone --start a`", 2.5,
                "x", 5, this::destroyClones, () -> {
                    clones.addAll(four);
                    done(script("VmCtl", List.of("clone", "--start"), four.toArray(String[]::new)), 0);
                }, this::destroyClones, () -> {
                    clones.add("a");
                    done(script("VmCtl", "clone", "--start", "a"), 0);
                }));
        destroyClones();
    }

    /** The same VM twice, one with 2 GiB more on its disk; both were booted after that, so their RAM is alike. */
    private void data() throws Exception {
        needVm();
        cloned(List.of("little", "much"));
        for (String name : List.of("little", "much")) {
            Map<String, String> vm = Map.of("VM_NAME", name);
            done(script("VmCtl", "start"), 0, vm);
            String count = name.equals("much") ? "2048" : "1";
            done(script("VmCtl", "exec", "dd if=/dev/urandom of=/data bs=1m count=" + count), 0, vm);
            done(script("VmCtl", "restart"), 0, vm);
            done(script("VmCtl", "snapshot", "measured"), 0, vm);
            done(script("VmCtl", "snapshot", "again"), 0, vm);
        }
        done(script("VmCtl", "stop", "--force"), 0); // two are enough
        String against = "the same on a disk without them";
        pairs("`vm-ctl restore`, 2 GiB more on the disk", against, 1.2, "x", 5,
                () -> done(script("VmCtl", "restore", "measured"), 0, Map.of("VM_NAME", "much")),
                () -> done(script("VmCtl", "restore", "measured"), 0, Map.of("VM_NAME", "little")));
        add(compare("`vm-ctl snapshot`, 2 GiB more on the disk", against, 1.2, "x", 5,
                () -> done(script("VmCtl", "snapshot", "--delete", "again"), 0, Map.of("VM_NAME", "much")),
                () -> done(script("VmCtl", "snapshot", "again"), 0, Map.of("VM_NAME", "much")),
                () -> done(script("VmCtl", "snapshot", "--delete", "again"), 0, Map.of("VM_NAME", "little")),
                () -> done(script("VmCtl", "snapshot", "again"), 0, Map.of("VM_NAME", "little"))));
        destroyClones();
    }

    /** 200 MB of a suite's output, through the verdict's eyes. */
    private void output() throws Exception {
        needVm();
        Path project = project(250);
        done(script("VmSync", "--project", project.toString()), 0);
        AtomicLong peak = new AtomicLong();
        double[] ours = new double[2];
        List<Integer> sizes = List.of(1, 200);
        for (int megabytes : sizes) {
            String flood = "yes 'ok      example.org/some/package   0.012s  and what else a test has to say about itself here' | head -c "
                    + megabytes + "000000";
            Map<String, String> suite = Map.of("VM_PROJECT", project.toString(), "VM_TEST_BUILD", "true", "VM_TEST_FLOOD", flood);
            Row row = compare("200 MB of output through `vm-test`", "`ssh ... > /dev/null`", 1.3, "x", 3, () -> { },
                    () -> peak.accumulateAndGet(done(script("VmTest", "flood"), 0, suite), Math::max),
                    () -> { }, () -> done(ssh(flood), 0));
            ours[sizes.indexOf(megabytes)] = median(row.ours());
            if (megabytes > 1) {
                add(row);
            }
        }
        notes.add("For 200 MB of output `vm-test` took " + peak.get() / 1024 + " MB of memory at most (target: 200).");
        grown("output through `vm-test`", "1 MB", "200 MB", 200, ours[0], ours[1]);
    }

    /** Restoring the disk of a stopped VM: what is done to files, without a guest; and what copying it would take. */
    private void disk() throws Exception {
        double[] restore = new double[2];
        double[] copy = new double[2];
        List<Integer> sizes = List.of(1, 20);
        for (int gigabytes : sizes) {
            Path dir = WORK.resolve("disk" + gigabytes);
            delete(dir);
            Files.createDirectories(dir);
            Path disk = dir.resolve(NAME + "-clean.qcow2");
            done(command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", disk.toString(), gigabytes + "G"), 0);
            done(command("sync"), 0); // or writing it goes on meanwhile
            int i = sizes.indexOf(gigabytes);
            restore[i] = median(times(9, () -> done(script("VmCtl", "--vm-dir", dir.toString(), "restore"), 0)));
            copy[i] = seconds(() -> done(command("cp", disk.toString(), dir.resolve("copy").toString()), 0));
            delete(dir);
        }
        grown("`vm-ctl restore` of a stopped VM", "1 GB used", "20 GB used", 20, restore[0], restore[1]);
        grown("`cp` of its disk", "1 GB used", "20 GB used", 20, copy[0], copy[1]);
    }

    /** Snapshots and VMs, of which there may be many. */
    private void many() throws Exception {
        Path dir = WORK.resolve("many");
        delete(dir);
        Files.createDirectories(dir);
        double[] list = new double[2];
        double[] status = new double[2];
        double[] snapshot = new double[2];
        double[] restore = new double[2];
        for (int i = 1; i <= 8; i++) {
            done(command("qemu-img", "create", "-q", "-f", "qcow2", dir.resolve("vm" + i + "-clean.qcow2").toString(), "1G"), 0);
            if (i == 1 || i == 8) {
                list[i / 8] = median(times(9, () -> done(script("VmCtl", "--vm-dir", dir.toString(), "list"), 0)));
            }
        }
        done(script("VmCtl", "--vm-dir", dir.toString(), "--vm-name", "vm1", "restore"), 0);
        List<Double> made = new ArrayList<>();
        List<String> vm = List.of("--vm-dir", dir.toString(), "--vm-name", "vm1");
        for (int i = 1; i <= 20; i++) {
            String name = "s" + i;
            made.add(seconds(() -> done(script("VmCtl", vm, "snapshot", name), 0)));
            if (i == 1 || i == 20) {
                status[i / 20] = median(times(9, () -> done(script("VmCtl", vm, "status"), 3)));
                restore[i / 20] = median(times(5, () -> done(script("VmCtl", vm, "restore", name), 0)));
            }
        }
        snapshot[0] = median(made.subList(0, 3));
        snapshot[1] = median(made.subList(17, 20));
        delete(dir);
        grown("`vm-ctl list`", "1 VM", "8 VMs", 8, list[0], list[1]);
        grown("`vm-ctl status`", "1 snapshot", "20 snapshots", 20, status[0], status[1]);
        grown("`vm-ctl snapshot` of a stopped VM", "the first 3", "the 18th to 20th", 20, snapshot[0], snapshot[1]);
        grown("`vm-ctl restore` of a stopped VM", "1 snapshot", "20 snapshots", 20, restore[0], restore[1]);
    }

    /**
     * A suite of eight packages that wait, as tests of processes and mounts do, in clones against one package after the other. And what
     * the clones cost by themselves.
     */
    private void parallel() throws Exception {
        needVm();
        Map<String, String> suite = waitingTests(8, 10);
        done(script("VmTest", "--sync", "unit"), 0, suite);
        double alone = seconds(() -> done(script("VmTest", "unit"), 0, suite)); // minutes each: one run has to do
        for (int count : List.of(1, 2, 4)) {
            double ours = seconds(() -> done(script("VmTest", "--parallel", "" + count, "unit"), 0, suite));
            add(new Row("`vm-test --parallel " + count + "`, 8 packages that wait for 10 s", "`vm-test`, one package after the other",
                    1.0 / count + 0.3, "x", List.of(ours), List.of(alone)));
        }
        // Nobody holds a lock on the file, so the next command removes what was made.
        Path lock = Files.write(VM_DIR.resolve(NAME + ".test/bench.lock"), new byte[0]);
        List<String> times = new ArrayList<>();
        try (FileChannel channel = FileChannel.open(lock, StandardOpenOption.WRITE)) {
            channel.lock();
            times.add(number("the snapshot %.1f s", seconds(() -> done(script("VmCtl", "snapshot", "--temporary", lock.toString(), "bench"), 0))));
            times.add(number("four clones %.1f s", seconds(() -> done(script("VmCtl", "clone", "--temporary", lock.toString(), "--snapshot", "bench",
                    "--start", "one", "two", "three", "four"), 0))));
        }
        times.add(number("to remove them and merge the layer %.1f s", seconds(() -> done(script("VmCtl", "list"), 0))));
        notes.add("Of `vm-test --parallel 4` this is for the clones: " + String.join(", ", times) + ".");
    }

    /** A VM that travels, and what that saves on a machine that has nothing: the time to the first test result. */
    private void image() throws Exception {
        Map<String, String> suite = waitingTests(1, 0);
        Work firstTest = () -> {
            done(script("VmCtl", "start"), 0);
            done(script("VmTest", "--sync", "unit"), 0, suite);
        };
        removeVmDir();
        startMirror();
        double installed = seconds(() -> {
            installOnce();
            firstTest.run();
        });
        Path image = WORK.resolve("image");
        Path copy = Files.createDirectories(WORK.resolve("copy"));
        List<String> sizes = new ArrayList<>();
        for (String option : List.of("", " --with-ram")) {
            List<String> more = option.isEmpty() ? List.of() : List.of("--with-ram");
            List<Double> exports = new ArrayList<>();
            List<Double> copies = new ArrayList<>();
            List<Double> imports = new ArrayList<>();
            List<Double> unpacked = new ArrayList<>();
            List<Double> results = new ArrayList<>();
            for (int i = 0; i < 3; i++) {
                exports.add(seconds(() -> done(script("VmCtl", List.of("export", image.toString()), more.toArray(String[]::new)), 0)));
                copies.add(seconds(() -> done(command("qemu-img", "convert", "-c", "-O", "qcow2",
                        VM_DIR.resolve(NAME + "-clean.qcow2").toString(), copy.resolve("disk").toString()), 0)));
            }
            sizes.add(Files.size(image) / 1_000_000 + " MB" + (option.isEmpty() ? "" : " with the RAM"));
            for (int i = 0; i < 3; i++) {
                removeVmDir();
                imports.add(seconds(() -> done(script("VmCtl", List.of("import", image.toString()), more.toArray(String[]::new)), 0)));
                results.add(imports.get(i) + seconds(firstTest));
                unpacked.add(seconds(() -> done(command("sh", "-c", "tar -C \"$1\" -xf \"$0\" && sha256sum \"$0\"", image.toString(), copy.toString()), 0)));
            }
            add(new Row("`vm-ctl export" + option + "`", "`qemu-img convert -c` of the disk alone", 1.5, "x", exports, copies));
            add(new Row("`vm-ctl import" + option + "`", "`tar -xf` and `sha256sum` of the file", 3, "x", imports, unpacked));
            add(new Row("from an empty VM_DIR to the first test result, `vm-ctl import" + option + "`", "the same, installed (once)", 0.5, "x",
                    results, Collections.nCopies(results.size(), installed)));
        }
        notes.add("The image file of this installation has " + String.join(", and ", sizes) + ".");
        delete(image);
        delete(copy);
    }

    // The VM and what else is measured on.

    private void needVm() throws Exception {
        if (!Files.exists(VM_DIR.resolve(NAME + "-clean.qcow2"))) {
            installOnce();
        }
        done(script("VmCtl", "start"), 0);
    }

    /** Makes VMs of the one that stays; they are destroyed when their group, or the whole run, has ended. */
    private void cloned(List<String> names) throws Exception {
        clones.addAll(names);
        destroyClones(); // those of a run that was killed
        clones.addAll(names);
        done(script("VmCtl", List.of("clone"), names.toArray(String[]::new)), 0);
    }

    private void destroyClones() throws Exception {
        for (; !clones.isEmpty(); clones.remove(0)) {
            done(script("VmCtl", "destroy", "--yes"), 0, Map.of("VM_NAME", clones.get(0)));
        }
    }

    private void destroy() throws Exception {
        done(script("VmCtl", "destroy", "--yes"), 0);
    }

    private void removeVmDir() throws Exception {
        if (Files.exists(VM_DIR)) {
            destroy();
            delete(VM_DIR);
        }
    }

    private void startMirror() throws Exception {
        if (mirror == null) {
            mirror = serve(standin(), WORK.resolve("port"));
            port = Integer.parseInt(Files.readString(WORK.resolve("port")).strip());
        }
    }

    /** Installs, and tells when what happened, in seconds from the command's start: onN, offN (the guest's), phaseN, all. */
    private Map<String, Double> installOnce() throws Exception {
        startMirror();
        Files.deleteIfExists(VM_DIR.resolve("dfly-6.4.2.iso")); // it may be of an older stand-in
        done(script("VmSetup", "--mirror", "http://127.0.0.1:" + port + "/iso-images", "fetch", "--trust-mirror"), 0);
        Map<String, Double> seen = new TreeMap<>();
        Map<String, String> firmware = Map.of("VM_QEMU_ARGS", "-fw_cfg name=opt/standin/mirror,string=http://10.0.2.2:" + port);
        long begun = System.nanoTime();
        Process process = builder(script("VmAutoInstall"), firmware).redirectOutput(ProcessBuilder.Redirect.DISCARD).start();
        Thread consoles = new Thread(() -> watchConsoles(process, begun, seen));
        consoles.start();
        StringBuilder said = new StringBuilder();
        try (BufferedReader err = process.errorReader(UTF_8)) {
            for (String line = err.readLine(); line != null; line = err.readLine()) {
                said.append(line).append('\n');
                if (line.matches("(vm-auto-install: )?phase \\d done in .*")) {
                    synchronized (seen) {
                        seen.put("phase" + line.replaceAll(".*phase (\\d) done.*", "$1"), (System.nanoTime() - begun) / 1e9);
                    }
                }
            }
        }
        if (process.waitFor() != 0) {
            throw new IllegalStateException("vm-auto-install failed:\n" + said);
        }
        seen.put("all", (System.nanoTime() - begun) / 1e9);
        consoles.join();
        return seen;
    }

    private static void watchConsoles(Process process, long begun, Map<String, Double> seen) {
        Map<String, String> signs = Map.of("on", "\n", "off", "Powering system off");
        while (process.isAlive()) {
            try {
                Thread.sleep(5); // a phase takes 15 s and more
                for (int phase = 1; phase <= 3; phase++) {
                    Path log = VM_DIR.resolve(NAME + ".install/phase" + phase + ".log");
                    String text = Files.exists(log) ? Files.readString(log, ISO_8859_1) : "";
                    for (Map.Entry<String, String> sign : signs.entrySet()) {
                        if (text.contains(sign.getValue())) {
                            synchronized (seen) {
                                seen.putIfAbsent(sign.getKey() + phase, (System.nanoTime() - begun) / 1e9);
                            }
                        }
                    }
                }
            } catch (IOException | InterruptedException replaced) {
                // looked at again
            }
        }
    }

    private static Path standin() throws Exception {
        Process build = new ProcessBuilder("test/standin/build.sh", TOP.resolve(".build/standin").toString())
                .redirectError(ProcessBuilder.Redirect.INHERIT).start();
        String where = new String(build.getInputStream().readAllBytes(), UTF_8).strip();
        if (build.waitFor() != 0) {
            throw new IllegalStateException("the stand-in cannot be built");
        }
        return Path.of(where);
    }

    /** The tests' mirror on a directory; it ends when we do. */
    private static Process serve(Path root, Path portFile) throws Exception {
        Files.deleteIfExists(portFile);
        String jar = TOP.resolve(".build/Mirror.jar").toString();
        Process server = new ProcessBuilder("java", "-jar", jar, root.toString(), portFile.toString()).start();
        for (int i = 0; i < 600 && !Files.exists(portFile); i++) {
            Thread.sleep(50);
        }
        if (!Files.exists(portFile)) {
            server.destroy();
            throw new IllegalStateException("the mirror did not start within 30 s");
        }
        return server;
    }

    /** A Go-like project with so many files of about 1 KB in it. */
    private static Path project(int files) throws IOException {
        Path project = WORK.resolve("files" + files);
        for (int i = 0; i < files && !Files.exists(project.resolve("complete")); i++) {
            Path directory = project.resolve("dir" + i / 100);
            if (i % 100 == 0) {
                Files.createDirectories(directory);
            }
            Files.writeString(directory.resolve("file" + i + ".go"),
                    "package dir" + i / 100 + "\n" + ("// file " + i + " says something\n").repeat(40));
        }
        Files.writeString(project.resolve("complete"), "");
        return project;
    }

    /** The settings for a project whose suite unit has so many packages, with one test each that waits for so many seconds. */
    private static Map<String, String> waitingTests(int packages, int seconds) throws IOException {
        Path project = WORK.resolve("waiting");
        delete(project);
        Files.createDirectories(project);
        Files.writeString(project.resolve("go.mod"), "module waiting\n\ngo 1.18\n");
        for (int i = 1; i <= packages; i++) {
            Files.writeString(Files.createDirectories(project.resolve("p" + i)).resolve("p_test.go"), """
                    package p

                    import (
                    	"testing"
                    	"time"
                    )

                    func TestWaits(t *testing.T) { time.Sleep(%d * time.Second) }
                    """.formatted(seconds));
        }
        return Map.of("VM_PROJECT", project.toString(), "VM_TEST_BUILD", "true", "VM_TEST_UNIT", "go test -p 1 -count=1 ./...");
    }

    /** A directory with links to these programs and no others. */
    private static Path linksTo(String... programs) throws IOException {
        Path links = WORK.resolve("path");
        delete(links);
        Files.createDirectories(links);
        for (String program : programs) {
            Path found = Stream.of(System.getenv("PATH").split(":")).map(dir -> Path.of(dir, program)).filter(Files::isExecutable)
                    .findFirst().orElseThrow();
            Files.createSymbolicLink(links.resolve(program), found.toRealPath());
        }
        return links;
    }

    private static boolean onPath(String program) {
        return Stream.of(System.getenv("PATH").split(":")).anyMatch(dir -> Files.isExecutable(Path.of(dir, program)));
    }

    private void end() throws Exception {
        if (Files.isDirectory(VM_DIR)) {
            destroyClones();
            done(script("VmCtl", "stop", "--force"), 0);
        }
        if (mirror != null) {
            mirror.destroy();
        }
    }

    // Commands.

    private static List<String> command(String... words) {
        return Arrays.asList(words);
    }

    private static List<String> script(String name, List<String> options, String... arguments) {
        List<String> command = new ArrayList<>(script(name, options.toArray(String[]::new)));
        command.addAll(Arrays.asList(arguments));
        return command;
    }

    /** A script as make runs it: the Makefile says how, in BENCH_<script>. */
    private static List<String> script(String name, String... arguments) {
        List<String> command = new ArrayList<>(List.of("sh", "-c", "exec " + System.getenv("BENCH_" + name) + " \"$@\"", "sh"));
        command.addAll(Arrays.asList(arguments));
        return command;
    }

    private static List<String> ssh(String line) {
        return command("ssh", "-F", VM_DIR.resolve("ssh_config").toString(), "-o", "ControlMaster=no", "-o", "ControlPath=none",
                NAME, line);
    }

    private static List<String> rsync(Path project, String to) {
        return command("rsync", "-az", "--delete",
                "-e", "ssh -F '" + VM_DIR.resolve("ssh_config") + "' -o ControlMaster=no -o ControlPath=none",
                project + "/", NAME + ":" + to + "/");
    }

    private ProcessBuilder builder(List<String> command, Map<String, String> more) {
        ProcessBuilder builder = new ProcessBuilder(command).redirectInput(new File("/dev/null"));
        builder.environment().keySet().removeIf(name -> name.startsWith("VM_") && !name.endsWith("_CMD") || name.startsWith("DFLY_")
                || name.startsWith("MAKE"));
        builder.environment().putAll(settings);
        builder.environment().putAll(more);
        return builder;
    }

    private long done(List<String> command, int code) throws Exception {
        return done(command, code, Map.of());
    }

    /** Runs a command to its end, which is to be this exit code; the most memory that it (sh execs it) had, in KiB. */
    private long done(List<String> command, int code, Map<String, String> more) throws Exception {
        Path err = WORK.resolve("stderr");
        Process process = builder(command, more).redirectOutput(ProcessBuilder.Redirect.DISCARD).redirectError(err.toFile()).start();
        long most = 0;
        long deadline = System.nanoTime() + TimeUnit.MINUTES.toNanos(20);
        while (!process.waitFor(50, TimeUnit.MILLISECONDS)) {
            most = Math.max(most, peak(process.pid()));
            if (System.nanoTime() > deadline) {
                process.destroyForcibly();
            }
        }
        if (process.exitValue() != code) {
            throw new IllegalStateException(String.join(" ", command) + " ended with " + process.exitValue() + ":\n"
                    + Files.readString(err, ISO_8859_1));
        }
        return most;
    }

    /** What the last command said on stderr, by a pattern with one group. */
    private static String saidLast(String pattern) throws IOException {
        String err = Files.readString(WORK.resolve("stderr"));
        return Pattern.compile(pattern).matcher(err).results().map(found -> found.group(1)).findFirst()
                .orElseThrow(() -> new IllegalStateException("there is no '" + pattern + "' in:\n" + err));
    }

    private static long peak(long pid) {
        try {
            return Pattern.compile("VmHWM:\\s*(\\d+)").matcher(Files.readString(Path.of("/proc/" + pid + "/status"))).results()
                    .mapToLong(found -> Long.parseLong(found.group(1))).sum();
        } catch (IOException gone) {
            return 0;
        }
    }

    // Measuring.

    private static double seconds(Work work) throws Exception {
        long begun = System.nanoTime();
        work.run();
        return (System.nanoTime() - begun) / 1e9;
    }

    private static List<Double> times(int runs, Work work) throws Exception {
        work.run();
        List<Double> times = new ArrayList<>();
        for (int i = 0; i < runs; i++) {
            times.add(seconds(work));
        }
        return times;
    }

    private Row pairs(String what, String against, double target, String unit, int runs, Work ours, Work theirs) throws Exception {
        Row row = compare(what, against, target, unit, runs, () -> { }, ours, () -> { }, theirs);
        add(row);
        return row;
    }

    /** Both in turn, each after what has to be made ready for it; the first time without counting. */
    private static Row compare(String what, String against, double target, String unit, int runs, Work beforeOurs, Work ours,
            Work beforeTheirs, Work theirs) throws Exception {
        List<Double> our = new ArrayList<>();
        List<Double> their = new ArrayList<>();
        for (int i = 0; i <= runs; i++) {
            beforeOurs.run();
            double one = seconds(ours);
            beforeTheirs.run();
            double other = seconds(theirs);
            if (i > 0) {
                our.add(one);
                their.add(other);
            }
        }
        return new Row(what, against, target, unit, our, their);
    }

    private void add(Row row) {
        rows.add(row);
        System.err.println(row.line());
    }

    private void grown(String what, String small, String large, double factor, double smallSeconds, double largeSeconds) {
        growths.add(new Growth(what, small, large, factor, smallSeconds, largeSeconds));
        System.err.println(growths.get(growths.size() - 1).line());
    }

    private static double median(List<Double> values) {
        double[] sorted = values.stream().mapToDouble(Double::doubleValue).sorted().toArray();
        int middle = sorted.length / 2;
        return sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    }

    private static void delete(Path tree) throws IOException {
        if (Files.exists(tree)) {
            try (Stream<Path> files = Files.walk(tree)) {
                for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                    Files.delete(file);
                }
            }
        }
    }

    // What is written.

    private static String number(String format, double value) {
        return String.format(Locale.ROOT, format, value);
    }

    private static String seconds(double value) {
        return number(value < 10 ? "%.2f s" : "%.0f s", value);
    }

    /** What the VM ran with, where one was measured. */
    private static String accelerator() throws IOException {
        Path probed = VM_DIR.resolve("accel.json");
        return !Files.exists(probed) ? "no VM" : Files.readString(probed).contains("\"tcg\"") ? "emulating: QEMU's tcg" : "KVM";
    }

    private static String firstLine(String... command) {
        try {
            Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
            return new String(process.getInputStream().readAllBytes(), UTF_8).lines().findFirst().orElse("");
        } catch (IOException missing) {
            return command[0] + " is missing";
        }
    }

    /** The tables of bench/README.md. Of an earlier one it keeps the lines that were not measured again. */
    private String table(String earlier) throws IOException {
        String cpu = Files.readString(Path.of("/proc/cpuinfo")).lines().filter(line -> line.startsWith("model name")).findFirst()
                .orElse(": unknown").replaceAll(".*: ", "");
        List<String> lines = new ArrayList<>();
        lines.add(Runtime.getRuntime().availableProcessors() + " cores of " + cpu + " (" + accelerator() + "), "
                + firstLine("sh", "-c", ". /etc/os-release; echo \"$PRETTY_NAME\"") + ", Java " + Runtime.version().feature() + ", "
                + firstLine("qemu-system-x86_64", "--version").replaceAll(" \\(.*", "") + ", "
                + firstLine("rsync", "--version").replaceAll(" +protocol.*", "").replaceAll(" +", " ") + ".");
        List<String> parts = List.of(earlier.split("\n\n")); // the machine, two tables, the notes
        lines.add("");
        lines.add("| what | against | ours | that | measured | spread | runs | target | on |");
        lines.add("|---|---|---|---|---|---|---|---|---|");
        lines.addAll(merged(parts.size() < 4 ? "" : parts.get(1), rows.stream().map(Row::line).toList()));
        lines.add("");
        lines.add("| as the work grows | from \u2192 to | work | time for less | time for more | time | on |");
        lines.add("|---|---|---|---|---|---|---|");
        lines.addAll(merged(parts.size() < 4 ? "" : parts.get(2), growths.stream().map(Growth::line).toList()));
        lines.add("");
        lines.addAll(merged(parts.size() < 4 ? "" : parts.get(3), notes));
        return String.join("\n", lines) + "\n";
    }

    /** Lines of one part: an earlier one gives its place to a new one that has the same first two cells, or words. */
    private static List<String> merged(String earlier, List<String> measured) {
        List<String> kept = earlier.lines().toList();
        Map<String, String> lines = new LinkedHashMap<>();
        Stream.concat(kept.stream().skip(earlier.startsWith("|") ? 2 : 0), measured.stream())
                .forEach(line -> lines.put(line.replaceAll("^(\\|[^|]*\\|[^|]*\\||\\S+ \\S+).*", "$1"), line));
        return List.copyOf(lines.values());
    }

    /** A row of the table, as the chart shows it. */
    record Bar(String what, String said, double measured, double least, double most, double target) {
        static Optional<Bar> of(String line) {
            String[] cells = line.split(" *\\| ?");
            if (cells.length != 10 || !cells[5].startsWith("**")) {
                return Optional.empty();
            }
            String said = cells[5].replace("*", "");
            String[] spread = cells[6].split(" \\.\\.\\. ");
            return Optional.of(new Bar(cells[1].replace("`", ""), said, value(said), value(spread[0]), value(spread[1]),
                    value(cells[8])));
        }

        private static double value(String said) {
            return Double.parseDouble(said.split(" ")[0]);
        }
    }

    /** Bars as long as the share of its target that a figure takes; the target is a line. */
    private static String chart(List<Bar> bars) {
        int left = 430;
        int target = 300;
        int height = 60 + 24 * bars.size();
        StringBuilder svg = new StringBuilder("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 " + height + "\" role=\"img\" "
                + "aria-label=\"Measured figures as a share of their targets\">\n<style>text{font:12px sans-serif;fill:#24292f}"
                + ".good{fill:#2da44e}.over{fill:#cf222e}.line{stroke:#57606a;stroke-dasharray:3 3}.spread{stroke:#24292f}"
                + "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.line{stroke:#8b949e}.spread{stroke:#e6edf3}}</style>\n");
        svg.append(text(left + target, 20, "middle", "target")).append(text(left, 20, "start", "shorter is better"));
        svg.append(line("line", left + target, 28, left + target, height - 20));
        for (int i = 0; i < bars.size(); i++) {
            Bar bar = bars.get(i);
            int y = 36 + 24 * i;
            int end = left + share(bar, bar.measured(), target);
            svg.append(text(left - 8, y + 12, "end", bar.what()));
            svg.append(String.format(Locale.ROOT, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"16\"/>%n",
                    bar.measured() <= bar.target() ? "good" : "over", left, y, end - left));
            int most = left + share(bar, bar.most(), target);
            svg.append(line("spread", left + share(bar, bar.least(), target), y + 8, most, y + 8));
            svg.append(text(Math.max(most, end) + 6, y + 12, "start", bar.said()));
        }
        svg.append(text(left, height - 4, "start", "x: our time divided by the other's; +: seconds above it; the thin line is the spread"));
        return svg.append("</svg>\n").toString();
    }

    /** Pixels of a figure, within the picture. */
    private static int share(Bar bar, double value, int target) {
        return (int) Math.round(Math.max(1, Math.min(1.5, value / bar.target()) * target));
    }

    private static String line(String kind, int x1, int y1, int x2, int y2) {
        return String.format(Locale.ROOT, "<line class=\"%s\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>%n", kind, x1, y1, x2, y2);
    }

    private static String text(int x, int y, String anchor, String text) {
        return "<text x=\"" + x + "\" y=\"" + y + "\" text-anchor=\"" + anchor + "\">"
                + text.replace("&", "&amp;").replace("<", "&lt;") + "</text>\n";
    }
}
