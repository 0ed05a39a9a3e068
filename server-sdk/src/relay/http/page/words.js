// What people read: names of devices made harmless, sizes, and errors in plain words.

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;

/** A text from outside: no control or direction characters, and no more than `max` characters of it. */
export function plain(text, max = 256) {
  const all = Array.from(String(text ?? "").slice(0, max * 2));
  const cut = all.length > max ? [...all.slice(0, max - 1), "…"] : all;
  return cut.join("").replace(UNSEEN, "\ufffd").trim();
}

/** Makes an element. Whatever becomes its content does so as text. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = bytes / 1000;
  let unit = 0;
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

/** A relay's error: its code, its words, and when to come back. */
export class Problem extends Error {
  constructor(code, detail = "", more = {}) {
    super(detail || code);
    this.code = code;
    this.detail = plain(detail, 400);
    this.device = plain(more.device_detail, 400);
    this.after = more.after;
  }

  static read(status, text, after) {
    try {
      const json = JSON.parse(text);
      const code = /^urn:relay:error:([a-z-]+)$/.exec(json.type);
      if (code) return new Problem(code[1], json.detail, { ...json, after });
    } catch {
      // Not the relay's words: something in between answered.
    }
    return new Problem("no-answer", `status ${status}`, { after });
  }
}

const soon = (problem) => (problem.after > 0 ? `Try again in ${count(problem.after, "second", "seconds")}.` : "Try again in a moment.");
const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);
const says = (text, otherwise) => (text ? `The printer says: ${sentence(text)}` : otherwise);

const WORDS = {
  "bad-request": (p) => `The relay could not make sense of this: ${sentence(p.detail)}`,
  unauthenticated: () => "This key does not hold, or no longer does.",
  forbidden: () => "This key may not print here.",
  "unknown-device": () => "This printer is not there any more.",
  "unknown-app": () => "This device does not print.",
  "unknown-document": () => "That document is not on the server any more.",
  "unknown-request": () => "The relay no longer knows of this job.",
  "too-slow": () => "The document came too slowly and was given up. Nothing is printed but what the printer has already.",
  "too-large": () => "The document is too large.",
  "unsupported-media-type": (p, printer) => {
    const takes = printer?.formats.length ? ` It takes ${printer.formats.join(", ")}.` : "";
    return `This printer does not take this kind of file.${takes} Nothing was sent.`;
  },
  "device-error": (p) => says(p.detail, "The printer is in an error state."),
  "device-failed": (p) => says(p.device || p.detail, "The printer could not do it."),
  "already-answered": () => "It was too late to cancel: the job is over.",
  "too-many-requests": (p) => `That is more at once than the relay or the printer takes. ${soon(p)}`,
  "device-offline": () => "The printer is offline. Nothing was sent.",
  "device-asleep": () => "The printer is asleep and did not wake. Nothing was sent.",
  draining: (p) => `The relay is being restarted. ${soon(p)}`,
  overloaded: (p) => `The relay has no room just now. ${soon(p)}`,
  "store-unavailable": (p) => `The relay cannot reach its store. ${soon(p)}`,
  "route-unavailable": (p) => `The relay cannot reach the printer’s relay. ${soon(p)}`,
  "not-sent": () => "The printer could not be reached in time. Nothing was sent.",
  "device-timeout": () => "The printer stopped answering. It may have printed some or all of it: look before you print again.",
  interrupted: () => "The connection to the relay broke. It may have printed some or all of it: look before you print again.",
  "no-answer": (p) => `The relay did not answer (${p.detail}). ${soon(p)}`,
  unreadable: () => "The file cannot be read: it was moved or changed since you chose it. Choose it again.",
  unreachable: () => "The relay cannot be reached. Check your connection and try again.",
};

/** What went wrong, for people. */
export function words(problem, printer) {
  const own = Object.hasOwn(WORDS, problem.code) ? WORDS[problem.code] : undefined;
  return own ? own(problem, printer) : sentence(problem.detail || `Something went wrong (${plain(problem.code, 40)})`);
}
