"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const svg = document.querySelector(".plot svg");
  const detail = document.querySelector(".plot .detail");
  const across = document.getElementById("across");
  const upward = document.getElementById("upward");
  const onlyFront = document.getElementById("only-front");
  const LEFT = 62, RIGHT = 34, TOP = 14, BOTTOM = 52;
  let W = 900, H = 460, chosen = null;
  const NAMES = { latency_ms: "latency at batch 1, ms (left is faster)", size_bytes: "bytes of the file (left is smaller)",
    macs: "multiply-adds of one picture (left is less)" };
  const RISES = { top1: "accuracy on the validation part, %", test: "accuracy on the test part, %",
    agreement: "agreement with the start, %" };
  let order = [];

  function make(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in attributes) node.setAttribute(name, attributes[name]);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function plain(cost, value) {
    if (value === null || value === undefined) return "not measured";
    if (cost === "latency_ms") return Number(value.toPrecision(3)) + " ms";
    if (cost === "size_bytes") return value >= 1e5 ? Number((value / 1e6).toPrecision(3)) + " MB" : Number((value / 1e3).toPrecision(3)) + " kB";
    return Number((value / 1e6).toPrecision(3)) + " M";
  }

  function ticks(low, high) {
    const found = [];
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]]) {
      found.length = 0;
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
        for (const m of steps) { const v = m * Math.pow(10, e); if (v >= low && v <= high) found.push(v); }
      if (found.length >= 4) break;
    }
    return found;
  }

  function evenly(low, high) {
    const rough = (high - low) / 5, power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || power;
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) found.push(Number(v.toFixed(6)));
    return found;
  }

  function draw() {
    const x = across.value, y = upward.value;
    const points = data.points.filter((p) => p[x] > 0 && p[y] !== null && (!onlyFront.checked || p.kind !== "tried"));
    svg.replaceChildren();
    order = [];
    W = Math.max(320, svg.clientWidth || 900);
    H = Math.max(300, Math.min(480, Math.round(0.55 * W)));
    svg.setAttribute("viewBox", "0 0 " + W + " " + H);
    if (!points.length) { svg.append(make("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, "nothing was measured")); return; }
    const xs = points.map((p) => p[x]), ys = points.map((p) => 100 * p[y]);
    const lowX = Math.min(...xs) / 1.12, highX = Math.max(...xs) * 1.12;
    const room = Math.max(0.5, 0.08 * (Math.max(...ys) - Math.min(...ys)));
    const lowY = Math.max(0, Math.min(...ys) - room), highY = Math.min(100.5, Math.max(...ys) + room);
    const placeX = (v) => LEFT + (W - LEFT - RIGHT) * (Math.log(v / lowX) / Math.log(highX / lowX));
    const placeY = (v) => H - BOTTOM - (H - TOP - BOTTOM) * ((v - lowY) / (highY - lowY));
    const places = ticks(lowX, highX);
    const every = W < 480 && places.length > 4 ? 2 : 1;
    for (const v of places.filter((_, i) => i % every === 0)) {
      svg.append(make("line", { class: "grid", x1: placeX(v), x2: placeX(v), y1: TOP, y2: H - BOTTOM }));
      svg.append(make("text", { x: placeX(v), y: H - BOTTOM + 19, "text-anchor": "middle" }, plain(x, v).replace(" ms", "")));
    }
    for (const v of evenly(lowY, highY)) {
      svg.append(make("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: placeY(v), y2: placeY(v) }));
      svg.append(make("text", { x: LEFT - 8, y: placeY(v) + 4, "text-anchor": "end" }, String(v)));
    }
    const limit = data.limits[x];
    if (limit && limit > lowX && limit < highX)
      svg.append(make("line", { class: "limit", x1: placeX(limit), x2: placeX(limit), y1: TOP, y2: H - BOTTOM }));
    svg.append(make("text", { class: "title", x: (LEFT + W - RIGHT) / 2, y: H - 10, "text-anchor": "middle" }, NAMES[x]));
    svg.append(make("text", { class: "title", x: 16, y: (H - BOTTOM) / 2, "text-anchor": "middle",
      transform: "rotate(-90 16 " + (H - BOTTOM) / 2 + ")" }, RISES[y]));
    let best = -1, path = "";
    for (const p of [...points].sort((a, b) => a[x] - b[x] || b[y] - a[y]))
      if (p[y] > best) { path += (path ? "L" : "M") + placeX(p[x]) + " " + placeY(100 * p[y]); best = p[y]; }
    svg.append(make("path", { class: "front", d: path }));
    const rank = { tried: 0, front: 1, start: 2, written: 2, pick: 3 };
    for (const p of [...points].sort((a, b) => rank[a.kind] - rank[b.kind])) {
      const mark = make("circle", { class: "point " + p.kind, cx: placeX(p[x]), cy: placeY(100 * p[y]), r: p.kind === "tried" ? 5 : 8,
        tabindex: -1, role: "img", "data-key": p.key, "aria-label": sentence(p) });
      mark.append(make("title", {}, sentence(p)));
      for (const event of ["mouseenter", "focus", "click"]) mark.addEventListener(event, () => show(p.key));
      svg.append(mark);
    }
    order = [...points].sort((a, b) => a[x] - b[x]).map((p) => p.key);
    const kept = [...svg.querySelectorAll(".point")].find((node) => node.dataset.key === chosen);
    const first = kept || svg.querySelector(".pick") || svg.querySelector(".point");
    first.setAttribute("tabindex", "0");
    show(first.dataset.key);
  }

  function sentence(p) {
    const test = p.test === null ? "" : ", " + (100 * p.test).toFixed(1) + " % on the test part";
    return p.says + ": " + (100 * p.top1).toFixed(1) + " % on the validation part" + test + ", " + plain("latency_ms", p.latency_ms) +
      ", " + plain("size_bytes", p.size_bytes) + ", " + plain("macs", p.macs) + " multiply-adds";
  }

  function show(key) {
    const p = data.points.find((one) => one.key === key);
    chosen = key;
    detail.replaceChildren();
    const head = document.createElement("b");
    head.textContent = p.says + (p.kind === "pick" ? " (the pick)" : "");
    detail.append(head, document.createTextNode(sentence(p).slice(p.says.length + 2)));
    for (const line of p.lines) { detail.append(document.createElement("br"), document.createTextNode(line)); }
    for (const node of document.querySelectorAll(".shown")) node.classList.remove("shown");
    for (const node of document.querySelectorAll("[data-key]")) if (node.dataset.key === key) node.classList.add("shown");
  }

  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const here = order.indexOf(event.target.dataset.key);
    if (!step || here < 0) return;
    event.preventDefault();
    const key = order[(here + step + order.length) % order.length];
    for (const node of svg.querySelectorAll(".point")) {
      node.setAttribute("tabindex", node.dataset.key === key ? "0" : "-1");
      if (node.dataset.key === key) node.focus();
    }
  });
  for (const row of document.querySelectorAll("tr[data-key]")) row.addEventListener("click", () => show(row.dataset.key));
  for (const choice of [across, upward, onlyFront]) choice.addEventListener("change", draw);
  if (!data.points.some((p) => p.test !== null)) upward.querySelector("[value=test]").remove();
  window.addEventListener("resize", draw);
  across.value = data.cost;
  draw();
})();
