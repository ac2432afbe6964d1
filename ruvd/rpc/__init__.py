"""gRPC in and out: requests are checked and converted, errors become statuses."""
