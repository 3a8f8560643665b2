# A batch job in a cloud image: its user-data does the work and ends the machine with an exit code of its own.
# An image has to lie beside the test guest, as for cloud-image.nomad.hcl. See docs/guest.md.
job "guest-exit" {
  type = "batch"

  group "guest-exit" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "guest-exit" {
      driver       = "chv"
      kill_timeout = "60s"

      config {
        image     = "${meta.chv_guest}/debian.qcow2"
        placement = "shared"

        network_interface {
          network = "user0"
        }

        user_data = <<-EOT
          #cloud-config
          runcmd:
            - echo "the work is done"
            - chv-exit 7
        EOT
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
