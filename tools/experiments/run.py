#!/usr/bin/env python3
"""The runs of the experiments: which there are, train what is missing, measure what is trained.

    run.py list [--work DIR]                       every run, how far it is, and what is left
    run.py run --corpus DIR --work DIR [RUN...]    train and measure what is missing, one at a time
    run.py train --corpus DIR --work DIR RUN...    only train, also what is measured already

RUN is a name with its seed, as topk-8-s1; without any, all runs are meant. `train` makes the models
again that speed.py needs, where WORK does not have them.

A run is a line of runs.csv with one seed. It is trained in WORK/NAME-sSEED by a copy of the
binaries (WORK/bin, made when it is not there), so that a build in the meantime changes nothing.
Stopped with Ctrl-C or SIGTERM it writes a checkpoint first; killed, it goes on from the last one.
What is in results/ is done, on whatever machine that was, and not done again: to do it again,
delete its lines. CORPUS holds DOMAIN.train.txt, DOMAIN.valid.txt and DOMAIN.test.txt of each domain.
"""
import argparse
import collections
import fcntl
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import plan
import use

BINARIES = plan.HERE.parent.parent / "build"
DEFAULT_SECONDS = 480  # of training a run, where none is known yet

TRAINING = ("run", "seed", "parameters", "steps", "tokens", "seconds", "train_loss", "valid_loss")
MEASURED = ("run", "seed", "served", "file", "routing", "tokens", "bytes", "loss", "loss_error",
            "bits_per_byte", "bits_per_byte_error", "mean_active", "expert_flops_per_token")
LAYERS = ("run", "seed", "served", "layer", "mean_active", "entropy", "load_balance", "dead")


def key_of(row, fields):
    return tuple(row[field] for field in fields)


def put(name, fields, keys, rows):
    """Adds rows to a table of results in the place of those with the same keys."""
    path = plan.RESULTS / name
    fresh = {key_of(row, keys) for row in rows}
    order = {run: i for i, run in enumerate(plan.RUNS)}
    kept = [row for row in plan.read_csv(path) if key_of(row, keys) not in fresh]
    kept += rows
    kept.sort(key=lambda row: (order.get(row["run"], len(order)), int(row["seed"])))
    plan.write_csv(path, fields, kept)


def done():
    """What is measured: {(run, seed): set of labels}."""
    found = collections.defaultdict(set)
    for row in plan.read_csv(plan.RESULTS / "runs.csv"):
        found[row["run"], int(row["seed"])].add(row["served"])
    return found


# --- list ------------------------------------------------------------------------------------------


def log_rows(directory):
    """The lines of a training log, each step once: a killed run repeats those after its checkpoint."""
    return list({int(row["step"]): row for row in plan.read_csv(directory / "log.csv")}.values())


def is_trained(directory):
    rows = log_rows(directory)
    return (bool(rows) and int(rows[-1]["step"]) == plan.STEPS
            and (directory / "model.gguf").exists())


def training_seconds(rows):
    """By the speeds in a log: the time that the run was at work, interruptions left out."""
    seconds, before = 0.0, 0
    for row in rows:
        seconds += (int(row["tokens"]) - before) / float(row["tokens_per_second"])
        before = int(row["tokens"])
    return seconds


def expected_seconds(name, known):
    same = [float(row["seconds"]) for row in known if row["run"] == name]
    every = same or [float(row["seconds"]) for row in known] or [DEFAULT_SECONDS]
    return sum(every) / len(every)


def show(work):
    known = plan.read_csv(plan.RESULTS / "training.csv")
    measured = done()
    left, runs_left = 0.0, 0
    for name, seed in plan.planned():
        labels = {plan.label(serving) for serving in plan.servings(name, seed)}
        missing = len(labels - measured[name, seed])
        step = 0
        if work:
            rows = log_rows(work / f"{name}-s{seed}")
            step = int(rows[-1]["step"]) if rows else 0
        if missing == 0:
            state = "done"
        elif missing < len(labels):
            state = f"{missing} of {len(labels)} to measure"
        else:
            state = f"step {step} of {plan.STEPS}" if step else "to do"
            left += expected_seconds(name, known) * (1 - step / plan.STEPS)
            runs_left += 1
        print(f"{name:20} seed {seed}  {state:20} {plan.RUNS[name]['flags']}")
    print(f"{runs_left} runs to train, about {left / 3600:.1f} hours on a machine like the one so far, "
          "and a few minutes each to measure")


