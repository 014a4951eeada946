// Shared by both kinds of page: the panels of a sample's image, and the labels stored in this browser.
const PANELS = ["before", "after", "difference"];
const byId = (id) => document.getElementById(id);

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
}

// One panel of a sample's image; `outline` draws the mask over it. `load()` sets the image's source.
function panelView(row, panel, outline, link) {
  const box = make("span", "crop"), image = make("img");
  image.alt = outline ? "mask" : PANELS[panel];
  image.draggable = false;
  image.decoding = "async";
  box.append(image);
  if (outline && row.outline) {
    const drawing = svg("svg", { viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none" });
    for (const name of ["area", "shade", "line"]) drawing.append(svg("path", { class: name, d: row.outline }));
    box.append(drawing);
  }
  box.fit = (width, height) => {
    const scale = Math.min(width / row.width, height / row.height, 3);
    box.style.width = `${Math.round(row.width * scale)}px`;
    box.style.height = `${Math.round(row.height * scale)}px`;
  };
  box.show = (shownPanel) => {
    image.style.width = `${row.panels * 100}%`;
    image.style.left = `${-100 * shownPanel}%`;
    image.alt = outline && shownPanel === 0 ? "mask" : PANELS[shownPanel];
  };
  box.load = () => { if (!image.src && row.picture) image.src = link(row); };
  box.image = image;
  box.show(panel);
  return box;
}

const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)}%`;
const countValues = (values) => {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => a[0].localeCompare(b[0]));
};

function fillOptions(select, anyText, counts) {
  select.append(new Option(anyText, ""));
  for (const [value, count] of counts) select.append(new Option(`${value || "not given"} (${count})`, value || "-"));
}

// Labels ("good", "bad" or "", and a note) stay in this browser, under the folder of all pages and the page's
// name, until they are saved. Stored entries and saved files have a label under the key `verdict`.
function storedLabels(root, name) {
  const storageKey = `bananagrams:${new URL(root, location.href).pathname}:${name}`;
  let entries = {};
  try { entries = JSON.parse(localStorage.getItem(storageKey) || "{}"); } catch { /* no storage, or not ours */ }
  const get = (key) => (Object.hasOwn(entries, key) ? entries[key] : { verdict: "", note: "" });
  return {
    labelOf: (key) => get(key).verdict,
    noteOf: (key) => get(key).note,
    count: () => Object.keys(entries).length,
    countLabels: (label) => Object.values(entries).filter((entry) => (label ? entry.verdict === label : entry.verdict)).length,
    samples: (shardOf) => Object.entries(entries).map(([key, { verdict, note }]) => ({ key, shard: shardOf(key), verdict, note })),
    set(key, label, note) {
      if (label || note) entries[key] = { verdict: label, note }; else delete entries[key];
      try { localStorage.setItem(storageKey, JSON.stringify(entries)); return true; } catch { return false; }
    },
  };
}

function reviewerField(input) {
  try { input.value = localStorage.getItem("bananagrams:reviewer") || ""; } catch { /* no storage */ }
  input.addEventListener("input", () => {
    try { localStorage.setItem("bananagrams:reviewer", input.value); } catch { /* no storage */ }
  });
}

function saveLabels(name, reviewer, samples) {
  samples.sort((a, b) => (a.key < b.key ? -1 : 1));
  const content = { format: "bananagrams-verdicts-1", reviewer, samples };
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
  const suffix = [name, reviewer].filter(Boolean).join("-").replace(/[^\p{L}\p{N}_-]+/gu, "_");
  link.download = `verdicts-${suffix}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
