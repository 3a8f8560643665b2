# The guest writes the line `exit 3` to its channel: the task fails with 3, and nobody tries again.
job "exit-code" {
  type = "batch"

  group "exit-code" {
    restart {
      attempts = 0
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "exit-code" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check exit=3"
        placement = "shared"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