# --- run -------------------------------------------------------------------------------------------


class Queue:
    def __init__(self, corpus, work, threads):
        self.corpus, self.work, self.threads = corpus, work, str(threads)
        work.mkdir(parents=True, exist_ok=True)
        # The programs started inherit the lock: it holds as long as one of them is at work.
        self.lock = open(work / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"run.py: another queue, or a program of one that was killed, is at work in {work}")
        self.binaries = work / "bin"
        if not self.binaries.exists():
            fresh = work / "bin.new"
            fresh.mkdir(exist_ok=True)
            for program in ("xmoe-train", "xmoe-eval", "xmoe-inspect"):
                shutil.copy2(BINARIES / program, fresh)
            fresh.rename(self.binaries)

    def call(self, program, *arguments):
        """Its standard output. A program that is interrupted ends before the queue does."""
        command = ["nice", "-n", "19", self.binaries / program, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                   pass_fds=[self.lock.fileno()], start_new_session=True)
        try:
            output = process.communicate()[0]
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        if process.returncode != 0:
            what = "interrupted" if process.returncode == 130 else "failed"
            sys.exit(f"run.py: {what}: {' '.join(map(str, command))}")
        return output

    def say(self, text):
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

    def share_tokens(self, directory):
        """Vocabulary and encoded corpus are the same for all runs: the first makes them."""
        for other in sorted(self.work.glob("*-s*")):
            if other != directory and (other / "vocabulary.txt").exists():
                for path in [other / "vocabulary.txt", *other.glob("*.tokens")]:
                    if not (directory / path.name).exists():
                        shutil.copy2(path, directory)
                return

    def train(self, name, seed, directory):
        if is_trained(directory):
            return
        self.say(f"training {name} seed {seed}")
        directory.mkdir(exist_ok=True)
        self.share_tokens(directory)
        resume = ["--resume"] if (directory / "checkpoint").exists() else []
        self.call("xmoe-train", "--data", self.corpus, "--directory", directory, *plan.COMMON,
                  *plan.FLAGS[name], "--seed", seed, "--threads", self.threads, "--quiet", *resume)
        if not is_trained(directory):
            sys.exit(f"run.py: {directory}: the trainer was interrupted; start again to go on")

    def describe_training(self, name, seed, directory):
        rows = log_rows(directory)
        last = rows[-1]
        shape = json.loads(self.call("xmoe-inspect", "--json", directory / "model.gguf"))
        valid = [float(last[f"valid_nats_{domain}"]) for domain in plan.DOMAINS]
        put("training.csv", TRAINING, ("run", "seed"),
            [{"run": name, "seed": str(seed), "parameters": shape["parameters"],
              "steps": last["step"], "tokens": last["tokens"],
              "seconds": f"{training_seconds(rows):.0f}", "train_loss": last["loss"],
              "valid_loss": f"{sum(valid) / len(valid):.4f}"}])

    def evaluate(self, directory, texts, serving, *more):
        return json.loads(self.call("xmoe-eval", "--quiet", "--json", "--expert-usage", "--model",
                                    directory / "model.gguf", "--window", plan.WINDOW, "--stride",
                                    plan.STRIDE, "--threads", self.threads, *serving, *more,
                                    *texts))["results"]

    def measure(self, name, seed, directory, serving):
        label = plan.label(serving)
        self.say(f"measuring {name} seed {seed}: {label}")
        windows, trace = directory / "windows.csv", directory / "trace.xmt"
        traced = not serving and use.is_worth_it(name)
        texts = [self.corpus / f"{domain}.test.txt" for domain in plan.DOMAINS]
        results = self.evaluate(directory, texts, serving, "--window-file", windows,
                                *(["--trace", trace] if traced else []))
        same = {"run": name, "seed": str(seed), "served": label}
        documents = put_documents(windows, name, seed, label)
        if traced:
            vocabulary = directory / "vocabulary.txt"
            use.describe(name, seed, trace, vocabulary, documents, put)
            if use.varies(name):
                self.measure_switches(name, seed, directory, trace)
            trace.unlink()
        layers = [{**same, **layer, "dead": len(layer["dead"])}
                  for layer in results[-1]["expert_usage"]["layers"]]
        put("layers.csv", LAYERS, ("run", "seed", "served"), layers)
        # Last, because done() goes by it.
        put("runs.csv", MEASURED, ("run", "seed", "served"),
            [{**row, **same, "file": pathlib.Path(row["file"]).name.split(".")[0]}
             for row in results])

    def measure_switches(self, name, seed, directory, trace):
        text = self.work / "switches.txt"
        lengths = use.write_switches(self.corpus, text)
        self.evaluate(directory, [text], [], "--trace", trace)
        use.describe_switches(name, seed, trace, directory / "vocabulary.txt", lengths, put)

    def train_only(self, runs):
        for name, seed in runs:
            self.train(name, seed, self.work / f"{name}-s{seed}")

    def run_all(self, runs):
        for name, seed in runs:
            missing = [serving for serving in plan.servings(name, seed)
                       if plan.label(serving) not in done()[name, seed]]
            directory = self.work / f"{name}-s{seed}"
            if not missing or (missing[0] and not is_trained(directory)):  # another machine's
                continue
            self.train(name, seed, directory)
            self.describe_training(name, seed, directory)
            for serving in missing:
                self.measure(name, seed, directory, serving)
        self.say("nothing is left to do here")


