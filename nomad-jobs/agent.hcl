# An agent file for one machine on which chv is tried: server and client in one, on loopback.
#
#   plugin_dir         holds the executable chv, or a link to it
#   meta.chv_guest     holds vmlinuz and initrd.img; the jobs beside this file name it, and image_paths has to allow it
#
# `chv dev --config agent.hcl JOB` reads the plugin block and the client's meta and withheld cores, and nothing else.

data_dir   = "/opt/nomad/data"
plugin_dir = "/opt/nomad/plugins"
bind_addr  = "127.0.0.1"

advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

server {
  enabled          = true
  bootstrap_expect = 1
}

client {
  enabled = true

  # Where Debian has the plugins for groups with network { mode = "bridge" }:
  # cni_path = "/usr/lib/cni"

  meta {
    chv_guest = "/srv/chv-guest"
  }
}

# Without it Nomad never asks a driver for CPU and memory.
telemetry {
  publish_allocation_metrics = true
}

plugin "chv" {
  config {
    data_dir = "/var/lib/chv" # survives a reboot
    run_dir  = "/run/chv"     # sockets

    image_paths = ["/srv/chv-guest"] # what jobs may boot
    vm_uids     = "200000-265535"    # one uid for each machine

    qemu {
      accel = "auto"
    }

    # Without passt a guest on it reaches this host's loopback: what listens there must not trust everybody.
    network "user0" {
      mode = "user"
    }

    # Others, with names and interfaces of yours; docs/networks.md tells which kind is for what.
    #
    # network "lan" {
    #   mode   = "macvtap" # machines beside this host on its LAN
    #   parent = "eno1"
    # }
    # network "br" {
    #   mode   = "bridge" # machines on a bridge that is there
    #   bridge = "br0"
    # }
  }
}
