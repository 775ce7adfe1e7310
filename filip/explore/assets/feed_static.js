"use strict";
// What the page knows without a server: 8-bit tokens of images, and the towers of small models, which encode any text and
// any picture. A model without towers has the tokens of its captions instead.

const SLICE = 12; // milliseconds of work before the page may draw and listen again
const MOST_NAMES = 8; // as many as there are colours

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
const int8Of = (base64) => new Int8Array(bytesOf(base64).buffer);
const float32Of = (base64) => new Float32Array(bytesOf(base64).buffer);

function dot(a, from, b, at, length) {
  let sum = 0;
  for (let k = 0; k < length; k++) sum += a[from + k] * b[at + k];
  return sum;
}

// A text as a model sees it: {tokens, names, unknown, counted, vectors [n, dim], vector}: unknown words are those that it
// never learned; counted are the positions of the tokens that a score counts (filip/explore/names.py).
class StaticModel {
  constructor(data, page) {
    Object.assign(this, { data, page, label: data.label, tokenWise: data.token_wise, grid: data.grid });
    this.patches = this.grid[0] * this.grid[1];
    this.recent = new Map();
    this.uploads = new Map();
    if (this.patches) {
      Object.assign(this, { dim: data.dim, rows: data.rows });
      this.image = int8Of(data.image_tokens.values);
      this.imageScale = float32Of(data.image_tokens.scales);
    }
    if (data.text_tokens) {
      this.text = int8Of(data.text_tokens.values);
      this.textScale = float32Of(data.text_tokens.scales);
      this.start = [0];
      for (const tokens of data.tokens) this.start.push(this.start.at(-1) + tokens.length);
    }
    if (!this.tokenWise) {
      this.pooledDim = data.pooled_dim;
      this.imageVectors = float32Of(data.image_vectors);
      if (data.text_vectors) this.textVectors = float32Of(data.text_vectors);
    }
  }

  // Unpacks the towers, which takes a moment.
  async prepare(tokenizer) {
    if (this.data.text_tower) this.textTower ??= new TextTower(this.data.text_tower, tokenizer);
  }

  encode(text) {
    const known = this.recent.get(text);
    if (known) return known;
    const position = this.page.positions.get(text), found = this.textTower ? this.encoded(text, position) : this.stored(position);
    this.recent.set(text, found);
    return found;
  }

  encoded(text, position) {
    const found = this.textTower.encode(text), own = position === undefined ? null : this.data.names?.[position];
    const naming = (word) => !this.page.functionWords.has(word.label.split("'")[0]), words = found.words.filter(naming);
    const unknown = words.filter((word) => word.tokens.some((token) => found.unseen.includes(token)));
    const left = new Set(unknown.flatMap((word) => word.tokens)), inner = found.tokens.map((_, n) => n).slice(1, -1);
    const content = found.pieces.filter((piece) => /[\p{L}\p{N}]/u.test(piece.label) && !this.page.functionWords.has(piece.label));
    const kept = content.length ? content.flatMap((piece) => piece.tokens) : inner;
    const all = kept.length ? kept : [0, 1], known = all.filter((token) => !left.has(token));
    const counted = known.length || position === undefined ? known : all;   // a picture's caption is ranked in any case
    if (!counted.length) throw new Error(`The model never learned ${unknown.map((word) => `“${word.label}”`).join(", ")}, so it cannot look for it.`);
    const names = own ?? words.filter((word) => /[\p{L}\p{N}]/u.test(word.label)).slice(0, MOST_NAMES);
    return this.patches ? { ...found, names, unknown, counted } : { ...found, tokens: [], names: [], unknown, counted: [] };
  }

  stored(position) {
    if (!this.patches) return { tokens: [], names: [], unknown: [], counted: [], vector: this.storedVector(position) };
    const first = this.start[position], count = this.start[position + 1] - first, d = this.dim;
    const vectors = new Float32Array(count * d);
    for (let i = 0; i < vectors.length; i++) vectors[i] = this.text[first * d + i] * this.textScale[first + Math.floor(i / d)];
    return { tokens: this.data.tokens[position], names: this.data.names[position], unknown: [], counted: this.data.counted[position], vectors, vector: this.storedVector(position) };
  }

  storedVector(position) {
    return this.tokenWise ? null : this.textVectors.subarray(position * this.pooledDim, (position + 1) * this.pooledDim);
  }

  // Looks at a picture of the user's.
  see(name, pixels) {
    this.imageTower ??= new ImageTower(this.data.image_tower, this.page.data.stems[this.data.stem] ?? null);
    this.uploads.set(name, this.imageTower.encode(squareOf(pixels, this.data.image_tower.size)));
  }

  // Cosines of all tokens of an image with tokens of a text: [rows, tokens], row by row.
  map(image, text, tokens = text.tokens.map((_, token) => token)) {
    if (!this.patches) return new Float32Array(0);
    const count = tokens.length, d = this.dim, own = this.uploads.get(image), found = new Float32Array(this.rows * count);
    for (let r = 0; r < this.rows; r++) {
      const row = own ? r : image * this.rows + r, values = own ? own.rows : this.image, scale = own ? 1 : this.imageScale[row];
      for (let t = 0; t < count; t++) found[r * count + t] = dot(values, row * d, text.vectors, tokens[t] * d, d) * scale;
    }
    return found;
  }

