
// The same query for other programs. None contains a token: each reads INSIGHTS_GATEWAY_TOKEN from its environment.

const QUERY_PATH = "/v3/InsightsDomains/Conversations/Query";

/** A text, quoted as one word of a shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A word of a shell, quoted only if necessary. */
const shellWord = (text) => (/^[\w./:=,@%+-]+$/.test(text) ? text : quoted(text));

/** A string literal with the same meaning in JSON, JavaScript and Python. */
const literal = (value, indent) => JSON.stringify(value, null, indent).replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A value of a filter for the command line, quoted if it contains a comma or a quote. */
const filterValue = (value) => (value === "" || value.includes(",") || value.startsWith('"') ? `"${value.replaceAll('"', '""')}"` : value);

function snippets({ url, needsToken, team, body, pageSize }) {
  const target = `${url}${QUERY_PATH}?pageSize=${pageSize}`;
  return { curl: asCurl(target, body, needsToken), Python: asPython(target, body, needsToken), Node: asNode(target, body, needsToken), "insights-gateway": asCommand(url, team, body, pageSize, needsToken) };
}

function asCurl(target, body, needsToken) {
  return [
    `curl -sS ${quoted(target)}`,
    "-H 'Content-Type: application/json'",
    ...(needsToken ? ['-H "Authorization: Bearer $INSIGHTS_GATEWAY_TOKEN"'] : []),
    `-d ${quoted(JSON.stringify(body))}`,
  ].join(" \\\n  ");
}

function asPython(target, body, needsToken) {
  const headers = ['"Content-Type": "application/json"', ...(needsToken ? ['"Authorization": "Bearer " + os.environ["INSIGHTS_GATEWAY_TOKEN"]'] : [])];
  return [
    needsToken ? "import json, os, urllib.request" : "import json, urllib.request",
    "",
    `body = ${literal(body, 4)}`,
    `headers = {${headers.join(", ")}}`,
    `request = urllib.request.Request(${literal(target)}, json.dumps(body).encode(), headers)`,
    "page = json.load(urllib.request.urlopen(request))",
    'print(*page["items"], sep="\\n")',
  ].join("\n");
}

function asNode(target, body, needsToken) {
  const headers = ['"Content-Type": "application/json"', ...(needsToken ? ["Authorization: `Bearer ${process.env.INSIGHTS_GATEWAY_TOKEN}`"] : [])];
  return [
    `const body = ${literal(body, 2)};`,
    `const headers = { ${headers.join(", ")} };`,
    `fetch(${literal(target)}, { method: "POST", headers, body: JSON.stringify(body) })`,
    "  .then((answer) => answer.json())",
    "  .then((page) => console.table(page.items));",
  ].join("\n");
}

function asCommand(url, team, { query, properties }, pageSize, needsToken) {
  const symbols = { EQ: "=", IN: "=", NE: "!=", LT: "<", GT: ">" };
  const parts = [`--url ${shellWord(url)}`];
  if (needsToken) parts.push(`--team ${shellWord(team)}`);
  for (const name of query.measures ?? []) parts.push(`--measure ${shellWord(name)}`);
  for (const name of query.dimensions ?? []) parts.push(`--dimension ${shellWord(name)}`);
  for (const { op, field, values } of query.filters?.[0]?.expressions ?? []) {
    parts.push(`--filter ${quoted(`${field}${symbols[op]}${values.map(filterValue).join(",")}`)}`);
  }
  for (const { field, direction } of query.orderBy ?? []) parts.push(`--order ${shellWord(`${field}:${direction.toLowerCase()}`)}`);
  if (properties?.timezone) parts.push(`--zone ${shellWord(properties.timezone)}`);
  parts.push(`--page-size ${pageSize}`);
  return `insights-gateway query ${parts.join(" \\\n  ")}`;
}

const LANGUAGES = ["curl", "Python", "Node", "insights-gateway"];

function makeSnippets() {
  LANGUAGES.forEach((language, at) => {
    const name = `snippet-${at}`;
    const tab = create("button", { type: "button", role: "tab", id: `${name}-tab`, class: "plain", "aria-controls": name, tabindex: at === 0 ? "0" : "-1" }, language === "insights-gateway" ? "insights-gateway query" : language);
    tab.setAttribute("aria-selected", at === 0);
    const copy = create("button", { type: "button", class: "plain" }, "Copy");
    const text = create("pre", { "data-ig": "snippet", "data-language": language, tabindex: "0", "aria-label": `${language} snippet` });
    copy.addEventListener("click", async () => {
      // Without TLS a page beyond loopback has no clipboard. Then the text is selected, so that the user can copy it.
      if (navigator.clipboard) await navigator.clipboard.writeText(text.textContent);
      else getSelection().selectAllChildren(text);
      say(copy, navigator.clipboard ? "Copied" : "Press Ctrl+C");
      setTimeout(() => say(copy, "Copy"), 1500);
    });
    tab.addEventListener("click", () => chooseSnippet(at));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) chooseSnippet((at + step + LANGUAGES.length) % LANGUAGES.length, true);
    });
    $("snippet-tabs").append(tab);
    $("snippets").append(create("div", { class: "snippet", id: name, role: "tabpanel", "aria-labelledby": `${name}-tab`, hidden: at > 0 }, text, copy));
  });
}

function chooseSnippet(chosen, focus) {
  LANGUAGES.forEach((_, at) => {
    const tab = $(`snippet-${at}-tab`);
    tab.setAttribute("aria-selected", at === chosen);
    tab.tabIndex = at === chosen ? 0 : -1;
    $(`snippet-${at}`).hidden = at !== chosen;
    if (at === chosen && focus) tab.focus();
  });
}

function showSnippets(question) {
  const texts = snippets(question);
  for (const place of document.querySelectorAll("[data-ig=snippet]")) say(place, texts[place.dataset.language]);
  say($("snippet-note"), question.needsToken ? "Put the team’s token into INSIGHTS_GATEWAY_TOKEN; none of these contains it." : "This gateway needs no token.");
}
