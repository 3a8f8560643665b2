"""The embedded host: plays the Nomad client for one job on this machine, over the same plugin wire."""
