
// Charts as SVG. Each has a legend, a line that follows the pointer, and a table of its values for users who cannot see it.

const SVG = "http://www.w3.org/2000/svg";
const [HIGH, LEFT, RIGHT, TOP, BOTTOM] = [190, 46, 8, 8, 22];

/** The width of a picture in `figure`, in pixels, so that its text has the same size on every screen. */
function widthIn(figure) {
  const { paddingLeft, paddingRight } = getComputedStyle(figure);
  // A figure that is not shown has no width.
  return Math.max(240, figure.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight)) || 560;
}

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Axis marks from 0 to `most`, in round steps of about a quarter of it, but not below `least`. */
function ticks(most, least) {
  const raw = Math.max(most / 4, least);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, at) => at * step);
}

/** The powers of ten from below the least to above the greatest value. */
function powers(least, most) {
  const [from, to] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))];
  return Array.from({ length: Math.max(to - from, 1) + 1 }, (_, at) => 10 ** (from + at));
}

/**
 * Draws into `figure`. `times` are in milliseconds; `series` are {name, kind, values, limit}, where a value may be null;
 * `shades` are [from, to] in milliseconds; marks are at least `leastStep` apart,
 * and a stacked value stands for the `interval` before its time.
 */
function drawChart(figure, { title, note, times, series, stacked, logarithmic, shades = [], leastStep = 0, interval = 0, unit, write, writeMark = write, from, to, empty }) {
  const kept = series.filter(({ values }) => values.some((value) => value > 0));
  const shown = kept.length ? kept : [];
  const all = shown.flatMap(({ values }) => values).filter((value) => value > 0);
  const totals = times.map((_, at) => shown.reduce((total, { values }) => total + (values[at] ?? 0), 0));
  const marks = logarithmic
    ? powers(Math.min(...all, Infinity) === Infinity ? 1 : Math.min(...all), Math.max(...all, 10))
    : ticks(all.length ? Math.max(...(stacked ? totals : all)) : 1, leastStep);
  const wide = widthIn(figure);
  const [bottom, top] = [marks[0], marks.at(-1)];
  const x = (time) => LEFT + ((time - from) / (to - from)) * (wide - LEFT - RIGHT);
  const scale = (value) => (logarithmic ? Math.log10(value / bottom) / Math.log10(top / bottom) : value / top);
  const y = (value) => HIGH - BOTTOM - Math.max(0, Math.min(1, scale(value))) * (HIGH - TOP - BOTTOM);

  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${wide} ${HIGH}`, role: "img", "aria-label": `${title}. ${note}` });
  for (const [begin, end] of shades) {
    const at = x(Math.max(begin, from));
    picture.append(svg("rect", { class: "shade", x: at, y: TOP, width: Math.max(x(end) - at, 1.5), height: HIGH - TOP - BOTTOM }));
  }
  for (const mark of shown.length ? marks : []) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(mark), y2: y(mark) }));
    picture.append(svg("text", { x: LEFT - 7, y: y(mark) + 4, "text-anchor": "end" }, writeMark(mark)));
  }
  const hours = to - from > 86_400_000 * 2
    ? (time) => new Date(time).toISOString().slice(0, 10)
    : (time) => new Date(time).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const steps = wide < 400 ? 2 : 3;
  for (let step = 0; step <= steps; step += 1) {
    const time = from + ((to - from) * step) / steps;
    const anchor = step === 0 ? "start" : step === steps ? "end" : "middle";
    picture.append(svg("text", { x: x(time), y: HIGH - 4, "text-anchor": anchor }, hours(time)));
  }

  const base = times.map(() => 0);
  for (const { kind, values, limit } of shown) {
    if (stacked) {
      const upper = values.map((value, at) => base[at] + (value ?? 0));
      // Each value holds for its whole interval.
      const edge = (row) => times.flatMap((time, at) => [Math.max(time - interval, from), time].map((end) => `${x(end).toFixed(1)},${y(row[at]).toFixed(1)}`));
      const points = [...edge(upper), ...edge(base).reverse()];
      picture.append(svg("path", { class: `area ${kind}`, d: `M${points.join("L")}Z` }));
      upper.forEach((value, at) => { base[at] = value; });
    } else {
      // A missing value interrupts the curve. A single value is a dot.
      let path = "";
      values.forEach((value, at) => {
        if (value === null || value === undefined || (logarithmic && value <= 0)) return;
        const before = at > 0 && values[at - 1] !== null && values[at - 1] !== undefined;
        const point = `${x(times[at]).toFixed(1)},${y(value).toFixed(1)}`;
        path += before && path ? `L${point}` : `M${point}h.01`;
      });
      picture.append(svg("path", { class: `curve ${kind}${limit ? " limit" : ""}`, d: path }));
    }
  }

  const cross = svg("line", { class: "cross", y1: TOP, y2: HIGH - BOTTOM, visibility: "hidden" });
  picture.append(cross);
  const tip = create("div", { class: "tip", hidden: true });
  const plot = create("div", { class: "plot" }, picture, tip);
  if (!shown.length) plot.append(create("div", { class: "nothing" }, empty));
  picture.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); tip.hidden = true; });
  picture.addEventListener("pointermove", (event) => {
    if (!times.length || !shown.length) return;
    const box = picture.getBoundingClientRect();
    const time = from + (((event.clientX - box.left) / box.width) * wide - LEFT) / (wide - LEFT - RIGHT) * (to - from);
    const at = times.reduce((best, other, index) => (Math.abs(other - time) < Math.abs(times[best] - time) ? index : best), 0);
    const place = x(times[at]);
    cross.setAttribute("x1", place);
    cross.setAttribute("x2", place);
    cross.setAttribute("visibility", "visible");
    const lines = shown.filter(({ values }) => values[at] > 0).map(({ name, values }) => `${name}: ${write(values[at])} ${unit}`);
    tip.replaceChildren(...[clock(times[at]), ...(lines.length ? lines : ["nothing"])].map((line) => create("div", {}, line)));
    tip.hidden = false;
    const right = place > wide / 2;
    tip.style.left = right ? "auto" : `${(place / wide) * 100 + 2}%`;
    tip.style.right = right ? `${100 - (place / wide) * 100 + 2}%` : "auto";
  });

  const legend = create("ul", { class: "legend" }, ...shown.map(({ name, kind, limit }) => create("li", { class: `${kind}${limit ? " dashed" : ""}` }, name)));
  if (shades.length) legend.append(create("li", { class: "shaded" }, "paused by Twilio’s limit"));
  const caption = create("figcaption", {}, create("b", {}, title), create("span", { class: "quiet" }, note));
  const open = figure.querySelector("details")?.open ?? false;
  const table = shown.length ? [legend, numbers(title, times, shown, write, unit, open)] : [];
  figure.replaceChildren(caption, plot, ...table);
}

/** A table of the latest values, made when it is opened. */
function numbers(title, times, series, write, unit, open) {
  const details = create("details", {}, create("summary", {}, "Numbers"));
  const fill = () => {
    if (!details.open || details.querySelector("table")) return;
    const head = create("tr", {}, create("th", { scope: "col" }, "Time"), ...series.map(({ name }) => create("th", { scope: "col", class: "number" }, name)));
    const rows = times.map((time, at) => create("tr", {}, create("th", { scope: "row" }, clock(time)), ...series.map(({ values }) => create("td", { class: "number" }, values[at] ? `${write(values[at])} ${unit}` : "–"))));
    const made = create("table", {}, create("caption", { class: "unseen" }, title), create("thead", {}, head), create("tbody", {}, ...rows.reverse().slice(0, 60)));
    details.append(create("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, numbers` }, made));
  };
  details.addEventListener("toggle", fill);
  details.open = open;
  return details;
}

/** Bars with their names, for categories. */
function drawBars(figure, title, bars, write) {
  const wide = widthIn(figure);
  const [row, left] = [26, Math.min(190, wide * 0.4)];
  const letters = Math.floor(left / 6.8);
  const most = Math.max(...bars.map(({ value }) => value), 0) || 1;
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${wide} ${bars.length * row + 4}`, role: "img", "aria-label": `${title}: ${bars.map(({ name, value }) => `${name} ${write(value)}`).join(", ")}` });
  bars.forEach(({ name, value }, at) => {
    const middle = at * row + row / 2;
    const length = (Math.max(value, 0) / most) * (wide - left - 70);
    picture.append(svg("text", { x: left - 8, y: middle + 4, "text-anchor": "end" }, name.length > letters ? `${name.slice(0, letters - 1)}…` : name));
    picture.append(svg("rect", { class: "column k2", x: left, y: at * row + 4, width: Math.max(length, 1), height: row - 8, rx: 3 }));
    picture.append(svg("text", { x: left + length + 8, y: middle + 4 }, write(value)));
  });
  figure.replaceChildren(create("figcaption", {}, create("b", {}, title)), picture);
}
