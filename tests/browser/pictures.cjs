"use strict";

// Takes the pictures of the README: the status page over a demo with traffic. Usage: pictures.cjs FOLDER [MINUTES]

const { spawn } = require("node:child_process");
const path = require("node:path");

const { PATIENCE_MS, fetchJson, stop, waitFor } = require("../sdk/node/stack.cjs");
const { Session } = require("./browser.cjs");

const VIEWPORT = { width: 1100, height: 860 };

async function main(folder, minutes = 6) {
  // Without INSIGHTS_GATEWAY_ variables, which would configure it.
  const demo = spawn(process.env.GATEWAY_BINARY, ["demo", "--traffic"], { env: { PATH: process.env.PATH }, stdio: ["ignore", "pipe", "ignore"] });
  const session = await Session.launch();
  try {
    let printed = "";
    demo.stdout.on("data", (part) => { printed += part; });
    const [, admin] = await waitFor(() => printed.match(/admin +(http:\S+)\//), "the demo's addresses");
    const enough = async () => (await fetchJson(`${admin}/status`)).history.points.length >= minutes * 12;
    await waitFor(enough, `${minutes} minutes of history`, minutes * 60_000 + PATIENCE_MS);
    for (const colorScheme of ["light", "dark"]) {
      const { page, complaints } = await session.visit({ admin }, { colorScheme, viewport: VIEWPORT });
      await page.locator("#chart-waiting svg").waitFor();
      await page.screenshot({ path: path.join(folder, `status-${colorScheme}.png`) });
      if (complaints.length) throw new Error(complaints.join("; "));
      console.log(`taken: status-${colorScheme}.png`);
    }
  } finally {
    await session.closeOpen();
    await session.close();
    await stop(demo);
  }
}

main(process.argv[2], Number(process.argv[3] ?? 6)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
