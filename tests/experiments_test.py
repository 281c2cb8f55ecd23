"""Tests of tools/experiments; experiments_test.sh runs them."""
import argparse
import collections
import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import figures  # noqa: E402
import plan  # noqa: E402
import run  # noqa: E402
import speed  # noqa: E402
import table  # noqa: E402
import use  # noqa: E402

WORK = pathlib.Path(os.environ["WORK"])
TINY = """--vocabulary 300 --context 64 --blocks 2 --width 16 --heads 2 --feed-forward 32 --moe-every 2
    --experts 8 --expert-feed-forward 8 --sequences 2 --groups 2 --capacity 0 --precision f32 --steps 30 --warmup 2
    --validate-every 10 --checkpoint-every 5 --log-every 5 --domains en,fr,de,code""".split()
SENTENCES = {"en": "The old man, said Alice, went to the sea in 1815.\n",
             "fr": "Le vieil homme, dit Alice, est parti en mer.\n",
             "de": "Der alte Mann fuhr im Jahre 1815 aufs Meer.\n",
             "code": "  if( n<0 ){ return 0x10; } /* nothing */\n"}


def write_corpus(directory):
    directory.mkdir(exist_ok=True)
    for domain, sentence in SENTENCES.items():
        for part, documents in (("train", 20), ("valid", 4), ("test", 4)):
            text = "".join(sentence * (20 + i) + "<|endoftext|>\n" for i in range(documents))
            (directory / f"{domain}.{part}.txt").write_text(text)


def make_small():
    """The plan of the experiments, with models that train in a second."""
    plan.RESULTS = WORK / "results"
    plan.COMMON, plan.STEPS, plan.WINDOW, plan.STRIDE = TINY, 30, 64, 48
    plan.THRESHOLDS, plan.FIXED = ("0.1", "0.5", "1"), ("2",)
    plan.SERVED = {"threshold": {"--threshold": plan.THRESHOLDS, "--top-k-experts": plan.FIXED},
                   "top_k": {"--threshold": ("0.5",), "--top-k-experts": plan.FIXED}}
    plan.RUNS = {"threshold-0.9": {"seeds": "1 2", "flags": "--router threshold --threshold 0.9"},
                 "topk-8": {"seeds": "1 2", "flags": "--router top_k --top-k 4"},
                 "dense-flops": {"seeds": "1", "flags":
                                 "--router dense --experts 1 --expert-feed-forward 32"}}
    plan.FLAGS = {name: row["flags"].split() for name, row in plan.RUNS.items()}
    use.SHUFFLES, use.PAIRS, use.SHARED_TIMES = 20, 4, 1
    run.BINARIES = ROOT / os.environ["BUILD"]
    speed.SERVER = run.BINARIES / "xmoe-server"
    speed.PROMPTS, speed.PROMPT_BYTES, speed.LONG_BYTES, speed.ANSWER_TOKENS = 4, 20, 40, 8


def work_through():
    run.Queue(WORK / "corpus", WORK / "runs", 1).run_all(plan.planned())


