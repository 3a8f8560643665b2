# A root disk over an image on a file server, which the operator's plugin block calls "vms". See docs/plugin.md.
job "nfs-root" {
  type = "batch"

  group "nfs-root" {
    restart {
      attempts = 0
    }

    task "nfs-root" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        image     = "nfs://vms/disk.qcow2"
        placement = "shared"
        user_data = "#words poweroff"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
