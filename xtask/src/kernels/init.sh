#!/bin/busybox sh
# The first program of a guest: makes it look like a small Debian system, runs
# the test program and reports to the host on the second serial port.
#
# Kernel messages go to the first port, so they cannot break a line of results.
# Lines that begin with "@@ " are for the harness, the others are the tests' own.

/bin/busybox mkdir -p /sbin /usr/sbin
# This does not replace the shell, which is there already.
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/bin:/bin HOME=/root RUST_BACKTRACE=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts -o mode=0600,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
# shellcheck source=/dev/null
. /configuration
exec </dev/null >"$CONSOLE" 2>&1

# Tests write to a pipe, as they do under a continuous integration service: to a terminal some programs
# would write colors. The pipe is opened for reading too, because otherwise opening it would block.
stty -F "$RESULTS" raw
mkfifo /run/results
cat /run/results >"$RESULTS" &
forwarder=$!
exec 3<>/run/results

report() {
	# The newline ends a line that a killed program may have left open.
	printf '\n@@ %s\n' "$*" >&3
}

# The host ends a guest that takes too long. If the host's process is gone,
# the guest still powers itself off.
(sleep "$GUEST_SECONDS"; poweroff -f) 3>&- &

report kernel "$(uname -r)"

# The limits that systemd gives to a service.
ulimit -Hn 524288
ulimit -Sn 1024
# Before Linux 5.11 BPF memory counts towards the limit on locked memory, which only root can raise.
ulimit -l unlimited
[ -z "$PERF_EVENT_PARANOID" ] || echo "$PERF_EVENT_PARANOID" >/proc/sys/kernel/perf_event_paranoid
hostname guest
ip link set lo up

while read -r module; do
	parameters=
	# By default this module would create a device.
	[ "$module" = dummy ] && parameters=numdummies=0
	insmod "/modules/$module.ko" $parameters || report problem "module $module does not load"
done </modules/order

mkdir -p "$PACKAGE_DIRECTORY"
cd "$PACKAGE_DIRECTORY" || report problem "cannot enter $PACKAGE_DIRECTORY"
report start "$PROGRAM"
# shellcheck disable=SC2086
timeout -s KILL "$PROGRAM_SECONDS" "/programs/$PROGRAM" $ARGUMENTS </dev/null >&3 2>&3 3>&-
report exit "$PROGRAM" $?
report end
exec 3>&-
(sleep 5; poweroff -f) &
wait $forwarder
poweroff -f
