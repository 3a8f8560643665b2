# One whole core for the machine alone: Nomad reserves it, the driver pins the vCPU to it.
job "cores" {
  type = "batch"

  group "cores" {
    restart {
      attempts = 0
    }

    task "cores" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel  = "${meta.chv_guest}/vmlinuz"
        initrd  = "${meta.chv_guest}/initrd.img"
        cmdline = "console=ttyS0 quiet panic=-1 no_timer_check sleep=3 poweroff"
      }

      resources {
        cores  = 1
        memory = 128
      }
    }
  }
}
