#!/usr/bin/env bash
# Drives the command line tools as a user does, on models of random weights made on the spot. Prints
# one PASS or FAIL line per check and exits non-zero if one failed. BUILD names the directory of the
# programs (default: build).
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C
build=${BUILD:-build}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

report() { # STATUS NAME
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1))
        echo "PASS $2"
    else
        failed=$((failed + 1))
        echo "FAIL $2"
        sed 's/^/     /' "$work/out" "$work/err" 2>/dev/null | head -n 20
    fi
}

# run STATUS TOOL ARGUMENT...: output in $work/out and $work/err; true if it exits with STATUS.
run() {
    local wanted=$1 tool=$2 status=0
    shift 2
    timeout 120 "$build/xmoe-$tool" "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
    [ "$status" -eq "$wanted" ] || {
        echo "exit status $status instead of $wanted" >>"$work/err"
        return 1
    }
}

# check NAME COMMAND...: one check that is a command.
check() {
    local name=$1
    shift
    "$@"
    report $? "$name"
}

says() { # TEXT FILE: the file holds the text
    grep -qF -- "$1" "$work/$2"
}

# json EXPRESSION: Python over the JSON in $work/out as r.
json() {
    python3 - "$1" "$work/out" 2>>"$work/err" <<'PYTHON'
import json, math, sys
r = json.load(open(sys.argv[2]))
sys.exit(0 if eval("(" + sys.argv[1] + ")") else 1)
PYTHON
}

# --- command lines ---

common() { # TOOL
    run 0 "$1" --help && says "Usage: xmoe-$1" out && says "Exit codes" out && [ ! -s "$work/err" ] &&
        run 0 "$1" --version && grep -qE "^xmoe-$1 [0-9]+\.[0-9]+\.[0-9]+$" "$work/out" &&
        run 2 "$1" --no-such-flag && says "--no-such-flag" err && [ ! -s "$work/out" ]
}
for tool in generate train quantize eval bench inspect; do
    check "$tool: help, version, unknown flag" common $tool
done

wrong() { # TEXT TOOL ARGUMENT...: a wrong command line whose message holds TEXT
    local text=$1
    shift
    run 2 "$@" && says "$text" err && [ ! -s "$work/out" ]
}
check "flag out of range" wrong "--threshold" generate --threshold 1.5 x
check "flag at an open bound" wrong "--threshold" generate --threshold 0 x
check "flag that is no number" wrong "--max-tokens" generate --max-tokens=ten x
check "number beyond its type" wrong "--max-tokens" generate --max-tokens 99999999999 x
check "not a number at all" wrong "--temperature" generate --temperature nan x
check "flag without its value" wrong "--seed" generate --seed
check "unknown choice" wrong "Q9_9" quantize --type Q9_9 a b
check "missing argument" wrong "INPUT OUTPUT" quantize a
check "argument too many" wrong "'b'" inspect a b
check "broken list" wrong "--thresholds" eval --thresholds 0.5,,1 x
check "contradicting flags" wrong "--csv" eval --csv --json x
check "missing model" run 1 generate --model "$work/none.gguf" x

# --- random model ---

model=$work/tiny.gguf
small=(--layers 4 --embedding 64 --heads 4 --experts 8 --expert-feed-forward 32 --feed-forward 128
    --vocabulary 600 --moe-every 2 --type F32)
make_models() {
    run 0 bench --quiet --make-only "${small[@]}" --context 128 --model-file "$model" &&
        run 0 bench --quiet --make-only "${small[@]}" --context 128 --model-file "$work/again.gguf" &&
        cmp "$model" "$work/again.gguf" &&
        run 0 bench --quiet --make-only "${small[@]}" --context 128 --model-seed 2 \
            --model-file "$work/again.gguf" &&
        ! cmp -s "$model" "$work/again.gguf"
}
check "random model: same seed, same file" make_models

# --- inspect ---

inspect_text() {
    run 0 inspect "$model" && says "xmoe" out && says "215552" out && says "threshold" out
}
inspect_json() {
    run 0 inspect --json --keys --tensors "$model" &&
        json 'r["architecture"] == "xmoe" and r["parameters"] == 215552 and
              len(r["tensors"]) == r["all"]["tensors"] and
              sum(t["bytes"] for t in r["tensors"]) == r["all"]["bytes"] and
              any(k["key"] == "xmoe.expert_count" and k["value"] == "8" for k in r["keys"])'
}
inspect_tables() {
    run 0 inspect --tensors "$model" && says "blk.1.ffn_gate_inp.weight" out &&
        run 0 inspect --keys "$model" && says "tokenizer.ggml.tokens" out
}
inspect_refuses() {
    head -c 1000 "$model" >"$work/cut.gguf"
    run 1 inspect "$work/cut.gguf" && [ -s "$work/err" ] && [ ! -s "$work/out" ]
}
check "inspect: summary" inspect_text
check "inspect: JSON" inspect_json
check "inspect: tables" inspect_tables
check "inspect: a cut file is refused" inspect_refuses

