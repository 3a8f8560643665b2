#!/bin/sh
# Process 1 of the lab node. Mounts what it needs, runs the command of the round in the checkout, writes the results to
# their drive as a tar archive and switches off. A round whose archive has no `rc` did not get that far.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

drive() { # the block device that was given this serial number
    for device in /sys/block/nvme[0-9]n1; do
        [ "$(tr -d ' ' <"$device/device/serial")" = "$1" ] && echo "/dev/${device##*/}"
    done
}

mount -t proc proc /proc
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname lab
modprobe -a kvm_amd overlay
groupadd --system kvm # and the device is the group's: as Debian's udev has it
[ -e /dev/kvm ] && chown root:kvm /dev/kvm && chmod 660 /dev/kvm

mount -o ro "$(drive in)" /lab/in
mount -o ro "$(drive python)" /lab/python
mkdir /lab/layer/upper /lab/layer/work
mount -t overlay -o lowerdir=/lab/in,upperdir=/lab/layer/upper,workdir=/lab/layer/work overlay /lab/checkout

cd /lab/checkout/tree || exit
(
    export PATH="/lab/checkout/bin:$PATH"
    sh /lab/in/command
) >/dev/console 2>&1 </dev/null
echo $? >/lab/results/rc
cp /sys/fs/cgroup/cgroup.controllers /lab/results/ 2>/dev/null
dmesg >/lab/results/dmesg
tar -C /lab/results -cf "$(drive results)" .
sync
busybox poweroff -f
