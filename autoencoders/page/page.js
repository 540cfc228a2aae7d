"use strict";
const find = name => document.getElementById(name);
const read = name => find(name) && JSON.parse(find(name).textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const make = (name, parent, text) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};

// ---- the decoder ----

function halves(buffer, start, count) { // float16 as float32
  const bits = new Uint16Array(buffer, start, count), x = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const sign = bits[i] >> 15 ? -1 : 1, e = bits[i] >> 10 & 31, f = bits[i] & 1023;
    x[i] = sign * (e ? 2 ** (e - 15) * (1 + f / 1024) : 2 ** -14 * f / 1024);
  }
  return x;
}

const compute = {
  dense({weight, bias}, x) {
    const y = Float32Array.from(bias), n = y.length;
    for (let d = 0; d < x.length; d++) for (let i = 0; i < n; i++) y[i] += x[d] * weight[d * n + i];
    return y;
  },
  relu: (_, x) => x.map(value => Math.max(value, 0)),
  scale: ({scale, shift}, x) => x.map((value, i) => value * scale[i % scale.length] + shift[i % scale.length]),
  conv({weight, bias, from, to, kernel, stride, pads}, x) { // transposed: each pixel adds its share to an output window
    const [h, w, c] = from, [H, W, F] = to, [KH, KW] = kernel, y = new Float32Array(H * W * F);
    for (let i = 0; i < y.length; i++) y[i] = bias[i % F];
    for (let r = 0; r < h; r++) for (let q = 0; q < w; q++) for (let i = 0; i < KH; i++) {
      const R = r * stride[0] + i - pads[0];
      if (R < 0 || R >= H) continue;
      for (let j = 0; j < KW; j++) {
        const Q = q * stride[1] + j - pads[1];
        if (Q < 0 || Q >= W) continue;
        const at = (r * w + q) * c, out = (R * W + Q) * F, row = (i * KW + j) * F * c;
        for (let f = 0; f < F; f++) {
          let sum = 0;
          for (let k = 0, p = row + f * c; k < c; k++) sum += x[at + k] * weight[p + k];
          y[out + f] += sum;
        }
      }
    }
    return y;
  },
};

function decoderOf(data) {
  const buffer = bytes(data.weights);
  const array = ([start, count, kind]) => kind === "f2" ? halves(buffer, start, count) : new Float32Array(buffer, start, count);
  const layers = data.layers.map(layer => {
    const unpacked = {...layer};
    for (const name of ["weight", "bias", "scale", "shift"]) if (layer[name]) unpacked[name] = array(layer[name]);
    return unpacked;
  });
  return (z, label) => {
    let x = Float32Array.from(z);
    if (data.classes.length) x = Float32Array.of(...z, ...data.classes.map((_, i) => +(i === label)));
    for (const layer of layers) x = compute[layer.kind](layer, x);
    return x.map(value => 1 / (1 + Math.exp(-value)));
  };
}

