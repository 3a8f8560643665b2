# A service that is found under the guest's own address, and not under one of the host's. Nomad's own checks go to ports of
# the host, so there is none here: docs/networks.md tells more.
job "service-address" {
  type = "service"

  group "service-address" {
    task "service-address" {
      driver       = "chv"
      kill_timeout = "30s"

      service {
        name         = "service-address"
        provider     = "nomad"
        port         = "80"
        address_mode = "driver"
      }

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=80"
        placement = "shared"

        network_interface {
          network = "br"
          address = ["198.51.100.21/24"]
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
