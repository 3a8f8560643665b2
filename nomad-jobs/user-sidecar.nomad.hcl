# A machine beside another task in the network of their group: on a network of mode user the group keeps its network, and
# port 8080 of the guest is one of the group's, for the neighbour on 127.0.0.1 and for others through the host's port.
job "user-sidecar" {
  type = "service"

  group "user-sidecar" {
    network {
      mode = "bridge"

      port "http" {
        to = 8080
      }
    }

    task "user-sidecar" {
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

    task "neighbour" {
      driver = "raw_exec"

      config {
        command = "/bin/busybox"
        args    = ["sh", "-c", "until busybox wget -q -O - http://127.0.0.1:8080/; do sleep 1; done; exec sleep 86400"]
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
