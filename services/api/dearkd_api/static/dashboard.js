"use strict";
const EVERY_MS = 2000, SHOWN = 20, ENDED = ["succeeded", "failed", "canceled"];
const curves = new Map();      // run → its metrics so far
const drawn = new Map();       // card → the HTML it shows, so that only what changed is drawn again
const pictured = new Set();    // jobs of which there is a live picture, or was: nothing is asked for that would be a 404
const pictures = new Map();    // path → its image, which outlives the drawing of its card

// With the API key, where the server wants one: asked for once, and kept for as long as the tab.
let declined = false;
async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  if (answer.status !== 401) return answer;
  if (!declined && sessionStorage.getItem("key") === key) {  // or another request has asked meanwhile
    const given = (prompt("This server asks for an API key:") || "").replace(/[^!-~]/g, "");
    if (given) sessionStorage.setItem("key", given); else declined = true;
  }
  return sessionStorage.getItem("key") === key ? answer : ask(path, options);
}
const get = async (path) => {
  const answer = await ask(path);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer.json();
};
const text = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const short = (value) => typeof value !== "number" ? text(value)
  : Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(4).replace(/\.?0+$/, "");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const duration = (s) => s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
const seconds = (from, to) => (new Date(to || Date.now()) - new Date(from)) / 1000;
const ago = (moment) => `${duration(Math.max(0, seconds(moment)))} ago`;

function facts(job) {
  const { done, total, unit, per_second, eta_seconds } = job.progress;
  const said = [`<b class="number">${short(done)}${total === null ? "" : ` / ${short(total)}`}</b> ${unit}`];
  if (job.status === "running" && per_second) said.push(`${short(per_second)} ${unit}/s`);
  if (job.status === "running" && eta_seconds) said.push(`${duration(eta_seconds)} left`);
  if (job.started_at) said.push(`${job.finished_at ? "took" : "for"} ${duration(seconds(job.started_at, job.finished_at))}`);
  else said.push(`posted ${ago(job.created_at)}`);
  if (job.attempt > 1) said.push(`attempt ${job.attempt}`);
  return said.map((fact) => `<span>${fact}</span>`).join("");
}

function metrics(job) {
  return Object.entries(job.metrics || {}).filter(([, value]) => ["number", "string"].includes(typeof value)).slice(0, 10)
    .map(([name, value]) => `<span>${text(name)} <span class="number">${short(value)}</span></span>`).join("");
}

function line(values, low, high, kind) {
  const points = values.map((y, i) => y === null ? null
    : `${(i / Math.max(1, values.length - 1) * 240).toFixed(1)} ${(92 - (y - low) / (high - low || 1) * 84).toFixed(1)}`);
  const known = points.filter((point) => point !== null);
  return known.length ? `<path class="${kind}" d="M${known.join("L")}"/>` : "";
}

// The training loss over its own range, and the evaluation's accuracy over [0, 1].
function curve(rows) {
  const number = (row, name) => typeof row[name] === "number" ? row[name] : null;
  const name = ["loss", "train_loss", "total"].find((n) => rows.some((row) => number(row, n) !== null));
  const losses = name ? rows.map((row) => number(row, name)) : [], known = losses.filter((y) => y !== null);
  const top1 = rows.map((row) => number(row, "eval_top1") ?? number(row, "holdout_top1"));
  const last = (values) => values.filter((y) => y !== null).at(-1);
  if (rows.length < 2) return "";
  return `<figure><svg class="curve" viewBox="0 0 240 96" preserveAspectRatio="none" role="img" aria-label="loss by epoch">
    <line x1="0" y1="92" x2="240" y2="92"/>${known.length ? line(losses, Math.min(...known), Math.max(...known), "loss") : ""}
    ${line(top1, 0, 1, "eval")}</svg><figcaption class="soft">
    ${known.length ? `<span class="key">${name} ${short(last(losses))}</span>` : ""}
    ${last(top1) === undefined ? "" : `<span class="key eval">top-1 ${percent(last(top1))}</span>`}</figcaption></figure>`;
}

