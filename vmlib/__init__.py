"""Virtual machines with their disks, links and cores, for whoever schedules them. Knows nothing of Nomad."""
