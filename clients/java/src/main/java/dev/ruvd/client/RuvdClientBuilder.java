package dev.ruvd.client;

import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.ManagedChannelRegistry;
import io.grpc.Metadata;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * The settings of a client. What is not set here comes from the environment; an empty variable
 * counts as unset.
 *
 * <p>A token is sent with every call, but only over TLS, to loopback or to a Unix socket. If it
 * cannot be had, a call fails with {@link RuvdException} UNAUTHENTICATED. The files of TLS are PEM,
 * and are read by {@link #build}. A Unix socket has no TLS, whatever is set.
 */
public final class RuvdClientBuilder {
  private static final String DEFAULT_ADDRESS = "127.0.0.1:50051";
  private static final int MAX_METADATA_BYTES = 65_536;
  private static final int CONNECT_MILLIS = 3_000; // to one of several addresses
  private static final int PING_SECONDS = 20;
  private static final int PING_TIMEOUT_SECONDS = 10;

  private @Nullable String address;
  final Metadata metadata = new Metadata();
  Duration reconnect = Duration.ofSeconds(10);
  private boolean isTokenSet;
  private @Nullable TokenCredentials token; // null for none
  private @Nullable TlsFiles tls;

  RuvdClientBuilder() {}

  /**
   * Sets the daemon's address: {@code host:port} or {@code unix:PATH}. Default: RUVD_ADDRESS or
   * 127.0.0.1:50051. It may be a list of several with commas, or a DNS name with several records.
   * The client uses one of them, and goes on to the next when that cannot be reached or its daemon
   * shuts down.
   *
   * @param address the address, or the list
   * @return this builder
   */
  public RuvdClientBuilder address(String address) {
    this.address = Objects.requireNonNull(address, "address");
    return this;
  }

  /**
   * Sets how long the client tries to resume a broken stream. Default: 10 s.
   *
   * @param reconnect the time from the failure on
   * @return this builder
   */
  public RuvdClientBuilder reconnect(Duration reconnect) {
    this.reconnect = Objects.requireNonNull(reconnect, "reconnect");
    return this;
  }

  /**
   * Adds metadata of the caller's own to every call, such as a header for a proxy. It takes the
   * place of the client's own with the same key.
   *
   * @param metadata the metadata, which is copied
   * @return this builder
   */
  public RuvdClientBuilder metadata(Metadata metadata) {
    this.metadata.merge(metadata);
    return this;
  }

  /**
   * Sets the token. An empty one means none. Default: the file that RUVD_TOKEN_FILE names, or else
   * RUVD_TOKEN.
   *
   * @param value the token
   * @return this builder
   * @throws IllegalArgumentException if the value cannot be a token
   */
  public RuvdClientBuilder token(String value) {
    isTokenSet = true;
    token = value.isEmpty() ? null : TokenCredentials.of(value);
    return this;
  }

  /**
   * Sets the file that holds the token. It is read for each call, so it may be renewed.
   *
   * @param file the file
   * @return this builder
   */
  public RuvdClientBuilder tokenFile(Path file) {
    Objects.requireNonNull(file, "file");
    return token(() -> Files.readString(file));
  }

  /**
   * Sets the function that returns the token. It is called for each call, and may block. Functions
   * of all clients run on at most 64 threads.
   *
   * @param function the function
   * @return this builder
   */
  public RuvdClientBuilder token(Callable<String> function) {
    isTokenSet = true;
    token = TokenCredentials.of(Objects.requireNonNull(function, "function"));
    return this;
  }

  /**
   * Switches TLS on. Default: as RUVD_TLS_CA_FILE, RUVD_TLS_CLIENT_CERT_FILE,
   * RUVD_TLS_CLIENT_KEY_FILE and RUVD_TLS_SERVER_NAME say, if one of the files is set.
   *
   * @return this builder
   */
  public RuvdClientBuilder tls() {
    tlsFiles();
    return this;
  }

  /**
   * Switches TLS on and sets the CA certificates to trust. Default: those that Java trusts.
   *
   * @param file the certificates
   * @return this builder
   */
  public RuvdClientBuilder caFile(Path file) {
    tlsFiles().ca = Objects.requireNonNull(file, "file");
    return this;
  }

  /**
   * Switches TLS on and sets the client's own certificate.
   *
   * @param certificateFile the certificate
   * @param keyFile its key, which has to be PKCS #8
   * @return this builder
   */
  public RuvdClientBuilder clientCertificate(Path certificateFile, Path keyFile) {
    tlsFiles().certificate = Objects.requireNonNull(certificateFile, "certificateFile");
    tlsFiles().key = Objects.requireNonNull(keyFile, "keyFile");
    return this;
  }

  /**
   * Switches TLS on and sets the name in the daemon's certificate. Default: the address's host.
   *
   * @param name the name
   * @return this builder
   */
  public RuvdClientBuilder serverName(String name) {
    tlsFiles().serverName = Objects.requireNonNull(name, "name");
    return this;
  }

  /**
   * Creates the client, which connects at its first call.
   *
   * @return the client
   * @throws IllegalArgumentException if an address is malformed, if the TLS files cannot be used,
   *     or if the token would be sent to another machine in plain text
   */
  public RuvdClient build() {
    return new RuvdClient(this);
  }

  private TlsFiles tlsFiles() {
    if (tls == null) {
      tls = new TlsFiles();
    }
    return tls;
  }

  Connections connections() {
    List<String> addresses =
        Addresses.split(
            address == null ? variable("RUVD_ADDRESS").orElse(DEFAULT_ADDRESS) : address);
    boolean hasTcp = !addresses.stream().allMatch(Addresses::isSocket);
    TlsFiles files = !hasTcp ? null : tls == null ? TlsFiles.fromEnvironment() : tls;
    ChannelCredentials tcp =
        files == null ? InsecureChannelCredentials.create() : files.credentials();
    TokenCredentials identity = isTokenSet ? token : tokenOfEnvironment();
    for (String each : addresses) {
      if (identity != null && files == null && !Addresses.isLocal(each)) {
        throw new IllegalArgumentException(
            "a token must not be sent to " + each + " in plain text: use TLS");
      }
    }
    boolean areSeveral = Connections.areSeveral(addresses);
    return new Connections(
        addresses,
        areSeveral,
        each -> {
          boolean isSocket = Addresses.isSocket(each);
          ChannelCredentials credentials = isSocket ? InsecureChannelCredentials.create() : tcp;
          if (identity != null) {
            credentials = CompositeChannelCredentials.create(credentials, identity);
          }
          String serverName = isSocket || files == null ? null : files.serverName;
          return channel(each, credentials, serverName, areSeveral);
        });
  }

  private static ManagedChannel channel(
      String address,
      ChannelCredentials credentials,
      @Nullable String serverName,
      boolean isOneOfSeveral) {
    ManagedChannelBuilder<?> channel =
        newChannel(Addresses.target(address), credentials)
            // The daemon limits the sizes; its error says why, and may name many invalid fields.
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .maxInboundMetadataSize(MAX_METADATA_BYTES)
            .proxyDetector(server -> null)
            .defaultServiceConfig(ServiceConfig.read());
    if (serverName != null) {
      channel.overrideAuthority(serverName);
    }
    if (isOneOfSeveral) {
      channel.disableRetry(); // an attempt is made at an address that the client chooses
      channel.keepAliveTime(PING_SECONDS, TimeUnit.SECONDS);
      channel.keepAliveTimeout(PING_TIMEOUT_SECONDS, TimeUnit.SECONDS);
      if (channel instanceof NettyChannelBuilder netty) {
        netty.withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, CONNECT_MILLIS);
      }
    }
    return channel.build();
  }

  private static ManagedChannelBuilder<?> newChannel(
      String target, ChannelCredentials credentials) {
    try {
      return Grpc.newChannelBuilder(target, credentials);
    } catch (IllegalArgumentException | ManagedChannelRegistry.ProviderNotFoundException unusable) {
      throw new IllegalArgumentException(
          "the address or the TLS files cannot be used (a key has to be PKCS #8): "
              + unusable.getMessage(),
          unusable);
    }
  }

  private static @Nullable TokenCredentials tokenOfEnvironment() {
    return variable("RUVD_TOKEN_FILE")
        .map(file -> TokenCredentials.of(() -> Files.readString(Path.of(file))))
        .or(() -> variable("RUVD_TOKEN").map(TokenCredentials::of))
        .orElse(null);
  }

  /** Returns a variable of the environment; empty if it is not set or has no text. */
  static Optional<String> variable(String name) {
    return Optional.ofNullable(System.getenv(name)).filter(value -> !value.isEmpty());
  }
}
