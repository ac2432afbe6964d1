package dev.ruvd.example;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import dev.ruvd.client.CompletionStream;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.client.RuvdException;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.util.Map;
import java.util.concurrent.Executors;

/** An example of a chat with server-sent events: {@code GET /chat?session=S&message=M}. */
public final class ChatServer {
  private static final RuvdClient CLIENT = new RuvdClient();

  public static void main(String[] arguments) throws IOException {
    int port = Integer.parseInt(System.getenv("PORT"));
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.setExecutor(Executors.newCachedThreadPool());
    server.createContext("/chat", ChatServer::chat);
    server.start();
  }

  private static void chat(HttpExchange page) throws IOException {
    page.getResponseHeaders().set("Content-Type", "text/event-stream");
    page.sendResponseHeaders(200, 0);
    var request = RuvdClient.request(query(page, "message")).setSessionId(query(page, "session"));
    // After the page was left, the next write fails; leaving the block cancels the answer.
    try (CompletionStream answer = CLIENT.complete(request)) {
      for (String text : answer) {
        send(page, "", text);
      }
      send(page, "event: done\n", Map.of());
    } catch (RuvdException error) {
      send(page, "event: error\n", Map.of("reason", error.reason(), "message", error.message()));
    }
    page.close();
  }

  private static void send(HttpExchange page, String event, Object data) throws IOException {
    page.getResponseBody()
        .write((event + "data: " + new Gson().toJson(data) + "\n\n").getBytes(UTF_8));
    page.getResponseBody().flush();
  }

  private static String query(HttpExchange page, String name) {
    for (String pair : page.getRequestURI().getRawQuery().split("&")) {
      if (pair.startsWith(name + "=")) {
        return URLDecoder.decode(pair.substring(name.length() + 1), UTF_8);
      }
    }
    return "";
  }
}
