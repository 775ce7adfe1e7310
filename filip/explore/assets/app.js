"use strict";
// The page: its state, which is also its address, and what happens when a part of it changes.

const VIEWS = ["words", "numbers", "plain"];
const THEMES = ["auto", "light", "dark"];
const FIRST_SHOWN = 12;

class App {
  constructor(data) {
    this.data = data;
    this.feed = new StaticFeed(data);
    this.mostShown = 60;
    this.uploads = [];
    this.state = { text: "", image: null, token: null, name: null, patch: null, view: "words", shown: FIRST_SHOWN, theme: "auto" };
    this.hovered = null;
    this.searches = 0;
    this.panels = [];
    this.field = new SearchField(this);
    this.prepare();
  }

  // ---- what is shown --------------------------------------------------------------------------------

  shown() {
    const choice = this.hovered ?? { token: this.state.token, name: this.state.name };
    return { view: this.state.view, patch: this.state.patch, choice };
  }

  isUpload(image) {
    return typeof image === "string";
  }

  imageOf(text) {
    return /^\d+$/.test(text) ? Number(text) : text;
  }

  alternative(image) {
    return this.isUpload(image) ? "your picture" : this.data.images[image];
  }

  // Whether the text is the image's own caption.
  isOwn(image, text = this.state.text) {
    const own = this.data.own[image] ?? null;
    return own !== null && this.data.texts[own] === text;
  }

  // The image whose caption is the text; null if none or several have it.
  ownImage(text = this.state.text) {
    const found = this.data.images.map((_, image) => image).filter((image) => this.isOwn(image, text));
    return found.length === 1 ? found[0] : null;
  }

  imagesShown(number) {
    return [...this.uploads, ...this.result.models[number].order.slice(0, this.state.shown)];
  }

  // The model whose tokens are the chips: the one that sees most of them.
  get speaker() {
    return this.result.models.reduce((best, model) => (model.tokens.length > best.tokens.length ? model : best));
  }

  // ---- changes --------------------------------------------------------------------------------------

  // Looks for a text. keep: parts of the state that outlive it, such as the image.
  async search(text, keep = {}) {
    const turn = ++this.searches;
    document.body.setAttribute("aria-busy", "true");
    try {
      const result = await this.feed.search(text);
      if (turn !== this.searches) return;
      const fresh = { text, image: null, token: null, name: null, patch: null, shown: FIRST_SHOWN, ...keep };
      fresh.image ??= this.uploads[0] ?? this.ownImage(text);
      await this.loadMaps(result, fresh);
      if (turn !== this.searches) return;
      Object.assign(this.state, fresh);
      this.result = result;
      this.field.show(text);
      this.say(this.unknownWords(result));
      this.renderModels();
      this.renderChips();
      this.remember();
    } catch (error) {
      this.trouble(error);
    } finally {
      if (turn === this.searches) document.body.removeAttribute("aria-busy");
    }
  }

  // Which words of the text a model of the page never learned: they count as nothing, but in a caption without others.
  unknownWords(result) {
    const unknown = result.models.flatMap((model) => model.unknown.map((word) => [word, model])), words = new Set(unknown.map(([word]) => word.label));
    const counted = unknown.some(([word, model]) => word.tokens.some((token) => model.counted.includes(token)));
    return words.size ? `Never learned${counted ? "" : ", and not counted"}: ${[...words].join(", ")}.` : "";
  }

  async loadMaps(result, state) {
    for (let number = 0; number < result.models.length; number++) {
      await this.feed.look(result, [...this.uploads, ...(state.image === null ? [] : [state.image]), ...result.models[number].order.slice(0, state.shown)], number);
    }
  }

  // Another image, token, name, patch or view.
  async choose(change) {
    const before = { ...this.state };
    if (change.image !== undefined && change.image !== before.image) {
      await this.feed.look(this.result, [change.image]).catch((error) => this.trouble(error));
      change = { patch: null, ...change };
    }
    Object.assign(this.state, change);
    if (this.state.image !== before.image) this.panels.forEach((panel) => panel.render());
    else this.panels.forEach((panel) => panel.redraw());
    this.renderChips();
    this.remember();
  }

  toggleToken(token) {
    this.choose({ token: this.state.token === token ? null : token, name: null });
  }

  toggleName(name) {
    this.choose({ name: this.state.name === name ? null : name, token: null });
  }

  hover(choice) {
    this.hovered = choice;
    this.panels.forEach((panel) => panel.paint());
    this.renderLegend();
  }