  // The score of an image for a text: the mean over the counted tokens of their best patch; a pooled model's one cosine.
  score(image, text) {
    if (!this.tokenWise) return this.cosine(image, text);
    return meanOfBest(this.map(image, text, text.counted), this.rows, text.counted.length);
  }

  // The score of a text for an image: the mean over the patches of their best token.
  scoreOfText(image, text) {
    if (!this.tokenWise) return this.cosine(image, text);
    const count = text.tokens.length, map = this.map(image, text);
    let sum = 0;
    for (let r = 0; r < this.rows; r++) {
      let best = -Infinity;
      for (let t = 0; t < count; t++) best = Math.max(best, map[r * count + t]);
      sum += best;
    }
    return sum / this.rows;
  }

  cosine(image, text) {
    const own = this.uploads.get(image), d = this.pooledDim;
    return own ? dot(own.vector, 0, text.vector, 0, d) : dot(this.imageVectors, image * d, text.vector, 0, d);
  }
}

function meanOfBest(map, rows, count) {
  let sum = 0;
  for (let t = 0; t < count; t++) {
    let best = -Infinity;
    for (let r = 0; r < rows; r++) if (map[r * count + t] > best) best = map[r * count + t];
    sum += best;
  }
  return sum / count;
}

// Calls work(0), …, work(count - 1), and lets the page breathe in between.
async function inSlices(count, work) {
  let started = performance.now();
  for (let i = 0; i < count; i++) {
    work(i);
    if (performance.now() - started > SLICE) {
      await new Promise((resume) => setTimeout(resume));
      started = performance.now();
    }
  }
}

// Positions of the scores, highest first; of equal ones the first.
function ranked(scores) {
  return Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
}

class StaticFeed {
  constructor(data) {
    this.data = data;
    this.positions = new Map(data.texts.map((text, index) => [text, index]));
    this.functionWords = new Set((data.function_words ?? "").split(" "));
    this.models = data.models.map((model) => new StaticModel(model, this));
    this.uploads = new Map();
    this.anyText = this.models.every((model) => model.data.text_tower);
    this.anyPicture = this.anyText && this.models.every((model) => model.data.image_tower);
  }

  knows(text) {
    return this.anyText || this.positions.has(text);
  }

  picture(image) {
    return this.uploads.get(image) ?? `data:image/webp;base64,${this.data.thumbnails[image]}`;
  }

  async prepare() {
    if (!this.anyText) return;
    this.tokenizer ??= Tokenizer.unpacked(bytesOf(this.data.merges));
    const tokenizer = await this.tokenizer;
    for (const model of this.models) await model.prepare(tokenizer);
  }

  // For each model its tokens, its ranking of all images and the scores that it ranks by.
  async search(text) {
    await this.prepare();
    const models = [];
    for (const model of this.models) {
      const scores = new Float32Array(this.data.images.length), seen = model.encode(text);
      await inSlices(scores.length, (image) => { scores[image] = model.score(image, seen); });
      const order = ranked(scores);
      const rank = new Map(order.map((image, place) => [image, place + 1]));
      const better = (score) => 1 + scores.reduce((count, other) => count + (other > score), 0);
      const scoreOf = (image) => scores[image] ?? model.score(image, seen);
      models.push({
        label: model.label, tokenWise: model.tokenWise, grid: model.grid, order, total: order.length, seen,
        tokens: seen.tokens, names: seen.names, unknown: seen.unknown, counted: seen.counted,
        score: scoreOf, rank: (image) => rank.get(image) ?? better(scoreOf(image)), maps: new Map(),
      });
    }
    return { text, models };
  }

  // Makes sure that every model's `maps` has these images.
  async look(result, images, which = null) {
    const jobs = [];
    result.models.forEach((found, number) => {
      if (which !== null && number !== which) return;
      for (const image of images) if (!found.maps.has(image)) jobs.push([this.models[number], found, image]);
    });
    await inSlices(jobs.length, (job) => {
      const [model, found, image] = jobs[job];
      found.maps.set(image, model.map(image, found.seen));
    });
  }

  // For each model the texts that fit an image best: [text, score].
  async textsOf(image, count) {
    const lists = [];
    for (const model of this.models) {
      const scores = new Float32Array(this.data.texts.length);
      await inSlices(scores.length, (text) => { scores[text] = model.scoreOfText(image, model.encode(this.data.texts[text])); });
      lists.push(ranked(scores).slice(0, count).map((text) => [this.data.texts[text], scores[text]]));
    }
    return lists;
  }

  // Looks at a picture of the user's; its name from then on.
  async upload(file) {
    const pixels = await decoded(file), name = `u${this.uploads.size}`;
    for (const model of this.models) {
      await new Promise((resume) => setTimeout(resume));
      model.see(name, pixels);
    }
    this.uploads.set(name, thumbnailOf(pixels));
    return name;
  }
}
