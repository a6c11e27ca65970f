"use strict";
// Draws what the page holds as data. Everything that a payload may have written comes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg"; // a name, which nobody looks up
const LEAST = 14, MOST = 60, ROW = 18, EDGE = 8;
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const svg = $("bars"), pick = $("promise");
let pinned = null;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function html(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

const chosen = () => (pick.value === "" ? null : Number(pick.value));

// Time is drawn in order, not to scale: each tick at which something that is shown begins or ends is one step.
function steps(operations) {
  const ticks = new Set(data.marks.map((mark) => mark.tick));
  for (const one of operations) {
    ticks.add(one.begin);
    const end = one.end ?? one.until;
    if (end !== null) ticks.add(end);
  }
  const ordered = [...ticks].sort((a, b) => a - b);
  const step = Math.min(MOST, Math.max(LEAST, ($("scroll").clientWidth - 240) / ordered.length));
  return { of: new Map(ordered.map((tick, place) => [tick, EDGE + place * step])), width: ordered.length * step + 120 };
}

// What one process has asked for at once stands in rows below each other.
function rows(operations) {
  const ends = [];
  return operations.map((one) => {
    let row = ends.findIndex((end) => end < one.begin);
    if (row < 0) row = ends.length;
    ends[row] = one.end ?? one.until ?? Infinity;
    return row;
  });
}

function kind(one, promise) {
  const kinds = ["bar"];
  if (one.end === null) kinds.push("open");
  if (data.stuck.includes(one.number)) kinds.push("wrong");
  else if (promise !== null) {
    if (data.verdicts[promise].prefix.includes(one.number)) kinds.push("told");
    else if (data.verdicts[promise].ruling === "undecided") kinds.push("unsure");
  }
  return kinds.join(" ");
}

function bar(one, left, right, top, promise) {
  const group = element("g", { class: kind(one, promise), "data-number": one.number });
  group.append(element("rect", { x: left, y: top + 2, width: Math.max(right - left, 4), height: ROW - 4, rx: 2 }));
  const letters = Math.floor((right - left - 4) / 6);
  if (letters > 2) group.append(element("text", { x: left + 3, y: top + 13 }, one.line.slice(0, letters)));
  return group;
}

function mark(one, x, top, height) {
  const group = element("g", { class: "mark" });
  group.append(element("line", { x1: x, x2: x, y1: top, y2: top + height }));
  group.append(element("text", { x: x + 3, y: top + 11 }, one.text));
  return group;
}

function draw() {
  const promise = chosen();
  const shown = promise === null ? data.operations : data.operations.filter((one) => one.promises.includes(promise));
  const time = steps(shown), names = document.createDocumentFragment(), drawn = document.createDocumentFragment();
  let top = 0;
  data.processes.forEach((name, process) => {
    const own = shown.filter((one) => one.process === process);
    const marks = data.marks.filter((one) => one.process === null || one.process === process);
    if (own.length === 0 && !marks.some((one) => one.process === process)) return; // nothing of it is shown
    const places = rows(own), height = (Math.max(0, ...places) + 1) * ROW + ROW;
    drawn.append(element("line", { class: "lane", x1: 0, x2: time.width, y1: top + height - 0.5, y2: top + height - 0.5 }));
    own.forEach((one, place) => {
      const end = one.end ?? one.until;
      const right = end === null ? time.width - EDGE : time.of.get(end);
      drawn.append(bar(one, time.of.get(one.begin), right, top + ROW - 4 + places[place] * ROW, promise));
    });
    for (const one of marks) drawn.append(mark(one, time.of.get(one.tick), top, height));
    const label = html("div", name);
    label.style.height = `${height}px`;
    label.title = name;
    names.append(label);
    top += height;
  });
  svg.setAttribute("width", time.width);
  svg.setAttribute("height", top);
  svg.replaceChildren(drawn);
  $("names").replaceChildren(names);
  judge(promise);
  if (pinned !== null) detail(pinned);
}

function judge(promise) {
  const why = $("why"), order = $("order"), verdict = promise === null ? null : data.verdicts[promise];
  why.className = verdict === null ? "" : verdict.ruling;
  order.replaceChildren();
  if (verdict === null) {
    why.textContent = "Choose a promise to see in which order its operations took effect.";
    return;
  }
  why.textContent = verdict.ruling + (verdict.why ? `: ${verdict.why}` : "");
  for (const number of verdict.prefix) order.append(item(number, ""));
  if (verdict.stuck !== null) order.append(item(verdict.stuck, "wrong"));
}

function item(number, name) {
  const made = document.createElement("li"), button = html("button", data.operations[number].line);
  made.className = name;
  button.addEventListener("click", () => show(number));
  made.append(button);
  return made;
}

function detail(number) {
  const one = data.operations[number];
  const end = one.end !== null ? one.end : one.until !== null ? `never heard, dead by ${one.until}` : "never heard";
  $("line").textContent = one.line;
  $("when").textContent =
    `operation ${number} by ${data.processes[one.process]}, ticks ${one.begin} to ${end}` +
    (one.batch === null ? "" : `, batch ${one.batch}`);
  $("request").textContent = one.request;
  $("response").textContent = one.response;
  svg.querySelectorAll(".shown").forEach((other) => other.classList.remove("shown"));
  svg.querySelector(`[data-number="${number}"]`)?.classList.add("shown");
}

function show(number) {
  pinned = number;
  detail(number);
  const found = svg.querySelector(`[data-number="${number}"]`);
  svg.querySelectorAll(".found").forEach((other) => other.classList.remove("found"));
  found?.classList.add("found");
  found?.scrollIntoView({ block: "center", inline: "center" });
}

function jump() {
  pick.value = String(data.first.promise);
  draw();
  if (data.first.number !== null) show(data.first.number);
}

function under(event) {
  const found = event.target.closest("[data-number]");
  return found === null ? null : Number(found.dataset.number);
}

data.verdicts.forEach((verdict, place) => {
  const option = html("option", verdict.ruling === "linearizable" ? verdict.promise : `${verdict.promise} (${verdict.ruling})`);
  option.value = String(place);
  pick.append(option);
});
pick.addEventListener("change", draw);
$("jump").disabled = data.first === null;
$("jump").addEventListener("click", jump);
svg.addEventListener("mouseover", (event) => under(event) !== null && detail(under(event)));
svg.addEventListener("mouseout", () => pinned !== null && detail(pinned));
svg.addEventListener("click", (event) => under(event) !== null && show(under(event)));
draw();
