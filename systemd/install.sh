#!/usr/bin/env bash
# Installs Shallop's agent or registry on a machine with systemd, upgrades it in place, or takes it away.
# Running it again is always safe. What it does, step by step: docs/install.md.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(dirname "$HERE")
OPT=/opt/shallop
ETC=/etc/shallop
LIB=/usr/local/lib
POLKIT=/etc/polkit-1/rules.d
MOSQUITTO=/etc/mosquitto/conf.d/shallop.conf
OPENSSL=/etc/mosquitto/shallop-openssl.cnf
BROKER_FILES=/var/lib/shallop-broker
# Seconds for which a new daemon must stay up before the old environment goes.
SETTLE_S=${SHALLOP_SETTLE_S:-3}
HEALTH_S=60

usage() {
  cat <<'TEXT'
usage: install.sh --agent | --fleet [options]
       install.sh --agent | --fleet --uninstall [--purge]

Installs, or upgrades in place, into an environment of its own under /opt/shallop, with units for systemd.
Nothing else of the machine's Python is touched. If the new version does not come up, the old one goes on.

  --agent               the daemon of a device
  --fleet               the registry, on the host of the fleet
  --from SOURCE         a wheel or a checkout (default: the checkout in which this script lies)
  --wheels DIR          offline: take Shallop and all that it needs from this folder of wheels
  --runtime NAME        what runs models on this device: onnx, tflite or none; may be repeated (default: onnx)
  --python PROGRAM      Python 3.11 or newer (default: /usr/bin/python3)
  --broker HOST[:PORT]  written into a new configuration; an existing one is never changed
  --device NAME         likewise; without it the board's serial number or the machine id names the device
  --restarts UNIT       the agent's hooks may restart this unit of an application (polkit); may be repeated
  --mosquitto           set up the Mosquitto of this machine as Shallop's broker: on loopback, for trying out,
                        until `shallop-fleet broker init` opens it with TLS (docs/broker.md)
  --no-start            install and enable, start nothing
  --uninstall           take programs and units away; models, state and configuration stay
  --purge               with --uninstall: those too, and the user
  --help                this text

examples:
  sudo systemd/install.sh --agent --broker broker.local
  sudo systemd/install.sh --agent --wheels /media/stick/wheels --restarts camera.service
  sudo systemd/install.sh --fleet --mosquitto
  sudo systemd/install.sh --agent --uninstall

exit codes: 0 done; 1 it failed, and what ran before runs again; 2 wrong usage, or something is missing here
TEXT
}

say() { echo "install.sh: $*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }
refuse() { echo "install.sh: $*" >&2; exit 2; }

# --- arguments ---------------------------------------------------------------------------------------

ROLE='' SOURCE='' WHEELS='' PYTHON=/usr/bin/python3 BROKER='' DEVICE=''
RUNTIMES=() RESTARTS=()
WITH_MOSQUITTO=no START=yes UNINSTALL=no PURGE=no PACKAGED=no

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --agent | --fleet)
        [ -z "$ROLE" ] || [ "$ROLE" = "${1#--}" ] || refuse "--agent and --fleet are two installations; run it twice"
        ROLE=${1#--} ;;
      --mosquitto) WITH_MOSQUITTO=yes ;;
      --no-start) START=no ;;
      --uninstall) UNINSTALL=yes ;;
      --purge) PURGE=yes ;;
      --packaged) PACKAGED=yes ;; # the Debian package brings units and commands itself
      --help | -h) usage; exit 0 ;;
      --from | --wheels | --runtime | --python | --broker | --device | --restarts)
        [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
        value "$1" "$2"
        shift ;;
      *) refuse "unknown argument $1; see --help" ;;
    esac
    shift
  done
  [ -n "$ROLE" ] || refuse "say what to install: --agent or --fleet; see --help"
  [ "$PURGE" = no ] || [ "$UNINSTALL" = yes ] || refuse "--purge goes with --uninstall"
  [ "$ROLE" = agent ] || [ ${#RUNTIMES[@]} -eq 0 ] || refuse "--runtime goes with --agent: a registry runs no model"
}

value() {
  case $1 in
    --from) SOURCE=$2 ;;
    --wheels) WHEELS=$2 ;;
    --python) PYTHON=$2 ;;
    --runtime)
      case $2 in onnx | tflite) RUNTIMES+=("$2") ;; none) RUNTIMES+=('') ;; *) refuse "--runtime is onnx, tflite or none, not $2" ;; esac ;;
    --broker)
      [[ $2 =~ ^[A-Za-z0-9._-]+(:[0-9]{1,5})?$ ]] || refuse "--broker is HOST or HOST:PORT, not $2"
      BROKER=$2 ;;
    --device)
      [[ $2 =~ ^[a-z0-9][a-z0-9-]{0,62}$ ]] || refuse "--device is lower-case letters, digits and '-', not $2"
      DEVICE=$2 ;;
    --restarts)
      [[ $2 =~ ^[A-Za-z0-9:_.@-]{1,200}\.(service|target)$ ]] || refuse "--restarts is a unit such as camera.service, not $2"
      RESTARTS+=("$2") ;;
  esac
}

