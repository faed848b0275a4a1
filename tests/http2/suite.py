"""Runs the public suite for RFC 9113 against a gateway and compares the failing tests with the expected ones.

    suite.py HTTPWG GATEWAY EXPECTED

HTTPWG is the suite's program and GATEWAY the gateway's. Prints one line a difference, and last how many tests are as
expected and how many are not. Exits with 0 when all are.
"""

import json
import os
import re
import subprocess
import sys

ACCOUNT = {
    "TWILIO_ACCOUNT_SID": "AC00000000000000000000000000000001",
    "TWILIO_API_KEY": "SK00000000000000000000000000000001",
    "TWILIO_API_SECRET": "nobody-is-asked",
}
FLAGS = {
    "server.listen": "127.0.0.1:0",
    "admin.listen": "127.0.0.1:0",
    "log.format": "json",
    "log.access": "false",
    "upstream.url": "http://127.0.0.1:9",
}
RESULT = re.compile(r"Test (passed|failed): RFC 9113 :: (.+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def read_expected(path):
    """The names of the tests that must fail, and of those that may fail."""
    with open(path, encoding="utf-8") as file:
        names = [line.split(" | ")[0].strip() for line in file if line.strip() and not line.startswith("#")]
    maybe = {name.removeprefix("maybe ") for name in names if name.startswith("maybe ")}
    return {name for name in names if not name.startswith("maybe ")}, maybe


def serve(program):
    """Starts a gateway on a port that the system chooses, and returns it with its address."""
    flags = [f"--set={key}={value}" for key, value in FLAGS.items()]
    gateway = subprocess.Popen(
        [program, "serve", *flags], env=ACCOUNT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in gateway.stderr:
        event = json.loads(line)
        if event["message"] == "serving":
            return gateway, event["data"]
    raise SystemExit(f"the gateway does not start: {gateway.wait()}")


def run(suite, address):
    """The results: for each test's name, whether the test passed."""
    ran = subprocess.run(
        [suite, "--address", address], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    found = RESULT.findall(COLOUR.sub("", ran.stdout + ran.stderr))
    return {name.strip(): result == "passed" for result, name in found}


def main():
    suite, program, expected_path = sys.argv[1:]
    expected, maybe = read_expected(expected_path)
    gateway, address = serve(program)
    try:
        results = run(suite, address)
    finally:
        gateway.terminate()
        gateway.stderr.close()
        gateway.wait(timeout=60)
    wrong = []
    for name, passed in sorted(results.items()):
        if passed and name in expected:
            wrong.append(f"{name}: passes, take it out of {os.path.basename(expected_path)}")
        elif not passed and name not in expected | maybe:
            wrong.append(f"{name}: fails")
    # The suite's tests write at the same time, so a short line may be lost. The long line of a failure is not.
    wrong += [f"{name}: is expected to fail and was not run" for name in sorted(expected - results.keys())]
    if len(results) < 100:
        wrong.append(f"only {len(results)} tests were run")
    for line in wrong:
        print(line)
    print(f"http2: {len(results)} run, {sum(results.values())} passed by the suite's count")
    print(f"http2: {max(len(results) - len(wrong), 0)} as expected, {len(wrong)} not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
