#!/bin/sh
# Runs `micronet "$@"` in this machine's processes of a training on several machines, under torchrun, which reads
# from the environment how many there are and where they meet:
#   PET_NNODES=2 PET_NPROC_PER_NODE=8 PET_RDZV_ENDPOINT=HOST:29400 PET_RDZV_ID=NAME nodes.sh train --shards 16 ...
# torchrun ends with 1 however its processes end. This ends as `micronet train --processes` does, with the code of
# the process that decides.
set -u

codes=$(mktemp -d) || exit 74
trap 'rm -rf "$codes"' EXIT
# The agent waits longer for its processes than any grace: whoever sends SIGTERM bounds it by SIGKILL.
# shellcheck disable=SC2016 # for the shell of each process
torchrun --no-python --rdzv-backend=c10d --shutdown-timeout=120 \
  sh -c 'trap : TERM; micronet "$@"; code=$?; echo "$code" >"$0/$RANK"; exit "$code"' "$codes" "$@" &
agent=$!
# Slurm signals every process of a step; the agent must not have it twice.
trap '[ -n "${SLURM_STEP_ID:-}" ] || kill -TERM "$agent" 2>/dev/null' TERM
wait "$agent"
ended=$?
while kill -0 "$agent" 2>/dev/null; do # a trap has interrupted `wait`
  wait "$agent"
  ended=$?
done
trap '' TERM

found=$(cat "$codes"/* 2>/dev/null | sed 's/^143$/75/') # SIGTERM before a process could answer it
for code in 76 77 78 65 2 1; do # what another attempt would end with too
  if echo "$found" | grep -qx "$code"; then exit "$code"; fi
done
other=$(echo "$found" | grep -vxE '0|75|74|137' | head -n 1)
[ -z "$other" ] || exit "$other"
for code in 75 74 137; do
  if echo "$found" | grep -qx "$code"; then exit "$code"; fi
done
# Without a process of its own that failed, an agent's 1 is that it did not meet the others, or has lost them.
if [ "$ended" = 1 ] || { [ "$ended" = 0 ] && [ -z "$found" ]; }; then exit 74; fi
exit "$ended"
