"use strict";

// The Node examples of the handbook run as they are.

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { test } = require("node:test");
const { promisify } = require("node:util");

const { PATIENCE_MS, ROWS, Stack } = require("./stack.cjs");

const EXAMPLES = path.join(__dirname, "..", "..", "..", "examples", "sdk");

for (const example of fs.readdirSync(EXAMPLES).filter((name) => name.endsWith(".mjs"))) {
  test(`${example} prints every row`, async () => {
    const stack = await Stack.start();
    // Node looks for the packages of a module in its own folder and above, so the example needs a folder with both.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "insights-gateway-example-"));
    try {
      fs.symlinkSync(process.env.NODE_PATH, path.join(folder, "node_modules"));
      fs.copyFileSync(path.join(EXAMPLES, example), path.join(folder, example));
      const options = { timeout: PATIENCE_MS, env: { ...process.env, INSIGHTS_URL: stack.url } };
      const { stdout } = await promisify(execFile)(process.execPath, [path.join(folder, example)], options);
      const counts = stdout.trim().split("\n").map((line) => Number(line.split(" ").at(-1)));
      assert.equal(counts.reduce((sum, count) => sum + count, 0), ROWS);
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
      await stack.close();
    }
  });
}