# --- what must be here -------------------------------------------------------------------------------

check_machine() {
  [ "$(id -u)" = 0 ] || refuse "this needs root: sudo $0 ..."
  command -v systemctl >/dev/null || refuse "there is no systemd on this machine; without it start 'shallop-agent run' by what you have"
  local version
  version=$(systemctl --version | awk 'NR == 1 { print $2 + 0 }')
  [ "$version" -ge 247 ] || refuse "systemd $version is too old for the units: 247 or newer (Debian 11)"
}

# Python's own pip, which `venv` would copy into the environment. It is used from where it is: that takes a third
# of the time, and nobody installs into an environment again, since an upgrade makes the next one.
FIND_PIP='
import ensurepip, pathlib, venv
places = [pathlib.Path(ensurepip.__file__).parent / "_bundled", pathlib.Path("/usr/share/python-wheels")]
print(max(path for place in places for path in place.glob("pip-*.whl")))
'
PIP=''

check_python() {
  PYTHON=$(command -v "$PYTHON") || refuse "python3 is missing: apt-get install python3 python3-venv"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    refuse "Shallop needs Python 3.11 or newer, $PYTHON is $("$PYTHON" -V 2>&1); name another one: --python /usr/bin/python3.12"
  PIP=$("$PYTHON" -c "$FIND_PIP" 2>/dev/null) || refuse "python3-venv is missing: apt-get install python3-venv"
  # The daemon is another user, and its sandbox has no home directories.
  case $("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')/ in
    /root/* | /home/* | /tmp/*) refuse "the service cannot use a Python in a home directory or /tmp ($PYTHON); name the system's: --python /usr/bin/python3" ;;
  esac
}

# Units of the one would hide those of the other.
check_other_way() {
  local unit=systemd/system/shallop-$ROLE.service
  if [ "$PACKAGED" = yes ]; then
    [ ! -e "$LIB/$unit" ] || refuse "install.sh has put Shallop here already; take that away first (data stays): install.sh --$ROLE --uninstall"
  else
    [ ! -e "/usr/lib/$unit" ] || refuse "the Debian package shallop-$ROLE is installed; upgrade that, or remove it first (data stays): apt-get remove shallop-$ROLE"
  fi
}

check_source() {
  if [ -n "$WHEELS" ]; then
    [ -d "$WHEELS" ] || refuse "there is no folder $WHEELS"
    compgen -G "$WHEELS/shallop-*.whl" >/dev/null || [ -n "$SOURCE" ] || refuse "there is no shallop-*.whl in $WHEELS; 'make wheels' fills such a folder"
  elif [ -z "$SOURCE" ]; then
    [ -f "$CHECKOUT/pyproject.toml" ] || refuse "$CHECKOUT is no checkout of Shallop; name a source: --from or --wheels"
    SOURCE=$CHECKOUT
  fi
  [ -z "$SOURCE" ] || [ -e "$SOURCE" ] || refuse "there is no $SOURCE"
  if [ "$WITH_MOSQUITTO" = yes ]; then
    [ -d /etc/mosquitto/conf.d ] || refuse "Mosquitto is not installed: apt-get install mosquitto"
  fi
}

booted() { [ -d /run/systemd/system ]; }

# --- the environment ---------------------------------------------------------------------------------

NEW='' OLD='' TEMPORARY=''

extras() {
  if [ "$ROLE" = fleet ]; then echo fleet; return; fi
  local IFS=,
  # `none` alone leaves nothing; beside another it adds nothing.
  if [ ${#RUNTIMES[@]} -eq 0 ]; then echo onnx; else echo "${RUNTIMES[*]}" | sed 's/^,*//; s/,*$//; s/,,*/,/g'; fi
}

build() {
  local wanted index=()
  wanted=$(extras)
  [ -z "$wanted" ] || wanted="[$wanted]"
  [ -z "$WHEELS" ] || index=(--no-index --find-links "$WHEELS")
  NEW=$OPT/$ROLE-$(date -u +%Y%m%dT%H%M%SZ)-$$
  say "building $NEW with ${SOURCE:-$WHEELS} ${wanted:-without a runtime} ..."
  mkdir -p "$OPT"
  "$PYTHON" -m venv --without-pip "$NEW"
  "$NEW/bin/python" "$PIP/pip" install --quiet --disable-pip-version-check --no-input --no-cache-dir \
    --root-user-action=ignore "${index[@]}" "${SOURCE:-shallop}$wanted" ||
    fail "pip could not install it (above); nothing was changed"
  [ "$PACKAGED" = yes ] || keep_units
}

# Each environment holds the units that belong to it, so that going back takes those along.
keep_units() {
  local to=$NEW/systemd unit
  install -d "$to/system" "$to/sysusers.d" "$to/tmpfiles.d" "$to/bin"
  for unit in $(units); do install -m 644 "$HERE/units/$unit" "$to/system/"; done
  install -m 644 "$HERE/sysusers.d/shallop-$ROLE.conf" "$to/sysusers.d/"
  if [ "$ROLE" = agent ]; then
    install -m 644 "$HERE/tmpfiles.d/shallop-agent.conf" "$to/tmpfiles.d/"
    install -m 755 "$HERE/shallop-agent.sh" "$to/bin/shallop-agent"
  else
    ln -s "$OPT/fleet/bin/shallop-fleet" "$to/bin/shallop-fleet"
  fi
}

units() {
  if [ "$ROLE" = agent ]; then echo shallop-agent.service shallop-worker.socket shallop-worker@.service; else echo shallop-fleet.service; fi
}

place_units() {
  [ "$PACKAGED" = no ] && [ -d "$1/systemd" ] || return 0
  local folder
  for folder in system sysusers.d tmpfiles.d; do
    [ -z "$(ls "$1/systemd/$folder")" ] || install -m 644 -D -t "$(library "$folder")" "$1/systemd/$folder"/*
  done
  mkdir -p /usr/local/bin
  cp --no-dereference --remove-destination "$1/systemd/bin"/* /usr/local/bin/
}

library() { if [ "$1" = system ]; then echo "$LIB/systemd/system"; else echo "$LIB/$1"; fi; }

# --- user, configuration, neighbours -----------------------------------------------------------------

user() { if [ "$ROLE" = agent ]; then echo shallop; else echo shallop-fleet; fi; }

make_users() {
  local from=$NEW/systemd
  [ "$PACKAGED" = no ] || from=/usr/lib
  systemd-sysusers "$from/sysusers.d/shallop-$ROLE.conf"
  if [ "$ROLE" = agent ] && booted; then systemd-tmpfiles --create "$from/tmpfiles.d/shallop-agent.conf"; fi
}

configure() {
  local file=$ETC/$ROLE.yaml draft
  mkdir -p "$ETC"
  if [ -e "$file" ]; then
    say "$file is kept as it is"
    return
  fi
  draft=$(mktemp "$ETC/.$ROLE.XXXXXX")
  TEMPORARY=$draft
  if [ "$ROLE" = agent ]; then
    local host=${BROKER%%:*} port=1883
    [[ $BROKER != *:* ]] || port=${BROKER##*:}
    sed -e "s/^  host: .*/  host: ${host:-127.0.0.1}/" -e "s/^  port: .*/  port: $port/" \
      -e "${DEVICE:+s/^# device: .*/device: $DEVICE/}" "$HERE/config/agent.yaml" >"$draft"
  else
    sed "${BROKER:+s|^broker: .*|broker: mqtt://$BROKER|}" "$HERE/config/fleet.yaml" >"$draft"
  fi
  chown "root:$(user)" "$draft"
  chmod 640 "$draft"
  mv "$draft" "$file"
  TEMPORARY=''
  say "wrote $file"
}

# The new program reads the machine's configuration as the daemon will, before anything is switched.
rehearse() {
  local program='import sys; from agent import app, config; config.load(__import__("pathlib").Path(sys.argv[1]))'
  [ "$ROLE" = agent ] || program='import sys; from fleet import app, config; config.load(__import__("pathlib").Path(sys.argv[1]), {})'
  (cd / && setpriv --reuid="$(user)" --regid="$(user)" --init-groups -- "$NEW/bin/python" -c "$program" "$ETC/$ROLE.yaml") ||
    fail "the new version cannot use $ETC/$ROLE.yaml (above); nothing was changed"
}

allow_restarts() {
  [ ${#RESTARTS[@]} -gt 0 ] || return 0
  if [ ! -d "$POLKIT" ]; then
    say "polkit is not installed, so hooks cannot restart ${RESTARTS[*]}: apt-get install polkitd, then run this again"
    return 0
  fi
  local file=$POLKIT/60-shallop.rules lines
  lines=$({ [ ! -e "$file" ] || sed -n 's/^  "\(.*\)",$/\1/p' "$file"; printf '%s\n' "${RESTARTS[@]}"; } | sort -u | sed 's/.*/  "&",/')
  TEMPORARY=$(mktemp "$POLKIT/.shallop.XXXXXX")
  awk -v lines="$lines" '/^  \/\/ UNITS$/ { print lines; next } { print }' "$HERE/polkit/60-shallop.rules" >"$TEMPORARY"
  chmod 644 "$TEMPORARY"
  mv "$TEMPORARY" "$file"
  TEMPORARY=''
  say "hooks may restart: $(tr -d '\n' <<<"$lines" | sed 's/^ *//; s/,$//')"
}

set_up_mosquitto() {
  [ "$WITH_MOSQUITTO" = yes ] || return 0
  install -m 644 -D -t "$LIB/systemd/system/mosquitto.service.d" "$HERE/units/mosquitto.service.d/shallop.conf"
  install -m 644 "$HERE/mosquitto/openssl.cnf" "$OPENSSL"
  install -m 644 -D -t "$LIB/systemd/system" "$HERE"/units/shallop-broker-reload.*
  # The registry writes there, the broker reads: what is made in it belongs to the broker's group.
  [ "$ROLE" = agent ] || install -d -m 2750 -o shallop-fleet -g mosquitto "$BROKER_FILES"
  if [ -e "$MOSQUITTO" ]; then
    say "$MOSQUITTO is kept as it is"
    ! booted || systemctl daemon-reload
    return 0
  fi
  install -m 644 "$HERE/mosquitto/shallop.conf" "$MOSQUITTO"
  systemctl --quiet enable mosquitto
  if booted && [ "$START" = yes ]; then
    systemctl daemon-reload
    if ! systemctl restart mosquitto; then
      rm -f "$MOSQUITTO"
      systemctl reset-failed mosquitto || true
      systemctl restart mosquitto || true
      fail "Mosquitto does not start with $MOSQUITTO, which was taken away again (another listener on port 1883?): journalctl -u mosquitto"
    fi
  fi
}

# --- switching, and back -----------------------------------------------------------------------------

point_to() {
  ln -s "$(basename "$1")" "$OPT/.$ROLE.new"
  mv -T "$OPT/.$ROLE.new" "$OPT/$ROLE"
}

main_pid() { systemctl show --property=MainPID --value "shallop-$ROLE.service"; }

# Whether the daemon says that it is at work, and stays.
comes_up() {
  local unit=shallop-$ROLE.service pid
  systemctl restart "$unit" || return 1
  [ "$ROLE" = agent ] || answers || return 1
  pid=$(main_pid)
  sleep "$SETTLE_S"
  systemctl is-active --quiet "$unit" && [ "$(main_pid)" = "$pid" ]
}

answers() {
  local listen tries
  listen=$("$OPT/fleet/bin/python" -c 'import pathlib, sys; from fleet.config import load; print(load(pathlib.Path(sys.argv[1]), {}).listen)' "$ETC/fleet.yaml")
  for ((tries = 0; tries < HEALTH_S; tries++)); do
    "$OPT/fleet/bin/shallop-fleet" health --server "http://${listen/0.0.0.0/127.0.0.1}" >/dev/null 2>&1 && return 0
    sleep 1
  done
  return 1
}

start() {
  systemctl daemon-reload
  # A socket that runs keeps what it was started with until it is started anew.
  if [ "$ROLE" = agent ]; then systemctl restart shallop-worker.socket || return 1; fi
  comes_up
}

enable() {
  if [ "$ROLE" = agent ]; then systemctl --quiet enable shallop-worker.socket shallop-agent.service; else systemctl --quiet enable shallop-fleet.service; fi
}

go_back() {
  journalctl --no-pager --lines=15 --output=cat --unit="shallop-$ROLE.service" >&2 || true
  if [ -z "$OLD" ]; then
    systemctl stop "shallop-$ROLE.service" || true
    fail "the $ROLE did not come up (its last words are above); it is stopped. Mend the cause, then run this again"
  fi
  say "the new version did not come up (its last words are above); going back to $OLD"
  place_units "$OLD"
  point_to "$OLD"
  local gone=$NEW
  NEW=''
  if start; then
    rm -rf "$gone"
    fail "the upgrade failed; the old version runs again"
  fi
  rm -rf "$gone"
  fail "the upgrade failed, and the old version does not come up either: journalctl -u shallop-$ROLE"
}

tidy() {
  local status=$?
  [ -z "$TEMPORARY" ] || rm -f "$TEMPORARY"
  # An environment that is not the one in use was not finished.
  if [ -n "$NEW" ] && [ "$(readlink -f "$OPT/$ROLE")" != "$NEW" ]; then rm -rf "$NEW"; fi
  exit "$status"
}

prune() {
  local path kept
  kept=$(readlink -f "$OPT/$ROLE")
  for path in "$OPT/$ROLE"-*; do [ "$path" = "$kept" ] || rm -rf "$path"; done
}

install_role() {
  check_other_way
  check_python
  check_source
  OLD=$(readlink -f "$OPT/$ROLE" || true)
  [ -d "$OLD" ] || OLD=''
  build
  make_users
  configure
  rehearse
  place_units "$NEW"
  point_to "$NEW"
  allow_restarts
  set_up_mosquitto
  enable
  if booted && [ "$START" = yes ]; then start || go_back; fi
  prune
  say "Shallop's $ROLE $("$OPT/$ROLE/bin/python" -c 'import importlib.metadata as m; print(m.version("shallop"))') is installed$(booted && [ "$START" = yes ] && echo " and runs: systemctl status shallop-$ROLE")"
}

# --- taking it away ----------------------------------------------------------------------------------

uninstall_role() {
  local unit
  for unit in $(units); do
    # The template has no state of its own; its instances end with the agent whose trials they are.
    if [[ $unit != *@.service ]] && systemctl cat "$unit" >/dev/null 2>&1; then
      ! booted || systemctl stop "$unit" || true
      systemctl --quiet disable "$unit" || true
    fi
    [ "$PACKAGED" = yes ] || rm -f "$LIB/systemd/system/$unit"
  done
  if [ "$PACKAGED" = no ]; then
    rm -f "$LIB/sysusers.d/shallop-$ROLE.conf" "$LIB/tmpfiles.d/shallop-$ROLE.conf" "/usr/local/bin/shallop-$ROLE"
  fi
  rm -rf "${OPT:?}/$ROLE" "$OPT/$ROLE"-*
  rmdir --ignore-fail-on-non-empty "$OPT" 2>/dev/null || true
  ! booted || systemctl daemon-reload
  if [ "$PURGE" = no ]; then
    say "Shallop's $ROLE is gone; kept: /var/lib/$(user), $ETC (with --purge they go too)"
    return
  fi
  rm -rf "/var/lib/$(user)" "$ETC/$ROLE.yaml"
  if [ "$ROLE" = fleet ] && [ -d "$BROKER_FILES" ]; then
    if grep -qs "$BROKER_FILES" "$MOSQUITTO"; then
      say "$BROKER_FILES is kept: $MOSQUITTO names it, and Mosquitto would not start without"
    else
      rm -rf "$BROKER_FILES"
    fi
  fi
  rmdir --ignore-fail-on-non-empty "$ETC" 2>/dev/null || true
  if [ "$ROLE" = agent ]; then rm -rf /run/shallop "$POLKIT/60-shallop.rules"; fi
  ! getent passwd "$(user)" >/dev/null || userdel "$(user)"
  say "Shallop's $ROLE is gone with all its data"
}

main() {
  parse "$@"
  check_machine
  umask 022
  mkdir -p /run/lock # and not `install -d`, which would close it to everyone else
  exec 9>/run/lock/shallop-install.lock
  flock --nonblock 9 || fail "another install.sh is at work"
  if [ "$UNINSTALL" = yes ]; then uninstall_role; else
    trap tidy EXIT
    install_role
  fi
}

main "$@"
