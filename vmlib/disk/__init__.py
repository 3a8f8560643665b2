"""Disks of a machine: what a job names is checked, copied or overlaid, and handed on as open descriptors."""
