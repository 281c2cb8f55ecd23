#!/usr/bin/env python3
"""Tables and plots of the experiments, from results/ alone.

    table.py headline     every router as trained, beside the reference: loss, experts, operations
    table.py thresholds   trained at one threshold, served at others (and results/thresholds.svg)
    table.py sizes        small experts of 8 to 64 pieces of the same FFN
    table.py all          all of them

Loss is nats per token of the held-out test text. Its standard error on one model is over documents;
differences are paired: of the same documents (one seed), and over seeds where there are several.
"""
import collections
import csv
import math
import pathlib
import sys

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
RUNS = pathlib.Path(__file__).resolve().parent / "runs.csv"
REFERENCE = "topk-8"
WIDTH, MOE_LAYERS = 192, 2  # of all runs: queue.py


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def flag(flags, name, default):
    words = flags.split()
    return words[words.index(name) + 1] if name in words else default


FLAGS = {row["name"]: row["flags"] for row in read(RUNS)}


def trained_setting(run):
    """The routing that xmoe-eval names where nothing else is asked for."""
    kind = flag(FLAGS[run], "--router", "")
    return {"threshold": "threshold " + flag(FLAGS[run], "--threshold", ""),
            "top_k": "top_k " + flag(FLAGS[run], "--top-k", "")}.get(kind, kind)


def moe_flops(row):
    """Of the MoE layers, per token: the experts that were chosen, and the router over all."""
    experts = int(flag(FLAGS[row["run"]], "--experts", "64"))
    router = 2 * WIDTH * experts * MOE_LAYERS if experts > 1 else 0
    return float(row["expert_flops_per_token"]) + router


def rows_by_run():
    """{run: {seed: {served: row over all files}}}"""
    runs = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in read(RESULTS / "runs.csv"):
        if row["file"] == "all":
            runs[row["run"]][int(row["seed"])][row["served"]] = row
    return runs


def documents(run, seed):
    path = RESULTS / "documents" / f"{run}-s{seed}.csv"
    return {(r["file"], r["document"]): (int(r["tokens"]), float(r["nats"])) for r in read(path)}


def mean_and_error(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired(run, seed):
    """Loss of the run minus that of the reference of the same seed, and its error over documents."""
    mine, other = documents(run, seed), documents(REFERENCE, seed)
    tokens = sum(mine[key][0] for key in mine)
    difference = sum(mine[key][1] - other[key][1] for key in mine) / tokens
    squares = sum((mine[key][1] - other[key][1] - difference * mine[key][0]) ** 2 for key in mine)
    return difference, math.sqrt(squares * len(mine) / (len(mine) - 1)) / tokens


def difference_cell(run, seeds, reference_seeds):
    common = [seed for seed in seeds if seed in reference_seeds]
    if run == REFERENCE or not common:
        return ""
    if len(common) == 1:
        difference, error = paired(run, common[0])
        return f"{difference:+.4f} ± {error:.4f} (documents)"
    mean, error = mean_and_error([paired(run, seed)[0] for seed in common])
    return f"{mean:+.4f} ± {error:.4f} ({len(common)} seeds)"


def headline():
    runs = rows_by_run()
    reference = runs[REFERENCE]
    base = mean_and_error([moe_flops(seeds[trained_setting(REFERENCE)])
                           for seeds in reference.values()])[0] if reference else None
    print("| run | seeds | loss, nats/token | against " + REFERENCE + " | bits/byte "
          "| experts per token and layer | MoE MFLOP/token | against " + REFERENCE + " |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in FLAGS:
        if run not in runs:
            continue
        rows = [served[trained_setting(run)] for served in runs[run].values()
                if trained_setting(run) in served]
        loss, error = mean_and_error([float(row["loss"]) for row in rows])
        error = error if error is not None else float(rows[0]["loss_error"])
        flops = mean_and_error([moe_flops(row) for row in rows])[0]
        active = mean_and_error([float(row["mean_active"]) for row in rows])[0]
        bits = mean_and_error([float(row["bits_per_byte"]) for row in rows])[0]
        share = f"{100 * (flops / base - 1):+.0f} %" if base else ""
        print(f"| {run} | {len(rows)} | {loss:.4f} ± {error:.4f} "
              f"| {difference_cell(run, list(runs[run]), list(reference))} | {bits:.4f} "
              f"| {active:.2f} | {flops / 1e6:.3f} | {share} |")


def thresholds():
    runs = rows_by_run()
    trained = [run for run in FLAGS if run in runs and run.startswith("threshold-")]
    served = sorted({name for run in trained for seeds in runs[run].values() for name in seeds},
                    key=lambda name: float(name.split()[1]))
    print("Loss in nats per token (mean active experts), one column a trained model, seed 1:\n")
    print("| served at | " + " | ".join("trained at " + run[10:] for run in trained) + " |")
    print("| --- |" + " --- |" * len(trained))
    for name in served:
        cells = []
        for run in trained:
            row = runs[run].get(1, {}).get(name)
            cells.append(f"{float(row['loss']):.4f} ({float(row['mean_active']):.1f})" if row else "")
        print(f"| {name.split()[1]} | " + " | ".join(cells) + " |")
    plot(runs, trained)


def plot(runs, trained):
    try:
        import matplotlib
    except ImportError:
        sys.exit("table.py: the plot needs python3-matplotlib (deploy/install-deps.sh experiments)")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "xmoe"  # the same file for the same figures
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for run in trained:
        rows = sorted(runs[run].get(1, {}).values(), key=moe_flops)
        axes.plot([moe_flops(row) / 1e6 for row in rows], [float(row["loss"]) for row in rows],
                  marker="o", markersize=3, label=f"threshold, trained at {run[10:]}")
    for run in FLAGS:
        if run in runs and run not in trained and 1 in runs[run]:
            row = runs[run][1].get(trained_setting(run))
            if row:
                axes.plot(moe_flops(row) / 1e6, float(row["loss"]), "x", color="black")
                axes.annotate(run, (moe_flops(row) / 1e6, float(row["loss"])), fontsize=7,
                              xytext=(4, 3), textcoords="offset points")
    axes.set_xlabel("MoE operations per token, MFLOP")
    axes.set_ylabel("test loss, nats per token")
    axes.set_xscale("log")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "thresholds.svg", metadata={"Date": None})
    print(f"\nplot: {RESULTS / 'thresholds.svg'}", file=sys.stderr)


def sizes():
    runs = rows_by_run()
    print("| experts | hidden units of one | loss, nats/token | experts per token and layer "
          "| MoE MFLOP/token |")
    print("| --- | --- | --- | --- | --- |")
    for run in ("experts-8", "experts-16", "experts-32", "threshold-0.5"):
        row = runs.get(run, {}).get(1, {}).get(trained_setting(run))
        if row:
            print(f"| {flag(FLAGS[run], '--experts', '64')} "
                  f"| {flag(FLAGS[run], '--expert-feed-forward', '96')} "
                  f"| {float(row['loss']):.4f} ± {float(row['loss_error']):.4f} "
                  f"| {float(row['mean_active']):.2f} | {moe_flops(row) / 1e6:.3f} |")


TABLES = {"headline": headline, "thresholds": thresholds, "sizes": sizes}


def main():
    wanted = sys.argv[1] if len(sys.argv) == 2 else ""
    if wanted not in (*TABLES, "all"):
        sys.exit(__doc__)
    if not (RESULTS / "runs.csv").exists():
        sys.exit("table.py: no run is measured yet (queue.py run)")
    for name in TABLES if wanted == "all" else [wanted]:
        print(f"\n## {name}\n")
        TABLES[name]()


if __name__ == "__main__":
    main()
