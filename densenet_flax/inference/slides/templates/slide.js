"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const canvas = byId("slide"), context = canvas.getContext("2d");
  const overview = byId("overview"), thumbnails = byId("thumbnails");
  const [slideHeight, slideWidth] = data.size, [fieldHeight, fieldWidth] = data.field;
  // Tiles may overlap; each is drawn as the part around its center that is nearest to it.
  const cellHeight = Math.min(fieldHeight, data.stride[0]);
  const cellWidth = Math.min(fieldWidth, data.stride[1]);
  const numTiles = data.x.length, isBinary = data.classes.length === 2;
  const slot = new Map(data.thumbnails.tiles.map((tile, index) => [tile, index]));
  // Pixels of the screen for one of the slide; the slide's place at the canvas's upper left corner.
  const view = { scale: 1, x: 0, y: 0 };
  const state = {
    column: isBinary ? 1 : data.top_class, threshold: data.threshold, opacity: 0.6,
    byDecision: false, only: false, tile: -1, order: [],
  };

  const rgb = (color) => `rgb(${color.join(" ")})`;
  const scaleColors = data.scale.map(rgb), classColors = data.colors.map(rgb);
  const own = (tile) => data.probability[state.column][tile];
  const calibrated = (tile) => data.calibrated[state.column][tile];
  const isPositive = (tile) => own(tile) >= state.threshold;

  // Of two classes the decision follows the threshold; of more it is the network's.
  const decision = (tile) => (isBinary ? Number(isPositive(tile)) : data.label[tile]);
  const color = (tile) => state.byDecision
    ? classColors[decision(tile)] : scaleColors[Math.round(255 * calibrated(tile))];

  const cell = (tile) => ({
    x: data.x[tile] + (fieldWidth - cellWidth) / 2, y: data.y[tile] + (fieldHeight - cellHeight) / 2,
  });

  function resize() {
    const ratio = window.devicePixelRatio || 1;
    const center = { x: view.x + canvas.width / view.scale / 2, y: view.y + canvas.height / view.scale / 2 };
    const isNew = !canvas.dataset.ready;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    canvas.dataset.ready = "1";
    if (isNew) fit(); else moveTo(center.x, center.y);
    drawNow();  // a canvas of another size is empty
  }

  function fitScale() {
    return 0.96 * Math.min(canvas.width / slideWidth, canvas.height / slideHeight);
  }

  function fit() {
    view.scale = fitScale();
    moveTo(slideWidth / 2, slideHeight / 2);
  }

  function moveTo(x, y) {
    const clamp = (value, size) => Math.min(Math.max(value, 0), size);
    view.x = clamp(x, slideWidth) - canvas.width / view.scale / 2;
    view.y = clamp(y, slideHeight) - canvas.height / view.scale / 2;
    draw();
  }

  // Zooms about a point of the canvas, which stays where it is.
  function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
    const place = { x: view.x + x / view.scale, y: view.y + y / view.scale };
    view.scale = Math.min(Math.max(view.scale * factor, fitScale() / 2), 8 * (window.devicePixelRatio || 1));
    moveTo(place.x + (canvas.width / 2 - x) / view.scale, place.y + (canvas.height / 2 - y) / view.scale);
  }

  let isWaiting = false;
  function draw() {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; drawNow(); });
  }

  function drawNow() {
    const { scale } = view;
    const toX = (x) => (x - view.x) * scale, toY = (y) => (y - view.y) * scale;
    context.globalAlpha = 1;
    context.fillStyle = "#e9ebee";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#fff";
    context.fillRect(toX(0), toY(0), slideWidth * scale, slideHeight * scale);
    context.drawImage(overview, toX(0), toY(0), data.overview[1] * scale, data.overview[0] * scale);
    const visible = [];
    for (let tile = 0; tile < numTiles; tile++) {
      const x = toX(data.x[tile]), y = toY(data.y[tile]);
      if (x < canvas.width && y < canvas.height && x + fieldWidth * scale > 0 && y + fieldHeight * scale > 0) visible.push(tile);
    }
    // Pictures of tiles have more detail than the overview from here on.
    if (thumbnails && fieldWidth * scale > data.thumbnails.width / 4) {
      for (const tile of visible) {
        if (slot.has(tile)) drawThumbnail(context, tile, toX(data.x[tile]), toY(data.y[tile]), fieldWidth * scale, fieldHeight * scale);
      }
    }
    context.globalAlpha = state.opacity;
    for (const tile of visible) {
      if (state.only && !isPositive(tile)) continue;
      const { x, y } = cell(tile);
      // Whole pixels of the screen, so that neighbors neither overlap nor leave a line between them.
      const left = Math.round(toX(x)), top = Math.round(toY(y));
      context.fillStyle = color(tile);
      context.fillRect(left, top, Math.max(1, Math.round(toX(x + cellWidth)) - left), Math.max(1, Math.round(toY(y + cellHeight)) - top));
    }
    context.globalAlpha = 1;
    if (state.tile >= 0) {
      const box = [toX(data.x[state.tile]), toY(data.y[state.tile]), fieldWidth * scale, fieldHeight * scale];
      for (const [style, width] of [["#fff", 5], ["#000", 2]]) {
        context.strokeStyle = style;
        context.lineWidth = width;
        context.strokeRect(...box);
      }
    }
    drawRuler();
  }

  function drawThumbnail(target, tile, x, y, width, height) {
    const { columns, width: w, height: h } = data.thumbnails, index = slot.get(tile);
    target.drawImage(thumbnails, (index % columns) * w, Math.floor(index / columns) * h, w, h, x, y, width, height);
  }

  // A tile's picture, from the overview where none of its own is in this file.
  function drawPicture(target, tile, width) {
    target.width = width;
    target.height = Math.max(1, Math.round((width * fieldHeight) / fieldWidth));
    const to = target.getContext("2d");
    to.fillStyle = "#fff";
    to.fillRect(0, 0, target.width, target.height);
    if (thumbnails && slot.has(tile)) {
      drawThumbnail(to, tile, 0, 0, target.width, target.height);
      return;
    }
    const scale = overview.naturalWidth / data.overview[1], factor = target.width / fieldWidth;
    to.drawImage(overview, -data.x[tile] * factor, -data.y[tile] * factor,
      (overview.naturalWidth / scale) * factor, data.overview[0] * factor);
  }

  function drawRuler() {
    const um = (120 * (window.devicePixelRatio || 1)) / view.scale * data.mpp[1];
    const power = 10 ** Math.floor(Math.log10(um));
    const length = [5, 2, 1].find((step) => step * power <= um) * power;
    const ruler = byId("ruler");
    ruler.style.width = `${(length / data.mpp[1]) * view.scale / (window.devicePixelRatio || 1)}px`;
    ruler.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  }

  function tileAt(x, y) {
    let best = -1, nearest = Infinity;
    for (let tile = 0; tile < numTiles; tile++) {
      const dx = Math.abs(x - data.x[tile] - fieldWidth / 2), dy = Math.abs(y - data.y[tile] - fieldHeight / 2);
      if (dx > fieldWidth / 2 || dy > fieldHeight / 2) continue;
      const distance = Math.max(dx / fieldWidth, dy / fieldHeight);
      if (distance < nearest) { nearest = distance; best = tile; }
    }
    return best;
  }

  const format = (value) => value.toFixed(3);

  function select(tile, isMoving) {
    state.tile = tile;
    const hasTile = tile >= 0;
    byId("tile-picture").hidden = !hasTile;
    byId("tile-title").textContent = hasTile
      ? `Tile ${data.row[tile]}, ${data.col[tile]}: ${data.classes[decision(tile)]}` : "Click a tile to see it";
    byId("tile-text").textContent = hasTile ? describe(tile) : "";
    if (hasTile) {
      drawPicture(byId("tile-picture"), tile, 240);
      if (isMoving) {
        view.scale = Math.max(view.scale, Math.min(canvas.width / fieldWidth, canvas.height / fieldHeight) / 5);
        moveTo(data.x[tile] + fieldWidth / 2, data.y[tile] + fieldHeight / 2);
      }
    }
    draw();
  }

  function describe(tile) {
    const columns = isBinary ? [1] : data.classes.map((_, column) => column);
    const lines = columns.map((column) => {
      const values = [data.probability[column][tile], data.calibrated[column][tile]].map(format);
      return `${data.classes[column]}: ${values[0]}` + (data.is_calibrated ? `, calibrated ${values[1]}` : "");
    });
    lines.push(`x ${Math.round(data.x[tile])}, y ${Math.round(data.y[tile])} px of the slide`);
    if (!slot.has(tile)) lines.push("Shown from the overview: no picture of this tile is in this file.");
    return lines.join("\n");
  }

  // Tiles from the most to the least probable of the class that is shown.
  function sort() {
    const values = data.calibrated[state.column];
    state.order = [...data.x.keys()].sort((a, b) => values[b] - values[a] || a - b);
    byId("top-title").textContent = `Most probable tiles of ${data.classes[state.column]}`;
    byId("top").replaceChildren(...state.order.slice(0, 12).map((tile) => {
      const button = document.createElement("button"), picture = document.createElement("canvas");
      button.type = "button";
      drawPicture(picture, tile, 160);
      button.append(picture, format(calibrated(tile)));
      button.setAttribute("aria-label", `Tile ${data.row[tile]}, ${data.col[tile]}: ${format(calibrated(tile))}`);
      button.addEventListener("click", () => { select(tile, true); canvas.scrollIntoView({ block: "nearest" }); });
      return button;
    }));
  }

  function next(step) {
    const now = state.order.indexOf(state.tile);
    const index = now < 0 ? 0 : Math.min(Math.max(now + step, 0), numTiles - 1);
    if (numTiles) select(state.order[index], true);
  }

  function update() {
    const count = data.x.reduce((sum, _, tile) => sum + Number(isPositive(tile)), 0);
    byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    byId("threshold-value").textContent = format(state.threshold);
    byId("count").textContent = `${count} of ${numTiles} tiles at or above ${format(state.threshold)} (${data.classes[state.column]})`;
    byId("scale").hidden = state.byDecision;
    byId("scale-decision").hidden = !state.byDecision;
    select(state.tile, false);
  }

  function connectControls() {
    const on = (id, event, action) => byId(id) && byId(id).addEventListener(event, (e) => { action(e.target); update(); });
    byId("threshold").value = state.threshold;
    on("opacity", "input", (input) => { state.opacity = Number(input.value); });
    on("threshold", "input", (input) => { state.threshold = Number(input.value); });
    on("only", "change", (input) => { state.only = input.checked; });
    on("colors", "change", (input) => { state.byDecision = input.value === "decision"; });
    on("class", "change", (input) => { state.column = Number(input.value); sort(); });
    if (byId("class")) byId("class").value = state.column;
    byId("zoom-in").addEventListener("click", () => zoom(1.5));
    byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
    byId("fit").addEventListener("click", fit);
    const scale = byId("scale-colors").getContext("2d");
    scaleColors.forEach((style, x) => { scale.fillStyle = style; scale.fillRect(x, 0, 1, 1); });
    byId("scale-decision").replaceChildren(...data.classes.map((name, index) => {
      const line = document.createElement("p"), swatch = document.createElement("i");
      swatch.style.background = classColors[index];
      line.append(swatch, name);
      return line;
    }));
  }

  function connectKeys() {
    const step = () => 0.15 * Math.min(canvas.width, canvas.height) / view.scale;
    const move = (dx, dy) => moveTo(view.x + canvas.width / view.scale / 2 + dx, view.y + canvas.height / view.scale / 2 + dy);
    const keys = {
      ArrowLeft: () => move(-step(), 0), ArrowRight: () => move(step(), 0),
      ArrowUp: () => move(0, -step()), ArrowDown: () => move(0, step()),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
      n: () => next(1), p: () => next(-1),
      Enter: () => select(tileAt(view.x + canvas.width / view.scale / 2, view.y + canvas.height / view.scale / 2), false),
      Escape: () => select(-1, false),
    };
    canvas.addEventListener("keydown", (event) => {
      const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action();
    });
  }

  // One pointer drags, or selects where it hardly moved; two zoom.
  function connectPointers() {
    const pointers = new Map();
    let distance = 0, moved = 0;
    const place = (event) => {
      const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
      return { x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio };
    };
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return { length: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (!pointers.size) moved = 0;
      pointers.set(event.pointerId, place(event));
      if (pointers.size === 2) distance = spread().length;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId), now = place(event);
      if (!before) return;
      pointers.set(event.pointerId, now);
      moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
      if (pointers.size === 2) {
        const { length, x, y } = spread();
        zoom(length / Math.max(distance, 1), x, y);
        distance = length;
      } else {
        moveTo(view.x + canvas.width / view.scale / 2 - (now.x - before.x) / view.scale,
          view.y + canvas.height / view.scale / 2 - (now.y - before.y) / view.scale);
      }
    });
    const end = (event) => {
      const at = pointers.get(event.pointerId);
      pointers.delete(event.pointerId);
      if (event.type === "pointerup" && at && !pointers.size && moved < 8) {
        select(tileAt(view.x + at.x / view.scale, view.y + at.y / view.scale), false);
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const at = place(event);
      zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 200), at.x, at.y);
    }, { passive: false });
  }

  // slide.html#tile=12&threshold=0.7 opens at this tile: a link for a colleague.
  function readHash() {
    const values = new URLSearchParams(location.hash.slice(1));
    const threshold = parseFloat(values.get("threshold")), tile = parseInt(values.get("tile"), 10);
    if (threshold >= 0 && threshold <= 1) byId("threshold").value = state.threshold = threshold;
    if (tile >= 0 && tile < numTiles) select(tile, true);
    update();
  }

  function start() {
    connectControls();
    connectKeys();
    connectPointers();
    new ResizeObserver(resize).observe(canvas);
    resize();
    sort();
    readHash();
    window.addEventListener("hashchange", readHash);
    document.body.dataset.ready = "1";
  }

  window.addEventListener("load", start);  // when the pictures are there
})();
