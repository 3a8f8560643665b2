# Two directories of the host's in the guest, one of them read-only. The client's file names them:
#
#   client {
#     host_volume "chv-data" {
#       path = "/srv/chv-data"
#     }
#     host_volume "chv-fixed" {
#       path      = "/srv/chv-fixed"
#       read_only = true
#     }
#   }
#
# This guest mounts them by their tags; one with cloud-init finds them at their destinations. See docs/task.md.
job "host-volume" {
  type = "batch"

  group "host-volume" {
    restart {
      attempts = 0
    }

    volume "data" {
      type   = "host"
      source = "chv-data"
    }

    volume "fixed" {
      type      = "host"
      source    = "chv-fixed"
      read_only = true
    }

    task "host-volume" {
      driver       = "chv"
      kill_timeout = "30s"

      volume_mount {
        volume      = "data"
        destination = "/srv/data"
      }

      # Writable for this task, read-only for the group: the stricter one holds.
      volume_mount {
        volume      = "fixed"
        destination = "/srv/fixed"
      }

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check mount=chv:srv-data:/data mount=chv:srv-fixed:/fixed get=/data/in put=/data/out:done get=/fixed/in put=/fixed/in:changed poweroff"
        placement = "shared"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
