"use strict";
// What a server knows: any text, any picture. The server scores, the page shows.

class LiveFeed {
  constructor(data) {
    this.data = data;
    this.anyText = this.anyPicture = true;
    this.uploads = new Map();
  }

  knows() {
    return true;
  }

  picture(image) {
    return this.uploads.has(image) ? this.uploads.get(image) : `thumbnail/${image}`;
  }

  async ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch {
      throw new Error("The explorer's server does not answer: is `filip explore serve` still running?");
    }
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error ?? `The server answered ${answer.status}.`);
    return found;
  }

  async search(text) {
    const found = await this.ask(`search?${new URLSearchParams({ text })}`);
    const models = found.models.map((model) => {
      const scores = new Map(model.order.map((image, place) => [image, model.scores[place]]));
      const ranks = new Map(model.order.map((image, place) => [image, place + 1]));
      const result = {
        label: model.label, tokenWise: model.token_wise, grid: model.grid, order: model.order, total: model.total,
        tokens: model.tokens, names: model.names, unknown: model.unknown, counted: model.counted, scores, ranks,
        score: (image) => scores.get(image), rank: (image) => ranks.get(image), maps: new Map(),
      };
      // The pictures that are shown first come with the answer.
      model.maps.forEach((map, place) => result.maps.set(model.order[place], float32Of(map)));
      return result;
    });
    return { text, models };
  }

  async look(result, images, which = null) {
    const lacking = images.filter((image) =>
      result.models.some((found, number) => (which === null || number === which)
        && !(found.maps.has(image) && found.scores.has(image))));
    if (!lacking.length) return;
    const found = await this.ask(`look?${new URLSearchParams({ text: result.text, images: lacking.join() })}`);
    result.models.forEach((model, number) => lacking.forEach((image, place) => {
      const seen = found.models[number][place];
      model.maps.set(image, float32Of(seen.map));
      model.scores.set(image, seen.score);
      model.ranks.set(image, seen.rank);
    }));
  }

  async textsOf(image, count) {
    return (await this.ask(`texts?${new URLSearchParams({ image, count })}`)).models;
  }

  // Gives a picture to the server; its name from then on.
  async upload(file) {
    const { image, thumbnail } = await this.ask("upload", { method: "POST", body: file });
    this.uploads.set(image, `data:image/webp;base64,${thumbnail}`);
    return image;
  }
}
