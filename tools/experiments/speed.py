#!/usr/bin/env python3
"""Tokens per second of trained models in the server: what the saved operations buy.

    speed.py --corpus DIR --work DIR [--rounds N]

Starts build/xmoe-server for every model of SERVED that is trained in WORK, all with the same
threads, and asks them in turn: prompts from the test text, answers sampled at temperature 1. One
model works at a time, the others sleep; a round asks each once, in another order each time, and the
first round is not counted. Nothing else should run meanwhile. Fills results/speed.csv;
`table.py speed` shows it.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import plan

SERVER = plan.HERE.parent.parent / "build" / "xmoe-server"
# Of the first seed that is there: as trained, or by a router that every request asks for.
SERVED = (("topk-8", {}), ("threshold-0.9", {}), ("threshold-0.5", {}),
          ("threshold-0.9", {"type": "threshold", "threshold": 0.5}),
          ("threshold-0.5", {"type": "top_k", "top_k": 8}),
          ("threshold-0.5", {"type": "top_k", "top_k": 1}), ("topk-4", {}), ("topk-2", {}),
          ("large-top-2", {}), ("large-top-1", {}), ("dense-flops", {}), ("dense-parameters", {}))
PROMPTS, PROMPT_BYTES, ANSWER_TOKENS = 16, 100, 160
LONG_BYTES = 400  # of the prompts that measure prefill
SPEED = ("run", "served", "requests", "round", "tokens_per_second", "mean_active")


def find_model(work, run):
    """The trained model of a run, of the first seed that WORK has; None if it has none."""
    models = (work / f"{name}-s{seed}" / "model.gguf" for name, seed in plan.planned() if name == run)
    return next((model for model in models if model.exists()), None)


def passages(corpus, size):
    """The beginnings of documents, as many of each domain."""
    found = []
    for domain in plan.DOMAINS:
        text = (corpus / f"{domain}.test.txt").read_text(encoding="utf-8")
        documents = [text for text in text.split("<|endoftext|>\n") if len(text) > 4 * size]
        found += [document[size:2 * size] for document in documents[:PROMPTS // len(plan.DOMAINS)]]
    return found


class Server:
    def __init__(self, run, router, model, threads):
        self.run, self.router = run, router
        self.label = f"{router['type']} {router[router['type']]:g}" if router else "as trained"
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [SERVER, "--model", model, "--port", "0", "--threads", str(threads)], stderr=self.log)
        for _ in range(300):
            if self.is_ready():
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the server of {model} does not start")

    def is_ready(self):
        self.log.seek(0)
        listening = re.search(r"http://127\.0\.0\.1:\d+", self.log.read())
        if not listening:
            return False
        self.address = listening.group(0)
        try:
            with urllib.request.urlopen(self.address + "/ready"):
                return True
        except urllib.error.HTTPError:
            return False

    def ask(self, prompt, seed, tokens):
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 1, "seed": seed,
                "ignore_eos": True, "cache_prompt": False}
        if self.router:
            body["router"] = self.router
        request = urllib.request.Request(self.address + "/v1/completions",
                                         json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def measure(server, prompts, at_once, answer_tokens, counted):
    """Tokens a second of all prompts, so many at once; counted: the field of usage that is counted."""
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda item: server.ask(item[1], item[0], answer_tokens),
                                enumerate(prompts)))
    seconds = time.monotonic() - begin
    tokens = sum(answer["usage"][counted] for answer in answers)
    active = [answer["timings"]["mean_active_experts"] for answer in answers]
    return tokens / seconds, sum(active) / len(active)


def measure_all(corpus, work, threads, rounds):
    kinds = (("1", passages(corpus, PROMPT_BYTES), 1, ANSWER_TOKENS, "completion_tokens"),
             ("8", passages(corpus, PROMPT_BYTES), 8, ANSWER_TOKENS, "completion_tokens"),
             ("prompts", passages(corpus, LONG_BYTES), 8, 1, "prompt_tokens"))
    servers, rows = [], []
    try:
        for run, router in SERVED:
            model = find_model(work, run)
            if model:
                servers.append(Server(run, router, model, threads))
        for number in range(rounds + 1):
            for server in random.Random(number).sample(servers, len(servers)):
                for name, prompts, at_once, tokens, counted in kinds:
                    speed, active = measure(server, prompts, at_once, tokens, counted)
                    if number > 0:
                        rows.append({"run": server.run, "served": server.label, "requests": name,
                                     "round": number, "tokens_per_second": f"{speed:.0f}",
                                     "mean_active": f"{active:.2f}"})
    finally:
        for server in servers:
            server.stop()
    names = list(plan.RUNS)
    rows.sort(key=lambda row: (names.index(row["run"]), row["served"], row["requests"],
                               row["round"]))
    plan.write_csv(plan.RESULTS / "speed.csv", SPEED, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5, help="that count (%(default)s)")
    arguments = parser.parse_args()
    measure_all(arguments.corpus, arguments.work, arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
