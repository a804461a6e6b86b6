#!/usr/bin/env bash
# Chromium and its driver for the tests of the report: `make test` runs this.
#
# Where they are there is nothing to do. On Debian and its kin, as root, they are installed by
# apt-get; elsewhere this says how, and the tests that need them are skipped with that reason.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
there() {
    command -v chromedriver >/dev/null &&
        { command -v chromium >/dev/null || command -v google-chrome >/dev/null; }
}

there && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    say "no chromium here: the tests of the report in a browser are skipped"
    say "on Debian: sudo apt-get install chromium chromium-driver"
    exit 0
fi
say "installing chromium for the tests of the report"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } \
    >"$log" 2>&1 || ! there; then
    tail -n 3 "$log"
    say "apt-get did not bring chromium: the tests of the report in a browser are skipped"
fi
