# A web server in the guest, on a user-mode network of the operator's: Nomad's port leads to 8080 in the guest.
job "http" {
  type = "service"

  group "http" {
    network {
      port "http" {
        to = 8080
      }
    }

    task "http" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=8080"
        placement = "shared"

        network_interface {
          network = "user0"
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
