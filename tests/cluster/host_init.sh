#!/bin/bash
# First process of a test host, in namespaces of its own: name, private /run and /dev/shm, sshd. usage: host_init.sh NAME STATE_DIR
# When it dies the kernel kills everything in the host, as a power cut does.
set -e
name=$1 state=$2
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p -m 755 /run/sshd /run/lock /run/munge
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
# A login shell's own files are no part of a host: they may take seconds, or print.
for file in /root/.bashrc /root/.profile; do
  if [[ -f $file ]]; then mount --bind /dev/null "$file"; fi
done
ip link set lo up
/usr/sbin/sshd -D -e -f "$state/$name/sshd_config" </dev/null >>"$state/$name/sshd.log" 2>&1 &
echo ready > "$state/$name/ready"
trap 'exit 0' TERM INT
while :; do sleep 1 & wait $! || true; done
