// The canvas of the page: shows before and after, takes strokes, sends them as points (app_strokes.py reads them).
// Gradio calls this with: element, the component's node; props, shared with Python; trigger, which starts an event there;
// watch, which tells when Python has changed a prop. Strokes: {r: region, e: eraser, w: diameter as a share of the short
// side, p: [x, y, x, y, ...] as shares of width and height; no points: the whole picture}.
const COLOURS = ["#2563eb", "#db2777", "#16a34a", "#ea580c"];
const MAX_STROKES = 500;
const MAX_NUMBERS = 20000;
const find = (selector) => element.querySelector(selector);
const canvas = find("canvas");
const context = canvas.getContext("2d");
const state = {
  picture: 0, ratio: 1, before: null, after: null, strokes: [], history: [], active: 0, shown: 1, erase: false,
  split: 0, drawing: null, pointer: null, waiting: false,
  results: 0,
};
const layers = COLOURS.map(() => document.createElement("canvas"));
const scratch = document.createElement("canvas");

function load(url, use) {
  const image = new Image();
  image.onload = () => use(image);
  image.src = url;
}

function layout() {
  const room = find(".frame").clientWidth;
  if (!room || !state.before) return;
  const high = Math.max(240, window.innerHeight * 0.66);
  const width = Math.min(room, high * state.ratio);
  const dense = Math.min(2, window.devicePixelRatio || 1);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${width / state.ratio}px`;
  for (const each of [canvas, scratch, ...layers]) {
    each.width = Math.max(1, Math.round(width * dense));
    each.height = Math.max(1, Math.round((width / state.ratio) * dense));
  }
  repaint();
}

function repaint() {
  for (const layer of layers) layer.getContext("2d").clearRect(0, 0, layer.width, layer.height);
  for (const stroke of state.strokes) mark(stroke, 0);
  show();
}

// Draws a stroke on the layers, from its point number `from` on.
function mark(stroke, from) {
  layers.forEach((layer, region) => {
    const pen = layer.getContext("2d");
    const own = region === stroke.r && !stroke.e;
    pen.globalCompositeOperation = own ? "source-over" : "destination-out";
    pen.fillStyle = pen.strokeStyle = COLOURS[region];
    if (!stroke.p.length) {
      pen.fillRect(0, 0, layer.width, layer.height);
      return;
    }
    const at = (i) => [stroke.p[2 * i] * layer.width, stroke.p[2 * i + 1] * layer.height];
    pen.lineWidth = stroke.w * Math.min(layer.width, layer.height);
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    if (stroke.p.length === 2) {
      pen.arc(...at(0), pen.lineWidth / 2, 0, 2 * Math.PI); // a line without length leaves no mark
      pen.fill();
      return;
    }
    pen.moveTo(...at(from));
    for (let i = from + 1; i < stroke.p.length / 2; i++) pen.lineTo(...at(i));
    pen.stroke();
  });
}

function show() {
  const { width, height } = canvas;
  if (!state.before) return;
  context.globalAlpha = 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(state.after || state.before, 0, 0, width, height);
  if (state.drawing || state.waiting) {
    context.globalAlpha = 0.45;
    for (const layer of layers) context.drawImage(layer, 0, 0);
  } else if (find(".outlines").checked && state.split === 0) {
    context.globalAlpha = 0.95;
    layers.forEach((layer, region) => state.strokes.some((stroke) => stroke.r === region) && outline(layer));
  }
  context.globalAlpha = 1;
  if (state.split > 0) {
    const edge = Math.round((width * state.split) / 100);
    context.save();
    context.beginPath();
    context.rect(0, 0, edge, height);
    context.clip();
    context.drawImage(state.before, 0, 0, width, height);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(edge - 1.5, 0, 3, height);
  }
  if (state.pointer && !state.waiting) {
    const radius = (brushWidth() * Math.min(width, height)) / 2;
    for (const [colour, thick] of [["#fff", 3], [state.erase ? "#111" : COLOURS[state.active], 1.5]]) {
      context.beginPath();
      context.arc(state.pointer[0] * width, state.pointer[1] * height, radius, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.stroke();
    }
  }
}

function outline(layer) {
  const pen = scratch.getContext("2d");
  pen.globalCompositeOperation = "source-over";
  pen.clearRect(0, 0, scratch.width, scratch.height);
  for (let i = 0; i < 8; i++) pen.drawImage(layer, 2 * Math.cos((i * Math.PI) / 4), 2 * Math.sin((i * Math.PI) / 4));
  pen.globalCompositeOperation = "destination-out";
  pen.drawImage(layer, 0, 0);
  context.drawImage(scratch, 0, 0);
}

function brushWidth() {
  return Number(find(".width").value) / 100;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const round = (value) => Math.round(Math.min(1.5, Math.max(-0.5, value)) * 1e4) / 1e4;
  return [round((event.clientX - box.left) / box.width), round((event.clientY - box.top) / box.height)];
}

function send(event) {
  props.value = { picture: state.picture, active: state.active, strokes: state.strokes };
  state.waiting = event === "paint";
  find(".busy").classList.toggle("on", state.waiting);
  queueMicrotask(() => (event === "paint" ? trigger("paint") : trigger("pick")));
}

function change(strokes) {
  state.history.push(state.strokes);
  state.strokes = strokes;
  find(".hint").hidden = true;
  buttons();
  repaint();
  send("paint");
}

function undo() {
  if (!state.history.length) return;
  state.strokes = state.history.pop();
  buttons();
  repaint();
  send("paint");
}

function full() {
  const numbers = state.strokes.reduce((sum, stroke) => sum + stroke.p.length, 0);
  return state.strokes.length >= MAX_STROKES || numbers >= MAX_NUMBERS - 2000;
}

function buttons() {
  find(".undo").disabled = !state.history.length;
  find(".clear").disabled = !state.strokes.length;
  find(".all").disabled = !state.picture;
  for (const [name, on] of [[".brush", !state.erase], [".eraser", state.erase]]) {
    find(name).classList.toggle("on", on);
    find(name).setAttribute("aria-pressed", String(on));
  }
  const group = find(".regions");
  group.replaceChildren(Object.assign(document.createElement("span"), { textContent: "Regions" }));
  for (let region = 0; region < state.shown; region++) {
    const chip = document.createElement("button");
    const thumbnail = (props.thumbnails || [])[region];
    chip.type = "button";
    chip.className = region === state.active ? "chip on" : "chip";
    chip.style.setProperty("--colour", COLOURS[region]);
    if (thumbnail) chip.style.backgroundImage = `url("${thumbnail}")`;
    chip.setAttribute("aria-pressed", String(region === state.active));
    chip.setAttribute("aria-label", `Region ${region + 1}`);
    chip.title = `Region ${region + 1}: choose it, then paint or pick another style`;
    chip.innerHTML = `<b>${region + 1}</b>`;
    chip.onclick = () => choose(region);
    group.append(chip);
  }
  if (state.shown < COLOURS.length) {
    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.textContent = "+ Region";
    more.title = "Another region, with a style of its own";
    more.onclick = () => choose(state.shown++);
    group.append(more);
  }
}

function choose(region) {
  state.active = region;
  state.erase = false;
  buttons();
  send("pick");
}

canvas.addEventListener("pointerdown", (event) => {
  if (!state.picture || event.button !== 0 || full()) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  state.split = Number((find(".split").value = 0));
  state.pointer = event.pointerType === "touch" ? null : place(event);
  state.drawing = { r: state.active, e: state.erase, w: brushWidth(), p: place(event) };
  mark(state.drawing, 0);
  show();
});
canvas.addEventListener("pointermove", (event) => {
  state.pointer = event.pointerType === "touch" ? null : place(event);
  const stroke = state.drawing;
  if (stroke && stroke.p.length < 2000) {
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = place(each);
      const last = stroke.p.slice(-2);
      if (Math.hypot((x - last[0]) * canvas.width, (y - last[1]) * canvas.height) < 3) continue;
      stroke.p.push(x, y);
      mark(stroke, stroke.p.length / 2 - 2);
    }
  }
  show();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    const stroke = state.drawing;
    state.drawing = null;
    if (stroke && name === "pointerup") change([...state.strokes, stroke]);
    else if (stroke) repaint();
  });
}
canvas.addEventListener("pointerleave", () => {
  state.pointer = null;
  show();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("textarea, input:not([type=range]):not([type=checkbox])");
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z" && !typing) {
    event.preventDefault();
    undo();
  }
});

// A picture that is dropped on the canvas, or pasted, is uploaded and opened.
async function take(file) {
  if (!file) return;
  find(".busy").classList.add("on");
  try {
    const { path } = await upload(file);
    trigger("drop", { path });
  } catch (error) {
    find(".hint").textContent = "This file was not taken: it is too large, or the server is gone.";
    find(".hint").hidden = false;
  }
  setTimeout(() => find(".busy").classList.remove("on"), 1500);
}
find(".frame").addEventListener("dragover", (event) => event.preventDefault());
find(".frame").addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

find(".brush").onclick = () => {
  state.erase = false;
  buttons();
};
find(".eraser").onclick = () => {
  state.erase = true;
  buttons();
};
find(".undo").onclick = undo;
find(".clear").onclick = () => state.strokes.length && change([]);
find(".all").onclick = () => !full() && change([...state.strokes, { r: state.active, e: false, w: 1, p: [] }]);
find(".split").oninput = (event) => {
  state.split = Number(event.target.value);
  show();
};
find(".outlines").onchange = show;

function newPicture() {
  const scene = props.scene;
  if (!scene || !scene.picture) return;
  load(scene.url, (image) => {
    Object.assign(state, { picture: scene.picture, ratio: scene.width / scene.height, before: image, after: null });
    Object.assign(state, { strokes: [], history: [], active: 0, shown: 1, split: 0, erase: false, waiting: false });
    find(".stage").dataset.picture = scene.picture;
    find(".split").value = 0;
    find(".hint").hidden = false;
    find(".busy").classList.remove("on");
    buttons();
    layout();
  });
}

function newResult() {
  const after = props.after;
  if (!after || after.picture !== state.picture) return;
  const ready = (image) => {
    state.after = image;
    state.waiting = false;
    find(".stage").dataset.results = ++state.results;
    find(".busy").classList.remove("on");
    show();
  };
  if (after.url) load(after.url, ready);
  else ready(state.after);
}

watch("scene", newPicture);
watch("after", newResult);
watch("thumbnails", buttons);
new ResizeObserver(layout).observe(find(".frame"));
buttons();
newPicture();