# --- quantize ---

quantize() {
    run 0 quantize --type Q8_0 "$model" "$work/q8.gguf" && run 0 inspect --json "$work/q8.gguf" &&
        json 'r["parameters"] == 215552 and r["experts"]["bytes"] < 100000 and
              r["types"]["Q8_0"]["elements"] > r["types"]["F32"]["elements"]' &&
        run 0 generate --quiet --model "$work/q8.gguf" --max-tokens 5 Hello
}
quantize_refuses() {
    run 1 quantize "$work/cut.gguf" "$work/never.gguf" && [ ! -e "$work/never.gguf" ] &&
        run 1 quantize "$model" "$work/no/such/directory.gguf"
}
check "quantize: smaller, and it runs" quantize
check "quantize: no half output" quantize_refuses

# --- generate ---

generate() {
    run 0 generate --quiet --model "$model" --max-tokens 30 --ignore-eos "$@"
}
repeatable() {
    generate --seed 3 'Once upon' && cp "$work/out" "$work/first" && generate --seed 3 'Once upon' &&
        cmp "$work/out" "$work/first" && generate --seed 3 --threads 1 --isa scalar 'Once upon' &&
        cmp "$work/out" "$work/first" && generate --seed 4 'Once upon' &&
        ! cmp -s "$work/out" "$work/first"
}
from_stdin() {
    generate --seed 3 'Once upon' && cp "$work/out" "$work/first" &&
        printf 'Once upon\n' | "$build/xmoe-generate" --quiet --model "$model" --max-tokens 30 \
            --ignore-eos --seed 3 >"$work/out" && cmp "$work/out" "$work/first"
}
generate_json() {
    generate --json --expert-usage --threshold 0.5 --temperature 0 'Once upon' &&
        json 'r["finish"] == "length" and r["completion_tokens"] == 30 and
              all(sum(l["counts"]) == l["activations"] == sum(i * n for i, n in
                  enumerate(l["active_histogram"])) and sum(l["active_histogram"]) == l["tokens"] ==
                  r["prompt_tokens"] + 29 for l in r["expert_usage"]["layers"])'
}
all_experts() {
    generate --json --router dense x && json 'r["mean_active_experts"] == 8' &&
        generate --json --top-k-experts 3 x && json 'r["mean_active_experts"] == 3' &&
        generate --json --threshold 1 --max-experts 2 x && json 'r["mean_active_experts"] == 2'
}
usage_table() {
    run 0 generate --model "$model" --max-tokens 5 --expert-usage x && says "most used" err &&
        says "finish:" err
}
stop_text() {
    generate --json --seed 3 'Once upon' &&
        word=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["text"][4:6])' "$work/out") &&
        generate --json --seed 3 --stop "$word" 'Once upon' &&
        json 'r["finish"] == "stop" and len(r["text"]) <= 4'
}
full_disk() {
    local status=0
    "$build/xmoe-generate" --quiet --model "$model" --max-tokens 30 x >/dev/full 2>"$work/err" ||
        status=$?
    [ "$status" -eq 1 ] && says "stdout" err
}
too_long() {
    run 1 generate --model "$model" "$(printf 'a b c d %.0s' {1..200})" && says "128" err
}
interrupt() {
    run 0 bench --quiet --make-only "${small[@]}" --context 60000 --model-file "$work/long.gguf" || return 1
    "$build/xmoe-generate" --model "$work/long.gguf" --max-tokens 59000 --ignore-eos x \
        >"$work/out" 2>"$work/err" &
    local job=$! status=0
    for _ in {1..100}; do
        [ -s "$work/out" ] && break
        sleep 0.05
    done
    kill -INT "$job"
    wait "$job" || status=$?
    [ "$status" -eq 130 ] && [ -s "$work/out" ] && says "cancelled" err
}
check "generate: same seed, same text, on any threads and kernels" repeatable
check "generate: prompt from stdin" from_stdin
check "generate: JSON and the identities of expert usage" generate_json
check "generate: routers" all_experts
check "generate: table of experts" usage_table
check "generate: stop text" stop_text
check "generate: a full disk is an error" full_disk
check "generate: a prompt beyond the context is an error" too_long
check "generate: empty prompt" generate ''
check "generate: Ctrl-C ends the text early" interrupt

# --- eval ---

python3 - "$work" <<'PYTHON'
import random, sys
random.seed(1)
words = "the of and to in he was that it with as for had you be is not on at by".split()
def text(n): return " ".join(random.choice(words) for _ in range(n)) + "\n"
sep = "<|endoftext|>\n"
open(sys.argv[1] + "/a.txt", "w").write(text(40) + sep + text(300) + sep + sep + text(7))
open(sys.argv[1] + "/b.txt", "wb").write(text(100).encode() + b"caf\xc3\xa9 \xff <|endoftext|> inside\n")
PYTHON

