"""Figures from results/: means, standard errors, paired differences. For table.py and plots.py.

A model's loss on the test text has an error over documents as independent samples, which is large,
because documents differ. The difference of two models on the same documents has a much smaller one:
differences here are always paired. Where there are several seeds, a difference's error is that of
its mean over seeds, each seed's pair of models having seen the same data in the same order.
"""
import collections
import functools
import math

import plan

REFERENCE = "topk-8"
TRAINED = "as trained"


@functools.cache
def measured():
    """{run: {seed: {label: row over all files}}}; seeds ascending."""
    runs = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in plan.read_csv(plan.RESULTS / "runs.csv"):
        if row["file"] == "all":
            runs[row["run"]][int(row["seed"])][row["served"]] = row
    return runs


def names(*prefixes):
    """Runs that are measured, in the order of the list, with a name that begins so (none: all)."""
    return [name for name in plan.RUNS if TRAINED in measured().get(name, {}).get(1, {})
            and (not prefixes or name.startswith(prefixes))]


def seeds(name, label=TRAINED):
    return sorted(seed for seed, rows in measured().get(name, {}).items() if label in rows)


def labels(name, kind=""):
    """The servings of a run that are measured, in the order of the plan."""
    every = [plan.label(serving) for serving in plan.servings(name)]
    return [label for label in every if label.startswith(kind) and seeds(name, label)]


def rows(name, label=TRAINED, of=None):
    return [measured()[name][seed][label] for seed in of or seeds(name, label)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def mean_and_error(values):
    """The error is None for one value."""
    values = list(values)
    middle = mean(values)
    if len(values) < 2:
        return middle, None
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return middle, math.sqrt(variance / len(values))


def column(name, label, field, of=None):
    return mean(float(row[field]) for row in rows(name, label, of))


def moe_flops(name, label=TRAINED, of=None):
    return plan.moe_flops(name, column(name, label, "expert_flops_per_token", of))


def model_flops(name, label=TRAINED):
    return plan.model_flops(name, column(name, label, "expert_flops_per_token"))


def trained_threshold(name):
    return plan.flag(plan.FLAGS[name], "--threshold")


def threshold_of(name, label):
    """The threshold of a label; as trained too."""
    return float(trained_threshold(name) if label == TRAINED else label.split()[1])


def curve(name):
    """Labels of all thresholds that a model was served at, ascending."""
    own = [TRAINED] if plan.is_set_by_threshold(name) else []
    return sorted(own + labels(name, "threshold "), key=lambda label: threshold_of(name, label))


# --- documents -------------------------------------------------------------------------------------


@functools.cache
def documents(name, seed):
    """{(domain, document): row} with a column of summed nats for each label."""
    path = plan.RESULTS / "documents" / f"{name}-s{seed}.csv"
    return {(row["file"], row["document"]): row for row in plan.read_csv(path)}


def half(key, which):
    """Documents by turns: one half to choose on, the other to report on; None: all."""
    return which is None or int(key[1]) % 2 == which


def ratio_error(pairs):
    """Mean of (value, size) pairs per unit of size, and its error over pairs as samples."""
    pairs = list(pairs)
    total = sum(size for _, size in pairs)
    middle = sum(value for value, _ in pairs) / total
    squares = sum((value - middle * size) ** 2 for value, size in pairs)
    return middle, math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total


def paired(name, label, other, other_label, seed, which=None):
    """Loss of one model minus that of another of the same seed, and its error over documents."""
    mine, theirs = documents(name, seed), documents(other, seed)
    return ratio_error((float(row[label]) - float(theirs[key][other_label]), int(row["tokens"]))
                       for key, row in mine.items() if half(key, which))


def difference(name, label=TRAINED, other=REFERENCE, other_label=TRAINED, which=None):
    """(mean, error, what the error is over) over the seeds that both have; None if there are none."""
    common = [seed for seed in seeds(name, label) if seed in seeds(other, other_label)]
    if not common:
        return None
    pairs = [paired(name, label, other, other_label, seed, which) for seed in common]
    if len(pairs) == 1:
        return *pairs[0], "documents"
    return *mean_and_error(pair[0] for pair in pairs), f"{len(pairs)} seeds"


def show_difference(found):
    return f"{found[0]:+.4f} ± {found[1]:.4f} ({found[2]})" if found else ""


# --- the same number of experts, fixed or by a threshold -------------------------------------------


def interpolated(name, seed, active):
    """The losses of all documents on the curve of thresholds, where it takes so many experts on
    average: linear in the logarithm of the number between the two nearest thresholds. None if the
    curve does not reach so far."""
    points = [(math.log(float(measured()[name][seed][label]["mean_active"])), label)
              for label in curve(name) if label in measured()[name][seed]]
    points.sort()
    x = math.log(active)
    for (left, left_label), (right, right_label) in zip(points, points[1:]):
        if left <= x <= right:
            share = (x - left) / (right - left) if right > left else 0.0
            return {key: (1 - share) * float(row[left_label]) + share * float(row[right_label])
                    for key, row in documents(name, seed).items()}
    return None


def adaptive_gain(name, k, seed):
    """Loss with k experts for every token minus that of a threshold that takes k on average."""
    curve_nats = interpolated(name, seed, k)
    if curve_nats is None:
        return None
    trained = plan.router(name) == "top_k" and plan.number(plan.FLAGS[name], "--top-k") == k
    label = TRAINED if trained else f"top_k {k}"
    table = documents(name, seed)
    if label not in next(iter(table.values())):
        return None
    return ratio_error((float(row[label]) - curve_nats[key], int(row["tokens"]))
                       for key, row in table.items())
