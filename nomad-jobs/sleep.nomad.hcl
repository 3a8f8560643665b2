# Works for five seconds, then powers off.
job "sleep" {
  type = "batch"

  group "sleep" {
    restart {
      attempts = 0
    }

    task "sleep" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check sleep=5 poweroff"
        placement = "shared"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
