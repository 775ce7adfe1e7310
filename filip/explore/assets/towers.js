"use strict";
// Both towers of a small model, in plain numbers (filip/explore/towers.py writes them): texts and pictures to unit vectors.
// Rows lie one after another: [tokens, width] and, of a feature map, [row, column, channel].

// float16 to float32
function halfOf(base64) {
  const bits = new Uint16Array(bytesOf(base64).buffer), values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] & 0x8000 ? -1 : 1, exponent = (bits[i] >> 10) & 31, fraction = bits[i] & 1023;
    values[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  }
  return values;
}

// {name: Float32Array} of named arrays that were stored one after another.
function tensorsOf({ sizes, values }) {
  const all = halfOf(values), found = {};
  let start = 0;
  for (const [name, size] of Object.entries(sizes)) found[name] = all.subarray(start, start += size);
  return found;
}

// 1/(1+…) series of Abramowitz and Stegun, 7.1.26: off by at most 2e-7.
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
  const tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * Math.exp(-z * z);
  return x * (x < 0 ? tail : 2 - tail) / 2;
}
const ACTIVATIONS = {
  none: null, gelu, quick_gelu: (x) => x / (1 + Math.exp(-1.702 * x)), relu: (x) => Math.max(x, 0),
  relu6: (x) => Math.min(Math.max(x, 0), 6), silu: (x) => x / (1 + Math.exp(-x)),
};

// x [n, inside] times weight [outside, inside] transposed, plus bias: [n, outside].
function linear(x, weight, bias, inside, activation = null) {
  const n = x.length / inside, outside = weight.length / inside, out = new Float32Array(n * outside), whole = inside & ~3;
  for (let o = 0; o < outside; o++) {
    const base = o * inside, shift = bias ? bias[o] : 0;
    for (let r = 0; r < n; r++) {
      const from = r * inside;
      let a = shift, b = 0, c = 0, d = 0, k = 0;
      for (; k < whole; k += 4) {
        a += x[from + k] * weight[base + k]; b += x[from + k + 1] * weight[base + k + 1];
        c += x[from + k + 2] * weight[base + k + 2]; d += x[from + k + 3] * weight[base + k + 3];
      }
      for (; k < inside; k++) a += x[from + k] * weight[base + k];
      const sum = a + b + c + d;
      out[r * outside + o] = activation ? activation(sum) : sum;
    }
  }
  return out;
}

function layerNorm(x, weight, bias, epsilon) {
  const width = weight.length, out = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += width) {
    let mean = 0, square = 0;
    for (let k = 0; k < width; k++) mean += x[from + k];
    mean /= width;
    for (let k = 0; k < width; k++) square += (x[from + k] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / width + epsilon);
    for (let k = 0; k < width; k++) out[from + k] = (x[from + k] - mean) * scale * weight[k] + bias[k];
  }
  return out;
}

function unit(x, width) {
  const out = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += width) {
    let square = 0;
    for (let k = 0; k < width; k++) square += x[from + k] ** 2;
    const scale = 1 / Math.max(Math.sqrt(square), 1e-12);
    for (let k = 0; k < width; k++) out[from + k] = x[from + k] * scale;
  }
  return out;
}

function attention(qkv, width, heads, causal) {
  const n = qkv.length / (3 * width), size = width / heads, out = new Float32Array(n * width), weights = new Float64Array(n);
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < n; i++) {
      const seen = causal ? i + 1 : n;
      let highest = -Infinity, total = 0;
      for (let j = 0; j < seen; j++) {
        weights[j] = dot(qkv, i * 3 * width + h * size, qkv, j * 3 * width + width + h * size, size) / Math.sqrt(size);
        highest = Math.max(highest, weights[j]);
      }
      for (let j = 0; j < seen; j++) total += weights[j] = Math.exp(weights[j] - highest);
      for (let j = 0; j < seen; j++) {
        const from = j * 3 * width + 2 * width + h * size;
        for (let k = 0; k < size; k++) out[i * width + h * size + k] += (weights[j] / total) * qkv[from + k];
      }
    }
  }
  return out;
}

// The transformer's blocks, pre-norm: x [n, width], changed in place.
function blocks(x, of, tensors, causal) {
  const { width, heads, layers, epsilon } = of, activation = ACTIVATIONS[of.activation];
  const add = (more) => { for (let i = 0; i < x.length; i++) x[i] += more[i]; };
  for (let layer = 0; layer < layers; layer++) {
    const t = (name) => tensors[`${layer}.${name}`];
    const seen = linear(layerNorm(x, t("norm1.weight"), t("norm1.bias"), epsilon), t("qkv.weight"), t("qkv.bias"), width);
    add(linear(attention(seen, width, heads, causal), t("proj.weight"), t("proj.bias"), width));
    const inner = linear(layerNorm(x, t("norm2.weight"), t("norm2.bias"), epsilon), t("fc1.weight"), t("fc1.bias"), width, activation);
    add(linear(inner, t("fc2.weight"), t("fc2.bias"), inner.length / (x.length / width)));
  }
  return x;
}

// One vector of all tokens [n, width], as filip/models/pooling.py.
function pooled(tokens, width, pooling, query, end) {
  if (pooling === "ends") return unit(tokens.slice(end * width, (end + 1) * width), width);
  const n = tokens.length / width, weights = new Float64Array(n).fill(1 / n), sum = new Float32Array(width);
  if (query) {
    let total = 0;
    for (let i = 0; i < n; i++) weights[i] = dot(tokens, i * width, query, 0, width) / Math.sqrt(width);
    const highest = Math.max(...weights);
    for (let i = 0; i < n; i++) total += weights[i] = Math.exp(weights[i] - highest);
    for (let i = 0; i < n; i++) weights[i] /= total;
  }
  for (let i = 0; i < n; i++) for (let k = 0; k < width; k++) sum[k] += weights[i] * tokens[i * width + k];
  return unit(sum, width);
}

