#!/usr/bin/env bash
# Runs td_jax on Cloud TPU, one host (v4-8) or a pod (v5litepod-256).
#
#   launch/tpu.sh create            request a slice, as a queued resource
#   launch/tpu.sh wait              wait until the slice is ACTIVE
#   launch/tpu.sh install           install this checkout and JAX on all workers
#   launch/tpu.sh run -- FLAGS      start python -m td_jax.main FLAGS on all
#                                   workers; it continues without the ssh
#                                   connection, and restarts after exit code 75
#   launch/tpu.sh logs              follow the log of worker 0, or --worker=all
#   launch/tpu.sh status            show the state of the slice and of the run
#   launch/tpu.sh stop              let the run save and end; the slice stays
#   launch/tpu.sh resume -- FLAGS   like run, but first recreate the slice if it
#                                   was preempted
#   launch/tpu.sh finish            wait until the run has ended, at most
#                                   --max_hours, and delete the slice
#   launch/tpu.sh delete            delete the slice with its disks
#
# Options may come before or after the subcommand. The default of an option is
# the environment variable in brackets:
#   --name=NAME        name of the slice [TPU_NAME]
#   --zone=ZONE        such as us-central2-b [TPU_ZONE]
#   --type=TYPE        v4-8, v5litepod-256, ... [TPU_TYPE]
#   --project=PROJECT  by default gcloud's project [TPU_PROJECT]
#   --runtime=VERSION  by default the one for the type [TPU_RUNTIME]
#   --spot             use spot capacity: cheaper, but Google may take the slice
#                      away at any time [TPU_SPOT=1]
#   --create_flag=F    another flag for gcloud's create, such as --reserved; can
#                      be repeated
#   --internal_ip      connect to workers by their internal addresses
#   --repo=URL --commit=HASH   install that commit instead of this checkout
#   --python=3.11      Python version of the workers
#   --worker=0         the worker whose log to show: a number, or all
#   --lines=100        lines of the log to start with
#   --grace=120        seconds that stop waits before it kills the run
#   --max_hours=24     hours after which finish stops the run
#   --poll=30          seconds between two queries of the slice's state
#   --dry_run          print the commands without running them
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verbs='create wait install run logs status stop resume finish delete'

usage() {  # prints the comment at the top
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "${BASH_SOURCE[0]}"
}

say() { printf '%s\n' "$*" >&2; }

fail() {  # fail EXIT_CODE MESSAGE
  local code=$1
  shift
  say "error: $*"
  exit "$code"
}

quoted() {  # prints its arguments, quoted for a shell
  local word line='' quote="'" escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*)
        word=$quote${word//$quote/$escaped}$quote
        ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

do_it() {  # runs a command; with --dry_run prints it
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

note() { [ -z "$dry_run" ] || printf '# %s\n' "$*"; }

tpus() {  # tpus GROUP VERB ARGS: runs gcloud compute tpus
  do_it gcloud compute tpus "$@" --zone="$zone" \
    ${project:+--project="$project"}
}

on() {  # on WORKER COMMAND: runs a shell command on a worker, or on all
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2" \
    ${internal_ip:+--internal-ip}
}

worker() {  # worker WORKER VERB ARGS: runs launch/worker.sh there
  local which=$1
  shift
  on "$which" "td_jax/source/launch/worker.sh $(quoted "$@")"
}

# Whether the type has several hosts. A host has at most 8 cores or chips.
is_pod() {
  [ "${type##*-}" -gt 8 ]
}

default_runtime() {
  case $type in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

state() {  # prints the state of the queued resource, or ABSENT
  local now errors
  errors=$(mktemp)
  if now=$(gcloud compute tpus queued-resources describe "$name" \
    --format='value(state.state)' --zone="$zone" \
    ${project:+--project="$project"} 2>"$errors"); then
    rm "$errors"
    echo "$now"
  elif grep -qi 'not.found' "$errors"; then
    rm "$errors"
    echo ABSENT
  else
    cat "$errors" >&2
    rm "$errors"
    return 1
  fi
}

show_state() {
  tpus queued-resources describe "$name" --format='value(state.state)'
}

create() {
  tpus queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} \
    ${create_flags[@]+"${create_flags[@]}"}
}

wait_until() {  # wait_until STATES, separated by |
  local now='' last='' failures=0
  if [ -n "$dry_run" ]; then
    show_state
    note "repeated every $poll s until it prints $1"
    return
  fi
  while :; do
    # Waiting may take days, so single failures of the network must not end it.
    if now=$(state); then
      failures=0
    else
      failures=$((failures + 1))
      [ "$failures" -lt 5 ] || fail 1 'gcloud failed 5 times in a row'
      now=$last
    fi
    [ "$now" = "$last" ] || say "$name is $now"
    last=$now
    case "|$1|" in *"|$now|"*) return ;; esac
    case $now in
      FAILED | SUSPENDED | ABSENT)
        fail 1 "$name is $now and will not become $1. To see why, run: $(quoted \
          gcloud compute tpus queued-resources describe "$name" \
          --zone="$zone"). To start again, run: launch/tpu.sh resume." ;;
    esac
    sleep "$poll"
  done
}

