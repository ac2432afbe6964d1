package dev.ruvd.client;

import io.grpc.ChannelCredentials;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import org.jspecify.annotations.Nullable;

/** The files (PEM) of a client for a daemon that listens with TLS; null for one that is not set. */
final class TlsFiles {
  @Nullable Path ca;
  @Nullable Path certificate;
  @Nullable Path key;
  @Nullable String serverName;

  /** Returns the files that the environment names, or null if it names none. */
  static @Nullable TlsFiles fromEnvironment() {
    TlsFiles files = new TlsFiles();
    files.ca = path("RUVD_TLS_CA_FILE");
    files.certificate = path("RUVD_TLS_CLIENT_CERT_FILE");
    files.key = path("RUVD_TLS_CLIENT_KEY_FILE");
    files.serverName = RuvdClientBuilder.variable("RUVD_TLS_SERVER_NAME").orElse(null);
    boolean none = files.ca == null && files.certificate == null && files.key == null;
    return none ? null : files;
  }

  /** Reads the files. Throws IllegalArgumentException if one cannot be read. */
  ChannelCredentials credentials() {
    if ((certificate == null) != (key == null)) {
      throw new IllegalArgumentException(
          "a client certificate needs both its file and the file of its key");
    }
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    try {
      if (ca != null) {
        tls.trustManager(ca.toFile());
        check(ca);
      }
      if (key != null) {
        tls.keyManager(certificate.toFile(), key.toFile());
        check(certificate);
      }
    } catch (IOException | CertificateException unusable) {
      throw new IllegalArgumentException("a TLS file cannot be used: " + unusable, unusable);
    }
    return tls.build();
  }

  /**
   * Throws CertificateException for a file without a certificate, with which gRPC trusts nobody.
   */
  private static void check(Path file) throws IOException, CertificateException {
    try (InputStream content = Files.newInputStream(file)) {
      if (CertificateFactory.getInstance("X.509").generateCertificates(content).isEmpty()) {
        throw new CertificateException(file + " has no certificate");
      }
    }
  }

  private static @Nullable Path path(String variable) {
    return RuvdClientBuilder.variable(variable).map(Path::of).orElse(null);
  }
}
