# Three allocs on one image: each writes to an overlay of its own, and the image stays as it is. See docs/task.md.
job "count" {
  type = "batch"

  group "count" {
    count = 3

    restart {
      attempts = 0
    }

    task "count" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        image     = "${meta.chv_guest}/disk.qcow2"
        placement = "shared"
        user_data = "#words write=:alloc-${NOMAD_ALLOC_INDEX} read= poweroff"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
