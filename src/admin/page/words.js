
// Values as text.

const number = new Intl.NumberFormat("en");
const plural = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;
const percent = (part, whole) => (whole > 0 ? (100 * part) / whole : 0);
const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
const day = (time) => new Date(time).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
/** The time of day, with the day if that is not today. */
const moment = (time) => (day(time) === day(Date.now()) ? clock(time) : `${day(time)}, ${clock(time)}`);

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1024 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${value.toFixed(power > 0 && value < 100 ? 1 : 0)} ${units[power]}`;
}

function span(seconds) {
  const [d, h, m, s] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${s} s`;
}

/** Three digits: 0.06 ms, 1.25 s. */
function duration(ms) {
  if (ms >= 60_000) return span(ms / 1000);
  const [value, unit] = ms >= 1000 ? [ms / 1000, "s"] : [ms, "ms"];
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(value >= 1 ? 3 : 2))} ${unit}`;
}

const OUTCOMES = {
  hit: ["k1", "answered from the cache"],
  shared: ["k6", "answered from the replicas’ store"],
  stale: ["k6", "answered from the cache, and refreshed in the background"],
  stale_error: ["k4", "answered from an old page, because Twilio failed"],
  revalidated: ["k3", "not modified since the client last asked"],
  collapsed: ["k2", "answered by a call that another request had begun"],
  miss: ["k7", "answered by Twilio"],
  bypass: ["k9", "answered by Twilio, and not stored"],
  refused: ["k8", "refused"],
  failed: ["k5", "failed"],
};
/** The outcomes without an upstream call of their own. */
const SAVED = ["hit", "shared", "stale", "stale_error", "revalidated", "collapsed"];

const word = (text) => text.replaceAll("_", " ");
const sum = (counts, wanted = () => true) =>
  Object.entries(counts).reduce((total, [name, count]) => total + (wanted(name) ? count : 0), 0);

/** `Cache-Status` (RFC 9211) as a sentence. */
function readOut(line) {
  if (!line) return "The gateway answered this itself.";
  const parts = Object.fromEntries(line.split(";").slice(1).map((part) => {
    const [name, ...value] = part.trim().split("=");
    return [name, value.length ? value.join("=").replaceAll('"', "") : true];
  }));
  const outcome = OUTCOMES[parts.detail]?.[1] ?? word(`${parts.detail ?? "answered"}`);
  const said = [outcome[0].toUpperCase() + outcome.slice(1)];
  if (parts.ttl !== undefined) {
    const ttl = Number(parts.ttl);
    said.push(ttl >= 0 ? `fresh for another ${span(ttl)}` : `stale for ${span(-ttl)}`);
  }
  const why = { "uri-miss": "because nothing was stored", stale: "because the stored answer was stale", request: "because a fresh answer was requested", bypass: "without the cache" };
  if (parts.fwd) said.push(why[parts.fwd] ?? `forwarded (${parts.fwd})`);
  if (parts.stored) said.push("and stored for later requests");
  const key = parts.key ? ` Its key is ${parts.key}.` : "";
  return `${said.join(", ")}.${key}`;
}
