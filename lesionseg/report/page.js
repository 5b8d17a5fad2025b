"use strict";
// The page at work: sorts the table, shows CT and labels with NiiVue, and moves its crosshair to a lesion.
(function () {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const rows = Array.from(document.querySelectorAll("#lesions tbody tr"));
  const pictures = Array.from(document.querySelectorAll(".pictures button"));
  let viewer = null; // once NiiVue shows the scan
  let current = null; // id of the lesion that was jumped to

  // ---- lesions ----
  function sortBy(header) {
    const upwards = header.getAttribute("aria-sort") !== "ascending";
    const isText = header.dataset.kind === "text";
    const value = (row) => row.cells[header.cellIndex].dataset.value;
    rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      const unknown = (a === "") - (b === ""); // last, whichever way
      const difference = isText ? a.localeCompare(b) : a - b;
      return unknown || (upwards ? difference : -difference) || one.dataset.id - other.dataset.id;
    });
    for (const cell of header.parentNode.cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    rows[0].parentNode.append(...rows);
  }

  function select(id) {
    current = id;
    for (const row of rows) {
      if (row.dataset.id === id) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    for (const picture of pictures) picture.setAttribute("aria-pressed", String(picture.dataset.id === id));
    if (viewer) viewer.place(data.lesions[id]);
  }

  function show(id) {
    select(id);
    if (viewer) document.querySelector(".screen").scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const at = rows.findIndex((row) => row.dataset.id === current);
    const row = rows[(at + by + rows.length) % rows.length];
    select(row.dataset.id);
    const box = row.closest(".scroll"); // scrolls by itself: the viewer stays in sight
    box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }

  function onRowKey(event) {
    const row = event.currentTarget;
    const beside = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling };
    if (event.key === "Enter" || event.key === " ") show(row.dataset.id);
    else if (event.key in beside) beside[event.key]?.focus();
    else return;
    event.preventDefault();
  }

  function listen() {
    for (const button of document.querySelectorAll("#lesions thead button")) {
      button.addEventListener("click", () => sortBy(button.closest("th")));
    }
    for (const row of rows) {
      row.addEventListener("click", () => show(row.dataset.id));
      row.addEventListener("keydown", onRowKey);
    }
    for (const picture of pictures) picture.addEventListener("click", () => show(picture.dataset.id));
  }

  // ---- places: voxels (i, j, k) of the page's volumes, and RAS millimetres ----
  const times = (matrix, point) =>
    matrix.slice(0, 3).map((line) => line[0] * point[0] + line[1] * point[1] + line[2] * point[2] + line[3]);
  const inside = (voxel) => voxel.map((at, axis) => Math.min(Math.max(Math.round(at), 0), data.shape[axis] - 1));

  function describe(voxel, hu, label) {
    const said = [];
    const side = (value, plus, minus) => `${value < 0 ? minus : plus} ${Math.abs(value).toFixed(1)}`;
    const [column, row, slice] = voxel.map((at, axis) => Math.round(data.index[axis].first + data.index[axis].step * at));
    if (!data.single) said.push(`slice ${slice}`);
    if (data.position_known) {
      const [x, y, z] = times(data.ras, voxel);
      said.push(`${side(x, "R", "L")}   ${side(y, "A", "P")}   ${side(z, "S", "I")} mm`);
    } else said.push(`row ${row}   column ${column}`);
    const [low, high] = data.window_hu;
    const bound = hu <= low ? "≤ " : hu >= high ? "≥ " : "about ";
    said.push(`${bound}${String(Math.round(hu)).replace("-", "−")} HU`);
    if (label) said.push(data.names[label]);
    return said.join("   ·   ");
  }

  // ---- viewer ----
  const TYPES = { axial: 0, coronal: 1, sagittal: 2, planes: 3, volume: 4 };
  const CT = 0, LIVER = 1; // layers of NiiVue; above them the lesions
  const LIVER_OPACITY = { slices: 0.3, volume: 0.02 }; // beside lesions of 1

  class Viewer {
    constructor(canvas) {
      this.canvas = canvas;
      this.nv = new niivue.Niivue({
        logLevel: "error",
        loadingText: "",
        dragAndDropEnabled: false, // or a file dropped on the page would take the place of its scan
        isRadiologicalConvention: true,
        isOrientationTextVisible: data.position_known,
        show3Dcrosshair: true,
        scrollRequiresFocus: true, // the wheel scrolls the page until the picture is clicked
        clipPlaneHotKey: "",
        cycleClipPlaneHotKey: "",
        viewModeHotKey: "",
        crosshairColor: [1, 0.9, 0.35, 0.8],
        crosshairWidthUnit: "percent", // of the width of the scan
        crosshairGap: 10, // as a multiple of half the width: the voxel itself stays visible
        backColor: [0.04, 0.05, 0.06, 1],
        fontColor: [0.85, 0.88, 0.9, 1],
      });
      this.nv.onLocationChange = (location) => this.moved(location);
      this.labelsByNearest();
    }

    // NiiVue has one switch for all layers; the CT reads better smoothed, labels must not be.
    labelsByNearest() {
      const update = this.nv.updateInterpolation.bind(this.nv);
      this.nv.updateInterpolation = (layer, ...rest) => {
        this.nv.opts.isNearestInterpolation = layer !== CT;
        update(layer, ...rest);
      };
    }

    async load() {
      await this.nv.attachToCanvas(this.canvas);
      const [low, high] = data.window_hu;
      const read = (id, more) =>
        niivue.NVImage.loadFromBase64({ base64: byId(id).textContent, name: `${id}.nii.gz`, ...more });
      const ct = await read("ct", { colormap: "gray", cal_min: low, cal_max: high });
      const liver = await read("labels", { opacity: LIVER_OPACITY.slices });
      const lesions = await read("labels");
      this.labels = liver.img.slice();
      for (let i = 0; i < this.labels.length; i++) {
        liver.img[i] = this.labels[i] ? data.liver : 0; // lesions belong to the liver
        lesions.img[i] = this.labels[i] > data.liver ? this.labels[i] : 0;
      }
      for (const layer of [liver, lesions]) layer.setColormapLabel(this.colormap());
      this.opacity(byId("opacity").value);
      this.arrange();
      this.view(data.single ? "axial" : "planes");
      for (const layer of [ct, liver, lesions]) this.nv.addVolume(layer);
      this.place(data.shape.map((n) => Math.floor(n / 2)));
    }

    colormap() {
      const channel = (i) => data.colors.map((color) => color[i]);
      const ids = data.colors.map((_, label) => label);
      return { R: channel(0), G: channel(1), B: channel(2), A: ids.map((id) => (id ? 255 : 0)), I: ids, labels: data.names };
    }

    arrange() {
      if (data.single) return;
      this.nv.setCustomLayout([
        { sliceType: TYPES.axial, position: [0, 0, 1, 0.62] },
        { sliceType: TYPES.coronal, position: [0, 0.63, 0.495, 0.37] },
        { sliceType: TYPES.sagittal, position: [0.505, 0.63, 0.495, 0.37] },
      ]);
    }

    view(name) {
      this.name = name;
      if (name === "planes") this.arrange();
      else this.nv.clearCustomLayout();
      this.nv.opts.crosshairWidth = name === "planes" ? 0.5 : 0.3; // a pixel or two, in the small planes as well
      this.nv.setSliceType(TYPES[name]);
      const isVolume = name === "volume";
      if (this.nv.volumes.length && isVolume !== this.isVolume) {
        this.nv.volumes[CT].opacity = isVolume ? 0 : 1; // or it would hide the labels
        this.nv.setOpacity(LIVER, isVolume ? LIVER_OPACITY.volume : LIVER_OPACITY.slices);
      }
      this.isVolume = isVolume;
      byId("opacity").disabled = isVolume; // NiiVue's counts for slices alone
      for (const button of document.querySelectorAll("[data-view]")) {
        button.setAttribute("aria-pressed", String(button.dataset.view === name));
      }
    }

    opacity(percent) {
      this.nv.overlayAlphaShader = percent / 100;
      if (this.nv.volumes.length) this.nv.drawScene();
    }

    place(voxel) {
      this.nv.scene.crosshairPos = this.nv.mm2frac(times(data.ras, voxel), 0, true);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    moved(location) {
      const voxel = inside(times(data.inverse, location.mm));
      const [i, j, k] = voxel;
      const label = this.labels[i + data.shape[0] * (j + data.shape[1] * k)];
      this.voxel = voxel;
      Object.assign(this.canvas.dataset, { voxel: voxel.join(" "), label });
      byId("place").textContent = describe(voxel, location.values[CT].value, label);
    }

    onKey(event) {
      const moves = {
        ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
        PageUp: [0, 0, 1], PageDown: [0, 0, -1],
      };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      if (this.name !== "volume") return this.place(inside(this.voxel.map((at, axis) => at + move[axis])));
      const { renderAzimuth, renderElevation } = this.nv.scene;
      this.nv.setRenderAzimuthElevation(renderAzimuth + 10 * move[0], renderElevation - 10 * move[1]);
    }
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL2");
    const made = new Viewer(byId("canvas"));
    await made.load();
    made.canvas.addEventListener("keydown", (event) => made.onKey(event));
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => made.view(button.dataset.view));
    }
    byId("opacity").addEventListener("input", (event) => made.opacity(event.target.value));
    byId("previous")?.addEventListener("click", () => step(-1));
    byId("next")?.addEventListener("click", () => step(1));
    viewer = made;
    if (rows.length) select(current ?? rows[0].dataset.id);
    document.documentElement.dataset.viewer = "ready";
  }

  listen();
  start().catch((error) => {
    byId("stage").hidden = true;
    byId("no-viewer").hidden = false;
    byId("no-viewer-reason").textContent = error.message;
    document.documentElement.dataset.viewer = "missing";
  });
})();
