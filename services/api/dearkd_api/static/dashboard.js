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
