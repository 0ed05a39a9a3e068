// The relay's HTTP API, as far as this page needs it. The key goes into the Authorization header and nowhere else.

import { Problem } from "./words.js";

/** The longest silence on the stream of events: the relay shows a sign of life every 15 s. */
const SILENCE = 40_000;
const LONGEST_PAUSE = 30_000;
/** Devices that the page holds. */
const MOST_DEVICES = 1000;

const pause = (time, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, time);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

const after = (headers) => Number.parseInt(headers.get("Retry-After") ?? "", 10) || 0;

export class Relay {
  #key;

  constructor(key) {
    this.#key = key;
  }

  get #authorization() {
    return { Authorization: `Bearer ${this.#key}` };
  }

  async #call(path, options = {}) {
    let answer;
    try {
      answer = await fetch(path, {
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        ...options,
        headers: { ...this.#authorization, ...options.headers },
      });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("unreachable");
    }
    if (answer.ok) return answer;
    throw Problem.read(answer.status, await answer.text().catch(() => ""), after(answer.headers));
  }

  /** Whether the key holds. */
  async check() {
    await this.#call("/v1/devices?limit=1");
  }

  /** All devices that the key may see, as far as the page holds them, and whether there are more. */
  async devices(signal) {
    const devices = [];
    let cursor = null;
    do {
      const query = new URLSearchParams({ limit: "250", ...(cursor && { cursor }) });
      const page = await (await this.#call(`/v1/devices?${query}`, { signal })).json();
      devices.push(...page.devices);
      cursor = page.next;
    } while (cursor && devices.length < MOST_DEVICES);
    return { devices: devices.slice(0, MOST_DEVICES), more: Boolean(cursor) };
  }

  /** The documents kept on the server; null if it keeps none. */
  async documents() {
    try {
      const list = await (await this.#call("/v1/documents")).json();
      return Array.isArray(list.documents) ? list.documents : null;
    } catch {
      return null;
    }
  }

  /**
   * Watches presence until `signal` says to stop. `opened(resumed)` is awaited each time that the stream stands, before
   * any event is given: unless it was resumed, events were missed and the list is to be read anew.
   */
  async watch({ signal, opened, event, lost }) {
    let last = null;
    let failures = 0;
    while (!signal.aborted) {
      const quiet = new AbortController();
      const stop = () => quiet.abort();
      signal.addEventListener("abort", stop, { once: true });
      let timer;
      const heard = () => {
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE);
      };
      let problem = new Problem("interrupted");
      try {
        heard();
        const headers = last === null ? {} : { "Last-Event-ID": last };
        const answer = await this.#call("/v1/events?type=presence", { headers, signal: quiet.signal });
        await opened(last !== null);
        for await (const block of blocks(answer.body, heard)) {
          failures = 0;
          if (block.id !== undefined) last = block.id;
          if (block.event === "reset") await opened(false);
          else if (block.event === "presence") event(JSON.parse(block.data));
        }
      } catch (error) {
        if (error instanceof Problem) problem = error;
      } finally {
        clearTimeout(timer);
        signal.removeEventListener("abort", stop);
        quiet.abort();
      }
      if (signal.aborted) return;
      lost(problem);
      const longest = Math.min(LONGEST_PAUSE, 1000 * 2 ** failures);
      failures += 1;
      await pause(Math.max((problem.after ?? 0) * 1000, longest * (0.5 + Math.random() / 2)), signal);
    }
  }

  /**
   * Sends a document to a printer. `told` hears how far it is: `{state: "uploading", bytes}` while the document leaves
   * this machine, then `{state, bytes, code?}` as the relay says; `accepted(id)` gets the request's ID.
   *
   * XMLHttpRequest, since fetch does not say how much of a body has gone.
   */
  print(device, { query, body, type, told, accepted }) {
    const call = new XMLHttpRequest();
    const done = new Promise((resolve, reject) => {
      let begun = false;
      let read = 0;
      let last = null;
      const lines = () => {
        if (call.status !== 200) return;
        let end;
        while ((end = call.responseText.indexOf("\n", read)) >= 0) {
          const line = call.responseText.slice(read, end).trim();
          read = end + 1;
          if (line) told((last = JSON.parse(line)));
        }
      };
      const guarded = (step) => () => {
        try {
          step();
        } catch {
          reject(new Problem("interrupted"));
          call.abort();
        }
      };
      call.upload.onprogress = (event) => {
        begun = true;
        told({ state: "uploading", bytes: event.loaded });
      };
      call.onreadystatechange = guarded(() => {
        const id = call.readyState === 2 && call.getResponseHeader("Relay-Request-Id");
        if (id) accepted(id);
      });
      call.onprogress = guarded(lines);
      call.onload = guarded(() => {
        if (call.status !== 200) {
          const retry = Number.parseInt(call.getResponseHeader("Retry-After") ?? "", 10) || 0;
          reject(Problem.read(call.status, call.responseText, retry));
          return;
        }
        lines();
        if (last && ["completed", "failed", "cancelled"].includes(last.state)) resolve(last);
        else reject(new Problem("interrupted"));
      });
      call.onerror = () => reject(new Problem(begun ? "interrupted" : "unreachable"));
      call.onabort = () => resolve({ state: "cancelled", bytes: last?.bytes ?? 0 });
    });
    call.open("POST", `/v1/devices/${encodeURIComponent(device)}/apps/print?${new URLSearchParams(query)}`);
    for (const [name, value] of Object.entries(this.#authorization)) call.setRequestHeader(name, value);
    if (body) call.setRequestHeader("Content-Type", type);
    call.send(body);
    return { done, hangUp: () => call.abort() };
  }

  /** Cancels a job. */
  async cancel(request) {
    await this.#call(`/v1/requests/${encodeURIComponent(request)}`, { method: "DELETE" });
  }
}

/** The blocks of a stream of Server-Sent Events. */
async function* blocks(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const block = {};
        for (const line of text.slice(0, end).split("\n")) {
          const at = line.indexOf(": ");
          if (at > 0) block[line.slice(0, at)] = line.slice(at + 2);
        }
        text = text.slice(end + 2);
        yield block;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
