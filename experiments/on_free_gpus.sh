#!/bin/bash
# A command with GPUs of its own, as `make` starts its trainings: by as many processes as like, of one `make` or of many.
#
# Usage: on_free_gpus.sh LOCKS EACH 'GPU ...' COMMAND ...
#   LOCKS: a folder; a lock on a file there holds a GPU and ends with the command, whichever way
#
# Of the groups of EACH that the GPUs make, the first that is free is taken; where none is, the first with one training on
# it, and so on.
set -u
locks=$1/$(uname -n) each=$2 gpus=($3)
shift 3

mkdir -p "$locks" || exit
listed=$(nvidia-smi -L 2> /dev/null)
name_of() { # a GPU by its number → its UUID, as jobs that see but some of the GPUs number them otherwise
  local uuid=
  [[ $1 =~ ^[0-9]+$ ]] && uuid=$(sed -nE "s/^GPU $1:.*\(UUID: ([^)]*)\).*/\1/p" <<< "$listed")
  echo "${uuid:-${1//\//-}}"
}
for ((place = 0; ; place++)); do
  round=$((place / (${#gpus[@]} / each))) mine=("${gpus[@]:place % (${#gpus[@]} / each) * each:each}") held=()
  for gpu in "${mine[@]}"; do
    exec {lock}> "$locks/$(name_of "$gpu").$round" || exit
    held+=("$lock")
    flock --nonblock "$lock" && continue
    (($? == 1)) || continue # this file system, or machine, has no locks
    for lock in "${held[@]}"; do exec {lock}>&-; done
    continue 2
  done
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}") exec "$@"
done
