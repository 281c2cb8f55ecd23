"""Reads what deploy/prometheus and deploy/grafana hold, without anything beyond Python itself: rules,
panels, and the metrics and labels that a PromQL expression names."""

import json
import re

GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
AGGREGATORS = {"sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "topk", "bottomk",
               "count_values", "quantile"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}

TOKEN = re.compile(r"""
    (?P<string> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' )
  | (?P<range> \[ [^\]]* \] )
  | (?P<number> \d [\w.]* )
  | (?P<name> [A-Za-z_:] [\w:]* )
  | (?P<mark> [{}()] | [^\s] )
""", re.VERBOSE)


class Selector:
    """A metric in an expression and the labels that it is selected by."""

    def __init__(self, metric, labels):
        self.metric, self.labels = metric, labels


def read_expression(text):
    """The selectors of a PromQL expression, and the labels that it groups or joins by."""
    tokens = [(match.lastgroup, match.group()) for match in TOKEN.finditer(text)]
    selectors, grouped, i = [], set(), 0

    def is_mark(index, mark):
        return index < len(tokens) and tokens[index] == ("mark", mark)

    def names_until(index, end):
        """The names from index to the mark end that stand where a label's name does."""
        names = []
        while not is_mark(index, end):
            kind, value = tokens[index]
            if kind == "name":
                names.append(value)
            index += 1
        return names, index + 1

    while i < len(tokens):
        kind, name = tokens[i]
        i += 1
        if kind == "mark" and name == "{":
            raise ValueError("a selector without a metric: " + text)
        if kind != "name" or name in WORDS or name in AGGREGATORS:
            continue
        if name in GROUPINGS:
            if is_mark(i, "("):
                names, i = names_until(i + 1, ")")
                grouped.update(names)
        elif is_mark(i, "{"):
            labels, i = names_until(i + 1, "}")
            selectors.append(Selector(name, labels))
        elif not is_mark(i, "("):  # a function's name is followed by one
            selectors.append(Selector(name, []))
    return selectors, grouped


class Rule:
    def __init__(self, kind, name):
        self.kind, self.name, self.expr, self.text = kind, name, "", ""

    def has(self, key):
        return re.search(rf"^\s*{key}:|[{{ ]{key}:", self.text, re.MULTILINE) is not None


def read_rules(path):
    """The rules of a file, which is YAML as this project writes it: a rule begins with "- record:" or
    "- alert:", its expr is the rest of the line or, after "|", the lines that are indented deeper."""
    rules, block = [], None
    for line in open(path, encoding="utf-8"):
        if line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        start = re.match(r"\s*- (record|alert): (\S+)", line)
        if start:
            rules.append(Rule(*start.groups()))
            block = None
            continue
        if not rules:
            continue
        rules[-1].text += line
        expr = re.match(r"\s*expr: (.*)", line)
        if expr:
            block = indent if expr.group(1) == "|" else None
            rules[-1].expr = "" if block is not None else expr.group(1)
        elif block is not None and (indent > block or not line.strip()):
            rules[-1].expr += line
        else:
            block = None
    return rules


class Target:
    """One query of a panel, or of a variable."""

    def __init__(self, panel, expr, legend):
        self.panel, self.expr, self.legend = panel, expr, legend


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def targets_of(dashboard):
    for panel in panels_of(dashboard):
        for target in panel.get("targets", []):
            yield Target(panel["title"], target["expr"], target["legendFormat"])


def variables_of(dashboard):
    """Name and, of those that ask Prometheus, the selector and label of label_values(), else None."""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            yield variable["name"], None
            continue
        inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        yield variable["name"], inner.groups()


def read_dashboard(path):
    return json.load(open(path, encoding="utf-8"))
