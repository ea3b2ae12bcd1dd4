#!/bin/sh
# Makes a container into a Swarm node: writable kernel file systems, a small disk for the agent's state volume, and an engine that is started again when it
# ends. /node is the folder that the node shares with the rig: the engine's socket, and engine.off, which keeps the engine down while it exists.
set -u

mount -o remount,rw,bind /sys 2>/dev/null
for m in /sys/fs/cgroup /sys/fs/cgroup/* /proc/sys; do mount -o remount,rw,bind "$m" 2>/dev/null; done
mount --make-rshared /

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  # cgroup v2: controllers can be handed to containers only by a group without processes of its own.
  mkdir -p /sys/fs/cgroup/init
  xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs 2>/dev/null
  sed -e 's/ / +/g' -e 's/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi

# No name server: an engine that looks for an image in a registry out of reach is refused at once instead of waiting twenty seconds.
echo nameserver 127.0.0.1 >/etc/resolv.conf

# The state volume is a loop device with a file system in a file of the engine's own disk: it can be filled without hurting the machine, and outlives the
# container's stop. Other nodes look for a free device at the same time, so it takes a few tries.
mount_state() {
  disk=/var/lib/docker/$STATE_DISK # no other node's file may have its name: newer ones of mount go by it and would say "already mounted"
  if [ ! -e "$disk" ]; then
    truncate -s "${STATE_MIB}M" "$disk.new" && mkfs.ext4 -q -F -m 0 "$disk.new" && mv "$disk.new" "$disk" || return 1
  fi
  mkdir -p "$STATE_VOLUME"
  [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
  tries=0
  while [ $tries -lt 20 ]; do
    device=$(losetup -f) || return 1
    device=${device%% *} # newer ones add "(lost)" while there is no device file
    [ -b "$device" ] || mknod "$device" b 7 "${device#/dev/loop}"
    if mount -o "loop=$device" "$disk" "$STATE_VOLUME" 2>/dev/null; then
      rmdir "$STATE_VOLUME/lost+found" 2>/dev/null
      mkdir -p "$STATE_VOLUME/_data" # what the engine takes for a volume of its own
      return 0
    fi
    tries=$((tries + 1))
    sleep 0.2
  done
  return 1
}
mountpoint -q "$STATE_VOLUME" 2>/dev/null || mount_state || {
  echo "node: no loop device: the agent's state volume is not a disk of its own" >&2
  rmdir "$STATE_VOLUME" 2>/dev/null # or the engine would take it for a volume
}

engine=
trap 'trap - TERM; [ -z "$engine" ] || { kill -TERM "$engine" 2>/dev/null; wait "$engine"; }; exit 0' TERM
while :; do
  if [ -e /node/engine.off ]; then
    sleep 0.2 &
    wait $!
    continue
  fi
  rm -f /run/docker.pid /node/docker.sock
  # shellcheck disable=SC2086 # several arguments
  dockerd -H unix:///run/docker.sock -H unix:///node/docker.sock $ENGINE_ARGS &
  engine=$!
  wait "$engine"
  echo "node: the engine ended" >&2
  engine=
  sleep 0.2
done
