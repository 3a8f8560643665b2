"""Cloud Hypervisor as far as tests need it: its API description as facts, and a VMM that plays it."""
