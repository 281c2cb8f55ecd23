"""One traffic, four witnesses: the numbers on the page, in /v1/experts/usage, in the trace (endpoint and
file) and in /metrics must be equal, per layer and expert.

The traffic is mixed on purpose: at once, streaming and not, several choices, several routers, a prefix
in the cache, a KV cache so small that sequences are put back, requests refused, and a client that goes
away. Run by tests/browser_test.sh; prints a PASS or FAIL line per check.
"""

import csv
import http.client
import io
import json
import os
import re
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from selenium.webdriver.common.keys import Keys

from harness import PATIENCE, Checks, Page, random_model, serving, until

MODEL = ("--layers", "4", "--embedding", "64", "--heads", "4", "--experts", "8", "--expert-feed-forward", "32",
         "--feed-forward", "128", "--vocabulary", "600", "--moe-every", "2", "--type", "F32", "--context", "512")
LAYERS, EXPERTS = (1, 3), 8
PHASES = ("prefill", "decode", "all")
ROUTERS = ({"threshold": 0.3}, {"threshold": 0.9, "max_experts": 3}, {"type": "top_k", "top_k": 2},
           {"type": "dense"}, {"layers": {"3": {"threshold": 0.95, "min_experts": 2}}}, None)


class Counts:
    """What one witness says of one phase: by (layer, expert) the tokens served and the sum of weights, by
    layer the tokens that passed. None where it does not say."""

    def __init__(self, tokens=None, passed=None, weights=None):
        self.tokens, self.passed, self.weights = tokens, passed, weights

    def must_be(self, other, who):
        for name in ("tokens", "passed"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine is not None and others is not None:
                wrong = [(key, mine.get(key), others.get(key)) for key in {**mine, **others}
                         if mine.get(key) != others.get(key)]
                assert not wrong, f"{who}: {name}: {sorted(wrong)[:5]}"
        for key, weight in (self.weights or {}).items():
            wanted = other.weights[key]
            assert abs(weight - wanted) <= 1e-4 * max(wanted, 1), f"{who}: weight of {key}: {weight}, not {wanted}"


# --- the traffic ---

def stream(server, body):
    """Reads a stream to its end."""
    request = urllib.request.Request(server.url + "v1/completions", json.dumps({**body, "stream": True}).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.read().endswith(b"data: [DONE]\n\n")


def refused(server, body):
    try:
        server.call("v1/completions", body)
    except urllib.error.HTTPError as error:
        assert error.code == 400
    else:
        raise AssertionError(f"{body} was answered")


def go_away(server):
    """Asks for much, and leaves after the first piece."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", "/v1/completions", json.dumps(
        {"prompt": "Far away", "n": 16, "max_tokens": 450, "ignore_eos": True, "stream": True}),
        {"Content-Type": "application/json"})
    connection.sock.recv(200)
    connection.close()


def make_traffic(server):
    tasks = []
    for number in range(24):
        body = {"prompt": f"Once upon a time there was a king, and he had {number % 4} sons", "seed": number,
                "max_tokens": 40 + number, "temperature": 0.8, "ignore_eos": True}
        if ROUTERS[number % len(ROUTERS)]:
            body["router"] = ROUTERS[number % len(ROUTERS)]
        if number % 3 == 0:
            body["n"] = 2
        if number % 5 == 0:
            body["cache_prompt"] = False
        tasks.append((stream, body) if number % 2 else (server_call, body))
    tasks += [(refused, {"prompt": "x " * 600}), (refused, {"prompt": "x", "router": {"threshold": 7}})]
    tasks.append((chat, {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 30}))
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(task, server, body) for task, body in tasks]
        running.append(pool.submit(go_away, server))
        for task in running:
            task.result()

    def one_has_gone():
        gone = series(server, "xmoe_request_success_total", finished_reason="abort")[0][1] > 0
        if not gone:
            go_away(server)  # the first was done before it was seen to be alone
        return gone
    until(one_has_gone, "a request that ended because its client had gone")
    until(lambda: not any(slot["is_processing"] for slot in server.call("slots")), "all is done")


def server_call(server, body):
    server.call("v1/completions", body)


def chat(server, body):
    server.call("v1/chat/completions", body)


# --- the witnesses ---

def from_usage(server, phase):
    layers = server.call(f"v1/experts/usage?phase={phase}")["layers"]
    for layer in layers:
        assert sum(layer["counts"]) == layer["activations"]
        assert sum(layer["active_histogram"]) == layer["tokens"]
    return Counts({(layer["layer"], expert): count for layer in layers
                   for expert, count in enumerate(layer["counts"])},
                  {layer["layer"]: layer["tokens"] for layer in layers},
                  {(layer["layer"], expert): weight for layer in layers
                   for expert, weight in enumerate(layer["weights"])})


def series(server, name, **wanted):
    """Labels and value of the series of a metric that have these labels."""
    with urllib.request.urlopen(server.url + "metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    found = []
    for line in lines:
        match = re.fullmatch(re.escape(name) + r"(?:\{(.*)\})? (\S+)", line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match.group(1) or "")) if match else {}
        if match and wanted.items() <= labels.items():
            found.append((labels, float(match.group(2))))
    return found


def from_metrics(server):
    counts = Counts(
        {(int(labels["layer"]), int(labels["expert"])): value
         for labels, value in series(server, "xmoe_expert_tokens_total")},
        {int(labels["layer"]): value for labels, value in series(server, "xmoe_routed_tokens_total")})
    sums = {int(labels["layer"]): value for labels, value in series(server, "xmoe_expert_activations_total")}
    means = {int(labels["layer"]): value for labels, value in series(server, "xmoe_mean_active_experts")}
    for layer in LAYERS:
        assert sums[layer] == sum(value for (at, _), value in counts.tokens.items() if at == layer)
        assert abs(means[layer] - sums[layer] / counts.passed[layer]) < 1e-9
    return counts


def from_csv(text):
    """Counts by phase of a trace as CSV."""
    assert text.startswith("request,phase,position,layer,rank,expert,weight\n")
    rows = ((row["phase"], int(row["layer"]), int(row["rank"]), int(row["expert"]), float(row["weight"]))
            for row in csv.DictReader(io.StringIO(text)))
    return add_up(rows)


def from_jsonl(text):
    return add_up((line["phase"], line["layer"], rank, expert, weight)
                  for line in map(json.loads, text.splitlines())
                  for rank, (expert, weight) in enumerate(zip(line["experts"], line["weights"], strict=True), 1))


def add_up(rows):
    cells = [(layer, expert) for layer in LAYERS for expert in range(EXPERTS)]
    counts = {phase: Counts(dict.fromkeys(cells, 0), dict.fromkeys(LAYERS, 0), dict.fromkeys(cells, 0.0))
              for phase in PHASES}
    for phase, layer, rank, expert, weight in rows:
        for part in (phase, "all"):
            counts[part].tokens[layer, expert] += 1
            counts[part].weights[layer, expert] += weight
            counts[part].passed[layer] += rank == 1
    return counts


def from_page(page, usage, phase):
    """Every cell of the heat map by its readout, and the mean of every row. usage tells when the page
    shows this phase, and no more."""
    page.choose("phase", phase)
    until(lambda: page.text("summary").startswith(f"{usage.passed[LAYERS[0]]:,} tokens"), f"the page shows {phase}")
    shown = {}
    page.find("map").send_keys(Keys.HOME, Keys.PAGE_UP)
    for layer in LAYERS:
        page.find("map").send_keys(Keys.HOME)
        for expert in range(EXPERTS):
            said = re.match(r"Layer (\d+), expert (\d+): ([\d,]+) token", page.text("readout"))
            assert (int(said.group(1)), int(said.group(2))) == (layer, expert), said.group()
            shown[layer, expert] = int(said.group(3).replace(",", ""))
            page.find("map").send_keys(Keys.ARROW_RIGHT)
        page.find("map").send_keys(Keys.ARROW_DOWN)
    means = page.js("return [...document.querySelectorAll('#layers tbody tr')].map((row) => row.cells[1].textContent)")
    for layer, mean in zip(LAYERS, means, strict=True):
        chosen = sum(count for (at, _), count in shown.items() if at == layer)
        assert mean == f"{chosen / usage.passed[layer]:.2f}", (layer, mean)
    return Counts(shown)


# --- the checks ---

def get_text(server, path):
    with urllib.request.urlopen(server.url + path, timeout=PATIENCE) as answer:
        return answer.read().decode()


def traffic_is_mixed(server):
    """Else the rest would prove less than it says."""
    make_traffic(server)
    assert series(server, "xmoe_num_preemptions_total")[0][1] > 0, "no sequence was put back"
    assert series(server, "xmoe_prefix_cache_hits_total")[0][1] > 0, "no prefix was in the cache"
    assert series(server, "xmoe_trace_dropped_total")[0][1] == 0, "the trace lost rows"
    for phase in PHASES:
        assert sum(from_usage(server, phase).tokens.values()) > 0, phase


def metrics_agree(server):
    from_metrics(server).must_be(from_usage(server, "all"), "/metrics")


def trace_agrees(server):
    for what, read in (("csv", from_csv), ("jsonl", from_jsonl)):
        counts = read(get_text(server, f"v1/experts/trace?format={what}"))
        for phase in PHASES:
            counts[phase].must_be(from_usage(server, phase), f"trace as {what}, {phase}")


def page_agrees(page, server):
    page.choose("source", "all")
    for phase in PHASES:
        usage = from_usage(server, phase)
        from_page(page, usage, phase).must_be(usage, f"page, {phase}")
    page.choose("phase", "all")
    page.click("download-csv")
    rows = list(csv.DictReader(io.StringIO(page.downloaded(".csv"))))
    Counts({(int(row["layer"]), int(row["expert"])): int(row["tokens"]) for row in rows}, None,
           {(int(row["layer"]), int(row["expert"])): float(row["weight"]) for row in rows}).must_be(
               from_usage(server, "all"), "download")
    assert page.console_errors() == []


def file_agrees(server, path):
    """The file is whole once the server has ended."""
    usage = {phase: from_usage(server, phase) for phase in PHASES}
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    with open(path, encoding="utf-8") as file:
        counts = from_csv(file.read())
    for phase in PHASES:
        counts[phase].must_be(usage[phase], f"trace file, {phase}")


def main():
    with tempfile.TemporaryDirectory() as directory:
        downloads, trace = os.path.join(directory, "downloads"), os.path.join(directory, "trace.csv")
        os.mkdir(downloads)
        model = random_model(directory, "agree.gguf", *MODEL)
        page = Page(downloads)
        checks = Checks(page)
        try:
            # KV blocks for one sequence of full context: more than that at once, and some are put back.
            with serving("--model", model, "--metrics-expert-tokens", "full", "--trace-bytes", str(64 << 20),
                         "--trace", trace, "--engine-kv-bytes", "1") as server:
                page.open(server)
                checks.run("traffic is mixed", traffic_is_mixed, server)
                checks.run("metrics agree with the usage", metrics_agree, server)
                checks.run("trace agrees with the usage", trace_agrees, server)
                checks.run("page agrees with the usage", page_agrees, page, server)
                checks.run("trace file agrees with the usage", file_agrees, server, trace)
        finally:
            page.quit()
        return checks.report()


if __name__ == "__main__":
    sys.exit(main())
