// Generated from proto/service_config.json by `make generate`. DO NOT EDIT.
export const serviceConfig = {
  "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}],
  "methodConfig": [
    {
      "name": [
        {"service": "ruvd.v1.SessionService", "method": "GetSession"},
        {"service": "ruvd.v1.SessionService", "method": "ListSessions"},
        {"service": "ruvd.v1.SessionService", "method": "GetSessionMetrics"},
        {"service": "ruvd.v1.SessionService", "method": "ListModels"},
        {"service": "ruvd.v1.SessionService", "method": "GetServerInfo"}
      ],
      "timeout": "10s",
      "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
      }
    },
    {
      "name": [
        {"service": "ruvd.v1.SessionService", "method": "CreateSession"},
        {"service": "ruvd.v1.SessionService", "method": "EndSession"},
        {"service": "ruvd.v1.SessionService", "method": "CancelCompletion"}
      ],
      "timeout": "30s"
    }
  ]
};
