#!/usr/bin/env bash
# The dashboard in headless Chromium, as a reader uses it, alone and beside the API, the trace and the
# metrics. Prints one PASS or FAIL line per check and exits non-zero if one failed, with 77 where there
# is no browser to test with. BUILD names the directory of the programs (default: build).
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1

missing=
command -v chromium >/dev/null || missing="$missing chromium"
command -v chromedriver >/dev/null || missing="$missing chromium-driver"
/usr/bin/python3 -c 'import selenium' 2>/dev/null || missing="$missing python3-selenium"
if [ -n "$missing" ]; then
    echo "SKIPPED: the dashboard is not tested, for this is missing:$missing (deploy/install-deps.sh browser)"
    exit 77
fi
failed=0
for script in tests/browser/test_*.py; do
    timeout 900 /usr/bin/python3 "$script" || failed=1
done
exit $failed