class Queue(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        make_small()
        write_corpus(WORK / "corpus")
        with contextlib.redirect_stderr(io.StringIO()):
            work_through()
        speed.measure_all(WORK / "corpus", WORK / "runs", 1, 2)
        cls.rows = plan.read_csv(plan.RESULTS / "runs.csv")

    def test_every_run_is_measured_in_every_way(self):
        found = {(row["run"], int(row["seed"]), row["served"]) for row in self.rows}
        wanted = {(name, seed, plan.label(serving)) for name, seed in plan.planned()
                  for serving in plan.servings(name, seed)}
        self.assertEqual(found, wanted)
        self.assertEqual({row["file"] for row in self.rows}, {*plan.DOMAINS, "all"})

    def test_documents_add_up(self):
        row = next(row for row in self.rows if row["run"] == "topk-8" and row["file"] == "all"
                   and row["served"] == "top_k 2" and row["seed"] == "1")
        documents = figures.documents("topk-8", 1).values()
        self.assertEqual(sum(int(d["tokens"]) for d in documents), int(row["tokens"]))
        loss = sum(float(d["top_k 2"]) for d in documents) / int(row["tokens"])
        self.assertAlmostEqual(loss, float(row["loss"]), places=4)

    def test_numbers_of_experts_are_those_asked_for(self):
        active = {(row["run"], row["served"]): float(row["mean_active"]) for row in self.rows}
        self.assertEqual(active["topk-8", "as trained"], 4)
        self.assertEqual(active["threshold-0.9", "top_k 2"], 2)
        self.assertEqual(active["threshold-0.9", "threshold 1"], 8)
        self.assertEqual(active["dense-flops", "as trained"], 1)
        classes = plan.read_csv(plan.RESULTS / "classes.csv")
        tokens = next(int(row["tokens"]) for row in self.rows
                      if row["run"] == "threshold-0.9" and row["file"] == "all")
        self.assertEqual({row["run"] for row in classes}, {"threshold-0.9"})
        self.assertEqual({int(row["tokens"]) for row in classes
                          if (row["domain"], row["class"]) == ("all", "every token")}, {tokens})

    def test_what_is_missing_is_done_again_and_nothing_else(self):
        path = plan.RESULTS / "runs.csv"
        before = path.read_text()
        kept = [row for row in self.rows if (row["run"], row["seed"], row["served"])
                != ("threshold-0.9", "1", "threshold 0.5")]
        plan.write_csv(path, run.MEASURED, kept)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            work_through()
        self.assertEqual(said.getvalue().count("measuring"), 1)
        self.assertNotIn("training", said.getvalue())
        self.assertCountEqual(path.read_text().split("\n"), before.split("\n"))

    def test_a_model_is_made_again_though_it_is_measured(self):
        model = WORK / "runs" / "topk-8-s1" / "model.gguf"
        before, results = model.read_bytes(), (plan.RESULTS / "runs.csv").read_bytes()
        for path in (model, model.parent / "log.csv", model.parent / "checkpoint"):
            path.unlink()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            run.Queue(WORK / "corpus", WORK / "runs", 1).train_only([("topk-8", 1)])
        self.assertEqual(said.getvalue().count("training"), 1)
        self.assertEqual(model.read_bytes(), before)
        self.assertEqual((plan.RESULTS / "runs.csv").read_bytes(), results)

    def test_runs_are_named(self):
        parser = argparse.ArgumentParser()
        self.assertEqual(run.chosen(["topk-8-s2", "threshold-0.9-s1"], parser),
                         [("threshold-0.9", 1), ("topk-8", 2)])
        self.assertEqual(run.chosen([], parser), plan.planned())
        with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
            run.chosen(["topk-8-s7"], parser)
        self.assertIn("topk-8-s7 is no run", said.getvalue())

    def test_speed_is_of_the_router_that_was_asked_for(self):
        rows = plan.read_csv(plan.RESULTS / "speed.csv")
        self.assertEqual(len(rows), 4 * 3 * 2)  # ways to serve, kinds of requests, rounds
        active = {(row["run"], row["served"]): float(row["mean_active"]) for row in rows}
        self.assertEqual(active["topk-8", "as trained"], 4)
        self.assertLess(active["threshold-0.9", "threshold 0.5"],
                        active["threshold-0.9", "as trained"])

    def test_tables(self):
        figures.measured.cache_clear()
        for one in table.TABLES:
            with contextlib.redirect_stdout(io.StringIO()) as text:
                one()
            lines = text.getvalue().strip().split("\n")
            lines = [line for line in lines if line.startswith("|")]
            self.assertGreater(len(lines), 2 if one.__name__ != "sizes" else 1, one.__name__)
            self.assertEqual(len({line.count("|") for line in lines}), 1, one.__name__)

    def test_list(self):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            run.show(WORK / "runs")
        self.assertEqual(text.getvalue().count(" done "), 5)
        self.assertIn("0 runs to train", text.getvalue())


class Interruption(unittest.TestCase):
    """A queue that is told to stop leaves a checkpoint, and the next one goes on from it."""

    def test_stop_and_go_on(self):
        make_small()
        write_corpus(WORK / "corpus")
        script = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tools" / "experiments")!r}]
import experiments_test, pathlib, plan, run, signal
experiments_test.make_small()
plan.RESULTS = pathlib.Path({str(WORK / "stopped")!r})
plan.STEPS = 200000
plan.COMMON = plan.COMMON + ["--steps", "200000"]
signal.signal(signal.SIGTERM, run.interrupt)
try:
    run.Queue(pathlib.Path({str(WORK / "corpus")!r}), pathlib.Path({str(WORK / "long")!r}), 1).run_all(plan.planned())
except KeyboardInterrupt:
    sys.exit(130)
"""
        directory = WORK / "long" / "threshold-0.9-s1"
        for _ in range(2):
            before = run.log_rows(directory)
            queue = subprocess.Popen([sys.executable, "-B", "-c", script], stderr=subprocess.PIPE)
            deadline = time.monotonic() + 60
            while len(run.log_rows(directory)) < len(before) + 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            second = subprocess.run([sys.executable, "-B", "-c", script], stderr=subprocess.PIPE)
            self.assertIn(b"another queue", second.stderr)
            queue.send_signal(signal.SIGTERM)
            said = queue.communicate(timeout=60)[1]
            self.assertEqual(queue.returncode, 130, said)
            rows = run.log_rows(directory)
            self.assertGreater(len(rows), len(before))
            self.assertTrue((directory / "checkpoint").exists())
            self.assertFalse(run.is_trained(directory))
        steps = [int(row["step"]) for row in rows]
        self.assertEqual(steps, sorted(steps))


class Classes(unittest.TestCase):
    def classify(self, domain, *pieces):
        return use.classify([piece.encode() for piece in pieces], domain)

    def test_words(self):
        found = self.classify("en", "He", " saw", " Al", "ice", ",", " 18", "15", "\n", "The", " sea")
        self.assertEqual([classes[0] for classes in found],
                         ["whole word", "whole word", "first part of a word", "later part of a word",
                          "punctuation", "digits", "digits", "white space", "whole word",
                          "whole word"])
        self.assertEqual([classes[1:] for classes in found[:4]], [[], ["not a name"], ["name"], []])
        self.assertEqual(found[8][1:], [])  # begins a line

    def test_bytes_of_one_letter(self):
        found = use.classify([b" \xc3", b"\xa9", b"t", b"."], "fr")
        self.assertEqual([classes[0] for classes in found],
                         ["first part of a word", "later part of a word", "later part of a word",
                          "punctuation"])

    def test_code(self):
        found = self.classify("code", "if", "(", " db", "Open", ")", " /*", " if", " */", "x")
        self.assertEqual(found[0], ["whole word", "keyword"])
        self.assertEqual(found[2], ["first part of a word", "other word of code"])
        self.assertIn("in a comment", found[6])
        self.assertNotIn("in a comment", found[8])


class Information(unittest.TestCase):
    def test_mutual_information(self):
        count = collections.Counter
        self.assertAlmostEqual(use.mutual_information([count(a=5), count(b=5)]), 1)
        self.assertAlmostEqual(use.mutual_information([count(a=3, b=3), count(a=2, b=2)]), 0)
        # Each domain has tokens of its own, but on none of them another expert.
        groups = [count({("x", 1): 4, ("y", 2): 1}), count({("x", 1): 1, ("y", 2): 4})]
        self.assertAlmostEqual(use.conditional_information(groups), 0)
        self.assertGreater(use.mutual_information([count({1: 4, 2: 1}), count({1: 1, 2: 4})]), 0.2)
        self.assertAlmostEqual(use.conditional_information([count({("x", 1): 4}),
                                                            count({("x", 2): 4})]), 1)

    def test_shuffled(self):
        own = [collections.Counter({domain: 10}) for domain in "aabbccdd"]
        found = use.against_shuffled(use.mutual_information, own, list("aabbccdd"))
        self.assertEqual(float(found["bits"]), 2)
        self.assertLess(float(found["p_value"]), 0.05)
        same = [collections.Counter({i % 2: 10}) for i in range(8)]
        found = use.against_shuffled(use.mutual_information, same, list("aabbccdd"))
        self.assertGreater(float(found["p_value"]), 0.9)


class Errors(unittest.TestCase):
    def test_ratio(self):
        mean, error = figures.ratio_error([(2, 1), (4, 1), (6, 1)])
        self.assertEqual(mean, 4)
        self.assertAlmostEqual(error, (4 / 3) ** 0.5)  # deviation 2, of a mean of three

    def test_operations(self):
        make_small()
        # Blocks: 8 d^2 and 4 d times half a window each; one dense FFN; one router; the head.
        self.assertEqual(plan.router_flops("threshold-0.9"), 2 * 16 * 8)
        self.assertEqual(plan.router_flops("dense-flops"), 0)
        plan.FLAGS["recurrent"] = "--router recurrent --router-state 4".split()
        self.assertEqual(plan.router_flops("recurrent"), 2 * (16 * 4 + 6 * 4 * 4 + 4 * 8))
        self.assertEqual(plan.model_flops("threshold-0.9", 1000), 1000 + 2 * 16 * 8
                         + 2 * (8 * 256 + 4 * 16 * 32) + 4 * 16 * 32 + 2 * 16 * 300)


if __name__ == "__main__":
    unittest.main()