def put_documents(windows, name, seed, label):
    """Adds the loss of every document as a column, and returns the documents in order."""
    sums = collections.defaultdict(lambda: [0, 0.0])
    for row in plan.read_csv(windows):
        key = (pathlib.Path(row["file"]).name.split(".")[0], row["document"])
        sums[key][0] += int(row["tokens"])
        sums[key][1] += float(row["nats"])
    path = plan.RESULTS / "documents" / f"{name}-s{seed}.csv"
    rows = {(row["file"], row["document"]): row for row in plan.read_csv(path)}
    labels = [field for field in next(iter(rows.values()), {}) if field in
              {plan.label(serving) for serving in plan.servings(name)}]
    documents = []
    for (domain, document), (tokens, nats) in sums.items():
        row = rows.get((domain, document), {})
        documents.append({**row, "file": domain, "document": document, "tokens": tokens,
                          label: f"{nats:.3f}"})
    fields = ["file", "document", "tokens", *labels, *([] if label in labels else [label])]
    plan.write_csv(path, fields, documents)
    return documents


def chosen(wanted, parser):
    """The planned runs that are named, in the order of the plan; all where none is."""
    names = {f"{name}-s{seed}": (name, seed) for name, seed in plan.planned()}
    for run in wanted:
        if run not in names:
            parser.error(f"{run} is no run: they are {', '.join(names)}")
    return [pair for run, pair in names.items() if run in wanted or not wanted]


def interrupt(signal_number, frame):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "run", "train"))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="as topk-8-s1 (all)")
    parser.add_argument("--corpus", type=pathlib.Path, help="directory of the texts")
    parser.add_argument("--work", type=pathlib.Path, help="directory of the runs")
    parser.add_argument("--threads", type=int, default=2, help="of a run (%(default)s)")
    arguments = parser.parse_intermixed_args()
    if arguments.command == "list":
        show(arguments.work)
        return
    if not arguments.corpus or not arguments.work:
        parser.error(f"{arguments.command} needs --corpus and --work")
    if arguments.command == "train" and not arguments.runs:
        parser.error("train needs the names of runs")
    runs = chosen(arguments.runs, parser)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        queue = Queue(arguments.corpus.resolve(), arguments.work.resolve(), arguments.threads)
        (queue.train_only if arguments.command == "train" else queue.run_all)(runs)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
