"""Runs Prometheus on a server: query_dashboard.py HOST:PORT DIRECTORY. Scrapes every second with the
rules of deploy/prometheus, and asks every query of deploy/grafana until each has answered with data.

So joins, labels and functions are seen to work on real series, not on paper. DIRECTORY takes
Prometheus' files. Prints what stayed empty or failed and exits with 1 if anything did; the one limit
of time is for what never comes.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from monitor_files import read_dashboard, read_rules, targets_of, variables_of

DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy")
GIVE_UP_SECONDS = 90
# What a test of seconds cannot have: a day's average, and refused requests.
NOT_HERE = {"layer:xmoe_mean_active_experts:avg1d", "instance:xmoe_requests_refused:ratio_rate5m"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(target, directory, port):
    rules = os.path.join(DEPLOY, "prometheus")
    config = os.path.join(directory, "prometheus.yml")
    with open(config, "w", encoding="utf-8") as out:
        json.dump({  # JSON is YAML
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [os.path.join(os.path.abspath(rules), name)
                           for name in ("recording.yml", "alerts.yml")],
            "scrape_configs": [{"job_name": "xmoe", "static_configs": [{"targets": [target]}]}],
        }, out)
    with open(os.path.join(directory, "prometheus.log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(
            ["prometheus", "--config.file=" + config, f"--web.listen-address=127.0.0.1:{port}",
             "--storage.tsdb.path=" + os.path.join(directory, "prometheus")], stderr=log)


class Prometheus:
    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path, **query):
        url = self.root + path + ("?" + urllib.parse.urlencode(query) if query else "")
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from error

    def has_data(self, expr):
        result = self.get("query", query=expr)["result"]
        return any(sample["value"][1] != "NaN" for sample in result)


def fill_in(expr, layer):
    """As Grafana does, all servers and one layer chosen."""
    values = {"__rate_interval": "10s", "__range": "1m", "instance": ".+", "layer": layer}
    return re.sub(r"\$(\w+)", lambda match: values[match.group(1)], expr)


def layer_of(prometheus):
    """Also asks what the variables offer."""
    layers = []
    for name, query in variables_of(read_dashboard(os.path.join(DEPLOY, "grafana", "xmoe.json"))):
        if query:
            found = prometheus.get(f"label/{query[1]}/values", **{"match[]": fill_in(query[0], ".+")})
            if name == "layer":
                layers = found
    return layers[0] if layers else None


def wanted(layer):
    """Where each query stands, and what it asks."""
    dashboard = read_dashboard(os.path.join(DEPLOY, "grafana", "xmoe.json"))
    for target in targets_of(dashboard):
        yield target.panel, fill_in(target.expr, layer)
    for rule in read_rules(os.path.join(DEPLOY, "prometheus", "recording.yml")):
        if rule.name not in NOT_HERE:
            yield "recording.yml", rule.name


def wait_for_data(prometheus, process):
    deadline = time.monotonic() + GIVE_UP_SECONDS
    missing, failed = None, []
    while missing != [] and not failed and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        try:
            layer = layer_of(prometheus)
        except (OSError, ValueError):
            continue  # not up yet
        if layer is None:
            continue
        if missing is None:
            missing = list(wanted(layer))
        still = []
        for where, expr in missing:
            try:
                if not prometheus.has_data(expr):
                    still.append((where, expr))
            except ValueError as error:
                failed.append(f"{where}: {error}: {expr}")
        missing = still
    for where, expr in missing or []:
        failed.append(f"{where}: no data: {expr}")
    if missing is None:
        failed.append("Prometheus gave no series; see its log")
    return failed


def broken_rules(prometheus):
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] == "err":
                yield f"{rule['name']}: {rule['lastError']}"


def main():
    target, directory = sys.argv[1:]
    port = free_port()
    process = start(target, directory, port)
    try:
        prometheus = Prometheus(port)
        problems = wait_for_data(prometheus, process)
        if process.poll() is None and not problems:
            problems += broken_rules(prometheus)
    finally:
        process.terminate()
        process.wait()
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


main()
