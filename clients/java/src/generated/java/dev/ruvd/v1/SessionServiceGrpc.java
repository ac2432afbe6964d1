package dev.ruvd.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Stores conversations and generates the answers in them.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class SessionServiceGrpc {

  private SessionServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "ruvd.v1.SessionService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.CreateSessionRequest,
      dev.ruvd.v1.CreateSessionResponse> getCreateSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CreateSession",
      requestType = dev.ruvd.v1.CreateSessionRequest.class,
      responseType = dev.ruvd.v1.CreateSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.CreateSessionRequest,
      dev.ruvd.v1.CreateSessionResponse> getCreateSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.CreateSessionRequest, dev.ruvd.v1.CreateSessionResponse> getCreateSessionMethod;
    if ((getCreateSessionMethod = SessionServiceGrpc.getCreateSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getCreateSessionMethod = SessionServiceGrpc.getCreateSessionMethod) == null) {
          SessionServiceGrpc.getCreateSessionMethod = getCreateSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.CreateSessionRequest, dev.ruvd.v1.CreateSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CreateSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CreateSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CreateSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("CreateSession"))
              .build();
        }
      }
    }
    return getCreateSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionRequest,
      dev.ruvd.v1.GetSessionResponse> getGetSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetSession",
      requestType = dev.ruvd.v1.GetSessionRequest.class,
      responseType = dev.ruvd.v1.GetSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionRequest,
      dev.ruvd.v1.GetSessionResponse> getGetSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionRequest, dev.ruvd.v1.GetSessionResponse> getGetSessionMethod;
    if ((getGetSessionMethod = SessionServiceGrpc.getGetSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getGetSessionMethod = SessionServiceGrpc.getGetSessionMethod) == null) {
          SessionServiceGrpc.getGetSessionMethod = getGetSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.GetSessionRequest, dev.ruvd.v1.GetSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("GetSession"))
              .build();
        }
      }
    }
    return getGetSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.ListSessionsRequest,
      dev.ruvd.v1.ListSessionsResponse> getListSessionsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListSessions",
      requestType = dev.ruvd.v1.ListSessionsRequest.class,
      responseType = dev.ruvd.v1.ListSessionsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.ListSessionsRequest,
      dev.ruvd.v1.ListSessionsResponse> getListSessionsMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.ListSessionsRequest, dev.ruvd.v1.ListSessionsResponse> getListSessionsMethod;
    if ((getListSessionsMethod = SessionServiceGrpc.getListSessionsMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getListSessionsMethod = SessionServiceGrpc.getListSessionsMethod) == null) {
          SessionServiceGrpc.getListSessionsMethod = getListSessionsMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.ListSessionsRequest, dev.ruvd.v1.ListSessionsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListSessions"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ListSessionsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ListSessionsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("ListSessions"))
              .build();
        }
      }
    }
    return getListSessionsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.UpdateSessionRequest,
      dev.ruvd.v1.UpdateSessionResponse> getUpdateSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "UpdateSession",
      requestType = dev.ruvd.v1.UpdateSessionRequest.class,
      responseType = dev.ruvd.v1.UpdateSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.UpdateSessionRequest,
      dev.ruvd.v1.UpdateSessionResponse> getUpdateSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.UpdateSessionRequest, dev.ruvd.v1.UpdateSessionResponse> getUpdateSessionMethod;
    if ((getUpdateSessionMethod = SessionServiceGrpc.getUpdateSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getUpdateSessionMethod = SessionServiceGrpc.getUpdateSessionMethod) == null) {
          SessionServiceGrpc.getUpdateSessionMethod = getUpdateSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.UpdateSessionRequest, dev.ruvd.v1.UpdateSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "UpdateSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.UpdateSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.UpdateSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("UpdateSession"))
              .build();
        }
      }
    }
    return getUpdateSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.AppendMessagesRequest,
      dev.ruvd.v1.AppendMessagesResponse> getAppendMessagesMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "AppendMessages",
      requestType = dev.ruvd.v1.AppendMessagesRequest.class,
      responseType = dev.ruvd.v1.AppendMessagesResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.AppendMessagesRequest,
      dev.ruvd.v1.AppendMessagesResponse> getAppendMessagesMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.AppendMessagesRequest, dev.ruvd.v1.AppendMessagesResponse> getAppendMessagesMethod;
    if ((getAppendMessagesMethod = SessionServiceGrpc.getAppendMessagesMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getAppendMessagesMethod = SessionServiceGrpc.getAppendMessagesMethod) == null) {
          SessionServiceGrpc.getAppendMessagesMethod = getAppendMessagesMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.AppendMessagesRequest, dev.ruvd.v1.AppendMessagesResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "AppendMessages"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.AppendMessagesRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.AppendMessagesResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("AppendMessages"))
              .build();
        }
      }
    }
    return getAppendMessagesMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.ForkSessionRequest,
      dev.ruvd.v1.ForkSessionResponse> getForkSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ForkSession",
      requestType = dev.ruvd.v1.ForkSessionRequest.class,
      responseType = dev.ruvd.v1.ForkSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.ForkSessionRequest,
      dev.ruvd.v1.ForkSessionResponse> getForkSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.ForkSessionRequest, dev.ruvd.v1.ForkSessionResponse> getForkSessionMethod;
    if ((getForkSessionMethod = SessionServiceGrpc.getForkSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getForkSessionMethod = SessionServiceGrpc.getForkSessionMethod) == null) {
          SessionServiceGrpc.getForkSessionMethod = getForkSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.ForkSessionRequest, dev.ruvd.v1.ForkSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ForkSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ForkSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ForkSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("ForkSession"))
              .build();
        }
      }
    }
    return getForkSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.CompactSessionRequest,
      dev.ruvd.v1.CompactSessionResponse> getCompactSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CompactSession",
      requestType = dev.ruvd.v1.CompactSessionRequest.class,
      responseType = dev.ruvd.v1.CompactSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.CompactSessionRequest,
      dev.ruvd.v1.CompactSessionResponse> getCompactSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.CompactSessionRequest, dev.ruvd.v1.CompactSessionResponse> getCompactSessionMethod;
    if ((getCompactSessionMethod = SessionServiceGrpc.getCompactSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getCompactSessionMethod = SessionServiceGrpc.getCompactSessionMethod) == null) {
          SessionServiceGrpc.getCompactSessionMethod = getCompactSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.CompactSessionRequest, dev.ruvd.v1.CompactSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CompactSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CompactSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CompactSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("CompactSession"))
              .build();
        }
      }
    }
    return getCompactSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.EndSessionRequest,
      dev.ruvd.v1.EndSessionResponse> getEndSessionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "EndSession",
      requestType = dev.ruvd.v1.EndSessionRequest.class,
      responseType = dev.ruvd.v1.EndSessionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.EndSessionRequest,
      dev.ruvd.v1.EndSessionResponse> getEndSessionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.EndSessionRequest, dev.ruvd.v1.EndSessionResponse> getEndSessionMethod;
    if ((getEndSessionMethod = SessionServiceGrpc.getEndSessionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getEndSessionMethod = SessionServiceGrpc.getEndSessionMethod) == null) {
          SessionServiceGrpc.getEndSessionMethod = getEndSessionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.EndSessionRequest, dev.ruvd.v1.EndSessionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "EndSession"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.EndSessionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.EndSessionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("EndSession"))
              .build();
        }
      }
    }
    return getEndSessionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.ListModelsRequest,
      dev.ruvd.v1.ListModelsResponse> getListModelsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListModels",
      requestType = dev.ruvd.v1.ListModelsRequest.class,
      responseType = dev.ruvd.v1.ListModelsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.ListModelsRequest,
      dev.ruvd.v1.ListModelsResponse> getListModelsMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.ListModelsRequest, dev.ruvd.v1.ListModelsResponse> getListModelsMethod;
    if ((getListModelsMethod = SessionServiceGrpc.getListModelsMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getListModelsMethod = SessionServiceGrpc.getListModelsMethod) == null) {
          SessionServiceGrpc.getListModelsMethod = getListModelsMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.ListModelsRequest, dev.ruvd.v1.ListModelsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListModels"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ListModelsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ListModelsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("ListModels"))
              .build();
        }
      }
    }
    return getListModelsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.GetServerInfoRequest,
      dev.ruvd.v1.GetServerInfoResponse> getGetServerInfoMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetServerInfo",
      requestType = dev.ruvd.v1.GetServerInfoRequest.class,
      responseType = dev.ruvd.v1.GetServerInfoResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.GetServerInfoRequest,
      dev.ruvd.v1.GetServerInfoResponse> getGetServerInfoMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.GetServerInfoRequest, dev.ruvd.v1.GetServerInfoResponse> getGetServerInfoMethod;
    if ((getGetServerInfoMethod = SessionServiceGrpc.getGetServerInfoMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getGetServerInfoMethod = SessionServiceGrpc.getGetServerInfoMethod) == null) {
          SessionServiceGrpc.getGetServerInfoMethod = getGetServerInfoMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.GetServerInfoRequest, dev.ruvd.v1.GetServerInfoResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetServerInfo"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetServerInfoRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetServerInfoResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("GetServerInfo"))
              .build();
        }
      }
    }
    return getGetServerInfoMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionMetricsRequest,
      dev.ruvd.v1.GetSessionMetricsResponse> getGetSessionMetricsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetSessionMetrics",
      requestType = dev.ruvd.v1.GetSessionMetricsRequest.class,
      responseType = dev.ruvd.v1.GetSessionMetricsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionMetricsRequest,
      dev.ruvd.v1.GetSessionMetricsResponse> getGetSessionMetricsMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.GetSessionMetricsRequest, dev.ruvd.v1.GetSessionMetricsResponse> getGetSessionMetricsMethod;
    if ((getGetSessionMetricsMethod = SessionServiceGrpc.getGetSessionMetricsMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getGetSessionMetricsMethod = SessionServiceGrpc.getGetSessionMetricsMethod) == null) {
          SessionServiceGrpc.getGetSessionMetricsMethod = getGetSessionMetricsMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.GetSessionMetricsRequest, dev.ruvd.v1.GetSessionMetricsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetSessionMetrics"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetSessionMetricsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.GetSessionMetricsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("GetSessionMetrics"))
              .build();
        }
      }
    }
    return getGetSessionMetricsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.CompleteRequest,
      dev.ruvd.v1.CompleteResponse> getCompleteMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Complete",
      requestType = dev.ruvd.v1.CompleteRequest.class,
      responseType = dev.ruvd.v1.CompleteResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.CompleteRequest,
      dev.ruvd.v1.CompleteResponse> getCompleteMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.CompleteRequest, dev.ruvd.v1.CompleteResponse> getCompleteMethod;
    if ((getCompleteMethod = SessionServiceGrpc.getCompleteMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getCompleteMethod = SessionServiceGrpc.getCompleteMethod) == null) {
          SessionServiceGrpc.getCompleteMethod = getCompleteMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.CompleteRequest, dev.ruvd.v1.CompleteResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Complete"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CompleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CompleteResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("Complete"))
              .build();
        }
      }
    }
    return getCompleteMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.ResumeCompletionRequest,
      dev.ruvd.v1.ResumeCompletionResponse> getResumeCompletionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ResumeCompletion",
      requestType = dev.ruvd.v1.ResumeCompletionRequest.class,
      responseType = dev.ruvd.v1.ResumeCompletionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.ResumeCompletionRequest,
      dev.ruvd.v1.ResumeCompletionResponse> getResumeCompletionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.ResumeCompletionRequest, dev.ruvd.v1.ResumeCompletionResponse> getResumeCompletionMethod;
    if ((getResumeCompletionMethod = SessionServiceGrpc.getResumeCompletionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getResumeCompletionMethod = SessionServiceGrpc.getResumeCompletionMethod) == null) {
          SessionServiceGrpc.getResumeCompletionMethod = getResumeCompletionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.ResumeCompletionRequest, dev.ruvd.v1.ResumeCompletionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ResumeCompletion"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ResumeCompletionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.ResumeCompletionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("ResumeCompletion"))
              .build();
        }
      }
    }
    return getResumeCompletionMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.BatchCompleteRequest,
      dev.ruvd.v1.BatchCompleteResponse> getBatchCompleteMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "BatchComplete",
      requestType = dev.ruvd.v1.BatchCompleteRequest.class,
      responseType = dev.ruvd.v1.BatchCompleteResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.BatchCompleteRequest,
      dev.ruvd.v1.BatchCompleteResponse> getBatchCompleteMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.BatchCompleteRequest, dev.ruvd.v1.BatchCompleteResponse> getBatchCompleteMethod;
    if ((getBatchCompleteMethod = SessionServiceGrpc.getBatchCompleteMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getBatchCompleteMethod = SessionServiceGrpc.getBatchCompleteMethod) == null) {
          SessionServiceGrpc.getBatchCompleteMethod = getBatchCompleteMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.BatchCompleteRequest, dev.ruvd.v1.BatchCompleteResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "BatchComplete"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.BatchCompleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.BatchCompleteResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("BatchComplete"))
              .build();
        }
      }
    }
    return getBatchCompleteMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.ruvd.v1.CancelCompletionRequest,
      dev.ruvd.v1.CancelCompletionResponse> getCancelCompletionMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CancelCompletion",
      requestType = dev.ruvd.v1.CancelCompletionRequest.class,
      responseType = dev.ruvd.v1.CancelCompletionResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.ruvd.v1.CancelCompletionRequest,
      dev.ruvd.v1.CancelCompletionResponse> getCancelCompletionMethod() {
    io.grpc.MethodDescriptor<dev.ruvd.v1.CancelCompletionRequest, dev.ruvd.v1.CancelCompletionResponse> getCancelCompletionMethod;
    if ((getCancelCompletionMethod = SessionServiceGrpc.getCancelCompletionMethod) == null) {
      synchronized (SessionServiceGrpc.class) {
        if ((getCancelCompletionMethod = SessionServiceGrpc.getCancelCompletionMethod) == null) {
          SessionServiceGrpc.getCancelCompletionMethod = getCancelCompletionMethod =
              io.grpc.MethodDescriptor.<dev.ruvd.v1.CancelCompletionRequest, dev.ruvd.v1.CancelCompletionResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CancelCompletion"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CancelCompletionRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.ruvd.v1.CancelCompletionResponse.getDefaultInstance()))
              .setSchemaDescriptor(new SessionServiceMethodDescriptorSupplier("CancelCompletion"))
              .build();
        }
      }
    }
    return getCancelCompletionMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static SessionServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SessionServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SessionServiceStub>() {
        @java.lang.Override
        public SessionServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SessionServiceStub(channel, callOptions);
        }
      };
    return SessionServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static SessionServiceBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SessionServiceBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SessionServiceBlockingV2Stub>() {
        @java.lang.Override
        public SessionServiceBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SessionServiceBlockingV2Stub(channel, callOptions);
        }
      };
    return SessionServiceBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static SessionServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SessionServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SessionServiceBlockingStub>() {
        @java.lang.Override
        public SessionServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SessionServiceBlockingStub(channel, callOptions);
        }
      };
    return SessionServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static SessionServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<SessionServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<SessionServiceFutureStub>() {
        @java.lang.Override
        public SessionServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new SessionServiceFutureStub(channel, callOptions);
        }
      };
    return SessionServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * CreateSession creates a session before its first turn, for example to give it a system prompt,
     * labels or a history.
     * Errors: INVALID_REQUEST, SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSION_TOO_LARGE,
     * SESSIONS_DISABLED, REQUEST_ID_REUSED, STORE_UNAVAILABLE, SHUTTING_DOWN.
     * </pre>
     */
    default void createSession(dev.ruvd.v1.CreateSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CreateSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCreateSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * GetSession returns one session. An expired session is not found. Reading a session does not
     * change its last_used_time. A long history is read page by page (see page_size); a turn that is
     * committed between two pages only adds messages at the end. If the session ends between two
     * pages, the next call fails with SESSION_NOT_FOUND, also if a new session has its id.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSIONS_DISABLED, RESPONSE_TOO_LARGE (without
     * page_size), OVERLOADED (with messages), STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    default void getSession(dev.ruvd.v1.GetSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * ListSessions returns the sessions page by page, in the order of their creation.
     * Errors: INVALID_REQUEST, SESSIONS_DISABLED, OVERLOADED, STORE_UNAVAILABLE.
     * </pre>
     */
    default void listSessions(dev.ruvd.v1.ListSessionsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ListSessionsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListSessionsMethod(), responseObserver);
    }

    /**
     * <pre>
     * UpdateSession changes a session's labels, idle timeout, context window or compaction
     * instruction. It runs after the turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSIONS_DISABLED, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    default void updateSession(dev.ruvd.v1.UpdateSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.UpdateSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getUpdateSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * AppendMessages commits messages to a session without generating an answer. It runs after the
     * turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSION_TOO_LARGE, QUOTA_EXCEEDED, SESSIONS_DISABLED, OVERLOADED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    default void appendMessages(dev.ruvd.v1.AppendMessagesRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.AppendMessagesResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getAppendMessagesMethod(), responseObserver);
    }

    /**
     * <pre>
     * ForkSession creates a session that starts with the beginning of another session's history. Only
     * committed turns are copied, and the two sessions are independent from then on.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED and SESSION_EXPIRED (of the session
     * to fork), SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSIONS_DISABLED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    default void forkSession(dev.ruvd.v1.ForkSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ForkSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getForkSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * CompactSession summarises the exchanges of a session that are not among the last keep_exchanges
     * of its context window. Later prompts have the summary in place of them; the history keeps them.
     * The engine writes the summary. Turns do not wait for it, and those that run meanwhile are kept.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED, SESSION_BUSY (if
     * another compaction or another replica of the daemon changes the session meanwhile),
     * QUOTA_EXCEEDED, PERMISSION_DENIED (for the model), SESSIONS_DISABLED, CONTEXT_TOO_LONG,
     * ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE, OVERLOADED,
     * SHUTTING_DOWN, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    default void compactSession(dev.ruvd.v1.CompactSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CompactSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCompactSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * EndSession deletes a session and its messages. Its running and queued completions fail with
     * SESSION_ENDED.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (unless allow_missing), SESSIONS_DISABLED,
     * STORE_UNAVAILABLE.
     * </pre>
     */
    default void endSession(dev.ruvd.v1.EndSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.EndSessionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getEndSessionMethod(), responseObserver);
    }

    /**
     * <pre>
     * ListModels returns the models that the engines offer. An engine that does not answer is left out;
     * the errors are those of a daemon of which no engine answers.
     * Errors: ENGINE_UNAVAILABLE, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT.
     * </pre>
     */
    default void listModels(dev.ruvd.v1.ListModelsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ListModelsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListModelsMethod(), responseObserver);
    }

    /**
     * <pre>
     * GetServerInfo returns what a client has to know of the daemon: its version, what it can do, its
     * limits, and its engine. Every caller with an identity may call it, whatever its role. It also
     * answers while the engine is down. A daemon that does not know it answers UNIMPLEMENTED.
     * Errors: INVALID_REQUEST.
     * </pre>
     */
    default void getServerInfo(dev.ruvd.v1.GetServerInfoRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetServerInfoResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetServerInfoMethod(), responseObserver);
    }

    /**
     * <pre>
     * GetSessionMetrics returns the daemon's measurements since it started.
     * Errors: STORE_UNAVAILABLE.
     * </pre>
     */
    default void getSessionMetrics(dev.ruvd.v1.GetSessionMetricsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionMetricsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetSessionMetricsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Complete generates an answer to the new messages and streams it. With a session_id, the
     * messages and the answer are committed together, durably, before Finished is sent. A completion
     * that fails or is cancelled leaves the session unchanged; its stream ends with an error status
     * and without Finished. A second call for the same session waits for the first (see if_busy).
     * Cancelling the call cancels the completion (see on_disconnect).
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (with require_existing), SESSION_EVICTED and
     * SESSION_EXPIRED (without recreate_if_gone), SESSION_BUSY, SESSION_ENDED, SESSION_LIMIT,
     * SESSION_TOO_LARGE, SESSIONS_DISABLED, COMPLETION_CANCELLED, COMPLETION_INTERRUPTED,
     * CONTEXT_TOO_LONG, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT,
     * ENGINE_UNAVAILABLE, OVERLOADED, REQUEST_ID_REUSED, SCHEMA_VIOLATED, STORE_UNAVAILABLE,
     * DATA_CORRUPTED, SHUTTING_DOWN, QUOTA_EXCEEDED, PERMISSION_DENIED (for a model, tool or field).
     * </pre>
     */
    default void complete(dev.ruvd.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CompleteResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCompleteMethod(), responseObserver);
    }

    /**
     * <pre>
     * ResumeCompletion streams a completion's events after after_sequence, first the past ones, then
     * the new ones as they occur. Clients call it after their stream broke. For a failed completion
     * it replays the events, then returns the error. If the events are no longer kept but the answer
     * is committed, as after a restart, it sends only Finished, with its original sequence number.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE, and those of Complete.
     * </pre>
     */
    default void resumeCompletion(dev.ruvd.v1.ResumeCompletionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ResumeCompletionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getResumeCompletionMethod(), responseObserver);
    }

    /**
     * <pre>
     * BatchComplete runs many completions and sends each answer or error as soon as it is available,
     * then a summary. Items of the same session run in order; all others run concurrently. An item's
     * failure does not affect the other items. Interactive completions have priority over batch
     * items, which are limited to their own share of the engine. Cancelling the call affects each
     * running item like cancelling Complete; items that have not started are not started. Repeating
     * the call with the same request ids runs only the items that had not finished.
     * Errors: INVALID_REQUEST and QUOTA_EXCEEDED (for the call as a whole; an item's error is in its
     * result).
     * </pre>
     */
    default void batchComplete(dev.ruvd.v1.BatchCompleteRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.BatchCompleteResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getBatchCompleteMethod(), responseObserver);
    }

    /**
     * <pre>
     * CancelCompletion stops a completion and returns when it has ended. It has no effect on a
     * completion that has already ended.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE.
     * </pre>
     */
    default void cancelCompletion(dev.ruvd.v1.CancelCompletionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CancelCompletionResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCancelCompletionMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service SessionService.
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public static abstract class SessionServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return SessionServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service SessionService.
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public static final class SessionServiceStub
      extends io.grpc.stub.AbstractAsyncStub<SessionServiceStub> {
    private SessionServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SessionServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SessionServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * CreateSession creates a session before its first turn, for example to give it a system prompt,
     * labels or a history.
     * Errors: INVALID_REQUEST, SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSION_TOO_LARGE,
     * SESSIONS_DISABLED, REQUEST_ID_REUSED, STORE_UNAVAILABLE, SHUTTING_DOWN.
     * </pre>
     */
    public void createSession(dev.ruvd.v1.CreateSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CreateSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCreateSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * GetSession returns one session. An expired session is not found. Reading a session does not
     * change its last_used_time. A long history is read page by page (see page_size); a turn that is
     * committed between two pages only adds messages at the end. If the session ends between two
     * pages, the next call fails with SESSION_NOT_FOUND, also if a new session has its id.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSIONS_DISABLED, RESPONSE_TOO_LARGE (without
     * page_size), OVERLOADED (with messages), STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public void getSession(dev.ruvd.v1.GetSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ListSessions returns the sessions page by page, in the order of their creation.
     * Errors: INVALID_REQUEST, SESSIONS_DISABLED, OVERLOADED, STORE_UNAVAILABLE.
     * </pre>
     */
    public void listSessions(dev.ruvd.v1.ListSessionsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ListSessionsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListSessionsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * UpdateSession changes a session's labels, idle timeout, context window or compaction
     * instruction. It runs after the turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSIONS_DISABLED, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public void updateSession(dev.ruvd.v1.UpdateSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.UpdateSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getUpdateSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * AppendMessages commits messages to a session without generating an answer. It runs after the
     * turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSION_TOO_LARGE, QUOTA_EXCEEDED, SESSIONS_DISABLED, OVERLOADED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public void appendMessages(dev.ruvd.v1.AppendMessagesRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.AppendMessagesResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getAppendMessagesMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ForkSession creates a session that starts with the beginning of another session's history. Only
     * committed turns are copied, and the two sessions are independent from then on.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED and SESSION_EXPIRED (of the session
     * to fork), SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSIONS_DISABLED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public void forkSession(dev.ruvd.v1.ForkSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ForkSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getForkSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * CompactSession summarises the exchanges of a session that are not among the last keep_exchanges
     * of its context window. Later prompts have the summary in place of them; the history keeps them.
     * The engine writes the summary. Turns do not wait for it, and those that run meanwhile are kept.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED, SESSION_BUSY (if
     * another compaction or another replica of the daemon changes the session meanwhile),
     * QUOTA_EXCEEDED, PERMISSION_DENIED (for the model), SESSIONS_DISABLED, CONTEXT_TOO_LONG,
     * ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE, OVERLOADED,
     * SHUTTING_DOWN, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public void compactSession(dev.ruvd.v1.CompactSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CompactSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCompactSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * EndSession deletes a session and its messages. Its running and queued completions fail with
     * SESSION_ENDED.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (unless allow_missing), SESSIONS_DISABLED,
     * STORE_UNAVAILABLE.
     * </pre>
     */
    public void endSession(dev.ruvd.v1.EndSessionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.EndSessionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getEndSessionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ListModels returns the models that the engines offer. An engine that does not answer is left out;
     * the errors are those of a daemon of which no engine answers.
     * Errors: ENGINE_UNAVAILABLE, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT.
     * </pre>
     */
    public void listModels(dev.ruvd.v1.ListModelsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ListModelsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListModelsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * GetServerInfo returns what a client has to know of the daemon: its version, what it can do, its
     * limits, and its engine. Every caller with an identity may call it, whatever its role. It also
     * answers while the engine is down. A daemon that does not know it answers UNIMPLEMENTED.
     * Errors: INVALID_REQUEST.
     * </pre>
     */
    public void getServerInfo(dev.ruvd.v1.GetServerInfoRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetServerInfoResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetServerInfoMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * GetSessionMetrics returns the daemon's measurements since it started.
     * Errors: STORE_UNAVAILABLE.
     * </pre>
     */
    public void getSessionMetrics(dev.ruvd.v1.GetSessionMetricsRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionMetricsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetSessionMetricsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Complete generates an answer to the new messages and streams it. With a session_id, the
     * messages and the answer are committed together, durably, before Finished is sent. A completion
     * that fails or is cancelled leaves the session unchanged; its stream ends with an error status
     * and without Finished. A second call for the same session waits for the first (see if_busy).
     * Cancelling the call cancels the completion (see on_disconnect).
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (with require_existing), SESSION_EVICTED and
     * SESSION_EXPIRED (without recreate_if_gone), SESSION_BUSY, SESSION_ENDED, SESSION_LIMIT,
     * SESSION_TOO_LARGE, SESSIONS_DISABLED, COMPLETION_CANCELLED, COMPLETION_INTERRUPTED,
     * CONTEXT_TOO_LONG, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT,
     * ENGINE_UNAVAILABLE, OVERLOADED, REQUEST_ID_REUSED, SCHEMA_VIOLATED, STORE_UNAVAILABLE,
     * DATA_CORRUPTED, SHUTTING_DOWN, QUOTA_EXCEEDED, PERMISSION_DENIED (for a model, tool or field).
     * </pre>
     */
    public void complete(dev.ruvd.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CompleteResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getCompleteMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * ResumeCompletion streams a completion's events after after_sequence, first the past ones, then
     * the new ones as they occur. Clients call it after their stream broke. For a failed completion
     * it replays the events, then returns the error. If the events are no longer kept but the answer
     * is committed, as after a restart, it sends only Finished, with its original sequence number.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE, and those of Complete.
     * </pre>
     */
    public void resumeCompletion(dev.ruvd.v1.ResumeCompletionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.ResumeCompletionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getResumeCompletionMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * BatchComplete runs many completions and sends each answer or error as soon as it is available,
     * then a summary. Items of the same session run in order; all others run concurrently. An item's
     * failure does not affect the other items. Interactive completions have priority over batch
     * items, which are limited to their own share of the engine. Cancelling the call affects each
     * running item like cancelling Complete; items that have not started are not started. Repeating
     * the call with the same request ids runs only the items that had not finished.
     * Errors: INVALID_REQUEST and QUOTA_EXCEEDED (for the call as a whole; an item's error is in its
     * result).
     * </pre>
     */
    public void batchComplete(dev.ruvd.v1.BatchCompleteRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.BatchCompleteResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getBatchCompleteMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * CancelCompletion stops a completion and returns when it has ended. It has no effect on a
     * completion that has already ended.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE.
     * </pre>
     */
    public void cancelCompletion(dev.ruvd.v1.CancelCompletionRequest request,
        io.grpc.stub.StreamObserver<dev.ruvd.v1.CancelCompletionResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCancelCompletionMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service SessionService.
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public static final class SessionServiceBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<SessionServiceBlockingV2Stub> {
    private SessionServiceBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SessionServiceBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SessionServiceBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * CreateSession creates a session before its first turn, for example to give it a system prompt,
     * labels or a history.
     * Errors: INVALID_REQUEST, SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSION_TOO_LARGE,
     * SESSIONS_DISABLED, REQUEST_ID_REUSED, STORE_UNAVAILABLE, SHUTTING_DOWN.
     * </pre>
     */
    public dev.ruvd.v1.CreateSessionResponse createSession(dev.ruvd.v1.CreateSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCreateSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetSession returns one session. An expired session is not found. Reading a session does not
     * change its last_used_time. A long history is read page by page (see page_size); a turn that is
     * committed between two pages only adds messages at the end. If the session ends between two
     * pages, the next call fails with SESSION_NOT_FOUND, also if a new session has its id.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSIONS_DISABLED, RESPONSE_TOO_LARGE (without
     * page_size), OVERLOADED (with messages), STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.GetSessionResponse getSession(dev.ruvd.v1.GetSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListSessions returns the sessions page by page, in the order of their creation.
     * Errors: INVALID_REQUEST, SESSIONS_DISABLED, OVERLOADED, STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.ListSessionsResponse listSessions(dev.ruvd.v1.ListSessionsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListSessionsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * UpdateSession changes a session's labels, idle timeout, context window or compaction
     * instruction. It runs after the turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSIONS_DISABLED, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.UpdateSessionResponse updateSession(dev.ruvd.v1.UpdateSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getUpdateSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * AppendMessages commits messages to a session without generating an answer. It runs after the
     * turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSION_TOO_LARGE, QUOTA_EXCEEDED, SESSIONS_DISABLED, OVERLOADED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.AppendMessagesResponse appendMessages(dev.ruvd.v1.AppendMessagesRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getAppendMessagesMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ForkSession creates a session that starts with the beginning of another session's history. Only
     * committed turns are copied, and the two sessions are independent from then on.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED and SESSION_EXPIRED (of the session
     * to fork), SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSIONS_DISABLED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.ForkSessionResponse forkSession(dev.ruvd.v1.ForkSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getForkSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * CompactSession summarises the exchanges of a session that are not among the last keep_exchanges
     * of its context window. Later prompts have the summary in place of them; the history keeps them.
     * The engine writes the summary. Turns do not wait for it, and those that run meanwhile are kept.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED, SESSION_BUSY (if
     * another compaction or another replica of the daemon changes the session meanwhile),
     * QUOTA_EXCEEDED, PERMISSION_DENIED (for the model), SESSIONS_DISABLED, CONTEXT_TOO_LONG,
     * ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE, OVERLOADED,
     * SHUTTING_DOWN, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.CompactSessionResponse compactSession(dev.ruvd.v1.CompactSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCompactSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * EndSession deletes a session and its messages. Its running and queued completions fail with
     * SESSION_ENDED.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (unless allow_missing), SESSIONS_DISABLED,
     * STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.EndSessionResponse endSession(dev.ruvd.v1.EndSessionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getEndSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListModels returns the models that the engines offer. An engine that does not answer is left out;
     * the errors are those of a daemon of which no engine answers.
     * Errors: ENGINE_UNAVAILABLE, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT.
     * </pre>
     */
    public dev.ruvd.v1.ListModelsResponse listModels(dev.ruvd.v1.ListModelsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetServerInfo returns what a client has to know of the daemon: its version, what it can do, its
     * limits, and its engine. Every caller with an identity may call it, whatever its role. It also
     * answers while the engine is down. A daemon that does not know it answers UNIMPLEMENTED.
     * Errors: INVALID_REQUEST.
     * </pre>
     */
    public dev.ruvd.v1.GetServerInfoResponse getServerInfo(dev.ruvd.v1.GetServerInfoRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetServerInfoMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetSessionMetrics returns the daemon's measurements since it started.
     * Errors: STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.GetSessionMetricsResponse getSessionMetrics(dev.ruvd.v1.GetSessionMetricsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetSessionMetricsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Complete generates an answer to the new messages and streams it. With a session_id, the
     * messages and the answer are committed together, durably, before Finished is sent. A completion
     * that fails or is cancelled leaves the session unchanged; its stream ends with an error status
     * and without Finished. A second call for the same session waits for the first (see if_busy).
     * Cancelling the call cancels the completion (see on_disconnect).
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (with require_existing), SESSION_EVICTED and
     * SESSION_EXPIRED (without recreate_if_gone), SESSION_BUSY, SESSION_ENDED, SESSION_LIMIT,
     * SESSION_TOO_LARGE, SESSIONS_DISABLED, COMPLETION_CANCELLED, COMPLETION_INTERRUPTED,
     * CONTEXT_TOO_LONG, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT,
     * ENGINE_UNAVAILABLE, OVERLOADED, REQUEST_ID_REUSED, SCHEMA_VIOLATED, STORE_UNAVAILABLE,
     * DATA_CORRUPTED, SHUTTING_DOWN, QUOTA_EXCEEDED, PERMISSION_DENIED (for a model, tool or field).
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.ruvd.v1.CompleteResponse>
        complete(dev.ruvd.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ResumeCompletion streams a completion's events after after_sequence, first the past ones, then
     * the new ones as they occur. Clients call it after their stream broke. For a failed completion
     * it replays the events, then returns the error. If the events are no longer kept but the answer
     * is committed, as after a restart, it sends only Finished, with its original sequence number.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE, and those of Complete.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.ruvd.v1.ResumeCompletionResponse>
        resumeCompletion(dev.ruvd.v1.ResumeCompletionRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getResumeCompletionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * BatchComplete runs many completions and sends each answer or error as soon as it is available,
     * then a summary. Items of the same session run in order; all others run concurrently. An item's
     * failure does not affect the other items. Interactive completions have priority over batch
     * items, which are limited to their own share of the engine. Cancelling the call affects each
     * running item like cancelling Complete; items that have not started are not started. Repeating
     * the call with the same request ids runs only the items that had not finished.
     * Errors: INVALID_REQUEST and QUOTA_EXCEEDED (for the call as a whole; an item's error is in its
     * result).
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.ruvd.v1.BatchCompleteResponse>
        batchComplete(dev.ruvd.v1.BatchCompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getBatchCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * CancelCompletion stops a completion and returns when it has ended. It has no effect on a
     * completion that has already ended.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.CancelCompletionResponse cancelCompletion(dev.ruvd.v1.CancelCompletionRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCancelCompletionMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service SessionService.
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public static final class SessionServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<SessionServiceBlockingStub> {
    private SessionServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SessionServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SessionServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * CreateSession creates a session before its first turn, for example to give it a system prompt,
     * labels or a history.
     * Errors: INVALID_REQUEST, SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSION_TOO_LARGE,
     * SESSIONS_DISABLED, REQUEST_ID_REUSED, STORE_UNAVAILABLE, SHUTTING_DOWN.
     * </pre>
     */
    public dev.ruvd.v1.CreateSessionResponse createSession(dev.ruvd.v1.CreateSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCreateSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetSession returns one session. An expired session is not found. Reading a session does not
     * change its last_used_time. A long history is read page by page (see page_size); a turn that is
     * committed between two pages only adds messages at the end. If the session ends between two
     * pages, the next call fails with SESSION_NOT_FOUND, also if a new session has its id.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSIONS_DISABLED, RESPONSE_TOO_LARGE (without
     * page_size), OVERLOADED (with messages), STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.GetSessionResponse getSession(dev.ruvd.v1.GetSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListSessions returns the sessions page by page, in the order of their creation.
     * Errors: INVALID_REQUEST, SESSIONS_DISABLED, OVERLOADED, STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.ListSessionsResponse listSessions(dev.ruvd.v1.ListSessionsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListSessionsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * UpdateSession changes a session's labels, idle timeout, context window or compaction
     * instruction. It runs after the turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSIONS_DISABLED, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.UpdateSessionResponse updateSession(dev.ruvd.v1.UpdateSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getUpdateSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * AppendMessages commits messages to a session without generating an answer. It runs after the
     * turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSION_TOO_LARGE, QUOTA_EXCEEDED, SESSIONS_DISABLED, OVERLOADED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.AppendMessagesResponse appendMessages(dev.ruvd.v1.AppendMessagesRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getAppendMessagesMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ForkSession creates a session that starts with the beginning of another session's history. Only
     * committed turns are copied, and the two sessions are independent from then on.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED and SESSION_EXPIRED (of the session
     * to fork), SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSIONS_DISABLED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.ForkSessionResponse forkSession(dev.ruvd.v1.ForkSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getForkSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * CompactSession summarises the exchanges of a session that are not among the last keep_exchanges
     * of its context window. Later prompts have the summary in place of them; the history keeps them.
     * The engine writes the summary. Turns do not wait for it, and those that run meanwhile are kept.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED, SESSION_BUSY (if
     * another compaction or another replica of the daemon changes the session meanwhile),
     * QUOTA_EXCEEDED, PERMISSION_DENIED (for the model), SESSIONS_DISABLED, CONTEXT_TOO_LONG,
     * ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE, OVERLOADED,
     * SHUTTING_DOWN, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public dev.ruvd.v1.CompactSessionResponse compactSession(dev.ruvd.v1.CompactSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCompactSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * EndSession deletes a session and its messages. Its running and queued completions fail with
     * SESSION_ENDED.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (unless allow_missing), SESSIONS_DISABLED,
     * STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.EndSessionResponse endSession(dev.ruvd.v1.EndSessionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getEndSessionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ListModels returns the models that the engines offer. An engine that does not answer is left out;
     * the errors are those of a daemon of which no engine answers.
     * Errors: ENGINE_UNAVAILABLE, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT.
     * </pre>
     */
    public dev.ruvd.v1.ListModelsResponse listModels(dev.ruvd.v1.ListModelsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetServerInfo returns what a client has to know of the daemon: its version, what it can do, its
     * limits, and its engine. Every caller with an identity may call it, whatever its role. It also
     * answers while the engine is down. A daemon that does not know it answers UNIMPLEMENTED.
     * Errors: INVALID_REQUEST.
     * </pre>
     */
    public dev.ruvd.v1.GetServerInfoResponse getServerInfo(dev.ruvd.v1.GetServerInfoRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetServerInfoMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * GetSessionMetrics returns the daemon's measurements since it started.
     * Errors: STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.GetSessionMetricsResponse getSessionMetrics(dev.ruvd.v1.GetSessionMetricsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetSessionMetricsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Complete generates an answer to the new messages and streams it. With a session_id, the
     * messages and the answer are committed together, durably, before Finished is sent. A completion
     * that fails or is cancelled leaves the session unchanged; its stream ends with an error status
     * and without Finished. A second call for the same session waits for the first (see if_busy).
     * Cancelling the call cancels the completion (see on_disconnect).
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (with require_existing), SESSION_EVICTED and
     * SESSION_EXPIRED (without recreate_if_gone), SESSION_BUSY, SESSION_ENDED, SESSION_LIMIT,
     * SESSION_TOO_LARGE, SESSIONS_DISABLED, COMPLETION_CANCELLED, COMPLETION_INTERRUPTED,
     * CONTEXT_TOO_LONG, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT,
     * ENGINE_UNAVAILABLE, OVERLOADED, REQUEST_ID_REUSED, SCHEMA_VIOLATED, STORE_UNAVAILABLE,
     * DATA_CORRUPTED, SHUTTING_DOWN, QUOTA_EXCEEDED, PERMISSION_DENIED (for a model, tool or field).
     * </pre>
     */
    public java.util.Iterator<dev.ruvd.v1.CompleteResponse> complete(
        dev.ruvd.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * ResumeCompletion streams a completion's events after after_sequence, first the past ones, then
     * the new ones as they occur. Clients call it after their stream broke. For a failed completion
     * it replays the events, then returns the error. If the events are no longer kept but the answer
     * is committed, as after a restart, it sends only Finished, with its original sequence number.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE, and those of Complete.
     * </pre>
     */
    public java.util.Iterator<dev.ruvd.v1.ResumeCompletionResponse> resumeCompletion(
        dev.ruvd.v1.ResumeCompletionRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getResumeCompletionMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * BatchComplete runs many completions and sends each answer or error as soon as it is available,
     * then a summary. Items of the same session run in order; all others run concurrently. An item's
     * failure does not affect the other items. Interactive completions have priority over batch
     * items, which are limited to their own share of the engine. Cancelling the call affects each
     * running item like cancelling Complete; items that have not started are not started. Repeating
     * the call with the same request ids runs only the items that had not finished.
     * Errors: INVALID_REQUEST and QUOTA_EXCEEDED (for the call as a whole; an item's error is in its
     * result).
     * </pre>
     */
    public java.util.Iterator<dev.ruvd.v1.BatchCompleteResponse> batchComplete(
        dev.ruvd.v1.BatchCompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getBatchCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * CancelCompletion stops a completion and returns when it has ended. It has no effect on a
     * completion that has already ended.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE.
     * </pre>
     */
    public dev.ruvd.v1.CancelCompletionResponse cancelCompletion(dev.ruvd.v1.CancelCompletionRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCancelCompletionMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service SessionService.
   * <pre>
   * Stores conversations and generates the answers in them.
   * </pre>
   */
  public static final class SessionServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<SessionServiceFutureStub> {
    private SessionServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected SessionServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new SessionServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * CreateSession creates a session before its first turn, for example to give it a system prompt,
     * labels or a history.
     * Errors: INVALID_REQUEST, SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSION_TOO_LARGE,
     * SESSIONS_DISABLED, REQUEST_ID_REUSED, STORE_UNAVAILABLE, SHUTTING_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.CreateSessionResponse> createSession(
        dev.ruvd.v1.CreateSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCreateSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * GetSession returns one session. An expired session is not found. Reading a session does not
     * change its last_used_time. A long history is read page by page (see page_size); a turn that is
     * committed between two pages only adds messages at the end. If the session ends between two
     * pages, the next call fails with SESSION_NOT_FOUND, also if a new session has its id.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSIONS_DISABLED, RESPONSE_TOO_LARGE (without
     * page_size), OVERLOADED (with messages), STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.GetSessionResponse> getSession(
        dev.ruvd.v1.GetSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ListSessions returns the sessions page by page, in the order of their creation.
     * Errors: INVALID_REQUEST, SESSIONS_DISABLED, OVERLOADED, STORE_UNAVAILABLE.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.ListSessionsResponse> listSessions(
        dev.ruvd.v1.ListSessionsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListSessionsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * UpdateSession changes a session's labels, idle timeout, context window or compaction
     * instruction. It runs after the turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSIONS_DISABLED, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.UpdateSessionResponse> updateSession(
        dev.ruvd.v1.UpdateSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getUpdateSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * AppendMessages commits messages to a session without generating an answer. It runs after the
     * turns that are already running or queued in the session.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED,
     * SESSION_TOO_LARGE, QUOTA_EXCEEDED, SESSIONS_DISABLED, OVERLOADED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.AppendMessagesResponse> appendMessages(
        dev.ruvd.v1.AppendMessagesRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getAppendMessagesMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ForkSession creates a session that starts with the beginning of another session's history. Only
     * committed turns are copied, and the two sessions are independent from then on.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED and SESSION_EXPIRED (of the session
     * to fork), SESSION_EXISTS, SESSION_LIMIT, QUOTA_EXCEEDED, SESSIONS_DISABLED, REQUEST_ID_REUSED,
     * STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.ForkSessionResponse> forkSession(
        dev.ruvd.v1.ForkSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getForkSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * CompactSession summarises the exchanges of a session that are not among the last keep_exchanges
     * of its context window. Later prompts have the summary in place of them; the history keeps them.
     * The engine writes the summary. Turns do not wait for it, and those that run meanwhile are kept.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND, SESSION_EVICTED, SESSION_EXPIRED, SESSION_BUSY (if
     * another compaction or another replica of the daemon changes the session meanwhile),
     * QUOTA_EXCEEDED, PERMISSION_DENIED (for the model), SESSIONS_DISABLED, CONTEXT_TOO_LONG,
     * ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT, ENGINE_UNAVAILABLE, OVERLOADED,
     * SHUTTING_DOWN, STORE_UNAVAILABLE, DATA_CORRUPTED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.CompactSessionResponse> compactSession(
        dev.ruvd.v1.CompactSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCompactSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * EndSession deletes a session and its messages. Its running and queued completions fail with
     * SESSION_ENDED.
     * Errors: INVALID_REQUEST, SESSION_NOT_FOUND (unless allow_missing), SESSIONS_DISABLED,
     * STORE_UNAVAILABLE.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.EndSessionResponse> endSession(
        dev.ruvd.v1.EndSessionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getEndSessionMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * ListModels returns the models that the engines offer. An engine that does not answer is left out;
     * the errors are those of a daemon of which no engine answers.
     * Errors: ENGINE_UNAVAILABLE, ENGINE_REJECTED, ENGINE_RATE_LIMITED, ENGINE_TIMEOUT.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.ListModelsResponse> listModels(
        dev.ruvd.v1.ListModelsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListModelsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * GetServerInfo returns what a client has to know of the daemon: its version, what it can do, its
     * limits, and its engine. Every caller with an identity may call it, whatever its role. It also
     * answers while the engine is down. A daemon that does not know it answers UNIMPLEMENTED.
     * Errors: INVALID_REQUEST.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.GetServerInfoResponse> getServerInfo(
        dev.ruvd.v1.GetServerInfoRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetServerInfoMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * GetSessionMetrics returns the daemon's measurements since it started.
     * Errors: STORE_UNAVAILABLE.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.GetSessionMetricsResponse> getSessionMetrics(
        dev.ruvd.v1.GetSessionMetricsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetSessionMetricsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * CancelCompletion stops a completion and returns when it has ended. It has no effect on a
     * completion that has already ended.
     * Errors: INVALID_REQUEST, COMPLETION_NOT_FOUND, STORE_UNAVAILABLE.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.ruvd.v1.CancelCompletionResponse> cancelCompletion(
        dev.ruvd.v1.CancelCompletionRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCancelCompletionMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_CREATE_SESSION = 0;
  private static final int METHODID_GET_SESSION = 1;
  private static final int METHODID_LIST_SESSIONS = 2;
  private static final int METHODID_UPDATE_SESSION = 3;
  private static final int METHODID_APPEND_MESSAGES = 4;
  private static final int METHODID_FORK_SESSION = 5;
  private static final int METHODID_COMPACT_SESSION = 6;
  private static final int METHODID_END_SESSION = 7;
  private static final int METHODID_LIST_MODELS = 8;
  private static final int METHODID_GET_SERVER_INFO = 9;
  private static final int METHODID_GET_SESSION_METRICS = 10;
  private static final int METHODID_COMPLETE = 11;
  private static final int METHODID_RESUME_COMPLETION = 12;
  private static final int METHODID_BATCH_COMPLETE = 13;
  private static final int METHODID_CANCEL_COMPLETION = 14;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_CREATE_SESSION:
          serviceImpl.createSession((dev.ruvd.v1.CreateSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.CreateSessionResponse>) responseObserver);
          break;
        case METHODID_GET_SESSION:
          serviceImpl.getSession((dev.ruvd.v1.GetSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionResponse>) responseObserver);
          break;
        case METHODID_LIST_SESSIONS:
          serviceImpl.listSessions((dev.ruvd.v1.ListSessionsRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.ListSessionsResponse>) responseObserver);
          break;
        case METHODID_UPDATE_SESSION:
          serviceImpl.updateSession((dev.ruvd.v1.UpdateSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.UpdateSessionResponse>) responseObserver);
          break;
        case METHODID_APPEND_MESSAGES:
          serviceImpl.appendMessages((dev.ruvd.v1.AppendMessagesRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.AppendMessagesResponse>) responseObserver);
          break;
        case METHODID_FORK_SESSION:
          serviceImpl.forkSession((dev.ruvd.v1.ForkSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.ForkSessionResponse>) responseObserver);
          break;
        case METHODID_COMPACT_SESSION:
          serviceImpl.compactSession((dev.ruvd.v1.CompactSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.CompactSessionResponse>) responseObserver);
          break;
        case METHODID_END_SESSION:
          serviceImpl.endSession((dev.ruvd.v1.EndSessionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.EndSessionResponse>) responseObserver);
          break;
        case METHODID_LIST_MODELS:
          serviceImpl.listModels((dev.ruvd.v1.ListModelsRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.ListModelsResponse>) responseObserver);
          break;
        case METHODID_GET_SERVER_INFO:
          serviceImpl.getServerInfo((dev.ruvd.v1.GetServerInfoRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.GetServerInfoResponse>) responseObserver);
          break;
        case METHODID_GET_SESSION_METRICS:
          serviceImpl.getSessionMetrics((dev.ruvd.v1.GetSessionMetricsRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.GetSessionMetricsResponse>) responseObserver);
          break;
        case METHODID_COMPLETE:
          serviceImpl.complete((dev.ruvd.v1.CompleteRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.CompleteResponse>) responseObserver);
          break;
        case METHODID_RESUME_COMPLETION:
          serviceImpl.resumeCompletion((dev.ruvd.v1.ResumeCompletionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.ResumeCompletionResponse>) responseObserver);
          break;
        case METHODID_BATCH_COMPLETE:
          serviceImpl.batchComplete((dev.ruvd.v1.BatchCompleteRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.BatchCompleteResponse>) responseObserver);
          break;
        case METHODID_CANCEL_COMPLETION:
          serviceImpl.cancelCompletion((dev.ruvd.v1.CancelCompletionRequest) request,
              (io.grpc.stub.StreamObserver<dev.ruvd.v1.CancelCompletionResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getCreateSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.CreateSessionRequest,
              dev.ruvd.v1.CreateSessionResponse>(
                service, METHODID_CREATE_SESSION)))
        .addMethod(
          getGetSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.GetSessionRequest,
              dev.ruvd.v1.GetSessionResponse>(
                service, METHODID_GET_SESSION)))
        .addMethod(
          getListSessionsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.ListSessionsRequest,
              dev.ruvd.v1.ListSessionsResponse>(
                service, METHODID_LIST_SESSIONS)))
        .addMethod(
          getUpdateSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.UpdateSessionRequest,
              dev.ruvd.v1.UpdateSessionResponse>(
                service, METHODID_UPDATE_SESSION)))
        .addMethod(
          getAppendMessagesMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.AppendMessagesRequest,
              dev.ruvd.v1.AppendMessagesResponse>(
                service, METHODID_APPEND_MESSAGES)))
        .addMethod(
          getForkSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.ForkSessionRequest,
              dev.ruvd.v1.ForkSessionResponse>(
                service, METHODID_FORK_SESSION)))
        .addMethod(
          getCompactSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.CompactSessionRequest,
              dev.ruvd.v1.CompactSessionResponse>(
                service, METHODID_COMPACT_SESSION)))
        .addMethod(
          getEndSessionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.EndSessionRequest,
              dev.ruvd.v1.EndSessionResponse>(
                service, METHODID_END_SESSION)))
        .addMethod(
          getListModelsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.ListModelsRequest,
              dev.ruvd.v1.ListModelsResponse>(
                service, METHODID_LIST_MODELS)))
        .addMethod(
          getGetServerInfoMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.GetServerInfoRequest,
              dev.ruvd.v1.GetServerInfoResponse>(
                service, METHODID_GET_SERVER_INFO)))
        .addMethod(
          getGetSessionMetricsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.GetSessionMetricsRequest,
              dev.ruvd.v1.GetSessionMetricsResponse>(
                service, METHODID_GET_SESSION_METRICS)))
        .addMethod(
          getCompleteMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.ruvd.v1.CompleteRequest,
              dev.ruvd.v1.CompleteResponse>(
                service, METHODID_COMPLETE)))
        .addMethod(
          getResumeCompletionMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.ruvd.v1.ResumeCompletionRequest,
              dev.ruvd.v1.ResumeCompletionResponse>(
                service, METHODID_RESUME_COMPLETION)))
        .addMethod(
          getBatchCompleteMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.ruvd.v1.BatchCompleteRequest,
              dev.ruvd.v1.BatchCompleteResponse>(
                service, METHODID_BATCH_COMPLETE)))
        .addMethod(
          getCancelCompletionMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.ruvd.v1.CancelCompletionRequest,
              dev.ruvd.v1.CancelCompletionResponse>(
                service, METHODID_CANCEL_COMPLETION)))
        .build();
  }

  private static abstract class SessionServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    SessionServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.ruvd.v1.SessionServiceOuterClass.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("SessionService");
    }
  }

  private static final class SessionServiceFileDescriptorSupplier
      extends SessionServiceBaseDescriptorSupplier {
    SessionServiceFileDescriptorSupplier() {}
  }

  private static final class SessionServiceMethodDescriptorSupplier
      extends SessionServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    SessionServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (SessionServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new SessionServiceFileDescriptorSupplier())
              .addMethod(getCreateSessionMethod())
              .addMethod(getGetSessionMethod())
              .addMethod(getListSessionsMethod())
              .addMethod(getUpdateSessionMethod())
              .addMethod(getAppendMessagesMethod())
              .addMethod(getForkSessionMethod())
              .addMethod(getCompactSessionMethod())
              .addMethod(getEndSessionMethod())
              .addMethod(getListModelsMethod())
              .addMethod(getGetServerInfoMethod())
              .addMethod(getGetSessionMetricsMethod())
              .addMethod(getCompleteMethod())
              .addMethod(getResumeCompletionMethod())
              .addMethod(getBatchCompleteMethod())
              .addMethod(getCancelCompletionMethod())
              .build();
        }
      }
    }
    return result;
  }
}
