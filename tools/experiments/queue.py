#!/usr/bin/env python3
"""The runs of the experiments: which there are, train what is missing, measure what is trained.

    queue.py list                              every run and how far it is
    queue.py run --corpus DIR --work DIR       train and measure what is missing, one run at a time

A run is a line of runs.csv with one seed. It is trained in WORK/NAME-sSEED by a copy of the
binaries, so that a build in the meantime changes nothing; killed, it goes on from its checkpoint.
Its figures on the test text are appended to results/runs.csv, and its loss on each document to
results/documents/; a run that is there is done, on whatever machine that was. CORPUS holds
DOMAIN.train.txt, DOMAIN.valid.txt and DOMAIN.test.txt of each domain.
"""
import argparse
import collections
import csv
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BINARIES = HERE.parent.parent / "build"
RESULTS = HERE / "results"
DOMAINS = ("en", "fr", "de", "code")
STEPS = 2500

# Equal for all runs; see README.md for why. Flags of a run come after these and win.
COMMON = f"""--vocabulary 4096 --context 256 --blocks 4 --width 192 --heads 4 --feed-forward 768
    --moe-every 2 --experts 64 --expert-feed-forward 96 --sequences 8 --groups 2 --capacity 0
    --steps {STEPS} --warmup 100 --validate-every 500 --checkpoint-every 100 --log-every 50
    --domains {",".join(DOMAINS)}""".split()
SERVED = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1")

FIELDS = ("run", "seed", "served", "file", "tokens", "bytes", "loss", "loss_error",
          "bits_per_byte", "mean_active", "expert_flops_per_token", "tokens_per_second")


def read_runs():
    """(name, seed, flags), the first seed of all before the second of any."""
    with open(HERE / "runs.csv", newline="") as file:
        runs = [(row["name"], int(seed), row["flags"].split())
                for row in csv.DictReader(file) for seed in row["seeds"].split()]
    return sorted(runs, key=lambda run: run[1])


def measured():
    path = RESULTS / "runs.csv"
    if not path.exists():
        return set()
    with open(path, newline="") as file:
        return {(row["run"], int(row["seed"])) for row in csv.DictReader(file)}


def last_step(directory):
    log = directory / "log.csv"
    if not log.exists():
        return 0
    lines = log.read_text().splitlines()
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def show(work):
    done = measured()
    for name, seed, flags in read_runs():
        state = "measured" if (name, seed) in done else ""
        if not state and work:
            step = last_step(work / f"{name}-s{seed}")
            state = f"step {step} of {STEPS}" if step else ""
        print(f"{name:20} seed {seed}  {state or 'to do':18} {' '.join(flags)}")


def share_tokens(work, directory):
    """The vocabulary and the encoded corpus are the same for all runs: the first makes them."""
    for other in work.glob("*-s*"):
        if other != directory and (other / "vocabulary.txt").exists():
            for path in [other / "vocabulary.txt", *other.glob("*.tokens")]:
                if not (directory / path.name).exists():
                    shutil.copy2(path, directory)
            return


def train(binaries, corpus, work, name, seed, flags):
    directory = work / f"{name}-s{seed}"
    if last_step(directory) == STEPS and (directory / "model.gguf").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    share_tokens(work, directory)
    resume = ["--resume"] if (directory / "checkpoint").exists() else []
    subprocess.run(["nice", "-n", "19", binaries / "xmoe-train", "--data", corpus, "--directory",
                    directory, *COMMON, *flags, "--seed", str(seed), "--quiet", *resume],
                   check=True)
    return directory


def measure(binaries, corpus, directory, name, seed, flags):
    """As trained and, of a threshold router, at the thresholds SERVED."""
    trained = flags[flags.index("--threshold") + 1] if "--threshold" in flags else None
    settings = [trained] + [t for t in SERVED if t != trained] if trained else [None]
    texts = [corpus / f"{domain}.test.txt" for domain in DOMAINS]
    rows = []
    for threshold in settings:
        windows = directory / "windows.csv"
        served = ["--threshold", threshold] if threshold else []
        keep = ["--window-file", windows] if threshold == trained else []
        print(f"measuring {name} seed {seed}" + (f" at {threshold}" if threshold else ""),
              file=sys.stderr)
        answer = subprocess.run(["nice", "-n", "19", binaries / "xmoe-eval", "--quiet", "--csv",
                                 "--model", directory / "model.gguf", "--stride", "192", *served,
                                 *keep, *texts],
                                check=True, stdout=subprocess.PIPE, text=True).stdout
        for row in csv.DictReader(answer.splitlines()):
            rows.append({"run": name, "seed": seed, "served": row["routing"],
                         "file": pathlib.Path(row["file"]).name.split(".")[0],
                         "tokens_per_second": row["positions_per_second"],
                         **{key: row[key] for key in FIELDS if key in row}})
        if keep:
            write_documents(windows, name, seed)
    path = RESULTS / "runs.csv"
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def write_documents(windows, name, seed):
    sums = collections.defaultdict(lambda: [0, 0.0])
    with open(windows, newline="") as file:
        for row in csv.DictReader(file):
            key = (pathlib.Path(row["file"]).name.split(".")[0], int(row["document"]))
            sums[key][0] += int(row["tokens"])
            sums[key][1] += float(row["nats"])
    (RESULTS / "documents").mkdir(parents=True, exist_ok=True)
    with open(RESULTS / "documents" / f"{name}-s{seed}.csv", "w") as file:
        file.write("file,document,tokens,nats\n")
        for (domain, document), (tokens, nats) in sums.items():
            file.write(f"{domain},{document},{tokens},{nats:.4f}\n")


def run_all(corpus, work):
    binaries = work / "bin"
    if not binaries.exists():
        binaries.mkdir(parents=True)
        for program in ("xmoe-train", "xmoe-eval"):
            shutil.copy2(BINARIES / program, binaries)
    for name, seed, flags in read_runs():
        if (name, seed) not in measured():
            directory = train(binaries, corpus, work, name, seed, flags)
            measure(binaries, corpus, directory, name, seed, flags)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "run"))
    parser.add_argument("--corpus", type=pathlib.Path, help="directory of the texts")
    parser.add_argument("--work", type=pathlib.Path, help="directory of the runs")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if arguments.command == "list":
        show(arguments.work)
    elif not arguments.corpus or not arguments.work:
        parser.error("run needs --corpus and --work")
    else:
        os.makedirs(arguments.work, exist_ok=True)
        run_all(arguments.corpus.resolve(), arguments.work.resolve())


if __name__ == "__main__":
    main()
