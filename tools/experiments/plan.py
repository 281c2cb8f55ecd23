"""What all runs have in common: the list of runs, the shape of their models, where results lie, and
how operations are counted. The other scripts of this directory import it; nothing here runs.
"""
import csv
import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOMAINS = ("en", "fr", "de", "code")
STEPS = 2500
FIRST_SEED = 1
HEADLINE = ("threshold-0.9", "topk-8", "threshold-0.5")  # all seeds are served in every way
WINDOW, STRIDE = 256, 192  # tokens, when measuring

# Equal for all runs; README.md says why. Flags of a run come after these and win.
COMMON = f"""--vocabulary 4096 --context {WINDOW} --blocks 4 --width 192 --heads 4
    --feed-forward 768 --moe-every 2 --experts 64 --expert-feed-forward 96 --sequences 8 --groups 2
    --capacity 0 --precision f32 --steps {STEPS} --warmup 100 --validate-every 500 --checkpoint-every 100
    --log-every 50 --domains {",".join(DOMAINS)}""".split()

THRESHOLDS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1")
FIXED = ("1", "2", "4", "8")
# Besides as trained, a model is served in these ways: the flag of xmoe-eval and its values.
SERVED = {"threshold": {"--threshold": THRESHOLDS, "--top-k-experts": FIXED},
          "top_k": {"--threshold": ("0.3", "0.5", "0.7", "0.9"), "--top-k-experts": FIXED},
          "sigmoid": {"--threshold": ("0.3", "0.4", "0.5", "0.6", "0.7"), "--top-k-experts": FIXED},
          "recurrent": {"--threshold": THRESHOLDS, "--top-k-experts": FIXED}}
# The flag of xmoe-train that sets how many experts a router takes, and xmoe-eval's for the same.
OWN = {"threshold": ("--threshold", "--threshold"), "sigmoid": ("--threshold", "--threshold"),
       "recurrent": ("--threshold", "--threshold"), "top_k": ("--top-k", "--top-k-experts")}


def _no_products(width, experts, flags):
    return 0


def _linear(width, experts, flags):
    views = number(flags, "--router-views") if "--router-views" in flags else 1
    return width * experts * views


def _recurrent(width, experts, flags):
    """The projection, both matrices of the GRU, the logits; such a run says its --router-state."""
    state = number(flags, "--router-state")
    return width * state + 2 * 3 * state * state + state * experts


# Multiply-adds of one MoE layer's router for a token. A type that is not here has to be added
# before its operations can be counted.
ROUTER_PRODUCTS = {"threshold": _linear, "top_k": _linear, "switch": _linear, "base": _linear,
                   "sigmoid": _linear, "recurrent": _recurrent, "hash": _no_products,
                   "dense": _no_products}


def flag(flags, name):
    """The value that counts of a flag: the last one, of the run's or of those in common."""
    words = COMMON + flags
    last = len(words) - 1 - words[::-1].index(name)
    return words[last + 1]


def number(flags, name):
    return int(flag(flags, name))


def read_csv(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, fields, rows):
    """Replaces the file at once, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with open(fresh, "w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(fresh, path)


RUNS = {row["name"]: row for row in read_csv(HERE / "runs.csv")}
FLAGS = {name: row["flags"].split() for name, row in RUNS.items()}


def planned():
    """(name, seed) of all runs, the first seed of every run before the second of any."""
    pairs = [(name, int(seed)) for name, row in RUNS.items() for seed in row["seeds"].split()]
    return sorted(pairs, key=lambda pair: pair[1])


def router(name):
    return flag(FLAGS[name], "--router")


def servings(name, seed=FIRST_SEED):
    """The ways to serve a run's model, as flags of xmoe-eval; the first is none: as trained. But for
    the runs of HEADLINE, other seeds than the first are for the error of that one alone."""
    flags = FLAGS[name]
    ways = [[]]
    if seed != FIRST_SEED and name not in HEADLINE:
        return ways
    for option, values in SERVED.get(router(name), {}).items():
        set_by, own = OWN[router(name)]
        for value in values:
            as_trained = option == own and float(value) == float(flag(flags, set_by))
            too_many = option == "--top-k-experts" and int(value) > number(flags, "--experts")
            if not as_trained and not too_many:
                ways.append([option, value])
    return ways


def label(serving):
    """The name of such a way in the results."""
    if not serving:
        return "as trained"
    return {"--threshold": "threshold ", "--top-k-experts": "top_k "}[serving[0]] + serving[1]


def is_set_by_threshold(name):
    """Whether a threshold says how many experts the router takes, as trained."""
    return OWN.get(router(name), ("",))[0] == "--threshold"


def is_moe(name):
    return router(name) != "dense" and number(FLAGS[name], "--moe-every") > 0


def moe_layers(name):
    every = number(FLAGS[name], "--moe-every")
    return number(FLAGS[name], "--blocks") // every if every else 0


def router_flops(name):
    """Of all MoE layers, for one token."""
    flags = FLAGS[name]
    width, experts = number(flags, "--width"), number(flags, "--experts")
    return 2 * ROUTER_PRODUCTS[router(name)](width, experts, flags) * moe_layers(name)


def moe_flops(name, expert_flops):
    """Of the MoE layers for one token: expert_flops are those of the experts it took."""
    return expert_flops + router_flops(name)


def model_flops(name, expert_flops):
    """Of the whole forward pass for one token in the middle of a window: every matrix that it is
    multiplied by, and attention over half a window. Norms, activations and biases are left out."""
    flags = FLAGS[name]
    width, blocks = number(flags, "--width"), number(flags, "--blocks")
    attention = blocks * (2 * 4 * width * width + 4 * width * WINDOW / 2)
    dense = (blocks - moe_layers(name)) * 4 * width * number(flags, "--feed-forward")
    head = 2 * width * number(flags, "--vocabulary")
    return moe_flops(name, expert_flops) + attention + dense + head
