#!/usr/bin/env bash
# What one TPU host does: launch/tpu.sh and launch/skypilot.yaml call this.
#
#   launch/worker.sh setup [3.11]     a venv with that Python, JAX for TPUs and
#                                     this checkout
#   launch/worker.sh start FLAGS      python -m td_jax.main FLAGS, detached
#   launch/worker.sh loop FLAGS       the same in the foreground
#   launch/worker.sh running          exit 0 while a run is going on, else 1
#   launch/worker.sh status           says so, or how the last run ended
#   launch/worker.sh log [LINES [prefix]]   follows the log while a run goes on
#   launch/worker.sh stop [SECONDS]   tells it to save and end; kills it after
#                                     so many seconds (120)
#
# A run that ends with 75 was preempted and has saved: it is started again after
# TD_RESTART_DELAY seconds (10). All other codes (0, 2, 65, 70, 74, ...) end it.
# The venv, the log and what is known of the run are in TD_HOME
# (~/td_jax).
set -euo pipefail

home=${TD_HOME:-$HOME/td_jax}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {  # The comment at the top.
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "${BASH_SOURCE[0]}"
}

say() { printf '%s: %s\n' "$(hostname)" "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

meaning() {  # of an exit code of td_jax.main
  case $1 in
    0) echo 'done' ;;
    2) echo 'bad config' ;;
    65) echo 'bad data or checkpoint' ;;
    70) echo 'non-finite numbers' ;;
    74) echo 'I/O failed' ;;
    75) echo 'told to stop, and saved' ;;
    *) echo 'crashed or killed' ;;
  esac
}

setup() {  # setup PYTHON_VERSION
  ! running || fail 'a run is going on; stop it first'
  local uv
  mkdir -p "$home"
  # Images have Python 3.10, which is too old. uv brings any other by itself,
  # and with --seed pip, by which td_jax may get MovieLens.
  uv=$(command -v uv) || {
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
  }
  [ -x "$home/venv/bin/python" ] ||
    "$uv" venv --quiet --seed --python "$1" "$home/venv"
  cd "$checkout"
  "$uv" pip install --quiet --python "$home/venv/bin/python" --editable '.[tpu]'
  say "installed $(git describe --always --dirty)"
}

metadata() {  # metadata KEY: what Google Cloud tells this host of itself
  local host=${GCE_METADATA_IP:-metadata.google.internal}
  curl --silent --fail --max-time 5 --retry 3 -H 'Metadata-Flavor: Google' \
    "http://$host/computeMetadata/v1/instance/attributes/$1"
}

# Hosts of a pod learn of each other here: outside GKE nothing sets
# TPU_WORKER_HOSTNAMES, which --distributed=auto looks for.
meet() {
  local hosts first
  [ -z "${TPU_WORKER_HOSTNAMES:-}${JAX_COORDINATOR_ADDRESS:-}" ] || return 0
  hosts=$(metadata worker-network-endpoints) || return 0
  [ "$hosts" != "${hosts/,/}" ] || return 0  # One host.
  first=${hosts%%,*}
  # An entry is an address, or name:number:address.
  export JAX_COORDINATOR_ADDRESS=${first##*:}:8476
  JAX_NUM_PROCESSES=$(tr ',' '\n' <<<"$hosts" | grep -c .)
  JAX_PROCESS_ID=$(metadata agent-worker-number) ||
    fail 'the number of this host in its pod is not known; try again'
  export JAX_NUM_PROCESSES JAX_PROCESS_ID
  distributed=(--distributed=on)
}

loop() {  # loop FLAGS
  local child='' told='' signalled restarts=0 status code
  local distributed=()
  mkdir -p "$home"
  # Held by the run as well: it says whether either of them is alive.
  exec 9>>"$home/lock"
  flock --nonblock 9 || fail 'a run is going on; stop it first'
  echo $$ >"$home/pid"
  trap 'told=1 signalled=1; [ -z "$child" ] || kill -TERM "$child" || true' \
    TERM INT
  cd "$checkout"
  while :; do
    echo "running since $(date -u +%FT%TZ), restarted $restarts times" \
      >"$home/state"
    [ "$restarts" != 0 ] || meet
    "$home/venv/bin/python" -m td_jax.main \
      ${distributed[@]+"${distributed[@]}"} "$@" &
    child=$!
    [ -z "$told" ] || kill -TERM "$child" 2>/dev/null || true
    # A signal ends `wait` early; 127 is said of a child that is known already.
    code=127 signalled=1
    while [ -n "$signalled" ]; do
      signalled=''
      wait "$child" && status=0 || status=$?
      [ "$status" = 127 ] || code=$status
    done
    child=''
    say "td_jax.main ended with $code ($(meaning "$code"))"
    if [ "$code" = 75 ] && [ -z "$told" ]; then
      sleep "${TD_RESTART_DELAY:-10}" 9>&- &  # Without the lock.
      wait $! || true
    fi
    if [ "$code" != 75 ] || [ -n "$told" ]; then
      echo "ended $(date -u +%FT%TZ) with $code ($(meaning "$code"))," \
        "restarted $restarts times" >"$home/state"
      return "$code"
    fi
    restarts=$((restarts + 1))
  done
}

running() {
  [ -e "$home/lock" ] && ! flock --nonblock "$home/lock" true
}

start() {  # start FLAGS
  ! running || fail 'a run is going on; stop it first'
  mkdir -p "$home"
  rm -f "$home/state"
  # In a session of its own, and with none of ours open: ssh may go.
  setsid nohup "$checkout/launch/worker.sh" loop "$@" \
    >>"$home/log" 2>&1 </dev/null &
  # The run is only safe from the end of this session once it is in its own.
  local alive=1
  while [ -n "$alive" ]; do
    kill -0 $! 2>/dev/null || alive=''
    [ ! -e "$home/state" ] || {
      say "started; the log is $home/log"
      return
    }
    sleep 0.1
  done
  tail -n 5 "$home/log" >&2
  fail "the run did not start; its log is $home/log"
}

status() {
  local state='no run yet'
  [ ! -e "$home/state" ] || state=$(cat "$home/state")
  case $state in
    running*) running || state="gone without an exit code (killed, or the host\
 was restarted); it was $state" ;;
  esac
  printf '%s: %s\n' "$(hostname)" "$state"
}

log() {  # log LINES [prefix]
  local options=()
  ! running || options=(-F --pid="$(cat "$home/pid")")
  if [ "${2:-}" = prefix ]; then
    log "$1" | sed --unbuffered "s/^/$(hostname): /"
  else
    tail -n "$1" ${options[@]+"${options[@]}"} "$home/log"
  fi
}

stop() {  # stop SECONDS
  local pid
  running || {
    status
    return
  }
  pid=$(cat "$home/pid")
  # The loop passes it on; without a loop its group is what is left of the run.
  kill -TERM "$pid" 2>/dev/null || kill -TERM -- "-$pid" || true
  for ((i = 0; i < $1 * 5; i++)); do
    running || {
      status
      return
    }
    sleep 0.2
  done
  kill -KILL -- "-$pid"
  say "killed: it did not end in $1 s"
}

verb=${1:-}
shift || true
case $verb in
  setup) setup "${1:-3.11}" ;;
  log) log "${1:-100}" "${2:-}" ;;
  stop) stop "${1:-120}" ;;
  start | loop | running | status) "$verb" "$@" ;;
  *)
    usage >&2
    exit 2
    ;;
esac
