"use strict";
// What is drawn over a picture: outlines of the words' patches, the paper's numbers, the chosen patch.

// On white pictures, whatever the theme; the same hues as --c0 to --c7 of the style sheet.
const COLOURS = ["213,94,0", "0,114,178", "0,140,90", "170,60,150", "150,118,0", "200,40,80", "0,128,140", "90,85,210"];
const NO_NAME = "60,70,84";
const STANDS_OUT = 1.75; // standard deviations above the mean of all pictures shown at which a patch is a word's

const nameOf = (model, token) => model.names.findIndex((name) => name.tokens.includes(token));
const colourOf = (model, token) => {
  const name = nameOf(model, token);
  return name < 0 ? NO_NAME : COLOURS[name % COLOURS.length];
};
const isSpecial = (token) => token === "[BOS]" || token === "[EOS]";

// The words whose patches are shown: [{tokens, colour}]. A choice is {token} or {name}; nothing chosen = all names.
function wordsShown(model, choice) {
  const inside = (tokens) => tokens.filter((token) => token < model.tokens.length);
  if (choice.token !== null) return [{ tokens: inside([choice.token]), colour: colourOf(model, choice.token) }];
  if (choice.name !== null) {
    const name = model.names[choice.name];
    return name ? [{ tokens: inside(name.tokens), colour: COLOURS[choice.name % COLOURS.length] }] : [];
  }
  if (model.names.length) return model.names.map((name, n) => ({ tokens: inside(name.tokens), colour: COLOURS[n] }));
  const words = model.tokens.map((_, token) => token).filter((token) => !isSpecial(model.tokens[token]));
  return [{ tokens: words, colour: NO_NAME }];
}

// Each patch's highest cosine with any of the tokens. The rows before the patches ([CLS]) are no part of the picture.
function heatOf(model, map, tokens) {
  const count = model.tokens.length, patches = model.grid[0] * model.grid[1];
  const extra = map.length / count - patches;
  const heat = new Float32Array(patches);
  for (let p = 0; p < patches; p++) {
    let best = -Infinity;
    for (const token of tokens) best = Math.max(best, map[(p + extra) * count + token]);
    heat[p] = best;
  }
  return heat;
}

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

// Mean and deviation of a word's heat over all pictures that a model shows: one scale for all of them.
function scaleOf(model, tokens) {
  const key = tokens.join();
  model.scales ??= new Map();
  const known = model.scales.get(key);
  if (known && known.of === model.maps.size) return known;
  let n = 0, sum = 0, squares = 0;
  for (const map of model.maps.values()) {
    for (const value of heatOf(model, map, tokens)) { n++; sum += value; squares += value * value; }
  }
  const mean = sum / n;
  const scale = { of: model.maps.size, mean, deviation: Math.max(Math.sqrt(squares / n - mean * mean), 1e-6) };
  model.scales.set(key, scale);
  return scale;
}

function prepared(canvas, side) {
  const ratio = window.devicePixelRatio || 1, pixels = Math.round(side * ratio);
  if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
  const pencil = canvas.getContext("2d");
  pencil.setTransform(ratio, 0, 0, ratio, 0, 0);
  pencil.clearRect(0, 0, side, side);
  return pencil;
}

// Draws over one picture. shown: {view, choice, patch}.
function draw(canvas, side, model, map, shown) {
  const pencil = prepared(canvas, side);
  if (!map || !map.length || !model.grid[0]) return;
  const [rows, columns] = model.grid, w = side / columns, h = side / rows;
  const boxOf = (patch) => [(patch % columns) * w, Math.floor(patch / columns) * h];
  if (shown.view === "words") drawOutlines(pencil, model, map, shown.choice, boxOf, w, h);
  if (shown.view === "numbers") drawNumbers(pencil, model, map, shown.choice, boxOf, w, h);
  if (shown.patch !== null && shown.patch < rows * columns) {
    const [x, y] = boxOf(shown.patch);
    pencil.lineWidth = 4; pencil.strokeStyle = "#fff"; pencil.strokeRect(x + 1, y + 1, w - 2, h - 2);
    pencil.lineWidth = 2; pencil.strokeStyle = "#111"; pencil.strokeRect(x + 1, y + 1, w - 2, h - 2);
  }
}

