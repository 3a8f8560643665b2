# Disks from a file server: one that is read where it lies, one that is copied from there. See docs/task.md.
job "nfs-data" {
  type = "batch"

  group "nfs-data" {
    restart {
      attempts = 0
    }

    task "nfs-data" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check read=there read=copied write=copied:changed read=copied poweroff"
        placement = "shared"

        disk {
          name     = "there"
          source   = "nfs://vms/data.raw"
          readonly = true
        }
        disk {
          name   = "copied"
          source = "nfs://vms/data.raw"
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
