# Sourced by deb.sh and wheels.sh: options that take a value each, and one folder.
# shellcheck shell=bash

refuse() { echo "$(basename "$0"): $*" >&2; exit 2; }

# arguments "NAME ..." ARGUMENT...: --name VALUE sets NAME, the folder sets FOLDER; usage() is for --help.
arguments() {
  local names=" $1 " name
  shift
  FOLDER=''
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage; exit 0 ;;
      --*)
        name=${1#--}
        [[ $names == *" ${name^^} "* ]] || refuse "unknown argument $1; see --help"
        [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
        printf -v "${name^^}" %s "$2"
        shift ;;
      -*) refuse "unknown argument $1; see --help" ;;
      *) [ -z "$FOLDER" ] || refuse "one folder, not $FOLDER and $1"; FOLDER=$1 ;;
    esac
    shift
  done
  [ -n "$FOLDER" ] || refuse "say which folder; see --help"
}
