#!/usr/bin/env bash
# Holds together what the server exports, what Prometheus' rules and alerts read and what the Grafana
# dashboard shows; runs the rules' own tests; and lets Prometheus scrape a busy server and answer every
# query of the dashboard. Prints one PASS or FAIL line per check and exits non-zero if one failed, with 77
# if none did but there is no Prometheus to test the rest with. BUILD names the directory of the programs
# (default: build).
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1
build=${BUILD:-build}
work=$(mktemp -d)
server="" traffic=""
trap '[ -z "$traffic" ] || kill "$traffic" 2>/dev/null
      [ -z "$server" ] || kill "$server" 2>/dev/null; wait; rm -rf "$work"' EXIT
failed=0

check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        echo "PASS $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        sed 's/^/     /' "$work/out" | head -n 40
    fi
}

# --- a server with something to count ---

start_server() {
    "$build/xmoe-bench" --quiet --make-only --layers 4 --embedding 64 --heads 4 --experts 8 \
        --expert-feed-forward 32 --feed-forward 128 --vocabulary 600 --moe-every 2 --type F32 \
        --context 256 --model-file "$work/tiny.gguf" || return 1
    "$build/xmoe-server" --model "$work/tiny.gguf" --port 0 --threads 1 --log-format json \
        --metrics-expert-tokens full --trace-file "$work/trace.csv" 2>"$work/log" &
    server=$!
    for ((try = 0; try < 300; try++)); do
        url=$(grep -o 'http://127.0.0.1:[0-9]*' "$work/log" 2>/dev/null | head -n 1)
        [ -n "$url" ] && curl -sf "$url/ready" >"$work/out" && return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/log"
    return 1
}
complete() { # NUMBER: a prompt that the prefix cache knows from the second time on, and one that it does not
    curl -sf "$url/v1/completions" -H 'Content-Type: application/json' \
        -d '{"prompt": "Once upon a time there was a king who had a daughter", "max_tokens": 20}' &&
        curl -sf "$url/v1/completions" -H 'Content-Type: application/json' \
            -d '{"prompt": "'"$1"' bottles", "n": 2, "max_tokens": 10, "ignore_eos": true}'
}
read_metrics() {
    complete 1 && complete 2 && curl -sf "$url/metrics" >"$work/metrics"
}
keep_busy() {
    for ((number = 3; ; number++)); do
        complete $number
        sleep 0.2
    done >"$work/answers" 2>&1
}
if ! start_server; then
    echo "FAIL a server to watch"
    exit 1
fi
check "a server under load" read_metrics

# --- names ---

check "metrics, rules and dashboard name the same things" \
    python3 tests/monitor/check_metrics.py "$work/metrics"

# --- Prometheus ---

check_exposition() {
    # vLLM calls this histogram so; its dashboards look for the name.
    promtool check metrics <"$work/metrics" 2>&1 |
        grep -v '^xmoe_iteration_tokens_total non-counter metrics should not have "_total" suffix$' >"$work/lint"
    [ ! -s "$work/lint" ] || {
        cat "$work/lint"
        return 1
    }
}
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    check "promtool: /metrics" check_exposition
    check "promtool: rules" promtool check rules deploy/prometheus/recording.yml deploy/prometheus/alerts.yml
    check "promtool: configuration" promtool check config deploy/prometheus/prometheus.yml
    check "promtool: unit tests of rules" promtool test rules tests/monitor/recording_test.yml
    check "promtool: unit tests of alerts" promtool test rules tests/monitor/alerts_test.yml
    keep_busy &
    traffic=$!
    check "Prometheus: every query of the dashboard has data" \
        python3 tests/monitor/query_dashboard.py "${url#http://}" "$work"
else
    echo "SKIPPED: rules, alerts and the dashboard's queries are not tested, for Prometheus is missing" \
        "(deploy/install-deps.sh monitor)"
    [ "$failed" -ne 0 ] || exit 77
fi

[ "$failed" -eq 0 ]
