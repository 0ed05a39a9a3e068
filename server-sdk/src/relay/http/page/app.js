// The page: signing in, choosing, printing.

import { Jobs } from "./jobs.js";
import { Printers } from "./printers.js";
import { Relay } from "./relay.js";
import { count, element, plain, size, words } from "./words.js";

const KEY = "relay.key";
const USER = "relay.user";
/** How long after an event the list is read anew: many printers may come back together. */
const SETTLE = 500;
/** Kinds of files that browsers do not know. */
const TYPES = { pdf: "application/pdf", pwg: "image/pwg-raster", urf: "image/urf", ps: "application/postscript", pcl: "application/vnd.hp-pcl", xps: "application/oxps" };

const $ = (id) => document.getElementById(id);

let session = null;

const jobs = new Jobs({ list: $("job-list"), empty: $("jobs-empty"), clear: $("clear"), title: $("jobs-title") }, announce);
const printers = new Printers(
  { list: $("printer-list"), find: $("find"), hide: $("hide"), counted: $("printers-count"), empty: $("printers-empty") },
  { announce, changed: chosen },
);

// --- Signing in and out ---------------------------------------------------------------------------------------------

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  fault("key", key ? "" : "Enter a key.");
  if (!key) return;
  // A header carries nothing else, and no key has anything else in it.
  if (!/^[\x21-\x7e]+$/.test(key)) {
    fault("key", "This is not a key: it has blanks or other characters that keys do not have.");
    return;
  }
  $("sign-in-button").disabled = true;
  try {
    await new Relay(key).check();
    sessionStorage.setItem(KEY, key);
    $("key").value = "";
    enter(key);
    $("desk-title").focus();
  } catch (problem) {
    fault("key", problem.code === "forbidden" ? "This is a device’s credential; a service’s key is needed." : words(problem));
  } finally {
    $("sign-in-button").disabled = false;
  }
});

$("sign-out").addEventListener("click", () => {
  if (jobs.active && !confirm(`${count(jobs.active, "job is", "jobs are")} still under way and will be cancelled.`)) return;
  leave("");
});

function enter(key) {
  session = { relay: new Relay(key), watching: null, refresh: null };
  $("gate").hidden = true;
  $("workspace").hidden = false;
  $("user").value = sessionStorage.getItem(USER) ?? "";
  live("connecting");
  watch();
  offerDocuments(session);
}

function leave(why) {
  session?.watching?.abort();
  clearTimeout(session?.refresh);
  session = null;
  sessionStorage.removeItem(KEY);
  jobs.clear();
  printers.clear();
  $("order").reset();
  for (const field of ["printers", "document", "copies"]) fault(field, "");
  source();
  $("workspace").hidden = true;
  $("gate").hidden = false;
  fault("key", why);
  $("key").focus();
}

// --- Who is there ---------------------------------------------------------------------------------------------------

function watch() {
  const mine = session;
  if (!mine || mine.watching) return;
  const watching = (mine.watching = new AbortController());
  mine.relay.watch({
    signal: watching.signal,
    opened: async (resumed) => {
      if (!resumed) await refresh(mine, watching.signal);
      live("live");
    },
    event: (event) => {
      if (!printers.presence(event) || mine.refresh) return;
      mine.refresh = setTimeout(() => {
        mine.refresh = null;
        refresh(mine, watching.signal).catch(() => {});
      }, SETTLE);
    },
    lost: (problem) => {
      if (mine !== session) return;
      if (problem.code === "unauthenticated") leave(words(problem));
      else live("lost");
    },
  });
}

async function refresh(mine, signal) {
  const { devices, more } = await mine.relay.devices(signal);
  if (mine === session) printers.fill(devices, more);
}

// Tabs that nobody looks at keep no connection: a browser has six to a relay, for all tabs together.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    session?.watching?.abort();
    if (session) session.watching = null;
  } else {
    watch();
  }
});

const LIVE = { connecting: "Connecting", live: "Live", lost: "Reconnecting" };

function live(state) {
  const shown = $("live");
  if (shown.dataset.live === state && shown.textContent === LIVE[state]) return;
  shown.dataset.live = state;
  shown.textContent = LIVE[state];
}

// --- What is printed ------------------------------------------------------------------------------------------------

