"""The Nomad task driver `chv`: gRPC, HCL schemas and task ids on top of vmlib."""

# Must parse as hashicorp/go-version: 0.1.0 and 0.1.0-dev do, 0.1.0.dev1 does not.
__version__ = "0.1.0"
