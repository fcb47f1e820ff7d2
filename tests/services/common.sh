# Shared by the service scripts beside this file; sourced, with $dir set.

# Says what is missing and how to get it. A test never skips because a server is not installed.
lacking() {
  echo "$1 is not installed: run $2" >&2
  exit 69
}

listening() { (exec 9<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The port noted in $dir/NAME.port, or a free one, noted. Below the ephemeral range (32768 and up),
# so that no outgoing connection takes it while the server is down between two starts.
port_of() {
  local file=$dir/$1.port port
  if [ ! -s "$file" ]; then
    while port=$((10240 + (RANDOM * 32768 + RANDOM) % 22000)); listening "$port"; do :; done
    echo "$port" >"$file"
  fi
  cat "$file"
}

# Is the process noted as $dir/pids/NAME running? One that waits to be reaped is not.
alive() {
  local pid stat
  pid=$(cat "$dir/pids/$1" 2>/dev/null) && stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
  # The state follows the name, which stands in brackets and may hold any character.
  stat=${stat##*) }
  [ "${stat:0:1}" != Z ]
}

# until_true NAME TENTHS LOG COMMAND…: waits for COMMAND, at most that long, else shows the log.
until_true() {
  local name=$1 tenths=$2 log=$3 i
  shift 3
  for ((i = 0; i < tenths; i++)); do
    if "$@"; then return 0; fi
    sleep 0.1
  done
  echo "$name did not answer within $((tenths / 10)) s; its output ends:" >&2
  tail -n 30 "$log" >&2
  exit 1
}

# Takes away the bridge and the namespaces whose prefix is noted in $1/netns.
end_network() {
  local ns n
  ns=$(cat "$1/netns" 2>/dev/null) || return 0
  for n in 1 2 3; do
    ip netns delete "${ns}n$n" 2>/dev/null || true
    ip link delete "${ns}v$n" 2>/dev/null || true
    rm -rf "/etc/netns/${ns}n$n"
  done
  ip link delete "${ns}b" 2>/dev/null || true
}

# Ends every process noted in $1/pids, by pid, and removes the folder.
end_services() {
  local note pid signal
  for note in "$1"/pids/*; do
    [ -s "$note" ] || continue
    pid=$(cat "$note")
    # PostgreSQL leaves shared memory behind when it is killed; QUIT is its own immediate stop.
    case $note in */postgres) signal=QUIT ;; *) signal=KILL ;; esac
    kill -"$signal" "$pid" 2>/dev/null || true
  done
  end_network "$1"
  # In a trap a bare return would repeat the status from before it, and set -e end the cleaning.
  local i
  for i in 1 2 3 4 5 6 7 8 9 10; do
    if rm -rf "$1" 2>/dev/null && [ ! -e "$1" ]; then return 0; fi
    sleep 0.2
  done
  rm -rf "$1"
}
