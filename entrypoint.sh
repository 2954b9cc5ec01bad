#!/bin/sh
# Runs `micronet "$@"` in the place of this shell, so that it is process 1 and the container's SIGTERM is its own.
# No init stands before it: every command handles SIGTERM, none leaves orphans, and a SIGTERM in the 0.2 s before
# Python listens is lost on process 1 (SIGKILL follows, 137: retried), where it would end a child of an init
# with 143 (not retried).
set -eu

# Docker starts in /; Apptainer starts in the folder that it was called in, which is the host's.
warn_unless_mounted() {
  while read -r _ _ _ _ point _; do
    case $1 in "$point" | "$point"/*) return ;; esac
  done </proc/self/mountinfo
  printf 'micronet: nothing is mounted at %s: the run will be gone with this container. ' "$1" >&2
  printf 'Give docker run -v DIR:%s, or --run s3://BUCKET/PREFIX\n' "$1" >&2
}

case " $* ${MICRONET_RUN:+--run }" in
  *" --run "* | *" --run="* | *" --help "* | *" -h "*) ;;
  *" train "*) warn_unless_mounted "${PWD%/}/runs" ;;
esac
exec micronet "$@"
