"""Links of a machine: what the guest's interfaces are plugged into."""
