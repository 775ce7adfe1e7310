"use strict";
// The field in which a text is written, or one of the captions found by a part of it.

const MOST_CHOICES = 50;

class SearchField {
  constructor(app) {
    this.app = app;
    this.input = document.getElementById("text");
    this.list = document.getElementById("choices");
    this.active = -1;
    this.lower = app.data.texts.map((text) => text.toLowerCase());
    this.input.placeholder = app.feed.anyText ? "Any text, or a part of a caption" : "A part of a caption";
    this.input.addEventListener("input", () => this.open());
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("click", () => this.open(""));
    this.input.addEventListener("blur", () => this.close());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    document.getElementById("search").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
  }

  matches(part) {
    const wanted = part.trim().toLowerCase(), found = [];
    this.lower.forEach((text, index) => { if (text.includes(wanted)) found.push(index); });
    return found;
  }

  open(part = this.input.value) {
    const found = this.matches(part), wanted = part.trim().toLowerCase();
    this.choices = found.slice(0, MOST_CHOICES).map((index) => this.app.data.texts[index]);
    this.active = -1;
    const items = this.choices.map((text, n) => {
      const at = text.toLowerCase().indexOf(wanted), end = at + wanted.length;
      return element("li", { role: "option", id: `choice-${n}`, "aria-selected": "false", on: { click: () => this.take(text) } },
        text.slice(0, at), element("mark", {}, text.slice(at, end)), text.slice(end));
    });
    if (found.length > MOST_CHOICES) {
      items.push(element("li", { class: "more", role: "presentation" }, `and ${(found.length - MOST_CHOICES).toLocaleString("en")} more`));
    }
    this.list.replaceChildren(...items);
    this.list.hidden = items.length === 0;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    this.list.hidden = true;
    this.active = -1;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  key(event) {
    if (event.key === "Escape") {
      if (this.list.hidden) this.input.blur();
      this.close();
      event.stopPropagation();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (this.list.hidden) return this.open();
      const items = this.list.querySelectorAll("[role=option]"), step = event.key === "ArrowDown" ? 1 : -1;
      if (!items.length) return;
      items[this.active]?.setAttribute("aria-selected", "false");
      this.active = (this.active + step + items.length + (this.active < 0 && step < 0 ? 1 : 0)) % items.length;
      items[this.active].setAttribute("aria-selected", "true");
      items[this.active].scrollIntoView({ block: "nearest" });
      this.input.setAttribute("aria-activedescendant", `choice-${this.active}`);
    }
  }

  submit() {
    const text = this.active >= 0 && !this.list.hidden ? this.choices[this.active] : this.input.value.trim();
    if (!text) return this.open("");
    if (this.app.feed.knows(text)) return this.take(text);
    const found = this.matches(text);
    if (found.length) return this.take(this.app.data.texts[found[0]]);
    this.close();
    this.app.say(`No caption of this page contains “${text}”, and a text of your own needs a model, `
      + "which this page does not have.", true);
  }

  take(text) {
    this.close();
    this.app.search(text);
  }

  show(text) {
    if (this.input.value !== text) this.input.value = text;
  }
}
