# A disk that outlives the alloc: the second run of this job reads what the first one wrote. See docs/task.md.
job "persistent" {
  type = "batch"

  group "persistent" {
    restart {
      attempts = 0
    }

    task "persistent" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check read=data write=data:kept poweroff"
        placement = "shared"

        disk {
          name       = "data"
          size       = "1GiB"
          persistent = true
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
