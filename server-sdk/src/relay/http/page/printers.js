// The list of printers: who is there, and who of them is chosen.

import { count, element, plain } from "./words.js";

const STATES = { online: "Online", offline: "Offline", asleep: "Asleep" };
const ORDER = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

const isPrinter = (device) => (device.apps ?? []).some((app) => String(app.name).toLowerCase() === "print");

export class Printers {
  #all = new Map();
  #parts;
  #announce;
  #changed;
  #more = false;

  constructor(parts, { announce, changed }) {
    this.#parts = parts;
    this.#announce = announce;
    this.#changed = changed;
    parts.find.addEventListener("input", () => this.#filter());
    parts.hide.addEventListener("change", () => this.#filter());
    parts.list.addEventListener("change", () => changed());
  }

  /** The printers that are chosen, in the order of the list. */
  get chosen() {
    return [...this.#all.values()].filter((printer) => printer.box.checked && !printer.box.disabled);
  }

  get(id) {
    return this.#all.get(id.toLowerCase());
  }

  focus() {
    const first = [...this.#parts.list.querySelectorAll("li:not([hidden]) input:not(:disabled)")][0];
    (first ?? this.#parts.find).focus();
  }

  clear() {
    this.#all.clear();
    this.#parts.list.replaceChildren();
    this.#parts.find.value = "";
  }

  /** Takes in the list as the relay gave it. */
  fill(devices, more) {
    this.#more = more;
    const seen = new Set();
    for (const device of devices.filter(isPrinter)) {
      const id = String(device.id);
      seen.add(id.toLowerCase());
      const printer = this.get(id) ?? this.#add(id);
      printer.title = plain(device.name) || plain(id);
      printer.formats = (device.formats ?? []).map((format) => plain(format, 80));
      const about = [device.model, device.location].map((text) => plain(text)).filter(Boolean);
      printer.name.textContent = printer.title;
      printer.about.replaceChildren(...about.flatMap((text, at) => [at ? " · " : "", element("bdi", {}, text)]));
      printer.about.hidden = !about.length;
      printer.words = [id, printer.title, ...about].join(" ").toLowerCase();
      this.#state(printer, device.state, device.epoch);
    }
    for (const [id, printer] of this.#all) {
      if (!seen.has(id)) {
        printer.row.remove();
        this.#all.delete(id);
      }
    }
    this.#sort();
    this.#filter();
  }

  /** Takes in an event. Whether the list should be read anew, since it may tell more. */
  presence({ device, state, epoch }) {
    const printer = this.get(String(device));
    if (!printer) return true;
    const before = printer.state;
    const newer = epoch > printer.epoch;
    this.#state(printer, state, epoch);
    if (before !== printer.state) {
      this.#filter();
      this.#announce(`${printer.title}: ${STATES[printer.state].toLowerCase()}`);
    }
    return newer;
  }

  #add(id) {
    const box = element("input", { type: "checkbox", value: id });
    const name = element("bdi", { className: "name" });
    const about = element("span", { className: "about" });
    const state = element("span", { className: "state" });
    const label = element("label", {}, box, element("span", { className: "who" }, name, about), state);
    const printer = { id, box, name, about, label: state, row: element("li", { className: "printer" }, label), epoch: -1 };
    this.#all.set(id.toLowerCase(), printer);
    return printer;
  }

  /** What is older than what is known changes nothing. */
  #state(printer, state, epoch) {
    if (epoch < printer.epoch) return;
    printer.epoch = epoch;
    printer.state = Object.hasOwn(STATES, state) ? state : "offline";
    printer.label.textContent = STATES[printer.state];
    printer.row.dataset.state = printer.state;
    const there = printer.state === "online";
    if (!there && printer.box.checked) {
      printer.box.checked = false;
      this.#announce(`${printer.title} is no longer chosen`);
    }
    if (printer.box.disabled === there && document.activeElement === printer.box && !there) this.#parts.find.focus();
    printer.box.disabled = !there;
  }

  /** By name, not by state: what moves under the pointer is chosen by mistake. */
  #sort() {
    const sorted = [...this.#all.entries()].sort(
      ([one, a], [other, b]) => ORDER.compare(a.title, b.title) || ORDER.compare(one, other),
    );
    this.#all = new Map(sorted);
    let place = this.#parts.list.firstElementChild;
    for (const [, { row }] of sorted) {
      if (row === place) place = place.nextElementSibling;
      else this.#parts.list.insertBefore(row, place);
    }
  }

  #filter() {
    const { find, hide, counted, empty } = this.#parts;
    const wanted = find.value.trim().toLowerCase();
    let online = 0;
    let shown = 0;
    for (const printer of this.#all.values()) {
      const there = printer.state === "online";
      online += there ? 1 : 0;
      // What is chosen is always seen.
      const fits = printer.box.checked || (printer.words.includes(wanted) && (there || !hide.checked));
      printer.row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    const all = this.#all.size;
    counted.textContent = all ? `${online} of ${all} online` : "";
    empty.hidden = shown > 0 && !this.#more;
    if (!all) empty.textContent = "No printer yet. It appears here as soon as one has registered with the relay.";
    else if (!shown && wanted) empty.textContent = "No printer is called so.";
    else if (!shown) empty.textContent = `${count(all, "printer is", "printers are")} known, none of them online.`;
    else empty.textContent = "There are more printers than this page shows.";
    this.#changed();
  }
}
