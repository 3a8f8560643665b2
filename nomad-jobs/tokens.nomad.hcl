# Dedicated cores that the scheduler counts: a node without so many free ones in one NUMA node is not chosen. Needs the
# device plugin chv-cores on the node, see docs/cores.md.
job "tokens" {
  type = "batch"

  group "tokens" {
    restart {
      attempts = 0
    }

    task "tokens" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel  = "${meta.chv_guest}/vmlinuz"
        initrd  = "${meta.chv_guest}/initrd.img"
        cmdline = "console=ttyS0 quiet panic=-1 no_timer_check sleep=3 poweroff"
      }

      resources {
        cpu    = 10 # the MHz of dedicated cores are withheld with them
        memory = 128

        device "chv/core" {
          count = 1
        }
      }
    }
  }
}
