"""What our tests must know of the job files in nomad-jobs/."""

# Those for which only an agent will do, and how the embedded host refuses them.
FOR_AGENTS = {
    "tokens": "block device in resources: not supported by chv dev",
    "cloud-image": "block template in task: not supported by chv dev",
    "guest-agent": "block template in task: not supported by chv dev",
    "count": "count = 3: chv dev runs one",
    "host-volume": "block volume in group: not supported by chv dev",
    "group-network": "block service in group: not supported by chv dev",
    "user-sidecar": "mode = 'bridge': chv dev has host networks only",
    "service-address": "block service in task: not supported by chv dev",
}
