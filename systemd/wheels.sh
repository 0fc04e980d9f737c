#!/usr/bin/env bash
# Fills a folder with the wheels of Shallop and of all that it needs, for install.sh --wheels: for a machine
# without a network, for a Raspberry Pi from a faster machine, and for the Debian package.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(dirname "$HERE")
EXTRAS=onnx PYTHON='' ARCH='' BUILDER=${BUILDER:-python3}

usage() {
  cat <<'TEXT'
usage: wheels.sh [options] FOLDER

  --extras NAMES    of Shallop, separated by commas (default: onnx; the registry's is fleet)
  --python X.Y      version of the Python that will use them (default: this one's)
  --arch NAME       machine that will use them, as uname -m says: x86_64 or aarch64 (default: this one's)
  --help            this text

example, on a laptop for a 64-bit Raspberry Pi with Debian 12's Python:
  systemd/wheels.sh --arch aarch64 --python 3.11 /media/stick/wheels

exit codes: 0 done; 1 it failed; 2 wrong usage
TEXT
}

# shellcheck source-path=SCRIPTDIR source=arguments.sh
. "$HERE/arguments.sh"
arguments "EXTRAS PYTHON ARCH" "$@"
[[ ! $PYTHON =~ [^0-9.] ]] || refuse "--python is a version such as 3.11, not $PYTHON"
[[ $ARCH =~ ^(x86_64|aarch64)?$ ]] || refuse "--arch is x86_64 or aarch64, not $ARCH"

pip() { "$BUILDER" -m pip "$1" --quiet --disable-pip-version-check --no-input "${@:2}"; }

target=(--only-binary=:all:)
[ -z "$PYTHON" ] || target+=(--python-version "$PYTHON")
if [ -n "$ARCH" ]; then
  # What a wheel's tag may ask of the C library: Debian 12 has 2.36, and pip takes only tags it is told.
  for libc in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    target+=(--platform "${libc}_$ARCH")
  done
fi

mkdir -p "$FOLDER"
rm -f "$FOLDER"/shallop-*.whl
pip wheel --no-deps --wheel-dir "$FOLDER" "$CHECKOUT"
wheel=$(compgen -G "$FOLDER/shallop-*.whl")
pip download --dest "$FOLDER" "${target[@]}" "$wheel${EXTRAS:+[$EXTRAS]}"
echo "wheels.sh: $(find "$FOLDER" -name '*.whl' | wc -l) wheels, $(du -sm "$FOLDER" | cut -f1) MB in $FOLDER"
