#!/bin/sh
# The command shallop-agent of a machine on which install.sh put the agent. The state belongs to user shallop:
# a command that root runs becomes that user, or it would leave files there that the agent cannot read.
program=/opt/shallop/agent/bin/shallop-agent
[ "$(id -u)" = 0 ] || exec "$program" "$@"
umask 027
HOME=/var/lib/shallop
export HOME
exec setpriv --reuid=shallop --regid=shallop --init-groups -- "$program" "$@"