// The patches of each word as an outline, the best one with a dot, or a ring if it does not stand out.
function drawOutlines(pencil, model, map, choice, boxOf, w, h) {
  const words = wordsShown(model, choice).filter((word) => word.tokens.length), [rows, columns] = model.grid;
  const heats = words.map((word) => heatOf(model, map, word.tokens)), best = heats.map(argmax);
  const scales = words.map((word) => scaleOf(model, word.tokens));
  // A patch belongs to the word that stands out most on it, if any does.
  const owner = Array.from({ length: rows * columns }, (_, p) => {
    const standing = words.map((__, n) => (heats[n][p] - scales[n].mean) / scales[n].deviation), n = argmax(standing);
    return standing[n] >= STANDS_OUT ? n : -1;
  });
  const line = Math.max(1.5, Math.min(w, h) / 14);
  for (const [width, own] of [[line + 2, false], [line, true]]) {
    pencil.lineWidth = width;
    pencil.lineCap = "square";
    owner.forEach((n, p) => {
      if (n < 0) return;
      const [x, y] = boxOf(p), row = Math.floor(p / columns), column = p % columns, inset = line / 2 + 1;
      const open = (r, c) => r < 0 || r >= rows || c < 0 || c >= columns || owner[r * columns + c] !== n;
      const left = x + (open(row, column - 1) ? inset : 0), right = x + w - (open(row, column + 1) ? inset : 0);
      const top = y + (open(row - 1, column) ? inset : 0), bottom = y + h - (open(row + 1, column) ? inset : 0);
      pencil.strokeStyle = own ? `rgb(${words[n].colour})` : "#fff";
      pencil.beginPath();
      if (open(row - 1, column)) { pencil.moveTo(left, top); pencil.lineTo(right, top); }
      if (open(row + 1, column)) { pencil.moveTo(left, bottom); pencil.lineTo(right, bottom); }
      if (open(row, column - 1)) { pencil.moveTo(left, top); pencil.lineTo(left, bottom); }
      if (open(row, column + 1)) { pencil.moveTo(right, top); pencil.lineTo(right, bottom); }
      pencil.stroke();
    });
  }
  const taken = new Map();
  words.forEach((word, n) => {
    const [x, y] = boxOf(best[n]), before = taken.get(best[n]) ?? 0, radius = Math.max(2.5, Math.min(w, h) / 9);
    taken.set(best[n], before + 1);
    const full = owner[best[n]] >= 0, rings = [[1.5, "#fff"], [0, `rgb(${word.colour})`], ...(full ? [] : [[-1.5, "#fff"]])];
    for (const [more, style] of rings) {
      pencil.fillStyle = style;
      pencil.beginPath(); pencil.arc(x + w / 2 + before * 1.5 * radius, y + h / 2, radius + more, 0, 2 * Math.PI); pencil.fill();
    }
  });
}

function drawNumbers(pencil, model, map, choice, boxOf, w, h) {
  const count = model.tokens.length, patches = model.grid[0] * model.grid[1], extra = map.length / count - patches;
  const size = Math.min(w * 0.62, h * 0.62, 20);
  const chosen = choice.token !== null || choice.name !== null ? wordsShown(model, choice)[0]?.tokens ?? [] : null;
  pencil.textAlign = "center"; pencil.textBaseline = "middle";
  pencil.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  for (let p = 0; p < patches; p++) {
    const token = argmax(map.subarray((p + extra) * count, (p + extra + 1) * count));
    const named = nameOf(model, token) >= 0, [x, y] = boxOf(p);
    const strong = chosen ? chosen.includes(token) : named;
    if (strong) {
      pencil.fillStyle = `rgba(${colourOf(model, token)},.82)`;
      pencil.fillRect(x + 0.5, y + 0.5, w - 1, h - 1);
    }
    if (size < 6) continue;
    pencil.fillStyle = strong ? "#fff" : "rgba(40,48,58,.62)";
    pencil.fillText(String(token), x + w / 2, y + h / 2 + size * 0.05);
  }
}
