// Lets a person mark an object on a photo: drag to draw around it (the outline closes itself), or click on it.
// Each <div class="partseg-marker"> writes its marks as JSON into the text field that data-target names:
// [{"outline": [[x, y], ...]}, {"click": [x, y]}], x and y in 0..1.
(() => {
  const DRAG = 6; // pixels the pointer may move and still count as a click

  function setUp(marker) {
    marker.dataset.ready = "1";
    const photo = marker.querySelector("img");
    const canvas = marker.querySelector("canvas");
    const marks = [];
    let trail = null;

    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const within = (v) => Math.min(1, Math.max(0, v));
      return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
    };
    const publish = () => {
      const field = document.querySelector(marker.dataset.target);
      if (!field) return;
      const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set;
      set.call(field, marks.length ? JSON.stringify(marks) : "");
      field.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const draw = () => {
      const box = canvas.getBoundingClientRect();
      canvas.width = Math.max(1, Math.round(box.width));
      canvas.height = Math.max(1, Math.round(box.height));
      const context = canvas.getContext("2d");
      context.lineWidth = 2.5;
      context.strokeStyle = "#ffffff";
      context.fillStyle = "rgba(47, 91, 215, 0.42)";
      context.shadowColor = "#000000";
      context.shadowBlur = 3;
      for (const mark of trail ? [...marks, { outline: trail }] : marks) {
        context.beginPath();
        if (mark.click) {
          context.arc(mark.click[0] * canvas.width, mark.click[1] * canvas.height, 8, 0, 7);
        } else {
          mark.outline.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * canvas.width, y * canvas.height));
          context.closePath();
        }
        context.fill();
        context.stroke();
      }
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!marker.classList.contains("active")) return;
      canvas.setPointerCapture(event.pointerId);
      trail = [place(event)];
      trail.from = [event.clientX, event.clientY];
      trail.far = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!trail) return;
      trail.far = Math.max(trail.far, Math.hypot(event.clientX - trail.from[0], event.clientY - trail.from[1]));
      trail.push(place(event));
      draw();
    });
    canvas.addEventListener("pointerup", () => {
      if (!trail) return;
      const round = (point) => point.map((v) => Math.round(v * 1e4) / 1e4);
      marks.push(trail.far < DRAG ? { click: round(trail[0]) } : { outline: trail.map(round) });
      trail = null;
      draw();
      publish();
    });
    marker.querySelector("button").addEventListener("click", () => { marks.length = 0; draw(); publish(); });
    new ResizeObserver(draw).observe(canvas);
    photo.decode().then(draw);
    publish(); // a new photo has no marks yet
  }

  const find = () => document.querySelectorAll(".partseg-marker:not([data-ready])").forEach(setUp);
  const watch = () => { find(); new MutationObserver(find).observe(document.body, { childList: true, subtree: true }); };
  document.body ? watch() : document.addEventListener("DOMContentLoaded", watch);
})();
