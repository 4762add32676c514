#!/usr/bin/env bash
# Several hosts on one machine: network namespaces, each with its own name, network card and
# /dev/shm, joined by a bridge whose links may be slowed down. Needs root on Linux, and iproute2.
#   netns.sh up [HOSTS [RATE [DELAY]]]   4 hosts; RATE of each link in tc's words (1gbit), "-": not
#                                        limited; DELAY one way (200us), where the kernel has netem
#   netns.sh run [-n RANKS] COMMAND...   COMMAND under mpirun, one rank a host or RANKS over all
#   netns.sh down                        ends what runs there and removes everything; may be repeated
# Only one set of hosts at a time. Processes see the same files, but not each other's /dev/shm.
set -euo pipefail

state=/run/airmoe-netns
subnet=${AIRMOE_NETNS_SUBNET:-10.77.0}  # hosts are $subnet.1, .2, ...; this side is $subnet.254
bridge=airmoe-br

fail() {
  echo "netns: $*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 64
}

# What everything here asks of the machine.
check_machine() {
  [ "$(uname -s)" = Linux ] || fail "needs Linux"
  [ "$(id -u)" -eq 0 ] || fail "needs root for network namespaces: run it as root (sudo $0 ...)"
  for tool in ip tc nsenter unshare; do
    command -v "$tool" >/dev/null ||
      fail "$tool is missing: apt-get install iproute2 util-linux"
  done
}

host_count() {
  cat "$state/count" 2>/dev/null || fail "no hosts are up: $0 up"
}

slow_down() { # of the link between host $1 and the bridge, both directions
  local host=$1 rate=$2 delay=$3 side error
  for side in "tc qdisc replace dev airmoe-v$host" \
              "ip netns exec airmoe-h$host tc qdisc replace dev eth0"; do
    if [ "$rate" != - ]; then
      # The burst holds a whole segment of the card, 64 kB and headers: tbf would cut larger ones into
      # packets of 1500 bytes and the processor, not the link, would be the limit. 20 ms of queue.
      $side root handle 1: tbf rate "$rate" burst 128kb latency 20ms ||
        fail "cannot limit a link to $rate: give a rate such as 1gbit or 200mbit"
      [ "$delay" = - ] || error=$($side parent 1:1 netem delay "$delay" limit 100000 2>&1) ||
        fail "cannot delay by $delay ($error): this kernel may lack netem; leave the delay out"
    elif [ "$delay" != - ]; then
      error=$($side root netem delay "$delay" limit 100000 2>&1) ||
        fail "cannot delay by $delay ($error): this kernel may lack netem; leave the delay out"
    fi
  done
}

# The namespaces live as long as the sleeping process whose id is in $state/hN.pid. /sys is mounted
# anew, so that it shows this host's network card; MPI looks there.
start_host() {
  local i=$1 name=airmoe-h$1
  ip netns add "$name"
  ip link add "airmoe-v$i" type veth peer name eth0 netns "$name"
  ip link set "airmoe-v$i" master "$bridge" up
  ip -n "$name" addr add "$subnet.$i/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  mkdir -p "$state/cgroup-$i"
  # shellcheck disable=SC2016  # expanded by the inner shell
  nsenter --net="/run/netns/$name" unshare --mount --uts --propagation private bash -c '
    set -e
    hostname "$1"
    mount --rbind /sys/fs/cgroup "$2/cgroup-$3"
    mount -t sysfs sysfs /sys
    mount --rbind "$2/cgroup-$3" /sys/fs/cgroup
    mount -t tmpfs -o size=4g shm /dev/shm
    mount --bind "$2/hosts" /etc/hosts
    echo $$ >"$2/h$3.pid"
    exec sleep infinity' host "$name" "$state" "$i" </dev/null >"$state/h$i.log" 2>&1 &
  disown
  for _ in $(seq 100); do
    [ -s "$state/h$i.pid" ] && return
    sleep 0.05
  done
  fail "host $i did not start: $(tr '\n' ' ' <"$state/h$i.log")"
}