  async showMore() {
    this.state.shown = Math.min(this.state.shown + 24, this.mostShown);
    await this.loadMaps(this.result, this.state);
    this.panels.forEach((panel) => { panel.renderRanking(); panel.redraw(); });
    this.remember();
  }

  async upload(file) {
    if (!file) return;
    this.say("Looking at the picture …");
    try {
      const image = await this.feed.upload(file);
      this.uploads.unshift(image);
      await this.search(this.state.text, { image });
    } catch (error) {
      this.trouble(error);
    }
  }

  // ---- drawing what is around the columns -----------------------------------------------------------

  renderModels() {
    const models = document.getElementById("models");
    if (this.panels.length !== this.result.models.length) {
      this.panels = this.result.models.map((_, number) => new Panel(this, number));
      models.style.setProperty("--n", String(this.panels.length));
      models.replaceChildren(...this.panels.map((panel) => panel.section));
    }
    this.panels.forEach((panel) => panel.render());
  }

  renderChips() {
    const { speaker, state } = this, items = [], done = new Set();
    const chip = (token) => element("button", {
      type: "button", class: `chip${isSpecial(speaker.tokens[token]) ? " special" : ""}${speaker.unknown.some((word) => word.tokens.includes(token)) ? " unseen" : ""}`, "data-token": token,
      "aria-pressed": String(state.token === token),
      on: {
        click: () => this.toggleToken(token), mouseenter: () => this.hover({ token, name: null }),
        mouseleave: () => this.hover(null), focus: () => this.hover({ token, name: null }), blur: () => this.hover(null),
      },
    }, element("small", {}, String(token)), speaker.tokens[token]);
    speaker.tokens.forEach((_, token) => {
      if (done.has(token) || (isSpecial(speaker.tokens[token]) && state.view !== "numbers")) return;
      const name = nameOf(speaker, token);
      if (name < 0) return items.push(element("li", {}, chip(token)));
      const tokens = speaker.names[name].tokens, long = tokens.length > 1;
      tokens.forEach((one) => done.add(one));
      const whole = long ? element("button", {
        type: "button", class: "chip whole", "data-name": name, "aria-pressed": String(state.name === name),
        "aria-label": `all of ${speaker.names[name].label}`, title: `all of “${speaker.names[name].label}”`,
        on: {
          click: () => this.toggleName(name), mouseenter: () => this.hover({ token: null, name }), mouseleave: () => this.hover(null),
          focus: () => this.hover({ token: null, name }), blur: () => this.hover(null),
        },
      }, "●") : null;
      items.push(element("li", { class: `name${long ? " long" : ""}`, style: `--c: var(--c${name % COLOURS.length})` }, whole, ...tokens.map(chip)));
    });
    const focused = document.activeElement?.closest?.("#chips [data-token], #chips [data-name]");
    const again = focused && (focused.dataset.token !== undefined ? `[data-token="${focused.dataset.token}"]` : `[data-name="${focused.dataset.name}"]`);
    const chips = document.getElementById("chips");
    chips.replaceChildren(...items);
    if (again) chips.querySelector(again)?.focus();
    for (const radio of document.querySelectorAll("#views input")) radio.checked = radio.value === state.view;
    this.renderLegend();
  }

  renderLegend() {
    const { speaker } = this, { view, choice } = this.shown();
    const word = choice.token !== null ? speaker.tokens[choice.token] : choice.name !== null ? speaker.names[choice.name]?.label : null;
    document.getElementById("legend").textContent = view === "plain" ? "The pictures as they are."
      : view === "numbers" ? "Each patch has the number of its most similar token; it is coloured where that token "
        + (word === null ? "names a thing." : `is “${word}”.`)
        : word === null ? "The outlines are the patches on which a name stands out; a dot is a name's best patch, a ring one that does not stand out."
          : `The outline is where “${word}” stands out; the dot is its best patch, a ring if it does not stand out.`;
  }

  say(text, trouble = false) {
    const message = document.getElementById("message");
    message.textContent = text;
    message.classList.toggle("trouble", trouble);
  }

  trouble(error) {
    this.say(error.message, true);
  }

  // ---- the address ----------------------------------------------------------------------------------

  remember() {
    const { state } = this, parts = new URLSearchParams({ text: state.text });
    if (state.image !== null && !this.isUpload(state.image)) parts.set("image", state.image);
    for (const key of ["token", "name", "patch"]) if (state[key] !== null) parts.set(key, state[key]);
    if (state.view !== "words") parts.set("view", state.view);
    if (state.shown !== FIRST_SHOWN) parts.set("shown", state.shown);
    if (state.theme !== "auto") parts.set("theme", state.theme);
    if (`#${parts}` === location.hash) return;
    // Another text is a step that Back undoes; what is chosen within it is not.
    const before = new URLSearchParams(location.hash.slice(1)).get("text");
    history[before === null || before === state.text ? "replaceState" : "pushState"](null, "", `#${parts}`);
  }

