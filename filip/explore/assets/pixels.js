"use strict";
// A picture as a model sees it: Pillow's bicubic resampling of the shorter side, then the middle (filip/images/eval_transform.py).

const MOST_ASPECT = 50, THUMBNAIL_SIDE = 192;
const DRAFT_SIDE = 2048; // pixels of the shorter side that are kept of a larger picture, as filip/images/rgb.py drafts a JPEG

// The file's pixels on white, upright: {width, height, data} with four bytes a pixel.
async function decoded(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`This browser cannot read ${file.name ? `“${file.name}”` : "the file"} as a picture.`);
  }
  if (Math.max(bitmap.width, bitmap.height) > MOST_ASPECT * Math.min(bitmap.width, bitmap.height)) {
    throw new Error(`The picture has ${bitmap.width} × ${bitmap.height} pixels: too long and narrow.`);
  }
  const smaller = Math.max(1, Math.floor(Math.min(bitmap.width, bitmap.height) / DRAFT_SIDE));
  const width = Math.round(bitmap.width / smaller), height = Math.round(bitmap.height / smaller);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const pencil = canvas.getContext("2d", { willReadFrequently: true });
  pencil.fillStyle = "#fff";
  pencil.fillRect(0, 0, width, height);
  pencil.imageSmoothingQuality = "high";
  pencil.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { width, height, data: pencil.getImageData(0, 0, width, height).data, canvas };
}

function bicubic(x) {
  const z = Math.abs(x);
  if (z < 1) return (1.5 * z - 2.5) * z * z + 1;
  return z < 2 ? ((-0.5 * z + 2.5) * z - 4) * z + 2 : 0;
}

// For each of `to` samples out of `from`: the first one that counts, and the weights.
function taps(from, to) {
  const scale = from / to, wide = Math.max(scale, 1), support = 2 * wide;
  return Array.from({ length: to }, (_, n) => {
    const centre = (n + 0.5) * scale, first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), from);
    const weights = Float64Array.from({ length: last - first }, (__, k) => bicubic((first + k - centre + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

const halfToEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// Red, green and blue of the middle square at the model's size: Uint8Array [size, size, 3].
function squareOf({ width, height, data }, size) {
  const columns = width <= height ? size : Math.trunc((size * width) / height);
  const rows = width <= height ? Math.trunc((size * height) / width) : size;
  const left = halfToEven((columns - size) / 2), top = halfToEven((rows - size) / 2);
  const across = taps(width, columns).slice(left, left + size), down = taps(height, rows).slice(top, top + size);
  const first = down[0].first, last = down.at(-1).first + down.at(-1).weights.length;
  const middle = new Uint8ClampedArray((last - first) * size * 3), square = new Uint8ClampedArray(size * size * 3);
  for (let y = first; y < last; y++) {
    for (let c = 0; c < size; c++) {
      const { first: from, weights } = across[c];
      let r = 0, g = 0, b = 0;
      for (let k = 0, at = (y * width + from) * 4; k < weights.length; k++, at += 4) {
        r += weights[k] * data[at]; g += weights[k] * data[at + 1]; b += weights[k] * data[at + 2];
      }
      const to = ((y - first) * size + c) * 3;
      middle[to] = r; middle[to + 1] = g; middle[to + 2] = b; // rounded and clipped by the array
    }
  }
  for (let row = 0; row < size; row++) {
    const { first: from, weights } = down[row];
    for (let i = 0; i < size * 3; i++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * middle[(from - first + k) * size * 3 + i];
      square[row * size * 3 + i] = sum;
    }
  }
  return square;
}

// The middle square of a picture, small, as an address that an <img> takes.
function thumbnailOf({ width, height, canvas }) {
  const side = Math.min(width, height), small = document.createElement("canvas");
  small.width = small.height = THUMBNAIL_SIDE;
  small.getContext("2d").drawImage(canvas, (width - side) / 2, (height - side) / 2, side, side, 0, 0, THUMBNAIL_SIDE, THUMBNAIL_SIDE);
  return small.toDataURL("image/webp", 0.9);
}
