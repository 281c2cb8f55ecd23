"""Holds the server's /metrics, the rules in deploy/prometheus and the dashboard in deploy/grafana
together: check_metrics.py METRICS, a file with the text of /metrics.

Every metric and label that a rule or a panel names is exported or recorded, everything exported is
shown, every rule has its test, and what is said to a person names settings that exist. Prints what is
wrong, a line each, and exits with 1 if something is.
"""

import json
import os
import re
import sys

from monitor_files import (panels_of, read_dashboard, read_expression, read_rules, targets_of,
                           variables_of)

HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOY = os.path.join(HERE, "..", "..", "deploy")

# Exported, but in no panel, and why.
NOT_SHOWN = {
    "xmoe_time_per_output_token_seconds": "the older name of xmoe_inter_token_latency_seconds",
}
# The same name as vLLM's, against the rule that _total is for counters.
ODD_NAMES = {"xmoe_iteration_tokens_total"}
# What Prometheus itself adds.
OWN_SERIES = {"up"}
OWN_LABELS = {"job", "instance"}

problems = []


def complain(where, what):
    problems.append(f"{where}: {what}")


class Exposition:
    """The text of /metrics: families by name, and of each series the labels that it has."""

    def __init__(self, text):
        self.types, self.labels, self.values = {}, {}, {}
        helped = set()
        for line in text.splitlines():
            if line.startswith("# HELP "):
                helped.add(line.split(" ")[2])
            elif line.startswith("# TYPE "):
                name, kind = line.split(" ")[2:]
                if name in self.types or name not in helped:
                    complain(name, "TYPE twice or without HELP")
                self.types[name] = kind
            elif line:
                self.add_series(line)

    def add_series(self, line):
        name, labels, value = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line).groups()
        labels = dict(re.findall(r'(\w+)="((?:\\.|[^"\\])*)"', labels or ""))
        self.labels.setdefault(name, set()).update(labels)
        self.values.setdefault(name, []).append((labels, float(value)))

    def family(self, series):
        for suffix in ("", "_bucket", "_sum", "_count"):
            name = series[:len(series) - len(suffix)]
            if series.endswith(suffix) and name in self.types:
                return name
        return None

    def check_conventions(self):
        for name, kind in self.types.items():
            if (kind == "counter") != name.endswith("_total") and name not in ODD_NAMES:
                complain(name, f"a {kind} of that name")
            if kind == "histogram":
                self.check_histogram(name)
        for series in self.values:
            if self.family(series) is None:
                complain(series, "no TYPE")

    def check_histogram(self, name):
        """Buckets rise, and the last, +Inf, is the count."""
        counts = {self.key(labels): value for labels, value in self.values[name + "_count"]}
        last = {}
        for labels, value in self.values[name + "_bucket"]:
            key = self.key(labels)
            bound = float(labels["le"])
            if key in last and not (last[key][0] < bound and last[key][1] <= value):
                complain(name, f"bucket {labels} is not above the one before")
            last[key] = (bound, value)
        if {key: (float("inf"), value) for key, value in counts.items()} != last:
            complain(name, "the bucket +Inf is missing or is not the count")

    @staticmethod
    def key(labels):
        return tuple(sorted((name, value) for name, value in labels.items() if name != "le"))


def check_expression(where, expr, exposition, recorded, shown):
    """recorded: labels of the rules' own metrics. Adds the families that it uses to shown; gives the
    labels that its result can have."""
    expr = re.sub(r"\$__\w+|\$\{?\w+\}?", "5m", expr) if "$" in expr else expr
    selectors, grouped = read_expression(expr)
    possible = set(OWN_LABELS)
    if not selectors:
        complain(where, "names no metric")
    for selector in selectors:
        if selector.metric in OWN_SERIES:
            labels = set()
        elif selector.metric in recorded:
            labels = recorded[selector.metric]
        elif exposition.family(selector.metric) and selector.metric in exposition.labels:
            labels = exposition.labels[selector.metric]
            shown.add(exposition.family(selector.metric))
        else:
            complain(where, f"{selector.metric} is neither exported nor recorded")
            continue
        possible |= labels
        for label in set(selector.labels) - labels - OWN_LABELS:
            complain(where, f"{selector.metric} has no label {label}")
    for label in grouped - possible:
        complain(where, f"no metric of it has the label {label}")
    return possible


