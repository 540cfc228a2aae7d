"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const find = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const stops = all(".stop"), map = find(".map"), edges = find(".edges"), bars = all(".memory rect");
const last = stops.length - 1, turn = facts.stops.findIndex(([direction]) => direction === "backward") + 1 || last;
let now = -1;

// ---- going from stop to stop ----

function go(number) {
  number = Math.max(0, Math.min(last, number));
  if (number === now) return;
  now = number;
  const [direction, node] = facts.stops[now - 1] || ["", -1];
  stops.forEach((stop, i) => stop.classList.toggle("now", i === now));
  bars.forEach((bar, i) => bar.classList.toggle("now", i === now - 1));
  document.body.className = direction;
  all("details.kernel[open]", stops[now]).forEach(showSource);
  all(".code", stops[now]).forEach((code) => code.closest("details.kernel:not([open])") || fill(code));
  const title = find("h2", stops[now]).textContent.replace(/\s+/g, " ").trim();
  find(".where").title = title;
  find(".where").textContent = now ? `${now} of ${last} · ${title}` : `${last} stops`;
  all(".map .now").forEach((row) => row.classList.remove("now"));
  const row = find(node < 0 ? (now ? ".end" : ".begin") : `[data-node="${node}"]`, map);
  if (row) row.classList.add("now");
  follow();
  draw();
  history.replaceState(null, "", `#stop-${now}`);
  scrollTo(0, 0);
}

function follow() { // scroll the map to the current row
  const row = find(".node.now", map);
  if (!row) return;
  const place = shown(row).getBoundingClientRect(), frame = map.getBoundingClientRect();
  if (place.top < frame.top + 20 || place.bottom > frame.bottom - 20) map.scrollTop += place.top - frame.top - frame.height / 2;
}

const moves = { first: () => go(0), back: () => go(now - 1), on: () => go(now + 1), turn: () => go(turn), last: () => go(last) };
const keys = { ArrowRight: "on", ArrowLeft: "back", Home: "first", End: "last", b: "turn" };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "m") toggleMap();
  if (event.key === "l") nextLine();
  const move = keys[event.key];
  if (move) { event.preventDefault(); moves[move](); }
});
for (const button of all("[data-go]")) button.onclick = () => moves[button.dataset.go]();
find(".memory").onclick = (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  go(1 + Math.floor((event.clientX - box.left) / box.width * last));
};
addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#stop-"]');
  if (!link) return;
  event.preventDefault();
  let number = Number(link.getAttribute("href").slice(6));
  if (link.dataset.node && now >= turn) { // on the map, stay in the backward pass
    const twin = facts.stops.findIndex(([d, node]) => d === "backward" && node === Number(link.dataset.node));
    number = twin < 0 ? number : twin + 1;
  }
  if (innerWidth <= 760 && map.classList.contains("open")) toggleMap();
  go(number);
});
addEventListener("hashchange", () => go(Number(location.hash.slice(6)) || 0));

function toggleMap() {
  const open = map.classList.toggle("open");
  find(".opener").setAttribute("aria-expanded", open);
  follow();
  draw();
}
find(".opener").onclick = toggleMap;

// ---- sources: each is in the page once ----

function fill(code) {
  if (find("pre", code)) return;
  const pre = find(`#source-${code.dataset.source} pre`).cloneNode(true);
  const ran = new Set(code.dataset.ran.split(" "));
  for (const line of all(".line", pre)) line.classList.toggle("ran", ran.has(line.dataset.n));
  code.append(pre);
  mark(code, code.dataset.main);
}
function mark(code, number) { // the line that runs now
  for (const line of all(".line", code)) line.classList.toggle("main", line.dataset.n === number);
}
function nextLine() { // and the kernels that it calls
  const button = find(".next", stops[now]);
  if (!button) return;
  const code = button.previousElementSibling, ran = code.dataset.ran.split(" ");
  const number = ran[(ran.indexOf(find(".line.main", code).dataset.n) + 1) % ran.length];
  mark(code, number);
  for (const kernel of all("details[data-line]", stops[now])) kernel.open = kernel.dataset.line === number;
}
for (const button of all(".next")) button.onclick = nextLine;
function showSource(details) {
  all(".code", details).forEach((code) => code.closest("details.kernel") === details && fill(code));
}
for (const details of all("details.kernel")) details.addEventListener("toggle", () => {
  showSource(details);
  if (details.open && details.dataset.line) mark(find(".code", details.parentElement), details.dataset.line);
});

// ---- the map: a lane for each result, from its row to its last use ----

