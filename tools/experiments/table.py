#!/usr/bin/env python3
"""Tables and plots of the experiments, from results/ alone.

    table.py NAME     prints a table in Markdown; where there is a plot, writes results/NAME.svg
    table.py all
    table.py readme   writes the tables in README.md anew, and draws the plots
    table.py check    fails if those tables are not what results/ gives

A table stands in README.md behind a line <!-- table NAME -->, or <!-- table NAME CELL --> for the rows
that begin with that cell, and goes as far as lines begin with |.

The plots need python3-matplotlib (deploy/install-deps.sh experiments); tables come without it.
"""
import contextlib
import io
import re
import statistics
import sys

import figures
import plan
from figures import REFERENCE, TRAINED


def print_table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def mega(flops):
    return f"{flops / 1e6:.3f}"


def percent(value, base):
    return f"{100 * (value / base - 1):+.0f} %"


def moe_change(name, label=TRAINED):
    """Against the reference, by the same seeds."""
    common = [seed for seed in figures.seeds(name, label) if seed in figures.seeds(REFERENCE)]
    if not common:
        return ""
    return percent(figures.moe_flops(name, label, common),
                   figures.moe_flops(REFERENCE, TRAINED, common))


def runs():
    """What was trained."""
    trained = {}
    for row in plan.read_csv(plan.RESULTS / "training.csv"):
        trained.setdefault(row["run"], []).append(row)
    rows = []
    for name, done in trained.items():
        rows.append([name, len(done), f"{int(done[0]['parameters']):,}",
                     mega(figures.model_flops(name)) if name in figures.names() else "",
                     f"{figures.mean(float(row['valid_loss']) for row in done):.4f}",
                     f"{figures.mean(float(row['seconds']) for row in done) / 60:.0f}"])
    print_table(["run", "seeds", "parameters", "model MFLOP/token", "validation loss",
                 "minutes of training"], rows)


def headline():
    """Every run as trained."""
    rows = []
    for name in figures.names():
        same = figures.rows(name)
        loss, seed_error = figures.mean_and_error(float(row["loss"]) for row in same)
        spread = f" ± {seed_error:.4f}" if seed_error is not None else ""
        against = "" if name == REFERENCE else figures.show_difference(figures.difference(name))
        rows.append([name, len(same), f"{loss:.4f}{spread}", against,
                     f"{figures.column(name, TRAINED, 'bits_per_byte'):.4f}",
                     f"{figures.column(name, TRAINED, 'mean_active'):.2f}",
                     mega(figures.moe_flops(name)), moe_change(name),
                     percent(figures.model_flops(name), figures.model_flops(REFERENCE))
                     if REFERENCE in figures.names() else ""])
    print_table(["run", "seeds", "loss, nats/token", f"loss against {REFERENCE}", "bits/byte",
                 "experts per token and layer", "MoE MFLOP/token", f"MoE against {REFERENCE}",
                 "whole model"], rows)


def cheapest(name):
    """The serving of fewest operations that loses nothing to the reference on the documents that
    are for choosing; None: all lose."""
    good = []
    for label in figures.labels(name):
        found = figures.difference(name, label, which=0)
        if found and found[0] <= 0:
            good.append((figures.moe_flops(name, label), label))
    return min(good)[1] if good else None


def saving():
    """What each model can save by being served with fewer experts than it was trained with, at the
    loss of the reference as trained. The serving is chosen on every other document, and its loss is
    that of the others."""
    rows = []
    for name in figures.names():
        label = cheapest(name)
        if name == REFERENCE and label == TRAINED:
            rows.append([name, TRAINED, f"{figures.column(name, TRAINED, 'mean_active'):.2f}", "",
                         "+0 %"])
        elif label is None:
            rows.append([name, "none", "", "", ""])
        else:
            rows.append([name, label, f"{figures.column(name, label, 'mean_active'):.2f}",
                         figures.show_difference(figures.difference(name, label, which=1)),
                         moe_change(name, label)])
    print_table(["trained as", "cheapest serving without loss", "experts per token and layer",
                 f"loss against {REFERENCE}, other documents", f"MoE against {REFERENCE}"], rows)


def speed():
    """Tokens per second in the server, one request at a time, eight at once, and of prompts: medians
    of rounds in which the models take turns. Against the reference: the median over rounds of the
    ratio within a round."""
    cells = {}
    for row in plan.read_csv(plan.RESULTS / "speed.csv"):
        cells.setdefault((row["run"], row["served"]), {}).setdefault(row["requests"], []).append(row)
    reference = cells.get((REFERENCE, TRAINED), {})
    rows = []
    for (name, label), kinds in cells.items():
        row = [name, label, f"{statistics.median(float(r['mean_active']) for r in kinds['1']):.2f}"]
        for kind in ("1", "8", "prompts"):
            own = [float(r["tokens_per_second"]) for r in kinds[kind]]
            base = [float(r["tokens_per_second"]) for r in reference.get(kind, [])]
            ratios = [a / b for a, b in zip(own, base)]
            against = f" ({100 * statistics.median(ratios) - 100:+.0f} %)" if ratios else ""
            row.append(f"{statistics.median(own):.0f}{against}")
        rows.append(row)
    print_table(["run", "served", "experts per token and layer, 1 request", "1 request", "8 requests",
                 "prompts"], rows)