class TextTower {
  constructor(of, tokenizer) {
    Object.assign(this, { of, tokenizer, tensors: tensorsOf(of.tensors) });
    // Rows of tokens that no caption of the training had are not here: they were never taught anything.
    this.row = new Map(Array.from(new Uint16Array(bytesOf(of.rows).buffer), (token, row) => [token, row]));
  }

  // {tokens, words, pieces, unseen, vectors [n, dim], vector}: unseen are the positions of tokens that the model never
  // learned.
  encode(text) {
    const { of, tensors } = this, { width } = of, { ids, words, pieces } = this.tokenizer.encode(text, of.context);
    const x = tensors.positions.slice(0, ids.length * width), unseen = [];
    ids.forEach((id, n) => {
      const row = this.row.get(id);
      if (row === undefined || of.unknown.includes(id)) unseen.push(n);
      if (row === undefined) return;
      for (let k = 0; k < width; k++) x[n * width + k] += tensors.tokens[row * width + k];
    });
    blocks(x, of, tensors, true);
    const projected = linear(layerNorm(x, tensors["norm.weight"], tensors["norm.bias"], of.epsilon), tensors.projection, null, width);
    return {
      tokens: ids.map((id) => this.tokenizer.decode(id)), words, pieces, unseen, vectors: unit(projected, of.dim),
      vector: of.pooling ? pooled(projected, of.dim, of.pooling, tensors.query, ids.length - 1) : null,
    };
  }
}

// A convolution over x [height, width, channels]; a depthwise one has weights [k, k, channels], others [out, k, k, channels].
function convolve(x, height, width, channels, layer, weight, bias) {
  const { k, stride } = layer, activation = ACTIVATIONS[layer.activation];
  const outOf = (size) => (layer.pad === "same" ? Math.ceil(size / stride) : Math.floor((size + 2 * layer.pad - k) / stride) + 1);
  const before = (size) => (layer.pad === "same" ? Math.max((outOf(size) - 1) * stride + k - size, 0) >> 1 : layer.pad);
  const rows = outOf(height), columns = outOf(width), top = before(height), left = before(width);
  if (k === 1 && stride === 1 && !layer.depthwise) return { x: linear(x, weight, bias, channels, activation), rows, columns, channels: layer.out };
  const out = new Float32Array(rows * columns * layer.out), patch = new Float32Array(k * k * channels);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const at = (r * columns + c) * layer.out;
      if (layer.depthwise && bias) out.set(bias, at);
      patch.fill(0);
      for (let i = 0; i < k; i++) {
        const y = r * stride - top + i;
        if (y < 0 || y >= height) continue;
        for (let j = 0; j < k; j++) {
          const z = c * stride - left + j;
          if (z < 0 || z >= width) continue;
          const from = (y * width + z) * channels, to = (i * k + j) * channels;
          if (layer.depthwise) for (let n = 0; n < channels; n++) out[at + n] += x[from + n] * weight[to + n];
          else patch.set(x.subarray(from, from + channels), to);
        }
      }
      if (!layer.depthwise) out.set(linear(patch, weight, bias, patch.length), at);
      if (activation) for (let n = at; n < at + layer.out; n++) out[n] = activation(out[n]);
    }
  }
  return { x: out, rows, columns, channels: layer.out };
}

class ImageTower {
  constructor(of, stem) {
    Object.assign(this, { of, tensors: tensorsOf(of.tensors), layers: of.layers_below });
    if (stem) this.layers = [...stem.layers, ...this.layers];
    this.below = stem ? tensorsOf(stem.tensors) : {};
  }

  // Red, green and blue bytes [size, size, 3] to {rows [n, dim], vector}: every token that takes part, and the pooled vector.
  encode(bytes) {
    const { of, tensors, below } = this, { width, size } = of;
    let map = { x: new Float32Array(bytes.length), rows: size, columns: size, channels: 3 }, kept = null;
    for (let i = 0; i < bytes.length; i++) map.x[i] = bytes[i] * of.scale[i % 3] + of.shift[i % 3];
    for (const layer of this.layers) {
      if (layer.keeps) kept = map.x;
      const weights = below[`${layer.name}.weight`] ? below : tensors;
      map = convolve(map.x, map.rows, map.columns, map.channels, layer, weights[`${layer.name}.weight`], weights[`${layer.name}.bias`]);
      if (layer.adds) for (let i = 0; i < kept.length; i++) map.x[i] += kept[i];
    }
    let x = new Float32Array(tensors.positions.length);
    x.set(tensors.prefix ?? [], 0);
    x.set(map.x, of.prefix * width);
    for (let i = 0; i < x.length; i++) x[i] += tensors.positions[i];
    if (tensors["norm_pre.weight"]) x = layerNorm(x, tensors["norm_pre.weight"], tensors["norm_pre.bias"], of.epsilon);
    blocks(x, of, tensors, false);
    const projected = linear(layerNorm(x, tensors["norm.weight"], tensors["norm.bias"], of.epsilon), tensors.projection, null, width);
    const patches = projected.subarray(of.prefix * of.dim);
    return {
      rows: unit(of.cls ? joined(projected.subarray(0, of.dim), patches) : patches, of.dim),
      vector: of.pooling ? pooled(of.pooling === "ends" ? projected : patches, of.dim, of.pooling, tensors.query, 0) : null,
    };
  }
}

function joined(first, second) {
  const all = new Float32Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}
