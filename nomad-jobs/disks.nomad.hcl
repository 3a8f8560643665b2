# A root disk that is grown, a new disk, and a copy of a file that is grown as well; the guest says their sizes. The last
# one is read-only. See docs/task.md.
job "disks" {
  type = "batch"

  group "disks" {
    restart {
      attempts = 0
    }

    task "disks" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        image     = "${meta.chv_guest}/disk.qcow2"
        root_size = "2GiB"
        placement = "shared"
        user_data = "#words write=new:a write=grown:b write=ro:c read=new read=grown poweroff"

        disk {
          name = "new"
          size = "1GiB"
        }
        disk {
          name   = "grown"
          source = "${meta.chv_guest}/disk.raw"
          size   = "100MiB"
        }
        disk {
          name     = "ro"
          source   = "${meta.chv_guest}/disk.qcow2"
          readonly = true
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