def thresholds():
    """Trained at one threshold, served at others: loss (experts per token and layer)."""
    trained = figures.names("threshold-")
    values = sorted({figures.threshold_of(name, label) for name in trained
                     for label in figures.curve(name)})
    rows = []
    for value in values:
        cells = []
        for name in trained:
            label = next((label for label in figures.curve(name)
                          if figures.threshold_of(name, label) == value), None)
            cell = "" if label is None else (f"{figures.column(name, label, 'loss'):.4f} "
                                             f"({figures.column(name, label, 'mean_active'):.1f})")
            cells.append(f"**{cell}**" if label == TRAINED else cell)
        rows.append([f"{value:g}", *cells])
    print_table(["served at", *("trained at " + figures.trained_threshold(name)
                                for name in trained)], rows)


def fixed():
    """The same model with k experts for every token, against a threshold that takes k on average:
    what choosing the number by token is worth. Positive: the threshold is better. The threshold's
    loss is interpolated between those measured."""
    rows = []
    for name in figures.names("threshold-", "topk-", "large-top-"):
        cells = []
        for k in map(int, plan.FIXED):
            gains = [gain for seed in figures.seeds(name)
                     if (gain := figures.adaptive_gain(name, k, seed)) is not None]
            if len(gains) > 1:
                cells.append("{:+.4f} ± {:.4f}".format(*figures.mean_and_error(
                    gain for gain, _ in gains)) + f" ({len(gains)} seeds)")
            else:
                cells.append("{:+.4f} ± {:.4f}".format(*gains[0]) if gains else "")
        if any(cells):
            rows.append([name, *cells])
    print_table(["model", *(f"{k} experts" for k in plan.FIXED)], rows)


def sizes():
    """The same hidden units cut into more or fewer experts, threshold 0.5 while training."""
    rows = []
    for name in sorted(figures.names("experts-", "threshold-0.5"),
                       key=lambda name: plan.number(plan.FLAGS[name], "--experts")):
        flags = plan.FLAGS[name]
        loss, error = figures.paired(name, TRAINED, "threshold-0.5", TRAINED, 1) \
            if "threshold-0.5" in figures.names() and name != "threshold-0.5" else (None, None)
        rows.append([plan.flag(flags, "--experts"), plan.flag(flags, "--expert-feed-forward"),
                     f"{figures.column(name, TRAINED, 'loss', [1]):.4f}",
                     "" if loss is None else f"{loss:+.4f} ± {error:.4f}",
                     f"{figures.column(name, TRAINED, 'mean_active', [1]):.2f}",
                     mega(figures.moe_flops(name, TRAINED, [1]))])
    print_table(["experts", "hidden units of one", "loss, nats/token", "against 64 experts",
                 "experts per token and layer", "MoE MFLOP/token"], rows)


def domains():
    """Bits per byte of every domain's test text, as trained."""
    cells = {}
    for row in plan.read_csv(plan.RESULTS / "runs.csv"):
        if row["served"] == TRAINED:
            cells.setdefault((row["run"], row["file"]), []).append(float(row["bits_per_byte"]))
    rows = []
    for name in figures.names():
        values = [figures.mean(cells[name, domain]) for domain in plan.DOMAINS]
        rows.append([name, *(f"{value:.4f}" for value in values), f"{figures.mean(values):.4f}"])
    print_table(["run", *plan.DOMAINS, "mean of domains"], rows)


def layers():
    """Experts of each MoE layer, as trained, over all test text. Entropy of the experts' shares as
    a part of the largest possible; balance is mean over largest share; dead ones were never taken."""
    rows = []
    for row in plan.read_csv(plan.RESULTS / "layers.csv"):
        if row["served"] == TRAINED and row["seed"] == "1" and plan.is_moe(row["run"]):
            rows.append([row["run"], row["layer"], f"{float(row['mean_active']):.2f}",
                         f"{float(row['entropy']):.3f}", f"{float(row['load_balance']):.3f}",
                         row["dead"]])
    print_table(["run", "layer", "experts per token", "entropy", "balance", "dead"], rows)


def shown_model():
    """The model whose tokens and domains are shown: the first threshold run of the list."""
    found = figures.names("threshold-")
    return found[0] if found else None


