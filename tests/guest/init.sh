#!/bin/busybox sh
# The test guest's pid 1: says what it sees, then obeys the words of its kernel command line, in their order.
# The words are explained in README.md. Every line it prints is something that a test may wait for.

export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /seed /www /efivars
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin

while read -r module; do
    case "$module" in
    efivarfs.ko) [ -d /sys/firmware/efi ] || continue ;;
    # 0x1053 is a virtio device of the kind 19.
    *vsock*) grep -qs 0x1053 /sys/bus/pci/devices/*/device || continue ;;
    esac
    insmod "/modules/$module" 2>/dev/null || echo "module $module: not loaded"
done </modules/order

say_memory() {
    while read -r key value _; do
        [ "$key" = MemTotal: ] && echo "memory $((value / 1024)) MiB"
    done </proc/meminfo
}

# Prints the device of the disk with the volume label cidata, in either case.
find_seed() {
    for disk in /dev/vd*; do
        [ -b "$disk" ] || continue
        label=$(dd if="$disk" bs=8 skip=4101 count=4 2>/dev/null | tr -d ' \0')
        case "$label" in cidata | CIDATA) echo "$disk" && return ;; esac
    done
}

read_seed() {
    mount -t iso9660 -o ro "$1" /seed || return
    value='"\{0,1\}: *"\{0,1\}\([^",} ]*\).*'
    echo "seed instance-id $(sed -n "s/.*instance-id$value/\1/p" /seed/meta-data)"
    name=$(sed -n "s/.*local-hostname$value/\1/p" /seed/meta-data)
    [ -n "$name" ] && hostname "$name"
    for file in /seed/*; do
        sum=$(sha256sum "$file")
        echo "seed file ${file#/seed/} ${sum%% *}"
    done
    words="$words $(sed -n 's/^#words //p' /seed/user-data)"
}

# What the seed's network-config (the one that chv makes: JSON, one value a line) has for the interface with that MAC.
network_of_seed() {
    awk -v mac="\"$1\"" '
        $1 == "\"macaddress\":" { mine = $2 == mac }
        !mine { next }
        $1 ~ /^"[0-9a-f.:]+\/[0-9]+",?$/ { split($1, parts, "\""); print "address=" parts[2] }
        $1 == "\"via\":" { split($2, parts, "\""); print "gateway=" parts[2] }
    ' /seed/network-config 2>/dev/null
}

# By the seed, else by DHCP.
set_up_nic() {
    found=$(network_of_seed "$(cat "/sys/class/net/$1/address")")
    if [ -z "$found" ]; then
        udhcpc -q -n -f -t 5 -T 1 -A 1 -i "$1" -s /bin/on-lease >/dev/null 2>&1
    else
        ip link set "$1" up
        for item in $found; do
            case "$item" in
            address=*) ip address add "${item#*=}" dev "$1" ;;
            gateway=*:*) ip -6 route add default via "${item#*=}" dev "$1" ;;
            gateway=*) ip route add default via "${item#*=}" dev "$1" ;;
            esac
        done
    fi
    echo "address $1 $(ip -4 -o address show dev "$1" | sed -n 's/.* inet \([0-9.]*\).*/\1/p')"
}

has_word() {
    case " $words " in *" $1 "*) return 0 ;; esac
    return 1
}

# Says a line on the guest channel: to the virtio-serial port that it uses, where the write waits until the host listens,
# or over vsock.
tell_host() {
    [ -d /sys/module/vmw_vsock_virtio_transport ] && echo "$1" | timeout 10 tell-vsock && return
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.chv.agent.0 ] || continue
        timeout 10 sh -c 'echo "$1" >"$2"' tell "$1" "/dev/${port##*/}" && return
    done
    echo "channel: not there, \"$1\" was not told"
}

off() {
    sync
    poweroff -f
    sleep 60
}

watch_button() {
    for event in /sys/class/input/event*; do
        [ "$(cat "$event/device/name" 2>/dev/null)" = "Power Button" ] || continue
        # Opened here: a press after "ready" is kept for the reader, however late it starts.
        exec 3<"/dev/input/${event##*/}"
        (
            head -c 24 <&3 >/dev/null
            echo "power button"
            sleep "$1"
            off
        ) &
        exec 3<&-
        return
    done
    echo "power button: not there"
}

# Memory is lost at a reboot and there may be no disk, but the clock keeps its alarm time: 03:33:33 says "once is done".
# Cloud Hypervisor's machines have no such clock: there the second sector of the disk "data" says it.
was_rebooted() {
    grep -qs '^alrm_time.*03:33:33' /proc/driver/rtc && return
    device=$(disk_of data)
    [ -n "$device" ] && [ "$(dd if="$device" bs=512 skip=1 count=1 2>/dev/null | tr -d '\0')" = rebooted ]
}

