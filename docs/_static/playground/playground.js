/* The page to play with. It computes nothing: of what docs/make_playground.py has computed, it shows
   what belongs to the strides, the smoothness and the convention that are chosen. */
"use strict";

const playground = (() => {
  const folder = new URL("data/", document.currentScript.src).href;
  const files = new Map();

  /* Data comes as scripts, which a page may load from a disk too. */
  function load(name) {
    if (!files.has(name)) {
      const file = {};
      file.content = new Promise((resolve, reject) => {
        file.receive = resolve;
        const script = document.createElement("script");
        script.src = `${folder}${name}.js`;
        script.onerror = () => {
          files.delete(name); // so that the next move tries again
          reject(new Error(`${script.src} could not be loaded`));
        };
        document.head.append(script);
      });
      files.set(name, file);
    }
    return files.get(name).content;
  }

  const receive = (name, content) => files.get(name).receive(content);

  /* --- words ---------------------------------------------------------------------------------- */

  const UNITS = { photo: "pixels", recording: "samples" };

  const number = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  const product = (sizes) => sizes.join(" × ");
  const every = (step) => ["every", "every 2nd", "every 3rd", "every 4th"][step - 1];

  /* --- drawings ------------------------------------------------------------------------------- */

  const SVG = "http://www.w3.org/2000/svg";

  /* Draw paths, pairs of class and path, in a square of 1000 that is stretched over the figure. */
  function draw(figure, label, paths) {
    let svg = figure.querySelector("svg");
    if (!svg) {
      svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", "0 0 1000 1000");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("role", "img");
      figure.prepend(svg);
    }
    svg.setAttribute("aria-label", label);
    svg.replaceChildren(
      ...paths.map(([name, path]) => {
        const element = document.createElementNS(SVG, "path");
        element.setAttribute("class", `play-${name}`);
        element.setAttribute("d", path);
        return element;
      }),
    );
  }

  const line = (points) => `M${points.map((point) => point.join(" ")).join("L")}`;

  /* Draw the mask of an axis, and below it the share of each frequency in the stride's gradient. */
  function drawAxis(figure, itself, axis, { M, mask, ramp }, shares, slope) {
    const N = itself.N[axis];
    // Where all frequencies have bins of their own, both signs are drawn. Else k stands for -k too.
    const signs = Math.min(...ramp) < 0 ? [-1, 1] : [1];
    const low = signs.length === 2 ? -N / 2 : 0;
    const x = (k) => (1000 * (k - low)) / (N / 2 - low);
    const paths = [];
    for (const sign of signs) {
      const edge = x((sign * M) / 2);
      paths.push(["cropped", `M${edge} 0V1000H${x((sign * N) / 2)}V0Z`]);
      paths.push(["edge", `M${edge} 0V1000`]);
    }
    if (itself.levels) {
      const levels = itself.levels.map((level, k) => [x(k), 500 - 0.48 * level]);
      paths.push(["levels", `${line(levels)}V500H0Z`]);
    }
    paths.push(["window", line(mask.map(([k, value]) => [x(k), 500 - 480 * value]))]);
    paths.push(["zero", "M0 500H1000"]);

    const [least, most] = [Math.min(0, ...shares), Math.max(0, ...shares)];
    const y = (share) => 540 + (460 * (most - share)) / (most - least || 1);
    const bars = shares.map((share, i) => `M${x(ramp[i])} ${y(0)}V${y(share)}`);
    paths.push(["bars", bars.join("")]);

    const at = (k) =>
      itself.rate ? `${Math.round((k * itself.rate) / N)}\u00a0Hz` : `k\u00a0=\u00a0${k}`;
    let text = `${figure.dataset.axis} dS = ${number(slope)}`.trim();
    if (shares.length) {
      const largest = Math.max(...shares.map(Math.abs));
      const where = shares.findIndex((share) => Math.abs(share) === largest);
      const bins = shares.length === 1 ? "1 frequency" : `${shares.length} frequencies`;
      text += ` from ${bins}; ${at(ramp[where])} has the largest share, ${number(shares[where])}`;
    }
    draw(figure, text, paths);
    figure.querySelector("figcaption").textContent = text;
    const [left, right] = figure.querySelectorAll(".play-scale span");
    left.textContent = at(low);
    right.textContent = at(N / 2);
  }

  /* Draw an excerpt of a sound: its samples, the curve through them and the input's. */
  function drawSound(figure, sound, input, label) {
    const y = (value) => 500 - 0.7 * value;
    const curve = (values) =>
      line(values.map((value, i) => [(1000 * i) / (values.length - 1), y(value)]));
    const dots = sound.samples.map((value, i) => `M${sound.places[i]} ${y(value)}h0`);
    draw(figure, label, [
      ["input", curve(input.curve)],
      ["curve", curve(sound.curve)],
      ["dots", dots.join("")],
    ]);
  }

  /* --- what is shown -------------------------------------------------------------------------- */

  function showPhoto(section, itself, { result, windows, M, steps, stridedM }) {
    const shown = (name) => section.querySelector(`[data-show="${name}"]`);
    const [rows, columns] = steps;
    const strided = `${every(rows)} row, ${every(columns)} column`;
    shown("input").src = itself.input;
    shown("spectrum").src = itself.spectrum;
    shown("result").src = result.picture;
    shown("result").alt = `The input as the layer resizes it, ${product(M)}`;
    shown("result caption").textContent = `the layer: ${product(M)}`;
    shown("strided").src = itself.strided[rows - 1][columns - 1];
    shown("strided").alt = `The input, but only ${strided}`;
    shown("strided caption").textContent =
      `a strided convolution: ${strided}, ${product(stridedM)}`;

    const crop = shown("crop").style;
    windows.forEach(({ mask }, axis) => {
      const N = itself.N[axis];
      const percent = (k) => (100 * (k + (N + 1) / 2)) / N;
      // Of two veils over one another as much shines through as the product of both masks.
      const veil = mask.map(([k, value]) => `rgb(0 0 0 / ${0.8 * (1 - value)}) ${percent(k)}%`);
      const direction = ["bottom", "right"][axis];
      shown(`window ${axis}`).style.background = `linear-gradient(to ${direction}, ${veil})`;
      crop[["top", "left"][axis]] = `${percent(-M[axis] / 2)}%`;
      crop[["height", "width"][axis]] = `${(100 * M[axis]) / N}%`;
    });
  }

  function showRecording(section, itself, { result, M, steps, stridedM }) {
    const [step] = steps;
    const player = section.querySelector("audio");
    const sounds = {
      input: [itself.input, "the input"],
      result: [result, `the layer: ${product(M)} samples`],
      strided: [
        itself.strided[step - 1],
        `a strided convolution: ${every(step)} sample, ${product(stridedM)}`,
      ],
    };
    for (const [name, [sound, caption]] of Object.entries(sounds)) {
      const figure = section.querySelector(`[data-sound="${name}"]`);
      drawSound(figure, sound, itself.input, caption);
      figure.querySelector("figcaption").textContent = caption;
      figure.querySelector("button").onclick = () => {
        player.src = sound.sound;
        player.play().catch((error) => {
          if (error.name !== "AbortError") throw error; // another sound was asked for meanwhile
        });
      };
    }
  }

  const SHOW = { photo: showPhoto, recording: showRecording };

  /* Bring one part of the page to life. */
  function start(section) {
    const subject = section.dataset.play;
    const controls = (name) => [...section.querySelectorAll(`[name="${name}"]`)];
    const strides = controls("stride");
    const [smoothness] = controls("smoothness");
    const [convention] = controls("convention");
    const [together] = controls("together");
    const axes = [...section.querySelectorAll("[data-axis]")];
    const numbers = section.querySelector(".play-numbers");

    async function show() {
      const S = strides.map((slider) => Number(slider.value));
      const name = `${subject}-${convention.value}-${smoothness.value}`;
      section.dataset.wanted = `${name} ${S}`;
      const itself = await load(subject);
      const R = itself.smoothness[convention.value][smoothness.value];
      smoothness.setAttribute("aria-valuetext", R);
      for (const slider of [...strides, smoothness]) {
        const value = slider === smoothness ? R : slider.value;
        slider.parentElement.querySelector("b").textContent = value;
      }
      const data = await load(name);
      // While the file was loading, something else may have been chosen.
      if (section.dataset.wanted !== `${name} ${S}`) return;

      const places = S.map((stride) => itself.strides.indexOf(stride));
      const result = places.reduce((results, place) => results[place], data.results);
      const windows = data.windows.map((ofAxis, axis) => ofAxis[places[axis]]);
      const M = windows.map((ofAxis) => ofAxis.M);
      const steps = S.map(Math.round);
      const stridedM = steps.map((step, axis) => itself.stridedM[axis][step - 1]);
      SHOW[subject](section, itself, { result, windows, M, steps, stridedM });
      axes.forEach((figure, axis) => {
        drawAxis(figure, itself, axis, windows[axis], result.shares[axis], result.dS[axis]);
      });
      const slopes = axes.map((figure, i) => `${figure.dataset.axis} ${number(result.dS[i])}`);
      numbers.textContent =
        `${product(itself.N)} ${UNITS[subject]} become ${product(M)}. ` +
        `Gradient dS: ${slopes.join(", ").trim()}.`;
      section.querySelector("code").textContent =
        `explain(${subject}, ${S.length > 1 ? `(${S.join(", ")})` : `${S}, axes=-1`}, ` +
        `smoothness=${R}, convention="${convention.value}", norm="forward")`;
      section.dataset.shown = section.dataset.wanted;
    }

    function update() {
      show().catch((error) => {
        numbers.textContent = `Nothing to show: ${error.message}.`;
      });
    }

    section.addEventListener("input", ({ target }) => {
      if (together?.checked && (target === together || strides.includes(target))) {
        const { value } = target === together ? strides[0] : target;
        for (const slider of strides) slider.value = value;
      }
      update();
    });
    update();
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const section of document.querySelectorAll(".play")) start(section);
  });
  return { receive };
})();
