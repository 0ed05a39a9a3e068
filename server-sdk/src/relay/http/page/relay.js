// The relay's HTTP API, as far as this page needs it. The key goes into the Authorization header and nowhere else.

import { Problem } from "./words.js";

/** The longest silence on the stream of events: the relay shows a sign of life every 15 s. */
const SILENCE = 40_000;
const LONGEST_PAUSE = 30_000;
/** The longest time for which a job's connection may be gone: the relay waits a minute for the rest of a document. */
const PATIENCE = 60_000;
const LONGEST_PAUSE_OF_A_JOB = 4_000;
/** Errors of the way, not of the job. */
const PASSING = ["interrupted", "unreachable", "no-answer", "conflict", "draining", "overloaded", "too-slow", "too-many-requests"];
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
   * this machine, `{state: "broken"}` while the connection is lost, and `{state, bytes, code?}` as the relay says;
   * `accepted(id)` gets the request's ID.
   *
   * A browser tells nothing of an answer before it has sent all of a body. So the job is made first, and the document
   * announced: the job has its ID before the first byte, by which it is gone on with and cancelled.
   */
  print(device, what) {
    const hangUp = new AbortController();
    const done = this.#print(device, what, hangUp.signal).catch((problem) => {
      if (hangUp.signal.aborted) return { state: "cancelled" };
      throw problem;
    });
    return { done, hangUp: () => hangUp.abort() };
  }

  async #print(device, { query, body, type, size, told, accepted }, signal) {
    const request = await this.#make(device, { query, body, type, size }, signal);
    accepted(request);
    let from = body ? 0 : size;
    let heard = Date.now();
    let tries = 0;
    for (;;) {
      let after = 0;
      try {
        const listening = (line) => {
          heard = Date.now();
          tries = 0;
          told(line);
        };
        return await this.#goOn(request, body?.slice(from) ?? null, from, listening, signal);
      } catch (problem) {
        if (signal.aborted || !PASSING.includes(problem.code)) throw problem;
        if (Date.now() - heard > PATIENCE) throw new Problem("interrupted");
        told({ state: "broken" });
        after = (problem.after ?? 0) * 1000;
      }
      const longest = Math.min(LONGEST_PAUSE_OF_A_JOB, 250 * 2 ** tries);
      await pause(Math.max(after, longest * (0.5 + Math.random() / 2)), signal);
      tries += 1;
      try {
        const answer = await this.#call(`/v1/requests/${encodeURIComponent(request)}`, { signal });
        const about = await answer.json();
        if (answer.status === 200) return about;
        from = about.offset ?? size;
      } catch (problem) {
        if (signal.aborted || (problem instanceof Problem && !PASSING.includes(problem.code))) throw problem;
      }
    }
  }

  /** Makes a job; its ID. The printer has opened it then. */
  async #make(device, { query, body, type, size }, signal) {
    const path = `/v1/devices/${encodeURIComponent(device)}/apps/print?${new URLSearchParams(query)}`;
    const headers = body ? { "Content-Type": type, "Upload-Complete": "?0", "Upload-Length": String(size) } : {};
    let answer;
    try {
      answer = await this.#call(path, { method: "POST", headers, signal });
    } catch (problem) {
      // A document that the relay has already may be printed by now.
      throw problem.code === "unreachable" && !body ? new Problem("interrupted") : problem;
    }
    const request = answer.headers.get("Relay-Request-Id");
    if (!request) throw new Problem("no-answer", "no ID");
    // All that it goes on to tell is told to whoever goes on with the job.
    if (body) await answer.text().catch(() => {});
    else answer.body?.cancel().catch(() => {});
    return request;
  }

  /**
   * Sends the rest of a document, which begins at `from`, and tells how the job goes to its end.
   *
   * XMLHttpRequest, since fetch does not say how much of a body has gone.
   */
  #goOn(request, rest, from, told, signal) {
    const call = new XMLHttpRequest();
    const stop = () => call.abort();
    return new Promise((resolve, reject) => {
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
      call.upload.onprogress = (event) => told({ state: "uploading", bytes: from + event.loaded });
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
      call.onerror = call.onabort = () => reject(new Problem("interrupted"));
      call.open("PATCH", `/v1/requests/${encodeURIComponent(request)}`);
      const headers = { "Content-Type": "application/partial-upload", "Upload-Offset": String(from) };
      for (const [name, value] of Object.entries({ ...this.#authorization, ...headers })) call.setRequestHeader(name, value);
      signal.addEventListener("abort", stop, { once: true });
      if (signal.aborted) stop();
      else call.send(rest);
    }).finally(() => signal.removeEventListener("abort", stop));
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