CLASS_ORDER = ("every token", "whole word", "first part of a word", "later part of a word",
               "punctuation", "digits", "white space", "name", "not a name", "keyword",
               "other word of code", "in a comment")


def classes():
    """Experts per token by what the token is and where it stands; error over documents; seed 1."""
    table = [row for row in plan.read_csv(plan.RESULTS / "classes.csv")
             if row["run"] == shown_model() and row["seed"] == "1"]
    cells = {(row["domain"], row["class"], row["layer"]): row for row in table}
    layer_numbers = sorted({row["layer"] for row in table}, key=int)
    print(f"Model: {shown_model()}.\n")
    rows = []
    for domain in (*plan.DOMAINS, "all"):
        for name in CLASS_ORDER:
            found = [cells.get((domain, name, layer)) for layer in layer_numbers]
            if all(found) and int(found[0]["tokens"]) >= 100:
                rows.append([domain, name, found[0]["tokens"],
                             *(f"{float(row['mean_active']):.2f} ± {float(row['error']):.2f}"
                               for row in found)])
    print_table(["text", "tokens that are", "number",
                 *(f"experts in layer {layer}" for layer in layer_numbers)], rows)


def specialisation():
    """Bits that the domain tells about the expert taken (mutual information), against domains dealt
    to whole documents at random; seed 1."""
    rows = []
    for row in plan.read_csv(plan.RESULTS / "specialisation.csv"):
        if row["seed"] == "1":
            rows.append([row["run"], row["layer"], row["measure"], row["bits"],
                         f"{row['shuffled_mean']} (at most {row['shuffled_most']})",
                         row["p_value"], f"{float(row['domain_entropy']):.2f}"])
    print_table(["run", "layer", "over", "bits", "shuffled", "p", "bits at most"], rows)


def switches():
    """Experts per token after a change of language, against the same tokens after the passage that
    they follow in the corpus; error over passages; seed 1."""
    rows = []
    for row in plan.read_csv(plan.RESULTS / "switches.csv"):
        if row["run"] == shown_model() and row["seed"] == "1":
            rows.append([row["layer"], row["distance"], row["tokens"],
                         f"{float(row['steady']):.2f}", f"{float(row['switched']):.2f}",
                         f"{float(row['difference']):+.2f} ± {float(row['error']):.2f}"])
    print(f"Model: {shown_model()}.\n")
    print_table(["layer", "tokens since the change, from", "tokens", "no change", "change",
                 "difference"], rows)


TABLES = (runs, headline, saving, speed, thresholds, fixed, sizes, domains, layers, classes,
          specialisation, switches)
PLOTS = ("thresholds", "sizes", "classes", "specialisation")
README = plan.HERE / "README.md"


def draw(name):
    try:
        import plots
    except ImportError:
        sys.exit("table.py: the plot needs python3-matplotlib (deploy/install-deps.sh experiments)")
    path = plan.RESULTS / f"{name}.svg"
    plots.draw(name, path, shown_model())
    print(f"plot: {path}", file=sys.stderr)


def lines_of(name, cell):
    """A table without the words around it; cell: what the rows wanted begin with, or None."""
    by_name = {table.__name__: table for table in TABLES}
    with contextlib.redirect_stdout(io.StringIO()) as text:
        by_name[name]()
    lines = [line for line in text.getvalue().split("\n") if line.startswith("|")]
    return lines[:2] + [line for line in lines[2:] if cell is None or line.startswith(f"| {cell} |")]


def fresh_readme():
    def replace(match):
        return match[1] + "\n".join(lines_of(match[2], match[3])) + "\n"

    return re.sub(r"(<!-- table (\w+)(?: ([\w-]+))? -->\n\n?)(?:\|.*\n)*", replace, README.read_text())


def main():
    if sys.argv[1:] == ["check"]:
        sys.exit(None if README.read_text() == fresh_readme() else
                 "table.py: README.md has other tables than results/ gives: table.py readme")
    if sys.argv[1:] == ["readme"]:
        README.write_text(fresh_readme())
        for name in PLOTS:
            draw(name)
        return
    wanted = [table for table in TABLES if sys.argv[1:] in ([table.__name__], ["all"])]
    if not wanted:
        sys.exit(__doc__ + "\nNAME: " + ", ".join(table.__name__ for table in TABLES))
    if not (plan.RESULTS / "runs.csv").exists():
        sys.exit("table.py: nothing is measured yet (run.py run)")
    for table in wanted:
        print(f"\n## {table.__name__}\n\n{' '.join(table.__doc__.split())}\n")
        table()
        if table.__name__ in PLOTS and shown_model():
            draw(table.__name__)


if __name__ == "__main__":
    main()
