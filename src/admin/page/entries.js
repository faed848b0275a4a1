
// The stored pages: searching, sorting and dropping.

const MOST_ENTRIES = 1000;
const ROWS_AT_ONCE = 20;

const COLUMNS = [
  ["key", "Key", (entry) => entry.key],
  ["operation", "Operation", (entry) => entry.operation],
  ["account", "Account", (entry) => entry.account],
  ["state", "State", (entry) => ["fresh", "stale", "expired"].indexOf(entry.state)],
  ["age", "Age", (entry) => entry.age, true],
  ["hits", "Hits", (entry) => entry.hits, true],
  ["bytes", "Size", (entry) => entry.bytes, true],
  ["settled", "Settled", (entry) => entry.settled ?? ""],
];

const entries = { all: [], more: false, by: "hits", down: true, from: 0, query: "" };

function makeEntriesHead() {
  const head = COLUMNS.map(([name, title, , isNumber]) => {
    const button = create("button", { type: "button", class: "sort" }, title);
    button.addEventListener("click", () => {
      entries.down = entries.by === name ? !entries.down : Boolean(isNumber);
      Object.assign(entries, { by: name, from: 0 });
      showEntries();
    });
    return create("th", { scope: "col", class: isNumber ? "number" : "", "data-column": name }, button);
  });
  $("entries-head").append(...head, create("th", { scope: "col" }, create("span", { class: "unseen" }, "Drop")));
}

async function loadEntries() {
  const page = await read(`/cache/entries?limit=${MOST_ENTRIES}`);
  Object.assign(entries, { all: page.entries, more: page.next !== null });
  showEntries();
}

function showEntries() {
  const words = entries.query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (entry) => [entry.key, entry.operation, entry.account, entry.state, entry.settled, entry.query].join(" ").toLowerCase();
  const found = entries.all.filter((entry) => words.every((wanted) => text(entry).includes(wanted)));
  const value = COLUMNS.find(([name]) => name === entries.by)[2];
  const compare = (one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0);
  found.sort((one, other) => (entries.down ? -compare(one, other) : compare(one, other)));
  for (const head of document.querySelectorAll("#entries-head th[data-column]")) {
    const sorted = head.dataset.column === entries.by;
    if (sorted) head.setAttribute("aria-sort", entries.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  entries.from = Math.min(entries.from, Math.max(0, Math.floor((found.length - 1) / ROWS_AT_ONCE) * ROWS_AT_ONCE));
  const shown = found.slice(entries.from, entries.from + ROWS_AT_ONCE);
  const cut = entries.more ? ` Only the first ${number.format(MOST_ENTRIES)} are searched; /cache/entries lists all.` : "";
  const count = words.length ? `${number.format(found.length)} of ${plural(entries.all.length, "page")}.` : "";
  const hint = shown.some((entry) => entry.query !== undefined) ? "" : "Queries are shown only by their keys.";
  say($("entries-caption"), entries.all.length ? [count, hint].filter(Boolean).join(" ") + cut : "Nothing is kept yet.");
  const kinds = { fresh: "ok", stale: "warn", expired: "bad" };
  table($("entry-rows"), shown.map((entry) => [
    (cell) => {
      cell.className = "key";
      say(cell, entry.key.slice(0, 16));
      cell.title = entry.query ?? entry.key;
    },
    entry.operation, entry.account, [entry.state, kinds[entry.state] ?? ""], [span(entry.age), "number"],
    [number.format(entry.hits), "number"], [size(entry.bytes), "number"], [entry.settled ? word(entry.settled) : "–", ""],
    (cell) => {
      if (!cell.firstElementChild) {
        const button = create("button", { type: "button", class: "plain" }, "Drop");
        button.addEventListener("click", () => dropOne(button.dataset.key));
        cell.append(button);
      }
      cell.firstElementChild.dataset.key = entry.key;
      cell.firstElementChild.setAttribute("aria-label", `Drop ${entry.key.slice(0, 16)}`);
    },
  ]));
  $("entries-paging").hidden = found.length <= ROWS_AT_ONCE;
  $("entries-previous").disabled = entries.from === 0;
  $("entries-next").disabled = entries.from + ROWS_AT_ONCE >= found.length;
  say($("entries-page"), `${entries.from + 1}–${entries.from + shown.length} of ${number.format(found.length)}`);
}

async function purge(which) {
  const answer = await send("/cache/purge", which);
  const said = await answer.json();
  say($("entries-caption"), answer.ok ? `${plural(said.purged, "page")} dropped.` : said.error);
  await loadEntries();
}

async function dropOne(key) {
  const text = `The page ${key.slice(0, 16)} and the rest of its result set are dropped. The next request for them goes to Twilio.`;
  if (await confirmed("Drop this page?", text, "Drop the page")) await purge({ key });
}

async function dropAll() {
  const text = "All pages of all accounts are dropped. Until the cache has filled again, every request needs a call to Twilio.";
  if (await confirmed("Drop all pages?", text, "Drop all")) await purge({ all: true });
}

function beginEntries() {
  makeEntriesHead();
  $("entries-search").addEventListener("input", (event) => {
    Object.assign(entries, { query: event.target.value, from: 0 });
    showEntries();
  });
  $("entries-again").addEventListener("click", loadEntries);
  $("purge-all").addEventListener("click", dropAll);
  const turn = (rows) => () => {
    entries.from = Math.max(0, entries.from + rows);
    showEntries();
  };
  $("entries-previous").addEventListener("click", turn(-ROWS_AT_ONCE));
  $("entries-next").addEventListener("click", turn(ROWS_AT_ONCE));
  loadEntries().catch(() => {});
}