mark_rebooted() {
    if [ -e /sys/class/rtc/rtc0 ]; then
        # An alarm may lie up to one day ahead.
        now=$(date +%s)
        alarm=$((now - now % 86400 + 12813))
        [ "$alarm" -gt "$now" ] || alarm=$((alarm + 86400))
        echo "$alarm" >/sys/class/rtc/rtc0/wakealarm
        return
    fi
    device=$(disk_of data)
    [ -n "$device" ] && printf rebooted | dd of="$device" bs=512 seek=1 count=1 conv=sync,fsync 2>/dev/null
}

reboot_once() {
    if was_rebooted; then
        echo "rebooted"
        return
    fi
    if ! mark_rebooted; then
        echo "not rebooting: nothing takes a mark"
        return
    fi
    echo "rebooting"
    reboot -f
    sleep 60
}

tick() {
    n=0
    while :; do
        n=$((n + 1))
        echo "tick $n"
        usleep 200000
    done
}

echo_lines() {
    stty -echo
    while read -r line; do
        echo "echo: $line"
    done
}

# Numbered lines of 100 bytes, $1 bytes of them or (0) without end.
flood() {
    awk -v bytes="$1" 'BEGIN {
        for (i = 0; i < 85; i++) tail = tail "."
        for (n = 1; bytes == 0 || n * 100 <= bytes; n++) printf "flood %07d %s\n", n, tail
    }'
    echo "flood end $1"
}

serve() {
    echo "hello from $(hostname)" >/www/index.html
    httpd -p "$1" -h /www && echo "http on port $1"
}

# Prints the device of the disk with that serial.
disk_of() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${disk##*/}" && return
    done
}

# SERIAL:TEXT
write_disk() {
    device=$(disk_of "${1%%:*}")
    printf '%-64s' "${1#*:}" | dd of="$device" bs=512 count=1 conv=sync,fsync 2>/dev/null &&
        echo "wrote ${1%%:*}" || echo "not wrote ${1%%:*}"
}

read_disk() {
    device=$(disk_of "$1")
    echo "read $1" $(dd if="$device" bs=64 count=1 2>/dev/null | tr -d " \0")
}

# TAG:DIR, where TAG may hold another colon
mount_share() {
    mkdir -p "${1##*:}"
    mount -t virtiofs "${1%:*}" "${1##*:}" 2>/dev/null && echo "mounted ${1%:*}" || echo "not mounted ${1%:*}"
}

# busybox has no UDP server; the kernel counts what comes to a port where nobody listens.
count_udp() {
    before=0
    while :; do
        now=$(awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp)
        [ "$now" = "$before" ] || echo "udp $now"
        before=$now
        usleep 200000
    done
}

fetch() {
    text=$(timeout 5 wget -q -O - "$1" 2>/dev/null) && echo "fetched $1 $text" || echo "not fetched $1"
}

# PATH:TEXT
put() {
    echo "${1#*:}" 2>/dev/null >"${1%%:*}" && echo "put ${1%%:*}" || echo "not put ${1%%:*}"
}

# Each word waits for what it reads: the host may write it only now, and a share may be away for a while.
get() {
    until text=$(cat "$1" 2>/dev/null) && [ -n "$text" ]; do usleep 200000; done
    echo "got $1 $text"
}

# The version of the TPM, and how often it was powered on in its life: the third number of what TPM2_ReadClock answers.
read_tpm() {
    version=$(cat /sys/class/tpm/tpm0/tpm_version_major 2>/dev/null) || { echo "no tpm" && return; }
    exec 4<>/dev/tpm0
    printf '\200\001\000\000\000\012\000\000\001\201' >&4
    answer=$(dd bs=4096 count=1 <&4 2>/dev/null | od -An -v -tx1 | tr -d ' \n')
    exec 4<&-
    resets=$(echo "$answer" | cut -c53-60)
    echo "tpm $version resets $((0x$resets))"
}

# A mebibyte again and again, on its way to the host's disk before it is told of.
keep_writing() {
    device=$(disk_of "${1#root}") # which has no serial
    n=0
    while :; do
        n=$((n + 1))
        dd if=/dev/zero of="$device" bs=64k count=16 seek=$((n % 8 * 16)) conv=fsync 2>/dev/null &&
            echo "wrote $1 $n" || echo "not wrote $1 $n"
        usleep 100000
    done
}

variable=/efivars/ChvTest-5a1b0c42-8f1e-4a57-9c59-3d1f0e6a7b20

