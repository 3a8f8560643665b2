"""The plugin side of HashiCorp's go-plugin protocol: a process that serves gRPC to the host that started it.

Knows neither Nomad nor machines. Order matters at start: `process.prepare` comes before anything imports grpc.
"""
