///usr/bin/env jbang "$0" "$@" ; exit $?
//DESCRIPTION Serve a directory over HTTP as a download mirror does, with faults on request
//JAVA 17+

import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsServer;
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
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.net.ssl.SSLContext;

/**
 * A download mirror on 127.0.0.1, on a free port: index pages, files, ranges "from here on" (206, 416).
 *
 * <p>As a class: {@code new Mirror(root).start()} or {@code startTls(context)}, {@code port()}, {@code url()}, {@code requests()}. As a program:
 * {@code jbang test/Mirror.java DIR PORTFILE [FAULT...]} writes the port to PORTFILE (moved into place) and ends when its
 * standard input does.
 *
 * <p>Faults, by {@link #fault} or as arguments, each in force until {@link #heal}:
 * <ul>
 * <li>{@code ignore-ranges}: every answer is 200 with the whole file
 * <li>{@code no-length}: chunked, without Content-Length
 * <li>{@code drop=N}: the connection is closed after N bytes of a body that has more
 * <li>{@code reset=N}: the same with a TCP reset; holds for connections to {@link #resetUrl}
 * <li>{@code rate=N}: N bytes a second for each answer
 * <li>{@code moved=URL}: files are redirected to the same path there
 * <li>{@code 404=PATH}, {@code 503=PATH}, {@code html=PATH} (a web page with 200), {@code stall=PATH} (never answers)
 * <li>{@code md5=wrong}: every sum in an md5.txt is another one
 * <li>{@code proxy=AUTHORIZATION}: 407 for who does not bring it
 * </ul>
 */
final class Mirror implements Closeable {
    private static final Pattern RANGE = Pattern.compile("bytes=(\\d+)-");

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
        return start(HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0));
    }

    /** The same over https, with the key in this context. */
    Mirror startTls(SSLContext context) throws IOException {
        HttpsServer tls = HttpsServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        tls.setHttpsConfigurator(new HttpsConfigurator(context));
        return start(tls);
    }

    private Mirror start(HttpServer made) {
        server = made;
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
        return (server instanceof HttpsServer ? "https" : "http") + "://127.0.0.1:" + port() + "/";
    }

    /** What was asked, in order: "GET /path 200", with the range asked for between path and status. */
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
            Matcher wanted = RANGE.matcher(range == null || faults.containsKey("ignore-ranges") ? "" : range);
            long start = wanted.matches() ? Long.parseLong(wanted.group(1)) : -1;
            int status = status(exchange, path, file, start);
            requests.add(exchange.getRequestMethod() + " " + exchange.getRequestURI() + (range == null ? "" : " " + range) + " " + status);
            if (path.equals(faults.get("stall"))) {
                Thread.sleep(600_000); // longer than any client's limit
            } else if (path.equals(faults.get("html"))) {
                page(exchange, 200, "<html><body>Please log in to the <b>hotel's</b> network.</body></html>");
            } else if (status == 416) {
                exchange.sendResponseHeaders(416, -1);
            } else if (status >= 400) {
                exchange.getResponseHeaders().set("Proxy-Authenticate", "Basic realm=\"mirror\"");
                page(exchange, status, "<html><body><h1>" + status + "</h1></body></html>");
            } else if (status == 302) {
                exchange.getResponseHeaders().set("Location", faults.get("moved") + path);
                exchange.sendResponseHeaders(status, -1);
            } else if (Files.isDirectory(file)) {
                page(exchange, 200, index(path, file));
            } else if (file.endsWith("md5.txt") && faults.containsKey("md5")) {
                String wrong = Files.readString(file).replaceAll("[0-9a-f]{31}(?=[0-9a-f]\\b)", "0".repeat(31));
                send(exchange, 200, "text/plain", wrong.getBytes(UTF_8));
            } else {
                file(exchange, status, file, Math.max(0, start));
            }
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }

    private int status(HttpExchange exchange, String path, Path file, long start) throws IOException {
        String authorization = exchange.getRequestHeaders().getFirst("Proxy-Authorization");
        if (faults.containsKey("proxy") && !faults.get("proxy").equals(authorization)) {
            return 407;
        } else if (path.equals(faults.get("503"))) {
            return 503;
        } else if (path.equals(faults.get("404")) || !file.startsWith(root) || !Files.exists(file)) {
            return 404;
        } else if (faults.containsKey("moved")) {
            return 302;
        }
        return start < 0 || Files.isDirectory(file) ? 200 : start < Files.size(file) ? 206 : 416;
    }

    private void file(HttpExchange exchange, int status, Path file, long start) throws IOException, InterruptedException {
        long size = Files.size(file);
        exchange.getResponseHeaders().set("Content-Type", file.toString().endsWith(".txt") ? "text/plain" : "application/octet-stream");
        if (status == 206) {
            exchange.getResponseHeaders().set("Content-Range", "bytes " + start + "-" + (size - 1) + "/" + size);
        }
        long length = size - start;
        exchange.sendResponseHeaders(status, faults.containsKey("no-length") ? 0 : length == 0 ? -1 : length);
        long limit = Math.min(length, number("drop"));
        long rate = number("rate");
        byte[] buffer = new byte[(int) Math.max(1, Math.min(1 << 16, rate / 20))];
        try (InputStream in = Files.newInputStream(file)) {
            in.skipNBytes(start);
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
                if (faults.containsKey("rate")) {
                    Thread.sleep(1000L * read / rate);
                }
            }
            if (limit == length) {
                out.close();
            } // else the exchange is closed with a body that has not ended: the server closes the connection
        }
    }

    private long number(String fault) {
        return Long.parseLong(faults.getOrDefault(fault, "" + Long.MAX_VALUE));
    }

    private static void page(HttpExchange exchange, int status, String html) throws IOException {
        send(exchange, status, "text/html; charset=utf-8", html.getBytes(UTF_8));
    }

    private static void send(HttpExchange exchange, int status, String type, byte[] body) throws IOException {
        exchange.getResponseHeaders().set("Content-Type", type);
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
    }

    private static String index(String path, Path directory) throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.sorted().map(file -> file.getFileName() + (Files.isDirectory(file) ? "/" : ""))
                    .map(name -> "<a href=\"" + name + "\">" + name + "</a>\n")
                    .collect(Collectors.joining("", "<html><body><h1>Index of " + path + "</h1><pre>\n", "</pre></body></html>\n"));
        }
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
            long limit = number("reset");
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
