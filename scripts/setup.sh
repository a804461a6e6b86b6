#!/usr/bin/env bash
# Make .venv hold everything r1lab needs: `make setup`, or DEVICE=gpu make setup.
#
#   DEVICE   cpu (default) or gpu     PYTHON   the interpreter (default: python3, 3.11 or newer)
#   VENV     where (default: .venv)
#
# What was installed is recorded in $VENV/.r1lab-installed; as long as nothing that it depends on
# changes, running this again does nothing. Wheels in PIP_FIND_LINKS are used before any index's.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${DEVICE:-cpu}
venv=${VENV:-.venv}
uv_version=0.13.9
pytorch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: cannot go on: %s\n' "$*" >&2
    exit 1
}

case $device in
cpu) gib_needed=5 ;;
gpu) gib_needed=16 ;;
*) fail "DEVICE=$device is neither cpu nor gpu" ;;
esac
[ "$(uname -s)" = Linux ] ||
    fail "vLLM's builds are for Linux; here use pip install -e '.[train]' and sampling.engine: transformers"

# --- Python ---
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
python=
for candidate in "${PYTHON:-python3}" ${PYTHON:+:} python3.11 python3.12 python3.13; do
    [ "$candidate" = : ] && break # PYTHON was named: no other will do
    case $(version_of "$candidate" || true) in 3.1[1-4]) python=$candidate && break ;; esac
done
[ -n "$python" ] || fail "Python 3.11 to 3.14 is needed, and ${PYTHON:-python3} is\
 $(version_of "${PYTHON:-python3}" || echo 'not there'); install one (apt install python3.11\
 python3.11-venv) and name it: make setup PYTHON=python3.11"

# --- Is there anything to do? ---
inputs=(requirements/"$device".txt requirements/dev.txt requirements/override.txt pyproject.toml
    scripts/setup.sh)
state="$device $(version_of "$python") $PWD $(cat "${inputs[@]}" | sha256sum | cut -c1-64)"
stamp=$venv/.r1lab-installed
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    say "$venv is up to date ($device)"
    exit 0
fi

# --- The environment ---
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python's venv module is missing; install it (apt install python$(version_of "$python")-venv)"
    gib_free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1048576))
    [ "$gib_free" -ge "$gib_needed" ] ||
        fail "$gib_free GiB are free in $PWD, and the packages need $gib_needed"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "$python -m venv $venv failed, see above"
fi
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" ||
    fail "uv $uv_version cannot be installed: pip reaches no package index (see above)"

# uv reads neither pip's settings nor an activated environment's name for .venv.
export VIRTUAL_ENV="$PWD/$venv"
case $venv in /*) VIRTUAL_ENV=$venv ;; esac
links=${PIP_FIND_LINKS:-$("$venv/bin/pip" config get global.find-links 2>/dev/null || true)}
links=$(xargs <<<"$links" | tr ' ' ',')
[ -n "${UV_FIND_LINKS:-}" ] || [ -z "$links" ] || export UV_FIND_LINKS=$links
install=("$venv/bin/uv" pip install)
requirements=(-r "requirements/$device.txt" -r requirements/dev.txt)

# --- torch for the CPU: from the wheels at hand, else from PyTorch's own index ---
if [ "$device" = cpu ]; then
    requirements+=(--override requirements/override.txt)
    torch=$(grep -o '^torch==[^ ;]*' requirements/cpu.txt)
    if ! "${install[@]}" --quiet --dry-run --no-deps "$torch" 2>/dev/null; then
        say "fetching $torch from $pytorch_cpu_index"
        UV_HTTP_TIMEOUT=30 UV_HTTP_RETRIES=1 "${install[@]}" --no-deps \
            --default-index "$pytorch_cpu_index" "$torch" ||
            fail "no wheel of $torch: neither in PIP_FIND_LINKS (${links:-not set}) nor at\
 $pytorch_cpu_index; put one in a folder and set PIP_FIND_LINKS to it"
    fi
fi

say "installing the packages of requirements/$device.txt and dev.txt (a few minutes the first time)"
# Bytecode now: where PYTHONDONTWRITEBYTECODE is set, as in many containers, Python would compile the
# 5,000 modules behind vLLM anew in every process, for half a minute.
"${install[@]}" --compile-bytecode "${requirements[@]}" ||
    fail "the packages above cannot be installed"
"${install[@]}" --quiet --no-deps --no-build-isolation --editable . ||
    fail "r1lab itself cannot be installed, see above"

"$venv/bin/python" -c 'import torch, r1lab.rewards, r1lab.data' ||
    fail "the installed packages do not work together, see above"
printf '%s\n' "$state" >"$stamp"
say "done: $venv holds $(du -sh "$venv" | cut -f1); 'source $venv/bin/activate' to use it"
