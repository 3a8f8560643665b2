#!/bin/busybox sh
# What udhcpc runs when something happens to a lease.
case "$1" in
deconfig)
    ip link set "$interface" up
    ;;
bound | renew)
    ip address flush dev "$interface"
    ip address add "$ip/$mask" dev "$interface"
    for gateway in $router; do
        ip route add default via "$gateway" dev "$interface"
        break
    done
    ;;
esac
