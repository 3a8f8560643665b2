# What the guest agent is for: `nomad alloc exec`, templates whose change the guest hears of, secrets, exit codes.
# The job is running when its guest is (wait_for). Before it is run, `nomad var put nomad/jobs/guest-agent color=blue
# token=s3cret`; an image has to lie beside the test guest, as for cloud-image.nomad.hcl. See docs/guest.md.
job "guest-agent" {
  type = "service"

  group "guest-agent" {
    task "guest-agent" {
      driver       = "chv"
      kill_timeout = "60s"

      config {
        image     = "${meta.chv_guest}/debian.qcow2"
        placement = "shared"

        # Without an interface cloud-init waits two minutes for a network before it brings the agent.
        network_interface {
          network = "user0"
        }

        hostname  = "guest-1"
        user_data = "local/user-data"
        share     = ["local", "secrets"]
        wait_for  = "agent"
      }

      env {
        GREETING = "it's \"5 $\" `now`"
      }

      # The guest runs what lies in this directory when Nomad sends SIGHUP: here after each change of the template.
      template {
        destination = "local/user-data"
        change_mode = "noop"
        data        = <<-EOT
          #cloud-config
          write_files:
            - path: /etc/chv/signals/SIGHUP.d/10-color
              permissions: "0755"
              content: |
                #!/bin/sh
                cp /local/color /run/color.seen
        EOT
      }

      template {
        destination   = "local/color"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        data          = "{{ with nomadVar \"nomad/jobs/guest-agent\" }}{{ .color }}{{ end }}\n"
      }

      template {
        destination = "secrets/token"
        perms       = "0600"
        change_mode = "script"
        data        = "{{ with nomadVar \"nomad/jobs/guest-agent\" }}{{ .token }}{{ end }}\n"

        change_script {
          command = "/bin/sh"
          args    = ["-c", "umask 077; cp /secrets/token /run/token.seen"]
          timeout = "30s"
        }
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
