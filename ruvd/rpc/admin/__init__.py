"""The administration of a running daemon over gRPC: `ruvd.admin.v1.AdminService`."""