def check_words(where, text, settings):
    """Settings that a text for people names."""
    groups = "|".join(sorted({name.split(".")[0] for name in settings}))
    for word in re.findall(rf"(?<![\w/.-])(?:{groups})\.[a-z_]+", text):
        if word not in settings:
            complain(where, f"there is no setting {word}")


def check_rules(exposition, settings):
    """Gives the labels of the recorded metrics."""
    recording = read_rules(os.path.join(DEPLOY, "prometheus", "recording.yml"))
    alerts = read_rules(os.path.join(DEPLOY, "prometheus", "alerts.yml"))
    recorded = {}
    for rule in recording:
        labels = check_expression(rule.name, rule.expr, exposition, recorded, set())
        own = re.search(r"labels: \{(\w+):", rule.text)
        recorded.setdefault(rule.name, set()).update(labels | ({own.group(1)} if own else set()))
    for rule in alerts:
        check_expression(rule.name, rule.expr, exposition, recorded, set())
        check_words(rule.name, rule.text, settings)
        for key in ("severity", "summary", "description", "for"):
            if not rule.has(key):
                complain(rule.name, f"has no {key}")
    check_tested({rule.name for rule in recording}, {rule.name for rule in alerts})
    print(f"{len(recording)} recording rules, {len(alerts)} alerts")
    return recorded


def check_tested(recorded, alerts):
    """Each recorded metric is asked for in the tests, each alert is seen both to fire and not to."""
    text = open(os.path.join(HERE, "recording_test.yml"), encoding="utf-8").read()
    for name in recorded:
        if not re.search(rf"- expr: .*{name}\b", text):
            complain(name, "has no test")
    text = open(os.path.join(HERE, "alerts_test.yml"), encoding="utf-8").read()
    cases = re.findall(r"- alertname: (\w+)\n +eval_time: .*\n +exp_alerts:( \[\])?", text)
    for name in alerts:
        if {empty for alert, empty in cases if alert == name} != {"", " []"}:
            complain(name, "has no test that it fires, or none that it does not")


def check_layout(dashboard):
    """Grafana would take these silently and show something else."""
    panels = list(panels_of(dashboard))
    ids = [panel["id"] for panel in panels]
    if len(set(ids)) != len(ids):
        complain("dashboard", "two panels have one id")
    variables = {name for name, _ in variables_of(dashboard)}
    for used in set(re.findall(r"\$\{?([A-Za-z]\w*)", json.dumps(dashboard))):
        if used not in variables:
            complain("dashboard", f"there is no variable {used}")
    taken = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= 24 or (x, y) in taken:
                    complain(panel["title"], f"is outside or over {taken.get((x, y))}")
                    return
                taken[(x, y)] = panel["title"]
    for panel in panels:
        if panel["type"] == "row":
            continue
        for source in [panel] + panel["targets"]:
            if source["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                complain(panel["title"], "does not use the variable datasource")
        if not panel["description"] or "unit" not in panel["fieldConfig"]["defaults"]:
            complain(panel["title"], "has no description or no unit")


def check_dashboard(exposition, recorded, settings):
    dashboard = read_dashboard(os.path.join(DEPLOY, "grafana", "xmoe.json"))
    shown, count = set(), 0
    check_layout(dashboard)
    for target in targets_of(dashboard):
        labels = check_expression(target.panel, target.expr, exposition, recorded, shown)
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target.legend):
            if label not in labels:
                complain(target.panel, f"its legend names the label {label}")
        count += 1
    for name, query in variables_of(dashboard):
        if query:
            labels = check_expression(name, query[0], exposition, recorded, set())
            if query[1] not in labels:
                complain(name, f"there is no label {query[1]}")
    for panel in panels_of(dashboard):
        check_words(panel["title"], panel.get("description", ""), settings)
    for family in exposition.types:
        if family not in shown and family not in NOT_SHOWN:
            complain(family, "is exported, but no panel shows it")
    for family in NOT_SHOWN:
        if family in shown or family not in exposition.types:
            complain(family, "need not be excused: it is shown, or not exported")
    print(f"{count} queries of {len(list(panels_of(dashboard)))} panels over {len(shown)} of "
          f"{len(exposition.types)} metrics")


def main():
    with open(sys.argv[1], encoding="utf-8") as metrics:
        exposition = Exposition(metrics.read())
    with open(os.path.join(HERE, "..", "..", "config", "README.md"), encoding="utf-8") as readme:
        settings = set(re.findall(r"^\| `(\w+\.\w+)`", readme.read(), re.MULTILINE))
    exposition.check_conventions()
    check_dashboard(exposition, check_rules(exposition, settings), settings)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


main()
