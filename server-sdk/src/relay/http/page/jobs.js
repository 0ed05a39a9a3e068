// Jobs: sent a few at a time, watched to their end, cancelled.

import { Problem, element, plain, size, words } from "./words.js";

/** Jobs under way at once: a browser has six connections to a relay, and cancelling needs one, too. */
const AT_ONCE = 3;
const OVER = ["completed", "failed", "cancelled"];

export class Jobs {
  #parts;
  #announce;
  #waiting = [];
  #running = new Set();

  constructor(parts, announce) {
    this.#parts = parts;
    this.#announce = announce;
    parts.clear.addEventListener("click", () => {
      for (const row of parts.list.querySelectorAll("li[data-over]")) row.remove();
      this.#tidy();
      parts.title.focus();
    });
  }

  /** Jobs that are not over. */
  get active() {
    return this.#waiting.length + this.#running.size;
  }

  /** Prints `what` on `printer`. */
  add(relay, printer, what) {
    const job = new Job(relay, printer, what, this.#announce);
    this.#parts.list.prepend(job.row);
    this.#waiting.push(job);
    this.#tidy();
    this.#next();
    job.row.scrollIntoView({ block: "nearest" });
  }

  /** Gives up whatever runs. */
  clear() {
    for (const job of [...this.#waiting.splice(0), ...this.#running]) job.cancel();
    this.#parts.list.replaceChildren();
    this.#tidy();
  }

  #next() {
    while (this.#running.size < AT_ONCE && this.#waiting.length) {
      const job = this.#waiting.shift();
      if (job.over) continue;
      this.#running.add(job);
      job.run().finally(() => {
        this.#running.delete(job);
        this.#tidy();
        this.#next();
      });
    }
  }

  #tidy() {
    const { list, empty, clear } = this.#parts;
    empty.hidden = list.childElementCount > 0;
    clear.hidden = !list.querySelector("li[data-over]");
  }
}

/** A file that was moved or changed since it was chosen cannot be sent, and the browser would not say why. */
async function readable(body) {
  try {
    await body?.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("unreadable");
  }
}

class Job {
  #relay;
  #what;
  #printer;
  #announce;
  #call = null;
  #request = null;
  #cancelling = false;
  over = false;

  constructor(relay, printer, what, announce) {
    this.#relay = relay;
    this.#printer = printer;
    this.#what = what;
    this.#announce = announce;
    const about = `${what.name} on ${printer.title}`;
    this.bar = element("progress", { max: 1, value: 0, "aria-label": about });
    this.state = element("p", { className: "job-state" });
    this.stop = element("button", { type: "button", className: "quiet", "aria-label": `Cancel ${about}` }, "Cancel");
    this.stop.addEventListener("click", () => this.cancel());
    const title = element("p", { className: "job-title" }, element("bdi", { className: "job-name" }, what.name));
    title.append(element("bdi", { className: "job-where" }, printer.title));
    const text = element("div", { className: "job-text" }, title, this.state);
    this.row = element("li", { className: "job" }, text, this.stop, this.bar);
    this.#show("waiting", "Waiting for its turn");
  }

  async run() {
    const { what, relay, printer } = { what: this.#what, relay: this.#relay, printer: this.#printer };
    this.#show("sending", "Reaching the printer");
    try {
      await readable(what.body);
      if (this.over) return;
      this.#call = relay.print(printer.id, {
        ...what,
        told: (line) => this.#told(line),
        accepted: (id) => (this.#request = id),
      });
      const end = await this.#call.done;
      if (end.state === "failed") throw new Problem(end.code ?? "device-failed", end.detail ?? "", end);
      if (end.state === "cancelled") this.#end("cancelled", "Cancelled");
      else this.#end("completed", what.size ? `Printed, ${size(what.size)}` : "Printed");
    } catch (problem) {
      const known = problem instanceof Problem ? problem : new Problem("interrupted");
      this.#end("failed", words(known, printer));
    }
  }

  async cancel() {
    if (this.over || this.#cancelling) return;
    this.#cancelling = true;
    // Disabled, it would lose the focus to nobody.
    this.stop.setAttribute("aria-disabled", "true");
    if (!this.#call) {
      this.#end("cancelled", "Cancelled");
      return;
    }
    this.state.textContent = "Cancelling";
    if (!this.#request) {
      // Not taken by the printer yet: hanging up is cancelling.
      this.#call.hangUp();
      return;
    }
    try {
      await this.#relay.cancel(this.#request);
      // What is still on its way to the relay need not arrive.
      this.#call.hangUp();
    } catch (problem) {
      this.#cancelling = false;
      this.stop.removeAttribute("aria-disabled");
      if (!this.over) this.state.textContent = words(problem);
    }
  }

  #told({ state, bytes, note }) {
    if (this.over || this.#cancelling) return;
    const whole = this.#what.size;
    const part = whole ? Math.min(bytes / whole, 1) : undefined;
    switch (state) {
      case "uploading":
        if (part < 1) this.#show("sending", `Sending, ${size(bytes)} of ${size(whole)}`, part);
        else this.#show("sending", "Waiting for the printer");
        break;
      case "broken":
        if (this.row.dataset.state !== "broken") this.#announce(`${plain(this.#what.name, 80)}: the connection broke`);
        this.#show("broken", "The connection broke. Trying again");
        break;
      case "accepted":
        this.#show("sending", "The printer takes it", 0);
        break;
      case "sending":
        this.#show("sending", whole ? `Sending, ${size(bytes)} of ${size(whole)}` : `Sending, ${size(bytes)}`, part);
        break;
      case "processing":
        this.#show("processing", note ? `Printing: ${plain(note)}` : "Printing");
        break;
    }
  }

  #show(state, text, part) {
    this.row.dataset.state = state;
    if (this.state.textContent !== text) this.state.textContent = text;
    if (part === undefined) this.bar.removeAttribute("value");
    else this.bar.value = part;
    this.bar.hidden = state === "waiting" || OVER.includes(state);
  }

  #end(state, text) {
    this.over = true;
    this.#show(state, text);
    this.row.dataset.over = "";
    const focused = document.activeElement === this.stop;
    this.stop.remove();
    if (focused) document.getElementById("jobs-title").focus();
    this.#announce(`${plain(this.#what.name, 80)} on ${this.#printer.title}: ${text}`);
  }
}
