"use strict";
// What pages do beside htmx: all of them can be read and used without it.

// A lost connection is said, and said to be over.
const banner = document.getElementById("banner");
const say = (text) => { banner.textContent = text; banner.hidden = !text; };
document.addEventListener("htmx:sendError", () => say("Out of touch with the server: what is shown may be old. Trying again…"));
document.addEventListener("htmx:timeout", () => say("The server takes long to answer: what is shown may be old. Trying again…"));
document.addEventListener("htmx:responseError", (event) => {
  say(`The server answered ${event.detail.xhr.status}: what is shown may be old. Trying again…`);
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status < 400) say("");
  // Whoever has a button pressed is not to lose it before he lets go.
  if (pressed && event.detail.target.contains(pressed)) event.detail.shouldSwap = false;
});
let pressed = null;
document.addEventListener("pointerdown", (event) => { pressed = event.target; });
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => setTimeout(() => { pressed = null; }));

// Pictures that grow are loaded again; the old one stays until the new one is there.
for (const image of document.querySelectorAll("img[data-live]")) {
  const source = image.getAttribute("src");
  setInterval(() => { if (!document.hidden) image.src = `${source}?at=${Date.now()}`; }, 1000 * Number(image.dataset.live));
}

// A grid of images says, of the one under the pointer or chosen by the arrow keys, its class and the teacher's confidence.
for (const grid of document.querySelectorAll("[data-grid]")) {
  const image = grid.querySelector("img"), told = grid.parentElement.querySelector("[data-cell]");
  const frame = Object.assign(document.createElement("span"), { className: "cell", hidden: true });
  grid.append(frame);
  let layout = null, chosen = null;

  function tell() {
    const row = layout && chosen && layout.rows[chosen.row];
    frame.hidden = !row;
    told.textContent = "";
    if (!row) return;
    const scale = image.clientWidth / image.naturalWidth, pitch = layout.cell + layout.gap;
    const place = { left: layout.margin + layout.gap + chosen.column * pitch, top: layout.gap + chosen.row * pitch };
    for (const side of ["left", "top"]) frame.style[side] = `${place[side] * scale}px`;
    frame.style.width = frame.style.height = `${layout.cell * scale}px`;
    const sure = row.confidence[chosen.column];
    told.textContent = row.name === null ? "No classes yet." : sure == null ? row.name : `${row.name}: ${(100 * sure).toFixed(1)} %`;
  }

  async function load() {
    try {
      const response = await fetch(grid.dataset.grid);
      layout = response.ok ? await response.json() : null;
      tell();
    } catch (error) {
      // The page's own polling says that the server is out of reach.
    }
  }

  function at(event) {
    if (!layout || !image.clientWidth) return null;
    const scale = image.naturalWidth / image.clientWidth, pitch = layout.cell + layout.gap, box = image.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) * scale - layout.margin - layout.gap) / pitch);
    const row = Math.floor(((event.clientY - box.top) * scale - layout.gap) / pitch);
    return column >= 0 && row >= 0 && row < layout.rows.length && layout.margin + column * pitch < image.naturalWidth - layout.cell ? { row, column } : null;
  }

  const choose = (place) => { chosen = place; tell(); };
  for (const kind of ["pointermove", "pointerdown"]) grid.addEventListener(kind, (event) => choose(at(event)));
  grid.addEventListener("pointerleave", () => choose(null));
  grid.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || !layout) return;
    event.preventDefault();
    const { row, column } = chosen || { row: 0, column: -move[1] };
    const last = Math.floor((image.naturalWidth - layout.margin - layout.gap) / (layout.cell + layout.gap)) - 1;
    const within = (value, most) => Math.max(0, Math.min(most, value));
    choose({ row: within(chosen ? row + move[0] : 0, layout.rows.length - 1), column: within(column + move[1], last) });
  });
  image.addEventListener("load", load);
  load();
}

// Snippets can be copied where the browser lets a page do so.
for (const code of navigator.clipboard ? document.querySelectorAll("pre[data-copy]") : []) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Copy", className: "copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  code.before(button);
}

// The arrow keys go through a gallery.
document.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const writes = event.target.closest("input, select, textarea, [tabindex='0']");
  const link = rel && !writes && !event.altKey && !event.ctrlKey && !event.metaKey && document.querySelector(`#zoom a[rel=${rel}]`);
  if (link) link.click();
});

// An image that is dropped on a form is chosen there, and sent.
for (const form of document.querySelectorAll("form[data-drop]")) {
  const over = (event, is) => { event.preventDefault(); form.classList.toggle("over", is); };
  form.addEventListener("dragover", (event) => over(event, true));
  form.addEventListener("dragleave", (event) => over(event, false));
  form.addEventListener("drop", (event) => {
    over(event, false);
    if (!event.dataTransfer.files.length) return;
    form.querySelector("input[type=file]").files = event.dataTransfer.files;
    form.requestSubmit();
  });
}
