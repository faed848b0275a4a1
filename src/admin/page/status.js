
// The status of the gateway.

const BAD = { failing: 0, degraded: 1, ok: 2 };

/** What each check is about, and what its own detail does not say about what to do. */
const CHECKS = {
  serving: ["The gateway is shutting down", "Nothing has to be done if it is meant to stop: other instances answer, or it will start again."],
  configuration: ["A new configuration was refused, so the old one is in use", "Correct these faults; the gateway then reloads by itself."],
  disk: ["The disk cache does not work", "Check the disk’s free space and its permissions."],
  credentials: ["Twilio rejects the credentials of", "The gateway reloads by itself when their file changes."],
  upstream: ["Twilio fails for", "Check Twilio’s status page, and the network in between."],
  shared: ["The replicas’ store cannot be reached", "This replica shares again by itself when the store answers."],
  certificate: ["The listener’s certificate ends soon, or is not valid", ""],
  token: ["A token ends soon, or has ended:", ""],
};

function stateOf(check) {
  return check.state ?? (!check.ok ? "failing" : check.detail ? "degraded" : "ok");
}

function titleOf(check) {
  const [kind, subject] = check.check.split("/");
  const [title] = CHECKS[kind] ?? CHECKS[kind.replace(/s$/, "")] ?? [word(check.check)];
  return subject ? `${title} ${subject}` : title;
}

function adviceOf(check) {
  const kind = check.check.split("/")[0];
  return (CHECKS[kind] ?? CHECKS[kind.replace(/s$/, "")])?.[1] ?? "";
}

function headingOf(check) {
  const known = { serving: "draining", configuration: "insightsgatewayreloadrefused", disk: "insightsgatewaydiskfailing", shared: "insightsgatewaysharedstoredown", credentials: "upstream_rejected_credentials", upstream: "circuit_open" };
  return (check.runbook ?? "").split("#")[1] ?? known[check.check.split("/")[0]] ?? "";
}

function showHealth({ state, checks, ready }, status) {
  const findings = checks.filter((check) => stateOf(check) !== "ok").sort((one, other) => BAD[stateOf(one)] - BAD[stateOf(other)]);
  const now = state ?? (!ready ? "failing" : findings.length ? "degraded" : "ok");
  const since = findings.filter((check) => stateOf(check) === now).map((check) => check.since).filter(Boolean).sort()[0] ?? (now === "ok" ? status?.started_at : undefined);
  const from = since ? ` since ${moment(since)}` : "";
  const sentence = {
    ok: "OK: everything works",
    degraded: `Degraded${from}: ${lower(findings[0] ? titleOf(findings[0]) : "something is wrong")}, but the gateway still serves`,
    failing: `Failing${from}: ${lower(findings[0] ? titleOf(findings[0]) : "the gateway is not ready")}`,
  }[now];
  const more = findings.length > 1 ? ` – and ${plural(findings.length - 1, "more finding")}` : "";
  say($("state"), `${sentence}${more}.`);
  $("hero").dataset.state = now;
  const make = () => create("li", {}, create("b"), create("p"), create("p", {}, create("span"), " ", create("a")));
  list($("findings"), findings, make, (item, check) => {
    const [title, cause, text, link] = [item.querySelector("b"), item.querySelector("p"), item.querySelector("span"), item.querySelector("a")];
    item.className = stateOf(check);
    const begun = check.since ? `, since ${moment(check.since)}` : "";
    say(title, `${titleOf(check)}${begun}.`);
    cause.hidden = !check.cause;
    say(cause, `Cause: ${check.cause}`);
    say(text, [check.detail, adviceOf(check)].filter(Boolean).map(asSentence).join(" "));
    const heading = headingOf(check);
    link.hidden = !heading;
    link.href = `/runbook#${heading}`;
    say(link, "Runbook");
    link.setAttribute("aria-label", `Runbook: ${titleOf(check)}`);
  });
  showIcon(now);
}

const asSentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
const lower = (text) => (/^[A-Z][a-z]* [a-z]/.test(text) && !text.startsWith("Twilio") ? text[0].toLowerCase() + text.slice(1) : text);

