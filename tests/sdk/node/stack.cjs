"use strict";

// A simulator and a gateway in front of it: real processes, on ports that the system picks.

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");

const BINARY = process.env.GATEWAY_BINARY;
const ACCOUNT_SID = `AC${"0".repeat(32)}`;
const ACCOUNT_KEY = `SK${"0".repeat(32)}`;
const ROWS = 230;
const PATIENCE_MS = 20_000;

const account = (rate) => `
[accounts.main]
account_sid = "${ACCOUNT_SID}"
api_key = "${ACCOUNT_KEY}"
api_secret = { env = "ACCOUNT_SECRET" }
rate = "${rate}"
`;

/** Settings of whoever runs the tests must not reach what is tested. */
function environment() {
  const foreign = /^(TWILIO|INSIGHTS_GATEWAY)_/;
  const kept = Object.entries(process.env).filter(([name]) => !foreign.test(name));
  return { ...Object.fromEntries(kept), ACCOUNT_SECRET: "secret" };
}

/** The first result of `look` that is something. */
async function waitFor(look, what, patience = PATIENCE_MS) {
  const deadline = Date.now() + patience;
  while (Date.now() < deadline) {
    const found = await look();
    if (found) return found;
    await sleep(10);
  }
  throw new Error(`waited ${patience} ms for ${what}`);
}

async function fetchJson(url, options = {}) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  return answer.json();
}

class Simulator {
  #processes = [];
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), "insights-gateway-test-"));

  static async start(options = {}) {
    const started = new this();
    try {
      await started._start(options);
    } catch (error) {
      await started.close();
      throw error;
    }
    return started;
  }

  async _start({ latency = "0s" }) {
    const scale = ["--rate", "0/s", "--latency", latency, "--rows", `${ROWS}`, "--jobs-take", "200ms"];
    const simulator = this._run("simulator", ["simulate", "--listen", "127.0.0.1:0", ...scale]);
    const announced = () => fs.readFileSync(simulator, "utf8").match(/http:\/\/[\d.:]+/);
    [this.upstream] = await waitFor(announced, "the simulator's address");
  }

  /** A file in a folder of its own. */
  _file(name) {
    return path.join(this.#directory, name);
  }

  /** Starts the binary, and returns where its log is. */
  _run(name, args) {
    const log = this._file(`${name}.log`);
    const output = fs.openSync(log, "w");
    this.#processes.push(spawn(BINARY, args, { env: environment(), stdio: ["ignore", "ignore", output] }));
    fs.closeSync(output);
    return log;
  }

  /** What the simulator has received, oldest first. */
  async received() {
    return (await fetchJson(`${this.upstream}/_simulator/requests`)).requests;
  }

  /** Scripts the simulator's next answers. */
  async script(fault) {
    await fetchJson(`${this.upstream}/_simulator/faults`, { method: "POST", body: JSON.stringify(fault) });
  }

  /** Stops what was started last, as an operator would. */
  async _stopLast() {
    await stop(this.#processes.pop());
  }

  /** Stops the simulator alone. */
  async stopSimulator() {
    await stop(this.#processes.shift());
  }

  async close() {
    await Promise.all(this.#processes.map(stop));
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** And a gateway in front of it. */
class Stack extends Simulator {
  async _start({ latency, rate = "0/s", moreConfig = "", adminListen = "127.0.0.1:0" }) {
    await super._start({ latency });
    const config = this._file("gateway.toml");
    fs.writeFileSync(config, account(rate) + moreConfig);
    const ports = ["--listen", "127.0.0.1:0", "--admin-listen", adminListen, "--upstream", this.upstream];
    const gateway = this._run("gateway", ["serve", "--config", config, ...ports]);
    const serving = await waitFor(() => servingEntry(gateway), "the gateway's addresses");
    this.url = `http://${serving.data}`;
    this.admin = `http://${serving.admin}`;
    const ready = () => fetchJson(`${this.admin}/readyz`).then((answer) => answer.ready, () => false);
    await waitFor(ready, "the gateway to be ready");
  }

  /** Stops the gateway alone, as an operator would. */
  async stopGateway() {
    await this._stopLast();
  }
}

function servingEntry(log) {
  // The last line may be incomplete.
  const lines = fs.readFileSync(log, "utf8").split("\n").slice(0, -1);
  const entries = lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  return entries.find((entry) => entry.message === "serving");
}

/** Tells a process to end, and waits until it has. */
async function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const impatience = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  await ended;
  clearTimeout(impatience);
}

module.exports = { Simulator, Stack, ACCOUNT_KEY, ACCOUNT_SID, PATIENCE_MS, ROWS, fetchJson, stop, waitFor };
