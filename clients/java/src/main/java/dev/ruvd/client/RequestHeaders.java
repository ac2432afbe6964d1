package dev.ruvd.client;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import dev.ruvd.v1.AppendMessagesRequest;
import dev.ruvd.v1.CreateSessionRequest;
import dev.ruvd.v1.ForkSessionRequest;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.UUID;
import java.util.regex.Pattern;

/**
 * Adds to a call what depends on its request: the header with the session, by which proxies choose
 * a daemon, and a request id. One that makes a call again adds the same request id.
 */
final class RequestHeaders implements ClientInterceptor {
  private static final Metadata.Key<String> SESSION =
      Metadata.Key.of("x-ruvd-session-id", Metadata.ASCII_STRING_MARSHALLER);
  // The daemon's error names a session id that is not valid.
  private static final Pattern VALID = Pattern.compile("[A-Za-z0-9._:-]{1,128}");

  private final String session;
  private final String requestId;

  private RequestHeaders(String session, String requestId) {
    this.session = session;
    this.requestId = requestId;
  }

  /** Returns the interceptor of calls that have no request id but that of their request. */
  static RequestHeaders ofRequest() {
    return new RequestHeaders("", "");
  }

  /** Returns the interceptor of a call that may be made again. */
  static RequestHeaders ofRepeatedCall() {
    return new RequestHeaders("", UUID.randomUUID().toString());
  }

  /** Returns the interceptor of calls about a session that may be missing in the request. */
  static RequestHeaders ofSession(String session) {
    return new RequestHeaders(session, "");
  }

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
    return new Call<>(next.newCall(method, options));
  }

  /** A call that starts with its first message, because its headers depend on that. */
  private final class Call<Q, R> extends SimpleForwardingClientCall<Q, R> {
    private Listener<R> listener;
    private Metadata headers;
    private int requested; // responses, before the start
    private volatile boolean isStarted;

    Call(ClientCall<Q, R> call) {
      super(call);
    }

    @Override
    public void start(Listener<R> listener, Metadata headers) {
      this.listener = listener;
      this.headers = headers;
    }

    @Override
    public void request(int count) {
      if (isStarted) {
        super.request(count);
      } else {
        requested += count;
      }
    }

    @Override
    public boolean isReady() {
      return isStarted && super.isReady();
    }

    @Override
    public void sendMessage(Q message) {
      if (!isStarted) {
        String id = session.isEmpty() ? sessionOf(message) : session;
        if (VALID.matcher(id).matches() && !headers.containsKey(SESSION)) {
          headers.put(SESSION, id);
        }
        super.start(listener, headers);
        isStarted = true;
        super.request(requested);
      }
      super.sendMessage(withRequestId(message));
    }
  }

  private static String sessionOf(Object request) {
    if (!(request instanceof Message message)) {
      return "";
    }
    FieldDescriptor field = message.getDescriptorForType().findFieldByName("session_id");
    return field == null ? "" : (String) message.getField(field);
  }

  /** Gives an id to a request that creates something, so that it can be repeated. */
  @SuppressWarnings("unchecked") // the same type as the argument's
  private <Q> Q withRequestId(Q request) {
    if (requestId.isEmpty()) {
      return request;
    }
    if (request instanceof CreateSessionRequest create && create.getRequestId().isEmpty()) {
      return (Q) create.toBuilder().setRequestId(requestId).build();
    }
    if (request instanceof AppendMessagesRequest append && append.getRequestId().isEmpty()) {
      return (Q) append.toBuilder().setRequestId(requestId).build();
    }
    if (request instanceof ForkSessionRequest fork && fork.getRequestId().isEmpty()) {
      return (Q) fork.toBuilder().setRequestId(requestId).build();
    }
    return request;
  }
}
