"use strict";
(() => {
  const KEEP = 40; // answers on the page
  const RECENT = 200; // of which the table tells the medians
  const ENOUGH = 5; // answers before the models are compared
  const LISTED = 30; // answers under a picture
  const LEAST = 0.05; // score of boxes that are fetched; the slider hides, it does not ask again
  const WIDEST = 640; // pixels of a drawing
  const STAGES = ["decode", "prepare", "model", "answer"];
  const $ = (id) => document.getElementById(id);
  let info = null; // what /models says
  let times = []; // of each model: its recent latencies
  const drawings = new Set(); // what a slider draws again
  let busy = Promise.resolve();

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else node.setAttribute(name, value);
    }
    node.append(...children); // texts become text, never markup
    return node;
  }
  const tag = (i) => make("span", { class: i ? "tag b" : "tag" }, "AB"[i] || String(i + 1));
  const ms = (value) => (value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2));
  const total = (latency) => Object.values(latency).reduce((a, b) => a + b, 0);
  const say = (text) => { $("said").textContent = text; };
  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  async function ask(body, type, options) {
    const address = "/predict?" + new URLSearchParams(options);
    for (let attempt = 0; ; attempt++) {
      const response = await fetch(address, { method: "POST", headers: { "Content-Type": type }, body });
      if (response.status === 503 && attempt < 5) {
        const seconds = Number(response.headers.get("Retry-After")) || 1;
        await new Promise((done) => setTimeout(done, 1000 * seconds));
        continue;
      }
      const found = await response.json();
      if (!response.ok) throw new Error(found.error ? found.error.text : `status ${response.status}`);
      return found;
    }
  }

  // ---- time

  function timeOf(latency) {
    const all = total(latency);
    const bar = make("div", { class: "time", "aria-hidden": "true" });
    const words = make("p", { class: "soft" });
    for (const stage of STAGES.filter((one) => one in latency)) {
      const part = make("i", { class: stage });
      part.style.width = `${(100 * latency[stage]) / all}%`;
      bar.append(part);
      words.append(make("span", { class: "stage" }, make("span", { class: `key ${stage}` }), `${stage} ${ms(latency[stage])}`), " ");
    }
    words.append(make("b", { class: "stage" }, `= ${ms(all)} ms`));
    return [bar, words];
  }

  function count(found) {
    found.models.forEach((one, i) => {
      times[i].push(one.latency_ms);
      if (times[i].length > RECENT) times[i].shift();
    });
    const stages = STAGES.filter((one) => one in found.models[0].latency_ms);
    const heads = ["median, ms", ...stages, "sum", "answers"].map((word) => make("th", { scope: "col" }, word));
    $("stages").replaceChildren(...heads);
    const middle = times.map((rows) => Object.fromEntries(stages.map((stage) => [stage, median(rows.map((row) => row[stage]))])));
    const sums = times.map((rows) => median(rows.map(total)));
    $("times").replaceChildren(...info.models.map((one, i) => make("tr", {},
      make("td", {}, tag(i), make("span", { class: "name" }, one.name)), ...stages.map((stage) => make("td", {}, ms(middle[i][stage]))),
      make("td", {}, make("b", {}, ms(sums[i]))), make("td", {}, String(times[i].length)))));
    if (middle.length === 2 && times[0].length >= ENOUGH) {
      const ratio = middle[0].model / middle[1].model;
      const [fast, slow] = ratio >= 1 ? ["B", "A"] : ["A", "B"];
      const factor = Math.max(ratio, 1 / ratio);
      $("against").textContent = factor < 1.05
        ? "In the model's own stage the two are within 5 % of each other."
        : `In the model's own stage ${fast} is ${factor.toFixed(1)} times as fast as ${slow}. A page is no benchmark: featherweight bench races them.`;
    }
    $("summary").hidden = false;
  }

  // ---- drawings

  const hueOf = (label, classes) => Math.round(360 * ((Math.max(0, classes.indexOf(label)) * 0.618034) % 1));

  function drawTokens(pen, answer, width, height) {
    const shown = Number($("stage").value);
    if (!answer.kept || shown === 0) return;
    const kept = answer.kept[Math.min(shown, answer.kept.length) - 1];
    const [rows, columns] = answer.grid;
    const [left, top, right, bottom] = answer.window;
    const wide = ((right - left) * width) / columns, high = ((bottom - top) * height) / rows;
    pen.fillStyle = "rgba(203, 213, 225, 0.86)";
    kept.forEach((stays, i) => {
      if (stays) return;
      const x = left * width + (i % columns) * wide, y = top * height + Math.floor(i / columns) * high;
      pen.fillRect(x, y, wide + 0.5, high + 0.5);
    });
    if (left > 0.001 || top > 0.001) {
      pen.strokeStyle = "#0b6bcb";
      pen.lineWidth = 2;
      pen.strokeRect(left * width + 1, top * height + 1, (right - left) * width - 2, (bottom - top) * height - 2);
    }
  }

  function drawBoxes(pen, answer, scale, classes) {
    const least = Number($("threshold").value);
    pen.font = "600 13px system-ui, sans-serif";
    pen.textBaseline = "top";
    pen.lineWidth = 3;
    for (const one of answer.answers.filter((found) => found.score >= least).reverse()) {
      const { xmin, ymin, xmax, ymax } = one.box;
      const hue = hueOf(one.label, classes);
      const color = `hsl(${hue} 85% 45%)`;
      pen.strokeStyle = color;
      pen.strokeRect(xmin * scale, ymin * scale, (xmax - xmin) * scale, (ymax - ymin) * scale);
      const text = `${one.label} ${one.score.toFixed(2)}`;
      const y = ymin * scale >= 18 ? ymin * scale - 18 : ymin * scale;
      pen.fillStyle = color;
      const wide = pen.measureText(text).width + 10;
      const x = Math.max(0, Math.min(xmin * scale - 1, pen.canvas.width - wide));
      pen.fillRect(x, y, wide, 18);
      pen.fillStyle = hue > 35 && hue < 195 ? "#000" : "#fff";
      pen.fillText(text, x + 5, y + 3);
    }
  }

  function canvasOf(bitmap, answer, model) {
    const scale = Math.min(WIDEST / Math.max(bitmap.width, bitmap.height), Math.max(1, Math.floor(224 / Math.min(bitmap.width, bitmap.height))));
    const canvas = make("canvas", { role: "img" });
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const draw = () => {
      const pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = scale <= 1;
      pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      if (model.task === "object-detection") drawBoxes(pen, answer, scale, model.classes);
      else drawTokens(pen, answer, canvas.width, canvas.height);
    };
    draw();
    canvas.redraw = draw;
    drawings.add(canvas);
    canvas.setAttribute("aria-label", `${model.name}: ${wordsOf(answer)}`);
    return canvas;
  }

  // ---- answers

  function wordsOf(answer) {
    const best = answer.answers[0];
    if (answer.task === "object-detection") {
      const least = Number($("threshold").value);
      const seen = answer.answers.filter((one) => one.score >= least).length;
      return `${seen} ${seen === 1 ? "object" : "objects"}`;
    }
    if (!best) return "no answer";
    return `${best.label ?? (best.answer || "no answer")} ${(100 * best.score).toFixed(1)} %`;
  }

  function listOf(answer) {
    const least = answer.task === "object-detection" ? Number($("threshold").value) : 0;
    const list = make("ol", { class: "answers" });
    const found = answer.answers.filter((one) => one.score >= least);
    for (const one of found.slice(0, LISTED)) {
      const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("i"));
      bar.firstChild.style.width = `${100 * Math.min(1, one.score)}%`;
      list.append(make("li", {}, make("span", {}, one.label ?? (one.answer || "(no answer)")), bar, make("span", { class: "n" }, `${(100 * one.score).toFixed(1)} %`)));
    }
    if (found.length > LISTED) list.append(make("li", {}, make("span", { class: "soft" }, `and ${found.length - LISTED} more`)));
    if (!list.children.length) list.append(make("li", {}, make("span", { class: "soft" }, "nothing above the least score")));
    return list;
  }

  function tokensOf(answer) {
    if (answer.tokens) return [make("p", { class: "soft" }, `${answer.tokens} tokens`)];
    if (!answer.kept) return [];
    const left = answer.kept.map((stage) => stage.filter(Boolean).length);
    return [make("p", { class: "soft" }, `patches left: ${[answer.kept[0].length, ...left].join(" → ")}`)];
  }

  function columnOf(i, answer, picture) {
    const model = info.models[i];
    const list = make("div", {}, listOf(answer));
    list.redraw = () => list.replaceChildren(listOf(answer));
    if (answer.task === "object-detection") drawings.add(list);
    const facts = make("div", {}, list, ...tokensOf(answer), ...timeOf(answer.latency_ms));
    const head = make("h3", {}, tag(i), model.name);
    return make("div", { class: i ? "b" : "a" }, head, make("div", { class: "column" }, ...(picture ? [picture] : []), facts));
  }

  function verdictOf(found) {
    if (found.models.length !== 2 || found.models.some((one) => one.task === "object-detection" || !one.answers.length)) return [];
    const [a, b] = found.models.map((one) => one.answers[0].label ?? one.answers[0].answer);
    return [a === b ? make("span", { class: "agree" }, "same answer") : make("span", { class: "differ" }, "different answers")];
  }

  function articleOf(name, details, columns, verdict) {
    const top = make("div", { class: "top" }, make("h3", {}, name), make("span", { class: "soft" }, details, " ", ...verdict));
    return make("article", {}, top, make("div", { class: columns.length === 1 ? "columns only" : "columns" }, ...columns));
  }

  function put(article, old) {
    if (old && old.isConnected) old.replaceWith(article);
    else $("results").prepend(article);
    while ($("results").children.length > KEEP) $("results").lastChild.remove();
    for (const one of drawings) if (!one.isConnected) drawings.delete(one);
    return article;
  }

  function redraw() {
    $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
    const stage = Number($("stage").value);
    $("stage-value").textContent = stage ? `after ${stage}` : "all";
    for (const one of drawings) one.redraw();
  }

  // ---- pictures

  async function showPicture(name, found, bitmap, old) {
    count(found);
    const most = Math.max(0, ...found.models.map((one) => (one.kept ? one.kept.length : 0)));
    if (most && $("for-stage").hidden) {
      $("stage").max = String(most);
      $("stage").value = String(most);
      $("for-stage").hidden = false;
      redraw();
    }
    const columns = found.models.map((answer, i) => columnOf(i, answer, bitmap
      ? canvasOf(bitmap, answer, info.models[i])
      : make("p", { class: "soft" }, "This browser cannot show the picture; it was answered all the same.")));
    const { width, height } = found.picture;
    return put(articleOf(name, `${width} × ${height}`, columns, verdictOf(found)), old);
  }

  const options = () => {
    const detects = info.models.some((one) => one.task === "object-detection");
    return { top_k: $("top").value || "5", ...(detects ? { threshold: String(LEAST) } : {}) };
  };

  async function onePicture(file, old) {
    const name = file.name || "pasted";
    try {
      if (file.size > info.limits.max_bytes) throw new Error(`has ${file.size} bytes, at most ${info.limits.max_bytes} are taken`);
      const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
      const found = await ask(file, type, options());
      const bitmap = await createImageBitmap(file).catch(() => null);
      say(`${name}: ${found.models.map((one) => `${one.name} ${wordsOf(one)}`).join("; ")}`);
      return await showPicture(name, found, bitmap, old);
    } catch (error) {
      say(`${name}: ${error.message}`);
      return put(make("article", {}, make("h3", {}, name), make("p", { class: "problem" }, error.message)), old);
    }
  }

  function take(files) {
    for (const file of files) busy = busy.then(() => onePicture(file));
  }

  // ---- camera

  let stream = null;

  async function camera() {
    if (stream) {
      stream.getTracks().forEach((track) => track.stop());
      stream = null;
      $("video").hidden = true;
      $("camera").textContent = "Use the camera";
      return;
    }
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } }, audio: false });
    } catch (error) {
      put(make("article", {}, make("h3", {}, "camera"), make("p", { class: "problem" }, `The camera cannot be used: ${error.message}`)));
      return;
    }
    const video = $("video");
    video.srcObject = stream;
    video.hidden = false;
    $("camera").textContent = "Stop the camera";
    await video.play();
    watch(video, stream);
  }

  async function watch(video, mine) {
    const frame = document.createElement("canvas");
    let article = null;
    while (stream === mine) {
      const scale = Math.min(1, WIDEST / Math.max(video.videoWidth, video.videoHeight, 1));
      frame.width = Math.max(1, Math.round(video.videoWidth * scale));
      frame.height = Math.max(1, Math.round(video.videoHeight * scale));
      frame.getContext("2d").drawImage(video, 0, 0, frame.width, frame.height);
      try {
        const began = performance.now();
        const blob = await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.9));
        const found = await ask(blob, "image/jpeg", options());
        const rate = 1000 / (performance.now() - began);
        article = await showPicture(`camera, ${rate.toFixed(1)} frames a second`, found, frame, article);
      } catch (error) {
        article = put(make("article", {}, make("h3", {}, "camera"), make("p", { class: "problem" }, error.message)), article);
        if (stream === mine) await camera();
      }
      await new Promise((done) => requestAnimationFrame(done));
    }
  }

  // ---- drawing

  function pad() {
    const canvas = $("pad"), pen = canvas.getContext("2d");
    let article = null;
    const clear = () => { pen.fillStyle = "#202020"; pen.fillRect(0, 0, canvas.width, canvas.height); article = null; };
    const place = (event) => [event.offsetX * canvas.width / canvas.clientWidth, event.offsetY * canvas.height / canvas.clientHeight];
    pen.lineWidth = 22;
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = "#ffffff";
    clear();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pen.beginPath();
      pen.moveTo(...place(event));
      pen.lineTo(...place(event));
      pen.stroke();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      pen.lineTo(...place(event));
      pen.stroke();
    });
    canvas.addEventListener("pointerup", async () => {
      const blob = await new Promise((done) => canvas.toBlob(done));
      busy = busy.then(async () => { article = await onePicture(new File([blob], "drawing", { type: "image/png" }), article); });
    });
    $("clear").addEventListener("click", clear);
    $("draw").addEventListener("click", () => {
      $("drawing").hidden = !$("drawing").hidden;
      $("draw").setAttribute("aria-expanded", String(!$("drawing").hidden));
    });
  }

  // ---- text

  function contextOf(context, answer) {
    const letters = Array.from(context); // places are counted in characters, not in UTF-16
    const { start, end } = answer.answers[0] || { start: 0, end: 0 };
    const part = (from, to) => letters.slice(from, to).join("");
    return make("p", { class: "context" }, part(0, start), make("mark", {}, part(start, end)), part(end));
  }

  async function oneText(event) {
    event.preventDefault();
    const words = $("words").value, question = $("question").value, pair = $("pair").value, asks = info.kind === "question";
    const body = JSON.stringify(asks ? { question, context: words } : { text: words, ...(pair ? { text_pair: pair } : {}) });
    const name = asks ? question : words;
    try {
      const top = { top_k: $("top-text").value || "3", ...(asks ? {} : { truncation: String($("cut").checked) }) };
      const found = await ask(body, "application/json", top);
      count(found);
      const columns = found.models.map((answer, i) => columnOf(i, answer, asks ? contextOf(words, answer) : null));
      put(articleOf(name.length > 160 ? `${name.slice(0, 160)}…` : name || "(empty)", "", columns, verdictOf(found)));
      say(found.models.map((one) => `${one.name} ${wordsOf(one)}`).join("; "));
    } catch (error) {
      put(make("article", {}, make("h3", {}, name.slice(0, 160)), make("p", { class: "problem" }, error.message)));
      say(error.message);
    }
  }

  // ---- start

  function listen() {
    const drop = $("drop");
    $("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (info.kind === "picture") take(event.dataTransfer.files);
    });
    document.addEventListener("paste", (event) => { if (info.kind === "picture") take(event.clipboardData.files); });
    $("camera").addEventListener("click", camera);
    if (!navigator.mediaDevices) {
      $("camera").disabled = true;
      $("camera").title = "A browser gives a camera to pages of this machine or over https alone.";
    }
    pad();
    $("threshold").addEventListener("input", redraw);
    $("stage").addEventListener("input", redraw);
    $("text").addEventListener("submit", oneText);
  }

  async function start() {
    try {
      info = await (await fetch("/models")).json();
    } catch (error) {
      $("results").append(make("p", { class: "problem" }, `The server does not answer: ${error.message}`));
      return;
    }
    times = info.models.map(() => []);
    $("models").append(...info.models.map((one, i) => make("li", {}, tag(i), make("b", {}, one.name),
      ` ${[one.task, `${one.runtime} ${one.dtype}`, `${one.threads} ${one.threads === 1 ? "thread" : "threads"}`, ...(one.input ? [one.input.join(" × ")] : [])].join(" · ")}`)));
    document.title = `${info.models.map((one) => one.name).join(" and ")} · featherweight`;
    const detects = info.models.some((one) => one.task === "object-detection");
    $("draw").hidden = !info.models.some((one) => one.task === "image-classification");
    $("for-threshold").hidden = !detects;
    $("for-top").hidden = detects && info.models.every((one) => one.task === "object-detection");
    $("pictures").hidden = info.kind !== "picture";
    $("text").hidden = info.kind === "picture";
    $("for-question").hidden = $("for-cut").hidden = false;
    if (info.kind === "question") { $("text-name").textContent = "text that holds the answer"; $("for-cut").hidden = $("for-pair").hidden = true; }
    else $("for-question").hidden = true;
    listen();
  }
  start();
})();