# A variable of the firmware's: four bytes of attributes (kept, for boot and run time), then the value.
write_variable() {
    # Linux makes a variable that it does not know immutable once it is there.
    [ -e "$variable" ] && echo "not wrote variable" && return
    printf '\007\000\000\000%s' "$1" >"$variable" && echo "wrote variable"
}

read_variable() {
    echo "read variable" $(tail -c +5 "$variable" 2>/dev/null)
}

# NIC:ADDRESS/LENGTH, of either family
add_address() {
    ip address add "${1#*:}" dev "${1%%:*}" && echo "ip ${1%%:*} ${1#*:}"
}

# Until it answers: the other side may come up later.
ping_until() {
    case "$1" in *:*) family=-6 ;; *) family=-4 ;; esac
    until ping "$family" -c 1 -W 1 "$1" >/dev/null 2>&1; do usleep 200000; done
    echo "ping $1 ok"
}

# The address that a router's announcement gives the interface.
say_ipv6() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        found=$(ip -6 -o address show dev "$1" scope global | sed -n 's/.* inet6 \([0-9a-f:]*\).*/\1/p' | head -n 1)
        [ -n "$found" ] && break
        sleep 1
    done
    echo "ipv6 $1 $found"
}

# What the seed brings along for cloud-init to run at each boot; with the initrd that has Python.
start_agent() {
    mkdir -p /dev/pts /run /tmp /root
    mount -t devpts devpts /dev/pts
    if [ -f /seed/vendor-data ]; then python3 -IS /bin/boothooks; else echo "agent: no seed"; fi
}

obey() {
    case "$1" in
    ip=*) add_address "${1#*=}" ;;
    ping=*) ping_until "${1#*=}" ;;
    ipv6=*) say_ipv6 "${1#*=}" ;;
    write=*) write_disk "${1#*=}" ;;
    read=*) read_disk "${1#*=}" ;;
    mount=*) mount_share "${1#*=}" ;;
    put=*) put "${1#*=}" ;;
    get=*) get "${1#*=}" ;;
    list=*) echo "list ${1#*=} $(ls -l "${1#*=}" | wc -l)" ;;
    remount-rw=*) mount -o remount,rw "${1#*=}" 2>/dev/null && echo "remounted ${1#*=}" ;;
    tpm) read_tpm ;;
    keep-writing=*) keep_writing "${1#*=}" & ;;
    write-var=*) write_variable "${1#*=}" ;;
    read-var) read_variable ;;
    sleep=*) sleep "${1#*=}" ;;
    say=*) echo "say ${1#*=}" ;;
    http=*) serve "${1#*=}" ;;
    udp) count_udp & ;;
    fetch=*) fetch "${1#*=}" ;;
    tick) tick & ;;
    # An asynchronous command has /dev/null as its input unless told otherwise.
    echo) echo_lines </dev/console & ;;
    flood) flood 0 ;;
    flood=*) flood "${1#*=}" ;;
    oom)
        tail /dev/zero >/dev/null
        echo "oom: the eater ended with $?"
        ;;
    reboot-once) reboot_once ;;
    panic)
        echo "panicking"
        echo 1 >/proc/sys/kernel/sysrq
        echo c >/proc/sysrq-trigger
        ;;
    agent) start_agent ;;
    exit-only=*) tell_host "exit ${1#*=}" ;;
    exit=*)
        tell_host "exit ${1#*=}"
        echo "exit ${1#*=}"
        off
        ;;
    poweroff) off ;;
    esac
}

hostname chv-guest
words=$(cat /proc/cmdline)
echo "chv test guest: up"
echo "kernel $(uname -r)"
echo "vcpus $(nproc)"
say_memory
if [ -d /sys/firmware/efi ]; then
    mount -t efivarfs efivarfs /efivars
    echo "firmware uefi"
fi
seed=$(find_seed)
[ -n "$seed" ] && read_seed "$seed"
for disk in /sys/block/vd*; do
    [ -e "$disk" ] && echo "disk ${disk##*/} $(($(cat "$disk/size") * 512)) $(cat "$disk/serial")"
done
ip link set lo up
for nic in /sys/class/net/eth*; do
    [ -e "$nic" ] && set_up_nic "${nic##*/}"
done

delay=0
for word in $words; do
    case "$word" in slow-stop=*) delay=${word#*=} ;; esac
done
if has_word ignore-acpi; then
    echo "ignoring the power button"
else
    watch_button "$delay"
fi
echo "chv test guest: ready"

for word in $words; do
    obey "$word"
done
while :; do
    sleep 3600
done
