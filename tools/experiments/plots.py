"""The plots of table.py, as SVG files that are the same for the same figures."""
import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "xmoe"
from matplotlib import pyplot  # noqa: E402

import figures  # noqa: E402
import plan  # noqa: E402
from figures import TRAINED  # noqa: E402


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def loss_against_operations():
    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.set_xlabel("operations of the MoE layers per token, MFLOP")
    axes.set_ylabel("test loss, nats per token")
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    return figure, axes


def line(axes, name, labels, text, **style):
    """Seed 1, which all runs have."""
    points = sorted((figures.moe_flops(name, label, [1]) / 1e6,
                     figures.column(name, label, "loss", [1])) for label in labels
                    if 1 in figures.seeds(name, label))
    axes.plot(*zip(*points), markersize=3, label=text, **style)


def mark_trained(axes, name, colour):
    axes.plot(figures.moe_flops(name, TRAINED, [1]) / 1e6,
              figures.column(name, TRAINED, "loss", [1]), "o", markersize=8, color=colour)


def fixed_labels(name):
    own = [TRAINED] if plan.router(name) == "top_k" else []
    return own + figures.labels(name, "top_k ")


def draw_thresholds(path, _shown):
    figure, axes = loss_against_operations()
    for i, name in enumerate(figures.names("threshold-")):
        line(axes, name, figures.curve(name), f"trained at threshold {figures.trained_threshold(name)}",
             marker="o", color=f"C{i}")
        mark_trained(axes, name, f"C{i}")
    for i, name in enumerate(figures.names("topk-", "large-top-")):
        line(axes, name, fixed_labels(name), f"{name}, served with 1, 2, 4, 8 experts",
             marker="s", linestyle=":", color=f"C{(5 + i) % 10}")
        mark_trained(axes, name, f"C{(5 + i) % 10}")
    for name in figures.names("dense-", "large-hash", "large-base", "sigmoid", "recurrent", "views"):
        point = (figures.moe_flops(name) / 1e6, figures.column(name, TRAINED, "loss", [1]))
        axes.plot(*point, "x", color="black")
        axes.annotate(name, point, fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_title("large dots: as trained", fontsize=9)
    axes.legend(fontsize=7)
    save(figure, path)


def draw_sizes(path, _shown):
    figure, axes = loss_against_operations()
    for i, name in enumerate(sorted(figures.names("experts-", "threshold-0.5"),
                                    key=lambda name: plan.number(plan.FLAGS[name], "--experts"))):
        flags = plan.FLAGS[name]
        line(axes, name, figures.curve(name), f"{plan.flag(flags, '--experts')} experts of "
             f"{plan.flag(flags, '--expert-feed-forward')}", marker="o", color=f"C{i}")
        mark_trained(axes, name, f"C{i}")
    axes.legend(fontsize=8)
    save(figure, path)


def draw_classes(path, shown):
    kinds = ("whole word", "first part of a word", "later part of a word", "punctuation", "digits",
             "white space", "name", "not a name", "keyword")
    table = {(row["domain"], row["class"], row["layer"]): row
             for row in plan.read_csv(plan.RESULTS / "classes.csv")
             if row["run"] == shown and row["seed"] == "1" and int(row["tokens"]) >= 100}
    layers = sorted({key[2] for key in table}, key=int)
    figure, panels = pyplot.subplots(1, len(layers), figsize=(10, 4), sharey=True)
    for panel, layer in zip(panels, layers):
        for i, domain in enumerate(plan.DOMAINS):
            places = [k for k, kind in enumerate(kinds) if (domain, kind, layer) in table]
            found = [table[domain, kinds[k], layer] for k in places]
            panel.barh([k + 0.2 * (i - 1.5) for k in places],
                       [float(row["mean_active"]) for row in found], 0.18,
                       xerr=[float(row["error"]) for row in found], label=domain)
        panel.set_yticks(range(len(kinds)), kinds)
        panel.set_title(f"layer {layer}", fontsize=9)
        panel.set_xlabel("experts per token")
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8)
    save(figure, path)


def draw_specialisation(path, shown):
    """Each expert's choices by domain, every domain weighing the same: columns are experts in the
    order of the domain that takes them most."""
    table = [row for row in plan.read_csv(plan.RESULTS / "experts.csv")
             if row["run"] == shown and row["seed"] == "1"]
    layers = sorted({row["layer"] for row in table}, key=int)
    figure, panels = pyplot.subplots(len(layers), 1, figsize=(10, 1.6 * len(layers) + 1))
    for panel, layer in zip(panels, layers):
        rows = [[int(row[domain]) for domain in plan.DOMAINS] for row in table
                if row["layer"] == layer]
        sums = [sum(column) for column in zip(*rows)]
        shares = []
        for row in rows:
            weights = [count / total for count, total in zip(row, sums)]
            shares.append([weight / sum(weights) for weight in weights])
        shares.sort(key=lambda share: (share.index(max(share)), -max(share)))
        panel.imshow(list(zip(*shares)), aspect="auto", vmin=0, vmax=1, cmap="viridis")
        panel.set_yticks(range(len(plan.DOMAINS)), plan.DOMAINS)
        panel.set_xticks([])
        panel.set_title(f"layer {layer}: {len(shares)} experts", fontsize=9)
    save(figure, path)


DRAWINGS = {"thresholds": draw_thresholds, "sizes": draw_sizes, "classes": draw_classes,
            "specialisation": draw_specialisation}


def draw(name, path, shown):
    DRAWINGS[name](path, shown)
