
// Values are set as text, and only if they have changed, so that a selection survives.

const $ = (id) => document.getElementById(id);

function say(element, text, kind) {
  if (element.textContent !== `${text}`) element.textContent = text;
  if (kind !== undefined && element.className !== kind) element.className = kind;
}

/** An element with attributes and children. Strings become text nodes. */
function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Makes `parent` hold one child for each item; `make` creates a child and `fill` updates it. */
function list(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, at) => fill(parent.children[at], item));
}

/** Rows of cells: a text, [text, class], or a function that fills the cell. The first heads its row. */
function table(body, rows) {
  list(body, rows, () => create("tr"), (row, cells) => {
    const make = () => (row.children.length ? create("td") : create("th", { scope: "row" }));
    list(row, cells, make, (cell, content) => {
      if (typeof content === "function") content(cell);
      else say(cell, ...(Array.isArray(content) ? content : [content, ""]));
    });
  });
}

function meter(element, share, label) {
  element.setAttribute("aria-valuenow", Math.round(Math.max(0, Math.min(100, share))));
  element.setAttribute("aria-valuetext", label);
  element.firstElementChild.style.width = `${Math.max(0, Math.min(100, share))}%`;
}

/** Sends JSON, and returns the answer. If the session has ended, opens the login page. */
async function send(path, body, patience = 120_000) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(patience),
  });
  await checkSession(answer);
  return answer;
}

async function read(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  await checkSession(answer);
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer.json();
}

async function checkSession(answer) {
  if (answer.status === 401 && answer.headers.has("WWW-Authenticate")) location.assign("/login");
}

/** Asks the user to confirm an action. */
function confirmed(title, text, yes) {
  const dialog = $("confirm");
  say($("confirm-title"), title);
  say($("confirm-text"), text);
  say($("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
