#!/usr/bin/env bash
# Runs td_jax on one TPU host. launch/tpu.sh and launch/skypilot.yaml call this.
#
#   launch/worker.sh setup [3.11]     make a venv with that Python, JAX for TPUs
#                                     and this checkout
#   launch/worker.sh start FLAGS      start python -m td_jax.main FLAGS, detached
#   launch/worker.sh loop FLAGS       run the same in the foreground
#   launch/worker.sh running          exit with 0 if a run is in progress, or 1
#   launch/worker.sh status           print whether a run is in progress, or how
#                                     the last run ended
#   launch/worker.sh log [LINES [prefix]]   follow the log during a run
#   launch/worker.sh stop [SECONDS]   ask the run to save and end; kill it after
#                                     that many seconds (default: 120)
#
# A run that exits with 75 was preempted and has saved. It is started again after
# TD_RESTART_DELAY seconds (default: 10). Any other code (0, 2, 65, 70, 74, ...)
# ends it. The venv, the log and the state of the run are in TD_HOME (default:
# ~/td_jax).
set -euo pipefail

home=${TD_HOME:-$HOME/td_jax}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {  # prints the comment at the top
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "${BASH_SOURCE[0]}"
}

say() { printf '%s: %s\n' "$(hostname)" "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

meaning() {  # meaning CODE: an exit code of td_jax.main in words
  case $1 in
    0) echo 'done' ;;
    2) echo 'bad config' ;;
    65) echo 'bad data or checkpoint' ;;
    70) echo 'non-finite numbers' ;;
    74) echo 'I/O failed' ;;
    75) echo 'preempted, and saved' ;;
    *) echo 'crashed or killed' ;;
  esac
}

setup() {  # setup PYTHON_VERSION
  ! running || fail 'a run is in progress; stop it first'
  local uv
  mkdir -p "$home"
  # TPU images have Python 3.10, which is too old. uv downloads other versions.
  # --seed adds pip, with which td_jax may have to fetch MovieLens.
  uv=$(command -v uv) || {
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
  }
  [ -x "$home/venv/bin/python" ] ||
    "$uv" venv --quiet --seed --python "$1" "$home/venv"
  cd "$checkout"
  # The versions with which the tests have passed.
  "$uv" pip install --quiet --python "$home/venv/bin/python" \
    --constraint launch/constraints.txt --editable '.[tpu,tfds]'
  say "installed $(git describe --always --dirty)"
}

metadata() {  # metadata KEY: an attribute of this host in Google Cloud
  local host=${GCE_METADATA_IP:-metadata.google.internal}
  curl --silent --fail --max-time 5 --retry 3 -H 'Metadata-Flavor: Google' \
    "http://$host/computeMetadata/v1/instance/attributes/$1"
}

# Tells td_jax about the other hosts of a pod. Outside GKE nothing sets
# TPU_WORKER_HOSTNAMES, which --distributed=auto looks for.
find_hosts() {
  local hosts first
  [ -z "${TPU_WORKER_HOSTNAMES:-}${JAX_COORDINATOR_ADDRESS:-}" ] || return 0
  hosts=$(metadata worker-network-endpoints) || return 0
  [ "$hosts" != "${hosts/,/}" ] || return 0  # A single host.
  first=${hosts%%,*}
  # An entry is an address, or name:number:address.
  export JAX_COORDINATOR_ADDRESS=${first##*:}:8476
  JAX_NUM_PROCESSES=$(tr ',' '\n' <<<"$hosts" | grep -c .)
  JAX_PROCESS_ID=$(metadata agent-worker-number) ||
    fail 'the metadata server did not give the number of this host; try again'
  export JAX_NUM_PROCESSES JAX_PROCESS_ID
  distributed=(--distributed=on)
}

loop() {  # loop FLAGS
  local child='' stopping='' signalled restarts=0 status code
  local distributed=()
  mkdir -p "$home"
  # The run inherits the lock, which is free once both it and the loop are gone.
  exec 9>>"$home/lock"
  flock --nonblock 9 || fail 'a run is in progress; stop it first'
  echo $$ >"$home/pid"
  trap 'stopping=1 signalled=1; [ -z "$child" ] || kill -TERM "$child" || true' \
    TERM INT
  cd "$checkout"
  while :; do
    echo "running since $(date -u +%FT%TZ), restarted $restarts times" \
      >"$home/state"
    [ "$restarts" != 0 ] || find_hosts
    "$home/venv/bin/python" -m td_jax.main \
      ${distributed[@]+"${distributed[@]}"} "$@" &
    child=$!
    # A signal before `child` was set did not reach it.
    [ -z "$stopping" ] || kill -TERM "$child" 2>/dev/null || true
    # A signal ends `wait` early, so wait again. 127 means that an earlier wait
    # already returned the code of this child.
    code=127 signalled=1
    while [ -n "$signalled" ]; do
      signalled=''
      wait "$child" && status=0 || status=$?
      [ "$status" = 127 ] || code=$status
    done
    child=''
    say "td_jax.main ended with $code ($(meaning "$code"))"
    if [ "$code" = 75 ] && [ -z "$stopping" ]; then
      sleep "${TD_RESTART_DELAY:-10}" 9>&- &  # It must not hold the lock.
      wait $! || true
    fi
    if [ "$code" != 75 ] || [ -n "$stopping" ]; then
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
  ! running || fail 'a run is in progress; stop it first'
  mkdir -p "$home"
  rm -f "$home/state"
  # A session of its own and no inherited files, so that ssh can close.
  setsid nohup "$checkout/launch/worker.sh" loop "$@" \
    >>"$home/log" 2>&1 </dev/null &
  # Until the loop runs in its own session, the end of ours could still kill it.
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
    running*) running || state="ended without an exit code (killed, or the host\
 was restarted); before that $state" ;;
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
  # The loop passes the signal on. If only the run is left, signal its group.
  kill -TERM "$pid" 2>/dev/null || kill -TERM -- "-$pid" || true
  for ((i = 0; i < $1 * 5; i++)); do
    running || {
      status
      return
    }
    sleep 0.2
  done
  kill -KILL -- "-$pid"
  say "killed, because it did not end within $1 s"
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