  recalled() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const number = (key, limit) => {
      const value = parts.get(key);
      return value !== null && /^\d+$/.test(value) && Number(value) < limit ? Number(value) : null;
    };
    const view = parts.get("view"), theme = parts.get("theme");
    return {
      text: parts.get("text"), image: number("image", this.data.images.length), token: number("token", 1000),
      name: number("name", 8), patch: number("patch", 100000), shown: number("shown", this.mostShown + 1) ?? FIRST_SHOWN,
      view: VIEWS.includes(view) ? view : "words", theme: THEMES.includes(theme) ? theme : "auto",
    };
  }

  async start() {
    const wanted = this.recalled();
    this.state.view = wanted.view;
    this.setTheme(wanted.theme);
    const text = wanted.text && this.feed.knows(wanted.text) ? wanted.text : this.data.texts[this.data.opening] ?? "a photo";
    const same = text === wanted.text, keep = { shown: Math.max(1, wanted.shown) };
    await this.search(text, same ? { ...keep, image: wanted.image, token: wanted.token, name: wanted.name, patch: wanted.patch } : {});
    if (wanted.text && !same) this.say(`This page has no caption “${wanted.text}”.`, true);
  }

  setTheme(theme) {
    this.state.theme = theme;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    document.getElementById("theme").textContent = `Theme: ${theme}`;
  }

  // ---- what the page listens to ---------------------------------------------------------------------

  prepare() {
    const { data } = this, many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
    document.title = `${data.title}: FILIP explorer`;
    document.getElementById("about").textContent = `${data.title}: ${many(data.images.length, "image")}, `
      + `${many(data.texts.length, "caption")}; this page works without a server`;
    document.getElementById("feed-note").textContent = this.feed.anyText
      ? "Everything is inside this file: the models, and the pictures' tokens as 8-bit numbers. Your texts and pictures stay here."
      : "Everything is inside this file: tokens of pictures and captions as 8-bit numbers, compared by the page itself. "
        + "A text of your own needs a model, which this page does not have.";
    document.getElementById("random").hidden = data.texts.length < 2;
    document.getElementById("random").addEventListener("click", () => this.random());
    document.getElementById("theme").addEventListener("click", () => {
      this.setTheme(THEMES[(THEMES.indexOf(this.state.theme) + 1) % THEMES.length]);
      this.remember();
    });
    document.getElementById("help-button").addEventListener("click", () => document.getElementById("help").showModal());
    document.getElementById("views").addEventListener("change", (event) => this.choose({ view: event.target.value }));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.start());
    new ResizeObserver(() => this.panels.forEach((panel) => panel.redraw())).observe(document.getElementById("models"));
    if (this.feed.anyPicture) this.acceptPictures();
  }

  acceptPictures() {
    const label = document.getElementById("upload"), input = label.querySelector("input");
    label.hidden = false;
    input.addEventListener("change", () => { this.upload(input.files[0]); input.value = ""; });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => { event.preventDefault(); this.upload(event.dataTransfer.files[0]); });
    document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) this.upload(event.clipboardData.files[0]); });
  }

  random() {
    const others = this.data.texts.filter((text) => text !== this.state.text);
    this.search(others[Math.floor(Math.random() * others.length)]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]") || document.querySelector("dialog[open]")) return;
    const { state } = this, count = this.result?.models.length ? this.speaker.tokens.length : 0;
    if (event.key === "/") { event.preventDefault(); document.getElementById("text").focus(); }
    else if (event.key === "?") document.getElementById("help").showModal();
    else if (event.key === "r") this.random();
    else if (event.key === "a") this.choose({ token: null, name: null });
    else if (event.key === "v") this.choose({ view: VIEWS[(VIEWS.indexOf(state.view) + 1) % VIEWS.length] });
    else if (event.key === "[" && count) this.choose({ token: ((state.token ?? 0) - 1 + count) % count, name: null });
    else if (event.key === "]" && count) this.choose({ token: ((state.token ?? -1) + 1) % count, name: null });
    else if (event.key === "Escape") this.choose(state.patch !== null ? { patch: null } : { token: null, name: null });
  }
}

window.app = new App(JSON.parse(document.getElementById("data").textContent));
app.start();