evaluate() {
    run 0 eval --quiet --model "$model" --json "$@"
}
counts() {
    # Separator lines are not text; all else is.
    bytes=$(python3 - "$work" <<'PYTHON'
import sys
lines = [l for f in "ab" for l in open(f"{sys.argv[1]}/{f}.txt", "rb")]
print(sum(len(l) for l in lines if l != b"<|endoftext|>\n"))
PYTHON
    ) &&
        evaluate "$work/a.txt" "$work/b.txt" &&
        json "[x['documents'] for x in r['results']] == [3, 1, 4] and
              r['results'][2]['bytes'] == $bytes and r['results'][2]['file'] == 'all' and
              all(r['results'][2][k] == r['results'][0][k] + r['results'][1][k]
                  for k in ('tokens', 'bytes', 'positions')) and
              abs(r['results'][2]['nats'] - r['results'][0]['nats'] - r['results'][1]['nats']) < 1e-3" &&
        json "all(abs(x['bits_per_byte'] - x['nats'] / math.log(2) / x['bytes']) < 1e-6 and
                  abs(x['loss'] - x['nats'] / x['tokens']) < 1e-6 and
                  abs(x['perplexity'] / math.exp(x['loss']) - 1) < 1e-6 and
                  x['positions'] >= x['tokens'] for x in r['results'])"
}
same_in_any_company() {
    evaluate --parallel 1 "$work/a.txt" && python3 -m json.tool "$work/out" | grep nats >"$work/first" &&
        evaluate --parallel 16 --threads 1 "$work/a.txt" && python3 -m json.tool "$work/out" |
        grep nats >"$work/second" && cmp "$work/first" "$work/second"
}
windows() {
    # Every token once, whatever the windows are.
    evaluate "$work/a.txt" && tokens=$(python3 -c \
        'import json,sys; print(json.load(open(sys.argv[1]))["results"][0]["tokens"])' "$work/out") &&
        evaluate --window 33 --stride 7 "$work/a.txt" && json "r['results'][0]['tokens'] == $tokens" &&
        evaluate --window 128 --stride 127 "$work/a.txt" &&
        json "r['results'][0]['tokens'] == $tokens" &&
        run 2 eval --model "$model" --window 64 --stride 64 "$work/a.txt" &&
        run 2 eval --model "$model" --window 129 "$work/a.txt"
}
sweep() {
    evaluate --thresholds 0.3,0.6,1 --expert-usage "$work/b.txt" &&
        json 'len(r["results"]) == 3 and r["results"][2]["mean_active"] == 8 and
              1 <= r["results"][0]["mean_active"] < r["results"][1]["mean_active"] < 8 and
              r["results"][0]["expert_bytes_per_token"] < r["results"][2]["expert_bytes_per_token"] and
              all(l["tokens"] == x["positions"] for x in r["results"] for l in
                  x["expert_usage"]["layers"])'
}
eval_csv() {
    run 0 eval --quiet --model "$model" --csv --thresholds 0.5,1 "$work/a.txt" "$work/b.txt" &&
        python3 - "$work/out" <<'PYTHON'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1])))
ok = len(rows) == 6 and all(None not in r and None not in r.values() for r in rows)
sys.exit(0 if ok and rows[2]["file"] == "all" and float(rows[5]["mean_active"]) == 8 else 1)
PYTHON
}
eval_table() {
    run 0 eval --model "$model" --expert-usage "$work/a.txt" && says "bits/B" out && says "most used" out
}
eval_refuses() {
    : >"$work/empty.txt"
    run 1 eval --quiet --model "$model" "$work/empty.txt" && says "empty.txt" err &&
        run 1 eval --quiet --model "$model" "$work/none.txt" && says "none.txt" err
}
check "eval: what is counted" counts
check "eval: same figures in any company" same_in_any_company
check "eval: windows" windows
check "eval: thresholds" sweep
check "eval: CSV" eval_csv
check "eval: table" eval_table
check "eval: files without text are errors" eval_refuses

# --- bench ---

bench() {
    run 0 bench --quiet --model "$model" --repeats 1 --max-sequences 2 --tokens 16 --json &&
        json '[x["measure"] for x in r["results"]] ==
              ["bandwidth", "peak"] + ["decode"] * 5 + ["prefill", "overhead"] and
              all(x["minimum"] <= x["median"] <= x["maximum"] and x["median"] > 0
                  for x in r["results"])'
}
bench_csv() {
    run 0 bench --quiet --model "$model" --repeats 1 --max-sequences 1 --tokens 8 --csv \
        --thresholds 0.4 && [ "$(wc -l <"$work/out")" -eq 7 ]
}
bench_table() {
    run 0 bench --quiet --model "$model" --repeats 1 --max-sequences 1 --tokens 8 && says "overhead" out
}
check "bench: JSON" bench
check "bench: CSV" bench_csv
check "bench: table" bench_table

echo "tools_test: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