install() {
  local source=$repo
  if [ -z "$repo" ]; then
    source=td_jax.bundle
    commit=$(git -C "$here" rev-parse HEAD)
    [ -z "$(git -C "$here" status --porcelain)" ] ||
      say 'warning: uncommitted changes are not installed'
    # A bundle has the history, from which runs read their commit.
    do_it mkdir -p "$here/build"
    do_it git -C "$here" bundle create -q "$here/build/$source" HEAD
    tpus tpu-vm scp "$here/build/$source" "$name:$source" --worker=all \
      ${internal_ip:+--internal-ip}
  fi
  # Python may read sources at any time, so they must not change during a run.
  on all "mkdir -p td_jax && { flock -n td_jax/lock true ||\
 { echo 'a run is in progress; stop it first' >&2; exit 1; }; } &&\
 rm -rf td_jax/source &&\
 git clone --quiet --no-checkout -- $(quoted "$source") td_jax/source &&\
 git -C td_jax/source checkout --quiet --detach $(quoted "$commit") &&\
 td_jax/source/launch/worker.sh setup $(quoted "$python")"
}

run() { worker all start ${flags[@]+"${flags[@]}"}; }

resume() {
  local now node
  if [ -n "$dry_run" ]; then
    show_state
    tpus tpu-vm describe "$name" --format='value(state)'
    note 'if the slice was preempted or has failed:'
    delete
    note 'after that, or if there is no slice:'
    create
    wait_until ACTIVE
    note 'if the slice was there and the run is in progress on all workers, this is all:'
    worker all running
    note 'otherwise:'
    stop_all
    install
    run
    return
  fi
  now=$(state) || exit 1
  say "$name is $now"
  case $now in
    SUSPENDING | DELETING)
      wait_until 'SUSPENDED|ABSENT'
      now=$(state) || exit 1
      ;;
    ACTIVE)
      node=$(tpus tpu-vm describe "$name" --format='value(state)') || exit 1
      case $node in PREEMPTED | TERMINATED) now=SUSPENDED ;; esac
      ;;
  esac
  case $now in
    SUSPENDED | FAILED)
      delete
      create
      ;;
    ABSENT) create ;;
  esac
  wait_until ACTIVE
  if [ "$now" = ACTIVE ]; then
    ! worker all running || {
      say 'the run is already in progress'
      return
    }
    stop_all  # Some workers may still run while others have ended.
  fi
  install
  run
}

stop_all() {
  # Before the first install there is no worker.sh, and nothing to stop.
  on all "[ ! -e td_jax/source/launch/worker.sh ] ||\
 td_jax/source/launch/worker.sh stop $(quoted "$grace")"
}

logs() {
  if [ "$which" = all ]; then
    worker all log "$lines" prefix
  else
    worker "$which" log "$lines"
  fi
}

status() {  # prints all it can: any part may fail
  show_state || true
  tpus tpu-vm describe "$name" --format='value(state,health)' || return 0
  worker all status || true
}

finish() {  # ends the costs: after the run, or after --max_hours
  local deadline=$(($(date +%s) + max_hours * 3600)) ended=0 shown last=''
  if [ -n "$dry_run" ]; then
    worker all status
    note "repeated every $poll s, until no worker is running or $max_hours hours are over; if they are:"
    stop_all
    note 'then:'
    delete
    return
  fi
  # A connection that fails, or a restart after a preemption, may look like an end.
  while [ "$ended" -lt 2 ]; do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      say "$max_hours hours are over"
      stop_all || true
      break
    fi
    if shown=$(worker all status 2>/dev/null); then
      [ "$shown" = "$last" ] || say "$shown"
      last=$shown
      case $shown in
        *'running since'* | '') ended=0 ;;
        *) ended=$((ended + 1)) ;;
      esac
    fi
    [ "$ended" -ge 2 ] || sleep "$poll"
  done
  delete
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

