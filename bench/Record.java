import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/**
 * Draws {@code bench/demo.svg} from a real run of {@code make demo}: the lines as they came, each with the second it came in.
 *
 * <p>{@code java bench/Record.java} at the top of the checkout runs the demo (about three minutes), keeps what it said in
 * {@code .build/demo.rec}, a line as milliseconds, tab, text, and draws that. {@code java bench/Record.java FILE} draws a kept recording.
 * <ol>
 * <li>Waits are cut short; the times at the left stay the real ones.
 * <li>Paths of this machine go: the checkout's and VM_DIR's. Control characters go, what XML reserves is escaped.
 * <li>All lines stand in one column behind a window, and the column moves up a line at a time. Without animation (a converter, a
 *     reader who wants less motion) it stands where it ends: at the final screen.
 * </ol>
 * A demo that failed is not drawn.
 */
final class Record {

    private static final Path TOP = Path.of("").toAbsolutePath();
    private static final Path KEPT = Path.of(".build/demo.rec");
    private static final Path SVG = Path.of("bench/demo.svg");
    private static final int COLUMNS = 112;
    private static final int ROWS = 28;
    private static final int LINE = 17;
    private static final int TIME = 58; // the width of the times' column
    private static final int WIDTH = TIME + COLUMNS * 8 + 24; // at 13 px a character is 7.8 px wide in the widest of the fonts
    private static final long LONGEST_WAIT = 700;
    private static final long LAST_SCREEN = 8000;

    /** A line and the milliseconds from the start to it. */
    private record Said(long at, String text) {
    }

    public static void main(String... args) throws Exception {
        List<Said> said = args.length > 0 ? kept(Path.of(args[0])) : demo();
        if (said.isEmpty() || !said.get(said.size() - 1).text().startsWith("demo passed in ")) {
            System.err.println("record: the demo did not pass, nothing is drawn");
            System.exit(1);
        }
        String svg = draw(said);
        Files.writeString(SVG, svg);
        System.out.println(SVG + ": " + said.size() + " lines, " + svg.length() / 1024 + " KB");
    }

    /** What the demo says, from make's first line on, on both streams; also to stderr, for whoever waits. */
    private static List<Said> demo() throws IOException, InterruptedException {
        Process make = new ProcessBuilder("make", "--no-print-directory", "demo").redirectErrorStream(true).start();
        make.getOutputStream().close();
        long start = System.nanoTime();
        List<Said> said = new ArrayList<>();
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(make.getInputStream(), UTF_8))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                System.err.println(line);
                said.add(new Said((System.nanoTime() - start) / 1_000_000, line));
            }
        }
        if (make.waitFor() != 0) {
            return List.of();
        }
        Files.writeString(KEPT, String.join("", said.stream().map(one -> one.at() + "\t" + one.text() + "\n").toList()));
        return said;
    }

    private static List<Said> kept(Path file) throws IOException {
        return Files.readAllLines(file).stream().map(line -> line.split("\t", 2))
                .map(parts -> new Said(Long.parseLong(parts[0]), parts[1])).toList();
    }

    private static String draw(List<Said> said) {
        StringBuilder column = new StringBuilder();
        List<String> moves = new ArrayList<>(); // "milliseconds rows", the film's time
        long film = 0;
        long before = 0;
        int rows = 0;
        for (Said one : said) {
            film += Math.min(one.at() - before, LONGEST_WAIT);
            before = one.at();
            boolean first = true;
            for (String part : wrapped(withoutThisMachine(one.text()))) {
                rows++;
                int y = rows * LINE;
                if (first && !part.isBlank()) {
                    column.append(String.format(Locale.ROOT, "<text class=\"t\" x=\"%d\" y=\"%d\">%.1f</text>%n",
                            TIME - 10, y, one.at() / 1000.0));
                }
                if (!part.isBlank()) {
                    column.append(String.format(Locale.ROOT, "<text%s x=\"%d\" y=\"%d\" xml:space=\"preserve\">%s</text>%n",
                            style(one.text()), TIME, y, escaped(part)));
                }
                first = false;
            }
            moves.add(film + " " + rows);
        }
        long length = film + LAST_SCREEN;
        StringBuilder frames = new StringBuilder("0%{transform:translateY(" + ROWS * LINE + "px)}\n");
        for (String move : moves) {
            String[] parts = move.split(" ");
            frames.append(String.format(Locale.ROOT, "%.3f%%{transform:translateY(%dpx)}%n", 100.0 * Long.parseLong(parts[0]) / length,
                    (ROWS - Integer.parseInt(parts[1])) * LINE));
        }
        int end = (ROWS - rows) * LINE;
        frames.append("100%{transform:translateY(").append(end).append("px)}");
        int height = ROWS * LINE + 24;
        return """
                <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %1$d %2$d" width="%1$d" height="%2$d" role="img">
                <title>make demo, recorded; waits are cut short, the seconds at the left are the real ones</title>
                <style>
                text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;fill:#c9d1d9;white-space:pre}
                .t{fill:#7d8590;text-anchor:end}
                .s{fill:#7ee787;font-weight:bold}
                .c{fill:#79c0ff}
                .f{fill:#ff7b72;font-weight:bold}
                @keyframes up{
                %3$s
                }
                .up{animation:up %4$.1fs step-end infinite}
                @media (prefers-reduced-motion:reduce){.up{animation:none}}
                </style>
                <rect x="0.5" y="0.5" width="%5$d" height="%6$d" rx="8" fill="#0d1117" stroke="#57606a"/>
                <svg x="0" y="12" width="%1$d" height="%7$d" viewBox="0 4 %1$d %7$d">
                <g class="up" transform="translate(0 %8$d)">
                %9$s</g>
                </svg>
                </svg>
                """.formatted(WIDTH, height, frames, length / 1000.0, WIDTH - 1, height - 1, ROWS * LINE + 6, end, column);
    }

    private static String style(String line) {
        if (line.matches("== .*: FAILED .*|demo failed.*")) {
            return " class=\"f\"";
        }
        if (line.startsWith("== ") || line.startsWith("demo passed")) {
            return " class=\"s\"";
        }
        return line.startsWith("   $ ") ? " class=\"c\"" : "";
    }

    private static String withoutThisMachine(String line) {
        return line.replace(TOP.resolve(".build/demo/vm").toString(), "$VM_DIR").replace(TOP + "/", "").replace(TOP.toString(), ".")
                .replaceAll("\u001b\\[[0-9;?]*[A-Za-z]", "").replace("\t", "    ").replaceAll("\\p{Cntrl}", "");
    }

    private static List<String> wrapped(String line) {
        List<String> parts = new ArrayList<>();
        String rest = line;
        while (rest.length() > COLUMNS) {
            int blank = rest.lastIndexOf(' ', COLUMNS);
            int cut = blank > COLUMNS / 2 ? blank : COLUMNS;
            parts.add(rest.substring(0, cut));
            rest = "     " + rest.substring(cut).strip();
        }
        parts.add(rest);
        return parts;
    }

    private static String escaped(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;");
    }
}
