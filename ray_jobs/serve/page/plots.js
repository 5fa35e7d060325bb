// Plots as SVG, drawn as wide as they are shown, so that their texts have one size on every screen.

import { element } from "/page/ask.js";

const HEIGHT = 176;
const LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 22;
const X_LABEL_PIXELS = 36;

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Return round numbers that enclose all values, few enough to be written beside each other. */
function ticks(values, most) {
  const low = Math.min(...values), high = Math.max(...values);
  const spread = high - low || Math.abs(high) / 10 || 1;
  const power = 10 ** Math.floor(Math.log10(spread / 3));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => spread / each <= 4);
  const rounding = 1e-6;
  const last = Math.ceil(Math.min(most, high + spread / 20) / step - rounding);
  const first = Math.min(last - 1, Math.floor(low / step + rounding));
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

function frame(figure, title, summary) {
  const width = Math.max(240, figure.clientWidth);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${summary}` });
  return { width, drawing };
}

/**
 * Draw lines over snapshots: `plot` has title, numbers (of snapshots, ascending), lines (name and a value or null for
 * each number), format (of a value), most (the highest possible value); `selected` is a number or null.
 */
export function drawLines(figure, plot, selected, select) {
  const { title, numbers, lines, format, most = Infinity } = plot;
  const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const last = lines.map((line) => `${line.name} ${line.values.at(-1) === null ? "–" : format(line.values.at(-1))}`);
  const { width, drawing } = frame(figure, title, `at the newest snapshot ${last.join(", ")}`);
  const levels = values.length ? ticks(values, most) : [0, 1];
  const x = (at) => LEFT + (width - LEFT - RIGHT) * (numbers.length > 1 ? at / (numbers.length - 1) : 0.5);
  const share = (value) => (value - levels[0]) / (levels.at(-1) - levels[0]);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share(value);
  for (const level of levels) {
    drawing.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level) }));
    drawing.append(shape("text", { x: LEFT - 6, y: y(level) + 4, "text-anchor": "end" }, format(level)));
  }
  const every = Math.ceil((numbers.length * X_LABEL_PIXELS) / (width - LEFT - RIGHT));
  numbers.forEach((number, at) => {
    if ((numbers.length - 1 - at) % every) return;
    drawing.append(shape("text", { x: x(at), y: HEIGHT - 6, "text-anchor": "middle" }, number));
  });
  const chosen = numbers.indexOf(selected);
  if (chosen >= 0) {
    drawing.append(shape("line", { class: "at", x1: x(chosen), x2: x(chosen), y1: TOP, y2: HEIGHT - BOTTOM }));
  }
  lines.forEach((line, kind) => {
    const there = line.values.map((value, at) => [value, at]).filter(([value]) => value !== null);
    const group = shape("g", { class: `line-${kind % 4}` });
    group.append(shape("polyline", { points: there.map(([value, at]) => `${x(at)},${y(value)}`).join(" ") }));
    for (const [value, at] of there) {
      group.append(shape("circle", { cx: x(at), cy: y(value), r: at === chosen ? 5 : 2.5 }));
    }
    drawing.append(group);
  });
  drawing.addEventListener("pointermove", (event) => {
    const left = (event.offsetX / drawing.clientWidth) * width - x(0);
    const step = numbers.length > 1 ? x(1) - x(0) : 1;
    select(numbers[Math.min(numbers.length - 1, Math.max(0, Math.round(left / step)))]);
  });
  figure.replaceChildren(element("figcaption", title), legend(lines, chosen, format), drawing);
}

/** Return the names of lines; with their values at the chosen snapshot, if there is one. */
function legend(lines, chosen, format) {
  const made = element("ul");
  made.className = "legend";
  lines.forEach((line, kind) => {
    const value = chosen < 0 ? null : line.values[chosen];
    const item = element("li", value === null ? line.name : `${line.name} ${format(value)}`);
    item.className = `line-${kind % 4}`;
    made.append(item);
  });
  return made;
}

/** Draw bars: `bars` are pairs of a label and a count. */
export function drawBars(figure, title, note, bars) {
  const { width, drawing } = frame(figure, title, note);
  const most = Math.max(1, ...bars.map(([, count]) => count));
  const step = (width - 2 * RIGHT) / bars.length;
  const every = Math.ceil(X_LABEL_PIXELS / step);
  bars.forEach(([label, count], at) => {
    const height = ((HEIGHT - BOTTOM - TOP - 16) * count) / most;
    const left = RIGHT + at * step, middle = left + step / 2;
    const box = { x: left + 2, y: HEIGHT - BOTTOM - height, width: Math.max(1, step - 4), height };
    drawing.append(shape("rect", box));
    const above = { class: "count", x: middle, y: box.y - 4, "text-anchor": "middle" };
    if (count) drawing.append(shape("text", above, count));
    if ((bars.length - 1 - at) % every) return;
    drawing.append(shape("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, label));
  });
  drawing.append(
    shape("line", { class: "grid", x1: RIGHT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
  );
  const line = element("ul", undefined, element("li", note));
  line.className = "legend plain";
  figure.replaceChildren(element("figcaption", title), line, drawing);
}
