"""A demo, started without any settings."""

import subprocess

from empty_root import BINARY, PATIENCE_SECONDS, wait_for

FREE = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--simulator=127.0.0.1:0"]


class Demo:
    def __init__(self, folder, *flags, environment=()):
        self._printed, self.log = folder / "demo.out", folder / "demo.log"
        with self._printed.open("w") as output, self.log.open("w") as errors:
            self._process = subprocess.Popen(
                [BINARY, "demo", *FREE, *flags],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        wait_for(lambda: "Ctrl-C" in self.printed(), "the introduction", self.log.read_text)
        lines = [line.split() for line in self.printed().splitlines()]
        addresses = {line[0]: line[1].rstrip("/") for line in lines if len(line) == 2 and line[1].startswith("http://")}
        self.gateway, self.admin, self.simulator = (addresses[name] for name in ("gateway", "admin", "simulator"))

    def printed(self):
        return self._printed.read_text()

    def close(self):
        self._process.terminate()
        assert self._process.wait(PATIENCE_SECONDS) == 0, self.log.read_text()
