"use strict";
// One model's column: the chosen picture with the words that its patches match, and the ranking below it.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === "style") made.style.cssText = value;
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const decimals = (value) => value.toFixed(3).replace(/^(-?)0\./, "$1.").replace("-", "−");
const signed = (value) => (value < 0 ? "" : "+") + decimals(value);

class Panel {
  constructor(app, number) {
    this.app = app;
    this.number = number;
    this.head = element("header");
    this.image = element("img", { alt: "", width: 300, height: 300, draggable: "false" });
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.large = element("button", {
      type: "button", class: "large",
      on: { click: (event) => this.clicked(event), keydown: (event) => this.moved(event) },
    }, element("span", { class: "pic" }, this.image, this.canvas));
    this.caption = element("p", { class: "caption" });
    this.why = element("div", { class: "why" });
    this.reason = element("details", { class: "reason" }, element("summary", {}, "Why this result"), this.why);
    this.fitting = element("ul");
    this.fits = element("details", { class: "fits", on: { toggle: () => this.showTexts() } },
      element("summary", {}, "The captions that fit this picture best"), this.fitting);
    this.grid = element("ol", { class: "grid", on: { keydown: (event) => this.stepped(event) } });
    this.more = element("button", { type: "button", class: "more-button", on: { click: () => app.showMore() } }, "Show more");
    this.section = element("section", { class: "model" }, this.head,
      element("div", { class: "stage" }, element("div", { class: "seen" }, this.large, this.caption),
        element("div", { class: "rank" }, element("h3", {}, "Ranking"), this.grid, this.more),
        element("div", {}, this.reason, this.fits)));
  }

  get model() {
    return this.app.result.models[this.number];
  }

  // The picture that is large: the chosen one, or else the model's own first hit.
  get shown() {
    return this.app.state.image ?? this.model.order[0];
  }

  // ---- everything again, after a search or a change of the picture ------------------------------------

  render() {
    const { app, model } = this, own = app.ownImage();
    this.section.setAttribute("aria-label", `What ${model.label} finds`);
    this.head.replaceChildren(element("h2", {}, model.label), element("p", {},
      model.tokenWise ? "token-wise: every word with every patch" : "pooled: one vector with one vector"));
    if (own !== null && model.rank(own) !== undefined) {
      this.head.append(element("p", {}, element("button", {
        type: "button", class: "link own-rank", on: { click: () => app.choose({ image: own }) },
      }, `Its own picture: rank ${model.rank(own)} of ${model.total.toLocaleString("en")}`)));
    }
    const image = this.shown;
    this.image.src = app.feed.picture(image);
    this.image.alt = app.alternative(image);
    this.large.setAttribute("aria-label",
      `${app.alternative(image)}, as ${model.label} sees it. Click a patch, or choose one with the arrow keys`);
    const rank = model.rank(image);
    this.caption.textContent = `${rank ? `Rank ${rank}, score ${decimals(model.score(image))}. ` : ""}${app.alternative(image)}`;
    this.fits.hidden = app.data.texts.length < 2;
    if (app.isUpload(image)) this.fits.open = true;
    if (this.fits.open) this.showTexts();
    this.renderRanking();
    this.redraw();
  }

  renderRanking() {
    const { app, model } = this;
    const cards = app.imagesShown(this.number).map((image) => {
      const rank = model.rank(image), yours = app.isUpload(image);
      return element("li", {}, element("button", {
        type: "button", "data-image": image, "aria-pressed": String(image === this.shown),
        class: "card",
        title: app.alternative(image),
        on: { click: () => app.choose({ image }) },
      }, element("span", { class: "pic" },
        element("img", { alt: app.alternative(image), src: app.feed.picture(image), width: 160, height: 160 }),
        element("canvas", { "aria-hidden": "true" }),
        app.isOwn(image) || yours ? element("span", { class: "badge" }, yours ? "yours" : "its own") : null),
      element("span", { class: "meta" }, element("b", {}, String(rank)),
        element("span", {}, decimals(model.score(image))))));
    });
    this.grid.replaceChildren(...cards);
    this.more.hidden = app.state.shown >= Math.min(model.order.length, app.mostShown);
  }

