#!/usr/bin/env bash
# One part of what only a GPU can show, in at most nine minutes; what is not finished then goes on at the next call.
#
#   benchmarks/gpu/run.sh doctor | check | zoo-speed-gpu | fwpkm-speed-gpu | extrapolation | paper-main
#
# OUT: where results go (default runs/gpu). DEVICE: default cuda. SCALE=toy: the same at tiny sizes, to see that it runs
# (with DEVICE=cpu on any machine). MINUTES: default 8.5. MIXERZOO: the command, if it is not on the path.
set -euo pipefail
part=${1:?name a part: doctor, check, or a suite}
out=${OUT:-runs/gpu} device=${DEVICE:-cuda} minutes=${MINUTES:-8.5}
read -ra mixerzoo <<<"${MIXERZOO:-mixerzoo}"
mkdir -p "$out"

case $part in
doctor) # right and fastest kernels, as this machine has them
  "${mixerzoo[@]}" doctor --device "$device" --json >"$out/doctor.json" || status=$?
  "${mixerzoo[@]}" doctor --device "$device" --markdown >"$out/doctor.md" || status=$?
  cat "$out/doctor.md"
  exit "${status:-0}"
  ;;
check) # the contract, every mixer
  "${mixerzoo[@]}" check --all --device "$device" --out "$out/check"
  ;;
*) # a suite; 3 says that it stopped after its time, and is to be called again
  scale=()
  if [ "${SCALE:-full}" = toy ]; then scale=(--scale toy); fi
  "${mixerzoo[@]}" run "$part" --device "$device" --out "$out/$part" --minutes "$minutes" --no-estimate "${scale[@]}"
  "${mixerzoo[@]}" report "$out/$part"
  ;;
esac