up() {
  local hosts=${1:-4} rate=${2:--} delay=${3:--} i
  if ! [[ $hosts =~ ^[0-9]{1,3}$ ]] || [ "$hosts" -lt 1 ] || [ "$hosts" -gt 250 ]; then
    fail "hosts: $hosts is not a number from 1 to 250"
  fi
  check_machine
  [ ! -e "$state" ] || fail "hosts are up already, or were not taken down: $0 down"
  if ip -o addr show | grep -qF " inet $subnet."; then
    fail "$subnet.0/24 is in use here: set AIRMOE_NETNS_SUBNET to another, for example 10.78.0"
  fi
  mkdir -p "$state"
  trap 'down' EXIT
  trap 'exit 130' INT TERM
  echo "$hosts" >"$state/count"
  ip link add "$bridge" type bridge 2>/dev/null || fail "cannot make a bridge on this machine"
  ip addr add "$subnet.254/24" dev "$bridge"
  ip link set "$bridge" up
  {
    echo "127.0.0.1 localhost"
    for i in $(seq "$hosts"); do echo "$subnet.$i airmoe-h$i"; done
    echo "$subnet.254 $(hostname)"
  } >"$state/hosts"
  for i in $(seq "$hosts"); do
    start_host "$i"
    slow_down "$i" "$rate" "$delay"
  done
  # What mpirun starts its daemons with, in place of ssh: [options] HOST COMMAND...
  cat >"$state/enter" <<ENTER
#!/usr/bin/env bash
while [[ "\${1:-}" == -* ]]; do shift; done
host=\${1#airmoe-h}; shift
exec nsenter -t "\$(cat "$state/h\$host.pid")" -m -u -n -- /bin/sh -c "\$*"
ENTER
  chmod +x "$state/enter"
  trap - EXIT INT TERM
  echo "netns: $hosts hosts are up, links: $rate, delay: $delay"
}

run() {
  local count ranks hosts="" i
  check_machine
  count=$(host_count)
  ranks=$count
  if [ "${1:-}" = -n ]; then
    ranks=${2:-}
    if ! [[ $ranks =~ ^[0-9]{1,5}$ ]] || [ "$ranks" -lt 1 ]; then
      fail "-n: give a number of ranks"
    fi
    shift 2
  fi
  [ $# -ge 1 ] || usage
  for i in $(seq "$((ranks < count ? ranks : count))"); do
    hosts+="${hosts:+,}airmoe-h$i:$(((ranks + count - i) / count))"
  done
  # shellcheck source=cluster/environment.sh
  source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
  # Open MPI over TCP between hosts, shared memory inside; UCX the same where a program uses it.
  export UCX_NET_DEVICES=eth0 UCX_TLS=tcp,self,sm
  exec mpirun -n "$ranks" -H "$hosts" --mca plm_rsh_agent "$state/enter" \
    --mca oob_tcp_if_include "$subnet.0/24" --mca btl_tcp_if_include "$subnet.0/24" \
    --mca pml ob1 --mca btl tcp,self,vader -x UCX_NET_DEVICES -x UCX_TLS "$@"
}

down() {
  local i signal id
  check_machine
  for i in $(seq "$(cat "$state/count" 2>/dev/null || echo 0)"); do
    ip link del "airmoe-v$i" 2>/dev/null || true  # first the cable: namespaces end later
    for signal in TERM KILL; do
      for id in $(ip netns pids "airmoe-h$i" 2>/dev/null); do
        kill -$signal "$id" 2>/dev/null || true
      done
      [ -z "$(ip netns pids "airmoe-h$i" 2>/dev/null)" ] || sleep 0.2
    done
    ip netns del "airmoe-h$i" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
  rm -rf "$state"
}

verb=${1:-}
[ $# -eq 0 ] || shift
case "$verb" in
  up) up "$@" ;;
  run) run "$@" ;;
  down) down ;;
  *) usage ;;
esac