function paint(canvas, values, [H, W, C]) {
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = Math.round(255 * values[i * C + (C === 3 ? k : 0)]);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// ---- the plane ----

function livePlane(data) {
  const {tile: [H, W], axes, centre, middle, half, points, labels, names, index} = data, Z = centre.length, SIDE = 1000;
  const latents = new Float32Array(bytes(data.latents)), plane = find("plane"), legend = find("legend");
  const decode = data.layers ? decoderOf(data) : null, sheet = new Image();
  const hidden = new Set();
  let z = centre.map((value, d) => Z > 2 ? value : 0), label = 0, waiting = false, timer = 0, setLabel = () => {};
  const project = () => [0, 1].map(k => z.reduce((sum, value, d) => sum + (value - centre[d]) * axes[d][k], 0));
  const latent = i => Array.from(latents.subarray(i * Z, i * Z + Z));
  const place = ([u, v]) => [SIDE / 2 * (1 + (u - middle[0]) / half), SIDE / 2 * (1 - (v - middle[1]) / half)];

  const nearestBy = distance => {
    let best = -1, least = Infinity;
    for (let i = 0; i < points.length; i++) {
      if (hidden.has(index[i])) continue;
      const away = distance(i);
      if (away < least) [best, least] = [i, away];
    }
    return [best, least];
  };
  const inLatents = i => {
    let sum = 0;
    for (let d = 0; d < Z; d++) sum += (latents[i * Z + d] - z[d]) ** 2;
    return sum;
  };

  function draw() {
    waiting = false;
    const at = place(project()), [i] = nearestBy(inLatents), words = z.slice(0, 4).map(x => x.toFixed(2)).join(", ");
    if (decode) {
      paint(find("decoded"), decode(z, label), data.shape);
      const here = find("here");
      here.setAttribute("cx", at[0]);
      here.setAttribute("cy", Z > 1 ? at[1] : SIDE / 2);
    }
    let said = "no test image is shown";
    const ring = find("ring"), context = find("nearest").getContext("2d");
    context.clearRect(0, 0, W, H);
    if (i < 0) ring.removeAttribute("cx");
    else {
      context.drawImage(sheet, i % data.columns * W, Math.floor(i / data.columns) * H, W, H, 0, 0, W, H);
      const [x, y] = place(points[i]);
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
      said = "nearest test image" + (names.length ? ": " + names[index[i]] : "");
    }
    find("nearest-text").textContent = said;
    find("nearest").setAttribute("aria-label", said);
    find("place").textContent = `z = (${words}${Z > 4 ? ", …" : ""})`;
    for (const [d, slider] of sliders) {
      slider.value = z[d];
      slider.parentNode.firstChild.textContent = slider.dataset.name + " " + z[d].toFixed(2);
    }
    clearTimeout(timer);
    timer = setTimeout(() => find("said").textContent = `z is ${words}; ${said}`, 500);
  }
  const later = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const moveTo = (u, v) => {
    const now = project();
    z = z.map((value, d) => value + (u - now[0]) * axes[d][0] + (v - now[1]) * axes[d][1]);
    later();
  };

  const sliders = new Map(), box = find("sliders");
  const slide = (d, parent) => {
    const row = make("label", parent), slider = (make("span", row), make("input", row));
    Object.assign(slider, {type: "range", min: data.centre[d] - data.reach[d], max: data.centre[d] + data.reach[d], step: "any"});
    slider.dataset.name = `z${d + 1}`;
    if (data.kl) row.title = `${data.kl[d].toFixed(2)} nats`;
    slider.oninput = () => { z[d] = +slider.value; later(); };
    slider.onkeydown = event => {
      const step = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
      if (!step) return;
      z[d] = Math.min(+slider.max, Math.max(+slider.min, z[d] + step * data.reach[d] / 30));
      later();
      event.preventDefault();
    };
    sliders.set(d, slider);
  };
  if (box) {
    if (data.classes.length) {
      const row = make("label", box);
      make("span", row, "class");
      const choice = make("select", row);
      for (const name of data.classes) make("option", choice, name);
      choice.onchange = () => { label = choice.selectedIndex; later(); };
      setLabel = k => { label = choice.selectedIndex = k; };
    }
    for (const d of data.order.slice(0, 8)) slide(d, box);
    if (Z > 8) {
      const more = make("details", box);
      make("summary", more, `${Z - 8} more dimensions`);
      for (const d of data.order.slice(8)) slide(d, more);
    }
  }

  const pointed = event => {
    const box = plane.getBoundingClientRect(), side = Math.min(box.width, box.height);
    const x = (event.clientX - box.left - (box.width - side) / 2) / side, y = (event.clientY - box.top - (box.height - side) / 2) / side;
    const u = middle[0] + (2 * x - 1) * half, v = middle[1] + (1 - 2 * y) * half, near = 6 * 2 * half / side;
    const [i, away] = nearestBy(i => (points[i][0] - u) ** 2 + (points[i][1] - v) ** 2);
    if (i >= 0 && (away < near * near || !decode)) { // on a point: that image
      z = latent(i);
      if (labels) setLabel(labels[i]);
      later();
    } else moveTo(u, v);
  };
  plane.onpointermove = pointed;
  plane.onpointerdown = event => {
    plane.setPointerCapture?.(event.pointerId);
    pointed(event);
  };
  plane.onkeydown = event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
    if (!way) return;
    const step = half * (event.shiftKey ? 0.2 : 0.04), [u, v] = project();
    moveTo(u + way[0] * step, v + way[1] * step);
    event.preventDefault();
  };
  for (const button of legend ? legend.children : []) button.onclick = () => {
    const k = +button.dataset.class, on = hidden.has(k);
    on ? hidden.delete(k) : hidden.add(k);
    button.setAttribute("aria-pressed", on);
    for (const path of document.querySelectorAll(`path[data-class="${k}"]`)) path.toggleAttribute("hidden", !on);
    later();
  };
  sheet.onload = later;
  sheet.src = data.sheet;
  return decode;
}

