#!/usr/bin/env bash
# Runs td_jax on Cloud TPU, one host (v4-8) or a pod (v5litepod-256).
#
#   launch/tpu.sh create            asks for the slice (a queued resource)
#   launch/tpu.sh wait              until it is ACTIVE
#   launch/tpu.sh install           this checkout and JAX, on all workers
#   launch/tpu.sh run -- FLAGS      python -m td_jax.main FLAGS on all workers;
#                                   goes on without ssh, and after exit code 75
#   launch/tpu.sh logs              follows worker 0, or --worker=all
#   launch/tpu.sh status            of the slice and of the run
#   launch/tpu.sh stop              the run saves and ends; the slice stays
#   launch/tpu.sh resume -- FLAGS   like run, also if the slice was preempted:
#                                   makes it anew then
#   launch/tpu.sh delete            the slice, and its disks with it
#
# Options, before or after the subcommand; in brackets the environment variable
# that is used where the option is not given:
#   --name=NAME        of the slice [TPU_NAME]
#   --zone=ZONE        such as us-central2-b [TPU_ZONE]
#   --type=TYPE        v4-8, v5litepod-256, ... [TPU_TYPE]
#   --project=PROJECT  otherwise gcloud's own [TPU_PROJECT]
#   --runtime=VERSION  otherwise what suits the type [TPU_RUNTIME]
#   --spot             cheaper, may be taken away at any time [TPU_SPOT=1]
#   --create_flag=F    one more flag for gcloud's create, such as --reserved;
#                      may be given several times
#   --internal_ip      reach workers by addresses inside the network
#   --repo=URL --commit=HASH   install that, not this checkout
#   --python=3.11      the version that workers get
#   --worker=0         whose log: a number, or all
#   --lines=100        how much of the log to begin with
#   --grace=120        seconds that stop waits before it kills
#   --poll=30          seconds between looks at the slice
#   --dry_run          print the commands and run none
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verbs='create wait install run logs status stop resume delete'

usage() {  # The comment at the top.
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "${BASH_SOURCE[0]}"
}

say() { printf '%s\n' "$*" >&2; }

fail() {  # fail CODE WORDS
  local code=$1
  shift
  say "error: $*"
  exit "$code"
}

