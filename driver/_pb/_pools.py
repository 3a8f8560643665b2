"""Where descriptors are registered. Made by proto/generate.py; never edited by hand."""

from google.protobuf import descriptor_pool

SHARED = descriptor_pool.Default()

# For what other packages define too (gRPC's health service, google.rpc.Status): nobody else looks in here.
PRIVATE = descriptor_pool.DescriptorPool()
