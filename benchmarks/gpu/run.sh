#!/usr/bin/env bash
# One part of what only a GPU can show, in at most nine minutes. What is not finished by then exits with 3, and goes on at
# the next call.
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
doctor) # right and fastest kernels, as this machine has them; what is found is kept, and not proven again
  status=0
  timeout --signal=INT --kill-after=10 "${minutes}m" "${mixerzoo[@]}" doctor --device "$device" --json >"$out/doctor.json" || status=$?
  if [ "$status" = 124 ]; then
    echo "stopped after $minutes minutes; call it again to go on"
    exit 3
  fi
  "${mixerzoo[@]}" doctor --device "$device" --markdown | tee "$out/doctor.md"
  ;;
check) # the contract, every mixer
  "${mixerzoo[@]}" check --all --device "$device" --out "$out/check"
  ;;
*) # a suite
  scale=()
  if [ "${SCALE:-full}" = toy ]; then scale=(--scale toy); fi
  status=0
  "${mixerzoo[@]}" run "$part" --device "$device" --out "$out/$part" --minutes "$minutes" --no-estimate "${scale[@]}" ||
    status=$?
  if [ "$status" -gt 1 ]; then exit "$status"; fi # 1: some case failed, which the report shows
  "${mixerzoo[@]}" report "$out/$part"
  exit "$status"
  ;;
esac
