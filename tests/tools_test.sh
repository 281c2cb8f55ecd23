#!/usr/bin/env bash
# Drives the command line tools as a user does, on models of random weights made on the spot. Prints
# one PASS or FAIL line per check and exits non-zero if one failed. BUILD names the directory of the
# programs (default: build).
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C
build=${BUILD:-build}
work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; wait; rm -rf "$work"' EXIT
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
for tool in generate train quantize eval bench inspect usage; do
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
check "no type behind a pattern" wrong "PATTERN=TYPE" quantize --tensor-type token_embd.weight a b
check "missing argument" wrong "INPUT OUTPUT" quantize a
check "argument too many" wrong "'b'" inspect a b
check "broken list" wrong "--thresholds" eval --thresholds 0.5,,1 x
check "contradicting flags" wrong "--csv" eval --csv --json x
check "a trace of several routings" wrong "--trace" eval --thresholds 0.5,1 --trace t x
check "importance of several routings" wrong "--importance" eval --thresholds 0.5,1 --importance i x
check "usage in CSV" wrong "--expert-usage" eval --csv --expert-usage x
check "a weight of nothing" wrong "--weights" train --domains en,fr --weights 1,0
check "groups that do not divide" wrong "--groups" train --bench --groups 8 --sequences 4
check "two things at once" wrong "--bench" train --bench --evaluate m x
check "unknown command" wrong "'sing'" usage sing
check "command without its arguments" wrong "compare A B" usage compare a
check "flag of another command" wrong "--title" usage show --title x a
check "picture over a usage file" wrong ".svg" usage draw a.json b.json
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
quantize_mix() { # patterns, notes
    run 0 quantize --type Q4_K_M --tensor-type '*ffn_up_exps*=Q5_0' --tensor-type '*.1.*=Q4_1' \
        "$model" "$work/mix.gguf" && says "rows that are not whole" err &&
        run 0 inspect --json --tensors --keys "$work/mix.gguf" &&
        json '{t["name"]: t["type"] for t in r["tensors"]}["blk.1.ffn_up_exps.weight"] == "Q4_1" and
              {t["name"]: t["type"] for t in r["tensors"]}["blk.1.ffn_gate_inp.weight"] == "F32" and
              any(k["key"] == "general.file_type" and k["value"] == "15" for k in r["keys"])' &&
        run 0 generate --quiet --model "$work/mix.gguf" --max-tokens 5 Hello &&
        run 1 quantize --tensor-type 'blk.99.*=Q4_0' "$model" "$work/never.gguf" &&
        says "blk.99" err && [ ! -e "$work/never.gguf" ]
}
quantize_with_importance() {
    printf 'Some text of a few words, and some more.\n' >"$work/few.txt"
    run 0 eval --quiet --model "$model" --importance "$work/importance.gguf" "$work/few.txt" &&
        run 0 quantize --type Q4_0 "$model" "$work/plain.gguf" &&
        run 0 quantize --type Q4_0 --importance "$work/importance.gguf" "$model" "$work/weighed.gguf" &&
        ! cmp -s "$work/plain.gguf" "$work/weighed.gguf" &&
        run 1 quantize --importance "$model" "$model" "$work/never.gguf" && says "imatrix" err &&
        [ ! -e "$work/never.gguf" ]
}
quantize_refuses() {
    run 1 quantize "$work/cut.gguf" "$work/never.gguf" && [ ! -e "$work/never.gguf" ] &&
        run 1 quantize "$model" "$work/no/such/directory.gguf"
}
check "quantize: smaller, and it runs" quantize
check "quantize: a mix, and types by pattern" quantize_mix
check "quantize: importance of inputs" quantize_with_importance
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
full_disk() { # TOOL ARGUMENT...
    local status=0 tool=$1
    shift
    "$build/xmoe-$tool" "$@" >/dev/full 2>"$work/err" || status=$?
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
check "generate: a full disk is an error" full_disk generate --quiet --model "$model" --max-tokens 30 x
check "inspect: a full disk is an error" full_disk inspect --json "$model"
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
# Windows add up to the file, at every threshold.
eval_windows() {
    run 0 eval --quiet --model "$model" --csv --thresholds 0.5,1 --window-file "$work/windows.csv" \
        "$work/a.txt" "$work/b.txt" &&
        python3 - "$work/out" "$work/windows.csv" <<'PYTHON'
import csv, sys
rows, windows = (list(csv.DictReader(open(name))) for name in sys.argv[1:3])
for row in rows:
    if row["file"] == "all":
        continue
    mine = [w for w in windows if w["file"] == row["file"] and w["routing"] == row["routing"]]
    assert sum(int(w["tokens"]) for w in mine) == int(row["tokens"]) > 0
    nats = sum(float(w["nats"]) for w in mine)
    assert abs(nats - float(row["nats"])) < 1e-5 * nats
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
check "eval: loss of windows" eval_windows
check "eval: table" eval_table
check "eval: files without text are errors" eval_refuses

# --- traces ---

# trace EXPRESSION FILE...: Python over the traces' lists of positions as t, and $work/out as r.
trace() {
    python3 -B - "$@" "$work/out" 2>>"$work/err" <<'PYTHON'
import collections, json, sys
sys.path.insert(0, "tools")
import read_trace
t = [list(read_trace.read(path)) for path in sys.argv[2:-1]]
r = json.load(open(sys.argv[-1]))
def same(a, b):  # but for the rounding of weights to 11 bits
    return len(a) == len(b) and all(
        x.position == y.position and x.token == y.token and list(x.layers) == list(y.layers) and
        all(e == f and abs(v - w) <= v * 2**-11 + 2**-25
            for n in x.layers for (e, v), (f, w) in zip(x.layers[n], y.layers[n], strict=True))
        for x, y in zip(a, b))
def counts(trace, layer, experts):
    sums = collections.Counter(e for p in trace for e, _ in p.layers[layer])
    return [sums[e] for e in range(experts)]
sys.exit(0 if eval("(" + sys.argv[1] + ")") else 1)
PYTHON
}
for number in 1 22 333 4444 55555 666666; do # each fits one window
    printf 'the cat and the hat and %s\n<|endoftext|>\n' $number
done >"$work/short.txt"

trace_forms() {
    evaluate --expert-usage --trace "$work/t.csv" "$work/short.txt" &&
        evaluate --expert-usage --trace "$work/t.xmt" --parallel 2 "$work/short.txt" &&
        trace 'same(t[0], t[1]) and len(t[0]) == r["results"][0]["tokens"] + 6 and
               [p.position for p in t[0]] == list(range(len(t[0]))) and
               sum(p.token == t[0][0].token for p in t[0]) == 6 and
               all(p.layers.keys() == {1, 3} and all(1 <= len(c) <= 8 and
                   [w for _, w in c] == sorted((w for _, w in c), reverse=True)
                   for c in p.layers.values()) for p in t[0])' "$work/t.csv" "$work/t.xmt" &&
        trace 'all(counts(t[0], l["layer"], 8) == l["counts"] == counts(t[1], l["layer"], 8)
                   for l in r["results"][0]["expert_usage"]["layers"])' "$work/t.csv" "$work/t.xmt" &&
        [ "$(($(stat -c %s "$work/t.csv") / $(stat -c %s "$work/t.xmt")))" -ge 4 ]
}
trace_overlap() {
    # Windows overlap; every position of each document is there once, in order, whoever came first.
    evaluate --trace "$work/t.csv" --window 33 --stride 7 --parallel 16 "$work/a.txt" "$work/b.txt" &&
        cp "$work/t.csv" "$work/first" &&
        trace 'len(t[0]) == r["results"][2]["tokens"] + 4 and
               len(t[0]) < r["results"][2]["positions"] and
               [p.position for p in t[0]] == list(range(len(t[0])))' "$work/t.csv" &&
        evaluate --trace "$work/t.csv" --window 33 --stride 7 --parallel 1 --threads 1 "$work/a.txt" \
            "$work/b.txt" && cmp "$work/t.csv" "$work/first"
}
trace_wide() {
    # More than 255 experts: two bytes each.
    run 0 bench --quiet --make-only --layers 2 --embedding 32 --heads 2 --experts 300 \
        --expert-feed-forward 32 --feed-forward 64 --vocabulary 300 --moe-every 2 --type F32 \
        --context 128 --model-file "$work/wide.gguf" &&
        evaluate --model "$work/wide.gguf" --threshold 0.99 --trace "$work/t.csv" "$work/short.txt" &&
        evaluate --model "$work/wide.gguf" --threshold 0.99 --trace "$work/t.xmt" "$work/short.txt" &&
        trace 'same(t[0], t[1]) and any(e > 255 for p in t[1] for e, _ in p.layers[1])' \
            "$work/t.csv" "$work/t.xmt"
}
trace_reader() {
    evaluate --trace "$work/t.xmt" "$work/short.txt" && tools/read_trace.py "$work/t.xmt" >"$work/out" &&
        says "layer 3:" out && says "most used:" out || return 1
    head -c 400 "$work/t.xmt" >"$work/cut.xmt"
    ! tools/read_trace.py "$work/cut.xmt" 2>"$work/err" && says "cut.xmt: the file ends too early" err &&
        ! tools/read_trace.py "$work/a.txt" 2>"$work/err" && says "a.txt" err
}
trace_whole() {
    # A file in the way, a place that is none, Ctrl-C: no half trace, and what was there stays.
    echo kept >"$work/old.csv"
    run 1 eval --quiet --model "$model" --trace "$work/no/such.csv" "$work/a.txt" &&
        says "no/such.csv" err && run 1 eval --quiet --model "$model" --trace /dev/full "$work/a.txt" &&
        [ -c /dev/full ] || return 1
    "$build/xmoe-eval" --model "$model" --window 128 --stride 1 --trace "$work/old.csv" \
        --usage-file "$work/old.json" "$work/a.txt" "$work/b.txt" >"$work/out" 2>"$work/err" &
    local job=$! status=0
    for _ in {1..100}; do
        [ -s "$work/old.csv.0.tmp" ] && break
        sleep 0.02
    done
    kill -INT "$job"
    wait "$job" || status=$?
    [ "$status" -eq 130 ] && [ "$(cat "$work/old.csv")" = kept ] && [ ! -e "$work/old.json" ] &&
        ! compgen -G "$work/*.tmp" >/dev/null
}
check "trace: CSV, binary and usage agree" trace_forms
check "trace: each position once where windows overlap" trace_overlap
check "trace: more than 255 experts" trace_wide
check "trace: the reader" trace_reader
check "trace: whole or not at all" trace_whole

# --- usage ---

usage_files() {
    evaluate --expert-usage --usage-file "$work/one.json" "$work/a.txt" && cp "$work/out" "$work/eval" &&
        evaluate --usage-file "$work/two.json" --threshold 0.4 "$work/b.txt" &&
        run 0 usage show --json "$work/one.json" &&
        json "r['object'] == 'experts.usage' and r['phase'] == 'all' and r['model'] == 'tiny' and
              [l['counts'] for l in r['layers']] == [l['counts'] for l in
               json.load(open('$work/eval'))['results'][0]['expert_usage']['layers']]" &&
        run 0 usage show "$work/one.json" && says "most used" out &&
        run 0 usage show --json --phase decode "$work/one.json" && json 'r["tokens"] == 0'
}
usage_merge() {
    run 0 usage merge "$work/sum.json" "$work/one.json" "$work/two.json" "$work/two.json" &&
        cp "$work/sum.json" "$work/out" &&
        json "(lambda a, b: r['id'] == 'sum' and r['experts'] == 8 and all(
               [s[k], s['counts'], s['active_histogram']] ==
               [x[k] + 2 * y[k], [m + 2 * n for m, n in zip(x['counts'], y['counts'])],
                [m + 2 * n for m, n in zip(x['active_histogram'], y['active_histogram'])]] and
               all(abs(w - u - 2 * v) < 1e-6 for w, u, v in zip(s['weights'], x['weights'], y['weights']))
               for p in ('all', 'prefill', 'decode') for k in ('tokens', 'activations', 'steps', 'distinct')
               for s, x, y in zip(r['phases'][p]['layers'], a['phases'][p]['layers'],
                                  b['phases'][p]['layers'])))(
              json.load(open('$work/one.json')), json.load(open('$work/two.json')))" &&
        run 0 usage show --json "$work/one.json" && mv "$work/out" "$work/plain.json" &&
        run 0 usage merge "$work/sum.json" "$work/plain.json" "$work/two.json" &&
        cp "$work/sum.json" "$work/out" && json 'r["object"] == "experts.usage" and r["phase"] == "all"' &&
        sed 's/"window_seconds": *null/"window_seconds": 60/' "$work/plain.json" >"$work/window.json" &&
        run 1 usage merge "$work/sum.json" "$work/window.json" "$work/two.json" && says "of a window" err &&
        run 0 usage show --json "$work/window.json" && json 'r["window_seconds"] == 60'
}
usage_compare() {
    # Against the definition: with m the mean of p and q, the mean of the divergences of p and q from m.
    run 0 usage compare --json --top 3 "$work/one.json" "$work/two.json" &&
        json "(lambda a, b: all(abs(l['divergence'] - sum(
                   (p * math.log2(2 * p / (p + q)) if p else 0) / 2 +
                   (q * math.log2(2 * q / (p + q)) if q else 0) / 2
                   for p, q in zip(*s))) < 1e-7 and l['divergence'] > 0 and
               all(abs(c - q + p) < 1e-8 for c, p, q in zip(l['share_change'], *s)) and
               len(l['grew']) == min(3, sum(c > 0 for c in l['share_change'])) and
               l['grew'][0]['expert'] == max(range(8), key=lambda e: l['share_change'][e]) and
               l['fell'][0]['expert'] == min(range(8), key=lambda e: l['share_change'][e])
               for l, s in ((r['layers'][i], [[c / sum(f['layers'][i]['counts'])
                   for c in f['layers'][i]['counts']] for f in (a, b)]) for i in (0, 1))))(
              json.load(open('$work/one.json'))['phases']['all'],
              json.load(open('$work/two.json'))['phases']['all'])" &&
        run 0 usage compare --json "$work/one.json" "$work/one.json" &&
        json 'r["divergence"] == 0 and all(l["grew"] == [] and l["only_a"] == [] for l in r["layers"])' &&
        run 0 usage compare --phase decode --json "$work/one.json" "$work/two.json" &&
        json 'r["divergence"] is None and r["layers"][0]["share_change"] is None' &&
        run 0 usage compare "$work/one.json" "$work/two.json" && says "grew most" out && says "mean" out
}
usage_one_only() {
    python3 - "$work" <<'PYTHON'
import json, sys
for name, counts in (("only-a", [4, 0, 0]), ("only-b", [0, 0, 4])):
    json.dump({"object": "experts.usage", "model": "m", "phase": "decode", "since": 1, "layers": [
        {"layer": 0, "experts": 3, "tokens": 4, "activations": 4, "active_histogram": [0, 4, 0, 0],
         "counts": counts, "weights": [c / 2 for c in counts], "steps": 4, "distinct": 4}]},
        open(f"{sys.argv[1]}/{name}.json", "w"))
PYTHON
    run 0 usage compare --json "$work/only-a.json" "$work/only-b.json" &&
        json 'r["layers"][0]["divergence"] == 1 and r["layers"][0]["only_a"] == [0] and
              r["layers"][0]["only_b"] == [2] and r["layers"][0]["share_change"] == [-1, 0, 1]' &&
        run 0 usage compare "$work/only-a.json" "$work/only-b.json" && says "A: 0 B: 2" out &&
        run 1 usage compare --phase all "$work/only-a.json" "$work/only-b.json" && says "decode" err &&
        run 1 usage compare "$work/only-a.json" "$work/one.json" && says "same layers" err &&
        run 1 usage merge "$work/never.json" "$work/only-a.json" "$work/plain.json" &&
        says "plain.json" err && [ ! -e "$work/never.json" ]
}
usage_draw() {
    run 0 usage draw "$work/one.json" "$work/one.svg" &&
        run 0 usage draw --title 'a <b> & "c"' "$work/one.json" "$work/two.json" "$work/both.svg" &&
        python3 - "$work" 2>>"$work/err" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
svg = "{http://www.w3.org/2000/svg}"
def cells(name):
    root = tree.parse(f"{sys.argv[1]}/{name}.svg").getroot()
    found = [r for r in root.iter(svg + "rect") if r.find(svg + "title") is not None]
    assert len({(r.get("x"), r.get("y")) for r in found}) == len(found) == 16, len(found)
    assert {r.find(svg + "title").text.split(":")[0] for r in found} == {
        f"layer {l}, expert {e}" for l in (1, 3) for e in range(8)}
    inside = [float(t.get(k)) for t in root.iter(svg + "text") for k in "xy"]
    assert 0 < min(inside) and max(inside) < float(root.get("width"))
    return root.find(svg + "title").text
assert "tiny" in cells("one")
assert cells("both") == 'a <b> & "c"'
PYTHON
}
usage_refuses() {
    head -c 700 "$work/one.json" >"$work/cut.json"
    sed '0,/"counts": \[[0-9]*/s//"counts": [7.5/' "$work/one.json" >"$work/half.json"
    run 1 usage show "$work/cut.json" && says "cut.json: is not JSON" err &&
        run 1 usage show "$work/half.json" && says "half.json: phases.all.layers[0].counts[0]" err &&
        run 1 usage show "$work/none.json" && says "none.json" err &&
        run 1 usage show "$work/eval" && says "not of expert usage" err &&
        run 1 usage draw "$work/one.json" "$work/no/such.svg" && says "no/such.svg" err &&
        run 1 usage save http://127.0.0.1:1 "$work/never.json" && [ ! -e "$work/never.json" ]
}
start_server() {
    : >"$work/log"
    "$build/xmoe-server" --model "$model" --port 0 --threads 1 --http-api-keys sesame 2>"$work/log" &
    server=$!
    for _ in {1..300}; do
        url=$(grep -o 'http://127.0.0.1:[0-9]*' "$work/log" | head -n 1)
        [ -n "$url" ] && curl -sf "$url/ready" >"$work/out" && return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/log" >"$work/err"
    return 1
}
usage_save() {
    local key='Authorization: Bearer sesame' type='Content-Type: application/json'
    start_server && curl -sf "$url/v1/completions" -H "$key" -H "$type" \
        -d '{"prompt": "Once upon a time", "max_tokens": 9, "ignore_eos": true}' >"$work/out" &&
        run 0 usage save --api-key sesame "$url/" "$work/saved.json" &&
        curl -sf -H "$key" "$url/v1/experts/snapshots" >"$work/out" && json 'r["data"] == []' &&
        run 0 usage show --json --phase decode "$work/saved.json" && mv "$work/out" "$work/decode.json" &&
        curl -sf -H "$key" "$url/v1/experts/usage?phase=decode" >"$work/out" &&
        json "(lambda f: f['tokens'] == r['tokens'] == 8 and [f['model'], f['since']] ==
              [r['model'], r['since']] and all(all(l[k] == m[k] for k in ('counts', 'weights', 'steps',
              'active_histogram', 'distinct')) for l, m in zip(f['layers'], r['layers'])))(
              json.load(open('$work/decode.json')))" &&
        cp "$work/out" "$work/api.json" && run 0 usage show "$work/api.json" || return 1
    # Back to the server: what a tool writes is a snapshot to it.
    run 0 usage merge "$work/sum.json" "$work/saved.json" "$work/one.json" &&
        curl -sf -X PUT -H "$key" -H "$type" --data-binary "@$work/sum.json" \
            "$url/v1/experts/snapshots/sum" >"$work/out" &&
        run 0 usage save --api-key sesame --snapshot sum "$url" "$work/back.json" &&
        run 0 usage compare --json "$work/sum.json" "$work/back.json" && json 'r["divergence"] == 0' &&
        XMOE_API_KEY=wrong run 1 usage save "$url" "$work/never.json" && says "401" err &&
        XMOE_API_KEY=sesame run 1 usage save --snapshot none "$url" "$work/never.json" &&
        says "'none'" err && [ ! -e "$work/never.json" ]
}
check "usage: eval's file, as a table and as JSON" usage_files
check "usage: merge adds up" usage_merge
check "usage: compare by the definition" usage_compare
check "usage: experts that only one uses" usage_one_only
check "usage: draw" usage_draw
check "usage: save from a server, and back to it" usage_save
check "usage: damaged files and servers that are none" usage_refuses

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

