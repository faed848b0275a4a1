"""Runs the gateway in a root file system that holds only the gateway, like an image made from scratch."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

BINARY = os.environ["GATEWAY_BINARY"]
# The user that the image sets.
USER = 65532
PATIENCE_SECONDS = 20
DOMAIN = "/v3/InsightsDomains/Conversations"

ACCOUNT = {
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_API_KEY": "SK" + "0" * 32,
    "TWILIO_API_SECRET": "secret",
}


class EmptyRoot:
    """A folder that holds the binary, and processes that use this folder as their root file system."""

    def __init__(self, folder: Path):
        self.path = folder / "root"
        self.path.mkdir()
        self._logs = folder
        self._started = []
        shutil.copy(BINARY, self.path / "insights-gateway")

    def write(self, path, text):
        """Writes a file where an orchestrator would mount it."""
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def files(self):
        return sorted("/" + str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir())

    def start(self, *arguments, environment=()):
        """Starts the gateway as the first process of its own process namespace, as a container does."""
        log = self._logs / f"{len(self._started)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*self._enter("--pid", "--fork", "--kill-child"), *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started.append(Started(process, log))
        return self._started[-1]

    def run(self, *arguments, environment=()):
        """Runs a short command and waits until it ends."""
        command = [*self._enter(), *arguments]
        return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    def simulate(self):
        """Starts a simulator, and returns its address."""
        simulator = self.start("simulate", "--listen", "127.0.0.1:0", "--rate", "0/s", "--latency", "0s")
        return simulator.wait_for(lambda line: line.partition("http://")[2].partition(" ")[0])

    def serve(self, upstream, *arguments, environment=()):
        """Starts a gateway without teams or a file; returns the process and its two addresses."""
        ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        environment = {**ACCOUNT, **dict(environment)}
        gateway = self.start("serve", *ports, "--upstream", upstream, *arguments, environment=environment)
        return gateway, *gateway.addresses()

    def close(self):
        for started in reversed(self._started):
            started.stop()

    def _enter(self, *namespaces):
        if has_every_user():
            user = ["--setuid", str(USER), "--setgid", str(USER)]
        else:
            user = [f"--map-user={USER}", f"--map-group={USER}"]
        return ["unshare", *namespaces, *user, "--root", str(self.path), "--wd", "/", "/insights-gateway"]


class Started:
    """A process and its output."""

    def __init__(self, process, log):
        self._process = process
        self._log = log

    @property
    def pid(self):
        """The process id of the gateway, not of the command that created its namespace."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def said(self):
        return self._log.read_text()

    def wait_for(self, look):
        """Waits for a complete line in which `look` finds something, and returns what it found."""

        def search():
            if self._process.poll() is not None:
                raise AssertionError(f"it ended: {self.said()}")
            return next(filter(None, map(look, self.said().split("\n")[:-1])), None)

        return wait_for(search, "a line of the log", self.said)

    def addresses(self):
        """Waits until the gateway serves, and returns the addresses of the data plane and the admin plane."""
        serving = self.wait_for(lambda line: (entry := parsed(line)).get("message") == "serving" and entry)
        return serving["data"], serving["admin"]

    def stop(self):
        """Sends SIGTERM, as orchestrators do, and returns the exit code."""
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            # When the command that created the namespace ends, every process in it ends too.
            self._process.kill()
            return self._process.wait()


def has_every_user():
    """Whether processes here may change to any user. An ordinary user may not, nor may its user namespace."""
    counts = [int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.geteuid() == 0 and sum(counts) > USER


def parsed(line):
    try:
        return json.loads(line)
    except ValueError:
        return {}


def ask(address, path, body=None, headers=()):
    """Sends a request, and returns the status and body of the response."""
    request = urllib.request.Request(
        f"http://{address}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **dict(headers)},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def wait_for(look, what, explain=lambda: ""):
    """Calls `look` until it returns a value that is not empty, and returns that value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.01)
    raise TimeoutError(f"waited {PATIENCE_SECONDS} s for {what}: {explain()}")
