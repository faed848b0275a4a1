
// The explorer builds a query from the metadata that a team may see, and sends it as that team.

const GRAINS = ["hour", "day", "week", "month", "quarter", "year"];
const OPERATORS = {
  string: [["EQ", "is"], ["NE", "is not"], ["IN", "is one of"]],
  number: [["EQ", "="], ["NE", "≠"], ["GT", ">"], ["LT", "<"]],
  time: [["GT", "after"], ["LT", "before"]],
  boolean: [["EQ", "is"]],
};

const explorer = { on: false, settings: null, members: new Map(), tokens: [], page: 0, asked: null };

const kindOf = (type) => {
  const text = `${type ?? ""}`.toLowerCase();
  if (["time", "date", "datetime", "timestamp"].includes(text)) return "time";
  return text in OPERATORS ? text : "string";
};

function choices(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => create("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

const ofKind = (isMeasure) => [...explorer.members.values()].filter((member) => member.isMeasure === isMeasure);
const named = (members) => members.map(({ name }) => [name, name]);

/** A row of controls with a button that removes it. */
function addRow(place, label, ...controls) {
  const remove = create("button", { type: "button", class: "plain", "aria-label": `Remove ${label}` }, "✕");
  const row = create("div", { class: "row" }, ...controls, remove);
  remove.addEventListener("click", () => {
    row.remove();
    changed();
  });
  place.append(row);
  return row;
}

function addMeasure(chosen) {
  const select = create("select", { "data-ig": "measure", "aria-label": "Measure" });
  choices(select, [["", "none"], ...named(ofKind(true))], chosen);
  addRow($("measures"), "this measure", select);
}

function addDimension(chosen = "", chosenGrain = "") {
  const select = create("select", { "data-ig": "dimension", "aria-label": "Dimension" });
  const grain = create("select", { "data-ig": "grain", "aria-label": "Grain" });
  choices(select, [["", "none"], ...named(ofKind(false))], chosen);
  choices(grain, [["", "exact time"], ...GRAINS.map((name) => [name, `by ${name}`])], chosenGrain);
  const fit = () => { grain.hidden = kindOf(explorer.members.get(select.value)?.type) !== "time" || !select.value; };
  select.addEventListener("change", () => {
    fit();
    if (!grain.hidden && !grain.value) grain.value = "day";
  });
  fit();
  addRow($("dimensions"), "this dimension", select, grain);
}

function addFilter(chosen = "") {
  const field = create("select", { "data-ig": "filter", "aria-label": "Filter by" });
  choices(field, [["", "no filter"], ...named(ofKind(false))], chosen);
  const operator = create("select", { "data-ig": "operator", "aria-label": "Comparison" });
  let value = create("input");
  const fit = () => {
    const kind = kindOf(explorer.members.get(field.value)?.type);
    const before = operator.value;
    choices(operator, OPERATORS[kind], before);
    const made = kind === "boolean"
      ? create("select", { "data-ig": "value", "aria-label": "Value" }, create("option", { value: "true" }, "true"), create("option", { value: "false" }, "false"))
      : create("input", { "data-ig": "value", "aria-label": "Value", type: { time: "date", number: "number" }[kind] ?? "text", step: kind === "number" ? "any" : undefined, autocomplete: "off", spellcheck: "false" });
    value.replaceWith(made);
    value = made;
    operator.hidden = value.hidden = !field.value;
    hint();
  };
  const hint = () => {
    if (value.type === "text") value.placeholder = operator.value === "IN" ? "CLOSED, ACTIVE" : "CLOSED";
  };
  field.addEventListener("change", fit);
  operator.addEventListener("change", hint);
  addRow($("filters"), "this filter", field, operator, value);
  fit();
}

/** The body of the current query, as the data plane expects it. */
function queryBody() {
  const values = (name) => [...document.querySelectorAll(`#ask [data-ig=${name}]`)];
  const query = {};
  const measures = values("measure").map(({ value }) => value).filter(Boolean);
  if (measures.length) query.measures = [...new Set(measures)];
  const dimensions = values("dimension").filter(({ value }) => value).map((select) => {
    const grain = select.parentElement.querySelector("[data-ig=grain]");
    return grain.hidden || !grain.value ? select.value : `${select.value}.${grain.value}`;
  });
  if (dimensions.length) query.dimensions = [...new Set(dimensions)];
  const expressions = values("filter").filter(({ value }) => value).map((field) => {
    const row = field.parentElement;
    const [op, text] = ["operator", "value"].map((name) => row.querySelector(`[data-ig=${name}]`).value);
    const several = op === "IN" ? text.split(",").map((part) => part.trim()).filter(Boolean) : [text];
    return { op, field: field.value, values: several };
  }).filter(({ values: wanted }) => wanted.some((value) => value !== ""));
  if (expressions.length) query.filters = [{ op: "AND", expressions }];
  if ($("ask-order").value) query.orderBy = [{ field: $("ask-order").value, direction: $("ask-direction").value }];
  const zone = $("ask-zone").value.trim();
  return zone ? { query, properties: { timezone: zone } } : { query };
}

const pageSize = () => Math.max(1, Math.min(1000, Math.trunc(Number($("ask-size").value)) || 50));
const question = () => ({ team: $("ask-team").value, ...queryBody(), pageSize: pageSize(), refresh: $("ask-refresh").checked });

function fitOrder() {
  const { query } = queryBody();
  const fields = [...(query.measures ?? []), ...(query.dimensions ?? [])];
  const options = JSON.stringify(fields);
  if ($("ask-order").dataset.of === options) return;
  $("ask-order").dataset.of = options;
  choices($("ask-order"), [["", "no order"], ...fields.map((name) => [name, name])], $("ask-order").value);
}

let costTimer = null;

function changed() {
  fitOrder();
  const { query } = queryBody();
  $("run").disabled = !(query.measures || query.dimensions);
  const { url, needs_token: needsToken } = explorer.settings;
  showSnippets({ url: url ?? "http://127.0.0.1:8080", needsToken, team: $("ask-team").value, body: queryBody(), pageSize: pageSize() });
  clearTimeout(costTimer);
  costTimer = setTimeout(showCost, 250);
}

async function showCost() {
  const { query } = queryBody();
  if (!query.measures && !query.dimensions) return say($("cost"), "Choose a measure or a dimension.");
  const answer = await send("/explorer/cost", question(), 5000).catch(() => null);
  if (!answer?.ok) return say($("cost"), "");
  const cost = await answer.json();
  if (cost.cost === "refused") return say($("cost"), `It would be refused: ${cost.message}.`, "note bad");
  const parts = [`It costs ${cost.message}.`];
  if (cost.calls_left !== null) parts.push(cost.calls_left > 0 ? `${plural(cost.calls_left, "call")} left now.` : `The next call is possible in ${cost.next_call_seconds} s.`);
  if (cost.paused_seconds > 0) parts.push(`The account is paused for ${cost.paused_seconds} s.`);
  if (cost.circuit !== "closed") parts.push("Twilio fails, so its circuit is not closed.");
  return say($("cost"), parts.join(" "), "note");
}

// --- What the team may see ---

async function offerMetadata() {
  const team = $("ask-team").value;
  const answer = await send("/explorer/cost", { team }, 5000).catch(() => null);
  if (!answer?.ok || team !== $("ask-team").value) return;
  const cost = await answer.json();
  if (cost.cost === "hit" || cost.cost === "stale") await loadMetadata();
  else {
    $("load-metadata").hidden = false;
    say($("metadata-note"), cost.cost === "refused" ? cost.message : "The metadata of this team is not stored yet; reading it costs one call to Twilio.");
  }
}

async function loadMetadata() {
  const team = $("ask-team").value;
  say($("metadata-note"), "Reading the metadata …");
  $("load-metadata").disabled = true;
  try {
    const answer = await send("/explorer/metadata", { team });
    const metadata = await answer.json();
    if (team !== $("ask-team").value) return;
    if (!answer.ok) {
      say($("metadata-note"), `No metadata: ${metadata.message ?? metadata.error}`);
      $("load-metadata").hidden = false;
      return;
    }
    takeMetadata(metadata);
  } catch (error) {
    say($("metadata-note"), `No metadata: ${error.message}`);
    $("load-metadata").hidden = false;
  } finally {
    $("load-metadata").disabled = false;
  }
}

function takeMetadata({ cubes = [] }) {
  explorer.members = new Map();
  for (const cube of cubes) {
    for (const [list, isMeasure] of [[cube.measures, true], [cube.dimensions, false]]) {
      for (const member of list ?? []) explorer.members.set(member.name, { ...member, isMeasure });
    }
  }
  $("load-metadata").hidden = true;
  say($("metadata-note"), `${plural(ofKind(true).length, "measure")}, ${plural(ofKind(false).length, "dimension")}.`);
  resetBuilder();
}

function resetBuilder() {
  for (const place of ["measures", "dimensions", "filters"]) $(place).replaceChildren();
  addMeasure(ofKind(true)[0]?.name ?? "");
  addDimension();
  addFilter();
  changed();
}

// --- The answer ---

async function run(pageToken) {
  const body = pageToken ? { team: explorer.asked.team, pageToken } : question();
  if (!pageToken) Object.assign(explorer, { asked: body, tokens: [null], page: 0 });
  $("run").disabled = true;
  say($("answer-words"), "Asking …", "");
  $("answer").hidden = false;
  const begun = performance.now();
  try {
    const answer = await send("/explorer/query", body);
    const took = performance.now() - begun;
    const page = await answer.json();
    const id = answer.headers.get("X-Request-Id");
    const words = answer.ok
      ? `${readOut(answer.headers.get("Cache-Status"))} It took ${duration(took)}.`
      : `Refused or failed with ${answer.status} after ${duration(took)}.`;
    say($("answer-words"), `${words} Request id ${id}.`, answer.ok ? "" : "bad");
    showAnswer(answer.ok, page);
  } catch (error) {
    say($("answer-words"), `No answer: ${error.message}`, "bad");
    showAnswer(false, {});
  } finally {
    $("run").disabled = false;
    showCost();
  }
}

function showAnswer(isGood, page) {
  const fault = isGood ? "" : [page.message ?? page.error ?? "", page.params?.reason ? `(${page.params.reason})` : ""].join(" ").trim();
  say($("answer-fault"), fault);
  $("answer-fault").hidden = !fault;
  const rows = isGood ? page.items ?? page.data ?? [] : [];
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  $("answer-scroll").hidden = !isGood;
  const isNumber = (name) => rows.every((row) => row[name] === null || row[name] === undefined || (row[name] !== "" && Number.isFinite(Number(row[name]))));
  const numbers = new Set(names.filter((name) => explorer.members.get(name)?.isMeasure || isNumber(name)));
  $("answer-head").replaceChildren(create("tr", {}, ...names.map((name) => create("th", { scope: "col", class: numbers.has(name) ? "number" : "" }, name))));
  const text = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : `${value}`);
  table($("answer-rows"), rows.length || !isGood ? rows.map((row) => names.map((name) => [text(row[name]), numbers.has(name) ? "number" : ""])) : [["No rows."]]);
  explorer.tokens[explorer.page + 1] = isGood ? page.meta?.nextToken ?? null : null;
  $("paging").hidden = !isGood || (explorer.page === 0 && !explorer.tokens[1]);
  $("previous").disabled = explorer.page === 0;
  $("next").disabled = !explorer.tokens[explorer.page + 1];
  say($("page-number"), `Page ${explorer.page + 1}, ${plural(rows.length, "row")}`);
  drawAnswer(rows);
}

function drawAnswer(rows) {
  const figure = $("answer-chart");
  const { query } = explorer.asked;
  const axis = query.dimensions?.[0];
  const measures = (query.measures ?? []).filter((name) => rows.some((row) => Number.isFinite(Number(row[name]))));
  figure.hidden = !axis || !measures.length || rows.length < 2;
  if (figure.hidden) return;
  const isTime = kindOf(explorer.members.get(axis)?.type ?? explorer.members.get(axis.replace(/\.\w+$/, ""))?.type) === "time";
  const write = (value) => number.format(Number(Number(value).toPrecision(4)));
  const points = isTime ? rows.map((row) => [Date.parse(row[axis]), row]).filter(([time]) => Number.isFinite(time)).sort(([one], [other]) => one - other) : [];
  const times = [...new Set(points.map(([time]) => time))];
  if (times.length > 1) {
    const at = (time, name) => points.filter(([other]) => other === time).reduce((total, [, row]) => total + Number(row[name] ?? 0), 0);
    drawChart(figure, {
      title: measures.join(", "), note: `by ${axis}`, times, from: times[0], to: times.at(-1), unit: "", write, empty: "nothing",
      series: measures.slice(0, 4).map((name, index) => ({ name, kind: `k${index + 1}`, values: times.map((time) => at(time, name)) })),
    });
    return;
  }
  const bars = rows.slice(0, 20).map((row) => ({ name: query.dimensions.map((name) => row[name] ?? "–").join(", "), value: Number(row[measures[0]] ?? 0) }));
  drawBars(figure, `${measures[0]} by ${query.dimensions.join(", ")}${rows.length > 20 ? ", the first 20 rows" : ""}`, bars, write);
}

function turn(step) {
  explorer.page += step;
  const token = explorer.tokens[explorer.page];
  return token ? run(token) : rerunFirst();
}

async function rerunFirst() {
  const asked = explorer.asked;
  const answer = await send("/explorer/query", { ...asked, refresh: false });
  const page = await answer.json();
  say($("answer-words"), readOut(answer.headers.get("Cache-Status")), answer.ok ? "" : "bad");
  showAnswer(answer.ok, page);
}

function beginExplorer(settings) {
  explorer.settings = settings;
  $("nav-explorer").hidden = !settings.enabled;
  $("explorer-section").hidden = !settings.enabled;
  if (!settings.enabled || explorer.on) return;
  explorer.on = true;
  choices($("ask-team"), settings.teams.map((name) => [name, name]));
  $("zones").replaceChildren(...(Intl.supportedValuesOf?.("timeZone") ?? []).map((zone) => create("option", { value: zone })));
  makeSnippets();
  resetBuilder();
  $("add-measure").addEventListener("click", () => { addMeasure(""); });
  $("add-dimension").addEventListener("click", () => addDimension());
  $("add-filter").addEventListener("click", () => addFilter());
  $("load-metadata").addEventListener("click", loadMetadata);
  // Choosing a team requests its metadata.
  $("ask-team").addEventListener("change", loadMetadata);
  $("ask").addEventListener("input", changed);
  $("ask").addEventListener("change", changed);
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  offerMetadata();
}
