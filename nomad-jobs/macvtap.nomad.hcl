# A machine beside its host on the operator's LAN, with an address of its own by DHCP: others there reach it as they reach
# any machine, this host itself does not (docs/networks.md).
job "macvtap" {
  type = "service"

  group "macvtap" {
    task "macvtap" {
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
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
