// Elements from text only: nothing here can turn a string into markup.

/** An element with attributes (on… are listeners) and children (strings become text). */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set text only where it changed: selections and screen readers are left alone. */
export function say(node, text) {
  const value = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function tone(node, value) {
  if (node.dataset.tone !== value) node.dataset.tone = value;
}

/** A label whose colour only repeats what it says. */
export const pill = (text, kind) => el("span", { class: "tone", "data-tone": kind }, text);

/** Call `update` only when what it shows has changed. */
export function onChange(update) {
  let before;
  return (value, ...rest) => {
    const now = JSON.stringify(value);
    if (now === before) return;
    before = now;
    update(value, ...rest);
  };
}

/** Keeps a table's rows by key, so that focus and opened rows outlive an update.
 * Columns: {title, class, text(row)} or {title, node(row), same(row)}: `node` is made anew when `same` changes. */
export class Table {
  constructor(table, columns, empty) {
    this.columns = columns;
    this.rows = new Map();
    this.body = el("tbody");
    this.empty = el("tr", {}, el("td", { colspan: columns.length, class: "quiet" }, empty));
    const heads = columns.map((column) => el("th", { scope: "col", class: column.class }, column.title));
    table.append(el("thead", {}, el("tr", {}, ...heads)), this.body);
  }

  update(rows) {
    const wanted = new Set(rows.map((row) => row.key));
    for (const [key, entry] of this.rows) {
      if (!wanted.has(key)) {
        entry.row.remove();
        entry.below?.remove();
        this.rows.delete(key);
      }
    }
    let place = null;
    for (const row of rows) {
      let entry = this.rows.get(row.key);
      if (!entry) {
        const cells = this.columns.map((column) => el("td", { class: column.class }));
        entry = { row: el("tr", {}, ...cells), cells, seen: [] };
        this.rows.set(row.key, entry);
      }
      this.columns.forEach((column, index) => {
        if (column.text) return say(entry.cells[index], column.text(row));
        const same = column.same ? String(column.same(row)) : "";
        if (entry.seen[index] === same) return undefined;
        entry.seen[index] = same;
        return entry.cells[index].replaceChildren(column.node(row, entry));
      });
      const next = place ? place.nextSibling : this.body.firstChild;
      if (next !== entry.row) this.body.insertBefore(entry.row, next);
      place = entry.row;
      if (entry.below) {
        if (place.nextSibling !== entry.below) this.body.insertBefore(entry.below, place.nextSibling);
        place = entry.below;
      }
    }
    if (rows.length) this.empty.remove();
    else this.body.append(this.empty);
  }

  /** A row across all columns under another one; null takes it away. */
  under(key, node) {
    const entry = this.rows.get(key);
    if (!entry) return;
    entry.below?.remove();
    entry.below = node ? el("tr", {}, el("td", { colspan: this.columns.length }, node)) : null;
    if (entry.below) entry.row.after(entry.below);
  }
}
