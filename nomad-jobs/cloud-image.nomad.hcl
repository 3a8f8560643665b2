# A Debian cloud image: cloud-init sets it up at the first boot, as the template says, grows its root to root_size and
# mounts the task's own directory at /local.
# Before this job is of use, an image has to lie beside the test guest (`python3 tests/setup.py cloud` makes one), and a
# key of yours belongs into ssh_authorized_keys. See docs/task.md.
job "cloud-image" {
  type = "service"

  group "cloud-image" {
    network {
      port "ssh" {
        to = 22
      }
    }

    task "cloud-image" {
      driver       = "chv"
      kill_timeout = "60s"

      config {
        image               = "${meta.chv_guest}/debian.qcow2"
        root_size           = "3GiB"
        placement           = "shared"
        hostname            = "cloud-1"
        ssh_authorized_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl you@example"]
        user_data           = "local/user-data"
        share               = ["local"]

        network_interface {
          network = "user0"
        }
      }

      # In a template ${X} is the script's own, and secrets can come from where Nomad has them.
      template {
        destination = "local/user-data"
        data        = <<-EOT
          #cloud-config
          write_files:
            - path: /var/lib/cloud/scripts/per-boot/show
              permissions: "0755"
              content: |
                #!/bin/sh
                mount -o ro /dev/disk/by-label/cidata /mnt
                . /mnt/nomad.env
                umount /mnt
                echo "boot of ${NOMAD_JOB_NAME}: instance $(cat /var/lib/cloud/data/instance-id)"
                echo "host name $(hostname)"
                echo "key $(cat /home/debian/.ssh/authorized_keys)"
                echo "address $(ip -4 -br addr show dev net0)"
                echo "share $(findmnt -n -o FSTYPE,OPTIONS /local) $(ls /local)"
                echo "root $(df -B1 --output=size / | tail -n 1)"
          runcmd:
            - echo "first boot of this instance"
        EOT
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