/** Title and icon, which are visible if the tab is in the background. */
function showIcon(state) {
  const mark = { ok: ["", "#157347"], degraded: ["▲ Degraded – ", "#b36b00"], failing: ["✖ Failing – ", "#b3261e"], silent: ["✖ Silent – ", "#6b7686"] }[state];
  const title = `${mark[0]}insights-gateway`;
  if (document.title !== title) document.title = title;
  const picture = `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><rect width='16' height='16' rx='4' fill='${mark[1]}'/><path d='M4 11.5V8.5m2.7 3V5m2.7 6.5V7M12 11.5v-2' stroke='white' stroke-width='1.7' stroke-linecap='round'/></svg>`;
  const icon = document.querySelector("link[rel=icon]");
  const address = `data:image/svg+xml,${encodeURIComponent(picture)}`;
  if (icon.href !== address) icon.href = address;
}

function showAbout(status) {
  const faults = status.configuration?.faults ?? [];
  const told = faults.length ? ` Faults of the refused configuration: ${faults.join("; ")}.` : "";
  say($("about"), `Version ${status.version}, up for ${span(status.uptime_seconds)}, in front of ${status.upstream.replace(/\/$/, "")}.${told}`);
}

function showFigures(status) {
  const { points } = status.history;
  const all = (wanted) => points.reduce((total, { requests }) => total + sum(requests, wanted), 0);
  const answered = all((name) => name !== "refused");
  const saved = all((name) => SAVED.includes(name));
  const last = points.slice(-12);
  const seconds = last.length * status.history.interval_seconds;
  const recent = last.reduce((total, point) => total + sum(point.requests), 0);
  const calls = last.reduce((total, point) => total + Object.values(point.accounts).reduce((sent, { calls: own }) => sent + own, 0), 0);
  const rate = (count) => (seconds ? (count / seconds).toFixed(count / seconds < 10 ? 1 : 0) : "–");
  const time = status.saved.seconds;
  const figures = [
    [answered ? `${percent(saved, answered).toFixed(1)} %` : "–", "of answers needed no call to Twilio"],
    [number.format(status.saved.calls), `${status.saved.calls === 1 ? "call" : "calls"} to Twilio saved since the start`],
    [time === null ? "–" : time < 120 ? `${time.toFixed(1)} s` : span(time), "of waiting for Twilio saved since the start"],
    [`${rate(recent)} /s`, "requests in the last minute"],
    [`${rate(calls)} /s`, "calls to Twilio in the last minute"],
  ];
  list($("figures"), figures, () => create("li", {}, create("b"), create("span")), (item, [value, what]) => {
    say(item.children[0], value);
    say(item.children[1], what);
  });
}

