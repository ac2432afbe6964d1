"""The gRPC API: requests are validated and converted, and errors become statuses."""
