"""What the browser tests share: a server, a browser, waiting, and a list of checks.

A server is a child process on a free port; a browser is headless Chromium through chromedriver. Nothing
waits for a fixed time: `until` looks again and again, with a limit that a slow and busy machine keeps.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
import urllib.error
import urllib.request

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
PATIENCE = 120  # seconds


def until(look, what, seconds=PATIENCE):
    """Looks until what comes back is true, and gives it."""
    limit = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Server:
    """build/xmoe-server with these flags; a free port, which a restarted one keeps."""

    def __init__(self, *flags):
        self.flags = flags
        self.port = 0
        self.log = tempfile.TemporaryFile()
        self.start()

    def start(self):
        self.log.truncate(0)
        self.log.seek(0)
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "xmoe-server"), "--port", str(self.port), *self.flags],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        try:
            self.port = int(until(self.find_port, "the server listens"))
            until(self.is_ready, "the server is ready")
        except BaseException:
            self.kill()
            raise

    def read_log(self):
        return os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def find_port(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended:\n{self.read_log()}")
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)\n", self.read_log())
        return found and found.group(1)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}ready", timeout=PATIENCE):
                return True
        except (urllib.error.URLError, OSError):
            return False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def call(self, path, body=None, key=None, method=None):
        """The answer's JSON."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    def generate(self, prompt="Once upon a time", tokens=60, **fields):
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.8, "seed": 5, "ignore_eos": True}
        return self.call("v1/completions", {**body, **fields})


@contextlib.contextmanager
def serving(*flags):
    server = Server(*flags)
    try:
        yield server
    finally:
        server.kill()


def random_model(directory, name, *shape):
    """Writes a model of random weights and gives its path."""
    path = os.path.join(directory, name)
    subprocess.run([os.path.join(BUILD, "xmoe-bench"), "--quiet", "--make-only", *shape, "--model-file", path],
                   check=True, stdout=subprocess.DEVNULL)
    return path


def dense_family_model(directory):
    """Writes an untrained model of a dense family, whose file says nothing of experts, and gives its path."""
    data, run = os.path.join(directory, "text"), os.path.join(directory, "llama")
    os.mkdir(data)
    for split in ("train", "valid"):
        with open(os.path.join(data, f"en.{split}.txt"), "w", encoding="utf-8") as file:
            for i in range(400):
                file.write(f"the cat and the hat number {i * i}\n<|endoftext|>\n")
    subprocess.run([os.path.join(BUILD, "xmoe-train"), "--quiet", "--data", data, "--directory", run, "--domains", "en",
                    "--architecture", "llama", "--steps", "0", "--vocabulary", "300", "--context", "128", "--width", "32",
                    "--heads", "2", "--blocks", "2", "--feed-forward", "64"], check=True, stdout=subprocess.DEVNULL)
    return os.path.join(run, "model.gguf")


class Page:
    """The dashboard in a browser of its own."""

    def __init__(self, downloads):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
                     "--window-size=1280,1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.set_script_timeout(PATIENCE)
        self.downloads = downloads
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior",
                                    {"behavior": "allow", "downloadPath": downloads})
        self.resize(1280, 1000)

    def quit(self):
        self.driver.quit()

    def resize(self, width, height, scale=1):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": False})

    def prefer(self, **features):
        """Media features of the reader, such as prefers_color_scheme="dark"."""
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()]})

    def open(self, server, wait=True):
        self.driver.get(server.url)
        if wait:
            self.until_text("status-text", "serving")

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def find(self, name):
        """By id, or by selector where name is none."""
        by = By.ID if re.fullmatch(r"[\w-]+", name) else By.CSS_SELECTOR
        return self.driver.find_element(by, name)

    def text(self, name):
        return self.find(name).text

    def until_text(self, name, wanted):
        until(lambda: wanted in self.text(name), f"'{wanted}' in {name}")

    def click(self, name):
        element = self.find(name)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, name, value):
        """A segment of a row of switches."""
        self.js("arguments[0].click()", self.find(f"#{name} input[value='{value}']"))

    def console_errors(self):
        """What the console said since the last look, but for remarks."""
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] in ("SEVERE", "WARNING")]

    def requested(self):
        """Addresses asked for since the last look."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def downloaded(self, suffix):
        """The text of the one file with this end that was downloaded, and forgets it."""
        def look():
            names = [name for name in os.listdir(self.downloads) if name.endswith(suffix)]
            return names and names[0]
        path = os.path.join(self.downloads, until(look, f"a downloaded *{suffix}"))
        with open(path, encoding="utf-8") as file:
            text = file.read()
        os.unlink(path)
        return text


class Checks:
    """Runs checks and prints a line for each."""

    def __init__(self, page):
        self.page = page
        self.passed = self.failed = 0

    def run(self, name, check, *arguments):
        try:
            check(*arguments)
        except Exception:  # pylint: disable=broad-except
            self.failed += 1
            print(f"FAIL {name}")
            print("     " + traceback.format_exc().replace("\n", "\n     "))
            with contextlib.suppress(Exception):
                print(f"     console: {self.page.console_errors()[-5:]}")
        else:
            self.passed += 1
            print(f"PASS {name}", flush=True)

    def report(self):
        print(f"browser_test: {self.passed} passed, {self.failed} failed")
        return 0 if self.passed and not self.failed else 1