async function offerDocuments(mine) {
  const documents = await mine.relay.documents();
  if (mine !== session || !documents?.length) return;
  $("document").replaceChildren(
    element("option", { value: "" }, "Choose a document"),
    ...documents.map((kept) => {
      const option = element("option", { value: String(kept.name) }, plain(kept.name));
      option.dataset.bytes = kept.bytes;
      return option;
    }),
  );
  $("sources").hidden = false;
}

function source() {
  const kept = !$("sources").hidden && document.querySelector("[name=source]:checked").value === "kept";
  $("own").hidden = kept;
  $("kept").hidden = !kept;
  return kept ? "kept" : "own";
}

$("sources").addEventListener("change", () => {
  source();
  nameHint();
  fault("document", "");
});

$("document").addEventListener("change", () => {
  nameHint();
  fault("document", "");
});

/** A job is called after its document, unless somebody says otherwise. */
function nameHint() {
  const what = source() === "kept" ? keptDocument() : ownDocument();
  $("job-name").placeholder = what?.name ?? "The document’s name";
}

$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  $("file-hint").textContent = file ? `${size(file.size)}, ready to print.` : "Choose a file, or drop one here.";
  nameHint();
  if (file) fault("document", "");
});

for (const kind of ["dragenter", "dragover"]) {
  $("own").addEventListener(kind, (event) => {
    event.preventDefault();
    $("own").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) $("own").addEventListener(kind, () => $("own").classList.remove("over"));
$("own").addEventListener("drop", (event) => {
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  $("file").files = event.dataTransfer.files;
  $("file").dispatchEvent(new Event("change"));
});

function chosen() {
  const wanted = printers.chosen;
  const where = wanted.length === 1 ? ` on ${plain(wanted[0].title, 40)}` : wanted.length ? ` on ${wanted.length} printers` : "";
  $("print").textContent = `Print${where}`;
  if (wanted.length) fault("printers", "");
}

$("order").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = printers.chosen;
  const copies = $("copies").valueAsNumber;
  const what = source() === "kept" ? keptDocument() : ownDocument();
  const copiesFine = Number.isInteger(copies) && copies >= 1 && copies <= 999;
  fault("printers", wanted.length ? "" : "Choose a printer that is online.");
  fault("document", what ? "" : source() === "kept" ? "Choose a document." : "Choose a file.");
  fault("copies", copiesFine ? "" : "Copies are a number from 1 to 999.");
  if (!wanted.length) return printers.focus();
  if (!what) return (source() === "kept" ? $("document") : $("file")).focus();
  if (!copiesFine) return $("copies").focus();

  const user = $("user").value.trim();
  sessionStorage.setItem(USER, user);
  const name = plain($("job-name").value, 128) || what.name;
  const query = { ...what.query, job_name: name, ...(user && { user }), ...(copies > 1 && { copies: String(copies) }) };
  for (const printer of wanted) jobs.add(session.relay, printer, { ...what, name, query });
  announce(`Printing ${plain(name, 80)} on ${count(wanted.length, "printer", "printers")}`);
});

function ownDocument() {
  const file = $("file").files[0];
  if (!file) return null;
  const ending = file.name.slice(file.name.lastIndexOf(".") + 1).toLowerCase();
  const type = file.type || TYPES[ending] || "application/octet-stream";
  return { name: plain(file.name, 128) || "Document", body: file, type, size: file.size, query: {} };
}

function keptDocument() {
  const option = $("document").selectedOptions[0];
  if (!option?.value) return null;
  return { name: option.textContent, body: null, size: Number(option.dataset.bytes), query: { document: option.value } };
}

// --- Words ----------------------------------------------------------------------------------------------------------

function fault(field, text) {
  const place = $(`${field}-error`);
  if (place.textContent !== text) place.textContent = text;
  const input = { key: $("key"), copies: $("copies"), document: source() === "kept" ? $("document") : $("file") }[field];
  if (text) input?.setAttribute("aria-invalid", "true");
  else input?.removeAttribute("aria-invalid");
}

function announce(text) {
  const announcer = $("announcer");
  announcer.append(element("span", {}, `${text}. `));
  while (announcer.childElementCount > 20) announcer.firstElementChild.remove();
}

addEventListener("beforeunload", (event) => {
  if (jobs.active) event.preventDefault();
});

const key = sessionStorage.getItem(KEY);
if (key) {
  enter(key);
} else {
  $("gate").hidden = false;
  $("key").focus();
}
