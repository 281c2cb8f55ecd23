#!/usr/bin/env python3
"""Mixed load with random disconnects against a running server; standard library only.

    build/xmoe-server --port 8080 --engine-kv-bytes 33554432 --usage-window-seconds 120 &
    python3 tests/client/soak.py --port 8080 --minutes 30

(The KV cache and the ring of usage history fill up by design; small ones are full before half time.)

Clients stream, wait for whole answers, hang up in the middle of both, stop reading for a while, send
broken requests and read the statistics. Prints one line a minute. At the end, with no client left, it
fails unless: no request answered with a 5xx, no KV block is in use, nothing runs or waits, the usage
identities hold exactly, and resident memory over the second half stayed within --growth of its level
at half time.
"""
import argparse
import http.client
import json
import random
import socket
import sys
import threading
import time

WORDS = ("The king and his daughter went down to the sea ; der Wind ging durch die alten Bäume , "
         "la maison était grande et vide ; static int compare ( const void * a ) { return 0 ; }").split()


class Totals:
    def __init__(self):
        self.lock = threading.Lock()
        self.count = {}

    def add(self, what):
        with self.lock:
            self.count[what] = self.count.get(what, 0) + 1


def prompt(rng):
    shared = " ".join(WORDS[: rng.choice((0, 12, 30))])
    return shared + " " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 120)))


def body(rng, stream):
    fields = {"prompt": prompt(rng), "max_tokens": rng.randint(1, 80), "stream": stream,
              "temperature": rng.choice((0, 0.7, 1.2)), "seed": rng.randint(0, 1 << 40),
              "n": rng.choice((1, 1, 1, 3)), "cache_prompt": rng.random() < 0.8}
    if rng.random() < 0.4:
        fields["router"] = rng.choice(({"threshold": 0.5}, {"type": "dense"}, {"max_experts": 2},
                                       {"type": "top_k", "top_k": 3}))
    if rng.random() < 0.3:
        fields.update(expert_usage=True, routed_experts=True, logprobs=3)
    if rng.random() < 0.2:
        fields["echo"] = True
    return json.dumps(fields)


def post(args, payload, path="/v1/completions", timeout=120):
    connection = http.client.HTTPConnection("127.0.0.1", args.port, timeout=timeout)
    connection.request("POST", path, payload, {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def whole(args, rng, totals):
    connection, answer = post(args, body(rng, False))
    answer.read()
    totals.add(f"whole {answer.status}")
    connection.close()


def stream(args, rng, totals):
    connection, answer = post(args, body(rng, True))
    data = answer.read()
    good = answer.status != 200 or data.rstrip().endswith(b"data: [DONE]")
    totals.add(f"stream {answer.status}" if good else "stream without [DONE]")
    connection.close()


def hang_up_in_stream(args, rng, totals):
    connection, answer = post(args, body(rng, True))
    answer.read(rng.randint(1, 400))
    connection.close()
    totals.add("hang-up in stream")


def hang_up_while_waiting(args, rng, totals):
    payload = body(rng, False).encode()
    with socket.create_connection(("127.0.0.1", args.port), timeout=60) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(payload), payload))
        time.sleep(rng.random() * 0.2)
    totals.add("hang-up while waiting")


def hang_up_in_body(args, rng, totals):
    with socket.create_connection(("127.0.0.1", args.port), timeout=60) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 5000\r\n\r\n{\"prompt\": \"half")
        time.sleep(rng.random() * 0.1)
    totals.add("hang-up in body")


def slow_reader(args, rng, totals):
    connection, answer = post(args, body(rng, True))
    answer.read(50)
    time.sleep(rng.random() * 3)
    answer.read()
    connection.close()
    totals.add("slow reader")


def broken(args, rng, totals):
    payload = rng.choice(('{"prompt": ', '{"prompt": 5}', "[]", '{"prompt": "x", "max_tokens": -1}',
                          '{"prompt": "x", "temperature": 1e999}', "\0\1\2", '{"prompt": "x", "n": 1e9}'))
    connection, answer = post(args, payload)
    answer.read()
    totals.add(f"broken {answer.status}")
    if not 400 <= answer.status < 500:
        totals.add("broken request accepted")
    connection.close()


def statistics(args, rng, totals):
    get(args, rng.choice(("/v1/experts/usage", "/v1/experts/usage?window=60", "/metrics", "/slots",
                          "/props", "/health")))
    totals.add("statistics")


ACTIONS = ((whole, 4), (stream, 4), (hang_up_in_stream, 3), (hang_up_while_waiting, 2),
           (hang_up_in_body, 1), (slow_reader, 1), (broken, 1), (statistics, 1))


def client(args, seed, stop, totals):
    rng = random.Random(seed)
    names = [action for action, weight in ACTIONS for _ in range(weight)]
    while not stop.is_set():
        try:
            rng.choice(names)(args, rng, totals)
            if args.think > 0:
                stop.wait(rng.expovariate(1 / args.think))
        except (OSError, http.client.HTTPException) as problem:
            totals.add(f"client error {type(problem).__name__}")
            time.sleep(0.05)


def get(args, path):
    connection = http.client.HTTPConnection("127.0.0.1", args.port, timeout=60)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def metric(text, name):
    """Sum of all samples of a metric."""
    found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
             if line.startswith((name + " ", name + "{"))]
    if not found:
        raise SystemExit(f"metric {name} is missing")
    return sum(found)


def check_identities(args):
    for phase in ("all", "prefill", "decode"):
        usage = json.loads(get(args, f"/v1/experts/usage?phase={phase}"))
        for layer in usage["layers"]:
            histogram = layer["active_histogram"]
            assert sum(layer["counts"]) == layer["activations"], layer["layer"]
            assert sum(i * n for i, n in enumerate(histogram)) == layer["activations"], layer["layer"]
            assert sum(histogram) == layer["tokens"], layer["layer"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--think", type=float, default=0, help="mean pause of a client between actions, s")
    parser.add_argument("--growth", type=float, default=0.05, help="allowed growth of memory, as a fraction")
    args = parser.parse_args()

    totals, stop = Totals(), threading.Event()
    threads = [threading.Thread(target=client, args=(args, i, stop, totals)) for i in range(args.clients)]
    for thread in threads:
        thread.start()
    start, memory = time.monotonic(), []
    while time.monotonic() - start < args.minutes * 60:
        time.sleep(min(60.0, args.minutes * 60 / 10))
        memory.append(metric(get(args, "/metrics"), "process_resident_memory_bytes"))
        print(f"{(time.monotonic() - start) / 60:6.1f} min  {memory[-1] / 1e6:8.1f} MB  "
              f"{sum(totals.count.values())} actions", flush=True)
    stop.set()
    for thread in threads:
        thread.join()

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = get(args, "/metrics")
        if metric(text, "xmoe_num_requests_running") + metric(text, "xmoe_num_requests_waiting") == 0:
            break
        time.sleep(0.2)
    print(json.dumps(totals.count, indent=1, sort_keys=True))
    problems = [what for what in totals.count if " 5" in what or "without" in what or "accepted" in what]
    for name in ("xmoe_num_requests_running", "xmoe_num_requests_waiting", "xmoe_kv_blocks_used"):
        if metric(text, name) != 0:
            problems.append(f"{name} is {metric(text, name)} with no client left")
    check_identities(args)
    half = memory[len(memory) // 2]
    if max(memory[len(memory) // 2:]) > half * (1 + args.growth):
        problems.append(f"memory grew from {half / 1e6:.1f} to {max(memory) / 1e6:.1f} MB in the second half")
    print("FAILED: " + "; ".join(problems) if problems else "all well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