  // ---- what is drawn, after a change of the words, the patch or the view -------------------------------

  redraw() {
    const { app } = this;
    for (const card of this.grid.querySelectorAll(".card")) {
      card.setAttribute("aria-pressed", String(app.imageOf(card.dataset.image) === this.shown));
    }
    this.paint();
    this.explain();
  }

  paint() {
    const { app, model } = this, shown = app.shown(), thumbnails = { ...shown, patch: null };
    const over = (canvas, side, image, what) =>
      draw(canvas, canvas.clientWidth || side, model, model.maps.get(image), what);
    over(this.canvas, 300, this.shown, shown);
    for (const card of this.grid.querySelectorAll(".card")) {
      over(card.querySelector("canvas"), 160, app.imageOf(card.dataset.image), thumbnails);
    }
  }

  explain() {
    const { model } = this, { state } = this.app, map = model.maps.get(this.shown);
    if (!map || !map.length) {
      this.why.replaceChildren(element("h3", {}, "No token map"),
        element("p", {}, "This model has no projection for single patches and words: it ranks, and that is all."));
    } else if (state.patch !== null && state.patch < model.grid[0] * model.grid[1]) {
      this.reason.open = true;
      this.explainPatch(map);
    } else {
      this.explainScore(map);
    }
    this.cutPatches();
  }

  // Which patch matched which word, and what each word adds to the score; folded, the tokens that do not count.
  explainScore(map) {
    const { model } = this, count = model.tokens.length, rows = map.length / count;
    const best = model.tokens.map((_, token) => {
      let place = 0;
      for (let r = 1; r < rows; r++) if (map[r * count + token] > map[place * count + token]) place = r;
      return { token, row: place, cosine: map[place * count + token] };
    });
    const top = Math.max(...best.map((b) => b.cosine), 1e-6), score = model.score(this.shown);
    const row = (share) => (b) => this.row(b, b.cosine / top, share ? signed(b.cosine / model.counted.length) : null);
    const counted = best.filter((b) => model.counted.includes(b.token)), others = best.filter((b) => !model.counted.includes(b.token));
    const total = element("tr", {}, element("td", { colspan: 2 }, model.tokenWise ? "Score, the mean" : "Score"),
      element("td", { class: "number" }, decimals(score)), model.tokenWise ? element("td", { class: "number share" }, decimals(score)) : null);
    this.why.replaceChildren(
      element("p", {}, model.tokenWise ? "Each word with its best patch, and what it adds to the score."
        : "Each word with its best patch. The score is the cosine of two whole vectors: words do not add up to it."),
      element("table", {}, this.heads("word", model.tokenWise), element("tbody", {}, ...counted.map(row(model.tokenWise))), element("tfoot", {}, total)),
      others.length ? element("details", {}, element("summary", {}, `${others.length} tokens that name nothing${model.tokenWise ? ": not counted" : ""}`),
        element("table", {}, element("tbody", {}, ...others.map(row(false))))) : "");
  }

  heads(word, share) {
    return element("thead", {}, element("tr", {}, element("th", { class: "crop" }, element("span", { class: "hidden" }, "patch")),
      element("th", {}, word), element("th", { class: "number" }, "cosine"), share ? element("th", { class: "number share" }, "adds") : null));
  }

  // The words that look at the chosen patch: those that prefer it to all others, and all by their cosine with it.
  explainPatch(map) {
    const { model } = this, { state } = this.app, [rows, columns] = model.grid, count = model.tokens.length;
    const extra = map.length / count - rows * columns, row = state.patch + extra;
    const found = model.tokens.map((_, token) => {
      let best = extra;
      for (let r = extra; r < extra + rows * columns; r++) if (map[r * count + token] > map[best * count + token]) best = r;
      return { token, row, cosine: map[row * count + token], first: best === row };
    }).sort((a, b) => b.cosine - a.cosine);
    const top = Math.max(found[0].cosine, 1e-6), looking = found.filter((f) => f.first).map((f) => model.tokens[f.token]);
    this.why.replaceChildren(
      element("h3", {}, `Row ${Math.floor(state.patch / columns) + 1}, column ${(state.patch % columns) + 1}`,
        element("button", { type: "button", on: { click: () => this.app.choose({ patch: null }) } }, "Back to the score")),
      element("p", {}, looking.length ? `Best patch of: ${looking.join(", ")}.` : "The best patch of no word."),
      element("table", {}, this.heads("words that look at it", false),
      element("tbody", {}, ...found.slice(0, 12).map((f) => this.row(f, f.cosine / top, null)))));
  }

