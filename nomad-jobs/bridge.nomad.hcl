# A machine on a bridge of the operator's, with an address that the job chooses.
job "bridge" {
  type = "service"

  group "bridge" {
    task "bridge" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=80"
        placement = "shared"

        network_interface {
          network = "br"
          address = ["198.51.100.20/24"]
          gateway = "198.51.100.1"
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
