# The task's own directories in the guest, by virtiofs: local, secrets and alloc. This guest mounts them by their tags;
# one with cloud-init finds them at /local, /secrets and /alloc by itself. See docs/task.md.
job "share" {
  type = "batch"

  group "share" {
    restart {
      attempts = 0
    }

    task "share" {
      driver       = "chv"
      kill_timeout = "30s"

      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check mount=chv:local:/local mount=chv:secrets:/secrets mount=chv:alloc:/alloc put=/local/greeting:hello put=/secrets/key:s3cret put=/alloc/data/result:42 get=/secrets/key poweroff"
        placement = "shared"
        share     = ["local", "secrets", "alloc"]
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