  row({ token, row, cosine }, length, share) {
    const { app, model } = this, name = nameOf(model, token), extra = model.maps.get(this.shown).length / model.tokens.length
      - model.grid[0] * model.grid[1];
    const chosen = app.shown().choice.token === token;
    return element("tr", {
      class: `${name >= 0 ? "named" : ""}${chosen ? " chosen" : ""}`, style: name >= 0 ? `--c: var(--c${name % COLOURS.length})` : "",
      "data-token": token,
      on: { mouseenter: () => app.hover({ token, name: null }), mouseleave: () => app.hover(null), click: () => app.toggleToken(token) },
    },
    element("td", { class: "crop" }, row >= extra ? element("canvas", { "data-patch": row - extra, width: 40, height: 40, "aria-hidden": "true" }) : null),
    element("td", {}, element("span", { class: "bar" }, element("i", { style: `width: ${100 * Math.max(0, Math.min(length, 1))}%` }),
      element("button", { type: "button", "aria-pressed": String(chosen) }, element("small", {}, String(token)), model.tokens[token]))),
    element("td", { class: "number" }, decimals(cosine)),
    share === null ? null : element("td", { class: "number share" }, share));
  }

  // A row's patch, cut out of the picture.
  cutPatches() {
    const { model } = this, [rows, columns] = model.grid;
    const cut = () => {
      const w = this.image.naturalWidth / columns, h = this.image.naturalHeight / rows;
      for (const canvas of this.why.querySelectorAll("canvas[data-patch]")) {
        const patch = Number(canvas.dataset.patch);
        canvas.getContext("2d").drawImage(this.image, (patch % columns) * w, Math.floor(patch / columns) * h, w, h, 0, 0, 40, 40);
      }
    };
    if (this.image.complete && this.image.naturalWidth) cut();
    else this.image.addEventListener("load", cut, { once: true });
  }

  async showTexts() {
    const { app } = this, image = this.shown;
    if (!this.fits.open || this.fitsOf === image) return;
    const lists = await app.feed.textsOf(image, 5).catch((error) => app.trouble(error));
    if (!lists || image !== this.shown) return;
    this.fitsOf = image;
    const own = app.isUpload(image) ? null : app.data.own[image];
    this.fitting.replaceChildren(...lists[this.number].map(([text, score]) =>
      element("li", { class: own !== null && app.data.texts[own] === text ? "own" : "" }, element("span", {}, decimals(score)),
        element("button", { type: "button", class: "link", on: { click: () => app.search(text, { image }) } }, text))));
  }

  // ---- mouse and keys -------------------------------------------------------------------------------

  clicked(event) {
    const { app, model } = this, [rows, columns] = model.grid;
    if (!rows) return;
    const box = this.canvas.getBoundingClientRect();
    let patch = app.state.patch ?? 0;
    if (event.detail > 0) {
      const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
      patch = Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
      if (patch === app.state.patch) patch = null;
    }
    app.choose({ patch });
  }

  moved(event) {
    const { app, model } = this, [rows, columns] = model.grid, now = app.state.patch;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !rows) return;
    event.preventDefault();
    if (now === null) return app.choose({ patch: 0 });
    const row = Math.min(Math.max(Math.floor(now / columns) + step[0], 0), rows - 1);
    const column = Math.min(Math.max((now % columns) + step[1], 0), columns - 1);
    app.choose({ patch: row * columns + column });
  }

  stepped(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const card = event.target.closest(".card");
    if (!step || !card) return;
    event.preventDefault();
    const cards = [...this.grid.querySelectorAll(".card")], next = cards[cards.indexOf(card) + step];
    if (!next) return;
    next.focus();
    this.app.choose({ image: this.app.imageOf(next.dataset.image) });
  }
}
