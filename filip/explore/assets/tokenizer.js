"use strict";
// CLIP's byte-pair encoding (filip/text/tokenizer.py): a text to token ids, with the word that each token belongs to.

const BOS = 49406, EOS = 49407, END_OF_WORD = "</w>";
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: " ", "#39": "'" };

// What ftfy and html.unescape do to the captions that people write: quotes made plain, widths and ligatures undone.
function cleanText(text) {
  const unescape = (value) => value.replace(/&(#x[0-9a-f]+|#\d+|\w+);/gi, (whole, name) => {
    if (name[0] === "#") {
      const code = name[1].toLowerCase() === "x" ? parseInt(name.slice(2), 16) : Number(name.slice(1));
      return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
    }
    return ENTITIES[name] ?? whole;
  });
  const plain = text.replace(/[\u2018\u2019\u201a\u201b\u02bc]/g, "'").replace(/[\u201c\u201d\u201e\u201f]/g, "\"")
    .replace(/[\uff01-\uff5e\ufb00-\ufb06]/g, (letter) => letter.normalize("NFKC")).normalize("NFC");
  return unescape(unescape(plain)).trim();
}

class Tokenizer {
  // merges: the pairs that are merged, in order, one a line.
  constructor(merges) {
    const printable = [[33, 126], [161, 172], [174, 255]].flatMap(([from, to]) =>
      Array.from({ length: to - from + 1 }, (_, n) => from + n));
    const others = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable.includes(byte));
    const letters = new Map([...printable.map((byte) => [byte, String.fromCharCode(byte)]),
      ...others.map((byte, n) => [byte, String.fromCharCode(256 + n)])]);
    this.letter = letters;
    this.byte = new Map([...letters].map(([byte, letter]) => [letter, byte]));
    this.tokens = [...letters.values(), ...[...letters.values()].map((letter) => letter + END_OF_WORD)];
    this.ranks = new Map();
    merges.split("\n").forEach((line, rank) => {
      if (!line) return;
      this.ranks.set(line, rank);
      this.tokens.push(line.replace(" ", ""));
    });
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
    this.known = new Map();
  }

  static async unpacked(gzipped) {
    const stream = new Blob([gzipped]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Tokenizer(await new Response(stream).text());
  }

  // The ids of one piece of a word.
  encodePiece(piece) {
    const known = this.known.get(piece);
    if (known) return known;
    let parts = Array.from(new TextEncoder().encode(piece), (byte) => this.letter.get(byte));
    parts.push(parts.pop() + END_OF_WORD);
    while (parts.length > 1) {
      let best = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) best = Math.min(best, this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity);
      if (best === Infinity) break;
      const merged = [];
      for (let i = 0; i < parts.length; i++) {
        if (i + 1 < parts.length && this.ranks.get(`${parts[i]} ${parts[i + 1]}`) === best) merged.push(parts[i] + parts[++i]);
        else merged.push(parts[i]);
      }
      parts = merged;
    }
    const ids = parts.map((part) => this.ids.get(part));
    this.known.set(piece, ids);
    return ids;
  }

  // {ids, words, pieces}: ids with [BOS] and [EOS], at most `length`; words [{label, tokens}] are runs of letters, digits
  // and signs beyond ASCII; pieces are what the encoding splits a text into first.
  encode(text, length) {
    const ids = [BOS], words = [], pieces = [];
    for (const spoken of cleanText(text).toLowerCase().split(/\s+/u).filter(Boolean)) {
      let word = null;
      for (const piece of spoken.match(PIECES) ?? []) {
        const found = this.encodePiece(piece);
        const places = found.map((_, n) => ids.length + n).filter((place) => place < length - 1);
        pieces.push({ label: piece, tokens: places });
        if (/[\p{L}\p{N}]|[^\p{P}\0-\x7f]/u.test(piece)) {
          if (!word) words.push(word = { label: "", tokens: [] });
          word.label += piece;
          word.tokens.push(...places);
        } else word = null;
        ids.push(...found);
      }
    }
    return { ids: [...ids.slice(0, length - 1), EOS], words: words.filter((word) => word.tokens.length), pieces };
  }

  // One token as a person reads it.
  decode(id) {
    if (id === BOS || id === EOS) return id === BOS ? "[BOS]" : "[EOS]";
    const letters = Array.from(this.tokens[id].replace(END_OF_WORD, ""));
    return new TextDecoder().decode(new Uint8Array(letters.map((letter) => this.byte.get(letter)))).trim();
  }
}
