"""A simulator and a gateway in front of it: real processes, on ports that the system picks."""

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

BINARY = os.environ["GATEWAY_BINARY"]
ACCOUNT_SID = "AC" + "0" * 32
ACCOUNT_KEY = "SK" + "0" * 32
ROWS = 230
PATIENCE_SECONDS = 20

ACCOUNT = f"""
[accounts.main]
account_sid = "{ACCOUNT_SID}"
api_key = "{ACCOUNT_KEY}"
api_secret = {{ env = "ACCOUNT_SECRET" }}
rate = "0/s"
"""


class Stack:
    """Both processes, and functions with which a test controls them."""

    def __init__(self, directory: Path, *, more_config="", jobs_take="200ms"):
        self._processes, self._jobs_take = [], jobs_take
        try:
            self._start(directory, more_config)
        except BaseException:
            self.close()
            raise

    def _start(self, directory, more_config):
        self._start_simulator(directory)
        config = directory / "gateway.toml"
        config.write_text(ACCOUNT + more_config)
        ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.log = self._run(
            directory / "gateway.log",
            ["serve", "--config", str(config), *ports, "--upstream", self.upstream],
        )
        serving = wait_for(self._serving, "the gateway's addresses")
        self.url, self.admin = "http://" + serving["data"], "http://" + serving["admin"]
        wait_for(lambda: is_ready(self.admin), "the gateway to be ready")

    def _start_simulator(self, directory):
        scale = ["--rate", "0/s", "--latency", "0s", "--rows", str(ROWS), "--jobs-take", self._jobs_take]
        log = self._run(directory / "simulator.log", ["simulate", "--listen", "127.0.0.1:0", *scale])
        self.upstream = wait_for(lambda: re.search(r"http://[\d.:]+", log.read_text()), "the simulator's address")[0]

    def _run(self, log, arguments):
        # The environment of the test run must not change the gateway's configuration.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("TWILIO_", "INSIGHTS_GATEWAY_"))
        }
        environment["ACCOUNT_SECRET"] = "secret"
        with log.open("w") as output:
            process = subprocess.Popen(
                [BINARY, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        self._processes.append(process)
        return log

    def _serving(self):
        # The last line may be incomplete.
        lines = [line for line in self.log.read_text().split("\n")[:-1] if line.startswith("{")]
        return next((entry for entry in map(json.loads, lines) if entry["message"] == "serving"), None)

    def close(self):
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def received(self):
        """The requests that the simulator received from the gateway, oldest first."""
        return get_json(self.upstream + "/_simulator/requests")["requests"]

    def script(self, **fault):
        """Sets the next responses of the simulator."""
        body = json.dumps(fault).encode()
        urllib.request.urlopen(self.upstream + "/_simulator/faults", body, timeout=PATIENCE_SECONDS).close()


class Simulator(Stack):
    """A simulator without a gateway."""

    def _start(self, directory, more_config):
        self._start_simulator(directory)
        self.url = self.upstream


def get_json(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


def is_ready(admin):
    try:
        return get_json(admin + "/readyz")["ready"]
    except (OSError, urllib.error.URLError):
        return False


def wait_for(look, what):
    """Calls `look` until it returns a value that is not empty, and returns that value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.01)
    raise TimeoutError(f"waited {PATIENCE_SECONDS} s for {what}")
