"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const nameButton = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameButton(); });
  dark.addEventListener("change", nameButton);
  nameButton();

  for (const button of document.querySelectorAll(".copy")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.firstChild;
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      text.data = "Copied";
      setTimeout(() => { text.data = "Copy"; }, 1500);
    });
  }

  const loadImage = (address) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = address;
  });

  /* Draws one map of a sprite in colour, translucent if there is an image under it. */
  const drawMap = (canvas, picture, sprite, row, column, colours, under) => {
    const { width, height } = sprite;
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    const context = small.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, column * width, row * height, width, height, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      const value = pixels.data[at];
      for (let channel = 0; channel < 3; channel += 1) pixels.data[at + channel] = colours[3 * value + channel];
    }
    context.putImageData(pixels, 0, 0);
    const target = canvas.getContext("2d");
    target.globalAlpha = 1;
    target.imageSmoothingEnabled = false;
    target.clearRect(0, 0, canvas.width, canvas.height);
    if (under) {
      target.drawImage(under, 0, 0, canvas.width, canvas.height);
      target.globalAlpha = 0.65;
    }
    target.drawImage(small, 0, 0, canvas.width, canvas.height);
    target.globalAlpha = 1;
  };

  const addOption = (select, text, value) => {
    const entry = document.createElement("option");
    entry.textContent = text;
    entry.value = value;
    select.append(entry);
  };

  const start = async (viewer) => {
    const data = JSON.parse(document.getElementById(viewer.dataset.viewer).textContent);
    const part = (name) => viewer.querySelector("." + name);
    const run = part("run"), point = part("point"), epoch = part("epoch"), overlay = part("overlay");
    const play = part("play"), thumbs = part("thumbs");
    const images = await Promise.all(data.images.map((image) => loadImage(image.data)));
    const pictures = new Map();
    const pictureOf = async (sprite) => {
      if (!pictures.has(sprite.data)) pictures.set(sprite.data, await loadImage(sprite.data));
      return pictures.get(sprite.data);
    };
    let chosen = 0;

    const bar = part("bar").getContext("2d");
    const line = bar.createImageData(256, 1);
    for (let at = 0; at < 256; at += 1) line.data.set([...data.colours.slice(3 * at, 3 * at + 3), 255], 4 * at);
    bar.putImageData(line, 0, 0);

    data.runs.forEach((entry, index) => addOption(run, entry.label, index));
    data.images.forEach((image, index) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const picture = document.createElement("img");
      input.type = "radio";
      input.name = viewer.dataset.viewer;
      input.checked = index === 0;
      input.setAttribute("aria-label", `image ${index + 1}: ${data.classes[image.label]}`);
      picture.src = image.data;
      picture.alt = "";
      input.addEventListener("change", () => { chosen = index; show(); });
      label.append(input, picture);
      thumbs.append(label);
    });

    const listPoints = () => {
      const previous = point.selectedIndex;
      point.replaceChildren();
      data.runs[run.value].points.forEach((entry, index) => {
        const layers = entry.teacher && entry.teacher !== entry.student ? `${entry.student}, teacher ${entry.teacher}` : entry.student;
        addOption(point, `${entry.level} (${layers})`, index);
      });
      point.selectedIndex = previous >= 0 && previous < point.length ? previous : point.length - 1;
    };
    const resetEpoch = () => {
      epoch.max = data.runs[run.value].epochs.length - 1;
      epoch.value = 0;
    };
    /* The student alone at the same layer, after the epoch that is nearest to this one. */
    const aloneAt = (current, pair, after) => {
      const other = current.alone === null ? null : data.runs[current.alone];
      const same = other ? other.points.find((entry) => entry.student === pair.student) : null;
      if (!same) return null;
      const distances = other.epochs.map((value) => Math.abs(value - after));
      return { sprite: same.sprite, row: distances.indexOf(Math.min(...distances)) };
    };

    let latest = 0;
    const show = async () => {
      const turn = (latest += 1);
      const current = data.runs[run.value];
      const pair = current.points[point.value];
      const index = Number(epoch.value);
      const student = await pictureOf(pair.sprite);
      const teacher = pair.teacher_sprite ? await pictureOf(pair.teacher_sprite) : null;
      const alone = aloneAt(current, pair, current.epochs[index]);
      const aloneMaps = alone ? await pictureOf(alone.sprite) : null;
      if (turn !== latest) return;
      const image = images[chosen];
      const under = overlay.checked ? image : null;
      const ratio = image.height / image.width;
      for (const name of ["image", "alone", "student", "teacher"]) part(name).height = Math.max(16, Math.round(256 * ratio));
      const original = part("image").getContext("2d");
      original.imageSmoothingEnabled = image.width > 48;
      original.drawImage(image, 0, 0, 256, part("image").height);
      drawMap(part("student"), student, pair.sprite, index, chosen, data.colours, under);
      part("alone-panel").hidden = !alone;
      if (alone) drawMap(part("alone"), aloneMaps, alone.sprite, alone.row, chosen, data.colours, under);
      part("teacher-panel").hidden = !teacher;
      if (teacher) drawMap(part("teacher"), teacher, pair.teacher_sprite, 0, chosen, data.colours, under);
      const after = current.epochs[index];
      const truth = data.classes[data.images[chosen].label];
      const agreement = pair.agreement ? pair.agreement[index][chosen] : null;
      const answer = current.answers[index] ? current.answers[index][chosen] : null;
      part("epoch-shown").textContent = `${after} of ${current.epochs[current.epochs.length - 1]}`;
      epoch.setAttribute("aria-valuetext", `after epoch ${after}`);
      part("image-name").textContent = `class: ${truth}`;
      part("alone-name").textContent = "student alone";
      part("student-name").textContent = alone ? "student with its teacher" : "student";
      part("teacher-name").textContent = "teacher";
      const status = [`After epoch ${after}`];
      if (agreement !== null) status.push(`the cosine between the maps is ${agreement.toFixed(2)}`);
      if (answer) status.push(`the student predicts ${data.classes[answer[0]]} (${Math.round(100 * answer[1])} %), ${answer[0] === data.images[chosen].label ? "right" : "wrong"}`);
      part("status").textContent = status.join(", ") + ".";
      part("student").setAttribute("aria-label", `the student's attention after epoch ${after}`);
      viewer.dataset.ready = "yes";
    };

    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
    const begin = () => {
      if (epoch.value === epoch.max) epoch.value = 0;
      play.textContent = "Stop";
      show();
      timer = setInterval(() => {
        if (epoch.value === epoch.max) return stop();
        epoch.value = Number(epoch.value) + 1;
        show();
      }, 600);
    };
    play.addEventListener("click", () => (timer ? stop() : begin()));
    run.addEventListener("change", () => { stop(); listPoints(); resetEpoch(); show(); });
    point.addEventListener("change", show);
    overlay.addEventListener("change", show);
    epoch.addEventListener("input", () => { stop(); show(); });
    listPoints();
    resetEpoch();
    await show();
    /* It plays once, when it is first in view, unless the reader has asked for less motion. */
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      if (!timer && epoch.value === "0") begin();
    }, { threshold: 0.5 });
    watch.observe(part("panels"));
  };

  for (const viewer of document.querySelectorAll("[data-viewer]")) start(viewer);
})();
