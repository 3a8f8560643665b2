"""Protobuf messages and gRPC services, made by proto/generate.py. Never edited by hand."""
