"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const named = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; named(); });
  dark.addEventListener("change", named);
  named();

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

  const loaded = (address) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = address;
  });

  /* One map out of a sheet, in colour; `opacity` lets an image shine through. */
  const drawMap = (canvas, picture, sheet, row, column, colours, under) => {
    const { width, height } = sheet;
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

  const option = (select, text, value) => {
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
    const images = await Promise.all(data.images.map((image) => loaded(image.data)));
    const sheets = new Map();
    const sheetOf = async (sheet) => {
      if (!sheets.has(sheet.data)) sheets.set(sheet.data, await loaded(sheet.data));
      return sheets.get(sheet.data);
    };
    let chosen = 0;

    const bar = part("bar").getContext("2d");
    const line = bar.createImageData(256, 1);
    for (let at = 0; at < 256; at += 1) line.data.set([...data.colours.slice(3 * at, 3 * at + 3), 255], 4 * at);
    bar.putImageData(line, 0, 0);

    data.runs.forEach((entry, index) => option(run, entry.label, index));
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

    const points = () => {
      const before = point.selectedIndex;
      point.replaceChildren();
      data.runs[run.value].points.forEach((entry, index) => {
        const text = entry.teacher && entry.teacher !== entry.student ? `${entry.student} (teacher: ${entry.teacher})` : entry.student;
        option(point, text, index);
      });
      point.selectedIndex = before >= 0 && before < point.length ? before : point.length - 1;
    };
    const epochs = () => {
      epoch.max = data.runs[run.value].epochs.length - 1;
      epoch.value = epoch.max;
    };

    let latest = 0;
    const show = async () => {
      const turn = (latest += 1);
      const current = data.runs[run.value];
      const place = current.points[point.value];
      const look = Number(epoch.value);
      const student = await sheetOf(place.sheet);
      const teacher = place.teacher_sheet ? await sheetOf(place.teacher_sheet) : null;
      if (turn !== latest) return;
      const image = images[chosen];
      const under = overlay.checked ? image : null;
      const ratio = image.height / image.width;
      for (const name of ["image", "student", "teacher"]) part(name).height = Math.max(16, Math.round(256 * ratio));
      const plain = part("image").getContext("2d");
      plain.imageSmoothingEnabled = image.width > 48;
      plain.drawImage(image, 0, 0, 256, part("image").height);
      drawMap(part("student"), student, place.sheet, look, chosen, data.colours, under);
      part("teacher-panel").hidden = !teacher;
      if (teacher) drawMap(part("teacher"), teacher, place.teacher_sheet, 0, chosen, data.colours, under);
      const after = current.epochs[look];
      const truth = data.classes[data.images[chosen].label];
      const agreement = place.agreement ? place.agreement[look][chosen] : null;
      const answer = current.answers[look] ? current.answers[look][chosen] : null;
      part("epoch-shown").textContent = `${after} of ${current.epochs[current.epochs.length - 1]}`;
      epoch.setAttribute("aria-valuetext", `after epoch ${after}`);
      part("image-name").textContent = `true class: ${truth}`;
      part("student-name").textContent = `student, ${place.student}`;
      part("teacher-name").textContent = `teacher, ${place.teacher}`;
      const said = [`After epoch ${after}`];
      if (agreement !== null) said.push(`the maps' cosine is ${agreement.toFixed(2)}`);
      if (answer) said.push(`the student says ${data.classes[answer[0]]} (${Math.round(100 * answer[1])} %), ${answer[0] === data.images[chosen].label ? "right" : "wrong"}`);
      part("said").textContent = said.join(", ") + ".";
      part("student").setAttribute("aria-label", `the student's attention after epoch ${after}`);
      viewer.dataset.ready = "yes";
    };

    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (epoch.value === epoch.max) epoch.value = 0;
      play.textContent = "Stop";
      show();
      timer = setInterval(() => {
        if (epoch.value === epoch.max) return stop();
        epoch.value = Number(epoch.value) + 1;
        show();
      }, 600);
    });
    run.addEventListener("change", () => { stop(); points(); epochs(); show(); });
    point.addEventListener("change", show);
    overlay.addEventListener("change", show);
    epoch.addEventListener("input", () => { stop(); show(); });
    points();
    epochs();
    await show();
  };

  for (const viewer of document.querySelectorAll("[data-viewer]")) start(viewer);
})();