// ---- the film ----

function liveFilm(film) {
  const [H, W] = film.shape, count = film.epochs.length, shown = film.count, across = Math.ceil(shown / 2), sheet = find("frames");
  const slider = find("epoch"), play = find("play"), places = new Int16Array(bytes(film.points));
  const many = places.length / count / 2, paths = [...find("cloud").querySelectorAll("path")];
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  function draw() {
    const k = +slider.value, context = find("frame").getContext("2d"), lines = paths.map(() => "");
    for (let i = 0; i < shown; i++) for (const [row, below] of [[0, 0], [k + 1, 1]]) {
      const x = i % across * W, y = (2 * Math.floor(i / across) + below) * H;
      context.drawImage(sheet, i * W, row * H, W, H, x, y, W, H);
    }
    for (let i = 0; i < many; i++) { // a path of no length with round ends is a dot
      const at = 2 * (k * many + i);
      lines[film.index[i]] += `M${500 + places[at] / 2} ${500 - places[at + 1] / 2}h0`;
    }
    paths.forEach((path, i) => path.setAttribute("d", lines[i]));
    const words = film.epochs[k] ? `after epoch ${film.epochs[k]}` : "before training";
    find("when").textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }
  slider.oninput = () => { stop(); draw(); };
  play.onclick = () => { // only ever started by hand
    if (timer) return stop();
    if (+slider.value === count - 1) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = +slider.value + 1;
      draw();
      if (+slider.value === count - 1) stop();
    }, 500);
    draw();
  };
  sheet.decode().then(draw);
}

// ---- the curves ----

function liveCurves({epochs, cells, edges: [left, right]}) {
  const box = find("curves"), slider = find("at"), values = [...box.querySelectorAll("td")], charts = [...box.querySelectorAll("svg")];
  const first = epochs[0], span = epochs.at(-1) - first;
  function show(k) {
    slider.value = k;
    for (const x of box.querySelectorAll(".when")) x.textContent = `epoch ${epochs[k]}`;
    values.forEach((cell, i) => { cell.textContent = cells[i][k] ?? "–"; });
    for (const svg of charts) {
      const x = svg.viewBox.baseVal.width * (left + (right - left) * (epochs[k] - first) / span);
      svg.querySelector(".cursor").setAttribute("transform", `translate(${x} 0)`);
    }
    const told = [...box.querySelector("table").querySelectorAll("td")].map(cell => `${cell.dataset.words} ${cell.textContent}`);
    slider.setAttribute("aria-valuetext", `epoch ${epochs[k]}: ${told.join(", ")}`);
  }
  if (slider) slider.oninput = () => show(+slider.value);
  for (const svg of slider ? charts : []) svg.onpointermove = svg.onpointerdown = event => {
    const box = svg.getBoundingClientRect(), at = first + span * ((event.clientX - box.left) / box.width - left) / (right - left);
    show(epochs.reduce((best, epoch, k) => Math.abs(epoch - at) < Math.abs(epochs[best] - at) ? k : best, 0));
  };
  const switches = [...box.querySelectorAll("[data-run]")];
  for (const button of switches) button.onclick = () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const on = switches.filter(x => x.getAttribute("aria-pressed") === "true").map(x => x.dataset.run).join("");
    box.classList.toggle("none", !on);
    for (const svg of charts) svg.toggleAttribute("hidden", svg.dataset.runs !== (on || "01"));
  };
}

const live = read("data"), film = read("film-data"), losses = read("curves-data");
if (losses) liveCurves(losses);
if (live) livePlane(live);
if (film) liveFilm(film);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(x => x.open = true));