function card(job) {
  const { done, total } = job.progress, width = total ? Math.min(100, 100 * done / total) : 0;
  const name = job.spec.name ? `<b>${text(job.spec.name)}</b>` : "";
  const button = !ENDED.includes(job.status) && job.status !== "canceling" ? "cancel"
    : ["failed", "canceled"].includes(job.status) ? "retry" : null;
  const from = job.kind === "training" ? `on <code>${text(job.spec.dataset)}</code>` : `from <code>${text(job.spec.teacher)}</code>`;
  const side = job.kind === "training" ? curve(curves.get(job.id) || [])
    : picturesOf(job);
  return `<div class="title"><span class="status ${job.status}">${job.status}</span>${name}
      <a href="${job.links.self}"><code>${job.id}</code></a>
      ${button ? `<button data-post="${job.links[button]}">${button}</button>` : ""}</div>
    <div class="soft">${from}${job.result ? ` → <a href="${job.links.dataset || job.links.model}"><code>${text(Object.values(job.result)[0])}</code></a>` : ""}</div>
    <div class="bar ${job.status}"><div data-percent="${width}"></div></div>
    <div class="facts soft">${facts(job)}</div>
    ${job.error ? `<div class="error">${text(job.error.code)}: ${text(job.error.message)}</div>` : `<div class="facts soft">${metrics(job)}</div>`}
    <div class="side">${side}</div>`;
}

// While it runs the images at work; then how the first batch came to be, and the grid.
function picturesOf(job) {
  if (job.metrics.first_preview_seconds !== undefined) pictured.add(job.id);
  if (!ENDED.includes(job.status)) return pictured.has(job.id) ? picture(job.links.live, "the images at work, as they are now") : "";
  const film = pictured.has(job.id) && job.result ? picture(job.links.timelapse, "the first batch, from noise to images") : "";
  const some = job.result || job.progress.done >= job.spec.shard_samples || (job.error || {}).code === "poor_images";
  return film + (some ? picture(job.links.preview, "a grid of the images") : "");
}

function show(id, html) {
  if (drawn.get(id) === html) return;
  drawn.set(id, html);
  const place = document.getElementById(id);
  place.innerHTML = html;
  place.querySelectorAll("img[data-path]").forEach((image) => {
    const known = pictures.get(image.dataset.path);
    if (known) return image.replaceWith(known);
    pictures.set(image.dataset.path, image);
    fetchPicture(image);
  });
  // The page's policy forbids styles inside of HTML; a script may set them.
  place.querySelectorAll("[data-percent]").forEach((bar) => { bar.style.width = `${bar.dataset.percent}%`; });
}

// Hidden until its bytes are there, so that none is shown as broken.
const picture = (path, alt) => `<img class="preview" hidden alt="${alt}" data-path="${path}">`;

// By a request of ours, since an image's own would bear no key.
async function fetchPicture(image) {
  const { path, etag } = image.dataset;
  const answer = await ask(path, etag ? { headers: { "If-None-Match": etag } } : {}).catch(() => null);
  if (!answer || !answer.ok) return;  // not there yet, gone, or the same: what is shown stays
  const url = URL.createObjectURL(await answer.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  image.dataset.etag = answer.headers.get("ETag");
  image.src = url;
  image.hidden = false;
}

const fetchPicturesIn = (place) => place.querySelectorAll("img[data-path]").forEach(fetchPicture);

// Events of all jobs say when there is another picture; a browser's own EventSource would bear no key either.
async function listen() {
  try {
    const answer = await ask("/v1/events", { headers: { Accept: "text/event-stream" } });
    if (!answer.ok) throw new Error(answer.statusText);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      const told = events.filter((event) => /^event: preview$/m.test(event)).map((event) => JSON.parse(/^data: (.*)$/m.exec(event)[1]));
      for (const job of new Set(told.filter((event) => event.data.live).map((event) => event.job))) {
        pictured.add(job);
        const card = document.getElementById(job);
        if (card) fetchPicturesIn(card);
      }
    }
  } catch { /* then as often as this is tried again */ }
  if (!document.hidden) fetchPicturesIn(document);
  setTimeout(listen, EVERY_MS);
}

