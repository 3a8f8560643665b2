# The machine says hello on its serial console and powers itself off: the job completes.
job "hello" {
  type = "batch"

  group "hello" {
    restart {
      attempts = 0
    }

    task "hello" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check poweroff"
        placement = "shared"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