quoted() {  # its arguments as words of a shell
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

do_it() {  # runs a command, or prints it
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

note() { [ -z "$dry_run" ] || printf '# %s\n' "$*"; }

tpus() {  # tpus GROUP VERB ...: gcloud compute tpus
  do_it gcloud compute tpus "$@" --zone="$zone" \
    ${project:+--project="$project"}
}

on() {  # on WORKER COMMAND: a shell's command on a worker, or on all
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2" \
    ${internal_ip:+--internal-ip}
}

worker() {  # worker WHICH VERB ...: launch/worker.sh there
  local which=$1
  shift
  on "$which" "td_jax/source/launch/worker.sh $(quoted "$@")"
}

is_pod() {  # whether the type has several hosts: all have 8 cores or chips each
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

state() {  # of the queued resource, or ABSENT
  local said errors
  errors=$(mktemp)
  if said=$(gcloud compute tpus queued-resources describe "$name" \
    --format='value(state.state)' --zone="$zone" \
    ${project:+--project="$project"} 2>"$errors"); then
    rm "$errors"
    echo "$said"
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

wait_until() {  # wait_until PATTERN: of states, separated by |
  local now='' last='' failures=0
  if [ -n "$dry_run" ]; then
    show_state
    note "every $poll s, until it says $1"
    return
  fi
  while :; do
    # The network may be away for a while, and waiting may take days.
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
        fail 1 "$name is $now and will not become $1. To see why: $(quoted \
          gcloud compute tpus queued-resources describe "$name" \
          --zone="$zone"). To begin anew: launch/tpu.sh resume." ;;
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
      say 'warning: what is not committed is not installed'
    # A bundle has the history, by which runs know their commit.
    do_it mkdir -p "$here/build"
    do_it git -C "$here" bundle create -q "$here/build/$source" HEAD
    tpus tpu-vm scp "$here/build/$source" "$name:$source" --worker=all \
      ${internal_ip:+--internal-ip}
  fi
  # Python may read the sources at any time: they stay while it runs.
  on all "mkdir -p td_jax && { flock -n td_jax/lock true ||\
 { echo 'a run is going on; stop it first' >&2; exit 1; }; } &&\
 rm -rf td_jax/source &&\
 git clone --quiet --no-checkout $(quoted "$source") td_jax/source &&\
 git -C td_jax/source checkout --quiet --detach $(quoted "$commit") &&\
 td_jax/source/launch/worker.sh setup $(quoted "$python")"
}

run() { worker all start ${flags[@]+"${flags[@]}"}; }

resume() {
  local now node
  if [ -n "$dry_run" ]; then
    show_state
    tpus tpu-vm describe "$name" --format='value(state)'
    note 'if it was preempted or failed:'
    delete
    note 'then, or if there is none:'
    create
    wait_until ACTIVE
    note 'if it is there and the run goes on on all workers, that is all:'
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
      say 'the run goes on already'
      return
    }
    stop_all  # Where only some of the workers are left.
  fi
  install
  run
}

stop_all() {
  # Before the first install there is nothing to stop.
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

status() {  # Each part may fail and the next still be of use.
  show_state || true
  tpus tpu-vm describe "$name" --format='value(state,health)' || return 0
  worker all status || true
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

check() {  # Everything that would fail later, in one line now.
  local flag before='' workdir=''
  case " $verbs " in
    *" $verb "*) ;;
    *) fail 2 "unknown subcommand ${verb:-(none)}; choose one of $verbs." ;;
  esac
  [ -n "$name" ] || fail 2 'the name is missing: --name=NAME or TPU_NAME.'
  [ -n "$zone" ] ||
    fail 2 'the zone is missing: --zone=ZONE or TPU_ZONE, as in us-central2-b.'
  [ ${#flags[@]} = 0 ] || [ "$verb" = run ] || [ "$verb" = resume ] ||
    fail 2 "$verb takes nothing after --, and got $(quoted "${flags[@]}")."
  case ${repo:+r}${commit:+c} in
    r | c) fail 2 'give --repo and --commit both, or neither.' ;;
  esac
  [[ $lines$grace$poll =~ ^[0-9]+$ ]] ||
    fail 2 "--lines=$lines, --grace=$grace and --poll=$poll are whole numbers."
  [[ $which =~ ^([0-9]+|all)$ ]] ||
    fail 2 "--worker=$which is neither a number nor all."
  case $verb in create | run | resume) ;; *) return 0 ;; esac
  [[ $type =~ ^[a-z0-9]+-[0-9]+$ ]] ||
    fail 2 "--type=$type is no accelerator type; give one such as v4-8 or" \
      'v5litepod-256, or set TPU_TYPE.'
  [ -n "$runtime" ] || runtime=$(default_runtime)
  [ -n "$runtime" ] ||
    fail 2 "no runtime version is known for --type=$type (only for v2, v3," \
      'v4, v5litepod, v5p and v6e); give --runtime=VERSION.'
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
  # Workers of a pod share no disk, and a new slice has an empty one.
  ! is_pod || fail 2 "a pod ($type) needs --workdir=gs://..., which all its" \
    "workers see; it is '$workdir'."
  [ -z "$spot" ] && [ "$verb" = run ] ||
    fail 2 "$verb${spot:+ on spot capacity} needs --workdir=gs://..., which" \
      "outlives the slice; it is '$workdir'."
}

name=${TPU_NAME:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-}
project=${TPU_PROJECT:-} runtime=${TPU_RUNTIME:-} spot=${TPU_SPOT:-}
repo='' commit='' python=3.11 which=0 lines=100 grace=120 poll=30
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
    -*) fail 2 "unknown option $1 (--help lists them, all as --option=VALUE);" \
      'flags of td_jax.main come after --.' ;;
    *)
      [ -z "$verb" ] || fail 2 "one subcommand at a time: $verb or $1?"
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
    say 'the slice stays, and costs; delete ends that'
    ;;
  *) "$verb" ;;
esac
