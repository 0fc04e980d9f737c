#!/usr/bin/env bash
# Makes a Debian package of the agent: units, commands, and the wheels from which its postinst makes the
# environment under /opt/shallop, by install.sh. It is for one architecture and one version of Python.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUNTIME=onnx PYTHON='' ARCH=$(uname -m) WHEELS=''

usage() {
  cat <<'TEXT'
usage: deb.sh [options] FOLDER

  --runtime NAME   onnx, tflite or none (default: onnx)
  --python X.Y     version of the Python that will use it (default: /usr/bin/python3's)
  --arch NAME      x86_64 or aarch64 (default: this machine's)
  --wheels FOLDER  that wheels.sh filled for them (default: it is asked to)
  --help           this text

example, on a laptop for a 64-bit Raspberry Pi with Debian 12's Python:
  systemd/deb.sh --arch aarch64 --python 3.11 dist

exit codes: 0 done; 1 it failed; 2 wrong usage
TEXT
}

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$HERE/arguments.sh"
arguments "RUNTIME PYTHON ARCH WHEELS" "$@"
case $RUNTIME in onnx | tflite) EXTRAS=$RUNTIME ;; none) EXTRAS='' ;; *) refuse "--runtime is onnx, tflite or none, not $RUNTIME" ;; esac
case $ARCH in x86_64) DEBIAN=amd64 ;; aarch64) DEBIAN=arm64 ;; *) refuse "--arch is x86_64 or aarch64, not $ARCH" ;; esac
command -v dpkg-deb >/dev/null || refuse "dpkg-deb is not installed: apt-get install dpkg"
[ -n "$PYTHON" ] || PYTHON=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ $PYTHON =~ ^3\.[0-9]+$ ]] || refuse "--python is a version such as 3.11, not $PYTHON"

TREE=$(mktemp -d)
trap 'rm -rf "$TREE"' EXIT
chmod 755 "$TREE"
umask 022
SHARE=$TREE/usr/share/shallop

if [ -n "$WHEELS" ]; then
  install -m 644 -D -t "$SHARE/wheels" "$WHEELS"/*.whl
else
  "$HERE/wheels.sh" --extras "$EXTRAS" --python "$PYTHON" --arch "$ARCH" "$SHARE/wheels"
fi
release=$(basename "$SHARE"/wheels/shallop-*.whl | cut -d- -f2)

install -m 755 -D -t "$SHARE" "$HERE/install.sh"
install -m 644 -D -t "$SHARE/config" "$HERE/config/agent.yaml"
install -m 644 -D -t "$SHARE/polkit" "$HERE/polkit/60-shallop.rules"
install -m 644 -D -t "$TREE/usr/lib/systemd/system" "$HERE"/units/shallop-agent.service "$HERE"/units/shallop-worker*
install -m 644 -D -t "$TREE/usr/lib/sysusers.d" "$HERE/sysusers.d/shallop-agent.conf"
install -m 644 -D -t "$TREE/usr/lib/tmpfiles.d" "$HERE/tmpfiles.d/shallop-agent.conf"
install -m 755 -D "$HERE/shallop-agent.sh" "$TREE/usr/bin/shallop-agent"
install -m 644 -D "$HERE/../LICENSE" "$TREE/usr/share/doc/shallop-agent/copyright"
install -m 644 -D -t "$TREE/usr/share/doc/shallop-agent" "$HERE/../docs/install.md"

mkdir "$TREE/DEBIAN"
cat >"$TREE/DEBIAN/control" <<TEXT
Package: shallop-agent
Version: $release-py${PYTHON#3.}
Architecture: $DEBIAN
Maintainer: The Shallop developers <shallop@invalid>
Installed-Size: $(du -sk "$TREE/usr" | cut -f1)
Depends: python3 (>= $PYTHON), python3 (<< 3.$((${PYTHON#3.} + 1))), python3-venv, systemd (>= 247)
Recommends: polkitd
Section: misc
Priority: optional
Description: carries neural networks to this machine and proves them here
 The agent of Shallop: it fetches signed models over MQTT, tries them on this
 machine, switches atomically, and can always turn back. Its Python packages
 live in an environment of their own under /opt/shallop.
TEXT
cat >"$TREE/DEBIAN/postinst" <<TEXT
#!/bin/sh
set -e
[ "\$1" != configure ] || /usr/share/shallop/install.sh --agent --packaged --runtime $RUNTIME --wheels /usr/share/shallop/wheels
TEXT
cat >"$TREE/DEBIAN/prerm" <<'TEXT'
#!/bin/sh
set -e
[ "$1" != remove ] || /usr/share/shallop/install.sh --agent --packaged --uninstall
TEXT
cat >"$TREE/DEBIAN/postrm" <<'TEXT'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
  rm -rf /var/lib/shallop /etc/shallop/agent.yaml /run/shallop /etc/polkit-1/rules.d/60-shallop.rules
  rmdir --ignore-fail-on-non-empty /etc/shallop 2>/dev/null || true
  ! getent passwd shallop >/dev/null || userdel shallop
fi
[ ! -d /run/systemd/system ] || systemctl daemon-reload
TEXT
chmod 755 "$TREE"/DEBIAN/p*

mkdir -p "$FOLDER"
# Wheels are compressed already.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$TREE" "$FOLDER" >/dev/null
echo "deb.sh: $FOLDER/shallop-agent_$release-py${PYTHON#3.}_$DEBIAN.deb"
