# One interface on the LAN, by DHCP, and one on a bridge, with an address of the job's: eth0 and eth1 in their order.
job "two-interfaces" {
  type = "service"

  group "two-interfaces" {
    task "two-interfaces" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=80"
        placement = "shared"

        network_interface {
          network = "lan"
        }

        network_interface {
          network = "br"
          address = ["198.51.100.22/24"]
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
