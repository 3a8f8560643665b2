# Fails each time: one restart, then the restart policy gives up.
job "restart" {
  type = "batch"

  group "restart" {
    restart {
      attempts = 1
      interval = "10m"
      delay    = "0s"
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "restart" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check exit=1"
        placement = "shared"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
