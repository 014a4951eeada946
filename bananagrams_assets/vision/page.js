// What both kinds of page share: the crops of a sample's picture, and the verdicts that this browser keeps.
const PANELS = ["before", "after", "difference"];

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

// Panel `panel` of a sample's picture; `outline` draws the mask over it. `load()` sets the picture's source.
function crop(row, panel, outline, link) {
  const box = make("span", "crop"), picture = make("img");
  picture.alt = outline ? "mask" : PANELS[panel];
  picture.draggable = false;
  picture.decoding = "async";
  box.append(picture);
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
  box.show = (which) => {
    picture.style.width = `${row.panels * 100}%`;
    picture.style.left = `${-100 * which}%`;
    picture.alt = outline && which === 0 ? "mask" : PANELS[which];
  };
  box.load = () => { if (!picture.src && row.image) picture.src = link(row); };
  box.picture = picture;
  box.show(panel);
  return box;
}

const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)}%`;
const counted = (values) => {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) || 0) + 1);
  return [...found].sort((a, b) => a[0].localeCompare(b[0]));
};

function fill(select, every, counts) {
  select.append(new Option(every, ""));
  for (const [value, count] of counts) select.append(new Option(`${value || "not given"} (${count})`, value || "-"));
}

// Verdicts stay in this browser, under the folder of all pages and the name of the page, until they are saved.
function storedVerdicts(root, name) {
  const place = `bananagrams:${new URL(root, location.href).pathname}:${name}`;
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(place) || "{}"); } catch { /* no storage, or not ours */ }
  return {
    all: kept,
    get: (key) => (Object.hasOwn(kept, key) ? kept[key] : { verdict: "", note: "" }),
    set(key, entry) {
      if (entry.verdict || entry.note) kept[key] = entry; else delete kept[key];
      try { localStorage.setItem(place, JSON.stringify(kept)); return true; } catch { return false; }
    },
  };
}

function reviewerField(input) {
  try { input.value = localStorage.getItem("bananagrams:reviewer") || ""; } catch { /* no storage */ }
  input.addEventListener("input", () => {
    try { localStorage.setItem("bananagrams:reviewer", input.value); } catch { /* no storage */ }
  });
}

function saveVerdicts(name, reviewer, samples) {
  samples.sort((a, b) => (a.key < b.key ? -1 : 1));
  const content = { format: "bananagrams-verdicts-1", reviewer, samples };
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
  const words = [name, reviewer].filter(Boolean).join("-").replace(/[^\p{L}\p{N}_-]+/gu, "_");
  link.download = `verdicts-${words}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
