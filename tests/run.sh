#!/usr/bin/env bash
# Runs every test: the programs as a user runs them, the unit tests under ASan+UBSan, those with
# threads under TSan, and the unit tests as shipped. Prints cmocka's totals per binary and, on the last
# line, their sum. A script that exits with 77, as a test that says SKIPPED, could not test here.
# XMOE_TESTS="plain address thread tools" picks parts.
set -u
cd "$(dirname "$0")/.."
export LC_ALL=C
parts=${XMOE_TESTS:-tools address thread plain}
threaded="base moe scheduler engine server usage"
passed=0 failed=0 skipped=0
results=$(mktemp -d)
export results
trap 'rm -rf "$results"' EXIT

# run_binary PATH: prints its failures and totals, in one piece as others run beside it; leaves
# "PASSED FAILED SKIPPED" in a file of $results.
run_binary() {
    local started=$SECONDS status=0 result=$results/${1//\//-} good bad left
    timeout 300 "$1" >"$result.log" 2>&1 || status=$?
    good=$(total PASSED <"$result.log") bad=$(total FAILED <"$result.log") left=$(total SKIPPED <"$result.log")
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
        bad=1
    fi
    {
        grep -h 'SKIPPED' "$result.log"
        if [ "$status" -ne 0 ]; then
            tail -n 60 "$result.log"
            echo "$1: exit status $status"
        fi
        echo "$1: $good passed, $bad failed ($((SECONDS - started)) s)"
    } >"$result.report"
    cat "$result.report"
    echo "$good $bad $left" >"$result"
}

# total WORD: the sum of cmocka's lines "[  WORD  ] N test(s)" on stdin; a program may have several.
total() {
    sed -n "s/^\\[  $1 *\\] \\([0-9]*\\) test.*/\\1/p" | awk '{n += $1} END {print n + 0}'
}
export -f run_binary total

# run_suite SANITIZER [NAME...]: builds and runs the unit tests whose names begin so (none: all).
run_suite() {
    local sanitizer=$1 directory=build${1:+/$1} targets=() source name wanted
    shift
    for source in tests/test_*.c; do
        name=$(basename "$source" .c)
        for wanted in "${@:-}"; do
            case $name in test_$wanted*) targets+=("$directory/tests/$name") ;; esac
        done
    done
    if ! make -s -j"$(nproc)" SANITIZER="$sanitizer" "${targets[@]}"; then
        failed=$((failed + 1))
        return
    fi
    # A test's threads are few and often wait: as many tests at a time as there are CPUs.
    printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run_binary {}'
    local good bad left
    for name in "${targets[@]}"; do
        read -r good bad left <"$results/${name//\//-}" || good=0 bad=1 left=0
        passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + left))
    done
}

for part in $parts; do
    echo "=== $part"
    case $part in
    plain) run_suite "" ;;
    address) run_suite address ;;
    thread) run_suite thread $threaded ;;
    tools)
        for script in tests/*_test.sh; do
            status=0
            "$script" || status=$?
            case $status in
            0) passed=$((passed + 1)) ;;
            77) skipped=$((skipped + 1)) ;;
            *) failed=$((failed + 1)) && echo "$script: failed" ;;
            esac
        done
        ;;
    *) echo "run.sh: unknown part '$part'" >&2 && exit 2 ;;
    esac
done

[ "$skipped" -eq 0 ] || echo "SKIPPED: $skipped, see above"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
