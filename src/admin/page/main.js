
// Updates of the page: events as they come, and the whole status every five seconds.

const EVERY_MS = 5000;
const known = { status: null, silentSince: null };

function show(status) {
  const isFirst = known.status === null;
  known.status = status;
  known.silentSince = null;
  // Charts need the width that the page gives them.
  $("main").hidden = false;
  showHealth(status, status);
  showAbout(status);
  showFigures(status);
  showCharts(status);
  showAccounts(status.accounts);
  showTeams(status.teams);
  showErrors(status.errors);
  showCache(status.cache);
  $("main").classList.remove("old");
  if (isFirst) beginEntries();
  beginExplorer(status.explorer);
  $("logout").hidden = !status.admin.needs_token;
}

function showSilence() {
  known.silentSince ??= new Date();
  const rest = known.status ? " The data below is older." : "";
  say($("state"), `The gateway has not answered since ${clock(known.silentSince)}.${rest}`);
  $("hero").dataset.state = "silent";
  $("findings").replaceChildren();
  $("main").classList.add("old");
  showIcon("silent");
}

async function refresh() {
  try {
    show(await read("/status"));
  } catch {
    showSilence();
  }
  setTimeout(refresh, EVERY_MS);
}

function follow() {
  const events = new EventSource("/events");
  const on = (name, take) => events.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("snapshot", show);
  on("request", hear);
  on("account", (account) => {
    if (!known.status) return;
    const accounts = known.status.accounts.map((other) => (other.name === account.name ? account : other));
    known.status.accounts = accounts;
    showAccounts(accounts);
  });
  on("health", (health) => {
    Object.assign(known.status ?? {}, health);
    showHealth(health, known.status);
  });
  on("lost", ({ events: lost }) => say($("live-note"), `${plural(lost, "event")} came too fast to be shown.`));
  // An EventSource reconnects by itself, unless it was refused.
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, EVERY_MS);
  });
}

$("more-errors").addEventListener("click", () => {
  allErrors = !allErrors;
  showErrors(known.status.errors);
});
addEventListener("resize", () => {
  if (known.status) showCharts(known.status);
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  say($("pause"), paused ? "Continue" : "Pause");
  say($("live-note"), paused ? "Paused." : "As they end, newest first.");
});

refresh();
follow();