function showCharts({ history, accounts }) {
  const { points, interval_seconds: interval } = history;
  const times = points.map((point) => Date.parse(point.at));
  const to = Math.max(times.at(-1) ?? 0, Date.now() - interval * 1000);
  const common = { times, from: to - 900_000, to };
  const used = (name) => points.some((point) => point.requests[name]);
  const tidy = (value) => Number(value.toPrecision(3)).toString();
  const total = points.reduce((all, point) => all + sum(point.requests), 0);
  drawChart($("chart-requests"), {
    ...common, title: "Requests by outcome", note: `a second, ${plural(total, "request")} in all`, stacked: true, interval: interval * 1000, unit: "/s", write: tidy, empty: "no requests yet",
    series: Object.entries(OUTCOMES).filter(([name]) => used(name)).map(([name, [kind]]) => ({
      name: word(name), kind, values: points.map((point) => (point.requests[name] ?? 0) / interval),
    })),
  });
  const names = accounts.map(({ name }) => name);
  const kinds = ["k2", "k3", "k6", "k8"];
  const of = (point, name) => point.accounts[name];
  drawChart($("chart-calls"), {
    ...common, title: "Calls to Twilio", note: "a second, and the rate that is granted (dashed)", unit: "/s", write: tidy, empty: "no calls yet",
    series: names.flatMap((name, at) => [
      { name: names.length > 1 ? name : "calls", kind: kinds[at % 4], values: points.map((point) => (of(point, name) ? of(point, name).calls / interval : null)) },
      { name: names.length > 1 ? `rate of ${name}` : "granted rate", kind: names.length > 1 ? kinds[at % 4] : "k7", limit: true, values: points.map((point) => of(point, name)?.rate_per_second ?? null) },
    ]),
    shades: points.flatMap((point, at) => (Object.values(point.accounts).some(({ paused_seconds: paused }) => paused > 0) ? [[times[at] - interval * 1000, times[at]]] : [])),
  });
  const timed = ["hit", "miss", "collapsed", "stale"].filter((name) => points.some((point) => point.p50_ms[name])).slice(0, 3);
  drawChart($("chart-times"), {
    ...common, title: "Response times", note: "median, and 95th percentile (dashed); logarithmic scale", logarithmic: true, unit: "", write: duration,
    writeMark: (ms) => (ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`), empty: "no answers yet",
    series: timed.flatMap((name) => [
      { name: `${word(name)}, median`, kind: OUTCOMES[name][0], values: points.map((point) => point.p50_ms[name] ?? null) },
      { name: `${word(name)}, 95 %`, kind: OUTCOMES[name][0], limit: true, values: points.map((point) => point.p95_ms[name] ?? null) },
    ]),
  });
  const waiting = [...new Set(points.flatMap((point) => Object.keys(point.waiting)))].slice(0, 8);
  drawChart($("chart-waiting"), {
    ...common, title: "Waiting for Twilio, by team", note: "the most calls at one time, in each 5 s", stacked: true, interval: interval * 1000, leastStep: 1, unit: "", write: tidy, empty: "nobody has waited",
    series: waiting.map((name, at) => ({ name, kind: `k${(at % 8) + 1}`, values: points.map((point) => point.waiting[name] ?? 0) })),
  });
}

const FACTS = ["Rate now", "Tokens", "State", "Circuit", "In progress", "Waiting", "Credentials"];

function accountCard() {
  const facts = FACTS.map((term) => create("div", {}, create("dt", {}, term), create("dd", {}, create("span"))));
  facts[1].lastElementChild.append(create("div", { class: "meter", role: "meter", "aria-label": "Tokens", "aria-valuemin": 0, "aria-valuemax": 100 }, create("i")));
  return create("article", { class: "card" }, create("header", {}, create("h3"), create("code")), create("dl", {}, ...facts));
}

function showAccounts(accounts) {
  list($("account-cards"), accounts, accountCard, (card, account) => {
    const { tokens, burst, rate, rate_now: granted, rate_now_per_second: now, paused_seconds: paused, circuit, credentials } = account;
    say(card.querySelector("h3"), account.name);
    say(card.querySelector("code"), account.account_sid);
    const left = Math.max(0, tokens ?? 0).toFixed(1);
    const bar = card.querySelector(".meter");
    bar.hidden = tokens === null;
    meter(bar, percent(tokens ?? 0, burst), `${left} of ${burst}`);
    const broken = account.circuit_broken_seconds;
    const { credentials_rejected_seconds: rejected, credentials_rejected_status: answered } = account;
    const facts = [
      [rate ? (granted && granted !== rate ? `${granted.split("/")[0]} of ${rate}` : rate) : "no limit", rate && now !== null && account.rate && now < burstless(rate) * 0.99 ? "warn" : ""],
      [rate ? `${left} of ${burst}` : "–"],
      paused > 0 ? [`paused by Twilio’s limit, ${Math.ceil(paused)} s left`, "warn"] : ["running", "ok"],
      [circuit === "closed" ? "closed" : `${word(circuit)}${broken ? ` for ${span(broken)}` : ""}`, circuit === "closed" ? "ok" : "bad"],
      [`${account.in_flight} of ${account.concurrency_now ?? account.concurrency}`],
      [number.format(account.waiting), account.waiting > 0 ? "warn" : ""],
      credentials === "rejected" ? [`rejected${answered ? ` with ${answered}` : ""}${rejected === null ? "" : ` for ${span(rejected)}`}`, "bad"] : credentials === "unknown" ? ["unknown: nobody has asked Twilio yet", "quiet"] : [credentials, "ok"],
    ];
    const values = card.querySelectorAll("dd > span");
    facts.forEach(([text, kind = ""], at) => say(values[at], text, kind));
  });
}

/** The tokens a second of a configured rate: `300/min`. */
function burstless(rate) {
  const [count, per] = rate.split("/");
  const each = /^([\d.]*)(ms|s|min|m|h|d)$/.exec(per);
  const seconds = { ms: 0.001, s: 1, min: 60, m: 60, h: 3600, d: 86400 };
  return each ? Number(count) / ((Number(each[1]) || 1) * seconds[each[2]]) : 0;
}

function showTeams(teams) {
  $("no-teams").hidden = teams.length > 0;
  $("teams-scroll").hidden = teams.length === 0;
  const weights = {};
  for (const { account, weight } of teams) weights[account] = (weights[account] ?? 0) + weight;
  table($("team-rows"), teams.map((team) => {
    const asked = sum(team.asked);
    const got = sum(team.asked, (name) => name !== "refused" && name !== "failed");
    const saved = sum(team.asked, (name) => SAVED.includes(name));
    const limits = [team.requests && `${team.requests} requests`, team.upstream && `${team.upstream} upstream`].filter(Boolean).join(", ");
    return [
      team.name, team.account, [number.format(asked), "number"], [number.format(got), "number"],
      [got ? `${percent(saved, got).toFixed(0)} %` : "–", "number"],
      (cell) => {
        cell.className = "";
        if (!team.refused.length) return say(cell, "–");
        if (!cell.querySelector(".chip")) cell.replaceChildren();
        return list(cell, team.refused.slice(0, 4), () => create("span", { class: "chip" }), (chip, { reason, count }) => say(chip, `${word(reason)} ${number.format(count)}`));
      },
      [number.format(team.waiting), `number${team.waiting ? " warn" : ""}`],
      [`${percent(team.weight, weights[team.account]).toFixed(0)} %`, "number"], [limits || "the account’s", ""],
    ];
  }));
}

const FEW_ERRORS = 8;
let allErrors = false;

function showErrors(errors) {
  $("no-errors").hidden = errors.length > 0;
  $("errors-scroll").hidden = errors.length === 0;
  const shown = allErrors ? errors : errors.slice(0, FEW_ERRORS);
  table($("error-rows"), shown.map((error) => [
    moment(error.at),
    [`${error.status}: ${error.message}${error.cause ? ` (${error.cause})` : ""}`, "text"],
    (cell) => {
      cell.className = "";
      if (!cell.querySelector("a")) cell.replaceChildren(create("a"));
      const link = cell.querySelector("a");
      link.href = `/runbook#${error.reason}`;
      say(link, word(error.reason));
    },
    error.team ?? "–",
    [error.request_id, "key"],
  ]));
  $("more-errors").hidden = errors.length <= FEW_ERRORS;
  say($("more-errors"), allErrors ? "Show fewer" : `Show all ${errors.length}`);
}

