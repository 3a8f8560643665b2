# A disk that boots by UEFI firmware (OVMF). It runs until it is stopped; after `nomad alloc restart` the guest finds the
# firmware variable that it set before. See docs/task.md.
job "uefi" {
  type = "service"

  group "uefi" {
    task "uefi" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        image     = "${meta.chv_guest}/disk.qcow2"
        firmware  = "uefi"
        placement = "shared"
        user_data = "#words read-var write-var=kept"
      }

      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
