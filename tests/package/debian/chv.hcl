# The Nomad task driver chv: /usr/share/doc/chv/docs/quick-start.md, and plugin.md for every key.
#
# As it comes this file says nothing to the agent. Take the # away before what you want, then restart the agent.
# An agent has one plugin_dir: where yours is another one, link /usr/lib/nomad/plugins/chv into it instead.

#plugin_dir = "/usr/lib/nomad/plugins"
#
#plugin "chv" {
#  config {
#    image_paths = ["/srv/images"]   # host directories that jobs may boot from
#    vm_uids     = "200000-265535"   # one uid for each machine
#
#    default_network = "user0"
#    network "user0" {
#      mode = "user"
#    }
#  }
#}
