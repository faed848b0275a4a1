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
async function waitFor(look, what) {
  const deadline = Date.now() + PATIENCE_MS;
  while (Date.now() < deadline) {
    const found = await look();
    if (found) return found;
    await sleep(10);
  }
  throw new Error(`waited ${PATIENCE_MS} ms for ${what}`);
}

async function fetchJson(url, options = {}) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  return answer.json();
}

class Stack {
  #processes = [];
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), "insights-gateway-test-"));

  static async start({ latency = "0s", rate = "0/s", moreConfig = "", adminListen = "127.0.0.1:0" } = {}) {
    const stack = new Stack();
    try {
      await stack.#start(latency, rate, moreConfig, adminListen);
    } catch (error) {
      await stack.close();
      throw error;
    }
    return stack;
  }

  async #start(latency, rate, moreConfig, adminListen) {
    const config = path.join(this.#directory, "gateway.toml");
    fs.writeFileSync(config, account(rate) + moreConfig);
    const ports = ["--listen", "127.0.0.1:0"];

    const scale = ["--rate", "0/s", "--latency", latency, "--rows", `${ROWS}`];
    const simulator = this.#run("simulator", ["simulate", ...ports, ...scale]);
    const announced = () => fs.readFileSync(simulator, "utf8").match(/http:\/\/[\d.:]+/);
    [this.upstream] = await waitFor(announced, "the simulator's address");

    ports.push("--admin-listen", adminListen, "--upstream", this.upstream);
    const gateway = this.#run("gateway", ["serve", "--config", config, ...ports]);
    const serving = await waitFor(() => servingEntry(gateway), "the gateway's addresses");
    this.url = `http://${serving.data}`;
    this.admin = `http://${serving.admin}`;
    const ready = () => fetchJson(`${this.admin}/readyz`).then((answer) => answer.ready, () => false);
    await waitFor(ready, "the gateway to be ready");
  }

  /** Starts the binary, and returns where its log is. */
  #run(name, args) {
    const log = path.join(this.#directory, `${name}.log`);
    const output = fs.openSync(log, "w");
    this.#processes.push(spawn(BINARY, args, { env: environment(), stdio: ["ignore", "ignore", output] }));
    fs.closeSync(output);
    return log;
  }

  /** What the simulator has received from the gateway, oldest first. */
  async received() {
    return (await fetchJson(`${this.upstream}/_simulator/requests`)).requests;
  }

  /** Scripts the simulator's next answers. */
  async script(fault) {
    await fetchJson(`${this.upstream}/_simulator/faults`, { method: "POST", body: JSON.stringify(fault) });
  }

  /** Stops the gateway alone, as an operator would. */
  async stopGateway() {
    await stop(this.#processes.pop());
  }

  async close() {
    await Promise.all(this.#processes.map(stop));
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }
}

function servingEntry(log) {
  // The last line may not be whole yet.
  const lines = fs.readFileSync(log, "utf8").split("\n").slice(0, -1);
  const entries = lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  return entries.find((entry) => entry.message === "serving");
}

async function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const impatience = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  await ended;
  clearTimeout(impatience);
}

module.exports = { Stack, ACCOUNT_KEY, ACCOUNT_SID, PATIENCE_MS, ROWS, fetchJson, waitFor };
