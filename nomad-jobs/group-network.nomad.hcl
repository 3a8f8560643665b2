# The guest takes over the network of its group, address and all: ports and checks of the group are the guest's. Such a
# group has no other task that uses the network; beside others a machine is on a network of mode user (user-sidecar).
job "group-network" {
  type = "service"

  group "group-network" {
    network {
      mode = "bridge"

      port "http" {
        to = 8080
      }
    }

    service {
      name     = "group-network"
      provider = "nomad"
      port     = "http"

      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "2s"
      }
    }

    task "group-network" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=8080"
        placement = "shared"

        network_interface {
          network = "alloc"
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
