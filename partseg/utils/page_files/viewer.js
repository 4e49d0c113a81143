// Paints a label map over a photo, names the class under the pointer, and lights one class up on request.
// Each <div class="partseg-viewer"> holds a photo, an <img class="ids"> whose pixels are id = red + 256 * green
// (65535: nothing), and its classes as JSON in data-classes: [{id, name, color: [r, g, b]}].
(() => {
  const NOTHING = 65535;

  function setUp(viewer) {
    viewer.dataset.ready = "1";
    const ids = viewer.querySelector("img.ids");
    ids.decode().then(() => start(viewer, ids)).catch((error) => console.error("partseg viewer:", error));
  }

  function start(viewer, image) {
    const labels = readIds(image);
    const classes = new Map(JSON.parse(viewer.dataset.classes).map((c) => [c.id, c]));
    const canvas = viewer.querySelector("canvas");
    const tip = viewer.querySelector(".tip");
    const stage = viewer.querySelector(".stage");
    const buttons = [...viewer.querySelectorAll(".legend button")];
    let lit = null;
    let pinned = null;

    const light = (id) => {
      if (id === lit) return;
      lit = id;
      paint(canvas, labels, classes, lit);
      buttons.forEach((b) => b.classList.toggle("on", Number(b.dataset.id) === lit));
    };
    stage.addEventListener("pointermove", (event) => {
      const box = stage.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * labels.width);
      const y = Math.floor(((event.clientY - box.top) / box.height) * labels.height);
      const inside = x >= 0 && y >= 0 && x < labels.width && y < labels.height;
      const found = inside ? classes.get(labels.ids[y * labels.width + x]) : undefined;
      tip.textContent = found ? found.name : "background";
      tip.style.display = "block";
      const left = event.clientX - box.left + 14;
      tip.style.left = Math.min(left, Math.max(0, box.width - tip.offsetWidth)) + "px";
      tip.style.top = Math.max(0, event.clientY - box.top - 34) + "px";
      light(found ? found.id : pinned);
    });
    stage.addEventListener("pointerleave", () => { tip.style.display = "none"; light(pinned); });
    buttons.forEach((button) => {
      const id = Number(button.dataset.id);
      button.addEventListener("pointerenter", () => light(id));
      button.addEventListener("pointerleave", () => light(pinned));
      button.addEventListener("click", () => { pinned = pinned === id ? null : id; light(pinned); });
    });
    paint(canvas, labels, classes, null);
    new ResizeObserver(() => arrange(stage)).observe(stage);
    viewer.dataset.painted = "1";
  }

  function arrange(stage) {
    const whole = stage.getBoundingClientRect();
    const taken = [];
    for (const name of stage.querySelectorAll(".written")) {
      const box = name.getBoundingClientRect();
      const covered = taken.some((b) => box.left < b.right && b.left < box.right && box.top < b.bottom && b.top < box.bottom);
      const outside = box.left < whole.left || box.right > whole.right;
      name.style.visibility = covered || outside ? "hidden" : "visible";
      if (!covered && !outside) taken.push(box);
    }
  }

  function readIds(image) {
    const canvas = document.createElement("canvas");
    const [width, height] = [(canvas.width = image.naturalWidth), (canvas.height = image.naturalHeight)];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, width, height).data;
    const ids = new Uint16Array(width * height);
    for (let i = 0; i < ids.length; i++) ids[i] = pixels[4 * i] + 256 * pixels[4 * i + 1];
    return { ids, width, height };
  }

  function paint(canvas, labels, classes, lit) {
    const { ids, width, height } = labels;
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    for (let i = 0; i < ids.length; i++) {
      const found = ids[i] === NOTHING ? undefined : classes.get(ids[i]);
      if (!found) continue;
      const x = i % width;
      const edge = (x > 0 && ids[i - 1] !== ids[i]) || (x + 1 < width && ids[i + 1] !== ids[i]) ||
        (i >= width && ids[i - width] !== ids[i]) || (i + width < ids.length && ids[i + width] !== ids[i]);
      const shade = edge ? 0.6 : 1;
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = found.color[c] * shade;
      picture.data[4 * i + 3] = lit === null || lit === ids[i] ? 255 : 60;
    }
    context.putImageData(picture, 0, 0);
  }

  const find = () => document.querySelectorAll(".partseg-viewer:not([data-ready])").forEach(setUp);
  const watch = () => { find(); new MutationObserver(find).observe(document.body, { childList: true, subtree: true }); };
  document.body ? watch() : document.addEventListener("DOMContentLoaded", watch);
})();