function showJobs(collection, page, hint) {
  const list = document.getElementById(collection);
  const ids = page.data.map((job) => job.id);
  if ([...list.children].map((child) => child.id).join() !== ids.join()) {
    list.innerHTML = ids.map((id) => `<article class="card" id="${id}"></article>`).join("") || `<p class="empty">${hint}</p>`;
    ids.forEach((id) => drawn.delete(id));
  }
  page.data.forEach((job) => show(job.id, card(job)));
}

function showTable(id, page, headings, row) {
  const rows = page.data.map((item) => `<tr>${row(item).map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("");
  show(id, rows ? `<table><tr>${headings.map((h) => `<th>${h}</th>`).join("")}</tr>${rows}</table>` : `<p class="empty">none yet</p>`);
}

async function extendCurve(run) {
  let known = curves.get(run.id) || [];
  if (known.attempt !== run.attempt) known = Object.assign([], { attempt: run.attempt });  // it goes on from a checkpoint
  if (known.complete) return;
  let more = true;
  while (more) {
    const page = await get(`${run.links.metrics}?limit=200${known.length ? `&after=${known.at(-1).id}` : ""}`);
    known.push(...page.data);
    more = page.has_more;
  }
  known.complete = ENDED.includes(run.status);
  curves.set(run.id, known);
}

async function refresh() {
  const limit = `?limit=${SHOWN}`;
  const [datasets, models, teachers] = await Promise.all(["datasets", "models", "teachers"].map((name) => get(`/v1/${name}${limit}`)));
  showTable("models", models, ["model", "architecture", "top-1", "dataset", "made"], (m) => [
    `<a href="/v1/models/${m.id}"><code>${m.id}</code></a>`, text(m.architecture), m.accuracy ? percent(m.accuracy.top1) : "–",
    `<code>${text(m.dataset)}</code>`, ago(m.created_at)]);
  showTable("datasets", datasets, ["dataset", "name", "images", "classes", "size", "made"], (d) => [
    `<a href="/v1/datasets/${d.id}"><code>${d.id}</code></a>`, d.name ? text(d.name) : "–", short(d.num_samples), d.num_classes,
    d.image_size ? `${d.in_chans}×${d.image_size}×${d.image_size}` : "–", ago(d.created_at)]);
  const [jobs, runs] = await Promise.all([get(`/v1/synthesis-jobs${limit}`), get(`/v1/training-runs${limit}`)]);
  await Promise.all(runs.data.map(extendCurve));
  showJobs("training-runs", runs, "none yet: POST /v1/training-runs, or <code>dearkd train</code>");
  showJobs("synthesis-jobs", jobs, "none yet: POST /v1/synthesis-jobs, or <code>dearkd synth</code>");
  const running = [...jobs.data, ...runs.data].filter((job) => job.status === "running").length;
  const count = (page, what) => `<a href="/v1/${what}"><b>${page.data.length}${page.has_more ? "+" : ""}</b>${page.data.length === 1 ? what.slice(0, -1) : what}</a>`;
  show("counts", `<span><b>${running}</b>running</span>${count(teachers, "teachers")}${count(datasets, "datasets")}${count(models, "models")}`);
}

async function poll() {
  const health = document.getElementById("health");
  try {
    if (!document.hidden) await refresh();
    health.textContent = "a transformer from a CNN alone";
    health.className = "soft";
  } catch (error) {
    health.textContent = `out of touch: ${error.message}`;
    health.className = "down";
  }
  setTimeout(poll, EVERY_MS);
}

document.addEventListener("click", async (event) => {
  const path = event.target.dataset && event.target.dataset.post;
  if (!path) return;
  event.target.disabled = true;
  const answer = await ask(path, { method: "POST" });
  if (!answer.ok) alert((await answer.json()).detail);
  await refresh();
});

poll();
listen();