check() {  # reports in one line what would fail later
  local flag option before='' workdir=''
  case " $verbs " in
    *" $verb "*) ;;
    *) fail 2 "unknown subcommand ${verb:-(none)}; choose one of $verbs." ;;
  esac
  [ -n "$name" ] || fail 2 'the name is missing; set --name=NAME or TPU_NAME.'
  [ -n "$zone" ] ||
    fail 2 'the zone is missing; set --zone=ZONE or TPU_ZONE, such as' \
      'us-central2-b.'
  [ ${#flags[@]} = 0 ] || [ "$verb" = run ] || [ "$verb" = resume ] ||
    fail 2 "$verb takes no flags after --, but got $(quoted "${flags[@]}")."
  case ${repo:+r}${commit:+c} in
    r | c) fail 2 'set both --repo and --commit, or neither.' ;;
  esac
  for option in name repo commit; do
    [[ ${!option} != -* ]] ||
      fail 2 "--$option=${!option} would be read as an option; it must not" \
        'begin with a hyphen.'
  done
  [[ $lines$grace$poll$max_hours =~ ^[0-9]+$ ]] ||
    fail 2 "--lines=$lines, --grace=$grace, --poll=$poll and" \
      "--max_hours=$max_hours must be whole numbers."
  [[ $which =~ ^([0-9]+|all)$ ]] ||
    fail 2 "--worker is $which; it must be a number or all."
  case $verb in create | run | resume) ;; *) return 0 ;; esac
  [[ $type =~ ^[a-z0-9]+-[0-9]+$ ]] ||
    fail 2 "--type=$type is not an accelerator type; set one such as v4-8 or" \
      'v5litepod-256, here or as TPU_TYPE.'
  [ -n "$runtime" ] || runtime=$(default_runtime)
  [ -n "$runtime" ] ||
    fail 2 "no runtime version is known for --type=$type (only for v2, v3," \
      'v4, v5litepod, v5p and v6e); set --runtime=VERSION.'
  [ "$verb" != create ] || return 0
  [ ${#flags[@]} != 0 ] ||
    fail 2 "$verb needs the flags of td_jax.main after --, such as" \
      '-- --config=configs/movielens.py --workdir=gs://BUCKET/RUN.'
  for flag in "${flags[@]}"; do
    [[ $before =~ ^--?workdir$ ]] && workdir=$flag
    [[ $flag =~ ^--?workdir=(.*)$ ]] && workdir=${BASH_REMATCH[1]}
    before=$flag
  done
  case $workdir in gs://*) return 0 ;; esac
  # The workers of a pod share no disk, and the disk of a new slice is empty.
  ! is_pod || fail 2 "--workdir is '$workdir', but a pod ($type) needs" \
    "--workdir=gs://..., which all its workers can read."
  [ -z "$spot" ] && [ "$verb" = run ] ||
    fail 2 "--workdir is '$workdir', but $verb${spot:+ on spot capacity} needs" \
      "--workdir=gs://..., which outlives the slice."
}

name=${TPU_NAME:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-}
project=${TPU_PROJECT:-} runtime=${TPU_RUNTIME:-} spot=${TPU_SPOT:-}
repo='' commit='' python=3.11 which=0 lines=100 grace=120 poll=30 max_hours=24
internal_ip='' dry_run='' verb='' create_flags=() flags=()
while [ $# != 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --internal_ip) internal_ip=1 ;;
    --repo=*) repo=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --worker=*) which=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --max_hours=*) max_hours=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      usage
      exit
      ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    -*) fail 2 "unknown option $1 (--help lists all; write --option=VALUE);" \
      'flags of td_jax.main come after --.' ;;
    *)
      [ -z "$verb" ] || fail 2 "two subcommands, $verb and $1; choose one."
      verb=$1
      ;;
  esac
  shift
done
check
case $verb in
  wait) wait_until ACTIVE ;;
  stop)
    stop_all
    say 'the slice is still there and still costs; launch/tpu.sh delete ends that'
    ;;
  *) "$verb" ;;
esac
