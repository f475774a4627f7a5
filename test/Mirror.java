///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Serve a directory over HTTP as a download mirror does, with faults on request
//JAVA 17+

import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * A download mirror on 127.0.0.1, on a free port: index pages, HEAD, Last-Modified and ETag, ranges (206, 416, If-Range).
 *
 * <p>As a class: {@code new Mirror(root).start()}, {@code port()}, {@code url()}, {@code requests()}. As a program:
 * {@code jbang test/Mirror.java DIR PORTFILE [FAULT...]} writes the port to PORTFILE (moved into place) and ends when its
 * standard input does.
 *
 * <p>Faults, by {@link #fault} or as arguments, each in force until {@link #heal}:
 * <ul>
 * <li>{@code ignore-ranges}: every answer is 200 with the whole file
 * <li>{@code no-validators}: neither ETag nor Last-Modified
 * <li>{@code no-length}: chunked, without Content-Length
 * <li>{@code drop=N}: the connection is closed after N bytes of a body that has more
 * <li>{@code reset=N}: the same with a TCP reset; holds for connections to {@link #resetUrl}
 * <li>{@code rate=N}: N bytes a second for each answer
 * <li>{@code moved=URL}: files are redirected to the same path there
 * <li>{@code 404=PATH}, {@code 503=PATH}, {@code html=PATH} (a web page with 200), {@code stall=PATH} (never answers)
 * <li>{@code md5=wrong}: every sum in an md5.txt is another one
 * </ul>
 */
final class Mirror implements Closeable {
    private static final Pattern RANGE = Pattern.compile("bytes=(\\d*)-(\\d*)");
    private static final DateTimeFormatter HTTP_DATE =
            DateTimeFormatter.ofPattern("EEE, dd MMM yyyy HH:mm:ss 'GMT'", Locale.US).withZone(ZoneOffset.UTC);

    private final Path root;
    private final Map<String, String> faults = new ConcurrentHashMap<>();
    private final List<String> requests = Collections.synchronizedList(new ArrayList<>());
    private final AtomicLong bytesSent = new AtomicLong();
    private HttpServer server;
    private ServerSocket resetting;

    Mirror(Path root) {
        this.root = root.toAbsolutePath().normalize();
    }

    public static void main(String... args) throws Exception {
        if (args.length < 2) {
            System.err.println("usage: Mirror DIR PORTFILE [FAULT...]");
            System.exit(2);
        }
        Mirror mirror = new Mirror(Path.of(args[0])).fault(Arrays.copyOfRange(args, 2, args.length)).start();
        Path portFile = Path.of(args[1]).toAbsolutePath();
        Path beside = portFile.resolveSibling(portFile.getFileName() + ".new");
        Files.writeString(beside, mirror.port() + "\n");
        Files.move(beside, portFile, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        System.in.transferTo(OutputStream.nullOutputStream());
        System.exit(0);
    }

    Mirror start() throws IOException {
        server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setExecutor(Executors.newCachedThreadPool(task -> {
            Thread thread = new Thread(task, "mirror");
            thread.setDaemon(true);
            return thread;
        }));
        server.createContext("/", this::answer);
        server.start();
        return this;
    }

    int port() {
        return server.getAddress().getPort();
    }

    String url() {
        return "http://127.0.0.1:" + port() + "/";
    }

    /** What was asked, in order: "GET /path 200", with the range asked for and If-Range between path and status. */
    List<String> requests() {
        synchronized (requests) {
            return List.copyOf(requests);
        }
    }

    void forgetRequests() {
        requests.clear();
    }

    /** Bytes of bodies handed to the network. */
    long bytesSent() {
        return bytesSent.get();
    }

    Mirror fault(String... names) {
        for (String name : names) {
            int equals = name.indexOf('=');
            faults.put(equals < 0 ? name : name.substring(0, equals), equals < 0 ? "" : name.substring(equals + 1));
        }
        return this;
    }

    Mirror heal() {
        faults.clear();
        return this;
    }

    @Override
    public void close() throws IOException {
        server.stop(0);
        if (resetting != null) {
            resetting.close();
        }
    }

    private void answer(HttpExchange exchange) throws IOException {
        try (exchange) {
            // A client that takes this server for its proxy sends the whole URL: the path counts then, too.
            String path = exchange.getRequestURI().getPath();
            Path file = root.resolve(path.substring(1)).normalize();
            String range = exchange.getRequestHeaders().getFirst("Range");
            String ifRange = exchange.getRequestHeaders().getFirst("If-Range");
            int status = status(exchange, path, file, range, ifRange);
            requests.add(exchange.getRequestMethod() + " " + exchange.getRequestURI() + (range == null ? "" : " " + range)
                    + (ifRange == null ? "" : " If-Range") + " " + status);
            if (path.equals(faults.get("stall"))) {
                Thread.sleep(600_000); // longer than any client's limit
            } else if (status >= 400 && status != 416) {
                page(exchange, status, "<html><body><h1>" + status + "</h1></body></html>");
            } else if (path.equals(faults.get("html"))) {
                page(exchange, 200, "<html><body>Please log in to the <b>hotel's</b> network.</body></html>");
            } else if (status / 100 == 3) {
                exchange.getResponseHeaders().set("Location", status == 301 ? path + "/" : faults.get("moved") + path);
                exchange.sendResponseHeaders(status, -1);
            } else if (Files.isDirectory(file)) {
                page(exchange, 200, index(path, file));
            } else if (file.endsWith("md5.txt") && faults.containsKey("md5")) {
                String wrong = Files.readString(file).replaceAll("[0-9a-f]{31}(?=[0-9a-f]\\b)", "0".repeat(31));
                send(exchange, 200, "text/plain", wrong.getBytes(UTF_8));
            } else {
                file(exchange, status, file, range);
            }
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }

    private int status(HttpExchange exchange, String path, Path file, String range, String ifRange) throws IOException {
        if (!List.of("GET", "HEAD").contains(exchange.getRequestMethod())) {
            return 405;
        } else if (path.equals(faults.get("503"))) {
            return 503;
        } else if (path.equals(faults.get("404")) || !file.startsWith(root) || !Files.exists(file)) {
            return 404;
        } else if (Files.isDirectory(file)) {
            return path.endsWith("/") ? 200 : 301;
        } else if (faults.containsKey("moved")) {
            return 302;
        }
        boolean current = ifRange == null || ifRange.equals(tag(file)) || ifRange.equals(modified(file));
        if (range == null || faults.containsKey("ignore-ranges") || !current || !RANGE.matcher(range).matches()) {
            return 200;
        }
        long[] span = span(range, Files.size(file));
        return span[0] < span[1] ? 206 : 416;
    }

    private static long[] span(String range, long size) {
        Matcher wanted = RANGE.matcher(range);
        wanted.matches();
        if (wanted.group(1).isEmpty()) {
            return new long[] {Math.max(0, size - Long.parseLong(wanted.group(2))), size};
        }
        long end = wanted.group(2).isEmpty() ? size : Math.min(size, Long.parseLong(wanted.group(2)) + 1);
        return new long[] {Long.parseLong(wanted.group(1)), end};
    }

    private void file(HttpExchange exchange, int status, Path file, String range) throws IOException, InterruptedException {
        long size = Files.size(file);
        long[] span = status == 206 ? span(range, size) : new long[] {0, size};
        Headers headers = exchange.getResponseHeaders();
        if (!faults.containsKey("ignore-ranges")) {
            headers.set("Accept-Ranges", "bytes");
        }
        if (!faults.containsKey("no-validators")) {
            headers.set("Last-Modified", modified(file));
            headers.set("ETag", tag(file));
        }
        headers.set("Content-Type", file.toString().endsWith(".txt") ? "text/plain" : "application/octet-stream");
        if (status == 416) {
            headers.set("Content-Range", "bytes */" + size);
            exchange.sendResponseHeaders(416, -1);
            return;
        } else if (status == 206) {
            headers.set("Content-Range", "bytes " + span[0] + "-" + (span[1] - 1) + "/" + size);
        }
        long length = span[1] - span[0];
        if (exchange.getRequestMethod().equals("HEAD")) {
            headers.set("Content-Length", Long.toString(length));
            exchange.sendResponseHeaders(status, -1);
            return;
        }
        exchange.sendResponseHeaders(status, faults.containsKey("no-length") ? 0 : length == 0 ? -1 : length);
        long limit = Math.min(length, Long.parseLong(faults.getOrDefault("drop", "" + Long.MAX_VALUE)));
        long rate = Long.parseLong(faults.getOrDefault("rate", "0"));
        byte[] buffer = new byte[rate == 0 ? 1 << 16 : (int) Math.max(1, Math.min(1 << 16, rate / 20))];
        try (InputStream in = Files.newInputStream(file)) {
            in.skipNBytes(span[0]);
            OutputStream out = exchange.getResponseBody();
            for (long sent = 0; sent < limit;) {
                int read = in.read(buffer, 0, (int) Math.min(buffer.length, limit - sent));
                if (read < 0) {
                    return; // the file shrank under us
                }
                out.write(buffer, 0, read);
                out.flush();
                sent += read;
                bytesSent.addAndGet(read);
                if (rate > 0) {
                    Thread.sleep(1000L * read / rate);
                }
            }
            if (limit == length) {
                out.close();
            } // else the exchange is closed with a body that has not ended: the server closes the connection
        }
    }

    private static void page(HttpExchange exchange, int status, String html) throws IOException {
        send(exchange, status, "text/html; charset=utf-8", html.getBytes(UTF_8));
    }

    private static void send(HttpExchange exchange, int status, String type, byte[] body) throws IOException {
        exchange.getResponseHeaders().set("Content-Type", type);
        if (exchange.getRequestMethod().equals("HEAD")) {
            exchange.getResponseHeaders().set("Content-Length", Integer.toString(body.length));
            exchange.sendResponseHeaders(status, -1);
            return;
        }
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
    }

    private static String index(String path, Path directory) throws IOException {
        StringBuilder page = new StringBuilder("<html><head><title>Index of " + path + "</title></head><body><h1>Index of " + path
                + "</h1><hr><pre><a href=\"../\">../</a>\n");
        try (Stream<Path> files = Files.list(directory)) {
            for (Path file : files.sorted().toList()) {
                String name = file.getFileName() + (Files.isDirectory(file) ? "/" : "");
                page.append("<a href=\"").append(name).append("\">").append(name).append("</a> ")
                        .append(modified(file)).append(' ').append(Files.isDirectory(file) ? "-" : Files.size(file)).append('\n');
            }
        }
        return page.append("</pre><hr></body></html>\n").toString();
    }

    private static String modified(Path file) throws IOException {
        return HTTP_DATE.format(Instant.ofEpochSecond(Files.getLastModifiedTime(file).toMillis() / 1000));
    }

    private static String tag(Path file) throws IOException {
        return '"' + Long.toHexString(Files.getLastModifiedTime(file).toMillis()) + "-" + Long.toHexString(Files.size(file)) + '"';
    }

    /** The same mirror behind a relay that resets every connection after the {@code reset=N} fault's number of bytes. */
    synchronized String resetUrl() throws IOException {
        if (resetting == null) {
            resetting = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
            daemon(() -> {
                while (true) {
                    Socket client = resetting.accept();
                    Socket inner = new Socket(InetAddress.getLoopbackAddress(), port());
                    daemon(() -> client.getInputStream().transferTo(inner.getOutputStream()));
                    daemon(() -> relay(inner, client));
                }
            });
        }
        return "http://127.0.0.1:" + resetting.getLocalPort() + "/";
    }

    private void relay(Socket from, Socket to) throws IOException {
        try (from; to) {
            byte[] buffer = new byte[1 << 12];
            long limit = Long.parseLong(faults.getOrDefault("reset", "" + Long.MAX_VALUE));
            for (long sent = 0; sent < limit;) {
                int read = from.getInputStream().read(buffer, 0, (int) Math.min(buffer.length, limit - sent));
                if (read < 0) {
                    return;
                }
                to.getOutputStream().write(buffer, 0, read);
                sent += read;
            }
            to.setSoLinger(true, 0); // closing now sends RST
        }
    }

    private interface Task {
        void run() throws IOException;
    }

    private static void daemon(Task task) {
        Thread thread = new Thread(() -> {
            try {
                task.run();
            } catch (SocketException closed) {
                // by the other side, or by close()
            } catch (IOException failed) {
                throw new UncheckedIOException(failed);
            }
        }, "mirror relay");
        thread.setDaemon(true);
        thread.start();
    }
}