const lane = (i) => 16 + 11 * Math.min(facts.lanes[i], 12);
const shown = (row) => { // the row itself, or the outermost closed group around it
  let box = row;
  for (let e = row.parentElement.closest("details"); e; e = e.parentElement.closest("details")) if (!e.open) box = find("summary", e);
  return box;
};
const rowOf = facts.lanes.map((_, i) => find(`[data-node="${i}"]`, map));
map.style.setProperty("--gutter", `${26 + 11 * Math.min(12, Math.max(0, ...facts.lanes))}px`);

function draw() {
  edges.replaceChildren();
  if (!map.offsetParent && getComputedStyle(map).position !== "fixed") return;
  const [direction, node, receivers] = facts.stops[now - 1] || ["", -1, []];
  const top = map.getBoundingClientRect().top - map.scrollTop;
  const place = rowOf.map((row, i) => {
    const box = shown(row), at = box.getBoundingClientRect();
    return { box, x: box === row ? lane(i) : 16, y: at.top - top + at.height / 2 };
  });
  const lit = [];
  for (const [a, b] of facts.edges) {
    const from = place[a], to = place[b];
    if (from.box === to.box) continue;
    const bend = Math.max(from.y, to.y - 20);
    const path = svg("path", { d: `M${from.x},${from.y}V${bend}C${from.x},${to.y - 6} ${to.x},${bend + 6} ${to.x},${to.y}` });
    if (direction === "backward" ? b === node && receivers.includes(a) : b === node || a === node) { path.classList.add("lit"); lit.push(path); } else edges.append(path);
  }
  edges.append(...lit);
  place.forEach(({ x, y, box }, i) => {
    const dot = svg("circle", { cx: x, cy: y, r: i === node ? 6 : 4 });
    dot.classList.toggle("lit", i === node);
    edges.append(dot);
  });
  all("summary", map).forEach((row) => row.classList.toggle("holds", node >= 0 && place[node].box === row));
}
all(".map details").forEach((group) => group.addEventListener("toggle", draw));
addEventListener("resize", draw);

// ---- the number under the pointer ----

const pixels = {}; // of each picture, the codes of its PNG, whose rows are not filtered
async function codesOf(element, number) {
  if (pixels[number]) return pixels[number];
  const url = getComputedStyle(element).backgroundImage.match(/base64,([^"')]+)/)[1];
  const bytes = Uint8Array.from(atob(url), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), width = view.getUint32(16), height = view.getUint32(20);
  let at = 8, packed;
  while (!packed) {
    const length = view.getUint32(at), name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") packed = bytes.subarray(at + 8, at + 8 + length);
    at += 12 + length;
  }
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  return pixels[number] = { width, height, raw };
}
const text = (x) => String(Number(x.toPrecision(x && Math.abs(x) < 1e-4 ? 2 : 3))).replace("-", "−");
async function read(element, event) {
  const number = element.dataset.array, array = facts.arrays[number], box = element.getBoundingClientRect();
  const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
  if (u < 0 || v < 0 || u >= 1 || v >= 1) return "";
  if (array.values) {
    const i = Math.floor(u * array.values.length);
    return `[${i}]  ${text(array.values[i])}`;
  }
  const { width, height, raw } = await codesOf(element, number);
  const px = Math.floor(u * width), py = Math.floor(v * height), code = raw[py * (width + 1) + 1 + px];
  const [H, W] = array.tile, high = H + array.gap, wide = W + array.gap;
  const tile = Math.floor(py / high) * array.columns + Math.floor(px / wide);
  if (!code || px % wide >= W || py % high >= H) return "";
  const y = (py % high) * array.step, x = (px % wide) * array.step;
  const index = { g: Math.floor(tile / array.group), t: tile % array.group, y, x, p: y * W + x };
  const share = array.grey ? (code - 1) / 254 : (code - 128) / 126;
  const value = array.grey ? share : Math.sign(share) * share * share * array.top;
  return `[${[...array.order].map((letter) => index[letter]).join(", ")}]  ≈ ${text(value)}`;
}
const output = find(".value");
async function point(event) {
  const element = event.target.closest && event.target.closest("[data-array]");
  const found = element ? await read(element, event) : "";
  output.hidden = !found;
  output.textContent = found;
  output.style.left = `${Math.min(event.clientX + 12, innerWidth - output.offsetWidth - 8)}px`;
  output.style.top = `${Math.max(4, event.clientY - 34)}px`;
}
addEventListener("pointermove", point);
addEventListener("pointerdown", point);
addEventListener("load", () => scrollTo(0, 0)); // after the browser has gone to the anchor

go(Number(location.hash.slice(6)) || 0);
