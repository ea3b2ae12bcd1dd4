# shellcheck shell=bash
# What the scripts in this folder share: messages, progress, the engine and the Swarm.

# Where `make up` notes what it made on this machine, so that `make down` removes that and nothing else.
made_file=${AXION_MADE_FILE:-/var/lib/axion-up/made}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
made() { mkdir -p "$(dirname "$made_file")" && { grep -qxF "$1" "$made_file" 2>/dev/null || echo "$1" >>"$made_file"; }; }
was_made() { grep -qxF "$1" "$made_file" 2>/dev/null; }

# step TITLE COMMAND...: runs the command, shows that it is alive, its time, and, if it fails, what it printed.
step() {
  local title=$1 log started pid rc=0 ticks=0
  shift
  log=$(mktemp)
  started=$SECONDS
  "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill $pid 2>/dev/null; rm -f "$log"; trap - INT TERM; exit 130' INT TERM
  while kill -0 $pid 2>/dev/null; do
    ticks=$((ticks + 1))
    if [ -t 2 ]; then
      printf '\r  %s %s %ds ' "$(printf '|/-\\' | cut -c$((ticks % 4 + 1)))" "$title" $((SECONDS - started)) >&2
    elif [ $((ticks % 75)) -eq 0 ]; then
      say "    ... $title: $((SECONDS - started)) s"
    fi
    sleep 0.2
  done
  wait $pid || rc=$?
  trap - INT TERM
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
  if [ $rc -ne 0 ]; then
    say "  ✗ $title (exit $rc after $((SECONDS - started)) s); the end of what it printed:"
    tail -n 30 "$log" | sed 's/^/    /' >&2
    rm -f "$log"
    exit $rc
  fi
  say "  ✓ $title ($((SECONDS - started)) s)"
  rm -f "$log"
}

# has_go: is there a Go toolchain that can build this module (1.21 and later fetch a newer one themselves)?
has_go() { command -v go >/dev/null && go version >/dev/null 2>&1; }

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

need_root() {
  [ "$(id -u)" -eq 0 ] || die "this needs root: run it as root or with sudo (sudo make ${1:-up})"
}

# install PACKAGE...: Debian and Ubuntu packages.
install_packages() {
  command -v apt-get >/dev/null || die "cannot install $* here: this machine has no apt-get; install them by hand and run this again"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q && apt-get install -y -q --no-install-recommends "$@"
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

wait_for() { # wait_for SECONDS COMMAND...
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.3
  done
}

start_engine() {
  if [ -d /run/systemd/system ]; then
    systemctl start docker
  else
    mkdir -p /var/lib/axion-up
    setsid nohup dockerd >/var/lib/axion-up/dockerd.log 2>&1 </dev/null &
    echo $! >/var/lib/axion-up/dockerd.pid
  fi
  wait_for 60 engine_answers || { tail -n 20 /var/lib/axion-up/dockerd.log 2>/dev/null || true; return 1; }
}

# ensure_engine: a Docker engine answers after it, installed and started if need be.
ensure_engine() {
  engine_answers && return
  if ! command -v dockerd >/dev/null; then
    step "Install the Docker engine (package docker.io)" install_packages docker.io iptables ca-certificates
    made package:docker.io
    engine_answers && return
  fi
  step "Start the Docker engine" start_engine
  made engine
}

swarm_state() { docker info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}' 2>/dev/null; }

# ensure_swarm: this engine is a manager of a Swarm after it. Addresses come from 198.18.0.0/15 (RFC 2544), which shadows nobody's network.
ensure_swarm() {
  case $(swarm_state) in
    "active true") return ;;
    "active false") die "this engine is a worker of a Swarm: run this on one of its managers" ;;
    inactive*) ;;
    *) die "this engine's Swarm is $(swarm_state): see docker info" ;;
  esac
  step "Make a one-node Swarm" docker swarm init --advertise-addr 127.0.0.1 --default-addr-pool 198.18.128.0/17
  made swarm
}

# forget_recent_at_exit: the agents keep cancellations and restarts in one object for the whole Swarm (docs/operations.md). What tests made goes with them, unless it
# was there before.
forget_recent_at_exit() {
  [ -z "$(docker config ls -q --filter name=axion-recent)" ] || return 0
  trap 'docker config ls -q --filter name=axion-recent | xargs -r docker config rm >/dev/null || true' EXIT
}