function showCache({ entries, bytes, capacity_bytes: capacity, disk }) {
  const share = percent(bytes, capacity);
  say($("cache-pages"), plural(entries, "page"));
  const onDisk = disk.enabled ? `; on disk ${plural(disk.entries, "page")}, ${size(disk.bytes)}` : "";
  say($("cache-fill"), `${size(bytes)} of ${size(capacity)}${onDisk}`);
  meter($("cache-meter"), share, `${share.toFixed(1)} %`);
}

// --- Requests as they come ---

const LIVE_ROWS = 12;
let live = [];
let paused = false;
let drawing = false;

function hear(request) {
  if (paused) return;
  live = [request, ...live].slice(0, LIVE_ROWS);
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    showLive();
  }, 250);
}

function showLive() {
  $("live-scroll").hidden = live.length === 0;
  table($("live-rows"), live.map((request) => [
    clock(request.at),
    [word(request.outcome) + (request.reason ? `: ${word(request.reason)}` : ""), `outcome ${OUTCOMES[request.outcome]?.[0] ?? "k9"}`],
    [request.status, `number${request.status >= 500 ? " bad" : request.status >= 400 ? " warn" : ""}`],
    request.via === "admin" ? `${request.team}, by the explorer` : request.team ?? "–", request.operation ?? "–",
    [duration(request.duration_ms), "number"],
    [request.wait_ms >= 1 ? duration(request.wait_ms) : "–", "number"], [request.attempts || "–", "number"],
  ]));
  if (!paused && live.length) say($("live-note"), "As they end, newest first.");
}
