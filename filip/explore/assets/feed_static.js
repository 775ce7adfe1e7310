"use strict";
// What the page knows without a server: 8-bit tokens of images and captions, compared here, every one with every one.

const SLICE = 12; // milliseconds of work before the page may draw and listen again

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

class StaticModel {
  constructor(data) {
    Object.assign(this, { label: data.label, tokenWise: data.token_wise, grid: data.grid });
    this.patches = this.grid[0] * this.grid[1];
    if (this.patches) {
      Object.assign(this, { dim: data.dim, rows: data.rows, tokens: data.tokens, names: data.names });
      this.image = int8Of(data.image_tokens.values);
      this.imageScale = float32Of(data.image_tokens.scales);
      this.text = int8Of(data.text_tokens.values);
      this.textScale = float32Of(data.text_tokens.scales);
      this.start = [0];
      for (const tokens of this.tokens) this.start.push(this.start.at(-1) + tokens.length);
    }
    if (!this.tokenWise) {
      this.pooledDim = data.pooled_dim;
      this.imageVectors = float32Of(data.image_vectors);
      this.textVectors = float32Of(data.text_vectors);
    }
  }

  // Cosines of all tokens of an image with all tokens of a text: [rows, tokens], row by row.
  map(image, text) {
    if (!this.patches) return new Float32Array(0);
    const first = this.start[text], count = this.start[text + 1] - first, d = this.dim;
    const found = new Float32Array(this.rows * count);
    for (let r = 0; r < this.rows; r++) {
      const row = image * this.rows + r;
      for (let t = 0; t < count; t++) {
        const product = dot(this.image, row * d, this.text, (first + t) * d, d);
        found[r * count + t] = product * this.imageScale[row] * this.textScale[first + t];
      }
    }
    return found;
  }

  // The score of an image for a text: the mean over the tokens of their best patch; a pooled model's one cosine.
  score(image, text) {
    if (!this.tokenWise) return this.cosine(image, text);
    return meanOfBest(this.map(image, text), this.rows, this.start[text + 1] - this.start[text]);
  }

  // The score of a text for an image: the mean over the patches of their best token.
  scoreOfText(image, text) {
    if (!this.tokenWise) return this.cosine(image, text);
    const count = this.start[text + 1] - this.start[text], map = this.map(image, text);
    let sum = 0;
    for (let r = 0; r < this.rows; r++) {
      let best = -Infinity;
      for (let t = 0; t < count; t++) best = Math.max(best, map[r * count + t]);
      sum += best;
    }
    return sum / this.rows;
  }

  cosine(image, text) {
    const d = this.pooledDim;
    return dot(this.imageVectors, image * d, this.textVectors, text * d, d);
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
    this.live = false;
    this.models = data.models.map((model) => new StaticModel(model));
    this.positions = new Map(data.texts.map((text, index) => [text, index]));
  }

  knows(text) {
    return this.positions.has(text);
  }

  picture(image) {
    return `data:image/webp;base64,${this.data.thumbnails[image]}`;
  }

  // For each model its tokens, its ranking of all images and the scores that it ranks by.
  async search(text) {
    const position = this.positions.get(text);
    const models = [];
    for (const model of this.models) {
      const scores = new Float32Array(this.data.images.length);
      await inSlices(scores.length, (image) => { scores[image] = model.score(image, position); });
      const order = ranked(scores);
      const rank = new Map(order.map((image, place) => [image, place + 1]));
      models.push({
        label: model.label, tokenWise: model.tokenWise, grid: model.grid, order, total: order.length,
        tokens: model.patches ? model.tokens[position] : [], names: model.patches ? model.names[position] : [],
        score: (image) => scores[image], rank: (image) => rank.get(image), maps: new Map(),
      });
    }
    return { text, position, models };
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
      found.maps.set(image, model.map(image, result.position));
    });
  }

  // For each model the texts that fit an image best: [text, score].
  async textsOf(image, count) {
    const lists = [];
    for (const model of this.models) {
      const scores = new Float32Array(this.data.texts.length);
      await inSlices(scores.length, (text) => { scores[text] = model.scoreOfText(image, text); });
      lists.push(ranked(scores).slice(0, count).map((text) => [this.data.texts[text], scores[text]]));
    }
    return lists;
  }
}