# --- training ---

interrupted_training() {
    # Ctrl-C: 130 as every tool, with a checkpoint from which the run goes on to its end.
    local part status=0
    mkdir "$work/corpus"
    for part in train valid; do
        seq -f 'the cat and the hat number %g' 2000 >"$work/corpus/en.$part.txt"
    done
    local flags=(--data "$work/corpus" --directory "$work/run" --domains en --vocabulary 300 --context 16
        --width 16 --heads 2 --blocks 2 --feed-forward 16 --experts 4 --expert-feed-forward 16 --sequences 2
        --log-every 1 --validate-every 0 --threads 1)
    "$build/xmoe-train" "${flags[@]}" --steps 1000000 >"$work/out" 2>"$work/err" &
    local job=$!
    for _ in {1..500}; do
        [ "$(cat "$work/run/log.csv" 2>/dev/null | wc -l)" -ge 3 ] && break
        sleep 0.02
    done
    kill -INT "$job"
    wait "$job" || status=$?
    [ "$status" -eq 130 ] && says "wrote $work/run/model-f32.gguf" err && [ -s "$work/run/checkpoint" ] || return 1
    local done
    done=$(tail -n 1 "$work/run/log.csv" | cut -d, -f1)
    run 0 train "${flags[@]}" --resume --steps $((done + 2)) && says "after step $((done + 2))" err &&
        run 1 train "${flags[@]}" --steps 1 && says "--resume goes on" err
}
check "train: Ctrl-C, and on from there" interrupted_training

# --- the library ---

shortest() {
    # README's whole program, built as it says from what `make install` puts in place.
    awk '/^```c$/ {inside = 1; next} /^```$/ {inside = 0} inside' README.md >"$work/shortest.c" &&
        make -s BUILD="$build" DESTDIR="$work/root" PREFIX=/usr/local install >"$work/out" 2>"$work/err" || return 1
    (
        export PKG_CONFIG_PATH=$work/root/usr/local/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$work/root
        export LD_LIBRARY_PATH=$work/root/usr/local/lib
        cd "$work" && cc -Wall -Wextra -Werror shortest.c $(pkg-config --cflags --libs xmoe) -o shortest &&
            ./shortest tiny.gguf 'Once upon'
    ) >"$work/out" 2>"$work/err" && [ -s "$work/out" ]
}
check "library: README's shortest program" shortest

echo "tools_test: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
